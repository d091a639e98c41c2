//! Whether what a node takes is what it took before: pure, and tried on series that leak and on series that do not.
//!
//! Where a number can be known it is compared with that; where it cannot, with the node's first plateau, which is after the
//! warm-up, with the same content and no request under way.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::Serialize;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// What the allocator keeps of a burst is not given back, and which of its arenas a burst falls into is chance. A body takes up
/// to 1 MiB of buffers, and a handful are under way at once; 2 MiB are the most that was seen.
pub const MEMORY: u64 = 8 * MIB;
/// A trend that has brought no more than this is not told from that.
pub const TREND: f64 = 3.0 * MIB as f64;
/// With fewer points half of them are no series.
const POINTS: usize = 8;
/// What the allocator has not given back yet is up to 5 MiB at one plateau and nothing at the next, while what is in use stays
/// the same to a few KiB (counted in an allocator of its own: 3.0 to 3.3 MiB, of 8 to 13). Of so many in a row the least is
/// nearest to it.
const LEAST_OF: usize = 4;
/// Standard deviations by which a trend stands out from what chance makes of as many points: once in 700 series.
const CERTAIN: f64 = 3.0;
/// Reconnections to containerd: a channel that is being replaced.
const DESCRIPTORS: usize = 2;
/// A timer of the router's or a listing may be at work at the moment of the look.
const TASKS: i64 = 3;
/// Threads for disk reads end when they have been idle for ten seconds; a listing every now and then keeps some.
const THREADS: u64 = 4;
/// libp2p's router allows so many connections of one peer.
const PER_PEER: usize = 4;

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Kind {
    Listener,
    /// Between routers.
    Router,
    /// Clients of the registry port.
    Client,
    /// Of the metrics port.
    Admin,
    /// This node's requests to others' registry ports.
    ToPeer,
    /// UDP, and TCP of no known port.
    OtherSocket,
    /// Unix sockets: containerd.
    Unix,
    /// Blobs and what is being written.
    Content,
    /// A file that has been deleted.
    Deleted,
    File,
    /// epoll, eventfd, inotify, pipes.
    Kernel,
}

/// One look at one Peili.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Sample {
    pub pid: u32,
    pub resident: u64,
    /// Of that, what is of no file: the heap, and stacks.
    pub anonymous: u64,
    pub threads: u64,
    pub descriptors: BTreeMap<Kind, usize>,
    /// Sockets whose other side has closed, and which we have not.
    pub close_wait: usize,
    /// Of the runtime.
    pub tasks: i64,
    /// Of others, that it keeps.
    pub records: u64,
    /// Connected peers.
    pub peers: usize,
}

impl Sample {
    pub fn count(&self, kind: Kind) -> usize {
        self.descriptors.get(&kind).copied().unwrap_or(0)
    }

    /// Each has a task of its own.
    fn connections(&self) -> usize {
        [Kind::Router, Kind::Client, Kind::Admin, Kind::ToPeer]
            .iter()
            .map(|kind| self.count(*kind))
            .sum()
    }

    fn other_tasks(&self) -> i64 {
        self.tasks - self.connections() as i64
    }

    /// What is there whoever is connected.
    fn own_descriptors(&self) -> usize {
        [
            Kind::Listener,
            Kind::OtherSocket,
            Kind::Unix,
            Kind::File,
            Kind::Kernel,
        ]
        .iter()
        .map(|kind| self.count(*kind))
        .sum()
    }
}

/// What is known of a node at the moment of the look.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// Nobody has asked anything for longer than idle connections are kept.
    pub is_idle: bool,
    /// Other nodes.
    pub others: usize,
    /// So many records may others have told within their life.
    pub records: u64,
}

/// What is wrong; nothing: all is as it was.
pub fn complaints(first: &Sample, now: &Sample, known: &Known) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut at_most = |what: &str, seen: i64, limit: i64, why: &str| {
        if seen > limit {
            wrong.push(format!("{what}: {seen}, at most {limit} ({why})"));
        }
    };
    let count = |kind| now.count(kind) as i64;
    let mib = |bytes: u64| (bytes / KIB) as i64;
    at_most(
        "KiB of anonymous memory",
        mib(now.anonymous),
        mib(first.anonymous + MEMORY),
        "the first plateau and what an allocator keeps",
    );
    at_most("deleted files", count(Kind::Deleted), 0, "none is read");
    at_most("blobs open", count(Kind::Content), 0, "none is read");
    at_most(
        "sockets in CLOSE_WAIT",
        now.close_wait as i64,
        0,
        "who has gone is let go",
    );
    if known.is_idle {
        for (what, kind) in [
            ("clients of the registry port", Kind::Client),
            ("clients of the metrics port", Kind::Admin),
            ("connections to peers", Kind::ToPeer),
        ] {
            at_most(what, count(kind), 0, "nobody asks");
        }
    }
    at_most(
        "connections of routers",
        count(Kind::Router),
        (PER_PEER * known.others) as i64,
        "so many are allowed",
    );
    at_most(
        "peers",
        now.peers as i64,
        known.others as i64,
        "there are no more",
    );
    at_most(
        "other descriptors",
        now.own_descriptors() as i64,
        (first.own_descriptors() + DESCRIPTORS) as i64,
        "the first plateau",
    );
    at_most(
        "tasks that are no connection's",
        now.other_tasks(),
        first.other_tasks() + TASKS,
        "the first plateau",
    );
    at_most(
        "threads",
        now.threads as i64,
        (first.threads + THREADS) as i64,
        "the first plateau",
    );
    at_most(
        "records of others",
        now.records as i64,
        known.records as i64,
        "what they had within a record's life",
    );
    wrong
}

/// Memory that grows with the work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Leak {
    pub bytes_per_step: f64,
    /// Over the series.
    pub grown: f64,
}

/// Looks for a leak in `(steps done, bytes)`: growth that goes on in the second half. What a cache or an allocator takes
/// until it is full levels off, and is none.
///
/// The slope is Theil's and Sen's, the median of those between any two points: a third of them may be outliers. Whether it is
/// one at all is Mann's and Kendall's test: of all pairs of points, how many more rise than fall.
pub fn leak(series: &[(u64, u64)]) -> Option<Leak> {
    if series.len() < POINTS {
        return None;
    }
    let least = |four: &[(u64, u64)]| four.iter().copied().min_by_key(|(_, bytes)| *bytes);
    let series: Vec<_> = match series.len() < POINTS * LEAST_OF {
        true => series.to_vec(),
        false => series.chunks_exact(LEAST_OF).filter_map(least).collect(),
    };
    let series = series.as_slice();
    let grown = |series: &[(u64, u64)]| {
        let steps = series.last()?.0.saturating_sub(series.first()?.0);
        Some(slope(series) * steps as f64)
    };
    let (whole, later) = (grown(series)?, grown(&series[series.len() / 2..])?);
    let is_one = whole > TREND && later > TREND / 2.0 && rise(series) > CERTAIN;
    is_one.then_some(Leak {
        bytes_per_step: slope(series),
        grown: whole,
    })
}

/// Pairs of points that rise, less those that fall, in standard deviations of what chance makes of it.
fn rise(series: &[(u64, u64)]) -> f64 {
    let pairs = series.iter().enumerate().flat_map(|(place, (_, bytes))| {
        let later = series[place + 1..].iter();
        later.map(move |(_, more)| match more.cmp(bytes) {
            Ordering::Greater => 1.0,
            Ordering::Equal => 0.0,
            Ordering::Less => -1.0,
        })
    });
    let points = series.len() as f64;
    let variance = points * (points - 1.0) * (2.0 * points + 5.0) / 18.0;
    pairs.sum::<f64>() / variance.sqrt()
}

/// Bytes per step.
pub fn slope(series: &[(u64, u64)]) -> f64 {
    let mut slopes = Vec::new();
    for (place, (steps, bytes)) in series.iter().enumerate() {
        for (later, more) in &series[place + 1..] {
            if later > steps {
                slopes.push((*more as f64 - *bytes as f64) / (later - steps) as f64);
            }
        }
    }
    slopes.sort_by(f64::total_cmp);
    slopes.get(slopes.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    /// An hour: sixty points of 30 steps, 40 MiB with a mebibyte of noise, now and then a burst of four.
    fn hour(seed: u64, more: impl Fn(u64) -> f64) -> Vec<(u64, u64)> {
        let mut rng = StdRng::seed_from_u64(seed);
        (0..60)
            .map(|point| {
                let steps = 30 * point;
                let mut bytes = 40.0 * MIB as f64 + more(steps);
                bytes += rng.random_range(-1.0..1.0) * MIB as f64;
                if rng.random_bool(0.1) {
                    bytes += 4.0 * MIB as f64;
                }
                (steps, bytes as u64)
            })
            .collect()
    }

    #[test]
    fn a_leak_of_four_kibibytes_a_step_is_found_within_an_hour() {
        for seed in 0..100 {
            let found = leak(&hour(seed, |steps| steps as f64 * 4.0 * KIB as f64));

            let found = found.unwrap_or_else(|| panic!("seed {seed}: nothing was found"));
            let per_step = found.bytes_per_step / KIB as f64;
            assert!((3.0..5.0).contains(&per_step), "seed {seed}: {per_step}");
        }
    }

    #[test]
    fn noise_and_what_levels_off_are_no_leak() {
        for seed in 0..100 {
            assert_eq!(leak(&hour(seed, |_| 0.0)), None, "seed {seed}");
            // A cache that is full after a third, a step up once, and a curve that never quite ends.
            let filled = hour(seed, |steps| {
                12.0 * MIB as f64 * (steps as f64 / 600.0).min(1.0)
            });
            assert_eq!(leak(&filled), None, "seed {seed}");
            let once = hour(
                seed,
                |steps| if steps > 300 { 8.0 * MIB as f64 } else { 0.0 },
            );
            assert_eq!(leak(&once), None, "seed {seed}");
            let slower = hour(seed, |steps| {
                12.0 * MIB as f64 * (1.0 - (-(steps as f64) / 250.0).exp())
            });
            assert_eq!(leak(&slower), None, "seed {seed}");
        }
    }

    /// What a soak saw within four minutes: at the last plateau 38 more connections were open than at the others.
    #[test]
    fn a_burst_at_the_end_of_a_short_series_is_no_leak() {
        let kib = [10512, 11248, 12168, 11956, 9708, 12904, 12760, 17844];
        let steps = (78..).step_by(26);
        let series: Vec<_> = steps.zip(kib.map(|kib| kib * KIB)).collect();

        assert_eq!(leak(&series), None);
    }

    #[test]
    fn few_points_are_no_series() {
        let few: Vec<_> = (0..7).map(|n| (n, n * 100 * MIB)).collect();
        assert_eq!(leak(&few), None);
        let many: Vec<_> = (0..8).map(|n| (n, n * 100 * MIB)).collect();
        assert!(leak(&many).is_some());
    }

    fn quiet() -> Sample {
        Sample {
            pid: 1,
            resident: 60 * MIB,
            anonymous: 30 * MIB,
            threads: 5,
            descriptors: BTreeMap::from([
                (Kind::Listener, 3),
                (Kind::Router, 3),
                (Kind::Unix, 4),
                (Kind::Kernel, 9),
                (Kind::File, 4),
            ]),
            close_wait: 0,
            tasks: 40,
            records: 100,
            peers: 3,
        }
    }

    const KNOWN: Known = Known {
        is_idle: true,
        others: 3,
        records: 120,
    };

    #[test]
    fn whatever_is_left_behind_is_told() {
        let first = quiet();
        assert_eq!(complaints(&first, &first, &KNOWN), [""; 0]);

        type Leaves = fn(&mut Sample);
        fn one_more(sample: &mut Sample, kind: Kind, how_many: usize) {
            *sample.descriptors.entry(kind).or_default() += how_many;
        }
        let cases: [(&str, Leaves); 14] = [
            ("anonymous memory", |s| s.anonymous += 9 * MIB),
            ("deleted files", |s| one_more(s, Kind::Deleted, 1)),
            ("blobs open", |s| one_more(s, Kind::Content, 1)),
            ("CLOSE_WAIT", |s| s.close_wait = 1),
            ("registry port", |s| one_more(s, Kind::Client, 1)),
            ("metrics port", |s| one_more(s, Kind::Admin, 1)),
            ("to peers", |s| one_more(s, Kind::ToPeer, 1)),
            ("of routers", |s| one_more(s, Kind::Router, 10)),
            ("peers", |s| s.peers = 4),
            ("other descriptors", |s| one_more(s, Kind::Unix, 3)),
            ("other descriptors", |s| one_more(s, Kind::File, 3)),
            ("tasks", |s| s.tasks += 4),
            ("threads", |s| s.threads += 5),
            ("records", |s| s.records = 121),
        ];
        for (what, leave) in cases {
            let mut now = quiet();
            leave(&mut now);
            let said = complaints(&first, &now, &KNOWN);
            assert!(
                said.iter().any(|said| said.contains(what)),
                "{what}: {said:?}"
            );
        }
    }

    #[test]
    fn a_connection_has_its_task_and_stays_while_it_is_not_idle() {
        let first = quiet();
        let mut now = quiet();
        now.descriptors.insert(Kind::Client, 7);
        now.tasks += 7;
        let busy = Known {
            is_idle: false,
            ..KNOWN
        };

        assert_eq!(complaints(&first, &now, &busy), [""; 0]);
        assert_eq!(complaints(&first, &now, &KNOWN).len(), 1);
    }
}
