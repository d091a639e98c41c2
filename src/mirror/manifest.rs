//! Manifests: read whole and checked before the first byte is handed on, by digest or by tag.

use bytes::Bytes;
use hyper::Method;
use tokio::time::Instant;

use super::attempt::{self, Ask, PeerError};
use super::checked::{WHOLE, not_it, whole};
use super::{FetchError, InFlight, Mirror, Wanted};
use crate::oci::distribution::Following;
use crate::oci::{Digest, media_type};

/// A manifest, whole and checked against its digest.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub bytes: Bytes,
    pub digest: Digest,
    /// As the peer sent it; the manifest itself may say better.
    pub content_type: Option<String>,
    pub in_flight: InFlight,
}

impl Mirror {
    /// A manifest by digest. What does not have the digest is not taken, and the next peer is asked.
    pub async fn manifest(&self, wanted: Wanted, digest: &Digest) -> Result<Manifest, FetchError> {
        if let Some(flight) = &self.flight
            && !wanted.puller.is_trial
        {
            flight.asked_for_manifest(&wanted.puller.image, digest);
        }
        let is_it = |bytes: &[u8], _: Option<&Digest>| match digest.verifies(bytes) {
            true => Ok(digest.clone()),
            false => Err(not_it()),
        };
        self.manifest_that(wanted, is_it).await
    }

    /// A manifest by tag: as of some peer, since a tag has no right answer; of a member where there are members. It must be a
    /// manifest, whatever else may listen at a peer's address today.
    pub async fn tagged_manifest(&self, wanted: Wanted) -> Result<Manifest, FetchError> {
        let is_closed = self.papers.members.is_some();
        let is_one = |bytes: &[u8], vouched: Option<&Digest>| {
            media_type::of_manifest(bytes).ok_or_else(not_it)?;
            match vouched {
                Some(digest) if digest.verifies(bytes) => Ok(digest.clone()),
                Some(_) => Err(not_it()),
                None if is_closed => Err(PeerError::Unvouched),
                None => Ok(Digest::sha256(bytes)),
            }
        };
        self.manifest_that(wanted, is_one).await
    }

    /// The first manifest that `digest_of` accepts: it is given the bytes, and what a member says is their digest.
    async fn manifest_that(
        &self,
        wanted: Wanted,
        digest_of: impl Fn(&[u8], Option<&Digest>) -> Result<Digest, PeerError>,
    ) -> Result<Manifest, FetchError> {
        let ask = Ask {
            method: Method::GET,
            path_and_query: wanted.path_and_query.clone(),
            range: None,
            growing: None,
            // Small enough to be given to everybody.
            following: Following::No,
        };
        let mut sources = self.sources(wanted).await?;
        loop {
            let mut source = sources.deliver(&ask).await?;
            let content_type = source.delivery.answer.content_type.take();
            let vouched = source.delivery.answer.vouched.take();
            // Of one that is being fetched elsewhere the first byte comes late, and with it all others.
            let deadline = match (&source.growing, &sources.boarding) {
                (Some(_), Some(boarding)) => {
                    boarding.deadline().min(Instant::now() + attempt::GIVE_UP)
                }
                _ => sources.search.deadline.min(Instant::now() + WHOLE),
            };
            let error = match whole(&mut source.delivery, deadline).await {
                Ok(bytes) => match digest_of(&bytes, vouched.as_ref()) {
                    Ok(digest) => {
                        let peer = &source.delivery.peer.id;
                        self.scoreboard.delivered(peer, Instant::now());
                        sources.begins(&source);
                        sources.search.journey.brought(bytes.len() as u64);
                        if let Some(boarding) = &sources.boarding {
                            boarding.gives_up_to(bytes.len() as u64);
                        }
                        let in_flight = InFlight::default();
                        in_flight.set(source.growing.is_some());
                        return Ok(Manifest {
                            bytes,
                            digest,
                            content_type,
                            in_flight,
                        });
                    }
                    Err(error) => error,
                },
                Err(e) => e,
            };
            sources.failed(&source, error);
        }
    }
}
