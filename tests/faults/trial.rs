//! One cell, tried: what came of it and whether that is right.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::cell::{Cell, Fault, Hit, Moment, Registry};
use crate::inject::{Undo, heal, inject, meanwhile, reached};
use crate::lab::Image;
use crate::lab::cri::Pulled;
use crate::lab::process::tail;
use crate::outcome::{Outcome, allowance, deadline};
use crate::rig::{MIB, Rig};
use crate::tap::{Pattern, Tap};

/// How much of a layer is there when its containerd is killed, for [`Hit::Range`]; a quarter for a small one.
const BEGUN: u64 = 64 * MIB;

/// The victim is the puller's nearest, which is not all that it goes by: one that was slow a moment ago comes later.
const MISSES: u32 = 5;

/// What came of a cell. Times in seconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    pub cell: String,
    pub expected: String,
    pub seen: String,
    /// Of the pull that met the fault.
    pub took: f64,
    /// From the fault to the end of that pull.
    pub after: f64,
    /// Of the kubelet's next, where there had to be one.
    pub next: Option<f64>,
    /// The same without hosts.toml, where the pull had to fail.
    pub without: Option<f64>,
    /// That holders sent, with heads.
    pub from_peers: u64,
    pub from_registry: u64,
    /// Beyond what the puller needed, if it has the image.
    pub twice: Option<i64>,
    /// containerd's own, of the pull that met the fault.
    pub error: Option<String>,
    /// Nothing: it is right.
    pub wrong: Vec<String>,
    /// The puller had it from somebody else than the victim.
    #[serde(skip)]
    pub was_missed: bool,
}

/// An error is the rig's: the cell was not tried.
pub async fn attempt(rig: &Rig, cell: &Cell) -> Result<Report> {
    for _ in 0..MISSES {
        let report = once(rig, cell).await?;
        if !report.was_missed {
            return Ok(report);
        }
    }
    anyhow::bail!("{MISSES} times another holder than the victim was asked")
}

async fn once(rig: &Rig, cell: &Cell) -> Result<Report> {
    rig.reset().await.context("before the cell")?;
    let mut undo = Undo::default();
    let tried = try_one(rig, cell, &mut undo).await;
    rig.front.open();
    let healed = heal(rig, cell, &mut undo).await.context("afterwards");
    if cell.registry == Registry::Down {
        rig.lab.start_registry().await?;
    }
    let mut report = tried?;
    healed?;
    if cell.fault == Fault::Partition {
        // Both know each other again, without a restart.
        let again = rig.everybody_known().await;
        if let Err(error) = again {
            report.wrong.push(format!("after the partition: {error:#}"));
        }
    }
    Ok(report)
}

async fn try_one(rig: &Rig, cell: &Cell, undo: &mut Undo) -> Result<Report> {
    let image = rig.image(cell);
    let outcome = Outcome::of(cell);
    if cell.hit == Hit::Range {
        begin(rig, cell).await.context("a part of the layer")?;
    }
    if cell.registry == Registry::Down {
        rig.lab.stop_registry().await?;
    }
    let without = match outcome {
        // A disk is full for whoever writes to it.
        Outcome::Pulled => None,
        _ => Some(without(rig, cell).await?),
    };
    let had = present(rig, image);
    let before = (from_peers(rig), from_registry(rig).await?);
    let failed_before = failed_attempts(rig).await?;
    let sent_before: Vec<u64> = rig.taps.iter().map(Tap::passed).collect();
    // Who has sent most by now.
    let busiest = || {
        let sent = rig.taps.iter().zip(&sent_before);
        let sent = sent.map(|(tap, before)| tap.passed() - before);
        sent.enumerate()
            .max_by_key(|(_, sent)| *sent)
            .map(|(place, _)| place)
    };
    let mut was_missed = false;

    let mut hit_at = Instant::now();
    let began = hit_at;
    let reference = image.reference();
    let pull = rig.puller.cri_pull(&reference);
    let pulled = match cell.moment() {
        Moment::Before => {
            inject(rig, cell, undo).await?;
            pull.await
        }
        at => {
            let (path, _) = rig.target(cell);
            let ranged = cell.hit == Hit::Range;
            let held = rig.front.hold(Pattern { path, ranged }, at);
            tokio::pin!(pull);
            let held = tokio::select! {
                held = reached(held) => held?,
                ended = &mut pull => {
                    rig.front.open();
                    anyhow::bail!("the pull ended before the fault: {ended:?}");
                }
            };
            was_missed = matches!(at, Moment::Given(_)) && busiest() != Some(0);
            if !was_missed {
                inject(rig, cell, undo).await?;
            }
            hit_at = Instant::now();
            drop(held);
            if was_missed {
                pull.await
            } else {
                let (pulled, meanwhile) = tokio::join!(pull, meanwhile(rig, cell));
                meanwhile?;
                pulled
            }
        }
    };
    let (took, after) = (began.elapsed(), hit_at.elapsed());

    let mut wrong = Vec::new();
    let mut error = None;
    let mut seen = Outcome::Pulled;
    match &pulled {
        Ok(pulled) => check(rig, image, pulled, &mut wrong)?,
        Err(e) => {
            error = Some(format!("{e:#}"));
            seen = Outcome::Fails;
        }
    }
    // Its spoilt file was not read. Whose bytes Peili itself has refused is not asked for the rest, and has sent little.
    if cell.fault == Fault::Flipped && seen == Outcome::Pulled && busiest() != Some(0) {
        was_missed |= failed_attempts(rig).await? == failed_before;
    }
    let mut next = None;
    if seen == Outcome::Fails && outcome == Outcome::NextPull {
        (next, seen) = again(rig, cell, undo, &mut wrong).await?;
    }
    let (from_peers, from_registry) = (
        from_peers(rig) - before.0,
        from_registry(rig).await? - before.1,
    );
    let needed = image.pulled_bytes().saturating_sub(had);
    let twice =
        (seen != Outcome::Fails).then(|| (from_peers + from_registry) as i64 - needed as i64);
    if seen != outcome {
        wrong.push(format!("{} instead of {}", seen.word(), outcome.word()));
    }
    if error.is_some() && outcome != Outcome::Pulled {
        let limit = without.unwrap_or_default() + deadline(cell);
        if after > limit {
            wrong.push(format!("it failed after {after:.1?}, not {limit:.1?}"));
        }
    }
    let limit = allowance(cell);
    if let Some(twice) = twice
        && twice > limit as i64
    {
        wrong.push(format!("{twice} bytes were fetched twice, not {limit}"));
    }
    if !wrong.is_empty() {
        wrong.push(logs(rig));
    }
    Ok(Report {
        cell: cell.to_string(),
        expected: outcome.word().to_owned(),
        seen: seen.word().to_owned(),
        took: took.as_secs_f64(),
        after: after.as_secs_f64(),
        next: next.map(|next: Duration| next.as_secs_f64()),
        without: without.map(|without| without.as_secs_f64()),
        from_peers,
        from_registry,
        twice,
        error,
        wrong,
        was_missed,
    })
}

/// Kills containerd in the middle of the layer that the cell is about. What is there stays, for a day.
async fn begin(rig: &Rig, cell: &Cell) -> Result<()> {
    let image = rig.image(cell);
    let (path, digest) = rig.target(cell);
    let at = match cell.fault.is_slow() {
        true => BEGUN / 32,
        false => BEGUN,
    };
    let ranged = false;
    let held = rig.front.hold(Pattern { path, ranged }, Moment::Given(at));
    let reference = image.reference();
    let pull = rig.puller.cri_pull(&reference);
    tokio::pin!(pull);
    let held = tokio::select! {
        held = reached(held) => held?,
        ended = &mut pull => anyhow::bail!("it ended: {ended:?}"),
    };
    // The other layer is there, too, or its bytes would be counted as this one's.
    let others = || image.layers.iter().rev().skip(1);
    crate::lab::process::eventually("the other layers", crate::rig::AT_ALL, async || {
        let mut others = others();
        Ok(others
            .all(|layer| rig.puller.holds(&layer.digest))
            .then_some(()))
    })
    .await?;
    rig.puller.kill();
    drop(held);
    ensure!(pull.await.is_err(), "a killed containerd pulled");
    rig.puller.start().await?;
    ensure!(
        !rig.puller.holds(&digest.context("a layer")?),
        "it is whole"
    );
    Ok(())
}

/// How long the pull takes to fail while containerd knows no mirror.
async fn without(rig: &Rig, cell: &Cell) -> Result<Duration> {
    if cell.fault == Fault::DiskFull {
        // It is the disk's time, and much less than what is allowed on top.
        return Ok(Duration::ZERO);
    }
    if cell.registry == Registry::Up {
        return Ok(Duration::ZERO);
    }
    let host = rig.lab.registry.host();
    let file = rig
        .puller
        .containerd()
        .certs_d()
        .join(&host)
        .join("hosts.toml");
    let ours = std::fs::read(&file)?;
    let theirs = format!(
        "server = \"http://{host}\"\n[host.\"http://{host}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
    );
    std::fs::write(&file, theirs)?;
    let began = Instant::now();
    let pulled = rig.puller.cri_pull(&rig.image(cell).reference()).await;
    let took = began.elapsed();
    std::fs::write(&file, ours)?;
    ensure!(pulled.is_err(), "it was pulled from nowhere");
    Ok(took)
}

/// What the kubelet does next. Faults that last only for a moment are over by then.
async fn again(
    rig: &Rig,
    cell: &Cell,
    undo: &mut Undo,
    wrong: &mut Vec<String>,
) -> Result<(Option<Duration>, Outcome)> {
    if cell.fault != Fault::Flipped {
        heal(rig, cell, undo).await?;
        rig.puller.peili_ready().await?;
        rig.everybody_known().await?;
    } else {
        if cell.hit == Hit::Range {
            // What a killed containerd had begun has a lease for a day, and keeps even what is refused as long.
            rig.collect().await?;
        }
        // Until containerd has thrown away what it refused, it refuses it again without asking anybody.
        crate::lab::process::eventually("an end of the refused", crate::rig::AT_ALL, async || {
            let ingests = rig.puller.containerd().content().join("ingest");
            Ok((std::fs::read_dir(ingests)?.count() == 0).then_some(()))
        })
        .await?;
    }
    let image = rig.image(cell);
    let began = Instant::now();
    match rig.puller.cri_pull(&image.reference()).await {
        Ok(pulled) => {
            check(rig, image, &pulled, wrong)?;
            Ok((Some(began.elapsed()), Outcome::NextPull))
        }
        Err(error) => {
            wrong.push(format!("the next pull: {error:#}"));
            Ok((None, Outcome::Fails))
        }
    }
}

/// Compares what containerd has with what was made.
fn check(rig: &Rig, image: &Image, pulled: &Pulled, wrong: &mut Vec<String>) -> Result<()> {
    if pulled.id != image.config.digest {
        wrong.push(format!("{} is another image", pulled.id));
    }
    for blob in image.pulled() {
        let theirs = Rig::blob_of(&rig.puller, &blob.digest);
        if !same(&theirs, &blob.file).with_context(|| theirs.display().to_string())? {
            wrong.push(format!("{} has other bytes", blob.digest));
        }
    }
    Ok(())
}

fn same(one: &Path, other: &Path) -> Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let read = one.read(&mut a)?;
        if read == 0 {
            return Ok(true);
        }
        other.read_exact(&mut b[..read])?;
        if a[..read] != b[..read] {
            return Ok(false);
        }
    }
}

/// Bytes of the image that the puller has.
fn present(rig: &Rig, image: &Image) -> u64 {
    let content = rig.puller.containerd().content();
    let length = |path: &Path| std::fs::metadata(path).map_or(0, |m| m.len());
    let blobs = image
        .pulled()
        .map(|blob| Rig::blob_of(&rig.puller, &blob.digest));
    let whole: u64 = blobs.map(|path| length(&path)).sum();
    let ingests = std::fs::read_dir(content.join("ingest"));
    let parts = ingests.into_iter().flatten().flatten();
    whole
        + parts
            .map(|part| length(&part.path().join("data")))
            .sum::<u64>()
}

fn from_peers(rig: &Rig) -> u64 {
    rig.taps.iter().map(|tap| tap.passed()).sum()
}

/// Of the puller's requests to holders.
async fn failed_attempts(rig: &Rig) -> Result<f64> {
    let failed = [("outcome", "failed")];
    let name = "peili_peer_attempts_total";
    rig.puller.metric(name, &failed).await
}

async fn from_registry(rig: &Rig) -> Result<u64> {
    Ok(rig.lab.registry.served().await?.bytes_to(rig.puller.ip()))
}

fn logs(rig: &Rig) -> String {
    let puller = tail(&rig.puller.peili().log(), 25);
    let victim = tail(&rig.victim().peili().log(), 10);
    format!("the puller's Peili:\n{puller}\nthe victim's:\n{victim}")
}

impl Report {
    pub fn untried(cell: &Cell) -> Self {
        Self {
            cell: cell.to_string(),
            expected: Outcome::of(cell).word().to_owned(),
            seen: "not tried".to_owned(),
            took: 0.0,
            after: 0.0,
            next: None,
            without: None,
            from_peers: 0,
            from_registry: 0,
            twice: None,
            error: None,
            wrong: Vec::new(),
            was_missed: false,
        }
    }
}
