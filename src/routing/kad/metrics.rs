//! The numbers of routing, ours and libp2p's.
//!
//! What others say of themselves is in no label unless it is of few values: names of registries come from images, and the
//! addresses that a peer announces are whatever it likes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use libp2p::multiaddr::Protocol;
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, identify};
use libp2p_metrics::Recorder;
use prometheus::{HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::behaviour::BehaviourEvent;
use super::lookups::Outcome;
use super::membership::Stranger;
use crate::metrics::{self, OpenMetrics};
use crate::oci::Key;

/// Registries whose tags are counted by name. A cluster pulls from a handful; the rest, those with the fewest tags, is
/// counted together.
const MAX_REGISTRIES: usize = 20;

/// Who was refused of late for want of a secret in common: one of them each, with what is lacking. None: nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strangers {
    /// Somebody who called this node.
    pub called: Option<String>,
    /// Somebody whom this node called.
    pub met: Option<String>,
}

impl Strangers {
    /// As long as a roll-out of ten nodes takes; who looks later sees the counter.
    const LATELY: Duration = Duration::from_secs(600);
}

/// Who called whom.
#[derive(Clone, Copy, Debug)]
pub(super) enum Direction {
    In,
    Out,
}

impl Direction {
    fn as_str(self) -> &'static str {
        match self {
            Direction::In => "in",
            Direction::Out => "out",
        }
    }
}

#[derive(Clone, Debug)]
struct LastStranger {
    at: Instant,
    address: String,
    stranger: Stranger,
}

/// Cloneable; all clones are the same numbers.
#[derive(Clone)]
pub struct Metrics {
    peers: IntGaugeVec,
    advertised: IntGaugeVec,
    /// How long lookups took: a hit to the first provider, a miss to its end.
    lookups: HistogramVec,
    /// Announcements of one key each, by result.
    announcements: IntCounterVec,
    strangers: IntCounterVec,
    /// Provider records that others have told.
    records: IntGauge,
    /// The last of them, of each direction.
    last_strangers: Arc<Mutex<[Option<LastStranger>; 2]>>,
    libp2p: Arc<libp2p_metrics::Metrics>,
    libp2p_registry: Arc<OpenMetrics>,
}

impl Metrics {
    pub fn new(registry: &Registry) -> Self {
        // 0.25 ms, half of a first answer on a quiet network, to beyond the cap of 250 ms.
        let buckets: Vec<f64> = (0..11).map(|n| 0.000_25 * f64::from(1 << n)).collect();
        let mut theirs = OpenMetrics::default();
        let libp2p = Arc::new(libp2p_metrics::Metrics::new(&mut theirs));
        let metrics = Self {
            peers: metrics::gauges(
                registry,
                "peili_peers",
                "Peers by state: known (in the routing table), connected (to this router now, whether known or not), gone \
                 (refused a connection or said that they leave, and not heard of since).",
                &["state"],
            ),
            advertised: metrics::gauges(
                registry,
                "peili_advertised_keys",
                "Keys that this node tells the cluster that it holds, by kind: content (a digest, of no registry), tag; and by \
                 the tag's registry, the 20 with the most tags by name, the others together as other.",
                &["kind", "registry"],
            ),
            lookups: metrics::histograms(
                registry,
                "peili_lookup_duration_seconds",
                "How long lookups took, by outcome: hit (to the first provider), miss (to the end).",
                &["outcome"],
                &buckets,
            ),
            announcements: metrics::counters(
                registry,
                "peili_announcements_total",
                "Announcements of one key each, by result: ok, failed.",
                &["result"],
            ),
            strangers: metrics::counters(
                registry,
                "peili_router_strangers_total",
                "Connections between routers that failed for want of a cluster secret in common, by direction: in (it called \
                 this node), out (this node called it); and by reason: no_secret (one side has none), other_secret (they have \
                 none in common).",
                &["direction", "reason"],
            ),
            records: metrics::gauge(
                registry,
                "peili_provider_records",
                "Provider records of other nodes that this one keeps for the cluster. One that is not renewed goes after 19 to \
                 20 minutes.",
            ),
            last_strangers: Arc::default(),
            libp2p,
            libp2p_registry: Arc::new(theirs),
        };
        for direction in [Direction::In, Direction::Out] {
            for stranger in Stranger::ALL {
                let labels = [direction.as_str(), stranger.as_str()];
                metrics.strangers.with_label_values(&labels);
            }
        }
        for state in ["known", "connected", "gone"] {
            metrics.peers.with_label_values(&[state]);
        }
        metrics.advertised.with_label_values(&["content", ""]);
        for outcome in ["hit", "miss"] {
            metrics.lookups.with_label_values(&[outcome]);
        }
        for result in ["ok", "failed"] {
            metrics.announcements.with_label_values(&[result]);
        }
        metrics
    }

    /// What libp2p tells.
    pub fn libp2p(&self) -> Arc<OpenMetrics> {
        self.libp2p_registry.clone()
    }

    /// How many peers are in this state now.
    pub fn peers_in(&self, state: &str) -> usize {
        let count = self.peers.with_label_values(&[state]).get();
        usize::try_from(count).unwrap_or(0)
    }

    /// Who was refused of late for want of a secret in common, or has refused this node.
    pub fn strangers(&self) -> Strangers {
        let last = self.last_strangers.lock();
        let [called, met] = last.unwrap_or_else(PoisonError::into_inner).clone();
        let lately = |last: Option<LastStranger>| {
            let last = last.filter(|last| last.at.elapsed() < Strangers::LATELY)?;
            Some(format!("{} ({})", last.address, last.stranger.as_str()))
        };
        Strangers {
            called: lately(called),
            met: lately(met),
        }
    }

    pub(super) fn stranger(&self, direction: Direction, stranger: Stranger, address: &Multiaddr) {
        let labels = [direction.as_str(), stranger.as_str()];
        self.strangers.with_label_values(&labels).inc();
        let last = self.last_strangers.lock();
        last.unwrap_or_else(PoisonError::into_inner)[direction as usize] = Some(LastStranger {
            at: Instant::now(),
            address: address.to_string(),
            stranger,
        });
    }

    pub(super) fn peers(&self, state: &str, count: usize) {
        let gauge = self.peers.with_label_values(&[state]);
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(super) fn lookup(&self, outcome: Outcome) {
        let (label, duration) = match outcome {
            Outcome::Hit(duration) => ("hit", duration),
            Outcome::Miss(duration) => ("miss", duration),
        };
        let histogram = self.lookups.with_label_values(&[label]);
        histogram.observe(duration.as_secs_f64());
    }

    pub(super) fn announced(&self, ok: bool, keys: usize) {
        let result = if ok { "ok" } else { "failed" };
        let announcements = self.announcements.with_label_values(&[result]);
        announcements.inc_by(keys as u64);
    }

    pub(super) fn records(&self, count: usize) {
        self.records.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(super) fn advertised(&self, advertised: &mut Advertised) {
        let contents = self.advertised.with_label_values(&["content", ""]);
        contents.set(advertised.contents);
        let now = advertised.by_registry();
        for gone in advertised
            .shown
            .iter()
            .filter(|name| !now.contains_key(*name))
        {
            // An error says that it is not there.
            let _ = self.advertised.remove_label_values(&["tag", gone]);
        }
        for (registry, tags) in &now {
            let gauge = self.advertised.with_label_values(&["tag", registry]);
            gauge.set(*tags);
        }
        advertised.shown = now.into_keys().collect();
    }

    /// Counts what the swarm says, as libp2p does, without what its labels would take from others unbounded.
    pub(super) fn swarm(&self, event: &SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Kad(event)) => self.libp2p.record(event),
            SwarmEvent::Behaviour(BehaviourEvent::Ping(event)) => self.libp2p.record(event),
            SwarmEvent::Behaviour(BehaviourEvent::Identify(event)) => match event {
                identify::Event::Received {
                    connection_id,
                    peer_id,
                    info,
                } => {
                    let mut info = info.clone();
                    info.listen_addrs.retain(is_plain);
                    if !is_plain(&info.observed_addr) {
                        info.observed_addr = Multiaddr::empty();
                    }
                    self.libp2p.record(&identify::Event::Received {
                        connection_id: *connection_id,
                        peer_id: *peer_id,
                        info,
                    });
                }
                event => self.libp2p.record(event),
            },
            SwarmEvent::NewExternalAddrCandidate { address } if !is_plain(address) => {}
            event => self.libp2p.record(event),
        }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics(…)")
    }
}

/// An IP address and a TCP port, as every router of ours is reached.
fn is_plain(address: &Multiaddr) -> bool {
    let mut parts = address.iter();
    matches!(
        (parts.next(), parts.next(), parts.next()),
        (
            Some(Protocol::Ip4(_) | Protocol::Ip6(_)),
            Some(Protocol::Tcp(_)),
            None
        )
    )
}

/// What this node tells, counted.
#[derive(Debug, Default)]
pub(super) struct Advertised {
    contents: i64,
    /// Tags of each registry; none that has none.
    tags: BTreeMap<String, i64>,
    /// Registries that stand on the page now.
    shown: BTreeSet<String>,
}

impl Advertised {
    /// A key comes (1) or goes (-1).
    pub fn count(&mut self, key: &Key, by: i64) {
        let Key::Tag(tag) = key else {
            self.contents += by;
            return;
        };
        let registry = tag.repository().registry();
        let tags = self.tags.entry(registry.to_string()).or_default();
        *tags += by;
        if *tags == 0 {
            self.tags.remove(registry);
        }
    }

    fn by_registry(&self) -> BTreeMap<String, i64> {
        let mut most: Vec<_> = self.tags.iter().collect();
        // Stable: of two with as many tags it is always the same that has a name.
        most.sort_by_key(|(_, tags)| -**tags);
        let (named, others) = most.split_at(most.len().min(MAX_REGISTRIES));
        let named = named.iter().map(|(name, tags)| ((*name).clone(), **tags));
        let mut by_registry: BTreeMap<_, _> = named.collect();
        let others: i64 = others.iter().map(|(_, tags)| **tags).sum();
        if others > 0 {
            *by_registry.entry("other".to_string()).or_default() += others;
        }
        by_registry
    }
}

#[cfg(test)]
mod tests;
