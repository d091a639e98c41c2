//! The same story without root: three Peilis at loopback addresses, each over an OCI layout directory.
//!
//! Nobody's containerd asks them, so the demo does: it pulls through a node's mirror as containerd would, from the tag
//! down to the layers, and checks every digest. There is no registry anywhere, so what does not come from another node
//! does not come.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use indicatif::DecimalBytes;
use peili::oci::Digest;
use serde_json::{Value, json};

use crate::lab::loopback::{Loopback, LoopbackNode};
use crate::lab::process::eventually;
use crate::lab::{Image, ImageSpec};
use crate::show::Step;

/// Large enough that sharing shows, small enough that nobody waits: 30 MB.
const LAYERS: [u64; 6] = [
    2_000_000, 3_000_000, 4_000_000, 6_000_000, 7_000_000, 8_000_000,
];
/// Reserved by RFC 2606: nobody could be asked there.
const REGISTRY: &str = "registry.example";
const SOON: Duration = Duration::from_secs(10);

pub async fn tell(peili: &Path) -> Result<()> {
    println!("Three Peilis on this machine's loopback, over OCI layout directories. No root, no");
    println!("containerd, no registry: the demo itself pulls, through each node's own mirror.\n");

    let step = Step::begin("Making an image in the layout of n1; those of n2 and n3 are empty");
    let cluster = Loopback::new(3)?;
    let [n1, n2, n3] = cluster.nodes() else {
        anyhow::bail!("three nodes were asked for");
    };
    let dir = cluster.folder("images")?;
    let spec = ImageSpec::new("demo/app:v1").index().layers(LAYERS);
    let image = tokio::task::spawn_blocking(move || spec.build(REGISTRY, &dir)).await??;
    n1.layout().add(&image)?;
    let (layers, size) = (image.layers.len(), DecimalBytes(image.pulled_bytes()));
    step.done(&format!("n1 has an image of {layers} layers, {size}"));

    let step = Step::begin("Starting Peili on each");
    cluster.start(peili).await?;
    let addresses: Vec<_> = cluster.nodes().iter().map(|n| n.ip().to_string()).collect();
    step.done(&format!("Peili is ready at {}", addresses.join(", ")));

    let mut story = Story {
        image: &image,
        nodes: cluster.nodes(),
        brought: 0,
        stopped: [0; 3],
    };
    story.until_known(n2).await?;
    let mut rows = vec![story.pull(n2).await?];

    let step = Step::begin("Stopping n1, and with it the only source until now");
    story.stop(0).await?;
    ensure!(n1.get("/livez").await.is_err(), "n1 still answers");
    step.done("n1 is gone; n2 wrote what it got into its layout, and has the image");

    story.until_known(n3).await?;
    rows.push(story.pull(n3).await?);

    table(&rows);
    judge(&rows, image.pulled_bytes())
}

struct Story<'a> {
    image: &'a Image,
    nodes: &'a [LoopbackNode],
    /// Bytes that nodes have brought us so far.
    brought: u64,
    /// What those that run no longer had uploaded.
    stopped: [u64; 3],
}

/// How one node got the image.
struct Row {
    node: String,
    took: Duration,
    /// By what the nodes say that they uploaded.
    from: [u64; 3],
}

impl Story<'_> {
    fn path(&self, kind: &str, reference: &str) -> String {
        let name = self.image.name();
        format!("/v2/{name}/{kind}/{reference}?ns={REGISTRY}")
    }

    /// Asks `node`'s mirror until it finds the image.
    async fn until_known(&mut self, node: &LoopbackNode) -> Result<()> {
        let name = node.name();
        let step = Step::begin(&format!("Waiting until {name} knows who has it"));
        let begun = Instant::now();
        let path = self.path("manifests", self.image.tag());
        let found = eventually("the image being found", SOON, async || {
            let answer = node.get(&path).await?;
            Ok(answer.status.is_success().then_some(answer.body))
        });
        self.brought += found.await?.len() as u64;
        step.done(&format!("known to {name} after {:.1?}", begun.elapsed()));
        Ok(())
    }

    /// Tag, index, manifest of this platform, config, layers; each verified, and written into the node's layout.
    async fn pull(&mut self, node: &LoopbackNode) -> Result<Row> {
        let name = node.name();
        let step = Step::begin_bytes(&format!("{name} pulls"), self.image.pulled_bytes());
        let before = self.uploads().await?;
        let begun = Instant::now();

        let top = node.get(&self.path("manifests", self.image.tag())).await?;
        let top = top.expect(200)?;
        let digest = top.header("docker-content-digest").context("no digest")?;
        let digest = digest.to_owned();
        let index: Value = serde_json::from_slice(&top.body)?;
        let mut pulled = vec![(digest.clone(), verified(&digest, top.body)?)];
        let entries = index["manifests"].as_array().context("no index")?;
        let here = |entry: &&Value| entry["platform"]["architecture"] == architecture();
        let entry = entries.iter().find(here).context("not for this machine")?;
        let manifest = self.get(node, "manifests", entry).await?;
        let parts: Value = serde_json::from_slice(&manifest.1)?;
        pulled.push(manifest);
        let layers = parts["layers"].as_array().context("no layers")?;
        for part in std::iter::once(&parts["config"]).chain(layers) {
            pulled.push(self.get(node, "blobs", part).await?);
            step.at(pulled.iter().map(|(_, bytes)| bytes.len() as u64).sum());
        }

        let took = begun.elapsed();
        let bytes: u64 = pulled.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        self.brought += bytes;
        let after = self.uploads().await?;
        // The name last, as every tool does: who finds it finds all of it.
        for (digest, bytes) in &pulled {
            node.layout().add_blob(digest, bytes)?;
        }
        let media_type = &index["mediaType"];
        let top = json!({"mediaType": media_type, "digest": digest, "size": pulled[0].1.len()});
        node.layout().name(&self.image.reference(), top)?;
        step.done(&format!("{name} got {} in {took:.1?}", DecimalBytes(bytes)));
        Ok(Row {
            node: name.to_owned(),
            took,
            from: [0, 1, 2].map(|node| after[node] - before[node]),
        })
    }

    async fn get(
        &self,
        node: &LoopbackNode,
        kind: &str,
        descriptor: &Value,
    ) -> Result<(String, Vec<u8>)> {
        let digest = descriptor["digest"].as_str().context("no digest")?;
        let answer = node.get(&self.path(kind, digest)).await?.expect(200)?;
        Ok((digest.to_owned(), verified(digest, answer.body)?))
    }

    /// What each node has sent to others, once that explains every byte that was brought.
    async fn uploads(&self) -> Result<[u64; 3]> {
        let mut last = self.stopped;
        let explained = eventually("uploads", SOON, async || {
            let mut now = self.stopped;
            for (node, uploaded) in self.nodes.iter().zip(&mut now) {
                if node.is_running() {
                    *uploaded = node.metric("peili_upload_bytes_total", &[]).await? as u64;
                }
            }
            last = now;
            Ok((now.iter().sum::<u64>() == self.brought).then_some(now))
        });
        let explained = explained.await;
        explained.with_context(|| format!("{} were brought, {last:?} sent", self.brought))
    }

    async fn stop(&mut self, number: usize) -> Result<()> {
        let uploaded = self.uploads().await?;
        self.nodes[number].stop().await?;
        self.stopped[number] = uploaded[number];
        Ok(())
    }
}

fn verified(digest: &str, bytes: impl Into<Vec<u8>>) -> Result<Vec<u8>> {
    let bytes = bytes.into();
    let is_so = digest.parse::<Digest>()?.verifies(&bytes);
    ensure!(is_so, "other bytes than {digest}");
    Ok(bytes)
}

/// As images call it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    }
}

fn table(rows: &[Row]) {
    println!();
    println!(
        "{:<6}{:<12}{:>9}{:>14}{:>14}{:>14}",
        "node", "pulled", "seconds", "from n1", "from n2", "from n3"
    );
    for row in rows {
        let from = row.from.map(|bytes| DecimalBytes(bytes).to_string());
        println!(
            "{:<6}{:<12}{:>9.2}{:>14}{:>14}{:>14}",
            row.node,
            "by tag",
            row.took.as_secs_f64(),
            from[0],
            from[1],
            from[2],
        );
    }
    println!();
}

/// The second node gets every byte from the first, the third every byte from the second.
fn judge(rows: &[Row], image: u64) -> Result<()> {
    for (row, expected) in rows.iter().zip([[image, 0, 0], [0, image, 0]]) {
        ensure!(
            row.from == expected,
            "{}: {:?} bytes from n1, n2 and n3, expected {expected:?}",
            row.node,
            row.from
        );
    }
    println!("Every byte came from another node, and every digest was right: n3 has from n2 what");
    println!("n2 had from n1, which is gone.");
    Ok(())
}
