//! Puts back what was there before us.

use std::path::Path;

use super::super::disk::{self, HOSTS_TOML, UNFINISHED};
use super::manifest;
use super::moves::{bring_back, clear, merge, strip};
use super::site::{Owner, Site, beside_backup, is_spegels, name, originals, owner};
use super::{Done, Error};

pub fn restore(certs_d: &Path, release: &str) -> Result<Vec<Done>, Error> {
    let mut done = Vec::new();
    if !certs_d.is_dir() {
        return Ok(done);
    }
    let _lock = disk::lock(certs_d)?;
    let site = Site::look(certs_d)?;
    if let Some(other) = site.other_release(release) {
        let other = other.to_string();
        return Ok(vec![Done::OfAnotherRelease(site.certs_d, other)]);
    }
    if !site.is_ours() {
        // Spegel's, whose mirror may be at work.
        done.extend(disk::exists(&site.backup).then_some(Done::NotOurs(site.backup)));
        return Ok(done);
    }
    clear(&site.scrap)?;
    for entry in beside_backup(certs_d)? {
        if is_edited(&site, &entry) {
            done.push(Done::Edited(entry.join(HOSTS_TOML)));
        }
    }
    if site.has_spegels() {
        // As soon as an original is back, Spegel's files can no longer be told from it.
        for entry in beside_backup(certs_d)? {
            if is_spegels(&entry) {
                strip(&entry, &site.backup.join(name(&entry)), &site.scrap)?;
                done.push(Done::Removed(entry));
            }
        }
    }
    if disk::exists(&site.backup) {
        merge(&site.backup, &site.moving)?;
    }
    if disk::exists(&site.moving) {
        // Not a `for`: what stands in an original's way is put beside it and is restored in its turn.
        while let Some(original) = originals(&site.moving)?.into_iter().next() {
            done.extend(restore_one(&site, &original)?);
        }
        for name in [manifest::NAME, UNFINISHED] {
            let file = site.moving.join(name);
            if disk::exists(&file) {
                disk::remove_file(&file)?;
            }
        }
        disk::remove_directory(&site.moving)?;
    }
    for entry in beside_backup(certs_d)? {
        if owner(&entry) == Owner::Mirror {
            strip(&entry, &site.moving, &site.scrap)?;
            done.push(Done::Removed(entry));
        }
    }
    Ok(done)
}

fn restore_one(site: &Site, original: &Path) -> Result<Option<Done>, Error> {
    let place = site.certs_d.join(name(original));
    if owner(original) == Owner::Mirror {
        // Prepared by an `install` that was killed before it took its place, or replaced just now.
        strip(original, &place, &site.scrap)?;
        return Ok(None);
    }
    match owner(&place) {
        Owner::Nobody => disk::rename(original, &place)?,
        Owner::Mirror => bring_back(&place, original, &site.scrap)?,
        // Somebody's since: it keeps its names, and the original's are beside them.
        Owner::Foreign => {
            let is_told = is_edited(site, &place);
            merge(original, &place)?;
            return Ok((!is_told).then_some(Done::Restored(place)));
        }
    }
    Ok(Some(Done::Restored(place)))
}

/// Whether somebody made a file of ours his own.
fn is_edited(site: &Site, place: &Path) -> bool {
    owner(place) == Owner::Foreign
        && name(place)
            .to_str()
            .is_some_and(|directory| site.had_written(directory))
}
