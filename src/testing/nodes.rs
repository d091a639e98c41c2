//! Real routers over TCP in one process, each with an address of its own: 127.0.0.x unless who starts it says otherwise.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::conformance::routing::{Cluster, eventually};
use super::counted::{Counted, Counts};
use super::memory::{Delay, Memory};
use crate::metrics::Page;
use crate::readiness::Readiness;
use crate::routing::Peer;
use crate::routing::bootstrap::Bootstrap;
use crate::routing::kad::{self, Kad};
use crate::routing::messenger::{Call, Messenger};

/// Nothing listens there: routers only tell of it.
pub const REGISTRY: u16 = 5000;

pub struct KadCluster(pub Vec<Node>);

pub struct Node {
    pub ip: IpAddr,
    pub kad: Kad,
    pub readiness: Readiness,
    pub registry: prometheus::Registry,
    pub stop: CancellationToken,
    pub task: JoinHandle<()>,
    /// Until somebody takes them.
    pub calls: Option<mpsc::Receiver<Call>>,
    /// What went over its connections.
    pub counts: Arc<Counts>,
    routing: kad::Metrics,
}

impl Node {
    pub async fn start(number: usize, bootstrap: Option<Bootstrap>) -> Self {
        let ip = loopback(number);
        Self::bound(ip, SocketAddr::new(ip, 0), bootstrap).await
    }

    pub async fn bound(ip: IpAddr, listen: SocketAddr, bootstrap: Option<Bootstrap>) -> Self {
        Self::with(kad::Config {
            bootstrap,
            ..config(ip, listen)
        })
        .await
    }

    pub async fn with(config: kad::Config) -> Self {
        let counts = Arc::new(Counts::default());
        let carrier = Counted::new(kad::tcp(), counts.clone());
        Self::over(carrier, config, counts).await
    }

    /// At 10.0.x.y, without a descriptor.
    pub async fn in_memory(number: usize, bootstrap: Option<Bootstrap>, delay: Delay) -> Self {
        let ip = IpAddr::V4(Ipv4Addr::from_bits((10 << 24) + 1 + number as u32));
        let config = kad::Config {
            bootstrap,
            ..config(ip, SocketAddr::new(ip, 0))
        };
        let counts = Arc::new(Counts::default());
        let carrier = Counted::new(Memory::new(delay), counts.clone());
        Self::over(carrier, config, counts).await
    }

    async fn over(carrier: impl kad::Carrier, config: kad::Config, counts: Arc<Counts>) -> Self {
        let (registry, readiness) = (prometheus::Registry::new(), Readiness::new());
        let (routing, guard) = (kad::Metrics::new(&registry), readiness.guard("routing"));
        let ip = config.advertise[0];
        let kad::Bound {
            kad,
            event_loop,
            calls,
        } = kad::bind_over(carrier, config, routing.clone(), guard)
            .await
            .expect("it listens");
        let stop = CancellationToken::new();
        let task = tokio::spawn(event_loop.run(stop.clone()));
        Self {
            ip,
            kad,
            readiness,
            registry,
            stop,
            task,
            calls: Some(calls),
            counts,
            routing,
        }
    }

    pub async fn ready(&self) {
        eventually("the node is ready", async || {
            self.readiness.is_ready().then_some(())
        })
        .await;
    }

    /// Waits until so many others are in its routing table.
    pub async fn knows(&self, peers: usize) {
        let line = format!("peili_peers{{state=\"known\"}} {peers}\n");
        eventually("the node knows the others", async || {
            self.metrics().contains(&line).then_some(())
        })
        .await;
    }

    /// Whether it knows as many of a swarm of `nodes` as one does that has found its place.
    pub fn has_found_its_place(&self, nodes: usize) -> bool {
        const KNOWN: usize = 25;
        self.peers_in("known") >= (nodes - 1).min(KNOWN)
    }

    /// Peers in this state now: "known", "connected", "gone".
    pub fn peers_in(&self, state: &str) -> usize {
        self.routing.peers_in(state)
    }

    pub fn metrics(&self) -> String {
        let families = self.registry.gather();
        prometheus::TextEncoder::new()
            .encode_to_string(&families)
            .expect("metrics")
    }

    /// Kademlia's requests that it has been sent, of one kind: "FindNode", "GetProvider", "AddProvider".
    pub fn requests(&self, kind: &str) -> u64 {
        let name = format!("libp2p_kad_inbound_requests_total{{request=\"{kind}\"}}");
        let page = Page::new(prometheus::Registry::new(), self.routing.libp2p());
        let page = page.text().expect("metrics");
        let requests = page.lines().filter(|line| line.starts_with(&name));
        let values = requests.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok());
        values.sum()
    }

    pub fn address(&self) -> Multiaddr {
        multiaddr(self.kad.listen_addrs()[0])
    }

    /// Ends it without a word: from now on it refuses connections.
    pub async fn kill(&mut self) {
        self.task.abort();
        // An error says that it was ended, which it was to be.
        let _ = (&mut self.task).await;
    }
}

/// The address of node `number`, of the 16 million that a machine has for itself.
pub fn loopback(number: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits((127 << 24) + 1 + number as u32))
}

pub fn config(advertise: IpAddr, listen: SocketAddr) -> kad::Config {
    kad::Config {
        listen: vec![listen],
        advertise: vec![advertise],
        registry_port: REGISTRY,
        data_dir: None,
        bootstrap: None,
        resolve_timeout: Duration::from_millis(20),
        zone: None,
        members: None,
    }
}

pub fn multiaddr(socket: SocketAddr) -> Multiaddr {
    Multiaddr::from(socket.ip()).with(Protocol::Tcp(socket.port()))
}

#[async_trait(?Send)]
impl Cluster for KadCluster {
    type Router = Kad;

    async fn of(nodes: usize) -> Self {
        let first = Node::start(0, Some(Bootstrap::Static(vec![]))).await;
        let seed = Bootstrap::Static(vec![first.address()]);
        let mut cluster = vec![first];
        for number in 1..nodes {
            cluster.push(Node::start(number, Some(seed.clone())).await);
        }
        for node in &cluster {
            node.ready().await;
        }
        Self(cluster)
    }

    fn router(&self, node: usize) -> &Kad {
        &self.0[node].kad
    }

    fn peer(&self, node: usize) -> Peer {
        let node = &self.0[node];
        Peer {
            id: node.kad.peer_id().clone(),
            registry: vec![SocketAddr::new(node.ip, REGISTRY)],
            zone: node.kad.me().zone,
        }
    }

    fn calls(&mut self, node: usize) -> mpsc::Receiver<Call> {
        self.0[node].calls.take().expect("nobody took them")
    }

    async fn kill(&mut self, node: usize) {
        self.0[node].kill().await;
    }
}
