//! Nodes, layers, the clock and its events; and transfers, tick by tick.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use peili::inflight::POLL;
use peili::inflight::uplink::Reading;
use peili::mirror::flight::part::{Part, patience};
use peili::oci::Digest;
use peili::routing::flight::table::Table;
use peili::routing::rendezvous::Doubt;
use peili::routing::{Peer, PeerId};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;

use crate::client::Event;
use crate::links::{Flow, Links};
use crate::options::{Mode, Options};
use crate::outcome::Outcome;

/// What containerd writes at once, and so what others see.
const STEP: f64 = (1 << 20) as f64;
/// Ways of sharing without timers are looked at so often at the least, in runs that take hours: their times are right to
/// a few thousandths.
const TICKS: f64 = 4000.0;
/// A silent peer that has all of it is given up after this (`mirror/body.rs`).
const STALL: Duration = Duration::from_secs(2);
/// A run that takes longer than the bound so many times over, and this, has nodes that will never be done.
const HOPELESS: (f64, Duration) = (20.0, Duration::from_secs(120));

pub struct World {
    pub options: Options,
    pub layers: Vec<Layer>,
    pub nodes: Vec<Node>,
    pub now: Instant,
    begin: Instant,
    heap: BinaryHeap<Reverse<(Instant, u64, usize)>>,
    events: Vec<Option<Event>>,
    unused: Vec<usize>,
    sequence: u64,
    /// Everything that is being sent, and what it got in this tick.
    streams: Vec<Stream>,
    flows: Vec<Flow>,
    links: Links,
    tick: Duration,
    /// Requests at parents that have nothing more yet: child, layer, its try, parent.
    pub held: Vec<(u32, u32, u32, u32)>,
    pub rng: StdRng,
    from_registry: f64,
    pub stats: Outcome,
    first_bytes: (f64, u64),
    to_go: usize,
    last_done: Instant,
}

pub struct Layer {
    pub digest: Digest,
    pub size: f64,
    /// The nodes closest to it, in this order.
    pub desks: Vec<u32>,
    /// Who leads it, where one does by decree.
    star: u32,
    /// Who has all of it.
    holders: Vec<u32>,
}

pub struct Node {
    pub peer: Peer,
    pub lives: bool,
    /// Layers that its containerd has not come to.
    queue: VecDeque<u32>,
    pub gets: Vec<Get>,
    to_go: usize,
    pub table: Table,
    /// Those who read what grows here.
    pub children: HashMap<(u32, u32), Reading>,
    /// All who take something from here.
    pub uploads: u32,
    pub memory: crate::client::Memory,
    messages: u64,
    /// Messages in the second that is named first.
    in_second: (u64, u64),
    in_busiest: u64,
    met: HashSet<u32>,
}

/// A layer at a node.
pub struct Get {
    pub state: State,
    /// Bytes that are here.
    pub offset: f64,
    /// When containerd asked for it.
    asked: Instant,
    has_begun: bool,
    /// Counts what was tried: an event of an earlier try is void.
    pub tries: u32,
    pub part: Option<Part>,
    pub stream: Option<usize>,
    pub client: crate::client::Asker,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Queued,
    Coming,
    Here,
}

struct Stream {
    source: u32,
    sink: u32,
    layer: u32,
    /// Where it began.
    from: f64,
    /// Steps from the source to the registry, as it was told.
    depth: u32,
    last: Instant,
    longest: Duration,
}

impl World {
    pub fn new(options: Options) -> Self {
        let mut rng = StdRng::seed_from_u64(options.seed);
        let begin = Instant::now();
        let n = options.nodes;
        let layers: Vec<Layer> = (0..options.layers)
            .map(|layer| {
                let mut desks: Vec<u32> = Vec::new();
                while desks.len() < n.min(5) {
                    let desk = rng.random_range(0..n as u32);
                    if !desks.contains(&desk) {
                        desks.push(desk);
                    }
                }
                Layer {
                    digest: Digest::sha256(format!("layer {layer} of {}", options.seed).as_bytes()),
                    size: options.layer_bytes(),
                    desks,
                    star: rng.random_range(0..n as u32),
                    holders: Vec::new(),
                }
            })
            .collect();
        let nodes = (0..n)
            .map(|node| {
                let peer = Peer {
                    id: PeerId::new(node.to_string()),
                    registry: vec![([10, 0, 0, 1], 5000).into()],
                    zone: None,
                };
                let mut queue: Vec<u32> = (0..options.layers as u32).collect();
                if !options.same_order {
                    queue.shuffle(&mut rng);
                }
                let table_rng = StdRng::seed_from_u64(rng.random());
                Node {
                    table: Table::new(peer.clone(), begin, table_rng),
                    peer,
                    lives: true,
                    to_go: queue.len(),
                    gets: queue.iter().map(|_| Get::new(begin)).collect(),
                    queue: queue.into(),
                    children: HashMap::new(),
                    uploads: 0,
                    memory: crate::client::Memory::new(options.layers),
                    messages: 0,
                    in_second: (0, 0),
                    in_busiest: 0,
                    met: HashSet::new(),
                }
            })
            .collect();
        let tick = match options.mode.is_policy() {
            true => POLL,
            false => {
                let all = options.image() * n as f64 / 1e6;
                let slowest = match options.mode {
                    Mode::Star => options.up_rate * options.layers as f64,
                    _ => options.registry_rate,
                };
                POLL.max(Duration::from_secs_f64(all / slowest / TICKS))
            }
        };
        let seconds = tick.as_secs_f64() * 1e6;
        let mut up = vec![options.up_rate * seconds; n];
        up.push(options.registry_rate * seconds);
        let down = vec![options.down_rate * seconds; n];
        let mut world = Self {
            layers,
            nodes,
            now: begin,
            begin,
            heap: BinaryHeap::new(),
            events: Vec::new(),
            unused: Vec::new(),
            sequence: 0,
            streams: Vec::new(),
            flows: Vec::new(),
            links: Links::new(up, down),
            tick,
            held: Vec::new(),
            rng,
            from_registry: 0.0,
            stats: Outcome::default(),
            first_bytes: (0.0, 0),
            to_go: n,
            last_done: begin,
            options,
        };
        world.appoint();
        world
    }

    /// When nodes begin, and which of them die when.
    fn appoint(&mut self) {
        let n = self.options.nodes;
        for node in 0..n as u32 {
            let skew = Duration::from_millis(self.options.skew);
            let at = skew.mul_f64(self.rng.random());
            self.after(at, Event::Begin(node));
        }
        let failing = (n as f64 * self.options.failing / 100.0).round() as usize;
        let mut all: Vec<u32> = (0..n as u32).collect();
        all.shuffle(&mut self.rng);
        for node in all.into_iter().take(failing) {
            let at = self.options.bound() * self.rng.random::<f64>();
            self.after(Duration::from_secs_f64(at), Event::Die(node));
        }
    }

    pub fn registry(&self) -> u32 {
        self.nodes.len() as u32
    }

    pub fn after(&mut self, wait: Duration, event: Event) {
        let slot = self.unused.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() - 1
        });
        self.events[slot] = Some(event);
        self.sequence += 1;
        let at = self.now + wait;
        self.heap.push(Reverse((at, self.sequence, slot)));
    }

    pub fn run(mut self) -> Outcome {
        let began = std::time::Instant::now();
        let mut shown = began;
        let (times, more) = HOPELESS;
        // Without the policy nobody waits for anybody who could be silent for ever.
        let patience = match self.options.mode.is_policy() {
            true => Duration::from_secs_f64(self.options.bound() * times) + more,
            false => Duration::MAX / 4,
        };
        let mut ticked = self.begin;
        while self.to_go > 0 && self.now - self.begin < patience {
            let next = ticked + self.tick;
            while let Some(Reverse((at, _, slot))) = self.heap.peek().copied()
                && at <= next
            {
                self.heap.pop();
                self.now = at;
                self.unused.push(slot);
                if let Some(event) = self.events[slot].take() {
                    self.handle(event);
                }
            }
            self.now = next;
            ticked = next;
            self.transfer();
            if !self.options.quiet && shown.elapsed() >= Duration::from_secs(1) {
                shown = std::time::Instant::now();
                self.show();
            }
        }
        if !self.options.quiet {
            self.show();
            eprintln!();
        }
        self.conclude(began.elapsed())
    }

    fn show(&self) {
        let done = self.nodes.len() - self.to_go;
        eprint!(
            "\r{} nodes, {}: {:.1} s of at least {:.1}, {done} are done, {} transfers, {:.2} copies   ",
            self.nodes.len(),
            self.options.mode.name(),
            (self.now - self.begin).as_secs_f64(),
            self.options.bound(),
            self.streams.len(),
            self.from_registry / self.options.image(),
        );
    }

    fn conclude(self, took: Duration) -> Outcome {
        let busiest = |of: fn(&Node) -> u64| self.nodes.iter().map(of).max().unwrap_or(0);
        let (sum, count) = self.first_bytes;
        Outcome {
            copies: self.from_registry / self.options.image(),
            last: (self.last_done - self.begin).as_secs_f64(),
            messages: busiest(|node| node.messages),
            messages_per_second: busiest(|node| node.in_busiest.max(node.in_second.1)),
            connections: busiest(|node| node.met.len() as u64) as usize,
            messages_of_all: self.nodes.iter().map(|node| node.messages).sum(),
            first_byte_mean: sum / count.max(1) as f64,
            stuck: self.to_go,
            failed: self.nodes.iter().filter(|node| !node.lives).count(),
            took: took.as_secs_f64(),
            ..self.stats
        }
    }

    /// A message reaches `to`.
    pub fn count(&mut self, from: u32, to: u32) {
        if from == to {
            return;
        }
        let second = (self.now - self.begin).as_secs();
        let node = &mut self.nodes[to as usize];
        node.messages += 1;
        if node.in_second.0 != second {
            node.in_busiest = node.in_busiest.max(node.in_second.1);
            node.in_second = (second, 0);
        }
        node.in_second.1 += 1;
        node.met.insert(from);
    }

    /// containerd begins what it may.
    pub fn next_layers(&mut self, node: u32) {
        loop {
            let it = &mut self.nodes[node as usize];
            let coming = it.gets.iter().filter(|get| get.state == State::Coming);
            if coming.count() >= self.options.at_once {
                return;
            }
            let Some(layer) = it.queue.pop_front() else {
                return;
            };
            let get = &mut it.gets[layer as usize];
            get.state = State::Coming;
            get.asked = self.now;
            match self.options.mode.is_policy() {
                true => self.board(node, layer),
                false => self.choose(node, layer),
            }
        }
    }

    /// Where there is no policy.
    fn choose(&mut self, node: u32, layer: u32) {
        let registry = self.registry();
        let it = &self.layers[layer as usize];
        let source = match self.options.mode {
            Mode::Star if it.star != node && self.nodes[it.star as usize].lives => it.star,
            Mode::Complete => {
                let some = (0..3).filter_map(|_| {
                    let holders = it.holders.len();
                    (holders > 0).then(|| it.holders[self.rng.random_range(0..holders)])
                });
                let live = some.filter(|holder| self.nodes[*holder as usize].lives);
                live.min_by_key(|holder| self.nodes[*holder as usize].uploads)
                    .unwrap_or(registry)
            }
            _ => registry,
        };
        self.stream(source, node, layer, 0);
    }

    /// What of `layer` others can see at `node`.
    pub fn seen(&self, node: u32, layer: u32) -> f64 {
        let get = &self.nodes[node as usize].gets[layer as usize];
        match get.state {
            State::Queued => 0.0,
            State::Coming => (get.offset / STEP).floor() * STEP,
            State::Here => self.layers[layer as usize].size,
        }
    }

    /// `sink` gets `layer` from `source` from now on.
    pub fn stream(&mut self, source: u32, sink: u32, layer: u32, depth: u32) {
        self.cut(sink, layer);
        let now = self.now;
        let at = self.streams.len();
        let get = &mut self.nodes[sink as usize].gets[layer as usize];
        get.stream = Some(at);
        let from = get.offset;
        self.streams.push(Stream {
            source,
            sink,
            layer,
            from,
            depth,
            last: now,
            longest: Duration::ZERO,
        });
        if source == self.registry() {
            return;
        }
        let parent = &mut self.nodes[source as usize];
        parent.uploads += 1;
        self.stats.children = self.stats.children.max(parent.uploads);
        self.reads_from(source, sink, layer);
        if self.options.mode.is_policy() {
            self.climb(sink, layer);
        }
    }

    /// `sink` takes up room at `source`, unless what is there is whole (`registry/growing.rs`).
    pub fn reads_from(&mut self, source: u32, sink: u32, layer: u32) {
        let parent = &mut self.nodes[source as usize];
        if parent.gets[layer as usize].state == State::Coming {
            let reading = Reading::new(self.layers[layer as usize].digest.clone(), self.now);
            parent.children.insert((sink, layer), reading);
        }
    }

    /// And does not any more, unless it gets something by now.
    pub fn reads_no_more(&mut self, source: u32, sink: u32, layer: u32) {
        if self.source(sink, layer) != Some(source) {
            let parent = &mut self.nodes[source as usize];
            parent.children.remove(&(sink, layer));
        }
    }

    /// How deep this node stands now; whether its parents' parents end anywhere.
    fn climb(&mut self, node: u32, layer: u32) {
        let (mut at, mut steps) = (node, 0);
        while let Some(stream) = self.nodes[at as usize].gets[layer as usize].stream {
            steps += 1;
            at = self.streams[stream].source;
            if at == self.registry() {
                break;
            }
            if at == node {
                self.stats.circles += 1;
                return;
            }
        }
        self.stats.deepest = self.stats.deepest.max(steps);
    }

    /// `sink` gets `layer` from nobody.
    pub fn cut(&mut self, sink: u32, layer: u32) {
        let get = &mut self.nodes[sink as usize].gets[layer as usize];
        let Some(at) = get.stream.take() else {
            return;
        };
        let gone = self.streams.swap_remove(at);
        if let Some(moved) = self.streams.get(at) {
            let get = &mut self.nodes[moved.sink as usize].gets[moved.layer as usize];
            get.stream = Some(at);
        }
        if gone.source != self.registry() {
            let parent = &mut self.nodes[gone.source as usize];
            parent.uploads -= 1;
            parent.children.remove(&(sink, layer));
        }
    }

    /// Whom `sink` gets `layer` from.
    pub fn source(&self, sink: u32, layer: u32) -> Option<u32> {
        let stream = self.nodes[sink as usize].gets[layer as usize].stream?;
        Some(self.streams[stream].source)
    }

    pub fn die(&mut self, node: u32) {
        if !self.nodes[node as usize].lives {
            return;
        }
        self.nodes[node as usize].lives = false;
        for layer in 0..self.layers.len() as u32 {
            self.cut(node, layer);
            self.nodes[node as usize].gets[layer as usize].tries += 1;
        }
        if self.nodes[node as usize].to_go > 0 {
            self.to_go -= 1;
        }
    }

    /// One tick of all transfers.
    fn transfer(&mut self) {
        self.admit();
        let registry = self.registry();
        let mut flows = std::mem::take(&mut self.flows);
        flows.clear();
        for stream in &self.streams {
            let size = self.layers[stream.layer as usize].size;
            let there = match stream.source {
                source if source == registry => size,
                source if self.nodes[source as usize].lives => self.seen(source, stream.layer),
                _ => 0.0,
            };
            let here = self.nodes[stream.sink as usize].gets[stream.layer as usize].offset;
            flows.push(Flow {
                source: stream.source,
                sink: stream.sink,
                want: (there - here).max(0.0),
                got: 0.0,
            });
        }
        self.links.share(&mut flows);
        let (mut done, mut silent) = (Vec::new(), Vec::new());
        for (at, flow) in flows.iter().enumerate() {
            let now = self.now;
            let stream = &mut self.streams[at];
            let (sink, layer) = (stream.sink, stream.layer);
            let size = self.layers[layer as usize].size;
            let get = &mut self.nodes[sink as usize].gets[layer as usize];
            if flow.got > 0.0 {
                stream.longest = stream.longest.max(now - stream.last);
                stream.last = now;
                get.offset += flow.got;
                if !get.has_begun {
                    get.has_begun = true;
                    let first = (now - get.asked).as_secs_f64();
                    self.first_bytes.0 += first;
                    self.first_bytes.1 += 1;
                    self.stats.first_byte_max = self.stats.first_byte_max.max(first);
                }
                let sent = (get.offset - stream.from) as u64;
                let available = (flow.want - flow.got) as u64 + sent;
                if flow.source == registry {
                    self.from_registry += flow.got;
                } else {
                    let parent = &mut self.nodes[flow.source as usize];
                    if let Some(reading) = parent.children.get_mut(&(sink, layer)) {
                        reading.progress(sent, available, now);
                    }
                }
                // Less than a byte is missing.
                let get = &self.nodes[sink as usize].gets[layer as usize];
                if size - get.offset < 1.0 {
                    done.push((sink, layer));
                }
            } else if flow.source != registry {
                let patience = match self.options.mode.is_policy() {
                    true => patience(stream.depth, stream.longest),
                    false => STALL.max(self.tick * 2),
                };
                let is_over = now - stream.last >= patience;
                // Without a policy a silent leader that lives has not got anything itself.
                let is_dead = !self.nodes[flow.source as usize].lives;
                if is_over && (is_dead || self.options.mode.is_policy()) {
                    silent.push((sink, layer, flow.source));
                }
            }
        }
        self.flows = flows;
        for (sink, layer) in done {
            self.finish(sink, layer);
        }
        for (sink, layer, source) in silent {
            self.cut(sink, layer);
            match self.options.mode.is_policy() {
                true => {
                    self.stats.replaced += 1;
                    self.doubt(sink, layer, source, Doubt::Silent);
                    self.board(sink, layer);
                }
                false => self.choose(sink, layer),
            }
        }
    }

    /// Those who wait at a parent that has something for them by now.
    fn admit(&mut self) {
        let mut held = std::mem::take(&mut self.held);
        held.retain(|&(node, layer, tries, parent)| {
            let get = &self.nodes[node as usize].gets[layer as usize];
            if get.tries != tries {
                self.reads_no_more(parent, node, layer);
                return false;
            }
            let get = &self.nodes[node as usize].gets[layer as usize];
            let lives = self.nodes[parent as usize].lives;
            if !lives || self.seen(parent, layer) <= get.offset {
                return true;
            }
            let depth = get.client.depth;
            self.stream(parent, node, layer, depth);
            self.streams_from(node, layer);
            false
        });
        self.held.append(&mut held);
    }

    fn finish(&mut self, node: u32, layer: u32) {
        self.cut(node, layer);
        let it = &mut self.nodes[node as usize];
        let get = &mut it.gets[layer as usize];
        get.state = State::Here;
        get.offset = self.layers[layer as usize].size;
        get.tries += 1;
        if let Some(part) = &mut get.part {
            (part.requests, part.left) = (0, self.now);
        }
        it.to_go -= 1;
        if it.to_go == 0 {
            self.to_go -= 1;
            self.last_done = self.now;
        }
        self.layers[layer as usize].holders.push(node);
        self.next_layers(node);
    }
}

impl Get {
    fn new(now: Instant) -> Self {
        Self {
            state: State::Queued,
            offset: 0.0,
            asked: now,
            has_begun: false,
            tries: 0,
            part: None,
            stream: None,
            client: crate::client::Asker::new(now),
        }
    }
}
