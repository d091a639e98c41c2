//! Files in directories that others write into: opened only when they are what they should be.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

/// A file and its length in bytes; none where there is no such regular file. A symbolic link is none: it could lead anywhere. Never waits.
///
/// # Errors
/// Whatever open(2) and fstat(2) say otherwise, with `ENOTDIR` where a part of the path is no directory.
pub fn open(path: &Path) -> io::Result<Option<(File, u64)>> {
    // A pipe would be waited for until somebody writes into it.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path);
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
