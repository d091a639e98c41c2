//! Which containerd reads the files, by its own word or an operator's.

use std::fmt;
use std::str::FromStr;

use super::Mistake;

/// A containerd's version. Kept as it was written: only its first number is understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    text: String,
    major: u32,
}

impl Version {
    /// containerd 2.x takes one of its few download permits (three by default) for each host that it asks, and gives it
    /// back with every error: a 404 lets other layers ask before the next host of this one is. 1.x gives nothing back
    /// before the layer is there.
    pub(super) fn gives_way(&self) -> bool {
        self.major >= 2
    }
}

impl FromStr for Version {
    type Err = Mistake;

    /// Reads `1.7`, `v2.1.9`, and what builds make of it: `1.6.20~ds1`, `2.1.9+unknown`, `v2.0.5-k3s1`.
    fn from_str(text: &str) -> Result<Self, Mistake> {
        let number = text.strip_prefix('v').unwrap_or(text);
        let (major, rest) = number.split_once('.').unwrap_or((number, "0"));
        let has_minor = rest.starts_with(|c: char| c.is_ascii_digit());
        let is_number = major.bytes().all(|b| b.is_ascii_digit());
        match major.parse() {
            Ok(major) if major > 0 && is_number && has_minor => Ok(Self {
                text: text.to_string(),
                major,
            }),
            _ => Err(Mistake::new(
                text,
                "is no version of containerd",
                "write it as 1.7 or 2.1.9, or auto to have containerd asked",
            )),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_builds_spell_them() {
        for (text, gives_way) in [
            ("1.7", false),
            ("1.6.20~ds1", false),
            ("v1.7.27", false),
            ("2", true),
            ("2.1.9", true),
            ("2.1.9+unknown", true),
            ("v2.0.5-k3s1.32", true),
            ("v2.0.0-rc.1", true),
            ("10.0", true),
        ] {
            let version: Version = text.parse().unwrap_or_else(|e| panic!("{e}"));

            assert_eq!(version.gives_way(), gives_way, "{text}");
            assert_eq!(version.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_version_is_refused() {
        for text in [
            "",
            "v",
            "0.9",
            "+2.1",
            "-1.7",
            "unknown+unknown",
            "2.x",
            "2.",
            "containerd 2.1",
            "99999999999.1",
        ] {
            let mistake = text.parse::<Version>().expect_err(text);
            assert_eq!(mistake.value, text);
        }
    }
}
