//! Lookups under way: who waits for which key, what was found, and when enough has been waited.
//!
//! One search per key serves everyone who asks for it while it runs. It belongs to none of them: a waiter that leaves
//! ends nothing. Nothing is remembered after its end, found or not, because a pull asks for the same key once.
//!
//! A search ends with its query, or at [`CAP`], or when it has gone quiet: somebody has answered, no connection is being
//! opened for it, and nothing more came for a while. Whoever asks whether it is quiet must have read everything that
//! arrived before, or takes its own delay for the others' silence.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use libp2p::PeerId;
use libp2p::kad::{QueryId, RecordKey};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use crate::routing::Peer;

/// A lookup ends by itself; this bounds one that meets silent peers. A registry's own time to first byte is of this
/// order, so that even then a miss costs no more than going upstream does.
pub const CAP: Duration = Duration::from_millis(250);

pub struct Lookups {
    /// How long a search that has an answer waits for the next one.
    quiet: Duration,
    searches: HashMap<QueryId, Search>,
    by_key: HashMap<RecordKey, QueryId>,
}

struct Search {
    key: RecordKey,
    began: Instant,
    /// Since the last answer, if there was one.
    answered: Option<Instant>,
    first: Option<Instant>,
    seen: HashSet<PeerId>,
    found: Vec<Peer>,
    waiters: Vec<UnboundedSender<Peer>>,
}

/// What a search has come to, and after how long: of a hit, when the first provider was known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Hit(Duration),
    Miss(Duration),
}

impl Lookups {
    pub fn new(quiet: Duration) -> Self {
        Self {
            quiet,
            searches: HashMap::new(),
            by_key: HashMap::new(),
        }
    }

    /// Joins the search for `key`, if there is one: the waiter gets what was found and then the rest. Otherwise it is
    /// handed back.
    pub fn join(
        &mut self,
        key: &RecordKey,
        waiter: UnboundedSender<Peer>,
    ) -> Option<UnboundedSender<Peer>> {
        let search = self
            .by_key
            .get(key)
            .and_then(|query| self.searches.get_mut(query));
        let Some(search) = search else {
            return Some(waiter);
        };
        for peer in &search.found {
            let _ = waiter.send(peer.clone());
        }
        search.waiters.push(waiter);
        None
    }

    pub fn begin(
        &mut self,
        query: QueryId,
        key: RecordKey,
        waiter: UnboundedSender<Peer>,
        now: Instant,
    ) {
        self.by_key.insert(key.clone(), query);
        self.searches.insert(
            query,
            Search {
                key,
                began: now,
                answered: None,
                first: None,
                seen: HashSet::new(),
                found: Vec::new(),
                waiters: vec![waiter],
            },
        );
    }

    /// Whether `query` is a search that has not told of `provider` yet.
    pub fn wants(&self, query: QueryId, provider: &PeerId) -> bool {
        self.searches
            .get(&query)
            .is_some_and(|search| !search.seen.contains(provider))
    }

    /// Tells the waiters of `provider`, who is known to them as `peer`.
    pub fn found(&mut self, query: QueryId, provider: PeerId, peer: Peer, now: Instant) {
        let Some(search) = self.searches.get_mut(&query) else {
            return;
        };
        if !search.seen.insert(provider) {
            return;
        }
        search.first.get_or_insert(now);
        search
            .waiters
            .retain(|waiter| waiter.send(peer.clone()).is_ok());
        search.found.push(peer);
    }

    /// Somebody has answered, whatever it knew.
    pub fn answered(&mut self, query: QueryId, now: Instant) {
        if let Some(search) = self.searches.get_mut(&query) {
            search.answered = Some(now);
        }
    }

    /// The search is over: its waiters' streams end. `None` if there was no such search.
    pub fn end(&mut self, query: QueryId, now: Instant) -> Option<(RecordKey, Outcome)> {
        let search = self.searches.remove(&query)?;
        self.by_key.remove(&search.key);
        let outcome = match search.first {
            Some(first) => Outcome::Hit(first.duration_since(search.began)),
            None => Outcome::Miss(now.duration_since(search.began)),
        };
        Some((search.key, outcome))
    }

    /// Searches that have taken all the time there is.
    pub fn capped(&self, now: Instant) -> Vec<QueryId> {
        self.ended(|search| search.cap() <= now)
    }

    /// Searches that have gone quiet. `dials` are the moments at which connections now being opened were begun.
    pub fn quiet(&self, dials: &[Instant], now: Instant) -> Vec<QueryId> {
        self.ended(|search| {
            search
                .silent_at(self.quiet, dials)
                .is_some_and(|at| at <= now)
        })
    }

    /// When the next search is over if nothing happens.
    pub fn next(&self, dials: &[Instant]) -> Option<Instant> {
        self.searches
            .values()
            .map(|search| match search.silent_at(self.quiet, dials) {
                Some(silent) => silent.min(search.cap()),
                None => search.cap(),
            })
            .min()
    }

    fn ended(&self, over: impl Fn(&Search) -> bool) -> Vec<QueryId> {
        self.searches
            .iter()
            .filter(|(_, search)| over(search))
            .map(|(query, _)| *query)
            .collect()
    }
}

impl Search {
    fn cap(&self) -> Instant {
        self.began + CAP
    }

    /// A connection that was already being opened when the search began is not counted: its peer has been silent for
    /// longer than the search is old.
    fn silent_at(&self, quiet: Duration, dials: &[Instant]) -> Option<Instant> {
        let dialing = dials.iter().any(|begun| *begun >= self.began);
        self.answered
            .filter(|_| !dialing)
            .map(|answered| answered + quiet)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use libp2p::kad;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;
    use crate::routing;

    const QUIET: Duration = Duration::from_millis(20);
    const MS: Duration = Duration::from_millis(1);

    /// libp2p alone makes query ids.
    fn query_ids() -> impl FnMut() -> QueryId {
        let me = PeerId::random();
        let mut kad = kad::Behaviour::new(me, kad::store::MemoryStore::new(me));
        move || kad.get_closest_peers(PeerId::random())
    }

    fn key(text: &'static str) -> RecordKey {
        RecordKey::new(&text)
    }

    fn at(n: u8) -> Peer {
        Peer {
            id: routing::PeerId::new(format!("peer {n}")),
            registry: vec![SocketAddr::from(([10, 0, 0, n], 5000))],
            zone: None,
        }
    }

    fn told(waiter: &mut UnboundedReceiver<Peer>) -> Vec<String> {
        std::iter::from_fn(|| waiter.try_recv().ok())
            .map(|peer| peer.registry[0].ip().to_string())
            .collect()
    }

    #[test]
    fn a_late_waiter_gets_what_was_found_and_then_the_rest() {
        let (mut lookups, mut id, now) = (Lookups::new(QUIET), query_ids(), Instant::now());
        let query = id();
        let (early, mut early_rx) = unbounded_channel();
        let (late, mut late_rx) = unbounded_channel();
        let (other, _other_rx) = unbounded_channel();

        lookups.begin(query, key("a"), early, now);
        lookups.found(query, PeerId::random(), at(1), now);
        assert!(lookups.join(&key("a"), late).is_none());
        assert!(lookups.join(&key("b"), other).is_some());
        lookups.found(query, PeerId::random(), at(2), now);
        lookups.end(query, now);

        assert_eq!(told(&mut early_rx), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(told(&mut late_rx), ["10.0.0.1", "10.0.0.2"]);
        assert!(early_rx.is_closed() && late_rx.is_closed());
    }

    #[test]
    fn a_provider_is_told_once_and_a_waiter_that_left_hurts_nobody() {
        let (mut lookups, mut id, now) = (Lookups::new(QUIET), query_ids(), Instant::now());
        let (query, provider) = (id(), PeerId::random());
        let (gone, gone_rx) = unbounded_channel();
        let (stays, mut stays_rx) = unbounded_channel();
        lookups.begin(query, key("a"), gone, now);
        lookups.join(&key("a"), stays);
        drop(gone_rx);

        assert!(lookups.wants(query, &provider));
        lookups.found(query, provider, at(1), now);
        assert!(!lookups.wants(query, &provider));
        lookups.found(query, provider, at(1), now);

        assert_eq!(told(&mut stays_rx), ["10.0.0.1"]);
    }

    #[test]
    fn a_key_is_searched_again_after_the_end_and_nothing_is_remembered() {
        let (mut lookups, mut id, now) = (Lookups::new(QUIET), query_ids(), Instant::now());
        let query = id();
        let (waiter, _rx) = unbounded_channel();
        lookups.begin(query, key("a"), waiter.clone(), now);
        lookups.found(query, PeerId::random(), at(1), now + MS);

        assert_eq!(
            lookups.end(query, now + 9 * MS),
            Some((key("a"), Outcome::Hit(MS)))
        );
        assert_eq!(lookups.end(query, now), None);
        assert!(lookups.join(&key("a"), waiter).is_some());
    }

    #[test]
    fn a_search_waits_for_the_cap_or_for_silence_after_an_answer() {
        // answered at, a dial begun at (both ms after the beginning), over by silence at
        for (answered, dial, over) in [
            (None, None, None),
            (None, Some(1), None),
            (Some(5), None, Some(25)),
            (Some(5), Some(1), None),
            (Some(5), Some(-1), Some(25)),
            (Some(100), None, Some(120)),
        ] {
            let (mut lookups, mut id) = (Lookups::new(QUIET), query_ids());
            let start = Instant::now() + Duration::from_secs(1);
            let ms = |ms: i32| {
                let distance = MS * ms.unsigned_abs();
                if ms < 0 {
                    start - distance
                } else {
                    start + distance
                }
            };
            let query = id();
            let (waiter, _rx) = unbounded_channel();
            lookups.begin(query, key("a"), waiter, ms(0));
            if let Some(answered) = answered {
                lookups.answered(query, ms(answered));
            }
            let dials: Vec<Instant> = dial.map(ms).into_iter().collect();

            let expected = over.map_or(ms(250), ms);
            assert_eq!(lookups.next(&dials), Some(expected));
            assert_eq!(lookups.quiet(&dials, expected - MS), []);
            assert_eq!(
                lookups.quiet(&dials, expected).len(),
                usize::from(over.is_some())
            );
            assert_eq!(lookups.capped(ms(249)), []);
            assert_eq!(lookups.capped(ms(250)), [query]);
        }
    }
}
