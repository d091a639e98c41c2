//! What the swarm says, and what follows from it.

use std::collections::HashSet;
use std::net::SocketAddr;

use libp2p::core::ConnectedPoint;
use libp2p::core::transport::TransportError;
use libp2p::kad::{
    self, GetClosestPeersError, GetClosestPeersOk, GetProvidersError, GetProvidersOk, QueryId,
    QueryResult,
};
use libp2p::swarm::{ConnectionId, DialError, ListenError, SwarmEvent};
use libp2p::{Multiaddr, PeerId, identify, ping};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::super::behaviour::{BehaviourEvent, DIAL, KAD_PROTOCOL, REPLICATION};
use super::super::leave;
use super::super::membership::Stranger;
use super::super::messages;
use super::super::metrics::Direction;
use super::super::store::{MAX_ADDRESSES, MAX_PER_KEY, Store};
use super::EventLoop;
use super::join::Phase;
use crate::telemetry::Seldom;

impl EventLoop {
    pub(super) fn observe(&mut self, event: SwarmEvent<BehaviourEvent>) {
        let now = Instant::now();
        self.metrics.swarm(&event);
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Kad(event)) => self.observe_kad(event, now),
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                peer_id,
                info,
                ..
            })) => {
                self.identified(peer_id, info, now);
                self.introduced(peer_id);
            }
            SwarmEvent::Behaviour(BehaviourEvent::Messages(event)) => {
                self.observe_messages(event, now);
            }
            SwarmEvent::Behaviour(BehaviourEvent::Tell(told)) => self.told(&told, now),
            SwarmEvent::Behaviour(BehaviourEvent::Leave(leave::Event::Left(peer))) => {
                self.farewell(peer, now);
            }
            SwarmEvent::Behaviour(BehaviourEvent::Leave(leave::Event::Told)) => {
                if let Some(leaving) = &mut self.leaving {
                    leaving.told = true;
                }
            }
            SwarmEvent::Behaviour(BehaviourEvent::Ping(ping::Event {
                peer,
                result: Ok(round_trip),
                ..
            })) => self.acquaintances.answered(peer, round_trip, now),
            SwarmEvent::Behaviour(BehaviourEvent::Ping(ping::Event {
                peer,
                result: Err(ping::Failure::Timeout),
                ..
            })) => {
                // A host that vanished without a word: nothing else would ever close this connection.
                debug!(%peer, "peer does not answer pings");
                let _ = self.swarm.disconnect_peer_id(peer);
                self.forget(peer, now);
            }
            SwarmEvent::Dialing {
                peer_id: Some(_),
                connection_id,
            } => {
                self.dials.insert(connection_id, now);
            }
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            } => {
                self.dials.remove(&connection_id);
                self.swarm.behaviour_mut().kad.store_mut().met(&peer_id);
                let addresses = self.connected.entry(peer_id).or_default();
                if let ConnectedPoint::Dialer { address, .. } = &endpoint {
                    addresses.extend(self.policy.socket(address));
                }
                self.metrics.peers("connected", self.connected.len());
                if let Phase::Dialing(dialing) = &mut self.phase {
                    dialing.round.reached(connection_id);
                }
            }
            SwarmEvent::ConnectionClosed {
                peer_id,
                num_established: 0,
                ..
            } => {
                if let Some(at) = self.connected.remove(&peer_id) {
                    self.metrics.peers("connected", self.connected.len());
                    self.acquaintances.disconnected(peer_id, at, now);
                }
            }
            SwarmEvent::OutgoingConnectionError {
                peer_id,
                connection_id,
                error,
            } => {
                self.met_stranger(&error);
                self.not_reached(peer_id, connection_id, &error, now);
            }
            SwarmEvent::IncomingConnectionError {
                send_back_addr,
                error: ListenError::Transport(TransportError::Other(error)),
                ..
            } => {
                if let Some(stranger) = Stranger::in_error(&error) {
                    self.refused_stranger(stranger, &send_back_addr);
                }
            }
            SwarmEvent::NewListenAddr { address, .. } => {
                self.own.extend(self.policy.socket(&address));
            }
            _ => {}
        }
    }

    fn observe_kad(&mut self, event: kad::Event, now: Instant) {
        match event {
            kad::Event::OutboundQueryProgressed {
                id, result, step, ..
            } => match result {
                QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders {
                    providers, ..
                })) => self.found(id, providers, now),
                QueryResult::GetProviders(
                    Ok(GetProvidersOk::FinishedWithNoAdditionalRecord { closest_peers })
                    | Err(GetProvidersError::Timeout { closest_peers, .. }),
                ) => {
                    self.end_lookup(id, now);
                    self.search_ended(id, closest_peers, now);
                }
                QueryResult::GetClosestPeers(
                    Ok(GetClosestPeersOk { peers, .. })
                    | Err(GetClosestPeersError::Timeout { peers, .. }),
                ) if self.announcing.is_search(&id) => {
                    let nearest = peers.into_iter().map(|peer| (peer.peer_id, peer.addrs));
                    self.announcement_found(id, nearest.collect(), now);
                }
                QueryResult::GetClosestPeers(
                    Ok(GetClosestPeersOk { peers, .. })
                    | Err(GetClosestPeersError::Timeout { peers, .. }),
                ) => {
                    let closest = peers.into_iter().map(|peer| peer.peer_id).collect();
                    self.search_ended(id, closest, now);
                }
                QueryResult::Bootstrap(_) if step.last => {
                    self.settled = true;
                    self.count_peers(now);
                }
                _ => {}
            },
            kad::Event::RoutingUpdated { peer, .. } => {
                let kad = &mut self.swarm.behaviour_mut().kad;
                // Learned from what it sent before.
                if kad.store_mut().has_left(&peer) {
                    kad.remove_peer(&peer);
                }
                self.count_peers(now);
            }
            _ => {}
        }
    }

    /// Providers of a key that is looked up. Their addresses are in no event: they are in the query, as long as it runs,
    /// and in the store, if it was the store that answered.
    fn found(&mut self, query: QueryId, providers: HashSet<PeerId>, now: Instant) {
        let me = *self.swarm.local_peer_id();
        // One answer of 16 KiB has room for hundreds of made-up ones; no node keeps more of a key than this.
        for provider in providers.into_iter().take(MAX_PER_KEY) {
            let store = self.swarm.behaviour_mut().kad.store_mut();
            if provider == me
                || !self.lookups.wants(query, &provider)
                || store.is_gone(&provider, now)
            {
                continue;
            }
            let registry = self.registry_of_provider(provider);
            if !registry.is_empty() {
                let peer = self.peer_at(provider, registry);
                self.lookups.found(query, provider, peer, now);
            }
        }
        self.lookups.answered(query, now);
    }

    /// What others say of a connected peer's place is worth nothing beside what it says itself.
    fn registry_of_provider(&mut self, provider: PeerId) -> Vec<SocketAddr> {
        let told = match self.connected.get(&provider) {
            Some(at) if !at.is_empty() => at.iter().copied().collect(),
            _ => self.told_at(provider),
        };
        self.registries(told.into_iter())
    }

    /// A peer has said who it is, where it is, and what it speaks.
    fn identified(&mut self, peer: PeerId, info: identify::Info, now: Instant) {
        let speaks = info.protocols.contains(&messages::PROTOCOL);
        self.acquaintances
            .identified(peer, &info.agent_version, speaks, now);
        if !info.protocols.contains(&KAD_PROTOCOL) {
            // One that we dialed: of one that dialed us we want nothing.
            if self.connected.get(&peer).is_some_and(|at| !at.is_empty()) {
                static SAID: Seldom = Seldom::new();
                if SAID.is_due() {
                    warn!(
                        %peer, agent = info.agent_version,
                        "what answers at a router's address does not speak {KAD_PROTOCOL}",
                    );
                }
                self.joining.met_stranger();
                // An error says that it is gone already.
                let _ = self.swarm.disconnect_peer_id(peer);
            }
            return;
        }
        let kad = &mut self.swarm.behaviour_mut().kad;
        if kad.store_mut().has_left(&peer) {
            return;
        }
        kad.store_mut().heard(&peer);
        let usable: Vec<(Multiaddr, SocketAddr)> = info
            .listen_addrs
            .into_iter()
            .filter_map(|address| self.policy.socket(&address).map(|socket| (address, socket)))
            .take(MAX_ADDRESSES)
            .collect();
        if usable.is_empty() {
            return;
        }
        if has_place(kad, peer) {
            for (address, _) in &usable {
                kad.add_address(&peer, address.clone());
            }
        }
        // It may have moved: another peer would be asked in its name where it was.
        for old in table_addresses(kad, peer) {
            let socket = self.policy.socket(&old);
            if !usable.iter().any(|(_, new)| Some(*new) == socket) {
                kad.remove_address(&peer, &old);
            }
        }
        // The connection may be closed already; and who tells new addresses for ever is listened to for a while.
        if let Some(at) = self.connected.get_mut(&peer)
            && at.len() < 4 * MAX_ADDRESSES
        {
            at.extend(usable.into_iter().map(|(_, socket)| socket));
        }
    }

    /// Whoever was dialed and has no secret in common with this node. Of others nothing is said here.
    fn met_stranger(&mut self, error: &DialError) {
        static SAID: Seldom = Seldom::new();
        self.stranger = None;
        let DialError::Transport(tried) = error else {
            return;
        };
        for (address, error) in tried {
            let TransportError::Other(error) = error else {
                continue;
            };
            let Some(stranger) = Stranger::in_error(error) else {
                continue;
            };
            self.stranger = Some(stranger);
            self.metrics.stranger(Direction::Out, stranger, address);
            if SAID.is_due() {
                warn!(
                    %address,
                    lacks = stranger.as_str(),
                    "{}. It takes no part in this node's swarm, nor this node in its: give all nodes the same \
                     --cluster-secret-file, or none",
                    self.what_differs(stranger),
                );
            }
        }
    }

    /// Somebody has called who has no secret in common with this node.
    fn refused_stranger(&self, stranger: Stranger, address: &Multiaddr) {
        static SAID: Seldom = Seldom::new();
        self.metrics.stranger(Direction::In, stranger, address);
        // Into an open swarm nobody is refused: it was a member of a closed one, or no router at all.
        if self.is_closed && SAID.is_due() {
            warn!(
                %address,
                lacks = stranger.as_str(),
                "a stranger has called and was refused: {}",
                self.what_differs(stranger),
            );
        }
    }

    pub(super) fn what_differs(&self, stranger: Stranger) -> &'static str {
        match (stranger, self.is_closed) {
            (Stranger::OtherSecret, _) => "it has another cluster secret than this node",
            (Stranger::NoSecret, true) => {
                "it has no cluster secret, or is no router at all, and this node has one"
            }
            (Stranger::NoSecret, false) => {
                "it has a cluster secret, or is no router at all, and this node has none"
            }
        }
    }

    fn not_reached(
        &mut self,
        peer: Option<PeerId>,
        connection: ConnectionId,
        error: &DialError,
        now: Instant,
    ) {
        let begun = self.dials.remove(&connection);
        let ourselves = match error {
            DialError::LocalPeerId { address } => self.policy.socket(address),
            _ => None,
        };
        self.own.extend(ourselves);
        if let Phase::Dialing(dialing) = &mut self.phase {
            if ourselves.is_some() {
                dialing.round.ourselves(connection);
            } else if dialing.round.refused(connection) {
                debug!(%error, "a bootstrap address was not reached");
            }
        }
        let refused = match error {
            // A host without power and one that has too much to do look alike; to take the one for the other would hide
            // what the busy one holds from everybody who asks us. It is not gone, only not worth asking.
            DialError::Transport(_) if begun.is_some_and(|at| now.duration_since(at) >= DIAL) => {
                false
            }
            // Somebody else at its address: it was restarted under a new name, or moved.
            DialError::Transport(_)
            | DialError::WrongPeerId { .. }
            | DialError::LocalPeerId { .. } => true,
            _ => return,
        };
        if let Some(peer) = peer
            && !self.swarm.is_connected(&peer)
        {
            debug!(%peer, %error, refused, "peer was not reached");
            if refused {
                self.forget(peer, now);
            } else {
                self.swarm.behaviour_mut().kad.remove_peer(&peer);
                self.count_peers(now);
            }
        }
    }
}

/// Whether `peer` is in the routing table, or there is room for it. Where there is none libp2p dials whoever was not heard of for
/// longest, to see whether that one still deserves its place; with connections that end when they are idle it is most of
/// those it knows, the dial is a new connection at its other end, which dials somebody in its turn, and a thousand nodes
/// opened 1,900 connections a second for five lookups. Who is gone loses its place when it is next asked.
pub(super) fn has_place(kad: &mut kad::Behaviour<Store>, peer: PeerId) -> bool {
    let Some(bucket) = kad.kbucket(peer) else {
        return false;
    };
    bucket.num_entries() < REPLICATION.get() || !table_addresses(kad, peer).is_empty()
}

fn table_addresses(kad: &mut kad::Behaviour<Store>, peer: PeerId) -> Vec<Multiaddr> {
    let Some(bucket) = kad.kbucket(peer) else {
        return Vec::new();
    };
    let entry = bucket
        .iter()
        .find(|entry| *entry.node.key.preimage() == peer);
    entry.map_or_else(Vec::new, |entry| entry.node.value.iter().cloned().collect())
}
