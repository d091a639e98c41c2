//! What is found in the directory, and whose it is.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::super::disk::{self, HOSTS_TOML, UNFINISHED, is_directory};
use super::super::mark::Mark;
use super::super::toml;
use super::manifest::{self, Manifest};
use super::{BACKUP, Error, MOVING, SCRAP};

/// Whose an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Nobody,
    /// A directory whose `hosts.toml` we may replace.
    Mirror,
    Foreign,
}

/// The directory as it was found.
pub struct Site {
    pub certs_d: PathBuf,
    pub backup: PathBuf,
    pub moving: PathBuf,
    pub scrap: PathBuf,
    /// Whether everything from before us is in `_backup`.
    pub is_complete: bool,
    pub manifest: Option<Manifest>,
    /// Whether the manifest tells of what Spegel has replaced since.
    pub is_outdated: bool,
    /// Of the files that are ours.
    marks: Vec<Mark>,
}

impl Site {
    pub fn look(certs_d: &Path) -> Result<Self, Error> {
        let [backup, moving, scrap] = [BACKUP, MOVING, SCRAP].map(|name| certs_d.join(name));
        let texts: Vec<String> = beside_backup(certs_d)?
            .iter()
            .filter_map(|entry| hosts_toml(entry))
            .collect();
        let marks: Vec<Mark> = texts.iter().filter_map(|text| Mark::read(text)).collect();
        let manifest = [&moving, &backup]
            .into_iter()
            .find_map(|d| Manifest::read(d));
        let is_complete = disk::exists(&backup) && !disk::exists(&moving);
        // Its `configuration` removes everything but the backup, so what stands there is its own.
        let is_outdated = is_complete
            && manifest.is_some()
            && !texts.is_empty()
            && texts.iter().all(|text| toml::is_spegels(text));
        Ok(Self {
            certs_d: certs_d.to_path_buf(),
            backup,
            moving,
            scrap,
            is_complete,
            manifest: manifest.filter(|_| !is_outdated),
            is_outdated,
            marks,
        })
    }

    /// Whether we have been here, and nobody after us.
    pub fn is_ours(&self) -> bool {
        self.manifest.is_some() || disk::exists(&self.moving) || !self.marks.is_empty()
    }

    /// The release that it belongs to, if that is not `ours`.
    pub fn other_release(&self, ours: &str) -> Option<&str> {
        let marked = self.marks.iter().map(|mark| &mark.release);
        let listed = self.manifest.iter().map(|manifest| &manifest.release);
        let mut releases = listed.chain(marked).map(String::as_str);
        releases.find(|release| *release != ours)
    }

    /// Spegel's files bear no mark. What looks like one is one beside a `_backup` that we did not make.
    pub fn has_spegels(&self) -> bool {
        self.is_complete && self.manifest.is_none()
    }

    pub fn owner(&self, entry: &Path) -> Owner {
        match owner(entry) {
            Owner::Foreign if self.has_spegels() && is_spegels(entry) => Owner::Mirror,
            owner => owner,
        }
    }

    /// Whether we wrote a file in this directory and were done with it.
    pub fn had_written(&self, directory: &str) -> bool {
        let manifest = self.manifest.as_ref().filter(|_| self.is_complete);
        manifest.is_some_and(|manifest| manifest.files.contains_key(directory))
    }
}

/// As the file itself says it.
pub fn owner(entry: &Path) -> Owner {
    if !disk::exists(entry) {
        return Owner::Nobody;
    }
    match hosts_toml(entry) {
        Some(text) if Mark::read(&text).is_some() => Owner::Mirror,
        _ => Owner::Foreign,
    }
}

pub fn is_spegels(entry: &Path) -> bool {
    hosts_toml(entry).is_some_and(|text| toml::is_spegels(&text))
}

/// Ours are neither symlinks nor behind one.
fn hosts_toml(entry: &Path) -> Option<String> {
    let file = entry.join(HOSTS_TOML);
    let is_plain = is_directory(entry) && !file.is_symlink();
    is_plain.then(|| fs::read_to_string(file).ok()).flatten()
}

pub fn beside_backup(certs_d: &Path) -> Result<Vec<PathBuf>, Error> {
    without(certs_d, &[BACKUP, MOVING, SCRAP, manifest::NAME])
}

/// What was there before us.
pub fn originals(kept: &Path) -> Result<Vec<PathBuf>, Error> {
    without(kept, &[manifest::NAME, UNFINISHED])
}

fn without(directory: &Path, names: &[&str]) -> Result<Vec<PathBuf>, Error> {
    let mut entries = disk::entries(directory)?;
    entries.retain(|entry| !names.iter().any(|name| entry.ends_with(name)));
    Ok(entries)
}

pub fn name(entry: &Path) -> &OsStr {
    entry.file_name().expect("listed entries have names")
}
