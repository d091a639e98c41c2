//! A body that outlives its peer: on failure it goes on with another one at the offset.
//!
//! Another one is whoever holds it by now, else whoever is still getting it and is ahead (`flight`). A body that comes too
//! slowly also changes to a faster one, or ends for that: from one that is still getting it when those who lead are faster
//! (`flight`), from one that has it whole when that one is slow by itself (`pace`). And from one that is still getting it, and
//! slow, to a holder that had no room before: as a trial, for whoever stands between may be what is slow.
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

use super::attempt::{Ask, PeerError};
use super::checked::length;
use super::flight::boarding::{Alone, Boarded, Boarding};
use super::flight::part;
use super::pace::Pace;
use super::search::{Delivery, Search};
use super::{FetchError, InFlight, LIMIT};
use crate::oci::distribution::{ByteRange, Following, Span};

/// A peer that brings less than [`FLOOR`] in so much waiting is replaced. As long as the wait for a first byte: TCP
/// recovers from a lost packet within a few hundred milliseconds, from a lost node never.
const STALL: Duration = Duration::from_secs(2);
/// 32 KiB/s. A registry over the worst of links does better.
const FLOOR: u64 = 64 << 10;
/// How long another holder is looked for while a slow one goes on: a healthy one answers within milliseconds.
const ANOTHER: Duration = Duration::from_millis(500);
/// A peer that failed before it had brought so much was not worth the change to it.
const WORTHWHILE: u64 = 1 << 20;
/// After so many of those in a row the rest is left to upstream: each may have cost [`STALL`].
const POOR: u32 = 3;

/// Where bytes come from: whoever holds it, else whoever is getting it.
pub(super) struct Sources {
    pub search: Search,
    /// None where nobody else takes part.
    pub boarding: Option<Boarding>,
}

/// One source that delivers.
pub(super) struct Source {
    pub delivery: Delivery,
    /// Steps to whoever leads, where it is one that is still getting it.
    pub growing: Option<u32>,
}

impl Source {
    fn whole(delivery: Delivery) -> Self {
        Self {
            delivery,
            growing: None,
        }
    }
}

impl From<Boarded> for Source {
    fn from(Boarded { delivery, depth }: Boarded) -> Self {
        Self {
            delivery,
            growing: Some(depth),
        }
    }
}

struct Body {
    sources: Sources,
    path_and_query: String,
    source: Source,
    in_flight: InFlight,
    /// Next byte to yield, counted from the blob's beginning.
    offset: u64,
    end: u64,
    total: u64,
    /// What the present peer has brought.
    brought: u64,
    /// How long the present peer has been waited for since `since` bytes had been brought.
    waited: Duration,
    since: u64,
    /// The longest that was waited for bytes that came.
    longest: Duration,
    pace: Pace,
    /// Bytes per second of the present source, once that is found to be too little.
    slow: Option<u64>,
    /// What one who is still getting it brought, bytes per second, instead of whom the present source is tried.
    trial: Option<u64>,
    /// The trial is over, and the other one was no worse.
    is_vain: bool,
    /// Peers in a row that failed before they had brought much.
    poor: u32,
    /// Since when nobody has brought as much as [`FLOOR`] at once: one time for all who are tried in vain.
    gap: Option<Instant>,
}

impl Sources {
    /// The first that delivers what is asked for.
    pub async fn deliver(&mut self, ask: &Ask) -> Result<Source, FetchError> {
        let source = match (self.search.deliver(ask).await, &mut self.boarding) {
            (Ok(delivery), boarding) => {
                if let Some(boarding) = boarding {
                    boarding.takes_what_is_whole();
                }
                Source::whole(delivery)
            }
            // Nobody has it, or those who have it fail, or are all busy: one of those who are getting it may have room.
            (Err(FetchError::NoPeer(_) | FetchError::Exhausted { .. }), Some(boarding)) => {
                for holder in self.search.full() {
                    boarding.is_busy(holder);
                }
                match boarding.deliver(ask).await {
                    Ok(boarded) => Source::from(boarded),
                    Err(alone) => {
                        boarding.busy().for_each(|busy| self.search.is_full(busy));
                        let limit = boarding.deadline().max(Instant::now() + ANOTHER);
                        match insist(&mut self.search, ask, alone, limit).await {
                            Some(source) => {
                                boarding.takes_what_is_whole();
                                source
                            }
                            None => return Err(boarding.leaves(alone)),
                        }
                    }
                }
            }
            (Err(error), _) => return Err(error),
        };
        if let Some(boarding) = &self.boarding {
            boarding.takes_from(&source.delivery.peer, ask);
        }
        Ok(source)
    }

    /// Whether there may be others to take it from than those who have it.
    pub fn following(&self) -> Following {
        match self.boarding {
            Some(_) => Following::May,
            None => Following::No,
        }
    }

    /// For the rest of a body that nobody has brought since `gap`.
    fn again(&mut self, gap: Instant) {
        self.search.again(gap + LIMIT);
        if let Some(boarding) = &mut self.boarding {
            boarding.again(gap);
        }
    }

    /// Its bytes are the first that are handed on.
    pub fn begins(&self, source: &Source) {
        let peer = &source.delivery.peer;
        let journey = &self.search.journey;
        journey.begins(peer.id.as_str(), peer.at(), source.growing.is_some());
    }

    /// A source did not deliver, or not to the end.
    pub fn failed(&mut self, source: &Source, error: PeerError) {
        match (&mut self.boarding, source.growing) {
            // It is no better than its own source was.
            (Some(boarding), Some(_)) => {
                let peer = &source.delivery.peer;
                let journey = &self.search.journey;
                journey.failed(peer.id.as_str(), peer.at(), &error);
                boarding.failed(peer, &error);
            }
            _ => self.search.failed(&source.delivery.peer, error),
        }
    }
}

/// For a node that is to go to the registry alone: from one of those who have it and turned it away because it can follow
/// others. None where there are none, or none delivers before `limit`.
async fn insist(search: &mut Search, ask: &Ask, alone: Alone, limit: Instant) -> Option<Source> {
    let leads = matches!(alone, Alone::Leads { .. });
    if !leads || !search.insists(limit) {
        return None;
    }
    let ask = Ask {
        following: Following::No,
        ..ask.clone()
    };
    search.deliver(&ask).await.ok().map(Source::whole)
}

/// The bytes of `source`'s span, from as many peers as it takes.
pub(super) fn unbroken(
    sources: Sources,
    path_and_query: String,
    source: Source,
    in_flight: InFlight,
) -> BoxStream<'static, io::Result<Bytes>> {
    let Span { start, end } = source.delivery.answer.span;
    sources.begins(&source);
    let body = Body {
        pace: sources.search.mirror.intake.begin(),
        slow: None,
        trial: None,
        is_vain: false,
        sources,
        path_and_query,
        offset: start,
        end,
        total: source.delivery.answer.total,
        source,
        in_flight,
        brought: 0,
        waited: Duration::ZERO,
        since: 0,
        longest: Duration::ZERO,
        poor: 0,
        gap: None,
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
            if std::mem::take(&mut self.is_vain) {
                self.go_back().await;
            }
            if let Some(rate) = self.slow.take() {
                match self.source.growing {
                    Some(_) => self.try_holders(rate).await,
                    None => self.leave(rate).await?,
                }
            }
            let began = Instant::now();
            let left = self.patience().saturating_sub(self.waited);
            let may_be_slow = self.source.growing.is_some();
            let slow = async {
                match &mut self.sources.boarding {
                    Some(boarding) if may_be_slow => boarding.is_slow().await,
                    _ => std::future::pending().await,
                }
            };
            let answered = tokio::select! {
                // What has come is taken first.
                biased;
                answered = timeout(left, self.source.delivery.answer.next()) => answered,
                () = slow => {
                    self.waited += began.elapsed();
                    self.change().await?;
                    continue;
                }
            };
            let error = match answered {
                Ok(Ok(Some(chunk))) => return Ok(Some(self.bring(chunk, began.elapsed()))),
                Ok(Ok(None)) => PeerError::Wrong(format!("an end at byte {}", self.offset)),
                Ok(Err(e)) => e,
                Err(_) => PeerError::Silent(self.patience()),
            };
            self.resume(error).await?;
        }
        Ok(None)
    }

    /// How long the present source is waited for.
    fn patience(&self) -> Duration {
        match self.source.growing {
            None => STALL,
            Some(depth) => part::patience(depth, self.longest),
        }
    }

    /// Counts a chunk, and no more of it than was asked for.
    fn bring(&mut self, mut chunk: Bytes, waited: Duration) -> Bytes {
        // hyper holds the peer to its Content-Length; this holds it to ours.
        let left = self.end - self.offset;
        chunk.truncate(left.min(chunk.len() as u64) as usize);
        if let Some(boarding) = &self.sources.boarding {
            boarding.gives(self.offset, &chunk);
        }
        self.offset += chunk.len() as u64;
        self.brought += chunk.len() as u64;
        self.waited += waited;
        self.longest = self.longest.max(waited);
        self.judge(chunk.len() as u64, waited);
        if self.brought >= FLOOR {
            self.gap = None;
        }
        let is_growing = self.source.growing.is_some();
        if is_growing || self.brought - self.since >= FLOOR {
            self.since = self.brought;
            self.waited = Duration::ZERO;
        }
        self.in_flight.set(is_growing);
        // Told here: who has got the length that he was promised does not ask for more.
        if self.offset == self.end {
            let board = &self.sources.search.mirror.scoreboard;
            board.delivered(&self.source.delivery.peer.id, Instant::now());
        }
        chunk
    }

    /// Goes on with another peer; an error when there is none, or when it is no use.
    async fn resume(&mut self, error: PeerError) -> io::Result<()> {
        let (key, peer) = (&self.sources.search.key, &self.source.delivery.peer);
        info!(%key, peer = %peer.id, offset = self.offset, %error, "peer failed in mid-body");
        self.sources.search.take_back();
        self.sources
            .again(*self.gap.get_or_insert_with(Instant::now));
        self.sources.failed(&self.source, error);
        if self.source.growing.is_none() {
            self.poor = match self.brought < WORTHWHILE {
                true => self.poor + 1,
                false => 0,
            };
            if self.poor >= POOR {
                let search = &self.sources.search;
                search.mirror.give_up(&search.key);
                return Err(FetchError::Hopeless(search.key.clone()).into());
            }
        }
        let ask = self.rest();
        loop {
            let source = self.sources.deliver(&ask).await?;
            if self.is_of_it(&source) {
                self.go_on(source);
                return Ok(());
            }
        }
    }

    /// Whether it speaks of the same length; it has failed if not.
    fn is_of_it(&mut self, source: &Source) -> bool {
        match length(source, self.total) {
            Ok(()) => true,
            Err(error) => {
                self.sources.failed(source, error);
                false
            }
        }
    }

    /// Takes into account how fast the present source is.
    fn judge(&mut self, bytes: u64, waited: Duration) {
        let Some(verdict) = self.pace.bring(bytes, waited) else {
            return;
        };
        self.slow = verdict.is_slow.then_some(verdict.rate);
        if self.source.growing.is_some() {
            return;
        }
        let board = &self.sources.search.mirror.scoreboard;
        let peer = &self.source.delivery.peer.id;
        board.brings(peer, verdict.rate, Instant::now());
        if let Some(before) = self.trial.take() {
            /// Less is not worth that those who share the holder's link get less.
            const MORE: (u64, u64) = (4, 3);
            self.is_vain = verdict.rate < before / MORE.1 * MORE.0;
            self.slow = None;
        }
    }

    /// Tries a holder that had no room when it was asked, instead of one who is still getting it and brings only so many bytes
    /// per second: whoever stands between may be slow by itself, and nobody else would find that out.
    async fn try_holders(&mut self, rate: u64) {
        let ask = Ask {
            following: Following::Slowly,
            ..self.rest()
        };
        let search = &mut self.sources.search;
        if !search.insists(Instant::now() + ANOTHER) {
            return;
        }
        self.pace.is_over();
        let Ok(source) = search.deliver(&ask).await.map(Source::whole) else {
            return;
        };
        if !self.is_of_it(&source) {
            return;
        }
        if let Some(boarding) = &self.sources.boarding {
            boarding.takes_what_is_whole();
        }
        self.take(source, &ask);
        self.trial = Some(rate);
    }

    /// From a holder that brings no more than whoever is still getting it, to whom the meeting point names. It goes on where that
    /// is nobody.
    async fn go_back(&mut self) {
        let ask = self.rest();
        let Some(boarding) = &mut self.sources.boarding else {
            return;
        };
        boarding.again(Instant::now());
        let vain = self.source.delivery.peer.clone();
        boarding.is_busy(&vain.id);
        let found = timeout(ANOTHER, boarding.deliver(&ask)).await;
        match found {
            Ok(Ok(boarded)) if boarded.delivery.answer.total == self.total => {
                self.sources.search.leave(vain);
                self.take(boarded.into(), &ask);
            }
            _ => boarding.takes_what_is_whole(),
        }
    }

    /// Leaves a holder that brings only so many bytes per second for another one, or for those who lead where the registry
    /// has just brought more. It goes on where there is neither. An error when the registry is the better one.
    async fn leave(&mut self, rate: u64) -> io::Result<()> {
        self.pace.is_over();
        // It is not one of many who follow each other: it looks for one who is better.
        let ask = Ask {
            following: Following::No,
            ..self.rest()
        };
        let (search, slow) = (&mut self.sources.search, &self.source.delivery.peer);
        debug!(key = %search.key, peer = %slow.id, offset = self.offset, rate, "peer is slow");
        search.again(Instant::now() + ANOTHER);
        if let Ok(other) = search.deliver(&ask).await.map(Source::whole) {
            if self.is_of_it(&other) {
                let slow = self.source.delivery.peer.clone();
                self.sources.search.leave(slow);
                self.take(other, &ask);
            }
            return Ok(());
        }
        let boarding = self.sources.boarding.as_ref();
        match boarding.is_some_and(|boarding| boarding.would_get_more(rate)) {
            true => self.change().await,
            false => Ok(()),
        }
    }

    /// Leaves a source that brings less than the registry does to those who lead, if there is a better one. An error when
    /// that is the registry itself.
    async fn change(&mut self) -> io::Result<()> {
        let ask = self.rest();
        let Some(boarding) = &mut self.sources.boarding else {
            return Ok(());
        };
        let found = boarding.faster(&ask).await;
        let found = found.map_err(|alone| boarding.leaves_for_more(alone))?;
        if let Some(boarded) = found
            && boarded.delivery.answer.total == self.total
        {
            self.take(boarded.into(), &ask);
        }
        Ok(())
    }

    /// Goes on with `source`, which was asked for `ask`; whose fault it was can be said if containerd refuses what comes.
    fn take(&mut self, source: Source, ask: &Ask) {
        if let Some(boarding) = &self.sources.boarding {
            boarding.takes_from(&source.delivery.peer, ask);
        }
        self.go_on(source);
    }

    fn go_on(&mut self, source: Source) {
        let (key, peer) = (&self.sources.search.key, &source.delivery.peer);
        debug!(%key, peer = %peer.id, offset = self.offset, "body goes on");
        self.sources.search.mirror.metrics.resumed.inc();
        self.tell();
        let journey = &self.sources.search.journey;
        journey.resumes(peer.id.as_str(), peer.at(), source.growing.is_some());
        self.source = source;
        self.pace.changes();
        (self.slow, self.trial) = (None, None);
        (self.brought, self.since, self.waited) = (0, 0, Duration::ZERO);
        self.longest = Duration::ZERO;
    }

    /// What the present peer has brought goes into the journey: once for each peer, and not for each chunk.
    fn tell(&self) {
        self.sources.search.journey.brought(self.brought);
    }

    fn rest(&self) -> Ask {
        Ask {
            method: Method::GET,
            path_and_query: self.path_and_query.clone(),
            range: Some(ByteRange::From {
                first: self.offset,
                last: Some(self.end - 1),
            }),
            growing: None,
            following: self.sources.following(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.tell();
    }
}

impl From<FetchError> for io::Error {
    fn from(error: FetchError) -> Self {
        io::Error::other(error)
    }
}
