//! Image names: `registry/repository:tag@digest`.
//!
//! Grammar: the OCI distribution spec, section "Pulling manifests", and, for the registry part, the rule of Docker's
//! reference package that containerd follows: a first component with a dot or a colon in it, or `localhost`, is a
//! registry.

use std::fmt;
use std::str::FromStr;

use super::digest::{Digest, DigestError};

/// Longer names are refused by every registry (distribution's reference package).
const MAX_NAME: usize = 255;
/// OCI distribution spec: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
const MAX_TAG: usize = 128;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// `myorg/app:v1`: nobody could be asked for it, so it has no name in the cluster.
    #[error("{0:?} names no registry")]
    NoRegistry(String),
    #[error("{kind} {text:?}... has {length} characters, and {most} are the most")]
    TooLong {
        kind: &'static str,
        /// How it begins.
        text: String,
        length: usize,
        most: usize,
    },
    #[error("{0:?} is not a registry's host")]
    Registry(String),
    #[error("{0:?} is not a repository name")]
    Repository(String),
    #[error("{0:?} is not a tag")]
    Tag(String),
    #[error(transparent)]
    Digest(#[from] DigestError),
}

/// `registry/repository`, with Docker Hub's short forms written out (`docker.io/nginx` is `docker.io/library/nginx`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Repository {
    registry: String,
    path: String,
}

impl Repository {
    /// Whether the two are what their names say.
    pub fn check(registry: &str, path: &str) -> Result<(), ReferenceError> {
        fits("registry", registry, MAX_NAME)?;
        fits("repository name", path, MAX_NAME)?;
        if !is_host(registry) {
            return Err(ReferenceError::Registry(shortened(registry)));
        }
        if !is_repository_path(path) {
            return Err(ReferenceError::Repository(shortened(path)));
        }
        Ok(())
    }

    pub fn new(registry: &str, path: &str) -> Result<Self, ReferenceError> {
        Self::check(registry, path)?;
        let hub = matches!(registry, "docker.io" | "index.docker.io");
        let path = match hub && !path.contains('/') {
            true => format!("library/{path}"),
            false => path.to_owned(),
        };
        // Written out it is longer, and has to be read again by whoever is told of it.
        fits("repository name", &path, MAX_NAME)?;
        Ok(Self {
            registry: if hub { "docker.io" } else { registry }.to_owned(),
            path,
        })
    }

    /// Host and, where it is not the scheme's own, port.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.path)
    }
}

/// A tag with all that is needed to find it: `registry/repository:tag`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TagName {
    repository: Repository,
    tag: String,
}

impl TagName {
    pub fn new(repository: Repository, tag: &str) -> Result<Self, ReferenceError> {
        fits("tag", tag, MAX_TAG)?;
        if !is_tag(tag) {
            return Err(ReferenceError::Tag(shortened(tag)));
        }
        Ok(Self {
            repository,
            tag: tag.to_string(),
        })
    }

    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    pub fn tag(&self) -> &str {
        &self.tag
    }
}

impl fmt::Display for TagName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repository, self.tag)
    }
}

/// The name of an image as containerd's image store has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageName {
    pub repository: Repository,
    /// Absent in `repository@digest`. containerd implies no `latest`.
    pub tag: Option<TagName>,
    pub digest: Option<Digest>,
}

impl FromStr for ImageName {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (text, None),
        };
        let (registry, rest) = match rest.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
                (first, rest)
            }
            _ => return Err(ReferenceError::NoRegistry(shortened(text))),
        };
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        let repository = Repository::new(registry, path)?;
        let tag = tag
            .map(|tag| TagName::new(repository.clone(), tag))
            .transpose()?;
        Ok(Self {
            repository,
            tag,
            digest,
        })
    }
}

/// Errors are logged and sent: they quote no more of a stranger's text than identifies it.
fn shortened(text: &str) -> String {
    text.chars().take(100).collect()
}

/// Who reads the beginning of a long name sees nothing wrong with it.
fn fits(kind: &'static str, text: &str, most: usize) -> Result<(), ReferenceError> {
    let length = text.chars().count();
    match length <= most {
        true => Ok(()),
        false => Err(ReferenceError::TooLong {
            kind,
            text: shortened(text),
            length,
            most,
        }),
    }
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.bytes().next().is_some_and(word) && text.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn is_repository_path(text: &str) -> bool {
    text.split('/').all(is_path_component)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends_well = |b: Option<u8>| b.is_some_and(alphanumeric);
    ends_well(text.bytes().next())
        && ends_well(text.bytes().last())
        && text
            .split(|c: char| c.is_ascii() && alphanumeric(c as u8))
            .all(|separator| {
                matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
            })
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`
fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((v6, port)) if v6.parse::<std::net::Ipv6Addr>().is_ok() => (
                "v6",
                port.strip_prefix(':')
                    .or((!port.is_empty()).then_some("no colon")),
            ),
            _ => return false,
        },
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    host.split('.').all(label) && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ImageName {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn names_are_taken_apart_as_containerd_does() {
        for (text, tag, digest) in [
            (
                "docker.io/library/nginx:1.27",
                Some("docker.io/library/nginx:1.27"),
                None,
            ),
            (
                "docker.io/nginx:1.27",
                Some("docker.io/library/nginx:1.27"),
                None,
            ),
            (
                "docker.io/bitnami/nginx:1",
                Some("docker.io/bitnami/nginx:1"),
                None,
            ),
            ("ghcr.io/a/b", None, None),
            ("localhost/a:x", Some("localhost/a:x"), None),
            (
                "127.0.0.1:5000/a/b__c/d-e:V1.0",
                Some("127.0.0.1:5000/a/b__c/d-e:V1.0"),
                None,
            ),
            ("[fd00::1]:5000/a:b", Some("[fd00::1]:5000/a:b"), None),
            (
                "quay.io/a@sha256:c3ab8ff13720e8ad9047dd39466b3c8974e592c2fa383d4a3960714caef0c4f2",
                None,
                Some("sha256:c3ab8ff13720e8ad9047dd39466b3c8974e592c2fa383d4a3960714caef0c4f2"),
            ),
        ] {
            let name = name(text);

            assert_eq!(name.tag.map(|t| t.to_string()).as_deref(), tag, "{text}");
            assert_eq!(name.digest.as_ref().map(Digest::as_str), digest, "{text}");
        }
    }

    #[test]
    fn a_name_without_a_registry_is_told_apart_from_a_wrong_one() {
        for text in ["nginx", "nginx:1.27", "myorg/app:v1"] {
            assert!(
                matches!(
                    text.parse::<ImageName>(),
                    Err(ReferenceError::NoRegistry(_))
                ),
                "{text}"
            );
        }
    }

    #[test]
    fn the_longest_names_are_as_long_when_they_are_written_out() {
        for text in [
            format!("a.b/{}:x", "x".repeat(255)),
            format!("docker.io/{}:x", "x".repeat(247)),
        ] {
            let tag = name(&text).tag.expect("a tag").to_string();
            assert_eq!(name(&tag).tag.expect("a tag").to_string(), tag);
        }
    }

    #[test]
    fn of_a_name_that_is_too_long_its_length_is_told() {
        for (text, expected) in [
            (
                format!("a.b/{}:x", "n".repeat(256)),
                "has 256 characters, and 255",
            ),
            // Written out.
            (
                format!("docker.io/{}:x", "n".repeat(248)),
                "has 256 characters, and 255",
            ),
            (
                format!("a.b/c:{}", "x".repeat(129)),
                "has 129 characters, and 128",
            ),
        ] {
            let error = text.parse::<ImageName>().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn wrong_names_are_refused() {
        for text in [
            "",
            "/",
            "a.b/",
            "a.b/C:x",
            "a.b//c:x",
            "a.b/../c:x",
            "a.b/c:",
            "a.b/c:-x",
            "a.b/c:x/y",
            "a.b/c_:x",
            "a.b/c___d:x",
            "a.b/c..d:x",
            "a.b:port/c:x",
            "a.b:99999/c:x",
            "-a.b/c:x",
            "[fd00::1/c:x",
            "[fd00::1]5000/c:x",
            "a.b/c@sha256:123",
            "a.b/ü:x",
            &format!("a.b/c:{}", "x".repeat(129)),
            &format!("a.b/{}:x", "x".repeat(256)),
            // Too long once it is written out.
            &format!("docker.io/{}:x", "x".repeat(248)),
        ] {
            assert!(text.parse::<ImageName>().is_err(), "{text:?}");
        }
    }
}
