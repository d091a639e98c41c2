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
use tokio::time::{Instant, timeout};
use tracing::{debug, info};

use super::FetchError;
use super::attempt::{Ask, PeerError};
use super::search::{Delivery, Search};
use crate::oci::distribution::{ByteRange, Span};

/// A peer that brings less than [`FLOOR`] in so much waiting is replaced. As long as the wait for a first byte: TCP
/// recovers from a lost packet within a few hundred milliseconds, from a lost node never.
const STALL: Duration = Duration::from_secs(2);
/// 32 KiB/s. A registry over the worst of links does better.
const FLOOR: u64 = 64 << 10;
/// A peer that failed before it had brought so much was not worth the change to it.
const WORTHWHILE: u64 = 1 << 20;
/// After so many of those in a row the rest is left to upstream: each may have cost [`STALL`].
const POOR: u32 = 3;

struct Body {
    search: Search,
    path_and_query: String,
    delivery: Delivery,
    /// Next byte to yield, counted from the blob's beginning.
    offset: u64,
    end: u64,
    total: u64,
    /// What the present peer has brought.
    brought: u64,
    /// How long the present peer has been waited for since `since` bytes had been brought.
    waited: Duration,
    since: u64,
    /// Peers in a row that failed before they had brought much.
    poor: u32,
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
        brought: 0,
        waited: Duration::ZERO,
        since: 0,
        poor: 0,
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
            let began = Instant::now();
            let left = STALL.saturating_sub(self.waited);
            let error = match timeout(left, self.delivery.answer.next()).await {
                Ok(Ok(Some(chunk))) => return Ok(Some(self.bring(chunk, began.elapsed()))),
                Ok(Ok(None)) => PeerError::Wrong(format!("an end at byte {}", self.offset)),
                Ok(Err(e)) => e,
                Err(_) => PeerError::Silent(STALL),
            };
            self.resume(error).await?;
        }
        Ok(None)
    }

    /// Counts a chunk, and no more of it than was asked for.
    fn bring(&mut self, mut chunk: Bytes, waited: Duration) -> Bytes {
        // hyper holds the peer to its Content-Length; this holds it to ours.
        let left = self.end - self.offset;
        chunk.truncate(left.min(chunk.len() as u64) as usize);
        self.offset += chunk.len() as u64;
        self.brought += chunk.len() as u64;
        self.waited += waited;
        if self.brought - self.since >= FLOOR {
            self.since = self.brought;
            self.waited = Duration::ZERO;
        }
        // Told here: who has got the length that he was promised does not ask for more.
        if self.offset == self.end {
            let (board, peer) = (&self.search.mirror.scoreboard, &self.delivery.peer);
            board.delivered(&peer.id, Instant::now());
        }
        chunk
    }

    /// Goes on with another peer; an error when there is none, or when it is no use.
    async fn resume(&mut self, error: PeerError) -> io::Result<()> {
        let (peer, offset) = (self.delivery.peer.clone(), self.offset);
        info!(key = %self.search.key, peer = %peer.id, offset, %error, "peer failed in mid-body");
        self.search.again();
        self.search.failed(&peer, error);
        self.poor = match self.brought < WORTHWHILE {
            true => self.poor + 1,
            false => 0,
        };
        if self.poor >= POOR {
            self.search.mirror.give_up(&self.search.key);
            return Err(FetchError::Hopeless(self.search.key.clone()).into());
        }
        let ask = Ask {
            method: Method::GET,
            path_and_query: self.path_and_query.clone(),
            range: Some(ByteRange::From {
                first: offset,
                last: Some(self.end - 1),
            }),
        };
        loop {
            let delivery = self.search.deliver(&ask).await?;
            if delivery.answer.total == self.total {
                debug!(key = %self.search.key, peer = %delivery.peer.id, offset, "body goes on");
                self.search.mirror.metrics.resumed.inc();
                self.delivery = delivery;
                (self.brought, self.since, self.waited) = (0, 0, Duration::ZERO);
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
