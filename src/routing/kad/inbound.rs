//! Connections from outside: as many as there is room for, and newcomers first.
//!
//! A plain cap shuts out whoever comes last, which in a cluster is the node that was just added. Here the connection that
//! has been idle for longest makes room; its peer opens another when it has something to ask. When every connection has
//! something running, one of the address that has the most of them makes room for somebody from an address that has fewer.
//! Only among equals is a newcomer refused. Handshakes under way are shared in the same way: an address may have as many as
//! are still free for all others.
//!
//! What runs is known from Kademlia: each of its messages, in or out, is seen on its way between behaviour and connection.
//! What else connections are for says so itself ([`Capped::ran`]). Pings keep no connection busy.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::task::{Context, Poll};
use std::time::Duration;

use libp2p::PeerId;
use libp2p::core::transport::PortUse;
use libp2p::core::{Endpoint, Multiaddr};
use libp2p::multiaddr::Protocol;
use libp2p::swarm::{
    CloseConnection, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler,
    THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use tokio::time::Instant;

/// Handshakes that may be under way from outside. A thousand nodes may call one that they are not connected to in the same
/// moment: with 256, 227 to 440 of them were refused (measured, both ends on two cores).
pub const MAX_PENDING: usize = 1024;

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

/// Too many handshakes are under way, of all or of the caller's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many handshakes are under way")]
pub struct Crowded;

/// Where a connection comes from. None: from this machine, which is no address of somebody else.
fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    let ip = match address.iter().next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.to_canonical(),
        _ => return None,
    };
    Some(ip).filter(|ip| !ip.is_loopback())
}

/// A connection from outside.
#[derive(Clone, Copy, Debug)]
struct Guest {
    peer: PeerId,
    from: Option<IpAddr>,
    /// When something last ran there.
    stirred: Instant,
}

/// Who is connected from outside.
#[derive(Debug)]
struct Guests {
    cap: usize,
    running: Duration,
    connected: HashMap<ConnectionId, Guest>,
    /// Handshakes under way, where they come from.
    pending: HashMap<ConnectionId, Option<IpAddr>>,
}

impl Guests {
    fn new(cap: usize, running: Duration) -> Self {
        Self {
            cap,
            running,
            connected: HashMap::new(),
            pending: HashMap::new(),
        }
    }

    /// Somebody calls.
    fn calls(&mut self, connection: ConnectionId, from: Option<IpAddr>) -> Result<(), Crowded> {
        let free = MAX_PENDING.saturating_sub(self.pending.len());
        let its = self.pending.values().filter(|it| **it == from).count();
        if free == 0 || from.is_some() && its >= free {
            return Err(Crowded);
        }
        self.pending.insert(connection, from);
        Ok(())
    }

    /// Whether there is room for one more, and who must go for it.
    fn admit(
        &mut self,
        from: Option<IpAddr>,
        now: Instant,
    ) -> Result<Option<(PeerId, ConnectionId)>, Full> {
        if self.connected.len() < self.cap {
            return Ok(None);
        }
        let is_idle = |guest: &Guest| now.duration_since(guest.stirred) >= self.running;
        let idlest = self.connected.iter().min_by_key(|(_, it)| it.stirred);
        let goes = match idlest {
            Some((id, guest)) if is_idle(guest) => Some((guest.peer, *id)),
            _ => self.greediest(from),
        };
        let (peer, id) = goes.ok_or(Full(self.cap))?;
        self.connected.remove(&id);
        Ok(Some((peer, id)))
    }

    /// Of the address that has the most connections the one on which nothing has run for longest, if one more from `from`
    /// would still be fewer.
    fn greediest(&self, from: Option<IpAddr>) -> Option<(PeerId, ConnectionId)> {
        let mut counts: HashMap<Option<IpAddr>, usize> = HashMap::new();
        for guest in self.connected.values() {
            *counts.entry(guest.from).or_default() += 1;
        }
        let its = counts.get(&from).copied().unwrap_or(0);
        let (greedy, most) = counts.into_iter().max_by_key(|(_, count)| *count)?;
        if most <= its + 1 {
            return None;
        }
        let of_it = self.connected.iter().filter(|(_, it)| it.from == greedy);
        let (id, guest) = of_it.min_by_key(|(_, it)| it.stirred)?;
        Some((guest.peer, *id))
    }

    fn came(&mut self, connection: ConnectionId, peer: PeerId, from: Option<IpAddr>, now: Instant) {
        let guest = Guest {
            peer,
            from,
            stirred: now,
        };
        self.connected.insert(connection, guest);
    }

    fn ran(&mut self, connection: ConnectionId, now: Instant) {
        if let Some(guest) = self.connected.get_mut(&connection) {
            guest.stirred = now;
        }
    }

    /// On one of its connections, and it is not known on which.
    fn ran_with(&mut self, peer: PeerId, now: Instant) {
        for guest in self.connected.values_mut() {
            if guest.peer == peer {
                guest.stirred = now;
            }
        }
    }

    fn went(&mut self, connection: ConnectionId) {
        self.connected.remove(&connection);
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
            guests: Guests::new(cap, running),
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
        self.guests
            .calls(connection, ip_of(remote))
            .map_err(ConnectionDenied::new)?;
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
            .admit(ip_of(remote), Instant::now())
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
                let from = ip_of(new.endpoint.get_remote_address());
                self.guests.pending.remove(&new.connection_id);
                self.guests
                    .came(new.connection_id, new.peer_id, from, Instant::now());
            }
            FromSwarm::ListenFailure(failed) => {
                self.guests.pending.remove(&failed.connection_id);
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
