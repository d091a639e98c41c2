//! Peers by a small number each, and how much each has told.

use std::collections::{HashMap, HashSet};

use libp2p::{Multiaddr, PeerId};

use super::MAX_PEERS;

/// What each may keep so that about `excess` of all go, of those who have more.
pub(super) fn level(mut counts: Vec<u32>, excess: usize) -> u32 {
    counts.sort_unstable_by(|a, b| b.cmp(a));
    let mut sum = 0;
    for (n, count) in counts.iter().enumerate() {
        sum += *count as usize;
        let share = sum.saturating_sub(excess) / (n + 1);
        let next = counts.get(n + 1).copied().unwrap_or(0);
        if sum >= excess && share >= next as usize {
            return u32::try_from(share).unwrap_or(u32::MAX);
        }
    }
    0
}

/// Peers by a small number, each with its newest addresses.
#[derive(Default)]
pub(super) struct Interned {
    pub slots: HashMap<PeerId, u32>,
    pub peers: Vec<Option<(PeerId, Vec<Multiaddr>)>>,
    /// How many records each has in the store.
    pub records: Vec<u32>,
    free: Vec<u32>,
}

impl Interned {
    /// The newest addresses count for every key of the peer; none at all are no news.
    pub fn intern(&mut self, peer: PeerId, addresses: Vec<Multiaddr>) -> Option<u32> {
        if let Some(slot) = self.slots.get(&peer) {
            if let Some(Some((_, known))) = self.peers.get_mut(*slot as usize)
                && !addresses.is_empty()
            {
                *known = addresses;
            }
            return Some(*slot);
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.peers.len() < MAX_PEERS => {
                self.peers.push(None);
                self.records.push(0);
                u32::try_from(self.peers.len() - 1).ok()?
            }
            None => return None,
        };
        self.slots.insert(peer, slot);
        self.peers[slot as usize] = Some((peer, addresses));
        Some(slot)
    }

    pub fn slot(&self, peer: &PeerId) -> Option<u32> {
        self.slots.get(peer).copied()
    }

    pub fn get(&self, slot: u32) -> Option<&(PeerId, Vec<Multiaddr>)> {
        self.peers.get(slot as usize)?.as_ref()
    }

    pub fn addresses(&self, peer: &PeerId) -> &[Multiaddr] {
        let known = self.slot(peer).and_then(|slot| self.get(slot));
        known.map_or(&[], |(_, addresses)| addresses)
    }

    pub fn keep(&mut self, used: &HashSet<u32>) {
        self.slots.retain(|_, slot| {
            let keep = used.contains(slot);
            if !keep {
                self.peers[*slot as usize] = None;
                self.free.push(*slot);
            }
            keep
        });
    }
}
