//! Staging small contents while the engine does something else.
//!
//! What batches carry inside is written to the private directory here, with the attributes that come along, and made
//! durable; the engine, which merges, plans, moves and records, then finds it staged. Making inodes is most of the work
//! of a first copy, and this is what puts it on other cores; waiting for the disk is the rest, and others work
//! meanwhile. Batches come back in the order in which they were given.

use super::link::LinkId;
use crossbeam_channel::{Receiver, Sender, unbounded};
use driftless_core::entry::{Entry, Link};
use driftless_core::link::Batch;
use driftless_core::meta::Digest;
use driftless_core::{Attrs, Content, Dot, EntryId, Time};
use driftless_net::size_of_batch;
use driftless_volume::{Directory, StageId, Staged, StagedDir};
use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

/// A content that is staged and durable already, with what it was given.
pub(super) struct Early {
    pub(super) staged: Staged,
    pub(super) attrs: Attrs,
    pub(super) mtime: Time,
}

/// A batch and what of it is staged. What could not be staged is still inside.
pub(super) struct Ready {
    /// By which connection it came.
    pub(super) link: LinkId,
    pub(super) batch: Batch,
    /// What it took in memory when it came: contents that are staged are in it no more.
    pub(super) bytes: usize,
    pub(super) early: HashMap<(EntryId, Dot), Early>,
    /// Directories that were staged with files in them.
    pub(super) dirs: HashMap<EntryId, Arc<StagedDir>>,
    /// Syncs that had failed when it was begun.
    sync_failures: u64,
}

impl Ready {
    /// With nothing staged.
    pub(super) fn plain(link: LinkId, batch: Batch) -> Ready {
        let bytes = size_of_batch(&batch);
        Ready { link, batch, bytes, early: HashMap::new(), dirs: HashMap::new(), sync_failures: 0 }
    }
}

/// A batch to be staged, and the directories in it that are new here.
struct Job {
    /// Its place among all jobs.
    turn: u64,
    link: LinkId,
    batch: Batch,
    new_dirs: HashSet<EntryId>,
}

/// With fewer files than this a new directory is not worth staging.
const STAGED_DIR_FILES_MIN: usize = 3;

/// Numbers for staged files, shared by all who stage.
#[derive(Clone, Default)]
pub(super) struct StageIds(Arc<AtomicU64>);

impl StageIds {
    /// The next one.
    pub(super) fn take(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// None up to `n` is given out any more.
    pub(super) fn skip_to(&self, n: u64) {
        self.0.fetch_max(n, Ordering::Relaxed);
    }
}

/// Most entries that one sync of the disk serves: what follows should not wait longer.
const SYNC_ENTRIES_MAX: usize = 8192;

/// Most threads that stage. Batches mostly bring directories of their own, so that a file system makes their inodes side by
/// side; more threads than this only wait for its journal.
const STAGERS_MAX: usize = 4;

/// Some threads that stage, and one that makes durable what is staged, many batches at once when they come faster than
/// the disk syncs. Their queues need no bound of their own: the window of batches bounds what is in them.
pub(super) struct Stager {
    jobs: Option<Sender<Job>>,
    given: u64,
    pub(super) ready: Receiver<Ready>,
    threads: Vec<JoinHandle<()>>,
}

impl Stager {
    /// `compare`: bytes are compared with their digest; not needed if they come from this process.
    pub(super) fn start(volume: Directory, ids: StageIds, compare: bool) -> std::io::Result<Stager> {
        let (jobs, todo) = unbounded::<Job>();
        let (staged, to_sync) = unbounded();
        let (done, ready) = unbounded();
        let mut threads = Vec::new();
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.into()).spawn(run)
        };
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from).min(STAGERS_MAX) {
            let (todo, staged, volume, ids) = (todo.clone(), staged.clone(), volume.clone(), ids.clone());
            let run = move || {
                for job in todo {
                    let turn = job.turn;
                    // The engine is gone: what is staged is swept by the next start.
                    if staged.send((turn, stage(&volume, &ids, job, compare))).is_err() {
                        return;
                    }
                }
            };
            threads.push(spawn("stager", Box::new(run))?);
        }
        let run = move || {
            let mut turns = Turns { staged: to_sync, next: 0, early: BTreeMap::new() };
            while let Some(group) = turns.group() {
                for ready in sync_all(&volume, group) {
                    if done.send(ready).is_err() {
                        return;
                    }
                }
            }
        };
        threads.push(spawn("syncer", Box::new(run))?);
        Ok(Stager { jobs: Some(jobs), given: 0, ready, threads })
    }

    /// Hands over a batch; it comes back by `ready`. `new_dirs`: those of [`dirs_of`] that are new here.
    pub(super) fn give(&mut self, link: LinkId, batch: Batch, new_dirs: HashSet<EntryId>) {
        if let Some(jobs) = &self.jobs {
            // The threads end only after this sender is gone.
            let _ = jobs.send(Job { turn: self.given, link, batch, new_dirs });
            self.given += 1;
        }
    }
}

impl Drop for Stager {
    fn drop(&mut self) {
        self.jobs = None;
        for t in self.threads.drain(..) {
            // A panicked thread has said so on stderr.
            let _ = t.join();
        }
    }
}

/// Batches as they are staged, put back in order.
struct Turns {
    staged: Receiver<(u64, Ready)>,
    /// The next one due.
    next: u64,
    /// Those that were staged before it.
    early: BTreeMap<u64, Ready>,
}

impl Turns {
    /// What one sync makes durable: all that is staged by now, up to the first batch that is not. Waits for one; `None` at
    /// the end.
    fn group(&mut self) -> Option<Vec<Ready>> {
        let mut group = Vec::new();
        let mut entries = 0;
        while entries < SYNC_ENTRIES_MAX {
            while let Ok((turn, ready)) = self.staged.try_recv() {
                self.early.insert(turn, ready);
            }
            if let Some(ready) = self.early.remove(&self.next) {
                self.next += 1;
                entries += ready.early.len();
                group.push(ready);
            } else if group.is_empty() {
                let (turn, ready) = self.staged.recv().ok()?;
                self.early.insert(turn, ready);
            } else {
                break;
            }
        }
        Some(group)
    }
}

fn sync_all(volume: &Directory, mut group: Vec<Ready>) -> Vec<Ready> {
    let staged: Vec<Staged> = group.iter().flat_map(|r| r.early.values().map(|e| e.staged.clone())).collect();
    let failures = group.iter().map(|r| r.sync_failures).min().unwrap_or_else(|| volume.sync_failures());
    if volume.make_durable_since(&staged, failures).is_err() {
        // A sync that succeeds later would prove nothing about these: they are asked for and staged once more.
        for early in group.iter_mut().flat_map(|r| std::mem::take(&mut r.early).into_values()) {
            // If it cannot be removed, the next start sweeps it.
            let _ = volume.unstage(&early.staged);
        }
    }
    group
}

/// Directories of a batch with enough files of it in them to be staged with them, if they are new.
pub(super) fn dirs_of(batch: &Batch) -> Vec<EntryId> {
    let mut files: HashMap<EntryId, usize> = HashMap::new();
    for parent in batch.entries.iter().filter(|e| !e.kind.is_dir()).filter_map(only_name).map(|l| l.at.parent)
    {
        *files.entry(parent).or_default() += 1;
    }
    let enough = |e: &&Entry| e.kind.is_dir() && files.get(&e.id).is_some_and(|n| *n >= STAGED_DIR_FILES_MIN);
    batch.entries.iter().filter(enough).map(|e| e.id).collect()
}

/// The name of an entry that has one.
fn only_name(e: &Entry) -> Option<&Link> {
    let mut names = e.present_links();
    names.next().filter(|_| names.next().is_none())
}

fn stage(
    volume: &Directory,
    ids: &StageIds,
    Job { link, mut batch, new_dirs, .. }: Job,
    compare: bool,
) -> Ready {
    let (sync_failures, bytes) = (volume.sync_failures(), size_of_batch(&batch));
    let mut early = HashMap::with_capacity(batch.inline.len());
    let mut dirs: HashMap<EntryId, Arc<StagedDir>> = HashMap::new();
    let entries: HashMap<EntryId, usize> = batch.entries.iter().enumerate().map(|(i, e)| (e.id, i)).collect();
    for inline in std::mem::take(&mut batch.inline) {
        let entry = entries.get(&inline.entry).map(|i| &batch.entries[*i]);
        let version = entry.and_then(|e| e.version(inline.version).map(|v| (e, &v.content)));
        let Some((entry, Content::File { mtime, digest, .. })) = version else { continue };
        if compare && Digest::of(&inline.bytes) != *digest {
            continue; // not what it says: asked for again as any missing content
        }
        let (attrs, id) = (&entry.meta.1, StageId(ids.take()));
        let name = only_name(entry).filter(|l| new_dirs.contains(&l.at.parent)).map(|l| &l.at);
        let within = name.and_then(|at| {
            let dir = staged_dir(volume, ids, &mut dirs, at.parent)?;
            // A second file of that name is none of the directory's: it is staged by itself.
            volume.stage_small_within(dir, &at.name, id, &inline.bytes, (attrs, *mtime)).ok()
        });
        let staged = within.map_or_else(|| volume.stage_small(id, &inline.bytes, attrs, *mtime), Ok);
        match staged {
            Ok(staged) => {
                let e = Early { staged, attrs: attrs.clone(), mtime: *mtime };
                early.insert((inline.entry, inline.version), e);
            }
            // The engine tries again when it needs it, and says why if that fails too.
            Err(_) => batch.inline.push(inline),
        }
    }
    Ready { link, batch, bytes, early, dirs, sync_failures }
}

fn staged_dir<'a>(
    volume: &Directory,
    ids: &StageIds,
    dirs: &'a mut HashMap<EntryId, Arc<StagedDir>>,
    entry: EntryId,
) -> Option<&'a Arc<StagedDir>> {
    match dirs.entry(entry) {
        Slot::Occupied(known) => Some(known.into_mut()),
        Slot::Vacant(free) => Some(free.insert(volume.stage_dir(StageId(ids.take())).ok()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(failures: u64) -> Ready {
        Ready { sync_failures: failures, ..Ready::plain(LinkId::ONLY, Batch::default()) }
    }

    #[test]
    fn batches_come_back_in_order() {
        let (send, staged) = unbounded();
        let mut turns = Turns { staged, next: 0, early: BTreeMap::new() };
        for turn in [1, 0, 3] {
            send.send((turn, ready(turn))).unwrap();
        }
        let numbers =
            |g: Option<Vec<Ready>>| g.map(|g| g.iter().map(|r| r.sync_failures).collect::<Vec<_>>());
        assert_eq!(numbers(turns.group()), Some(vec![0, 1]));
        for turn in [4, 2] {
            send.send((turn, ready(turn))).unwrap();
        }
        drop(send);
        assert_eq!(numbers(turns.group()), Some(vec![2, 3, 4]));
        assert_eq!(numbers(turns.group()), None);
    }
}
