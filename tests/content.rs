//! The content stores against their contract.

use std::sync::Arc;

use async_trait::async_trait;
use peili::content::ContentStore;
use peili::oci::TagName;
use peili::testing::conformance::content::{self, Fixture, Image};
use peili::testing::content::FakeStore;
use peili::testing::noise;

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
