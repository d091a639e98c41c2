//! The HTTP face: what containerd and peers ask, and the kubelet's probes.
//!
//! Read only, and one hop: what a peer asks for is answered from what is here. Whatever cannot be answered is a 404 at
//! once, so that containerd goes upstream. No header is sent before the first byte of its body is in hand (containerd
//! repeats headers without bytes four times and then fails the pull), and never a 429 (six repeats) or a
//! Content-Encoding (digests are of the bytes as they are).

pub mod access;
mod asked;
mod blob;
pub mod door;
mod error;
mod growing;
pub mod heard;
mod manifest;
pub mod uploads;
pub mod verified;

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;

use crate::advertise::Pulls;
use crate::basic_auth::{self, Secret};
use crate::content::{ContentStore, StoreError};
use crate::inflight::{Inflight, Uplink};
use crate::mirror::{Mirror, Wanted};
use crate::node_token::{self, Caller, NodeToken};
use crate::oci::distribution::{
    DOCKER_CONTENT_DIGEST, MIRRORED, ManifestReference, OCI_NAMESPACE, Resource,
};
use crate::oci::filter::Filter;
use crate::readiness::Readiness;
use crate::server::Answers;
use crate::server::flush::Flushes;
use access::{Access, Source};
use asked::{Asked, after_again, ns_of, understand, user_agent};
use door::Door;
use error::{Error, Miss};
use heard::Heard;
use uploads::Uploads;
use verified::Verified;

static DIGEST: HeaderName = HeaderName::from_static(DOCKER_CONTENT_DIGEST);
static NAMESPACE: HeaderName = HeaderName::from_static(OCI_NAMESPACE);

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
    /// Manifests that are asked for again and again.
    pub verified: Verified,
    /// What containerd is still writing here, for peers that would take it.
    pub inflight: Inflight,
    /// Who of them is taking it.
    pub uplink: Uplink,
}

/// All routes of the registry port. Without a router: its tree of services, each boxed and cloned for each request, costs
/// more than the four paths that are no content are worth.
#[derive(Clone)]
pub struct Routes(Arc<Registry>);

pub fn router(registry: Registry) -> Routes {
    Routes(Arc::new(registry))
}

impl Answers for Routes {
    async fn answer(self, request: Request) -> Response {
        self.0.route(request).await
    }
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

/// An answer, whose source the access line will tell.
struct Answered {
    response: Response,
    source: Source,
}

async fn answer(registry: &Registry, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let from_peer = parts.headers.contains_key(MIRRORED);
    let ns = ns_of(&parts.uri);
    let metrics = registry.metrics.clone();
    let mut access = Access::begin(&parts, ns.as_deref(), from_peer, metrics);
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
        (caller, Ok(member)) => understand(parts, ns, &access, from_peer, caller == Caller::Ours)
            .map(|mut asked| {
                asked.member = member;
                asked
            }),
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
    async fn route(&self, request: Request) -> Response {
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        // To a HEAD hyper sends their length and no body.
        match request.uri().path() {
            "/livez" if is_read => "alive\n".into_response(),
            "/readyz" if is_read => self.readyz(),
            "/v2" | "/v2/" if is_read && self.opens_to(request.headers()) => version_check(),
            _ => answer(self, request).await,
        }
    }

    fn readyz(&self) -> Response {
        if self.readiness.is_ready() {
            return "ready\n".into_response();
        }
        let awaited = self.readiness.awaited();
        let awaited = awaited.iter().map(|it| format!("awaiting {it}\n"));
        (StatusCode::SERVICE_UNAVAILABLE, awaited.collect::<String>()).into_response()
    }

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
            path_and_query: asked.path_and_query(),
            puller: asked.puller(),
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
            answered
                .response
                .headers_mut()
                .insert(NAMESPACE.clone(), ns);
        }
        if let (Some(door), Some(member), Resource::Manifest(ManifestReference::Tag(_))) =
            (&self.door, &asked.member, &asked.resource)
        {
            door.vouch(
                member,
                &asked.path_and_query(),
                answered.response.headers_mut(),
            );
        }
        Ok(answered)
    }
}

/// Distribution spec, "Determining Support".
fn version_check() -> Response {
    let head = [
        (header::CONTENT_TYPE, "application/json"),
        (
            header::HeaderName::from_static("docker-distribution-api-version"),
            "registry/2.0",
        ),
    ];
    (head, "{}").into_response()
}

/// What this node holds, unless its containerd or its disk does not answer: then it is as good as not held.
async fn in_time<T>(local: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    /// A look into the content store takes milliseconds, on a busy disk tens of them.
    const LOCAL: Duration = Duration::from_millis(500);
    let mut local = pin!(local);
    // As a rule it is there at once: then no timer is needed, and no place for one.
    if let Poll::Ready(found) = futures::poll!(&mut local) {
        return found;
    }
    Box::pin(tokio::time::timeout(LOCAL, local))
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
    let first = Box::pin(tokio::time::timeout(PATIENCE, body.frame())).await;
    !matches!(first, Ok(None))
}
