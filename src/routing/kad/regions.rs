//! Who is to hear of many keys at once.
//!
//! The twenty nodes nearest to a key are those nearest to its neighbours, too. So a handful of searches tells for all keys
//! of a region of the key space what a search for each would: who are the twenty nearest of each. (The idea is that of
//! SweepingProvider, go-libp2p-kad-dht 0.34.)
//!
//! A region is what the twenty nearest nodes of one of its keys have in common: so many leading bits of their positions. It
//! has twenty nodes or somewhat more, however large the swarm is, and nobody has to guess how large. One search in each of
//! its quarters finds all of them, whether or not there is a key of ours.
//!
//! No IO and no swarm here.

use std::collections::HashMap;

use libp2p::kad::RecordKey;
use libp2p::{Multiaddr, PeerId};
use sha2::{Digest as _, Sha256};

/// Nodes that keep the record of a key: Kademlia's k, as Spegel's nodes have it.
const KEEPERS: usize = 20;

/// Below a region: two bits.
const QUARTER: u32 = 2;

/// Where a key or a node is: SHA-256 of its bytes, as libp2p in Rust and Go have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position([u8; 32]);

impl Position {
    pub fn of_key(key: &RecordKey) -> Self {
        Self(Sha256::digest(key.as_ref()).into())
    }

    pub fn of_peer(peer: &PeerId) -> Self {
        Self(Sha256::digest(peer.to_bytes()).into())
    }

    /// Leading bits that two have in common.
    pub fn common(&self, other: &Self) -> u32 {
        let distance = self.distance(other);
        let zeros = distance.iter().take_while(|byte| **byte == 0).count();
        let last = distance.get(zeros).map_or(0, |byte| byte.leading_zeros());
        zeros as u32 * 8 + last
    }

    fn distance(&self, other: &Self) -> [u8; 32] {
        std::array::from_fn(|at| self.0[at] ^ other.0[at])
    }

    /// The first `bits` of it, 32 at the most.
    fn prefix(&self, bits: u32) -> u32 {
        let [a, b, c, d, ..] = self.0;
        let first = u32::from_be_bytes([a, b, c, d]);
        first.checked_shr(32 - bits.min(32)).unwrap_or(0)
    }
}

/// Some keys of one region on their way to those who are to keep them.
#[derive(Debug)]
pub struct Batch {
    /// Where the first search was for; the region is around it.
    around: Position,
    depth: u32,
    pub keys: Vec<RecordKey>,
    found: HashMap<PeerId, (Position, Vec<Multiaddr>)>,
    /// Whether there are no others than those who were found.
    is_everybody: bool,
}

/// For one peer: the keys that it is to keep.
#[derive(Debug)]
pub struct Share {
    pub peer: PeerId,
    pub addresses: Vec<Multiaddr>,
    /// By their place in [`Batch::keys`].
    pub keys: Vec<usize>,
}

impl Batch {
    /// After a search for `key` that ended with the `nearest` nodes to it. None where nobody answered.
    pub fn around(key: &RecordKey, nearest: Vec<(PeerId, Vec<Multiaddr>)>) -> Option<Self> {
        let around = Position::of_key(key);
        let common = |peer: &PeerId| around.common(&Position::of_peer(peer));
        let is_everybody = nearest.len() < KEEPERS;
        let depth = nearest.iter().map(|(peer, _)| common(peer)).min()?;
        let mut batch = Self {
            around,
            depth: if is_everybody { 0 } else { depth },
            keys: Vec::new(),
            found: HashMap::new(),
            is_everybody,
        };
        batch.found(nearest);
        Some(batch)
    }

    /// Whether a key may go with this batch.
    pub fn has_place_for(&self, key: &RecordKey) -> bool {
        self.around.common(&Position::of_key(key)) >= self.depth
    }

    /// What is still to be searched for, so that all who matter are found: few keys themselves, else one place in each
    /// quarter of the region but the one in which the first search was.
    pub fn samples(&self) -> Vec<RecordKey> {
        if self.is_everybody {
            return Vec::new();
        }
        if self.keys.len() <= 1 << QUARTER {
            let others = self.keys.iter();
            let others = others.filter(|key| Position::of_key(key) != self.around);
            return others.cloned().collect();
        }
        let bits = self.depth + QUARTER;
        let done = self.around.prefix(bits);
        let first = done >> QUARTER << QUARTER;
        let quarters = (first..first + (1 << QUARTER)).filter(|quarter| *quarter != done);
        quarters.filter_map(|prefix| within(prefix, bits)).collect()
    }

    /// Another search has ended with these.
    pub fn found(&mut self, nearest: Vec<(PeerId, Vec<Multiaddr>)>) {
        for (peer, addresses) in nearest {
            let position = Position::of_peer(&peer);
            self.found.entry(peer).or_insert((position, addresses));
        }
    }

    /// Who is to hear of which of the keys.
    pub fn shares(&self) -> Vec<Share> {
        let mut shares: HashMap<&PeerId, Vec<usize>> = HashMap::new();
        for (at, key) in self.keys.iter().enumerate() {
            let key = Position::of_key(key);
            let mut nearest: Vec<_> = self
                .found
                .iter()
                .map(|(peer, (position, _))| (key.distance(position), peer))
                .collect();
            if nearest.len() > KEEPERS {
                nearest.select_nth_unstable(KEEPERS - 1);
                nearest.truncate(KEEPERS);
            }
            for (_, peer) in nearest {
                shares.entry(peer).or_default().push(at);
            }
        }
        let share = |(peer, keys): (&PeerId, Vec<usize>)| Share {
            peer: *peer,
            addresses: self.found[peer].1.clone(),
            keys,
        };
        shares.into_iter().map(share).collect()
    }
}

/// A key whose position begins with these bits. Keys are hashed to their positions, so one is tried after the other: 2,000
/// hashes in a swarm of ten thousand. None beyond any swarm.
fn within(prefix: u32, bits: u32) -> Option<RecordKey> {
    const TRIES: u32 = 1 << 20;
    let mut keys = (0..TRIES).map(|n| RecordKey::new(&n.to_be_bytes()));
    keys.find(|key| Position::of_key(key).prefix(bits) == prefix)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use libp2p::multihash::Multihash;
    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::routing::kad::records::record_key_of;

    fn keys(count: usize) -> Vec<RecordKey> {
        (0..count)
            .map(|n| record_key_of(&format!("layer {n}")))
            .collect()
    }

    fn peers(count: usize) -> Vec<PeerId> {
        // Always the same: by chance one in some hundred swarms is more lopsided than is asked for below.
        let peer = |n: usize| {
            let digest = Sha256::digest(n.to_be_bytes());
            let sha2_256 = Multihash::wrap(0x12, &digest).expect("32 bytes");
            PeerId::from_multihash(sha2_256).expect("a peer id")
        };
        (0..count).map(peer).collect()
    }

    /// What a search ends with.
    fn nearest(peers: &[PeerId], key: &RecordKey) -> Vec<(PeerId, Vec<Multiaddr>)> {
        let key = Position::of_key(key);
        let mut sorted = peers.to_vec();
        sorted.sort_by_key(|peer| key.distance(&Position::of_peer(peer)));
        let nearest = sorted.into_iter().take(KEEPERS);
        nearest.map(|peer| (peer, vec![])).collect()
    }

    /// All keys told in batches: how many of the records are where they should be, in all, and how many searches it took.
    fn tell(peers: &[PeerId], mut keys: Vec<RecordKey>) -> (usize, usize, usize) {
        let (mut right, mut all, mut searches) = (0, 0, 0);
        while let Some(first) = keys.pop() {
            let mut batch = Batch::around(&first, nearest(peers, &first)).unwrap();
            let together = keys.extract_if(.., |key| batch.has_place_for(key));
            batch.keys = std::iter::once(first).chain(together).collect();
            searches += 1;
            for sample in batch.samples() {
                batch.found(nearest(peers, &sample));
                searches += 1;
            }
            let shares = batch.shares();
            for (at, key) in batch.keys.iter().enumerate() {
                let keepers = shares.iter().filter(|share| share.keys.contains(&at));
                let keepers: HashSet<PeerId> = keepers.map(|share| share.peer).collect();
                let wanted = nearest(peers, key);
                assert_eq!(keepers.len(), wanted.len(), "each key has its keepers");
                all += wanted.len();
                right += wanted
                    .iter()
                    .filter(|(peer, _)| keepers.contains(peer))
                    .count();
            }
        }
        (right, all, searches)
    }

    #[test]
    fn every_record_goes_where_a_search_of_its_own_would_bring_it() {
        // nodes, keys, searches at the most
        for (nodes, count, most) in [
            (1, 50, 1),
            (3, 100, 1),
            (19, 200, 1),
            (20, 500, 4),
            (49, 1000, 16),
            (200, 1000, 64),
            (1000, 2000, 300),
            (1000, 200, 200),
        ] {
            let (right, all, searches) = tell(&peers(nodes), keys(count));
            // Where chance has put more than twenty into a quarter, some of them are not found.
            assert!(right * 1000 >= all * 998, "{right} of {all}, {nodes} nodes");
            assert!(searches <= most, "{searches} searches, {nodes} nodes");
        }
    }

    #[test]
    fn few_keys_are_searched_for_one_by_one_and_are_exact() {
        for nodes in [30, 100, 1000] {
            for count in [1, 2, 4] {
                let (right, all, searches) = tell(&peers(nodes), keys(count));
                assert_eq!((right, searches), (all, count), "{nodes} nodes");
            }
        }
    }

    #[test]
    fn nobody_who_answers_is_no_batch() {
        assert!(Batch::around(&keys(1)[0], vec![]).is_none());
    }

    #[test]
    fn positions_share_their_leading_bits() {
        let zero = Position([0; 32]);
        let mut one = [0; 32];
        one[2] = 0b0001_0000;
        assert_eq!(zero.common(&Position(one)), 19);
        assert_eq!(zero.common(&zero), 256);
        assert_eq!(Position([0xff; 32]).common(&zero), 0);
        assert_eq!(Position([0xa5; 32]).prefix(4), 0xa);
        assert_eq!(Position([0xa5; 32]).prefix(0), 0);
        let key = RecordKey::new(b"key");
        let theirs = libp2p::kad::KBucketKey::from(key.clone());
        let peer = PeerId::random();
        let distance = theirs.distance(&libp2p::kad::KBucketKey::from(peer));
        let common = Position::of_key(&key).common(&Position::of_peer(&peer));
        assert_eq!(distance.ilog2(), Some(255 - common));
    }
}
