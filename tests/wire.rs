//! Peili beside go-libp2p, which is what Spegel is built on: one DHT, each finds what the other holds.
//!
//! The Go nodes are tests/go-peer, built here when there is a Go. What go-libp2p-kad-dht asks of an announcement (told
//! by the provider itself, with an address, under a key of at most 80 bytes; else it resets the stream) is judged by
//! looking into the Go nodes' own stores.

#[allow(dead_code, reason = "each test uses its part")]
mod nodes;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nodes::{KadCluster, Node, REGISTRY};
use peili::oci::{Key, Repository, TagName};
use peili::routing::bootstrap::Bootstrap;
use peili::routing::{Peer, Router};
use peili::testing::conformance::routing::{Cluster, all, content, eventually, find};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// The first build compiles go-libp2p: minutes on two cores, and its source comes from the network.
const BUILD: Duration = Duration::from_secs(15 * 60);

/// The program bounds each command by 10 s itself.
const ANSWER: Duration = Duration::from_secs(20);

/// Layers of a hundred images or so, announced at once.
const MANY: usize = 500;

/// One Go node.
struct Go {
    // Ends with its stdin, and is killed at the latest when this is dropped.
    _process: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
    me: GoPeer,
}

#[derive(Clone, Debug, Deserialize)]
struct GoPeer {
    id: String,
    addresses: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answer {
    error: String,
    peers: Vec<GoPeer>,
    protocols: Vec<String>,
}

#[derive(Serialize)]
#[serde(tag = "do", rename_all = "lowercase")]
enum Do<'a> {
    Connect { address: &'a str },
    Provide { key: &'a str },
    Find { key: &'a str },
    Held { key: &'a str },
    Known,
    Protocols { peer: &'a str },
}

impl Go {
    async fn start(program: &Path, ip: &str) -> Self {
        let mut process = Command::new(program)
            .arg(format!("--listen=/ip4/{ip}/tcp/0"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let stdin = process.stdin.take().unwrap();
        let mut stdout = BufReader::new(process.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(ANSWER, stdout.next_line()).await;
        let line = line.unwrap().unwrap().expect("it says who it is");
        Self {
            _process: process,
            stdin,
            stdout,
            me: serde_json::from_str(&line).unwrap(),
        }
    }

    async fn ask(&mut self, what: Do<'_>) -> Answer {
        let mut line = serde_json::to_string(&what).unwrap();
        line.push('\n');
        self.stdin.write_all(line.as_bytes()).await.unwrap();
        let answer = tokio::time::timeout(ANSWER, self.stdout.next_line()).await;
        let answer = answer.expect(&line).unwrap().expect(&line);
        serde_json::from_str(&answer).unwrap()
    }

    async fn well(&mut self, what: Do<'_>) -> Answer {
        let answer = self.ask(what).await;
        assert_eq!(answer.error, "");
        answer
    }

    /// Asks again until `seen` finds what it looks for in the answer.
    async fn until<T>(
        &mut self,
        what: impl Fn() -> Do<'static>,
        seen: impl Fn(&Answer) -> Option<T>,
    ) -> T {
        let begin = Instant::now();
        loop {
            let answer = self.ask(what()).await;
            if let Some(seen) = seen(&answer) {
                return seen;
            }
            let line = serde_json::to_string(&what()).unwrap();
            assert!(begin.elapsed() < ANSWER, "{line}: {answer:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// As Peili must tell of it.
    fn peer(&self) -> Peer {
        let address: libp2p::Multiaddr = self.me.addresses[0].parse().unwrap();
        let ip = address.iter().find_map(|part| match part {
            libp2p::multiaddr::Protocol::Ip4(ip) => Some(ip),
            _ => None,
        });
        Peer {
            id: peili::routing::PeerId::new(self.me.id.clone()),
            registry: vec![SocketAddr::new(ip.unwrap().into(), REGISTRY)],
            zone: None,
        }
    }
}

/// Builds the Go node. None, and a word why, where there is no Go, or, unless CI asks, where it cannot be built.
async fn go_peer() -> Option<PathBuf> {
    use std::io::Write;
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("go-peer");
    let build = Command::new("go")
        .args(["build", "-buildvcs=false", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/go-peer"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let why = match tokio::time::timeout(BUILD, build).await {
        Ok(Ok(built)) if built.status.success() => return Some(program),
        Ok(Err(error)) => format!("no Go on this machine: {error}"),
        Ok(Ok(built)) => {
            let why = String::from_utf8_lossy(&built.stderr).into_owned();
            assert!(std::env::var_os("CI").is_none(), "tests/go-peer: {why}");
            format!("tests/go-peer was not built: {why}")
        }
        Err(_) => panic!("tests/go-peer was not built within {BUILD:?}"),
    };
    // Past libtest, which shows what a test printed only when it failed.
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
    None
}

fn tag() -> Key {
    let repository = Repository::new("docker.io", "library/nginx").unwrap();
    Key::Tag(TagName::new(repository, "1.27").unwrap())
}

/// Where others are told that `node` is.
fn address(node: &Node) -> String {
    node.address().to_string()
}

async fn ended(node: &Node) {
    node.stop.cancel();
    eventually("the loop ends", async || {
        node.task.is_finished().then_some(())
    })
    .await;
}

/// Three Go nodes and five of ours; the first is Go's, and the others find each other through it.
#[tokio::test(flavor = "multi_thread")]
async fn go_and_peili_find_what_the_other_holds() {
    let Some(program) = go_peer().await else {
        return;
    };
    let begin = Instant::now();
    let mut first = Go::start(&program, "127.0.0.61").await;
    let mut others = [
        Go::start(&program, "127.0.0.62").await,
        Go::start(&program, "127.0.0.63").await,
    ];
    // As a name server tells it: without the peer's id.
    let seed = Bootstrap::Static(vec![first.me.addresses[0].parse().unwrap()]);
    let mut peilis = KadCluster(Vec::new());
    for number in 0..5 {
        peilis.0.push(Node::start(number, Some(seed.clone())).await);
    }
    for node in &peilis.0 {
        node.ready().await;
    }
    let ours = peilis.peer(0).id;
    let door = format!("{}/p2p/{ours}", address(&peilis.0[0]));
    for go in &mut others {
        go.well(Do::Connect { address: &door }).await;
    }

    // An announcement goes to those whom the announcer knows then.
    peilis.0[0].knows(7).await;

    // Ours, found by Go, with the address that we announce and no other.
    let (layer, tag) = (content("layer of Peili").to_string(), tag().to_string());
    let (layer, tag): (&'static str, &'static str) = (layer.leak(), tag.leak());
    assert_eq!(tag, "docker.io/library/nginx:1.27");
    peilis.0[0]
        .kad
        .advertise(vec![content("layer of Peili"), self::tag()])
        .await
        .unwrap();
    let at = address(&peilis.0[0]);
    let tells_ours = |answer: &Answer| {
        let peer = answer.peers.iter().find(|p| p.id == ours.as_str())?;
        Some(peer.addresses.clone())
    };
    for go in std::iter::once(&mut first).chain(&mut others) {
        for key in [layer, tag] {
            let found = go.until(|| Do::Find { key }, tells_ours).await;
            assert!(found.iter().any(|a| without_id(a) == at), "{found:?}");
            // Eight nodes: each keeps each record. This one passed Go's rules for an announcement.
            let held = go.until(|| Do::Held { key }, tells_ours).await;
            assert_eq!(
                held.iter().map(|a| without_id(a)).collect::<Vec<_>>(),
                [&*at]
            );
        }
    }
    let by_go = begin.elapsed();

    // A node's whole content at once: Go bounds the streams of one peer, and resets what is beyond.
    let many: Vec<Key> = (0..MANY).map(|n| content(&format!("layer {n}"))).collect();
    peilis.0[0].kad.advertise(many.clone()).await.unwrap();
    for go in std::iter::once(&mut first).chain(&mut others) {
        for key in &many {
            let key: &'static str = key.to_string().leak();
            go.until(|| Do::Held { key }, tells_ours).await;
        }
    }
    let all_of_it = begin.elapsed() - by_go;

    // Go's, found by us, its registry where ours would be.
    let key = content("layer of Go");
    let text: &'static str = key.to_string().leak();
    for go in &mut others {
        go.until(
            || Do::Provide { key: text },
            |answer| answer.error.is_empty().then_some(()),
        )
        .await;
    }
    let holders = others.each_ref().map(Go::peer);
    for node in &peilis.0 {
        eventually("both Go nodes are found", async || {
            let found = all(&node.kad, &key).await;
            let both = holders.iter().all(|holder| found.contains(holder));
            (found.len() == 2 && both).then_some(())
        })
        .await;
    }
    let by_us = begin.elapsed();

    // Both ways at once, and our own protocol beside: Go is not disturbed by it.
    let speaks = first
        .until(
            || Do::Protocols {
                peer: ours.as_str().to_owned().leak(),
            },
            |answer| (!answer.protocols.is_empty()).then(|| answer.protocols.clone()),
        )
        .await;
    for protocol in ["/spegel/kad/1.0.0", "/peili/leave/1", "/peili/flight/1"] {
        assert!(speaks.iter().any(|p| p == protocol), "{speaks:?}");
    }
    peilis.0[1].kad.advertise(vec![key.clone()]).await.unwrap();
    eventually("all three are found", async || {
        (all(&peilis.0[2].kad, &key).await.len() == 3).then_some(())
    })
    .await;
    ended(&peilis.0[1]).await;
    for node in [0, 2, 3, 4] {
        eventually("the two Go nodes are left", async || {
            let found = all(&peilis.0[node].kad, &key).await;
            let both = holders.iter().all(|holder| found.contains(holder));
            (found.len() == 2 && both).then_some(())
        })
        .await;
    }
    find(&peilis, 3, &content("layer of Peili"), &[0]).await;
    let known = first.well(Do::Known).await.peers;
    assert!(known.len() >= 5, "{known:?}");
    println!(
        "Go found ours after {by_go:?}, {MANY} more were in every Go store within {all_of_it:?}, we found theirs after {:?}",
        by_us - all_of_it
    );
}

fn without_id(address: &str) -> &str {
    address.split("/p2p/").next().unwrap_or(address)
}
