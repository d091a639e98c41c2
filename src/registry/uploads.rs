//! How much a holder gives away at once.
//!
//! A node that alone holds a popular image is asked by everybody. Beyond a number of bodies it says so (503) and names
//! others who hold it by now; its own containerd is never turned away, nor are small requests, which cost less than the
//! answer. Among peers the share is fair: whoever has more than his part gets nothing new while others wait.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Manifests, configurations and whatever else is gone before it could be refused, in bytes.
pub const SMALL: u64 = 1 << 20;
/// Cloneable; all clones count together.
#[derive(Clone, Debug)]
pub struct Uploads {
    max: usize,
    by_peer: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One body under way to a peer, until it is dropped.
#[derive(Debug)]
pub struct Upload {
    uploads: Uploads,
    peer: IpAddr,
}

impl Uploads {
    /// At most `max` bodies at once.
    pub fn new(max: usize) -> Self {
        Self {
            max,
            by_peer: Arc::default(),
        }
    }

    /// None where `peer` has to go elsewhere.
    pub fn begin(&self, peer: IpAddr) -> Option<Upload> {
        // One node, whichever of its notations the socket gives.
        let peer = peer.to_canonical();
        let mut by_peer = self.by_peer.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = by_peer.values().sum();
        let his = by_peer.get(&peer).copied().unwrap_or(0);
        let peers = by_peer.len() + usize::from(his == 0);
        let share = (self.max / peers).max(1);
        if all >= self.max || his >= share {
            return None;
        }
        by_peer.insert(peer, his + 1);
        Some(Upload {
            uploads: self.clone(),
            peer,
        })
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let mut by_peer = self
            .uploads
            .by_peer
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_peer.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                by_peer.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    #[test]
    fn the_limit_holds_and_what_ends_makes_room() {
        let uploads = Uploads::new(4);
        let mut under_way: Vec<_> = (0..4).map(|n| uploads.begin(peer(n)).unwrap()).collect();
        assert!(uploads.begin(peer(9)).is_none());

        under_way.pop();

        assert!(uploads.begin(peer(9)).is_some());
    }

    #[test]
    fn one_peer_may_have_everything_until_another_comes() {
        let uploads = Uploads::new(8);
        let greedy: Vec<_> = (0..6).map(|_| uploads.begin(peer(1)).unwrap()).collect();

        let modest = uploads.begin(peer(2)).unwrap();

        assert!(
            uploads.begin(peer(1)).is_none(),
            "six of eight are not half"
        );
        assert!(uploads.begin(peer(2)).is_some());
        drop((greedy, modest));
        assert!(uploads.begin(peer(1)).is_some());
    }

    #[test]
    fn both_notations_of_an_address_are_one_peer() {
        let uploads = Uploads::new(2);
        let _other = uploads.begin(peer(9)).unwrap();
        let _v4 = uploads.begin("10.0.0.1".parse().unwrap()).unwrap();

        assert!(uploads.begin("::ffff:10.0.0.1".parse().unwrap()).is_none());
    }

    #[test]
    fn even_the_smallest_limit_serves_somebody() {
        let uploads = Uploads::new(1);
        let one = uploads.begin(peer(1)).unwrap();
        assert!(uploads.begin(peer(2)).is_none());
        drop(one);
        assert!(uploads.begin(peer(2)).is_some());
    }
}
