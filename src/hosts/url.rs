//! What the URLs of registries and of mirrors have in common.

use std::fmt;

use super::Mistake;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    Http,
    Https,
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        })
    }
}

pub fn split_scheme<'a>(text: &'a str, usual: &str) -> Result<(Scheme, &'a str), Mistake> {
    let cure = |host: &str| match host {
        "" => format!("write {usual}://, followed by a host"),
        host => format!("write {usual}://{host}"),
    };
    match text.split_once("://") {
        Some(("http", rest)) => Ok((Scheme::Http, rest)),
        Some(("https", rest)) => Ok((Scheme::Https, rest)),
        Some((_, rest)) => Err(Mistake::new(
            text,
            "has a scheme other than http and https",
            cure(rest),
        )),
        None => Err(Mistake::new(text, "has no scheme", cure(text))),
    }
}

/// The part before the path, when there is nothing in the URL that a host table cannot say.
pub fn authority<'a>(text: &str, scheme: Scheme, rest: &'a str) -> Result<&'a str, Mistake> {
    if rest.contains(['?', '#']) {
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        return Err(Mistake::new(
            text,
            "has a query",
            format!("write {scheme}://{host}"),
        ));
    }
    let host = rest.split('/').next().unwrap_or_default();
    if let Some((_, host)) = host.rsplit_once('@') {
        // Never quoted: it ends in the log.
        return Err(Mistake::new(
            &format!("{scheme}://…@{host}"),
            "names a user",
            format!("write {scheme}://{host}; the file can be read by everybody on the node"),
        ));
    }
    if host.is_empty() {
        return Err(Mistake::new(
            text,
            "has no host",
            format!("write {scheme}://, followed by a host"),
        ));
    }
    Ok(host)
}

/// A bare IPv6 address gets its brackets. Charts write `http://$(NODE_IP):30020`, so what may be a port is one:
/// `fd00::1:30020` is port 30020 of `fd00::1`.
pub fn bracketed(host: &str) -> String {
    let is_v6 = |text: &str| text.parse::<std::net::Ipv6Addr>().is_ok();
    match host.rsplit_once(':') {
        Some((v6, port)) if is_v6(v6) && port.parse::<u16>().is_ok() => format!("[{v6}]:{port}"),
        _ if is_v6(host) => format!("[{host}]"),
        _ => host.to_string(),
    }
}
