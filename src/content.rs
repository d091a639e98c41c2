//! What this node holds: the seam between the flows and whatever stores images.
//!
//! The store is the truth and is asked at request time; [`Snapshot`]s only decide what the cluster is told. There are no
//! single changes to be missed: an event is a reason to look again.

mod blob_dir;
pub mod containerd;
pub mod layout;
mod sending;
pub(crate) mod skipped;

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};

use crate::oci::{Digest, Key, Repository, TagName};
use crate::regular_file::{self, Version};
use crate::server::sendfile::FileSender;

/// The images of one node. Its contract is [`crate::testing::conformance`]'s `content` suite.
#[async_trait]
pub trait ContentStore: Send + Sync + 'static {
    /// What a tag points to here. None where the tag is not known.
    async fn resolve(&self, tag: &TagName) -> Result<Option<Digest>, StoreError>;

    /// A blob that is wholly here, whatever its media type, labels or origin. None where it is not.
    async fn open(&self, digest: &Digest) -> Result<Option<Blob>, StoreError>;

    /// Everything held now, and again whenever that may have changed. What a snapshot does not list is gone. The stream
    /// never ends: a store that cannot be reached is waited for.
    fn watch(&self) -> BoxStream<'static, Snapshot>;
}

/// Everything that a node holds at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub blobs: HashSet<Digest>,
    /// Each image whose manifest is among them.
    pub images: HashSet<Image>,
}

/// A name that the store has for a manifest or an index.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Image {
    pub repository: Repository,
    /// None where nobody can ask for it by a tag: its name is `repository@digest`, or not written out in full.
    pub tag: Option<TagName>,
    pub manifest: Digest,
}

impl Snapshot {
    /// All of it under the names by which the cluster knows it.
    pub fn keys(&self) -> HashSet<Key> {
        let tags = self.images.iter().filter_map(|image| image.tag.clone());
        let blobs = self.blobs.iter().cloned();
        tags.map(Key::Tag).chain(blobs.map(Key::Content)).collect()
    }
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The store does not answer: what it holds cannot be told now.
    #[error("the content store cannot be reached: {0}")]
    Unreachable(String),
    /// The store answered, and what it said cannot be used.
    #[error("the content store failed: {0}")]
    Failed(String),
}

/// An open blob: its bytes stay readable although the store may drop it meanwhile.
pub struct Blob {
    size: u64,
    bytes: BlobBytes,
}

enum BlobBytes {
    File(Arc<File>),
    Reader(Arc<dyn ReadRange>),
}

/// Reads a blob that is no file of ours to open.
pub trait ReadRange: Send + Sync + 'static {
    /// The bytes of `range`, in order. An error, or an end before its end, means that the rest cannot be had.
    fn read_range(&self, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>>;
}

impl Blob {
    /// `size` is the file's length in bytes.
    pub fn from_file(file: File, size: u64) -> Self {
        Self {
            size,
            bytes: BlobBytes::File(Arc::new(file)),
        }
    }

    pub fn from_reader(reader: impl ReadRange, size: u64) -> Self {
        Self {
            size,
            bytes: BlobBytes::Reader(Arc::new(reader)),
        }
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// As long as this is the same, the store has the same bytes. None where it has dropped them, and where that cannot be told of
    /// an open file. Never waits.
    pub fn version(&self) -> Option<Version> {
        match &self.bytes {
            BlobBytes::File(file) => regular_file::version(file),
            BlobBytes::Reader(_) => None,
        }
    }

    /// The bytes of `range`, in order and not more. A blob that turns out to be shorter ends with an error.
    pub fn read(&self, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        self.send(range, &FileSender::default())
    }

    /// The same for a connection that can send parts of files: what is in the page cache is not read.
    pub fn send(
        &self,
        range: Range<u64>,
        sender: &FileSender,
    ) -> BoxStream<'static, io::Result<Bytes>> {
        match &self.bytes {
            BlobBytes::File(file) => sending::send(file, self.size, range, sender),
            BlobBytes::Reader(reader) => exactly(reader.read_range(range.clone()), range),
        }
    }

    /// The whole blob in memory, if it is no longer than `limit` bytes.
    pub async fn read_all(&self, limit: u64) -> io::Result<Bytes> {
        if self.size > limit {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("{} bytes are more than {limit}", self.size),
            ));
        }
        if let BlobBytes::File(file) = &self.bytes
            && self.size <= sending::CHUNK
        {
            let bytes = regular_file::read_at(file, 0, self.size as usize).await?;
            return match bytes.len() as u64 == self.size {
                true => Ok(bytes),
                false => Err(shorter_than_it_was(bytes.len() as u64)),
            };
        }
        let chunks: Vec<Bytes> = self.read(0..self.size).try_collect().await?;
        Ok(chunks.concat().into())
    }
}

/// Holds a foreign stream to the length that was promised for it.
fn exactly(
    bytes: BoxStream<'static, io::Result<Bytes>>,
    range: Range<u64>,
) -> BoxStream<'static, io::Result<Bytes>> {
    stream::try_unfold((bytes, range), |(mut bytes, range)| async move {
        if range.is_empty() {
            return Ok(None);
        }
        let Some(mut chunk) = bytes.try_next().await? else {
            return Err(shorter_than_it_was(range.start));
        };
        chunk.truncate(chunk.len().min((range.end - range.start) as usize));
        let next = range.start + chunk.len() as u64..range.end;
        Ok(Some((chunk, (bytes, next))))
    })
    .boxed()
}

fn shorter_than_it_was(at: u64) -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        format!("the blob ends at byte {at}, before the length that it had when it was opened"),
    )
}
