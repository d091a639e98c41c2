//! Puts our files in front of what is there.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::super::disk::{self, Eyes, HOSTS_TOML, is_directory};
use super::super::existing::{Unmergeable, of_certificates};
use super::super::mark::Mark;
use super::manifest::{self, Manifest};
use super::moves::{bring_back, clear, link_all, merge, strip};
use super::site::{Owner, Site, beside_backup, name, originals, owner};
use super::{Done, Error, Plan, Wanted};
use crate::oci::Digest;

pub fn install(certs_d: &Path, plan: &Plan) -> Result<Vec<Done>, Error> {
    disk::make_directory(certs_d)?;
    let _lock = disk::lock(certs_d)?;
    let site = Site::look(certs_d)?;
    if let Some(theirs) = site.other_release(&plan.release) {
        return Err(Error::OtherRelease {
            directory: certs_d.to_path_buf(),
            ours: plan.release.clone(),
            theirs: theirs.to_string(),
        });
    }
    clear(&site.scrap)?;
    if site.is_outdated {
        disk::remove_file(&site.backup.join(manifest::NAME))?;
    }
    if disk::exists(&site.backup) && !site.is_complete {
        // Only somebody else's hand makes both; what `_backup` holds is the younger.
        merge(&site.backup, &site.moving)?;
    }
    let kept = match site.is_complete {
        true => site.backup.clone(),
        false => site.moving.clone(),
    };
    disk::make_directory(&kept)?;
    for original in originals(&kept)? {
        // Made ready by an `install` that was killed before it took its place.
        if owner(&original) == Owner::Mirror {
            strip(&original, &site.certs_d.join(name(&original)), &site.scrap)?;
        }
    }

    let mut install = Install {
        site,
        plan,
        kept,
        done: Vec::new(),
    };
    let wanted = install.wanted()?;
    // Ours first: the wildcard must stand before the registries under it lose what they had.
    for wanted in &wanted {
        install.put(wanted)?;
    }
    install.put_away(&wanted)?;
    install.finish(&wanted)?;
    Ok(install.done)
}

struct Install<'a> {
    site: Site,
    plan: &'a Plan,
    /// Where originals are.
    kept: PathBuf,
    done: Vec<Done>,
}

/// What was there before us and is to stay, behind ours.
struct Found {
    directory: PathBuf,
    text: Option<String>,
    is_secret: bool,
}

impl Install<'_> {
    /// What is wanted, under the names that containerd reads first.
    fn wanted(&self) -> Result<Vec<Wanted>, Error> {
        let mut all: Vec<Wanted> = Vec::new();
        for wanted in &self.plan.wanted {
            let other = wanted.other_directory.as_ref();
            let other = other.filter(|other| {
                // It could not be read then, and it is not known that it was there before us.
                let was_left = || {
                    let is_there = disk::exists(&self.site.certs_d.join(other));
                    is_there && !self.site.had_written(&wanted.directory)
                };
                self.plan.prepend_existing && (self.is_before_us(other) || was_left())
            });
            all.push(Wanted {
                directory: other.unwrap_or(&wanted.directory).clone(),
                other_directory: None,
                text: wanted.text.clone(),
            });
        }
        let Some(text) = &self.plan.others else {
            return Ok(all);
        };
        let places = match self.site.is_complete {
            true => Vec::new(),
            false => beside_backup(&self.site.certs_d)?,
        };
        for directory in originals(&self.kept)?.iter().chain(&places) {
            let Some(registry) = self.registry_of(directory) else {
                continue;
            };
            if !all.iter().any(|wanted| wanted.directory == registry) {
                all.push(Wanted {
                    directory: registry,
                    other_directory: None,
                    text: Rc::clone(text),
                });
            }
        }
        Ok(all)
    }

    fn is_before_us(&self, directory: &str) -> bool {
        let place = self.site.certs_d.join(directory);
        disk::exists(&self.kept.join(directory))
            || self.site.had_written(directory)
            || disk::exists(&place) && !self.site.is_complete
    }

    /// The name of a registry's directory. A link to one that is here, too, leads to ours in any case.
    fn registry_of(&self, directory: &Path) -> Option<String> {
        let registry = name(directory).to_str()?;
        let real = directory.canonicalize().ok()?;
        let is_alias = directory.is_symlink()
            && self
                .site
                .certs_d
                .canonicalize()
                .is_ok_and(|root| real.starts_with(root));
        let is_set_aside = registry.contains(disk::FOUND);
        (real.is_dir() && !is_alias && !is_set_aside).then(|| registry.to_string())
    }

    /// Brings one file of ours to its place. What is not ours there goes to the originals.
    fn put(&mut self, wanted: &Wanted) -> Result<(), Error> {
        let place = self.site.certs_d.join(&wanted.directory);
        let original = self.kept.join(&wanted.directory);
        let file = place.join(HOSTS_TOML);
        let owner = self.site.owner(&place);
        if owner == Owner::Foreign && self.site.had_written(&wanted.directory) {
            self.done.push(Done::Edited(file));
            return Ok(());
        }
        let stays = match owner {
            Owner::Foreign => &place,
            Owner::Mirror | Owner::Nobody => &original,
        };
        let found = match self.plan.prepend_existing && stays.is_dir() {
            true => read(stays),
            false => Ok(None),
        };
        let text = found.and_then(|found| {
            let existing = found.as_ref().and_then(|found| found.text.as_deref());
            (wanted.text)(existing).map(|text| (found, text))
        });
        let (found, text) = match text {
            Ok(text) => text,
            Err(reason) => {
                let file = stays.join(HOSTS_TOML);
                self.done.push(Done::Unmergeable(file, reason));
                return Ok(());
            }
        };
        let is_secret = self.plan.is_secret || found.as_ref().is_some_and(|found| found.is_secret);
        let eyes = match is_secret {
            true => Eyes::Roots,
            false => Eyes::Everybodys,
        };

        let scrap = &self.site.scrap;
        match owner {
            Owner::Mirror => {
                // What the file names must be there before it.
                let was_missing = match &found {
                    Some(found) => link_all(&found.directory, &place)?,
                    None => false,
                };
                let is_same = fs::read(&file).is_ok_and(|old| old == text.as_bytes())
                    && disk::is_secret(&file) == is_secret;
                if is_same && !was_missing {
                    self.done.push(Done::Unchanged(file));
                    return Ok(());
                }
                disk::write(&place, HOSTS_TOML, &text, eyes)?;
            }
            Owner::Nobody => {
                prepare(scrap, &text, eyes, found.as_ref())?;
                disk::rename(scrap, &place)?;
            }
            Owner::Foreign => {
                if disk::exists(&original) {
                    disk::rename(&original, &disk::free_name(&original))?;
                }
                // Made ready where the foreign one will be kept, so that one exchange brings both to their places.
                prepare(scrap, &text, eyes, found.as_ref())?;
                disk::rename(scrap, &original)?;
                disk::exchange(&original, &place, scrap)?;
                self.done.push(Done::BackedUp(place));
            }
        }
        self.done.push(Done::Written(file));
        Ok(())
    }

    /// Everything that is not wanted: ours goes, and what is from before us, too, unless it is to stay.
    fn put_away(&mut self, wanted: &[Wanted]) -> Result<(), Error> {
        let is_wanted = |entry: &Path| wanted.iter().any(|w| name(entry) == w.directory.as_str());
        let stays = self.plan.prepend_existing;
        for entry in beside_backup(&self.site.certs_d)? {
            if is_wanted(&entry) {
                continue;
            }
            let original = self.kept.join(name(&entry));
            let done = match self.site.owner(&entry) {
                Owner::Nobody => continue,
                Owner::Mirror if stays && disk::exists(&original) => {
                    bring_back(&entry, &original, &self.site.scrap)?;
                    Done::Restored(entry)
                }
                Owner::Mirror => {
                    strip(&entry, &original, &self.site.scrap)?;
                    Done::Removed(entry)
                }
                // With a list of registries, others are nobody's business.
                Owner::Foreign if stays && self.plan.others.is_none() => Done::Kept(entry),
                Owner::Foreign if self.site.is_complete => Done::LeftAlone(entry),
                Owner::Foreign if stays => Done::Kept(entry),
                Owner::Foreign => {
                    merge(&entry, &original)?;
                    Done::BackedUp(entry)
                }
            };
            self.done.push(done);
        }
        if !stays {
            return Ok(());
        }
        for original in originals(&self.kept)? {
            let place = self.site.certs_d.join(name(&original));
            let is_set_aside = name(&original).to_string_lossy().contains(disk::FOUND);
            if !is_wanted(&original) && !is_set_aside && !disk::exists(&place) {
                disk::rename(&original, &place)?;
                self.done.push(Done::Restored(place));
            }
        }
        Ok(())
    }

    fn finish(&mut self, wanted: &[Wanted]) -> Result<(), Error> {
        let before = self.site.manifest.as_ref();
        let mut files = BTreeMap::new();
        for Wanted { directory, .. } in wanted {
            let place = self.site.certs_d.join(directory);
            let old = before.and_then(|manifest| manifest.files.get(directory));
            let file = match owner(&place) {
                Owner::Mirror => fs::read(place.join(HOSTS_TOML)).ok(),
                Owner::Nobody | Owner::Foreign => None,
            };
            let hash = file.map(|bytes| Digest::sha256(&bytes).hex().to_string());
            files.extend(hash.or(old.cloned()).map(|hash| (directory.clone(), hash)));
        }
        let manifest = Manifest {
            release: self.plan.release.clone(),
            files,
        };
        if Manifest::read(&self.kept).as_ref() != Some(&manifest) {
            manifest.write(&self.kept)?;
        }
        if !self.site.is_complete {
            disk::rename(&self.site.moving, &self.site.backup)?;
        }
        Ok(())
    }
}

fn prepare(directory: &Path, text: &str, eyes: Eyes, found: Option<&Found>) -> Result<(), Error> {
    match found {
        Some(found) => {
            disk::make_directory_like(directory, &found.directory)?;
            link_all(&found.directory, directory)?;
        }
        None => disk::make_directory(directory)?,
    }
    disk::write(directory, HOSTS_TOML, text, eyes)
}

/// None where we are behind a link.
fn read(directory: &Path) -> Result<Option<Found>, Unmergeable> {
    let file = directory.join(HOSTS_TOML);
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(Unmergeable::NoToml(e.to_string())),
    };
    if Mark::read(&text).is_some() {
        return Ok(None);
    }
    let text = match text.is_empty() {
        false => Some(text),
        true => {
            let files = disk::entries(directory).unwrap_or_default();
            let files = files.iter().filter(|file| !is_directory(file));
            let names = files.filter_map(|file| name(file).to_str());
            of_certificates(&names.map(str::to_string).collect::<Vec<_>>())
        }
    };
    Ok(Some(Found {
        directory: directory.to_path_buf(),
        text,
        is_secret: disk::exists(&file) && disk::is_secret(&file),
    }))
}
