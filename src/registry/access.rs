//! One access line and one metric per request, from one struct, so that they cannot disagree.
//!
//! A request is over when its body is: only then is it known what it brought and how it ended.

mod metrics;

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
use axum::http::{HeaderName, HeaderValue, StatusCode, Uri};
use axum::response::Response;
use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use tracing::{debug, info, warn};

use super::asked::{after_again, ns_of};
use super::error::Error;
use crate::membership::Refused;
use crate::oci::distribution::{SOURCE, TRIAL};
use crate::recent::{Asked, Asker, Ended, Journey, Transfer};
use crate::server::flush::Flushes;
use crate::telemetry::Seldom;
use metrics::Moved;
pub use metrics::{Metrics, Source};

/// One request, from its head to the end of its body. Told when dropped.
pub(super) struct Access {
    remote: Option<SocketAddr>,
    uri: Uri,
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
    /// `ns` is the registry on whose behalf it is asked.
    pub(super) fn begin(
        parts: &Parts,
        ns: Option<&str>,
        from_peer: bool,
        metrics: Metrics,
    ) -> Self {
        let remote = parts.extensions.get::<ConnectInfo<SocketAddr>>();
        let remote = remote.map(|ConnectInfo(remote)| *remote);
        let transfer = metrics.remembers().begin(Asked {
            by: match from_peer {
                true => Asker::Peer,
                false if parts.headers.contains_key(TRIAL) => Asker::Trial,
                false => Asker::Containerd,
            },
            remote: remote.map(|remote| remote.ip()),
            ..Asked::of(parts.method.as_str(), parts.uri.path(), ns)
        });
        Self {
            remote,
            uri: parts.uri.clone(),
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
        self.metrics.stranger(refused);
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
        self.metrics.unauthorized(from);
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
        let took = self.transfer.elapsed();
        let source = self.source.as_str();
        match self.from_peer {
            _ if !self.counts => {}
            true => self.metrics.uploaded(self.source),
            false => self.metrics.answered(self.source, took),
        }
        let remote = self.remote.map(tracing::field::display);
        let path = self.uri.path();
        // Fields are evaluated for a line that is written, and only then.
        macro_rules! line {
            ($level:ident) => {
                $level!(
                    remote,
                    method = &*self.transfer.asked.method,
                    path = path.chars().take(300).collect::<String>(),
                    // Whether it came to an entry of hosts.toml whose 404 is not the last word.
                    again = after_again(path).is_some(),
                    ns = ns_of(&self.uri),
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
        self.metrics.remembers().end(&self.transfer, ended);
    }
}

/// A body that knows how much of it was taken, and counts it as it goes: a layer may take minutes.
struct Counted<S> {
    chunks: S,
    /// None: it is not counted.
    moved: Option<Moved>,
    access: Access,
}

impl<S: Stream<Item = io::Result<Bytes>> + Unpin> Stream for Counted<S> {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = Pin::new(&mut self.chunks).poll_next(cx);
        match &polled {
            Poll::Ready(Some(Ok(chunk))) => {
                let access = &mut self.access;
                let at = access.transfer.brought(chunk.len() as u64);
                access.first_byte.get_or_insert(at);
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
