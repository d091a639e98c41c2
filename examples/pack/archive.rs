//! Tar files that say nothing of when and by whom they were made.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};

/// Files in their order, with the directories that they need before them; nothing in it says when or by whom it was made.
pub fn tar(files: &[(&str, u32, &Vec<u8>)]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut made = Vec::new();
    for (name, mode, bytes) in files {
        let above: Vec<_> = Path::new(name)
            .ancestors()
            .skip(1)
            .filter(|path| !path.as_os_str().is_empty())
            .collect();
        for directory in above.into_iter().rev() {
            if !made.contains(&directory) {
                let mut header = header(0, 0o755);
                header.set_entry_type(tar::EntryType::Directory);
                tar.append_data(&mut header, directory, io::empty())?;
                made.push(directory);
            }
        }
        tar.append_data(
            &mut header(bytes.len() as u64, *mode),
            name,
            bytes.as_slice(),
        )?;
    }
    Ok(tar.into_inner()?)
}

fn header(size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

pub fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut packer = GzBuilder::new()
        .mtime(0)
        .write(Vec::new(), Compression::best());
    packer.write_all(bytes)?;
    Ok(packer.finish()?)
}

/// Whole, or not at all: whoever reads the old one meanwhile goes on reading it.
pub fn write(bytes: &[u8], to: &Path) -> Result<()> {
    let directory = to.parent().filter(|path| !path.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let mut new = tempfile::NamedTempFile::new_in(directory)?;
    new.write_all(bytes)?;
    // A temporary file is for its maker alone, and this is for whoever installs it.
    fs::set_permissions(new.path(), fs::Permissions::from_mode(0o644))?;
    new.persist(to).with_context(|| to.display().to_string())?;
    Ok(())
}
