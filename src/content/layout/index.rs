//! `index.json`: which names stand for which digests. Pure.

use std::collections::HashMap;

use serde::Deserialize;

use crate::content::skipped::Skipped;
use crate::oci::{Digest, ImageName, TagName};

pub(crate) type Tags = HashMap<TagName, Digest>;

/// Which annotations may hold a full name, the better first: containerd's own, which `ctr images export` and BuildKit
/// write, and that of the image spec, which is a bare tag as often as a full name.
const NAMES: [&str; 2] = [
    "io.containerd.image.name",
    "org.opencontainers.image.ref.name",
];

/// No more of a descriptor than is needed: what else is in it may be of a later version.
#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Marker {
    image_layout_version: String,
}

pub(super) fn layout_version(json: &[u8]) -> Option<String> {
    let marker: Marker = serde_json::from_slice(json).ok()?;
    Some(marker.image_layout_version)
}

/// The names of the index's own entries, as containerd reads them when it imports: what an index further down calls its
/// parts is not looked at. Of two entries with one name the later counts.
pub(crate) fn tags(json: &[u8], skipped: &Skipped) -> Result<Tags, serde_json::Error> {
    let index: Index = serde_json::from_slice(json)?;
    let named = index.manifests.iter().filter_map(|entry| {
        let annotations = entry.annotations.as_ref()?;
        let names = NAMES.iter().filter_map(|name| annotations.get(*name));
        let tag = tag_of(names, skipped)?;
        match entry.digest.parse() {
            Ok(digest) => Some((tag, digest)),
            Err(e) => {
                skipped.say(&tag.to_string(), &format!("{e}"));
                None
            }
        }
    });
    Ok(named.collect())
}

/// The first of an image's names that is one for the whole cluster.
fn tag_of<'a>(names: impl Iterator<Item = &'a String>, skipped: &Skipped) -> Option<TagName> {
    let mut refused = None;
    for name in names {
        let reason = match name.parse::<ImageName>() {
            // `repository@digest`: asked for by its digest alone.
            Ok(ImageName {
                digest: Some(_), ..
            }) => continue,
            Ok(ImageName { tag: Some(tag), .. }) => return Some(tag),
            Ok(ImageName { tag: None, .. }) => "has no tag".to_string(),
            Err(e) => e.to_string(),
        };
        refused.get_or_insert((name, reason));
    }
    if let Some((name, reason)) = refused {
        let cure = "annotate it as registry/repository:tag";
        skipped.say(name, &format!("{reason}: {cure}"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "c3ab8ff13720e8ad9047dd39466b3c8974e592c2fa383d4a3960714caef0c4f2";

    #[test]
    fn only_full_names_are_tags() {
        let pinned = format!("r.test/a:v1@sha256:{HEX}");
        // containerd's annotation, the image spec's, the tag that it is, whether something is logged
        for (containerd, spec, tag, logged) in [
            (
                "docker.io/library/nginx:1",
                "",
                "docker.io/library/nginx:1",
                false,
            ),
            (
                "",
                "docker.io/library/nginx:1",
                "docker.io/library/nginx:1",
                false,
            ),
            // As `ctr images export` writes it.
            ("r.test/a:v1", "v1", "r.test/a:v1", false),
            ("r.test/a:v1", "r.test/b:v2", "r.test/a:v1", false),
            ("v1", "r.test:5000/b/c:v2", "r.test:5000/b/c:v2", false),
            // Somebody typed it, and it is clear what is meant.
            ("", "docker.io/nginx:1", "docker.io/library/nginx:1", false),
            ("", "v1", "", true),
            ("", "app:v1", "", true),
            ("", "r.test/a", "", true),
            ("", "no name", "", true),
            (&pinned, "", "", false),
            ("", "", "", false),
        ] {
            let mut annotations = serde_json::Map::new();
            for (key, value) in NAMES.iter().zip([containerd, spec]) {
                if !value.is_empty() {
                    annotations.insert(key.to_string(), value.into());
                }
            }
            let entry =
                serde_json::json!({"digest": format!("sha256:{HEX}"), "annotations": annotations});
            let json = serde_json::json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
            let skipped = Skipped::default();

            let tags = tags(json.as_bytes(), &skipped).unwrap();

            let found = tags.keys().next().map(ToString::to_string);
            assert_eq!(found.unwrap_or_default(), tag, "{json}");
            assert_eq!(skipped.said() == 1, logged, "{json}");
        }
    }

    #[test]
    fn what_is_no_whole_index_is_an_error_and_not_an_empty_one() {
        let whole = r#"{"schemaVersion":2,"manifests":[]}"#;
        assert!(
            tags(whole.as_bytes(), &Skipped::default())
                .unwrap()
                .is_empty()
        );
        for end in 0..whole.len() {
            let half = &whole.as_bytes()[..end];
            assert!(tags(half, &Skipped::default()).is_err(), "{end}");
        }
        assert!(tags(b"{}", &Skipped::default()).is_err());
    }

    #[test]
    fn entries_without_annotations_or_with_a_strange_digest_are_no_obstacle() {
        let json = format!(
            r#"{{"manifests":[
                {{"digest":"sha256:{HEX}"}},
                {{"digest":"sha256:{HEX}","annotations":null}},
                {{"digest":"md5:00","annotations":{{"io.containerd.image.name":"r.test/a:v1"}}}},
                {{"digest":"sha256:{HEX}","size":-1,"annotations":{{"io.containerd.image.name":"r.test/b:v1"}}}}
            ]}}"#
        );
        let tags = tags(json.as_bytes(), &Skipped::default()).unwrap();

        let tags: Vec<_> = tags.keys().map(ToString::to_string).collect();
        assert_eq!(tags, ["r.test/b:v1"]);
    }
}
