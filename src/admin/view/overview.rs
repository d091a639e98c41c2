//! The verdict first: does it work, and if not, what is to be changed?

use serde::Serialize;

use super::super::Debug;
use super::words::{bytes, percent};
use crate::recent::{Minute, Totals};

/// A share of failures from which on something is wrong, in percent: single nodes go at any time.
const FAILING: u64 = 10;

#[derive(Clone, Debug, Serialize)]
pub struct Overview {
    pub version: &'static str,
    pub node: Node,
    pub verdict: Verdict,
    /// What this node still waits for before it is ready.
    pub awaited: Vec<String>,
    pub totals: Totals,
    /// One entry for each minute, the oldest first.
    pub last_hour: Vec<Minute>,
    pub peers: Known,
    pub content: Held,
    /// Requests under way, of containerd and of peers.
    pub under_way: usize,
}

#[derive(Clone, Debug, Serialize)]
pub struct Node {
    pub id: String,
    pub registry: Vec<std::net::SocketAddr>,
    pub zone: Option<String>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Known {
    pub known: usize,
    pub connected: usize,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Held {
    pub images: usize,
    pub blobs: usize,
    /// Keys that the cluster is told: tags and digests.
    pub advertised: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Mirroring,
    /// Nothing is wrong, and nothing was asked.
    Idle,
    /// Not ready yet.
    Waiting,
    /// Nobody to mirror from.
    Alone,
    /// It is asked and too often cannot answer.
    Failing,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub state: State,
    /// One line.
    pub headline: String,
    pub detail: String,
    /// What to do, where something is to be done.
    pub cures: Vec<String>,
}

pub async fn of(debug: &Debug) -> Overview {
    let neighbours = (debug.neighbours)().await;
    let totals = (debug.totals)();
    debug.recent.sample(&totals);
    let awaited = debug.readiness.awaited();
    let held = debug.holdings.now();
    Overview {
        version: env!("CARGO_PKG_VERSION"),
        node: Node {
            id: debug.me.id.to_string(),
            registry: debug.me.registry.clone(),
            zone: debug.me.zone.as_deref().map(str::to_string),
        },
        verdict: verdict(&totals, &awaited, neighbours.len()),
        awaited,
        totals,
        last_hour: debug.recent.last_hour(),
        peers: Known {
            known: neighbours.len(),
            connected: neighbours.iter().filter(|n| n.is_connected).count(),
        },
        content: Held {
            images: held.snapshot.images.len(),
            blobs: held.snapshot.blobs.len(),
            advertised: held.told.len(),
        },
        under_way: debug.recent.under_way().len(),
    }
}

/// VERDICT: numbers, what is awaited and how many are known, to what a person should think of it. Pure.
fn verdict(totals: &Totals, awaited: &[String], peers: usize) -> Verdict {
    let requests = &totals.requests;
    let all = requests.all();
    let counted = match all {
        1 => "1 request".to_string(),
        all => format!("{all} requests"),
    };
    let numbers = format!(
        "{counted}, {} % from peers, {} kept off the registry",
        percent(requests.peer, all),
        bytes(totals.saved)
    );
    let said = |state, headline: String, detail: &str, cures: &[&str]| Verdict {
        state,
        headline,
        detail: detail.to_string(),
        cures: cures.iter().map(ToString::to_string).collect(),
    };
    if !awaited.is_empty() {
        return said(
            State::Waiting,
            "Not ready yet".to_string(),
            "Until then it answers quick misses, and containerd goes to the registry. What it waits for stands below.",
            &[],
        );
    }
    if peers == 0 {
        return said(
            State::Alone,
            "Alone: no other node is known".to_string(),
            "Nothing can come from peers. In a cluster of one node that is as it should be.",
            &[
                "Is Peili running on other nodes, and do they reach this one at the router's port (5001)?",
                "Does the bootstrap name resolve to them? `peili doctor` on this node says so.",
            ],
        );
    }
    if all == 0 {
        return said(
            State::Idle,
            "Ready; containerd has not asked yet".to_string(),
            "Pull an image that this node lacks, or try one here.",
            &[
                "If pulls have happened since the start: containerd does not ask this mirror. `peili doctor` on this node \
                 says why.",
            ],
        );
    }
    if percent(requests.failed, all) >= FAILING {
        return said(
            State::Failing,
            format!("Failing: {numbers}"),
            "Nodes that hold content do not deliver it, or not to the end. containerd got it from the registry.",
            &[
                "Pulls says which nodes failed, and why.",
                "Do nodes reach each other at the registry port, and do they all have the same user name and password?",
            ],
        );
    }
    let nothing_came = requests.peer == 0 && requests.miss > 0;
    said(
        State::Mirroring,
        format!("Mirroring: {numbers}"),
        match nothing_came {
            true => {
                "So far nobody held what this node asked for. The next node to pull the same gets it here."
            }
            false => {
                "What other nodes hold comes from them, and the registry is asked for the rest."
            }
        },
        &[],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recent::ByRequests;

    #[test]
    fn the_verdict_comes_first() {
        let of = |local, peer, miss, failed| Totals {
            requests: ByRequests {
                local,
                peer,
                miss,
                failed,
            },
            saved: 19 << 30,
            ..Totals::default()
        };
        let awaits = ["content: connecting".to_string()];
        for (totals, awaited, peers, state, headline) in [
            (
                of(0, 0, 0, 0),
                &awaits[..],
                2,
                State::Waiting,
                "Not ready yet",
            ),
            (of(0, 0, 5, 0), &[], 0, State::Alone, "Alone"),
            (
                of(0, 0, 0, 0),
                &[],
                2,
                State::Idle,
                "containerd has not asked",
            ),
            (
                of(0, 94, 6, 0),
                &[],
                2,
                State::Mirroring,
                "Mirroring: 100 requests, 94 % from peers, 19 GiB kept off the registry",
            ),
            (of(0, 1, 0, 0), &[], 2, State::Mirroring, "1 request, 100 %"),
            (of(0, 91, 0, 9), &[], 2, State::Mirroring, "91 %"),
            (
                of(0, 90, 0, 10),
                &[],
                2,
                State::Failing,
                "Failing: 100 requests",
            ),
        ] {
            let verdict = verdict(&totals, awaited, peers);
            assert_eq!(verdict.state, state, "{totals:?}");
            assert!(verdict.headline.contains(headline), "{}", verdict.headline);
            let is_wrong = matches!(state, State::Alone | State::Idle | State::Failing);
            assert_eq!(!verdict.cures.is_empty(), is_wrong, "{state:?}");
        }
    }
}
