//! hyper's clock for one connection: one timer, for whatever hyper waits for next.
//!
//! hyper wants a timer for each head and drops it when the head is there. Of tokio's each would be put on a wheel that all
//! connections share, and be taken off it again. This one stays there: deadlines only move on, so it goes off too early,
//! once in the time of a deadline, and is put where it belongs then.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Sleep, Timer};
use tokio::time::{self, Instant};

/// Of its deadlines one is waited for at a time.
#[derive(Default)]
pub(super) struct OneTimer(Slot);

type Slot = Arc<Mutex<Option<Pin<Box<time::Sleep>>>>>;

struct Deadline {
    at: Instant,
    timer: Slot,
}

impl Timer for OneTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Deadline {
            at: deadline.into(),
            timer: Arc::clone(&self.0),
        })
    }

    fn now(&self) -> std::time::Instant {
        Instant::now().into()
    }
}

impl Sleep for Deadline {}

impl Future for Deadline {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut timer = self.timer.lock().unwrap_or_else(PoisonError::into_inner);
        let timer = timer.get_or_insert_with(|| Box::pin(time::sleep_until(self.at)));
        if timer.deadline() > self.at {
            timer.as_mut().reset(self.at);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= self.at {
                return Poll::Ready(());
            }
            timer.as_mut().reset(self.at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_deadline_is_kept_whatever_came_of_those_before() {
        let timer = OneTimer::default();
        let second = Duration::from_secs(1);
        let began = timer.now();
        let reached = |after: u32| assert_eq!(timer.now().duration_since(began), after * second);

        // Given up before its time, as hyper does when a head has come.
        let waited = time::timeout(2 * second, timer.sleep(30 * second)).await;
        assert!(waited.is_err());
        timer.sleep(30 * second).await;
        reached(32);
        timer.sleep(second).await;
        reached(33);
        // Sooner than the one that was given up.
        let waited = time::timeout(second, timer.sleep(30 * second)).await;
        assert!(waited.is_err());
        timer.sleep(2 * second).await;
        reached(36);
        timer.sleep(Duration::ZERO).await;
        reached(36);
    }
}
