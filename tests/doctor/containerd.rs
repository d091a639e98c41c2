//! What containerd reads and keeps, and its socket.

use std::fs;
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::time::Instant;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

use super::lab::process::eventually;
use super::lab::{NodeOptions, lab_or_skip};
use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn another_directory_than_containerd_reads_is_told_or_seen() {
    let cluster = Cluster {
        lab: lab_or_skip!(),
    };
    let node = cluster.lab.node(NodeOptions::default()).await.unwrap();
    let image = image(&cluster.lab).await;
    // Peili is told of another directory than containerd.
    let elsewhere = node.dir().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    cluster.configure(&node, &elsewhere, None, &[]).await;
    let options = cluster.options(&elsewhere);
    node.start_peili_with(&options).await.unwrap();
    if !is_1(&node) {
        let before = doctor(&node, &options).await;
        assert_eq!(before.state("config_path"), "skipped", "{before:?}");
    }
    node.cri_pull(&image.reference()).await.unwrap();

    let said = doctor_until(&node, &options, |said| {
        said.state("config_path") == "broken"
    })
    .await;

    let seen = match is_1(&node) {
        true => node.containerd().certs_d().display().to_string(),
        false => image.reference(),
    };
    said.must_say("config_path", "broken", &seen, "config_path = ");
    assert_eq!(said.code, 2);
    // The daemon itself has seen it, on every version.
    eventually("the metric", AT_ALL, async || {
        let past = node.metric("peili_pulls_past_mirror", &[]).await?;
        Ok((past >= 1.0).then_some(()))
    })
    .await
    .unwrap();
    let log = fs::read_to_string(node.peili().log()).unwrap();
    let warned = log
        .matches("containerd pulls without asking this mirror")
        .count();
    assert_eq!(warned, 1, "one warning");
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_are_discarded_are_told_or_missed() {
    let cluster = Cluster {
        lab: lab_or_skip!(),
    };
    let node = NodeOptions {
        discard_unpacked_layers: true,
        ..NodeOptions::default()
    };
    let node = cluster.lab.node(node).await.unwrap();
    let image = image(&cluster.lab).await;
    let options = cluster.start(&node).await;
    node.cri_pull(&image.reference()).await.unwrap();

    let said = doctor_until(&node, &options, |said| said.state("layers") == "broken").await;

    let seen = match is_1(&node) {
        true => "by its own word".to_string(),
        false => image.reference(),
    };
    said.must_say("layers", "broken", &seen, "discard_unpacked_layers = false");
    eventually("the metric", AT_ALL, async || {
        let without = node.metric("peili_images_without_layers", &[]).await?;
        Ok((without >= 1.0).then_some(()))
    })
    .await
    .unwrap();
    let log = fs::read_to_string(node.peili().log()).unwrap();
    let warned = log.matches("images are here without their layers").count();
    assert_eq!(warned, 1, "one warning");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_is_mounted_as_a_file_is_told_before_and_after_containerd_restarts() {
    let cluster = Cluster {
        lab: lab_or_skip!(),
    };
    let node = cluster.lab.node(NodeOptions::default()).await.unwrap();
    let options = cluster
        .start(&node)
        .await
        .arg("--containerd-sock", "/mnt/containerd.sock");
    // A pod that has the file mounted, and in which one can ask again after containerd has restarted.
    let socket = node.containerd().socket();
    let script = format!(
        "mount -t tmpfs tmpfs /mnt; touch /mnt/containerd.sock; mount --bind {} /mnt/containerd.sock\n\
         while read -r again; do \"$@\" || true; done",
        socket.display()
    );
    let command = node.doctor(&options, &["--format", "json"], Some(&script));
    let mut pod = tokio::process::Command::from(command.unwrap())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut ask = pod.stdin.take().unwrap();
    let mut answers = BufReader::new(pod.stdout.take().unwrap()).lines();

    let said = |out: String| Said {
        code: 0,
        report: serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}")),
    };
    let first = said({
        ask.write_all(b"again\n").await.unwrap();
        answers.next_line().await.unwrap().expect("an answer")
    });
    assert!(
        first.says("socket_mount", "warning", "mounted as a file", "Mount"),
        "{:#}",
        first.finding("socket_mount")
    );
    assert_eq!(first.state("socket"), "ok");

    node.restart().await.unwrap();
    let then = said({
        ask.write_all(b"again\n").await.unwrap();
        answers.next_line().await.unwrap().expect("an answer")
    });
    assert!(
        then.says("socket_mount", "broken", "is gone", "Mount"),
        "{:#}",
        then.finding("socket_mount")
    );
    assert!(
        then.says("socket", "broken", "does not answer", "mounted as a file"),
        "{:#}",
        then.finding("socket")
    );
}

/// As after a bad update: whatever is asked is accepted, and nothing is said.
#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_accepts_and_says_nothing_holds_nothing_up() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("containerd.sock");
    // The kernel accepts for whoever listens.
    let _listener = UnixListener::bind(&socket).unwrap();
    let begun = Instant::now();

    let out = tokio::process::Command::new(env!("CARGO_BIN_EXE_peili"))
        .args(["doctor", "--format", "json", "--containerd-sock"])
        .arg(&socket)
        .args([
            "--bootstrap-kind",
            "static",
            "--metrics-addr",
            "127.0.0.1:9",
        ])
        .args(["--static-bootstrap-peers", "/ip4/127.0.0.1/tcp/9"])
        .arg("--containerd-registry-config-path")
        .arg(dir.path().join("certs.d"))
        .stdin(Stdio::null())
        .output();
    let out = out.await.unwrap();

    let took = begun.elapsed();
    let report = serde_json::from_slice(&out.stdout);
    let said = Said {
        code: out.status.code().unwrap(),
        report: report.unwrap_or_else(|e| panic!("{e}: {out:?}")),
    };
    assert_eq!(said.code, 2);
    said.must_say("socket", "broken", "does not answer", "containerdSock");
    assert_eq!(said.state("content"), "skipped", "{:#}", said.report);
    // Everything else has been looked at all the same.
    said.must_say("daemon", "broken", "not running", "");
    said.must_say("bootstrap", "broken", "leads nowhere", "");
    assert!(took < Duration::from_secs(15), "{took:?}");
}
