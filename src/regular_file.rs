//! Files in directories that others write into: opened only when they are what they should be.

use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{Advice, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, ReadWriteFlags};
use tokio::sync::{Semaphore, SemaphorePermit};

/// `RESOLVE_CACHED` of linux/openat2.h, Linux 5.12: fails with `EAGAIN` where the way to the file is not in memory.
const CACHED: ResolveFlags = ResolveFlags::from_bits_retain(0x20);

/// A pipe would be waited for until somebody writes into it.
const FLAGS: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK);

/// A file and its length in bytes; none where there is no such regular file. A symbolic link is none: it could lead anywhere. Never waits.
///
/// # Errors
/// Whatever open(2) and fstat(2) say otherwise, with `ENOTDIR` where a part of the path is no directory.
pub fn open(path: &Path) -> io::Result<Option<(File, u64)>> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(FLAGS.bits().cast_signed())
        .open(path);
    found(opened)
}

/// The same without a disk: what is not in memory is not waited for, so it may be asked for on a worker. None where that
/// cannot be told; [`open`] tells.
pub fn open_cached(path: &Path) -> Option<io::Result<Option<(File, u64)>>> {
    let flags = FLAGS | OFlags::RDONLY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat2(CWD, path, flags, Mode::empty(), CACHED);
    match opened {
        // Not in memory; or a kernel or a seccomp profile that does not know this.
        Err(Errno::AGAIN | Errno::NOSYS | Errno::INVAL | Errno::PERM) => None,
        opened => Some(found(opened.map(File::from).map_err(io::Error::from))),
    }
}

/// Another one after whatever was done to a file: `st_ctime`, in seconds and nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version(i64, u64);

/// None once it stands in no directory: what was deleted stays readable for whoever has it open.
pub fn version(file: &File) -> Option<Version> {
    let stat = rustix::fs::fstat(file).ok()?;
    (stat.st_nlink > 0).then_some(Version(stat.st_ctime, stat.st_ctime_nsec))
}

/// Fills `buffer` with the bytes at `offset`, if all of them are in memory.
pub fn read_cached(file: &File, offset: u64, buffer: &mut [u8]) -> bool {
    let length = buffer.len();
    let read = rustix::io::preadv2(
        file,
        &mut [io::IoSliceMut::new(buffer)],
        offset,
        ReadWriteFlags::NOWAIT,
    );
    read == Ok(length)
}

/// Up to `length` bytes at `offset`, none at the file's end. What is in memory is read at once.
pub async fn read_at(file: &Arc<File>, offset: u64, length: usize) -> io::Result<Bytes> {
    let mut chunk = vec![0; length];
    match read_cached(file, offset, &mut chunk) {
        true => Ok(chunk.into()),
        false => read_into(file, offset, chunk, None).await,
    }
}

/// Up to `length` bytes at `offset`, none at the file's end, of a file that many read at once: who waits for its turn at the
/// disk has neither memory nor a thread yet.
pub async fn read_in_turn(file: &Arc<File>, offset: u64, length: usize) -> io::Result<Bytes> {
    /// With 256 KiB each they keep a disk busy that is 2 ms away and brings 2 GB/s.
    static TURNS: Semaphore = Semaphore::const_new(16);
    let turn = TURNS.acquire().await.map_err(io::Error::other)?;
    read_into(file, offset, vec![0; length], Some(turn)).await
}

/// What fits into `chunk` of the bytes at `offset`, none at the file's end, read on the blocking pool: a disk would stop a
/// worker, and every body on it. The chunk is not made there: each thread of the pool would keep what others have given back. The
/// turn ends when the disk has answered, whether or not somebody still waits for it.
async fn read_into(
    file: &Arc<File>,
    offset: u64,
    mut chunk: Vec<u8>,
    turn: Option<SemaphorePermit<'static>>,
) -> io::Result<Bytes> {
    let file = Arc::clone(file);
    tokio::task::spawn_blocking(move || {
        let _turn = turn;
        let read = loop {
            match file.read_at(&mut chunk, offset) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        chunk.truncate(read);
        Ok(chunk.into())
    })
    .await?
}

/// From now on the kernel reads no more of `file` than it is asked for: what it reads ahead by itself is `read_ahead_kb` of
/// the disk, which is megabytes on some, for each that reads.
pub fn read_nothing_ahead(file: &File) {
    // Without it, it costs memory.
    let _ = rustix::fs::fadvise(file, 0, None, Advice::Random);
}

/// The kernel begins to read `range` into memory, and nobody waits for it. False where it does that for so many already
/// that this one is left to whoever reads.
pub fn read_ahead(file: &Arc<File>, range: Range<u64>) -> bool {
    /// Each has a thread while the disk's queue is full, or memory is short.
    static TURNS: Semaphore = Semaphore::const_new(8);
    let length = NonZeroU64::new(range.end.saturating_sub(range.start));
    // No length would mean all of it.
    let (Some(length), Ok(turn)) = (length, TURNS.try_acquire()) else {
        return false;
    };
    let file = Arc::clone(file);
    tokio::task::spawn_blocking(move || {
        let _turn = turn;
        // Without it, whoever reads waits.
        let _ = rustix::fs::fadvise(&file, range.start, Some(length), Advice::WillNeed);
    });
    true
}

fn found(opened: io::Result<File>) -> io::Result<Option<(File, u64)>> {
    // NXIO: a socket, or a device without a driver.
    let others = [Errno::LOOP, Errno::NXIO].map(|errno| Some(errno.raw_os_error()));
    let file = match opened {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) if others.contains(&e.raw_os_error()) => return Ok(None),
        Err(e) => return Err(e),
    };
    let metadata = file.metadata()?;
    Ok(metadata.is_file().then_some((file, metadata.len())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::cold_file;

    #[test]
    fn what_is_in_memory_is_opened_and_read_without_waiting() {
        // Not below /tmp: a tmpfs does not say what is in memory, for all of it is.
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, b"some bytes").unwrap();

        let opened = open_cached(&path);

        // None where the kernel is older than 5.12.
        if let Some(opened) = opened {
            let (file, length) = opened.unwrap().unwrap();
            assert_eq!(length, 10);
            let mut buffer = [0; 5];
            assert!(read_cached(&file, 5, &mut buffer));
            assert_eq!(&buffer, b"bytes");
            assert!(!read_cached(&file, 6, &mut buffer), "beyond the end");
        }
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        for none in [&link, &directory.path().join("nothing")] {
            let opened = open_cached(none).map(|opened| opened.unwrap().is_some());
            assert_ne!(opened, Some(true), "{}", none.display());
        }
    }

    #[test]
    fn what_is_on_the_disk_alone_is_not_read() {
        let mut page = [7; 4096];
        let files: Vec<_> = (0..20).map(|_| cold_file(&page)).collect();

        let read = files.iter().filter(|file| read_cached(file, 0, &mut page));

        // A kernel begins to read what it is asked for, and a disk may have brought it before it looks once more.
        assert!(read.count() < files.len());
        files[0].read_exact_at(&mut page, 0).unwrap();
        // A page that the kernel has in its hands at that moment counts as on the disk.
        assert!((0..10).any(|_| read_cached(&files[0], 0, &mut page)));
    }
}
