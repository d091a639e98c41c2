//! Messages between real routers and the points where they meet: zones, strangers, a thousand callers at once, and a
//! cluster of newcomers and dead nodes that must agree on one node for each content.
//!
//! Figures are printed (`--nocapture`); `PEILI_TEST_NODES=200` makes the large cluster larger, and wants more cores than two
//! and more than 20,000 descriptors. The bounds asserted here
//! leave room for a machine that is busy with other tests.

#[allow(dead_code, reason = "each test uses its part")]
mod nodes;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use libp2p::kad::{KBucketKey, RecordKey};
use nodes::other::Other;
use nodes::{KadCluster, Node, config};
use peili::oci::Digest;
use peili::routing::bootstrap::Bootstrap;
use peili::routing::kad::Kad;
use peili::routing::messenger::{Meeting, Messenger, Unreachable};
use peili::routing::{Peer, PeerId, Router};
use peili::testing::conformance::routing::{Cluster, all, content, eventually};
use sha2::{Digest as _, Sha256};

/// As long as a machine that is busy may take.
const LIMIT: Duration = Duration::from_secs(5);

/// What a meeting point is given to answer.
const ANSWER: Duration = Duration::from_millis(250);

/// Answers every call with what it said.
fn echo(cluster: &mut KadCluster, node: usize) {
    let mut calls = cluster.calls(node);
    tokio::spawn(async move {
        while let Some(call) = calls.recv().await {
            // Who waits no longer wants no answer.
            let _ = call.answer.send(call.message);
        }
    });
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() - 1) * percent / 100]
}

#[tokio::test]
async fn where_a_node_stands_is_told_wherever_it_is_named() {
    let mut cluster = KadCluster::of(1).await;
    let seed = Bootstrap::Static(vec![cluster.0[0].address()]);
    for (number, zone) in [(1, Some("north")), (2, Some("south")), (3, None)] {
        let ip: IpAddr = format!("127.0.0.{}", 1 + number).parse().unwrap();
        let config = peili::routing::kad::Config {
            bootstrap: Some(seed.clone()),
            zone: zone.map(str::to_string),
            ..config(ip, SocketAddr::new(ip, 0))
        };
        cluster.0.push(Node::with(config).await);
        let told = cluster.peer(number);
        assert_eq!(told.zone.as_deref(), zone);
    }
    let mut calls = cluster.calls(0);

    // With `find` each peer must be as the cluster has it, its zone included.
    for node in [1, 2, 3] {
        let kad = &cluster.0[node].kad;
        kad.advertise(vec![content("layer")]).await.unwrap();
    }
    let expected: HashSet<(PeerId, Option<Arc<str>>)> = [1, 2, 3]
        .map(|node| cluster.peer(node))
        .map(|peer| (peer.id, peer.zone))
        .into();
    eventually("every provider is found with its zone", async || {
        let found = all(&cluster.0[0].kad, &content("layer")).await;
        let found: HashSet<_> = found.into_iter().map(|peer| (peer.id, peer.zone)).collect();
        (found == expected).then_some(())
    })
    .await;
    let meeting = Meeting::Repository("docker.io/library/nginx".into());
    eventually("everybody is named with its zone", async || {
        let closest = cluster.0[0].kad.closest(&meeting).await;
        let named = |node: usize| closest.contains(&cluster.peer(node));
        (0..4).all(named).then_some(())
    })
    .await;

    let answered = tokio::spawn(async move {
        let call = calls.recv().await.unwrap();
        call.answer.send(Bytes::new()).unwrap();
        call.from
    });
    let to = cluster.peer(0).id;
    let answer = cluster.0[2].kad.call(&to, Bytes::new(), LIMIT).await;
    assert_eq!(answer, Ok(Bytes::new()));
    assert_eq!(answered.await.unwrap(), cluster.peer(2));
}

#[tokio::test]
async fn a_node_that_knows_no_messages_is_a_stranger_and_is_not_named() {
    let cluster = KadCluster::of(3).await;
    let stranger = Other::start("127.0.0.60", Some(cluster.0[0].address()));
    let stranger = stranger.await.id();
    cluster.0[0].knows(3).await;

    let message = Bytes::from_static(b"hello");
    let answer = cluster.0[0].kad.call(&stranger, message, LIMIT).await;

    assert_eq!(answer, Err(Unreachable::Stranger));
    for n in 0..10 {
        let meeting = Meeting::Repository(format!("docker.io/library/image-{n}"));
        let expected: HashSet<PeerId> = (0..3).map(|node| cluster.peer(node).id).collect();
        eventually("those are named who understand", async || {
            let closest = cluster.0[0].kad.closest(&meeting).await;
            let named: HashSet<PeerId> = closest.into_iter().map(|peer| peer.id).collect();
            assert!(!named.contains(&stranger), "{named:?}");
            (named == expected).then_some(())
        })
        .await;
    }
    // It remains one that holds content.
    cluster.0[1].knows(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_callers_in_one_moment_are_all_answered() {
    const CALLERS: usize = 20;
    const CALLS: usize = 50;
    let mut cluster = KadCluster::of(1 + CALLERS).await;
    echo(&mut cluster, 0);
    let called = cluster.peer(0).id;

    let begin = Instant::now();
    let calls = (0..CALLERS * CALLS).map(|n| {
        let (kad, called) = (&cluster.0[1 + n % CALLERS].kad, &called);
        async move {
            let message = Bytes::from(vec![n as u8; 200]);
            let begin = Instant::now();
            let answer = kad.call(called, message.clone(), LIMIT).await;
            assert_eq!(answer, Ok(message), "call {n}");
            begin.elapsed()
        }
    });
    let mut took = join_all(calls).await;

    took.sort();
    println!(
        "{} calls answered within {:?}: p50 {:?}, p99 {:?}",
        took.len(),
        begin.elapsed(),
        percentile(&took, 50),
        percentile(&took, 99),
    );
}

/// Whom an asker would meet: the first that is named and answers. And how many were named before that do not, and how long
/// the search took.
struct Met {
    first: PeerId,
    dead: usize,
    search: Duration,
    calls: Duration,
}

async fn meet(kad: &Kad, meeting: &Meeting) -> Met {
    let begin = Instant::now();
    let closest = kad.closest(meeting).await;
    let search = begin.elapsed();
    for (dead, peer) in closest.iter().enumerate() {
        let alive = peer.id == *kad.peer_id()
            || kad.call(&peer.id, Bytes::new(), ANSWER).await == Ok(Bytes::new());
        if alive {
            return Met {
                first: peer.id.clone(),
                dead,
                search,
                calls: begin.elapsed() - search,
            };
        }
    }
    unreachable!("the asker itself is named and alive: {closest:?}")
}

/// The name of the node that everybody would meet who knew all of them.
fn nearest<'a>(digest: &Digest, peers: impl Iterator<Item = &'a Peer>) -> PeerId {
    let mut key = vec![0x12, 0x20];
    key.extend_from_slice(&Sha256::digest(digest.to_string()));
    let place = KBucketKey::from(RecordKey::from(key));
    let distance = |peer: &&Peer| {
        let id: libp2p::PeerId = peer.id.as_str().parse().unwrap();
        place.distance(&KBucketKey::from(id))
    };
    peers.min_by_key(distance).unwrap().id.clone()
}

/// Waits until those who started together know each other: some of them meet at the same node for five images in a row.
async fn settled(cluster: &KadCluster) {
    // 200 nodes on two cores take more than half a minute.
    const DEADLINE: Duration = Duration::from_secs(180);
    // More searches at once than two cores get through in their 250 ms would never agree.
    const ASKERS: usize = 8;
    let (begin, mut in_a_row) = (Instant::now(), 0);
    for n in 0.. {
        let meeting = Meeting::Repository(format!("docker.io/library/image-{n}"));
        let asked = cluster.0.iter().step_by(cluster.0.len().div_ceil(ASKERS));
        let named = join_all(asked.map(|node| node.kad.closest(&meeting))).await;
        let firsts: HashSet<&PeerId> = named.iter().map(|named| &named[0].id).collect();
        in_a_row = if firsts.len() == 1 { in_a_row + 1 } else { 0 };
        if in_a_row == 5 {
            return;
        }
        assert!(begin.elapsed() < DEADLINE, "they do not settle");
    }
}

/// A fifth of the nodes are just there, and a tenth die without a word. Whoever asks for the same content in the same
/// moment should meet at the same node; where two meet apart, the registry is asked once more than it need be.
#[tokio::test(flavor = "multi_thread")]
async fn newcomers_and_dead_nodes_do_not_part_those_who_ask_for_the_same() {
    const CONTENTS: usize = 50;
    const ASKERS: usize = 20;
    let nodes = match std::env::var("PEILI_TEST_NODES") {
        Ok(nodes) => nodes.parse().expect("a number of nodes, 254 at the most"),
        Err(_) => 60,
    };
    let (late, dead) = (nodes / 5, nodes / 10);
    let begin = Instant::now();
    let mut cluster = KadCluster::of(nodes - late).await;
    settled(&cluster).await;
    let old = begin.elapsed();
    let seed = Bootstrap::Static(vec![cluster.0[0].address()]);
    let newcomers = (nodes - late..nodes).map(|n| Node::start(n, Some(seed.clone())));
    cluster.0.extend(join_all(newcomers).await);
    for node in &cluster.0[nodes - late..] {
        node.ready().await;
    }
    let all = begin.elapsed() - old;
    for node in 0..nodes {
        echo(&mut cluster, node);
    }
    // Old ones and newcomers, and never the seed.
    let killed: HashSet<usize> = (0..dead).map(|n| nodes - 1 - n * (nodes / dead)).collect();
    for node in &killed {
        cluster.kill(*node).await;
    }
    let alive: Vec<usize> = (0..nodes).filter(|n| !killed.contains(n)).collect();
    let peers: Vec<Peer> = alive.iter().map(|node| cluster.peer(*node)).collect();

    let (mut together, mut right, mut named_dead) = (0, 0, 0);
    let (mut searches, mut calls) = (Vec::new(), Vec::new());
    for n in 0..CONTENTS {
        let digest = Digest::sha256(&n.to_be_bytes());
        let meeting = Meeting::Content(digest.clone());
        let askers = (0..ASKERS).map(|i| alive[(n * 7 + i * alive.len() / ASKERS) % alive.len()]);
        let met = join_all(askers.map(|node| meet(&cluster.0[node].kad, &meeting))).await;

        let nearest = nearest(&digest, peers.iter());
        let firsts: HashSet<&PeerId> = met.iter().map(|met| &met.first).collect();
        together += usize::from(firsts.len() == 1);
        right += met.iter().filter(|met| met.first == nearest).count();
        named_dead += met.iter().map(|met| met.dead).sum::<usize>();
        searches.extend(met.iter().map(|met| met.search));
        calls.extend(met.iter().map(|met| met.calls));
    }

    searches.sort();
    calls.sort();
    println!(
        "{nodes} nodes: {} ready after {old:?}, {late} more after {all:?}, {dead} killed; \
         {together} of {CONTENTS} contents have one meeting point, {right} of {} askers met the nearest, \
         {named_dead} dead ones were named; search p50 {:?} p99 {:?}, calls p50 {:?} p99 {:?}",
        nodes - late,
        CONTENTS * ASKERS,
        percentile(&searches, 50),
        percentile(&searches, 99),
        percentile(&calls, 50),
        percentile(&calls, 99),
    );
    // Those who part ask in the first second or two, while twelve nodes join on the two cores of a runner.
    assert!(together * 5 >= CONTENTS * 4, "{together} of {CONTENTS}");
}
