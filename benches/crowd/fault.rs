//! What goes wrong while the nodes pull, and the look at them that decides when.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use peili::oci::Digest;
use peili::routing::kad::{distance, identity, place};
use peili::routing::messenger::Meeting;
use rustix::process::Signal;

use crate::judge::Verdict;
use crate::lab::{Image, Node};
use crate::measure::{arrived, cpu_seconds};
use crate::scenario::Fault;

/// Between two looks: a fortieth of the shortest pull here, and thousands of times what a look costs.
const LOOK: Duration = Duration::from_millis(50);

/// Nobody who is to be refused has to wait so long.
const PATIENCE: Duration = Duration::from_secs(5);

/// How a pull has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Succeeds,
    Fails,
    /// It is the victim's own affair.
    Either,
}

/// What was done to whom.
#[derive(Clone, Debug, Default)]
pub struct Story {
    /// Indices of nodes.
    pub victims: Vec<usize>,
    pub told: String,
    pub verdicts: Vec<Verdict>,
}

impl Story {
    fn of(victims: Vec<usize>, told: String) -> Self {
        Self {
            victims,
            told,
            verdicts: Vec::new(),
        }
    }

    /// What is wrong from the beginning.
    fn at_first(fault: Fault) -> Option<Self> {
        let told = match fault {
            Fault::LeaderUnauthorized => "n1 gets 401 for layers",
            Fault::FullDisk => "n1 has room for half of the image",
            Fault::Late(_) => return Some(Self::default()),
            _ => return None,
        };
        Some(Self::of(vec![0], told.to_owned()))
    }
}

pub fn fate(fault: Option<Fault>, is_victim: bool) -> Fate {
    match fault {
        Some(Fault::LeaderKilled | Fault::LeaderUnauthorized | Fault::FullDisk) if is_victim => {
            Fate::Fails
        }
        Some(Fault::PeiliStopped) if is_victim => Fate::Either,
        _ => Fate::Succeeds,
    }
}

/// A run as it goes.
pub struct Watch<'a> {
    pub nodes: &'a [Node],
    pub image: &'a Image,
    pub fault: Option<Fault>,
    pub began: Instant,
    /// Whose pull is over.
    pub done: &'a Mutex<Vec<bool>>,
}

/// What was seen until all pulls were over.
#[derive(Default)]
pub struct Seen {
    /// CPU seconds since their start, by node, until each one's end.
    pub peili_cpu: Vec<f64>,
    pub containerd_cpu: Vec<f64>,
    pub story: Option<Story>,
}

impl Watch<'_> {
    pub async fn until_done(&self) -> Result<Seen> {
        let mut seen = Seen {
            peili_cpu: vec![0.0; self.nodes.len()],
            containerd_cpu: vec![0.0; self.nodes.len()],
            story: self.fault.and_then(Story::at_first),
        };
        loop {
            self.note_cpu(&mut seen);
            let waiting: Vec<usize> = {
                let done = self.done.lock().unwrap();
                (0..done.len()).filter(|node| !done[*node]).collect()
            };
            if waiting.is_empty() {
                break;
            }
            if let (Some(fault), None) = (self.fault, &seen.story)
                && self.part_arrived() >= moment(fault)
            {
                seen.story = Some(self.inject(fault).await?);
            }
            if let (Some(Fault::PeiliStopped), Some(story)) = (self.fault, &seen.story)
                && waiting == story.victims
            {
                self.nodes[waiting[0]].signal_peili(Signal::CONT)?;
            }
            tokio::time::sleep(LOOK).await;
        }
        if self.fault.is_some() && seen.story.is_none() {
            let verdict = Verdict::new("it went wrong in time".to_owned(), false);
            seen.story = Some(Story {
                verdicts: vec![verdict],
                ..Story::default()
            });
        }
        Ok(seen)
    }

    fn note_cpu(&self, seen: &mut Seen) {
        for (index, node) in self.nodes.iter().enumerate() {
            let now = |pid: Option<u32>| pid.and_then(cpu_seconds);
            if let Some(cpu) = now(node.peili().pid()) {
                seen.peili_cpu[index] = cpu;
            }
            if let Some(cpu) = now(node.containerd().pid()) {
                seen.containerd_cpu[index] = cpu;
            }
        }
    }

    /// Which part of all bytes that all nodes will hold is there.
    fn part_arrived(&self) -> f64 {
        let all = self.image.pulled_bytes() * self.nodes.len() as u64;
        self.nodes.iter().map(arrived).sum::<u64>() as f64 / all as f64
    }

    async fn inject(&self, fault: Fault) -> Result<Story> {
        let at = self.began.elapsed().as_secs_f64();
        let name = |index: usize| format!("n{}", index + 1);
        Ok(match fault {
            Fault::LeaderKilled | Fault::PeiliKilled | Fault::PeiliStopped => {
                let (leader, bytes) = self.leader().await?;
                let node = &self.nodes[leader];
                let what = match fault {
                    Fault::LeaderKilled => {
                        node.kill();
                        "containerd killed"
                    }
                    Fault::PeiliKilled => {
                        node.kill_peili();
                        "Peili killed"
                    }
                    _ => {
                        node.signal_peili(Signal::STOP)?;
                        "Peili stopped"
                    }
                };
                let mb = bytes as f64 / 1e6;
                let told = format!(
                    "{}: {what} at {at:.1} s with {mb:.0} MB from the registry",
                    name(leader)
                );
                Story::of(vec![leader], told)
            }
            Fault::MeetingPointKilled => {
                let (victim, met) = self.meeting_point()?;
                self.nodes[victim].kill_peili();
                let told = format!(
                    "{}: Peili killed at {at:.1} s, meeting point of {met} layers",
                    name(victim)
                );
                Story::of(vec![victim], told)
            }
            Fault::Partition => {
                let (few, rest) = self.nodes.split_at(2);
                for one in few {
                    rest.iter().try_for_each(|other| one.cut_off(other))?;
                }
                let told = format!("n1 and n2 cut off from the others at {at:.1} s");
                Story::of(vec![0, 1], told)
            }
            Fault::Foreign => self.ask_as_a_stranger().await?,
            Fault::LeaderUnauthorized | Fault::FullDisk | Fault::Late(_) => Story::default(),
        })
    }

    /// Who has most from the registry, and how much: what its store holds and its Peili did not bring. Nobody who is
    /// all but done, if there are others: its loss would be none.
    async fn leader(&self) -> Result<(usize, u64)> {
        let nearly_all = self.image.pulled_bytes() / 10 * 9;
        let mut best = (0, 0);
        let mut best_is_done = true;
        for (index, node) in self.nodes.iter().enumerate() {
            let brought = node.metric("peili_mirror_bytes_total", &[]).await? as u64;
            let arrived = arrived(node);
            let own = arrived.saturating_sub(brought);
            let is_done = arrived >= nearly_all;
            if (!is_done, own) >= (!best_is_done, best.1) {
                best = (index, own);
                best_is_done = is_done;
            }
        }
        Ok(best)
    }

    /// The node that is the meeting point of most layers, and of how many.
    fn meeting_point(&self) -> Result<(usize, usize)> {
        let mut ids = Vec::new();
        for node in self.nodes {
            let keys = identity::load_or_create(Some(&node.peili().data()))?;
            ids.push(keys.public().to_peer_id());
        }
        let mut met = vec![0; ids.len()];
        for layer in &self.image.layers {
            let place = place(&Meeting::Content(layer.digest.parse::<Digest>()?));
            let nearest = (0..ids.len()).min_by_key(|index| distance(&place, ids[*index]));
            met[nearest.context("nobody")?] += 1;
        }
        let most = (0..ids.len()).max_by_key(|index| met[*index]);
        let most = most.context("nobody")?;
        Ok((most, met[most]))
    }

    /// From the second node, without a token, at the first one's Peili: every layer that this one does not hold.
    async fn ask_as_a_stranger(&self) -> Result<Story> {
        let (node, stranger) = (&self.nodes[0], &self.nodes[1]);
        let registry = self.image.reference();
        let registry = registry.split('/').next().unwrap_or_default();
        let (mut asked, mut refused, mut slowest) = (0, 0, Duration::ZERO);
        for layer in &self.image.layers {
            let name = self.image.name();
            let ns = registry.replace(':', "%3A");
            let path = format!("/v2/{name}/blobs/{}?ns={ns}", layer.digest);
            let begun = Instant::now();
            let to = node.peili().registry();
            let answer = stranger.http(to, hyper::Method::GET, &path, &[]);
            let answer = tokio::time::timeout(PATIENCE, answer).await;
            // What has become whole in the meantime may be served to anybody.
            if !node.holds(&layer.digest) {
                asked += 1;
                refused += i32::from(matches!(answer, Ok(Ok(answer)) if answer.status == 404));
                slowest = slowest.max(begun.elapsed());
            }
        }
        let at = self.began.elapsed().as_secs_f64();
        let told = format!("a stranger asked n1 until {at:.1} s");
        let mut story = Story::of(Vec::new(), told);
        let what = format!("{refused} of {asked} of its requests got 404 within {slowest:.1?}");
        story.verdicts = vec![Verdict::new(what, asked > 0 && refused == asked)];
        Ok(story)
    }
}

/// Which part of all bytes must be there.
fn moment(fault: Fault) -> f64 {
    match fault {
        // Late enough that layers are under way, early enough that none is whole.
        Fault::Foreign | Fault::MeetingPointKilled => 0.3,
        _ => 0.5,
    }
}
