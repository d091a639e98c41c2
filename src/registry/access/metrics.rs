//! What requests at the registry port are counted as: one for each, and the bytes of its body as they go.

use std::sync::Arc;
use std::time::Duration;

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, Registry};

use crate::membership::Refused;
use crate::metrics::{self, Kept};
use crate::mirror::InFlight;
use crate::recent::{ByBytes, ByRequests, Recent, Totals};

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// From this node's own content.
    Local,
    /// From another node.
    Peer,
    /// Nobody holds it: containerd goes upstream.
    Miss,
    /// It should have come, and did not, or not wholly.
    Failed,
    /// A peer was sent to others.
    Busy,
}

impl Source {
    const OF_MIRROR: [Source; 4] = [Source::Local, Source::Peer, Source::Miss, Source::Failed];
    const OF_UPLOADS: [Source; 4] = [Source::Local, Source::Miss, Source::Busy, Source::Failed];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Source::Local => "local",
            Source::Peer => "peer",
            Source::Miss => "miss",
            Source::Failed => "failed",
            Source::Busy => "busy",
        }
    }
}

/// Bytes from a peer that was itself still getting them; a body may have both kinds.
const IN_FLIGHT: &str = "in_flight";

/// Cloneable; all clones count into the same.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    requests: IntCounterVec,
    bytes: IntCounterVec,
    duration: HistogramVec,
    uploads: IntCounterVec,
    uploaded: IntCounter,
    relayed: IntCounter,
    saved: IntCounter,
    unauthorized: IntCounterVec,
    strangers: IntCounterVec,
    /// Of `requests` and `duration`, by source.
    answered: Kept<&'static str, (IntCounter, Histogram)>,
    /// Of `uploads`, by source.
    uploads_by_source: Kept<&'static str, IntCounter>,
    /// What is remembered of each, for people.
    recent: Recent,
}

impl Metrics {
    pub fn new(registry: &Registry) -> Self {
        let metrics = Inner {
            requests: metrics::counters(
                registry,
                "peili_mirror_requests_total",
                "Requests of this node's containerd by source of the answer: local, peer (whole there or in flight), miss \
                 (nobody holds it, containerd goes upstream), failed (not or not wholly delivered).",
                &["source"],
            ),
            bytes: metrics::counters(
                registry,
                "peili_mirror_bytes_total",
                "Bytes of bodies sent to this node's containerd by source: local, peer (that had it whole), in_flight (a \
                 peer that was still getting it).",
                &["source"],
            ),
            duration: metrics::histograms(
                registry,
                "peili_mirror_request_duration_seconds",
                "Time from a request of this node's containerd to the end of its body, by source.",
                &["source"],
                metrics::REQUEST_SECONDS,
            ),
            uploads: metrics::counters(
                registry,
                "peili_upload_requests_total",
                "Requests of peers by source of the answer: local, miss, busy (sent to others), \
                 failed.",
                &["source"],
            ),
            uploaded: metrics::counter(
                registry,
                "peili_upload_bytes_total",
                "Bytes of bodies sent to peers.",
            ),
            relayed: metrics::counter(
                registry,
                "peili_relayed_bytes_total",
                "Bytes of layers sent to peers while they were still being written.",
            ),
            saved: metrics::counter(
                registry,
                "peili_registry_bytes_saved_total",
                "Bytes sent to this node's containerd out of other nodes, whole or in flight, which no registry had to send.",
            ),
            unauthorized: metrics::counters(
                registry,
                "peili_unauthorized_requests_total",
                "Requests refused for want of the right user name and password, by who sent them: peer, other.",
                &["from"],
            ),
            strangers: metrics::counters(
                registry,
                "peili_registry_strangers_total",
                "Requests of peers refused for want of a proof of membership, by reason: unproven (none, or one that this \
                 release does not know), unknown (by another cluster secret, or for another node), clock (the asker's clock \
                 differs by more than 5 min).",
                &["reason"],
            ),
            answered: Kept::default(),
            uploads_by_source: Kept::default(),
            recent: Recent::default(),
        };
        for refused in [Refused::Unproven, Refused::Unknown, Refused::Clock(0)] {
            metrics.strangers.with_label_values(&[refused.as_str()]);
        }
        // A counter that is not there looks like a scrape that failed.
        for source in Source::OF_MIRROR {
            metrics.requests.with_label_values(&[source.as_str()]);
        }
        for source in Source::OF_UPLOADS {
            metrics.uploads.with_label_values(&[source.as_str()]);
        }
        for from in ["peer", "other"] {
            metrics.unauthorized.with_label_values(&[from]);
        }
        for source in [Source::Local.as_str(), Source::Peer.as_str(), IN_FLIGHT] {
            metrics.bytes.with_label_values(&[source]);
        }
        Self(Arc::new(metrics))
    }

    /// What these requests were.
    pub fn recent(&self) -> Recent {
        self.0.recent.clone()
    }

    /// The same, lent.
    pub(super) fn remembers(&self) -> &Recent {
        &self.0.recent
    }

    /// Bytes that left before they were whole here.
    pub(in crate::registry) fn relayed(&self) -> IntCounter {
        self.0.relayed.clone()
    }

    pub(super) fn stranger(&self, refused: &Refused) {
        let counter = &self.0.strangers;
        counter.with_label_values(&[refused.as_str()]).inc();
    }

    pub(super) fn unauthorized(&self, from: &str) {
        self.0.unauthorized.with_label_values(&[from]).inc();
    }

    /// One answer to this node's containerd.
    pub(super) fn answered(&self, source: Source, took: Duration) {
        let source = source.as_str();
        let (requests, duration) = self.0.answered.get(source, || {
            let labels = [source];
            (
                self.0.requests.with_label_values(&labels),
                self.0.duration.with_label_values(&labels),
            )
        });
        requests.inc();
        duration.observe(took.as_secs_f64());
    }

    /// One answer to a peer.
    pub(super) fn uploaded(&self, source: Source) {
        let source = source.as_str();
        let make = || self.0.uploads.with_label_values(&[source]);
        self.0.uploads_by_source.get(source, make).inc();
    }

    /// How the numbers stand.
    pub fn totals(&self) -> Totals {
        let requests = |source: Source| {
            let counter = self.0.requests.with_label_values(&[source.as_str()]);
            counter.get()
        };
        let bytes = |source| self.0.bytes.with_label_values(&[source]).get();
        Totals {
            requests: ByRequests {
                local: requests(Source::Local),
                peer: requests(Source::Peer),
                miss: requests(Source::Miss),
                failed: requests(Source::Failed),
            },
            bytes: ByBytes {
                local: bytes(Source::Local.as_str()),
                peer: bytes(Source::Peer.as_str()),
                in_flight: bytes(IN_FLIGHT),
            },
            saved: self.0.saved.get(),
            uploaded: self.0.uploaded.get(),
        }
    }
}

/// Where the bytes of a body are counted.
pub(super) struct Moved {
    whole: IntCounter,
    /// And while it comes from a node that is still getting it.
    in_flight: Option<(InFlight, IntCounter)>,
    /// Whatever the registry was spared.
    saved: Option<IntCounter>,
}

impl Moved {
    pub(super) fn new(
        metrics: &Metrics,
        to_peer: bool,
        source: Source,
        in_flight: Option<InFlight>,
    ) -> Self {
        if to_peer {
            return Self {
                whole: metrics.0.uploaded.clone(),
                in_flight: None,
                saved: None,
            };
        }
        let of = |source| metrics.0.bytes.with_label_values(&[source]);
        Self {
            whole: of(source.as_str()),
            in_flight: in_flight.map(|it| (it, of(IN_FLIGHT))),
            saved: (source == Source::Peer).then(|| metrics.0.saved.clone()),
        }
    }

    pub(super) fn count(&self, bytes: u64) {
        let counter = match &self.in_flight {
            Some((is_in_flight, counter)) if is_in_flight.is() => counter,
            _ => &self.whole,
        };
        counter.inc_by(bytes);
        if let Some(saved) = &self.saved {
            saved.inc_by(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_by_where_they_come_from_and_what_no_registry_sent_once_more() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry);
        let in_flight = InFlight::default();

        // A body that is followed, and then goes on from a node that has it whole.
        let moved = Moved::new(&metrics, false, Source::Peer, Some(in_flight.clone()));
        in_flight.set(true);
        moved.count(40);
        in_flight.set(false);
        moved.count(500);
        Moved::new(&metrics, false, Source::Local, None).count(6_000);
        Moved::new(&metrics, true, Source::Local, None).count(70_000);

        let of = |source| metrics.0.bytes.with_label_values(&[source]).get();
        assert_eq!([of("in_flight"), of("peer"), of("local")], [40, 500, 6_000]);
        assert_eq!(metrics.0.saved.get(), 540);
        assert_eq!(metrics.0.uploaded.get(), 70_000);
    }
}
