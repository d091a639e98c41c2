//! The way into the swarm: asks for addresses, dials them, and tells readiness what is awaited.
//!
//! What a round means and when the next one comes is decided in [`joining`](super::super::joining).

use std::net::SocketAddr;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use libp2p::Multiaddr;
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::swarm::{ConnectionId, DialError};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::super::addresses::multiaddr;
use super::super::behaviour::REPLICATION;
use super::super::joining::{Awaiting, Outcome, Round};
use super::EventLoop;
use crate::routing::bootstrap::{BootstrapError, Found};

/// A name server and a node answer in milliseconds. While nobody is known and those who were asked are silent for so
/// long, others are called beside them: a dial to a machine that is off takes its whole five seconds.
const BESIDE: Duration = Duration::from_millis(500);

/// How many others at once.
const BATCH: usize = 3;

/// Who knows fewer may have a place in no other table. As many are named in one answer.
const FEW: usize = REPLICATION.get();

/// Where the way into the swarm stands.
pub(super) enum Phase {
    /// For the time of the next round.
    Waiting,
    Asking(BoxFuture<'static, Result<Found, BootstrapError>>),
    Dialing(Dialing),
}

pub(super) struct Dialing {
    pub round: Round,
    authoritative: bool,
    /// Whom to call while the others are silent.
    others: Vec<Multiaddr>,
    /// For a person to read.
    whom: String,
}

impl EventLoop {
    /// Goes on with the current round, or begins the next one when it is time.
    pub(super) fn join(&mut self, now: Instant) {
        if let Phase::Dialing(dialing) = &self.phase
            && let Some(outcome) = dialing.round.outcome(dialing.authoritative)
        {
            let whom = dialing.whom.clone();
            self.round_over(outcome, &whom, now);
        }
        if let (Phase::Waiting, Some(bootstrapper)) = (&self.phase, &self.bootstrapper)
            && self.joining.next() <= now
            && self.leaving.is_none()
        {
            let bootstrapper = bootstrapper.clone();
            let own: Vec<SocketAddr> = self.own.iter().copied().collect();
            self.phase = Phase::Asking(async move { bootstrapper.find(&own).await }.boxed());
            self.beside_at = Some(now + BESIDE);
        }
        if self.beside_at.is_some_and(|at| at <= now) {
            self.beside_at = None;
            self.call_others(now);
        }
    }

    /// Who was asked is silent.
    fn call_others(&mut self, now: Instant) {
        if self.table > 0 || self.leaving.is_some() {
            return;
        }
        let next = match &mut self.phase {
            Phase::Dialing(Dialing { others, .. }) if !others.is_empty() => {
                let rest = others.split_off(BATCH.min(others.len()));
                std::mem::replace(others, rest)
            }
            Phase::Dialing(_) | Phase::Asking(_) => return self.call_known(),
            Phase::Waiting => return,
        };
        self.beside_at = Some(now + BESIDE);
        let mut round = match &mut self.phase {
            Phase::Dialing(dialing) => std::mem::take(&mut dialing.round),
            _ => return,
        };
        self.dial_all(next, &mut round);
        if let Phase::Dialing(dialing) = &mut self.phase {
            dialing.round = round;
        }
    }

    /// Calls some of those who were there in an earlier life. They belong to no round: nobody waits for them, and what
    /// the configured way says is not changed by what comes of it.
    fn call_known(&mut self) {
        for socket in self.known.turn() {
            if self.own.contains(&socket) || self.is_connected_to(socket) {
                continue;
            }
            debug!(%socket, "calling a peer that was known before");
            if let Err(error) = self.dial(multiaddr(socket)) {
                debug!(%error, "a known peer was not dialed");
            }
        }
    }

    fn is_connected_to(&self, socket: SocketAddr) -> bool {
        self.connected.values().any(|at| at.contains(&socket))
    }

    fn dial_all(&mut self, candidates: Vec<Multiaddr>, round: &mut Round) {
        for candidate in candidates {
            let socket = self.policy.socket(&candidate);
            if socket.is_some_and(|socket| self.is_connected_to(socket)) {
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
    }

    pub(super) fn try_candidates(&mut self, found: Result<Found, BootstrapError>) {
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                let reason = error.to_string();
                self.await_because(&reason);
                self.in_trouble(Some(reason));
                self.round_over(Outcome::NoAnswer, "", Instant::now());
                return;
            }
        };
        self.in_trouble(found.trouble);
        let whom: Vec<String> = found.candidates.iter().map(Multiaddr::to_string).collect();
        let whom = whom.join(", ");
        if !whom.is_empty() {
            self.await_because(&format!("connecting to {whom}"));
        }
        let mut round = Round::default();
        self.dial_all(found.candidates, &mut round);
        self.beside_at = Some(Instant::now() + BESIDE);
        self.phase = Phase::Dialing(Dialing {
            round,
            authoritative: found.authoritative,
            others: found.others,
            whom,
        });
    }

    /// Said once for each reason: rounds come up to twenty times a second.
    fn in_trouble(&mut self, reason: Option<String>) {
        match &reason {
            Some(reason) if self.trouble.as_ref() != Some(reason) => {
                warn!(reason, "the way to the first peers does not work");
            }
            None if self.trouble.is_some() => info!("the way to the first peers works again"),
            _ => {}
        }
        self.trouble = reason;
    }

    /// By address: whoever answers there tells its name.
    fn dial(&mut self, address: Multiaddr) -> Result<ConnectionId, DialError> {
        let options = DialOpts::unknown_peer_id().address(address).build();
        let connection = options.connection_id();
        self.swarm.dial(options)?;
        Ok(connection)
    }

    fn round_over(&mut self, outcome: Outcome, whom: &str, now: Instant) {
        self.phase = Phase::Waiting;
        self.beside_at = None;
        // Only who knows that nobody is there is believed.
        let nobody = matches!(
            outcome,
            Outcome::NoAnswer | Outcome::Refused | Outcome::OnlyUs
        );
        if nobody && self.table == 0 && self.leaving.is_none() {
            self.call_known();
        }
        self.ask_around(now);
        match self.joining.over(outcome, self.table, now, &mut self.rng) {
            Awaiting::Nobody => {
                if self.readiness.take().is_some() && self.table == 0 {
                    info!(?outcome, whom, "no other node is there yet");
                }
            }
            Awaiting::AnAnswer => {}
            Awaiting::APeer if outcome == Outcome::Refused => {
                let why = match self.stranger {
                    Some(stranger) => format!("at {whom}: {}", self.what_differs(stranger)),
                    None => format!("nobody accepts connections at {whom}"),
                };
                self.await_because(&why);
            }
            Awaiting::APeer if outcome == Outcome::OnlyUs => {
                self.await_because("nobody but this node is named");
            }
            Awaiting::APeer => {}
        }
    }

    /// Asks those who are known who else stands beside this node, while they are few. A first search may have met newcomers
    /// only, or nodes that had too much to do, and in a swarm of many nobody else comes to name this one to it. In a small
    /// cluster that is a request to each other node, two to four times a minute.
    fn ask_around(&mut self, now: Instant) {
        let me = *self.swarm.local_peer_id();
        let kad = &mut self.swarm.behaviour_mut().kad;
        let is_asking = self.around.is_some_and(|query| kad.query(&query).is_some());
        if self.leaving.is_some() || !self.settled || is_asking {
            return;
        }
        if (1..FEW).contains(&self.table) {
            self.around = Some(kad.get_closest_peers(me));
        }
        // The table may have grown too soon after it was last refreshed.
        self.count_peers(now);
    }

    fn await_because(&self, why: &str) {
        if let Some(guard) = &self.readiness {
            guard.because(why);
        }
    }
}
