//! One request, while it is under way and when it has ended.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Serialize, Serializer};
use tokio::time::Instant;

use super::journey::{Journey, Leg, NotDelivered};
use super::lock;
use super::pace::Pace;

/// In characters: an image name has 255 at the most, and a digest 135.
const MAX_TEXT: usize = 300;
const UNKNOWN: u64 = u64::MAX;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Asker {
    /// This node's containerd, or whoever asks as it does.
    Containerd,
    Peer,
    /// Somebody who tries whether a pull would work, and stores nothing.
    Trial,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Manifest,
    Blob,
    /// No path of the distribution spec.
    Other,
}

/// What is asked for, in the words of whoever asks: none of it is to be trusted.
#[derive(Clone, Debug, Serialize)]
pub struct Asked {
    pub by: Asker,
    pub remote: Option<IpAddr>,
    pub method: Cow<'static, str>,
    pub kind: Kind,
    /// `registry/repository`; without `ns` the repository alone.
    pub image: Option<String>,
    /// A tag or a digest; of another path, the path.
    pub reference: String,
}

impl Asked {
    /// Reads a path, without its query. `ns` is the registry on whose behalf it is asked.
    pub fn of(method: &str, path: &str, ns: Option<&str>) -> Self {
        let below = path.split_once("/v2/").map(|(_, below)| below);
        let mut parts = below.into_iter().flat_map(|below| below.rsplitn(3, '/'));
        let (reference, kind, name) = (parts.next(), parts.next(), parts.next());
        let kind = match kind {
            Some("manifests") => Kind::Manifest,
            Some("blobs") => Kind::Blob,
            _ => Kind::Other,
        };
        let name = name.filter(|_| kind != Kind::Other);
        Self {
            by: Asker::Containerd,
            remote: None,
            method: match method {
                "GET" => "GET".into(),
                "HEAD" => "HEAD".into(),
                other => shortened(other).into(),
            },
            kind,
            image: name.map(|name| match ns {
                Some(ns) => shortened(&[ns, "/", name].concat()),
                None => shortened(name),
            }),
            reference: shortened(match kind {
                Kind::Other => path,
                _ => reference.unwrap_or(path),
            }),
        }
    }
}

/// A request under way.
#[derive(Debug)]
pub struct Transfer {
    pub id: u64,
    /// When it began, in milliseconds since 1970.
    pub at: u64,
    pub asked: Arc<Asked>,
    pub journey: Journey,
    began: Instant,
    bytes: AtomicU64,
    length: AtomicU64,
    pace: Mutex<Pace>,
}

impl Transfer {
    pub(super) fn new(id: u64, at: u64, asked: Asked) -> Self {
        Self {
            id,
            at,
            asked: Arc::new(asked),
            journey: Journey::default(),
            began: Instant::now(),
            bytes: AtomicU64::new(0),
            length: AtomicU64::new(UNKNOWN),
            pace: Mutex::default(),
        }
    }

    /// More of its body has been taken, so long after it began. This is called for each chunk.
    pub fn brought(&self, bytes: u64) -> Duration {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let at = self.began.elapsed();
        lock(&self.pace).add(bytes, at);
        at
    }

    /// Bytes per second, of late.
    pub fn rate(&self) -> u64 {
        lock(&self.pace).rate(self.began.elapsed())
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The response's head has promised so many bytes.
    pub fn promised(&self, length: u64) {
        self.length.store(length, Ordering::Relaxed);
    }

    /// None while it is not known.
    pub fn length(&self) -> Option<u64> {
        let length = self.length.load(Ordering::Relaxed);
        (length != UNKNOWN).then_some(length)
    }

    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    pub(super) fn told(&self, ended: Ended) -> Request {
        Request {
            id: self.id,
            at: self.at,
            asked: self.asked.clone(),
            status: ended.status,
            source: ended.source,
            bytes: self.bytes(),
            length: self.length(),
            first_byte: ended.first_byte,
            took: self.elapsed(),
            resumes: self.journey.times_resumed(),
            hedges: self.journey.hedges(),
            from: self.journey.from(),
            not_delivered: self.journey.not_delivered(),
            error: ended.error,
        }
    }
}

/// How a request ended.
#[derive(Clone, Debug, Default)]
pub struct Ended {
    pub status: u16,
    pub source: &'static str,
    /// From the request to the first chunk of its body.
    pub first_byte: Option<Duration>,
    pub error: Option<String>,
}

/// A request that has ended.
#[derive(Clone, Debug, Serialize)]
pub struct Request {
    pub id: u64,
    /// When it began, in milliseconds since 1970.
    pub at: u64,
    #[serde(flatten)]
    pub asked: Arc<Asked>,
    pub status: u16,
    /// local, peer, miss, failed or busy, as in the metrics.
    pub source: &'static str,
    /// Bytes of its body that were taken.
    pub bytes: u64,
    /// Bytes that were promised.
    pub length: Option<u64>,
    #[serde(rename = "first_byte_ms", serialize_with = "some_millis")]
    pub first_byte: Option<Duration>,
    #[serde(rename = "took_ms", serialize_with = "millis")]
    pub took: Duration,
    pub resumes: u32,
    pub hedges: u32,
    pub from: Vec<Leg>,
    pub not_delivered: Vec<NotDelivered>,
    pub error: Option<String>,
}

/// Milliseconds with three decimals.
pub fn millis<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((time.as_secs_f64() * 1e6).round() / 1e3)
}

pub fn some_millis<S: Serializer>(
    time: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => millis(time, serializer),
        None => serializer.serialize_none(),
    }
}

fn shortened(text: &str) -> String {
    match text.len() {
        // Character by character takes many times as long, and this is done for each request.
        0..=MAX_TEXT => text.to_owned(),
        _ => text.chars().take(MAX_TEXT).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_read_as_the_distribution_spec_has_it() {
        for (path, ns, kind, image, reference) in [
            (
                "/v2/a/b/manifests/v1",
                Some("r.test:5"),
                Kind::Manifest,
                Some("r.test:5/a/b"),
                "v1",
            ),
            (
                "/again/2/v2/a/blobs/sha256:0",
                Some("r"),
                Kind::Blob,
                Some("r/a"),
                "sha256:0",
            ),
            (
                "/v2/a/blobs/sha256:0",
                None,
                Kind::Blob,
                Some("a"),
                "sha256:0",
            ),
            (
                "/v2/a/tags/list",
                None,
                Kind::Other,
                None,
                "/v2/a/tags/list",
            ),
            ("/x", None, Kind::Other, None, "/x"),
            ("/v2/blobs/x", None, Kind::Blob, None, "x"),
        ] {
            let asked = Asked::of("GET", path, ns);
            assert_eq!(asked.kind, kind, "{path}");
            assert_eq!(asked.image.as_deref(), image, "{path}");
            assert_eq!(asked.reference, reference, "{path}");
        }
        let long = format!("/v2/{}/blobs/x", "a".repeat(5000));
        assert_eq!(Asked::of("GET", &long, None).image.unwrap().len(), MAX_TEXT);
    }
}
