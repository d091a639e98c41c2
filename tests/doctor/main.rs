//! `peili doctor` on real containerds: a healthy node has nothing to say, and each thing that breaks is found by itself,
//! with its cure.

mod containerd;
mod hosts;
#[allow(dead_code, reason = "each test uses its part of the lab")]
#[path = "../lab/mod.rs"]
mod lab;
mod without_root;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use lab::process::eventually;
use lab::{Image, ImageSpec, Lab, Node, NodeOptions, PeiliOptions, lab_or_skip};
use serde_json::Value;

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
        let certs_d = certs_d.display().to_string();
        let mut args = vec!["--containerd-registry-config-path", &certs_d];
        args.extend(
            target
                .iter()
                .flat_map(|target| ["--mirror-targets", target]),
        );
        args.extend(more);
        let registry = self.lab.registry.host();
        let configured = node
            .peili()
            .configure(node.netns(), node.containerd(), &registry, &args);
        configured.await.unwrap();
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
