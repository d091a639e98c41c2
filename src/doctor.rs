//! Checks a node as an operator would, and says what to change.
//!
//! The fallback hides every failure: a node whose containerd never asks us pulls as it always did. So what would make us
//! silently useless is looked for: by `peili doctor`, once after each start, and by the daemon for its own page.
//!
//! ```text
//! gather   asks the socket, the files, the port and the name server; each with a deadline     -> Facts
//! live     what only the daemon knows: peers, what containerd has asked for, a real delivery  -> Facts
//! checks   pure: from Facts to Findings, each with a cure for this distribution (profile)
//! ```

mod ask;
mod checks;
pub mod delivery;
pub mod examination;
mod facts;
mod gather;
pub mod live;
mod mounts;
pub mod observe;
pub mod profile;
pub mod report;

use std::net::IpAddr;
use std::path::PathBuf;

use crate::content::containerd;
use crate::finding::Finding;
use crate::routing::bootstrap::Bootstrap;
use live::Live;

pub use ask::ask;
pub use facts::Facts;

/// What runs here, as it was told.
#[derive(Clone, Debug)]
pub struct Config {
    /// None: this node's content is a directory, and no containerd is needed.
    pub containerd: Option<containerd::Config>,
    /// Where `configuration` has written.
    pub certs_d: PathBuf,
    pub data_dir: Option<PathBuf>,
    pub requires_token: bool,
    pub basic_auth_dir: PathBuf,
    /// None: the swarm is open.
    pub cluster_secret_file: Option<PathBuf>,
    /// Directories' names below certs.d; empty: every registry.
    pub registries: Vec<String>,
    pub bootstrap: Bootstrap,
    /// Addresses of this node that cannot be seen from here, as in a pod with a network of its own.
    pub node_ips: Vec<IpAddr>,
}

/// What has been found, for which distribution.
pub struct Report {
    pub distribution: &'static str,
    pub findings: Vec<Finding>,
}

/// Looks at everything. Bounded in time: whatever hangs is waited for, for seconds, side by side with the rest. `live` is
/// what the daemon says, or why it says nothing.
pub async fn examine(config: &Config, live: Result<Live, live::Silence>) -> Report {
    let facts = gather::gather(config, live).await;
    Report {
        distribution: facts.profile.name,
        findings: checks::all(&facts),
    }
}
