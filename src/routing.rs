//! Who in the cluster holds what: the seam between the flows and the DHT.

pub mod bootstrap;
pub mod flight;
pub mod kad;
pub mod messenger;
pub mod rendezvous;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;

use crate::oci::Key;

/// Who in the cluster holds what. Its contract is [`crate::testing::conformance`]'s `routing` suite.
#[async_trait]
pub trait Router: Send + Sync + 'static {
    /// Peers that hold `key`, as they are heard of, each once and never this node. The stream ends with the search,
    /// which is bounded in time; dropping it leaves the search to others who wait for the same key.
    fn lookup(&self, key: Key) -> BoxStream<'static, Peer>;

    /// Tells the cluster that this node holds `keys`, and keeps telling it. Repeating a key is harmless.
    async fn advertise(&self, keys: Vec<Key>) -> Result<(), RouterClosed>;

    /// No longer tells the cluster that this node holds `keys`. What was told before fades by itself.
    async fn withdraw(&self, keys: Vec<Key>) -> Result<(), RouterClosed>;

    /// A peer refused a connection: it is forgotten until it is next heard of.
    fn refused(&self, peer: &PeerId);
}

/// The router's task has ended: the process is shutting down.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the router has ended")]
pub struct RouterClosed;

/// A peer's name, opaque to everybody but its router.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(Arc<str>);

impl PeerId {
    pub fn new(id: impl Into<Arc<str>>) -> Self {
        Self(id.into())
    }

    /// Of whom nothing but an address of its registry is known.
    pub fn at(address: SocketAddr) -> Self {
        Self::new(format!("at {address}"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A peer and where its registry listens: several addresses of the same registry, in no order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub id: PeerId,
    pub registry: Vec<SocketAddr>,
    /// Where it stands, in the operator's words, such as a data centre's name; None where it has not said.
    pub zone: Option<Arc<str>>,
}

impl Peer {
    /// The names by which others may know it: its own, and those of its addresses.
    pub fn names(&self) -> impl Iterator<Item = PeerId> {
        let at = self.registry.iter().map(|address| PeerId::at(*address));
        std::iter::once(self.id.clone()).chain(at)
    }
}

/// A peer as its router knows it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    pub peer: Peer,
    /// Whether there is a connection to its router. Idle ones end after a minute, which says nothing against it.
    pub is_connected: bool,
    /// The last round trip between the routers.
    pub round_trip: Option<Duration>,
    /// Whether it understands messages, as Peili does and Spegel does not. None until that is known.
    pub speaks: Option<bool>,
}

/// Whether somebody at `by` may send this node to `ip`: to nobody who is no node, and to this machine only if `by` is on
/// it, too.
pub fn may_be_peer(ip: IpAddr, by: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let is_link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !ip.is_unspecified()
        && !ip.is_multicast()
        && !is_link_local
        && (!ip.is_loopback() || by.to_canonical().is_loopback())
}

impl Peer {
    /// One of its addresses, to tell it by.
    pub fn at(&self) -> Option<SocketAddr> {
        self.registry.first().copied()
    }

    /// Whether it is known to stand in another zone than `zone`.
    pub fn is_far_from(&self, zone: Option<&str>) -> bool {
        matches!((self.zone.as_deref(), zone), (Some(its), Some(zone)) if its != zone)
    }
}
