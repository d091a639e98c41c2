//! What one lab owns on this machine: a folder and namespaces of one name. It goes away on drop; what a crashed lab
//! left behind goes away when the next one begins.

use std::ffi::CString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::net;
use super::process::started_at;

const PREFIX: &str = "peili-lab-";
/// On disk and not in a tmpfs as /tmp often is: images of several hundred megabytes per node live here. And short,
/// because the path of a unix socket ends at 107 bytes, which a build folder easily exceeds.
const PARENT: &str = "/var/tmp";
const OWNER: &str = "owner";

pub struct Workspace {
    name: String,
    dir: PathBuf,
    subnet: [u8; 3],
}

impl Workspace {
    pub fn create() -> Result<Self> {
        static COUNT: AtomicU8 = AtomicU8::new(0);
        let pid = std::process::id();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        if count == 0 {
            clear_leftovers();
        }
        let name = format!("{PREFIX}{pid}-{count}");
        let dir = Path::new(PARENT).join(&name);
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        let started = started_at(pid).context("/proc is not there")?;
        std::fs::write(dir.join(OWNER), started.to_string())?;
        // Each lab is in namespaces of its own and could not clash with another; different numbers keep their logs apart.
        let subnet = [10, 64 + (pid % 128) as u8, count];
        Ok(Self { name, dir, subnet })
    }

    /// Begins the names of the lab's namespaces.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn ip(&self, host: u8) -> Ipv4Addr {
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, host)
    }

    /// A folder in the workspace.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        Ok(dir)
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        clear(&self.name);
    }
}

/// Removes all that carries the name. The folder goes last: as long as it is there the rest can be found again.
fn clear(name: &str) {
    for netns in entries("/run/netns") {
        if netns.strip_prefix(name).is_some_and(|n| n.starts_with('-')) {
            net::remove(&netns);
        }
    }
    let dir = Path::new(PARENT).join(name);
    unmount_below(&dir);
    if let Err(error) = std::fs::remove_dir_all(&dir) {
        eprintln!("lab: removing {}: {error}", dir.display());
    }
}

/// Labs whose process is gone. A pid that another process has by now is told by when that one began.
fn clear_leftovers() {
    for name in entries(PARENT) {
        let Some(pid) = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next()?.parse().ok())
        else {
            continue;
        };
        let owner = std::fs::read_to_string(Path::new(PARENT).join(&name).join(OWNER));
        let alive = started_at(pid).is_some_and(|now| match &owner {
            Ok(then) => then.is_empty() || *then == now.to_string(),
            // A lab that is being made at this moment.
            Err(_) => true,
        });
        if !alive {
            eprintln!("lab: removing what process {pid} left behind");
            clear(&name);
        }
    }
}

fn entries(dir: &str) -> Vec<String> {
    std::fs::read_dir(dir)
        .map(|all| {
            all.filter_map(|e| e.ok()?.file_name().into_string().ok())
                .collect()
        })
        .unwrap_or_default()
}

/// A folder in memory; what is in it goes when this is dropped.
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    /// On `dir`, which is made; it holds so many bytes.
    pub fn mount(dir: PathBuf, bytes: u64) -> Result<Self> {
        std::fs::create_dir_all(&dir)?;
        let size = CString::new(format!("size={bytes}"))?;
        mount("tmpfs", &dir, "tmpfs", MountFlags::empty(), size.as_c_str())
            .with_context(|| format!("a tmpfs on {}", dir.display()))?;
        Ok(Self(dir))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        unmount_below(&self.0);
    }
}

/// Lazily, because a container that was just killed may still hold its root for a moment.
fn unmount_below(dir: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let below = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|point| Path::new(point).starts_with(dir));
    // The later mount lies on the earlier one.
    for point in below.collect::<Vec<_>>().into_iter().rev() {
        let _ = unmount(point, UnmountFlags::DETACH);
    }
}
