//! Network namespaces: a bridge in one of its own, everybody else on it by a veth pair, nothing routed out.
//!
//! A socket stays in the namespace in which it was made. So this process reaches into a namespace by a short-lived
//! thread that enters it, makes the socket there and hands it over.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::{TcpListener, TcpStream};

use super::process::{cgroups_of, find, lives, processes, run};

const BRIDGE: &str = "br0";
/// Everybody's end of the veth pair; the other end, on the bridge, is called as its owner.
const LINK: &str = "eth0";

pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Which way bytes flow, as seen from the one whose link it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Up,
    Down,
    Both,
}

/// A network namespace; it goes, with all who live in it, when this is dropped.
pub struct Netns {
    name: String,
}

impl Netns {
    fn create(name: String) -> Result<Self> {
        run("ip", &["netns", "add", &name])?;
        let this = Self { name };
        run("ip", &["-n", &this.name, "link", "set", "lo", "up"])?;
        this.control_congestion()?;
        Ok(this)
    }

    /// As the distributions of Kubernetes nodes have it, whatever this machine's kernel is built with: between links with the
    /// short queue of a switch, BBR gave one of a registry's three streams 44 MB/s and the others 2, and a node whose
    /// link was full sent 4 MB/s (measured). `PEILI_TEST_CONGESTION=bbr` shows what comes of it.
    ///
    /// Where a namespace may not have CUBIC it has Reno, which is always allowed: over ways as short as these CUBIC grows as
    /// Reno does (RFC 9438, section 4.3).
    fn control_congestion(&self) -> Result<()> {
        let wanted = match std::env::var("PEILI_TEST_CONGESTION") {
            Ok(wanted) => vec![wanted],
            Err(_) => ["cubic", "reno"].map(str::to_owned).to_vec(),
        };
        for name in &wanted {
            if self.is_controlled_by(name)? {
                return Ok(());
            }
        }
        bail!(
            "TCP's congestion control in a network namespace cannot be {}: this kernel has no such thing, or does not \
             allow it there (sysctl net.ipv4.tcp_allowed_congestion_control lists what it does)",
            wanted.join(" or ")
        )
    }

    fn is_controlled_by(&self, name: &str) -> Result<bool> {
        let file = "/proc/sys/net/ipv4/tcp_congestion_control";
        let mut command = self.command("sh");
        command.args(["-c", "echo \"$1\" > \"$2\"", "sh", name, file]);
        let output = command.output().context("setting the congestion control")?;
        Ok(output.status.success())
    }

    pub fn file(&self) -> PathBuf {
        netns_file(&self.name)
    }

    /// A command inside.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        // Not `ip netns exec`: that mounts a fresh /sys, which hides /sys/fs/cgroup and so breaks runc.
        let mut command = Command::new(find("nsenter").expect("Lab::available looked for it"));
        command
            .arg(format!("--net={}", self.file().display()))
            .arg("--")
            .arg(program.as_ref());
        // No proxy is reachable from here, and containerd would believe in one.
        for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
            command.env_remove(name).env_remove(name.to_uppercase());
        }
        command
    }

    /// A command inside, with a mount namespace of its own in which these files and folders lie over the system's.
    pub fn command_over(&self, binds: &[(&Path, &str)], program: &Path) -> Command {
        // Every step execs the next, so the pid is the program's. Slave: what the system mounts later is still seen. And
        // shared, as systemd makes a node's root: what is mounted in there is seen by those who ask for HostToContainer.
        let mut command = self.command("unshare");
        command.args(["--mount", "--propagation", "slave", "sh", "-ec"]);
        command.arg(
            r#"while [ "$1" != -- ]; do mount --bind "$1" "$2"; shift 2; done; shift
               mount --make-rshared /; exec "$@""#,
        );
        command.arg("sh");
        for (ours, systems) in binds {
            command.arg(ours).arg(systems);
        }
        command.arg("--").arg(program);
        command
    }

    /// A way in for somebody who may outlive it.
    pub fn entrance(&self) -> Entrance {
        Entrance(self.file())
    }

    pub async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        self.entrance().connect(to).await
    }

    pub async fn listen(&self, on: SocketAddr) -> io::Result<TcpListener> {
        self.entrance().listen(on).await
    }

    /// From now on what it sends to `ip` is lost on the way and nobody is told: the frames go to a machine that does
    /// not exist. For both ways `ip` has to do the same.
    pub fn lose(&self, ip: Ipv4Addr) -> Result<()> {
        // Locally administered, and not made by the kernel for any of our links.
        const NOBODY: &str = "02:00:00:00:00:01";
        let ip = ip.to_string();
        let neighbour = ["-n", &self.name, "neigh", "replace", &ip];
        let away = ["lladdr", NOBODY, "dev", LINK, "nud", "permanent"];
        run("ip", &[&neighbour[..], &away[..]].concat()).map(drop)
    }

    /// The end of that.
    pub fn find(&self, ip: Ipv4Addr) -> Result<()> {
        let ip = ip.to_string();
        let forget = ["-n", &self.name, "neigh", "del", &ip, "dev", LINK];
        run("ip", &forget).map(drop)
    }
}

/// A way into a namespace that does not keep it.
#[derive(Clone)]
pub struct Entrance(PathBuf);

impl Entrance {
    /// Runs `work` on a thread inside.
    async fn within<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let file = File::open(&self.0)?;
        let (tell, told) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let kind = Some(LinkNameSpaceType::Network);
            let entered = move_into_link_name_space(file.as_fd(), kind);
            let _ = tell.send(entered.map_err(Into::into).and_then(|()| work()));
        });
        told.await
            .unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
    }

    pub async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        // On one bridge a connection takes microseconds; this bounds the one to a node whose link was removed.
        const TIMEOUT: Duration = Duration::from_secs(3);
        let stream = self
            .within(move || std::net::TcpStream::connect_timeout(&to, TIMEOUT))
            .await?;
        stream.set_nonblocking(true)?;
        TcpStream::from_std(stream)
    }

    pub async fn listen(&self, on: SocketAddr) -> io::Result<TcpListener> {
        let listener = self.within(move || std::net::TcpListener::bind(on)).await?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Kills everybody in a namespace and removes it. Says nothing when there is none.
pub fn remove(name: &str) {
    if netns_file(name).exists() {
        kill_inhabitants(name);
        if let Err(error) = run("ip", &["netns", "del", name]) {
            eprintln!("lab: {error:#}");
        }
    }
}

fn netns_file(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// Kills whoever lives in the namespace, and their descendants: a shim is in containerd's namespace, its container may
/// have made one of its own.
fn kill_inhabitants(name: &str) {
    /// SIGKILL takes effect at once except for a process in the middle of an fsync.
    const PATIENCE: Duration = Duration::from_secs(5);
    const PAUSE: Duration = Duration::from_millis(2);
    let Ok(home) = std::fs::metadata(netns_file(name)).map(|m| m.ino()) else {
        return;
    };
    let all = processes().unwrap_or_default();
    let lives_here =
        |pid: u32| std::fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|m| m.ino() == home);
    let mut doomed: HashSet<u32> = all.iter().map(|p| p.0).filter(|p| lives_here(*p)).collect();
    while let Some(&(child, _)) = all
        .iter()
        .find(|(pid, parent)| doomed.contains(parent) && !doomed.contains(pid))
    {
        doomed.insert(child);
    }
    doomed.remove(&std::process::id());
    let cgroups: HashSet<PathBuf> = doomed.iter().flat_map(|pid| cgroups_of(*pid)).collect();
    for &pid in &doomed {
        if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    let deadline = Instant::now() + PATIENCE;
    while doomed.iter().any(|pid| lives(*pid)) && Instant::now() < deadline {
        std::thread::sleep(PAUSE);
    }
    // Nobody tidies up after a container whose shim was killed. The kernel may take a moment to see that a cgroup is
    // empty; one in which others live is theirs and stays.
    let deadline = Instant::now() + Duration::from_millis(500);
    for cgroup in cgroups {
        while is_busy(std::fs::remove_dir(&cgroup)) && Instant::now() < deadline {
            std::thread::sleep(PAUSE);
        }
    }
}

fn is_busy(result: io::Result<()>) -> bool {
    result.is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
}

/// The bridge that everybody in a lab is plugged into.
pub struct Bridge {
    netns: Netns,
    prefix: String,
}

impl Bridge {
    /// `prefix` begins the names of all the lab's namespaces.
    pub fn create(prefix: &str) -> Result<Self> {
        let netns = Netns::create(format!("{prefix}-br"))?;
        run(
            "ip",
            &["-n", &netns.name, "link", "add", BRIDGE, "type", "bridge"],
        )?;
        run("ip", &["-n", &netns.name, "link", "set", BRIDGE, "up"])?;
        Ok(Self {
            netns,
            prefix: prefix.to_owned(),
        })
    }

    /// A new namespace `name` with `ip` in a /24.
    pub fn attach(&self, name: &str, ip: Ipv4Addr) -> Result<Netns> {
        let netns = Netns::create(format!("{}-{name}", self.prefix))?;
        let (inner, outer) = (&netns.name, &self.netns.name);
        let peer = ["peer", "name", LINK, "netns", inner];
        run(
            "ip",
            &[
                &["-n", outer, "link", "add", name, "type", "veth"],
                &peer[..],
            ]
            .concat(),
        )?;
        run(
            "ip",
            &["-n", outer, "link", "set", name, "master", BRIDGE, "up"],
        )?;
        run(
            "ip",
            &["-n", inner, "addr", "add", &format!("{ip}/24"), "dev", LINK],
        )?;
        run("ip", &["-n", inner, "link", "set", LINK, "up"])?;
        Ok(netns)
    }

    /// Limits the link of `netns`; None lifts the limit.
    pub fn shape(&self, netns: &Netns, bytes_per_s: Option<u64>, way: Direction) -> Result<()> {
        if way != Direction::Down {
            limit(&netns.name, LINK, bytes_per_s)?;
        }
        if way != Direction::Up {
            limit(&self.netns.name, self.port(netns), bytes_per_s)?;
        }
        Ok(())
    }

    /// From now on what `netns` sends and is sent goes nowhere, as if its machine had lost power: nobody is told.
    pub fn unplug(&self, netns: &Netns) -> Result<()> {
        let port = self.port(netns);
        run(
            "ip",
            &["-n", &self.netns.name, "link", "set", port, "nomaster"],
        )
        .map(drop)
    }

    pub fn plug(&self, netns: &Netns) -> Result<()> {
        let port = self.port(netns);
        run(
            "ip",
            &[
                "-n",
                &self.netns.name,
                "link",
                "set",
                port,
                "master",
                BRIDGE,
            ],
        )
        .map(drop)
    }

    fn port<'a>(&self, netns: &'a Netns) -> &'a str {
        &netns.name[self.prefix.len() + 1..]
    }
}

fn limit(netns: &str, link: &str, bytes_per_s: Option<u64>) -> Result<()> {
    let Some(rate) = bytes_per_s else {
        // Deleting what is not there is an error; adding first is not.
        limit(netns, link, Some(1 << 30))?;
        return run("tc", &["-n", netns, "qdisc", "del", "dev", link, "root"]).map(drop);
    };
    // tc's `bps` is bytes per second. The burst must hold what arrives within one tick (256 KiB in 1 ms is 262 MB/s, so
    // from there on 1 ms of bytes); 20 ms of queue is what a good switch has.
    let burst = (256 << 10).max(rate / 1000).to_string();
    let rate = format!("{rate}bps");
    let qdisc = ["-n", netns, "qdisc", "replace", "dev", link, "root"];
    let tbf = ["tbf", "rate", &rate, "burst", &burst, "latency", "20ms"];
    run("tc", &[&qdisc[..], &tbf[..]].concat())
        .map(drop)
        .with_context(|| format!("shaping {link} of {netns}"))
}
