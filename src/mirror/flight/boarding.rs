//! One request of this node's containerd, on its way to a source that is still growing.

use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::Method;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::{debug, info};

use super::blame::Giver;
use super::part::Role;
use super::{Aboard, Flight, Puller};
use crate::mirror::InFlightSharing;
use crate::mirror::attempt::{Ask, PeerError};
use crate::mirror::search::Delivery;
use crate::mirror::{FetchError, LIMIT, Mirror};
use crate::oci::distribution::{ByteRange, Following};
use crate::oci::{Digest, Key};
use crate::routing::rendezvous::{Advice, Doubt, Generation, Wish};
use crate::routing::{Peer, PeerId};

/// How long a parent is asked to hold a request for its first byte. It must come back before the parent could be replaced.
const HOLD: Duration = Duration::from_millis(800);
/// containerd 2.x is sent back after this, so that the permit that its request holds goes to other layers, if there are any
/// that it could get. A fresh leader's first MiB takes 0.1 to 0.5 s with 50 MB/s for five nodes (measured).
const POSTPONE: Duration = Duration::from_millis(600);
/// From then on it is looked this often whether there are.
const QUEUED_HOLD: Duration = Duration::from_millis(200);
/// Instead of [`LIMIT`], from the request on. containerd 2.x downloads three layers at a time: a layer that its leader has in
/// its queue comes when it comes, and to go to the registry for it costs a copy and gains nothing. Bounded all the same.
const LIMIT_QUEUED: Duration = Duration::from_secs(30);
/// Three meeting points that do not answer take 0.75 s; more is no use to anybody.
const ADVICE: Duration = Duration::from_secs(1);
/// What is known of a manifest is in memory or on disk.
const LOOK: Duration = Duration::from_millis(500);
/// After a parent that gave nothing, so that two who fail at once are not asked in a tight circle.
const BREATH: Duration = Duration::from_millis(10);
/// Parents that are remembered as not having delivered: the rendezvous remembers them, too.
const MAX_DOUBTS: usize = 32;

pub(in crate::mirror) struct Boarding {
    mirror: Mirror,
    flight: Flight,
    digest: Digest,
    image: String,
    puller: Puller,
    aboard: Aboard,
    /// Those whom it was sent to and who had no room for one that can follow others.
    busy: Vec<Peer>,
    /// To be told with the next question.
    doubts: Vec<(PeerId, Doubt)>,
    /// Parents since the request began.
    parents: u32,
    /// When the request began, or the gap in its body.
    began: Instant,
    /// Whether its leader's containerd had it in its queue, as was last heard.
    is_queued: bool,
}

/// What came of asking once.
enum Step {
    Delivered(Box<Boarded>),
    Leads(u64),
    /// Not before this pause is over.
    Again(Duration),
}

/// Whom a body is taken from, and how patient to be with it.
pub(in crate::mirror) struct Boarded {
    pub delivery: Delivery,
    /// Steps from there to whoever leads or has it.
    pub depth: u32,
}

/// Why nobody is followed.
#[derive(Clone, Copy, Debug)]
pub(in crate::mirror) enum Alone {
    /// This node is to get it from the registry.
    Leads { lease: u64 },
    /// containerd is to ask again.
    Later,
}

impl Boarding {
    /// None where this request goes on without the others.
    pub async fn begin(
        mirror: &Mirror,
        digest: &Digest,
        puller: &Puller,
        began: Instant,
    ) -> Option<Self> {
        let flight = mirror.flight.clone().filter(Flight::is_on)?;
        let image = timeout(LOOK, flight.0.images.of(&puller.image, digest)).await;
        let image = image.unwrap_or_else(|_| puller.image.clone());
        let aboard = flight.aboard(digest, puller, image.clone())?;
        Some(Self {
            mirror: mirror.clone(),
            flight,
            digest: digest.clone(),
            image,
            puller: puller.clone(),
            aboard,
            busy: Vec::new(),
            doubts: Vec::new(),
            parents: 0,
            began,
            is_queued: false,
        })
    }

    /// Those whom it was sent to and who had no room, once.
    pub fn busy(&mut self) -> impl Iterator<Item = Peer> {
        std::mem::take(&mut self.busy).into_iter()
    }

    /// It has it, and said that enough others read it there.
    pub fn is_busy(&mut self, holder: &PeerId) {
        if self.doubts.len() < MAX_DOUBTS {
            self.doubts.push((holder.clone(), Doubt::Busy));
        }
    }

    /// The body goes on after a gap that began at `gap`.
    pub fn again(&mut self, gap: Instant) {
        self.began = gap;
        self.is_queued = false;
    }

    /// When the request's first byte must have come, or the next one of its body.
    pub fn deadline(&self) -> Instant {
        match (self.is_queued, self.puller.generation) {
            (true, Generation::Two) => self.began + LIMIT_QUEUED,
            _ => self.began + LIMIT,
        }
    }

    /// The bytes of `ask` from a node that is getting them, or has them by now, the first one in hand.
    pub async fn deliver(&mut self, ask: &Ask) -> Result<Boarded, Alone> {
        let began = Instant::now();
        loop {
            let deadline = self.deadline();
            let step = match Instant::now() < deadline {
                true => timeout_at(deadline, self.step(ask, began)).await.ok(),
                false => None,
            };
            let waited = began.elapsed();
            match step {
                Some(Step::Delivered(boarded)) => return Ok(*boarded),
                Some(Step::Leads(lease)) => {
                    if waited >= Duration::from_secs(2) {
                        self.flight.0.metrics.missed.inc();
                    }
                    return Err(Alone::Leads { lease });
                }
                Some(Step::Again(pause)) => {
                    if self.puller.may_ask_again
                        && waited >= POSTPONE
                        && self
                            .flight
                            .keeps_another_waiting(&self.digest, &self.image)
                            .await
                    {
                        return Err(Alone::Later);
                    }
                    sleep_until(self.deadline().min(Instant::now() + pause)).await;
                }
                None if self.puller.may_ask_again => return Err(Alone::Later),
                None => {
                    info!(digest = %self.digest, ?waited, "nobody brings it: this node goes to the registry");
                    self.flight.0.metrics.missed.inc();
                    let lease = rand::random();
                    return Err(Alone::Leads { lease });
                }
            }
        }
    }

    /// Asks once, and whom it is told to follow.
    async fn step(&mut self, ask: &Ask, began: Instant) -> Step {
        match self.advice(ask, false).await {
            Advice::Lead { lease } => Step::Leads(lease),
            Advice::Wait { pause, is_queued } => {
                self.is_queued = is_queued;
                Step::Again(pause.clamp(BREATH, HOLD))
            }
            Advice::Follow {
                parent,
                depth,
                is_queued,
            } => {
                self.is_queued = is_queued;
                match self.follow(&parent, ask, began).await {
                    Some(delivery) => Step::Delivered(Box::new(Boarded { delivery, depth })),
                    None => Step::Again(BREATH),
                }
            }
        }
    }

    /// Whether another source brings it faster than the present one, which goes on meanwhile.
    pub async fn faster(&mut self, ask: &Ask) -> Result<Option<Boarded>, Alone> {
        // Whatever comes of it gets the time of a new stream before it is judged again.
        self.flight
            .change(&self.digest, |part| part.streams(Instant::now()));
        match self.advice(ask, true).await {
            Advice::Lead { lease } => Err(Alone::Leads { lease }),
            Advice::Follow { parent, depth, .. } => {
                let present = self.flight.role(&self.digest);
                let delivery = self.follow(&parent, ask, Instant::now()).await;
                if delivery.is_none() {
                    // The present source goes on, and is to be judged again.
                    self.flight.change(&self.digest, |part| {
                        part.becomes(present.unwrap_or(Role::Asks), Instant::now());
                        part.streams(Instant::now());
                    });
                }
                Ok(delivery.map(|delivery| Boarded { delivery, depth }))
            }
            Advice::Wait { .. } => {
                self.flight
                    .change(&self.digest, |part| part.waits_its_turn(Instant::now()));
                Ok(None)
            }
        }
    }

    /// Whether the registry has lately brought this node so much more than `rate`, in bytes per second, that it is worth
    /// leaving a node that has it.
    pub fn would_get_more(&self, rate: u64) -> bool {
        self.flight.0.sharing == InFlightSharing::Auto
            && self
                .flight
                .registries()
                .brings_more(&self.image, rate, Instant::now())
    }

    /// Waits until leading would be faster than to follow.
    pub async fn is_slow(&mut self) {
        // The sender is in the part, which this request keeps.
        if self.aboard.slow.wait_for(|slow| *slow).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// A parent that had begun to deliver has stopped.
    pub fn failed(&mut self, parent: &Peer, error: &PeerError) {
        self.flight.0.metrics.replaced.inc();
        self.doubt(parent, error);
    }

    /// A node that has it whole delivers: whoever finds such nodes busy can follow this one.
    pub fn takes_what_is_whole(&self) {
        self.flight.change(&self.digest, |part| {
            part.becomes(Role::Takes, Instant::now());
        });
    }

    /// `peer` brings bytes: whose fault it was will be asked if containerd refuses them.
    pub fn takes_from(&self, peer: &Peer, ask: &Ask) {
        /// Of a body that went on with so many others, all that matter are among the last.
        const MAX_GIVERS: usize = 16;
        let giver = Giver {
            peer: peer.clone(),
            path_and_query: ask.path_and_query.clone(),
        };
        self.flight.change(&self.digest, |part| {
            if part.givers.len() == MAX_GIVERS {
                part.givers.remove(0);
            }
            part.givers.push(giver);
        });
    }

    /// containerd is given `chunk`, which begins at `offset`.
    pub fn gives(&self, offset: u64, chunk: &[u8]) {
        self.aboard.passing.push(offset, chunk);
        self.gives_up_to(offset + chunk.len() as u64);
    }

    /// containerd is given all bytes before `offset`, or has them.
    pub fn gives_up_to(&self, offset: u64) {
        self.aboard.given.fetch_max(offset, Ordering::Relaxed);
    }

    async fn advice(&mut self, ask: &Ask, is_slow: bool) -> Advice {
        let wish = Wish {
            digest: self.digest.clone(),
            image: self.image.clone(),
            generation: self.puller.generation,
            offset: first(ask),
            doubts: std::mem::take(&mut self.doubts),
            led_in_vain: self.flight.led_in_vain(&self.digest),
            is_slow,
        };
        let asked = timeout(ADVICE, self.flight.0.rendezvous.ask(wish)).await;
        let advice = asked.unwrap_or(Advice::Lead {
            lease: rand::random(),
        });
        debug!(digest = %self.digest, offset = first(ask), ?advice, "advice");
        advice
    }

    async fn follow(&mut self, parent: &Peer, ask: &Ask, began: Instant) -> Option<Delivery> {
        let id = parent.id.clone();
        if self.flight.is_distrusted(&id, &self.digest) {
            let doubt = match self.flight.0.distrust.is_proven(&id, &self.digest) {
                true => Doubt::Corrupt,
                false => Doubt::Silent,
            };
            self.doubts.push((id, doubt));
            return None;
        }
        self.flight.change(&self.digest, |part| {
            part.becomes(Role::Follows { parent: id }, Instant::now());
        });
        let may_wait = match self.puller.may_ask_again {
            true => POSTPONE.saturating_sub(began.elapsed()).max(QUEUED_HOLD),
            false => HOLD,
        };
        let growing = Ask {
            growing: Some(may_wait.min(HOLD)),
            // It was chosen for having room.
            following: Following::No,
            ..ask.clone()
        };
        let (peer, outcome) = self.mirror.clone().ask(parent.clone(), growing).await;
        match outcome {
            Ok(delivery) => {
                if self.parents == 0 {
                    self.flight.0.metrics.followed.inc();
                }
                self.parents += 1;
                self.flight
                    .change(&self.digest, |part| part.streams(Instant::now()));
                Some(delivery)
            }
            // It is alive, and will have it.
            Err(PeerError::Waiting) => None,
            Err(error) => {
                debug!(digest = %self.digest, peer = %peer.id, %error, "parent gives nothing");
                let attempts = &self.mirror.metrics.attempts;
                attempts.with_label_values(&[error.outcome()]).inc();
                self.flight.0.metrics.replaced.inc();
                self.doubt(&peer, &error);
                if matches!(error, PeerError::Busy { .. }) && self.busy.len() < MAX_DOUBTS {
                    self.busy.push(peer);
                }
                None
            }
        }
    }

    fn doubt(&mut self, parent: &Peer, error: &PeerError) {
        let doubt = match error {
            PeerError::Refused => Doubt::Refused,
            PeerError::Absent => Doubt::Gone,
            PeerError::Busy { .. } => Doubt::Busy,
            PeerError::NotSatisfiable { .. } => Doubt::Behind,
            _ => Doubt::Silent,
        };
        if self.doubts.len() < MAX_DOUBTS {
            self.doubts.push((parent.id.clone(), doubt));
        }
    }

    /// Goes its way alone; what containerd is told.
    pub fn leaves(&self, alone: Alone) -> FetchError {
        let key = Key::Content(self.digest.clone());
        match alone {
            Alone::Later => {
                self.flight.0.metrics.postponed.inc();
                FetchError::Later(key)
            }
            Alone::Leads { lease } => {
                self.flight.0.metrics.led.inc();
                self.flight.change(&self.digest, |part| {
                    part.becomes(Role::Leads { lease }, Instant::now());
                });
                FetchError::Lead(key)
            }
        }
    }

    /// The same in mid-body, from a source that brings less than those who lead get.
    pub fn leaves_for_more(&self, alone: Alone) -> FetchError {
        info!(digest = %self.digest, "whoever leads is faster: this node goes to the registry, too");
        self.flight
            .change(&self.digest, |part| part.goes_for_more(Instant::now()));
        self.leaves(alone)
    }
}

/// The first byte that is asked for.
fn first(ask: &Ask) -> u64 {
    match (&ask.method, &ask.range) {
        (&Method::GET, Some(ByteRange::From { first, .. })) => *first,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;
    use bytes::Bytes;
    use futures::TryStreamExt as _;

    use super::*;
    use crate::inflight::{ContentRoot, Inflight, Uplink};
    use crate::mirror::flight::{Metrics, Parts};
    use crate::mirror::{self, Fetched, InFlightSharing, Wanted};
    use crate::recent::Journey;
    use crate::routing::Router as _;
    use crate::routing::rendezvous::{Course, Rendezvous, Standing};
    use crate::testing::content::FakeStore;
    use crate::testing::ingest::FakeIngests;
    use crate::testing::noise;
    use crate::testing::peer::FakePeer;
    use crate::testing::router::{FakeRouter, FakeSwarm};

    /// Says the same to everybody, after a while.
    struct Oracle {
        advice: Advice,
        after: Duration,
    }

    #[async_trait]
    impl Rendezvous for Oracle {
        async fn ask(&self, _: Wish) -> Advice {
            tokio::time::sleep(self.after).await;
            self.advice.clone()
        }

        async fn report(&self, _: Vec<Standing>) -> Vec<Course> {
            Vec::new()
        }

        async fn pulls(&self, _: &str, _: Generation, _: bool) {}
    }

    /// A node whose meeting points say `advice`.
    fn node(
        ingests: &FakeIngests,
        router: FakeRouter,
        said: (Advice, Duration),
    ) -> (Mirror, Flight) {
        holding(FakeStore::default(), ingests, router, said)
    }

    /// The same with a store of its own.
    fn holding(
        store: FakeStore,
        ingests: &FakeIngests,
        router: FakeRouter,
        (advice, after): (Advice, Duration),
    ) -> (Mirror, Flight) {
        let root = ContentRoot::known(ingests.root().to_owned());
        let metrics = prometheus::Registry::new();
        let parts = Parts {
            rendezvous: Arc::new(Oracle { advice, after }),
            store: Arc::new(store),
            inflight: Inflight::new(root, "k8s.io".into()),
            uplink: Uplink::default(),
            sharing: InFlightSharing::Auto,
            papers: Default::default(),
        };
        let config = mirror::Config {
            retries: 3,
            zone: None,
        };
        let flight = Flight::new(parts, Metrics::new(&metrics));
        let mirror = Mirror::new(Arc::new(router), config, mirror::Metrics::new(&metrics));
        (mirror.with_flight(flight.clone()), flight)
    }

    /// `holder` has `digest`, and the swarm knows.
    async fn advertised(swarm: &FakeSwarm, holder: &Peer, digest: &Digest) {
        let router = swarm.join(holder.registry[0]);
        let key = Key::Content(digest.clone());
        router.advertise(vec![key]).await.unwrap();
    }

    #[tokio::test]
    async fn a_holder_whose_length_is_not_the_manifests_is_passed_over() {
        let layer = noise(100_000, 1);
        for difference in [-50_000, 50_000] {
            let holder = FakePeer::serving(layer.clone());
            let holder = holder.lying_about_its_length_by(difference).spawn().await;
            let (ingests, swarm) = (FakeIngests::new(), FakeSwarm::new());
            let digest = Digest::sha256(&layer);
            advertised(&swarm, &holder.peer(), &digest).await;
            let _ingest = ingests.begin("layer", &digest, layer.len() as u64);
            let router = swarm.join(([127, 0, 0, 1], 5000).into());
            let lead = Advice::Lead { lease: 1 };
            let (mirror, _) = node(&ingests, router, (lead, Duration::ZERO));

            let missed = mirror.blob(wanted(&digest, Generation::One), None).await;

            assert!(missed.is_err(), "{difference}");
            assert_eq!(holder.asked().len(), 1);
        }
    }

    #[tokio::test]
    async fn where_all_holders_are_busy_somebody_who_is_getting_it_is_followed() {
        let layer = noise(100_000, 1);
        let holder = FakePeer::serving(layer.clone()).busy_and_naming(&[]);
        let holder = holder.spawn().await;
        let other = FakePeer::serving(layer.clone()).spawn().await;
        let (ingests, swarm) = (FakeIngests::new(), FakeSwarm::new());
        let digest = Digest::sha256(&layer);
        advertised(&swarm, &holder.peer(), &digest).await;
        let follow = Advice::Follow {
            parent: other.peer(),
            depth: 1,
            is_queued: false,
        };
        let router = swarm.join(([127, 0, 0, 1], 5000).into());
        let (mirror, flight) = node(&ingests, router, (follow, Duration::ZERO));

        let fetched = mirror.blob(wanted(&digest, Generation::One), None).await;

        let Fetched {
            body, in_flight, ..
        } = fetched.unwrap();
        let role = flight.role(&digest);
        let bytes: Vec<Bytes> = body.try_collect().await.unwrap();
        assert!(bytes.concat() == layer);
        assert!(in_flight.is());
        assert_eq!((holder.asked().len(), other.asked().len()), (1, 1));
        let parent = other.peer().id;
        assert_eq!(role, Some(Role::Follows { parent }));
    }

    /// A holder that several read from, and one who is getting it.
    struct FullAndFollowed {
        holder: FakePeer,
        other: FakePeer,
        mirror: Mirror,
        digest: Digest,
        layer: Bytes,
        _ingests: FakeIngests,
    }

    impl FullAndFollowed {
        /// So many bytes per second come from the holder and from the other.
        async fn bringing(rates: [usize; 2], advice: impl Fn(Peer) -> Advice) -> Self {
            Self::turning_away(&[Following::May], rates, advice).await
        }

        async fn turning_away(
            who: &'static [Following],
            rates: [usize; 2],
            advice: impl Fn(Peer) -> Advice,
        ) -> Self {
            let layer = Bytes::from(noise(12_000_000, 3));
            let [holder, other] = rates.map(|rate| FakePeer::serving(layer.clone()).bringing(rate));
            let holder = holder.turning_away(who).spawn().await;
            let other = other.spawn().await;
            let (ingests, swarm) = (FakeIngests::new(), FakeSwarm::new());
            let digest = Digest::sha256(&layer);
            advertised(&swarm, &holder.peer(), &digest).await;
            let router = swarm.join(([127, 0, 0, 1], 5000).into());
            let advice = (advice(other.peer()), Duration::ZERO);
            let (mirror, _) = node(&ingests, router, advice);
            Self {
                holder,
                other,
                mirror,
                digest,
                layer,
                _ingests: ingests,
            }
        }

        /// All of it. What the holder was asked, and how many times the other.
        async fn pull(&self) -> (Vec<Following>, usize) {
            let wanted = wanted(&self.digest, Generation::One);
            let fetched = self.mirror.blob(wanted, None).await;
            let bytes: Vec<Bytes> = fetched.unwrap().body.try_collect().await.unwrap();
            assert!(bytes.concat() == self.layer);
            let asked = self.holder.asked().into_iter();
            let asked = asked.map(|asked| asked.following).collect();
            (asked, self.other.asked().len())
        }
    }

    fn follow(parent: Peer) -> Advice {
        Advice::Follow {
            parent,
            depth: 1,
            is_queued: false,
        }
    }

    const FAST: usize = 100_000_000;

    #[tokio::test]
    async fn a_full_holder_gives_all_the_same_where_there_is_nobody_to_follow() {
        let lead = |_| Advice::Lead { lease: 1 };
        let world = FullAndFollowed::bringing([FAST, FAST], lead).await;
        let asked = world.pull().await;
        assert_eq!(asked, (vec![Following::May, Following::No], 0));
    }

    #[tokio::test]
    async fn a_full_holder_is_left_alone_while_whoever_is_followed_brings_enough() {
        let world = FullAndFollowed::bringing([FAST, FAST], follow).await;
        let asked = world.pull().await;
        assert_eq!(asked, (vec![Following::May], 1));
    }

    #[tokio::test]
    async fn a_full_holder_is_tried_where_whoever_is_followed_brings_little() {
        let world = FullAndFollowed::bringing([FAST, 3_000_000], follow).await;
        let asked = world.pull().await;
        assert_eq!(asked, (vec![Following::May, Following::Slowly], 1));
    }

    #[tokio::test]
    async fn a_full_holder_that_stays_full_is_asked_more_and_more_rarely() {
        let who = &[Following::May, Following::Slowly];
        let world = FullAndFollowed::turning_away(who, [FAST, 3_000_000], follow).await;
        let began = Instant::now();

        let (asked, others) = world.pull().await;

        // After a second, and each time after four times as long: a second question comes where the bytes took five seconds.
        let trials = (0..).map(|n| (4_u64.pow(n + 1) - 1) / 3);
        let took = began.elapsed().as_secs();
        let most = trials.take_while(|at| *at <= took).count();
        let (first, again) = asked.split_first().unwrap();
        assert_eq!((*first, others), (Following::May, 1));
        assert!(again.iter().all(|asked| *asked == Following::Slowly));
        assert!((1..=most).contains(&again.len()), "{again:?} in {took} s");
    }

    #[tokio::test]
    async fn of_many_full_holders_three_are_asked() {
        let layer = noise(100_000, 4);
        let digest = Digest::sha256(&layer);
        let (ingests, swarm) = (FakeIngests::new(), FakeSwarm::new());
        let mut holders = Vec::new();
        for _ in 0..6 {
            let holder = FakePeer::serving(layer.clone()).turning_away(&[Following::May]);
            let holder = holder.spawn().await;
            advertised(&swarm, &holder.peer(), &digest).await;
            holders.push(holder);
        }
        let other = FakePeer::serving(layer.clone()).spawn().await;
        let router = swarm.join(([127, 0, 0, 1], 5000).into());
        let advice = (follow(other.peer()), Duration::ZERO);
        let (mirror, _) = node(&ingests, router, advice);

        let fetched = mirror.blob(wanted(&digest, Generation::One), None).await;

        let bytes: Vec<Bytes> = fetched.unwrap().body.try_collect().await.unwrap();
        assert!(bytes.concat() == layer);
        let asked: usize = holders.iter().map(|holder| holder.asked().len()).sum();
        assert_eq!((asked, other.asked().len()), (3, 1));
    }

    #[tokio::test]
    async fn a_full_holder_that_brings_no_more_is_left_again() {
        let world = FullAndFollowed::bringing([1_000_000, 3_000_000], follow).await;
        let asked = world.pull().await;
        assert_eq!(asked, (vec![Following::May, Following::Slowly], 2));
    }

    #[tokio::test]
    async fn who_takes_what_is_whole_says_so() {
        let layer = noise(100_000, 2);
        let holder = FakePeer::serving(layer.clone()).spawn().await;
        let (ingests, swarm) = (FakeIngests::new(), FakeSwarm::new());
        let digest = Digest::sha256(&layer);
        advertised(&swarm, &holder.peer(), &digest).await;
        let router = swarm.join(([127, 0, 0, 1], 5000).into());
        let (mirror, flight) = node(&ingests, router, (wait(false), Duration::ZERO));

        let fetched = mirror.blob(wanted(&digest, Generation::One), None).await;

        assert_eq!(flight.role(&digest), Some(Role::Takes));
        let Fetched {
            body, in_flight, ..
        } = fetched.unwrap();
        let _: Vec<Bytes> = body.try_collect().await.unwrap();
        assert!(!in_flight.is());
    }

    fn wanted(digest: &Digest, generation: Generation) -> Wanted {
        Wanted {
            key: Key::Content(digest.clone()),
            path_and_query: format!("/v2/app/blobs/{digest}?ns=registry.test"),
            puller: Puller {
                image: "registry.test/app".into(),
                generation,
                may_ask_again: false,
                is_trial: false,
            },
            journey: Journey::default(),
        }
    }

    /// How long a node that finds no holder, however long it looks, lets its containerd wait for a blob and for a manifest.
    async fn waits(advice: Advice, after: Duration, generation: Generation) -> [Duration; 2] {
        let ingests = FakeIngests::new();
        let router = FakeSwarm::new().join(([10, 0, 0, 1], 5000).into());
        router.hang_lookups();
        let (mirror, _) = node(&ingests, router, (advice, after));
        let digest = Digest::sha256(b"layer");
        let began = Instant::now();
        let blob = mirror.blob(wanted(&digest, generation), None).await.err();
        let took = began.elapsed();
        assert!(matches!(blob, Some(FetchError::Lead(_))), "{blob:?}");
        let digest = Digest::sha256(b"manifest");
        let began = Instant::now();
        let manifest = mirror.manifest(wanted(&digest, generation), &digest).await;
        let manifest = manifest.err();
        assert!(
            matches!(manifest, Some(FetchError::Lead(_))),
            "{manifest:?}"
        );
        [took, began.elapsed()]
    }

    /// For how long a request of containerd 2.x that may ask again is kept while its leader has the layer in its queue. The
    /// image has another layer, of which `known` says what is known.
    async fn kept(known: Option<Known>) -> Duration {
        let (ingests, store) = (FakeIngests::new(), FakeStore::default());
        let [digest, other] = [b"layer", b"other"].map(|name| Digest::sha256(name));
        let layers = format!(r#"[{{"digest":"{digest}"}},{{"digest":"{other}"}}]"#);
        let manifest = store.add_blob(format!(r#"{{"schemaVersion":2,"layers":{layers}}}"#));
        if known == Some(Known::Here) {
            store.add_blob("other");
        }
        let router = FakeSwarm::new().join(([10, 0, 0, 1], 5000).into());
        let (mirror, flight) = holding(store, &ingests, router, (wait(true), Duration::ZERO));
        let mut wanted = wanted(&digest, Generation::Two);
        wanted.puller.may_ask_again = true;
        flight.asked_for_manifest(&wanted.puller.image, &manifest);
        if let Some(Known::Asked { leads_at, in_hand }) = known {
            let image = flight.0.images.of(&wanted.puller.image, &other).await;
            let aboard = flight.aboard(&other, &wanted.puller, image);
            flight.change(&other, |part| part.progress.offset = leads_at);
            // As long as the other request is in hand.
            std::mem::forget(aboard.filter(|_| in_hand));
        }
        let began = Instant::now();
        let blob = mirror.blob(wanted, None).await.err();
        assert!(matches!(blob, Some(FetchError::Later(_))), "{blob:?}");
        began.elapsed()
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Known {
        Here,
        /// containerd has asked for it, or asks now; whoever leads has so many bytes.
        Asked {
            leads_at: u64,
            in_hand: bool,
        },
    }

    #[tokio::test(start_paused = true)]
    async fn a_2x_is_sent_back_from_its_leaders_queue_where_it_could_get_another_layer() {
        let asked = |leads_at, in_hand| Some(Known::Asked { leads_at, in_hand });
        for (known, expected) in [
            (None, POSTPONE),
            (asked(1 << 20, false), POSTPONE),
            (asked(1 << 20, true), LIMIT_QUEUED),
            (asked(0, false), LIMIT_QUEUED),
            (Some(Known::Here), LIMIT_QUEUED),
        ] {
            let took = kept(known).await;
            // It is looked so often.
            let late = took.saturating_sub(expected);
            assert!(
                took >= expected && late <= QUEUED_HOLD,
                "{known:?}: {took:?}"
            );
        }
    }

    fn wait(is_queued: bool) -> Advice {
        Advice::Wait {
            pause: Duration::from_millis(40),
            is_queued,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_limit_bounds_all_that_a_request_is_made_to_wait_for() {
        let (at_once, slowly) = (Duration::ZERO, Duration::from_millis(900));
        let never = Duration::from_secs(3600);
        let lead = Advice::Lead { lease: 1 };
        let search = Duration::from_secs(2);
        for (case, advice, after, generation, expected) in [
            ("told to wait", wait(false), at_once, Generation::One, LIMIT),
            ("slowly", wait(false), slowly, Generation::One, LIMIT),
            (
                "1.x and a queue",
                wait(true),
                at_once,
                Generation::One,
                LIMIT,
            ),
            ("2.x", wait(false), at_once, Generation::Two, LIMIT),
            (
                "2.x and a queue",
                wait(true),
                at_once,
                Generation::Two,
                LIMIT_QUEUED,
            ),
            (
                "no answer",
                wait(false),
                never,
                Generation::One,
                search + ADVICE,
            ),
            ("told to lead", lead, at_once, Generation::One, search),
        ] {
            for took in waits(advice.clone(), after, generation).await {
                // The clock's grain.
                let late = took.saturating_sub(expected);
                assert!(
                    took >= expected && late.as_millis() <= 5,
                    "{case}: {took:?}"
                );
            }
        }
    }
}
