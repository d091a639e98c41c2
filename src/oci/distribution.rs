//! The HTTP face of a registry, as the OCI distribution spec and RFC 9110 have it: paths, ranges, headers, errors.

use std::fmt;

use super::Key;
use super::digest::Digest;
use super::reference::{ReferenceError, Repository, TagName};

/// Digest of what is sent (distribution spec, "Pulling manifests").
pub const DOCKER_CONTENT_DIGEST: &str = "docker-content-digest";
/// Registry on whose behalf a mirror answers; containerd sends it as `ns=` and takes it as a header.
pub const OCI_NAMESPACE: &str = "oci-namespace";
/// Marks a request from a peer, in Spegel's spelling so that both understand each other: it is answered from what is
/// here and never mirrored again.
pub const MIRRORED: &str = "x-spegel-mirrored";

/// A peer that would also take what is still being written here sends it, with the milliseconds that it would wait for a
/// first byte.
pub const GROWING: &str = "x-peili-growing";
/// Comes with the 404 to such a request: a [`Flight`].
pub const FLIGHT: &str = "x-peili-flight";
/// Whoever tries whether a pull would work sends it: nothing is stored, so nobody is to wait for what it gets, and it is
/// counted as nobody's pull. Whoever sends it without cause only loses by it.
pub const TRIAL: &str = "x-peili-trial";
/// Such a one is told where the answer came from: `local`, or `peer` and where that one's registry is.
pub const SOURCE: &str = "x-peili-source";

/// Where hosts.toml lists a mirror more than once, all but its last entry begin with this and a number:
/// `/again/1/v2/<name>/blobs/<digest>`. A 404 there is not the last word.
pub const AGAIN: &str = "/again";

/// A peer that could also take a layer from one who is still getting it says so, in the words of [`Following`]: a holder that
/// several read that layer from turns it away, so that those who come make a tree and not a star.
pub const FOLLOWING: &str = "x-peili-following";

/// Comes with a busy holder's 503: comma-separated IP addresses of others, whose registry listens at the same port.
pub const HOLDERS: &str = "x-peili-holders";
/// More addresses would not be tried.
pub const MAX_HOLDERS: usize = 16;

/// Registries accept manifests of at least 4 MiB (distribution spec, "Pushing manifests"), and few accept more: a longer
/// one is none, and is not taken into memory. In bytes.
pub const MAX_MANIFEST: u64 = 8 << 20;

/// What a node that has not (yet) got what it was asked for knows about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flight {
    /// Its containerd downloads it, or has asked for it: it is worth to come back.
    Waiting,
    /// It neither has nor fetches it.
    Absent,
}

impl Flight {
    pub fn as_str(self) -> &'static str {
        match self {
            Flight::Waiting => "waiting",
            Flight::Absent => "absent",
        }
    }

    /// Reads the header's value. None for one of a later version.
    pub fn parse(header: &str) -> Option<Self> {
        let known = [Flight::Waiting, Flight::Absent];
        known.into_iter().find(|flight| flight.as_str() == header)
    }
}

/// Whether who asks for a layer could take it from one who is still getting it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Following {
    /// It could not, or there is nobody: it is turned away by none who has it and any room.
    #[default]
    No,
    May,
    /// It does, and gets little: those whom it follows may be slow themselves, which who has it cannot see.
    Slowly,
}

impl Following {
    /// The header's value. None where there is to be no header.
    pub fn as_str(self) -> Option<&'static str> {
        match self {
            Following::No => None,
            Following::May => Some("may"),
            Following::Slowly => Some("slowly"),
        }
    }

    /// Reads the header's value; a word of a later version says at least that it may.
    pub fn parse(header: Option<&str>) -> Self {
        match header {
            None => Following::No,
            Some("slowly") => Following::Slowly,
            Some(_) => Following::May,
        }
    }
}

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    Manifest(ManifestReference),
    Blob(Digest),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManifestReference {
    Digest(Digest),
    Tag(TagName),
    /// A tag of a registry that the request does not name: it cannot be looked up.
    TagOfNowhere(String),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("{0:?} is none of /v2/<name>/manifests/<reference>, /v2/<name>/blobs/<digest>")]
    NoSuchPath(String),
    #[error("{0}")]
    Name(ReferenceError),
    #[error("{0}")]
    Reference(ReferenceError),
}

impl Resource {
    /// Reads what follows `/v2/` in a request's path, with the registry that the `ns` parameter names.
    ///
    /// A name is checked in any case; without `ns` it is checked as one of `localhost`, and only a digest can be found.
    pub fn parse(path: &str, ns: Option<&str>) -> Result<Self, PathError> {
        let no_such_path = || PathError::NoSuchPath(path.chars().take(200).collect());
        let (rest, reference) = path.rsplit_once('/').ok_or_else(no_such_path)?;
        let (name, kind) = rest.rsplit_once('/').ok_or_else(no_such_path)?;
        let registry = ns.unwrap_or("localhost");
        Repository::check(registry, name).map_err(PathError::Name)?;
        match kind {
            "blobs" => match reference.parse() {
                Ok(digest) => Ok(Resource::Blob(digest)),
                Err(e) => Err(PathError::Reference(ReferenceError::Digest(e))),
            },
            "manifests" if reference.contains(':') => match reference.parse() {
                Ok(digest) => Ok(Resource::Manifest(ManifestReference::Digest(digest))),
                Err(e) => Err(PathError::Reference(ReferenceError::Digest(e))),
            },
            "manifests" => {
                let repository = Repository::new(registry, name).map_err(PathError::Name)?;
                let tag = TagName::new(repository, reference).map_err(PathError::Reference)?;
                Ok(Resource::Manifest(match ns {
                    Some(_) => ManifestReference::Tag(tag),
                    None => ManifestReference::TagOfNowhere(reference.to_string()),
                }))
            }
            _ => Err(no_such_path()),
        }
    }

    /// The name under which peers are asked for it; none for a tag of nowhere.
    pub fn key(&self) -> Option<Key> {
        match self {
            Resource::Blob(digest) | Resource::Manifest(ManifestReference::Digest(digest)) => {
                Some(Key::Content(digest.clone()))
            }
            Resource::Manifest(ManifestReference::Tag(tag)) => Some(Key::Tag(tag.clone())),
            Resource::Manifest(ManifestReference::TagOfNowhere(_)) => None,
        }
    }
}

/// One byte range as it was asked for (RFC 9110, section 14.1.2). Both ends are inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteRange {
    /// `bytes=first-` or `bytes=first-last`
    From { first: u64, last: Option<u64> },
    /// `bytes=-length`
    Suffix { length: u64 },
}

/// A range of a body whose length is known: bytes `start` up to, without, `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub start: u64,
    pub end: u64,
}

/// The asked range lies beyond the end of the body: 416.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsatisfiable;

impl ByteRange {
    /// Reads a Range header. None where it is to be ignored and the whole body sent: another unit, a syntax error, or
    /// several ranges, which a server may decline (RFC 9110, section 14.2).
    pub fn parse(header: &str) -> Option<Self> {
        let (unit, set) = header.split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (first, last) = set.trim().split_once('-')?;
        match (first, last) {
            ("", length) => Some(ByteRange::Suffix {
                length: digits(length)?,
            }),
            (first, "") => Some(ByteRange::From {
                first: digits(first)?,
                last: None,
            }),
            (first, last) => {
                let (first, last) = (digits(first)?, digits(last)?);
                (first <= last).then_some(ByteRange::From {
                    first,
                    last: Some(last),
                })
            }
        }
    }

    /// The part of a body of `total` bytes that this range asks for.
    pub fn resolve(self, total: u64) -> Result<Span, Unsatisfiable> {
        let (start, end) = match self {
            ByteRange::From { first, last } => (
                first,
                last.map_or(total, |last| last.saturating_add(1).min(total)),
            ),
            ByteRange::Suffix { length } => (total - length.min(total), total),
        };
        if start < end {
            Ok(Span { start, end })
        } else {
            Err(Unsatisfiable)
        }
    }
}

/// As a Range header's value.
impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ByteRange::From { first, last: None } => write!(f, "bytes={first}-"),
            ByteRange::From {
                first,
                last: Some(last),
            } => write!(f, "bytes={first}-{last}"),
            ByteRange::Suffix { length } => write!(f, "bytes=-{length}"),
        }
    }
}

/// Only digits: u64's own parser would take a plus sign. What does not fit lies beyond every end all the same.
fn digits(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

impl Span {
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The value of a Content-Range header for this part of `total` bytes.
    pub fn content_range(&self, total: u64) -> String {
        format!("bytes {}-{}/{total}", self.start, self.end - 1)
    }

    /// Reads `bytes first-last/total`; None for anything else, an unknown total included.
    pub fn parse_content_range(header: &str) -> Option<(Span, u64)> {
        let (range, total) = header.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (start, last, total) = (digits(first)?, digits(last)?, digits(total)?);
        (start <= last && last < total).then(|| {
            let end = last + 1;
            (Span { start, end }, total)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "c3ab8ff13720e8ad9047dd39466b3c8974e592c2fa383d4a3960714caef0c4f2";

    #[test]
    fn paths_are_read_from_their_end_because_names_have_slashes() {
        let digest: Digest = format!("sha256:{HEX}").parse().unwrap();
        let tag = |repository: &str, tag: &str| {
            let (registry, path) = repository.split_once('/').unwrap();
            TagName::new(Repository::new(registry, path).unwrap(), tag).unwrap()
        };
        for (path, ns, expected) in [
            (
                format!("a/b/c/blobs/sha256:{HEX}"),
                None,
                Resource::Blob(digest.clone()),
            ),
            (
                format!("blobs/manifests/blobs/sha256:{HEX}"),
                None,
                Resource::Blob(digest.clone()),
            ),
            (
                format!("a/manifests/sha256:{HEX}"),
                Some("ghcr.io"),
                Resource::Manifest(ManifestReference::Digest(digest.clone())),
            ),
            (
                "library/nginx/manifests/1.27".into(),
                Some("docker.io"),
                Resource::Manifest(ManifestReference::Tag(tag("docker.io/nginx", "1.27"))),
            ),
            (
                "a/manifests/v1".into(),
                Some("10.0.0.1:5000"),
                Resource::Manifest(ManifestReference::Tag(tag("10.0.0.1:5000/a", "v1"))),
            ),
            (
                "a/manifests/v1".into(),
                None,
                Resource::Manifest(ManifestReference::TagOfNowhere("v1".into())),
            ),
        ] {
            assert_eq!(Resource::parse(&path, ns), Ok(expected), "{path} {ns:?}");
        }
    }

    #[test]
    fn other_paths_say_what_is_wrong() {
        let wrong = |path: &str, ns| Resource::parse(path, ns).unwrap_err();
        assert!(matches!(wrong("", None), PathError::NoSuchPath(_)));
        assert!(matches!(wrong("_catalog", None), PathError::NoSuchPath(_)));
        assert!(matches!(
            wrong("a/tags/list", None),
            PathError::NoSuchPath(_)
        ));
        assert!(matches!(wrong("a/b/", None), PathError::NoSuchPath(_)));
        assert!(matches!(wrong("A/manifests/x", None), PathError::Name(_)));
        assert!(matches!(wrong("/manifests/x", None), PathError::Name(_)));
        assert!(matches!(
            wrong("../a/manifests/x", None),
            PathError::Name(_)
        ));
        assert!(matches!(
            wrong("a/manifests/x", Some("no host")),
            PathError::Name(_)
        ));
        assert!(matches!(
            wrong("a/manifests/-x", None),
            PathError::Reference(_)
        ));
        assert!(matches!(
            wrong("a/manifests/sha256:1", None),
            PathError::Reference(_)
        ));
        assert!(matches!(
            wrong("a/blobs/latest", None),
            PathError::Reference(_)
        ));
        assert!(matches!(
            wrong("a/blobs/sha256:../../etc/passwd", None),
            PathError::Name(_)
        ));
    }

    #[test]
    fn a_flight_survives_being_written() {
        for flight in [Flight::Waiting, Flight::Absent] {
            assert_eq!(Flight::parse(flight.as_str()), Some(flight));
        }
        assert_eq!(Flight::parse("landed"), None);
    }

    #[test]
    fn a_range_is_satisfied_refused_or_ignored() {
        let span = |start, end| Some(Ok(Span { start, end }));
        for (header, expected) in [
            ("bytes=0-", span(0, 10)),
            ("bytes=3-", span(3, 10)),
            ("bytes=3-3", span(3, 4)),
            ("bytes=3-99", span(3, 10)),
            ("bytes=3-18446744073709551615", span(3, 10)),
            ("Bytes = 0-0", span(0, 1)),
            ("bytes=-4", span(6, 10)),
            ("bytes=-99", span(0, 10)),
            ("bytes=10-", Some(Err(Unsatisfiable))),
            ("bytes=99999999999999999999999-", Some(Err(Unsatisfiable))),
            ("bytes=-0", Some(Err(Unsatisfiable))),
            ("bytes=5-4", None),
            ("bytes=-", None),
            ("bytes=+1-", None),
            ("bytes=a-b", None),
            ("bytes=0-1,3-4", None),
            ("lines=0-1", None),
            ("bytes", None),
        ] {
            let resolved = ByteRange::parse(header).map(|range| range.resolve(10));
            assert_eq!(resolved, expected, "{header}");
        }
        assert_eq!(
            ByteRange::parse("bytes=0-").unwrap().resolve(0),
            Err(Unsatisfiable)
        );
    }

    #[test]
    fn a_range_and_its_answer_survive_being_written() {
        for header in ["bytes=3-", "bytes=3-9", "bytes=-7"] {
            assert_eq!(ByteRange::parse(header).unwrap().to_string(), header);
        }
        let span = Span { start: 3, end: 9 };
        assert_eq!(span.content_range(10), "bytes 3-8/10");
        assert_eq!(Span::parse_content_range("bytes 3-8/10"), Some((span, 10)));
        for wrong in [
            "bytes 3-8/*",
            "bytes 3-10/10",
            "bytes 0-18446744073709551615/10",
            "bytes 8-3/10",
            "bytes */10",
            "3-8/10",
        ] {
            assert_eq!(Span::parse_content_range(wrong), None, "{wrong}");
        }
    }
}
