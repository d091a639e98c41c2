//! A hostile node of the swarm: libp2p as everybody has it, with a store that lies, and streams of raw bytes.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};

use futures::StreamExt as _;
use futures::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::identity::Keypair;
use libp2p::kad::store::{Error, RecordStore, Result as Stored};
use libp2p::kad::{self, ProviderRecord, Record, RecordKey};
use libp2p::request_response::{self, Message, OutboundRequestId, ProtocolSupport};
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder, identify, noise, tcp, yamux};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

pub const KAD: StreamProtocol = StreamProtocol::new("/spegel/kad/1.0.0");
pub const FLIGHT: StreamProtocol = StreamProtocol::new("/peili/flight/1");
const IDENTIFY: StreamProtocol = StreamProtocol::new("/ipfs/id/1.0.0");
/// Of one answer, in bytes.
const READ: u64 = 1 << 20;

/// Who is said to provide every key, and where.
pub type Lies = Arc<Mutex<Vec<(PeerId, Vec<Multiaddr>)>>>;

pub struct Store(Lies);

impl RecordStore for Store {
    type RecordsIter<'a> = std::iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = std::iter::Empty<Cow<'a, ProviderRecord>>;

    fn get(&self, _: &RecordKey) -> Option<Cow<'_, Record>> {
        None
    }

    fn put(&mut self, _: Record) -> Stored<()> {
        Err(Error::MaxRecords)
    }

    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        std::iter::empty()
    }

    fn add_provider(&mut self, _: ProviderRecord) -> Stored<()> {
        Ok(())
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        let lies = self.0.lock().unwrap();
        let records = lies.iter().map(|(provider, addresses)| ProviderRecord {
            key: key.clone(),
            provider: *provider,
            expires: None,
            addresses: addresses.clone(),
        });
        records.collect()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        std::iter::empty()
    }

    fn remove_provider(&mut self, _: &RecordKey, _: &PeerId) {}
}

/// Bytes as they are, in both directions.
#[derive(Clone)]
pub struct Raw;

impl request_response::Codec for Raw {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T>(&mut self, _: &StreamProtocol, _: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        Ok(Vec::new())
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        let mut answer = Vec::new();
        io.take(READ).read_to_end(&mut answer).await?;
        Ok(answer)
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
        io.write_all(&bytes).await?;
        io.flush().await
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
        io.write_all(&bytes).await?;
        io.flush().await
    }
}

type Streams = request_response::Behaviour<Raw>;

#[derive(NetworkBehaviour)]
pub struct Behaviour {
    limits: connection_limits::Behaviour,
    pub kad: kad::Behaviour<Store>,
    identify: Toggle<identify::Behaviour>,
    /// In its place: one that says any bytes.
    misidentify: Toggle<Streams>,
    kad_streams: Streams,
    flight_streams: Streams,
}

type Work = Box<dyn FnOnce(&mut Swarm<Behaviour>, &mut Calls) + Send>;
/// By protocol, since each counts its own.
type Calls = HashMap<(bool, OutboundRequestId), oneshot::Sender<Result<Vec<u8>, String>>>;

pub struct Liar {
    pub id: PeerId,
    pub lies: Lies,
    work: mpsc::UnboundedSender<Work>,
    _task: AbortOnDropHandle<()>,
}

impl Liar {
    /// Listens at `at`, where it says that it is.
    pub async fn at(at: &str) -> Self {
        Self::that_says(at, None).await
    }

    /// With `identity` where identify's answer should be.
    pub async fn that_says(at: &str, identity: Option<Vec<u8>>) -> Self {
        let keypair = Keypair::generate_ed25519();
        let id = keypair.public().to_peer_id();
        let lies = Lies::default();
        let streams = |protocol: StreamProtocol, support| {
            let config = request_response::Config::default().with_max_concurrent_streams(10_000);
            Streams::with_codec(Raw, [(protocol, support)], config)
        };
        let behaviour = |key: &Keypair| {
            let mut kad =
                kad::Behaviour::with_config(id, Store(lies.clone()), kad::Config::new(KAD));
            kad.set_mode(Some(kad::Mode::Server));
            let config = identify::Config::new("/peili/1".into(), key.public());
            Behaviour {
                limits: connection_limits::Behaviour::new(ConnectionLimits::default()),
                kad,
                identify: identity
                    .is_none()
                    .then(|| identify::Behaviour::new(config.with_hide_listen_addrs(true)))
                    .into(),
                misidentify: identity
                    .as_ref()
                    .map(|_| streams(IDENTIFY, ProtocolSupport::Inbound))
                    .into(),
                kad_streams: streams(KAD, ProtocolSupport::Outbound),
                flight_streams: streams(FLIGHT, ProtocolSupport::Outbound),
            }
        };
        let mut swarm = SwarmBuilder::with_existing_identity(keypair)
            .with_tokio()
            .with_tcp(
                tcp::Config::default(),
                noise::Config::new,
                yamux::Config::default,
            )
            .unwrap()
            .with_behaviour(behaviour)
            .unwrap()
            .build();
        swarm.listen_on(at.parse().unwrap()).unwrap();
        let listening = loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                break address;
            }
        };
        swarm.add_external_address(listening);
        let (work, todo) = mpsc::unbounded_channel();
        let task = tokio::spawn(live(swarm, todo, identity));
        Self {
            id,
            lies,
            work,
            _task: AbortOnDropHandle::new(task),
        }
    }

    pub async fn does<T: Send + 'static>(
        &self,
        what: impl FnOnce(&mut Swarm<Behaviour>) -> T + Send + 'static,
    ) -> T {
        let (done, told) = oneshot::channel();
        let work = move |swarm: &mut Swarm<Behaviour>, _: &mut Calls| {
            let _ = done.send(what(swarm));
        };
        assert!(self.work.send(Box::new(work)).is_ok(), "it lives");
        told.await.unwrap()
    }

    /// Says that these are at these addresses to whoever looks for nodes, and goes nowhere any more itself.
    pub async fn knows(&self, peers: Vec<(PeerId, Multiaddr)>) {
        self.does(move |swarm| {
            let behaviour = swarm.behaviour_mut();
            let nowhere = ConnectionLimits::default().with_max_pending_outgoing(Some(0));
            *behaviour.limits.limits_mut() = nowhere;
            for (peer, at) in peers {
                behaviour.kad.add_address(&peer, at);
            }
        })
        .await;
    }

    /// One more connection, whatever there is.
    pub async fn dial(&self, at: Multiaddr) {
        self.does(move |swarm| {
            let dial = DialOpts::unknown_peer_id().address(at).build();
            swarm.dial(dial).unwrap();
        })
        .await;
    }

    pub async fn dial_again(&self, peer: PeerId, at: Multiaddr) {
        self.does(move |swarm| {
            let dial = DialOpts::peer_id(peer).condition(PeerCondition::Always);
            swarm.dial(dial.addresses(vec![at]).build()).unwrap();
        })
        .await;
    }

    /// Says `bytes` on a stream of its own; what is answered before the other side ends it.
    pub async fn says(
        &self,
        to: PeerId,
        on: StreamProtocol,
        bytes: Vec<u8>,
    ) -> Result<Vec<u8>, String> {
        let (answer, answered) = oneshot::channel();
        let work = move |swarm: &mut Swarm<Behaviour>, calls: &mut Calls| {
            let behaviour = swarm.behaviour_mut();
            let is_kad = on == KAD;
            let streams = match is_kad {
                true => &mut behaviour.kad_streams,
                false => &mut behaviour.flight_streams,
            };
            calls.insert((is_kad, streams.send_request(&to, bytes)), answer);
        };
        assert!(self.work.send(Box::new(work)).is_ok(), "it lives");
        answered.await.unwrap()
    }
}

async fn live(
    mut swarm: Swarm<Behaviour>,
    mut todo: mpsc::UnboundedReceiver<Work>,
    identity: Option<Vec<u8>>,
) {
    let mut calls = Calls::new();
    loop {
        let event = tokio::select! {
            work = todo.recv() => match work {
                Some(work) => {
                    work(&mut swarm, &mut calls);
                    continue;
                }
                None => return,
            },
            event = swarm.select_next_some() => event,
        };
        let (is_kad, event) = match event {
            SwarmEvent::Behaviour(BehaviourEvent::KadStreams(event)) => (true, event),
            SwarmEvent::Behaviour(BehaviourEvent::FlightStreams(event)) => (false, event),
            SwarmEvent::Behaviour(BehaviourEvent::Misidentify(
                request_response::Event::Message {
                    message: Message::Request { channel, .. },
                    ..
                },
            )) => {
                let streams = swarm.behaviour_mut().misidentify.as_mut().unwrap();
                let _ = streams.send_response(channel, identity.clone().unwrap_or_default());
                continue;
            }
            _ => continue,
        };
        let (id, outcome) = match event {
            request_response::Event::Message {
                message:
                    Message::Response {
                        request_id,
                        response,
                    },
                ..
            } => (request_id, Ok(response)),
            request_response::Event::OutboundFailure {
                request_id, error, ..
            } => (request_id, Err(error.to_string())),
            _ => continue,
        };
        if let Some(answer) = calls.remove(&(is_kad, id)) {
            let _ = answer.send(outcome);
        }
    }
}
