//! The files of an image: layers as tar or gzip, hashed while they are written, and the JSON around them.

use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::Blob;
use crate::lab::process::find;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// What busybox is called in an image; enough to look around in it.
const APPLETS: &str =
    "sh ls cat echo sleep id ps mount wget nc df stat tail head sha256sum date true false";

pub(super) struct Layer {
    pub(super) blob: Blob,
    /// Digest of the tar inside.
    diff_id: String,
}

pub(super) struct Maker<'a> {
    dir: &'a Path,
    gzip: bool,
}

pub(super) type Tar<'a> = tar::Builder<&'a mut dyn Write>;

impl<'a> Maker<'a> {
    pub(super) fn new(dir: &'a Path, gzip: bool) -> Self {
        Self { dir, gzip }
    }

    pub(super) fn layer(&self, fill: impl FnOnce(&mut Tar<'_>) -> Result<()>) -> Result<Layer> {
        let file = NamedTempFile::new_in(self.dir)?;
        let mut outer = Hashing::new(BufWriter::with_capacity(1 << 20, file));
        let (media_type, diff_id) = if self.gzip {
            let mut inner = Hashing::new(GzEncoder::new(&mut outer, Compression::none()));
            finish(fill, &mut inner)?;
            let (diff_id, _, gzip) = inner.end();
            gzip.finish()?;
            (LAYER_GZIP, Some(diff_id))
        } else {
            finish(fill, &mut outer)?;
            (LAYER_TAR, None)
        };
        let (digest, size, file) = outer.end();
        let blob = self.keep(file.into_inner()?, digest, size, media_type)?;
        let diff_id = diff_id.unwrap_or_else(|| blob.digest.clone());
        Ok(Layer { blob, diff_id })
    }

    pub(super) fn json(&self, media_type: &'static str, value: &Value) -> Result<Blob> {
        let mut out = Hashing::new(NamedTempFile::new_in(self.dir)?);
        out.write_all(value.to_string().as_bytes())?;
        let (digest, size, file) = out.end();
        self.keep(file, digest, size, media_type)
    }

    fn keep(
        &self,
        file: NamedTempFile,
        digest: String,
        size: u64,
        media_type: &'static str,
    ) -> Result<Blob> {
        let path = self.dir.join(&digest);
        file.persist(&path)?;
        Ok(Blob {
            digest,
            size,
            media_type,
            file: path,
        })
    }

    /// Config and manifest.
    pub(super) fn manifest(
        &self,
        arch: &str,
        layers: &[Layer],
        command: &[String],
    ) -> Result<(Blob, Blob)> {
        let diff_ids: Vec<&str> = layers.iter().map(|l| l.diff_id.as_str()).collect();
        let config = self.json(
            CONFIG,
            &json!({
                "architecture": arch,
                "os": "linux",
                "config": {"Cmd": command, "Env": ["PATH=/bin"]},
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
            }),
        )?;
        let descriptors: Vec<Value> = layers.iter().map(|l| descriptor(&l.blob)).collect();
        let manifest = self.json(
            MANIFEST,
            &json!({
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": descriptor(&config),
                "layers": descriptors,
            }),
        )?;
        Ok((config, manifest))
    }
}

fn finish(fill: impl FnOnce(&mut Tar<'_>) -> Result<()>, out: &mut dyn Write) -> Result<()> {
    let mut tar = tar::Builder::new(out);
    fill(&mut tar)?;
    Ok(tar.finish()?)
}

pub(super) fn add_data(tar: &mut Tar<'_>, place: usize, size: u64, random: Random) -> Result<()> {
    let path = format!("data/layer-{place}");
    Ok(tar.append_data(&mut header(size, 0o644), path, random.take(size))?)
}

pub(super) fn add_busybox(tar: &mut Tar<'_>) -> Result<()> {
    let busybox = std::fs::read(find("busybox").context("busybox")?)?;
    let loader = b"/ld-linux";
    let is_dynamic = busybox.windows(loader.len()).any(|window| window == loader);
    ensure!(
        !is_dynamic,
        "busybox needs shared libraries; install busybox-static"
    );
    for dir in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
        let mut header = header(0, 0o755);
        header.set_entry_type(tar::EntryType::Directory);
        tar.append_data(&mut header, dir, io::empty())?;
    }
    let size = busybox.len() as u64;
    tar.append_data(&mut header(size, 0o755), "bin/busybox", busybox.as_slice())?;
    for applet in APPLETS.split(' ') {
        let mut header = header(0, 0o777);
        header.set_entry_type(tar::EntryType::Symlink);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
    }
    Ok(())
}

pub(super) fn header(size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(0);
    header
}

/// As manifests and indexes speak of a blob.
pub fn descriptor(blob: &Blob) -> Value {
    json!({"mediaType": blob.media_type, "digest": blob.digest, "size": blob.size})
}

/// Hashes and counts what goes through.
struct Hashing<W> {
    inner: W,
    sha: Sha256,
    size: u64,
}

impl<W: Write> Hashing<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            sha: Sha256::new(),
            size: 0,
        }
    }

    fn end(self) -> (String, u64, W) {
        let hex: String = self
            .sha
            .finalize()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        (format!("sha256:{hex}"), self.size, self.inner)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.sha.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Endless bytes that no compression makes smaller: SplitMix64, which needs no crate and stays the same for ever.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64, place: u64) -> Self {
        let mut mixer = Self(seed);
        let seed = mixer.next();
        Self(seed ^ Self(place).next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl Read for Random {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for chunk in buffer.chunks_mut(8) {
            let bytes = self.next().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
        Ok(buffer.len())
    }
}
