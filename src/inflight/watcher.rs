//! One look for all who wait for the same download.
//!
//! Nothing tells that a download begins or grows but a look, so there is one watcher for each digest that somebody waits
//! for, and those who wait hear from it. It ends with the last of them.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use super::ingest::{Ingest, Lookout};
use super::passing::Tail;
use super::{ContentRoot, POLL};
use crate::oci::Digest;

/// Between looks for a download that does not begin: twice as long each time from [`POLL`] up to this. containerd makes an
/// ingest before it asks anybody, so that most are there at the first look; one that is late is found this much later at
/// the most, a tenth of what a waiting peer has.
const RARE: Duration = Duration::from_millis(100);

/// What the last look has found.
#[derive(Clone, Debug, Default)]
pub enum View {
    /// Nobody has looked yet.
    #[default]
    Unknown,
    Nothing,
    Growing {
        ingest: Ingest,
        /// Bytes that can be had: [`Ingest::available`].
        available: u64,
    },
    /// The blob has its name.
    Whole,
}

/// The watchers that somebody holds.
#[derive(Debug, Default)]
pub(super) struct Watchers(Mutex<HashMap<Digest, Weak<Watcher>>>);

#[derive(Debug)]
struct Watcher {
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    view: watch::Sender<View>,
    /// How many wait for growth.
    impatient: AtomicUsize,
    /// There is a reason to look now.
    wake: Notify,
}

/// One who is told of a download for as long as this is held.
#[derive(Debug)]
pub struct Watching {
    view: watch::Receiver<View>,
    /// None where nothing is ever found.
    watcher: Option<Arc<Watcher>>,
}

impl Watchers {
    /// Within a runtime: the first who watches a digest starts its watcher.
    pub(super) fn watch(
        &self,
        root: &ContentRoot,
        namespace: &str,
        digest: &Digest,
        tail: Arc<Tail>,
    ) -> Watching {
        let mut watchers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let watcher = match watchers.get(digest).and_then(Weak::upgrade) {
            Some(watcher) => watcher,
            None => {
                let shared = Arc::<Shared>::default();
                let looking = run(
                    shared.clone(),
                    root.clone(),
                    namespace.to_owned(),
                    digest.clone(),
                    tail,
                );
                let watcher = Arc::new(Watcher {
                    shared,
                    _task: AbortOnDropHandle::new(tokio::spawn(looking)),
                });
                watchers.retain(|_, watcher| watcher.strong_count() > 0);
                watchers.insert(digest.clone(), Arc::downgrade(&watcher));
                watcher
            }
        };
        Watching {
            view: watcher.shared.view.subscribe(),
            watcher: Some(watcher),
        }
    }

    /// Whoever looks for `digest` looks now.
    pub(super) fn wake(&self, digest: &Digest) {
        let watchers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watcher) = watchers.get(digest).and_then(Weak::upgrade) {
            watcher.shared.wake.notify_one();
        }
    }
}

impl Watching {
    /// Of one that is never told of anything.
    pub(super) fn nothing() -> Self {
        Self {
            view: watch::Sender::new(View::Nothing).subscribe(),
            watcher: None,
        }
    }

    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// Waits until `is_enough` of what is there, or `until`.
    pub async fn wait(&mut self, until: Instant, is_enough: impl Fn(&View) -> bool) {
        let Some(watcher) = &self.watcher else {
            tokio::time::sleep_until(until).await;
            return;
        };
        let _impatient = Impatient::begin(&watcher.shared);
        // It has come, or it has not: what is there tells.
        let _ = timeout_at(until, self.view.wait_for(is_enough)).await;
    }
}

/// One who waits for growth.
struct Impatient(Arc<Shared>);

impl Impatient {
    fn begin(shared: &Arc<Shared>) -> Self {
        if shared.impatient.fetch_add(1, Ordering::Relaxed) == 0 {
            shared.wake.notify_one();
        }
        Self(Arc::clone(shared))
    }
}

impl Drop for Impatient {
    fn drop(&mut self) {
        self.0.impatient.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn run(
    shared: Arc<Shared>,
    root: ContentRoot,
    namespace: String,
    digest: Digest,
    tail: Arc<Tail>,
) {
    let mut lookout = Lookout::new(root.wait().await, &namespace, &digest, tail);
    let mut pause = POLL;
    loop {
        let looked = tokio::task::spawn_blocking(move || {
            let found = lookout.look();
            let is_whole = lookout.is_whole();
            (lookout, found, is_whole)
        });
        // A look that panicked would do so again.
        let Ok((back, found, is_whole)) = looked.await else {
            return;
        };
        lookout = back;
        let found = found.unwrap_or_else(|e| {
            debug!(%digest, error = %e, "the ingest directory cannot be read");
            None
        });
        match found {
            Some(ingest) => {
                // Only what ends it brings us back here, and then another may be there already.
                let _ = follow(&shared, ingest).await;
                pause = POLL;
            }
            None if is_whole => tell(&shared, View::Whole),
            None => tell(&shared, View::Nothing),
        }
        tokio::select! {
            () = sleep(pause) => pause = (2 * pause).min(RARE),
            () = shared.wake.notified() => {
                pause = POLL;
                // However many wake it, no more often than this.
                sleep(POLL).await;
            }
        }
    }
}

/// Tells of growth until the download has ended or begun anew.
async fn follow(shared: &Shared, ingest: Ingest) -> io::Result<()> {
    let mut most = 0;
    let mut passing = None;
    loop {
        let is_unlinked = ingest.is_unlinked();
        let written = ingest.written()?;
        if written < most || is_unlinked {
            return Ok(());
        }
        most = written;
        let available = ingest.available()?;
        shared.view.send_if_modified(|view| match view {
            View::Growing {
                ingest: known,
                available: told,
            } if known.is_same(&ingest) && *told == available => false,
            _ => {
                let ingest = ingest.clone();
                *view = View::Growing { ingest, available };
                true
            }
        });
        // What is whole does not grow, and nobody is told of what nobody waits for.
        let is_awaited = shared.impatient.load(Ordering::Relaxed) > 0;
        if is_awaited && written < ingest.total() {
            let passing = passing.get_or_insert_with(|| ingest.tail.subscribe());
            // Where it has ended, the file tells.
            let _ = timeout(POLL, passing.changed()).await;
            continue;
        }
        passing = None;
        tokio::select! {
            () = sleep(RARE) => {}
            () = shared.wake.notified() => sleep(POLL).await,
        }
    }
}

/// Wakes those who wait only where it is news.
fn tell(shared: &Shared, now: View) {
    shared.view.send_if_modified(|view| {
        let is_news = std::mem::discriminant(view) != std::mem::discriminant(&now);
        if is_news {
            *view = now;
        }
        is_news
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inflight::Inflight;
    use crate::testing::ingest::FakeIngests;

    const ROOM: Duration = Duration::from_secs(10);

    fn inflight(ingests: &FakeIngests) -> Inflight {
        let root = ContentRoot::known(ingests.root().to_owned());
        Inflight::new(root, "k8s.io".into())
    }

    fn has(view: &View, bytes: u64) -> bool {
        matches!(view, View::Growing { available, .. } if *available >= bytes)
    }

    async fn comes(watching: &mut Watching, what: &str, is_it: impl Fn(&View) -> bool) {
        watching.wait(Instant::now() + ROOM, &is_it).await;
        assert!(is_it(&watching.view()), "{what}: {:?}", watching.view());
    }

    #[tokio::test]
    async fn all_who_wait_hear_from_one_watcher_of_each_thing_that_happens() {
        let ingests = FakeIngests::new();
        let inflight = inflight(&ingests);
        let digest = Digest::sha256(b"layer");
        let mut one = inflight.watch(&digest);
        let mut two = inflight.clone().watch(&digest);
        let (a, b) = (one.watcher.clone().unwrap(), two.watcher.clone().unwrap());
        assert!(Arc::ptr_eq(&a, &b));
        drop((a, b));
        comes(&mut one, "nothing yet", |view| {
            matches!(view, View::Nothing)
        })
        .await;

        let mut download = ingests.begin("layer", &digest, 10);
        comes(&mut one, "its beginning", |view| has(view, 0)).await;
        download.write(b"1234");
        comes(&mut two, "growth", |view| has(view, 4)).await;
        comes(&mut one, "growth", |view| has(view, 4)).await;
        download.truncate(2);
        let anew = |view: &View| matches!(view, View::Growing { available: 2, .. });
        comes(&mut two, "its new beginning", anew).await;
        download.abort();
        comes(&mut one, "its end", |view| matches!(view, View::Nothing)).await;
        let mut download = ingests.begin("layer", &digest, 10);
        download.write(b"1234567890");
        comes(&mut one, "another", |view| has(view, 10)).await;
        let blob = download.commit();
        std::fs::remove_file(blob).unwrap();
        comes(&mut one, "its removal", |view| {
            matches!(view, View::Nothing)
        })
        .await;
        let mut download = ingests.begin("layer", &digest, 10);
        download.write(b"1234567890");
        download.commit();

        comes(&mut two, "a blob", |view| {
            matches!(view, View::Whole) || has(view, 10)
        })
        .await;
    }

    #[tokio::test]
    async fn a_watcher_ends_with_the_last_who_watches() {
        let ingests = FakeIngests::new();
        let inflight = inflight(&ingests);
        let digest = Digest::sha256(b"layer");
        let watching = inflight.watch(&digest);
        let shared = Arc::downgrade(&watching.watcher.as_ref().unwrap().shared);

        drop(watching);

        crate::testing::eventually("its end", ROOM, || async {
            (shared.strong_count() == 0).then_some(())
        })
        .await;
    }

    #[tokio::test]
    async fn nothing_is_ever_found_where_sharing_is_off() {
        let mut watching = Inflight::off().watch(&Digest::sha256(b"layer"));
        let soon = Instant::now() + POLL;

        watching.wait(soon, |_| true).await;

        assert!(matches!(watching.view(), View::Nothing));
        assert!(Instant::now() >= soon);
    }
}
