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

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use super::disk::{self, is_directory};
use super::toml;

pub use super::disk::Error;

/// Spegel's name for it: each understands what the other has put there.
const BACKUP: &str = "_backup";
const MOVING: &str = "_backup.moving";

/// Where our directories are made and unmade, so that under their own names they are whole or not there.
const SCRAP: &str = ".peili";

/// What is ours in a directory of ours. The file that marks it goes last.
const OURS: [&str; 2] = [disk::UNFINISHED, "hosts.toml"];

/// One registry's configuration, as it shall be.
pub struct Wanted {
    /// Below certs.d.
    pub directory: String,
    pub text: String,
    /// Whether it is for root's eyes only.
    pub is_secret: bool,
}

/// What was done, for a person to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    Written(PathBuf),
    /// It was there already.
    Unchanged(PathBuf),
    BackedUp(PathBuf),
    /// Added by somebody after the backup: not ours to touch, and containerd prefers it to the wildcard.
    LeftAlone(PathBuf),
    /// Ours, or Spegel's, and no longer wanted.
    Removed(PathBuf),
    Restored(PathBuf),
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, path) = match self {
            Done::Written(path) => ("written", path),
            Done::Unchanged(path) => ("unchanged", path),
            Done::BackedUp(path) => ("backed up", path),
            Done::LeftAlone(path) => ("left alone", path),
            Done::Removed(path) => ("removed", path),
            Done::Restored(path) => ("restored", path),
        };
        write!(f, "{what} {}", path.display())
    }
}

/// Whose an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Nobody,
    /// A directory whose `hosts.toml` we may replace.
    Mirror,
    Foreign,
}

pub fn install(certs_d: &Path, wanted: &[Wanted]) -> Result<Vec<Done>, Error> {
    disk::make_directory(certs_d)?;
    let _lock = disk::lock(certs_d)?;
    clear_scrap(certs_d)?;
    let mut done = Vec::new();
    let (backup, moving) = (certs_d.join(BACKUP), certs_d.join(MOVING));
    let complete = disk::exists(&backup) && !disk::exists(&moving);
    if disk::exists(&backup) && !complete {
        // Only somebody else's hand makes both; what `_backup` holds is the younger.
        merge(&backup, &moving)?;
    }
    let kept = if complete { &backup } else { &moving };
    disk::make_directory(kept)?;

    // Ours first: the wildcard must stand before the registries under it lose what they had.
    for wanted in wanted {
        put(certs_d, wanted, kept, complete, &mut done)?;
    }
    for entry in beside_backup(certs_d)? {
        if wanted.iter().any(|w| certs_d.join(&w.directory) == entry) {
            continue;
        }
        match (owner(&entry, complete), complete) {
            (Owner::Nobody, _) => {}
            (Owner::Mirror, _) => {
                strip(certs_d, &entry)?;
                done.push(Done::Removed(entry));
            }
            (Owner::Foreign, true) => done.push(Done::LeftAlone(entry)),
            (Owner::Foreign, false) => {
                merge(&entry, &kept.join(name(&entry)))?;
                done.push(Done::BackedUp(entry));
            }
        }
    }
    if !complete {
        disk::rename(&moving, &backup)?;
    }
    Ok(done)
}

pub fn restore(certs_d: &Path) -> Result<Vec<Done>, Error> {
    let mut done = Vec::new();
    if !certs_d.is_dir() {
        return Ok(done);
    }
    let _lock = disk::lock(certs_d)?;
    clear_scrap(certs_d)?;
    let (backup, moving) = (certs_d.join(BACKUP), certs_d.join(MOVING));
    if disk::exists(&backup) {
        // As soon as an original is back, Spegel's files can no longer be told from it.
        for entry in beside_backup(certs_d)? {
            if owner(&entry, true) != owner(&entry, false) {
                strip(certs_d, &entry)?;
                done.push(Done::Removed(entry));
            }
        }
        merge(&backup, &moving)?;
    }
    if disk::exists(&moving) {
        // Not a `for`: what stands in an original's way is put beside it and is restored in its turn.
        while let Some(original) = disk::entries(&moving)?.into_iter().next() {
            let place = certs_d.join(name(&original));
            if owner(&original, false) == Owner::Mirror {
                // Prepared by an `install` that was killed before it took its place, or replaced just now.
                strip(certs_d, &original)?;
                continue;
            }
            match owner(&place, false) {
                Owner::Nobody => disk::rename(&original, &place)?,
                Owner::Mirror => {
                    save_additions(&place, &original)?;
                    disk::exchange(&place, &original, &certs_d.join(SCRAP))?;
                    strip(certs_d, &original)?;
                }
                Owner::Foreign => {
                    merge(&place, &original)?;
                    disk::rename(&original, &place)?;
                }
            }
            done.push(Done::Restored(place));
        }
        disk::remove_directory(&moving)?;
    }
    for entry in beside_backup(certs_d)? {
        if owner(&entry, false) == Owner::Mirror {
            strip(certs_d, &entry)?;
            done.push(Done::Removed(entry));
        }
    }
    Ok(done)
}

/// Brings one file of ours to its place. What is not ours there goes to `kept`.
fn put(
    certs_d: &Path,
    wanted: &Wanted,
    kept: &Path,
    complete: bool,
    done: &mut Vec<Done>,
) -> Result<(), Error> {
    let place = certs_d.join(&wanted.directory);
    let file = place.join("hosts.toml");
    let owner = owner(&place, complete);
    if owner == Owner::Mirror {
        if fs::read(&file).is_ok_and(|text| text == wanted.text.as_bytes())
            && disk::is_secret(&file) == wanted.is_secret
        {
            done.push(Done::Unchanged(file));
            return Ok(());
        }
        disk::write_hosts_toml(&place, &wanted.text, wanted.is_secret)?;
        done.push(Done::Written(file));
        return Ok(());
    }
    let scrap = certs_d.join(SCRAP);
    if owner == Owner::Nobody {
        prepare(&scrap, wanted)?;
        disk::rename(&scrap, &place)?;
    } else {
        // Made ready where the foreign one will be kept, so that one exchange brings both to their places.
        let mut ready = kept.join(&wanted.directory);
        if self::owner(&ready, false) == Owner::Mirror {
            strip(certs_d, &ready)?;
        }
        ready = disk::free_name(&ready);
        prepare(&scrap, wanted)?;
        disk::rename(&scrap, &ready)?;
        disk::exchange(&ready, &place, &scrap)?;
        done.push(Done::BackedUp(place));
    }
    done.push(Done::Written(file));
    Ok(())
}

fn prepare(directory: &Path, wanted: &Wanted) -> Result<(), Error> {
    disk::make_directory(directory)?;
    disk::write_hosts_toml(directory, &wanted.text, wanted.is_secret)
}

/// Spegel's files bear no mark; `spegels` takes what looks like one for one, which is right only beside a `_backup`.
fn owner(entry: &Path, spegels: bool) -> Owner {
    if !disk::exists(entry) {
        return Owner::Nobody;
    }
    let file = entry.join("hosts.toml");
    let mirrors = is_directory(entry)
        && !file.is_symlink()
        && fs::read_to_string(&file)
            .is_ok_and(|text| toml::is_ours(&text) || spegels && toml::is_spegels(&text));
    if mirrors {
        Owner::Mirror
    } else {
        Owner::Foreign
    }
}

/// What is in a mirror's directory that is not of our making.
fn additions(mirror: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut entries = disk::entries(mirror)?;
    entries.retain(|entry| !OURS.iter().any(|name| entry.ends_with(name)));
    Ok(entries)
}

/// Takes our file out of a directory, and the directory away unless somebody has added something to it.
fn strip(certs_d: &Path, mirror: &Path) -> Result<(), Error> {
    if additions(mirror)?.is_empty() {
        disk::rename(mirror, &certs_d.join(SCRAP))?;
        clear_scrap(certs_d)
    } else {
        remove_ours(mirror)
    }
}

fn clear_scrap(certs_d: &Path) -> Result<(), Error> {
    let scrap = certs_d.join(SCRAP);
    if !disk::exists(&scrap) {
        return Ok(());
    }
    remove_ours(&scrap)?;
    disk::remove_directory(&scrap)
}

fn remove_ours(directory: &Path) -> Result<(), Error> {
    for file in OURS.map(|name| directory.join(name)) {
        if disk::exists(&file) {
            disk::remove_file(&file)?;
        }
    }
    Ok(())
}

/// What somebody added to a directory of ours goes with the original that takes its place.
fn save_additions(mirror: &Path, original: &Path) -> Result<(), Error> {
    for entry in additions(mirror)? {
        if is_directory(original) {
            merge(&entry, &original.join(name(&entry)))?;
        } else {
            disk::rename(&entry, &disk::free_name(original))?;
        }
    }
    Ok(())
}

/// Moves the younger `from` to `to`. Where both have the same name, what is at `to` keeps it.
fn merge(from: &Path, to: &Path) -> Result<(), Error> {
    if !disk::exists(to) {
        return disk::rename(from, to);
    }
    if !is_directory(from) || !is_directory(to) {
        return disk::rename(from, &disk::free_name(to));
    }
    for entry in disk::entries(from)? {
        merge(&entry, &to.join(name(&entry)))?;
    }
    disk::remove_directory(from)
}

fn beside_backup(certs_d: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut entries = disk::entries(certs_d)?;
    entries.retain(|entry| {
        ![BACKUP, MOVING, SCRAP]
            .iter()
            .any(|name| entry.ends_with(name))
    });
    Ok(entries)
}

fn name(entry: &Path) -> &std::ffi::OsStr {
    entry.file_name().expect("listed entries have names")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::super::disk::tests::{CAN_EXCHANGE, dying_before};
    use super::*;

    const OURS_OLD: &str = "# Written by peili.\nold\n";
    const OURS_NEW: &str = "# Written by peili.\nnew\n";
    const FOREIGN: &str = "server = \"https://mine\"\n";
    const SPEGELS: &str =
        "[host.'http://192.0.2.7:30020']\ncapabilities = ['pull']\ndial_timeout = '200ms'\n";

    /// Everything about a tree: kind, mode, inode and bytes of each entry.
    type Tree = BTreeMap<PathBuf, (u32, u64, Vec<u8>)>;

    fn tree(root: &Path) -> Tree {
        let mut tree = Tree::new();
        let mut pending = disk::entries(root).expect("list");
        while let Some(path) = pending.pop() {
            let meta = path.symlink_metadata().expect("stat");
            let bytes = if meta.is_symlink() {
                let target = fs::read_link(&path).expect("readlink");
                target.into_os_string().into_encoded_bytes()
            } else if meta.is_dir() {
                pending.extend(disk::entries(&path).expect("list"));
                Vec::new()
            } else {
                fs::read(&path).expect("read")
            };
            let name = path.strip_prefix(root).expect("below the root");
            tree.insert(name.to_path_buf(), (meta.mode(), meta.ino(), bytes));
        }
        tree
    }

    fn write(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
        fs::write(path, text).expect("write");
    }

    fn read(root: &Path, file: &str) -> Option<String> {
        fs::read_to_string(root.join(file)).ok()
    }

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    }

    /// What an administrator may have: certificates, modes, links, a stray file, an empty directory.
    fn administrators() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("tempdir");
        let at = root.path();
        write(at, "docker.io/hosts.toml", FOREIGN);
        write(at, "docker.io/certs/ca.crt", "certificate");
        write(at, "quay.io/hosts.toml", SPEGELS);
        write(at, "_default/hosts.toml", FOREIGN);
        write(at, "README", "mine");
        mode(&at.join("docker.io/hosts.toml"), 0o600);
        mode(&at.join("docker.io"), 0o700);
        fs::create_dir(at.join("empty.example")).expect("mkdir");
        symlink("docker.io", at.join("alias.example")).expect("symlink");
        symlink("nowhere", at.join("dangling.example")).expect("symlink");
        root
    }

    fn wanted(directories: &[&str], text: &str) -> Vec<Wanted> {
        let wanted = directories.iter().map(|directory| Wanted {
            directory: (*directory).to_string(),
            text: text.to_string(),
            is_secret: false,
        });
        wanted.collect()
    }

    /// Whatever containerd may meet while we work: the old file or the new one, not a part and not nothing.
    fn assert_whole(root: &Path, file: &str, allowed: &[Option<&str>]) {
        let found = read(root, file);
        assert!(allowed.contains(&found.as_deref()), "{file}: {found:?}");
    }

    #[test]
    fn what_was_there_before_us_comes_back_byte_for_byte() {
        let root = administrators();
        let before = tree(root.path());

        let files = wanted(&["_default", "docker.io", "ghcr.io"], OURS_NEW);
        install(root.path(), &files).expect("install");

        for directory in ["_default", "docker.io", "ghcr.io"] {
            let file = format!("{directory}/hosts.toml");
            assert_eq!(read(root.path(), &file).as_deref(), Some(OURS_NEW));
            let meta = fs::metadata(root.path().join(&file)).expect("stat");
            assert_eq!(meta.mode() & 0o777, 0o644);
        }
        assert!(!root.path().join("quay.io").exists());
        assert!(tree(&root.path().join(BACKUP)) == before);

        restore(root.path()).expect("restore");

        assert!(tree(root.path()) == before);
        assert_eq!(restore(root.path()).expect("again"), []);
        assert!(tree(root.path()) == before);
    }

    #[test]
    fn the_second_run_changes_nothing() {
        let root = administrators();
        let files = wanted(&["_default", "docker.io"], OURS_NEW);
        install(root.path(), &files).expect("install");
        let after = tree(root.path());

        let done = install(root.path(), &files).expect("install again");

        assert!(tree(root.path()) == after);
        assert!(
            done.iter().all(|done| matches!(done, Done::Unchanged(_))),
            "{done:?}"
        );
    }

    #[test]
    fn a_registry_that_is_no_longer_mirrored_loses_our_file_only() {
        let root = administrators();
        let before = tree(root.path());
        install(root.path(), &wanted(&["a.example", "b.example"], OURS_OLD)).expect("install");
        write(root.path(), "b.example/ca.crt", "certificate");

        install(root.path(), &wanted(&["_default"], OURS_NEW)).expect("install another");

        assert!(!root.path().join("a.example").exists());
        assert_eq!(read(root.path(), "b.example/hosts.toml"), None);
        assert!(read(root.path(), "b.example/ca.crt").is_some());

        restore(root.path()).expect("restore");

        let mut after = tree(root.path());
        after.retain(|path, _| !path.starts_with("b.example"));
        assert!(after == before);
    }

    #[test]
    fn what_an_administrator_adds_later_survives_every_start_and_the_cleanup() {
        let root = administrators();
        let files = wanted(&["_default", "docker.io"], OURS_NEW);
        install(root.path(), &files).expect("install");
        write(root.path(), "later.example/hosts.toml", "later");
        write(root.path(), "docker.io/ca.crt", "later");
        // In place of ours, where ours must be: kept beside the original.
        write(root.path(), "_default/hosts.toml", "later");

        let done = install(root.path(), &files).expect("install again");

        assert!(done.contains(&Done::LeftAlone(root.path().join("later.example"))));
        let read = |file: &str| read(root.path(), file);
        assert_eq!(read("later.example/hosts.toml").as_deref(), Some("later"));
        assert_eq!(read("docker.io/ca.crt").as_deref(), Some("later"));
        assert_eq!(read("_default/hosts.toml").as_deref(), Some(OURS_NEW));

        restore(root.path()).expect("restore");

        assert_eq!(read("later.example/hosts.toml").as_deref(), Some("later"));
        assert_eq!(read("docker.io/ca.crt").as_deref(), Some("later"));
        assert_eq!(read("docker.io/hosts.toml").as_deref(), Some(FOREIGN));
        assert_eq!(read("_default/hosts.toml").as_deref(), Some(FOREIGN));
        assert_eq!(
            read("_default.found-1/hosts.toml").as_deref(),
            Some("later")
        );
    }

    /// A directory as Spegel leaves it: the former content moved as it was, and files without a mark.
    fn spegels() -> (tempfile::TempDir, Tree) {
        let root = administrators();
        let before = tree(root.path());
        let entries = disk::entries(root.path()).expect("list");
        fs::create_dir(root.path().join(BACKUP)).expect("mkdir");
        for entry in entries {
            let to = root.path().join(BACKUP).join(name(&entry));
            fs::rename(&entry, to).expect("rename");
        }
        for registry in ["_default", "docker.io", "gcr.io"] {
            write(root.path(), &format!("{registry}/hosts.toml"), SPEGELS);
        }
        (root, before)
    }

    #[test]
    fn what_spegel_moved_away_comes_back_with_and_without_a_run_of_ours() {
        let (root, before) = spegels();
        restore(root.path()).expect("restore");
        assert!(tree(root.path()) == before);

        let (root, before) = spegels();
        install(root.path(), &wanted(&["_default"], OURS_NEW)).expect("install");
        assert!(tree(&root.path().join(BACKUP)) == before);
        assert!(!root.path().join("gcr.io").exists());
        restore(root.path()).expect("restore");
        assert!(tree(root.path()) == before);
    }

    #[test]
    fn without_a_backup_the_cleanup_takes_only_what_is_ours() {
        let root = tempfile::tempdir().expect("tempdir");
        write(root.path(), "docker.io/hosts.toml", SPEGELS);
        write(root.path(), "_default/hosts.toml", OURS_OLD);

        restore(root.path()).expect("restore");

        assert_eq!(
            read(root.path(), "docker.io/hosts.toml").as_deref(),
            Some(SPEGELS)
        );
        assert!(!root.path().join("_default").exists());
        assert_eq!(
            restore(&root.path().join("absent")).expect("nothing there"),
            []
        );
    }

    #[test]
    fn a_directory_that_was_not_there_is_made_and_is_left_empty() {
        let root = tempfile::tempdir().expect("tempdir");
        let certs_d = root.path().join("containerd/certs.d");

        install(&certs_d, &wanted(&["_default"], OURS_NEW)).expect("install");
        assert_eq!(
            read(&certs_d, "_default/hosts.toml").as_deref(),
            Some(OURS_NEW)
        );

        restore(&certs_d).expect("restore");
        assert!(tree(&certs_d).is_empty());
    }

    #[test]
    fn two_processes_do_not_change_the_same_directory() {
        let root = tempfile::tempdir().expect("tempdir");
        let _other = disk::lock(root.path()).expect("lock");

        assert!(matches!(install(root.path(), &[]), Err(Error::Busy(_))));
        assert!(matches!(restore(root.path()), Err(Error::Busy(_))));
    }

    /// Kills `work` before each of its steps in turn, until it lives to its end; each time on a fresh directory.
    fn killed_at_each_step<T>(
        fresh: impl Fn() -> (tempfile::TempDir, T),
        work: impl Fn(&Path) -> Result<Vec<Done>, Error>,
        check: impl Fn(&Path, T),
    ) {
        for steps in 0.. {
            let (root, before) = fresh();
            let finished = dying_before(steps, || work(root.path())).is_ok();
            check(root.path(), before);
            if finished {
                assert!(steps > 10, "the work was no work: {steps} steps");
                return;
            }
        }
    }

    fn first_install() -> (tempfile::TempDir, Tree) {
        let root = administrators();
        let before = tree(root.path());
        (root, before)
    }

    const FILES: [&str; 3] = ["_default", "docker.io", "ghcr.io"];

    #[test]
    fn an_install_killed_at_any_step_has_the_old_or_the_new_file_and_can_be_cleaned_up() {
        for fresh in [first_install, spegels] {
            killed_at_each_step(
                fresh,
                |root| install(root, &wanted(&FILES, OURS_NEW)),
                |root, before| {
                    let old = [Some(FOREIGN), Some(SPEGELS), Some(OURS_NEW)];
                    assert_whole(root, "_default/hosts.toml", &old);
                    assert_whole(root, "docker.io/hosts.toml", &old);
                    assert_whole(root, "ghcr.io/hosts.toml", &[None, Some(OURS_NEW)]);

                    restore(root).expect("restore");

                    assert!(tree(root) == before);
                },
            );
        }
    }

    #[test]
    fn an_install_killed_at_any_step_is_finished_by_the_next() {
        for fresh in [first_install, spegels] {
            killed_at_each_step(
                fresh,
                |root| install(root, &wanted(&FILES, OURS_NEW)),
                |root, before| {
                    install(root, &wanted(&FILES, OURS_NEW)).expect("install again");

                    for registry in FILES {
                        let file = read(root, &format!("{registry}/hosts.toml"));
                        assert_eq!(file.as_deref(), Some(OURS_NEW));
                    }
                    assert_eq!(beside_backup(root).expect("list").len(), FILES.len());
                    assert!(tree(&root.join(BACKUP)) == before);
                },
            );
        }
    }

    #[test]
    fn an_update_killed_at_any_step_has_the_old_or_the_new_file_and_can_be_cleaned_up() {
        killed_at_each_step(
            || {
                let (root, before) = first_install();
                install(root.path(), &wanted(&["_default", "docker.io"], OURS_OLD)).expect("old");
                (root, before)
            },
            |root| install(root, &wanted(&["_default", "ghcr.io"], OURS_NEW)),
            |root, before| {
                let either = [Some(OURS_OLD), Some(OURS_NEW)];
                assert_whole(root, "_default/hosts.toml", &either);
                assert_whole(root, "docker.io/hosts.toml", &[Some(OURS_OLD), None]);
                assert_whole(root, "ghcr.io/hosts.toml", &[None, Some(OURS_NEW)]);

                restore(root).expect("restore");

                assert!(tree(root) == before);
            },
        );
    }

    #[test]
    fn where_names_cannot_be_exchanged_a_kill_at_any_step_still_loses_nothing() {
        CAN_EXCHANGE.set(false);
        let install_all = |root: &Path| install(root, &wanted(&FILES, OURS_NEW));
        let installed = || {
            let (root, before) = first_install();
            install_all(root.path()).expect("install");
            (root, before)
        };
        let comes_back = |root: &Path, before| {
            restore(root).expect("restore");
            assert!(tree(root) == before);
        };
        let comes_through = |root: &Path, before| {
            install_all(root).expect("install");
            assert!(tree(&root.join(BACKUP)) == before);
            comes_back(root, before);
        };

        for fresh in [first_install, spegels] {
            killed_at_each_step(fresh, install_all, comes_back);
            killed_at_each_step(fresh, install_all, comes_through);
        }
        killed_at_each_step(installed, restore, comes_back);
        killed_at_each_step(installed, restore, comes_through);
    }

    #[test]
    fn a_cleanup_killed_at_any_step_has_the_new_or_the_old_file_and_is_finished_by_the_next() {
        let installed = || {
            let (root, before) = first_install();
            install(root.path(), &wanted(&FILES, OURS_NEW)).expect("install");
            (root, before)
        };
        killed_at_each_step(installed, restore, |root, before| {
            let either = [Some(FOREIGN), Some(OURS_NEW)];
            assert_whole(root, "_default/hosts.toml", &either);
            assert_whole(root, "docker.io/hosts.toml", &either);

            restore(root).expect("restore again");

            assert!(tree(root) == before);
        });
        // And by an install, when the operator has thought better of it.
        killed_at_each_step(installed, restore, |root, before| {
            install(root, &wanted(&FILES, OURS_NEW)).expect("install");
            assert!(tree(&root.join(BACKUP)) == before);
        });
    }
}
