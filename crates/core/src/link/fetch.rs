//! Which contents a replica lacks, and which bytes of them to ask for next.
//!
//! Only ranges are kept, never bytes: a piece goes from the wire to the staged file. What is asked for
//! but not here yet is bounded by a window of bytes. Small files go first and in order; large ones take turns
//! piece by piece and never have more than half of the window, and no more than keeps the line busy ([`super::window`]), so that a
//! small change does not wait behind a large transfer.
//!
//! Of a file that has much in common with one at hand the recipe is asked for first, part by part ([`crate::recipe`]). The caller
//! compares it and says which ranges of the part are missing; these are asked for in the order of the file, while the
//! next parts are compared. [`Fetcher::settled`] says how far nothing is missing any more: so far it can be read already.

use super::message::{NotHere, Piece, RecipePart, RecipeWant, Want};
use super::window::Window;
use crate::id::{Dot, EntryId};
use crate::meta::Digest;
use crate::recipe::{self, Cut};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

/// Bounds of a [`Fetcher`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FetchLimits {
    /// Bytes asked for and not here yet. 16 MiB fill 1.3 Gbit/s at 100 ms.
    pub window_bytes: u64,
    /// Longest range asked for at once: what one piece holds in memory.
    pub piece_bytes: u64,
    /// Files longer than this count as large and share half of the window.
    pub large_bytes: u64,
    /// Files known to the fetcher at once; [`Fetcher::has_room`] says when there is room for another.
    pub files_max: usize,
    /// Recipes asked for, or being compared, at once: so many parts of a file are in work at both ends.
    pub recipes: usize,
}

impl Default for FetchLimits {
    fn default() -> Self {
        Self {
            window_bytes: 16 << 20,
            piece_bytes: 1 << 20,
            large_bytes: 4 << 20,
            files_max: 4096,
            recipes: 4,
        }
    }
}

/// Missing ranges of a file that are known at once before more of its recipe is asked for.
const RANGES_MAX: usize = 65_536;

/// A content to fetch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FetchFile {
    /// Whose.
    pub entry: EntryId,
    /// Which version.
    pub version: Dot,
    /// Length in bytes.
    pub size: u64,
    /// What the bytes must have; checked by the caller when complete.
    pub digest: Digest,
    /// Ranges that are staged already.
    pub have: Vec<Range<u64>>,
    /// Its recipe is asked for, cut like this, since much of it may be here; then `have` is not looked at.
    pub cut: Option<Cut>,
}

/// What to do with a piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PieceVerdict {
    /// Write its bytes at its offset. `complete` = nothing of the file is missing after that: verify the digest.
    Write {
        /// The last missing bytes came.
        complete: bool,
    },
    /// Nobody asked for it (any more): drop it.
    Unwanted,
}

type Key = (EntryId, Dot);

struct File {
    digest: Digest,
    large: bool,
    /// To be asked for: start -> end, disjoint.
    missing: BTreeMap<u64, u64>,
    /// Asked for and not here yet: by their start, disjoint.
    asked: BTreeMap<u64, Asked>,
    /// What is not known yet to be missing, if there is a recipe.
    recipe: Option<Parts>,
}

#[derive(Clone, Copy)]
struct Asked {
    end: u64,
    /// When, if nothing of it is here.
    at_ms: Option<u64>,
}

/// The parts of a file of which it is not known yet what is missing.
struct Parts {
    cut: Cut,
    /// Their recipes are to be asked for.
    to_ask: VecDeque<Range<u64>>,
    /// Their recipes were asked for: start -> end.
    asked: BTreeMap<u64, u64>,
    /// Their recipes have come and are being compared: start -> end.
    comparing: BTreeMap<u64, u64>,
}

impl Parts {
    fn in_work(&self) -> usize {
        self.asked.len() + self.comparing.len()
    }
}

impl File {
    fn asked_bytes(&self) -> u64 {
        self.asked.iter().map(|(start, asked)| asked.end - start).sum()
    }

    fn is_complete(&self) -> bool {
        let compared = self.recipe.as_ref().is_none_or(|p| p.to_ask.is_empty() && p.in_work() == 0);
        compared && self.asked.is_empty() && self.missing.is_empty()
    }

    fn recipes_in_work(&self) -> usize {
        self.recipe.as_ref().map_or(0, Parts::in_work)
    }
}

/// Contents wanted from one peer.
pub struct Fetcher {
    limits: FetchLimits,
    files: BTreeMap<Key, File>,
    /// Small files with missing ranges, oldest first.
    small: VecDeque<Key>,
    /// Large files with missing ranges; the first is asked for next and goes to the end.
    large: VecDeque<Key>,
    asked_bytes: u64,
    asked_large_bytes: u64,
    /// For large files.
    window: Window,
    /// Files with recipes to be asked for, oldest first.
    to_compare: VecDeque<Key>,
    recipes_in_work: usize,
}

impl Fetcher {
    /// Wants nothing yet.
    pub fn new(limits: FetchLimits) -> Self {
        Self {
            limits,
            files: BTreeMap::new(),
            small: VecDeque::new(),
            large: VecDeque::new(),
            asked_bytes: 0,
            asked_large_bytes: 0,
            window: Window::new(limits.window_bytes / 2),
            to_compare: VecDeque::new(),
            recipes_in_work: 0,
        }
    }

    /// True if another file may be wanted now.
    pub fn has_room(&self) -> bool {
        self.files.len() < self.limits.files_max
    }

    /// True if nothing is wanted.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// True if this version is being fetched.
    pub fn is_wanted(&self, entry: EntryId, version: Dot) -> bool {
        self.files.contains_key(&(entry, version))
    }

    /// Bytes asked for and not here yet.
    pub fn asked_bytes(&self) -> u64 {
        self.asked_bytes
    }

    /// Starts fetching what is missing of a content; false if nothing is (then it can be verified at once), as with empty files.
    /// A version that is being fetched already goes on as it is.
    pub fn want(&mut self, file: &FetchFile) -> bool {
        let key = (file.entry, file.version);
        if self.files.contains_key(&key) {
            return true;
        }
        let large = file.size > self.limits.large_bytes;
        let recipe = file.cut.filter(|_| file.size > 0).map(|cut| Parts {
            cut,
            to_ask: recipe::parts(file.size).collect(),
            asked: BTreeMap::new(),
            comparing: BTreeMap::new(),
        });
        let missing = if recipe.is_some() { BTreeMap::new() } else { gaps(file.size, &file.have) };
        if missing.is_empty() && recipe.is_none() {
            return false;
        }
        match recipe {
            Some(_) => self.to_compare.push_back(key),
            None => self.queue(large).push_back(key),
        }
        self.files.insert(key, File { digest: file.digest, large, missing, asked: BTreeMap::new(), recipe });
        true
    }

    /// Which recipes to ask for now.
    pub fn poll_recipes(&mut self) -> Vec<RecipeWant> {
        let mut wants = Vec::new();
        while self.recipes_in_work < self.limits.recipes
            && let Some(key) = self.to_compare.front().copied()
        {
            let file = self.files.get_mut(&key);
            if file.as_ref().is_some_and(|f| f.missing.len() >= RANGES_MAX) {
                break;
            }
            let next = file.and_then(|f| {
                let parts = f.recipe.as_mut()?;
                Some((f.digest, parts.to_ask.pop_front()?, parts))
            });
            let Some((digest, range, parts)) = next else {
                self.to_compare.pop_front();
                continue;
            };
            parts.asked.insert(range.start, range.end);
            self.recipes_in_work += 1;
            let (entry, version) = key;
            let (offset, len) = (range.start, range.end - range.start);
            wants.push(RecipeWant { entry, version, digest, cut: parts.cut, offset, len });
        }
        wants
    }

    /// Takes note of a recipe that came. True if it is to be compared: then [`Fetcher::compared`] says what that gave. One
    /// without chunks says that the peer makes none: all of the part is asked for.
    pub fn recipe(&mut self, part: &RecipePart) -> bool {
        let parts = self.files.get_mut(&(part.entry, part.version)).and_then(|f| f.recipe.as_mut());
        let Some(parts) = parts else { return false };
        let Some(end) = parts.asked.get(&part.offset).copied() else { return false };
        let none = part.recipe.items().is_empty();
        if !none && part.offset.checked_add(part.recipe.bytes()) != Some(end) {
            return false;
        }
        parts.asked.remove(&part.offset);
        parts.comparing.insert(part.offset, end);
        if none {
            let whole = part.offset..end;
            self.compared(part.entry, part.version, part.offset, std::slice::from_ref(&whole));
        }
        !none
    }

    /// The part at `offset` was compared, and what is here of it is in its place: `missing` is not. True if nothing of the
    /// file is missing any more.
    pub fn compared(&mut self, entry: EntryId, version: Dot, offset: u64, missing: &[Range<u64>]) -> bool {
        let key = (entry, version);
        let Some(file) = self.files.get_mut(&key) else { return false };
        let known = file.recipe.as_mut().is_some_and(|p| p.comparing.remove(&offset).is_some());
        if !known {
            return false;
        }
        self.recipes_in_work -= 1;
        let was_queued = !file.missing.is_empty();
        file.missing.extend(missing.iter().filter(|r| r.start < r.end).map(|r| (r.start, r.end)));
        let (large, queued, complete) = (file.large, !file.missing.is_empty(), file.is_complete());
        if queued && !was_queued {
            self.queue(large).push_back(key);
        }
        if complete {
            self.files.remove(&key);
        }
        complete
    }

    /// What to ask for now, as far as the window allows. `now_ms` is of a clock that never goes back.
    pub fn poll(&mut self, now_ms: u64) -> Vec<Want> {
        let mut wants = Vec::new();
        while let Some(want) = self.next_want(now_ms) {
            wants.push(want);
        }
        wants
    }

    fn next_want(&mut self, now_ms: u64) -> Option<Want> {
        let piece = self.limits.piece_bytes.max(1);
        let room = self.limits.window_bytes.saturating_sub(self.asked_bytes);
        if room == 0 {
            return None;
        }
        if let Some(key) = self.small.front().copied() {
            return self.ask(key, room.min(piece), now_ms);
        }
        let key = self.large.front().copied()?;
        let piece = piece.min(self.window.piece_bytes());
        // Parts of a piece come one by one; what they leave free is not asked for in crumbs.
        if room < piece || self.window.bytes().saturating_sub(self.asked_large_bytes) < piece {
            self.window.is_full();
            return None;
        }
        if self.asked_large_bytes == 0 {
            self.window.begins(now_ms);
        }
        self.ask(key, piece, now_ms)
    }

    /// Asks for the next missing range of the file at the front of its queue, up to `len_max` bytes of it.
    fn ask(&mut self, key: Key, len_max: u64, now_ms: u64) -> Option<Want> {
        let file = self.files.get_mut(&key)?;
        let (start, missing_end) = file.missing.pop_first()?;
        let len = (missing_end - start).min(len_max);
        let end = start + len;
        if end < missing_end {
            file.missing.insert(end, missing_end);
        }
        file.asked.insert(start, Asked { end, at_ms: Some(now_ms) });
        let (large, digest, done) = (file.large, file.digest, file.missing.is_empty());
        self.asked_bytes += len;
        self.asked_large_bytes += if large { len } else { 0 };
        let queue = self.queue(large);
        queue.pop_front();
        if !done && large {
            queue.push_back(key);
        } else if !done {
            queue.push_front(key);
        }
        Some(Want { entry: key.0, version: key.1, digest, offset: start, len })
    }

    /// Takes note of bytes that came. They count only if they were asked for; a range may come in
    /// parts, in order.
    pub fn piece(&mut self, piece: &Piece, now_ms: u64) -> PieceVerdict {
        let key = (piece.entry, piece.version);
        let len = piece.bytes.len() as u64;
        let Some(file) = self.files.get_mut(&key) else { return PieceVerdict::Unwanted };
        let Some(end) = piece.offset.checked_add(len).filter(|_| len > 0) else {
            return PieceVerdict::Unwanted;
        };
        // Only from a range's start on: so the number of ranges never grows by what a peer sends.
        let Some(asked) = file.asked.get(&piece.offset).copied().filter(|asked| end <= asked.end) else {
            return PieceVerdict::Unwanted;
        };
        file.asked.remove(&piece.offset);
        if end < asked.end {
            file.asked.insert(end, Asked { at_ms: None, ..asked });
        }
        let (complete, large) = (file.is_complete(), file.large);
        if large {
            if let Some(at_ms) = asked.at_ms {
                self.window.first_came(at_ms, now_ms);
            }
            self.window.came(len, now_ms);
        }
        self.release(large, len);
        if complete {
            self.files.remove(&key);
        }
        PieceVerdict::Write { complete }
    }

    /// The peer does not have it. True if it was wanted; it no longer is.
    pub fn not_here(&mut self, answer: &NotHere) -> bool {
        self.cancel(answer.entry, answer.version)
    }

    /// Stops fetching a version. True if it was wanted.
    pub fn cancel(&mut self, entry: EntryId, version: Dot) -> bool {
        let key = (entry, version);
        let Some(file) = self.files.remove(&key) else { return false };
        if !file.missing.is_empty() {
            self.queue(file.large).retain(|k| *k != key);
        }
        self.to_compare.retain(|k| *k != key);
        self.recipes_in_work -= file.recipes_in_work();
        self.release(file.large, file.asked_bytes());
        true
    }

    /// How far nothing of a file is missing any more, and nothing will be written: all before it can be read. `None` if it is not being
    /// fetched.
    pub fn settled(&self, entry: EntryId, version: Dot) -> Option<u64> {
        let file = self.files.get(&(entry, version))?;
        let parts = file.recipe.as_ref();
        // Parts are asked for in the order of the file.
        let to_ask = parts.and_then(|p| p.to_ask.front()).map(|r| r.start);
        let of_parts = parts.into_iter().flat_map(|p| [&p.asked, &p.comparing]);
        let firsts =
            of_parts.chain([&file.missing]).filter_map(|m| m.first_key_value()).map(|(start, _)| *start);
        let asked = file.asked.first_key_value().map(|(start, _)| *start);
        firsts.chain(to_ask).chain(asked).min()
    }

    fn queue(&mut self, large: bool) -> &mut VecDeque<Key> {
        if large { &mut self.large } else { &mut self.small }
    }

    fn release(&mut self, large: bool, len: u64) {
        self.asked_bytes -= len;
        self.asked_large_bytes -= if large { len } else { 0 };
    }
}

/// What of `0..size` is in none of `have`.
fn gaps(size: u64, have: &[Range<u64>]) -> BTreeMap<u64, u64> {
    let mut have: Vec<_> = have.iter().filter(|r| r.start < r.end).cloned().collect();
    have.sort_by_key(|r| r.start);
    let mut out = BTreeMap::new();
    let mut at = 0;
    for r in have {
        if r.start.min(size) > at {
            out.insert(at, r.start.min(size));
        }
        at = at.max(r.end);
    }
    if at < size {
        out.insert(at, size);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ReplicaId;

    const LIMITS: FetchLimits =
        FetchLimits { window_bytes: 160, piece_bytes: 10, large_bytes: 40, files_max: 8, recipes: 2 };

    fn file(n: u64, size: u64) -> FetchFile {
        let dot = Dot::new(ReplicaId(1), n);
        FetchFile {
            entry: EntryId(dot),
            version: dot,
            size,
            digest: Digest::of(b""),
            have: Vec::new(),
            cut: None,
        }
    }

    fn answer(w: &Want) -> Piece {
        let bytes = vec![0; w.len as usize];
        Piece { entry: w.entry, version: w.version, offset: w.offset, bytes }
    }

    #[test]
    fn gaps_are_what_is_not_there() {
        let of = |have: &[(u64, u64)]| {
            let have: Vec<_> = have.iter().map(|r| r.0..r.1).collect();
            gaps(10, &have).into_iter().collect::<Vec<_>>()
        };
        assert_eq!(of(&[]), [(0, 10)]);
        assert_eq!(of(&[(5, 7), (0, 2), (6, 8)]), [(2, 5), (8, 10)]);
        assert_eq!(of(&[(0, 99)]), []);
        assert_eq!(of(&[(20, 30)]), [(0, 10)]);
        assert_eq!(of(&[(7, 3), (4, 4)]), [(0, 10)]);
        assert!(gaps(0, &[]).is_empty());
    }

    #[test]
    fn everything_is_asked_for_once_and_completes() {
        let mut f = Fetcher::new(LIMITS);
        assert!(!f.want(&file(9, 0)), "nothing to fetch of an empty file");
        assert!(f.want(&file(1, 25)) && f.want(&file(2, 1000)) && f.want(&file(1, 25)));
        let (mut bytes, mut complete) = (0, 0);
        loop {
            let wants = f.poll(0);
            if wants.is_empty() {
                break;
            }
            assert!(f.asked_bytes() <= 160);
            for w in wants {
                bytes += w.len;
                match f.piece(&answer(&w), 0) {
                    PieceVerdict::Write { complete: c } => complete += u32::from(c),
                    PieceVerdict::Unwanted => panic!("asked for"),
                }
                assert_eq!(f.piece(&answer(&w), 0), PieceVerdict::Unwanted, "a duplicate");
            }
        }
        assert_eq!((bytes, complete, f.asked_bytes()), (1025, 2, 0));
        assert!(f.is_empty());
    }

    #[test]
    fn small_files_do_not_wait_behind_large_ones() {
        let mut f = Fetcher::new(LIMITS);
        f.want(&file(1, 500));
        f.want(&file(2, 500));
        let wants = f.poll(0);
        assert_eq!(f.asked_bytes(), 80, "large files get half of the window");
        let turns: Vec<u64> = wants.iter().map(|w| w.entry.0.n).collect();
        assert_eq!(turns, [1, 2, 1, 2, 1, 2, 1, 2]);
        f.want(&file(3, 30));
        let wants = f.poll(0);
        assert_eq!(wants.iter().map(|w| (w.entry.0.n, w.len)).collect::<Vec<_>>(), [(3, 10); 3]);
    }

    #[test]
    fn what_is_here_is_not_asked_for() {
        let mut f = Fetcher::new(LIMITS);
        f.want(&FetchFile { have: vec![0..5, 5..10], ..file(1, 30) });
        let first = f.poll(0);
        assert_eq!(first.iter().map(|w| w.offset).collect::<Vec<_>>(), [10, 20]);
        assert_eq!(f.piece(&answer(&first[1]), 0), PieceVerdict::Write { complete: false });
        assert_eq!(f.piece(&answer(&first[0]), 0), PieceVerdict::Write { complete: true });
    }

    #[test]
    fn pieces_in_parts_count_and_foreign_ones_do_not() {
        let mut f = Fetcher::new(LIMITS);
        f.want(&file(1, 10));
        let w = f.poll(0).remove(0);
        let part = |offset, len: usize| Piece { offset, bytes: vec![0; len], ..answer(&w) };
        for bad in [part(5, 5), part(0, 11), part(0, 0), part(u64::MAX, 2), part(10, 1)] {
            assert_eq!(f.piece(&bad, 0), PieceVerdict::Unwanted);
        }
        assert_eq!(f.piece(&part(0, 4), 0), PieceVerdict::Write { complete: false });
        assert_eq!(f.piece(&part(0, 4), 0), PieceVerdict::Unwanted);
        assert_eq!(f.piece(&part(4, 2), 0), PieceVerdict::Write { complete: false });
        assert_eq!(f.piece(&part(6, 4), 0), PieceVerdict::Write { complete: true });
        assert_eq!(f.asked_bytes(), 0);
    }

    #[test]
    fn what_the_peer_lacks_or_nobody_needs_frees_the_window() {
        let mut f = Fetcher::new(LIMITS);
        f.want(&file(1, 500));
        f.want(&file(2, 10));
        let w = f.poll(0).remove(0);
        let no = NotHere { entry: w.entry, version: w.version, reason: String::new() };
        assert!(f.not_here(&no) && !f.not_here(&no));
        assert_eq!(f.asked_bytes(), 80);
        assert!(f.cancel(file(1, 500).entry, file(1, 500).version));
        assert_eq!(f.asked_bytes(), 0);
        assert!(f.is_empty() && f.poll(0).is_empty());
    }

    // ----- recipes

    use crate::recipe::{Chunk, ChunkHash, Item, PART_LEN, Recipe};

    fn large(size: u64) -> FetchFile {
        FetchFile { cut: Some(Cut::of_size(size, ChunkHash::Xxh3)), ..file(1, size) }
    }

    fn limits() -> FetchLimits {
        FetchLimits { recipes: 2, ..FetchLimits::default() }
    }

    /// One chunk that is all of the part.
    fn part(w: &RecipeWant) -> RecipePart {
        let item = Item { len: w.len as u32, chunk: Chunk([0; Chunk::LEN]) };
        let recipe = Recipe::new(vec![item]).unwrap();
        RecipePart { entry: w.entry, version: w.version, offset: w.offset, recipe }
    }

    #[test]
    fn only_what_the_recipe_shows_missing_is_asked_for() {
        let mut f = Fetcher::new(limits());
        let file = large(3 * PART_LEN);
        assert!(f.want(&file));
        assert!(f.poll(0).is_empty(), "nothing is known to be missing");
        let wants = f.poll_recipes();
        assert_eq!(wants.iter().map(|w| w.offset).collect::<Vec<_>>(), [0, PART_LEN]);
        assert!(f.poll_recipes().is_empty());
        assert!(f.recipe(&part(&wants[1])) && !f.recipe(&part(&wants[1])));
        assert!(!f.compared(file.entry, file.version, 0, &[]), "its recipe has not come");
        let missing = PART_LEN + 5..PART_LEN + 9;
        assert!(!f.compared(file.entry, file.version, PART_LEN, std::slice::from_ref(&missing)));
        let third = f.poll_recipes();
        assert_eq!(third.iter().map(|w| w.offset).collect::<Vec<_>>(), [2 * PART_LEN]);
        let asked = f.poll(0);
        assert_eq!(asked.iter().map(|w| (w.offset, w.len)).collect::<Vec<_>>(), [(PART_LEN + 5, 4)]);
        assert_eq!(f.piece(&answer(&asked[0]), 0), PieceVerdict::Write { complete: false });
        for w in [&wants[0], &third[0]] {
            assert!(f.recipe(&part(w)));
        }
        assert!(!f.compared(file.entry, file.version, 0, &[]));
        assert!(f.compared(file.entry, file.version, 2 * PART_LEN, &[]), "all of the rest is here");
        assert!(f.is_empty() && f.poll_recipes().is_empty());
    }

    #[test]
    fn a_recipe_of_another_length_or_nobodys_is_not_compared() {
        let mut f = Fetcher::new(limits());
        f.want(&large(PART_LEN));
        let w = f.poll_recipes().remove(0);
        let short = part(&RecipeWant { len: w.len - 1, ..w.clone() });
        let elsewhere = RecipePart { offset: u64::MAX, ..part(&w) };
        let whose = EntryId(Dot::new(ReplicaId(9), 9));
        assert!(![short, elsewhere, RecipePart { entry: whose, ..part(&w) }].iter().any(|r| f.recipe(r)));
        assert!(f.recipe(&part(&w)));
    }

    #[test]
    fn without_a_recipe_all_of_the_part_is_asked_for() {
        let mut f = Fetcher::new(FetchLimits { window_bytes: u64::MAX, piece_bytes: u64::MAX, ..limits() });
        f.want(&large(PART_LEN + 7));
        let w = f.poll_recipes().remove(1);
        assert!(!f.recipe(&RecipePart { recipe: Recipe::default(), ..part(&w) }));
        assert_eq!(f.poll(0).iter().map(|w| (w.offset, w.len)).collect::<Vec<_>>(), [(PART_LEN, 7)]);
    }

    #[test]
    fn a_file_is_settled_up_to_what_may_still_be_missing() {
        let mut f = Fetcher::new(limits());
        let file = large(4 * PART_LEN);
        let settled = |f: &Fetcher| f.settled(file.entry, file.version);
        assert_eq!(settled(&f), None);
        f.want(&file);
        let wants = f.poll_recipes();
        assert_eq!(settled(&f), Some(0));
        for w in &wants {
            assert!(f.recipe(&part(w)));
        }
        // The second one is compared first, and bytes of both are missing.
        let (in_second, in_first) = (PART_LEN + 9..PART_LEN + 10, 5..6);
        assert!(!f.compared(file.entry, file.version, PART_LEN, std::slice::from_ref(&in_second)));
        assert_eq!(settled(&f), Some(0), "of the first part nothing is known");
        assert!(!f.compared(file.entry, file.version, 0, std::slice::from_ref(&in_first)));
        assert_eq!(settled(&f), Some(5), "to be asked for");
        let asked = f.poll(0);
        assert_eq!(asked.iter().map(|w| w.offset).collect::<Vec<_>>(), [5, PART_LEN + 9]);
        assert_eq!(settled(&f), Some(5), "asked for");
        f.piece(&answer(&asked[0]), 0);
        assert_eq!(settled(&f), Some(PART_LEN + 9));
        f.piece(&answer(&asked[1]), 0);
        assert_eq!(settled(&f), Some(2 * PART_LEN), "whose recipe is to be asked for");
        let wants = f.poll_recipes();
        assert_eq!(settled(&f), Some(2 * PART_LEN), "was asked for");
        assert!(f.recipe(&part(&wants[0])));
        assert_eq!(settled(&f), Some(2 * PART_LEN), "is being compared");
        assert!(!f.compared(file.entry, file.version, 2 * PART_LEN, &[]));
        assert_eq!(settled(&f), Some(3 * PART_LEN));
    }

    #[test]
    fn recipes_end_and_start_again_with_their_file() {
        let mut f = Fetcher::new(limits());
        let file = large(2 * PART_LEN);
        f.want(&file);
        let wants = f.poll_recipes();
        assert!(f.recipe(&part(&wants[1])));
        assert!(f.cancel(file.entry, file.version));
        assert!(!f.compared(file.entry, file.version, PART_LEN, &[]), "nobody wants it any more");
        f.want(&file);
        assert_eq!(f.poll_recipes(), wants);
    }
}
