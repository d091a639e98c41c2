use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};

use super::*;
use crate::content::{Blob, Image, ReadRange};
use crate::oci::{ImageName, TagName};

/// What a node holds.
#[derive(Default)]
struct Node {
    blobs: HashMap<Digest, Bytes>,
    images: HashSet<Image>,
    reads: AtomicUsize,
    is_unreachable: AtomicBool,
}

struct InMemory(Bytes);

impl ReadRange for InMemory {
    fn read_range(&self, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        let bytes = self.0.slice(range.start as usize..range.end as usize);
        stream::iter([Ok(bytes)]).boxed()
    }
}

#[async_trait]
impl ContentStore for Node {
    async fn resolve(&self, _: &TagName) -> Result<Option<Digest>, StoreError> {
        unreachable!("nobody resolves")
    }

    async fn open(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if self.is_unreachable.load(Ordering::Relaxed) {
            return Err(StoreError::Unreachable("it was told to be".into()));
        }
        let blob = self.blobs.get(digest).cloned();
        Ok(blob.map(|bytes| {
            let size = bytes.len() as u64;
            Blob::from_reader(InMemory(bytes), size)
        }))
    }

    fn watch(&self) -> BoxStream<'static, Snapshot> {
        unreachable!("nobody watches")
    }
}

fn tag(name: &str) -> TagName {
    let name: ImageName = name.parse().expect(name);
    name.tag.expect("a tag")
}

fn repository(name: &str) -> Repository {
    tag(&format!("{name}:x")).repository().clone()
}

fn manifest(layers: &[&Digest]) -> String {
    let layers = layers
        .iter()
        .map(|layer| serde_json::json!({"digest": layer.as_str()}));
    serde_json::json!({"layers": layers.collect::<Vec<_>>()}).to_string()
}

fn index(manifests: &[&Digest]) -> String {
    let manifests = manifests
        .iter()
        .map(|m| serde_json::json!({"digest": m.as_str()}));
    serde_json::json!({"manifests": manifests.collect::<Vec<_>>()}).to_string()
}

fn filter(registries: &[&str], patterns: &[&str]) -> Arc<Filter> {
    let hosts = || registries.iter().map(|host| host.to_string()).collect();
    let patterns = patterns.iter().map(|text| text.parse().expect(text));
    let hosts = (!registries.is_empty()).then(hosts);
    Arc::new(Filter::new(hosts, patterns.collect()))
}

impl Node {
    fn add_blob(&mut self, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::sha256(&bytes);
        self.blobs.insert(digest.clone(), bytes);
        digest
    }

    fn add(&mut self, name: &str, manifest: String) -> Digest {
        let manifest = self.add_blob(manifest);
        let tag = tag(name);
        self.images.insert(Image {
            repository: tag.repository().clone(),
            tag: Some(tag),
            manifest: manifest.clone(),
        });
        manifest
    }

    fn held(&self) -> Snapshot {
        Snapshot {
            blobs: self.blobs.keys().cloned().collect(),
            images: self.images.clone(),
        }
    }

    async fn told(&self, filter: &Arc<Filter>) -> HashSet<Key> {
        let mut selection = Selection::new(filter.clone(), Pulls::default());
        selection.of(self, &self.held()).await
    }
}

fn keys(content: &[&Digest], tags: &[&str]) -> HashSet<Key> {
    let content = content.iter().map(|digest| Key::Content((*digest).clone()));
    content
        .chain(tags.iter().map(|name| Key::Tag(tag(name))))
        .collect()
}

#[tokio::test]
async fn content_is_told_if_any_image_that_has_it_is_and_tags_each_for_itself() {
    let mut node = Node::default();
    let [both, open, secret] = ["both", "open", "secret"].map(|text| node.add_blob(text));
    let here = node.add_blob(manifest(&[&both, &open]));
    let elsewhere = Digest::sha256(b"of another platform, and not held");
    let public = node.add("a.test/open:v1", index(&[&elsewhere, &here]));
    let private = node.add("b.test/secret/app:v1", manifest(&[&both, &secret]));
    // Nothing says whose.
    let stray = node.add_blob("stray");

    let everything = node.held().keys();
    assert_eq!(node.told(&filter(&[], &[])).await, everything);
    assert_eq!(everything.len(), 9);

    let kept = keys(&[&both, &open, &here, &public], &["a.test/open:v1"]);
    for (registries, patterns) in [
        (&[][..], &["/secret/"][..]),
        (&["a.test"], &[]),
        (&["a.test", "b.test"], &["^b\\.test/"]),
    ] {
        let filter = filter(registries, patterns);
        assert_eq!(
            node.told(&filter).await,
            kept,
            "{registries:?} {patterns:?}"
        );
    }
    // A tag is a name, and its content is another.
    let mut without_tags = everything.clone();
    without_tags.retain(|key| matches!(key, Key::Content(digest) if *digest != stray));
    assert_eq!(node.told(&filter(&[], &[":v1$"])).await, without_tags);
    let pinned = format!("@{secret}$");
    let mut without_one = everything.clone();
    without_one
        .retain(|key| *key != Key::Content(secret.clone()) && *key != Key::Content(stray.clone()));
    assert_eq!(node.told(&filter(&[], &[&pinned])).await, without_one);
    assert_eq!(node.told(&filter(&[], &["."])).await, keys(&[], &[]));
    assert_eq!(
        node.told(&filter(&["b.test"], &[])).await,
        keys(&[&both, &secret, &private], &["b.test/secret/app:v1"])
    );
}

#[tokio::test]
async fn a_second_name_shares_what_the_first_does_not() {
    let mut node = Node::default();
    let layer = node.add_blob("layer");
    let top = node.add("b.test/secret:v1", manifest(&[&layer]));
    let filter = filter(&[], &["secret"]);
    assert_eq!(node.told(&filter).await, keys(&[], &[]));

    node.images.insert(Image {
        repository: repository("b.test/open"),
        tag: None,
        manifest: top.clone(),
    });

    assert_eq!(node.told(&filter).await, keys(&[&layer, &top], &[]));
}

#[tokio::test]
async fn a_layer_is_told_before_its_image_has_a_name_if_containerd_has_asked_for_it() {
    let mut node = Node::default();
    let [asked, gone] = ["asked", "gone"].map(|text| Digest::sha256(text.as_bytes()));
    let pulls = Pulls::default();
    for digest in [&asked, &gone, &asked] {
        pulls.note(digest);
    }
    let mut selection = Selection::new(filter(&[], &["secret"]), pulls.clone());
    node.add_blob("other");
    assert_eq!(selection.of(&node, &node.held()).await, keys(&[], &[]));

    node.add_blob("asked");

    assert_eq!(
        selection.of(&node, &node.held()).await,
        keys(&[&asked], &[])
    );
    // What has been asked for since is remembered, and not for ever.
    for n in 0..Pulls::MAX {
        pulls.note(&Digest::sha256(&n.to_le_bytes()));
    }
    assert_eq!(selection.of(&node, &node.held()).await, keys(&[], &[]));
    assert_eq!(pulls.0.lock().unwrap().all.len(), Pulls::MAX);
}

#[tokio::test]
async fn each_manifest_is_read_once_and_one_that_cannot_be_read_takes_nothing_back() {
    let mut node = Node::default();
    let [first, second] = ["first", "second"].map(|text| node.add_blob(text));
    let top = node.add("a.test/app:v1", manifest(&[&first]));
    let mut selection = Selection::new(filter(&["a.test"], &[]), Pulls::default());
    let before = keys(&[&first, &top], &["a.test/app:v1"]);
    assert_eq!(selection.of(&node, &node.held()).await, before);
    assert_eq!(node.reads.swap(0, Ordering::Relaxed), 1);
    let tops: Vec<Digest> = (2..5)
        .map(|n| {
            let also = node.add_blob(format!("{n}"));
            node.add(&format!("a.test/app:v{n}"), manifest(&[&second, &also]))
        })
        .collect();
    let held = node.held();

    // What was told is told, and the manifests themselves have names; who does not answer is asked no more.
    node.is_unreachable.store(true, Ordering::Relaxed);
    let told = selection.of(&node, &held).await;
    assert!(told.is_superset(&before));
    let is_told = |digest: &Digest| told.contains(&Key::Content(digest.clone()));
    assert!(tops.iter().all(is_told));
    assert!(!is_told(&second));
    assert_eq!(node.reads.swap(0, Ordering::Relaxed), 1);

    node.is_unreachable.store(false, Ordering::Relaxed);
    assert_eq!(selection.of(&node, &held).await, held.keys());
    assert_eq!(node.reads.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn indexes_that_list_each_other_end() {
    // No digests can do so; what is damaged on a disk is not checked here.
    let mut node = Node::default();
    let layer = node.add_blob("layer");
    let inner = node.add_blob(index(&[&layer]));
    let outer = node.add("a.test/app:v1", index(&[&inner, &inner]));
    let mut selection = Selection::new(filter(&["a.test"], &[]), Pulls::default());
    let in_a_ring = Listed {
        manifests: [outer.clone(), layer.clone()].into(),
        ..Listed::default()
    };
    selection.listed.insert(inner.clone(), Arc::new(in_a_ring));

    let told = selection.of(&node, &node.held()).await;

    assert_eq!(told, keys(&[&layer, &inner, &outer], &["a.test/app:v1"]));
}
