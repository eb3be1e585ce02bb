//! How long changes of other sites took from when they were made there until they were on this disk: a histogram.
//!
//! By the two sites' clocks, so it is as true as these agree. What was made before this process began is not counted:
//! the time it waited says nothing about the links.

use super::{Engine, Fail, wall_ns};
use driftless_core::{EntryId, Tx};

/// Upper bounds of the histogram's classes, in seconds.
pub const BOUNDS_S: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 300.0, 3600.0];

/// See the module.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Propagation {
    /// Changes in each class, and not in one before; the last has no bound.
    pub counts: [u64; BOUNDS_S.len() + 1],
    /// Sum of all times, in seconds.
    pub sum_s: f64,
}

impl Propagation {
    /// Changes counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    fn add(&mut self, seconds: f64) {
        let class = BOUNDS_S.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS_S.len());
        self.counts[class] += 1;
        self.sum_s += seconds;
    }
}

impl Engine {
    /// An entry is on this disk as it should be.
    pub(super) fn note_propagated(&mut self, tx: &mut Tx<'_>, id: EntryId) -> Result<(), Fail> {
        if self.service.is_none() {
            return Ok(());
        }
        let Some(row) = tx.entry(id)? else { return Ok(()) };
        let stamp = row.entry.stamp_max();
        if stamp.replica != tx.me() && stamp.clock_ns >= self.begun_ns {
            let ns = wall_ns().saturating_sub(stamp.clock_ns);
            self.propagation.add(ns as f64 / 1e9);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counts_in_one_class() {
        let mut all = Propagation::default();
        [0.0, 0.01, 0.3, 1e9].into_iter().for_each(|s| all.add(s));
        assert_eq!((all.counts[0], all.counts[5], all.counts[BOUNDS_S.len()]), (2, 1, 1));
        assert_eq!(all.count(), 4);
    }
}
