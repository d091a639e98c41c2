//! One run: nodes are made, pull at once, are measured and go.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use futures::future::join_all;

use crate::bench::{Bench, set_up, wake};
use crate::fault::{Fate, Seen, fate};
use crate::judge::{Case, Verdict};
use crate::lab::process::tail;
use crate::lab::registry::Served;
use crate::lab::{Image, Lab, Node};
use crate::measure::{Machine, Series, add_changes, all_series, cpu_of_all};
use crate::pulls::{Pull, pull};
use crate::requests::{Waits, layer_waits, requests};
use crate::scenario::{Fault, Layers, Starts, Variant};

/// What is run.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    pub scenario: &'a str,
    pub layers: Layers,
    pub nodes: usize,
    pub fleet: &'a str,
    pub registry: u64,
    pub link: u64,
    /// So many nodes, the first ones, hold the image before the others begin.
    pub holders: usize,
    pub starts: Starts,
    pub fault: Option<Fault>,
    pub variant: Variant,
    pub seed: u64,
    /// Where the logs of all Peilis are kept.
    pub logs: Option<&'a Path>,
}

/// What came of it. Times in seconds.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Run {
    pub scenario: String,
    pub containerd: String,
    pub nodes: usize,
    pub layers: String,
    pub variant: Variant,
    pub image_bytes: u64,
    /// Nodes that held it before the others began.
    pub holders: usize,
    pub bound: f64,
    /// The slowest pull that had to succeed.
    pub last: f64,
    pub registry_bytes: u64,
    /// What left the registry, in images.
    pub copies: f64,
    pub registry_requests: usize,
    pub pulls: Vec<Pull>,
    pub first_byte: Waits,
    pub layer_wait: Waits,
    pub peili_cpu: f64,
    pub containerd_cpu: f64,
    /// CPU seconds of the whole machine meanwhile, others' work included, and which part of all cores' time that was.
    pub machine_cpu: f64,
    pub machine_busy: f64,
    /// Of all nodes' Peilis together; those of killed ones are missing.
    pub metrics: Series,
    pub fault: String,
    pub verdicts: Vec<Verdict>,
    /// Why there are no figures, and where a pull ended as it should not, the ends of the logs.
    pub error: Option<String>,
    /// All of the run, building and taking away included.
    pub took: f64,
}

/// Never fails: what went wrong is in the report.
pub async fn run(bench: &mut Bench, plan: &Plan<'_>) -> Run {
    let begun = Instant::now();
    let mut run = Run::new(plan);
    let done = attempt(bench, plan, &mut run).await;
    let tidied = bench.tidy().await;
    if let Err(error) = done.and(tidied) {
        run.error = Some(format!("{error:#}"));
    }
    run.took = begun.elapsed().as_secs_f64();
    run
}

impl Run {
    fn new(plan: &Plan<'_>) -> Self {
        Self {
            scenario: plan.scenario.to_owned(),
            containerd: plan.fleet.to_owned(),
            nodes: plan.nodes,
            layers: plan.layers.to_string(),
            variant: plan.variant,
            image_bytes: 0,
            holders: plan.holders,
            bound: 0.0,
            last: 0.0,
            registry_bytes: 0,
            copies: 0.0,
            registry_requests: 0,
            pulls: Vec::new(),
            first_byte: Waits::default(),
            layer_wait: Waits::default(),
            peili_cpu: 0.0,
            containerd_cpu: 0.0,
            machine_cpu: 0.0,
            machine_busy: 0.0,
            metrics: Series::new(),
            fault: String::new(),
            verdicts: Vec::new(),
            error: None,
            took: 0.0,
        }
    }
}

async fn attempt(bench: &mut Bench, plan: &Plan<'_>, run: &mut Run) -> Result<()> {
    let (lab, image) = bench.ready(plan.nodes, plan.layers).await?;
    let case = Case {
        image: image.pulled_bytes(),
        nodes: plan.nodes - plan.holders,
        source: match plan.holders as u64 {
            0 => plan.registry,
            holders => holders * plan.link,
        },
        link: plan.link,
    };
    (run.image_bytes, run.bound) = (case.image, case.bound());
    let nodes = set_up(lab, plan, &image).await?;
    let measured = measure(lab, plan, &image, &nodes, run).await;
    wake(&nodes);
    if measured.is_err() || run.pulls.iter().any(|p| p.is_a_surprise(plan.fault)) {
        run.error = Some(logs(&nodes));
    }
    measured
}

async fn measure(
    lab: &Lab,
    plan: &Plan<'_>,
    image: &Image,
    nodes: &[Node],
    run: &mut Run,
) -> Result<()> {
    let before = all_series(nodes).await;
    let served = lab.registry.served().await?;
    let machine = Machine::now();

    let cpu = cpu_of_all(nodes);
    let seen = pull(plan, image, nodes, &mut run.pulls).await?;

    (run.machine_cpu, run.machine_busy) = Machine::now().busy_since(&machine);
    let served = lab.registry.served().await?.since(&served);
    for (index, after) in all_series(nodes).await {
        let before = before.get(&index).cloned().unwrap_or_default();
        add_changes(&mut run.metrics, &before, &after);
    }
    // Then every request of theirs is in the log.
    join_all(nodes.iter().map(|node| async {
        wake(std::slice::from_ref(node));
        let _ = node.stop_peili().await;
    }))
    .await;
    run.peili_cpu = seen.peili_cpu.iter().sum::<f64>() - cpu.0;
    run.containerd_cpu = seen.containerd_cpu.iter().sum::<f64>() - cpu.1;
    account(plan, image, nodes, &served, seen, run);
    Ok(())
}

fn account(
    plan: &Plan<'_>,
    image: &Image,
    nodes: &[Node],
    served: &Served,
    seen: Seen,
    run: &mut Run,
) {
    run.registry_bytes = served.bytes();
    run.copies = served.bytes() as f64 / image.pulled_bytes() as f64;
    run.registry_requests = served.0.len();
    let story = seen.story.unwrap_or_default();
    run.fault = story.told;
    for (index, (pull, node)) in run.pulls.iter_mut().zip(nodes).enumerate() {
        pull.victim = story.victims.contains(&index);
        pull.registry_bytes = served.bytes_to(node.ip());
        let theirs = served.0.iter().filter(|a| a.client == node.ip());
        pull.registry_requests = theirs.count();
        let lacks = image.layers.iter().any(|layer| !node.holds(&layer.digest));
        if pull.error.is_none() && lacks {
            pull.error = Some("a layer is missing".to_owned());
        }
    }
    let must = |pull: &&Pull| fate(plan.fault, pull.victim) == Fate::Succeeds;
    let took = run.pulls.iter().filter(must).map(|pull| pull.took);
    run.last = took.fold(0.0, f64::max);
    run.verdicts = run
        .pulls
        .iter()
        .filter_map(|pull| pull.verdict(plan.fault))
        .chain(story.verdicts)
        .collect();
    let digests: Vec<String> = image.layers.iter().map(|l| l.digest.clone()).collect();
    let (mut all, mut layers) = (Vec::new(), Vec::new());
    for node in nodes.iter().filter(|_| plan.variant != Variant::Without) {
        let log = std::fs::read_to_string(node.peili().log()).unwrap_or_default();
        if let Some(directory) = plan.logs {
            let (fleet, scenario, name) = (plan.fleet, plan.scenario, node.name());
            let kept = directory.join(format!("{scenario}-{fleet}-{}-{name}.log", plan.nodes));
            let written = std::fs::create_dir_all(directory);
            if let Err(error) = written.and_then(|()| std::fs::write(&kept, &log)) {
                eprintln!("crowd: {} is not kept: {error}", kept.display());
            }
        }
        let requests = requests(&log, node.ip().into());
        layers.extend(layer_waits(&requests, &digests));
        all.extend(requests);
    }
    run.first_byte = Waits::per_request(&all);
    run.layer_wait = Waits::of(layers);
}

fn logs(nodes: &[Node]) -> String {
    /// As many as tell the last second or two.
    const LINES: usize = 12;
    let ends = nodes.iter().flat_map(|node| {
        [
            ("containerd", node.containerd().log()),
            ("peili", node.peili().log()),
        ]
        .map(|(who, log)| format!("--- {} {who}\n{}", node.name(), tail(&log, LINES)))
    });
    ends.collect::<Vec<_>>().join("\n")
}
