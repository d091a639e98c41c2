//! The first peers of a node that knows nobody.
//!
//! "Nobody else yet" is an answer and not an error: the first node of a cluster must not wait for a second one. Whether
//! an empty answer may be believed is what [`Found::authoritative`] says. Peer ids are not known beforehand; whoever
//! answers at the address tells its own.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use hickory_resolver::net::{DnsError, NetError};
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use rand::seq::SliceRandom;

/// How many of a name's addresses are tried in one round. Chosen at random among all of them: everybody's first three
/// would be the same three nodes, and whoever starts beside a dead one would find it in each round.
const SAMPLE: usize = 3;

/// One attempt at one name server. CoreDNS answers in milliseconds; after this long the packet is lost.
const DNS_ATTEMPT: Duration = Duration::from_secs(2);

/// All attempts, at all name servers, for all names of the search list together.
const DNS: Duration = Duration::from_secs(10);

/// Where a node looks for the first others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    /// The addresses of a headless service, with the port at which every node's router listens.
    Dns { domain: String, port: u16 },
    /// These, with or without `/p2p/…`.
    Static(Vec<Multiaddr>),
}

/// What a round of looking has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Whom to try; this node itself is not among them.
    pub candidates: Vec<Multiaddr>,
    /// Whether no candidates means that there is nobody else.
    pub authoritative: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    #[error("cannot read the system's DNS configuration (/etc/resolv.conf): {0}")]
    Configuration(#[source] NetError),
    /// The name server did not answer or could not: worth another try.
    #[error("cannot resolve {domain}: {source}")]
    Dns { domain: String, source: NetError },
}

/// Why a text is no address to begin with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no address of a peer: {0}")]
pub struct AddressError(String);

/// Reads `/ip4/…/tcp/…` or `/ip6/…/tcp/…`, with or without `/p2p/…`. Names are not resolved here.
pub fn parse_address(text: &str) -> Result<Multiaddr, AddressError> {
    let error = AddressError;
    let address: Multiaddr = text
        .parse()
        .map_err(|e: libp2p::multiaddr::Error| error(e.to_string()))?;
    let mut parts = address.iter();
    match parts.next() {
        Some(Protocol::Ip4(_) | Protocol::Ip6(_)) => {}
        _ => return Err(error("it must begin with /ip4/ or /ip6/".into())),
    }
    match parts.next() {
        Some(Protocol::Tcp(port)) if port != 0 => {}
        _ => return Err(error("after the IP must come /tcp/ and a port".into())),
    }
    match (parts.next(), parts.next()) {
        (None, _) | (Some(Protocol::P2p(_)), None) => Ok(address),
        _ => Err(error("only /p2p/ and a peer id may follow the port".into())),
    }
}

/// [`Bootstrap`] with what it takes to ask.
#[derive(Clone)]
pub enum Bootstrapper {
    Dns {
        resolver: Box<TokioResolver>,
        domain: String,
        port: u16,
    },
    Static(Vec<Multiaddr>),
}

impl Bootstrapper {
    pub fn new(bootstrap: Bootstrap) -> Result<Self, BootstrapError> {
        match bootstrap {
            Bootstrap::Static(addresses) => Ok(Self::Static(addresses)),
            Bootstrap::Dns { domain, port } => {
                let mut builder =
                    TokioResolver::builder_tokio().map_err(BootstrapError::Configuration)?;
                let options = builder.options_mut();
                options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
                // "Nobody yet" must not be believed for longer than it is true.
                options.cache_size = 0;
                options.timeout = DNS_ATTEMPT;
                let resolver = Box::new(builder.build().map_err(BootstrapError::Configuration)?);
                Ok(Self::Dns {
                    resolver,
                    domain,
                    port,
                })
            }
        }
    }

    /// Whom to try now, except at the addresses `own`.
    pub async fn find(&self, own: &[SocketAddr]) -> Result<Found, BootstrapError> {
        let mut candidates = match self {
            Self::Static(addresses) => addresses.clone(),
            Self::Dns {
                resolver,
                domain,
                port,
            } => resolve(resolver, domain, *port).await?,
        };
        candidates.retain(|address| !own.iter().any(|own| is_at(address, *own)));
        if let Self::Dns { .. } = self {
            candidates.shuffle(&mut rand::rng());
            candidates.truncate(SAMPLE);
        }
        Ok(Found {
            candidates,
            authoritative: true,
        })
    }
}

async fn resolve(
    resolver: &TokioResolver,
    domain: &str,
    port: u16,
) -> Result<Vec<Multiaddr>, BootstrapError> {
    let lookup = tokio::time::timeout(DNS, resolver.lookup_ip(domain));
    match lookup.await.unwrap_or(Err(NetError::Timeout)) {
        Ok(ips) => Ok(ips
            .iter()
            .map(|ip| Multiaddr::from(ip).with(Protocol::Tcp(port)))
            .collect()),
        // A headless service without endpoints, or that does not exist: the name server knows that there is nobody.
        Err(NetError::Dns(DnsError::NoRecordsFound(_))) => Ok(Vec::new()),
        Err(source) => Err(BootstrapError::Dns {
            domain: domain.to_string(),
            source,
        }),
    }
}

fn is_at(address: &Multiaddr, socket: SocketAddr) -> bool {
    let mut parts = address.iter();
    let ip = match parts.next() {
        Some(Protocol::Ip4(ip)) => ip.into(),
        Some(Protocol::Ip6(ip)) => std::net::IpAddr::V6(ip).to_canonical(),
        _ => return false,
    };
    ip == socket.ip() && parts.next() == Some(Protocol::Tcp(socket.port()))
}

#[cfg(test)]
mod tests;
