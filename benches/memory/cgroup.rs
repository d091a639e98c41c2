//! A memory cgroup of our own, of version 1 or 2, whichever this machine has: what is charged to it, and its limit.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

const ROOT: &str = "/sys/fs/cgroup";
/// Version 1 counts the sockets apart from the rest, and only once they have a limit: none that matters.
const EVERYTHING: u64 = 1 << 40;

/// Goes with this, when nobody is in it any more.
pub struct Cgroup {
    dir: PathBuf,
    is_v2: bool,
}

/// What is charged, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// The program's own: heap and stacks.
    pub anon: u64,
    /// What lies in the buffers of its TCP sockets.
    pub sockets: u64,
    /// What the kernel keeps for it beside those: page tables, descriptors, the names of files.
    pub kernel: u64,
    /// Pages of files. They are given back before anybody is killed.
    pub cache: u64,
}

impl Usage {
    /// What cannot be given back. (Some of the kernel's can, but which is not told.)
    pub fn firm(&self) -> u64 {
        self.anon + self.sockets + self.kernel
    }
}

impl Cgroup {
    pub fn create() -> Result<Self> {
        let is_v2 = Path::new(ROOT).join("cgroup.controllers").is_file();
        let name = format!("peili-memory-{}", std::process::id());
        let dir = match is_v2 {
            true => Path::new(ROOT).join(name),
            false => Path::new(ROOT).join("memory").join(name),
        };
        fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        let this = Self { dir, is_v2 };
        if is_v2 {
            ensure!(
                this.dir.join("memory.stat").is_file(),
                "{ROOT}/cgroup.subtree_control has no memory in it"
            );
        } else {
            this.write("memory.kmem.tcp.limit_in_bytes", EVERYTHING)?;
        }
        Ok(this)
    }

    /// A program that runs `program` in here from its first byte on: what a process had before it moved stays where it was.
    pub fn entrance(&self, program: &Path, beside: &Path) -> Result<PathBuf> {
        let script = beside.join("peili-in-its-cgroup");
        let (procs, program) = (self.dir.join("cgroup.procs"), program.display());
        fs::write(
            &script,
            format!(
                "#!/bin/sh\necho $$ > {}\nexec {program} \"$@\"\n",
                procs.display()
            ),
        )?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        Ok(script)
    }

    /// Of all memory together. Version 1 has two limits: `sockets` of it for the sockets, and what is left for the rest.
    pub fn limit(&self, bytes: u64, sockets: u64) -> Result<()> {
        if self.is_v2 {
            return self.write("memory.max", bytes);
        }
        self.write("memory.limit_in_bytes", bytes - sockets)?;
        self.write("memory.kmem.tcp.limit_in_bytes", sockets)
    }

    pub fn usage(&self) -> Result<Usage> {
        let stat = self.read("memory.stat")?;
        let of = |name| field(&stat, name);
        Ok(if self.is_v2 {
            Usage {
                anon: of("anon"),
                sockets: of("sock"),
                kernel: of("kernel"),
                cache: of("file"),
            }
        } else {
            Usage {
                anon: of("rss"),
                sockets: self.number("memory.kmem.tcp.usage_in_bytes")?,
                kernel: self.number("memory.kmem.usage_in_bytes")?,
                cache: of("cache"),
            }
        })
    }

    /// How often the limit was met, and something was given back or somebody killed; and how many were killed.
    pub fn pressed(&self) -> Result<(u64, u64)> {
        if self.is_v2 {
            let events = self.read("memory.events")?;
            return Ok((field(&events, "max"), field(&events, "oom_kill")));
        }
        let killed = field(&self.read("memory.oom_control")?, "oom_kill");
        Ok((self.number("memory.failcnt")?, killed))
    }

    /// How often the sockets met theirs, where they have one of their own.
    pub fn sockets_pressed(&self) -> Result<u64> {
        match self.is_v2 {
            true => Ok(0),
            false => self.number("memory.kmem.tcp.failcnt"),
        }
    }

    fn number(&self, file: &str) -> Result<u64> {
        let text = self.read(file)?;
        text.trim()
            .parse()
            .with_context(|| format!("{file}: {text}"))
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = self.dir.join(file);
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    fn write(&self, file: &str, bytes: u64) -> Result<()> {
        let path = self.dir.join(file);
        fs::write(&path, bytes.to_string()).with_context(|| path.display().to_string())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Who was killed a moment ago may still be counted.
        let begun = Instant::now();
        while let Err(error) = fs::remove_dir(&self.dir) {
            if begun.elapsed() > Duration::from_secs(2) {
                eprintln!("memory: {}: {error}", self.dir.display());
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Of lines of a name and a number.
fn field(text: &str, name: &str) -> u64 {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.trim().parse().ok())
        .unwrap_or(0)
}
