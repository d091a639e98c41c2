//! Three nodes with containerd, one download, and then no registry any more.
//!
//! The figures are not Peili's word alone: the registry's own access log says what left it.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use indicatif::DecimalBytes;

use crate::lab::process::eventually;
use crate::lab::{Image, ImageSpec, Lab, Node, NodeOptions};
use crate::show::Step;

/// Large enough that sharing shows, small enough that nobody waits: 60 MB.
const LAYERS: [u64; 6] = [
    4_000_000, 6_000_000, 8_000_000, 12_000_000, 14_000_000, 16_000_000,
];
const SAVED_BYTES: &str = "peili_registry_bytes_saved_total";

pub async fn tell(peili: PathBuf) -> Result<()> {
    let step = Step::begin("Starting a registry, DNS and three nodes");
    let lab = Lab::new().await?;
    lab.set_peili(peili);
    let nodes = try_join_all((0..3).map(|_| lab.node(NodeOptions::default()))).await?;
    let version = nodes[0].containerd().version();
    step.done(&format!("3 nodes with containerd {version}"));

    let step = Step::begin("Starting Peili on each, to find the others by DNS");
    try_join_all(nodes.iter().map(|node| node.start_peili())).await?;
    step.done("Peili is ready on each");

    let step = Step::begin("Making an image and pushing it to the registry");
    let spec = ImageSpec::new("demo/app:v1").busybox().index();
    let image = lab.push(spec.layers(LAYERS)).await?;
    let (layers, size) = (image.layers.len(), DecimalBytes(image.pulled_bytes()));
    step.done(&format!("an image of {layers} layers, {size}"));

    let by_tag = image.reference();
    let by_digest = image.reference_by_digest();
    let mut rows = vec![pull(&nodes[0], "by tag", &by_tag, &image).await?];

    let step = Step::begin("Stopping the registry");
    lab.stop_registry().await?;
    step.done("the registry is gone; only the nodes have the image now");

    let step = Step::begin("Waiting until the other nodes know who has it");
    let took = until_known(&nodes[1..], &image).await?;
    step.done(&format!("known to them {took:.1?} later"));

    rows.push(pull(&nodes[1], "by tag", &by_tag, &image).await?);
    rows.push(pull(&nodes[2], "by digest", &by_digest, &image).await?);

    let served = lab.registry.served().await?;
    for row in &mut rows {
        row.from_registry = served.bytes_to(row.ip);
    }
    table(&rows);
    for (node, reference) in nodes.iter().zip([&by_tag, &by_tag, &by_digest]) {
        match run(node, reference).await {
            Ok(said) => println!("A container of it on {} says: {said}", node.name()),
            // A sandbox without the rights for runc says nothing about Peili.
            Err(error) => println!(
                "No container on {}, runc cannot here: {error:#}",
                node.name()
            ),
        }
    }
    judge(&rows, image.pulled_bytes())
}

/// How one node got the image.
struct Row {
    node: String,
    ip: Ipv4Addr,
    how: &'static str,
    took: Duration,
    from_registry: u64,
    from_peers: u64,
}

/// Returns when every other node finds the image. A pull that comes before is no harm with a registry behind it; here
/// it would fail.
async fn until_known(nodes: &[Node], image: &Image) -> Result<Duration> {
    const SOON: Duration = Duration::from_secs(10);
    let begun = Instant::now();
    let registry = image.reference();
    let registry = registry.split('/').next().unwrap_or_default();
    let path = |of: &str| format!("/v2/{}/manifests/{of}?ns={registry}", image.name());
    for (node, reference) in nodes.iter().zip([image.tag(), &image.top().digest]) {
        eventually("the image being found", SOON, async || {
            let answer = node.http_get(&path(reference)).await?;
            Ok(answer.status.is_success().then_some(()))
        })
        .await?;
    }
    Ok(begun.elapsed())
}

/// Pulls over the CRI, as the kubelet does.
async fn pull(node: &Node, how: &'static str, reference: &str, image: &Image) -> Result<Row> {
    let name = node.name();
    let step = Step::begin_bytes(&format!("{name} pulls {how}"), image.pulled_bytes());
    let before = node.metric(SAVED_BYTES, &[]).await?;
    let pulled = watch(&step, node, node.cri_pull(reference)).await?;
    let after = node.metric(SAVED_BYTES, &[]).await?;
    let row = Row {
        node: name.to_owned(),
        ip: node.ip(),
        how,
        took: pulled.took,
        from_registry: 0,
        from_peers: (after - before) as u64,
    };
    step.done(&format!("{name} pulled {how} in {:.1?}", row.took));
    Ok(row)
}

async fn run(node: &Node, reference: &str) -> Result<String> {
    let id = format!("demo-{}-{}", std::process::id(), node.name());
    let snapshotter = node.snapshotter();
    let mut args = vec!["run", "--rm", "--snapshotter", snapshotter, reference, &id];
    args.extend([
        "/bin/sh",
        "-c",
        "echo I run, $(ls /data | wc -l) data layers",
    ]);
    Ok(node.ctr(&args).await?.trim().to_owned())
}

fn table(rows: &[Row]) {
    println!();
    println!(
        "{:<6}{:<12}{:>9}{:>16}{:>18}",
        "node", "pulled", "seconds", "from registry", "from other nodes"
    );
    for row in rows {
        println!(
            "{:<6}{:<12}{:>9.2}{:>16}{:>18}",
            row.node,
            row.how,
            row.took.as_secs_f64(),
            DecimalBytes(row.from_registry).to_string(),
            DecimalBytes(row.from_peers).to_string(),
        );
    }
    println!();
}

/// The first node gets every byte from the registry, the others every byte from nodes.
fn judge(rows: &[Row], image: u64) -> Result<()> {
    for (place, row) in rows.iter().enumerate() {
        let expected = if place == 0 { (image, 0) } else { (0, image) };
        ensure!(
            (row.from_registry, row.from_peers) == expected,
            "{}: {} bytes from the registry and {} from other nodes, expected {expected:?}",
            row.node,
            row.from_registry,
            row.from_peers
        );
    }
    println!(
        "Every byte left the registry once: {image} bytes for {} nodes.",
        rows.len()
    );
    Ok(())
}

/// Lets the bar follow what the node has on its disk while `work` goes on.
async fn watch<T>(step: &Step, node: &Node, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    let content = node.containerd().content();
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(Duration::from_millis(100)) => step.at(bytes_below(&content)),
        }
    }
}

/// Size of the files below; what vanishes meanwhile has none.
fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let is_dir = entry.file_type().ok()?.is_dir();
            Some(if is_dir {
                bytes_below(&entry.path())
            } else {
                entry.metadata().ok()?.len()
            })
        })
        .sum()
}
