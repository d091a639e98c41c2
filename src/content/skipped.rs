//! Names (of images, of blobs) that are not shared, so that each is logged once and not with every listing.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use tracing::warn;

/// Names that are remembered: a node that makes up names for ever would fill the memory.
const MAX: usize = 1000;

#[derive(Default)]
pub struct Skipped(Mutex<HashSet<String>>);

impl Skipped {
    pub fn say(&self, name: &str, reason: &str) {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() < MAX && said.insert(name.to_string()) {
            warn!(name, reason, "not shared");
        }
    }

    #[cfg(test)]
    pub fn said(&self) -> usize {
        self.0.lock().expect("no test panics while logging").len()
    }
}
