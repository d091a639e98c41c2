//! The pulls of one run: when each begins, how it ended and how it had to.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Result;
use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::fault::{Fate, Seen, Watch, fate};
use crate::judge::Verdict;
use crate::lab::{Image, Node};
use crate::run::Plan;
use crate::scenario::{Fault, Starts};

#[derive(Clone, Debug, serde::Serialize)]
pub struct Pull {
    pub node: String,
    pub ip: String,
    pub containerd: String,
    pub victim: bool,
    /// After the first node's start could have been.
    pub began: f64,
    pub took: f64,
    pub error: Option<String>,
    pub registry_requests: usize,
    pub registry_bytes: u64,
}

/// All nodes pull and the fault happens; returns when every pull has ended. They go into `into`, by node.
pub async fn pull(
    plan: &Plan<'_>,
    image: &Image,
    nodes: &[Node],
    into: &mut Vec<Pull>,
) -> Result<Seen> {
    let starts = starts(plan);
    let reference = image.reference();
    let done = Mutex::new(vec![false; nodes.len()]);
    let began = Instant::now();
    let pulls = nodes
        .iter()
        .zip(starts)
        .enumerate()
        .map(|(index, (node, start))| {
            let (done, reference) = (&done, &reference);
            async move {
                tokio::time::sleep(start).await;
                let start = Instant::now();
                let pulled = node.cri_pull(reference).await;
                done.lock().unwrap()[index] = true;
                let error = match pulled {
                    Ok(pulled) if pulled.id != image.config.digest => {
                        Some(format!("{} is another image", pulled.id))
                    }
                    Ok(_) => None,
                    Err(error) => Some(format!("{error:#}")),
                };
                Pull {
                    node: format!("n{}", index + 1),
                    ip: node.ip().to_string(),
                    containerd: node.containerd().version().to_owned(),
                    victim: false,
                    began: (start - began).as_secs_f64(),
                    took: start.elapsed().as_secs_f64(),
                    error,
                    registry_requests: 0,
                    registry_bytes: 0,
                }
            }
        });
    let watch = Watch {
        nodes,
        image,
        fault: plan.fault,
        began,
        done: &done,
    };
    let (pulls, seen) = tokio::join!(join_all(pulls), watch.until_done());
    *into = pulls;
    seen
}

/// When each node begins; the same for the same seed.
fn starts(plan: &Plan<'_>) -> Vec<Duration> {
    const CROWD: Duration = Duration::from_millis(100);
    let mut random = StdRng::seed_from_u64(plan.seed);
    let mut jitter = || CROWD.mul_f64(random.random_range(0.0..1.0));
    let nodes = 0..plan.nodes;
    match plan.starts {
        Starts::Crowd => nodes.map(|_| jitter()).collect(),
        Starts::Spread(over) => {
            let last = plan.nodes.saturating_sub(1).max(1) as u32;
            nodes.map(|node| over * node as u32 / last).collect()
        }
        Starts::OneEarly => {
            let late = |node| {
                if node == 0 {
                    Duration::ZERO
                } else {
                    CROWD + jitter()
                }
            };
            nodes.map(late).collect()
        }
    }
}

impl Pull {
    pub fn is_a_surprise(&self, fault: Option<Fault>) -> bool {
        match fate(fault, self.victim) {
            Fate::Succeeds => self.error.is_some(),
            Fate::Fails => self.error.is_none(),
            Fate::Either => false,
        }
    }

    /// Only of those that ended otherwise than they had to, and of victims.
    pub fn verdict(&self, fault: Option<Fault>) -> Option<Verdict> {
        let right = !self.is_a_surprise(fault);
        let fails = if self.error.is_some() {
            "failed"
        } else {
            "succeeded"
        };
        (!right || self.victim)
            .then(|| Verdict::new(format!("pull of {} {fails}", self.node), right))
    }
}
