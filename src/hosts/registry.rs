//! Whose images are mirrored, and under which name containerd looks for their configuration.

use std::fmt;
use std::str::FromStr;

use super::Mistake;
use super::url::{Scheme, authority, split_scheme};
use crate::oci::Repository;

/// Whose images are mirrored.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Registry {
    /// Every registry that has no directory of its own.
    Every,
    Named(Server),
}

/// A registry by its address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Server {
    scheme: Scheme,
    host: String,
}

impl Registry {
    /// Reads a whole list and finds every mistake in it. An empty list means every registry.
    pub fn list<S: AsRef<str>>(texts: &[S]) -> Result<Vec<Self>, Vec<Mistake>> {
        let (mut registries, mut mistakes) = (Vec::<Self>::new(), Vec::new());
        for text in texts.iter().map(|text| text.as_ref().trim()) {
            match text.parse::<Self>() {
                Ok(same) if registries.contains(&same) => {}
                // One directory cannot name two servers.
                Ok(other)
                    if registries
                        .iter()
                        .any(|r| r.directory() == other.directory()) =>
                {
                    mistakes.push(Mistake::new(
                        text,
                        "is in the list with the other scheme, too",
                        "name it once, with the scheme by which it is reached",
                    ));
                }
                Ok(new) => registries.push(new),
                Err(mistake) => mistakes.push(mistake),
            }
        }
        if texts.is_empty() {
            registries.push(Registry::Every);
        }
        if mistakes.is_empty() {
            Ok(registries)
        } else {
            Err(mistakes)
        }
    }

    /// The registry's name as it stands in images and in containerd's `ns=`; none where every registry is meant.
    pub fn host(&self) -> Option<&str> {
        match self {
            Registry::Every => None,
            Registry::Named(server) => Some(&server.host),
        }
    }

    /// Name of its directory in certs.d.
    pub fn directory(&self) -> &str {
        self.host().unwrap_or("_default")
    }
}

impl FromStr for Registry {
    type Err = Mistake;

    fn from_str(text: &str) -> Result<Self, Mistake> {
        if matches!(text, "*" | "_default") {
            return Ok(Registry::Every);
        }
        let (scheme, rest) = split_scheme(text, "https")?;
        let host = authority(text, scheme, rest)?;
        if rest.len() != host.len() {
            return Err(Mistake::new(
                text,
                "has a path",
                format!("write {scheme}://{host}; a registry is mirrored as a whole"),
            ));
        }
        // An underscore begins directories with a meaning (`_default`, `_backup`) and no host.
        if Repository::new(host, "a").is_err() || host.starts_with('_') {
            return Err(Mistake::new(
                text,
                "is not a host with or without a port",
                "write it as https://registry.example or https://registry.example:5000, \
                 or * for every registry",
            ));
        }
        Ok(Registry::Named(Server {
            scheme,
            host: host.to_string(),
        }))
    }
}

impl Registry {
    /// What the registry's own `server` line says. Under the wildcard it would be asked for everybody's images; without
    /// one each registry is its own.
    pub(super) fn server(&self) -> Option<String> {
        match self {
            Registry::Every => None,
            Registry::Named(server) => Some(server.upstream()),
        }
    }

    /// The same where containerd would take another one if nothing were said.
    pub(super) fn unusual_server(&self) -> Option<String> {
        match self {
            Registry::Named(server) if server.scheme == Scheme::Http => Some(server.upstream()),
            _ => None,
        }
    }

    /// The other name that its directory may have: where a colon cannot be in it (Windows), and read first everywhere.
    pub(super) fn other_directory(&self) -> Option<String> {
        let (host, port) = self.host()?.rsplit_once(':')?;
        let has_port = port.bytes().all(|b| b.is_ascii_digit());
        has_port.then(|| format!("{host}_{port}_"))
    }
}

impl fmt::Display for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Registry::Every => f.write_str("*"),
            Registry::Named(server) => write!(f, "{}://{}", server.scheme, server.host),
        }
    }
}

impl Server {
    /// Where containerd goes when no mirror has it.
    pub(super) fn upstream(&self) -> String {
        match self.host.as_str() {
            // Docker Hub's images are named for a host that serves no registry.
            "docker.io" => "https://registry-1.docker.io".to_string(),
            host => format!("{}://{host}", self.scheme),
        }
    }
}
