//! Asks the running daemon what only it knows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hyper::StatusCode;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::live::{Live, PATH, Silence};
use crate::http_get::{self, Answer};

/// The daemon looks at everything itself, and asks a peer. Each has a limit of its own.
const LIMIT: Duration = Duration::from_secs(20);
const CONNECT: Duration = Duration::from_secs(2);
/// Findings, with their cures.
const MAX_ANSWER: usize = 1 << 20;

/// What the daemon whose metrics port is at one of `candidates` knows, a delivery by a peer included.
pub async fn ask(candidates: &[SocketAddr]) -> Result<Live, Silence> {
    let asked = timeout(LIMIT, post(candidates)).await;
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

async fn post(candidates: &[SocketAddr]) -> Result<Answer, Silence> {
    let mut refused = String::from("no address");
    for at in candidates.iter().copied().map(here) {
        let stream = match timeout(CONNECT, TcpStream::connect(at)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(e)) => {
                refused = format!("{at}: {e}");
                continue;
            }
            Err(_) => {
                refused = format!("{at}: no connection within {CONNECT:?}");
                continue;
            }
        };
        let host = at.to_string();
        let answer = http_get::post_json(stream, &host, PATH, "{}".into(), MAX_ANSWER);
        return answer
            .await
            .map_err(|e| Silence::Failed(format!("{at}: {e}")));
    }
    Err(Silence::NotRunning(refused))
}

/// Where one asks who listens at every address.
fn here(at: SocketAddr) -> SocketAddr {
    let ip: IpAddr = match at.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, at.port())
}
