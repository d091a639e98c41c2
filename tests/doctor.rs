//! `peili doctor` on real containerds: a healthy node has nothing to say, and each thing that breaks is found by itself,
//! with its cure.

#[allow(dead_code, reason = "each test uses its part of the lab")]
mod lab;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use lab::loopback::Loopback;
use lab::process::eventually;
use lab::{Image, ImageSpec, Lab, Node, NodeOptions, PeiliOptions, lab_or_skip};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

const MIB: u64 = 1 << 20;
/// Anything that merely has to happen.
const AT_ALL: Duration = Duration::from_secs(30);

/// What `peili doctor` says on a node, and its exit code.
#[derive(Debug)]
struct Said {
    code: i32,
    report: Value,
}

impl Said {
    fn finding(&self, check: &str) -> &Value {
        let findings = self.report["findings"].as_array().expect("findings");
        let found = findings.iter().find(|finding| finding["check"] == check);
        found.unwrap_or_else(|| panic!("no {check} in {:#}", self.report))
    }

    fn state(&self, check: &str) -> &str {
        self.finding(check)["state"].as_str().expect("a state")
    }

    /// That this check says so, and what to do.
    fn says(&self, check: &str, state: &str, seen: &str, cure: &str) -> bool {
        let finding = self.finding(check);
        let text = |key: &str| finding[key].as_str().unwrap_or_default();
        text("state") == state && text("seen").contains(seen) && text("cure").contains(cure)
    }

    #[track_caller]
    fn must_say(&self, check: &str, state: &str, seen: &str, cure: &str) {
        let finding = self.finding(check);
        assert!(self.says(check, state, seen, cure), "{finding:#}");
        let code = if state == "broken" { 2 } else { 1 };
        assert!(self.code >= code, "{self:?}");
    }
}

/// Its exit code and what it prints.
async fn run(node: &Node, options: &PeiliOptions, more: &[&str]) -> (i32, String) {
    let command = node.doctor(options, more, None).unwrap();
    let mut command = tokio::process::Command::from(command);
    let out = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let out = out.await.unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let code = out.status.code().expect("no signal");
    assert!(code < 3, "{text}{}", String::from_utf8_lossy(&out.stderr));
    (code, text)
}

/// Runs where the node's Peili runs, with the same options.
async fn doctor(node: &Node, options: &PeiliOptions) -> Said {
    let (code, out) = run(node, options, &["--format", "json"]).await;
    let report = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"));
    Said { code, report }
}

/// Repeats it until it finds what is expected: what is observed takes a moment.
async fn doctor_until(node: &Node, options: &PeiliOptions, is_it: impl Fn(&Said) -> bool) -> Said {
    let mut last = None;
    let said = eventually("the doctor's finding", AT_ALL, async || {
        let said = doctor(node, options).await;
        if is_it(&said) {
            return Ok(Some(said));
        }
        last = Some(said);
        Ok(None)
    })
    .await;
    said.unwrap_or_else(|e| panic!("{e:#}\n{:#}", last.expect("one answer").report))
}

async fn image(lab: &Lab) -> Image {
    let spec = ImageSpec::new("test/app:v1").layers([MIB, 2 * MIB]);
    lab.push(spec).await.unwrap()
}

/// A cluster whose nodes' containerds are asked for images of its own registry.
struct Cluster {
    lab: Lab,
}

impl Cluster {
    fn registry(&self) -> String {
        format!("http://{}", self.lab.registry.host())
    }

    /// What `registry` and `doctor` are told.
    fn options(&self, certs_d: &Path) -> PeiliOptions {
        PeiliOptions::default()
            .unconfigured()
            .arg(
                "--containerd-registry-config-path",
                &certs_d.display().to_string(),
            )
            .arg("--mirrored-registries", &self.registry())
    }

    /// As the pod's init container does; with a token if it is told where that is.
    async fn configure(&self, node: &Node, certs_d: &Path, target: Option<&str>, more: &[&str]) {
        let own = format!("http://{}", node.peili().registry());
        let (socket, certs_d) = (node.containerd().socket(), certs_d.display().to_string());
        let socket = socket.display().to_string();
        let registry = self.registry();
        let args = [
            "configuration",
            "--containerd-sock",
            &socket,
            "--containerd-registry-config-path",
            &certs_d,
            "--mirrored-registries",
            &registry,
            "--mirror-targets",
            target.unwrap_or(&own),
        ];
        let args = [&args[..], more].concat();
        node.peili().run(node.netns(), &args).await.unwrap();
    }

    /// With a token, as the chart has it.
    async fn start(&self, node: &Node) -> PeiliOptions {
        let certs_d = node.containerd().certs_d();
        let data = node.peili().data();
        let data = data.to_str().unwrap();
        self.configure(node, &certs_d, None, &["--data-dir", data])
            .await;
        let options = self.options(&certs_d);
        node.start_peili_with(&options).await.unwrap();
        options
    }
}

fn is_1(node: &Node) -> bool {
    node.containerd().version().starts_with("1.")
}

#[tokio::test(flavor = "multi_thread")]
async fn healthy_nodes_have_nothing_to_say_and_give_each_other_what_they_advertise() {
    let cluster = Cluster {
        lab: lab_or_skip!(),
    };
    let nodes = [
        cluster.lab.node(NodeOptions::default()).await.unwrap(),
        cluster.lab.node(NodeOptions::default()).await.unwrap(),
    ];
    let image = image(&cluster.lab).await;
    let options = [
        cluster.start(&nodes[0]).await,
        cluster.start(&nodes[1]).await,
    ];
    for node in &nodes {
        node.cri_pull(&image.reference()).await.unwrap();
    }

    let said = doctor_until(&nodes[1], &options[1], |said| {
        said.state("delivery") == "ok" && said.state("config_path") == "ok"
    })
    .await;

    assert_eq!(said.code, 0, "{:#}", said.report);
    assert_eq!(said.report["verdict"], "ok");
    for check in [
        "socket",
        "socket_mount",
        "config_path",
        "layers",
        "content",
        "hosts_toml",
        "token",
        "hosts_version",
        "port",
        "daemon",
        "bootstrap",
        "peers",
        "delivery",
    ] {
        assert_eq!(said.state(check), "ok", "{:#}", said.finding(check));
    }
    let version = nodes[1].containerd().version();
    assert!(said.says("socket", "ok", version, ""));
    assert!(said.says("bootstrap", "ok", "leads to 2 addresses", ""));
    assert!(said.says("peers", "ok", "other nodes known: 1", ""));
    // For people the same, in lines.
    let (code, text) = run(&nodes[1], &options[1], &[]).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.lines().last().unwrap().starts_with("ok: "), "{text}");
    for name in ["peili_pulls_past_mirror", "peili_images_without_layers"] {
        assert_eq!(nodes[1].metric(name, &[]).await.unwrap(), 0.0, "{name}");
    }
}

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
async fn whatever_is_wrong_with_hosts_toml_and_the_port_is_told() {
    let cluster = Cluster {
        lab: lab_or_skip!(),
    };
    let node = cluster.lab.node(NodeOptions::default()).await.unwrap();
    let options = cluster.start(&node).await;
    let well = doctor(&node, &options).await;
    assert_eq!(well.code, 0, "{:#}", well.report);

    let certs_d = node.containerd().certs_d();
    let data = node.peili().data();
    let with_token = ["--data-dir", data.to_str().unwrap()];

    // For a containerd of the other generation.
    let (other, meant) = match is_1(&node) {
        true => ("2.1", "is for containerd 2.x"),
        false => ("1.7", "is for containerd 1.x"),
    };
    let more = [&with_token[..], &["--containerd-version", other]].concat();
    cluster.configure(&node, &certs_d, None, &more).await;
    let said = doctor(&node, &options).await;
    said.must_say("hosts_version", "warning", meant, "peili configuration");
    assert_eq!(said.code, 1, "{:#}", said.report);

    // Without the token.
    cluster.configure(&node, &certs_d, None, &[]).await;
    let said = doctor(&node, &options).await;
    said.must_say("token", "broken", "sends no token", "--data-dir");

    // Of a mirror where nobody is.
    let nobody = "http://127.0.0.1:9";
    cluster
        .configure(&node, &certs_d, Some(nobody), &with_token)
        .await;
    let said = doctor(&node, &options).await;
    said.must_say(
        "port",
        "broken",
        "nobody answers at http://127.0.0.1:9",
        "nodePort",
    );

    // Not at all.
    let args = [
        "cleanup",
        "--containerd-registry-config-path",
        certs_d.to_str().unwrap(),
    ];
    node.peili().run(node.netns(), &args).await.unwrap();
    let said = doctor(&node, &options).await;
    said.must_say(
        "hosts_toml",
        "broken",
        "does not know of the mirror",
        "Restart this pod",
    );

    // And all is well again.
    cluster.configure(&node, &certs_d, None, &with_token).await;
    let said = doctor(&node, &options).await;
    assert_eq!(said.code, 0, "{:#}", said.report);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_leads_nowhere_a_content_directory_out_of_reach_and_a_daemon_that_has_ended_are_told()
 {
    let cluster = Cluster {
        lab: lab_or_skip!(),
    };
    let node = cluster.lab.node(NodeOptions::default()).await.unwrap();
    let image = image(&cluster.lab).await;
    let options = cluster.start(&node).await;
    node.cri_pull(&image.reference()).await.unwrap();

    let lost = options
        .clone()
        .arg("--dns-bootstrap-domain", "nobody.lab.test.");
    let said = doctor(&node, &lost).await;
    said.must_say("bootstrap", "broken", "nobody.lab.test.", "endpointslices");

    let empty = cluster.lab.folder("empty").unwrap();
    let elsewhere = |path: &Path| {
        let path = path.display().to_string();
        options.clone().arg("--containerd-content-path", &path)
    };
    let said = doctor(&node, &elsewhere(&empty)).await;
    said.must_say(
        "content",
        "broken",
        "another content store's",
        "containerdContentPath",
    );
    let said = doctor(&node, &elsewhere(&empty.join("not-mounted"))).await;
    said.must_say(
        "content",
        "warning",
        "through containerd's socket",
        "read-only",
    );

    node.stop_peili().await.unwrap();
    let said = doctor(&node, &options).await;
    said.must_say("daemon", "broken", "not running", "peili registry");
    said.must_say("port", "broken", "nobody answers", "");
    assert_eq!(said.state("delivery"), "skipped");

    node.stop().await.unwrap();
    let said = doctor(&node, &options).await;
    said.must_say(
        "socket",
        "broken",
        "does not answer",
        "peili.containerdSock",
    );
    assert_eq!(said.code, 2);
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

/// Without root and without a containerd: two nodes with a directory each.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_without_containerd_are_asked_for_what_they_have() {
    let peili = Path::new(env!("CARGO_BIN_EXE_peili"));
    let cluster = Loopback::new(2).unwrap();
    let [one, two] = cluster.nodes() else {
        panic!("two nodes")
    };
    let images = cluster.folder("images").unwrap();
    let spec = ImageSpec::new("test/app:v1").layers([MIB]);
    let image = spec.build("registry.test:5000", &images).unwrap();
    for node in [one, two] {
        node.layout().add(&image).unwrap();
    }
    let peers = [one, two].map(|node| {
        let at = node.router();
        format!("/ip4/{}/tcp/{}", at.ip(), at.port())
    });
    let doctor = async |metrics: SocketAddr| {
        let told = two.command(peili, "doctor", &peers);
        let mut command = tokio::process::Command::new(peili);
        let own = two.metrics().to_string();
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
    };

    let before = doctor(two.metrics()).await;
    before.must_say("daemon", "broken", "not running", "peili registry");
    assert_eq!(before.code, 2);

    cluster.start(peili).await.unwrap();
    let mut last = None;
    eventually("a delivery", AT_ALL, async || {
        let said = doctor(two.metrics()).await;
        let is_delivered = said.state("delivery") == "ok";
        last = Some(said);
        Ok(is_delivered.then_some(()))
    })
    .await
    .unwrap();
    let said = last.unwrap();
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
