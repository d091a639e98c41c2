//! Whose fault it was that containerd refused what it had been given.
//!
//! Bytes are checked by containerd alone, at the end: a wrong one fails the pull. Whoever brought them is not asked for
//! this content again for a moment, so that the next try goes elsewhere. It is distrusted for longer only if its own copy
//! was accepted by its own containerd: else it had the wrong bytes from its own source, and one bit flipped in the
//! registry would make a whole tree distrust itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::Method;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::mirror::Papers;
use crate::mirror::attempt::{Ask, PeerError, attempt};
use crate::oci::Digest;
use crate::oci::distribution::Following;
use crate::routing::{Peer, PeerId};

/// containerd forgets a refused download within a second, and the kubelet comes back after 10 s.
const SUSPECT: Duration = Duration::from_secs(30);
/// As long as it takes somebody to look at that node.
const DISTRUST: Duration = Duration::from_secs(600);
/// A peer that got the same bytes at the same time commits them at the same time; on a slow disk that takes a while.
const ITS_OWN: Duration = Duration::from_secs(2);
/// (peer, content) pairs that are remembered.
const MAX: usize = 4096;

/// Cloneable; all clones remember the same.
#[derive(Clone, Debug, Default)]
pub struct Distrust(Arc<Mutex<HashMap<(PeerId, Digest), Distrusted>>>);

#[derive(Clone, Copy, Debug)]
struct Distrusted {
    until: Instant,
    is_proven: bool,
}

/// Whom a body came from, and how to ask him for it.
#[derive(Clone, Debug)]
pub struct Giver {
    pub peer: Peer,
    pub path_and_query: String,
}

impl Distrust {
    /// Whether `peer` should not be asked for `digest` now.
    pub fn is_distrusted(&self, peer: &PeerId, digest: &Digest) -> bool {
        self.known(peer, digest).is_some()
    }

    /// Whether it has sent wrong bytes although its own are right.
    pub fn is_proven(&self, peer: &PeerId, digest: &Digest) -> bool {
        self.known(peer, digest)
            .is_some_and(|known| known.is_proven)
    }

    /// containerd refused what `givers` brought.
    pub fn refused(&self, digest: &Digest, givers: &[Giver]) {
        for giver in givers {
            self.note(&giver.peer.id, digest, SUSPECT, false);
        }
    }

    /// Asks each of them whether its own copy was accepted.
    pub async fn judge(&self, digest: &Digest, givers: Vec<Giver>, papers: &Papers) {
        for Giver {
            peer,
            path_and_query,
        } in givers
        {
            let ask = Ask {
                method: Method::HEAD,
                path_and_query,
                range: None,
                growing: None,
                following: Following::No,
            };
            let mut holds = attempt(&peer, &ask, papers).await;
            if matches!(holds, Err(PeerError::Absent)) {
                sleep(ITS_OWN).await;
                holds = attempt(&peer, &ask, papers).await;
            }
            match holds {
                Ok(_) => {
                    warn!(
                        %digest, peer = %peer.id, registry = ?peer.registry,
                        "sent wrong bytes, although its own copy is said to be right: not asked for it for 10 min"
                    );
                    self.note(&peer.id, digest, DISTRUST, true);
                }
                Err(error) => {
                    // It was no more than on the way.
                    let key = (peer.id.clone(), digest.clone());
                    self.lock().remove(&key);
                    info!(%digest, peer = %peer.id, %error, "sent wrong bytes, and has none that are right either");
                }
            }
        }
    }

    fn known(&self, peer: &PeerId, digest: &Digest) -> Option<Distrusted> {
        let key = (peer.clone(), digest.clone());
        let known = self.lock().get(&key).copied();
        known.filter(|known| Instant::now() < known.until)
    }

    fn note(&self, peer: &PeerId, digest: &Digest, time: Duration, is_proven: bool) {
        let now = Instant::now();
        let mut all = self.lock();
        if all.len() >= MAX {
            all.retain(|_, known| now < known.until);
        }
        if all.len() < MAX {
            let until = now + time;
            let known = Distrusted { until, is_proven };
            all.insert((peer.clone(), digest.clone()), known);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(PeerId, Digest), Distrusted>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
