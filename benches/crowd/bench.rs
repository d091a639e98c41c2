//! The lab in which runs follow each other: images are pushed once, nodes are new for every run.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use rustix::process::Signal;

use crate::lab::dns::PEERS;
use crate::lab::layout::Layout;
use crate::lab::process::eventually;
use crate::lab::proxy::Rule;
use crate::lab::{Direction, Image, ImageSpec, Lab, Node, NodeOptions, PeiliOptions};
use crate::measure::memory_available;
use crate::run::Plan;
use crate::scenario::{Fault, Layers, Variant, version_of};

/// A lab's network has room for 244 nodes in its lifetime.
const NODES_OF_A_LAB: usize = 240;
const MIB: u64 = 1 << 20;
/// Nodes that know each other; it takes a second or two.
const ACQUAINTED: Duration = Duration::from_secs(30);

pub struct Bench {
    lab: Option<Lab>,
    peili: Option<PathBuf>,
    images: BTreeMap<Layers, Image>,
    used: usize,
}

impl Bench {
    /// `peili`: another one than that which was built with this.
    pub fn new(peili: Option<PathBuf>) -> Self {
        Self {
            lab: None,
            peili,
            images: BTreeMap::new(),
            used: 0,
        }
    }

    /// The lab with room for so many nodes more, and the image in its registry.
    pub async fn ready(&mut self, nodes: usize, layers: Layers) -> Result<(&Lab, Image)> {
        self.used += nodes;
        if self.lab.is_none() || self.used > NODES_OF_A_LAB {
            self.images.clear();
            self.lab = None;
            let lab = Lab::new().await?;
            if let Some(peili) = &self.peili {
                lab.set_peili(peili.clone());
            }
            self.lab = Some(lab);
            self.used = nodes;
        }
        let lab = self.lab.as_ref().context("a lab")?;
        let image = match self.images.entry(layers) {
            Entry::Occupied(made) => made.get().clone(),
            Entry::Vacant(new) => new.insert(make(lab, layers).await?).clone(),
        };
        Ok((lab, image))
    }

    /// What one run changed and the next must not meet.
    pub async fn tidy(&self) -> Result<()> {
        let Some(lab) = &self.lab else {
            return Ok(());
        };
        lab.dns().set(PEERS, &[]).await?;
        lab.shape_registry(None, Direction::Up)?;
        lab.registry.unfront().await
    }
}

/// In the registry, and in an OCI layout of its own.
async fn make(lab: &Lab, layers: Layers) -> Result<Image> {
    // Seed by shape: images of different shapes share no layer.
    let seed = layers.count as u64 * 100_000 + layers.mib;
    let sizes = std::iter::repeat_n(layers.mib * MIB, layers.count);
    let spec = ImageSpec::new(&format!("crowd/{layers}:v1"));
    let image = lab.push(spec.index().seed(seed).layers(sizes)).await?;
    Layout::create(&layout(lab, layers)?)?.add_linked(&image)?;
    // Or the first run would wait for the disk that all this is being written to.
    tokio::task::spawn_blocking(rustix::fs::sync).await?;
    Ok(image)
}

fn layout(lab: &Lab, layers: Layers) -> Result<PathBuf> {
    lab.folder(&format!("layout-{layers}"))
}

/// New nodes as the plan has them, each with its Peili if it has one, and links as slow as they shall be.
pub async fn set_up(lab: &Lab, plan: &Plan<'_>, image: &Image) -> Result<Vec<Node>> {
    // Each node has the image twice, packed and unpacked, and a database.
    let per_node = 2 * image.pulled_bytes() + 64 * MIB;
    let (needed, there) = (
        per_node * plan.nodes as u64 + 1024 * MIB,
        memory_available(),
    );
    ensure!(
        needed < there,
        "the nodes' disks are in memory and need {} MiB, {} MiB are free",
        needed / MIB,
        there / MIB
    );
    let nodes = (0..plan.nodes).map(|index| {
        let is_full = index == 0 && plan.fault == Some(Fault::FullDisk);
        lab.node(NodeOptions {
            version: version_of(plan.fleet, index).map(str::to_owned),
            root_in_memory: Some(if is_full {
                image.pulled_bytes() / 2
            } else {
                per_node
            }),
            ..NodeOptions::default()
        })
    });
    let nodes = try_join_all(nodes).await?;
    // A node of a cluster has pulled something before, be it the pod's own image: until then containerd has no content
    // directory, and nothing can be seen to grow there.
    let earlier = ImageSpec::new("crowd/earlier:v1").layers([1000]);
    let earlier = lab.make(earlier).await?;
    try_join_all(nodes.iter().map(|node| node.import(&earlier))).await?;
    for (index, node) in nodes.iter().enumerate() {
        let version = node.containerd().version();
        ensure!(
            version_of(plan.fleet, index).is_some() || version.starts_with("1.6."),
            "this machine's containerd is {version}, not 1.6"
        );
    }
    if plan.variant != Variant::Without {
        let layout = layout(lab, plan.layers)?;
        let layout = layout.to_str().context("a path in UTF-8")?;
        let started = nodes
            .iter()
            .map(|node| start_peili(node, lab, plan.variant, layout));
        try_join_all(started).await?;
        acquainted(&nodes).await?;
    }
    for holder in &nodes[..plan.holders] {
        if plan.variant == Variant::Without {
            holder.cri_pull(&image.reference()).await?;
            continue;
        }
        let before = announcements(holder).await?;
        holder.cri_pull(&image.reference()).await?;
        // Layers, configuration and manifest: the others can find all of it there.
        let least = before + (image.layers.len() + 2) as f64;
        let told = eventually("the image's announcement", ACQUAINTED, async || {
            Ok((announcements(holder).await? >= least).then_some(()))
        });
        told.await?;
    }
    let mut rules = Vec::new();
    match plan.fault {
        Some(Fault::Late(by)) => rules.push(Rule::Late(by)),
        Some(Fault::LeaderUnauthorized) => rules.push(Rule::Unauthorized {
            client: nodes[0].ip().into(),
            digests: image.layers.iter().map(|l| l.digest.clone()).collect(),
        }),
        _ => {}
    }
    if !rules.is_empty() {
        lab.registry.front(rules).await?;
    }
    if plan.variant != Variant::Local {
        lab.shape_registry(Some(plan.registry), Direction::Up)?;
        for node in &nodes {
            node.shape(Some(plan.link), Direction::Both)?;
        }
    }
    Ok(nodes)
}

async fn start_peili(node: &Node, lab: &Lab, variant: Variant, layout: &str) -> Result<()> {
    // As the DaemonSet does: containerd shows a token, and who has none gets nothing fetched.
    let data = node.peili().data();
    let data = data.to_str().context("a path in UTF-8")?;
    let registry = lab.registry.host();
    let token = ["--data-dir", data];
    let peili = node.peili();
    peili
        .configure(node.netns(), node.containerd(), &registry, &token)
        .await?;
    let mut options = PeiliOptions::default().unconfigured();
    if variant == Variant::Local {
        options = options
            .arg("--store", "oci-layout")
            .arg("--oci-layout-path", layout);
    }
    node.start_peili_with(&options).await
}

/// Every node is in every other's routing table: a cluster that has been up for a while.
async fn acquainted(nodes: &[Node]) -> Result<()> {
    for node in nodes {
        let mut known = 0.0;
        let all = (nodes.len() - 1) as f64;
        let met = eventually("acquaintance with all nodes", ACQUAINTED, async || {
            known = node.metric("peili_peers", &[("state", "known")]).await?;
            Ok((known >= all).then_some(()))
        });
        let met = met.await;
        met.with_context(|| format!("{} knows {known} of {all}", node.name()))?;
    }
    Ok(())
}

/// Keys that a node has told the others of.
async fn announcements(node: &Node) -> Result<f64> {
    node.metric("peili_announcements_total", &[("result", "ok")])
        .await
}

/// Nobody is left who was stopped: it could not end.
pub fn wake(nodes: &[Node]) {
    for node in nodes {
        let _ = node.signal_peili(Signal::CONT);
    }
}
