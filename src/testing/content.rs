//! A content store in memory.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, stream::iter};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

use crate::content::{Blob, ContentStore, Image, ReadRange, Snapshot, StoreError};
use crate::oci::{Digest, TagName};

/// Cloneable; all clones hold the same.
#[derive(Clone)]
pub struct FakeStore(Arc<Inner>);

struct Inner {
    held: Mutex<Held>,
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct Held {
    blobs: HashMap<Digest, FakeBlob>,
    tags: HashMap<TagName, Digest>,
    is_unreachable: bool,
}

#[derive(Clone)]
struct FakeBlob {
    bytes: Bytes,
    /// What the store believes its length to be.
    size: u64,
}

impl Default for FakeStore {
    fn default() -> Self {
        Self(Arc::new(Inner {
            held: Mutex::default(),
            changed: watch::Sender::new(()),
        }))
    }
}

impl FakeStore {
    pub fn add_blob(&self, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::sha256(&bytes);
        let size = bytes.len() as u64;
        let blob = FakeBlob { bytes, size };
        self.change(|held| held.blobs.insert(digest.clone(), blob));
        digest
    }

    /// Points a tag at a blob, be it held or not.
    pub fn tag(&self, tag: &TagName, digest: &Digest) {
        self.change(|held| held.tags.insert(tag.clone(), digest.clone()));
    }

    pub fn is_tagged(&self, digest: &Digest) -> bool {
        self.held().tags.values().any(|tagged| tagged == digest)
    }

    pub fn remove_tag(&self, tag: &TagName) {
        self.change(|held| held.tags.remove(tag));
    }

    pub fn remove_blob(&self, digest: &Digest) {
        self.change(|held| held.blobs.remove(digest));
    }

    /// The file is shorter than it was when it was listed.
    pub fn truncate(&self, digest: &Digest, length: usize) {
        self.change(|held| {
            let blob = held.blobs.get_mut(digest).expect("held");
            blob.bytes.truncate(length);
        });
    }

    /// Calls fail from now on, as those of a containerd that is gone.
    pub fn set_unreachable(&self, is_unreachable: bool) {
        self.change(|held| held.is_unreachable = is_unreachable);
    }

    fn change<T>(&self, change: impl FnOnce(&mut Held) -> T) {
        change(&mut self.held());
        self.0.changed.send_replace(());
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.held.lock().expect("no test panics while changing")
    }

    fn reachable(&self) -> Result<MutexGuard<'_, Held>, StoreError> {
        let held = self.held();
        if held.is_unreachable {
            return Err(StoreError::Unreachable("it was told to be".into()));
        }
        Ok(held)
    }

    fn snapshot(&self) -> Option<Snapshot> {
        let held = self.reachable().ok()?;
        let tags = held.tags.iter();
        let tags = tags.filter(|(_, digest)| held.blobs.contains_key(digest));
        let images = tags.map(|(tag, digest)| Image {
            repository: tag.repository().clone(),
            tag: Some(tag.clone()),
            manifest: digest.clone(),
        });
        Some(Snapshot {
            images: images.collect(),
            blobs: held.blobs.keys().cloned().collect(),
        })
    }
}

#[async_trait]
impl ContentStore for FakeStore {
    async fn resolve(&self, tag: &TagName) -> Result<Option<Digest>, StoreError> {
        Ok(self.reachable()?.tags.get(tag).cloned())
    }

    async fn open(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        let blob = self.reachable()?.blobs.get(digest).cloned();
        Ok(blob.map(|blob| {
            let size = blob.size;
            Blob::from_reader(blob, size)
        }))
    }

    fn watch(&self) -> BoxStream<'static, Snapshot> {
        let store = self.clone();
        WatchStream::new(self.0.changed.subscribe())
            .filter_map(move |()| std::future::ready(store.snapshot()))
            .chain(stream::pending())
            .boxed()
    }
}

impl ReadRange for FakeBlob {
    fn read_range(&self, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        const CHUNK: usize = 64 << 10;
        let end = self.bytes.len().min(range.end as usize);
        let bytes = self.bytes.slice((range.start as usize).min(end)..end);
        let chunks = (0..bytes.len()).step_by(CHUNK);
        let chunks: Vec<_> = chunks
            .map(|at| Ok(bytes.slice(at..bytes.len().min(at + CHUNK))))
            .collect();
        iter(chunks).boxed()
    }
}
