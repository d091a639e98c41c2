//! What the mirror's body costs: a blob that goes from a peer through a node's mirror to its containerd, beside the same
//! through a proxy that does nothing but copy one hyper body into another. `make bench`.
//!
//! Both in one process over loopback, in turns, so that whatever else the machine does hits both. The peer serves from
//! memory, the reader counts and forgets. What differs is the mirror alone: search, score, and for each chunk the select,
//! the time limit and the counters.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, Response};
use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use peili::oci::{Digest, Key};
use peili::registry;
use peili::routing::Router as _;
use peili::server::Server;
use peili::shutdown::Shutdown;
use peili::testing;
use peili::testing::content::FakeStore;
use peili::testing::router::FakeSwarm;
use tokio::net::TcpStream;

const GIB: u64 = 1 << 30;
/// As much as a peer's registry reads from its disk at once.
const CHUNK: usize = 256 << 10;
/// Of each. The median is told: one run in a few meets something else.
const ROUNDS: usize = 5;
/// As the mirror reads: a plain proxy with hyper's own buffer would be slower than it.
const READ: usize = 1 << 20;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let shutdown = Shutdown::new();
    let peer = serve(Router::new().fallback(whole), &shutdown).await?;
    let plain = serve(Router::new().fallback(copy).with_state(peer), &shutdown).await?;
    let digest = Digest::sha256(b"a gibibyte");
    let node = node(peer, &digest, &shutdown).await?;
    let path = format!("/v2/app/blobs/{digest}?ns=registry.test");

    println!(
        "{GIB} bytes over loopback, {ROUNDS} times each, medians; CPU is that of peer, proxy and reader together"
    );
    let (mut direct, mut copied, mut mirrored) = (Vec::new(), Vec::new(), Vec::new());
    // The first of each is for the allocator and the sockets.
    for round in 0..=ROUNDS {
        for (at, runs) in [
            (peer, &mut direct),
            (plain, &mut copied),
            (node, &mut mirrored),
        ] {
            let run = get(at, &path).await?;
            if round > 0 {
                runs.push(run);
            }
        }
    }
    let (direct, copied, mirrored) = (median(direct), median(copied), median(mirrored));
    for (name, run) in [
        ("no proxy", &direct),
        ("plain hyper proxy", &copied),
        ("mirror", &mirrored),
    ] {
        println!(
            "{name:18} {:6.0} MB/s  {:5.2} CPU s",
            run.rate(),
            run.cpu.as_secs_f64()
        );
    }
    println!(
        "mirror / plain     {:6.3} of the rate, {:.3} of the CPU time",
        mirrored.rate() / copied.rate(),
        mirrored.cpu.as_secs_f64() / copied.cpu.as_secs_f64()
    );
    Ok(())
}

struct Run {
    took: Duration,
    cpu: Duration,
}

impl Run {
    /// In MB/s.
    fn rate(&self) -> f64 {
        GIB as f64 / self.took.as_secs_f64() / 1e6
    }
}

fn median(mut runs: Vec<Run>) -> Run {
    runs.sort_by_key(|run| run.took);
    runs.swap_remove(runs.len() / 2)
}

/// CPU time of this process since it began.
fn cpu() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(spent.tv_sec as u64, spent.tv_nsec as u32)
}

async fn serve(routes: Router, shutdown: &Shutdown) -> Result<SocketAddr> {
    let server = Server::bind(&["127.0.0.1:0".parse()?]).await?;
    let address = server.local_addr()?;
    shutdown.spawn(server.run(routes, shutdown.clone()));
    Ok(address)
}

/// A node that holds nothing, and hears that `peer` has `digest`.
async fn node(peer: SocketAddr, digest: &Digest, shutdown: &Shutdown) -> Result<SocketAddr> {
    let (server, address) = testing::registry::server().await;
    let swarm = FakeSwarm::new();
    swarm
        .join(peer)
        .advertise(vec![Key::Content(digest.clone())])
        .await
        .context("the fake router has ended")?;
    let metrics = prometheus::Registry::new();
    let mirror = testing::registry::mirror(swarm.join(address), &metrics);
    let store = FakeStore::default();
    let routes = registry::router(testing::registry::over(store, mirror, &metrics));
    shutdown.spawn(server.run(routes, shutdown.clone()));
    Ok(address)
}

/// The peer: a gibibyte from memory.
async fn whole() -> Response<Body> {
    let chunk = Bytes::from(vec![7; CHUNK]);
    let chunks =
        stream::iter((0..GIB / CHUNK as u64).map(move |_| Ok::<_, std::io::Error>(chunk.clone())));
    let mut response = Response::new(Body::from_stream(chunks));
    response.headers_mut().insert("content-length", GIB.into());
    response
}

/// The plain proxy: the answer of `peer`, as it is.
async fn copy(State(peer): State<SocketAddr>, request: Request<Body>) -> Response<Body> {
    let path = request
        .uri()
        .path_and_query()
        .map_or("/", |path| path.as_str());
    let answer = ask(peer, path).await.expect("the peer is in this process");
    answer.map(Body::new)
}

async fn ask(at: SocketAddr, path: &str) -> Result<hyper::Response<hyper::body::Incoming>> {
    let stream = TcpStream::connect(at).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = http1::Builder::new()
        .read_buf_exact_size(Some(READ))
        .handshake(TokioIo::new(stream))
        .await?;
    // Its errors reach the body.
    tokio::spawn(connection);
    let request = hyper::Request::get(path).header("host", at.to_string());
    Ok(sender
        .send_request(request.body(Empty::<Bytes>::new())?)
        .await?)
}

/// Reads all of it.
async fn get(at: SocketAddr, path: &str) -> Result<Run> {
    let (began, before) = (Instant::now(), cpu());
    let answer = ask(at, path).await?;
    ensure!(
        answer.status().is_success(),
        "{at} answered {}",
        answer.status()
    );
    let mut body = answer.into_body();
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        read += frame?.data_ref().map_or(0, Bytes::len) as u64;
    }
    ensure!(read == GIB, "{read} of {GIB} bytes came from {at}");
    Ok(Run {
        took: began.elapsed(),
        cpu: cpu() - before,
    })
}
