//! What ours is measured beside: libp2p's Kademlia with its own settings and its own store, and one request and its answer
//! between two nodes, over the same kind of connection (TCP, noise, yamux, loopback).

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use futures::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::kad::store::MemoryStore;
use libp2p::kad::{self, GetProvidersOk, QueryId, QueryResult, RecordKey};
use libp2p::request_response::{self, ProtocolSupport};
use libp2p::swarm::{NetworkBehaviour, SwarmEvent, dial_opts::DialOpts};
use libp2p::{Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder, identify, noise, tcp, yamux};
use peili::testing::nodes::{loopback, multiaddr};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

const KAD: StreamProtocol = StreamProtocol::new("/reference/kad/1");
const ECHO: StreamProtocol = StreamProtocol::new("/reference/echo/1");
/// As ours keeps them, so that they are as warm.
const IDLE: Duration = Duration::from_secs(60);
/// Beside ours, which begin at the first.
const FIRST: usize = 1 << 16;

#[derive(NetworkBehaviour)]
struct Behaviour {
    kad: kad::Behaviour<MemoryStore>,
    identify: identify::Behaviour,
    echo: request_response::Behaviour<Echo>,
}

/// As long as one of Kademlia's requests and its answer with twenty neighbours.
#[derive(Clone, Copy)]
struct Echo;

const REQUEST: usize = 40;
const ANSWER: usize = 1600;

async fn read<T: AsyncRead + Unpin + Send>(io: &mut T, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    io.read_exact(&mut bytes).await?;
    Ok(bytes)
}

impl request_response::Codec for Echo {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io, REQUEST).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io, ANSWER).await
    }

    async fn write_request<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        bytes: Vec<u8>,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&bytes).await
    }

    async fn write_response<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        bytes: Vec<u8>,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&bytes).await
    }
}

/// What a node is asked to do, and whom it tells when it is done.
enum Command {
    Provide(RecordKey, oneshot::Sender<()>),
    /// Until the first provider, or to the end.
    Lookup(RecordKey, oneshot::Sender<()>),
    Echo(PeerId, oneshot::Sender<()>),
}

pub struct Plain {
    nodes: Vec<mpsc::UnboundedSender<Command>>,
    ids: Vec<PeerId>,
    _tasks: JoinSet<()>,
}

impl Plain {
    pub async fn of(nodes: usize) -> Result<Self> {
        let mut plain = Self {
            nodes: Vec::new(),
            ids: Vec::new(),
            _tasks: JoinSet::new(),
        };
        let mut first: Option<(PeerId, Multiaddr)> = None;
        for number in 0..nodes {
            let mut swarm = swarm()?;
            let at = multiaddr((loopback(FIRST + number), 0).into());
            swarm.listen_on(at)?;
            let at = loop {
                if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                    break address;
                }
            };
            swarm.add_external_address(at.clone());
            let me = *swarm.local_peer_id();
            match &first {
                Some((id, at)) => {
                    swarm.behaviour_mut().kad.add_address(id, at.clone());
                    swarm.dial(DialOpts::peer_id(*id).addresses(vec![at.clone()]).build())?;
                    swarm.behaviour_mut().kad.bootstrap()?;
                }
                None => first = Some((me, at)),
            }
            let (commands, receiver) = mpsc::unbounded_channel();
            plain.nodes.push(commands);
            plain.ids.push(me);
            plain._tasks.spawn(run(swarm, receiver));
        }
        Ok(plain)
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub async fn provide(&self, node: usize, key: &[u8]) -> Result<()> {
        let key = RecordKey::new(&key);
        ask(self.nodes[node].clone(), |done| Command::Provide(key, done)).await
    }

    /// Until the first provider, or to the end.
    pub fn lookup(
        &self,
        node: usize,
        key: &[u8],
    ) -> impl Future<Output = Result<()>> + Send + use<> {
        let node = self.nodes[node].clone();
        let key = RecordKey::new(&key);
        ask(node, move |done| Command::Lookup(key, done))
    }

    /// A request and its answer.
    pub fn echo(&self, node: usize, to: usize) -> impl Future<Output = Result<()>> + Send + use<> {
        let node = self.nodes[node].clone();
        let to = self.ids[to];
        ask(node, move |done| Command::Echo(to, done))
    }
}

async fn ask(
    node: mpsc::UnboundedSender<Command>,
    command: impl FnOnce(oneshot::Sender<()>) -> Command,
) -> Result<()> {
    let (done, told) = oneshot::channel();
    // An error is seen by the waiter.
    let _ = node.send(command(done));
    told.await.context("a node of the reference has ended")
}

fn swarm() -> Result<Swarm<Behaviour>> {
    let swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(
            tcp::Config::default().nodelay(true),
            noise::Config::new,
            yamux::Config::default,
        )?
        .with_behaviour(|key| {
            let me = key.public().to_peer_id();
            let mut kad =
                kad::Behaviour::with_config(me, MemoryStore::new(me), kad::Config::new(KAD));
            kad.set_mode(Some(kad::Mode::Server));
            let identify = identify::Config::new("reference/1".into(), key.public());
            let echo = [(ECHO, ProtocolSupport::Full)];
            Behaviour {
                kad,
                identify: identify::Behaviour::new(identify),
                echo: request_response::Behaviour::with_codec(Echo, echo, Default::default()),
            }
        })?
        .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE))
        .build();
    Ok(swarm)
}

/// What runs at one node.
#[derive(Default)]
struct Running {
    provides: HashMap<QueryId, oneshot::Sender<()>>,
    lookups: HashMap<QueryId, oneshot::Sender<()>>,
    echoes: HashMap<request_response::OutboundRequestId, oneshot::Sender<()>>,
}

async fn run(mut swarm: Swarm<Behaviour>, mut commands: mpsc::UnboundedReceiver<Command>) {
    let mut running = Running::default();
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(command) => running.begin(&mut swarm, command),
                None => return,
            },
            event = swarm.select_next_some() => {
                if let SwarmEvent::Behaviour(event) = event {
                    running.observe(&mut swarm, event);
                }
            }
        }
    }
}

impl Running {
    fn begin(&mut self, swarm: &mut Swarm<Behaviour>, command: Command) {
        let behaviour = swarm.behaviour_mut();
        match command {
            Command::Provide(key, done) => {
                // Dropped with the error, which whoever waits sees.
                if let Ok(query) = behaviour.kad.start_providing(key) {
                    self.provides.insert(query, done);
                }
            }
            Command::Lookup(key, done) => {
                let query = behaviour.kad.get_providers(key);
                self.lookups.insert(query, done);
            }
            Command::Echo(to, done) => {
                let request = behaviour.echo.send_request(&to, vec![7; REQUEST]);
                self.echoes.insert(request, done);
            }
        }
    }

    fn observe(&mut self, swarm: &mut Swarm<Behaviour>, event: BehaviourEvent) {
        use request_response::{Event, Message};
        match event {
            BehaviourEvent::Kad(kad::Event::OutboundQueryProgressed {
                id, result, step, ..
            }) => {
                let found = match result {
                    QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders {
                        providers,
                        ..
                    })) => !providers.is_empty(),
                    QueryResult::StartProviding(_) => {
                        if let Some(done) = self.provides.remove(&id) {
                            // It waits no longer.
                            let _ = done.send(());
                        }
                        return;
                    }
                    _ => false,
                };
                if (found || step.last)
                    && let Some(done) = self.lookups.remove(&id)
                {
                    let _ = done.send(());
                }
            }
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                for at in info.listen_addrs {
                    swarm.behaviour_mut().kad.add_address(&peer_id, at);
                }
            }
            BehaviourEvent::Echo(Event::Message { message, .. }) => match message {
                Message::Request { channel, .. } => {
                    let echo = &mut swarm.behaviour_mut().echo;
                    let _ = echo.send_response(channel, vec![7; ANSWER]);
                }
                Message::Response { request_id, .. } => {
                    if let Some(done) = self.echoes.remove(&request_id) {
                        let _ = done.send(());
                    }
                }
            },
            _ => {}
        }
    }
}
