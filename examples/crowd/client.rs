//! What a node's mirror does in the time between: ask the rendezvous, follow, give up; look at what comes in and report it.

use std::collections::HashMap;
use std::time::Duration;

use peili::inflight::Inflight;
use peili::inflight::uplink::free;
use peili::mirror::LIMIT;
use peili::mirror::flight::part::{Part, Role, Seen};
use peili::mirror::flight::registries::Registries;
use peili::oci::Digest;
use peili::routing::PeerId;
use peili::routing::flight::table::{Circumstances, Said};
use peili::routing::rendezvous::{
    self as words, Advice, Course, Doubt, Generation, Part as Told, Standing, Wish,
};
use rand::RngExt;
use tokio::time::Instant;

use crate::options::Mode;
use crate::world::{State, World};

const IMAGE: &str = "registry.test/crowd";
/// Numbers of the real ones (`mirror/flight/boarding.rs`): for a first byte, and after a parent without one.
const HOLD: Duration = Duration::from_millis(800);
const BREATH: Duration = Duration::from_millis(10);
const MAX_DOUBTS: usize = 32;
/// Of `mirror/attempt.rs`: who says nothing at all.
const GIVE_UP: Duration = Duration::from_secs(2);
/// Of `registry/growing.rs`: what is not coming.
const ABSENT_AFTER: Duration = Duration::from_millis(20);
/// Of `registry/uploads.rs`.
const MAX_UPLOADS: u32 = 64;
/// Of `mirror/flight/reporter.rs`.
const LOOK: Duration = Duration::from_millis(50);
const REPORT: Duration = Duration::from_millis(250);
const BUSY: Duration = Duration::from_secs(1);
/// Of `routing/flight.rs` and `routing/flight/ask.rs`.
const CALL: Duration = Duration::from_millis(250);
const DEAD: Duration = Duration::from_secs(10);
const DESK: Duration = Duration::from_secs(5);
const TRIES: u32 = 3;
const MAX_HOPS: u32 = 24;

pub enum Event {
    Begin(u32),
    Die(u32),
    /// It is time to ask again.
    Ask(Try),
    /// A question reaches whom it was put to.
    Question(Box<Asking>),
    /// A second opinion has come, for the question that waits for it.
    Opinion(Box<Asking>),
    Answer(Box<Asking>, Answer),
    /// A request reaches a parent.
    Knock(Try, u32),
    /// Nothing came from the parent, for the reason given if it is one to hold against it.
    Nothing(Try, u32, Option<Doubt>),
    /// The parent has been silent for as long as it may hold a request.
    Held(Try, u32),
    /// The registry's first byte.
    Upstream(Try),
    Look(u32),
    Report(u32, u32, Vec<Standing>),
    Courses(u32, u32, Vec<u32>, Option<Vec<Course>>),
}

/// A node's try at a layer; void when another has begun.
#[derive(Clone, Copy)]
pub struct Try {
    node: u32,
    layer: u32,
    number: u32,
}

pub struct Asking {
    of: Try,
    /// The meeting point, and whom it named.
    root: u32,
    at: u32,
    wish: Wish,
    circumstances: Circumstances,
    hops: u32,
    tries: u32,
    /// When the question was put.
    sent: Instant,
}

pub enum Answer {
    Advice(Advice),
    Closer(u32),
    Descend(u32),
    Astray,
    /// None in time.
    Silence,
}

/// What a node remembers of others.
pub struct Memory {
    desks: Vec<Option<(u32, Instant)>>,
    patrons: Vec<Option<(u32, Instant)>>,
    dead: HashMap<u32, Instant>,
    told: HashMap<u32, Told>,
    reported: Option<Instant>,
    is_looking: bool,
    registries: Registries,
}

/// One request of containerd.
pub struct Asker {
    pub depth: u32,
    began: Instant,
    doubts: Vec<(PeerId, Doubt)>,
}

impl Memory {
    pub fn new(layers: usize) -> Self {
        Self {
            desks: vec![None; layers],
            patrons: vec![None; layers],
            dead: HashMap::new(),
            told: HashMap::new(),
            reported: None,
            is_looking: false,
            registries: Registries::default(),
        }
    }

    fn is_dead(&self, whom: u32, now: Instant) -> bool {
        self.dead.get(&whom).is_some_and(|until| now < *until)
    }
}

impl Asker {
    pub fn new(now: Instant) -> Self {
        Self {
            depth: 0,
            began: now,
            doubts: Vec::new(),
        }
    }
}

fn number(id: &PeerId) -> u32 {
    id.as_str().parse().expect("nodes are named by number")
}

impl World {
    pub fn handle(&mut self, event: Event) {
        match event {
            Event::Begin(node) => {
                if self.nodes[node as usize].lives {
                    self.next_layers(node);
                }
            }
            Event::Die(node) => self.die(node),
            Event::Ask(of) => {
                if self.is_current(of) {
                    self.ask(of.node, of.layer, false);
                }
            }
            Event::Question(asking) => self.question(asking),
            Event::Opinion(mut asking) => {
                asking.circumstances.has_opinion = true;
                self.question(asking);
            }
            Event::Answer(asking, answer) => {
                if self.is_current(asking.of) {
                    self.answered(asking, answer);
                }
            }
            Event::Knock(of, parent) => {
                if self.is_current(of) {
                    self.knock(of, parent);
                }
            }
            Event::Nothing(of, parent, doubt) => {
                if self.is_current(of) {
                    self.nothing(of, parent, doubt);
                }
            }
            Event::Held(of, parent) => {
                if !self.is_current(of) {
                } else if self.nodes[parent as usize].lives {
                    self.nothing(of, parent, None);
                } else {
                    let silent = Event::Nothing(of, parent, Some(Doubt::Silent));
                    self.after(GIVE_UP - HOLD, silent);
                }
            }
            Event::Upstream(of) => {
                if self.is_current(of) {
                    self.stream(self.registry(), of.node, of.layer, 0);
                }
            }
            Event::Look(node) => self.look(node),
            Event::Report(from, to, standings) => self.report(from, to, &standings),
            Event::Courses(node, desk, layers, courses) => {
                self.courses(node, desk, &layers, courses);
            }
        }
    }

    fn is_current(&self, of: Try) -> bool {
        let node = &self.nodes[of.node as usize];
        let get = &node.gets[of.layer as usize];
        node.lives && get.state == State::Coming && get.tries == of.number
    }

    /// What was under way for this layer is void from now on.
    fn another(&mut self, node: u32, layer: u32) -> Try {
        let get = &mut self.nodes[node as usize].gets[layer as usize];
        get.tries += 1;
        let number = get.tries;
        Try {
            node,
            layer,
            number,
        }
    }

    fn half(&self) -> Duration {
        Duration::from_micros(self.options.round_trip) / 2
    }

    /// To the other and back by half; to oneself in no time.
    fn way(&self, from: u32, to: u32) -> Duration {
        match from == to {
            true => Duration::ZERO,
            false => self.half(),
        }
    }

    /// containerd's request, or the rest of it after a source has failed.
    pub fn board(&mut self, node: u32, layer: u32) {
        let now = self.now;
        let digest = &self.layers[layer as usize].digest;
        let it = &mut self.nodes[node as usize];
        let get = &mut it.gets[layer as usize];
        get.client.began = now;
        let part = get.part.get_or_insert_with(|| {
            Part::new(
                "registry.test/crowd".to_string(),
                Generation::One,
                &Inflight::off(),
                digest,
                now,
            )
        });
        part.requests = 1;
        if !it.memory.is_looking {
            it.memory.is_looking = true;
            self.after(Duration::ZERO, Event::Look(node));
        }
        self.ask(node, layer, false);
    }

    pub fn doubt(&mut self, node: u32, layer: u32, parent: u32, doubt: Doubt) {
        let id = self.nodes[parent as usize].peer.id.clone();
        let asker = &mut self.nodes[node as usize].gets[layer as usize].client;
        if asker.doubts.len() < MAX_DOUBTS {
            asker.doubts.push((id, doubt));
        }
    }

    /// The first bytes have come from a parent.
    pub fn streams_from(&mut self, node: u32, layer: u32) {
        self.another(node, layer);
        let now = self.now;
        let get = &mut self.nodes[node as usize].gets[layer as usize];
        if let Some(part) = &mut get.part {
            part.streaming.get_or_insert(now);
        }
    }

    fn ask(&mut self, node: u32, layer: u32, is_slow: bool) {
        let of = self.another(node, layer);
        let now = self.now;
        let waited = now - self.nodes[node as usize].gets[layer as usize].client.began;
        if waited > LIMIT && !is_slow {
            let lease = self.rng.random();
            return self.lead(of, lease);
        }
        let Some(desk) = self.desk(node, layer) else {
            let lease = self.rng.random();
            return self.lead(of, lease);
        };
        let digest = self.layers[layer as usize].digest.clone();
        let it = &mut self.nodes[node as usize];
        let get = &mut it.gets[layer as usize];
        let wish = Wish {
            digest,
            image: IMAGE.to_string(),
            generation: Generation::One,
            offset: get.offset as u64,
            doubts: std::mem::take(&mut get.client.doubts),
            led_in_vain: false,
            is_slow,
        };
        let asking = Asking {
            of,
            root: desk,
            at: desk,
            wish,
            circumstances: Circumstances::default(),
            hops: 0,
            tries: 1,
            sent: now,
        };
        self.put(Box::new(asking));
    }

    fn desk(&self, node: u32, layer: u32) -> Option<u32> {
        let memory = &self.nodes[node as usize].memory;
        if let Some((desk, at)) = memory.desks[layer as usize]
            && self.now - at < DESK
            && !memory.is_dead(desk, self.now)
        {
            return Some(desk);
        }
        let mut desks = self.layers[layer as usize].desks.iter().copied();
        desks.find(|desk| !memory.is_dead(*desk, self.now))
    }

    fn patron(&self, node: u32, layer: u32) -> Option<u32> {
        let memory = &self.nodes[node as usize].memory;
        match memory.patrons[layer as usize] {
            Some((patron, at)) if self.now - at < DESK && !memory.is_dead(patron, self.now) => {
                Some(patron)
            }
            _ => self.desk(node, layer),
        }
    }

    fn put(&mut self, mut asking: Box<Asking>) {
        asking.sent = self.now;
        let way = self.way(asking.of.node, asking.at);
        self.after(way, Event::Question(asking));
    }

    fn question(&mut self, asking: Box<Asking>) {
        let (now, at) = (self.now, asking.at);
        if !self.nodes[at as usize].lives {
            let left = CALL.saturating_sub(now - asking.sent);
            return self.after(left, Event::Answer(asking, Answer::Silence));
        }
        self.count(asking.of.node, at);
        let from = self.nodes[asking.of.node as usize].peer.clone();
        let table = &mut self.nodes[at as usize].table;
        let began = std::time::Instant::now();
        let said = table.ask(&from, &asking.wish, &asking.circumstances, now);
        self.stats.in_tables += began.elapsed().as_secs_f64();
        let answer = match said {
            Said::Advice(advice) => {
                let kind = match advice {
                    Advice::Lead { .. } => 0,
                    Advice::Follow { .. } => 1,
                    Advice::Wait { .. } => 2,
                };
                self.stats.said[kind] += 1;
                Answer::Advice(advice)
            }
            Said::Descend(peer) => {
                self.stats.said[3] += 1;
                Answer::Descend(number(&peer.id))
            }
            Said::Astray => Answer::Astray,
            Said::AskOthers => return self.look_around(asking),
        };
        let way = self.way(asking.of.node, at);
        self.after(way, Event::Answer(asking, answer));
    }

    /// As `routing/flight/desk.rs` does before somebody leads.
    fn look_around(&mut self, mut asking: Box<Asking>) {
        let (now, at, asker) = (self.now, asking.at, asking.of.node);
        let layer = asking.of.layer;
        let memory = &self.nodes[at as usize].memory;
        let desks = self.layers[layer as usize].desks.iter().copied();
        let is_alive = |desk: u32| desk == at || desk != asker && !memory.is_dead(desk, now);
        let closest: Vec<u32> = desks.filter(|desk| is_alive(*desk)).collect();
        match closest.first() {
            Some(&first) if first != at => {
                if asking.circumstances.is_takeover {
                    asking.circumstances.has_opinion = true;
                    return self.question(asking);
                }
                let way = self.way(asker, at);
                return self.after(way, Event::Answer(asking, Answer::Closer(first)));
            }
            _ => {}
        }
        let Some(&next) = closest.get(1) else {
            asking.circumstances.has_opinion = true;
            return self.question(asking);
        };
        if !self.nodes[next as usize].lives {
            self.nodes[at as usize].memory.dead.insert(next, now + DEAD);
            // For an opinion.
            return self.after(Duration::from_millis(100), Event::Opinion(asking));
        }
        self.count(at, next);
        let known = self.nodes[next as usize]
            .table
            .opinion(&asking.wish.digest, now);
        for (peer, standing) in known {
            self.nodes[at as usize]
                .table
                .report(&peer, &[standing], now);
        }
        self.after(self.half() * 2, Event::Opinion(asking));
    }

    fn answered(&mut self, mut asking: Box<Asking>, answer: Answer) {
        let (now, of) = (self.now, asking.of);
        asking.hops += 1;
        let is_lost = asking.hops >= MAX_HOPS;
        match answer {
            Answer::Advice(advice) => {
                let it = &mut self.nodes[of.node as usize];
                it.table.takes_part(&asking.wish, &advice);
                let memory = &mut it.memory;
                memory.desks[of.layer as usize] = Some((asking.root, now));
                memory.patrons[of.layer as usize] = Some((asking.at, now));
                return self.advised(of, advice, asking.wish.is_slow);
            }
            Answer::Closer(peer) if asking.at == asking.root && !is_lost => {
                (asking.root, asking.at) = (peer, peer);
            }
            Answer::Descend(peer) if !is_lost => {
                asking.circumstances.is_descended = true;
                asking.at = peer;
            }
            Answer::Silence if asking.at == asking.root => {
                let memory = &mut self.nodes[of.node as usize].memory;
                memory.dead.insert(asking.at, now + DEAD);
                return self.another_desk(asking);
            }
            _ if is_lost => return self.another_desk(asking),
            _ => {
                let memory = &mut self.nodes[of.node as usize].memory;
                if matches!(answer, Answer::Silence) {
                    memory.dead.insert(asking.at, now + DEAD);
                }
                let id = self.nodes[asking.at as usize].peer.id.clone();
                asking.wish.doubts.push((id, Doubt::Gone));
                asking.circumstances.is_descended = false;
                asking.at = asking.root;
            }
        }
        self.put(asking);
    }

    fn another_desk(&mut self, mut asking: Box<Asking>) {
        let of = asking.of;
        asking.tries += 1;
        asking.hops = 0;
        asking.circumstances = Circumstances {
            is_takeover: true,
            ..Circumstances::default()
        };
        match self.desk(of.node, of.layer) {
            Some(desk) if asking.tries <= TRIES => {
                (asking.root, asking.at) = (desk, desk);
                self.put(asking);
            }
            _ => {
                let lease = self.rng.random();
                self.lead(of, lease);
            }
        }
    }

    fn advised(&mut self, of: Try, advice: Advice, is_slow: bool) {
        match advice {
            Advice::Lead { lease } => {
                let part = &mut self.nodes[of.node as usize].gets[of.layer as usize].part;
                if let Some(part) = part.as_mut().filter(|_| is_slow) {
                    part.goes_for_more(self.now);
                }
                self.lead(of, lease);
            }
            // What it has goes on.
            Advice::Wait { .. } if is_slow => {}
            Advice::Wait { pause, .. } => {
                self.after(pause.clamp(BREATH, HOLD), Event::Ask(of));
            }
            Advice::Follow { parent, depth, .. } => {
                let parent = number(&parent.id);
                if is_slow && self.source(of.node, of.layer) == Some(parent) {
                    return;
                }
                self.cut(of.node, of.layer);
                let now = self.now;
                let id = self.nodes[parent as usize].peer.id.clone();
                let get = &mut self.nodes[of.node as usize].gets[of.layer as usize];
                get.client.depth = depth;
                if let Some(part) = &mut get.part {
                    part.becomes(Role::Follows { parent: id }, now);
                }
                self.after(self.half(), Event::Knock(of, parent));
            }
        }
    }

    fn lead(&mut self, of: Try, lease: u64) {
        self.cut(of.node, of.layer);
        let now = self.now;
        let get = &mut self.nodes[of.node as usize].gets[of.layer as usize];
        if let Some(part) = &mut get.part {
            part.becomes(Role::Leads { lease }, now);
            (part.requests, part.left) = (0, now);
        }
        self.stats.led += 1;
        let first_byte = Duration::from_millis(self.options.registry_first_byte);
        self.after(first_byte, Event::Upstream(of));
    }

    fn knock(&mut self, of: Try, parent: u32) {
        let there = &self.nodes[parent as usize];
        let half = self.half();
        if !there.lives {
            let silent = Event::Nothing(of, parent, Some(Doubt::Silent));
            return self.after(GIVE_UP, silent);
        }
        if there.gets[of.layer as usize].state == State::Queued {
            let gone = Event::Nothing(of, parent, Some(Doubt::Gone));
            return self.after(ABSENT_AFTER + half, gone);
        }
        if there.uploads >= MAX_UPLOADS {
            let busy = Event::Nothing(of, parent, Some(Doubt::Busy));
            return self.after(half, busy);
        }
        // Who waits for a first byte takes up the room that it will need (`registry/growing.rs`).
        self.reads_from(parent, of.node, of.layer);
        self.held.push((of.node, of.layer, of.number, parent));
        self.after(HOLD, Event::Held(of, parent));
    }

    fn nothing(&mut self, of: Try, parent: u32, doubt: Option<Doubt>) {
        if let Some(doubt) = doubt {
            self.stats.replaced += 1;
            self.doubt(of.node, of.layer, parent, doubt);
        }
        self.reads_no_more(parent, of.node, of.layer);
        let of = self.another(of.node, of.layer);
        self.after(BREATH, Event::Ask(of));
    }

    /// Looks at all parts; tells of them when there is news, and four times a second.
    fn look(&mut self, node: u32) {
        let now = self.now;
        let it = &self.nodes[node as usize];
        let layers: Vec<u32> = (0..self.layers.len() as u32)
            .filter(|layer| it.gets[*layer as usize].part.is_some())
            .collect();
        if layers.is_empty() || !it.lives {
            let memory = &mut self.nodes[node as usize].memory;
            memory.told.clear();
            memory.is_looking = false;
            return;
        }
        let (mut standings, mut slow) = (Vec::new(), Vec::new());
        let mut of_layers = Vec::new();
        let parts = layers
            .iter()
            .filter_map(|layer| it.gets[*layer as usize].part.as_ref());
        let is_busy = parts.into_iter().any(|part| now - part.grew < BUSY);
        for &layer in &layers {
            let seen = match self.nodes[node as usize].gets[layer as usize].state {
                State::Here => Seen::Whole,
                _ => Seen::Growing(self.seen(node, layer) as u64),
            };
            let digest = &self.layers[layer as usize].digest;
            let it = &mut self.nodes[node as usize];
            let Some(part) = &mut it.gets[layer as usize].part else {
                continue;
            };
            let Some(said) = part.look(seen, is_busy, now) else {
                continue;
            };
            of_layers.push(layer);
            standings.push(Standing {
                digest: digest.clone(),
                generation: part.generation,
                part: said,
                offset: part.offset,
                rate: part.rate(now),
                node_rate: 0,
                free: free(it.children.values(), digest, now),
            });
        }
        let node_rate = standings.iter().map(|standing| standing.rate).sum();
        for (standing, layer) in standings.iter_mut().zip(&of_layers) {
            standing.node_rate = node_rate;
            let it = &mut self.nodes[node as usize];
            let get = &mut it.gets[*layer as usize];
            let Some(part) = get.part.as_mut() else {
                continue;
            };
            let registries = &mut it.memory.registries;
            if let Some(got_more) = part.got_more(now) {
                registries.note(IMAGE, got_more, now);
            }
            let is_proven = registries.is_faster(IMAGE, now);
            if self.options.mode == Mode::Auto
                && get.stream.is_some()
                && part.is_slow(node_rate, is_proven, now)
            {
                slow.push(*layer);
            }
        }
        let memory = &mut self.nodes[node as usize].memory;
        let has_news = of_layers.iter().zip(&standings).any(|(layer, standing)| {
            let before = memory.told.get(layer);
            before.is_none_or(|before| !is_alike(before, &standing.part))
        });
        if has_news || memory.reported.is_none_or(|at| now - at >= REPORT) {
            memory.reported = Some(now);
            let told = of_layers.iter().zip(&standings);
            memory.told = told.map(|(l, s)| (*l, s.part.clone())).collect();
            self.tell(node, &of_layers, standings);
        }
        for layer in slow {
            if let Some(part) = &mut self.nodes[node as usize].gets[layer as usize].part {
                part.streams(now);
            }
            self.ask(node, layer, true);
        }
        self.after(LOOK, Event::Look(node));
    }

    fn tell(&mut self, node: u32, layers: &[u32], standings: Vec<Standing>) {
        let now = self.now;
        self.nodes[node as usize].table.own(&standings, now);
        let mut by_desk: Vec<(u32, Vec<Standing>)> = Vec::new();
        for (layer, standing) in layers.iter().zip(standings) {
            let is_over = matches!(standing.part, words::Part::Holds);
            if let Some(desk) = self.patron(node, *layer) {
                match by_desk.iter_mut().find(|(at, _)| *at == desk) {
                    Some((_, standings)) => standings.push(standing),
                    None => by_desk.push((desk, vec![standing])),
                }
            }
            if is_over {
                self.nodes[node as usize].gets[*layer as usize].part = None;
            }
        }
        for (desk, standings) in by_desk {
            let way = self.way(node, desk);
            self.after(way, Event::Report(node, desk, standings));
        }
    }

    fn report(&mut self, from: u32, to: u32, standings: &[Standing]) {
        let layer = |digest: &Digest| {
            let at = self.layers.iter().position(|layer| layer.digest == *digest);
            at.map(|at| at as u32)
        };
        let layers = standings.iter().filter_map(|s| layer(&s.digest)).collect();
        if !self.nodes[to as usize].lives {
            let lost = Event::Courses(from, to, layers, None);
            return self.after(CALL, lost);
        }
        self.count(from, to);
        let peer = self.nodes[from as usize].peer.clone();
        let began = std::time::Instant::now();
        let courses = self.nodes[to as usize]
            .table
            .report(&peer, standings, self.now);
        self.stats.in_tables += began.elapsed().as_secs_f64();
        let way = self.way(from, to);
        self.after(way, Event::Courses(from, to, layers, Some(courses)));
    }

    fn courses(&mut self, node: u32, desk: u32, layers: &[u32], courses: Option<Vec<Course>>) {
        let now = self.now;
        let it = &mut self.nodes[node as usize];
        let Some(courses) = courses else {
            it.memory.dead.insert(desk, now + DEAD);
            for layer in layers {
                it.memory.patrons[*layer as usize] = None;
            }
            return;
        };
        for layer in layers {
            it.memory.patrons[*layer as usize] = Some((desk, now));
        }
        for course in courses {
            let layers = &self.layers;
            let at = layers.iter().position(|l| l.digest == course.digest);
            if let Some(part) = at.and_then(|at| it.gets[at].part.as_mut())
                && course.progress.rate > 0
            {
                part.progress = course.progress;
            }
        }
    }
}

fn is_alike(before: &Told, now: &Told) -> bool {
    match (before, now) {
        (Told::Leads { lease: a, .. }, Told::Leads { lease: b, .. }) => a == b,
        (a, b) => a == b,
    }
}
