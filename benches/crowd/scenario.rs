//! What is tried: one table.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Bytes per second; links are named as networks are, in millions.
pub const MB: u64 = 1_000_000;

/// `5x100`: layers of so many MiB each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Layers {
    pub count: usize,
    pub mib: u64,
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.count, self.mib)
    }
}

impl FromStr for Layers {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (count, mib) = text
            .split_once('x')
            .context("not LAYERSxMIB, as 5x100 is")?;
        let layers = Self {
            count: count.parse()?,
            mib: mib.parse()?,
        };
        ensure!(layers.count > 0 && layers.mib > 0, "an image of nothing");
        Ok(layers)
    }
}

/// How a node gets at the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// containerd asks the registry, as if there were no Peili.
    Without,
    /// Every node has its Peili.
    With,
    /// Every node's own Peili holds the image already, and no link is limited: what a pull costs without any network.
    Local,
}

impl Variant {
    pub fn name(self) -> &'static str {
        match self {
            Variant::Without => "without",
            Variant::With => "with",
            Variant::Local => "local",
        }
    }
}

/// When the nodes begin.
#[derive(Clone, Copy, Debug)]
pub enum Starts {
    /// Within 100 ms, each at its own moment.
    Crowd,
    /// Evenly over this time.
    Spread(Duration),
    /// The first 100 ms before the crowd.
    OneEarly,
}

/// What goes wrong. Half-way: when half of all bytes of all nodes have arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Half-way, SIGKILL to the containerd that has most from the registry.
    LeaderKilled,
    /// The registry answers one node's requests for layers with 401.
    LeaderUnauthorized,
    /// Half-way, SIGKILL to the Peili of the node that has most from the registry.
    PeiliKilled,
    /// The same with SIGSTOP; it goes on when all others are done.
    PeiliStopped,
    /// A third of the way, SIGKILL to the Peili of the node at which most of the image is met about.
    MeetingPointKilled,
    /// Half-way, the first two nodes no longer reach the others, nor these them.
    Partition,
    /// containerd's root of one node has room for half of the image.
    FullDisk,
    /// A third of the way, another pod asks a node's Peili for what only the registry has wholly.
    Foreign,
    /// The registry's first byte of each blob comes so late.
    Late(Duration),
}

/// What must be true of a run with Peili.
#[derive(Clone, Copy, Debug)]
pub enum Check {
    /// At most so many times the image's bytes leave the registry.
    Copies(f64),
    /// The last node is not later than 1.25 x the bound + T_local.
    Bound,
    /// The last node is not later than so many times the last one without Peili.
    NotSlower(f64),
}

pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    pub layers: Layers,
    pub nodes: &'static [usize],
    pub fleets: &'static [&'static str],
    /// The registry's uplink, bytes per second.
    pub registry: u64,
    /// A node's link, each way, bytes per second.
    pub link: u64,
    /// So many nodes, the first ones, hold the image before the others begin.
    pub holders: usize,
    pub starts: Starts,
    pub fault: Option<Fault>,
    pub variants: &'static [Variant],
    pub checks: &'static [Check],
}

const ALL: &[Variant] = &[Variant::Local, Variant::Without, Variant::With];
/// Sharing works when these hold: a twentieth of the bytes twice, and no pull slower for it.
const GOALS: &[Check] = &[Check::Copies(1.05), Check::Bound, Check::NotSlower(1.0)];

const COLD: Scenario = Scenario {
    name: "cold",
    about: "nobody has the image and all pull it at once",
    layers: Layers { count: 5, mib: 100 },
    nodes: &[2, 5, 8],
    fleets: &["1.6", "1.7", "2.x", "mixed"],
    registry: 50 * MB,
    link: 100 * MB,
    holders: 0,
    starts: Starts::Crowd,
    fault: None,
    variants: ALL,
    checks: GOALS,
};

const BROKEN: Scenario = Scenario {
    layers: Layers { count: 5, mib: 40 },
    nodes: &[5],
    fleets: &["1.7", "2.x"],
    variants: &[Variant::With],
    // Extra bytes are reported; how many are fair depends on what broke.
    checks: &[],
    ..COLD
};

const fn broken(name: &'static str, about: &'static str, starts: Starts, fault: Fault) -> Scenario {
    Scenario {
        name,
        about,
        starts,
        fault: Some(fault),
        ..BROKEN
    }
}

pub const SCENARIOS: &[Scenario] = &[
    COLD,
    Scenario {
        name: "one-layer",
        about: "an image of one large layer",
        layers: Layers {
            count: 1,
            mib: 1024,
        },
        nodes: &[2],
        ..COLD
    },
    Scenario {
        name: "small",
        about: "cold, for a quick look",
        layers: Layers { count: 5, mib: 20 },
        nodes: &[5],
        fleets: &["1.7", "2.x"],
        ..COLD
    },
    Scenario {
        name: "fast-registry",
        about: "the registry is faster than the nodes: sharing must not cost time",
        nodes: &[5, 8],
        registry: 400 * MB,
        link: 50 * MB,
        variants: &[Variant::Without, Variant::With],
        checks: &[Check::NotSlower(1.1)],
        ..COLD
    },
    Scenario {
        name: "fast-registry-idle",
        about: "the same at a quarter of the rates: eight nodes' bytes at 50 MB/s keep two cores busy, and then those are measured",
        layers: Layers { count: 5, mib: 40 },
        nodes: &[5, 8],
        registry: 100 * MB,
        link: 25 * MB / 2,
        variants: &[Variant::Without, Variant::With],
        checks: &[Check::NotSlower(1.1)],
        ..COLD
    },
    Scenario {
        name: "one-holder",
        about: "one node has pulled the image before, and all others pull it at once",
        layers: Layers { count: 5, mib: 40 },
        nodes: &[8],
        fleets: &["1.7", "2.x"],
        link: 25 * MB,
        holders: 1,
        variants: &[Variant::Without, Variant::With],
        // The tag is asked for, and nothing else.
        checks: &[Check::Copies(0.01), Check::NotSlower(1.0)],
        ..COLD
    },
    Scenario {
        name: "staggered",
        about: "starts spread evenly over ten seconds",
        nodes: &[5, 8],
        starts: Starts::Spread(Duration::from_secs(10)),
        ..COLD
    },
    Scenario {
        name: "slow-first-byte",
        about: "the registry needs five seconds to the first byte of a blob",
        nodes: &[8],
        fleets: &["1.7", "2.x"],
        fault: Some(Fault::Late(Duration::from_secs(5))),
        variants: &[Variant::Without, Variant::With],
        // Followers give up by rank: 2^(5 s / 2 s) = 5.7 of them ask at the worst, and most have a byte by then.
        checks: &[Check::Copies(4.0), Check::NotSlower(1.0)],
        ..COLD
    },
    broken(
        "leader-killed",
        "half-way, the containerd that has most from the registry is killed",
        Starts::Crowd,
        Fault::LeaderKilled,
    ),
    broken(
        "leader-unauthorized",
        "the registry refuses the first node its layers",
        Starts::OneEarly,
        Fault::LeaderUnauthorized,
    ),
    broken(
        "peili-killed",
        "half-way, the Peili of the node that has most from the registry is killed",
        Starts::Crowd,
        Fault::PeiliKilled,
    ),
    broken(
        "meeting-point-killed",
        "a third of the way, the Peili is killed that places who pulls",
        Starts::Crowd,
        Fault::MeetingPointKilled,
    ),
    broken(
        "peili-stopped",
        "half-way, that Peili is stopped and answers nobody",
        Starts::Crowd,
        Fault::PeiliStopped,
    ),
    broken(
        "partition",
        "half-way, two nodes no longer reach the others, but the registry",
        Starts::Crowd,
        Fault::Partition,
    ),
    broken(
        "full-disk",
        "the first node's disk is full half-way",
        Starts::OneEarly,
        Fault::FullDisk,
    ),
    broken(
        "foreign",
        "another pod asks a node's Peili meanwhile",
        Starts::Crowd,
        Fault::Foreign,
    ),
];

/// The containerd of the `index`th node of a fleet, None for the machine's own.
pub fn version_of(fleet: &str, index: usize) -> Option<&str> {
    let version = match fleet {
        "mixed" => ["1.6", "1.7", "2.x"][index % 3],
        one => one,
    };
    (version != "1.6").then_some(version)
}
