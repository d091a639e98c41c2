//! The proofs that go with HTTP: of a request to a peer's registry, and of the answer to a tag.
//!
//! ```text
//! X-Peili-Member: v=1; t=<seconds since 1970>; n=<nonce>; p=<proof>      in a request
//! X-Peili-Member-Tag: v=1; p=<proof>                                     in the answer to a tag
//! ```
//!
//! Nonce and proof are hexadecimal. Parameters that are not known are passed over, and so is a header of another version,
//! beside which one of this version may stand: so a later release can say more to those who understand it.
//!
//! A request's proof is good for whom it was made for and for [`SKEW`]; it may be sent a second time by whoever has seen
//! it, and brings him once more what he has seen.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Claim, Members, Proof};

/// Of a request.
pub const HEADER: &str = "x-peili-member";
/// Comes with the answer to a tag.
pub const TAG_PROOF: &str = "x-peili-member-tag";
/// Comes with the 404 of whoever takes a peer for a stranger, and says why.
pub const REFUSED: &str = "x-peili-member-refused";

/// By how much the clocks of two nodes may differ. Kubernetes' own certificates and tokens suffer earlier.
const SKEW: Duration = Duration::from_secs(300);
/// In characters. Ours have 32: 128 random bits.
const NONCE: std::ops::RangeInclusive<usize> = 16..=64;
const VERSION: &str = "1";
const REQUEST: &str = "peili member request 1";
const TAG: &str = "peili member tag 1";

/// What is asked, as asker and asked see it alike.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The name by which the asker knows whom he asks. His address may be another on the way, his name is not.
    pub to: &'a str,
    pub method: &'a str,
    pub path_and_query: &'a str,
    /// The Range header; empty: none.
    pub range: &'a str,
}

/// A request that a member has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    nonce: String,
}

/// Why a request is a stranger's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It proves nothing, or in a way that this release does not know.
    Unproven,
    /// The proof is by another secret, or for another node.
    Unknown,
    /// A member, whose clock is so many seconds before ours (or behind, if less than nothing).
    Clock(i64),
}

impl Refused {
    /// For a metric.
    pub fn as_str(&self) -> &'static str {
        match self {
            Refused::Unproven => "unproven",
            Refused::Unknown => "unknown",
            Refused::Clock(_) => "clock",
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Unproven => f.write_str("the request brings no proof of membership"),
            Refused::Unknown => {
                f.write_str("the request's proof is by another cluster secret, or for another node")
            }
            Refused::Clock(by) => {
                let (by, where_to) = (
                    by.unsigned_abs(),
                    ["ahead of", "behind"][usize::from(*by < 0)],
                );
                write!(
                    f,
                    "the asking node's clock is {by} s {where_to} this one's, and {} s are allowed: have both set by NTP",
                    SKEW.as_secs()
                )
            }
        }
    }
}

impl Members {
    /// What [`HEADER`] says in a request, and the nonce with which its answer is verified.
    pub fn request(&self, request: &Request, now: SystemTime) -> (String, Admitted) {
        let nonce = hex(&rand::random::<[u8; 16]>());
        let seconds = since_1970(now);
        let proof = hex(&self.prove(&request.claim(seconds, &nonce)));
        let header = format!("v={VERSION}; t={seconds}; n={nonce}; p={proof}");
        (header, Admitted { nonce })
    }

    /// Judges the headers of that name that a request brought. `names` are those by which this node is known.
    pub fn admit<'a>(
        &self,
        presented: impl Iterator<Item = &'a str>,
        request: &Request,
        names: &[String],
        now: SystemTime,
    ) -> Result<Admitted, Refused> {
        let mut found = presented.filter_map(Parameters::parse);
        let parameters = found.next().ok_or(Refused::Unproven)?;
        let (Some(at), Some(nonce), Some(proof)) =
            (parameters.time, parameters.nonce, parameters.proof)
        else {
            return Err(Refused::Unproven);
        };
        let is_for = |name: &String| {
            let claim = Request {
                to: name,
                ..*request
            }
            .claim(at, nonce);
            self.verify(&claim, &proof).is_some()
        };
        if !names.iter().any(is_for) {
            return Err(Refused::Unknown);
        }
        let ahead = i128::from(at) - i128::from(since_1970(now));
        if ahead.unsigned_abs() > u128::from(SKEW.as_secs()) {
            return Err(Refused::Clock(i64::try_from(ahead).unwrap_or(i64::MAX)));
        }
        Ok(Admitted {
            nonce: nonce.to_string(),
        })
    }

    /// What [`TAG_PROOF`] says in the answer to `asked`: that the tag stands for `digest` here.
    pub fn vouch(&self, asked: &Admitted, path_and_query: &str, digest: &str) -> String {
        let proof = self.prove(&asked.claim(path_and_query, digest));
        format!("v={VERSION}; p={}", hex(&proof))
    }

    /// Whether a member says so.
    pub fn is_vouched(
        &self,
        header: &str,
        asked: &Admitted,
        path_and_query: &str,
        digest: &str,
    ) -> bool {
        let proof = Parameters::parse(header).and_then(|parameters| parameters.proof);
        let claim = asked.claim(path_and_query, digest);
        proof.is_some_and(|proof| self.verify(&claim, &proof).is_some())
    }
}

impl Request<'_> {
    fn claim(&self, seconds: u64, nonce: &str) -> Claim {
        Claim::new(REQUEST)
            .with(self.to)
            .with(self.method)
            .with(self.path_and_query)
            .with(self.range)
            .with(seconds.to_string())
            .with(nonce)
    }
}

impl Admitted {
    fn claim(&self, path_and_query: &str, digest: &str) -> Claim {
        Claim::new(TAG)
            .with(&self.nonce)
            .with(path_and_query)
            .with(digest)
    }
}

/// Of a header of this version.
#[derive(Default)]
struct Parameters<'a> {
    time: Option<u64>,
    nonce: Option<&'a str>,
    proof: Option<Proof>,
}

impl<'a> Parameters<'a> {
    fn parse(header: &'a str) -> Option<Self> {
        let mut parameters = Self::default();
        let mut version = None;
        for parameter in header.split(';') {
            let Some((name, value)) = parameter.trim().split_once('=') else {
                continue;
            };
            match name {
                "v" => version = Some(value),
                "t" => parameters.time = value.parse().ok(),
                "n" => parameters.nonce = Some(value).filter(|it| NONCE.contains(&it.len())),
                "p" => parameters.proof = unhex(value),
                _ => {}
            }
        }
        (version == Some(VERSION)).then_some(parameters)
    }
}

fn since_1970(now: SystemTime) -> u64 {
    // A clock before 1970 is as wrong as one of 1970.
    now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Proof> {
    let mut proof = Proof::default();
    if text.len() != 2 * proof.len() || !text.is_ascii() {
        return None;
    }
    for (byte, digits) in proof.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(proof)
}
