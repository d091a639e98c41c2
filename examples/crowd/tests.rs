//! Small crowds, and what must hold of them.

use super::*;

fn crowd(words: &str) -> Outcome {
    let words = format!("crowd --quiet {words}");
    simulate(&Options::parse_from(words.split(' ')))
}

#[test]
fn a_hundred_nodes_cost_the_registry_one_copy() {
    // With an order of its own each node gets three of the five layers that the registry sends, and the others later.
    for (words, bound_times) in [("--nodes 100", 1.8), ("--nodes 100 --same-order", 1.2)] {
        let outcome = crowd(words);

        assert_eq!((outcome.stuck, outcome.circles), (0, 0), "{words}");
        assert!(outcome.copies <= 1.05, "{words}: {outcome:?}");
        assert!(outcome.last <= 10.0 * bound_times, "{words}: {outcome:?}");
    }
}

/// More than one meeting point keeps in mind: most are placed by those whom it names.
#[test]
fn who_finds_no_place_at_the_meeting_point_does_not_lead() {
    for words in [
        "--nodes 200",
        "--nodes 200 --mode auto",
        "--nodes 200 --failing 2",
    ] {
        let outcome = crowd(words);

        assert_eq!((outcome.stuck, outcome.circles), (0, 0), "{words}");
        let limit = if words.contains("auto") { 1.5 } else { 1.05 };
        let [_, _, waits, descends] = outcome.said;
        assert!(outcome.copies <= limit, "{words}: {outcome:?}");
        assert!(
            descends > 0 && descends + waits < 5 * 1000,
            "{words}: {outcome:?}"
        );
    }
}

#[test]
fn who_does_not_die_gets_everything() {
    let outcome = crowd("--nodes 100 --failing 5");

    assert_eq!((outcome.stuck, outcome.failed), (0, 5));
    assert!(outcome.copies <= 3.0, "{outcome:?}");
    assert_eq!(outcome.circles, 0);
}

#[test]
fn without_the_policy_the_registry_is_what_everybody_waits_for() {
    let outcome = crowd("--nodes 20 --layers 2 --layer-mb 10 --mode registry");

    assert!((outcome.copies - 20.0).abs() < 0.01, "{outcome:?}");
    assert!(
        (outcome.last - 8.0).abs() < 0.2,
        "20 × 20 MB at 50 MB/s: {outcome:?}"
    );
}

#[test]
fn a_star_is_as_slow_as_its_middle() {
    let outcome = crowd("--nodes 41 --layers 1 --layer-mb 10 --mode star");

    assert!((outcome.copies - 1.0).abs() < 0.01, "{outcome:?}");
    assert_eq!(outcome.children, 40);
    assert!(
        (outcome.last - 4.0).abs() < 0.5,
        "40 × 10 MB at 100 MB/s: {outcome:?}"
    );
}
