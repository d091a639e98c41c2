//! TCP as this node dials it, or what stands in for it.
//!
//! Two of libp2p's habits are wrong for a node among a few hundred known hosts, and a third misleads. It dials whatever address a stranger names;
//! here [`Policy`] has the last word. And it dials *from* its listening port, which helps through NATs: without one, two
//! nodes that dial each other in the same moment open a single connection with two dialers and no listener, and a quick
//! redial meets the old connection in TIME_WAIT. And it takes a connection that is closed before a byte was said (a scan, a
//! process that ends) for a failed negotiation, which here means a stranger to the cluster.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::future::{MapOk, TryFutureExt as _};
use futures::{AsyncRead, AsyncWrite};
use libp2p::core::transport::{DialOpts, ListenerId, PortUse, TransportError, TransportEvent};
use libp2p::{Multiaddr, Transport};

use super::addresses::Policy;

/// Streams of bytes between addresses of TCP, and what the swarm wants of whatever brings them.
pub trait Carrier:
    Transport<
        Output: AsyncRead + AsyncWrite + Send + Unpin,
        Error: Send + Sync,
        Dial: Send,
        ListenerUpgrade: Send,
    > + Send
    + Unpin
    + 'static
{
}

impl<T> Carrier for T where
    T: Transport<
            Output: AsyncRead + AsyncWrite + Send + Unpin,
            Error: Send + Sync,
            Dial: Send,
            ListenerUpgrade: Send,
        > + Send
        + Unpin
        + 'static
{
}

pub struct Careful<T> {
    inner: T,
    policy: Policy,
}

impl<T> Careful<T> {
    pub fn new(inner: T, policy: Policy) -> Self {
        Self { inner, policy }
    }
}

/// What makes a stream of a connection.
type Opened<S> = fn(S) -> Begun<S>;

impl<T: Transport + Unpin> Transport for Careful<T> {
    type Output = Begun<T::Output>;
    type Error = T::Error;
    type ListenerUpgrade = MapOk<T::ListenerUpgrade, Opened<T::Output>>;
    type Dial = MapOk<T::Dial, Opened<T::Output>>;

    fn listen_on(
        &mut self,
        id: ListenerId,
        addr: Multiaddr,
    ) -> Result<(), TransportError<T::Error>> {
        self.inner.listen_on(id, addr)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(
        &mut self,
        addr: Multiaddr,
        opts: DialOpts,
    ) -> Result<Self::Dial, TransportError<T::Error>> {
        if self.policy.socket(&addr).is_none() {
            return Err(TransportError::MultiaddrNotSupported(addr));
        }
        let opts = DialOpts {
            port_use: PortUse::New,
            ..opts
        };
        let dialed = self.inner.dial(addr, opts)?;
        Ok(dialed.map_ok(Begun::new as Opened<T::Output>))
    }

    fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, T::Error>> {
        let polled = Pin::new(&mut self.get_mut().inner).poll(cx);
        polled.map(|event| {
            event.map_upgrade(|accepted| accepted.map_ok(Begun::new as Opened<T::Output>))
        })
    }
}

/// A stream on which an end before the first byte is an error, and no word of the other side's.
pub struct Begun<S> {
    inner: S,
    has_begun: bool,
}

impl<S> Begun<S> {
    fn new(inner: S) -> Self {
        Self {
            inner,
            has_begun: false,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Begun<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        match &polled {
            Poll::Ready(Ok(0)) if !self.has_begun && !buf.is_empty() => {
                let why = "closed before a byte was said";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, why)));
            }
            Poll::Ready(Ok(1..)) => self.has_begun = true,
            _ => {}
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Begun<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}
