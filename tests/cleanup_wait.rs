//! The uninstalling hook as it is run: `cleanup --addr` on the nodes, and `cleanup-wait`, which asks a real name server.

#[allow(dead_code, reason = "each test uses its part of the lab")]
mod lab;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lab::net::RESOLV_CONF;
use lab::process::{Daemon, eventually, find, output};
use lab::{Lab, Node, NodeOptions, lab_or_skip};

const PEILI: &str = env!("CARGO_BIN_EXE_peili");
const NAME: &str = "cleanup.lab.test";
/// Anything that merely has to happen.
const AT_ALL: Duration = Duration::from_secs(30);

/// The pod of the hook: one process in the registry's namespace, with the cluster's name server.
struct Hook {
    daemon: Daemon,
    log: PathBuf,
}

impl Hook {
    fn start(lab: &Lab, more: &[&str]) -> Self {
        let dir = lab.folder("hook").unwrap();
        let (resolv_conf, log) = (dir.join("resolv.conf"), dir.join("log"));
        std::fs::write(&resolv_conf, lab.dns().resolv_conf()).unwrap();
        let _ = std::fs::remove_file(&log);
        let binds = [(resolv_conf.as_path(), RESOLV_CONF)];
        let netns = &lab.registry.netns;
        let mut command = netns.command_over(&binds, PEILI.as_ref());
        command
            .args(["cleanup-wait", "--probe-endpoint", &format!("{NAME}:8080")])
            .args(["--period", "100ms"])
            .args(more);
        Self {
            daemon: Daemon::spawn(command, "cleanup-wait", &log).unwrap(),
            log,
        }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    async fn says(&self, what: &str) {
        eventually(what, AT_ALL, async || {
            Ok(self.said().contains(what).then_some(()))
        })
        .await
        .unwrap();
    }

    /// Its exit code, when it has ended by itself.
    async fn ends(mut self) -> (Option<i32>, String) {
        eventually("its end", AT_ALL, async || {
            Ok(self.daemon.check().is_err().then_some(()))
        })
        .await
        .unwrap();
        let said = self.said();
        let status = self.daemon.stop(AT_ALL).await.unwrap();
        (status.code(), said)
    }
}

/// The node's pod: its hosts.toml is put back, and then it says so.
fn clean_up(node: &Node) -> Daemon {
    let mut command = node.netns().command(PEILI);
    command
        .args([
            "cleanup",
            "--addr",
            ":8080",
            "--containerd-registry-config-path",
        ])
        .arg(node.containerd().certs_d());
    Daemon::spawn(command, "cleanup", &node.dir().join("cleanup.log")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_address_of_every_node_is_waited_for() {
    let lab = lab_or_skip!();
    let first = lab.node(NodeOptions::default()).await.unwrap();
    let second = lab.node(NodeOptions::default()).await.unwrap();
    let v6: IpAddr = "fd00:5::2".parse().unwrap();
    let mut command = second.netns().command(find("ip").unwrap());
    command.args(["addr", "add", "fd00:5::2/64", "dev", "eth0", "nodad"]);
    output(command).await.unwrap();
    let mut command = lab.registry.netns.command(find("ip").unwrap());
    command.args(["addr", "add", "fd00:5::9/64", "dev", "eth0", "nodad"]);
    output(command).await.unwrap();
    first
        .peili()
        .configure(first.netns(), first.containerd(), &lab.registry.host(), &[])
        .await
        .unwrap();

    // Nobody is there yet, which is not the same as done.
    let hook = Hook::start(&lab, &[]);
    hook.says(&format!("{NAME}: has no address yet")).await;

    // One is done, the other has not begun.
    let both: [IpAddr; 3] = [first.ip().into(), second.ip().into(), v6];
    lab.dns().set_both(NAME, &both).await.unwrap();
    let _first = clean_up(&first);
    hook.says(&format!("{}:8080: done (1 of 3)", first.ip()))
        .await;
    hook.says(&format!("[{v6}]:8080: not yet: Connection refused"))
        .await;
    let configured = first.containerd().certs_d().join("_default");
    assert!(!configured.exists(), "it answers when it is done");

    let _second = clean_up(&second);
    let (code, said) = hook.ends().await;

    assert_eq!(code, Some(0), "{said}");
    let last = format!("{NAME}: all 3 addresses have answered 3 times in a row");
    assert_eq!(said.lines().last(), Some(last.as_str()), "{said}");
    let refused = said.matches("not yet: Connection refused").count();
    // Each of the three addresses once at the most: one line for a change, not for a period.
    assert!(refused <= 3, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_deadline_the_missing_are_named_and_sigterm_ends_it_at_once() {
    let lab = lab_or_skip!();
    let node = lab.node(NodeOptions::default()).await.unwrap();
    let [a, b, c, _] = node.ip().octets();
    let dead: IpAddr = [a, b, c, 200].into();
    lab.registry.netns.lose([a, b, c, 200].into()).unwrap();
    let both = [node.ip().into(), dead];
    lab.dns().set_both(NAME, &both).await.unwrap();
    let _node = clean_up(&node);

    let begun = Instant::now();
    let (code, said) = Hook::start(&lab, &["--timeout", "5s"]).ends().await;

    assert_eq!(code, Some(69), "{said}");
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
    let error = said.lines().last().unwrap();
    let missing =
        format!("not all nodes are cleaned up after 5s: {dead}:8080 (no answer within 2s)");
    assert!(error.contains(&missing), "{said}");

    let hook = Hook::start(&lab, &[]);
    hook.says("not yet: no answer within 2s").await;
    let begun = Instant::now();
    let status = hook.daemon.stop(AT_ALL).await.unwrap();
    assert_eq!(status.code(), Some(143));
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );

    // The name server is gone: that is what is missing.
    lab.dns().hang().unwrap();
    let (code, said) = Hook::start(&lab, &["--timeout", "1s"]).ends().await;
    assert_eq!(code, Some(69));
    assert!(
        said.contains(&format!("{NAME} is not resolved yet")),
        "{said}"
    );
}
