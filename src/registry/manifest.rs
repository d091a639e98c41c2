//! GET and HEAD of a manifest, by tag or digest.
//!
//! Manifests are small: they are read whole before anything is answered. So a tag is answered only if its manifest can
//! be had, and a HEAD is the GET without its body.

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use tracing::debug;

use super::access::Source;
use super::error::{Error, Miss};
use super::verified::Manifest;
use super::{Answered, Asked, DIGEST, Registry, growing, in_time};
use crate::content::StoreError;
use crate::oci::Digest;
use crate::oci::distribution::{MAX_MANIFEST, ManifestReference};
use crate::oci::media_type;

pub(super) async fn answer(
    registry: &Registry,
    asked: &Asked,
    reference: &ManifestReference,
) -> Result<Answered, Error> {
    if let (Some(patience), ManifestReference::Digest(digest)) = (asked.growing, reference) {
        let manifest = growing::manifest(registry, reference, digest, patience);
        let manifest = Box::pin(manifest).await?;
        return Ok(Answered {
            response: response(asked, digest, manifest),
            source: Source::Local,
        });
    }
    match in_time(local(registry, reference)).await {
        Ok(Some((digest, manifest))) => {
            return Ok(Answered {
                response: response(asked, &digest, manifest),
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
    let fetched = fetched.map_err(|e| Error::NoManifest(Miss::Fetch(e)))?;
    let mut manifest = Manifest::new(fetched.bytes);
    if manifest.content_type.is_none() {
        // What a peer called it, for the rare one that does not tell by itself.
        let sent_as = fetched.content_type;
        manifest.content_type = sent_as.and_then(|it| HeaderValue::from_str(&it).ok());
    }
    let in_flight = fetched.in_flight;
    let mut response = response(asked, &fetched.digest, manifest);
    response.extensions_mut().insert(in_flight);
    Ok(Answered {
        response,
        source: Source::Peer,
    })
}

pub(super) async fn local(
    registry: &Registry,
    reference: &ManifestReference,
) -> Result<Option<(Digest, Manifest)>, StoreError> {
    let digest = match reference {
        ManifestReference::Digest(digest) => Some(digest.clone()),
        ManifestReference::Tag(tag) => registry.store.resolve(tag).await?,
        ManifestReference::TagOfNowhere(_) => None,
    };
    let Some(digest) = digest else {
        return Ok(None);
    };
    let manifest = match registry.verified.get(&digest) {
        Some(manifest) => manifest,
        None => match read(registry, &digest).await? {
            Some(manifest) => manifest,
            None => return Ok(None),
        },
    };
    let is_tag = matches!(reference, ManifestReference::Tag(_));
    if is_tag && manifest.content_type.is_none() {
        return Err(StoreError::Failed(format!("{digest} is no manifest")));
    }
    Ok(Some((digest, manifest)))
}

async fn read(registry: &Registry, digest: &Digest) -> Result<Option<Manifest>, StoreError> {
    let Some(blob) = registry.store.open(digest).await? else {
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
    let manifest = Manifest::new(bytes);
    registry.verified.keep(digest, &manifest, blob);
    Ok(Some(manifest))
}

fn response(asked: &Asked, digest: &Digest, manifest: Manifest) -> Response {
    let Manifest {
        bytes,
        content_type,
    } = manifest;
    let content_type = content_type.unwrap_or(HeaderValue::from_static(media_type::OCTET_STREAM));
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
