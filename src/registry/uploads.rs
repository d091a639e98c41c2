//! How much a holder gives away at once.
//!
//! A node that alone holds a popular image is asked by everybody. Beyond a number of bodies it says so (503) and names
//! others who hold it by now; its own containerd is never turned away, nor are small requests, which cost less than the
//! answer. Among peers the share is fair: whoever has more than his part gets nothing new while others wait.
//!
//! Of one content only as many peers read at once as there are children of a growing one, and as few of all contents come at
//! once, as long as those who come can follow each other: of a star with eight points each gets an eighth of the uplink.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::inflight::uplink::{FANOUT, FRESH, MAX_FRESH, Sent};
use crate::oci::Digest;
use crate::oci::distribution::Following;

/// Manifests, configurations and whatever else is gone before it could be refused, in bytes.
pub const SMALL: u64 = 1 << 20;

/// As long as a reader needs to show what the uplink carries. Who follows others and gets little is taken in when the last
/// one came that long ago: all those who follow a slow one find that out in the same second.
const SETTLED: Duration = Duration::from_secs(2);
/// And only while less than half as much leaves as ever has: else the uplink is full, and whoever is added takes from those whom
/// all others follow. Seven nodes that followed two readers of one holder, and went there one by one for what they got less than
/// those, were done after 22 to 28 s instead of 15 to 19 s (measured). Taken over so long that what fits into the sockets' buffers
/// at once, 4 MiB for each reader, is no rate.
const RATE: Duration = Duration::from_secs(4);

/// Cloneable; all clones count together.
#[derive(Clone, Debug)]
pub struct Uploads {
    max: usize,
    readers: Arc<Mutex<Readers>>,
}

#[derive(Debug)]
struct Readers {
    next: u64,
    under_way: HashMap<u64, Reader>,
    sent: Sent,
    /// Bytes per second, the most that ever left.
    most: u64,
}

#[derive(Clone, Debug)]
struct Reader {
    peer: IpAddr,
    digest: Digest,
    began: Instant,
}

/// One body under way to a peer, until it is dropped.
#[derive(Debug)]
pub struct Upload {
    uploads: Uploads,
    id: u64,
}

/// Why a peer has to go elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// All bodies there may be are under way, or its part of them.
    Share,
    /// Enough others read this content, and it can take it from one of those.
    Content,
}

impl Uploads {
    /// At most `max` bodies at once.
    pub fn new(max: usize) -> Self {
        Self {
            max,
            readers: Arc::new(Mutex::new(Readers {
                next: 0,
                under_way: HashMap::new(),
                sent: Sent::over(RATE),
                most: 0,
            })),
        }
    }

    /// A body of `digest` to `peer`, who may be able to take it from those who read it already.
    pub fn begin(
        &self,
        peer: IpAddr,
        digest: &Digest,
        following: Following,
    ) -> Result<Upload, Full> {
        let now = Instant::now();
        // One node, whichever of its notations the socket gives.
        let peer = peer.to_canonical();
        let mut readers = self.readers();
        let all = || readers.under_way.values();
        let his = all().filter(|other| other.peer == peer).count();
        let peers = distinct(all().map(|other| other.peer)) + usize::from(his == 0);
        let share = (self.max / peers).max(1);
        if all().count() >= self.max || his >= share {
            return Err(Full::Share);
        }
        let same = || all().filter(|other| other.digest == *digest);
        let fresh = all().filter(|other| now.duration_since(other.began) < FRESH);
        let is_full = distinct(same().map(|other| other.peer)) >= FANOUT as usize
            || fresh.count() >= MAX_FRESH as usize;
        // Who reads it in several parts at once is one of those whom others follow.
        let is_known = same().any(|other| other.peer == peer);
        let is_settled = same().all(|other| now.duration_since(other.began) >= SETTLED);
        let has_to_follow = match following {
            Following::No => false,
            Following::May => is_full,
            Following::Slowly => {
                let has_room = readers.sent.rate(now) < readers.most / 2;
                is_full && !(is_settled && has_room)
            }
        };
        if has_to_follow && !is_known {
            return Err(Full::Content);
        }
        let reader = Reader {
            peer,
            digest: digest.clone(),
            began: now,
        };
        let id = readers.next;
        readers.next += 1;
        readers.under_way.insert(id, reader);
        drop(readers);
        Ok(Upload {
            uploads: self.clone(),
            id,
        })
    }

    fn readers(&self) -> MutexGuard<'_, Readers> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Upload {
    /// So many bytes more have been given to it.
    pub fn sends(&self, bytes: u64) {
        let now = Instant::now();
        let mut readers = self.uploads.readers();
        readers.sent.add(bytes, now);
        readers.most = readers.most.max(readers.sent.rate(now));
    }
}

fn distinct(peers: impl Iterator<Item = IpAddr>) -> usize {
    peers.collect::<HashSet<_>>().len()
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.uploads.readers().under_way.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    fn begin(uploads: &Uploads, peer: IpAddr) -> Result<Upload, Full> {
        uploads.begin(peer, &Digest::sha256(b"layer"), Following::No)
    }

    #[test]
    fn the_limit_holds_and_what_ends_makes_room() {
        let uploads = Uploads::new(4);
        let mut under_way: Vec<_> = (0..4).map(|n| begin(&uploads, peer(n)).unwrap()).collect();
        assert!(begin(&uploads, peer(9)).is_err());

        under_way.pop();

        assert!(begin(&uploads, peer(9)).is_ok());
    }

    #[test]
    fn one_peer_may_have_everything_until_another_comes() {
        let uploads = Uploads::new(8);
        let greedy: Vec<_> = (0..6).map(|_| begin(&uploads, peer(1)).unwrap()).collect();

        let modest = begin(&uploads, peer(2)).unwrap();

        assert!(
            begin(&uploads, peer(1)).is_err(),
            "six of eight are not half"
        );
        assert!(begin(&uploads, peer(2)).is_ok());
        drop((greedy, modest));
        assert!(begin(&uploads, peer(1)).is_ok());
    }

    #[test]
    fn both_notations_of_an_address_are_one_peer() {
        let uploads = Uploads::new(2);
        let _other = begin(&uploads, peer(9)).unwrap();
        let _v4 = begin(&uploads, "10.0.0.1".parse().unwrap()).unwrap();

        assert!(begin(&uploads, "::ffff:10.0.0.1".parse().unwrap()).is_err());
    }

    #[test]
    fn even_the_smallest_limit_serves_somebody() {
        let uploads = Uploads::new(1);
        let one = begin(&uploads, peer(1)).unwrap();
        assert!(begin(&uploads, peer(2)).is_err());
        drop(one);
        assert!(begin(&uploads, peer(2)).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn three_of_those_who_can_follow_others_come_at_once() {
        let uploads = Uploads::new(64);
        let layers = ["a", "b", "c", "d"].map(|name| Digest::sha256(name.as_bytes()));
        let first: Result<Vec<_>, _> = layers[..3]
            .iter()
            .map(|layer| uploads.begin(peer(1), layer, Following::May))
            .collect();
        assert_eq!(first.as_ref().map(Vec::len), Ok(3));
        let second = uploads.begin(peer(2), &layers[3], Following::May);
        assert_eq!(second.err(), Some(Full::Content));
        assert!(uploads.begin(peer(2), &layers[3], Following::No).is_ok());

        tokio::time::advance(FRESH).await;

        assert!(uploads.begin(peer(2), &layers[0], Following::May).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn of_one_content_two_read_at_once_where_the_others_can_follow_them() {
        let uploads = Uploads::new(64);
        let [layer, another] = [b"layer", b"other"].map(|name| Digest::sha256(name));
        let first = uploads.begin(peer(1), &layer, Following::May).unwrap();
        let _second = uploads.begin(peer(2), &layer, Following::May).unwrap();
        tokio::time::advance(FRESH).await;

        let third = uploads.begin(peer(3), &layer, Following::May);

        assert_eq!(third.err(), Some(Full::Content));
        let parts = uploads.begin(peer(2), &layer, Following::May);
        assert!(parts.is_ok(), "another part of what it reads already");
        assert!(uploads.begin(peer(3), &another, Following::May).is_ok());
        drop(first);
        assert!(uploads.begin(peer(3), &layer, Following::May).is_ok());
    }

    #[test]
    fn who_cannot_follow_is_turned_away_only_where_all_is_given() {
        let uploads = Uploads::new(4);
        let layer = Digest::sha256(b"layer");
        let readers: Result<Vec<_>, _> = (0..4)
            .map(|n| uploads.begin(peer(n), &layer, Following::No))
            .collect();
        assert_eq!(readers.as_ref().map(Vec::len), Ok(4));

        let fifth = uploads.begin(peer(4), &layer, Following::May);

        assert_eq!(
            fifth.err(),
            Some(Full::Share),
            "it is told of others that have it"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn of_those_who_get_little_elsewhere_one_is_taken_in_at_a_time() {
        let uploads = Uploads::new(64);
        let layer = Digest::sha256(b"layer");
        let slowly = |n| uploads.begin(peer(n), &layer, Following::Slowly);
        // Once there was much to do.
        let before = uploads.begin(peer(9), &layer, Following::No).unwrap();
        before.sends(100 << 20);
        drop(before);
        tokio::time::advance(RATE).await;
        let first = [1, 2].map(|n| uploads.begin(peer(n), &layer, Following::May).unwrap());
        assert_eq!(slowly(3).err(), Some(Full::Content));
        tokio::time::advance(SETTLED).await;
        let third = slowly(3).unwrap();
        assert_eq!(slowly(4).err(), Some(Full::Content));
        tokio::time::advance(SETTLED).await;

        first[0].sends(60 << 20);
        assert_eq!(slowly(4).err(), Some(Full::Content), "the uplink is full");
        tokio::time::advance(RATE).await;
        assert!(slowly(4).is_ok());

        drop(third);
        let may = uploads.begin(peer(5), &layer, Following::May);
        assert_eq!(
            may.err(),
            Some(Full::Content),
            "it has not tried the others"
        );
    }
}
