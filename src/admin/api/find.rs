//! `POST /debug/api/find`: who holds something, asked now.

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
use crate::oci::{Digest, ImageName, Key};

/// A lookup ends by itself within 250 ms; this is for a router that has too much to do.
const PATIENCE: Duration = Duration::from_secs(3);

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
}

pub(super) async fn answer(State(debug): State<Debug>, body: Bytes) -> Response {
    let key = match asked::<Asked>(&body).map(|asked| key_of(asked.reference.trim())) {
        Ok(Ok(key)) => key,
        Ok(Err(why)) => return refusal(StatusCode::BAD_REQUEST, why),
        Err(refusal) => return *refusal,
    };
    let _permit = match a_trial(&debug) {
        Ok(permit) => permit,
        Err(refusal) => return *refusal,
    };
    let here = is_here(&*debug.store, &key).await;
    let began = Instant::now();
    let mut peers = Vec::new();
    let mut lookup = debug.router.lookup(key.clone());
    while let Ok(Some(peer)) = timeout_at(began + PATIENCE, lookup.next()).await {
        peers.push(Holder {
            peer: peer.id.to_string(),
            addresses: peer.registry,
            zone: peer.zone.as_deref().map(str::to_string),
            after_ms: millis(began.elapsed()),
        });
    }
    json(&Found {
        key: key.to_string(),
        here,
        took_ms: millis(began.elapsed()),
        peers,
    })
}

fn key_of(reference: &str) -> Result<Key, String> {
    if let Ok(digest) = reference.parse::<Digest>() {
        return Ok(Key::Content(digest));
    }
    let cure = "write registry/repository:tag, such as docker.io/library/nginx:1.27, or a digest";
    let name: ImageName = reference.parse().map_err(|e| format!("{e}: {cure}"))?;
    match (name.digest, name.tag) {
        (Some(digest), _) => Ok(Key::Content(digest)),
        (None, Some(tag)) => Ok(Key::Tag(tag)),
        (None, None) => Err(format!(
            "{reference:?} has neither a tag nor a digest: {cure}"
        )),
    }
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
    fn a_tag_a_digest_or_both_are_looked_up() {
        let digest = Digest::sha256(b"x");
        for (reference, key) in [
            (digest.to_string(), Some(digest.to_string())),
            (format!("r.test/a@{digest}"), Some(digest.to_string())),
            (format!("r.test/a:v1@{digest}"), Some(digest.to_string())),
            (
                "docker.io/nginx:1".into(),
                Some("docker.io/library/nginx:1".into()),
            ),
            ("r.test/a".into(), None),
            ("nginx:1".into(), None),
            (String::new(), None),
        ] {
            let read = key_of(&reference);
            assert_eq!(read.as_ref().ok().map(Key::to_string), key, "{reference}");
            if let Err(why) = read {
                assert!(why.contains("docker.io/library/nginx"), "{why}");
            }
        }
    }
}
