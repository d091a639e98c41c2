//! The HTTP face: what containerd and peers ask, and the kubelet's probes.
//!
//! Read only, and one hop: what a peer asks for is answered from what is here. Whatever cannot be answered is a 404 at
//! once, so that containerd goes upstream. No header is sent before the first byte of its body is in hand (containerd
//! repeats headers without bytes four times and then fails the pull), and never a 429 (six repeats) or a
//! Content-Encoding (digests are of the bytes as they are).

pub mod access;
mod blob;
pub mod door;
mod error;
mod growing;
pub mod heard;
mod manifest;
pub mod uploads;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http_body_util::BodyExt as _;
use hyper::body::Body as _;

use crate::advertise::Pulls;
use crate::basic_auth::{self, Secret};
use crate::content::{ContentStore, StoreError};
use crate::inflight::{Inflight, Uplink};
use crate::membership::Admitted;
use crate::mirror::flight::Puller;
use crate::mirror::{Mirror, Wanted};
use crate::node_token::{self, Caller, NodeToken};
use crate::oci::distribution::{
    AGAIN, GROWING, MIRRORED, ManifestReference, OCI_NAMESPACE, Resource,
};
use crate::oci::filter::Filter;
use crate::oci::{Digest, Repository};
use crate::readiness::Readiness;
use crate::recent::Journey;
use crate::routing::rendezvous::Generation;
use crate::server::flush::Flushes;
use crate::server::sendfile::FileSender;
use access::{Access, Source};
use door::Door;
use error::{Error, Miss};
use heard::Heard;
use uploads::Uploads;

/// What the routes need.
pub struct Registry {
    pub store: Arc<dyn ContentStore>,
    pub mirror: Mirror,
    pub readiness: Readiness,
    pub metrics: access::Metrics,
    /// What nobody is answered, whoever asks.
    pub filter: Arc<Filter>,
    /// Whoever tells the cluster what is here hears from us what is being pulled.
    pub pulls: Pulls,
    /// Whoever tells whether containerd asks us at all hears what it asks for.
    pub heard: Heard,
    /// Who is this node's own containerd; None: everybody.
    pub token: Option<Arc<NodeToken>>,
    /// What everybody must send who asks for anything but a probe; None: nothing.
    pub basic_auth: Option<Arc<Secret>>,
    /// Who is a peer; None: who says so.
    pub door: Option<Door>,
    pub uploads: Uploads,
    /// What containerd is still writing here, for peers that would take it.
    pub inflight: Inflight,
    /// Who of them is taking it.
    pub uplink: Uplink,
}

/// All routes of the registry port.
pub fn router(registry: Registry) -> Router {
    Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/v2", get(version_check))
        .route("/v2/", get(version_check))
        .fallback(answer)
        .method_not_allowed_fallback(answer)
        .with_state(Arc::new(registry))
}

/// What kind of request a path is of, for the metrics.
pub fn handler(path: &str) -> &'static str {
    let path = after_again(path).unwrap_or(path);
    match path {
        "/livez" => "livez",
        "/readyz" => "readyz",
        "/v2" | "/v2/" => "version",
        _ if !path.starts_with("/v2/") => "other",
        _ if path.contains("/blobs/") => "blob",
        _ if path.contains("/manifests/") => "manifest",
        _ => "other",
    }
}

async fn readyz(State(registry): State<Arc<Registry>>) -> Response {
    if registry.readiness.is_ready() {
        return "ready\n".into_response();
    }
    let awaited: String = registry
        .readiness
        .awaited()
        .iter()
        .map(|awaited| format!("awaiting {awaited}\n"))
        .collect();
    (StatusCode::SERVICE_UNAVAILABLE, awaited).into_response()
}

/// Distribution spec, "Determining Support".
async fn version_check(State(registry): State<Arc<Registry>>, request: Request) -> Response {
    if !registry.opens_to(request.headers()) {
        return answer(State(registry), request).await;
    }
    let head = [
        (header::CONTENT_TYPE, "application/json"),
        (
            header::HeaderName::from_static("docker-distribution-api-version"),
            "registry/2.0",
        ),
    ];
    (head, "{}").into_response()
}

/// A request as it was understood.
struct Asked {
    resource: Resource,
    /// Path and query, to be asked of peers alike.
    path_and_query: String,
    /// The registry on whose behalf it is asked.
    ns: Option<String>,
    range: Option<String>,
    is_head: bool,
    from_peer: bool,
    /// How long a peer would wait for what is still being written here. None: it wants what is whole.
    growing: Option<Duration>,
    /// Where it came from, as the socket says.
    remote: Option<IpAddr>,
    /// The member that asks, where peers are members.
    member: Option<Admitted>,
    /// Whether it is this node's containerd that asks.
    is_ours: bool,
    puller: Puller,
    /// How its connection sends what is a file here.
    sender: FileSender,
    /// Where it is told who brings it.
    journey: Journey,
}

impl Asked {
    /// Which manifest, where it is asked for by digest.
    fn manifest(&self) -> Option<&Digest> {
        match &self.resource {
            Resource::Manifest(ManifestReference::Digest(digest)) => Some(digest),
            _ => None,
        }
    }

    /// Whose it is. None without `ns`.
    fn repository(&self) -> Option<Repository> {
        let ns = self.ns.as_deref()?;
        let name = self.puller.image.strip_prefix(ns)?.strip_prefix('/')?;
        Repository::new(ns, name).ok()
    }
}

/// An answer, whose source the access line will tell.
struct Answered {
    response: Response,
    source: Source,
}

async fn answer(State(registry): State<Arc<Registry>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let from_peer = parts.headers.contains_key(MIRRORED);
    let mut access = Access::begin(&parts, from_peer, registry.metrics.clone());
    let is_head = parts.method == Method::HEAD;
    let is_containerd = user_agent(&parts).starts_with(b"containerd/");
    let flushes: Flushes = parts.extensions.get().cloned().unwrap_or_default();

    let caller = match &registry.token {
        Some(token) if !from_peer => token.caller(
            parts
                .headers
                .get(node_token::HEADER)
                .map(HeaderValue::as_bytes),
        ),
        _ => Caller::Ours,
    };
    let member = match &registry.door {
        Some(door) if from_peer => door.admit(&parts).map(Some),
        _ => Ok(None),
    };
    let understood = match (caller, member) {
        _ if !registry.opens_to(&parts.headers) => Err(Error::Unauthorized { is_containerd }),
        (Caller::Refused, _) => Err(Error::Refused),
        (_, Err(refused)) => Err(Error::Stranger(refused)),
        (caller, Ok(member)) => understand(parts, &access, from_peer, caller == Caller::Ours)
            .map(|asked| Asked { member, ..asked }),
    };
    let answered = match understood {
        Ok(_) if has_body(body).await => Err(Error::RequestBody),
        Ok(asked) => {
            access.understood();
            if is_containerd && asked.is_ours && !asked.from_peer {
                registry.heard.note(asked.manifest());
            }
            registry.answer(asked).await
        }
        Err(e) => Err(e),
    };
    match answered {
        Ok(Answered { response, source }) => access.with_body(response, source, &flushes),
        Err(error) => {
            let response = error.to_response(is_head);
            access.failed(&error, response.status());
            response
        }
    }
}

impl Registry {
    /// Whether who sends these headers is one of us, as far as that is asked.
    fn opens_to(&self, headers: &HeaderMap) -> bool {
        let presented = headers.get(basic_auth::HEADER).map(HeaderValue::as_bytes);
        let secret = self.basic_auth.as_ref();
        secret.is_none_or(|secret| secret.accepts(presented))
    }

    /// What peers are to be asked, where they may be.
    fn wanted(&self, asked: &Asked) -> Result<Wanted, Miss> {
        if asked.from_peer {
            return Err(Miss::AskedByPeer);
        }
        if !asked.is_ours {
            return Err(Miss::Stranger);
        }
        Ok(Wanted {
            key: asked.resource.key().ok_or(Miss::NoKey)?,
            path_and_query: asked.path_and_query.clone(),
            puller: asked.puller.clone(),
            journey: asked.journey.clone(),
        })
    }

    /// Whether what is asked for is shared, under the name by which it is asked for: held or not, by containerd or by a
    /// peer. A tag of nowhere is found by nobody in any case.
    fn shares(&self, asked: &Asked) -> Result<(), Error> {
        use ManifestReference::{Digest, Tag, TagOfNowhere};
        if self.filter.is_open() {
            return Ok(());
        }
        let shared = match (&asked.resource, asked.repository()) {
            (Resource::Manifest(Tag(tag)), _) => self.filter.tag(tag).map_err(Miss::LeftOut),
            (Resource::Manifest(TagOfNowhere(_)), _) => Ok(()),
            (Resource::Manifest(Digest(digest)) | Resource::Blob(digest), Some(repository)) => {
                let shared = self.filter.content(&repository, digest);
                if shared.is_ok() && asked.is_ours && !asked.from_peer {
                    self.pulls.note(digest);
                }
                shared.map_err(Miss::LeftOut)
            }
            (_, None) => Err(Miss::OfNowhere),
        };
        shared.map_err(match &asked.resource {
            Resource::Manifest(_) => Error::NoManifest,
            Resource::Blob(_) => Error::NoBlob,
        })
    }

    async fn answer(&self, asked: Asked) -> Result<Answered, Error> {
        self.shares(&asked)?;
        let mut answered = match &asked.resource {
            Resource::Blob(digest) => blob::answer(self, &asked, digest).await?,
            Resource::Manifest(reference) => manifest::answer(self, &asked, reference).await?,
        };
        if let Some(ns) = asked
            .ns
            .as_deref()
            .and_then(|ns| HeaderValue::from_str(ns).ok())
        {
            answered.response.headers_mut().insert(OCI_NAMESPACE, ns);
        }
        if let (Some(door), Some(member), Resource::Manifest(ManifestReference::Tag(_))) =
            (&self.door, &asked.member, &asked.resource)
        {
            door.vouch(
                member,
                &asked.path_and_query,
                answered.response.headers_mut(),
            );
        }
        Ok(answered)
    }
}

/// The registry on whose behalf it is asked.
fn ns_of(parts: &Parts) -> Option<String> {
    let query = parts.uri.query().unwrap_or_default();
    form_urlencoded::parse(query.as_bytes())
        .find(|(name, _)| name == "ns")
        .map(|(_, value)| value.into_owned())
        .filter(|ns| !ns.is_empty())
}

fn understand(
    parts: Parts,
    access: &Access,
    from_peer: bool,
    is_ours: bool,
) -> Result<Asked, Error> {
    if parts.method != Method::GET && parts.method != Method::HEAD {
        return Err(Error::Method(parts.method));
    }
    let ns = ns_of(&parts);
    let is_head = parts.method == Method::HEAD;
    let path = parts.uri.path();
    let (may_ask_again, path) = match after_again(path) {
        Some(rest) => (true, rest),
        None => (false, path),
    };
    let below = path.strip_prefix("/v2/").ok_or_else(|| Error::path(path))?;
    let image = below.rsplitn(3, '/').nth(2).unwrap_or_default();
    let puller = Puller {
        image: format!("{}/{image}", ns.as_deref().unwrap_or_default()),
        generation: generation_of(user_agent(&parts)),
        may_ask_again,
        is_trial: access.is_trial(),
    };
    Ok(Asked {
        resource: Resource::parse(below, ns.as_deref()).map_err(Error::Path)?,
        path_and_query: match parts.uri.query() {
            Some(query) => format!("{path}?{query}"),
            None => path.to_string(),
        },
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
        remote: parts
            .extensions
            .get::<ConnectInfo<SocketAddr>>()
            .map(|ConnectInfo(remote)| remote.ip()),
        member: None,
        is_ours,
        puller,
        sender: parts.extensions.get().cloned().unwrap_or_default(),
        journey: access.journey(),
    })
}

/// What follows `/again/<n>`: hosts.toml lists us several times for containerd 2.x, and whoever asks at one of these will
/// ask at the next if the answer is 404.
fn after_again(path: &str) -> Option<&str> {
    let rest = path.strip_prefix(AGAIN)?.strip_prefix('/')?;
    let slash = rest.find('/')?;
    let (number, rest) = rest.split_at(slash);
    number.bytes().all(|b| b.is_ascii_digit()).then_some(rest)
}

/// Empty where it is not said.
fn user_agent(parts: &Parts) -> &[u8] {
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

/// What this node holds, unless its containerd or its disk does not answer: then it is as good as not held.
async fn in_time<T>(local: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    /// A look into the content store takes milliseconds, on a busy disk tens of them.
    const LOCAL: Duration = Duration::from_millis(500);
    tokio::time::timeout(LOCAL, local)
        .await
        .unwrap_or_else(|_| {
            Err(StoreError::Unreachable(format!(
                "no answer within {LOCAL:?}"
            )))
        })
}

/// Whether the request brings a body. Its first frame tells; the rest is the connection's to get rid of.
async fn has_body(mut body: Body) -> bool {
    /// Who announces a body and sends none of it has announced one.
    const PATIENCE: Duration = Duration::from_secs(1);
    if body.is_end_stream() {
        return false;
    }
    let first = tokio::time::timeout(PATIENCE, body.frame()).await;
    !matches!(first, Ok(None))
}
