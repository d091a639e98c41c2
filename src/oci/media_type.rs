//! What a manifest is, told from its own bytes.
//!
//! A media type decides which header a manifest is sent with, never whether bytes are served.

use serde::Deserialize;

pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const DOCKER_SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+json";
/// What a blob is sent as: its real type stands in the manifest that names it.
pub const OCTET_STREAM: &str = "application/octet-stream";

/// The media type of a manifest or index: the one that it states, else the one that its fields imply (`mediaType` is
/// optional in the OCI image spec). None for what is neither, an image's configuration for example.
pub fn of_manifest(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        media_type: Option<String>,
        schema_version: Option<u64>,
        manifests: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
        config: Option<serde::de::IgnoredAny>,
        fs_layers: Option<serde::de::IgnoredAny>,
    }
    let shape: Shape = serde_json::from_slice(bytes).ok()?;
    let implied = if shape.manifests.is_some() {
        OCI_INDEX
    } else if shape.layers.is_some() || shape.config.is_some() && shape.schema_version == Some(2) {
        OCI_MANIFEST
    } else if shape.fs_layers.is_some() {
        DOCKER_SCHEMA_1
    } else {
        return None;
    };
    // It becomes a header: a stated type that could not be one is not believed.
    let stated = shape.media_type.filter(|stated| {
        stated.len() <= 255 && !stated.is_empty() && stated.bytes().all(|b| b.is_ascii_graphic())
    });
    Some(stated.unwrap_or_else(|| implied.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_known_by_what_it_states_or_else_by_its_fields() {
        for (json, expected) in [
            (r#"{"schemaVersion":2,"manifests":[]}"#, Some(OCI_INDEX)),
            (
                r#"{"schemaVersion":2,"config":{},"layers":[]}"#,
                Some(OCI_MANIFEST),
            ),
            (
                r#"{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{},"layers":[]}"#,
                Some("application/vnd.docker.distribution.manifest.v2+json"),
            ),
            (
                r#"{"schemaVersion":1,"fsLayers":[]}"#,
                Some(DOCKER_SCHEMA_1),
            ),
            (
                r#"{"mediaType":"a\r\nb: c","manifests":[]}"#,
                Some(OCI_INDEX),
            ),
            // An image configuration has a `config` as well.
            (
                r#"{"architecture":"amd64","config":{"Cmd":["sh"]},"rootfs":{}}"#,
                None,
            ),
            ("", None),
            ("[1,2]", None),
        ] {
            assert_eq!(of_manifest(json.as_bytes()).as_deref(), expected, "{json}");
        }
    }
}
