//! What of all that is held the cluster is told, where an operator keeps something out.
//!
//! A blob is shared if it is part of an image under whose name the filter shares it: the manifests themselves tell, which
//! needs no labels (containerd's `distribution.source` says where a blob was pulled from without the registry's port, and
//! nothing of what was imported). A new layer is there before its image has a name, which comes with unpacking; it is
//! known by the name under which containerd has asked us for it ([`Pulls`]). What belongs to nobody by either is not told.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::{debug, info};

use crate::content::{ContentStore, Snapshot, StoreError};
use crate::oci::distribution::MAX_MANIFEST;
use crate::oci::filter::Filter;
use crate::oci::manifest::Listed;
use crate::oci::{Digest, Key, Repository};

/// A manifest is read from a disk in milliseconds. One that hangs is left for the next snapshot, with all that follow.
const PATIENCE: Duration = Duration::from_secs(2);

/// Digests that this node's containerd has asked for under a name that is shared. Cloneable; all clones know the same.
#[derive(Clone, Debug, Default)]
pub struct Pulls(Arc<Mutex<Asked>>);

#[derive(Debug, Default)]
struct Asked {
    all: HashSet<Digest>,
    oldest_first: VecDeque<Digest>,
}

impl Pulls {
    /// As many blobs as two hundred large images have, in 4 MiB. By the time that one is forgotten its image has a name.
    const MAX: usize = 16_384;

    pub fn note(&self, digest: &Digest) {
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !asked.all.insert(digest.clone()) {
            return;
        }
        asked.oldest_first.push_back(digest.clone());
        if asked.oldest_first.len() > Self::MAX
            && let Some(oldest) = asked.oldest_first.pop_front()
        {
            asked.all.remove(&oldest);
        }
    }

    fn of(&self, held: &HashSet<Digest>) -> HashSet<Digest> {
        let asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        asked.all.intersection(held).cloned().collect()
    }
}

pub(super) struct Selection {
    filter: Arc<Filter>,
    pulls: Pulls,
    /// What the manifests list that are held: they never change.
    listed: HashMap<Digest, Arc<Listed>>,
    has_said: bool,
}

impl Selection {
    pub(super) fn new(filter: Arc<Filter>, pulls: Pulls) -> Self {
        Self {
            filter,
            pulls,
            listed: HashMap::new(),
            has_said: false,
        }
    }

    /// What is told of a snapshot.
    pub(super) async fn of(&mut self, store: &dyn ContentStore, held: &Snapshot) -> HashSet<Key> {
        if self.filter.is_open() {
            return held.keys();
        }
        self.listed
            .retain(|manifest, _| held.blobs.contains(manifest));
        let mut told = self.pulls.of(&held.blobs);
        let mut tops: HashMap<&Repository, Vec<Digest>> = HashMap::new();
        for image in &held.images {
            let tops = tops.entry(&image.repository).or_default();
            tops.push(image.manifest.clone());
        }
        let mut reads = true;
        for (repository, mut manifests) in tops {
            let mut seen: HashSet<Digest> = manifests.iter().cloned().collect();
            while let Some(manifest) = manifests.pop() {
                let listed = match self.listed.get(&manifest) {
                    Some(listed) => Some(listed.clone()),
                    None if reads => self.read(store, &manifest).await.unwrap_or_else(|e| {
                        debug!(%manifest, error = %e, "what it lists is told later");
                        reads = false;
                        None
                    }),
                    None => None,
                };
                let Some(listed) = listed else {
                    continue;
                };
                let is_new = |digest: &&Digest| held.blobs.contains(*digest);
                for below in listed.manifests.iter().filter(is_new) {
                    if seen.insert(below.clone()) {
                        manifests.push(below.clone());
                    }
                }
                seen.extend(listed.blobs.iter().filter(is_new).cloned());
            }
            told.extend(seen.into_iter().filter(|d| self.shares(repository, d)));
        }
        let all_tags = held.images.iter().filter_map(|image| image.tag.as_ref());
        let all_tags: HashSet<_> = all_tags.collect();
        let tags = all_tags.iter().filter(|tag| self.filter.tag(tag).is_ok());
        let tags: Vec<Key> = tags.map(|tag| Key::Tag((*tag).clone())).collect();
        self.say([held.blobs.len(), told.len()], [all_tags.len(), tags.len()]);
        let content = told.into_iter().map(Key::Content);
        content.chain(tags).collect()
    }

    fn shares(&self, repository: &Repository, digest: &Digest) -> bool {
        self.filter.content(repository, digest).is_ok()
    }

    /// None where it is gone by now.
    async fn read(
        &mut self,
        store: &dyn ContentStore,
        manifest: &Digest,
    ) -> Result<Option<Arc<Listed>>, StoreError> {
        let read = async {
            let Some(blob) = store.open(manifest).await? else {
                return Ok(None);
            };
            let bytes = blob.read_all(MAX_MANIFEST).await;
            bytes
                .map(Some)
                .map_err(|e| StoreError::Failed(e.to_string()))
        };
        let bytes = tokio::time::timeout(PATIENCE, read)
            .await
            .unwrap_or_else(|_| {
                let said = format!("no answer within {PATIENCE:?}");
                Err(StoreError::Unreachable(said))
            })?;
        let Some(bytes) = bytes else {
            return Ok(None);
        };
        let listed = Arc::new(Listed::by(&bytes));
        self.listed.insert(manifest.clone(), listed.clone());
        Ok(Some(listed))
    }

    /// Of how many held how many are told: once where an operator looks, then where a developer does.
    fn say(&mut self, [held, content]: [usize; 2], [held_tags, tags]: [usize; 2]) {
        let (left_out_content, left_out_tags) = (held - content, held_tags - tags);
        if std::mem::replace(&mut self.has_said, true) {
            debug!(content, tags, left_out_content, left_out_tags, "filtered");
        } else {
            info!(
                content,
                tags,
                left_out_content,
                left_out_tags,
                "filters keep some of this node's content out of the cluster"
            );
        }
    }
}

#[cfg(test)]
mod tests;
