//! What is read on this node's disk, and others have written.

use serde_json::json;

use super::lines;
use crate::content::layout::index::{Tags, tags};
use crate::content::skipped::Skipped;
use crate::inflight::ingest::is_of;
use crate::oci::Digest;

const OTHER: &str = "sha256:c3ab8ff13720e8ad9047dd39466b3c8974e592c2fa383d4a3960714caef0c4f2";

pub const REF_WORDS: &[&str] = &[
    "k8s.io",
    "/1/",
    "layer-",
    "manifest-",
    "app:v1@",
    OTHER,
    "sha256:",
    "moby",
];

/// A line that is a containerd's `ref` file, and one that is a namespace. Only what is written for this digest, in this
/// namespace, may be taken for it: its bytes are sent to peers.
pub fn ingest_ref(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let (reference, namespace) = lines(text);
    let digest = Digest::sha256(bytes);
    let other: Digest = OTHER.parse().expect("a digest");
    if is_of(reference, namespace, &other) {
        assert!(reference.ends_with(OTHER), "{reference:?}");
        let rest = reference.strip_prefix(namespace);
        assert!(
            rest.is_some_and(|rest| rest.starts_with('/')),
            "{reference:?}"
        );
        assert!(!is_of(reference, namespace, &digest), "{reference:?}");
        assert!(!is_of(&format!("{reference}0"), namespace, &other));
        assert!(!is_of(&format!("x{reference}"), namespace, &other));
    }
    // What containerd writes itself is always found, in its namespace and for its digest alone.
    for before in ["layer-", "config-", "manifest-", "index-", "app:v1@"] {
        let written = format!("{namespace}/1/{before}{digest}");
        assert!(is_of(&written, namespace, &digest), "{written:?}");
        assert!(!is_of(&written, namespace, &other), "{written:?}");
        let elsewhere = format!("{namespace}x");
        assert!(!is_of(&written, &elsewhere, &digest), "{written:?}");
    }
}

pub const INDEX_WORDS: &[&str] = &[
    "{\"manifests\":[",
    "{\"digest\":\"",
    OTHER,
    "\"annotations\":{",
    "\"io.containerd.image.name\":\"",
    "\"org.opencontainers.image.ref.name\":\"",
    "docker.io/library/nginx:1.29",
    "registry.test:5000/app:v1",
    "null",
];

/// An `index.json`: each name that is told leads to a digest that stands there, and written out it is read the same.
pub fn layout_index(bytes: &[u8]) {
    let Ok(found) = tags(bytes, &Skipped::default()) else {
        return;
    };
    let text = String::from_utf8_lossy(bytes);
    // Escapes may stand for letters.
    let is_plain = !text.contains('\\');
    for (tag, digest) in &found {
        assert!(!is_plain || text.contains(digest.as_str()), "{digest}");
        assert!(!is_plain || text.contains(tag.tag()), "{tag}");
    }
    let manifests = found.iter().map(|(tag, digest)| {
        let name = json!({"io.containerd.image.name": tag.to_string()});
        json!({"digest": digest.as_str(), "annotations": name})
    });
    let again = json!({"manifests": manifests.collect::<Vec<_>>()}).to_string();
    let again: Tags = tags(again.as_bytes(), &Skipped::default()).expect("an index");
    assert_eq!(again, found);
}
