//! Telling the swarm what this node has, region by region (`regions`), and when again (`records`).
//!
//! A key whose time has come is searched for. What the search ends with says how large the region around it is, and all keys
//! of the region that are due soon go with it: a few searches more, and every node that is to keep some of them hears of
//! those in one go (`tell`).

use std::collections::{HashMap, HashSet};

use libp2p::PeerId;
use libp2p::core::Multiaddr;
use libp2p::kad::store::RecordStore as _;
use libp2p::kad::{ProviderRecord, QueryId, RecordKey};
use tokio::time::Instant;
use tracing::debug;

use super::super::records::TOGETHER;
use super::super::regions::Batch;
use super::super::tell::{self, Provider, Told};
use super::EventLoop;

/// Keys that are told together. Their twenty messages each are 1 MiB, and the searches for them are shared by enough.
const MOST: usize = 500;

/// Batches under way at once. A new image's ten keys lie in ten regions of a large swarm, and each takes a few round trips.
const AT_ONCE: usize = 4;

/// What is being announced.
#[derive(Default)]
pub(super) struct Announcing {
    next: tell::Id,
    batches: HashMap<tell::Id, Stage>,
    searches: HashMap<QueryId, tell::Id>,
}

enum Stage {
    /// The search around which the batch will be.
    First(RecordKey),
    /// Others are searched for, to know everybody in the region.
    Searching { batch: Batch, left: usize },
    /// Those who are to keep them hear of them.
    Telling(Telling),
}

struct Telling {
    keys: Vec<RecordKey>,
    /// By key: how many keep it.
    kept: Vec<usize>,
    /// By key: how many were to.
    wanted: Vec<usize>,
    left: HashMap<PeerId, Vec<usize>>,
}

impl Announcing {
    fn begin(&mut self, stage: Stage) -> tell::Id {
        self.next += 1;
        self.batches.insert(self.next, stage);
        self.next
    }

    pub(super) fn has_room(&self) -> bool {
        self.batches.len() < AT_ONCE
    }

    pub(super) fn is_search(&self, query: &QueryId) -> bool {
        self.searches.contains_key(query)
    }
}

impl EventLoop {
    /// An announcement made before the table is filled reaches nobody, or not the nearest.
    pub(super) fn can_announce(&self) -> bool {
        self.settled && self.table > 0 && self.announcing.has_room() && self.leaving.is_none()
    }

    pub(super) fn announce(&mut self, now: Instant) {
        while self.can_announce() {
            let Some(key) = self.schedule.due(now, 1).pop() else {
                return;
            };
            let id = self.announcing.begin(Stage::First(key.clone()));
            self.search(id, key);
        }
    }

    fn search(&mut self, id: tell::Id, key: RecordKey) {
        let kad = &mut self.swarm.behaviour_mut().kad;
        let query = kad.get_closest_peers(key.to_vec());
        self.announcing.searches.insert(query, id);
    }

    /// A search of a batch has ended with these.
    pub(super) fn announcement_found(
        &mut self,
        query: QueryId,
        nearest: Vec<(PeerId, Vec<Multiaddr>)>,
        now: Instant,
    ) {
        let Some(id) = self.announcing.searches.remove(&query) else {
            return;
        };
        match self.announcing.batches.remove(&id) {
            Some(Stage::First(key)) => match Batch::around(&key, nearest) {
                Some(batch) => self.gather(id, key, batch, now),
                None => self.not_announced(&[key], now),
            },
            Some(Stage::Searching { mut batch, left }) => {
                batch.found(nearest);
                self.searched(id, batch, left - 1, now);
            }
            Some(Stage::Telling(_)) | None => {}
        }
    }

    /// Takes along whatever lies in the region and is due soon.
    fn gather(&mut self, id: tell::Id, key: RecordKey, mut batch: Batch, now: Instant) {
        let fits = |key: &RecordKey| batch.has_place_for(key);
        let others = self.schedule.beside(fits, now + TOGETHER, MOST - 1);
        batch.keys = std::iter::once(key).chain(others).collect();
        let samples = batch.samples();
        let left = samples.len();
        for sample in samples {
            self.search(id, sample);
        }
        self.searched(id, batch, left, now);
    }

    fn searched(&mut self, id: tell::Id, batch: Batch, left: usize, now: Instant) {
        if left > 0 {
            let stage = Stage::Searching { batch, left };
            self.announcing.batches.insert(id, stage);
        } else {
            self.tell(id, batch, now);
        }
    }

    fn tell(&mut self, id: tell::Id, mut batch: Batch, now: Instant) {
        // Withdrawn meanwhile: others would be sent here in vain for as long as a record lives.
        batch.keys.retain(|key| self.schedule.has(key));
        let (me, policy) = (*self.swarm.local_peer_id(), self.policy);
        let own: Vec<Multiaddr> = self.swarm.external_addresses().cloned().collect();
        let provider = Provider::new(me, &own);
        let behaviour = self.swarm.behaviour_mut();
        let store = behaviour.kad.store_mut();
        for key in &batch.keys {
            // What is its own it never refuses.
            let _ = store.add_provider(ProviderRecord::new(key.clone(), me, own.clone()));
        }
        let mut telling = Telling {
            kept: vec![0; batch.keys.len()],
            wanted: vec![0; batch.keys.len()],
            keys: Vec::new(),
            left: HashMap::new(),
        };
        for share in batch.shares() {
            let mut messages = Vec::new();
            for at in &share.keys {
                telling.wanted[*at] += 1;
                tell::write_record(&batch.keys[*at], &provider, &mut messages);
            }
            let mut addresses = share.addresses;
            addresses.retain(|address| policy.socket(address).is_some());
            behaviour.kad.ran_with(share.peer, now);
            let tell = &mut behaviour.tell;
            tell.tell(id, share.peer, addresses, messages.into());
            telling.left.insert(share.peer, share.keys);
        }
        telling.keys = batch.keys;
        if telling.left.is_empty() {
            self.not_announced(&telling.keys, now);
        } else {
            let stage = Stage::Telling(telling);
            self.announcing.batches.insert(id, stage);
        }
    }

    /// A peer has heard what it is to keep, or not.
    pub(super) fn told(&mut self, told: &Told, now: Instant) {
        let Some(Stage::Telling(telling)) = self.announcing.batches.get_mut(&told.id) else {
            return;
        };
        if !told.ok {
            debug!(peer = %told.peer, "a peer was not told what it is to keep");
        }
        let keys = telling.left.remove(&told.peer).unwrap_or_default();
        for at in keys.into_iter().filter(|_| told.ok) {
            telling.kept[at] += 1;
        }
        if !telling.left.is_empty() {
            return;
        }
        let Some(Stage::Telling(telling)) = self.announcing.batches.remove(&told.id) else {
            return;
        };
        // Half of them are enough to be found by everybody who asks three at a time; fewer are tried again soon.
        let counts = telling.kept.iter().zip(&telling.wanted);
        let is_kept: Vec<bool> = counts.map(|(kept, wanted)| 2 * kept >= *wanted).collect();
        let (kept, lost): (Vec<_>, Vec<_>) = telling
            .keys
            .into_iter()
            .zip(is_kept)
            .partition(|(_, is_kept)| *is_kept);
        let kept: Vec<RecordKey> = kept.into_iter().map(|(key, _)| key).collect();
        let lost: Vec<RecordKey> = lost.into_iter().map(|(key, _)| key).collect();
        self.metrics.announced(true, kept.len());
        self.schedule.renewed(&kept, now, &mut self.rng);
        self.not_announced(&lost, now);
    }

    fn not_announced(&mut self, keys: &[RecordKey], now: Instant) {
        if !keys.is_empty() {
            debug!(keys = keys.len(), "not announced, for nobody answered");
            self.metrics.announced(false, keys.len());
        }
        for key in keys {
            self.schedule.failed(key, now, &mut self.rng);
        }
    }

    /// Nothing more is announced, and what is under way is not heard of again.
    pub(super) fn stop_announcing(&mut self) {
        let behaviour = self.swarm.behaviour_mut();
        behaviour.tell.stop();
        let searches: HashSet<QueryId> = self.announcing.searches.keys().copied().collect();
        for mut query in behaviour.kad.iter_queries_mut() {
            if searches.contains(&query.id()) {
                query.finish();
            }
        }
        self.announcing = Announcing::default();
    }
}
