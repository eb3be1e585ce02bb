//! Tests of recipes.

use super::*;
use crate::codec::Malformed;

/// Bytes that look like nothing, from a seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_be_bytes()).finalize_xof().fill(&mut out);
    out
}

fn recipe_of(cut: Cut, bytes: &[u8]) -> Recipe {
    let mut items = Vec::new();
    assert_eq!(cut.chunks(bytes, true, |item| items.push(item)), bytes.len());
    Recipe::new(items).unwrap()
}

fn known(cut: Cut, bytes: &[u8]) -> Known {
    let (mut known, mut at) = (Known::default(), 0);
    for item in recipe_of(cut, bytes).items() {
        known.add(Source::Base, at, *item);
        at += u64::from(item.len);
    }
    known
}

fn item(n: u8, len: u32) -> Item {
    Item { len, chunk: Chunk([n; Chunk::LEN]) }
}

fn decode(bytes: &[u8]) -> Result<Recipe, Malformed> {
    let mut d = Decoder::new(bytes);
    let recipe = Recipe::decode(&mut d)?;
    d.end()?;
    Ok(recipe)
}

fn encode(recipe: &Recipe) -> Vec<u8> {
    let mut e = Encoder::default();
    recipe.encode(&mut e);
    e.buf
}

#[test]
fn larger_files_are_cut_into_longer_chunks() {
    let average = |size: u64| Cut::of_size(size, ChunkHash::Xxh3).average();
    assert_eq!([0, 1 << 20, 512 << 20].map(average), [4096; 3]);
    assert_eq!(average(1 << 30), 8 << 10);
    assert_eq!([1 << 40, u64::MAX].map(average), [1 << 20; 2]);
    for n in 0..=u8::MAX {
        let is_one = (12..=20).contains(&n) || (44..=52).contains(&n);
        assert_eq!(Cut::from_number(n).map(Cut::number), is_one.then_some(n));
    }
}

#[test]
fn chunks_are_known_by_what_both_ends_agreed_on() {
    let of = |bytes: &[u8], hash| u128::from_be_bytes(Item::of(bytes, hash).chunk.0);
    // The reference implementation's of no bytes; b3sum's of no bytes.
    assert_eq!(of(b"", ChunkHash::Xxh3), 0x99aa_06d3_0147_98d8_6001_c324_468d_497f);
    assert_eq!(of(b"", ChunkHash::Blake3), 0xaf13_49b9_f5f9_a1a6_a040_4dea_36dc_c949);
    // The same cuts, other names.
    let bytes = noise(5, 1 << 20);
    let recipe = |hash| recipe_of(Cut::of_size(0, hash), &bytes);
    let (xxh3, blake3) = (recipe(ChunkHash::Xxh3), recipe(ChunkHash::Blake3));
    let lengths = |r: &Recipe| r.items().iter().map(|i| i.len).collect::<Vec<_>>();
    assert_eq!(lengths(&xxh3), lengths(&blake3));
    assert!(xxh3.items().iter().zip(blake3.items()).all(|(a, b)| a.chunk != b.chunk));
}

#[test]
fn cuts_do_not_depend_on_how_much_is_read_at_once() {
    let cut = Cut::of_size(0, ChunkHash::Xxh3);
    let bytes = noise(1, 1 << 20);
    let whole = recipe_of(cut, &bytes);
    let mean = bytes.len() / whole.items().len();
    assert!((3 << 10..8 << 10).contains(&mean), "{mean}");
    assert!(whole.items().iter().all(|i| i.len as usize <= cut.longest()));
    for step in [cut.longest(), cut.longest() + 1, 100_001] {
        let (mut items, mut at, mut have) = (Vec::new(), 0, 0);
        while at < bytes.len() {
            have = (have + step).min(bytes.len());
            at += cut.chunks(&bytes[at..have], have == bytes.len(), |i| items.push(i));
        }
        assert_eq!(items, whole.items(), "{step}");
    }
}

#[test]
fn what_was_moved_is_found_again() {
    let cut = Cut::of_size(0, ChunkHash::Xxh3);
    let old = noise(2, 1 << 20);
    let mut new = noise(3, 1000);
    new.extend_from_slice(&old);
    new[500_000..500_100].copy_from_slice(&noise(4, 100));
    let found = known(cut, &old).compare(7, &recipe_of(cut, &new));
    let missing: u64 = found.missing.iter().map(|r| r.end - r.start).sum();
    assert!(missing < 5 * cut.longest() as u64, "{missing}");
    let mut made = vec![0; new.len()];
    for c in &found.copies {
        let (from, to, len) = (c.from as usize, c.to as usize - 7, c.len as usize);
        made[to..to + len].copy_from_slice(&old[from..from + len]);
    }
    for r in &found.missing {
        let r = r.start as usize - 7..r.end as usize - 7;
        made[r.clone()].copy_from_slice(&new[r]);
    }
    assert_eq!(made, new);
    assert!(found.copies.len() < 5, "neighbours are copied together: {:?}", found.copies);
}

#[test]
fn what_an_earlier_attempt_left_counts_only_in_its_place() {
    let recipe = Recipe::new(vec![item(1, 10), item(2, 20), item(3, 30), item(1, 10)]).unwrap();
    let mut known = Known::default();
    known.add(Source::Begun, 100, item(1, 10));
    known.add(Source::Begun, 500, item(3, 30));
    known.add(Source::Base, 0, item(2, 20));
    let found = known.compare(100, &recipe);
    assert_eq!(found.copies, [Copy { from: 0, to: 110, len: 20 }]);
    assert_eq!(found.missing.len(), 1, "what is missing side by side is one range");
    assert_eq!(found.missing[0], 130..170);
}

#[test]
fn the_number_of_known_chunks_is_bounded() {
    let mut known = Known::default();
    for at in 0..=KNOWN_CHUNKS_MAX as u64 {
        known.add(Source::Begun, at, item(1, 1));
    }
    assert_eq!(known.begun.len(), KNOWN_CHUNKS_MAX);
}

#[test]
fn parts_cover_a_file_once() {
    let of = |size: u64| parts(size).map(|r| (r.start, r.end)).collect::<Vec<_>>();
    assert_eq!(of(0), []);
    assert_eq!(of(5), [(0, 5)]);
    assert_eq!(of(PART_LEN), [(0, PART_LEN)]);
    let (one, two) = (PART_LEN, 2 * PART_LEN);
    assert_eq!(of(two + 1), [(0, one), (one, two), (two, two + 1)]);
}

#[test]
fn a_recipe_comes_back_from_its_bytes() {
    let recipe = Recipe::new(vec![item(1, 1), item(2, 70_000), item(3, 1 << 22)]).unwrap();
    assert_eq!(recipe.bytes(), 1 + 70_000 + (1 << 22));
    let bytes = encode(&recipe);
    assert_eq!(decode(&bytes), Ok(recipe));
    for cut in 0..bytes.len() {
        assert!(decode(&bytes[..cut]).is_err());
    }
}

#[test]
fn lists_that_cannot_be_are_refused() {
    assert_eq!(Recipe::new(vec![item(1, 1); CHUNKS_MAX + 1]), Err(RecipeError::TooMany));
    assert_eq!(Recipe::new(vec![item(1, 5), item(1, 0)]), Err(RecipeError::Empty(1)));
    let part = PART_LEN as u32;
    assert_eq!(Recipe::new(vec![item(1, part), item(1, 1)]), Err(RecipeError::TooLong));
    let whole = Recipe::new(vec![item(1, part)]).unwrap();
    let mut bytes = encode(&whole);
    bytes[0] = 2;
    bytes.extend_from_slice(&[1; 17]);
    assert!(decode(&bytes).is_err(), "more than a part");
    let mut e = Encoder::default();
    e.uint(1);
    e.uint(1 << 32);
    e.raw(&[0; 16]);
    assert!(decode(&e.buf).is_err(), "a chunk of 4 GiB");
}
