//! Who reads growing layers from this node, and whether there is room for one more.
//!
//! Each reader more halves what the others get once the uplink is full, and a tree of slow readers is slower than the
//! registry. The uplink's capacity is not known; that bytes are there and do not leave is.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::oci::Digest;

/// Readers of one layer at once. With streams of 50 MB/s on uplinks of 100, five nodes pulled an image in 4.7 and 4.8 s
/// with two, in 6.7 and 4.9 s with three (measured). Where the uplink carries less, the lag says so.
pub const FANOUT: u32 = 2;
/// Readers of all layers. containerd downloads three layers at a time: two readers of each, and two of what was complete
/// just now.
const MAX_CHILDREN: u32 = 8;
/// A reader has not shown yet whether the uplink carries it.
pub const FRESH: Duration = Duration::from_millis(500);
/// So many may come at once: one for each layer that containerd downloads. With two for each, the uplink of a node that led
/// a whole image was full twice over before anybody lagged, and TCP starved one of its readers (measured).
pub const MAX_FRESH: u32 = 3;
/// Behind by more than this is behind: containerd writes 1 MiB at a time, and a socket takes up to 4 MiB before it
/// says that it is full, so less tells nothing. In bytes.
const LAG: u64 = 4 << 20;
/// A shorter delay may be a lost packet (TCP needs 200 ms at the least to send it again) or a burst of the registry.
const LAG_TIME: Duration = Duration::from_millis(300);
/// What a rate is taken over: long enough for several writes of 1 MiB at 10 MB/s, short enough to follow a change.
const WINDOW: Duration = Duration::from_secs(1);
/// What is sent within this time is remembered as one number.
const GRAIN: Duration = Duration::from_millis(100);

/// Cloneable; all clones count together.
#[derive(Clone, Debug, Default)]
pub struct Uplink(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    next: u64,
    children: HashMap<u64, Reading>,
    sent: Sent,
}

impl Default for State {
    fn default() -> Self {
        Self {
            next: 0,
            children: HashMap::new(),
            sent: Sent::over(WINDOW),
        }
    }
}

/// How far one child is. Pure: times come in.
#[derive(Clone, Debug)]
pub struct Reading {
    digest: Digest,
    sent: u64,
    available: u64,
    /// When it came.
    since: Instant,
    /// When it was last heard of.
    heard: Instant,
    /// Since when it has been more than [`LAG`] behind.
    behind_since: Option<Instant>,
}

/// One who reads from here, until it is dropped.
#[derive(Debug)]
pub struct Child {
    uplink: Uplink,
    id: u64,
}

impl Uplink {
    pub fn begin(&self, digest: &Digest) -> Child {
        let mut state = self.state();
        let id = state.next;
        state.next += 1;
        let reading = Reading::new(digest.clone(), Instant::now());
        state.children.insert(id, reading);
        Child {
            uplink: self.clone(),
            id,
        }
    }

    /// How many more readers of `digest` may be sent here now.
    pub fn free(&self, digest: &Digest) -> u32 {
        free(self.state().children.values(), digest, Instant::now())
    }

    /// Bytes sent to all children in the second before `now`.
    pub fn rate(&self, now: Instant) -> u64 {
        self.state().sent.rate(now)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Child {
    /// Tells after each chunk how many bytes of what it asked for have been sent to it, and how many are there; both
    /// from the beginning of what it asked for.
    pub fn progress(&self, sent: u64, available: u64) {
        let now = Instant::now();
        let mut state = self.uplink.state();
        let Some(reading) = state.children.get_mut(&self.id) else {
            return;
        };
        let more = sent.saturating_sub(reading.sent);
        reading.progress(sent, available, now);
        state.sent.add(more, now);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.uplink.state().children.remove(&self.id);
    }
}

impl Reading {
    /// One who begins to read `digest`.
    pub fn new(digest: Digest, now: Instant) -> Self {
        Self {
            digest,
            sent: 0,
            available: 0,
            since: now,
            heard: now,
            behind_since: None,
        }
    }

    /// So many bytes of what it asked for have been sent to it, and so many are there.
    pub fn progress(&mut self, sent: u64, available: u64, now: Instant) {
        self.sent = sent;
        self.available = available;
        self.heard = now;
        let is_behind = available.saturating_sub(sent) > LAG;
        self.behind_since = is_behind.then(|| self.behind_since.unwrap_or(now));
    }

    /// Whether it takes nothing of what is there. What has come since it was last heard of is not known.
    fn is_stuck(&self, now: Instant) -> bool {
        self.sent < self.available && is_long(self.heard, now)
    }

    /// Whether bytes are there that the uplink, or the child, does not take: or it came late, and has not caught up yet.
    fn lags(&self, now: Instant) -> bool {
        self.behind_since.is_some_and(|since| is_long(since, now))
    }
}

fn is_long(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) >= LAG_TIME
}

/// How many more readers of `digest` there is room for beside `children`, who read from here now. Pure.
///
/// Who gives each byte once gives no more than it gets: a first reader of a layer is always one that the uplink carries. It
/// has room where others lag, too, as long as each of them is the only one of its layer: one that came late lags until it
/// has caught up, and of those who were turned away for that some became second children of who led, whose link then was
/// full for good (measured).
pub fn free<'a>(children: impl Iterator<Item = &'a Reading>, digest: &Digest, now: Instant) -> u32 {
    let (mut all, mut fresh, mut of_digest) = (0, 0, 0);
    let mut lags = false;
    let mut layers = HashSet::new();
    for child in children {
        if child.is_stuck(now) {
            return 0;
        }
        all += 1;
        fresh += u32::from(now.saturating_duration_since(child.since) < FRESH);
        lags |= child.lags(now);
        of_digest += u32::from(child.digest == *digest);
        layers.insert(&child.digest);
    }
    let first = u32::from(of_digest == 0);
    let gives_twice = all > layers.len() as u32;
    let more = match (lags, gives_twice) {
        (true, true) => 0,
        (true, false) => first,
        (false, _) => MAX_FRESH.saturating_sub(fresh).max(first),
    };
    FANOUT
        .saturating_sub(of_digest)
        .min(MAX_CHILDREN.saturating_sub(all))
        .min(more)
}

/// What was sent lately. Pure: times come in.
#[derive(Debug)]
pub struct Sent {
    window: Duration,
    /// Oldest first.
    parts: VecDeque<(Instant, u64)>,
}

impl Sent {
    /// Rates are taken over so long.
    pub fn over(window: Duration) -> Self {
        Self {
            window,
            parts: VecDeque::new(),
        }
    }

    pub fn add(&mut self, bytes: u64, now: Instant) {
        while let Some((at, _)) = self.parts.front()
            && now.saturating_duration_since(*at) >= self.window
        {
            self.parts.pop_front();
        }
        match self.parts.back_mut() {
            Some((at, sum)) if now.saturating_duration_since(*at) < GRAIN => *sum += bytes,
            _ => self.parts.push_back((now, bytes)),
        }
    }

    /// Bytes per second until `now`.
    pub fn rate(&self, now: Instant) -> u64 {
        let is_recent = |at: &Instant| now.saturating_duration_since(*at) < self.window;
        let recent = self.parts.iter().filter(|(at, _)| is_recent(at));
        let bytes: u64 = recent.map(|(_, bytes)| bytes).sum();
        (bytes as f64 / self.window.as_secs_f64()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn digest(name: &str) -> Digest {
        Digest::sha256(name.as_bytes())
    }

    /// A child of `name` whose reports came so many ms after the beginning.
    fn child(begin: Instant, name: &str, reports: &[(u64, u64, u64)]) -> Reading {
        let mut child = Reading::new(digest(name), begin);
        for (at, sent, available) in reports {
            child.progress(*sent, *available, begin + Duration::from_millis(*at));
        }
        child
    }

    #[test]
    fn there_is_room_unless_bytes_are_there_that_nobody_takes() {
        let begin = Instant::now();
        let new = |name| child(begin, name, &[]);
        let even = |name| child(begin, name, &[(900, 50 * MIB, 50 * MIB)]);
        // At 1 s, who was more than 4 MiB behind for how long?
        for (case, children, expected) in [
            ("nobody reads", vec![], 2),
            ("one does", vec![even("a")], 1),
            ("two do", vec![even("a"), new("a")], 0),
            (
                "others read something else",
                vec![even("b"), even("b"), new("c")],
                2,
            ),
            (
                "almost too many in all",
                (0..7).map(|_| even("b")).collect(),
                1,
            ),
            (
                "three that have just come, none of them for this",
                ["b", "c", "d"]
                    .map(|name| child(begin + Duration::from_millis(600), name, &[]))
                    .into(),
                1,
            ),
            (
                "three that have just come, one of them for this",
                ["a", "c", "d"]
                    .map(|name| child(begin + Duration::from_millis(600), name, &[]))
                    .into(),
                0,
            ),
            ("too many in all", (0..8).map(|_| even("b")).collect(), 0),
            (
                "behind for 300 ms",
                vec![child(begin, "a", &[(700, 0, 5 * MIB), (990, MIB, 6 * MIB)])],
                0,
            ),
            (
                "behind for 300 ms, the only one of another",
                vec![child(begin, "b", &[(700, 0, 5 * MIB), (990, MIB, 6 * MIB)])],
                1,
            ),
            (
                "behind for 300 ms, one of two",
                vec![
                    child(begin, "b", &[(700, 0, 5 * MIB), (990, MIB, 6 * MIB)]),
                    even("b"),
                ],
                0,
            ),
            (
                "behind for 300 ms, and another is read twice",
                vec![
                    child(begin, "b", &[(700, 0, 5 * MIB), (990, MIB, 6 * MIB)]),
                    even("c"),
                    even("c"),
                ],
                0,
            ),
            (
                "behind for less",
                vec![child(begin, "b", &[(701, 0, 5 * MIB), (990, MIB, 6 * MIB)])],
                2,
            ),
            (
                "behind by 4 MiB and no more",
                vec![child(begin, "b", &[(100, 0, 4 * MIB), (990, MIB, 5 * MIB)])],
                2,
            ),
            (
                "behind, and again after it had caught up",
                vec![child(
                    begin,
                    "b",
                    &[
                        (100, 0, 5 * MIB),
                        (700, 6 * MIB, 6 * MIB),
                        (990, 6 * MIB, 11 * MIB),
                    ],
                )],
                2,
            ),
            (
                "takes nothing more, however little is there",
                vec![child(begin, "b", &[(700, MIB, MIB + 1)])],
                0,
            ),
            (
                "has everything that there is, for long",
                vec![child(begin, "b", &[(10, MIB, MIB)])],
                2,
            ),
            (
                "one of many takes nothing",
                vec![even("b"), child(begin, "c", &[(10, 0, 9 * MIB)])],
                0,
            ),
        ] {
            let now = begin + Duration::from_secs(1);

            let free = free(children.iter(), &digest("a"), now);

            assert_eq!(free, expected, "{case}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn children_count_until_they_are_dropped_and_lag_by_the_clock() {
        let uplink = Uplink::default();
        let (a, b) = (digest("a"), digest("b"));
        let (one, two) = (uplink.begin(&a), uplink.clone().begin(&a));
        assert_eq!((uplink.free(&a), uplink.free(&b)), (0, 1));
        tokio::time::advance(FRESH).await;
        for child in [&one, &two] {
            child.progress(MIB, MIB);
        }
        assert_eq!((uplink.free(&a), uplink.free(&b)), (0, 2));
        drop(two);
        assert_eq!(uplink.free(&a), 1);

        one.progress(0, 10 * MIB);
        assert_eq!(uplink.free(&b), 2);
        tokio::time::advance(LAG_TIME).await;
        assert_eq!(uplink.free(&b), 0);
        one.progress(10 * MIB, 10 * MIB);

        assert_eq!((uplink.free(&a), uplink.free(&b)), (1, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_that_of_the_last_second() {
        let uplink = Uplink::default();
        let (one, two) = (uplink.begin(&digest("a")), uplink.begin(&digest("b")));
        assert_eq!(uplink.rate(Instant::now()), 0);
        for step in 1..=50 {
            tokio::time::advance(Duration::from_millis(50)).await;
            one.progress(step * 1000, step * 1000);
            two.progress(step * 500, step * 500);
        }

        let rate = uplink.rate(Instant::now());

        assert!((28_000..=33_000).contains(&rate), "{rate} instead of 30000");
        drop((one, two));
        assert_eq!(uplink.rate(Instant::now()), rate, "what was sent was sent");
        tokio::time::advance(WINDOW).await;
        assert_eq!(uplink.rate(Instant::now()), 0);
    }
}
