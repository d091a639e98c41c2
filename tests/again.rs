//! hosts.toml for containerd 2.x: which of our entries a real one asks for what, and in which order.

#[allow(dead_code, reason = "each test uses its part of the lab")]
mod lab;

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::Method;
use lab::containerd::unpacked;
use lab::process::eventually;
use lab::{Image, ImageSpec, Node, NodeOptions, lab_or_skip};
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// Anything that merely has to happen.
const AT_ALL: Duration = Duration::from_secs(30);

/// A node with that containerd, its Peili configured and ready; the end of the test where it was not unpacked.
macro_rules! node_or_skip {
    ($lab:ident, $version:literal) => {{
        if unpacked($version).is_none() {
            assert!(std::env::var_os("CI").is_none(), "run `make containerds`");
            use std::io::Write;
            let said = concat!(
                "skipped: containerd ",
                $version,
                ": `make containerds` unpacks it"
            );
            let _ = writeln!(std::io::stderr(), "{said}");
            return;
        }
        let node = $lab.node(NodeOptions::version($version)).await.unwrap();
        node.start_peili().await.unwrap();
        node
    }};
}

/// A request of containerd, as the access line tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    method: String,
    /// What comes before /v2: an `/again/…`, or nothing.
    entry: String,
    /// The last part of the path: a digest or a tag.
    what: String,
    status: u64,
}

/// What containerd asked for, in order. Waits until each of `whats` is in the log: a line is written behind its answer.
async fn asked(node: &Node, whats: &[&str]) -> Vec<Asked> {
    eventually("the access lines", AT_ALL, async || {
        let log = std::fs::read_to_string(node.peili().log())?;
        let lines = log.lines().map(serde_json::from_str::<Value>);
        let asked: Vec<_> = lines.filter_map(|line| request(&line.ok()?)).collect();
        let has_all = whats
            .iter()
            .all(|what| asked.iter().any(|a| a.what == *what));
        Ok(has_all.then_some(asked))
    })
    .await
    .unwrap()
}

fn request(line: &Value) -> Option<Asked> {
    if line["message"] != "request" || line["from_peer"] != false {
        return None;
    }
    let (entry, rest) = line["path"].as_str()?.split_once("/v2/")?;
    assert_eq!(line["again"], !entry.is_empty(), "{line}");
    Some(Asked {
        method: line["method"].as_str()?.to_owned(),
        entry: entry.to_owned(),
        what: rest.rsplit('/').next()?.to_owned(),
        status: line["status"].as_u64()?,
    })
}

/// The entries at which each thing was asked for and not had, in order, and where it was had at last.
fn trails(asked: &[Asked]) -> BTreeMap<(&str, &str), Vec<String>> {
    let mut trails = BTreeMap::<_, Vec<String>>::new();
    for Asked {
        method,
        entry,
        what,
        status,
    } in asked
    {
        let trail = trails.entry((method.as_str(), what.as_str())).or_default();
        trail.push(format!("{status} {entry}"));
    }
    trails
}

fn digests(image: &Image) -> Vec<&str> {
    image.pulled().map(|blob| blob.digest.as_str()).collect()
}

/// Waits until the node finds it. By requests that containerd does not make.
async fn known(node: &Node, method: Method, path: &str) {
    eventually(path, AT_ALL, async || {
        let to = node.peili().registry();
        let answer = node.http(to, method.clone(), path, &[]).await?;
        Ok(answer.status.is_success().then_some(()))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_2_asks_the_entries_in_their_order_and_a_tag_at_the_last_alone() {
    let lab = lab_or_skip!();
    let first = node_or_skip!(lab, "2.x");
    let second = node_or_skip!(lab, "2.x");
    let spec = ImageSpec::new("test/app:v1").index();
    let image = lab
        .push(spec.layers([MIB, 2 * MIB, 3 * MIB, MIB]))
        .await
        .unwrap();

    // Nobody has it: each entry has its say, then the registry.
    first.cri_pull(&image.reference()).await.unwrap();
    let asked_first = asked(&first, &digests(&image)).await;
    let trails_first = trails(&asked_first);
    for digest in digests(&image) {
        assert_eq!(
            trails_first[&("GET", digest)],
            ["404 /again/1", "404 /again/2", "404 /again/3", "404 "],
            "{digest}"
        );
    }
    assert_eq!(trails_first[&("HEAD", "v1")], ["404 "]);
    let registry = lab.registry.served().await.unwrap().bytes();
    assert_eq!(registry, image.pulled_bytes());

    // A node has it: the first entry that is asked brings it.
    lab.stop_registry().await.unwrap();
    let registry = lab.registry.host().replace(':', "%3A");
    let tag = format!("/v2/{}/manifests/v1?ns={registry}", image.name());
    known(&second, Method::GET, &tag).await;
    for digest in digests(&image) {
        let blob = format!("/v2/{}/blobs/{digest}?ns={registry}", image.name());
        known(&second, Method::HEAD, &blob).await;
    }
    second.cri_pull(&image.reference()).await.unwrap();
    let asked_second = asked(&second, &digests(&image)).await;
    let trails_second = trails(&asked_second);
    for digest in digests(&image) {
        assert_eq!(
            trails_second[&("GET", digest)],
            ["200 /again/1"],
            "{digest}"
        );
        assert!(second.holds(digest), "{digest}");
    }
    assert_eq!(trails_second[&("HEAD", "v1")], ["200 "]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_that_pull_at_once_through_all_entries_have_the_image() {
    let lab = lab_or_skip!();
    let nodes = [node_or_skip!(lab, "2.x"), node_or_skip!(lab, "2.x")];
    let spec = ImageSpec::new("test/app:v1").layers([8 * MIB; 6]);
    let image = lab.push(spec).await.unwrap();
    let reference = image.reference();

    let (one, other) = tokio::join!(nodes[0].cri_pull(&reference), nodes[1].cri_pull(&reference));

    one.unwrap();
    other.unwrap();
    for node in &nodes {
        assert!(image.pulled().all(|blob| node.holds(&blob.digest)));
        // Whatever was asked at an entry was asked at those before it.
        let asked = asked(node, &digests(&image)).await;
        for ((method, what), trail) in trails(&asked) {
            if method == "GET" {
                let order = ["/again/1", "/again/2", "/again/3", ""];
                let entries: Vec<_> = trail.iter().map(|t| t.split_once(' ').unwrap().1).collect();
                assert!(order.starts_with(&entries), "{what}: {trail:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_1_is_given_one_entry() {
    let lab = lab_or_skip!();
    let node = node_or_skip!(lab, "1.7");
    let image = lab
        .push(ImageSpec::new("test/app:v1").layers([MIB]))
        .await
        .unwrap();

    node.cri_pull(&image.reference()).await.unwrap();

    let asked = asked(&node, &digests(&image)).await;
    let trails = trails(&asked);
    for digest in digests(&image) {
        assert_eq!(trails[&("GET", digest)], ["404 "], "{digest}");
    }
}
