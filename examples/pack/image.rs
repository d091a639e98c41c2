//! The container image, as an OCI layout in one tar file.
//!
//! From scratch: the program, certificates and the licence. Nothing is fetched and nobody's builder is needed.
//! `ctr images import`, `skopeo copy oci-archive:…` and `podman load` read it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use peili::oci::Digest;
use serde_json::{Value, json};

use crate::archive;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Where Go, OpenSSL and rustls-native-certs look, on Debian.
const CERTIFICATES: &str = "etc/ssl/certs/ca-certificates.crt";

#[derive(clap::Args)]
pub struct Options {
    /// The program for each platform, as amd64=FILE; it must need no shared library
    #[arg(long, required = true, value_name = "ARCH=FILE")]
    binary: Vec<String>,
    /// What the image is called
    #[arg(long, value_name = "REFERENCE")]
    name: String,
    /// Certificates of authorities, PEM
    #[arg(
        long,
        default_value = "/etc/ssl/certs/ca-certificates.crt",
        value_name = "FILE"
    )]
    certificates: PathBuf,
    #[arg(long, default_value = "LICENSE", value_name = "FILE")]
    licence: PathBuf,
    /// The tar file that is made
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

pub fn image(options: &Options) -> Result<()> {
    let read = |path: &Path| fs::read(path).with_context(|| path.display().to_string());
    let (certificates, licence) = (read(&options.certificates)?, read(&options.licence)?);
    ensure!(
        certificates.starts_with(b"-----BEGIN CERTIFICATE-----"),
        "{} has no certificates",
        options.certificates.display()
    );
    let mut layout = Layout::default();
    let mut manifests = Vec::new();
    for binary in &options.binary {
        let (arch, file) = binary
            .split_once('=')
            .with_context(|| format!("{binary} is not ARCH=FILE"))?;
        let program = read(Path::new(file))?;
        ensure!(
            !program.windows(9).any(|window| window == b"/ld-linux"),
            "{file} needs shared libraries, and the image has none; `make image` builds one that does not"
        );
        // Ours is no secret, and nobody's to change.
        let files = [
            ("peili", 0o555, &program),
            (CERTIFICATES, 0o444, &certificates),
            ("LICENSE", 0o444, &licence),
        ];
        let tar = archive::tar(&files)?;
        let packed = archive::gzip(&tar)?;
        println!(
            "{arch}: {:.1} MiB, packed {:.1} MiB",
            tar.len() as f64 / f64::from(1 << 20),
            packed.len() as f64 / f64::from(1 << 20)
        );
        let config = config(arch, &Digest::sha256(&tar));
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": layout.add(CONFIG, config.to_string().into_bytes()),
            "layers": [layout.add(LAYER, packed)],
        });
        let mut descriptor = layout.add(MANIFEST, manifest.to_string().into_bytes());
        descriptor["platform"] = json!({"architecture": arch, "os": "linux"});
        manifests.push(descriptor);
    }
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    let mut top = layout.add(INDEX, index.to_string().into_bytes());
    top["annotations"] = json!({
        "io.containerd.image.name": options.name,
        "org.opencontainers.image.ref.name": options.name.rsplit_once(':').map_or("latest", |(_, tag)| tag),
    });
    layout.write(&top, &options.output)?;
    println!(
        "{} is {}",
        options.name,
        top["digest"].as_str().unwrap_or_default()
    );
    Ok(())
}

/// What runs, and what it is (OCI image specification, annotations).
fn config(arch: &str, layer: &Digest) -> Value {
    json!({
        "architecture": arch,
        "os": "linux",
        "config": {
            "Entrypoint": ["/peili"],
            "Env": [format!("SSL_CERT_FILE=/{CERTIFICATES}")],
            // containerd's socket and content are root's; the chart takes every capability away.
            "User": "0:0",
            "WorkingDir": "/",
            "Labels": {
                "org.opencontainers.image.title": "Peili",
                "org.opencontainers.image.description": env!("CARGO_PKG_DESCRIPTION"),
                "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
                "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.to_string()]},
        "history": [{"created_by": "make image"}],
    })
}

/// An image layout (OCI image specification, image-layout.md) that is being put together.
#[derive(Default)]
struct Layout(BTreeMap<String, Vec<u8>>);

impl Layout {
    /// The descriptor of what was added.
    fn add(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = Digest::sha256(&bytes);
        let descriptor =
            json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()});
        self.0
            .insert(format!("blobs/sha256/{}", digest.hex()), bytes);
        descriptor
    }

    fn write(mut self, top: &Value, to: &Path) -> Result<()> {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [top]});
        self.0
            .insert("index.json".to_owned(), index.to_string().into_bytes());
        self.0.insert(
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        );
        let files: Vec<_> = self
            .0
            .iter()
            .map(|(name, bytes)| (name.as_str(), 0o644, bytes))
            .collect();
        archive::write(&archive::tar(&files)?, to)
    }
}
