//! Images that are made here: the same seed makes the same bytes, and every digest and size is known beforehand.
//!
//! Layers are incompressible, as a tar or as gzip that only stores: cheap to make, real to unpack. They go through files
//! and never lie in memory as a whole.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::process::find;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// What busybox is called in an image; enough to look around in it.
const APPLETS: &str =
    "sh ls cat echo sleep id ps mount wget nc df stat tail head sha256sum date true false";

/// What an image shall be.
#[derive(Clone, Debug)]
pub struct ImageSpec {
    name: String,
    tag: String,
    layers: Vec<u64>,
    seed: u64,
    busybox: bool,
    index: bool,
    gzip: bool,
}

impl ImageSpec {
    /// `name` as in `demo/app:v1`; without a tag it is `latest`.
    pub fn new(name: &str) -> Self {
        let (name, tag) = name.split_once(':').unwrap_or((name, "latest"));
        Self {
            name: name.to_owned(),
            tag: tag.to_owned(),
            layers: Vec::new(),
            seed: 1,
            busybox: false,
            index: false,
            gzip: true,
        }
    }

    /// One layer for each size, in bytes (the tar's frame comes on top).
    pub fn layers(mut self, sizes: impl IntoIterator<Item = u64>) -> Self {
        self.layers.extend(sizes);
        self
    }

    /// Two images with one seed share those layers that have the same place and size.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// A first layer with busybox, so that the image runs.
    pub fn busybox(mut self) -> Self {
        self.busybox = true;
        self
    }

    /// As multi-platform tags are: an index, here with a small second image for another platform that nobody pulls.
    pub fn index(mut self) -> Self {
        self.index = true;
        self
    }

    /// Layers as they are, instead of gzip around them.
    pub fn plain_tar(mut self) -> Self {
        self.gzip = false;
        self
    }

    /// Makes the image's files in `dir`. Takes a second for some hundred megabytes: not for an async thread.
    pub fn build(&self, registry: &str, dir: &Path) -> Result<Image> {
        let maker = Maker {
            dir,
            gzip: self.gzip,
        };
        let (here, elsewhere) = match std::env::consts::ARCH {
            "aarch64" => ("arm64", "amd64"),
            _ => ("amd64", "arm64"),
        };
        let mut layers = Vec::new();
        if self.busybox {
            layers.push(maker.layer(add_busybox)?);
        }
        for (place, size) in self.layers.iter().enumerate() {
            let random = Random::new(self.seed, place as u64);
            layers.push(maker.layer(|tar| add_data(tar, place, *size, random))?);
        }
        let (config, manifest) = maker.manifest(here, &layers)?;
        let mut image = Image {
            registry: registry.to_owned(),
            name: self.name.clone(),
            tag: self.tag.clone(),
            layers: layers.into_iter().map(|l| l.blob).collect(),
            config,
            manifest,
            index: None,
            other_blobs: Vec::new(),
            other_manifest: None,
        };
        if self.index {
            let random = Random::new(self.seed, u64::MAX);
            let layer = maker.layer(|tar| add_data(tar, 0, 1 << 16, random))?;
            let layers = [layer];
            let (config, manifest) = maker.manifest(elsewhere, &layers)?;
            let entry = |blob: &Blob, arch| {
                let mut entry = descriptor(blob);
                entry["platform"] = json!({"architecture": arch, "os": "linux"});
                entry
            };
            // The one for elsewhere first: who takes the first without looking, fails.
            let manifests = [entry(&manifest, elsewhere), entry(&image.manifest, here)];
            image.index = Some(maker.json(
                INDEX,
                &json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}),
            )?);
            image.other_blobs = layers.into_iter().map(|l| l.blob).chain([config]).collect();
            image.other_manifest = Some(manifest);
        }
        Ok(image)
    }
}

/// Something with a digest, and the file that holds it.
#[derive(Clone, Debug)]
pub struct Blob {
    /// `sha256:` and 64 hex digits.
    pub digest: String,
    pub size: u64,
    pub media_type: &'static str,
    pub file: PathBuf,
}

/// An image that was made. Pushing it is the registry's part, importing it a node's.
#[derive(Clone, Debug)]
pub struct Image {
    registry: String,
    name: String,
    tag: String,
    pub layers: Vec<Blob>,
    pub config: Blob,
    /// The one for this machine's platform.
    pub manifest: Blob,
    pub index: Option<Blob>,
    other_blobs: Vec<Blob>,
    other_manifest: Option<Blob>,
}

impl Image {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// `10.x.y.2:5000/demo/app:v1`
    pub fn reference(&self) -> String {
        format!("{}/{}:{}", self.registry, self.name, self.tag)
    }

    /// `10.x.y.2:5000/demo/app@sha256:...`
    pub fn reference_by_digest(&self) -> String {
        format!("{}/{}@{}", self.registry, self.name, self.top().digest)
    }

    /// What the tag stands for: the index, or the manifest of an image without one.
    pub fn top(&self) -> &Blob {
        self.index.as_ref().unwrap_or(&self.manifest)
    }

    /// What a node that pulls the image for its platform gets, to the byte.
    pub fn pulled_bytes(&self) -> u64 {
        self.pulled().map(|blob| blob.size).sum()
    }

    /// The blobs of such a pull: index, manifest, config, layers.
    pub fn pulled(&self) -> impl Iterator<Item = &Blob> {
        self.index
            .iter()
            .chain([&self.manifest, &self.config])
            .chain(&self.layers)
    }

    /// Layers and configs of all platforms.
    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        self.layers
            .iter()
            .chain([&self.config])
            .chain(&self.other_blobs)
    }

    /// Manifests of all platforms; not the index.
    pub fn manifests(&self) -> impl Iterator<Item = &Blob> {
        self.other_manifest.iter().chain([&self.manifest])
    }

    /// Writes an OCI archive as `ctr images import` takes it.
    pub fn write_archive(&self, to: &Path) -> Result<()> {
        let mut tar = tar::Builder::new(BufWriter::new(File::create(to)?));
        let mut top = descriptor(self.top());
        top["annotations"] = json!({"io.containerd.image.name": self.reference()});
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [top]});
        for (name, text) in [
            ("oci-layout", json!({"imageLayoutVersion": "1.0.0"})),
            ("index.json", index),
        ] {
            let text = text.to_string();
            tar.append_data(&mut header(text.len() as u64, 0o644), name, text.as_bytes())?;
        }
        for blob in self.blobs().chain(self.manifests()).chain(&self.index) {
            let path = format!("blobs/{}", blob.digest.replace(':', "/"));
            let file = File::open(&blob.file)?;
            tar.append_data(&mut header(blob.size, 0o444), path, file)?;
        }
        tar.into_inner()?.flush()?;
        Ok(())
    }
}

struct Layer {
    blob: Blob,
    /// Digest of the tar inside.
    diff_id: String,
}

struct Maker<'a> {
    dir: &'a Path,
    gzip: bool,
}

type Tar<'a> = tar::Builder<&'a mut dyn Write>;

impl Maker<'_> {
    fn layer(&self, fill: impl FnOnce(&mut Tar<'_>) -> Result<()>) -> Result<Layer> {
        let file = tempfile::NamedTempFile::new_in(self.dir)?;
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

    fn json(&self, media_type: &'static str, value: &Value) -> Result<Blob> {
        let mut out = Hashing::new(tempfile::NamedTempFile::new_in(self.dir)?);
        out.write_all(value.to_string().as_bytes())?;
        let (digest, size, file) = out.end();
        self.keep(file, digest, size, media_type)
    }

    fn keep(
        &self,
        file: tempfile::NamedTempFile,
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

    fn manifest(&self, arch: &str, layers: &[Layer]) -> Result<(Blob, Blob)> {
        let diff_ids: Vec<&str> = layers.iter().map(|l| l.diff_id.as_str()).collect();
        let config = self.json(
            CONFIG,
            &json!({
                "architecture": arch,
                "os": "linux",
                "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
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

fn add_data(tar: &mut Tar<'_>, place: usize, size: u64, random: Random) -> Result<()> {
    let path = format!("data/layer-{place}");
    Ok(tar.append_data(&mut header(size, 0o644), path, random.take(size))?)
}

fn add_busybox(tar: &mut Tar<'_>) -> Result<()> {
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

fn header(size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(0);
    header
}

fn descriptor(blob: &Blob) -> Value {
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
struct Random(u64);

impl Random {
    fn new(seed: u64, place: u64) -> Self {
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
