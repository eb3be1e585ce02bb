//! Events and results as words, for the printers that people read. No I/O.

use super::{About, Tally, Verbosity};
use crate::units::{bytes, count, entries, span};
use driftless_node::api::{Event, JoinCounts, Level, Outcome, PathText, Phase, Reason, Side};
use std::collections::BTreeMap;
use std::time::Instant;

/// Most rows of a list that are printed at the end; the rest is counted.
const PRINTED_MAX: usize = 1000;

/// True if a log line of this level is wanted.
pub(super) fn level_wanted(level: Level, verbosity: Verbosity) -> bool {
    level < Level::Debug || verbosity == Verbosity::Debug
}

/// `A` or `B`.
pub(super) fn side(side: Side) -> &'static str {
    match side {
        Side::A => "A",
        Side::B => "B",
    }
}

/// A path on one line: control characters, which would break the line or the terminal, are escaped.
pub(crate) fn path(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// A line for an event, if it is for people and wanted.
pub(super) fn line(event: &Event, about: &About) -> Option<String> {
    let steps = about.verbosity >= Verbosity::Steps;
    Some(match event {
        Event::Phase { side: s, phase: p } if steps => format!("{}: {}", side(*s), phase_words(*p)),
        Event::Step { side: s, done: false, verb, path: p, detail } => step(*s, verb, p, detail),
        Event::Step { side: s, done: true, verb, path: p, detail } if steps => step(*s, verb, p, detail),
        Event::Change { side: s, verb, path: p } if steps => {
            format!("{}: saw {verb} {}", side(*s), path(&p.text))
        }
        Event::Join { counts } => join(counts),
        Event::Waiting { side: s, path: p, reason, detail } => waiting(*s, &p.text, *reason, detail),
        Event::Resolved { side: s, path: p } => format!("{}: {} waits no longer", side(*s), path(&p.text)),
        Event::Conflict { side: s, path: p } => format!("{}: conflict copy {}", side(*s), path(&p.text)),
        Event::Drift { side: s, path: p, what } => format!("{}: drift: {} ({what})", side(*s), path(&p.text)),
        Event::PutAside { side: s, path: p, to } => {
            format!("{}: only here, moved: {} -> {}", side(*s), path(&p.text), path(&to.text))
        }
        Event::InSync => "in sync".into(),
        Event::Log { side: s, level, text } if level_wanted(*level, about.verbosity) => log(*s, *level, text),
        _ => return None,
    })
}

fn step(s: Side, verb: &str, p: &PathText, detail: &str) -> String {
    let detail = if detail.is_empty() { String::new() } else { format!(" ({})", path(detail)) };
    format!("{}: {verb} {}{detail}", side(s), path(&p.text))
}

fn join(c: &JoinCounts) -> String {
    format!(
        "both ends have entries: {} equal, {} only at A, {} only at B, {} different",
        count(c.equal),
        count(c.only_a),
        count(c.only_b),
        count(c.different)
    )
}

fn waiting(s: Side, p: &str, reason: Reason, detail: &str) -> String {
    format!("{}: {} waits: {}", side(s), path(p), because(reason, detail))
}

fn because(reason: Reason, detail: &str) -> String {
    if detail.is_empty() {
        reason.words().to_owned()
    } else {
        format!("{} ({})", reason.words(), path(detail))
    }
}

fn log(s: Option<Side>, level: Level, text: &str) -> String {
    let level = match level {
        Level::Error => "error: ",
        Level::Warn => "warning: ",
        Level::Info => "",
        Level::Debug => "debug: ",
    };
    let s = s.map_or_else(String::new, |s| format!("{}: ", side(s)));
    format!("{s}{level}{}", path(text))
}

pub(super) fn phase_words(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting => "starting",
        Phase::Scanning => "scanning",
        Phase::Receiving => "comparing",
        Phase::Applying => "writing",
        Phase::Watching => "watching",
        Phase::Stopping => "stopping",
    }
}

/// What is being done, beside the bar: `scanning 12,345 entries at A, 3 at B` or `writing 10/99 entries · 1.0 KiB/4.0 MiB · 2.0
/// MiB/s · 4s left`.
pub(super) fn progress(t: &Tally) -> String {
    let p = t.progress();
    if p.entries_all == 0 && p.bytes_all == 0 {
        let (a, b) = (t.counts_of(Side::A).scanned, t.counts_of(Side::B).scanned);
        let looked =
            if a + b == 0 { String::new() } else { format!(" · {} at A, {} at B", entries(a), entries(b)) };
        return format!("{}{looked}", phase_words(t.phase()));
    }
    let left = p.left_s.map_or_else(String::new, |s| format!(" · {} left", span(s)));
    format!(
        "{} · {}/{} entries · {}/{} · {}/s{left}",
        phase_words(t.phase()),
        count(p.entries_done),
        count(p.entries_all),
        bytes(p.bytes_done),
        bytes(p.bytes_all),
        bytes(p.bytes_per_s),
    )
}

/// The live line while both ends agree.
pub(super) fn status(t: &Tally, now: Instant) -> String {
    let c = t.counts();
    let mut parts = vec!["in sync".to_owned(), format!("{} written", entries(c.applied))];
    if let Some(at) = t.last_change {
        parts.push(format!("last change {} ago", span(now.duration_since(at).as_secs())));
    }
    for (n, word) in
        [(t.waiting_count(), "waiting"), (t.conflict_count(), "in conflict"), (t.drift_count(), "drifted")]
    {
        if n > 0 {
            parts.push(format!("{} {word}", count(n)));
        }
    }
    parts.join(" · ")
}

/// What is said at the end: what waits with reason and advice, drift, and one line that sums up.
pub(super) fn report(t: &Tally, about: &About, outcome: &Outcome, now: Instant) -> Vec<String> {
    let mut lines = Vec::new();
    // What a dry run says is its plan; drift is part of it.
    waiting_report(t, &mut lines);
    drift_report(t, &mut lines);
    lines.push(if about.dry_run { planned(t) } else { summary(t, outcome, now) });
    lines
}

fn waiting_report(t: &Tally, lines: &mut Vec<String>) {
    let mut by_reason: BTreeMap<Reason, Vec<String>> = BTreeMap::new();
    for (s, p, reason, detail) in t.waiting().take(PRINTED_MAX) {
        let detail = if detail.is_empty() { String::new() } else { format!(": {}", path(detail)) };
        by_reason.entry(reason).or_default().push(format!("  {}: {}{detail}", side(s), path(p)));
    }
    for (reason, paths) in by_reason {
        let n = entries(paths.len() as u64);
        let verb = if paths.len() == 1 { "waits" } else { "wait" };
        lines.push(format!("{n} {verb}: {}. What to do: {}.", reason.words(), reason.advice()));
        lines.extend(paths);
    }
    let beyond = t.waiting_count().saturating_sub(t.waiting().take(PRINTED_MAX).count() as u64);
    if beyond > 0 {
        lines.push(format!("{} more wait; `driftless failures` lists all.", entries(beyond)));
    }
}

fn drift_report(t: &Tally, lines: &mut Vec<String>) {
    let n = t.drift_count();
    if n == 0 {
        return;
    }
    lines.push(format!("{} differ at the following end and are left alone:", entries(n)));
    let listed: Vec<_> = t
        .drift()
        .take(PRINTED_MAX)
        .map(|(s, p, what)| format!("  {}: {} ({what})", side(s), path(p)))
        .collect();
    let beyond = n.saturating_sub(listed.len() as u64);
    lines.extend(listed);
    if beyond > 0 {
        lines.push(format!("  and {} more", entries(beyond)));
    }
}

fn planned(t: &Tally) -> String {
    match t.planned {
        0 => "dry run: nothing to do".into(),
        1 => "dry run: 1 step; nothing was done".into(),
        n => format!("dry run: {} steps; nothing was done", count(n)),
    }
}

fn summary(t: &Tally, outcome: &Outcome, now: Instant) -> String {
    let (a, b) = outcome.counts;
    let mut line = match (outcome.in_sync, outcome.waiting) {
        (_, n @ 1..) => format!("finished, {} waiting", entries(n)),
        (true, 0) => "in sync".to_owned(),
        (false, 0) => "stopped before both ends agreed; what is left is done by the next run".to_owned(),
    };
    let applied = a.applied + b.applied;
    let written = a.applied_bytes.saturating_add(b.applied_bytes);
    let seconds = now.duration_since(t.began).as_secs_f64();
    line += &format!(": {} written, {} in {seconds:.1}s", entries(applied), bytes(written));
    let conflicts = t.conflict_count();
    if conflicts > 0 {
        line += &format!("; {} in conflict (driftless conflicts list)", entries(conflicts));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use driftless_node::api::Counts;
    use std::time::Duration;

    fn about(verbosity: Verbosity) -> About {
        About { ends: ("a".into(), "b".into()), dry_run: false, active_passive: false, verbosity }
    }

    fn done(verb: &str, p: &[u8]) -> Event {
        Event::Step {
            side: Side::B,
            done: true,
            verb: verb.into(),
            path: PathText::new(p),
            detail: String::new(),
        }
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(path("a\n\x1b[2Jb\u{e9}"), "a\\n\\u{1b}[2Jb\u{e9}");
        let line = line(&done("create file", b"x\ny"), &about(Verbosity::Steps)).unwrap();
        assert_eq!(line, "B: create file x\\ny");
    }

    #[test]
    fn steps_are_said_only_if_wanted() {
        let step = done("create file", b"x");
        assert_eq!(line(&step, &about(Verbosity::Normal)), None);
        assert!(line(&step, &about(Verbosity::Steps)).is_some());
        let debug = Event::Log { side: None, level: Level::Debug, text: "d".into() };
        assert_eq!(line(&debug, &about(Verbosity::Steps)), None);
        assert_eq!(line(&debug, &about(Verbosity::Debug)).unwrap(), "debug: d");
    }

    #[test]
    fn progress_says_what_is_known() {
        let start = Instant::now();
        let mut t = Tally::new(start);
        assert_eq!(progress(&t), "starting");
        for s in [Side::A, Side::B] {
            t.take(start, &Event::Phase { side: s, phase: Phase::Scanning });
        }
        let scanned = Counts { scanned: 1234, ..Counts::default() };
        t.take(start, &Event::Progress { side: Side::A, counts: scanned });
        assert_eq!(progress(&t), "scanning · 1,234 entries at A, 0 entries at B");
        for s in [Side::A, Side::B] {
            t.take(start, &Event::Phase { side: s, phase: Phase::Applying });
        }
        for second in 0..3 {
            let counts = Counts {
                applied: 10 * second,
                to_apply: 40 - 10 * second,
                applied_bytes: second << 20,
                to_apply_bytes: (4 << 20) - (second << 20),
                ..Counts::default()
            };
            t.take(start + Duration::from_secs(second), &Event::Progress { side: Side::B, counts });
        }
        assert_eq!(progress(&t), "writing · 20/40 entries · 2.0 MiB/4.0 MiB · 1.0 MiB/s · 2s left");
        t.take(start, &Event::InSync);
        assert_eq!(
            status(&t, start + Duration::from_secs(62)),
            "in sync · 20 entries written · last change 1m00s ago"
        );
    }

    #[test]
    fn the_report_lists_path_reason_and_advice() {
        let now = Instant::now();
        let mut t = Tally::new(now);
        for p in ["x/1", "x/2"] {
            t.take(
                now,
                &Event::Waiting {
                    side: Side::B,
                    path: PathText::new(p.as_bytes()),
                    reason: Reason::Denied,
                    detail: "EACCES".into(),
                },
            );
        }
        t.take(now, &Event::Drift { side: Side::B, path: PathText::new(b"own"), what: "only here".into() });
        let outcome = Outcome { in_sync: false, waiting: 2, ..Outcome::default() };
        let text = report(&t, &about(Verbosity::Normal), &outcome, now).join("\n");
        assert_eq!(
            text,
            "2 entries wait: permission denied. What to do: give the user that runs driftless access, or run it as root.\n\
             \x20 B: x/1: EACCES\n\
             \x20 B: x/2: EACCES\n\
             1 entry differ at the following end and are left alone:\n\
             \x20 B: own (only here)\n\
             finished, 2 entries waiting: 0 entries written, 0 B in 0.0s"
        );
    }
}
