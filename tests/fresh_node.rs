//! A fresh node, on which containerd is told of the mirror before either runs: docs/fresh-nodes.md, followed literally.

#[allow(dead_code, reason = "each test uses its part of the lab")]
mod lab;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use lab::process::{find, output};
use lab::{Image, ImageSpec, Node, NodeOptions, PeiliOptions, lab_or_skip};

const PEILI: &str = env!("CARGO_BIN_EXE_peili");
const UNIT: &str = "docs/systemd/peili-configuration.service";
const MIB: u64 = 1 << 20;

fn unit() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(UNIT);
    std::fs::read_to_string(path).unwrap()
}

fn values<'a>(unit: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    unit.lines()
        .filter_map(move |line| line.strip_prefix(key)?.strip_prefix('='))
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() {
    let Some(analyze) = find("systemd-analyze") else {
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "skipped: systemd-analyze is not here");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("peili-configuration.service");
    // It complains of a program that is not there, so it is told of one that is.
    std::fs::write(&file, unit().replace("/usr/local/bin/peili", PEILI)).unwrap();

    let out = Command::new(analyze)
        .arg("verify")
        .arg(&file)
        .output()
        .unwrap();

    let said = String::from_utf8_lossy(&out.stderr);
    let ours = said.lines().filter(|line| line.contains("peili"));
    assert_eq!(ours.collect::<Vec<_>>(), [""; 0]);
    assert!(unit().contains("\nBefore=containerd.service\n"));
    // Required, it would keep a node from starting.
    assert!(!unit().contains("RequiredBy=") && !unit().contains("\nRequires="));
}

fn configure(version: &str, certs_d: &Path) -> std::process::ExitStatus {
    let mut command = Command::new(PEILI);
    command.args([
        "configuration",
        "--mirror-targets",
        "http://127.0.0.1:30020",
    ]);
    command.args([
        "--containerd-version",
        version,
        "--containerd-registry-config-path",
    ]);
    command.arg(certs_d).status().unwrap()
}

#[test]
fn the_file_that_docs_write_by_hand_is_what_configuration_writes() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/fresh-nodes.md");
    let docs = std::fs::read_to_string(docs).unwrap();
    let (_, by_hand) = docs.split_once("_default/hosts.toml <<'EOF'\n").unwrap();
    let (by_hand, _) = by_hand.split_once("EOF\n").unwrap();
    let dir = tempfile::tempdir().unwrap();

    let status = configure("1.7", dir.path());

    assert!(status.success());
    let ours = std::fs::read_to_string(dir.path().join("_default/hosts.toml")).unwrap();
    let read = |text: &str| text.parse::<toml::Table>().unwrap();
    assert_eq!(read(by_hand), read(&ours), "{ours}");
}

#[test]
fn the_version_that_docs_cut_out_of_containerds_answer_is_one() {
    let cut = ["-c", "awk '{print $3}' | sed 's/^v//'"];
    for (said, version) in [
        (
            "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3",
            "1.6.20~ds1",
        ),
        (
            "containerd github.com/containerd/containerd/v2 v2.1.4 75cb2b7193e4",
            "2.1.4",
        ),
    ] {
        let echo = format!("echo '{said}' | {}", cut[1]);
        let out = Command::new("sh").args([cut[0], &echo]).output().unwrap();
        let found = String::from_utf8(out.stdout).unwrap();
        assert_eq!(found.trim(), version);
        let dir = tempfile::tempdir().unwrap();
        let status = configure(found.trim(), dir.path());
        assert!(status.success(), "{version}");
    }
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/fresh-nodes.md");
    assert!(std::fs::read_to_string(docs).unwrap().contains(cut[1]));
}

/// Runs what the unit runs, with its variables, and on top of them those of /etc/default/peili-configuration.
async fn run_unit(node: &Node, defaults: &[(&str, &str)]) -> String {
    let unit = unit();
    let start = values(&unit, "ExecStart").next().unwrap();
    let mut words = start.split_whitespace();
    assert_eq!(words.next(), Some("/usr/local/bin/peili"));
    let mut command = node.netns().command(PEILI);
    command.args(words);
    for variable in values(&unit, "Environment") {
        let (name, value) = variable.split_once('=').unwrap();
        command.env(name, value);
    }
    command.envs(defaults.iter().copied());
    output(command).await.unwrap()
}

/// How long pulls take while nothing of the image is there; the registry is asked each time. The middle of five.
async fn pull(node: &Node, image: &Image) -> Duration {
    let mut times = Vec::new();
    for _ in 0..5 {
        let begun = Instant::now();
        node.cri_pull(&image.reference()).await.unwrap();
        times.push(begun.elapsed());
        node.cri_remove(&image.reference()).await.unwrap();
        // Blobs go when containerd collects its garbage.
        lab::process::eventually("the layers' removal", Duration::from_secs(15), async || {
            let mut blobs = image.pulled();
            Ok((!blobs.any(|blob| node.holds(&blob.digest))).then_some(()))
        })
        .await
        .unwrap();
    }
    times.sort_unstable();
    times[2]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_is_not_up_yet_costs_a_refused_connection_and_nothing_more() {
    let lab = lab_or_skip!();
    let node = lab.node(NodeOptions::default()).await.unwrap();
    let spec = ImageSpec::new("test/app:v1").layers([MIB; 6]);
    let image = lab.push(spec).await.unwrap();
    let certs_d = node.containerd().certs_d().display().to_string();
    let registry = format!("http://{}", lab.registry.host());
    let socket = PathBuf::from("/nonexistent/containerd.sock")
        .display()
        .to_string();
    let defaults = [
        ("CONTAINERD_REGISTRY_CONFIG_PATH", certs_d.as_str()),
        ("MIRRORED_REGISTRIES", &registry),
        // containerd does not run yet when the unit does.
        ("CONTAINERD_SOCK", &socket),
    ];
    let without = pull(&node, &image).await;

    let first = run_unit(&node, &defaults).await;
    let again = run_unit(&node, &defaults).await;

    assert!(first.contains("written "), "{first}");
    let changes = again.lines().filter(|line| !line.starts_with("unchanged "));
    assert_eq!(changes.collect::<Vec<_>>(), [""; 0], "{again}");
    let refused = pull(&node, &image).await;
    eprintln!("with a mirror that is not up {refused:?}, without one {without:?}: 8 requests each");
    // A refused connection on loopback is a matter of microseconds; the rest is what a busy machine varies by.
    assert!(
        refused < without + Duration::from_millis(500),
        "{refused:?} {without:?}"
    );

    // Then it comes up, and is asked without anything being told to containerd again.
    let port = PeiliOptions::default()
        .unconfigured()
        .arg("--registry-addr", ":30020");
    node.spawn_peili(&port).await.unwrap();
    let at = std::net::SocketAddr::from((node.ip(), 30020));
    lab::process::eventually("the mirror", Duration::from_secs(30), async || {
        let answer = lab::http::get(node.netns(), at, "/readyz").await;
        Ok(answer.is_ok_and(|a| a.status.is_success()).then_some(()))
    })
    .await
    .unwrap();
    node.cri_pull(&image.reference()).await.unwrap();
    let log = std::fs::read_to_string(node.peili().log()).unwrap();
    assert!(log.contains(&image.config.digest), "it was asked: {log}");
}
