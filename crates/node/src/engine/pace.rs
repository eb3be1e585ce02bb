//! When the next batch leaves for a peer while others have no receipt yet.
//!
//! With nothing in flight it leaves at once. With little in flight it does too, but each batch without a receipt makes the pause after
//! the last one longer: so a few changes in a row need not wait for receipts, which on a far link is a round trip, and a stream of them
//! does not become a stream of batches. With more in flight it leaves when enough has come together, when the oldest of it
//! has waited for long, or when a receipt has made room.

use driftless_core::link::Backlog;
use std::collections::VecDeque;

/// Batches on their way to a peer without a receipt. Small ones overlap better: while one is synced, the next ones are staged.
pub(super) const BATCH_WINDOW: usize = 4;
/// The same while they are light; less than the number at which a peer hangs up.
pub(super) const LIGHT_WINDOW: usize = 12;
/// Batches with no more bytes together are light: a moment's work on any link that is of use.
const LIGHT_BYTES_MAX: u64 = 64 << 10;
/// Each light batch in flight but the first adds this to the pause after the last one. With all of them this reaches over a round
/// trip of some 130 ms.
const PAUSE_STEP_MS: u64 = 2;
/// So many rows behind what has left are enough for another batch.
const FILL_ROWS: u64 = 2048;

/// See the module.
#[derive(Default)]
pub(super) struct Pace {
    /// Batches without a receipt: their numbers, and how many rows they have.
    in_flight: VecDeque<(u64, u64)>,
    sent_ms: u64,
    /// A receipt has come since.
    freed: bool,
    /// Since when something waits to be sent.
    waiting_since_ms: Option<u64>,
    /// Set while nothing may leave: when something may although no receipt comes.
    closed_until_ms: Option<u64>,
}

impl Pace {
    /// True if a batch may leave now. `age_limit_ms`: for how long what waits may wait at most.
    pub(super) fn is_open(&mut self, backlog: Backlog, age_limit_ms: u64, now_ms: u64) -> bool {
        let on_their_way: u64 = self.in_flight.iter().map(|(_, rows)| rows).sum();
        let behind = backlog.rows.saturating_sub(on_their_way);
        self.waiting_since_ms = (behind > 0).then(|| self.waiting_since_ms.unwrap_or(now_ms));
        let opens_ms = self.opens_ms(backlog.in_flight_bytes, behind, age_limit_ms);
        self.closed_until_ms = (opens_ms > now_ms).then_some(opens_ms);
        self.closed_until_ms.is_none()
    }

    fn opens_ms(&self, bytes: u64, behind: u64, age_limit_ms: u64) -> u64 {
        let (n, light) = (self.in_flight.len(), bytes <= LIGHT_BYTES_MAX);
        if n == 0 {
            return 0;
        }
        if n >= if light { LIGHT_WINDOW } else { BATCH_WINDOW } {
            return u64::MAX;
        }
        if self.freed || behind >= FILL_ROWS {
            return 0;
        }
        let Some(since_ms) = self.waiting_since_ms else { return u64::MAX };
        let aged_ms = since_ms.saturating_add(age_limit_ms);
        let beside_ms = self.sent_ms.saturating_add(PAUSE_STEP_MS.saturating_mul(n as u64 - 1));
        if light { beside_ms.min(aged_ms) } else { aged_ms }
    }

    /// While nothing may leave: when something may, whatever happens; `u64::MAX` if only a receipt helps.
    pub(super) fn closed_until_ms(&self) -> Option<u64> {
        self.closed_until_ms
    }

    /// A batch leaves.
    pub(super) fn sent(&mut self, seq: u64, rows: usize, now_ms: u64) {
        self.in_flight.push_back((seq, rows as u64));
        self.sent_ms = now_ms;
        self.freed = false;
        self.waiting_since_ms = None;
    }

    /// A receipt has come.
    pub(super) fn receipt(&mut self, seq: u64) {
        let before = self.in_flight.len();
        self.in_flight.retain(|(sent, _)| *sent != seq);
        if self.in_flight.len() < before {
            (self.freed, self.closed_until_ms) = (true, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGE_MS: u64 = 30_000;

    fn backlog(rows: u64, in_flight_bytes: u64) -> Backlog {
        Backlog { rows, in_flight_bytes }
    }

    #[test]
    fn a_few_small_changes_in_a_row_do_not_wait_for_receipts() {
        let (mut pace, mut now_ms, mut left_at) = (Pace::default(), 1_000, Vec::new());
        for seq in 1..=LIGHT_WINDOW as u64 {
            // One row for each batch in flight, and a new one.
            while !pace.is_open(backlog(seq, 100 * seq), AGE_MS, now_ms) {
                now_ms = pace.closed_until_ms().unwrap();
            }
            pace.sent(seq, 1, now_ms);
            left_at.push(now_ms);
        }
        let pauses: Vec<u64> = left_at.windows(2).map(|t| t[1] - t[0]).collect();
        assert_eq!(pauses, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20]);
        assert!(
            !pace.is_open(backlog(13, 1_200), AGE_MS, now_ms + AGE_MS),
            "a peer hangs up on who never waits"
        );
        assert_eq!(pace.closed_until_ms(), Some(u64::MAX));
        pace.receipt(1);
        assert_eq!(pace.closed_until_ms(), None);
        assert!(pace.is_open(backlog(12, 1_100), AGE_MS, now_ms));
    }

    #[test]
    fn what_is_next_waits_behind_a_load() {
        let (mut pace, load) = (Pace::default(), LIGHT_BYTES_MAX + 1);
        pace.sent(1, 10, 0);
        assert!(!pace.is_open(backlog(11, load), AGE_MS, 5), "for more");
        assert_eq!(pace.closed_until_ms(), Some(5 + AGE_MS));
        assert!(pace.is_open(backlog(11, load), AGE_MS, 5 + AGE_MS), "but not for ever");
        pace.sent(2, 1, 5 + AGE_MS);
        assert!(pace.is_open(backlog(11 + FILL_ROWS, load), AGE_MS, 6 + AGE_MS), "enough has come together");
        pace.sent(3, 2, 6 + AGE_MS);
        assert!(!pace.is_open(backlog(14, load), AGE_MS, 7 + AGE_MS));
        pace.receipt(2);
        assert!(pace.is_open(backlog(13, load), AGE_MS, 7 + AGE_MS), "a receipt makes room");
        pace.sent(4, 1, 7 + AGE_MS);
        pace.sent(5, 1, 7 + AGE_MS);
        pace.receipt(99);
        assert!(!pace.is_open(backlog(99_999, load), AGE_MS, 99 * AGE_MS), "the window is full");
    }

    #[test]
    fn with_nothing_behind_nothing_is_due() {
        let mut pace = Pace::default();
        assert!(pace.is_open(backlog(0, 0), AGE_MS, 0));
        pace.sent(1, 1, 0);
        assert!(!pace.is_open(backlog(1, 100), AGE_MS, 9 * AGE_MS));
        assert_eq!(pace.closed_until_ms(), Some(u64::MAX));
    }
}
