//! What is growing: three real containerds that pull at once from a slow registry, seen through a forwarded port.

use std::net::SocketAddr;

use hyper::Method;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::lab::{Direction, Node, NodeOptions, lab_or_skip};
use super::*;

const MIB: u64 = 1 << 20;
/// So that two layers of 32 MiB take long enough to be looked at, in bytes per second.
const SLOW: u64 = 3_000_000;
/// How far the bars are that have moved since a script began to look.
const MOVED: &str = "(() => {
    const now = [...document.querySelectorAll('#growing progress')].map((bar) => bar.value);
    window.first ??= now;
    return now.some((value, at) => value > window.first[at]);
})()";

/// As `kubectl port-forward` does: a port here that leads to the node's.
struct Forward {
    at: SocketAddr,
    accept: JoinHandle<()>,
}

impl Forward {
    async fn to(node: &Node) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let (entrance, to) = (node.netns().entrance(), node.peili().metrics());
        let accept = tokio::spawn(async move {
            while let Ok((mut here, _)) = listener.accept().await {
                let there = entrance.connect(to).await;
                tokio::spawn(async move {
                    if let Ok(mut there) = there {
                        // Whoever leaves first ends it.
                        let _ = tokio::io::copy_bidirectional(&mut here, &mut there).await;
                    }
                });
            }
        });
        Self { at, accept }
    }

    fn url(&self, view: &str) -> String {
        format!("http://{}/debug/web/{view}", self.at)
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

/// Whether a layer that takes a while grows at `node`, which has this role.
async fn plays(node: &Node, role: &str) -> anyhow::Result<bool> {
    let path = "/debug/api/flights";
    let answer = node.http(node.peili().metrics(), Method::GET, path, &[]);
    let told: Value = serde_json::from_slice(&answer.await?.expect(200)?.body)?;
    let flights = told["flights"].as_array().expect("flights");
    Ok(flights.iter().any(|flight| {
        let [bytes, length] = [&flight["bytes"], &flight["length"]].map(Value::as_u64);
        flight["role"] == role && length > Some(20 * MIB) && bytes > Some(0) && bytes < length
    }))
}

async fn who_plays(nodes: &[Node], role: &str) -> usize {
    eventually(&format!("a node that {role}"), AT_ALL, async || {
        for (number, node) in nodes.iter().enumerate() {
            if plays(node, role).await? {
                return Ok(Some(number));
            }
        }
        Ok(None)
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_grow_before_ones_eyes_and_the_page_says_who_leads_and_who_follows() {
    let lab = lab_or_skip!();
    let Some(chromium) = Chromium::or_skip().await else {
        return;
    };
    let axe = axe();
    let image = ImageSpec::new("test/growing:v1").layers([32 * MIB; 2]);
    let image = lab.push(image).await.unwrap();
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(lab.node(NodeOptions::default()).await.unwrap());
    }
    for node in &nodes {
        node.start_peili().await.unwrap();
    }
    for node in &nodes {
        eventually("acquaintance", AT_ALL, async || {
            let known = node.metric("peili_peers", &[("state", "known")]).await?;
            Ok((known >= 2.0).then_some(()))
        })
        .await
        .unwrap();
    }
    let mut forwards = Vec::new();
    for node in &nodes {
        forwards.push(Forward::to(node).await);
    }
    lab.shape_registry(Some(SLOW), Direction::Up).unwrap();

    let reference = image.reference();
    let pulls = futures::future::try_join_all(nodes.iter().map(|node| node.cri_pull(&reference)));
    let look = async {
        for (role, words, scheme, width) in [
            (
                "leads",
                "Leader: this node gets it from the registry",
                Scheme::Light,
                1280,
            ),
            ("follows", "Follows ", Scheme::Dark, 360),
        ] {
            let forward = &forwards[who_plays(&nodes, role).await];
            let tab = chromium.tab().await.unwrap();
            tab.look(scheme, width).await.unwrap();
            tab.open(&forward.url("flights")).await.unwrap();
            tab.says(STAY).await.unwrap();
            tab.until_told("#growing", words).await.unwrap();
            tab.until("a bar that has moved", MOVED).await.unwrap();
            assert_eq!(tab.says(STAYED).await.unwrap(), true, "without a reload");
            let name = format!("growing-{role}-{scheme:?}-{width}");
            tab.picture(&name.to_lowercase()).await.unwrap();
            assert_eq!(tab.says(TOO_WIDE).await.unwrap(), json!([]), "{role}");
            if let Some(axe) = &axe {
                assert_eq!(violations(&tab, axe).await, json!([]), "{role}");
            }
            assert_eq!(tab.wrong(), Vec::<String>::new(), "{role}");
            for request in tab.requests() {
                let is_ours = request.starts_with(&format!("http://{}/debug/", forward.at));
                assert!(is_ours, "{request}");
            }
        }
    };
    let (pulled, ()) = tokio::join!(pulls, look);
    pulled.unwrap();
    chromium.stop().await.unwrap();
}
