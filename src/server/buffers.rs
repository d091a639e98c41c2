//! What is in memory on its way to those who are sent something: many at once share one budget in the sockets, and one in
//! the page cache.
//!
//! In a cgroup of version 2 it counts as the pod's memory. Linux lets a send buffer grow to what the way to its reader takes, up
//! to 4 MiB each (`tcp_wmem`), and 200 bodies to readers on busy machines held 250 MiB.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use socket2::SockRef;
use tokio::net::TcpStream;

/// In bytes, for all together. What the kernel keeps beside them makes it half as much again.
const BUDGET: usize = 16 << 20;
/// So few have the budget with buffers as large as Linux makes them, and are left alone: over a long way one needs megabytes.
const FEW: usize = 4;
/// Nobody unprivileged is given more by SO_SNDBUF (`net.core.wmem_max`, 212,992 bytes where nobody changed it). The kernel
/// doubles it for what it keeps beside the bytes: 416 KiB, which is 400 MB/s for each at 1 ms.
const MOST: usize = 208 << 10;
/// Below this a reader that is a millisecond away is slowed down. More than 256 at once take more than the budget.
const LEAST: usize = 32 << 10;
/// Who has been sent less may never be sent more.
const LARGE: u64 = 256 << 10;
/// Of files, in bytes, for all together: what has been handed to a connection that has not sent it yet, and as much again
/// that is being read ahead of it. More than what a pod's limit leaves for page cache would be given back before it is
/// sent, and read again: at 128 MiB that had a disk read ten times what went out (docs/performance.md).
const PAGES: usize = 16 << 20;
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
    sent: u64,
    counts: bool,
    /// What SO_SNDBUF was last set to; that cannot be undone, but more can be asked for again.
    size: Option<usize>,
}

impl Buffers {
    /// Bytes of a file to hand to a connection at once, and to have read beyond them.
    pub fn pages(&self) -> u64 {
        let many = self.0.load(Ordering::Relaxed).next_power_of_two();
        (PAGES / many).clamp(LEAST_PAGES, MOST_PAGES) as u64
    }

    pub fn share(&self) -> Share {
        Share {
            buffers: self.clone(),
            sent: 0,
            counts: false,
            size: None,
        }
    }
}

/// What SO_SNDBUF should be for each of so many. None: whatever Linux makes of it.
fn size(connections: usize) -> Option<usize> {
    // By powers of two, so that it is not set anew with each that comes and goes.
    let many = connections.next_power_of_two();
    (many > FEW).then(|| (BUDGET / many / 2).clamp(LEAST, MOST))
}

impl Share {
    /// So many bytes more were written to `stream`.
    pub fn sent(&mut self, bytes: usize, stream: &TcpStream) {
        self.sent += bytes as u64;
        if self.sent < LARGE {
            return;
        }
        let count = &self.buffers.0;
        if !self.counts {
            self.counts = true;
            count.fetch_add(1, Ordering::Relaxed);
        }
        let size = match (size(count.load(Ordering::Relaxed)), self.size) {
            (None, Some(_)) => Some(MOST),
            (size, _) => size,
        };
        if let Some(bytes) = size
            && size != self.size
        {
            // Without it this connection takes more memory, and is as good as any.
            let _ = SockRef::from(stream).set_send_buffer_size(bytes);
            self.size = size;
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.counts {
            self.buffers.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[test]
    fn few_are_left_alone_and_many_share_the_budget() {
        for (connections, expected) in [
            (1, None),
            (4, None),
            (5, Some(MOST)),
            (32, Some(MOST)),
            (64, Some(128 << 10)),
            (200, Some(LEAST)),
            (4096, Some(LEAST)),
        ] {
            assert_eq!(size(connections), expected, "{connections}");
        }
        for connections in 1..=256 {
            let all = connections * size(connections).unwrap_or(0) * 2;
            assert!(all <= BUDGET, "{connections}");
        }
    }

    #[test]
    fn pages_are_shared_by_those_who_are_sent_much() {
        let buffers = Buffers::default();
        for (connections, expected) in [
            (0, MOST_PAGES),
            (16, MOST_PAGES),
            (17, PAGES / 32),
            (64, PAGES / 64),
            (65, LEAST_PAGES),
            (4096, LEAST_PAGES),
        ] {
            buffers.0.store(connections, Ordering::Relaxed);
            assert_eq!(buffers.pages(), expected as u64, "{connections}");
        }
    }

    /// A connection, and what SO_SNDBUF of its sending side is.
    async fn connection(listener: &TcpListener) -> (TcpStream, TcpStream) {
        let address = listener.local_addr().unwrap();
        let (from, to) = tokio::join!(TcpStream::connect(address), listener.accept());
        (from.unwrap(), to.unwrap().0)
    }

    fn buffer(stream: &TcpStream) -> usize {
        SockRef::from(stream).send_buffer_size().unwrap()
    }

    #[tokio::test]
    async fn a_crowd_gets_small_buffers_and_who_stays_gets_more_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let buffers = Buffers::default();
        let (first, _to) = connection(&listener).await;
        let untouched = buffer(&first);
        let mut share = buffers.share();
        share.sent(1 << 20, &first);
        assert_eq!(buffer(&first), untouched);

        let mut crowd = Vec::new();
        for _ in 0..100 {
            let mut small = buffers.share();
            small.sent(1000, &first);
            let (from, to) = connection(&listener).await;
            let mut share = buffers.share();
            share.sent(1 << 20, &from);
            crowd.push((share, from, to, small));
        }
        share.sent(1, &first);
        for (share, stream, ..) in &mut crowd {
            share.sent(1, stream);
        }
        let all: usize = crowd.iter().map(|(_, stream, ..)| buffer(stream)).sum();
        assert!(all + buffer(&first) <= BUDGET, "{all}");
        assert_eq!(buffer(&first), 128 << 10);

        drop(crowd);
        share.sent(1, &first);
        assert_eq!(buffer(&first), 2 * MOST);
    }
}
