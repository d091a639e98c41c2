//! What only the running daemon knows, as it tells it to who asks at its metrics port.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::routing::kad;

/// Where the daemon says it: GET for what it knows, POST to have a peer asked, too.
pub const PATH: &str = "/debug/api/doctor";

/// Counts of this moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// What is awaited before this node is ready, each with its reason.
    pub awaited: Vec<String>,
    pub peers: Peers,
    /// Who has no cluster secret in common with this node. A daemon of an older release does not say.
    #[serde(default)]
    pub strangers: Strangers,
    pub observed: Observed,
    /// The one check that costs traffic. None: nobody has asked for it.
    pub delivery: Option<Delivery>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peers {
    /// In the routing table.
    pub known: usize,
    pub connected: usize,
}

/// Of the last ten minutes: an address each, with what is lacking.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Strangers {
    /// Somebody who called this node.
    pub called: Option<String>,
    /// Somebody whom this node called.
    pub met: Option<String>,
}

impl From<kad::Strangers> for Strangers {
    fn from(kad::Strangers { called, met }: kad::Strangers) -> Self {
        Self { called, met }
    }
}

/// What has been seen of this node's containerd since the daemon started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// Requests of containerd that have come to us.
    pub requests: u64,
    /// Images that it has pulled.
    pub pulls: usize,
    /// The last so many of them it has pulled without asking us.
    pub pulls_past_us: usize,
    /// One of those.
    pub past_us: Option<String>,
    /// Images that are here, as far as their manifests are.
    pub images: usize,
    /// Those of them whose layers are not.
    pub without_layers: usize,
    /// One of those.
    pub without: Option<String>,
}

/// Whether content that this node advertises is really given by another node that advertises it, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Delivery {
    /// Its first bytes came.
    Delivered {
        digest: String,
        peer: String,
        ms: u64,
    },
    /// Who says that he has it did not give it.
    Failed {
        digest: String,
        peer: String,
        why: String,
    },
    /// Whoever is said to have any of what is here had it once.
    Outdated { digest: String, peer: String },
    /// Nobody else says that he has any of so many blobs that are here.
    NothingShared { asked: usize },
    /// This node has no image that it could ask for.
    NothingHere,
}

/// Why the daemon says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Silence {
    /// Nobody listens at the metrics port.
    NotRunning(String),
    /// The page is switched off, or the daemon is of an older release.
    Off,
    Failed(String),
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Silence::NotRunning(why) => write!(f, "the daemon is not running: {why}"),
            Silence::Off => f.write_str("the daemon's debug page is off"),
            Silence::Failed(why) => write!(f, "the daemon did not say: {why}"),
        }
    }
}
