//! What a manifest or an index lists.

use std::collections::HashSet;

use serde::Deserialize;

use super::Digest;
use super::media_type::of_manifest;

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

/// A manifest or an index as whoever pulls it reads it.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    pub media_type: String,
    /// Of an index.
    pub manifests: Vec<Listing>,
    /// Of an image.
    pub config: Option<Descriptor>,
    pub layers: Vec<Descriptor>,
}

/// A part, by its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub digest: Digest,
    /// Length in bytes, as whoever made the image says.
    pub size: u64,
    pub media_type: String,
}

/// An image in an index, and what it runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    pub descriptor: Descriptor,
    pub os: String,
    pub architecture: String,
    pub variant: Option<String>,
}

impl Contents {
    /// None where the bytes are neither. Parts whose digest is of an algorithm that is not known are passed over.
    pub fn of(manifest: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Manifest {
            #[serde(default)]
            manifests: Vec<Part>,
            config: Option<Part>,
            #[serde(default)]
            layers: Vec<Part>,
        }
        #[derive(Deserialize)]
        struct Part {
            digest: String,
            #[serde(default)]
            size: u64,
            #[serde(default, rename = "mediaType")]
            media_type: String,
            #[serde(default)]
            platform: Platform,
        }
        #[derive(Default, Deserialize)]
        struct Platform {
            #[serde(default)]
            os: String,
            #[serde(default)]
            architecture: String,
            variant: Option<String>,
        }
        let media_type = of_manifest(manifest)?;
        let manifest: Manifest = serde_json::from_slice(manifest).ok()?;
        let part = |part: Part| {
            let descriptor = Descriptor {
                digest: part.digest.parse().ok()?,
                size: part.size,
                media_type: part.media_type,
            };
            Some((descriptor, part.platform))
        };
        let alone = |it: Part| part(it).map(|(descriptor, _)| descriptor);
        Some(Self {
            media_type,
            manifests: manifest
                .manifests
                .into_iter()
                .filter_map(part)
                .map(|(descriptor, platform)| Listing {
                    descriptor,
                    os: platform.os,
                    architecture: platform.architecture,
                    variant: platform.variant,
                })
                .collect(),
            config: manifest.config.and_then(alone),
            layers: manifest.layers.into_iter().filter_map(alone).collect(),
        })
    }
}

impl Listing {
    /// `linux/arm64/v8`.
    pub fn platform(&self) -> String {
        let variant = self.variant.as_ref().map(|variant| format!("/{variant}"));
        format!(
            "{}/{}{}",
            self.os,
            self.architecture,
            variant.unwrap_or_default()
        )
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
