//! A registry with everything that it needs, for tests that are about a part of it.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::content::ContentStore;
use crate::inflight::{Inflight, Uplink};
use crate::mirror::{self, Mirror};
use crate::readiness::Readiness;
use crate::registry::uploads::Uploads;
use crate::registry::{self, Registry};
use crate::routing;
use crate::server::Server;

/// A free port on loopback, and its address. Panics where there is none.
pub async fn server() -> (Server, SocketAddr) {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = Server::bind(&[any]).await.expect("a port");
    let address = server.local_addr().expect("an address");
    (server, address)
}

/// A mirror that asks up to three of whom `router` names, and knows nothing of what is still growing.
pub fn mirror(router: impl routing::Router + 'static, metrics: &prometheus::Registry) -> Mirror {
    let config = mirror::Config {
        retries: 3,
        zone: None,
    };
    Mirror::new(Arc::new(router), config, mirror::Metrics::new(metrics))
}

/// Open to everybody, for 64 bodies at once. What a test is about it puts in its place:
/// `Registry { filter, ..testing::registry::over(store, mirror, &metrics) }`.
pub fn over(
    store: impl ContentStore + 'static,
    mirror: Mirror,
    metrics: &prometheus::Registry,
) -> Registry {
    Registry {
        store: Arc::new(store),
        mirror,
        readiness: Readiness::new(),
        metrics: registry::access::Metrics::new(metrics),
        filter: Default::default(),
        pulls: Default::default(),
        heard: Default::default(),
        token: None,
        basic_auth: None,
        door: None,
        uploads: Uploads::new(64),
        verified: Default::default(),
        inflight: Inflight::off(),
        uplink: Uplink::default(),
    }
}
