//! What has been heard of a session so far: phases, counts, rates, what waits. No I/O.

use driftless_node::api::{Counts, Event, JoinCounts, Phase, Reason, Side};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// Most rows of one list that are kept for the end; what is beyond is counted. A list of more is
/// read with `driftless failures`.
const LISTED_MAX: usize = 10_000;

/// Rates are averages over this span: long enough to be calm, short enough to notice a stall.
const RATE_SPAN: Duration = Duration::from_secs(8);

/// A step counts as much as so many bytes, so that one bar can show both small files and large ones.
const STEP_BYTES: u64 = 32 * 1024;

/// Everything heard.
#[derive(Debug)]
pub(crate) struct Tally {
    ends: [End; 2],
    samples: VecDeque<Sample>,
    /// Both ends agree.
    pub(crate) in_sync: bool,
    /// When something last changed.
    pub(crate) last_change: Option<Instant>,
    /// When the session began.
    pub(crate) began: Instant,
    /// How the trees compared at their first meeting.
    pub(crate) join: Option<JoinCounts>,
    waiting: BTreeMap<(Side, String), (Reason, String)>,
    waiting_beyond: u64,
    conflicts: BTreeSet<(Side, String)>,
    drift: BTreeMap<(Side, String), String>,
    drift_beyond: u64,
    /// Steps planned, by a dry run.
    pub(crate) planned: u64,
}

#[derive(Clone, Copy, Debug)]
struct End {
    phase: Phase,
    counts: Counts,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    work: u64,
    bytes: u64,
}

/// How far the writing is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Progress {
    /// Steps done.
    pub(crate) entries_done: u64,
    /// Steps done and to do.
    pub(crate) entries_all: u64,
    /// Bytes written.
    pub(crate) bytes_done: u64,
    /// Bytes written and to write.
    pub(crate) bytes_all: u64,
    /// Both in one measure: done, all.
    pub(crate) work: (u64, u64),
    /// Bytes per second.
    pub(crate) bytes_per_s: u64,
    /// Seconds left at this pace, if there is one.
    pub(crate) left_s: Option<u64>,
}

impl Tally {
    pub(crate) fn new(now: Instant) -> Tally {
        Tally {
            ends: [End { phase: Phase::Starting, counts: Counts::default() }; 2],
            samples: VecDeque::new(),
            in_sync: false,
            last_change: None,
            began: now,
            join: None,
            waiting: BTreeMap::new(),
            waiting_beyond: 0,
            conflicts: BTreeSet::new(),
            drift: BTreeMap::new(),
            drift_beyond: 0,
            planned: 0,
        }
    }

    /// Takes an event. True if it says something that was not known.
    pub(crate) fn take(&mut self, now: Instant, event: &Event) -> bool {
        match event {
            Event::Phase { side, phase } => std::mem::replace(&mut self.end(*side).phase, *phase) != *phase,
            Event::Progress { side, counts } => self.progressed(now, *side, *counts),
            Event::Join { counts } => self.join.replace(*counts) != Some(*counts),
            Event::Waiting { side, path, reason, detail } => self.waits(*side, &path.text, *reason, detail),
            Event::Resolved { side, path } => self.waiting.remove(&(*side, path.text.clone())).is_some(),
            Event::Conflict { side, path } => {
                self.conflicts.len() < LISTED_MAX && self.conflicts.insert((*side, path.text.clone()))
            }
            Event::Drift { side, path, what } => self.drifts(*side, &path.text, what),
            Event::InSync => !std::mem::replace(&mut self.in_sync, true),
            Event::Syncing => std::mem::replace(&mut self.in_sync, false),
            Event::Step { done, .. } => {
                self.planned += u64::from(!done);
                true
            }
            Event::Change { .. } | Event::Log { .. } | Event::PutAside { .. } => true,
        }
    }

    fn end(&mut self, side: Side) -> &mut End {
        &mut self.ends[side as usize]
    }

    fn progressed(&mut self, now: Instant, side: Side, counts: Counts) -> bool {
        let before = std::mem::replace(&mut self.end(side).counts, counts);
        if (before.applied, before.recorded) != (counts.applied, counts.recorded) {
            self.last_change = Some(now);
        }
        let all = self.counts();
        self.samples.push_back(Sample {
            at: now,
            work: work(all.applied, all.applied_bytes),
            bytes: all.applied_bytes,
        });
        while self.samples.front().is_some_and(|s| now.duration_since(s.at) > RATE_SPAN) {
            self.samples.pop_front();
        }
        before != counts
    }

    fn waits(&mut self, side: Side, path: &str, reason: Reason, detail: &str) -> bool {
        let key = (side, path.to_owned());
        if self.waiting.len() >= LISTED_MAX && !self.waiting.contains_key(&key) {
            self.waiting_beyond += 1;
            return false;
        }
        let value = (reason, detail.to_owned());
        self.waiting.insert(key, value.clone()).is_none_or(|old| old != value)
    }

    fn drifts(&mut self, side: Side, path: &str, what: &str) -> bool {
        let key = (side, path.to_owned());
        if self.drift.len() >= LISTED_MAX && !self.drift.contains_key(&key) {
            self.drift_beyond += 1;
            return false;
        }
        self.drift.insert(key, what.to_owned()).is_none_or(|old| old != what)
    }

    /// Counts of both ends together.
    pub(crate) fn counts(&self) -> Counts {
        let [a, b] = [self.ends[0].counts, self.ends[1].counts];
        Counts {
            scanned: a.scanned + b.scanned,
            hashed_bytes: a.hashed_bytes + b.hashed_bytes,
            recorded: a.recorded + b.recorded,
            received: a.received + b.received,
            applied: a.applied + b.applied,
            to_apply: a.to_apply + b.to_apply,
            applied_bytes: a.applied_bytes.saturating_add(b.applied_bytes),
            to_apply_bytes: a.to_apply_bytes.saturating_add(b.to_apply_bytes),
            waiting: a.waiting + b.waiting,
            // Conflict copies are shown at both ends.
            conflicts: a.conflicts.max(b.conflicts),
            drift: a.drift + b.drift,
        }
    }

    /// Counts of one end.
    pub(crate) fn counts_of(&self, side: Side) -> Counts {
        self.ends[side as usize].counts
    }

    /// The phase that is furthest behind: the one the user waits for.
    pub(crate) fn phase(&self) -> Phase {
        self.ends[0].phase.min(self.ends[1].phase)
    }

    /// How far the writing is.
    pub(crate) fn progress(&self) -> Progress {
        let c = self.counts();
        let (entries_all, bytes_all) =
            (c.applied + c.to_apply, c.applied_bytes.saturating_add(c.to_apply_bytes));
        let done = work(c.applied, c.applied_bytes);
        let all = work(entries_all, bytes_all);
        let (work_per_s, bytes_per_s) = self.rates();
        let left_s = (work_per_s >= 1.0).then(|| ((all - done) as f64 / work_per_s).ceil() as u64);
        Progress {
            entries_done: c.applied,
            entries_all,
            bytes_done: c.applied_bytes,
            bytes_all,
            work: (done, all),
            bytes_per_s: bytes_per_s as u64,
            left_s,
        }
    }

    fn rates(&self) -> (f64, f64) {
        let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) else {
            return (0.0, 0.0);
        };
        let seconds = last.at.duration_since(first.at).as_secs_f64();
        if seconds <= 0.0 {
            return (0.0, 0.0);
        }
        let per_s = |from: u64, to: u64| to.saturating_sub(from) as f64 / seconds;
        (per_s(first.work, last.work), per_s(first.bytes, last.bytes))
    }

    /// What waits: end, path, reason, what the system said.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = (Side, &str, Reason, &str)> {
        self.waiting
            .iter()
            .map(|((side, path), (reason, detail))| (*side, path.as_str(), *reason, detail.as_str()))
    }

    /// How many wait, listed or not.
    pub(crate) fn waiting_count(&self) -> u64 {
        (self.waiting.len() as u64 + self.waiting_beyond).max(self.counts().waiting)
    }

    /// What only a follower has: end, path, what.
    pub(crate) fn drift(&self) -> impl Iterator<Item = (Side, &str, &str)> {
        self.drift.iter().map(|((side, path), what)| (*side, path.as_str(), what.as_str()))
    }

    /// How much drift there is, listed or not.
    pub(crate) fn drift_count(&self) -> u64 {
        (self.drift.len() as u64 + self.drift_beyond).max(self.counts().drift)
    }

    /// How many conflict copies there are.
    pub(crate) fn conflict_count(&self) -> u64 {
        let shown: BTreeSet<&str> = self.conflicts.iter().map(|(_, path)| path.as_str()).collect();
        (shown.len() as u64).max(self.counts().conflicts)
    }
}

fn work(steps: u64, bytes: u64) -> u64 {
    steps.saturating_mul(STEP_BYTES).saturating_add(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use driftless_node::api::PathText;

    fn counts(applied: u64, to_apply: u64, applied_bytes: u64, to_apply_bytes: u64) -> Counts {
        Counts { applied, to_apply, applied_bytes, to_apply_bytes, ..Counts::default() }
    }

    #[test]
    fn progress_and_time_left() {
        let start = Instant::now();
        let mut t = Tally::new(start);
        for second in 0..=4u64 {
            let at = start + Duration::from_secs(second);
            let c = counts(second * 10, 100 - second * 10, second << 20, 0);
            t.take(at, &Event::Progress { side: Side::B, counts: c });
        }
        let p = t.progress();
        assert_eq!((p.entries_done, p.entries_all, p.bytes_done), (40, 100, 4 << 20));
        assert_eq!(p.bytes_per_s, 1 << 20);
        // 60 steps at 10 a second plus what a MiB a second weighs.
        assert!(p.left_s.is_some_and(|s| (1..=6).contains(&s)), "{p:?}");
        assert_eq!(Tally::new(start).progress().left_s, None);
    }

    #[test]
    fn what_waits_is_listed_once_and_goes() {
        let now = Instant::now();
        let mut t = Tally::new(now);
        let path = PathText::new(b"d/f");
        let waits = Event::Waiting {
            side: Side::B,
            path: path.clone(),
            reason: Reason::Denied,
            detail: "EACCES".into(),
        };
        assert!(t.take(now, &waits));
        assert!(!t.take(now, &waits), "said twice");
        assert_eq!(t.waiting().collect::<Vec<_>>(), [(Side::B, "d/f", Reason::Denied, "EACCES")]);
        t.take(now, &Event::Resolved { side: Side::B, path });
        assert_eq!(t.waiting_count(), 0);
    }

    #[test]
    fn lists_are_bounded() {
        let now = Instant::now();
        let mut t = Tally::new(now);
        for i in 0..LISTED_MAX + 5 {
            let path = PathText::new(i.to_string().as_bytes());
            t.take(now, &Event::Drift { side: Side::B, path, what: "only here".into() });
        }
        assert_eq!(t.drift().count(), LISTED_MAX);
        assert_eq!(t.drift_count(), LISTED_MAX as u64 + 5);
    }
}
