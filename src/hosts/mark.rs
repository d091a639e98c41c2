//! How we know our own files again: by a first line that says who wrote what follows, and its hash.
//!
//! A file that somebody has edited no longer agrees with its line. It is his from then on.

use crate::oci::Digest;

const BEGIN: &str = "# Written by peili: ";

/// Whether we have written the file once, whatever became of it.
pub fn begins(text: &str) -> bool {
    text.starts_with(BEGIN)
}

/// What the first line of a file of ours says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    pub release: String,
    /// How many host tables before all others are ours. Those behind others are not counted.
    pub hosts: usize,
}

impl Mark {
    /// `body` with its mark before it. `release` has neither spaces nor control characters.
    pub fn put_on(&self, body: &str) -> String {
        let Self { release, hosts } = self;
        let hash = Digest::sha256(body.as_bytes());
        let hex = hash.hex();
        format!("{BEGIN}release={release} hosts={hosts} sha256={hex}\n{body}")
    }

    /// None: not written by us, or changed since.
    pub fn read(text: &str) -> Option<Self> {
        let (line, body) = text.strip_prefix(BEGIN)?.split_once('\n')?;
        let mut words = line.split(' ');
        let mut value = |name| words.next()?.strip_prefix(name)?.strip_prefix('=');
        let (release, hosts, hex) = (value("release")?, value("hosts")?, value("sha256")?);
        let is_whole = Digest::sha256(body.as_bytes()).hex() == hex;
        (is_whole && words.next().is_none()).then_some(Self {
            release: release.to_string(),
            hosts: hosts.parse().ok()?,
        })
    }
}
