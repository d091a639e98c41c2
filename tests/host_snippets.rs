//! What docs/fresh-nodes.md has nodes say in their user data and machine configurations, taken from the page and given to real
//! containerds: they keep their layers, and pull through the mirror while there is no registry.

#[allow(dead_code, reason = "each test uses its part of the lab")]
mod lab;

use std::path::Path;

use lab::containerd::unpacked;
use lab::process::output;
use lab::{Image, ImageSpec, Lab, Node, NodeOptions, PeiliOptions, lab_or_skip};
use serde_json::Value;
use toml::Table;

const PEILI: &str = env!("CARGO_BIN_EXE_peili");
const MIB: u64 = 1 << 20;

/// The text below a heading, to the next one.
fn section(heading: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/fresh-nodes.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (_, below) = page.split_once(&format!("\n### {heading}")).unwrap();
    let end = below.find("\n##").unwrap();
    below[..end].to_owned()
}

/// The page's code in a language, in order.
fn code(section: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    let blocks = section.split("\n```").collect::<Vec<_>>();
    // Every second piece lies between fences.
    let inside = blocks.iter().skip(1).step_by(2);
    inside
        .filter_map(|block| {
            format!("```{block}\n")
                .strip_prefix(&fence)
                .map(str::to_owned)
        })
        .collect()
}

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}:\n{text}"))
}

/// As nodeadm and Talos put a part over what they have: tables are merged, the rest is replaced.
fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(base)), toml::Value::Table(over)) => merge(base, over),
            (_, value) => drop(base.insert(key, value)),
        }
    }
}

/// A node that throws its layers away, as these distributions' do before they are told otherwise.
async fn fresh(lab: &Lab, version: Option<&str>) -> Node {
    let node = lab
        .node(NodeOptions {
            version: version.map(str::to_owned),
            discard_unpacked_layers: true,
            ..NodeOptions::default()
        })
        .await
        .unwrap();
    // The lab's own registry is one among all for this node, and cannot be reached.
    std::fs::remove_dir_all(node.containerd().certs_d()).unwrap();
    std::fs::create_dir(node.containerd().certs_d()).unwrap();
    node
}

/// containerd begins anew with `part` in its configuration.
async fn configure(node: &Node, part: &str) {
    let file = node.dir().join("config.toml");
    let mut config: Table = std::fs::read_to_string(&file).unwrap().parse().unwrap();
    let mut part: Table = part
        .parse()
        .unwrap_or_else(|error| panic!("{error}\n{part}"));
    // It would look where this machine's containerd looks.
    let ours = node.containerd().certs_d().display().to_string();
    for (_, plugin) in part["plugins"].as_table_mut().unwrap() {
        let registry = plugin.get_mut("registry");
        if let Some(path) = registry.and_then(|registry| registry.get_mut("config_path")) {
            assert_eq!(path.as_str(), Some("/etc/containerd/certs.d"));
            *path = ours.clone().into();
        }
    }
    merge(&mut config, part);
    std::fs::write(file, config.to_string()).unwrap();
    node.restart().await.unwrap();
}

/// Runs a script of the page where /etc/containerd is the node's, and /usr/local/bin has this program.
async fn run(node: &Node, script: &str) -> String {
    let (etc, bin) = (node.dir().join("etc"), node.dir().join("bin"));
    std::fs::create_dir_all(etc.join("certs.d")).unwrap();
    std::fs::create_dir_all(&bin).unwrap();
    std::fs::copy(PEILI, bin.join("peili")).unwrap();
    let certs_d = node.containerd().certs_d();
    let binds: [(&Path, &str); 3] = [
        (&etc, "/etc/containerd"),
        (&certs_d, "/etc/containerd/certs.d"),
        (&bin, "/usr/local/bin"),
    ];
    let file = node.dir().join("script");
    std::fs::write(&file, script).unwrap();
    let mut command = node.netns().command_over(&binds, Path::new("/bin/sh"));
    command.arg(&file);
    output(command).await.unwrap();
    std::fs::read_to_string(etc.join("config.toml")).unwrap_or_default()
}

/// The node pulls what another one holds, all of it through the mirror at 127.0.0.1:30020, and keeps it.
async fn pulls_through_the_mirror(lab: &Lab, node: &Node, image: &Image) {
    let holder = lab.node(NodeOptions::default()).await.unwrap();
    holder.import(image).await.unwrap();
    let port = |options: PeiliOptions| options.arg("--registry-addr", ":30020").unconfigured();
    for each in [&holder, node] {
        each.spawn_peili(&port(PeiliOptions::default()))
            .await
            .unwrap();
        let at = std::net::SocketAddr::from((each.ip(), 30020));
        lab::process::eventually(
            "the mirror",
            std::time::Duration::from_secs(30),
            async || {
                let answer = lab::http::get(each.netns(), at, "/readyz").await;
                Ok(answer.is_ok_and(|a| a.status.is_success()).then_some(()))
            },
        )
        .await
        .unwrap();
    }
    lab.stop_registry().await.unwrap();

    node.cri_pull(&image.reference()).await.unwrap();

    for layer in &image.layers {
        assert!(node.holds(&layer.digest), "layers are kept");
    }
    lab.start_registry().await.unwrap();
}

async fn image(lab: &Lab, name: &str) -> Image {
    lab.make(ImageSpec::new(name).layers([MIB; 3]))
        .await
        .unwrap()
}

/// Without the snippet the same pull leaves nothing behind; else the others would show nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_told_nothing_keeps_no_layer() {
    let lab = lab_or_skip!();
    let image = lab.push(ImageSpec::new("test/app:v1").layers([MIB; 3]));
    let image = image.await.unwrap();
    let node = NodeOptions {
        discard_unpacked_layers: true,
        ..NodeOptions::default()
    };
    let node = lab.node(node).await.unwrap();

    node.cri_pull(&image.reference()).await.unwrap();

    let gone = || image.layers.iter().all(|layer| !node.holds(&layer.digest));
    let patience = std::time::Duration::from_secs(30);
    lab::process::eventually("the layers' removal", patience, async || {
        Ok(gone().then_some(()))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cloud_init_runs() {
    let section = section("cloud-init");
    let data = yaml(&code(&section, "yaml")[0]);
    assert!(code(&section, "yaml")[0].starts_with("#cloud-config\n"));
    let command = &data["bootcmd"][0];
    assert_eq!((&command[0], &command[1]), (&"sh".into(), &"-c".into()));
    let script = command[2].as_str().unwrap();

    let lab = lab_or_skip!();
    let node = fresh(&lab, None).await;
    let image = image(&lab, "test/app:v1").await;

    let config = run(&node, script).await;
    configure(&node, &config).await;

    let hosts = node.containerd().certs_d().join("_default/hosts.toml");
    assert!(hosts.is_file(), "configuration has run");
    pulls_through_the_mirror(&lab, &node, &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nodeadm_and_the_script_beside_it_do() {
    let section = section("EKS");
    let mime = &code(&section, "")[0];
    let parts: Vec<_> = mime.split("--PEILI").collect();
    assert_eq!((parts.len(), parts[3]), (4, "--\n"), "{parts:?}");
    let body = |part: &str| part.split_once("\n\n").unwrap().1.to_owned();
    assert!(parts[0].contains("boundary=\"PEILI\""));
    assert!(parts[1].contains("Content-Type: text/x-shellscript"));
    assert!(parts[2].contains("Content-Type: application/node.eks.aws"));
    let node_config = yaml(&body(parts[2]));
    assert_eq!(node_config["apiVersion"], "node.eks.aws/v1alpha1");
    assert_eq!(node_config["kind"], "NodeConfig");
    let older = yaml(&code(&section, "yaml")[0]);
    let config = |of: &Value| {
        of["spec"]["containerd"]["config"]
            .as_str()
            .unwrap()
            .to_owned()
    };

    let lab = lab_or_skip!();
    for (version, config) in [("2.x", config(&node_config)), ("1.7", config(&older))] {
        if unpacked(version).is_none() {
            assert!(std::env::var_os("CI").is_none(), "run `make containerds`");
            eprintln!("skipped: no containerd {version}; `make containerds` unpacks it");
            continue;
        }
        let node = fresh(&lab, Some(version)).await;
        let image = image(&lab, &format!("test/app:v{version}")).await;

        run(&node, &body(parts[1])).await;
        configure(&node, &config).await;

        pulls_through_the_mirror(&lab, &node, &image).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_talos_puts_beside_its_own_configuration() {
    let patch = yaml(&code(&section("Talos"), "yaml")[0]);
    let file = &patch["machine"]["files"][0];
    // Talos joins the parts of this directory, in order.
    let path = Path::new(file["path"].as_str().unwrap());
    assert_eq!(path.parent(), Some(Path::new("/etc/cri/conf.d")));
    assert_eq!(path.extension().unwrap(), "part");
    let preset = Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/peili/presets/talos.yaml");
    let preset = std::fs::read_to_string(preset).unwrap();
    assert!(preset.contains(path.to_str().unwrap()));

    let lab = lab_or_skip!();
    if unpacked("2.x").is_none() {
        assert!(std::env::var_os("CI").is_none(), "run `make containerds`");
        eprintln!("skipped: no containerd 2.x; `make containerds` unpacks it");
        return;
    }
    let node = fresh(&lab, Some("2.x")).await;
    let image = image(&lab, "test/app:v1").await;

    configure(&node, file["content"].as_str().unwrap()).await;
    // What the DaemonSet's init container does.
    let certs_d = node.containerd().certs_d().display().to_string();
    let socket = node.containerd().socket().display().to_string();
    let configuration = [
        "configuration",
        "--containerd-registry-config-path",
        &certs_d,
        "--containerd-sock",
        &socket,
        "--mirror-targets",
        "http://127.0.0.1:30020",
    ];
    node.peili()
        .run(node.netns(), &configuration)
        .await
        .unwrap();

    pulls_through_the_mirror(&lab, &node, &image).await;
}
