//! Values as operators write them: addresses with or without a host, durations as Go has them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use crate::http_get;

/// Where to listen. `:5000` means every address of both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenAddr {
    ip: Option<IpAddr>,
    port: u16,
}

impl ListenAddr {
    pub const fn every(port: u16) -> Self {
        Self { ip: None, port }
    }

    pub fn port(self) -> u16 {
        self.port
    }

    /// What to bind, the first that can be: on Linux `[::]` takes IPv4 as well, and where IPv6 is switched off there is
    /// only `0.0.0.0`.
    pub fn candidates(self) -> Vec<SocketAddr> {
        let ips = match self.ip {
            Some(ip) => vec![ip],
            None => vec![Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()],
        };
        ips.into_iter()
            .map(|ip| SocketAddr::new(ip, self.port))
            .collect()
    }

    /// Where whoever listens so is reached from the same machine.
    pub fn from_here(self) -> Vec<SocketAddr> {
        let ip = self.ip.unwrap_or(Ipv6Addr::UNSPECIFIED.into());
        http_get::from_here(SocketAddr::new(ip, self.port))
    }

    /// Whether two listeners would take each other's port.
    pub fn overlaps(self, other: Self) -> bool {
        let all = |ip: Option<IpAddr>| ip.is_none_or(|ip| ip.is_unspecified());
        self.port == other.port
            && self.port != 0
            && (self.ip == other.ip || all(self.ip) || all(other.ip))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListenAddrError {
    #[error("has no port")]
    NoPort,
    #[error("has a port that is no number up to 65535")]
    Port,
    #[error("has a host that is no IP address")]
    Host,
}

impl FromStr for ListenAddr {
    type Err = ListenAddrError;

    fn from_str(text: &str) -> Result<Self, ListenAddrError> {
        let (host, port) = text.rsplit_once(':').ok_or(ListenAddrError::NoPort)?;
        if !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(ListenAddrError::Port);
        }
        let port = port.parse().map_err(|_| ListenAddrError::Port)?;
        if host.is_empty() {
            return Ok(Self::every(port));
        }
        let ip = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(v6) => v6.parse().map(IpAddr::V6),
            None => host.parse().map(IpAddr::V4),
        };
        let ip = Some(ip.map_err(|_| ListenAddrError::Host)?);
        Ok(Self { ip, port })
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            Some(ip) => SocketAddr::new(ip, self.port).fmt(f),
            None => write!(f, ":{}", self.port),
        }
    }
}

/// Reads `20ms`, `1.5s`, `2m`, `1h30m`: what Go's flags take, without signs.
pub fn duration(text: &str) -> Result<Duration, &'static str> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut nanos: u128 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let (whole, tail) = rest.split_at(digits(rest));
        let (fraction, tail) = match tail.strip_prefix('.') {
            Some(tail) => tail.split_at(digits(tail)),
            None => ("", tail),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err("is not a duration");
        }
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.');
        let (unit, tail) = tail.split_at(end.unwrap_or(tail.len()));
        let unit: u128 = match unit {
            "ns" => 1,
            // Two characters look like a micro: the sign and the Greek letter.
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "" => return Err("has no unit"),
            _ => return Err("has a unit other than ns, us, ms, s, m and h"),
        };
        // Beyond these lengths nothing is told apart, or everything overflows.
        if whole.len() > 18 || fraction.len() > 18 {
            return Err("is out of range");
        }
        let number = |digits: &str| digits.parse::<u128>().unwrap_or(0);
        nanos += number(whole) * unit;
        nanos += number(fraction) * unit / 10_u128.pow(fraction.len() as u32);
        rest = tail;
    }
    if text.is_empty() {
        return Err("is empty");
    }
    // Go's own limit, some 292 years: no clock arithmetic overflows below it.
    match u64::try_from(nanos) {
        Ok(nanos) if nanos <= i64::MAX as u64 => Ok(Duration::from_nanos(nanos)),
        _ => Err("is out of range"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_means_every_address_of_both_families() {
        for (text, candidates) in [
            (":5000", &["[::]:5000", "0.0.0.0:5000"][..]),
            ("0.0.0.0:5000", &["0.0.0.0:5000"]),
            ("[::]:5000", &["[::]:5000"]),
            ("[::1]:0", &["[::1]:0"]),
            ("127.0.0.1:5000", &["127.0.0.1:5000"]),
        ] {
            let addr: ListenAddr = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));

            let found: Vec<_> = addr
                .candidates()
                .iter()
                .map(SocketAddr::to_string)
                .collect();
            assert_eq!(found, candidates);
            assert_eq!(addr.to_string(), text);
        }
    }

    #[test]
    fn wrong_addresses_are_refused() {
        for text in [
            "",
            "5000",
            ":",
            ":x",
            ":+1",
            ":70000",
            "localhost:5000",
            "::1:5000",
            "[127.0.0.1]:1",
            "1.2.3:4",
        ] {
            assert!(text.parse::<ListenAddr>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn listeners_overlap_when_one_takes_the_others_port() {
        for (a, b, overlap) in [
            (":5000", ":5000", true),
            (":5000", ":5001", false),
            (":0", ":0", false),
            (":5000", "127.0.0.1:5000", true),
            ("[::]:5000", "127.0.0.1:5000", true),
            ("127.0.0.1:5000", "127.0.0.1:5000", true),
            ("127.0.0.1:5000", "127.0.0.2:5000", false),
        ] {
            let (first, second) = (a.parse(), b.parse());
            let (first, second): (ListenAddr, ListenAddr) = (first.expect(a), second.expect(b));

            assert_eq!(first.overlaps(second), overlap, "{a} {b}");
            assert_eq!(second.overlaps(first), overlap, "{b} {a}");
        }
    }

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, nanos) in [
            ("0", 0),
            ("0s", 0),
            ("20ms", 20_000_000),
            ("1.5s", 1_500_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("2m", 120_000_000_000),
            ("1h30m", 5_400_000_000_000),
            ("1m0.25s", 60_250_000_000),
            ("7us", 7_000),
            ("7µs", 7_000),
            ("7μs", 7_000),
            ("9ns", 9),
            ("0.3ns", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
    }

    #[test]
    fn wrong_durations_are_refused() {
        for (text, reason) in [
            ("", "empty"),
            ("20", "no unit"),
            ("ms", "not a duration"),
            (".s", "not a duration"),
            ("-1s", "not a duration"),
            ("1 s", "unit other"),
            ("1d", "unit other"),
            ("1S", "unit other"),
            ("1s ", "unit other"),
            ("1s2", "no unit"),
            ("1.2.3s", "no unit"),
            ("9999999h", "out of range"),
            ("99999999999999999999s", "out of range"),
        ] {
            let refused = duration(text).expect_err(text);
            assert!(refused.contains(reason), "{text}: {refused}");
        }
    }
}
