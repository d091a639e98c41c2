//! containerd's content directory.
//!
//! The directory is shared by all namespaces of a containerd; who knows a digest may have the bytes, as in containerd
//! itself (its default content sharing policy, `shared`).

use std::io;
use std::path::Path;

use tokio::fs;

use crate::content::{Blob, blob_dir};
use crate::oci::Digest;

pub(super) enum Opened {
    Blob(Blob),
    /// The directory can be read, and the blob is not there.
    Absent,
    /// Nothing can be told from the directory: it is not mounted, or not for our eyes.
    NotReadable,
}

pub(super) async fn open(root: &Path, digest: &Digest) -> io::Result<Opened> {
    match blob_dir::open(root, digest).await {
        Ok(Some(blob)) => Ok(Opened::Blob(blob)),
        Ok(None) if is_readable(root).await => Ok(Opened::Absent),
        Ok(None) => Ok(Opened::NotReadable),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(Opened::NotReadable),
        Err(e) => Err(e),
    }
}

/// Whether this is a content directory that we may look into: both directories appear with the first blob at the latest.
async fn is_readable(root: &Path) -> bool {
    fs::read_dir(blob_dir::blobs(root)).await.is_ok()
        || fs::read_dir(root.join("ingest")).await.is_ok()
}
