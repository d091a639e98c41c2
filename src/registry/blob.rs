//! GET and HEAD of a blob: local, else mirrored.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tracing::debug;

use super::access::Source;
use super::error::{Error, Miss};
use super::uploads::{Full, SMALL, Upload};
use super::{Answered, Asked, DIGEST, Registry, growing, in_time};
use crate::content::StoreError;
use crate::mirror::FetchError;
use crate::oci::distribution::{ByteRange, Following, MAX_HOLDERS, Span, Unsatisfiable};
use crate::oci::media_type;
use crate::oci::{Digest, Key};

pub(super) async fn answer(
    registry: &Registry,
    asked: &Asked,
    digest: &Digest,
) -> Result<Answered, Error> {
    let range = asked.range.as_deref().and_then(ByteRange::parse);
    if let Some(patience) = asked.growing {
        return Box::pin(growing::blob(registry, asked, digest, range, patience)).await;
    }
    match in_time(local(registry, asked, digest, range)).await {
        Ok(Some(answer)) => return answer,
        Ok(None) => {}
        Err(e) => debug!(%digest, error = %e, "not to be had locally"),
    }
    let wanted = registry.wanted(asked).map_err(Error::NoBlob)?;
    let missed = |error| match error {
        FetchError::NotSatisfiable { total, .. } => Error::NotSatisfiable { total },
        error => Error::NoBlob(Miss::Fetch(error)),
    };
    if asked.is_head {
        // Boxed, as whatever is waited for elsewhere: what is here is answered without room for it.
        let total = Box::pin(registry.mirror.blob_size(wanted)).await;
        let total = total.map_err(missed)?;
        return Ok(Answered {
            response: head(digest, total, None),
            source: Source::Peer,
        });
    }
    let fetched = Box::pin(registry.mirror.blob(wanted, range)).await;
    let fetched = fetched.map_err(missed)?;
    let part = range.map(|_| fetched.span);
    let mut response = with_body(head(digest, fetched.total, part), fetched.body);
    response.extensions_mut().insert(fetched.in_flight);
    Ok(Answered {
        response,
        source: Source::Peer,
    })
}

/// None where the blob is not here; an error where it turns out to be unreadable before anything was sent.
pub(super) async fn local(
    registry: &Registry,
    asked: &Asked,
    digest: &Digest,
    range: Option<ByteRange>,
) -> Result<Option<Result<Answered, Error>>, StoreError> {
    let Some(blob) = registry.store.open(digest).await? else {
        return Ok(None);
    };
    let total = blob.size();
    // A machine that lost its power may have kept a file's name and not its bytes.
    if total == 0 && !digest.verifies(&[]) {
        return Err(StoreError::Failed(format!("{digest} is damaged here")));
    }
    let answered = |response| {
        Ok(Some(Ok(Answered {
            response,
            source: Source::Local,
        })))
    };
    if asked.is_head {
        // A Range is defined for GET only (RFC 9110, section 14.2).
        return answered(head(digest, total, None));
    }
    let part = match range.map(|range| range.resolve(total)).transpose() {
        Ok(part) => part,
        Err(Unsatisfiable) => return Ok(Some(Err(Error::NotSatisfiable { total: Some(total) }))),
    };
    let span = part.unwrap_or(Span {
        start: 0,
        end: total,
    });
    // Who would wait for what is growing could also take it from another.
    let following = match asked.growing {
        Some(_) => Following::May,
        None => asked.following,
    };
    let upload = match begin_upload(registry, asked, (digest, span), following).await {
        Ok(upload) => upload,
        Err(error) => return Ok(Some(Err(error))),
    };
    let child = asked.growing.map(|_| registry.uplink.begin(digest));
    let mut body = blob.send(span.start..span.end, &asked.sender);
    let first = match body.next().await.transpose() {
        Ok(first) => first.map(Ok),
        Err(e) => return Err(StoreError::Failed(e.to_string())),
    };
    let body = stream::iter(first).chain(body);
    let mut sent = 0;
    // Under way until the body is dropped, however it ends.
    let body = body.inspect(move |chunk| {
        let Ok(chunk) = chunk else {
            return;
        };
        let bytes = chunk.len() as u64;
        if let Some(upload) = &upload {
            upload.sends(bytes);
        }
        if let Some(child) = &child {
            sent += bytes;
            child.progress(sent, span.len());
        }
    });
    answered(with_body(head(digest, total, part), body.boxed()))
}

/// Counts a body to a peer, unless it is small; an error where the peer has to go elsewhere.
pub(super) async fn begin_upload(
    registry: &Registry,
    asked: &Asked,
    (digest, span): (&Digest, Span),
    following: Following,
) -> Result<Option<Upload>, Error> {
    let is_counted = asked.from_peer && span.len() > SMALL;
    let Some(peer) = asked.remote.filter(|_| is_counted) else {
        return Ok(None);
    };
    match registry.uploads.begin(peer, digest, following) {
        Ok(upload) => Ok(Some(upload)),
        // It knows whom to ask then, and others that have it are no better off.
        Err(Full::Content) => Err(Error::Busy {
            holders: Vec::new(),
        }),
        Err(Full::Share) => Err(Box::pin(busy(registry, digest, peer)).await),
    }
}

/// Sends a peer to others who hold it. Not for long: it can find them itself.
async fn busy(registry: &Registry, digest: &Digest, peer: IpAddr) -> Error {
    const PATIENCE: Duration = Duration::from_millis(50);
    let key = Key::Content(digest.clone());
    let holders = registry.mirror.holders(key, PATIENCE).await;
    let addresses = holders.iter().flat_map(|holder| &holder.registry);
    let holders = addresses
        .map(SocketAddr::ip)
        .filter(|ip| ip.to_canonical() != peer.to_canonical())
        .take(MAX_HOLDERS)
        .collect();
    Error::Busy { holders }
}

/// The headers of a blob of `total` bytes, or of a part of it.
pub(super) fn head(digest: &Digest, total: u64, part: Option<Span>) -> Response {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(media_type::OCTET_STREAM),
    );
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(
        header::CONTENT_LENGTH,
        part.map_or(total, |part| part.len()).into(),
    );
    // A digest is hexadecimal and a range is decimal: both are header values.
    headers.extend(HeaderValue::from_str(digest.as_str()).map(|digest| (DIGEST.clone(), digest)));
    if let Some(part) = part {
        headers.extend(
            HeaderValue::from_str(&part.content_range(total))
                .map(|range| (header::CONTENT_RANGE, range)),
        );
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    response
}

pub(super) fn with_body(head: Response, body: BoxStream<'static, io::Result<Bytes>>) -> Response {
    head.map(|_| Body::from_stream(body))
}
