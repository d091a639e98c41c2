//! Registries that answer anything: bounded time, bounded bytes, nobody is followed elsewhere, and the next holder is asked.

use std::time::{Duration, Instant};

use futures::future::join_all;
use peili::mirror::{FetchError, Fetched, Mirror};
use peili::oci::distribution::ByteRange;
use peili::oci::{Digest, Key};
use peili::routing::Router as _;
use peili::testing;
use peili::testing::conformance::routing::eventually;
use peili::testing::fetch::{read, wanted};
use peili::testing::noise;
use peili::testing::peer::FakePeer;
use peili::testing::router::FakeSwarm;

use crate::liar::{KAD, Liar};
use crate::place::Traps;
use crate::records::{add_provider, record_key};
use crate::registry::{Hostile, Says};
use crate::whole::Peili;

/// A first byte is waited for two seconds, and the machine is busy.
const BOUND: Duration = Duration::from_secs(5);
/// What a peer can make this node take: a head of 1 MiB, and what two kernels keep of a connection.
const TAKEN: u64 = 24 << 20;
/// So short that it is read whole before a byte of it is handed on.
const SMALL: usize = 2000;

struct World {
    swarm: FakeSwarm,
    mirror: Mirror,
    blob: Vec<u8>,
    key: Key,
}

impl World {
    fn with(size: usize) -> Self {
        let (swarm, blob) = (FakeSwarm::new(), noise(size, 1));
        let router = swarm.join("192.0.2.1:5000".parse().unwrap());
        Self {
            mirror: testing::registry::mirror(router, &prometheus::Registry::new()),
            key: Key::Content(Digest::sha256(&blob)),
            swarm,
            blob,
        }
    }

    async fn holds(&self, at: std::net::SocketAddr) {
        let router = self.swarm.join(at);
        router.advertise(vec![self.key.clone()]).await.unwrap();
    }

    async fn fetch(&self, range: Option<&str>) -> Result<Fetched, FetchError> {
        let wanted = wanted(self.key.clone(), &format!("blobs/{}", self.key));
        self.mirror
            .blob(wanted, range.and_then(ByteRange::parse))
            .await
    }
}

/// Head and body.
fn said(head: &str, body: &[u8]) -> Vec<u8> {
    [&Says::head(head), body].concat()
}

/// What no small blob may come of.
fn nothing_of_use(trap: std::net::SocketAddr) -> Vec<(String, Says)> {
    let right = noise(SMALL, 1);
    let wrong = noise(SMALL, 2);
    let ok = "HTTP/1.1 200 OK";
    let length = format!("{ok}\ncontent-length: {SMALL}");
    let mut all: Vec<(String, Says)> = Vec::new();
    let mut case = |name: &str, says| all.push((name.to_string(), says));
    for status in [300, 301, 302, 303, 307, 308] {
        let head = format!(
            "HTTP/1.1 {status} Moved\ncontent-length: 0\nlocation: http://{trap}/latest/meta-data/\n\
             refresh: 0; url=http://{trap}/\nalt-svc: http/1.1=\"{trap}\""
        );
        case(&format!("{status}"), Says::Once(Says::head(&head)));
    }
    let unauthorized = format!(
        "HTTP/1.1 401 Who\ncontent-length: 0\nwww-authenticate: Bearer realm=\"http://{trap}/token\""
    );
    case("401", Says::Once(Says::head(&unauthorized)));
    for status in ["100 Continue", "102 Processing", "103 Early Hints"] {
        let more = Says::head(&format!("HTTP/1.1 {status}"));
        case(status, Says::ForEver(Vec::new(), more));
    }
    let upgrade = Says::head("HTTP/1.1 101 Switching\nconnection: upgrade\nupgrade: x");
    case("101", Says::ForEver(upgrade, vec![b'x'; 4096]));
    let begun = format!("{ok}\r\nx: ").into_bytes();
    case("an endless header", Says::ForEver(begun, vec![b'a'; 4096]));
    let lines = b"x: y\r\n".repeat(1000);
    let begun = format!("{ok}\r\n").into_bytes();
    case(
        "endless headers",
        Says::ForEver(begun.clone(), lines.clone()),
    );
    let many = [
        &begun[..],
        &lines.repeat(100),
        b"content-length: 2000\r\n\r\n",
        &right,
    ]
    .concat();
    case("100,000 headers", Says::AndStalls(many));
    let long = said(&format!("{length}\nx: {}", "a".repeat(2 << 20)), &right);
    case("a header of 2 MiB", Says::AndStalls(long));
    let tenth = Duration::from_millis(100);
    let slow = Says::head(&format!("{length}\nx: {}", "a".repeat(1000)));
    case("a slow head", Says::Slowly(Vec::new(), slow, tenth));
    let slow = Says::Slowly(Says::head(&length), right.clone(), tenth);
    case("a slow body", slow);
    case(
        "a stalled body",
        Says::AndStalls(said(&length, &right[..100])),
    );
    case("half a body", Says::Once(said(&length, &right[..100])));
    case("nothing", Says::AndStalls(Vec::new()));
    case("no length", Says::Once(said(ok, &right)));
    let chunk = [b"400\r\n", &vec![b'x'; 1024][..], b"\r\n"].concat();
    let chunked = format!("{ok}\ntransfer-encoding: chunked");
    case(
        "chunks without end",
        Says::ForEver(Says::head(&chunked), chunk.clone()),
    );
    let both = format!("{chunked}\ncontent-length: {SMALL}");
    case(
        "chunks and a length",
        Says::ForEver(Says::head(&both), chunk),
    );
    for (name, length) in [
        ("longest", "18446744073709551615"),
        ("too long", "18446744073709551616"),
        ("less than nothing", "-1"),
        ("one less", "1999"),
        ("one more", "2001"),
        ("two lengths", "2000\ncontent-length: 3000"),
        ("a list", "2000, 2000"),
    ] {
        let head = format!("{ok}\ncontent-length: {length}");
        case(name, Says::Once(said(&head, &right)));
    }
    let zipped = format!("{length}\ncontent-encoding: gzip");
    case("gzip", Says::Once(said(&zipped, &wrong)));
    case("wrong bytes", Says::Once(said(&length, &wrong)));
    case(
        "wrong bytes without end",
        Says::ForEver(Says::head(&length), wrong.clone()),
    );
    let part =
        format!("HTTP/1.1 206 Part\ncontent-length: {SMALL}\ncontent-range: bytes 0-1999/2000");
    case(
        "a part that nobody asked for",
        Says::Once(said(&part, &right)),
    );
    let banner = b"SSH-2.0-OpenSSH_9.6\r\n".to_vec();
    case("another protocol", Says::ForEver(Vec::new(), banner));
    case("TLS", Says::Once(vec![0x16, 3, 1, 0, 200, 1, 0, 0]));
    case("HTTP/2", Says::Once(b"\0\0\x12\x04\0\0\0\0\0".to_vec()));
    all
}

#[tokio::test]
async fn whatever_a_registry_answers_takes_seconds_and_mebibytes_at_most_and_the_next_is_asked() {
    let traps = Traps::default();
    let trap = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = trap.local_addr().unwrap();
    drop(trap);
    traps.set([at]).await;

    let tried = nothing_of_use(at).into_iter().map(async |(name, says)| {
        // Alone.
        let world = World::with(SMALL);
        let hostile = Hostile::saying(says.clone()).await;
        world.holds(hostile.address).await;
        let began = Instant::now();
        let missed = world.fetch(None).await.is_err();
        let took = began.elapsed();
        let (bytes, asked) = (hostile.said(), hostile.asked().len());
        assert!(missed && asked == 1, "{name}: asked {asked} times");
        assert!(took < BOUND, "{name}: {took:?}");
        assert!(bytes < TAKEN, "{name}: {bytes} bytes were taken");
        // Beside one that is well, until it was the first to be asked.
        for _ in 0..60 {
            let world = World::with(SMALL);
            let hostile = Hostile::saying(says.clone()).await;
            let well = FakePeer::serving(world.blob.clone()).spawn().await;
            world.holds(hostile.address).await;
            world.holds(well.peer().registry[0]).await;
            let fetched = world.fetch(None).await;
            let fetched = fetched.unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(read(fetched).await.unwrap() == world.blob, "{name}");
            if !hostile.asked().is_empty() {
                return;
            }
        }
        panic!("{name}: never asked first");
    });
    join_all(tried).await;

    assert_eq!(traps.knocks(), []);
}

#[tokio::test]
async fn of_a_large_blob_no_byte_more_comes_than_its_length_and_a_part_is_the_part_that_was_asked_for()
 {
    const LARGE: usize = 1_000_000;
    let blob = noise(LARGE, 1);
    let head = format!("HTTP/1.1 200 OK\ncontent-length: {LARGE}");
    let more = Says::ForEver(said(&head, &blob), vec![b'x'; 4096]);
    let world = World::with(LARGE);
    let hostile = Hostile::saying(more).await;
    world.holds(hostile.address).await;

    let fetched = world.fetch(None).await.unwrap();
    assert_eq!(fetched.total, LARGE as u64);
    assert!(read(fetched).await.unwrap() == world.blob);
    assert!(hostile.said() < TAKEN);

    for range in [
        "bytes 0-99/1000000",
        "bytes 101-200/1000000",
        "bytes 100-99/1000000",
        "bytes 100-199/150",
        "bytes 100-199/*",
        "100-199",
        "",
    ] {
        let head = format!("HTTP/1.1 206 Part\ncontent-length: 100\ncontent-range: {range}");
        let world = World::with(LARGE);
        let hostile = Hostile::saying(Says::Once(said(&head, &blob[..100]))).await;
        world.holds(hostile.address).await;
        let missed = world.fetch(Some("bytes=100-199")).await;
        assert!(missed.is_err(), "{range}");
        assert_eq!(hostile.asked().len(), 1);
    }
}

#[tokio::test]
async fn what_containerd_says_to_its_registry_no_peer_hears() {
    let node = Peili::start("127.0.9.31", None).await;
    let liar = Liar::at("/ip4/127.0.9.33/tcp/0").await;
    let absent = Says::head("HTTP/1.1 404 No\ncontent-length: 0");
    let registry = Hostile::at("127.0.9.33:5907", Says::Once(absent)).await;
    liar.dial(node.router()).await;
    node.node.knows(1).await;
    let digest = Digest::sha256(b"layer");
    let key = record_key(&Key::Content(digest.clone()));
    let at = ["/ip4/127.0.9.33/tcp/5001".parse().unwrap()];
    let told = add_provider(&key, liar.id, &at);
    liar.says(node.id(), KAD, told).await.unwrap();
    let path = format!("/v2/app/blobs/{digest}?ns=registry.test");

    eventually("it is asked", async || {
        let headers = [
            ("authorization", "Bearer hunter2"),
            ("proxy-authorization", "Basic hunter2"),
            ("cookie", "session=hunter2"),
            ("x-registry-auth", "hunter2"),
            ("x-peili-node-token", "hunter2"),
            ("user-agent", "containerd/v2.0 hunter2"),
        ];
        let answer = node.get(&path, &headers).await;
        assert_eq!(answer.status, 404, "{}", answer.head);
        (!registry.asked().is_empty()).then_some(())
    })
    .await;

    for head in registry.asked() {
        assert!(head.starts_with(&format!("get {path} http/1.1")), "{head}");
        assert!(!head.contains("hunter2"), "{head}");
        for name in ["authorization", "cookie", "token", "auth"] {
            assert!(!head.contains(name), "{head}");
        }
    }
}
