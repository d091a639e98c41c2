//! The mirrors that containerd is to ask.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::Mistake;
use super::url::{Scheme, authority, bracketed, split_scheme};
use crate::oci::Repository;

/// The mirrors that containerd asks, in this order. At least one: containerd 1.6 and 1.7 reject a file without any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Targets(pub(super) Vec<Target>);

/// A mirror's address, in the spelling that containerd needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    scheme: Scheme,
    host: String,
    /// Empty, or complete: `/v2/proxy`.
    path: String,
}

impl Targets {
    /// Reads a whole list and finds every mistake in it.
    pub fn list<S: AsRef<str>>(texts: &[S]) -> Result<Self, Vec<Mistake>> {
        let (mut targets, mut mistakes) = (Vec::new(), Vec::new());
        for text in texts {
            match text.as_ref().trim().parse::<Target>() {
                // Twice the same table is no TOML, and who did not have it still does not.
                Ok(target) if targets.contains(&target) => {}
                Ok(target) => targets.push(target),
                Err(mistake) => mistakes.push(mistake),
            }
        }
        if texts.is_empty() {
            mistakes.push(Mistake::new(
                "",
                "is missing",
                "write the URL at which this node's containerd reaches us, \
                 such as http://192.0.2.7:30020",
            ));
        }
        if mistakes.is_empty() {
            Ok(Self(targets))
        } else {
            Err(mistakes)
        }
    }

    /// The URLs, in order.
    pub fn urls(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(Target::to_string)
    }
}

impl Target {
    /// Whether it is a part of somebody else's registry. Peili itself has no such address.
    pub(super) fn has_path(&self) -> bool {
        !self.path.is_empty()
    }

    /// None for a name.
    pub(super) fn ip(&self) -> Option<IpAddr> {
        let host = self.without_port();
        match host.strip_prefix('[').and_then(|v6| v6.strip_suffix(']')) {
            Some(v6) => v6.parse().ok().map(IpAddr::V6),
            None => host.parse().ok().map(IpAddr::V4),
        }
    }

    /// The one name that no resolver is to be asked for (RFC 6761, section 6.3).
    pub(super) fn is_localhost(&self) -> bool {
        self.without_port().eq_ignore_ascii_case("localhost")
    }

    fn without_port(&self) -> &str {
        match self.host.rsplit_once(':') {
            Some((host, _)) if !self.host.ends_with(']') => host,
            _ => &self.host,
        }
    }
}

impl FromStr for Target {
    type Err = Mistake;

    fn from_str(text: &str) -> Result<Self, Mistake> {
        let (scheme, rest) = split_scheme(text, "http")?;
        let host = authority(text, scheme, rest)?;
        let path = rest[host.len()..].trim_end_matches('/');
        let host = bracketed(host);
        if Repository::new(&host, "a").is_err() {
            return Err(Mistake::new(
                text,
                "is not a host with or without a port",
                "write it as http://192.0.2.7:30020, http://[2001:db8::7]:30020 or \
                 https://mirror.example",
            ));
        }
        if !is_path(path) {
            return Err(Mistake::new(
                text,
                "has a path that cannot be written to hosts.toml",
                "use letters, digits, and the signs - . _ ~ between single slashes",
            ));
        }
        if !path.is_empty() && !path.split('/').any(|segment| segment == "v2") {
            return Err(Mistake::new(
                text,
                "has a path without /v2, below which a registry's API begins",
                format!(
                    "write the whole path: {scheme}://{host}/v2{path} for a project of Harbor or a cache of ECR, \
                     {scheme}://{host}{path}/v2 for a registry that stands below a path"
                ),
            ));
        }
        Ok(Self {
            scheme,
            host,
            path: path.to_string(),
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.host, self.path)
    }
}

/// Nothing that would need escaping in TOML, or that a server may take for another path.
fn is_path(path: &str) -> bool {
    path.split('/').skip(1).all(|segment| {
        !matches!(segment, "" | "." | "..")
            && segment
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b))
    })
}
