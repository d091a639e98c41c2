//! What containerd does, watched for as long as the daemon runs: whether its pulls come to us, and whether layers stay.
//!
//! containerd 2.x tells nobody how it is configured, so that this is the only way there; and an operator who changes
//! config.toml later is noticed on 1.x, too.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::Registry;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::live::Observed;
use crate::advertise::Held;
use crate::content::containerd::Containerd;
use crate::content::{ContentStore as _, Image, Snapshot};
use crate::metrics;
use crate::oci::Digest;
use crate::oci::distribution::MAX_MANIFEST;
use crate::oci::filter::Filter;
use crate::oci::manifest::Listed;
use crate::registry::heard::Heard;

/// Discarded layers vanish 0.2 s after a pull, and an image's name and its layers are listed by two calls: what is still
/// missing after this long is not merely between the two.
const SETTLED: Duration = Duration::from_secs(3);
/// A manifest is read from a disk in milliseconds; one that hangs is left for the next snapshot.
const PATIENCE: Duration = Duration::from_secs(2);
/// As many in a row are no accident, where containerd has asked us before.
const IN_A_ROW: usize = 3;

/// Cloneable; all clones know the same.
#[derive(Clone)]
pub struct Observer(Arc<Inner>);

struct Inner {
    heard: Heard,
    observed: Mutex<Observed>,
}

impl Observer {
    pub fn new(heard: Heard, registry: &Registry) -> Self {
        let observer = Self(Arc::new(Inner {
            heard,
            observed: Mutex::default(),
        }));
        let of = observer.clone();
        metrics::looked_up(
            registry,
            "peili_pulls_past_mirror",
            "The last so many pulls of this node's containerd of which it has asked nothing here. More than 0 since the start \
             means that it does not read the directory that hosts.toml is in.",
            move || count(of.observed().pulls_past_us),
        );
        let of = observer.clone();
        metrics::looked_up(
            registry,
            "peili_images_without_layers",
            "Images on this node whose layers are not in containerd's content store, so that other nodes cannot get them: \
             discarded after unpacking (discard_unpacked_layers), or never fetched.",
            move || count(of.observed().without_layers),
        );
        observer
    }

    pub fn observed(&self) -> Observed {
        Observed {
            requests: self.0.heard.requests(),
            ..self.lock().clone()
        }
    }

    fn lock(&self) -> MutexGuard<'_, Observed> {
        self.0
            .observed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches until `stop`. `filter` says whose pulls ought to come to us.
    pub async fn run(
        self,
        mut holdings: watch::Receiver<Arc<Held>>,
        containerd: Containerd,
        filter: Arc<Filter>,
        stop: CancellationToken,
    ) {
        let mut pulls = Pulls::default();
        let mut layers = Layers::default();
        // The first value is nobody's: nothing is listed yet.
        let mut look_again = None;
        loop {
            let later = async {
                match look_again {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                changed = holdings.changed() => if changed.is_err() {
                    return;
                },
                () = later => {}
            }
            let held = holdings.borrow_and_update().clone();
            let looked = async {
                pulls
                    .look(&self, &held.snapshot, &containerd, &filter)
                    .await;
                layers.look(&self, &held.snapshot, &containerd).await
            };
            tokio::select! {
                () = stop.cancelled() => return,
                pending = looked => look_again = pending,
            }
        }
    }
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// As an operator knows it.
fn name(image: &Image) -> String {
    match &image.tag {
        Some(tag) => tag.to_string(),
        None => format!("{}@{}", image.repository, image.manifest),
    }
}

/// Those with a tag first: CRI gives each image a name by its digest, too.
fn by_name(snapshot: &Snapshot) -> Vec<&Image> {
    let mut images: Vec<&Image> = snapshot.images.iter().collect();
    images.sort_by_key(|image| image.tag.is_none());
    images
}

/// Which images have come since the start, and whether we were asked for them.
#[derive(Default)]
struct Pulls {
    /// What was held when we came. None: not yet known.
    before: Option<HashSet<Digest>>,
    judged: HashSet<Digest>,
    has_warned: bool,
}

impl Pulls {
    async fn look(
        &mut self,
        observer: &Observer,
        snapshot: &Snapshot,
        containerd: &Containerd,
        filter: &Filter,
    ) {
        let Some(before) = &self.before else {
            self.before = Some(snapshot.blobs.clone());
            return;
        };
        self.judged
            .retain(|manifest| snapshot.blobs.contains(manifest));
        for image in by_name(snapshot) {
            let manifest = &image.manifest;
            if before.contains(manifest) || self.judged.contains(manifest) {
                continue;
            }
            let Some(was_pulled) = containerd.was_pulled(manifest).await else {
                continue;
            };
            self.judged.insert(manifest.clone());
            // Nobody asks us for what was imported, nor for registries that hosts.toml does not name.
            if !was_pulled || filter.content(&image.repository, manifest).is_err() {
                continue;
            }
            let heard = &observer.0.heard;
            let mut observed = observer.lock();
            observed.pulls += 1;
            if heard.was_asked_for(manifest) {
                observed.pulls_past_us = 0;
                observed.past_us = None;
                continue;
            }
            observed.pulls_past_us += 1;
            observed.past_us = Some(name(image));
            let is_sure = heard.requests() == 0 || observed.pulls_past_us >= IN_A_ROW;
            if is_sure && !std::mem::replace(&mut self.has_warned, true) {
                warn!(
                    image = name(image),
                    requests = heard.requests(),
                    "containerd pulls without asking this mirror: it does not read the directory that hosts.toml is in; \
                     `peili doctor` says what to change"
                );
            }
        }
    }
}

/// Which images lack their layers.
#[derive(Default)]
struct Layers {
    /// What the manifests list that are held: they never change.
    listed: HashMap<Digest, Arc<Listed>>,
    /// Since when each has been seen without.
    without: HashMap<Digest, Instant>,
    has_warned: bool,
}

impl Layers {
    /// Returns when to look again, if something is not yet sure.
    async fn look(
        &mut self,
        observer: &Observer,
        snapshot: &Snapshot,
        containerd: &Containerd,
    ) -> Option<Instant> {
        let now = Instant::now();
        self.listed
            .retain(|digest, _| snapshot.blobs.contains(digest));
        let mut names: HashMap<&Digest, &Image> = HashMap::new();
        for image in by_name(snapshot) {
            names.entry(&image.manifest).or_insert(image);
        }
        let (mut images, mut lacking) = (0, HashMap::new());
        for (top, image) in names {
            match self.is_whole(top, snapshot, containerd).await {
                Some(true) => images += 1,
                Some(false) => {
                    images += 1;
                    let since = self.without.get(top).copied().unwrap_or(now);
                    lacking.insert(top.clone(), (since, image));
                }
                None => {}
            }
        }
        let sure: Vec<&Image> = lacking
            .values()
            .filter(|(since, _)| now >= *since + SETTLED)
            .map(|(_, image)| *image)
            .collect();
        let pending = lacking.values().map(|(since, _)| *since + SETTLED);
        let again = pending.filter(|at| *at > now).min();
        let example = sure.iter().map(|image| name(image)).min();
        if let Some(image) = &example
            && !std::mem::replace(&mut self.has_warned, true)
        {
            warn!(
                image,
                images = sure.len(),
                of = images,
                "images are here without their layers, which other nodes can then not get: containerd discards them after \
                 unpacking (discard_unpacked_layers), or has never fetched them; `peili doctor` says what to change"
            );
        }
        {
            let mut observed = observer.lock();
            observed.images = images;
            observed.without_layers = sure.len();
            observed.without = example;
        }
        self.without = lacking
            .into_iter()
            .map(|(top, (since, _))| (top, since))
            .collect();
        again
    }

    /// Whether one of the image's manifests has all that it lists. Of an index other platforms' may be here, too, without
    /// what they list. None where nothing can be told: no manifest of an image is here, or it cannot be read now.
    async fn is_whole(
        &mut self,
        top: &Digest,
        snapshot: &Snapshot,
        containerd: &Containerd,
    ) -> Option<bool> {
        let mut told = None;
        let (mut next, mut seen) = (vec![top.clone()], HashSet::from([top.clone()]));
        while let Some(digest) = next.pop() {
            let listed = self.read(&digest, containerd).await?;
            let below = listed.manifests.iter();
            next.extend(
                below
                    .filter(|digest| snapshot.blobs.contains(*digest))
                    .filter(|digest| seen.insert((*digest).clone()))
                    .cloned(),
            );
            let mut held = listed
                .blobs
                .iter()
                .map(|blob| snapshot.blobs.contains(blob));
            match held.clone().filter(|is_held| *is_held).count() {
                // Another platform's, of which there is only the manifest.
                0 => {}
                _ if held.all(|is_held| is_held) => return Some(true),
                _ => told = Some(false),
            }
        }
        told
    }

    async fn read(&mut self, digest: &Digest, containerd: &Containerd) -> Option<Arc<Listed>> {
        if let Some(listed) = self.listed.get(digest) {
            return Some(listed.clone());
        }
        let read = async {
            let blob = containerd.open(digest).await.ok()??;
            blob.read_all(MAX_MANIFEST).await.ok()
        };
        let bytes = timeout(PATIENCE, read).await.ok()??;
        let listed = Arc::new(Listed::by(&bytes));
        self.listed.insert(digest.clone(), listed.clone());
        Some(listed)
    }
}
