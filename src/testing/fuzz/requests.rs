//! What containerd, peers and strangers ask for.

use super::lines;
use crate::oci::distribution::{ByteRange, ManifestReference, Resource, Span, Unsatisfiable};
use crate::oci::{Digest, ImageName, Key, Repository, TagName};

const HEX: &str = "c3ab8ff13720e8ad9047dd39466b3c8974e592c2fa383d4a3960714caef0c4f2";

pub const PATH_WORDS: &[&str] = &[
    "/manifests/",
    "/blobs/",
    "sha256:",
    "sha512:",
    HEX,
    "docker.io",
    "library/",
    "localhost:5000",
    "[::1]:5000",
    "..",
    "%2F",
    "__",
];

/// What follows `/v2/`, and, in a second line, whose it is.
pub fn path(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let (path, ns) = lines(text);
    let ns = (!ns.is_empty()).then_some(ns);
    let Ok(resource) = Resource::parse(path, ns) else {
        return;
    };
    // Paths of files and keys of the cluster are made from these.
    let told = match &resource {
        Resource::Blob(digest) | Resource::Manifest(ManifestReference::Digest(digest)) => {
            is_sound(digest);
            digest.to_string()
        }
        Resource::Manifest(ManifestReference::Tag(tag)) => {
            assert!(ns.is_some());
            is_plain(&tag.to_string());
            let repository = tag.repository();
            let again = format!("{}/manifests/{}", repository.path(), tag.tag());
            let again = Resource::parse(&again, Some(repository.registry()));
            assert_eq!(again.as_ref(), Ok(&resource), "written and read again");
            tag.tag().to_string()
        }
        Resource::Manifest(ManifestReference::TagOfNowhere(tag)) => {
            assert!(ns.is_none());
            is_plain(tag);
            assert_eq!(resource.key(), None);
            tag.clone()
        }
    };
    let (_, asked) = path.rsplit_once('/').expect("it was read");
    assert_eq!(told, asked, "what is looked for is what was asked for");
}

/// It becomes two parts of a path below the content directory.
fn is_sound(digest: &Digest) {
    let length = match digest.algorithm() {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        other => panic!("{other}"),
    };
    let is_lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    assert!(digest.hex().bytes().all(is_lower_hex), "{digest}");
    assert_eq!(digest.hex().len(), length, "{digest}");
    assert_eq!(digest.to_string().parse().as_ref(), Ok(digest));
}

/// Nothing that a path, a header or a line of the log would take for an end.
fn is_plain(text: &str) {
    let is_path = text.split('/').all(|part| !matches!(part, "" | "." | ".."));
    let is_word = text.bytes().all(|b| b.is_ascii_graphic());
    assert!(is_path && is_word, "{text:?}");
}

pub const RANGE_WORDS: &[&str] = &[
    "bytes=",
    "bytes ",
    "0-",
    "-1",
    "0-0",
    "18446744073709551615",
    "18446744073709551616",
    ",",
    "/*",
    "Bytes",
];

/// A length, and a header for a body of it.
pub fn range(bytes: &[u8]) {
    let Some((length, header)) = bytes.split_first_chunk::<8>() else {
        return;
    };
    let total = u64::from_be_bytes(*length);
    let Ok(header) = std::str::from_utf8(header) else {
        return;
    };
    let is_told = |span: Span, of: u64| {
        let again = span.content_range(of);
        assert_eq!(Span::parse_content_range(&again), Some((span, of)));
    };
    if let Some((span, of)) = Span::parse_content_range(header) {
        assert!(span.start < span.end && span.end <= of, "{header}");
        is_told(span, of);
    }
    let Some(range) = ByteRange::parse(header) else {
        return;
    };
    assert_eq!(ByteRange::parse(&range.to_string()), Some(range));
    // As RFC 9110, section 14.1.2 says it, in wider numbers.
    let all = u128::from(total);
    let (start, end) = match range {
        ByteRange::From { first, last } => (
            u128::from(first),
            last.map_or(all, |last| u128::from(last) + 1).min(all),
        ),
        ByteRange::Suffix { length } => (all.saturating_sub(length.into()), all),
    };
    match range.resolve(total) {
        Ok(span) => {
            let found = (u128::from(span.start), u128::from(span.end));
            assert_eq!(found, (start, end), "{header} of {total}");
            assert!(span.start < span.end && span.end <= total, "{header}");
            is_told(span, total);
        }
        Err(Unsatisfiable) => assert!(start >= end, "{header} of {total}"),
    }
}

pub const REFERENCE_WORDS: &[&str] = &[
    "docker.io/",
    "index.docker.io/",
    "library/",
    "localhost/",
    "registry.test:5000/",
    "[2001:db8::7]:5000/",
    ":latest",
    "@sha256:",
    HEX,
    "__",
    "..",
    "--",
];

/// A name as containerd's image store has it.
pub fn reference(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(digest) = text.parse::<Digest>() {
        is_sound(&digest);
    }
    let Ok(name) = text.parse::<ImageName>() else {
        return;
    };
    let ImageName {
        repository,
        tag,
        digest,
    } = &name;
    let again = Repository::new(repository.registry(), repository.path());
    assert_eq!(
        again.as_ref(),
        Ok(repository),
        "what is written out stays so"
    );
    is_plain(&repository.to_string());
    let mut written = repository.to_string();
    if let Some(tag) = tag {
        assert_eq!(tag.repository(), repository);
        is_plain(tag.tag());
        let same = TagName::new(repository.clone(), tag.tag());
        assert_eq!(same.as_ref(), Ok(tag));
        // What it is found under in the cluster.
        written = Key::Tag(tag.clone()).to_string();
    }
    if let Some(digest) = digest {
        is_sound(digest);
        written = format!("{written}@{digest}");
    }
    assert_eq!(
        written.parse::<ImageName>().as_ref(),
        Ok(&name),
        "{written}"
    );
}
