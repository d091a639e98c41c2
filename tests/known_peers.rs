//! Peers of an earlier life: called when the configured way leads to nobody, and not when it says that nobody is there.

#[allow(dead_code, reason = "each test uses its part")]
mod nodes;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use nodes::{Node, config, multiaddr};
use peili::routing::bootstrap::Bootstrap;
use peili::routing::kad;
use peili::testing::conformance::routing::eventually;

const FILE: &str = "known-peers";

fn at(number: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::from([127, 0, 2, number]), 0)
}

async fn node(number: u8, data_dir: Option<&Path>, bootstrap: Option<Bootstrap>) -> Node {
    let at = at(number);
    Node::with(kad::Config {
        bootstrap,
        data_dir: data_dir.map(Path::to_path_buf),
        ..config(at.ip(), at)
    })
    .await
}

async fn end(node: Node) {
    node.stop.cancel();
    node.task.await.unwrap();
}

/// Nobody listens there.
fn closed() -> Bootstrap {
    let closed = std::net::TcpListener::bind(at(99)).unwrap();
    Bootstrap::Static(vec![multiaddr(closed.local_addr().unwrap())])
}

#[tokio::test]
async fn a_node_whose_first_peers_are_all_gone_finds_those_it_knew() {
    let dir = tempfile::tempdir().unwrap();
    let other = node(1, None, None).await;
    let seed = Bootstrap::Static(vec![other.address()]);
    let first_life = node(2, Some(dir.path()), Some(seed)).await;
    first_life.knows(1).await;
    end(first_life).await;

    let second_life = node(2, Some(dir.path()), Some(closed())).await;

    second_life.ready().await;
    second_life.knows(1).await;
    other.knows(1).await;
}

#[tokio::test]
async fn a_way_that_says_that_nobody_is_there_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let other = node(11, None, None).await;
    let kept = format!("# Peili's known peers, 1.\n{}\n", other.address());
    std::fs::write(dir.path().join(FILE), &kept).unwrap();

    let alone = node(12, Some(dir.path()), Some(Bootstrap::Static(vec![]))).await;

    alone.ready().await;
    alone.knows(0).await;
    // Rounds go on, after 50, 100 and 200 ms; none of them may call. (Nothing is waited for: what must not happen can only
    // be given the time.)
    tokio::time::sleep(Duration::from_millis(500)).await;
    alone.knows(0).await;
    end(alone).await;
    // And what was kept is not forgotten for that.
    assert_eq!(
        std::fs::read_to_string(dir.path().join(FILE)).unwrap(),
        kept
    );
}

#[tokio::test]
async fn known_peers_that_are_silent_hold_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    // Accepted, and then silence.
    let silent = tokio::net::TcpListener::bind(at(21)).await.unwrap();
    let kept = format!(
        "# Peili's known peers, 1.\n{}\n",
        multiaddr(silent.local_addr().unwrap())
    );
    std::fs::write(dir.path().join(FILE), kept).unwrap();

    let node = node(22, Some(dir.path()), Some(closed())).await;

    // It is called, and beside it three rounds go by in which the configured way is refused.
    let _called = silent.accept().await.unwrap();
    let begun = tokio::time::Instant::now();
    eventually("the node is ready", async || {
        node.readiness.is_ready().then_some(())
    })
    .await;
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "{:?}",
        begun.elapsed()
    );
}
