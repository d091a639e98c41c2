//! One page for Prometheus out of two kinds of registry: our own, and the one that libp2p writes to.
//!
//! libp2p's speaks OpenMetrics, ours the older text format (0.0.4), and a page can have but one. So libp2p's is rewritten:
//! there a counter's family has the name of its samples, `_total` included, and units are not told apart from names.

use std::fmt;
use std::sync::Arc;

use prometheus::TextEncoder;
use prometheus_client::encoding::text::encode_registry;

/// What a library registers its metrics in.
pub type OpenMetrics = prometheus_client::registry::Registry;

/// All that the process tells. Cloneable; no two families may have one name.
#[derive(Clone)]
pub struct Page {
    own: prometheus::Registry,
    theirs: Arc<OpenMetrics>,
}

#[derive(Debug, thiserror::Error)]
pub enum PageError {
    #[error(transparent)]
    Own(#[from] prometheus::Error),
    #[error("a library's metrics cannot be written")]
    Theirs(#[from] fmt::Error),
}

impl Page {
    pub fn new(own: prometheus::Registry, theirs: Arc<OpenMetrics>) -> Self {
        Self { own, theirs }
    }

    /// In text format 0.0.4.
    pub fn text(&self) -> Result<String, PageError> {
        let mut page = TextEncoder::new().encode_to_string(&self.own.gather())?;
        let mut theirs = String::new();
        encode_registry(&mut theirs, &self.theirs)?;
        rewrite(&theirs, &mut page);
        Ok(page)
    }
}

/// Appends OpenMetrics' text as format 0.0.4 has it.
fn rewrite(text: &str, page: &mut String) {
    let mut help = None;
    for line in text.lines() {
        // Comes first; how its family is called there is known when the type is.
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ').map(|(_, words)| words);
        } else if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|typed| typed.rsplit_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                kind => ("", kind),
            };
            if let Some(words) = help.take() {
                *page += &format!("# HELP {name}{suffix} {words}\n");
            }
            *page += &format!("# TYPE {name}{suffix} {kind}\n");
        } else if !line.starts_with('#') {
            *page += line;
            page.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::metrics::histogram::Histogram;
    use prometheus_client::registry::Unit;

    #[test]
    fn what_a_library_tells_follows_what_we_tell_in_our_format() {
        let own = prometheus::Registry::new();
        super::super::counter(&own, "ours_total", "Ours.").inc();
        let mut theirs = OpenMetrics::default();
        let sent = Counter::<u64>::default();
        sent.inc_by(7);
        theirs.register_with_unit("sent", "Sent", Unit::Bytes, sent);
        theirs.register("open", "Open", Gauge::<i64>::default());
        theirs.register("took", "Took", Histogram::new([1.0]));

        let page = Page::new(own, Arc::new(theirs)).text().expect("text");

        assert_eq!(
            page,
            "# HELP ours_total Ours.\n# TYPE ours_total counter\nours_total 1\n\
             # HELP sent_bytes_total Sent.\n# TYPE sent_bytes_total counter\nsent_bytes_total 7\n\
             # HELP open Open.\n# TYPE open gauge\nopen 0\n\
             # HELP took Took.\n# TYPE took histogram\ntook_sum 0.0\ntook_count 0\n\
             took_bucket{le=\"1.0\"} 0\ntook_bucket{le=\"+Inf\"} 0\n"
        );
    }
}
