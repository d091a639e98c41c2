//! What this node did lately: its last requests, what is under way, and where bytes came from, minute by minute.
//!
//! For people: nothing is decided by it, and nothing of it outlives the process. A request costs two short locks, at its
//! beginning and at its end, and one that nobody else holds for each chunk of its body. What minutes hold is read from the
//! metrics now and then ([`Recent::sample`]), so that a body of ten minutes counts when its bytes go, not when it ends.

mod journey;
mod minutes;
mod pace;
mod request;

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::sync::broadcast;

pub use journey::{Journey, Leg, NotDelivered};
pub use minutes::{ByBytes, ByRequests, Minute, Totals};
pub use request::{Asked, Asker, Ended, Kind, Request, Transfer};

/// Of this node's own containerd: ten images of thirty layers. One takes about 1 KiB.
const OWN: usize = 300;
/// Of peers, apart from those: a popular node has hundreds a second, which would drive out everything else.
const PEERS: usize = 200;
/// Who listens and is slower than this misses some, and reads all of them again.
const BEHIND: usize = 256;
/// Peers whose bytes are counted. A cluster of this size has other worries.
const MAX_PEERS: usize = 4096;

/// Cloneable; all clones remember the same.
#[derive(Clone, Debug)]
pub struct Recent(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    next: AtomicU64,
    under_way: Mutex<HashMap<u64, Arc<Transfer>>>,
    ended: Mutex<Rings>,
    by_peer: Mutex<HashMap<IpAddr, PeerBytes>>,
    minutes: Mutex<minutes::Minutes>,
    listeners: broadcast::Sender<Arc<Request>>,
}

#[derive(Debug, Default)]
struct Rings {
    own: VecDeque<Arc<Request>>,
    peers: VecDeque<Arc<Request>>,
}

/// Bytes of bodies, by the address of the other node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PeerBytes {
    /// What it brought to this node.
    pub from: u64,
    /// What it took from this node.
    pub to: u64,
}

impl Default for Recent {
    fn default() -> Self {
        Self(Arc::new(Inner {
            next: AtomicU64::new(1),
            under_way: Mutex::default(),
            ended: Mutex::default(),
            by_peer: Mutex::default(),
            minutes: Mutex::default(),
            listeners: broadcast::Sender::new(BEHIND),
        }))
    }
}

impl Recent {
    /// A request has come; it is under way until what is returned ends.
    pub fn begin(&self, asked: Asked) -> Arc<Transfer> {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let transfer = Arc::new(Transfer::new(id, unix_millis(), asked));
        lock(&self.0.under_way).insert(id, transfer.clone());
        transfer
    }

    /// It is over, and this is how it was.
    pub fn end(&self, transfer: &Transfer, ended: Ended) {
        lock(&self.0.under_way).remove(&transfer.id);
        let request = Arc::new(transfer.told(ended));
        self.count(&request);
        {
            let mut rings = lock(&self.0.ended);
            let (ring, most) = match request.asked.by {
                Asker::Peer => (&mut rings.peers, PEERS),
                Asker::Containerd | Asker::Trial => (&mut rings.own, OWN),
            };
            if ring.len() == most {
                ring.pop_front();
            }
            ring.push_back(request.clone());
        }
        // Nobody listens, as a rule.
        let _ = self.0.listeners.send(request);
    }

    fn count(&self, request: &Request) {
        let mut by_peer = lock(&self.0.by_peer);
        let mut add = |ip: IpAddr, from: u64, to: u64| {
            let ip = ip.to_canonical();
            if by_peer.len() >= MAX_PEERS && !by_peer.contains_key(&ip) {
                return;
            }
            let bytes = by_peer.entry(ip).or_default();
            bytes.from += from;
            bytes.to += to;
        };
        for leg in &request.from {
            if let Some(at) = leg.at {
                add(at.ip(), leg.bytes, 0);
            }
        }
        if request.asked.by == Asker::Peer
            && request.bytes > 0
            && let Some(ip) = request.asked.remote
        {
            add(ip, 0, request.bytes);
        }
    }

    /// What has ended, the newest first: of this node's containerd, or of peers.
    pub fn ended(&self, of_peers: bool) -> Vec<Arc<Request>> {
        let rings = lock(&self.0.ended);
        let ring = if of_peers { &rings.peers } else { &rings.own };
        ring.iter().rev().cloned().collect()
    }

    /// What is under way, the oldest first.
    pub fn under_way(&self) -> Vec<Arc<Transfer>> {
        let mut all: Vec<_> = lock(&self.0.under_way).values().cloned().collect();
        all.sort_by_key(|transfer| transfer.id);
        all
    }

    pub fn bytes_by_peer(&self) -> HashMap<IpAddr, PeerBytes> {
        lock(&self.0.by_peer).clone()
    }

    /// Whatever ends from now on.
    pub fn listen(&self) -> broadcast::Receiver<Arc<Request>> {
        self.0.listeners.subscribe()
    }

    /// The totals stand so now: what has come since they were last told belongs to this minute.
    pub fn sample(&self, totals: &Totals) {
        lock(&self.0.minutes).sample(totals, unix_millis() / 60_000);
    }

    /// The last hour, one entry for each minute, the oldest first.
    pub fn last_hour(&self) -> Vec<Minute> {
        lock(&self.0.minutes).last_hour(unix_millis() / 60_000)
    }
}

/// Milliseconds since 1970.
pub fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or(Duration::ZERO).as_millis()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half done when a holder panics.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(by: Asker) -> Asked {
        Asked {
            by,
            remote: Some([10, 0, 0, 7].into()),
            ..Asked::of("GET", "/v2/a/blobs/sha256:1", Some("r.test"))
        }
    }

    fn ended(status: u16) -> Ended {
        Ended {
            status,
            source: "peer",
            ..Ended::default()
        }
    }

    #[test]
    fn what_is_under_way_ends_and_is_remembered_up_to_a_bound() {
        let recent = Recent::default();
        let mut heard = recent.listen();
        let first = recent.begin(asked(Asker::Containerd));
        first.brought(40);
        assert_eq!(recent.under_way()[0].bytes(), 40);

        recent.end(&first, ended(200));

        assert!(recent.under_way().is_empty());
        assert_eq!(heard.try_recv().unwrap().bytes, 40);
        for _ in 0..OWN {
            recent.end(&recent.begin(asked(Asker::Containerd)), ended(404));
        }
        let own = recent.ended(false);
        assert_eq!((own.len(), own[0].status), (OWN, 404));
        assert!(own[0].id > own[1].id, "the newest first");
        assert!(own.iter().all(|request| request.id != first.id));
    }

    #[test]
    fn peers_do_not_drive_out_what_containerd_asked() {
        let recent = Recent::default();
        recent.end(&recent.begin(asked(Asker::Containerd)), ended(200));

        for _ in 0..2 * PEERS {
            recent.end(&recent.begin(asked(Asker::Peer)), ended(200));
        }

        assert_eq!(recent.ended(false).len(), 1);
        assert_eq!(recent.ended(true).len(), PEERS);
    }

    #[test]
    fn bytes_count_for_each_node_that_had_a_part_in_them() {
        let recent = Recent::default();
        let down = recent.begin(asked(Asker::Containerd));
        let at = |n: u8| Some(([10, 0, 0, n], 5000).into());
        down.journey.begins("a", at(1), false);
        down.journey.brought(30);
        down.journey.resumes("b", at(2), true);
        down.journey.brought(12);
        recent.end(&down, ended(200));
        let up = recent.begin(asked(Asker::Peer));
        up.brought(5);
        recent.end(&up, ended(200));

        let bytes = recent.bytes_by_peer();

        let of = |n: u8| bytes[&IpAddr::from([10, 0, 0, n])];
        assert_eq!(of(1), PeerBytes { from: 30, to: 0 });
        assert_eq!(of(2), PeerBytes { from: 12, to: 0 });
        assert_eq!(of(7), PeerBytes { from: 0, to: 5 });
    }
}
