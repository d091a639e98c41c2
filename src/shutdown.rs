//! The end of the process, in its two stages: no new work, then no work at all.
//!
//! SIGTERM drains: listeners close, bodies under way go on. At the deadline whatever is still moving is cut, early
//! enough that a short but orderly end reaches the other side before the kubelet's SIGKILL makes it a reset.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Cloneable; all clones speak of the same end.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Cancelled when no new work may begin.
    pub drain: CancellationToken,
    /// Cancelled when work under way must end.
    pub cut: CancellationToken,
    tasks: TaskTracker,
}

impl Shutdown {
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs a task that [`Shutdown::finish`] waits for.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Begins the drain, cuts after `grace`, and returns when every task has ended. A task that ignores the cut is left
    /// behind after `CUT`; the number of those is returned.
    pub async fn finish(&self, grace: Duration) -> usize {
        /// For connections to be closed in order (`server`). Below the five seconds that are left then.
        const CUT: Duration = Duration::from_millis(4500);
        self.drain.cancel();
        self.tasks.close();
        if tokio::time::timeout(grace, self.tasks.wait())
            .await
            .is_err()
        {
            self.cut.cancel();
            let _ = tokio::time::timeout(CUT, self.tasks.wait()).await;
        }
        self.tasks.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_under_way_finishes_within_the_grace_period() {
        let shutdown = Shutdown::new();
        let (done, finished) = tokio::sync::oneshot::channel();
        let drain = shutdown.drain.clone();
        shutdown.spawn(async move {
            drain.cancelled().await;
            tokio::time::sleep(Duration::from_secs(3)).await;
            let _ = done.send(());
        });

        assert_eq!(shutdown.finish(Duration::from_secs(5)).await, 0);

        finished.await.expect("the task ran to its end");
        assert!(!shutdown.cut.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_finish_is_cut_and_what_ignores_that_is_counted() {
        let shutdown = Shutdown::new();
        let cut = shutdown.cut.clone();
        shutdown.spawn(async move { cut.cancelled().await });
        shutdown.spawn(std::future::pending());

        assert_eq!(shutdown.finish(Duration::from_secs(5)).await, 1);
    }
}
