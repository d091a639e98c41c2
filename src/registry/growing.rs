//! What peers get that would also take what is still being written here: a complete blob, a growing one, or a word on
//! whether to come back.
//!
//! Only who is strictly ahead of the offset that a peer needs is a source, which keeps nodes from waiting for each other
//! in a ring; and no head is sent before its first byte. So a request waits, not for long, for the byte that it begins
//! with. What is sent is unverified: the peer's containerd checks the digest.

use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::time::{Instant, sleep};
use tracing::debug;

use super::access::Source;
use super::error::{Error, Miss};
use super::verified::Manifest;
use super::{Answered, Asked, Registry, blob, in_time, manifest};
use crate::inflight::{Child, Ingest, POLL, Seat, View, Watching};
use crate::oci::Digest;
use crate::oci::distribution::{
    ByteRange, Flight, Following, MAX_MANIFEST, ManifestReference, Span,
};

/// However patient the peer: it comes back if it is told that something is coming, and may have heard of somebody else
/// meanwhile.
const MAX_WAIT: Duration = Duration::from_secs(1);
/// A download that is committed between a look for the blob and a look for the ingest is in neither; and an ingest is made
/// up to 6 ms before its request reaches us. What is in neither place for so long is not coming.
const ABSENT_AFTER: Duration = Duration::from_millis(20);

/// While this node's containerd is about to begin a download, whether it still is is asked again after this.
const STILL: Duration = Duration::from_millis(100);

/// A peer that waits for content of this node.
struct Waiting<'a> {
    registry: &'a Registry,
    digest: &'a Digest,
    deadline: Instant,
    /// From the second look on: most find what they came for at the first.
    seat: Option<(Watching, Seat)>,
    /// Bytes that are needed of the download that was there at the last look. None: there was none.
    needed: Option<u64>,
    /// When there was last a reason to wait.
    hoped: Instant,
}

/// Why nobody is to wait here any longer.
enum Ended {
    Flight(Flight),
    /// Too many wait already.
    Full,
}

impl<'a> Waiting<'a> {
    fn new(registry: &'a Registry, digest: &'a Digest, patience: Duration) -> Self {
        let now = Instant::now();
        Self {
            registry,
            digest,
            deadline: now + patience.min(MAX_WAIT),
            seat: None,
            needed: None,
            hoped: now,
        }
    }

    /// The download that is going on here, if it has the byte at the offset that `needs` gives.
    async fn ingest(
        &mut self,
        needs: impl Fn(&Ingest) -> Result<u64, Error>,
    ) -> Result<Option<Ingest>, Error> {
        self.needed = None;
        let ingest = match &self.seat {
            Some((watching, _)) => match watching.view() {
                View::Growing { ingest, .. } => Some(ingest),
                _ => None,
            },
            None => {
                let found = self.registry.inflight.find(self.digest).await;
                found.unwrap_or_else(|e| {
                    debug!(digest = %self.digest, error = %e, "the ingest directory cannot be read");
                    None
                })
            }
        };
        let Some(ingest) = ingest else {
            return Ok(None);
        };
        let needed = needs(&ingest)?;
        self.needed = Some(needed + 1);
        Ok(ingest.has(needed).unwrap_or(false).then_some(ingest))
    }

    /// Returns when it is time to look again; the answer to the peer where it is not. Nobody looks but the watcher until it
    /// has seen something.
    async fn again(&mut self) -> Result<(), Ended> {
        let (watching, _) = match &mut self.seat {
            Some(seat) => seat,
            None => {
                let inflight = &self.registry.inflight;
                let seat = inflight.seat().ok_or(Ended::Full)?;
                self.seat.insert((inflight.watch(self.digest), seat))
            }
        };
        let needed = self.needed;
        let is_time = move |view: &View| match (view, needed) {
            (View::Growing { available, .. }, Some(needed)) => *available >= needed,
            (View::Growing { .. } | View::Whole, _) => true,
            // It has ended; before the first look one has been found already.
            (View::Nothing, needed) => needed.is_some(),
            (View::Unknown, _) => false,
        };
        let was_time = is_time(&watching.view());
        loop {
            let now = Instant::now();
            let is_expected = self.registry.inflight.is_expected(self.digest);
            let until = if needed.is_some() || is_expected {
                self.hoped = now;
                if now >= self.deadline {
                    return Err(Ended::Flight(Flight::Waiting));
                }
                self.deadline.min(now + STILL)
            } else if now.saturating_duration_since(self.hoped) >= ABSENT_AFTER {
                return Err(Ended::Flight(Flight::Absent));
            } else {
                self.hoped + ABSENT_AFTER
            };
            watching.wait(until, is_time).await;
            if is_time(&watching.view()) {
                break;
            }
        }
        if was_time {
            // What was there at the last look was no use: not in a circle.
            sleep(POLL).await;
        }
        Ok(())
    }
}

impl Ended {
    fn to_error(&self, miss: impl Fn(Miss) -> Error) -> Error {
        match self {
            Self::Flight(flight) => miss(Miss::Flight(*flight)),
            // Nobody else is known to be getting it: the meeting point is.
            Self::Full => Error::Busy {
                holders: Vec::new(),
            },
        }
    }
}

/// A blob, or the part of it that `range` asks for.
pub(super) async fn blob(
    registry: &Registry,
    asked: &Asked,
    digest: &Digest,
    range: Option<ByteRange>,
    patience: Duration,
) -> Result<Answered, Error> {
    let part_of = |ingest: &Ingest| {
        let total = ingest.total();
        let part = range.map(|range| range.resolve(total)).transpose();
        part.map_err(|_| Error::NotSatisfiable { total: Some(total) })
    };
    let mut waiting = Waiting::new(registry, digest, patience);
    // Who waits for a first byte takes up the room that it will need.
    let mut child = Some(registry.uplink.begin(digest));
    loop {
        match in_time(blob::local(registry, asked, digest, range)).await {
            Ok(Some(answer)) => return answer,
            Ok(None) => {}
            Err(e) => debug!(%digest, error = %e, "not to be had locally"),
        }
        let needs = |ingest: &Ingest| Ok(part_of(ingest)?.map_or(0, |part| part.start));
        if let Some(ingest) = waiting.ingest(needs).await? {
            let part = part_of(&ingest)?;
            let child = child
                .take()
                .unwrap_or_else(|| registry.uplink.begin(digest));
            if let Some(answered) = relay(registry, asked, digest, ingest, part, child).await? {
                return Ok(answered);
            }
        }
        let looks_again = waiting.again().await;
        looks_again.map_err(|ended| ended.to_error(Error::NoBlob))?;
    }
}

/// A growing blob. None where its first byte is no longer to be had.
async fn relay(
    registry: &Registry,
    asked: &Asked,
    digest: &Digest,
    ingest: Ingest,
    part: Option<Span>,
    child: Child,
) -> Result<Option<Answered>, Error> {
    let total = ingest.total();
    let span = part.unwrap_or(Span {
        start: 0,
        end: total,
    });
    // The meeting point knows how many read what is growing here.
    let upload = blob::begin_upload(registry, asked, (digest, span), Following::No).await?;
    let relayed = registry.metrics.relayed();
    let mut body = ingest.send(span.start..span.end, &asked.sender);
    let first = match body.try_next().await {
        Ok(first) => first.map(Ok),
        Err(e) => {
            debug!(%digest, error = %e, "ended before it began");
            return Ok(None);
        }
    };
    let mut sent = 0;
    // Under way until the body is dropped, however it ends.
    let body = stream::iter(first).chain(body).inspect_ok(move |chunk| {
        if let Some(upload) = &upload {
            upload.sends(chunk.len() as u64);
        }
        sent += chunk.len() as u64;
        relayed.inc_by(chunk.len() as u64);
        let available = ingest.available().unwrap_or(0).min(span.end);
        child.progress(sent, available.saturating_sub(span.start));
    });
    let head = blob::head(digest, total, part);
    Ok(Some(Answered {
        response: blob::with_body(head, body.boxed()),
        source: Source::Local,
    }))
}

/// A whole manifest, whose digest is right.
pub(super) async fn manifest(
    registry: &Registry,
    reference: &ManifestReference,
    digest: &Digest,
    patience: Duration,
) -> Result<Manifest, Error> {
    let mut waiting = Waiting::new(registry, digest, patience);
    loop {
        match in_time(manifest::local(registry, reference)).await {
            Ok(Some((_, manifest))) => return Ok(manifest),
            Ok(None) => {}
            Err(e) => debug!(%digest, error = %e, "not to be had locally"),
        }
        // Its last byte is the one that is waited for.
        let last = |ingest: &Ingest| Ok(ingest.total() - 1);
        if let Some(ingest) = waiting.ingest(last).await?
            && ingest.total() <= MAX_MANIFEST
        {
            let chunks: Result<Vec<Bytes>, _> =
                ingest.follow(0..ingest.total()).try_collect().await;
            let bytes = Bytes::from(chunks.unwrap_or_default().concat());
            if digest.verifies(&bytes) {
                return Ok(Manifest::new(bytes));
            }
            // containerd will not commit them, its pull is about to fail, and the next may do better.
            if bytes.len() as u64 == ingest.total() {
                return Err(Error::NoManifest(Miss::Flight(Flight::Waiting)));
            }
        }
        let looks_again = waiting.again().await;
        looks_again.map_err(|ended| ended.to_error(Error::NoManifest))?;
    }
}
