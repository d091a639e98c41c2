//! Who is there, as a picture and as a table.

use askama::Template;

use super::super::drawing::{Spoke, spokes};
use super::Frame;
use crate::admin::Debug;
use crate::admin::view::peers;
use crate::admin::view::words::{bytes, millis, short_peer};

#[derive(Template)]
#[template(path = "cluster.html", config = "src/admin/web/askama.toml")]
pub(in crate::admin::web) struct Cluster {
    frame: Frame,
    spokes: Vec<Spoke>,
    map_said: String,
    more: usize,
    rows: Vec<PeerRow>,
    others: Vec<String>,
}

struct PeerRow {
    address: String,
    zone: String,
    state: String,
    round_trip: String,
    first_byte: String,
    from: String,
    to: String,
    failures: u32,
    speaks: String,
    peer: String,
    short: String,
}

impl Cluster {
    pub(in crate::admin::web) fn of(debug: &Debug, view: peers::Peers) -> Self {
        let spokes = spokes(&view.peers);
        let some = |time: Option<f64>| time.map_or("–".to_string(), millis);
        let from: u64 = view.peers.iter().map(|row| row.bytes_from).sum();
        let to: u64 = view.peers.iter().map(|row| row.bytes_to).sum();
        Self {
            frame: Frame::of(debug, "cluster"),
            map_said: format!(
                "{} other nodes gave {} to this node and took {} from it; the table below has each",
                view.peers.len(),
                bytes(from),
                bytes(to)
            ),
            more: view.peers.len() - spokes.len(),
            spokes,
            rows: view
                .peers
                .into_iter()
                .map(|row| PeerRow {
                    address: row
                        .addresses
                        .first()
                        .map_or("–".to_string(), ToString::to_string),
                    zone: row.zone.unwrap_or_else(|| "–".to_string()),
                    state: row.state,
                    round_trip: some(row.round_trip_ms),
                    first_byte: some(row.first_byte_ms),
                    from: bytes(row.bytes_from),
                    to: bytes(row.bytes_to),
                    failures: row.failures,
                    speaks: row.speaks,
                    short: short_peer(&row.peer),
                    peer: row.peer,
                })
                .collect(),
            others: view
                .others
                .iter()
                .map(|other| {
                    let (from, to) = (bytes(other.bytes_from), bytes(other.bytes_to));
                    format!("{}: {from} from it, {to} to it", other.address)
                })
                .collect(),
        }
    }
}
