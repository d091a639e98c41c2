//! Real routers over TCP in one process, each with an address of its own: 127.0.0.x unless the test says otherwise.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use peili::readiness::Readiness;
use peili::routing::Peer;
use peili::routing::bootstrap::Bootstrap;
use peili::routing::kad::{self, Kad};
use peili::routing::messenger::{Call, Messenger};
use peili::testing::conformance::routing::{Cluster, eventually};
use peili::testing::memory::{Delay, Memory};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Nothing listens there: routers only tell of it.
pub const REGISTRY: u16 = 5000;

pub struct KadCluster(pub Vec<Node>);

pub struct Node {
    pub ip: IpAddr,
    pub kad: Kad,
    pub readiness: Readiness,
    pub registry: prometheus::Registry,
    pub stop: CancellationToken,
    pub task: JoinHandle<()>,
    /// Until somebody takes them.
    pub calls: Option<mpsc::Receiver<Call>>,
}

impl Node {
    pub async fn start(number: usize, bootstrap: Option<Bootstrap>) -> Self {
        let ip = IpAddr::V4(Ipv4Addr::new(127, 0, 0, number as u8 + 1));
        Self::bound(ip, SocketAddr::new(ip, 0), bootstrap).await
    }

    pub async fn bound(ip: IpAddr, listen: SocketAddr, bootstrap: Option<Bootstrap>) -> Self {
        Self::with(kad::Config {
            bootstrap,
            ..config(ip, listen)
        })
        .await
    }

    pub async fn with(config: kad::Config) -> Self {
        let (registry, readiness) = (prometheus::Registry::new(), Readiness::new());
        let (metrics, guard) = (kad::Metrics::new(&registry), readiness.guard("routing"));
        let ip = config.advertise[0];
        let bound = kad::bind(config, metrics, guard).await.unwrap();
        Self::run(ip, bound, registry, readiness)
    }

    /// At 10.0.x.y, without a descriptor.
    pub async fn in_memory(number: usize, bootstrap: Option<Bootstrap>, delay: Delay) -> Self {
        let (registry, readiness) = (prometheus::Registry::new(), Readiness::new());
        let (metrics, guard) = (kad::Metrics::new(&registry), readiness.guard("routing"));
        let ip = IpAddr::V4(Ipv4Addr::from_bits((10 << 24) + 1 + number as u32));
        let config = kad::Config {
            bootstrap,
            ..config(ip, SocketAddr::new(ip, 0))
        };
        let bound = kad::bind_over(Memory::new(delay), config, metrics, guard);
        Self::run(ip, bound.await.unwrap(), registry, readiness)
    }

    fn run(
        ip: IpAddr,
        bound: kad::Bound,
        registry: prometheus::Registry,
        readiness: Readiness,
    ) -> Self {
        let kad::Bound {
            kad,
            event_loop,
            calls,
        } = bound;
        let stop = CancellationToken::new();
        let task = tokio::spawn(event_loop.run(stop.clone()));
        Self {
            ip,
            kad,
            readiness,
            registry,
            stop,
            task,
            calls: Some(calls),
        }
    }

    pub async fn ready(&self) {
        eventually("the node is ready", async || {
            self.readiness.is_ready().then_some(())
        })
        .await;
    }

    /// Waits until so many others are in its routing table.
    pub async fn knows(&self, peers: usize) {
        let line = format!("peili_peers{{state=\"known\"}} {peers}\n");
        eventually("the node knows the others", async || {
            self.metrics().contains(&line).then_some(())
        })
        .await;
    }

    pub fn metrics(&self) -> String {
        let families = self.registry.gather();
        prometheus::TextEncoder::new()
            .encode_to_string(&families)
            .unwrap()
    }

    pub fn address(&self) -> Multiaddr {
        multiaddr(self.kad.listen_addrs()[0])
    }
}

pub fn config(advertise: IpAddr, listen: SocketAddr) -> kad::Config {
    kad::Config {
        listen: vec![listen],
        advertise: vec![advertise],
        registry_port: REGISTRY,
        data_dir: None,
        bootstrap: None,
        resolve_timeout: Duration::from_millis(20),
        zone: None,
        members: None,
    }
}

pub fn multiaddr(socket: SocketAddr) -> Multiaddr {
    Multiaddr::from(socket.ip()).with(Protocol::Tcp(socket.port()))
}

#[async_trait(?Send)]
impl Cluster for KadCluster {
    type Router = Kad;

    async fn of(nodes: usize) -> Self {
        let first = Node::start(0, Some(Bootstrap::Static(vec![]))).await;
        let seed = Bootstrap::Static(vec![first.address()]);
        let mut cluster = vec![first];
        for number in 1..nodes {
            cluster.push(Node::start(number, Some(seed.clone())).await);
        }
        for node in &cluster {
            node.ready().await;
        }
        Self(cluster)
    }

    fn router(&self, node: usize) -> &Kad {
        &self.0[node].kad
    }

    fn peer(&self, node: usize) -> Peer {
        let node = &self.0[node];
        Peer {
            id: node.kad.peer_id().clone(),
            registry: vec![SocketAddr::new(node.ip, REGISTRY)],
            zone: node.kad.me().zone,
        }
    }

    fn calls(&mut self, node: usize) -> mpsc::Receiver<Call> {
        self.0[node].calls.take().unwrap()
    }

    async fn kill(&mut self, node: usize) {
        let task = &mut self.0[node].task;
        task.abort();
        let _ = task.await;
    }
}
