//! When to look again: changes of the directory, and the clock.
//!
//! Nothing is concluded from an event but that the last listing is old.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, info, warn};

use super::Inner;
use crate::content::Snapshot;
use crate::content::blob_dir::BlobDirectory;

/// An image comes as a burst of files; one listing serves all of them.
const SETTLE: Duration = Duration::from_millis(50);
/// Listing takes at most a tenth of the time, however large the layout and however busy,
const LISTING_SHARE: u32 = 10;
/// but a node with a slow disk is not blind for longer than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// For what no event tells: a network file system changed elsewhere, a symbolic link to the layout that leads to another
/// one now. Listing ten thousand blobs takes some ten milliseconds.
const RELIST: Duration = Duration::from_secs(10);

/// Snapshots until the receiver is dropped.
pub(super) fn snapshots(layout: Arc<Inner>) -> BoxStream<'static, Snapshot> {
    // Nobody needs an old snapshot: the next is made when this one is taken.
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(run(layout, sender));
    ReceiverStream::new(receiver).boxed()
}

async fn run(layout: Arc<Inner>, snapshots: mpsc::Sender<Snapshot>) {
    let mut guard = Some(layout.readiness.guard("oci-layout"));
    let mut directory = BlobDirectory::new(layout.root.clone());
    let mut has_warned = false;
    loop {
        // First the watch, then the listing: what happens in between is then listed twice, not missed.
        directory.watch(|e| {
            warn!(
                path = %layout.root.display(),
                reason = %e,
                every = ?RELIST,
                "layout cannot be watched: it is compared"
            );
        });
        let began = Instant::now();
        let listed = layout.blocking(Inner::list).await;
        let took = began.elapsed();
        match listed {
            Ok(listed) => {
                if let Some(guard) = guard.take() {
                    info!(path = %layout.root.display(), blobs = listed.blobs.len(), images = listed.images.len(), "layout is listed");
                    drop(guard);
                }
                debug!(
                    blobs = listed.blobs.len(),
                    images = listed.images.len(),
                    ?took,
                    "listed"
                );
                has_warned = false;
                if snapshots.send(listed).await.is_err() {
                    return;
                }
            }
            // What was listed before stays told: it is asked for when it is needed.
            Err(e) => {
                if let Some(guard) = &guard {
                    guard.because(&e);
                }
                if !std::mem::replace(&mut has_warned, true) {
                    warn!(error = %e, "layout cannot be listed");
                }
            }
        }

        tokio::select! {
            () = directory.changed() => {}
            () = sleep(RELIST) => {}
            () = snapshots.closed() => return,
        }
        // One listing answers everything that happens until it begins.
        let pause = (took * LISTING_SHARE).min(LONGEST_PAUSE);
        let list_at = (began + pause).max(Instant::now() + SETTLE);
        loop {
            tokio::select! {
                biased;
                () = sleep_until(list_at) => break,
                () = directory.changed() => {}
            }
        }
    }
}
