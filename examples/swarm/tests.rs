//! A small swarm, and what must hold of it.

use super::*;

fn options(words: &str) -> Options {
    Options::parse_from(format!("swarm --quiet {words}").split(' '))
}

#[test]
fn a_small_swarm_finds_who_lives_when_some_have_died() {
    let options =
        options("--nodes 24 --keys 5,50 --lookups 30 --heal 1 --idle 1 --joins 100 --seed 7");

    let outcome = one(&options, 24).unwrap();

    assert_eq!((outcome.nodes, outcome.dead), (24, 7));
    assert!(outcome.joined.table >= 20, "{:?}", outcome.joined);
    assert!(outcome.joined.connections > 0.0 && outcome.joined.mib > 0.0);
    let idle = outcome.idle.as_ref().expect("they were");
    assert!(idle.cpu > 0.0 && idle.connections > 0.0, "{idle:?}");
    // One of thirty may have come while it was not settled.
    assert!(outcome.hit.wrong < 0.05, "{:?}", outcome.hit);
    assert!(outcome.miss.wrong == 0.0, "{:?}", outcome.miss);
    assert!(outcome.miss.requests >= 10.0, "{:?}", outcome.miss);
    let told: Vec<usize> = outcome.told.iter().map(|told| told.keys).collect();
    assert_eq!(told, [5, 50]);
    assert!(outcome.told[1].kib > outcome.told[0].kib);
    for after in [&outcome.directly, &outcome.healed] {
        assert!(after.found >= 0.9, "{outcome:?}");
    }
    let json = serde_json::to_string(&outcome).unwrap();
    let again: Outcome = serde_json::from_str(&json).unwrap();
    let table = outcome::markdown(&[outcome, again]);
    for line in [
        "| nodes | 24 | 24 | grows as |",
        "| idle: CPU of each node, % of a core |",
        "| 29 % dead: a living holder found, % |",
    ] {
        assert!(table.contains(line), "{table}");
    }
}

#[test]
fn a_process_of_its_own_is_asked_for_the_same() {
    let all = options(
        "--nodes 10,20 --keys 1,2 --lookups 3 --dead 20 --heal 4 --idle 8 --joins 5.5 --seed 6",
    );

    let mut words = vec!["swarm".to_owned()];
    words.extend(all.of_one(20));
    let one = Options::parse_from(words);

    assert_eq!((one.nodes, one.json, one.quiet), (vec![20], true, true));
    assert_eq!((one.keys, one.lookups, one.dead), (vec![1, 2], 3, 20));
    assert_eq!((one.heal, one.idle, one.joins, one.seed), (4, 8, 5.5, 6));
}

#[test]
fn what_makes_no_sense_is_refused() {
    for words in ["swarm --joins 0", "swarm --joins x", "swarm --dead 91"] {
        assert!(
            Options::try_parse_from(words.split(' ')).is_err(),
            "{words}"
        );
    }
    let error = run(&options("--nodes 3")).unwrap_err().to_string();
    assert!(error.contains("--nodes 3"), "{error}");
}
