//! How directories change places without losing what is in them.

use std::path::{Path, PathBuf};

use super::super::disk::{self, HOSTS_TOML, UNFINISHED, is_directory};
use super::Error;
use super::site::name;

/// What is ours in a directory of ours. The file that marks it goes last.
const OURS: [&str; 2] = [UNFINISHED, HOSTS_TOML];

/// Brings an original back to the place where a directory of ours is. What somebody added to ours goes with it.
pub fn bring_back(place: &Path, original: &Path, scrap: &Path) -> Result<(), Error> {
    for addition in additions(place, original)? {
        if is_directory(original) {
            graft(&addition, &original.join(name(&addition)))?;
        } else {
            disk::rename(&addition, &disk::free_name(original))?;
        }
    }
    disk::exchange(place, original, scrap)?;
    strip(original, place, scrap)
}

/// Takes what is ours out of a directory: our file, and what is in `original`, too. The directory goes with it unless
/// somebody has added something.
pub fn strip(mirror: &Path, original: &Path, scrap: &Path) -> Result<(), Error> {
    let additions = additions(mirror, original)?;
    if additions.is_empty() {
        disk::rename(mirror, scrap)?;
        return clear(scrap);
    }
    for entry in disk::entries(mirror)? {
        let is_ours = OURS.iter().any(|name| entry.ends_with(name));
        if !is_ours && !additions.contains(&entry) {
            disk::remove_tree(&entry)?;
        }
    }
    for file in OURS.map(|name| mirror.join(name)) {
        if disk::exists(&file) {
            disk::remove_file(&file)?;
        }
    }
    Ok(())
}

/// What is there is ours to lose.
pub fn clear(scrap: &Path) -> Result<(), Error> {
    if disk::exists(scrap) {
        disk::remove_tree(scrap)?;
    }
    Ok(())
}

/// What is in a mirror's directory and neither of our making nor of the original's.
fn additions(mirror: &Path, original: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut entries = disk::entries(mirror)?;
    entries.retain(|entry| {
        let is_ours = OURS.iter().any(|name| entry.ends_with(name));
        !is_ours && !disk::is_same(entry, &original.join(name(entry)))
    });
    Ok(entries)
}

/// Gives all that is beside `hosts.toml` a second name, below the other directory, unless that has something of the
/// same name. Whether anything was missing.
pub fn link_all(from: &Path, to: &Path) -> Result<bool, Error> {
    let mut was_missing = false;
    for entry in disk::entries(from)? {
        if !OURS.iter().any(|name| entry.ends_with(name)) {
            was_missing |= link_missing(&entry, &to.join(name(&entry)))?;
        }
    }
    Ok(was_missing)
}

fn link_missing(from: &Path, to: &Path) -> Result<bool, Error> {
    let is_missing = !disk::exists(to);
    if !is_directory(from) {
        if is_missing {
            disk::link(from, to)?;
        }
        return Ok(is_missing);
    }
    if is_missing {
        disk::make_directory_like(to, from)?;
    }
    let mut was_missing = is_missing;
    if is_directory(to) {
        for entry in disk::entries(from)? {
            was_missing |= link_missing(&entry, &to.join(name(&entry)))?;
        }
    }
    Ok(was_missing)
}

/// Makes `to` what the younger `from` is, and leaves that where it is. What was at `to` is kept under another name.
fn graft(from: &Path, to: &Path) -> Result<(), Error> {
    if from.ends_with(UNFINISHED) || disk::is_same(from, to) {
        return Ok(());
    }
    if !is_directory(from) || !is_directory(to) {
        if disk::exists(to) {
            disk::rename(to, &disk::free_name(to))?;
        }
        return link_missing(from, to).map(drop);
    }
    for entry in disk::entries(from)? {
        graft(&entry, &to.join(name(&entry)))?;
    }
    Ok(())
}

/// Moves `from` to `to`. Where both have the same name, what is at `to` keeps it.
pub fn merge(from: &Path, to: &Path) -> Result<(), Error> {
    if !disk::exists(to) {
        return disk::rename(from, to);
    }
    if disk::is_same(from, to) {
        return disk::remove_tree(from);
    }
    if !is_directory(from) || !is_directory(to) {
        return disk::rename(from, &disk::free_name(to));
    }
    for entry in disk::entries(from)? {
        merge(&entry, &to.join(name(&entry)))?;
    }
    disk::remove_directory(from)
}
