//! Messages to and from other nodes, and who is closest to a meeting.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use libp2p::PeerId;
use libp2p::core::Endpoint;
use libp2p::core::upgrade::NegotiationError;
use libp2p::kad::{QueryId, RecordKey};
use libp2p::request_response::{Event, Message, OutboundFailure};
use libp2p::swarm::{ConnectionId, NetworkBehaviour};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{debug, trace};

use super::super::addresses::multiaddr;
use super::super::meetings::{self, CLOSEST, Waiter};
use super::super::messages::{self, AnswerTo};
use super::EventLoop;
use crate::routing::messenger::{Call, Unreachable};
use crate::routing::{self, Peer};

/// Calls that wait to be taken or answered. When a thousand nodes start the same image in the same moment, one node is
/// the meeting point of a layer for all of them, and every one calls it; this is twice that.
pub const MAX_CALLS: usize = 2048;

/// In bytes, of the messages of all those calls together. A thousand reports of thirty digests have 3 MiB; with the longest
/// messages alone, [`MAX_CALLS`] would have 128.
const MAX_WAITING: usize = 8 << 20;

/// A caller on a new connection is known by its name alone until it has said where it is, which takes one round trip.
/// A meeting point must know where its callers are: it sends others there.
const INTRODUCTION: Duration = Duration::from_millis(100);

/// An answer that was waited for: to whom, what (nothing if the call was dropped), and the bytes of the question.
pub(super) type Answered = (AnswerTo, Option<Bytes>, usize);
pub(super) type Answer = BoxFuture<'static, Answered>;

/// A call from a peer that has not said where it is.
pub(super) struct Unintroduced {
    from: PeerId,
    message: Bytes,
    channel: AnswerTo,
    until: Instant,
}

impl EventLoop {
    pub(super) fn call(
        &mut self,
        to: &routing::PeerId,
        message: Bytes,
        answer: oneshot::Sender<Result<Bytes, Unreachable>>,
        now: Instant,
    ) {
        let Ok(peer) = to.as_str().parse::<PeerId>() else {
            let _ = answer.send(Err(Unreachable::Gone));
            return;
        };
        if !self.acquaintances.may_speak(&peer) {
            let _ = answer.send(Err(Unreachable::Stranger));
            return;
        }
        // Kademlia knows where most peers are. Who was met and has no place in the table is known here.
        let at = self.acquaintances.addresses(&peer).map(multiaddr).collect();
        let behaviour = self.swarm.behaviour_mut();
        behaviour.kad.ran_with(peer, now);
        let messages = &mut behaviour.messages;
        let call = messages.send_request_with_addresses(&peer, message, at);
        self.calls.insert(call, answer);
    }

    pub(super) fn observe_messages(&mut self, event: messages::Event, now: Instant) {
        match event {
            Event::Message {
                peer,
                connection_id,
                message:
                    Message::Request {
                        request, channel, ..
                    },
            } => {
                self.swarm.behaviour_mut().kad.ran(connection_id, now);
                self.called(peer, request, channel, now);
            }
            Event::Message {
                message:
                    Message::Response {
                        request_id,
                        response,
                    },
                ..
            } => {
                if let Some(answer) = self.calls.remove(&request_id) {
                    // It waits no longer.
                    let _ = answer.send(Ok(response));
                }
            }
            Event::OutboundFailure {
                peer,
                request_id,
                error,
                ..
            } => {
                debug!(%peer, %error, "a call has failed");
                let why = match &error {
                    OutboundFailure::UnsupportedProtocols => Unreachable::Stranger,
                    OutboundFailure::Io(error) if is_not_understood(error) => Unreachable::Stranger,
                    OutboundFailure::DialFailure
                    | OutboundFailure::ConnectionClosed
                    | OutboundFailure::Io(_) => Unreachable::Gone,
                    OutboundFailure::Timeout => Unreachable::Silent,
                };
                match error {
                    _ if why == Unreachable::Stranger => {
                        self.acquaintances.is_stranger(peer, now);
                    }
                    OutboundFailure::DialFailure | OutboundFailure::ConnectionClosed => {
                        self.meetings.gone(&peer);
                    }
                    _ => {}
                }
                if let Some(answer) = self.calls.remove(&request_id) {
                    let _ = answer.send(Err(why));
                }
            }
            Event::InboundFailure { peer, error, .. } => {
                trace!(%peer, %error, "a caller was not answered");
            }
            Event::ResponseSent { .. } => {}
        }
    }

    fn called(&mut self, from: PeerId, message: Bytes, channel: AnswerTo, now: Instant) {
        let held: usize = self
            .unintroduced
            .iter()
            .map(|call| call.message.len())
            .sum();
        if self.answers.len() + self.unintroduced.len() >= MAX_CALLS
            || self.waiting + held + message.len() > MAX_WAITING
        {
            debug!(%from, "a call is refused: too many wait");
            return;
        }
        let call = Unintroduced {
            from,
            message,
            channel,
            until: now + INTRODUCTION,
        };
        if self.registry_of(from).is_empty() {
            self.unintroduced.push(call);
        } else {
            self.deliver(call);
        }
    }

    /// Delivers the calls of `peer`, which has said where it is.
    pub(super) fn introduced(&mut self, peer: PeerId) {
        for call in self.take_unintroduced(|call| call.from == peer) {
            self.deliver(call);
        }
    }

    /// Delivers calls whose callers have had the time to say where they are.
    pub(super) fn deliver_late(&mut self, now: Instant) {
        for call in self.take_unintroduced(|call| call.until <= now) {
            self.deliver(call);
        }
    }

    fn take_unintroduced(&mut self, which: impl Fn(&Unintroduced) -> bool) -> Vec<Unintroduced> {
        if self.unintroduced.is_empty() {
            return Vec::new();
        }
        self.unintroduced
            .extract_if(.., |call| which(call))
            .collect()
    }

    pub(super) fn introduction_ends(&self) -> Option<Instant> {
        self.unintroduced.iter().map(|call| call.until).min()
    }

    fn deliver(&mut self, call: Unintroduced) {
        let (answer, answered) = oneshot::channel();
        let (length, channel) = (call.message.len(), call.channel);
        let registry = self.registry_of(call.from);
        let delivered = self.inbox.try_send(Call {
            from: self.peer_at(call.from, registry),
            message: call.message,
            answer,
        });
        match delivered {
            Ok(()) => {
                self.waiting += length;
                let answer = async move { (channel, answered.await.ok(), length) };
                self.answers.push(answer.boxed());
            }
            // Nobody takes calls any more. To drop the channel is to refuse.
            Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                debug!(from = %call.from, "a call is refused: too many wait");
            }
        }
    }

    pub(super) fn answer(&mut self, (channel, answer, length): Answered) {
        self.waiting -= length;
        if let Some(answer) = answer {
            // An error says that the caller waits no longer. Without an answer the channel is dropped, which refuses.
            let messages = &mut self.swarm.behaviour_mut().messages;
            let _ = messages.send_response(channel, answer);
        }
    }

    /// Tells who is closest to `place`, now or when a search has ended.
    pub(super) fn closest(&mut self, place: RecordKey, waiter: Waiter, now: Instant) {
        if let Some(fresh) = self.meetings.fresh(&place, now) {
            let fresh = fresh.to_vec();
            self.tell_closest(&place, fresh, vec![waiter], now);
            return;
        }
        if !self.meetings.is_searched(&place) {
            let kad = &mut self.swarm.behaviour_mut().kad;
            let query = kad.get_closest_peers(place.to_vec());
            self.meetings.begin(query, place.clone(), now);
        }
        self.meetings.wait(place, waiter);
    }

    /// A search has said its last word: `closest` have answered.
    pub(super) fn search_ended(&mut self, query: QueryId, closest: Vec<PeerId>, now: Instant) {
        if let Some((place, waiters)) = self.meetings.end(query, closest.clone(), now) {
            self.tell_closest(&place, closest, waiters, now);
        }
    }

    fn tell_closest(
        &mut self,
        place: &RecordKey,
        closest: Vec<PeerId>,
        waiters: Vec<Waiter>,
        now: Instant,
    ) {
        if waiters.is_empty() {
            return;
        }
        let closest = self.named(place, closest, now);
        for waiter in waiters {
            // It waits no longer.
            let _ = waiter.send(closest.clone());
        }
    }

    /// Who is closest to `place` of those who are connected now, and this node.
    pub(super) fn nearest_known(&mut self, place: &RecordKey, now: Instant) -> Vec<Peer> {
        let connected = self.connected.keys().copied().collect();
        self.named(place, connected, now)
    }

    /// `peers` and this node, the closest to `place` first, without those who are known to be gone or strangers.
    fn named(&mut self, place: &RecordKey, mut peers: Vec<PeerId>, now: Instant) -> Vec<Peer> {
        let me = *self.swarm.local_peer_id();
        let store = self.swarm.behaviour_mut().kad.store_mut();
        peers.retain(|peer| {
            *peer != me && !store.is_gone(peer, now) && self.acquaintances.may_speak(peer)
        });
        peers.push(me);
        peers.sort_by_cached_key(|peer| meetings::distance(place, *peer));
        let named = peers.into_iter().filter_map(|peer| {
            if peer == me {
                return Some(self.me.clone());
            }
            let registry = self.registry_of(peer);
            (!registry.is_empty()).then(|| self.peer_at(peer, registry))
        });
        named.take(CLOSEST).collect()
    }

    pub(super) fn peer_at(&self, peer: PeerId, registry: Vec<SocketAddr>) -> Peer {
        Peer {
            id: routing::PeerId::new(peer.to_base58()),
            registry,
            zone: self.acquaintances.zone(&peer),
        }
    }

    /// Where the registry of `peer` is: where the peer is connected, or was, or is said to be. Empty if that is not known.
    pub(super) fn registry_of(&mut self, peer: PeerId) -> Vec<SocketAddr> {
        if let Some(at) = self.connected.get(&peer)
            && !at.is_empty()
        {
            return self.registries(at.iter().copied());
        }
        let met = self.registries(self.acquaintances.addresses(&peer));
        if !met.is_empty() {
            return met;
        }
        let told = self.told_at(peer);
        self.registries(told.into_iter())
    }

    /// Where others say that `peer` is: in the routing table, in searches that run, in records.
    pub(super) fn told_at(&mut self, peer: PeerId) -> Vec<SocketAddr> {
        let kad = &mut self.swarm.behaviour_mut().kad;
        // Asks kad where it would dial; no dial happens.
        let mut addresses = kad
            .handle_pending_outbound_connection(
                ConnectionId::new_unchecked(0),
                Some(peer),
                &[],
                Endpoint::Dialer,
            )
            .unwrap_or_default();
        addresses.extend_from_slice(kad.store_mut().addresses(&peer));
        let sockets = addresses.iter().filter_map(|a| self.policy.socket(a));
        sockets.collect()
    }

    /// The registries of another node with these addresses, each once.
    pub(super) fn registries(&self, at: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
        let mut registries = Vec::new();
        for address in at {
            let registry = SocketAddr::new(address.ip(), self.registry_port);
            if !registries.contains(&registry) && !self.me.registry.contains(&registry) {
                registries.push(registry);
            }
        }
        registries
    }
}

/// Whether the other side has said that it does not know the protocol. Whoever calls has sent its message by then, so it
/// hears that when it reads.
fn is_not_understood(error: &io::Error) -> bool {
    let inner = error.get_ref();
    let failed = inner.and_then(|inner| inner.downcast_ref::<NegotiationError>());
    matches!(failed, Some(NegotiationError::Failed))
}
