//! What an operator keeps out of the cluster: registries that are not listed, and references that a pattern matches.
//!
//! A reference is `registry/repository:tag` for a tag and `registry/repository@digest` for a manifest or a blob, as
//! it is asked for, and each is judged by itself: a tag can be left out while its content is shared, and a digest that two
//! repositories have is left out of the one and shared as part of the other. So a filter keeps names apart and is no
//! access control: bytes that are shared under one name are not secret under another.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use regex::Regex;

use super::{Digest, Repository, TagName};

#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Hosts; None: every registry.
    registries: Option<HashSet<String>>,
    left_out: Vec<Pattern>,
}

/// Why something is kept out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeftOut {
    #[error("{0} is not among the mirrored registries")]
    NotMirrored(String),
    #[error("{reference} is left out: the registry filter {pattern} matches it")]
    Filtered { reference: String, pattern: Pattern },
}

impl Filter {
    /// `registries` by their hosts, as they stand in images; None: every registry.
    pub fn new(registries: Option<Vec<String>>, left_out: Vec<Pattern>) -> Self {
        let registries = registries.map(|hosts| hosts.iter().map(|host| known_as(host)).collect());
        Self {
            registries,
            left_out,
        }
    }

    /// Whether nothing at all is kept out, whatever it is called.
    pub fn is_open(&self) -> bool {
        self.registries.is_none() && self.left_out.is_empty()
    }

    pub fn tag(&self, tag: &TagName) -> Result<(), LeftOut> {
        self.judge(tag.repository(), || tag.to_string())
    }

    /// A manifest or a blob as a part of `repository`.
    pub fn content(&self, repository: &Repository, digest: &Digest) -> Result<(), LeftOut> {
        self.judge(repository, || format!("{repository}@{digest}"))
    }

    fn judge(
        &self,
        repository: &Repository,
        reference: impl FnOnce() -> String,
    ) -> Result<(), LeftOut> {
        let registry = repository.registry();
        if let Some(registries) = &self.registries
            && !registries.contains(registry)
        {
            return Err(LeftOut::NotMirrored(registry.to_string()));
        }
        if self.left_out.is_empty() {
            return Ok(());
        }
        let reference = reference();
        match self.left_out.iter().find(|p| p.0.is_match(&reference)) {
            None => Ok(()),
            Some(pattern) => Err(LeftOut::Filtered {
                pattern: pattern.clone(),
                reference,
            }),
        }
    }
}

/// The name that references have for a registry: Docker Hub has two.
fn known_as(host: &str) -> String {
    // Any repository does.
    match Repository::new(host, "a") {
        Ok(repository) => repository.registry().to_string(),
        Err(_) => host.to_string(),
    }
}

/// A regular expression that may match anywhere in a reference. Its syntax is that of the regex crate, which is RE2's and
/// Go's in all that references need: no look-around, no back-references, time linear in the reference's length.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

/// Why a text is no pattern, in a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no regular expression ({0})")]
pub struct PatternError(String);

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        Regex::new(text).map(Self).map_err(|e| {
            // A drawing of the place comes first.
            let said = e.to_string();
            let last = said.lines().next_back().unwrap_or_default();
            PatternError(last.trim_start_matches("error: ").to_string())
        })
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Pattern {}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::ImageName;

    const HEX: &str = "c3ab8ff13720e8ad9047dd39466b3c8974e592c2fa383d4a3960714caef0c4f2";

    fn filter(registries: &[&str], patterns: &[&str]) -> Filter {
        let hosts = || registries.iter().map(|host| host.to_string()).collect();
        let patterns = patterns.iter().map(|text| text.parse().expect(text));
        Filter::new((!registries.is_empty()).then(hosts), patterns.collect())
    }

    fn judged(filter: &Filter, reference: &str) -> Result<(), LeftOut> {
        let name: ImageName = reference.parse().expect(reference);
        match (name.tag, name.digest) {
            (_, Some(digest)) => filter.content(&name.repository, &digest),
            (Some(tag), None) => filter.tag(&tag),
            (None, None) => panic!("{reference}"),
        }
    }

    #[test]
    fn a_reference_is_left_out_by_any_pattern_that_matches_anywhere_in_it() {
        let digest = format!("@sha256:{HEX}");
        let pinned = format!("@sha256:{HEX}$");
        for (registries, patterns, name, shared) in [
            (&[][..], &[][..], "a.test/app:v1", true),
            (&[], &[r":latest$"], "a.test/app:latest", false),
            (&[], &[r":latest$"], "a.test/app:latest2", true),
            // Its content has no tag in its name.
            (&[], &[r":latest$"], &format!("a.test/app{digest}"), true),
            (&[], &["^a\\.test/secret/"], "a.test/secret/app:v1", false),
            (
                &[],
                &["^a\\.test/secret/"],
                &format!("a.test/secret/app{digest}"),
                false,
            ),
            (
                &[],
                &["^a\\.test/secret/"],
                &format!("b.test/secret/app{digest}"),
                true,
            ),
            (&[], &["secret", "other"], "a.test/my-secrets:v1", false),
            (&[], &["none", "other"], "a.test/other:v1", false),
            (
                &[],
                &[pinned.as_str()],
                &format!("a.test/app{digest}"),
                false,
            ),
            (&[], &[pinned.as_str()], "a.test/app:v1", true),
            // Written out in full, however it was typed.
            (
                &[],
                &["^docker.io/library/nginx:"],
                "docker.io/nginx:1.27",
                false,
            ),
            (&["a.test", "b.test:5000"], &[], "a.test/app:v1", true),
            (&["a.test", "b.test:5000"], &[], "b.test:5000/app:v1", true),
            (&["a.test", "b.test:5000"], &[], "b.test/app:v1", false),
            (&["a.test"], &["secret"], "a.test/app:v1", true),
            (&["a.test"], &["secret"], "a.test/secret:v1", false),
            (&["index.docker.io"], &[], "docker.io/library/nginx:1", true),
        ] {
            let filter = filter(registries, patterns);

            let found = judged(&filter, name);

            assert_eq!(found.is_ok(), shared, "{registries:?} {patterns:?} {name}");
            assert!(!filter.is_open() || shared);
        }
    }

    #[test]
    fn what_is_kept_out_is_told_why() {
        let registries = filter(&["a.test"], &[]);
        let patterns = filter(&[], &["x", "se.ret"]);

        let why = |filter: &Filter| judged(filter, "b.test/secret:v1").unwrap_err().to_string();

        assert_eq!(
            why(&registries),
            "b.test is not among the mirrored registries"
        );
        assert_eq!(
            why(&patterns),
            "b.test/secret:v1 is left out: the registry filter \"se.ret\" matches it"
        );
    }

    #[test]
    fn what_is_no_pattern_is_told_in_a_line() {
        for (text, reason) in [
            ("(", "is no regular expression (unclosed group)"),
            (
                "a{2,1}",
                "is no regular expression (invalid repetition count range",
            ),
            ("(?=a)", "is no regular expression (look-around"),
            (r"(a)\1", "is no regular expression (backreferences"),
            (
                "(\\w{1000}){1000}",
                "is no regular expression (Compiled regex exceeds",
            ),
        ] {
            let said = text.parse::<Pattern>().expect_err(text).to_string();
            assert!(said.starts_with(reason) && !said.contains('\n'), "{said}");
        }
    }
}
