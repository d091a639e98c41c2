//! TCP as this node dials it, or what stands in for it.
//!
//! Two of libp2p's habits are wrong for a node among a few hundred known hosts. It dials whatever address a stranger names;
//! here [`Policy`] has the last word. And it dials *from* its listening port, which helps through NATs: without one, two
//! nodes that dial each other in the same moment open a single connection with two dialers and no listener, and a quick
//! redial meets the old connection in TIME_WAIT.

use std::pin::Pin;
use std::task::{Context, Poll};

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

impl<T: Transport + Unpin> Transport for Careful<T> {
    type Output = T::Output;
    type Error = T::Error;
    type ListenerUpgrade = T::ListenerUpgrade;
    type Dial = T::Dial;

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
    ) -> Result<T::Dial, TransportError<T::Error>> {
        if self.policy.socket(&addr).is_none() {
            return Err(TransportError::MultiaddrNotSupported(addr));
        }
        let opts = DialOpts {
            port_use: PortUse::New,
            ..opts
        };
        self.inner.dial(addr, opts)
    }

    fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<T::ListenerUpgrade, T::Error>> {
        Pin::new(&mut self.get_mut().inner).poll(cx)
    }
}
