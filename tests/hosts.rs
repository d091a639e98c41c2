//! hosts.toml beside an administrator's own, on a real containerd; and the writer killed by the kernel.

#[allow(dead_code, reason = "each test uses its part of the lab")]
mod lab;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use hyper::Method;
use lab::process::{eventually, find};
use lab::{Direction, Image, ImageSpec, Lab, Node, NodeOptions, PeiliOptions, lab_or_skip};

const MIB: u64 = 1 << 20;
/// Anything that merely has to happen.
const AT_ALL: Duration = Duration::from_secs(30);

/// A node whose Peili runs and of which containerd does not know yet.
async fn node(lab: &Lab) -> Node {
    let node = lab.node(NodeOptions::default()).await.unwrap();
    let unconfigured = PeiliOptions::default().unconfigured();
    node.start_peili_with(&unconfigured).await.unwrap();
    node
}

async fn image(lab: &Lab, name: &str) -> Image {
    let spec = ImageSpec::new(name).layers([MIB, 2 * MIB]);
    lab.push(spec).await.unwrap()
}

/// A subcommand on the node's certs.d.
async fn peili(node: &Node, args: &[&str]) -> String {
    let certs_d = node.containerd().certs_d().display().to_string();
    let directory = ["--containerd-registry-config-path", &certs_d];
    let args = [args, &directory].concat();
    node.peili().run(node.netns(), &args).await.unwrap()
}

/// As the pod's init container does at each start.
async fn configure(node: &Node, more: &[&str]) -> String {
    let socket = node.containerd().socket().display().to_string();
    let target = format!("http://{}", node.peili().registry());
    let args = ["configuration", "--containerd-sock", &socket];
    let targets = ["--mirror-targets", &target];
    peili(node, &[&args[..], more, &targets].concat()).await
}

/// An administrator's: images of `registry` come from the lab's, which he has as a mirror of it.
fn mirror_by_hand(lab: &Lab, node: &Node, registry: &str) -> PathBuf {
    let directory = node.containerd().certs_d().join(registry);
    fs::create_dir_all(&directory).unwrap();
    let file = directory.join("hosts.toml");
    let text = format!(
        "# Nobody answers there.\nserver = \"http://127.0.0.1:1\"\n\n# The mirror of the second floor.\n\
         [host.\"http://{}\"]\n  capabilities = [\"pull\", \"resolve\"]\n",
        lab.registry.host()
    );
    fs::write(&file, text).unwrap();
    file
}

/// What its containerd asked the node's Peili for.
async fn asked(node: &Node, what: &str) -> bool {
    let log = fs::read_to_string(node.peili().log()).unwrap();
    let requests = log.lines().filter(|line| line.contains("\"request\""));
    requests.into_iter().any(|line| line.contains(what))
}

/// Everything about a tree but inodes: mode and bytes, by path.
fn tree(root: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut tree = BTreeMap::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let bytes = if meta.is_dir() {
                pending.push(path.clone());
                Vec::new()
            } else if meta.is_symlink() {
                fs::read_link(&path)
                    .unwrap()
                    .into_os_string()
                    .into_encoded_bytes()
            } else {
                fs::read(&path).unwrap()
            };
            let name = path.strip_prefix(root).unwrap().to_path_buf();
            tree.insert(name, (meta.mode(), bytes));
        }
    }
    tree
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrators_own_mirror_is_asked_behind_ours() {
    let lab = lab_or_skip!();
    let (first, second) = (node(&lab).await, node(&lab).await);
    let image = image(&lab, "test/app:v1").await;
    let reference = "team.example:5000/test/app:v1";
    for node in [&first, &second] {
        // The name that containerd looks for where a colon can be in none.
        let file = mirror_by_hand(&lab, node, "team.example_5000_");
        // On one line, where containerd 2.x would not look for it.
        let text = fs::read_to_string(&file).unwrap();
        let (head, _) = text.split_once("\n[").unwrap();
        let url = format!("http://{}", lab.registry.host());
        let inline =
            format!("host = {{ \"{url}\" = {{ capabilities = [\"pull\", \"resolve\"] }} }}\n");
        fs::write(&file, format!("{head}\n{inline}")).unwrap();
        let list = ["--mirrored-registries", "http://team.example:5000"];
        configure(node, &[&list[..], &["--prepend-existing"]].concat()).await;
    }

    // Nobody has it: Peili is asked and does not, his mirror is and does.
    first.cri_pull(reference).await.unwrap();
    let served = lab.registry.served().await.unwrap();
    assert_eq!(served.bytes_to(first.ip()), image.pulled_bytes());
    for blob in image.pulled() {
        assert!(asked(&first, &blob.digest).await, "{}", blob.digest);
    }

    // A node has it: his mirror is not asked at all.
    let manifest = "/v2/test/app/manifests/v1?ns=team.example%3A5000";
    eventually("the tag", AT_ALL, async || {
        let to = second.peili().registry();
        let answer = second.http(to, Method::GET, manifest, &[]).await?;
        Ok(answer.status.is_success().then_some(()))
    })
    .await
    .unwrap();
    lab.stop_registry().await.unwrap();
    second.cri_pull(reference).await.unwrap();
    assert!(image.pulled().all(|blob| second.holds(&blob.digest)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_below_a_path_is_asked_behind_ours() {
    let lab = lab_or_skip!();
    let node = node(&lab).await;
    // As a proxy project of Harbor has it: the images of others below a name of its own.
    let image = image(&lab, "cache/test/app:v1").await;
    let reference = "nowhere.example/test/app:v1";
    let data_dir = node.peili().data().display().to_string();
    configure(&node, &["--data-dir", &data_dir]).await;
    assert!(node.cri_pull(reference).await.is_err(), "nobody has it");

    let cache = format!("http://{}/v2/cache/", lab.registry.host());
    let ours = format!("http://{}", node.peili().registry());
    let socket = node.containerd().socket().display().to_string();
    let targets = ["--mirror-targets", &ours, &cache];
    let rest = ["--containerd-sock", &socket, "--data-dir", &data_dir];
    peili(&node, &[&["configuration"], &rest[..], &targets].concat()).await;
    node.cri_pull(reference).await.unwrap();

    let served = lab.registry.served().await.unwrap();
    assert_eq!(served.bytes_to(node.ip()), image.pulled_bytes());
    for blob in image.pulled() {
        assert!(asked(&node, &blob.digest).await, "{}", blob.digest);
    }
    // The node's token is between containerd and us.
    let file = node.containerd().certs_d().join("_default/hosts.toml");
    let text = fs::read_to_string(&file).unwrap();
    let (before, after) = text.split_once("/v2/cache").expect("the cache");
    assert!(
        before.contains("x-peili-token") && !after.contains("x-peili-token"),
        "{text}"
    );
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_administrator_changes_later_counts_after_a_restart_and_after_the_uninstall() {
    let lab = lab_or_skip!();
    let node = node(&lab).await;
    let image = image(&lab, "test/app:v1").await;
    let certs_d = node.containerd().certs_d();
    let before = tree(&certs_d);
    configure(
        &node,
        &[
            "--mirrored-registries",
            "https://team.example",
            "https://docker.io",
        ],
    )
    .await;
    let ours = certs_d.join("team.example/hosts.toml");
    assert!(
        fs::read_to_string(&ours)
            .unwrap()
            .contains("Written by peili")
    );

    // He adds a registry of his own, and a mirror to a file of ours.
    let added = mirror_by_hand(&lab, &node, "later.example");
    let mut edited = fs::read_to_string(&ours).unwrap();
    edited += &format!("\n[host.\"http://{}\"]\n", lab.registry.host());
    fs::write(&ours, &edited).unwrap();
    let added_text = fs::read_to_string(&added).unwrap();

    for step in ["restart", "uninstall"] {
        let said = match step {
            "restart" => {
                let list = [
                    "--mirrored-registries",
                    "https://team.example",
                    "https://docker.io",
                ];
                configure(&node, &list).await
            }
            _ => peili(&node, &["cleanup"]).await,
        };
        let line = format!("left alone, edited since {}", ours.display());
        assert!(said.lines().any(|l| l == line), "{step}: {said}");
        assert_eq!(fs::read_to_string(&ours).unwrap(), edited, "{step}");
        assert_eq!(fs::read_to_string(&added).unwrap(), added_text, "{step}");
        for registry in ["later.example", "team.example"] {
            let reference = format!("{registry}/test/app:v1");
            node.cri_pull(&reference).await.unwrap();
            assert!(image.pulled().all(|blob| node.holds(&blob.digest)));
            node.cri_remove(&reference).await.unwrap();
        }
    }

    let mut after = tree(&certs_d);
    after.retain(|path, _| !path.starts_with("team.example") && !path.starts_with("later.example"));
    assert_eq!(after, before);
}

/// The kernel kills the process as it enters a call, whatever the process itself believes to be a step.
#[test]
fn killed_by_the_kernel_at_each_call_that_changes_something_it_leaves_old_or_new_and_all_comes_back()
 {
    let Some(strace) = find("strace") else {
        assert!(std::env::var_os("CI").is_none(), "run `make deps`");
        eprintln!("skipped: strace is not installed; `make deps` does it");
        return;
    };
    // The names of one call on different machines; a question mark: where it exists.
    let calls = [
        "?rename,?renameat",
        "?renameat2",
        "?fsync",
        "?mkdir,?mkdirat",
        "?link,?linkat",
        "?unlink,?unlinkat",
        "?rmdir",
        "?write",
    ];
    let folder = || {
        let root = tempfile::tempdir().unwrap();
        let at = root.path();
        for (file, text) in [
            (
                "docker.io/hosts.toml",
                "ca = \"ca.crt\"\n# Mine.\n[host.\"https://mine\"]\n",
            ),
            ("docker.io/ca.crt", "certificate"),
            ("_default/hosts.toml", "[host.\"https://all\"]\n"),
        ] {
            fs::create_dir_all(at.join(file).parent().unwrap()).unwrap();
            fs::write(at.join(file), text).unwrap();
        }
        let private = fs::Permissions::from_mode(0o600);
        fs::set_permissions(at.join("docker.io/ca.crt"), private).unwrap();
        symlink("docker.io", at.join("alias.example")).unwrap();
        let before = tree(at);
        (root, before)
    };
    let command = |work: &str, root: &Path, mut command: Command| {
        command.arg(env!("CARGO_BIN_EXE_peili"));
        // An update is a configuration by which another one was there before.
        match work {
            "cleanup" => command.arg("cleanup"),
            _ => command.args(["configuration", "--prepend-existing"]),
        };
        match work {
            "cleanup" => &mut command,
            "update" => command.args(["--mirror-targets", "http://127.0.0.1:30021"]),
            _ => command.args(["--mirror-targets", "http://127.0.0.1:30020"]),
        };
        command.env("CONTAINERD_VERSION", "2.1");
        command.arg("--containerd-registry-config-path").arg(root);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.status().unwrap()
    };
    let plain = |work: &str, root: &Path| {
        let status = command(work, root, Command::new("env"));
        assert!(status.success(), "{work}: {status}");
    };
    let whole = ["configuration", "update"].map(|work| {
        let (reference, _) = folder();
        plain(work, reference.path());
        tree(reference.path())
    });

    let mut kills = 0;
    for work in ["configuration", "update", "cleanup"] {
        for call in calls {
            for nth in 1.. {
                let (root, before) = folder();
                if work != "configuration" {
                    plain("configuration", root.path());
                }
                let mut killer = Command::new(&strace);
                killer.args(["-qq", "-o", "/dev/null", "-e"]);
                killer.arg(format!("inject={call}:signal=SIGKILL:when={nth}"));
                let status = command(work, root.path(), killer);
                if status.success() {
                    break;
                }
                assert_eq!(status.signal(), Some(9), "{work} {call} {nth}: {status}");
                kills += 1;

                let now = tree(root.path());
                for directory in ["docker.io", "_default"] {
                    let file = Path::new(directory).join("hosts.toml");
                    let found = now.get(&file);
                    let mut trees = whole.iter().chain([&before]);
                    let is_whole = trees.any(|tree| tree.get(&file) == found);
                    assert!(is_whole, "{work} {call} {nth}: {found:?}");
                }
                let certificate = Path::new("docker.io/ca.crt");
                assert_eq!(now.get(certificate), before.get(certificate));
                plain("cleanup", root.path());
                assert_eq!(tree(root.path()), before, "{work} {call} {nth}");
            }
        }
    }
    // Each does some twenty such calls.
    assert!(kills > 50, "{kills} kills");
}

/// A Secret as a pod has it mounted.
fn secret(node: &Node, name: &str, password: &str) -> String {
    let directory = node.dir().join(name);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("username"), "peili").unwrap();
    fs::write(directory.join("password"), password).unwrap();
    directory.display().to_string()
}

/// A node with this pair in its Peili.
async fn guarded(lab: &Lab, password: &str) -> Node {
    let node = lab.node(NodeOptions::default()).await.unwrap();
    let directory = secret(&node, "secret", password);
    let options = PeiliOptions::default()
        .unconfigured()
        .arg("--basic-auth-dir", &directory);
    node.start_peili_with(&options).await.unwrap();
    node
}

/// And in its containerd, or another one there, beside the node's token.
async fn configure_with_pair(lab: &Lab, node: &Node, password: &str) {
    let pair = secret(node, "of-containerd", password);
    let data_dir = node.dir().join("peili-data").display().to_string();
    let registry = format!("http://{}", lab.registry.host());
    let args = ["--basic-auth-dir", &pair, "--data-dir", &data_dir];
    let list = ["--mirrored-registries", &registry];
    configure(node, &[&args[..], &list].concat()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pair_opens_from_hosts_toml_to_the_last_byte_and_without_it_the_registry_is_asked() {
    let lab = lab_or_skip!();
    let image = image(&lab, "test/app:v1").await;
    let reference = format!("{}/test/app:v1", lab.registry.host());
    let (holder, friend) = (guarded(&lab, "one").await, guarded(&lab, "one").await);
    for node in [&holder, &friend] {
        configure_with_pair(&lab, node, "one").await;
    }
    holder.cri_pull(&reference).await.unwrap();
    let path = format!("/v2/test/app/manifests/v1?ns={}", lab.registry.host());
    let pair = ("authorization", "Basic cGVpbGk6b25l");
    eventually("the tag", AT_ALL, async || {
        let to = friend.peili().registry();
        let token = fs::read_to_string(friend.dir().join("peili-data/node-token"))?;
        let headers = [pair, ("x-peili-token", token.trim())];
        let answer = friend.http(to, Method::GET, &path, &headers).await?;
        Ok(answer.status.is_success().then_some(()))
    })
    .await
    .unwrap();

    // From hosts.toml to bytes of the other node, the registry's process gone.
    lab.stop_registry().await.unwrap();
    friend.cri_pull(&reference).await.unwrap();
    assert!(image.pulled().all(|blob| friend.holds(&blob.digest)));
    let refused = |node: &Node| {
        let log = fs::read_to_string(node.peili().log()).unwrap();
        log.lines()
            .filter(|line| line.contains("\"status\":401"))
            .count()
    };
    lab.start_registry().await.unwrap();

    // And while it is still coming in: one of them follows the other.
    let spec = ImageSpec::new("test/crowd:v1").layers([8 * MIB; 2]);
    let crowd = lab.push(spec).await.unwrap();
    lab.shape_registry(Some(8_000_000), Direction::Up).unwrap();
    let before = lab.registry.served().await.unwrap();
    let of_both = crowd.reference();
    let both = [&holder, &friend].map(|node| node.cri_pull(&of_both));
    futures::future::try_join_all(both).await.unwrap();
    lab.shape_registry(None, Direction::Up).unwrap();
    let served = lab.registry.served().await.unwrap().since(&before).bytes();
    let copies = served as f64 / crowd.pulled_bytes() as f64;
    assert!(copies < 1.2, "{copies} copies");
    assert_eq!((refused(&holder), refused(&friend)), (0, 0));

    // containerd with another password: each request is refused once and goes to the registry.
    let outdated = guarded(&lab, "one").await;
    configure_with_pair(&lab, &outdated, "old").await;
    outdated.cri_pull(&reference).await.unwrap();
    let served = lab.registry.served().await.unwrap();
    assert_eq!(served.bytes_to(outdated.ip()), image.pulled_bytes());
    let other = outdated
        .metric("peili_unauthorized_requests_total", &[("from", "other")])
        .await
        .unwrap();
    // Once for each entry of hosts.toml that names us (2.x has four, of which one resolves tags): nothing is tried again.
    let is_1x = outdated.containerd().version().starts_with("1.");
    let entries = if is_1x { 1 } else { 4 };
    assert_eq!(other as usize, 1 + entries * image.pulled().count());
    // The metrics port is open, and the log says it once, with the cure.
    let log = fs::read_to_string(outdated.peili().log()).unwrap();
    let said = log.matches("run `peili configuration` again").count();
    assert_eq!(said, 1, "{log}");

    // Peili with another password: its peers refuse it, and its containerd is not kept from the registry.
    let stranger = guarded(&lab, "two").await;
    configure_with_pair(&lab, &stranger, "two").await;
    stranger.cri_pull(&reference).await.unwrap();
    let served = lab.registry.served().await.unwrap();
    assert_eq!(served.bytes_to(stranger.ip()), image.pulled_bytes());
    let attempts = stranger
        .metric("peili_peer_attempts_total", &[("outcome", "unauthorized")])
        .await
        .unwrap();
    assert!(attempts > 0.0);
    let log = fs::read_to_string(stranger.peili().log()).unwrap();
    assert_eq!(
        log.matches("their Secrets are not the same").count(),
        1,
        "{log}"
    );
}
