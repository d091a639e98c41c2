//! What this node answers as a meeting point, or as one who takes part and was named by it.

use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, join_all};
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::table::{Circumstances, Said};
use super::wire::{Answer, Question};
use super::{DEAD, Flights, MAX_REMEMBERED};
use crate::oci::Digest;
use crate::routing::messenger::Meeting;
use crate::routing::rendezvous::{Advice, Part, Wish};
use crate::routing::{Peer, PeerId};

/// How many of the next closest are asked whether they know better. One would do where views are whole; a newcomer's is
/// not, and of three one is nearly always older.
const OPINIONS: usize = 3;
/// For their opinions. A round trip is milliseconds, and on a busy machine tens of them.
const OPINION: Duration = Duration::from_millis(80);
/// And for a look at who is closest: milliseconds, unless somebody hangs. With the opinions it is less than the 250 ms after
/// which an asker takes this node for dead.
const SEARCH: Duration = Duration::from_millis(100);
/// An asker is told to wait when the look around takes longer than this: before it was heard it may have made a
/// connection, which is four round trips, and its time goes on meanwhile.
const AT_ONCE: Duration = Duration::from_millis(50);
/// Then it comes back, which costs a round trip. Twice this and [`AT_ONCE`] are what a look takes at the most, so that who
/// was told to wait hears the end of it no later than who waits for it.
const COME_BACK: Duration = Duration::from_millis(40);
/// What was found out holds for so long; by then somebody leads, or nobody asks any more.
const LOOKED: Duration = Duration::from_secs(1);

/// Looks within [`LOOKED`]: each is a search in the DHT and three calls, and costs whoever asks for it one message. A hundred
/// nodes that begin ten images of thirty layers in the same second need three hundred, if this node is the meeting point of
/// them all; beyond it who asks is told what is known here.
const MAX_LOOKS: usize = 512;

/// A look around that one asker has begun and that all who ask meanwhile wait for.
pub(super) type Look = Shared<BoxFuture<'static, Option<Peer>>>;

impl Flights {
    pub(super) async fn answer(&self, from: &Peer, question: Question) -> Answer {
        let now = Instant::now();
        match question {
            Question::Ask(wish, circumstances) => self.advise(from, wish, circumstances).await,
            Question::Report(standings) => {
                Answer::Courses(self.table().report(from, &standings, now))
            }
            Question::Image {
                image,
                generation,
                is_busy,
            } => {
                let mut table = self.table();
                Answer::Image(table.image(&from.id, &image, generation, is_busy, now))
            }
            Question::Opinion(digest) => self.opinion(from, digest).await,
        }
    }

    /// What is known here of a content whose meeting point `from` takes itself for: who gets it, or else who is closer.
    async fn opinion(&self, from: &Peer, digest: Digest) -> Answer {
        let now = Instant::now();
        let known = self.table().opinion(&digest, now);
        if !known.is_empty() {
            return Answer::Opinion(known);
        }
        let meeting = Meeting::Content(digest.clone());
        let nearest = self.0.messenger.nearest_known(&meeting).await;
        // Who is not in it stands nowhere: it has not said yet where it is.
        if nearest.iter().any(|peer| peer.id == from.id) {
            let mut live = nearest.into_iter().filter(|p| !self.is_dead(&p.id, now));
            match live.next() {
                Some(first) if first.id != from.id => return Answer::Closer(first),
                // It is the closest of all: should this node think so of itself, it is mistaken.
                _ => {
                    let mut memory = self.memory();
                    let is_fresh = |at: Instant| now.saturating_duration_since(at) < LOOKED;
                    memory.closer.retain(|_, (_, at)| is_fresh(*at));
                    if memory.closer.len() < MAX_REMEMBERED {
                        memory.closer.insert(digest, (from.clone(), now));
                    }
                }
            }
        }
        Answer::Opinion(known)
    }

    async fn advise(&self, from: &Peer, wish: Wish, mut circumstances: Circumstances) -> Answer {
        let mut said = self
            .table()
            .ask(from, &wish, &circumstances, Instant::now());
        if said == Said::AskOthers {
            let Ok(found) = timeout(AT_ONCE, self.look(&wish.digest)).await else {
                return Answer::Advice(Advice::Wait {
                    pause: COME_BACK,
                    is_queued: false,
                });
            };
            let closer = found.or_else(|| self.closer(&wish.digest));
            // It may have been found dead since.
            let closer = closer.filter(|closer| !self.is_dead(&closer.id, Instant::now()));
            if let Some(closer) = closer.filter(|_| !circumstances.is_takeover) {
                return Answer::Closer(closer);
            }
            circumstances.has_opinion = true;
            said = self
                .table()
                .ask(from, &wish, &circumstances, Instant::now());
        }
        match said {
            Said::Advice(advice) => {
                if let Advice::Lead { .. } = advice {
                    let desk = self.0.messenger.me().id;
                    debug!(digest = %wish.digest, to = %from.id, %desk, offset = wish.offset, "leads");
                }
                Answer::Advice(advice)
            }
            Said::Descend(peer) => Answer::Descend(peer),
            Said::Astray | Said::AskOthers => Answer::Astray,
        }
    }

    /// Who has said of itself that it is the meeting point, and is closer than this node.
    fn closer(&self, digest: &Digest) -> Option<Peer> {
        let now = Instant::now();
        let known = self.memory().closer.get(digest).cloned();
        let (peer, at) = known?;
        (now.saturating_duration_since(at) < LOOKED).then_some(peer)
    }

    /// Looks around, once for all who ask for the same in the same moment. It goes on when nobody waits for it.
    fn look(&self, digest: &Digest) -> Look {
        let now = Instant::now();
        let mut memory = self.memory();
        let is_fresh = |at: Instant| now.saturating_duration_since(at) < LOOKED;
        if let Some((look, at)) = memory.looks.get(digest)
            && is_fresh(*at)
        {
            return look.clone();
        }
        memory.looks.retain(|_, (_, at)| is_fresh(*at));
        if memory.looks.len() >= MAX_LOOKS {
            return std::future::ready(None).boxed().shared();
        }
        let (this, of) = (self.clone(), digest.clone());
        // Ends by itself: its search and its calls are bounded. One that panicked has found nobody.
        let task = tokio::spawn(async move { this.look_around(&of).await });
        let look = task.map(|found| found.ok().flatten()).boxed().shared();
        memory.looks.insert(digest.clone(), (look.clone(), now));
        look
    }

    /// Before somebody is told to lead what nobody is known to fetch: whether another node is closer to it, and else what
    /// the next closest know, one of whom was the meeting point if this node is new, and will be if it goes.
    async fn look_around(&self, digest: &Digest) -> Option<Peer> {
        let me = self.0.messenger.me();
        let meeting = Meeting::Content(digest.clone());
        let now = Instant::now();
        let mut closest = match timeout(SEARCH, self.0.messenger.closest(&meeting)).await {
            Ok(closest) => closest,
            // A node near by hangs.
            Err(_) => self.0.messenger.nearest_known(&meeting).await,
        };
        closest.retain(|peer| peer.id == me.id || !self.is_dead(&peer.id, now));
        match closest.first() {
            Some(first) if first.id != me.id => return Some(first.clone()),
            _ => {}
        }
        closest.retain(|peer| peer.id == me.id || !self.is_silent(&peer.id, now));
        let next = closest.iter().skip(1).take(OPINIONS);
        let opinions = next.map(|peer| self.opinion_of(&peer.id, digest));
        let (mut closer, mut is_known) = (None, false);
        for answer in join_all(opinions).await.into_iter().flatten() {
            match answer {
                Answer::Closer(peer) if peer.id != me.id && !self.is_dead(&peer.id, now) => {
                    closer = Some(peer);
                }
                Answer::Opinion(known) => {
                    let mut table = self.table();
                    for (peer, standing) in known {
                        let is_root = matches!(standing.part, Part::Leads { .. } | Part::Holds);
                        if standing.digest == *digest
                            && is_root
                            && peer.id != me.id
                            && let Some(peer) = self.reachable(peer)
                        {
                            table.report(&peer, &[standing], Instant::now());
                            is_known = true;
                        }
                    }
                }
                _ => {}
            }
        }
        closer.filter(|_| !is_known)
    }

    /// Who gives none is passed over for a while, and still is a meeting point: so little time is no proof of death.
    async fn opinion_of(&self, whom: &PeerId, digest: &Digest) -> Option<Answer> {
        let question = Question::Opinion(digest.clone()).encode();
        let answer = self.0.messenger.call(whom, question, OPINION).await.ok();
        let answer = answer.and_then(|answer| Answer::decode(answer).ok());
        if answer.is_none() {
            let now = Instant::now();
            let mut memory = self.memory();
            memory.silent.retain(|_, until| now < *until);
            if memory.silent.len() < MAX_REMEMBERED {
                memory.silent.insert(whom.clone(), now + DEAD);
            }
        }
        answer
    }

    fn is_silent(&self, whom: &PeerId, now: Instant) -> bool {
        let memory = self.memory();
        memory.silent.get(whom).is_some_and(|until| now < *until)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use tokio::time::sleep;

    use super::*;
    use crate::routing::flight::ask::IMAGE_WORD;
    use crate::routing::messenger::Messenger as _;
    use crate::routing::rendezvous::{Generation, Rendezvous};
    use crate::testing::router::{FakeRouter, FakeSwarm};

    /// What a desk could take before it let others wait: its own search, and one opinion.
    const BEFORE: Duration = Duration::from_millis(180);

    /// Six nodes in the order of their distance to a content, which is the same for all.
    async fn nodes(digest: &Digest) -> Vec<(FakeRouter, Flights)> {
        let swarm = FakeSwarm::new();
        let registry = |n: u8| SocketAddr::from(([10, 0, 0, n], 5000));
        let routers: Vec<FakeRouter> = (1..7).map(|n| swarm.join(registry(n))).collect();
        let meeting = Meeting::Content(digest.clone());
        let order = routers[0].closest(&meeting).await;
        let router = |peer: &Peer| routers.iter().find(|r| *r.id() == peer.id).unwrap().clone();
        let node = |peer: &Peer| {
            let router = router(peer);
            let flights = Flights::new(Arc::new(router.clone()), StdRng::seed_from_u64(1));
            tokio::spawn(flights.clone().serve(router.calls()));
            (router, flights)
        };
        order.iter().map(node).collect()
    }

    fn wish(digest: &Digest) -> Wish {
        Wish {
            digest: digest.clone(),
            image: "docker.io/library/nginx".into(),
            generation: Generation::One,
            offset: 0,
            doubts: Vec::new(),
            led_in_vain: false,
            is_slow: false,
        }
    }

    /// Asks and does as it is told until it is to lead or to follow. Returns that, and how long it took.
    async fn advice(asker: &Flights, digest: &Digest) -> (Advice, Duration) {
        let began = Instant::now();
        loop {
            match asker.ask(wish(digest)).await {
                Advice::Wait { pause, .. } => sleep(pause).await,
                advice => return (advice, began.elapsed()),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_that_hang_cost_an_asker_no_more_than_they_did_and_once() {
        let digest = Digest::sha256(b"layer");
        let nodes = nodes(&digest).await;
        for (neighbour, _) in &nodes[1..4] {
            neighbour.fall_silent();
        }
        // The search of the desk meets somebody who hangs as well.
        nodes[0].0.delay_lookups(Duration::from_secs(10));

        let (advised, took) = advice(&nodes[5].1, &digest).await;

        assert!(matches!(advised, Advice::Lead { .. }), "{advised:?}");
        assert!(took > SEARCH && took <= IMAGE_WORD + BEFORE, "{took:?}");
        // From then on the desk does not ask the silent again.
        nodes[0].0.delay_lookups(Duration::ZERO);
        let began = Instant::now();
        assert_eq!(nodes[0].1.look_around(&digest).await, None);
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_no_opinion_is_still_asked_as_a_meeting_point() {
        let digest = Digest::sha256(b"layer");
        let nodes = nodes(&digest).await;
        nodes[1].0.fall_silent();
        advice(&nodes[5].1, &digest).await;

        let silent = nodes[1].0.id();
        assert!(nodes[0].1.is_silent(silent, Instant::now()));
        assert!(!nodes[0].1.is_dead(silent, Instant::now()));
        assert!(!nodes[0].1.is_silent(silent, Instant::now() + DEAD));
    }

    #[tokio::test(start_paused = true)]
    async fn a_desk_looks_around_once_for_all_who_ask_and_lets_one_lead() {
        let digest = Digest::sha256(b"layer");
        let nodes = nodes(&digest).await;
        nodes[0].0.delay_lookups(Duration::from_millis(70));

        let asked = nodes[1..]
            .iter()
            .map(|(_, flights)| advice(flights, &digest));
        let advised = join_all(asked).await;

        let leads = |(advice, _): &&(Advice, Duration)| matches!(advice, Advice::Lead { .. });
        assert_eq!(advised.iter().filter(leads).count(), 1, "{advised:?}");
        assert!(
            advised.iter().all(|(_, took)| *took <= BEFORE),
            "{advised:?}"
        );
        assert_eq!(nodes[0].1.memory().looks.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_for_what_is_made_up_has_this_node_search_so_often_and_no_more() {
        let digest = Digest::sha256(b"layer");
        let nodes = nodes(&digest).await;
        let (desk, from) = (&nodes[0], nodes[1].0.peer());
        for n in 0..10 * MAX_LOOKS {
            let made_up = Digest::sha256(&n.to_be_bytes());
            let circumstances = Circumstances::default();
            desk.1.advise(&from, wish(&made_up), circumstances).await;
        }

        assert_eq!(desk.1.memory().looks.len(), MAX_LOOKS);
        tokio::time::advance(LOOKED).await;
        let (advised, _) = advice(&nodes[5].1, &digest).await;
        assert!(matches!(advised, Advice::Lead { .. }), "{advised:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_desk_that_takes_itself_for_the_closest_is_told_who_is() {
        let digest = Digest::sha256(b"layer");
        let nodes = nodes(&digest).await;
        let opinion = nodes[2].1.opinion(&nodes[1].0.peer(), digest.clone()).await;
        assert_eq!(opinion, Answer::Closer(nodes[0].0.peer()));

        // And one who is closer than this node, and says so, is where its askers are sent.
        assert_eq!(nodes[2].1.closer(&digest), None);
        let opinion = nodes[2].1.opinion(&nodes[0].0.peer(), digest.clone()).await;
        assert_eq!(opinion, Answer::Opinion(Vec::new()));
        assert_eq!(nodes[2].1.closer(&digest), Some(nodes[0].0.peer()));
        tokio::time::advance(LOOKED).await;
        assert_eq!(nodes[2].1.closer(&digest), None);
    }
}
