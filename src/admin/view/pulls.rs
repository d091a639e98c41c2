//! The last requests, put together to pulls: what one containerd asked of one image in one go.

use std::sync::Arc;

use serde::Serialize;

use super::super::Debug;
use super::words;
use crate::recent::Request;

/// Requests of an image that are so far apart belong to two pulls: containerd asks for one layer after another.
const APART: u64 = 30_000;

#[derive(Clone, Debug, Serialize)]
pub struct Pulls {
    /// The newest first.
    pub pulls: Vec<Pull>,
    /// What peers asked of this node, the newest first.
    pub given: Vec<Told>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Pull {
    pub image: String,
    /// In milliseconds since 1970.
    pub at: u64,
    pub took_ms: f64,
    pub bytes: u64,
    /// Bytes that came from other nodes.
    pub from_peers: u64,
    pub missed: usize,
    pub failed: usize,
    /// In the order of their beginnings.
    pub requests: Vec<Told>,
}

/// A request, and how it went in a sentence.
#[derive(Clone, Debug, Serialize)]
pub struct Told {
    #[serde(flatten)]
    pub request: Arc<Request>,
    pub outcome: String,
}

impl Told {
    fn of(request: Arc<Request>) -> Self {
        Self {
            outcome: words::outcome(&request),
            request,
        }
    }

    fn ends(&self) -> f64 {
        self.request.at as f64 + self.request.took.as_secs_f64() * 1e3
    }
}

pub fn of(debug: &Debug) -> Pulls {
    let given = debug.recent.ended(true).into_iter();
    Pulls {
        pulls: together(debug.recent.ended(false)),
        given: given.map(Told::of).collect(),
    }
}

/// Pure. Requests in any order; pulls by their last request, the newest first.
fn together(mut requests: Vec<Arc<Request>>) -> Vec<Pull> {
    requests.sort_by_key(|request| (request.at, request.id));
    let mut pulls: Vec<Vec<Told>> = Vec::new();
    for request in requests {
        let told = Told::of(request);
        let begins = told.request.at as f64;
        let of_the_same = pulls.iter_mut().rev().find(|pull| {
            let last = pull.iter().map(Told::ends).fold(0.0, f64::max);
            let first = &pull[0].request.asked;
            first.image == told.request.asked.image
                && first.by == told.request.asked.by
                && begins <= last + APART as f64
        });
        match of_the_same {
            Some(pull) => pull.push(told),
            None => pulls.push(vec![told]),
        }
    }
    let mut pulls: Vec<Pull> = pulls.into_iter().map(Pull::of).collect();
    pulls.sort_by_key(|pull| {
        std::cmp::Reverse(pull.requests.iter().map(|told| told.request.id).max())
    });
    pulls
}

impl Pull {
    fn of(requests: Vec<Told>) -> Self {
        let at = requests[0].request.at;
        let ends = requests.iter().map(Told::ends).fold(at as f64, f64::max);
        let of = |source| {
            requests
                .iter()
                .filter(move |told| told.request.source == source)
        };
        Self {
            image: requests[0].request.asked.image.clone().unwrap_or_default(),
            at,
            took_ms: ends - at as f64,
            bytes: requests.iter().map(|told| told.request.bytes).sum(),
            from_peers: of("peer").map(|told| told.request.bytes).sum(),
            missed: of("miss").count(),
            failed: of("failed").count(),
            requests,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::recent::{Asked, Asker, Ended, Recent};

    fn request(id: u64, at: u64, image: &str, source: &'static str) -> Arc<Request> {
        let recent = Recent::default();
        let path = format!("/v2/{image}/blobs/sha256:{id}");
        let transfer = recent.begin(Asked {
            by: Asker::Containerd,
            ..Asked::of("GET", &path, Some("r"))
        });
        transfer.brought(10);
        recent.end(
            &transfer,
            Ended {
                status: 200,
                source,
                ..Ended::default()
            },
        );
        let request = recent.ended(false)[0].clone();
        Arc::new(Request {
            id,
            at,
            took: Duration::from_secs(5),
            ..(*request).clone()
        })
    }

    #[test]
    fn what_was_asked_of_an_image_in_one_go_is_one_pull() {
        let pulls = together(vec![
            request(5, 90_000, "a", "miss"),
            request(1, 1_000, "a", "peer"),
            request(2, 2_000, "b", "peer"),
            request(3, 30_000, "a", "failed"),
            request(4, 33_000, "b", "local"),
        ]);

        let told: Vec<_> = pulls
            .iter()
            .map(|p| {
                (
                    p.image.as_str(),
                    p.at,
                    p.requests.len(),
                    p.from_peers,
                    p.missed,
                    p.failed,
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                ("r/a", 90_000, 1, 0, 1, 0),
                ("r/b", 2_000, 2, 10, 0, 0),
                ("r/a", 1_000, 2, 10, 0, 1)
            ]
        );
        assert_eq!(pulls[2].took_ms, 34_000.0);
    }
}
