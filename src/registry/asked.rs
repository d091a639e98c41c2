//! A request as it was understood. What only some answers need is read from it when they need it: most requests are of
//! peers for what is here.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::extract::ConnectInfo;
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, Uri, header};

use super::access::Access;
use super::error::Error;
use crate::membership::Admitted;
use crate::mirror::flight::Puller;
use crate::oci::distribution::{AGAIN, FOLLOWING, Following, GROWING, ManifestReference, Resource};
use crate::oci::{Digest, Repository};
use crate::recent::Journey;
use crate::routing::rendezvous::Generation;
use crate::server::sendfile::FileSender;

pub(super) struct Asked {
    pub(super) resource: Resource,
    uri: Uri,
    /// The registry on whose behalf it is asked.
    pub(super) ns: Option<String>,
    pub(super) range: Option<String>,
    pub(super) is_head: bool,
    pub(super) from_peer: bool,
    /// How long a peer would wait for what is still being written here. None: it wants what is whole.
    pub(super) growing: Option<Duration>,
    /// Whether it could also take it from one who is still getting it.
    pub(super) following: Following,
    /// Where it came from, as the socket says.
    pub(super) remote: Option<IpAddr>,
    /// The member that asks, where peers are members.
    pub(super) member: Option<Admitted>,
    /// Whether it is this node's containerd that asks.
    pub(super) is_ours: bool,
    is_trial: bool,
    generation: Generation,
    /// How its connection sends what is a file here.
    pub(super) sender: FileSender,
    /// Where it is told who brings it.
    pub(super) journey: Journey,
}

impl Asked {
    /// Which manifest, where it is asked for by digest.
    pub(super) fn manifest(&self) -> Option<&Digest> {
        match &self.resource {
            Resource::Manifest(ManifestReference::Digest(digest)) => Some(digest),
            _ => None,
        }
    }

    /// Whose it is. None without `ns`.
    pub(super) fn repository(&self) -> Option<Repository> {
        Repository::new(self.ns.as_deref()?, self.name()).ok()
    }

    /// Path and query, to be asked of peers alike.
    pub(super) fn path_and_query(&self) -> String {
        let (_, path) = path(&self.uri);
        match self.uri.query() {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        }
    }

    pub(super) fn puller(&self) -> Puller {
        let ns = self.ns.as_deref().unwrap_or_default();
        let (may_ask_again, _) = path(&self.uri);
        Puller {
            image: format!("{ns}/{}", self.name()),
            generation: self.generation,
            may_ask_again,
            is_trial: self.is_trial,
        }
    }

    /// Of the repository, as it stands in the path.
    fn name(&self) -> &str {
        let (_, path) = path(&self.uri);
        let below = path.strip_prefix("/v2/").unwrap_or_default();
        below.rsplitn(3, '/').nth(2).unwrap_or_default()
    }
}

pub(super) fn understand(
    parts: Parts,
    ns: Option<String>,
    access: &Access,
    from_peer: bool,
    is_ours: bool,
) -> Result<Asked, Error> {
    if parts.method != Method::GET && parts.method != Method::HEAD {
        return Err(Error::Method(parts.method));
    }
    let is_head = parts.method == Method::HEAD;
    let (_, path) = path(&parts.uri);
    let below = path.strip_prefix("/v2/").ok_or_else(|| Error::path(path))?;
    Ok(Asked {
        resource: Resource::parse(below, ns.as_deref()).map_err(Error::Path)?,
        ns,
        // Without validators of ours no condition can hold, and then the whole is sent (RFC 9110, section 13.1.5).
        range: parts
            .headers
            .get(header::RANGE)
            .filter(|_| !parts.headers.contains_key(header::IF_RANGE))
            .and_then(|range| range.to_str().ok())
            .map(str::to_string),
        is_head,
        from_peer,
        // Our own containerd never gets what it is writing itself: it would wait for its own end.
        growing: parts
            .headers
            .get(GROWING)
            .filter(|_| from_peer && !is_head)
            .and_then(|growing| growing.to_str().ok()?.parse().ok())
            .map(Duration::from_millis),
        following: Following::parse(
            parts
                .headers
                .get(FOLLOWING)
                .map(|following| following.to_str().unwrap_or_default()),
        ),
        remote: parts
            .extensions
            .get::<ConnectInfo<SocketAddr>>()
            .map(|ConnectInfo(remote)| remote.ip()),
        member: None,
        is_ours,
        is_trial: access.is_trial(),
        generation: generation_of(user_agent(&parts)),
        sender: parts.extensions.get().cloned().unwrap_or_default(),
        journey: access.journey(),
        uri: parts.uri,
    })
}

/// The registry on whose behalf it is asked.
pub(super) fn ns_of(uri: &Uri) -> Option<String> {
    let query = uri.query().unwrap_or_default();
    form_urlencoded::parse(query.as_bytes())
        .find(|(name, _)| name == "ns")
        .map(|(_, value)| value.into_owned())
        .filter(|ns| !ns.is_empty())
}

/// Whether who asks may ask again, and what it asks for.
fn path(uri: &Uri) -> (bool, &str) {
    match after_again(uri.path()) {
        Some(rest) => (true, rest),
        None => (false, uri.path()),
    }
}

/// What follows `/again/<n>`: hosts.toml lists us several times for containerd 2.x, and whoever asks at one of these will
/// ask at the next if the answer is 404.
pub(super) fn after_again(path: &str) -> Option<&str> {
    let rest = path.strip_prefix(AGAIN)?.strip_prefix('/')?;
    let slash = rest.find('/')?;
    let (number, rest) = rest.split_at(slash);
    number.bytes().all(|b| b.is_ascii_digit()).then_some(rest)
}

/// Empty where it is not said.
pub(super) fn user_agent(parts: &Parts) -> &[u8] {
    let header = parts.headers.get(header::USER_AGENT);
    header.map_or(b"", HeaderValue::as_bytes)
}

/// Which containerd asks: `containerd/1.7.24~ds1`, `containerd/2.1.9+unknown`. Nobody else minds being taken for a 1.x.
fn generation_of(user_agent: &[u8]) -> Generation {
    let major = user_agent
        .strip_prefix(b"containerd/")
        .or(user_agent.strip_prefix(b"containerd/v"))
        .and_then(|version| version.split(|b| *b == b'.').next())
        .and_then(|major| std::str::from_utf8(major).ok()?.parse::<u32>().ok());
    match major {
        Some(2..) => Generation::Two,
        _ => Generation::One,
    }
}
