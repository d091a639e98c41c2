//! What a running Peili tells, against what really happened: three nodes on loopback, and two with real containerds; by JSON,
//! by page and by command.

mod access;
mod find;
mod flights;
#[allow(dead_code, reason = "each test uses its part of the lab")]
#[path = "../lab/mod.rs"]
mod lab;
mod pulls;
mod views;

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use hyper::Method;
use lab::http::{Answer, get_here, send_here};
use lab::loopback::{Loopback, LoopbackNode};
use lab::process::eventually;
use lab::{Image, ImageSpec};
use serde_json::{Value, json};

const PEILI: &str = env!("CARGO_BIN_EXE_peili");
const REGISTRY: &str = "registry.test:5000";
/// Anything that merely has to happen.
const AT_ALL: Duration = Duration::from_secs(30);
const JSON: (&str, &str) = ("content-type", "application/json");

async fn cluster() -> Loopback {
    let cluster = Loopback::new(3).unwrap();
    cluster.start(Path::new(PEILI)).await.unwrap();
    cluster
}

/// The first node has it, and the others find it.
async fn seeded(cluster: &Loopback) -> Image {
    let spec = ImageSpec::new("test/app:v1")
        .index()
        .layers([3 << 20, 70_000]);
    let dir = cluster.folder("images").unwrap();
    let image = spec.build(REGISTRY, &dir).unwrap();
    cluster.nodes()[0].layout().add(&image).unwrap();
    for node in &cluster.nodes()[1..] {
        eventually("the image", AT_ALL, async || {
            let body = json!({"reference": image.reference()});
            let found = posted(node, "find", body).await?.expect(200)?;
            let found: Value = serde_json::from_slice(&found.body)?;
            let layer = json!({"reference": image.layers[0].digest});
            let layer = posted(node, "find", layer).await?.expect(200)?;
            let layer: Value = serde_json::from_slice(&layer.body)?;
            let are_there = found["peers"] != json!([]) && layer["peers"] != json!([]);
            Ok(are_there.then_some(()))
        })
        .await
        .unwrap();
    }
    image
}

fn path(image: &Image, kind: &str, reference: &str) -> String {
    format!("/v2/{}/{kind}/{reference}?ns={REGISTRY}", image.name())
}

/// As its containerd would; how many requests that took, and how many bytes.
async fn pull(node: &LoopbackNode, image: &Image) -> (u64, u64) {
    let mut paths = vec![path(image, "manifests", image.tag())];
    paths.push(path(image, "manifests", &image.manifest.digest));
    let blobs = image.layers.iter().chain([&image.config]);
    paths.extend(blobs.map(|blob| path(image, "blobs", &blob.digest)));
    let mut bytes = 0;
    for path in &paths {
        let answer = node.get(path).await.unwrap().expect(200).unwrap();
        bytes += answer.body.len() as u64;
    }
    (paths.len() as u64, bytes)
}

async fn told(node: &LoopbackNode, view: &str) -> Value {
    let answer = get_here(node.metrics(), &format!("/debug/api/{view}")).await;
    let answer = answer.unwrap().expect(200).unwrap();
    assert_eq!(answer.header("content-type"), Some("application/json"));
    serde_json::from_slice(&answer.body).unwrap()
}

async fn posted(node: &LoopbackNode, what: &str, body: Value) -> anyhow::Result<Answer> {
    let path = format!("/debug/api/{what}");
    send_here(
        node.metrics(),
        Method::POST,
        &path,
        &[JSON],
        &body.to_string(),
    )
    .await
}

/// The events of a pull that is tried.
async fn tried(node: &LoopbackNode, image: &str) -> Vec<Value> {
    let answer = posted(node, "pull", json!({ "image": image })).await;
    let text = answer.unwrap().expect(200).unwrap().text();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn of<'a>(events: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    events.iter().filter(move |event| event["event"] == kind)
}

async fn page(node: &LoopbackNode, view: &str) -> String {
    let answer = get_here(node.metrics(), &format!("/debug/web/{view}")).await;
    answer.unwrap().expect(200).unwrap().text()
}

/// Runs a command of ours. Not on a thread of the runtime: the daemons are other processes.
fn peili(args: &[&str]) -> Output {
    let mut command = Command::new(PEILI);
    for name in [
        "METRICS_ADDR",
        "REGISTRY_ADDR",
        "DATA_DIR",
        "BASIC_AUTH_DIR",
    ] {
        command.env_remove(name);
    }
    command.args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
