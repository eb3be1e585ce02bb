//! Log lines, for when the standard error output is no terminal.

use super::{About, End, Printer, Tally, Verbosity, result_line, words};
use crate::units::entries;
use driftless_node::api::{Event, Phase};
use std::time::{Duration, Instant};

/// How often a line says how far a long phase is.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// Writes lines.
pub(crate) struct Plain {
    about: About,
    tally: Tally,
    progress_due: Instant,
    was_in_sync: bool,
}

impl Plain {
    /// Writes the first line.
    pub(crate) fn new(about: About, now: Instant) -> Plain {
        let arrow = if about.active_passive { "->" } else { "<->" };
        eprintln!("{} {arrow} {}", words::path(&about.ends.0), words::path(&about.ends.1));
        Plain { about, tally: Tally::new(now), progress_due: now + PROGRESS_EVERY, was_in_sync: false }
    }
}

impl Printer for Plain {
    fn event(&mut self, now: Instant, event: &Event) {
        if !self.tally.take(now, event) {
            return;
        }
        // In a log, that it is so again after each change is for those who want every step.
        if *event == Event::InSync
            && std::mem::replace(&mut self.was_in_sync, true)
            && self.about.verbosity == Verbosity::Normal
        {
            return;
        }
        let waiting = self.tally.waiting_count();
        if *event == Event::InSync && waiting > 0 {
            eprintln!("in sync but for what waits: {}", entries(waiting));
            return;
        }
        match (event, words::line(event, &self.about)) {
            (Event::Step { done: false, .. } | Event::Join { .. }, Some(line)) if self.about.dry_run => {
                result_line(&line);
            }
            (_, Some(line)) => eprintln!("{line}"),
            (_, None) => {}
        }
    }

    fn notice(&mut self, text: &str) {
        eprintln!("{text}");
    }

    fn tick(&mut self, now: Instant) {
        let busy = !self.tally.in_sync && self.tally.phase() < Phase::Watching;
        if busy && now >= self.progress_due {
            eprintln!("{}", words::progress(&self.tally));
            self.progress_due = now + PROGRESS_EVERY;
        }
    }

    fn finish(&mut self, now: Instant, end: &End) {
        if let End::Outcome(outcome) = end {
            for line in words::report(&self.tally, &self.about, outcome, now) {
                result_line(&line);
            }
        }
    }
}
