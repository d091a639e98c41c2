//! Which addresses of other nodes are worth a packet.
//!
//! Addresses come from the network. One that means something else to each host (loopback, link-local) would make this
//! node knock at its own doors or at the cloud's metadata service, so such addresses are dropped at every entrance.

use std::net::{IpAddr, SocketAddr};

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

use crate::routing::may_be_node;

/// What this node takes for an address.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    loopback: bool,
}

impl Policy {
    /// Loopback counts only for a node that announces loopback itself: several nodes on one machine, as in tests.
    pub fn of(advertised: &[IpAddr]) -> Self {
        Self {
            loopback: advertised.iter().any(IpAddr::is_loopback),
        }
    }

    /// The socket behind `address`, if it is plain TCP to an IP that another host may have.
    pub fn socket(self, address: &Multiaddr) -> Option<SocketAddr> {
        let mut parts = address.iter();
        let ip = match parts.next()? {
            Protocol::Ip4(ip) => IpAddr::V4(ip),
            Protocol::Ip6(ip) => IpAddr::V6(ip).to_canonical(),
            _ => return None,
        };
        let Protocol::Tcp(port) = parts.next()? else {
            return None;
        };
        let ends = match parts.next() {
            None => true,
            Some(Protocol::P2p(_)) => parts.next().is_none(),
            Some(_) => false,
        };
        // Who tells it may be anywhere in the swarm, which is on this machine only if this node is.
        let is_allowed = ends && port != 0 && may_be_node(ip, self.loopback);
        is_allowed.then(|| SocketAddr::new(ip, port))
    }
}

/// `/ip4/10.0.0.1/tcp/5001`.
pub fn multiaddr(socket: SocketAddr) -> Multiaddr {
    Multiaddr::from(socket.ip()).with(Protocol::Tcp(socket.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";

    #[test]
    fn only_tcp_to_an_ip_that_another_host_may_have_is_an_address() {
        // address, for a node elsewhere, for a node that announces loopback
        for (address, elsewhere, on_loopback) in [
            ("/ip4/10.0.0.1/tcp/5001".to_string(), true, true),
            (format!("/ip4/10.0.0.1/tcp/5001{ID}"), true, true),
            ("/ip6/fd00::1/tcp/5001".to_string(), true, true),
            ("/ip4/127.0.0.1/tcp/5001".to_string(), false, true),
            ("/ip6/::1/tcp/5001".to_string(), false, true),
            ("/ip6/::ffff:127.0.0.1/tcp/5001".to_string(), false, true),
            ("/ip4/169.254.169.254/tcp/80".to_string(), false, false),
            ("/ip6/fe80::1/tcp/5001".to_string(), false, false),
            ("/ip6/fd00:ec2::254/tcp/80".to_string(), false, false),
            ("/ip4/0.0.0.0/tcp/5001".to_string(), false, false),
            ("/ip6/::/tcp/5001".to_string(), false, false),
            ("/ip4/224.0.0.1/tcp/5001".to_string(), false, false),
            ("/ip4/255.255.255.255/tcp/5001".to_string(), false, false),
            ("/ip4/10.0.0.1/tcp/0".to_string(), false, false),
            ("/ip4/10.0.0.1/udp/5001/quic-v1".to_string(), false, false),
            ("/ip4/10.0.0.1/tcp/5001/ws".to_string(), false, false),
            (
                format!("/ip4/10.0.0.1/tcp/5001{ID}/p2p-circuit"),
                false,
                false,
            ),
            ("/dns4/peer/tcp/5001".to_string(), false, false),
            ("/ip4/10.0.0.1".to_string(), false, false),
        ] {
            let parsed: Multiaddr = address.parse().expect("a multiaddr");
            let far = Policy::of(&["10.0.0.9".parse().unwrap()]);
            let near = Policy::of(&["127.0.0.9".parse().unwrap()]);
            assert_eq!(far.socket(&parsed).is_some(), elsewhere, "{address}");
            assert_eq!(near.socket(&parsed).is_some(), on_loopback, "{address}");
        }
    }

    #[test]
    fn a_socket_and_its_multiaddr_are_the_same() {
        let socket: SocketAddr = "[fd00::1]:5001".parse().unwrap();
        assert_eq!(Policy::of(&[]).socket(&multiaddr(socket)), Some(socket));
    }
}
