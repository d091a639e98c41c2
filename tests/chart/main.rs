//! The chart: rendered by the real helm, checked against Kubernetes' own schemas, and understood by the program that it runs.
//!
//! `make tools` builds helm and installs the schemas. Where that is not possible these tests say so and are skipped, except in
//! CI.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use serde_json::{Value, json};

/// The oldest that the chart says it supports (`kubeVersion`), and the newest that the schemas know.
const KUBERNETES: [&str; 2] = ["1.28", "1.37"];
const PEILI: &str = env!("CARGO_BIN_EXE_peili");

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/peili")
}

fn read(name: &str) -> String {
    let path = chart().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|e| panic!("{e}:\n{text}"))
}

struct Tools {
    helm: PathBuf,
    validate: PathBuf,
}

/// None, and a word, where `make tools` was not run; in CI that is a failure.
fn tools() -> Option<&'static Tools> {
    static TOOLS: LazyLock<Option<Tools>> = LazyLock::new(|| {
        let target = Path::new(PEILI).ancestors().nth(2)?;
        let (helm, validate) = (
            target.join("tools/helm"),
            target.join("tools/validate/bin/kubernetes-validate"),
        );
        if helm.exists() && validate.exists() {
            return Some(Tools { helm, validate });
        }
        assert!(std::env::var_os("CI").is_none(), "run `make tools`");
        eprintln!("skipped: no helm; `make tools` builds it where Go is");
        None
    });
    TOOLS.as_ref()
}

impl Tools {
    fn helm(&self, args: &[&str]) -> Output {
        let mut command = Command::new(&self.helm);
        // What a developer's own helm knows is not ours to touch.
        let home = tempfile::tempdir().expect("tempdir");
        command.args(args).env("HELM_CACHE_HOME", home.path());
        command.env("HELM_CONFIG_HOME", home.path());
        command.env("HELM_DATA_HOME", home.path());
        command.output().expect("helm runs")
    }

    fn template(&self, release: &str, args: &[&str]) -> Output {
        let chart = chart();
        let begin = [
            "template",
            release,
            chart.to_str().expect("UTF-8"),
            "-n",
            "mirrors",
        ];
        self.helm(&[&begin[..], args].concat())
    }

    /// What `helm install` would apply, in the newest Kubernetes unless `args` say otherwise.
    fn text(&self, args: &[&str]) -> String {
        let output = self.template("peili", args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {error}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    fn objects(&self, args: &[&str]) -> Objects {
        Objects::read(&self.text(args))
    }

    /// Why helm refuses these values.
    fn refusal(&self, args: &[&str]) -> String {
        let output = self.template("peili", args);
        assert!(!output.status.success(), "{args:?} is accepted");
        String::from_utf8(output.stderr).expect("UTF-8")
    }
}

/// Rendered objects by kind and name.
#[derive(Debug)]
struct Objects(BTreeMap<(String, String), Value>);

impl Objects {
    fn read(text: &str) -> Self {
        let documents = text.split("\n---\n").flat_map(|part| part.split("---\n"));
        let documents = documents.filter(|part| part.lines().any(|line| line.starts_with("kind:")));
        let objects = documents.map(|text| {
            let object = yaml(text);
            let word = |pointer: &str| {
                object
                    .pointer(pointer)
                    .and_then(Value::as_str)
                    .map(str::to_owned)
            };
            let name = (
                word("/kind").expect("a kind"),
                word("/metadata/name").expect("a name"),
            );
            (name, object)
        });
        Self(objects.collect())
    }

    fn kinds(&self) -> BTreeSet<String> {
        self.0
            .keys()
            .map(|(kind, name)| format!("{kind} {name}"))
            .collect()
    }

    fn get(&self, kind: &str, name: &str) -> &Value {
        let key = (kind.to_owned(), name.to_owned());
        self.0
            .get(&key)
            .unwrap_or_else(|| panic!("no {kind} {name} in {:?}", self.kinds()))
    }

    fn has(&self, kind: &str) -> bool {
        self.0.keys().any(|(other, _)| other == kind)
    }

    /// What the DaemonSet's pods are.
    fn pod(&self) -> &Value {
        &self.get("DaemonSet", "peili")["spec"]["template"]["spec"]
    }

    fn container(&self, name: &str) -> &Value {
        let pod = self.pod();
        let all = ["initContainers", "containers"]
            .map(|list| pod[list].as_array().cloned().unwrap_or_default());
        let found = all.concat().iter().position(|c| c["name"] == name);
        let index = found.unwrap_or_else(|| panic!("no container {name}"));
        let inits = all[0].len();
        match index < inits {
            true => &pod["initContainers"][index],
            false => &pod["containers"][index - inits],
        }
    }

    fn env(&self, container: &str) -> BTreeMap<String, String> {
        env_of(self.container(container))
    }
}

/// A container's environment, as the kubelet would give it on a node 192.0.2.7.
fn env_of(container: &Value) -> BTreeMap<String, String> {
    let mut env: BTreeMap<String, String> = BTreeMap::new();
    for variable in container["env"].as_array().expect("env") {
        let value = match variable
            .pointer("/valueFrom/fieldRef/fieldPath")
            .and_then(Value::as_str)
        {
            Some("status.hostIP") => "192.0.2.7",
            Some("status.podIPs") => "198.51.100.7,2001:db8::7",
            Some("metadata.labels['topology.kubernetes.io/zone']") => "zone-a",
            Some(other) => panic!("who gives {other}?"),
            None => variable["value"].as_str().expect("a string"),
        };
        let mut value = value.to_owned();
        for (name, known) in &env {
            value = value.replace(&format!("$({name})"), known);
        }
        env.insert(variable["name"].as_str().expect("a name").to_owned(), value);
    }
    env
}

fn env<'a>(env: &'a BTreeMap<String, String>, name: &str) -> &'a str {
    env.get(name).map_or("", String::as_str)
}

/// Every switch at once.
fn everything() -> tempfile::NamedTempFile {
    let values = json!({
        "imagePullSecrets": [{"name": "pull"}],
        "daemonsetAnnotations": {"a": "b"},
        "podAnnotations": {"a": "b"},
        "podSecurityContext": {"seLinuxOptions": {"type": "spc_t"}},
        "serviceAccount": {"annotations": {"a": "b"}},
        "service": {
            "metrics": {"annotations": {"a": "b"}},
            "bootstrap": {"annotations": {"a": "b"}},
            "cleanup": {"annotations": {"a": "b"}},
        },
        "commonLabels": {"team": "infra"},
        "nodeSelector": {"pool": "blue"},
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        "serviceMonitor": {
            "enabled": true, "labels": {"a": "b"}, "relabelings": [{"action": "drop"}], "metricRelabelings": [{"action": "drop"}],
        },
        "prometheusRule": {"enabled": true, "labels": {"a": "b"}, "additionalRuleLabels": {"a": "b"}},
        "grafanaDashboard": {
            "enabled": true, "mode": "GrafanaOperator", "namespace": "monitoring", "annotations": {"a": "b"},
            "grafanaOperator": {"folder": "Nodes", "matchLabels": {"a": "b"}, "allowCrossNamespaceImport": false},
        },
        "networkPolicy": {
            "enabled": true, "nodeCIDRs": ["192.0.2.0/24"], "metricsFrom": [{"namespaceSelector": {}}],
            "mirrorsFrom": [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "spegel"}}}],
        },
        "basicAuthSecretName": "password",
        "clusterSecret": {"existingSecret": "cluster", "key": "one"},
        "verticalPodAutoscaler": {
            "enabled": true, "recommenders": [{"name": "own"}], "controlledResources": ["memory"],
            "maxAllowed": {"memory": "1Gi"}, "minAllowed": {"memory": "64Mi"},
        },
        "extraVolumes": [{"name": "more", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
        "extraInitContainers": [{"name": "first", "image": "first:1"}],
        "extraEnv": [{"name": "RUST_BACKTRACE", "value": "1"}],
        "peili": {
            "mirroredRegistries": ["https://docker.io", "https://ghcr.io"],
            "tagResolution": "upstream-first",
            "registryFilters": ["^docker\\.io/internal/", "x{1,3}"],
            "additionalMirrorTargets": ["https://harbor.example/v2/proxy"],
            "bootstrap": {"extraDomains": ["spegel-bootstrap.spegel.svc.cluster.local."]},
            "zone": "zone-b",
            "requireNodeToken": true,
        },
    });
    let file = tempfile::NamedTempFile::with_suffix(".json").expect("tempfile");
    std::fs::write(file.path(), values.to_string()).expect("write");
    file
}

fn path(file: &tempfile::NamedTempFile) -> &str {
    file.path().to_str().expect("UTF-8")
}

mod dashboard;
#[path = "../lab/mod.rs"]
#[allow(dead_code, reason = "each test uses its part of the lab")]
mod lab;
mod page;
mod pod;
mod schema;
mod templates;
