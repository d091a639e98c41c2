//! The changes that certs.d goes through, one at a time, each durable when it returns.
//!
//! The process can be killed between any two of them, so each leaves a directory that the next run understands.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, RenameFlags};
use rustix::io::Errno;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process changes the same directory: try again when it is done.
    #[error("{} is being changed by another process", .0.display())]
    Busy(PathBuf),
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// Name under which a file grows before it gets its own.
pub const UNFINISHED: &str = ".hosts.toml.peili";

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

pub fn is_secret(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|found| found.permissions().mode() & 0o777 == SECRET_MODE)
}

/// Writes `hosts.toml` in `directory`: whoever opens it sees the old file or the new one, whole.
pub fn write_hosts_toml(directory: &Path, text: &str, is_secret: bool) -> Result<(), Error> {
    let unfinished = directory.join(UNFINISHED);
    let (half, rest) = text.as_bytes().split_at(text.len() / 2);

    let mode = if is_secret { SECRET_MODE } else { FILE_MODE };

    step("create", &unfinished)?;
    let mut file = File::create(&unfinished).map_err(failed("create", &unfinished))?;
    file.set_permissions(Permissions::from_mode(mode))
        .and_then(|()| file.write_all(half))
        .map_err(failed("write", &unfinished))?;
    step("write", &unfinished)?;
    file.write_all(rest)
        .and_then(|()| file.sync_all())
        .map_err(failed("write", &unfinished))?;
    rename(&unfinished, &directory.join("hosts.toml"))
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
        name.push(format!(".found-{n}"));
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
