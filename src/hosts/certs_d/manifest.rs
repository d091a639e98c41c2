//! What we had written when all was done, and for whom: a file in `_backup`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::super::disk::{self, Eyes};
use super::Error;

/// Hidden, so that it is in nobody's way when Spegel moves all of `_backup` back.
pub const NAME: &str = ".peili-manifest.json";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub release: String,
    /// sha256 of each hosts.toml, in hexadecimal, by the name of its directory.
    pub files: BTreeMap<String, String>,
}

impl Manifest {
    /// None: there is none, or it is none.
    pub fn read(directory: &Path) -> Option<Self> {
        let text = fs::read_to_string(directory.join(NAME)).ok()?;
        serde_json::from_str(&text).ok()
    }

    pub fn write(&self, directory: &Path) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(self).expect("strings") + "\n";
        disk::write(directory, NAME, &text, Eyes::Everybodys)
    }
}
