//! What grows, and what is on its way.

use askama::Template;

use super::Frame;
use crate::admin::Debug;
use crate::admin::view::flights;
use crate::admin::view::words::{bytes, short, short_peer};

#[derive(Template)]
#[template(path = "flights.html", config = "src/admin/web/askama.toml")]
pub(in crate::admin::web) struct Flights {
    frame: Frame,
    groups: Vec<Group>,
}

struct Group {
    id: &'static str,
    title: &'static str,
    nothing: &'static str,
    /// What the last column tells.
    who: &'static str,
    rows: Vec<FlightRow>,
}

struct FlightRow {
    digest: String,
    short: String,
    image: String,
    value: u64,
    max: u64,
    said: String,
    speed: String,
    place: String,
}

impl Flights {
    pub(in crate::admin::web) fn of(debug: &Debug, view: flights::Flights) -> Self {
        let flights = view.flights.into_iter().map(|row| {
            let readers = match row.readers {
                0 => String::new(),
                1 => " One node reads it from here.".to_string(),
                readers => format!(" {readers} nodes read it from here."),
            };
            let parent = row.parent.as_deref().map(short_peer).unwrap_or_default();
            let place = match row.role {
                "leads" => {
                    "Leader: this node gets it from the registry, others follow.".to_string()
                }
                "follows" => format!("Follows {parent}, which is ahead of it."),
                "takes" => "Takes it from a node that has it whole.".to_string(),
                _ => "Asks who gets it.".to_string(),
            };
            // By digest, of which 64 characters would push everything else aside.
            let image = row.image.split('@').next().unwrap_or_default();
            FlightRow::of(
                row.digest,
                image.to_string(),
                row.bytes,
                row.length,
                row.bytes_per_second,
                place + &readers,
            )
        });
        let transfer = |transfer: flights::Transfer, who: String| {
            let image = transfer.asked.image.unwrap_or_default();
            FlightRow::of(
                transfer.asked.reference,
                image,
                transfer.bytes,
                transfer.length,
                transfer.bytes_per_second,
                who,
            )
        };
        let getting = view.getting.into_iter().map(|it| {
            let from = it.from.last().map(|leg| match (leg.at, leg.in_flight) {
                (Some(at), true) => format!("{}, still getting it", at.ip()),
                (Some(at), false) => at.ip().to_string(),
                (None, _) => short_peer(&leg.peer),
            });
            let who = from.unwrap_or_else(|| match it.bytes {
                0 => "looking for it".to_string(),
                _ => "this node".to_string(),
            });
            transfer(it, who)
        });
        let giving = view.giving.into_iter().map(|it| {
            let who = it.asked.remote.map(|ip| ip.to_canonical().to_string());
            transfer(it, who.unwrap_or_default())
        });
        Self {
            frame: Frame::of(debug, "flights"),
            groups: vec![
                Group {
                    id: "growing",
                    title: "Growing here",
                    nothing: "This node's containerd is writing nothing now.",
                    who: "This node's place",
                    rows: flights.collect(),
                },
                Group {
                    id: "getting",
                    title: "On the way to containerd",
                    nothing: "Nothing is on its way.",
                    who: "From",
                    rows: getting.collect(),
                },
                Group {
                    id: "giving",
                    title: "On the way to peers",
                    nothing: "Nobody reads from this node now.",
                    who: "To",
                    rows: giving.collect(),
                },
            ],
        }
    }
}

impl FlightRow {
    fn of(
        digest: String,
        image: String,
        value: u64,
        length: Option<u64>,
        speed: u64,
        place: String,
    ) -> Self {
        Self {
            short: short(&digest),
            digest,
            image,
            value,
            max: length.unwrap_or(value).max(1),
            said: match length {
                Some(length) => format!("{} of {}", bytes(value), bytes(length)),
                None => bytes(value),
            },
            speed: format!("{}/s", bytes(speed)),
            place,
        }
    }
}
