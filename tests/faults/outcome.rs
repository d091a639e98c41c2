//! How each cell has to end, as a pure function of it, and in which time.

use std::time::Duration;

use crate::cell::{Cell, Fault, Hit, Moment, Peers, Registry};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// containerd has the image after its first pull.
    Pulled,
    /// containerd's own error, in time. The kubelet's next pull succeeds.
    NextPull,
    /// containerd's own error, in time. Nobody has what is pulled.
    Fails,
}

/// Until a request has its first byte or a 404: 2 s for a chosen peer, 250 ms each for the lookup and for the
/// rendezvous.
const FIRST_BYTE: Duration = Duration::from_millis(2500);
/// A gap in a body, however many are tried.
const GAP: Duration = Duration::from_secs(12);
/// A cell is not alone on its machine.
const BUSY: Duration = Duration::from_secs(3);

impl Outcome {
    pub fn of(cell: &Cell) -> Self {
        match (cell.fault, cell.hit) {
            (Fault::DiskFull, _) => Self::Fails,
            // containerd compares digests when it has all bytes, and asks nobody else then. What is small we compare
            // before.
            (Fault::Flipped, Hit::Layer | Hit::Range) if has_source(cell) => Self::NextPull,
            _ if has_source(cell) => Self::Pulled,
            // Gone for a moment.
            (Fault::AllRestarted | Fault::ContainerdRestarted | Fault::Partition, _) => {
                Self::NextPull
            }
            _ => Self::Fails,
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Pulled => "pulled",
            Self::NextPull => "next pull",
            Self::Fails => "fails",
        }
    }
}

/// Whether somebody can bring the right bytes while the fault lasts.
fn has_source(cell: &Cell) -> bool {
    use Fault::{
        AllRestarted, ContainerdRestarted, ContainerdStopped, DnsGone, DnsStale, Loss, SlowLink,
        Unreadable,
    };
    if cell.registry == Registry::Up {
        return true;
    }
    match cell.fault {
        // Its own Peili is among them.
        AllRestarted => false,
        _ if cell.peers == Peers::OneOfThree => true,
        // What a tag stands for only containerd knows; by digest a file is enough.
        ContainerdStopped | ContainerdRestarted => cell.hit != Hit::Tag,
        // By containerd's socket.
        Unreadable => true,
        DnsGone | DnsStale | Loss | SlowLink => true,
        _ => false,
    }
}

/// How long after the fault a pull that fails may go on, beside what it takes without hosts.toml.
pub fn deadline(cell: &Cell) -> Duration {
    let in_mid_body = matches!(cell.moment(), Moment::Given(_));
    // Its wrong byte is found at the end of the body.
    let is_late = cell.fault == Fault::Flipped;
    BUSY + if in_mid_body || is_late {
        GAP
    } else {
        FIRST_BYTE
    }
}

const MIB: u64 = 1 << 20;

/// How many bytes beyond the image may be fetched.
pub fn allowance(cell: &Cell) -> u64 {
    // Heads of answers, small answers of those who lose a race.
    const SMALL: u64 = MIB / 4;
    match cell.fault {
        // All of it comes once more.
        Fault::Flipped | Fault::AllRestarted | Fault::Partition | Fault::DiskFull => 320 * MIB,
        // What was under way in sockets and in Peili when it happened: both ends' buffers of the connections of two hops.
        _ if matches!(cell.hit, Hit::Layer | Hit::Range) => 24 * MIB,
        _ => SMALL + 8 * MIB,
    }
}
