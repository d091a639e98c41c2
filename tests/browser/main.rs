//! The debug page in a real browser: three nodes on loopback, and Debian's Chromium without a window.
//!
//! `make deps` installs Chromium, and `make tools` gets axe-core. Where that is not possible these tests say so and are
//! skipped, except in CI. Pictures of every view lie in `target/screenshots` afterwards.

mod chromium;
#[allow(dead_code, reason = "each test uses its part of the lab")]
#[path = "../lab/mod.rs"]
mod lab;

use std::path::Path;
use std::time::Duration;

use chromium::{Chromium, Scheme};
use lab::http::send_here;
use lab::loopback::{Loopback, LoopbackNode};
use lab::process::eventually;
use lab::{Image, ImageSpec};
use serde_json::{Value, json};

const PEILI: &str = env!("CARGO_BIN_EXE_peili");
const REGISTRY: &str = "registry.test:5000";
/// Anything that merely has to happen.
const AT_ALL: Duration = Duration::from_secs(30);
const VIEWS: [&str; 6] = ["overview", "cluster", "content", "flights", "pulls", "try"];

const LOOKS: [(Scheme, u32); 4] = [
    (Scheme::Light, 1280),
    (Scheme::Light, 360),
    (Scheme::Dark, 1280),
    (Scheme::Dark, 360),
];
/// What the page would have to be pushed aside for. What scrolls within itself is asked for its own edges alone.
const TOO_WIDE: &str = "(() => {
    const width = document.documentElement.clientWidth;
    const wide = [...document.querySelectorAll('body *')].filter((one) =>
        one.getBoundingClientRect().right > width + 1 && !one.parentElement.closest('.scroll, svg'));
    if (document.documentElement.scrollWidth > width) wide.push(document.documentElement);
    return wide.map((one) => one.outerHTML.slice(0, 200));
})()";

async fn cluster() -> (Loopback, Image) {
    let cluster = Loopback::new(3).unwrap();
    cluster.start(Path::new(PEILI)).await.unwrap();
    let spec = ImageSpec::new("test/app:v1")
        .index()
        .layers([9 << 20, 3 << 20, 70_000]);
    let dir = cluster.folder("images").unwrap();
    let image = spec.build(REGISTRY, &dir).unwrap();
    cluster.nodes()[0].layout().add(&image).unwrap();
    for node in &cluster.nodes()[1..] {
        eventually("the image", AT_ALL, async || {
            for key in [&image.reference(), &image.layers[2].digest] {
                let body = json!({ "reference": key }).to_string();
                let head = [("content-type", "application/json")];
                let at = node.metrics();
                let post = hyper::Method::POST;
                let found = send_here(at, post, "/debug/api/find", &head, &body).await?;
                let found: Value = serde_json::from_slice(&found.expect(200)?.body)?;
                if found["peers"] == json!([]) {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
        .await
        .unwrap();
    }
    (cluster, image)
}

fn path(kind: &str, reference: &str) -> String {
    format!("/v2/test/app/{kind}/{reference}?ns={REGISTRY}")
}

/// As its containerd would.
async fn pull(node: &LoopbackNode, image: &Image) {
    let mut paths = vec![path("manifests", image.tag())];
    paths.push(path("manifests", &image.manifest.digest));
    let blobs = image.layers.iter().chain([&image.config]);
    paths.extend(blobs.map(|blob| path("blobs", &blob.digest)));
    for path in &paths {
        node.get(path).await.unwrap().expect(200).unwrap();
    }
}

async fn missed(node: &LoopbackNode) {
    let absent = format!("sha256:{}", "0".repeat(64));
    let answer = node.get(&path("blobs", &absent)).await;
    answer.unwrap().expect(404).unwrap();
}

fn url(node: &LoopbackNode, view: &str) -> String {
    let view = if view == "overview" { "" } else { view };
    format!("http://{}/debug/web/{view}", node.metrics())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_view_is_seen() {
    let Some(chromium) = Chromium::or_skip().await else {
        return;
    };
    let (cluster, image) = cluster().await;
    let [one, two, _] = cluster.nodes() else {
        panic!("three nodes")
    };
    pull(two, &image).await;
    missed(two).await;
    let tab = chromium.tab().await.unwrap();
    for (scheme, width) in LOOKS {
        for view in VIEWS {
            // Who has an image shows what it holds; who pulled, all the rest.
            let node = if view == "content" { one } else { two };
            tab.look(scheme, width).await.unwrap();
            tab.open(&url(node, view)).await.unwrap();
            if view == "overview" {
                tab.until_told("#findings", "found nothing wrong")
                    .await
                    .unwrap();
            }
            let name = format!("{view}-{scheme:?}-{width}").to_lowercase();
            let wide = tab.says(TOO_WIDE).await.unwrap();
            assert_eq!(wide, json!([]), "{name}");
            tab.picture(&name).await.unwrap();
        }
    }
    assert_eq!(tab.wrong(), Vec::<String>::new());
    chromium.stop().await.unwrap();
}
