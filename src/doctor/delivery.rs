//! Whether what is advertised is given: the one check that costs traffic.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use rand::seq::IndexedRandom as _;
use tokio::time::{Instant, timeout};

use super::live::Delivery;
use crate::content::{Image, Snapshot};
use crate::mirror::{self, Papers, PeerError};
use crate::oci::Key;
use crate::oci::filter::Filter;
use crate::routing::{Peer, Router};

/// Images whose manifests are looked up: those that only this node has are passed over.
const IMAGES: usize = 16;
/// A lookup ends by itself; this bounds one that meets silent peers.
const LOOKUP: Duration = Duration::from_secs(2);
/// One that delivers is enough.
const PEERS: usize = 3;

/// Has another node that says that it holds what is here give its first bytes.
pub async fn deliver(
    router: Arc<dyn Router>,
    snapshot: &Snapshot,
    filter: &Filter,
    papers: &Papers,
) -> Delivery {
    let shared = |image: &&Image| filter.content(&image.repository, &image.manifest).is_ok();
    let all: Vec<&Image> = snapshot.images.iter().filter(shared).collect();
    let some: Vec<&Image> = all.sample(&mut rand::rng(), IMAGES).copied().collect();
    if some.is_empty() {
        return Delivery::NothingHere;
    }
    let looked = some.iter().map(|image| {
        let found = router.lookup(Key::Content(image.manifest.clone()));
        async move {
            let found = timeout(LOOKUP, found.take(PEERS).collect::<Vec<Peer>>()).await;
            (*image, found.unwrap_or_default())
        }
    });
    let looked = futures::future::join_all(looked).await;
    let (mut failed, mut outdated) = (None, None);
    for (image, peers) in looked {
        for peer in peers {
            let digest = image.manifest.to_string();
            let begun = Instant::now();
            let (path, ns) = (image.repository.path(), image.repository.registry());
            let ns: String = form_urlencoded::byte_serialize(ns.as_bytes()).collect();
            let path = format!("/v2/{path}/manifests/{digest}?ns={ns}");
            let addresses = peer.registry.iter().map(ToString::to_string);
            let name = addresses.collect::<Vec<_>>().join(", ");
            match mirror::probe(&peer, mirror::Probe::Bytes, path, papers).await {
                Ok(()) => {
                    return Delivery::Delivered {
                        digest,
                        peer: name,
                        ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
                    };
                }
                // Whoever has removed an image is told of until his record runs out.
                Err(PeerError::Absent) => {
                    outdated = Some(Delivery::Outdated { digest, peer: name });
                }
                Err(why) => {
                    failed = Some(Delivery::Failed {
                        digest,
                        peer: name,
                        why: why.to_string(),
                    });
                }
            }
        }
        // Who fails thrice for one image is not asked for all others.
        if failed.is_some() {
            break;
        }
    }
    failed
        .or(outdated)
        .unwrap_or(Delivery::NothingShared { asked: some.len() })
}
