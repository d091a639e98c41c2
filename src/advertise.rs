//! Flow 1: keeps what the cluster is told equal to what the node holds.
//!
//! Level-triggered: each snapshot is compared with what was told last. Nothing else is remembered and nothing is
//! retried, so lost events, a restart of the content store and our own restart are one code path. What an operator keeps
//! out of the cluster is not told ([`selection`]).

mod selection;

use std::collections::HashSet;
use std::sync::Arc;

use futures::StreamExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::content::{ContentStore, Snapshot};
use crate::oci::Key;
use crate::oci::filter::Filter;
use crate::readiness::Guard;
use crate::routing::{Router, RouterClosed};
use selection::Selection;

pub use selection::Pulls;

/// What this node holds, and what of it the cluster is told, as of the last listing.
#[derive(Debug, Default)]
pub struct Held {
    pub snapshot: Snapshot,
    pub told: Arc<HashSet<Key>>,
}

/// Whoever wants to see it. Cloneable; all clones see the same.
#[derive(Clone, Debug, Default)]
pub struct Holdings(watch::Sender<Arc<Held>>);

impl Holdings {
    /// Tells of what comes; what is there already was seen.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Held>> {
        self.0.subscribe()
    }

    pub fn now(&self) -> Arc<Held> {
        self.0.borrow().clone()
    }
}

/// Runs until `stop`, or until the router has ended. `ready` is dropped when the first snapshot has been told.
pub async fn run(
    store: Arc<dyn ContentStore>,
    router: Arc<dyn Router>,
    filter: Arc<Filter>,
    pulls: Pulls,
    holdings: Holdings,
    ready: Guard,
    stop: CancellationToken,
) {
    ready.because("the first listing of what this node holds");
    let mut ready = Some(ready);
    let mut told = Arc::new(HashSet::new());
    let mut selection = Selection::new(filter, pulls);
    let mut snapshots = store.watch();
    loop {
        let snapshot = tokio::select! {
            () = stop.cancelled() => return,
            snapshot = snapshots.next() => snapshot,
        };
        let Some(held) = snapshot else {
            return;
        };
        let shared = tokio::select! {
            () = stop.cancelled() => return,
            shared = selection.of(&*store, &held) => shared,
        };
        if let Err(RouterClosed) = tell(&*router, &told, &shared).await {
            return;
        }
        told = Arc::new(shared);
        holdings.0.send_replace(Arc::new(Held {
            snapshot: held,
            told: told.clone(),
        }));
        ready.take();
    }
}

async fn tell(
    router: &dyn Router,
    told: &HashSet<Key>,
    shared: &HashSet<Key>,
) -> Result<(), RouterClosed> {
    let gone: Vec<Key> = told.difference(shared).cloned().collect();
    let new: Vec<Key> = shared.difference(told).cloned().collect();
    if !gone.is_empty() || !new.is_empty() {
        debug!(new = new.len(), gone = gone.len(), "content changed");
    }
    if !gone.is_empty() {
        router.withdraw(gone).await?;
    }
    if !new.is_empty() {
        router.advertise(new).await?;
    }
    Ok(())
}
