//! The changes that certs.d goes through, one at a time, each durable when it returns.
//!
//! The process can be killed between any two of them, so each leaves a directory that the next run understands.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, RenameFlags};
use rustix::io::Errno;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process changes the same directory: try again when it is done.
    #[error("{} is being changed by another process", .0.display())]
    Busy(PathBuf),
    /// Neither would know what the other has moved where.
    #[error(
        "--release-name [RELEASE_NAME] {ours:?} is not the release that {} belongs to, which is {theirs:?}, and two on \
         one node would undo each other's files: uninstall one of them or keep them on different nodes; where {theirs:?} \
         is gone for good, run `peili cleanup --release-name={theirs}` on this node first",
        directory.display()
    )]
    OtherRelease {
        directory: PathBuf,
        ours: String,
        theirs: String,
    },
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// What containerd reads in a registry's directory.
pub const HOSTS_TOML: &str = "hosts.toml";
/// Name under which a file grows before it gets its own.
pub const UNFINISHED: &str = ".hosts.toml.peili";

/// In the names of what had to make way.
pub const FOUND: &str = ".found-";

/// containerd runs as root, but its clients that read the file (nerdctl, ctr) may not.
const FILE_MODE: u32 = 0o644;
/// Unless there is something secret in it.
const SECRET_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o755;

/// Held while the directory is changed; the kernel takes it back from a process that dies.
pub struct Lock(#[allow(dead_code)] File); // Never read: it lives to be closed.

/// Waits for another process that is at it: it takes milliseconds, and one that forks may hold the lock a moment longer.
pub fn lock(directory: &Path) -> Result<Lock, Error> {
    const PATIENCE: Duration = Duration::from_secs(2);
    const PAUSE: Duration = Duration::from_millis(20);
    let file = File::open(directory).map_err(failed("open", directory))?;
    let begun = Instant::now();
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Lock(file)),
            Err(Errno::WOULDBLOCK) if begun.elapsed() < PATIENCE => std::thread::sleep(PAUSE),
            Err(Errno::WOULDBLOCK) => return Err(Error::Busy(directory.to_path_buf())),
            Err(e) => return Err(failed("lock", directory)(e.into())),
        }
    }
}

pub fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io {
        doing,
        path,
        source,
    }
}

/// Anything at all, a dangling symlink included.
pub fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// A directory itself, not a symlink to one.
pub fn is_directory(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_dir())
}

/// Whether there is the same under both names: of directories, in the first what is in the second, too.
pub fn is_same(a: &Path, b: &Path) -> bool {
    let (Ok(first), Ok(second)) = (a.symlink_metadata(), b.symlink_metadata()) else {
        return false;
    };
    if first.file_type() != second.file_type() {
        return false;
    }
    if first.is_dir() {
        return entries(a).is_ok_and(|entries| {
            let mut names = entries.iter().filter_map(|entry| entry.file_name());
            names.all(|name| name == UNFINISHED || is_same(&a.join(name), &b.join(name)))
        });
    }
    if (first.dev(), first.ino()) == (second.dev(), second.ino()) {
        return true;
    }
    if first.is_symlink() {
        return fs::read_link(a).is_ok_and(|target| fs::read_link(b).is_ok_and(|t| t == target));
    }
    first.is_file()
        && first.mode() == second.mode()
        && first.len() == second.len()
        && fs::read(a).is_ok_and(|bytes| fs::read(b).is_ok_and(|other| other == bytes))
}

/// What is in a directory, in the order of the names.
pub fn entries(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let read = || {
        fs::read_dir(directory)?
            .map(|entry| Ok(entry?.path()))
            .collect::<io::Result<Vec<_>>>()
    };
    let mut entries = read().map_err(failed("list", directory))?;
    entries.sort();
    Ok(entries)
}

/// Makes a directory, and those above it, where there is none.
pub fn make_directory(path: &Path) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    if let Some(parent) = parent {
        make_directory(parent)?;
    }
    step("make", path)?;
    fs::create_dir(path)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(DIRECTORY_MODE)))
        .map_err(failed("make", path))?;
    sync(parent.unwrap_or(Path::new(".")))
}

/// Whether nobody but its owner has a say in it.
pub fn is_secret(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|found| found.permissions().mode() & 0o077 == 0)
}

/// Whether nobody but root may read what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eyes {
    Everybodys,
    Roots,
}

/// Writes a file in `directory`: whoever opens it sees the old one or the new one, whole.
pub fn write(directory: &Path, name: &str, text: &str, eyes: Eyes) -> Result<(), Error> {
    let unfinished = directory.join(UNFINISHED);
    let (half, rest) = text.as_bytes().split_at(text.len() / 2);
    let mode = match eyes {
        Eyes::Everybodys => FILE_MODE,
        Eyes::Roots => SECRET_MODE,
    };

    step("create", &unfinished)?;
    // Not opened if it is there: a killed run's may have had another mode, and who has it open keeps it open.
    let mut file = remove_if_there(&unfinished)
        .and_then(|()| {
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(SECRET_MODE);
            options.open(&unfinished)
        })
        .map_err(failed("create", &unfinished))?;
    file.set_permissions(Permissions::from_mode(mode))
        .and_then(|()| file.write_all(half))
        .map_err(failed("write", &unfinished))?;
    step("write", &unfinished)?;
    file.write_all(rest)
        .and_then(|()| file.sync_all())
        .map_err(failed("write", &unfinished))?;
    rename(&unfinished, &directory.join(name))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// One more name for a file or a symlink, with its mode, owner and times; where the file system gives none, a copy.
/// There is nothing at `to`.
pub fn link(from: &Path, to: &Path) -> Result<(), Error> {
    step("link", to)?;
    if let Ok(()) = hard_link(from, to) {
        return sync_parents(to, to);
    }
    if from.is_symlink() {
        fs::read_link(from)
            .and_then(|target| symlink(target, to))
            .map_err(failed("copy", from))?;
        return sync_parents(to, to);
    }
    let unfinished = to.with_file_name(UNFINISHED);
    step("copy", from)?;
    let copy = || {
        remove_if_there(&unfinished)?;
        let found = from.metadata()?;
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(SECRET_MODE);
        let mut file = options.open(&unfinished)?;
        io::copy(&mut File::open(from)?, &mut file)?;
        // Not ours to give away without privileges; whoever could read it by its owner still cannot by us.
        let _ = std::os::unix::fs::fchown(&file, Some(found.uid()), Some(found.gid()));
        file.set_permissions(found.permissions())?;
        file.sync_all()
    };
    copy().map_err(failed("copy", from))?;
    rename(&unfinished, to)
}

fn hard_link(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(test)]
    if !tests::CAN_LINK.get() {
        return Err(io::Error::other("no links here"));
    }
    fs::hard_link(from, to)
}

/// A directory as another one is, without what is in it.
pub fn make_directory_like(path: &Path, like: &Path) -> Result<(), Error> {
    make_directory(path)?;
    let found = like.metadata().map_err(failed("look at", like))?;
    let _ = std::os::unix::fs::chown(path, Some(found.uid()), Some(found.gid()));
    fs::set_permissions(path, found.permissions()).map_err(failed("change the mode of", path))
}

pub fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    step("rename", from)?;
    fs::rename(from, to).map_err(failed("rename", from))?;
    sync_parents(from, to)
}

/// Brings `ours` and `foreign` to each other's places at once, so that neither name is ever without a file. `scrap` is
/// free, beside them, and ours to lose.
pub fn exchange(ours: &Path, foreign: &Path, scrap: &Path) -> Result<(), Error> {
    step("exchange", foreign)?;
    match exchange_names(ours, foreign) {
        Ok(()) => sync_parents(ours, foreign),
        // Some file systems cannot (NFS, for one); there one name is free for a moment.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            rename(ours, scrap)?;
            rename(foreign, ours)?;
            rename(scrap, foreign)
        }
        Err(e) => Err(failed("exchange", foreign)(e.into())),
    }
}

fn exchange_names(a: &Path, b: &Path) -> Result<(), Errno> {
    #[cfg(test)]
    if !tests::CAN_EXCHANGE.get() {
        return Err(Errno::INVAL);
    }
    rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)
}

pub fn remove_file(path: &Path) -> Result<(), Error> {
    step("remove", path)?;
    fs::remove_file(path).map_err(failed("remove", path))?;
    sync_parents(path, path)
}

/// Removes whatever there is.
pub fn remove_tree(path: &Path) -> Result<(), Error> {
    if !is_directory(path) {
        return remove_file(path);
    }
    for entry in entries(path)? {
        remove_tree(&entry)?;
    }
    remove_directory(path)
}

/// Removes an empty directory.
pub fn remove_directory(path: &Path) -> Result<(), Error> {
    step("remove", path)?;
    fs::remove_dir(path).map_err(failed("remove", path))?;
    sync_parents(path, path)
}

/// `path`, or when that is taken a name beside it which containerd does not read.
pub fn free_name(path: &Path) -> PathBuf {
    let numbered = (1..).map(|n| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!("{FOUND}{n}"));
        PathBuf::from(name)
    });
    std::iter::once(path.to_path_buf())
        .chain(numbered)
        .find(|path| !exists(path))
        .expect("numbers do not end")
}

fn sync_parents(a: &Path, b: &Path) -> Result<(), Error> {
    for parent in [a.parent(), b.parent().filter(|b| Some(*b) != a.parent())] {
        parent.map_or(Ok(()), sync)?;
    }
    Ok(())
}

fn sync(directory: &Path) -> Result<(), Error> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("sync", directory))
}

/// Passed before each change. In tests the process can die here.
#[cfg_attr(not(test), allow(clippy::unnecessary_wraps))]
fn step(doing: &'static str, path: &Path) -> Result<(), Error> {
    #[cfg(test)]
    if !tests::lives_on() {
        return Err(failed(doing, path)(io::Error::other("killed")));
    }
    let _ = (doing, path);
    Ok(())
}

#[cfg(test)]
pub mod tests {
    use std::cell::Cell;

    thread_local! {
        static STEPS_TO_LIVE: Cell<Option<usize>> = const { Cell::new(None) };
        /// Whether this thread's file system exchanges names.
        pub static CAN_EXCHANGE: Cell<bool> = const { Cell::new(true) };
        /// Whether it gives a file one more name.
        pub static CAN_LINK: Cell<bool> = const { Cell::new(true) };
    }

    /// Runs `work` and kills it before its step number `steps`, counted from 0.
    pub fn dying_before<T>(steps: usize, work: impl FnOnce() -> T) -> T {
        STEPS_TO_LIVE.set(Some(steps));
        let result = work();
        STEPS_TO_LIVE.set(None);
        result
    }

    /// The dead take no further step.
    pub fn lives_on() -> bool {
        match STEPS_TO_LIVE.get() {
            None => true,
            Some(0) => false,
            Some(steps) => {
                STEPS_TO_LIVE.set(Some(steps - 1));
                true
            }
        }
    }
}
