//! Kademlia's lookups in a model: positions, tables whose buckets are full, answers of the twenty nearest, and steps of one
//! round trip each. It has no CPU to wait for, so it says what a lookup comes to in swarms that are too large for one
//! machine. What it says of smaller ones stands beside what was measured there.
//!
//! Its network is that of the crowds (examples/crowd): every message takes half of a round trip, whoever sends it.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::seq::IteratorRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde::{Deserialize, Serialize};

/// Kademlia's k: nodes in a bucket, in an answer, and that keep a record.
const K: usize = 20;

/// How many are asked side by side on the way, and when nobody nearer was named of late.
#[derive(Clone, Copy, Debug)]
pub struct Parallel {
    pub way: usize,
    pub end: usize,
}

/// A position. 64 bits part any swarm that fits a machine.
type Position = u64;

pub struct Model {
    /// In order.
    positions: Vec<Position>,
    /// Of each node, all buckets together.
    tables: Vec<Vec<Position>>,
    rng: StdRng,
}

/// What one lookup came to.
#[derive(Clone, Copy, Debug, Default)]
struct Walk {
    /// Until somebody named who holds it: steps, and requests sent.
    hit: Option<(u32, u32)>,
    steps: u32,
    requests: u32,
}

/// Means of many lookups in one swarm.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Modelled {
    pub nodes: usize,
    pub table: f64,
    pub hit_steps: f64,
    pub hit_requests: f64,
    pub miss_steps: f64,
    pub miss_requests: f64,
}

impl Model {
    pub fn new(nodes: usize, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut positions: Vec<Position> = (0..nodes).map(|_| rng.random()).collect();
        positions.sort_unstable();
        positions.dedup();
        let tables = positions
            .iter()
            .map(|me| table(&positions, *me, &mut rng))
            .collect();
        Self {
            positions,
            tables,
            rng,
        }
    }

    /// Lookups of random keys by random nodes; the twenty nearest keep what is found.
    pub fn lookups(&mut self, count: usize, parallel: Parallel) -> Modelled {
        let (mut found, mut all) = ([0u32; 3], [0u32; 2]);
        for _ in 0..count {
            let (key, asker) = (
                self.rng.random(),
                self.rng.random_range(0..self.positions.len()),
            );
            let keepers = nearest(&self.positions, key, K);
            // Who keeps the record itself asks nobody.
            let (steps, requests) = match keepers.contains(&self.positions[asker]) {
                true => (0, 0),
                false => self
                    .walk(asker, key, &keepers, parallel)
                    .hit
                    .unwrap_or_default(),
            };
            found = [found[0] + 1, found[1] + steps, found[2] + requests];
            let walk = self.walk(asker, key, &[], parallel);
            all = [all[0] + walk.steps, all[1] + walk.requests];
        }
        let mean = |sum: u32| f64::from(sum) / count.max(1) as f64;
        let entries: usize = self.tables.iter().map(Vec::len).sum();
        Modelled {
            nodes: self.positions.len(),
            table: entries as f64 / self.positions.len() as f64,
            hit_steps: mean(found[1]),
            hit_requests: mean(found[2]),
            miss_steps: mean(all[0]),
            miss_requests: mean(all[1]),
        }
    }

    fn table_of(&self, node: Position) -> &[Position] {
        let at = self.positions.binary_search(&node);
        at.map_or(&[], |at| &self.tables[at])
    }

    /// libp2p's way: the nearest who was not asked, so many at once; when as many answers in a row brought nobody who is
    /// among the twenty nearest, all twenty; the end when the twenty nearest have answered.
    fn walk(&self, asker: usize, key: Position, keepers: &[Position], parallel: Parallel) -> Walk {
        let me = self.positions[asker];
        // By distance: whether it was asked.
        let mut known: BTreeMap<Position, bool> = nearest(&self.tables[asker], key, K)
            .into_iter()
            .map(|node| (node ^ key, false))
            .collect();
        let (mut walk, mut in_vain) = (Walk::default(), 0);
        loop {
            let at_once = if in_vain >= parallel.way {
                parallel.end
            } else {
                parallel.way
            };
            let asked: Vec<Position> = known
                .iter()
                .take(K)
                .filter(|(_, asked)| !**asked)
                .map(|(distance, _)| *distance)
                .take(at_once)
                .collect();
            if asked.is_empty() {
                return walk;
            }
            walk.steps += 1;
            walk.requests += asked.len() as u32;
            for distance in asked {
                let node = distance ^ key;
                known.insert(distance, true);
                if keepers.contains(&node) && walk.hit.is_none() {
                    walk.hit = Some((walk.steps, walk.requests));
                }
                let furthest = known.keys().nth(K - 1).or(known.keys().last()).copied();
                let mut is_progress = known.len() < K;
                for named in nearest(self.table_of(node), key, K) {
                    let at = named ^ key;
                    if named != me && !known.contains_key(&at) {
                        known.insert(at, false);
                        is_progress |= furthest.is_some_and(|furthest| at < furthest);
                    }
                }
                in_vain = if is_progress { 0 } else { in_vain + 1 };
            }
        }
    }
}

/// The `count` of `nodes` nearest to `key`.
fn nearest(nodes: &[Position], key: Position, count: usize) -> Vec<Position> {
    let mut nearest = nodes.to_vec();
    if nearest.len() > count {
        nearest.select_nth_unstable_by_key(count - 1, |node| node ^ key);
        nearest.truncate(count);
    }
    nearest
}

/// Of every bucket up to twenty, whoever they are.
fn table(sorted: &[Position], me: Position, rng: &mut StdRng) -> Vec<Position> {
    let mut table = Vec::new();
    let mut of_prefix = sorted;
    for bit in (0..64).rev() {
        // Those who share all bits before this one with us, parted by it.
        let middle = of_prefix.partition_point(|node| node >> bit & 1 == 0);
        let (zeros, ones) = of_prefix.split_at(middle);
        let (ours, others) = if me >> bit & 1 == 0 {
            (zeros, ones)
        } else {
            (ones, zeros)
        };
        table.extend(others.iter().copied().sample(rng, K));
        of_prefix = ours;
        if ours.len() <= 1 {
            break;
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIBP2P: Parallel = Parallel { way: 3, end: K };

    #[test]
    fn a_table_has_all_of_a_small_swarm_and_some_of_a_large_one() {
        for (nodes, least, most) in [(15, 14.0, 14.0), (100, 40.0, 80.0), (2000, 130.0, 180.0)] {
            let entries = Model::new(nodes, 1).lookups(1, LIBP2P).table;
            assert!(
                (least..=most).contains(&entries),
                "{nodes} nodes: {entries}"
            );
        }
    }

    #[test]
    fn a_walk_ends_with_the_twenty_nearest_and_asks_few_others() {
        let model = Model::new(1000, 2);
        let key = 0x1234_5678_9abc_def0;
        let walk = model.walk(17, key, &[], LIBP2P);

        assert!((20..60).contains(&walk.requests), "{walk:?}");
        let keepers = nearest(&model.positions, key, K);
        let hit = model.walk(17, key, &keepers, LIBP2P).hit.unwrap();
        assert!(hit.0 <= 4 && hit.1 <= 12, "{hit:?}");
    }

    #[test]
    fn ten_times_the_nodes_cost_a_few_requests_more() {
        let miss = |nodes| Model::new(nodes, 3).lookups(50, LIBP2P).miss_requests;
        let (small, large) = (miss(200), miss(2000));
        assert!(large < small + 20.0, "{small} and {large}");
    }
}
