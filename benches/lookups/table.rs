//! What came of it: percentiles of each round, medians of the rounds and from where to where, and ratios within each
//! round, so that whatever else the machine does hits both.

use std::fmt::Write as _;

use peili::testing::measure::{Sample, median};
use serde::Serialize;

/// Of some lookups, in seconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Times {
    pub p50: f64,
    pub p99: f64,
}

impl From<Sample> for Times {
    fn from(sample: Sample) -> Self {
        let at = |percent| sample.percentile(percent).unwrap_or_default().as_secs_f64();
        Self {
            p50: at(50),
            p99: at(99),
        }
    }
}

/// Ours, one round. What is not a time is the mean of a lookup, all nodes' together.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    pub took: Times,
    /// Seconds of user and system time, with what goes on after the answer.
    pub cpu: f64,
    /// Kademlia's, to any node.
    pub requests: f64,
    pub packets: f64,
    pub bytes: f64,
    pub dials: f64,
    /// Lookups that found nobody, or somebody who is none.
    pub lost: usize,
}

/// What was measured beside it in the same round.
#[derive(Clone, Debug, Serialize)]
pub struct Beside {
    /// libp2p's own Kademlia.
    pub lookup: Times,
    /// One request and its answer.
    pub round_trip: Times,
}

/// One kind of lookup in a swarm of one size, in the order of the rounds.
#[derive(Debug, Serialize)]
pub struct Cell {
    what: String,
    nodes: usize,
    runs: Vec<Run>,
    beside: Vec<Beside>,
}

impl Cell {
    pub fn new(what: &str, nodes: usize) -> Self {
        Self {
            what: what.to_owned(),
            nodes,
            runs: Vec::new(),
            beside: Vec::new(),
        }
    }

    pub fn add(&mut self, run: Run, beside: Option<Beside>) {
        self.runs.push(run);
        self.beside.extend(beside);
    }

    fn of(&self, value: impl Fn(&Run) -> f64) -> Vec<f64> {
        self.runs.iter().map(value).collect()
    }

    /// Ours over another's, round by round.
    fn ratio(&self, other: impl Fn(&Beside) -> f64) -> String {
        let rounds = self.runs.iter().zip(&self.beside);
        spread(
            &rounds
                .map(|(ours, beside)| ours.took.p50 / other(beside))
                .collect::<Vec<_>>(),
            1,
        )
    }
}

/// The median, and from where to where.
fn spread(values: &[f64], digits: usize) -> String {
    let Some(median) = median(values) else {
        return "–".to_owned();
    };
    let (first, last) = values
        .iter()
        .fold((f64::MAX, f64::MIN), |(a, b), v| (a.min(*v), b.max(*v)));
    format!("{median:.digits$} ({first:.digits$}–{last:.digits$})")
}

pub fn markdown(cells: &[Cell]) -> String {
    let mut page = String::from(
        "| | nodes | p50 ms | p99 ms | CPU ms | requests | packets | KiB | p50 to libp2p's own | p50 to a round trip |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for cell in cells {
        let in_ms = |value: fn(&Run) -> f64| {
            let values: Vec<f64> = cell.of(value).iter().map(|seconds| seconds * 1e3).collect();
            spread(&values, 2)
        };
        let mean = |value: fn(&Run) -> f64| median(&cell.of(value)).unwrap_or_default();
        let _ = writeln!(
            page,
            "| {} | {} | {} | {} | {} | {:.0} | {:.0} | {:.0} | {} | {} |",
            cell.what,
            cell.nodes,
            in_ms(|run| run.took.p50),
            in_ms(|run| run.took.p99),
            in_ms(|run| run.cpu),
            mean(|run| run.requests),
            mean(|run| run.packets),
            mean(|run| run.bytes) / 1024.0,
            cell.ratio(|beside| beside.lookup.p50),
            cell.ratio(|beside| beside.round_trip.p50),
        );
    }
    page
}
