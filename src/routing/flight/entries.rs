//! One flight: everybody who is getting one content now, as its meeting point knows them. Pure.

use std::time::Duration;

use tokio::time::Instant;

use crate::inflight::uplink::FANOUT;
use crate::routing::rendezvous::{Doubt, Generation, Part, Progress, Standing, Wish};
use crate::routing::{Peer, PeerId};

/// Who takes part is heard of four times a second; after five losses it is taken for dead.
pub const LIVE: Duration = Duration::from_millis(1250);
/// From a 404 to the first word about the ingest that follows it: containerd makes it before it asks the registry, and
/// 2.x makes them all at once.
const START: Duration = Duration::from_millis(1200);
/// A report may have been written before its node heard whom to follow now: taken at its word, two who change places would
/// be sent to one another. The next one, a quarter of a second later, knows.
const ON_ITS_WAY: Duration = Duration::from_millis(250);
/// An asker comes back within 0.8 s, or its request is over.
const ASKING: Duration = Duration::from_secs(2);
/// Its records have reached the DHT long before.
const HOLDING: Duration = Duration::from_secs(60);
/// A child that could not take from a parent does not get the same one again at once.
const BAD: Duration = Duration::from_secs(4);
/// Whoever sent wrong bytes is nobody's parent for as long as it takes an operator to look.
const CORRUPT: Duration = Duration::from_secs(600);
/// Further ahead than this and somebody should succeed a leader rather than one who is behind: containerd writes, and
/// so everybody grows, in steps of 1 MiB.
const STEP: u64 = 1 << 20;
/// Whoever leads beside others has shown by then how fast the registry is to it: a rate is that of a second.
const PROOF: Duration = Duration::from_millis(1500);
/// So many may begin to lead beside others before these have shown anything: where the registry is full, each takes from
/// those whom everybody follows. With eight instead of one, 1,000 nodes that went through a full registry took 66 s and not
/// 18 (simulated).
const FREELY: usize = 1;
/// So far from the root a second child of somebody comes after the first of everybody: where links are full, as they are
/// when the registry is faster than the nodes, who sends each byte once keeps up, and of two children each gets half. Eight
/// nodes behind links of 50 MB/s were done after 10.6 s with one copy, 11.9 s and 7.3 copies without this (simulated; the
/// bound is 10 s). A step costs the time of 1 MiB: with 16 steps instead of 8 the first byte of 1,000 nodes took up to 2.9 s
/// instead of 1.5.
const CHAIN: u32 = 8;
/// Participants that one meeting point keeps in mind for one content; who comes later is sent to one of them. Trees of
/// 64 are placed with all knowledge there is, and 5,000 pullers do not hang on one node.
pub const MAX_ENTRIES: usize = 64;

#[derive(Clone, Debug)]
pub struct Entry {
    pub node: Peer,
    pub role: Role,
    pub generation: Generation,
    pub offset: u64,
    pub rate: u64,
    pub node_rate: u64,
    /// Children that it can still take, as it said when it was last heard of.
    free: u32,
    /// Children sent to it since then that have no entry here.
    promised: u32,
    /// Askers sent to it because there was no place here.
    pub descended: u32,
    /// When it first asked: who has waited longest may lead first.
    pub joined: Instant,
    /// The byte that it asked for last, and since when it has been asking for it.
    asked: u64,
    asking_since: Instant,
    /// When it was last told whom to follow.
    told: Option<Instant>,
    /// Its containerd had it in its queue since then, and somebody else may be where it waited.
    was_queued: bool,
    /// When it last said that it got something, or that its containerd would come to it.
    sign: Option<Instant>,
    pub heard: Instant,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Role {
    /// Waits for advice, or for the first byte from a parent.
    Asks,
    Leads {
        lease: u64,
        granted: Instant,
        is_queued: bool,
    },
    Follows {
        parent: PeerId,
        is_queued: bool,
    },
    /// From somebody who has it whole.
    Takes,
    Holds,
}

#[derive(Debug)]
pub struct Flight {
    pub born: Instant,
    pub entries: Vec<Entry>,
    /// (child, parent, until): the child got nothing from the parent.
    bad: Vec<(PeerId, PeerId, Instant)>,
    /// (child, parent, until): sent wrong bytes, which counts for others by the word of two.
    corrupt: Vec<(PeerId, PeerId, Instant)>,
    /// (child, parent, until): had too many others already, which counts for others by the word of two.
    busy: Vec<(PeerId, PeerId, Instant)>,
    /// Since when nobody who leads has got anything. None while nobody leads.
    quiet_since: Option<Instant>,
    /// Since when somebody further ahead than an asker has been waited for.
    heir_since: Option<Instant>,
    /// Bytes per second that the registry gave to who led alone, as last heard.
    alone: u64,
}

impl Entry {
    fn new(node: Peer, generation: Generation, now: Instant) -> Self {
        Self {
            node,
            role: Role::Asks,
            generation,
            offset: 0,
            rate: 0,
            node_rate: 0,
            free: FANOUT,
            promised: 0,
            descended: 0,
            joined: now,
            asked: 0,
            asking_since: now,
            told: None,
            was_queued: false,
            sign: None,
            heard: now,
        }
    }

    fn id(&self) -> &PeerId {
        &self.node.id
    }

    /// What was heard of it lately still holds.
    pub fn is_live(&self, now: Instant) -> bool {
        let memory = match self.role {
            Role::Asks => ASKING,
            Role::Leads { granted, .. } if now - granted < START => return true,
            Role::Leads { .. } | Role::Follows { .. } | Role::Takes => LIVE,
            Role::Holds => HOLDING,
        };
        now.saturating_duration_since(self.heard) < memory
    }

    pub fn is_leading(&self, now: Instant) -> bool {
        matches!(self.role, Role::Leads { .. }) && self.is_live(now)
    }

    pub fn is_holding(&self, now: Instant) -> bool {
        self.role == Role::Holds && self.is_live(now)
    }

    pub fn is_taking(&self, now: Instant) -> bool {
        self.role == Role::Takes && self.is_live(now)
    }

    /// It needs nobody of this flight to get on, or has it.
    fn is_root(&self, now: Instant) -> bool {
        self.is_leading(now) || self.is_taking(now) || self.is_holding(now)
    }

    /// It follows, and has no request in hand: nobody gets anything by it now.
    fn is_queued(&self) -> bool {
        matches!(
            self.role,
            Role::Follows {
                is_queued: true,
                ..
            }
        )
    }

    /// It has just been told to follow `parent`.
    pub fn follows(&mut self, parent: &PeerId, now: Instant) {
        self.told = Some(now);
        self.was_queued = false;
        self.role = Role::Follows {
            parent: parent.clone(),
            is_queued: false,
        };
    }

    fn is_child(&self, parent: &PeerId, now: Instant) -> bool {
        self.is_live(now) && self.parent() == Some(parent) && !self.is_queued()
    }

    pub fn promise(&mut self) {
        self.promised += 1;
    }

    /// Whether it has, or will soon have, bytes from `offset` on.
    fn helps(&self, offset: u64) -> bool {
        /// As long as the first in the line waits.
        const SOON: u64 = 2;
        let soon = self.rate.saturating_mul(SOON).max(STEP);
        self.offset.saturating_add(soon) >= offset
    }

    fn parent(&self) -> Option<&PeerId> {
        match &self.role {
            Role::Follows { parent, .. } => Some(parent),
            _ => None,
        }
    }
}

impl Flight {
    pub fn new(now: Instant) -> Self {
        Self {
            born: now,
            entries: Vec::new(),
            bad: Vec::new(),
            corrupt: Vec::new(),
            busy: Vec::new(),
            quiet_since: None,
            heir_since: None,
            alone: 0,
        }
    }

    pub fn entry(&self, id: &PeerId) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.id() == id)
    }

    pub fn entry_mut(&mut self, id: &PeerId) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.node.id == *id)
    }

    /// Whether nothing is left that anybody could use.
    pub fn is_over(&self, now: Instant) -> bool {
        self.entries.iter().all(|entry| !entry.is_live(now))
            && now.saturating_duration_since(self.born) > ASKING
    }

    pub fn last_heard(&self) -> Instant {
        let heard = self.entries.iter().map(|entry| entry.heard);
        heard.max().unwrap_or(self.born)
    }

    pub fn forget(&mut self, now: Instant) {
        self.entries.retain(|entry| entry.is_live(now));
        self.bad.retain(|(_, _, until)| now < *until);
        self.corrupt.retain(|(_, _, until)| now < *until);
        self.busy.retain(|(_, _, until)| now < *until);
        if !self.is_led(now) {
            self.quiet_since = None;
        }
    }

    /// Someone asks: it is here and wants bytes from `wish.offset` on. False where there is no place for it.
    pub fn asks(&mut self, from: &Peer, wish: &Wish, now: Instant) -> bool {
        // Also of those who have no place: they would be sent to the same one again.
        for (parent, doubt) in &wish.doubts {
            self.doubts(&from.id, parent, *doubt, now);
        }
        if self.entry(&from.id).is_none() {
            if self.entries.len() >= MAX_ENTRIES {
                return false;
            }
            self.entries
                .push(Entry::new(from.clone(), wish.generation, now));
        }
        if let Some(entry) = self.entry_mut(&from.id) {
            entry.heard = now;
            entry.node = from.clone();
            if let Role::Follows { is_queued, .. } = &mut entry.role {
                entry.was_queued |= std::mem::take(is_queued);
            }
            if entry.asked != wish.offset || entry.role == Role::Holds {
                entry.asked = wish.offset;
                entry.asking_since = now;
            }
            // A pull may begin anew with less than there was.
            entry.offset = wish.offset;
            if matches!(entry.role, Role::Holds | Role::Takes) {
                entry.role = Role::Asks;
                entry.joined = now;
            }
        }
        true
    }

    /// A child's word costs its parent that child and nothing more: what the parent says of itself, or its silence, decides
    /// over the rest. Two who say that bytes were wrong, or that it is busy, are believed: two as connections prove it, not
    /// one who says so twice.
    fn doubts(&mut self, child: &PeerId, parent: &PeerId, doubt: Doubt, now: Instant) {
        /// A few times the entries: more is no child's honest word.
        const MAX_DOUBTS: usize = 4 * MAX_ENTRIES;
        let (list, until) = match doubt {
            Doubt::Corrupt => (&mut self.corrupt, now + CORRUPT),
            // It said so itself, and will say when that has changed.
            Doubt::Busy => (&mut self.busy, now + BAD / 4),
            // It grows.
            Doubt::Behind => (&mut self.bad, now + BAD / 4),
            _ => (&mut self.bad, now + BAD),
        };
        list.retain(|(c, p, until)| now < *until && (c, p) != (child, parent));
        if list.len() >= MAX_DOUBTS {
            list.remove(0);
        }
        list.push((child.clone(), parent.clone(), until));
    }

    /// A child leaves a parent that brings too little: it should not be sent back there at once.
    pub fn leaves(&mut self, child: &PeerId, now: Instant) {
        let parent = self.entry(child).and_then(Entry::parent).cloned();
        if let Some(parent) = parent {
            self.doubts(child, &parent, Doubt::Silent, now);
        }
    }

    fn is_bad(&self, child: &PeerId, parent: &PeerId, now: Instant) -> bool {
        [&self.bad, &self.corrupt, &self.busy]
            .iter()
            .any(|said| accusers(said, parent, now).any(|accuser| accuser == child))
            || accusers(&self.corrupt, parent, now).count() > 1
    }

    /// What a node says of itself.
    pub fn report(&mut self, from: &Peer, standing: &Standing, now: Instant) {
        if standing.part == Part::Gone {
            self.entries.retain(|entry| *entry.id() != from.id);
            if !self.is_led(now) {
                self.quiet_since = None;
            }
            return;
        }
        if self.entry(&from.id).is_none() {
            if self.entries.len() >= MAX_ENTRIES {
                return;
            }
            self.entries
                .push(Entry::new(from.clone(), standing.generation, now));
        }
        let Some(entry) = self.entry_mut(&from.id) else {
            return;
        };
        let has_grown = standing.offset > entry.offset;
        if entry.node.registry.is_empty() {
            entry.node = from.clone();
        }
        entry.heard = now;
        entry.offset = standing.offset;
        entry.rate = standing.rate;
        entry.node_rate = standing.node_rate;
        let is_late = entry.told.is_some_and(|at| now - at < ON_ITS_WAY);
        entry.free = standing.free;
        entry.promised = 0;
        let mut is_sign = false;
        entry.role = match &standing.part {
            Part::Leads { lease, is_queued } => {
                let granted = match entry.role {
                    Role::Leads {
                        granted, lease: l, ..
                    } if l == *lease => granted,
                    _ => now,
                };
                // A queued one is not late: its containerd is at work, and will come to it.
                is_sign = has_grown || *is_queued;
                Role::Leads {
                    lease: *lease,
                    granted,
                    is_queued: *is_queued,
                }
            }
            Part::Follows { parent, is_queued } => {
                let parent = entry.parent().filter(|_| is_late).unwrap_or(parent);
                Role::Follows {
                    parent: parent.clone(),
                    is_queued: *is_queued && !is_late,
                }
            }
            Part::Takes => {
                is_sign = has_grown;
                Role::Takes
            }
            Part::Holds => Role::Holds,
            Part::Gone => return,
        };
        let is_leading = matches!(standing.part, Part::Leads { .. });
        if is_sign {
            let rate = entry.rate;
            entry.sign = Some(now);
            if is_leading {
                self.quiet_since = Some(now);
            }
            if is_leading && self.leaders(now).count() == 1 {
                self.alone = rate;
            }
        } else if is_leading {
            self.quiet_since.get_or_insert(now);
        }
    }

    /// Those who lead, and are alive.
    pub fn leaders(&self, now: Instant) -> impl Iterator<Item = &Entry> {
        self.entries
            .iter()
            .filter(move |entry| entry.is_leading(now))
    }

    pub fn is_led(&self, now: Instant) -> bool {
        self.leaders(now).next().is_some()
    }

    /// How far the furthest of those who lead is; where nobody does, of those who take it from one who has it.
    pub fn progress(&self, now: Instant) -> Progress {
        let is_led = self.is_led(now);
        let first = |entry: &&Entry| match is_led {
            true => entry.is_leading(now),
            false => entry.is_taking(now),
        };
        let firsts = || self.entries.iter().filter(first);
        Progress {
            offset: firsts().map(|entry| entry.offset).max().unwrap_or(0),
            rate: firsts().map(|entry| entry.rate).max().unwrap_or(0),
            node_rate: firsts().map(|entry| entry.node_rate).max().unwrap_or(0),
        }
    }

    pub fn grant(&mut self, to: &PeerId, lease: u64, now: Instant) {
        let is_first = !self.is_led(now);
        if let Some(entry) = self.entry_mut(to) {
            entry.role = Role::Leads {
                lease,
                granted: now,
                is_queued: false,
            };
            // It may lead every layer of the image: until it says what its uplink carries, one child of each is enough.
            entry.free = entry.free.min(1);
        }
        // Whoever leads beside one that is silent does not make the others wait longer.
        if is_first {
            self.quiet_since = Some(now);
        }
        self.quiet_since.get_or_insert(now);
        self.heir_since = None;
    }

    /// Whether the registry has enough for `asker` beside those who lead. Each that is added takes from the others: 1,000
    /// nodes that all went to a registry of ten times their links were later than without it (simulated). So after a few
    /// only as many at once as have proved that they get clearly more than the asker does.
    pub fn may_lead_too(&self, asker: &PeerId, now: Instant) -> bool {
        let mine = self.entry(asker).map_or(0, |entry| entry.rate);
        let (mut proven, mut fresh, mut sum) = (0, 0, 0);
        for entry in self.leaders(now) {
            match entry.role {
                Role::Leads { granted, .. } if now - granted < PROOF => fresh += 1,
                _ if entry.rate / 4 * 3 <= mine => return false,
                _ => {
                    proven += 1;
                    sum += entry.rate;
                }
            }
        }
        // A full registry gives two half of what it gave to one.
        let is_full = proven > 1 && sum / proven as u64 <= self.alone / 3 * 2;
        // Where nobody leads any more the registry has all to give.
        !is_full && fresh < FREELY.max(proven)
    }

    /// How long nobody who leads has got anything that would help `asker`.
    ///
    /// One that is behind it helps if it will pass by soon; if none does, it is as long as the asker has been asking.
    pub fn quiet(&self, asker: &PeerId, now: Instant) -> Duration {
        let since = |at: Instant| now.saturating_duration_since(at);
        let offset = self.entry(asker).map_or(0, |entry| entry.offset);
        let asking = self.asking(asker, now);
        let sources = self
            .entries
            .iter()
            .filter(|entry| entry.is_leading(now) || entry.is_taking(now) && entry.id() != asker);
        let mut helpers = sources.filter(|l| l.helps(offset)).peekable();
        if helpers.peek().is_none() {
            return asking;
        }
        let last_sign = helpers.filter_map(|leader| leader.sign).max();
        let quiet = last_sign.or(self.quiet_since).map_or(asking, since);
        // Who has just come takes its place in the line, however long the silence has been.
        quiet.min(asking)
    }

    /// How long `asker` has been asking for the same byte.
    pub fn asking(&self, asker: &PeerId, now: Instant) -> Duration {
        let since = self.entry(asker).map_or(now, |entry| entry.asking_since);
        now.saturating_duration_since(since)
    }

    /// Whether somebody holds it who has not failed `asker` lately.
    pub fn is_held_for(&self, asker: &PeerId, now: Instant) -> bool {
        let mut holders = self.entries.iter().filter(|entry| entry.is_holding(now));
        holders.any(|holder| !self.is_bad(asker, holder.id(), now))
    }

    /// Whether somebody takes it from one who has it, and has not failed `asker` lately.
    pub fn is_taken_for(&self, asker: &PeerId, now: Instant) -> bool {
        let mut takers = self.entries.iter().filter(|entry| entry.is_taking(now));
        takers.any(|taker| taker.id() != asker && !self.is_bad(asker, taker.id(), now))
    }

    /// The place of `asker` in the line of those who wait: 1 is the first. Before it are those who lead beside the first
    /// leader and help, then who is further ahead, then who has waited longer; who has no entry comes after all who have.
    pub fn rank(&self, asker: &PeerId, now: Instant) -> u32 {
        let Some(me) = self.entry(asker) else {
            return 1 + self.entries.len() as u32;
        };
        let before = self.entries.iter().filter(|entry| {
            let is_waiting = matches!(entry.role, Role::Asks | Role::Follows { .. });
            let is_ahead = entry.offset > me.offset.saturating_add(STEP);
            let is_behind = me.offset > entry.offset.saturating_add(STEP);
            let came_first = (entry.joined, entry.id()) < (me.joined, me.id());
            is_waiting && entry.is_live(now) && (is_ahead || !is_behind && came_first)
        });
        let helpers = self.leaders(now).filter(|leader| leader.helps(me.offset));
        let others = helpers.count().saturating_sub(1);
        1 + (before.count() + others) as u32
    }

    /// Somebody alive who is further than `asker` by more than a step and should lead rather than it; waited for no longer
    /// than `patience` in all.
    pub fn has_heir(&mut self, asker: &PeerId, patience: Duration, now: Instant) -> bool {
        let offset = self.entry(asker).map_or(0, |entry| entry.offset);
        let is_ahead = self.entries.iter().any(|entry| {
            entry.id() != asker
                && matches!(entry.role, Role::Asks | Role::Follows { .. })
                && entry.is_live(now)
                && entry.offset > offset.saturating_add(STEP)
        });
        if !is_ahead {
            return false;
        }
        let since = *self.heir_since.get_or_insert(now);
        now.saturating_duration_since(since) < patience
    }

    /// Steps from `id` to who has it or gets it from the registry. None where there is no way: an orphan, or a circle.
    pub fn depth(&self, id: &PeerId, now: Instant) -> Option<u32> {
        let mut at = id;
        for steps in 0..=self.entries.len() as u32 {
            // Its parent is not known here: it is somebody else's child.
            let Some(entry) = self.entry(at) else {
                return (steps > 0).then_some(steps);
            };
            if entry.is_root(now) {
                return Some(steps);
            }
            at = entry.parent().filter(|_| entry.is_live(now))?;
        }
        None
    }

    fn is_below(&self, id: &PeerId, top: &PeerId) -> bool {
        let mut at = Some(id);
        for _ in 0..=self.entries.len() {
            match at {
                Some(id) if id == top => return true,
                Some(id) => at = self.entry(id).and_then(Entry::parent),
                None => return false,
            }
        }
        // A circle: whoever is in it is nobody's parent.
        true
    }

    /// Who takes it from `id`, or waits there for a first byte. Not those whose containerd has it in its queue: of those that came
    /// again before them two became children of who led, whose link then carried each byte twice (measured).
    pub fn children(&self, id: &PeerId, now: Instant) -> u32 {
        let children = self.entries.iter().filter(|it| it.is_child(id, now));
        children.count() as u32
    }

    /// The same without `asker`, whose own place there is taken by nobody else.
    fn others(&self, id: &PeerId, asker: &PeerId, now: Instant) -> u32 {
        let is_there = |entry: &Entry| entry.is_child(id, now);
        self.children(id, now) - u32::from(self.entry(asker).is_some_and(is_there))
    }

    /// Children that may be sent to `entry` now: as many as it said, and no more than the fan-out with those who are known
    /// to have been sent there. It reports before they have come.
    pub fn room(&self, entry: &Entry, now: Instant) -> u32 {
        let known = self.children(entry.id(), now);
        self.room_beside(entry, known, now)
    }

    fn room_beside(&self, entry: &Entry, known: u32, now: Instant) -> u32 {
        // Whoever has it all says so once, and those who took it meanwhile are done.
        let is_old = now.saturating_duration_since(entry.heard) > ASKING;
        let free = match entry.role {
            _ if accusers(&self.busy, entry.id(), now).count() > 1 => 0,
            Role::Holds if is_old => FANOUT,
            _ => entry.free.saturating_sub(entry.promised),
        };
        free.min(FANOUT.saturating_sub(known))
    }

    /// Who is to find a place for `asker` where `me` has none: one who can take children itself before one who cannot, then
    /// who was sent the fewest.
    pub fn deputy(&self, asker: &Peer, me: &PeerId, now: Instant) -> Option<PeerId> {
        let able = self.entries.iter().filter(|entry| {
            let has_table = matches!(entry.role, Role::Follows { .. } | Role::Takes | Role::Holds);
            *entry.id() != asker.id
                && entry.id() != me
                && has_table
                && entry.is_live(now)
                && !self.is_bad(&asker.id, entry.id(), now)
        });
        let chosen = able.min_by_key(|entry| {
            let is_full = self.room(entry, now) == 0;
            (
                is_full,
                entry.descended,
                entry.node.is_far_from(asker.zone.as_deref()),
            )
        });
        chosen.map(|entry| entry.id().clone())
    }

    /// Whom `asker` should take it from; `chance` decides among equals. With `has_room`, only those who can take more.
    ///
    /// Complete holders before growing ones, the same zone before others, near the root before far from it, few children
    /// before many. Whoever is behind the asker is of no use, unless it leads and will pass by.
    pub fn parent_for(
        &self,
        asker: &Peer,
        has_room: bool,
        now: Instant,
        chance: impl Fn(&PeerId) -> u32,
    ) -> Option<(&Entry, u32)> {
        let offset = self.entry(&asker.id).map_or(0, |entry| entry.offset);
        let usable = self.entries.iter().filter_map(|entry| {
            let id = entry.id();
            if *id == asker.id
                || entry.role == Role::Asks
                // It has not said where it is, or nowhere where a node can be.
                || entry.node.registry.is_empty()
                || !entry.is_live(now)
                || entry.is_queued()
                || self.is_bad(&asker.id, id, now)
                || self.is_below(id, &asker.id)
            {
                return None;
            }
            // Who comes back because its parent has no byte yet is not to be sent to somebody else for being there: of a
            // chain of seven that had waited for 0.8 s two became children of who led, whose link then carried each byte
            // twice (measured).
            let others = self.others(id, &asker.id, now);
            // A parent that has one lagging child of another layer says that there is no room beside the one that waits there for
            // this one: the asker itself, which became a second child of who led (measured).
            let waits_there = self
                .entry(&asker.id)
                .is_some_and(|asker| !asker.was_queued && asker.is_child(id, now));
            let has_place = waits_there && others < FANOUT && entry.role != Role::Holds;
            if has_room && !has_place && self.room_beside(entry, others, now) == 0 {
                return None;
            }
            if entry.offset < offset && !entry.is_root(now) {
                return None;
            }
            Some((entry, self.depth(id, now)?, others))
        });
        let best = usable.min_by_key(|(entry, depth, others)| {
            let is_behind = entry.offset < offset && entry.role != Role::Holds;
            // Where nobody has room the one with the least to do comes first, whole or not: of 1,000 nodes 66 were sent to the
            // only one that had it all (simulated).
            let load = others + entry.promised;
            (
                if has_room { 0 } else { load },
                entry.role != Role::Holds,
                is_behind,
                entry.node.is_far_from(asker.zone.as_deref()),
                *depth > CHAIN || load > 0,
                *depth,
                load,
                chance(entry.id()),
            )
        });
        best.map(|(entry, depth, _)| (entry, depth))
    }
}

/// Who holds something against `parent`: names that connections have proven, each once ([`Flight::doubts`] sees to it).
fn accusers<'a>(
    said: &'a [(PeerId, PeerId, Instant)],
    parent: &'a PeerId,
    now: Instant,
) -> impl Iterator<Item = &'a PeerId> {
    let said = said
        .iter()
        .filter(move |(_, p, until)| p == parent && now < *until);
    said.map(|(child, _, _)| child)
}
