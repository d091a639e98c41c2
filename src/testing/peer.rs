//! A peer's registry that misbehaves on command. It speaks just enough HTTP to be wrong in every way that matters.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::oci::distribution::{ByteRange, FOLLOWING, Following, HOLDERS, Span};
use crate::routing::{Peer, PeerId};

/// What a peer does instead of answering as it should.
#[derive(Clone, Debug, Default)]
struct Behaviour {
    status: Option<u16>,
    /// Before the response's head; for ever if it is longer than any test.
    delay: Duration,
    /// Body bytes of one response after which the fault comes, counted from the beginning of that response.
    cut_after: Option<(usize, Cut)>,
    /// Other holders that a 503 names.
    holders: Vec<IpAddr>,
    /// Added to the true total in Content-Length and Content-Range.
    lie: i64,
    /// Bytes of a body in a second.
    rate: Option<usize>,
    /// Who says this is to follow others.
    turns_away: &'static [Following],
}

#[derive(Clone, Copy, Debug)]
enum Cut {
    Stall,
    End,
    Reset,
}

/// Configures a peer; see [`FakePeer::serving`].
pub struct Builder {
    content: Bytes,
    behaviour: Behaviour,
}

/// A running peer. It goes away when dropped.
pub struct FakePeer {
    address: SocketAddr,
    id: PeerId,
    asked: Arc<Mutex<Vec<Asked>>>,
    sent: Arc<Mutex<u64>>,
    _task: AbortOnDropHandle<()>,
}

/// A request that a peer has received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub line: String,
    pub range: Option<String>,
    pub is_mirrored: bool,
    pub following: Following,
}

impl FakePeer {
    /// A peer that answers every request with `content`, or the range of it.
    pub fn serving(content: impl Into<Bytes>) -> Builder {
        Builder {
            content: content.into(),
            behaviour: Behaviour::default(),
        }
    }

    /// An address at which nobody listens, and nobody else will: the port stays bound as long as the process lives.
    pub async fn gone() -> Peer {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        socket.bind(any).expect("a port");
        let address = socket.local_addr().expect("an address");
        std::mem::forget(socket);
        Peer {
            id: PeerId::new(format!("gone-{address}")),
            registry: vec![address],
            zone: None,
        }
    }

    pub fn peer(&self) -> Peer {
        Peer {
            id: self.id.clone(),
            registry: vec![self.address],
            zone: None,
        }
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no panic").clone()
    }

    /// The Range headers of all requests, in order; empty where there was none.
    pub fn ranges_asked(&self) -> Vec<String> {
        let asked = self.asked();
        asked
            .into_iter()
            .map(|asked| asked.range.unwrap_or_default())
            .collect()
    }

    /// Body bytes written so far.
    pub fn sent(&self) -> u64 {
        *self.sent.lock().expect("no panic")
    }
}

impl Builder {
    pub fn answering(mut self, status: u16) -> Self {
        self.behaviour.status = Some(status);
        self
    }

    /// Too busy: these have it, too.
    pub fn busy_and_naming(mut self, holders: &[IpAddr]) -> Self {
        self.behaviour.status = Some(503);
        self.behaviour.holders = holders.to_vec();
        self
    }

    /// As a holder does that several read from: whoever says this is to follow others.
    pub fn turning_away(mut self, who: &'static [Following]) -> Self {
        self.behaviour.turns_away = who;
        self
    }

    pub fn after(mut self, delay: Duration) -> Self {
        self.behaviour.delay = delay;
        self
    }

    pub fn silent(self) -> Self {
        self.after(Duration::from_secs(3600))
    }

    pub fn stalling_after(mut self, bytes: usize) -> Self {
        self.behaviour.cut_after = Some((bytes, Cut::Stall));
        self
    }

    /// Ends each response with a FIN after so many bytes.
    pub fn ending_after(mut self, bytes: usize) -> Self {
        self.behaviour.cut_after = Some((bytes, Cut::End));
        self
    }

    /// Resets each connection after so many bytes, some of which may not arrive.
    pub fn resetting_after(mut self, bytes: usize) -> Self {
        self.behaviour.cut_after = Some((bytes, Cut::Reset));
        self
    }

    /// Says that the content is longer by so much than it is.
    pub fn lying_about_its_length_by(mut self, difference: i64) -> Self {
        self.behaviour.lie = difference;
        self
    }

    /// Brings so many bytes in a second.
    pub fn bringing(mut self, rate: usize) -> Self {
        self.behaviour.rate = Some(rate);
        self
    }

    pub async fn spawn(self) -> FakePeer {
        self.spawn_at("127.0.0.1:0".parse().expect("an address"))
            .await
    }

    pub async fn spawn_at(self, address: SocketAddr) -> FakePeer {
        let listener = TcpListener::bind(address).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (asked, sent) = (Arc::default(), Arc::default());
        let served = Served {
            content: self.content,
            behaviour: self.behaviour,
            asked: Arc::clone(&asked),
            sent: Arc::clone(&sent),
        };
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(served.clone().connection(stream));
            }
        });
        FakePeer {
            address,
            id: PeerId::new(format!("peer-{address}")),
            asked,
            sent,
            _task: AbortOnDropHandle::new(task),
        }
    }
}

#[derive(Clone)]
struct Served {
    content: Bytes,
    behaviour: Behaviour,
    asked: Arc<Mutex<Vec<Asked>>>,
    sent: Arc<Mutex<u64>>,
}

impl Served {
    /// One request per connection is all that a mirror sends.
    async fn connection(self, mut stream: TcpStream) {
        let Some(asked) = read_head(&mut stream).await else {
            return;
        };
        let range = asked.range.as_deref().and_then(ByteRange::parse);
        let is_head = asked.line.starts_with("HEAD ");
        let is_full = self.behaviour.turns_away.contains(&asked.following);
        self.asked.lock().expect("no panic").push(asked);
        tokio::time::sleep(self.behaviour.delay).await;

        let total = self.content.len() as u64;
        let claimed = total.saturating_add_signed(self.behaviour.lie);
        let whole = Span {
            start: 0,
            end: total,
        };
        let status = self.behaviour.status.or(is_full.then_some(503));
        let (status, span, headers) = match (status, range.map(|r| r.resolve(total))) {
            (Some(status), _) => {
                let holders: Vec<_> = self
                    .behaviour
                    .holders
                    .iter()
                    .map(IpAddr::to_string)
                    .collect();
                let holders = holders.join(", ");
                (
                    status,
                    None,
                    format!("content-length: 0\r\n{HOLDERS}: {holders}\r\n"),
                )
            }
            (None, None) => (200, Some(whole), format!("content-length: {claimed}\r\n")),
            (None, Some(Ok(span))) => {
                let length = span.len().saturating_add_signed(self.behaviour.lie);
                let (start, last) = (span.start, span.start + length - 1);
                let headers = format!(
                    "content-length: {length}\r\ncontent-range: bytes {start}-{last}/{claimed}\r\n"
                );
                (206, Some(span), headers)
            }
            (None, Some(Err(_))) => (
                416,
                None,
                format!("content-length: 0\r\ncontent-range: bytes */{total}\r\n"),
            ),
        };
        let head = format!("HTTP/1.1 {status} Whatever\r\n{headers}\r\n");
        if stream.write_all(head.as_bytes()).await.is_err() || is_head {
            return;
        }
        if let Some(span) = span {
            self.body(&mut stream, span).await;
        }
    }

    async fn body(&self, stream: &mut TcpStream, span: Span) {
        let body = self.content.slice(span.start as usize..span.end as usize);
        let (whole, cut) = match self.behaviour.cut_after {
            Some((bytes, cut)) if bytes < body.len() => (body.slice(..bytes), Some(cut)),
            _ => (body, None),
        };
        for chunk in whole.chunks(16 << 10) {
            if let Some(rate) = self.behaviour.rate {
                tokio::time::sleep(Duration::from_secs_f64(chunk.len() as f64 / rate as f64)).await;
            }
            if stream.write_all(chunk).await.is_err() {
                return;
            }
            *self.sent.lock().expect("no panic") += chunk.len() as u64;
        }
        match cut {
            Some(Cut::Stall) => std::future::pending().await,
            Some(Cut::Reset) => {
                // The kernel discards what is not sent yet and resets.
                let _ = stream.set_zero_linger();
            }
            Some(Cut::End) | None => {
                let _ = stream.shutdown().await;
            }
        }
    }
}

async fn read_head(stream: &mut TcpStream) -> Option<Asked> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).await.ok()? == 0 || head.len() > 64 << 10 {
            return None;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let header = |name: &str| {
        head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found
                .eq_ignore_ascii_case(name)
                .then(|| value.trim().to_string())
        })
    };
    Some(Asked {
        line: head.lines().next().unwrap_or_default().to_string(),
        range: header("range"),
        is_mirrored: header(crate::oci::distribution::MIRRORED).is_some(),
        following: Following::parse(header(FOLLOWING).as_deref()),
    })
}
