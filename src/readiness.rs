//! Ready when nothing is awaited any more.
//!
//! Whoever must be done before this node may serve takes a guard and drops it then. There are no booleans to
//! forget, and `/readyz` can say what is missing. A guard can be taken again later: a node whose containerd went away
//! is not ready until it is back.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// Cloneable; all clones speak of the same set of guards.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    awaited: Arc<Mutex<BTreeMap<&'static str, Awaited>>>,
    /// The last guard was dropped.
    is_over: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Awaited {
    guards: usize,
    /// The newest of what its guards said, for a person to read.
    why: String,
}

/// As long as it lives, the node is not ready.
#[must_use = "readiness waits for the guard to be dropped"]
pub struct Guard {
    name: &'static str,
    readiness: Readiness,
}

impl Readiness {
    pub fn new() -> Self {
        Self::default()
    }

    /// Awaits `name` until the guard is dropped.
    pub fn guard(&self, name: &'static str) -> Guard {
        self.lock().entry(name).or_default().guards += 1;
        Guard {
            name,
            readiness: self.clone(),
        }
    }

    pub fn is_ready(&self) -> bool {
        self.lock().is_empty()
    }

    /// Returns when nothing is awaited.
    pub async fn ready(&self) {
        loop {
            let over = self.is_over.notified();
            if self.is_ready() {
                return;
            }
            over.await;
        }
    }

    /// What is awaited, in alphabetical order, each with what is known of it: `content: connecting to …`.
    pub fn awaited(&self) -> Vec<String> {
        self.lock()
            .iter()
            .map(|(name, awaited)| match awaited.why.as_str() {
                "" => (*name).to_string(),
                why => format!("{name}: {why}"),
            })
            .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, Awaited>> {
        // Nothing is left half done when a holder of this lock panics.
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guard {
    /// Says what exactly is awaited.
    pub fn because(&self, why: impl fmt::Display) {
        if let Some(awaited) = self.readiness.lock().get_mut(self.name) {
            awaited.why = why.to_string();
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut awaited = self.readiness.lock();
        if let Some(entry) = awaited.get_mut(self.name) {
            entry.guards -= 1;
            if entry.guards == 0 {
                awaited.remove(self.name);
            }
            if awaited.is_empty() {
                self.readiness.is_over.notify_waiters();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_hears_when_the_last_guard_is_dropped() {
        let readiness = Readiness::new();
        readiness.ready().await;
        let [one, two] = ["one", "two"].map(|name| readiness.guard(name));
        let waiting = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.ready().await }
        });
        tokio::task::yield_now().await;

        drop(one);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(two);

        waiting.await.unwrap();
    }

    #[test]
    fn ready_when_the_last_guard_is_dropped() {
        let readiness = Readiness::new();
        assert!(readiness.is_ready());

        let routing = readiness.guard("routing");
        let content = readiness.guard("content");
        let content_again = readiness.guard("content");
        content.because("connecting");
        assert_eq!(readiness.awaited(), ["content: connecting", "routing"]);

        drop(content);
        drop(routing);
        assert_eq!(readiness.awaited(), ["content: connecting"]);

        drop(content_again);
        assert!(readiness.is_ready());
    }
}
