//! Serves an axum router over HTTP/1.1, plain or within TLS: bind first, then run.
//!
//! What is ours here is how connections begin and end. Slow or endless request heads are cut off, the number of
//! connections is bounded, and a body that fails ends with an orderly FIN behind every byte that was produced for it
//! (see [`flush`]): containerd resumes after a FIN and fails the whole pull after a reset.

mod buffers;
pub mod flush;
pub mod measured;
pub mod sendfile;
mod timer;

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::{Request, server::conn::http1};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
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
/// What the kernel takes of a body before it has sent what it took earlier, in bytes: as much as is read from a disk at once.
/// Without it each client that stops reading holds up to `tcp_wmem` (4 MiB), which 64 of them made 190 MiB of the pod's memory
/// (`make bench`). What is on its way is not bounded by this, so a long way slows nobody down; where many are sent something
/// it is bounded by [`buffers`].
const UNSENT: u32 = 256 << 10;
/// For the last bytes to arrive and the client to close. Within what [`Shutdown::finish`] grants after the cut.
const LINGER: Duration = Duration::from_secs(4);
/// Two round trips and two signatures; who needs longer is no client of ours.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// What a client may still send while it is being taken leave of.
const MAX_SCRAP: usize = 1 << 20;

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
    pub async fn run(self, router: Router, shutdown: Shutdown) {
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
            let (router, head_timeout) = (router.clone(), self.head_timeout);
            let (drain, cut) = (shutdown.drain.clone(), shutdown.cut.clone());
            let tls = self.tls.clone();
            let share = buffers.share();
            shutdown.spawn(async move {
                let _permit = permit;
                // Heads and small bodies must not wait for an acknowledgement of the last packet.
                let _ = stream.set_nodelay(true);
                let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, UNHEARD_OF);
                let _ = SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT);
                let sender = match tls {
                    None => FileSender::new(),
                    Some(_) => FileSender::default(),
                };
                let stream = SendingIo::new(stream, sender.clone(), share);
                match tls {
                    None => {
                        serve(stream, sender, remote, router, head_timeout, drain, cut).await;
                    }
                    Some(certificates) => {
                        if let Some(stream) = handshake(stream, remote, &certificates).await {
                            serve(stream, sender, remote, router, head_timeout, drain, cut).await;
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
    router: Router,
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
        let mut router = router.clone();
        Box::pin(async move { router.call(request).await })
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
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::routing::get;
    use bytes::Bytes;
    use futures::{StreamExt, stream};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::net::{TcpSocket, TcpStream};

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

    /// What comes of a body of these chunks and then an error.
    async fn failing_after(chunks: usize, size: usize) -> Vec<u8> {
        let body = move |axum::Extension(flushes): axum::Extension<Flushes>| async move {
            let chunks = stream::iter((0..chunks).map(move |_| Ok(Bytes::from(vec![7; size]))))
                .chain(stream::iter([Err(io::Error::other("the source died"))]));
            axum::response::Response::builder()
                .header("content-length", 100_000_000)
                .body(Body::from_stream(flushes.before_the_end_of(chunks)))
                .unwrap()
        };
        let (address, _shutdown) = serving(Router::new().route("/", get(body))).await;
        let mut received = Vec::new();
        let read = ask(address).await.read_to_end(&mut received).await;
        read.expect("a FIN, not a reset");
        let head = received.windows(4).position(|w| w == b"\r\n\r\n");
        received.split_off(head.expect("a head") + 4)
    }

    #[tokio::test]
    async fn a_failing_body_ends_with_a_fin_behind_every_byte_it_had() {
        // hyper would drop the first of these unsent, and send headers without a byte.
        for (chunks, size) in [(1, 10), (3, 1000), (20, 100_000)] {
            assert_eq!(failing_after(chunks, size).await.len(), chunks * size);
        }
    }

    #[tokio::test]
    async fn a_slow_reader_gets_the_last_byte_of_a_connection_that_closes() {
        const SIZE: usize = 40 << 20;
        let body = || async { Bytes::from(vec![7; SIZE]) };
        let (address, shutdown) = serving(Router::new().route("/", get(body))).await;
        let mut client = TcpStream::connect(address).await.unwrap();
        let head = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        client.write_all(head.as_bytes()).await.unwrap();
        // Its first byte is there, its buffers fill, and the server is told to end. (Nothing is waited for: the longer
        // the client takes, the likelier a server that does not wait for it is found out.)
        let mut received = vec![0; 1];
        client.read_exact(&mut received).await.unwrap();
        shutdown.drain.cancel();
        tokio::time::sleep(Duration::from_millis(200)).await;

        client
            .read_to_end(&mut received)
            .await
            .expect("a FIN, not a reset");

        let head = received.windows(4).position(|w| w == b"\r\n\r\n");
        assert_eq!(received.len() - head.unwrap() - 4, SIZE);
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_not_written_megabytes_for() {
        const CHUNK: usize = 256 << 10;
        let produced = Arc::new(AtomicUsize::new(0));
        let counted = produced.clone();
        let body = move || async move {
            Body::from_stream(stream::repeat_with(move || {
                counted.fetch_add(CHUNK, Ordering::Relaxed);
                io::Result::Ok(Bytes::from(vec![7; CHUNK]))
            }))
        };
        let (address, _shutdown) = serving(Router::new().route("/", get(body))).await;
        let client = TcpSocket::new_v4().unwrap();
        client.set_recv_buffer_size(CHUNK as u32).unwrap();
        let mut client = client.connect(address).await.unwrap();
        let head = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
        client.write_all(head).await.unwrap();
        client.read_u8().await.unwrap();

        // Until nothing more is taken of the body.
        let (mut before, mut now) = (0, produced.load(Ordering::Relaxed));
        while now > before {
            tokio::time::sleep(Duration::from_millis(200)).await;
            (before, now) = (now, produced.load(Ordering::Relaxed));
        }

        // The client's buffer (twice what it asks for), ours, and one chunk between them. It was 3.5 MiB.
        assert!(now <= 2 * CHUNK + UNSENT as usize + 2 * CHUNK, "{now}");
    }

    #[tokio::test]
    async fn who_sends_a_head_byte_by_byte_is_not_waited_for() {
        let mut server = Server::bind(&["127.0.0.1:0".parse().unwrap()])
            .await
            .unwrap();
        server.head_timeout = Duration::from_millis(300);
        let address = server.local_addr().unwrap();
        let shutdown = Shutdown::new();
        let router = Router::new().route("/", get(|| async { "here" }));
        shutdown.spawn(server.run(router, shutdown.clone()));
        let mut loris = TcpStream::connect(address).await.unwrap();

        let began = tokio::time::Instant::now();
        let ended = loop {
            // It never gets to the end of its head.
            let sent = loris.write_all(b"x").await;
            let read = timeout(Duration::from_millis(50), loris.read_u8()).await;
            if sent.is_err() || read.is_ok() {
                break began.elapsed();
            }
            assert!(
                began.elapsed() < Duration::from_secs(10),
                "still waited for"
            );
        };

        assert!(ended >= Duration::from_millis(250), "{ended:?}");
        let mut received = Vec::new();
        let mut other = ask(address).await;
        other.read_to_end(&mut received).await.unwrap();
        assert!(received.ends_with(b"here"));
    }

    #[tokio::test]
    async fn unread_input_does_not_turn_the_end_into_a_reset() {
        let router = Router::new().route("/", get(|| async { "enough" }));
        let (address, _shutdown) = serving(router).await;
        let mut client = TcpStream::connect(address).await.unwrap();
        let head =
            "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 500000\r\n\r\n";
        client.write_all(head.as_bytes()).await.unwrap();
        client.write_all(&[b'x'; 300_000]).await.unwrap();

        let mut received = Vec::new();
        let read = client.read_to_end(&mut received).await;

        read.expect("a FIN, not a reset");
        assert!(String::from_utf8(received).unwrap().ends_with("enough"));
    }

    #[tokio::test]
    async fn at_the_cut_a_body_ends_short_with_a_fin() {
        let router = Router::new().route(
            "/",
            get(|| async {
                let endless = stream::iter([io::Result::Ok(Bytes::from("first"))]);
                Body::from_stream(endless.chain(stream::pending()))
            }),
        );
        let (address, shutdown) = serving(router).await;
        let mut client = ask(address).await;
        let mut received = vec![0; 1];
        client.read_exact(&mut received).await.unwrap();

        let finished = tokio::spawn(async move { shutdown.finish(Duration::ZERO).await });
        client
            .read_to_end(&mut received)
            .await
            .expect("a FIN, not a reset");
        drop(client);

        assert!(String::from_utf8(received).unwrap().contains("first"));
        assert_eq!(finished.await.unwrap(), 0);
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
        drop(client);

        assert!(String::from_utf8(received).unwrap().contains("last"));
        assert_eq!(drained.await.unwrap(), 0);
    }
}
