//! Who answers, and what it costs him: Peili, nginx, haproxy, the bare loop, or whatever BENCH_PEER names.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::lab::Node;
use crate::lab::net::Entrance;
use crate::lab::process::{Daemon, eventually, find, processes, with_log};

const START: Duration = Duration::from_secs(20);
/// One each; they share a node.
const NGINX: u16 = 8081;
const PLAIN: u16 = 8082;
const OTHER: u16 = 8083;
const HAPROXY: u16 = 8084;

pub struct Server {
    pub name: String,
    pub at: SocketAddr,
    /// How it is asked for a blob: by the registry's path, or by the file's.
    by_file: bool,
    /// Whether it has what it is asked for, and is asked as nodes ask each other.
    pub holds: bool,
    pid: u32,
    /// None: the lab's own.
    daemon: Option<Daemon>,
    entrance: Entrance,
}

impl Server {
    /// The node's own.
    pub fn peili(node: &Node, holds: bool) -> Option<Self> {
        Some(Self {
            name: "peili".to_owned(),
            at: node.peili().registry(),
            by_file: false,
            holds,
            pid: node.peili().pid()?,
            daemon: None,
            entrance: node.netns().entrance(),
        })
    }

    /// The content as plain files, by sendfile.
    pub fn nginx(node: &Node, scratch: &Path) -> Result<Self> {
        let content = node.containerd().content();
        let site = format!(
            "server {{ listen {NGINX}; location / {{ root {}; }} }}",
            content.display()
        );
        Self::run_nginx("nginx", node, scratch, &site)
    }

    /// A proxy that hands on what comes, without keeping it.
    pub fn nginx_proxy(node: &Node, scratch: &Path, upstream: SocketAddr) -> Result<Self> {
        let site = format!(
            "upstream holder {{ server {upstream}; keepalive 64; }}
             server {{ listen {NGINX}; location / {{
                 proxy_pass http://holder; proxy_http_version 1.1; proxy_set_header Connection \"\";
                 proxy_buffering on; proxy_max_temp_file_size 0; proxy_buffers 8 256k; proxy_buffer_size 256k;
                 proxy_busy_buffers_size 512k; }} }}"
        );
        let mut server = Self::run_nginx("nginx-proxy", node, scratch, &site)?;
        (server.by_file, server.holds) = (false, false);
        Ok(server)
    }

    fn run_nginx(name: &str, node: &Node, scratch: &Path, site: &str) -> Result<Self> {
        let nginx = find("nginx").context("nginx is missing; Debian's package is nginx-light")?;
        let dir = scratch.join(name);
        std::fs::create_dir_all(&dir)?;
        let config = dir.join("nginx.conf");
        // What it has of its own accord, but for two cores' worth of workers, sendfile and keep-alive without an end. It
        // writes no access log; neither does Peili for other nodes.
        std::fs::write(
            &config,
            format!(
                "user root; worker_processes auto; daemon off; pid {dir}/pid; error_log {dir}/error.log;
                 events {{ worker_connections 1024; }}
                 http {{ access_log off; sendfile on; tcp_nopush on; tcp_nodelay on; keepalive_requests 1000000000;
                 client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;
                 uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
                 {site} }}",
                dir = dir.display()
            ),
        )?;
        let mut command = node.netns().command(nginx);
        command.arg("-c").arg(&config).arg("-p").arg(&dir);
        Self::spawn(name, node, scratch, command, NGINX, true)
    }

    /// A proxy that splices where it can.
    pub fn haproxy(node: &Node, scratch: &Path, upstream: SocketAddr) -> Result<Self> {
        let haproxy =
            find("haproxy").context("haproxy is missing; Debian's package has its name")?;
        let config = scratch.join("haproxy.cfg");
        std::fs::write(
            &config,
            format!(
                "global\n    maxconn 4096\n\
                 defaults\n    mode http\n    option splice-auto\n    timeout connect 5s\n    timeout client 30s\n    \
                 timeout server 30s\n\
                 frontend here\n    bind :{HAPROXY}\n    default_backend holder\n\
                 backend holder\n    server holder {upstream}\n"
            ),
        )?;
        let mut command = node.netns().command(haproxy);
        command.arg("-db").arg("-f").arg(&config);
        Self::spawn("haproxy", node, scratch, command, HAPROXY, false)
    }

    /// The bare loop.
    pub fn plain(node: &Node, scratch: &Path) -> Result<Self> {
        let mut command = node.netns().command(std::env::current_exe()?);
        command.arg("plain").arg(node.containerd().content());
        command.arg(PLAIN.to_string());
        Self::spawn("sendfile", node, scratch, command, PLAIN, true)
    }

    /// Another mirror.
    pub fn other(node: &Node, scratch: &Path, shell: &str) -> Result<Self> {
        let mut command = node.netns().command("/bin/sh");
        command.args(["-c", &format!("exec {shell}")]);
        command
            .env("PORT", OTHER.to_string())
            .env("CONTAINERD_SOCK", node.containerd().socket())
            .env("CONTENT_PATH", node.containerd().content());
        let mut server = Self::spawn("BENCH_PEER", node, scratch, command, OTHER, false)?;
        server.holds = true;
        Ok(server)
    }

    fn spawn(
        name: &str,
        node: &Node,
        scratch: &Path,
        command: Command,
        port: u16,
        by_file: bool,
    ) -> Result<Self> {
        let daemon = Daemon::spawn(command, name, &scratch.join(format!("{name}.log")))?;
        Ok(Self {
            name: name.to_owned(),
            at: (node.ip(), port).into(),
            by_file,
            holds: by_file,
            pid: daemon.pid(),
            daemon: Some(daemon),
            entrance: node.netns().entrance(),
        })
    }

    /// Returns when it takes connections.
    pub async fn ready(&mut self) -> Result<()> {
        let (at, entrance) = (self.at, &self.entrance);
        let Some(daemon) = &mut self.daemon else {
            return Ok(());
        };
        let log = daemon.log().to_owned();
        let ready = eventually("a connection", START, async || {
            daemon.check()?;
            Ok(entrance.connect(at).await.ok().map(drop))
        })
        .await;
        with_log(ready, &log)
    }

    /// What to ask it for.
    pub fn path(&self, path: &str, digest: &str) -> String {
        match self.by_file {
            true => format!("/blobs/{}", digest.replace(':', "/")),
            false => path.to_owned(),
        }
    }

    /// User and system time so far, its children's too.
    pub fn cpu(&self) -> Result<Duration> {
        let all = processes()?;
        let children = all.iter().filter(|(_, parent)| *parent == self.pid);
        let ticks = children
            .map(|(pid, _)| *pid)
            .chain([self.pid])
            .map(ticks)
            .sum::<u64>();
        let per_second = rustix::param::clock_ticks_per_second();
        Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
    }
}

/// Of one process; 0 when it is gone.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The program's name may hold anything; what follows its last bracket is regular.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let nth = |nth| rest.split_whitespace().nth(nth)?.parse::<u64>().ok();
    nth(11).unwrap_or(0) + nth(12).unwrap_or(0)
}
