//! Recipes: of a large file of which much is here already only what is missing travels.
//!
//! The version of an entry that is on this disk is the *base* of the one that is fetched. Both ends cut their files into
//! chunks, on threads of their own and at the same time; what a recipe has in common with the base is copied, the rest is asked
//! for by ranges as always. What an earlier attempt left in staging is cut as well: so a transfer goes on inside a file, whatever parts of
//! it had come, without a list of them that would have to be kept in step with the disk. The digest of the whole, for which
//! it is read as far as nothing of it is missing any more, is compared before the file is published; if it is another one, all
//! of it is fetched.
//!
//! If all of a version is here in another file, as one that was copied is, nothing is asked for: that file is copied, and read like any.
//!
//! Who is asked for a recipe and cannot give one now says so by an empty one, and is asked for the bytes.

use super::content::{Key, Lack};
use super::link::LinkId;
use super::{Engine, Fail};
use crossbeam_channel::{Receiver, Sender, unbounded};
use driftless_core::link::{Message, PROTOCOL_RECIPES, PROTOCOL_XXH3, RecipePart, RecipeWant};
use driftless_core::meta::Digest;
use driftless_core::recipe::{self, ChunkHash, Copy, Cut, Known, PART_LEN, Recipe, Source};
use driftless_core::{Bind, EntryId, NodeKey, Tx, tree, tx};
use driftless_volume::{DigestSoFar, Patch, ReadHandle, StagedWriter, VolumeError};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Files from this length are compared with their base: a shorter one is sent in the time that asking for its recipe takes.
const DELTA_LEN_MIN: u64 = 256 << 10;
/// A base that is so much shorter than the file saves less than it costs.
const BASE_SHARE_MIN: u64 = 8;
/// So much of a file is read for its digest by one job while the rest of it comes: what takes no longer than copying a part, and is worth a job.
const DIGEST_STEP: std::ops::RangeInclusive<u64> = 8 << 20..=2 * PART_LEN;
/// Threads that cut, copy and compare.
const THREADS_MAX: usize = 4;
/// Recipes that one peer may wait for; it asks for four at once. More are answered at once, with empty ones.
const ASKED_MAX: usize = 32;

/// A file that is put together from what is here and what is missing.
pub(super) struct Transfer {
    pub(super) key: Key,
    /// Who is asked.
    pub(super) from: LinkId,
    size: u64,
    cut: Cut,
    base: ReadHandle,
    patch: Patch,
    /// What the files here have, once all of them is read.
    known: OnceLock<Known>,
    reading: Mutex<Reading>,
    digest: Mutex<DigestSoFar>,
    /// How far the jobs go that read for the digest.
    digest_goal: AtomicU64,
    given_up: AtomicBool,
}

/// How far the files here are read.
#[derive(Default)]
struct Reading {
    known: Known,
    /// Parts that are not read yet, or not copied if all are.
    to_read: usize,
    /// Recipes that have come before that.
    waiting: Vec<RecipePart>,
}

impl Transfer {
    /// `None` if there are too many open files.
    fn new(
        key: Key,
        from: LinkId,
        size: u64,
        cut: Cut,
        base: ReadHandle,
        writer: &StagedWriter,
    ) -> Option<Transfer> {
        Some(Transfer {
            key,
            from,
            size,
            cut,
            base,
            patch: writer.share().ok()?,
            known: OnceLock::new(),
            reading: Mutex::default(),
            digest: Mutex::default(),
            digest_goal: AtomicU64::new(0),
            given_up: AtomicBool::new(false),
        })
    }

    /// Nobody wants it any more: what is queued for it is not done.
    pub(super) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Reading> {
        // No code that can panic runs between the changes of one call.
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Up to where to read for the digest, if nothing before `settled` is missing any more and that is worth a job.
    fn digest_step(&self, settled: u64) -> Option<u64> {
        let goal = self.digest_goal.load(Ordering::Relaxed);
        // One job at a time: another thread could only wait for it.
        let idle = self.digest.try_lock().is_ok_and(|so_far| so_far.end() >= goal);
        let next = settled.min(goal + DIGEST_STEP.end());
        if !idle || next < goal + DIGEST_STEP.start() {
            return None;
        }
        self.digest_goal.store(next, Ordering::Relaxed);
        Some(next)
    }

    fn digest(&self) -> MutexGuard<'_, DigestSoFar> {
        // A reader that panicked has ended its thread: what it left is as far as it says.
        self.digest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The digest of the whole.
    fn digest_of_all(&self) -> Result<Option<Digest>, VolumeError> {
        let mut so_far = self.digest();
        Ok(self.patch.digest(&mut so_far, self.size)?.then(|| so_far.digest()))
    }

    /// Reads a part of a file here; gives the recipes that can be compared now.
    fn read(&self, source: Source, part: Range<u64>) -> Vec<RecipePart> {
        let mut items = Vec::new();
        let each = |at, item| items.push((at, item));
        // What cannot be read is not known: it is fetched.
        _ = match source {
            Source::Base => self.base.cut(part, self.cut, each),
            Source::Begun => self.patch.cut(part, self.cut, each),
        };
        let mut reading = self.lock();
        for (at, item) in items {
            reading.known.add(source, at, item);
        }
        reading.to_read -= 1;
        if reading.to_read > 0 {
            return Vec::new();
        }
        // Set once: this was the last part.
        let _ = self.known.set(std::mem::take(&mut reading.known));
        std::mem::take(&mut reading.waiting)
    }

    /// Copies a part of the file here to the same place; after the last one the digest of what that gives.
    fn copy(&self, part: Range<u64>) -> Option<Result<Option<Digest>, VolumeError>> {
        let all = Copy { from: part.start, to: part.start, len: part.end - part.start };
        if let Err(e) = self.patch.copy(&self.base, &all) {
            self.give_up();
            return Some(Err(e));
        }
        let mut reading = self.lock();
        reading.to_read -= 1;
        let last = reading.to_read == 0;
        drop(reading);
        last.then(|| self.digest_of_all())
    }

    /// Copies what is here of a part; what is missing of it. `None`: too early, it will be done later.
    fn compare(&self, part: RecipePart) -> Option<Result<Vec<Range<u64>>, VolumeError>> {
        let known = match self.known.get() {
            Some(known) => known,
            None => {
                let mut reading = self.lock();
                match self.known.get() {
                    Some(known) => known,
                    None => {
                        reading.waiting.push(part);
                        return None;
                    }
                }
            }
        };
        let found = known.compare(part.offset, &part.recipe);
        let copied = found.copies.iter().try_for_each(|c| self.patch.copy(&self.base, c));
        Some(copied.map(|()| found.missing))
    }
}

enum Job {
    Cut { link: LinkId, want: RecipeWant, file: Arc<ReadHandle> },
    Read { of: Arc<Transfer>, source: Source, part: Range<u64> },
    Compare { of: Arc<Transfer>, part: RecipePart },
    Copy { of: Arc<Transfer>, part: Range<u64> },
    Digest { of: Arc<Transfer>, end: u64 },
    Verify { of: Arc<Transfer> },
}

/// What the threads have done.
pub(super) enum Done {
    /// For the peer that has asked.
    Recipe(LinkId, RecipePart),
    /// A part was compared, and what is here of it copied: the rest is missing.
    Compared { of: Arc<Transfer>, offset: u64, missing: Result<Vec<Range<u64>>, VolumeError> },
    /// A piece of a file was read for its digest; there may be more.
    Digested { of: Arc<Transfer> },
    /// A file that is whole was read.
    Verified { of: Arc<Transfer>, digest: Result<Option<Digest>, VolumeError> },
}

/// See the module. Its threads start with the first job.
pub(super) struct Deltas {
    jobs: Option<Sender<Job>>,
    send: Sender<Done>,
    pub(super) done: Receiver<Done>,
    /// Recipes that peers wait for.
    asked: HashMap<LinkId, usize>,
}

impl Deltas {
    pub(super) fn new() -> Deltas {
        let (send, done) = unbounded();
        Deltas { jobs: None, send, done, asked: HashMap::new() }
    }

    /// True if nobody waits for a recipe.
    pub(super) fn is_idle(&self) -> bool {
        self.asked.is_empty()
    }

    /// False if there is no thread to do it.
    fn give(&mut self, job: Job) -> bool {
        if self.jobs.is_none() {
            self.jobs = start(&self.send);
        }
        // The threads live as long as this.
        self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok())
    }

    /// As [`Deltas::give`], of a transfer that has begun: there were threads then.
    fn must(&mut self, job: Job) -> Result<(), Fail> {
        let given = self.give(job);
        given.then_some(()).ok_or_else(|| Fail::Bug("the threads that compare recipes are gone".into()))
    }

    fn copy(&mut self, transfer: &Arc<Transfer>) -> bool {
        let parts: Vec<_> = recipe::parts(transfer.size).collect();
        transfer.lock().to_read = parts.len();
        parts.into_iter().all(|part| self.give(Job::Copy { of: transfer.clone(), part }))
    }

    fn begin(&mut self, transfer: &Arc<Transfer>, begun: u64) -> bool {
        let base = recipe::parts(transfer.base.fingerprint().size).map(|part| (Source::Base, part));
        let parts: Vec<_> = base.chain(recipe::parts(begun).map(|part| (Source::Begun, part))).collect();
        transfer.lock().to_read = parts.len();
        let of = || transfer.clone();
        parts.into_iter().all(|(source, part)| self.give(Job::Read { of: of(), source, part }))
    }
}

/// Starts the threads; `None` if there can be none. They end when the sender is dropped, after what they are doing.
fn start(done: &Sender<Done>) -> Option<Sender<Job>> {
    let (jobs, todo) = unbounded::<Job>();
    let mut any = false;
    for _ in 0..std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX) {
        let (todo, done) = (todo.clone(), done.clone());
        let run = move || {
            for job in todo {
                if !work(job, &done) {
                    return;
                }
            }
        };
        any |= std::thread::Builder::new().name("chunker".into()).spawn(run).is_ok();
    }
    any.then_some(jobs)
}

/// False if nobody waits for what is done.
fn work(job: Job, done: &Sender<Done>) -> bool {
    let compare = |of: Arc<Transfer>, part: RecipePart| {
        let offset = part.offset;
        let missing = of.compare(part);
        missing.is_none_or(|missing| done.send(Done::Compared { of, offset, missing }).is_ok())
    };
    match job {
        Job::Cut { link, want, file } => {
            let recipe = recipe_of(&file, &want).unwrap_or_default();
            let RecipeWant { entry, version, offset, .. } = want;
            done.send(Done::Recipe(link, RecipePart { entry, version, offset, recipe })).is_ok()
        }
        Job::Read { of, .. }
        | Job::Copy { of, .. }
        | Job::Compare { of, .. }
        | Job::Digest { of, .. }
        | Job::Verify { of }
            if of.given_up.load(Ordering::Relaxed) =>
        {
            true
        }
        Job::Copy { of, part } => {
            let digest = of.copy(part);
            digest.is_none_or(|digest| done.send(Done::Verified { of, digest }).is_ok())
        }
        Job::Read { of, source, part } => {
            let ready = of.read(source, part);
            ready.into_iter().all(|part| compare(of.clone(), part))
        }
        Job::Compare { of, part } => compare(of, part),
        Job::Digest { of, end } => {
            // What cannot be read now will be told by who verifies it.
            _ = of.patch.digest(&mut of.digest(), end);
            done.send(Done::Digested { of }).is_ok()
        }
        Job::Verify { of } => {
            let digest = of.digest_of_all();
            done.send(Done::Verified { of, digest }).is_ok()
        }
    }
}

/// The recipe of a part; `None` if the file has no such part (any more).
fn recipe_of(file: &ReadHandle, want: &RecipeWant) -> Option<Recipe> {
    let mut items = Vec::new();
    let part = want.offset..want.offset.checked_add(want.len)?;
    let whole = file.cut(part, want.cut, |_, item| items.push(item)).ok()?;
    Recipe::new(items).ok().filter(|recipe| whole && recipe.bytes() == want.len)
}

/// Files of this disk that may have much in common with an entry: those that show it, and those that are where it is to be shown, since a
/// program that saves a file may have put a new one in its place.
fn candidates(tx: &mut Tx<'_>, entry: EntryId) -> tx::Result<Vec<NodeKey>> {
    let Some(row) = tx.entry(entry)? else { return Ok(Vec::new()) };
    let mut keys = row.bound.to_vec();
    for (parent, name) in tree::shown_names(tx, entry)? {
        let Some(dir) = tx.entry(parent)? else { continue };
        for key in &dir.bound {
            if let Some(place) = tx.place(key, &name)? {
                keys.push(place.node.clone());
            }
        }
    }
    Ok(keys)
}

impl Engine {
    /// Answers a peer that asks what a part of a version is made of.
    pub(super) fn serve_recipe(&mut self, link: LinkId, want: RecipeWant) -> Result<(), Fail> {
        let RecipeWant { entry, version, offset, len, .. } = want;
        let fits = |file: &ReadHandle| {
            let end = offset.checked_add(len);
            len > 0 && len <= PART_LEN && end.is_some_and(|end| end <= file.fingerprint().size)
        };
        let free = self.deltas.asked.get(&link).is_none_or(|n| *n < ASKED_MAX);
        let file = if free { self.served_file((entry, version), &want.digest)? } else { None };
        if let Some(file) = file.filter(|file| fits(file)) {
            *self.deltas.asked.entry(link).or_default() += 1;
            if self.deltas.give(Job::Cut { link, want, file }) {
                return Ok(());
            }
            self.recipe_told(link);
        }
        let recipe = Recipe::default();
        self.send_to(link, Message::Recipe(RecipePart { entry, version, offset, recipe }))
    }

    fn recipe_told(&mut self, link: LinkId) {
        if let Some(n) = self.deltas.asked.get_mut(&link) {
            *n -= 1;
            if *n == 0 {
                self.deltas.asked.remove(&link);
            }
        }
    }

    /// A file of this disk with an earlier version of the entry, or where it will be, if it pays to compare it with what is to be fetched.
    pub(super) fn delta_base(
        &mut self,
        from: LinkId,
        entry: EntryId,
        lack: &Lack,
    ) -> Result<Option<ReadHandle>, Fail> {
        let speaks = self.links.peer(from).is_some_and(|p| p.version >= PROTOCOL_RECIPES);
        if lack.size < DELTA_LEN_MIN || !speaks || self.peer_in_process {
            return Ok(None);
        }
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        let mut longest: Option<ReadHandle> = None;
        for key in candidates(&mut tx, entry)? {
            let leaf = tx.node(&key)?.is_some_and(|n| matches!(n.bind, Bind::Leaf { .. }));
            let file = if leaf { self.open_node_in(&mut tx, &key)? } else { None };
            let Some(file) = file else { continue };
            let len = file.fingerprint().size;
            let worth = len >= lack.size / BASE_SHARE_MIN;
            if worth && longest.as_ref().is_none_or(|l| l.fingerprint().size < len) {
                longest = Some(file);
            }
        }
        Ok(longest)
    }

    /// Begins to read the files here; `None` if that cannot be.
    pub(super) fn begin_delta(
        &mut self,
        key: Key,
        from: LinkId,
        size: u64,
        base: ReadHandle,
        writer: &StagedWriter,
    ) -> Option<(Arc<Transfer>, Cut)> {
        let knows = self.links.peer(from).is_some_and(|p| p.version >= PROTOCOL_XXH3);
        let cut = Cut::of_size(size, if knows { ChunkHash::Xxh3 } else { ChunkHash::Blake3 });
        let transfer = Arc::new(Transfer::new(key, from, size, cut, base, writer)?);
        let begun = writer.written_to().min(size);
        self.deltas.begin(&transfer, begun).then_some((transfer, cut))
    }

    /// Begins to copy a file of this disk that has the same content; `None` if that cannot be.
    pub(super) fn begin_copy(
        &mut self,
        key: Key,
        from: LinkId,
        size: u64,
        same: ReadHandle,
        writer: &StagedWriter,
    ) -> Option<Arc<Transfer>> {
        let cut = Cut::of_size(size, ChunkHash::Xxh3);
        let transfer = Arc::new(Transfer::new(key, from, size, cut, same, writer)?);
        self.deltas.copy(&transfer).then_some(transfer)
    }

    /// A recipe has come.
    pub(super) fn take_recipe(&mut self, link: LinkId, part: RecipePart) -> Result<(), Fail> {
        let key = (part.entry, part.version);
        let Some(of) = self.contents.delta_of(key) else { return Ok(()) };
        let compare = self.links.fetcher_mut(link).is_some_and(|f| f.recipe(&part));
        if compare && of.from == link { self.deltas.must(Job::Compare { of, part }) } else { Ok(()) }
    }

    /// Has a file read for its digest as far as that can be.
    pub(super) fn digest_goes_on(&mut self, of: Arc<Transfer>) -> Result<(), Fail> {
        let (entry, version) = of.key;
        let settled = self.links.fetcher_mut(of.from).and_then(|f| f.settled(entry, version));
        match settled.and_then(|settled| of.digest_step(settled)) {
            Some(end) => self.deltas.must(Job::Digest { of, end }),
            None => Ok(()),
        }
    }

    /// The last missing bytes of a file have come: the rest of it is read.
    pub(super) fn verify_delta(&mut self, of: Arc<Transfer>) -> Result<(), Fail> {
        self.deltas.must(Job::Verify { of })
    }

    /// What the threads have done.
    pub(super) fn take_done(&mut self, done: Done) -> Result<(), Fail> {
        match done {
            Done::Recipe(link, part) => {
                self.recipe_told(link);
                self.send_to(link, Message::Recipe(part))
            }
            Done::Compared { of, offset, missing } => {
                if !self.contents.is_delta(&of) {
                    return Ok(());
                }
                let (entry, version) = of.key;
                let missing = match missing {
                    Ok(missing) => missing,
                    Err(e) => return self.fetch_fails(of.key, &e),
                };
                let fetcher = self.links.fetcher_mut(of.from);
                let complete = fetcher.is_some_and(|f| f.compared(entry, version, offset, &missing));
                if complete { self.verify_delta(of) } else { self.digest_goes_on(of) }
            }
            Done::Digested { of } if self.contents.is_delta(&of) => self.digest_goes_on(of),
            Done::Digested { .. } => Ok(()),
            Done::Verified { of, digest } => {
                if !self.contents.is_delta(&of) {
                    return Ok(());
                }
                match digest {
                    Ok(digest) => self.delta_is_read(of.key, digest),
                    Err(e) => self.fetch_fails(of.key, &e),
                }
            }
        }
    }
}
