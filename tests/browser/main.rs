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

use chromium::{Chromium, Scheme, Tab};
use lab::http::send_here;
use lab::loopback::{Loopback, LoopbackNode};
use lab::process::eventually;
use lab::{Image, ImageSpec};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

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

#[tokio::test(flavor = "multi_thread")]
async fn every_view_is_legible_and_fits_wide_and_narrow_light_and_dark() {
    let Some(chromium) = Chromium::or_skip().await else {
        return;
    };
    let axe = axe();
    let (cluster, image) = cluster(SMALL).await;
    let [one, two, three] = cluster.nodes() else {
        panic!("three nodes")
    };
    pull(two, &image).await;
    missed(two, '0').await;
    let tab = chromium.tab().await.unwrap();
    let mut backgrounds = Vec::new();

    for (scheme, width) in LOOKS {
        for view in VIEWS {
            // Who has an image shows what it holds; who pulled, all the rest.
            let node = if view == "content" { one } else { two };
            tab.look(scheme, width).await.unwrap();
            tab.open(&url(node, view)).await.unwrap();
            let name = format!("{view}-{scheme:?}-{width}").to_lowercase();
            let (place, words) = match view {
                "overview" => ("#findings", "found nothing wrong"),
                "cluster" => ("#peers-table", "12 MiB"),
                "content" => ("#images-table", "registry.test:5000/test/app"),
                "flights" => ("#growing", "writing nothing now"),
                "pulls" => ("#pulls", "No other node holds this layer."),
                _ => ("main", "Nothing is stored"),
            };
            tab.until_told(place, words).await.unwrap();
            assert_eq!(tab.says(TOO_WIDE).await.unwrap(), json!([]), "{name}");
            if let Some(axe) = &axe {
                assert_eq!(violations(&tab, axe).await, json!([]), "{name}");
            }
            tab.picture(&name).await.unwrap();
        }
        let background = "getComputedStyle(document.body).backgroundColor";
        backgrounds.push(tab.says(background).await.unwrap());
    }
    assert_eq!(backgrounds[0], backgrounds[1]);
    assert_ne!(backgrounds[1], backgrounds[2], "dark is not light");

    // A node is gone that others are to find their way by: doctor says so first, and what to do.
    one.stop().await.unwrap();
    tab.look(Scheme::Light, 360).await.unwrap();
    tab.open(&url(three, "overview")).await.unwrap();
    tab.until_told("#verdict h1", "containerd has not asked yet")
        .await
        .unwrap();
    let warned = "#findings > .findings:first-child > li";
    tab.until_told(warned, "leads nowhere").await.unwrap();
    tab.until_told(&format!("{warned} .warn"), "warning")
        .await
        .unwrap();
    tab.until_told(&format!("{warned} pre"), "headless Service")
        .await
        .unwrap();
    assert_eq!(tab.says(TOO_WIDE).await.unwrap(), json!([]));
    if let Some(axe) = &axe {
        assert_eq!(violations(&tab, axe).await, json!([]));
    }
    tab.picture("overview-warned-light-360").await.unwrap();
    tab.click("#examine").await.unwrap();
    tab.until_told("#findings summary", "could not be made here")
        .await
        .unwrap();

    assert_clean(&tab, cluster.nodes());
    chromium.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_is_seen_without_a_reload() {
    let Some(chromium) = Chromium::or_skip().await else {
        return;
    };
    let (cluster, image) = cluster(LARGE).await;
    let [one, two, _] = cluster.nodes() else {
        panic!("three nodes")
    };
    let tab = chromium.tab().await.unwrap();
    tab.look(Scheme::Light, 1280).await.unwrap();

    tab.open(&url(two, "overview")).await.unwrap();
    tab.says(STAY).await.unwrap();
    tab.until_told("#verdict h1", "containerd has not asked yet")
        .await
        .unwrap();
    pull(two, &image).await;
    tab.until_told(
        "#verdict h1",
        "Mirroring: 6 requests, 100 % from peers, 67 MiB",
    )
    .await
    .unwrap();
    missed(two, '0').await;
    tab.until_told("#stat-miss", "1").await.unwrap();
    assert_eq!(tab.says(STAYED).await.unwrap(), true);
    tab.click("#stat-miss a").await.unwrap();
    tab.until_told(
        "#pulls .said",
        "No other node holds this layer. containerd went to the registry.",
    )
    .await
    .unwrap();
    tab.until_told("#pulls .said", &format!("From {}.", one.ip()))
        .await
        .unwrap();

    tab.open(&url(two, "pulls")).await.unwrap();
    tab.says(STAY).await.unwrap();
    missed(two, 'a').await;
    tab.until_told("#pulls tbody th", "sha256:aaaaaaaaaaaa")
        .await
        .unwrap();
    assert_eq!(tab.says(STAYED).await.unwrap(), true);

    tab.open(&url(two, "cluster")).await.unwrap();
    tab.until_told(
        "#peers-table tbody tr:first-child",
        &one.registry().to_string(),
    )
    .await
    .unwrap();
    tab.until_told("#map text", "gave 67 MiB").await.unwrap();

    // A body that is read slowly stands in flight at both ends.
    let giving = chromium.tab().await.unwrap();
    giving.look(Scheme::Dark, 1280).await.unwrap();
    giving.open(&url(one, "flights")).await.unwrap();
    tab.open(&url(two, "flights")).await.unwrap();
    tab.says(STAY).await.unwrap();
    let mut slow = TcpStream::connect(two.registry()).await.unwrap();
    let path = path("blobs", &image.layers[0].digest);
    let head = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", two.registry());
    slow.write_all(head.as_bytes()).await.unwrap();
    tab.until(
        "what containerd gets",
        "document.querySelector('#getting progress')?.value > 0",
    )
    .await
    .unwrap();
    tab.until_told("#getting td", &one.ip().to_string())
        .await
        .unwrap();
    giving
        .until(
            "what a peer gets",
            "document.querySelector('#giving progress')?.value > 0",
        )
        .await
        .unwrap();
    giving
        .until_told("#giving th", &image.layers[0].digest[..19])
        .await
        .unwrap();
    let far = "document.querySelector('#getting progress').value";
    let before = tab.says(far).await.unwrap().as_f64().unwrap();
    assert!(before < LARGE as f64, "{before}");
    tab.picture("flights-getting-light-1280").await.unwrap();
    giving.picture("flights-giving-dark-1280").await.unwrap();
    slow.read_exact(&mut vec![0; 12 << 20]).await.unwrap();
    let grown = format!("document.querySelector('#getting progress')?.value > {before}");
    tab.until("a bar that has grown", &grown).await.unwrap();
    drop(slow);
    tab.until_told("#getting", "Nothing is on its way.")
        .await
        .unwrap();
    assert_eq!(tab.says(STAYED).await.unwrap(), true);

    tab.open(&url(one, "content")).await.unwrap();
    tab.click("[data-find]").await.unwrap();
    tab.until_told("#found", "this node holds it")
        .await
        .unwrap();
    tab.open(&url(two, "content")).await.unwrap();
    tab.type_into("#reference", &image.reference())
        .await
        .unwrap();
    tab.press("Enter").await.unwrap();
    tab.until_told("#holders li", &one.registry().to_string())
        .await
        .unwrap();
    tab.until_told("#found h2", "1 other node holds it")
        .await
        .unwrap();
    tab.picture("content-found-light-1280").await.unwrap();

    assert_clean(&tab, cluster.nodes());
    assert_clean(&giving, cluster.nodes());
    chromium.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_is_tried_with_a_bar_for_each_layer() {
    let Some(chromium) = Chromium::or_skip().await else {
        return;
    };
    let (cluster, image) = cluster(SMALL).await;
    let [one, two, _] = cluster.nodes() else {
        panic!("three nodes")
    };
    let tab = chromium.tab().await.unwrap();
    tab.look(Scheme::Light, 360).await.unwrap();
    tab.open(&url(two, "try")).await.unwrap();

    tab.type_into("#image", &image.reference()).await.unwrap();
    tab.press("Enter").await.unwrap();

    tab.until(
        "its end",
        "document.querySelector('#try-status[data-ended=ok]')",
    )
    .await
    .unwrap();
    tab.until_told("#try-status", "Every digest is right; nothing was stored.")
        .await
        .unwrap();
    for blob in image.layers.iter().chain([&image.config]) {
        let layer = format!("#try-layers li.verified[data-digest={:?}]", blob.digest);
        tab.until_told(&layer, "digest verified").await.unwrap();
        tab.until_told(&layer, &format!("from {}", one.registry()))
            .await
            .unwrap();
        let bar = format!(
            "document.querySelector({:?}).position",
            format!("{layer} progress")
        );
        assert_eq!(tab.says(&bar).await.unwrap(), 1, "{layer}");
    }
    let bars = "document.querySelectorAll('#try-layers progress').length";
    assert_eq!(tab.says(bars).await.unwrap(), 4);
    assert_eq!(tab.says(TOO_WIDE).await.unwrap(), json!([]));
    if let Some(axe) = &axe() {
        assert_eq!(violations(&tab, axe).await, json!([]));
    }
    tab.picture("try-pulled-light-360").await.unwrap();

    let absent = format!("{REGISTRY}/test/nobody-has-it:v1");
    tab.type_into("#image", &absent).await.unwrap();
    tab.click("#try button").await.unwrap();
    tab.until(
        "its end",
        "document.querySelector('#try-status[data-ended=failed]')",
    )
    .await
    .unwrap();
    tab.until_told("#try-layers .error", "no peer holds")
        .await
        .unwrap();
    tab.until_told("#try-layers .error", "What to do: ")
        .await
        .unwrap();
    tab.picture("try-failed-light-360").await.unwrap();

    assert_clean(&tab, cluster.nodes());
    chromium.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keyboard_is_enough() {
    let Some(chromium) = Chromium::or_skip().await else {
        return;
    };
    let (cluster, image) = cluster(SMALL).await;
    let [one, two, _] = cluster.nodes() else {
        panic!("three nodes")
    };
    pull(two, &image).await;
    let tab = chromium.tab().await.unwrap();
    tab.look(Scheme::Light, 1280).await.unwrap();

    tab.open(&url(two, "overview")).await.unwrap();
    tab.press("Tab").await.unwrap();
    let skip = "document.activeElement.className === 'skip' && \
                document.activeElement.getBoundingClientRect().left >= 0";
    tab.until("the skip link, in sight", skip).await.unwrap();
    tab.press("Enter").await.unwrap();
    tab.until("the content", "document.activeElement.id === 'main'")
        .await
        .unwrap();

    for view in VIEWS {
        let node = if view == "content" { one } else { two };
        tab.open(&url(node, view)).await.unwrap();
        if view == "overview" {
            tab.until_told("#findings", "found nothing wrong")
                .await
                .unwrap();
        }
        // Every control has a number, and those that had the focus are ticked off.
        let controls = "window.left = new Set([...document.querySelectorAll(
                'a[href], button, input, summary, .scroll')].filter((one) => one.checkVisibility()));
            addEventListener('focusin', (event) => {
                if (getComputedStyle(event.target).outlineStyle === 'none') throw new Error('a focus nobody sees');
                left.delete(event.target);
            });
            left.size";
        let count = tab.says(controls).await.unwrap().as_u64().unwrap();
        assert!(count >= 9, "{view}: {count}");
        for _ in 0..count {
            tab.press("Tab").await.unwrap();
        }
        let left = tab.says("[...left].filter((one) => one.isConnected).map((one) => one.outerHTML.slice(0, 200))").await;
        assert_eq!(left.unwrap(), json!([]), "{view}");
    }

    assert_clean(&tab, cluster.nodes());
    chromium.stop().await.unwrap();
}

/// Or the others would find nothing because they do not look.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_page_is_seen() {
    let Some(chromium) = Chromium::or_skip().await else {
        return;
    };
    let (cluster, _) = cluster(SMALL).await;
    let tab = chromium.tab().await.unwrap();
    tab.look(Scheme::Light, 360).await.unwrap();
    tab.open(&url(&cluster.nodes()[0], "overview"))
        .await
        .unwrap();
    let spoil = "const image = document.createElement('img');
        image.src = 'http://192.0.2.1/x.png';
        const wide = document.createElement('div');
        wide.style.width = '500px';
        document.querySelector('main').append(image, wide);
        setTimeout(() => { throw new Error('thrown'); });";
    tab.says(spoil).await.unwrap();

    for words in ["CSP: img-src forbids http://192.0.2.1", "thrown"] {
        eventually(words, AT_ALL, async || {
            Ok(tab
                .wrong()
                .iter()
                .any(|wrong| wrong.contains(words))
                .then_some(()))
        })
        .await
        .unwrap_or_else(|late| panic!("{late}: {:?}", tab.wrong()));
    }
    assert_ne!(tab.says(TOO_WIDE).await.unwrap(), json!([]));
    if let Some(axe) = &axe() {
        let said = violations(&tab, axe).await.to_string();
        assert!(said.contains("image-alt"), "{said}");
    }
    chromium.stop().await.unwrap();
}
