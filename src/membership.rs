//! Who belongs to the cluster: whoever holds a secret that all of its nodes have.
//!
//! ```text
//! membership   proves and verifies, and follows the file
//! file         reads the secrets; pure
//! header       the proofs of a request, and of the answer to a tag; pure
//! ```
//!
//! A proof is an HMAC (RFC 2104, with SHA-256) over what is claimed. The secret itself never leaves the node. The file may
//! hold several: the first proves, all verify. So one is replaced without an outage: it is added below the old one
//! everywhere, then put above it, then the old one is taken away.

mod file;
mod header;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use file::{MAX_SECRETS, MIN_BYTES};
pub use header::{Admitted, HEADER, REFUSED, Refused, Request, TAG_PROOF};

/// What names the file.
pub const OPTION: &str = "--cluster-secret-file [CLUSTER_SECRET_FILE]";
/// A Secret's files change under the process: they are looked at this often. The kubelet takes a minute.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{OPTION} {:?} cannot be read: {source}: name a file with {WANTED}", path.display().to_string())]
    Io { path: PathBuf, source: io::Error },
    #[error("{OPTION} {:?}{} {reason}: write {WANTED}", path.display().to_string(), at(*.line))]
    Unusable {
        path: PathBuf,
        /// From 1 on. None: it is about the whole file.
        line: Option<usize>,
        reason: String,
    },
}

const WANTED: &str = "one secret per line, such as `openssl rand -hex 32` prints";

fn at(line: Option<usize>) -> String {
    line.map(|line| format!(", line {line},"))
        .unwrap_or_default()
}

/// What a proof is over: a label, which keeps one use of the secret apart from all others, and fields. Each is preceded by
/// its length in four bytes, the highest first, so that no two claims are made of the same bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim(Vec<u8>);

impl Claim {
    pub fn new(label: &str) -> Self {
        Self(Vec::new()).with(label)
    }

    /// # Panics
    /// Never with what fits into memory of a message: a field is shorter than 4 GiB.
    #[must_use]
    pub fn with(mut self, field: impl AsRef<[u8]>) -> Self {
        let field = field.as_ref();
        let length = u32::try_from(field.len()).expect("a field of a message");
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(field);
        self
    }
}

/// HMAC-SHA-256 over a [`Claim`].
pub type Proof = [u8; 32];

/// One of the secrets, and those who wait for its end.
#[derive(Clone)]
struct Secret {
    key: Arc<[u8]>,
    removed: CancellationToken,
}

impl Secret {
    fn new(key: &str) -> Self {
        Self {
            key: key.as_bytes().into(),
            removed: CancellationToken::new(),
        }
    }

    fn mac(&self, claim: &Claim) -> Hmac<Sha256> {
        let mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        mac.chain_update(&claim.0)
    }
}

/// The secrets in force in this process, followed through the changes of their file.
pub struct Members {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    /// Never empty.
    secrets: Vec<Secret>,
    /// Why the file could not be read lately; said once.
    trouble: Option<String>,
}

impl Members {
    /// # Errors
    /// A file that cannot be read, has no secret in it, or one that is too short: a lock that is not whole keeps nobody out.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let secrets = file::read(path)?;
        Ok(Self {
            path: path.to_path_buf(),
            state: Mutex::new(State {
                secrets: secrets.iter().map(|key| Secret::new(key)).collect(),
                trouble: None,
            }),
        })
    }

    /// How many secrets open.
    pub fn secrets(&self) -> usize {
        self.lock().secrets.len()
    }

    /// With the first secret.
    pub fn prove(&self, claim: &Claim) -> Proof {
        let first = self.lock().secrets[0].clone();
        first.mac(claim).finalize().into_bytes().into()
    }

    /// Whether a proof is by any of the secrets, and then what ends when that one is removed. The time that it takes says
    /// nothing of how much of it was right.
    pub fn verify(&self, claim: &Claim, proof: &[u8]) -> Option<CancellationToken> {
        let secrets = self.lock().secrets.clone();
        let by = |secret: &&Secret| secret.mac(claim).verify_slice(proof).is_ok();
        let found = secrets.iter().find(by);
        found.map(|secret| secret.removed.clone())
    }

    /// Reads the file until `stop`, so that a changed one counts within a second.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let this = self.clone();
            // A disk that hangs holds a thread of its own, and what is known goes on to count.
            let looked = tokio::task::spawn_blocking(move || this.look());
            tokio::select! {
                () = stop.cancelled() => return,
                // An error is a panic, which has been told.
                _ = looked => {}
            }
        }
    }

    /// Reads the file again. One that is gone or broken changes nothing.
    pub fn look(&self) {
        let found = file::read(&self.path);
        let path = self.path.display();
        let mut state = self.lock();
        match found {
            Ok(keys) => {
                if let Some((added, removed)) = state.become_of(&keys) {
                    info!(%path, secrets = keys.len(), added, removed, "the cluster secrets have changed");
                }
                state.trouble = None;
            }
            Err(error) => {
                let error = error.to_string();
                if state.trouble.as_ref() != Some(&error) {
                    warn!(%path, error, "the cluster secrets cannot be read again; those that were read before go on to count");
                }
                state.trouble = Some(error);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// How many are new and how many are gone; None where nothing has changed.
    fn become_of(&mut self, keys: &[String]) -> Option<(usize, usize)> {
        let old = std::mem::take(&mut self.secrets);
        let known = |key: &String| old.iter().find(|secret| *secret.key == *key.as_bytes());
        self.secrets = keys
            .iter()
            .map(|key| known(key).cloned().unwrap_or_else(|| Secret::new(key)))
            .collect();
        let is_in = |all: &[Secret], one: &Secret| all.iter().any(|other| other.key == one.key);
        let added = self.secrets.iter().filter(|it| !is_in(&old, it)).count();
        let gone = old.iter().filter(|it| !is_in(&self.secrets, it));
        let removed = gone.map(|secret| secret.removed.cancel()).count();
        let is_as_before = old
            .iter()
            .map(|it| &it.key)
            .eq(self.secrets.iter().map(|it| &it.key));
        (!is_as_before).then_some((added, removed))
    }
}

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Members({} secrets)", self.secrets())
    }
}

#[cfg(test)]
mod tests;
