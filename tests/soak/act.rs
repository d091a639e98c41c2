//! Steps, done; and whether what came of each is right.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use serde_json::Value;

use crate::clients::{ask, find, leave, vanish};
use crate::lab::cri::Pulled;
use crate::lab::process::{eventually, tail};
use crate::plan::{By, Disturbance, MOVING, Pull, Step};
use crate::say;
use crate::world::{AT_ALL, World};

/// No pull here is of more than 16 MiB. Thirty seconds are the longest that Peili makes a request wait, and then containerd
/// still has to get it.
const SLOWEST: Duration = Duration::from_secs(45);
/// Most take less than one second.
const WORTH_A_LOOK: Duration = Duration::from_secs(3);
/// What a failing pull may cost where nobody has it: a rendezvous and a lookup for what it asks first.
const FAILS_WITHIN: Duration = Duration::from_secs(15);

/// What was done.
#[derive(Debug, Default)]
pub struct Tally {
    pub steps: u64,
    pub pulls: u64,
    /// That had to fail, and did.
    pub refused: u64,
    /// On a node that was disturbed: the kubelet's next succeeded.
    pub second_tries: u64,
    /// Of images that the node did not have.
    pub bytes: u64,
    pub slowest: Duration,
}

pub async fn perform(world: &mut World, step: &Step, tally: &mut Tally) -> Result<()> {
    match step {
        Step::Pull(pulls) => {
            make_room(world, pulls).await?;
            let done = all(world, pulls).await;
            settle(world, pulls, done, None, tally).await?;
        }
        Step::Disturbed {
            pulls,
            who,
            what,
            after,
        } => {
            make_room(world, pulls).await?;
            let disturbed = async {
                // Chance, and part of the plan.
                tokio::time::sleep(*after).await;
                disturb(world, *who, *what).await
            };
            let (done, disturbed) = tokio::join!(all(world, pulls), disturbed);
            disturbed.with_context(|| format!("{what:?}"))?;
            settle(world, pulls, done, Some(*who), tally).await?;
        }
        Step::Remove { node, image } => world.remove(*node, *image).await?,
        Step::Import { node, image } => {
            world.touch(*node, *image);
            let version = world.newest(*image);
            let member = &mut world.members[*node];
            member.mark_import(&world.images[*image][version]);
            member.node.import(&world.images[*image][version]).await?;
            member.held.insert((*image, version));
            member.tags.insert(*image, version);
        }
        Step::Push { crowd } => {
            world.push_new().await?;
            let pulls: Vec<Pull> = crowd
                .iter()
                .map(|node| Pull {
                    node: *node,
                    image: MOVING,
                    by: By::Digest,
                    anew: false,
                })
                .collect();
            let done = all(world, &pulls).await;
            settle(world, &pulls, done, None, tally).await?;
        }
        Step::Outage(pulls) => outage(world, pulls, tally).await?,
        Step::Ask { node, question } => ask(world, *node, *question).await?,
        Step::Vanish { node, clients } => vanish(world, *node, *clients).await?,
        Step::Leave {
            node,
            image,
            clients,
        } => {
            world.touch(*node, *image);
            leave(world, *node, *image, *clients).await?;
        }
        Step::GiveUp { pull, after } => {
            world.remove(pull.node, pull.image).await?;
            world.touch(pull.node, pull.image);
            // It may be done by then; the model knows nothing of what it has brought.
            let _ = tokio::time::timeout(*after, one(world, pull)).await;
        }
    }
    tally.steps += 1;
    Ok(())
}

async fn make_room(world: &mut World, pulls: &[Pull]) -> Result<()> {
    for pull in pulls.iter().filter(|pull| pull.anew) {
        world.remove(pull.node, pull.image).await?;
    }
    for pull in pulls {
        world.touch(pull.node, pull.image);
    }
    Ok(())
}

async fn one(world: &World, pull: &Pull) -> Result<Pulled> {
    let newest = &world.images[pull.image][world.newest(pull.image)];
    let reference = match pull.by {
        By::Tag => newest.reference(),
        By::Digest => newest.reference_by_digest(),
    };
    let node = &world.members[pull.node].node;
    let pulled = node.cri_pull(&reference).await;
    let error = pulled.as_ref().err().map(|error| format!("{error:#}"));
    match error.as_deref().and_then(forgotten_snapshot) {
        Some(directory) if directory.starts_with(node.dir()) => {
            let removed = std::fs::remove_dir_all(directory);
            removed.with_context(|| format!("cannot remove {}", directory.display()))?;
            node.cri_pull(&reference).await
        }
        _ => pulled,
    }
}

/// containerd's own: one that was killed has made a snapshot's directory and not written down that it has, and fails at each
/// try to give the next one the same number. Nobody but an operator removes it.
fn forgotten_snapshot(error: &str) -> Option<&Path> {
    let (_, renamed) = error.split_once("failed to rename: rename ")?;
    let (_, to) = renamed.split_once(' ')?;
    let (directory, why) = to.split_once(": ")?;
    (why.starts_with("file exists") && directory.contains("/snapshots/"))
        .then(|| Path::new(directory))
}

async fn all(world: &World, pulls: &[Pull]) -> Vec<Result<Pulled>> {
    join_all(pulls.iter().map(|pull| one(world, pull))).await
}

/// Each has succeeded, and those of the disturbed node at the second try.
async fn settle(
    world: &mut World,
    pulls: &[Pull],
    done: Vec<Result<Pulled>>,
    disturbed: Option<usize>,
    tally: &mut Tally,
) -> Result<()> {
    for (pull, mut done) in pulls.iter().zip(done) {
        if done.is_err() && disturbed == Some(pull.node) {
            tally.second_tries += 1;
            done = one(world, pull).await.context("the second try");
        }
        note(world, pull, done?, tally)?;
    }
    Ok(())
}

/// The node has what it should have, and not another image.
fn note(world: &mut World, pull: &Pull, pulled: Pulled, tally: &mut Tally) -> Result<()> {
    let versions = &world.images[pull.image];
    let version = versions
        .iter()
        .rposition(|version| version.config.digest == pulled.id)
        .with_context(|| format!("{pull:?} brought another image: {}", pulled.id))?;
    let newest = versions.len() - 1;
    ensure!(
        version == newest || pull.by == By::Tag,
        "{pull:?} brought version {version} instead of {newest}"
    );
    ensure!(
        pulled.took < SLOWEST,
        "{pull:?} took {:.1?}, not {SLOWEST:?}",
        pulled.took
    );
    let image = &versions[version];
    let member = &mut world.members[pull.node];
    if pulled.took > WORTH_A_LOOK {
        let log = tail(&member.node.peili().log(), 100);
        let slow: Vec<&str> = log.lines().filter(|line| is_slow(line)).collect();
        say(&format!(
            "{pull:?} on {} took {:.1?}; slow of late: {}",
            member.node.name(),
            pulled.took,
            slow.join("\n")
        ));
    }
    let missing = image.pulled().find(|blob| !member.node.holds(&blob.digest));
    ensure!(missing.is_none(), "{pull:?} is done without {missing:?}");
    tally.pulls += 1;
    tally.slowest = tally.slowest.max(pulled.took);
    if member.held.insert((pull.image, version)) {
        tally.bytes += image.pulled_bytes();
    }
    if pull.by == By::Tag {
        member.tags.insert(pull.image, version);
    }
    Ok(())
}

/// A line of the log about a request that took more than a second.
fn is_slow(line: &str) -> bool {
    let line: Option<Value> = serde_json::from_str(line).ok();
    let seconds = line.and_then(|line| line["seconds"].as_f64());
    seconds.is_some_and(|seconds| seconds > 1.0)
}

async fn disturb(world: &World, who: usize, what: Disturbance) -> Result<()> {
    let member = &world.members[who];
    match what {
        Disturbance::PeiliKilled => {
            member.node.kill_peili();
            member.node.start_peili_with(&member.options).await
        }
        Disturbance::PeiliRestarted => {
            let ended = member.node.stop_peili().await?;
            ensure!(
                ended.is_some_and(|status| status.success()),
                "it ended with {ended:?}"
            );
            member.node.start_peili_with(&member.options).await
        }
        Disturbance::ContainerdKilled => {
            member.node.kill();
            member.node.start().await
        }
        Disturbance::ContainerdRestarted => member.node.restart().await,
    }
}

/// Who has a source must succeed, once it is known where; who has none must fail, and soon.
async fn outage(world: &mut World, pulls: &[Pull], tally: &mut Tally) -> Result<()> {
    make_room(world, pulls).await?;
    // A pull of this outage is no source for another: whether it comes first is chance.
    let sources: Vec<Vec<usize>> = pulls.iter().map(|pull| sources(world, pull)).collect();
    for (pull, versions) in pulls.iter().zip(&sources) {
        for version in versions {
            known(world, pull, *version).await?;
        }
    }
    let anywhere: Vec<bool> = pulls
        .iter()
        .map(|pull| world.is_anywhere(pull.image))
        .collect();
    world.lab.stop_registry().await?;
    let begun = Instant::now();
    let done = all(world, pulls).await;
    let took = begun.elapsed();
    world.lab.start_registry().await?;
    for (place, (pull, done)) in pulls.iter().zip(done).enumerate() {
        match done {
            Ok(done) => note(world, pull, done, tally)?,
            Err(error) if !sources[place].is_empty() => {
                return Err(error.context("others have it, and the registry is away"));
            }
            Err(_) if !anywhere[place] => {
                tally.refused += 1;
                ensure!(took < FAILS_WITHIN, "{pull:?} failed after {took:.1?}");
            }
            // A part of a pull that was given up.
            Err(_) => {}
        }
    }
    Ok(())
}

/// Versions that would do, and that somebody has.
fn sources(world: &World, pull: &Pull) -> Vec<usize> {
    let versions: Vec<usize> = match pull.by {
        By::Tag => world.tagged(pull.image).into_iter().collect(),
        By::Digest => vec![world.newest(pull.image)],
    };
    let held = |version: &usize| world.is_held(pull.image, *version);
    versions.into_iter().filter(held).collect()
}

/// The puller's Peili knows where all of a version is.
async fn known(world: &World, pull: &Pull, version: usize) -> Result<()> {
    let image = &world.images[pull.image][version];
    let mut keys: Vec<String> = image.pulled().map(|blob| blob.digest.clone()).collect();
    if pull.by == By::Tag {
        keys.push(image.reference());
    }
    for key in keys {
        eventually(&key, AT_ALL, async || {
            let found = find(world, pull.node, &key).await?;
            Ok((found.here || !found.delivering.is_empty()).then_some(()))
        })
        .await
        .with_context(|| format!("{pull:?}: where version {version} is"))?;
    }
    Ok(())
}

#[test]
fn a_forgotten_snapshot_is_told_from_whatever_else_fails() {
    let at = "/n4/root/io.containerd.snapshotter.v1.overlayfs/snapshots";
    let error = format!(
        "failed to prepare extraction snapshot \"extract-1\": failed to rename: rename {at}/new-3313 {at}/233: file exists"
    );
    let directory = format!("{at}/233");
    assert_eq!(forgotten_snapshot(&error), Some(Path::new(&directory)));
    for other in [
        "failed commit on ref: unexpected commit digest",
        "failed to rename: rename /a/snapshots/new /a/snapshots/2: no space left on device",
        "failed to rename: rename /a/b /a/c: file exists",
    ] {
        assert_eq!(forgotten_snapshot(other), None, "{other}");
    }
}
