//! Every expression over two busy nodes.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::lab::ImageSpec;
use super::lab::loopback::{Loopback, LoopbackNode};
use super::lab::process::{eventually, find, with_log};
use super::lab::prometheus::{Prometheus, Sample};
use super::*;

const PEILI: &str = env!("CARGO_BIN_EXE_peili");
const REGISTRY: &str = "registry.test:5000";
/// A rate needs two scrapes with something between them, and some of them come first when nodes have found each other.
const AT_ALL: Duration = Duration::from_secs(60);

/// What Grafana puts in place of its variables.
#[derive(Clone, Copy)]
struct Selection {
    job: &'static str,
    node: &'static str,
}

impl Selection {
    fn fill(self, expression: &str) -> String {
        // Intervals are those of a Prometheus that looks more often than one in a cluster.
        let filled = expression
            .replace("$namespace", "mirrors")
            .replace("$job", self.job)
            .replace("$node", self.node)
            .replace("$__rate_interval", "10s")
            .replace("$__range", "1h");
        assert!(
            !filled.contains('$'),
            "{filled}: what does Grafana make of it?"
        );
        filled
    }
}

/// Prometheus over these nodes. None, and a word, where it is not installed; in CI that is a failure.
async fn prometheus(cluster: &Loopback, rules: Option<&Value>) -> Option<Prometheus> {
    let Some(program) = find("prometheus") else {
        assert!(std::env::var_os("CI").is_none(), "run `make deps`");
        eprintln!("skipped: no prometheus; `make deps` installs it (Debian's package prometheus)");
        return None;
    };
    let dir = cluster.folder("prometheus").unwrap();
    let labels = |number: usize| {
        json!({
            "namespace": "mirrors", "pod": format!("peili-{number}"), "node": format!("node-{number}"),
            "container": "registry", "endpoint": "metrics",
        })
    };
    let scrape = |job: &str| {
        let targets = cluster.nodes().iter().zip(1..).map(|(node, number)| {
            json!({"targets": [node.metrics().to_string()], "labels": labels(number)})
        });
        json!({"job_name": job, "static_configs": targets.collect::<Vec<_>>()})
    };
    let mut config = json!({
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
        // The operator calls it so for a ServiceMonitor, and for a PodMonitor.
        "scrape_configs": [scrape("peili"), scrape("mirrors/peili")],
    });
    if let Some(rules) = rules {
        std::fs::write(dir.join("rules.yml"), rules.to_string()).unwrap();
        config["rule_files"] = json!(["rules.yml"]);
    }
    Some(Prometheus::start(&program, &dir, &config).await.unwrap())
}

/// The chart's PrometheusRule as Prometheus reads it. None, and a word, without helm; in CI that is a failure.
fn rules() -> Option<Value> {
    let helm = Path::new(PEILI).ancestors().nth(2)?.join("tools/helm");
    if !helm.exists() {
        assert!(std::env::var_os("CI").is_none(), "run `make tools`");
        eprintln!("alerts are skipped: no helm; `make tools` builds it where Go is");
        return None;
    }
    let home = tempfile::tempdir().unwrap();
    let mut render = Command::new(helm);
    render
        .args(["template", "peili"])
        .arg(repository("charts/peili"));
    render.args(["-n", "mirrors", "--set", "prometheusRule.enabled=true"]);
    render.args(["--show-only", "templates/prometheusrule.yaml"]);
    for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
        render.env(variable, home.path());
    }
    let output = render.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let text = String::from_utf8(output.stdout).unwrap();
    let rule: Value = serde_saphyr::from_str(text.trim_start_matches("---\n")).unwrap();
    Some(rule["spec"].clone())
}

/// What a containerd asks for on each: what the other has, what it has itself, and what nobody has.
struct Busy<'a> {
    nodes: &'a [LoopbackNode],
    blobs: Vec<String>,
    round: u64,
}

impl<'a> Busy<'a> {
    fn new(cluster: &'a Loopback) -> Self {
        let nodes = cluster.nodes();
        let blobs = nodes.iter().zip(1..).map(|(node, number)| {
            let name = format!("test/app{number}:v1");
            let spec = ImageSpec::new(&name).seed(number).layers([50_000]);
            let dir = cluster.folder("images").unwrap();
            let image = spec.build(REGISTRY, &dir).unwrap();
            node.layout().add(&image).unwrap();
            image.layers[0].digest.clone()
        });
        let blobs = blobs.collect();
        Self {
            nodes,
            blobs,
            round: 0,
        }
    }

    async fn work(&mut self) -> Result<()> {
        self.round += 1;
        let nobody = format!("sha256:{:064x}", self.round);
        for node in self.nodes {
            for digest in self.blobs.iter().chain([&nobody]) {
                node.get(&format!("/v2/test/app/blobs/{digest}?ns={REGISTRY}"))
                    .await?;
            }
        }
        Ok(())
    }
}

/// Whether there is a number, and every result has what its legend or its row is called by.
fn is_told(asked: &Asked, samples: &[Sample]) -> bool {
    let is_called = |sample: &Sample| {
        let mut labels = asked.labels.iter();
        labels.all(|label| {
            sample
                .labels
                .get(label)
                .is_some_and(|value| !value.is_empty())
        })
    };
    samples.iter().all(is_called) && samples.iter().any(|sample| !sample.value().is_nan())
}

/// A colour, unit or threshold for what has another name is none, and Grafana does not say so.
async fn colours_are_of_what_is_shown(dashboard: &Value, prometheus: &Prometheus) {
    for panel in panels(dashboard) {
        let mut names = BTreeSet::new();
        for legend in panel["targets"].as_array().into_iter().flatten() {
            let legend = text(legend, "legendFormat");
            let Some(label) = labels_of(legend).pop() else {
                names.insert(legend.to_owned());
                continue;
            };
            let values = prometheus
                .get(&format!("/api/v1/label/{label}/values"))
                .await
                .unwrap();
            let values: Vec<String> = serde_json::from_value(values).unwrap();
            let part = format!("{{{{{label}}}}}");
            names.extend(values.iter().map(|value| legend.replace(&part, value)));
        }
        let columns = panel.pointer("/transformations/1/options/renameByName");
        let columns = columns
            .and_then(Value::as_object)
            .into_iter()
            .flat_map(|names| names.values());
        names.extend(columns.map(|name| name.as_str().unwrap().to_owned()));
        let overrides = panel["fieldConfig"]["overrides"].as_array();
        for matcher in overrides.into_iter().flatten().map(|rule| &rule["matcher"]) {
            let (title, name) = (text(panel, "title"), text(matcher, "options"));
            assert!(names.contains(name), "{title}: {name} is none of {names:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_two_busy_nodes_no_expression_is_empty() {
    let cluster = Loopback::new(2).unwrap();
    cluster.start(Path::new(PEILI)).await.unwrap();
    let rules = rules();
    let Some(prometheus) = prometheus(&cluster, rules.as_ref()).await else {
        return;
    };
    let mut busy = Busy::new(&cluster);

    let selections = [
        Selection {
            job: ".*",
            node: ".*",
        },
        Selection {
            job: "peili",
            node: "(node-1|node-2)",
        },
        Selection {
            job: "mirrors/peili",
            node: "node-2",
        },
    ];
    let dashboard = dashboard();
    let mut open = Vec::new();
    for asked in expressions(&dashboard) {
        open.extend(selections.map(|selection| Asked {
            place: format!("{}, job {}", asked.place, selection.job),
            expression: selection.fill(&asked.expression),
            ..asked.clone()
        }));
    }
    assert!(open.len() > 100, "{open:#?}");
    let all = eventually("a value for each", AT_ALL, async || {
        busy.work().await?;
        let mut still = Vec::new();
        for asked in std::mem::take(&mut open) {
            let samples = prometheus.query(&asked.expression).await?;
            if !is_told(&asked, &samples) {
                still.push(asked);
            }
        }
        open = still;
        Ok(open.is_empty().then_some(()))
    })
    .await;
    with_log(all.with_context(|| format!("{open:#?}")), prometheus.log()).unwrap();
    colours_are_of_what_is_shown(&dashboard, &prometheus).await;

    // What these two have done is what is shown.
    let stat = async |title: &str| {
        let title = format!("{title}, stat, A");
        let mut all = expressions(&dashboard).into_iter();
        let asked = all.find(|asked| asked.place == title).expect(&title);
        let expression = selections[1].fill(&asked.expression);
        prometheus.query(&expression).await.unwrap()[0].value()
    };
    let ratio = stat("Answered by other nodes").await;
    assert!(
        (0.2..0.8).contains(&ratio),
        "one of two requests that go out: {ratio}"
    );
    assert!(stat("Kept off the registry").await > 50_000.0);
    assert_eq!(stat("Nodes that report").await, 2.0);
    assert_eq!(stat("Nodes without peers").await, 0.0);

    let Some(rules) = rules else { return };
    let rules = rules["groups"][0]["rules"].as_array().unwrap().len();
    eventually("a look at each alert", AT_ALL, async || {
        let data = prometheus.get("/api/v1/rules").await?;
        let of = data["groups"][0]["rules"].as_array().context("rules")?;
        ensure!(of.len() == rules, "{data}");
        ensure!(of.iter().all(|rule| rule["health"] != "err"), "{data}");
        Ok(of.iter().all(|rule| rule["health"] == "ok").then_some(()))
    })
    .await
    .unwrap();
}
