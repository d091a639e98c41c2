//! What is here.

use askama::Template;

use super::Frame;
use crate::admin::Debug;
use crate::admin::view::content;
use crate::admin::view::words::{bytes, short};

#[derive(Template)]
#[template(path = "content.html", config = "src/admin/web/askama.toml")]
pub(in crate::admin::web) struct Content {
    frame: Frame,
    search: String,
    title: String,
    summary: String,
    rows: Vec<ImageRow>,
}

struct ImageRow {
    image: String,
    tag: String,
    digest: String,
    short: String,
    platforms: String,
    size: String,
    advertised: bool,
    why: String,
}

impl Content {
    pub(in crate::admin::web) fn of(debug: &Debug, view: content::Content, search: String) -> Self {
        let shown = view.images.len();
        Self {
            frame: Frame::of(debug, "content"),
            title: match view.found {
                1 => "1 image".to_string(),
                found => format!("{found} images"),
            },
            summary: format!(
                "{} blobs are held, and the cluster is told of {} tags and digests.{}",
                view.blobs,
                view.advertised,
                match shown < view.found {
                    true => format!(" The first {shown} are shown: search for the others."),
                    false => String::new(),
                }
            ),
            search,
            rows: view.images.into_iter().map(ImageRow::of).collect(),
        }
    }
}

impl ImageRow {
    fn of(row: content::Row) -> Self {
        let platforms = row.platforms.iter().map(|platform| match platform.whole {
            true => platform.platform.clone(),
            false => format!("{} (not all)", platform.platform),
        });
        let platforms: Vec<String> = platforms.collect();
        Self {
            image: row.image,
            tag: row.tag.unwrap_or_else(|| "–".to_string()),
            short: short(row.digest.as_str()),
            digest: row.digest.to_string(),
            platforms: match platforms.is_empty() {
                true => "–".to_string(),
                false => platforms.join(", "),
            },
            size: bytes(row.bytes),
            advertised: row.advertised,
            why: row.why.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_image_is_called_is_text_and_nothing_else() {
        let row = ImageRow {
            image: "<script>alert(1)</script>".into(),
            tag: "\"><img src=x onerror=alert(1)>".into(),
            digest: "'onclick='x".into(),
            short: String::new(),
            platforms: "<b>".into(),
            size: String::new(),
            advertised: false,
            why: "</table>".into(),
        };
        let frame = Frame {
            view: "content",
            title: "Content",
            node: "<i>".into(),
            zone: Some("</title>".into()),
            version: "",
            links: Vec::new(),
        };
        let page = Content {
            frame,
            search: "\" autofocus onfocus=alert(1) x=\"".into(),
            title: String::new(),
            summary: String::new(),
            rows: vec![row],
        };

        let html = page.render().unwrap();

        for hostile in [
            "<script>alert",
            "<img src=x",
            "<b>",
            "\" autofocus",
            "'onclick",
            "<i>",
        ] {
            assert!(!html.contains(hostile), "{hostile}\n{html}");
        }
        assert!(html.contains("&#60;script&#62;"), "{html}");
    }
}
