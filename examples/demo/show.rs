//! What the reader sees while something goes on.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// One thing under way: a spinner or a bar on a terminal, a line before and after elsewhere.
pub struct Step {
    bar: ProgressBar,
}

impl Step {
    pub fn begin(what: &str) -> Self {
        let style = "{spinner} {msg} {elapsed}";
        Self::with(ProgressBar::new_spinner(), style, what)
    }

    pub fn begin_bytes(what: &str, bytes: u64) -> Self {
        let style = "{spinner} {msg} {wide_bar} {decimal_bytes}/{decimal_total_bytes}";
        Self::with(ProgressBar::new(bytes), style, what)
    }

    fn with(bar: ProgressBar, style: &str, what: &str) -> Self {
        bar.set_style(ProgressStyle::with_template(style).expect("a template of ours"));
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        if !std::io::stderr().is_terminal() {
            println!("{what} ...");
        }
        Self { bar }
    }

    /// How far it is.
    pub fn at(&self, bytes: u64) {
        self.bar.set_position(bytes);
    }

    pub fn done(self, what: &str) {
        self.bar.finish_and_clear();
        println!("- {what}");
    }
}
