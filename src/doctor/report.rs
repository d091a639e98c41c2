//! Findings for people and for programs.

use std::io::{self, Write};

use serde::Serialize;

use super::Report;
use crate::finding::{Finding, State, verdict};

impl Report {
    pub fn verdict(&self) -> State {
        verdict(&self.findings)
    }

    /// One line for each finding, with its cure below it, and a last line that counts them.
    pub fn text(&self, out: &mut impl Write) -> io::Result<()> {
        let width = self.findings.iter().map(|f| f.check.len()).max();
        let width = width.unwrap_or(0);
        for finding in &self.findings {
            let Finding {
                check,
                state,
                seen,
                cure,
            } = finding;
            writeln!(out, "{:<7}  {check:width$}  {}", state.as_str(), line(seen))?;
            for line in cure.iter().flat_map(|cure| cure.lines()) {
                writeln!(out, "{:<7}  {:width$}  | {}", "", "", plain(line))?;
            }
        }
        let count = |state| self.findings.iter().filter(|f| f.state == state).count();
        let counts = [State::Broken, State::Warning, State::Skipped, State::Ok].map(|state| {
            let count = count(state);
            (count > 0).then(|| format!("{count} {}", state.as_str()))
        });
        let counts: Vec<_> = counts.into_iter().flatten().collect();
        writeln!(
            out,
            "{}: {} (distribution: {})",
            self.verdict().as_str(),
            counts.join(", "),
            self.distribution
        )
    }

    pub fn json(&self) -> Json<'_> {
        Json {
            verdict: self.verdict(),
            distribution: self.distribution,
            findings: &self.findings,
        }
    }
}

/// `{"verdict":"ok","distribution":"k3s","findings":[…]}`
#[derive(Serialize)]
pub struct Json<'a> {
    pub verdict: State,
    pub distribution: &'a str,
    pub findings: &'a [Finding],
}

/// On one line: what is seen has words of others in it.
fn line(text: &str) -> String {
    plain(&text.lines().collect::<Vec<_>>().join(" "))
}

/// Without what would move a terminal's cursor.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}
