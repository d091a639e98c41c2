//! The bytes that this node is just giving to its containerd, for those who follow it.
//!
//! containerd writes 1 MiB at a time. With three layers at once on a link of 50 MB/s that is a step every 60 ms, and the
//! last of a chain of eight nodes was half a second behind the first when a layer began and when it ended (measured). So
//! what was handed to containerd is kept here for a moment, and is read before it is in a file. It is as unverified as
//! the file is.
//!
//! Of the beginning of a slow body it is kept also while nobody follows: where containerd's first step took more than 2 s,
//! a node that had come just behind its parent's first bytes held it for dead and became a second child of whoever led
//! (measured). Further on who comes reads the file first, and follows by the time it has caught up. To keep what passes always
//! took 10 MiB more while an image was relayed, and within 128 MiB the process was killed (`make bench`).

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::oci::Digest;

/// Bytes kept of one content: what containerd may hold before it writes (1 MiB), and as much in the sockets on the way
/// there. What is older is in the file.
const KEPT: usize = 2 << 20;
/// Bytes kept of all contents, beyond which each keeps [`LEAST`]. An image's three layers take 6 MiB; a node that pulls ten
/// images at once must not take 60.
const KEPT_OF_ALL: usize = 16 << 20;
const LEAST: usize = 256 << 10;
/// Bytes per second: a body that comes faster is slow no more, and its next step of 1 MiB is there in a quarter of a second. Not
/// told by the first [`LEAST`] bytes, which may have come at once.
const SLOW: f64 = (4 << 20) as f64;

/// Those contents of which somebody holds a [`Tail`].
#[derive(Debug, Default)]
pub(super) struct Tails {
    by_digest: Mutex<HashMap<Digest, Weak<Tail>>>,
    kept: Arc<AtomicUsize>,
}

/// The last bytes of one content.
#[derive(Debug)]
pub(super) struct Tail {
    bytes: Mutex<Kept>,
    /// The first byte behind those that are kept; 0 where none are.
    end: watch::Sender<u64>,
    /// Of all contents.
    kept: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Kept {
    chunks: VecDeque<Bytes>,
    /// Bytes in all of them.
    length: usize,
    /// Where the present body's next byte is: directly behind those that are kept.
    next: u64,
    /// Where the present body began, and when. None once it has shown that it is not slow.
    begun: Option<(u64, Instant)>,
}

/// Who hands on the bytes of one content. Nothing of them is kept when it is dropped.
#[derive(Debug)]
pub struct Passing(Option<Arc<Tail>>);

impl Tails {
    pub(super) fn of(&self, digest: &Digest) -> Arc<Tail> {
        let mut tails = self
            .by_digest
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(tail) = tails.get(digest).and_then(Weak::upgrade) {
            return tail;
        }
        let tail = Arc::new(Tail {
            bytes: Mutex::default(),
            end: watch::Sender::new(0),
            kept: Arc::clone(&self.kept),
        });
        tails.retain(|_, tail| tail.strong_count() > 0);
        tails.insert(digest.clone(), Arc::downgrade(&tail));
        tail
    }
}

impl Tail {
    /// How far the kept bytes go, from the content's beginning; 0 where none are kept.
    pub(super) fn end(&self) -> u64 {
        *self.end.borrow()
    }

    /// Whether the byte at `offset` is among those that are kept.
    pub(super) fn has(&self, offset: u64) -> bool {
        let kept = self.kept();
        (kept.start()..kept.next).contains(&offset)
    }

    /// Tells of new ends. While it lives bytes are kept.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.end.subscribe()
    }

    /// At most `most` bytes from `offset` on. None where that byte is not among those that are kept.
    pub(super) fn get(&self, offset: u64, most: u64) -> Option<Bytes> {
        let kept = self.kept();
        let mut skip = usize::try_from(offset.checked_sub(kept.start())?).ok()?;
        let chunk = kept.chunks.iter().find(|chunk| {
            let is_it = skip < chunk.len();
            if !is_it {
                skip -= chunk.len();
            }
            is_it
        })?;
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        Some(chunk.slice(skip..chunk.len().min(skip.saturating_add(most))))
    }

    fn push(&self, offset: u64, chunk: &[u8]) {
        let mut kept = self.kept();
        if offset == 0 || kept.next != offset {
            // Another body of the same content.
            self.clear(&mut kept);
            kept.begun = Some((offset, Instant::now()));
        }
        kept.next = offset + chunk.len() as u64;
        if !kept.is_slow_beginning() {
            kept.begun = None;
            if self.end.receiver_count() == 0 {
                self.clear(&mut kept);
                return;
            }
        }
        // A copy: what came off a socket is a part of a larger buffer, all of which it would keep.
        kept.chunks.push_back(Bytes::copy_from_slice(chunk));
        kept.length += chunk.len();
        self.kept.fetch_add(chunk.len(), Ordering::Relaxed);
        let limit = match self.kept.load(Ordering::Relaxed) > KEPT_OF_ALL {
            true => LEAST,
            false => KEPT,
        };
        while kept.length > limit
            && let Some(oldest) = kept.chunks.pop_front()
        {
            kept.length -= oldest.len();
            self.kept.fetch_sub(oldest.len(), Ordering::Relaxed);
        }
        self.tell(&kept);
    }

    fn clear(&self, kept: &mut Kept) {
        self.kept.fetch_sub(kept.length, Ordering::Relaxed);
        (kept.chunks, kept.length) = (VecDeque::new(), 0);
        self.tell(kept);
    }

    fn tell(&self, kept: &Kept) {
        let end = match kept.length {
            0 => 0,
            _ => kept.next,
        };
        self.end.send_if_modified(|told| {
            let is_news = *told != end;
            *told = end;
            is_news
        });
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// The first byte that is kept.
    fn start(&self) -> u64 {
        self.next - self.length as u64
    }

    fn is_slow_beginning(&self) -> bool {
        self.begun.is_some_and(|(begun, at)| {
            let came = (self.next - begun) as usize;
            came <= KEPT && came as f64 <= LEAST as f64 + SLOW * at.elapsed().as_secs_f64()
        })
    }
}

impl Passing {
    pub(super) fn new(tail: Option<Arc<Tail>>) -> Self {
        Self(tail)
    }

    /// `chunk`, which begins at `offset` of the content, is on its way to containerd.
    pub fn push(&self, offset: u64, chunk: &[u8]) {
        if let Some(tail) = &self.0 {
            tail.push(offset, chunk);
        }
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        if let Some(tail) = &self.0 {
            tail.clear(&mut tail.kept());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::noise;

    fn digest(name: &str) -> Digest {
        Digest::sha256(name.as_bytes())
    }

    /// All that `tail` has from `offset` on.
    fn all(tail: &Tail, mut offset: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some(chunk) = tail.get(offset, u64::MAX) {
            offset += chunk.len() as u64;
            bytes.extend_from_slice(&chunk);
        }
        bytes
    }

    #[test]
    fn what_passes_is_there_for_who_follows_and_for_who_comes_later() {
        let tails = Tails::default();
        let (tail, passing) = (tails.of(&digest("a")), tails.of(&digest("a")));
        let passing = Passing::new(Some(passing));
        passing.push(3, b"3");
        let mut told = tail.subscribe();

        passing.push(4, b"4567");
        passing.push(8, b"89");

        assert!(told.has_changed().unwrap());
        assert_eq!(*told.borrow_and_update(), 10);
        assert_eq!(all(&tail, 3), b"3456789");
        assert_eq!(all(&tail, 7), b"789");
        assert_eq!(tail.get(5, 2).unwrap(), "56");
        assert_eq!((tail.get(2, 9), tail.get(10, 9)), (None, None));
        let has = [2, 3, 9, 10].map(|offset| tail.has(offset));
        assert_eq!(has, [false, true, true, false]);
        assert_eq!(tails.of(&digest("b")).end(), 0, "another content");
        drop(passing);
        assert!(told.has_changed().unwrap());
        assert_eq!((tail.end(), tail.get(5, 9)), (0, None));
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_follows_is_kept_of_the_beginning_of_a_slow_body_alone() {
        let bytes = noise(KEPT + 1, 1);
        let slowly = Duration::from_millis(70);
        for (case, pause, expected) in [
            ("slow", slowly, KEPT),
            ("it comes at once", Duration::ZERO, LEAST),
        ] {
            let tails = Tails::default();
            let tail = tails.of(&digest("a"));
            let passing = Passing::new(Some(tails.of(&digest("a"))));
            let begun = 5 << 20;
            let mut kept = Vec::new();
            for (n, chunk) in bytes.chunks(LEAST).enumerate() {
                passing.push(begun + (n * LEAST) as u64, chunk);
                kept.push(all(&tail, begun).len());
                tokio::time::advance(pause).await;
            }
            let most = kept.iter().copied().max();
            assert_eq!((most, kept.last()), (Some(expected), Some(&0)), "{case}");

            let behind = begun + bytes.len() as u64;
            let follower = tail.subscribe();
            passing.push(behind, b"4567");
            assert_eq!(all(&tail, behind), b"4567", "{case}");
            drop(follower);
            passing.push(behind + 4, b"89");
            assert_eq!(tail.end(), 0, "{case}");
            // A body that is resumed has a beginning, too.
            passing.push(begun, b"abc");
            assert_eq!(all(&tail, begun), b"abc", "{case}");
        }
    }

    #[test]
    fn another_body_begins_where_it_begins() {
        let tails = Tails::default();
        let tail = tails.of(&digest("a"));
        let passing = Passing::new(Some(tails.of(&digest("a"))));
        passing.push(100, b"abc");

        passing.push(50, b"xyz");

        assert_eq!((tail.get(100, 9), all(&tail, 50)), (None, b"xyz".to_vec()));
        assert_eq!(tail.end(), 53);
    }

    #[test]
    fn only_the_last_bytes_are_kept_and_fewer_where_there_are_many() {
        let tails = Tails::default();
        let bytes = noise(3 << 20, 1);
        let chunk = 128 << 10;
        let fill = |name: &str| {
            let tail = tails.of(&digest(name));
            let follower = tail.subscribe();
            let passing = Passing::new(Some(Arc::clone(&tail)));
            for (n, chunk_of) in bytes.chunks(chunk).enumerate() {
                passing.push((n * chunk) as u64, chunk_of);
            }
            (tail, follower, passing)
        };
        let first = fill("first");
        let length = bytes.len() as u64;
        assert!(all(&first.0, length - KEPT as u64) == bytes[bytes.len() - KEPT..]);
        assert!(first.0.get(length - KEPT as u64 - 1, 1).is_none());

        let others: Vec<_> = (0..20).map(|n| fill(&n.to_string())).collect();

        let kept = tails.kept.load(Ordering::Relaxed);
        assert!(kept <= KEPT_OF_ALL + 21 * (LEAST + chunk), "{kept}");
        let (tail, ..) = &others[19];
        assert!(all(tail, length - LEAST as u64) == bytes[bytes.len() - LEAST..]);
        drop((first, others));
        assert_eq!(tails.kept.load(Ordering::Relaxed), 0);
    }
}
