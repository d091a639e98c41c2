//! What registries have brought lately, as this node has seen it. Pure.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// As long as a crowd's pull of a large image takes.
const MEMORY: Duration = Duration::from_secs(60);
/// A node that has content whole is left for the registry when that brought so many times as much: a registry that has
/// gone down meanwhile fails the pull, and that risk is not taken for a little.
const TIMES: u64 = 4;

/// By name.
#[derive(Debug, Default)]
pub struct Registries(HashMap<String, Known>);

#[derive(Debug, Default)]
struct Known {
    /// When it was last found to be faster than those who were followed.
    faster: Option<Instant>,
    /// The most that it brought for one content in bytes per second, and when.
    most: Option<(u64, Instant)>,
}

impl Registries {
    /// What came of going to `image`'s registry instead of following.
    pub fn note(&mut self, image: &str, got_more: bool, now: Instant) {
        self.known(image, now).faster = got_more.then_some(now);
    }

    /// Whether the last time that this node left others for `image`'s registry was worth it, and not long ago.
    pub fn is_faster(&self, image: &str, now: Instant) -> bool {
        let known = self.0.get(registry_of(image));
        known.is_some_and(|known| known.faster.is_some_and(|at| is_recent(at, now)))
    }

    /// `image`'s registry brings this node `rate` bytes per second of one content.
    pub fn brought(&mut self, image: &str, rate: u64, now: Instant) {
        let known = self.known(image, now);
        let before = known.most.filter(|(_, at)| is_recent(*at, now));
        if rate > 0 && before.is_none_or(|(most, _)| rate >= most) {
            known.most = Some((rate, now));
        }
    }

    /// Whether `image`'s registry has lately brought clearly more than `rate`, in bytes per second.
    pub fn brings_more(&self, image: &str, rate: u64, now: Instant) -> bool {
        let known = self.0.get(registry_of(image));
        let most = known.and_then(|known| known.most);
        most.is_some_and(|(most, at)| is_recent(at, now) && most >= rate.saturating_mul(TIMES))
    }

    fn known(&mut self, image: &str, now: Instant) -> &mut Known {
        self.0.retain(|_, known| {
            let times = [known.faster, known.most.map(|(_, at)| at)];
            times.into_iter().flatten().any(|at| is_recent(at, now))
        });
        self.0.entry(registry_of(image).to_string()).or_default()
    }
}

fn is_recent(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) < MEMORY
}

/// The registry of `registry/repository`.
fn registry_of(image: &str) -> &str {
    image.split('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_counts_for_a_minute_and_for_one_registry() {
        let begin = Instant::now();
        let mut registries = Registries::default();
        registries.note("near.test/app", true, begin);
        assert!(registries.is_faster("near.test/other", begin));
        assert!(!registries.is_faster("far.test/app", begin));
        assert!(!registries.is_faster("near.test/app", begin + MEMORY));
        registries.note("near.test/app", false, begin);
        assert!(!registries.is_faster("near.test/app", begin));
    }

    #[test]
    fn the_most_of_a_minute_counts_four_times_over() {
        let begin = Instant::now();
        let mut registries = Registries::default();
        let brings_more =
            |registries: &Registries, rate, now| registries.brings_more("near.test/app", rate, now);
        assert!(!brings_more(&registries, 0, begin));
        registries.brought("near.test/other", 40, begin);
        registries.brought("near.test/other", 8, begin + MEMORY / 2);
        assert!(brings_more(&registries, 10, begin));
        assert!(!brings_more(&registries, 11, begin));
        assert!(!registries.brings_more("far.test/app", 1, begin));
        assert!(!brings_more(&registries, 1, begin + MEMORY));
        registries.brought("near.test/other", 8, begin + MEMORY);
        assert!(brings_more(&registries, 2, begin + MEMORY));
        registries.brought("far.test/app", 1, begin + 3 * MEMORY);
        assert_eq!(registries.0.len(), 1, "others are forgotten");
    }
}
