//! What a manifest or an index lists.

use std::collections::HashSet;

use serde::Deserialize;

use super::Digest;

/// No more of each kind of manifest than the digests: what else is in it is others' concern, or of a later version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// Of an index: one for each platform, say.
    pub manifests: HashSet<Digest>,
    /// Of an image: its configuration and its layers.
    pub blobs: HashSet<Digest>,
}

impl Listed {
    /// Nothing, where the bytes are no manifest. Digests of algorithms that are not known are passed over.
    pub fn by(manifest: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Manifest {
            #[serde(default)]
            manifests: Vec<Descriptor>,
            config: Option<Descriptor>,
            #[serde(default)]
            layers: Vec<Descriptor>,
        }
        #[derive(Deserialize)]
        struct Descriptor {
            digest: String,
        }
        let Ok(manifest) = serde_json::from_slice::<Manifest>(manifest) else {
            return Self::default();
        };
        let digests = |descriptors: Vec<Descriptor>| {
            let digests = descriptors.into_iter();
            digests
                .filter_map(|d| d.digest.parse().ok())
                .collect::<HashSet<Digest>>()
        };
        let mut blobs = manifest.layers;
        blobs.extend(manifest.config);
        Self {
            manifests: digests(manifest.manifests),
            blobs: digests(blobs),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_lists_manifests_and_an_image_its_configuration_and_layers() {
        let [a, b, c] = ["a", "b", "c"].map(|text| Digest::sha256(text.as_bytes()));
        let set = |digests: &[&Digest]| digests.iter().copied().cloned().collect();
        for (json, manifests, blobs) in [
            (
                format!(r#"{{"manifests":[{{"digest":"{a}"}},{{"digest":"{b}","size":-1}}]}}"#),
                set(&[&a, &b]),
                set(&[]),
            ),
            (
                format!(
                    r#"{{"config":{{"digest":"{a}"}},"layers":[{{"digest":"{b}"}},{{"digest":"{c}"}},{{"digest":"{b}"}}]}}"#
                ),
                set(&[]),
                set(&[&a, &b, &c]),
            ),
            (
                format!(r#"{{"layers":[{{"digest":"md5:0"}},{{"digest":"{c}"}}]}}"#),
                set(&[]),
                set(&[&c]),
            ),
            ("{}".to_string(), set(&[]), set(&[])),
            ("[".to_string(), set(&[]), set(&[])),
        ] {
            let listed = Listed::by(json.as_bytes());

            assert_eq!(listed, Listed { manifests, blobs }, "{json}");
        }
    }
}
