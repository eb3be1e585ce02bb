//! Recipes: parts of a file as lists of chunks, so that a receiver keeps the chunks that it has in some file and asks for the
//! rest. A recipe is content, fetched when wanted; it is no part of an entry's state.
//!
//! A file is cut part by part ([`PART_LEN`]), each by itself: so a part's recipe follows from its bytes alone, parts can be
//! cut side by side, and no list has more than some thousand chunks. Within a part the cuts follow from the content
//! (`FastCDC`), so that what was moved by an insertion is found again one chunk behind the start of the part.
//!
//! A chunk is known by 16 bytes, of its XXH3, or of its BLAKE3 where the other end knows no other. That is enough to find it: what
//! was put together is compared with the digest of the whole version before anybody sees it, so who makes two chunks that are known by the same
//! bytes makes his own file be fetched as a whole.

use crate::codec::{Decoded, Decoder, Encoder};
use fastcdc::v2020::FastCDC;
use std::collections::HashMap;
use std::ops::Range;
use twox_hash::XxHash3_128;

/// Bytes of a file that one recipe is about at most. A part costs about one chunk of what was only moved.
pub const PART_LEN: u64 = 64 << 20;
/// Most chunks in one recipe: a part in chunks of the least average, with room for many that are shorter.
pub const CHUNKS_MAX: usize = 32_768;
/// Chunks of one file that are known at once: 48 bytes each. What is beyond is fetched as if it were new.
pub const KNOWN_CHUNKS_MAX: usize = 1 << 20;
/// Bounds of the average length, as powers of two: 4 KiB to 1 MiB.
const AVERAGE_LOG2: std::ops::RangeInclusive<u8> = 12..=20;
/// A file is cut into about so many chunks: longer ones make the list shorter, and each change cost more. This is best for some
/// hundred changes in a file of a gigabyte.
const CHUNKS_WANTED: u64 = 131_072;
/// The longest chunk, in averages.
const LONGEST: usize = 4;
/// What an item takes at least when it is encoded.
const ITEM_LEN_MIN: usize = 1 + Chunk::LEN;

/// What the bytes are that a chunk is known by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChunkHash {
    /// The first of its BLAKE3.
    Blake3,
    /// Its XXH3 of 128 bits, with seed 0, most significant byte first: a tenth of the work.
    Xxh3,
}

/// In the number of a cut: chunks are known by their XXH3.
const XXH3_FLAG: u8 = 32;

/// How files are cut: both ends must do it alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cut {
    average_log2: u8,
    hash: ChunkHash,
}

impl Cut {
    /// How a file of `size` bytes is cut.
    pub fn of_size(size: u64, hash: ChunkHash) -> Cut {
        let average = (size / CHUNKS_WANTED).max(1);
        let log2 = 63 - average.leading_zeros() as u8;
        Cut { average_log2: log2.clamp(*AVERAGE_LOG2.start(), *AVERAGE_LOG2.end()), hash }
    }

    /// The cut with this number; `None` if there is none.
    pub fn from_number(n: u8) -> Option<Cut> {
        let hash = if n & XXH3_FLAG == 0 { ChunkHash::Blake3 } else { ChunkHash::Xxh3 };
        let average_log2 = n & !XXH3_FLAG;
        AVERAGE_LOG2.contains(&average_log2).then_some(Cut { average_log2, hash })
    }

    /// Its number.
    pub fn number(self) -> u8 {
        match self.hash {
            ChunkHash::Blake3 => self.average_log2,
            ChunkHash::Xxh3 => self.average_log2 | XXH3_FLAG,
        }
    }

    /// Average length of a chunk in bytes.
    pub fn average(self) -> usize {
        1 << self.average_log2
    }

    /// Length of the longest chunk in bytes.
    pub fn longest(self) -> usize {
        LONGEST << self.average_log2
    }

    /// Gives the chunks of `bytes`, which begin where the one before ended, to `each`; returns how many bytes these are. What
    /// is left may be the beginning of a longer chunk, unless `last`.
    pub fn chunks(self, bytes: &[u8], last: bool, mut each: impl FnMut(Item)) -> usize {
        let average = self.average();
        // Nothing is cut in the first half of the average: that is skipped unread, and the chunks are more alike in length.
        let cuts = FastCDC::new(bytes, average / 2, average, self.longest());
        let mut at = 0;
        for chunk in cuts {
            let end = chunk.offset + chunk.length;
            if !last && end == bytes.len() && chunk.length < self.longest() {
                break;
            }
            each(Item::of(&bytes[chunk.offset..end], self.hash));
            at = end;
        }
        at
    }
}

/// What a chunk is known by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Chunk(pub [u8; Chunk::LEN]);

impl Chunk {
    /// Its length in bytes.
    pub const LEN: usize = 16;
}

/// A chunk of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Item {
    /// Its length in bytes; not 0.
    pub len: u32,
    /// Its bytes.
    pub chunk: Chunk,
}

impl Item {
    /// The chunk with these bytes, at most 4 GiB.
    fn of(bytes: &[u8], hash: ChunkHash) -> Item {
        let mut chunk = [0; Chunk::LEN];
        match hash {
            ChunkHash::Blake3 => chunk.copy_from_slice(&blake3::hash(bytes).as_bytes()[..Chunk::LEN]),
            ChunkHash::Xxh3 => chunk = XxHash3_128::oneshot(bytes).to_be_bytes(),
        }
        Item { len: bytes.len() as u32, chunk: Chunk(chunk) }
    }
}

/// The chunks of a part of a file, in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Recipe {
    items: Vec<Item>,
    len: u64,
}

/// Why chunks make no recipe.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecipeError {
    /// More than [`CHUNKS_MAX`].
    #[error("a recipe has at most {CHUNKS_MAX} chunks")]
    TooMany,
    /// A chunk of no bytes.
    #[error("chunk {0} of a recipe is empty")]
    Empty(usize),
    /// More than [`PART_LEN`] in all.
    #[error("a recipe is about {PART_LEN} bytes at most")]
    TooLong,
}

impl Recipe {
    /// Checks chunks and makes a recipe of them.
    ///
    /// # Errors
    /// See [`RecipeError`].
    pub fn new(items: Vec<Item>) -> Result<Recipe, RecipeError> {
        if items.len() > CHUNKS_MAX {
            return Err(RecipeError::TooMany);
        }
        if let Some(i) = items.iter().position(|item| item.len == 0) {
            return Err(RecipeError::Empty(i));
        }
        // At most 2^15 lengths below 2^32.
        let len = items.iter().map(|item| u64::from(item.len)).sum();
        if len > PART_LEN { Err(RecipeError::TooLong) } else { Ok(Recipe { items, len }) }
    }

    /// The chunks in the order of the file.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// How many bytes these are together.
    pub fn bytes(&self) -> u64 {
        self.len
    }

    /// Appends it to a message.
    pub fn encode(&self, e: &mut Encoder) {
        e.uint(self.items.len() as u64);
        for item in &self.items {
            e.uint(item.len.into());
            e.raw(&item.chunk.0);
        }
    }

    /// Takes one off a message; total, and checked like [`Recipe::new`].
    ///
    /// # Errors
    /// If it is none.
    pub fn decode(d: &mut Decoder<'_>) -> Decoded<Recipe> {
        let count = d.count(ITEM_LEN_MIN)?;
        if count > CHUNKS_MAX {
            return d.bad("count of chunks");
        }
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            let len = u32::try_from(d.uint()?).or_else(|_| d.bad("length of a chunk"))?;
            let chunk = d.raw(Chunk::LEN)?.try_into().or_else(|_| d.bad("chunk"))?;
            items.push(Item { len, chunk: Chunk(chunk) });
        }
        Recipe::new(items).or_else(|_| d.bad("recipe"))
    }
}

/// In which of the files at hand something is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// In a file of the tree.
    Base,
    /// In the file that is being put together, left by an earlier attempt.
    Begun,
}

/// Bytes to be copied from the base.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Copy {
    /// Where they are.
    pub from: u64,
    /// Where they belong.
    pub to: u64,
    /// How many.
    pub len: u64,
}

/// What a part of a file is made of.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Compared {
    /// To be copied from the base, ascending by where it belongs.
    pub copies: Vec<Copy>,
    /// In no file at hand: disjoint, ascending.
    pub missing: Vec<Range<u64>>,
}

/// Which chunks are in the files at hand, and where.
#[derive(Clone, Debug, Default)]
pub struct Known {
    base: HashMap<Chunk, (u64, u32)>,
    begun: HashMap<u64, Item>,
}

impl Known {
    /// A chunk that starts at `at`.
    pub fn add(&mut self, source: Source, at: u64, item: Item) {
        if self.base.len() + self.begun.len() >= KNOWN_CHUNKS_MAX {
            return;
        }
        match source {
            Source::Base => _ = self.base.entry(item.chunk).or_insert((at, item.len)),
            Source::Begun => _ = self.begun.insert(at, item),
        }
    }

    /// What the part that starts at `start` is made of.
    pub fn compare(&self, start: u64, recipe: &Recipe) -> Compared {
        let mut out = Compared::default();
        let mut at = start;
        for item in recipe.items() {
            let end = at + u64::from(item.len);
            match self.base.get(&item.chunk) {
                // Only what is in its place already: what is elsewhere in that file is being written over.
                _ if self.begun.get(&at) == Some(item) => {}
                Some((from, len)) if *len == item.len => out.copy(*from, at, u64::from(item.len)),
                _ => out.miss(at..end),
            }
            at = end;
        }
        out
    }
}

impl Compared {
    fn copy(&mut self, from: u64, to: u64, len: u64) {
        match self.copies.last_mut() {
            Some(c) if c.from + c.len == from && c.to + c.len == to => c.len += len,
            _ => self.copies.push(Copy { from, to, len }),
        }
    }

    fn miss(&mut self, range: Range<u64>) {
        match self.missing.last_mut() {
            Some(m) if m.end == range.start => m.end = range.end,
            _ => self.missing.push(range),
        }
    }
}

/// The parts of a file of `size` bytes.
pub fn parts(size: u64) -> impl Iterator<Item = Range<u64>> {
    (0..size.div_ceil(PART_LEN)).map(move |i| i * PART_LEN..((i + 1) * PART_LEN).min(size))
}

#[cfg(test)]
mod tests;
