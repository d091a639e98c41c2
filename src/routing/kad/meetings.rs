//! Who was closest to a key when a search for it ended, and who waits to hear it.
//!
//! Every search ends by naming those of the nearest twenty that answered, whether it looked for providers or for a
//! meeting point, and whether it ended by itself or was ended. That is kept for a moment, because a node looks a layer up
//! first and asks for its meeting point then.
//!
//! A lookup is over when it has gone quiet; its query is not. Ended after 20 ms of silence, it misses nearer nodes that
//! answer later: of 60 nodes with two cores together, 21 to 36 % of the askers then met at another node than the
//! rest, and 0.3 to 3 % when every query had all its time (measured). So a peer that hangs costs whoever wants to meet the whole
//! [`CAP`], until pings have found it out. A search that goes on being answered has up to [`LONGEST`]: cut off at the cap,
//! neighbours that have no connection yet each take themselves for the closest where a round trip is 35 ms.

use std::collections::HashMap;
use std::time::Duration;

use libp2p::PeerId;
use libp2p::kad::{KBucketDistance, KBucketKey, QueryId, RecordKey};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::lookups::CAP;
use super::records::{self, record_key};
use crate::oci::Key;
use crate::routing::Peer;
use crate::routing::messenger::Meeting;

/// The nodes that are named: those that keep the records of a key.
pub const CLOSEST: usize = 20;

/// A mirror asks for the meeting point within milliseconds of its search, and again within seconds when its parent fails.
/// Who came or went since is found by the calls that follow.
const FRESH: Duration = Duration::from_secs(5);

/// A search that nobody has answered for so long has come to those who hang.
const STUCK: Duration = Duration::from_millis(150);

/// One that is answered goes on for so long at the most: dials to nodes that are busy take a quarter of a second each. A
/// pull that comes from its search asks the meeting point next, and its mirror waits a second for the advice.
const LONGEST: Duration = Duration::from_millis(500);

/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Each holds twenty names of 80 bytes, so these take 1.6 MiB. More searches than this in five seconds are no pulls.
const MAX: usize = 1024;

/// Where in the DHT a meeting is. A content's is where its providers are; a repository's has a space in it, as no key's
/// text has.
pub fn place(meeting: &Meeting) -> RecordKey {
    match meeting {
        Meeting::Content(digest) => record_key(&Key::Content(digest.clone())),
        Meeting::Repository(name) => records::record_key_of(&format!("peili/repository {name}")),
    }
}

/// How far `peer` is from a place.
pub fn distance(place: &RecordKey, peer: PeerId) -> KBucketDistance {
    KBucketKey::from(place.clone()).distance(&KBucketKey::from(peer))
}

/// Who waits to hear the closest nodes.
pub type Waiter = oneshot::Sender<Vec<Peer>>;

#[derive(Debug)]
struct Search {
    key: RecordKey,
    began: Instant,
    /// How many had answered when it was last looked at, and since when they are so many.
    answers: u32,
    progressed: Instant,
    look_at: Instant,
}

#[derive(Debug, Default)]
pub struct Meetings {
    /// Every search for a key that has not said its last word.
    searches: HashMap<QueryId, Search>,
    waiting: HashMap<RecordKey, Vec<Waiter>>,
    ended: HashMap<RecordKey, (Instant, Vec<PeerId>)>,
}

impl Meetings {
    /// A search for `key` has begun.
    pub fn begin(&mut self, query: QueryId, key: RecordKey, now: Instant) {
        let search = Search {
            key,
            began: now,
            answers: 0,
            progressed: now,
            look_at: now + LOOK,
        };
        self.searches.insert(query, search);
    }

    /// Searches that it is time to look at: how many have answered is to be told with [`Self::progress`].
    pub fn due(&self, now: Instant) -> Vec<QueryId> {
        let due = self.searches.iter().filter(|(_, s)| s.look_at <= now);
        due.map(|(query, _)| *query).collect()
    }

    /// So many nodes have answered a search. Whether it has taken all its time; what it says last is who has answered by now.
    pub fn progress(&mut self, query: QueryId, answers: u32, now: Instant) -> bool {
        let Some(search) = self.searches.get_mut(&query) else {
            return false;
        };
        if answers > search.answers {
            search.answers = answers;
            search.progressed = now;
        }
        search.look_at = now + LOOK;
        let is_stuck = now.duration_since(search.progressed) >= STUCK;
        let age = now.duration_since(search.began);
        age >= LONGEST || age >= CAP && is_stuck
    }

    /// When the next search is to be looked at.
    pub fn next(&self) -> Option<Instant> {
        self.searches.values().map(|search| search.look_at).min()
    }

    /// Whether a search for `key` will say who is closest.
    pub fn is_searched(&self, key: &RecordKey) -> bool {
        self.searches.values().any(|search| search.key == *key)
    }

    /// Who was closest when a search ended a moment ago.
    pub fn fresh(&self, key: &RecordKey, now: Instant) -> Option<&[PeerId]> {
        let (ended, closest) = self.ended.get(key)?;
        (now.duration_since(*ended) < FRESH).then_some(closest)
    }

    /// Waits for the search that runs.
    pub fn wait(&mut self, key: RecordKey, waiter: Waiter) {
        self.waiting.entry(key).or_default().push(waiter);
    }

    /// A search has said its last word: `closest` have answered. Returns who waited for that.
    pub fn end(
        &mut self,
        query: QueryId,
        closest: Vec<PeerId>,
        now: Instant,
    ) -> Option<(RecordKey, Vec<Waiter>)> {
        let Search { key, .. } = self.searches.remove(&query)?;
        if self.ended.len() >= MAX {
            self.sweep(now);
        }
        if self.ended.len() >= MAX && !self.ended.contains_key(&key) {
            let oldest = self.ended.iter().min_by_key(|(_, (ended, _))| *ended);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.ended.remove(&oldest);
            }
        }
        self.ended.insert(key.clone(), (now, closest));
        let waiters = self.waiting.remove(&key).unwrap_or_default();
        Some((key, waiters))
    }

    /// `peer` was called and is not there any more.
    pub fn gone(&mut self, peer: &PeerId) {
        for (_, closest) in self.ended.values_mut() {
            closest.retain(|named| named != peer);
        }
    }

    pub fn sweep(&mut self, now: Instant) {
        self.ended
            .retain(|_, (ended, _)| now.duration_since(*ended) < FRESH);
    }
}

#[cfg(test)]
mod tests {
    use libp2p::kad;
    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;
    use crate::oci::{Digest, Repository, TagName};

    /// libp2p alone makes query ids.
    fn query_ids() -> impl FnMut() -> QueryId {
        let me = PeerId::random();
        let mut kad = kad::Behaviour::new(me, kad::store::MemoryStore::new(me));
        move || kad.get_closest_peers(PeerId::random())
    }

    #[test]
    fn a_content_is_met_about_where_its_providers_are_and_a_repository_nowhere_else() {
        let digest = Digest::sha256(b"layer");
        let content = place(&Meeting::Content(digest.clone()));
        assert_eq!(content, record_key(&Key::Content(digest)));

        let repository = Repository::new("docker.io", "library/nginx").unwrap();
        let met = place(&Meeting::Repository(repository.to_string()));
        let tag = Key::Tag(TagName::new(repository, "1").unwrap());
        assert_ne!(met, record_key(&tag));
        assert_ne!(
            met,
            place(&Meeting::Repository("docker.io/library/redis".into()))
        );
    }

    #[test]
    fn what_a_search_said_last_counts_for_a_moment() {
        let (mut meetings, mut id, now) = (Meetings::default(), query_ids(), Instant::now());
        let (key, query, closest) = (RecordKey::new(b"a"), id(), vec![PeerId::random()]);
        meetings.begin(query, key.clone(), now);
        assert_eq!(meetings.fresh(&key, now), None);

        meetings.end(query, closest.clone(), now).unwrap();

        let last = now + FRESH - Duration::from_millis(1);
        assert_eq!(meetings.fresh(&key, last), Some(&closest[..]));
        assert_eq!(meetings.fresh(&key, now + FRESH), None);
        assert_eq!(meetings.fresh(&RecordKey::new(b"b"), now), None);
        meetings.gone(&closest[0]);
        assert_eq!(meetings.fresh(&key, now), Some(&[][..]));
        meetings.sweep(now + FRESH);
        assert_eq!(meetings.fresh(&key, now), None);
    }

    #[test]
    fn whoever_waits_for_a_key_is_told_at_the_end_of_its_search_alone() {
        let (mut meetings, mut id, now) = (Meetings::default(), query_ids(), Instant::now());
        let (a, b) = (RecordKey::new(b"a"), RecordKey::new(b"b"));
        let (of_a, of_b) = (id(), id());
        meetings.begin(of_a, a.clone(), now);
        meetings.begin(of_b, b.clone(), now);
        let (waiter, mut heard) = oneshot::channel();
        assert!(meetings.is_searched(&a));
        meetings.wait(a.clone(), waiter);

        let (key, waiters) = meetings.end(of_b, Vec::new(), now).unwrap();
        assert_eq!((key, waiters.len()), (b, 0));
        assert_eq!(heard.try_recv(), Err(TryRecvError::Empty));
        let (key, waiters) = meetings.end(of_a, Vec::new(), now).unwrap();
        assert_eq!((key, waiters.len()), (a.clone(), 1));
        assert!(!meetings.is_searched(&a));
        assert!(meetings.end(of_a, Vec::new(), now).is_none());
    }

    #[test]
    fn a_search_has_so_much_time_and_no_more() {
        let (mut meetings, mut id, now) = (Meetings::default(), query_ids(), Instant::now());
        let query = id();
        assert_eq!(meetings.next(), None);

        meetings.begin(query, RecordKey::new(b"a"), now);

        let ms = Duration::from_millis;
        assert_eq!(meetings.next(), Some(now + LOOK));
        assert_eq!(meetings.due(now + LOOK - ms(1)), []);
        assert_eq!(meetings.due(now + LOOK), [query]);
        // Nobody answers.
        assert!(!meetings.progress(query, 0, now + CAP - ms(1)));
        assert!(meetings.progress(query, 0, now + CAP));
        // Somebody does, and then nobody.
        assert!(!meetings.progress(query, 3, now + CAP));
        assert!(!meetings.progress(query, 3, now + CAP + STUCK - ms(1)));
        assert!(meetings.progress(query, 3, now + CAP + STUCK));
        // They never end.
        assert!(!meetings.progress(query, 9, now + LONGEST - ms(1)));
        assert!(meetings.progress(query, 10, now + LONGEST));
        meetings.end(query, Vec::new(), now + LONGEST);
        assert_eq!(meetings.next(), None);
        assert_eq!(meetings.due(now + LONGEST), []);
        assert!(!meetings.progress(query, 11, now + LONGEST));
    }

    #[test]
    fn no_more_than_so_many_are_remembered_and_the_oldest_goes() {
        let (mut meetings, mut id, now) = (Meetings::default(), query_ids(), Instant::now());
        let key = |n: usize| RecordKey::new(&n.to_be_bytes());
        for n in 0..=MAX {
            let query = id();
            meetings.begin(query, key(n), now);
            meetings.end(query, Vec::new(), now + Duration::from_micros(n as u64));
        }

        assert_eq!(meetings.ended.len(), MAX);
        assert_eq!(meetings.fresh(&key(0), now), None);
        assert!(meetings.fresh(&key(1), now + FRESH / 2).is_some());
    }
}
