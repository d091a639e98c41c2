//! What was found out about this node: one thing that was looked at, how it is, and what to do about it.

use serde::Serialize;

/// How one thing is. In the order of how bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Could not be looked at; what was seen says why.
    Skipped,
    Ok,
    /// Pulls work and the mirror helps less than it could.
    Warning,
    /// The mirror helps nobody here, or this node helps nobody.
    Broken,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            State::Skipped => "skipped",
            State::Ok => "ok",
            State::Warning => "warning",
            State::Broken => "broken",
        }
    }

    /// For scripts: 0, 1 where there are warnings, 2 where something is broken.
    pub fn exit_code(self) -> u8 {
        match self {
            State::Skipped | State::Ok => 0,
            State::Warning => 1,
            State::Broken => 2,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at, by a name that stays: `config_path`.
    pub check: &'static str,
    pub state: State,
    /// What was seen, in a sentence.
    pub seen: String,
    /// What to do, and where, on this distribution.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
}

impl Finding {
    pub fn ok(check: &'static str, seen: impl Into<String>) -> Self {
        Self::of(check, State::Ok, seen, None)
    }

    pub fn skipped(check: &'static str, why: impl Into<String>) -> Self {
        Self::of(check, State::Skipped, why, None)
    }

    pub fn warning(check: &'static str, seen: impl Into<String>, cure: impl Into<String>) -> Self {
        Self::of(check, State::Warning, seen, Some(cure.into()))
    }

    pub fn broken(check: &'static str, seen: impl Into<String>, cure: impl Into<String>) -> Self {
        Self::of(check, State::Broken, seen, Some(cure.into()))
    }

    fn of(
        check: &'static str,
        state: State,
        seen: impl Into<String>,
        cure: Option<String>,
    ) -> Self {
        Self {
            check,
            state,
            seen: seen.into(),
            cure,
        }
    }
}

/// The worst of them; [`State::Ok`] of none.
pub fn verdict(findings: &[Finding]) -> State {
    let worst = findings.iter().map(|finding| finding.state).max();
    worst.unwrap_or(State::Ok).max(State::Ok)
}
