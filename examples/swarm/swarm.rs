//! One swarm of real routers, and what is measured at it: joins, lookups, tellings, deaths.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::StreamExt as _;
use libp2p::Multiaddr;
use peili::oci::{Digest, Key};
use peili::routing::bootstrap::Bootstrap;
use peili::routing::{PeerId, Router as _};
use peili::testing::counted::Count;
use peili::testing::measure::{Sample, calm, cpu, resident};
use peili::testing::nodes::Node;
use rand::rngs::StdRng;
use rand::seq::{IteratorRandom as _, SliceRandom as _};
use rand::{RngExt as _, SeedableRng as _};

use crate::options::Options;
use crate::outcome::{Afterwards, Idle, Joined, Looked, Outcome, Told};

/// First peers that a node is given, as DNS gives it some.
const SEEDS: usize = 3;
/// Nodes that hold each content.
const HOLDERS: usize = 3;
/// In vain: something has gone wrong.
const PATIENCE: Duration = Duration::from_secs(600);
/// A swarm that is never calm is measured all the same.
const REST: Duration = Duration::from_secs(90);
const LOOK: Duration = Duration::from_millis(50);

/// A content and who holds it.
struct Held {
    key: Key,
    by: Vec<usize>,
}

struct Swarm {
    options: Options,
    nodes: Vec<Node>,
    ids: Vec<PeerId>,
    dead: HashSet<usize>,
    held: Vec<Held>,
    rng: StdRng,
}

/// Measures one swarm from its first join to its last lookup.
pub async fn measure(options: &Options, nodes: usize) -> Result<Outcome> {
    let mut swarm = Swarm {
        options: options.clone(),
        nodes: Vec::with_capacity(nodes),
        ids: Vec::new(),
        dead: HashSet::new(),
        held: Vec::new(),
        rng: StdRng::seed_from_u64(options.seed),
    };
    let joined = swarm.join(nodes).await?;
    swarm.hold(nodes).await?;
    let idle = swarm.idle().await;
    swarm.say("lookups");
    let hit = swarm.look(true).await?;
    let miss = swarm.look(false).await?;
    let mut told = Vec::new();
    for keys in options.keys.clone() {
        told.push(swarm.tell(keys).await?);
    }
    let (directly, healed) = swarm.die().await?;
    Ok(Outcome {
        nodes,
        dead: swarm.dead.len(),
        heal: options.heal,
        joined,
        idle,
        hit,
        miss,
        told,
        directly,
        healed,
    })
}

impl Swarm {
    fn say(&self, what: &str) {
        if !self.options.quiet {
            eprintln!("swarm of {}: {what}", self.nodes.len());
        }
    }

    fn requests(&self, kind: &str) -> u64 {
        self.nodes.iter().map(|node| node.requests(kind)).sum()
    }

    fn count(&self) -> Count {
        self.nodes.iter().map(|node| node.counts.now()).sum()
    }

    async fn join(&mut self, nodes: usize) -> Result<Joined> {
        let (before, spent, began) = (resident(), cpu(), Instant::now());
        for number in 0..nodes {
            let from = self.nodes.iter().map(Node::address);
            let seeds: Vec<Multiaddr> = from.sample(&mut self.rng, SEEDS);
            let seeds = Some(Bootstrap::Static(seeds));
            let node = match self.options.in_memory {
                true => Node::in_memory(number, seeds, || Duration::ZERO).await,
                false => Node::start(number, seeds).await,
            };
            self.ids.push(node.kad.peer_id().clone());
            self.nodes.push(node);
            if self.nodes.len().is_multiple_of(100) {
                self.say("have joined");
            }
            tokio::time::sleep(self.options.pause()).await;
        }
        for node in &self.nodes {
            while !node.has_found_its_place(nodes) {
                ensure!(
                    began.elapsed() < PATIENCE,
                    "a node knows {} others after {PATIENCE:?}",
                    node.peers_in("known")
                );
                tokio::time::sleep(LOOK).await;
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        let connections = self.connections();
        let mib = (resident().saturating_sub(before)) as f64 / f64::from(1 << 20);
        self.say("know each other, and come to rest");
        // What it says is in the outcome.
        calm(nodes, REST).await;
        let each = |sum: f64| sum / nodes as f64;
        let mut tables: Vec<usize> = self
            .nodes
            .iter()
            .map(|node| node.peers_in("known"))
            .collect();
        tables.sort_unstable();
        let rested = (resident().saturating_sub(before)) as f64 / f64::from(1 << 20);
        Ok(Joined {
            seconds,
            cpu: each((cpu() - spent).as_secs_f64()),
            requests: each(self.requests("FindNode") as f64),
            connections,
            mib: each(mib.max(rested)),
            table: tables[nodes / 2],
        })
    }

    /// Of a node.
    fn connections(&self) -> f64 {
        let connected = self.nodes.iter().map(|node| node.peers_in("connected"));
        connected.sum::<usize>() as f64 / self.nodes.len() as f64
    }

    async fn idle(&self) -> Option<Idle> {
        let seconds = self.options.idle;
        if seconds == 0 {
            return None;
        }
        self.say("are idle");
        let (spent, count) = (cpu(), self.count());
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let of_node = (self.nodes.len() as u64 * seconds) as f64;
        Some(Idle {
            cpu: (cpu() - spent).as_secs_f64() / of_node,
            dials: (self.count() - count).dials as f64 * 60.0 / of_node,
            connections: self.connections(),
        })
    }

    /// As many contents as nodes, each held by some.
    async fn hold(&mut self, nodes: usize) -> Result<()> {
        let mut of_node: Vec<Vec<Key>> = vec![Vec::new(); nodes];
        for number in 0..nodes {
            let key = content("held", number);
            let by = (0..nodes).sample(&mut self.rng, HOLDERS);
            for holder in &by {
                of_node[*holder].push(key.clone());
            }
            self.held.push(Held { key, by });
        }
        let began = Instant::now();
        for (node, keys) in self.nodes.iter().zip(&of_node) {
            node.kad.advertise(keys.clone()).await?;
        }
        for (node, keys) in self.nodes.iter().zip(&of_node) {
            announced(node, keys.len(), began).await?;
        }
        Ok(())
    }

    /// Lookups by random nodes, one at a time: to the first provider, or to the end.
    async fn look(&mut self, is_hit: bool) -> Result<Looked> {
        /// So that what one lookup has under way is not the next one's delay.
        const PAUSE: Duration = Duration::from_millis(50);
        let lookups = self.options.lookups;
        let (mut sample, mut missed, mut spent) = (Sample::default(), 0, Duration::ZERO);
        let (requests, count) = (self.requests("GetProvider"), self.count());
        for n in 0..lookups {
            let asking = self.rng.random_range(0..self.nodes.len());
            let key = match is_hit {
                true => self.not_of(asking),
                false => content("nobody's", n),
            };
            let (before, began) = (cpu(), Instant::now());
            let first = self.nodes[asking].kad.lookup(key).next().await;
            sample.add(began.elapsed());
            missed += usize::from(first.is_some() != is_hit);
            tokio::time::sleep(PAUSE).await;
            spent += cpu() - before;
        }
        let mean = |sum: f64| sum / lookups.max(1) as f64;
        let in_ms = |percent| sample.percentile(percent).unwrap_or_default().as_secs_f64() * 1e3;
        Ok(Looked {
            p50: in_ms(50),
            p99: in_ms(99),
            requests: mean((self.requests("GetProvider") - requests) as f64),
            dials: mean((self.count() - count).dials as f64),
            cpu: mean(spent.as_secs_f64() * 1e3),
            wrong: mean(missed as f64),
        })
    }

    /// A content that others hold.
    fn not_of(&mut self, asking: usize) -> Key {
        let others = self.held.iter().filter(|held| !held.by.contains(&asking));
        let held = others.choose(&mut self.rng);
        held.map_or_else(|| content("nobody's", 0), |held| held.key.clone())
    }

    /// One node tells of so many keys more.
    async fn tell(&mut self, keys: usize) -> Result<Told> {
        self.say(&format!("one node tells {keys} keys"));
        let teller = &self.nodes[keys % self.nodes.len()];
        let has = announcements(teller);
        let contents = (0..keys).map(|n| content(&format!("one of {keys}"), n));
        let (searches, before, spent) = (self.requests("FindNode"), teller.counts.now(), cpu());
        let began = Instant::now();
        teller.kad.advertise(contents.collect()).await?;
        announced(teller, has + keys, began).await?;
        let count = teller.counts.now() - before;
        let each = |sum: f64| sum / keys.max(1) as f64;
        Ok(Told {
            keys,
            seconds: began.elapsed().as_secs_f64(),
            searches: (self.requests("FindNode") - searches) as f64,
            kib: (count.sent + count.received) as f64 / 1024.0,
            cpu: each((cpu() - spent).as_secs_f64() * 1e3),
        })
    }

    /// Some die in one moment. Who lives is looked for then, and again after a while.
    async fn die(&mut self) -> Result<(Afterwards, Afterwards)> {
        let mut order: Vec<usize> = (0..self.nodes.len()).collect();
        order.shuffle(&mut self.rng);
        for number in order.into_iter().take(self.options.dying(self.nodes.len())) {
            self.nodes[number].kill().await;
            self.dead.insert(number);
        }
        self.say(&format!("{} of them have died", self.dead.len()));
        let directly = self.look_for_the_living().await;
        self.say("heals");
        tokio::time::sleep(Duration::from_secs(self.options.heal)).await;
        Ok((directly, self.look_for_the_living().await))
    }

    /// As a mirror does it: who refuses is told to the router, and the next one is asked.
    async fn look_for_the_living(&mut self) -> Afterwards {
        let dead: HashSet<&PeerId> = self.dead.iter().map(|number| &self.ids[*number]).collect();
        let alive: Vec<usize> = (0..self.nodes.len())
            .filter(|number| !self.dead.contains(number))
            .collect();
        let (mut hits, mut misses) = (Sample::default(), Sample::default());
        let (mut asked, mut refused) = (0, 0);
        for n in 0..self.options.lookups {
            let Some(asking) = alive.iter().choose(&mut self.rng) else {
                break;
            };
            let kad = &self.nodes[*asking].kad;
            let of_living = self.held.iter().filter(|held| {
                !held.by.contains(asking) && held.by.iter().any(|by| !self.dead.contains(by))
            });
            if let Some(held) = of_living.choose(&mut self.rng) {
                asked += 1;
                let began = Instant::now();
                let mut lookup = kad.lookup(held.key.clone());
                while let Some(peer) = lookup.next().await {
                    if !dead.contains(&peer.id) {
                        hits.add(began.elapsed());
                        break;
                    }
                    refused += 1;
                    kad.refused(&peer.id);
                }
            }
            let began = Instant::now();
            kad.lookup(content("nobody's then", n)).next().await;
            misses.add(began.elapsed());
        }
        let in_ms = |sample: &Sample, percent| {
            sample.percentile(percent).unwrap_or_default().as_secs_f64() * 1e3
        };
        Afterwards {
            found: hits.len() as f64 / f64::from(asked.max(1)),
            refused: f64::from(refused) / f64::from(asked.max(1)),
            hit_p50: in_ms(&hits, 50),
            hit_p99: in_ms(&hits, 99),
            miss_p50: in_ms(&misses, 50),
            miss_p99: in_ms(&misses, 99),
        }
    }
}

/// A key for content that is made up.
fn content(what: &str, number: usize) -> Key {
    Key::Content(Digest::sha256(format!("{what} {number}").as_bytes()))
}

/// Keys that a node has told the others of.
fn announcements(node: &Node) -> usize {
    let metrics = node.metrics();
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix("peili_announcements_total{result=\"ok\"} "));
    line.and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// Waits until a node has told of so many keys, or of more: what was told to few is told again.
async fn announced(node: &Node, keys: usize, began: Instant) -> Result<()> {
    while announcements(node) < keys {
        ensure!(
            began.elapsed() < PATIENCE,
            "a node has told of {} keys out of {keys} after {PATIENCE:?}",
            announcements(node)
        );
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
