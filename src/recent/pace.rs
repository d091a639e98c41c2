//! How fast something goes now, and not since it began. Pure: time comes in.

use std::time::Duration;

/// Bytes are put together over this.
const SLOT: Duration = Duration::from_millis(250);
/// Two seconds: a chunk of a megabyte at 1 MB/s is no leap in it, and who stands still is at 0 before anybody wonders.
const SLOTS: usize = 8;

/// Bytes of the last two seconds. All times are from its beginning on, and never go back.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    /// Of the slot with the number n, at n modulo the length.
    bytes: [u64; SLOTS],
    /// The number of the slot that was written last.
    last: u64,
}

impl Pace {
    pub fn add(&mut self, bytes: u64, at: Duration) {
        self.forget(number(at));
        self.bytes[index(self.last)] += bytes;
    }

    /// Bytes per second, over the last two seconds or since the beginning, whichever is shorter.
    pub fn rate(&self, at: Duration) -> u64 {
        let mut now = self.clone();
        now.forget(number(at));
        let bytes: u64 = now.bytes.iter().sum();
        // The slot that has begun counts as far as it is over; the others whole. What came in the first instant is no speed.
        let whole = (number(at)).min(SLOTS as u64 - 1) as u32;
        let begun = at - SLOT * u32::try_from(number(at)).unwrap_or(u32::MAX);
        let time = (SLOT * whole + begun).max(SLOT);
        (bytes as f64 / time.as_secs_f64()) as u64
    }

    /// What is older than the slots that there are, now that `number` has begun.
    fn forget(&mut self, number: u64) {
        let passed = number.saturating_sub(self.last).min(SLOTS as u64);
        for slot in 1..=passed {
            self.bytes[index(number - passed + slot)] = 0;
        }
        self.last = self.last.max(number);
    }
}

fn number(at: Duration) -> u64 {
    u64::try_from(at.as_millis() / SLOT.as_millis()).unwrap_or(u64::MAX)
}

fn index(number: u64) -> usize {
    (number % SLOTS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// So many MiB/s in steps of 10 ms, from one time to another.
    fn goes(pace: &mut Pace, mib_per_second: u64, from: u64, to: u64) {
        for at in (from..to).step_by(10) {
            pace.add(mib_per_second * MIB / 100, ms(at));
        }
    }

    #[track_caller]
    fn is_about(rate: u64, mib_per_second: u64) {
        let expected = mib_per_second * MIB;
        assert!(rate.abs_diff(expected) * 20 <= expected, "{rate}");
    }

    #[test]
    fn it_is_the_speed_of_now_and_not_since_the_beginning() {
        let mut pace = Pace::default();
        goes(&mut pace, 100, 0, 10_000);
        is_about(pace.rate(ms(10_000)), 100);

        goes(&mut pace, 10, 10_000, 13_000);

        is_about(pace.rate(ms(13_000)), 10);
        let average = (10 * 100 + 3 * 10) / 13;
        assert!(pace.rate(ms(13_000)) < average * MIB / 2);
    }

    #[test]
    fn who_stands_still_comes_to_nothing_and_goes_on_from_there() {
        let mut pace = Pace::default();
        goes(&mut pace, 100, 0, 5_000);

        let falling: Vec<u64> = (0..10).map(|n| pace.rate(ms(5_000 + n * 250))).collect();

        assert!(falling.is_sorted_by(|a, b| a >= b), "{falling:?}");
        assert_eq!(falling[8..], [0, 0]);
        // However long that was, even with the same place in the ring.
        for pause in [2_000, 60_000, 86_400_000] {
            let mut pace = pace.clone();
            let begin = 5_000 + pause;
            assert_eq!(pace.rate(ms(begin)), 0, "{pause}");
            goes(&mut pace, 10, begin, begin + 2_000);
            is_about(pace.rate(ms(begin + 2_000)), 10);
        }
    }

    #[test]
    fn what_has_just_begun_is_not_measured_by_its_first_instant() {
        let mut pace = Pace::default();
        assert_eq!(pace.rate(ms(0)), 0);
        pace.add(MIB, ms(1));
        assert_eq!(pace.rate(ms(1)), 4 * MIB);
        goes(&mut pace, 8, 250, 500);
        is_about(pace.rate(ms(500)), 6);
    }

    /// Chunks of all sizes at all times: never more than came, and all of it as long as two seconds are not over.
    #[test]
    fn nothing_is_counted_twice_or_lost() {
        let mut pace = Pace::default();
        let (mut at, mut came) = (0, Vec::new());
        for n in 0..2000_u64 {
            at += n * n % 37;
            pace.add(n, ms(at));
            came.push((at, n));
            let slots = |n: u64| n / 250;
            let within = came.iter().filter(|(then, _)| slots(at) - slots(*then) < 8);
            let expected: u64 = within.map(|(_, bytes)| bytes).sum();
            let counted: u64 = pace.bytes.iter().sum();
            assert_eq!(counted, expected, "at {at}");
        }
    }
}
