//! Everything that is published, in one directory.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use peili::oci::Digest;

use crate::{archive, bill};

#[derive(clap::Args)]
pub struct Options {
    /// The program as one static file, for each of what it was built for, as Rust calls it
    #[arg(long, required = true, value_name = "TRIPLE=FILE")]
    binary: Vec<String>,
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
    let chart = format!("peili-{version}.tgz");
    ensure!(
        options
            .chart
            .file_name()
            .is_some_and(|name| name == chart.as_str()),
        "{} is not the chart of this version, {chart}",
        options.chart.display()
    );
    let (licence, readme) = (read(Path::new("LICENSE"))?, read(Path::new("README.md"))?);
    let mut files = Vec::new();
    let mut archs = Vec::new();
    for binary in &options.binary {
        let (triple, file) = binary
            .split_once('=')
            .with_context(|| format!("{binary} is not TRIPLE=FILE"))?;
        let (arch, _) = triple
            .split_once('-')
            .context("a triple such as x86_64-unknown-linux-gnu")?;
        let name = format!("peili-{version}-linux-{arch}");
        let program = read(Path::new(file))?;
        let inside = |file: &str| format!("{name}/{file}");
        let (peili, license, page) = (inside("peili"), inside("LICENSE"), inside("README.md"));
        let archive = archive::tar(&[
            (&peili, 0o755, &program),
            (&license, 0o644, &licence),
            (&page, 0o644, &readme),
        ])?;
        files.push((format!("{name}.tar.gz"), archive::gzip(&archive)?));
        let bill = serde_json::to_vec_pretty(&bill::of_materials(triple)?)?;
        files.push((format!("{name}.cdx.json"), bill));
        archs.push(arch);
    }
    let image = format!("peili-{version}-image-{}.tar", archs.join("-"));
    files.push((image, read(&options.image)?));
    files.push((chart, archive::timeless(&read(&options.chart)?)?));
    let mut sums = String::new();
    for (file, bytes) in files {
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
