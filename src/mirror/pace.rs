//! Whether a node that has content whole brings too little of it. Pure: bytes and times come in.
//!
//! What is counted is the time in which its bytes were waited for: a containerd that writes to a slow disk makes no source
//! slow. And a source is not blamed for a link of this node's own that others fill.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// 10 MB/s. Whoever brings more is not left: a layer of 100 MB is there in ten seconds, and another might be no better.
/// Decimal, so that it is the border of a class in [`class`].
pub const SLOW: u64 = 10_000_000;
/// A source is judged after it has been waited for as long as this; the next one of the same body after [`LONGER`] times
/// that, and so on: another costs a request and what was on its way, and where all are slow nothing is gained by it.
const TRIAL: Duration = Duration::from_secs(1);
const LONGER: u32 = 4;
/// Of what the others that bring something at the same time do on the average: who is below that is not held up by the
/// link that all share.
const SHARE: u64 = 4;

/// Decimal orders of magnitude below [`SLOW`] of a rate in bytes per second.
pub fn class(rate: u64) -> u32 {
    let fast = SLOW.ilog10();
    fast.saturating_sub(rate.max(1).ilog10())
}

/// What all bodies of this node get now. Cloneable; all clones are the same node.
#[derive(Clone, Debug, Default)]
pub struct Intake(Arc<Mutex<Streams>>);

#[derive(Debug, Default)]
struct Streams {
    next: u64,
    /// Bytes per second of each.
    rates: HashMap<u64, u64>,
}

/// One body's share of that, and how its present source does.
#[derive(Debug)]
pub struct Pace {
    intake: Intake,
    id: u64,
    trial: Duration,
    brought: u64,
    waited: Duration,
}

/// The end of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Bytes per second of waiting.
    pub rate: u64,
    pub is_slow: bool,
}

impl Intake {
    pub fn begin(&self) -> Pace {
        let mut streams = self.lock();
        streams.next += 1;
        let id = streams.next;
        Pace {
            intake: self.clone(),
            id,
            trial: TRIAL,
            brought: 0,
            waited: Duration::ZERO,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Streams> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pace {
    /// So many bytes came after so long. A verdict once that has been a trial.
    pub fn bring(&mut self, bytes: u64, waited: Duration) -> Option<Verdict> {
        self.brought += bytes;
        self.waited += waited;
        if self.waited < self.trial {
            return None;
        }
        let rate = (self.brought as f64 / self.waited.as_secs_f64()) as u64;
        (self.brought, self.waited) = (0, Duration::ZERO);
        let mut streams = self.intake.lock();
        streams.rates.insert(self.id, rate);
        let (all, count) = (streams.rates.values().sum::<u64>(), streams.rates.len());
        let is_link_full = all >= SLOW && rate >= all / count as u64 / SHARE;
        Some(Verdict {
            rate,
            is_slow: rate < SLOW && !is_link_full,
        })
    }

    /// Whoever was slow has had his trial: the next one, of another or of the same for want of another, is longer.
    pub fn is_over(&mut self) {
        self.trial *= LONGER;
        self.changes();
    }

    /// Another source goes on, and is not judged by what the one before did.
    pub fn changes(&mut self) {
        (self.brought, self.waited) = (0, Duration::ZERO);
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.intake.lock().rates.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    /// What is said of a body at so many bytes per second, in chunks of 100 ms, and after how many of them.
    fn judged(pace: &mut Pace, rate: u64) -> (u32, Verdict) {
        let step = Duration::from_millis(100);
        (1..1000)
            .find_map(|chunk| Some((chunk, pace.bring(rate / 10, step)?)))
            .expect("a verdict")
    }

    #[test]
    fn a_second_says_who_is_slow() {
        for (rate, is_slow) in [
            (MB, true),
            (9 * MB, true),
            (10 * MB, false),
            (500 * MB, false),
        ] {
            let (chunks, verdict) = judged(&mut Intake::default().begin(), rate);
            assert_eq!((chunks, verdict), (10, Verdict { rate, is_slow }));
        }
    }

    #[test]
    fn who_shares_a_full_link_fairly_is_not_slow() {
        let intake = Intake::default();
        let mut others: Vec<Pace> = (0..19).map(|_| intake.begin()).collect();
        for other in &mut others {
            judged(other, 5 * MB);
        }
        let mut one = intake.begin();
        assert!(!judged(&mut one, 5 * MB).1.is_slow);
        assert!(judged(&mut one, MB).1.is_slow, "far below its share");
        drop(others);
        assert!(judged(&mut one, 5 * MB).1.is_slow, "nobody else is there");
    }

    #[test]
    fn another_trial_is_longer() {
        let mut pace = Intake::default().begin();
        for expected in [10, 40, 160] {
            assert_eq!(judged(&mut pace, MB).0, expected);
            pace.is_over();
        }
    }

    #[test]
    fn nobody_is_judged_by_another() {
        let mut pace = Intake::default().begin();
        assert_eq!(pace.bring(1000, TRIAL / 10 * 9), None);
        pace.changes();
        let (chunks, verdict) = judged(&mut pace, 20 * MB);
        assert_eq!((chunks, verdict.is_slow), (10, false));
    }

    #[test]
    fn time_in_which_nothing_was_waited_for_is_nobodys() {
        let mut pace = Intake::default().begin();
        for _ in 0..1000 {
            assert_eq!(pace.bring(1000, Duration::ZERO), None);
        }
    }

    #[test]
    fn a_class_is_a_power_of_ten() {
        for (rate, expected) in [
            (500 * MB, 0),
            (10 * MB, 0),
            (9 * MB, 1),
            (MB, 1),
            (MB - 1, 2),
            (0, 7),
        ] {
            assert_eq!(class(rate), expected, "{rate}");
        }
    }
}
