//! A carrier that counts what goes over it: connections, bytes, and writes, which on TCP without delay are packets.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};

use futures::future::{MapOk, TryFutureExt as _};
use futures::{AsyncRead, AsyncWrite};
use libp2p::core::transport::{DialOpts, ListenerId, TransportError, TransportEvent};
use libp2p::{Multiaddr, Transport};

/// Of one node, since it began.
#[derive(Debug, Default)]
pub struct Counts {
    dials: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    writes: AtomicU64,
}

/// What has been counted at one moment, or between two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Connections that it has opened or tried to.
    pub dials: u64,
    /// Bytes, as they are on the wire above TCP.
    pub sent: u64,
    pub received: u64,
    pub writes: u64,
}

impl Counts {
    pub fn now(&self) -> Count {
        Count {
            dials: self.dials.load(Relaxed),
            sent: self.sent.load(Relaxed),
            received: self.received.load(Relaxed),
            writes: self.writes.load(Relaxed),
        }
    }
}

impl std::ops::Sub for Count {
    type Output = Count;

    fn sub(self, before: Count) -> Count {
        Count {
            dials: self.dials - before.dials,
            sent: self.sent - before.sent,
            received: self.received - before.received,
            writes: self.writes - before.writes,
        }
    }
}

impl std::iter::Sum for Count {
    fn sum<I: Iterator<Item = Count>>(counts: I) -> Count {
        counts.fold(Count::default(), |a, b| Count {
            dials: a.dials + b.dials,
            sent: a.sent + b.sent,
            received: a.received + b.received,
            writes: a.writes + b.writes,
        })
    }
}

pub struct Counted<T> {
    inner: T,
    counts: Arc<Counts>,
}

impl<T> Counted<T> {
    pub fn new(inner: T, counts: Arc<Counts>) -> Self {
        Self { inner, counts }
    }
}

/// One end of a connection.
pub struct Stream<S> {
    inner: S,
    counts: Arc<Counts>,
}

/// What makes a stream of a connection.
type Opened<S> = Box<dyn FnOnce(S) -> Stream<S> + Send>;

fn opened<S>(counts: &Arc<Counts>) -> Opened<S> {
    let counts = counts.clone();
    Box::new(move |inner| Stream { inner, counts })
}

impl<T: Transport + Unpin> Transport for Counted<T> {
    type Output = Stream<T::Output>;
    type Error = T::Error;
    type ListenerUpgrade = MapOk<T::ListenerUpgrade, Opened<T::Output>>;
    type Dial = MapOk<T::Dial, Opened<T::Output>>;

    fn listen_on(&mut self, id: ListenerId, at: Multiaddr) -> Result<(), TransportError<T::Error>> {
        self.inner.listen_on(id, at)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(
        &mut self,
        to: Multiaddr,
        opts: DialOpts,
    ) -> Result<Self::Dial, TransportError<T::Error>> {
        self.counts.dials.fetch_add(1, Relaxed);
        Ok(self.inner.dial(to, opts)?.map_ok(opened(&self.counts)))
    }

    fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, T::Error>> {
        let this = self.get_mut();
        let counts = &this.counts;
        let event = Pin::new(&mut this.inner).poll(cx);
        event.map(|event| event.map_upgrade(|accepted| accepted.map_ok(opened(counts))))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let read = Pin::new(&mut self.inner).poll_read(cx, buffer);
        if let Poll::Ready(Ok(bytes)) = &read {
            self.counts.received.fetch_add(*bytes as u64, Relaxed);
        }
        read
    }
}

impl<S> Stream<S> {
    fn wrote(&self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = written {
            self.counts.sent.fetch_add(*bytes as u64, Relaxed);
            self.counts.writes.fetch_add(1, Relaxed);
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.wrote(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, buffers);
        self.wrote(&written);
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}
