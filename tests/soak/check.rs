//! A plateau: everybody is well, nobody pulls. Is everything that is told of there, and everything else as it was?

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::{TryStreamExt as _, stream};
use hyper::Method;
use sha2::{Digest as _, Sha256};

use crate::clients::{PEER, find};
use crate::judge::{Known, Sample, complaints};
use crate::lab::http;
use crate::lab::process::eventually;
use crate::plan::{NODES, STEADY};
use crate::probe;
use crate::world::{AT_ALL, Content, World, files_below};

/// Connections that are idle end after 30 s, those of who has vanished when nothing was acknowledged for 30 s and the ten of a
/// lingering end are over; threads after ten.
const QUIET: Duration = Duration::from_secs(75);
/// A process looks the same a few times in a row before it is believed.
const STILL: usize = 4;
const PAUSE: Duration = Duration::from_millis(250);
/// A Peili answers four finds at a time.
const FINDS: usize = 3;
/// What lies in a data directory.
const STATE: [&str; 3] = ["private.key", "known-peers", "node-token"];

/// The first sets what later ones are compared with. `idle`: it is waited until idle connections have ended, too.
/// How long it took to see that what is told is there, that it was reduced, and until it was quiet.
pub async fn plateau(world: &mut World, steps: u64, idle: bool) -> Result<[Duration; 3]> {
    let begun = Instant::now();
    told_and_served(world).await.context("what is told")?;
    let told = begun.elapsed();
    reduce(world).await.context("back to the beginning")?;
    left_behind(world)?;
    let reduced = begun.elapsed();
    let samples = quiet(world, idle).await?;
    for (member, sample) in world.members.iter_mut().zip(samples) {
        member.first.get_or_insert_with(|| sample.clone());
        member.series.push((steps, sample));
    }
    Ok([told, reduced - told, begun.elapsed() - reduced])
}

/// Each key that a node tells is found by another and served to the byte.
async fn told_and_served(world: &mut World) -> Result<()> {
    world.guest.restore_link()?;
    let mut contents = Vec::new();
    for (place, member) in world.members.iter().enumerate() {
        // What nobody needs goes now, and not while it is looked at.
        member.collect(&world.base).await?;
        let content = member.content().await?;
        for (image, version) in &member.held {
            let image = &world.images[*image][*version];
            let missing = image
                .pulled()
                .find(|blob| !content.digests.contains(&blob.digest));
            ensure!(
                missing.is_none(),
                "{} lacks {missing:?} of {}",
                member.node.name(),
                image.reference()
            );
        }
        tells(world, place, &content).await?;
        contents.push(content);
    }
    for (place, content) in contents.iter().enumerate() {
        served(world, place, content).await?;
        found(world, place, content).await?;
    }
    for (member, content) in world.members.iter_mut().zip(contents) {
        let tags: Vec<String> = content.tags().cloned().collect();
        member.mark(content.digests.into_iter().chain(tags));
    }
    Ok(())
}

/// It advertises as many keys as its containerd has.
async fn tells(world: &World, place: usize, content: &Content) -> Result<()> {
    let node = &world.members[place].node;
    let wanted = (content.digests.len() as f64, content.tags().count() as f64);
    let mut seen = (0.0, 0.0);
    let told = eventually("as many keys as there are contents", AT_ALL, async || {
        let of = async |kind| {
            let kind = [("kind", kind)];
            node.metric("peili_advertised_keys", &kind).await
        };
        seen = (of("content").await?, of("tag").await?);
        Ok((seen == wanted).then_some(()))
    })
    .await;
    told.with_context(|| {
        format!(
            "{} tells of {seen:?} contents and tags, not {wanted:?}",
            node.name()
        )
    })
}

async fn served(world: &World, place: usize, content: &Content) -> Result<()> {
    let node = &world.members[place].node;
    let to = node.peili().registry();
    let get = async |path: String| {
        let guest = &world.guest;
        http::send(
            guest.netns(),
            to,
            Method::GET,
            &path,
            &[PEER],
            http::Upload::Nothing,
        )
        .await?
        .expect(200)
        .with_context(|| format!("{path} of {}", node.name()))
    };
    for digest in &content.digests {
        let answer = get(format!("/v2/soak/any/blobs/{digest}")).await?;
        let seen = format!("sha256:{:x}", HexSlice(&Sha256::digest(&answer.body)));
        ensure!(seen == *digest, "{} gave {seen} for {digest}", node.name());
    }
    let host = world.lab.registry.host();
    for tag in content.tags() {
        let name = tag.strip_prefix(&format!("{host}/"));
        let (name, tag) = name
            .and_then(|name| name.rsplit_once(':'))
            .with_context(|| format!("a name of our registry: {tag}"))?;
        let ns = host.replace(':', "%3A");
        let answer = get(format!("/v2/{name}/manifests/{tag}?ns={ns}")).await?;
        let said = answer.header("docker-content-digest").unwrap_or_default();
        ensure!(
            content.digests.contains(said),
            "{} says that {name}:{tag} is {said}, which it lacks",
            node.name()
        );
    }
    Ok(())
}

async fn found(world: &World, place: usize, content: &Content) -> Result<()> {
    let holder = world.members[place].node.peili().registry().to_string();
    let keys = content.digests.iter().chain(content.tags());
    stream::iter(keys.enumerate().map(Ok))
        .try_for_each_concurrent(FINDS, |(number, key)| {
            let asker = (place + 1 + number % (NODES - 1)) % NODES;
            let holder = &holder;
            async move {
                let mut last = None;
                let seen = eventually(key, AT_ALL, async || {
                    let found = find(world, asker, key).await?;
                    let is_there = found.delivering.contains(holder);
                    last = Some(found);
                    Ok(is_there.then_some(()))
                })
                .await;
                seen.with_context(|| format!("n{asker} does not find {holder} for {key}: {last:?}"))
            }
        })
        .await
}

/// Nothing but what was there at the beginning; and what is gone is not told of.
async fn reduce(world: &mut World) -> Result<()> {
    let base = world.base.clone();
    let mut gone: BTreeSet<String> = BTreeSet::new();
    for member in &mut world.members {
        let before = member.content().await?;
        let doomed: Vec<&str> = before
            .names
            .difference(&member.base.names)
            .map(String::as_str)
            .collect();
        if !doomed.is_empty() {
            let command = [&["images", "rm", "--sync"][..], &doomed].concat();
            member.node.ctr(&command).await?;
        }
        let mut now = Content::default();
        let (mut tries, mut writes) = (0, Vec::new());
        let reduced = eventually("the beginning's content", AT_ALL, async || {
            tries += 1;
            if tries % 5 == 0 {
                member.collect(&base).await?;
            }
            now = member.content().await?;
            writes = member.writes();
            Ok((now == member.base && writes.is_empty()).then_some(()))
        })
        .await;
        reduced.with_context(|| {
            let more: Vec<_> = now
                .digests
                .symmetric_difference(&member.base.digests)
                .collect();
            let names: Vec<_> = now.names.symmetric_difference(&member.base.names).collect();
            format!("{}: {more:?} {names:?} {writes:?}", member.node.name())
        })?;
        member.held.clear();
        member.tags.clear();
        let held = before.digests.difference(&member.base.digests);
        gone.extend(held.cloned());
        let tags: Vec<String> = before.tags().cloned().collect();
        member.mark(before.digests.into_iter().chain(tags));
        let kept: Vec<String> = member.base.tags().cloned().collect();
        member.mark(member.base.digests.clone().into_iter().chain(kept));
    }
    for place in 0..NODES {
        tells(world, place, &world.members[place].base).await?;
    }
    let ours = |digest: &&String| {
        let mut members = world.members.iter();
        !members.any(|member| member.base.digests.contains(*digest))
    };
    for (number, digest) in gone.iter().filter(ours).enumerate() {
        let found = find(world, number % NODES, digest).await?;
        ensure!(
            !found.here && found.delivering.is_empty(),
            "{digest} is gone, and yet: {found:?}"
        );
    }
    Ok(())
}

/// No files that nobody needs, and hosts.toml as it was.
fn left_behind(world: &World) -> Result<()> {
    for member in &world.members {
        let name = member.node.name();
        let hosts = files_below(&member.node.containerd().certs_d())?;
        let now: Vec<_> = hosts.keys().collect();
        let then: Vec<_> = member.hosts.keys().collect();
        ensure!(now == then, "certs.d of {name}: {now:?}, not {then:?}");
        let changed = hosts
            .iter()
            .find(|(path, bytes)| member.hosts[*path] != **bytes);
        if let Some((path, bytes)) = changed {
            let (now, then) = (
                String::from_utf8_lossy(bytes),
                String::from_utf8_lossy(&member.hosts[path]),
            );
            bail!("{} of {name}:\n{now}\nnot\n{then}", path.display());
        }
        let state = files_below(&member.node.peili().data())?;
        let strange: Vec<_> = state
            .keys()
            .filter(|path| {
                let file = path.file_name().and_then(|name| name.to_str());
                !file.is_some_and(|file| STATE.contains(&file))
            })
            .collect();
        ensure!(strange.is_empty(), "data directory of {name}: {strange:?}");
    }
    Ok(())
}

/// Waits until nobody has anything to complain of, and says what they are when there is always something.
async fn quiet(world: &World, idle: bool) -> Result<Vec<Sample>> {
    let begun = Instant::now();
    let mut wrong = vec![Vec::new(); NODES];
    let mut still = 0;
    let mut last: Vec<Sample> = Vec::new();
    while begun.elapsed() < QUIET {
        let mut now = Vec::new();
        for (place, member) in world.members.iter().enumerate() {
            let pid = member.node.peili().pid().context("its Peili runs")?;
            let page = member.node.http(
                member.node.peili().metrics(),
                Method::GET,
                "/metrics",
                &[("connection", "close")],
            );
            let page = page.await?.expect(200)?.text();
            let sample = probe::sample(pid, &page)?;
            let known = Known {
                is_idle: idle,
                others: NODES - 1,
                records: world.records_for(place),
            };
            let first = member.first.as_ref();
            wrong[place] = match first {
                Some(first) => complaints(first, &sample, &known),
                // What is compared with nothing else.
                None => complaints(&sample, &sample, &known),
            };
            now.push(sample);
        }
        let as_before = last.len() == NODES
            && last.iter().zip(&now).all(|(last, now)| {
                (last.tasks, &last.descriptors) == (now.tasks, &now.descriptors)
            });
        last = now;
        still = match wrong.iter().all(Vec::is_empty) {
            // The first is what others are measured by.
            true if as_before => still + 1,
            _ => 0,
        };
        let patience = match world.members[0].first {
            None => STILL,
            Some(_) => 1,
        };
        if still >= patience {
            return Ok(last);
        }
        tokio::time::sleep(PAUSE).await;
    }
    let mut said = String::new();
    for (place, wrong) in wrong.iter().enumerate() {
        if !wrong.is_empty() {
            let first = &world.members[place].first;
            let steady = if STEADY.contains(&place) {
                ", steady"
            } else {
                ""
            };
            said += &format!(
                "{}{steady}: {wrong:#?}\nfirst {first:?}\nnow   {:?}\n",
                world.members[place].node.name(),
                last.get(place)
            );
        }
    }
    bail!("it was not quiet within {QUIET:?}:\n{said}")
}

struct HexSlice<'a>(&'a [u8]);

impl std::fmt::LowerHex for HexSlice<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
