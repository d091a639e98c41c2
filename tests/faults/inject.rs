//! Faults, one by one, and how each is undone.

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use tokio::sync::oneshot;

use crate::cell::{Cell, Fault};
use crate::lab::dns::PEERS;
use crate::lab::process::{eventually, lives, output};
use crate::outcome::Outcome;
use crate::rig::{AT_ALL, MIB, Rig};
use crate::spoil::Mode;

/// What the puller's disk has room for.
const ROOM: u64 = 100 * MIB;

/// What has to be undone when the cell is over.
#[derive(Default)]
pub struct Undo {
    is_due: bool,
    file: Option<PathBuf>,
    cgroup: Option<Cgroup>,
}

pub async fn inject(rig: &Rig, cell: &Cell, undo: &mut Undo) -> Result<()> {
    let (victim, tap) = (rig.victim(), rig.tap());
    undo.is_due = true;
    match cell.fault {
        Fault::Killed => {
            victim.kill_peili();
            tap.refuse().await;
        }
        Fault::Stopped => victim.signal_peili(Signal::STOP)?,
        Fault::Reset => tap.set(Mode::Reset),
        Fault::Refused => tap.refuse().await,
        Fault::Dropped => {
            let port = ["-p", "tcp"];
            filter(rig, "INPUT", &[&port[..], &["--dport", "5000"]].concat()).await?;
            filter(rig, "OUTPUT", &[&port[..], &["--sport", "5000"]].concat()).await?;
        }
        Fault::Loss => {
            let some = [
                "-m",
                "statistic",
                "--mode",
                "random",
                "--probability",
                "0.2",
            ];
            filter(rig, "INPUT", &some).await?;
            filter(rig, "OUTPUT", &some).await?;
        }
        Fault::SlowLink => tap.set(Mode::SlowLink),
        Fault::HalfOpen => tap.set(Mode::Silent),
        Fault::WrongLength => tap.set(Mode::HalfLength),
        Fault::Errors => tap.set(Mode::Errors),
        Fault::SlowHead => tap.set(Mode::SlowHead),
        Fault::Truncated | Fault::Flipped => {
            let (_, digest) = rig.target(cell);
            let file = Rig::blob_of(victim, &digest.context("a file")?);
            match cell.fault {
                Fault::Truncated => truncate(&file)?,
                _ => flip(&file)?,
            }
            undo.file = Some(file);
        }
        Fault::DiskFull => {
            let root = rig.puller.dir().join("root");
            let free = rustix::fs::statvfs(&root)?;
            let filler = root.join("filler");
            let file = std::fs::File::create(&filler)?;
            let length = (free.f_bavail * free.f_frsize).saturating_sub(ROOM);
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, length)?;
            undo.file = Some(filler);
        }
        Fault::Unreadable => set_mode(&victim.containerd().content().join("blobs/sha256"), 0)?,
        Fault::ContainerdRestarted | Fault::ContainerdStopped => victim.stop().await?,
        Fault::DnsGone => {
            rig.lab.dns().hang()?;
            restart_puller(rig).await?;
        }
        Fault::DnsStale => {
            // Nobody was ever there.
            let [a, b, c, _] = victim.ip().octets();
            let gone = [250, 251].map(|host| [a, b, c, host].into());
            rig.lab.dns().set(PEERS, &gone).await?;
            restart_puller(rig).await?;
        }
        Fault::Partition => rig.puller.cut_off(victim)?,
        Fault::AllRestarted => {
            rig.puller.kill_peili();
            rig.holders.iter().for_each(|holder| holder.kill_peili());
        }
        Fault::MemoryLimit => {
            let pid = victim.peili().pid().context("no victim")?;
            undo.cgroup = Some(Cgroup::kill(pid).await?);
            victim.kill_peili();
            tap.refuse().await;
        }
        Fault::NetworkRemoved => victim.remove_link()?,
    }
    Ok(())
}

/// What goes on while the pull does. Where it counts who is first, they are started again when the pull is over.
pub async fn meanwhile(rig: &Rig, cell: &Cell) -> Result<()> {
    if Outcome::of(cell) != Outcome::Pulled {
        return Ok(());
    }
    match cell.fault {
        Fault::ContainerdRestarted => rig.victim().start().await,
        Fault::AllRestarted => restart_all(rig).await,
        _ => Ok(()),
    }
}

/// Everything is as it was, and every node is ready.
pub async fn heal(rig: &Rig, cell: &Cell, undo: &mut Undo) -> Result<()> {
    let undo = std::mem::take(undo);
    if !undo.is_due {
        return Ok(());
    }
    let (victim, tap) = (rig.victim(), rig.tap());
    tap.set(Mode::Pass);
    match cell.fault {
        Fault::Stopped => victim.signal_peili(Signal::CONT)?,
        Fault::Dropped | Fault::Loss => {
            let mut command = victim.netns().command("iptables");
            command.args(["-w", "-F"]);
            output(command).await?;
        }
        Fault::Unreadable => set_mode(&victim.containerd().content().join("blobs/sha256"), 0o755)?,
        Fault::ContainerdRestarted | Fault::ContainerdStopped
            if victim.containerd().pid().is_none() =>
        {
            victim.start().await?;
        }
        Fault::DnsGone => rig.lab.dns().go_on()?,
        Fault::DnsStale => {
            let nodes = rig.holders.iter().chain([&rig.puller]);
            let ips: Vec<_> = nodes.map(|node| node.ip()).collect();
            rig.lab.dns().set(PEERS, &ips).await?;
        }
        Fault::Partition => rig.puller.reunite(victim)?,
        Fault::NetworkRemoved => victim.restore_link()?,
        _ => {}
    }
    if let Some(file) = undo.file {
        match cell.fault {
            Fault::Truncated => std::fs::rename(aside(&file), &file)?,
            Fault::Flipped => flip(&file)?,
            _ => std::fs::remove_file(&file)?,
        }
    }
    drop(undo.cgroup);
    tap.listen().await?;
    if rig.puller.peili().pid().is_none() {
        rig.spawn_puller().await?;
    }
    for (place, holder) in rig.holders.iter().enumerate() {
        if holder.peili().pid().is_none() {
            rig.spawn_holder(place).await?;
        }
        holder.peili_ready().await?;
    }
    Ok(())
}

/// As an upgrade does. Whom it knew is on its disk: by SIGTERM, or after the first minute.
async fn restart_puller(rig: &Rig) -> Result<()> {
    rig.puller.stop_peili().await?;
    rig.spawn_puller().await?;
    rig.puller.peili_ready().await
}

/// Without waiting.
async fn restart_all(rig: &Rig) -> Result<()> {
    for place in 0..rig.holders.len() {
        rig.spawn_holder(place).await?;
    }
    rig.spawn_puller().await
}

/// Drops what the victim and the puller send each other, if it is like this.
async fn filter(rig: &Rig, chain: &str, what: &[&str]) -> Result<()> {
    let puller = rig.puller.ip().to_string();
    let mut command = rig.victim().netns().command("iptables");
    command.args(["-w", "-A", chain]);
    command.args([if chain == "INPUT" { "-s" } else { "-d" }, &puller]);
    command.args(what).args(["-j", "DROP"]);
    output(command).await.map(drop)
}

fn aside(file: &Path) -> PathBuf {
    // Not among the blobs, where it would be one.
    let root = file.ancestors().nth(3).expect("it is below blobs");
    root.join("aside")
}

fn truncate(file: &Path) -> Result<()> {
    std::fs::rename(file, aside(file))?;
    std::fs::copy(aside(file), file)?;
    set_mode(file, 0o644)?;
    let file = std::fs::File::options().write(true).open(file)?;
    Ok(file.set_len(file.metadata()?.len() / 2)?)
}

/// One bit, in the last quarter: whoever begins in the middle gets it, too.
fn flip(file: &Path) -> Result<()> {
    set_mode(file, 0o644)?;
    let file = std::fs::File::options().read(true).write(true).open(file)?;
    let place = file.metadata()?.len() / 8 * 7;
    let mut byte = [0];
    file.read_exact_at(&mut byte, place)?;
    Ok(file.write_all_at(&[byte[0] ^ 1], place)?)
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    let permissions = std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(path, permissions).with_context(|| path.display().to_string())
}

/// A memory cgroup that is too small.
struct Cgroup {
    dir: PathBuf,
    hog: Child,
}

impl Cgroup {
    const LIMIT: u64 = 64 * MIB;

    /// Returns when the kernel has killed this process for the memory that another one takes: of all in the cgroup it is the
    /// one that may be spared most easily.
    async fn kill(pid: u32) -> Result<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let is_v2 = root.join("cgroup.controllers").is_file();
        let name = format!("peili-faults-{pid}");
        let dir = root.join(if is_v2 { "" } else { "memory" }).join(name);
        std::fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        let limit = if is_v2 {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        };
        std::fs::write(dir.join(limit), Self::LIMIT.to_string())?;
        std::fs::write(format!("/proc/{pid}/oom_score_adj"), "1000")?;
        std::fs::write(dir.join("cgroup.procs"), pid.to_string())?;
        let procs = dir.join("cgroup.procs");
        let script = format!(
            "echo $$ > {}; head -c {} /dev/zero | tail",
            procs.display(),
            4 * Self::LIMIT
        );
        let mut hog = Command::new("sh");
        hog.args(["-c", &script]).stdout(Stdio::null());
        let this = Self {
            dir,
            hog: hog.stderr(Stdio::null()).spawn()?,
        };
        eventually("the kernel's choice", AT_ALL, async || {
            Ok((!lives(pid)).then_some(()))
        })
        .await?;
        Ok(this)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // It is killed, too, when it has taken all.
        let _ = self.hog.wait();
        // The kernel may need a moment to see that it is empty.
        for _ in 0..100 {
            if std::fs::remove_dir(&self.dir).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!("faults: {} stays", self.dir.display());
    }
}

/// Somebody who is held until the fault is there; an error when the pull ended before that.
pub async fn reached<T>(held: oneshot::Receiver<T>) -> Result<T> {
    held.await.context("nobody asked for what was to be hit")
}
