//! What is under way: layers that grow here, who reads them, and this node's place among those who get the same.

use serde::Serialize;

use super::super::Debug;
use crate::mirror::flight::part::Role;
use crate::recent::{Asked, Leg};

#[derive(Clone, Debug, Serialize)]
pub struct Flights {
    /// What this node's containerd is getting, and how this node takes part in that.
    pub flights: Vec<Row>,
    /// Bodies on their way to this node's containerd.
    pub getting: Vec<Transfer>,
    /// Bodies on their way to peers.
    pub giving: Vec<Transfer>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub digest: String,
    pub image: String,
    /// asks, leads (gets it from the registry, others follow), follows or takes (from a node that has it whole).
    pub role: &'static str,
    /// Whom it follows.
    pub parent: Option<String>,
    pub since_ms: u64,
    /// Bytes that are here.
    pub bytes: u64,
    pub length: Option<u64>,
    pub bytes_per_second: u64,
    /// Bytes that whoever is furthest has.
    pub leaders_bytes: u64,
    /// Peers that read it from here now.
    pub readers: usize,
}

#[derive(Clone, Debug, Serialize)]
pub struct Transfer {
    pub id: u64,
    #[serde(flatten)]
    pub asked: Asked,
    pub bytes: u64,
    pub length: Option<u64>,
    /// Of late, not since it began.
    pub bytes_per_second: u64,
    pub for_ms: u64,
    pub from: Vec<Leg>,
}

impl Flights {
    pub fn is_empty(&self) -> bool {
        self.flights.is_empty() && self.getting.is_empty() && self.giving.is_empty()
    }
}

pub fn of(debug: &Debug) -> Flights {
    let millis = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let transfers = debug
        .recent
        .under_way()
        .into_iter()
        .map(|transfer| Transfer {
            id: transfer.id,
            asked: Asked::clone(&transfer.asked),
            bytes: transfer.bytes(),
            length: transfer.length(),
            bytes_per_second: transfer.rate(),
            for_ms: millis(transfer.elapsed()),
            from: transfer.journey.from(),
        });
    let (giving, getting): (Vec<Transfer>, Vec<Transfer>) =
        transfers.partition(|transfer| transfer.asked.by == crate::recent::Asker::Peer);
    let mut flights: Vec<Row> = debug
        .mirror
        .flights()
        .into_iter()
        .map(|flight| {
            let digest = flight.digest.to_string();
            let (role, parent) = match flight.role {
                Role::Asks => ("asks", None),
                Role::Leads { .. } => ("leads", None),
                Role::Follows { parent } => ("follows", Some(parent.to_string())),
                Role::Takes => ("takes", None),
            };
            Row {
                readers: giving
                    .iter()
                    .filter(|to| to.asked.reference == digest)
                    .count(),
                digest,
                image: flight.image,
                role,
                parent,
                since_ms: millis(flight.since),
                bytes: flight.offset,
                length: flight.total,
                bytes_per_second: flight.rate,
                leaders_bytes: flight.leaders.offset,
            }
        })
        .collect();
    flights.sort_by(|a, b| (&a.image, &a.digest).cmp(&(&b.image, &b.digest)));
    Flights {
        flights,
        getting,
        giving,
    }
}
