//! A whole Peili in this process: router, rendezvous, mirror and registry, over a store in memory and a content directory
//! in which nobody downloads.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use libp2p::{Multiaddr, PeerId};
use peili::inflight::{ContentRoot, Inflight, Uplink};
use peili::mirror::InFlightSharing;
use peili::mirror::flight::{self, Flight};
use peili::oci::{Digest, Key};
use peili::registry::{self, Registry};
use peili::routing::Router as _;
use peili::routing::bootstrap::Bootstrap;
use peili::routing::flight::Flights;
use peili::routing::kad;
use peili::server::Server;
use peili::shutdown::Shutdown;
use peili::testing;
use peili::testing::content::FakeStore;
use peili::testing::ingest::FakeIngests;
use peili::testing::raw_http::{self, Answer};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use crate::nodes::{Node, config};

/// All registries are at the same port.
pub const REGISTRY: u16 = 5907;
/// Of whatever is asked: longer than any deadline of the product.
const AT_ALL: Duration = Duration::from_secs(60);

pub struct Peili {
    pub node: Node,
    pub store: FakeStore,
    registry: SocketAddr,
    shutdown: Shutdown,
    _ingests: FakeIngests,
}

impl Peili {
    pub async fn start(ip: &str, first: Option<&Multiaddr>) -> Self {
        let ip: IpAddr = ip.parse().unwrap();
        let mut node = Node::with(kad::Config {
            bootstrap: Some(Bootstrap::Static(first.cloned().into_iter().collect())),
            registry_port: REGISTRY,
            ..config(ip, SocketAddr::new(ip, 0))
        })
        .await;
        let registry = SocketAddr::new(ip, REGISTRY);
        let server = Server::bind(&[registry]).await.unwrap();
        let metrics = &node.registry;
        let (store, ingests) = (FakeStore::default(), FakeIngests::new());
        let (router, shutdown) = (Arc::new(node.kad.clone()), Shutdown::new());
        let inflight = Inflight::new(
            ContentRoot::known(ingests.root().to_owned()),
            "k8s.io".into(),
        );
        let flights = Flights::new(router.clone(), StdRng::seed_from_u64(1));
        let calls = node.calls.take().unwrap();
        tokio::spawn(flights.clone().serve(calls));
        let flight = Flight::new(
            flight::Parts {
                rendezvous: Arc::new(flights),
                store: Arc::new(store.clone()),
                inflight: inflight.clone(),
                uplink: Uplink::default(),
                sharing: InFlightSharing::Auto,
                papers: Default::default(),
            },
            flight::Metrics::new(metrics),
        );
        shutdown.spawn(flight.clone().run(node.stop.clone()));
        let mirror = testing::registry::mirror(node.kad.clone(), metrics).with_flight(flight);
        let routes = registry::router(Registry {
            inflight,
            ..testing::registry::over(store.clone(), mirror, metrics)
        });
        shutdown.spawn(server.run(routes, shutdown.clone()));
        Self {
            node,
            store,
            registry,
            shutdown,
            _ingests: ingests,
        }
    }

    pub fn id(&self) -> PeerId {
        self.node.kad.peer_id().as_str().parse().unwrap()
    }

    pub fn router(&self) -> Multiaddr {
        self.node.address()
    }

    pub async fn holds(&self, bytes: impl Into<bytes::Bytes>) -> Digest {
        let digest = self.store.add_blob(bytes);
        let key = Key::Content(digest.clone());
        self.node.kad.advertise(vec![key]).await.unwrap();
        digest
    }

    /// As its containerd asks for a blob.
    pub async fn blob(&self, digest: &Digest) -> Answer {
        let path = format!("/v2/app/blobs/{digest}?ns=registry.test");
        self.get(&path, &[]).await
    }

    pub async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        raw_http::ask(self.registry, AT_ALL, "GET", path, headers).await
    }
}

impl Drop for Peili {
    fn drop(&mut self) {
        self.node.stop.cancel();
        self.shutdown.drain.cancel();
    }
}
