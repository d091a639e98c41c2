//! A flash crowd: many nodes pull an image at once that none of them has. How long does it take, what leaves the
//! registry, and how far is that from what is possible?
//!
//! Real containerds in network namespaces (`tests/lab`), links shaped, content in memory. `make bench-crowd` runs it as
//! root; `CROWD='--list'` says what there is. Progress on stderr, the table on stdout, everything as JSON in a file.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;

mod bench;
mod fault;
mod judge;
#[path = "../../tests/lab/mod.rs"]
#[allow(dead_code, reason = "the tests use more of the lab than the benchmark")]
mod lab;
mod measure;
mod pulls;
mod report;
mod requests;
mod run;
mod scenario;

use bench::Bench;
use judge::{Figures, judge};
use lab::{Lab, process};
use run::{Plan, Run};
use scenario::{Layers, SCENARIOS, Scenario, Variant};

/// Many nodes pull an image at once that none of them has.
#[derive(Parser)]
struct Options {
    /// What is tried; may be given several times [default: small]
    #[arg(long, value_name = "NAME")]
    scenario: Vec<String>,
    /// Instead of the scenario's: 1.6 (this machine's), 1.7, 2.x (`make containerds`), mixed
    #[arg(long, value_delimiter = ',', value_name = "VERSION")]
    containerd: Vec<String>,
    /// Instead of the scenario's
    #[arg(long, value_delimiter = ',', value_name = "NUMBER")]
    nodes: Vec<usize>,
    /// Instead of the scenario's: how many layers of how many MiB
    #[arg(long, value_name = "5x100")]
    layers: Option<Layers>,
    /// Only these; what a check compares with is then unknown
    #[arg(long, value_delimiter = ',')]
    variant: Vec<Variant>,
    /// Of the starts within the first 100 ms
    #[arg(long, default_value = "1")]
    seed: u64,
    /// Another Peili than the one of this build
    #[arg(long, value_name = "FILE")]
    peili: Option<PathBuf>,
    /// Where all figures go [default: bench/crowd.json beside the build]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Keep each run's logs of every Peili here; with LOG_LEVEL=debug they tell who followed whom
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
    /// Begin with what counts. Otherwise the largest run is made once before all: memory that a virtual machine has not
    /// touched for a while costs the containerds up to twice their CPU, and the last node three seconds
    #[arg(long)]
    no_warm_up: bool,
    /// Say which scenarios there are
    #[arg(long)]
    list: bool,
    /// cargo says so to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    if options.list {
        for scenario in SCENARIOS {
            println!("{:20} {}", scenario.name, scenario.about);
        }
        return ExitCode::SUCCESS;
    }
    process::to_its_end("crowd", crowd(options)).await
}

async fn crowd(options: Options) -> Result<()> {
    Lab::available().map_err(anyhow::Error::msg)?;
    let json = match &options.json {
        Some(file) => file.clone(),
        None => beside_the_build()?,
    };
    let plans = plans(&options)?;
    let mut bench = Bench::new(options.peili.clone());
    let mut runs: Vec<Run> = Vec::new();
    // What a pull costs without any network is measured once for all scenarios.
    let mut locals = BTreeMap::new();
    let size = |plan: &Plan<'_>| plan.nodes as u64 * plan.layers.count as u64 * plan.layers.mib;
    let largest = plans.iter().max_by_key(|(_, plan)| size(plan));
    if let Some((_, plan)) = largest.filter(|_| !options.no_warm_up) {
        eprint!("[warm-up] {}: ", plan.scenario);
        let run = run::run(&mut bench, plan).await;
        eprintln!("{} ({:.0} s in all)", report::line(&run), run.took);
    }
    for (number, (scenario, plan)) in plans.iter().enumerate() {
        let starts = format!("{:?}", plan.starts);
        let same = (plan.layers, plan.nodes, plan.fleet, starts);
        if plan.variant == Variant::Local && locals.contains_key(&same) {
            continue;
        }
        let Layers { count, mib } = plan.layers;
        let (number, all) = (number + 1, plans.len());
        eprint!(
            "[{number}/{all}] {}: {} x containerd {}, {count} x {mib} MiB, {}: ",
            plan.scenario,
            plan.nodes,
            plan.fleet,
            plan.variant.name()
        );
        let mut run = run::run(&mut bench, plan).await;
        if run.error.is_none() && plan.variant == Variant::Local {
            locals.insert(same.clone(), run.last);
        }
        let without = runs.iter().find(|other| {
            other.variant == Variant::Without
                && other.error.is_none()
                && (&other.scenario, &other.containerd) == (&run.scenario, &run.containerd)
                && (&other.layers, other.nodes) == (&run.layers, run.nodes)
        });
        let figures = Figures {
            copies: run.copies,
            last: run.last,
            bound: run.bound,
            local: locals.get(&same).copied(),
            without: without.map(|run| run.last),
        };
        if !run.pulls.is_empty() {
            let verdicts = judge(plan.variant, scenario.checks, &figures);
            run.verdicts.extend(verdicts);
        }
        eprintln!("{} ({:.0} s in all)", report::line(&run), run.took);
        runs.push(run);
        report::write_json(&runs, &json)?;
    }
    println!("{}", report::markdown(&runs));
    eprintln!("crowd: all figures are in {}", json.display());
    let broken = runs.iter().filter(|run| run.error.is_some()).count();
    if broken > 0 {
        bail!("{broken} runs went wrong");
    }
    Ok(())
}

/// Every run in its order: what a check compares with comes before.
fn plans(options: &Options) -> Result<Vec<(&'static Scenario, Plan<'_>)>> {
    let small = ["small".to_owned()];
    let names = match &options.scenario[..] {
        [] => &small[..],
        some => some,
    };
    let mut plans = Vec::new();
    for name in names {
        let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name);
        let scenario = scenario.with_context(|| format!("no scenario {name}; see --list"))?;
        let fleets: Vec<&str> = match &options.containerd[..] {
            [] => scenario.fleets.to_vec(),
            some => some.iter().map(String::as_str).collect(),
        };
        let nodes = match &options.nodes[..] {
            [] => scenario.nodes,
            some => some,
        };
        let is_wanted = |v: &&Variant| options.variant.is_empty() || options.variant.contains(v);
        for fleet in &fleets {
            for &nodes in nodes {
                let least = match scenario.fault {
                    Some(_) => 3,
                    None => 1 + scenario.holders,
                };
                if nodes < least {
                    bail!("--nodes {nodes}: {name} needs {least} at least");
                }
                for &variant in scenario.variants.iter().filter(is_wanted) {
                    let plan = Plan {
                        scenario: scenario.name,
                        layers: options.layers.unwrap_or(scenario.layers),
                        nodes,
                        fleet,
                        registry: scenario.registry,
                        link: scenario.link,
                        holders: scenario.holders,
                        starts: scenario.starts,
                        fault: scenario.fault,
                        variant,
                        logs: options.logs.as_deref(),
                        seed: options.seed,
                    };
                    plans.push((scenario, plan));
                }
            }
        }
    }
    Ok(plans)
}

/// `target/bench/crowd.json`, of `target/release/deps/crowd-0123`.
fn beside_the_build() -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    let target = here.ancestors().nth(3).context("where is the build?")?;
    Ok(target.join("bench/crowd.json"))
}
