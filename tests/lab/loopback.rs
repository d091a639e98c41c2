//! The cluster that needs no root: Peilis with OCI layouts, each at its own loopback address. There is no registry
//! behind it, no DNS and no containerd; who asks a node is the test itself.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use tempfile::TempDir;

use super::http::{self, Answer};
use super::layout::Layout;
use super::peili::metric;
use super::process::{Daemon, eventually, tail, with_log};

/// Nothing is slow here but a machine that compiles beside it.
const START: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(30);
/// Images of some ten megabytes lie here, not in a tmpfs as /tmp often is.
const PARENT: &str = "/var/tmp";

pub struct Loopback {
    // Before the folder that they live in.
    nodes: Vec<LoopbackNode>,
    dir: TempDir,
}

pub struct LoopbackNode {
    name: String,
    ip: Ipv4Addr,
    ports: Ports,
    layout: Layout,
    daemon: Mutex<Option<Daemon>>,
    log: PathBuf,
}

/// The same on every node: a peer's registry is looked for at one's own port.
#[derive(Clone, Copy)]
struct Ports {
    registry: u16,
    router: u16,
    metrics: u16,
}

impl Loopback {
    /// `count` nodes with empty layouts at 127.0.0.11 and the following; none of them runs yet.
    pub fn new(count: u8) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("peili-loopback-")
            .tempdir_in(PARENT)?;
        let ips: Vec<_> = (1..=count)
            .map(|n| Ipv4Addr::new(127, 0, 0, 10 + n))
            .collect();
        let ports = Ports::free(&ips)?;
        let nodes = ips.iter().zip(1..).map(|(ip, number)| {
            let name = format!("n{number}");
            Ok(LoopbackNode {
                ip: *ip,
                ports,
                layout: Layout::create(&dir.path().join(&name))?,
                daemon: Mutex::new(None),
                log: dir.path().join(format!("{name}.log")),
                name,
            })
        });
        Ok(Self {
            nodes: nodes.collect::<Result<_>>()?,
            dir,
        })
    }

    pub fn nodes(&self) -> &[LoopbackNode] {
        &self.nodes
    }

    /// A folder beside the layouts.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.path().join(name);
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// Starts all, and returns when each is ready.
    pub async fn start(&self, peili: &Path) -> Result<()> {
        self.start_with(peili, |_| Vec::new()).await
    }

    /// The same, with more to say to each.
    pub async fn start_with(
        &self,
        peili: &Path,
        more: impl Fn(&LoopbackNode) -> Vec<String>,
    ) -> Result<()> {
        let peers = self.routers();
        for node in &self.nodes {
            node.spawn(peili, &peers, &more(node))?;
        }
        self.ready().await
    }

    /// The same, but each is told of these others, by multiaddr.
    pub async fn start_among(
        &self,
        peili: &Path,
        others: impl Fn(&LoopbackNode) -> Vec<String>,
    ) -> Result<()> {
        for node in &self.nodes {
            node.spawn(peili, &others(node), &[])?;
        }
        self.ready().await
    }

    /// Where each is found, as a multiaddr.
    pub fn routers(&self) -> Vec<String> {
        let routers = self.nodes.iter().map(LoopbackNode::router);
        routers
            .map(|at| format!("/ip4/{}/tcp/{}", at.ip(), at.port()))
            .collect()
    }

    async fn ready(&self) -> Result<()> {
        futures::future::try_join_all(self.nodes.iter().map(LoopbackNode::ready)).await?;
        Ok(())
    }
}

impl Ports {
    /// Ports that are free at all these addresses at this moment.
    fn free(ips: &[Ipv4Addr]) -> Result<Self> {
        // Held until all are found, so that they differ.
        let mut held = Vec::new();
        let mut one = || {
            for _ in 0..100 {
                let first = TcpListener::bind((ips[0], 0))?;
                let port = first.local_addr()?.port();
                let others = ips[1..].iter().map(|ip| TcpListener::bind((*ip, port)));
                if let Ok(others) = others.collect::<Result<Vec<_>, _>>() {
                    held.extend(others);
                    held.push(first);
                    return Ok(port);
                }
            }
            anyhow::bail!("no port is free at all of {ips:?}")
        };
        Ok(Self {
            registry: one()?,
            router: one()?,
            metrics: one()?,
        })
    }
}

impl LoopbackNode {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// A GET of its registry, as its containerd would ask.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        http::get_here(self.address(self.ports.registry), path).await
    }

    pub fn registry(&self) -> SocketAddr {
        self.address(self.ports.registry)
    }

    pub fn metrics(&self) -> SocketAddr {
        self.address(self.ports.metrics)
    }

    /// All of its metrics now, as Prometheus gets them.
    pub async fn metrics_page(&self) -> Result<String> {
        let answer = http::get_here(self.metrics(), "/metrics").await?;
        Ok(answer.expect(200)?.text())
    }

    /// One of its metrics now, summed over the series with these labels.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        let answer = http::get_here(self.address(self.ports.metrics), "/metrics").await?;
        Ok(metric(&answer.expect(200)?.text(), name, labels))
    }

    /// What its daemon has logged; a new one when it starts again.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// SIGSTOP, SIGCONT and the like; an error where it does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let daemon = self.daemon.lock().unwrap();
        daemon.as_ref().context("it does not run")?.signal(signal)
    }

    pub fn is_running(&self) -> bool {
        self.daemon.lock().unwrap().is_some()
    }

    /// SIGTERM; how it ended, None if it did not run.
    pub async fn stop(&self) -> Result<Option<ExitStatus>> {
        let daemon = self.daemon.lock().unwrap().take();
        match daemon {
            Some(daemon) => daemon.stop(STOP).await.map(Some),
            None => Ok(None),
        }
    }

    fn address(&self, port: u16) -> SocketAddr {
        (self.ip, port).into()
    }

    fn spawn(&self, peili: &Path, peers: &[String], more: &[String]) -> Result<()> {
        let mut command = self.command(peili, "registry", peers);
        command.args(more);
        File::create(&self.log)?;
        *self.daemon.lock().unwrap() = Some(Daemon::spawn(command, &self.name, &self.log)?);
        Ok(())
    }

    /// `registry`, or what takes the same options. `peers` are multiaddrs.
    pub fn command(&self, peili: &Path, subcommand: &str, peers: &[String]) -> Command {
        let mut command = Command::new(peili);
        command
            .args([subcommand, "--store", "oci-layout", "--oci-layout-path"])
            .arg(self.layout.dir())
            .args(["--bootstrap-kind", "static", "--static-bootstrap-peers"])
            .args(peers);
        for (flag, port) in [
            ("--registry-addr", self.ports.registry),
            ("--router-addr", self.ports.router),
            ("--metrics-addr", self.ports.metrics),
        ] {
            command.args([flag, &self.address(port).to_string()]);
        }
        // Loopback is announced only when it is named.
        command.args(["--advertise-addr", &self.ip.to_string()]);
        command
    }

    pub fn router(&self) -> SocketAddr {
        self.address(self.ports.router)
    }

    async fn ready(&self) -> Result<()> {
        let mut last = String::from("nothing was heard");
        let ready = eventually("readiness", START, async || {
            if let Some(daemon) = self.daemon.lock().unwrap().as_mut() {
                daemon.check()?;
            }
            match self.get("/readyz").await {
                Ok(answer) if answer.status.is_success() => return Ok(Some(())),
                Ok(answer) => last = answer.text(),
                Err(error) => last = format!("{error:#}"),
            }
            Ok(None)
        })
        .await;
        let ready = ready.with_context(|| format!("{}: last: {last}", self.name));
        with_log(ready, &self.log)
    }
}

impl Drop for LoopbackNode {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.name, tail(&self.log, 40));
        }
    }
}
