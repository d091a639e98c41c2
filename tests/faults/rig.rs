//! Nodes on which one cell after another is tried: a puller behind one tap, and those who hold the images behind others.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::try_join_all;
use hyper::Method;
use tokio::sync::OnceCell;

use crate::cell::{Cell, Hit, Peers};
use crate::lab::peili::REGISTRY_PORT;
use crate::lab::process::eventually;
use crate::lab::{Image, ImageSpec, Lab, Node, NodeOptions, PeiliOptions};
use crate::tap::Tap;

pub const MIB: u64 = 1 << 20;
/// What is left out for cells that are slow.
pub const BIG: u64 = 300 * MIB;
pub const SMALL: u64 = 8 * MIB;
/// An image packed and unpacked, and containerd's database.
const DISK: u64 = 2 * (BIG + SMALL) + 100 * MIB;
/// Anything that merely has to happen.
pub const AT_ALL: Duration = Duration::from_secs(60);

pub struct Rig {
    pub lab: Lab,
    pub puller: Node,
    pub front: Tap,
    /// The first is the victim.
    pub holders: Vec<Node>,
    pub taps: Vec<Tap>,
    /// With a layer of 300 MiB and one of 8.
    pub big: Image,
    /// With the one of 8 alone.
    pub small: Image,
}

/// Made once for all rigs.
struct Files {
    _dir: tempfile::TempDir,
    big: Image,
    small: Image,
}

async fn files() -> Result<&'static Files> {
    static FILES: OnceCell<Files> = OnceCell::const_new();
    FILES
        .get_or_try_init(async || {
            tokio::task::spawn_blocking(|| {
                let dir = tempfile::tempdir_in("/var/tmp")?;
                let spec = |name| ImageSpec::new(name).plain_tar();
                let big = spec("faults/big:v1").layers([SMALL, BIG]);
                let small = spec("faults/small:v1").layers([SMALL]);
                // Another seed: containerd shares layers of images, and these are pulled one after the other.
                let small = small.seed(2);
                Ok(Files {
                    big: big.build("registry.invalid", dir.path())?,
                    small: small.build("registry.invalid", dir.path())?,
                    _dir: dir,
                })
            })
            .await?
        })
        .await
}

impl Rig {
    pub async fn new(peers: Peers) -> Result<Self> {
        let files = files().await?;
        let lab = Lab::new().await?;
        let big = files.big.at(&lab.registry.host());
        let small = files.small.at(&lab.registry.host());
        let puller = lab.node(NodeOptions {
            root_in_memory: Some(DISK),
            ..NodeOptions::default()
        });
        let holders = (0..peers.count()).map(|_| lab.node(NodeOptions::default()));
        let (puller, holders) = tokio::try_join!(puller, try_join_all(holders))?;
        for image in [&small, &big] {
            lab.registry.push(image).await?;
            let archive = lab.folder("archives")?.join("image.tar");
            let (written, to) = (image.clone(), archive.clone());
            tokio::task::spawn_blocking(move || written.write_archive(&to)).await??;
            for holder in &holders {
                hold(holder, &archive).await?;
            }
        }
        // A node of a cluster has pulled something before: until then containerd has no content directory, and nothing can be
        // seen to grow there.
        let earlier = ImageSpec::new("faults/earlier:v1").layers([1000]);
        puller.import(&lab.make(earlier).await?).await?;
        let front = tap(&puller).await?;
        let taps = try_join_all(holders.iter().map(tap)).await?;
        let rig = Self {
            lab,
            puller,
            front,
            holders,
            taps,
            big,
            small,
        };
        rig.puller
            .peili()
            .configure(
                rig.puller.netns(),
                rig.puller.containerd(),
                &rig.lab.registry.host(),
                &[],
            )
            .await?;
        for place in 0..rig.holders.len() {
            rig.start_holder(place).await?;
        }
        Ok(rig)
    }

    pub fn victim(&self) -> &Node {
        &self.holders[0]
    }

    pub fn tap(&self) -> &Tap {
        &self.taps[0]
    }

    pub fn image(&self, cell: &Cell) -> &Image {
        if cell.fault.is_slow() {
            &self.small
        } else {
            &self.big
        }
    }

    /// What the cell is about: a path that its request has, and the file behind it, if there is one.
    pub fn target(&self, cell: &Cell) -> (String, Option<String>) {
        let image = self.image(cell);
        match cell.hit {
            Hit::Tag => (format!("/manifests/{}?", image.tag()), None),
            Hit::Manifest => {
                let digest = &image.manifest.digest;
                (format!("/manifests/{digest}"), Some(digest.clone()))
            }
            Hit::SmallBlob => {
                let digest = &image.config.digest;
                (format!("/blobs/{digest}"), Some(digest.clone()))
            }
            Hit::Layer | Hit::Range => {
                let layer = image.layers.last().expect("it has layers");
                (
                    format!("/blobs/{}", layer.digest),
                    Some(layer.digest.clone()),
                )
            }
        }
    }

    fn options(&self, place: Option<usize>) -> PeiliOptions {
        // The tap is where others ask.
        let behind = behind().to_string();
        let options = PeiliOptions::default()
            .unconfigured()
            .arg("--registry-addr", &behind);
        match place {
            // Without privileges, or nothing would be unreadable. Nearer than the others, so that it is asked first.
            Some(0) => options.in_a_pod().arg("--zone", "here"),
            Some(_) => options.arg("--zone", "elsewhere"),
            None => options.arg("--zone", "here"),
        }
    }

    /// Without waiting for anything.
    pub async fn spawn_holder(&self, place: usize) -> Result<()> {
        let options = self.options(Some(place));
        self.holders[place].spawn_peili(&options).await
    }

    pub async fn start_holder(&self, place: usize) -> Result<()> {
        self.spawn_holder(place).await?;
        self.holders[place].peili_ready().await
    }

    pub async fn spawn_puller(&self) -> Result<()> {
        self.puller.spawn_peili(&self.options(None)).await
    }

    /// The puller's Peili is new and knows everybody, everybody can be found, and the puller has nothing.
    pub async fn reset(&self) -> Result<()> {
        self.front.open();
        self.empty().await?;
        self.puller.kill_peili();
        self.spawn_puller().await?;
        self.puller.peili_ready().await?;
        self.everybody_known().await
    }

    pub async fn everybody_known(&self) -> Result<()> {
        let all = self.holders.len() as f64;
        eventually("acquaintance with all holders", AT_ALL, async || {
            let known = self.puller.metric("peili_peers", &[("state", "known")]);
            Ok((known.await? >= all).then_some(()))
        })
        .await?;
        for holder in &self.holders {
            eventually("the holders' announcements", AT_ALL, async || {
                let told = holder.metric("peili_announcements_total", &[("result", "ok")]);
                let keys = holder.metric("peili_advertised_keys", &[]);
                let (told, keys) = (told.await?, keys.await?);
                // Two images with their tags, manifests, configs and layers.
                Ok((keys >= 8.0 && told >= keys).then_some(()))
            })
            .await
            .with_context(|| holder.name().to_owned())?;
        }
        for image in [&self.small, &self.big] {
            for (kind, reference) in [
                ("manifests", image.tag()),
                ("blobs", &image.layers.last().context("a layer")?.digest),
            ] {
                self.found(image, kind, reference).await?;
            }
        }
        Ok(())
    }

    /// Waits until the puller's Peili has it from somebody.
    pub async fn found(&self, image: &Image, kind: &str, reference: &str) -> Result<()> {
        let registry = self.lab.registry.host().replace(':', "%3A");
        let path = format!("/v2/{}/{kind}/{reference}?ns={registry}", image.name());
        let to = behind();
        eventually(&path, AT_ALL, async || {
            // Not a GET: what the puller has a part of would look as if its containerd had gone elsewhere for it.
            let answer = self.puller.http(to, Method::HEAD, &path, &[]).await;
            Ok(answer.is_ok_and(|a| a.status.is_success()).then_some(()))
        })
        .await
    }

    /// The puller has neither image, nor a part of one.
    pub async fn empty(&self) -> Result<()> {
        for image in [&self.small, &self.big] {
            self.puller.cri_remove(&image.reference()).await?;
        }
        // Whoever has no name any more goes with the next collection, which a removal of a name begins.
        let held = || {
            [&self.small, &self.big]
                .into_iter()
                .flat_map(Image::pulled)
                .any(|blob| self.puller.holds(&blob.digest))
        };
        let mut tries = 0;
        eventually("an empty puller", AT_ALL, async || {
            let ingests = std::fs::read_dir(self.puller.containerd().content().join("ingest"));
            let is_empty = !held() && ingests.map_or(0, Iterator::count) == 0;
            if is_empty {
                return Ok(Some(()));
            }
            tries += 1;
            if tries % 40 == 0 {
                self.collect().await?;
            }
            Ok(None)
        })
        .await
    }

    /// Makes containerd collect what nobody needs: what a killed one was writing has a lease for a day.
    pub async fn collect(&self) -> Result<()> {
        let leases = self.puller.ctr(&["leases", "ls", "--quiet"]).await?;
        for lease in leases.split_whitespace() {
            // It may end by itself.
            let _ = self.puller.ctr(&["leases", "rm", "--sync", lease]).await;
        }
        let name = "faults/nothing:v1";
        let earlier = format!("{}/faults/earlier:v1", self.lab.registry.host());
        // Of two at once one may fail.
        let _ = self.puller.ctr_tag(&earlier, name).await;
        let _ = self.puller.ctr_remove(name).await;
        Ok(())
    }

    /// The file of a blob in a node's store.
    pub fn blob_of(node: &Node, digest: &str) -> PathBuf {
        let blob = format!("blobs/{}", digest.replace(':', "/"));
        node.containerd().content().join(blob)
    }
}

/// Where Peili itself listens.
pub fn behind() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, REGISTRY_PORT).into()
}

async fn tap(node: &Node) -> Result<Tap> {
    let on = (node.ip(), REGISTRY_PORT).into();
    Tap::start(node.netns(), on, behind()).await
}

async fn hold(node: &Node, archive: &Path) -> Result<()> {
    let archive = archive.to_str().context("a path in UTF-8")?;
    let import = ["images", "import", "--no-unpack", archive];
    node.ctr(&import).await.map(drop)
}
