//! What containerd reads now: the files that are there, whoever wrote them. Nothing is changed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use toml_edit::{DocumentMut, TableLike};

use super::again::{self, Fit, is_own};
use super::disk::HOSTS_TOML;
use super::mark::{self, Mark};
use super::target::Target;
use super::version::Version;
use crate::oci::distribution::AGAIN;

/// One registry's hosts.toml.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// As its directory is called: `_default`, `docker.io`.
    pub registry: String,
    pub path: PathBuf,
    pub whose: Whose,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Written by us, and as it was written.
    Ours {
        mirrors: Vec<Mirror>,
        /// None where it is not known which containerd reads it.
        fit: Option<Fit>,
    },
    /// Written by us and changed since.
    Edited,
    Others,
    Unreadable(String),
}

/// One of our host tables that is a mirror's last word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    pub url: String,
    /// Whether it is known to be on this node.
    pub is_own: bool,
    /// What containerd sends along, by names in lower case.
    pub headers: BTreeMap<String, String>,
}

/// All files below `directory`, by registry. `version` is the containerd that reads them, `node_ips` as in
/// [`super::Config`].
pub fn find(
    directory: &Path,
    version: Option<&Version>,
    node_ips: &[IpAddr],
) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let registry = entry.file_name().to_string_lossy().into_owned();
        // `_backup` and what has not got its name yet.
        let is_hidden = registry.starts_with('.') || registry.starts_with("_backup");
        let path = entry.path().join(HOSTS_TOML);
        if is_hidden {
            continue;
        }
        let whose = match fs::read_to_string(&path) {
            Ok(text) => whose(&text, version, node_ips),
            Err(e) if is_absence(&e) => continue,
            Err(e) => Whose::Unreadable(e.to_string()),
        };
        found.push(Found {
            registry,
            path,
            whose,
        });
    }
    found.sort_by(|a, b| a.registry.cmp(&b.registry));
    Ok(found)
}

/// A file beside the directories, and one without a hosts.toml, as old Docker certificates have it.
fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn whose(text: &str, version: Option<&Version>, node_ips: &[IpAddr]) -> Whose {
    match Mark::read(text) {
        Some(mark) => Whose::Ours {
            mirrors: mirrors(text, mark.hosts, node_ips),
            fit: version.map(|version| again::fit(text, version, node_ips)),
        },
        None if mark::begins(text) => Whose::Edited,
        None => Whose::Others,
    }
}

/// Of the first `count` tables those at which a Peili may be.
fn mirrors(text: &str, count: usize, node_ips: &[IpAddr]) -> Vec<Mirror> {
    let Ok(document) = text.parse::<DocumentMut>() else {
        return Vec::new();
    };
    let tables = document.get("host").and_then(|host| host.as_table_like());
    let ours = tables.into_iter().flat_map(|tables| tables.iter());
    ours.take(count)
        .filter(|(url, _)| !url.contains(AGAIN))
        .filter_map(|(url, table)| {
            let target: Target = url.parse().ok()?;
            (!target.has_path()).then(|| Mirror {
                url: url.to_string(),
                is_own: is_own(&target, node_ips),
                headers: table.as_table_like().map(headers).unwrap_or_default(),
            })
        })
        .collect()
}

fn headers(table: &dyn TableLike) -> BTreeMap<String, String> {
    let headers = table.get("header").and_then(|it| it.as_table_like());
    let headers = headers.into_iter().flat_map(|headers| headers.iter());
    headers
        .filter_map(|(name, value)| {
            // containerd takes a text for a list of one.
            let first = value.as_array().and_then(|values| values.get(0)?.as_str());
            let value = first.or(value.as_str())?;
            Some((name.to_ascii_lowercase(), value.to_string()))
        })
        .collect()
}
