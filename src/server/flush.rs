//! Lets a body end badly only after what it has produced is on the wire.
//!
//! hyper drops whatever it has buffered the moment a body yields an error. The buffered bytes would only have to be
//! fetched again, but where they are the first ones, the client has seen headers without a byte: containerd repeats
//! that four times and then fails the pull. hyper calls `poll_flush` of its IO only when its own buffer is empty; so
//! the error is held back until that has happened once more.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// A client that takes nothing for so long will not take the rest either.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often a connection's buffer has been empty. Found in the extensions of each of its requests.
#[derive(Clone, Debug, Default)]
pub struct Flushes(Arc<State>);

#[derive(Debug, Default)]
struct State {
    count: AtomicU64,
    /// Writes that moved something, for telling a slow client from one that takes nothing.
    writes: AtomicU64,
    waiting: AtomicWaker,
}

impl Flushes {
    /// The same stream, whose error is yielded only when all before it has been written.
    pub fn before_the_end_of<S>(&self, body: S) -> FlushedBody<S> {
        FlushedBody {
            body,
            flushes: self.clone(),
            ending: None,
        }
    }
}

pub struct FlushedBody<S> {
    body: S,
    flushes: Flushes,
    ending: Option<Ending>,
}

struct Ending {
    error: io::Error,
    /// The count at which the error may be yielded.
    at: u64,
    /// The writes there had been when patience began.
    writes: u64,
    patience: Pin<Box<Sleep>>,
}

impl<S: Stream<Item = io::Result<Bytes>> + Unpin> Stream for FlushedBody<S> {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.ending.is_none() {
            match ready!(Pin::new(&mut this.body).poll_next(cx)) {
                Some(Err(error)) => {
                    this.ending = Some(Ending {
                        error,
                        at: this.flushes.0.count.load(Ordering::Acquire) + 1,
                        writes: this.flushes.0.writes.load(Ordering::Acquire),
                        patience: Box::pin(sleep(PATIENCE)),
                    });
                }
                other => return Poll::Ready(other),
            }
        }
        this.flushes.0.waiting.register(cx.waker());
        let state = &this.flushes.0;
        let Some(mut ending) = this.ending.take() else {
            return Poll::Ready(None);
        };
        loop {
            if state.count.load(Ordering::Acquire) >= ending.at {
                return Poll::Ready(Some(Err(ending.error)));
            }
            if ending.patience.as_mut().poll(cx).is_pending() {
                this.ending = Some(ending);
                return Poll::Pending;
            }
            let writes = state.writes.load(Ordering::Acquire);
            if writes == ending.writes {
                return Poll::Ready(Some(Err(ending.error)));
            }
            ending.writes = writes;
            ending.patience = Box::pin(sleep(PATIENCE));
        }
    }
}

/// The connection's socket, counting.
pub(super) struct FlushingIo<T> {
    io: T,
    flushes: Flushes,
}

impl<T> FlushingIo<T> {
    pub(super) fn new(io: T, flushes: Flushes) -> Self {
        Self { io, flushes }
    }

    pub(super) fn into_inner(self) -> T {
        self.io
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for FlushingIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for FlushingIo<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, buf));
        self.flushes.0.writes.fetch_add(1, Ordering::AcqRel);
        Poll::Ready(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, bufs));
        self.flushes.0.writes.fetch_add(1, Ordering::AcqRel);
        Poll::Ready(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.flushes.0.count.fetch_add(1, Ordering::AcqRel);
        self.flushes.0.waiting.wake();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
