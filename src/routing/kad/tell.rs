//! Many records for one peer on one stream, instead of a stream for each.
//!
//! libp2p announces a key by a search of its own and one message to each of the twenty nearest. Here whoever keeps the
//! schedule has found out for many keys at once who is to hear of which (`regions`), and each peer gets all of its messages
//! in a row. They are Kademlia's own ADD_PROVIDER, on a stream of its own protocol, so every node understands them,
//! Spegel's among them: both read message after message until the stream ends.
//!
//! The other side ends its half of the stream when it has read all of ours. That is the receipt.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::io::{AsyncReadExt as _, AsyncWriteExt as _};
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::{DeniedUpgrade, ReadyUpgrade};
use libp2p::core::{Endpoint, Multiaddr};
use libp2p::kad::RecordKey;
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::swarm::handler::{ConnectionEvent, ConnectionHandlerEvent, FullyNegotiatedOutbound};
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionId, DialError, FromSwarm, NetworkBehaviour,
    NotifyHandler, Stream, SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{PeerId, StreamProtocol};
use prost::Message as _;

use super::behaviour::KAD_PROTOCOL;

/// For all of a peer's messages together, 100 KiB at the most: Kademlia's own time for one request.
const PATIENCE: Duration = Duration::from_secs(10);

/// Names one telling to one peer.
pub type Id = u64;

/// How a telling has ended.
#[derive(Debug)]
pub struct Told {
    pub id: Id,
    pub peer: PeerId,
    /// Whether the peer has read it to the end.
    pub ok: bool,
}

/// go-libp2p-kad-dht's `dht.proto`, as far as ADD_PROVIDER has it.
#[derive(prost::Message)]
struct AddProvider {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(bytes = "vec", tag = "2")]
    key: Vec<u8>,
    #[prost(message, repeated, tag = "9")]
    providers: Vec<Provider>,
}

#[derive(Clone, prost::Message)]
pub struct Provider {
    #[prost(bytes = "vec", tag = "1")]
    id: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    addresses: Vec<Vec<u8>>,
}

impl Provider {
    pub fn new(peer: PeerId, addresses: &[Multiaddr]) -> Self {
        Self {
            id: peer.to_bytes(),
            addresses: addresses.iter().map(Multiaddr::to_vec).collect(),
        }
    }
}

/// Writes the message that says `provider` has `key`, with its length before it.
pub fn write_record(key: &RecordKey, provider: &Provider, to: &mut Vec<u8>) {
    const ADD_PROVIDER: i32 = 2;
    let message = AddProvider {
        kind: ADD_PROVIDER,
        key: key.to_vec(),
        providers: vec![provider.clone()],
    };
    // A vector has room for everything.
    let _ = message.encode_length_delimited(to);
}

#[derive(Default)]
pub struct Behaviour {
    connections: HashMap<PeerId, Vec<ConnectionId>>,
    /// For a connection that is being opened.
    waiting: HashMap<PeerId, Vec<Telling>>,
    /// What is under way on each connection.
    telling: HashMap<ConnectionId, Vec<Id>>,
    actions: VecDeque<ToSwarm<Told, Telling>>,
}

/// What a connection is to tell.
#[derive(Debug)]
pub struct Telling {
    id: Id,
    messages: Bytes,
}

impl Behaviour {
    /// Tells `peer`, which is at `addresses`. A [`Told`] with this `id` will follow.
    pub fn tell(&mut self, id: Id, peer: PeerId, addresses: Vec<Multiaddr>, messages: Bytes) {
        let telling = Telling { id, messages };
        let connections = self.connections.get(&peer);
        if let Some(connection) = connections.and_then(|all| all.first()) {
            self.begin(peer, *connection, telling);
            return;
        }
        let waiting = self.waiting.entry(peer).or_default();
        waiting.push(telling);
        if waiting.len() == 1 {
            let dial = DialOpts::peer_id(peer).addresses(addresses).build();
            self.actions.push_back(ToSwarm::Dial { opts: dial });
        }
    }

    /// Forgets what is still waiting for a connection; nothing more is said of it.
    pub fn stop(&mut self) {
        self.waiting.clear();
    }

    fn begin(&mut self, peer: PeerId, connection: ConnectionId, telling: Telling) {
        self.telling.entry(connection).or_default().push(telling.id);
        self.actions.push_back(ToSwarm::NotifyHandler {
            peer_id: peer,
            handler: NotifyHandler::One(connection),
            event: telling,
        });
    }

    fn end(&mut self, id: Id, peer: PeerId, ok: bool) {
        let told = ToSwarm::GenerateEvent(Told { id, peer, ok });
        self.actions.push_back(told);
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Told;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::default())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::default())
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionEstablished(new) => {
                let connections = self.connections.entry(new.peer_id).or_default();
                connections.push(new.connection_id);
                for telling in self.waiting.remove(&new.peer_id).unwrap_or_default() {
                    self.begin(new.peer_id, new.connection_id, telling);
                }
            }
            FromSwarm::ConnectionClosed(old) => {
                if let Some(connections) = self.connections.get_mut(&old.peer_id) {
                    connections.retain(|connection| *connection != old.connection_id);
                    if connections.is_empty() {
                        self.connections.remove(&old.peer_id);
                    }
                }
                for id in self.telling.remove(&old.connection_id).unwrap_or_default() {
                    self.end(id, old.peer_id, false);
                }
            }
            FromSwarm::DialFailure(failure) => {
                // Somebody else of ours is dialing it, and will get through or not.
                if matches!(failure.error, DialError::DialPeerConditionFalse(_)) {
                    return;
                }
                let Some(peer) = failure.peer_id else {
                    return;
                };
                for telling in self.waiting.remove(&peer).unwrap_or_default() {
                    self.end(telling.id, peer, false);
                }
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        (id, ok): THandlerOutEvent<Self>,
    ) {
        if let Some(telling) = self.telling.get_mut(&connection) {
            telling.retain(|other| *other != id);
            if telling.is_empty() {
                self.telling.remove(&connection);
            }
        }
        self.end(id, peer, ok);
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Told, THandlerInEvent<Self>>> {
        self.actions.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}

/// One connection.
#[derive(Default)]
pub struct Handler {
    /// A stream is asked for, for each of these.
    asked: VecDeque<Telling>,
    to_ask: usize,
    writing: FuturesUnordered<BoxFuture<'static, (Id, io::Result<()>)>>,
    failed: VecDeque<Id>,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Telling;
    type ToBehaviour = (Id, bool);
    type InboundProtocol = DeniedUpgrade;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        // Kademlia itself listens for it.
        SubstreamProtocol::new(DeniedUpgrade, ())
    }

    fn connection_keep_alive(&self) -> bool {
        !self.asked.is_empty() || !self.writing.is_empty()
    }

    fn on_behaviour_event(&mut self, telling: Telling) {
        self.asked.push_back(telling);
        self.to_ask += 1;
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<Self::InboundProtocol, Self::OutboundProtocol>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol, ..
            }) => {
                if let Some(Telling { id, messages }) = self.asked.pop_front() {
                    let written = write(protocol, messages).map(move |written| (id, written));
                    self.writing.push(written.boxed());
                }
            }
            ConnectionEvent::DialUpgradeError(_) => {
                self.failed.extend(self.asked.pop_front().map(|it| it.id));
            }
            _ => {}
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, (), (Id, bool)>> {
        if let Some(id) = self.failed.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour((id, false)));
        }
        if let Poll::Ready(Some((id, written))) = self.writing.poll_next_unpin(cx) {
            let told = (id, written.is_ok());
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(told));
        }
        if self.to_ask > 0 {
            self.to_ask -= 1;
            let protocol = SubstreamProtocol::new(ReadyUpgrade::new(KAD_PROTOCOL), ());
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: protocol.with_timeout(PATIENCE),
            });
        }
        Poll::Pending
    }
}

/// Writes all, and waits until it was read.
async fn write(mut stream: Stream, messages: Bytes) -> io::Result<()> {
    let told = async {
        stream.write_all(&messages).await?;
        stream.close().await?;
        // Nothing is answered.
        match stream.read(&mut [0; 1]).await? {
            0 => Ok(()),
            _ => Err(io::Error::other("an answer to what is none")),
        }
    };
    tokio::time::timeout(PATIENCE, told).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_what_kademlia_calls_add_provider() {
        let peer = PeerId::random();
        let address: Multiaddr = "/ip4/10.0.0.1/tcp/5001".parse().unwrap();
        let key = RecordKey::new(b"key");
        let mut written = Vec::new();
        write_record(
            &key,
            &Provider::new(peer, std::slice::from_ref(&address)),
            &mut written,
        );

        // dht.proto by hand: field and kind of wire, length, bytes.
        let field = |number: u8, bytes: &[u8]| {
            let mut field = vec![number << 3 | 2, bytes.len() as u8];
            field.extend_from_slice(bytes);
            field
        };
        let provider = [field(1, &peer.to_bytes()), field(2, &address.to_vec())].concat();
        let message = [vec![1 << 3, 2], field(2, b"key"), field(9, &provider)].concat();
        assert_eq!(written, [vec![message.len() as u8], message].concat());
    }
}
