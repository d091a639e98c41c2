//! What swarms of several sizes came to: a table with a column for each, and how each figure grows.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::model::Modelled;

/// One swarm.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    pub nodes: usize,
    pub dead: usize,
    /// Seconds.
    pub heal: u64,
    pub joined: Joined,
    /// None where nobody was to be idle.
    pub idle: Option<Idle>,
    pub hit: Looked,
    pub miss: Looked,
    pub told: Vec<Told>,
    pub directly: Afterwards,
    pub healed: Afterwards,
}

/// After all have joined. Of one node, but for the seconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Joined {
    pub seconds: f64,
    /// Seconds.
    pub cpu: f64,
    pub requests: f64,
    pub connections: f64,
    pub mib: f64,
    /// The routing table of the one in the middle.
    pub table: usize,
}

/// While nobody does anything. Of one node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Idle {
    /// Of one core, out of 1.
    pub cpu: f64,
    /// Connections that it opens in a minute.
    pub dials: f64,
    /// At the end.
    pub connections: f64,
}

/// Lookups of one kind: milliseconds, and means of one lookup.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Looked {
    pub p50: f64,
    pub p99: f64,
    pub requests: f64,
    pub dials: f64,
    /// Milliseconds, all nodes together.
    pub cpu: f64,
    /// Lookups that found nobody, or somebody who is none, out of 1.
    pub wrong: f64,
}

/// One node that tells of its keys.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Told {
    pub keys: usize,
    pub seconds: f64,
    /// Requests to find out whom to tell.
    pub searches: f64,
    /// That this node sent and received.
    pub kib: f64,
    /// Milliseconds for each key, all nodes together.
    pub cpu: f64,
}

/// Lookups after the deaths, of contents that a living node holds and of nobody's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Afterwards {
    /// A living holder was found, out of 1.
    pub found: f64,
    /// Dead holders that were named before, for each lookup.
    pub refused: f64,
    pub hit_p50: f64,
    pub hit_p99: f64,
    pub miss_p50: f64,
    pub miss_p99: f64,
}

/// A figure of a swarm.
struct Row {
    what: String,
    value: Box<dyn Fn(&Outcome) -> f64>,
    digits: usize,
    /// Whether its growth says something.
    grows: bool,
}

impl Row {
    fn new(
        what: impl Into<String>,
        digits: usize,
        value: impl Fn(&Outcome) -> f64 + 'static,
    ) -> Self {
        Self {
            what: what.into(),
            value: Box::new(value),
            digits,
            grows: true,
        }
    }

    fn of_no_growth(self) -> Self {
        Self {
            grows: false,
            ..self
        }
    }
}

fn rows(outcome: &Outcome) -> Vec<Row> {
    let mut rows = vec![
        Row::new("all know each other, s", 0, |o| o.joined.seconds).of_no_growth(),
        Row::new("joining: requests to each node", 0, |o| o.joined.requests),
        Row::new("joining: CPU of each node, s", 2, |o| o.joined.cpu),
        Row::new("routing table", 0, |o| o.joined.table as f64),
        Row::new("connections of a node then", 0, |o| o.joined.connections),
        Row::new("memory of a node, MiB", 1, |o| o.joined.mib),
    ];
    if outcome.idle.is_some() {
        type Figure = fn(&Idle) -> f64;
        let figures: [(&str, usize, Figure); 3] = [
            ("idle: CPU of each node, % of a core", 2, |idle| {
                idle.cpu * 100.0
            }),
            ("idle: dials of a node in a minute", 1, |idle| idle.dials),
            ("idle: connections of a node", 0, |idle| idle.connections),
        ];
        rows.extend(figures.map(|(what, digits, of)| {
            Row::new(what, digits, move |o| o.idle.as_ref().map_or(0.0, of))
        }));
    }
    type Lookups = fn(&Outcome) -> &Looked;
    let kinds: [(&str, Lookups); 2] = [("hit", |o| &o.hit), ("miss", |o| &o.miss)];
    for (kind, of) in kinds {
        rows.extend([
            Row::new(format!("{kind}: p50, ms"), 2, move |o| of(o).p50),
            Row::new(format!("{kind}: p99, ms"), 2, move |o| of(o).p99),
            Row::new(format!("{kind}: requests"), 1, move |o| of(o).requests),
            Row::new(format!("{kind}: dials"), 1, move |o| of(o).dials),
            Row::new(format!("{kind}: CPU, ms"), 2, move |o| of(o).cpu),
            Row::new(format!("{kind}: wrong, %"), 1, move |o| of(o).wrong * 100.0).of_no_growth(),
        ]);
    }
    for (at, Told { keys, .. }) in outcome.told.iter().enumerate() {
        let told = |what: &str| format!("{keys} keys told: {what}");
        rows.extend([
            Row::new(told("s"), 2, move |o| o.told[at].seconds),
            Row::new(told("searches' requests"), 0, move |o| o.told[at].searches),
            Row::new(told("KiB of the node"), 0, move |o| o.told[at].kib),
            Row::new(told("CPU of each key, ms"), 2, move |o| o.told[at].cpu),
        ]);
    }
    type Deaths = fn(&Outcome) -> &Afterwards;
    let share = outcome.dead * 100 / outcome.nodes.max(1);
    let moments: [(String, Deaths); 2] = [
        (format!("{share} % dead"), |o| &o.directly),
        (format!("after {} s", outcome.heal), |o| &o.healed),
    ];
    for (when, of) in moments {
        let after = |what: &str| format!("{when}: {what}");
        let all = [
            Row::new(after("a living holder found, %"), 1, move |o| {
                of(o).found * 100.0
            }),
            Row::new(after("dead ones named before"), 2, move |o| of(o).refused),
            Row::new(after("to it p50, ms"), 2, move |o| of(o).hit_p50),
            Row::new(after("to it p99, ms"), 2, move |o| of(o).hit_p99),
            Row::new(after("miss p50, ms"), 2, move |o| of(o).miss_p50),
            Row::new(after("miss p99, ms"), 2, move |o| of(o).miss_p99),
        ];
        rows.extend(all.map(Row::of_no_growth));
    }
    rows
}

/// A column for each swarm, and the exponent of growth if there are several.
pub fn markdown(outcomes: &[Outcome]) -> String {
    let Some(first) = outcomes.first() else {
        return String::new();
    };
    let mut page = String::from("| nodes |");
    for outcome in outcomes {
        let _ = write!(page, " {} |", outcome.nodes);
    }
    let grows = outcomes.len() > 1;
    page.push_str(if grows {
        " grows as |\n|---|"
    } else {
        "\n|---|"
    });
    page.push_str(&"--:|".repeat(outcomes.len() + usize::from(grows)));
    page.push('\n');
    for row in rows(first) {
        let _ = write!(page, "| {} |", row.what);
        let values: Vec<f64> = outcomes.iter().map(&row.value).collect();
        for value in &values {
            let _ = write!(page, " {value:.0$} |", row.digits);
        }
        if grows {
            let points: Vec<(f64, f64)> = outcomes
                .iter()
                .zip(values)
                .map(|(outcome, value)| (outcome.nodes as f64, value))
                .collect();
            let law = exponent(&points).filter(|_| row.grows);
            let law = law.map_or("–".to_owned(), |exponent| format!("N^{exponent:.2}"));
            let _ = write!(page, " {law} |");
        }
        page.push('\n');
    }
    page
}

/// `value` grows as `nodes` to the power of this, as far as points say so: least squares of both logarithms.
fn exponent(points: &[(f64, f64)]) -> Option<f64> {
    let logs: Vec<(f64, f64)> = points
        .iter()
        .filter(|(nodes, value)| *nodes > 0.0 && *value > 0.0)
        .map(|(nodes, value)| (nodes.ln(), value.ln()))
        .collect();
    if logs.len() < 2 {
        return None;
    }
    let count = logs.len() as f64;
    let (x, y) = logs
        .iter()
        .fold((0.0, 0.0), |(x, y), p| (x + p.0 / count, y + p.1 / count));
    let up: f64 = logs.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    let along: f64 = logs.iter().map(|p| (p.0 - x).powi(2)).sum();
    (along > 0.0).then(|| up / along)
}

/// The model's, a row for each size.
pub fn modelled(rows: &[Modelled], round_trip_us: u64) -> String {
    let mut page = String::from(
        "| nodes, in the model | routing table | hit: requests | round trips | ms | miss: requests | round trips | ms |\n\
         |--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    let ms = |steps: f64| steps * round_trip_us as f64 / 1e3;
    for row in rows {
        let _ = writeln!(
            page,
            "| {} | {:.0} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} |",
            row.nodes,
            row.table,
            row.hit_requests,
            row.hit_steps,
            ms(row.hit_steps),
            row.miss_requests,
            row.miss_steps,
            ms(row.miss_steps),
        );
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_told_by_its_exponent() {
        let points = |law: fn(f64) -> f64| [100.0, 300.0, 1000.0].map(|n| (n, law(n)));
        for (law, expected) in [
            ((|n| 3.0 * n) as fn(f64) -> f64, 1.0),
            (|_| 7.0, 0.0),
            (|n| n * n / 50.0, 2.0),
            (|n| n.sqrt(), 0.5),
        ] {
            let exponent = exponent(&points(law)).unwrap();
            assert!((exponent - expected).abs() < 1e-9, "{exponent}");
        }
        assert!(exponent(&points(f64::ln)).unwrap() < 0.2);
        assert_eq!(exponent(&[(100.0, 1.0)]), None);
        assert_eq!(exponent(&[(100.0, 1.0), (200.0, 0.0)]), None);
    }
}
