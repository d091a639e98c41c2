//! A proxy before the registry, for what a registry does on a bad day: it is late, refuses somebody, sends a wrong byte.
//!
//! docker-registry would see one client only, so the account of who got what is kept here. A byte is counted before it
//! is sent: who has received it finds it in the account.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, combinators::BoxBody};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

use super::cri::Login;
use super::net::{Entrance, Netns};
use super::registry::{Access, Served};

/// What differs from the registry behind it. All but the login speak of GETs of blobs only.
#[derive(Clone, Debug)]
pub enum Rule {
    /// Whoever does not send it gets 401, whatever he asks for.
    Login(Login),
    /// Every answer's head comes so much later.
    Late(Duration),
    /// This client gets 401 for these digests.
    Unauthorized {
        client: IpAddr,
        digests: Vec<String>,
    },
    /// The first byte of each body of this digest has one bit flipped.
    Corrupt { digest: String },
}

pub struct Proxy {
    accept: JoinHandle<()>,
    account: Account,
}

type Account = Arc<Mutex<Vec<Entry>>>;
type Answer = Response<BoxBody<Bytes, hyper::Error>>;

struct Entry {
    access: Access,
    sent: Arc<AtomicU64>,
}

impl Proxy {
    /// Listens `on` this address in `netns`; `behind` is asked from there.
    pub async fn start(
        netns: &Netns,
        on: SocketAddr,
        behind: SocketAddr,
        rules: Vec<Rule>,
    ) -> Result<Self> {
        let listener = netns.listen(on).await?;
        let account = Account::default();
        let shared = Shared {
            entrance: netns.entrance(),
            behind,
            rules: rules.into(),
            account: account.clone(),
        };
        Ok(Self {
            accept: tokio::spawn(accept(listener, shared)),
            account,
        })
    }

    /// What it has answered so far, oldest first; bytes of bodies under way included.
    pub fn served(&self) -> Served {
        let entries = self.account.lock().unwrap();
        let told = entries.iter().map(|entry| Access {
            bytes: entry.sent.load(Ordering::Relaxed),
            ..entry.access.clone()
        });
        Served(told.collect())
    }

    /// When this returns, its address is free and its connections are closed.
    pub async fn stop(mut self) {
        self.accept.abort();
        // Aborted is how it ends.
        let _ = (&mut self.accept).await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

#[derive(Clone)]
struct Shared {
    entrance: Entrance,
    behind: SocketAddr,
    rules: Arc<[Rule]>,
    account: Account,
}

async fn accept(listener: TcpListener, shared: Shared) {
    // Connections end with this task.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, client)) = listener.accept() => {
                let shared = shared.clone();
                connections.spawn(async move {
                    let answer = service_fn(|request| answer(&shared, client.ip(), request));
                    let connection = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), answer);
                    // A client that left early is its own affair.
                    let _ = connection.await;
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn answer(
    shared: &Shared,
    client: IpAddr,
    request: Request<Incoming>,
) -> Result<Answer, Infallible> {
    let path = request.uri().path().to_owned();
    let is_get = request.method() == Method::GET;
    let mut flip = false;
    let mut refused = false;
    for rule in shared.rules.iter() {
        if let Rule::Login(login) = rule {
            let sent = request.headers().get(AUTHORIZATION);
            refused |= sent.is_none_or(|sent| *sent != login.header());
        }
    }
    if is_get && path.contains("/blobs/") {
        for rule in shared.rules.iter() {
            match rule {
                Rule::Late(by) => tokio::time::sleep(*by).await,
                Rule::Unauthorized { client: c, digests } => {
                    refused |= *c == client && digests.iter().any(|d| path.ends_with(d));
                }
                Rule::Corrupt { digest } => flip |= path.ends_with(digest),
                Rule::Login(_) => {}
            }
        }
    }
    let response = if refused {
        status(StatusCode::UNAUTHORIZED)
    } else {
        let forwarded = forward(shared, request).await;
        forwarded.unwrap_or_else(|_| status(StatusCode::BAD_GATEWAY))
    };
    if !is_get {
        return Ok(response);
    }
    let sent = Arc::new(AtomicU64::new(0));
    let access = Access {
        client,
        path,
        status: response.status().as_u16(),
        bytes: 0,
    };
    let entry = Entry {
        access,
        sent: sent.clone(),
    };
    shared.account.lock().unwrap().push(entry);
    Ok(response.map(|inner| Counted { inner, sent, flip }.boxed()))
}

fn status(status: StatusCode) -> Answer {
    let body = Empty::new().map_err(|never| match never {});
    let mut response = Response::new(body.boxed());
    *response.status_mut() = status;
    if status == StatusCode::UNAUTHORIZED {
        let challenge = HeaderValue::from_static("Basic realm=\"lab\"");
        response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    }
    response
}

async fn forward(shared: &Shared, request: Request<Incoming>) -> Result<Answer> {
    let stream = shared.entrance.connect(shared.behind).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    Ok(response.map(BodyExt::boxed))
}

struct Counted {
    inner: BoxBody<Bytes, hyper::Error>,
    sent: Arc<AtomicU64>,
    /// The next byte is to be spoilt.
    flip: bool,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        Poll::Ready(polled.map(|frame| {
            frame.map(|frame| {
                frame.map_data(|data| {
                    let length = data.len() as u64;
                    self.sent.fetch_add(length, Ordering::Relaxed);
                    if !self.flip || data.is_empty() {
                        return data;
                    }
                    self.flip = false;
                    let mut spoilt = data.to_vec();
                    spoilt[0] ^= 1;
                    spoilt.into()
                })
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
