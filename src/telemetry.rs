//! Logs: one JSON object per line on stderr.

use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

/// What our dependencies say of every packet and every peer that is away. A level speaks of us; who wants to hear them
/// names them: `info,libp2p_kad=debug`.
const NOISY: [&str; 9] = [
    "h2",
    "hickory",
    "hyper",
    "libp2p",
    "multistream_select",
    "netlink",
    "tonic",
    "tower",
    "yamux",
];

/// Kademlia warns of every table that is still empty; the router says so itself, once.
const LONELY: &str = "libp2p_kad=error";

/// What is logged: a level, or tracing's directives such as `info,peili::mirror=debug`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is neither a level nor a filter")]
pub struct FilterError;

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        for directive in text.split(',') {
            // A bare word would be taken for a module whose traces are wanted, and a misspelt level would say nothing.
            let directive = directive.trim();
            let level = directive.parse::<LevelFilter>().is_ok() && !directive.is_empty();
            if !level && !directive.contains(['=', '[']) {
                return Err(FilterError);
            }
        }
        EnvFilter::builder().parse(text).map_err(|_| FilterError)?;
        Ok(Self(text.to_string()))
    }
}

impl Filter {
    fn build(&self) -> EnvFilter {
        let level = self.0.split(',').find_map(|d| d.trim().parse().ok());
        // Whoever wants errors only wants no warnings from libraries.
        let cap = level
            .unwrap_or(LevelFilter::WARN)
            .min(LevelFilter::WARN)
            .to_string();
        let noisy = NOISY.map(|target| format!("{target}={cap}"));
        // Of two directives for one target the later counts.
        let directives = format!("{},{LONELY},{}", noisy.join(","), self.0);
        EnvFilter::builder().parse_lossy(directives)
    }
}

/// For what may happen with every request and is worth a line now and then.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<Option<Instant>>);

impl Seldom {
    /// Often enough to be seen by who looks, seldom enough to drown nothing.
    const EVERY: Duration = Duration::from_secs(60);

    pub const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Whether it is time for a line again.
    pub fn is_due(&self) -> bool {
        self.is_due_at(Instant::now())
    }

    fn is_due_at(&self, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.is_none_or(|last| now.saturating_duration_since(last) >= Self::EVERY);
        if is_due {
            *last = Some(now);
        }
        is_due
    }
}

/// Starts logging. In a process that logs already nothing changes.
pub fn init(filter: &Filter) {
    let _ = tracing::subscriber::set_global_default(subscriber(filter, std::io::stderr));
}

fn subscriber<W>(filter: &Filter, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(filter.build())
        .with_writer(writer)
        .finish()
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use tracing::{debug, error, info, warn};

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("unpoisoned").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The messages that pass `filter`.
    fn messages(filter: &str) -> Vec<String> {
        let captured = Captured::default();
        let writer = captured.clone();
        let filter = filter.parse().expect("a filter");

        tracing::subscriber::with_default(subscriber(&filter, move || writer.clone()), || {
            error!("error");
            warn!("warn");
            info!(peers = 3, "info");
            debug!("debug");
            warn!(target: "libp2p_swarm::behaviour", "libp2p warn");
            debug!(target: "libp2p_swarm::behaviour", "libp2p debug");
        });

        let text = String::from_utf8(captured.0.lock().expect("unpoisoned").clone());
        let lines = text.expect("UTF-8");
        let lines = lines.lines().map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
            line["message"].as_str().expect("a message").to_string()
        });
        lines.collect()
    }

    #[test]
    fn a_level_is_understood_in_both_cases_and_silences_the_libraries() {
        let info = ["error", "warn", "info", "libp2p warn"];
        assert_eq!(messages("info"), info);
        assert_eq!(messages("INFO"), info);
        assert_eq!(
            messages("DEBUG"),
            ["error", "warn", "info", "debug", "libp2p warn"]
        );
        assert_eq!(messages("WARN"), ["error", "warn", "libp2p warn"]);
        assert_eq!(messages("ERROR"), ["error"]);
        assert_eq!(messages("off"), [""; 0]);
    }

    #[test]
    fn a_filter_can_ask_for_a_library() {
        assert_eq!(
            messages("error,libp2p_swarm=debug"),
            ["error", "libp2p warn", "libp2p debug"]
        );
        assert_eq!(
            messages("error,libp2p=debug"),
            ["error", "libp2p warn", "libp2p debug"]
        );
    }

    #[test]
    fn what_happens_all_the_time_is_said_once_a_minute() {
        let (seldom, begin) = (Seldom::new(), Instant::now());
        let said: Vec<u64> = (0..150)
            .filter(|second| seldom.is_due_at(begin + Duration::from_secs(*second)))
            .collect();
        assert_eq!(said, [0, 60, 120]);
    }

    #[test]
    fn what_is_neither_level_nor_filter_is_refused() {
        for text in [
            "",
            "verbose",
            "infos",
            "info,verbose",
            "peili=loud",
            "info,",
        ] {
            assert_eq!(text.parse::<Filter>(), Err(FilterError), "{text:?}");
        }
    }
}
