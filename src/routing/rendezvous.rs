//! Who is fetching what at this moment, and from whom to take it: the seam between the mirror and the meeting points.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use super::{Peer, PeerId};
use crate::oci::Digest;

/// Brings nodes together that want the same content in the same moment. It fetches nothing itself.
#[async_trait]
pub trait Rendezvous: Send + Sync + 'static {
    /// What a node whose containerd asks for content that nobody holds should do. Bounded: a meeting point that does not
    /// answer costs 250 ms, and with none at all the answer is to lead.
    async fn ask(&self, wish: Wish) -> Advice;

    /// Tells how this node's parts in flights stand; the answer is how those flights stand. What is not mentioned fades.
    async fn report(&self, standings: Vec<Standing>) -> Vec<Course>;

    /// Tells that this node pulls `image`, and whether its containerd is getting something. One of those who pull an image
    /// with containerd 2.x leads all of it.
    async fn pulls(&self, image: &str, generation: Generation, is_busy: bool);
}

/// Which containerd asks: they differ in what a 404 does to a pull (docs/flash-crowd.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Generation {
    /// 1.x: a 404 sends it to the registry at once.
    One,
    /// 2.x: a 404 gives its download permit away, and the layer queues behind all others of the image.
    Two,
}

/// Content that this node's containerd waits for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    pub digest: Digest,
    /// `registry/repository`: whose pull this is part of.
    pub image: String,
    pub generation: Generation,
    /// First byte wanted.
    pub offset: u64,
    /// Why earlier advice did not work out, if it was to follow somebody.
    pub doubts: Vec<(PeerId, Doubt)>,
    /// This node led it lately and got nothing from the registry: somebody else should try.
    pub led_in_vain: bool,
    /// Followed streams are slower than the registry is to those who lead: this node would rather lead.
    pub is_slow: bool,
}

/// What is held against a peer that was followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// Nobody listens there, or it could not be reached.
    Refused,
    /// It says that it neither has nor fetches it.
    Gone,
    /// It said nothing, or stopped in the middle.
    Silent,
    /// Its bytes were wrong although its own copy was right.
    Corrupt,
    /// It has too many others already.
    Busy,
    /// It has not got as far as this node by its own account: nothing is wrong with it.
    Behind,
}

/// What to do about a wish.
#[derive(Clone, Debug, PartialEq)]
pub enum Advice {
    /// Fetch it from the registry: others will follow.
    Lead { lease: u64 },
    /// Take it from `parent`, that has it or is getting it.
    Follow {
        parent: Peer,
        /// Steps from `parent` to who gets it from the registry, or has it.
        depth: u32,
        /// The leader's containerd has it in its queue: it will come, later.
        is_queued: bool,
    },
    /// Ask again after this time: somebody else comes first.
    Wait {
        pause: Duration,
        /// Whoever leads the whole image has not come to it yet: it will.
        is_queued: bool,
    },
}

/// How this node's part in one flight stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    pub digest: Digest,
    pub generation: Generation,
    pub part: Part,
    /// Bytes that this node has, from the first one on.
    pub offset: u64,
    /// Bytes per second at which it grows here.
    pub rate: u64,
    /// Bytes per second of all that this node's containerd is getting now.
    pub node_rate: u64,
    /// How many more children this node's uplink can carry.
    pub free: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// From the registry. Queued: its containerd fetches something else first.
    Leads { lease: u64, is_queued: bool },
    /// From another node of this flight. Queued: no request is in hand that could get it. containerd 2.x is sent back while it
    /// waits for a first byte, and comes again when it has a place for that layer, after seconds perhaps.
    Follows { parent: PeerId, is_queued: bool },
    /// From somebody who has it whole. Where those who have it are busy, others can follow this one.
    Takes,
    /// Wholly here.
    Holds,
    /// Not any more: the ingest vanished without a blob, or the pull was given up.
    Gone,
}

/// How a flight stands, for one who takes part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Of whoever is furthest among those who lead, in bytes.
    pub offset: u64,
    /// Bytes per second at which it grows there.
    pub rate: u64,
    /// Bytes per second of all that that node is getting.
    pub node_rate: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Course {
    pub digest: Digest,
    pub progress: Progress,
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Doubt::Refused => "refused",
            Doubt::Gone => "gone",
            Doubt::Silent => "silent",
            Doubt::Corrupt => "corrupt",
            Doubt::Busy => "busy",
            Doubt::Behind => "behind",
        })
    }
}
