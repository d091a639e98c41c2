//! The contract of [`ContentStore`].

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};

use crate::content::{Blob, ContentStore, Snapshot};
use crate::oci::{Digest, ImageName, Key, TagName};

/// How soon a change must show. What users wait for is that another node finds it within two seconds.
const SOON: Duration = Duration::from_secs(2);

/// A store and the means to change what it holds, from behind its back.
#[async_trait]
pub trait Fixture: Send + Sync {
    fn store(&self) -> Arc<dyn ContentStore>;
    /// Adds an image of one layer.
    async fn add(&self, tag: &TagName) -> Image;
    /// A second name for an image that is there.
    async fn add_tag(&self, tag: &TagName, another: &TagName);
    /// Removes a name, and what nothing else names.
    async fn remove(&self, tag: &TagName);
}

/// What a fixture has added.
#[derive(Clone, Debug)]
pub struct Image {
    pub manifest: Digest,
    pub layer: Digest,
    pub layer_bytes: Vec<u8>,
}

/// Runs the whole suite.
pub async fn all(fixture: &dyn Fixture) {
    what_is_not_held_is_not_there(fixture).await;
    an_added_image_is_listed_and_served(fixture).await;
    one_of_two_tags_can_go(fixture).await;
    a_new_watcher_hears_what_is_held(fixture).await;
}

pub async fn what_is_not_held_is_not_there(fixture: &dyn Fixture) {
    let store = fixture.store();

    assert_eq!(store.resolve(&tag("nothing")).await.unwrap(), None);
    assert!(
        store
            .open(&Digest::sha256(b"nothing"))
            .await
            .unwrap()
            .is_none()
    );
}

pub async fn an_added_image_is_listed_and_served(fixture: &dyn Fixture) {
    let (store, tag) = (fixture.store(), tag("added"));
    let mut listed = Listed::of(&*store);
    let image = fixture.add(&tag).await;

    let held = listed
        .until("it is listed with its blobs", |keys| {
            [
                tag.clone().into(),
                image.manifest.clone().into(),
                image.layer.clone().into(),
            ]
            .iter()
            .all(|key| keys.contains(key))
        })
        .await;
    // It says whose content that is.
    let named = crate::content::Image {
        repository: tag.repository().clone(),
        tag: Some(tag.clone()),
        manifest: image.manifest.clone(),
    };
    assert!(held.images.contains(&named), "{:?}", held.images);
    assert_eq!(
        store.resolve(&tag).await.unwrap(),
        Some(image.manifest.clone())
    );
    let manifest = open(&*store, &image.manifest).await;
    let manifest = manifest.read_all(1 << 20).await.unwrap();
    assert!(image.manifest.verifies(&manifest));
    let layer = open(&*store, &image.layer).await;
    assert_eq!(layer.size(), image.layer_bytes.len() as u64);
    for (start, end) in [
        (0, layer.size()),
        (1, 2),
        (layer.size() - 1, layer.size()),
        (5, 5),
    ] {
        let read: Vec<_> = layer.read(start..end).try_collect().await.unwrap();
        assert_eq!(
            read.concat(),
            image.layer_bytes[start as usize..end as usize]
        );
    }
    let beyond: Result<Vec<_>, _> = layer.read(0..layer.size() + 1).try_collect().await;
    assert!(
        beyond.is_err(),
        "more than there is must not look like success"
    );

    fixture.remove(&tag).await;
    listed
        .until("it is listed no longer", |keys| {
            !keys.contains(&Key::Tag(tag.clone()))
                && !keys.contains(&Key::Content(image.layer.clone()))
        })
        .await;
    assert_eq!(store.resolve(&tag).await.unwrap(), None);
    assert!(store.open(&image.layer).await.unwrap().is_none());
}

pub async fn one_of_two_tags_can_go(fixture: &dyn Fixture) {
    let (store, kept, removed) = (fixture.store(), tag("kept"), tag("removed"));
    let mut listed = Listed::of(&*store);
    let image = fixture.add(&removed).await;
    fixture.add_tag(&removed, &kept).await;
    listed
        .until("both are listed", |keys| {
            keys.contains(&kept.clone().into()) && keys.contains(&removed.clone().into())
        })
        .await;

    fixture.remove(&removed).await;

    listed
        .until("one is gone", |keys| {
            !keys.contains(&removed.clone().into())
        })
        .await;
    assert_eq!(store.resolve(&removed).await.unwrap(), None);
    assert_eq!(store.resolve(&kept).await.unwrap(), Some(image.manifest));
    open(&*store, &image.layer).await;
    fixture.remove(&kept).await;
}

pub async fn a_new_watcher_hears_what_is_held(fixture: &dyn Fixture) {
    let tag = tag("before");
    let image = fixture.add(&tag).await;

    Listed::of(&*fixture.store())
        .until("it hears of it", |keys| {
            keys.contains(&image.layer.clone().into())
        })
        .await;

    fixture.remove(&tag).await;
}

fn tag(name: &str) -> TagName {
    let name: ImageName = format!("registry.test/conformance/{name}:v1")
        .parse()
        .expect("a name");
    name.tag.expect("a tag")
}

async fn open(store: &dyn ContentStore, digest: &Digest) -> Blob {
    store
        .open(digest)
        .await
        .expect("the store answers")
        .unwrap_or_else(|| panic!("{digest} is held"))
}

/// What a store says that it holds, as it says it.
struct Listed(futures::stream::BoxStream<'static, Snapshot>);

impl Listed {
    fn of(store: &dyn ContentStore) -> Self {
        Self(store.watch())
    }

    async fn until(
        &mut self,
        what: &str,
        is_so: impl Fn(&std::collections::HashSet<Key>) -> bool,
    ) -> Snapshot {
        let seen = async {
            while let Some(held) = self.0.next().await {
                if is_so(&held.keys()) {
                    return held;
                }
            }
            panic!("the snapshots ended before: {what}");
        };
        tokio::time::timeout(SOON, seen)
            .await
            .unwrap_or_else(|_| panic!("not within {SOON:?}: {what}"))
    }
}
