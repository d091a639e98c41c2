//! What this node's containerd has asked us for, so that it can be told whether it asks us at all.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use crate::oci::Digest;

/// Cloneable; all clones know the same.
#[derive(Clone, Debug, Default)]
pub struct Heard(Arc<Mutex<Asked>>);

#[derive(Debug, Default)]
struct Asked {
    requests: u64,
    manifests: HashSet<Digest>,
    oldest_first: VecDeque<Digest>,
}

impl Heard {
    /// As many manifests as a thousand images have, with an index each, in 1 MiB. By the time that one is forgotten its
    /// image is there.
    const MAX: usize = 4096;

    /// A request, and the manifest that it is for if it is for one by digest: no image comes without.
    pub fn note(&self, manifest: Option<&Digest>) {
        let mut asked = self.lock();
        asked.requests += 1;
        let Some(manifest) = manifest else {
            return;
        };
        if !asked.manifests.insert(manifest.clone()) {
            return;
        }
        asked.oldest_first.push_back(manifest.clone());
        if asked.oldest_first.len() > Self::MAX
            && let Some(oldest) = asked.oldest_first.pop_front()
        {
            asked.manifests.remove(&oldest);
        }
    }

    /// How many there were.
    pub fn requests(&self) -> u64 {
        self.lock().requests
    }

    pub fn was_asked_for(&self, manifest: &Digest) -> bool {
        self.lock().manifests.contains(manifest)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Asked> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
