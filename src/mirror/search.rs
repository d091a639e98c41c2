//! The search for one key: peer after peer, until one has its first byte in hand or the time is up.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{FutureExt, StreamExt};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use super::attempt::{Answer, Ask, PeerError, attempt};
use super::scoreboard::UnderWay;
use super::select::Candidate;
use super::{FetchError, Mirror, select};
use crate::oci::Key;
use crate::oci::distribution::Following;
use crate::recent::Journey;
use crate::routing::{Peer, PeerId, may_be_peer};

/// From the request to the first byte, lookup and all, whoever is asked. containerd has no timeout of its own for this,
/// and kubelet's patience is shared by all layers of a pull.
const FIRST_BYTE: Duration = Duration::from_secs(2);
/// A peer that has not answered by then is probably in trouble: the next is asked beside it, and the first to answer
/// wins. A healthy one answers within milliseconds.
const HEDGE: Duration = Duration::from_secs(1);
/// What peers that failed lately are given when there is nobody else. Each request of a pull pays it: a node that lost
/// its power is found in the DHT for up to 19 minutes.
const SECOND_CHANCE: Duration = Duration::from_millis(250);

/// As many peers as one search takes from busy ones.
const MAX_HINTS: usize = 64;
/// So many holders that several others read from, and this node may take it from one of those: where an image spreads, all who
/// have it are alike.
const MAX_FULL: usize = 3;

/// A peer's answer, and the mark on the scoreboard that it is under way.
pub(super) struct Delivery {
    pub peer: Peer,
    pub answer: Answer,
    _under_way: UnderWay,
}

/// The search for one key, over as many attempts as it takes: peers that were tried are not tried again.
pub(super) struct Search {
    pub mirror: Mirror,
    pub key: Key,
    pub journey: Journey,
    /// When a first byte must have come.
    pub deadline: Instant,
    /// None when the lookup has ended.
    lookup: Option<BoxStream<'static, Peer>>,
    /// Heard of and not asked yet.
    untried: Vec<Peer>,
    /// Left for being slow: better than nobody.
    slow: Vec<Peer>,
    /// Have it, and turned this node away because it can follow others.
    full: Vec<Peer>,
    heard_of: HashSet<PeerId>,
    known_at: HashSet<SocketAddr>,
    /// Whom busy peers have named.
    hinted_at: HashSet<SocketAddr>,
    /// Peers that were asked and did not deliver, against the limit.
    failures: usize,
    /// Peers that do not take this node for one of theirs.
    barred: usize,
    /// What the last of these said.
    why_barred: Option<PeerError>,
    last: Option<PeerError>,
}

/// A peer that has been asked and has not answered.
struct Asking {
    peer: Peer,
    /// It had failed lately and was asked for want of another.
    is_second_chance: bool,
    /// It was asked beside one that was silent.
    is_hedge: bool,
    /// Its silence stands on the scoreboard already.
    is_marked: bool,
}

impl Search {
    /// For a request that began at `began`.
    pub fn new(mirror: Mirror, key: Key, began: Instant, journey: Journey) -> Self {
        Self {
            lookup: Some(mirror.router.lookup(key.clone())),
            deadline: began + FIRST_BYTE,
            mirror,
            key,
            journey,
            untried: Vec::new(),
            slow: Vec::new(),
            full: Vec::new(),
            heard_of: HashSet::new(),
            known_at: HashSet::new(),
            hinted_at: HashSet::new(),
            failures: 0,
            barred: 0,
            why_barred: None,
            last: None,
        }
    }

    /// Begins anew, with a new lookup: who has been asked stays out, who has come to hold it meanwhile comes in. All of it
    /// is to be over at `limit`.
    pub fn again(&mut self, limit: Instant) {
        self.lookup = Some(self.mirror.router.lookup(self.key.clone()));
        self.deadline = limit.min(Instant::now() + FIRST_BYTE);
        self.failures = 0;
        self.untried.append(&mut self.full);
    }

    /// It has it, and turned this node away because it can follow others.
    pub fn is_full(&mut self, holder: Peer) {
        self.full.push(holder);
    }

    /// Those who have it and turned this node away because it can follow others.
    pub fn full(&self) -> impl Iterator<Item = &PeerId> {
        self.full.iter().map(|holder| &holder.id)
    }

    /// Whether there are holders that turned this node away because it can follow others. They may be asked again, until
    /// `limit`, with another word on that.
    pub fn insists(&mut self, limit: Instant) -> bool {
        if self.full.is_empty() {
            return false;
        }
        self.untried.append(&mut self.full);
        self.deadline = limit.min(Instant::now() + FIRST_BYTE);
        self.failures = 0;
        true
    }

    /// The body of `slow` goes on without it.
    pub fn leave(&mut self, slow: Peer) {
        self.slow.push(slow);
    }

    /// Those who were left for being slow may be asked once more.
    pub fn take_back(&mut self) {
        self.untried.append(&mut self.slow);
    }

    /// Asks peer after peer until one delivers its first byte.
    pub async fn deliver(&mut self, ask: &Ask) -> Result<Delivery, FetchError> {
        // Nobody is asked who would not be waited for.
        if Instant::now() >= self.deadline {
            return Err(self.exhausted(Vec::new()));
        }
        let mut attempts: FuturesUnordered<
            BoxFuture<'static, (Peer, Result<Delivery, PeerError>)>,
        > = FuturesUnordered::new();
        let mut asking: Vec<Asking> = Vec::new();
        let mut give_up_at = self.deadline;
        let mut hedge_at: Option<Instant> = None;
        // Another peer may be asked: none is being asked, or nothing much is hoped for from those that are.
        let mut ask_next = true;
        loop {
            if self.failures >= self.mirror.config.retries.max(1) {
                return Err(self.exhausted(asking));
            }
            if ask.following != Following::No && self.full.len() >= MAX_FULL {
                self.untried
                    .extend(asking.into_iter().map(|asked| asked.peer));
                return Err(self.exhausted(Vec::new()));
            }
            if attempts.is_empty() && self.untried.is_empty() && self.lookup.is_none() {
                return Err(self.exhausted(asking));
            }
            let is_waiting = !attempts.is_empty();
            tokio::select! {
                // An answer that is there counts, however late it is looked at.
                biased;
                Some((peer, outcome)) = attempts.next(), if is_waiting => match outcome {
                    Ok(delivery) => {
                        let asked = asking.iter().find(|asked| asked.peer.id == peer.id);
                        if asked.is_some_and(|asked| asked.is_hedge) {
                            self.mirror.metrics.won.inc();
                        }
                        return Ok(delivery);
                    }
                    Err(error) => {
                        let place = asking.iter().position(|asked| asked.peer.id == peer.id);
                        let asked = place.map(|place| asking.swap_remove(place));
                        let is_marked = asked.is_some_and(|asked| asked.is_marked);
                        // Who names others has given all that it may.
                        if let PeerError::Busy { holders } = &error
                            && ask.following != Following::No
                            && holders.is_empty()
                        {
                            self.is_full(peer.clone());
                        }
                        self.note(&peer, error, !is_marked);
                        ask_next = true;
                    }
                },
                peer = self.next_candidate(), if ask_next => {
                    let Some(peer) = peer else {
                        ask_next = false;
                        continue;
                    };
                    let now = Instant::now();
                    let is_second_chance =
                        self.mirror.scoreboard.of(&peer.id, now).is_resting(now);
                    let mut is_hedge = false;
                    if is_second_chance {
                        if asking.iter().all(|asked| asked.is_second_chance) {
                            give_up_at = self.deadline.min(now + SECOND_CHANCE);
                        }
                    } else {
                        if asking.iter().any(|asked| !asked.is_second_chance) {
                            self.mirror.metrics.hedged.inc();
                            self.journey.hedged();
                            is_hedge = true;
                        }
                        give_up_at = self.deadline;
                        hedge_at = Some(now + HEDGE);
                    }
                    ask_next = is_second_chance;
                    attempts.push(self.mirror.clone().ask(peer.clone(), ask.clone()).boxed());
                    asking.push(Asking { peer, is_second_chance, is_hedge, is_marked: false });
                }
                () = sleep_until_some(hedge_at), if is_waiting => {
                    hedge_at = None;
                    ask_next = true;
                    // Others should not be sent to whoever is silent now.
                    for asked in asking.iter_mut().filter(|asked| !asked.is_marked) {
                        asked.is_marked = true;
                        self.mirror.scoreboard.failed(&asked.peer.id, Instant::now());
                    }
                }
                // A probe beside a body that comes says nothing against who has much to do.
                () = sleep_until(give_up_at), if ask.following == Following::Slowly => {
                    self.full.extend(asking.into_iter().map(|asked| asked.peer));
                    return Err(self.exhausted(Vec::new()));
                }
                () = sleep_until(give_up_at) => return Err(self.exhausted(asking)),
            }
        }
    }

    /// The best of those that are known by now; waits until one is. None when there is none left.
    async fn next_candidate(&mut self) -> Option<Peer> {
        loop {
            // Whoever has been heard of by now takes part in the choice.
            while let Some(heard) = self.lookup.as_mut().and_then(|l| l.next().now_or_never()) {
                self.heard(heard);
            }
            let now = Instant::now();
            let zone = &self.mirror.config.zone;
            let candidates: Vec<_> = self
                .untried
                .iter()
                .map(|peer| Candidate {
                    score: self.mirror.scoreboard.of(&peer.id, now),
                    is_far: peer.is_far_from(zone.as_deref()),
                })
                .collect();
            if let Some(best) = select::best(&candidates, now, &mut rand::rng()) {
                return Some(self.untried.swap_remove(best));
            }
            let heard = self.lookup.as_mut()?.next().await;
            self.heard(heard);
        }
    }

    fn heard(&mut self, peer: Option<Peer>) {
        match peer {
            // It brought what containerd refused.
            Some(peer) if self.mirror.is_distrusted(&peer.id, &self.key) => {}
            Some(peer) if self.heard_of.insert(peer.id.clone()) => {
                self.known_at.extend(&peer.registry);
                self.untried.push(peer);
            }
            Some(_) => {}
            None => self.lookup = None,
        }
    }

    /// A busy peer names others. They are asked like any that the router named, at the port at which `by` was reached.
    fn hinted(&mut self, by: &Peer, holders: &[IpAddr]) {
        let Some(there) = by.registry.first() else {
            return;
        };
        for ip in holders.iter().filter(|ip| may_be_peer(**ip, there.ip())) {
            let address = SocketAddr::new(*ip, there.port());
            // The router may have named the same one, under its name.
            if self.hinted_at.len() < MAX_HINTS
                && !self.known_at.contains(&address)
                && self.hinted_at.insert(address)
            {
                self.heard(Some(Peer {
                    id: PeerId::at(address),
                    registry: vec![address],
                    zone: None,
                }));
            }
        }
    }

    /// A peer did not deliver, or not to the end.
    pub fn failed(&mut self, peer: &Peer, error: PeerError) {
        self.note(peer, error, true);
    }

    fn note(&mut self, peer: &Peer, error: PeerError, mark: bool) {
        debug!(key = %self.key, peer = %peer.id, %error, "peer did not deliver");
        self.journey.failed(peer.id.as_str(), peer.at(), &error);
        let attempts = &self.mirror.metrics.attempts;
        attempts.with_label_values(&[error.outcome()]).inc();
        if mark && error.is_failure() {
            self.mirror.scoreboard.failed(&peer.id, Instant::now());
        }
        match &error {
            PeerError::Refused => self.mirror.router.refused(&peer.id),
            PeerError::Busy { holders } => self.hinted(peer, holders),
            // They answer at once, and another one may have it.
            PeerError::Absent | PeerError::Waiting | PeerError::NotSatisfiable { .. } => {}
            PeerError::Unauthorized | PeerError::Stranger(_) => {
                self.barred += 1;
                self.why_barred = Some(error);
                return;
            }
            _ => self.failures += 1,
        }
        self.last = Some(error);
    }

    /// What to say when nobody delivered, and these are silent still.
    fn exhausted(&mut self, silent: Vec<Asking>) -> FetchError {
        for Asking {
            peer, is_marked, ..
        } in silent
        {
            self.note(&peer, PeerError::Silent(FIRST_BYTE), !is_marked);
        }
        let key = self.key.clone();
        let tried = self.failures;
        let last = self.last.take();
        match last {
            // Only when nobody could: one peer's file may be cut off.
            Some(PeerError::NotSatisfiable { total }) if tried == 0 && self.full.is_empty() => {
                return FetchError::NotSatisfiable { key, total };
            }
            // The log has it once a minute, by whoever was refused.
            _ if tried == 0 && self.barred > 0 => {
                return FetchError::Exhausted {
                    key,
                    tried: self.barred,
                    last: self.why_barred.take(),
                };
            }
            _ if tried == 0 => return FetchError::NoPeer(key),
            _ => {}
        }
        warn!(%key, tried, error = last.as_ref().map(tracing::field::display), "no peer delivered");
        FetchError::Exhausted { key, tried, last }
    }
}

impl Mirror {
    pub(super) async fn ask(self, peer: Peer, ask: Ask) -> (Peer, Result<Delivery, PeerError>) {
        let began = Instant::now();
        let under_way = self.scoreboard.begin(&peer.id, began);
        let outcome = attempt(&peer, &ask, &self.papers).await;
        let outcome = outcome.map(|answer| {
            let took = began.elapsed();
            // One that is still getting it is as fast as whoever brings it there.
            if ask.growing.is_none() {
                self.scoreboard.answered(&peer.id, took, Instant::now());
            }
            self.metrics.attempts.with_label_values(&["answered"]).inc();
            debug!(peer = %peer.id, path = %ask.path_and_query, ?took, "peer answered");
            Delivery {
                peer: peer.clone(),
                answer,
                _under_way: under_way,
            }
        });
        (peer, outcome)
    }
}

async fn sleep_until_some(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
