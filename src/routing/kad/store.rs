//! Who provides what, as far as this node has been told, and what it provides itself.
//!
//! libp2p's own store counts local and remote keys together, drops this node's own record when twenty others are there
//! first, and always answers with the same twenty. Here the two kinds are apart, peers are interned (a node names the
//! same few hundred peers for thousands of keys), and an answer is a random sample, so that a popular layer is not
//! fetched from the first twenty nodes only.
//!
//! A peer that refused a connection is *gone*: its records stay and are not shown until it is heard of again. One that
//! said that it leaves is gone until it connects again: what else is heard of it was said before. Time is an argument
//! except where libp2p's trait leaves no room for it.

mod interned;

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

use libp2p::kad::store::{Error, RecordStore, Result};
use libp2p::kad::{ProviderRecord, Record, RecordKey};
use libp2p::{Multiaddr, PeerId};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use tokio::time::Instant;

use super::addresses::Policy;
use interned::{Interned, level};

/// What an answer holds: Kademlia's replication factor, which is also what libp2p cuts the answer down to.
const ANSWER: usize = 20;

/// Kept so that different askers can be given different twenty. Who has been silent longest gives way.
pub const MAX_PER_KEY: usize = 64;

/// A node of a 200-node cluster with 5,000 keys each keeps 100,000 if no two nodes held the same.
const MAX_REMOTE_KEYS: usize = 1 << 17;

/// A key with one record takes 214 bytes, a further record of it 24 to 48 (`memory` measures it): 200,000 records take 7 MiB
/// at fifty to a key, 11 at ten, 24 at two. With both bounds the store stays under 48 MiB, whoever fills it.
const MAX_REMOTE_RECORDS: usize = 1 << 19;

/// When the store is full, as much of it is freed at once: to look through it takes tens of milliseconds, and is worth
/// thousands of records that way.
const FREED: usize = 16;

/// Where that frees nothing (everybody tells of the same keys) it is not tried again before so long.
const CROWDED_FOR: Duration = Duration::from_secs(10);

/// Far more than a cluster has nodes: a bound for a flood of made-up names.
const MAX_PEERS: usize = 1 << 14;

/// A node has an IPv4 and an IPv6 address and perhaps two networks; the rest is noise, and every address is sent to
/// every asker within libp2p's 16 KiB.
pub const MAX_ADDRESSES: usize = 8;

/// A refused peer is shown again after this long even if nothing was heard of it: a pod that was restarted is not
/// forgotten for a record's whole life because of one refusal.
pub const GONE_FOR: Duration = Duration::from_secs(60);

/// A peer that left is shown again after this long even if it has not connected here: in a large cluster a node that was
/// restarted may find what it needs elsewhere, and within this time it has announced all it holds. One that left for good
/// is then refused, or its machine is silent, once.
pub const LEFT_FOR: Duration = Duration::from_secs(5 * 60);

/// Provider records only: PUT_VALUE is refused.
pub struct Store {
    me: PeerId,
    own_addresses: Vec<Multiaddr>,
    policy: Policy,
    /// 331 bytes each with its place in the schedule (`memory` measures it): 20,000 take 7 MiB.
    local: HashSet<RecordKey>,
    remote: HashMap<RecordKey, Vec<Told>>,
    /// In `remote`, of all keys together.
    records: usize,
    peers: Interned,
    /// Until then nobody makes room for others.
    crowded: Option<Instant>,
    gone: HashMap<PeerId, Gone>,
    /// The trait asks for providers through a shared reference.
    rng: RefCell<StdRng>,
}

#[derive(Clone, Copy)]
struct Gone {
    until: Instant,
    /// It said so itself.
    left: bool,
}

#[derive(Clone, Copy)]
struct Told {
    peer: u32,
    until: Instant,
}

impl Store {
    pub fn new(me: PeerId, policy: Policy, rng: StdRng) -> Self {
        Self {
            me,
            own_addresses: Vec::new(),
            policy,
            local: HashSet::new(),
            remote: HashMap::new(),
            records: 0,
            peers: Interned::default(),
            crowded: None,
            gone: HashMap::new(),
            rng: RefCell::new(rng),
        }
    }

    /// What this node answers for itself from now on. Left to libp2p, that would be every interface it listens on,
    /// loopback among them.
    pub fn announce(&mut self, own: Vec<Multiaddr>) {
        self.own_addresses = own;
    }

    /// What this node provides.
    pub fn own(&self) -> impl Iterator<Item = &RecordKey> {
        self.local.iter()
    }

    /// How many records others have told.
    pub fn remote(&self) -> usize {
        self.records
    }

    /// Drops what has expired. Milliseconds for 20,000 keys.
    pub fn sweep(&mut self, now: Instant) {
        self.remote.retain(|_, told| {
            told.retain(|told| told.until > now);
            !told.is_empty()
        });
        self.peers.records.fill(0);
        for told in self.remote.values().flatten() {
            self.peers.records[told.peer as usize] += 1;
        }
        self.records = self.remote.values().map(Vec::len).sum();
        // The table alone is half of what single records cost.
        if self.remote.len() < self.remote.capacity() / 4 {
            self.remote.shrink_to(2 * self.remote.len());
        }
        let used: HashSet<u32> = self.remote.values().flatten().map(|t| t.peer).collect();
        self.peers.keep(&used);
        self.gone.retain(|_, gone| gone.until > now);
    }

    /// `peer` refused a connection.
    pub fn gone(&mut self, peer: PeerId, now: Instant) {
        let until = now + GONE_FOR;
        if let Some(known) = self.gone.get_mut(&peer) {
            known.until = known.until.max(until);
        } else {
            self.hide(peer, Gone { until, left: false });
        }
    }

    /// `peer` said that it leaves.
    pub fn left(&mut self, peer: PeerId, now: Instant) {
        let until = now + LEFT_FOR;
        self.hide(peer, Gone { until, left: true });
    }

    fn hide(&mut self, peer: PeerId, gone: Gone) {
        if self.gone.len() < MAX_PEERS || self.gone.contains_key(&peer) {
            self.gone.insert(peer, gone);
        }
    }

    /// A new connection with `peer` stands: it is back, whatever it said.
    pub fn met(&mut self, peer: &PeerId) {
        self.gone.remove(peer);
    }

    /// `peer` gave a sign of life, perhaps its last.
    pub fn heard(&mut self, peer: &PeerId) {
        if !self.has_left(peer) {
            self.gone.remove(peer);
        }
    }

    /// Whether `peer` has said that it leaves, and not come back since.
    pub fn has_left(&self, peer: &PeerId) -> bool {
        self.gone.get(peer).is_some_and(|gone| gone.left)
    }

    /// How many peers are gone.
    pub fn gone_now(&self, now: Instant) -> usize {
        self.gone.values().filter(|gone| gone.until > now).count()
    }

    pub fn is_gone(&self, peer: &PeerId, now: Instant) -> bool {
        self.gone.get(peer).is_some_and(|gone| gone.until > now)
    }

    /// Where `peer` said it is when it last provided something.
    pub fn addresses(&self, peer: &PeerId) -> &[Multiaddr] {
        self.peers.addresses(peer)
    }

    fn insert(&mut self, record: ProviderRecord, now: Instant) -> Result<()> {
        if record.provider == self.me {
            self.local.insert(record.key);
            return Ok(());
        }
        self.heard(&record.provider);
        let mut addresses = record.addresses;
        addresses.retain(|address| self.policy.socket(address).is_some());
        addresses.truncate(MAX_ADDRESSES);
        let Some(peer) = self.peers.intern(record.provider, addresses) else {
            return Err(Error::MaxProvidedKeys);
        };
        let until = match record.expires {
            Some(until) => until.into(),
            None => now + super::records::RECORD_LIFE,
        };
        if let Some(told) = self.remote.get_mut(&record.key) {
            if let Some(known) = told.iter_mut().find(|told| told.peer == peer) {
                known.until = until;
                return Ok(());
            }
            if told.len() >= MAX_PER_KEY
                && let Some(oldest) = told.iter_mut().min_by_key(|told| told.until)
            {
                self.peers.records[oldest.peer as usize] -= 1;
                self.peers.records[peer as usize] += 1;
                *oldest = Told { peer, until };
                return Ok(());
            }
        }
        if !self.has_room_for(&record.key) && !self.make_room_for(&record.key, peer, now) {
            return Err(Error::MaxProvidedKeys);
        }
        // Most keys have one provider, and a Vec left to itself begins with four.
        let told = self.remote.entry(record.key);
        let told = told.or_insert_with(|| Vec::with_capacity(1));
        told.push(Told { peer, until });
        self.peers.records[peer as usize] += 1;
        self.records += 1;
        Ok(())
    }

    fn has_room_for(&self, key: &RecordKey) -> bool {
        self.records < MAX_REMOTE_RECORDS
            && (self.remote.len() < MAX_REMOTE_KEYS || self.remote.contains_key(key))
    }

    /// The store is full. Whoever has told less than the others on average gets in, and those who have told the most are cut
    /// down for it; so one who tells of a million keys has them at nobody's expense.
    fn make_room_for(&mut self, key: &RecordKey, peer: u32, now: Instant) -> bool {
        let of_all = self.records / self.peers.slots.len().max(1);
        if self.peers.records[peer as usize] as usize >= of_all
            || self.crowded.is_some_and(|until| now < until)
        {
            return false;
        }
        // Each of the greedy may share its keys with others, and then more must go before a key does.
        for part in [8, 4, 2] {
            self.cut(self.records / part);
            if self.records <= MAX_REMOTE_RECORDS - MAX_REMOTE_RECORDS / FREED
                && self.remote.len() <= MAX_REMOTE_KEYS - MAX_REMOTE_KEYS / FREED
            {
                break;
            }
        }
        if !self.has_room_for(key) {
            self.crowded = Some(now + CROWDED_FOR);
            return false;
        }
        true
    }

    /// Takes about so many records from those who have told the most, until none of them has more than another one. All lose
    /// the same keys, as far as they have told of the same ones.
    fn cut(&mut self, excess: usize) {
        let share = level(self.peers.records.clone(), excess);
        let beyond = |records: &u32| records.saturating_sub(share);
        let mut over: Vec<u32> = self.peers.records.iter().map(beyond).collect();
        let (counts, records) = (&mut self.peers.records, &mut self.records);
        self.remote.retain(|_, told| {
            told.retain(|told| {
                let slot = told.peer as usize;
                let goes = over[slot] > 0;
                if goes {
                    over[slot] -= 1;
                    counts[slot] -= 1;
                    *records -= 1;
                }
                !goes
            });
            !told.is_empty()
        });
    }

    /// A random [`ANSWER`] of the peers that provide `key` and are not gone. This node itself is always among them:
    /// what it says of itself is the surest of all.
    fn answer(&self, key: &RecordKey, now: Instant) -> Vec<ProviderRecord> {
        let mut records: Vec<ProviderRecord> = self
            .remote
            .get(key)
            .into_iter()
            .flatten()
            .filter(|told| told.until > now)
            .filter_map(|told| {
                let (provider, addresses) = self.peers.get(told.peer)?;
                (!self.is_gone(provider, now)).then(|| ProviderRecord {
                    key: key.clone(),
                    provider: *provider,
                    expires: Some(told.until.into_std()),
                    addresses: addresses.clone(),
                })
            })
            .collect();
        let mut rng = self.rng.borrow_mut();
        records.shuffle(&mut *rng);
        let own = self.local.get(key).map(|key| self.own_record(key));
        records.truncate(ANSWER - usize::from(own.is_some()));
        records.extend(own);
        records.shuffle(&mut *rng);
        records
    }

    fn own_record(&self, key: &RecordKey) -> ProviderRecord {
        ProviderRecord::new(key.clone(), self.me, self.own_addresses.clone())
    }

    fn forget(&mut self, key: &RecordKey, provider: &PeerId) {
        if *provider == self.me {
            self.local.remove(key);
        } else if let Some(peer) = self.peers.slot(provider)
            && let Some(told) = self.remote.get_mut(key)
        {
            let before = told.len();
            told.retain(|told| told.peer != peer);
            let gone = before - told.len();
            self.records -= gone;
            self.peers.records[peer as usize] -= gone as u32;
            if told.is_empty() {
                self.remote.remove(key);
            }
        }
    }
}

impl RecordStore for Store {
    type RecordsIter<'a> = std::iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = Box<dyn Iterator<Item = Cow<'a, ProviderRecord>> + 'a>;

    fn get(&self, _: &RecordKey) -> Option<Cow<'_, Record>> {
        None
    }

    fn put(&mut self, _: Record) -> Result<()> {
        Err(Error::MaxRecords)
    }

    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        std::iter::empty()
    }

    fn add_provider(&mut self, record: ProviderRecord) -> Result<()> {
        self.insert(record, Instant::now())
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        self.answer(key, Instant::now())
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        let own = self.own();
        Box::new(own.map(|key| Cow::Owned(self.own_record(key))))
    }

    fn remove_provider(&mut self, key: &RecordKey, provider: &PeerId) {
        self.forget(key, provider);
    }
}

#[cfg(test)]
mod memory;
#[cfg(test)]
mod tests;
