//! Who says what a tag stands for: the cluster, or the registry.
//!
//! To resolve a tag containerd asks the hosts that have both `pull` and `resolve`, in the order of the file; to fetch by
//! digest it asks all that have `pull`. So content can come from us first and tags from the registry, if the file lists us
//! twice, under two spellings of one address, with the registry in between.

use std::fmt;
use std::str::FromStr;

use super::{Mistake, Registry};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TagResolution {
    /// What any node holds under a tag is what the tag stands for.
    #[default]
    ClusterFirst,
    /// The registry says it, and the cluster while the registry does not answer.
    UpstreamFirst,
    /// The registry says it, or nobody does.
    UpstreamOnly,
}

impl TagResolution {
    /// Whether containerd can be told so for these registries.
    pub fn check(self, registries: &[Registry]) -> Result<(), Mistake> {
        if self == TagResolution::UpstreamFirst && registries.contains(&Registry::Every) {
            return Err(Mistake::new(
                &self.to_string(),
                "needs each registry's own address in its hosts.toml, and the wildcard's file has none",
                "name the registries, such as --mirrored-registries https://docker.io https://ghcr.io, or choose \
                 cluster-first or upstream-only",
            ));
        }
        Ok(())
    }
}

impl FromStr for TagResolution {
    type Err = Mistake;

    fn from_str(text: &str) -> Result<Self, Mistake> {
        use TagResolution::{ClusterFirst, UpstreamFirst, UpstreamOnly};
        let all = [ClusterFirst, UpstreamFirst, UpstreamOnly];
        all.into_iter()
            .find(|policy| policy.to_string() == text)
            .ok_or_else(|| {
                Mistake::new(
                    text,
                    "is no way to resolve tags",
                    "write cluster-first, upstream-first or upstream-only",
                )
            })
    }
}

impl fmt::Display for TagResolution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TagResolution::ClusterFirst => "cluster-first",
            TagResolution::UpstreamFirst => "upstream-first",
            TagResolution::UpstreamOnly => "upstream-only",
        })
    }
}
