//! What is remembered of peers beside their place in the DHT: where they stand, and whether they understand messages.
//!
//! All of it comes from others and is only a hint: a zone orders peers, a stranger is not called in vain. It outlives a
//! connection, because idle connections end after a minute.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use libp2p::PeerId;
use tokio::time::Instant;

/// As many as there are connections at the most, and every node of a large cluster. One takes some 300 bytes.
const MAX: usize = 4096;

/// In bytes. An operator's name for a place; the command line refuses longer ones, too.
pub const MAX_ZONE: usize = 128;

/// Nobody else's agent version begins so, and may have a zone in it.
const AGENT: &str = concat!("peili/", env!("CARGO_PKG_VERSION"));

const ZONE: &str = ";zone=";

/// What identify tells of this node.
pub fn agent_version(zone: Option<&str>) -> String {
    match zone {
        Some(zone) => format!("{AGENT}{ZONE}{zone}"),
        None => AGENT.to_string(),
    }
}

/// The zone in what identify tells of another node, if it says one that an operator may have written.
pub fn zone_in(agent_version: &str) -> Option<&str> {
    let (_, zone) = agent_version.strip_prefix("peili/")?.split_once(ZONE)?;
    // A later release may say more of itself behind it.
    let zone = zone.split_once(';').map_or(zone, |(zone, _)| zone);
    is_zone(zone).then_some(zone)
}

fn is_zone(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_ZONE
        && !text.contains(|c: char| c == ';' || c.is_control())
}

#[derive(Clone, Debug)]
struct Acquaintance {
    zone: Option<Arc<str>>,
    /// Whether it understands messages; None until it is known.
    speaks: Option<bool>,
    /// Where it was when it was last connected.
    at: HashSet<SocketAddr>,
    /// Of the last ping.
    round_trip: Option<Duration>,
    heard: Instant,
}

/// At most [`MAX`]; who was not heard of for longest makes room.
#[derive(Debug, Default)]
pub struct Acquaintances {
    peers: HashMap<PeerId, Acquaintance>,
}

impl Acquaintances {
    /// A peer has said who it is.
    pub fn identified(&mut self, peer: PeerId, agent_version: &str, speaks: bool, now: Instant) {
        let known = self.of(peer, now);
        known.speaks = Some(speaks);
        let zone = zone_in(agent_version);
        if known.zone.as_deref() != zone {
            known.zone = zone.map(Arc::from);
        }
    }

    /// A call showed that it does not understand messages, whatever it says of itself.
    pub fn is_stranger(&mut self, peer: PeerId, now: Instant) {
        self.of(peer, now).speaks = Some(false);
    }

    /// It has answered a ping.
    pub fn answered(&mut self, peer: PeerId, round_trip: Duration, now: Instant) {
        self.of(peer, now).round_trip = Some(round_trip);
    }

    pub fn round_trip(&self, peer: &PeerId) -> Option<Duration> {
        self.peers.get(peer)?.round_trip
    }

    /// Whether it understands messages; None until it is known.
    pub fn speaks(&self, peer: &PeerId) -> Option<bool> {
        self.peers.get(peer)?.speaks
    }

    /// Its last connection has ended.
    pub fn disconnected(&mut self, peer: PeerId, at: HashSet<SocketAddr>, now: Instant) {
        self.of(peer, now).at = at;
    }

    pub fn forget(&mut self, peer: &PeerId) {
        self.peers.remove(peer);
    }

    pub fn zone(&self, peer: &PeerId) -> Option<Arc<str>> {
        self.peers.get(peer)?.zone.clone()
    }

    /// Whether it may understand messages: it is not known that it does not.
    pub fn may_speak(&self, peer: &PeerId) -> bool {
        let known = self.peers.get(peer);
        known.and_then(|known| known.speaks) != Some(false)
    }

    /// Where it was when it was last connected.
    pub fn addresses(&self, peer: &PeerId) -> impl Iterator<Item = SocketAddr> {
        let known = self.peers.get(peer);
        known.into_iter().flat_map(|known| known.at.iter().copied())
    }

    fn of(&mut self, peer: PeerId, now: Instant) -> &mut Acquaintance {
        if self.peers.len() >= MAX && !self.peers.contains_key(&peer) {
            let oldest = self.peers.iter().min_by_key(|(_, known)| known.heard);
            if let Some(oldest) = oldest.map(|(peer, _)| *peer) {
                self.peers.remove(&oldest);
            }
        }
        let known = self.peers.entry(peer).or_insert_with(|| Acquaintance {
            zone: None,
            speaks: None,
            at: HashSet::new(),
            round_trip: None,
            heard: now,
        });
        known.heard = now;
        known
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_zone_is_told_in_the_agent_version_and_read_from_it() {
        assert_eq!(agent_version(None), AGENT);
        assert_eq!(zone_in(&agent_version(None)), None);
        for zone in ["eu-west-1a", "Halle 3, Süd", "a=b"] {
            assert_eq!(zone_in(&agent_version(Some(zone))), Some(zone));
        }
    }

    #[test]
    fn a_release_is_understood_by_the_one_before() {
        let ours = concat!("peili/", env!("CARGO_PKG_VERSION"), ";zone=zone-a");
        assert_eq!(agent_version(Some("zone-a")), ours);
        for later in [
            "peili/0.1.0;zone=zone-a",
            "peili/0.2.0;zone=zone-a;more=1",
            "peili/0.2.0;more=1;zone=zone-a",
            "peili/10.0.0-rc.1;zone=zone-a;",
        ] {
            assert_eq!(zone_in(later), Some("zone-a"), "{later:?}");
        }
    }

    #[test]
    fn what_an_operator_cannot_have_written_is_no_zone() {
        let long = format!("peili/9;zone={}", "x".repeat(MAX_ZONE + 1));
        for agent in [
            "",
            "peili/",
            "peili/1;zone=",
            "spegel/1;zone=a",
            "rust-libp2p/1;zone=a",
            "peili/1;zone=;b",
            "peili/1;zone=a\nb",
            &long,
        ] {
            assert_eq!(zone_in(agent), None, "{agent:?}");
        }
        assert_eq!(zone_in(&long[..long.len() - 1]).unwrap().len(), MAX_ZONE);
    }

    #[test]
    fn a_stranger_is_one_until_it_says_otherwise() {
        let (mut known, peer, now) = (Acquaintances::default(), PeerId::random(), Instant::now());
        assert!(known.may_speak(&peer), "nothing is known of it");

        known.identified(peer, "peili/1;zone=a", true, now);
        assert_eq!(known.zone(&peer).as_deref(), Some("a"));
        known.is_stranger(peer, now);
        assert!(!known.may_speak(&peer));
        assert_eq!(known.zone(&peer).as_deref(), Some("a"));
        known.identified(peer, "peili/1", true, now);
        assert!(known.may_speak(&peer));
        assert_eq!(known.zone(&peer), None);

        known.is_stranger(peer, now);
        known.forget(&peer);
        assert!(known.may_speak(&peer));
    }

    #[test]
    fn who_was_not_heard_of_for_longest_makes_room() {
        let (mut known, now) = (Acquaintances::default(), Instant::now());
        let peers: Vec<PeerId> = (0..=MAX).map(|_| PeerId::random()).collect();
        for (n, peer) in peers[..MAX].iter().enumerate() {
            let then = now + Duration::from_millis(n as u64);
            known.identified(*peer, "peili/1;zone=a", false, then);
        }
        let later = now + Duration::from_secs(60);
        let at = HashSet::from([SocketAddr::from(([10, 0, 0, 1], 5001))]);
        known.disconnected(peers[0], at.clone(), later);

        known.identified(peers[MAX], "peili/1;zone=b", true, later);

        assert_eq!(known.peers.len(), MAX);
        assert!(known.may_speak(&peers[1]), "forgotten");
        assert_eq!(known.addresses(&peers[0]).collect::<HashSet<_>>(), at);
        assert_eq!(known.zone(&peers[MAX]).as_deref(), Some("b"));
    }
}
