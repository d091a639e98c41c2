//! The dimensions of the matrix as data, and which of its cells make no sense.

use std::fmt;

/// What goes wrong, and with whom. The victim is a node that holds what is pulled, and the one that its puller prefers;
/// where another one is meant it is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    Killed,
    Stopped,
    Reset,
    Refused,
    Dropped,
    Loss,
    SlowLink,
    HalfOpen,
    WrongLength,
    Truncated,
    Flipped,
    Errors,
    SlowHead,
    DiskFull,
    Unreadable,
    ContainerdRestarted,
    ContainerdStopped,
    DnsGone,
    DnsStale,
    Partition,
    AllRestarted,
    MemoryLimit,
    NetworkRemoved,
}

/// Where in a pull it begins. It stays until the pull is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hit {
    Tag,
    Manifest,
    /// The image's config: one that containerd asks for alone.
    SmallBlob,
    /// Of 300 MiB.
    Layer,
    /// What is left of a layer, after containerd was killed in the middle of it.
    Range,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peers {
    Only,
    OneOfThree,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Registry {
    Up,
    Down,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell {
    pub fault: Fault,
    pub hit: Hit,
    pub peers: Peers,
    pub registry: Registry,
}

/// When it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Before the pull begins.
    Before,
    /// When containerd has asked, and nobody has heard it yet.
    Asked,
    /// When containerd has been given so many bytes of what it asked for.
    Given(u64),
}

const MIB: u64 = 1 << 20;
/// Of 300 MiB. What lies in sockets on the way is a few MiB, so neither the beginning nor the end is near.
const MIDDLE: u64 = 64 * MIB;

impl Fault {
    pub const ALL: [Self; 23] = [
        Self::Killed,
        Self::Stopped,
        Self::Reset,
        Self::Refused,
        Self::Dropped,
        Self::Loss,
        Self::SlowLink,
        Self::HalfOpen,
        Self::WrongLength,
        Self::Truncated,
        Self::Flipped,
        Self::Errors,
        Self::SlowHead,
        Self::DiskFull,
        Self::Unreadable,
        Self::ContainerdRestarted,
        Self::ContainerdStopped,
        Self::DnsGone,
        Self::DnsStale,
        Self::Partition,
        Self::AllRestarted,
        Self::MemoryLimit,
        Self::NetworkRemoved,
    ];

    /// For names of cells.
    pub fn word(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Stopped => "stopped",
            Self::Reset => "reset",
            Self::Refused => "refused",
            Self::Dropped => "dropped",
            Self::Loss => "loss",
            Self::SlowLink => "slow-link",
            Self::HalfOpen => "half-open",
            Self::WrongLength => "wrong-length",
            Self::Truncated => "truncated",
            Self::Flipped => "flipped",
            Self::Errors => "errors",
            Self::SlowHead => "slow-headers",
            Self::DiskFull => "disk-full",
            Self::Unreadable => "unreadable",
            Self::ContainerdRestarted => "containerd-restarted",
            Self::ContainerdStopped => "containerd-stopped",
            Self::DnsGone => "dns-gone",
            Self::DnsStale => "dns-stale",
            Self::Partition => "partition",
            Self::AllRestarted => "all-restarted",
            Self::MemoryLimit => "memory-limit",
            Self::NetworkRemoved => "network-removed",
        }
    }

    /// For people.
    pub fn about(self) -> &'static str {
        match self {
            Self::Killed => "the holder's Peili gets SIGKILL",
            Self::Stopped => "it gets SIGSTOP: the kernel accepts for it, and nobody answers",
            Self::Reset => "its connections are reset",
            Self::Refused => "it refuses connections",
            Self::Dropped => "packets to and from its registry port are dropped",
            Self::Loss => "20 % of all packets between the two are lost, each way",
            Self::SlowLink => "its answers come 300 ms late, at 1 MB/s",
            Self::HalfOpen => "its connections stay open and nothing comes",
            Self::WrongLength => "its Content-Length is half of what it should be",
            Self::Truncated => "the blob's file is cut to half on its disk",
            Self::Flipped => "one bit of the blob's file is flipped on its disk",
            Self::Errors => "it answers 500",
            Self::SlowHead => "its answers' heads come at four bytes a second",
            Self::DiskFull => "the puller's disk is full after 100 MiB",
            Self::Unreadable => "its Peili may not read containerd's content directory",
            Self::ContainerdRestarted => "its containerd is restarted",
            Self::ContainerdStopped => "its containerd is stopped",
            Self::DnsGone => "the name server is silent, and the puller's Peili has just started",
            Self::DnsStale => {
                "the name server names nodes that are gone, and the puller's Peili has just started"
            }
            Self::Partition => "holder and puller do not hear each other, until the pull is over",
            Self::AllRestarted => "every node's Peili gets SIGKILL and is started again",
            Self::MemoryLimit => "the kernel kills its Peili for the memory limit of its cgroup",
            Self::NetworkRemoved => "its network is removed",
        }
    }

    /// Whether it takes so long that a layer of 300 MiB is left out of the image.
    pub fn is_slow(self) -> bool {
        matches!(self, Self::Loss | Self::SlowLink)
    }
}

impl Hit {
    pub const ALL: [Self; 5] = [
        Self::Tag,
        Self::Manifest,
        Self::SmallBlob,
        Self::Layer,
        Self::Range,
    ];

    pub fn word(self) -> &'static str {
        match self {
            Self::Tag => "tag",
            Self::Manifest => "manifest",
            Self::SmallBlob => "small-blob",
            Self::Layer => "layer",
            Self::Range => "range",
        }
    }
}

impl Peers {
    pub const ALL: [Self; 2] = [Self::Only, Self::OneOfThree];

    pub fn word(self) -> &'static str {
        match self {
            Self::Only => "only",
            Self::OneOfThree => "three",
        }
    }

    pub fn count(self) -> usize {
        match self {
            Self::Only => 1,
            Self::OneOfThree => 3,
        }
    }
}

impl Registry {
    pub const ALL: [Self; 2] = [Self::Up, Self::Down];

    pub fn word(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

impl Cell {
    /// All that make sense, in the order of the page.
    pub fn all() -> Vec<Self> {
        Self::every().filter(|c| c.why_not().is_none()).collect()
    }

    pub fn every() -> impl Iterator<Item = Self> {
        let of = |fault| {
            Hit::ALL.into_iter().flat_map(move |hit| {
                Peers::ALL.into_iter().flat_map(move |peers| {
                    Registry::ALL.into_iter().map(move |registry| Self {
                        fault,
                        hit,
                        peers,
                        registry,
                    })
                })
            })
        };
        Fault::ALL.into_iter().flat_map(of)
    }

    /// Why there is no such cell.
    pub fn why_not(&self) -> Option<&'static str> {
        use Fault::{
            AllRestarted, DiskFull, DnsGone, DnsStale, Flipped, MemoryLimit, NetworkRemoved,
            Truncated,
        };
        let Self {
            fault,
            hit,
            peers,
            registry,
        } = *self;
        match fault {
            Truncated | Flipped if hit == Hit::Tag => {
                Some("a tag is no file: what it stands for is the manifest's")
            }
            DnsGone | DnsStale if hit != Hit::Tag => {
                Some("names are asked for before a pull, so all of it is hit")
            }
            DnsGone | DnsStale | AllRestarted if peers == Peers::OneOfThree => {
                Some("it hits all of them alike")
            }
            DiskFull if hit != Hit::Layer => Some("only what is large does not fit"),
            DiskFull if peers == Peers::OneOfThree || registry == Registry::Down => {
                Some("it fails whoever brings the bytes")
            }
            MemoryLimit if !matches!(hit, Hit::Layer | Hit::Range) => {
                Some("it takes a body's buffers to reach a limit; else it is as a SIGKILL")
            }
            NetworkRemoved if !matches!(hit, Hit::Layer | Hit::Range) => {
                Some("it is about bodies under way; before one it is as dropped packets")
            }
            Fault::Loss if peers == Peers::Only && registry == Registry::Down => {
                Some("chance decides whether a request gets through in its 2 s")
            }
            fault if fault.is_slow() && hit == Hit::Layer => {
                Some("300 MiB would take many minutes; 8 MiB say the same")
            }
            _ => None,
        }
    }

    /// The parts of the pull that meet the fault: it stays.
    pub fn covers(&self) -> Vec<Hit> {
        let has_big = !self.fault.is_slow();
        match self.hit {
            Hit::Range => vec![Hit::Range],
            first => Hit::ALL[..4]
                .iter()
                .copied()
                .filter(|hit| *hit >= first && (has_big || *hit != Hit::Layer))
                // What is spoilt is one file.
                .filter(|hit| {
                    *hit == first || !matches!(self.fault, Fault::Truncated | Fault::Flipped)
                })
                .collect(),
        }
    }

    pub fn moment(&self) -> Moment {
        use Fault::{
            DiskFull, DnsGone, DnsStale, Errors, Flipped, Refused, SlowHead, Truncated, Unreadable,
            WrongLength,
        };
        match (self.fault, self.hit) {
            (DnsGone | DnsStale | DiskFull, _) => Moment::Before,
            // They are about the beginning of an answer, or of reading a file.
            (Errors | SlowHead | WrongLength | Refused | Truncated | Flipped | Unreadable, _) => {
                Moment::Asked
            }
            (fault, Hit::Layer | Hit::Range) if !fault.is_slow() => Moment::Given(MIDDLE),
            _ => Moment::Asked,
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            fault,
            hit,
            peers,
            registry,
        } = self;
        let (fault, hit, peers, registry) =
            (fault.word(), hit.word(), peers.word(), registry.word());
        write!(f, "{fault}/{hit}/{peers}/{registry}")
    }
}
