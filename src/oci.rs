//! The vocabulary: what images, tags and digests are called, and how a registry speaks of them.
//!
//! Nothing here does IO, knows the time or waits. Where the oci-spec crate has the type, it is used; what is added is
//! what a mirror needs to be stricter about, because names come from the network and end as paths and DHT keys.

mod digest;
pub mod distribution;
pub mod filter;
pub mod manifest;
pub mod media_type;
mod reference;

use std::fmt;

pub use digest::{Digest, DigestError, Hasher};
pub use reference::{ImageName, ReferenceError, Repository, TagName};

/// A name under which content is looked up in the cluster.
///
/// Its text is what is hashed into the DHT, so it must stay exactly this: `sha256:<hex>` for content,
/// `registry/repository:tag` for a tag.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    Content(Digest),
    Tag(TagName),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Content(digest) => digest.fmt(f),
            Key::Tag(tag) => tag.fmt(f),
        }
    }
}

impl From<Digest> for Key {
    fn from(digest: Digest) -> Self {
        Key::Content(digest)
    }
}

impl From<TagName> for Key {
    fn from(tag: TagName) -> Self {
        Key::Tag(tag)
    }
}
