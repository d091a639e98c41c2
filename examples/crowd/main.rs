//! Flash crowds of 10 to 10,000 nodes: the policy of the rendezvous as it is built, on simulated links.
//!
//! ```text
//! main      runs, progress, table
//! options   the command line, the bound
//! world     nodes, layers, the clock, the events; transfers, tick by tick
//! client    what a node's mirror does: ask, follow, give up, look and report
//! links     what each transfer gets of the links; pure
//! outcome   a row of the table
//! ```
//!
//! Real: [`Table`](peili::routing::flight::table::Table) with its entries, a node's
//! [`Part`](peili::mirror::flight::part::Part) in a flight, and the room on its
//! [uplink](peili::inflight::uplink). Imitated: containerd, links, and the asynchronous half of the mirror
//! (`mirror/flight/boarding.rs`, `reporter.rs`, `mirror/body.rs`, `routing/flight/ask.rs`), with their numbers.
//!
//! Left out: the DHT (all agree on who is closest to a content, and who has all of it is known to the meeting point
//! only), containerd 2.x, TCP, CPUs and disks. Time passes in ticks of 10 ms for bytes, which is how often a mirror looks
//! at a file that grows, and exactly for messages. Only whole MiB are seen by others, as containerd writes.

mod client;
mod links;
mod options;
mod outcome;
mod world;

use std::io::Write;

use clap::Parser;

use options::Options;
use outcome::{Outcome, head};
use world::World;

fn main() {
    let options = Options::parse();
    let runs = match options.table {
        true => options.rows(),
        false => vec![options.clone()],
    };
    if !options.json {
        println!("{}", head());
    }
    for run in runs {
        let outcome = simulate(&run);
        match run.json {
            true => println!("{}", outcome.json(&run)),
            false => println!("{}", outcome.row(&run)),
        }
        // A table takes minutes.
        let _ = std::io::stdout().flush();
    }
}

fn simulate(options: &Options) -> Outcome {
    World::new(options.clone()).run()
}

#[cfg(test)]
mod tests;
