//! containerd's content directory: `blobs/<algorithm>/<hex>`, whole and immutable files.
//!
//! The directory is shared by all namespaces of a containerd; who knows a digest may have the bytes, as in containerd
//! itself (its default content sharing policy, `shared`).

use std::io;
use std::path::{Path, PathBuf};

use tokio::fs;

use crate::content::Blob;
use crate::oci::Digest;

pub(super) enum Opened {
    Blob(Blob),
    /// The directory can be read, and the blob is not there.
    Absent,
    /// Nothing can be told from the directory: it is not mounted, or not for our eyes.
    NotReadable,
}

pub(super) fn blobs(root: &Path) -> PathBuf {
    root.join("blobs")
}

pub(super) fn blob(root: &Path, digest: &Digest) -> PathBuf {
    blobs(root).join(digest.algorithm()).join(digest.hex())
}

pub(super) async fn open(root: &Path, digest: &Digest) -> io::Result<Opened> {
    let file = match fs::File::open(blob(root, digest)).await {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Ok(Opened::NotReadable),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Ok(match is_readable(root).await {
                true => Opened::Absent,
                false => Opened::NotReadable,
            });
        }
        Err(e) => return Err(e),
    };
    let metadata = file.metadata().await?;
    if !metadata.is_file() {
        return Ok(Opened::Absent);
    }
    Ok(Opened::Blob(Blob::from_file(
        file.into_std().await,
        metadata.len(),
    )))
}

/// Whether this is a content directory that we may look into: both directories appear with the first blob at the latest.
async fn is_readable(root: &Path) -> bool {
    fs::read_dir(blobs(root)).await.is_ok() || fs::read_dir(root.join("ingest")).await.is_ok()
}
