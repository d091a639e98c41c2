//! Connections between the nodes of one process that take no descriptors.
//!
//! libp2p's memory transport, at addresses of TCP: what a node listens at, announces and dials looks as it does in a
//! cluster, so that nothing above the transport is another code path. Noise, yamux and all protocols run over it as over
//! TCP. A node that is killed is one whose connections end and that refuses; nothing is lost or late on the way.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use libp2p::core::transport::memory::MemoryTransportError;
use libp2p::core::transport::{
    DialOpts, ListenerId, MemoryTransport, TransportError, TransportEvent,
};
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, Transport};

/// Where a node listens that does not say a port: every node has an IP of its own.
const PORT: u16 = 5001;

/// IPv4 only. Two nodes of a process cannot listen at the same address, whatever test they belong to.
#[derive(Default)]
pub struct Memory(MemoryTransport);

/// `/ip4/10.0.0.1/tcp/5001` as a number, which is what an address in memory is.
fn in_memory(address: &Multiaddr) -> Option<Multiaddr> {
    let mut parts = address.iter();
    let (Protocol::Ip4(ip), Protocol::Tcp(port)) = (parts.next()?, parts.next()?) else {
        return None;
    };
    let port = if port == 0 { PORT } else { port };
    let number = u64::from(ip.to_bits()) << 16 | u64::from(port);
    Some(Protocol::Memory(number).into())
}

/// The reverse. A dialer's end is a random number, which makes an address of nobody.
fn on_tcp(address: &Multiaddr) -> Multiaddr {
    let number = match address.iter().next() {
        Some(Protocol::Memory(number)) => number,
        other => unreachable!("not in memory: {other:?}"),
    };
    let socket = match u32::try_from(number >> 16) {
        Ok(ip) => SocketAddr::new(IpAddr::V4(Ipv4Addr::from_bits(ip)), number as u16),
        Err(_) => SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), number as u16),
    };
    Multiaddr::from(socket.ip()).with(Protocol::Tcp(socket.port()))
}

type Error = TransportError<MemoryTransportError>;

impl Transport for Memory {
    type Output = <MemoryTransport as Transport>::Output;
    type Error = MemoryTransportError;
    type ListenerUpgrade = <MemoryTransport as Transport>::ListenerUpgrade;
    type Dial = <MemoryTransport as Transport>::Dial;

    fn listen_on(&mut self, id: ListenerId, at: Multiaddr) -> Result<(), Error> {
        let Some(address) = in_memory(&at) else {
            return Err(TransportError::MultiaddrNotSupported(at));
        };
        self.0.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.0.remove_listener(id)
    }

    fn dial(&mut self, to: Multiaddr, opts: DialOpts) -> Result<Self::Dial, Error> {
        let Some(address) = in_memory(&to) else {
            return Err(TransportError::MultiaddrNotSupported(to));
        };
        self.0.dial(address, opts)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        let event = Pin::new(&mut self.0).poll(cx);
        event.map(|event| match event {
            TransportEvent::NewAddress {
                listener_id,
                listen_addr,
            } => TransportEvent::NewAddress {
                listener_id,
                listen_addr: on_tcp(&listen_addr),
            },
            TransportEvent::Incoming {
                listener_id,
                upgrade,
                local_addr,
                send_back_addr,
            } => TransportEvent::Incoming {
                listener_id,
                upgrade,
                local_addr: on_tcp(&local_addr),
                send_back_addr: on_tcp(&send_back_addr),
            },
            event => event,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_memory_is_one_of_tcp_and_back() {
        for (given, back) in [
            ("/ip4/10.0.0.1/tcp/5001", "/ip4/10.0.0.1/tcp/5001"),
            ("/ip4/255.255.255.255/tcp/1", "/ip4/255.255.255.255/tcp/1"),
            ("/ip4/10.0.0.1/tcp/0", "/ip4/10.0.0.1/tcp/5001"),
        ] {
            let address = in_memory(&given.parse().unwrap()).unwrap();
            assert_eq!(on_tcp(&address).to_string(), back);
        }
        assert_eq!(in_memory(&"/ip6/::1/tcp/1".parse().unwrap()), None);
        assert_eq!(in_memory(&"/ip4/10.0.0.1/udp/1".parse().unwrap()), None);
    }
}
