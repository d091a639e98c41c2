//! What is asked for on the command line.

use clap::{Parser, ValueEnum};

/// Flash crowds: the policy of the rendezvous, as it is built, on simulated links.
#[derive(Clone, Debug, Parser)]
pub struct Options {
    /// Nodes that pull the image.
    #[arg(long, default_value_t = 100)]
    pub nodes: usize,
    /// Layers of the image.
    #[arg(long, default_value_t = 5)]
    pub layers: usize,
    /// Size of each layer, in MB.
    #[arg(long, default_value_t = 100.0)]
    pub layer_mb: f64,
    /// What the registry sends to all together, in MB/s.
    #[arg(long, default_value_t = 50.0)]
    pub registry_rate: f64,
    /// What each node sends, in MB/s.
    #[arg(long, default_value_t = 100.0)]
    pub up_rate: f64,
    /// What each node takes, in MB/s.
    #[arg(long, default_value_t = 100.0)]
    pub down_rate: f64,
    /// From the registry's request to its first byte, in ms.
    #[arg(long, default_value_t = 50)]
    pub registry_first_byte: u64,
    /// There and back between two nodes, in µs.
    #[arg(long, default_value_t = 500)]
    pub round_trip: u64,
    /// Nodes begin within this time, in ms.
    #[arg(long, default_value_t = 100)]
    pub skew: u64,
    /// Nodes that die at a random moment of the time that the bound gives, in %.
    #[arg(long, default_value_t = 0.0)]
    pub failing: f64,
    /// Layers that a node downloads at once. containerd's own default.
    #[arg(long, default_value_t = 3)]
    pub at_once: usize,
    /// Every node comes to the layers in the same order, as containerd nearly does, instead of an order of its own.
    #[arg(long)]
    pub same_order: bool,
    /// All of the nodes' random choices.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How layers are shared.
    #[arg(long, value_enum, default_value_t = Mode::Always)]
    pub mode: Mode,
    /// All runs of docs/flash-crowd.md instead of one.
    #[arg(long)]
    pub table: bool,
    /// Of these, only the crowds of at most so many nodes.
    #[arg(long, default_value_t = usize::MAX)]
    pub up_to: usize,
    /// One JSON object for each run instead of a Markdown table.
    #[arg(long)]
    pub json: bool,
    /// No progress on stderr.
    #[arg(long)]
    pub quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// The policy, `--in-flight-sharing=always`.
    Always,
    /// The policy, `--in-flight-sharing=auto`.
    Auto,
    /// Everybody goes to the registry.
    Registry,
    /// From the least busy of three random nodes that have all of it, else from the registry.
    Complete,
    /// One leads each layer, and everybody takes it from there.
    Star,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Mode::Always => "peili, always",
            Mode::Auto => "peili, auto",
            Mode::Registry => "registry",
            Mode::Complete => "complete",
            Mode::Star => "star",
        }
    }

    /// Whether the rendezvous is asked.
    pub fn is_policy(self) -> bool {
        matches!(self, Mode::Always | Mode::Auto)
    }
}

impl Options {
    /// Bytes of the image.
    pub fn image(&self) -> f64 {
        self.layers as f64 * self.layer_bytes()
    }

    pub fn layer_bytes(&self) -> f64 {
        self.layer_mb * 1e6
    }

    /// Seconds below which no way of sharing gets the image to all: max(F/s, F/d, N·F/(s+N·u)).
    pub fn bound(&self) -> f64 {
        let (image, nodes) = (self.image(), self.nodes as f64);
        let [s, u, d] = [self.registry_rate, self.up_rate, self.down_rate].map(|rate| rate * 1e6);
        (image / s)
            .max(image / d)
            .max(nodes * image / (s + nodes * u))
    }

    /// The runs of docs/flash-crowd.md, with what is not a row's own as it was given.
    pub fn rows(&self) -> Vec<Options> {
        let row = |nodes, layers, layer_mb, registry_rate, failing, mode| Options {
            nodes,
            layers,
            layer_mb,
            registry_rate,
            failing,
            mode,
            ..self.clone()
        };
        let mut rows = Vec::new();
        for registry_rate in [50.0, 1000.0] {
            for nodes in [10, 100, 1000, 10_000] {
                for mode in [
                    Mode::Always,
                    Mode::Auto,
                    Mode::Registry,
                    Mode::Complete,
                    Mode::Star,
                ] {
                    rows.push(row(nodes, 5, 100.0, registry_rate, 0.0, mode));
                }
                rows.push(row(nodes, 5, 100.0, registry_rate, 1.0, Mode::Always));
            }
        }
        for mode in [Mode::Always, Mode::Auto] {
            rows.push(row(100, 1, 10_000.0, 50.0, 0.0, mode));
            rows.push(row(1000, 1, 10_000.0, 50.0, 0.0, mode));
            rows.push(row(1000, 1, 10_000.0, 50.0, 1.0, mode));
            rows.push(row(1000, 5, 10.0, 50.0, 0.0, mode));
            rows.push(row(1000, 5, 10.0, 50.0, 1.0, mode));
        }
        rows.retain(|row| row.nodes <= self.up_to);
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_that_of_whatever_is_narrowest() {
        let parse = |words: &str| Options::parse_from(words.split(' '));
        for (narrowest, words, seconds) in [
            ("the registry", "crowd --nodes 100", 10.0),
            ("downlinks", "crowd --nodes 10 --registry-rate 1000", 5.0),
            (
                "all that anybody sends",
                "crowd --nodes 100 --registry-rate 100 --up-rate 10 --down-rate 1000",
                45.454,
            ),
        ] {
            let bound = parse(words).bound();
            assert!((bound - seconds).abs() < 0.01, "{narrowest}: {bound}");
        }
    }
}
