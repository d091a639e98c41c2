//! Real routers over TCP on loopback: the contract that every router keeps, and what is the DHT's own.

#[allow(dead_code, reason = "each test uses its part")]
mod nodes;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use futures::StreamExt;
use nodes::other::Other;
use nodes::{KadCluster, Node, REGISTRY, config, multiaddr};
use peili::readiness::Readiness;
use peili::routing::Router;
use peili::routing::bootstrap::Bootstrap;
use peili::routing::kad;
use peili::testing::conformance::routing::{Cluster, all, content, eventually, find};

peili::routing_conformance!(KadCluster);

#[tokio::test]
async fn a_node_without_anybody_else_is_ready_and_finds_nothing() {
    for bootstrap in [None, Some(Bootstrap::Static(vec![]))] {
        let node = Node::start(0, bootstrap).await;
        node.ready().await;

        node.kad.advertise(vec![content("layer")]).await.unwrap();
        assert_eq!(all(&node.kad, &content("layer")).await, []);
    }
}

#[tokio::test]
async fn a_node_that_finds_only_itself_is_ready() {
    // It is told an address that it does not know to be its own.
    let listen: SocketAddr = "0.0.0.0:0".parse().unwrap();
    let probe = std::net::TcpListener::bind("127.0.0.77:0").unwrap();
    let port = probe.local_addr().unwrap().port();
    drop(probe);
    let itself = multiaddr(SocketAddr::new("127.0.0.77".parse().unwrap(), port));

    let node = Node::bound(
        "127.0.0.78".parse().unwrap(),
        SocketAddr::new(listen.ip(), port),
        Some(Bootstrap::Static(vec![itself])),
    )
    .await;

    node.ready().await;
}

#[tokio::test]
async fn a_node_whose_neighbours_all_refuse_is_ready_soon() {
    let closed = std::net::TcpListener::bind("127.0.0.79:0").unwrap();
    let address = multiaddr(closed.local_addr().unwrap());
    drop(closed);

    let node = Node::start(0, Some(Bootstrap::Static(vec![address]))).await;
    assert_eq!(
        node.readiness.awaited(),
        ["routing: looking for other nodes"]
    );

    node.ready().await;
}

#[tokio::test]
async fn a_node_waits_for_neighbours_that_do_not_answer_and_says_so() {
    // Accepted, and then silence.
    let silent = tokio::net::TcpListener::bind("127.0.0.80:0").await.unwrap();
    let address = multiaddr(silent.local_addr().unwrap());

    let node = Node::start(0, Some(Bootstrap::Static(vec![address]))).await;
    let _connection = silent.accept().await.unwrap();

    assert_eq!(
        node.readiness.awaited(),
        [format!(
            "routing: connecting to {}",
            multiaddr(silent.local_addr().unwrap())
        )]
    );
}

#[tokio::test]
async fn what_was_announced_before_others_came_is_found_by_them() {
    let first = Node::start(0, Some(Bootstrap::Static(vec![]))).await;
    first.ready().await;
    first.kad.advertise(vec![content("layer")]).await.unwrap();

    let seed = Bootstrap::Static(vec![first.address()]);
    let mut cluster = KadCluster(vec![first]);
    for number in 1..5 {
        let node = Node::start(number, Some(seed.clone())).await;
        cluster.0.push(node);
    }

    for asking in 1..5 {
        find(&cluster, asking, &content("layer"), &[0]).await;
    }
}

#[tokio::test]
async fn a_node_that_listens_everywhere_is_told_only_where_it_says() {
    let everywhere: SocketAddr = "0.0.0.0:0".parse().unwrap();
    let mut cluster = KadCluster::of(2).await;
    let seed = Bootstrap::Static(vec![cluster.0[0].address()]);
    let ip: IpAddr = "127.0.0.90".parse().unwrap();
    cluster
        .0
        .push(Node::bound(ip, everywhere, Some(seed)).await);
    cluster.0[2].ready().await;
    cluster.0[2]
        .kad
        .advertise(vec![content("layer")])
        .await
        .unwrap();

    for asking in 0..2 {
        let found = find(&cluster, asking, &content("layer"), &[2]).await;
        assert_eq!(found[0].registry, [SocketAddr::new(ip, REGISTRY)]);
    }
}

#[tokio::test]
async fn a_node_that_restarts_where_it_was_keeps_its_name_and_is_found_there() {
    let data = tempfile::tempdir().unwrap();
    let mut cluster = KadCluster::of(3).await;
    let seed = Bootstrap::Static(vec![cluster.0[0].address()]);
    let at = |ip: &str| kad::Config {
        data_dir: Some(data.path().to_path_buf()),
        bootstrap: Some(seed.clone()),
        ..config(ip.parse().unwrap(), format!("{ip}:0").parse().unwrap())
    };
    cluster.0.push(Node::with(at("127.0.0.91")).await);
    cluster.0[3]
        .kad
        .advertise(vec![content("layer")])
        .await
        .unwrap();
    let before = find(&cluster, 1, &content("layer"), &[3]).await;

    // The pod is replaced: the same node, another address.
    cluster.kill(3).await;
    cluster.0[3] = Node::with(at("127.0.0.92")).await;
    cluster.0[3]
        .kad
        .advertise(vec![content("layer")])
        .await
        .unwrap();

    assert_eq!(cluster.peer(3).id, before[0].id);
    for asking in 0..3 {
        eventually("only the new address is told", async || {
            let found = all(&cluster.0[asking].kad, &content("layer")).await;
            (found == [cluster.peer(3)]).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_node_that_comes_back_is_offered_again() {
    let mut cluster = KadCluster::of(3).await;
    cluster.0[1]
        .kad
        .advertise(vec![content("layer")])
        .await
        .unwrap();
    find(&cluster, 0, &content("layer"), &[1]).await;

    cluster.kill(1).await;
    let dead = cluster.peer(1).id;
    eventually("the dead node is forgotten", async || {
        cluster.0[0].kad.refused(&dead);
        let found = all(&cluster.0[0].kad, &content("layer")).await;
        found.is_empty().then_some(())
    })
    .await;
    let seed = Bootstrap::Static(vec![cluster.0[0].address()]);
    cluster.0[1] = Node::start(1, Some(seed)).await;
    cluster.0[1]
        .kad
        .advertise(vec![content("layer")])
        .await
        .unwrap();

    find(&cluster, 0, &content("layer"), &[1]).await;
}

#[tokio::test]
async fn a_node_that_lost_everybody_looks_for_them_at_once() {
    let mut cluster = KadCluster::of(2).await;
    let address = cluster.0[0].kad.listen_addrs()[0];

    cluster.kill(0).await;
    let known = cluster.0[1].metrics();
    assert!(known.contains("peili_peers{state=\"known\"} 1"), "{known}");
    eventually("the only peer is forgotten", async || {
        all(&cluster.0[1].kad, &content("layer")).await;
        let now = cluster.0[1].metrics();
        let has =
            |state, count| now.contains(&format!("peili_peers{{state=\"{state}\"}} {count}\n"));
        (has("known", 0) && has("connected", 0) && has("gone", 1)).then_some(())
    })
    .await;
    // It does not know anybody and waits to be found.
    cluster.0[0] = Node::bound(address.ip(), address, None).await;

    eventually("they know each other again", async || {
        let is_one = |node: &Node, state| {
            let line = format!("peili_peers{{state=\"{state}\"}} 1\n");
            node.metrics().contains(&line)
        };
        let known = |node| is_one(node, "known") && is_one(node, "connected");
        cluster.0.iter().all(known).then_some(())
    })
    .await;
}

/// Its first search met somebody who knew nobody yet, as those do who came in the same moment.
#[tokio::test]
async fn a_node_that_knows_few_asks_them_again_whom_they_know() {
    let (first, late) = (
        Other::start("127.0.0.61", None).await,
        Other::start("127.0.0.62", None).await,
    );
    let node = Node::start(0, Some(Bootstrap::Static(vec![first.address.clone()]))).await;
    // Nothing is told before the first search is over.
    node.kad.advertise(vec![content("layer")]).await.unwrap();
    eventually("its first search is over", async || {
        let told = "peili_announcements_total{result=\"ok\"}";
        (counter(&node.metrics(), told) == 1).then_some(())
    })
    .await;
    assert_eq!(node.peers_in("known"), 1);

    first.knows(&late);

    node.knows(2).await;
}

#[tokio::test]
async fn a_peer_that_hangs_costs_a_search_no_more_than_the_resolve_timeout() {
    let cluster = KadCluster::of(4).await;
    cluster.0[1]
        .kad
        .advertise(vec![content("layer")])
        .await
        .unwrap();
    find(&cluster, 0, &content("layer"), &[1]).await;
    let seed = Bootstrap::Static(vec![cluster.0[0].address()]);
    let (hang, hangs) = tokio::sync::oneshot::channel::<()>();
    let (hanging, is_hanging) = tokio::sync::oneshot::channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (joined, has_joined) = tokio::sync::oneshot::channel();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(async {
            let node = Node::start(9, Some(seed)).await;
            node.ready().await;
            node.kad.advertise(vec![content("its own")]).await.unwrap();
            joined.send(node.kad.peer_id().clone()).unwrap();
            hangs.await.unwrap();
            hanging.send(()).unwrap();
            // Nothing in this runtime moves any more.
            let _ = released.recv();
        });
    });
    let id = has_joined.await.unwrap();
    for node in &cluster.0 {
        eventually("the fifth node is found", async || {
            let found = all(&node.kad, &content("its own")).await;
            found.iter().any(|peer| peer.id == id).then_some(())
        })
        .await;
    }

    hang.send(()).unwrap();
    is_hanging.await.unwrap();
    let mut misses = Vec::new();
    for n in 0..10 {
        let begin = Instant::now();
        let found = all(&cluster.0[n % 4].kad, &content(&format!("nobody's {n}"))).await;
        assert_eq!(found, []);
        misses.push(begin.elapsed());
        find(&cluster, 0, &content("layer"), &[1]).await;
    }
    drop(release);
    thread.join().unwrap();

    misses.sort();
    println!("a miss beside a peer that hangs: {misses:?}");
    assert!(
        misses[0] >= Duration::from_millis(15),
        "nobody hung: {misses:?}"
    );
    assert!(misses[5] < Duration::from_millis(100), "{misses:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_keys_than_may_be_in_flight_are_all_announced() {
    const KEYS: usize = 300;
    let begin = Instant::now();
    let cluster = KadCluster::of(6).await;
    let key = |node: usize, n: usize| content(&format!("layer {n} of node {node}"));
    for (node, at) in cluster.0.iter().enumerate() {
        let keys = (0..KEYS).map(|n| key(node, n)).collect();
        at.kad.advertise(keys).await.unwrap();
    }

    let mut during = Vec::new();
    eventually("every node has announced everything", async || {
        let done = |node: &Node| {
            let all = node.metrics();
            all.contains(&format!(
                "peili_advertised_keys{{kind=\"content\",registry=\"\"}} {KEYS}"
            )) && counter(&all, "peili_announcements_total{result=\"ok\"}") >= KEYS
        };
        cluster.0.iter().all(done).then_some(())
    })
    .await;
    let announced = begin.elapsed();
    for n in 0..KEYS {
        let (holder, asking) = (n % 6, (n + 1) % 6);
        let asked = Instant::now();
        find(&cluster, asking, &key(holder, n), &[holder]).await;
        during.push(asked.elapsed());
    }
    during.sort();
    println!(
        "{} keys announced after {announced:?}; searches p50 {:?} p99 {:?}",
        6 * KEYS,
        during[KEYS / 2],
        during[KEYS * 99 / 100]
    );
    let text = cluster.0[1].metrics();
    assert_eq!(
        counter(&text, "peili_announcements_total{result=\"failed\"}"),
        0
    );
    let hits = "peili_lookup_duration_seconds_count{outcome=\"hit\"}";
    assert!(counter(&text, hits) >= KEYS / 6, "{text}");
}

/// Twenty nodes keep each record, so here most nodes must ask others, and learn from them where the provider is.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_found_by_nodes_that_do_not_keep_it() {
    const NODES: usize = 30;
    const KEYS: usize = 10;
    let begin = Instant::now();
    let cluster = KadCluster::of(NODES).await;
    let key = |n: usize| content(&format!("layer {n}"));
    for n in 0..KEYS {
        let kad = &cluster.0[n].kad;
        kad.advertise(vec![key(n)]).await.unwrap();
    }
    let ready = begin.elapsed();

    let mut searches = Vec::new();
    for asking in 0..NODES {
        for n in (0..KEYS).filter(|n| *n != asking) {
            let asked = Instant::now();
            let found = find(&cluster, asking, &key(n), &[n]).await;
            searches.push(asked.elapsed());
            assert_eq!(found, [cluster.peer(n)]);
        }
    }

    searches.sort();
    println!(
        "{NODES} nodes ready after {ready:?}, everything found after {:?}; searches p50 {:?} p99 {:?} max {:?}",
        begin.elapsed(),
        searches[searches.len() / 2],
        searches[searches.len() * 99 / 100],
        searches[searches.len() - 1],
    );
}

fn counter(metrics: &str, name: &str) -> usize {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0, |value| value.trim().parse().unwrap())
}

#[tokio::test]
async fn a_router_that_was_stopped_says_so() {
    let cluster = KadCluster::of(2).await;
    let [stopped, other] = &cluster.0[..] else {
        unreachable!()
    };

    stopped.stop.cancel();
    eventually("the loop ends", async || {
        stopped.task.is_finished().then_some(())
    })
    .await;

    assert!(stopped.kad.advertise(vec![]).await.is_err());
    assert_eq!(all(&stopped.kad, &content("layer")).await, []);
    assert!(other.kad.advertise(vec![]).await.is_ok());
}

#[tokio::test]
async fn an_address_in_use_is_an_error_that_names_it() {
    let taken = std::net::TcpListener::bind("127.0.0.81:0").unwrap();
    let address = taken.local_addr().unwrap();
    let config = config(address.ip(), address);
    let metrics = kad::Metrics::new(&prometheus::Registry::new());

    let bound = kad::bind(config, metrics, Readiness::new().guard("routing")).await;

    let error = bound.err().unwrap().to_string();
    assert!(error.contains(&address.to_string()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_nodes_find_every_key_from_everywhere_and_quickly() {
    const NODES: usize = 20;
    let begin = Instant::now();
    let cluster = KadCluster::of(NODES).await;
    let ready = begin.elapsed();
    let key = |node: usize| content(&format!("layer of node {node}"));
    for node in 0..NODES {
        let kad = &cluster.0[node].kad;
        kad.advertise(vec![key(node), content("everybody's")])
            .await
            .unwrap();
    }

    let mut firsts = Vec::new();
    for asking in 0..NODES {
        for holder in (0..NODES).filter(|holder| *holder != asking) {
            let found = find(&cluster, asking, &key(holder), &[holder]).await;
            assert_eq!(found, [cluster.peer(holder)]);
        }
        let others: Vec<usize> = (0..NODES).filter(|node| *node != asking).collect();
        find(&cluster, asking, &content("everybody's"), &others).await;
    }
    let found = begin.elapsed();
    for n in 0..200 {
        let asked = Instant::now();
        let mut stream = cluster.0[n % NODES].kad.lookup(key((n + 7) % NODES));
        stream.next().await.unwrap();
        firsts.push(asked.elapsed());
    }
    firsts.sort();
    println!(
        "ready after {ready:?}, everything found after {found:?}, first provider p50 {:?} p95 {:?}",
        firsts[100], firsts[190]
    );
    // Under a millisecond on a quiet machine; this one may be running the other tests.
    assert!(firsts[100] < Duration::from_millis(50), "{:?}", firsts[100]);
}
