//! One JSON object a line on the standard output. The schema is docs/json.md; a test compares both.

use super::{About, End, Printer, Tally};
use driftless_node::api::{Event, Outcome};
use serde::Serialize;
use std::io::{self, Write as _};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Version of the schema: goes up when something changes its meaning or goes away.
const SCHEMA: u32 = 1;

/// Prints events as they are.
pub(crate) struct Json {
    about: About,
    tally: Tally,
}

impl Json {
    /// Prints the first line.
    pub(crate) fn new(about: About) -> Json {
        print(&Own::Start { schema: SCHEMA, a: &about.ends.0, b: &about.ends.1, dry_run: about.dry_run });
        Json { about, tally: Tally::new(Instant::now()) }
    }
}

/// Events that are the command's and not the session's.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Own<'a> {
    Start {
        schema: u32,
        a: &'a str,
        b: &'a str,
        dry_run: bool,
    },
    Notice {
        text: &'a str,
    },
    Outcome {
        exit_code: u8,
        drift: u64,
        conflicts: u64,
        #[serde(flatten)]
        outcome: &'a Outcome,
    },
}

/// Any event with the time it was printed.
#[derive(Serialize)]
struct Stamped<'a, T> {
    time_ms: u64,
    #[serde(flatten)]
    event: &'a T,
}

fn print<T: Serialize>(event: &T) {
    let time_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    json_line(&Stamped { time_ms, event });
}

/// Writes `value` as one line. If nobody reads it any more there is nobody to tell.
pub(crate) fn json_line<T: Serialize>(value: &T) {
    // Plain data always has a JSON form.
    if let Ok(mut line) = serde_json::to_vec(value) {
        line.push(b'\n');
        let _ = io::stdout().lock().write_all(&line);
    }
}

impl Printer for Json {
    fn event(&mut self, now: Instant, event: &Event) {
        self.tally.take(now, event);
        let wanted = match event {
            Event::Log { level, .. } => super::words::level_wanted(*level, self.about.verbosity),
            _ => true,
        };
        if wanted {
            print(event);
        }
    }

    fn notice(&mut self, text: &str) {
        print(&Own::Notice { text });
    }

    fn tick(&mut self, _now: Instant) {}

    fn finish(&mut self, _now: Instant, end: &End) {
        if let End::Outcome(outcome) = end {
            let exit_code = crate::sync::exit_code(outcome, self.about.dry_run) as u8;
            let (drift, conflicts) = (self.tally.drift_count(), self.tally.conflict_count());
            print(&Own::Outcome { exit_code, drift, conflicts, outcome });
        }
    }
}
