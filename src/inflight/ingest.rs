//! One download of containerd: `ingest/<X>` with its files `ref`, `total` and `data`.
//!
//! `ref` is `<namespace>/<sequence>/<kind>-<digest>`, and X is its sha256. `total`, the length in decimal digits, is
//! complete before `data` exists; a download of unknown length has none. Nothing on disk tells whether somebody still
//! writes: a containerd that was killed leaves its ingests for a day.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::passing::Tail;
use crate::oci::Digest;
use crate::regular_file;

/// What containerd calls what it downloads (remotes.MakeRefKey).
const KINDS: [&str; 4] = ["layer", "config", "manifest", "index"];
/// One node downloads a handful at a time; the rest are what killed pulls left in a day. Reading a `ref` takes 10 us
/// (30 took 316): so many take less than 3 ms, and are read again only when there is another.
const MAX_SCANNED: usize = 256;
/// containerd makes the directory of a download first and its `ref` within milliseconds: one that is as old as this has it.
const REF_IS_THERE: Duration = Duration::from_secs(1);
/// An image name of 255 characters, a digest of sha512 and a namespace of 76 take less.
const MAX_REF: u64 = 1 << 10;
/// Digits of the largest length, with room for a newline.
const MAX_TOTAL: u64 = 24;

pub(super) fn directory(root: &Path) -> PathBuf {
    root.join("ingest")
}

/// An open download; it stays readable through the commit.
#[derive(Clone, Debug)]
pub struct Ingest {
    pub(super) data: Arc<File>,
    total: u64,
    /// What is on its way to the file.
    pub(super) tail: Arc<Tail>,
}

impl Ingest {
    /// Length in bytes when it is whole.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// How many bytes are there now. It asks the kernel and no disk, so it may be called anywhere.
    pub fn written(&self) -> io::Result<u64> {
        Ok(self.data.metadata()?.len())
    }

    /// How many bytes can be had now: those that are written, and those on their way there.
    pub fn available(&self) -> io::Result<u64> {
        Ok(self.written()?.max(self.tail.end()))
    }

    /// Whether the byte at `offset` can be had now: bytes on their way to the file may be those behind a gap.
    pub fn has(&self, offset: u64) -> io::Result<bool> {
        Ok(self.written()? > offset || self.tail.has(offset))
    }

    /// Whether containerd has given it up: its name is gone and it is not whole.
    pub fn is_abandoned(&self) -> io::Result<bool> {
        let metadata = self.data.metadata()?;
        Ok(metadata.nlink() == 0 && metadata.len() < self.total)
    }

    /// Whether it has no name any more: it was given up, or it was whole and has been removed since.
    pub fn is_unlinked(&self) -> bool {
        self.data
            .metadata()
            .is_ok_and(|metadata| metadata.nlink() == 0)
    }

    /// Whether containerd has accepted it, also where it has been removed since: its name then is a blob's.
    pub fn was_committed(&self) -> bool {
        let name = format!("/proc/self/fd/{}", self.data.as_raw_fd());
        let Ok(path) = fs::read_link(name) else {
            return false;
        };
        // Where the kernel adds " (deleted)" it is to the file's name.
        let algorithm = path.parent();
        let blobs = algorithm.and_then(Path::parent).and_then(Path::file_name);
        blobs.is_some_and(|name| name == "blobs")
    }

    /// Whether containerd had all of it and has thrown it away.
    pub fn was_refused(&self) -> bool {
        let is_all = self.written().is_ok_and(|written| written >= self.total);
        is_all && self.is_unlinked() && !self.was_committed()
    }

    /// Whether both are the same open file.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.data, &other.data)
    }
}

/// Where the download of one digest is looked for.
pub(super) struct Lookout {
    directory: PathBuf,
    /// Where it is as a rule, by kind.
    computed: [PathBuf; KINDS.len()],
    /// Where it is when it is whole.
    blob: PathBuf,
    namespace: String,
    digest: Digest,
    tail: Arc<Tail>,
    /// As of when no `ref` was found to be of it.
    scanned: Option<SystemTime>,
}

impl Lookout {
    pub(super) fn new(root: PathBuf, namespace: &str, digest: &Digest, tail: Arc<Tail>) -> Self {
        let directory = directory(&root);
        let computed = KINDS.map(|kind| {
            let reference = format!("{namespace}/1/{kind}-{digest}");
            directory.join(Digest::sha256(reference.as_bytes()).hex())
        });
        let mut blob = root.join("blobs");
        blob.extend(digest.as_str().split(':'));
        Self {
            directory,
            computed,
            blob,
            namespace: namespace.to_owned(),
            digest: digest.clone(),
            tail,
            scanned: None,
        }
    }

    /// The ingest: at its computed path, else by a look into every `ref`. The latter is for descriptors with the annotation
    /// `org.opencontainers.image.ref.name`, whose refs hold that name as well, and for a sequence other than 1, which was
    /// never seen.
    pub(super) fn look(&mut self) -> io::Result<Option<Ingest>> {
        for path in &self.computed {
            if let Some(ingest) = self.open(path)? {
                return Ok(Some(ingest));
            }
        }
        let changed = match fs::metadata(&self.directory) {
            Ok(metadata) => metadata.modified()?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        if self.scanned == Some(changed) {
            return Ok(None);
        }
        for entry in fs::read_dir(&self.directory)?.take(MAX_SCANNED) {
            let path = entry?.path();
            let Some(reference) = read_short(&path.join("ref"), MAX_REF)? else {
                continue;
            };
            if is_of(&reference, &self.namespace, &self.digest) {
                // Whatever it lacks yet it may get without a change of the directory.
                return self.open(&path);
            }
        }
        let is_settled = changed.elapsed().is_ok_and(|age| age > REF_IS_THERE);
        self.scanned = is_settled.then_some(changed);
        Ok(None)
    }

    /// None where there is no download at `path`, or none whose length is known.
    fn open(&self, path: &Path) -> io::Result<Option<Ingest>> {
        // First the data: where it is, the total is complete.
        let Some(data) = open_file(&path.join("data"))? else {
            return Ok(None);
        };
        let total = read_short(&path.join("total"), MAX_TOTAL)?;
        let total = total.and_then(|total| total.trim_end().parse().ok());
        Ok(total.filter(|total| *total > 0).map(|total| Ingest {
            data: Arc::new(data),
            total,
            tail: Arc::clone(&self.tail),
        }))
    }

    /// Whether there is a blob of that name.
    pub(super) fn is_whole(&self) -> bool {
        fs::metadata(&self.blob).is_ok_and(|metadata| metadata.is_file())
    }
}

/// Whether a ref of `namespace` is for `digest`.
pub(crate) fn is_of(reference: &str, namespace: &str, digest: &Digest) -> bool {
    let key = reference
        .strip_prefix(namespace)
        .and_then(|rest| rest.strip_prefix('/'))
        .and_then(|rest| rest.split_once('/'))
        .filter(|(sequence, _)| sequence.bytes().all(|b| b.is_ascii_digit()))
        .map(|(_, key)| key);
    key.and_then(|key| key.strip_suffix(digest.as_str()))
        .is_some_and(|before| before.ends_with(['-', '@']))
}

/// None, too, where there is no directory above it.
fn open_file(path: &Path) -> io::Result<Option<File>> {
    match regular_file::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => Ok(None),
        opened => Ok(opened?.map(|(file, _)| file)),
    }
}

/// The text of a file of at most `limit` bytes; None where there is none, or another one.
fn read_short(path: &Path, limit: u64) -> io::Result<Option<String>> {
    let Some(file) = open_file(path)? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    let is_short = bytes.len() as u64 <= limit;
    Ok(String::from_utf8(bytes).ok().filter(|_| is_short))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::inflight::passing::Tails;
    use crate::inflight::{ContentRoot, Inflight};
    use crate::testing::ingest::FakeIngests;

    fn inflight(ingests: &FakeIngests) -> Inflight {
        let root = ContentRoot::known(ingests.root().to_owned());
        Inflight::new(root, "k8s.io".into())
    }

    #[tokio::test]
    async fn every_kind_is_found_by_its_name_alone() {
        let ingests = FakeIngests::new();
        let inflight = inflight(&ingests);
        for kind in KINDS {
            let digest = Digest::sha256(kind.as_bytes());
            let mut fake = ingests.begin(kind, &digest, 100);
            fake.write(b"some");
            // A scan would not find it.
            fs::remove_file(fake.path().join("ref")).unwrap();

            let found = inflight.find(&digest).await.unwrap().expect(kind);

            assert_eq!((found.total(), found.written().unwrap()), (100, 4));
        }
        let other = Digest::sha256(b"other");
        assert!(inflight.find(&other).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn another_ref_is_found_by_its_end_and_only_in_the_namespace() {
        let digest = Digest::sha256(b"layer");
        let longer = format!("x{digest}");
        for (reference, is_found) in [
            (format!("k8s.io/1/layer-app:v1@{digest}"), true),
            (format!("k8s.io/12/layer-{digest}"), true),
            (format!("k8s.io/1/layer-a/b/c@{digest}"), true),
            (format!("other/1/layer-{digest}"), false),
            (format!("k8s.io-2/1/layer-{digest}"), false),
            (format!("k8s.io/x/layer-{digest}"), false),
            (format!("k8s.io/1/layer-{digest}x"), false),
            (format!("k8s.io/1/layer-{longer}"), false),
            (digest.to_string(), false),
            (String::new(), false),
        ] {
            let ingests = FakeIngests::new();
            let _download = ingests.begin_as(&reference, Some("7"));

            let found = inflight(&ingests).find(&digest).await.unwrap();

            assert_eq!(found.is_some(), is_found, "{reference}");
        }
    }

    #[tokio::test]
    async fn without_a_length_there_is_nothing_to_serve() {
        for (total, is_found) in [
            (Some("7"), true),
            (Some("7\n"), true),
            (None, false),
            (Some(""), false),
            (Some("0"), false),
            (Some("-7"), false),
            (Some("seven"), false),
            (Some("7000000000000000000000000000"), false),
        ] {
            let ingests = FakeIngests::new();
            let digest = Digest::sha256(b"layer");
            let _download = ingests.begin_as(&format!("k8s.io/1/layer-{digest}"), total);

            let found = inflight(&ingests).find(&digest).await.unwrap();

            assert_eq!(found.is_some(), is_found, "{total:?}");
        }
    }

    #[tokio::test]
    async fn only_regular_files_are_opened() {
        let ingests = FakeIngests::new();
        let secret = tempfile::NamedTempFile::new().unwrap();
        let digest = Digest::sha256(b"layer");
        let fake = ingests.begin("layer", &digest, 7);
        let data = fake.path().join("data");
        let find = async || inflight(&ingests).find(&digest).await.unwrap();
        assert!(find().await.is_some());

        fs::remove_file(&data).unwrap();
        assert!(find().await.is_none(), "nothing");
        symlink(secret.path(), &data).unwrap();
        assert!(find().await.is_none(), "a link");
        fs::remove_file(&data).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &data, rustix::fs::Mode::RUSR).unwrap();
        assert!(find().await.is_none(), "a pipe");
        fs::remove_file(&data).unwrap();
        fs::create_dir(&data).unwrap();
        assert!(find().await.is_none(), "a directory");
    }

    #[test]
    fn refs_are_read_again_only_when_there_may_be_another() {
        let ingests = FakeIngests::new();
        let digest = Digest::sha256(b"layer");
        let tail = Tails::default().of(&digest);
        let mut lookout = Lookout::new(ingests.root().to_owned(), "k8s.io", &digest, tail);
        let long_ago = SystemTime::now() - 2 * REF_IS_THERE;
        let age = || {
            let directory = File::open(directory(ingests.root())).unwrap();
            directory.set_modified(long_ago).unwrap();
        };
        assert!(lookout.look().unwrap().is_none());
        assert_eq!(lookout.scanned, None, "its ref may not be written yet");
        age();
        assert!(lookout.look().unwrap().is_none());
        assert_eq!(lookout.scanned, Some(long_ago));

        let reference = format!("k8s.io/1/layer-app:v1@{digest}");
        let _download = ingests.begin_as(&reference, Some("7"));
        assert!(lookout.look().unwrap().is_some(), "another");
        age();
        assert!(lookout.look().unwrap().is_none(), "as it was");
    }

    #[tokio::test]
    async fn a_committed_download_is_not_abandoned_even_when_the_blob_is_collected() {
        let ingests = FakeIngests::new();
        let digest = Digest::sha256(b"layer");
        let mut fake = ingests.begin("layer", &digest, 5);
        let ingest = inflight(&ingests).find(&digest).await.unwrap().unwrap();
        fake.write(b"layer");

        let blob = fake.commit();
        assert!(!ingest.is_abandoned().unwrap());
        fs::remove_file(blob).unwrap();

        assert!(!ingest.is_abandoned().unwrap());
        assert_eq!(ingest.written().unwrap(), 5);
    }
}
