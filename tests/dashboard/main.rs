//! The chart's dashboard and alerts, asked of a real Prometheus over two busy nodes: nothing that they ask for is missing.

#[allow(dead_code, reason = "each test uses its part of the lab")]
#[path = "../lab/mod.rs"]
mod lab;
mod live;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// What Grafana's variables have in every expression: who looks at one node sees nothing of another.
const SELECTED: &str = "{namespace=~\"$namespace\", job=~\"$job\", node=~\"$node\"";
/// Panels that every Grafana has.
const BUILT_IN: [&str; 4] = ["row", "stat", "table", "timeseries"];

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn dashboard() -> Value {
    let path = repository("charts/peili/dashboards/peili.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    let rows = dashboard["panels"].as_array().unwrap().iter();
    rows.flat_map(|panel| {
        std::iter::once(panel).chain(panel["panels"].as_array().into_iter().flatten())
    })
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key]
        .as_str()
        .unwrap_or_else(|| panic!("no {key} in {value}"))
}

/// What is asked, where it stands, and the labels that its results are told apart by.
#[derive(Clone, Debug)]
struct Asked {
    place: String,
    expression: String,
    labels: Vec<String>,
}

/// `{{outcome}} 99 %` is made from `outcome`.
fn labels_of(legend: &str) -> Vec<String> {
    let parts = legend.split("{{").skip(1);
    parts
        .filter_map(|part| Some(part.split_once("}}")?.0.to_owned()))
        .collect()
}

fn expressions(dashboard: &Value) -> Vec<Asked> {
    let of_panels = panels(dashboard).flat_map(|panel| {
        let targets = panel["targets"].as_array().into_iter().flatten();
        targets.map(move |target| {
            let [title, kind, id] = [(panel, "title"), (panel, "type"), (target, "refId")]
                .map(|(of, key)| text(of, key));
            Asked {
                place: format!("{title}, {kind}, {id}"),
                expression: text(target, "expr").to_owned(),
                labels: match kind {
                    "table" => vec!["node".to_owned()],
                    _ => labels_of(text(target, "legendFormat")),
                },
            }
        })
    });
    of_panels.chain(variables(dashboard)).collect()
}

/// What Grafana asks for a variable's values, `label_values(peili_peers{…}, node)`, as an expression.
fn variables(dashboard: &Value) -> impl Iterator<Item = Asked> {
    let all = dashboard["templating"]["list"].as_array().unwrap().iter();
    all.filter(|variable| variable["type"] == "query")
        .map(|variable| {
            let query = text(&variable["query"], "query");
            let inner = query
                .strip_prefix("label_values(")
                .and_then(|q| q.strip_suffix(')'));
            let (series, label) = inner.and_then(|q| q.rsplit_once(", ")).expect(query);
            assert_eq!(label, text(variable, "name"));
            Asked {
                place: format!("variable {label}"),
                expression: format!("count by ({label}) ({series})"),
                labels: vec![label.to_owned()],
            }
        })
}

#[test]
fn every_panel_has_its_place_and_says_what_to_do() {
    let dashboard = dashboard();
    assert_eq!(dashboard["uid"], "peili", "links and bookmarks go by it");
    let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels(&dashboard) {
        let (title, kind) = (text(panel, "title"), text(panel, "type"));
        assert!(
            ids.insert(panel["id"].as_u64().unwrap()),
            "{title}: its id is another's"
        );
        assert!(BUILT_IN.contains(&kind), "{title}: {kind} needs a plugin");
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        for y in place("y")..place("y") + place("h") {
            for x in place("x")..place("x") + place("w") {
                assert!(x < 24, "{title} does not fit");
                assert!(taken.insert((y, x)), "{title} lies on another");
            }
        }
        if kind == "row" {
            continue;
        }
        assert!(text(panel, "description").len() > 40, "{title}");
        assert!(
            panel["fieldConfig"]["defaults"]["unit"].is_string(),
            "{title} has no unit"
        );
        for value in [panel, &panel["targets"][0]] {
            let source = json!({"type": "prometheus", "uid": "${datasource}"});
            assert_eq!(value["datasource"], source, "{title}");
        }
    }
}

#[test]
fn every_expression_is_about_a_metric_that_there_is_and_heeds_each_variable() {
    let page = std::fs::read_to_string(repository("docs/metrics.md")).unwrap();
    let known = |name: &str| {
        let histogram = ["_bucket", "_count", "_sum"];
        let names = histogram
            .iter()
            .filter_map(|suffix| name.strip_suffix(suffix));
        std::iter::once(name)
            .chain(names)
            .any(|name| page.contains(&format!("| `{name}` |")))
    };
    let dashboard = dashboard();
    for Asked {
        place, expression, ..
    } in expressions(&dashboard)
    {
        if place.starts_with("variable") {
            continue;
        }
        let words = expression.split_inclusive(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let metrics: Vec<&str> = words.filter_map(|word| word.strip_suffix('{')).collect();
        assert!(!metrics.is_empty(), "{place}: {expression}");
        assert_eq!(
            expression.matches(SELECTED).count(),
            metrics.len(),
            "{place}: {expression}"
        );
        for name in metrics {
            assert!(known(name), "{place}: {name} is not in docs/metrics.md");
        }
    }
}
