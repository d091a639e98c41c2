//! The dashboard as Grafana's sidecar and its operator are given it, and alerts over made-up time. tests/dashboard asks a
//! Prometheus over running nodes.

use super::*;

const DASHBOARD: &str = "peili-dashboard";

#[test]
fn a_sidecar_finds_the_dashboard_by_its_label() {
    let Some(tools) = tools() else { return };
    assert!(!tools.objects(&[]).has("ConfigMap"));
    let objects = tools.objects(&["--set", "grafanaDashboard.enabled=true"]);
    let map = objects.get("ConfigMap", DASHBOARD);
    assert_eq!(map["metadata"]["namespace"], "mirrors");
    assert_eq!(map["metadata"]["labels"]["grafana_dashboard"], "1");
    assert!(!objects.has("GrafanaDashboard"));
    let shown: Value =
        serde_json::from_str(map["data"]["peili.json"].as_str().expect("a text")).expect("JSON");
    let kept: Value = serde_json::from_str(&read("dashboards/peili.json")).expect("JSON");
    assert_eq!(shown, kept, "legends have braces that helm must not read");

    let other = "grafanaDashboard.enabled=true,grafanaDashboard.namespace=monitoring,\
                 grafanaDashboard.labels.team=infra,grafanaDashboard.annotations.grafana_folder=Nodes";
    let objects = tools.objects(&["--set", other]);
    let about = &objects.get("ConfigMap", DASHBOARD)["metadata"];
    assert_eq!(about["namespace"], "monitoring");
    assert_eq!(about["labels"]["team"], "infra");
    assert_eq!(about["annotations"], json!({"grafana_folder": "Nodes"}));
}

#[test]
fn the_operator_is_pointed_to_the_same_dashboard() {
    let Some(tools) = tools() else { return };
    let set = "grafanaDashboard.enabled=true,grafanaDashboard.mode=GrafanaOperator,\
               grafanaDashboard.grafanaOperator.folder=Nodes";
    let objects = tools.objects(&["--set", set]);
    let map = &objects.get("ConfigMap", DASHBOARD)["metadata"];
    assert!(
        map["labels"].get("grafana_dashboard").is_none(),
        "a sidecar would show it a second time"
    );
    let spec = &objects.get("GrafanaDashboard", DASHBOARD)["spec"];
    assert_eq!(
        spec["configMapRef"],
        json!({"name": DASHBOARD, "key": "peili.json"})
    );
    assert_eq!(spec["folder"], "Nodes");
    assert_eq!(
        spec["instanceSelector"]["matchLabels"],
        json!({"dashboards": "grafana"})
    );
}

#[test]
fn both_monitors_say_which_node_it_is() {
    let Some(tools) = tools() else { return };
    let node = json!({"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node"});
    for (key, kind, endpoints) in [
        ("serviceMonitor", "ServiceMonitor", "endpoints"),
        ("podMonitor", "PodMonitor", "podMetricsEndpoints"),
    ] {
        let set = format!("{key}.enabled=true,{key}.relabelings[0].action=labeldrop");
        let objects = tools.objects(&["--set", &set]);
        let monitor = &objects.get(kind, "peili")["spec"];
        assert_eq!(
            monitor[endpoints][0]["relabelings"],
            json!([node, {"action": "labeldrop"}]),
            "what a user adds comes last"
        );
    }
}

/// One alert over time.
struct Story {
    alert: &'static str,
    /// Series and values as promtool has them, one a minute.
    series: &'static [(&'static str, &'static str)],
    fires: &'static str,
    quiet: [&'static str; 2],
    labels: Value,
}

fn stories() -> Vec<Story> {
    vec![
        Story {
            alert: "PeiliHasNoPeers",
            series: &[
                (
                    r#"peili_peers{namespace="mirrors", pod="peili-aaaaa", state="known"}"#,
                    "1x20 0x30 1x30",
                ),
                (
                    r#"peili_peers{namespace="mirrors", pod="peili-bbbbb", state="known"}"#,
                    "1x90",
                ),
            ],
            fires: "40m",
            quiet: ["30m", "60m"],
            labels: json!({"severity": "warning", "namespace": "mirrors", "pod": "peili-aaaaa", "state": "known"}),
        },
        Story {
            alert: "PeiliIsNotUsed",
            series: &[
                (
                    r#"peili_peers{namespace="mirrors", pod="peili-aaaaa", state="known"}"#,
                    "1x1800",
                ),
                (
                    r#"peili_mirror_requests_total{namespace="mirrors", pod="peili-aaaaa", source="miss"}"#,
                    "7x1600 8+1x200",
                ),
            ],
            fires: "26h",
            quiet: ["24h30m", "28h"],
            labels: json!({"severity": "warning"}),
        },
        Story {
            alert: "PeiliFailsToDeliver",
            series: &[
                (
                    r#"peili_mirror_requests_total{namespace="mirrors", pod="peili-aaaaa", source="failed"}"#,
                    "0x20 0+6x60 360x60",
                ),
                (
                    r#"peili_mirror_requests_total{namespace="mirrors", pod="peili-aaaaa", source="peer"}"#,
                    "0+60x200",
                ),
            ],
            fires: "70m",
            quiet: ["40m", "110m"],
            labels: json!({"severity": "warning", "pod": "peili-aaaaa"}),
        },
    ]
}

#[test]
fn each_alert_fires_in_time_and_ends_with_its_cause() {
    let Some(tools) = tools() else { return };
    let Some(promtool) = lab::process::find("promtool") else {
        assert!(std::env::var_os("CI").is_none(), "run `make deps`");
        eprintln!("skipped: no promtool; `make deps` installs it (Debian's package prometheus)");
        return;
    };
    let objects = tools.objects(&["--set", "prometheusRule.enabled=true"]);
    let spec = &objects.get("PrometheusRule", "peili")["spec"];
    let rules = spec["groups"][0]["rules"].as_array().expect("rules");
    let stories = stories();
    let told: BTreeSet<_> = stories.iter().map(|story| story.alert).collect();
    let all = rules
        .iter()
        .map(|rule| rule["alert"].as_str().expect("a name"));
    assert_eq!(told, all.collect(), "each alert has its story");

    let tests = stories.iter().map(|story| {
        let rule = rules.iter().find(|rule| rule["alert"] == story.alert);
        let annotations = rule.expect(story.alert)["annotations"].to_string();
        let annotations = annotations.replace("{{ $labels.pod }}", "peili-aaaaa");
        let annotations: Value = serde_json::from_str(&annotations).expect("JSON");
        let series = story.series.iter();
        let series = series.map(|(series, values)| json!({"series": series, "values": values}));
        let at = |time: &str, alerts: Value| json!({"eval_time": time, "alertname": story.alert, "exp_alerts": alerts});
        let fires = json!([{"exp_labels": story.labels, "exp_annotations": annotations}]);
        json!({
            "interval": "1m",
            "input_series": series.collect::<Vec<_>>(),
            "alert_rule_test": [at(story.quiet[0], json!([])), at(story.fires, fires), at(story.quiet[1], json!([]))],
        })
    });
    let dir = tempfile::tempdir().expect("tempdir");
    let test = json!({"rule_files": ["rules.yml"], "tests": tests.collect::<Vec<_>>()});
    for (name, content) in [("rules.yml", spec), ("test.yml", &test)] {
        std::fs::write(dir.path().join(name), content.to_string()).expect("written");
    }
    let output = Command::new(promtool)
        .args(["test", "rules", "test.yml"])
        .current_dir(dir.path())
        .output()
        .expect("promtool runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}
