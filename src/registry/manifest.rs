//! GET and HEAD of a manifest, by tag or digest.
//!
//! Manifests are small: they are read whole before anything is answered. So a tag is answered only if its manifest can
//! be had, and a HEAD is the GET without its body.

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use tracing::debug;

use super::access::Source;
use super::error::{Error, Miss};
use super::{Answered, Asked, DIGEST, Registry, growing, in_time};
use crate::content::StoreError;
use crate::mirror::Manifest;
use crate::oci::Digest;
use crate::oci::distribution::{MAX_MANIFEST, ManifestReference};
use crate::oci::media_type;

pub(super) async fn answer(
    registry: &Registry,
    asked: &Asked,
    reference: &ManifestReference,
) -> Result<Answered, Error> {
    if let (Some(patience), ManifestReference::Digest(digest)) = (asked.growing, reference) {
        let bytes = growing::manifest(registry, reference, digest, patience);
        let bytes = Box::pin(bytes).await?;
        return Ok(Answered {
            response: response(asked, digest, bytes, None),
            source: Source::Local,
        });
    }
    match in_time(local(registry, reference)).await {
        Ok(Some((digest, bytes))) => {
            return Ok(Answered {
                response: response(asked, &digest, bytes, None),
                source: Source::Local,
            });
        }
        Ok(None) => {}
        Err(e) => debug!(?reference, error = %e, "not to be had locally"),
    }
    let wanted = registry.wanted(asked).map_err(Error::NoManifest)?;
    // Boxed, as whatever is waited for elsewhere: what is here is answered without room for it.
    let fetched = match reference {
        ManifestReference::Digest(digest) => {
            Box::pin(registry.mirror.manifest(wanted, digest)).await
        }
        _ => Box::pin(registry.mirror.tagged_manifest(wanted)).await,
    };
    let Manifest {
        bytes,
        digest,
        content_type,
        in_flight,
    } = fetched.map_err(|e| Error::NoManifest(Miss::Fetch(e)))?;
    let mut response = response(asked, &digest, bytes, content_type);
    response.extensions_mut().insert(in_flight);
    Ok(Answered {
        response,
        source: Source::Peer,
    })
}

pub(super) async fn local(
    registry: &Registry,
    reference: &ManifestReference,
) -> Result<Option<(Digest, Bytes)>, StoreError> {
    let digest = match reference {
        ManifestReference::Digest(digest) => Some(digest.clone()),
        ManifestReference::Tag(tag) => registry.store.resolve(tag).await?,
        ManifestReference::TagOfNowhere(_) => None,
    };
    let Some(digest) = digest else {
        return Ok(None);
    };
    let Some(blob) = registry.store.open(&digest).await? else {
        return Ok(None);
    };
    let bytes = blob
        .read_all(MAX_MANIFEST)
        .await
        .map_err(|e| StoreError::Failed(e.to_string()))?;
    // A machine that lost its power may have kept a file's name and not its bytes.
    if !digest.verifies(&bytes) {
        return Err(StoreError::Failed(format!("{digest} is damaged here")));
    }
    let is_tag = matches!(reference, ManifestReference::Tag(_));
    if is_tag && media_type::of_manifest(&bytes).is_none() {
        return Err(StoreError::Failed(format!("{digest} is no manifest")));
    }
    Ok(Some((digest, bytes)))
}

/// `sent_as` is what a peer called it, for the rare manifest that does not tell by itself.
fn response(asked: &Asked, digest: &Digest, bytes: Bytes, sent_as: Option<String>) -> Response {
    let content_type = media_type::of_manifest(&bytes)
        .or(sent_as)
        .and_then(|content_type| HeaderValue::from_str(&content_type).ok())
        .unwrap_or(HeaderValue::from_static(media_type::OCTET_STREAM));
    let length = bytes.len();
    let mut response = Response::new(if asked.is_head {
        Body::empty()
    } else {
        Body::from(bytes)
    });
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(header::CONTENT_LENGTH, length.into());
    headers.extend(HeaderValue::from_str(digest.as_str()).map(|digest| (DIGEST.clone(), digest)));
    response
}
