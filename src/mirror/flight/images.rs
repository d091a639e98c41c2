//! Which image a blob is part of: a request for a blob names a repository and no manifest.
//!
//! It matters to containerd 2.x, where one node leads a whole image: two tags of one repository are two images, and who
//! leads the one will never come to the layers of the other. containerd has asked us for the manifest just before.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::content::ContentStore;
use crate::oci::Digest;
use crate::oci::distribution::MAX_MANIFEST;
use crate::oci::manifest::Listed;

/// From a manifest to its last layer: longer pulls go on under the repository's name.
const MEMORY: Duration = Duration::from_secs(600);
/// Manifests kept in mind.
const MAX_MANIFESTS: usize = 64;

pub struct Images {
    store: Arc<dyn ContentStore>,
    asked: Mutex<VecDeque<Asked>>,
}

#[derive(Clone)]
struct Asked {
    image: String,
    manifest: Digest,
    at: Instant,
    /// What it lists, once that is known.
    blobs: Option<Arc<HashSet<Digest>>>,
}

impl Images {
    pub fn new(store: Arc<dyn ContentStore>) -> Self {
        Self {
            store,
            asked: Mutex::default(),
        }
    }

    /// containerd has asked for a manifest of `image` (`registry/repository`).
    pub fn note(&self, image: &str, manifest: &Digest) {
        let at = Instant::now();
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.retain(|a| at.saturating_duration_since(a.at) < MEMORY);
        if let Some(known) = asked
            .iter_mut()
            .find(|a| a.image == image && a.manifest == *manifest)
        {
            known.at = at;
            return;
        }
        if asked.len() == MAX_MANIFESTS {
            asked.pop_front();
        }
        asked.push_back(Asked {
            image: image.to_string(),
            manifest: manifest.clone(),
            at,
            blobs: None,
        });
    }

    /// `registry/repository@digest` of the manifest that lists `blob`, else `registry/repository`.
    pub async fn of(&self, image: &str, blob: &Digest) -> String {
        let candidates: Vec<Asked> = {
            let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            let of_image = asked.iter().rev().filter(|asked| asked.image == image);
            of_image.cloned().collect()
        };
        for candidate in candidates {
            let blobs = match candidate.blobs {
                Some(blobs) => Some(blobs),
                None => self.learn(&candidate.image, &candidate.manifest).await,
            };
            if blobs.is_some_and(|blobs| blobs.contains(blob)) {
                return format!("{image}@{}", candidate.manifest);
            }
        }
        image.to_string()
    }

    /// What an image lists whose name came from [`Images::of`]. None where that is not known.
    pub fn blobs(&self, image: &str) -> Option<Arc<HashSet<Digest>>> {
        let (image, manifest) = image.split_once('@')?;
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let known = asked
            .iter()
            .find(|a| a.image == image && a.manifest.as_str() == manifest);
        known?.blobs.clone()
    }

    /// What a manifest lists. None where it is not here (yet).
    async fn learn(&self, image: &str, manifest: &Digest) -> Option<Arc<HashSet<Digest>>> {
        let blob = self.store.open(manifest).await.ok()??;
        let bytes = blob.read_all(MAX_MANIFEST).await.ok()?;
        let blobs = Arc::new(Listed::by(&bytes).blobs);
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = asked
            .iter_mut()
            .find(|a| a.image == image && a.manifest == *manifest)
        {
            known.blobs = Some(blobs.clone());
        }
        Some(blobs)
    }
}
