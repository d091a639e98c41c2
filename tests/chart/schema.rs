//! What Kubernetes' own schemas say, and what values.schema.json refuses.

use std::io::Write as _;
use std::process::Stdio;

use super::*;

/// Kinds of operators, whose schemas are not Kubernetes' own.
const FOREIGN: [&str; 5] = [
    "GrafanaDashboard",
    "ServiceMonitor",
    "PodMonitor",
    "PrometheusRule",
    "VerticalPodAutoscaler",
];

fn presets() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(chart().join("presets")).expect("presets");
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    files
}

#[test]
fn kubernetes_accepts_what_is_rendered_with_each_preset_and_switch() {
    let Some(tools) = tools() else { return };
    let everything = everything();
    let presets = presets();
    assert!(presets.len() >= 7, "{presets:?}");
    let presets = presets
        .iter()
        .map(|file| vec!["-f", file.to_str().expect("UTF-8")]);
    let cases = [
        vec![],
        vec!["-f", path(&everything)],
        vec!["--set", "service.registry.mode=nodePort"],
        vec![
            "--set",
            "service.registry.mode=nodePort,service.registry.internalTrafficLocal=true",
        ],
        vec!["--set", "service.registry.mode=hostNetwork"],
        vec![
            "--set",
            "peili.persistence.enabled=false,livenessProbe.enabled=false,serviceAccount.create=false",
        ],
        vec![
            "--set",
            "podMonitor.enabled=true,grafanaDashboard.enabled=true",
        ],
        vec!["--set", "peili.containerdMirrorAdd=false"],
    ];
    for case in cases.into_iter().chain(presets) {
        for version in KUBERNETES {
            let args = [&case[..], &["--kube-version", version]].concat();
            let text = tools.text(&args);
            let objects = Objects::read(&text).0.len();
            let mut child = Command::new(&tools.validate)
                .args(["--strict", "-k", version, "/dev/stdin"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("kubernetes-validate runs");
            child
                .stdin
                .take()
                .expect("stdin")
                .write_all(text.as_bytes())
                .expect("written");
            let output = child.wait_with_output().expect("it ends");
            let said = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            let passed = said
                .lines()
                .filter(|line| line.contains(" passed for resource "))
                .count();
            let unknown = said
                .lines()
                .filter(|line| FOREIGN.iter().any(|kind| line.contains(kind)))
                .count();
            assert_eq!(passed + unknown, objects, "{args:?}: {said}");
        }
    }
}

#[test]
fn helm_lints_and_packs_it() {
    let Some(tools) = tools() else { return };
    let chart = chart();
    let chart = chart.to_str().expect("UTF-8");
    let target = tempfile::tempdir().expect("tempdir");
    for args in [
        &["lint", "--strict", chart][..],
        &[
            "package",
            chart,
            "-d",
            target.path().to_str().expect("UTF-8"),
        ],
    ] {
        let output = tools.helm(args);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let packed = target
        .path()
        .join(format!("peili-{}.tgz", env!("CARGO_PKG_VERSION")));
    let archive = flate2::read::GzDecoder::new(std::fs::File::open(packed).expect("the package"));
    let mut archive = tar::Archive::new(archive);
    let names = archive.entries().expect("a tar").map(|entry| {
        let path = entry
            .expect("an entry")
            .path()
            .expect("a path")
            .into_owned();
        path.display().to_string()
    });
    let names: BTreeSet<String> = names.collect();
    for needed in [
        "peili/values.schema.json",
        "peili/presets/k3s.yaml",
        "peili/dashboards/peili.json",
        "peili/README.md",
    ] {
        assert!(names.contains(needed), "{needed} is not in {names:?}");
    }
}

#[test]
fn what_cannot_be_is_refused_with_the_value_and_the_reason() {
    let Some(tools) = tools() else { return };
    for (set, words) in [
        (
            "service.registry.mode=loadBalancer",
            &["/service/registry/mode", "hostPort"][..],
        ),
        (
            "service.registry.nodePort=0",
            &["/service/registry/nodePort", "minimum"],
        ),
        (
            "terminationGracePeriodSeconds=5",
            &["/terminationGracePeriodSeconds", "minimum"],
        ),
        ("peili.inFlightSharing=maybe", &["/peili/inFlightSharing"]),
        (
            "peili.containerdSocket=/run/x",
            &["containerdSocket", "not allowed"],
        ),
        (
            "spegel.containerdSocket=/run/x",
            &["containerdSocket", "not allowed"],
        ),
        (
            "peili.containerdContentPath=relative",
            &["/peili/containerdContentPath"],
        ),
        (
            "peili.mirroredRegistries={docker.io}",
            &["/peili/mirroredRegistries/0"],
        ),
        (
            "peili.mirrorResolveTimeout=20",
            &["/peili/mirrorResolveTimeout"],
        ),
        (
            "peili.tagResolution=upstream-first",
            &["tagResolution=upstream-first", "mirroredRegistries"],
        ),
        (
            "peili.tagResolution=upstream-first,peili.resolveTags=false,peili.mirroredRegistries={https://docker.io}",
            &["resolveTags=false", "leave one"],
        ),
        (
            "clusterSecret.existingSecret=x,clusterSecret.generate=true",
            &["clusterSecret.existingSecret=\"x\"", "leave one"],
        ),
        (
            "clusterSecret.existingSecret=x,peili.containerdMirrorAdd=false,peili.persistence.enabled=false",
            &["containerdMirrorAdd=false", "the node's token"],
        ),
        (
            "peili.requireNodeToken=true,peili.containerdMirrorAdd=false,peili.persistence.enabled=false",
            &["containerdMirrorAdd=false", "the node's token"],
        ),
        (
            "clusterSecret.generate=true",
            &[
                "no cluster to look into",
                "existingSecret=peili-cluster",
                "openssl rand",
            ],
        ),
        ("clusterSecret.key=a/b", &["/clusterSecret/key"]),
        (
            "clusterSecret.secret=0123456789abcdef",
            &["/clusterSecret", "not allowed"],
        ),
        (
            "grafanaDashboard.mode=Operator",
            &["/grafanaDashboard/mode", "GrafanaOperator"],
        ),
        (
            "serviceMonitor.enabled=true,podMonitor.enabled=true",
            &["twice", "choose one"],
        ),
    ] {
        let why = tools.refusal(&["--set", set]);
        for word in words {
            assert!(why.contains(word), "{set}: {why}");
        }
    }
}
