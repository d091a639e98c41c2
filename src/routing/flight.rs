//! The rendezvous: for each content one node, in memory and for seconds, knows who is fetching it and how far each is.
//!
//! ```text
//! mirror --ask, report--> Flights --messages--> Flights of the meeting point --> Table (pure)
//! ```
//!
//! Every node is both: it asks others (`ask`), and it answers for what it is the closest to (`desk`). The meeting point
//! is the closest live node to the content's key at the end of a finished search, among those that understand the
//! messages. It needs no credentials and fetches nothing for others. One that does not answer is passed over for the
//! next closest; the price of a lost one is a second copy from the registry.

mod ask;
mod desk;
mod entries;
pub mod table;
pub(crate) mod wire;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rand::rngs::StdRng;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::debug;

use crate::oci::Digest;
use crate::routing::messenger::{Call, Messenger, Unreachable};
use crate::routing::{Peer, PeerId};
use desk::Look;
use table::Table;
use wire::{Answer, Question};

/// A message within a cluster takes under a millisecond, on a busy machine tens of them. Who does not answer in this time
/// is passed over.
const CALL: Duration = Duration::from_millis(250);
/// And is not asked again for so long.
const DEAD: Duration = Duration::from_secs(10);
/// Things that are remembered of others: contents under way, dead nodes, images. Beyond that the oldest go.
const MAX_REMEMBERED: usize = 4096;

/// One node's part in all of it. Cloneable; all clones are the same.
#[derive(Clone)]
pub struct Flights(Arc<Inner>);

struct Inner {
    messenger: Arc<dyn Messenger>,
    table: Mutex<Table>,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    /// Who is the meeting point of a content, and when it last said something.
    desks: HashMap<Digest, (PeerId, Instant)>,
    /// Who knows of this node's part in a content and wants to hear of it: the meeting point, or whom it named.
    patrons: HashMap<Digest, (PeerId, Instant)>,
    /// Who did not answer, and until when that is remembered.
    dead: HashMap<PeerId, Instant>,
    /// Who leads an image, as of when.
    images: HashMap<String, (Option<PeerId>, Instant)>,
    /// Looks around before somebody leads, and since when each.
    looks: HashMap<Digest, (Look, Instant)>,
    /// Who gave no opinion, and until when it is not asked for one. It may be busy, and is not dead for that.
    silent: HashMap<PeerId, Instant>,
    /// Who is closer to a content than this node, and said so itself.
    closer: HashMap<Digest, (Peer, Instant)>,
}

impl Flights {
    pub fn new(messenger: Arc<dyn Messenger>, rng: StdRng) -> Self {
        let table = Table::new(messenger.me(), Instant::now(), rng);
        Self(Arc::new(Inner {
            messenger,
            table: Mutex::new(table),
            memory: Mutex::default(),
        }))
    }

    /// Answers what other nodes ask, until nobody can ask any more.
    pub async fn serve(self, mut calls: mpsc::Receiver<Call>) {
        let mut answering = FuturesUnordered::new();
        loop {
            tokio::select! {
                call = calls.recv() => match call {
                    Some(call) => answering.push(self.clone().serve_one(call)),
                    None => return,
                },
                Some(()) = answering.next() => {}
            }
        }
    }

    async fn serve_one(self, call: Call) {
        match Question::decode(call.message) {
            Ok(question) => {
                let answer = self.answer(&call.from, question).await;
                // It waits no longer.
                let _ = call.answer.send(answer.encode());
            }
            // Dropped, which the caller takes for a failure of this node: a newer release may say what is not known here.
            Err(error) => debug!(peer = %call.from.id, %error, "not understood"),
        }
    }

    /// Asks `whom`, be it this node. None where there is no answer.
    async fn put(&self, whom: &PeerId, question: Question) -> Option<Answer> {
        let me = self.0.messenger.me();
        if *whom == me.id {
            return Some(self.answer(&me, question).await);
        }
        self.put_to_other(whom, question, CALL).await
    }

    /// Asks another node. Who gives no answer within `limit` counts as dead for a while.
    async fn put_to_other(
        &self,
        whom: &PeerId,
        question: Question,
        limit: Duration,
    ) -> Option<Answer> {
        let message: Bytes = question.encode();
        let deadline = Instant::now() + limit;
        let messenger = &self.0.messenger;
        let mut answer = messenger.call(whom, message.clone(), limit).await;
        // On a connection that had been idle, and that the other side has just closed, a message is lost however well that
        // one is. The next call makes a new connection; and every question may be put twice.
        if answer == Err(Unreachable::Gone) {
            let left = deadline.saturating_duration_since(Instant::now());
            answer = messenger.call(whom, message, left).await;
        }
        let answer = match answer {
            Ok(answer) => Answer::decode(answer).map_err(|e| e.to_string()),
            Err(e) => Err(e.to_string()),
        };
        match answer {
            Ok(answer) => Some(answer),
            Err(error) => {
                debug!(peer = %whom, error, "a meeting point gives no answer");
                self.passes_over(whom);
                None
            }
        }
    }

    /// For a while it is asked nothing.
    fn passes_over(&self, whom: &PeerId) {
        let now = Instant::now();
        let mut memory = self.memory();
        memory.dead.retain(|_, until| now < *until);
        if memory.dead.len() < MAX_REMEMBERED {
            memory.dead.insert(whom.clone(), now + DEAD);
        }
    }

    fn is_dead(&self, whom: &PeerId, now: Instant) -> bool {
        let memory = self.memory();
        memory.dead.get(whom).is_some_and(|until| now < *until)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.0.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
