//! Real Kademlia nodes in one process, each with its rendezvous, must agree on who asks the registry.
//!
//! 20 % of them have started a second ago, 10 % are killed without a word, and then many of those alive ask for the same
//! content in the same moment. What counts is the leaders: each beyond the first is another copy that leaves the
//! registry.
//!
//! Two hundred nodes are 25,000 connections, a hundred contents of fifty askers 5,000 searches, and take minutes of a core.
//! So there are fewer unless the environment says otherwise:
//!
//! ```text
//! PEILI_TEST_NODES     40, of which 20 % are new and 10 % are killed
//! PEILI_TEST_CONTENTS  20, asked for one after the other, ten in a second
//! PEILI_TEST_ASKERS    20 of each content at once
//! PEILI_TEST_MINUTES   2, of the clock on the wall, that all may take; 30 for two hundred nodes
//! ```
//!
//! However many they are, the clock stands still while they compute: what is measured is the time that messages take, as
//! if every node had cores of its own. Figures are printed (`--nocapture`).

#[allow(dead_code, reason = "each test uses its part")]
mod nodes;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;
use futures::stream::StreamExt;
use nodes::Node;
use peili::oci::{Digest, Key};
use peili::routing::bootstrap::Bootstrap;
use peili::routing::flight::Flights;
use peili::routing::kad::{Kad, distance, place};
use peili::routing::messenger::{Meeting, Messenger, Unreachable};
use peili::routing::rendezvous::{Advice, Doubt, Generation, Part, Rendezvous, Standing, Wish};
use peili::routing::{Peer, PeerId, Router};
use peili::testing::memory::Delay;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// A real messenger, and how much it was used.
struct Counting {
    kad: Kad,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    calls: AtomicUsize,
    failed: AtomicUsize,
    searches: Mutex<Vec<Duration>>,
}

impl Counts {
    fn reset(&self) {
        self.calls.store(0, Ordering::Relaxed);
        self.failed.store(0, Ordering::Relaxed);
        self.searches.lock().unwrap().clear();
    }
}

#[async_trait]
impl Messenger for Counting {
    fn me(&self) -> Peer {
        self.kad.me()
    }

    async fn closest(&self, meeting: &Meeting) -> Vec<Peer> {
        let began = Instant::now();
        let closest = self.kad.closest(meeting).await;
        self.counts.searches.lock().unwrap().push(began.elapsed());
        closest
    }

    async fn nearest_known(&self, meeting: &Meeting) -> Vec<Peer> {
        self.kad.nearest_known(meeting).await
    }

    async fn call(
        &self,
        to: &PeerId,
        message: Bytes,
        limit: Duration,
    ) -> Result<Bytes, Unreachable> {
        self.counts.calls.fetch_add(1, Ordering::Relaxed);
        let answer = self.kad.call(to, message, limit).await;
        let failed = usize::from(answer.is_err());
        self.counts.failed.fetch_add(failed, Ordering::Relaxed);
        answer
    }
}

/// A node with its rendezvous, and in place of a mirror and a containerd what those say and do as far as others see it.
struct Member {
    node: Node,
    flights: Flights,
    parts: Arc<Mutex<HashMap<Digest, Growing>>>,
    tasks: [JoinHandle<()>; 2],
}

/// A part in a flight, and since when there are bytes.
#[derive(Clone)]
struct Growing {
    part: Part,
    first_byte: Option<Instant>,
}

/// As the mirror's reporter looks at its downloads, and reports without news.
const LOOK: Duration = Duration::from_millis(50);
const REPORT: Duration = Duration::from_millis(250);
/// From a lead to the first bytes of the registry: one of tens of milliseconds is a near one.
const REGISTRY: Duration = Duration::from_millis(100);
/// Of every stream alike, in bytes per second.
const RATE: u64 = 20 << 20;
/// What the mirror waits for a parent's first byte, for advice, and after a parent that gave nothing.
const HOLD: Duration = Duration::from_millis(800);
const ADVICE: Duration = Duration::from_secs(1);
const BREATH: Duration = Duration::from_millis(10);

/// Between two looks at nodes that do not know each other yet.
const AGAIN: Duration = Duration::from_millis(50);

/// Between two machines with something to do: a millisecond or two, and tens of them once in a hundred times.
fn near() -> Duration {
    let mut rng = rand::rng();
    match rng.random_range(0..100) {
        0 => Duration::from_millis(rng.random_range(10..80)),
        _ => Duration::from_millis(rng.random_range(1..3)),
    }
}

/// As between regions, or machines that have too much to do: a round trip is 35 ms, a connection four of them.
fn far() -> Duration {
    Duration::from_millis(rand::rng().random_range(5..30))
}

impl Member {
    async fn start(number: usize, bootstrap: Bootstrap, delay: Delay, counts: Arc<Counts>) -> Self {
        let mut node = Node::in_memory(number, Some(bootstrap), delay).await;
        let kad = node.kad.clone();
        let messenger = Arc::new(Counting { kad, counts });
        let rng = StdRng::seed_from_u64(number as u64);
        let flights = Flights::new(messenger, rng);
        let calls = node.calls.take().unwrap();
        let parts = Arc::<Mutex<HashMap<Digest, Growing>>>::default();
        let tasks = [
            tokio::spawn(flights.clone().serve(calls)),
            tokio::spawn(report(flights.clone(), parts.clone())),
        ];
        Self {
            node,
            flights,
            parts,
            tasks,
        }
    }

    fn id(&self) -> &PeerId {
        self.node.kad.peer_id()
    }

    fn parts(&self) -> MutexGuard<'_, HashMap<Digest, Growing>> {
        self.parts.lock().unwrap()
    }

    fn kill(&self) {
        self.node.task.abort();
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// The mirror's reporter: news at once, the rest four times a second.
async fn report(flights: Flights, parts: Arc<Mutex<HashMap<Digest, Growing>>>) {
    let mut told: HashMap<Digest, Part> = HashMap::new();
    let mut reported = Instant::now();
    loop {
        sleep(LOOK).await;
        let now = Instant::now();
        let growing = parts.lock().unwrap().clone();
        let has_news = growing
            .iter()
            .any(|(digest, growing)| told.get(digest) != Some(&growing.part));
        if growing.is_empty() || !has_news && now - reported < REPORT {
            continue;
        }
        reported = now;
        told = growing
            .iter()
            .map(|(digest, growing)| (digest.clone(), growing.part.clone()))
            .collect();
        let over = |growing: &Growing| growing.part == Part::Gone;
        parts.lock().unwrap().retain(|_, growing| !over(growing));
        let standings = growing.into_iter().map(|(digest, growing)| {
            let since = growing
                .first_byte
                .map(|at| now.saturating_duration_since(at));
            let offset = since.map_or(0, |since| since.as_millis() as u64 * (RATE / 1000));
            Standing {
                digest,
                generation: Generation::One,
                part: growing.part,
                offset,
                rate: if offset > 0 { RATE } else { 0 },
                node_rate: RATE,
                free: 2,
            }
        });
        flights.report(standings.collect()).await;
    }
}

/// What came of one node's request.
struct Pulled {
    /// It was told to go to the registry.
    has_led: bool,
    /// From the request to that, or to the first byte from a parent.
    took: Duration,
    asked: usize,
}

/// One request of a node's containerd: what its mirror does about it.
async fn pull(members: &[Arc<Member>], me: usize, digest: &Digest) -> Pulled {
    let member = &members[me];
    let began = Instant::now();
    let key = Key::Content(digest.clone());
    let holders: Vec<Peer> = member.node.kad.lookup(key).collect().await;
    assert_eq!(holders, []);
    let (mut doubts, mut asked) = (Vec::new(), 0);
    loop {
        let wish = Wish {
            digest: digest.clone(),
            image: format!("docker.io/library/{digest}"),
            generation: Generation::One,
            offset: 0,
            doubts: std::mem::take(&mut doubts),
            led_in_vain: false,
            is_slow: false,
        };
        asked += 1;
        let advice = timeout(ADVICE, member.flights.ask(wish)).await;
        let advice = advice.unwrap_or(Advice::Lead {
            lease: rand::random(),
        });
        match advice {
            Advice::Lead { lease } => {
                let now = Instant::now();
                let part = Part::Leads {
                    lease,
                    is_queued: false,
                };
                let first_byte = Some(now + REGISTRY);
                let growing = Growing { part, first_byte };
                member.parts().insert(digest.clone(), growing);
                return Pulled {
                    has_led: true,
                    took: began.elapsed(),
                    asked,
                };
            }
            Advice::Wait { pause, .. } => sleep(pause).await,
            Advice::Follow { parent, .. } => {
                let id = parent.id.clone();
                let part = Part::Follows {
                    parent: id.clone(),
                    is_queued: false,
                };
                let first_byte = None;
                let growing = Growing { part, first_byte };
                member.parts().insert(digest.clone(), growing);
                match first_byte_from(members, &id, digest).await {
                    Ok(true) => {
                        if let Some(growing) = member.parts().get_mut(digest) {
                            growing.first_byte = Some(Instant::now());
                        }
                        return Pulled {
                            has_led: false,
                            took: began.elapsed(),
                            asked,
                        };
                    }
                    Ok(false) => sleep(BREATH).await,
                    Err(doubt) => {
                        doubts.push((id, doubt));
                        sleep(BREATH).await;
                    }
                }
            }
        }
    }
}

/// Whether `parent` gives a byte, as long as it is asked to wait for one.
async fn first_byte_from(
    members: &[Arc<Member>],
    parent: &PeerId,
    digest: &Digest,
) -> Result<bool, Doubt> {
    let Some(parent) = members.iter().find(|member| member.id() == parent) else {
        return Err(Doubt::Refused);
    };
    if parent.node.task.is_finished() {
        return Err(Doubt::Refused);
    }
    let until = Instant::now() + HOLD;
    loop {
        let first_byte = match parent.parts().get(digest) {
            Some(growing) => growing.first_byte,
            // As inflight does, for what it has no reason to wait for.
            None => return Err(Doubt::Gone),
        };
        match first_byte {
            Some(at) if at <= Instant::now() => return Ok(true),
            _ if until <= Instant::now() => return Ok(false),
            _ => sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Peers by their distance to a content, nearest first.
fn nearest(digest: &Digest, mut peers: Vec<PeerId>) -> Vec<PeerId> {
    let place = place(&Meeting::Content(digest.clone()));
    peers.sort_by_cached_key(|peer| distance(&place, peer.as_str().parse().unwrap()));
    peers
}

/// Ends the test when it has taken too much time of the clock on the wall. Tokio's stands still while somebody computes, and
/// for ever if nobody rests: no timeout of its own is ever due then.
struct Watchdog {
    phase: Arc<Mutex<&'static str>>,
    _ends: std::sync::mpsc::Sender<()>,
}

impl Watchdog {
    fn new(limit: Duration) -> Self {
        let phase = Arc::new(Mutex::new("nodes start"));
        let (_ends, ended) = std::sync::mpsc::channel::<()>();
        let awaited = phase.clone();
        std::thread::spawn(move || {
            if ended.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                let awaited = awaited.lock().unwrap();
                eprintln!("still awaited after {limit:?} of the clock on the wall: {awaited}");
                // Nothing less ends a runtime that computes.
                std::process::exit(1);
            }
        });
        Self { phase, _ends }
    }

    /// Waits for `what` for as long as `limit` of tokio's clock.
    async fn phase<T>(
        &self,
        what: &'static str,
        limit: Duration,
        of: impl Future<Output = T>,
    ) -> T {
        *self.phase.lock().unwrap() = what;
        match timeout(limit, of).await {
            Ok(done) => done,
            Err(_) => panic!("not within {limit:?} of the nodes' clock: {what}"),
        }
    }
}

/// Waits until those who started together know each other: a dozen of them name the same node, the nearest that there is,
/// for ten contents in a row.
async fn settled(members: &[Arc<Member>]) {
    for member in members {
        member.node.ready().await;
    }
    let ids: Vec<PeerId> = members.iter().map(|member| member.id().clone()).collect();
    let mut in_a_row = 0;
    for n in 0.. {
        let digest = Digest::sha256(format!("settled? {n}").as_bytes());
        let right = nearest(&digest, ids.clone()).remove(0);
        let meeting = Meeting::Content(digest);
        let apart = members.len().div_ceil(12);
        let asked = members.iter().skip(n % apart).step_by(apart);
        let named = join_all(asked.map(|member| member.node.kad.closest(&meeting))).await;
        let is_right = named.iter().all(|named| named[0].id == right);
        in_a_row = if is_right { in_a_row + 1 } else { 0 };
        if in_a_row == 10 {
            return;
        }
        // A search that knows nobody takes no time, so that without this the clock would stand still for ever.
        sleep(AGAIN).await;
    }
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() - 1) * percent / 100]
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// For 99 of a hundred who follow. Who is sent to somebody that has nothing loses one [`HOLD`] before it asks again; two in
/// a row, with messages of 30 ms, have been seen.
const MAX_FIRST_BYTE: Duration = Duration::from_secs(3);

/// Which tests of this process have nodes at which addresses: in memory, they are the process's.
const NEAR: usize = 0;
const FAR: usize = 1024;

/// Returns what nine of ten followers waited for their first byte at the most, and 99 of a hundred.
async fn agree(delay: Delay, place: usize) -> (Duration, Duration) {
    let nodes = number("PEILI_TEST_NODES", 40);
    let contents = number("PEILI_TEST_CONTENTS", 20);
    let askers = number("PEILI_TEST_ASKERS", 20);
    // A cluster pulls one content after the other; and the last is asked for while newcomers are still new.
    const PACE: Duration = Duration::from_millis(100);
    let (new, killed) = (nodes / 5, nodes / 10);
    let mut rng = StdRng::seed_from_u64(1);
    let counts = Arc::<Counts>::default();
    let real = std::time::Instant::now();
    let minutes = number("PEILI_TEST_MINUTES", 2) as u64;
    let dog = Watchdog::new(Duration::from_secs(60 * minutes));

    let seed = Bootstrap::Static(vec![]);
    let seed = Member::start(place, seed, delay, counts.clone()).await;
    let bootstrap = Bootstrap::Static(vec![seed.node.address()]);
    let mut members = vec![Arc::new(seed)];
    for number in 1..nodes - new {
        let member = Member::start(place + number, bootstrap.clone(), delay, counts.clone());
        members.push(Arc::new(member.await));
    }
    let settling = settled(&members);
    let what = "those who started together know each other";
    dog.phase(what, Duration::from_secs(60), settling).await;
    let newcomers = (nodes - new..nodes).map(|number| {
        let any = members.sample(&mut rng, 3);
        let bootstrap = Bootstrap::Static(any.map(|member| member.node.address()).collect());
        Member::start(place + number, bootstrap, delay, counts.clone())
    });
    let newcomers = join_all(newcomers.collect::<Vec<_>>()).await;
    members.extend(newcomers.into_iter().map(Arc::new));
    // This second is the scenario's own: how nodes of that age fare is what is asked.
    sleep(Duration::from_secs(1)).await;
    let mut alive: Vec<usize> = (0..nodes).collect();
    alive.shuffle(&mut rng);
    for member in alive.drain(..killed) {
        members[member].kill();
    }
    let members = Arc::new(members);
    counts.reset();

    let (began, mut flights) = (Instant::now(), Vec::new());
    for n in 0..contents {
        sleep_until(began + PACE * n as u32).await;
        let digest = Digest::sha256(n.to_string().as_bytes());
        let asking: Vec<usize> = alive.sample(&mut rng, askers).copied().collect();
        flights.push(tokio::spawn(fly(members.clone(), asking, digest)));
    }
    let (mut agreed, mut leads, mut follows, mut asked) = (0, Vec::new(), Vec::new(), 0);
    let what = "everybody leads or has a first byte";
    let flights = dog.phase(what, Duration::from_secs(60), join_all(flights));
    for flight in flights.await {
        let pulled = flight.unwrap();
        let led = pulled.iter().filter(|pulled| pulled.has_led);
        let led: Vec<Duration> = led.map(|pulled| pulled.took).collect();
        agreed += usize::from(led.len() == 1);
        leads.extend(led);
        let followed = pulled.iter().filter(|pulled| !pulled.has_led);
        follows.extend(followed.map(|pulled| pulled.took));
        asked += pulled.iter().map(|pulled| pulled.asked).sum::<usize>();
    }

    leads.sort();
    follows.sort();
    let mut searches = counts.searches.lock().unwrap().clone();
    searches.sort();
    let each = |count: usize| count as f64 / (contents * askers) as f64;
    println!(
        "{nodes} nodes, {new} of them new, {killed} killed: {agreed} of {contents} contents had one leader among {askers}; \
         a lead after p50 {:?} p99 {:?}, a follower's first byte after p50 {:?} p90 {:?} p99 {:?}; \
         {:.1} questions and {:.1} calls per asker, {} failed; searches p50 {:?} p99 {:?} ({:?} real)",
        percentile(&leads, 50),
        percentile(&leads, 99),
        percentile(&follows, 50),
        percentile(&follows, 90),
        percentile(&follows, 99),
        each(asked),
        each(counts.calls.load(Ordering::Relaxed)),
        counts.failed.load(Ordering::Relaxed),
        percentile(&searches, 50),
        percentile(&searches, 99),
        real.elapsed(),
    );
    // One of twenty may have two.
    let parted = contents - agreed;
    assert!(parted <= contents.div_ceil(20), "{agreed} of {contents}");
    (percentile(&follows, 90), percentile(&follows, 99))
}

/// What comes of one content that many ask for at once. All that they are told is counted for as long as a leader that is
/// not heard of any more would be one.
async fn fly(members: Arc<Vec<Arc<Member>>>, asking: Vec<usize>, digest: Digest) -> Vec<Pulled> {
    const LEASE: Duration = Duration::from_millis(1250);
    let began = Instant::now();
    let pulls = asking.iter().map(|asker| pull(&members, *asker, &digest));
    let pulled = join_all(pulls).await;
    sleep_until(began + LEASE).await;
    for asker in &asking {
        if let Some(growing) = members[*asker].parts().get_mut(&digest) {
            growing.part = Part::Gone;
        }
    }
    pulled
}

#[tokio::test(start_paused = true)]
async fn one_node_leads_what_many_ask_for_while_others_come_and_go() {
    let (most, nearly_all) = agree(near, NEAR).await;
    assert!(most <= Duration::from_millis(500), "{most:?}");
    assert!(nearly_all <= MAX_FIRST_BYTE, "{nearly_all:?}");
}

#[tokio::test(start_paused = true)]
async fn one_node_leads_where_a_round_trip_takes_long() {
    let (most, nearly_all) = agree(far, FAR).await;
    assert!(most <= Duration::from_millis(1500), "{most:?}");
    assert!(nearly_all <= MAX_FIRST_BYTE, "{nearly_all:?}");
}
