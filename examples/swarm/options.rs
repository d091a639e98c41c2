//! What is asked for on the command line.

use std::time::Duration;

use clap::Parser;

/// Real routers in one process: what lookups, renewals and a node's memory come to as a swarm grows.
#[derive(Clone, Debug, Parser)]
pub struct Options {
    /// Swarms of so many nodes, each in a process of its own.
    #[arg(
        long,
        default_value = "100",
        value_delimiter = ',',
        value_name = "NUMBERS"
    )]
    pub nodes: Vec<usize>,
    /// One node tells so many keys, one number after the other. That is what each renewal of them costs, too.
    #[arg(
        long,
        default_value = "10,100,1000",
        value_delimiter = ',',
        value_name = "NUMBERS"
    )]
    pub keys: Vec<usize>,
    /// Lookups of each kind.
    #[arg(long, default_value_t = 300, value_name = "NUMBER")]
    pub lookups: usize,
    /// Nodes that die at once, without a word, in %.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u8).range(0..=90))]
    pub dead: u8,
    /// After so many seconds what is left of the swarm is looked at again.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub heal: u64,
    /// So long nobody does anything before the lookups, and what that costs is told. Connections that are not used end after
    /// a minute: after two of them lookups begin without any.
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    pub idle: u64,
    /// Nodes that join in each second.
    #[arg(long, default_value_t = 10.0, value_name = "NUMBER", value_parser = positive)]
    pub joins: f64,
    /// All random choices but those of the nodes: who is whose first peer, who holds what, who asks, who dies.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Beside the real ones, swarms of so many nodes in a model of Kademlia.
    #[arg(long, value_delimiter = ',', value_name = "NUMBERS")]
    pub model: Vec<usize>,
    /// There and back between two nodes of the model, in µs. As in the crowds' network (examples/crowd).
    #[arg(long, default_value_t = 500, value_name = "MICROSECONDS")]
    pub round_trip: u64,
    /// Connections that are memory instead of TCP, for more nodes than the limit of descriptors lets this process have.
    #[arg(long)]
    pub in_memory: bool,
    /// One JSON object for each swarm instead of Markdown tables.
    #[arg(long)]
    pub json: bool,
    /// No progress on stderr.
    #[arg(long)]
    pub quiet: bool,
}

impl Options {
    /// How long it is from one join to the next.
    pub fn pause(&self) -> Duration {
        Duration::from_secs_f64(1.0 / self.joins)
    }

    /// How many of so many die: never all.
    pub fn dying(&self, nodes: usize) -> usize {
        nodes * usize::from(self.dead) / 100
    }

    /// The arguments of a process that has one of the swarms.
    pub fn of_one(&self, nodes: usize) -> Vec<String> {
        let keys: Vec<String> = self.keys.iter().map(usize::to_string).collect();
        let mut words = vec![
            format!("--nodes={nodes}"),
            format!("--keys={}", keys.join(",")),
            format!("--lookups={}", self.lookups),
            format!("--dead={}", self.dead),
            format!("--heal={}", self.heal),
            format!("--idle={}", self.idle),
            format!("--joins={}", self.joins),
            format!("--seed={}", self.seed),
            "--json".to_owned(),
        ];
        words.extend(self.in_memory.then(|| "--in-memory".to_owned()));
        words.extend(self.quiet.then(|| "--quiet".to_owned()));
        words
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= 1e6 => Ok(number),
        _ => Err("it is to be more than 0, and a million at the most".to_owned()),
    }
}
