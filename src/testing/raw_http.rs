//! HTTP/1.1 as it is on the wire: one request, and everything that comes back until the end of its connection.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Status line and headers.
    pub head: String,
    pub body: Vec<u8>,
    /// From before the connection was opened to its end.
    pub took: Duration,
}

impl Answer {
    pub fn of(mut received: Vec<u8>) -> Self {
        let end = received.windows(4).position(|window| window == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no head in {} bytes", received.len()));
        let body = received.split_off(end + 4);
        received.truncate(end);
        let head = String::from_utf8(received).expect("a head is text");
        let status = head.split(' ').nth(1).and_then(|it| it.parse().ok());
        Self {
            status: status.expect("a status"),
            head,
            body,
            took: Duration::ZERO,
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The OCI error code of the body.
    pub fn code(&self) -> String {
        let json: serde_json::Value = serde_json::from_slice(&self.body).expect("an OCI body");
        let code = json["errors"][0]["code"].as_str();
        code.expect("a code").to_owned()
    }
}

/// Asks on a connection that is to end after the answer, which comes within `limit`.
pub async fn ask(
    at: SocketAddr,
    limit: Duration,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Answer {
    let mut request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    request += "\r\n";
    send(at, limit, request.as_bytes()).await
}

/// Everything that comes back until the FIN, which comes within `limit`; a reset fails the test.
pub async fn send(at: SocketAddr, limit: Duration, request: &[u8]) -> Answer {
    let began = Instant::now();
    let mut stream = TcpStream::connect(at).await.expect("a connection");
    stream.write_all(request).await.expect("sent");
    let mut received = Vec::new();
    let read = timeout(limit, stream.read_to_end(&mut received)).await;
    read.expect("an end").expect("a FIN, not a reset");
    Answer {
        took: began.elapsed(),
        ..Answer::of(received)
    }
}
