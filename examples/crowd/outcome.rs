//! What a run was like: a row of the table, or JSON.

use serde_json::{Value, json};

use crate::options::Options;

/// How one crowd went.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Of the whole image, that left the registry.
    pub copies: f64,
    /// When the last node that lives had all of it, in seconds after the first began.
    pub last: f64,
    /// Most steps from a node to the registry or to who had all of it.
    pub deepest: u32,
    /// At the node that others asked and told most: messages in all, in the busiest second, and nodes.
    pub messages: u64,
    pub messages_per_second: u64,
    pub connections: usize,
    /// Of all nodes.
    pub messages_of_all: u64,
    /// At the node with most: those who take something from it at once.
    pub children: u32,
    /// From a request of containerd to its first byte, in seconds.
    pub first_byte_mean: f64,
    pub first_byte_max: f64,
    /// Layers that nodes were told to get from the registry, in all.
    pub led: u64,
    /// Nodes that live and have not got everything.
    pub stuck: usize,
    pub failed: usize,
    /// Chains of parents that came back to their child.
    pub circles: u64,
    /// Sources that were given up.
    pub replaced: u64,
    /// Answers, by kind: lead, follow, wait, descend.
    pub said: [u64; 4],
    /// What the run took here, in seconds.
    pub took: f64,
    /// Time within the tables, in seconds.
    pub in_tables: f64,
}

const HEAD: &str = "\
| nodes | layers | registry | how | dying | copies | last node | bound | ratio | deepest | messages/s | messages | connections | children | first byte, mean | max |
|--:|--|--:|--|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|";

pub fn head() -> &'static str {
    HEAD
}

impl Outcome {
    pub fn row(&self, options: &Options) -> String {
        let layer = match options.layer_mb {
            mb if mb >= 1000.0 => format!("{} GB", mb / 1000.0),
            mb => format!("{mb} MB"),
        };
        let bound = options.bound();
        let policy = |text: String| match options.mode.is_policy() {
            true => text,
            false => "–".to_string(),
        };
        let stuck = match self.stuck {
            0 => String::new(),
            stuck => format!(" ({stuck} stuck)"),
        };
        format!(
            "| {} | {} × {layer} | {} MB/s | {} | {} % | {:.2} | {} s{stuck} | {bound:.1} s | {:.2} | {} | {} | {} | {} | {} | {} | {} |",
            options.nodes,
            options.layers,
            options.registry_rate,
            options.mode.name(),
            options.failing,
            self.copies,
            short(self.last),
            self.last / bound,
            policy(self.deepest.to_string()),
            policy(self.messages_per_second.to_string()),
            policy(self.messages.to_string()),
            policy(self.connections.to_string()),
            self.children,
            policy(format!("{:.2} s", self.first_byte_mean)),
            policy(format!("{:.2} s", self.first_byte_max)),
        )
    }

    pub fn json(&self, options: &Options) -> Value {
        let [leads, follows, waits, descends] = self.said;
        json!({
            "nodes": options.nodes,
            "layers": options.layers,
            "layer_mb": options.layer_mb,
            "registry_mb_per_second": options.registry_rate,
            "up_mb_per_second": options.up_rate,
            "down_mb_per_second": options.down_rate,
            "mode": options.mode.name(),
            "failing_percent": options.failing,
            "seed": options.seed,
            "copies": self.copies,
            "last_node_seconds": self.last,
            "bound_seconds": options.bound(),
            "deepest": self.deepest,
            "busiest_messages_per_second": self.messages_per_second,
            "busiest_messages": self.messages,
            "busiest_connections": self.connections,
            "messages": self.messages_of_all,
            "children": self.children,
            "first_byte_mean_seconds": self.first_byte_mean,
            "first_byte_max_seconds": self.first_byte_max,
            "led": self.led,
            "stuck": self.stuck,
            "failed": self.failed,
            "circles": self.circles,
            "sources_replaced": self.replaced,
            "said": { "lead": leads, "follow": follows, "wait": waits, "descend": descends },
            "took_seconds": self.took,
            "in_tables_seconds": self.in_tables,
        })
    }
}

fn short(seconds: f64) -> String {
    match seconds {
        s if s < 1000.0 => format!("{s:.1}"),
        s => format!("{s:.0}"),
    }
}
