//! What came of it: medians of all rounds, and ratios within each round, so that whatever else the machine does hits both.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

/// One server, asked for a while.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Run {
    /// Seconds of user and system time.
    pub cpu: f64,
    pub bytes: u64,
    pub requests: u64,
    pub seconds: f64,
}

/// One thing asked for by so many at once, of everybody.
#[derive(Debug, Serialize)]
pub struct Cell {
    what: String,
    clients: usize,
    servers: Vec<String>,
    /// By server, in the order of the rounds.
    runs: BTreeMap<String, Vec<Run>>,
}

impl Run {
    /// In GB/s.
    fn rate(&self) -> f64 {
        self.bytes as f64 / self.seconds / 1e9
    }

    fn per_second(&self) -> f64 {
        self.requests as f64 / self.seconds
    }

    /// CPU seconds for each GB.
    fn cost(&self) -> f64 {
        self.cpu / self.bytes as f64 * 1e9
    }
}

impl Cell {
    pub fn new(what: &str, clients: usize) -> Self {
        Self {
            what: what.to_owned(),
            clients,
            servers: Vec::new(),
            runs: BTreeMap::new(),
        }
    }

    pub fn add(&mut self, server: &str, run: Run) {
        if !self.servers.iter().any(|known| known == server) {
            self.servers.push(server.to_owned());
        }
        self.runs.entry(server.to_owned()).or_default().push(run);
    }

    fn of(&self, server: &str, value: impl Fn(&Run) -> f64) -> Vec<f64> {
        self.runs[server].iter().map(value).collect()
    }
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

fn median(values: Vec<f64>) -> f64 {
    let sorted = sorted(values);
    sorted[sorted.len() / 2]
}

/// The first's values over the second's, round by round: the median, and from where to where.
fn ratio(of: Vec<f64>, to: Vec<f64>) -> String {
    let ratios = sorted(of.iter().zip(&to).map(|(of, to)| of / to).collect());
    let (first, last) = (ratios[0], ratios[ratios.len() - 1]);
    format!("{:.2} ({first:.2}–{last:.2})", median(ratios))
}

/// A row for each server; ratios are the first server's to that one's.
pub fn markdown(cells: &[Cell]) -> String {
    let mut page = String::from(
        "| | at once | | GB/s | requests/s | CPU s/GB | ratio of GB/s | ratio of requests/s | ratio of CPU |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for cell in cells {
        for server in &cell.servers {
            let _ = write!(
                page,
                "| {} | {} | {server} | {:.2} | {:.0} | {:.3} |",
                cell.what,
                cell.clients,
                median(cell.of(server, Run::rate)),
                median(cell.of(server, Run::per_second)),
                median(cell.of(server, Run::cost)),
            );
            let ours = &cell.servers[0];
            for value in [Run::rate, Run::per_second, Run::cost] {
                let told = match server == ours {
                    true => "–".to_owned(),
                    false => ratio(cell.of(ours, value), cell.of(server, value)),
                };
                let _ = write!(page, " {told} |");
            }
            page.push('\n');
        }
    }
    page
}
