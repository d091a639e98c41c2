//! The verdict, the numbers, and the last hour.

use askama::Template;

use super::super::drawing::{Chart, chart};
use super::Frame;
use crate::admin::Debug;
use crate::admin::view::overview;
use crate::admin::view::words::{bytes, percent};

#[derive(Template)]
#[template(path = "overview.html", config = "src/admin/web/askama.toml")]
pub(in crate::admin::web) struct Overview {
    frame: Frame,
    state: &'static str,
    verdict: overview::Verdict,
    awaited: Vec<String>,
    stats: Vec<Stat>,
    chart: Chart,
    /// Whether doctor is at hand here.
    doctor: bool,
}

struct Stat {
    id: &'static str,
    class: &'static str,
    name: &'static str,
    value: String,
    note: String,
}

impl Overview {
    pub(in crate::admin::web) fn of(debug: &Debug, view: overview::Overview) -> Self {
        use overview::State;
        let requests = &view.totals.requests;
        let all = requests.all();
        let share = |part| match all {
            0 => String::new(),
            all => format!("{} %", percent(part, all)),
        };
        let stat = |id, name, value: String, note: String| Stat {
            id,
            class: "",
            name,
            value,
            note,
        };
        let class = |class, part, stat: Stat| match part {
            0 => stat,
            _ => Stat { class, ..stat },
        };
        Self {
            frame: Frame::of(debug, "overview"),
            state: match view.verdict.state {
                State::Mirroring => "mirroring",
                State::Idle => "idle",
                State::Waiting => "waiting",
                State::Alone => "alone",
                State::Failing => "failing",
            },
            stats: vec![
                stat(
                    "saved",
                    "Kept off the registry",
                    bytes(view.totals.saved),
                    String::new(),
                ),
                stat(
                    "peer",
                    "Answered by peers",
                    requests.peer.to_string(),
                    share(requests.peer),
                ),
                stat(
                    "local",
                    "Answered by this node",
                    requests.local.to_string(),
                    share(requests.local),
                ),
                class(
                    "miss",
                    requests.miss,
                    stat(
                        "miss",
                        "Left to the registry",
                        requests.miss.to_string(),
                        share(requests.miss),
                    ),
                ),
                class(
                    "failed",
                    requests.failed,
                    stat(
                        "failed",
                        "Failed",
                        requests.failed.to_string(),
                        share(requests.failed),
                    ),
                ),
                stat(
                    "uploaded",
                    "Given to peers",
                    bytes(view.totals.uploaded),
                    String::new(),
                ),
                stat(
                    "peers",
                    "Other nodes",
                    view.peers.known.to_string(),
                    format!("{} connected", view.peers.connected),
                ),
                stat(
                    "images",
                    "Images here",
                    view.content.images.to_string(),
                    format!("{} blobs", view.content.blobs),
                ),
                stat(
                    "advertised",
                    "Keys told the cluster",
                    view.content.advertised.to_string(),
                    String::new(),
                ),
                stat(
                    "under-way",
                    "Under way now",
                    view.under_way.to_string(),
                    String::new(),
                ),
            ],
            verdict: view.verdict,
            awaited: view.awaited,
            doctor: debug.doctor.is_some(),
            chart: chart(&view.last_hour),
        }
    }
}
