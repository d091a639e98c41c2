//! A body that outlives its peer: on failure it goes on with another one at the offset.
//!
//! What has been yielded cannot be taken back, so every byte counts from the first peer's answer: a successor must
//! speak of the same length and begin exactly where the last one ended. When nobody can go on the body ends with an
//! error, its connection with a FIN, and containerd comes back with a Range for the rest.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use hyper::Method;
use tokio::time::timeout;
use tracing::{debug, info};

use super::attempt::{Ask, PeerError};
use super::{Delivery, FetchError, Search};
use crate::oci::distribution::{ByteRange, Span};

/// A peer that brings nothing for so long in mid-body is replaced. As long as the wait for a first byte: TCP recovers
/// from a lost packet within a few hundred milliseconds, from a lost node never.
pub const STALL: Duration = Duration::from_secs(2);

struct Body {
    search: Search,
    path_and_query: String,
    delivery: Delivery,
    /// Next byte to yield, counted from the blob's beginning.
    offset: u64,
    end: u64,
    total: u64,
}

/// The bytes of `delivery`'s span, from as many peers as it takes.
pub(super) fn unbroken(
    search: Search,
    path_and_query: String,
    delivery: Delivery,
) -> BoxStream<'static, io::Result<Bytes>> {
    let Span { start, end } = delivery.answer.span;
    let body = Body {
        search,
        path_and_query,
        offset: start,
        end,
        total: delivery.answer.total,
        delivery,
    };
    stream::try_unfold(body, |mut body| async move {
        let chunk = body.next().await?;
        Ok(chunk.map(|chunk| (chunk, body)))
    })
    .boxed()
}

impl Body {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        while self.offset < self.end {
            let error = match timeout(STALL, self.delivery.answer.next()).await {
                Ok(Ok(Some(mut chunk))) => {
                    // hyper holds the peer to its Content-Length; this holds it to what was asked for.
                    let left = self.end - self.offset;
                    chunk.truncate(left.min(chunk.len() as u64) as usize);
                    self.offset += chunk.len() as u64;
                    return Ok(Some(chunk));
                }
                Ok(Ok(None)) => PeerError::Wrong(format!("an end at byte {}", self.offset)),
                Ok(Err(e)) => e,
                Err(_) => PeerError::Silent(STALL),
            };
            self.resume(error).await?;
        }
        Ok(None)
    }

    /// Goes on with another peer; an error when there is none.
    async fn resume(&mut self, error: PeerError) -> io::Result<()> {
        let (peer, offset) = (self.delivery.peer.clone(), self.offset);
        info!(key = %self.search.key, peer = %peer.id, offset, %error, "peer failed in mid-body");
        self.search.failed(&peer, error);
        // One failure in mid-body says nothing about the other peers, and each has brought bytes before it failed.
        self.search.failures = 0;
        self.search.again();
        let ask = Ask {
            method: Method::GET,
            path_and_query: self.path_and_query.clone(),
            range: Some(ByteRange::From {
                first: offset,
                last: Some(self.end - 1),
            }),
        };
        loop {
            let delivery = match self.search.deliver(&ask).await {
                Ok(delivery) => delivery,
                Err(e) => return Err(e.into()),
            };
            if delivery.answer.total == self.total {
                debug!(key = %self.search.key, peer = %delivery.peer.id, offset, "body goes on");
                self.search.mirror.metrics.resumed.inc();
                self.delivery = delivery;
                return Ok(());
            }
            let total = delivery.answer.total;
            let error = PeerError::Wrong(format!("a length of {total}, not {}", self.total));
            self.search.failed(&delivery.peer, error);
        }
    }
}

impl From<FetchError> for io::Error {
    fn from(error: FetchError) -> Self {
        io::Error::other(error)
    }
}
