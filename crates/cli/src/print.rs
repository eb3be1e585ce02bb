//! Printers: they take a session's events and say them, each in its way. [`terminal`] draws a progress
//! bar and then one live status line, [`plain`] writes log lines, [`json`] writes one object a line
//! (docs/json.md). [`tally`] keeps what all of them need to know.
//!
//! Results (plans, lists of what waits) go to the standard output; progress and log lines to the
//! standard error output, so that results can be piped.

pub(crate) mod json;
pub(crate) mod plain;
pub(crate) mod tally;
pub(crate) mod terminal;
mod words;

use driftless_node::api::{Event, Outcome};
use std::io::{self, Write as _};
use std::time::Instant;

pub(crate) use json::json_line;
pub(crate) use tally::Tally;
pub(crate) use words::path;

/// Says what happens in a session.
pub(crate) trait Printer {
    /// Something happened.
    fn event(&mut self, now: Instant, event: &Event);
    /// The command itself has something to say, e.g. that a signal came.
    fn notice(&mut self, text: &str);
    /// Time has passed; called about ten times a second.
    fn tick(&mut self, now: Instant);
    /// The session has ended.
    fn finish(&mut self, now: Instant, end: &End);
}

/// How a session ended, as far as printers are concerned.
pub(crate) enum End {
    /// With an outcome.
    Outcome(Outcome),
    /// With an error, which is printed elsewhere.
    Failed,
}

/// How much is said.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Verbosity {
    /// What changes for the user.
    Normal,
    /// Each step.
    Steps,
    /// Details for those who look for a cause.
    Debug,
}

impl Verbosity {
    /// From the number of `-v`.
    pub(crate) fn of(flags: u8) -> Verbosity {
        match flags {
            0 => Verbosity::Normal,
            1 => Verbosity::Steps,
            _ => Verbosity::Debug,
        }
    }
}

/// What is known of a session from the command line.
#[derive(Clone, Debug)]
pub(crate) struct About {
    /// Both ends as the user wrote them.
    pub(crate) ends: (String, String),
    /// Only plan.
    pub(crate) dry_run: bool,
    /// A to B only.
    pub(crate) active_passive: bool,
    /// How much is said.
    pub(crate) verbosity: Verbosity,
}

/// Writes a line of results. If nobody reads them any more there is nobody to tell.
pub(crate) fn result_line(text: &str) {
    let _ = writeln!(io::stdout().lock(), "{text}");
}
