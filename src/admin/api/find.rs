//! `POST /debug/api/find`: who holds something, asked now; and whether they deliver it.
//!
//! What the cluster was told cannot be taken back: who held something a quarter of an hour ago is still found. So each
//! holder is asked, too (HEAD).

use std::net::SocketAddr;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use futures::StreamExt as _;
use serde::{Deserialize, Serialize};
use tokio::time::{Duration, Instant, timeout_at};

use super::super::Debug;
use super::{a_trial, asked, json, refusal};
use crate::content::ContentStore;
use crate::mirror::{self, Papers, Probe};
use crate::oci::{Digest, ImageName, Key, Repository};
use crate::routing::Peer;

/// A lookup ends by itself within 250 ms; this is for a router that has too much to do.
const PATIENCE: Duration = Duration::from_secs(3);
/// Holders that are asked, side by side, each for two seconds at the most. More than a pull would ask.
const MAX_ASKED: usize = 20;

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// `registry/repository:tag`, `registry/repository@digest` or a digest.
    pub reference: String,
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Found {
    /// What was looked up.
    pub key: String,
    /// Whether this node holds it itself.
    pub here: bool,
    /// Until the lookup had ended.
    pub took_ms: f64,
    /// The first that was heard of first.
    pub peers: Vec<Holder>,
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Holder {
    pub peer: String,
    pub addresses: Vec<SocketAddr>,
    pub zone: Option<String>,
    /// When it was heard of, from the beginning of the lookup.
    pub after_ms: f64,
    /// What it said when it was asked; None: the first twenty are asked, and it is none of them.
    pub asked: Option<Said>,
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Said {
    pub delivers: bool,
    /// Until it had answered, or was given up.
    pub took_ms: f64,
    /// Why it does not deliver, in words.
    pub why: Option<String>,
}

pub(super) async fn answer(State(debug): State<Debug>, body: Bytes) -> Response {
    let wanted = match asked::<Asked>(&body).map(|asked| wanted(asked.reference.trim())) {
        Ok(Ok(wanted)) => wanted,
        Ok(Err(why)) => return refusal(StatusCode::BAD_REQUEST, why),
        Err(refusal) => return *refusal,
    };
    let _permit = match a_trial(&debug) {
        Ok(permit) => permit,
        Err(refusal) => return *refusal,
    };
    let here = is_here(&*debug.store, &wanted.key).await;
    let began = Instant::now();
    let mut heard = Vec::new();
    let mut lookup = debug.router.lookup(wanted.key.clone());
    while let Ok(Some(peer)) = timeout_at(began + PATIENCE, lookup.next()).await {
        heard.push((peer, millis(began.elapsed())));
    }
    let took_ms = millis(began.elapsed());
    let all = heard.into_iter().enumerate().map(async |(place, heard)| {
        let (peer, after_ms) = heard;
        Holder {
            asked: match place < MAX_ASKED {
                true => Some(wanted.ask(&peer, debug.mirror.papers()).await),
                false => None,
            },
            peer: peer.id.to_string(),
            addresses: peer.registry,
            zone: peer.zone.as_deref().map(str::to_string),
            after_ms,
        }
    });
    json(&Found {
        key: wanted.key.to_string(),
        here,
        took_ms,
        peers: futures::future::join_all(all).await,
    })
}

#[derive(Debug)]
struct Wanted {
    key: Key,
    /// Of a digest that came without one, none.
    repository: Option<Repository>,
}

impl Wanted {
    /// Whether `peer` would deliver it.
    async fn ask(&self, peer: &Peer, papers: &Papers) -> Said {
        let began = Instant::now();
        let probe = match self.key {
            Key::Content(_) => Probe::Head,
            Key::Tag(_) => Probe::Tag,
        };
        let answer = mirror::probe(peer, probe, self.path(), papers).await;
        Said {
            delivers: answer.is_ok(),
            took_ms: millis(began.elapsed()),
            why: answer.err().map(|why| match self.repository {
                Some(_) => why.to_string(),
                // Whoever leaves anything out must know whose it is.
                None => format!("{why} (by its digest alone: an image's name before it may help)"),
            }),
        }
    }

    /// Path and query, as a peer is asked.
    fn path(&self) -> String {
        let (kind, reference) = match &self.key {
            Key::Content(digest) => ("blobs", digest.as_str()),
            Key::Tag(tag) => ("manifests", tag.tag()),
        };
        match &self.repository {
            Some(repository) => {
                let ns = repository.registry().as_bytes();
                let ns: String = form_urlencoded::byte_serialize(ns).collect();
                let path = repository.path();
                format!("/v2/{path}/{kind}/{reference}?ns={ns}")
            }
            // Nobody looks at the name where nothing is left out.
            None => format!("/v2/unknown/{kind}/{reference}"),
        }
    }
}

fn wanted(reference: &str) -> Result<Wanted, String> {
    if let Ok(digest) = reference.parse::<Digest>() {
        return Ok(Wanted {
            key: Key::Content(digest),
            repository: None,
        });
    }
    let cure = "write registry/repository:tag, such as docker.io/library/nginx:1.27, or a digest";
    let name: ImageName = reference.parse().map_err(|e| format!("{e}: {cure}"))?;
    let key = match (name.digest, name.tag) {
        (Some(digest), _) => Key::Content(digest),
        (None, Some(tag)) => Key::Tag(tag),
        (None, None) => {
            let error = format!("{reference:?} has neither a tag nor a digest: {cure}");
            return Err(error);
        }
    };
    Ok(Wanted {
        key,
        repository: Some(name.repository),
    })
}

async fn is_here(store: &dyn ContentStore, key: &Key) -> bool {
    /// A look into the store takes milliseconds.
    const PATIENCE: Duration = Duration::from_millis(500);
    let look = async {
        match key {
            Key::Content(digest) => matches!(store.open(digest).await, Ok(Some(_))),
            Key::Tag(tag) => matches!(store.resolve(tag).await, Ok(Some(_))),
        }
    };
    tokio::time::timeout(PATIENCE, look).await.unwrap_or(false)
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_a_digest_or_both_are_looked_up_and_asked_for() {
        let digest = Digest::sha256(b"x");
        let blob = |name: &str, ns: &str| format!("/v2/{name}/blobs/{digest}{ns}");
        for (reference, key, path) in [
            (digest.to_string(), digest.to_string(), blob("unknown", "")),
            (
                format!("r.test:5000/a@{digest}"),
                digest.to_string(),
                blob("a", "?ns=r.test%3A5000"),
            ),
            (
                format!("r.test/a:v1@{digest}"),
                digest.to_string(),
                blob("a", "?ns=r.test"),
            ),
            (
                "docker.io/nginx:1".into(),
                "docker.io/library/nginx:1".into(),
                "/v2/library/nginx/manifests/1?ns=docker.io".into(),
            ),
        ] {
            let wanted = wanted(&reference).unwrap();
            assert_eq!(wanted.key.to_string(), key, "{reference}");
            assert_eq!(wanted.path(), path, "{reference}");
        }
        for reference in ["r.test/a", "nginx:1", ""] {
            let why = wanted(reference).unwrap_err();
            assert!(why.contains("docker.io/library/nginx"), "{why}");
        }
    }

    #[tokio::test]
    async fn a_holder_says_whether_it_delivers_and_who_does_not_says_why() {
        use crate::testing::peer::FakePeer;
        let layer = b"layer".repeat(1000);
        let digest = Digest::sha256(&layer);
        let named = wanted(&format!("r.test/a@{digest}")).unwrap();
        let good = FakePeer::serving(layer.clone()).spawn().await;
        let lost = FakePeer::serving(layer.clone())
            .answering(404)
            .spawn()
            .await;
        let ill = FakePeer::serving(layer).answering(500).spawn().await;

        for (peer, why) in [
            (good.peer(), None),
            (lost.peer(), Some("does not have it")),
            (ill.peer(), Some("answered 500")),
            (FakePeer::gone().await, Some("refused the connection")),
        ] {
            let said = named.ask(&peer, &Papers::default()).await;
            assert_eq!(said.delivers, why.is_none(), "{said:?}");
            let told = said.why.unwrap_or_default();
            assert!(told.starts_with(why.unwrap_or_default()), "{told}");
            assert!(!told.contains("by its digest alone"), "{told}");
            assert!(said.took_ms > 0.0);
        }
        let asked = &good.asked()[0];
        assert!(asked.is_mirrored, "{asked:?}");
        assert!(asked.line.starts_with("HEAD /v2/a/blobs/"), "{asked:?}");
        let unnamed = wanted(digest.as_str()).unwrap();
        let said = unnamed.ask(&lost.peer(), &Papers::default()).await;
        assert!(said.why.unwrap().contains("by its digest alone"));
    }
}
