//! One access line and one metric per request, from one struct, so that they cannot disagree.
//!
//! A request is over when its body is: only then is it known what it brought and how it ended.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::header::CONTENT_LENGTH;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use prometheus::{HistogramVec, IntCounter, IntCounterVec, Registry};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::error::Error;
use super::{after_again, ns_of};
use crate::membership::Refused;
use crate::metrics;
use crate::mirror::InFlight;
use crate::oci::distribution::{SOURCE, TRIAL};
use crate::recent::{Asked, Asker, ByBytes, ByRequests, Ended, Journey, Recent, Totals, Transfer};
use crate::server::flush::Flushes;
use crate::telemetry::Seldom;

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
    /// A peer was sent to other holders.
    Busy,
}

impl Source {
    const OF_MIRROR: [Source; 4] = [Source::Local, Source::Peer, Source::Miss, Source::Failed];
    const OF_UPLOADS: [Source; 4] = [Source::Local, Source::Miss, Source::Busy, Source::Failed];

    fn as_str(self) -> &'static str {
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

#[derive(Clone, Debug)]
pub struct Metrics {
    requests: IntCounterVec,
    bytes: IntCounterVec,
    duration: HistogramVec,
    uploads: IntCounterVec,
    uploaded: IntCounter,
    /// What left before it was whole here.
    pub(super) relayed: IntCounter,
    saved: IntCounter,
    unauthorized: IntCounterVec,
    strangers: IntCounterVec,
    /// What is remembered of each, for people.
    recent: Recent,
}

impl Metrics {
    pub fn new(registry: &Registry) -> Self {
        let metrics = Self {
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
                "Requests of peers by source of the answer: local, miss, busy (sent to other holders), \
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
        metrics
    }

    /// What these requests were.
    pub fn recent(&self) -> Recent {
        self.recent.clone()
    }

    /// How the numbers stand.
    pub fn totals(&self) -> Totals {
        let requests = |source: Source| {
            let counter = self.requests.with_label_values(&[source.as_str()]);
            counter.get()
        };
        let bytes = |source| self.bytes.with_label_values(&[source]).get();
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
            saved: self.saved.get(),
            uploaded: self.uploaded.get(),
        }
    }
}

/// One request, from its head to the end of its body. Told when dropped.
pub(super) struct Access {
    began: Instant,
    remote: Option<SocketAddr>,
    path: String,
    /// Whether it came to an entry of hosts.toml whose 404 is not the last word.
    again: bool,
    ns: Option<String>,
    /// Requests for what is no content (wrong paths and methods) are logged and not counted.
    counts: bool,
    from_peer: bool,
    source: Source,
    status: StatusCode,
    /// From the request to the first chunk of its body.
    first_byte: Option<Duration>,
    /// What the response's head has promised.
    length: Option<u64>,
    error: Option<String>,
    /// As others see it while it is under way; its bytes are counted here alone.
    transfer: Arc<Transfer>,
    metrics: Metrics,
}

impl Access {
    pub(super) fn begin(parts: &Parts, from_peer: bool, metrics: Metrics) -> Self {
        let remote = parts.extensions.get::<ConnectInfo<SocketAddr>>();
        let remote = remote.map(|ConnectInfo(remote)| *remote);
        let (path, ns) = (parts.uri.path(), ns_of(parts));
        let transfer = metrics.recent.begin(Asked {
            by: match from_peer {
                true => Asker::Peer,
                false if parts.headers.contains_key(TRIAL) => Asker::Trial,
                false => Asker::Containerd,
            },
            remote: remote.map(|remote| remote.ip()),
            ..Asked::of(parts.method.as_str(), path, ns.as_deref())
        });
        Self {
            began: Instant::now(),
            remote,
            path: path.chars().take(300).collect(),
            again: after_again(path).is_some(),
            ns,
            counts: false,
            from_peer,
            source: Source::Miss,
            status: StatusCode::INTERNAL_SERVER_ERROR,
            first_byte: None,
            length: None,
            error: None,
            transfer,
            metrics,
        }
    }

    pub(super) fn understood(&mut self) {
        // What the metrics tell is what containerd gets; a trial stores nothing.
        self.counts = !self.is_trial();
    }

    pub(super) fn is_trial(&self) -> bool {
        self.transfer.asked.by == Asker::Trial
    }

    /// Where to tell who brings it.
    pub(super) fn journey(&self) -> Journey {
        self.transfer.journey.clone()
    }

    pub(super) fn failed(mut self, error: &Error, status: StatusCode) {
        self.status = status;
        self.error = Some(error.reason().unwrap_or_else(|| error.to_string()));
        if matches!(error, Error::Unauthorized { .. }) {
            self.unauthorized();
        }
        if let Error::Stranger(refused) = error {
            self.stranger(refused);
        }
        self.counts &= error.is_miss() || error.is_busy();
        if error.is_busy() {
            self.source = Source::Busy;
        }
        if error.is_failure() {
            self.source = Source::Failed;
        }
    }

    fn stranger(&self, refused: &Refused) {
        static SAID: Seldom = Seldom::new();
        let counter = &self.metrics.strangers;
        counter.with_label_values(&[refused.as_str()]).inc();
        if SAID.is_due() {
            let remote = self.remote.map(tracing::field::display);
            warn!(
                remote,
                why = %refused,
                "a peer was refused as a stranger. If it is one of this cluster's nodes, give all of them the same \
                 --cluster-secret-file. It gets from the registry what only this node holds"
            );
        }
    }

    fn unauthorized(&self) {
        static SAID: [Seldom; 2] = [Seldom::new(), Seldom::new()];
        let from = if self.from_peer { "peer" } else { "other" };
        self.metrics.unauthorized.with_label_values(&[from]).inc();
        if !SAID[usize::from(self.from_peer)].is_due() {
            return;
        }
        let remote = self.remote.map(tracing::field::display);
        match self.from_peer {
            true => warn!(
                remote,
                "a peer was refused: it has not sent this node's user name and password, so its Secret is another one or \
                 none. It gets from the registry what only this node holds"
            ),
            false => warn!(
                remote,
                "a request was refused: it has not brought the user name and the password. If it is this node's \
                 containerd, its hosts.toml is older than the Secret: run `peili configuration` again. Until then it goes \
                 to the registry"
            ),
        }
    }

    /// The response with a body that is counted, and that ends badly only behind all of its bytes.
    pub(super) fn with_body(
        mut self,
        mut response: Response,
        source: Source,
        flushes: &Flushes,
    ) -> Response {
        self.source = source;
        self.status = response.status();
        let in_flight = response.extensions().get().cloned();
        if self.is_trial() {
            let from = self.transfer.journey.from();
            let from = from.last().and_then(|leg| leg.at);
            let said = match from {
                Some(at) => format!("{} {at}", source.as_str()),
                None => source.as_str().to_string(),
            };
            let said = HeaderValue::from_str(&said);
            let headers = response.headers_mut();
            headers.extend(
                said.ok()
                    .map(|said| (HeaderName::from_static(SOURCE), said)),
            );
        }
        let length = response.headers().get(CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        response.map(|body| {
            if axum::body::HttpBody::is_end_stream(&body) {
                return body;
            }
            let chunks = body.into_data_stream().map_err(io::Error::other);
            self.length = length;
            if let Some(length) = length {
                self.transfer.promised(length);
            }
            let moved = match self.is_trial() {
                true => None,
                false => Some(Moved::new(&self.metrics, self.from_peer, source, in_flight)),
            };
            Body::from_stream(flushes.before_the_end_of(Counted {
                chunks,
                moved,
                access: self,
            }))
        })
    }

    fn tell(&self) {
        let took = self.began.elapsed();
        let source = self.source.as_str();
        if self.counts {
            self.count(source, took);
        }
        let remote = self.remote.map(tracing::field::display);
        macro_rules! line {
            ($level:ident) => {
                $level!(
                    remote,
                    method = self.transfer.asked.method,
                    path = self.path,
                    again = self.again,
                    ns = self.ns,
                    from_peer = self.from_peer,
                    source,
                    status = self.status.as_u16(),
                    bytes = self.transfer.bytes(),
                    first_byte = self.first_byte.map(|time| time.as_secs_f64()),
                    seconds = took.as_secs_f64(),
                    error = self.error,
                    "request"
                )
            };
        }
        if self.from_peer {
            line!(debug)
        } else {
            line!(info)
        }
    }

    fn count(&self, source: &str, took: Duration) {
        if self.from_peer {
            self.metrics.uploads.with_label_values(&[source]).inc();
        } else {
            self.metrics.requests.with_label_values(&[source]).inc();
            self.metrics
                .duration
                .with_label_values(&[source])
                .observe(took.as_secs_f64());
        }
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        let bytes = self.transfer.bytes();
        if self.length.is_some_and(|length| bytes < length) {
            self.source = Source::Failed;
            self.error
                .get_or_insert_with(|| "the client left".to_string());
        }
        self.tell();
        let ended = Ended {
            status: self.status.as_u16(),
            source: self.source.as_str(),
            first_byte: self.first_byte,
            error: self.error.take(),
        };
        self.metrics.recent.end(&self.transfer, ended);
    }
}

/// A body that knows how much of it was taken, and counts it as it goes: a layer may take minutes.
struct Counted<S> {
    chunks: S,
    /// None: it is not counted.
    moved: Option<Moved>,
    access: Access,
}

/// Where the bytes of a body are counted.
struct Moved {
    whole: IntCounter,
    /// And while it comes from a node that is still getting it.
    in_flight: Option<(InFlight, IntCounter)>,
    /// Whatever the registry was spared.
    saved: Option<IntCounter>,
}

impl Moved {
    fn new(metrics: &Metrics, to_peer: bool, source: Source, in_flight: Option<InFlight>) -> Self {
        if to_peer {
            return Self {
                whole: metrics.uploaded.clone(),
                in_flight: None,
                saved: None,
            };
        }
        let of = |source| metrics.bytes.with_label_values(&[source]);
        Self {
            whole: of(source.as_str()),
            in_flight: in_flight.map(|it| (it, of(IN_FLIGHT))),
            saved: (source == Source::Peer).then(|| metrics.saved.clone()),
        }
    }

    fn count(&self, bytes: u64) {
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

impl<S: Stream<Item = io::Result<Bytes>> + Unpin> Stream for Counted<S> {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = Pin::new(&mut self.chunks).poll_next(cx);
        match &polled {
            Poll::Ready(Some(Ok(chunk))) => {
                let access = &mut self.access;
                access
                    .first_byte
                    .get_or_insert_with(|| access.began.elapsed());
                access.transfer.brought(chunk.len() as u64);
                if let Some(moved) = &self.moved {
                    moved.count(chunk.len() as u64);
                }
            }
            Poll::Ready(Some(Err(e))) => {
                self.access.source = Source::Failed;
                self.access.error = Some(e.to_string());
            }
            _ => {}
        }
        polled
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

        let of = |source| metrics.bytes.with_label_values(&[source]).get();
        assert_eq!([of("in_flight"), of("peer"), of("local")], [40, 500, 6_000]);
        assert_eq!(metrics.saved.get(), 540);
        assert_eq!(metrics.uploaded.get(), 70_000);
    }
}
