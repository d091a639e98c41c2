//! Peers of an earlier life: where they were is kept in a small file, so that a node finds its cluster again while the
//! name server is gone.
//!
//! The configured way counts more. Addresses of pods are given to others later, and a disk may have come from another
//! cluster; so these are called only when that way gives no answer, or nobody at its addresses does. Whatever is wrong
//! with the file or the disk costs this convenience and nothing else.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use libp2p::Multiaddr;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::warn;

use super::addresses::multiaddr;
use crate::regular_file;
use crate::routing::bootstrap::parse_address;

const FILE: &str = "known-peers";

/// The first line. A file without it is somebody else's, and is neither read nor written.
const HEAD: &str = "# Peili's known peers, 1.";

const EXPLANATION: &str =
    "Called at the next start if the usual way to the first peers fails. May be removed.";

/// One that is up suffices, and of so many one is after any roll-out. 2 KiB.
const MAX: usize = 32;

/// What is longer is not ours: 32 addresses of IPv6 are 2 KiB.
const MAX_FILE: u64 = 64 << 10;

/// How many are called at once, as with a name's addresses.
const BATCH: usize = 3;

/// The first time, so that a node that crashes in its first minutes has a file already.
const FIRST: Duration = Duration::from_secs(60);

/// Then. A roll-out changes all addresses within minutes, but of 32 one is still right after half of it; and a disk is
/// not written to for a convenience more than six times an hour, or at all while nothing has changed.
const EVERY: Duration = Duration::from_secs(600);

/// How long a write is waited for at the end. It is 2 KiB, and nothing depends on it.
const LAST: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub struct KnownPeers {
    /// None: there is no directory, or the file there is not ours.
    path: Option<PathBuf>,
    /// As the file has them, those first who were there when it was written.
    kept: Vec<SocketAddr>,
    /// Whose turn it is to be called.
    next: usize,
    save_at: Instant,
    writing: Option<JoinHandle<io::Result<()>>>,
    /// The last write failed, so the file is older than `kept`.
    unwritten: bool,
    /// A disk that is full is worth one warning and not one in ten minutes.
    warned: bool,
}

impl KnownPeers {
    /// What an earlier process left. Never fails: without it a node starts as it always did.
    pub fn load(data_dir: Option<&Path>, now: Instant) -> Self {
        let path = data_dir.map(|dir| dir.join(FILE));
        let mut this = Self {
            path: None,
            kept: Vec::new(),
            next: 0,
            save_at: now + FIRST,
            writing: None,
            unwritten: false,
            warned: false,
        };
        let Some(path) = path else {
            return this;
        };
        match read(&path) {
            Ok(kept) => this.kept = kept,
            Err(Unread::Absent) => {}
            Err(Unread::Broken(reason)) => {
                warn!(path = %path.display(), reason, "known peers are not read; the file is replaced later");
            }
            Err(Unread::Foreign) => {
                warn!(
                    path = %path.display(),
                    "this file is not Peili's and is left alone, so known peers are not kept; remove it to have them"
                );
                return this;
            }
        }
        this.path = Some(path);
        this
    }

    /// Some to call now, and others the next time.
    pub fn turn(&mut self) -> Vec<SocketAddr> {
        let count = self.kept.len();
        let batch = (0..BATCH.min(count)).map(|n| self.kept[(self.next + n) % count]);
        let batch = batch.collect();
        self.next = (self.next + BATCH) % count.max(1);
        batch
    }

    /// When [`Self::save`] is due; never without a place to write.
    pub fn save_at(&self) -> Option<Instant> {
        self.path.as_ref().map(|_| self.save_at)
    }

    /// Writes, in the background, where peers are now, before where others were. Nobody there is no reason to forget those.
    pub fn save(&mut self, connected: Vec<SocketAddr>, now: Instant) {
        self.save_at = now + EVERY;
        let Some(path) = self.path.clone() else {
            return;
        };
        self.look_after_write();
        // A disk that hangs is written to by one thread, not by a new one each time.
        if connected.is_empty() || self.writing.is_some() {
            return;
        }
        let merged = merge(&connected, &self.kept);
        if is_same_set(&merged, &self.kept) && !self.unwritten {
            return;
        }
        self.unwritten = false;
        self.kept = merged.clone();
        self.writing = Some(tokio::task::spawn_blocking(move || write(&path, &merged)));
    }

    /// Waits for a write under way, for a moment.
    pub async fn finish(mut self) {
        if let Some(writing) = &mut self.writing {
            let written = tokio::time::timeout(LAST, writing).await;
            self.writing = None;
            if let Ok(Ok(Err(error))) = written {
                self.not_written(&error);
            }
        }
    }

    /// What came of the last one.
    fn look_after_write(&mut self) {
        use futures::FutureExt as _;
        let Some(writing) = self.writing.take_if(|writing| writing.is_finished()) else {
            return;
        };
        if let Some(Ok(Err(error))) = writing.now_or_never() {
            self.not_written(&error);
        }
    }

    fn not_written(&mut self, error: &io::Error) {
        self.unwritten = true;
        if !std::mem::replace(&mut self.warned, true) {
            let path = self.path.as_deref().unwrap_or(Path::new(FILE));
            warn!(
                path = %path.display(), %error,
                "known peers are not kept; everything else goes on, but a restart needs the usual way to the first peers"
            );
        }
    }
}

/// Those who are kept already and still there, those who are new, and then those who were there before.
fn merge(connected: &[SocketAddr], kept: &[SocketAddr]) -> Vec<SocketAddr> {
    let still = kept.iter().filter(|at| connected.contains(at));
    let mut seen = HashSet::new();
    let all = still.chain(connected).chain(kept).copied();
    all.filter(|at| seen.insert(*at)).take(MAX).collect()
}

fn is_same_set(a: &[SocketAddr], b: &[SocketAddr]) -> bool {
    a.iter().collect::<HashSet<_>>() == b.iter().collect()
}

#[derive(Debug, PartialEq, Eq)]
enum Unread {
    Absent,
    /// Ours, or unreadable: whatever it was, it is of no use.
    Broken(String),
    Foreign,
}

fn read(path: &Path) -> Result<Vec<SocketAddr>, Unread> {
    let broken = |e: io::Error| Unread::Broken(e.to_string());
    let file = match regular_file::open(path) {
        Ok(Some((file, _))) => file,
        // A pipe, a directory or a link that somebody has put there.
        Ok(None) if path.symlink_metadata().is_ok() => return Err(Unread::Foreign),
        Ok(None) => return Err(Unread::Absent),
        Err(e) => return Err(broken(e)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE)
        .read_to_end(&mut bytes)
        .map_err(broken)?;
    if bytes.is_empty() {
        return Err(Unread::Broken("it is empty".to_string()));
    }
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines();
    if !lines.next().is_some_and(|line| line.starts_with(HEAD)) {
        return Err(Unread::Foreign);
    }
    let mut kept = Vec::new();
    for line in lines.filter(|line| !line.trim().is_empty()) {
        // Written whole or not at all: half a line is a disk's damage, and the rest may be as wrong.
        let socket = parse_address(line.trim()).ok().and_then(|a| socket(&a));
        kept.push(socket.ok_or_else(|| Unread::Broken(format!("it has the line {line:?}")))?);
    }
    kept.truncate(MAX);
    Ok(kept)
}

fn socket(address: &Multiaddr) -> Option<SocketAddr> {
    use libp2p::multiaddr::Protocol;
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) => Some(SocketAddr::new(ip, port)),
        _ => None,
    }
}

/// A crash leaves the old file or the new one.
fn write(path: &Path, peers: &[SocketAddr]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(directory)?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    writeln!(file, "{HEAD} {EXPLANATION}")?;
    for peer in peers {
        writeln!(file, "{}", multiaddr(*peer))?;
    }
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests;
