//! `peili peers` and `peili find`: what the daemon on this node knows, for a terminal.

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::de::DeserializeOwned;

use crate::admin::api::{FindAsked, Found, Holder, Peers, Said};
use crate::config::{self, Format};
use crate::http_get::{self, Answer};

/// The daemon answers within milliseconds, a lookup ends after a quarter of a second, and holders are asked for two.
const PATIENCE: Duration = Duration::from_secs(10);
/// Four thousand peers have 1 MiB.
const LIMIT: usize = 16 << 20;

/// Whether anybody is known.
pub fn peers(config: &config::Peers, out: &mut impl Write) -> Result<bool> {
    let body = ask(&config.metrics_addr.from_here(), "/debug/api/peers", None)?;
    if config.format == Format::Json {
        writeln!(out, "{body}")?;
        return Ok(true);
    }
    let peers: Peers = read(&body)?;
    let mut table = vec![cells(&[
        "ADDRESS",
        "ZONE",
        "STATE",
        "ROUND TRIP",
        "FIRST BYTE",
        "FROM IT",
        "TO IT",
        "FAILURES",
        "PEER",
    ])];
    for peer in &peers.peers {
        let millis =
            |time: Option<f64>| time.map_or("-".to_string(), |time| format!("{time:.1} ms"));
        table.push(vec![
            address(&peer.addresses),
            peer.zone
                .clone()
                .map_or("-".to_string(), |zone| printable(&zone)),
            peer.state.clone(),
            millis(peer.round_trip_ms),
            millis(peer.first_byte_ms),
            bytes(peer.bytes_from),
            bytes(peer.bytes_to),
            peer.failures.to_string(),
            peer.peer.clone(),
        ]);
    }
    if peers.peers.is_empty() {
        writeln!(
            out,
            "No other node is known. `peili doctor` says what to look at."
        )?;
        return Ok(false);
    }
    print(&table, out)?;
    Ok(true)
}

/// Whether anybody has it to give.
pub fn find(config: &config::Find, out: &mut impl Write) -> Result<bool> {
    let asked = FindAsked {
        reference: config.reference.clone(),
    };
    let asked = serde_json::to_string(&asked)?;
    let body = ask(
        &config.metrics_addr.from_here(),
        "/debug/api/find",
        Some(asked),
    )?;
    let found: Found = read(&body)?;
    let gives = |holder: &Holder| holder.asked.as_ref().is_none_or(|said| said.delivers);
    let somebody = found.here || found.peers.iter().any(gives);
    if config.format == Format::Json {
        writeln!(out, "{body}")?;
        return Ok(somebody);
    }
    writeln!(out, "{}", printable(&found.key))?;
    if found.here {
        writeln!(out, "  this node holds it")?;
    }
    if found.peers.is_empty() {
        writeln!(
            out,
            "  no other node holds it (looked for {:.0} ms)",
            found.took_ms
        )?;
    }
    let rows = found.peers.iter().map(|holder| {
        vec![
            format!("  {}", address(&holder.addresses)),
            holder
                .zone
                .clone()
                .map_or("-".to_string(), |zone| printable(&zone)),
            format!("after {:.1} ms", holder.after_ms),
            delivers(holder.asked.as_ref()),
            holder.peer.clone(),
        ]
    });
    print(&rows.collect::<Vec<_>>(), out)?;
    Ok(somebody)
}

/// What a holder said when it was asked.
fn delivers(said: Option<&Said>) -> String {
    match said {
        None => "not asked".to_string(),
        Some(Said {
            delivers: true,
            took_ms,
            ..
        }) => format!("delivers ({took_ms:.1} ms)"),
        Some(Said { took_ms, why, .. }) => {
            let why = why.as_deref().unwrap_or("it does not say why");
            format!("does not deliver: {} ({took_ms:.1} ms)", printable(why))
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn ask(at: &[SocketAddr], path: &str, post: Option<String>) -> Result<String> {
    let said: Vec<String> = at.iter().map(SocketAddr::to_string).collect();
    let said = said.join(" or ");
    let answered = tokio::time::timeout(PATIENCE, async {
        let (stream, at) = http_get::connect(at).await.with_context(|| {
            format!("Peili is not running at {said}: name its --metrics-addr, or run this in its pod (kubectl exec … -- /peili)")
        })?;
        let host = at.to_string();
        let answer = match post {
            None => http_get::get(stream, &host, path, LIMIT).await,
            Some(body) => http_get::post_json(stream, &host, path, body, LIMIT).await,
        };
        answer.with_context(|| format!("what listens at {said} does not answer as Peili does"))
    });
    let answered = answered.await;
    let answer = answered
        .with_context(|| format!("Peili at {said} has not answered within {PATIENCE:?}"))??;
    told(&answer, &said)
}

fn told(answer: &Answer, at: &str) -> Result<String> {
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    match answer.status.as_u16() {
        200 => Ok(body),
        404 => bail!(
            "the debug page is off at {at}: start `peili registry` without --debug-web-enabled=false \
             (in the chart: peili.debugWebEnabled)"
        ),
        status => {
            let json: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
            let why = json["error"].as_str().unwrap_or(body.trim());
            bail!("{at} says {status}: {}", printable(why))
        }
    }
}

fn read<T: DeserializeOwned>(body: &str) -> Result<T> {
    serde_json::from_str(body)
        .context("the daemon is of another release, which answers in other words")
}

fn address(all: &[SocketAddr]) -> String {
    all.first().map_or("-".to_string(), ToString::to_string)
}

/// What others have named, without what would move a terminal's cursor.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

pub(super) fn bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

fn cells(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

/// In columns.
fn print(table: &[Vec<String>], out: &mut impl Write) -> Result<()> {
    let width = |column: usize| {
        let cells = table.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..table.iter().map(Vec::len).max().unwrap_or(0))
        .map(width)
        .collect();
    for row in table {
        let line: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        writeln!(out, "{}", line.join("  ").trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_with_its_cure() {
        let answer = |status: u16, body: &'static str| Answer {
            status: hyper::StatusCode::from_u16(status).unwrap(),
            body: body.into(),
            location: None,
        };
        for (answer, said) in [
            (answer(404, ""), "--debug-web-enabled=false"),
            (
                answer(400, r#"{"error":"names no registry"}"#),
                "names no registry",
            ),
            (
                answer(403, "refused: the Host header\n"),
                "refused: the Host header",
            ),
        ] {
            let error = told(&answer, "127.0.0.1:9090").unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        assert_eq!(printable("a\x1b[2Jb"), "a\u{fffd}[2Jb");
    }

    #[test]
    fn nobody_there_is_said_with_the_address() {
        let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = unused.local_addr().unwrap();
        drop(unused);
        let config = config::Peers {
            metrics_addr: at.to_string().parse().unwrap(),
            format: Format::Text,
        };

        let error = peers(&config, &mut Vec::new()).unwrap_err();

        let said = format!("not running at {at}");
        assert!(format!("{error:#}").contains(&said), "{error:#}");
    }
}
