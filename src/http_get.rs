//! One small request over a connection that is there already. The caller bounds its time; its size is bounded here.

use std::error::Error as _;
use std::fmt::Write as _;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST, LOCATION, USER_AGENT};
use hyper::http::request;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

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
