//! A containerd of its own for a node: every path of it lies in the node's folder, its network is the node's.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::cri;
use super::net::{Netns, RESOLV_CONF};
use super::process::{Daemon, eventually, find, run, with_log};

/// 1.6 needs 0.3 s here; this is for a machine that compiles at the same time.
const START: Duration = Duration::from_secs(30);
const RUN: &str = "/run/containerd";
const STOP: Duration = Duration::from_secs(15);

pub struct Containerd {
    daemon: Mutex<Option<Daemon>>,
    binary: PathBuf,
    version: String,
    dir: PathBuf,
}

/// What a containerd can be told at its start.
pub struct Settings<'a> {
    pub snapshotter: &'a str,
    pub discard_unpacked_layers: bool,
    /// Host and port, over plain HTTP.
    pub registry: &'a str,
}

impl Containerd {
    pub fn new(binary: PathBuf, dir: PathBuf, settings: &Settings<'_>) -> Result<Self> {
        let said = run(binary.to_str().context("path")?, &["--version"])?;
        let version = version_in(&said).with_context(|| format!("a version in {said:?}"))?;
        for folder in [
            "root",
            "state",
            "run",
            "certs.d",
            "cni/net.d",
            "cni/bin",
            "opt",
        ] {
            std::fs::create_dir_all(dir.join(folder))?;
        }
        let this = Self {
            daemon: Mutex::new(None),
            binary,
            version,
            dir,
        };
        let config = if this.version.starts_with("1.") {
            this.config_2(settings)?
        } else {
            this.config_3(settings)?
        };
        std::fs::write(this.dir.join("config.toml"), config)?;
        // containerd 1.6 and 1.7 throw away a hosts.toml without a [host] table, so the registry is named twice.
        let registry = format!("http://{}", settings.registry);
        let hosts = this.certs_d().join(settings.registry);
        std::fs::create_dir_all(&hosts)?;
        std::fs::write(
            hosts.join("hosts.toml"),
            format!(
                "server = \"{registry}\"\n[host.\"{registry}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
            ),
        )?;
        Ok(this)
    }

    /// `1.6.20`
    pub fn version(&self) -> &str {
        &self.version
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }

    /// The folder with a hosts.toml for each registry.
    pub fn certs_d(&self) -> PathBuf {
        self.dir.join("certs.d")
    }

    pub fn content(&self) -> PathBuf {
        self.dir.join("root/io.containerd.content.v1.content")
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join("containerd.log")
    }

    /// Its own ctr. In the network of the node, because ctr 1.x pulls by itself and not through the daemon; and among
    /// the mounts of the daemon, because the two meet in FIFOs in /run/containerd.
    pub fn ctr(&self, netns: &Netns) -> Command {
        let ctr = self.binary.with_file_name("ctr");
        let mut command = match self.pid() {
            Some(pid) => {
                let mut command = netns.command("nsenter");
                command
                    .arg(format!("--mount=/proc/{pid}/ns/mnt"))
                    .arg("--")
                    .arg(ctr);
                command
            }
            None => netns.command(ctr),
        };
        command
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", "k8s.io"]);
        command
    }

    /// Starts it on what an earlier one left, and returns when the CRI answers.
    pub async fn start(&self, netns: &Netns, resolv_conf: &Path) -> Result<()> {
        ensure!(
            self.daemon.lock().unwrap().is_none(),
            "containerd runs already"
        );
        // No setting moves the shims' sockets and runc's state, where containers of one id on two nodes would meet.
        std::fs::create_dir_all(RUN)?;
        let binds = [(resolv_conf, RESOLV_CONF), (&self.dir.join("run"), RUN)];
        let mut command = netns.command_over(&binds, &self.binary);
        // Its shim is looked for in PATH, and must be of the same version.
        let mut path = self.binary.parent().context("path")?.as_os_str().to_owned();
        path.push(":/usr/sbin:/usr/bin:/sbin:/bin");
        command
            .arg("--config")
            .arg(self.dir.join("config.toml"))
            .env("PATH", path);
        let daemon = Daemon::spawn(command, "containerd", &self.log())?;
        *self.daemon.lock().unwrap() = Some(daemon);
        let up = eventually("containerd's CRI", START, async || {
            if let Some(daemon) = self.daemon.lock().unwrap().as_mut() {
                daemon.check()?;
            }
            Ok(cri::version(&self.socket()).await.ok().map(drop))
        })
        .await;
        with_log(up, &self.log())
    }

    /// SIGTERM; containers go on, as they do when a node's containerd is upgraded.
    pub async fn stop(&self) -> Result<Option<ExitStatus>> {
        let daemon = self.daemon.lock().unwrap().take();
        match daemon {
            Some(daemon) => daemon.stop(STOP).await.map(Some),
            None => Ok(None),
        }
    }

    /// SIGKILL, whatever it is doing.
    pub fn kill(&self) {
        self.daemon.lock().unwrap().take();
    }

    pub fn pid(&self) -> Option<u32> {
        self.daemon.lock().unwrap().as_ref().map(Daemon::pid)
    }

    fn config_head(&self, format: u32, disabled: &[&str]) -> Result<String> {
        let dir = self.dir.display();
        let mut toml = String::new();
        writeln!(toml, "version = {format}")?;
        writeln!(toml, "root = \"{dir}/root\"\nstate = \"{dir}/state\"")?;
        // They need devices or a collector, or complain at every start.
        writeln!(toml, "disabled_plugins = {disabled:?}")?;
        writeln!(toml, "[grpc]\n  address = \"{dir}/containerd.sock\"")?;
        writeln!(
            toml,
            "[plugins.\"io.containerd.internal.v1.opt\"]\n  path = \"{dir}/opt\""
        )?;
        // 1.6 knows neither.
        if !self.version.starts_with("1.6.") {
            writeln!(
                toml,
                "[plugins.\"io.containerd.nri.v1.nri\"]\n  disable = true\n  socket_path = \"{dir}/nri.sock\"\n\
                 [plugins.\"io.containerd.transfer.v1.local\"]\n  config_path = \"{dir}/certs.d\""
            )?;
        }
        Ok(toml)
    }

    /// containerd 1.x. (No CAP_SYS_RESOURCE in many CI machines: without restrict_oom_score_adj runc dies there.)
    fn config_2(&self, settings: &Settings<'_>) -> Result<String> {
        let mut toml = self.config_head(
            2,
            &[
                "io.containerd.snapshotter.v1.aufs",
                "io.containerd.snapshotter.v1.btrfs",
                "io.containerd.snapshotter.v1.devmapper",
                "io.containerd.snapshotter.v1.zfs",
                "io.containerd.tracing.processor.v1.otlp",
                "io.containerd.internal.v1.tracing",
            ],
        )?;
        let dir = self.dir.display();
        let Settings {
            snapshotter,
            discard_unpacked_layers,
            registry,
        } = settings;
        write!(
            toml,
            r#"[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{registry}/pause:1"
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{dir}/cni/bin"
    conf_dir = "{dir}/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
    discard_unpacked_layers = {discard_unpacked_layers}
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{dir}/certs.d"
"#
        )?;
        Ok(toml)
    }

    /// containerd 2.x.
    fn config_3(&self, settings: &Settings<'_>) -> Result<String> {
        let mut toml = self.config_head(
            3,
            &[
                "io.containerd.snapshotter.v1.blockfile",
                "io.containerd.snapshotter.v1.btrfs",
                "io.containerd.snapshotter.v1.devmapper",
                "io.containerd.snapshotter.v1.erofs",
                "io.containerd.snapshotter.v1.zfs",
                "io.containerd.tracing.processor.v1.otlp",
                "io.containerd.internal.v1.tracing",
            ],
        )?;
        let dir = self.dir.display();
        let Settings {
            snapshotter,
            discard_unpacked_layers,
            registry,
        } = settings;
        write!(
            toml,
            r#"[plugins."io.containerd.cri.v1.images"]
  snapshotter = "{snapshotter}"
  discard_unpacked_layers = {discard_unpacked_layers}
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{registry}/pause:1"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "{dir}/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{dir}/cni/bin"]
    conf_dir = "{dir}/cni/net.d"
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_address = "127.0.0.1"
"#
        )?;
        Ok(toml)
    }
}

/// Which containerd a node gets: the one asked for, the one that the environment names, or the machine's.
pub fn choose(binary: Option<&Path>, version: Option<&str>) -> Result<PathBuf> {
    if let Some(binary) = binary {
        return Ok(binary.to_owned());
    }
    if let Some(version) = version {
        return unpacked(version).with_context(|| {
            format!("containerd {version} was not unpacked; `make containerds` does it")
        });
    }
    match std::env::var_os("PEILI_TEST_CONTAINERD") {
        Some(binary) => Ok(binary.into()),
        None => find("containerd").context("containerd is not installed"),
    }
}

/// A containerd that `make containerds` has unpacked beside the build: `1.7` or `2.x`.
pub fn unpacked(version: &str) -> Option<PathBuf> {
    // target/debug/deps/test-0123, target/debug/examples/demo
    let target = std::env::current_exe().ok()?.ancestors().nth(3)?.to_owned();
    let binary = target.join(format!("containerds/{version}/usr/bin/containerd"));
    binary.is_file().then_some(binary)
}

/// `containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u1`, or `... v2.1.9 <commit>`
fn version_in(said: &str) -> Option<String> {
    said.split_whitespace().find_map(|word| {
        let word = word.trim_start_matches('v');
        let end = word
            .find(|c: char| c != '.' && !c.is_ascii_digit())
            .unwrap_or(word.len());
        let number = &word[..end];
        (number.matches('.').count() == 2).then(|| number.to_owned())
    })
}
