use std::process::Command as Process;

use super::*;

fn parsed(words: &str) -> Result<CommandLine, Refusal> {
    parse(std::iter::once("peili").chain(words.split_whitespace()))
}

fn command(words: &str) -> Command {
    parsed(words)
        .unwrap_or_else(|refusal| panic!("{words}: {}", refusal.text))
        .command
}

fn refused(words: &str) -> String {
    let refusal = parsed(words).expect_err(words);
    assert_eq!(refusal.code, 64, "{words}");
    refusal.text
}

fn daemon(words: &str) -> Registry {
    let words = format!("registry --bootstrap-kind dns --dns-bootstrap-domain d {words}");
    match command(&words) {
        Command::Registry(registry) => *registry,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_daemons_defaults_are_spegels() {
    let registry = daemon("");

    assert_eq!(
        registry,
        Registry {
            bootstrap: Bootstrap::Dns {
                domains: vec![("d".to_string(), None)]
            },
            http_bootstrap_addr: None,
            http_bootstrap_cert_dir: None,
            metrics_addr: ListenAddr::every(9090),
            debug_web_enabled: true,
            store: Store::Containerd(containerd::Config {
                socket: "/run/containerd/containerd.sock".into(),
                namespace: "k8s.io".to_string(),
                content_path: None,
            }),
            data_dir: None,
            require_node_token: false,
            basic_auth_dir: "/etc/secrets/basic-auth".into(),
            cluster_secret_file: None,
            router_addr: ListenAddr::every(5001),
            registry_addr: ListenAddr::every(5000),
            mirror_resolve_timeout: Duration::from_millis(20),
            mirror_resolve_retries: 3,
            max_uploads: 64,
            in_flight_sharing: InFlightSharing::Auto,
            zone: None,
            mirrored_registries: vec![hosts::Registry::Every],
            registry_filters: Vec::new(),
            advertise_addrs: Vec::new(),
            shutdown_grace_period: Duration::from_secs(30),
            containerd_registry_config_path: "/etc/containerd/certs.d".into(),
            node_ips: Vec::new(),
        }
    );
}

#[test]
fn a_list_takes_several_values_after_one_flag() {
    let Command::Configuration(config) = command(
        "configuration --mirrored-registries https://docker.io https://ghcr.io \
         --mirror-targets http://192.0.2.7:30020 http://192.0.2.8:30020 --resolve-tags=false",
    ) else {
        panic!("another command");
    };

    let hosts: Vec<_> = config.hosts.registries.iter().map(|r| r.host()).collect();
    assert_eq!(hosts, [Some("docker.io"), Some("ghcr.io")]);
    assert_eq!(
        config.hosts.targets.urls().collect::<Vec<_>>(),
        ["http://192.0.2.7:30020", "http://192.0.2.8:30020"]
    );
    assert_eq!(config.hosts.tags, hosts::TagResolution::UpstreamOnly);
    assert_eq!(
        config.hosts.directory,
        PathBuf::from("/etc/containerd/certs.d")
    );
}

#[test]
fn resolve_tags_is_true_bare_and_by_default_and_agrees_with_the_finer_option() {
    use hosts::TagResolution::{ClusterFirst, UpstreamFirst, UpstreamOnly};
    for (words, tags) in [
        ("", ClusterFirst),
        ("--resolve-tags", ClusterFirst),
        ("--resolve-tags=true", ClusterFirst),
        ("--resolve-tags=false", UpstreamOnly),
        ("--tag-resolution cluster-first", ClusterFirst),
        ("--tag-resolution=upstream-first", UpstreamFirst),
        ("--tag-resolution upstream-only", UpstreamOnly),
        (
            "--tag-resolution cluster-first --resolve-tags",
            ClusterFirst,
        ),
        (
            "--tag-resolution upstream-first --resolve-tags=true",
            UpstreamFirst,
        ),
        (
            "--tag-resolution upstream-only --resolve-tags=false",
            UpstreamOnly,
        ),
        // As a chart writes what nobody has set.
        ("--tag-resolution= --resolve-tags=", ClusterFirst),
    ] {
        let words = format!(
            "configuration --mirror-targets http://a --mirrored-registries https://docker.io {words}"
        );
        let Command::Configuration(config) = command(&words) else {
            panic!("{words}");
        };
        assert_eq!(config.hosts.tags, tags, "{words}");
    }
    for (words, said) in [
        (
            "--tag-resolution upstream-only --resolve-tags=true",
            "--tag-resolution [TAG_RESOLUTION] \"upstream-only\" contradicts --resolve-tags=true [RESOLVE_TAGS]: leave",
        ),
        (
            "--tag-resolution upstream-first --resolve-tags=false",
            "\"upstream-first\" contradicts --resolve-tags=false",
        ),
        (
            "--tag-resolution cluster-first --resolve-tags=false",
            "\"cluster-first\" contradicts --resolve-tags=false",
        ),
        (
            "--tag-resolution never",
            "--tag-resolution [TAG_RESOLUTION] \"never\" is no way to resolve tags: write cluster-first, upstream-first or \
             upstream-only",
        ),
        (
            "--resolve-tags=no",
            "--resolve-tags [RESOLVE_TAGS] \"no\" is neither true nor false",
        ),
    ] {
        let text = refused(&format!("configuration --mirror-targets http://a {words}"));
        assert!(text.contains(said), "{words}: {text}");
        assert!(text.starts_with("peili: one value"), "{words}: {text}");
    }
}

#[test]
fn under_the_wildcard_no_registry_can_be_asked_first() {
    for registries in [
        "",
        "--mirrored-registries *",
        "--mirrored-registries https://docker.io _default",
    ] {
        let words = "configuration --mirror-targets http://a --tag-resolution upstream-first";
        let text = refused(&format!("{words} {registries}"));

        let said = "--tag-resolution [TAG_RESOLUTION] \"upstream-first\" needs each registry's own address";
        assert!(text.contains(said), "{text}");
        assert!(
            text.contains("name the registries, such as --mirrored-registries"),
            "{text}"
        );
    }
}

#[test]
fn filters_are_regular_expressions_and_all_that_are_none_are_told_at_once() {
    let patterns = |words: &str| {
        let patterns = daemon(words).registry_filters;
        patterns.iter().map(Pattern::to_string).collect::<Vec<_>>()
    };
    for (words, expected) in [
        ("--registry-filters=", &[][..]),
        (
            r"--registry-filters ^ghcr\.io/ :latest$",
            &[r#""^ghcr\\.io/""#, r#"":latest$""#],
        ),
        // As a variable has them; a comma in a repetition is none between two.
        (
            "--registry-filters a{2,3}b,c{1,},[{],:v1$",
            &[r#""a{2,3}b""#, r#""c{1,}""#, r#""[{]""#, r#"":v1$""#],
        ),
        (r"--registry-filters a\x2cb,,c", &[r#""a\\x2cb""#, r#""c""#]),
    ] {
        assert_eq!(patterns(words), expected, "{words}");
    }

    let words = "registry --bootstrap-kind dns --dns-bootstrap-domain d --metrics-addr x";
    let text = refused(&format!("{words} --registry-filters ( ok a{{2,1}} [a,b]"));
    for said in [
        "4 values cannot be used",
        "--registry-filters [REGISTRY_FILTERS] \"(\" is no regular expression (unclosed group): write it as ^ghcr",
        "\"a{2,1}\" is no regular expression (invalid repetition count range",
        // A comma that parts what belongs together.
        "\"[a\" is no regular expression (unclosed character class): write it as ^ghcr\\.io/team/ or :latest$, and a comma \
         in it as \\x2c",
        "--metrics-addr [METRICS_ADDR] \"x\"",
    ] {
        assert!(text.contains(said), "{said}\n{text}");
    }
}

#[test]
fn whose_files_are_written_and_what_stays_behind_them_is_what_was_said() {
    let configuration = |words: &str| {
        let words = format!("configuration --mirror-targets http://a {words}");
        match command(&words) {
            Command::Configuration(config) => config,
            other => panic!("{words}: {other:?}"),
        }
    };
    for (words, prepends, name, secret) in [
        ("", false, "peili", "/etc/secrets/basic-auth"),
        (
            "--prepend-existing",
            true,
            "peili",
            "/etc/secrets/basic-auth",
        ),
        (
            "--prepend-existing=true --release-name kube-system/a --basic-auth-dir /b",
            true,
            "kube-system/a",
            "/b",
        ),
    ] {
        let config = configuration(words);

        assert_eq!(config.hosts.prepend_existing, prepends, "{words}");
        assert_eq!(
            config.hosts.release,
            name.parse().expect("a name"),
            "{words}"
        );
        assert_eq!(config.basic_auth_dir, PathBuf::from(secret), "{words}");
    }
    for words in ["configuration --mirror-targets http://a", "cleanup"] {
        let text = refused(&format!("{words} --release-name a%b"));
        let said = "--release-name [RELEASE_NAME] \"a%b\" is no name of 1 to 253 letters";
        assert!(text.contains(said), "{text}");
    }
}

#[test]
fn containerds_version_is_asked_for_unless_it_is_said() {
    let configuration = |words: &str| {
        let words = format!("configuration --mirror-targets http://a {words}");
        match command(&words) {
            Command::Configuration(config) => config,
            other => panic!("{words}: {other:?}"),
        }
    };
    for (words, socket) in [
        ("", "/run/containerd/containerd.sock"),
        (
            "--containerd-version auto",
            "/run/containerd/containerd.sock",
        ),
        (
            "--containerd-sock unix:///run/k3s/containerd.sock",
            "/run/k3s/containerd.sock",
        ),
    ] {
        let socket = socket.into();
        assert_eq!(
            configuration(words).containerd,
            ContainerdVersion::Asked { socket },
            "{words}"
        );
    }
    for version in ["1.7", "2.1.9"] {
        assert_eq!(
            configuration(&format!("--containerd-version={version}")).containerd,
            ContainerdVersion::Said(version.parse().expect("a version"))
        );
    }
    let text = refused(
        "configuration --mirror-targets http://a --containerd-version newest --containerd-sock x.sock",
    );
    for line in [
        "  --containerd-version [CONTAINERD_VERSION] \"newest\" is no version of containerd: \
         write it as 1.7 or 2.1.9, or auto to have containerd asked",
        "  --containerd-sock [CONTAINERD_SOCK] \"x.sock\" is not an absolute path: begin it with /",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }
}

#[test]
fn the_node_that_a_pod_runs_on_is_known_by_its_variable() {
    let words = "configuration --mirror-targets http://192.0.2.7:30020";
    for (value, said) in [
        (
            "192.0.2.7, 2001:db8::7",
            "node_ips: [192.0.2.7, 2001:db8::7]",
        ),
        ("", "node_ips: []"),
        (
            "node-7",
            "NODE_IP \"node-7\" is not an IP address: take it from the pod's status.hostIP",
        ),
    ] {
        let variables = [("NODE_IP", value), ("CONTAINERD_VERSION", "2.1")];
        let found = with_env(&variables, words);

        assert!(found.contains(said), "{found}");
        let version = command(&format!("{words} --containerd-version 2.1"));
        let Command::Configuration(Configuration { containerd, .. }) = version else {
            panic!("another command");
        };
        let has_version = found.contains(&format!("{containerd:?}"));
        assert_eq!(has_version, value != "node-7", "{found}");
    }
}

#[test]
fn empty_values_count_as_unset_where_there_is_no_default() {
    let words = "cleanup --containerd-registry-config-path /x --addr=";
    assert_eq!(
        command(words),
        Command::Cleanup(Cleanup {
            containerd_registry_config_path: "/x".into(),
            release: "peili".parse().expect("a name"),
            addr: None
        })
    );
    let registry = daemon("--data-dir= --containerd-content-path= --mirrored-registries=");
    assert_eq!(registry, daemon(""));
}

#[test]
fn every_mistake_is_reported_at_once_with_flag_variable_value_reason_and_cure() {
    let text = refused(
        "registry --log-level loud --bootstrap-kind dns --router-addr 5001 --metrics-addr :5000 \
         --mirror-resolve-timeout 20 --mirror-resolve-retries 0 --data-dir data \
         --mirrored-registries docker.io https://ghcr.io/x --advertise-addr 0.0.0.0 node \
         --static-bootstrap-peers 192.0.2.7:5001",
    );

    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "peili: 12 values cannot be used", "{text}");
    for line in [
        "  --log-level [LOG_LEVEL] \"loud\" is neither a level nor a filter: \
         write error, warn, info or debug",
        "  --router-addr [ROUTER_ADDR] \"5001\" has no port: \
         write it as :5000, 192.0.2.7:5000 or [2001:db8::7]:5000",
        "  --metrics-addr [METRICS_ADDR] \":5000\" is taken by --registry-addr: \
         give each its own port",
        "  --mirror-resolve-timeout [MIRROR_RESOLVE_TIMEOUT] \"20\" has no unit: \
         write it as 20ms, 1.5s or 2m",
        "  --mirrored-registries [MIRRORED_REGISTRIES] \"docker.io\" has no scheme: \
         write https://docker.io",
        "  --dns-bootstrap-domain [DNS_BOOTSTRAP_DOMAIN] is missing, and --bootstrap-kind is dns: \
         write the name of the headless service, such as \
         peili-bootstrap.peili.svc.cluster.local.",
    ] {
        assert!(lines.contains(&line), "{line}\n{text}");
    }
}

#[test]
fn what_a_bootstrap_kind_needs_is_asked_for() {
    for (words, missing) in [
        ("registry", "--bootstrap-kind [BOOTSTRAP_KIND] is missing"),
        (
            "registry --bootstrap-kind gossip",
            "--bootstrap-kind [BOOTSTRAP_KIND] \"gossip\" is not a way",
        ),
        (
            "registry --bootstrap-kind http",
            "--http-bootstrap-url [HTTP_BOOTSTRAP_URL] is missing, and --bootstrap-kind is http",
        ),
        (
            "registry --bootstrap-kind http --http-bootstrap-url peers/id",
            "--http-bootstrap-url [HTTP_BOOTSTRAP_URL] \"peers/id\" is no URL",
        ),
        (
            "registry --bootstrap-kind http --http-bootstrap-url http://a/id --http-bootstrap-cert-dir /c",
            "\"http://a/id\" is not https, and --http-bootstrap-cert-dir is set: write https://",
        ),
        (
            "registry --bootstrap-kind dns --dns-bootstrap-domain https://a",
            "--dns-bootstrap-domain [DNS_BOOTSTRAP_DOMAIN] \"https://a\" has a port that is no number",
        ),
        (
            "registry --bootstrap-kind dns --dns-bootstrap-domain d --http-bootstrap-addr :9090",
            "--http-bootstrap-addr [HTTP_BOOTSTRAP_ADDR] \":9090\" is taken by --metrics-addr",
        ),
        (
            "registry --bootstrap-kind static",
            "--static-bootstrap-peers [STATIC_BOOTSTRAP_PEERS] is missing",
        ),
        (
            "configuration",
            "--mirror-targets [MIRROR_TARGETS] is missing",
        ),
        ("version --format xml", "--format \"xml\" is no format"),
    ] {
        let text = refused(words);
        assert!(text.contains(missing), "{text}");
        assert!(text.starts_with("peili: one value"), "{text}");
    }
}

#[test]
fn the_first_peers_are_behind_names_a_url_or_in_a_list() {
    let words = "registry --bootstrap-kind dns --dns-bootstrap-domain";
    for (domains, read) in [
        ("a.svc.", vec![("a.svc.", None)]),
        (
            "a.svc.,b.svc:6001 192.0.2.7:1",
            vec![
                ("a.svc.", None),
                ("b.svc", Some(6001)),
                ("192.0.2.7", Some(1)),
            ],
        ),
        (
            "2001:db8::7 [2001:db8::7]:5001",
            vec![("2001:db8::7", None), ("2001:db8::7", Some(5001))],
        ),
    ] {
        let Command::Registry(registry) = command(&format!("{words} {domains}")) else {
            panic!("another command");
        };
        let read = read
            .into_iter()
            .map(|(name, port)| (name.to_string(), port));
        let domains = read.collect();
        assert_eq!(registry.bootstrap, Bootstrap::Dns { domains });
    }
    for (domain, reason) in [
        ("a..b", "is no domain name"),
        ("a/b", "is no domain name"),
        ("a:0", "has a port that is no number up to 65535"),
        ("a:http", "has a port that is no number up to 65535"),
        (&"a".repeat(64), "is no domain name"),
    ] {
        let text = refused(&format!("{words} {domain}"));
        assert!(text.contains(reason), "{text}");
        assert!(text.starts_with("peili: one value"), "{text}");
    }

    let Command::Registry(registry) = command(
        "registry --bootstrap-kind http --http-bootstrap-url https://peers.test/id \
         --http-bootstrap-addr :5002 --http-bootstrap-cert-dir /certs",
    ) else {
        panic!("another command");
    };
    assert_eq!(
        registry.bootstrap,
        Bootstrap::Http(http::Config {
            url: "https://peers.test/id".parse().expect("a URL"),
            cert_dir: Some("/certs".into()),
        })
    );
    assert_eq!(registry.http_bootstrap_addr, Some(ListenAddr::every(5002)));
    // Served by whoever is told to, however he finds others himself.
    let other = daemon("--http-bootstrap-addr :5002");
    assert_eq!(other.http_bootstrap_addr, Some(ListenAddr::every(5002)));
}

#[test]
fn what_the_uninstalling_hook_waits_for_is_what_was_said() {
    assert_eq!(
        command("cleanup-wait --probe-endpoint cleanup.peili.svc:8080"),
        Command::CleanupWait(CleanupWait {
            host: "cleanup.peili.svc".to_string(),
            port: 8080,
            threshold: 3,
            period: Duration::from_secs(2),
            timeout: Duration::from_secs(240),
        })
    );
    let text = refused("cleanup-wait --probe-endpoint a --threshold 0 --period 0 --timeout soon");
    for said in [
        "--probe-endpoint [PROBE_ENDPOINT] \"a\" has no port: write",
        "--threshold [THRESHOLD] \"0\" asks nobody: write 1 or more",
        "--period [PERIOD] \"0\" leaves no time",
        "--timeout [TIMEOUT] \"soon\" is not a duration",
    ] {
        assert!(text.contains(said), "{said}\n{text}");
    }
    let text = refused("cleanup-wait");
    assert!(
        text.contains("--probe-endpoint [PROBE_ENDPOINT] is missing"),
        "{text}"
    );
}

#[test]
fn a_layout_is_served_when_both_the_store_and_its_path_say_so() {
    assert_eq!(
        daemon("--store oci-layout --oci-layout-path /images").store,
        Store::OciLayout(layout::Config {
            path: "/images".into()
        })
    );
    for (words, said) in [
        (
            "--store oci-layout",
            "--oci-layout-path [OCI_LAYOUT_PATH] is missing, and --store is oci-layout: write",
        ),
        (
            "--oci-layout-path /images",
            "--oci-layout-path [OCI_LAYOUT_PATH] \"/images\" would not be served, because \
             --store is containerd: add --store=oci-layout",
        ),
        (
            "--store oci-layout --oci-layout-path images",
            "\"images\" is not an absolute path",
        ),
        (
            "--store docker",
            "--store [STORE] \"docker\" is no store that this release knows: \
             write containerd or oci-layout",
        ),
    ] {
        let text = refused(&format!(
            "registry --bootstrap-kind dns --dns-bootstrap-domain d {words}"
        ));
        assert!(text.contains(said), "{text}");
        assert!(text.starts_with("peili: one value"), "{text}");
    }
}

#[test]
fn sharing_in_flight_and_the_zone_are_what_was_said() {
    for (words, sharing, zone) in [
        ("", InFlightSharing::Auto, None),
        (
            "--in-flight-sharing auto --zone=",
            InFlightSharing::Auto,
            None,
        ),
        (
            "--in-flight-sharing always --zone eu-west-1a",
            InFlightSharing::Always,
            Some("eu-west-1a"),
        ),
        (
            "--in-flight-sharing=off --zone Süd",
            InFlightSharing::Off,
            Some("Süd"),
        ),
    ] {
        let registry = daemon(words);

        assert_eq!(registry.in_flight_sharing, sharing, "{words}");
        assert_eq!(registry.zone.as_deref(), zone, "{words}");
    }
}

#[test]
fn a_zone_that_others_could_not_read_is_refused_with_the_reason() {
    let long = "x".repeat(129);
    for (zone, reason) in [
        ("a;b", "has a semicolon in it"),
        ("a\u{7}b", "has a control character in it"),
        (&long, "is longer than 128 bytes"),
    ] {
        let words = format!("registry --bootstrap-kind dns --dns-bootstrap-domain d --zone {zone}");
        let said = format!("--zone [ZONE] {zone:?} {reason}: write a short name");
        let text = refused(&words);
        assert!(text.contains(&said), "{text}");
    }
    assert_eq!(
        daemon(&format!("--zone {}", &long[1..])).zone.unwrap(),
        long[1..]
    );

    let text =
        refused("registry --bootstrap-kind dns --dns-bootstrap-domain d --in-flight-sharing=true");
    let said = "--in-flight-sharing [IN_FLIGHT_SHARING] \"true\" is no way of sharing: \
                write auto, always or off";
    assert!(text.contains(said), "{text}");
}

#[test]
fn what_nobody_knows_is_refused() {
    for words in [
        "",
        "serve",
        "registry --no-such-flag",
        "configuration --mirror-targets http://a --resolve-tags false",
        "cleanup extra",
    ] {
        refused(words);
    }
}

#[test]
fn help_is_no_mistake_and_names_every_variable() {
    for words in ["--help", "--version"] {
        assert_eq!(parsed(words).expect_err(words).code, 0);
    }
    let help = parsed("registry --help").expect_err("help").text;
    // The lines are folded.
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for variable in ["LOG_LEVEL", "BOOTSTRAP_KIND", "ADVERTISE_ADDR", "STORE"] {
        assert!(help.contains(&format!("[env: {variable}=")), "{help}");
    }
}

#[test]
fn the_default_route_never_yields_loopback() {
    assert!(default_route_addrs().into_iter().all(can_be_reached));
}

/// The environment belongs to a whole process, so each case is a process of its own: this test, run again with
/// `WORDS` to read.
#[test]
fn child_of_the_tests_of_the_environment() {
    if let Ok(words) = std::env::var("WORDS") {
        match parsed(&words) {
            Ok(line) => println!("{line:?}"),
            Err(refusal) => println!("{}", refusal.text),
        }
    }
}

pub(super) fn with_env(variables: &[(&str, &str)], words: &str) -> String {
    let output = Process::new(std::env::current_exe().expect("this program"))
        .args([
            "config::tests::child_of_the_tests_of_the_environment",
            "--exact",
            "--nocapture",
        ])
        .envs(variables.iter().copied())
        .env("WORDS", words)
        .output()
        .expect("runs");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn variables_are_read_and_the_flag_counts_more() {
    let said = with_env(
        &[
            ("MIRRORED_REGISTRIES", "https://docker.io,https://ghcr.io"),
            ("MIRROR_TARGETS", "http://2001:db8::7:30020"),
            ("RESOLVE_TAGS", "false"),
            ("LOG_LEVEL", "DEBUG"),
        ],
        "configuration --containerd-registry-config-path /x --log-level WARN",
    );

    let same = command(
        "configuration --containerd-registry-config-path /x --resolve-tags=false \
         --mirror-targets http://[2001:db8::7]:30020 \
         --mirrored-registries https://docker.io https://ghcr.io",
    );
    assert!(said.contains(&format!("{same:?}")), "{said}");
    assert!(said.contains("Filter(\"WARN\")"), "{said}");
}

#[test]
fn the_pods_addresses_are_announced_unless_others_are_named() {
    let words = "registry --bootstrap-kind dns --dns-bootstrap-domain d";
    for (variables, addresses) in [
        (
            &[("POD_IPS", "192.0.2.7,2001:db8::7,127.0.0.1")][..],
            "[192.0.2.7, 2001:db8::7]",
        ),
        (
            &[("POD_IPS", "192.0.2.7"), ("ADVERTISE_ADDR", "127.0.0.1")],
            "[127.0.0.1]",
        ),
        (&[("POD_IPS", ""), ("ADVERTISE_ADDR", "")], "[]"),
    ] {
        let said = with_env(variables, words);
        assert!(
            said.contains(&format!("advertise_addrs: {addresses},")),
            "{said}"
        );
    }
}

#[test]
fn the_doctor_takes_what_the_daemon_takes_and_its_mistakes_are_told_alike() {
    let words = "--bootstrap-kind dns --dns-bootstrap-domain d --data-dir /d --containerd-registry-config-path /c";
    let (daemon, doctor) = (
        command(&format!("registry {words}")),
        command(&format!("doctor {words} --format json")),
    );
    let (Command::Registry(daemon), Command::Doctor(doctor)) = (daemon, doctor) else {
        panic!("other commands");
    };

    assert_eq!(doctor.registry, *daemon);
    assert_eq!(doctor.format, Format::Json);
    assert_eq!(daemon.containerd_registry_config_path, PathBuf::from("/c"));

    let text = refused("doctor --format xml --metrics-addr 9090");
    for said in [
        "  --format \"xml\" is no format: write text or json\n",
        "  --metrics-addr [METRICS_ADDR] \"9090\" has no port",
        "  --bootstrap-kind [BOOTSTRAP_KIND] is missing",
    ] {
        assert!(text.contains(said), "{said}\n{text}");
    }
}
