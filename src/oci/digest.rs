//! Digests that are safe to turn into a path and possible to check.
//!
//! oci-spec's own type also accepts algorithms that nobody here could verify; containerd knows three.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::DigestAlgorithm;
use sha2::Digest as _;

/// `algorithm:hex`, where the algorithm is one that containerd stores (sha256, sha384 or sha512) and the hex has just
/// the length that goes with it, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Digest(oci_spec::image::Digest);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a digest: {reason}")]
pub struct DigestError {
    text: String,
    reason: String,
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl Digest {
    /// `sha256`, for example.
    pub fn algorithm(&self) -> &str {
        self.0.algorithm().as_ref()
    }

    /// The hexadecimal part.
    pub fn hex(&self) -> &str {
        self.0.digest()
    }

    pub fn as_str(&self) -> &str {
        self.0.as_ref()
    }

    /// The sha256 digest of `bytes`.
    pub fn sha256(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::Sha256(sha2::Sha256::new());
        hasher.update(bytes);
        hasher.finish()
    }

    /// Whether `bytes` are what this digest names.
    pub fn verifies(&self, bytes: &[u8]) -> bool {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.hex().1 == self.hex()
    }

    /// An empty hash of this digest's algorithm.
    pub fn hasher(&self) -> Hasher {
        match self.0.algorithm() {
            DigestAlgorithm::Sha384 => Hasher::Sha384(sha2::Sha384::new()),
            DigestAlgorithm::Sha512 => Hasher::Sha512(sha2::Sha512::new()),
            // `from_str` lets no fourth one in.
            _ => Hasher::Sha256(sha2::Sha256::new()),
        }
    }
}

/// A digest that is being computed.
pub enum Hasher {
    Sha256(sha2::Sha256),
    Sha384(sha2::Sha384),
    Sha512(sha2::Sha512),
}

impl Hasher {
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(h) => h.update(bytes),
            Hasher::Sha384(h) => h.update(bytes),
            Hasher::Sha512(h) => h.update(bytes),
        }
    }

    pub fn finish(self) -> Digest {
        let (algorithm, hex) = self.hex();
        format!("{algorithm}:{hex}")
            .parse()
            .expect("a hash of a known algorithm is a digest")
    }

    /// The two parts of the digest.
    fn hex(self) -> (&'static str, String) {
        match self {
            Hasher::Sha256(h) => ("sha256", hex(&h.finalize())),
            Hasher::Sha384(h) => ("sha384", hex(&h.finalize())),
            Hasher::Sha512(h) => ("sha512", hex(&h.finalize())),
        }
    }
}

/// In lower case. Formatting byte by byte would take several times as long as the hash of a manifest.
fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value)]);
    let mut hex = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        hex.push(digit(byte >> 4));
        hex.push(digit(byte & 15));
    }
    hex
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let error = |reason: String| DigestError {
            text: text.chars().take(100).collect(),
            reason,
        };
        let digest = oci_spec::image::Digest::from_str(text).map_err(|e| error(e.to_string()))?;
        match digest.algorithm() {
            DigestAlgorithm::Sha256 | DigestAlgorithm::Sha384 | DigestAlgorithm::Sha512 => {
                Ok(Digest(digest))
            }
            other => Err(error(format!(
                "algorithm {other} is none of sha256, sha384, sha512"
            ))),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_what_sha256sum_prints() {
        let digest = Digest::sha256(b"foobar");

        assert_eq!(
            digest.as_str(),
            "sha256:c3ab8ff13720e8ad9047dd39466b3c8974e592c2fa383d4a3960714caef0c4f2"
        );
        assert!(digest.verifies(b"foobar"));
        assert!(!digest.verifies(b"foobaz"));
    }

    #[test]
    fn what_could_become_another_path_is_no_digest() {
        let hex = "c3ab8ff13720e8ad9047dd39466b3c8974e592c2fa383d4a3960714caef0c4f2";
        for text in [
            "",
            "sha256",
            "sha256:",
            "sha256:../../etc/passwd",
            "sha256:c3ab",
            &format!("sha256:{hex}0"),
            &format!("sha256:{}", hex.to_uppercase()),
            &format!("../sha256:{hex}"),
            &format!("md5:{}", &hex[..32]),
            &format!("sha512:{hex}"),
            &format!("sha256:{}/", &hex[..63]),
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn all_algorithms_of_containerd_verify_their_own() {
        for hasher in [
            Hasher::Sha256(sha2::Sha256::new()),
            Hasher::Sha384(sha2::Sha384::new()),
            Hasher::Sha512(sha2::Sha512::new()),
        ] {
            let mut hasher = hasher;
            hasher.update(b"bytes");
            assert!(hasher.finish().verifies(b"bytes"));
        }
    }
}
