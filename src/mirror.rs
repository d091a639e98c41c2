//! Flow 2: content that this node lacks, from the nodes that hold it.
//!
//! Lookup, select, attempt, one unbroken body. Everything is bounded: the search for a first byte by [`FIRST_BYTE`], a
//! silent peer by the attempt itself, a stalled body by [`body::STALL`]. When nobody delivers the answer is an error
//! before any header is sent, so that containerd goes upstream at once.

mod attempt;
mod body;
mod scoreboard;
mod select;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{FutureExt, StreamExt};
use hyper::Method;
use prometheus::{IntCounter, IntCounterVec, Registry};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use crate::metrics;
use crate::oci::distribution::{ByteRange, Span};
use crate::oci::{Digest, Key};
use crate::routing::{Peer, PeerId, Router};
use attempt::{Answer, Ask, PeerError, attempt};
use scoreboard::{Scoreboard, UnderWay};

/// From the first attempt to the first byte, whoever is asked. containerd has no timeout of its own for this, and
/// kubelet's patience is shared by all layers of a pull.
const FIRST_BYTE: Duration = Duration::from_secs(2);
/// A peer that has not answered by then is probably in trouble: the next is asked beside it, and the first to answer
/// wins. A healthy one answers within milliseconds.
const HEDGE: Duration = Duration::from_secs(1);
/// Registries accept manifests of at least 4 MiB (distribution spec, "Pushing manifests"), and few accept more.
const MAX_MANIFEST: u64 = 8 << 20;

#[derive(Clone, Debug)]
pub struct Config {
    /// How many peers may fail to deliver before a request goes upstream. Those that refuse or do not have it answer
    /// at once and are not counted.
    pub retries: usize,
}

/// Fetches what this node lacks. Cloneable.
#[derive(Clone)]
pub struct Mirror {
    router: Arc<dyn Router>,
    scoreboard: Scoreboard,
    config: Config,
    metrics: Metrics,
}

#[derive(Clone, Debug)]
pub struct Metrics {
    attempts: IntCounterVec,
    resumed: IntCounter,
    hedged: IntCounter,
}

impl Metrics {
    pub fn new(registry: &Registry) -> Self {
        Self {
            attempts: metrics::counters(
                registry,
                "peili_peer_attempts_total",
                "Requests to peers by outcome: delivered, absent, refused, failed.",
                &["outcome"],
            ),
            resumed: metrics::counter(
                registry,
                "peili_bodies_resumed_total",
                "Bodies that went on from another peer where one had failed.",
            ),
            hedged: metrics::counter(
                registry,
                "peili_attempts_hedged_total",
                "Attempts begun beside one that had been silent for too long.",
            ),
        }
    }
}

/// What is fetched.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub key: Key,
    /// As containerd asked for it: `/v2/…?ns=…`.
    pub path_and_query: String,
}

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody holds it (any more): containerd should go upstream at once.
    #[error("no peer holds {0}")]
    NoPeer(Key),
    /// Somebody is said to hold it and nobody delivered it: worth an operator's attention.
    #[error("{tried} peers failed to deliver {key}")]
    Exhausted {
        key: Key,
        tried: usize,
        /// The last failure, if any attempt ended before the time was up.
        #[source]
        last: Option<PeerError>,
    },
    /// Holders say that the range lies beyond the end.
    #[error("{key} has no such range")]
    NotSatisfiable { key: Key, total: Option<u64> },
}

/// A blob, or the part of it that was asked for, that begins to arrive.
pub struct Fetched {
    pub span: Span,
    /// Length of the whole blob in bytes.
    pub total: u64,
    /// Ends with an error when no peer can deliver the rest.
    pub body: BoxStream<'static, std::io::Result<Bytes>>,
}

/// A manifest, whole and checked against its digest.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub bytes: Bytes,
    pub digest: Digest,
    /// As the peer sent it; the manifest itself may say better.
    pub content_type: Option<String>,
}

impl Mirror {
    pub fn new(router: Arc<dyn Router>, config: Config, metrics: Metrics) -> Self {
        Self {
            router,
            scoreboard: Scoreboard::default(),
            config,
            metrics,
        }
    }

    /// A blob with its first byte in hand; the body goes on with other peers when one fails.
    pub async fn blob(
        &self,
        wanted: Wanted,
        range: Option<ByteRange>,
    ) -> Result<Fetched, FetchError> {
        let ask = Ask {
            method: Method::GET,
            path_and_query: wanted.path_and_query,
            range,
        };
        let mut search = Search::new(self.clone(), wanted.key);
        let delivery = search.deliver(&ask).await?;
        let (span, total) = (delivery.answer.span, delivery.answer.total);
        Ok(Fetched {
            span,
            total,
            body: body::unbroken(search, ask.path_and_query, delivery),
        })
    }

    /// Length of a blob in bytes.
    pub async fn blob_size(&self, wanted: Wanted) -> Result<u64, FetchError> {
        let ask = Ask {
            method: Method::HEAD,
            path_and_query: wanted.path_and_query,
            range: None,
        };
        let delivery = Search::new(self.clone(), wanted.key).deliver(&ask).await?;
        Ok(delivery.answer.total)
    }

    /// A manifest by digest. What does not have the digest is not taken, and the next peer is asked.
    pub async fn manifest(&self, wanted: Wanted, digest: &Digest) -> Result<Manifest, FetchError> {
        let is_it = |bytes: &[u8]| digest.verifies(bytes).then(|| digest.clone());
        self.manifest_that(wanted, is_it).await
    }

    /// A manifest by tag: as of some peer, since a tag has no right answer.
    pub async fn tagged_manifest(&self, wanted: Wanted) -> Result<Manifest, FetchError> {
        self.manifest_that(wanted, |bytes| Some(Digest::sha256(bytes)))
            .await
    }

    /// The first manifest that `digest_of` accepts.
    async fn manifest_that(
        &self,
        wanted: Wanted,
        digest_of: impl Fn(&[u8]) -> Option<Digest>,
    ) -> Result<Manifest, FetchError> {
        let ask = Ask {
            method: Method::GET,
            path_and_query: wanted.path_and_query,
            range: None,
        };
        let mut search = Search::new(self.clone(), wanted.key);
        loop {
            let mut delivery = search.deliver(&ask).await?;
            let content_type = delivery.answer.content_type.take();
            let peer = delivery.peer.clone();
            let error = match whole(delivery).await {
                Ok(bytes) => match digest_of(&bytes) {
                    Some(digest) => {
                        return Ok(Manifest {
                            bytes,
                            digest,
                            content_type,
                        });
                    }
                    None => PeerError::Wrong("a manifest that has another digest".into()),
                },
                Err(e) => e,
            };
            search.failed(&peer, error);
        }
    }
}

/// Reads a manifest to its end, in bounded time and memory.
async fn whole(mut delivery: Delivery) -> Result<Bytes, PeerError> {
    let total = delivery.answer.total;
    if total > MAX_MANIFEST {
        return Err(PeerError::Wrong(format!("a manifest of {total} bytes")));
    }
    let mut bytes = Vec::with_capacity(total as usize);
    let read = async {
        while let Some(chunk) = delivery.answer.next().await? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(())
    };
    tokio::time::timeout(attempt::GIVE_UP, read)
        .await
        .unwrap_or(Err(PeerError::Silent(attempt::GIVE_UP)))?;
    if bytes.len() as u64 != total {
        let length = bytes.len();
        return Err(PeerError::Wrong(format!("{length} of {total} bytes")));
    }
    Ok(bytes.into())
}

/// A peer's answer, and the mark on the scoreboard that it is under way.
struct Delivery {
    peer: Peer,
    answer: Answer,
    _under_way: UnderWay,
}

/// The search for one key, over as many attempts as it takes: peers that were tried are not tried again.
struct Search {
    mirror: Mirror,
    key: Key,
    /// None when the lookup has ended.
    lookup: Option<BoxStream<'static, Peer>>,
    /// Heard of and not asked yet.
    untried: Vec<Peer>,
    heard_of: HashSet<PeerId>,
    /// Peers that were asked and failed, for the error and against the limit.
    failures: usize,
    last: Option<PeerError>,
}

impl Search {
    fn new(mirror: Mirror, key: Key) -> Self {
        Self {
            lookup: Some(mirror.router.lookup(key.clone())),
            mirror,
            key,
            untried: Vec::new(),
            heard_of: HashSet::new(),
            failures: 0,
            last: None,
        }
    }

    /// Looks the key up once more: who has failed stays out, who has come to hold it meanwhile comes in.
    fn again(&mut self) {
        self.lookup = Some(self.mirror.router.lookup(self.key.clone()));
    }

    /// Asks peer after peer until one delivers its first byte.
    async fn deliver(&mut self, ask: &Ask) -> Result<Delivery, FetchError> {
        let mut attempts: FuturesUnordered<
            BoxFuture<'static, (Peer, Result<Delivery, PeerError>)>,
        > = FuturesUnordered::new();
        let mut asking: Vec<PeerId> = Vec::new();
        let mut deadline: Option<Instant> = None;
        let mut hedge_at: Option<Instant> = None;
        // Another peer may be asked: none is being asked, or the one that is has been silent for too long.
        let mut ask_next = true;
        loop {
            if self.failures >= self.mirror.config.retries.max(1) {
                return Err(self.exhausted(asking.len()));
            }
            if attempts.is_empty() && self.untried.is_empty() && self.lookup.is_none() {
                return Err(self.exhausted(0));
            }
            let is_waiting = !attempts.is_empty();
            tokio::select! {
                // An answer that is there counts, however late it is looked at.
                biased;
                Some((peer, outcome)) = attempts.next(), if is_waiting => match outcome {
                    Ok(delivery) => return Ok(delivery),
                    Err(error) => {
                        asking.retain(|asked| *asked != peer.id);
                        self.failed(&peer, error);
                        ask_next = true;
                    }
                },
                peer = self.next_candidate(), if ask_next => {
                    let Some(peer) = peer else {
                        ask_next = false;
                        continue;
                    };
                    let now = Instant::now();
                    if is_waiting {
                        self.mirror.metrics.hedged.inc();
                    }
                    deadline.get_or_insert(now + FIRST_BYTE);
                    hedge_at = Some(now + HEDGE);
                    ask_next = false;
                    asking.push(peer.id.clone());
                    attempts.push(self.mirror.clone().ask(peer, ask.clone()).boxed());
                }
                () = sleep_until_some(hedge_at), if is_waiting => {
                    hedge_at = None;
                    ask_next = true;
                    // Others should not be sent to whoever is silent now; his answer would redeem him.
                    for silent in &asking {
                        self.mirror.scoreboard.failed(silent, Instant::now());
                    }
                }
                () = sleep_until_some(deadline) => return Err(self.exhausted(asking.len())),
            }
        }
    }

    /// The best of those that are known by now; waits until one is. None when there is none left.
    async fn next_candidate(&mut self) -> Option<Peer> {
        loop {
            // Whoever has been heard of by now takes part in the choice.
            while let Some(heard) = self.lookup.as_mut().and_then(|l| l.next().now_or_never()) {
                self.heard(heard);
            }
            let now = Instant::now();
            let scores: Vec<_> = self
                .untried
                .iter()
                .map(|peer| self.mirror.scoreboard.of(&peer.id, now))
                .collect();
            if let Some(best) = select::best(&scores, now, &mut rand::rng()) {
                return Some(self.untried.swap_remove(best));
            }
            let heard = self.lookup.as_mut()?.next().await;
            self.heard(heard);
        }
    }

    fn heard(&mut self, peer: Option<Peer>) {
        match peer {
            Some(peer) if self.heard_of.insert(peer.id.clone()) => self.untried.push(peer),
            Some(_) => {}
            None => self.lookup = None,
        }
    }

    fn failed(&mut self, peer: &Peer, error: PeerError) {
        let outcome = match &error {
            PeerError::Absent | PeerError::NotSatisfiable { .. } => "absent",
            PeerError::Refused => "refused",
            _ => "failed",
        };
        self.mirror
            .metrics
            .attempts
            .with_label_values(&[outcome])
            .inc();
        debug!(key = %self.key, peer = %peer.id, error = %error, "peer did not deliver");
        if error.is_failure() {
            self.mirror.scoreboard.failed(&peer.id, Instant::now());
        }
        match error {
            PeerError::Refused => self.mirror.router.refused(&peer.id),
            PeerError::Absent | PeerError::NotSatisfiable { .. } => {}
            _ => self.failures += 1,
        }
        self.last = Some(error);
    }

    /// What to say when nobody delivered, with so many peers still silent.
    fn exhausted(&mut self, silent: usize) -> FetchError {
        let key = self.key.clone();
        let tried = self.failures + silent;
        let last = self.last.take();
        match last {
            // Only when nobody could: one peer's file may be cut off.
            Some(PeerError::NotSatisfiable { total }) if tried == 0 => {
                return FetchError::NotSatisfiable { key, total };
            }
            _ if tried == 0 => return FetchError::NoPeer(key),
            _ => {}
        }
        warn!(%key, tried, error = last.as_ref().map(tracing::field::display), "no peer delivered");
        FetchError::Exhausted { key, tried, last }
    }
}

impl Mirror {
    async fn ask(self, peer: Peer, ask: Ask) -> (Peer, Result<Delivery, PeerError>) {
        let began = Instant::now();
        let under_way = self.scoreboard.begin(&peer.id, began);
        let outcome = attempt(&peer.registry, &ask).await.map(|answer| {
            let took = began.elapsed();
            self.scoreboard.answered(&peer.id, took, Instant::now());
            self.metrics
                .attempts
                .with_label_values(&["delivered"])
                .inc();
            debug!(peer = %peer.id, path = %ask.path_and_query, ?took, "peer answered");
            Delivery {
                peer: peer.clone(),
                answer,
                _under_way: under_way,
            }
        });
        (peer, outcome)
    }
}

async fn sleep_until_some(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
