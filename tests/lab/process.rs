//! Programs that a lab starts: daemons with a log, commands with an answer, and waiting without sleeping blindly.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};

/// Pause between two looks at something awaited: far below what any daemon here needs to start, and still cheap.
const POLL: Duration = Duration::from_millis(5);

/// Until this program is to end before it is done.
pub async fn interrupted() {
    let mut terminate = signal(SignalKind::terminate()).expect("a handler for SIGTERM");
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

/// A benchmark in a lab, to its end: skipped where there can be no lab.
pub async fn bench(name: &str, work: impl Future<Output = Result<()>>) -> ExitCode {
    if let Err(why) = super::Lab::available() {
        eprintln!("{name}: skipped: {why}");
        return ExitCode::SUCCESS;
    }
    to_its_end(name, work).await
}

/// Whichever ends first, the work or this program, the work is dropped, and with it the lab that it has made.
pub async fn to_its_end(name: &str, work: impl Future<Output = Result<()>>) -> ExitCode {
    tokio::select! {
        done = work => match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{name}: {error:#}");
                ExitCode::FAILURE
            }
        },
        () = interrupted() => {
            eprintln!("{name}: interrupted; everything was taken away");
            // What a shell says of a program that SIGINT ended.
            ExitCode::from(130)
        }
    }
}

/// A daemon that dies with its handle.
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command` with its output appended to `log`. It gets a process group of its own: a Ctrl-C at the terminal
    /// is for the lab to deal with, in its own order.
    pub fn spawn(mut command: Command, name: &str, log: &Path) -> Result<Self> {
        let out = File::options().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {name} ({})", show(&command)))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    /// An error if it has ended by itself.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended with {status}", self.name);
        }
        Ok(())
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(pid_of(&self.child), signal)
            .with_context(|| format!("{signal:?} to {}", self.name))
    }

    /// SIGTERM, then wait; SIGKILL and an error when it takes longer than `grace`.
    pub async fn stop(mut self, grace: Duration) -> Result<ExitStatus> {
        // It may have ended already; then the wait below says how.
        let _ = self.signal(Signal::TERM);
        let deadline = Instant::now() + grace;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!(
                    "{} outlived SIGTERM by {grace:?}; its log ends:\n{}",
                    self.name,
                    tail(&self.log, 30)
                );
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// Adds the end of a log to an error.
pub fn with_log<T>(result: Result<T>, log: &Path) -> Result<T> {
    result.map_err(|error| anyhow!("{error:#}; the log ends:\n{}", tail(log, 30)))
}

/// The last lines of a log, for a message.
pub fn tail(log: &Path, lines: usize) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Runs a command to its end; its standard output, or an error that tells what it said.
pub async fn output(command: Command) -> Result<String> {
    let shown = show(&command);
    let mut command = tokio::process::Command::from(command);
    let out = command
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("running {shown}"))?;
    if !out.status.success() {
        bail!(
            "{shown}: {}: {}{}",
            out.status,
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Runs a short command (`ip`, `tc`) here and now.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    let mut command = Command::new(find(program).with_context(|| format!("{program} not found"))?);
    command.args(args).stdin(Stdio::null());
    let out = command.output()?;
    if !out.status.success() {
        bail!(
            "{}: {}",
            show(&command),
            String::from_utf8_lossy(&out.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Looks again and again until `probe` has an answer; an error after `deadline`.
pub async fn eventually<T>(
    what: &str,
    deadline: Duration,
    mut probe: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = probe().await? {
            return Ok(found);
        }
        if start.elapsed() > deadline {
            bail!("{what}: not within {deadline:?}");
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Where a program is. Daemons live in sbin, which a user's PATH often lacks.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// When a process began, in clock ticks since boot: with its pid it names one process for good. None if there is none.
pub fn started_at(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name and may hold spaces and brackets; what follows the last bracket is regular.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// Whether a process has not ended yet; a zombie has.
pub fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start());
    state.is_some_and(|state| !state.starts_with(['Z', 'X']))
}

/// Every process with its parent.
pub fn processes() -> io::Result<Vec<(u32, u32)>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        all.push((pid, parent.unwrap_or(0)));
    }
    Ok(all)
}

/// The folders of a process's cgroups, those of the root excepted; in whichever way this system mounts them.
pub fn cgroups_of(pid: u32) -> Vec<PathBuf> {
    let lines = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let mut folders = Vec::new();
    for line in lines.lines() {
        // `5:memory:/k8s.io/demo`, and for version 2 `0::/k8s.io/demo`
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(kind), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let mount = match kind {
            "" => &["", "unified"][..],
            kind => &[kind.trim_start_matches("name=")][..],
        };
        let below = path.trim_start_matches('/');
        if !below.is_empty() {
            let folder = |mount| Path::new("/sys/fs/cgroup").join(mount).join(below);
            folders.extend(mount.iter().map(folder).filter(|folder| folder.is_dir()));
        }
    }
    folders
}

fn show(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|part| part.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}
