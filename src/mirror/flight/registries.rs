//! Which registries brought more than those who were followed, as this node has seen it. Pure.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// As long as a crowd's pull of a large image takes.
const MEMORY: Duration = Duration::from_secs(60);

/// By name, when each was last found to be faster.
#[derive(Debug, Default)]
pub struct Registries(HashMap<String, Instant>);

impl Registries {
    /// What came of going to `image`'s registry instead of following.
    pub fn note(&mut self, image: &str, got_more: bool, now: Instant) {
        self.0
            .retain(|_, at| now.saturating_duration_since(*at) < MEMORY);
        let registry = registry_of(image);
        if got_more {
            self.0.insert(registry.to_string(), now);
        } else {
            self.0.remove(registry);
        }
    }

    /// Whether the last time that this node left others for `image`'s registry was worth it, and not long ago.
    pub fn is_faster(&self, image: &str, now: Instant) -> bool {
        let noted = self.0.get(registry_of(image));
        noted.is_some_and(|at| now.saturating_duration_since(*at) < MEMORY)
    }
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
}
