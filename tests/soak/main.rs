//! Nodes pull, delete, import and restart at random for as long as one likes, and in the end all is as it was.
//!
//! What is done is a pure function of a seed (`plan`), on real containerds and Peilis (`world`, `act`). Now and then it is
//! quiet: everything that is told must be found and served, and memory, descriptors, tasks and records be what they were
//! (`check`), as the kernel tells it (`probe`) and as it was at the first of these plateaus (`judge`).
//!
//! Plain `cargo test` deals one deck of steps; `make soak` goes on for an hour:
//!
//! - `PEILI_TEST_SOAK`: for how long, `10m`, `1h`, `90s`.
//! - `PEILI_TEST_SOAK_SEED`: another plan.

mod act;
mod check;
mod clients;
mod judge;
#[allow(dead_code, reason = "each test uses its part of the lab")]
#[path = "../lab/mod.rs"]
mod lab;
mod plan;
mod probe;
mod world;

use std::collections::VecDeque;
use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use act::Tally;
use lab::process::tail;
use plan::{NODES, Plan, STEADY};
use tokio::sync::watch;
use world::World;

/// How often somebody who looks on hears something.
const LINE: Duration = Duration::from_secs(10);
/// Decks before the first plateau of a long soak: until rings and tables have been full once.
const WARM_UP: usize = 3;
/// Every so many plateaus it is waited until idle connections have ended, which takes half a minute.
const IDLE: usize = 4;
/// A step that takes longer is worth a look.
const LONG: Duration = Duration::from_secs(5);
/// Steps that are told of one that failed.
const BEFORE: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn after_whatever_was_done_all_is_as_it_was() {
    if let Err(why) = lab::Lab::available() {
        assert!(std::env::var_os("CI").is_none(), "no lab: {why}");
        say(&format!("skipped: {why}"));
        return;
    }
    let length = std::env::var("PEILI_TEST_SOAK").ok();
    let length =
        length.map(|text| duration(&text).unwrap_or_else(|why| panic!("PEILI_TEST_SOAK: {why:#}")));
    let seed = std::env::var("PEILI_TEST_SOAK_SEED").ok();
    let seed = seed.map_or(1, |text| {
        text.parse().unwrap_or_else(|why| {
            panic!("PEILI_TEST_SOAK_SEED={text:?} is no seed ({why}): write a number, 7")
        })
    });
    let began = Instant::now();
    let (line, seen) = watch::channel(Line::default());
    let looking_on = tokio::spawn(look_on(seen, began, length));
    let mut soak = Soak {
        world: World::new().await.unwrap(),
        seed,
        length,
        began,
        tally: Tally::default(),
        last: VecDeque::new(),
        plateaus: 0,
        line,
    };
    let ended = soak.run().await;
    looking_on.abort();
    soak.sum_up();
    if let Err(error) = ended {
        let account = soak.account_of(&error);
        // Its nodes would tell their logs, too.
        drop(soak);
        panic!("{account}");
    }
}

struct Soak {
    world: World,
    seed: u64,
    /// None: one deck.
    length: Option<Duration>,
    began: Instant,
    tally: Tally,
    last: VecDeque<String>,
    plateaus: usize,
    line: watch::Sender<Line>,
}

/// What somebody who looks on is told.
#[derive(Clone, Debug, Default)]
struct Line {
    doing: String,
    done: String,
    /// Of the nodes' Peilis.
    pids: Vec<Option<u32>>,
}

/// Says every ten seconds how far it is.
async fn look_on(line: watch::Receiver<Line>, began: Instant, length: Option<Duration>) {
    let mut ticks = tokio::time::interval(LINE);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let Line { doing, done, pids } = line.borrow().clone();
        let left = match length {
            None => "one deck".to_owned(),
            Some(length) => format!(
                "{} s left",
                length.saturating_sub(began.elapsed()).as_secs()
            ),
        };
        let memory = pids.into_iter().map(|pid| {
            let look = pid.and_then(|pid| probe::look(pid).ok());
            look.map_or("-".to_owned(), |look| (look.resident >> 20).to_string())
        });
        let memory: Vec<String> = memory.collect();
        say(&format!(
            "soak {:>4} s, {left}: {done}, RSS {} MiB; {doing}",
            began.elapsed().as_secs(),
            memory.join(" "),
        ));
    }
}

impl Soak {
    async fn run(&mut self) -> Result<()> {
        let mut plan = Plan::new(self.seed);
        let Some(length) = self.length else {
            self.plateau(false).await?;
            self.deal(&mut plan).await?;
            return self.plateau(false).await;
        };
        for _ in 0..WARM_UP {
            self.deal(&mut plan).await?;
        }
        self.plateau(true).await?;
        while self.began.elapsed() < length {
            self.deal(&mut plan).await?;
            self.plateau(self.plateaus.is_multiple_of(IDLE)).await?;
            for place in STEADY {
                self.leaks(place)?;
            }
        }
        self.plateau(true).await
    }

    async fn deal(&mut self, plan: &mut Plan) -> Result<()> {
        for step in plan.deck() {
            let number = self.tally.steps + 1;
            if self.last.len() == BEFORE {
                self.last.pop_front();
            }
            self.last.push_back(format!("{number} {step:?}"));
            self.tell(&format!("{step:?}"));
            let begun = Instant::now();
            act::perform(&mut self.world, &step, &mut self.tally).await?;
            if begun.elapsed() > LONG {
                say(&format!(
                    "{:.1?} for step {number}: {step:?}",
                    begun.elapsed()
                ));
            }
        }
        Ok(())
    }

    async fn plateau(&mut self, idle: bool) -> Result<()> {
        let steps = self.tally.steps;
        self.tell(if idle {
            "a plateau, when idle connections have ended"
        } else {
            "a plateau"
        });
        let [told, reduced, quiet] = check::plateau(&mut self.world, steps, idle)
            .await
            .with_context(|| format!("the plateau after step {steps}"))?;
        if [told, reduced].iter().any(|took| *took > LONG) || (quiet > LONG && !idle) {
            say(&format!(
                "the plateau after step {steps}: {told:.1?} to find everything, {reduced:.1?} to remove, {quiet:.1?} until it was \
                 quiet"
            ));
        }
        self.plateaus += 1;
        Ok(())
    }

    fn leaks(&self, place: usize) -> Result<()> {
        let member = &self.world.members[place];
        let series: Vec<_> = member
            .series
            .iter()
            .map(|(steps, sample)| (*steps, sample.anonymous))
            .collect();
        if let Some(leak) = judge::leak(&series) {
            bail!(
                "{} grows by {:.1} KiB each step: {leak:?} over {series:?}",
                member.node.name(),
                leak.bytes_per_step / 1024.0
            );
        }
        Ok(())
    }

    fn tell(&self, doing: &str) {
        let members = self.world.members.iter();
        // Nobody looks on any more: then it has ended.
        let _ = self.line.send(Line {
            doing: doing.to_owned(),
            done: format!(
                "{} steps, {} pulls, {} MiB, {} plateaus",
                self.tally.steps,
                self.tally.pulls,
                self.tally.bytes >> 20,
                self.plateaus
            ),
            pids: members.map(|member| member.node.peili().pid()).collect(),
        });
    }

    fn account_of(&self, error: &anyhow::Error) -> String {
        let length = match self.length {
            None => String::new(),
            Some(length) => format!("PEILI_TEST_SOAK={}s ", length.as_secs()),
        };
        let steps: Vec<&str> = self.last.iter().map(String::as_str).collect();
        let mut said = format!(
            "{error:#}\n\nsteps, the last is the one that failed, or before the plateau that did:\n{}\n\n\
             once more: {length}PEILI_TEST_SOAK_SEED={} cargo test --all-features --test soak after_whatever -- --nocapture\n",
            steps.join("\n"),
            self.seed
        );
        for member in &self.world.members {
            said += &format!(
                "\n--- {}: peili\n{}\n",
                member.node.name(),
                tail(&member.node.peili().log(), 25)
            );
        }
        said
    }

    fn sum_up(&self) {
        let Tally {
            steps,
            pulls,
            refused,
            second_tries,
            bytes,
            slowest,
        } = &self.tally;
        say(&format!(
            "seed {}: {steps} steps in {:.0?}, {pulls} pulls of {} MiB, {refused} that had to fail, {second_tries} at the second \
             try on a disturbed node, the slowest {slowest:.1?}; {} plateaus",
            self.seed,
            self.began.elapsed(),
            bytes >> 20,
            self.plateaus
        ));
        for place in 0..NODES {
            let member = &self.world.members[place];
            let (Some((_, first)), Some((_, last))) = (member.series.first(), member.series.last())
            else {
                continue;
            };
            let series: Vec<_> = member
                .series
                .iter()
                .map(|(n, s)| (*n, s.anonymous))
                .collect();
            let of = |s: &judge::Sample| {
                let descriptors: usize = s.descriptors.values().sum();
                format!(
                    "{} KiB anonymous, {} KiB resident, {descriptors} descriptors, {} tasks, {} threads, {} records",
                    s.anonymous >> 10,
                    s.resident >> 10,
                    s.tasks,
                    s.threads,
                    s.records
                )
            };
            say(&format!(
                "{} ({}): first {}; last {}; {:+.2} KiB a step: {}",
                member.node.name(),
                if STEADY.contains(&place) {
                    "steady"
                } else {
                    "restarted"
                },
                of(first),
                of(last),
                judge::slope(&series) / 1024.0,
                series
                    .iter()
                    .map(|(_, bytes)| (bytes >> 10).to_string())
                    .collect::<Vec<_>>()
                    .join(" ")
            ));
        }
    }
}

/// Past libtest, which shows what a test printed only when it failed.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// `90s`, `10m`, `1h`.
fn duration(text: &str) -> Result<Duration> {
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        _ => bail!("{text:?} is no duration: 90s, 10m and 1h are"),
    };
    let number: u64 = text[..text.len() - 1]
        .parse()
        .with_context(|| format!("{text:?} is no duration: 90s, 10m and 1h are"))?;
    Ok(Duration::from_secs(number * unit))
}

#[test]
fn durations_are_read() {
    assert_eq!(duration("90s").unwrap(), Duration::from_secs(90));
    assert_eq!(duration("10m").unwrap(), Duration::from_secs(600));
    assert_eq!(duration("1h").unwrap(), Duration::from_secs(3600));
    for wrong in ["", "h", "10", "1.5h", "-1s", "10 m"] {
        assert!(duration(wrong).is_err(), "{wrong:?}");
    }
}
