//! The directory of containerd's host configuration: ours beside what was there before.
//!
//! What was there before us is moved into `_backup`, which containerd takes for no registry. The files keep their
//! inodes, so everything about them comes back: modes, owners, symlinks, times. While `_backup` is being filled or
//! emptied it is called `_backup.moving`. Beside that, everything that is not ours is still from before us; beside a
//! complete `_backup` it was added since and is left alone.
//!
//! ```text
//! install   foreign + ours written  --each exchanged-->  _backup.moving + ours  --rename-->  _backup + ours
//! restore   _backup + ours  --rename-->  _backup.moving + ours  --each exchanged-->  foreign
//! ```
//!
//! Each arrow is a row of single renames, so a registry has its old configuration or its new one at any moment, and
//! both functions go on where a killed one stopped.
//!
//! Whose a file is, is told by the file itself ([`super::mark`]), and by a manifest in `_backup` that lists what we had
//! written when all was done: what stands there now and is not ours was changed since, by somebody who meant it.

mod install;
mod manifest;
mod moves;
mod restore;
mod site;

use std::fmt;
use std::path::PathBuf;
use std::rc::Rc;

pub use super::disk::Error;
use super::existing::Unmergeable;

pub use install::install;
pub use restore::restore;

/// Spegel's name for it: each understands what the other has put there.
const BACKUP: &str = "_backup";
const MOVING: &str = "_backup.moving";

/// Where our directories are made and unmade, so that under their own names they are whole or not there.
const SCRAP: &str = ".peili";

/// The text of a file, given what was there before, if that is to stay.
pub type Text = Rc<dyn Fn(Option<&str>) -> Result<String, Unmergeable>>;

/// Everything as it shall be.
pub struct Plan {
    pub release: String,
    /// Whether what was there before goes on to count, behind ours.
    pub prepend_existing: bool,
    /// Whether the files are for root's eyes only.
    pub is_secret: bool,
    pub wanted: Vec<Wanted>,
    /// For registries that have directories and are not in `wanted`, where those stay.
    pub others: Option<Text>,
}

/// One registry's configuration.
pub struct Wanted {
    /// Below certs.d.
    pub directory: String,
    /// What else containerd would call it, and looks at first.
    pub other_directory: Option<String>,
    pub text: Text,
}

/// What was done, for a person to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    Written(PathBuf),
    /// It was there already.
    Unchanged(PathBuf),
    BackedUp(PathBuf),
    /// From before us, and to stay where it is.
    Kept(PathBuf),
    /// Added by somebody after the backup: not ours to touch, and containerd prefers it to the wildcard.
    LeftAlone(PathBuf),
    /// Written by us and changed by somebody since: his now.
    Edited(PathBuf),
    /// Ours cannot be put before it.
    Unmergeable(PathBuf, Unmergeable),
    /// Ours, or Spegel's, and no longer wanted.
    Removed(PathBuf),
    Restored(PathBuf),
    /// Of another release of ours, whose name it is.
    OfAnotherRelease(PathBuf, String),
    /// A backup that is not ours.
    NotOurs(PathBuf),
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, path) = match self {
            Done::Written(path) => ("written", path),
            Done::Unchanged(path) => ("unchanged", path),
            Done::BackedUp(path) => ("backed up", path),
            Done::Kept(path) => ("kept", path),
            Done::LeftAlone(path) => ("left alone", path),
            Done::Edited(path) => ("left alone, edited since", path),
            Done::Unmergeable(path, _) => ("left alone, cannot be read", path),
            Done::Removed(path) => ("removed", path),
            Done::Restored(path) => ("restored", path),
            Done::OfAnotherRelease(path, _) => ("left alone, of another release", path),
            Done::NotOurs(path) => ("left alone, not ours", path),
        };
        write!(f, "{what} {}", path.display())
    }
}
