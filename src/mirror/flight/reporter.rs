//! Looks at what this node is getting, and tells those who must know.
//!
//! Nothing on disk says whether a download is alive but its growth, so it is looked at: twenty times a second while there
//! is something to look at, and not at all else. What is told is told beside that: a meeting point that is slow to answer
//! keeps nobody from looking, and reports do not wait for words about images.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::join_all;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::blame::Giver;
use super::part::{Role, Seen};
use super::{Flight, InFlightSharing};
use crate::inflight::{View, Watching};
use crate::oci::Digest;
use crate::routing::rendezvous::{Course, Generation, Part, Standing};

/// A vanished ingest is told of within this: until then nobody may lead in its stead. A look costs a call of fstat(2).
const LOOK: Duration = Duration::from_millis(50);
/// Without news, whoever takes part is heard of this often.
const REPORT: Duration = Duration::from_millis(250);
/// A containerd that got something within this time is at work.
const BUSY: Duration = Duration::from_secs(1);
/// Whoever pulls an image says so this often.
const PULLS: Duration = Duration::from_millis(500);

/// What has been told.
enum Told {
    /// How flights stand, and which parts of this node are over by that.
    Parts(Vec<Course>, Vec<Digest>),
    Images,
}

pub(super) async fn run(flight: Flight) {
    let mut reported: Option<Instant> = None;
    let mut pulled: Option<Instant> = None;
    let mut told: HashMap<Digest, Part> = HashMap::new();
    let mut watched = HashMap::new();
    // At most one of each kind, so that no report overtakes another.
    let mut telling = JoinSet::new();
    let (mut is_reporting, mut tells_images) = (false, false);
    loop {
        if flight.parts().is_empty() {
            told.clear();
            watched.clear();
            flight.0.wake.notified().await;
            continue;
        }
        if flight.0.is_leaving.load(Ordering::Relaxed) {
            return;
        }
        let next = Instant::now() + LOOK;
        let standings = look(&flight, &mut watched).await;
        let now = Instant::now();
        let has_news = standings.iter().any(|standing| {
            told.get(&standing.digest)
                .is_none_or(|before| !is_alike(before, &standing.part))
        });
        let is_due = has_news || reported.is_none_or(|at| now - at >= REPORT);
        if is_due && !is_reporting {
            (reported, is_reporting) = (Some(now), true);
            told = standings
                .iter()
                .map(|standing| (standing.digest.clone(), standing.part.clone()))
                .collect();
            let over: Vec<Digest> = standings
                .iter()
                .filter(|standing| matches!(standing.part, Part::Holds | Part::Gone))
                .map(|standing| standing.digest.clone())
                .collect();
            let rendezvous = flight.0.rendezvous.clone();
            telling.spawn(async move { Told::Parts(rendezvous.report(standings).await, over) });
        }
        if !tells_images && pulled.is_none_or(|at| now - at >= PULLS) {
            (pulled, tells_images) = (Some(now), true);
            let flight = flight.clone();
            telling.spawn(async move {
                tell_images(&flight, now).await;
                Told::Images
            });
        }
        loop {
            tokio::select! {
                () = sleep_until(next) => break,
                Some(done) = telling.join_next() => match done {
                    Ok(Told::Parts(courses, over)) => {
                        is_reporting = false;
                        heard(&flight, courses, over);
                    }
                    Ok(Told::Images) => tells_images = false,
                    Err(error) => {
                        warn!(%error, "telling about this node's parts has failed");
                        (is_reporting, tells_images) = (false, false);
                    }
                },
            }
        }
    }
}

/// What the meeting points have answered to a report.
fn heard(flight: &Flight, courses: Vec<Course>, over: Vec<Digest>) {
    let mut parts = flight.parts();
    for course in courses {
        if let Some(part) = parts.get_mut(&course.digest)
            // Once whoever led has it all there is nobody who leads; what he was like is remembered.
            && course.progress.rate > 0
        {
            part.progress = course.progress;
        }
    }
    for digest in over {
        // Somebody may have asked again meanwhile.
        if parts.get(&digest).is_some_and(|part| part.requests == 0) {
            parts.remove(&digest);
        }
    }
}

/// Looks at every part; how those stand of which there is something to say.
async fn look(flight: &Flight, watched: &mut HashMap<Digest, Watching>) -> Vec<Standing> {
    let digests: Vec<Digest> = flight.parts().keys().cloned().collect();
    watched.retain(|digest, _| digests.contains(digest));
    for digest in &digests {
        let watch = || flight.0.inflight.watch(digest);
        watched.entry(digest.clone()).or_insert_with(watch);
    }
    let views = digests.iter().map(|digest| watched[digest].view());
    let looks = digests.iter().zip(views);
    let seen = join_all(looks.map(|(digest, view)| see(flight, digest, view))).await;
    let now = Instant::now();
    let mut parts = flight.parts();
    let is_busy = parts.values().any(|part| now - part.grew < BUSY);
    let mut standings = Vec::with_capacity(digests.len());
    for (digest, seen) in digests.into_iter().zip(seen) {
        let Some(part) = parts.get_mut(&digest) else {
            continue;
        };
        if seen == Seen::Refused {
            refused(flight, &digest, std::mem::take(&mut part.givers));
            part.ingest = None;
        }
        let Some(said) = part.look(seen, is_busy, now) else {
            continue;
        };
        if part.is_fetched_elsewhere(now) {
            let lease = rand::random();
            debug!(%digest, "containerd fetches it without us: this node leads");
            part.becomes(Role::Leads { lease }, now);
        }
        if said == Part::Gone && matches!(part.role, Role::Leads { .. }) && part.offset == 0 {
            info!(%digest, "the registry gave this node nothing of what it was to lead");
            flight.note_in_vain(&digest);
            if part.ingest.is_none() {
                flight.0.inflight.missed();
            }
        }
        let is_taking = said == Part::Takes;
        standings.push(Standing {
            generation: part.generation,
            part: said,
            offset: part.offset,
            rate: part.rate(now),
            node_rate: 0,
            // Of one who follows, its part says that no request is in hand.
            free: match is_taking && part.is_idle(now) {
                true => 0,
                false => flight.0.uplink.free(&digest),
            },
            digest,
        });
    }
    let node_rate = standings.iter().map(|standing| standing.rate).sum();
    for standing in &mut standings {
        standing.node_rate = node_rate;
        if let Some(part) = parts.get_mut(&standing.digest)
            && flight.0.sharing == InFlightSharing::Auto
        {
            let mut registries = flight.registries();
            if let Some(got_more) = part.got_more(now) {
                registries.note(&part.image, got_more, now);
            }
            if matches!(part.role, Role::Leads { .. }) {
                registries.brought(&part.image, standing.rate, now);
            }
            let is_proven = registries.is_faster(&part.image, now);
            drop(registries);
            if *part.slow.borrow() || !part.is_slow(node_rate, is_proven, now) {
                continue;
            }
            debug!(
                digest = %standing.digest, offset = standing.offset, rate = standing.rate, node_rate,
                leader = ?part.progress, "whoever leads is faster"
            );
            part.slow.send_replace(true);
        }
    }
    standings
}

async fn see(flight: &Flight, digest: &Digest, view: View) -> Seen {
    let known = flight
        .parts()
        .get(digest)
        .and_then(|part| part.ingest.clone());
    if let Some(ingest) = &known
        && let Ok(written) = ingest.written()
    {
        match ingest.is_abandoned() {
            Ok(false) if written < ingest.total() => return Seen::Growing(written),
            Ok(false) => {
                // All of it is there; containerd checks it and gives it its name.
                return match is_whole(flight, digest).await {
                    true => Seen::Whole,
                    // Unpacked and removed since, as where layers are discarded.
                    false if ingest.was_committed() => Seen::Whole,
                    false if ingest.was_refused() => Seen::Refused,
                    false => Seen::Checked(written),
                };
            }
            _ => {
                // A pull that is tried again has another one at once.
                if let Some(part) = flight.parts().get_mut(digest) {
                    part.ingest = None;
                }
                return match is_whole(flight, digest).await {
                    true => Seen::Whole,
                    false => Seen::Abandoned,
                };
            }
        }
    }
    match view {
        // The watcher may not have seen its end yet.
        View::Growing { ingest, .. } if !ingest.is_unlinked() => {
            let written = ingest.written().unwrap_or(0);
            if let Some(part) = flight.parts().get_mut(digest) {
                part.ingest = Some(ingest);
            }
            Seen::Growing(written)
        }
        View::Whole if is_whole(flight, digest).await => Seen::Whole,
        _ => Seen::Nothing,
    }
}

/// containerd has refused what it was given.
pub(super) fn refused(flight: &Flight, digest: &Digest, givers: Vec<Giver>) {
    if givers.is_empty() {
        // All of it came from the registry, or it was never ours.
        return;
    }
    warn!(%digest, givers = givers.len(), "containerd refused what peers had brought");
    flight.0.metrics.refused.inc();
    flight.0.distrust.refused(digest, &givers);
    let (flight, digest) = (flight.clone(), digest.clone());
    // Ends by itself within seconds.
    tokio::spawn(async move {
        let papers = &flight.0.papers;
        flight.0.distrust.judge(&digest, givers, papers).await;
    });
}

async fn is_whole(flight: &Flight, digest: &Digest) -> bool {
    matches!(flight.0.store.open(digest).await, Ok(Some(_)))
}

/// Each image that is being pulled here.
async fn tell_images(flight: &Flight, now: Instant) {
    let images: HashSet<(String, Generation, bool)> = {
        let parts = flight.parts();
        let is_busy = parts.values().any(|part| now - part.grew < BUSY);
        parts
            .values()
            .map(|part| (part.image.clone(), part.generation, is_busy))
            .collect()
    };
    let telling = images.iter().map(|(image, generation, is_busy)| {
        flight.0.rendezvous.pulls(image, *generation, *is_busy)
    });
    join_all(telling).await;
}

/// Whether somebody who knows the one need not hear of the other before the next report.
fn is_alike(before: &Part, now: &Part) -> bool {
    match (before, now) {
        (Part::Leads { lease: a, .. }, Part::Leads { lease: b, .. }) => a == b,
        (a, b) => a == b,
    }
}
