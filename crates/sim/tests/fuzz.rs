//! Bytes and messages that nobody honest makes: every decoder takes anything, quickly and in bounded memory, and a replica
//! takes any message of a peer. The targets are here for what `core` and `net` read; `driftless_testkit::fuzz` bends a committed corpus
//! (`corpus/*.hex`, one input per line) for them.

#![allow(clippy::unwrap_used)] // Helpers of tests, too.

use driftless_core::codec::{Decoder, ReplicaTable};
use driftless_core::unsealed::{self, Images};
use driftless_core::{ReplicaId, intent, recipe, trash};
use driftless_net::wire::FrameReader;
use driftless_sim::hostile;
use driftless_testkit::fuzz::{Counting, HELD_MAX, corpus, first_seed, fuzz, number};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Frames, beside what any decoder may hold: what is read ahead, and steps in which unpacked bytes grow.
const FRAME_HELD_MAX: usize = 4 << 20;
/// Attacks of a hostile peer, every day.
const ATTACKS: u64 = 150;

fn replicas() -> ReplicaTable {
    ReplicaTable::with((1..6).map(ReplicaId))
}

#[test]
fn frames() {
    // The protocol's fixtures have one frame per line, with its name before it.
    let fixture = concat!(
        include_str!("../../net/tests/fixtures/frames-v1.hex"),
        include_str!("../../net/tests/fixtures/frames-v3.hex"),
        include_str!("../../net/tests/fixtures/frames-v4.hex"),
        include_str!("../../net/tests/fixtures/frames-v5.hex")
    );
    let hex = |l: &&str| l.len().is_multiple_of(2) && l.bytes().all(|b| b.is_ascii_hexdigit()) && l.len() > 8;
    let words: Vec<&str> = fixture.split_whitespace().filter(hex).collect();
    let frames = corpus(&words.join("\n"));
    assert!(frames.len() > 5, "the fixture is read");
    fuzz("frames", &frames, FRAME_HELD_MAX, |bytes| {
        let mut reader = FrameReader::new(bytes).unwrap();
        while let Ok(Some(_)) = reader.read() {}
    });
}

#[test]
fn index_rows() {
    let rows = corpus(include_str!("../corpus/rows.hex"));
    let table = replicas();
    fuzz("index rows", &rows, HELD_MAX, |bytes| {
        let _ = Decoder::new(bytes).entry(&table);
        let _ = Decoder::new(bytes).node(&table);
        let _ = Decoder::new(bytes).place(&table);
        let _ = Decoder::new(bytes).vv(&table);
        let _ = Decoder::new(bytes).attrs();
        let _ = Decoder::new(bytes).content();
        let _ = Decoder::new(bytes).name();
    });
}

#[test]
fn plan_records() {
    let rows = corpus(include_str!("../corpus/records.hex"));
    let table = replicas();
    fuzz("plan records", &rows, HELD_MAX, |bytes| {
        let _ = intent::decode_intents(bytes);
        let _ = unsealed::decode(bytes, &table, &mut Images::new());
    });
}

#[test]
fn recipes_and_trash() {
    let rows = corpus(include_str!("../corpus/lists.hex"));
    fuzz("recipes and trash", &rows, HELD_MAX, |bytes| {
        let _ = recipe::Recipe::decode(&mut Decoder::new(bytes));
        let _ = trash::decode(bytes);
    });
}

#[test]
fn messages_of_a_hostile_peer() {
    let first = first_seed();
    let count = number("DRIFTLESS_FUZZ_INPUTS").map_or(ATTACKS, |n| n / 100);
    let mut all = hostile::Tally::default();
    for seed in first..first + count {
        let tally = hostile::attack(seed).unwrap_or_else(|why| panic!("attack {seed}: {why}"));
        all.ended += tally.ended;
        all.merged += tally.merged;
        all.refused += tally.refused;
    }
    // An attack that is always stopped at the door tries nothing.
    assert!(all.merged > 0 && all.refused > 0 && all.ended > 0, "{all:?}");
}
