//! What this node is getting now, and how that stands. Pure: looks and times come in.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::blame::Giver;
use crate::inflight::{Expecting, Inflight, Ingest, Passing};
use crate::oci::Digest;
use crate::routing::PeerId;
use crate::routing::rendezvous::{self as words, Generation, Progress};

/// containerd makes an ingest before it asks anybody: who leads and has none after this time has not begun, and will not.
const START: Duration = Duration::from_millis(2500);
/// containerd asks its next host, or comes back with a range, within milliseconds of our answer.
const LEFT: Duration = Duration::from_secs(1);
/// containerd checks and syncs what it has got, on a slow disk for a while; a killed one never ends it.
const CHECK: Duration = Duration::from_secs(60);
/// No registry is waited for any longer than this by those who could lead instead.
const DEAD: Duration = Duration::from_secs(15);
/// Without a byte for so long, while the same containerd gets something else: it queues.
const QUIET: Duration = Duration::from_millis(500);
/// Rates are taken over this: a few of containerd's steps of 1 MiB at 10 MB/s.
const WINDOW: Duration = Duration::from_secs(1);
/// A stream is judged after it has had the time to get going, and is too slow when it has been for as long again. A machine
/// that stands still for 0.3 s makes every stream slow in the second that it falls into, and not in the next.
const TRIAL: Duration = Duration::from_millis(750);
/// The same where a registry has just shown that it brings more: an image has more layers than one, and each would lose
/// that time once more.
const SHORT_TRIAL: Duration = Duration::from_millis(250);
/// Those who are too slow go to the registry in rounds of 0.4 s.
const TURN: Duration = Duration::from_millis(400);
/// A stream that stands still is not slow but broken somewhere above, and is replaced where that is (1.5 s and more,
/// `mirror/body.rs`): those below would all go to the registry for it. Steps of 1 MiB come faster from 1 MiB/s on.
const STILL: Duration = Duration::from_secs(1);
/// A lag below this is a few steps of 1 MiB on the way down a tree, and no loss.
const LAG: u64 = 4 << 20;
/// What is left has to come so much sooner from elsewhere. The registry's first bytes take up to half a second of it, and
/// what is not gained has cost a copy: near the end of a layer of 40 MiB nodes at the end of a chain, which gets slower from
/// node to node for a moment whenever other layers begin, went to the registry for less (measured).
const GAIN: Duration = Duration::from_secs(1);

/// How long a source that is still growing is waited for, so many steps from whoever has it, after a `longest` gap between
/// what it has brought.
pub fn patience(depth: u32, longest: Duration) -> Duration {
    /// It grows in steps of 1 MiB, and stops when its own source does. Whoever leads is replaced after 2 s of silence; this
    /// long before, those who follow it have begun to look for another.
    const STALL: Duration = Duration::from_millis(1500);
    /// And a step of the tree later: a child must not accuse its parent before that one has found another.
    const PER_STEP: Duration = Duration::from_millis(400);
    /// Steps may come as slowly as they have come, four times over.
    const STEPS: u32 = 4;
    /// But not without end: a gap of this would have to be waited for four times as long.
    const LONGEST: Duration = Duration::from_secs(5);
    STALL.max((STEPS * longest).min(LONGEST)) + PER_STEP * depth.min(8)
}

pub struct Part {
    pub image: String,
    pub generation: Generation,
    pub role: Role,
    /// When the role began.
    pub since: Instant,
    /// Requests of containerd in hand.
    pub requests: u32,
    /// When the last one ended.
    pub left: Instant,
    pub ingest: Option<Ingest>,
    /// Who has brought bytes of it.
    pub givers: Vec<Giver>,
    pub offset: u64,
    /// Its ingest has been looked at before: what was in it then may be years old.
    has_been_seen: bool,
    /// How far what this node gave to its containerd goes, in bytes from the beginning.
    pub given: Arc<AtomicU64>,
    /// Its last bytes, until this part ends: when a request does, containerd has not written all of them.
    pub passing: Arc<Passing>,
    /// When there last was more.
    pub grew: Instant,
    /// When the first byte came from a parent.
    pub streaming: Option<Instant>,
    /// How those who lead stand.
    pub progress: Progress,
    /// True once leading would be faster.
    pub slow: watch::Sender<bool>,
    /// Since when it would have been.
    slow_since: Option<Instant>,
    /// Bytes per second at which it came before it was left to the registry for being slow.
    before: Option<u64>,
    meter: Meter,
    _expecting: Expecting,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    Asks,
    Leads {
        lease: u64,
    },
    Follows {
        parent: PeerId,
    },
    /// Its containerd gets it from a node that has it whole.
    Takes,
}

/// What a look at the content directory says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Whole,
    Growing(u64),
    /// All of so many bytes are there, and containerd checks them.
    Checked(u64),
    /// It was there and has been given up.
    Abandoned,
    /// All of it was there, and containerd has thrown it away.
    Refused,
    Nothing,
}

impl Part {
    pub fn new(
        image: String,
        generation: Generation,
        inflight: &Inflight,
        digest: &Digest,
        now: Instant,
    ) -> Self {
        Self {
            image,
            generation,
            role: Role::Asks,
            since: now,
            requests: 0,
            left: now,
            ingest: None,
            givers: Vec::new(),
            offset: 0,
            has_been_seen: false,
            given: Arc::default(),
            passing: Arc::new(inflight.passing(digest)),
            grew: now,
            streaming: None,
            progress: Progress::default(),
            slow: watch::Sender::new(false),
            slow_since: None,
            before: None,
            meter: Meter::default(),
            _expecting: inflight.expect(digest.clone()),
        }
    }

    pub fn becomes(&mut self, role: Role, now: Instant) {
        if self.role != role {
            self.role = role;
            self.since = now;
            self.streaming = None;
            self.slow.send_replace(false);
        }
    }

    /// A stream begins, or is given another trial.
    pub fn streams(&mut self, now: Instant) {
        self.streaming = Some(now);
        self.slow_since = None;
        self.slow.send_replace(false);
    }

    /// It is about to lead, so that the registry brings more than whom it followed.
    pub fn goes_for_more(&mut self, now: Instant) {
        self.before = Some(self.rate(now));
    }

    /// Whether it is for more that it went to the registry, as far as that has not been judged.
    pub fn went_for_more(&self) -> bool {
        self.before.is_some()
    }

    /// Whether the registry has brought clearly more than it was left for. None as long as that is not known.
    pub fn got_more(&mut self, now: Instant) -> Option<bool> {
        // On 2.x it has had to queue first.
        let has_begun = self.grew > self.since;
        let has_tried = has_begun && self.age(now) >= 2 * TRIAL;
        let before = self.before.take_if(|_| has_tried)?;
        Some(is_clearly_less(before, self.rate(now)))
    }

    /// It is slow, and others come first: to be judged again before long.
    pub fn waits_its_turn(&mut self, now: Instant) {
        self.streaming = now.checked_sub(TRIAL);
        self.slow_since = now.checked_sub(TRIAL - TURN);
    }

    /// Takes a look into account; what is to be said of this part. None: nothing yet.
    pub fn look(&mut self, seen: Seen, is_busy: bool, now: Instant) -> Option<words::Part> {
        if let Seen::Growing(offset) | Seen::Checked(offset) = seen {
            let is_first = !std::mem::replace(&mut self.has_been_seen, true);
            if offset > self.offset && !is_first {
                // Its source's source was lost and another found. How fast that is will be seen.
                if now.saturating_duration_since(self.grew) >= STILL {
                    self.streaming = self.streaming.map(|_| now);
                }
                self.grew = now;
            }
            // It begins anew: what it gets from now on may be another's.
            if offset < self.offset && self.requests == 0 {
                self.given.store(0, Ordering::Relaxed);
            }
            self.offset = offset;
            self.meter.add(offset, now);
        }
        let idle = now.saturating_duration_since(self.left.max(self.grew));
        let patience = match seen {
            Seen::Checked(_) => CHECK,
            _ => LEFT,
        };
        let has_left = self.requests == 0 && idle > patience;
        // A killed containerd leaves its ingests for a day. One that queues may come to it later than one that waits for the
        // registry.
        let longest = match (seen, self.generation) {
            (Seen::Checked(_), _) | (_, Generation::Two) => CHECK,
            (_, Generation::One) => DEAD,
        };
        let last = self.left.max(self.grew).max(self.since);
        let is_dead = self.requests == 0 && now.saturating_duration_since(last) > longest;
        match (seen, &self.role) {
            (Seen::Whole, _) => Some(words::Part::Holds),
            (Seen::Abandoned | Seen::Refused, _) => Some(words::Part::Gone),
            (Seen::Growing(_) | Seen::Checked(_), _) if is_dead => Some(words::Part::Gone),
            (Seen::Nothing, Role::Leads { .. }) if self.age(now) > START => Some(words::Part::Gone),
            (Seen::Nothing, Role::Asks | Role::Follows { .. } | Role::Takes) if has_left => {
                Some(words::Part::Gone)
            }
            (Seen::Growing(_) | Seen::Checked(_), Role::Asks) if has_left => {
                Some(words::Part::Gone)
            }
            (_, Role::Takes) => Some(words::Part::Takes),
            (_, Role::Leads { lease }) => {
                let quiet = now.saturating_duration_since(self.grew.max(self.since));
                // 1.x asks the registry at once: one that is quiet waits for the registry.
                let is_queued = self.generation == Generation::Two
                    && matches!(seen, Seen::Growing(_))
                    && quiet > QUIET
                    && is_busy;
                Some(words::Part::Leads {
                    lease: *lease,
                    is_queued,
                })
            }
            (_, Role::Follows { parent }) => Some(words::Part::Follows {
                parent: parent.clone(),
                // One that has it all and is checking it gives it to whoever asks.
                is_queued: !matches!(seen, Seen::Checked(_)) && self.is_idle(now),
            }),
            (_, Role::Asks) => None,
        }
    }

    /// Its containerd is getting it from somewhere although no request is in hand: from the registry. That it grows does
    /// not say so: a slow disk takes seconds for what is in the socket when a request ends. That it has more than it was
    /// given does.
    pub fn is_fetched_elsewhere(&self, now: Instant) -> bool {
        let idle = now.saturating_duration_since(self.left);
        !matches!(self.role, Role::Leads { .. })
            && self.requests == 0
            && idle > QUIET
            && self.offset > self.given.load(Ordering::Relaxed)
            && now.saturating_duration_since(self.grew) < QUIET
    }

    /// Nothing brings it on: it neither leads nor is it being followed, as after a request that was postponed.
    pub fn is_idle(&self, now: Instant) -> bool {
        !matches!(self.role, Role::Leads { .. })
            && self.requests == 0
            && now.saturating_duration_since(self.grew) > QUIET
    }

    /// No request for it is in hand, and somebody has more of it.
    pub fn is_kept_waiting(&self) -> bool {
        !matches!(self.role, Role::Leads { .. })
            && self.requests == 0
            && self.progress.offset > self.offset
    }

    /// Bytes per second.
    pub fn rate(&self, now: Instant) -> u64 {
        self.meter.rate(now)
    }

    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// Whether what is left would come sooner by [`GAIN`] at the rate of those who lead. Yes where the length is not known.
    fn would_gain(&self, now: Instant) -> bool {
        let Some(total) = self.ingest.as_ref().map(Ingest::total) else {
            return true;
        };
        let left = total.saturating_sub(self.offset) as f64;
        let seconds = |rate: u64| left / rate.max(1) as f64;
        seconds(self.rate(now)) - seconds(self.progress.rate) >= GAIN.as_secs_f64()
    }

    /// Whether leading would be faster: those who lead are well ahead and draw away, and their nodes get more in all than
    /// this one does (`node_rate`), so that it is not this node's own link that is full, and enough is left for that to
    /// matter. `is_proven`: this registry has lately brought more than those who were followed.
    pub fn is_slow(&mut self, node_rate: u64, is_proven: bool, now: Instant) -> bool {
        let trial = if is_proven { SHORT_TRIAL } else { TRIAL };
        let has_tried = self
            .streaming
            .is_some_and(|since| now.saturating_duration_since(since) >= trial);
        let lag = self.progress.offset.saturating_sub(self.offset);
        let stands_still = now.saturating_duration_since(self.grew) >= STILL;
        let is_slow = matches!(self.role, Role::Follows { .. })
            && has_tried
            && !stands_still
            && lag > LAG.max(self.progress.rate / 2)
            && is_clearly_less(self.rate(now), self.progress.rate)
            && is_clearly_less(node_rate, self.progress.node_rate)
            && self.would_gain(now);
        self.slow_since = is_slow.then(|| self.slow_since.unwrap_or(now));
        self.slow_since
            .is_some_and(|since| now.saturating_duration_since(since) >= trial)
    }
}

/// A quarter: less is the jitter of a second's measurement.
fn is_clearly_less(mine: u64, theirs: u64) -> bool {
    mine < theirs / 4 * 3
}

/// Bytes over the last [`WINDOW`].
#[derive(Debug, Default)]
struct Meter(VecDeque<(Instant, u64)>);

impl Meter {
    fn add(&mut self, offset: u64, now: Instant) {
        // It began anew.
        if self.0.back().is_some_and(|(_, last)| offset < *last) {
            self.0.clear();
        }
        self.0.push_back((now, offset));
        while self.0.len() > 2 && now.saturating_duration_since(self.0[1].0) >= WINDOW {
            self.0.pop_front();
        }
    }

    fn rate(&self, now: Instant) -> u64 {
        let (Some((from, first)), Some((_, last))) = (self.0.front(), self.0.back()) else {
            return 0;
        };
        let time = now.saturating_duration_since(*from).max(WINDOW / 4);
        ((last - first) as f64 / time.as_secs_f64()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inflight::ContentRoot;
    use crate::testing::ingest::FakeIngests;

    const MIB: u64 = 1 << 20;

    /// A part that follows; its stream got so many MiB/s until 2 s, was still for so many ms, and went on.
    fn following(mib_per_second: u64, still: u64) -> (Part, Instant) {
        let begin = Instant::now();
        let (off, digest) = (Inflight::off(), Digest::sha256(b"layer"));
        let mut part = Part::new("image".into(), Generation::One, &off, &digest, begin);
        let parent = PeerId::new("parent");
        part.becomes(Role::Follows { parent }, begin);
        part.streaming = Some(begin);
        part.progress = Progress {
            offset: 100 * MIB,
            rate: 20 * MIB,
            node_rate: 20 * MIB,
        };
        let at = |millis| begin + Duration::from_millis(millis);
        for step in 1..=40 {
            let seen = Seen::Growing(step * mib_per_second * MIB / 20);
            part.look(seen, true, at(50 * step));
        }
        let more = Seen::Growing(2 * mib_per_second * MIB + MIB);
        part.look(more, true, at(2000 + still));
        (part, at(2000 + still))
    }

    /// Judged as often as the reporter looks, from 1 ms after `now` on: when it turned out to be slow.
    fn slow_after(part: &mut Part, node_rate: u64, is_proven: bool, now: Instant) -> Option<u64> {
        let begin = part.offset;
        (0..40).map(|look| 50 * look).find(|millis| {
            let then = now + Duration::from_millis(*millis);
            part.look(Seen::Growing(begin + millis * 4 * MIB / 1000), true, then);
            part.is_slow(node_rate, is_proven, then)
        })
    }

    #[test]
    fn a_slow_stream_is_one_that_moves_and_stays_slow() {
        let trial = TRIAL.as_millis() as u64;
        for (case, mib_per_second, still, expected) in [
            ("slow", 4, 50, Some(trial)),
            ("it had stood still", 4, 1500, Some(2 * trial)),
        ] {
            let (mut part, now) = following(mib_per_second, still);
            let after = slow_after(&mut part, 4 * MIB, false, now);
            assert_eq!(after, expected, "{case}");
        }
        let (mut part, now) = following(4, 50);
        let after = slow_after(&mut part, 4 * MIB, true, now);
        let short = SHORT_TRIAL.as_millis() as u64;
        assert_eq!(
            after,
            Some(short),
            "the registry has shown that it is faster"
        );

        let (mut part, now) = following(19, 50);
        assert!(!part.is_slow(4 * MIB, true, now), "as fast as who leads");
        let (mut part, now) = following(4, 50);
        let after = slow_after(&mut part, 19 * MIB, false, now);
        assert_eq!(after, None, "this node's link is full");
        let (mut part, now) = following(4, 50);
        part.is_slow(4 * MIB, false, now);
        assert!(
            !part.is_slow(4 * MIB, false, now + STILL),
            "it stands still, which is another's to mend"
        );
    }

    #[tokio::test]
    async fn a_slow_stream_is_left_as_long_as_enough_is_left_of_it() {
        let digest = Digest::sha256(b"layer");
        // It has got 9 MiB, at 4 MiB/s. Whoever leads gets 20.
        for (left, expected) in [(4, false), (12, true)] {
            let ingests = FakeIngests::new();
            let (mut part, now) = following(4, 50);
            let total = part.offset + left * MIB;
            let _download = ingests.begin("layer", &digest, total);
            let root = ContentRoot::known(ingests.root().to_owned());
            let inflight = Inflight::new(root, "k8s.io".into());
            part.ingest = inflight.find(&digest).await.unwrap();
            assert_eq!(part.ingest.as_ref().map(Ingest::total), Some(total));

            let after = slow_after(&mut part, 4 * MIB, false, now);

            assert_eq!(after.is_some(), expected, "{left} MiB are left");
        }
    }

    #[test]
    fn who_follows_with_no_request_in_hand_is_queued_unless_all_of_it_is_there() {
        let all = Seen::Checked(100 * MIB);
        for (case, requests, seen, expected) in [
            ("it was sent back", 0, None, true),
            ("it waits for its source", 1, None, false),
            ("containerd checks it", 0, Some(all), false),
        ] {
            let (mut part, now) = following(4, 50);
            part.requests = requests;
            let seen = seen.unwrap_or(Seen::Growing(part.offset));
            // What is new is a sign of life for a moment.
            part.look(seen, true, now);
            let said = part.look(seen, true, now + QUIET + QUIET);
            let Some(words::Part::Follows { is_queued, .. }) = said else {
                panic!("{case}: {said:?}");
            };
            assert_eq!(is_queued, expected, "{case}");
        }
    }

    #[test]
    fn what_a_slow_disk_still_writes_is_not_fetched_elsewhere() {
        for (case, given, begins_anew, expected) in [
            ("all of it was given by this node", 12, false, false),
            ("more than was given", 9, false, true),
            ("it began anew, at the registry", 12, true, true),
        ] {
            let (mut part, begin) = following(4, 50);
            let mut offset = part.offset;
            part.given.store(offset + given * MIB, Ordering::Relaxed);
            part.left = begin;
            if begins_anew {
                offset = 0;
            }
            // Ten steps in a second after the end of the last request.
            let mut now = begin;
            for _ in 0..10 {
                now += Duration::from_millis(100);
                offset += MIB;
                part.look(Seen::Growing(offset), true, now);
            }
            assert_eq!(part.is_fetched_elsewhere(now), expected, "{case}");
        }
    }

    #[test]
    fn what_an_older_download_left_here_is_not_fetched_elsewhere() {
        for (case, grows, expected) in [
            ("it stays as it was found", false, false),
            ("it grows although nobody asks", true, true),
        ] {
            let begin = Instant::now();
            let (off, digest) = (Inflight::off(), Digest::sha256(b"layer"));
            let mut part = Part::new("image".into(), Generation::One, &off, &digest, begin);
            let mut offset = 10 * MIB;
            let mut now = begin;
            // Longer than it may be quiet after its only request.
            for _ in 0..=QUIET.as_millis() / 50 {
                part.look(Seen::Growing(offset), true, now);
                now += Duration::from_millis(50);
                offset += if grows { MIB } else { 0 };
            }
            assert_eq!(part.is_fetched_elsewhere(now), expected, "{case}");
        }
    }

    #[test]
    fn who_asked_in_vain_is_not_slow_before_another_trial() {
        let (mut part, now) = following(4, 50);
        part.streams(now);
        let after = slow_after(&mut part, 4 * MIB, false, now).unwrap();
        assert!(after >= 2 * TRIAL.as_millis() as u64, "{after}");

        let (mut part, now) = following(4, 50);
        part.waits_its_turn(now);
        let after = slow_after(&mut part, 4 * MIB, false, now).unwrap();
        assert_eq!(after, TURN.as_millis() as u64);
    }

    #[test]
    fn a_registry_has_brought_more_or_not_once_it_had_the_time() {
        for (mib_per_second, expected) in [(20, true), (4, false)] {
            let (mut part, now) = following(4, 50);
            part.goes_for_more(now);
            part.becomes(Role::Leads { lease: 1 }, now);
            assert_eq!(part.got_more(now), None);
            let begin = part.offset;
            for look in 1..=30 {
                let then = now + Duration::from_millis(50 * look);
                let seen = Seen::Growing(begin + look * mib_per_second * MIB / 20);
                part.look(seen, true, then);
            }
            let then = now + 2 * TRIAL;
            assert_eq!(part.got_more(then), Some(expected));
            assert_eq!(part.got_more(then), None, "told once");
        }
    }
}
