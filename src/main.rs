//! The process: parse, start logging, choose a subcommand, exit code.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use peili::app::{self, App};
use peili::config::{self, Bootstrap, Command};
use peili::{commands, content, mirror, routing, telemetry};
use tokio::signal::unix::{SignalKind, signal};
use tracing::error;

fn main() -> ExitCode {
    println!("todo");
    ExitCode::SUCCESS
}
