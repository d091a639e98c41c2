//! Pulls an image through a mirror as containerd would, and stores nothing: does it work, how fast, and from where?
//!
//! Manifest, choice of the platform, configuration and layers, three at a time, each against its digest. What nobody in the
//! cluster holds is told so, with the mirror's own reason; containerd would get it from the registry, and this does not,
//! because it has no credentials and fetches nothing that others could then follow.

mod client;
mod platform;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::basic_auth::Secret;
use crate::node_token::NodeToken;
use crate::oci::distribution::MAX_MANIFEST;
use crate::oci::manifest::{Contents, Descriptor};
use crate::oci::{Digest, ImageName};
use client::{Body, Refusal};

pub use platform::{Platform, PlatformError};

/// As containerd does it for each image.
const AT_ONCE: usize = 3;
/// Progress of one blob is told no more often.
const TELL: Duration = Duration::from_millis(100);
/// An index may list indexes; more than this is a ring.
const DEPTH: usize = 4;
/// Images have some tens of layers; Docker itself stops at 127.
const MAX_LAYERS: usize = 512;

/// The mirror that is asked.
#[derive(Clone, Debug)]
pub struct Registry {
    pub at: Vec<SocketAddr>,
    /// Where this node's token is; None: there is none.
    pub token: Option<Arc<NodeToken>>,
    /// What everybody must send; None: nothing.
    pub basic_auth: Option<Arc<Secret>>,
}

/// What happens, in order. As JSON, one line for each.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A manifest or an index has come and is what its digest says.
    Manifest {
        digest: Digest,
        media_type: String,
        bytes: u64,
        took_ms: u64,
        #[serde(flatten)]
        source: Source,
    },
    /// Of an index: the image for this platform.
    Platform { platform: String, digest: Digest },
    /// What is fetched now.
    Layers { layers: Vec<Layer> },
    /// So many bytes of it have come.
    Progress { digest: Digest, bytes: u64 },
    /// It has come wholly, and its digest is right.
    Fetched {
        digest: Digest,
        bytes: u64,
        took_ms: u64,
        #[serde(flatten)]
        source: Source,
    },
    /// It has not, and why. Without a digest: the image cannot be looked at.
    Failed {
        digest: Option<Digest>,
        error: String,
        /// What to do about it.
        cure: String,
    },
    /// Nothing follows.
    Ended {
        ok: bool,
        /// Of everything that has come, manifests included.
        bytes: u64,
        took_ms: u64,
        failed: usize,
    },
}

/// Where the first byte came from, as the mirror says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Source {
    /// local or peer.
    pub source: String,
    /// Of a peer, where its registry is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<SocketAddr>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Layer {
    pub digest: Digest,
    pub bytes: u64,
    pub media_type: String,
}

/// Why one thing could not be had.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Trouble {
    error: String,
    cure: &'static str,
}

type Events = mpsc::Sender<Event>;

/// Nobody listens any more: the pull ends.
#[derive(Debug)]
struct Gone;

/// Begins a pull; it goes on as long as its events are received.
pub fn pull(registry: Registry, image: ImageName, platform: Platform) -> mpsc::Receiver<Event> {
    let (events, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        // An error says that nobody wants to know more.
        let _ = Pull {
            registry,
            image,
            platform,
            events,
        }
        .run()
        .await;
    });
    receiver
}

struct Pull {
    registry: Registry,
    image: ImageName,
    platform: Platform,
    events: Events,
}

impl Pull {
    async fn run(&self) -> Result<(), Gone> {
        let began = Instant::now();
        let (mut bytes, mut failed) = (0, 0);
        match self.layers(&mut bytes).await? {
            Err(trouble) => {
                failed += 1;
                self.failed(None, trouble).await?;
            }
            Ok(layers) => {
                let told = layers.iter().map(|layer| Layer {
                    digest: layer.digest.clone(),
                    bytes: layer.size,
                    media_type: layer.media_type.clone(),
                });
                let layers_told = told.collect();
                self.tell(Event::Layers {
                    layers: layers_told,
                })
                .await?;
                let mut fetched = stream::iter(&layers)
                    .map(|layer| async move { (layer, self.blob(layer).await) })
                    .buffer_unordered(AT_ONCE)
                    .boxed();
                while let Some((layer, outcome)) = fetched.next().await {
                    match outcome? {
                        Ok(()) => bytes += layer.size,
                        Err(trouble) => {
                            failed += 1;
                            self.failed(Some(&layer.digest), trouble).await?;
                        }
                    }
                }
            }
        }
        self.tell(Event::Ended {
            ok: failed == 0,
            bytes,
            took_ms: millis(began.elapsed()),
            failed,
        })
        .await
    }

    async fn tell(&self, event: Event) -> Result<(), Gone> {
        self.events.send(event).await.map_err(|_| Gone)
    }

    async fn failed(&self, digest: Option<&Digest>, trouble: Trouble) -> Result<(), Gone> {
        self.tell(Event::Failed {
            digest: digest.cloned(),
            error: trouble.error,
            cure: trouble.cure.to_string(),
        })
        .await
    }

    /// The configuration and the layers of the image for the platform.
    async fn layers(&self, bytes: &mut u64) -> Result<Result<Vec<Descriptor>, Trouble>, Gone> {
        let mut reference = match (&self.image.digest, &self.image.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.tag().to_string(),
            (None, None) => "latest".to_string(),
        };
        for _ in 0..DEPTH {
            let contents = match self.manifest(&reference, bytes).await? {
                Ok(contents) => contents,
                Err(trouble) => return Ok(Err(trouble)),
            };
            if contents.manifests.is_empty() {
                let mut seen = HashSet::new();
                let all = contents.config.into_iter().chain(contents.layers);
                let all: Vec<_> = all.filter(|d| seen.insert(d.digest.clone())).collect();
                if all.is_empty() || all.len() > MAX_LAYERS {
                    return Ok(Err(Trouble {
                        error: format!("the manifest lists {} blobs", all.len()),
                        cure: "look at the image: this is none that containerd could run",
                    }));
                }
                return Ok(Ok(all));
            }
            let Some(chosen) = self.platform.choose(&contents.manifests) else {
                let has = contents.manifests.iter().map(|m| m.platform());
                let has: Vec<String> = has.take(16).collect();
                return Ok(Err(Trouble {
                    error: format!(
                        "no image for {}; there are {}",
                        self.platform,
                        has.join(", ")
                    ),
                    cure: "name one of those as the platform",
                }));
            };
            self.tell(Event::Platform {
                platform: chosen.platform(),
                digest: chosen.descriptor.digest.clone(),
            })
            .await?;
            reference = chosen.descriptor.digest.to_string();
        }
        Ok(Err(Trouble {
            error: "its index lists indexes without end".to_string(),
            cure: "look at the image: this is none that containerd could run",
        }))
    }

    async fn manifest(
        &self,
        reference: &str,
        total: &mut u64,
    ) -> Result<Result<Contents, Trouble>, Gone> {
        let began = Instant::now();
        let read = async {
            let mut body = self.get("manifests", reference).await?;
            let bytes = body.whole(MAX_MANIFEST).await?;
            Ok((body, bytes))
        };
        let (body, bytes) = match read.await {
            Ok(read) => read,
            Err(refusal) => return Ok(Err(trouble(refusal))),
        };
        let digest = Digest::sha256(&bytes);
        if let Ok(expected) = reference.parse::<Digest>()
            && !expected.verifies(&bytes)
        {
            return Ok(Err(wrong(&expected, &digest.to_string())));
        }
        let Some(contents) = Contents::of(&bytes) else {
            return Ok(Err(Trouble {
                error: format!("{digest} is no manifest"),
                cure: "look at the image: this is none that containerd could run",
            }));
        };
        *total += bytes.len() as u64;
        self.tell(Event::Manifest {
            digest,
            media_type: contents.media_type.clone(),
            bytes: bytes.len() as u64,
            took_ms: millis(began.elapsed()),
            source: body.source,
        })
        .await?;
        Ok(Ok(contents))
    }

    async fn blob(&self, layer: &Descriptor) -> Result<Result<(), Trouble>, Gone> {
        let began = Instant::now();
        let mut body = match self.get("blobs", layer.digest.as_str()).await {
            Ok(body) => body,
            Err(refusal) => return Ok(Err(trouble(refusal))),
        };
        let (mut hasher, mut bytes, mut told) = (layer.digest.hasher(), 0, began);
        loop {
            match body.next().await {
                Err(refusal) => return Ok(Err(trouble(refusal))),
                Ok(None) => break,
                Ok(Some(chunk)) => {
                    bytes += chunk.len() as u64;
                    if bytes > layer.size {
                        let more = format!("more than the {} bytes that it has", layer.size);
                        return Ok(Err(wrong(&layer.digest, &more)));
                    }
                    hasher.update(&chunk);
                }
            }
            if told.elapsed() >= TELL {
                told = Instant::now();
                let digest = layer.digest.clone();
                self.tell(Event::Progress { digest, bytes }).await?;
            }
        }
        let digest = hasher.finish();
        if bytes < layer.size {
            let less = format!("{bytes} of {} bytes", layer.size);
            return Ok(Err(wrong(&layer.digest, &less)));
        }
        if digest != layer.digest {
            return Ok(Err(wrong(&layer.digest, &digest.to_string())));
        }
        self.tell(Event::Fetched {
            digest,
            bytes,
            took_ms: millis(began.elapsed()),
            source: body.source,
        })
        .await?;
        Ok(Ok(()))
    }

    async fn get(&self, kind: &str, reference: &str) -> Result<Body, Refusal> {
        let repository = &self.image.repository;
        let ns: String =
            form_urlencoded::byte_serialize(repository.registry().as_bytes()).collect();
        let path = format!("/v2/{}/{kind}/{reference}?ns={ns}", repository.path());
        client::get(&self.registry, &path).await
    }
}

fn wrong(expected: &Digest, came: &str) -> Trouble {
    Trouble {
        error: format!("what came is not {expected} but {came}"),
        cure: "a node serves a damaged blob: look at its disk. containerd would refuse it, too, and ask elsewhere",
    }
}

/// In the words of whoever has to do something about it.
fn trouble(refusal: Refusal) -> Trouble {
    let cure = match &refusal {
        Refusal::NotReached(..) => {
            "is Peili running on this node, and is this its --registry-addr? `peili registry` says where it serves"
        }
        Refusal::Broken(_) => "look at Pulls on the debug page for what happened on the way",
        Refusal::Status { status: 401, .. } => {
            "name the directory with username and password: --basic-auth-dir"
        }
        Refusal::Status { reason, .. } if reason.contains("token") => {
            "name the directory that `peili configuration --data-dir` was given: --data-dir"
        }
        Refusal::Status {
            status: 404,
            reason,
        } if reason.contains("left out") || reason.contains("mirrored registries") => {
            "it is kept out by --mirrored-registries or --registry-filters; containerd goes to the registry for it"
        }
        Refusal::Status { status: 404, .. } => {
            "no node of the cluster has it: once one has pulled it from the registry, the others get it there"
        }
        Refusal::Status { .. } => "look at this node's log",
    };
    Trouble {
        error: refusal.to_string(),
        cure,
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
