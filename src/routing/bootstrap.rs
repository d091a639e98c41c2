//! The first peers of a node that knows nobody.
//!
//! "Nobody else yet" is an answer and not an error: the first node of a cluster must not wait for a second one. Whether
//! an empty answer may be believed is what [`Found::authoritative`] says. Peer ids are not known beforehand; whoever
//! answers at the address tells its own.

pub mod dns;
pub mod http;

use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use hickory_resolver::net::NetError;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use rand::seq::SliceRandom;
use tokio::time::{Instant, timeout_at};

use dns::{LookupError, Resolver};

/// How many of a name's addresses are tried at first. Chosen at random among all of them: everybody's first three would
/// be the same three nodes, and whoever starts beside a dead one would find it in each round.
const SAMPLE: usize = 3;

/// How many more are kept, for the case that those are silent.
const MORE: usize = 4 * SAMPLE;

/// How long other names are waited for once there is somebody to call: a name server that hangs costs 10 s.
const OTHER_NAMES: Duration = Duration::from_millis(500);

/// Where a node looks for the first others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    /// The addresses of headless services. One whose name cannot be resolved does not harm the others.
    Dns(Vec<Domain>),
    /// Whom a URL names.
    Http(http::Config),
    /// These, with or without `/p2p/…`.
    Static(Vec<Multiaddr>),
}

/// A headless service, and the port at which each of its nodes' routers listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    pub name: String,
    pub port: u16,
}

/// What a round of looking has found. This node itself is not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Whom to try, side by side.
    pub candidates: Vec<Multiaddr>,
    /// Whom to try beside them while they are silent, in this order.
    pub others: Vec<Multiaddr>,
    /// Whether no candidates means that there is nobody else.
    pub authoritative: bool,
    /// What did not work, though something did.
    pub trouble: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    #[error("cannot read the system's DNS configuration (/etc/resolv.conf): {0}")]
    Configuration(#[source] NetError),
    /// Of no name it is known whether it has addresses.
    #[error("{0}")]
    Dns(String),
    #[error("cannot get peers from {url}: {source}")]
    Http {
        url: http::Url,
        source: Box<http::Error>,
    },
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
        resolver: Resolver,
        domains: Vec<Domain>,
    },
    Http(http::Client),
    Static(Vec<Multiaddr>),
}

impl Bootstrapper {
    pub fn new(bootstrap: Bootstrap) -> Result<Self, BootstrapError> {
        let resolver = || Resolver::system().map_err(BootstrapError::Configuration);
        Ok(match bootstrap {
            Bootstrap::Static(addresses) => Self::Static(addresses),
            Bootstrap::Http(config) => Self::Http(http::Client::new(config, resolver()?)),
            Bootstrap::Dns(domains) => Self::Dns {
                resolver: resolver()?,
                domains,
            },
        })
    }

    /// Whom to try now, except at the addresses `own`.
    pub async fn find(&self, own: &[SocketAddr]) -> Result<Found, BootstrapError> {
        match self {
            Self::Static(addresses) => Ok(Found {
                candidates: except(addresses.clone(), own),
                authoritative: true,
                ..Found::default()
            }),
            Self::Http(client) => {
                let named = client.ask().await;
                let named = named.map_err(|source| BootstrapError::Http {
                    url: client.url().clone(),
                    source: Box::new(source),
                })?;
                // Behind one address stand many nodes, and the one that answered may have been this one.
                let authoritative = named.is_empty();
                Ok(sample([except(named, own)], authoritative))
            }
            Self::Dns { resolver, domains } => {
                let (found, trouble) = resolve_all(resolver, domains, own).await;
                let trouble = (!trouble.is_empty()).then(|| trouble.join("; "));
                match trouble {
                    Some(trouble) if found.is_empty() => Err(BootstrapError::Dns(trouble)),
                    // Somebody may be behind the name that was not resolved.
                    trouble => Ok(Found {
                        authoritative: trouble.is_none(),
                        trouble,
                        ..sample(found, true)
                    }),
                }
            }
        }
    }
}

/// The addresses of each name that could be resolved, and what went wrong with others. As soon as one has somebody, the
/// others have [`OTHER_NAMES`] left.
async fn resolve_all(
    resolver: &Resolver,
    domains: &[Domain],
    own: &[SocketAddr],
) -> (Vec<Vec<Multiaddr>>, Vec<String>) {
    let asked = domains.iter().map(|domain| resolve(resolver, domain));
    let mut asked: FuturesUnordered<_> = asked.collect();
    let (mut found, mut trouble) = (Vec::new(), Vec::new());
    let mut until = None;
    loop {
        let answer = match until {
            None => asked.next().await,
            Some(until) => match timeout_at(until, asked.next()).await {
                Ok(answer) => answer,
                Err(_) => {
                    trouble.push("other names are not resolved yet".to_string());
                    None
                }
            },
        };
        match answer {
            Some(Ok(addresses)) => {
                let addresses = except(addresses, own);
                if !addresses.is_empty() {
                    until.get_or_insert_with(|| Instant::now() + OTHER_NAMES);
                }
                found.push(addresses);
            }
            Some(Err(error)) => trouble.push(error),
            None => return (found, trouble),
        }
    }
}

/// Some of each list: of two clusters that are one for a while, the larger one does not take all the places.
fn sample(lists: impl IntoIterator<Item = Vec<Multiaddr>>, authoritative: bool) -> Found {
    let mut found = Found {
        authoritative,
        ..Found::default()
    };
    for mut list in lists {
        list.shuffle(&mut rand::rng());
        let others = list.split_off(SAMPLE.min(list.len()));
        found.candidates.extend(list);
        found.others.extend(others.into_iter().take(MORE));
    }
    found.others.shuffle(&mut rand::rng());
    found.others.truncate(MORE);
    found
}

async fn resolve(resolver: &Resolver, domain: &Domain) -> Result<Vec<Multiaddr>, String> {
    let Domain { name, port } = domain;
    let found = resolver.addresses(name).await;
    let ips = found.map_err(|error| match error {
        LookupError::Name(_) => format!("{name:?} {error}"),
        LookupError::Server(_) => format!("cannot resolve {name}: {error}"),
    })?;
    let addresses = ips.into_iter();
    Ok(addresses
        .map(|ip| Multiaddr::from(ip.to_canonical()).with(Protocol::Tcp(*port)))
        .collect())
}

fn except(mut addresses: Vec<Multiaddr>, own: &[SocketAddr]) -> Vec<Multiaddr> {
    addresses.retain(|address| !own.iter().any(|own| is_at(address, *own)));
    addresses
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
