//! Two hundred real Kademlia nodes in one process, each with its rendezvous, must agree on who asks the registry.
//!
//! 30 % of them have started a second ago, 10 % are killed without a word, and then fifty of those alive ask for the same
//! content in the same moment, a hundred contents in all. What counts is the leaders: each beyond the first is another
//! copy that leaves the registry.

#[allow(dead_code, reason = "each test uses its part")]
mod nodes;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;
use futures::stream::StreamExt;
use libp2p::kad::{KBucketKey, RecordKey};
use nodes::Node;
use peili::oci::{Digest, Key};
use peili::routing::bootstrap::Bootstrap;
use peili::routing::flight::Flights;
use peili::routing::kad::Kad;
use peili::routing::messenger::{Meeting, Messenger, Unreachable};
use peili::routing::rendezvous::{Advice, Doubt, Generation, Part, Rendezvous, Standing, Wish};
use peili::routing::{Peer, PeerId, Router};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{RngExt as _, SeedableRng as _};
use sha2::{Digest as _, Sha256};
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

static BUSY: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// Between two machines with something to do: a millisecond or two, and tens of them once in a hundred times.
fn delay() -> Duration {
    let mut rng = rand::rng();
    if BUSY.load(Ordering::Relaxed) {
        return Duration::from_millis(rng.random_range(5..30));
    }
    match rng.random_range(0..100) {
        0 => Duration::from_millis(rng.random_range(10..80)),
        _ => Duration::from_millis(rng.random_range(1..3)),
    }
}

impl Member {
    async fn start(number: usize, bootstrap: Bootstrap, counts: Arc<Counts>) -> Self {
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
    /// When it was told to go to the registry.
    led: Option<Instant>,
    /// From the request to the first byte, or to the registry.
    took: Duration,
    asked: usize,
    follower: bool,
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
                    led: Some(now),
                    took: began.elapsed(),
                    asked,
                    follower: false,
                };
            }
            Advice::Wait { pause, .. } => sleep(pause).await,
            Advice::Follow { parent, .. } => {
                let id = parent.id.clone();
                let part = Part::Follows { parent: id.clone() };
                let first_byte = None;
                let growing = Growing { part, first_byte };
                member.parts().insert(digest.clone(), growing);
                match first_byte_from(members, &id, digest).await {
                    Ok(true) => {
                        if let Some(growing) = member.parts().get_mut(digest) {
                            growing.first_byte = Some(Instant::now());
                        }
                        return Pulled {
                            led: None,
                            took: began.elapsed(),
                            asked,
                            follower: true,
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
    let mut key = vec![0x12, 0x20];
    key.extend_from_slice(&Sha256::digest(digest.to_string()));
    let place = KBucketKey::from(RecordKey::from(key));
    peers.sort_by_cached_key(|peer| {
        let id: libp2p::PeerId = peer.as_str().parse().unwrap();
        place.distance(&KBucketKey::from(id))
    });
    peers
}

/// Waits until those who started together know each other: a dozen of them name the same node, the nearest that there is,
/// for ten contents in a row.
async fn settled(members: &[Arc<Member>]) {
    const DEADLINE: Duration = Duration::from_secs(60);
    let ids: Vec<PeerId> = members.iter().map(|member| member.id().clone()).collect();
    let (began, mut in_a_row) = (Instant::now(), 0);
    for n in 0.. {
        let digest = Digest::sha256(format!("settled? {n}").as_bytes());
        let right = nearest(&digest, ids.clone()).remove(0);
        let meeting = Meeting::Content(digest);
        let asked = members.iter().skip(n % 12).step_by(members.len() / 12);
        let named = join_all(asked.map(|member| member.node.kad.closest(&meeting))).await;
        let is_right = named.iter().all(|named| named[0].id == right);
        in_a_row = if is_right { in_a_row + 1 } else { 0 };
        if in_a_row == 10 {
            return;
        }
        assert!(began.elapsed() < DEADLINE, "they do not settle");
    }
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() - 1) * percent / 100]
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

#[tokio::test(start_paused = true)]
async fn one_node_leads_what_fifty_ask_for_while_others_come_and_go() {
    if let Ok(filter) = std::env::var("PEILI_TEST_LOG") {
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(false)
            .init();
    }
    BUSY.store(number("BUSY", 0) == 1, Ordering::Relaxed);
    let nodes = number("NODES", 200);
    let contents = number("CONTENTS", 100);
    let askers = number("ASKERS", 50);
    let pace = Duration::from_millis(number("PACE", 250) as u64);
    let age = Duration::from_millis(number("AGE", 1000) as u64);
    let seed = number("SEED", 1) as u64;
    let (new, killed) = (nodes * 3 / 10, nodes / 10);
    let mut rng = StdRng::seed_from_u64(seed);
    let counts = Arc::<Counts>::default();
    let (began, real) = (Instant::now(), std::time::Instant::now());

    let first = Member::start(0, Bootstrap::Static(vec![]), counts.clone()).await;
    let bootstrap = Bootstrap::Static(vec![first.node.address()]);
    let mut members = vec![Arc::new(first)];
    for number in 1..nodes - new {
        let member = Member::start(number, bootstrap.clone(), counts.clone()).await;
        members.push(Arc::new(member));
        if number % 20 == 0 {
            members[number].node.ready().await;
        }
    }
    let started = began.elapsed();
    settled(&members).await;
    let settled = began.elapsed();
    let table = |member: &Member| {
        let metrics = member.node.metrics();
        let line = metrics
            .lines()
            .find(|line| line.starts_with("peili_peers "))
            .unwrap();
        line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()
    };

    let newcomers = (nodes - new..nodes).map(|number| {
        let bootstrap = Bootstrap::Static(
            (0..3)
                .map(|_| members[rng.random_range(0..members.len())].node.address())
                .collect(),
        );
        Member::start(number, bootstrap, counts.clone())
    });
    let newcomers = join_all(newcomers.collect::<Vec<_>>()).await;
    members.extend(newcomers.into_iter().map(Arc::new));
    let came = Instant::now();
    // This second is the scenario's own: how newcomers of that age fare is what is asked.
    sleep_until(came + age).await;
    let tables: Vec<usize> = members[nodes - new..].iter().map(|m| table(m)).collect();
    let mut alive: Vec<usize> = (0..nodes).collect();
    alive.shuffle(&mut rng);
    for member in alive.drain(..killed) {
        members[member].kill();
    }
    let members = Arc::new(members);

    println!(
        "{:?} real; {nodes} nodes: {} started after {started:?}, settled after {settled:?}; newcomers' tables: {:?} {:?}; {} ready",
        real.elapsed(),
        nodes - new,
        tables.iter().min(),
        tables.iter().max(),
        members[nodes - new..]
            .iter()
            .filter(|m| m.node.readiness.is_ready())
            .count(),
    );
    counts.calls.store(0, Ordering::Relaxed);
    counts.failed.store(0, Ordering::Relaxed);
    counts.searches.lock().unwrap().clear();
    let began = Instant::now();
    let mut flights = Vec::new();
    for n in 0..contents {
        sleep_until(began + pace * n as u32).await;
        let digest = Digest::sha256(format!("{seed} {n}").as_bytes());
        let asking: Vec<usize> = alive.sample(&mut rng, askers).copied().collect();
        let members = members.clone();
        flights.push(tokio::spawn(async move {
            let began = Instant::now();
            let pulled = asking.iter().map(|asker| pull(&members, *asker, &digest));
            let pulled = join_all(pulled).await;
            // Whoever had first bytes would report for as long as it takes.
            sleep_until(began + Duration::from_secs(3)).await;
            for asker in &asking {
                if let Some(growing) = members[*asker].parts().get_mut(&digest) {
                    growing.part = Part::Gone;
                }
            }
            (n, digest, asking, pulled)
        }));
    }
    let ids: Vec<PeerId> = alive.iter().map(|n| members[*n].id().clone()).collect();
    let number: HashMap<PeerId, usize> = (0..nodes).map(|n| (members[n].id().clone(), n)).collect();
    let (mut agreed, mut took, mut asked) = (0, Vec::new(), 0);
    let mut first = Vec::new();
    for flight in join_all(flights).await {
        let (n, digest, asking, pulled) = flight.unwrap();
        let leaders: Vec<(usize, Duration)> = asking
            .iter()
            .zip(&pulled)
            .filter_map(|(asker, pulled)| Some((*asker, pulled.led.map(|_| pulled.took)?)))
            .collect();
        agreed += usize::from(leaders.len() == 1);
        if leaders.len() != 1 {
            let near = nearest(&digest, ids.clone());
            let near: Vec<usize> = near[..4].iter().map(|id| number[id]).collect();
            println!(
                "{n} {digest} at {:?}: leaders {leaders:?}, nearest {near:?}",
                pace * n as u32
            );
        }
        took.extend(pulled.iter().filter(|p| p.follower).map(|p| p.took));
        first.extend(leaders.iter().map(|(_, took)| *took));
        asked += pulled.iter().map(|p| p.asked).sum::<usize>();
    }
    took.sort();
    first.sort();
    let mut searches = counts.searches.lock().unwrap().clone();
    searches.sort();
    println!(
        "{agreed} of {contents} contents had one leader; a lead after p50 {:?} p99 {:?}, a follower's first byte p50 {:?} p99 {:?} max {:?}; \
         {:.1} questions and {:.1} calls per asker, {} failed; search p50 {:?} p99 {:?}; all in {:?}, {:?} real",
        percentile(&first, 50),
        percentile(&first, 99),
        percentile(&took, 50),
        percentile(&took, 99),
        took.last().unwrap(),
        asked as f64 / (contents * askers) as f64,
        counts.calls.load(Ordering::Relaxed) as f64 / (contents * askers) as f64,
        counts.failed.load(Ordering::Relaxed),
        percentile(&searches, 50),
        percentile(&searches, 99),
        began.elapsed(),
        real.elapsed(),
    );
    let _: HashSet<usize> = HashSet::new();
    assert!(agreed * 100 >= contents * 99, "{agreed} of {contents}");
}
