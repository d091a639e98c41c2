//! `peili pull`: bars on a terminal, lines elsewhere.

use std::collections::HashMap;
use std::io::{IsTerminal as _, Write};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::ask::{bytes, printable};
use crate::basic_auth;
use crate::config::{Format, Pull};
use crate::node_token::NodeToken;
use crate::oci::Digest;
use crate::try_pull::{self, Event, Registry, Source};

/// Whether all of it came.
#[tokio::main(flavor = "current_thread")]
pub async fn run(config: &Pull, out: &mut impl Write) -> Result<bool> {
    let registry = Registry {
        at: config.registry_addr.from_here(),
        token: config
            .data_dir
            .as_ref()
            .map(|dir| Arc::new(NodeToken::new(dir, false))),
        basic_auth: basic_auth::Secret::load(&config.basic_auth_dir)?.map(Arc::new),
    };
    let mut events = try_pull::pull(registry, config.image.clone(), config.platform.clone());
    let is_terminal = std::io::stdout().is_terminal() && config.format == Format::Text;
    let mut bars = is_terminal.then(Bars::on_stdout);
    let mut ok = false;
    while let Some(event) = events.recv().await {
        if let Event::Ended { ok: all, .. } = event {
            ok = all;
        }
        match (config.format, &mut bars) {
            (Format::Json, _) => writeln!(out, "{}", serde_json::to_string(&event)?)?,
            (Format::Text, None) => {
                if let Some(line) = line(&event) {
                    writeln!(out, "{line}")?;
                }
            }
            (Format::Text, Some(bars)) => bars.show(&event),
        }
    }
    Ok(ok)
}

/// What is said of an event where nothing can be drawn; nothing of progress.
fn line(event: &Event) -> Option<String> {
    Some(match event {
        Event::Manifest {
            digest,
            bytes: size,
            took_ms,
            source,
            ..
        } => {
            format!(
                "manifest  {digest}  {}  {took_ms} ms  {}",
                bytes(*size),
                from(source)
            )
        }
        Event::Platform { platform, .. } => format!("platform  {}", printable(platform)),
        Event::Layers { layers } => {
            let all = layers.iter().map(|layer| layer.bytes).sum();
            format!("fetching  {} blobs, {}", layers.len(), bytes(all))
        }
        Event::Progress { .. } => return None,
        Event::Fetched {
            digest,
            bytes: size,
            took_ms,
            source,
        } => format!(
            "verified  {digest}  {}  {took_ms} ms  {}  {}",
            bytes(*size),
            speed(*size, *took_ms),
            from(source)
        ),
        Event::Failed {
            digest,
            error,
            cure,
        } => {
            let what = digest
                .as_ref()
                .map_or("the image".to_string(), Digest::to_string);
            format!("FAILED    {what}: {}\n          {cure}", printable(error))
        }
        Event::Ended {
            ok: true,
            bytes: size,
            took_ms,
            ..
        } => format!(
            "done      {} in {took_ms} ms ({}), every digest is right, nothing was stored",
            bytes(*size),
            speed(*size, *took_ms)
        ),
        Event::Ended { failed, .. } => format!("not all of it came: {failed} failed"),
    })
}

fn from(source: &Source) -> String {
    match source.at {
        Some(at) => format!("from {at}"),
        None if source.source == "local" => "from this node itself".to_string(),
        None => format!("from {}", printable(&source.source)),
    }
}

fn speed(size: u64, took_ms: u64) -> String {
    let per_second = size as f64 / took_ms.max(1) as f64 * 1000.0;
    format!("{}/s", bytes(per_second as u64))
}

struct Bars {
    all: MultiProgress,
    by_digest: HashMap<Digest, ProgressBar>,
}

impl Bars {
    /// By itself indicatif draws on stderr, and nothing at all where that is a file.
    fn on_stdout() -> Self {
        Self {
            all: MultiProgress::with_draw_target(ProgressDrawTarget::stdout()),
            by_digest: HashMap::new(),
        }
    }

    fn show(&mut self, event: &Event) {
        match event {
            Event::Layers { layers } => {
                let template = "{prefix}  {bar:30}  {bytes:>10} of {total_bytes:>10}  {msg}";
                let style = ProgressStyle::with_template(template);
                let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
                for layer in layers {
                    let bar = ProgressBar::new(layer.bytes).with_style(style.clone());
                    let bar = self.all.add(bar);
                    bar.set_prefix(layer.digest.as_str().chars().take(19).collect::<String>());
                    bar.enable_steady_tick(Duration::from_millis(200));
                    self.by_digest.insert(layer.digest.clone(), bar);
                }
            }
            Event::Progress { digest, bytes } => {
                if let Some(bar) = self.by_digest.get(digest) {
                    bar.set_position(*bytes);
                }
            }
            Event::Fetched {
                digest,
                bytes,
                took_ms,
                source,
            } => {
                if let Some(bar) = self.by_digest.get(digest) {
                    bar.set_position(*bytes);
                    bar.finish_with_message(format!(
                        "{}  {}",
                        speed(*bytes, *took_ms),
                        from(source)
                    ));
                }
            }
            Event::Failed {
                digest: Some(digest),
                error,
                cure,
            } if self.by_digest.contains_key(digest) => {
                self.by_digest[digest]
                    .abandon_with_message(format!("FAILED: {}", printable(error)));
                self.say(cure);
            }
            other => {
                if let Some(line) = line(other) {
                    self.say(&line);
                }
            }
        }
    }

    fn say(&self, line: &str) {
        // A terminal that cannot be written to shows nothing else, either.
        let _ = self.all.println(line);
    }
}
