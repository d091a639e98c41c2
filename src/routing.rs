//! Who in the cluster holds what: the seam between the flows and the DHT.

pub mod bootstrap;
pub mod flight;
pub mod kad;
pub mod messenger;
pub mod rendezvous;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
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
    may_be_node(ip, by.to_canonical().is_loopback())
}

/// Whether a node can be at `ip`; at this machine's loopback only where that is said.
pub fn may_be_node(ip: IpAddr, or_on_loopback: bool) -> bool {
    let ip = ip.to_canonical();
    !is_nobodys(ip) && (or_on_loopback || !ip.is_loopback())
}

/// Services of clouds at addresses that look like a node's; AWS's link-local one and others' are left out as such.
const SERVICES: [IpAddr; 3] = [
    // Azure's virtual public address of every host: DNS, health probes, credentials of extensions.
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    // Alibaba Cloud's metadata.
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    // Google Cloud's metadata.
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

/// Whether no node of a cluster can be at `ip`, whoever says so: it means something else to each host (RFC 6890), or all of
/// them, or a cloud's own service. Loopback is not judged here.
fn is_nobodys(ip: IpAddr) -> bool {
    let is_never = match ip {
        // 0.0.0.0/8 is this host; 192.0.0.0/24 belongs to protocols, and was Oracle Cloud's metadata.
        IpAddr::V4(v4) => {
            let [first, second, third, _] = v4.octets();
            v4.is_link_local()
                || v4.is_broadcast()
                || first == 0
                || (first, second, third) == (192, 0, 0)
        }
        IpAddr::V6(v6) => {
            let inner = embedded(v6).map(IpAddr::V4);
            v6.is_unicast_link_local()
                // AWS's own services, IMDS (fd00:ec2::254) among them.
                || v6.segments()[..2] == [0xfd00, 0xec2]
                || inner.is_some_and(|v4| v4.is_loopback() || is_nobodys(v4))
        }
    };
    is_never || ip.is_unspecified() || ip.is_multicast() || SERVICES.contains(&ip)
}

/// The IPv4 address to which a packet for `v6` may come: NAT64 (RFC 6052), 6to4 (RFC 3056), and "IPv4-compatible"
/// (RFC 4291, 2.5.5.1) where that is not `::1`.
fn embedded(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, high, low] = v6.segments();
    let of = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match [a, b, c, d, e, f] {
        [0x64, 0xff9b, 0, 0, 0, 0] => Some(of(high, low)),
        [0x2002, ..] => Some(of(b, c)),
        [0, 0, 0, 0, 0, 0] if !v6.is_loopback() && !v6.is_unspecified() => Some(of(high, low)),
        _ => None,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_sends_this_node_where_no_node_can_be() {
        let (far, near): (IpAddr, IpAddr) =
            ("10.0.0.9".parse().unwrap(), "127.0.0.9".parse().unwrap());
        // address, said by somebody elsewhere, said by somebody on this machine's loopback
        for (ip, elsewhere, on_loopback) in [
            ("10.0.0.1", true, true),
            ("100.64.3.4", true, true),
            ("192.0.2.1", true, true),
            ("203.0.113.7", true, true),
            ("fd00::1", true, true),
            ("2001:db8::1", true, true),
            ("::ffff:10.0.0.1", true, true),
            ("64:ff9b::10.0.0.1", true, true),
            ("2002:a00:1::1", true, true),
            ("127.0.0.1", false, true),
            ("127.255.255.254", false, true),
            ("::1", false, true),
            ("::ffff:127.0.0.1", false, true),
            ("::127.0.0.1", false, false),
            ("64:ff9b::127.0.0.1", false, false),
            ("0.0.0.0", false, false),
            ("0.1.2.3", false, false),
            ("::", false, false),
            ("169.254.1.1", false, false),
            ("169.254.169.254", false, false),
            ("::ffff:169.254.169.254", false, false),
            ("::169.254.169.254", false, false),
            ("64:ff9b::169.254.169.254", false, false),
            ("2002:a9fe:a9fe::1", false, false),
            ("fe80::1", false, false),
            ("fd00:ec2::254", false, false),
            ("fd20:ce::254", false, false),
            ("168.63.129.16", false, false),
            ("100.100.100.200", false, false),
            ("192.0.0.192", false, false),
            ("224.0.0.1", false, false),
            ("239.255.255.250", false, false),
            ("ff02::1", false, false),
            ("255.255.255.255", false, false),
        ] {
            let parsed: IpAddr = ip.parse().unwrap();
            assert_eq!(may_be_peer(parsed, far), elsewhere, "{ip}");
            assert_eq!(may_be_peer(parsed, near), on_loopback, "{ip}");
        }
    }
}
