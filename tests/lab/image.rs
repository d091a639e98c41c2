//! Images that are made here: the same seed makes the same bytes, and every digest and size is known beforehand.
//!
//! Layers are incompressible, as a tar or as gzip that only stores: cheap to make, real to unpack. They go through files
//! and never lie in memory as a whole.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::json;

use self::maker::{Maker, Random, add_busybox, add_data, header};

pub use self::maker::descriptor;

mod maker;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

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
    command: Vec<String>,
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
            command: vec!["/bin/sh".to_owned()],
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

    /// What it runs if nobody says otherwise.
    pub fn command(mut self, command: &[&str]) -> Self {
        self.command = command.iter().map(|&word| word.to_owned()).collect();
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
        let maker = Maker::new(dir, self.gzip);
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
        let (config, manifest) = maker.manifest(here, &layers, &self.command)?;
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
            let (config, manifest) = maker.manifest(elsewhere, &layers, &self.command)?;
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
    /// The same bytes under a name in another registry.
    pub fn at(&self, registry: &str) -> Self {
        Self {
            registry: registry.to_owned(),
            ..self.clone()
        }
    }

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
