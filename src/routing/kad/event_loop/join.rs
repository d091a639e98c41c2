//! The way into the swarm: asks for addresses, dials them, and tells readiness what is awaited.
//!
//! What a round means and when the next one comes is decided in [`joining`](super::super::joining).

use std::net::SocketAddr;

use futures::FutureExt;
use futures::future::BoxFuture;
use libp2p::Multiaddr;
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::swarm::{ConnectionId, DialError};
use tokio::time::Instant;
use tracing::{debug, info};

use super::super::joining::{Awaiting, Outcome, Round};
use super::EventLoop;
use crate::routing::bootstrap::{BootstrapError, Found};

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
        }
    }

    pub(super) fn try_candidates(&mut self, found: Result<Found, BootstrapError>) {
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                debug!(%error, "no answer to whom to join");
                self.await_because(&error.to_string());
                self.round_over(Outcome::NoAnswer, "", Instant::now());
                return;
            }
        };
        let whom: Vec<String> = found.candidates.iter().map(Multiaddr::to_string).collect();
        let whom = whom.join(", ");
        if !whom.is_empty() {
            self.await_because(&format!("connecting to {whom}"));
        }
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
        self.phase = Phase::Dialing(Dialing {
            round,
            authoritative: found.authoritative,
            whom,
        });
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
        match self.joining.over(outcome, self.table, now, &mut self.rng) {
            Awaiting::Nobody => {
                if self.readiness.take().is_some() && self.table == 0 {
                    info!(?outcome, whom, "no other node is there yet");
                }
            }
            Awaiting::AnAnswer => {}
            Awaiting::APeer if outcome == Outcome::Refused => {
                self.await_because(&format!("nobody accepts connections at {whom}"));
            }
            Awaiting::APeer => {}
        }
    }

    fn await_because(&self, why: &str) {
        if let Some(guard) = &self.readiness {
            guard.because(why);
        }
    }
}
