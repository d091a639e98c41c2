//! The mirror against peers that misbehave.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use peili::mirror::{self, FetchError, Fetched, Mirror, Wanted};
use peili::oci::distribution::{ByteRange, Span};
use peili::oci::{Digest, Key};
use peili::routing::Router;
use peili::testing::fetch::{read, wanted};
use peili::testing::noise;
use peili::testing::peer::FakePeer;
use peili::testing::router::{FakeRouter, FakeSwarm};

const SIZE: usize = 1_000_000;

/// A mirror in a swarm, and a blob that some of the swarm hold.
struct World {
    swarm: FakeSwarm,
    router: FakeRouter,
    mirror: Mirror,
    metrics: prometheus::Registry,
    blob: Vec<u8>,
    key: Key,
}

impl World {
    fn new() -> Self {
        Self::with(noise(SIZE, 1))
    }

    fn with(blob: Vec<u8>) -> Self {
        let swarm = FakeSwarm::new();
        let router = swarm.join("192.0.2.1:5000".parse().unwrap());
        let config = mirror::Config {
            retries: 3,
            zone: None,
        };
        let metrics = prometheus::Registry::new();
        Self {
            mirror: Mirror::new(
                Arc::new(router.clone()),
                config,
                mirror::Metrics::new(&metrics),
            ),
            metrics,
            key: Key::Content(Digest::sha256(&blob)),
            swarm,
            router,
            blob,
        }
    }

    /// The swarm hears that this peer holds the blob.
    async fn holds(&self, peer: &FakePeer) {
        let router = self.swarm.join(peer.peer().registry[0]);
        router.advertise(vec![self.key.clone()]).await.unwrap();
    }

    fn wanted(&self) -> Wanted {
        wanted(self.key.clone(), &format!("blobs/{}", self.key))
    }

    /// What a metric without labels says now.
    fn told(&self, name: &str) -> u64 {
        let families = self.metrics.gather();
        let family = families.iter().find(|family| family.name() == name);
        let metric = &family.expect(name).get_metric()[0];
        (metric.get_counter().get_value() + metric.get_gauge().get_value()) as u64
    }

    async fn fetch(&self, range: Option<ByteRange>) -> Result<Fetched, FetchError> {
        self.mirror.blob(self.wanted(), range).await
    }
}

#[tokio::test]
async fn what_nobody_holds_is_missed_at_once() {
    let world = World::new();

    let missed = world.fetch(None).await.err().unwrap();

    assert!(matches!(missed, FetchError::NoPeer(_)), "{missed}");
}

#[tokio::test]
async fn a_peer_is_asked_as_a_peer_and_delivers_everything() {
    let world = World::new();
    let peer = FakePeer::serving(world.blob.clone()).spawn().await;
    world.holds(&peer).await;

    let fetched = world.fetch(None).await.unwrap();

    assert_eq!(fetched.total, SIZE as u64);
    assert!(read(fetched).await.unwrap() == world.blob);
    let asked = &peer.asked()[0];
    assert!(asked.is_mirrored, "or it would be mirrored for ever");
    let path = world.wanted().path_and_query;
    assert_eq!(asked.line, format!("GET {path} HTTP/1.1"));
}

#[tokio::test]
async fn ranges_are_asked_for_and_checked() {
    let world = World::new();
    let peer = FakePeer::serving(world.blob.clone()).spawn().await;
    world.holds(&peer).await;
    for (header, start, end) in [
        ("bytes=5-", 5, SIZE),
        ("bytes=7-9", 7, 10),
        ("bytes=-3", SIZE - 3, SIZE),
    ] {
        let fetched = world.fetch(ByteRange::parse(header)).await.unwrap();

        let span = Span {
            start: start as u64,
            end: end as u64,
        };
        assert_eq!((fetched.span, fetched.total), (span, SIZE as u64));
        assert!(read(fetched).await.unwrap() == world.blob[start..end]);
    }

    let beyond = world.fetch(ByteRange::parse("bytes=1000000-")).await;
    let total = match beyond.err().unwrap() {
        FetchError::NotSatisfiable { total, .. } => total,
        other => panic!("{other}"),
    };
    assert_eq!(total, Some(SIZE as u64));
}

#[tokio::test]
async fn peers_that_refuse_or_do_not_have_it_cost_nothing() {
    let world = World::new();
    for _ in 0..5 {
        let gone = FakePeer::gone().await;
        let router = world.swarm.join(gone.registry[0]);
        router.advertise(vec![world.key.clone()]).await.unwrap();
    }
    let mut absent = Vec::new();
    for _ in 0..5 {
        let peer = FakePeer::serving("").answering(404).spawn().await;
        world.holds(&peer).await;
        absent.push(peer);
    }
    let good = FakePeer::serving(world.blob.clone()).spawn().await;
    world.holds(&good).await;

    let fetched = world.fetch(None).await.unwrap();

    assert!(read(fetched).await.unwrap() == world.blob);
}

#[tokio::test]
async fn a_busy_peer_sends_to_others_and_to_nothing_else() {
    let world = World::new();
    let others: [IpAddr; 4] = [
        [127, 0, 0, 2].into(),
        // Nodes are not here, whoever says so.
        [169, 254, 169, 254].into(),
        [0, 0, 0, 0].into(),
        [224, 0, 0, 1].into(),
    ];
    let busy = FakePeer::serving("").busy_and_naming(&others).spawn().await;
    world.holds(&busy).await;
    let port = busy.peer().registry[0].port();
    let good = FakePeer::serving(world.blob.clone());
    let good = good.spawn_at(SocketAddr::new(others[0], port)).await;

    let fetched = world.fetch(None).await.unwrap();

    assert!(read(fetched).await.unwrap() == world.blob);
    assert_eq!(good.asked().len(), 1);
}

#[tokio::test]
async fn when_everybody_is_busy_the_registry_is_asked_at_once() {
    let world = World::new();
    let mut peers = Vec::new();
    for _ in 0..5 {
        let peer = FakePeer::serving("").busy_and_naming(&[]).spawn().await;
        world.holds(&peer).await;
        peers.push(peer);
    }
    let began = Instant::now();

    let missed = world.fetch(None).await.err().unwrap();

    assert!(matches!(missed, FetchError::NoPeer(_)), "{missed}");
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn the_router_hears_who_refused() {
    let world = World::new();
    let gone = FakePeer::gone().await;
    let dead = world.swarm.join(gone.registry[0]);
    dead.advertise(vec![world.key.clone()]).await.unwrap();

    let missed = world.fetch(None).await.err().unwrap();

    assert!(matches!(missed, FetchError::NoPeer(_)), "{missed}");
    assert_eq!(world.router.refusals(), [dead.id().clone()]);
}

#[tokio::test]
async fn a_silent_peer_costs_two_seconds_once_and_then_little() {
    let world = World::new();
    let silent = FakePeer::serving(world.blob.clone()).silent().spawn().await;
    world.holds(&silent).await;

    let began = Instant::now();
    let failed = world.fetch(None).await.err().unwrap();
    assert!(
        matches!(failed, FetchError::Exhausted { tried: 1, .. }),
        "{failed}"
    );
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );

    assert_eq!(world.told("peili_peers_resting"), 1);

    // Nobody else is there, so it gets a chance, and a short one.
    let began = Instant::now();
    let failed = world.fetch(None).await.err().unwrap();
    assert!(
        matches!(failed, FetchError::Exhausted { tried: 1, .. }),
        "{failed}"
    );
    assert!(
        began.elapsed() < Duration::from_millis(1500),
        "{:?}",
        began.elapsed()
    );

    let good = FakePeer::serving(world.blob.clone()).spawn().await;
    world.holds(&good).await;
    let fetched = world.fetch(None).await.unwrap();
    assert!(read(fetched).await.unwrap() == world.blob);
}

#[tokio::test]
async fn a_lookup_that_hangs_is_not_waited_for() {
    let world = World::new();
    world.router.hang_lookups();
    let began = Instant::now();

    let missed = world.fetch(None).await.err().unwrap();

    assert!(matches!(missed, FetchError::NoPeer(_)), "{missed}");
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn manifests_from_slow_peers_share_one_budget() {
    let world = World::new();
    let mut peers = Vec::new();
    for _ in 0..3 {
        let peer = FakePeer::serving(vec![b' '; 1000]).after(Duration::from_millis(900));
        let peer = peer.stalling_after(10).spawn().await;
        world.holds(&peer).await;
        peers.push(peer);
    }
    let began = Instant::now();

    let failed = world.mirror.tagged_manifest(world.wanted()).await;

    assert!(matches!(failed, Err(FetchError::Exhausted { .. })));
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn peers_that_trickle_are_left_for_the_registry() {
    let world = World::new();
    let mut peers = Vec::new();
    for _ in 0..8 {
        let peer = FakePeer::serving(world.blob.clone()).stalling_after(1000);
        let peer = peer.spawn().await;
        world.holds(&peer).await;
        peers.push(peer);
    }
    let mut fetched = world.fetch(None).await.unwrap();
    let mut brought = 0;
    while let Ok(Some(chunk)) = fetched.body.try_next().await {
        brought += chunk.len();
    }
    assert_eq!(brought, 3000, "three of them");

    let again = world.fetch(ByteRange::parse("bytes=3000-")).await;
    let again = again.err().unwrap();
    assert!(matches!(again, FetchError::Hopeless(_)), "{again}");
    let asked: usize = peers.iter().map(|peer| peer.asked().len()).sum();
    assert_eq!(asked, 3, "containerd's retry goes upstream at once");
}

#[tokio::test]
async fn a_tag_is_not_answered_with_what_is_no_manifest() {
    let world = World::new();
    for content in ["", "<html>hello</html>", "{}"] {
        let peer = FakePeer::serving(content).spawn().await;
        world.holds(&peer).await;
        let refused = world.mirror.tagged_manifest(world.wanted()).await;
        assert!(refused.is_err(), "{content:?}");
    }
}

#[tokio::test]
async fn whoever_answers_first_wins_the_hedge() {
    let world = World::new();
    let mut slow = Vec::new();
    for _ in 0..2 {
        // Longer than until the hedge, shorter than until anybody is given up.
        let peer = FakePeer::serving(world.blob.clone());
        let peer = peer.after(Duration::from_millis(1300)).spawn().await;
        world.holds(&peer).await;
        slow.push(peer);
    }

    let fetched = world.fetch(None).await.unwrap();

    assert!(read(fetched).await.unwrap() == world.blob);
    let asked: usize = slow.iter().map(|peer| peer.asked().len()).sum();
    assert_eq!(asked, 2, "the second was asked beside the first");
    let told = [
        "peili_attempts_hedged_total",
        "peili_attempts_hedged_won_total",
    ];
    assert_eq!(told.map(|name| world.told(name)), [1, 0]);
}

#[tokio::test]
async fn a_hedge_that_wins_is_counted() {
    // Whom of two strangers is asked first is chance.
    for _ in 0..40 {
        let world = World::new();
        let silent = FakePeer::serving(world.blob.clone()).silent().spawn().await;
        let good = FakePeer::serving(world.blob.clone()).spawn().await;
        world.holds(&silent).await;
        world.holds(&good).await;

        let fetched = world.fetch(None).await.unwrap();

        assert!(read(fetched).await.unwrap() == world.blob);
        let told = [
            "peili_attempts_hedged_total",
            "peili_attempts_hedged_won_total",
        ];
        match told.map(|name| world.told(name)) {
            [0, 0] => assert!(silent.asked().is_empty()),
            told => return assert_eq!(told, [1, 1]),
        }
    }
    panic!("the silent one was never asked first");
}

#[tokio::test]
async fn a_small_blob_with_a_wrong_byte_is_asked_of_another() {
    for _ in 0..20 {
        let world = World::with(noise(2000, 1));
        let mut spoilt = world.blob.clone();
        spoilt[1500] ^= 1;
        let spoilt = FakePeer::serving(spoilt).spawn().await;
        let right = FakePeer::serving(world.blob.clone()).spawn().await;
        world.holds(&spoilt).await;
        world.holds(&right).await;

        let fetched = world.fetch(None).await.unwrap();

        assert_eq!(fetched.total, 2000);
        assert!(read(fetched).await.unwrap() == world.blob);
        if !spoilt.asked().is_empty() {
            assert_eq!(world.told("peili_peers_resting"), 1);
            return;
        }
    }
    panic!("the spoilt one was never asked first");
}

#[tokio::test]
async fn a_small_blob_that_nobody_has_right_is_left_for_the_registry() {
    let world = World::with(noise(2000, 1));
    let spoilt = FakePeer::serving(noise(2000, 2)).spawn().await;
    world.holds(&spoilt).await;

    let missed = world.fetch(None).await.err().unwrap();

    assert!(
        matches!(missed, FetchError::Exhausted { tried: 1, .. }),
        "{missed}"
    );
}

/// The peer of `first` fails in mid-body, and another goes on where it ended.
async fn goes_on_elsewhere(
    world: &World,
    first: peili::testing::peer::Builder,
    bytes: std::ops::RangeInclusive<usize>,
) {
    let first = first.spawn().await;
    world.holds(&first).await;
    let fetched = world.fetch(None).await.unwrap();
    let second = FakePeer::serving(world.blob.clone()).spawn().await;
    world.holds(&second).await;

    assert!(read(fetched).await.unwrap() == world.blob);

    let ranges = second.ranges_asked();
    assert_eq!(ranges.len(), 1, "{ranges:?}");
    let from = ranges[0].strip_prefix("bytes=").unwrap();
    let from = from.split('-').next().unwrap().parse().unwrap();
    assert!(bytes.contains(&from), "{from} bytes had come");
}

#[tokio::test]
async fn a_stalled_peer_is_replaced_without_losing_a_byte() {
    let world = World::new();
    let stalling = FakePeer::serving(world.blob.clone()).stalling_after(300_000);

    goes_on_elsewhere(&world, stalling, 300_000..=300_000).await;
}

#[tokio::test]
async fn a_peer_that_ends_short_is_replaced() {
    let world = World::new();
    let ending = FakePeer::serving(world.blob.clone()).ending_after(300_000);

    goes_on_elsewhere(&world, ending, 300_000..=300_000).await;
}

#[tokio::test]
async fn a_peer_that_resets_is_replaced() {
    let world = World::new();
    let resetting = FakePeer::serving(world.blob.clone()).resetting_after(300_000);

    goes_on_elsewhere(&world, resetting, 1..=300_000).await;
}

const MB: usize = 1_000_000;

/// A body of 20 MB that has begun to come from a node at 1 MB/s, its only holder.
async fn slowly() -> (World, FakePeer, Fetched) {
    let world = World::with(noise(20 * MB, 1));
    let serving = FakePeer::serving(world.blob.clone());
    let slow = serving.bringing(MB).spawn().await;
    world.holds(&slow).await;
    let fetched = world.fetch(None).await.unwrap();
    (world, slow, fetched)
}

#[tokio::test]
async fn a_slow_holder_is_left_for_another_one_and_asked_after_it() {
    let (world, slow, fetched) = slowly().await;
    let other = FakePeer::serving(world.blob.clone()).spawn().await;
    world.holds(&other).await;

    let bytes = read(fetched).await.unwrap();

    assert!(bytes == world.blob, "{} bytes", bytes.len());
    // What is on the way when it is left is in the buffers of a connection.
    assert!(slow.sent() < 10 * MB as u64, "{} bytes", slow.sent());
    assert!(other.ranges_asked()[0].starts_with("bytes="), "the rest");
    for _ in 0..10 {
        let asked = slow.asked().len();
        read(world.fetch(None).await.unwrap()).await.unwrap();
        assert_eq!(slow.asked().len(), asked, "it is known to be slow");
    }
}

#[tokio::test]
async fn a_slow_holder_is_borne_where_there_is_no_other() {
    let world = World::with(noise(3 * MB, 1));
    let serving = FakePeer::serving(world.blob.clone());
    let slow = serving.bringing(MB).spawn().await;
    world.holds(&slow).await;

    let bytes = read(world.fetch(None).await.unwrap()).await.unwrap();

    assert!(bytes == world.blob, "{} bytes", bytes.len());
    assert_eq!(slow.asked().len(), 1);
}

#[tokio::test]
async fn a_slow_holder_is_gone_back_to_when_the_other_fails() {
    let (world, slow, fetched) = slowly().await;
    let serving = FakePeer::serving(world.blob.clone());
    let other = serving.ending_after(15 * MB).spawn().await;
    world.holds(&other).await;

    let bytes = read(fetched).await.unwrap();

    assert!(bytes == world.blob, "{} bytes", bytes.len());
    assert_eq!(slow.asked().len(), 2);
}

#[tokio::test]
async fn a_body_that_nobody_can_finish_ends_with_an_error_and_no_wrong_byte() {
    let world = World::new();
    let lying = FakePeer::serving(world.blob.clone()).lying_about_its_length_by(1000);
    let lying = lying.ending_after(300_000).spawn().await;
    world.holds(&lying).await;
    let mut fetched = world.fetch(None).await.unwrap();
    // It speaks of another length, so it cannot go on with this body.
    let honest = FakePeer::serving(world.blob.clone()).spawn().await;
    world.holds(&honest).await;

    let mut read = Vec::new();
    let error = loop {
        match fetched.body.try_next().await {
            Ok(Some(chunk)) => read.extend_from_slice(&chunk),
            Ok(None) => panic!("as if it were whole"),
            Err(e) => break e,
        }
    };

    assert!(read == world.blob[..300_000], "{} bytes", read.len());
    assert!(error.to_string().contains("peers failed"), "{error}");
}

#[tokio::test]
async fn a_manifest_with_another_digest_is_not_taken() {
    let manifest = br#"{"schemaVersion":2,"layers":[]}"#.to_vec();
    let digest = Digest::sha256(&manifest);
    let world = World {
        key: digest.clone().into(),
        ..World::new()
    };
    let wrong = FakePeer::serving("{}").spawn().await;
    world.holds(&wrong).await;

    let refused = world.mirror.manifest(world.wanted(), &digest).await;
    assert!(matches!(refused, Err(FetchError::Exhausted { .. })));

    let right = FakePeer::serving(manifest.clone()).spawn().await;
    world.holds(&right).await;
    let fetched = world
        .mirror
        .manifest(world.wanted(), &digest)
        .await
        .unwrap();
    assert_eq!(fetched.bytes, manifest);
}

#[tokio::test]
async fn a_manifest_is_not_read_without_end() {
    let world = World::new();
    let huge = FakePeer::serving(vec![b' '; 9 << 20]).spawn().await;
    world.holds(&huge).await;

    let refused = world.mirror.tagged_manifest(world.wanted()).await;

    assert!(matches!(refused, Err(FetchError::Exhausted { .. })));
}
