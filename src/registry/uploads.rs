//! How much a holder gives away at once.
//!
//! A node that alone holds a popular image is asked by everybody. Beyond a number of bodies it says so (503) and names
//! others who hold it by now; its own containerd is never turned away, nor are small requests, which cost less than the
//! answer. Among peers the share is fair: whoever has more than his part gets nothing new while others wait.
//!
//! Of one content only as many peers read at once as there are children of a growing one, as long as those who come can
//! follow each other: of a star with eight points each gets an eighth of the uplink, in a tree each gets half of it.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::inflight::uplink::FANOUT;
use crate::oci::Digest;
use crate::oci::distribution::Following;

/// Manifests, configurations and whatever else is gone before it could be refused, in bytes.
pub const SMALL: u64 = 1 << 20;

/// As long as a reader needs to show what the uplink carries. Who follows others and gets little is taken in when the last
/// one came that long ago: all those who follow a slow one find that out in the same second.
const SETTLED: Duration = Duration::from_secs(2);

/// Cloneable; all clones count together.
#[derive(Clone, Debug)]
pub struct Uploads {
    max: usize,
    readers: Arc<Mutex<Readers>>,
}

#[derive(Debug, Default)]
struct Readers {
    next: u64,
    under_way: HashMap<u64, Reader>,
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
            readers: Arc::default(),
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
        let is_full = distinct(same().map(|other| other.peer)) >= FANOUT as usize;
        // Who reads it in several parts at once is one of those whom others follow.
        let is_known = same().any(|other| other.peer == peer);
        let is_settled = same().all(|other| now.duration_since(other.began) >= SETTLED);
        let has_to_follow = match following {
            Following::No => false,
            Following::May => is_full,
            Following::Slowly => is_full && !is_settled,
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

    #[test]
    fn of_one_content_two_read_at_once_where_the_others_can_follow_them() {
        let uploads = Uploads::new(64);
        let [layer, another] = [b"layer", b"other"].map(|name| Digest::sha256(name));
        let first = uploads.begin(peer(1), &layer, Following::May).unwrap();
        let _second = uploads.begin(peer(2), &layer, Following::May).unwrap();

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
        let _first: Vec<_> = [1, 2]
            .map(|n| uploads.begin(peer(n), &layer, Following::May).unwrap())
            .into();
        assert_eq!(slowly(3).err(), Some(Full::Content));
        tokio::time::advance(SETTLED).await;
        let third = slowly(3).unwrap();
        assert_eq!(slowly(4).err(), Some(Full::Content));
        tokio::time::advance(SETTLED).await;

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
