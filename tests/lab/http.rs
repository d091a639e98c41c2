//! A small HTTP client that speaks from here or from inside a namespace, one connection per request.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::TryStreamExt;
use futures::stream::BoxStream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::header::{CONTENT_LENGTH, HOST};
use hyper::{HeaderMap, Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::net::Netns;

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn expect(self, status: u16) -> Result<Self> {
        ensure!(
            self.status.as_u16() == status,
            "{} instead of {status}: {}",
            self.status,
            self.text()
        );
        Ok(self)
    }
}

/// What a request carries.
pub enum Upload<'a> {
    Nothing,
    Bytes(Bytes),
    File(&'a Path),
}

pub async fn get(netns: &Netns, to: SocketAddr, path: &str) -> Result<Answer> {
    send(netns, to, Method::GET, path, &[], Upload::Nothing).await
}

/// From this process's own namespace.
pub async fn get_here(to: SocketAddr, path: &str) -> Result<Answer> {
    let stream = async { Ok(TcpStream::connect(to).await?) };
    send_over(stream, to, Method::GET, path, &[], Upload::Nothing).await
}

pub async fn send(
    netns: &Netns,
    to: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    upload: Upload<'_>,
) -> Result<Answer> {
    let stream = async { Ok(netns.connect(to).await?) };
    send_over(stream, to, method, path, headers, upload).await
}

/// The same with more in it. A `host` among the headers is sent in place of the address.
pub async fn send_here(
    to: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Result<Answer> {
    let stream = async { Ok(TcpStream::connect(to).await?) };
    let body = Bytes::copy_from_slice(body.as_bytes());
    send_over(stream, to, method, path, headers, Upload::Bytes(body)).await
}

async fn send_over(
    stream: impl Future<Output = Result<TcpStream>>,
    to: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    upload: Upload<'_>,
) -> Result<Answer> {
    let said = format!("{method} http://{to}{path}");
    let answer = async {
        let stream = TokioIo::new(stream.await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
        tokio::spawn(connection);
        let (length, body) = body(upload).await?;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(CONTENT_LENGTH, length);
        if !headers.iter().any(|(name, _)| *name == HOST.as_str()) {
            request = request.header(HOST, to.to_string());
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = sender.send_request(request.body(body)?).await?;
        let (parts, body) = response.into_parts();
        anyhow::Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            body: body.collect().await?.to_bytes(),
        })
    };
    answer.await.context(said)
}

type Chunks = BoxStream<'static, std::io::Result<Frame<Bytes>>>;

async fn body(upload: Upload<'_>) -> Result<(u64, StreamBody<Chunks>)> {
    let (length, chunks): (u64, BoxStream<'static, _>) = match upload {
        Upload::Nothing => (0, Box::pin(futures::stream::empty())),
        Upload::Bytes(bytes) => (
            bytes.len() as u64,
            Box::pin(futures::stream::once(async { Ok(bytes) })),
        ),
        Upload::File(path) => {
            let file = tokio::fs::File::open(path).await?;
            let length = file.metadata().await?.len();
            let chunks = futures::stream::try_unfold(file, async |mut file| {
                // Large enough that a 300 MiB layer is not a matter of wake-ups.
                let mut chunk = Vec::with_capacity(1 << 20);
                let read = (&mut file).take(1 << 20).read_to_end(&mut chunk).await?;
                Ok((read > 0).then(|| (Bytes::from(chunk), file)))
            });
            (length, Box::pin(chunks))
        }
    };
    Ok((
        length,
        StreamBody::new(Box::pin(chunks.map_ok(Frame::data))),
    ))
}
