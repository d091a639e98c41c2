//! Tar files that say nothing of when and by whom they were made.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result};
use flate2::read::GzDecoder;
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

/// The files of another's `.tar.gz`: helm writes into a chart when it was packed.
pub fn timeless(archive: &[u8]) -> Result<Vec<u8>> {
    let mut archive = tar::Archive::new(GzDecoder::new(archive));
    let mut files = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let (path, mode) = (entry.path()?.display().to_string(), entry.header().mode()?);
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        files.push((path, mode, bytes));
    }
    let mut tar = tar::Builder::new(Vec::new());
    for (path, mode, bytes) in &files {
        let mut header = header(bytes.len() as u64, *mode);
        tar.append_data(&mut header, path, bytes.as_slice())?;
    }
    gzip(&tar.into_inner()?)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_packed_at_another_time_becomes_the_same_bytes() {
        let packed = |time| {
            let mut header = header(3, 0o644);
            header.set_mtime(time);
            let mut tar = tar::Builder::new(Vec::new());
            tar.append_data(&mut header, "peili/Chart.yaml", &b"a: "[..])
                .unwrap();
            gzip(&tar.into_inner().unwrap()).unwrap()
        };
        let (early, late) = (packed(1), packed(2));
        assert_ne!(early, late);

        let ours = timeless(&early).unwrap();

        assert_eq!(ours, timeless(&late).unwrap());
        let mut read = tar::Archive::new(GzDecoder::new(&ours[..]));
        let mut entries = read.entries().unwrap();
        let mut entry = entries.next().unwrap().unwrap();
        assert_eq!(entry.path().unwrap().to_str(), Some("peili/Chart.yaml"));
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        assert_eq!(text, "a: ");
    }
}
