//! One small request over a connection that is there already. The caller bounds its time; its size is bounded here. And how
//! to get such a connection to a daemon on the same machine.

use std::error::Error as _;
use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST, LOCATION, USER_AGENT};
use hyper::http::request;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// The same machine accepts or refuses in microseconds; an address behind a firewall that drops packets does neither.
const CONNECT: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
    /// Where else to ask, as it was said. Nobody is followed there.
    pub location: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Http(String),
    #[error("its answer is longer than {0} bytes")]
    TooLong(usize),
}

impl From<hyper::Error> for Error {
    /// hyper's errors name their cause only as their source.
    fn from(e: hyper::Error) -> Self {
        let mut text = e.to_string();
        let mut source = e.source();
        while let Some(cause) = source {
            let _ = write!(text, ": {cause}");
            source = cause.source();
        }
        Self::Http(text)
    }
}

/// Where whoever listens at `listening` is reached from the same machine.
pub fn from_here(listening: SocketAddr) -> Vec<SocketAddr> {
    let ips: Vec<IpAddr> = match listening.ip() {
        ip if !ip.is_unspecified() => vec![ip],
        // On Linux who listens at [::] takes IPv4, too, and who is not asked there loses nothing but a refusal.
        _ => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
    };
    let port = listening.port();
    ips.into_iter()
        .map(|ip| SocketAddr::new(ip, port))
        .collect()
}

/// Connects to the first of these that accepts, and says which. The error names the last that did not.
pub async fn connect(addresses: &[SocketAddr]) -> io::Result<(TcpStream, SocketAddr)> {
    let mut refused = io::Error::other("no address");
    for at in addresses {
        match timeout(CONNECT, TcpStream::connect(at)).await {
            Ok(Ok(stream)) => return Ok((stream, *at)),
            Ok(Err(e)) => refused = io::Error::new(e.kind(), format!("{at}: {e}")),
            Err(_) => {
                let silent = format!("{at}: no connection within {CONNECT:?}");
                refused = io::Error::new(io::ErrorKind::TimedOut, silent);
            }
        }
    }
    Err(refused)
}

/// Asks for `path` with `host` as the Host header; `limit` bounds the body, in bytes.
pub async fn get(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    host: &str,
    path: &str,
    limit: usize,
) -> Result<Answer, Error> {
    send(stream, Request::get(path), host, Bytes::new(), limit).await
}

/// The same with JSON, as a POST.
pub async fn post_json(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    host: &str,
    path: &str,
    json: String,
    limit: usize,
) -> Result<Answer, Error> {
    let request = Request::post(path).header(CONTENT_TYPE, "application/json");
    send(stream, request, host, json.into(), limit).await
}

/// The same with another method, more headers, or a body.
pub async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: request::Builder,
    host: &str,
    body: Bytes,
    limit: usize,
) -> Result<Answer, Error> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with this request, whoever gives it up.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let request = request
        .header(HOST, host)
        .header(ACCEPT, "*/*")
        .header(USER_AGENT, concat!("peili/", env!("CARGO_PKG_VERSION")))
        .body(Full::new(body))
        .map_err(|e| Error::Http(e.to_string()))?;
    let response = match sender.send_request(request).await {
        Ok(response) => response,
        Err(e) => {
            // What has ended the connection says more than that it has ended: a certificate that was missed, say.
            drop(sender);
            return Err(match driver.join_next().await {
                Some(Ok(Err(cause))) => cause.into(),
                _ => e.into(),
            });
        }
    };
    let (head, body) = response.into_parts();
    let body = Limited::new(body, limit).collect().await;
    let body = body.map_err(|e| match e.downcast::<hyper::Error>() {
        Ok(e) => Error::from(*e),
        Err(e) if e.is::<LengthLimitError>() => Error::TooLong(limit),
        Err(e) => Error::Http(e.to_string()),
    })?;
    let location = head.headers.get(LOCATION);
    Ok(Answer {
        status: head.status,
        body: body.to_bytes(),
        location: location.and_then(|l| Some(l.to_str().ok()?.to_string())),
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[test]
    fn who_listens_everywhere_is_asked_on_loopback() {
        for (listening, asked) in [
            ("0.0.0.0:1", &["127.0.0.1:1", "[::1]:1"][..]),
            ("[::]:1", &["127.0.0.1:1", "[::1]:1"]),
            ("192.0.2.7:1", &["192.0.2.7:1"]),
            ("[2001:db8::7]:1", &["[2001:db8::7]:1"]),
        ] {
            let found = from_here(listening.parse().unwrap());
            let found: Vec<String> = found.iter().map(ToString::to_string).collect();
            assert_eq!(found, asked, "{listening}");
        }
    }

    #[tokio::test]
    async fn the_next_address_is_tried_and_the_last_is_named() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let live = listener.local_addr().unwrap();
        // Bound, so that nobody else gets the port, and not listening.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let dead = socket.local_addr().unwrap();

        let (_, at) = connect(&[dead, live]).await.unwrap();
        let refused = connect(&[dead]).await.unwrap_err();

        assert_eq!(at, live);
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert!(refused.to_string().contains(&dead.to_string()), "{refused}");
    }

    async fn answered(text: &'static str) -> Result<Answer, Error> {
        let (ours, mut theirs) = duplex(1 << 16);
        tokio::spawn(async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(theirs.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            assert!(
                head.starts_with("GET /id?x=1 HTTP/1.1\r\nhost: peers.test\r\n"),
                "{head}"
            );
            let _ = theirs.write_all(text.as_bytes()).await;
        });
        get(ours, "peers.test", "/id?x=1", 10).await
    }

    #[tokio::test]
    async fn an_answer_is_read_up_to_its_limit() {
        let answer = answered("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n0123456789").await;
        assert_eq!(answer.unwrap().body, "0123456789");
        let answer = answered("HTTP/1.1 302 Found\r\nlocation: /x\r\n\r\nthere")
            .await
            .unwrap();
        assert_eq!(
            (answer.status.as_u16(), answer.location.as_deref()),
            (302, Some("/x"))
        );

        for (text, said) in [
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n01234567890",
                "longer than 10 bytes",
            ),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nb\r\n01234567890\r\n",
                "longer than 10",
            ),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n0123",
                "end of file",
            ),
            ("SSH-2.0-OpenSSH_9.2\r\n", "invalid HTTP version"),
            ("", "closed"),
        ] {
            let error = answered(text).await.unwrap_err().to_string();
            assert!(error.contains(said), "{text:?}: {error}");
        }
    }
}
