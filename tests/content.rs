//! The content stores against their contract.

#[allow(dead_code, reason = "each test uses its part of the lab")]
mod lab;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use lab::layout::Layout as Directory;
use lab::{ImageSpec, Node, NodeOptions, lab_or_skip};
use peili::content::ContentStore;
use peili::content::containerd::{Config, Containerd};
use peili::content::layout::{self, Layout};
use peili::oci::TagName;
use peili::readiness::Readiness;
use peili::testing::conformance::content::{self, Fixture, Image};
use peili::testing::content::FakeStore;
use peili::testing::{eventually, noise};

#[derive(Default)]
struct Fake(FakeStore);

#[async_trait]
impl Fixture for Fake {
    fn store(&self) -> Arc<dyn ContentStore> {
        Arc::new(self.0.clone())
    }

    async fn add(&self, tag: &TagName) -> Image {
        let layer_bytes = noise(200_000, tag.to_string().len() as u64);
        let layer = self.0.add_blob(layer_bytes.clone());
        let manifest = self.0.add_blob(format!(r#"{{"layers":["{layer}"]}}"#));
        self.0.tag(tag, &manifest);
        Image {
            manifest,
            layer,
            layer_bytes,
        }
    }

    async fn add_tag(&self, tag: &TagName, another: &TagName) {
        let digest = self.0.resolve(tag).await.unwrap().unwrap();
        self.0.tag(another, &digest);
    }

    async fn remove(&self, tag: &TagName) {
        let digest = self.0.resolve(tag).await.unwrap().unwrap();
        self.0.remove_tag(tag);
        // A garbage collector of its own: what no tag names goes, with its layer.
        if !self.0.is_tagged(&digest) {
            let manifest = self.0.open(&digest).await.unwrap().unwrap();
            let manifest = manifest.read_all(1 << 20).await.unwrap();
            let layer = std::str::from_utf8(&manifest).unwrap();
            let layer = layer.split('"').nth(3).unwrap().parse().unwrap();
            self.0.remove_blob(&digest);
            self.0.remove_blob(&layer);
        }
    }
}

#[tokio::test]
async fn the_fake_keeps_the_contract() {
    content::all(&Fake::default()).await;
}

/// A directory, changed as skopeo changes one.
struct InDirectory {
    directory: Directory,
    store: Layout,
    files: tempfile::TempDir,
}

impl InDirectory {
    fn new() -> Self {
        let files = tempfile::tempdir().unwrap();
        let directory = Directory::create(&files.path().join("layout")).unwrap();
        let config = layout::Config {
            path: directory.dir().to_owned(),
        };
        Self {
            store: Layout::new(config, Readiness::new()).unwrap(),
            directory,
            files,
        }
    }
}

#[async_trait]
impl Fixture for InDirectory {
    fn store(&self) -> Arc<dyn ContentStore> {
        Arc::new(self.store.clone())
    }

    async fn add(&self, tag: &TagName) -> Image {
        let image = made(tag, self.files.path());
        self.directory.add(&image).unwrap();
        described(&image)
    }

    async fn add_tag(&self, tag: &TagName, another: &TagName) {
        let (name, new) = (tag.to_string(), another.to_string());
        self.directory.name_again(&name, &new).unwrap();
    }

    async fn remove(&self, tag: &TagName) {
        self.directory.remove(&tag.to_string()).unwrap();
    }
}

#[tokio::test]
async fn an_oci_layout_keeps_the_contract() {
    content::all(&InDirectory::new()).await;
}

/// A small image, different for each name.
fn made(tag: &TagName, files: &Path) -> lab::Image {
    let repository = tag.repository();
    let name = format!("{}:{}", repository.path(), tag.tag());
    let spec = ImageSpec::new(&name)
        .seed(tag.to_string().len() as u64)
        .layers([300_000]);
    spec.build(repository.registry(), files).unwrap()
}

fn described(image: &lab::Image) -> Image {
    Image {
        manifest: image.manifest.digest.parse().unwrap(),
        layer: image.layers[0].digest.parse().unwrap(),
        layer_bytes: std::fs::read(&image.layers[0].file).unwrap(),
    }
}

/// A real containerd, whose content is changed by `ctr` behind the store's back.
struct Real {
    node: Node,
    store: Containerd,
    files: tempfile::TempDir,
    /// Tags of each image, by the digest of its manifest.
    tags: Mutex<HashMap<String, Vec<TagName>>>,
}

impl Real {
    /// `is_readable` is whether the store may open blobs by path.
    async fn of(node: Node, is_readable: bool) -> Self {
        let files = tempfile::tempdir().unwrap();
        let nowhere = files.path().join("not-mounted");
        let config = Config {
            socket: node.containerd().socket(),
            namespace: "k8s.io".into(),
            content_path: (!is_readable).then_some(nowhere),
        };
        let store = Containerd::new(config, Readiness::new()).unwrap();
        Self {
            node,
            store,
            files,
            tags: Mutex::default(),
        }
    }
}

#[async_trait]
impl Fixture for Real {
    fn store(&self) -> Arc<dyn ContentStore> {
        Arc::new(self.store.clone())
    }

    async fn add(&self, tag: &TagName) -> Image {
        let image = made(tag, self.files.path());
        self.node.import(&image).await.unwrap();
        let manifest = image.manifest.digest.clone();
        self.tags
            .lock()
            .unwrap()
            .insert(manifest, vec![tag.clone()]);
        described(&image)
    }

    async fn add_tag(&self, tag: &TagName, another: &TagName) {
        let (name, new) = (tag.to_string(), another.to_string());
        self.node.ctr_tag(&name, &new).await.unwrap();
        let mut tags = self.tags.lock().unwrap();
        let tags = tags.values_mut().find(|tags| tags.contains(tag));
        tags.unwrap().push(another.clone());
    }

    async fn remove(&self, tag: &TagName) {
        let is_last = {
            let mut tags = self.tags.lock().unwrap();
            let tags = tags.values_mut().find(|tags| tags.contains(tag)).unwrap();
            tags.retain(|other| other != tag);
            tags.is_empty()
        };
        // The CRI plugin names an image by its id as well, and keeps it as long as it does.
        if is_last {
            let name = tag.to_string();
            eventually("the CRI knows the image", SOON, || async {
                let images = self.node.cri_images().await.ok()?;
                let known = images.iter().any(|image| image.repo_tags.contains(&name));
                known.then_some(())
            })
            .await;
            self.node.cri_remove(&name).await.unwrap();
        } else {
            self.node.ctr_remove(&tag.to_string()).await.unwrap();
        }
    }
}

const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn containerd_keeps_the_contract_by_path() {
    let lab = lab_or_skip!();
    let node = lab.node(NodeOptions::default()).await.unwrap();

    content::all(&Real::of(node, true).await).await;
}

#[tokio::test]
async fn containerd_keeps_the_contract_by_its_socket_alone() {
    let lab = lab_or_skip!();
    let node = lab.node(NodeOptions::default()).await.unwrap();

    content::all(&Real::of(node, false).await).await;
}
