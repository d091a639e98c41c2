//! ContentStore over an OCI image layout directory: the seed of an air-gapped cluster, and what runs without containerd.
//!
//! The directory is its owner's: it is read and followed, never written. Every blob in it is shared, whatever the index
//! says of it; the index only gives names. An index that cannot be read (somebody is writing it) changes nothing until it
//! can. Format: OCI image spec, image-layout.md.

pub(crate) mod index;
mod watch;

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::stream::BoxStream;
use tracing::{info, warn};

use super::skipped::Skipped;
use super::{Blob, ContentStore, Image, Snapshot, StoreError, blob_dir};
use crate::oci::{Digest, TagName};
use crate::readiness::Readiness;
use index::Tags;

const MARKER: &str = "oci-layout";
const INDEX: &str = "index.json";
/// The only one there is, 1.0.0, and what may be added to it compatibly.
const VERSION: &str = "1.";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The directory with `oci-layout`, `index.json` and `blobs`.
    pub path: PathBuf,
}

/// Why a directory is not served at all.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "{} is not there: make a layout there (skopeo copy --all docker://IMAGE oci:{}:IMAGE), or correct \
         --oci-layout-path", .0.display(), .0.display()
    )]
    NoDirectory(PathBuf),
    #[error(
        "{} is not an OCI image layout, {missing} is missing: --oci-layout-path is the directory that has oci-layout, \
         index.json and blobs in it (an archive must be unpacked)", .path.display()
    )]
    NoLayout {
        path: PathBuf,
        missing: &'static str,
    },
    #[error(
        "{} names no layout version that this release reads: it should be {{\"imageLayoutVersion\":\"1.0.0\"}}, \
         and is {found:?}", .path.display()
    )]
    Version { path: PathBuf, found: String },
    #[error("{} cannot be read ({reason}): let this process's user read everything below", .path.display())]
    Unreadable { path: PathBuf, reason: io::Error },
}

/// Cloneable handle on one layout.
#[derive(Clone)]
pub struct Layout(Arc<Inner>);

struct Inner {
    root: PathBuf,
    readiness: Readiness,
    skipped: Skipped,
    index: Mutex<Index>,
}

/// The index as it was read last.
#[derive(Default)]
struct Index {
    /// None before the first time.
    good: Option<Arc<Tags>>,
    is_broken: bool,
}

impl Layout {
    /// Checks that the directory is a layout. `readiness` hears when its index is awaited.
    pub fn new(config: Config, readiness: Readiness) -> Result<Self, ConfigError> {
        check(&config.path)?;
        Ok(Self(Arc::new(Inner {
            root: config.path,
            readiness,
            skipped: Skipped::default(),
            index: Mutex::default(),
        })))
    }
}

/// `blobs` may come later: what a copy tool, or git, makes of an empty layout lacks it.
fn check(root: &Path) -> Result<(), ConfigError> {
    let unreadable = |path: PathBuf| |reason| ConfigError::Unreadable { path, reason };
    match fs::metadata(root) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(ConfigError::NoDirectory(root.to_path_buf()));
        }
        Err(e) => return Err(unreadable(root.to_path_buf())(e)),
    }
    let is_missing = |e: &io::Error| {
        matches!(
            e.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
        )
    };
    for name in [MARKER, INDEX] {
        match fs::metadata(root.join(name)) {
            Err(e) if is_missing(&e) => {
                return Err(ConfigError::NoLayout {
                    path: root.to_path_buf(),
                    missing: name,
                });
            }
            Err(e) => return Err(unreadable(root.join(name))(e)),
            Ok(_) => {}
        }
    }
    let marker = root.join(MARKER);
    let text = fs::read(&marker).map_err(unreadable(marker.clone()))?;
    match index::layout_version(&text) {
        Some(version) if version.starts_with(VERSION) => Ok(()),
        _ => Err(ConfigError::Version {
            path: marker,
            found: String::from_utf8_lossy(&text).chars().take(100).collect(),
        }),
    }
}

#[async_trait]
impl ContentStore for Layout {
    async fn resolve(&self, tag: &TagName) -> Result<Option<Digest>, StoreError> {
        let tags = self.0.blocking(Inner::tags).await?;
        Ok(tags.get(tag).cloned())
    }

    async fn open(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        blob_dir::open(&self.0.root, digest)
            .await
            .map_err(|e| self.0.failed(&blob_dir::blob(&self.0.root, digest), &e))
    }

    fn watch(&self) -> BoxStream<'static, Snapshot> {
        watch::snapshots(self.0.clone())
    }
}

impl Inner {
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = self.clone();
        tokio::task::spawn_blocking(move || work(&inner))
            .await
            .map_err(|e| StoreError::Failed(e.to_string()))?
    }

    fn failed(&self, path: &Path, reason: &dyn std::fmt::Display) -> StoreError {
        StoreError::Failed(format!("{}: {reason}", path.display()))
    }

    /// The names as of now; while the index cannot be read, as they were.
    fn tags(&self) -> Result<Arc<Tags>, StoreError> {
        let path = self.root.join(INDEX);
        let read = fs::read(&path)
            .map_err(|e| self.failed(&path, &e))
            .and_then(|json| index::tags(&json, &self.skipped).map_err(|e| self.failed(&path, &e)));
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(tags) => {
                if std::mem::take(&mut index.is_broken) {
                    info!(path = %path.display(), names = tags.len(), "index can be read again");
                }
                let tags = Arc::new(tags);
                index.good = Some(tags.clone());
                Ok(tags)
            }
            Err(e) => {
                if !std::mem::replace(&mut index.is_broken, true) {
                    warn!(error = %e, "index cannot be read: images keep the names that they had");
                }
                index.good.clone().ok_or(e)
            }
        }
    }

    /// Every blob, and every tag whose manifest is among them.
    fn list(&self) -> Result<Snapshot, StoreError> {
        // Names first: an image that comes in between is then blobs without a tag, never a tag without its blobs.
        let tags = self.tags()?;
        let blobs = self.list_blobs()?;
        let held = tags.iter().filter(|(_, digest)| blobs.contains(digest));
        let images = held.map(|(tag, digest)| Image {
            repository: tag.repository().clone(),
            tag: Some(tag.clone()),
            manifest: digest.clone(),
        });
        let images = images.collect();
        Ok(Snapshot { images, blobs })
    }

    fn list_blobs(&self) -> Result<HashSet<Digest>, StoreError> {
        let root = blob_dir::blobs(&self.root);
        let mut blobs = HashSet::new();
        for algorithm in self.entries(&root)? {
            if !algorithm.path().is_dir() {
                continue;
            }
            let (directory, algorithm) = (algorithm.path(), algorithm.file_name());
            for file in self.entries(&directory)? {
                let name = file.file_name();
                let digest = format!("{}:{}", algorithm.display(), name.display());
                // Names that are none belong to files that somebody is still writing.
                let Ok(digest) = digest.parse::<Digest>() else {
                    continue;
                };
                match file.file_type() {
                    Ok(kind) if kind.is_file() => {
                        blobs.insert(digest);
                    }
                    Ok(kind) if kind.is_symlink() => self.skipped.say(
                        digest.as_str(),
                        "is a symbolic link, and links are not followed: copy the layout with cp -rL",
                    ),
                    _ => {}
                }
            }
        }
        Ok(blobs)
    }

    /// A directory that is not there has none.
    fn entries(&self, directory: &Path) -> Result<Vec<fs::DirEntry>, StoreError> {
        let entries = match fs::read_dir(directory) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            read => read.and_then(Iterator::collect),
        };
        entries.map_err(|e: io::Error| self.failed(directory, &e))
    }
}

#[cfg(test)]
mod tests;
