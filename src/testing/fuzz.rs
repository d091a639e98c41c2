//! What holds of whatever comes from outside, whoever made it up: each property takes bytes, and panics where it does not
//! hold.
//!
//! `tests/fuzz.rs` asks each for a second with changes of what lies in `fuzz/corpus`; `make fuzz` has libFuzzer look for
//! bytes that go where none have gone before, for as long as one likes.

mod cluster;
mod files;
mod hosts;
mod members;
mod requests;

/// A property, by its name, which is that of its directory in `fuzz/corpus`, too.
pub struct Target {
    pub name: &'static str,
    pub holds: fn(&[u8]),
    /// What to begin with beside the files of the corpus, where that is no text.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Words of its grammar.
    pub words: &'static [&'static str],
}

const fn target(name: &'static str, holds: fn(&[u8]), words: &'static [&'static str]) -> Target {
    Target {
        name,
        holds,
        seeds: Vec::new,
        words,
    }
}

pub const TARGETS: &[Target] = &[
    target("distribution-paths", requests::path, requests::PATH_WORDS),
    target("ranges", requests::range, requests::RANGE_WORDS),
    target("references", requests::reference, requests::REFERENCE_WORDS),
    target("hosts-toml", hosts::prepended, hosts::WORDS),
    target("hosts-directory", hosts::configured, hosts::WORDS),
    target("ingest-refs", files::ingest_ref, files::REF_WORDS),
    target("layout-index", files::layout_index, files::INDEX_WORDS),
    target(
        "bootstrap-json",
        cluster::bootstrap,
        cluster::BOOTSTRAP_WORDS,
    ),
    Target {
        name: "flight-messages",
        holds: cluster::message,
        seeds: cluster::messages,
        words: &[],
    },
    Target {
        name: "membership-messages",
        holds: members::stranger,
        seeds: members::strangers,
        words: members::WORDS,
    },
];

/// Two lines, the second of which may be missing.
fn lines(text: &str) -> (&str, &str) {
    text.split_once('\n').unwrap_or((text, ""))
}
