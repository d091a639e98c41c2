//! What it costs a swarm that one node tells of all its keys: CPU of all nodes together, and whether every record is where
//! others look for it. `make bench`.
//!
//! Fifty routers over TCP in one process, on loopback addresses of their own. One has the keys of a hundred large images and
//! tells of them, which is also what each renewal is.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use peili::oci::{Digest, Key};
use peili::routing::Router as _;
use peili::testing::conformance::routing::{Cluster as _, all};
use peili::testing::measure::{calm, cpu};
use peili::testing::nodes::KadCluster;

/// As the program has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Of the keys, how many are looked up at how many of the others.
const SAMPLE: usize = 100;
/// In vain: something has gone wrong.
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Parser)]
struct Options {
    #[arg(long, default_value = "50", value_name = "NUMBER")]
    nodes: usize,
    #[arg(long, default_value = "10000", value_name = "NUMBER")]
    keys: usize,
    /// cargo says so to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let cluster = KadCluster::of(options.nodes).await;
    // Who is told of comes from whoever is known.
    for node in &cluster.0 {
        while !node.has_found_its_place(options.nodes) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    ensure!(
        calm(options.nodes, PATIENCE).await,
        "the swarm does not come to rest"
    );
    let key = |n: usize| Key::Content(Digest::sha256(n.to_string().as_bytes()));
    let keys: Vec<Key> = (0..options.keys).map(key).collect();
    let teller = &cluster.0[0];

    let (began, before) = (Instant::now(), cpu());
    teller.kad.advertise(keys.clone()).await?;
    let done = format!(
        "peili_announcements_total{{result=\"ok\"}} {}\n",
        keys.len()
    );
    while !teller.metrics().contains(&done) {
        ensure!(began.elapsed() < PATIENCE, "{}", teller.metrics());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (took, spent) = (began.elapsed(), cpu() - before);

    let mut found = 0;
    for n in 0..SAMPLE {
        let asking = 1 + n % (options.nodes - 1);
        let holders = all(&cluster.0[asking].kad, &keys[n * keys.len() / SAMPLE]).await;
        found += usize::from(holders.iter().any(|peer| peer.id == *teller.kad.peer_id()));
    }
    println!(
        "{} keys told to {} nodes in {:.1} s with {:.2} CPU s of all together, {:.3} ms each; {found} of {SAMPLE} found",
        keys.len(),
        options.nodes,
        took.as_secs_f64(),
        spent.as_secs_f64(),
        spent.as_secs_f64() * 1e3 / keys.len() as f64,
    );
    Ok(())
}
