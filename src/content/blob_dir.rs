//! `blobs/<algorithm>/<hex>`: whole and immutable files. containerd and OCI layouts keep their blobs alike.

mod watch;

use std::io;
use std::path::{Path, PathBuf};

use super::Blob;
use crate::oci::Digest;
use crate::regular_file;

pub use watch::BlobDirectory;

pub fn blobs(root: &Path) -> PathBuf {
    root.join("blobs")
}

pub fn blob(root: &Path, digest: &Digest) -> PathBuf {
    // Made in one piece: this is done for each request.
    let names = ["blobs", digest.algorithm(), digest.hex()];
    let length = names.iter().map(|name| 1 + name.len()).sum::<usize>();
    let mut path = PathBuf::with_capacity(root.as_os_str().len() + length);
    path.push(root);
    path.extend(names);
    path
}

/// None where there is no such regular file ([`regular_file::open`]).
pub async fn open(root: &Path, digest: &Digest) -> io::Result<Option<Blob>> {
    let path = blob(root, digest);
    let opened = match regular_file::open_cached(&path) {
        Some(opened) => opened?,
        None => tokio::task::spawn_blocking(move || regular_file::open(&path)).await??,
    };
    Ok(opened.map(|(file, length)| Blob::from_file(file, length)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[tokio::test]
    async fn only_a_regular_file_of_that_name_is_a_blob() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        let directory = blobs(root.path()).join("sha256");
        fs::create_dir_all(&directory).unwrap();
        let digest = |text: &str| Digest::sha256(text.as_bytes());
        let path = |text: &str| directory.join(digest(text).hex());
        fs::write(path("file"), "file").unwrap();
        fs::create_dir(path("directory")).unwrap();
        symlink(outside.path(), path("link")).unwrap();
        symlink(path("file"), path("link to a blob")).unwrap();
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, path("pipe"), mode).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket"));

        for (text, is_blob) in [
            ("file", true),
            ("directory", false),
            ("link", false),
            ("link to a blob", false),
            ("pipe", false),
            ("socket", false),
            ("nothing", false),
        ] {
            let opened = open(root.path(), &digest(text)).await.unwrap();
            assert_eq!(opened.is_some(), is_blob, "{text}");
        }
    }
}
