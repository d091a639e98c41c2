//! The last pulls, as waterfalls.

use askama::Template;

use super::Frame;
use crate::admin::Debug;
use crate::admin::view::pulls;
use crate::admin::view::words::{bytes, millis, percent, short};
use crate::recent::{Asker, Kind, Request, unix_millis};

#[derive(Template)]
#[template(path = "pulls.html", config = "src/admin/web/askama.toml")]
pub(in crate::admin::web) struct Pulls {
    frame: Frame,
    pulls: Vec<PullRow>,
    given: Vec<RequestRow>,
}

struct PullRow {
    id: u64,
    image: String,
    is_trial: bool,
    summary: String,
    ago: String,
    took: String,
    rows: Vec<RequestRow>,
}

struct RequestRow {
    what: String,
    reference: String,
    remote: String,
    source: &'static str,
    /// In hundredths of the pull: where its first byte was waited for, and where bytes came.
    x: String,
    wait: String,
    begin: String,
    width: String,
    first_byte: String,
    took: String,
    bytes: String,
    outcome: String,
}

/// Pulls on the page; the JSON has all.
const MAX_PULLS: usize = 30;
const MAX_GIVEN: usize = 50;

impl Pulls {
    pub(in crate::admin::web) fn of(debug: &Debug, view: pulls::Pulls) -> Self {
        let now = unix_millis();
        Self {
            frame: Frame::of(debug, "pulls"),
            pulls: view
                .pulls
                .into_iter()
                .take(MAX_PULLS)
                .map(|pull| PullRow::of(pull, now))
                .collect(),
            given: view
                .given
                .iter()
                .take(MAX_GIVEN)
                .map(|told| RequestRow::of(told, told.request.at, 0.0))
                .collect(),
        }
    }
}

impl PullRow {
    fn of(pull: pulls::Pull, now: u64) -> Self {
        let first = &pull.requests[0].request;
        let count = pull.requests.len();
        let mut summary = format!(
            "{}, {} in {}, {} % of it from other nodes",
            if count == 1 {
                "1 request".to_string()
            } else {
                format!("{count} requests")
            },
            bytes(pull.bytes),
            millis(pull.took_ms),
            percent(pull.from_peers, pull.bytes),
        );
        if pull.missed > 0 {
            summary += &format!(", {} left to the registry", pull.missed);
        }
        if pull.failed > 0 {
            summary += &format!(", {} failed", pull.failed);
        }
        Self {
            id: first.id,
            image: match pull.image.is_empty() {
                true => "no image".to_string(),
                false => pull.image,
            },
            is_trial: first.asked.by == Asker::Trial,
            summary: summary + ".",
            ago: ago(now.saturating_sub(pull.at)),
            took: millis(pull.took_ms),
            rows: pull
                .requests
                .iter()
                .map(|told| RequestRow::of(told, pull.at, pull.took_ms))
                .collect(),
        }
    }
}

impl RequestRow {
    fn of(told: &pulls::Told, from: u64, span: f64) -> Self {
        let request = &*told.request;
        let took = request.took.as_secs_f64() * 1e3;
        let waited = request
            .first_byte
            .map_or(took, |time| time.as_secs_f64() * 1e3);
        let scale = 100.0 / span.max(1.0);
        let x = request.at.saturating_sub(from) as f64 * scale;
        let text = |value: f64| format!("{:.2}", value.clamp(0.0, 100.0));
        Self {
            what: what(request),
            reference: request.asked.reference.clone(),
            remote: request
                .asked
                .remote
                .map(|ip| ip.to_canonical().to_string())
                .unwrap_or_default(),
            source: request.source,
            x: text(x),
            wait: text((waited * scale).max(0.4)),
            begin: text(x + waited * scale),
            width: text((took - waited) * scale),
            first_byte: request
                .first_byte
                .map_or("–".to_string(), |_| millis(waited)),
            took: millis(took),
            bytes: bytes(request.bytes),
            outcome: told.outcome.clone(),
        }
    }
}

fn what(request: &Request) -> String {
    let kind = match request.asked.kind {
        Kind::Manifest => "manifest ",
        Kind::Blob => "blob ",
        Kind::Other => "",
    };
    let head = if request.asked.method == "GET" {
        ""
    } else {
        &*request.asked.method
    };
    format!("{head} {kind}{}", short(&request.asked.reference))
        .trim()
        .to_string()
}

fn ago(millis: u64) -> String {
    match millis / 1000 {
        0..10 => "just now".to_string(),
        seconds @ 10..90 => format!("{seconds} s ago"),
        seconds @ 90..5400 => format!("{} min ago", seconds / 60),
        seconds => format!("{} h ago", seconds / 3600),
    }
}
