//! Serves an axum router over plain HTTP/1.1: bind first, then run.
//!
//! What is ours here is how connections begin and end. Slow or endless request heads are cut off, the number of
//! connections is bounded, and a body that fails ends with an orderly FIN behind every byte that was produced for it
//! (see [`flush`]): containerd resumes after a FIN and fails the whole pull after a reset.

pub mod flush;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::{Request, server::conn::http1};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tower::Service as _;
use tracing::{debug, warn};

use crate::shutdown::Shutdown;
use flush::{Flushes, FlushingIo};

/// A request head arrives in one packet; who needs longer is no client of ours. Also ends idle keep-alive connections.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Descriptors and memory are bounded by this: an idle connection costs about 10 KiB here. containerd uses a handful,
/// each pulling peer one for each of its three layers.
const MAX_CONNECTIONS: usize = 4096;
/// A request head of ours is below 1 KiB; hyper answers 431 beyond this and closes.
const MAX_HEAD: usize = 32 << 10;

/// A listening socket that nobody is served from yet.
pub struct Server {
    listener: TcpListener,
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
        Ok(Self { listener })
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the drain begins. Each connection is a task of `shutdown`: it ends after the request under way,
    /// at the latest at the cut.
    pub async fn run(self, router: Router, shutdown: Shutdown) {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(permit) = connections.clone().acquire_owned().await else {
                return;
            };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = shutdown.drain.cancelled() => return,
            };
            let (stream, remote) = match accepted {
                Ok(accepted) => accepted,
                Err(e) => {
                    warn!(error = %e, "cannot accept a connection");
                    // Out of descriptors, most likely: trying again at once would only burn the CPU.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (router, drain, cut) =
                (router.clone(), shutdown.drain.clone(), shutdown.cut.clone());
            shutdown.spawn(async move {
                let _permit = permit;
                let served = serve(stream, remote, router, drain.cancelled());
                tokio::select! {
                    served = served => if let Err(e) = served {
                        debug!(%remote, error = %e, "connection ended");
                    },
                    () = cut.cancelled() => debug!(%remote, "connection cut"),
                }
            });
        }
    }
}

async fn serve(
    stream: TcpStream,
    remote: SocketAddr,
    router: Router,
    drain: impl Future<Output = ()>,
) -> hyper::Result<()> {
    // Heads and small bodies must not wait for an acknowledgement of the last packet.
    let _ = stream.set_nodelay(true);
    let flushes = Flushes::default();
    let io = TokioIo::new(FlushingIo::new(stream, flushes.clone()));
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(remote));
        request.extensions_mut().insert(flushes.clone());
        let mut router = router.clone();
        async move { router.call(request).await }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD.max(MIN_HYPER_BUFFER))
        .serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = drain => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// hyper panics on a smaller buffer.
const MIN_HYPER_BUFFER: usize = 8192;

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::routing::get;
    use bytes::Bytes;
    use futures::{StreamExt, stream};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn serving(router: Router) -> (SocketAddr, Shutdown) {
        let server = Server::bind(&["127.0.0.1:0".parse().unwrap()])
            .await
            .unwrap();
        let address = server.local_addr().unwrap();
        let shutdown = Shutdown::new();
        shutdown.spawn(server.run(router, shutdown.clone()));
        (address, shutdown)
    }

    async fn ask(address: SocketAddr) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        stream
    }

    #[tokio::test]
    async fn a_failing_body_ends_with_a_fin_behind_every_byte_it_had() {
        const CHUNKS: usize = 20;
        let router = Router::new().route(
            "/",
            get(
                |axum::Extension(flushes): axum::Extension<Flushes>| async move {
                    let chunks =
                        stream::iter((0..CHUNKS).map(|_| Ok(Bytes::from(vec![7; 100_000]))))
                            .chain(stream::iter([Err(io::Error::other("the source died"))]));
                    axum::response::Response::builder()
                        .header("content-length", 100_000_000)
                        .body(Body::from_stream(flushes.before_the_end_of(chunks)))
                        .unwrap()
                },
            ),
        );
        let (address, _shutdown) = serving(router).await;

        let mut received = Vec::new();
        let read = ask(address).await.read_to_end(&mut received).await;

        read.expect("a FIN, not a reset");
        let head = received.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        assert_eq!(received.len() - head, CHUNKS * 100_000);
    }

    #[tokio::test]
    async fn a_drain_lets_the_body_under_way_finish_and_takes_no_new_connection() {
        let (more, chunks) = tokio::sync::mpsc::channel::<io::Result<Bytes>>(1);
        let chunks = Arc::new(std::sync::Mutex::new(Some(chunks)));
        let router = Router::new().route(
            "/",
            get(move || async move {
                let chunks = chunks.lock().unwrap().take().unwrap();
                Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(chunks))
            }),
        );
        let (address, shutdown) = serving(router).await;
        let mut client = ask(address).await;
        more.send(Ok("first".into())).await.unwrap();
        let mut received = vec![0; 1];
        client.read_exact(&mut received).await.unwrap();

        let drained = tokio::spawn(async move { shutdown.finish(Duration::from_secs(20)).await });
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        more.send(Ok("last".into())).await.unwrap();
        drop(more);
        client.read_to_end(&mut received).await.unwrap();

        assert!(String::from_utf8(received).unwrap().contains("last"));
        assert_eq!(drained.await.unwrap(), 0);
    }
}
