//! Which registries get which `hosts.toml`, so that this node's containerd asks us first.
//!
//! containerd reads these files at every pull: they count at once and need no restart. They stay when the process ends,
//! since a mirror that is away refuses and containerd goes on to the next host; only `cleanup` takes them back.

mod again;
mod certs_d;
mod disk;
mod toml;
mod version;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use again::{Fit, fit};
pub use certs_d::{Done, Error};
pub use version::Version;

use crate::oci::Repository;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What containerd has as its registries' `config_path`.
    pub directory: PathBuf,
    pub registries: Vec<Registry>,
    pub targets: Targets,
    /// Whether tags are resolved through us, too, and not content by digest alone.
    pub resolve_tags: bool,
    /// By what the targets know this node's containerd. Files with it are for root alone.
    pub token: Option<Token>,
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

/// A request header that containerd sends to every target. The value is plain hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub header: &'static str,
    pub value: String,
}

/// Puts the targets in front of the registries. What was in the directory before us is kept for [`cleanup`]; repeating
/// this is harmless.
pub fn configure(config: &Config) -> Result<Vec<Done>, Error> {
    let entries = config.entries();
    let files = config.registries.iter().map(|registry| certs_d::Wanted {
        directory: registry.directory().to_string(),
        text: toml::render(
            registry,
            &entries,
            config.resolve_tags,
            config.token.as_ref(),
        ),
        is_secret: config.token.is_some(),
    });
    certs_d::install(&config.directory, &files.collect::<Vec<_>>())
}

/// Puts back what was in the directory before [`configure`]. Repeating this is harmless.
pub fn cleanup(directory: &Path) -> Result<Vec<Done>, Error> {
    certs_d::restore(directory)
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Scheme {
    Http,
    Https,
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
    fn directory(&self) -> &str {
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
    fn upstream(&self) -> String {
        match self.host.as_str() {
            // Docker Hub's images are named for a host that serves no registry.
            "docker.io" => "https://registry-1.docker.io".to_string(),
            host => format!("{}://{host}", self.scheme),
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        })
    }
}

/// The mirrors that containerd asks, in this order. At least one: containerd 1.6 and 1.7 reject a file without any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Targets(Vec<Target>);

/// A mirror's address, in the spelling that containerd needs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    scheme: Scheme,
    host: String,
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
    /// None for a name.
    fn ip(&self) -> Option<IpAddr> {
        let host = self.without_port();
        match host.strip_prefix('[').and_then(|v6| v6.strip_suffix(']')) {
            Some(v6) => v6.parse().ok().map(IpAddr::V6),
            None => host.parse().ok().map(IpAddr::V4),
        }
    }

    /// The one name that no resolver is to be asked for (RFC 6761, section 6.3).
    fn is_localhost(&self) -> bool {
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
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let host = authority(text, scheme, rest)?;
        if rest.len() != host.len() {
            return Err(Mistake::new(
                text,
                "has a path",
                format!("write {scheme}://{host}; mirrors below a path are not supported yet"),
            ));
        }
        let host = bracketed(host);
        if Repository::new(&host, "a").is_err() {
            return Err(Mistake::new(
                text,
                "is not a host with or without a port",
                "write it as http://192.0.2.7:30020, http://[2001:db8::7]:30020 or \
                 https://mirror.example",
            ));
        }
        Ok(Self { scheme, host })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.host)
    }
}

fn split_scheme<'a>(text: &'a str, usual: &str) -> Result<(Scheme, &'a str), Mistake> {
    let cure = |host: &str| match host {
        "" => format!("write {usual}://, followed by a host"),
        host => format!("write {usual}://{host}"),
    };
    match text.split_once("://") {
        Some(("http", rest)) => Ok((Scheme::Http, rest)),
        Some(("https", rest)) => Ok((Scheme::Https, rest)),
        Some((_, rest)) => Err(Mistake::new(
            text,
            "has a scheme other than http and https",
            cure(rest),
        )),
        None => Err(Mistake::new(text, "has no scheme", cure(text))),
    }
}

/// The part before the path, when there is nothing in the URL that a host table cannot say.
fn authority<'a>(text: &str, scheme: Scheme, rest: &'a str) -> Result<&'a str, Mistake> {
    if rest.contains(['?', '#']) {
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        return Err(Mistake::new(
            text,
            "has a query",
            format!("write {scheme}://{host}"),
        ));
    }
    let host = rest.split('/').next().unwrap_or_default();
    if let Some((_, host)) = host.rsplit_once('@') {
        // Never quoted: it ends in the log.
        return Err(Mistake::new(
            &format!("{scheme}://…@{host}"),
            "names a user",
            format!("write {scheme}://{host}; the file can be read by everybody on the node"),
        ));
    }
    if host.is_empty() {
        return Err(Mistake::new(
            text,
            "has no host",
            format!("write {scheme}://, followed by a host"),
        ));
    }
    Ok(host)
}

/// A bare IPv6 address gets its brackets. Charts write `http://$(NODE_IP):30020`, so what may be a port is one:
/// `fd00::1:30020` is port 30020 of `fd00::1`.
fn bracketed(host: &str) -> String {
    let is_v6 = |text: &str| text.parse::<std::net::Ipv6Addr>().is_ok();
    match host.rsplit_once(':') {
        Some((v6, port)) if is_v6(v6) && port.parse::<u16>().is_ok() => format!("[{v6}]:{port}"),
        _ if is_v6(host) => format!("[{host}]"),
        _ => host.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_list_and_both_wildcards_mean_every_registry() {
        for list in [&[][..], &["*"], &["_default"], &["*", "_default"]] {
            assert_eq!(Registry::list(list), Ok(vec![Registry::Every]), "{list:?}");
        }
    }

    #[test]
    fn registries_are_named_as_containerd_names_them() {
        for (text, directory, upstream) in [
            (
                "https://docker.io",
                "docker.io",
                "https://registry-1.docker.io",
            ),
            ("https://ghcr.io", "ghcr.io", "https://ghcr.io"),
            (
                "http://registry.example:5000",
                "registry.example:5000",
                "http://registry.example:5000",
            ),
            (
                "https://[2001:db8::1]:5000",
                "[2001:db8::1]:5000",
                "https://[2001:db8::1]:5000",
            ),
        ] {
            let Ok(Registry::Named(server)) = text.parse() else {
                panic!("{text}");
            };

            assert_eq!(server.upstream(), upstream);
            assert_eq!(Registry::Named(server).directory(), directory);
        }
    }

    #[test]
    fn every_malformed_registry_is_reported_with_its_value_reason_and_cure() {
        let table = [
            ("docker.io", "has no scheme", "write https://docker.io"),
            ("", "has no scheme", "write https://, followed by a host"),
            (
                "ftp://docker.io",
                "has a scheme other than http and https",
                "write https://docker.io",
            ),
            ("https://", "has no host", "followed by a host"),
            ("https:///v2", "has no host", "followed by a host"),
            (
                "https://docker.io/",
                "has a path",
                "write https://docker.io;",
            ),
            (
                "https://docker.io/library",
                "has a path",
                "write https://docker.io;",
            ),
            (
                "https://docker.io?a=b",
                "has a query",
                "write https://docker.io",
            ),
            (
                "https://docker.io#a",
                "has a query",
                "write https://docker.io",
            ),
            (
                "https://docker.io:port",
                "is not a host",
                "https://registry.example",
            ),
            (
                "https://docker.io:70000",
                "is not a host",
                "https://registry.example",
            ),
            ("https://..", "is not a host", "https://registry.example"),
            ("https://a b", "is not a host", "https://registry.example"),
            ("https://a\"b", "is not a host", "https://registry.example"),
            ("https://_default", "is not a host", "* for every registry"),
            ("https://_backup", "is not a host", "* for every registry"),
            (
                "https://fd00::1",
                "is not a host",
                "https://registry.example",
            ),
            ("http://ghcr.io", "with the other scheme", "name it once"),
        ];
        let mut texts = vec!["https://ghcr.io"];
        texts.extend(table.iter().map(|(text, ..)| text));

        let mistakes = Registry::list(&texts).expect_err("all but one are malformed");

        assert_eq!(mistakes.len(), table.len());
        for (mistake, (text, reason, cure)) in mistakes.iter().zip(table) {
            assert_eq!(mistake.value, text);
            assert!(mistake.reason.contains(reason), "{mistake}");
            assert!(mistake.cure.contains(cure), "{mistake}");
        }
    }

    #[test]
    fn targets_are_spelt_as_containerd_needs_them() {
        for (text, url) in [
            ("http://192.0.2.7:30020", "http://192.0.2.7:30020"),
            ("https://mirror.example/", "https://mirror.example"),
            ("http://2001:db8::7:30020", "http://[2001:db8::7]:30020"),
            ("http://2001:db8::7", "http://[2001:db8::7]"),
            ("http://[2001:db8::7]:30020", "http://[2001:db8::7]:30020"),
            (
                "http://2001:db8:0:0:0:0:0:7:30020",
                "http://[2001:db8:0:0:0:0:0:7]:30020",
            ),
            (
                "http://2001:db8:0:0:0:0:0:7",
                "http://[2001:db8:0:0:0:0:0:7]",
            ),
        ] {
            let targets = Targets::list(&[text]).unwrap_or_else(|e| panic!("{e:?}"));

            assert_eq!(targets.urls().collect::<Vec<_>>(), [url]);
        }
    }

    #[test]
    fn an_upgrade_of_containerd_rewrites_the_files_once_and_the_cleanup_knows_nothing_of_it() {
        let root = tempfile::tempdir().expect("tempdir");
        let foreign = root.path().join("ghcr.io/hosts.toml");
        std::fs::create_dir(root.path().join("ghcr.io")).expect("mkdir");
        std::fs::write(&foreign, "server = \"https://mine\"\n").expect("write");
        let ours = root.path().join("_default/hosts.toml");
        let at = |containerd: Option<&str>| Config {
            directory: root.path().to_path_buf(),
            registries: vec![Registry::Every],
            targets: Targets::list(&["http://127.0.0.1:30020"]).expect("targets"),
            resolve_tags: true,
            token: None,
            containerd: containerd.map(|text| text.parse().expect("a version")),
            node_ips: Vec::new(),
        };
        let tables = || {
            let text = std::fs::read_to_string(&ours).expect("ours");
            toml::urls(&text).expect("tables").len()
        };

        configure(&at(Some("1.7.24"))).expect("configure");
        assert_eq!(tables(), 1);

        let upgraded = at(Some("2.1.9"));
        assert_eq!(upgraded.again(), 3);
        let done = configure(&upgraded).expect("configure");
        assert_eq!(done, [Done::Written(ours.clone())]);
        assert_eq!(tables(), 4);
        let done = configure(&upgraded).expect("configure");
        assert_eq!(done, [Done::Unchanged(ours.clone())]);

        let done = configure(&at(None)).expect("configure");
        assert_eq!(done, [Done::Written(ours.clone())]);
        assert_eq!(tables(), 1);

        cleanup(root.path()).expect("cleanup");
        assert!(!ours.exists());
        let restored = std::fs::read_to_string(&foreign).expect("theirs");
        assert_eq!(restored, "server = \"https://mine\"\n");
    }

    #[test]
    fn every_malformed_target_is_reported_and_no_target_is_one() {
        let table = [
            ("192.0.2.7:30020", "has no scheme", "http://192.0.2.7:30020"),
            ("http://:30020", "is not a host", "http://192.0.2.7:30020"),
            ("http://node:x", "is not a host", "http://192.0.2.7:30020"),
            (
                "http://fe80::1%eth0:30020",
                "is not a host",
                "[2001:db8::7]",
            ),
            ("http://node/v2/proxy", "has a path", "write http://node;"),
            ("http://node?x", "has a query", "write http://node"),
        ];
        let texts: Vec<_> = table.iter().map(|(text, ..)| text).collect();

        let mistakes = Targets::list(&texts).expect_err("all are malformed");

        assert_eq!(mistakes.len(), table.len());
        for (mistake, (text, reason, cure)) in mistakes.iter().zip(table) {
            assert_eq!(mistake.value, text);
            assert!(mistake.reason.contains(reason), "{mistake}");
            assert!(mistake.cure.contains(cure), "{mistake}");
        }
        assert_eq!(Targets::list::<&str>(&[]).expect_err("none").len(), 1);
    }

    #[test]
    fn a_password_is_refused_without_being_quoted() {
        let mistake = "http://me:hunter2@node"
            .parse::<Target>()
            .expect_err("names a user");

        assert_eq!(mistake.reason, "names a user");
        assert!(!mistake.to_string().contains("hunter2"), "{mistake}");
    }
}
