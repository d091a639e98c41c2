use async_trait::async_trait;
use futures::stream::BoxStream;

use super::*;
use crate::content::{Blob, Image};
use crate::oci::{ImageName, TagName};
use crate::testing::content::FakeStore;

/// A node's images, and what is told of them.
struct Node {
    store: FakeStore,
    /// `ctr` and the CRI name images in ways that the fake has no tags for.
    more: Vec<Image>,
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
    fn new() -> Self {
        Self {
            store: FakeStore::default(),
            more: Vec::new(),
        }
    }

    fn add(&self, name: &str, bytes: String) -> Digest {
        let digest = self.store.add_blob(bytes);
        self.store.tag(&tag(name), &digest);
        digest
    }

    fn held(&self) -> Snapshot {
        let mut held = self.store.snapshot().expect("reachable");
        held.images.extend(self.more.iter().cloned());
        held
    }

    async fn told(&self, filter: &Arc<Filter>) -> HashSet<Key> {
        Selection::new(filter.clone())
            .of(&self.store, &self.held())
            .await
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
    let node = Node::new();
    let [both, open, secret] = ["both", "open", "secret"].map(|text| node.store.add_blob(text));
    let here = node.store.add_blob(manifest(&[&both, &open]));
    let elsewhere = Digest::sha256(b"of another platform, and not held");
    let public = node.add("a.test/open:v1", index(&[&elsewhere, &here]));
    let private = node.add("b.test/secret/app:v1", manifest(&[&both, &secret]));
    // Nothing says whose.
    let stray = node.store.add_blob("stray");

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
    let mut node = Node::new();
    let layer = node.store.add_blob("layer");
    let top = node.add("b.test/secret:v1", manifest(&[&layer]));
    let filter = filter(&[], &["secret"]);
    assert_eq!(node.told(&filter).await, keys(&[], &[]));

    node.more.push(Image {
        repository: repository("b.test/open"),
        tag: None,
        manifest: top.clone(),
    });

    assert_eq!(node.told(&filter).await, keys(&[&layer, &top], &[]));
}

#[tokio::test]
async fn a_layer_is_told_before_its_image_has_a_name_if_the_store_knows_where_it_is_from() {
    let node = Node::new();
    let [open, secret, both] = ["open", "secret", "both"].map(|text| node.store.add_blob(text));
    for (blob, name) in [
        (&open, "a.test/open"),
        (&secret, "a.test/secret"),
        (&both, "a.test/secret"),
        (&both, "a.test/open"),
    ] {
        node.store.add_source(blob, &repository(name));
    }

    let told = node.told(&filter(&[], &["secret"])).await;

    assert_eq!(told, keys(&[&open, &both], &[]));
}

/// A store whose blobs cannot be read for a while, and which counts how often they are.
struct Shy(FakeStore, std::sync::atomic::AtomicUsize);

#[async_trait]
impl ContentStore for Shy {
    async fn resolve(&self, _: &TagName) -> Result<Option<Digest>, StoreError> {
        unreachable!("nobody resolves")
    }

    async fn open(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.0.open(digest).await
    }

    fn watch(&self) -> BoxStream<'static, Snapshot> {
        unreachable!("nobody watches")
    }
}

#[tokio::test]
async fn each_manifest_is_read_once_and_one_that_cannot_be_read_takes_nothing_back() {
    let node = Node::new();
    let [first, second] = ["first", "second"].map(|text| node.store.add_blob(text));
    let top = node.add("a.test/app:v1", manifest(&[&first]));
    let store = Shy(node.store.clone(), Default::default());
    let reads = || store.1.swap(0, std::sync::atomic::Ordering::Relaxed);
    let mut selection = Selection::new(filter(&["a.test"], &[]));
    let before = keys(&[&first, &top], &["a.test/app:v1"]);
    assert_eq!(selection.of(&store, &node.held()).await, before);
    assert_eq!(reads(), 1);
    let tops: Vec<Digest> = (2..5)
        .map(|n| {
            let also = node.store.add_blob(format!("{n}"));
            node.add(&format!("a.test/app:v{n}"), manifest(&[&second, &also]))
        })
        .collect();
    let held = node.held();

    // What was told is told, and the manifests themselves have names; who does not answer is asked no more.
    node.store.set_unreachable(true);
    let told = selection.of(&store, &held).await;
    assert!(told.is_superset(&before));
    assert!(
        tops.iter()
            .all(|top| told.contains(&Key::Content(top.clone())))
    );
    assert!(!told.contains(&Key::Content(second.clone())));
    assert_eq!(reads(), 1);

    node.store.set_unreachable(false);
    assert_eq!(selection.of(&store, &held).await, held.keys());
    assert_eq!(reads(), 3);
}

#[tokio::test]
async fn indexes_that_list_each_other_end() {
    // No digests can do so; what is damaged on a disk is not checked here.
    let node = Node::new();
    let layer = node.store.add_blob("layer");
    let inner = node.store.add_blob(index(&[&layer]));
    let outer = node.add("a.test/app:v1", index(&[&inner, &inner]));
    let mut selection = Selection::new(filter(&["a.test"], &[]));
    let in_a_ring = Listed {
        manifests: [outer.clone(), layer.clone()].into(),
        ..Listed::default()
    };
    selection.listed.insert(inner.clone(), Arc::new(in_a_ring));

    let told = selection.of(&node.store, &node.held()).await;

    assert_eq!(told, keys(&[&layer, &inner, &outer], &["a.test/app:v1"]));
}
