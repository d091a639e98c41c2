//! Layers that containerd is still writing, read from its ingest directory while they grow.
//!
//! containerd announces nothing until a blob is whole, but it writes each download in order into
//! `ingest/<X>/data`, and X can be computed from its namespace and the digest (measured on 1.6, 1.7 and 2.1, by CRI
//! and ctr). An open descriptor survives the commit. What is read here is unverified: the containerd of whoever gets
//! it checks the digest at its own commit.

mod follow;
pub(crate) mod ingest;
mod passing;
pub mod uplink;
mod watcher;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::oci::Digest;

pub use ingest::Ingest;
use ingest::Lookout;
pub use passing::Passing;
use passing::Tails;
pub use uplink::{Child, Uplink};
use watcher::Watchers;
pub use watcher::{View, Watching};

/// Between looks at a growing file. containerd writes 1 MiB at a time, every 9 ms at 100 MB/s: this adds 5 ms on
/// average to what the layer takes anyway, and one fstat each time. inotify would add 1 ms and take one of the 128
/// instances that a node has for all of a user's processes.
pub const POLL: Duration = Duration::from_millis(10);
/// Requests of peers that wait here at once. A meeting point keeps 64 participants in mind for one content, all of whom may
/// be sent to one of them, and no more than eight layers are read from here at once: who comes beyond that was sent here by
/// nobody. Each takes a connection of some 20 KiB.
const MAX_WAITING: usize = 512;

/// Where containerd's content is (the directory above `blobs/` and `ingest/`), once that is known. Clones know the same.
#[derive(Clone, Debug)]
pub struct ContentRoot(watch::Sender<Option<PathBuf>>);

impl ContentRoot {
    pub fn known(root: PathBuf) -> Self {
        Self(watch::Sender::new(Some(root)))
    }

    pub fn unknown() -> Self {
        Self(watch::Sender::new(None))
    }

    pub fn set(&self, root: PathBuf) {
        self.0.send_replace(Some(root));
    }

    pub fn get(&self) -> Option<PathBuf> {
        self.0.borrow().clone()
    }

    /// Waits until it is known.
    async fn wait(&self) -> PathBuf {
        let mut root = self.0.subscribe();
        match root
            .wait_for(Option::is_some)
            .await
            .map(|root| root.clone())
        {
            Ok(Some(root)) => root,
            // The sender is `self`, and what was waited for is there.
            _ => std::future::pending().await,
        }
    }
}

/// Cloneable; all clones expect the same.
#[derive(Clone, Debug)]
pub struct Inflight(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    root: ContentRoot,
    namespace: String,
    /// It has turned out that nothing can be read there.
    is_unreadable: AtomicBool,
    /// How many guards there are for each digest.
    expected: Mutex<HashMap<Digest, usize>>,
    watchers: Watchers,
    tails: Tails,
    /// For those who wait here.
    seats: Arc<Semaphore>,
}

impl Inflight {
    /// `namespace` is containerd's, usually `k8s.io`: what others download is not ours to share.
    pub fn new(root: ContentRoot, namespace: String) -> Self {
        Self(Some(Arc::new(Inner {
            root,
            namespace,
            is_unreadable: AtomicBool::new(false),
            expected: Mutex::default(),
            watchers: Watchers::default(),
            tails: Tails::default(),
            seats: Arc::new(Semaphore::new(MAX_WAITING)),
        })))
    }

    /// Finds nothing and expects nothing.
    pub fn off() -> Self {
        Self(None)
    }

    /// Whether downloads can be found: it is known where they are, and nothing speaks against reading them.
    pub fn is_on(&self) -> bool {
        let Some(inner) = &self.0 else {
            return false;
        };
        let Some(root) = inner.root.get() else {
            return false;
        };
        // Where nothing was found one looks again: a new node's directory comes with its first download.
        if inner.is_unreadable.load(Ordering::Relaxed) && readable(&root).is_ok() {
            inner.is_unreadable.store(false, Ordering::Relaxed);
        }
        !inner.is_unreadable.load(Ordering::Relaxed)
    }

    /// The download of `digest` that is going on here. None where there is none, or none whose length is known. It may
    /// be one that nobody writes any more: only growth tells.
    pub async fn find(&self, digest: &Digest) -> io::Result<Option<Ingest>> {
        let Some(inner) = self.0.clone() else {
            return Ok(None);
        };
        let Some(root) = inner.root.get() else {
            return Ok(None);
        };
        let digest = digest.clone();
        let tail = inner.tails.of(&digest);
        let look = move || Lookout::new(root, &inner.namespace, &digest, tail).look();
        tokio::task::spawn_blocking(look).await?
    }

    /// Tells of the download of `digest` from now on. However many are told, one looks.
    pub fn watch(&self, digest: &Digest) -> Watching {
        match &self.0 {
            Some(inner) => {
                let tail = inner.tails.of(digest);
                inner
                    .watchers
                    .watch(&inner.root, &inner.namespace, digest, tail)
            }
            None => Watching::nothing(),
        }
    }

    /// For who gives `digest` to this node's containerd: what passes is there for those who follow before it is in a file.
    pub fn passing(&self, digest: &Digest) -> Passing {
        Passing::new(self.0.as_ref().map(|inner| inner.tails.of(digest)))
    }

    /// A place for somebody who waits here, until it is dropped. None where too many do.
    pub fn seat(&self) -> Option<Seat> {
        let Some(inner) = &self.0 else {
            // Nothing comes here that could be waited for.
            return Some(Seat(None));
        };
        let seat = inner.seats.clone().try_acquire_owned().ok()?;
        Some(Seat(Some(seat)))
    }

    /// Waits until it is known where containerd's content is, then says why downloads cannot be read there. A directory
    /// that is not there yet may be a new node's, and counts as readable until [`Self::missed`].
    pub async fn readable(&self) -> Result<(), String> {
        let Some(inner) = &self.0 else {
            return Ok(());
        };
        let root = inner.root.wait().await;
        let looked = tokio::task::spawn_blocking(move || readable(&root))
            .await
            .map_err(|e| e.to_string())?;
        if let Err(e) = &looked
            && e.kind() != io::ErrorKind::NotFound
        {
            inner.is_unreadable.store(true, Ordering::Relaxed);
        }
        looked.map_err(|e| e.to_string())
    }

    /// containerd downloads, and nothing was to be seen of it: if that is because there is no directory, none will be
    /// looked for until there is.
    pub fn missed(&self) {
        let Some(inner) = &self.0 else {
            return;
        };
        let is_there = inner.root.get().is_some_and(|root| readable(&root).is_ok());
        inner.is_unreadable.store(!is_there, Ordering::Relaxed);
    }

    /// While the guard lives, whoever asks for `digest` is told that it is worth waiting: this node's containerd has
    /// asked for it, and will have it soon.
    pub fn expect(&self, digest: Digest) -> Expecting {
        if let Some(inner) = &self.0 {
            *inner.expected().entry(digest.clone()).or_default() += 1;
            inner.watchers.wake(&digest);
        }
        Expecting {
            inner: self.0.clone(),
            digest,
        }
    }

    pub fn is_expected(&self, digest: &Digest) -> bool {
        let inner = self.0.as_ref();
        inner.is_some_and(|inner| inner.expected().contains_key(digest))
    }
}

impl Inner {
    fn expected(&self) -> MutexGuard<'_, HashMap<Digest, usize>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn readable(root: &Path) -> io::Result<()> {
    let directory = ingest::directory(root);
    // The dot needs the right to pass through a directory, the listing the right to read it: both are used.
    let looked = std::fs::read_dir(&directory).and_then(|_| directory.join(".").metadata());
    match looked {
        Ok(_) => Ok(()),
        // containerd makes it with its first download. A root that is not there may not be mounted, or be that of a new
        // node (1.7 and 2.x make it with the first blob): nobody can tell from here.
        Err(e) if e.kind() == io::ErrorKind::NotFound && std::fs::read_dir(root).is_ok() => Ok(()),
        Err(e) => Err(io::Error::new(
            e.kind(),
            format!("{}: {e}", directory.display()),
        )),
    }
}

/// See [`Inflight::seat`].
#[derive(Debug)]
pub struct Seat(
    #[allow(dead_code, reason = "it is given back when it is dropped")]
    Option<OwnedSemaphorePermit>,
);

/// One reason to expect a digest, until it is dropped.
#[derive(Debug)]
pub struct Expecting {
    inner: Option<Arc<Inner>>,
    digest: Digest,
}

impl Drop for Expecting {
    fn drop(&mut self) {
        let Some(inner) = &self.inner else {
            return;
        };
        let mut expected = inner.expected();
        if let Some(count) = expected.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                expected.remove(&self.digest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_expected_twice_is_expected_until_both_are_gone() {
        let inflight = Inflight::new(ContentRoot::unknown(), "k8s.io".into());
        let digest = Digest::sha256(b"layer");
        assert!(!inflight.is_expected(&digest));

        let (one, two) = (
            inflight.expect(digest.clone()),
            inflight.clone().expect(digest.clone()),
        );
        drop(one);

        assert!(inflight.is_expected(&digest));
        assert!(!inflight.is_expected(&Digest::sha256(b"another")));
        drop(two);
        assert!(!inflight.is_expected(&digest));
        let off = Inflight::off();
        let _guard = off.expect(digest.clone());
        assert!(!off.is_expected(&digest));
    }

    #[test]
    fn there_are_so_many_seats_and_one_that_is_left_is_free() {
        let inflight = Inflight::new(ContentRoot::unknown(), "k8s.io".into());
        let mut seats: Vec<_> = (0..MAX_WAITING).map(|_| inflight.seat().unwrap()).collect();
        assert!(inflight.clone().seat().is_none());

        seats.pop();

        assert!(inflight.seat().is_some());
    }

    #[tokio::test]
    async fn what_cannot_be_read_says_why_once_the_place_is_known() {
        let files = tempfile::tempdir().unwrap();
        let root = ContentRoot::unknown();
        let inflight = Inflight::new(root.clone(), "k8s.io".into());
        let checking = tokio::spawn(async move { inflight.readable().await });
        tokio::task::yield_now().await;
        assert!(!checking.is_finished());

        root.set(files.path().join("not-mounted"));

        let why = checking.await.unwrap().unwrap_err();
        assert!(why.contains("not-mounted/ingest"), "{why}");
        let check = |root: &Path| {
            let root = ContentRoot::known(root.to_owned());
            let inflight = Inflight::new(root, "k8s.io".into());
            async move { inflight.readable().await }
        };
        assert_eq!(check(files.path()).await, Ok(()), "before the first pull");
        std::fs::write(files.path().join("ingest"), "").unwrap();
        assert!(check(files.path()).await.is_err(), "a file");
        std::fs::remove_file(files.path().join("ingest")).unwrap();
        std::fs::create_dir(files.path().join("ingest")).unwrap();
        assert_eq!(check(files.path()).await, Ok(()));
    }
}
