//! How long Peili kept containerd waiting, by its own access log.
//!
//! A line is written when a body has ended, and says how long ago the request came. A 404 ends at once: there `seconds`
//! is the wait. Of a body it is known only where the line has `first_byte`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

/// One request of a node's containerd.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// The path's last part: a digest or a tag.
    pub what: String,
    /// Seconds since an arbitrary moment that is the same for all.
    pub began: f64,
    pub ended: f64,
    /// Seconds from the request to the first byte or to the refusal; None if the line does not tell.
    pub waited: Option<f64>,
    pub got_bytes: bool,
}

/// The requests of the node's own containerd, which has the address `ip`, in its Peili's log; by their end.
pub fn requests(log: &str, ip: IpAddr) -> Vec<Asked> {
    log.lines().filter_map(|line| request(line, ip)).collect()
}

fn request(line: &str, ip: IpAddr) -> Option<Asked> {
    let line: Value = serde_json::from_str(line).ok()?;
    let path = line["path"].as_str()?;
    // A listener for both families sees `[::ffff:10.77.0.11]:40000`.
    let client: SocketAddr = line["remote"].as_str()?.parse().ok()?;
    let is_ours = line["from_peer"] == false && client.ip().to_canonical() == ip;
    if line["message"] != "request" || !is_ours || !path.contains("/v2/") {
        return None;
    }
    let (ended, seconds) = (
        timestamp(line["timestamp"].as_str()?)?,
        line["seconds"].as_f64()?,
    );
    let got_bytes = line["bytes"].as_u64()? > 0;
    let first_byte = line["first_byte"].as_f64();
    Some(Asked {
        what: path.rsplit('/').next()?.to_owned(),
        began: ended - seconds,
        ended,
        waited: first_byte.or((!got_bytes).then_some(seconds)),
        got_bytes,
    })
}

/// `2026-11-21T08:14:23.123456Z` as seconds. Only differences count, so every month may have 31 days but the turn of a
/// month within a run is an hour that nobody measures in.
fn timestamp(text: &str) -> Option<f64> {
    let (date, time) = text.trim_end_matches('Z').split_once('T')?;
    let day: f64 = date.rsplit('-').next()?.parse().ok()?;
    let mut parts = time.splitn(3, ':');
    let mut next = || parts.next()?.parse::<f64>().ok();
    let (hours, minutes, seconds) = (next()?, next()?, next()?);
    Some(((day * 24.0 + hours) * 60.0 + minutes) * 60.0 + seconds)
}

/// Waits of many requests or layers, in seconds.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Waits {
    pub count: usize,
    pub p99: f64,
    pub max: f64,
    /// More than 2 s, what a pull may wait for Peili.
    pub late: usize,
    /// Those of which the log does not tell.
    pub unknown: usize,
}

impl Waits {
    pub fn of(waits: impl IntoIterator<Item = Option<f64>>) -> Self {
        let all: Vec<_> = waits.into_iter().collect();
        let mut known: Vec<f64> = all.iter().copied().flatten().collect();
        known.sort_by(f64::total_cmp);
        // Nearest rank: of fewer than a hundred the largest.
        let rank = (known.len() * 99).div_ceil(100).max(1) - 1;
        Self {
            count: known.len(),
            p99: known.get(rank).copied().unwrap_or(0.0),
            max: known.last().copied().unwrap_or(0.0),
            late: known.iter().filter(|wait| **wait > 2.0).count(),
            unknown: all.len() - known.len(),
        }
    }

    pub fn per_request(requests: &[Asked]) -> Self {
        Self::of(requests.iter().map(|request| request.waited))
    }
}

/// For each of `digests` that a node asked for: from its first request, at whichever of our entries in hosts.toml, to
/// the first byte from Peili, or to the last refusal, after which the registry has the word.
pub fn layer_waits(requests: &[Asked], digests: &[String]) -> Vec<Option<f64>> {
    let mut by_layer: BTreeMap<&str, Vec<&Asked>> = BTreeMap::new();
    for request in requests.iter().filter(|r| digests.contains(&r.what)) {
        by_layer.entry(&request.what).or_default().push(request);
    }
    by_layer.into_values().map(|of| layer_wait(&of)).collect()
}

fn layer_wait(requests: &[&Asked]) -> Option<f64> {
    let first = requests.iter().map(|r| r.began).min_by(f64::total_cmp)?;
    let served = requests.iter().filter(|r| r.got_bytes);
    match served.min_by(|a, b| a.began.total_cmp(&b.began)) {
        // Resumed from the registry's hands or not, the layer's first byte was there by then.
        Some(served) => served.waited.map(|waited| served.began + waited - first),
        None => {
            let last = requests.iter().map(|r| r.ended).max_by(f64::total_cmp)?;
            Some(last - first)
        }
    }
}
