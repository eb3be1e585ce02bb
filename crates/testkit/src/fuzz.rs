//! Bytes that nobody honest makes: a corpus, bent by seeded mutations, so that a seed is an input for ever. Every decoder is to
//! take anything, quickly and in bounded memory.
//!
//! `DRIFTLESS_FUZZ_INPUTS=1000000` tries more inputs of each target, `DRIFTLESS_FUZZ_FIRST=7` starts at another seed. For memory to
//! be counted the test binary has to have [`Counting`] as its global allocator.
// An allocator is unsafe by nature.
#![allow(unsafe_code)]

use crate::Rng;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Memory that a decoder may hold at once: so much for each byte of the input ...
const HELD_PER_BYTE: usize = 1_024;
/// ... and, unless a target says otherwise, so much whatever the input.
pub const HELD_MAX: usize = 1 << 20;
/// Inputs of each target, every day.
const INPUTS: u64 = 20_000;
/// Longest input.
const INPUT_LEN_MAX: usize = 64 << 10;

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

/// The system's allocator, which counts what each thread holds.
pub struct Counting;

// SAFETY: passes everything on to the system's allocator unchanged; the note taken allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as isize);
        // SAFETY: the caller's promises are those of the system's allocator.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        note(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// What format readers trip over.
const EDGES: [&[u8]; 12] = [
    &[0xff; 10],
    &[0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0x80; 9],
    &[0; 8],
    &[0x7f, 0xff, 0xff, 0xff],
    b"..",
    b"/",
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
    b"[[[[[[[[[[[[[[[[",
    b"{\"\":",
    b"99999999999999999999",
    "\u{e9}\u{0}\"\\".as_bytes(),
];

/// One input of the corpus with a few mutations.
fn bend(rng: &mut Rng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let below = |rng: &mut Rng, n: usize| rng.below(n.max(1) as u64) as usize;
    let mut input = corpus[below(rng, corpus.len())].clone();
    for _ in 0..1 + rng.below(6) {
        let at = below(rng, input.len() + 1);
        match rng.below(8) {
            0 if at < input.len() => input[at] ^= 1 << rng.below(8),
            1 if at < input.len() => input[at] = rng.next_u64() as u8,
            2 => input.truncate(at),
            3 => drop(input.splice(at..at, EDGES[below(rng, EDGES.len())].iter().copied())),
            4 if at < input.len() => {
                let end = (at + EDGES[0].len()).min(input.len());
                input.splice(at..end, EDGES[below(rng, EDGES.len())].iter().copied());
            }
            5 => {
                let other = &corpus[below(rng, corpus.len())];
                let from = below(rng, other.len());
                let to = from + below(rng, other.len() - from + 1);
                input.splice(at..at, other[from..to].iter().copied());
            }
            6 => {
                let end = at + below(rng, input.len() - at + 1);
                input.drain(at..end);
            }
            _ => {
                let again = input[..at].to_vec();
                input.extend(again);
            }
        }
    }
    input.truncate(INPUT_LEN_MAX);
    input
}

/// A number from the environment.
pub fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// The first seed that is asked for.
pub fn first_seed() -> u64 {
    number("DRIFTLESS_FUZZ_FIRST").unwrap_or(1)
}

/// Inputs written as hexadecimal digits, one per line; lines that begin with `#` are none.
pub fn corpus(text: &str) -> Vec<Vec<u8>> {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap_or(""), 16);
    let line = |l: &str| l.as_bytes().chunks(2).map(byte).collect::<Result<_, _>>();
    let lines = text.lines().filter(|l| !l.starts_with('#') && !l.is_empty());
    lines.map(line).collect::<Result<_, _>>().expect("a committed corpus is hexadecimal")
}

/// Gives `decode` every input of the corpus as it is, then bent ones.
///
/// # Panics
/// If it panics, or holds more than `held_max` bytes and some for each byte of the input.
pub fn fuzz(name: &str, corpus: &[Vec<u8>], held_max: usize, decode: impl Fn(&[u8])) {
    let count = number("DRIFTLESS_FUZZ_INPUTS").unwrap_or(INPUTS);
    for seed in first_seed()..first_seed() + count {
        let input = match corpus.get((seed - 1) as usize) {
            Some(whole) => whole.clone(),
            None => bend(&mut Rng::new(seed), corpus),
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
