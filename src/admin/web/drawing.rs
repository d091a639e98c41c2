//! Where the lines go: the hour as bars, the cluster as a star. Pure.

use std::f64::consts::TAU;

use super::super::view::peers::Row;
use super::super::view::words;
use crate::recent::Minute;

/// As many nodes as fit around one without their names touching.
const MAX_SPOKES: usize = 12;

pub(super) struct Chart {
    pub bars: Vec<Bar>,
    /// At the top of the scale.
    pub most: String,
    /// For those who do not see it.
    pub said: String,
    pub rows: Vec<ChartRow>,
}

pub(super) struct Bar {
    pub class: &'static str,
    pub x: usize,
    pub y: String,
    pub height: String,
    pub said: String,
}

/// One minute in which something happened.
pub(super) struct ChartRow {
    pub ago: usize,
    pub peer: String,
    pub in_flight: String,
    pub local: String,
    pub missed: u64,
}

/// 720 wide, the bars between 10 and 130.
pub(super) fn chart(hour: &[Minute]) -> Chart {
    const BOTTOM: f64 = 130.0;
    const HEIGHT: f64 = 120.0;
    const STEP: usize = 12;
    let most = hour
        .iter()
        .map(|minute| minute.bytes.all())
        .max()
        .unwrap_or(0);
    let (mut bars, mut rows) = (Vec::new(), Vec::new());
    let (mut peers, mut all) = (0, 0);
    for (place, minute) in hour.iter().enumerate() {
        let ago = hour.len() - 1 - place;
        let bytes = &minute.bytes;
        (peers, all) = (peers + bytes.peer + bytes.in_flight, all + bytes.all());
        let mut y = BOTTOM;
        for (class, part, name) in [
            ("peer", bytes.peer, "from peers"),
            (
                "in_flight",
                bytes.in_flight,
                "from peers that were still getting it",
            ),
            ("local", bytes.local, "from this node"),
        ] {
            if part == 0 {
                continue;
            }
            let height = (part as f64 / most as f64 * HEIGHT).max(1.0);
            y -= height;
            bars.push(Bar {
                class,
                x: place * STEP + 1,
                y: format!("{y:.1}"),
                height: format!("{height:.1}"),
                said: format!("{} {name}, {ago} minutes ago", words::bytes(part)),
            });
        }
        if bytes.all() > 0 || minute.requests.miss + minute.requests.failed > 0 {
            rows.push(ChartRow {
                ago,
                peer: words::bytes(bytes.peer),
                in_flight: words::bytes(bytes.in_flight),
                local: words::bytes(bytes.local),
                missed: minute.requests.miss + minute.requests.failed,
            });
        }
    }
    rows.reverse();
    Chart {
        bars,
        most: words::bytes(most),
        said: format!(
            "{} in the last hour, {} of it from peers; at most {} in a minute",
            words::bytes(all),
            words::bytes(peers),
            words::bytes(most)
        ),
        rows,
    }
}

/// One other node, and the two lines between it and this one.
pub(super) struct Spoke {
    pub state: String,
    pub name: String,
    pub note: String,
    /// The middle of its circle.
    pub x: String,
    pub y: String,
    /// What this node gives.
    pub x1: String,
    pub y1: String,
    pub x2: String,
    pub y2: String,
    pub to_width: String,
    /// What it gives.
    pub u1: String,
    pub v1: String,
    pub u2: String,
    pub v2: String,
    pub from_width: String,
    pub label_y: String,
    pub note_y: String,
}

/// This node stands at (360, 140) of 720 by 280.
pub(super) fn spokes(rows: &[Row]) -> Vec<Spoke> {
    const MIDDLE: (f64, f64) = (360.0, 140.0);
    const RADIUS: (f64, f64) = (270.0, 88.0);
    let rows = &rows[..rows.len().min(MAX_SPOKES)];
    let most = rows
        .iter()
        .map(|row| row.bytes_from.max(row.bytes_to))
        .max()
        .unwrap_or(0);
    let width = |bytes: u64| match bytes {
        0 => 0.0,
        bytes => 1.5 + 7.0 * (bytes as f64 / most as f64),
    };
    let text = |value: f64| format!("{value:.1}");
    let place = |(n, row): (usize, &Row)| {
        let angle = TAU * n as f64 / rows.len() as f64 + TAU / 24.0;
        let (x, y) = (
            MIDDLE.0 + RADIUS.0 * angle.cos(),
            MIDDLE.1 + RADIUS.1 * angle.sin(),
        );
        // Beside each other, not upon each other.
        let aside = match row.bytes_from.min(row.bytes_to) {
            0 => 0.0,
            _ => 5.0,
        };
        let (dx, dy) = (-angle.sin() * aside, angle.cos() * aside);
        let at = row.addresses.first().map(|at| at.ip().to_string());
        let down = if y < MIDDLE.1 { -30.0 } else { 32.0 };
        Spoke {
            state: row.state.clone(),
            name: at.unwrap_or_else(|| words::short_peer(&row.peer)),
            note: match (row.bytes_from, row.bytes_to) {
                (0, 0) => "nothing yet".to_string(),
                (from, 0) => format!("gave {}", words::bytes(from)),
                (0, to) => format!("took {}", words::bytes(to)),
                (from, to) => format!("gave {}, took {}", words::bytes(from), words::bytes(to)),
            },
            x: text(x),
            y: text(y),
            x1: text(MIDDLE.0 - dx),
            y1: text(MIDDLE.1 - dy),
            x2: text(x - dx),
            y2: text(y - dy),
            to_width: text(width(row.bytes_to)),
            u1: text(MIDDLE.0 + dx),
            v1: text(MIDDLE.1 + dy),
            u2: text(x + dx),
            v2: text(y + dy),
            from_width: text(width(row.bytes_from)),
            label_y: text(y + down),
            note_y: text(y + down + 14.0),
        }
    };
    rows.iter().enumerate().map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recent::{ByBytes, ByRequests};

    #[test]
    fn bars_stand_on_each_other_and_the_tallest_is_as_high_as_the_chart() {
        let minute = |peer, local, miss| Minute {
            bytes: ByBytes {
                peer,
                local,
                in_flight: 0,
            },
            requests: ByRequests {
                miss,
                ..ByRequests::default()
            },
            ..Minute::default()
        };

        let chart = chart(&[
            minute(30, 10, 0),
            minute(0, 0, 0),
            minute(0, 0, 1),
            minute(20, 0, 0),
        ]);

        let bars: Vec<_> = chart
            .bars
            .iter()
            .map(|b| (b.class, b.x, b.y.as_str(), b.height.as_str()))
            .collect();
        assert_eq!(
            bars,
            [
                ("peer", 1, "40.0", "90.0"),
                ("local", 1, "10.0", "30.0"),
                ("peer", 37, "70.0", "60.0")
            ]
        );
        let rows: Vec<_> = chart.rows.iter().map(|row| (row.ago, row.missed)).collect();
        assert_eq!(rows, [(0, 0), (1, 1), (3, 0)]);
        assert!(super::chart(&[]).bars.is_empty());
    }
}
