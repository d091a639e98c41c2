//! Views to pages: what a template prints is a text here already.

mod cluster;
mod content;
mod flights;
mod overview;
mod pulls;

use askama::Template;

use crate::admin::Debug;
use crate::admin::view::words::short_peer;

pub(super) use cluster::Cluster;
pub(super) use content::Content;
pub(super) use flights::Flights;
pub(super) use overview::Overview;
pub(super) use pulls::Pulls;

/// What is around every page.
struct Frame {
    view: &'static str,
    title: &'static str,
    node: String,
    zone: Option<String>,
    version: &'static str,
    links: Vec<Link>,
}

struct Link {
    view: &'static str,
    href: String,
    title: &'static str,
    is_here: bool,
}

const VIEWS: [(&str, &str, &str); 6] = [
    ("overview", "", "Overview"),
    ("cluster", "cluster", "Cluster"),
    ("content", "content", "Content"),
    ("flights", "flights", "In flight"),
    ("pulls", "pulls", "Pulls"),
    ("try", "try", "Try a pull"),
];

impl Frame {
    fn of(debug: &Debug, here: &str) -> Self {
        let (view, _, title) = *VIEWS
            .iter()
            .find(|(view, ..)| *view == here)
            .unwrap_or(&VIEWS[0]);
        let at = debug.me.registry.first().map(|at| at.ip().to_string());
        Self {
            view,
            title,
            node: at.unwrap_or_else(|| short_peer(debug.me.id.as_str())),
            zone: debug.me.zone.as_deref().map(str::to_string),
            version: env!("CARGO_PKG_VERSION"),
            links: VIEWS
                .iter()
                .map(|(view, path, title)| Link {
                    view,
                    href: format!("/debug/web/{path}"),
                    title,
                    is_here: *view == here,
                })
                .collect(),
        }
    }
}

#[derive(Template)]
#[template(path = "try.html", config = "src/admin/web/askama.toml")]
pub(super) struct Try {
    frame: Frame,
    platform: String,
}

impl Try {
    pub(super) fn of(debug: &Debug, platform: String) -> Self {
        Self {
            frame: Frame::of(debug, "try"),
            platform,
        }
    }
}
