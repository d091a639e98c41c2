//! Small messages between nodes: what a router carries for others beside its own lookups.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::oneshot;

use super::{Peer, PeerId};
use crate::oci::Digest;

/// What nodes meet about: a place in the key space, at which some node is the closest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Meeting {
    /// Where the providers of this content are recorded, too: one search finds them and the meeting point.
    Content(Digest),
    /// `registry/repository`.
    Repository(String),
}

/// Carries messages of at most [`MAX_MESSAGE`] bytes to nodes that understand them, and names the nodes that are close to
/// a meeting. What comes in from others is a [`Call`].
#[async_trait]
pub trait Messenger: Send + Sync + 'static {
    /// This node, as others are told of it.
    fn me(&self) -> Peer;

    /// The nodes closest to `meeting` at the end of a finished search, nearest first, this node among them. Nodes that are
    /// known not to understand messages are left out. A search that has just ended for the same content counts; else
    /// there is one, bounded in time. Never empty: at worst this node is alone.
    async fn closest(&self, meeting: &Meeting) -> Vec<Peer>;

    /// The same from what this node knows now, without asking anybody: connected peers and itself.
    async fn nearest_known(&self, meeting: &Meeting) -> Vec<Peer>;

    /// Sends `message` and waits for the answer, no longer than `limit`.
    async fn call(
        &self,
        to: &PeerId,
        message: Bytes,
        limit: Duration,
    ) -> Result<Bytes, Unreachable>;
}

/// In bytes; a message of everything that a node takes part in has a hundred bytes for each digest.
pub const MAX_MESSAGE: usize = 64 << 10;

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreachable {
    /// It was not reached, or broke off.
    #[error("was not reached")]
    Gone,
    #[error("did not answer in time")]
    Silent,
    /// It is a node that does not know these messages, such as Spegel's.
    #[error("does not understand these messages")]
    Stranger,
}

/// A message from another node, to be answered. Dropped unanswered, it is a failure for the caller.
#[derive(Debug)]
pub struct Call {
    /// Who calls, as the connection proves it, and where its registry is.
    pub from: Peer,
    pub message: Bytes,
    pub answer: oneshot::Sender<Bytes>,
}
