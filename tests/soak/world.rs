//! The cluster of a soak, and what each node should have by now.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::future::try_join_all;

use crate::judge::Sample;
use crate::lab::containerd::unpacked;
use crate::lab::process::eventually;
use crate::lab::{Direction, Image, ImageSpec, Lab, Node, NodeOptions, PeiliOptions};
use crate::plan::{IMAGES, MOVING, NODES};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Anything that merely has to happen: more than the minute for which who refused a connection is forgotten.
pub const AT_ALL: Duration = Duration::from_secs(90);
/// Its Peili runs as in a pod of the chart, but for the mounts that only the doctor looks at.
pub const POD: usize = 2;
/// So that a pull from the registry takes long enough to be disturbed, in bytes per second.
const UPSTREAM: u64 = 40 * MIB;
/// A record's 19 minutes, a minute until it is swept, and how long a listing may take to see that something is gone.
const RECORD: Duration = Duration::from_secs((19 + 1) * 60 + 30);

pub struct World {
    pub lab: Lab,
    pub members: Vec<Member>,
    /// A machine that runs no Peili: who asks from outside, and is gone at times.
    pub guest: Node,
    /// On every node from the beginning to the end.
    pub base: Image,
    /// By number, each with its versions; the last is what the tag stands for.
    pub images: Vec<Vec<Image>>,
}

pub struct Member {
    pub node: Node,
    pub options: PeiliOptions,
    /// Images that were pulled or imported and not removed: number and version.
    pub held: BTreeSet<(usize, usize)>,
    /// What the tag of an image stands for here.
    pub tags: BTreeMap<usize, usize>,
    /// What it has when it has nothing else.
    pub base: Content,
    /// As it was written at the start.
    pub hosts: BTreeMap<PathBuf, Vec<u8>>,
    /// Keys that it has, or has had, and when it had them last.
    told: HashMap<String, Instant>,
    /// Of the first plateau.
    pub first: Option<Sample>,
    pub series: Vec<(u64, Sample)>,
}

/// What a containerd says that it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    pub digests: BTreeSet<String>,
    pub names: BTreeSet<String>,
}

impl World {
    pub async fn new() -> Result<Self> {
        let lab = Lab::new().await?;
        let guest = NodeOptions {
            unlisted: true,
            ..NodeOptions::default()
        };
        let guest = lab.node(guest).await?;
        let base = spec("soak/base:v1", 1).index();
        let base = lab.push(base.layers([24 * MIB, 1000])).await?;
        let mut images = Vec::new();
        for image in 0..IMAGES {
            images.push(vec![lab.push(image_spec(image, 0)).await?]);
        }
        // As many versions of containerd as there are.
        let versions = [None, Some("2.x"), Some("1.7"), None];
        let nodes = versions.map(|version| NodeOptions {
            containerd: version.and_then(unpacked),
            ..NodeOptions::default()
        });
        let nodes = try_join_all(nodes.map(|options| lab.node(options))).await?;
        assert_eq!(nodes.len(), NODES);
        let members = nodes.into_iter().enumerate();
        let members = members.map(|(place, node)| Member::new(&lab, place, node));
        let mut members = try_join_all(members).await?;
        let pulls = members.iter().map(|member| {
            let reference = base.reference();
            async move { member.node.cri_pull(&reference).await }
        });
        try_join_all(pulls).await?;
        for member in &mut members {
            // What an import has brought for other platforms goes now, not later.
            member.collect(&base).await?;
            member.base = member.content().await?;
            member.hosts = files_below(&member.node.containerd().certs_d())?;
        }
        lab.shape_registry(Some(UPSTREAM), Direction::Both)?;
        Ok(Self {
            lab,
            members,
            guest,
            base,
            images,
        })
    }

    pub fn newest(&self, image: usize) -> usize {
        self.images[image].len() - 1
    }

    /// A new digest for the tag that moves.
    pub async fn push_new(&mut self) -> Result<()> {
        let version = self.images[MOVING].len();
        let new = self.lab.push(image_spec(MOVING, version)).await?;
        self.images[MOVING].push(new);
        Ok(())
    }

    /// `node` may have any part of `image` now, or have had it a moment ago.
    pub fn touch(&mut self, node: usize, image: usize) {
        let mut versions = BTreeSet::from([self.newest(image)]);
        for member in &self.members {
            versions.extend(member.tags.get(&image));
            let held = member.held.iter().filter(|(other, _)| *other == image);
            versions.extend(held.map(|(_, version)| version));
        }
        for version in versions {
            let keys = keys(&self.images[image][version]);
            self.members[node].mark(keys);
        }
    }

    /// The tag's versions that any node would tell it stands for.
    pub fn tagged(&self, image: usize) -> BTreeSet<usize> {
        let tags = self.members.iter();
        tags.filter_map(|member| member.tags.get(&image).copied())
            .collect()
    }

    pub fn is_held(&self, image: usize, version: usize) -> bool {
        let mut members = self.members.iter();
        members.any(|member| member.held.contains(&(image, version)))
    }

    /// Whether any version of it lies anywhere, whatever the model says.
    pub fn is_anywhere(&self, image: usize) -> bool {
        let tops = self.images[image].iter().map(|image| &image.top().digest);
        tops.into_iter()
            .any(|top| self.members.iter().any(|member| member.node.holds(top)))
    }

    /// How many records the others may have told `node` of.
    pub fn records_for(&self, node: usize) -> u64 {
        let others = self.members.iter().enumerate();
        let others = others.filter(|(place, _)| *place != node);
        others.map(|(_, member)| member.told.len() as u64).sum()
    }

    /// The image is gone from the node, whichever version it had.
    pub async fn remove(&mut self, node: usize, image: usize) -> Result<()> {
        self.touch(node, image);
        let member = &mut self.members[node];
        let held: Vec<_> = member.held.iter().copied().collect();
        for (_, version) in held.into_iter().filter(|(other, _)| *other == image) {
            let image = &self.images[image][version];
            let digest = &image.top().digest;
            let mut tries = 0;
            eventually("a removal", AT_ALL, async || {
                if tries % 200 == 0 {
                    member.node.cri_remove(&image.config.digest).await?;
                    if tries > 0 {
                        member.collect(&self.base).await?;
                    }
                }
                tries += 1;
                Ok((!member.node.holds(digest)).then_some(()))
            })
            .await
            .with_context(|| format!("{} from {}", image.reference(), member.node.name()))?;
        }
        member.held.retain(|(other, _)| *other != image);
        member.tags.remove(&image);
        Ok(())
    }
}

impl Member {
    async fn new(lab: &Lab, place: usize, node: Node) -> Result<Self> {
        let certs_d = node.containerd().certs_d().display().to_string();
        // Bodies whose client has vanished would hold each restart for the whole of the usual half a minute.
        let options = PeiliOptions::default().arg("--shutdown-grace-period", "10s");
        let options = match place {
            // What a pod may do is less.
            POD => options.in_a_pod(),
            _ => options.arg("--containerd-registry-config-path", &certs_d),
        };
        // What exists nowhere else, and what came without a registry.
        let own = format!("soak/own-{place}:v1");
        let own = spec(&own, 2 + place as u64).layers([2 * MIB]);
        let own = lab.make(own).await?;
        node.import(&own).await?;
        node.start_peili_with(&options).await?;
        let mut member = Self {
            node,
            options,
            held: BTreeSet::new(),
            tags: BTreeMap::new(),
            base: Content::default(),
            hosts: BTreeMap::new(),
            told: HashMap::new(),
            first: None,
            series: Vec::new(),
        };
        member.mark_import(&own);
        Ok(member)
    }

    /// As a Peili would tell of it: what its containerd lists.
    pub async fn content(&self) -> Result<Content> {
        let lines = |text: String| text.lines().map(str::to_owned).collect();
        Ok(Content {
            digests: lines(self.node.ctr(&["content", "ls", "--quiet"]).await?),
            names: lines(self.node.ctr(&["images", "ls", "--quiet"]).await?),
        })
    }

    /// Of what was imported, other platforms' contents and the archive's own index included, which are there for a moment.
    pub fn mark_import(&mut self, image: &Image) {
        let index = format!("the index of an archive with {}", image.reference());
        self.mark(keys(image).into_iter().chain([index]));
    }

    pub fn mark(&mut self, keys: impl IntoIterator<Item = String>) {
        let now = Instant::now();
        self.told.retain(|_, last| now - *last < RECORD);
        self.told.extend(keys.into_iter().map(|key| (key, now)));
    }

    /// What its containerd is writing. A directory that one which was killed had just made stays, and is nobody's: containerd
    /// finds its ingests by a file in each.
    pub fn writes(&self) -> Vec<PathBuf> {
        let containerd = self.node.containerd();
        let changed = |path: &Path| std::fs::metadata(path)?.modified();
        let Ok(began) = changed(&containerd.socket()) else {
            return Vec::new();
        };
        let ingests = std::fs::read_dir(containerd.content().join("ingest"));
        let paths = ingests.into_iter().flatten().flatten();
        paths
            .map(|ingest| ingest.path())
            .filter(|path| changed(path).is_ok_and(|changed| changed >= began))
            .collect()
    }

    /// Ends leases that killed containerds have left, which would hold what they protect for a day, and has containerd
    /// collect.
    pub async fn collect(&self, base: &Image) -> Result<()> {
        let leases = self.node.ctr(&["leases", "ls", "--quiet"]).await?;
        for lease in leases.split_whitespace() {
            // It may end by itself.
            let _ = self.node.ctr(&["leases", "rm", "--sync", lease]).await;
        }
        let name = "soak/nothing:v1";
        // Of two at once one may fail.
        let _ = self.node.ctr_tag(&base.reference(), name).await;
        let _ = self.node.ctr_remove(name).await;
        Ok(())
    }
}

impl Content {
    /// Names by which others may ask: `registry/repository:tag`.
    pub fn tags(&self) -> impl Iterator<Item = &String> {
        let names = self.names.iter();
        names.filter(|name| !name.contains('@') && !name.starts_with("sha256:"))
    }
}

/// All that a node may tell of an image.
fn keys(image: &Image) -> Vec<String> {
    let blobs = image.blobs().chain(image.manifests()).chain([image.top()]);
    let digests = blobs.map(|blob| blob.digest.clone());
    digests.chain([image.reference()]).collect()
}

fn spec(name: &str, seed: u64) -> ImageSpec {
    ImageSpec::new(name).seed(seed)
}

fn image_spec(image: usize, version: usize) -> ImageSpec {
    let named = |seed| spec(&format!("soak/a{image}:v1"), seed);
    match image {
        // Two that share their first layer.
        0 => named(10).layers([200 * KIB, 2 * MIB]),
        1 => named(10).layers([200 * KIB, 4 * MIB]),
        // An image of two platforms, and one on top of it. Both packed alike: of the same tar packed otherwise containerd has
        // the snapshot, and does not fetch it.
        2 => named(11).index().layers([64 * KIB, 8 * MIB]),
        3 => named(11).layers([64 * KIB, 8 * MIB, 3 * MIB]),
        // More layers than containerd loads at a time.
        4 => named(12).index().layers([MIB; 8]),
        5 => named(13).layers([100]),
        6 => named(14).plain_tar().layers([16 * MIB]),
        _ => spec("soak/moving:latest", 1000 + version as u64)
            .index()
            .layers([500 * KIB, 3 * MIB]),
    }
}

/// Every file below a folder, with its bytes.
pub fn files_below(folder: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else {
            let bytes = std::fs::read(&path)?;
            files.insert(path, bytes);
        }
    }
    Ok(files)
}
