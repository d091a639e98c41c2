//! The node's Peili: what its pod would run, first `configuration`, then `registry`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::containerd::Containerd;
use super::dns::PEERS;
use super::http;
use super::net::{Netns, RESOLV_CONF};
use super::process::{Daemon, eventually, output, with_log};

pub const REGISTRY_PORT: u16 = 5000;
pub const METRICS_PORT: u16 = 9090;
/// As long as its chart's startup probe would look at it, shortened: nothing here is slow.
const START: Duration = Duration::from_secs(30);
/// Longer than its own drain; who needs more would meet the kubelet's SIGKILL.
const STOP: Duration = Duration::from_secs(30);

/// What differs from the lab's way to run it.
#[derive(Clone, Debug, Default)]
pub struct PeiliOptions {
    args: Vec<(String, String)>,
    env: Vec<(String, String)>,
    unconfigured: bool,
    in_a_pod: bool,
}

/// A pod's world, as far as mounts and privileges go: the directory of containerd's socket, the content directory
/// (read-only) and the data directory at places of their own, what lies where containerd has it out of sight, the root
/// read-only, uid 0 without any capability.
const POD: &str = r#"
    mount -t tmpfs tmpfs /mnt
    mkdir /mnt/run /mnt/content /mnt/data
    mount --bind "$1" /mnt/run
    mount --bind "$2" /mnt/content
    mount -o remount,bind,ro /mnt/content
    mount --bind "$3" /mnt/data
    mount -t tmpfs -o ro tmpfs /var/tmp
    mount -o remount,bind,ro /
    shift 3
    exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs -- "$@"
"#;

impl PeiliOptions {
    /// In mounts and with privileges like those of the DaemonSet's pod.
    pub fn in_a_pod(mut self) -> Self {
        self.in_a_pod = true;
        self.arg("--containerd-sock", "/mnt/run/containerd.sock")
            .arg("--containerd-content-path", "/mnt/content")
            .arg("--data-dir", "/mnt/data")
    }

    /// An option of `registry`, instead of the lab's value if it has one: `.arg("--router-addr", ":6001")`.
    pub fn arg(mut self, flag: &str, value: &str) -> Self {
        self.args.push((flag.to_owned(), value.to_owned()));
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Leave hosts.toml as it is.
    pub fn unconfigured(mut self) -> Self {
        self.unconfigured = true;
        self
    }

    pub fn configures(&self) -> bool {
        !self.unconfigured
    }
}

pub struct Peili {
    daemon: Mutex<Option<Daemon>>,
    binary: PathBuf,
    dir: PathBuf,
    ip: Ipv4Addr,
}

impl Peili {
    pub fn new(binary: PathBuf, dir: PathBuf, ip: Ipv4Addr) -> Self {
        Self {
            daemon: Mutex::new(None),
            binary,
            dir,
            ip,
        }
    }

    pub fn registry(&self) -> SocketAddr {
        (self.ip, REGISTRY_PORT).into()
    }

    pub fn metrics(&self) -> SocketAddr {
        (self.ip, METRICS_PORT).into()
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join("peili.log")
    }

    /// Its `--data-dir`.
    pub fn data(&self) -> PathBuf {
        self.dir.join("peili-data")
    }

    pub fn pid(&self) -> Option<u32> {
        self.daemon.lock().unwrap().as_ref().map(Daemon::pid)
    }

    /// Runs a subcommand that ends by itself; its standard output.
    pub async fn run(&self, netns: &Netns, args: &[&str]) -> Result<String> {
        let mut command = netns.command(&self.binary);
        command.args(args);
        output(command).await
    }

    /// Makes containerd, which must run, ask this node's Peili first for images of `registry`. `more` are options and their
    /// values, instead of the lab's value where it has one.
    pub async fn configure(
        &self,
        netns: &Netns,
        containerd: &Containerd,
        registry: &str,
        more: &[&str],
    ) -> Result<()> {
        let target = format!("http://{}", self.registry());
        let registry = format!("http://{registry}");
        let certs_d = containerd.certs_d().display().to_string();
        let socket = containerd.socket().display().to_string();
        let usual = [
            ["--containerd-sock", &socket],
            ["--containerd-registry-config-path", &certs_d],
            ["--mirror-targets", &target],
            ["--mirrored-registries", &registry],
        ];
        let usual = usual.iter().filter(|[flag, _]| !more.contains(flag));
        let args: Vec<&str> = std::iter::once("configuration")
            .chain(usual.flatten().copied())
            .chain(more.iter().copied())
            .collect();
        self.run(netns, &args).await.map(drop)
    }

    /// Starts it without waiting for anything.
    pub fn spawn(
        &self,
        netns: &Netns,
        resolv_conf: &Path,
        containerd: &Containerd,
        options: &PeiliOptions,
    ) -> Result<()> {
        ensure!(self.daemon.lock().unwrap().is_none(), "peili runs already");
        let mut command = self.command(netns, resolv_conf, containerd, options, None)?;
        command.arg("registry");
        self.tell(&mut command, containerd, options);
        *self.daemon.lock().unwrap() = Some(Daemon::spawn(command, "peili", &self.log())?);
        Ok(())
    }

    /// `peili doctor` with the options of `registry` and some of its own, ready to be run; by a shell's script, where one
    /// is given.
    pub fn doctor(
        &self,
        netns: &Netns,
        resolv_conf: &Path,
        containerd: &Containerd,
        options: &PeiliOptions,
        (more, script): (&[&str], Option<&str>),
    ) -> Result<Command> {
        let mut command = self.command(netns, resolv_conf, containerd, options, script)?;
        command.arg("doctor");
        self.tell(&mut command, containerd, options);
        command.args(more);
        Ok(command)
    }

    /// The program in its world, without an argument.
    fn command(
        &self,
        netns: &Netns,
        resolv_conf: &Path,
        containerd: &Containerd,
        options: &PeiliOptions,
        script: Option<&str>,
    ) -> Result<Command> {
        let data = self.data();
        std::fs::create_dir_all(&data)?;
        let resolv_conf = [(resolv_conf, RESOLV_CONF)];
        if let Some(script) = script {
            let mut command = netns.command_over(&resolv_conf, Path::new("/bin/sh"));
            command.args(["-ec", script, "sh"]).arg(&self.binary);
            return Ok(command);
        }
        if !options.in_a_pod {
            return Ok(netns.command_over(&resolv_conf, &self.binary));
        }
        let socket = containerd.socket();
        let mut command = netns.command_over(&resolv_conf, Path::new("/bin/sh"));
        command.args(["-ec", POD, "pod"]);
        command.arg(socket.parent().context("the socket's directory")?);
        command
            .arg(containerd.content())
            .arg(&data)
            .arg(&self.binary);
        Ok(command)
    }

    /// The options, the lab's and the test's.
    fn tell(&self, command: &mut Command, containerd: &Containerd, options: &PeiliOptions) {
        let usual = [
            ("--bootstrap-kind", "dns".to_owned()),
            ("--dns-bootstrap-domain", PEERS.to_owned()),
            ("--router-addr", ":5001".to_owned()),
            ("--registry-addr", format!(":{REGISTRY_PORT}")),
            ("--metrics-addr", format!(":{METRICS_PORT}")),
            ("--advertise-addr", self.ip.to_string()),
            ("--containerd-namespace", "k8s.io".to_owned()),
            (
                "--containerd-sock",
                containerd.socket().display().to_string(),
            ),
            (
                "--containerd-content-path",
                containerd.content().display().to_string(),
            ),
            ("--data-dir", self.data().display().to_string()),
        ];
        for (flag, value) in &usual {
            if !options.args.iter().any(|(other, _)| other == flag) {
                command.args([flag, value.as_str()]);
            }
        }
        for (flag, value) in &options.args {
            command.args([flag, value]);
        }
        command.envs(options.env.iter().map(|(name, value)| (name, value)));
    }

    /// Returns when /readyz says 200; an error as soon as the process has ended.
    pub async fn ready(&self, netns: &Netns) -> Result<()> {
        let mut last = String::from("nothing was heard");
        let ready = eventually("peili's readiness", START, async || {
            if let Some(daemon) = self.daemon.lock().unwrap().as_mut() {
                daemon.check()?;
            }
            match http::get(netns, self.registry(), "/readyz").await {
                Ok(answer) if answer.status.is_success() => return Ok(Some(())),
                Ok(answer) => last = answer.text(),
                Err(error) => last = format!("{error:#}"),
            }
            Ok(None)
        })
        .await;
        with_log(ready.with_context(|| format!("last: {last}")), &self.log())
    }

    /// SIGTERM; how it ended, None if it did not run.
    pub async fn stop(&self) -> Result<Option<ExitStatus>> {
        let daemon = self.daemon.lock().unwrap().take();
        match daemon {
            Some(daemon) => daemon.stop(STOP).await.map(Some),
            None => Ok(None),
        }
    }

    /// SIGKILL.
    pub fn kill(&self) {
        self.daemon.lock().unwrap().take();
    }
}

/// The sum over all series of `name` that carry these labels, in the Prometheus text format.
pub fn metric(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    text.lines()
        .filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (found, with) = series.split_once('{').unwrap_or((series, ""));
            let has =
                |(label, value): &(&str, &str)| with.contains(&format!("{label}=\"{value}\""));
            (found == name && labels.iter().all(has)).then(|| value.parse().unwrap_or(0.0))
        })
        .sum::<f64>()
}
