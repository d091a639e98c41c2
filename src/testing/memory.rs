//! Connections between the nodes of one process that take no descriptors.
//!
//! libp2p's memory transport, at addresses of TCP: what a node listens at, announces and dials looks as it does in a
//! cluster, so that nothing above the transport is another code path. Noise, yamux and all protocols run over it as over
//! TCP. A node that is killed is one whose connections end and that refuses.
//!
//! What is sent arrives after a [`Delay`] of tokio's clock. With that clock paused, hundreds of nodes take the time that
//! their messages take, and not that of the few cores which they share.

use std::collections::VecDeque;
use std::future::{Ready, ready};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{MapOk, TryFutureExt};
use futures::{AsyncRead, AsyncWrite};
use libp2p::core::transport::memory::{Channel, DialFuture, MemoryTransportError};
use libp2p::core::transport::{
    DialOpts, ListenerId, MemoryTransport, TransportError, TransportEvent,
};
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, Transport};
use tokio::time::{Instant, Sleep, sleep_until};

/// Where a node listens that does not say a port: every node has an IP of its own.
const PORT: u16 = 5001;

/// How long it takes from one end of a connection to the other.
pub type Delay = fn() -> Duration;

/// IPv4 only. Two nodes of a process cannot listen at the same address, whatever test they belong to.
pub struct Memory {
    inner: MemoryTransport,
    delay: Delay,
}

impl Memory {
    pub fn new(delay: Delay) -> Self {
        Self {
            inner: MemoryTransport::new(),
            delay,
        }
    }
}

/// One end of a connection, at which everything arrives late and in order.
pub struct Late {
    inner: Channel<Vec<u8>>,
    delay: Delay,
    on_its_way: VecDeque<(Instant, Vec<u8>)>,
    has_ended: bool,
    sleep: Pin<Box<Sleep>>,
}

impl Late {
    fn new(inner: Channel<Vec<u8>>, delay: Delay) -> Self {
        Self {
            inner,
            delay,
            on_its_way: VecDeque::new(),
            has_ended: false,
            sleep: Box::pin(sleep_until(Instant::now())),
        }
    }

    /// Takes what has been sent and notes when it will be here.
    fn take(&mut self, cx: &mut Context<'_>) {
        let mut bytes = [0; 4096];
        while !self.has_ended {
            match Pin::new(&mut self.inner).poll_read(cx, &mut bytes) {
                Poll::Pending => return,
                Poll::Ready(Ok(n)) if n > 0 => {
                    let arrives = Instant::now() + (self.delay)();
                    let last = self.on_its_way.back().map(|(at, _)| *at);
                    let arrives = last.map_or(arrives, |last| arrives.max(last));
                    self.on_its_way.push_back((arrives, bytes[..n].to_vec()));
                }
                // The other end is gone.
                Poll::Ready(_) => self.has_ended = true,
            }
        }
    }
}

impl AsyncRead for Late {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.take(cx);
        loop {
            let Some((arrives, bytes)) = this.on_its_way.front_mut() else {
                return match this.has_ended {
                    true => Poll::Ready(Ok(0)),
                    false => Poll::Pending,
                };
            };
            if *arrives <= Instant::now() {
                let n = bytes.len().min(buffer.len());
                buffer[..n].copy_from_slice(&bytes[..n]);
                bytes.drain(..n);
                if bytes.is_empty() {
                    this.on_its_way.pop_front();
                }
                return Poll::Ready(Ok(n));
            }
            this.sleep.as_mut().reset(*arrives);
            if this.sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl AsyncWrite for Late {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

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
    type Output = Late;
    type Error = MemoryTransportError;
    type ListenerUpgrade = Ready<Result<Late, MemoryTransportError>>;
    type Dial = MapOk<DialFuture, Box<dyn FnOnce(Channel<Vec<u8>>) -> Late + Send>>;

    fn listen_on(&mut self, id: ListenerId, at: Multiaddr) -> Result<(), Error> {
        let Some(address) = in_memory(&at) else {
            return Err(TransportError::MultiaddrNotSupported(at));
        };
        self.inner.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(&mut self, to: Multiaddr, opts: DialOpts) -> Result<Self::Dial, Error> {
        let Some(address) = in_memory(&to) else {
            return Err(TransportError::MultiaddrNotSupported(to));
        };
        let delay = self.delay;
        let dial = self.inner.dial(address, opts)?;
        Ok(dial.map_ok(Box::new(move |channel| Late::new(channel, delay))))
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        let delay = self.delay;
        let event = Pin::new(&mut self.inner).poll(cx);
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
                upgrade: ready(
                    upgrade
                        .into_inner()
                        .map(|channel| Late::new(channel, delay)),
                ),
                local_addr: on_tcp(&local_addr),
                send_back_addr: on_tcp(&send_back_addr),
            },
            other => other.map_upgrade(|_| unreachable!("nobody has come")),
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
