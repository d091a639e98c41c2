//! What this node answers as a meeting point, or as one who takes part and was named by it.

use std::time::Duration;

use tokio::time::{Instant, timeout};
use tracing::debug;

use super::Flights;
use super::table::{Circumstances, Said};
use super::wire::{Answer, Question};
use crate::oci::Digest;
use crate::routing::Peer;
use crate::routing::messenger::Meeting;
use crate::routing::rendezvous::{Advice, Part, Wish};

/// For a second opinion, of the 250 ms that the asker waits.
const OPINION: Duration = Duration::from_millis(80);
/// And for a look at who is closest: milliseconds, unless somebody hangs.
const SEARCH: Duration = Duration::from_millis(100);

impl Flights {
    pub(super) async fn answer(&self, from: &Peer, question: Question) -> Answer {
        let now = Instant::now();
        match question {
            Question::Ask(wish, circumstances) => self.advise(from, wish, circumstances).await,
            Question::Report(standings) => {
                Answer::Courses(self.table().report(from, &standings, now))
            }
            Question::Image {
                image,
                generation,
                is_busy,
            } => {
                let mut table = self.table();
                Answer::Image(table.image(&from.id, &image, generation, is_busy, now))
            }
            Question::Opinion(digest) => Answer::Opinion(self.table().opinion(&digest, now)),
        }
    }

    async fn advise(&self, from: &Peer, wish: Wish, mut circumstances: Circumstances) -> Answer {
        let mut said = self
            .table()
            .ask(from, &wish, &circumstances, Instant::now());
        if said == Said::AskOthers {
            let closer = self.look_around(from, &wish.digest).await;
            if let Some(closer) = closer.filter(|_| !circumstances.is_takeover) {
                return Answer::Closer(closer);
            }
            circumstances.has_opinion = true;
            said = self
                .table()
                .ask(from, &wish, &circumstances, Instant::now());
        }
        match said {
            Said::Advice(advice) => {
                if let Advice::Lead { .. } = advice {
                    let desk = self.0.messenger.me().id;
                    debug!(digest = %wish.digest, to = %from.id, %desk, offset = wish.offset, "leads");
                }
                Answer::Advice(advice)
            }
            Said::Descend(peer) => Answer::Descend(peer),
            Said::Astray | Said::AskOthers => Answer::Astray,
        }
    }

    /// Before somebody is told to lead what nobody is known to fetch: whether another node is closer to it, and else what
    /// the next closest knows, who was the meeting point if this node is new, and will be if it goes.
    async fn look_around(&self, from: &Peer, digest: &Digest) -> Option<Peer> {
        let me = self.0.messenger.me();
        let meeting = Meeting::Content(digest.clone());
        let now = Instant::now();
        let mut closest = match timeout(SEARCH, self.0.messenger.closest(&meeting)).await {
            Ok(closest) => closest,
            // A node near by hangs.
            Err(_) => self.0.messenger.nearest_known(&meeting).await,
        };
        // Whoever asks another has found that it is not the closest itself.
        closest
            .retain(|peer| peer.id == me.id || peer.id != from.id && !self.is_dead(&peer.id, now));
        match closest.first() {
            Some(first) if first.id != me.id => return Some(first.clone()),
            _ => {}
        }
        let next = closest.get(1)?;
        let opinion = Question::Opinion(digest.clone());
        let answer = self.put_to_other(&next.id, opinion, OPINION).await;
        if let Some(Answer::Opinion(known)) = answer {
            let mut table = self.table();
            for (peer, standing) in known {
                let is_known = matches!(standing.part, Part::Leads { .. } | Part::Holds);
                let is_another = peer.id != me.id && peer.id != from.id;
                if standing.digest == *digest && is_known && is_another {
                    table.report(&peer, &[standing], Instant::now());
                }
            }
        }
        None
    }
}
