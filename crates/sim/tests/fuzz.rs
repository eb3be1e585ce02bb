//! Bytes and messages that nobody honest makes: every decoder takes anything, quickly and in bounded memory, and a replica
//! takes any message of a peer.
//!
//! Each target starts from the committed corpus (`corpus/*.hex`, one input per line) and bends it by seeded mutations, so
//! that a seed is an input for ever. `DRIFTLESS_FUZZ_INPUTS=1000000` tries more of each, `DRIFTLESS_FUZZ_FIRST=7` starts at
//! another seed.

#![allow(clippy::unwrap_used)] // Helpers of tests, too.

use driftless_core::codec::{Decoder, ReplicaTable};
use driftless_core::unsealed::{self, Images};
use driftless_core::{ReplicaId, intent, recipe, trash};
use driftless_net::wire::FrameReader;
use driftless_sim::hostile;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    /// Bytes that this thread holds beyond those it held when it was last reset, and the most it held since.
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<usize> = const { Cell::new(0) };
}

/// Allocates nothing: the cells need no beginning and no end.
fn note(more: isize) {
    let _ = HELD.try_with(|held| {
        held.set(held.get().saturating_add(more));
        let _ = MOST.try_with(|most| most.set(most.get().max(usize::try_from(held.get()).unwrap_or(0))));
    });
}

struct Counting;

#[allow(unsafe_code)]
// SAFETY: passes everything on to the system's allocator unchanged; the note taken allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        note(-(layout.size() as isize));
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Memory that a decoder may hold at once: so much for each byte of the input ...
const HELD_PER_BYTE: usize = 1_024;
/// ... and so much whatever the input.
const HELD_MAX: usize = 1 << 20;
/// Frames, beside that: what is read ahead, and steps in which unpacked bytes grow.
const FRAME_HELD_MAX: usize = 4 << 20;
/// Inputs of each target, every day.
const INPUTS: u64 = 20_000;
/// Attacks of a hostile peer, every day.
const ATTACKS: u64 = 150;

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// What format readers trip over.
const EDGES: [&[u8]; 8] = [
    &[0xff; 10],
    &[0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0x80; 9],
    &[0; 8],
    &[0x7f, 0xff, 0xff, 0xff],
    b"..",
    b"/",
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
];

fn bend(rng: &mut Rng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut input = corpus[rng.below(corpus.len())].clone();
    for _ in 0..1 + rng.below(6) {
        let at = rng.below(input.len() + 1);
        match rng.below(8) {
            0 if at < input.len() => input[at] ^= 1 << rng.below(8),
            1 if at < input.len() => input[at] = rng.next() as u8,
            2 => input.truncate(at),
            3 => drop(input.splice(at..at, EDGES[rng.below(EDGES.len())].iter().copied())),
            4 if at < input.len() => {
                let end = (at + EDGES[0].len()).min(input.len());
                input.splice(at..end, EDGES[rng.below(EDGES.len())].iter().copied());
            }
            5 => {
                let other = &corpus[rng.below(corpus.len())];
                let from = rng.below(other.len());
                let to = from + rng.below(other.len() - from + 1);
                input.splice(at..at, other[from..to].iter().copied());
            }
            6 => {
                let end = at + rng.below(input.len() - at + 1);
                input.drain(at..end);
            }
            _ => {
                let again = input[..at].to_vec();
                input.extend(again);
            }
        }
    }
    input.truncate(64 << 10);
    input
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn corpus(text: &str) -> Vec<Vec<u8>> {
    let line =
        |l: &str| (0..l.len() / 2).map(|i| u8::from_str_radix(&l[2 * i..2 * i + 2], 16).unwrap()).collect();
    text.lines().filter(|l| !l.starts_with('#') && !l.is_empty()).map(line).collect()
}

/// Every input of the corpus as it is, then bent ones.
fn fuzz(name: &str, corpus: &[Vec<u8>], held_max: usize, decode: impl Fn(&[u8])) {
    let first = number("DRIFTLESS_FUZZ_FIRST").unwrap_or(1);
    let count = number("DRIFTLESS_FUZZ_INPUTS").unwrap_or(INPUTS);
    for seed in first..first + count {
        let input = match corpus.get((seed - 1) as usize) {
            Some(whole) => whole.clone(),
            None => bend(&mut Rng(seed), corpus),
        };
        HELD.set(0);
        MOST.set(0);
        let outcome = catch_unwind(AssertUnwindSafe(|| decode(&input)));
        let held = MOST.get();
        assert!(outcome.is_ok(), "{name}: seed {seed} panics on {input:02x?}");
        assert!(
            held <= held_max + HELD_PER_BYTE * input.len(),
            "{name}: seed {seed} holds {held} bytes for {} of input",
            input.len()
        );
    }
}

fn replicas() -> ReplicaTable {
    ReplicaTable::with((1..6).map(ReplicaId))
}

#[test]
fn frames() {
    // The protocol's fixture has one frame per line, with its name before it.
    let fixture = include_str!("../../net/tests/fixtures/frames-v1.hex");
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
        let _ = recipe::Recipe::decode(bytes);
        let _ = trash::decode(bytes);
    });
}

#[test]
fn messages_of_a_hostile_peer() {
    let first = number("DRIFTLESS_FUZZ_FIRST").unwrap_or(1);
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
