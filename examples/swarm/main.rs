//! Swarms of real routers: what lookups, renewals and a node's memory come to as a swarm grows, and what is left of it when
//! a third of the nodes die at once.
//!
//! ```text
//! main      a process for each size, tables
//! options   the command line
//! swarm     joins, lookups, tellings, deaths
//! limits    descriptors
//! model     lookups in swarms that no machine holds; pure
//! outcome   figures, tables, growth; pure
//! ```
//!
//! Real: everything of `routing::kad`, over TCP with noise and yamux, on loopback addresses of their own. Imitated: that
//! nodes are machines. All of them share this one's cores and its allocator, and a message takes no time on the wire, so
//! that a lookup takes as long as its CPU does, all nodes' together.

mod limits;
mod model;
mod options;
mod outcome;
mod swarm;

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::Parser;

use model::{Model, Modelled, Parallel};
use options::Options;
use outcome::Outcome;

/// As the program has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// As `routing::kad` has them (libp2p's own).
const PARALLEL: Parallel = Parallel { way: 3, end: 20 };
/// In the model, for each size.
const LOOKUPS: usize = 500;

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("swarm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    for nodes in &options.nodes {
        ensure!(
            *nodes >= 4,
            "--nodes {nodes}: a swarm has four nodes at least"
        );
    }
    let outcomes = match options.nodes[..] {
        [nodes] => vec![one(options, nodes)?],
        // What one has left behind is not the next one's memory.
        _ => {
            let all = options.nodes.iter();
            all.map(|nodes| apart(options, *nodes))
                .collect::<Result<Vec<_>>>()?
        }
    };
    let modelled: Vec<Modelled> = options
        .model
        .iter()
        .map(|nodes| Model::new(*nodes, options.seed).lookups(LOOKUPS, PARALLEL))
        .collect();
    if options.json {
        for outcome in &outcomes {
            println!("{}", serde_json::to_string(outcome)?);
        }
        for row in &modelled {
            println!("{}", serde_json::to_string(row)?);
        }
        return Ok(());
    }
    print!("{}", outcome::markdown(&outcomes));
    if !modelled.is_empty() {
        print!("\n{}", outcome::modelled(&modelled, options.round_trip));
    }
    Ok(())
}

/// In this process.
fn one(options: &Options, nodes: usize) -> Result<Outcome> {
    if !options.in_memory {
        limits::raise(limits::needed(nodes)).map_err(|why| anyhow!("--nodes {nodes}: {why}"))?;
    }
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(swarm::measure(options, nodes))
}

/// In a process of its own.
fn apart(options: &Options, nodes: usize) -> Result<Outcome> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(options.of_one(nodes)).stderr(Stdio::inherit());
    let told = command.output()?;
    ensure!(
        told.status.success(),
        "the swarm of {nodes} has failed: {}",
        told.status
    );
    serde_json::from_slice(&told.stdout).with_context(|| format!("what the swarm of {nodes} says"))
}

#[cfg(test)]
mod tests;
