//! The images here: what they are, and what of them the cluster is told.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use super::super::Debug;
use crate::advertise::Held;
use crate::content::{ContentStore, Image};
use crate::oci::distribution::MAX_MANIFEST;
use crate::oci::filter::Filter;
use crate::oci::manifest::Contents;
use crate::oci::{Digest, Key};

/// Rows of one answer. A search finds the rest.
const MAX: usize = 200;
/// Manifests of one image that are looked at: an index has one for each platform, and one for each attestation.
const MAX_MANIFESTS: usize = 64;
/// For all manifests that are read for one answer: milliseconds, unless the disk hangs.
const PATIENCE: Duration = Duration::from_secs(2);
/// Manifests never change; of so many, what they list is kept.
const MAX_KEPT: usize = 2048;

#[derive(Clone, Debug, Serialize)]
pub struct Content {
    /// As many images as the search finds.
    pub found: usize,
    /// Of these, the first 200 by name.
    pub images: Vec<Row>,
    /// Blobs held, whatever they belong to, and keys that the cluster is told.
    pub blobs: usize,
    pub advertised: usize,
}

#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub image: String,
    pub tag: Option<String>,
    pub digest: Digest,
    pub media_type: String,
    /// For which all of it is here, and others of which only parts are.
    pub platforms: Vec<Platform>,
    /// Of all its blobs that are here, each once, in bytes.
    pub bytes: u64,
    pub advertised: bool,
    /// Why the tag is not told.
    pub why: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Platform {
    pub platform: String,
    /// All of its layers are here.
    pub whole: bool,
}

/// What manifests list, once they have been read. Cloneable; all clones keep the same.
#[derive(Clone, Debug, Default)]
pub struct Manifests(Arc<Mutex<HashMap<Digest, Arc<Contents>>>>);

impl Manifests {
    async fn of(
        &self,
        store: &dyn ContentStore,
        digest: &Digest,
        until: Instant,
    ) -> Option<Arc<Contents>> {
        let kept = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(digest)
            .cloned();
        if kept.is_some() {
            return kept;
        }
        let read = async {
            let blob = store.open(digest).await.ok()??;
            blob.read_all(MAX_MANIFEST).await.ok()
        };
        let bytes = timeout_at(until, read).await.ok()??;
        let contents = Arc::new(Contents::of(&bytes)?);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        kept.insert(digest.clone(), contents.clone());
        Some(contents)
    }
}

pub async fn of(debug: &Debug, search: &str) -> Content {
    let held = debug.holdings.now();
    let search = search.trim().to_lowercase();
    let name = |image: &Image| match &image.tag {
        Some(tag) => tag.to_string(),
        None => format!("{}@{}", image.repository, image.manifest),
    };
    let mut images: Vec<(String, &Image)> = held
        .snapshot
        .images
        .iter()
        .map(|image| (name(image), image))
        .filter(|(name, image)| {
            name.to_lowercase().contains(&search) || image.manifest.as_str().contains(&search)
        })
        .collect();
    images.sort_by(|a, b| a.0.cmp(&b.0));
    let found = images.len();
    let until = Instant::now() + PATIENCE;
    let mut rows = Vec::new();
    for (_, image) in images.into_iter().take(MAX) {
        rows.push(row(debug, &held, image, until).await);
    }
    Content {
        found,
        images: rows,
        blobs: held.snapshot.blobs.len(),
        advertised: held.told.len(),
    }
}

async fn row(debug: &Debug, held: &Held, image: &Image, until: Instant) -> Row {
    let store = &*debug.store;
    let top = debug.manifests.of(store, &image.manifest, until).await;
    let is_here = |digest: &Digest| held.snapshot.blobs.contains(digest);
    let mut sizes: HashMap<Digest, u64> = HashMap::new();
    let mut platforms = Vec::new();
    let mut add = |contents: &Contents| {
        let parts = contents.config.iter().chain(&contents.layers);
        let mut whole = true;
        for part in parts {
            match is_here(&part.digest) {
                true => _ = sizes.insert(part.digest.clone(), part.size),
                false => whole = false,
            }
        }
        whole
    };
    if let Some(top) = &top {
        if top.manifests.is_empty() {
            add(top);
        }
        for listing in top.manifests.iter().take(MAX_MANIFESTS) {
            let digest = &listing.descriptor.digest;
            // Attestations are of no platform.
            let is_one = listing.os != "unknown" && !listing.os.is_empty();
            let whole = match is_here(digest) {
                true => debug
                    .manifests
                    .of(store, digest, until)
                    .await
                    .is_some_and(|c| add(&c)),
                false => false,
            };
            if is_one {
                platforms.push(Platform {
                    platform: listing.platform(),
                    whole,
                });
            }
        }
    }
    let key = image.tag.clone().map(Key::Tag);
    let advertised = key.as_ref().is_some_and(|key| held.told.contains(key));
    Row {
        image: image.repository.to_string(),
        tag: image.tag.as_ref().map(|tag| tag.tag().to_string()),
        digest: image.manifest.clone(),
        media_type: top
            .as_ref()
            .map(|top| top.media_type.clone())
            .unwrap_or_default(),
        platforms,
        bytes: sizes.values().sum(),
        why: (!advertised).then(|| why_not(image, &debug.filter, held)),
        advertised,
    }
}

/// Why an image's tag is not told to the cluster.
fn why_not(image: &Image, filter: &Filter, held: &Held) -> String {
    let Some(tag) = &image.tag else {
        let is_told = held.told.contains(&Key::Content(image.manifest.clone()));
        return match is_told {
            true => "it has no tag; its digest is advertised".to_string(),
            false => "it has no tag, and its digest is left out or not told yet".to_string(),
        };
    };
    match filter.tag(tag) {
        Err(left_out) => left_out.to_string(),
        Ok(()) => "not told yet".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Repository, TagName};

    #[test]
    fn what_is_not_advertised_says_why() {
        let repository = Repository::new("registry.test:5000", "team/app").unwrap();
        let manifest: Digest = format!("sha256:{}", "ab".repeat(32)).parse().unwrap();
        let tag = TagName::new(repository.clone(), "v1").unwrap();
        let by_digest = Key::Content(manifest.clone());
        for (name, hosts, pattern, told, why) in [
            ("v1", None, None, None, "not told yet"),
            (
                "v1",
                Some("ghcr.io"),
                None,
                None,
                "registry.test:5000 is not among the mirrored registries",
            ),
            (
                "v1",
                Some("registry.test:5000"),
                Some("team/.*:v1$"),
                None,
                "registry.test:5000/team/app:v1 is left out: the registry filter \"team/.*:v1$\" matches it",
            ),
            ("v1", None, Some(":latest$"), None, "not told yet"),
            (
                "",
                None,
                None,
                Some(by_digest),
                "it has no tag; its digest is advertised",
            ),
            (
                "",
                None,
                None,
                None,
                "it has no tag, and its digest is left out or not told yet",
            ),
        ] {
            let image = Image {
                repository: repository.clone(),
                tag: (!name.is_empty()).then(|| tag.clone()),
                manifest: manifest.clone(),
            };
            let hosts = hosts.map(|host: &str| vec![host.to_string()]);
            let patterns = pattern.iter().map(|text: &&str| text.parse().unwrap());
            let filter = Filter::new(hosts, patterns.collect());
            let held = Held {
                told: Arc::new(told.into_iter().collect()),
                ..Held::default()
            };
            assert_eq!(why_not(&image, &filter, &held), why, "{pattern:?}");
        }
    }
}
