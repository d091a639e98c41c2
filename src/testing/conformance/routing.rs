//! The contract of [`Router`]. [`routing_conformance!`](crate::routing_conformance) makes a test of each fact here.
//!
//! A cluster takes a moment to know what it was told, so a fact is awaited with a deadline; what must *not* happen is
//! judged once the rest is there.

use std::collections::HashSet;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;

use crate::oci::{Digest, Key, Repository, TagName};
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
    type Router: Router;

    async fn of(nodes: usize) -> Self;

    fn router(&self, node: usize) -> &Self::Router;

    /// What the others must hear of `node`.
    fn peer(&self, node: usize) -> Peer;

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
