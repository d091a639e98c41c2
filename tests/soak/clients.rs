//! Those who ask a Peili without pulling: people, Prometheus, peers, and clients that go in the middle of it.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::lab::http::{self, Answer, Upload};
use crate::lab::net::Netns;
use crate::plan::Question;
use crate::world::{POD, World};

/// Whoever asks something here is answered within a few seconds, or has met something that hangs.
const AN_ANSWER: Duration = Duration::from_secs(45);

pub const PEER: (&str, &str) = ("X-Spegel-Mirrored", "true");
const JSON: (&str, &str) = ("content-type", "application/json");

/// What a node's Peili knows of a key.
#[derive(Debug)]
pub struct Found {
    pub here: bool,
    /// Addresses of those that deliver it.
    pub delivering: Vec<String>,
}

pub async fn find(world: &World, node: usize, key: &str) -> Result<Found> {
    let answer = debug(world, node, "find", json!({"reference": key})).await?;
    let found: Value = serde_json::from_slice(&answer.expect(200)?.body)?;
    let peers = found["peers"].as_array().context("peers")?;
    let delivering = peers
        .iter()
        .filter(|peer| peer["asked"]["delivers"] == true)
        .filter_map(|peer| peer["addresses"].as_array())
        .flatten()
        .filter_map(|address| address.as_str().map(str::to_owned));
    Ok(Found {
        here: found["here"] == true,
        delivering: delivering.collect(),
    })
}

async fn debug(world: &World, node: usize, what: &str, body: Value) -> Result<Answer> {
    let node = &world.members[node].node;
    let path = format!("/debug/api/{what}");
    let body = Upload::Bytes(Bytes::from(body.to_string()));
    let to = node.peili().metrics();
    http::send(node.netns(), to, Method::POST, &path, &[JSON], body).await
}

pub async fn ask(world: &World, node: usize, question: Question) -> Result<()> {
    let member = &world.members[node];
    let admin = member.node.peili().metrics();
    let netns = member.node.netns();
    match question {
        Question::Doctor => {
            let doctor = member.node.doctor(&member.options, &[], None)?;
            let said = tokio::process::Command::from(doctor)
                .kill_on_drop(true)
                .output()
                .await?;
            let worst = if node == POD { 2 } else { 1 };
            ensure!(
                said.status.code().is_some_and(|code| code <= worst),
                "the doctor of {}: {}\n{}{}",
                member.node.name(),
                said.status,
                String::from_utf8_lossy(&said.stdout),
                String::from_utf8_lossy(&said.stderr)
            );
        }
        Question::Metrics => {
            for _ in 0..5 {
                http::get(netns, admin, "/metrics").await?.expect(200)?;
            }
        }
        Question::Pages => {
            for page in [
                "web/",
                "api/overview",
                "api/peers",
                "api/content",
                "api/flights",
                "api/pulls",
            ] {
                let path = format!("/debug/{page}");
                http::get(netns, admin, &path).await?.expect(200)?;
            }
            for _ in 0..3 {
                let head = "accept: text/event-stream\r\n";
                begun(netns, admin, "/debug/api/events", head, 16).await?;
            }
        }
        Question::Find(image) => {
            let newest = &world.images[image][world.newest(image)];
            find(world, node, &newest.reference()).await?;
        }
        Question::Trial(image) => {
            let newest = &world.images[image][world.newest(image)];
            let image = json!({"image": newest.reference()});
            let said = debug(world, node, "pull", image).await?.expect(200)?.text();
            let last = said.lines().last().unwrap_or_default();
            ensure!(last.contains("ended"), "a trial's last line: {last:?}");
        }
    }
    Ok(())
}

/// A request of which so many bytes have come back. It ends with the stream.
async fn begun(
    netns: &Netns,
    to: std::net::SocketAddr,
    path: &str,
    headers: &str,
    bytes: usize,
) -> Result<TcpStream> {
    let mut stream = netns.connect(to).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {to}\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = vec![0; bytes];
    let read = tokio::time::timeout(AN_ANSWER, stream.read_exact(&mut answer)).await;
    read.with_context(|| format!("{path}: no answer"))?
        .with_context(|| format!("{path}: {:?}", String::from_utf8_lossy(&answer)))?;
    Ok(stream)
}

pub async fn vanish(world: &World, node: usize, clients: usize) -> Result<()> {
    let target = &world.members[node].node;
    let (registry, admin) = (target.peili().registry(), target.peili().metrics());
    let netns = world.guest.netns();
    world.guest.restore_link()?;
    let layer = &world.base.layers[0].digest;
    let body = format!("/v2/soak/base/blobs/{layer}");
    let peer = format!("{}: {}\r\n", PEER.0, PEER.1);
    let mut streams = Vec::new();
    for client in 0..clients {
        let half = match client % 5 {
            // What is on its way stays there.
            0 => begun(netns, registry, &body, &peer, 1000).await?,
            1 => netns.connect(registry).await?,
            2 => half_a_head(netns.connect(registry).await?).await?,
            3 => half_a_head(netns.connect(admin).await?).await?,
            _ => {
                let router = (target.ip(), 5001).into();
                let mut router = netns.connect(router).await?;
                router.write_all(b"\x13/multistream/1.0.0\n\x07/no").await?;
                router
            }
        };
        streams.push(half);
    }
    world.guest.remove_link()?;
    for stream in streams {
        // Without a FIN that would be sent again and again, and arrive when the machine is back.
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    }
    Ok(())
}

async fn half_a_head(mut stream: TcpStream) -> Result<TcpStream> {
    stream.write_all(b"GET /v2/ HTTP/1.1\r\nho").await?;
    Ok(stream)
}

pub async fn leave(world: &World, node: usize, image: usize, clients: usize) -> Result<()> {
    let member = &world.members[node].node;
    let registry = member.peili().registry();
    let host = world.lab.registry.host().replace(':', "%3A");
    let base = &world.base.layers[0].digest;
    let held = format!("/v2/soak/base/blobs/{base}?ns={host}");
    let newest = &world.images[image][world.newest(image)];
    let layer = newest.layers.last().context("a layer")?;
    let others = format!("/v2/{}/blobs/{}?ns={host}", newest.name(), layer.digest);
    for client in 0..clients {
        // Some read on for a while, some go with the first byte.
        let bytes = if client % 2 == 0 { 1 } else { 100_000 };
        if client % 3 == 0 {
            let peer = format!("{}: {}\r\n", PEER.0, PEER.1);
            begun(member.netns(), registry, &held, &peer, bytes).await?;
        } else {
            // A 404 is short.
            let mut stream = begun(member.netns(), registry, &others, "", 1).await?;
            let mut some = vec![0; bytes];
            let Ok(_) = tokio::time::timeout(AN_ANSWER, stream.read(&mut some)).await else {
                bail!("{others}: silence in mid-answer");
            };
        }
    }
    Ok(())
}
