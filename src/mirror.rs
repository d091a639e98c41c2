//! Flow 2: content that this node lacks, from the nodes that hold it.
//!
//! Lookup, select, attempt, one unbroken body. Everything is bounded: the search for a first byte (`search`), a silent
//! peer (`attempt`), a body that stalls or trickles (`body`). When nobody delivers the answer is an error before any
//! header is sent, so that containerd goes upstream at once.

mod attempt;
mod body;
mod checked;
pub mod flight;
mod head;
mod manifest;
mod metrics;
mod pace;
mod probe;
mod scoreboard;
mod search;
mod select;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use hyper::Method;
use tokio::time::Instant;
use tracing::info;

use crate::basic_auth::Secret;
use crate::membership::Members;
use crate::oci::Key;
use crate::oci::distribution::{ByteRange, Following, Span};
use crate::recent::Journey;
use crate::routing::{Peer, PeerId, Router};
use attempt::Ask;
pub use attempt::PeerError;
use body::Sources;
use checked::checked;
use flight::boarding::Boarding;
use flight::{Flight, Puller};
pub use manifest::Manifest;
pub use metrics::Metrics;
use pace::Intake;
pub use probe::{Probe, probe};
pub use scoreboard::Score;
use scoreboard::Scoreboard;
use search::Search;

/// From containerd's request to the first byte, or the 404, however many are asked in turn; and the same for a gap in a body.
/// Two seconds are for those who hold it, and the last in the line waits ten for a leader who is silent
/// (`routing/flight/table.rs`): whoever waited longer would do so for nobody's sake.
pub const LIMIT: Duration = Duration::from_secs(12);

/// What peers are shown, so that they know this node for one of theirs. Cloneable; all clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Papers {
    /// The cluster's user name and password. None: nobody asks for any.
    pub basic_auth: Option<Arc<Secret>>,
    /// What proves membership, and by what members are known. None: the swarm is open, and tags are anybody's word.
    pub members: Option<Arc<Members>>,
}

/// For so long a key is not looked up again after peers that hold it have brought it too slowly to be worth it.
const HOPELESS: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub struct Config {
    /// How many peers may fail to deliver before a request goes upstream. Those that refuse or do not have it answer
    /// at once and are not counted.
    pub retries: usize,
    /// Where this node stands, if it has been said.
    pub zone: Option<Arc<str>>,
}

/// Whether nodes that pull the same content at once share what one of them is getting from the registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InFlightSharing {
    /// Unless that is slower than the registry itself.
    #[default]
    Auto,
    /// Even then: fewest bytes leave the registry.
    Always,
    /// Each node gets from the registry what no other has whole.
    Off,
}

/// Fetches what this node lacks. Cloneable.
#[derive(Clone)]
pub struct Mirror {
    router: Arc<dyn Router>,
    scoreboard: Scoreboard,
    intake: Intake,
    /// Keys that no peer brings, although some hold them, and until when that is remembered.
    hopeless: Arc<Mutex<HashMap<Key, Instant>>>,
    /// None: what nobody holds is left to the registry.
    flight: Option<Flight>,
    papers: Papers,
    config: Config,
    metrics: Metrics,
}

/// What is fetched.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub key: Key,
    /// As containerd asked for it: `/v2/…?ns=…`.
    pub path_and_query: String,
    pub puller: Puller,
    /// Told who brings it, and who does not.
    pub journey: Journey,
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
    /// Those who hold it have just failed to bring it in any useful time: upstream will.
    #[error("peers have lately brought {0} too slowly")]
    Hopeless(Key),
    /// Nobody holds it, and of those who want it now this node is the one to get it from the registry.
    #[error("{0} is for this node to get from the registry, and others follow")]
    Lead(Key),
    /// Somebody else will get it, later: containerd will ask again.
    #[error("{0} is for somebody else to get from the registry, later: containerd asks again")]
    Later(Key),
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
    pub in_flight: InFlight,
}

/// Whether what a body has brought last came from a node that was still getting it. Cloneable; the body changes it as it goes
/// from source to source.
#[derive(Clone, Debug, Default)]
pub struct InFlight(Arc<AtomicBool>);

impl InFlight {
    pub fn is(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self, is: bool) {
        self.0.store(is, Ordering::Relaxed);
    }
}

impl Mirror {
    pub fn new(router: Arc<dyn Router>, config: Config, metrics: Metrics) -> Self {
        Self {
            router,
            scoreboard: metrics.scoreboard.clone(),
            intake: Intake::default(),
            hopeless: Arc::default(),
            flight: None,
            papers: Papers::default(),
            config,
            metrics,
        }
    }

    /// Content that nobody holds is shared with those who want it in the same moment.
    pub fn with_flight(self, flight: Flight) -> Self {
        Self {
            flight: Some(flight),
            ..self
        }
    }

    pub fn with_papers(self, papers: Papers) -> Self {
        Self { papers, ..self }
    }

    /// What this node shows to peers.
    pub fn papers(&self) -> &Papers {
        &self.papers
    }

    /// A blob with its first byte in hand; the body goes on with other peers when one fails.
    pub async fn blob(
        &self,
        wanted: Wanted,
        range: Option<ByteRange>,
    ) -> Result<Fetched, FetchError> {
        if self.is_hopeless(&wanted.key) {
            return Err(FetchError::Hopeless(wanted.key));
        }
        let (key, path_and_query) = (wanted.key.clone(), wanted.path_and_query.clone());
        let mut sources = self.sources(wanted).await?;
        let ask = Ask {
            method: Method::GET,
            path_and_query,
            range,
            growing: None,
            following: sources.following(),
        };
        let length = self.length(&key).await;
        let source = loop {
            let mut source = sources.deliver(&ask).await?;
            let deadline = sources.search.deadline;
            match checked(&mut source, &key, length, deadline).await {
                Ok(()) => break source,
                Err(error) => sources.failed(&source, error),
            }
        };
        let answer = &source.delivery.answer;
        let (span, total) = (answer.span, answer.total);
        let in_flight = InFlight::default();
        Ok(Fetched {
            span,
            total,
            body: body::unbroken(sources, ask.path_and_query, source, in_flight.clone()),
            in_flight,
        })
    }

    /// Those who hold `key`, and those who are getting it.
    async fn sources(&self, wanted: Wanted) -> Result<Sources, FetchError> {
        let Wanted {
            key,
            puller,
            journey,
            ..
        } = wanted;
        let began = Instant::now();
        let boarding = match (&key, &self.flight) {
            (Key::Content(digest), Some(flight)) if flight.is_on() && !puller.is_trial => {
                if flight.leads_just_now(digest) {
                    return Err(FetchError::Lead(key));
                }
                Boarding::begin(self, digest, &puller, began).await
            }
            _ => None,
        };
        Ok(Sources {
            search: Search::new(self.clone(), key, began, journey),
            boarding,
        })
    }

    /// Other nodes that hold `key`, as far as they are heard of within `limit`.
    pub async fn holders(&self, key: Key, limit: Duration) -> Vec<Peer> {
        let mut holders = Vec::new();
        let mut lookup = self.router.lookup(key);
        let heard = async {
            while let Some(peer) = lookup.next().await {
                holders.push(peer);
            }
        };
        // What was heard by then is all that is wanted.
        let _ = tokio::time::timeout(limit, heard).await;
        holders
    }

    /// What is remembered of peers that have been asked for something.
    pub fn scores(&self) -> HashMap<PeerId, Score> {
        self.scoreboard.all()
    }

    /// What this node is getting, and how it takes part in that; nothing where it shares nothing.
    pub fn flights(&self) -> Vec<flight::UnderWay> {
        let flight = self.flight.as_ref();
        flight.map(Flight::under_way).unwrap_or_default()
    }

    /// Length of a blob in bytes.
    pub async fn blob_size(&self, wanted: Wanted) -> Result<u64, FetchError> {
        let ask = Ask {
            method: Method::HEAD,
            path_and_query: wanted.path_and_query,
            range: None,
            growing: None,
            following: Following::No,
        };
        let mut search = Search::new(
            self.clone(),
            wanted.key,
            Instant::now(),
            wanted.journey.clone(),
        );
        let delivery = search.deliver(&ask).await?;
        let peer = &delivery.peer;
        wanted.journey.begins(peer.id.as_str(), peer.at(), false);
        Ok(delivery.answer.total)
    }

    /// As containerd knows it, where it is about to store it.
    async fn length(&self, key: &Key) -> Option<u64> {
        match (&self.flight, key) {
            (Some(flight), Key::Content(digest)) => flight.length(digest).await,
            _ => None,
        }
    }

    fn is_distrusted(&self, peer: &PeerId, key: &Key) -> bool {
        match (&self.flight, key) {
            (Some(flight), Key::Content(digest)) => flight.is_distrusted(peer, digest),
            _ => false,
        }
    }

    fn is_hopeless(&self, key: &Key) -> bool {
        let hopeless = self.hopeless.lock().unwrap_or_else(PoisonError::into_inner);
        hopeless
            .get(key)
            .is_some_and(|until| Instant::now() < *until)
    }

    /// Lets the next requests for `key` go upstream at once.
    fn give_up(&self, key: &Key) {
        info!(%key, "peers bring it too slowly: leaving it to the registry for a while");
        let now = Instant::now();
        let mut hopeless = self.hopeless.lock().unwrap_or_else(PoisonError::into_inner);
        hopeless.retain(|_, until| now < *until);
        hopeless.insert(key.clone(), now + HOPELESS);
    }
}
