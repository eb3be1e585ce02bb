//! Recipes: a file's content as a list of chunks, so that a receiver can keep the chunks it has and
//! ask for the rest. A recipe is content, fetched when wanted; it is no part of an entry's state.
//!
//! ```text
//! recipe   format u8 (1) | total size varint | level u8 | count varint | item ...
//! item     length varint (bytes of the file it stands for) | BLAKE3, 32 bytes
//! ```
//!
//! On level 0 each item is a chunk of the file and the digest is that of its bytes. Files of more than
//! [`CHUNKS_MAX`] chunks have a recipe of level 1: each item stands for a run of chunks, and the digest is that of the
//! encoded level-0 recipe of the run. So no recipe in memory has more than [`CHUNKS_MAX`] items, and a change in a
//! huge file makes only the list of its run differ.

use crate::codec::{Decoded, Decoder, Encoder, Malformed};
use crate::meta::Digest;

/// Most items in one recipe: 64 Ki items of at most 42 bytes are 2.6 MiB.
pub const CHUNKS_MAX: usize = 65_536;
/// Longest chunk in bytes: one that has to be in memory at once.
pub const CHUNK_LEN_MAX: u64 = 16 << 20;
const FORMAT: u8 = 1;
const ITEM_LEN_MIN: usize = 33;

/// A part of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Item {
    /// Bytes of the file it stands for; not 0.
    pub len: u64,
    /// Level 0: BLAKE3 of those bytes. Level 1: BLAKE3 of the encoded recipe of those bytes.
    pub digest: Digest,
}

/// What the items of a recipe are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// Chunks of the file.
    Chunks = 0,
    /// Recipes of level [`Level::Chunks`] for runs of chunks.
    Runs = 1,
}

/// A checked list of items.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recipe {
    size: u64,
    level: Level,
    items: Vec<Item>,
}

/// Why items make no recipe.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecipeError {
    /// More than [`CHUNKS_MAX`] items: make it two-level.
    #[error("a recipe has at most {CHUNKS_MAX} items")]
    TooMany,
    /// An item of no bytes, or a chunk above [`CHUNK_LEN_MAX`].
    #[error("item {0} of a recipe has a length that is not allowed")]
    ItemLength(usize),
    /// The lengths do not add up to a 64-bit size.
    #[error("a recipe is longer than 64 bits can say")]
    Overflow,
}

impl Recipe {
    /// Checks `items` and makes a recipe of them.
    pub fn new(level: Level, items: Vec<Item>) -> Result<Recipe, RecipeError> {
        if items.len() > CHUNKS_MAX {
            return Err(RecipeError::TooMany);
        }
        let mut size = 0u64;
        for (i, item) in items.iter().enumerate() {
            if item.len == 0 || (level == Level::Chunks && item.len > CHUNK_LEN_MAX) {
                return Err(RecipeError::ItemLength(i));
            }
            size = size.checked_add(item.len).ok_or(RecipeError::Overflow)?;
        }
        Ok(Recipe { size, level, items })
    }

    /// Length of the file, or of the run, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What the items are.
    pub fn level(&self) -> Level {
        self.level
    }

    /// The parts in file order.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// What a level-1 recipe calls this one by.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.encode())
    }

    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder { buf: Vec::with_capacity(16 + self.items.len() * (ITEM_LEN_MIN + 2)) };
        e.u8(FORMAT);
        e.uint(self.size);
        e.u8(self.level as u8);
        e.uint(self.items.len() as u64);
        for item in &self.items {
            e.uint(item.len);
            e.raw(&item.digest.0);
        }
        e.buf
    }

    /// From bytes; total, and checked like [`Recipe::new`].
    pub fn decode(bytes: &[u8]) -> Decoded<Recipe> {
        let mut d = Decoder::new(bytes);
        if d.u8()? != FORMAT {
            return d.bad("format of a recipe");
        }
        let size = d.uint()?;
        let level = match d.u8()? {
            0 => Level::Chunks,
            1 => Level::Runs,
            _ => return d.bad("level of a recipe"),
        };
        let count = d.count(ITEM_LEN_MIN)?;
        if count > CHUNKS_MAX {
            return d.bad("count of a recipe");
        }
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(item(&mut d)?);
        }
        d.end()?;
        match Recipe::new(level, items) {
            Ok(r) if r.size == size => Ok(r),
            _ => d.bad("recipe"),
        }
    }
}

fn item(d: &mut Decoder<'_>) -> Result<Item, Malformed> {
    let len = d.uint()?;
    let digest = d.raw(32)?.try_into().or_else(|_| d.bad("digest"))?;
    Ok(Item { len, digest: Digest(digest) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(len: u64) -> Item {
        Item { len, digest: Digest::of(&len.to_be_bytes()) }
    }

    #[test]
    fn a_recipe_comes_back_from_its_bytes() {
        for level in [Level::Chunks, Level::Runs] {
            let r = Recipe::new(level, vec![item(1), item(70_000), item(CHUNK_LEN_MAX)]).unwrap();
            assert_eq!(r.size(), 70_001 + CHUNK_LEN_MAX);
            assert_eq!(Recipe::decode(&r.encode()), Ok(r));
        }
    }

    #[test]
    fn lists_that_cannot_be_are_refused() {
        let over = vec![item(1); CHUNKS_MAX + 1];
        assert_eq!(Recipe::new(Level::Chunks, over), Err(RecipeError::TooMany));
        assert_eq!(Recipe::new(Level::Chunks, vec![item(5), item(0)]), Err(RecipeError::ItemLength(1)));
        let long = vec![item(CHUNK_LEN_MAX + 1)];
        assert_eq!(Recipe::new(Level::Chunks, long.clone()), Err(RecipeError::ItemLength(0)));
        assert!(Recipe::new(Level::Runs, long).is_ok());
        let huge = vec![item(u64::MAX), item(1)];
        assert_eq!(Recipe::new(Level::Runs, huge), Err(RecipeError::Overflow));
    }

    #[test]
    fn damaged_bytes_give_errors() {
        let good = Recipe::new(Level::Chunks, vec![item(3), item(4)]).unwrap().encode();
        for cut in 0..good.len() {
            assert!(Recipe::decode(&good[..cut]).is_err());
        }
        let mut wrong_size = good;
        wrong_size[1] = 8;
        assert!(Recipe::decode(&wrong_size).is_err());
    }
}
