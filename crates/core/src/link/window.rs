//! How many bytes of large files are asked for at once: as many as keep the line busy, and not many more.
//!
//! What is asked for beyond what a line holds stands in a queue somewhere on it, and a small change stands behind it. How long
//! that queue is shows in how long pieces take: the least time seen is that of an empty line, the rest is waiting. Once in a *round*,
//! when pieces asked for since its begin have come, the window is multiplied by what a piece may take over what it took, as in
//! FAST TCP (Wei, Jin, Low, Hegde 2006), with a target for the waiting as in LEDBAT (RFC 6817):
//!
//! ```text
//! bytes := bytes * (base + QUEUE_MS) / took
//! ```
//!
//! - The quickest piece of a round speaks for it: a queue that stands delays every piece, a busy disk or processor some.
//! - A lost packet delays what comes behind it on the same connection, whatever the window is. So the window grows at once, but shrinks only
//!   after [`ROUNDS`] rounds in which no piece was quick, or if they took so long that no lost packet explains it.
//! - If pieces take as long with the shorter window, it was not the window: the way is longer now, or others fill it. The window is as
//!   before, and what they take is the new base.
//! - A line that never runs empty never shows its base. So now and then a round is short enough for that, as in BBR.

use std::collections::VecDeque;

/// How long bytes may wait on the line, milliseconds. With it the line has something to send while the next wants are on their way.
const QUEUE_MS: u64 = 20;
/// So long is not worth a shorter window, milliseconds.
const QUEUE_MS_MAX: u64 = 30;
/// So many rounds must have been slow before the window shrinks.
const ROUNDS: usize = 4;
/// A piece that takes so many times what it may was not held up by a lost packet only.
const LOST_TIMES: u64 = 3;
/// How long a least time counts as that of an empty line, milliseconds; after it the line is emptied to look again.
const BASE_MS_MAX: u64 = 10_000;
/// The window is never shorter: at 100 ms still 5 Mbit/s.
const BYTES_MIN: u64 = 64 << 10;
/// What is asked for before anything is known of the line.
const BYTES_FIRST: u64 = 4 << 20;
/// A window is asked for in so many pieces or more, so that there is always one that comes soon.
const PIECES: u64 = 8;

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Window {
    bytes: u64,
    bytes_max: u64,
    /// Nothing has ever waited: the window doubles with each round.
    fresh: bool,
    base: Base,
    round: Round,
    /// The quickest piece of each of the last rounds, if all were slow, milliseconds.
    slow: VecDeque<u64>,
    trial: Trial,
}

/// The least that a piece has taken of late.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Base {
    now_ms: Option<u64>,
    before_ms: Option<u64>,
    since_ms: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Round {
    begun_ms: u64,
    came_bytes: u64,
    /// It ends when so many have come.
    end_bytes: u64,
    /// The quickest of the pieces asked for since its begin.
    least_ms: Option<u64>,
    /// More would have been asked for if the window had allowed it.
    was_full: bool,
    /// Less was on its way when it began than its window allows: the line is filling up, and its first pieces tell nothing of a
    /// full one.
    fills: bool,
}

/// What the window of this round is to show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trial {
    None,
    /// What an empty line takes. The window was `bytes`.
    Empty {
        bytes: u64,
    },
    /// Whether pieces take less than `took_ms`, as they did with `bytes`.
    Shorter {
        bytes: u64,
        took_ms: u64,
    },
}

impl Base {
    fn ms(&self) -> Option<u64> {
        [self.now_ms, self.before_ms].into_iter().flatten().min()
    }

    /// True if it is time to look again.
    fn note(&mut self, took_ms: u64, now_ms: u64) -> bool {
        let old = self.now_ms.is_some() && now_ms.saturating_sub(self.since_ms) > BASE_MS_MAX;
        if old {
            (self.before_ms, self.now_ms) = (self.now_ms, None);
        }
        if self.now_ms.is_none() {
            self.since_ms = now_ms;
        }
        self.now_ms = Some(self.now_ms.map_or(took_ms, |least| least.min(took_ms)));
        old
    }
}

impl Window {
    /// Knows nothing of the line yet; never longer than `bytes_max`.
    pub(super) fn new(bytes_max: u64) -> Window {
        Window {
            bytes: BYTES_FIRST.min(bytes_max),
            bytes_max,
            fresh: true,
            base: Base::default(),
            round: Round::default(),
            slow: VecDeque::new(),
            trial: Trial::None,
        }
    }

    /// So many may be asked for and not here yet.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// So many are asked for at once.
    pub(super) fn piece_bytes(&self) -> u64 {
        match self.base.ms() {
            Some(_) => (self.bytes / PIECES).max(1),
            // So short that what it takes by itself is little.
            None => self.bytes.min(BYTES_MIN),
        }
    }

    /// A piece is asked for now, and nothing else is on its way.
    pub(super) fn begins(&mut self, now_ms: u64) {
        self.begin_round(now_ms, 0);
        self.round.fills = true;
    }

    /// Nothing more could be asked for.
    pub(super) fn is_full(&mut self) {
        self.round.was_full = true;
    }

    /// The first bytes are here of a piece that was asked for at that time.
    pub(super) fn first_came(&mut self, asked_ms: u64, now_ms: u64) {
        // What takes less than the clock shows takes something.
        let took_ms = now_ms.saturating_sub(asked_ms).max(1);
        if asked_ms >= self.round.begun_ms {
            self.round.least_ms = Some(self.round.least_ms.map_or(took_ms, |least| least.min(took_ms)));
        }
        let base_ms = self.base.ms().unwrap_or(took_ms);
        if self.base.note(took_ms, now_ms) && self.trial == Trial::None && self.bytes < self.bytes_max {
            let before = self.bytes;
            // Half of what an empty line holds.
            let half = before.saturating_mul(base_ms) / (2 * (base_ms + QUEUE_MS));
            self.bytes = half.clamp(self.bytes_min(), before);
            self.trial = Trial::Empty { bytes: before };
            self.begin_round(now_ms, before);
        }
    }

    /// So many bytes are here.
    pub(super) fn came(&mut self, bytes: u64, now_ms: u64) {
        self.round.came_bytes = self.round.came_bytes.saturating_add(bytes);
        if self.round.came_bytes < self.round.end_bytes {
            return;
        }
        let before = self.bytes;
        let Some(least_ms) = self.round.least_ms else { return self.begin_round(now_ms, before) };
        let ended = self.trial != Trial::None;
        self.adapt(least_ms);
        self.begin_round(now_ms, before);
        self.round.fills = ended && self.bytes > before;
    }

    /// What was asked for before comes first.
    fn begin_round(&mut self, now_ms: u64, before_bytes: u64) {
        let end_bytes = before_bytes.saturating_add(self.bytes / 2).max(1);
        self.round = Round { begun_ms: now_ms, end_bytes, ..Round::default() };
    }

    fn adapt(&mut self, least_ms: u64) {
        match std::mem::replace(&mut self.trial, Trial::None) {
            Trial::Empty { bytes } => {
                self.bytes = bytes;
                return;
            }
            Trial::Shorter { bytes, took_ms } => {
                let expected_ms = took_ms.saturating_mul(self.bytes) / bytes.max(1);
                if least_ms > (expected_ms + took_ms) / 2 {
                    self.bytes = bytes;
                    self.base = Base { now_ms: Some(least_ms), before_ms: None, ..self.base };
                    return;
                }
            }
            Trial::None => {}
        }
        if self.round.fills {
            return;
        }
        let base_ms = self.base.ms().unwrap_or(least_ms);
        let may_take_ms = base_ms + QUEUE_MS;
        if least_ms <= base_ms + QUEUE_MS_MAX {
            self.slow.clear();
            if self.round.was_full {
                self.fresh &= least_ms <= base_ms + QUEUE_MS / 2;
                let grown = match self.fresh {
                    true => self.bytes.saturating_mul(2),
                    false => self.bytes.saturating_mul(may_take_ms.clamp(least_ms, 2 * least_ms)) / least_ms,
                };
                self.bytes = grown.min(self.bytes_max);
            }
            return;
        }
        self.fresh = false;
        self.slow.push_back(least_ms);
        if self.slow.len() >= ROUNDS || least_ms > LOST_TIMES * may_take_ms {
            let took_ms = self.slow.drain(..).min().unwrap_or(least_ms);
            let bytes = self.bytes;
            self.bytes = (bytes.saturating_mul(may_take_ms) / took_ms).clamp(self.bytes_min(), bytes);
            self.trial = Trial::Shorter { bytes, took_ms };
        }
    }

    fn bytes_min(&self) -> u64 {
        BYTES_MIN.min(self.bytes_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A line: what is sent waits until what was sent before has left at its rate, and then takes the way there. The other end of it
    /// answers what it is asked at once.
    struct Line {
        bytes_per_ms: u64,
        round_trip_ms: u64,
        /// Each so many bytes a packet is lost, and what is behind it waits for one round trip more. 0: never.
        lost_every_bytes: u64,
    }

    struct Ran {
        window: Window,
        /// Of what the line can carry, in per cent.
        used: u64,
        /// How long the last second's pieces waited at most before they were sent, median.
        waited_ms: u64,
    }

    /// Sends over it for a while as a fetcher does. A piece is one message here.
    fn run(line: &Line, mut w: Window, ms: u64) -> Ran {
        let mut asked: VecDeque<(u64, u64, u64)> = VecDeque::new();
        let (mut in_flight, mut came, mut busy_until_us, mut blocked_until, mut until_lost) =
            (0, 0, 0u64, 0u64, line.lost_every_bytes);
        let mut waited = Vec::new();
        for now in 0..ms {
            while let Some((asked_ms, here_ms, len)) =
                asked.front().copied().filter(|(_, here, _)| *here <= now)
            {
                asked.pop_front();
                w.first_came(asked_ms, here_ms.max(now));
                w.came(len, now);
                in_flight -= len;
                came += len;
            }
            loop {
                let len = w.piece_bytes();
                if in_flight + len > w.bytes() {
                    w.is_full();
                    break;
                }
                if in_flight == 0 {
                    w.begins(now);
                }
                in_flight += len;
                let there_us = (now + line.round_trip_ms / 2) * 1000;
                let begin_us = busy_until_us.max(there_us);
                if now + 1000 >= ms {
                    waited.push((begin_us - there_us) / 1000);
                }
                busy_until_us = begin_us + len * 1000 / line.bytes_per_ms;
                let mut here = busy_until_us / 1000 + line.round_trip_ms.div_ceil(2);
                if line.lost_every_bytes > 0 {
                    if until_lost <= len {
                        blocked_until = blocked_until.max(here + line.round_trip_ms);
                        // Not in step with the rounds.
                        until_lost = line.lost_every_bytes * (50 + now * 7919 % 101) / 100;
                    }
                    until_lost = until_lost.saturating_sub(len);
                    here = here.max(blocked_until);
                }
                asked.push_back((now, here, len));
            }
        }
        waited.sort_unstable();
        Ran { window: w, used: came * 100 / (line.bytes_per_ms * ms), waited_ms: waited[waited.len() / 2] }
    }

    const MAX: u64 = 8 << 20;

    #[test]
    fn a_line_that_a_file_fills_is_full_and_its_queue_is_short() {
        // 10, 200 and 1000 Mbit/s.
        for (bytes_per_ms, round_trip_ms) in
            [(1_250, 100), (25_000, 100), (25_000, 10), (125_000, 30), (125_000, 1)]
        {
            let line = Line { bytes_per_ms, round_trip_ms, lost_every_bytes: 0 };
            let ran = run(&line, Window::new(MAX), 60_000);
            let said = format!("{bytes_per_ms}/{round_trip_ms}: {} %, {} ms", ran.used, ran.waited_ms);
            assert!(ran.used >= 93, "{said}");
            assert!(ran.waited_ms <= QUEUE_MS_MAX + 5, "{said}");
        }
    }

    #[test]
    fn the_window_is_full_length_where_the_line_is_never_full() {
        let line = Line { bytes_per_ms: 1_000_000, round_trip_ms: 100, lost_every_bytes: 0 };
        let ran = run(&line, Window::new(MAX), 2_000);
        assert_eq!(ran.window.bytes(), MAX);
        let begun = run(&line, Window::new(MAX), 400);
        assert_eq!(begun.window.bytes(), MAX, "it doubles with each round");
    }

    #[test]
    fn lost_packets_are_no_queue() {
        let line = |lost_every_bytes| Line { bytes_per_ms: 25_000, round_trip_ms: 100, lost_every_bytes };
        let whole = run(&line(0), Window::new(MAX), 60_000);
        let lossy = run(&line(1_500_000), Window::new(MAX), 60_000);
        let fixed = run(&line(1_500_000), Window { bytes: MAX, ..Window::new(MAX) }, 2_000);
        assert!(lossy.used * 100 >= whole.used * 70, "{} of {} ({})", lossy.used, whole.used, fixed.used);
        assert!(lossy.window.bytes() >= 2 << 20, "{}", lossy.window.bytes());
    }

    #[test]
    fn a_way_that_has_become_longer_is_no_queue_for_long() {
        let line = |round_trip_ms| Line { bytes_per_ms: 25_000, round_trip_ms, lost_every_bytes: 0 };
        let short = run(&line(20), Window::new(MAX), 20_000);
        let mut moved = short.window;
        (moved.base.since_ms, moved.round.begun_ms) = (0, 0);
        let long = run(&line(200), moved, 60_000);
        assert!(long.used >= 75, "{}", long.used);
        assert!(long.window.bytes() >= 200 * 25_000, "{}", long.window.bytes());
    }

    #[test]
    fn what_is_asked_for_now_and_then_tells_nothing_of_a_longer_window() {
        let mut w = Window::new(MAX);
        for n in 0..1000 {
            w.begins(n * 100);
            w.first_came(n * 100, n * 100 + 1);
            w.came(BYTES_FIRST, n * 100 + 1);
        }
        assert_eq!(w.bytes(), BYTES_FIRST, "it was never full");
    }

    proptest! {
        #[test]
        fn it_keeps_to_its_bounds(
            max in 1u64..(64 << 20),
            steps in proptest::collection::vec((0u64..5_000, 0u64..3_000, 0u64..(8 << 20), any::<bool>()), 0..200),
        ) {
            let (mut w, mut now) = (Window::new(max), 0);
            for (pass_ms, took_ms, bytes, full) in steps {
                now += pass_ms;
                match full {
                    true => w.is_full(),
                    false if bytes % 7 == 0 => w.begins(now),
                    false => {}
                }
                w.first_came(now.saturating_sub(took_ms), now);
                w.came(bytes, now);
                prop_assert!(w.bytes() <= max && w.bytes() >= BYTES_MIN.min(max));
                prop_assert!(w.piece_bytes() > 0 && w.slow.len() < ROUNDS);
            }
        }
    }
}
