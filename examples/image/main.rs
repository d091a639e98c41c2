//! Packs the program into a container image, as an OCI layout in one tar file: what `make image` runs.
//!
//! From scratch: the program, certificates and the licence. Nothing is fetched and nobody's builder is needed, and the same
//! files make the same bytes. `ctr images import`, `skopeo copy oci-archive:…` and `podman load` read it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use flate2::{Compression, GzBuilder};
use peili::oci::Digest;
use serde_json::{Value, json};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Where Go, OpenSSL and rustls-native-certs look, on Debian.
const CERTIFICATES: &str = "etc/ssl/certs/ca-certificates.crt";

/// Packs the program into a container image.
#[derive(Parser)]
struct Options {
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

fn main() -> ExitCode {
    match pack(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("image: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn pack(options: &Options) -> Result<()> {
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
        let tar = layer(&files)?;
        let packed = gzip(&tar)?;
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

/// Files in their order, with the directories that they need before them; nothing in it says when or by whom it was made.
fn layer(files: &[(&str, u32, &Vec<u8>)]) -> Result<Vec<u8>> {
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

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut packer = GzBuilder::new()
        .mtime(0)
        .write(Vec::new(), Compression::best());
    packer.write_all(bytes)?;
    Ok(packer.finish()?)
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
        let tar = layer(&files)?;
        let directory = to
            .parent()
            .filter(|path| !path.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        // Whoever reads the old one meanwhile goes on reading it.
        let mut new = tempfile::NamedTempFile::new_in(directory)?;
        new.write_all(&tar)?;
        // A temporary file is for its maker alone, and this is for whoever installs it.
        fs::set_permissions(new.path(), fs::Permissions::from_mode(0o644))?;
        new.persist(to).with_context(|| to.display().to_string())?;
        Ok(())
    }
}
