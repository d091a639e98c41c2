//! How soon after its start a node's Peili answers and is ready, beside nginx, which has nothing else to do first.
//! `make bench`, as root.
//!
//! Progress on stderr, the table on stdout. Real containerds that hold images, real Peilis in network namespaces
//! (`tests/lab`). Time begins before the process is made; the way into the namespace, a few milliseconds, is in it for both.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

#[path = "../../tests/lab/mod.rs"]
#[allow(dead_code, reason = "the tests use more of the lab than the benchmark")]
mod lab;
#[path = "../http/server.rs"]
#[allow(dead_code, reason = "of the servers that http is measured beside")]
mod server;

use lab::process;
use lab::{ImageSpec, Lab, Node, NodeOptions, PeiliOptions, http};
use server::Server;

/// Keys of one image: layers, manifest and configuration.
const KEYS_PER_IMAGE: usize = 100;
/// Between two questions whether it answers.
const PAUSE: Duration = Duration::from_millis(1);
/// In vain: something has gone wrong.
const PATIENCE: Duration = Duration::from_secs(60);

const NGINX: &str = "nginx: first answer";
const LONELY: &str = "no other node is there: first answer";
const FIRST: [&str; 2] = ["first start: first answer", "first start: ready"];
const AGAIN: [&str; 2] = ["started again: first answer", "started again: ready"];

/// How soon after its start a node's Peili answers and is ready.
#[derive(Parser)]
struct Options {
    /// Another Peili than the one of this build
    #[arg(long, value_name = "FILE")]
    peili: Option<PathBuf>,
    /// Keys that the node has to tell
    #[arg(long, default_value = "1000", value_name = "NUMBER")]
    keys: usize,
    /// How often each is measured
    #[arg(long, default_value = "10", value_name = "NUMBER")]
    rounds: usize,
    /// All times in milliseconds, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// cargo says so to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// In milliseconds, by what was measured.
type Times = BTreeMap<&'static str, Vec<f64>>;

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    process::bench("startup", measure(options)).await
}

async fn measure(options: Options) -> Result<()> {
    ensure!(options.rounds > 0, "--rounds 0: nothing would be measured");
    let lab = Lab::new().await?;
    lab.set_peili(match &options.peili {
        Some(file) => std::path::absolute(file)?,
        None => PathBuf::from(env!("CARGO_BIN_EXE_peili")),
    });
    let node = lab.node(NodeOptions::default()).await?;
    let others = [
        lab.node(NodeOptions::default()).await?,
        lab.node(NodeOptions::default()).await?,
    ];
    let images = options.keys.div_ceil(KEYS_PER_IMAGE);
    eprintln!("startup: {images} images of {KEYS_PER_IMAGE} blobs are imported");
    for n in 0..images {
        let spec = ImageSpec::new(&format!("bench/many{n}:v1")).seed(1_000_000 + n as u64);
        let image = lab.make(spec.layers([10; KEYS_PER_IMAGE - 2])).await?;
        node.import(&image).await?;
    }
    let scratch = lab.folder("startup")?;
    let peili = PeiliOptions::default().unconfigured();
    let mut times = Times::new();
    let mut add = |what, took: Duration| {
        let times: &mut Vec<f64> = times.entry(what).or_default();
        times.push(took.as_secs_f64() * 1e3);
    };

    for round in 0..options.rounds {
        eprint!("\rstartup: alone: {} of {}   ", round + 1, options.rounds);
        let begun = Instant::now();
        let nginx = Server::nginx(&node, &scratch)?;
        add(NGINX, answers(&node, nginx.at, "/", 403, begun).await?);
        drop(nginx);
        forget(&node)?;
        let begun = Instant::now();
        node.spawn_peili(&peili).await?;
        add(LONELY, first_answer(&node, begun).await?);
        node.stop_peili().await?;
    }
    eprintln!();
    for other in &others {
        other.start_peili_with(&peili).await?;
    }
    for round in 0..options.rounds {
        eprint!(
            "\rstartup: of three: {} of {}   ",
            round + 1,
            options.rounds
        );
        forget(&node)?;
        for [answer, is_ready] in [FIRST, AGAIN] {
            let begun = Instant::now();
            node.spawn_peili(&peili).await?;
            add(answer, first_answer(&node, begun).await?);
            add(is_ready, ready(&node, begun).await?);
            node.stop_peili().await?;
        }
    }
    eprintln!();
    if let Some(file) = &options.json {
        let json = serde_json::to_string_pretty(&times)?;
        std::fs::write(file, json).with_context(|| format!("cannot write {}", file.display()))?;
    }
    print!("{}", markdown(&times)?);
    Ok(())
}

/// The next start is the node's first: no key, nobody whom it knows.
fn forget(node: &Node) -> Result<()> {
    let data = node.peili().data();
    match std::fs::remove_dir_all(&data) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", data.display()))
        }
        _ => Ok(()),
    }
}

async fn first_answer(node: &Node, begun: Instant) -> Result<Duration> {
    answers(node, node.peili().registry(), "/v2/", 200, begun).await
}

async fn ready(node: &Node, begun: Instant) -> Result<Duration> {
    answers(node, node.peili().registry(), "/readyz", 200, begun).await
}

/// Since `begun`, until it answers `path` with this status.
async fn answers(
    node: &Node,
    at: SocketAddr,
    path: &str,
    status: u16,
    begun: Instant,
) -> Result<Duration> {
    loop {
        let answer = http::get(node.netns(), at, path).await;
        let took = begun.elapsed();
        let last = answer.map(|answer| answer.status.as_u16());
        if last.as_ref().is_ok_and(|last| *last == status) {
            return Ok(took);
        }
        ensure!(took < PATIENCE, "{path} after {took:?}: {last:?}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Medians, the best and the worst, and the median beside nginx's.
fn markdown(times: &Times) -> Result<String> {
    let median = |what| {
        let times: &Vec<f64> = times.get(what).with_context(|| format!("no {what}"))?;
        let mut sorted = times.clone();
        sorted.sort_by(f64::total_cmp);
        let [first, .., last] = sorted.as_slice() else {
            return Ok((sorted[0], sorted[0], sorted[0]));
        };
        anyhow::Ok((*first, sorted[sorted.len() / 2], *last))
    };
    let mut table =
        String::from("| | median ms | best | worst | to nginx |\n|---|--:|--:|--:|--:|\n");
    let (_, nginx, _) = median(NGINX)?;
    for what in [NGINX, LONELY].into_iter().chain(FIRST).chain(AGAIN) {
        let (best, middle, worst) = median(what)?;
        let ratio = middle / nginx;
        writeln!(
            table,
            "| {what} | {middle:.0} | {best:.0} | {worst:.0} | {ratio:.1} |"
        )?;
    }
    Ok(table)
}
