//! What is in memory on its way to those who are sent something: many at once share one budget in the sockets, and one in
//! the page cache.
//!
//! In a cgroup of version 2 it counts as the pod's memory. Linux lets a send buffer grow to what the way to its reader takes, up
//! to 4 MiB each (`tcp_wmem`), and 200 bodies to readers on busy machines held 250 MiB.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::pacing;

/// In bytes, for all together. What the kernel keeps beside them makes it half as much again.
const BUDGET: usize = 16 << 20;
/// So few have buffers as large as Linux makes them, and are left alone: over a long way one needs megabytes.
const FEW: usize = 4;
/// And so many, as far as they are fast: who is slow would have them in the queue before its link, where what others are sent
/// waits behind them.
const FEW_FAST: usize = 8;
/// Nobody unprivileged is given more by SO_SNDBUF (`net.core.wmem_max`, 212,992 bytes where nobody changed it). The kernel
/// doubles it for what it keeps beside the bytes: 416 KiB, which is 400 MB/s for each at 1 ms.
const MOST: usize = 208 << 10;
/// Below this a reader that is a millisecond away is slowed down. More than 256 at once take more than the budget.
const LEAST: usize = 32 << 10;
/// What the kernel takes of a body before it has sent what it took earlier, in bytes, at the least: as much as is read from a
/// disk at once. Without a bound each client that stops reading holds up to `tcp_wmem`, which 64 of them made 190 MiB of the
/// pod's memory (`make bench`). What is on its way is not bounded by this, so a long way slows nobody down.
pub const LEAST_UNSENT: u32 = 256 << 10;
/// At the most: what is sent meanwhile. A reader that takes 1 GB/s has it filled again 250 times a second instead of 4,000
/// times, which takes a tenth less CPU; who takes 60 MB/s and less has no more than the least.
const UNSENT_FOR: Duration = Duration::from_millis(4);
/// And no more than this in any case, which is what `tcp_wmem` lets be unsent.
const MOST_UNSENT: u32 = 4 << 20;
/// How fast somebody reads is seen in so many bytes.
const SAMPLE: u64 = 4 << 20;
/// The first time sooner: four times what its socket takes at once is enough to tell who is slow.
const FIRST_SAMPLE: u64 = 1 << 20;
/// Nor by the first bytes, while TCP finds out what the way takes.
const SLOW_START: u64 = 512 << 10;
/// Who has been sent less may never be sent more.
const LARGE: u64 = 256 << 10;
/// Of files, in bytes, for all together: what has been handed to a connection that has not sent it yet, and as much again
/// that is being read ahead of it. More than what a pod's limit leaves for page cache would be given back before it is
/// sent, and read again: at 128 MiB that had a disk read ten times what went out (docs/performance.md). With twice as much 64
/// bodies take 13 MiB more there, and the process was killed once in two.
const PAGES: usize = 8 << 20;
/// What one reads ahead, at the most: a disk that is a millisecond away brings 1 GB/s by it, and it is eight times what Linux
/// does (`read_ahead_kb`).
const MOST_PAGES: usize = 1 << 20;
/// At the least, where more than 64 are sent something: half of what is read at once otherwise.
const LEAST_PAGES: usize = 128 << 10;

/// Cloneable; all clones have one budget.
#[derive(Clone, Debug, Default)]
pub struct Buffers(Arc<AtomicUsize>);

/// One connection's part, until it is dropped.
#[derive(Debug)]
pub struct Share {
    buffers: Buffers,
    counts: AtomicBool,
    /// Another file has begun, and nothing of it has been sent.
    begins: AtomicBool,
    /// What the socket takes before it has sent what it took earlier, in bytes.
    unsent: AtomicU32,
}

/// What the socket of a connection is told of its share.
#[derive(Debug)]
pub struct Fitting {
    share: Arc<Share>,
    sent: u64,
    /// What SO_SNDBUF was last set to; that cannot be undone, but more can be asked for again.
    size: Option<usize>,
    /// The sample under way: when it began, and what had been sent.
    since: (Instant, u64),
    /// When something was last written.
    last: Instant,
    /// Bytes per second in the last one. None before there was one.
    rate: Option<u64>,
    /// What is sent leaves in a steady stream.
    is_paced: bool,
}

impl Buffers {
    pub fn share(&self) -> Share {
        Share {
            buffers: self.clone(),
            counts: AtomicBool::new(false),
            begins: AtomicBool::new(false),
            unsent: AtomicU32::new(LEAST_UNSENT),
        }
    }
}

impl Default for Share {
    fn default() -> Self {
        Buffers::default().share()
    }
}

/// What SO_SNDBUF should be for each of so many, a power of two, that takes so many bytes per second. None: whatever Linux
/// makes of it.
fn size(rate: Option<u64>, many: usize) -> Option<usize> {
    let is_fast = rate.is_none_or(|rate| unsent(rate, many) > LEAST_UNSENT);
    let is_left_alone = many <= FEW || (is_fast && many <= FEW_FAST);
    (!is_left_alone).then(|| (BUDGET / many / 2).clamp(LEAST, MOST))
}

/// What each of so many may have unsent, a power of two, that takes so many bytes per second.
fn unsent(rate: u64, many: usize) -> u32 {
    let meanwhile = rate / (1000 / UNSENT_FOR.as_millis() as u64);
    let bytes = meanwhile.min(u64::from(MOST_UNSENT)) as u32;
    // By powers of two: it is not to be set anew for a little.
    let bytes = bytes.checked_ilog2().map_or(0, |log| 1 << log);
    bytes.min((BUDGET / many) as u32).max(LEAST_UNSENT)
}

impl Share {
    /// Bytes of a file to hand to the connection at once, and to have read beyond them.
    pub fn pages(&self) -> u64 {
        (PAGES / self.many()).clamp(LEAST_PAGES, MOST_PAGES) as u64
    }

    /// The same of what is in memory already.
    pub fn pages_in_memory(&self) -> u64 {
        let unsent = self.unsent.load(Ordering::Relaxed);
        self.pages().max(unsent.into())
    }

    /// A body of so many bytes is going to be sent.
    pub fn begins(&self, bytes: u64) {
        self.begins.store(true, Ordering::Relaxed);
        self.is_for(bytes);
    }

    /// The connection has been sent so many bytes, or is going to be.
    fn is_for(&self, bytes: u64) {
        if bytes >= LARGE && !self.counts.swap(true, Ordering::Relaxed) {
            self.buffers.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Connections that are sent much, to the next power of two: what follows from it is not done anew for each that comes
    /// and goes.
    fn many(&self) -> usize {
        self.buffers.0.load(Ordering::Relaxed).next_power_of_two()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if *self.counts.get_mut() {
            self.buffers.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Fitting {
    /// For a `stream` that has not been sent anything.
    pub fn new(share: Arc<Share>, stream: &TcpStream) -> Self {
        // Here as below: without it this connection takes more memory, and is as good as any.
        let _ = SockRef::from(stream).set_tcp_notsent_lowat(LEAST_UNSENT);
        Self {
            share,
            sent: 0,
            size: None,
            since: (Instant::now(), 0),
            last: Instant::now(),
            rate: None,
            is_paced: false,
        }
    }

    /// So many bytes more were written to `stream`.
    pub fn sent(&mut self, bytes: usize, stream: &TcpStream) {
        self.sent += bytes as u64;
        self.share.is_for(self.sent);
        if !self.share.counts.load(Ordering::Relaxed) {
            return;
        }
        let now = Instant::now();
        let last = std::mem::replace(&mut self.last, now);
        let is_first = !std::mem::replace(&mut self.is_paced, true);
        if is_first {
            // Without it what is sent comes in bursts.
            let _ = pacing::begin(stream);
        }
        // Between two files nobody read anything, and that was nobody's slowness.
        if self.share.begins.swap(false, Ordering::Relaxed) {
            self.since.0 += now.saturating_duration_since(last);
        }
        if is_first || self.rate.is_none() && self.sent <= SLOW_START {
            self.since = (now, self.sent);
        }
        let (began, before) = self.since;
        let enough = self.rate.map_or(FIRST_SAMPLE, |_| SAMPLE);
        if self.sent - before >= enough {
            let took = now.saturating_duration_since(began);
            let took = took.as_micros().max(1) as u64;
            self.rate = Some((self.sent - before) * 1_000_000 / took);
            self.since = (now, self.sent);
        }
        let many = self.share.many();
        let unsent = unsent(self.rate.unwrap_or(0), many);
        if unsent != self.share.unsent.swap(unsent, Ordering::Relaxed) {
            let _ = SockRef::from(stream).set_tcp_notsent_lowat(unsent);
        }
        let size = match (size(self.rate, many), self.size) {
            (None, Some(_)) => Some(MOST),
            (size, _) => size,
        };
        if let Some(bytes) = size
            && size != self.size
        {
            let _ = SockRef::from(stream).set_send_buffer_size(bytes);
            self.size = size;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::tests::connection;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn few_are_left_alone_and_many_share_the_budget() {
        const SLOW: Option<u64> = Some(60_000_000);
        const FAST: Option<u64> = Some(1_000_000_000);
        for (rate, connections, expected) in [
            (SLOW, 1, None),
            (SLOW, 4, None),
            (SLOW, 8, Some(MOST)),
            (FAST, 8, None),
            (None, 8, None),
            (None, 16, Some(MOST)),
            (FAST, 16, Some(MOST)),
            (SLOW, 32, Some(MOST)),
            (FAST, 64, Some(128 << 10)),
            (SLOW, 256, Some(LEAST)),
            (SLOW, 4096, Some(LEAST)),
        ] {
            let told = size(rate, connections);
            assert_eq!(told, expected, "{rate:?} bytes per second, {connections}");
        }
        for connections in (0..=8).map(|log| 1 << log) {
            let all = connections * size(SLOW, connections).unwrap_or(0) * 2;
            assert!(all <= BUDGET, "{connections}");
        }
    }

    #[test]
    fn who_reads_fast_may_have_more_unsent_as_far_as_the_budget_goes() {
        const MIB: u32 = 1 << 20;
        for (rate, connections, expected) in [
            (0, 1, LEAST_UNSENT),
            (60_000_000, 1, LEAST_UNSENT),
            (132_000_000, 1, MIB / 2),
            (600_000_000, 1, 2 * MIB),
            (9_000_000_000, 1, MOST_UNSENT),
            (u64::MAX, 4, MOST_UNSENT),
            (9_000_000_000, 8, 2 * MIB),
            (9_000_000_000, 32, MIB / 2),
            (9_000_000_000, 4096, LEAST_UNSENT),
        ] {
            let told = unsent(rate, connections);
            assert_eq!(told, expected, "{rate} bytes per second, {connections}");
        }
    }

    #[test]
    fn pages_are_shared_by_those_who_are_sent_much() {
        let buffers = Buffers::default();
        let share = buffers.share();
        for (connections, expected) in [
            (0, MOST_PAGES),
            (8, MOST_PAGES),
            (9, PAGES / 16),
            (64, PAGES / 64),
            (65, LEAST_PAGES),
            (4096, LEAST_PAGES),
        ] {
            buffers.0.store(connections, Ordering::Relaxed);
            assert_eq!(share.pages(), expected as u64, "{connections}");
        }
    }

    #[test]
    fn a_large_body_counts_from_its_beginning_to_the_end_of_its_connection() {
        let buffers = Buffers::default();
        let mut shares: Vec<Share> = (0..100).map(|_| buffers.share()).collect();
        for share in &shares {
            share.is_for(LARGE - 1);
        }
        assert_eq!(shares[0].pages(), MOST_PAGES as u64);
        for share in &shares {
            share.is_for(LARGE);
            share.is_for(LARGE);
        }
        assert_eq!(shares[0].pages(), LEAST_PAGES as u64);

        shares.truncate(8);

        assert_eq!(shares[0].pages(), MOST_PAGES as u64);
    }

    fn fitting(buffers: &Buffers, stream: &TcpStream) -> Fitting {
        Fitting::new(Arc::new(buffers.share()), stream)
    }

    fn buffer(stream: &TcpStream) -> usize {
        SockRef::from(stream).send_buffer_size().unwrap()
    }

    #[tokio::test]
    async fn a_crowd_gets_small_buffers_and_who_stays_gets_more_again() {
        let buffers = Buffers::default();
        let (first, _to) = connection().await;
        let untouched = buffer(&first);
        let mut fitted = fitting(&buffers, &first);
        fitted.sent(1 << 20, &first);
        assert_eq!(buffer(&first), untouched);

        let mut crowd = Vec::new();
        for _ in 0..100 {
            let mut small = fitting(&buffers, &first);
            small.sent(1000, &first);
            let (from, to) = connection().await;
            let mut fitted = fitting(&buffers, &from);
            fitted.sent(1 << 20, &from);
            crowd.push((fitted, from, to, small));
        }
        fitted.sent(1, &first);
        for (fitted, stream, ..) in &mut crowd {
            fitted.sent(1, stream);
        }
        let all: usize = crowd.iter().map(|(_, stream, ..)| buffer(stream)).sum();
        assert!(all + buffer(&first) <= BUDGET, "{all}");
        assert_eq!(buffer(&first), 128 << 10);

        drop(crowd);
        fitted.sent(1, &first);
        assert_eq!(buffer(&first), 2 * MOST);
    }

    #[tokio::test]
    async fn what_is_large_leaves_in_a_steady_stream() {
        let buffers = Buffers::default();
        let (stream, _to) = connection().await;
        let mut fitted = fitting(&buffers, &stream);

        fitted.sent(LARGE as usize - 1, &stream);
        assert!(!pacing::has_begun(&stream));

        fitted.sent(1, &stream);
        assert!(pacing::has_begun(&stream));
    }

    #[tokio::test(start_paused = true)]
    async fn the_socket_and_what_is_handed_to_it_go_with_the_rate() {
        let buffers = Buffers::default();
        let (stream, _to) = connection().await;
        let unsent = || SockRef::from(&stream).tcp_notsent_lowat().unwrap();
        let mut fitted = fitting(&buffers, &stream);
        let share = Arc::clone(&fitted.share);
        let at_first = (unsent(), share.pages_in_memory());
        assert_eq!(at_first, (LEAST_UNSENT, MOST_PAGES as u64));

        fitted.sent(SLOW_START as usize, &stream);
        tokio::time::advance(MS).await;
        fitted.sent(FIRST_SAMPLE as usize, &stream);
        assert_eq!((unsent(), share.pages_in_memory()), (4 << 20, 4 << 20));

        tokio::time::advance(400 * MS).await;
        share.begins(1);
        fitted.sent(1, &stream);
        tokio::time::advance(4 * MS).await;
        fitted.sent(SAMPLE as usize, &stream);
        assert_eq!(unsent(), 4 << 20, "nothing was asked for in between");

        let others: Vec<Share> = (0..7).map(|_| buffers.share()).collect();
        others.iter().for_each(|other| other.is_for(LARGE));
        fitted.sent(1, &stream);
        assert_eq!((unsent(), share.pages_in_memory()), (2 << 20, 2 << 20));

        tokio::time::advance(400 * MS).await;
        fitted.sent(SAMPLE as usize, &stream);
        assert_eq!((unsent(), share.pages_in_memory()), at_first);
    }
}
