//! What a process has taken of the machine, and what many measurements come to.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// CPU time of this process since it began.
pub fn cpu() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(spent.tv_sec as u64, spent.tv_nsec as u32)
}

/// Bytes of this process in memory.
pub fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|line| {
        let value = line.strip_prefix("VmRSS:")?.trim();
        value.strip_suffix(" kB")?.parse::<u64>().ok()
    });
    kib.unwrap_or(0) << 10
}

/// Waits until this process has next to nothing to do: for a second it takes less than a fiftieth of a core, or, of `nodes`,
/// as much of each as pings and rounds of bootstrap take. Whether that was within `patience`.
pub async fn calm(nodes: usize, patience: Duration) -> bool {
    const LOOK: Duration = Duration::from_secs(1);
    /// A ping with every peer every 15 s, and bootstrap's dials.
    const EACH: Duration = Duration::from_micros(500);
    let enough = (LOOK / 50).max(EACH * u32::try_from(nodes).unwrap_or(u32::MAX));
    let began = Instant::now();
    while began.elapsed() < patience {
        let before = cpu();
        sleep(LOOK).await;
        if cpu() - before < enough {
            return true;
        }
    }
    false
}

/// In no order until it is asked.
#[derive(Clone, Debug, Default)]
pub struct Sample(Vec<Duration>);

impl Sample {
    pub fn add(&mut self, took: Duration) {
        self.0.push(took);
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The smallest that `percent` of all are not above. None of nothing.
    pub fn percentile(&self, percent: usize) -> Option<Duration> {
        let mut sorted = self.0.clone();
        sorted.sort();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied()
    }
}

/// Of an even number the higher of the two in the middle. None of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_what_was_measured() {
        let mut sample = Sample::default();
        assert_eq!(sample.percentile(50), None);
        for ms in (1..=200).rev() {
            sample.add(Duration::from_millis(ms));
        }
        for (percent, ms) in [(0, 1), (50, 100), (99, 198), (100, 200)] {
            let expected = Some(Duration::from_millis(ms));
            assert_eq!(sample.percentile(percent), expected, "{percent}");
        }
    }

    #[test]
    fn what_this_process_has_taken_is_known() {
        assert!(cpu() > Duration::ZERO);
        assert!(resident() > 1 << 20);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[]), None);
    }
}
