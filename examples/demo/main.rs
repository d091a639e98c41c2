//! Peili in half a minute: three nodes, one image, and then its source is gone.
//!
//! Two ways to tell it, both with real processes that go away at the end, also after Ctrl-C. With root: containerd, a
//! registry, DNS and network namespaces (`cluster.rs`). Without: three Peilis at loopback addresses, over OCI layouts
//! (`layout.rs`). Run it by `make demo`; `--layout` tells the second story to root, too, and any other argument names
//! another Peili to show.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

mod cluster;
#[path = "../../tests/lab/mod.rs"]
#[allow(dead_code, reason = "the tests use more of the lab than the demo")]
mod lab;
mod layout;
mod show;

use lab::Lab;
use lab::process::to_its_end;

#[tokio::main]
async fn main() -> ExitCode {
    to_its_end("\nThe demo", tell()).await
}

async fn tell() -> Result<()> {
    let (mut wants_layout, mut binary) = (false, None);
    for argument in std::env::args_os().skip(1) {
        if argument == "--layout" {
            wants_layout = true;
        } else {
            binary = Some(PathBuf::from(argument));
        }
    }
    let peili = peili_binary(binary)?;
    if wants_layout {
        return layout::tell(&peili).await;
    }
    match Lab::available() {
        Ok(()) => cluster::tell(peili).await,
        Err(why) => {
            println!("No containerd, registry and network of their own here: {why}.");
            println!("For the demo with these: sudo -v && make demo\n");
            layout::tell(&peili).await
        }
    }
}

/// Beside the demo's folder, where cargo puts it; or as told.
fn peili_binary(told: Option<PathBuf>) -> Result<PathBuf> {
    let beside = || {
        let demo = std::env::current_exe().ok()?;
        demo.parent().map(|dir| dir.with_file_name("peili"))
    };
    let binary = told.or_else(beside).context("where is peili?")?;
    let there = std::fs::canonicalize::<&Path>(&binary);
    there.with_context(|| format!("{} (`make demo` builds it)", binary.display()))
}
