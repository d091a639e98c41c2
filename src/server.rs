//! Serves an axum router over HTTP/1.1, plain or within TLS: bind first, then run.
//!
//! What is ours here is how connections begin and end. Slow or endless request heads are cut off, the number of
//! connections is bounded, and a body that fails ends with an orderly FIN behind every byte that was produced for it
//! (see [`flush`]): containerd resumes after a FIN and fails the whole pull after a reset.

mod buffers;
pub mod flush;
pub mod measured;
mod pacing;
pub mod sendfile;
mod timer;

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::response::Response;
use futures::FutureExt as _;
use hyper::body::{Body as _, Incoming};
use hyper::{Request, server::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tower::Service as _;
use tracing::{debug, warn};

use crate::shutdown::Shutdown;
use crate::tls::{self, CertDir};
use buffers::Buffers;
use flush::{Flushes, FlushingIo};
use sendfile::{FileSender, SendingIo};
use timer::OneTimer;

/// A request head arrives in one packet; who needs longer is no client of ours. Also ends idle keep-alive connections.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Descriptors and memory are bounded by this: an idle connection costs about 10 KiB here. containerd uses a handful,
/// each pulling peer one for each of its three layers.
pub const MAX_CONNECTIONS: usize = 4096;
/// A request head of ours is below 1 KiB; hyper answers 431 beyond this and closes.
const MAX_HEAD: usize = 32 << 10;

/// A client whose kernel acknowledges nothing for so long is gone; TCP itself would keep its buffers for 15 minutes.
const UNHEARD_OF: u32 = 30_000;
/// For the last bytes to arrive and the client to close. Within what [`Shutdown::finish`] grants after the cut.
const LINGER: Duration = Duration::from_secs(4);
/// Two round trips and two signatures; who needs longer is no client of ours.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// What a client may still send while it is being taken leave of.
const MAX_SCRAP: usize = 1 << 20;

/// Whoever answers requests; each connection has a clone.
pub trait Answers: Clone + Send + 'static {
    fn answer(self, request: Request<Body>) -> impl Future<Output = Response> + Send + 'static;
}

impl Answers for Router {
    fn answer(self, request: Request<Body>) -> impl Future<Output = Response> + Send + 'static {
        let mut router = self;
        let answer = router.call(request);
        answer.map(|answered| answered.unwrap_or_else(|never| match never {}))
    }
}

/// A listening socket that nobody is served from yet.
pub struct Server {
    listener: TcpListener,
    head_timeout: Duration,
    tls: Option<CertDir>,
}

impl Server {
    /// Binds the first of `candidates` that can be bound: `[::]` and then `0.0.0.0`, say, where IPv6 is switched off.
    pub async fn bind(candidates: &[SocketAddr]) -> io::Result<Self> {
        let listener = TcpListener::bind(candidates).await.map_err(|e| {
            let tried: Vec<String> = candidates.iter().map(SocketAddr::to_string).collect();
            io::Error::new(
                e.kind(),
                format!("cannot listen on {}: {e}", tried.join(" or ")),
            )
        })?;
        Ok(Self {
            listener,
            head_timeout: HEAD_TIMEOUT,
            tls: None,
        })
    }

    /// From now on clients must show a certificate. An error says what cannot be used of the directory; what is wrong
    /// with it later refuses connections until it is right again.
    pub async fn over_tls(mut self, certificates: CertDir) -> Result<Self, tls::Error> {
        certificates.server().await?;
        self.tls = Some(certificates);
        Ok(self)
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the drain begins. Each connection is a task of `shutdown`: it ends after the request under way,
    /// at the latest at the cut.
    pub async fn run(self, routes: impl Answers, shutdown: Shutdown) {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut spare = Spare::new();
        let buffers = Buffers::default();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = shutdown.drain.cancelled() => return,
            };
            let (stream, remote) = match accepted {
                Ok(accepted) => accepted,
                Err(e) => {
                    warn!(error = %e, "cannot accept a connection");
                    spare.turn_away(&self.listener).await;
                    continue;
                }
            };
            let Ok(permit) = connections.clone().try_acquire_owned() else {
                // Closed at once: a client that is left in the backlog would wait for ever, and not go upstream.
                warn!(%remote, limit = MAX_CONNECTIONS, "too many connections");
                continue;
            };
            let (routes, head_timeout) = (routes.clone(), self.head_timeout);
            let (drain, cut) = (shutdown.drain.clone(), shutdown.cut.clone());
            let tls = self.tls.clone();
            let buffers = buffers.clone();
            shutdown.spawn(async move {
                let _permit = permit;
                // Heads and small bodies must not wait for an acknowledgement of the last packet.
                let _ = stream.set_nodelay(true);
                let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, UNHEARD_OF);
                let sender = match tls {
                    None => FileSender::new(&buffers),
                    Some(_) => FileSender::without_windows(&buffers),
                };
                let stream = SendingIo::new(stream, sender.clone());
                match tls {
                    None => {
                        serve(stream, sender, remote, routes, head_timeout, drain, cut).await;
                    }
                    Some(certificates) => {
                        if let Some(stream) = handshake(stream, remote, &certificates).await {
                            serve(stream, sender, remote, routes, head_timeout, drain, cut).await;
                        }
                    }
                }
            });
        }
    }
}

async fn handshake(
    stream: SendingIo,
    remote: SocketAddr,
    certificates: &CertDir,
) -> Option<TlsStream<SendingIo>> {
    let config = match certificates.server().await {
        Ok(config) => config,
        Err(e) => {
            warn!(%remote, error = %e, "nobody is served without a certificate");
            return None;
        }
    };
    let accepted = timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream)).await;
    accepted
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .inspect_err(|e| debug!(%remote, error = %e, "no TLS connection"))
        .ok()
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    sender: FileSender,
    remote: SocketAddr,
    routes: impl Answers,
    head_timeout: Duration,
    drain: CancellationToken,
    cut: CancellationToken,
) {
    let flushes = Flushes::default();
    let io = TokioIo::new(FlushingIo::new(stream, flushes.clone()));
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(remote));
        request.extensions_mut().insert(flushes.clone());
        request.extensions_mut().insert(sender.clone());
        let answer = routes.clone().answer(request.map(received));
        // Not within the connection, of which there are thousands that are not asked anything. Mapped, for a block that
        // awaits what it has captured has room for it twice.
        Box::pin(answer.map(Ok::<_, Infallible>))
    });
    let mut connection = http1::Builder::new()
        .timer(OneTimer::default())
        .header_read_timeout(head_timeout)
        .max_buf_size(MAX_HEAD)
        .serve_connection(io, service);

    let mut is_draining = false;
    loop {
        tokio::select! {
            // Not `poll_without_shutdown`: that may end with bytes that hyper has not written yet.
            ended = &mut connection => {
                if let Err(e) = ended {
                    debug!(%remote, error = %e, "connection ended");
                }
                break;
            }
            () = drain.cancelled(), if !is_draining => {
                is_draining = true;
                std::pin::Pin::new(&mut connection).graceful_shutdown();
            }
            () = cut.cancelled() => {
                debug!(%remote, "connection cut");
                break;
            }
        }
    }
    let stream = connection.into_parts().io.into_inner().into_inner();
    linger(stream).await;
}

/// The body of a request. Hardly any has one, and none is what needs no memory.
fn received(body: Incoming) -> Body {
    match body.is_end_stream() {
        true => Body::empty(),
        false => Body::new(body),
    }
}

/// Closes a connection so that what was written arrives: a FIN behind the last byte, and then the rest of what the
/// client sends is read until it closes, too. A socket that is closed with unread input resets the connection; one whose
/// process ends may lose what the kernel has not sent, when the pod's network goes with it.
async fn linger(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let until_closed = async {
        stream.shutdown().await?;
        let mut scrap = [0; 4096];
        let mut read = 0;
        while read < MAX_SCRAP {
            match stream.read(&mut scrap).await? {
                0 => break,
                n => read += n,
            }
        }
        io::Result::Ok(())
    };
    // Whatever comes of it, the connection is over.
    let _ = timeout(LINGER, until_closed).await;
}

/// A descriptor in reserve: where there is no other left, a connection can still be taken and closed, so that containerd
/// goes upstream instead of waiting.
struct Spare(Option<File>);

impl Spare {
    fn new() -> Self {
        Self(File::open("/dev/null").ok())
    }

    async fn turn_away(&mut self, listener: &TcpListener) {
        self.0 = None;
        // Not for ever: the error may have been another one, and nobody be waiting.
        if timeout(Duration::from_millis(100), listener.accept())
            .await
            .is_err()
        {
            debug!("nobody to turn away");
        }
        self.0 = File::open("/dev/null").ok();
    }
}

#[cfg(test)]
mod tests;
