//! Who is a peer, where peers are members: judges the proof of each request, and proves what is said of tags.

use std::sync::Arc;
use std::time::SystemTime;

use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};

use crate::membership::{self, Admitted, Members};
use crate::oci::distribution::DOCKER_CONTENT_DIGEST;
use crate::routing::Peer;

/// Open to members.
#[derive(Clone, Debug)]
pub struct Door {
    members: Arc<Members>,
    /// By which they know this node: a proof is for one of these.
    names: Arc<[String]>,
}

impl Door {
    pub fn new(members: Arc<Members>, me: &Peer) -> Self {
        let names = me.names().map(|name| name.to_string());
        Self {
            members,
            names: names.collect(),
        }
    }

    pub(super) fn admit(&self, parts: &Parts) -> Result<Admitted, membership::Refused> {
        let text = |value: &'_ HeaderValue| value.to_str().ok().map(str::to_string);
        let path = parts.uri.path_and_query().map(|it| it.as_str());
        // With If-Range the Range is not looked at: then the whole would be sent for a proof of a part.
        let range = parts.headers.get(header::RANGE).and_then(text);
        let range = range.filter(|_| !parts.headers.contains_key(header::IF_RANGE));
        let asked = membership::Request {
            // Replaced by each of the names.
            to: "",
            method: parts.method.as_str(),
            path_and_query: path.unwrap_or_default(),
            range: range.as_deref().unwrap_or_default(),
        };
        let presented = parts.headers.get_all(membership::HEADER).iter();
        let presented = presented.filter_map(|value| value.to_str().ok());
        let now = SystemTime::now();
        self.members.admit(presented, &asked, &self.names, now)
    }

    /// Proves to a member that what it is told of a tag is a member's word.
    pub(super) fn vouch(&self, member: &Admitted, path_and_query: &str, headers: &mut HeaderMap) {
        let digest = headers.get(DOCKER_CONTENT_DIGEST);
        let Some(digest) = digest.and_then(|digest| digest.to_str().ok()) else {
            return;
        };
        let proof = self.members.vouch(member, path_and_query, digest);
        if let Ok(proof) = HeaderValue::from_str(&proof) {
            headers.insert(membership::TAG_PROOF, proof);
        }
    }
}
