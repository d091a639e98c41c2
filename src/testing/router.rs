//! A swarm in memory: every node knows at once what every other has told.
//!
//! It is honest about what a DHT cannot do: what was withdrawn is found until [`FakeSwarm::fade`], and a dead node's
//! records outlive it. On command a router is slow, hangs, or has ended.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};

use crate::oci::Key;
use crate::routing::{Peer, PeerId, Router, RouterClosed};

/// Cloneable; all clones are the same swarm.
#[derive(Clone, Debug, Default)]
pub struct FakeSwarm {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    nodes: BTreeMap<PeerId, Node>,
    records: HashMap<Key, HashSet<PeerId>>,
}

#[derive(Debug, Default)]
struct Node {
    registry: Vec<SocketAddr>,
    advertised: HashSet<Key>,
    /// Whom this node does not offer until it hears of them.
    gone: HashSet<PeerId>,
    refusals: Vec<PeerId>,
    lookups: usize,
    delay: Duration,
    hangs: bool,
    ended: bool,
}

/// One node's router; all clones are the same node.
#[derive(Clone, Debug)]
pub struct FakeRouter {
    id: PeerId,
    swarm: FakeSwarm,
}

impl FakeSwarm {
    pub fn new() -> Self {
        Self::default()
    }

    /// A new node, whose registry listens at `registry`.
    pub fn join(&self, registry: SocketAddr) -> FakeRouter {
        let mut state = self.lock();
        let id = PeerId::new(format!("node-{}", state.nodes.len()));
        let node = Node {
            registry: vec![registry],
            ..Node::default()
        };
        state.nodes.insert(id.clone(), node);
        FakeRouter {
            id,
            swarm: self.clone(),
        }
    }

    /// Records that nobody renews expire, and dead nodes' with them.
    pub fn fade(&self) {
        let mut state = self.lock();
        let State { nodes, records } = &mut *state;
        for (key, providers) in records {
            providers.retain(|id| {
                nodes
                    .get(id)
                    .is_some_and(|node| !node.ended && node.advertised.contains(key))
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FakeRouter {
    pub fn id(&self) -> &PeerId {
        &self.id
    }

    /// What the others hear of this node.
    pub fn peer(&self) -> Peer {
        Peer {
            id: self.id.clone(),
            registry: self.node(|node| node.registry.clone()),
        }
    }

    /// From now on a lookup is silent for this long before it tells what it finds.
    pub fn delay_lookups(&self, delay: Duration) {
        self.node(|node| node.delay = delay);
    }

    /// From now on a lookup neither finds anything nor ends.
    pub fn hang_lookups(&self) {
        self.node(|node| node.hangs = true);
    }

    /// The router ends; what it has told outlives it.
    pub fn end(&self) {
        self.node(|node| node.ended = true);
    }

    /// What the cluster is told now of this node's content, in the order of the keys' text.
    pub fn advertised(&self) -> Vec<Key> {
        let mut keys: Vec<Key> = self.node(|node| node.advertised.iter().cloned().collect());
        keys.sort_by_key(Key::to_string);
        keys
    }

    /// Whom this node's callers called refusing, in order.
    pub fn refusals(&self) -> Vec<PeerId> {
        self.node(|node| node.refusals.clone())
    }

    /// How many lookups there were.
    pub fn lookups(&self) -> usize {
        self.node(|node| node.lookups)
    }

    fn node<T>(&self, with: impl FnOnce(&mut Node) -> T) -> T {
        let mut state = self.swarm.lock();
        with(state.nodes.entry(self.id.clone()).or_default())
    }

    fn find(&self, key: &Key) -> Vec<Peer> {
        let state = self.swarm.lock();
        let gone = state.nodes.get(&self.id).map(|node| &node.gone);
        let providers = state.records.get(key).into_iter().flatten();
        providers
            .filter(|id| **id != self.id && gone.is_none_or(|gone| !gone.contains(id)))
            .filter_map(|id| {
                let node = state.nodes.get(id)?;
                Some(Peer {
                    id: id.clone(),
                    registry: node.registry.clone(),
                })
            })
            .collect()
    }
}

#[async_trait]
impl Router for FakeRouter {
    fn lookup(&self, key: Key) -> BoxStream<'static, Peer> {
        let (delay, hangs, ended) = self.node(|node| {
            node.lookups += 1;
            (node.delay, node.hangs, node.ended)
        });
        if ended {
            return stream::empty().boxed();
        }
        if hangs {
            return stream::pending().boxed();
        }
        let router = self.clone();
        let search = async move {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            stream::iter(router.find(&key))
        };
        stream::once(search).flatten().boxed()
    }

    async fn advertise(&self, keys: Vec<Key>) -> Result<(), RouterClosed> {
        let mut state = self.swarm.lock();
        let node = state.nodes.entry(self.id.clone()).or_default();
        if node.ended {
            return Err(RouterClosed);
        }
        node.advertised.extend(keys.iter().cloned());
        for key in keys {
            state
                .records
                .entry(key)
                .or_default()
                .insert(self.id.clone());
        }
        for node in state.nodes.values_mut() {
            node.gone.remove(&self.id);
        }
        Ok(())
    }

    async fn withdraw(&self, keys: Vec<Key>) -> Result<(), RouterClosed> {
        self.node(|node| {
            if node.ended {
                return Err(RouterClosed);
            }
            node.advertised.retain(|key| !keys.contains(key));
            Ok(())
        })
    }

    fn refused(&self, peer: &PeerId) {
        self.node(|node| {
            node.gone.insert(peer.clone());
            node.refusals.push(peer.clone());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::conformance::routing::{Cluster, all, content};

    struct FakeCluster(Vec<FakeRouter>);

    #[async_trait(?Send)]
    impl Cluster for FakeCluster {
        type Router = FakeRouter;

        async fn of(nodes: usize) -> Self {
            let swarm = FakeSwarm::new();
            let registry = |n: usize| SocketAddr::from(([10, 0, 0, n as u8], 5000));
            Self((0..nodes).map(|n| swarm.join(registry(n))).collect())
        }

        fn router(&self, node: usize) -> &FakeRouter {
            &self.0[node]
        }

        fn peer(&self, node: usize) -> Peer {
            self.0[node].peer()
        }

        async fn kill(&mut self, node: usize) {
            self.0[node].end();
        }
    }

    crate::routing_conformance!(FakeCluster);

    #[tokio::test]
    async fn what_was_withdrawn_is_found_until_it_fades() {
        let cluster = FakeCluster::of(2).await;
        let [asking, telling] = [&cluster.0[0], &cluster.0[1]];
        telling.advertise(vec![content("layer")]).await.unwrap();
        telling.withdraw(vec![content("layer")]).await.unwrap();
        assert_eq!(telling.advertised(), []);

        assert_eq!(all(asking, &content("layer")).await, [telling.peer()]);
        asking.swarm.fade();
        assert_eq!(all(asking, &content("layer")).await, []);
    }

    #[tokio::test(start_paused = true)]
    async fn it_misbehaves_on_command() {
        let cluster = FakeCluster::of(2).await;
        let [asking, telling] = [&cluster.0[0], &cluster.0[1]];
        telling.advertise(vec![content("layer")]).await.unwrap();
        let begin = tokio::time::Instant::now();

        asking.delay_lookups(Duration::from_secs(3));
        assert_eq!(all(asking, &content("layer")).await.len(), 1);
        assert_eq!(begin.elapsed(), Duration::from_secs(3));

        asking.hang_lookups();
        let mut hanging = asking.lookup(content("layer"));
        let hanging = tokio::time::timeout(Duration::from_secs(99), hanging.next());
        assert!(hanging.await.is_err());

        asking.end();
        assert_eq!(all(asking, &content("layer")).await, []);
        assert!(asking.advertise(vec![]).await.is_err());
        assert!(asking.withdraw(vec![]).await.is_err());
        assert_eq!(asking.lookups(), 3);
    }
}
