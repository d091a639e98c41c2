//! Everything that is published, in one directory.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use peili::oci::Digest;

use crate::{archive, bill};

#[derive(clap::Args)]
pub struct Options {
    /// The program, as one static file
    #[arg(long, value_name = "FILE")]
    binary: PathBuf,
    /// What it was built for, as Rust calls it
    #[arg(long, value_name = "TRIPLE")]
    triple: String,
    /// The image, as `pack image` makes it
    #[arg(long, value_name = "FILE")]
    image: PathBuf,
    /// The chart, as `helm package` makes it
    #[arg(long, value_name = "FILE")]
    chart: PathBuf,
    /// Where everything goes; what is there of another build is replaced
    #[arg(long, default_value = "dist", value_name = "DIR")]
    output: PathBuf,
}

pub fn release(options: &Options) -> Result<()> {
    let read = |path: &Path| fs::read(path).with_context(|| path.display().to_string());
    let version = env!("CARGO_PKG_VERSION");
    let (arch, _) = options
        .triple
        .split_once('-')
        .context("a triple such as x86_64-unknown-linux-gnu")?;
    let name = format!("peili-{version}-linux-{arch}");
    let chart = format!("peili-{version}.tgz");
    ensure!(
        options
            .chart
            .file_name()
            .is_some_and(|name| name == chart.as_str()),
        "{} is not the chart of this version, {chart}",
        options.chart.display()
    );
    let (program, licence, readme) = (
        read(&options.binary)?,
        read(Path::new("LICENSE"))?,
        read(Path::new("README.md"))?,
    );
    let inside = |file: &str| format!("{name}/{file}");
    let (peili, license, page) = (inside("peili"), inside("LICENSE"), inside("README.md"));
    let archive = archive::tar(&[
        (&peili, 0o755, &program),
        (&license, 0o644, &licence),
        (&page, 0o644, &readme),
    ])?;
    let bill = serde_json::to_vec_pretty(&bill::of_materials(&options.triple)?)?;
    let mut sums = String::new();
    for (file, bytes) in [
        (format!("{name}.tar.gz"), archive::gzip(&archive)?),
        (
            format!("peili-{version}-image-{arch}.tar"),
            read(&options.image)?,
        ),
        (chart, read(&options.chart)?),
        (format!("{name}.cdx.json"), bill),
    ] {
        archive::write(&bytes, &options.output.join(&file))?;
        println!(
            "{:>9.2} MiB  {file}",
            bytes.len() as f64 / f64::from(1 << 20)
        );
        // As `sha256sum --check` reads it.
        writeln!(sums, "{}  {file}", Digest::sha256(&bytes).hex())?;
    }
    archive::write(sums.as_bytes(), &options.output.join("SHA256SUMS"))
}
