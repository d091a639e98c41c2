//! What is remembered of peers: how fast they answered, what they are doing for us now, and how they failed.
//!
//! In memory, for as long as it is useful. Nothing here decides anything: see [`super::select`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::routing::PeerId;

/// The first failure may have been an accident; a peer that goes on failing is asked about once a minute.
const REST: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// Weight of the newest time to first byte: the last handful of requests count.
const NEWEST: f64 = 0.3;
/// How fast it was: a disk or a link that was busy then may be idle now, and who was slow is given another trial.
const RATE: Duration = Duration::from_secs(60);
/// Nothing said about a peer for so long is true of it any more.
const FORGET: Duration = Duration::from_secs(3600);
/// Looked through for what can be forgotten when it has grown to this; a cluster of this size has other worries.
const SWEEP_AT: usize = 4096;

/// What is known of one peer.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Smoothed time from request to first byte; none before the first answer.
    pub first_byte: Option<Duration>,
    /// Requests under way to it from this node.
    pub in_flight: u32,
    /// Failures since it last delivered.
    pub failures: u32,
    /// It failed lately: asked only when nobody else is there.
    pub resting_until: Option<Instant>,
    /// Bytes per second of its last body that was waited for long enough, and when that was.
    rate: Option<(u64, Instant)>,
    last_heard: Instant,
}

/// Cloneable; all clones share the same memory.
#[derive(Clone, Debug, Default)]
pub struct Scoreboard(Arc<Mutex<HashMap<PeerId, Score>>>);

impl Scoreboard {
    /// What is known of `peer`; a stranger's clean sheet if nothing is.
    pub fn of(&self, peer: &PeerId, now: Instant) -> Score {
        self.lock().get(peer).cloned().unwrap_or(Score::new(now))
    }

    /// What is known of everybody.
    pub fn all(&self) -> HashMap<PeerId, Score> {
        self.lock().clone()
    }

    /// A request to `peer` begins; it is under way until the returned value is dropped.
    pub fn begin(&self, peer: &PeerId, now: Instant) -> UnderWay {
        self.update(peer, now, |score| score.in_flight += 1);
        UnderWay {
            board: self.clone(),
            peer: peer.clone(),
        }
    }

    /// Its first byte came.
    pub fn answered(&self, peer: &PeerId, first_byte: Duration, now: Instant) {
        self.update(peer, now, |score| {
            score.first_byte = Some(match score.first_byte {
                Some(before) => before.mul_f64(1.0 - NEWEST) + first_byte.mul_f64(NEWEST),
                None => first_byte,
            });
        });
    }

    /// So many bytes per second came from it while they were waited for.
    pub fn brings(&self, peer: &PeerId, rate: u64, now: Instant) {
        self.update(peer, now, |score| score.rate = Some((rate, now)));
    }

    /// It brought what it had promised: whatever it failed in before is forgiven. A first byte alone redeems nobody.
    pub fn delivered(&self, peer: &PeerId, now: Instant) {
        self.update(peer, now, |score| {
            score.failures = 0;
            score.resting_until = None;
        });
    }

    pub fn failed(&self, peer: &PeerId, now: Instant) {
        self.update(peer, now, |score| {
            let rest = REST.0 * 2u32.saturating_pow(score.failures.min(16));
            score.failures = score.failures.saturating_add(1);
            score.resting_until = Some(now + rest.min(REST.1));
        });
    }

    /// How many peers are asked only when nobody else is there.
    pub fn resting(&self, now: Instant) -> i64 {
        let scores = self.lock();
        let resting = scores.values().filter(|score| score.is_resting(now));
        i64::try_from(resting.count()).unwrap_or(i64::MAX)
    }

    fn update(&self, peer: &PeerId, now: Instant, change: impl FnOnce(&mut Score)) {
        let mut scores = self.lock();
        if scores.len() >= SWEEP_AT && !scores.contains_key(peer) {
            scores.retain(|_, score| score.in_flight > 0 || now - score.last_heard < FORGET);
        }
        let score = scores
            .entry(peer.clone())
            .or_insert_with(|| Score::new(now));
        score.last_heard = now;
        change(score);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PeerId, Score>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Score {
    fn new(now: Instant) -> Self {
        Self {
            first_byte: None,
            in_flight: 0,
            failures: 0,
            resting_until: None,
            rate: None,
            last_heard: now,
        }
    }

    /// Bytes per second; none where that has not lately been seen.
    pub fn rate(&self, now: Instant) -> Option<u64> {
        let (rate, at) = self.rate?;
        (now.saturating_duration_since(at) < RATE).then_some(rate)
    }

    pub fn is_resting(&self, now: Instant) -> bool {
        self.resting_until.is_some_and(|until| now < until)
    }
}

/// One request to a peer, from its beginning to the end of its body.
#[derive(Debug)]
pub struct UnderWay {
    board: Scoreboard,
    peer: PeerId,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Some(score) = self.board.lock().get_mut(&self.peer) {
            score.in_flight = score.in_flight.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_peer_rests_longer_each_time_and_is_forgiven_when_it_delivers() {
        let (board, peer, start) = (Scoreboard::default(), PeerId::new("a"), Instant::now());
        for (failures, rest) in [(1, 2), (2, 4), (3, 8), (4, 16), (5, 32), (6, 60), (7, 60)] {
            board.failed(&peer, start);
            let score = board.of(&peer, start);
            assert_eq!(score.failures, failures);
            assert_eq!(score.resting_until, Some(start + Duration::from_secs(rest)));
        }

        board.answered(&peer, Duration::from_millis(3), start);
        assert!(board.of(&peer, start).is_resting(start));
        board.delivered(&peer, start);

        assert!(!board.of(&peer, start).is_resting(start));
        assert_eq!(board.of(&peer, start).failures, 0);
    }

    #[test]
    fn a_request_is_under_way_until_it_is_dropped() {
        let (board, peer, now) = (Scoreboard::default(), PeerId::new("a"), Instant::now());
        let first = board.begin(&peer, now);
        let second = board.begin(&peer, now);
        assert_eq!(board.of(&peer, now).in_flight, 2);

        drop((first, second));

        assert_eq!(board.of(&peer, now).in_flight, 0);
    }

    #[test]
    fn how_fast_it_was_is_remembered_for_a_minute() {
        let (board, peer, now) = (Scoreboard::default(), PeerId::new("a"), Instant::now());
        assert_eq!(board.of(&peer, now).rate(now), None);
        board.brings(&peer, 5_000, now);
        board.brings(&peer, 1_000, now);
        let score = board.of(&peer, now);
        assert_eq!(score.rate(now), Some(1_000));
        assert_eq!(score.rate(now + RATE), None);
    }

    #[test]
    fn a_slow_answer_counts_and_fades() {
        let (board, peer, now) = (Scoreboard::default(), PeerId::new("a"), Instant::now());
        board.answered(&peer, Duration::from_secs(1), now);
        assert_eq!(
            board.of(&peer, now).first_byte,
            Some(Duration::from_secs(1))
        );

        for _ in 0..20 {
            board.answered(&peer, Duration::from_millis(1), now);
        }

        assert!(board.of(&peer, now).first_byte < Some(Duration::from_millis(5)));
    }
}
