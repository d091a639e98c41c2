//! The way into the swarm: rounds of asking for addresses and dialing them, when each comes, and what it means.
//!
//! While nobody is known, rounds follow each other quickly; later one comes now and then and heals what fell apart,
//! because two halves of a cluster that lost each other have no reason to dial each other otherwise. This part decides;
//! the event loop dials.

use std::collections::HashSet;
use std::time::Duration;

use libp2p::swarm::ConnectionId;
use rand::{Rng, RngExt};
use tokio::time::Instant;

/// The first pause between two rounds while nobody is known: nodes of a cluster start within moments of each other.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The longest such pause. A lone node asks its name server six times a minute.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The first pause once somebody is known. Nodes that start together find each other before the name server knows them
/// all, and would be islands until the next round.
const FIRST_STEADY: Duration = Duration::from_secs(1);

/// The longest such pause. A partition that is over is healed after this long, for three dials each time.
const STEADY: Duration = Duration::from_secs(30);

/// After so many rounds in which nobody could be reached, the node serves what it has: the addresses may all be of nodes
/// that wait for each other.
const PATIENCE: u32 = 3;

/// What a round has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nobody could say whom to try.
    NoAnswer,
    /// There is nobody but this node.
    NobodyElse,
    /// Nobody else was named, by somebody who may not know everybody.
    OnlyUs,
    /// Everybody who was tried refused.
    Refused,
    /// Somebody is connected, and in the routing table as soon as it has said who it is.
    Reached,
}

/// The dials of one round.
#[derive(Debug, Default)]
pub struct Round {
    pending: HashSet<ConnectionId>,
    reached: bool,
    refused: bool,
}

impl Round {
    pub fn dials(&mut self, connection: ConnectionId) {
        self.pending.insert(connection);
    }

    /// Whether the connection is one of this round.
    pub fn reached(&mut self, connection: ConnectionId) -> bool {
        let ours = self.pending.remove(&connection);
        self.reached |= ours;
        ours
    }

    /// A candidate to whom a connection was there already.
    pub fn is_reached(&mut self) {
        self.reached = true;
    }

    pub fn refused(&mut self, connection: ConnectionId) -> bool {
        let ours = self.pending.remove(&connection);
        self.refused |= ours;
        ours
    }

    /// A candidate who could not even be dialed.
    pub fn is_refused(&mut self) {
        self.refused = true;
    }

    /// The address was our own.
    pub fn ourselves(&mut self, connection: ConnectionId) -> bool {
        self.pending.remove(&connection)
    }

    /// `None` while somebody may still answer. `authoritative`: whether no candidates means nobody.
    pub fn outcome(&self, authoritative: bool) -> Option<Outcome> {
        if !self.pending.is_empty() {
            return None;
        }
        Some(match (self.reached, self.refused) {
            (true, _) => Outcome::Reached,
            (false, true) => Outcome::Refused,
            (false, false) if authoritative => Outcome::NobodyElse,
            (false, false) => Outcome::OnlyUs,
        })
    }
}

/// When the next round comes, and whether to go on waiting for others.
#[derive(Debug)]
pub struct Joining {
    next: Instant,
    /// The next pause while nobody is known.
    pause: Duration,
    /// The next pause while somebody is.
    steady: Duration,
    refused: u32,
    /// Somebody was reached who does not speak our protocol.
    stranger: bool,
}

impl Joining {
    pub fn new(now: Instant) -> Self {
        Self {
            next: now,
            pause: FIRST_PAUSE,
            steady: FIRST_STEADY,
            refused: 0,
            stranger: false,
        }
    }

    pub fn next(&self) -> Instant {
        self.next
    }

    pub fn met_stranger(&mut self) {
        self.stranger = true;
    }

    /// The last peer was lost: no steady pause is waited out.
    pub fn alone_again(&mut self, now: Instant) {
        self.pause = FIRST_PAUSE;
        self.steady = FIRST_STEADY;
        self.next = self.next.min(now + FIRST_PAUSE);
    }

    /// A round is over while `peers` are in the routing table. Whether to go on awaiting others.
    pub fn over(
        &mut self,
        outcome: Outcome,
        peers: usize,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Awaiting {
        if peers > 0 {
            self.pause = FIRST_PAUSE;
            self.next = now + jittered(self.steady, rng);
            self.steady = (self.steady * 2).min(STEADY);
        } else {
            self.next = now + jittered(self.pause, rng);
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
        let outcome = match outcome {
            Outcome::Reached if self.stranger => Outcome::Refused,
            outcome => outcome,
        };
        self.stranger = false;
        self.refused = match outcome {
            Outcome::Refused | Outcome::OnlyUs => self.refused + 1,
            Outcome::NoAnswer => self.refused,
            Outcome::NobodyElse | Outcome::Reached => 0,
        };
        match outcome {
            Outcome::NobodyElse => Awaiting::Nobody,
            Outcome::Refused | Outcome::OnlyUs if self.refused >= PATIENCE => Awaiting::Nobody,
            _ if peers > 0 => Awaiting::Nobody,
            Outcome::NoAnswer => Awaiting::AnAnswer,
            Outcome::Refused | Outcome::OnlyUs | Outcome::Reached => Awaiting::APeer,
        }
    }
}

/// Half of it at random, so that nodes that failed or started together do not come back together.
fn jittered(pause: Duration, rng: &mut impl Rng) -> Duration {
    rng.random_range(pause / 2..pause)
}

/// For what readiness waits after a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaiting {
    Nobody,
    AnAnswer,
    APeer,
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::Outcome::*;
    use super::*;

    #[test]
    fn a_round_is_judged_by_the_best_that_came_of_it() {
        let id = ConnectionId::new_unchecked;
        let mut round = Round::default();
        assert_eq!(round.outcome(true), Some(NobodyElse));
        assert_eq!(round.outcome(false), Some(OnlyUs));

        round.dials(id(1));
        round.dials(id(2));
        round.dials(id(3));
        assert_eq!(round.outcome(true), None);
        assert!(round.ourselves(id(1)));
        assert!(round.refused(id(2)));
        assert!(!round.refused(id(9)));
        assert_eq!(round.outcome(true), None);
        assert!(round.reached(id(3)));
        assert_eq!(round.outcome(true), Some(Reached));

        let mut only_us = Round::default();
        only_us.dials(id(1));
        only_us.ourselves(id(1));
        assert_eq!(only_us.outcome(true), Some(NobodyElse));

        let mut refused = Round::default();
        refused.is_refused();
        assert_eq!(refused.outcome(true), Some(Refused));
    }

    #[test]
    fn readiness_waits_for_a_peer_for_certainty_or_for_patience_to_end() {
        // outcomes with the number of peers known then, what is awaited after each
        for (rounds, awaiting) in [
            (vec![(NobodyElse, 0)], vec![Awaiting::Nobody]),
            (vec![(Reached, 1)], vec![Awaiting::Nobody]),
            (vec![(Reached, 0)], vec![Awaiting::APeer]),
            (vec![(NoAnswer, 0); 9], vec![Awaiting::AnAnswer; 9]),
            (
                vec![(OnlyUs, 0), (OnlyUs, 0), (OnlyUs, 0)],
                vec![Awaiting::APeer, Awaiting::APeer, Awaiting::Nobody],
            ),
            (
                vec![(Refused, 0), (Refused, 0), (NoAnswer, 0), (Refused, 0)],
                vec![
                    Awaiting::APeer,
                    Awaiting::APeer,
                    Awaiting::AnAnswer,
                    Awaiting::Nobody,
                ],
            ),
            (
                vec![(Refused, 0), (Refused, 0), (Reached, 0), (Refused, 0)],
                vec![Awaiting::APeer; 4],
            ),
        ] {
            let (mut rng, now) = (StdRng::seed_from_u64(1), Instant::now());
            let mut joining = Joining::new(now);
            let got: Vec<Awaiting> = rounds
                .iter()
                .map(|(outcome, peers)| joining.over(*outcome, *peers, now, &mut rng))
                .collect();
            assert_eq!(got, awaiting, "{rounds:?}");
        }
    }

    #[test]
    fn a_stranger_counts_as_a_refusal() {
        let (mut rng, now) = (StdRng::seed_from_u64(1), Instant::now());
        let mut joining = Joining::new(now);
        let mut last = Awaiting::APeer;
        for _ in 0..PATIENCE {
            joining.met_stranger();
            last = joining.over(Reached, 0, now, &mut rng);
        }
        assert_eq!(last, Awaiting::Nobody);
    }

    #[test]
    fn rounds_are_quick_at_first_and_rare_once_somebody_is_known() {
        let (mut rng, now) = (StdRng::seed_from_u64(1), Instant::now());
        let mut joining = Joining::new(now);
        assert_eq!(joining.next(), now);

        let mut pauses = Vec::new();
        for _ in 0..12 {
            joining.over(Refused, 0, now, &mut rng);
            pauses.push(joining.next() - now);
        }
        assert!(pauses[0] < FIRST_PAUSE && pauses[0] >= FIRST_PAUSE / 2);
        assert!(pauses[11] < LONGEST_PAUSE && pauses[11] >= LONGEST_PAUSE / 2);

        let mut steady = Vec::new();
        for _ in 0..8 {
            joining.over(Reached, 1, now, &mut rng);
            steady.push(joining.next() - now);
        }
        assert!(steady[0] < FIRST_STEADY && steady[0] >= FIRST_STEADY / 2);
        assert!(steady[7] < STEADY && steady[7] >= STEADY / 2);
        joining.alone_again(now);
        assert_eq!(joining.next(), now + FIRST_PAUSE);
    }

    #[test]
    fn whatever_came_before_the_next_round_is_half_a_minute_away_at_most() {
        // So a partition that is over is one DHT within a minute: one round, and one for whoever was met by nobody.
        for seed in 0..20 {
            let (mut rng, now) = (StdRng::seed_from_u64(seed), Instant::now());
            let mut joining = Joining::new(now);
            for _ in 0..50 {
                let outcome = [NoAnswer, NobodyElse, Refused, Reached][rng.random_range(0..4)];
                let peers = rng.random_range(0..3);
                joining.over(outcome, peers, now, &mut rng);
                assert!(joining.next() <= now + Duration::from_secs(30));
            }
        }
    }
}
