//! When to look again: containerd's events, its blob directory, and the clock.
//!
//! One code path: whatever happens marks the last listing as old, and a new one is made. No event is interpreted, so
//! none can be misunderstood, and a lost event, a restart of containerd and our own restart are the same thing. What
//! each version tells differs widely: 1.6 and 1.7 announce no blob at all, no version announces blobs that the garbage
//! collector removes, and images are announced only when they are unpacked. Hence the blob directory is watched too.

use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1::{PublishRequest, SubscribeRequest};
use containerd_client::types::Envelope;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};

use super::Inner;
use crate::content::blob_dir::BlobDirectory;
use crate::content::skipped::Skipped;
use crate::content::{Snapshot, StoreError};
use crate::readiness::Guard;

/// Between attempts to reach containerd: at first as fast as it starts, then as rare as nobody minds.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// containerd is local: an answer that takes longer will not come.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A pull or an import makes events in bursts; one listing serves all of them.
const SETTLE: Duration = Duration::from_millis(50);
/// A blob's file appears before containerd's database knows it, and how much before depends on the disk: so what an
/// event made us list is listed once more, and again.
const CONFIRM: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];
/// Listing takes at most a tenth of the time, however large the node and however busy,
const LISTING_SHARE: u32 = 10;
/// but a node with a slow disk is not blind for longer than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Nothing is known to be missed with the blob directory watched; this is for what is not known.
const RELIST_WATCHED: Duration = Duration::from_secs(60);
/// Without it, blobs of 1.6 and 1.7 are found by comparing.
const RELIST_BLIND: Duration = Duration::from_secs(5);
/// Topic of the event that we publish to ourselves.
const SUBSCRIBED: &str = "/peili/subscribed";

/// Snapshots until the receiver is dropped.
pub(super) fn snapshots(containerd: Arc<Inner>) -> BoxStream<'static, Snapshot> {
    // Nobody needs an old snapshot: the next is made when this one is taken.
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(run(containerd, sender));
    ReceiverStream::new(receiver).boxed()
}

/// Connects, watches, and begins again when that ends.
async fn run(containerd: Arc<Inner>, snapshots: mpsc::Sender<Snapshot>) {
    let skipped = Skipped::default();
    let mut guard = Some(containerd.readiness.guard("containerd"));
    let mut backoff = BACKOFF.0;
    let mut has_warned = false;
    loop {
        let mut session = Session {
            containerd: &containerd,
            skipped: &skipped,
            snapshots: &snapshots,
            guard: &mut guard,
        };
        let ended = tokio::select! {
            ended = session.run() => ended,
            () = snapshots.closed() => return,
        };
        if guard.is_none() {
            warn!(reason = %ended, "lost containerd");
            has_warned = true;
            guard = Some(containerd.readiness.guard("containerd"));
            backoff = BACKOFF.0;
        } else if !has_warned {
            warn!(reason = %ended, "waiting for containerd");
            has_warned = true;
        } else {
            debug!(reason = %ended, "still waiting for containerd");
        }
        if let Some(guard) = &guard {
            guard.because(&ended);
        }
        tokio::select! {
            () = sleep(backoff) => {}
            () = snapshots.closed() => return,
        }
        backoff = (backoff * 2).min(BACKOFF.1);
        containerd.reconnect();
    }
}

/// One connection to containerd, from subscription to break.
struct Session<'a> {
    containerd: &'a Inner,
    skipped: &'a Skipped,
    snapshots: &'a mpsc::Sender<Snapshot>,
    /// Held as long as containerd has not been listed.
    guard: &'a mut Option<Guard>,
}

impl Session<'_> {
    /// Returns why it ended.
    async fn run(&mut self) -> StoreError {
        match self.watch().await {
            Ok(never) => match never {},
            Err(e) => e,
        }
    }

    async fn watch(&mut self) -> Result<std::convert::Infallible, StoreError> {
        // First the watches, then the listing: what happens in between is then listed twice, not missed.
        let mut events = in_time("events.Subscribe", self.subscribe()).await?;
        let root = match &self.containerd.config.content_path {
            Some(path) => path.clone(),
            None => in_time("introspection", self.containerd.learn_root()).await?,
        };
        let mut directory = BlobDirectory::new(root);
        let mut confirmations: &[Duration] = &[];
        loop {
            let path = directory.root.clone();
            directory.watch(|e| {
                warn!(
                    path = %path.display(),
                    reason = %e,
                    every = ?RELIST_BLIND,
                    "content directory cannot be watched (yet): blobs are read through containerd's socket, and compared"
                );
            });
            let began = Instant::now();
            let listed = in_time("listing", self.containerd.list(self.skipped)).await?;
            let took = began.elapsed();
            if let Some(guard) = self.guard.take() {
                info!(
                    socket = %self.containerd.config.socket.display(),
                    content = %directory.root.display(),
                    blobs = listed.blobs.len(), images = listed.images.len(),
                    "containerd is listed"
                );
                drop(guard);
            }
            debug!(
                blobs = listed.blobs.len(),
                images = listed.images.len(),
                ?took,
                "listed"
            );
            if self.snapshots.send(listed).await.is_err() {
                return Err(StoreError::Unreachable("nobody listens any more".into()));
            }

            let relist = match confirmations.split_first() {
                Some((soon, rest)) => {
                    confirmations = rest;
                    *soon
                }
                None if directory.is_watched() => RELIST_WATCHED,
                None => RELIST_BLIND,
            };
            tokio::select! {
                event = events.message() => {
                    self.noticed(event)?;
                    confirmations = &CONFIRM;
                }
                () = directory.changed() => confirmations = &CONFIRM,
                () = sleep(relist) => {}
            }
            // One listing answers everything that happens until it begins.
            let pause = (took * LISTING_SHARE).min(LONGEST_PAUSE);
            let list_at = (began + pause).max(Instant::now() + SETTLE);
            loop {
                tokio::select! {
                    biased;
                    () = sleep_until(list_at) => break,
                    event = events.message() => {
                        self.noticed(event)?;
                        confirmations = &CONFIRM;
                    }
                    () = directory.changed() => confirmations = &CONFIRM,
                }
            }
        }
    }

    fn noticed(&self, event: Result<Option<Envelope>, Status>) -> Result<(), StoreError> {
        match event {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(StoreError::Unreachable("events ended".into())),
            Err(status) => Err(self.containerd.error("events.Subscribe", &status)),
        }
    }

    /// Returns when the subscription is live. containerd's server sends its headers with the first event only, and the
    /// client waits for headers: so an event of our own is published until one arrives.
    async fn subscribe(&self) -> Result<Streaming<Envelope>, StoreError> {
        let namespace = &self.containerd.config.namespace;
        let filters = vec![
            format!(r#"namespace=="{namespace}",topic~="^/(images|content)/""#),
            format!(r#"topic=="{SUBSCRIBED}""#),
        ];
        let failed = |status| self.containerd.error("events.Subscribe", &status);
        let mut client = self.containerd.events();
        let mut subscription = std::pin::pin!(client.subscribe(SubscribeRequest { filters }));
        loop {
            tokio::select! {
                answer = &mut subscription => return answer.map(|r| r.into_inner()).map_err(failed),
                () = sleep(Duration::from_millis(20)) => {}
            }
            let marker = PublishRequest {
                topic: SUBSCRIBED.into(),
                // A type that every reader of containerd's events can decode.
                event: Some(prost_types::Any {
                    type_url: "google.protobuf.Empty".into(),
                    value: Vec::new(),
                }),
            };
            let request = self.containerd.namespaced(marker);
            tokio::select! {
                answer = &mut subscription => return answer.map(|r| r.into_inner()).map_err(failed),
                published = async { self.containerd.events().publish(request).await } => {
                    published.map_err(|status| self.containerd.error("events.Publish", &status))?;
                }
            }
        }
    }
}

async fn in_time<T>(
    what: &str,
    call: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    timeout(CALL_TIMEOUT, call).await.unwrap_or_else(|_| {
        Err(StoreError::Unreachable(format!(
            "{what}: no answer within {CALL_TIMEOUT:?}"
        )))
    })
}
