//! How one request was answered out of other nodes: who brought it, who did not, and why.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use serde::Serialize;

use super::lock;

/// A body that has been handed on more often than this is not told better by more of it.
const MAX: usize = 16;
/// In characters.
const MAX_REASON: usize = 200;

/// Cloneable; all clones are of the same request. Written by whoever fetches, read when the request has ended.
#[derive(Clone, Debug, Default)]
pub struct Journey(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    hedges: AtomicU32,
    resumes: AtomicU32,
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    from: Vec<Leg>,
    not: Vec<NotDelivered>,
}

/// A part of a body, by the node that brought it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Leg {
    pub peer: String,
    /// Where its registry is.
    pub at: Option<SocketAddr>,
    /// Whether that node was itself still getting it.
    pub in_flight: bool,
    pub bytes: u64,
}

/// A node that was asked and did not deliver, or not to the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotDelivered {
    pub peer: String,
    pub at: Option<SocketAddr>,
    pub why: String,
}

impl Journey {
    /// The first bytes are in hand.
    pub fn begins(&self, peer: &str, at: Option<SocketAddr>, in_flight: bool) {
        let mut told = lock(&self.0.told);
        if told.from.len() < MAX {
            told.from.push(Leg {
                peer: shortened(peer),
                at,
                in_flight,
                bytes: 0,
            });
        }
    }

    /// It goes on with another node.
    pub fn resumes(&self, peer: &str, at: Option<SocketAddr>, in_flight: bool) {
        self.0.resumes.fetch_add(1, Ordering::Relaxed);
        self.begins(peer, at, in_flight);
    }

    /// So many bytes came from the last of them. Told when it is left, not for each chunk.
    pub fn brought(&self, bytes: u64) {
        if let Some(leg) = lock(&self.0.told).from.last_mut() {
            leg.bytes += bytes;
        }
    }

    /// Another was asked beside one that was silent.
    pub fn hedged(&self) {
        self.0.hedges.fetch_add(1, Ordering::Relaxed);
    }

    pub fn failed(&self, peer: &str, at: Option<SocketAddr>, why: impl ToString) {
        let mut told = lock(&self.0.told);
        if told.not.len() < MAX {
            told.not.push(NotDelivered {
                peer: shortened(peer),
                at,
                why: shortened(&why.to_string()),
            });
        }
    }

    pub fn hedges(&self) -> u32 {
        self.0.hedges.load(Ordering::Relaxed)
    }

    pub fn times_resumed(&self) -> u32 {
        self.0.resumes.load(Ordering::Relaxed)
    }

    pub fn from(&self) -> Vec<Leg> {
        lock(&self.0.told).from.clone()
    }

    pub fn not_delivered(&self) -> Vec<NotDelivered> {
        lock(&self.0.told).not.clone()
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_REASON).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journey_is_told_leg_by_leg_and_bounded() {
        let journey = Journey::default();
        journey.hedged();
        journey.begins("a", None, false);
        journey.brought(1);
        journey.failed("a", None, "x".repeat(5000));
        journey.resumes("b", None, true);
        journey.brought(2);
        for _ in 0..100 {
            journey.failed("c", None, "refused");
            journey.resumes("d", None, false);
        }

        let legs = journey.from();
        assert_eq!((legs.len(), legs[0].bytes, legs[1].bytes), (MAX, 1, 2));
        assert!(legs[1].in_flight);
        assert_eq!(journey.not_delivered().len(), MAX);
        assert_eq!(journey.not_delivered()[0].why.len(), MAX_REASON);
        assert_eq!((journey.hedges(), journey.times_resumed()), (1, 101));
    }
}
