//! docs/reliability.md: its table has every cell and how it ends. Times are those of the run that wrote it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::cell::{Cell, Fault, Hit, Peers, Registry};
use crate::matrix::known;
use crate::outcome::Outcome;
use crate::rig::MIB;
use crate::trial::Report;

const BEGIN: &str = "<!-- made by `make docs` from tests/faults: -->\n";
const END: &str = "<!-- until here -->\n";

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reliability.md")
}

/// What a run has seen, by cell: ` 2 s, +3 MiB`.
type Measured = BTreeMap<String, String>;

fn measured(reports: &BTreeMap<String, Report>) -> Measured {
    let right = reports.values().filter(|report| report.wrong.is_empty());
    right
        .map(|report| {
            let took = match report.took {
                took if took < 1.0 => " <1 s".to_owned(),
                took => format!(" {took:.0} s"),
            };
            let twice = match report.twice.unwrap_or(0) / MIB as i64 {
                ..1 => String::new(),
                mib => format!(", +{mib} MiB"),
            };
            (report.cell.clone(), took + &twice)
        })
        .collect()
}

fn columns() -> impl Iterator<Item = (Peers, Registry)> {
    Peers::ALL
        .into_iter()
        .flat_map(|peers| Registry::ALL.map(|registry| (peers, registry)))
}

fn row(fault: Fault, hit: Hit) -> impl Iterator<Item = Cell> {
    columns().map(move |(peers, registry)| Cell {
        fault,
        hit,
        peers,
        registry,
    })
}

fn table(measured: &Measured) -> String {
    let mut page = String::from(
        "| what | hit at | one holder, registry up | one holder, registry down | three holders, registry up | three holders, registry down |\n\
         |---|---|---|---|---|---|\n",
    );
    for fault in Fault::ALL {
        let mut about = fault.about();
        for hit in Hit::ALL {
            if row(fault, hit).all(|cell| cell.why_not().is_some()) {
                continue;
            }
            write!(page, "| {about} | {} |", hit.word()).unwrap();
            for cell in row(fault, hit) {
                match cell.why_not() {
                    Some(_) => page.push_str(" |"),
                    None => {
                        let outcome = Outcome::of(&cell).word();
                        let seen = measured.get(&cell.to_string());
                        let seen = seen.map(String::as_str).unwrap_or_default();
                        write!(page, " {outcome}{seen} |").unwrap();
                    }
                }
            }
            page.push('\n');
            about = "";
        }
    }
    page.push_str("\nLeft out:\n\n| what | where | why |\n|---|---|---|\n");
    for fault in Fault::ALL {
        let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
        for cell in Cell::every().filter(|cell| cell.fault == fault) {
            let Some(why) = cell.why_not() else { continue };
            let (peers, registry) = (cell.peers.word(), cell.registry.word());
            let place = format!("{}/{peers}/{registry}", cell.hit.word());
            match reasons.iter_mut().find(|(known, _)| *known == why) {
                Some((_, places)) => places.push(place),
                None => reasons.push((why, vec![place])),
            }
        }
        for (why, places) in reasons {
            let places = summed_up(&places);
            writeln!(page, "| {} | {places} | {why} |", fault.word()).unwrap();
        }
    }
    page
}

/// `tag, manifest` for all four of each.
fn summed_up(places: &[String]) -> String {
    let mut words = Vec::new();
    for hit in Hit::ALL {
        let of: Vec<&String> = places
            .iter()
            .filter(|place| place.split('/').next() == Some(hit.word()))
            .collect();
        match of.len() {
            0 => {}
            4 => words.push(hit.word().to_owned()),
            _ => words.extend(of.into_iter().cloned()),
        }
    }
    words.join(", ")
}

/// The times of a table, by cell.
fn read(table: &str) -> Measured {
    let mut measured = Measured::new();
    let mut rows = table.lines().skip(2);
    for fault in Fault::ALL {
        for hit in Hit::ALL {
            if row(fault, hit).all(|cell| cell.why_not().is_some()) {
                continue;
            }
            let Some(line) = rows.next() else { continue };
            for (cell, text) in row(fault, hit).zip(line.split('|').skip(3)) {
                let outcome = Outcome::of(&cell).word();
                let text = text.trim().strip_prefix(outcome).unwrap_or_default();
                measured.insert(cell.to_string(), text.to_owned());
            }
        }
    }
    measured
}

#[test]
fn the_page_has_every_cell_and_how_it_ends() {
    let page = std::fs::read_to_string(path()).unwrap();
    let (head, rest) = page.split_once(BEGIN).expect("the beginning of the table");
    let (theirs, tail) = rest.split_once(END).expect("the end of the table");
    let earlier = read(theirs);

    if std::env::var_os("PEILI_WRITE_DOCS").is_some() {
        let mut seen = earlier;
        seen.extend(measured(&known()));
        let table = table(&seen);
        std::fs::write(path(), format!("{head}{BEGIN}{table}{END}{tail}")).unwrap();
        return;
    }

    assert_eq!(theirs, table(&earlier), "`make docs` writes it");
}
