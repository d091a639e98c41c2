//! What a containerd 1.x asks its mirror for, and what comes of it.

use std::io;

use bytes::Bytes;
use futures::TryStreamExt as _;

use crate::mirror::flight::Puller;
use crate::mirror::{Fetched, Wanted};
use crate::oci::Key;
use crate::recent::Journey;
use crate::routing::rendezvous::Generation;

/// Of `registry.test/app`, at `/v2/app/{path}`.
pub fn wanted(key: Key, path: &str) -> Wanted {
    Wanted {
        key,
        path_and_query: format!("/v2/app/{path}?ns=registry.test"),
        puller: Puller {
            image: "registry.test/app".to_string(),
            generation: Generation::One,
            may_ask_again: false,
            is_trial: false,
        },
        journey: Journey::default(),
    }
}

/// The whole body.
pub async fn read(fetched: Fetched) -> io::Result<Vec<u8>> {
    let chunks: Vec<Bytes> = fetched.body.try_collect().await?;
    Ok(chunks.concat())
}
