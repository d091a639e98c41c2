//! The sole owner of the swarm: commands in, events out.
//!
//! `events` is what the swarm says, `messages` what nodes say to each other, `announce` what this node tells of its keys, and
//! `join` the way into the swarm; the rest is here.
//!
//! After every event the loop looks at what is due (`work`), and sleeps until the next thing is. The `select!` is
//! biased: everything that has arrived is read before a timer may say that nothing came.

mod announce;
mod events;
mod join;
mod messages;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use libp2p::kad::{QueryId, RecordKey};
use libp2p::request_response::OutboundRequestId;
use libp2p::swarm::{ConnectionId, SwarmEvent};
use libp2p::{PeerId, Swarm};
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::acquaintances::Acquaintances;
use super::addresses::Policy;
use super::behaviour::{Behaviour, BehaviourEvent};
use super::joining::Joining;
use super::known::KnownPeers;
use super::leave::{self, FAREWELL};
use super::lookups::Lookups;
use super::meetings::{self, Meetings};
use super::membership::Stranger;
use super::metrics::Advertised;
use super::records::{Schedule, record_key};
use super::{Command, Metrics};
use crate::readiness::Guard;
use crate::routing::bootstrap::Bootstrapper;
use crate::routing::messenger::{Call, Unreachable};
use crate::routing::{Neighbour, Peer};
use announce::Announcing;
use join::Phase;
pub use messages::MAX_CALLS;
use messages::{Answer, Unintroduced};

/// Expired records are hidden by their date; sweeping only gives their memory back.
const SWEEP: Duration = Duration::from_secs(60);

/// Buckets are refreshed this often without any reason, as Spegel's nodes do it: one refresh is hundreds of requests
/// cluster-wide, libp2p's five minutes saturate two cores at 1,000 nodes (measured).
const REFRESH: std::ops::Range<Duration> =
    Duration::from_secs(25 * 60)..Duration::from_secs(35 * 60);

/// While nodes come in numbers, buckets are refreshed at most this often, and only when the table has doubled.
const GROWTH_REFRESH: Duration = Duration::from_secs(60);

/// The first bootstrap takes milliseconds; one that meets a peer that hangs takes libp2p's 10 s for each such peer.
/// Announcements wait for it no longer than this.
const SETTLE: Duration = Duration::from_secs(3);

/// How long connections are given to close in order. Nothing depends on it.
const GOODBYE: Duration = Duration::from_millis(500);

/// Runs until it is told to stop.
#[must_use = "nothing happens before it runs"]
pub struct EventLoop {
    swarm: Swarm<Behaviour>,
    commands: mpsc::UnboundedReceiver<Command>,
    policy: Policy,
    registry_port: u16,
    metrics: Metrics,
    rng: StdRng,

    lookups: Lookups,
    /// Connections being opened to a peer whose name is known, as queries do it, and since when.
    dials: HashMap<ConnectionId, Instant>,
    /// Where connected peers say they are, or where they were dialed.
    connected: HashMap<PeerId, HashSet<SocketAddr>>,
    acquaintances: Acquaintances,

    /// This node, as others are told of it.
    me: Peer,
    meetings: Meetings,
    /// This node's calls under way.
    calls: HashMap<OutboundRequestId, oneshot::Sender<Result<Bytes, Unreachable>>>,
    /// Where calls from others go, [`MAX_CALLS`] at the most.
    inbox: mpsc::Sender<Call>,
    unintroduced: Vec<Unintroduced>,
    /// Calls that others have taken and will answer.
    answers: FuturesUnordered<Answer>,
    /// Bytes of the calls in `answers`.
    waiting: usize,

    schedule: Schedule,
    /// The same keys, counted.
    advertised: Advertised,
    announcing: Announcing,
    /// Peers in the routing table.
    table: usize,
    /// Whether the table has been filled from the first peer's, so that announcements reach the nearest.
    settled: bool,
    refreshed: Option<(Instant, usize)>,
    refresh_at: Instant,
    sweep_at: Instant,

    /// `None` once this node is ready.
    readiness: Option<Guard>,
    bootstrapper: Option<Arc<Bootstrapper>>,
    /// Addresses at which this node would meet itself.
    own: HashSet<SocketAddr>,
    joining: Joining,
    phase: Phase,
    /// When others are called beside those who are silent.
    beside_at: Option<Instant>,
    /// The last search for who stands beside this node, while few are known.
    around: Option<QueryId>,
    /// What was last said of the way to the first peers.
    trouble: Option<String>,
    known: KnownPeers,
    /// Whether only members take part.
    is_closed: bool,
    /// What the last bootstrap address that failed lacked, if it was that.
    stranger: Option<Stranger>,
    leaving: Option<Leaving>,
}

/// This node has said that it leaves.
struct Leaving {
    /// Whether everybody has heard.
    told: bool,
    /// From then on it is not waited whether everybody has heard.
    deadline: Instant,
    waiters: Vec<oneshot::Sender<()>>,
}

pub(super) struct Parts {
    pub swarm: Swarm<Behaviour>,
    pub commands: mpsc::UnboundedReceiver<Command>,
    pub policy: Policy,
    pub own: HashSet<SocketAddr>,
    pub me: Peer,
    pub inbox: mpsc::Sender<Call>,
    pub registry_port: u16,
    pub resolve_timeout: Duration,
    pub bootstrapper: Option<Bootstrapper>,
    pub known: KnownPeers,
    pub is_closed: bool,
    pub metrics: Metrics,
    pub readiness: Guard,
}

impl EventLoop {
    pub(super) fn new(parts: Parts) -> Self {
        let now = Instant::now();
        let mut rng = rand::make_rng::<StdRng>();
        // Without a way to look for others there is nobody to wait for.
        let readiness = parts.bootstrapper.is_some().then_some(parts.readiness);
        if let Some(guard) = &readiness {
            guard.because("looking for other nodes");
        }
        Self {
            swarm: parts.swarm,
            commands: parts.commands,
            policy: parts.policy,
            registry_port: parts.registry_port,
            metrics: parts.metrics,
            lookups: Lookups::new(parts.resolve_timeout),
            dials: HashMap::new(),
            connected: HashMap::new(),
            acquaintances: Acquaintances::default(),
            me: parts.me,
            meetings: Meetings::default(),
            calls: HashMap::new(),
            inbox: parts.inbox,
            unintroduced: Vec::new(),
            answers: FuturesUnordered::new(),
            waiting: 0,
            schedule: Schedule::default(),
            advertised: Advertised::default(),
            announcing: Announcing::default(),
            table: 0,
            settled: false,
            refreshed: None,
            refresh_at: now + rng.random_range(REFRESH),
            sweep_at: now + SWEEP,
            readiness,
            bootstrapper: parts.bootstrapper.map(Arc::new),
            own: parts.own,
            joining: Joining::new(now),
            phase: Phase::Waiting,
            beside_at: None,
            around: None,
            trouble: None,
            known: parts.known,
            is_closed: parts.is_closed,
            stranger: None,
            leaving: None,
            rng,
        }
    }

    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            self.work(Instant::now());
            let wake = self.wake_at();
            let asking = match &mut self.phase {
                Phase::Asking(answer) => answer.left_future(),
                Phase::Waiting | Phase::Dialing(_) => std::future::pending().right_future(),
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(command) = self.commands.recv() => self.command(command),
                Some(answer) = self.answers.next() => self.answer(answer),
                event = self.swarm.select_next_some() => self.observe(event),
                found = asking => self.try_candidates(found),
                () = tokio::time::sleep_until(wake) => self.fall_silent(Instant::now()),
            }
        }
        self.close().await;
    }

    /// Nothing can be taken back from the DHT: who has not heard that we leave and follows our old records is refused and
    /// asks the next.
    async fn close(mut self) {
        self.keep_known(Instant::now());
        let leaving = self.leave(Instant::now());
        let (told, deadline) = (leaving.told, leaving.deadline);
        if !told {
            let told = async { while !is_told(&self.swarm.select_next_some().await) {} };
            // Who has not agreed by then hears of it from the first refused connection.
            let _ = tokio::time::timeout_at(deadline, told).await;
        }
        self.leaving = None;
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            // An error says that it is gone already.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let closed = async {
            while self.swarm.connected_peers().next().is_some() {
                self.swarm.select_next_some().await;
            }
        };
        // What is not closed now is closed with the process.
        let _ = tokio::time::timeout(GOODBYE, closed).await;
        self.known.finish().await;
    }

    fn command(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Lookup { key, waiter } => {
                let key = record_key(&key);
                if let Some(waiter) = self.lookups.join(&key, waiter) {
                    let query = self.swarm.behaviour_mut().kad.get_providers(key.clone());
                    self.meetings.begin(query, key.clone(), now);
                    self.lookups.begin(query, key, waiter, now);
                }
            }
            Command::Closest { meeting, waiter } => {
                self.closest(meetings::place(&meeting), waiter, now);
            }
            Command::NearestKnown { meeting, waiter } => {
                // It waits no longer.
                let _ = waiter.send(self.nearest_known(&meetings::place(&meeting), now));
            }
            Command::Call {
                to,
                message,
                answer,
            } => self.call(&to, message, answer, now),
            Command::Advertise(keys) => {
                for key in keys {
                    if self.schedule.add(record_key(&key), now) {
                        self.advertised.count(&key, 1);
                    }
                }
                self.metrics.advertised(&mut self.advertised);
            }
            Command::Withdraw(keys) => {
                for key in keys {
                    let record = record_key(&key);
                    if self.schedule.remove(&record) {
                        self.advertised.count(&key, -1);
                    }
                    self.swarm.behaviour_mut().kad.stop_providing(&record);
                }
                self.metrics.advertised(&mut self.advertised);
            }
            Command::Refused(peer) => match peer.as_str().parse::<PeerId>() {
                // Its registry restarts, or the node is closing. While it speaks to us it is not forgotten.
                Ok(peer) if self.swarm.is_connected(&peer) => {}
                Ok(peer) => self.forget(peer, now),
                Err(_) => debug!(%peer, "refused by somebody who is no peer of this router"),
            },
            Command::Leave(done) => {
                // Now, while they are there: all may be about to leave.
                self.keep_known(now);
                self.leave(now).waiters.push(done);
            }
            Command::Neighbours(asker) => {
                // It waits no longer.
                let _ = asker.send(self.neighbours());
            }
            Command::Peers(asker) => {
                // It waits no longer.
                let _ = asker.send(self.peers());
            }
        }
    }

    /// Who is in the routing table, each with its addresses, in no order.
    fn neighbours(&mut self) -> Vec<Vec<SocketAddr>> {
        let policy = self.policy;
        let kad = &mut self.swarm.behaviour_mut().kad;
        let mut neighbours = Vec::new();
        for bucket in kad.kbuckets() {
            for entry in bucket.iter() {
                let addresses = entry.node.value.iter();
                let at: Vec<_> = addresses.filter_map(|a| policy.socket(a)).collect();
                if !at.is_empty() {
                    neighbours.push(at);
                }
            }
        }
        neighbours.shuffle(&mut self.rng);
        neighbours
    }

    /// Who is in the routing table or connected, for people.
    fn peers(&mut self) -> Vec<Neighbour> {
        let mut ids: HashSet<PeerId> = self.connected.keys().copied().collect();
        let kad = &mut self.swarm.behaviour_mut().kad;
        for bucket in kad.kbuckets() {
            ids.extend(bucket.iter().map(|entry| *entry.node.key.preimage()));
        }
        let mut all = Vec::new();
        for id in ids {
            let registry = self.registry_of(id);
            if registry.is_empty() {
                continue;
            }
            all.push(Neighbour {
                peer: self.peer_at(id, registry),
                is_connected: self.connected.contains_key(&id),
                round_trip: self.acquaintances.round_trip(&id),
                speaks: self.acquaintances.speaks(&id),
            });
        }
        all.sort_by(|a, b| a.peer.id.cmp(&b.peer.id));
        all
    }

    fn keep_known(&mut self, now: Instant) {
        let neighbours = self.neighbours().into_iter().flatten().collect();
        self.known.save(neighbours, now);
    }

    /// Says that this node leaves, once. What is announced later would say the opposite.
    fn leave(&mut self, now: Instant) -> &mut Leaving {
        if self.leaving.is_none() {
            let behaviour = self.swarm.behaviour_mut();
            behaviour.leave.leave();
            let kad = &mut behaviour.kad;
            let own: Vec<RecordKey> = kad.store_mut().own().cloned().collect();
            for key in &own {
                kad.stop_providing(key);
            }
            self.stop_announcing();
        }
        self.leaving.get_or_insert_with(|| Leaving {
            told: false,
            deadline: now + FAREWELL,
            waiters: Vec::new(),
        })
    }

    /// Tells those who wait for it that everybody has heard, or has had the time to.
    fn end_farewell(&mut self, now: Instant) {
        if let Some(leaving) = &mut self.leaving
            && (leaving.told || leaving.deadline <= now)
        {
            for waiter in leaving.waiters.drain(..) {
                // It waits no longer.
                let _ = waiter.send(());
            }
        }
    }

    /// The waiters have heard enough. The query goes on for a while: whoever is to meet about the key wants its end.
    fn end_lookup(&mut self, query: QueryId, now: Instant) {
        if let Some((_, outcome)) = self.lookups.end(query, now) {
            self.metrics.lookup(outcome);
        }
    }

    /// Forgets a peer until it is next heard of.
    fn forget(&mut self, peer: PeerId, now: Instant) {
        let kad = &mut self.swarm.behaviour_mut().kad;
        kad.remove_peer(&peer);
        kad.store_mut().gone(peer, now);
        self.acquaintances.forget(&peer);
        debug!(%peer, "peer is gone");
        self.count_peers(now);
    }

    /// A peer has said that it leaves. It is asked nothing more and offered to nobody.
    fn farewell(&mut self, peer: PeerId, now: Instant) {
        let kad = &mut self.swarm.behaviour_mut().kad;
        kad.remove_peer(&peer);
        kad.store_mut().left(peer, now);
        self.acquaintances.forget(&peer);
        debug!(%peer, "peer leaves");
        self.count_peers(now);
    }

    fn count_gone(&mut self, now: Instant) {
        let gone = self.swarm.behaviour_mut().kad.store_mut().gone_now(now);
        self.metrics.peers("gone", gone);
    }

    fn count_peers(&mut self, now: Instant) {
        let kad = &mut self.swarm.behaviour_mut().kad;
        let before = self.table;
        self.table = kad.kbuckets().map(|bucket| bucket.num_entries()).sum();
        self.metrics.peers("known", self.table);
        self.count_gone(now);
        if self.table == 0 {
            if before > 0 {
                info!("no peer is left");
                self.settled = false;
                self.refreshed = None;
                self.schedule.swarm_has(0, now, &mut self.rng);
                self.joining.alone_again(now);
            }
            return;
        }
        if self.readiness.take().is_some() {
            info!(peers = self.table, "found other nodes");
        }
        let grown = self.refreshed.is_none_or(|(at, size)| {
            self.table >= 2 * size && now.duration_since(at) >= GROWTH_REFRESH
        });
        if grown {
            self.refresh(now);
        }
        if self.settled {
            self.schedule.swarm_has(self.table, now, &mut self.rng);
        }
    }

    fn refresh(&mut self, now: Instant) {
        self.refreshed = Some((now, self.table));
        self.refresh_at = now + self.rng.random_range(REFRESH);
        // The only error is an empty table, and then there is nothing to refresh.
        let _ = self.swarm.behaviour_mut().kad.bootstrap();
    }

    /// Does what is due.
    fn work(&mut self, now: Instant) {
        let records = self.swarm.behaviour_mut().kad.store_mut().remote();
        self.metrics.records(records);
        for query in self.lookups.capped(now) {
            self.end_lookup(query, now);
        }
        for id in self.meetings.due(now) {
            let mut query = self.swarm.behaviour_mut().kad.query_mut(&id);
            // One that has just ended is none any more, and its last word is still to come.
            let answers = query.as_ref().map_or(0, |q| q.stats().num_successes());
            if self.meetings.progress(id, answers, now)
                && let Some(query) = &mut query
            {
                query.finish();
            }
        }
        self.deliver_late(now);
        self.announce(now);
        if self.sweep_at <= now {
            self.sweep_at = now + SWEEP;
            self.swarm.behaviour_mut().kad.store_mut().sweep(now);
            self.count_gone(now);
            self.meetings.sweep(now);
            self.calls.retain(|_, answer| !answer.is_closed());
        }
        if self.refresh_at <= now {
            self.refresh_at = now + self.rng.random_range(REFRESH);
            if self.table > 0 {
                self.refresh(now);
            }
        }
        if self.settle_at().is_some_and(|at| at <= now) {
            self.settled = true;
            self.count_peers(now);
        }
        if self.known.save_at().is_some_and(|at| at <= now) {
            self.keep_known(now);
        }
        self.join(now);
        self.end_farewell(now);
    }

    /// Everything that arrived has been read, and it is `now`.
    fn fall_silent(&mut self, now: Instant) {
        let dials: Vec<Instant> = self.dials.values().copied().collect();
        for query in self.lookups.quiet(&dials, now) {
            self.end_lookup(query, now);
        }
    }

    /// When a first bootstrap that hangs is no longer waited for.
    fn settle_at(&self) -> Option<Instant> {
        let (began, _) = self.refreshed.filter(|_| !self.settled)?;
        Some(began + SETTLE)
    }

    fn wake_at(&self) -> Instant {
        let dials: Vec<Instant> = self.dials.values().copied().collect();
        let announce = self.schedule.next().filter(|_| self.can_announce());
        let join = (matches!(self.phase, Phase::Waiting)
            && self.bootstrapper.is_some()
            && self.leaving.is_none())
        .then(|| self.joining.next());
        let farewell = self.leaving.as_ref().filter(|l| !l.waiters.is_empty());
        let farewell = farewell.map(|leaving| leaving.deadline);
        let moments = [
            self.lookups.next(&dials),
            self.meetings.next(),
            self.introduction_ends(),
            announce,
            join,
            self.beside_at,
            self.known.save_at(),
            self.settle_at(),
            farewell,
        ];
        moments
            .into_iter()
            .flatten()
            .fold(self.sweep_at.min(self.refresh_at), Instant::min)
    }
}

fn is_told(event: &SwarmEvent<BehaviourEvent>) -> bool {
    matches!(
        event,
        SwarmEvent::Behaviour(BehaviourEvent::Leave(leave::Event::Told))
    )
}

#[cfg(test)]
mod tests;
