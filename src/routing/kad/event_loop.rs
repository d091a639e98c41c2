//! The sole owner of the swarm: commands in, events out.
//!
//! After every event the loop looks at what is due (`work`), and sleeps until the next thing is. The `select!` is
//! biased: everything that has arrived is read before a timer may say that nothing came.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use libp2p::core::{ConnectedPoint, Endpoint};
use libp2p::kad::{self, GetProvidersOk, QueryId, QueryResult, RecordKey};
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::swarm::{ConnectionId, DialError, NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm, identify, ping};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::addresses::Policy;
use super::behaviour::{Behaviour, BehaviourEvent, KAD_PROTOCOL};
use super::joining::{Awaiting, Joining, Outcome, Round};
use super::lookups::Lookups;
use super::records::{MAX_IN_FLIGHT, Schedule, record_key};
use super::{Command, Metrics};
use crate::readiness::Guard;
use crate::routing::bootstrap::{BootstrapError, Bootstrapper, Found};

/// Expired records are hidden by their date; sweeping only gives their memory back.
const SWEEP: Duration = Duration::from_secs(60);

/// Buckets are refreshed this often without any reason, as Spegel's nodes do it: one refresh is hundreds of requests
/// cluster-wide, libp2p's five minutes saturate two cores at 1,000 nodes (measured).
const REFRESH: std::ops::Range<Duration> =
    Duration::from_secs(25 * 60)..Duration::from_secs(35 * 60);

/// While nodes come in numbers, buckets are refreshed at most this often, and only when the table has doubled.
const GROWTH_REFRESH: Duration = Duration::from_secs(60);

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

    schedule: Schedule,
    announcing: HashMap<QueryId, RecordKey>,
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
}

/// Where the way into the swarm stands.
enum Phase {
    /// For [`Joining::next`].
    Waiting,
    Asking(BoxFuture<'static, Result<Found, BootstrapError>>),
    Dialing {
        round: Round,
        authoritative: bool,
    },
}

pub(super) struct Parts {
    pub swarm: Swarm<Behaviour>,
    pub commands: mpsc::UnboundedReceiver<Command>,
    pub policy: Policy,
    pub own: HashSet<SocketAddr>,
    pub registry_port: u16,
    pub resolve_timeout: Duration,
    pub bootstrapper: Option<Bootstrapper>,
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
            schedule: Schedule::default(),
            announcing: HashMap::new(),
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
            rng: StdRng::from_rng(&mut rng),
        }
    }

    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            self.work(Instant::now());
            let wake = self.wake_at();
            let asking = match &mut self.phase {
                Phase::Asking(answer) => answer.left_future(),
                Phase::Waiting | Phase::Dialing { .. } => std::future::pending().right_future(),
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(command) = self.commands.recv() => self.command(command),
                event = self.swarm.select_next_some() => self.observe(event),
                found = asking => self.try_candidates(found),
                () = tokio::time::sleep_until(wake.into()) => self.fall_silent(Instant::now()),
            }
        }
        self.close().await;
    }

    /// Nothing can be taken back from the DHT: who follows our old records is refused and asks the next.
    async fn close(mut self) {
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
    }

    fn command(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Lookup { key, waiter } => {
                let key = record_key(&key);
                if let Some(waiter) = self.lookups.join(&key, waiter) {
                    let query = self.swarm.behaviour_mut().kad.get_providers(key.clone());
                    self.lookups.begin(query, key, waiter, now);
                }
            }
            Command::Advertise(keys) => {
                for key in keys {
                    self.schedule.add(record_key(&key), now);
                }
                self.metrics.advertised.set(count(self.schedule.len()));
            }
            Command::Withdraw(keys) => {
                for key in keys {
                    let key = record_key(&key);
                    self.schedule.remove(&key);
                    self.swarm.behaviour_mut().kad.stop_providing(&key);
                }
                self.metrics.advertised.set(count(self.schedule.len()));
            }
            Command::Refused(peer) => match peer.as_str().parse::<PeerId>() {
                // His registry restarts, or his node is closing; while he speaks to us he is not forgotten.
                Ok(peer) if self.swarm.is_connected(&peer) => {}
                Ok(peer) => self.forget(peer, now),
                Err(_) => debug!(%peer, "refused by somebody who is no peer of this router"),
            },
        }
    }

    fn observe(&mut self, event: SwarmEvent<BehaviourEvent>) {
        let now = Instant::now();
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Kad(event)) => self.observe_kad(event, now),
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                peer_id,
                info,
                ..
            })) => self.identified(peer_id, info),
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
                self.swarm.behaviour_mut().kad.store_mut().heard(&peer_id);
                let addresses = self.connected.entry(peer_id).or_default();
                if let ConnectedPoint::Dialer { address, .. } = &endpoint {
                    addresses.extend(self.policy.socket(address));
                }
                if let Phase::Dialing { round, .. } = &mut self.phase {
                    round.reached(connection_id);
                }
            }
            SwarmEvent::ConnectionClosed {
                peer_id,
                num_established: 0,
                ..
            } => {
                self.connected.remove(&peer_id);
            }
            SwarmEvent::OutgoingConnectionError {
                peer_id,
                connection_id,
                error,
            } => self.not_reached(peer_id, connection_id, &error, now),
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
                QueryResult::GetProviders(_) => self.end_lookup(id, now),
                QueryResult::StartProviding(result) => {
                    let Some(key) = self.announcing.remove(&id) else {
                        return;
                    };
                    self.metrics.announced(result.is_ok());
                    match result {
                        Ok(_) => self.schedule.renewed(&key, now, &mut self.rng),
                        Err(error) => {
                            debug!(%error, "key not announced");
                            self.schedule.failed(&key, now, &mut self.rng);
                        }
                    }
                }
                QueryResult::Bootstrap(_) if step.last => {
                    self.settled = true;
                    self.count_peers(now);
                }
                _ => {}
            },
            kad::Event::RoutingUpdated { .. } => self.count_peers(now),
            _ => {}
        }
    }

    /// Providers of a key that is looked up. Their addresses are in no event: they are in the query, as long as it runs,
    /// and in the store, if it was the store that answered.
    fn found(&mut self, query: QueryId, providers: HashSet<PeerId>, now: Instant) {
        let me = *self.swarm.local_peer_id();
        let kad = &mut self.swarm.behaviour_mut().kad;
        for provider in providers {
            if provider == me
                || !self.lookups.wants(query, &provider)
                || kad.store_mut().is_gone(&provider, now)
            {
                continue;
            }
            // Asks kad where it would dial; no dial happens.
            let mut addresses = kad
                .handle_pending_outbound_connection(
                    ConnectionId::new_unchecked(0),
                    Some(provider),
                    &[],
                    Endpoint::Dialer,
                )
                .unwrap_or_default();
            addresses.extend_from_slice(kad.store_mut().addresses(&provider));
            let mut registry: Vec<SocketAddr> = Vec::new();
            for address in addresses.iter().filter_map(|a| self.policy.socket(a)) {
                let address = SocketAddr::new(address.ip(), self.registry_port);
                if !registry.contains(&address) {
                    registry.push(address);
                }
            }
            if !registry.is_empty() {
                self.lookups.found(query, provider, registry, now);
            }
        }
        self.lookups.answered(query, now);
    }

    fn end_lookup(&mut self, query: QueryId, now: Instant) {
        if let Some((_, outcome)) = self.lookups.end(query, now) {
            self.metrics.lookup(outcome);
            if let Some(mut query) = self.swarm.behaviour_mut().kad.query_mut(&query) {
                query.finish();
            }
        }
    }

    fn identified(&mut self, peer: PeerId, info: identify::Info) {
        if !info.protocols.contains(&KAD_PROTOCOL) {
            warn!(
                %peer, agent = info.agent_version,
                "what answers at a bootstrap address does not speak {KAD_PROTOCOL}",
            );
            self.joining.met_stranger();
            let _ = self.swarm.disconnect_peer_id(peer);
            return;
        }
        let kad = &mut self.swarm.behaviour_mut().kad;
        kad.store_mut().heard(&peer);
        for address in info
            .listen_addrs
            .into_iter()
            .take(super::store::MAX_ADDRESSES)
        {
            if let Some(socket) = self.policy.socket(&address) {
                self.connected.entry(peer).or_default().insert(socket);
                kad.add_address(&peer, address);
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
        self.dials.remove(&connection);
        let ourselves = match error {
            DialError::LocalPeerId { address } => self.policy.socket(address),
            _ => None,
        };
        self.own.extend(ourselves);
        if let Phase::Dialing { round, .. } = &mut self.phase {
            if ourselves.is_some() {
                round.ourselves(connection);
            } else if round.refused(connection) {
                debug!(%error, "a bootstrap address was not reached");
            }
        }
        let unreachable = matches!(
            error,
            // Somebody else at his address: he was restarted under a new name, or moved.
            DialError::Transport(_) | DialError::WrongPeerId { .. } | DialError::LocalPeerId { .. }
        );
        if let Some(peer) = peer
            && unreachable
            && !self.swarm.is_connected(&peer)
        {
            self.forget(peer, now);
        }
    }

    /// Forgets a peer until he is next heard of.
    fn forget(&mut self, peer: PeerId, now: Instant) {
        let kad = &mut self.swarm.behaviour_mut().kad;
        kad.remove_peer(&peer);
        kad.store_mut().gone(peer, now);
        debug!(%peer, "peer is gone");
        self.count_peers(now);
    }

    fn count_peers(&mut self, now: Instant) {
        let kad = &mut self.swarm.behaviour_mut().kad;
        let before = self.table;
        self.table = kad.kbuckets().map(|bucket| bucket.num_entries()).sum();
        self.metrics.peers.set(count(self.table));
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
        for query in self.lookups.capped(now) {
            self.end_lookup(query, now);
        }
        self.announce(now);
        if self.sweep_at <= now {
            self.sweep_at = now + SWEEP;
            self.swarm.behaviour_mut().kad.store_mut().sweep(now);
        }
        if self.refresh_at <= now {
            self.refresh(now);
        }
        if let Phase::Dialing {
            round,
            authoritative,
        } = &self.phase
            && let Some(outcome) = round.outcome(*authoritative)
        {
            self.round_over(outcome, now);
        }
        if let (Phase::Waiting, Some(bootstrapper)) = (&self.phase, &self.bootstrapper)
            && self.joining.next() <= now
        {
            let bootstrapper = bootstrapper.clone();
            let own: Vec<SocketAddr> = self.own.iter().copied().collect();
            self.phase = Phase::Asking(async move { bootstrapper.find(&own).await }.boxed());
        }
    }

    /// Everything that arrived has been read, and it is `now`.
    fn fall_silent(&mut self, now: Instant) {
        let dials: Vec<Instant> = self.dials.values().copied().collect();
        for query in self.lookups.quiet(&dials, now) {
            self.end_lookup(query, now);
        }
    }

    /// An announcement made before the table is filled reaches nobody, or not the nearest.
    fn can_announce(&self) -> bool {
        self.settled && self.table > 0 && self.announcing.len() < MAX_IN_FLIGHT
    }

    fn announce(&mut self, now: Instant) {
        if !self.can_announce() {
            return;
        }
        let free = MAX_IN_FLIGHT - self.announcing.len();
        for key in self.schedule.due(now, free) {
            let kad = &mut self.swarm.behaviour_mut().kad;
            match kad.start_providing(key.clone()) {
                Ok(query) => {
                    self.announcing.insert(query, key);
                }
                Err(error) => {
                    debug!(%error, "key not announced");
                    self.metrics.announced(false);
                    self.schedule.failed(&key, now, &mut self.rng);
                }
            }
        }
    }

    fn wake_at(&self) -> Instant {
        let dials: Vec<Instant> = self.dials.values().copied().collect();
        let announce = self.schedule.next().filter(|_| self.can_announce());
        let join = (matches!(self.phase, Phase::Waiting) && self.bootstrapper.is_some())
            .then(|| self.joining.next());
        [self.lookups.next(&dials), announce, join]
            .into_iter()
            .flatten()
            .fold(self.sweep_at.min(self.refresh_at), Instant::min)
    }

    fn try_candidates(&mut self, found: Result<Found, BootstrapError>) {
        let now = Instant::now();
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                if let Some(guard) = &self.readiness {
                    guard.because(&error);
                }
                debug!(%error, "no answer to whom to join");
                self.round_over(Outcome::NoAnswer, now);
                return;
            }
        };
        let mut round = Round::default();
        for candidate in found.candidates {
            let socket = self.policy.socket(&candidate);
            if socket.is_some_and(|s| self.connected.values().any(|at| at.contains(&s))) {
                round.is_reached();
                continue;
            }
            match self.dial(candidate) {
                Ok(connection) => round.dials(connection),
                Err(error) => {
                    debug!(%error, "a bootstrap address was not dialed");
                    round.is_refused();
                }
            }
        }
        self.phase = Phase::Dialing {
            round,
            authoritative: found.authoritative,
        };
    }

    fn dial(&mut self, address: Multiaddr) -> Result<ConnectionId, DialError> {
        let options = DialOpts::unknown_peer_id().address(address).build();
        let connection = options.connection_id();
        self.swarm.dial(options)?;
        Ok(connection)
    }

    fn round_over(&mut self, outcome: Outcome, now: Instant) {
        self.phase = Phase::Waiting;
        let awaiting = self.joining.over(outcome, self.table, now, &mut self.rng);
        match awaiting {
            Awaiting::Nobody => {
                if self.readiness.take().is_some() && self.table == 0 {
                    info!(?outcome, "no other node is there yet");
                }
            }
            // What is known of the error was told already.
            Awaiting::AnAnswer => {}
            Awaiting::APeer => {
                if let Some(guard) = &self.readiness {
                    guard.because(match outcome {
                        Outcome::Refused => "other nodes do not accept connections",
                        _ => "connecting to other nodes",
                    });
                }
            }
        }
    }
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
