//! A swarm in memory: every node knows at once what every other has told.
//!
//! It is honest about what a DHT cannot do: what was withdrawn is found until [`FakeSwarm::fade`], and a dead node's
//! records outlive it, and it is named as close to a meeting until a call finds it dead. On command a router is slow,
//! hangs, answers no calls, does not understand them, or has ended.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::{mpsc, oneshot};

use crate::oci::{Digest, Key};
use crate::routing::messenger::{Call, MAX_MESSAGE, Meeting, Messenger, Unreachable};
use crate::routing::{Peer, PeerId, Router, RouterClosed};

/// Calls that wait at one node; real ones let as many wait.
const MAX_CALLS: usize = 2048;

/// Kademlia's k.
const CLOSEST: usize = 20;

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

#[derive(Debug)]
struct Node {
    registry: Vec<SocketAddr>,
    zone: Option<Arc<str>>,
    inbox: mpsc::Sender<Call>,
    /// Until somebody takes it.
    calls: Option<mpsc::Receiver<Call>>,
    manners: Manners,
    /// The next call to it is lost.
    has_closed: bool,
    advertised: HashSet<Key>,
    /// Whom this node does not offer until it hears of them.
    gone: HashSet<PeerId>,
    refusals: Vec<PeerId>,
    lookups: usize,
    delay: Duration,
    hangs: bool,
    ended: bool,
}

/// How a node behaves that is called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Manners {
    #[default]
    Good,
    Silent,
    Strange,
}

impl Node {
    fn at(registry: SocketAddr) -> Self {
        let (inbox, calls) = mpsc::channel(MAX_CALLS);
        Self {
            registry: vec![registry],
            zone: None,
            inbox,
            calls: Some(calls),
            manners: Manners::default(),
            has_closed: false,
            advertised: HashSet::new(),
            gone: HashSet::new(),
            refusals: Vec::new(),
            lookups: 0,
            delay: Duration::ZERO,
            hangs: false,
            ended: false,
        }
    }

    fn as_peer(&self, id: &PeerId) -> Peer {
        Peer {
            id: id.clone(),
            registry: self.registry.clone(),
            zone: self.zone.clone(),
        }
    }
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
        state.nodes.insert(id.clone(), Node::at(registry));
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
        self.node(|node| node.as_peer(&self.id))
    }

    /// From now on this node says that it stands there.
    pub fn stand_in(&self, zone: &str) {
        self.node(|node| node.zone = Some(zone.into()));
    }

    /// What others call; once for each node. Until it is taken, calls wait.
    pub fn calls(&self) -> mpsc::Receiver<Call> {
        let calls = self.node(|node| node.calls.take());
        calls.expect("nobody has taken them yet")
    }

    /// From now on calls to this node are neither delivered nor answered.
    pub fn fall_silent(&self) {
        self.node(|node| node.manners = Manners::Silent);
    }

    /// The next call to this node comes on a connection that it has just closed.
    pub fn close_connections(&self) {
        self.node(|node| node.has_closed = true);
    }

    /// From now on this node does not understand calls, as those of Spegel do not.
    pub fn be_a_stranger(&self) {
        self.node(|node| node.manners = Manners::Strange);
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
        let node = state.nodes.get_mut(&self.id);
        with(node.expect("nodes never leave the map"))
    }

    fn find(&self, key: &Key) -> Vec<Peer> {
        let state = self.swarm.lock();
        let gone = state.nodes.get(&self.id).map(|node| &node.gone);
        let providers = state.records.get(key).into_iter().flatten();
        providers
            .filter(|id| **id != self.id && gone.is_none_or(|gone| !gone.contains(id)))
            .filter_map(|id| Some(state.nodes.get(id)?.as_peer(id)))
            .collect()
    }

    /// Whether the node called is silent.
    fn deliver(&self, to: &PeerId, call: Call) -> Result<bool, Unreachable> {
        let too_long = call.message.len() > MAX_MESSAGE;
        let mut state = self.swarm.lock();
        let ended = |id: &PeerId| state.nodes.get(id).is_none_or(|node| node.ended);
        if too_long || *to == self.id || ended(&self.id) {
            return Err(Unreachable::Gone);
        }
        if ended(to) {
            if let Some(me) = state.nodes.get_mut(&self.id) {
                me.gone.insert(to.clone());
            }
            return Err(Unreachable::Gone);
        }
        let callee = state.nodes.get_mut(to);
        if callee.is_some_and(|node| std::mem::take(&mut node.has_closed)) {
            return Err(Unreachable::Gone);
        }
        match state.nodes.get(to) {
            Some(node) if node.manners == Manners::Strange => Err(Unreachable::Stranger),
            Some(node) if node.manners == Manners::Silent => Ok(true),
            Some(node) => match node.inbox.try_send(call) {
                Ok(()) => Ok(false),
                Err(_) => Err(Unreachable::Gone),
            },
            None => Err(Unreachable::Gone),
        }
    }

    /// In the order that all nodes agree on, without strangers and those that this node has found dead.
    fn named(&self, meeting: &Meeting) -> Vec<Peer> {
        let state = self.swarm.lock();
        let Some(me) = state.nodes.get(&self.id).filter(|me| !me.ended) else {
            drop(state);
            return vec![self.peer()];
        };
        let named = state.nodes.iter().filter(|(id, node)| {
            **id == self.id || (node.manners != Manners::Strange && !me.gone.contains(id))
        });
        let mut named: Vec<Peer> = named.map(|(id, node)| node.as_peer(id)).collect();
        named.sort_by_cached_key(|peer| {
            Digest::sha256(format!("{meeting:?} {}", peer.id).as_bytes()).to_string()
        });
        named.truncate(CLOSEST);
        named
    }
}

#[async_trait]
impl Messenger for FakeRouter {
    fn me(&self) -> Peer {
        self.peer()
    }

    async fn closest(&self, meeting: &Meeting) -> Vec<Peer> {
        let delay = self.node(|node| node.delay);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        self.named(meeting)
    }

    async fn nearest_known(&self, meeting: &Meeting) -> Vec<Peer> {
        self.named(meeting)
    }

    async fn call(
        &self,
        to: &PeerId,
        message: Bytes,
        limit: Duration,
    ) -> Result<Bytes, Unreachable> {
        let (answer, answered) = oneshot::channel();
        let call = Call {
            from: self.peer(),
            message,
            answer,
        };
        let is_silent = self.deliver(to, call)?;
        let answered = async {
            if is_silent {
                std::future::pending::<()>().await;
            }
            let answer = answered.await.ok();
            let answer = answer.filter(|answer| answer.len() <= MAX_MESSAGE);
            answer.ok_or(Unreachable::Gone)
        };
        tokio::time::timeout(limit, answered)
            .await
            .unwrap_or(Err(Unreachable::Silent))
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
        let Some(node) = state.nodes.get_mut(&self.id).filter(|node| !node.ended) else {
            return Err(RouterClosed);
        };
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

        fn calls(&mut self, node: usize) -> mpsc::Receiver<Call> {
            self.0[node].calls()
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
    async fn a_node_that_is_called_misbehaves_on_command() {
        let cluster = FakeCluster::of(3).await;
        let [asking, called, _] = [0, 1, 2].map(|node: usize| &cluster.0[node]);
        called.stand_in("north");
        let meeting = Meeting::Repository("docker.io/library/nginx".into());
        let named = asking.closest(&meeting).await;
        assert_eq!(named.len(), 3);
        assert!(named.contains(&called.peer()));
        assert_eq!(called.me().zone.as_deref(), Some("north"));
        let call = |limit| asking.call(called.id(), Bytes::from_static(b"hello"), limit);
        let begin = tokio::time::Instant::now();

        called.fall_silent();
        let silent = call(Duration::from_secs(3)).await;
        assert_eq!(silent, Err(Unreachable::Silent));
        assert_eq!(begin.elapsed(), Duration::from_secs(3));

        called.be_a_stranger();
        let strange = call(Duration::from_secs(3)).await;
        assert_eq!(strange, Err(Unreachable::Stranger));
        assert_eq!(asking.closest(&meeting).await.len(), 2);
        assert_eq!(
            called.calls().try_recv().err(),
            Some(mpsc::error::TryRecvError::Empty)
        );
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
