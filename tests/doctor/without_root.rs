//! Nodes on loopback without a containerd, each with a directory: what the doctor asks of other nodes, and what the daemon
//! says of itself in its log.

use std::net::SocketAddr;

use rustix::process::Signal;

use super::lab::loopback::{Loopback, LoopbackNode};
use super::lab::process::eventually;
use super::*;

const PEILI: &str = env!("CARGO_BIN_EXE_peili");

fn image(cluster: &Loopback) -> Image {
    let images = cluster.folder("images").unwrap();
    let spec = ImageSpec::new("test/app:v1").layers([MIB]);
    spec.build("registry.test:5000", &images).unwrap()
}

/// With the options of the node's daemon, but for where that is asked.
async fn doctor(node: &LoopbackNode, peers: &[String], metrics: SocketAddr) -> Said {
    let told = node.command(Path::new(PEILI), "doctor", peers);
    let mut command = tokio::process::Command::new(PEILI);
    let own = node.metrics().to_string();
    for arg in told.get_args() {
        match arg == own.as_str() {
            true => command.arg(metrics.to_string()),
            false => command.arg(arg),
        };
    }
    command.args(["--format", "json"]);
    let out = command.stdin(Stdio::null()).output().await.unwrap();
    let report = serde_json::from_slice(&out.stdout);
    Said {
        code: out.status.code().unwrap(),
        report: report.unwrap_or_else(|e| panic!("{e}: {out:?}")),
    }
}

async fn until<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let found = eventually(what, AT_ALL, async || Ok(look().await)).await;
    found.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_without_containerd_are_asked_for_what_they_have() {
    let cluster = Loopback::new(2).unwrap();
    let [one, two] = cluster.nodes() else {
        panic!("two nodes")
    };
    let image = image(&cluster);
    for node in [one, two] {
        node.layout().add(&image).unwrap();
    }
    let peers = cluster.routers();
    let doctor = async |metrics| doctor(two, &peers, metrics).await;

    let before = doctor(two.metrics()).await;
    before.must_say("daemon", "broken", "not running", "peili registry");
    assert_eq!(before.code, 2);

    cluster.start(Path::new(PEILI)).await.unwrap();
    let said = until("a delivery", async || {
        let said = doctor(two.metrics()).await;
        (said.state("delivery") == "ok").then_some(said)
    })
    .await;
    assert_eq!(said.code, 0, "{:#}", said.report);
    for (check, state) in [
        ("socket", "skipped"),
        ("hosts_toml", "skipped"),
        ("daemon", "ok"),
        ("bootstrap", "ok"),
        ("peers", "ok"),
    ] {
        assert_eq!(said.state(check), state, "{:#}", said.report);
    }

    // Somebody who is no daemon's metrics port: a registry's.
    let said = doctor(one.registry()).await;
    said.must_say("daemon", "warning", "is answered 405", "--metrics-addr");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_advertises_what_he_does_not_deliver_is_named() {
    let cluster = Loopback::new(3).unwrap();
    let [one, two, _] = cluster.nodes() else {
        panic!("three nodes")
    };
    let image = image(&cluster);
    for node in [one, two] {
        node.layout().add(&image).unwrap();
    }
    let peers = cluster.routers();
    cluster.start(Path::new(PEILI)).await.unwrap();
    let ask = async || doctor(two, &peers, two.metrics()).await;
    until("a delivery", async || {
        (ask().await.state("delivery") == "ok").then_some(())
    })
    .await;

    // It hangs: its kernel accepts, and nobody answers.
    one.signal(Signal::STOP).unwrap();
    let said = ask().await;
    one.signal(Signal::CONT).unwrap();
    let silent = format!("{} says that it has {}", one.registry(), image.top().digest);
    said.must_say("delivery", "broken", &silent, "5000");
    said.must_say("delivery", "broken", "brought no byte within 2s", "5000");
    assert_eq!(said.code, 2);

    // It has lost it, and what the cluster was told cannot be taken back.
    one.layout().remove(&image.reference()).unwrap();
    let said = ask().await;
    said.must_say("delivery", "warning", "does not have it", "removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_says_once_after_its_start_what_is_wrong_and_else_that_nothing_is() {
    let cluster = Loopback::new(2).unwrap();
    let nobody = "/ip4/127.0.0.1/tcp/9";
    let [one, two] = cluster.nodes() else {
        panic!("two nodes")
    };
    let routers = cluster.routers();
    // The second is told of somebody who is not there; the first finds it.
    let peers = |node: &LoopbackNode| match node.name() {
        "n1" => routers.clone(),
        _ => vec![routers[1].clone(), nobody.to_string()],
    };
    cluster.start_among(Path::new(PEILI), peers).await.unwrap();

    for node in [one, two] {
        let log = until("its check", async || {
            let log = std::fs::read_to_string(node.log()).unwrap();
            log.contains("\"checked\"").then_some(log)
        })
        .await;
        let lines: Vec<Value> = log
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        let said = |message: &str| {
            let is_it = |line: &&Value| line["message"] == message;
            lines.iter().filter(is_it).collect::<Vec<&Value>>()
        };
        let warnings = said("this node is not as it should be");
        let [checked] = said("checked")[..] else {
            panic!("once: {log}")
        };
        match node.name() {
            "n1" => {
                assert!(warnings.is_empty(), "{warnings:?}");
                assert_eq!(checked["verdict"], "ok");
            }
            _ => {
                let [warning] = warnings[..] else {
                    panic!("one warning: {warnings:?}")
                };
                assert_eq!(warning["level"], "WARN");
                assert_eq!(warning["check"], "bootstrap");
                assert_eq!(warning["state"], "warning");
                for (field, words) in [("seen", nobody), ("cure", "headless")] {
                    let told = warning[field].as_str().unwrap();
                    assert!(told.contains(words), "{warning}");
                }
                assert_eq!(checked["verdict"], "warning");
            }
        }
    }
}
