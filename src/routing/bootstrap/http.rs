//! The first peers from a URL, as Spegel's nodes serve it at `/id`: `[{"ID":"","Addrs":["/ip4/10.0.0.1/tcp/5001"]}]`.
//!
//! What answers may be anything: its size, the number of addresses and the time are bounded, and what it says is only
//! whom to call.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use hyper::{StatusCode, Uri};
use libp2p::Multiaddr;
use serde::Deserialize;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::dns::{ConnectError, Resolver};
use super::parse_address;
use crate::http_get;
use crate::tls::{self, CertDir};

/// From the first packet to the last byte. A node answers in milliseconds.
const TOTAL: Duration = Duration::from_secs(10);

/// Some hundred nodes with two addresses each; ours name sixteen.
const MAX_ANSWER: usize = 64 << 10;

/// Of which three are tried at first.
pub(crate) const MAX_ADDRESSES: usize = 256;

/// Where to ask: `https://peers.example:8443/id`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    tls: bool,
    /// Without brackets.
    host: String,
    port: u16,
    /// With its query.
    path: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("is no URL: {0}")]
    Syntax(String),
    #[error("begins with neither http:// nor https://")]
    Scheme,
    #[error("has no host")]
    Host,
    #[error("has a user in it, which would not be sent")]
    User,
}

impl Url {
    pub fn is_https(&self) -> bool {
        self.tls
    }

    /// As the Host header has it.
    fn authority(&self) -> String {
        let default = if self.tls { 443 } else { 80 };
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        match self.port {
            port if port == default => host,
            port => format!("{host}:{port}"),
        }
    }
}

impl FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let uri: Uri = text.parse().map_err(|e| UrlError::Syntax(format!("{e}")))?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(UrlError::Scheme),
        };
        let authority = uri.authority().ok_or(UrlError::Host)?;
        if authority.as_str().contains('@') {
            return Err(UrlError::User);
        }
        let host = authority.host();
        let host = host
            .strip_prefix('[')
            .and_then(|h| h.strip_suffix(']'))
            .unwrap_or(host);
        if host.is_empty() {
            return Err(UrlError::Host);
        }
        let port = match authority.as_str().rsplit_once(':') {
            Some((_, port)) if !port.contains(']') => {
                port.parse()
                    .ok()
                    .filter(|port| *port != 0)
                    .ok_or_else(|| UrlError::Syntax("its port is no number up to 65535".into()))?
            }
            _ if tls => 443,
            _ => 80,
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self {
            tls,
            host: host.to_string(),
            port,
            path: path.to_string(),
        })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

/// Whom to ask, and what to show there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub url: Url,
    /// Where `ca.crt`, `tls.crt` and `tls.key` are. Without it an https server is one of this machine's authorities, and
    /// is shown nothing.
    pub cert_dir: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Certificates(#[from] tls::Error),
    #[error("no TLS connection: {0}")]
    Handshake(std::io::Error),
    #[error("{0:?} is no name of a server")]
    Name(String),
    #[error(transparent)]
    Http(#[from] http_get::Error),
    #[error("it is answered {0}")]
    Status(StatusCode),
    #[error("it is answered {0} to {1:?}, and nobody is followed elsewhere: name that URL")]
    Elsewhere(StatusCode, String),
    #[error(
        "its answer is no list of peers such as [{{\"ID\":\"\",\"Addrs\":[\"/ip4/192.0.2.7/tcp/5001\"]}}]: {0}"
    )]
    Json(serde_json::Error),
    #[error("none of its {count} addresses can be used; {first:?} {reason}")]
    Addresses {
        count: usize,
        first: String,
        reason: String,
    },
    #[error("no answer within {TOTAL:?}")]
    Timeout,
}

/// One peer, as libp2p writes it in JSON.
#[derive(Debug, Deserialize)]
struct Entry {
    /// Go writes an empty list as null.
    #[serde(rename = "Addrs")]
    addrs: Option<Vec<String>>,
}

#[derive(Clone)]
pub struct Client {
    config: Config,
    resolver: Resolver,
}

impl Client {
    pub fn new(config: Config, resolver: Resolver) -> Self {
        Self { config, resolver }
    }

    pub fn url(&self) -> &Url {
        &self.config.url
    }

    /// Everybody it names. Certificates are read anew each time.
    pub async fn ask(&self) -> Result<Vec<Multiaddr>, Error> {
        let answer = timeout(TOTAL, self.get()).await;
        let answer = answer.unwrap_or(Err(Error::Timeout))?;
        match answer.status {
            StatusCode::OK => read(&answer.body),
            status => Err(match answer.location {
                Some(elsewhere) => Error::Elsewhere(status, elsewhere),
                None => Error::Status(status),
            }),
        }
    }

    async fn get(&self) -> Result<http_get::Answer, Error> {
        let Config { url, cert_dir } = &self.config;
        let config = match (url.tls, cert_dir) {
            (false, _) => None,
            (true, Some(dir)) => Some(CertDir::new(dir).client().await?),
            (true, None) => Some(tls::system_client().await?),
        };
        let stream = self.resolver.connect(&url.host, url.port, TOTAL).await?;
        let host = url.authority();
        let Some(config) = config else {
            return Ok(http_get::get(stream, &host, &url.path, MAX_ANSWER).await?);
        };
        let name = ServerName::try_from(url.host.trim_end_matches('.').to_string())
            .map_err(|_| Error::Name(url.host.clone()))?;
        let stream = TlsConnector::from(config).connect(name, stream).await;
        let stream = stream.map_err(Error::Handshake)?;
        Ok(http_get::get(stream, &host, &url.path, MAX_ANSWER).await?)
    }
}

/// The addresses in an answer. Some that cannot be used do no harm to the others: a newer release may have kinds that we
/// do not know.
pub(crate) fn read(body: &[u8]) -> Result<Vec<Multiaddr>, Error> {
    let entries: Vec<Entry> = serde_json::from_slice(body).map_err(Error::Json)?;
    let texts: Vec<String> = entries
        .into_iter()
        .flat_map(|entry| entry.addrs.unwrap_or_default())
        .collect();
    let mut addresses = Vec::new();
    let mut refused = None;
    for text in texts.iter().take(MAX_ADDRESSES) {
        match parse_address(text) {
            Ok(address) => addresses.push(address),
            Err(error) => {
                refused.get_or_insert_with(|| (text.chars().take(80).collect(), error.to_string()));
            }
        }
    }
    match refused {
        Some((first, reason)) if addresses.is_empty() => Err(Error::Addresses {
            count: texts.len(),
            first,
            reason,
        }),
        _ => Ok(addresses),
    }
}

#[cfg(test)]
mod tests;
