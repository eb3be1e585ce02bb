//! The table, and what failed.

use crate::run::{Failure, Outcome};
use crate::world::{Fault, Stats};
use std::fmt::Write;

const COLUMNS: &str = "world                  seeds     steps      acts    merges conflicts  failed  faults";

/// The names of the columns.
pub fn header() -> &'static str {
    COLUMNS
}

/// One world's line.
pub fn row(o: &Outcome) -> String {
    line(o.scene.name(), o.seeds, &o.stats, o.failures.len())
}

/// All worlds together.
pub fn sum(outcomes: &[Outcome]) -> String {
    let mut stats = Stats::default();
    outcomes.iter().for_each(|o| stats.add(&o.stats));
    let seeds = outcomes.iter().map(|o| o.seeds).sum();
    line("all", seeds, &stats, outcomes.iter().map(|o| o.failures.len()).sum())
}

fn line(name: &str, seeds: u64, s: &Stats, failed: usize) -> String {
    let mut out = format!(
        "{name:<18} {seeds:>9} {:>9} {:>9} {:>9} {:>9} {failed:>7} ",
        s.steps, s.acts, s.merges, s.conflicts
    );
    for fault in Fault::ALL {
        let n = s.faults[fault as usize];
        if n > 0 {
            let _ = write!(out, " {} {n}", fault.name());
        }
    }
    out
}

/// A failure, as short as it was made.
pub fn failure(f: &Failure) -> String {
    let mut out = format!(
        "FAILED world {} seed {}\n  {}\n  again: driftless-sim --world {} --from {} --seeds 1   (every step: --trace)\n  {}\n",
        f.scene.name(),
        f.seed,
        f.why,
        f.scene.name(),
        f.seed,
        f.rules
    );
    let _ = writeln!(out, "  shrunk to {} steps: {}", f.steps.len(), f.short_why);
    for (i, step) in f.steps.iter().enumerate() {
        let _ = writeln!(out, "    {:>3} {step}", i + 1);
    }
    out
}
