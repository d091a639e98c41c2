//! The contract of [`Router`] and [`Messenger`]. [`routing_conformance!`](crate::routing_conformance) makes a test of each fact here.
//!
//! A cluster takes a moment to know what it was told, so a fact is awaited with a deadline; what must *not* happen is
//! judged once the rest is there.

use std::collections::HashSet;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::oci::{Digest, Key, Repository, TagName};
use crate::routing::messenger::{Call, MAX_MESSAGE, Meeting, Messenger, Unreachable};
use crate::routing::{Peer, PeerId, Router};

/// Much longer than any cluster here takes: with 180 real routers starting together on two cores, the first search came
/// through after fifteen seconds.
const DEADLINE: Duration = Duration::from_secs(30);

/// Between two looks at a cluster that does not know yet.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The longest that a search may take: the router's own bound, and as much again for a machine that is busy.
const SEARCH: Duration = Duration::from_millis(500);

/// Routers that have found each other.
#[async_trait(?Send)]
pub trait Cluster: Sized {
    type Router: Router + Messenger;

    async fn of(nodes: usize) -> Self;

    fn router(&self, node: usize) -> &Self::Router;

    /// What the others must hear of `node`.
    fn peer(&self, node: usize) -> Peer;

    /// What others call; once for each node.
    fn calls(&mut self, node: usize) -> mpsc::Receiver<Call>;

    /// Ends a node without a word: from now on it refuses connections.
    async fn kill(&mut self, node: usize);
}

/// One test for each fact of the suite, against a [`Cluster`].
#[macro_export]
macro_rules! routing_conformance {
    ($cluster:ty) => {
        $crate::routing_conformance! { $cluster:
            a_lookup_finds_every_provider_and_where_its_registry_is
            a_node_never_finds_itself
            a_search_for_what_nobody_holds_ends
            a_peer_is_told_once_however_often_it_advertised
            withdrawing_leaves_the_other_providers
            what_was_withdrawn_can_be_advertised_again
            names_that_look_alike_are_different_keys
            everyone_who_waits_for_a_key_hears_the_same
            a_waiter_that_leaves_hurts_nobody
            a_peer_that_refuses_is_not_offered_again
            refusals_of_peers_nobody_knows_are_harmless
            a_message_reaches_the_other_and_its_answer_comes_back
            a_call_that_is_taken_and_not_answered_is_silent_at_its_limit
            a_call_that_is_dropped_has_no_answer
            a_message_that_is_too_long_is_refused
            all_nodes_name_the_same_closest_node
            what_a_node_knows_it_names_without_asking
            a_killed_node_is_not_named_after_it_refused
        }
    };
    ($cluster:ty: $($fact:ident)*) => {
        $(#[tokio::test]
        async fn $fact() {
            $crate::testing::conformance::routing::$fact::<$cluster>().await;
        })*
    };
}

pub async fn a_lookup_finds_every_provider_and_where_its_registry_is<C: Cluster>() {
    let cluster = C::of(5).await;
    for node in [1, 2, 3] {
        advertise(&cluster, node, &[content("layer")]).await;
    }

    for asking in [0, 4] {
        let mut found = find(&cluster, asking, &content("layer"), &[1, 2, 3]).await;
        found.sort_by(|a, b| a.id.cmp(&b.id));
        let mut expected: Vec<Peer> = [1, 2, 3].map(|node| cluster.peer(node)).to_vec();
        expected.sort_by(|a, b| a.id.cmp(&b.id));
        assert_eq!(found, expected, "asked at node {asking}");
    }
}

pub async fn a_node_never_finds_itself<C: Cluster>() {
    let cluster = C::of(3).await;
    for node in 0..3 {
        advertise(&cluster, node, &[content("layer")]).await;
    }

    for asking in 0..3 {
        let others: Vec<usize> = (0..3).filter(|node| *node != asking).collect();
        find(&cluster, asking, &content("layer"), &others).await;
    }
}

pub async fn a_search_for_what_nobody_holds_ends<C: Cluster>() {
    let cluster = C::of(3).await;
    advertise(&cluster, 1, &[content("layer")]).await;
    find(&cluster, 0, &content("layer"), &[1]).await;

    let search = cluster.router(0).lookup(content("other"));
    let found = tokio::time::timeout(SEARCH, search.collect::<Vec<_>>()).await;

    assert_eq!(found.expect("the search ends by itself"), []);
}

pub async fn a_peer_is_told_once_however_often_it_advertised<C: Cluster>() {
    let cluster = C::of(3).await;
    for _ in 0..3 {
        advertise(&cluster, 1, &[content("layer"), content("layer")]).await;
    }

    find(&cluster, 0, &content("layer"), &[1]).await;
    find(&cluster, 2, &content("layer"), &[1]).await;
}

pub async fn withdrawing_leaves_the_other_providers<C: Cluster>() {
    let cluster = C::of(4).await;
    for node in [1, 2] {
        advertise(&cluster, node, &[content("layer"), content("config")]).await;
    }
    find(&cluster, 0, &content("layer"), &[1, 2]).await;
    find(&cluster, 0, &content("config"), &[1, 2]).await;

    let gone = vec![content("layer"), content("never advertised")];
    cluster.router(1).withdraw(gone).await.expect("it runs");

    // What was told before fades by itself: node 1 may still be named for the layer.
    let others: HashSet<PeerId> = ids(&all(cluster.router(3), &content("layer")).await);
    assert!(others.contains(&cluster.peer(2).id));
    find(&cluster, 3, &content("config"), &[1, 2]).await;
}

pub async fn what_was_withdrawn_can_be_advertised_again<C: Cluster>() {
    let cluster = C::of(3).await;
    advertise(&cluster, 1, &[content("layer")]).await;
    find(&cluster, 0, &content("layer"), &[1]).await;

    let router = cluster.router(1);
    let keys = vec![content("layer")];
    router.withdraw(keys.clone()).await.expect("it runs");
    router.advertise(keys).await.expect("it runs");

    find(&cluster, 0, &content("layer"), &[1]).await;
    find(&cluster, 2, &content("layer"), &[1]).await;
}

pub async fn names_that_look_alike_are_different_keys<C: Cluster>() {
    let cluster = C::of(4).await;
    let keys = [
        tag("registry.example:5000", "a/b_c.d--e", "v1.0_x-Y"),
        tag("registry.example:5000", "a/b_c.d--e", "v1.0_x-y"),
        tag("registry.example", "a/b_c.d--e", "v1.0_x-Y"),
        tag("docker.io", "library/nginx", "1"),
        tag("docker.io", "library/nginx", "1.2"),
        content("docker.io/library/nginx:1"),
    ];
    for (number, key) in keys.iter().enumerate() {
        advertise(&cluster, 1 + number % 3, std::slice::from_ref(key)).await;
    }

    for (number, key) in keys.iter().enumerate() {
        find(&cluster, 0, key, &[1 + number % 3]).await;
    }
}

pub async fn everyone_who_waits_for_a_key_hears_the_same<C: Cluster>() {
    let cluster = C::of(4).await;
    for node in [1, 2] {
        advertise(&cluster, node, &[content("layer")]).await;
    }
    let expected = ids(&find(&cluster, 0, &content("layer"), &[1, 2]).await);

    let key = content("layer");
    let waiters = (0..20).map(|_| all(cluster.router(0), &key));
    for heard in futures::future::join_all(waiters).await {
        assert_eq!(ids(&heard), expected);
        assert_eq!(heard.len(), expected.len());
    }
}

pub async fn a_waiter_that_leaves_hurts_nobody<C: Cluster>() {
    let cluster = C::of(4).await;
    for node in [1, 2] {
        advertise(&cluster, node, &[content("layer")]).await;
    }
    let expected = ids(&find(&cluster, 0, &content("layer"), &[1, 2]).await);

    let router = cluster.router(0);
    let unread = router.lookup(content("layer"));
    let mut impatient = router.lookup(content("layer"));
    let patient = router.lookup(content("layer"));
    drop(unread);
    impatient.next().await;
    drop(impatient);

    assert_eq!(ids(&patient.collect::<Vec<_>>().await), expected);
}

pub async fn a_peer_that_refuses_is_not_offered_again<C: Cluster>() {
    let mut cluster = C::of(4).await;
    for node in [1, 2] {
        advertise(&cluster, node, &[content("layer")]).await;
    }
    find(&cluster, 0, &content("layer"), &[1, 2]).await;

    cluster.kill(1).await;
    let dead = cluster.peer(1).id;
    let router = cluster.router(0);
    // A caller is refused as often as it tries, and says so each time; a router that still sees the peer connected may
    // take a moment to believe it.
    eventually("the dead peer is no longer offered", async || {
        let found = ids(&all(router, &content("layer")).await);
        if found.contains(&dead) {
            router.refused(&dead);
        }
        (!found.contains(&dead)).then_some(())
    })
    .await;

    for _ in 0..5 {
        find(&cluster, 0, &content("layer"), &[2]).await;
    }
}

pub async fn refusals_of_peers_nobody_knows_are_harmless<C: Cluster>() {
    let cluster = C::of(3).await;
    advertise(&cluster, 1, &[content("layer")]).await;

    for id in [
        "",
        "nobody",
        "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN",
    ] {
        cluster.router(0).refused(&PeerId::new(id));
    }

    find(&cluster, 0, &content("layer"), &[1]).await;
}

pub async fn a_message_reaches_the_other_and_its_answer_comes_back<C: Cluster>() {
    let mut cluster = C::of(3).await;
    let mut calls = cluster.calls(1);
    let echo = tokio::spawn(async move {
        let mut callers = Vec::new();
        while let Some(call) = calls.recv().await {
            callers.push(call.from);
            // Who waits no longer wants no answer.
            let _ = call.answer.send(call.message);
            if callers.len() == 8 {
                break;
            }
        }
        callers
    });

    let called = cluster.peer(1).id;
    let longest = Bytes::from(vec![7; MAX_MESSAGE]);
    for asking in [0, 2] {
        for message in [&b"hello"[..], b"", b"\0\xff", &longest] {
            let message = Bytes::copy_from_slice(message);
            let answer = call(&cluster, asking, &called, message.clone()).await;
            assert_eq!(answer, Ok(message));
        }
    }

    // They are known by name and by place.
    let callers = echo.await.expect("it heard them all");
    let expected = [0, 0, 0, 0, 2, 2, 2, 2].map(|node| cluster.peer(node));
    assert_eq!(callers, expected);
}

pub async fn a_call_that_is_taken_and_not_answered_is_silent_at_its_limit<C: Cluster>() {
    const LIMIT: Duration = Duration::from_millis(300);
    let mut cluster = C::of(2).await;
    let mut calls = cluster.calls(1);
    let called = cluster.peer(1).id;
    let (caller, message) = (cluster.router(0), Bytes::from_static(b"hello"));

    let begin = Instant::now();
    let answer = caller.call(&called, message.clone(), LIMIT).await;
    let took = begin.elapsed();

    assert_eq!(answer, Err(Unreachable::Silent));
    assert!(LIMIT <= took && took < LIMIT + SEARCH, "{took:?}");
    let taken = calls.try_recv().expect("it was delivered");
    assert_eq!(taken.message, message);
    // An answer that comes too late hurts nobody.
    let _ = taken.answer.send(message);
    assert_eq!(caller.me(), cluster.peer(0));
}

pub async fn a_call_that_is_dropped_has_no_answer<C: Cluster>() {
    let mut cluster = C::of(2).await;
    let mut calls = cluster.calls(1);
    let called = cluster.peer(1).id;

    let drops = tokio::spawn(async move { calls.recv().await.map(drop) });
    let answer = call(&cluster, 0, &called, Bytes::from_static(b"hello")).await;
    assert_eq!(answer, Err(Unreachable::Gone));

    // Nobody takes calls there any more.
    assert!(drops.await.expect("it ends").is_some());
    let answer = call(&cluster, 0, &called, Bytes::from_static(b"hello")).await;
    assert_eq!(answer, Err(Unreachable::Gone));
}

pub async fn a_message_that_is_too_long_is_refused<C: Cluster>() {
    let mut cluster = C::of(2).await;
    let mut calls = cluster.calls(1);
    let called = cluster.peer(1).id;
    let heard = tokio::spawn(async move {
        let call = calls.recv().await.expect("a call");
        // So is an answer.
        let _ = call.answer.send(vec![7; MAX_MESSAGE + 1].into());
        call.message
    });

    let too_long = Bytes::from(vec![7; MAX_MESSAGE + 1]);
    let refused = call(&cluster, 0, &called, too_long).await;
    assert_eq!(refused, Err(Unreachable::Gone));
    let answer = call(&cluster, 0, &called, Bytes::from_static(b"hello")).await;

    assert_eq!(heard.await.expect("it ends"), &b"hello"[..]);
    assert_eq!(answer, Err(Unreachable::Gone));
}

pub async fn all_nodes_name_the_same_closest_node<C: Cluster>() {
    const NODES: usize = 6;
    let cluster = C::of(NODES).await;
    let mut firsts = HashSet::new();
    for meeting in meetings(20) {
        let what = format!("all nodes name the same for {meeting:?}");
        let closest = eventually(&what, async || {
            let mut named = Vec::new();
            for node in 0..NODES {
                let closest = cluster.router(node).closest(&meeting).await;
                assert_eq!(ids(&closest).len(), closest.len(), "each once");
                assert!(closest.contains(&cluster.peer(node)), "itself");
                named.push(closest);
            }
            let agreed = named.iter().all(|one| *one == named[0]) && named[0].len() == NODES;
            agreed.then(|| named.remove(0))
        })
        .await;
        for peer in &closest {
            assert!((0..NODES).any(|node| cluster.peer(node) == *peer));
        }
        firsts.insert(closest[0].id.clone());
    }

    // Meetings are spread: that twenty fall on one of six has a probability of 10^-15.
    assert!(firsts.len() > 1, "{firsts:?}");
}

pub async fn what_a_node_knows_it_names_without_asking<C: Cluster>() {
    let cluster = C::of(4).await;
    for meeting in meetings(4) {
        eventually("everybody is known", async || {
            let router = cluster.router(0);
            let known = router.nearest_known(&meeting).await;
            assert!(known.contains(&cluster.peer(0)), "itself");
            let found = router.closest(&meeting).await;
            (known == found && known.len() == 4).then_some(())
        })
        .await;
    }
}

pub async fn a_killed_node_is_not_named_after_it_refused<C: Cluster>() {
    let mut cluster = C::of(4).await;
    let dead = cluster.peer(1);
    let meeting = meetings(1).remove(0);
    eventually("it is named", async || {
        let closest = cluster.router(0).closest(&meeting).await;
        closest.contains(&dead).then_some(())
    })
    .await;

    cluster.kill(1).await;
    // The first call may find a connection that seems to stand.
    eventually("it is known to be dead", async || {
        let answer = call(&cluster, 0, &dead.id, Bytes::new()).await;
        assert!(answer.is_err(), "{answer:?}");
        let closest = cluster.router(0).closest(&meeting).await;
        (answer == Err(Unreachable::Gone) && !closest.contains(&dead)).then_some(())
    })
    .await;

    for meeting in meetings(10) {
        let closest = cluster.router(0).closest(&meeting).await;
        assert!(!closest.contains(&dead));
        let known = cluster.router(0).nearest_known(&meeting).await;
        assert!(!known.contains(&dead));
    }
}

/// As long as a cluster that is busy may take.
async fn call<C: Cluster>(
    cluster: &C,
    asking: usize,
    to: &PeerId,
    message: Bytes,
) -> Result<Bytes, Unreachable> {
    let router = cluster.router(asking);
    router.call(to, message, Duration::from_secs(5)).await
}

/// Contents and repositories by turns.
fn meetings(number: usize) -> Vec<Meeting> {
    let meeting = |n: usize| match n % 2 {
        0 => Meeting::Content(Digest::sha256(&n.to_be_bytes())),
        _ => Meeting::Repository(format!("docker.io/library/image-{n}")),
    };
    (0..number).map(meeting).collect()
}

/// A key for content that is made up from `text`.
pub fn content(text: &str) -> Key {
    Key::Content(Digest::sha256(text.as_bytes()))
}

fn tag(registry: &str, path: &str, tag: &str) -> Key {
    let repository = Repository::new(registry, path).expect("a repository");
    Key::Tag(TagName::new(repository, tag).expect("a tag"))
}

async fn advertise<C: Cluster>(cluster: &C, node: usize, keys: &[Key]) {
    let router = cluster.router(node);
    router.advertise(keys.to_vec()).await.expect("it runs");
}

/// Everything that a search brings.
pub async fn all(router: &impl Router, key: &Key) -> Vec<Peer> {
    router.lookup(key.clone()).collect().await
}

/// Searches until exactly `providers` are found, each once.
pub async fn find<C: Cluster>(
    cluster: &C,
    asking: usize,
    key: &Key,
    providers: &[usize],
) -> Vec<Peer> {
    let expected: HashSet<PeerId> = providers.iter().map(|n| cluster.peer(*n).id).collect();
    let what = format!("nodes {providers:?} are found for {key} at node {asking}");
    eventually(&what, async || {
        let found = all(cluster.router(asking), key).await;
        let distinct = ids(&found);
        assert_eq!(found.len(), distinct.len(), "each peer once: {found:?}");
        assert!(!distinct.contains(&cluster.peer(asking).id), "itself");
        (distinct == expected).then_some(found)
    })
    .await
}

/// Looks until there is something to see.
pub async fn eventually<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let watch = async {
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    match tokio::time::timeout(DEADLINE, watch).await {
        Ok(seen) => seen,
        Err(_) => panic!("not within {DEADLINE:?}: {what}"),
    }
}

fn ids(peers: &[Peer]) -> HashSet<PeerId> {
    peers.iter().map(|peer| peer.id.clone()).collect()
}
