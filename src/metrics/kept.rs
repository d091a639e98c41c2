//! Series that are found without hashing their labels: a request moves several.

use std::fmt;
use std::sync::OnceLock;

/// Series by their labels, each made when it is first asked for and kept for good. For labels of few values: they are
/// looked through one after the other, without a lock.
pub struct Kept<L, M>(OnceLock<Box<Node<L, M>>>);

struct Node<L, M> {
    labels: L,
    series: M,
    next: Kept<L, M>,
}

impl<L, M> Default for Kept<L, M> {
    fn default() -> Self {
        Self(OnceLock::new())
    }
}

impl<L, M> fmt::Debug for Kept<L, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kept")
    }
}

impl<L: Copy + Eq, M> Kept<L, M> {
    pub fn get(&self, labels: L, make: impl Fn() -> M) -> &M {
        let mut at = self;
        loop {
            // Whoever comes second finds what the first has put there, and goes on behind it if that is another's.
            let node = at.0.get_or_init(|| {
                Box::new(Node {
                    labels,
                    series: make(),
                    next: Self::default(),
                })
            });
            if node.labels == labels {
                return &node.series;
            }
            at = &node.next;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn each_is_made_once_and_found_again_whoever_asks() {
        const LABELS: [&str; 5] = ["a", "b", "c", "d", "e"];
        let kept = Kept::default();

        std::thread::scope(|scope| {
            for first in 0..LABELS.len() {
                let kept = &kept;
                scope.spawn(move || {
                    for n in 0..1000 {
                        let label = LABELS[(first + n) % LABELS.len()];
                        let (of, count) = kept.get(label, || (label, AtomicUsize::new(0)));
                        assert_eq!(*of, label);
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });

        for label in LABELS {
            let (_, count) = kept.get(label, || unreachable!("it is there"));
            assert_eq!(count.load(Ordering::Relaxed), 1000, "{label}");
        }
    }
}
