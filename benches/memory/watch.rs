//! What was charged at the most while something went on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::cgroup::{Cgroup, Usage};

/// Bodies take seconds, buffers fill in milliseconds.
const PAUSE: Duration = Duration::from_millis(10);

/// Looks again and again until it is ended.
pub struct Watch {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Peak>>>,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Peak {
    /// When most could not be given back.
    pub at: Usage,
    /// The most of each, at whatever time.
    pub anon: u64,
    pub sockets: u64,
    pub cache: u64,
}

/// One line of the table.
pub struct Row {
    pub phase: &'static str,
    pub peak: Peak,
    /// Of the program, user and system.
    pub cpu: f64,
    pub took: f64,
}

impl Watch {
    pub fn begin(cgroup: &Arc<Cgroup>) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let (cgroup, over) = (cgroup.clone(), is_over.clone());
        let thread = std::thread::spawn(move || {
            let mut peak = Peak::default();
            loop {
                let last = over.load(Ordering::Relaxed);
                peak.see(cgroup.usage()?);
                if last {
                    return Ok(peak);
                }
                std::thread::sleep(PAUSE);
            }
        });
        Self {
            is_over,
            thread: Some(thread),
        }
    }

    pub fn end(mut self) -> Result<Peak> {
        self.is_over.store(true, Ordering::Relaxed);
        let peak = self.thread.take().map(JoinHandle::join);
        let peak = peak.and_then(Result::ok);
        peak.ok_or_else(|| anyhow!("the watch panicked"))?
    }
}

/// Nobody looks into a cgroup that is to go.
impl Drop for Watch {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Peak {
    fn see(&mut self, now: Usage) {
        if now.firm() > self.at.firm() {
            self.at = now;
        }
        self.anon = self.anon.max(now.anon);
        self.sockets = self.sockets.max(now.sockets);
        self.cache = self.cache.max(now.cache);
    }
}

/// What goes on in `work`.
pub async fn watch<T>(
    phase: &'static str,
    cgroup: &Arc<Cgroup>,
    pid: u32,
    work: impl Future<Output = Result<T>>,
) -> Result<(Row, T)> {
    eprintln!("memory: {phase}");
    let (begun, before) = (Instant::now(), cpu_seconds(pid));
    let watch = Watch::begin(cgroup);
    let done = work.await;
    let peak = watch.end()?;
    let row = Row {
        phase,
        peak,
        cpu: cpu_seconds(pid) - before,
        took: begun.elapsed().as_secs_f64(),
    };
    eprintln!("memory: {phase}: {row}");
    Ok((row, done?))
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let Peak { at, cache, .. } = self.peak;
        write!(
            f,
            "{:5.1} | {:5.1} | {:5.1} | {:5.1} | {:6.1} | {:6.2} | {:5.1}",
            mib(at.firm()),
            mib(at.anon),
            mib(at.sockets),
            mib(at.kernel),
            mib(cache),
            self.cpu,
            self.took
        )
    }
}

/// CPU seconds, user and system, of a process; 0 when it is gone.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The program's name may hold anything; what follows its last bracket is regular.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = |nth| rest.split_whitespace().nth(nth)?.parse::<u64>().ok();
    let all = ticks(11).unwrap_or(0) + ticks(12).unwrap_or(0);
    all as f64 / rustix::param::clock_ticks_per_second() as f64
}
