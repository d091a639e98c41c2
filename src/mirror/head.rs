//! A connection that brings no more than a few MiB until its answer has begun.
//!
//! hyper bounds one head, and passes over interim ones (RFC 9110, 15.2): a peer that goes on saying "100 Continue" would have
//! this node read and parse as fast as its link goes, until the request's time is up.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Until the answer has begun: its head, and what was read with it of its body.
#[derive(Clone, Debug)]
pub struct Head(Arc<AtomicU64>);

#[derive(Debug)]
pub struct Headed<T> {
    stream: T,
    most: u64,
    /// Bytes that may come still.
    left: Head,
}

impl<T> Headed<T> {
    /// No more than `most` bytes before [`Head::is_over`].
    pub fn new(stream: T, most: u64) -> (Self, Head) {
        let left = Head(Arc::new(AtomicU64::new(most)));
        let head = left.clone();
        (Self { stream, most, left }, head)
    }
}

impl Head {
    /// From now on as much comes as is asked for.
    pub fn is_over(&self) {
        self.0.store(u64::MAX, Ordering::Relaxed);
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Headed<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let came = (buf.filled().len() - before) as u64;
        let count = |left: u64| match left {
            u64::MAX => Some(u64::MAX),
            left => left.checked_sub(came),
        };
        let left = &self.left.0;
        match left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count) {
            Ok(_) => Poll::Ready(Ok(())),
            Err(_) => {
                // With an error comes nothing (tokio::io::AsyncRead).
                buf.set_filled(before);
                Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("more than {} bytes of heads without an answer", self.most),
                )))
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Headed<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    #[tokio::test]
    async fn so_much_comes_before_the_answer_and_all_of_it_after() {
        let (mut stream, _) = Headed::new(io::Cursor::new(vec![1; 100]), 99);
        let error = stream.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);

        for (most, is_over) in [(100, false), (0, true)] {
            let (mut stream, head) = Headed::new(io::Cursor::new(vec![1; 100]), most);
            if is_over {
                head.is_over();
            }
            assert_eq!(stream.read_to_end(&mut Vec::new()).await.unwrap(), 100);
        }
    }
}
