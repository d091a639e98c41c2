//! Content that nobody holds yet and others are getting, too: this node's part in getting it once.
//!
//! ```text
//! boarding   one request: ask the rendezvous; lead (404), follow a parent, or come back
//! part       what this node is getting now, and how it stands; pure
//! registries which registries are faster than those who are followed; pure
//! reporter   looks at containerd's ingests, tells the rendezvous, hears how flights stand
//! images     which image a blob is part of
//! blame      who brought what containerd refused
//! ```
//!
//! A containerd that has asked us is given bytes or a 404, and nothing else can be said to it: whoever leads gets the
//! 404, and its ingest becomes the source for the others.

mod blame;
pub(super) mod boarding;
mod images;
pub mod part;
pub mod registries;
mod reporter;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::{IntCounter, Registry};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{InFlightSharing, Papers};
use crate::content::ContentStore;
use crate::inflight::{Inflight, Ingest, Passing, Uplink};
use crate::metrics;
use crate::oci::Digest;
use crate::routing::PeerId;
use crate::routing::rendezvous::{self, Generation, Progress, Rendezvous, Standing};
use blame::Distrust;
use images::Images;
use part::{Part, Role};
use registries::Registries;

/// For so long after it got nothing from the registry a node lets others try first.
const VAIN: Duration = Duration::from_secs(20);
/// Parts of one node at once. containerd downloads three layers of each image at a time, and `ctr` all of them; what comes
/// beyond this goes to the registry without us.
const MAX_PARTS: usize = 128;

#[derive(Clone, Debug)]
pub struct Metrics {
    led: IntCounter,
    followed: IntCounter,
    replaced: IntCounter,
    missed: IntCounter,
    postponed: IntCounter,
    refused: IntCounter,
}

impl Metrics {
    pub fn new(registry: &Registry) -> Self {
        let counter = |name, help| metrics::counter(registry, name, help);
        Self {
            led: counter(
                "peili_flights_led_total",
                "Contents that this node was told to get from the registry, for itself and those who follow.",
            ),
            followed: counter(
                "peili_flights_followed_total",
                "Contents that this node began to take from a node that was still getting them.",
            ),
            replaced: counter(
                "peili_flight_parents_replaced_total",
                "Parents that stopped before they had brought everything, were too slow, or gave nothing.",
            ),
            missed: counter(
                "peili_flight_deadlines_missed_total",
                "Requests that went to the registry because nothing had come in time from those who lead.",
            ),
            postponed: counter(
                "peili_flight_requests_postponed_total",
                "Requests of containerd 2.x that were sent back to be asked again, so that other layers come first.",
            ),
            refused: counter(
                "peili_contents_refused_total",
                "Contents from peers that containerd refused because their bytes were wrong.",
            ),
        }
    }
}

/// What sharing needs of the rest of the node.
pub struct Parts {
    pub rendezvous: Arc<dyn Rendezvous>,
    pub store: Arc<dyn ContentStore>,
    pub inflight: Inflight,
    pub uplink: Uplink,
    pub sharing: InFlightSharing,
    /// What peers are shown.
    pub papers: Papers,
}

/// Cloneable; all clones are the same node.
#[derive(Clone)]
pub struct Flight(Arc<Inner>);

struct Inner {
    rendezvous: Arc<dyn Rendezvous>,
    store: Arc<dyn ContentStore>,
    inflight: Inflight,
    uplink: Uplink,
    sharing: InFlightSharing,
    papers: Papers,
    parts: Mutex<HashMap<Digest, Part>>,
    /// What this node led and got nothing of, and when.
    in_vain: Mutex<HashMap<Digest, Instant>>,
    images: Images,
    is_leaving: AtomicBool,
    registries: Mutex<Registries>,
    distrust: Distrust,
    /// There is something to look at.
    wake: Notify,
    metrics: Metrics,
}

/// One content that this node is getting, and its part in it.
#[derive(Clone, Debug)]
pub struct UnderWay {
    pub digest: Digest,
    /// Whose part it is: `registry/repository@digest`, or `registry/repository` where the manifest is not known.
    pub image: String,
    pub role: Role,
    /// For how long it has had this role.
    pub since: Duration,
    /// Bytes that are here, from the first on.
    pub offset: u64,
    /// Its length in bytes, once that is known.
    pub total: Option<u64>,
    /// Bytes per second at which it grows.
    pub rate: u64,
    /// How whoever is furthest among those who lead stands.
    pub leaders: Progress,
}

/// Whose pull a request is part of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Puller {
    /// `registry/repository`.
    pub image: String,
    pub generation: Generation,
    /// A 404 is not the last word: containerd asks us once more.
    pub may_ask_again: bool,
    /// Nothing is stored of what it gets, so nobody can follow it, and it takes part in no flight.
    pub is_trial: bool,
}

impl Flight {
    pub fn new(parts: Parts, metrics: Metrics) -> Self {
        Self(Arc::new(Inner {
            images: Images::new(parts.store.clone()),
            rendezvous: parts.rendezvous,
            store: parts.store,
            inflight: parts.inflight,
            uplink: parts.uplink,
            sharing: parts.sharing,
            papers: parts.papers,
            parts: Mutex::default(),
            in_vain: Mutex::default(),
            is_leaving: AtomicBool::new(false),
            registries: Mutex::default(),
            distrust: Distrust::default(),
            wake: Notify::new(),
            metrics,
        }))
    }

    pub fn is_on(&self) -> bool {
        self.0.sharing != InFlightSharing::Off
            && !self.0.is_leaving.load(Ordering::Relaxed)
            && self.0.inflight.is_on()
    }

    /// What this node is getting now, for people.
    pub fn under_way(&self) -> Vec<UnderWay> {
        let now = Instant::now();
        let parts = self.parts();
        let all = parts.iter().map(|(digest, part)| UnderWay {
            digest: digest.clone(),
            image: part.image.clone(),
            role: part.role.clone(),
            since: now.saturating_duration_since(part.since),
            offset: part.offset,
            total: part.ingest.as_ref().map(Ingest::total),
            rate: part.rate(now),
            leaders: part.progress,
        });
        all.collect()
    }

    /// Takes part in nothing any more, and says so: this node's listener is about to refuse those who would follow. Bodies
    /// under way go on.
    pub async fn leave(&self) {
        self.0.is_leaving.store(true, Ordering::Relaxed);
        let gone: Vec<Standing> = {
            let parts = self.parts();
            let gone = parts.iter().map(|(digest, part)| Standing {
                digest: digest.clone(),
                generation: part.generation,
                part: rendezvous::Part::Gone,
                offset: 0,
                rate: 0,
                node_rate: 0,
                free: 0,
            });
            gone.collect()
        };
        if !gone.is_empty() {
            self.0.rendezvous.report(gone).await;
        }
    }

    /// Watches what this node is getting and tells the rendezvous, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = reporter::run(self) => {}
        }
    }

    /// containerd asks for a manifest: blobs of its image may come next.
    pub fn asked_for_manifest(&self, image: &str, digest: &Digest) {
        self.0.images.note(image, digest);
    }

    /// Whether this node has just been told to get `digest` from the registry: then its containerd, which may ask us several
    /// times, needs no other answer. On its way from a source that was too slow a containerd 2.x queues for seconds before
    /// each of these times; who answered it anew would send it back to that source.
    pub fn leads_just_now(&self, digest: &Digest) -> bool {
        /// A pull of a busy containerd asks all its hosts within milliseconds.
        const JUST_NOW: Duration = Duration::from_secs(1);
        /// Longer than a layer of 100 MiB takes its place from others at 10 MB/s.
        const QUEUED: Duration = Duration::from_secs(15);
        let parts = self.parts();
        parts.get(digest).is_some_and(|part| {
            let has_begun = part.grew > part.since;
            let limit = match part.went_for_more() && !has_begun {
                true => QUEUED,
                false => JUST_NOW,
            };
            matches!(part.role, Role::Leads { .. }) && part.since.elapsed() < limit
        })
    }

    /// How long `digest` is, as its download here has it from the manifest. None where there is none.
    pub async fn length(&self, digest: &Digest) -> Option<u64> {
        let ingest = self.0.inflight.find(digest).await.ok()??;
        let total = ingest.total();
        // Held from here on: a small layer is filled, refused and gone between two looks of the reporter, who would then
        // know of no refusal. And whoever asks again at once must not be sent to where that one came from.
        if let Some(part) = self.parts().get_mut(digest)
            && part.ingest.as_ref().is_none_or(Ingest::is_unlinked)
            && let Some(before) = part.ingest.replace(ingest)
            && before.was_refused()
        {
            reporter::refused(self, digest, std::mem::take(&mut part.givers));
        }
        Some(total)
    }

    /// Whether `peer` brought bytes of `digest` that containerd refused.
    pub fn is_distrusted(&self, peer: &PeerId, digest: &Digest) -> bool {
        self.0.distrust.is_distrusted(peer, digest)
    }

    /// A request for `digest` is in hand, until what is returned is dropped. None when there are too many.
    fn aboard(&self, digest: &Digest, puller: &Puller, image: String) -> Option<Aboard> {
        let now = Instant::now();
        let mut parts = self.parts();
        if parts.len() >= MAX_PARTS && !parts.contains_key(digest) {
            return None;
        }
        let part = parts
            .entry(digest.clone())
            .or_insert_with(|| Part::new(image, puller.generation, &self.0.inflight, digest, now));
        part.requests += 1;
        let (slow, given) = (part.slow.subscribe(), part.given.clone());
        let passing = part.passing.clone();
        drop(parts);
        self.0.wake.notify_one();
        Some(Aboard {
            flight: self.clone(),
            digest: digest.clone(),
            slow,
            given,
            passing,
        })
    }

    /// Whether containerd, which downloads a few layers of `image` at a time, could be getting another one than `digest`: one
    /// that somebody is getting, or that it has not asked for yet.
    async fn keeps_another_waiting(&self, digest: &Digest, image: &str) -> bool {
        let Some(blobs) = self.0.images.blobs(image) else {
            return true;
        };
        let unknown: Vec<&Digest> = {
            let parts = self.parts();
            let mut others = parts.iter().filter(|(other, _)| *other != digest);
            if others.any(|(_, part)| part.image == image && part.is_kept_waiting()) {
                return true;
            }
            let is_unknown = |blob: &&Digest| !parts.contains_key(*blob);
            blobs.iter().filter(is_unknown).collect()
        };
        for blob in unknown {
            if !matches!(self.0.store.open(blob).await, Ok(Some(_))) {
                return true;
            }
        }
        false
    }

    fn role(&self, digest: &Digest) -> Option<Role> {
        self.parts().get(digest).map(|part| part.role.clone())
    }

    fn change(&self, digest: &Digest, change: impl FnOnce(&mut Part)) {
        if let Some(part) = self.parts().get_mut(digest) {
            change(part);
        }
        self.0.wake.notify_one();
    }

    fn registries(&self) -> MutexGuard<'_, Registries> {
        let registries = self.0.registries.lock();
        registries.unwrap_or_else(PoisonError::into_inner)
    }

    fn led_in_vain(&self, digest: &Digest) -> bool {
        let in_vain = self
            .0
            .in_vain
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        in_vain.get(digest).is_some_and(|at| at.elapsed() < VAIN)
    }

    fn note_in_vain(&self, digest: &Digest) {
        let mut in_vain = self
            .0
            .in_vain
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        in_vain.retain(|_, at| at.elapsed() < VAIN);
        in_vain.insert(digest.clone(), Instant::now());
    }

    fn parts(&self) -> MutexGuard<'_, HashMap<Digest, Part>> {
        self.0.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request of this node's containerd that takes part in a flight.
struct Aboard {
    flight: Flight,
    digest: Digest,
    /// Turns true when leading would be faster.
    slow: watch::Receiver<bool>,
    /// How far the bytes go that containerd was given.
    given: Arc<AtomicU64>,
    passing: Arc<Passing>,
}

impl Drop for Aboard {
    fn drop(&mut self) {
        let now = Instant::now();
        self.flight.change(&self.digest, |part| {
            part.requests -= 1;
            part.left = now;
        });
    }
}
