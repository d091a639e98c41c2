//! What this node asks of meeting points: the [`Rendezvous`] that the mirror speaks to.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream;
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::table::Circumstances;
use super::wire::{Answer, Question};
use super::{Flights, MAX_REMEMBERED};
use crate::oci::Digest;
use crate::routing::messenger::Meeting;
use crate::routing::rendezvous::{Advice, Course, Doubt, Generation, Rendezvous, Standing, Wish};
use crate::routing::{Peer, PeerId, may_be_peer};

/// Meeting points that are tried: the closest, and two that would follow it.
const TRIES: usize = 3;
/// From one node to the next, until one has room: a tree of fan-out 2 with a million nodes is not deeper than 20.
const MAX_HOPS: usize = 24;
/// Parents of one question that are nowhere where a node can be, before whoever names them is passed over, too. A meeting
/// point knows of a participant's addresses what that one has said.
const MAX_IMPOSSIBLE: usize = 3;
/// Who answered for a content is asked again without a search for so long.
const DESK: Duration = Duration::from_secs(5);
/// Searches for meeting points, and reports to them, that are under way at once. A node takes part in some tens of layers:
/// these are a few rounds of 250 ms at the worst, and no more of Kademlia's work at once than its pulls ask for anyway.
const AT_ONCE: usize = 16;
/// What a 1.x waits for the word on who leads its image: that layers come from one node saves others time, and must not cost
/// any. A search and a question take a few milliseconds where nobody hangs.
pub(super) const IMAGE_WORD: Duration = Duration::from_millis(50);
/// Who leads an image is asked again after so long.
const IMAGE: Duration = Duration::from_millis(400);

#[async_trait]
impl Rendezvous for Flights {
    async fn ask(&self, wish: Wish) -> Advice {
        let mut circumstances = Circumstances::default();
        // Two searches that do not wait for each other.
        let (leader, mut next) = tokio::join!(self.image_leader_of(&wish), self.desk(&wish.digest));
        circumstances.image_leader = leader;
        let mut tried = 0;
        while let Some(desk) = next {
            let asking = self.ask_at(desk, wish.clone(), circumstances.clone());
            if let Some(advice) = asking.await {
                return advice;
            }
            circumstances.is_takeover = true;
            tried += 1;
            // Anew each time: whoever gave no answer is not among them any more.
            next = match tried < TRIES {
                true => self.desk(&wish.digest).await,
                false => None,
            };
        }
        debug!(digest = %wish.digest, "nobody to ask: leads");
        Advice::Lead {
            lease: rand::random(),
        }
    }

    async fn report(&self, standings: Vec<Standing>) -> Vec<Course> {
        self.table().own(&standings, Instant::now());
        let finding = standings.into_iter().map(|standing| async move {
            let desk = self.patron(&standing.digest).await;
            desk.map(|desk| (desk, standing))
        });
        // Collected first: the compiler cannot see through a closure in a stream.
        let finding: Vec<_> = finding.collect();
        let found = stream::iter(finding).buffered(AT_ONCE);
        let found: Vec<_> = found.collect().await;
        let mut by_desk: HashMap<PeerId, Vec<Standing>> = HashMap::new();
        for (desk, standing) in found.into_iter().flatten() {
            by_desk.entry(desk).or_default().push(standing);
        }
        let told = by_desk.into_iter().map(|(desk, standings)| async move {
            let digests: Vec<Digest> = standings.iter().map(|s| s.digest.clone()).collect();
            let answer = self.put(&desk, Question::Report(standings)).await;
            let now = Instant::now();
            for digest in digests {
                let mut memory = self.memory();
                match &answer {
                    Some(_) => remember(&mut memory.patrons, &digest, &desk, now),
                    // The next report finds another.
                    None => drop(memory.patrons.remove(&digest)),
                }
            }
            match answer {
                Some(Answer::Courses(courses)) => courses,
                _ => Vec::new(),
            }
        });
        let told: Vec<_> = told.collect();
        let told = stream::iter(told).buffer_unordered(AT_ONCE);
        let courses: Vec<Vec<Course>> = told.collect().await;
        courses.into_iter().flatten().collect()
    }

    async fn pulls(&self, image: &str, generation: Generation, is_busy: bool) {
        self.image_leader(image, generation, is_busy).await;
    }
}

impl Flights {
    /// Asks a meeting point, and whom it names. None when it does not answer.
    async fn ask_at(
        &self,
        desk: PeerId,
        mut wish: Wish,
        mut circumstances: Circumstances,
    ) -> Option<Advice> {
        let mut root = desk;
        let mut at = root.clone();
        let mut impossible = 0;
        for _ in 0..MAX_HOPS {
            let question = Question::Ask(wish.clone(), circumstances.clone());
            match self.put(&at, question).await {
                Some(Answer::Advice(advice)) => {
                    let advice = match self.careful(advice) {
                        Ok(advice) => advice,
                        // Somebody may have told it so of himself; one that goes on with others of his kind is no better.
                        Err(parent) if impossible < MAX_IMPOSSIBLE => {
                            debug!(desk = %at, %parent, "is told to follow somebody who is nowhere");
                            impossible += 1;
                            wish.doubts.push((parent, Doubt::Silent));
                            continue;
                        }
                        Err(_) => {
                            self.passes_over(&at);
                            return None;
                        }
                    };
                    // Whoever was named knows whom to follow, but not whether somebody leads: the next question is the
                    // meeting point's again.
                    let now = Instant::now();
                    let mut memory = self.memory();
                    remember(&mut memory.desks, &wish.digest, &root, now);
                    remember(&mut memory.patrons, &wish.digest, &at, now);
                    drop(memory);
                    self.table().takes_part(&wish, &advice);
                    return Some(advice);
                }
                // It has looked further than this node.
                Some(Answer::Closer(peer)) if at == root => {
                    root = peer.id;
                    at = root.clone();
                }
                Some(Answer::Descend(peer)) => {
                    circumstances.is_descended = true;
                    at = peer.id;
                }
                None if at == root => return None,
                // Whoever was named does not know: back to who named him.
                _ => {
                    wish.doubts.push((at, Doubt::Gone));
                    circumstances.is_descended = false;
                    at = root.clone();
                }
            }
        }
        None
    }

    /// Advice whose addresses are those of another node. Else the name of the parent that has none.
    fn careful(&self, advice: Advice) -> Result<Advice, PeerId> {
        match advice {
            Advice::Follow {
                parent,
                depth,
                is_queued,
            } => {
                let id = parent.id.clone();
                let parent = self.reachable(parent).ok_or(id)?;
                Ok(Advice::Follow {
                    parent,
                    depth,
                    is_queued,
                })
            }
            Advice::Lead { .. } | Advice::Wait { .. } => Ok(advice),
        }
    }

    /// Somebody of whom another has told, with those of its addresses at which a node other than this one can be; None where
    /// there are none.
    pub(super) fn reachable(&self, mut peer: Peer) -> Option<Peer> {
        let me = self.0.messenger.me();
        // Every node's registry is at the same port, except where several share a machine's loopback.
        peer.registry.retain(|address| {
            !me.registry.contains(address)
                && me.registry.iter().any(|mine| {
                    let is_port = address.port() == mine.port() || mine.ip().is_loopback();
                    is_port && may_be_peer(address.ip(), mine.ip())
                })
        });
        (!peer.registry.is_empty()).then_some(peer)
    }

    /// The meeting point of a content: who last proved to be, else the closest that is alive.
    async fn desk(&self, digest: &Digest) -> Option<PeerId> {
        let now = Instant::now();
        let known = fresh(&self.memory().desks, digest, now);
        if let Some(desk) = known.filter(|desk| !self.is_dead(desk, now)) {
            return Some(desk);
        }
        let meeting = Meeting::Content(digest.clone());
        let closest = self.0.messenger.closest(&meeting).await;
        let mut ids = closest.into_iter().map(|peer| peer.id);
        ids.find(|id| !self.is_dead(id, now))
    }

    /// Who is to hear how this node's part in a content stands: who gave the last advice, else the meeting point.
    async fn patron(&self, digest: &Digest) -> Option<PeerId> {
        let now = Instant::now();
        let known = fresh(&self.memory().patrons, digest, now);
        match known.filter(|patron| !self.is_dead(patron, now)) {
            Some(patron) => Some(patron),
            None => self.desk(digest).await,
        }
    }

    /// Who leads the pull that `wish` is part of, where that matters.
    async fn image_leader_of(&self, wish: &Wish) -> Option<PeerId> {
        if wish.offset > 0 {
            return None;
        }
        let (this, image, generation) = (self.clone(), wish.image.clone(), wish.generation);
        // It goes on when nobody waits for it, and is known the next time: or whoever hangs would hang each time.
        let asking = tokio::spawn(async move { this.image_leader(&image, generation, true).await });
        let patience = match generation {
            Generation::One => IMAGE_WORD,
            Generation::Two => Duration::MAX,
        };
        let answered = timeout(patience, asking).await;
        answered.ok()?.ok()?
    }

    /// Tells that this node pulls `image`; who leads that pull, as far as anybody says so.
    async fn image_leader(
        &self,
        image: &str,
        generation: Generation,
        is_busy: bool,
    ) -> Option<PeerId> {
        let now = Instant::now();
        let known = self.memory().images.get(image).cloned();
        if let Some((leader, at)) = known
            && now.saturating_duration_since(at) < IMAGE
        {
            return leader;
        }
        let meeting = Meeting::Repository(image.to_string());
        let closest = self.0.messenger.closest(&meeting).await;
        let question = Question::Image {
            image: image.to_string(),
            generation,
            is_busy,
        };
        let mut leader = None;
        let live = closest.into_iter().filter(|p| !self.is_dead(&p.id, now));
        for peer in live.take(TRIES) {
            if let Some(Answer::Image(answer)) = self.put(&peer.id, question.clone()).await {
                leader = answer;
                break;
            }
        }
        let now = Instant::now();
        let mut memory = self.memory();
        memory
            .images
            .retain(|_, (_, at)| now.saturating_duration_since(*at) < DESK);
        memory
            .images
            .insert(image.to_string(), (leader.clone(), now));
        leader
    }
}

type Known = HashMap<Digest, (PeerId, Instant)>;

/// Whom one knows for `digest`, if one has heard of him lately.
fn fresh(known: &Known, digest: &Digest, now: Instant) -> Option<PeerId> {
    let (id, at) = known.get(digest)?;
    (now.saturating_duration_since(*at) < DESK).then(|| id.clone())
}

fn remember(known: &mut Known, digest: &Digest, id: &PeerId, now: Instant) {
    if known.len() >= MAX_REMEMBERED {
        known.retain(|_, (_, at)| now.saturating_duration_since(*at) < DESK);
    }
    if known.len() < MAX_REMEMBERED {
        known.insert(digest.clone(), (id.clone(), now));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::routing::flight::CALL;
    use crate::routing::rendezvous::Part;
    use crate::testing::router::{FakeRouter, FakeSwarm};

    fn standing(n: u8) -> Standing {
        Standing {
            digest: Digest::sha256(&[n]),
            generation: Generation::One,
            part: Part::Leads {
                lease: 1,
                is_queued: false,
            },
            offset: 7,
            rate: 0,
            node_rate: 0,
            free: 2,
        }
    }

    /// So many nodes that answer, and their routers.
    fn cluster(nodes: u16) -> Vec<(Flights, FakeRouter)> {
        let swarm = FakeSwarm::new();
        let node = |n| {
            let router = swarm.join(([10, 0, 0, 1], 5000 + n).into());
            let flights = Flights::new(Arc::new(router.clone()), StdRng::seed_from_u64(7));
            tokio::spawn(flights.clone().serve(router.calls()));
            (flights, router)
        };
        (0..nodes).map(node).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn neither_searches_nor_a_silent_desk_make_others_wait_their_turn() {
        const SEARCH: Duration = Duration::from_millis(100);
        let nodes = cluster(6);
        let (me, router) = &nodes[0];
        router.delay_lookups(SEARCH);
        nodes[3].1.fall_silent();
        let begin = Instant::now();

        let courses = me
            .report((0..2 * AT_ONCE as u8).map(standing).collect())
            .await;

        let took = begin.elapsed();
        assert!(took <= 2 * SEARCH + CALL, "{took:?}");
        assert!(
            took > 2 * SEARCH,
            "no desk was silent, or searches have no bound"
        );
        assert!(courses.len() > AT_ONCE, "{} were told", courses.len());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_the_other_side_has_just_closed_costs_nobody_his_name() {
        let nodes = cluster(2);
        let (me, other) = (&nodes[0].0, &nodes[1].1);
        let ask = async || {
            let opinion = Question::Opinion(Digest::sha256(b"layer"));
            me.put(other.id(), opinion).await
        };
        other.close_connections();

        assert_eq!(ask().await, Some(Answer::Opinion(Vec::new())));
        assert!(!me.is_dead(other.id(), Instant::now()));
        other.end();
        assert_eq!(ask().await, None);
        assert!(me.is_dead(other.id(), Instant::now()));
    }
}
