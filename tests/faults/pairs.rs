//! A few cells that meet every pair of values of any two dimensions: greedy, and the same each time.

use std::collections::BTreeSet;

use crate::cell::{Cell, Hit};

/// A pair of values, each as its dimension and word.
pub type Pair = [(&'static str, &'static str); 2];

/// What a pull of `cell` meets: the fault stays, so later parts of the image meet it, too.
pub fn pairs(cell: &Cell) -> BTreeSet<Pair> {
    cell.covers()
        .into_iter()
        .flat_map(|hit| of(cell, hit))
        .collect()
}

/// The pairs of the cell's own values.
pub fn own(cell: &Cell) -> [Pair; 6] {
    of(cell, cell.hit)
}

fn of(cell: &Cell, hit: Hit) -> [Pair; 6] {
    let fault = ("fault", cell.fault.word());
    let hit = ("hit", hit.word());
    let peers = ("peers", cell.peers.word());
    let registry = ("registry", cell.registry.word());
    [
        [fault, hit],
        [fault, peers],
        [fault, registry],
        [hit, peers],
        [hit, registry],
        [peers, registry],
    ]
}

/// Of `cells` those that together meet every pair that any of them meets.
pub fn choose(cells: &[Cell]) -> Vec<Cell> {
    let mut left: BTreeSet<Pair> = cells.iter().flat_map(own).collect();
    let mut chosen: Vec<Cell> = Vec::new();
    while !left.is_empty() {
        let best = cells
            .iter()
            .enumerate()
            .map(|(place, cell)| (pairs(cell).intersection(&left).count(), place))
            // Of equals a different one each time, or the same values of the last dimensions would meet all the first.
            .max_by_key(|(new, place)| (*new, scatter(*place)));
        let Some((_, place)) = best else { break };
        let cell = cells[place];
        for pair in pairs(&cell) {
            left.remove(&pair);
        }
        chosen.push(cell);
    }
    chosen.sort();
    chosen
}

/// A fixed order that has nothing to do with the dimensions' (Fibonacci hashing).
fn scatter(place: usize) -> u64 {
    (place as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
