//! The DHT at size and in bad weather: many nodes, a third of them dead, two halves that were apart, nodes that leave,
//! a cluster that speaks IPv6 only.
//!
//! Figures are printed (`--nocapture`); the bounds asserted here leave room for a machine that is busy with other tests.

#[allow(dead_code, reason = "each test uses its part")]
mod nodes;

use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use futures::StreamExt;
use libp2p::Multiaddr;
use nodes::{KadCluster, Node, multiaddr};
use peili::oci::Key;
use peili::routing::bootstrap::Bootstrap;
use peili::routing::{PeerId, Router};
use peili::testing::conformance::routing::{Cluster, all, content, eventually, find};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// A key that `node` alone holds.
fn its_own(node: usize) -> Key {
    content(&format!("layer of node {node}"))
}

async fn advertise(cluster: &KadCluster, node: usize, keys: &[Key]) {
    let kad = &cluster.0[node].kad;
    kad.advertise(keys.to_vec()).await.unwrap();
}

/// Whom a search at `asking` brings.
async fn found(cluster: &KadCluster, asking: usize, key: &Key) -> HashSet<PeerId> {
    let found = all(&cluster.0[asking].kad, key).await;
    found.into_iter().map(|peer| peer.id).collect()
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() - 1) * percent / 100]
}

/// Twenty nodes keep each record, so most of sixty must ask others; with twenty dead, a search meets dead ones at every
/// step until they have refused once.
#[tokio::test(flavor = "multi_thread")]
async fn sixty_nodes_find_every_key_and_a_third_of_them_may_die() {
    const NODES: usize = 60;
    const DEAD: usize = 20;
    let begin = Instant::now();
    let mut cluster = KadCluster::of(NODES).await;
    let ready = begin.elapsed();
    for node in 0..NODES {
        advertise(&cluster, node, &[its_own(node)]).await;
    }

    // Every key from every node: half a minute, since a whole search costs 8 ms of CPU, all nodes' together.
    let mut searches = 0;
    for asking in 0..NODES {
        for holder in (0..NODES).filter(|holder| *holder != asking) {
            let found = find(&cluster, asking, &its_own(holder), &[holder]).await;
            assert_eq!(found, [cluster.peer(holder)]);
            searches += 1;
        }
    }
    let everything = begin.elapsed() - ready;

    let (mut hits, mut misses, mut lost) = (Vec::new(), Vec::new(), 0);
    for node in NODES - DEAD..NODES {
        cluster.kill(node).await;
    }
    let alive = NODES - DEAD;
    for n in 0..300 {
        let (asking, holder) = (n % alive, (n * 7 + 1) % alive);
        if asking != holder {
            let asked = Instant::now();
            let first = cluster.0[asking].kad.lookup(its_own(holder)).next().await;
            hits.push(asked.elapsed());
            lost += usize::from(first.is_none());
        }
        let asked = Instant::now();
        let nobody = all(&cluster.0[asking].kad, &content(&format!("nobody's {n}"))).await;
        misses.push(asked.elapsed());
        assert_eq!(nobody, []);
    }

    hits.sort();
    misses.sort();
    println!(
        "{NODES} nodes ready after {ready:?}, {searches} searches in {everything:?}; \
         {DEAD} killed: hits p50 {:?} p99 {:?}, misses p50 {:?} p99 {:?}, not found at first {lost} of {}",
        percentile(&hits, 50),
        percentile(&hits, 99),
        percentile(&misses, 50),
        percentile(&misses, 99),
        hits.len(),
    );
    assert!(lost * 50 <= hits.len(), "{lost} of {} lost", hits.len());
    assert!(percentile(&hits, 99) < Duration::from_millis(250));
    assert!(percentile(&misses, 99) < Duration::from_millis(500));
}

/// A bootstrap address that refuses until the gate is opened, and leads to a node then.
struct Gate {
    socket: TcpSocket,
    address: SocketAddr,
}

impl Gate {
    fn at(ip: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket
            .bind(SocketAddr::new(ip.parse().unwrap(), 0))
            .unwrap();
        let address = socket.local_addr().unwrap();
        Self { socket, address }
    }

    fn open(self, to: SocketAddr) {
        let listener: TcpListener = self.socket.listen(64).unwrap();
        tokio::spawn(async move {
            while let Ok((mut outside, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut inside = TcpStream::connect(to).await?;
                    tokio::io::copy_bidirectional(&mut outside, &mut inside).await
                });
            }
        });
    }
}

/// Each half is larger than a bucket, so that neither refreshes its table for one new peer; that nodes look for others
/// now and then must be enough. The longest pause between two rounds is 30 s (`joining` tests it), and one round heals.
#[tokio::test(flavor = "multi_thread")]
async fn two_halves_that_were_apart_are_one_dht_within_a_minute() {
    const HALF: usize = 24;
    const LIMIT: Duration = Duration::from_secs(60);
    let gates = [Gate::at("127.0.0.201"), Gate::at("127.0.0.202")];
    let doors = gates.each_ref().map(|gate| multiaddr(gate.address));
    let mut cluster = KadCluster(Vec::new());
    for door in doors {
        let first = Node::start(0, Some(Bootstrap::Static(vec![door.clone()]))).await;
        let seeds: Vec<Multiaddr> = vec![first.address(), door];
        cluster.0.push(first);
        for number in 1..HALF {
            let seed = Bootstrap::Static(seeds.clone());
            cluster.0.push(Node::start(number, Some(seed)).await);
        }
    }
    let firsts = [0, HALF].map(|first| cluster.0[first].kad.listen_addrs()[0]);
    for node in 0..2 * HALF {
        advertise(&cluster, node, &[its_own(node)]).await;
    }
    for (asking, holder) in [(0, HALF - 1), (HALF - 1, 0), (HALF, 2 * HALF - 1)] {
        find(&cluster, asking, &its_own(holder), &[holder]).await;
    }
    for (asking, holder) in [(3, HALF + 3), (HALF + 5, 5)] {
        assert_eq!(found(&cluster, asking, &its_own(holder)).await.len(), 0);
    }

    let [into_second, into_first] = gates;
    into_second.open(firsts[1]);
    into_first.open(firsts[0]);
    let opened = Instant::now();

    for n in 0..HALF {
        for (asking, holder) in [(n, HALF + (n + 5) % HALF), (HALF + n, (n + 11) % HALF)] {
            let one = cluster.peer(holder).id;
            while !found(&cluster, asking, &its_own(holder))
                .await
                .contains(&one)
            {
                let late = opened.elapsed() > LIMIT;
                assert!(!late, "node {asking} does not find {holder}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    println!("two halves of {HALF} were one after {:?}", opened.elapsed());
}

/// Waits until each of `nodes` has this many peers in its routing table, whom it would ask.
async fn know(cluster: &KadCluster, nodes: &[usize], peers: usize) {
    let line = format!("peili_peers{{state=\"known\"}} {peers}\n");
    for node in nodes {
        eventually(&format!("node {node} knows {peers}"), async || {
            cluster.0[*node].metrics().contains(&line).then_some(())
        })
        .await;
    }
}

/// A cluster in which nodes 1 and 2 hold the same layer, and everybody knows and has found everybody.
async fn of_two_holders(nodes: usize, asking: &[usize]) -> KadCluster {
    let cluster = KadCluster::of(nodes).await;
    for node in [1, 2] {
        advertise(&cluster, node, &[content("layer")]).await;
    }
    for node in asking {
        find(&cluster, *node, &content("layer"), &[1, 2]).await;
    }
    know(&cluster, asking, nodes - 1).await;
    cluster
}

async fn ended(node: &Node) {
    node.stop.cancel();
    eventually("the loop ends", async || {
        node.task.is_finished().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_leaves_is_offered_by_nobody_while_it_still_answers() {
    let asking = [0, 3, 4, 5, 6, 7];
    let mut cluster = of_two_holders(8, &asking).await;

    // As the application does it: the word first, the end when bodies under way are through.
    let begin = Instant::now();
    cluster.0[1].kad.leave().await;
    let told = begin.elapsed();
    know(&cluster, &asking, 6).await;
    let known = begin.elapsed();

    let only = HashSet::from([cluster.peer(2).id]);
    for node in asking {
        assert_eq!(found(&cluster, node, &content("layer")).await, only);
    }
    // It still finds what others hold. Whom it meets from now on hears it too.
    find(&cluster, 1, &content("layer"), &[2]).await;
    let seeds = [1, 0].map(|node: usize| cluster.0[node].address());
    let newcomer = Node::start(8, Some(Bootstrap::Static(seeds.to_vec()))).await;
    cluster.0.push(newcomer);
    find(&cluster, 8, &content("layer"), &[2]).await;
    for node in asking {
        assert_eq!(found(&cluster, node, &content("layer")).await, only);
    }
    println!("7 peers told within {told:?}, believed within {known:?}");
    assert!(told < Duration::from_secs(1), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_says_goodbye_by_itself_and_a_crash_does_not() {
    let asking = [0, 3, 4, 5];
    let mut cluster = of_two_holders(6, &asking).await;
    let (stopped, crashed) = (cluster.peer(1).id, cluster.peer(2).id);

    ended(&cluster.0[1]).await;
    know(&cluster, &asking, 4).await;
    for node in asking {
        let found = found(&cluster, node, &content("layer")).await;
        assert!(!found.contains(&stopped) && found.contains(&crashed));
    }

    cluster.kill(2).await;
    let mut believe = 0;
    for node in asking {
        let found = found(&cluster, node, &content("layer")).await;
        believe += usize::from(found.contains(&crashed));
    }
    assert!(believe > 0, "nobody was told");
    for node in asking {
        let kad = &cluster.0[node].kad;
        eventually("who was refused forgets it", async || {
            kad.refused(&crashed);
            let found = all(kad, &content("layer")).await;
            found.is_empty().then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_left_and_came_back_is_offered_again() {
    let data = tempfile::tempdir().unwrap();
    let mut cluster = KadCluster::of(4).await;
    let seed = Bootstrap::Static(vec![cluster.0[0].address()]);
    let config = |ip: &str| peili::routing::kad::Config {
        data_dir: Some(data.path().to_path_buf()),
        bootstrap: Some(seed.clone()),
        ..nodes::config(ip.parse().unwrap(), format!("{ip}:0").parse().unwrap())
    };
    cluster.0.push(Node::with(config("127.0.0.93")).await);
    advertise(&cluster, 4, &[content("layer")]).await;
    for asking in 0..4 {
        find(&cluster, asking, &content("layer"), &[4]).await;
    }

    know(&cluster, &[0, 1, 2, 3], 4).await;

    ended(&cluster.0[4]).await;
    know(&cluster, &[0, 1, 2, 3], 3).await;
    for asking in 0..4 {
        assert!(found(&cluster, asking, &content("layer")).await.is_empty());
    }
    cluster.0[4] = Node::with(config("127.0.0.93")).await;
    advertise(&cluster, 4, &[content("layer")]).await;

    for asking in 0..4 {
        find(&cluster, asking, &content("layer"), &[4]).await;
    }
}

/// go-libp2p admits eight connections from one IPv6 /56 unless told otherwise, which is a whole cluster. rust-libp2p has
/// no such limit; this keeps it so. The nodes are in a network namespace of this test's thread, which goes with it.
#[test]
fn more_than_eight_nodes_of_one_ipv6_prefix_are_one_dht() {
    const NODES: u16 = 14;
    let ip = |n: u16| IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0x4200, 0, 0, 0, n + 1));
    let thread = std::thread::spawn(move || {
        namespace_of_our_own((0..NODES).map(ip))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(async {
            let begin = Instant::now();
            let at = |n: u16| SocketAddr::new(ip(n), 5001);
            let mut cluster = KadCluster(Vec::new());
            for n in 0..NODES {
                let seeds = if n == 0 {
                    vec![]
                } else {
                    vec![multiaddr(at(0))]
                };
                let node = Node::bound(ip(n), at(n), Some(Bootstrap::Static(seeds))).await;
                cluster.0.push(node);
            }
            let nodes = 0..usize::from(NODES);
            for node in nodes.clone() {
                advertise(&cluster, node, &[its_own(node)]).await;
            }
            for asking in nodes.clone() {
                for holder in nodes.clone().filter(|holder| *holder != asking) {
                    let found = find(&cluster, asking, &its_own(holder), &[holder]).await;
                    assert_eq!(found, [cluster.peer(holder)]);
                }
            }
            println!(
                "{NODES} nodes of one /56 found everything after {:?}",
                begin.elapsed()
            );
        });
        Ok::<_, String>(())
    });
    match thread.join().unwrap() {
        Ok(()) => {}
        Err(why) if std::env::var_os("CI").is_some() => panic!("no namespace: {why}"),
        Err(why) => {
            // Past libtest, which shows what a test printed only when it failed.
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "skipped: {why}");
        }
    }
}

/// Moves this thread into a new network namespace that has these addresses and nothing else.
fn namespace_of_our_own(ips: impl Iterator<Item = IpAddr>) -> Result<(), String> {
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    // SAFETY: only the network namespace is left; descriptors stay shared among threads.
    #[allow(unsafe_code)]
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
        .map_err(|error| format!("a network namespace needs root: {error}"))?;
    // A child lives in the namespace of the thread that makes it.
    let ip = |arguments: &[&str]| {
        let out = std::process::Command::new("ip").args(arguments).output();
        match out {
            Ok(out) if out.status.success() => Ok(()),
            Ok(out) => Err(String::from_utf8_lossy(&out.stderr).into_owned()),
            Err(error) => Err(format!("ip (iproute2): {error}")),
        }
    };
    ip(&["link", "set", "lo", "up"])?;
    for address in ips {
        let address = format!("{address}/56");
        ip(&["-6", "addr", "add", &address, "dev", "lo", "nodad"])?;
    }
    Ok(())
}
