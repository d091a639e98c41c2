//! Which registries get which `hosts.toml`, so that this node's containerd asks us first.
//!
//! containerd reads these files at every pull: they count at once and need no restart. They stay when the process ends,
//! since a mirror that is away refuses and containerd goes on to the next host; only `cleanup` takes them back.

mod again;
mod certs_d;
mod disk;
pub(crate) mod existing;
mod found;
mod mark;
mod registry;
mod tags;
mod target;
pub(crate) mod toml;
mod upstream;
mod url;
mod version;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::str::FromStr;

pub use again::{Fit, fit};
pub use certs_d::{Done, Error};
pub use found::{Found, Mirror, Whose, find};
pub use registry::{Registry, Server};
pub use tags::TagResolution;
pub use target::Targets;
pub use toml::Header;
pub use version::Version;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What containerd has as its registries' `config_path`.
    pub directory: PathBuf,
    pub release: Release,
    pub registries: Vec<Registry>,
    pub targets: Targets,
    /// Who is asked for tags. [`TagResolution::check`] says whether that can be done for these registries.
    pub tags: TagResolution,
    /// Whether host tables that are there already go on to count, behind ours.
    pub prepend_existing: bool,
    /// By what the targets know this node's containerd. Files with any are for root alone.
    pub headers: Vec<Header>,
    /// Which containerd reads the files; None: unknown, and they are written as for 1.x.
    pub containerd: Option<Version>,
    /// Addresses of this node that cannot be seen from here, as in a pod with a network of its own.
    pub node_ips: Vec<IpAddr>,
}

impl Config {
    /// Host tables of each file, in order.
    fn entries(&self) -> Vec<toml::Entry> {
        again::entries(&self.targets, self.containerd.as_ref(), |target| {
            again::is_own(target, &self.node_ips)
        })
    }

    /// How many entries there are at which containerd is told to ask again, in each file.
    pub fn again(&self) -> usize {
        let entries = self.entries().into_iter();
        entries
            .filter(|entry| matches!(entry, toml::Entry::Again(_)))
            .count()
    }
}

/// Puts the targets in front of the registries. What was in the directory before us is kept for [`cleanup`]; repeating
/// this is harmless.
pub fn configure(config: &Config) -> Result<Vec<Done>, Error> {
    let hosts = Rc::new(toml::Hosts {
        release: config.release.0.clone(),
        entries: config.entries(),
        tags: config.tags,
        headers: config.headers.clone(),
    });
    let is_every = config.registries.contains(&Registry::Every);
    let wanted = config.registries.iter().map(|registry| certs_d::Wanted {
        directory: registry.directory().to_string(),
        other_directory: registry.other_directory(),
        text: text(&hosts, Some(registry)),
    });
    let plan = certs_d::Plan {
        release: config.release.0.clone(),
        prepend_existing: config.prepend_existing,
        is_secret: !config.headers.is_empty(),
        wanted: wanted.collect(),
        others: (is_every && config.prepend_existing).then(|| text(&hosts, None)),
    };
    certs_d::install(&config.directory, &plan)
}

/// None: a registry that is mirrored because every registry is.
fn text(hosts: &Rc<toml::Hosts>, registry: Option<&Registry>) -> certs_d::Text {
    let (hosts, registry) = (Rc::clone(hosts), registry.cloned());
    Rc::new(move |existing| match existing {
        // A server that is not named is the registry itself, as containerd knows it, with all that the keys say of it.
        Some(existing) => existing::prepended(&hosts, existing, registry.as_ref()),
        None => {
            let server = registry.as_ref().and_then(Registry::server);
            Ok(hosts.alone(server.as_deref()))
        }
    })
}

/// Puts back what was in the directory before [`configure`], unless another release did that. Repeating this is
/// harmless.
pub fn cleanup(directory: &Path, release: &Release) -> Result<Vec<Done>, Error> {
    certs_d::restore(directory, &release.0)
}

/// Which of several installations on one node this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release(String);

impl FromStr for Release {
    type Err = Mistake;

    fn from_str(text: &str) -> Result<Self, Mistake> {
        /// A namespace and a Helm release's name, 63 and 53 characters at the most, and some air.
        const MAX: usize = 253;
        let is_word = |b: u8| b.is_ascii_alphanumeric() || b"-._/".contains(&b);
        if text.is_empty() || text.len() > MAX || !text.bytes().all(is_word) {
            return Err(Mistake::new(
                text,
                "is no name of 1 to 253 letters, digits and the signs - . _ /",
                "write the namespace and the name of the Helm release, such as peili/peili",
            ));
        }
        Ok(Self(text.to_string()))
    }
}

/// A value that cannot be used, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} {reason}: {cure}")]
pub struct Mistake {
    pub value: String,
    pub reason: &'static str,
    pub cure: String,
}

impl Mistake {
    fn new(value: &str, reason: &'static str, cure: impl Into<String>) -> Self {
        Self {
            value: value.to_string(),
            reason,
            cure: cure.into(),
        }
    }
}

#[cfg(test)]
mod tests;
