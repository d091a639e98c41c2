//! Who is known: where, how far, how well they delivered, and what went from whom to whom.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::super::Debug;
use crate::mirror::Score;
use crate::recent::PeerBytes;
use crate::routing::{Neighbour, PeerId};

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Peers {
    /// This node itself.
    pub me: Me,
    /// Those with the most bytes first.
    pub peers: Vec<Row>,
    /// Who took or brought bytes and is known under no name: other addresses of nodes, or nodes that have left.
    pub others: Vec<Other>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Me {
    pub peer: String,
    pub addresses: Vec<SocketAddr>,
    pub zone: Option<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Row {
    pub peer: String,
    /// Of its registry.
    pub addresses: Vec<SocketAddr>,
    pub zone: Option<String>,
    /// connected, known (in the routing table) or resting (failed lately: asked when nobody else is there).
    pub state: String,
    /// peili, spegel (does not understand Peili's messages) or unknown.
    pub speaks: String,
    pub round_trip_ms: Option<f64>,
    /// From a request to its first byte, smoothed.
    pub first_byte_ms: Option<f64>,
    /// Requests of this node under way to it.
    pub under_way: u32,
    /// Failures since it last delivered.
    pub failures: u32,
    /// How much longer it rests.
    pub rests_ms: Option<f64>,
    pub bytes_from: u64,
    pub bytes_to: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Other {
    pub address: IpAddr,
    pub bytes_from: u64,
    pub bytes_to: u64,
}

pub async fn of(debug: &Debug) -> Peers {
    let neighbours = (debug.neighbours)().await;
    let (peers, others) = table(
        neighbours,
        debug.mirror.scores(),
        debug.recent.bytes_by_peer(),
        Instant::now(),
    );
    Peers {
        me: Me {
            peer: debug.me.id.to_string(),
            addresses: debug.me.registry.clone(),
            zone: debug.me.zone.as_deref().map(str::to_string),
        },
        peers,
        others,
    }
}

/// Joins what router, scoreboard and counters know. Pure.
fn table(
    neighbours: Vec<Neighbour>,
    scores: HashMap<PeerId, Score>,
    mut bytes: HashMap<IpAddr, PeerBytes>,
    now: Instant,
) -> (Vec<Row>, Vec<Other>) {
    let millis = |time: std::time::Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
    let mut rows: Vec<Row> = neighbours
        .into_iter()
        .map(|neighbour| {
            let peer = neighbour.peer;
            let score = scores.get(&peer.id);
            let rests = score.and_then(|score| score.resting_until);
            let rests = rests.filter(|until| now < *until).map(|until| until - now);
            let mut moved = PeerBytes::default();
            for at in &peer.registry {
                if let Some(some) = bytes.remove(&at.ip().to_canonical()) {
                    moved.from += some.from;
                    moved.to += some.to;
                }
            }
            let state = match (rests, neighbour.is_connected) {
                (Some(_), _) => "resting",
                (None, true) => "connected",
                (None, false) => "known",
            };
            Row {
                peer: peer.id.to_string(),
                addresses: peer.registry,
                zone: peer.zone.as_deref().map(str::to_string),
                state: state.to_string(),
                speaks: match neighbour.speaks {
                    Some(true) => "peili",
                    Some(false) => "spegel",
                    None => "unknown",
                }
                .to_string(),
                round_trip_ms: neighbour.round_trip.map(millis),
                first_byte_ms: score.and_then(|score| score.first_byte).map(millis),
                under_way: score.map_or(0, |score| score.in_flight),
                failures: score.map_or(0, |score| score.failures),
                rests_ms: rests.map(millis),
                bytes_from: moved.from,
                bytes_to: moved.to,
            }
        })
        .collect();
    rows.sort_by(|a, b| {
        let moved = |row: &Row| row.bytes_from + row.bytes_to;
        moved(b)
            .cmp(&moved(a))
            .then_with(|| a.addresses.cmp(&b.addresses))
    });
    let mut others: Vec<Other> = bytes
        .into_iter()
        .map(|(address, bytes)| Other {
            address,
            bytes_from: bytes.from,
            bytes_to: bytes.to,
        })
        .collect();
    others.sort_by_key(|other| std::cmp::Reverse(other.bytes_from + other.bytes_to));
    (rows, others)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::routing::Peer;

    #[test]
    fn what_is_known_of_a_node_in_three_places_stands_in_one_row() {
        let neighbour = |n: u8| Neighbour {
            peer: Peer {
                id: PeerId::new(format!("p{n}")),
                registry: vec![([10, 0, 0, n], 5000).into(), ([10, 0, 1, n], 5000).into()],
                zone: (n == 1).then(|| "a".into()),
            },
            is_connected: n == 1,
            round_trip: Some(Duration::from_micros(1500)),
            speaks: (n == 1).then_some(true),
        };
        let ip = |a: u8, n: u8| IpAddr::from([10, 0, a, n]);
        let moved = |from, to| PeerBytes { from, to };
        let bytes = [
            (ip(0, 2), moved(5, 0)),
            (ip(1, 2), moved(0, 7)),
            (ip(9, 9), moved(1, 1)),
        ];

        let (rows, others) = table(
            vec![neighbour(1), neighbour(2)],
            HashMap::new(),
            bytes.into(),
            Instant::now(),
        );

        let told: Vec<_> = rows
            .iter()
            .map(|r| (r.peer.as_str(), r.state.as_str(), r.bytes_from, r.bytes_to))
            .collect();
        assert_eq!(told, [("p2", "known", 5, 7), ("p1", "connected", 0, 0)]);
        assert_eq!(rows[1].speaks, "peili");
        assert_eq!(rows[0].round_trip_ms, Some(1.5));
        assert_eq!(others.len(), 1);
        assert_eq!(others[0].address, ip(9, 9));
    }
}
