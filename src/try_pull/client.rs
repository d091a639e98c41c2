//! One GET of the mirror, on a connection of its own.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::Request;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, HOST, USER_AGENT};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::{Registry, Source};
use crate::oci::distribution::{SOURCE, TRIAL};
use crate::{basic_auth, node_token};

/// The mirror answers within 12 s, however many it asks; and a body of it has no longer gap.
const PATIENCE: Duration = Duration::from_secs(20);
/// The mirror's own errors are shorter.
const MAX_ERROR: usize = 16 << 10;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("nobody answers at {0}: {1}")]
    NotReached(String, String),
    #[error("the answer broke off: {0}")]
    Broken(String),
    #[error("{status}: {reason}")]
    Status { status: u16, reason: String },
}

/// An answer whose bytes come.
pub(super) struct Body {
    pub source: Source,
    body: Incoming,
    _connection: AbortOnDropHandle<()>,
}

pub(super) async fn get(registry: &Registry, path: &str) -> Result<Body, Refusal> {
    let answered = timeout(PATIENCE, answer(registry, path)).await;
    answered.unwrap_or_else(|_| Err(Refusal::Broken(format!("no answer within {PATIENCE:?}"))))
}

async fn answer(registry: &Registry, path: &str) -> Result<Body, Refusal> {
    let at: Vec<String> = registry.at.iter().map(SocketAddr::to_string).collect();
    let unreached = |e: std::io::Error| Refusal::NotReached(at.join(" or "), e.to_string());
    let stream = TcpStream::connect(&registry.at[..])
        .await
        .map_err(unreached)?;
    let host = stream.peer_addr().map_err(unreached)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        // Its errors reach the response and the body.
        let _ = connection.await;
    }));
    let mut request = Request::get(path)
        .header(HOST, host.to_string())
        .header(ACCEPT, "*/*")
        .header(USER_AGENT, concat!("peili/", env!("CARGO_PKG_VERSION")))
        .header(TRIAL, "true");
    if let Some(token) = registry.token.as_ref().and_then(|token| token.header()) {
        request = request.header(node_token::HEADER, token);
    }
    if let Some(secret) = &registry.basic_auth {
        request = request.header(basic_auth::HEADER, secret.header());
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|e| Refusal::Broken(e.to_string()))?;
    let response = sender.send_request(request).await.map_err(broken)?;
    let status = response.status().as_u16();
    let source = response.headers().get(SOURCE);
    let source = source
        .and_then(|source| source.to_str().ok())
        .unwrap_or_default();
    let source = source_in(source);
    if status != 200 {
        let body = Limited::new(response.into_body(), MAX_ERROR)
            .collect()
            .await;
        let body = body.map(|body| body.to_bytes()).unwrap_or_default();
        return Err(Refusal::Status {
            status,
            reason: reason_in(&body),
        });
    }
    Ok(Body {
        source,
        body: response.into_body(),
        _connection: connection,
    })
}

impl Body {
    /// The next bytes; None at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Refusal> {
        loop {
            let frame = timeout(PATIENCE, self.body.frame()).await;
            let frame =
                frame.map_err(|_| Refusal::Broken(format!("no byte within {PATIENCE:?}")))?;
            let Some(frame) = frame else {
                return Ok(None);
            };
            if let Ok(data) = frame.map_err(broken)?.into_data() {
                return Ok(Some(data));
            }
        }
    }

    pub(super) async fn whole(&mut self, limit: u64) -> Result<Bytes, Refusal> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let read = timeout(PATIENCE, Limited::new(&mut self.body, limit).collect()).await;
        match read {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(e)) if e.is::<LengthLimitError>() => Err(Refusal::Broken(format!(
                "a manifest of more than {limit} bytes"
            ))),
            Ok(Err(e)) => Err(Refusal::Broken(e.to_string())),
            Err(_) => Err(Refusal::Broken(format!("no end within {PATIENCE:?}"))),
        }
    }
}

fn broken(error: hyper::Error) -> Refusal {
    Refusal::Broken(error.to_string())
}

/// `local`, or `peer 10.0.0.7:5000`.
fn source_in(header: &str) -> Source {
    let (source, at) = header.split_once(' ').unwrap_or((header, ""));
    Source {
        source: match source {
            "" => "unknown".to_string(),
            source => source.to_string(),
        },
        at: at.parse().ok(),
    }
}

/// What the mirror's error says, its reason before its title.
fn reason_in(body: &[u8]) -> String {
    let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let first = &json["errors"][0];
    let reason = first["detail"]["reason"].as_str();
    let said = reason
        .or(first["message"].as_str())
        .unwrap_or("no reason was given");
    said.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_mirror_says_is_read() {
        let at = Some("[fd00::1]:5000".parse().unwrap());
        for (header, source, expected) in [
            ("local", "local", None),
            ("peer [fd00::1]:5000", "peer", at),
            ("peer nowhere", "peer", None),
            ("", "unknown", None),
        ] {
            let read = source_in(header);
            assert_eq!(
                (read.source.as_str(), read.at),
                (source, expected),
                "{header}"
            );
        }
        for (body, reason) in [
            (
                r#"{"errors":[{"message":"blob unknown","detail":{"reason":"no peer holds it"}}]}"#,
                "no peer holds it",
            ),
            (r#"{"errors":[{"message":"blob unknown"}]}"#, "blob unknown"),
            ("<html>", "no reason was given"),
        ] {
            assert_eq!(reason_in(body.as_bytes()), reason);
        }
    }
}
