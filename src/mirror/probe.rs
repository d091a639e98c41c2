//! A question to one peer outside of any pull: would it deliver?

use hyper::Method;

use super::Papers;
use super::attempt::{self, Ask, PeerError};
use crate::oci::distribution::Following;
use crate::routing::Peer;

/// What a peer is asked for outside of any pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Whether it would deliver a blob.
    Head,
    /// Whether it would answer for a tag, and be believed.
    Tag,
    /// The first bytes.
    Bytes,
}

/// Asks one peer for what it is said to hold. Path and query as containerd would send them. Bounded in time.
pub async fn probe(
    peer: &Peer,
    probe: Probe,
    path_and_query: String,
    papers: &Papers,
) -> Result<(), PeerError> {
    let ask = Ask {
        method: match probe {
            Probe::Head | Probe::Tag => Method::HEAD,
            Probe::Bytes => Method::GET,
        },
        path_and_query,
        range: None,
        growing: None,
        following: Following::No,
    };
    let answer = attempt::attempt(peer, &ask, papers).await?;
    let must_vouch = probe == Probe::Tag && papers.members.is_some();
    if must_vouch && answer.vouched.is_none() {
        return Err(PeerError::Unvouched);
    }
    Ok(())
}
