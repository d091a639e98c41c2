//! The cluster's name server: dnsmasq with names that can be changed while it runs.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use super::net::Netns;
use super::process::{Daemon, eventually, find};
use super::workspace::Workspace;

/// Answers like a headless service: the addresses of all nodes, in changing order.
pub const PEERS: &str = "peers.lab.test";

pub struct Dns {
    // First, so that it ends before its namespace does.
    daemon: Daemon,
    _netns: Netns,
    ip: Ipv4Addr,
    hosts: PathBuf,
    names: Mutex<BTreeMap<String, Vec<IpAddr>>>,
}

impl Dns {
    pub async fn start(workspace: &Workspace, netns: Netns, ip: Ipv4Addr) -> Result<Self> {
        let dir = workspace.folder("dns")?;
        let hosts = dir.join("hosts");
        std::fs::write(&hosts, "")?;
        let mut command = netns.command(find("dnsmasq").context("dnsmasq")?);
        command
            .args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--pid-file",
            ])
            .args(["--no-resolv", "--no-hosts", "--local=/test/", "--user=root"])
            // Nobody may keep an answer for longer than a test wants to wait for the next.
            .args(["--local-ttl=1", "--bind-interfaces", "--log-facility=-"])
            .arg(format!("--listen-address={ip}"))
            .arg(format!("--addn-hosts={}", hosts.display()));
        let this = Self {
            daemon: Daemon::spawn(command, "dnsmasq", &dir.join("log"))?,
            _netns: netns,
            ip,
            hosts,
            names: Mutex::default(),
        };
        this.read_again(0).await?;
        Ok(this)
    }

    pub fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    pub fn resolv_conf(&self) -> String {
        format!(
            "nameserver {}\nsearch lab.test\noptions timeout:1 attempts:2\n",
            self.ip
        )
    }

    /// From when this returns, `name` has exactly these addresses.
    pub async fn set(&self, name: &str, ips: &[Ipv4Addr]) -> Result<()> {
        let ips: Vec<IpAddr> = ips.iter().map(|ip| (*ip).into()).collect();
        self.set_both(name, &ips).await
    }

    /// The same for addresses of both families.
    pub async fn set_both(&self, name: &str, ips: &[IpAddr]) -> Result<()> {
        self.change(|names| {
            names.insert(name.to_owned(), ips.to_vec());
        })
        .await
    }

    pub async fn add(&self, name: &str, ip: Ipv4Addr) -> Result<()> {
        self.change(|names| names.entry(name.to_owned()).or_default().push(ip.into()))
            .await
    }

    pub async fn remove(&self, name: &str, ip: Ipv4Addr) -> Result<()> {
        self.change(|names| {
            if let Some(ips) = names.get_mut(name) {
                ips.retain(|known| *known != IpAddr::V4(ip));
            }
        })
        .await
    }

    /// From now on questions get no answer, and nobody is refused.
    pub fn hang(&self) -> Result<()> {
        self.daemon.signal(Signal::STOP)
    }

    /// The end of that.
    pub fn go_on(&self) -> Result<()> {
        self.daemon.signal(Signal::CONT)
    }

    async fn change(&self, edit: impl FnOnce(&mut BTreeMap<String, Vec<IpAddr>>)) -> Result<()> {
        let seen = {
            let mut names = self.names.lock().unwrap();
            edit(&mut names);
            let mut lines = String::new();
            for (name, ips) in names.iter() {
                for ip in ips {
                    writeln!(lines, "{ip} {name}")?;
                }
            }
            std::fs::write(&self.hosts, lines)?;
            let seen = self.reads()?;
            self.daemon.signal(Signal::HUP)?;
            seen
        };
        self.read_again(seen).await
    }

    /// dnsmasq says in its log when it has read the file.
    async fn read_again(&self, seen: usize) -> Result<()> {
        let deadline = Duration::from_secs(5);
        eventually("dnsmasq reading its names", deadline, async || {
            Ok((self.reads()? > seen).then_some(()))
        })
        .await
    }

    fn reads(&self) -> Result<usize> {
        let log = std::fs::read_to_string(self.daemon.log())?;
        let hosts = self.hosts.display().to_string();
        Ok(log
            .lines()
            .filter(|line| line.contains(" read ") && line.contains(&hosts))
            .count())
    }
}
