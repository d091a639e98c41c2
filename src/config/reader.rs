//! Reads values and goes on after a mistake, so that all are reported at once: with flag, variable, value, reason and cure.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::options::{RawConfiguration, RawDirectory, RawRelease};
use super::value::{self, ListenAddr};
use super::{Refusal, USAGE};
use crate::hosts;
use crate::oci::filter::{Pattern, PatternError};
use crate::routing::kad::MAX_ZONE;

/// Why a value cannot be used, and what to write instead.
pub(super) type Refused = (String, String);

pub(super) fn refuse<T>(reason: impl Into<String>, cure: &str) -> Result<T, Refused> {
    Err((reason.into(), cure.to_string()))
}

pub(super) fn listen_addr(text: &str) -> Result<ListenAddr, Refused> {
    text.parse().or_else(|e: value::ListenAddrError| {
        refuse(
            e.to_string(),
            "write it as :5000, 192.0.2.7:5000 or [2001:db8::7]:5000",
        )
    })
}

pub(super) fn duration(text: &str) -> Result<Duration, Refused> {
    value::duration(text).or_else(|reason| refuse(reason, "write it as 20ms, 1.5s or 2m"))
}

pub(super) fn absolute(text: &str) -> Result<PathBuf, Refused> {
    let path = PathBuf::from(text);
    if path.is_absolute() {
        Ok(path)
    } else {
        refuse("is not an absolute path", "begin it with /")
    }
}

/// A host or an address, and the port behind it if there is one: `a.b.`, `a.b:5001`, `192.0.2.7:5001`, `[2001:db8::7]:5001`.
pub(super) fn domain(text: &str) -> Result<(String, Option<u16>), Refused> {
    let cure = "write a name such as peili-bootstrap.peili.svc.cluster.local., with :5001 behind it for another port";
    let (host, port) = match text.rsplit_once(':') {
        // An address of IPv6 without a port.
        _ if text.parse::<IpAddr>().is_ok() => (text, None),
        Some((host, port)) => match port.parse() {
            Ok(0) | Err(_) => return refuse("has a port that is no number up to 65535", cure),
            Ok(port) => (host, Some(port)),
        },
        None => (text, None),
    };
    let host = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host);
    // RFC 1035, 2.3.4. What else is no name the resolver says.
    let is_name = host.parse::<IpAddr>().is_ok()
        || host.trim_end_matches('.').split('.').all(|label| {
            let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            (1..=63).contains(&label.len()) && label.chars().all(good)
        }) && host.len() <= 254;
    match is_name {
        true => Ok((host.to_string(), port)),
        false => refuse("is no domain name", cure),
    }
}

/// A name that peers are told beside other words, which a semicolon parts.
pub(super) fn zone(text: &str) -> Result<String, Refused> {
    let cure = "write a short name, such as eu-west-1a";
    if text.len() > MAX_ZONE {
        return refuse(format!("is longer than {MAX_ZONE} bytes"), cure);
    }
    if text.contains(';') {
        return refuse("has a semicolon in it", cure);
    }
    if text.contains(char::is_control) {
        return refuse("has a control character in it", cure);
    }
    Ok(text.to_string())
}

/// The values of a list. An empty variable is a list of one empty value for clap and of none for us.
pub(super) fn list(raw: &[String]) -> impl Iterator<Item = &str> {
    raw.iter()
        .map(|text| text.trim())
        .filter(|text| !text.is_empty())
}

/// What stands between commas, but for those of a repetition: `a{2,3}` is one expression.
fn parted(text: &str) -> Vec<&str> {
    let is_number = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let (mut parts, mut start) = (Vec::new(), 0);
    for (comma, _) in text.match_indices(',') {
        let from = text[start..comma].rsplit_once('{').map(|(_, from)| from);
        let to = text[comma + 1..].split_once('}').map(|(to, _)| to);
        let is_repetition = from.is_some_and(|from| !from.is_empty() && is_number(from))
            && to.is_some_and(is_number);
        if !is_repetition {
            parts.push(&text[start..comma]);
            start = comma + 1;
        }
    }
    parts.push(&text[start..]);
    parts
}

#[derive(Debug)]
pub(super) struct Mistake {
    pub(super) name: String,
    pub(super) value: String,
    pub(super) reason: String,
    pub(super) cure: String,
}

/// Reads values and goes on after a mistake, so that all are found.
#[derive(Default)]
pub(super) struct Reader {
    pub(super) mistakes: Vec<Mistake>,
}

impl Reader {
    pub(super) fn mistake(
        &mut self,
        flag: &str,
        value: &str,
        reason: impl Into<String>,
        cure: &str,
    ) {
        // Every option's variable is its name in capitals, but for `version`, which is asked by people.
        let variable = flag.to_uppercase().replace('-', "_");
        self.mistakes.push(Mistake {
            name: match flag {
                "format" => format!("--{flag}"),
                _ => format!("--{flag} [{variable}]"),
            },
            value: value.to_string(),
            reason: reason.into(),
            cure: cure.to_string(),
        });
    }

    /// A word of the command line that means nothing.
    pub(super) fn word(&mut self, word: &str, reason: &str, cure: &str) {
        self.mistakes.push(Mistake {
            name: word.to_string(),
            value: String::new(),
            reason: reason.to_string(),
            cure: cure.to_string(),
        });
    }

    pub(super) fn read<T>(
        &mut self,
        flag: &str,
        text: &str,
        read: impl FnOnce(&str) -> Result<T, Refused>,
    ) -> Option<T> {
        match read(text.trim()) {
            Ok(value) => Some(value),
            Err((reason, cure)) => {
                // What nobody has given has a reason of its own.
                let is_empty = text.trim().is_empty() && reason != "is missing";
                let reason = if is_empty { "is empty" } else { &reason };
                self.mistake(flag, text.trim(), reason, &cure);
                None
            }
        }
    }

    /// An empty text is no value. The outer None is a mistake.
    pub(super) fn optional<T>(
        &mut self,
        flag: &str,
        text: &str,
        read: impl FnOnce(&str) -> Result<T, Refused>,
    ) -> Option<Option<T>> {
        if text.trim().is_empty() {
            return Some(None);
        }
        self.read(flag, text, read).map(Some)
    }

    pub(super) fn boolean(&mut self, flag: &str, text: &str) -> Option<bool> {
        self.read(flag, text, |text| match text {
            // What Go's flags take.
            "true" | "True" | "TRUE" | "t" | "T" | "1" => Ok(true),
            "false" | "False" | "FALSE" | "f" | "F" | "0" => Ok(false),
            _ => refuse("is neither true nor false", "write true or false"),
        })
    }

    pub(super) fn listen(&mut self, flag: &str, text: &str) -> Option<ListenAddr> {
        self.read(flag, text, listen_addr)
    }

    pub(super) fn socket(&mut self, text: &str) -> Option<PathBuf> {
        self.read("containerd-sock", text, |text| {
            absolute(text.strip_prefix("unix://").unwrap_or(text))
        })
    }

    /// The addresses in a variable that no option stands for: Kubernetes fills it, parted by commas.
    pub(super) fn variable(&mut self, name: &str, cure: &str) -> Vec<IpAddr> {
        let value = std::env::var(name).unwrap_or_default();
        let mut addresses = Vec::new();
        for text in value.split(',').map(str::trim).filter(|t| !t.is_empty()) {
            match text.parse() {
                Ok(ip) => addresses.push(ip),
                Err(_) => self.mistakes.push(Mistake {
                    name: name.to_string(),
                    value: text.to_string(),
                    reason: "is not an IP address".to_string(),
                    cure: cure.to_string(),
                }),
            }
        }
        addresses
    }

    pub(super) fn directory(&mut self, raw: &RawDirectory) -> Option<PathBuf> {
        let flag = "containerd-registry-config-path";
        self.read(flag, &raw.containerd_registry_config_path, absolute)
    }

    pub(super) fn release(&mut self, raw: &RawRelease) -> Option<hosts::Release> {
        let read = raw.release_name.trim().parse();
        self.hosts("release-name", read.map_err(|mistake| vec![mistake]))
    }

    pub(super) fn registries(&mut self, raw: &[String]) -> Option<Vec<hosts::Registry>> {
        let texts: Vec<_> = list(raw).collect();
        self.hosts("mirrored-registries", hosts::Registry::list(&texts))
    }

    /// Two options for one thing, of which Spegel has one: they may not contradict each other.
    pub(super) fn tag_resolution(
        &mut self,
        raw: &RawConfiguration,
        registries: Option<&[hosts::Registry]>,
    ) -> Option<hosts::TagResolution> {
        use hosts::TagResolution::{ClusterFirst, UpstreamOnly};
        let (flag, text) = ("tag-resolution", raw.tag_resolution.trim());
        let said = match text {
            "" => Some(None),
            text => {
                let said = text.parse().map_err(|mistake| vec![mistake]);
                self.hosts(flag, said).map(Some)
            }
        };
        let asks_cluster = match raw.resolve_tags.trim() {
            "" => Some(None),
            text => self.boolean("resolve-tags", text).map(Some),
        };
        let policy = match (said?, asks_cluster?) {
            (None, None | Some(true)) => ClusterFirst,
            (None, Some(false)) => UpstreamOnly,
            (Some(said), Some(asks_cluster)) if asks_cluster == (said == UpstreamOnly) => {
                let reason = format!("contradicts --resolve-tags={asks_cluster} [RESOLVE_TAGS]");
                let cure =
                    "leave --resolve-tags out: false is upstream-only, and true one of the others";
                self.mistake(flag, text, reason, cure);
                return None;
            }
            (Some(said), _) => said,
        };
        let checked = policy.check(registries?).map_err(|mistake| vec![mistake]);
        self.hosts(flag, checked).map(|()| policy)
    }

    /// Regular expressions, one value each or parted by commas.
    pub(super) fn patterns(&mut self, flag: &str, raw: &[String]) -> Option<Vec<Pattern>> {
        let texts = raw.iter().flat_map(|text| parted(text));
        let texts = texts.map(str::trim).filter(|text| !text.is_empty());
        let cure = "write it as ^ghcr\\.io/team/ or :latest$, and a comma in it as \\x2c";
        let read = |text: &str| {
            text.parse()
                .or_else(|e: PatternError| refuse(e.to_string(), cure))
        };
        let read: Vec<_> = texts.map(|text| self.read(flag, text, read)).collect();
        // All of them are read before the first mistake counts.
        read.into_iter().collect()
    }

    pub(super) fn hosts<T>(
        &mut self,
        flag: &str,
        read: Result<T, Vec<hosts::Mistake>>,
    ) -> Option<T> {
        match read {
            Ok(value) => Some(value),
            Err(mistakes) => {
                for hosts::Mistake {
                    value,
                    reason,
                    cure,
                } in mistakes
                {
                    self.mistake(flag, &value, reason, &cure);
                }
                None
            }
        }
    }

    pub(super) fn refusal(self) -> Refusal {
        let mut text = match self.mistakes.len() {
            1 => "peili: one value cannot be used\n".to_string(),
            n => format!("peili: {n} values cannot be used\n"),
        };
        for Mistake {
            name,
            value,
            reason,
            cure,
        } in self.mistakes
        {
            let value = match value.as_str() {
                "" => String::new(),
                value => format!(" {value:?}"),
            };
            text += &format!("  {name}{value} {reason}: {cure}\n");
        }
        text += "See peili <command> --help.\n";
        Refusal { text, code: USAGE }
    }
}
