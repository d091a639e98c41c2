//! Manifests that were read, hashed and understood a moment ago. All nodes that start an image ask its few holders for the same
//! ones within seconds.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::HeaderValue;
use bytes::Bytes;

use crate::content::Blob;
use crate::oci::Digest;
use crate::oci::media_type;
use crate::regular_file::Version;

/// Nothing else is given up for a second crowd: what is not kept is read.
const MOST: usize = 64;
/// All of them take 4 MiB at the most. A manifest has 3 KiB as a rule, an index of many platforms 10.
const LARGEST: usize = 64 << 10;
/// As long as a crowd takes to ask. Each is an open file, and one that is deleted meanwhile keeps its place on the disk.
const LIFE: Duration = Duration::from_secs(10);

/// A manifest whose digest is right, and what it is sent as.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Manifest {
    pub(super) bytes: Bytes,
    /// None where it does not tell by itself.
    pub(super) content_type: Option<HeaderValue>,
}

/// Cloneable; all clones are one.
#[derive(Clone, Default)]
pub struct Verified(Arc<Mutex<HashMap<Digest, Arc<Kept>>>>);

struct Kept {
    manifest: Manifest,
    blob: Blob,
    version: Version,
}

impl Manifest {
    pub(super) fn new(bytes: Bytes) -> Self {
        let content_type = media_type::of_manifest(&bytes);
        Self {
            bytes,
            content_type: content_type.and_then(|it| HeaderValue::from_str(&it).ok()),
        }
    }
}

impl Verified {
    /// What was kept, if the store still has it, unchanged.
    pub(super) fn get(&self, digest: &Digest) -> Option<Manifest> {
        let kept = Arc::clone(self.all().get(digest)?);
        if kept.blob.version() == Some(kept.version) {
            return Some(kept.manifest.clone());
        }
        self.all().remove(digest);
        None
    }

    /// `manifest` is what `digest` names, and was read from `blob`. Within a tokio runtime.
    pub(super) fn keep(&self, digest: &Digest, manifest: &Manifest, blob: Blob) {
        let Some(version) = blob.version().filter(|_| manifest.bytes.len() <= LARGEST) else {
            return;
        };
        let mut all = self.all();
        if all.len() >= MOST || all.contains_key(digest) {
            return;
        }
        let kept = Kept {
            manifest: manifest.clone(),
            blob,
            version,
        };
        all.insert(digest.clone(), Arc::new(kept));
        drop(all);
        let (verified, digest) = (self.clone(), digest.clone());
        tokio::spawn(async move {
            tokio::time::sleep(LIFE).await;
            verified.all().remove(&digest);
        });
    }

    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Arc<Kept>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::testing::{eventually, noise};

    fn manifest(size: usize, seed: u64) -> (Digest, Manifest) {
        let bytes = Bytes::from(noise(size, seed));
        (Digest::sha256(&bytes), Manifest::new(bytes))
    }

    fn stored(directory: &Path, digest: &Digest, manifest: &Manifest) -> (PathBuf, Blob) {
        let path = directory.join(digest.hex());
        fs::write(&path, &manifest.bytes).unwrap();
        let file = File::open(&path).unwrap();
        (path, Blob::from_file(file, manifest.bytes.len() as u64))
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_read_is_kept_for_a_moment_and_no_longer_than_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let verified = Verified::default();
        let (deleted, one) = manifest(100, 1);
        let (stays, two) = manifest(LARGEST, 2);
        let (path, blob) = stored(directory.path(), &deleted, &one);
        verified.keep(&deleted, &one, blob);
        verified.keep(&stays, &two, stored(directory.path(), &stays, &two).1);
        assert_eq!(verified.get(&deleted), Some(one));

        fs::remove_file(path).unwrap();

        assert_eq!(verified.get(&deleted), None);
        assert_eq!(verified.get(&stays), Some(two));
        assert_eq!(verified.all().len(), 1);

        tokio::time::sleep(LIFE + Duration::from_millis(1)).await;
        assert!(verified.all().is_empty());
    }

    #[tokio::test]
    async fn what_was_changed_on_the_disk_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let verified = Verified::default();
        let (digest, manifest) = manifest(100, 1);
        let (path, blob) = stored(directory.path(), &digest, &manifest);
        verified.keep(&digest, &manifest, blob);
        assert!(verified.get(&digest).is_some());

        // Sooner than it would be forgotten; the kernel's clock for files goes in steps of some milliseconds.
        let is_noticed = async || {
            fs::write(&path, "damaged").unwrap();
            verified.get(&digest).is_none().then_some(())
        };
        eventually("a change", LIFE / 2, is_noticed).await;
    }

    #[tokio::test(start_paused = true)]
    async fn neither_large_ones_are_kept_nor_more_than_there_is_room_for() {
        let directory = tempfile::tempdir().unwrap();
        let verified = Verified::default();
        let keep = |size, seed| {
            let (digest, manifest) = manifest(size, seed);
            let (_, blob) = stored(directory.path(), &digest, &manifest);
            verified.keep(&digest, &manifest, blob);
            verified.get(&digest).is_some()
        };

        assert!(!keep(LARGEST + 1, 0));
        assert!((1..=MOST).all(|seed| keep(100, seed as u64)));
        assert!(!keep(100, 1 + MOST as u64));

        tokio::time::sleep(LIFE + Duration::from_millis(1)).await;
        assert!(keep(100, 1 + MOST as u64));
    }
}
