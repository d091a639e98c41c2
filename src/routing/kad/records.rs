//! What this node tells the DHT: under which key, for how long, and when again.
//!
//! No IO and no swarm here. Time and chance are arguments, so that a test is a table of situations.
//!
//! A record that was placed is not placed for good: nodes that join later may be nearer to its key. In a large swarm the
//! next renewal heals that early enough; in one that has just begun, every record would sit on the first two nodes
//! for a quarter of an hour. Hence [`Schedule::swarm_has`].

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use libp2p::kad::RecordKey;
use rand::{Rng, RngExt};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use crate::oci::Key;

/// How long a record lives on other nodes. Spegel's figure: who follows a dead node's record is refused and asks the
/// next, so this bounds a nuisance and not a failure.
pub const RECORD_LIFE: Duration = Duration::from_secs(19 * 60);

/// A key is renewed at a moment drawn from this window. Its end leaves four minutes of [`RECORD_LIFE`] for a renewal
/// that fails and is tried again; its width keeps nodes that were started together from renewing together for ever.
const RENEWAL: std::ops::Range<Duration> =
    Duration::from_secs(12 * 60)..Duration::from_secs(15 * 60);

/// An announcement that failed is tried again after about this long: long enough for a swarm that is busy with a
/// rollout to calm down, short enough for several attempts within the four minutes that [`RENEWAL`] leaves.
const RETRY: std::ops::Range<Duration> = Duration::from_secs(20)..Duration::from_secs(40);

/// A key is renewed so much before its moment if others of its region of the key space are: together they cost a fortieth.
/// As long as [`RENEWAL`] is wide, so whatever lies in a region comes together within two rounds and stays so.
pub const TOGETHER: Duration = Duration::from_secs(3 * 60);

/// Up to this many peers a record is announced again when their number has doubled. 20 nodes keep each record, so in a
/// swarm of twice as many a record that was placed early still is on half of the nodes that a lookup asks.
const SMALL_SWARM: usize = 40;

/// How far apart keys lie when all of them are announced again. One costs about 0.2 ms of CPU, its twenty keepers' included
/// (`make bench`), so this keeps a rollout's worth of nodes under a fifth of one core each.
const SPREAD_PER_KEY: Duration = Duration::from_millis(1);

/// Where a key lives in the DHT: the multihash (sha2-256, 32 bytes) of its text, which is what Spegel's nodes look for.
pub fn record_key(key: &Key) -> RecordKey {
    record_key_of(&key.to_string())
}

/// Where a text lives that may be no key's.
pub fn record_key_of(text: &str) -> RecordKey {
    let mut multihash = vec![0x12, 0x20];
    multihash.extend_from_slice(&Sha256::digest(text.as_bytes()));
    RecordKey::from(multihash)
}

/// This node's own keys and when each is announced next.
///
/// A key is either in line for a moment or in flight; it leaves by [`Schedule::remove`] only.
#[derive(Debug, Default)]
pub struct Schedule {
    keys: HashMap<RecordKey, State>,
    line: BTreeMap<Turn, RecordKey>,
    turns: u64,
    /// How many peers there were when all keys were last due.
    placed_among: usize,
}

/// When, and a number that parts keys of the same moment.
type Turn = (Instant, u64);

#[derive(Clone, Copy, Debug)]
enum State {
    Waiting(Turn),
    /// `again`: what is placed now is placed among too few.
    InFlight {
        again: bool,
    },
}

impl Schedule {
    /// A new key is due at once; one that is known stays as it is. Whether it is new.
    pub fn add(&mut self, key: RecordKey, now: Instant) -> bool {
        let is_new = !self.keys.contains_key(&key);
        if is_new {
            self.wait(key, now);
        }
        is_new
    }

    /// Whether the key was there.
    pub fn remove(&mut self, key: &RecordKey) -> bool {
        match self.keys.remove(key) {
            Some(State::Waiting(turn)) => self.line.remove(&turn).is_some(),
            Some(State::InFlight { .. }) => true,
            None => false,
        }
    }

    /// Up to `max` keys whose time has come. They are in flight now: each wants a [`Schedule::renewed`] or a
    /// [`Schedule::failed`].
    pub fn due(&mut self, now: Instant, max: usize) -> Vec<RecordKey> {
        let mut due = Vec::new();
        while due.len() < max
            && let Some(first) = self.line.first_entry()
            && first.key().0 <= now
        {
            let key = first.remove();
            self.keys
                .insert(key.clone(), State::InFlight { again: false });
            due.push(key);
        }
        due
    }

    /// Up to `max` more that `fit`, whose time comes before `until`. They are in flight now, too.
    pub fn beside(
        &mut self,
        fit: impl Fn(&RecordKey) -> bool,
        until: Instant,
        max: usize,
    ) -> Vec<RecordKey> {
        let line = self.line.range(..(until, u64::MAX));
        let fitting = line.filter(|(_, key)| fit(key)).take(max);
        let fitting: Vec<(Turn, RecordKey)> =
            fitting.map(|(turn, key)| (*turn, key.clone())).collect();
        let mut taken = Vec::with_capacity(fitting.len());
        for (turn, key) in fitting {
            self.line.remove(&turn);
            self.keys
                .insert(key.clone(), State::InFlight { again: false });
            taken.push(key);
        }
        taken
    }

    /// Whether it is still this node's.
    pub fn has(&self, key: &RecordKey) -> bool {
        self.keys.contains_key(key)
    }

    /// When the next key is due.
    pub fn next(&self) -> Option<Instant> {
        self.line.first_key_value().map(|((at, _), _)| *at)
    }

    /// The keys were announced together, and will be again, but for those of which what was placed is placed among too few:
    /// these are due soon. Those that were removed meanwhile are none of ours any more.
    pub fn renewed(&mut self, keys: &[RecordKey], now: Instant, rng: &mut impl Rng) {
        let next = now + rng.random_range(RENEWAL);
        let soon = now + rng.random_range(Duration::ZERO..self.spread());
        for key in keys {
            let at = match self.keys.get(key) {
                Some(State::InFlight { again: false }) => next,
                Some(State::InFlight { again: true }) => soon,
                Some(State::Waiting(_)) | None => continue,
            };
            self.wait(key.clone(), at);
        }
    }

    /// The key could not be announced.
    pub fn failed(&mut self, key: &RecordKey, now: Instant, rng: &mut impl Rng) {
        if let Some(State::InFlight { .. }) = self.keys.get(key) {
            self.wait(key.clone(), now + rng.random_range(RETRY));
        }
    }

    /// Tells how many peers the routing table has. While the swarm is small, twice as many as at the last time make
    /// all keys due again, spread over a while.
    pub fn swarm_has(&mut self, peers: usize, now: Instant, rng: &mut impl Rng) {
        if peers == 0 {
            // Who comes after we lost everybody may never have heard of us.
            self.placed_among = 0;
            return;
        }
        if self.placed_among > SMALL_SWARM || peers < 2 * self.placed_among {
            return;
        }
        self.placed_among = peers;
        let spread = self.spread();
        let keys: Vec<RecordKey> = self.keys.keys().cloned().collect();
        for key in keys {
            let at = now + rng.random_range(Duration::ZERO..spread);
            match self.keys.get_mut(&key) {
                Some(State::Waiting(turn)) if turn.0 > at => {
                    let turn = *turn;
                    self.line.remove(&turn);
                    self.wait(key, at);
                }
                Some(State::InFlight { again }) => *again = true,
                _ => {}
            }
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    fn spread(&self) -> Duration {
        let keys = u32::try_from(self.keys.len()).unwrap_or(u32::MAX);
        SPREAD_PER_KEY
            .saturating_mul(keys)
            .clamp(SPREAD_PER_KEY, RENEWAL.start)
    }

    fn wait(&mut self, key: RecordKey, at: Instant) {
        let turn = (at, self.turns);
        self.turns += 1;
        self.line.insert(turn, key.clone());
        self.keys.insert(key, State::Waiting(turn));
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn keys(n: usize) -> Vec<RecordKey> {
        (0..n).map(|i| record_key_of(&format!("key {i}"))).collect()
    }

    fn schedule(n: usize, now: Instant) -> (Schedule, StdRng) {
        let mut schedule = Schedule::default();
        for key in keys(n) {
            schedule.add(key, now);
        }
        (schedule, StdRng::seed_from_u64(1))
    }

    #[test]
    fn a_key_lies_where_spegel_looks_for_it() {
        // bafkreigdvoh7cnza5cwzar65hfdgwpejotszfqx2ha6uuolaofgk54ge6i: multibase b, CID version 1, raw codec, multihash.
        let cid = "afkreigdvoh7cnza5cwzar65hfdgwpejotszfqx2ha6uuolaofgk54ge6i";
        let mut bits = cid.bytes().flat_map(|c| {
            let value = match c {
                b'a'..=b'z' => c - b'a',
                _ => c - b'2' + 26,
            };
            (0..5).rev().map(move |bit| value >> bit & 1)
        });
        let mut bytes = Vec::new();
        while bytes.len() < 36 {
            bytes.push((0..8).fold(0, |byte, _| byte << 1 | bits.next().unwrap_or(0)));
        }
        assert_eq!(bytes[..2], [1, 0x55]);

        assert_eq!(record_key_of("foobar").to_vec(), bytes[2..]);
    }

    #[test]
    fn a_new_key_is_due_at_once_and_a_known_one_is_not_due_twice() {
        let now = Instant::now();
        let (mut schedule, mut rng) = schedule(1, now);
        let key = keys(1).remove(0);

        schedule.add(key.clone(), now);
        assert_eq!(schedule.due(now, 10), keys(1));
        schedule.add(key.clone(), now);
        assert_eq!(schedule.due(now, 10), []);
        schedule.renewed(std::slice::from_ref(&key), now, &mut rng);
        schedule.add(key.clone(), now);
        assert_eq!(schedule.due(now, 10), []);
    }

    #[test]
    fn every_key_is_renewed_well_before_its_record_dies_and_not_all_at_once() {
        let now = Instant::now();
        let (mut schedule, mut rng) = schedule(500, now);
        for key in schedule.due(now, 500) {
            schedule.renewed(&[key], now, &mut rng);
        }

        assert_eq!(schedule.due(now + 12 * MINUTE - MINUTE / 60, 500).len(), 0);
        let half = schedule.due(now + 13 * MINUTE + MINUTE / 2, 500).len();
        assert!((200..300).contains(&half), "{half}");
        schedule.due(now + 15 * MINUTE, 500);
        assert_eq!(schedule.next(), None);
    }

    #[test]
    fn keys_of_a_region_come_together_and_stay_so() {
        let now = Instant::now();
        let (mut schedule, mut rng) = schedule(100, now);
        for key in schedule.due(now, 100) {
            schedule.renewed(&[key], now, &mut rng);
        }
        let region: Vec<RecordKey> = keys(100).into_iter().step_by(2).collect();
        let fits = |key: &RecordKey| region.contains(key);
        let later = schedule.next().unwrap();

        let mut together = schedule.beside(fits, later + TOGETHER, 30);
        assert_eq!(together.len(), 30, "no more than asked for");
        together.extend(schedule.beside(fits, later + TOGETHER, 100));
        assert_eq!(together.len(), 50);
        assert!(together.iter().all(fits));
        schedule.renewed(&together, later, &mut rng);

        let others = schedule.due(later + TOGETHER, 100);
        assert_eq!(others.len(), 50);
        let next = schedule.next().unwrap();
        let mut due = schedule.due(next, 100);
        due.sort_by_key(|key| key.to_vec());
        together.sort_by_key(|key| key.to_vec());
        assert_eq!(due, together, "all in one moment");
    }

    #[test]
    fn no_more_are_due_than_were_asked_for() {
        let now = Instant::now();
        let (mut schedule, _) = schedule(250, now);

        let rounds: Vec<usize> = (0..4).map(|_| schedule.due(now, 100).len()).collect();
        assert_eq!(rounds, [100, 100, 50, 0]);
    }

    #[test]
    fn a_failed_announcement_is_tried_again_before_the_record_dies() {
        let now = Instant::now();
        let (mut schedule, mut rng) = schedule(1, now);
        let key = schedule.due(now, 1).remove(0);

        schedule.failed(&key, now, &mut rng);

        assert_eq!(schedule.due(now + MINUTE / 6, 1), []);
        assert_eq!(schedule.due(now + MINUTE, 1), [key]);
    }

    #[test]
    fn a_removed_key_is_never_due_again_whatever_was_under_way() {
        let now = Instant::now();
        let (mut schedule, mut rng) = schedule(2, now);
        let flying = schedule.due(now, 1).remove(0);
        let waiting = keys(2).into_iter().find(|key| *key != flying).unwrap();

        assert!(schedule.remove(&flying));
        assert!(schedule.remove(&waiting));
        assert!(!schedule.remove(&waiting));
        schedule.renewed(&[flying], now, &mut rng);

        assert_eq!(schedule.due(now + 60 * MINUTE, 10), []);
        assert_eq!(schedule.len(), 0);
    }

    #[test]
    fn a_small_swarm_that_doubles_hears_everything_again() {
        // peers before, peers after, due again
        for (before, after, again) in [
            (1, 2, true),
            (1, 1, false),
            (10, 19, false),
            (10, 20, true),
            (40, 80, true),
            (41, 500, false),
            (5, 0, false),
        ] {
            let now = Instant::now();
            let (mut schedule, mut rng) = schedule(50, now);
            schedule.swarm_has(before, now, &mut rng);
            for key in schedule.due(now, 50) {
                schedule.renewed(std::slice::from_ref(&key), now, &mut rng);
            }

            schedule.swarm_has(after, now, &mut rng);

            let due = schedule.due(now + MINUTE, 50).len();
            assert_eq!(due == 50, again, "{before} -> {after}: {due} due");
        }
    }

    #[test]
    fn announcing_everything_again_is_spread() {
        let now = Instant::now();
        let (mut schedule, mut rng) = schedule(1000, now);
        schedule.swarm_has(1, now, &mut rng);
        for key in schedule.due(now, 1000) {
            schedule.renewed(&[key], now, &mut rng);
        }

        schedule.swarm_has(2, now, &mut rng);

        let half = schedule.due(now + Duration::from_millis(500), 1000).len();
        assert!((400..600).contains(&half), "{half}");
    }

    #[test]
    fn a_key_in_flight_while_the_swarm_doubles_goes_once_more() {
        let now = Instant::now();
        let (mut schedule, mut rng) = schedule(1, now);
        schedule.swarm_has(1, now, &mut rng);
        let key = schedule.due(now, 1).remove(0);

        schedule.swarm_has(2, now, &mut rng);
        schedule.renewed(std::slice::from_ref(&key), now, &mut rng);

        assert_eq!(schedule.due(now + MINUTE, 1), [key]);
    }

    #[test]
    fn whoever_comes_after_everybody_was_lost_hears_everything() {
        let now = Instant::now();
        let (mut schedule, mut rng) = schedule(1, now);
        schedule.swarm_has(30, now, &mut rng);
        let key = schedule.due(now, 1).remove(0);
        schedule.renewed(std::slice::from_ref(&key), now, &mut rng);

        schedule.swarm_has(0, now, &mut rng);
        schedule.swarm_has(1, now, &mut rng);

        assert_eq!(schedule.due(now + MINUTE, 1), [key]);
    }
}
