//! How long it takes to hear who holds something, or that nobody does: hit, miss and tag against the size of the swarm.
//! `make bench`.
//!
//! Routers over TCP in one process, on loopback addresses of their own; progress on stderr, the table on stdout. One lookup
//! at a time, at connections that are open, as in a cluster that pulls. Beside each, in turns: libp2p's own Kademlia with
//! its own settings in a swarm of as many nodes, and one request and its answer between two of those.
//!
//! ```text
//! plain   what ours is measured beside
//! table   medians, percentiles, ratios
//! ```

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use futures::StreamExt as _;
use peili::oci::{Digest, Key, Repository, TagName};
use peili::routing::Router as _;
use peili::testing::conformance::routing::{Cluster as _, all};
use peili::testing::counted::Count;
use peili::testing::measure::{Sample, calm, cpu};
use peili::testing::nodes::KadCluster;

mod plain;
mod table;

use plain::Plain;
use table::{Cell, Run};

/// As the program has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Nodes that ask. Each is connected to all others then, as far as a lookup may lead there.
const ASKERS: usize = 10;
/// Lookups of each asker before it is measured: of any three nodes in a hundred one is asked.
const WARM: usize = 40;
/// Between two lookups, so that the first's messages under way are not the second's delay.
const PAUSE: Duration = Duration::from_millis(20);
/// How long it is looked what goes on without a lookup.
const IDLE: Duration = Duration::from_secs(1);
/// In vain: something has gone wrong.
const PATIENCE: Duration = Duration::from_secs(180);

/// How long lookups take against the size of the swarm.
#[derive(Parser)]
struct Options {
    /// Swarms of so many nodes
    #[arg(
        long,
        default_value = "10,30,100",
        value_delimiter = ',',
        value_name = "NUMBERS"
    )]
    nodes: Vec<usize>,
    /// How often each is measured; the last three figures of the table are of all rounds together
    #[arg(long, default_value = "5", value_name = "NUMBER")]
    rounds: usize,
    /// Lookups of each kind in each round
    #[arg(long, default_value = "100", value_name = "NUMBER")]
    lookups: usize,
    /// Ours alone, nothing beside it
    #[arg(long)]
    alone: bool,
    /// All runs, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// cargo says so to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Hit,
    Tag,
    Miss,
}

const KINDS: [(Kind, &str); 3] = [(Kind::Hit, "hit"), (Kind::Tag, "tag"), (Kind::Miss, "miss")];

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let mut cells = Vec::new();
    for nodes in options.nodes.iter().copied() {
        ensure!(
            nodes >= 3,
            "--nodes {nodes}: a swarm has three nodes at least"
        );
        eprintln!("lookups: {nodes} nodes find each other");
        let ours = ours(nodes).await?;
        let plain = match options.alone {
            true => None,
            false => Some(reference(nodes).await?),
        };
        ensure!(
            calm(nodes, PATIENCE).await,
            "the swarms do not come to rest"
        );
        let mut of_size: Vec<Cell> = KINDS
            .iter()
            .map(|(_, what)| Cell::new(what, nodes))
            .collect();
        // The first of each is for caches and connections.
        for round in 0..=options.rounds {
            eprintln!("lookups: {nodes} nodes: {round} of {}", options.rounds);
            warm(&ours, plain.as_ref(), round).await?;
            for ((kind, _), cell) in KINDS.iter().zip(&mut of_size) {
                let run = run(&ours, *kind, round, options.lookups).await?;
                let beside = match &plain {
                    Some(plain) => Some(beside(plain, *kind, round, options.lookups).await?),
                    None => None,
                };
                if round > 0 {
                    cell.add(run, beside);
                }
            }
        }
        cells.extend(of_size);
    }
    if let Some(file) = &options.json {
        let json = serde_json::to_string_pretty(&cells)?;
        std::fs::write(file, json).with_context(|| format!("cannot write {}", file.display()))?;
    }
    print!("{}", table::markdown(&cells));
    Ok(())
}

/// A key that node `holder` alone holds.
fn key(kind: Kind, holder: usize) -> Result<Key> {
    Ok(match kind {
        Kind::Hit => Key::Content(Digest::sha256(format!("layer of node {holder}").as_bytes())),
        Kind::Tag => {
            let repository = Repository::new("registry.test", &format!("node/{holder}"))?;
            Key::Tag(TagName::new(repository, "latest")?)
        }
        Kind::Miss => Key::Content(Digest::sha256(format!("nobody's {holder}").as_bytes())),
    })
}

async fn ours(nodes: usize) -> Result<KadCluster> {
    let cluster = KadCluster::of(nodes).await;
    for node in &cluster.0 {
        while !node.has_found_its_place(nodes) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    ensure!(
        calm(nodes, PATIENCE).await,
        "the swarm does not come to rest"
    );
    for (number, node) in cluster.0.iter().enumerate() {
        let keys = vec![key(Kind::Hit, number)?, key(Kind::Tag, number)?];
        node.kad.advertise(keys).await?;
    }
    let began = Instant::now();
    for node in &cluster.0 {
        while !node
            .metrics()
            .contains("peili_announcements_total{result=\"ok\"} 2\n")
        {
            ensure!(
                began.elapsed() < PATIENCE,
                "a node tells nobody what it holds"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(cluster)
}

async fn reference(nodes: usize) -> Result<Plain> {
    let plain = Plain::of(nodes).await?;
    ensure!(
        calm(nodes, PATIENCE).await,
        "the reference does not come to rest"
    );
    for number in 0..nodes {
        for kind in [Kind::Hit, Kind::Tag] {
            plain
                .provide(number, key(kind, number)?.to_string().as_bytes())
                .await?;
        }
    }
    Ok(plain)
}

async fn warm(ours: &KadCluster, plain: Option<&Plain>, round: usize) -> Result<()> {
    for n in 0..WARM * ASKERS {
        let key = key(Kind::Miss, usize::MAX - round * WARM * ASKERS - n)?;
        let asking = n % ASKERS.min(ours.0.len());
        all(&ours.0[asking].kad, &key).await;
        if let Some(plain) = plain {
            plain.lookup(asking, key.to_string().as_bytes()).await?;
        }
    }
    Ok(())
}

/// Who asks whom, so that nobody asks himself, and each time another.
fn pair(round: usize, n: usize, nodes: usize) -> (usize, usize) {
    let asking = n % ASKERS.min(nodes);
    let holder = (asking + 1 + (n / ASKERS + round) % (nodes - 1)) % nodes;
    (asking, holder)
}

async fn run(cluster: &KadCluster, kind: Kind, round: usize, lookups: usize) -> Result<Run> {
    let nodes = cluster.0.len();
    let counts = || -> Count { cluster.0.iter().map(|node| node.counts.now()).sum() };
    let requests = || -> u64 {
        cluster
            .0
            .iter()
            .map(|node| node.requests("GetProvider"))
            .sum()
    };
    // What goes on without a lookup, pings above all: of that nothing is a lookup's.
    let (spent_before, counts_before) = (cpu(), counts());
    tokio::time::sleep(IDLE).await;
    let (idle, idle_counts) = (cpu() - spent_before, counts() - counts_before);
    let (mut took, mut lost) = (Sample::default(), 0);
    let (spent_before, counts_before, requests_before) = (cpu(), counts(), requests());
    let all_began = Instant::now();
    for n in 0..lookups {
        let (asking, holder) = pair(round, n, nodes);
        let key = match kind {
            Kind::Miss => key(kind, round * lookups + n)?,
            _ => key(kind, holder)?,
        };
        let mut lookup = cluster.0[asking].kad.lookup(key);
        let (elapsed, first) = timed(async move { lookup.next().await }).await?;
        took.add(elapsed);
        lost += usize::from(first.is_none() != (kind == Kind::Miss));
        tokio::time::sleep(PAUSE).await;
    }
    ensure!(
        lost * 50 <= lookups,
        "{lost} of {lookups} lookups have a wrong answer: {kind:?}"
    );
    let (spent, counted) = (cpu() - spent_before, counts() - counts_before);
    let idles = all_began.elapsed().as_secs_f64() / IDLE.as_secs_f64();
    let each = |all: f64, of_idle: f64| (all - of_idle * idles).max(0.0) / lookups as f64;
    Ok(Run {
        took: took.into(),
        cpu: each(spent.as_secs_f64(), idle.as_secs_f64()),
        requests: (requests() - requests_before) as f64 / lookups as f64,
        packets: each(counted.writes as f64, idle_counts.writes as f64),
        bytes: each(counted.sent as f64, idle_counts.sent as f64),
        dials: counted.dials as f64 / lookups as f64,
        lost,
    })
}

/// Until the first provider, or to the end. Not where main is: a third thread would wait for the cores that the nodes have.
async fn timed<T: Send + 'static>(
    what: impl Future<Output = T> + Send + 'static,
) -> Result<(Duration, T)> {
    let timed = async {
        let began = Instant::now();
        let done = what.await;
        (began.elapsed(), done)
    };
    Ok(tokio::spawn(timed).await?)
}

/// Both references, one after the other for each lookup of ours.
async fn beside(plain: &Plain, kind: Kind, round: usize, lookups: usize) -> Result<table::Beside> {
    let (mut theirs, mut echo) = (Sample::default(), Sample::default());
    for n in 0..lookups {
        let (asking, holder) = pair(round, n, plain.len());
        let key = match kind {
            Kind::Miss => key(kind, round * lookups + n)?,
            _ => key(kind, holder)?,
        };
        let lookup = plain.lookup(asking, key.to_string().as_bytes());
        let (elapsed, done) = timed(lookup).await?;
        done?;
        theirs.add(elapsed);
        tokio::time::sleep(PAUSE).await;
        let (elapsed, done) = timed(plain.echo(asking, holder)).await?;
        done?;
        echo.add(elapsed);
    }
    Ok(table::Beside {
        lookup: theirs.into(),
        round_trip: echo.into(),
    })
}
