//! Many cells, some side by side, with a word after each.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures::future::join_all;

use crate::cell::{Cell, Peers};
use crate::outcome::Outcome;
use crate::pairs::choose;
use crate::rig::{MIB, Rig};
use crate::trial::{Report, attempt};

/// Longer than the slowest pull may take, and all around it.
const LIMIT: Duration = Duration::from_secs(300);
/// Most of a cell is waiting.
const AT_ONCE: usize = 4;
/// A rig that could not try a cell is replaced, and the cell tried once more.
const TRIES: u32 = 2;

const FAULTS: &str = "PEILI_TEST_FAULTS";
const OUTPUT: &str = "PEILI_TEST_FAULTS_OUTPUT";
const SIDE_BY_SIDE: &str = "PEILI_TEST_FAULTS_AT_ONCE";

/// Past libtest, which shows what a test printed only when it failed.
pub fn say(what: &str) {
    let _ = writeln!(std::io::stderr(), "{what}");
}

/// What is to be tried.
fn wanted() -> Vec<Cell> {
    let all = Cell::all();
    match std::env::var(FAULTS) {
        Err(_) => choose(&all),
        Ok(words) if words == "all" => all,
        Ok(words) => {
            let words: Vec<&str> = words.split_whitespace().collect();
            let cells = all.into_iter().filter(|cell| {
                let name = cell.to_string();
                words.iter().any(|word| name.contains(word))
            });
            let cells: Vec<Cell> = cells.collect();
            assert!(
                !cells.is_empty(),
                "{FAULTS}={words:?}: no cell has such a name; they are like {}",
                Cell::all()[0]
            );
            cells
        }
    }
}

pub fn output() -> Option<PathBuf> {
    std::env::var_os(OUTPUT).map(PathBuf::from)
}

/// What an earlier run has found out.
pub fn known() -> BTreeMap<String, Report> {
    let text = output().and_then(|path| std::fs::read_to_string(path).ok());
    let text = text.unwrap_or_default();
    let reports = text.lines().filter_map(|line| {
        let report: Report = serde_json::from_str(line).ok()?;
        Some((report.cell.clone(), report))
    });
    reports.collect()
}

struct Run {
    all: usize,
    began: Instant,
    waiting: BTreeMap<Peers, Mutex<VecDeque<Cell>>>,
    done: Mutex<Vec<Report>>,
    file: Option<Mutex<File>>,
}

/// What is wrong, in words.
pub async fn run() -> Vec<String> {
    let known = known();
    let is_right = |cell: &Cell| {
        let report = known.get(&cell.to_string());
        report.is_some_and(|report| {
            report.wrong.is_empty() && report.expected == Outcome::of(cell).word()
        })
    };
    let wanted: Vec<Cell> = wanted().into_iter().filter(|c| !is_right(c)).collect();
    let waiting = Peers::ALL.map(|peers| {
        let cells = wanted.iter().filter(|cell| cell.peers == peers);
        (peers, Mutex::new(cells.copied().collect()))
    });
    let append = |path| File::options().create(true).append(true).open(path);
    let run = Run {
        all: wanted.len(),
        began: Instant::now(),
        waiting: waiting.into(),
        done: Mutex::default(),
        file: output().map(|path| Mutex::new(append(path).unwrap())),
    };
    let at_once = std::env::var(SIDE_BY_SIDE).ok();
    let at_once = at_once.map_or(AT_ONCE, |number| {
        let number: Result<usize, _> = number.parse();
        number.unwrap_or_else(|e| panic!("{SIDE_BY_SIDE}: {e}; a number such as {AT_ONCE}"))
    });
    say(&format!("{} cells, {at_once} side by side", run.all));
    // Half of the workers begin with either kind, and go on with the other when that is done.
    let workers = (0..at_once).map(|number| run.work(number));
    join_all(workers).await;
    say(&format!("{:.0?}", run.began.elapsed()));
    let done = run.done.into_inner().unwrap();
    done.into_iter()
        .filter(|report| !report.wrong.is_empty())
        .map(|report| {
            let error = report.error.unwrap_or_else(|| "no error".to_owned());
            format!("{}: {}\n({error})", report.cell, report.wrong.join("\n"))
        })
        .collect()
}

impl Run {
    async fn work(&self, number: usize) {
        let mut kinds = Peers::ALL;
        if number % 2 == 1 {
            kinds.reverse();
        }
        for peers in kinds {
            let mut rig = None;
            while let Some(cell) = self.next(peers) {
                let report = self.attempt(&mut rig, &cell).await;
                self.note(report);
            }
        }
    }

    fn next(&self, peers: Peers) -> Option<Cell> {
        self.waiting[&peers].lock().unwrap().pop_front()
    }

    async fn attempt(&self, rig: &mut Option<Rig>, cell: &Cell) -> Report {
        let mut wrong = Vec::new();
        for _ in 0..TRIES {
            let tried = async {
                if rig.is_none() {
                    *rig = Some(Rig::new(cell.peers).await?);
                }
                match rig {
                    Some(rig) => attempt(rig, cell).await,
                    None => unreachable!("it was made"),
                }
            };
            match tokio::time::timeout(LIMIT, tried).await {
                Ok(Ok(report)) => return report,
                Ok(Err(error)) => wrong.push(format!("not tried: {error:#}")),
                Err(_) => wrong.push(format!("not over within {LIMIT:?}")),
            }
            say(&format!("{cell}: {}", wrong.join("; ")));
            // Whatever is left of the fault goes with it.
            *rig = None;
        }
        Report {
            wrong,
            ..Report::untried(cell)
        }
    }

    fn note(&self, report: Report) {
        if let Some(file) = &self.file {
            let line = serde_json::to_string(&report).unwrap();
            writeln!(file.lock().unwrap(), "{line}").unwrap();
        }
        let mut done = self.done.lock().unwrap();
        let (count, all) = (done.len() + 1, self.all);
        let so_far = self.began.elapsed();
        let to_go = so_far.mul_f64((all - count) as f64 / count as f64);
        let judged = match report.wrong.first() {
            None => String::new(),
            Some(wrong) => format!(" WRONG: {}", wrong.lines().next().unwrap_or_default()),
        };
        say(&format!(
            "{count} of {all} {}: {} after {:.1} s, {:.1} MiB twice{judged} ({so_far:.0?}, {to_go:.0?} to go)",
            report.cell,
            report.seen,
            report.took,
            report.twice.unwrap_or(0) as f64 / MIB as f64,
        ));
        done.push(report);
    }
}
