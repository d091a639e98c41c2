use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::*;
use crate::routing::bootstrap::dns::fake::{Answer, NameServer};

const NAME: &str = "cleanup.test.";

/// A node that answers its status, and how often it was asked.
struct Node {
    status: Arc<AtomicU16>,
    asked: Arc<AtomicUsize>,
}

impl Node {
    async fn at(at: SocketAddr) -> Self {
        let (status, asked) = (Arc::new(AtomicU16::new(200)), Arc::new(AtomicUsize::new(0)));
        let node = Self {
            status: status.clone(),
            asked: asked.clone(),
        };
        let answer = move || async move {
            asked.fetch_add(1, Ordering::SeqCst);
            hyper::StatusCode::from_u16(status.load(Ordering::SeqCst)).unwrap()
        };
        let listener = TcpListener::bind(at).await.unwrap();
        let router = Router::new().route("/readyz", get(answer));
        tokio::spawn(async move { axum::serve(listener, router).await });
        node
    }
}

async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn free_port() -> u16 {
    let probe = TcpListener::bind("127.0.0.96:0").await.unwrap();
    probe.local_addr().unwrap().port()
}

fn config(port: u16) -> CleanupWait {
    CleanupWait {
        host: NAME.to_string(),
        port,
        threshold: 3,
        period: Duration::from_millis(20),
        timeout: Duration::from_secs(20),
    }
}

fn ips(texts: &[&str]) -> Answer {
    Answer::Addresses(texts.iter().map(|t| t.parse::<IpAddr>().unwrap()).collect())
}

#[tokio::test]
async fn pods_that_are_not_there_yet_are_waited_for_and_then_everybody_is_asked_three_times() {
    let (server, port) = (NameServer::start().await, free_port().await);
    let first = Node::at(SocketAddr::new("127.0.0.96".parse().unwrap(), port)).await;
    let second = Node::at(SocketAddr::new("::1".parse().unwrap(), port)).await;
    second.status.store(503, Ordering::SeqCst);
    let mut out = Vec::new();

    let resolver = server.resolver(&[]);
    let config = config(port);
    let waiting = run_with(&resolver, &config, std::future::pending(), &mut out);
    let changing = async {
        // Both families, four times.
        until(|| server.asked() >= 8).await;
        server.set_both(NAME, ips(&["127.0.0.96", "::1"]));
        until(|| second.asked.load(Ordering::SeqCst) >= 5).await;
        second.status.store(200, Ordering::SeqCst);
    };
    let (waited, ()) = tokio::join!(waiting, changing);

    waited.unwrap();
    assert!(first.asked.load(Ordering::SeqCst) >= 8);
    assert!(second.asked.load(Ordering::SeqCst) >= 8);
    let said = String::from_utf8(out).unwrap();
    let mut lines: Vec<&str> = said.lines().collect();
    // The two first answers come in any order.
    lines[1..3].sort_unstable();
    assert_eq!(
        lines,
        [
            "cleanup.test.: has no address yet",
            &format!("127.0.0.96:{port}: answers"),
            &format!("[::1]:{port}: not yet: answered 503 Service Unavailable"),
            &format!("127.0.0.96:{port}: done (1 of 2)"),
            &format!("[::1]:{port}: answers"),
            &format!("[::1]:{port}: done (2 of 2)"),
            "cleanup.test.: all 2 addresses have answered 3 times in a row",
        ]
    );
}

#[tokio::test]
async fn at_the_deadline_it_is_said_who_is_missing_and_why() {
    let (server, port) = (NameServer::start().await, free_port().await);
    let _node = Node::at(SocketAddr::new("127.0.0.96".parse().unwrap(), port)).await;
    let silent = TcpListener::bind(("127.0.0.97", port)).await.unwrap();
    server.set_both(NAME, ips(&["127.0.0.96", "127.0.0.97", "127.0.0.98"]));
    let config = CleanupWait {
        timeout: PROBE * 2,
        ..config(port)
    };

    let resolver = server.resolver(&[]);
    let error = run_with(&resolver, &config, std::future::pending(), &mut Vec::new()).await;

    let error = error.unwrap_err();
    assert_eq!(error.exit_code(), 69);
    let text = error.to_string();
    assert!(
        text.starts_with("not all nodes are cleaned up after 4s: "),
        "{text}"
    );
    assert!(
        text.contains(&format!("127.0.0.97:{port} (no answer within 2s)")),
        "{text}"
    );
    assert!(
        text.contains(&format!("127.0.0.98:{port} (Connection refused")),
        "{text}"
    );
    drop(silent);
}

#[tokio::test]
async fn nobody_is_missing_by_name_when_the_name_has_no_address_or_no_server() {
    let server = NameServer::start().await;
    let config = CleanupWait {
        timeout: Duration::from_millis(200),
        ..config(1)
    };
    for (answer, said) in [
        (ips(&[]), "200ms: cleanup.test. has no address"),
        (
            Answer::Code(hickory_resolver::proto::op::ResponseCode::ServFail),
            "200ms: cleanup.test. cannot be resolved: ",
        ),
        (Answer::Silence, "200ms: cleanup.test. is not resolved yet"),
    ] {
        server.set_both(NAME, answer);
        let resolver = server.resolver(&[]);
        let error = run_with(&resolver, &config, std::future::pending(), &mut Vec::new()).await;
        let text = error.unwrap_err().to_string();
        assert!(text.contains(said), "{text}");
    }
}

#[tokio::test]
async fn a_signal_ends_it_in_the_middle_of_a_question() {
    let (server, port) = (NameServer::start().await, free_port().await);
    let silent = TcpListener::bind(("127.0.0.96", port)).await.unwrap();
    server.set_both(NAME, ips(&["127.0.0.96"]));
    let (stop, stopped) = oneshot::channel::<()>();
    let (mut out, config, resolver) = (Vec::new(), config(port), server.resolver(&[]));

    let stop_it = async {
        let _question = silent.accept().await.unwrap();
        stop.send(()).unwrap();
        Instant::now()
    };
    let waiting = run_with(
        &resolver,
        &config,
        async { stopped.await.unwrap() },
        &mut out,
    );
    let (error, at) = tokio::join!(waiting, stop_it);

    assert!(at.elapsed() < PROBE / 2);
    let error = error.unwrap_err();
    assert_eq!(error.exit_code(), 143);
    assert!(
        error
            .to_string()
            .contains(&format!("127.0.0.96:{port} (was not asked yet)")),
        "{error}"
    );
}
