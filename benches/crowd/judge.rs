//! From figures to verdicts. No IO.

use crate::scenario::{Check, Variant};

/// What the run must be measured against, and with.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Bytes of the image as one node pulls it.
    pub image: u64,
    /// Those who lack it.
    pub nodes: usize,
    /// The uplink of the registry, or of those who hold the image, and a node's link, bytes per second.
    pub source: u64,
    pub link: u64,
}

impl Case {
    /// Seconds that no scheme of sharing can be below: the source sends each byte once, each node takes each byte,
    /// and all uplinks together send each byte to each node.
    pub fn bound(&self) -> f64 {
        let (image, nodes) = (self.image as f64, self.nodes as f64);
        let (source, link) = (self.source as f64, self.link as f64);
        let together = source + nodes * link;
        (image / source)
            .max(image / link)
            .max(nodes * image / together)
    }
}

/// What a run with Peili came to, and what it is compared with where that was measured.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    pub copies: f64,
    /// Seconds that the slowest pull took.
    pub last: f64,
    pub bound: f64,
    pub local: Option<f64>,
    pub without: Option<f64>,
}

#[derive(Clone, Debug, serde::Serialize)]
pub struct Verdict {
    pub what: String,
    /// None: what it is compared with was not measured.
    pub holds: Option<bool>,
}

impl Verdict {
    pub fn new(what: String, holds: bool) -> Self {
        Self {
            what,
            holds: Some(holds),
        }
    }
}

pub fn judge(variant: Variant, checks: &[Check], figures: &Figures) -> Vec<Verdict> {
    if variant != Variant::With {
        return Vec::new();
    }
    checks.iter().map(|check| one(*check, figures)).collect()
}

fn one(check: Check, figures: &Figures) -> Verdict {
    let Figures { copies, last, .. } = *figures;
    let (what, limit) = match check {
        Check::Copies(most) => {
            return Verdict::new(format!("{copies:.2} copies <= {most}"), copies <= most);
        }
        Check::Bound => {
            let limit = figures.local.map(|local| 1.25 * figures.bound + local);
            ("1.25 bound + local".to_owned(), limit)
        }
        Check::NotSlower(times) => {
            let limit = figures.without.map(|without| times * without);
            (format!("{times} x without"), limit)
        }
    };
    match limit {
        Some(limit) => Verdict::new(
            format!("{last:.2} s <= {what} = {limit:.2} s"),
            last <= limit,
        ),
        None => Verdict {
            what: format!("{last:.1} s <= {what}, not measured"),
            holds: None,
        },
    }
}
