//! Whatever breaks, a pull is never worse than without us: the matrix of faults on real containerds.
//!
//! What goes wrong × where in a pull × one holder or three × registry up or down: cells as data (`cell`), how each has to end
//! (`outcome`), few that meet every pair of values (`pairs`). Plain `cargo test` tries those; `make test-faults` all of them:
//!
//! - `PEILI_TEST_FAULTS`: `all`, or words that are in the names of cells, apart by spaces: `killed/ /layer/only`.
//! - `PEILI_TEST_FAULTS_OUTPUT`: a file with a line of JSON for each cell. What is right there is not tried again.
//! - `PEILI_TEST_FAULTS_AT_ONCE`: so many cells side by side.
//!
//! A cell is tried on a rig (`rig`: a puller and its holders, for one cell after another), at a byte and not at a time (`tap`,
//! `spoil`, `inject`), and judged (`trial`).

mod cell;
mod inject;
#[allow(dead_code, reason = "each test uses its part of the lab")]
#[path = "../lab/mod.rs"]
mod lab;
mod matrix;
mod outcome;
mod page;
mod pairs;
mod rig;
mod spoil;
mod tap;
mod trial;

use std::collections::BTreeSet;

use cell::{Cell, Fault, Hit};
use outcome::Outcome;

#[test]
fn the_chosen_cells_meet_every_pair_that_any_cell_meets() {
    let all = Cell::all();
    let chosen = pairs::choose(&all);

    let wanted: BTreeSet<_> = all.iter().flat_map(pairs::own).collect();
    let met: BTreeSet<_> = chosen.iter().flat_map(pairs::pairs).collect();
    assert_eq!(wanted.difference(&met).next(), None);
    assert!(chosen.iter().all(|cell| all.contains(cell)));
    // Each is there for something.
    for left_out in &chosen {
        let others = chosen.iter().filter(|cell| *cell != left_out);
        let met: BTreeSet<_> = others.flat_map(pairs::pairs).collect();
        assert!(wanted.difference(&met).next().is_some(), "{left_out}");
    }
    println!("{} of {} cells", chosen.len(), all.len());
}

#[test]
fn cells_have_names_of_their_own_and_a_reason_to_be_left_out() {
    let names: BTreeSet<_> = Cell::every().map(|cell| cell.to_string()).collect();
    assert_eq!(names.len(), Fault::ALL.len() * Hit::ALL.len() * 4);
    assert!(
        Fault::ALL
            .iter()
            .all(|fault| Cell::all().iter().any(|cell| cell.fault == *fault))
    );
}

#[test]
fn with_the_registry_up_a_first_pull_fails_only_for_a_full_disk_and_for_wrong_bytes() {
    let up = Cell::all().into_iter();
    let up = up.filter(|cell| cell.registry == cell::Registry::Up);
    for cell in up.filter(|cell| Outcome::of(cell) != Outcome::Pulled) {
        let is_known = match cell.fault {
            Fault::DiskFull => Outcome::of(&cell) == Outcome::Fails,
            // They have been given to containerd before anybody can know.
            Fault::Flipped => {
                matches!(cell.hit, Hit::Layer | Hit::Range)
                    && Outcome::of(&cell) == Outcome::NextPull
            }
            _ => false,
        };
        assert!(is_known, "{cell}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_cell_of_the_matrix_ends_as_it_has_to() {
    let available = lab::Lab::available().and_then(|()| match lab::process::find("iptables") {
        Some(_) => Ok(()),
        None => Err("iptables is missing; `make deps` installs it".to_owned()),
    });
    match available {
        Ok(()) => {}
        Err(why) if std::env::var_os("CI").is_some() => panic!("no lab: {why}"),
        Err(why) => {
            matrix::say(&format!("skipped: {why}"));
            return;
        }
    }
    let wrong = matrix::run().await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
