//! Numbers as people read them, and how a request went, in a sentence.

use crate::recent::{Asker, Kind, Request};

/// `18.2 GiB`: three digits at the most, so that columns stay narrow.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let unit = UNITS[unit];
    match value {
        _ if unit == "B" => format!("{bytes} B"),
        small if small < 9.95 => format!("{small:.1} {unit}"),
        large => format!("{large:.0} {unit}"),
    }
}

/// `0.4 ms`, `250 ms`, `3.1 s`.
pub fn millis(millis: f64) -> String {
    match millis {
        small if small < 10.0 => format!("{small:.1} ms"),
        some if some < 1000.0 => format!("{some:.0} ms"),
        long if long < 100_000.0 => format!("{:.1} s", long / 1000.0),
        longer => format!("{:.0} s", longer / 1000.0),
    }
}

/// What tells two digests apart for a person: twelve digits, as everybody shortens them.
pub fn short(reference: &str) -> String {
    match reference.split_once(':') {
        Some((algorithm, hex)) if hex.len() >= 32 && hex.bytes().all(|b| b.is_ascii_hexdigit()) => {
            format!("{algorithm}:{}…", &hex[..12])
        }
        _ => reference.to_string(),
    }
}

/// The end of a peer's name: all of them begin alike.
pub fn short_peer(id: &str) -> String {
    let skip = id.chars().count().saturating_sub(8);
    match skip {
        0 => id.to_string(),
        _ => format!("…{}", id.chars().skip(skip).collect::<String>()),
    }
}

/// The share of `part` in `all`, in whole percent. All of nothing is nothing.
pub fn percent(part: u64, all: u64) -> u64 {
    match all {
        0 => 0,
        all => (part as f64 / all as f64 * 100.0).round() as u64,
    }
}

/// How a request went, for somebody who wants to know why.
pub fn outcome(request: &Request) -> String {
    let mut said = match request.source {
        "local" => "Held by this node.".to_string(),
        "peer" => {
            let from: Vec<String> = request
                .from
                .iter()
                .map(|leg| {
                    let at = leg.at.map(|at| at.ip().to_string());
                    let at = at.unwrap_or_else(|| short_peer(&leg.peer));
                    match leg.in_flight {
                        true => format!("{at}, which was still getting it itself"),
                        false => at,
                    }
                })
                .collect();
            match from.is_empty() {
                true => "From another node.".to_string(),
                false => format!("From {}.", from.join(", then ")),
            }
        }
        "busy" => "This node gives to as many as it may; the peer was sent to others.".to_string(),
        _ => missed(request),
    };
    let mut add = |more: String| {
        said.push(' ');
        said.push_str(&more);
    };
    match request.resumes {
        0 => {}
        1 => add("Went on with another node in the middle.".to_string()),
        times => add(format!("Went on with another node {times} times.")),
    }
    if request.hedges > 0 {
        add("A second node was asked beside a silent one.".to_string());
    }
    for not in &request.not_delivered {
        let at = not.at.map(|at| at.ip().to_string());
        let at = at.unwrap_or_else(|| short_peer(&not.peer));
        add(format!("{at} {}.", not.why.trim_end_matches('.')));
    }
    said
}

fn missed(request: &Request) -> String {
    let error = request.error.as_deref().unwrap_or_default();
    let then = match request.asked.by {
        Asker::Containerd => " containerd went to the registry.",
        Asker::Peer => " The peer asks the next node.",
        Asker::Trial => " containerd would go to the registry.",
    };
    let what = match request.asked.kind {
        Kind::Manifest => "this image",
        _ => "this layer",
    };
    match (request.source, error) {
        ("failed", "the client left") => "Whoever asked left before the end.".to_string(),
        ("failed", error) => format!("Nodes that hold {what} did not deliver: {error}.{then}"),
        (_, error) if error.starts_with("no peer holds") => {
            format!("No other node holds {what}.{then}")
        }
        (_, error) if error.contains("is for this node to get") => {
            "Nobody holds it yet: this node gets it from the registry, and others follow."
                .to_string()
        }
        (_, error) if error.contains("somebody else to get") => {
            "Another node is about to get it from the registry: containerd asks again.".to_string()
        }
        (_, "") => format!("Not answered ({}).{then}", request.status),
        (_, error) => format!("Not answered: {error}.{then}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recent::{Asked, Ended, Recent};

    #[test]
    fn numbers_are_short() {
        for (number, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 KiB"),
            (1 << 20, "1.0 MiB"),
            (19_542_101_197, "18 GiB"),
            (9_542_101_197, "8.9 GiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(bytes(number), text, "{number}");
        }
        for (time, text) in [
            (0.04, "0.0 ms"),
            (9.96, "10.0 ms"),
            (250.0, "250 ms"),
            (3100.0, "3.1 s"),
        ] {
            assert_eq!(millis(time), text);
        }
        assert_eq!([percent(0, 0), percent(1, 3), percent(3, 3)], [0, 33, 100]);
        let digest = format!("sha256:{}", "ab".repeat(32));
        assert_eq!(short(&digest), "sha256:abababababab…");
        assert_eq!(short("<b>:x"), "<b>:x");
        assert_eq!(short_peer("12D3KooWabcdefgh"), "…abcdefgh");
        assert_eq!(short_peer("äöü"), "äöü");
    }

    #[test]
    fn a_miss_and_a_failure_say_why_and_what_followed() {
        let recent = Recent::default();
        let told = |source: &'static str, error: &str| {
            let transfer = recent.begin(Asked::of("GET", "/v2/a/blobs/sha256:0", Some("r")));
            transfer.journey.failed(
                "peer",
                Some(([10, 0, 0, 2], 5000).into()),
                "refused the connection",
            );
            let error = (!error.is_empty()).then(|| error.to_string());
            let ended = Ended {
                status: 404,
                source,
                error,
                ..Ended::default()
            };
            recent.end(&transfer, ended);
            outcome(&recent.ended(false)[0])
        };

        assert_eq!(
            told("miss", "no peer holds sha256:0"),
            "No other node holds this layer. containerd went to the registry. 10.0.0.2 refused the connection."
        );
        let failed = told("failed", "3 peers failed to deliver it");
        assert!(
            failed.starts_with("Nodes that hold this layer did not deliver: 3 peers"),
            "{failed}"
        );
    }
}
