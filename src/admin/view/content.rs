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
    /// Whether the cluster is told of it: by its tag, or by its digest if it has none.
    pub advertised: bool,
    /// Why not.
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
    /// Forgets those of images that have been removed.
    fn retain(&self, is_here: impl Fn(&Digest) -> bool) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|digest, _| is_here(digest));
    }

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
    debug
        .manifests
        .retain(|digest| held.snapshot.blobs.contains(digest));
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
    let why = why_not(image, &debug.filter, held);
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
        advertised: why.is_none(),
        why,
    }
}

/// Why the cluster is not told of an image by its tag, or by its digest if it has none. None: it is.
fn why_not(image: &Image, filter: &Filter, held: &Held) -> Option<String> {
    let (key, shared) = match &image.tag {
        Some(tag) => (Key::Tag(tag.clone()), filter.tag(tag)),
        None => (
            Key::Content(image.manifest.clone()),
            filter.content(&image.repository, &image.manifest),
        ),
    };
    if held.told.contains(&key) {
        return None;
    }
    Some(match shared {
        Err(left_out) => left_out.to_string(),
        Ok(()) => "not told yet".to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Repository, TagName};

    #[test]
    fn what_a_removed_image_listed_is_forgotten() {
        let manifests = Manifests::default();
        let [stays, goes] = [b"stays", b"goes!"].map(|bytes| Digest::sha256(bytes));
        let empty = br#"{"mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}"#;
        let contents = Arc::new(Contents::of(empty).unwrap());
        for digest in [&stays, &goes] {
            let mut kept = manifests.0.lock().unwrap();
            kept.insert(digest.clone(), contents.clone());
        }

        manifests.retain(|digest| *digest == stays);
        let kept = manifests.0.lock().unwrap();
        assert_eq!(kept.keys().collect::<Vec<_>>(), [&stays]);
    }

    #[test]
    fn what_is_not_advertised_says_why() {
        let repository = Repository::new("registry.test:5000", "team/app").unwrap();
        let manifest: Digest = format!("sha256:{}", "ab".repeat(32)).parse().unwrap();
        let tag = TagName::new(repository.clone(), "v1").unwrap();
        let by_digest = Key::Content(manifest.clone());
        let by_tag = Key::Tag(tag.clone());
        let other_host = "registry.test:5000 is not among the mirrored registries";
        for (name, hosts, pattern, told, why) in [
            ("v1", None, None, Some(&by_tag), None),
            ("v1", None, None, None, Some("not told yet")),
            // Its digest alone leads nobody who asks for the tag to it.
            ("v1", None, None, Some(&by_digest), Some("not told yet")),
            ("v1", Some("ghcr.io"), None, None, Some(other_host)),
            (
                "v1",
                Some("registry.test:5000"),
                Some("team/.*:v1$"),
                None,
                Some(
                    "registry.test:5000/team/app:v1 is left out: the registry filter \"team/.*:v1$\" matches it",
                ),
            ),
            ("v1", None, Some(":latest$"), None, Some("not told yet")),
            ("", None, None, Some(&by_digest), None),
            ("", None, None, None, Some("not told yet")),
            ("", Some("ghcr.io"), None, None, Some(other_host)),
            // Told as a part of another image.
            ("", Some("ghcr.io"), None, Some(&by_digest), None),
        ] {
            let image = Image {
                repository: repository.clone(),
                tag: (!name.is_empty()).then(|| tag.clone()),
                manifest: manifest.clone(),
            };
            let only = hosts.map(|host: &str| vec![host.to_string()]);
            let patterns = pattern.iter().map(|text: &&str| text.parse().unwrap());
            let filter = Filter::new(only, patterns.collect());
            let held = Held {
                told: Arc::new(told.into_iter().cloned().collect()),
                ..Held::default()
            };
            let told = why_not(&image, &filter, &held);
            assert_eq!(told.as_deref(), why, "{name:?} {hosts:?} {pattern:?}");
        }
    }
}
