//! Goodbye: a node that leaves tells those it is connected to, and they offer it no longer.
//!
//! `/peili/leave/1` has no messages. Whoever opens a stream of that name leaves; that the other side agrees to the name
//! is its receipt. A node speaks for itself only, so there is nothing to forge. Identify tells who knows the protocol,
//! and others (Spegel's nodes) are never asked.
//!
//! A node that leaves may still open connections, for a pull that must end well. It says so on each of them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::iter;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::AsyncWriteExt as _;
use futures::future::BoxFuture;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::ReadyUpgrade;
use libp2p::core::{Endpoint, Multiaddr, OutboundUpgrade, UpgradeInfo};
use libp2p::swarm::handler::{
    ConnectionEvent, ConnectionHandlerEvent, FullyNegotiatedInbound, ProtocolsChange,
};
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler,
    Stream, SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{PeerId, StreamProtocol};

const PROTOCOL: StreamProtocol = StreamProtocol::new("/peili/leave/1");

/// How long the goodbye takes at most, over all peers together. One round trip is enough, so whoever has not agreed by
/// then is busy or gone, and hears of it from the first refused connection.
pub const FAREWELL: Duration = Duration::from_millis(300);

#[derive(Debug)]
pub enum Event {
    /// The peer has said that it leaves.
    Left(PeerId),
    /// Everybody knows that this node leaves who was connected when it began to, and who knows the protocol.
    Told,
}

#[derive(Default)]
pub struct Behaviour {
    leaving: bool,
    connections: HashMap<ConnectionId, PeerId>,
    /// Connections on which it is being said.
    telling: HashSet<ConnectionId>,
    actions: VecDeque<ToSwarm<Event, Leave>>,
}

/// What a connection is told to tell.
#[derive(Clone, Copy, Debug)]
pub struct Leave;

impl Behaviour {
    /// Tells everybody who is connected, and from now on everybody who will be.
    pub fn leave(&mut self) {
        if std::mem::replace(&mut self.leaving, true) {
            return;
        }
        for (connection, peer) in &self.connections {
            self.telling.insert(*connection);
            self.actions.push_back(ToSwarm::NotifyHandler {
                peer_id: *peer,
                handler: NotifyHandler::One(*connection),
                event: Leave,
            });
        }
        self.if_all_know();
    }

    fn told(&mut self, connection: ConnectionId) {
        if self.telling.remove(&connection) {
            self.if_all_know();
        }
    }

    fn if_all_know(&mut self) {
        if self.telling.is_empty() {
            self.actions.push_back(ToSwarm::GenerateEvent(Event::Told));
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(self.leaving))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(self.leaving))
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionEstablished(new) => {
                self.connections.insert(new.connection_id, new.peer_id);
            }
            FromSwarm::ConnectionClosed(old) => {
                self.connections.remove(&old.connection_id);
                self.told(old.connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {
            Said::Heard => {
                let left = ToSwarm::GenerateEvent(Event::Left(peer));
                self.actions.push_back(left);
            }
            Said::Told => self.told(connection),
        }
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Event, THandlerInEvent<Self>>> {
        self.actions.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}

/// Says the name, and is done when the other side has agreed to it. Requests go with their protocol's name (`behaviour`); where
/// there is none the name would never leave.
#[derive(Clone, Copy, Debug)]
pub struct Goodbye;

impl UpgradeInfo for Goodbye {
    type Info = StreamProtocol;
    type InfoIter = iter::Once<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        iter::once(PROTOCOL)
    }
}

impl OutboundUpgrade<Stream> for Goodbye {
    type Output = ();
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<()>>;

    fn upgrade_outbound(self, mut stream: Stream, _: StreamProtocol) -> Self::Future {
        Box::pin(async move {
            stream.flush().await?;
            stream.close().await
        })
    }
}

/// One connection.
pub struct Handler {
    /// Whether this node leaves.
    leaving: bool,
    /// Whether the other side knows the protocol.
    speaks: bool,
    /// Whether the stream that says so was asked for.
    asked: bool,
    said: VecDeque<Said>,
}

#[derive(Debug)]
pub enum Said {
    /// The other side leaves.
    Heard,
    /// The other side knows that this node leaves, or cannot be told.
    Told,
}

impl Handler {
    fn new(leaving: bool) -> Self {
        Self {
            leaving,
            speaks: false,
            asked: false,
            said: VecDeque::new(),
        }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Leave;
    type ToBehaviour = Said;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = Goodbye;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ())
    }

    fn on_behaviour_event(&mut self, Leave: Leave) {
        self.leaving = true;
        if !self.speaks {
            self.said.push_back(Said::Told);
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<Self::InboundProtocol, Self::OutboundProtocol>,
    ) {
        match event {
            ConnectionEvent::RemoteProtocolsChange(ProtocolsChange::Added(added)) => {
                self.speaks |= added.into_iter().any(|protocol| *protocol == PROTOCOL);
            }
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { .. }) => {
                self.said.push_back(Said::Heard);
            }
            ConnectionEvent::FullyNegotiatedOutbound(_) | ConnectionEvent::DialUpgradeError(_) => {
                self.said.push_back(Said::Told);
            }
            _ => {}
        }
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, (), Said>> {
        if let Some(said) = self.said.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(said));
        }
        if self.leaving && self.speaks && !self.asked {
            self.asked = true;
            let protocol = SubstreamProtocol::new(Goodbye, ());
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: protocol.with_timeout(FAREWELL),
            });
        }
        Poll::Pending
    }
}
