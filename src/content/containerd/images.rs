//! Lists what one containerd namespace holds.

use std::collections::HashSet;

use containerd_client::services::v1::{ListContentRequest, ListImagesRequest};

use super::Inner;
use crate::content::skipped::Skipped;
use crate::content::{Snapshot, StoreError};
use crate::oci::{Digest, ImageName, Key};

impl Inner {
    /// Every blob of the namespace, and every tag whose manifest is among them.
    pub(super) async fn list(&self, skipped: &Skipped) -> Result<Snapshot, StoreError> {
        // Images first: what is pulled between the two calls is then a blob without a tag, never a tag without a blob.
        let images = self
            .images()
            .list(self.namespaced(ListImagesRequest::default()))
            .await
            .map_err(|status| self.error("images.List", &status))?
            .into_inner()
            .images;
        let blobs = self.list_blobs().await?;

        let mut keys = HashSet::with_capacity(blobs.len() + images.len());
        for image in images {
            let target = image.target.and_then(|target| target.digest.parse().ok());
            let held = target.is_some_and(|digest: Digest| blobs.contains(&digest));
            if let (true, Some(key)) = (held, key_of(&image.name, skipped)) {
                keys.insert(key);
            }
        }
        keys.extend(blobs.into_iter().map(Key::Content));
        Ok(Snapshot(keys))
    }

    async fn list_blobs(&self) -> Result<HashSet<Digest>, StoreError> {
        let failed = |status| self.error("content.List", &status);
        let mut messages = self
            .content()
            .list(self.namespaced(ListContentRequest::default()))
            .await
            .map_err(failed)?
            .into_inner();
        let mut blobs = HashSet::new();
        while let Some(message) = messages.message().await.map_err(failed)? {
            // A digest of an algorithm that we do not know cannot be asked of us either.
            blobs.extend(
                message
                    .info
                    .iter()
                    .filter_map(|info| info.digest.parse().ok()),
            );
        }
        Ok(blobs)
    }
}

/// The key of an image name, if it has one.
fn key_of(name: &str, skipped: &Skipped) -> Option<Key> {
    // The CRI plugin also names each image by the digest of its configuration.
    if name.parse::<Digest>().is_ok() {
        return None;
    }
    let reason = match name.parse::<ImageName>() {
        Ok(ImageName { tag: None, .. }) => return None,
        // `repository:tag@digest` is pinned: asked for by its digest, and its tag may long be another image.
        Ok(ImageName {
            digest: Some(_), ..
        }) => return None,
        Ok(ImageName { tag: Some(tag), .. }) if tag.to_string() == name => {
            return Some(Key::Tag(tag));
        }
        Ok(_) => "is not written out in full, so nobody will ask for it".to_string(),
        Err(e) => e.to_string(),
    };
    skipped.say(name, &reason);
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_full_tags_become_keys() {
        let hex = "c3ab8ff13720e8ad9047dd39466b3c8974e592c2fa383d4a3960714caef0c4f2";
        let skipped = Skipped::default();
        for (name, shared) in [
            ("docker.io/library/nginx:1.27", true),
            ("10.0.0.1:5000/a/b:v1", true),
            ("docker.io/nginx:1.27", false),
            ("myorg/app:v1", false),
            ("not a name", false),
            (&format!("sha256:{hex}"), false),
            (&format!("docker.io/library/nginx@sha256:{hex}"), false),
            (&format!("docker.io/library/nginx:1.27@sha256:{hex}"), false),
        ] {
            let key = key_of(name, &skipped).map(|key| key.to_string());
            assert_eq!(key.as_deref(), shared.then_some(name), "{name}");
        }
        assert_eq!(skipped.said(), 3, "logged once each");
    }
}
