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
    drawn: Look,
    text: String,
}

/// What the line looks like.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// How much there is to do is not known yet.
    Spinner,
    /// It is.
    Bar,
    /// Nothing moves while nothing is done.
    Still,
}

impl Terminal {
    /// Draws the first line on the standard error output.
    pub(crate) fn new(about: About, now: Instant) -> Terminal {
        let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr_with_hz(DRAWS_PER_S));
        bar.set_style(style(Look::Spinner));
        let tally = Tally::new(now);
        let mut terminal = Terminal { about, tally, bar, drawn: Look::Spinner, text: String::new() };
        terminal.redraw(now);
        terminal
    }

    fn redraw(&mut self, now: Instant) {
        let (done, all) = self.tally.progress().work;
        let look = match (self.tally.in_sync, all) {
            (true, _) => Look::Still,
            (false, 0) => Look::Spinner,
            (false, _) => Look::Bar,
        };
        let text = match look {
            Look::Still => words::status(&self.tally, now),
            _ => words::progress(&self.tally),
        };
        if look == Look::Still && self.drawn == look && self.text == text {
            return;
        }
        if look != self.drawn {
            self.bar.set_style(style(look));
            self.drawn = look;
        }
        if look == Look::Bar {
            self.bar.set_length(all);
            self.bar.set_position(done);
        }
        self.bar.set_message(text.clone());
        self.text = text;
    }

    fn above(&self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }
}

fn style(look: Look) -> ProgressStyle {
    let template = match look {
        Look::Spinner => "{spinner} {wide_msg}",
        Look::Bar => "{spinner} [{bar:24}] {percent:>3}% {wide_msg}",
        Look::Still => "{wide_msg}",
    };
    // Constants that indicatif accepts; if it did not accept one, its own default would show.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
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
