//! What is counted of requests to peers.

use prometheus::{IntCounter, IntCounterVec, Registry};
use tokio::time::Instant;

use super::scoreboard::Scoreboard;
use crate::metrics;

#[derive(Clone, Debug)]
pub struct Metrics {
    pub(super) attempts: IntCounterVec,
    pub(super) resumed: IntCounter,
    pub(super) hedged: IntCounter,
    pub(super) won: IntCounter,
    /// Whose resting peers are counted.
    pub(super) scoreboard: Scoreboard,
}

impl Metrics {
    pub fn new(registry: &Registry) -> Self {
        let scoreboard = Scoreboard::default();
        let board = scoreboard.clone();
        metrics::looked_up(
            registry,
            "peili_peers_resting",
            "Peers that failed lately and are asked only when nobody else is there.",
            move || board.resting(Instant::now()),
        );
        let metrics = Self {
            attempts: metrics::counters(
                registry,
                "peili_peer_attempts_total",
                "Requests to peers by outcome: answered, absent, busy, refused, unauthorized, stranger (it \
                 has no cluster secret in common with this node), failed (at once or in mid-body).",
                &["outcome"],
            ),
            resumed: metrics::counter(
                registry,
                "peili_bodies_resumed_total",
                "Bodies that went on from another peer where one had failed or was slow.",
            ),
            hedged: metrics::counter(
                registry,
                "peili_attempts_hedged_total",
                "Attempts begun beside one that had been silent for too long.",
            ),
            won: metrics::counter(
                registry,
                "peili_attempts_hedged_won_total",
                "Attempts begun beside a silent one that brought the first byte.",
            ),
            scoreboard,
        };
        for outcome in [
            "answered",
            "absent",
            "busy",
            "refused",
            "unauthorized",
            "stranger",
            "failed",
        ] {
            metrics.attempts.with_label_values(&[outcome]);
        }
        metrics
    }
}
