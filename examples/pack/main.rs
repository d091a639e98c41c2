//! Packs what a release is made of: `make image` and `make release` run it. The same files make the same bytes.

use std::process::ExitCode;

use clap::Parser;

mod archive;
mod bill;
mod image;
mod release;

/// Packs what a release is made of.
#[derive(Parser)]
enum Command {
    /// The container image, as an OCI layout in one tar file
    Image(image::Options),
    /// Everything that is published, with its checksums, in one directory
    Release(release::Options),
}

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Image(options) => image::image(&options),
        Command::Release(options) => release::release(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pack: {error:#}");
            ExitCode::FAILURE
        }
    }
}
