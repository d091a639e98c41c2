//! The last hour by minutes, out of totals that only grow. Pure: times come in.

use std::collections::VecDeque;

use serde::Serialize;

/// How far back is told.
const HOUR: u64 = 60;

/// All since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Requests of this node's containerd.
    pub requests: ByRequests,
    /// Bytes of bodies sent to it.
    pub bytes: ByBytes,
    /// Of these, bytes that no registry had to send.
    pub saved: u64,
    /// Bytes sent to peers.
    pub uploaded: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ByRequests {
    pub local: u64,
    pub peer: u64,
    pub miss: u64,
    pub failed: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ByBytes {
    pub local: u64,
    /// From a peer that had it whole.
    pub peer: u64,
    /// From a peer that was still getting it.
    pub in_flight: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Minute {
    /// When it began, in minutes since 1970.
    pub minute: u64,
    pub requests: ByRequests,
    pub bytes: ByBytes,
    pub uploaded: u64,
}

#[derive(Debug, Default)]
pub(super) struct Minutes {
    /// Ascending, each minute once; those in which nothing happened may be missing.
    kept: VecDeque<Minute>,
    last: Totals,
}

impl ByRequests {
    pub fn all(&self) -> u64 {
        self.local + self.peer + self.miss + self.failed
    }

    fn since(&self, last: &Self) -> Self {
        Self {
            local: self.local.saturating_sub(last.local),
            peer: self.peer.saturating_sub(last.peer),
            miss: self.miss.saturating_sub(last.miss),
            failed: self.failed.saturating_sub(last.failed),
        }
    }

    fn add(&mut self, more: &Self) {
        self.local += more.local;
        self.peer += more.peer;
        self.miss += more.miss;
        self.failed += more.failed;
    }
}

impl ByBytes {
    pub fn all(&self) -> u64 {
        self.local + self.peer + self.in_flight
    }

    fn since(&self, last: &Self) -> Self {
        Self {
            local: self.local.saturating_sub(last.local),
            peer: self.peer.saturating_sub(last.peer),
            in_flight: self.in_flight.saturating_sub(last.in_flight),
        }
    }

    fn add(&mut self, more: &Self) {
        self.local += more.local;
        self.peer += more.peer;
        self.in_flight += more.in_flight;
    }
}

impl Minutes {
    pub(super) fn sample(&mut self, totals: &Totals, now: u64) {
        let more = Minute {
            minute: now,
            requests: totals.requests.since(&self.last.requests),
            bytes: totals.bytes.since(&self.last.bytes),
            uploaded: totals.uploaded.saturating_sub(self.last.uploaded),
        };
        self.last = *totals;
        match self.kept.back_mut() {
            // A clock that was set back goes on where it was.
            Some(last) if last.minute >= now => {
                last.requests.add(&more.requests);
                last.bytes.add(&more.bytes);
                last.uploaded += more.uploaded;
            }
            _ => self.kept.push_back(more),
        }
        while self
            .kept
            .front()
            .is_some_and(|first| first.minute + HOUR <= now)
        {
            self.kept.pop_front();
        }
    }

    pub(super) fn last_hour(&self, now: u64) -> Vec<Minute> {
        let first = now.saturating_sub(HOUR - 1);
        let of = |minute| {
            let kept = self.kept.iter().find(|kept| kept.minute == minute);
            kept.copied().unwrap_or(Minute {
                minute,
                ..Minute::default()
            })
        };
        (first..=now).map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(peer: u64) -> Totals {
        Totals {
            bytes: ByBytes {
                peer,
                ..ByBytes::default()
            },
            uploaded: 2 * peer,
            ..Totals::default()
        }
    }

    #[test]
    fn what_has_come_since_the_last_look_belongs_to_this_minute() {
        let mut minutes = Minutes::default();
        for (total, minute) in [(10, 100), (15, 100), (15, 101), (40, 103)] {
            minutes.sample(&totals(total), minute);
        }

        let hour = minutes.last_hour(104);

        assert_eq!((hour.len(), hour[0].minute, hour[59].minute), (60, 45, 104));
        let peers: Vec<u64> = hour[55..].iter().map(|m| m.bytes.peer).collect();
        assert_eq!(peers, [15, 0, 0, 25, 0]);
        assert_eq!(hour[58].uploaded, 50);
    }

    #[test]
    fn an_hour_is_kept_and_a_clock_that_is_set_back_loses_nothing() {
        let mut minutes = Minutes::default();
        for minute in 0..200 {
            minutes.sample(&totals(minute + 1), minute);
        }
        assert_eq!(minutes.kept.len(), 60);

        minutes.sample(&totals(205), 150);

        assert_eq!(minutes.last_hour(199)[59].bytes.peer, 6);
        assert_eq!(minutes.last_hour(10_000)[59].bytes.peer, 0);
    }
}
