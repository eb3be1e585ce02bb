//! How far a peer is behind: the age of the oldest change of our feed that is not on its disk for good.
//!
//! Kept as a few marks "the head was here at that time"; what the peer says it holds takes marks away. The clock is this
//! replica's own. With too many marks two become one, which counts from the older time: a lag is never told
//! shorter than it is.

use std::collections::VecDeque;

/// Most marks kept of one peer.
const MARKS_MAX: usize = 1024;
/// A mark closer than this to the one before is not worth its place.
const MARK_EVERY_NS: u64 = 100_000_000;

/// Of one peer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lag {
    /// (head, when it got there), ascending in both.
    marks: VecDeque<(u64, u64)>,
    /// Position up to which there are marks, or the peer holds all.
    marked: u64,
}

impl Lag {
    /// Of a peer that holds our feed up to `held`, which ends at `head`; the oldest change between is of `oldest_ns`.
    pub fn new(held: u64, head: u64, oldest_ns: u64) -> Lag {
        let mut lag = Lag { marks: VecDeque::new(), marked: held };
        lag.head_is(head, oldest_ns);
        lag
    }

    /// Our feed ends at `head` now.
    pub fn head_is(&mut self, head: u64, now_ns: u64) {
        if head <= self.marked {
            return;
        }
        self.marked = head;
        match self.marks.back_mut() {
            Some((at, since)) if now_ns.saturating_sub(*since) < MARK_EVERY_NS => *at = head,
            _ => self.marks.push_back((head, now_ns)),
        }
        if self.marks.len() > MARKS_MAX {
            self.thin_out();
        }
    }

    /// The peer holds everything up to `cursor`.
    pub fn held_to(&mut self, cursor: u64) {
        while self.marks.front().is_some_and(|(head, _)| *head <= cursor) {
            self.marks.pop_front();
        }
    }

    /// The peer holds everything, or needs no more.
    pub fn holds_all(&mut self) {
        self.marks.clear();
    }

    /// When the oldest change was made that the peer does not hold; `None` if it holds all.
    pub fn since_ns(&self) -> Option<u64> {
        self.marks.front().map(|(_, since)| *since)
    }

    fn thin_out(&mut self) {
        let pairs: Vec<(u64, u64)> = self.marks.drain(..).collect();
        // The older time with the later position.
        self.marks = pairs.chunks(2).map(|two| (two[two.len() - 1].0, two[0].1)).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn a_lag_is_the_age_of_the_oldest_change() {
        let mut lag = Lag::new(5, 5, 0);
        assert_eq!(lag.since_ns(), None);
        lag.head_is(6, 10 * S);
        lag.head_is(7, 11 * S);
        lag.head_is(7, 12 * S);
        lag.held_to(5);
        assert_eq!(lag.since_ns(), Some(10 * S));
        lag.held_to(6);
        assert_eq!(lag.since_ns(), Some(11 * S));
        lag.held_to(7);
        assert_eq!(lag.since_ns(), None);
        lag.head_is(8, 20 * S);
        lag.holds_all();
        assert_eq!(lag.since_ns(), None);
    }

    #[test]
    fn changes_of_one_moment_share_a_mark_and_old_ones_stay_old() {
        let mut lag = Lag::default();
        for n in 1..=10 * MARKS_MAX as u64 {
            lag.head_is(n, n * S);
        }
        assert!(lag.marks.len() <= MARKS_MAX);
        for held in [0, 1, 100, 5000, 10_000] {
            lag.held_to(held);
            // Never younger than the first change that is not held.
            assert!(
                lag.since_ns().is_some_and(|since| since <= (held + 1) * S),
                "{held}: {:?}",
                lag.since_ns()
            );
        }
        let mut lag = Lag::default();
        for n in 1..1000 {
            lag.head_is(n, S + n);
        }
        assert_eq!(lag.marks.len(), 1);
        assert_eq!(lag.since_ns(), Some(S + 1));
    }

    #[test]
    fn a_start_behind_counts_from_the_oldest_change() {
        let mut lag = Lag::new(5, 9, 3 * S);
        assert_eq!(lag.since_ns(), Some(3 * S));
        lag.held_to(9);
        assert_eq!(lag.since_ns(), None);
    }
}
