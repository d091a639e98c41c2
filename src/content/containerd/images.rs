//! Lists what one containerd namespace holds.

use std::collections::HashSet;

use containerd_client::services::v1::{ListContentRequest, ListImagesRequest};

use super::Inner;
use crate::content::skipped::Skipped;
use crate::content::{Image, Snapshot, StoreError};
use crate::oci::{Digest, ImageName};

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

        let images = images.into_iter().filter_map(|image| {
            let target: Digest = image.target?.digest.parse().ok()?;
            let is_held = blobs.contains(&target);
            is_held.then(|| image_of(&image.name, target, skipped))?
        });
        let images: HashSet<Image> = images.collect();
        Ok(Snapshot { images, blobs })
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

/// What an image's name stands for, if it is one.
fn image_of(name: &str, manifest: Digest, skipped: &Skipped) -> Option<Image> {
    // The CRI plugin also names each image by the digest of its configuration.
    if name.parse::<Digest>().is_ok() {
        return None;
    }
    let ImageName {
        repository,
        tag,
        digest,
    } = match name.parse::<ImageName>() {
        Ok(parsed) => parsed,
        Err(e) => {
            skipped.say(name, &e.to_string());
            return None;
        }
    };
    // `repository:tag@digest` is pinned: asked for by its digest, and its tag may long be another image.
    let tag = tag.filter(|_| digest.is_none());
    let is_full = tag.as_ref().is_none_or(|tag| tag.to_string() == name);
    if !is_full {
        skipped.say(
            name,
            "is not written out in full, so nobody will ask for it",
        );
    }
    Some(Image {
        repository,
        tag: tag.filter(|_| is_full),
        manifest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_full_tags_become_keys() {
        let hex = "c3ab8ff13720e8ad9047dd39466b3c8974e592c2fa383d4a3960714caef0c4f2";
        let skipped = Skipped::default();
        let manifest = Digest::sha256(b"manifest");
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
            let image = image_of(name, manifest.clone(), &skipped);
            let tag = image.and_then(|image| image.tag);
            let tag = tag.map(|tag| tag.to_string());
            assert_eq!(tag.as_deref(), shared.then_some(name), "{name}");
        }
        assert_eq!(skipped.said(), 3, "logged once each");
    }

    #[test]
    fn every_name_with_a_registry_says_whose_the_content_is() {
        let hex = "c3ab8ff13720e8ad9047dd39466b3c8974e592c2fa383d4a3960714caef0c4f2";
        let skipped = Skipped::default();
        let manifest = Digest::sha256(b"manifest");
        for (name, repository) in [
            ("a.test/app:v1", Some("a.test/app")),
            (&format!("a.test/app@sha256:{hex}"), Some("a.test/app")),
            (&format!("a.test/app:v1@sha256:{hex}"), Some("a.test/app")),
            ("docker.io/nginx:1.27", Some("docker.io/library/nginx")),
            ("myorg/app:v1", None),
            (&format!("sha256:{hex}"), None),
        ] {
            let image = image_of(name, manifest.clone(), &skipped);
            let found = image.map(|image| image.repository.to_string());
            assert_eq!(found.as_deref(), repository, "{name}");
        }
    }
}
