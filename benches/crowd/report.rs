//! What is told: a line as each run ends, a table for people, JSON for everybody else.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use crate::requests::Waits;
use crate::run::Run;
use crate::scenario::Variant;

/// One run in one line, for whoever waits.
pub fn line(run: &Run) -> String {
    let mut line = format!(
        "{:.1} s, {:.2} copies, first byte {}, busy {:.0} %",
        run.last,
        run.copies,
        waits(&run.first_byte),
        100.0 * run.machine_busy
    );
    if !run.fault.is_empty() {
        let _ = write!(line, "; {}", run.fault);
    }
    for verdict in &run.verdicts {
        let _ = write!(line, "; {} {}", word(verdict.holds), verdict.what);
    }
    if let Some(error) = &run.error {
        let _ = write!(line, "\n{error}");
    }
    line
}

pub fn markdown(runs: &[Run]) -> String {
    let mut text = String::from(
        "| scenario | containerd | nodes | image | variant | last s | bound s | copies | extra MB \
         | first byte s (p99, max) | layer wait s (p99, max) | CPU s (Peili, containerd, machine) | busy | checks |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for run in runs {
        let _ = writeln!(text, "{}", row(run));
    }
    text
}

fn row(run: &Run) -> String {
    let once = match run.holders {
        0 => run.image_bytes,
        _ => 0,
    };
    let extra = run.registry_bytes as f64 - once as f64;
    let (bound, extra) = match run.variant {
        _ if run.pulls.is_empty() => ("-".to_owned(), "-".to_owned()),
        Variant::Local => ("-".to_owned(), "-".to_owned()),
        _ => (format!("{:.1}", run.bound), format!("{:.0}", extra / 1e6)),
    };
    let checks = run.verdicts.iter();
    let mut checks: Vec<_> = checks
        .map(|v| format!("{}: {}", word(v.holds), v.what))
        .collect();
    if !run.fault.is_empty() {
        checks.insert(0, run.fault.clone());
    }
    if run.error.is_some() {
        checks.push("**see the log**".to_owned());
    }
    [
        "",
        &run.scenario,
        &run.containerd,
        &run.nodes.to_string(),
        &run.layers,
        run.variant.name(),
        &format!("{:.1}", run.last),
        &bound,
        &format!("{:.2}", run.copies),
        &extra,
        &waits(&run.first_byte),
        &waits(&run.layer_wait),
        &format!(
            "{:.1}, {:.1}, {:.1}",
            run.peili_cpu, run.containerd_cpu, run.machine_cpu
        ),
        &format!("{:.0} %", 100.0 * run.machine_busy),
        &checks.join("; "),
        "",
    ]
    .join(" | ")
    .trim()
    .to_owned()
}

/// `0.01, 0.05`, and of how many the log does not tell.
fn waits(waits: &Waits) -> String {
    let unknown = match waits.unknown {
        0 => String::new(),
        some => format!(" ({some} untold)"),
    };
    match waits.count {
        0 => format!("-{unknown}"),
        _ => format!("{:.2}, {:.2}{unknown}", waits.p99, waits.max),
    }
}

fn word(holds: Option<bool>) -> &'static str {
    match holds {
        Some(true) => "ok",
        Some(false) => "**FAIL**",
        None => "unknown",
    }
}

/// Written anew after every run, so that one that is interrupted leaves what it had.
pub fn write_json(runs: &[Run], to: &Path) -> Result<()> {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let text = serde_json::to_string_pretty(&json!({"cores": cores, "runs": runs}))?;
    if let Some(dir) = to.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::write(to, text).with_context(|| to.display().to_string())
}
