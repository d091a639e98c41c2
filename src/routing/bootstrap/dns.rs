//! Names to addresses, and whether "none" is known or only not found out.
//!
//! The search list is gone through here and not in the resolver, which tells only what came of the last name and of the
//! first family: a name server that failed at the right name and knows nothing of the last one would make a cluster look
//! empty.

use std::net::IpAddr;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::ProtoError;
use hickory_resolver::proto::rr::Name;
use hickory_resolver::system_conf::read_system_conf;
use tokio::time::{timeout, timeout_at};

/// One attempt at one name server. CoreDNS answers in milliseconds; after this long the packet is lost.
const ATTEMPT: Duration = Duration::from_secs(2);

/// All attempts, at all name servers, for all names of the search list together.
const TOTAL: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    #[error("is no domain name: {0}")]
    Name(#[from] ProtoError),
    /// The name server did not answer or could not: worth another try.
    #[error("{0}")]
    Server(#[from] NetError),
}

/// Asks the name servers of /etc/resolv.conf, as it was when this was made. Nothing is kept: "nobody yet" must not be
/// believed for longer than it is true.
#[derive(Clone)]
pub struct Resolver {
    v4: TokioResolver,
    v6: TokioResolver,
    search: Vec<Name>,
    ndots: usize,
}

impl Resolver {
    pub fn system() -> Result<Self, NetError> {
        let (config, mut options) = read_system_conf()?;
        options.timeout = ATTEMPT;
        Self::new(config, options)
    }

    pub fn new(config: ResolverConfig, mut options: ResolverOpts) -> Result<Self, NetError> {
        options.cache_size = 0;
        let search = match config.search() {
            [] => config.domain().into_iter().cloned().collect(),
            some => some.to_vec(),
        };
        let ndots = options.ndots;
        let of = |family| {
            let mut options = options.clone();
            options.ip_strategy = family;
            let provider = TokioRuntimeProvider::default();
            TokioResolver::builder_with_config(config.clone(), provider)
                .with_options(options)
                .build()
        };
        Ok(Self {
            v4: of(LookupIpStrategy::Ipv4Only)?,
            v6: of(LookupIpStrategy::Ipv6Only)?,
            search,
            ndots,
        })
    }

    /// The addresses of both families; none when the name server knows that there are none, because the name does not
    /// exist or has no records. A name with a dot at its end is taken as it is, another one is tried with the search
    /// list as resolv.conf(5) has it. An address is its own.
    pub async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, LookupError> {
        if let Ok(ip) = name.parse() {
            return Ok(vec![ip]);
        }
        let deadline = tokio::time::Instant::now() + TOTAL;
        let mut trouble = None;
        for name in candidates(name, &self.search, self.ndots)? {
            let both =
                async { tokio::join!(self.v4.lookup_ip(name.clone()), self.v6.lookup_ip(name)) };
            let Ok((v4, v6)) = timeout_at(deadline, both).await else {
                return Err(NetError::Timeout.into());
            };
            let mut found = Vec::new();
            for answer in [v4, v6] {
                match answer {
                    Ok(ips) => found.extend(ips.iter()),
                    Err(NetError::Dns(DnsError::NoRecordsFound(_))) => {}
                    Err(error) => trouble = trouble.or(Some(error)),
                }
            }
            if !found.is_empty() {
                return Ok(found);
            }
        }
        match trouble {
            Some(error) => Err(error.into()),
            None => Ok(Vec::new()),
        }
    }

    /// One address, for a connection: the first that accepts one. All are tried side by side, so that one that is gone
    /// costs nothing.
    pub async fn connect(
        &self,
        host: &str,
        port: u16,
        limit: Duration,
    ) -> Result<tokio::net::TcpStream, ConnectError> {
        /// A name with more addresses than that is no single service's.
        const MAX: usize = 8;
        let ips = self.addresses(host).await?;
        if ips.is_empty() {
            return Err(ConnectError::NoAddress);
        }
        let dials = ips
            .into_iter()
            .take(MAX)
            .map(|ip| Box::pin(tokio::net::TcpStream::connect((ip, port))));
        match timeout(limit, futures::future::select_ok(dials)).await {
            Ok(Ok((stream, _))) => Ok(stream),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(ConnectError::Silent(limit)),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("its name cannot be resolved: {0}")]
    Lookup(#[from] LookupError),
    #[error("its name has no address")]
    NoAddress,
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("no answer within {0:?}")]
    Silent(Duration),
}

/// The names to try, in this order.
fn candidates(name: &str, search: &[Name], ndots: usize) -> Result<Vec<Name>, ProtoError> {
    let mut plain = Name::from_utf8(name)?;
    if plain.is_fqdn() {
        return Ok(vec![plain]);
    }
    // Too long with a domain behind it: then it is not one of that domain's.
    let below = search.iter().filter_map(|domain| {
        let mut name = plain.clone().append_domain(domain).ok()?;
        name.set_fqdn(true);
        Some(name)
    });
    let mut names: Vec<Name> = below.collect();
    let dots = usize::from(plain.num_labels()).saturating_sub(1);
    plain.set_fqdn(true);
    names.insert(if dots >= ndots { 0 } else { names.len() }, plain);
    Ok(names)
}

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;
