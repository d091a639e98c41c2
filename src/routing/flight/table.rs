//! What one meeting point knows and decides. Pure: who asked what and when goes in, advice comes out.
//!
//! The rules, in this order, for an asker of one content:
//! 1. Somebody has it: follow him. If he is busy, follow somebody who takes it from such a one.
//! 2. The asker leads already: it leads again (its body was ended on purpose, or the pull is a new one).
//! 3. It is slow where those who lead, or who take it from one who has it, are fast: it follows somebody else who has room,
//!    else it leads where others do, too, a few at a time (with `always` nobody says so).
//! 4. Somebody leads: follow whoever is ahead and has room, unless all who lead have been silent for too long.
//! 5. Nobody leads: wait for who reports to a meeting point that has just taken over, for whom an image's leader should
//!    come to it, for who is further ahead; else lead.

use std::collections::HashMap;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use tokio::time::Instant;

use super::entries::{Entry, Flight, MAX_ENTRIES, Role};
use crate::inflight::uplink::FANOUT;
use crate::oci::Digest;
use crate::routing::rendezvous::{Advice, Course, Generation, Part, Standing, Wish};
use crate::routing::{Peer, PeerId};

/// Contents that one meeting point keeps in mind. A node of a cluster of 1,000 is the closest to a thousandth of what is
/// pulled in a minute. Full of participants they take about 20 MiB.
const MAX_FLIGHTS: usize = 1024;
/// Images whose leaders one meeting point keeps in mind.
const MAX_IMAGES: usize = 1024;
/// Nodes that pull one image, as far as that matters: one of them leads.
const MAX_PULLERS: usize = 64;
/// A meeting point that has just taken over hears within this time from those who take part: they report four times a
/// second.
const TAKEOVER: Duration = Duration::from_millis(500);
/// For so long somebody who got nothing from the registry lets others try.
const AFTER_YOU: Duration = Duration::from_secs(1);
/// For so long somebody who is further ahead is waited for before one who is behind leads.
const HEIR: Duration = Duration::from_millis(700);
/// Whoever pulls an image and has not been at work for so long does not lead it any more.
const IDLE: Duration = Duration::from_millis(1500);
/// Pullers are forgotten when they have not been heard of for so long.
const PULLING: Duration = Duration::from_secs(5);
/// Who is further ahead by so much is worth a change: some of containerd's steps of 1 MiB.
const AHEAD: u64 = 4 << 20;
/// Flights that are over are dropped this often; only their memory depends on it.
const SWEEP: Duration = Duration::from_secs(1);
/// Between two questions of one asker: a round trip is under a millisecond.
const PAUSE: Duration = Duration::from_millis(40);
/// The same while a leader of the whole image is awaited: it gets a layer in seconds.
const QUEUED_PAUSE: Duration = Duration::from_millis(200);
/// Who leads an image asks for all of its layers within a tenth of a second. One that has not asked for this one has it
/// already, or has its layers unpacked, and never will.
const IMAGE_LEADER: Duration = Duration::from_secs(5);
/// The same for a 1.x, which gets what it leads at once: its image's leader is a few messages behind it, or will not come.
/// Layers that come from one node come to all others as fast as to that one. Where three nodes led one each, their links were
/// full with that, what they took of the others' layers came more slowly, and so it did to all behind them: eight nodes behind
/// a fast registry were done after 22 to 25 s instead of 18.4 to 19.1 (measured).
const IMAGE_LEADER_1X: Duration = Duration::from_millis(300);

/// How long one who waits for a silent leader waits before it leads, too, by its place in the line: if all gave up at the
/// same time, a registry that needs longer than that for its first byte would be asked by all of them at once. So it is
/// asked once more after 2 s, by 3 others after 4 s, 7 after 6 s, 15 after 8 s and by all after 10 s.
pub fn patience(rank: u32) -> Duration {
    Duration::from_secs(2) * rank.max(1).ilog2().saturating_add(1).min(5)
}

/// What the asker says beside its wish, and what the desk has found out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Circumstances {
    /// The meeting point before this one did not answer: others may know more than this one.
    pub is_takeover: bool,
    /// Who leads the image that it is part of, if anybody is known to.
    pub image_leader: Option<PeerId>,
    /// The asker was sent here by the meeting point, because this node takes part.
    pub is_descended: bool,
    /// Others have been asked whether they know of a flight that is unknown here.
    pub has_opinion: bool,
}

/// What the table says to somebody who asks.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    Advice(Advice),
    /// This one takes part, and knows whom to follow.
    Descend(Peer),
    /// Nothing is known here: ask others before somebody is told to lead.
    AskOthers,
    /// Sent here for nothing: this node takes no part (any more).
    Astray,
}

pub struct Table {
    me: Peer,
    flights: HashMap<Digest, Flight>,
    images: HashMap<String, Vec<Puller>>,
    /// This node's own parts, as it reported them.
    own: HashMap<Digest, Standing>,
    /// When all flights were last looked through for what is over.
    swept: Instant,
    rng: StdRng,
}

#[derive(Clone, Debug)]
struct Puller {
    id: PeerId,
    generation: Generation,
    since: Instant,
    heard: Instant,
    /// When its containerd last got something.
    busy: Instant,
}

impl Table {
    pub fn new(me: Peer, now: Instant, rng: StdRng) -> Self {
        Self {
            me,
            flights: HashMap::new(),
            images: HashMap::new(),
            own: HashMap::new(),
            swept: now,
            rng,
        }
    }

    /// Somebody's containerd asks for content that nobody is known to hold.
    pub fn ask(
        &mut self,
        from: &Peer,
        wish: &Wish,
        circumstances: &Circumstances,
        now: Instant,
    ) -> Said {
        self.forget(&wish.digest, now);
        if circumstances.is_descended {
            return self.descended(from, wish, now);
        }
        if !self.flights.contains_key(&wish.digest) && !circumstances.has_opinion {
            return Said::AskOthers;
        }
        let me = self.me.id.clone();
        let lease = self.rng.random();
        let seed: u32 = self.rng.random();
        let flight = self
            .flights
            .entry(wish.digest.clone())
            .or_insert_with(|| Flight::new(now));
        let has_place = flight.asks(from, wish, now);

        // Who holds it, and has room for another.
        if let Some((holder, _)) = flight.parent_for(from, true, now, chance(seed))
            && holder.role == Role::Holds
        {
            let id = holder.node.id.clone();
            return Said::Advice(follow(flight, &from.id, &id, has_place, now));
        }
        let leads = |entry: &Entry| matches!(entry.role, Role::Leads { .. });
        if flight.entry(&from.id).is_some_and(leads) {
            flight.grant(&from.id, lease, now);
            return Said::Advice(Advice::Lead { lease });
        }
        let is_led = flight.is_led(now);
        let is_held = flight.is_held_for(&from.id, now);
        let is_taken = flight.is_taken_for(&from.id, now);
        if wish.is_slow && (is_led || is_held || is_taken) && has_place {
            // Where uplinks are full nobody has room, and only the registry can bring more.
            flight.leaves(&from.id, now);
            let other = flight.parent_for(from, true, now, chance(seed));
            let other = other.filter(|(entry, _)| entry.offset > wish.offset.saturating_add(AHEAD));
            if let Some((other, _)) = other {
                let id = other.node.id.clone();
                return Said::Advice(follow(flight, &from.id, &id, has_place, now));
            }
            // On its way to the registry a 2.x stands still in its own queue, and so would all who follow it.
            let is_parent =
                wish.generation == Generation::Two && flight.children(&from.id, now) > 0;
            // Who takes it from one who has it says nothing about the registry.
            let is_about_it = is_led || is_held;
            if is_about_it && !is_parent && flight.may_lead_too(&from.id, now) {
                flight.grant(&from.id, lease, now);
                return Said::Advice(Advice::Lead { lease });
            }
            let (pause, is_queued) = (PAUSE, false);
            return Said::Advice(Advice::Wait { pause, is_queued });
        }
        let rank = flight.rank(&from.id, now);
        // Those who lead may be well, and still nobody be within this asker's reach.
        let is_out_of_reach = flight.parent_for(from, false, now, chance(seed)).is_none();
        let waited = match is_out_of_reach {
            true => flight.asking(&from.id, now),
            false => flight.quiet(&from.id, now),
        };
        let is_overdue = (is_led || is_taken || is_out_of_reach) && waited >= patience(rank);
        if (is_led || is_held || is_taken) && !is_overdue {
            return follow_somebody(flight, (from, has_place), &me, now, seed);
        }
        // Nobody leads, or those who do have been silent for too long.
        let wait = |is_queued| {
            let pause = if is_queued { QUEUED_PAUSE } else { PAUSE };
            Said::Advice(Advice::Wait { pause, is_queued })
        };
        let age = now.saturating_duration_since(flight.born);
        if !is_led && circumstances.is_takeover && age < TAKEOVER {
            return wait(false);
        }
        let joined = flight.entry(&from.id).map_or(now, |entry| entry.joined);
        let waited = now.saturating_duration_since(joined);
        if wish.led_in_vain && waited < AFTER_YOU {
            return wait(false);
        }
        let is_anothers = circumstances
            .image_leader
            .as_ref()
            .is_some_and(|leader| *leader != from.id);
        let (patience, is_queued) = match wish.generation {
            Generation::One => (IMAGE_LEADER_1X, false),
            Generation::Two => (IMAGE_LEADER, true),
        };
        if is_anothers && waited < patience && wish.offset == 0 && !is_led {
            return wait(is_queued);
        }
        // Who is not known here could not be followed: one of those who are will come.
        if flight.has_heir(&from.id, HEIR, now) || !has_place {
            return wait(false);
        }
        flight.grant(&from.id, lease, now);
        Said::Advice(Advice::Lead { lease })
    }

    /// Somebody was sent here by the meeting point, to be this node's child or a child's.
    fn descended(&mut self, from: &Peer, wish: &Wish, now: Instant) -> Said {
        let me = self.me.clone();
        if let Some(own) = self.own.get(&wish.digest) {
            let flight = self
                .flights
                .entry(wish.digest.clone())
                .or_insert_with(|| Flight::new(now));
            if flight.entry(&me.id).is_none() {
                flight.report(&me, own, now);
            }
        }
        let Some(flight) = self.flights.get_mut(&wish.digest) else {
            return Said::Astray;
        };
        // What is whole here is not reported any more, and is known of for as long as the meeting point knows.
        if flight.entry(&me.id).is_none() {
            return Said::Astray;
        }
        let has_place = flight.asks(from, wish, now);
        let seed: u32 = self.rng.random();
        match flight.parent_for(from, true, now, chance(seed)) {
            Some((parent, _)) => {
                let id = parent.node.id.clone();
                Said::Advice(follow(flight, &from.id, &id, has_place, now))
            }
            None => follow_somebody(flight, (from, has_place), &me.id, now, seed),
        }
    }

    /// What somebody says of its parts; how those flights stand.
    pub fn report(&mut self, from: &Peer, standings: &[Standing], now: Instant) -> Vec<Course> {
        let mut courses = Vec::with_capacity(standings.len());
        for standing in standings {
            self.forget(&standing.digest, now);
            let is_new = !self.flights.contains_key(&standing.digest);
            if is_new && (standing.part == Part::Gone || self.flights.len() >= MAX_FLIGHTS) {
                continue;
            }
            let flight = self
                .flights
                .entry(standing.digest.clone())
                .or_insert_with(|| Flight::new(now));
            flight.report(from, standing, now);
            courses.push(Course {
                digest: standing.digest.clone(),
                progress: flight.progress(now),
            });
        }
        courses
    }

    /// This node's own parts, for those who will be sent here. What is not among them is over.
    pub fn own(&mut self, standings: &[Standing], now: Instant) {
        for standing in standings {
            let has_room = self.flights.len() < MAX_FLIGHTS;
            // This is the last word about what is whole, and others are sent here after it.
            if standing.part == Part::Holds && has_room {
                let flight = self.flights.entry(standing.digest.clone());
                flight.or_insert_with(|| Flight::new(now));
            }
            if let Some(flight) = self.flights.get_mut(&standing.digest) {
                flight.report(&self.me, standing, now);
            }
        }
        self.own = standings
            .iter()
            .filter(|standing| standing.part != Part::Gone)
            .map(|standing| (standing.digest.clone(), standing.clone()))
            .collect();
    }

    /// This node has just been told to take part, and will say how that stands at its next report. Others may be sent here
    /// before that: of a thousand who begin at once most are.
    pub fn takes_part(&mut self, wish: &Wish, advice: &Advice) {
        let part = match advice {
            Advice::Lead { lease } => Part::Leads {
                lease: *lease,
                is_queued: false,
            },
            Advice::Follow { parent, .. } => Part::Follows {
                parent: parent.id.clone(),
                is_queued: false,
            },
            Advice::Wait { .. } => return,
        };
        let digest = wish.digest.clone();
        self.own
            .entry(digest.clone())
            .or_insert_with(|| Standing {
                digest,
                generation: wish.generation,
                part: Part::Gone,
                offset: wish.offset,
                rate: 0,
                node_rate: 0,
                free: FANOUT,
            })
            .part = part;
    }

    /// Somebody pulls an image; who leads that pull. A 1.x before any 2.x, since it starts at once whatever it is told to;
    /// else whoever came first.
    pub fn image(
        &mut self,
        from: &PeerId,
        image: &str,
        generation: Generation,
        is_busy: bool,
        now: Instant,
    ) -> Option<PeerId> {
        if !self.images.contains_key(image) && self.images.len() >= MAX_IMAGES {
            self.images.retain(|_, pullers| {
                pullers.retain(|puller| puller.is_pulling(now));
                !pullers.is_empty()
            });
            if self.images.len() >= MAX_IMAGES {
                return None;
            }
        }
        let pullers = self.images.entry(image.to_string()).or_default();
        pullers.retain(|puller| puller.is_pulling(now));
        let has_room = pullers.len() < MAX_PULLERS;
        match pullers.iter_mut().find(|puller| puller.id == *from) {
            Some(puller) => {
                puller.heard = now;
                if is_busy {
                    puller.busy = now;
                }
            }
            None if has_room => pullers.push(Puller {
                id: from.clone(),
                generation,
                since: now,
                heard: now,
                busy: now,
            }),
            None => {}
        }
        let at_work = pullers.iter().filter(|puller| puller.is_at_work(now));
        at_work
            .min_by_key(|puller| (puller.generation == Generation::Two, puller.since))
            .map(|puller| puller.id.clone())
    }

    /// Whether anybody who matters is known to take part in a flight: for others who are asked about it for the first time.
    pub fn opinion(&mut self, digest: &Digest, now: Instant) -> Vec<(Peer, Standing)> {
        /// Leaders and their nearest: enough to find everybody else.
        const ENOUGH: usize = 16;
        self.forget(digest, now);
        let Some(flight) = self.flights.get(digest) else {
            return Vec::new();
        };
        let roots = flight
            .entries
            .iter()
            .filter(|entry| entry.is_leading(now) || entry.is_holding(now));
        let standing = |entry: &Entry| {
            let part = match &entry.role {
                Role::Leads {
                    lease, is_queued, ..
                } => Part::Leads {
                    lease: *lease,
                    is_queued: *is_queued,
                },
                _ => Part::Holds,
            };
            Standing {
                digest: digest.clone(),
                generation: entry.generation,
                part,
                offset: entry.offset,
                rate: entry.rate,
                node_rate: entry.node_rate,
                free: flight.room(entry, now),
            }
        };
        roots
            .take(ENOUGH)
            .map(|entry| (entry.node.clone(), standing(entry)))
            .collect()
    }

    /// Drops what is over: of one flight always, of all of them now and then.
    fn forget(&mut self, digest: &Digest, now: Instant) {
        if let Some(flight) = self.flights.get_mut(digest) {
            flight.forget(now);
        }
        if now.saturating_duration_since(self.swept) >= SWEEP {
            self.swept = now;
            self.flights.retain(|_, flight| {
                flight.forget(now);
                !flight.is_over(now)
            });
        }
        if self.flights.len() >= MAX_FLIGHTS && !self.flights.contains_key(digest) {
            let oldest = self.flights.iter().min_by_key(|(_, f)| f.last_heard());
            if let Some(oldest) = oldest.map(|(digest, _)| digest.clone()) {
                self.flights.remove(&oldest);
            }
        }
    }
}

impl Puller {
    fn is_pulling(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.heard) < PULLING
    }

    fn is_at_work(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.busy) < IDLE
            && now.saturating_duration_since(self.heard) < IDLE
    }
}

/// A number for each node, another for each question.
fn chance(seed: u32) -> impl Fn(&PeerId) -> u32 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    move |id| {
        let mut hasher = DefaultHasher::new();
        (seed, id).hash(&mut hasher);
        hasher.finish() as u32
    }
}

/// Whoever has room; for one that there is no place for, whoever may know one who has; else the one with the least to do.
///
/// Whoever is sent to somebody's table is placed by that one alone: if this one gave the same room away, too, nobody
/// would get more than half of it.
fn follow_somebody(
    flight: &mut Flight,
    (from, has_place): (&Peer, bool),
    me: &PeerId,
    now: Instant,
    seed: u32,
) -> Said {
    if has_place && let Some((parent, _)) = flight.parent_for(from, true, now, chance(seed)) {
        let id = parent.node.id.clone();
        return Said::Advice(follow(flight, &from.id, &id, has_place, now));
    }
    if (!has_place || flight.entries.len() >= MAX_ENTRIES)
        && let Some(id) = flight.deputy(from, me, now)
        && let Some(entry) = flight.entry_mut(&id)
    {
        entry.descended += 1;
        return Said::Descend(entry.node.clone());
    }
    let any = flight.parent_for(from, false, now, chance(seed));
    match any.map(|(parent, _)| parent.node.id.clone()) {
        Some(id) => Said::Advice(follow(flight, &from.id, &id, has_place, now)),
        // Everybody has failed this asker lately, or is behind it.
        None => Said::Advice(Advice::Wait {
            pause: 2 * PAUSE,
            is_queued: false,
        }),
    }
}

fn follow(
    flight: &mut Flight,
    child: &PeerId,
    parent: &PeerId,
    has_place: bool,
    now: Instant,
) -> Advice {
    let is_queued = flight.leaders(now).any(|leader| {
        matches!(
            leader.role,
            Role::Leads {
                is_queued: true,
                ..
            }
        )
    });
    let depth = flight.depth(parent, now).unwrap_or(0);
    let peer = flight.entry_mut(parent).map(|entry| {
        if !has_place {
            entry.promise();
        }
        entry.node.clone()
    });
    if has_place && let Some(entry) = flight.entry_mut(child) {
        entry.follows(parent, now);
    }
    match peer {
        Some(parent) => Advice::Follow {
            parent,
            depth,
            is_queued,
        },
        None => Advice::Wait {
            pause: PAUSE,
            is_queued,
        },
    }
}

#[cfg(test)]
mod tests;
