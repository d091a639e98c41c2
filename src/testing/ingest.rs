//! A content directory in which somebody downloads as containerd does.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::oci::Digest;

/// A content root in a temporary directory, with containerd's namespace `k8s.io`.
pub struct FakeIngests(TempDir);

/// One download. Dropped, it stays as one whose containerd was killed.
pub struct FakeIngest {
    root: PathBuf,
    path: PathBuf,
    reference: String,
    data: File,
}

impl FakeIngests {
    #[allow(clippy::new_without_default, reason = "it makes directories")]
    pub fn new() -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        for directory in ["ingest", "blobs/sha256"] {
            fs::create_dir_all(root.path().join(directory)).expect("created");
        }
        Self(root)
    }

    pub fn root(&self) -> &Path {
        self.0.path()
    }

    /// `kind` is `layer`, `config`, `manifest` or `index`.
    pub fn begin(&self, kind: &str, digest: &Digest, total: u64) -> FakeIngest {
        let reference = format!("k8s.io/1/{kind}-{digest}");
        self.begin_as(&reference, Some(&total.to_string()))
    }

    /// With a ref of its own, and whatever is to stand in the file `total`; None: no such file.
    pub fn begin_as(&self, reference: &str, total: Option<&str>) -> FakeIngest {
        let name = Digest::sha256(reference.as_bytes());
        let path = self.root().join("ingest").join(name.hex());
        fs::create_dir(&path).expect("one download of each ref");
        // In containerd's order: nothing after `data`.
        fs::write(path.join("ref"), reference).expect("written");
        for stamp in ["startedat", "updatedat"] {
            let new = path.join(format!("{stamp}.tmp"));
            fs::write(&new, "2025-01-01T00:00:00.000000001Z").expect("written");
            fs::rename(&new, path.join(stamp)).expect("renamed");
        }
        if let Some(total) = total {
            fs::write(path.join("total"), total).expect("written");
        }
        let data = OpenOptions::new()
            .create_new(true)
            .append(true)
            .open(path.join("data"))
            .expect("created");
        FakeIngest {
            root: self.root().to_owned(),
            path,
            reference: reference.to_owned(),
            data,
        }
    }
}

impl FakeIngest {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends.
    pub fn write(&mut self, bytes: &[u8]) {
        self.data.write_all(bytes).expect("written");
    }

    /// Writes over what is there, as containerd never does.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) {
        let data = OpenOptions::new().write(true).open(self.path.join("data"));
        data.and_then(|data| data.write_all_at(bytes, offset))
            .expect("written");
    }

    /// The download begins anew, at `length`.
    pub fn truncate(&mut self, length: u64) {
        self.data.set_len(length).expect("truncated");
    }

    /// Renames the data into the blobs, whatever it is, and returns where it is now.
    pub fn commit(self) -> PathBuf {
        let (_, digest) = self.reference.rsplit_once(':').expect("a digest");
        let blob = self.root.join("blobs/sha256").join(digest);
        fs::rename(self.path.join("data"), &blob).expect("renamed");
        fs::remove_dir_all(&self.path).expect("removed");
        blob
    }

    /// The pull has failed and its ingest is collected.
    pub fn abort(self) {
        fs::remove_dir_all(&self.path).expect("removed");
    }
}
