//! What the flash crowd's benchmark makes of its figures. (The benchmark itself is no test: `make bench-crowd`.)

#[path = "../benches/crowd/judge.rs"]
mod judge;
#[path = "../benches/crowd/requests.rs"]
mod requests;
#[path = "../benches/crowd/scenario.rs"]
#[allow(dead_code, reason = "the benchmark uses more of it")]
mod scenario;

use std::net::IpAddr;

use judge::{Case, Figures, judge};
use requests::{Waits, layer_waits, requests};
use scenario::{Check, MB, SCENARIOS, Variant};
use serde_json::{Value, json};

const NODE: &str = "10.77.0.11";

fn node() -> IpAddr {
    NODE.parse().unwrap()
}

/// As the access log has it: `seconds` before `at`, a second of one minute.
fn line(at: f64, seconds: f64, digest: &str, bytes: u64, more: Value) -> String {
    let mut line = json!({
        "timestamp": format!("2026-11-21T08:59:{at:09.6}Z"),
        "message": "request",
        "remote": format!("[::ffff:{NODE}]:40000"),
        "path": format!("/v2/crowd/app/blobs/{digest}"),
        "from_peer": false,
        "bytes": bytes,
        "seconds": seconds,
    });
    for (name, value) in more.as_object().unwrap() {
        line[name] = value.clone();
    }
    line.to_string()
}

fn rounded(waits: Vec<Option<f64>>) -> Vec<Option<f64>> {
    let round = |wait: f64| (wait * 1000.0).round() / 1000.0;
    waits.into_iter().map(|wait| wait.map(round)).collect()
}

#[test]
fn the_bound_is_the_narrowest_of_registry_node_and_all_uplinks() {
    let bound = |registry: u64, link: u64, nodes: usize| {
        let case = Case {
            image: 500 * MB,
            nodes,
            source: registry * MB,
            link: link * MB,
        };
        (case.bound() * 100.0).round() / 100.0
    };

    assert_eq!(bound(50, 100, 5), 10.0, "the registry");
    assert_eq!(bound(400, 50, 5), 10.0, "the node");
    assert_eq!(bound(400, 100, 1), 5.0, "the node, alone");
    assert_eq!(bound(10, 1000, 5), 50.0);
    // 8 x 500 MB by 400 + 8 x 50 MB/s.
    assert_eq!(bound(400, 50, 8), 10.0, "no later than one node needs");
}

#[test]
fn a_check_without_what_it_compares_with_is_unknown() {
    let checks = [Check::Copies(1.05), Check::Bound, Check::NotSlower(1.0)];
    let mut figures = Figures {
        copies: 1.05,
        last: 13.4,
        bound: 10.0,
        local: Some(1.0),
        without: Some(13.4),
    };
    let holds = |figures: &Figures| -> Vec<Option<bool>> {
        let verdicts = judge(Variant::With, &checks, figures);
        verdicts.into_iter().map(|verdict| verdict.holds).collect()
    };

    assert_eq!(holds(&figures), [Some(true), Some(true), Some(true)]);
    (figures.copies, figures.last) = (1.06, 13.5);
    assert_eq!(holds(&figures), [Some(false), Some(true), Some(false)]);
    (figures.local, figures.without) = (Some(0.1), None);
    assert_eq!(holds(&figures), [Some(false), Some(false), None]);
    figures.local = None;
    assert_eq!(holds(&figures), [Some(false), None, None]);
    assert!(judge(Variant::Without, &checks, &figures).is_empty());
}

#[test]
fn a_wait_is_the_refusals_whole_time_or_the_first_byte_where_the_log_tells() {
    let log = [
        line(10.0, 0.25, "sha256:a", 0, json!({})),
        line(20.0, 9.0, "sha256:b", 7, json!({"first_byte": 0.5})),
        line(20.0, 9.0, "sha256:c", 7, json!({})),
        line(20.0, 9.0, "sha256:d", 7, json!({"from_peer": true})),
        line(20.0, 9.0, "sha256:d", 0, json!({"remote": "10.77.0.12:1"})),
        line(20.0, 9.0, "sha256:d", 0, json!({"message": "another"})),
        line(20.0, 9.0, "sha256:d", 0, json!({"path": "/livez"})),
        "not JSON".to_owned(),
    ];
    let asked = requests(&log.join("\n"), node());
    let of: Vec<_> = asked.iter().map(|r| (&r.what[7..], r.waited)).collect();
    assert_eq!(of, [("a", Some(0.25)), ("b", Some(0.5)), ("c", None)]);

    let waits = Waits::per_request(&asked);
    let expected = Waits {
        count: 2,
        p99: 0.5,
        max: 0.5,
        late: 0,
        unknown: 1,
    };
    assert_eq!(waits, expected);
}

#[test]
fn p99_of_many_leaves_the_worst_one_out() {
    let waits = Waits::of((1..=200).map(|n| Some(f64::from(n) / 50.0)));
    assert_eq!((waits.p99, waits.max, waits.late), (3.96, 4.0, 100));
}

#[test]
fn a_layer_waits_from_its_first_request_at_any_entry() {
    let log = [
        // Refused twice, served by the third entry 0.2 s after it was asked.
        line(10.0, 1.0, "sha256:a", 0, json!({})),
        line(11.0, 0.9, "sha256:a", 0, json!({})),
        line(30.0, 19.0, "sha256:a", 7, json!({"first_byte": 0.2})),
        // Refused to the end: then it is the registry's.
        line(10.5, 0.5, "sha256:b", 0, json!({})),
        line(11.0, 0.1, "sha256:b", 0, json!({})),
        line(30.0, 19.0, "sha256:c", 7, json!({})),
        line(30.0, 19.0, "sha256:config", 7, json!({"first_byte": 9.0})),
    ];
    let layers = ["sha256:a", "sha256:b", "sha256:c"].map(str::to_owned);
    let waits = layer_waits(&requests(&log.join("\n"), node()), &layers);
    assert_eq!(rounded(waits), [Some(2.2), Some(1.0), None]);
}

#[test]
fn scenarios_have_names_of_their_own() {
    let mut names: Vec<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), SCENARIOS.len());
}
