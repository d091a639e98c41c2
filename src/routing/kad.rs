//! The DHT: a [`Router`] over libp2p's Kademlia, in one swarm with nodes that run Spegel, and a [`Messenger`] between those
//! of them that are ours.
//!
//! ```text
//! Kad (handle, cloneable) --commands--> EventLoop --sole owner--> Swarm
//!                                          |-- lookups     who waits for which key
//!                                          |-- meetings    who was closest to a key, and who waits for that
//!                                          |-- acquaintances  zones, and who understands messages
//!                                          |-- records     own keys and when each is announced again
//!                                          |-- joining     rounds of bootstrap
//!                                          |-- known       peers of an earlier life, in a file
//!                                          |-- store       what others told (inside of the swarm)
//!                                          `-- membership  the handshake of a closed swarm (below it)
//! ```
//!
//! Nothing can be taken back from a DHT. A node that leaves says so to those it is connected to; all others ask it until
//! its records expire, and what makes that bearable is that it refuses at once and is then *gone* until it is next heard
//! of.

mod acquaintances;
mod addresses;
mod behaviour;
mod event_loop;
pub mod identity;
mod inbound;
mod joining;
mod known;
mod leave;
mod lookups;
mod meetings;
mod membership;
pub mod messages;
mod metrics;
mod records;
mod regions;
mod store;
mod tell;
mod transport;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use libp2p::core::transport::ListenerId;
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, Swarm};
use rand::rngs::StdRng;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::UnboundedReceiverStream;

pub use acquaintances::MAX_ZONE;
pub use behaviour::tcp;
pub use event_loop::EventLoop;
pub use meetings::{distance, place};
#[cfg(feature = "testing")]
pub(crate) use membership::Membership;
pub use membership::PROTOCOL as MEMBER_PROTOCOL;
pub use metrics::{Metrics, Strangers};
pub use transport::Carrier;

use super::bootstrap::{Bootstrap, BootstrapError, Bootstrapper};
use super::messenger::{Call, MAX_MESSAGE, Meeting, Messenger, Unreachable};
use super::{Neighbour, Peer, PeerId, Router, RouterClosed};
use crate::membership::Members;
use crate::oci::Key;
use crate::readiness::Guard;
use addresses::{Policy, multiaddr};
use behaviour::Behaviour;
use identity::IdentityError;
use known::KnownPeers;

/// Binding is a matter of microseconds; this is for a machine whose network interfaces cannot be listed.
const BIND: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct Config {
    /// Where other routers reach this one. Port 0 is allowed.
    pub listen: Vec<SocketAddr>,
    /// The addresses at which others reach this node: the pod's or the node's. Loopback is announced, and accepted from
    /// others, only if it is named here.
    pub advertise: Vec<IpAddr>,
    /// Every node's registry is taken to listen at this port.
    pub registry_port: u16,
    /// Where this node's identity and known peers are kept; without it, it has a new identity at each start.
    pub data_dir: Option<PathBuf>,
    /// How the first peers are found. Without it this node waits to be found.
    pub bootstrap: Option<Bootstrap>,
    /// What a lookup that has an answer waits for a peer that does not give one.
    pub resolve_timeout: Duration,
    /// Where this node stands, as its peers are told: at most [`MAX_ZONE`] bytes without semicolons and control
    /// characters, else they take it for none.
    pub zone: Option<String>,
    /// Who may take part. None: whoever reaches this node's router.
    pub members: Option<Arc<Members>>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no address to announce: name one at which other nodes reach this one")]
    NothingToAdvertise,
    #[error("no address to listen at for other routers")]
    NothingToListen,
    #[error("cannot listen for other routers at {address}: {source}")]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    #[error("cannot set up encryption: {0}")]
    Noise(#[from] libp2p::noise::Error),
}

/// The handle; all clones speak to one event loop.
#[derive(Clone, Debug)]
pub struct Kad {
    /// Unbounded: what is sent is bounded by the requests under way and by the node's content, and `lookup` and `refused`
    /// have no place to wait.
    commands: mpsc::UnboundedSender<Command>,
    me: Peer,
    listening: Arc<[SocketAddr]>,
    /// Where others are told that this router is.
    announced: Arc<[SocketAddr]>,
}

/// What [`bind`] has bound.
pub struct Bound {
    pub kad: Kad,
    pub event_loop: EventLoop,
    /// Calls from other nodes. When nobody takes them, or the receiver is gone, the callers are refused.
    pub calls: mpsc::Receiver<Call>,
}

#[derive(Debug)]
enum Command {
    Lookup {
        key: Key,
        waiter: mpsc::UnboundedSender<Peer>,
    },
    Advertise(Vec<Key>),
    Withdraw(Vec<Key>),
    Refused(PeerId),
    Leave(oneshot::Sender<()>),
    Neighbours(oneshot::Sender<Vec<Vec<SocketAddr>>>),
    Peers(oneshot::Sender<Vec<Neighbour>>),
    Closest {
        meeting: Meeting,
        waiter: meetings::Waiter,
    },
    NearestKnown {
        meeting: Meeting,
        waiter: meetings::Waiter,
    },
    Call {
        to: PeerId,
        message: Bytes,
        answer: oneshot::Sender<Result<Bytes, Unreachable>>,
    },
}

/// Binds the sockets; nothing is dialed before [`EventLoop::run`]. The guard is dropped when this node knows a peer, or
/// that there is none.
pub async fn bind(config: Config, metrics: Metrics, readiness: Guard) -> Result<Bound, Error> {
    bind_over(tcp(), config, metrics, readiness).await
}

/// [`bind`], over something else than TCP that has its addresses: hundreds of nodes in one process have not the
/// descriptors for a connection between any two.
pub async fn bind_over(
    carrier: impl Carrier,
    config: Config,
    metrics: Metrics,
    readiness: Guard,
) -> Result<Bound, Error> {
    if config.advertise.is_empty() {
        return Err(Error::NothingToAdvertise);
    }
    let keypair = identity::load_or_create(config.data_dir.as_deref())?;
    let known = KnownPeers::load(config.data_dir.as_deref(), Instant::now());
    let bootstrapper = config.bootstrap.map(Bootstrapper::new).transpose()?;
    let policy = Policy::of(&config.advertise);
    let rng = rand::make_rng::<StdRng>();
    let (zone, members) = (config.zone.as_deref(), config.members.clone());
    let mut swarm = behaviour::swarm(carrier, &keypair, policy, zone, members, rng)?;
    let listening = listen(&mut swarm, &config.listen).await?;
    let announced: Vec<SocketAddr> = config
        .advertise
        .iter()
        .filter_map(|ip| Some(SocketAddr::new(*ip, behaviour::port_for(*ip, &listening)?)))
        .collect();
    for socket in &announced {
        swarm.add_external_address(multiaddr(*socket));
    }
    let own = announced.iter().map(|socket| multiaddr(*socket)).collect();
    swarm.behaviour_mut().kad.store_mut().announce(own);

    let (commands, receiver) = mpsc::unbounded_channel();
    let (inbox, calls) = mpsc::channel(event_loop::MAX_CALLS);
    let at = announced
        .iter()
        .map(|at| SocketAddr::new(at.ip(), config.registry_port));
    let me = Peer {
        id: PeerId::new(swarm.local_peer_id().to_base58()),
        registry: at.collect(),
        zone: config.zone.as_deref().map(Arc::from),
    };
    let kad = Kad {
        commands,
        me: me.clone(),
        listening: listening.clone().into(),
        announced: announced.clone().into(),
    };
    let own = announced.into_iter().chain(listening).collect();
    let event_loop = EventLoop::new(event_loop::Parts {
        swarm,
        commands: receiver,
        policy,
        own,
        me,
        inbox,
        registry_port: config.registry_port,
        resolve_timeout: config.resolve_timeout,
        bootstrapper,
        known,
        is_closed: config.members.is_some(),
        metrics,
        readiness,
    });
    Ok(Bound {
        kad,
        event_loop,
        calls,
    })
}

/// Listens everywhere or fails; the addresses come back with their real ports. A family that the machine does not have
/// is passed over, as long as there is another.
async fn listen(
    swarm: &mut Swarm<Behaviour>,
    addresses: &[SocketAddr],
) -> Result<Vec<SocketAddr>, Error> {
    let mut listening = Vec::new();
    let mut without = None;
    for address in addresses {
        let address = *address;
        match listen_at(swarm, address).await {
            Ok(address) => listening.push(address),
            Err(source) if is_without_family(&source) => {
                without = Some(Error::Listen { address, source });
            }
            Err(source) => return Err(Error::Listen { address, source }),
        }
    }
    if listening.is_empty() {
        return Err(without.unwrap_or(Error::NothingToListen));
    }
    Ok(listening)
}

async fn listen_at(swarm: &mut Swarm<Behaviour>, address: SocketAddr) -> io::Result<SocketAddr> {
    let listener = swarm.listen_on(multiaddr(address)).map_err(io_error)?;
    let port = tokio::time::timeout(BIND, port_of(swarm, listener)).await??;
    Ok(SocketAddr::new(address.ip(), port))
}

/// IPv6 switched off by the kernel's command line, or for every interface.
fn is_without_family(error: &io::Error) -> bool {
    let unsupported = rustix::io::Errno::AFNOSUPPORT.raw_os_error();
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(unsupported)
}

async fn port_of(swarm: &mut Swarm<Behaviour>, listener: ListenerId) -> io::Result<u16> {
    use libp2p::multiaddr::Protocol;
    loop {
        match swarm.select_next_some().await {
            SwarmEvent::NewListenAddr {
                listener_id,
                address,
            } if listener_id == listener => {
                let port = address.iter().find_map(|part| match part {
                    Protocol::Tcp(port) => Some(port),
                    _ => None,
                });
                return port.ok_or_else(|| io::Error::other("the listener has no port"));
            }
            SwarmEvent::ListenerClosed {
                listener_id,
                reason,
                ..
            } if listener_id == listener => {
                reason?;
                return Err(io::Error::other("the listener was closed"));
            }
            SwarmEvent::ListenerError { listener_id, error } if listener_id == listener => {
                return Err(error);
            }
            _ => {}
        }
    }
}

fn io_error(error: libp2p::TransportError<io::Error>) -> io::Error {
    match error {
        libp2p::TransportError::Other(error) => error,
        other => io::Error::other(other.to_string()),
    }
}

impl Kad {
    /// Where the router listens, with the ports that port 0 became.
    pub fn listen_addrs(&self) -> &[SocketAddr] {
        &self.listening
    }

    /// This node's name among the peers.
    pub fn peer_id(&self) -> &PeerId {
        &self.me.id
    }

    /// Whom a node that knows nobody may call: this one first, and some of its neighbours, each with its addresses. A
    /// router that has ended knows nobody.
    pub async fn introduce(&self) -> Vec<Vec<Multiaddr>> {
        /// Who asks wants one; that so many are gone at once is an outage of half a cluster.
        const MAX: usize = 16;
        let (asker, told) = oneshot::channel();
        // An error is seen by the waiter.
        let _ = self.send(Command::Neighbours(asker));
        let neighbours = told.await.unwrap_or_default();
        let all = std::iter::once(self.announced.to_vec()).chain(neighbours);
        all.take(MAX)
            .map(|at| at.into_iter().map(multiaddr).collect())
            .collect()
    }

    /// Who is in the routing table or connected, in the order of their names. A router that has ended knows nobody.
    pub async fn neighbours(&self) -> Vec<Neighbour> {
        let (asker, told) = oneshot::channel();
        // An error is seen by the waiter.
        let _ = self.send(Command::Peers(asker));
        told.await.unwrap_or_default()
    }

    /// Tells the peers connected now that this node leaves, and returns when they know, or after a moment. Nothing is
    /// advertised any more; lookups go on.
    pub async fn leave(&self) {
        let (done, told) = oneshot::channel();
        if self.send(Command::Leave(done)).is_ok() {
            // An error says that the loop has ended, which tells them too.
            let _ = told.await;
        }
    }

    fn send(&self, command: Command) -> Result<(), RouterClosed> {
        self.commands.send(command).map_err(|_| RouterClosed)
    }
}

#[async_trait]
impl Router for Kad {
    fn lookup(&self, key: Key) -> BoxStream<'static, Peer> {
        let (waiter, found) = mpsc::unbounded_channel();
        // If the router has ended, the waiter is dropped here and the stream ends without a peer.
        let _ = self.send(Command::Lookup { key, waiter });
        UnboundedReceiverStream::new(found).boxed()
    }

    async fn advertise(&self, keys: Vec<Key>) -> Result<(), RouterClosed> {
        self.send(Command::Advertise(keys))
    }

    async fn withdraw(&self, keys: Vec<Key>) -> Result<(), RouterClosed> {
        self.send(Command::Withdraw(keys))
    }

    fn refused(&self, peer: &PeerId) {
        // If the router has ended there is nothing left to forget.
        let _ = self.send(Command::Refused(peer.clone()));
    }
}

#[async_trait]
impl Messenger for Kad {
    fn me(&self) -> Peer {
        self.me.clone()
    }

    async fn closest(&self, meeting: &Meeting) -> Vec<Peer> {
        let meeting = meeting.clone();
        self.named(|waiter| Command::Closest { meeting, waiter })
            .await
    }

    async fn nearest_known(&self, meeting: &Meeting) -> Vec<Peer> {
        let meeting = meeting.clone();
        self.named(|waiter| Command::NearestKnown { meeting, waiter })
            .await
    }

    /// A message that is too long is never sent, nor one to this node itself: nobody is reached.
    async fn call(
        &self,
        to: &PeerId,
        message: Bytes,
        limit: Duration,
    ) -> Result<Bytes, Unreachable> {
        if message.len() > MAX_MESSAGE || *to == self.me.id {
            return Err(Unreachable::Gone);
        }
        let (answer, answered) = oneshot::channel();
        let to = to.clone();
        let call = Command::Call {
            to,
            message,
            answer,
        };
        self.send(call).map_err(|_| Unreachable::Gone)?;
        match tokio::time::timeout(limit, answered).await {
            Ok(Ok(answer)) => answer,
            // The router has ended.
            Ok(Err(_)) => Err(Unreachable::Gone),
            Err(_) => Err(Unreachable::Silent),
        }
    }
}

impl Kad {
    /// This node alone when the router has ended.
    async fn named(&self, command: impl FnOnce(meetings::Waiter) -> Command) -> Vec<Peer> {
        let (waiter, named) = oneshot::channel();
        // If the router has ended, the waiter is dropped here.
        let _ = self.send(command(waiter));
        named.await.unwrap_or_else(|_| vec![self.me.clone()])
    }
}
