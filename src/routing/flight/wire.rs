//! The messages of `/peili/flight/1`, in protobuf: fields may be added, and what is unknown is passed over.
//!
//! What comes in is a stranger's word until it has been turned into the words of [`crate::routing::rendezvous`]: lists are
//! cut, digests and addresses are read.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use prost::{Enumeration, Message, Oneof};

use super::table::Circumstances;
use crate::oci::Digest;
use crate::routing::rendezvous::{
    Advice, Course, Doubt, Generation, Part, Progress, Standing, Wish,
};
use crate::routing::{Peer, PeerId};

/// More than a node can be waiting for or keep its readers waiting for.
const MAX_LIST: usize = 256;
/// As many as a router keeps of one peer.
const MAX_ADDRESSES: usize = 8;
/// `registry/repository@digest`: names have at most 255 characters each.
const MAX_IMAGE: usize = 700;
/// A libp2p name has 52 characters, a zone's name rarely 30.
const MAX_NAME: usize = 128;

#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error(transparent)]
    Protobuf(#[from] prost::DecodeError),
    #[error("the message has no {0} that can be read")]
    Missing(&'static str),
}

/// What a node asks of another.
#[derive(Clone, Debug, PartialEq)]
pub enum Question {
    Ask(Wish, Circumstances),
    Report(Vec<Standing>),
    Image {
        image: String,
        generation: Generation,
        is_busy: bool,
    },
    /// Whether anybody is known to lead or hold it.
    Opinion(Digest),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Advice(Advice),
    /// Ask this one, which is closer to the meeting: what it says counts.
    Closer(Peer),
    /// Ask this one, which takes part.
    Descend(Peer),
    Astray,
    Courses(Vec<Course>),
    Image(Option<PeerId>),
    Opinion(Vec<(Peer, Standing)>),
}

#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(oneof = "request::Kind", tags = "1, 2, 3, 4")]
    kind: Option<request::Kind>,
}

mod request {
    use super::{AskMessage, ImageMessage, Oneof, ReportMessage};

    #[derive(Clone, PartialEq, Oneof)]
    pub enum Kind {
        #[prost(message, tag = "1")]
        Ask(AskMessage),
        #[prost(message, tag = "2")]
        Report(ReportMessage),
        #[prost(message, tag = "3")]
        Image(ImageMessage),
        #[prost(string, tag = "4")]
        Opinion(String),
    }
}

#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(oneof = "response::Kind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9")]
    kind: Option<response::Kind>,
}

mod response {
    use super::{
        CoursesMessage, EmptyMessage, FollowMessage, NodeMessage, Oneof, StandingsMessage,
        WaitMessage,
    };

    #[derive(Clone, PartialEq, Oneof)]
    pub enum Kind {
        /// The lease.
        #[prost(fixed64, tag = "1")]
        Lead(u64),
        #[prost(message, tag = "2")]
        Follow(FollowMessage),
        #[prost(message, tag = "3")]
        Wait(WaitMessage),
        #[prost(message, tag = "4")]
        Closer(NodeMessage),
        #[prost(message, tag = "5")]
        Descend(NodeMessage),
        #[prost(message, tag = "6")]
        Astray(EmptyMessage),
        #[prost(message, tag = "7")]
        Courses(CoursesMessage),
        /// The leader's name; empty: nobody.
        #[prost(string, tag = "8")]
        Image(String),
        #[prost(message, tag = "9")]
        Opinion(StandingsMessage),
    }
}

#[derive(Clone, PartialEq, Message)]
struct EmptyMessage {}

#[derive(Clone, PartialEq, Message)]
struct NodeMessage {
    #[prost(string, tag = "1")]
    id: String,
    /// `IP:port` of its registry.
    #[prost(string, repeated, tag = "2")]
    registry: Vec<String>,
    /// Empty: it has not said.
    #[prost(string, tag = "3")]
    zone: String,
}

#[derive(Clone, PartialEq, Message)]
struct DoubtMessage {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(enumeration = "DoubtKind", tag = "2")]
    kind: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
enum DoubtKind {
    Silent = 0,
    Refused = 1,
    Gone = 2,
    Corrupt = 3,
    Busy = 4,
    /// An older node takes it for Silent, which costs the child the same parent for a little longer.
    Behind = 5,
}

#[derive(Clone, PartialEq, Message)]
struct AskMessage {
    #[prost(string, tag = "1")]
    digest: String,
    #[prost(string, tag = "2")]
    image: String,
    /// containerd's major version.
    #[prost(uint32, tag = "3")]
    generation: u32,
    #[prost(uint64, tag = "4")]
    offset: u64,
    #[prost(message, repeated, tag = "5")]
    doubts: Vec<DoubtMessage>,
    #[prost(bool, tag = "6")]
    led_in_vain: bool,
    #[prost(bool, tag = "7")]
    is_slow: bool,
    #[prost(bool, tag = "8")]
    is_takeover: bool,
    #[prost(string, tag = "9")]
    image_leader: String,
    #[prost(bool, tag = "10")]
    is_descended: bool,
}

#[derive(Clone, PartialEq, Message)]
struct ReportMessage {
    #[prost(message, repeated, tag = "1")]
    standings: Vec<StandingMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct StandingsMessage {
    #[prost(message, repeated, tag = "1")]
    standings: Vec<StandingMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct StandingMessage {
    #[prost(string, tag = "1")]
    digest: String,
    #[prost(uint32, tag = "2")]
    generation: u32,
    #[prost(enumeration = "PartKind", tag = "3")]
    part: i32,
    #[prost(fixed64, tag = "4")]
    lease: u64,
    #[prost(bool, tag = "5")]
    is_queued: bool,
    #[prost(string, tag = "6")]
    parent: String,
    #[prost(uint64, tag = "7")]
    offset: u64,
    #[prost(uint64, tag = "8")]
    rate: u64,
    #[prost(uint64, tag = "9")]
    node_rate: u64,
    #[prost(uint32, tag = "10")]
    free: u32,
    /// Of whom it is said, where that is not the sender.
    #[prost(message, optional, tag = "11")]
    node: Option<NodeMessage>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
enum PartKind {
    Gone = 0,
    Leads = 1,
    Follows = 2,
    Holds = 3,
    /// An older node takes it for Gone, and so does without this source.
    Takes = 4,
}

#[derive(Clone, PartialEq, Message)]
struct ImageMessage {
    #[prost(string, tag = "1")]
    image: String,
    #[prost(uint32, tag = "2")]
    generation: u32,
    #[prost(bool, tag = "3")]
    is_busy: bool,
}

#[derive(Clone, PartialEq, Message)]
struct FollowMessage {
    #[prost(message, optional, tag = "1")]
    parent: Option<NodeMessage>,
    #[prost(uint32, tag = "2")]
    depth: u32,
    #[prost(bool, tag = "3")]
    is_queued: bool,
}

#[derive(Clone, PartialEq, Message)]
struct WaitMessage {
    #[prost(uint32, tag = "1")]
    pause_ms: u32,
    #[prost(bool, tag = "2")]
    is_queued: bool,
}

#[derive(Clone, PartialEq, Message)]
struct CoursesMessage {
    #[prost(message, repeated, tag = "1")]
    courses: Vec<CourseMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct CourseMessage {
    #[prost(string, tag = "1")]
    digest: String,
    #[prost(uint64, tag = "2")]
    offset: u64,
    #[prost(uint64, tag = "3")]
    rate: u64,
    #[prost(uint64, tag = "4")]
    node_rate: u64,
}

impl Question {
    pub fn encode(&self) -> Bytes {
        let kind = match self {
            Self::Ask(wish, circumstances) => request::Kind::Ask(AskMessage {
                digest: wish.digest.to_string(),
                image: wish.image.clone(),
                generation: generation_number(wish.generation),
                offset: wish.offset,
                doubts: wish.doubts.iter().take(MAX_LIST).map(doubt).collect(),
                led_in_vain: wish.led_in_vain,
                is_slow: wish.is_slow,
                is_takeover: circumstances.is_takeover,
                image_leader: circumstances
                    .image_leader
                    .as_ref()
                    .map_or_else(String::new, PeerId::to_string),
                is_descended: circumstances.is_descended,
            }),
            Self::Report(standings) => request::Kind::Report(ReportMessage {
                standings: standings.iter().map(|s| standing(s, None)).collect(),
            }),
            Self::Image {
                image,
                generation,
                is_busy,
            } => request::Kind::Image(ImageMessage {
                image: image.clone(),
                generation: generation_number(*generation),
                is_busy: *is_busy,
            }),
            Self::Opinion(digest) => request::Kind::Opinion(digest.to_string()),
        };
        Request { kind: Some(kind) }.encode_to_vec().into()
    }

    pub fn decode(bytes: Bytes) -> Result<Self, WireError> {
        let kind = Request::decode(bytes)?.kind;
        Ok(match kind.ok_or(WireError::Missing("question"))? {
            request::Kind::Ask(ask) => {
                let doubts = ask.doubts.iter().take(MAX_LIST).filter_map(|doubt| {
                    let kind = match doubt.kind() {
                        DoubtKind::Silent => Doubt::Silent,
                        DoubtKind::Refused => Doubt::Refused,
                        DoubtKind::Gone => Doubt::Gone,
                        DoubtKind::Corrupt => Doubt::Corrupt,
                        DoubtKind::Busy => Doubt::Busy,
                        DoubtKind::Behind => Doubt::Behind,
                    };
                    Some((name(&doubt.id)?, kind))
                });
                let wish = Wish {
                    digest: digest(&ask.digest)?,
                    image: image(&ask.image)?,
                    generation: generation(ask.generation),
                    offset: ask.offset,
                    doubts: doubts.collect(),
                    led_in_vain: ask.led_in_vain,
                    is_slow: ask.is_slow,
                };
                let circumstances = Circumstances {
                    is_takeover: ask.is_takeover,
                    image_leader: name(&ask.image_leader),
                    is_descended: ask.is_descended,
                    has_opinion: false,
                };
                Self::Ask(wish, circumstances)
            }
            request::Kind::Report(report) => Self::Report(standings(report.standings)),
            request::Kind::Image(asked) => Self::Image {
                image: image(&asked.image)?,
                generation: generation(asked.generation),
                is_busy: asked.is_busy,
            },
            request::Kind::Opinion(text) => Self::Opinion(digest(&text)?),
        })
    }
}

impl Answer {
    pub fn encode(&self) -> Bytes {
        let kind = match self {
            Self::Advice(Advice::Lead { lease }) => response::Kind::Lead(*lease),
            Self::Advice(Advice::Follow {
                parent,
                depth,
                is_queued,
            }) => response::Kind::Follow(FollowMessage {
                parent: Some(node(parent)),
                depth: *depth,
                is_queued: *is_queued,
            }),
            Self::Advice(Advice::Wait { pause, is_queued }) => response::Kind::Wait(WaitMessage {
                pause_ms: u32::try_from(pause.as_millis()).unwrap_or(u32::MAX),
                is_queued: *is_queued,
            }),
            Self::Closer(peer) => response::Kind::Closer(node(peer)),
            Self::Descend(peer) => response::Kind::Descend(node(peer)),
            Self::Astray => response::Kind::Astray(EmptyMessage {}),
            Self::Courses(courses) => {
                let courses = courses.iter().map(|course| CourseMessage {
                    digest: course.digest.to_string(),
                    offset: course.progress.offset,
                    rate: course.progress.rate,
                    node_rate: course.progress.node_rate,
                });
                response::Kind::Courses(CoursesMessage {
                    courses: courses.collect(),
                })
            }
            Self::Image(leader) => {
                response::Kind::Image(leader.as_ref().map_or_else(String::new, PeerId::to_string))
            }
            Self::Opinion(known) => response::Kind::Opinion(StandingsMessage {
                standings: known
                    .iter()
                    .map(|(peer, known)| standing(known, Some(peer)))
                    .collect(),
            }),
        };
        Response { kind: Some(kind) }.encode_to_vec().into()
    }

    pub fn decode(bytes: Bytes) -> Result<Self, WireError> {
        let kind = Response::decode(bytes)?.kind;
        Ok(match kind.ok_or(WireError::Missing("answer"))? {
            response::Kind::Lead(lease) => Self::Advice(Advice::Lead { lease }),
            response::Kind::Follow(follow) => Self::Advice(Advice::Follow {
                parent: follow
                    .parent
                    .as_ref()
                    .and_then(peer)
                    .ok_or(WireError::Missing("parent"))?,
                depth: follow.depth,
                is_queued: follow.is_queued,
            }),
            response::Kind::Wait(wait) => Self::Advice(Advice::Wait {
                pause: Duration::from_millis(wait.pause_ms.into()),
                is_queued: wait.is_queued,
            }),
            response::Kind::Closer(node) => {
                Self::Closer(peer(&node).ok_or(WireError::Missing("node"))?)
            }
            response::Kind::Descend(node) => {
                Self::Descend(peer(&node).ok_or(WireError::Missing("node"))?)
            }
            response::Kind::Astray(EmptyMessage {}) => Self::Astray,
            response::Kind::Courses(courses) => Self::Courses(
                courses
                    .courses
                    .into_iter()
                    .take(MAX_LIST)
                    .filter_map(|course| {
                        Some(Course {
                            digest: course.digest.parse().ok()?,
                            progress: Progress {
                                offset: course.offset,
                                rate: course.rate,
                                node_rate: course.node_rate,
                            },
                        })
                    })
                    .collect(),
            ),
            response::Kind::Image(leader) => Self::Image(name(&leader)),
            response::Kind::Opinion(known) => {
                let known = known.standings.into_iter().take(MAX_LIST);
                Self::Opinion(
                    known
                        .filter_map(|message| {
                            let of = peer(message.node.as_ref()?)?;
                            Some((of, read_standing(&message)?))
                        })
                        .collect(),
                )
            }
        })
    }
}

fn node(peer: &Peer) -> NodeMessage {
    NodeMessage {
        id: peer.id.to_string(),
        registry: peer.registry.iter().map(SocketAddr::to_string).collect(),
        zone: peer.zone.as_deref().unwrap_or_default().to_string(),
    }
}

fn peer(node: &NodeMessage) -> Option<Peer> {
    let registry = node.registry.iter().take(MAX_ADDRESSES);
    Some(Peer {
        id: name(&node.id)?,
        registry: registry.filter_map(|text| text.parse().ok()).collect(),
        zone: is_name(&node.zone).then(|| node.zone.as_str().into()),
    })
}

fn name(text: &str) -> Option<PeerId> {
    is_name(text).then(|| PeerId::new(text))
}

/// What may stand in a log and on a page: no line of somebody else's making.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_NAME && !text.contains(char::is_control)
}

fn digest(text: &str) -> Result<Digest, WireError> {
    text.parse().map_err(|_| WireError::Missing("digest"))
}

fn image(text: &str) -> Result<String, WireError> {
    if text.len() > MAX_IMAGE || text.contains(char::is_control) {
        return Err(WireError::Missing("image"));
    }
    Ok(text.to_string())
}

fn generation(number: u32) -> Generation {
    match number {
        0 | 1 => Generation::One,
        _ => Generation::Two,
    }
}

fn generation_number(generation: Generation) -> u32 {
    match generation {
        Generation::One => 1,
        Generation::Two => 2,
    }
}

fn doubt((id, doubt): &(PeerId, Doubt)) -> DoubtMessage {
    let kind = match doubt {
        Doubt::Silent => DoubtKind::Silent,
        Doubt::Refused => DoubtKind::Refused,
        Doubt::Gone => DoubtKind::Gone,
        Doubt::Corrupt => DoubtKind::Corrupt,
        Doubt::Busy => DoubtKind::Busy,
        Doubt::Behind => DoubtKind::Behind,
    };
    DoubtMessage {
        id: id.to_string(),
        kind: kind.into(),
    }
}

fn standing(standing: &Standing, of: Option<&Peer>) -> StandingMessage {
    let mut message = StandingMessage {
        digest: standing.digest.to_string(),
        generation: generation_number(standing.generation),
        offset: standing.offset,
        rate: standing.rate,
        node_rate: standing.node_rate,
        free: standing.free,
        node: of.map(node),
        ..StandingMessage::default()
    };
    let part = match &standing.part {
        Part::Gone => PartKind::Gone,
        Part::Leads { lease, is_queued } => {
            message.lease = *lease;
            message.is_queued = *is_queued;
            PartKind::Leads
        }
        Part::Follows { parent, is_queued } => {
            message.is_queued = *is_queued;
            message.parent = parent.to_string();
            PartKind::Follows
        }
        Part::Takes => PartKind::Takes,
        Part::Holds => PartKind::Holds,
    };
    message.set_part(part);
    message
}

fn standings(messages: Vec<StandingMessage>) -> Vec<Standing> {
    let messages = messages.iter().take(MAX_LIST);
    messages.filter_map(read_standing).collect()
}

fn read_standing(message: &StandingMessage) -> Option<Standing> {
    let part = match message.part() {
        PartKind::Gone => Part::Gone,
        PartKind::Leads => Part::Leads {
            lease: message.lease,
            is_queued: message.is_queued,
        },
        PartKind::Follows => Part::Follows {
            parent: name(&message.parent)?,
            // An older node says that it has no room, and nothing of this.
            is_queued: message.is_queued,
        },
        PartKind::Takes => Part::Takes,
        PartKind::Holds => Part::Holds,
    };
    Some(Standing {
        digest: message.digest.parse().ok()?,
        generation: generation(message.generation),
        part,
        offset: message.offset,
        rate: message.rate,
        node_rate: message.node_rate,
        free: message.free,
    })
}

#[cfg(test)]
mod tests;
