//! Waits until every node has been cleaned up, as the uninstalling hook needs it: the nodes' own `cleanup --addr` answers
//! `/readyz` when it is done.
//!
//! The name is resolved anew in each period, and all its addresses of both families must answer several times in a row.
//! No address is not the same as done: the pods may not be there yet.

mod progress;

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::{StreamExt as _, stream};
use hickory_resolver::net::NetError;
use hyper::StatusCode;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::config::CleanupWait;
use crate::http_get;
use crate::routing::bootstrap::dns::Resolver;
use progress::Progress;

/// Connection and answer. Whoever is done answers in milliseconds, and is asked again in the next period.
const PROBE: Duration = Duration::from_secs(2);

/// Far below the 1,024 descriptors that some runtimes leave a process.
const AT_ONCE: usize = 256;

/// `cleaned up`, and what somebody else may say instead.
const MAX_ANSWER: usize = 4 << 10;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The deadline has passed. Says who is missing, and why.
    #[error("not all nodes are cleaned up after {after:?}: {missing}")]
    Missing { after: Duration, missing: String },
    #[error("ended by a signal before all nodes are cleaned up: {missing}")]
    Stopped { missing: String },
    #[error("cannot read the system's DNS configuration (/etc/resolv.conf): {0}")]
    Configuration(#[from] NetError),
    #[error("cannot write to stdout: {0}")]
    Output(#[from] io::Error),
}

impl Error {
    pub fn exit_code(&self) -> u8 {
        match self {
            // EX_UNAVAILABLE, EX_OSFILE, EX_IOERR of sysexits.h
            Error::Missing { .. } => 69,
            Error::Configuration(_) => 72,
            Error::Output(_) => 74,
            // As a shell has it: 128 and SIGTERM.
            Error::Stopped { .. } => 143,
        }
    }
}

/// Returns when all are done, at the deadline, or as soon as `stop` does. Writes a line for each change.
pub async fn run(
    config: &CleanupWait,
    stop: impl Future<Output = ()>,
    out: &mut impl Write,
) -> Result<(), Error> {
    let resolver = Resolver::system()?;
    run_with(&resolver, config, stop, out).await
}

async fn run_with(
    resolver: &Resolver,
    config: &CleanupWait,
    stop: impl Future<Output = ()>,
    out: &mut impl Write,
) -> Result<(), Error> {
    let deadline = Instant::now() + config.timeout;
    let mut progress = Progress::new(&config.host, config.port, config.threshold);
    let waited = tokio::select! {
        biased;
        () = stop => None,
        waited = timeout_at(deadline, wait(resolver, config, &mut progress, out)) => Some(waited),
    };
    let missing = progress.missing();
    match waited {
        None => Err(Error::Stopped { missing }),
        Some(Ok(done)) => Ok(done?),
        Some(Err(_)) => Err(Error::Missing {
            after: config.timeout,
            missing,
        }),
    }
}

async fn wait(
    resolver: &Resolver,
    config: &CleanupWait,
    progress: &mut Progress,
    out: &mut impl Write,
) -> io::Result<()> {
    loop {
        let next = Instant::now() + config.period;
        let found = resolver.addresses(&config.host).await;
        let found = found.map_err(|e| e.to_string());
        say(progress.resolved(found), out)?;
        let ips: Vec<IpAddr> = progress.addresses().collect();
        let probes = ips
            .into_iter()
            .map(async |ip| (ip, probe(ip, config).await));
        let mut probes = stream::iter(probes).buffer_unordered(AT_ONCE);
        while let Some((ip, answer)) = probes.next().await {
            say(progress.probed(ip, answer), out)?;
        }
        if progress.is_done() {
            return say([progress.summary()], out);
        }
        sleep_until(next).await;
    }
}

fn say(lines: impl IntoIterator<Item = String>, out: &mut impl Write) -> io::Result<()> {
    for line in lines {
        writeln!(out, "{line}")?;
    }
    // A pipe, as a pod's log is one, is not flushed by its lines.
    out.flush()
}

async fn probe(ip: IpAddr, config: &CleanupWait) -> Result<(), String> {
    let at = SocketAddr::new(ip, config.port);
    let asked = async {
        let stream = TcpStream::connect(at).await.map_err(|e| e.to_string())?;
        let host = at.to_string();
        http_get::get(stream, &host, "/readyz", MAX_ANSWER)
            .await
            .map_err(|e| e.to_string())
    };
    match timeout(PROBE, asked).await {
        Err(_) => Err(format!("no answer within {PROBE:?}")),
        Ok(Err(e)) => Err(e),
        Ok(Ok(answer)) if answer.status == StatusCode::OK => Ok(()),
        Ok(Ok(answer)) => Err(format!("answered {}", answer.status)),
    }
}

#[cfg(test)]
mod tests;
