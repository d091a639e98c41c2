//! Asks the running daemon what only it knows.

use std::net::SocketAddr;
use std::time::Duration;

use hyper::StatusCode;
use serde::Deserialize;
use tokio::time::timeout;

use super::live::{Live, PATH, Silence};
use crate::http_get::{self, Answer};

/// The daemon looks at everything itself, and asks a peer. Each has a limit of its own.
const LIMIT: Duration = Duration::from_secs(20);
/// Findings, with their cures.
const MAX_ANSWER: usize = 1 << 20;

/// What the daemon whose metrics port is reached at one of `addresses` knows, a delivery by a peer included.
pub async fn ask(addresses: &[SocketAddr]) -> Result<Live, Silence> {
    let asked = timeout(LIMIT, post(addresses)).await;
    let answer =
        asked.unwrap_or_else(|_| Err(Silence::Failed(format!("no answer within {LIMIT:?}"))))?;
    match answer.status {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => return Err(Silence::Off),
        other => return Err(Silence::Failed(format!("POST {PATH} is answered {other}"))),
    }
    #[derive(Deserialize)]
    struct Said {
        live: Live,
    }
    let said: Result<Said, _> = serde_json::from_slice(&answer.body);
    said.map(|said| said.live)
        .map_err(|e| Silence::Failed(format!("its answer cannot be read: {e}")))
}

async fn post(addresses: &[SocketAddr]) -> Result<Answer, Silence> {
    let connected = http_get::connect(addresses).await;
    let (stream, at) = connected.map_err(|e| Silence::NotRunning(e.to_string()))?;
    let host = at.to_string();
    let answer = http_get::post_json(stream, &host, PATH, "{}".into(), MAX_ANSWER);
    answer
        .await
        .map_err(|e| Silence::Failed(format!("{at}: {e}")))
}
