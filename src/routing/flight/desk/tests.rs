use std::net::SocketAddr;
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::time::sleep;

use super::*;
use crate::routing::messenger::Messenger as _;
use crate::routing::rendezvous::{Generation, Rendezvous};
use crate::testing::router::{FakeRouter, FakeSwarm};

/// What a desk could take before it let others wait: its own search, and one opinion.
const BEFORE: Duration = Duration::from_millis(180);

/// Six nodes in the order of their distance to a content, which is the same for all.
async fn nodes(digest: &Digest) -> Vec<(FakeRouter, Flights)> {
    let swarm = FakeSwarm::new();
    let registry = |n: u8| SocketAddr::from(([10, 0, 0, n], 5000));
    let routers: Vec<FakeRouter> = (1..7).map(|n| swarm.join(registry(n))).collect();
    let meeting = Meeting::Content(digest.clone());
    let order = routers[0].closest(&meeting).await;
    let router = |peer: &Peer| routers.iter().find(|r| *r.id() == peer.id).unwrap().clone();
    let node = |peer: &Peer| {
        let router = router(peer);
        let flights = Flights::new(Arc::new(router.clone()), StdRng::seed_from_u64(1));
        tokio::spawn(flights.clone().serve(router.calls()));
        (router, flights)
    };
    order.iter().map(node).collect()
}

fn wish(digest: &Digest) -> Wish {
    Wish {
        digest: digest.clone(),
        image: "docker.io/library/nginx".into(),
        generation: Generation::One,
        offset: 0,
        doubts: Vec::new(),
        led_in_vain: false,
        is_slow: false,
    }
}

/// Asks and does as it is told until it is to lead or to follow. Returns that, and how long it took.
async fn advice(asker: &Flights, digest: &Digest) -> (Advice, Duration) {
    let began = Instant::now();
    loop {
        match asker.ask(wish(digest)).await {
            Advice::Wait { pause, .. } => sleep(pause).await,
            advice => return (advice, began.elapsed()),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nodes_that_hang_cost_an_asker_no_more_than_they_did_and_once() {
    let digest = Digest::sha256(b"layer");
    let nodes = nodes(&digest).await;
    for (neighbour, _) in &nodes[1..4] {
        neighbour.fall_silent();
    }
    // The search of the desk meets somebody who hangs as well.
    nodes[0].0.delay_lookups(Duration::from_secs(10));

    let (advised, took) = advice(&nodes[5].1, &digest).await;

    assert!(matches!(advised, Advice::Lead { .. }), "{advised:?}");
    assert!(took > SEARCH && took <= BEFORE, "{took:?}");
    // From then on the desk does not ask the silent again.
    nodes[0].0.delay_lookups(Duration::ZERO);
    let began = Instant::now();
    assert_eq!(nodes[0].1.look_around(&digest).await, None);
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn who_gives_no_opinion_is_still_asked_as_a_meeting_point() {
    let digest = Digest::sha256(b"layer");
    let nodes = nodes(&digest).await;
    nodes[1].0.fall_silent();
    advice(&nodes[5].1, &digest).await;

    let silent = nodes[1].0.id();
    assert!(nodes[0].1.is_silent(silent, Instant::now()));
    assert!(!nodes[0].1.is_dead(silent, Instant::now()));
    assert!(!nodes[0].1.is_silent(silent, Instant::now() + DEAD));
}

#[tokio::test(start_paused = true)]
async fn a_desk_looks_around_once_for_all_who_ask_and_lets_one_lead() {
    let digest = Digest::sha256(b"layer");
    let nodes = nodes(&digest).await;
    nodes[0].0.delay_lookups(Duration::from_millis(70));

    let asked = nodes[1..]
        .iter()
        .map(|(_, flights)| advice(flights, &digest));
    let advised = join_all(asked).await;

    let leads = |(advice, _): &&(Advice, Duration)| matches!(advice, Advice::Lead { .. });
    assert_eq!(advised.iter().filter(leads).count(), 1, "{advised:?}");
    assert!(
        advised.iter().all(|(_, took)| *took <= BEFORE),
        "{advised:?}"
    );
    assert_eq!(nodes[0].1.memory().looks.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_desk_that_takes_itself_for_the_closest_is_told_who_is() {
    let digest = Digest::sha256(b"layer");
    let nodes = nodes(&digest).await;
    let opinion = nodes[2].1.opinion(&nodes[1].0.peer(), digest.clone()).await;
    assert_eq!(opinion, Answer::Closer(nodes[0].0.peer()));

    // And one who is closer than this node, and says so, is where its askers are sent.
    assert_eq!(nodes[2].1.closer(&digest), None);
    let opinion = nodes[2].1.opinion(&nodes[0].0.peer(), digest.clone()).await;
    assert_eq!(opinion, Answer::Opinion(Vec::new()));
    assert_eq!(nodes[2].1.closer(&digest), Some(nodes[0].0.peer()));
    tokio::time::advance(LOOKED).await;
    assert_eq!(nodes[2].1.closer(&digest), None);
}
