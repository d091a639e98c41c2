//! Whether the daemon runs.

use crate::doctor::live::{Live, Silence};
use crate::finding::Finding;

pub fn daemon(live: Result<&Live, &Silence>) -> Finding {
    const CHECK: &str = "daemon";
    match live {
        Ok(live) if live.awaited.is_empty() => Finding::ok(CHECK, "the daemon runs and is ready"),
        Ok(live) => Finding::warning(
            CHECK,
            format!("the daemon runs and awaits {}", live.awaited.join("; ")),
            "Until then its requests are answered by a quick 404 and go to the registry.",
        ),
        Err(Silence::NotRunning(why)) => Finding::broken(
            CHECK,
            format!("the daemon is not running: {why}"),
            "Start `peili registry`. If it runs, give this command the same --metrics-addr [METRICS_ADDR].",
        ),
        Err(Silence::Off) => Finding::skipped(
            CHECK,
            "the daemon runs and its debug page is off (--debug-web-enabled=false), so it is not asked",
        ),
        Err(Silence::Failed(why)) => Finding::warning(
            CHECK,
            format!("the daemon does not say how it is: {why}"),
            "See that --metrics-addr [METRICS_ADDR] is that of a `peili registry` of this release.",
        ),
    }
}
