//! Each template and each switch.

use super::*;

fn pointer<'a>(value: &'a Value, at: &str) -> &'a Value {
    value.pointer(at).unwrap_or(&Value::Null)
}

#[test]
fn by_default_there_is_a_daemonset_and_what_it_needs() {
    let Some(tools) = tools() else { return };
    let objects = tools.objects(&[]);

    let kinds = [
        "DaemonSet peili",
        "DaemonSet peili-cleanup",
        "Pod peili-cleanup-wait",
        "Service peili",
        "Service peili-bootstrap",
        "Service peili-cleanup",
        "ServiceAccount peili",
    ];
    assert_eq!(objects.kinds(), kinds.map(str::to_owned).into());
    for ((kind, name), object) in &objects.0 {
        assert_eq!(object["metadata"]["namespace"], "mirrors", "{kind} {name}");
    }
    let pod = objects.pod();
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]));
    let update = &objects.get("DaemonSet", "peili")["spec"]["updateStrategy"];
    assert_eq!(update["rollingUpdate"]["maxUnavailable"], "10%");
}

#[test]
fn containers_may_do_nothing_but_open_what_root_owns() {
    let Some(tools) = tools() else { return };
    let objects = tools.objects(&[]);
    let pods = [
        objects.pod(),
        &objects.get("DaemonSet", "peili-cleanup")["spec"]["template"]["spec"],
        &objects.get("Pod", "peili-cleanup-wait")["spec"],
    ];
    for pod in pods {
        assert_eq!(
            pod["securityContext"]["seccompProfile"]["type"],
            "RuntimeDefault"
        );
        for list in ["initContainers", "containers"] {
            for container in pod[list].as_array().into_iter().flatten() {
                let context = &container["securityContext"];
                assert_eq!(
                    context["capabilities"]["drop"],
                    json!(["ALL"]),
                    "{container}"
                );
                assert_eq!(context["readOnlyRootFilesystem"], true, "{container}");
                assert_eq!(context["allowPrivilegeEscalation"], false, "{container}");
            }
        }
    }
}

#[test]
fn the_way_from_containerd_is_what_the_mode_says() {
    let Some(tools) = tools() else { return };
    for (mode, port, host_port, is_on_host, has_service) in [
        ("hostPort", 5000, json!(30020), json!(null), false),
        ("hostNetwork", 30020, json!(30020), json!(true), false),
        ("nodePort", 5000, json!(null), json!(null), true),
    ] {
        let mode_is = format!("service.registry.mode={mode}");
        let objects = tools.objects(&["--set", &mode_is]);
        let registry = objects.container("registry");
        let ports = registry["ports"].as_array().expect("ports");
        assert_eq!(ports[0]["containerPort"], port, "{mode}");
        assert_eq!(*pointer(&ports[0], "/hostPort"), host_port, "{mode}");
        assert_eq!(
            *pointer(objects.pod(), "/hostNetwork"),
            is_on_host,
            "{mode}"
        );
        let policy = is_on_host.as_bool().map(|_| "ClusterFirstWithHostNet");
        assert_eq!(
            pointer(objects.pod(), "/dnsPolicy").as_str(),
            policy,
            "{mode}"
        );
        assert_eq!(
            env(&objects.env("registry"), "REGISTRY_ADDR"),
            format!(":{port}"),
            "{mode}"
        );
        // Wherever it listens, containerd finds it at the node's address.
        assert_eq!(
            env(&objects.env("configuration"), "MIRROR_TARGETS"),
            "http://192.0.2.7:30020",
            "{mode}"
        );
        assert_eq!(
            objects
                .0
                .contains_key(&("Service".into(), "peili-registry".into())),
            has_service,
            "{mode}"
        );
    }
    for (version, local, policy, distribution) in [
        ("1.37", "true", json!("Local"), json!(null)),
        ("1.37", "false", json!(null), json!("PreferSameNode")),
        ("1.31", "false", json!(null), json!("PreferClose")),
        ("1.28", "false", json!(null), json!(null)),
    ] {
        let set =
            format!("service.registry.mode=nodePort,service.registry.internalTrafficLocal={local}");
        let objects = tools.objects(&["--set", &set, "--kube-version", version]);
        let spec = &objects.get("Service", "peili-registry")["spec"];
        assert_eq!(
            *pointer(spec, "/internalTrafficPolicy"),
            policy,
            "{version}"
        );
        assert_eq!(
            *pointer(spec, "/trafficDistribution"),
            distribution,
            "{version}"
        );
        assert_eq!(spec["ports"][0]["nodePort"], 30020);
    }
}

#[test]
fn directories_are_mounted_and_no_socket() {
    let Some(tools) = tools() else { return };
    let objects = tools.objects(&[
        "-f",
        chart().join("presets/k3s.yaml").to_str().expect("UTF-8"),
    ]);
    let volumes = objects.pod()["volumes"].as_array().expect("volumes");
    let host: BTreeMap<_, _> = volumes
        .iter()
        .map(|volume| {
            (
                volume["name"].as_str().expect("a name"),
                pointer(volume, "/hostPath/path").clone(),
            )
        })
        .collect();
    assert_eq!(host["containerd-sock"], "/run/k3s/containerd");
    assert_eq!(
        host["containerd-config"],
        "/var/lib/rancher/k3s/agent/etc/containerd/certs.d"
    );
    let mounts = objects.container("registry")["volumeMounts"]
        .as_array()
        .expect("mounts");
    for name in ["containerd-sock", "containerd-content", "containerd-config"] {
        let mount = mounts
            .iter()
            .find(|mount| mount["name"] == name)
            .expect(name);
        // What the doctor looks into is never mounted anew.
        if name == "containerd-config" {
            assert_eq!(mount["readOnly"], true);
        } else {
            assert_eq!(mount["mountPropagation"], "HostToContainer", "{name}");
        }
        // A pod sees the node's files at the node's own paths: what containerd says of itself is true here, too.
        assert_eq!(mount["mountPath"], host[name], "{name}");
    }
    let content = mounts
        .iter()
        .find(|mount| mount["name"] == "containerd-content")
        .expect("content");
    assert_eq!(content["readOnly"], true);

    let without = tools.objects(&["--set", "peili.persistence.enabled=false"]);
    let volumes = without.pod()["volumes"].as_array().expect("volumes");
    let data = volumes
        .iter()
        .find(|volume| volume["name"] == "data")
        .expect("data");
    assert_eq!(data["emptyDir"], json!({}));
}

#[test]
fn every_value_reaches_the_program() {
    let Some(tools) = tools() else { return };
    let values = everything();
    let objects = tools.objects(&["-f", path(&values)]);
    let (configuration, registry) = (objects.env("configuration"), objects.env("registry"));

    for (variable, value) in [
        ("MIRRORED_REGISTRIES", "https://docker.io,https://ghcr.io"),
        (
            "MIRROR_TARGETS",
            "http://192.0.2.7:30020,https://harbor.example/v2/proxy",
        ),
        ("TAG_RESOLUTION", "upstream-first"),
        ("RELEASE_NAME", "mirrors/peili"),
        ("RUST_BACKTRACE", "1"),
    ] {
        assert_eq!(env(&configuration, variable), value, "{variable}");
    }
    for (variable, value) in [
        (
            "DNS_BOOTSTRAP_DOMAIN",
            "peili-bootstrap.mirrors.svc.cluster.local.,spegel-bootstrap.spegel.svc.cluster.local.",
        ),
        ("REQUIRE_NODE_TOKEN", "true"),
        ("ZONE", "zone-b"),
        ("POD_IPS", "198.51.100.7,2001:db8::7"),
        ("SHUTDOWN_GRACE_PERIOD", "30s"),
        ("DEBUG_WEB_ENABLED", "true"),
    ] {
        assert_eq!(env(&registry, variable), value, "{variable}");
    }
    let args = &objects.container("registry")["args"];
    assert_eq!(
        *args,
        json!([
            "registry",
            "--registry-filters",
            "^docker\\.io/internal/",
            "x{1,3}"
        ])
    );
    assert_eq!(
        env(&tools.objects(&[]).env("registry"), "ZONE"),
        "zone-a",
        "the pod's label"
    );
    let off = tools.objects(&["--set", "peili.resolveTags=false"]);
    assert_eq!(
        env(&off.env("configuration"), "TAG_RESOLUTION"),
        "upstream-only"
    );
    let closed = tools.objects(&["--set", "peili.debugWebEnabled=false"]);
    assert_eq!(env(&closed.env("registry"), "DEBUG_WEB_ENABLED"), "false");
    let long = tools.objects(&["--set", "terminationGracePeriodSeconds=120"]);
    assert_eq!(env(&long.env("registry"), "SHUTDOWN_GRACE_PERIOD"), "120s");
    assert_eq!(long.pod()["terminationGracePeriodSeconds"], 120);
}

/// Given every variable that the chart sets and one mistake of ours, the program finds that one and no other: names and values
/// are its own.
#[test]
fn the_program_understands_what_the_chart_tells_it() {
    let Some(tools) = tools() else { return };
    let values = everything();
    for args in [
        &[][..],
        &["-f", path(&values)],
        &["--set", "service.registry.mode=hostNetwork"],
    ] {
        let objects = tools.objects(args);
        let wait = &objects.get("Pod", "peili-cleanup-wait")["spec"]["containers"][0];
        let cleanup =
            &objects.get("DaemonSet", "peili-cleanup")["spec"]["template"]["spec"]["containers"][0];
        for (subcommand, env) in [
            ("configuration", objects.env("configuration")),
            ("registry", objects.env("registry")),
            ("cleanup", env_of(cleanup)),
            ("cleanup-wait", env_of(wait)),
        ] {
            let help = Command::new(PEILI)
                .args([subcommand, "--help"])
                .output()
                .expect("peili runs");
            // Lines are broken where the page is full.
            let help = String::from_utf8_lossy(&help.stdout).replace(char::is_whitespace, "");
            // Neither is an option: one is read by `configuration`, to know the node's own address.
            for name in env
                .keys()
                .filter(|name| !["NODE_IP", "RUST_BACKTRACE", "POD_IPS"].contains(&name.as_str()))
            {
                assert!(
                    help.contains(&format!("[env:{name}=")),
                    "{subcommand} does not know {name}"
                );
            }
            let words = match subcommand {
                "registry" => objects.container("registry")["args"].clone(),
                _ => json!([subcommand]),
            };
            let words = words.as_array().expect("words").iter();
            let told = Command::new(PEILI)
                .args(words.map(|word| word.as_str().expect("a word")))
                .env_clear()
                .envs(&env)
                .env("LOG_LEVEL", "loud")
                .output()
                .expect("peili runs");
            let said = String::from_utf8_lossy(&told.stderr);
            assert_eq!(told.status.code(), Some(64), "{subcommand}: {said}");
            let mistakes = said.lines().filter(|line| line.starts_with("  --")).count();
            assert_eq!(mistakes, 1, "{subcommand}: {said}");
        }
    }
}

#[test]
fn spegels_block_is_read_as_ours() {
    let Some(tools) = tools() else { return };
    let objects = tools.objects(&[
        "--set",
        "spegel.containerdSock=/run/k0s/containerd.sock,spegel.logLevel=DEBUG",
    ]);
    let registry = objects.env("registry");
    assert_eq!(
        env(&registry, "CONTAINERD_SOCK"),
        "/run/k0s/containerd.sock"
    );
    assert_eq!(env(&registry, "LOG_LEVEL"), "DEBUG");
    assert_eq!(
        env(&registry, "CONTAINERD_NAMESPACE"),
        "k8s.io",
        "what it does not say is as ever"
    );
}

/// helm shows notes only after it has talked to a cluster; here they are rendered as another template of a copied chart.
fn notes(tools: &Tools, args: &[&str]) -> String {
    let copy = tempfile::tempdir().expect("tempdir");
    let copied = Command::new("cp")
        .arg("-r")
        .arg(chart())
        .arg(copy.path())
        .status();
    assert!(copied.expect("cp runs").success());
    let chart = copy.path().join("peili");
    std::fs::rename(chart.join("templates/NOTES.txt"), chart.join("notes.txt")).expect("moved");
    let template = "notes: {{ tpl (.Files.Get \"notes.txt\") . | toJson }}\n";
    std::fs::write(chart.join("templates/notes.yaml"), template).expect("written");
    let begin = [
        "template",
        "peili",
        chart.to_str().expect("UTF-8"),
        "--show-only",
        "templates/notes.yaml",
    ];
    let output = tools.helm(&[&begin[..], args].concat());
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    yaml(text.trim_start_matches("---\n"))["notes"]
        .as_str()
        .expect("a text")
        .to_owned()
}

#[test]
fn notes_say_what_to_do_next_and_what_to_mind() {
    let Some(tools) = tools() else { return };
    let plain = notes(tools, &[]);
    assert!(plain.contains("for every registry"), "{plain}");
    assert!(plain.contains("rollout status daemonset/peili"), "{plain}");
    assert!(!plain.contains("NOTICE"), "{plain}");
    assert!(plain.contains("/debug/web/"), "{plain}");
    let closed = notes(tools, &["--set", "peili.debugWebEnabled=false"]);
    assert!(!closed.contains("/debug/"), "{closed}");
    for (set, word) in [
        ("spegel.logLevel=DEBUG", "block `spegel`"),
        ("service.registry.mode=nodePort", "up to 30 s"),
        ("peili.persistence.enabled=false", "19 minutes"),
    ] {
        let text = notes(tools, &["--set", set]);
        assert!(
            text.contains("NOTICE") && text.contains(word),
            "{set}: {text}"
        );
    }
    let none = notes(tools, &["--set", "peili.containerdMirrorAdd=false"]);
    assert!(none.contains("containerd is not configured"), "{none}");
    assert!(!none.contains("NOTICE"), "{none}");
    for closed in [
        "clusterSecret.existingSecret=x",
        "peili.requireNodeToken=true",
    ] {
        let set = format!("{closed},peili.containerdMirrorAdd=false");
        let text = notes(tools, &["--set", &set]);
        assert!(
            text.contains("NOTICE") && text.contains("DATA_DIR=/var/lib/peili"),
            "{set}: {text}"
        );
        // What was asked for is not dropped in silence.
        let objects = tools.objects(&["--set", &set]);
        let required = closed.contains("requireNodeToken").to_string();
        assert_eq!(
            env(&objects.env("registry"), "REQUIRE_NODE_TOKEN"),
            required
        );
    }
}

#[test]
fn an_uninstall_reaches_the_same_nodes_and_may_pull_the_same_image() {
    let Some(tools) = tools() else { return };
    let values = everything();
    let objects = tools.objects(&["-f", path(&values)]);
    let mirror = objects.pod();
    let cleanup = &objects.get("DaemonSet", "peili-cleanup")["spec"]["template"]["spec"];
    let wait = objects.get("Pod", "peili-cleanup-wait");
    for (who, pod) in [("cleanup", cleanup), ("wait", &wait["spec"])] {
        for key in [
            "nodeSelector",
            "tolerations",
            "imagePullSecrets",
            "affinity",
            "priorityClassName",
            "securityContext",
        ] {
            assert_eq!(pod[key], mirror[key], "{who} {key}");
        }
        assert_eq!(
            pod["containers"][0]["image"], mirror["containers"][0]["image"],
            "{who}"
        );
        assert_eq!(
            pod["serviceAccountName"], "default",
            "the release's own is gone by then"
        );
    }
    let weight = |object: &Value| object["metadata"]["annotations"]["helm.sh/hook-weight"].clone();
    assert_eq!(weight(objects.get("DaemonSet", "peili-cleanup")), "0");
    assert_eq!(weight(objects.get("Service", "peili-cleanup")), "0");
    assert_eq!(weight(wait), "1");
    let endpoint = &wait["spec"]["containers"][0]["env"][0];
    assert_eq!(
        endpoint["value"],
        "peili-cleanup.mirrors.svc.cluster.local.:8080"
    );
    // It is cleaned up under the name that it was written under.
    let env = cleanup["containers"][0]["env"].as_array().expect("env");
    assert!(
        env.contains(&json!({"name": "RELEASE_NAME", "value": "mirrors/peili"})),
        "{env:?}"
    );

    let none = tools.objects(&["--set", "peili.containerdMirrorAdd=false"]);
    assert!(!none.has("Pod"), "there is nothing to put back");
    assert!(none.pod().get("initContainers").is_none());
}

#[test]
fn two_releases_with_two_node_selectors_collide_in_nothing() {
    let Some(tools) = tools() else { return };
    let render = |release: &str, pool: &str| {
        let set = format!("nodeSelector.pool={pool}");
        let output = tools.template(release, &["--set", &set]);
        assert!(output.status.success());
        Objects::read(&String::from_utf8(output.stdout).expect("UTF-8"))
    };
    let (one, other) = (render("peili", "blue"), render("green", "green"));
    assert!(
        one.kinds().is_disjoint(&other.kinds()),
        "{:?} {:?}",
        one.kinds(),
        other.kinds()
    );
    let (one, other) = (
        one.get("DaemonSet", "peili"),
        other.get("DaemonSet", "green-peili"),
    );
    assert_ne!(one["spec"]["selector"], other["spec"]["selector"]);
    let selector = |set: &Value| set["spec"]["template"]["spec"]["nodeSelector"].clone();
    assert_ne!(selector(one), selector(other));
}

#[test]
fn a_bootstrap_service_names_pods_that_are_not_ready() {
    let Some(tools) = tools() else { return };
    let objects = tools.objects(&[]);
    let service = &objects.get("Service", "peili-bootstrap")["spec"];
    assert_eq!(service["clusterIP"], "None");
    assert_eq!(service["publishNotReadyAddresses"], true);
    let labels = &objects.get("DaemonSet", "peili")["spec"]["template"]["metadata"]["labels"];
    for name in ["peili", "peili-bootstrap"] {
        let selector = objects.get("Service", name)["spec"]["selector"]
            .as_object()
            .expect("a selector");
        for (key, value) in selector {
            assert_eq!(labels[key], *value, "{name}");
        }
    }
}

#[test]
fn monitors_find_the_metrics_port() {
    let Some(tools) = tools() else { return };
    let service = tools.objects(&[
        "--set",
        "serviceMonitor.enabled=true,serviceMonitor.interval=15s",
    ]);
    let monitor = &service.get("ServiceMonitor", "peili")["spec"];
    assert_eq!(monitor["endpoints"][0]["port"], "metrics");
    assert_eq!(monitor["endpoints"][0]["interval"], "15s");
    let labels = &service.get("Service", "peili")["metadata"]["labels"];
    for (key, value) in monitor["selector"]["matchLabels"]
        .as_object()
        .expect("labels")
    {
        assert_eq!(labels[key], *value, "{key}");
    }
    let pods = tools.objects(&["--set", "podMonitor.enabled=true"]);
    let monitor = &pods.get("PodMonitor", "peili")["spec"];
    assert_eq!(monitor["podMetricsEndpoints"][0]["port"], "metrics");
    assert!(!pods.has("ServiceMonitor"));
}

#[test]
fn alerts_are_about_metrics_that_there_are() {
    let Some(tools) = tools() else { return };
    let objects = tools.objects(&[
        "--set",
        "prometheusRule.enabled=true,prometheusRule.additionalRuleLabels.page=no",
    ]);
    let rules = objects.get("PrometheusRule", "peili")["spec"]["groups"][0]["rules"]
        .as_array()
        .expect("rules")
        .clone();
    let page =
        std::fs::read_to_string(chart().join("../../docs/metrics.md")).expect("docs/metrics.md");
    assert!(rules.len() >= 3);
    for rule in rules {
        let expression = rule["expr"].as_str().expect("an expression");
        let names = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let names: Vec<&str> = names.filter(|name| name.starts_with("peili_")).collect();
        assert!(!names.is_empty(), "{expression}");
        for name in names {
            assert!(
                page.contains(&format!("`{name}`")),
                "{name} is not in docs/metrics.md"
            );
        }
        assert_eq!(rule["labels"]["page"], "no");
        assert!(rule["annotations"]["description"].is_string());
    }
}

#[test]
fn a_network_policy_lets_mirrors_nodes_and_prometheus_in() {
    let Some(tools) = tools() else { return };
    let values = everything();
    let objects = tools.objects(&["-f", path(&values)]);
    let policy = &objects.get("NetworkPolicy", "peili")["spec"];
    let ingress = policy["ingress"].as_array().expect("rules");
    let ports = |rule: &Value| -> Vec<i64> {
        rule["ports"]
            .as_array()
            .expect("ports")
            .iter()
            .filter_map(|port| port["port"].as_i64())
            .collect()
    };
    assert_eq!(ports(&ingress[0]), [5000, 5001]);
    assert_eq!(
        ingress[0]["from"].as_array().expect("from").len(),
        2,
        "ours, and Spegel's"
    );
    assert_eq!(ports(&ingress[1]), [5000]);
    assert_eq!(
        ingress[1]["from"],
        json!([{"ipBlock": {"cidr": "192.0.2.0/24"}}])
    );
    assert_eq!(ports(&ingress[2]), [9090]);
    assert!(!tools.objects(&[]).has("NetworkPolicy"));
    // On the node's own network the registry has another port.
    let host = tools.objects(&[
        "--set",
        "networkPolicy.enabled=true,service.registry.mode=hostNetwork",
    ]);
    let policy = &host.get("NetworkPolicy", "peili")["spec"];
    assert_eq!(ports(&policy["ingress"][0]), [30020, 5001]);
}

#[test]
fn a_password_is_mounted_where_both_containers_read_it() {
    let Some(tools) = tools() else { return };
    let objects = tools.objects(&["--set", "basicAuthSecretName=password"]);
    for name in ["configuration", "registry"] {
        let mounts = objects.container(name)["volumeMounts"]
            .as_array()
            .expect("mounts");
        let mount = mounts
            .iter()
            .find(|mount| mount["name"] == "basic-auth")
            .expect(name);
        assert_eq!(mount["mountPath"], "/etc/secrets/basic-auth");
        assert_eq!(mount["readOnly"], true);
    }
    let volumes = objects.pod()["volumes"].as_array().expect("volumes");
    let secret = volumes
        .iter()
        .find(|volume| volume["name"] == "basic-auth")
        .expect("the volume");
    assert_eq!(secret["secret"]["secretName"], "password");
}

/// As much of a Kubernetes as helm looks into: the namespace that every cluster has, and the Secret `here`, if any.
fn cluster(here: Option<Value>) -> String {
    use std::io::{BufRead as _, BufReader, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(mut stream), here) = (stream, here.clone()) else {
                return;
            };
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().expect("a stream"));
                let mut first = String::new();
                // One request for each connection; the rest of its head says nothing.
                let _ = reader.read_line(&mut first);
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
                    line.clear();
                }
                let path = first.split(' ').nth(1).unwrap_or_default();
                let path = path.split('?').next().unwrap_or_default();
                let resource = |name: &str, kind: &str, namespaced: bool| json!({"name": name, "kind": kind, "namespaced": namespaced, "verbs": ["get", "list"]});
                let answer = match path {
                    "/version" => {
                        Some(json!({"major": "1", "minor": "37", "gitVersion": "v1.37.0"}))
                    }
                    "/api" => Some(json!({"kind": "APIVersions", "versions": ["v1"]})),
                    "/apis" => {
                        Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []}))
                    }
                    "/api/v1" => Some(json!({
                        "kind": "APIResourceList", "groupVersion": "v1",
                        "resources": [resource("namespaces", "Namespace", false), resource("secrets", "Secret", true)],
                    })),
                    "/api/v1/namespaces/kube-system" => Some(json!({
                        "kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "kube-system"},
                    })),
                    "/api/v1/namespaces/mirrors/secrets/peili-cluster" => here,
                    _ => None,
                };
                let status = if answer.is_some() {
                    "200 OK"
                } else {
                    "404 Not Found"
                };
                let body = answer.unwrap_or_else(|| {
                    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404})
                });
                let body = body.to_string();
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
            });
        }
    });
    format!("http://{address}")
}

#[test]
fn a_cluster_secret_is_made_once_and_kept() {
    let Some(tools) = tools() else { return };
    let rendered = |here: Option<Value>| {
        let at = cluster(here);
        let more = [
            "--dry-run=server",
            "--kube-apiserver",
            &at,
            "--kube-token",
            "x",
        ];
        let set = [
            "--set",
            "clusterSecret.generate=true,clusterSecret.key=mine",
        ];
        let objects = tools.objects(&[&more[..], &set].concat());
        let secret = objects.get("Secret", "peili-cluster");
        let made = secret["data"]["mine"]
            .as_str()
            .expect("a secret")
            .to_owned();
        let volumes = objects.pod()["volumes"].as_array().expect("volumes");
        let volume = volumes.iter().find(|it| it["name"] == "cluster-secret");
        assert_eq!(
            volume.expect("a volume")["secret"]["secretName"],
            "peili-cluster"
        );
        made
    };

    let (first, second) = (rendered(None), rendered(None));
    assert_ne!(first, second, "they are made up");
    // 48 letters and digits in base64.
    assert_eq!(first.len(), 64);
    let here = |data: Value| {
        let metadata = json!({"name": "peili-cluster", "namespace": "mirrors"});
        Some(json!({"kind": "Secret", "apiVersion": "v1", "metadata": metadata, "data": data}))
    };
    assert_eq!(
        rendered(here(json!({"mine": first.clone(), "other": "eA=="}))),
        first
    );
    assert_eq!(rendered(here(json!({"other": "eA=="}))).len(), 64);
}

#[test]
fn a_cluster_secret_is_mounted_as_a_directory_for_the_mirror_alone() {
    let Some(tools) = tools() else { return };
    let set = "clusterSecret.existingSecret=mine,clusterSecret.key=token";
    let objects = tools.objects(&["--set", set]);

    assert_eq!(
        env(&objects.env("registry"), "CLUSTER_SECRET_FILE"),
        "/etc/secrets/cluster/secret"
    );
    let mounted = |name: &str| {
        let mounts = objects.container(name)["volumeMounts"].as_array();
        let mounts = mounts.expect("mounts");
        mounts
            .iter()
            .find(|it| it["name"] == "cluster-secret")
            .cloned()
    };
    let mount = mounted("registry").expect("a mount");
    // A subPath would never change.
    assert_eq!(
        mount,
        json!({"name": "cluster-secret", "mountPath": "/etc/secrets/cluster", "readOnly": true})
    );
    assert_eq!(mounted("configuration"), None);
    let volumes = objects.pod()["volumes"].as_array().expect("volumes");
    let volume = volumes.iter().find(|it| it["name"] == "cluster-secret");
    assert_eq!(
        volume.expect("a volume")["secret"],
        json!({"secretName": "mine", "defaultMode": 0o400, "items": [{"key": "token", "path": "secret"}]})
    );
    assert!(!objects.has("Secret"), "it is somebody else's");

    let open = tools.objects(&[]);
    assert_eq!(env(&open.env("registry"), "CLUSTER_SECRET_FILE"), "");
    assert!(!open.pod().to_string().contains("cluster-secret"));
    let plain = notes(tools, &[]);
    assert!(plain.contains("The swarm is open"), "{plain}");
    let closed = notes(tools, &["--set", set]);
    assert!(
        closed.contains("The swarm is closed: only nodes with the Secret mine"),
        "{closed}"
    );
}
