//! Notices that blobs come and go. Works on a read-only bind mount, from another mount namespace too.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use futures::StreamExt;
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};

use super::blobs;

/// A directory with `blobs` in it, and whatever its owner keeps beside it.
pub struct BlobDirectory {
    pub root: PathBuf,
    watches: Option<Watches>,
    has_complained: bool,
}

struct Watches {
    events: inotify::EventStream<Vec<u8>>,
    /// Directories by what inotify calls them: a new one among them is watched as well.
    watched: HashMap<WatchDescriptor, PathBuf>,
    /// Device and inode: another directory may get the root's name.
    root_is: (u64, u64),
}

impl BlobDirectory {
    pub fn new(root: PathBuf) -> Self {
        Self {
            root,
            watches: None,
            has_complained: false,
        }
    }

    /// Watches what is not watched yet. `complain` hears why that cannot be, once.
    pub fn watch(&mut self, complain: impl FnOnce(&io::Error)) {
        let is_same = |watches: &Watches| {
            identity(&self.root).is_ok_and(|identity| identity == watches.root_is)
        };
        if self.watches.as_ref().is_some_and(is_same) {
            return;
        }
        self.watches = None;
        match Watches::new(&self.root) {
            Ok(watches) => self.watches = Some(watches),
            Err(e) if !self.has_complained => {
                self.has_complained = true;
                complain(&e);
            }
            Err(_) => {}
        }
    }

    /// Whether every blob that comes or goes is noticed. A directory without any may be a wrong one.
    pub fn is_watched(&self) -> bool {
        self.watches.as_ref().is_some_and(Watches::has_blobs)
    }

    /// Returns when something in the directory has changed; never where it is not watched.
    pub async fn changed(&mut self) {
        let Some(watches) = &mut self.watches else {
            return std::future::pending().await;
        };
        let is_whole = match watches.events.next().await {
            Some(Ok(event)) => watches.noticed(&event),
            Some(Err(_)) | None => false,
        };
        if !is_whole {
            self.watches = None;
        }
    }
}

fn identity(directory: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::metadata(directory)?;
    Ok((metadata.dev(), metadata.ino()))
}

impl Watches {
    fn new(root: &Path) -> io::Result<Self> {
        let events = Inotify::init()?.into_event_stream(vec![0; 4096])?;
        let root_is = identity(root)?;
        // A file beside `blobs` may be written in place.
        let mask = directory_mask() | WatchMask::CLOSE_WRITE | WatchMask::MOVE_SELF;
        let descriptor = events.watches().add(root, mask)?;
        let mut watches = Self {
            events,
            watched: HashMap::from([(descriptor, root.to_path_buf())]),
            root_is,
        };
        watches.add_below(root)?;
        Ok(watches)
    }

    fn has_blobs(&self) -> bool {
        self.watched.values().any(|path| path.ends_with("blobs"))
    }

    fn add(&mut self, directory: &Path) -> io::Result<()> {
        let descriptor = self.events.watches().add(directory, directory_mask())?;
        self.watched.insert(descriptor, directory.to_path_buf());
        Ok(())
    }

    /// `blobs` and the directory of each algorithm in it, as far as they exist: containerd makes them when the first
    /// blob is committed.
    fn add_below(&mut self, root: &Path) -> io::Result<()> {
        let blobs = blobs(root);
        match self.add(&blobs) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            added => added?,
        }
        for entry in std::fs::read_dir(&blobs)? {
            let path = entry?.path();
            if path.is_dir() {
                self.add(&path)?;
            }
        }
        Ok(())
    }

    /// False where something may be missed from now on: events were dropped, a directory has gone or cannot be watched.
    fn noticed<S: AsRef<OsStr>>(&mut self, event: &inotify::Event<S>) -> bool {
        if event
            .mask
            .intersects(EventMask::IGNORED | EventMask::MOVE_SELF | EventMask::Q_OVERFLOW)
        {
            return false;
        }
        let is_new_directory = event.mask.contains(EventMask::ISDIR)
            && event
                .mask
                .intersects(EventMask::CREATE | EventMask::MOVED_TO);
        let parent = self.watched.get(&event.wd).cloned();
        let (true, Some(name), Some(parent)) = (is_new_directory, &event.name, parent) else {
            return true;
        };
        let name = name.as_ref();
        if name == "blobs" {
            self.add_below(&parent).is_ok()
        } else if parent.ends_with("blobs") {
            self.add(&parent.join(name)).is_ok()
        } else {
            // Ingests come and go in a directory of their own, which is not watched here.
            true
        }
    }
}

fn directory_mask() -> WatchMask {
    WatchMask::CREATE
        | WatchMask::MOVED_TO
        | WatchMask::DELETE
        | WatchMask::MOVED_FROM
        | WatchMask::ONLYDIR
}
