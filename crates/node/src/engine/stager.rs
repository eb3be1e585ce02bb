//! Staging small contents while the engine does something else.
//!
//! Batches go through these threads in order. What they carry inside is written to the private directory here, with
//! the attributes that come along, and made durable; the engine, which merges, plans, moves and records, then finds it
//! staged. Making inodes is most of the work of a first copy, and this is what puts it on another core; waiting for the
//! disk is the rest, and others work meanwhile.

use crossbeam_channel::{Receiver, Sender, unbounded};
use driftless_core::link::Batch;
use driftless_core::meta::Digest;
use driftless_core::{Attrs, Content, Dot, EntryId, Time};
use driftless_volume::{Directory, StageId, Staged};
use std::collections::HashMap;
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
    pub(super) batch: Batch,
    pub(super) early: HashMap<(EntryId, Dot), Early>,
}

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

/// Two threads in a row: one stages, one makes durable what is staged, many batches at once when they come faster than
/// the disk syncs. Their queues need no bound of their own: the window of batches bounds what is in them.
pub(super) struct Stager {
    jobs: Option<Sender<Batch>>,
    pub(super) ready: Receiver<Ready>,
    threads: Vec<JoinHandle<()>>,
}

impl Stager {
    /// `compare`: bytes are compared with their digest; not needed if they come from this process.
    pub(super) fn start(volume: Directory, ids: StageIds, compare: bool) -> std::io::Result<Stager> {
        let (jobs, todo) = unbounded::<Batch>();
        let (staged, to_sync) = unbounded::<Ready>();
        let (done, ready) = unbounded();
        let syncing = volume.clone();
        let stager = std::thread::Builder::new().name("stager".into()).spawn(move || {
            for batch in todo {
                // The engine is gone: what is staged is swept by the next start.
                if staged.send(stage(&volume, &ids, batch, compare)).is_err() {
                    return;
                }
            }
        })?;
        let syncer = std::thread::Builder::new().name("syncer".into()).spawn(move || {
            while let Ok(first) = to_sync.recv() {
                for ready in sync_all(&syncing, group(first, &to_sync)) {
                    if done.send(ready).is_err() {
                        return;
                    }
                }
            }
        })?;
        Ok(Stager { jobs: Some(jobs), ready, threads: vec![stager, syncer] })
    }

    /// Hands over a batch; it comes back by `ready`.
    pub(super) fn give(&self, batch: Batch) {
        if let Some(jobs) = &self.jobs {
            // The thread ends only after this sender is gone.
            let _ = jobs.send(batch);
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

/// What one sync makes durable: all that is staged by now.
fn group(first: Ready, more: &Receiver<Ready>) -> Vec<Ready> {
    let mut entries = first.early.len();
    let mut group = vec![first];
    while entries < SYNC_ENTRIES_MAX
        && let Ok(next) = more.try_recv()
    {
        entries += next.early.len();
        group.push(next);
    }
    group
}

fn sync_all(volume: &Directory, mut group: Vec<Ready>) -> Vec<Ready> {
    let staged: Vec<Staged> = group.iter().flat_map(|r| r.early.values().map(|e| e.staged.clone())).collect();
    if volume.make_durable(&staged, &[]).is_err() {
        // A sync that succeeds later would prove nothing about these: they are asked for and staged once more.
        for early in group.iter_mut().flat_map(|r| std::mem::take(&mut r.early).into_values()) {
            // If it cannot be removed, the next start sweeps it.
            let _ = volume.unstage(&early.staged);
        }
    }
    group
}

fn stage(volume: &Directory, ids: &StageIds, mut batch: Batch, compare: bool) -> Ready {
    let mut early = HashMap::with_capacity(batch.inline.len());
    let entries: HashMap<EntryId, usize> = batch.entries.iter().enumerate().map(|(i, e)| (e.id, i)).collect();
    for inline in std::mem::take(&mut batch.inline) {
        let entry = entries.get(&inline.entry).map(|i| &batch.entries[*i]);
        let version = entry.and_then(|e| e.version(inline.version).map(|v| (e, &v.content)));
        let Some((entry, Content::File { mtime, digest, .. })) = version else { continue };
        if compare && Digest::of(&inline.bytes) != *digest {
            continue; // not what it says: asked for again as any missing content
        }
        let attrs = &entry.meta.1;
        match volume.stage_small(StageId(ids.take()), &inline.bytes, attrs, *mtime) {
            Ok(staged) => {
                let e = Early { staged, attrs: attrs.clone(), mtime: *mtime };
                early.insert((inline.entry, inline.version), e);
            }
            // The engine tries again when it needs it, and says why if that fails too.
            Err(_) => batch.inline.push(inline),
        }
    }
    Ready { batch, early }
}
