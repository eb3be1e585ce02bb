//! Every deliberate bug is seen: `cargo test --release -p driftless-sim --features mutants --test mutants`.
#![cfg(feature = "mutants")]

use driftless_sim::mutants::{Mutant, hunt, row};

/// Enough for every bug, with room: see the table in docs/testing.md.
const HISTORIES_MAX: u64 = 4_000;

#[test]
fn every_deliberate_bug_is_seen() {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let hunts = hunt(Mutant::ALL, 1, 1, HISTORIES_MAX, threads, |h| println!("{}", row(h)));
    assert!(hunts.len() >= 20);
    let missed: Vec<String> = hunts.iter().filter(|h| !h.caught()).map(row).collect();
    assert!(missed.is_empty(), "\n{}", missed.join("\n"));
}
