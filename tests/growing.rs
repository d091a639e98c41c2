//! Layers that containerd is still writing, as peers get them from the registry port: a node over a content directory in
//! which a fake downloads.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use peili::content::containerd::{Config, Containerd};
use peili::inflight::{Inflight, Uplink};
use peili::oci::Digest;
use peili::readiness::Readiness;
use peili::registry::uploads::Uploads;
use peili::registry::{self, Registry};
use peili::shutdown::Shutdown;
use peili::testing::ingest::{FakeIngest, FakeIngests};
use peili::testing::router::FakeSwarm;
use peili::testing::{self, eventually, noise};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const AT_ALL: Duration = Duration::from_secs(20);
const MIB: usize = 1 << 20;
const PEER: (&str, &str) = ("x-spegel-mirrored", "true");

struct Node {
    ingests: FakeIngests,
    inflight: Inflight,
    uplink: Uplink,
    address: SocketAddr,
    metrics: prometheus::Registry,
    _shutdown: Shutdown,
}

impl Node {
    async fn new() -> Self {
        Self::serving(64).await
    }

    async fn serving(uploads: usize) -> Self {
        let ingests = FakeIngests::new();
        let (server, address) = testing::registry::server().await;
        let metrics = prometheus::Registry::new();
        let config = Config {
            // Nobody listens there: blobs are read by path.
            socket: ingests.root().join("containerd.sock"),
            namespace: "k8s.io".into(),
            content_path: Some(ingests.root().to_owned()),
        };
        let store = Containerd::new(config, Readiness::new()).unwrap();
        let inflight = Inflight::new(store.content_root(), "k8s.io".into());
        let uplink = Uplink::default();
        let mirror = testing::registry::mirror(FakeSwarm::new().join(address), &metrics);
        let routes = registry::router(Registry {
            uploads: Uploads::new(uploads),
            inflight: inflight.clone(),
            uplink: uplink.clone(),
            ..testing::registry::over(store, mirror, &metrics)
        });
        let shutdown = Shutdown::new();
        shutdown.spawn(server.run(routes, shutdown.clone()));
        Self {
            ingests,
            inflight,
            uplink,
            address,
            metrics,
            _shutdown: shutdown,
        }
    }

    fn download(&self, layer: &[u8]) -> (Digest, FakeIngest) {
        let digest = Digest::sha256(layer);
        let ingest = self.ingests.begin("layer", &digest, layer.len() as u64);
        (digest, ingest)
    }

    /// A request on a connection of its own, that ends with it.
    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        let headers: String = headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        let request =
            format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let byte = tokio::time::timeout(AT_ALL, stream.read_u8()).await;
            head.push(byte.expect("a head").unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        Response {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            head,
            stream,
        }
    }

    /// As a peer that takes what grows, and waits so many milliseconds for it.
    async fn peer(&self, digest: &Digest, range: Option<&str>, patience: &str) -> Response {
        let mut headers = vec![PEER, ("x-peili-growing", patience)];
        headers.extend(range.map(|range| ("range", range)));
        self.ask("GET", &blob(digest), &headers).await
    }

    fn relayed(&self) -> u64 {
        let families = self.metrics.gather();
        let mut families = families.iter();
        let family = families.find(|family| family.name() == "peili_relayed_bytes_total");
        let metric = &family.expect("registered").get_metric()[0];
        metric.get_counter().get_value() as u64
    }
}

struct Response {
    status: u16,
    head: String,
    stream: TcpStream,
}

impl Response {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            (found == name).then(|| value.trim())
        })
    }

    async fn read(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let read = tokio::time::timeout(AT_ALL, self.stream.read_exact(&mut bytes)).await;
        read.expect("so many bytes").unwrap();
        bytes
    }

    /// Everything up to the FIN; a reset fails the test.
    async fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(AT_ALL, self.stream.read_to_end(&mut bytes)).await;
        read.expect("an end").expect("a FIN, not a reset");
        bytes
    }
}

fn blob(digest: &Digest) -> String {
    format!("/v2/app/blobs/{digest}?ns=registry.test")
}

#[tokio::test]
async fn a_peer_gets_a_layer_while_it_is_being_written_and_through_the_commit() {
    let node = Node::new().await;
    let layer = noise(4 * MIB, 1);
    let (digest, mut download) = node.download(&layer);
    download.write(&layer[..MIB]);

    let mut whole = node.peer(&digest, None, "0").await;
    let mut part = node.peer(&digest, Some("bytes=1000000-3000000"), "0").await;

    let length = layer.len().to_string();
    assert_eq!(whole.status, 200);
    assert_eq!(whole.header("content-length"), Some(length.as_str()));
    assert_eq!(whole.header("docker-content-digest"), Some(digest.as_str()));
    assert_eq!(part.status, 206);
    let range = format!("bytes 1000000-3000000/{length}");
    assert_eq!(part.header("content-range"), Some(range.as_str()));
    assert_eq!(part.header("content-length"), Some("2000001"));
    assert!(whole.read(MIB).await == layer[..MIB], "what is there");
    assert_eq!(node.uplink.free(&digest), 0, "two read it");
    download.write(&layer[MIB..]);
    download.commit();
    assert!(whole.rest().await == layer[MIB..]);
    assert!(part.rest().await == layer[1_000_000..=3_000_000]);
    assert_eq!(node.relayed(), layer.len() as u64 + 2_000_001);
    eventually("nobody reads it any more", AT_ALL, || async {
        (node.uplink.free(&digest) == 2).then_some(())
    })
    .await;
    assert!(node.uplink.rate(tokio::time::Instant::now()) > 0);
}

#[tokio::test]
async fn only_a_peer_that_asks_for_it_gets_what_is_not_whole() {
    let node = Node::new().await;
    let layer = noise(100_000, 2);
    let (digest, mut download) = node.download(&layer);
    download.write(&layer[..50_000]);
    let growing = ("x-peili-growing", "0");
    for (method, headers, status) in [
        ("GET", vec![], 404),
        ("GET", vec![growing], 404),
        ("GET", vec![PEER], 404),
        ("GET", vec![PEER, ("x-peili-growing", "soon")], 404),
        ("HEAD", vec![PEER, growing], 404),
        ("GET", vec![PEER, growing], 200),
    ] {
        let answer = node.ask(method, &blob(&digest), &headers).await;

        assert_eq!(answer.status, status, "{method} {headers:?}");
        assert_eq!(
            answer.header("x-peili-flight"),
            None,
            "{method} {headers:?}"
        );
    }

    download.write(&layer[50_000..]);
    download.commit();

    for headers in [vec![], vec![PEER], vec![PEER, growing]] {
        let mut answer = node.ask("GET", &blob(&digest), &headers).await;
        assert_eq!(answer.status, 200, "{headers:?}");
        assert!(answer.rest().await == layer, "{headers:?}");
    }
    let head = node.ask("HEAD", &blob(&digest), &[PEER, growing]).await;
    assert_eq!(head.status, 200);
}

#[tokio::test]
async fn a_peer_waits_for_its_first_byte_and_is_told_whether_to_come_back() {
    let node = Node::new().await;
    let layer = noise(100_000, 3);
    let digest = Digest::sha256(&layer);
    let flight = async |range, patience| {
        let begun = Instant::now();
        let answer = node.peer(&digest, range, patience).await;
        assert_eq!(answer.status, 404);
        let flight = answer.header("x-peili-flight").unwrap().to_string();
        (flight, begun.elapsed())
    };

    let (absent, took) = flight(None, "900").await;
    assert_eq!(absent, "absent");
    assert!(took < Duration::from_millis(500), "at once: {took:?}");

    let expecting = node.inflight.expect(digest.clone());
    assert_eq!(flight(None, "0").await.0, "waiting");
    let (waiting, took) = flight(None, "200").await;
    assert_eq!(waiting, "waiting");
    assert!(took >= Duration::from_millis(200), "{took:?}");
    let (waiting, took) = flight(None, "99999999").await;
    assert_eq!(waiting, "waiting");
    assert!(took < Duration::from_secs(5), "however patient: {took:?}");

    // The ingest comes, then the byte that is waited for.
    let mut download = tokio::join!(node.peer(&digest, Some("bytes=30000-"), "1000"), async {
        let mut download = node.download(&layer).1;
        download.write(&layer[..30_000]);
        drop(expecting);
        assert_eq!(flight(Some("bytes=30000-"), "50").await.0, "waiting");
        download.write(&layer[30_000..30_001]);
        download
    });
    assert_eq!(download.0.status, 206);
    assert!(download.0.read(1).await == layer[30_000..30_001]);
    download.1.write(&layer[30_001..]);
    assert!(download.0.rest().await == layer[30_001..]);
    let beyond = node.peer(&digest, Some("bytes=100000-"), "1000").await;
    assert_eq!(beyond.status, 416);
    assert_eq!(beyond.header("content-range"), Some("bytes */100000"));

    download.1.abort();
    assert_eq!(flight(None, "900").await.0, "absent");
}

#[tokio::test]
async fn bytes_on_their_way_to_the_file_are_there_for_who_comes_later_and_a_gap_is_not() {
    let node = Node::new().await;
    let layer = noise(100_000, 9);
    let (digest, mut download) = node.download(&layer);
    let passing = node.inflight.passing(&digest);
    // Nobody follows yet, and nothing is in the file.
    passing.push(1000, &layer[1000..3000]);

    let behind_the_gap = node.peer(&digest, None, "200").await;
    let mut answer = node.peer(&digest, Some("bytes=2000-"), "200").await;

    assert_eq!(behind_the_gap.status, 404);
    assert_eq!(behind_the_gap.header("x-peili-flight"), Some("waiting"));
    assert_eq!(answer.status, 206);
    assert!(answer.read(1000).await == layer[2000..3000]);
    drop(passing);
    download.write(&layer);
    assert!(answer.rest().await == layer[3000..]);
}

#[tokio::test]
async fn who_waits_for_what_becomes_whole_gets_it() {
    let node = Node::new().await;
    let layer = noise(100_000, 4);
    let digest = Digest::sha256(&layer);
    let _expecting = node.inflight.expect(digest.clone());

    let (mut answer, ()) = tokio::join!(node.peer(&digest, None, "1000"), async {
        // Too fast for anybody to see it grow.
        let (_, mut download) = node.download(&layer);
        download.write(&layer);
        download.commit();
    });

    assert_eq!(answer.status, 200);
    assert!(answer.rest().await == layer);
}

#[tokio::test]
async fn a_download_that_begins_anew_or_is_given_up_cuts_its_readers_with_a_fin_behind_all_bytes() {
    for anew in [false, true] {
        let node = Node::new().await;
        let layer = noise(2 * MIB, 5);
        let (digest, mut download) = node.download(&layer);
        download.write(&layer[..MIB + 1]);
        let mut answer = node.peer(&digest, None, "0").await;
        // The kernel takes no megabyte for who reads nothing.
        let mut got = answer.read(MIB).await;
        eventually("all of it was sent", AT_ALL, || async {
            (node.relayed() == MIB as u64 + 1).then_some(())
        })
        .await;

        if anew {
            download.truncate(0);
        } else {
            download.abort();
        }

        let begun = Instant::now();
        got.extend(answer.rest().await);
        assert_eq!((answer.status, got.len()), (200, MIB + 1), "anew: {anew}");
        assert!(got == layer[..MIB + 1], "anew: {anew}");
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(2), "anew: {anew}, {took:?}");
    }
}

#[tokio::test]
async fn a_reader_that_takes_nothing_leaves_no_room_for_more_and_is_not_read_ahead_of() {
    let node = Node::new().await;
    let layer = noise(40 * MIB, 6);
    let (digest, mut download) = node.download(&layer);
    let other = Digest::sha256(b"another layer");
    download.write(&layer[..39 * MIB]);
    let mut lazy = node.peer(&digest, None, "0").await;
    assert_eq!(lazy.status, 200);

    eventually("it is seen to lag", AT_ALL, || async {
        (node.uplink.free(&other) == 0).then_some(())
    })
    .await;

    let relayed = node.relayed();
    assert!(relayed < 20 << 20, "{relayed} bytes to who reads none");
    download.write(&layer[39 * MIB..]);
    download.commit();
    assert!(lazy.rest().await == layer);
    eventually("room is made", AT_ALL, || async {
        (node.uplink.free(&other) == 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn readers_of_growing_layers_are_uploads_like_others() {
    let node = Node::serving(1).await;
    let layer = noise(4 * MIB, 7);
    let (digest, mut download) = node.download(&layer);
    download.write(&layer[..MIB]);
    let mut first = node.peer(&digest, None, "0").await;
    assert_eq!(first.status, 200);

    let second = node.peer(&digest, None, "0").await;

    assert_eq!(second.status, 503);
    assert_eq!(second.header("x-peili-holders"), Some(""));
    download.write(&layer[MIB..]);
    assert!(first.rest().await == layer);
}

#[tokio::test]
async fn a_manifest_comes_whole_when_its_last_byte_is_there() {
    let node = Node::new().await;
    let manifest = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[]}"#;
    let digest = Digest::sha256(manifest);
    let path = format!("/v2/app/manifests/{digest}?ns=registry.test");
    let ask = |patience| {
        let headers = [PEER, ("x-peili-growing", patience)];
        let (node, path) = (&node, &path);
        async move { node.ask("GET", path, &headers).await }
    };
    assert_eq!(ask("500").await.header("x-peili-flight"), Some("absent"));
    let total = manifest.len() as u64;
    let mut download = node.ingests.begin("manifest", &digest, total);
    download.write(&manifest[..20]);
    assert_eq!(ask("50").await.header("x-peili-flight"), Some("waiting"));

    let (mut answer, ()) = tokio::join!(ask("1000"), async {
        download.write(&manifest[20..]);
    });

    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("content-type"),
        Some("application/vnd.oci.image.manifest.v1+json")
    );
    assert_eq!(answer.rest().await, manifest);
    download.write_at(3, b"x");
    let wrong = ask("1000").await;
    assert_eq!(
        (wrong.status, wrong.header("x-peili-flight")),
        (404, Some("waiting"))
    );
    assert_eq!(node.ask("GET", &path, &[PEER]).await.status, 404);
}

/// CPU time of this process since it began.
fn cpu() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(spent.tv_sec as u64, spent.tv_nsec as u32)
}

/// What waits costs memory, and next to nothing else. `cargo test --all-features --test growing -- --nocapture hundreds`
#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_waiters_for_a_handful_of_layers_cost_little() {
    const WAITERS: usize = 400;
    const LAYERS: usize = 5;
    const SECONDS: usize = 5;
    let node = Node::new().await;
    let layers: Vec<Vec<u8>> = (0..LAYERS as u64).map(|n| noise(1000, 20 + n)).collect();
    let digests: Vec<Digest> = layers.iter().map(|l| Digest::sha256(l)).collect();
    // Two are expected and have not begun, three have begun and do not grow.
    let _expected: Vec<_> = digests[..2]
        .iter()
        .map(|digest| node.inflight.expect(digest.clone()))
        .collect();
    let _begun: Vec<_> = layers[2..].iter().map(|l| node.download(l)).collect();
    // What killed pulls have left.
    let _left: Vec<_> = (0..30u8).map(|n| node.download(&[n; 100])).collect();

    // The same requests, with and without waiting.
    let ask = async |patience: &'static str| {
        let before = cpu();
        let waiting = (0..WAITERS).map(|n| {
            let (node, digest) = (&node, &digests[n % LAYERS]);
            async move {
                for _ in 0..SECONDS {
                    let answer = node.peer(digest, None, patience).await;
                    assert_eq!(answer.status, 404);
                    assert_eq!(answer.header("x-peili-flight"), Some("waiting"));
                }
            }
        });
        futures::future::join_all(waiting).await;
        cpu() - before
    };
    let asking = ask("0").await;
    let waiting = ask("1000").await.saturating_sub(asking);

    println!(
        "{WAITERS} waiters for {LAYERS} layers over {SECONDS} s: {waiting:?} of CPU for waiting, {asking:?} for asking"
    );
    // A fifth of one core, on a machine that other tests keep busy. When each waiter looked for itself it was all of two.
    assert!(waiting < Duration::from_secs(1), "{waiting:?}");
}

#[tokio::test]
async fn beyond_a_number_of_waiters_peers_are_sent_elsewhere() {
    let node = Node::new().await;
    let digest = Digest::sha256(b"layer");
    let _expected = node.inflight.expect(digest.clone());
    let seats: Vec<_> = std::iter::from_fn(|| node.inflight.seat()).collect();

    assert_eq!(node.peer(&digest, None, "1000").await.status, 503);
    drop(seats);
    assert_eq!(node.peer(&digest, None, "0").await.status, 404);
}
