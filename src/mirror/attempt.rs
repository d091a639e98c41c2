//! One request to one peer.
//!
//! A connection of its own, raced over the peer's addresses: what is dropped is closed, nothing is shared that could
//! be stale, and the connection's end means this request's end. A local network's handshake is lost in the noise
//! beside a layer. Redirects are not followed and no address is dialled but the peer's registry.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{
    ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, HOST, HeaderName, RANGE, TRANSFER_ENCODING, USER_AGENT,
};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use super::Papers;
use super::head::Headed;
use crate::basic_auth;
use crate::membership::{self, Admitted};
use crate::oci::Digest;
use crate::oci::distribution::{
    ByteRange, DOCKER_CONTENT_DIGEST, FLIGHT, FOLLOWING, Flight, Following, GROWING, HOLDERS,
    MAX_HOLDERS, MIRRORED, Span,
};
use crate::routing::Peer;
use crate::telemetry::Seldom;

/// A chosen peer that brings no byte for so long is given up. Another is asked beside it before that.
pub const GIVE_UP: Duration = Duration::from_secs(2);
/// Between the addresses of one peer: a working one answers sooner within a site, and a dead one then costs only this
/// much (RFC 8305 recommends 250 ms for the internet at large).
const ADDRESS_STAGGER: Duration = Duration::from_millis(50);
/// Bytes asked of the kernel at once while relaying: a quarter less CPU than hyper's adaptive reads.
const READ: usize = 1 << 20;
/// Before an answer has begun, in bytes: hyper takes up to [`READ`] for its head, and reads as much on while that is looked at.
const MAX_BEFORE: u64 = 4 * READ as u64;

/// What is asked of every peer in turn.
#[derive(Clone, Debug)]
pub struct Ask {
    pub method: Method,
    /// Path and query, as containerd sent them: `/v2/…?ns=…`.
    pub path_and_query: String,
    pub range: Option<ByteRange>,
    /// How long the peer may wait for the first byte of what it is still getting. None: it must have it.
    pub growing: Option<Duration>,
    /// Whoever has it and gives it to several already may turn us away for that: we would find one who is getting it.
    pub following: Following,
}

/// Why a peer did not deliver. Each variant is treated differently by somebody.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Nobody listens there: it has gone.
    #[error("refused the connection")]
    Refused,
    /// Alive, and does not have it (any more).
    #[error("does not have it")]
    Absent,
    /// It is getting it, and has not got so far in the time that it was given.
    #[error("is still waiting for it")]
    Waiting,
    /// It has it, and gives to so many already that it names others.
    #[error("is busy")]
    Busy { holders: Vec<IpAddr> },
    /// It has another user name and password than this node, or another idea of who must send them.
    #[error("does not accept this node's user name and password")]
    Unauthorized,
    /// It does not take this node for a member of its cluster, and says why.
    #[error("takes this node for a stranger: {0}")]
    Stranger(String),
    /// It has answered a tag, and has not proven that it is a member.
    #[error("answered a tag without a member's proof")]
    Unvouched,
    /// The range lies beyond its end: the answer to give if nobody knows better.
    #[error("has no such range in {total:?} bytes")]
    NotSatisfiable { total: Option<u64> },
    #[error("brought no byte within {0:?}")]
    Silent(Duration),
    #[error("answered {0}")]
    Status(StatusCode),
    #[error("sent what was not asked for: {0}")]
    Wrong(String),
    #[error("connection: {0}")]
    Connection(String),
}

impl PeerError {
    /// Whether it speaks against the peer, rather than only against asking it for this.
    pub fn is_failure(&self) -> bool {
        !matches!(
            self,
            Self::Absent
                | Self::Waiting
                | Self::Busy { .. }
                | Self::Unauthorized
                | Self::Stranger(_)
                | Self::NotSatisfiable { .. }
        )
    }

    /// For the metric.
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::Busy { .. } => "busy",
            Self::Absent | Self::Waiting | Self::NotSatisfiable { .. } => "absent",
            Self::Refused => "refused",
            Self::Unauthorized => "unauthorized",
            Self::Stranger(_) => "stranger",
            _ => "failed",
        }
    }
}

/// A peer's answer with its first bytes in hand.
#[derive(Debug)]
pub struct Answer {
    /// Which bytes it brings, of how many.
    pub span: Span,
    pub total: u64,
    /// The registry's media type, where one was sent.
    pub content_type: Option<String>,
    /// What a tag stands for, as a member says.
    pub vouched: Option<Digest>,
    first: Option<Bytes>,
    body: Incoming,
    _connection: AbortOnDropHandle<()>,
}

impl Answer {
    /// The next bytes; None when the peer has no more, whether that is the end or not.
    pub async fn next(&mut self) -> Result<Option<Bytes>, PeerError> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        next_data(&mut self.body).await
    }

    /// What was read comes again, as the first bytes.
    pub fn put_back(&mut self, bytes: Bytes) {
        self.first = Some(bytes).filter(|bytes| !bytes.is_empty());
    }
}

/// Asks one peer, reachable at any of its addresses, and shows the cluster's user name and password and a proof of membership
/// where there are any. Bounded by [`GIVE_UP`].
pub async fn attempt(peer: &Peer, ask: &Ask, papers: &Papers) -> Result<Answer, PeerError> {
    timeout(GIVE_UP, attempt_unbounded(peer, ask, papers))
        .await
        .unwrap_or(Err(PeerError::Silent(GIVE_UP)))
}

async fn attempt_unbounded(peer: &Peer, ask: &Ask, papers: &Papers) -> Result<Answer, PeerError> {
    let (stream, address) = connect(&peer.registry).await?;
    let _ = stream.set_nodelay(true);
    let (stream, head) = Headed::new(stream, MAX_BEFORE);
    let broken = |e: hyper::Error| PeerError::Connection(Causes(&e).to_string());
    let (mut sender, connection) = http1::Builder::new()
        .read_buf_exact_size(Some(READ))
        .handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        // Its errors reach the response and the body.
        let _ = connection.await;
    }));

    let mut request = Request::builder()
        .method(ask.method.clone())
        .uri(&ask.path_and_query)
        .header(HOST, address.to_string())
        .header(ACCEPT, "*/*")
        .header(USER_AGENT, concat!("peili/", env!("CARGO_PKG_VERSION")))
        .header(MIRRORED, "true");
    if let Some(secret) = &papers.basic_auth {
        request = request.header(basic_auth::HEADER, secret.header());
    }
    let range = ask.range.map(|range| range.to_string());
    let proven = papers.members.as_ref().map(|members| {
        let asked = membership::Request {
            to: peer.id.as_str(),
            method: ask.method.as_str(),
            path_and_query: &ask.path_and_query,
            range: range.as_deref().unwrap_or_default(),
        };
        members.request(&asked, SystemTime::now())
    });
    if let Some((header, _)) = &proven {
        request = request.header(membership::HEADER, header);
    }
    if let Some(range) = &range {
        request = request.header(RANGE, range);
    }
    if let Some(growing) = ask.growing {
        request = request.header(GROWING, growing.as_millis().to_string());
    }
    if let Some(following) = ask.following.as_str() {
        request = request.header(FOLLOWING, following);
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|e| PeerError::Wrong(e.to_string()))?;
    let response = sender.send_request(request).await.map_err(broken)?;
    head.is_over();

    let (span, total) = described(&response, ask)?;
    let content_type = text(&response, &hyper::header::CONTENT_TYPE).map(str::to_string);
    let vouched = proven.and_then(|(_, asked)| vouched(&response, ask, &asked, papers));
    let mut body = response.into_body();
    let first = if ask.method == Method::HEAD || span.is_empty() {
        None
    } else {
        match next_data(&mut body).await? {
            Some(first) => Some(first),
            None => return Err(PeerError::Wrong("headers without a byte".into())),
        }
    };
    Ok(Answer {
        span,
        total,
        content_type,
        vouched,
        first,
        body,
        _connection: connection,
    })
}

/// What a member says that a tag stands for.
fn vouched(
    response: &Response<Incoming>,
    ask: &Ask,
    asked: &Admitted,
    papers: &Papers,
) -> Option<Digest> {
    let proof = text(response, &HeaderName::from_static(membership::TAG_PROOF))?;
    let digest = text(response, &HeaderName::from_static(DOCKER_CONTENT_DIGEST))?;
    let members = papers.members.as_ref()?;
    members
        .is_vouched(proof, asked, &ask.path_and_query, digest)
        .then(|| digest.parse().ok())?
}

/// Which bytes the response brings, if it is one that we asked for.
fn described(response: &Response<Incoming>, ask: &Ask) -> Result<(Span, u64), PeerError> {
    let length = || {
        // Chunks go on for as long as they like, whatever length stands beside them (RFC 9112, 6.3).
        if response.headers().contains_key(TRANSFER_ENCODING) {
            return Err(PeerError::Wrong("a body of chunks".into()));
        }
        text(response, &CONTENT_LENGTH)
            .and_then(|length| length.parse::<u64>().ok())
            .ok_or_else(|| PeerError::Wrong("no Content-Length".into()))
    };
    match (response.status(), ask.range) {
        (StatusCode::OK, None) => {
            let total = length()?;
            Ok((
                Span {
                    start: 0,
                    end: total,
                },
                total,
            ))
        }
        (StatusCode::PARTIAL_CONTENT, Some(range)) => {
            let header = text(response, &CONTENT_RANGE).unwrap_or_default();
            let (span, total) = Span::parse_content_range(header)
                .ok_or_else(|| PeerError::Wrong(format!("Content-Range {header:?}")))?;
            if range.resolve(total) != Ok(span) || length()? != span.len() {
                return Err(PeerError::Wrong(format!(
                    "Content-Range {header:?} for {range}"
                )));
            }
            Ok((span, total))
        }
        (StatusCode::RANGE_NOT_SATISFIABLE, Some(_)) => Err(PeerError::NotSatisfiable {
            total: text(response, &CONTENT_RANGE)
                .and_then(|header| header.strip_prefix("bytes */"))
                .and_then(|total| total.parse().ok()),
        }),
        (StatusCode::NOT_FOUND, _) if response.headers().contains_key(membership::REFUSED) => {
            static SAID: Seldom = Seldom::new();
            let why = text(response, &HeaderName::from_static(membership::REFUSED));
            let why: String = why.unwrap_or_default().chars().take(300).collect();
            if SAID.is_due() {
                warn!(
                    why,
                    "a peer takes this node for a stranger. What such peers hold is fetched from the registry"
                );
            }
            Err(PeerError::Stranger(why))
        }
        (StatusCode::NOT_FOUND, _) => {
            let flight = text(response, &HeaderName::from_static(FLIGHT)).and_then(Flight::parse);
            Err(match flight {
                Some(Flight::Waiting) => PeerError::Waiting,
                Some(Flight::Absent) | None => PeerError::Absent,
            })
        }
        (StatusCode::SERVICE_UNAVAILABLE, _) => Err(PeerError::Busy {
            holders: text(response, &HeaderName::from_static(HOLDERS))
                .unwrap_or_default()
                .split(',')
                .filter_map(|ip| ip.trim().parse().ok())
                .take(MAX_HOLDERS)
                .collect(),
        }),
        (StatusCode::UNAUTHORIZED, _) => {
            static SAID: Seldom = Seldom::new();
            if SAID.is_due() {
                warn!(
                    "a peer has refused this node's user name and password: their Secrets are not the same. What such peers hold is fetched from the registry"
                );
            }
            Err(PeerError::Unauthorized)
        }
        (StatusCode::OK, Some(_)) => Err(PeerError::Wrong("the whole body for a range".into())),
        (status, _) => Err(PeerError::Status(status)),
    }
}

fn text<'a>(response: &'a Response<Incoming>, name: &HeaderName) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

async fn next_data(body: &mut Incoming) -> Result<Option<Bytes>, PeerError> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| PeerError::Connection(Causes(&e).to_string()))?;
        match frame.into_data() {
            Ok(data) if !data.is_empty() => return Ok(Some(data)),
            _ => {}
        }
    }
    Ok(None)
}

/// The first of the addresses that accepts. Refused only if every one of them refused.
async fn connect(addresses: &[SocketAddr]) -> Result<(TcpStream, SocketAddr), PeerError> {
    let mut attempts: FuturesUnordered<_> = addresses
        .iter()
        .zip(0u32..)
        .map(|(address, place)| async move {
            sleep(ADDRESS_STAGGER * place).await;
            (*address, TcpStream::connect(address).await)
        })
        .collect();
    let mut other = None;
    while let Some((address, connected)) = attempts.next().await {
        match connected {
            Ok(stream) => return Ok((stream, address)),
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(e) => other = Some(PeerError::Connection(format!("{address}: {e}"))),
        }
    }
    Err(other.unwrap_or(PeerError::Refused))
}

/// hyper's errors name their cause only as their source.
struct Causes<'a>(&'a hyper::Error);

impl std::fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = std::error::Error::source(self.0);
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::{TcpListener, TcpSocket};

    /// Bound, so that nobody else gets the port, and not listening.
    fn deaf() -> (TcpSocket, SocketAddr) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    #[tokio::test]
    async fn one_working_address_of_a_peer_is_enough() {
        let (_socket, dead) = deaf();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let live = listener.local_addr().unwrap();
        for addresses in [[dead, live], [live, dead]] {
            let (_, address) = connect(&addresses).await.unwrap();
            assert_eq!(address, live);
        }
    }

    #[tokio::test]
    async fn a_peer_has_refused_when_every_address_has() {
        let (_one, first) = deaf();
        let (_two, second) = deaf();

        let refused = connect(&[first, second]).await.unwrap_err();

        assert!(matches!(refused, PeerError::Refused), "{refused}");
    }
}
