//! What is read off processes, disks and metrics.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use futures::future::join_all;

use crate::lab::Node;
use crate::lab::http;

/// CPU seconds, user and system, of a process; None when it is gone.
pub fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name may hold anything; what follows its last bracket is regular.
    let (_, rest) = stat.rsplit_once(')')?;
    let ticks = |nth| rest.split_whitespace().nth(nth)?.parse::<u64>().ok();
    Some((ticks(11)? + ticks(12)?) as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// CPU seconds so far of all Peilis and all containerds.
pub fn cpu_of_all(nodes: &[Node]) -> (f64, f64) {
    let spent = |pid: Option<u32>| pid.and_then(cpu_seconds).unwrap_or(0.0);
    let peilis = nodes.iter().map(|node| spent(node.peili().pid()));
    let containerds = nodes.iter().map(|node| spent(node.containerd().pid()));
    (peilis.sum(), containerds.sum())
}

/// The machine's time so far: busy and all, in ticks.
#[derive(Clone, Copy)]
pub struct Machine {
    busy: u64,
    all: u64,
}

impl Machine {
    pub fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let first = stat.lines().next().unwrap_or_default();
        let ticks: Vec<u64> = first
            .split_whitespace()
            .filter_map(|t| t.parse().ok())
            .collect();
        // user nice system idle iowait irq softirq steal; guest is in user already.
        let all = ticks.iter().take(8).sum();
        let idle: u64 = ticks.iter().skip(3).take(2).sum();
        Self {
            busy: all - idle,
            all,
        }
    }

    /// CPU seconds since `earlier`, and which part of all cores' time they are.
    pub fn busy_since(&self, earlier: &Machine) -> (f64, f64) {
        let (busy, all) = (self.busy - earlier.busy, self.all - earlier.all);
        let seconds = busy as f64 / rustix::param::clock_ticks_per_second() as f64;
        (seconds, busy as f64 / all.max(1) as f64)
    }
}

/// Bytes in the node's content store: whole blobs, and of the others what has arrived.
pub fn arrived(node: &Node) -> u64 {
    let content = node.containerd().content();
    let blobs = sizes(&content.join("blobs/sha256"), None);
    blobs + sizes(&content.join("ingest"), Some("data"))
}

fn sizes(dir: &Path, below: Option<&str>) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    let size = |path: &Path| fs::metadata(path).map_or(0, |m| m.len());
    entries
        .filter_map(|entry| entry.ok())
        .map(|entry| match below {
            Some(below) => size(&entry.path().join(below)),
            None => size(&entry.path()),
        })
        .sum()
}

pub type Series = BTreeMap<String, f64>;

/// All of a Peili's own series but the buckets of histograms.
pub async fn series(node: &Node) -> Result<Series> {
    let answer = http::get(node.netns(), node.peili().metrics(), "/metrics").await?;
    Ok(parse(&answer.expect(200)?.text()))
}

/// By index; nodes whose Peili does not answer, or is none, are missing.
pub async fn all_series(nodes: &[Node]) -> BTreeMap<usize, Series> {
    let asked = nodes.iter().enumerate().map(|(index, node)| async move {
        // One that was stopped accepts and says nothing.
        let answer = tokio::time::timeout(Duration::from_secs(5), series(node)).await;
        node.peili().pid()?;
        Some((index, answer.ok()?.ok()?))
    });
    join_all(asked).await.into_iter().flatten().collect()
}

fn parse(text: &str) -> Series {
    let ours = text.lines().filter(|line| line.starts_with("peili_"));
    let values = ours.filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let is_bucket = series.contains("_bucket{");
        (!is_bucket).then(|| Some((series.to_owned(), value.parse().ok()?)))?
    });
    values.collect()
}

/// Adds what has changed from `before` to `after`.
pub fn add_changes(sum: &mut Series, before: &Series, after: &Series) {
    for (series, value) in after {
        let change = value - before.get(series).unwrap_or(&0.0);
        if change != 0.0 {
            *sum.entry(series.clone()).or_default() += change;
        }
    }
}

/// MemAvailable, in bytes.
pub fn memory_available() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}
