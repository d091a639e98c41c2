//! The debug page in a real browser: three nodes on loopback (on real containerds where layers grow), and Debian's Chromium
//! without a window.
//!
//! `make deps` installs Chromium, and `make tools` gets axe-core. Where that is not possible these tests say so and are
//! skipped, except in CI. Pictures of every view lie in `target/screenshots` afterwards.

mod chromium;
mod growing;
mod keyboard;
#[allow(dead_code, reason = "each test uses its part of the lab")]
#[path = "../lab/mod.rs"]
mod lab;
mod live;
mod looks;

use std::path::Path;
use std::time::Duration;

use chromium::{Chromium, Scheme, Tab};
use lab::http::send_here;
use lab::loopback::{Loopback, LoopbackNode};
use lab::process::eventually;
use lab::{Image, ImageSpec};
use serde_json::{Value, json};

const PEILI: &str = env!("CARGO_BIN_EXE_peili");
const REGISTRY: &str = "registry.test:5000";
/// Anything that merely has to happen.
const AT_ALL: Duration = Duration::from_secs(30);
const SMALL: u64 = 9 << 20;
/// More than what kernels and buffers between two nodes hold of a body that nobody reads.
const LARGE: u64 = 64 << 20;
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

async fn cluster(first_layer: u64) -> (Loopback, Image) {
    let cluster = Loopback::new(3).unwrap();
    cluster.start(Path::new(PEILI)).await.unwrap();
    let spec = ImageSpec::new("test/app:v1")
        .index()
        .layers([first_layer, 3 << 20, 70_000]);
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

/// Asks for what nobody has.
async fn missed(node: &LoopbackNode, digit: char) {
    let absent = format!("sha256:{}", digit.to_string().repeat(64));
    let answer = node.get(&path("blobs", &absent)).await;
    answer.unwrap().expect(404).unwrap();
}

fn url(node: &LoopbackNode, view: &str) -> String {
    let view = if view == "overview" { "" } else { view };
    format!("http://{}/debug/web/{view}", node.metrics())
}

/// The same document all the while: whatever is new came without a reload.
const STAY: &str = "window.stayed = true";
const STAYED: &str = "window.stayed === true";

fn axe() -> Option<String> {
    let target = Path::new(PEILI).ancestors().nth(2)?;
    let axe = std::fs::read_to_string(target.join("tools/axe-core/axe.min.js")).ok();
    if axe.is_none() {
        assert!(std::env::var_os("CI").is_none(), "run `make tools`");
        eprintln!("not looked at by axe-core; `make tools` gets it");
    }
    axe
}

/// What axe-core has to say against the page as it is now.
async fn violations(tab: &Tab, axe: &str) -> Value {
    tab.says(axe).await.unwrap();
    let told = tab
        .says(
            "axe.run(document, { preload: false }).then((told) => ({
                passed: told.passes.length,
                wrong: told.violations.map((one) =>
                    `${one.id}: ${one.nodes.map((node) => `${node.html} ${node.failureSummary}`).join('; ')}`),
            }))",
        )
        .await
        .unwrap();
    assert!(told["passed"].as_u64() > Some(10), "it has looked: {told}");
    told["wrong"].clone()
}

/// Nothing in the console, nothing that the policy forbids, and no request to anybody else.
fn assert_clean(tab: &Tab, nodes: &[LoopbackNode]) {
    assert_eq!(tab.wrong(), Vec::<String>::new());
    let requests = tab.requests();
    assert!(!requests.is_empty());
    for request in requests {
        let is_ours =
            |node: &LoopbackNode| request.starts_with(&format!("http://{}/debug/", node.metrics()));
        assert!(nodes.iter().any(is_ours), "{request}");
    }
}
