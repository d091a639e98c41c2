//! Connections from outside: as many as there is room for, and newcomers first.
//!
//! A plain cap shuts out whoever comes last, which in a cluster is the node that was just added. Here the connection that
//! has been idle for longest makes room; its peer opens another when it has something to ask. Only when every connection
//! has something running is a newcomer refused.
//!
//! What runs is known from Kademlia: each of its messages, in or out, is seen on its way between behaviour and connection.
//! What else connections are for says so itself ([`Capped::ran`]). Pings keep no connection busy.

use std::collections::{HashMap, VecDeque};
use std::ops::{Deref, DerefMut};
use std::task::{Context, Poll};
use std::time::Duration;

use libp2p::PeerId;
use libp2p::core::transport::PortUse;
use libp2p::core::{Endpoint, Multiaddr};
use libp2p::swarm::{
    CloseConnection, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler,
    THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use tokio::time::Instant;

/// A connection costs 46 KiB (measured), so these take 46 MiB of the 128 that the chart gives. A node of a 200-node cluster
/// holds 100 to 215 connection ends of both directions at its busiest.
pub const MAX_INBOUND: usize = 1024;

/// A message that was not answered for so long never will be: it is Kademlia's own time-out. So a connection on which none
/// moved for as long has no stream that still runs.
pub const RUNNING: Duration = Duration::from_secs(10);

/// Every connection has something running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {0} connections from outside are in use")]
pub struct Full(usize);

/// Who is connected from outside, and when something last ran there.
#[derive(Debug)]
struct Guests {
    cap: usize,
    running: Duration,
    stirred: HashMap<ConnectionId, (PeerId, Instant)>,
}

impl Guests {
    /// Whether there is room for one more, and who must go for it.
    fn admit(&mut self, now: Instant) -> Result<Option<(PeerId, ConnectionId)>, Full> {
        if self.stirred.len() < self.cap {
            return Ok(None);
        }
        let idlest = self.stirred.iter().min_by_key(|(_, (_, at))| *at);
        match idlest {
            Some((id, (peer, at))) if now.duration_since(*at) >= self.running => {
                let (id, peer) = (*id, *peer);
                self.stirred.remove(&id);
                Ok(Some((peer, id)))
            }
            _ => Err(Full(self.cap)),
        }
    }

    fn came(&mut self, connection: ConnectionId, peer: PeerId, now: Instant) {
        self.stirred.insert(connection, (peer, now));
    }

    fn ran(&mut self, connection: ConnectionId, now: Instant) {
        if let Some((_, at)) = self.stirred.get_mut(&connection) {
            *at = now;
        }
    }

    /// On one of its connections, and it is not known on which.
    fn ran_with(&mut self, peer: PeerId, now: Instant) {
        for (guest, at) in self.stirred.values_mut() {
            if *guest == peer {
                *at = now;
            }
        }
    }

    fn went(&mut self, connection: ConnectionId) {
        self.stirred.remove(&connection);
    }
}

/// `B`, and a cap on the connections that come from outside.
pub struct Capped<B> {
    inner: B,
    guests: Guests,
    evicted: VecDeque<(PeerId, ConnectionId)>,
}

impl<B> Capped<B> {
    pub fn new(inner: B, cap: usize, running: Duration) -> Self {
        Self {
            inner,
            guests: Guests {
                cap,
                running,
                stirred: HashMap::new(),
            },
            evicted: VecDeque::new(),
        }
    }

    /// Something else than `B`'s runs on this connection.
    pub fn ran(&mut self, connection: ConnectionId, now: Instant) {
        self.guests.ran(connection, now);
    }

    /// Something else than `B`'s runs on one of the peer's connections.
    pub fn ran_with(&mut self, peer: PeerId, now: Instant) {
        self.guests.ran_with(peer, now);
    }
}

impl<B> Deref for Capped<B> {
    type Target = B;

    fn deref(&self) -> &B {
        &self.inner
    }
}

impl<B> DerefMut for Capped<B> {
    fn deref_mut(&mut self) -> &mut B {
        &mut self.inner
    }
}

impl<B: NetworkBehaviour> NetworkBehaviour for Capped<B> {
    type ConnectionHandler = B::ConnectionHandler;
    type ToSwarm = B::ToSwarm;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.inner
            .handle_pending_inbound_connection(connection, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let evicted = self
            .guests
            .admit(Instant::now())
            .map_err(ConnectionDenied::new)?;
        self.evicted.extend(evicted);
        self.inner
            .handle_established_inbound_connection(connection, peer, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.inner
            .handle_pending_outbound_connection(connection, peer, addresses, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner
            .handle_established_outbound_connection(connection, peer, address, role, port)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match &event {
            FromSwarm::ConnectionEstablished(new) if new.endpoint.is_listener() => {
                self.guests
                    .came(new.connection_id, new.peer_id, Instant::now());
            }
            FromSwarm::ConnectionClosed(old) => self.guests.went(old.connection_id),
            _ => {}
        }
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        self.guests.ran(connection, Instant::now());
        self.inner
            .on_connection_handler_event(peer, connection, event);
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        if let Some((peer_id, connection)) = self.evicted.pop_front() {
            return Poll::Ready(ToSwarm::CloseConnection {
                peer_id,
                connection: CloseConnection::One(connection),
            });
        }
        let action = self.inner.poll(cx);
        if let Poll::Ready(ToSwarm::NotifyHandler {
            peer_id, handler, ..
        }) = &action
        {
            match handler {
                NotifyHandler::One(connection) => self.guests.ran(*connection, Instant::now()),
                NotifyHandler::Any => self.guests.ran_with(*peer_id, Instant::now()),
            }
        }
        action
    }
}

#[cfg(test)]
mod tests;
