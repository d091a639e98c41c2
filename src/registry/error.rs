//! Every error to status and OCI body, in one match.

use std::net::IpAddr;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use oci_spec::distribution::{ErrorCode, ErrorInfoBuilder, ErrorResponseBuilder};

use crate::basic_auth;
use crate::membership;
use crate::mirror::FetchError;
use crate::oci::ReferenceError;
use crate::oci::distribution::{FLIGHT, Flight, HOLDERS, PathError};
use crate::oci::filter::LeftOut;

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("{0}")]
    Path(PathError),
    #[error("method {0} is not supported: this registry is read only")]
    Method(Method),
    /// Peers only: containerd would be told to come back, and never is.
    #[error("busy: as many peers as may read this, or anything, are doing so")]
    Busy { holders: Vec<IpAddr> },
    /// 404 and nothing stronger: if it is a containerd that strayed here, it goes on to its next host at once.
    #[error(
        "only this node's containerd and peers are served: the node's token is missing or wrong"
    )]
    Refused,
    /// 404 like the one above: whoever it is goes elsewhere at once.
    #[error("only members of this cluster are served: {0}")]
    Stranger(membership::Refused),
    /// Whoever gets it goes to its next host: a peer to another one, containerd to the registry.
    #[error("the user name and the password are missing or wrong")]
    Unauthorized { is_containerd: bool },
    #[error("a GET or HEAD has no body here")]
    RequestBody,
    #[error("manifest unknown")]
    NoManifest(#[source] Miss),
    #[error("blob unknown")]
    NoBlob(#[source] Miss),
    #[error("the range begins beyond the end")]
    NotSatisfiable { total: Option<u64> },
}

/// Why something that might have been here, or with a peer, is not to be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum Miss {
    #[error("not held here, and a peer's request goes no further")]
    AskedByPeer,
    /// A peer has asked for what may still be coming in.
    #[error("{}", match .0 {
        Flight::Waiting => "coming in, and not there within the time that the peer would wait",
        Flight::Absent => "neither held here nor coming in, and a peer's request goes no further",
    })]
    Flight(Flight),
    #[error("not held here, and without the node's token nothing is fetched")]
    Stranger,
    #[error(transparent)]
    LeftOut(LeftOut),
    /// Only where something is left out at all.
    #[error(
        "some registries or images are left out, and content of which registry is this? A mirror needs \
         ?ns=<registry> to know"
    )]
    OfNowhere,
    #[error("not held here, and a tag of which registry? A mirror needs ?ns=<registry> to know")]
    NoKey,
    #[error(transparent)]
    Fetch(FetchError),
}

impl Error {
    pub(super) fn path(path: &str) -> Self {
        Error::Path(PathError::NoSuchPath(path.chars().take(200).collect()))
    }

    /// Peers that should have delivered did not: worth an operator's attention, unlike content that nobody holds.
    pub(super) fn is_failure(&self) -> bool {
        matches!(
            self,
            Error::NoManifest(Miss::Fetch(FetchError::Exhausted { .. }))
                | Error::NoBlob(Miss::Fetch(FetchError::Exhausted { .. }))
        )
    }

    /// Held here, and not given now.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self, Error::Busy { .. })
    }

    /// Whether the request was one that this registry answers at all.
    pub(super) fn is_miss(&self) -> bool {
        matches!(self, Error::NoManifest(_) | Error::NoBlob(_))
    }

    /// What lies below the error, if anything does.
    pub(super) fn reason(&self) -> Option<String> {
        let causes = std::iter::successors(std::error::Error::source(self), |e| e.source());
        let causes: Vec<String> = causes.map(ToString::to_string).collect();
        (!causes.is_empty()).then(|| causes.join(": "))
    }

    pub(super) fn to_response(&self, is_head: bool) -> Response {
        let (status, code) = match self {
            Error::Path(PathError::NoSuchPath(_)) => {
                (StatusCode::NOT_FOUND, ErrorCode::Unsupported)
            }
            Error::Path(PathError::Name(_)) => (StatusCode::BAD_REQUEST, ErrorCode::NameInvalid),
            Error::Path(PathError::Reference(ReferenceError::Digest(_))) => {
                (StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid)
            }
            Error::Path(PathError::Reference(_)) => {
                (StatusCode::BAD_REQUEST, ErrorCode::ManifestInvalid)
            }
            Error::Method(_) => (StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported),
            Error::Busy { .. } => (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::TooManyRequests),
            Error::Refused | Error::Stranger(_) => (StatusCode::NOT_FOUND, ErrorCode::Denied),
            Error::Unauthorized { .. } => (StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized),
            Error::RequestBody => (StatusCode::BAD_REQUEST, ErrorCode::Unsupported),
            Error::NoManifest(_) => (StatusCode::NOT_FOUND, ErrorCode::ManifestUnknown),
            Error::NoBlob(_) => (StatusCode::NOT_FOUND, ErrorCode::BlobUnknown),
            // The distribution spec has no code for it; the status says all.
            Error::NotSatisfiable { .. } => {
                (StatusCode::RANGE_NOT_SATISFIABLE, ErrorCode::Unsupported)
            }
        };
        let body = self.body(code);
        let length = body.len();
        let mut response = Response::new(if is_head { Body::empty() } else { body.into() });
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        headers.insert(header::CONTENT_LENGTH, length.into());
        match self {
            Error::Method(_) => {
                headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            }
            // containerd would answer it with the image's pull secret, which is the registry's and not ours, five times over
            // for each request (measured on 1.6, 1.7 and 2.1). What we want to hear stands in hosts.toml or nowhere.
            Error::Unauthorized {
                is_containerd: true,
            } => {}
            Error::Unauthorized {
                is_containerd: false,
            } => {
                let challenge = HeaderValue::from_static(basic_auth::CHALLENGE);
                headers.insert(header::WWW_AUTHENTICATE, challenge);
            }
            Error::Busy { holders } => {
                let holders: Vec<String> = holders.iter().map(IpAddr::to_string).collect();
                let value = HeaderValue::from_str(&holders.join(","));
                let name = HeaderName::from_static(HOLDERS);
                headers.extend(value.ok().map(|value| (name, value)));
            }
            Error::NoBlob(Miss::Flight(flight)) | Error::NoManifest(Miss::Flight(flight)) => {
                let value = HeaderValue::from_static(flight.as_str());
                headers.insert(HeaderName::from_static(FLIGHT), value);
            }
            Error::Stranger(refused) => {
                let value = HeaderValue::from_str(&refused.to_string());
                let name = HeaderName::from_static(membership::REFUSED);
                headers.extend(value.ok().map(|value| (name, value)));
            }
            Error::RequestBody => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Error::NotSatisfiable { total: Some(total) } => {
                let value = HeaderValue::from_str(&format!("bytes */{total}"));
                headers.extend(value.ok().map(|value| (header::CONTENT_RANGE, value)));
            }
            _ => {}
        }
        response
    }

    /// `{"errors":[{"code","message","detail"}]}`, as the distribution spec has it; the detail says why.
    fn body(&self, code: ErrorCode) -> String {
        let mut info = ErrorInfoBuilder::default()
            .code(code)
            .message(self.to_string());
        if let Some(reason) = self.reason() {
            // oci-spec wants JSON text here.
            info = info.detail(serde_json::json!({ "reason": reason }).to_string());
        }
        info.build()
            .and_then(|info| ErrorResponseBuilder::default().errors(vec![info]).build())
            .ok()
            .and_then(|response| serde_json::to_string(&response).ok())
            // Both builders have all they need; an empty list is still an answer.
            .unwrap_or_else(|| r#"{"errors":[]}"#.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Key;
    use http_body_util::BodyExt as _;

    async fn json(response: Response) -> serde_json::Value {
        let body = response.into_body().collect().await.unwrap().to_bytes();
        serde_json::from_slice(&body).unwrap()
    }

    #[tokio::test]
    async fn a_miss_tells_why_in_the_form_of_the_spec() {
        let key = Key::Content(crate::oci::Digest::sha256(b"x"));
        let error = Error::NoBlob(Miss::Fetch(FetchError::NoPeer(key.clone())));

        let response = error.to_response(false);

        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        let json = json(response).await;
        assert_eq!(json["errors"][0]["code"], "BLOB_UNKNOWN");
        assert_eq!(json["errors"][0]["message"], "blob unknown");
        assert_eq!(
            json["errors"][0]["detail"]["reason"],
            format!("no peer holds {key}")
        );
    }

    #[tokio::test]
    async fn a_head_has_the_same_headers_and_no_body() {
        let error = Error::Method(Method::PUT);

        let (get, head) = (error.to_response(false), error.to_response(true));

        assert_eq!(get.headers(), head.headers());
        assert_eq!(get.headers()["allow"], "GET, HEAD");
        assert!(
            head.into_body()
                .collect()
                .await
                .unwrap()
                .to_bytes()
                .is_empty()
        );
    }

    #[tokio::test]
    async fn who_lacks_the_password_is_told_how_to_send_it() {
        let of = |is_containerd| Error::Unauthorized { is_containerd }.to_response(false);
        let (containerd, response) = (of(true), of(false));

        assert_eq!(containerd.status(), StatusCode::UNAUTHORIZED);
        assert!(!containerd.headers().contains_key("www-authenticate"));
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        let challenge = "Basic realm=\"peili\", charset=\"UTF-8\"";
        assert_eq!(response.headers()["www-authenticate"], challenge);
        assert_eq!(json(response).await["errors"][0]["code"], "UNAUTHORIZED");
    }

    #[test]
    fn an_unsatisfiable_range_tells_the_length() {
        let response = Error::NotSatisfiable { total: Some(7) }.to_response(false);

        assert_eq!(response.status(), StatusCode::RANGE_NOT_SATISFIABLE);
        assert_eq!(response.headers()["content-range"], "bytes */7");
    }
}
