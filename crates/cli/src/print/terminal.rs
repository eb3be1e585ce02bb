//! A progress bar while there is work, then one live status line; lines for people go above it.

use super::{About, End, Printer, Tally, result_line, words};
use driftless_node::api::Event;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Instant;

/// Redraws per second at most; a terminal over a slow line must not hold the session up.
const DRAWS_PER_S: u8 = 10;

/// Draws.
pub(crate) struct Terminal {
    about: About,
    tally: Tally,
    bar: ProgressBar,
    with_bar: bool,
}

impl Terminal {
    /// Draws the first line on the standard error output.
    pub(crate) fn new(about: About, now: Instant) -> Terminal {
        let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr_with_hz(DRAWS_PER_S));
        bar.set_style(line_style());
        let mut terminal = Terminal { about, tally: Tally::new(now), bar, with_bar: false };
        terminal.redraw(now);
        terminal
    }

    fn redraw(&mut self, now: Instant) {
        let (done, all) = self.tally.progress().work;
        let with_bar = !self.tally.in_sync && all > 0;
        if with_bar != self.with_bar {
            self.bar.set_style(if with_bar { bar_style() } else { line_style() });
            self.with_bar = with_bar;
        }
        if with_bar {
            self.bar.set_length(all);
            self.bar.set_position(done);
        }
        let text =
            if self.tally.in_sync { words::status(&self.tally, now) } else { words::progress(&self.tally) };
        self.bar.set_message(text);
        self.bar.tick();
    }

    fn above(&self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }
}

// The templates are constants that indicatif accepts; if one did not, its own default would show.
fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} [{bar:24}] {percent:>3}% {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

fn line_style() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {wide_msg}").unwrap_or_else(|_| ProgressStyle::default_spinner())
}

impl Printer for Terminal {
    fn event(&mut self, now: Instant, event: &Event) {
        let news = self.tally.take(now, event);
        // The line below says these.
        let in_line =
            matches!(event, Event::InSync | Event::Syncing | Event::Phase { .. } | Event::Progress { .. });
        if news && !in_line {
            match (event, words::line(event, &self.about)) {
                (Event::Step { done: false, .. } | Event::Join { .. }, Some(line)) if self.about.dry_run => {
                    self.bar.suspend(|| result_line(&line));
                }
                (_, Some(line)) => self.above(&line),
                (_, None) => {}
            }
        }
        if matches!(event, Event::InSync | Event::Syncing) {
            self.redraw(now);
        }
    }

    fn notice(&mut self, text: &str) {
        self.above(text);
    }

    fn tick(&mut self, now: Instant) {
        self.redraw(now);
    }

    fn finish(&mut self, now: Instant, end: &End) {
        self.bar.finish_and_clear();
        if let End::Outcome(outcome) = end {
            for line in words::report(&self.tally, &self.about, outcome, now) {
                result_line(&line);
            }
        }
    }
}
