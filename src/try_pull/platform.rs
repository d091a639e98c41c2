//! Which image of an index is pulled.

use std::fmt;
use std::str::FromStr;

use crate::oci::manifest::Listing;

/// `os/architecture`, with a variant where there is one: `linux/arm64/v8`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no platform")]
pub struct PlatformError;

impl Platform {
    /// This machine's, in the words of the OCI image spec.
    pub fn here() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self {
            os: "linux".to_string(),
            architecture: architecture.to_string(),
            variant: None,
        }
    }

    /// The first that fits. A variant counts only where one was asked for.
    pub(super) fn choose<'a>(&self, manifests: &'a [Listing]) -> Option<&'a Listing> {
        manifests.iter().find(|manifest| {
            manifest.os == self.os
                && manifest.architecture == self.architecture
                && (self.variant.is_none() || self.variant == manifest.variant)
        })
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let word = |text: &str| {
            let is_word = !text.is_empty()
                && text.len() <= 32
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
            is_word.then(|| text.to_string()).ok_or(PlatformError)
        };
        let mut parts = text.splitn(3, '/');
        let (os, architecture) = (parts.next(), parts.next());
        Ok(Self {
            os: word(os.unwrap_or_default())?,
            architecture: word(architecture.unwrap_or_default())?,
            variant: parts.next().map(word).transpose()?,
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::manifest::Contents;

    #[test]
    fn the_first_that_fits_is_chosen() {
        let digest = |n: u8| format!("sha256:{}", format!("{n:02x}").repeat(32));
        let entry = |n, platform: &str| {
            format!(
                r#"{{"digest":"{}","size":1,"platform":{platform}}}"#,
                digest(n)
            )
        };
        let index = format!(
            r#"{{"manifests":[{},{},{},{}]}}"#,
            entry(1, r#"{"os":"unknown","architecture":"unknown"}"#),
            entry(2, r#"{"os":"linux","architecture":"arm","variant":"v6"}"#),
            entry(3, r#"{"os":"linux","architecture":"arm","variant":"v7"}"#),
            entry(4, r#"{"os":"linux","architecture":"amd64"}"#),
        );
        let manifests = Contents::of(index.as_bytes()).unwrap().manifests;
        for (platform, chosen) in [
            ("linux/amd64", Some(4)),
            ("linux/arm", Some(2)),
            ("linux/arm/v7", Some(3)),
            ("linux/arm/v5", None),
            ("windows/amd64", None),
        ] {
            let found = platform.parse::<Platform>().unwrap();
            let found = found
                .choose(&manifests)
                .map(|m| m.descriptor.digest.to_string());
            assert_eq!(found, chosen.map(digest), "{platform}");
        }
        for text in [
            "",
            "linux",
            "linux/",
            "/amd64",
            "linux/a b",
            "linux/arm/v7/x",
        ] {
            assert_eq!(text.parse::<Platform>(), Err(PlatformError), "{text}");
        }
    }
}
