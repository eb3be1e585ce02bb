//! Committing to the index, durably or not yet, and the seal: a sync after which nothing done so far has to be done again.

use super::observe::{Pass, Taking};
use super::suspect::dropped_row;
use super::{Engine, Fail, LIMBO_MAX, SEAL_AFTER_MAX, SEAL_AFTER_MIN, SEAL_SHARE, open, random_u64, wall_ns};
use crate::api::{Level, Phase};
use crate::needs::Waiter;
use driftless_core::rows::{Batch as Rows, Read, Table};
use driftless_core::tx::Env;
use driftless_core::{Content, Digest, Tx};
use driftless_volume::crash::{self, Point};
use driftless_volume::{Limbo, Reason as Volume};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What users did, and the system writes out by itself, is sealed so long after the first of it.
const SEAL_RECORDS_AFTER: Duration = Duration::from_secs(5);
/// Work that does not end is sealed so long after its beginning: as long as the system keeps dirty pages.
const SEAL_AT_LATEST_AFTER: Duration = Duration::from_secs(30);
/// A seal that failed is tried again after this.
const SEAL_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// What the last seal was.
#[derive(Clone, Copy, Default)]
pub(super) struct Sealed {
    /// The feed's head then.
    pub(super) head: u64,
    /// States recorded since the seal before it.
    states: u64,
    /// How long it took until all was durable.
    took: Duration,
}

impl Engine {
    pub(super) fn env(&self) -> Env {
        Env { now_ns: wall_ns(), epoch: 0 }
    }

    /// A transaction after the last commit, with what that one knew.
    pub(super) fn open_tx<'a>(&self, snapshot: &'a dyn Read) -> Result<Tx<'a>, Fail> {
        Ok(Tx::open_warm(snapshot, self.env(), self.warm.clone())?)
    }

    /// Commits durably, and remembers what the planner has to look at.
    pub(super) fn commit(&mut self, tx: Tx<'_>) -> Result<(), Fail> {
        let rows = self.rows_of(tx, true)?;
        self.store.commit(rows)?;
        (self.lazy, self.merges_lazy) = (false, false);
        Ok(())
    }

    /// As [`Engine::commit`], durable with the next durable commit: [`Engine::harden`] before anything leaves that
    /// builds on it.
    pub(super) fn commit_lazily(&mut self, tx: Tx<'_>) -> Result<(), Fail> {
        let rows = self.rows_of(tx, true)?;
        self.store.commit_lazily(rows)?;
        self.lazy = true;
        Ok(())
    }

    /// `unsealed`: what it records may be taken back by a power cut.
    fn rows_of(&mut self, mut tx: Tx<'_>, unsealed: bool) -> Result<Rows, Fail> {
        for id in tx.new_pending()? {
            let waits = self.waiting.contains(&Waiter::Entry(id)) || self.contents.is_wanted(id);
            if !waits {
                self.enqueue(id);
            }
        }
        tx.put(Table::Settings, open::SETTING_PLANNED.to_vec(), Some(self.planned.to_be_bytes().to_vec()));
        self.head = tx.head();
        let tag = random_u64()?;
        let (rows, warm) = if unsealed && !self.shared.dry_run {
            if !self.needs_seal() && self.before.is_empty() {
                self.unsealed_since = Instant::now();
            }
            self.unsealed = true;
            // What a message brought is work as well: what it begins is not over at once, only because all was quiet before.
            self.last_work = Instant::now();
            let (rows, warm, kept) = tx.into_batch_with_before(tag, self.before.next)?;
            self.before.next += u64::from(kept);
            (rows, warm)
        } else {
            tx.into_batch_and_warm(tag)
        };
        self.warm = Arc::new(warm);
        Ok(rows)
    }

    /// Makes merged states durable. What was done to the disk since may still be lazy: its intent rows are durable.
    pub(super) fn harden_merges(&mut self) -> Result<(), Fail> {
        if self.merges_lazy { self.harden() } else { Ok(()) }
    }

    /// Makes lazy commits durable.
    pub(super) fn harden(&mut self) -> Result<(), Fail> {
        self.merges_lazy = false;
        if std::mem::take(&mut self.lazy) {
            let planned = self.planned.to_be_bytes().to_vec();
            let key = (Table::Settings, open::SETTING_PLANNED.to_vec());
            self.store.commit([(key, Some(planned))].into())?;
        }
        Ok(())
    }

    /// True if nothing in the feed waits to be planned but what is queued.
    pub(super) fn is_planned(&self) -> bool {
        self.planned == self.head && self.backlog_from.is_none()
    }

    /// Commits what was observed. The disk shows it already: nothing of it has to be planned.
    pub(super) fn commit_local(&mut self, tx: Tx<'_>, pass: &mut Pass) -> Result<(), Fail> {
        if self.is_planned() && self.taking != Taking::Adopt {
            self.planned = tx.head();
        }
        self.counts.recorded += std::mem::take(&mut pass.recorded);
        self.paths.clear();
        // Nothing of it leaves before the next durable commit: see pump_peer.
        self.commit_lazily(tx)?;
        crash::at(Point::LocalRecorded);
        Ok(())
    }

    /// When a seal is due. What a seal has left in limbo is looked at again only now and then.
    pub(super) fn seal_due(&self) -> Option<Instant> {
        if self.needs_seal() {
            let quiet = match self.staging {
                0 => (self.next_seal_takes() * SEAL_SHARE).clamp(SEAL_AFTER_MIN, SEAL_AFTER_MAX),
                // What is on its way here is sealed with what is here.
                _ => SEAL_AFTER_MAX,
            };
            return Some((self.last_work + quiet).max(self.seal_not_before));
        }
        [self.limbos.next_look(), self.records_due()].into_iter().flatten().min()
    }

    /// About how long a seal would take now: as the last one, or less if less was done since than before it.
    fn next_seal_takes(&self) -> Duration {
        let Sealed { head, states, took } = self.sealed;
        let done = self.head.saturating_sub(head).max(1);
        if done < states { took.mul_f64(done as f64 / states as f64) } else { took }
    }

    /// When records of what users did have to be covered by a sync, if nothing else asks for one before.
    fn records_due(&self) -> Option<Instant> {
        (!self.before.is_empty()).then(|| self.unsealed_since + SEAL_RECORDS_AFTER)
    }

    /// Seals work that has no end, so that what a power cut may take back stays bounded.
    pub(super) fn seal_if_overdue(&mut self) -> Result<(), Fail> {
        let open = !self.before.is_empty() || !self.open_plans.is_empty();
        let overdue = open && self.unsealed_since.elapsed() >= SEAL_AT_LATEST_AFTER;
        if overdue && !self.shared.dry_run { self.try_seal() } else { Ok(()) }
    }

    pub(super) fn seal_if_quiet(&mut self) -> Result<bool, Fail> {
        let quiet = self.seal_due().is_none_or(|at| at <= Instant::now());
        let full = self.unsealed && self.limbos.fresh_count() > LIMBO_MAX;
        if self.shared.dry_run || !(quiet || full) {
            return Ok(false);
        }
        let moved = !self.limbos.is_empty() || !self.open_plans.is_empty();
        if !moved && self.records_due().is_none_or(|at| at > Instant::now()) {
            self.harden()?;
            self.unsealed = false;
            return Ok(false);
        }
        self.try_seal()?;
        Ok(false)
    }

    /// A seal that may wait: if the disk does not take it now, nothing is dropped and it is tried again.
    pub(super) fn try_seal(&mut self) -> Result<(), Fail> {
        if self.seal_not_before > Instant::now() {
            return Ok(());
        }
        match self.seal() {
            // Contents were made durable before they were shown, the intents of moves stay. What users wrote is read again
            // after a sync that succeeds.
            Err(Fail::Volume(e)) if matches!(e.reason(), Volume::SyncFailed | Volume::NoSpace) => {
                self.seal_not_before = Instant::now() + SEAL_AGAIN_AFTER;
                self.log(Level::Error, e.advice());
                Ok(())
            }
            other => other,
        }
    }

    /// True if something was done that no sync has covered.
    pub(super) fn needs_seal(&self) -> bool {
        self.unsealed || self.limbos.fresh_count() > 0 || !self.open_plans.is_empty()
    }

    /// A sync covers all moves done so far: intents and victims are needed no more, but for victims that rest.
    pub(super) fn seal(&mut self) -> Result<(), Fail> {
        crash::at(Point::SealDue);
        self.save_peers()?;
        let (covered, mark) = (self.before.next, self.mounted_row(wall_ns())?);
        self.give_sign_of_life();
        let begun = Instant::now();
        let synced = self.volume.sync();
        self.note_failed_syncs()?;
        synced.map_err(Fail::Volume)?;
        crash::at(Point::SealSynced);
        self.verify_unsealed(covered)?;
        // Their records are durable before what could redo or undo them goes.
        self.harden()?;
        let states = self.head.saturating_sub(self.sealed.head);
        self.sealed = Sealed { head: self.head, states, took: begun.elapsed() };
        crash::at(Point::SealHardened);
        // What is in limbo is no part of it.
        self.tell_sealed()?;
        let (dropped, resting) = self.empty_limbo()?;
        crash::at(Point::SealDropped);
        // The rows go last: a crash before it finds what is left in limbo by them.
        let plans = std::mem::take(&mut self.open_plans).into_iter();
        let plans = plans.chain(std::mem::take(&mut self.resting_plans));
        let (kept, done) = plans.partition(|n| resting.contains(n));
        self.resting_plans = kept;
        let mut rows: Rows =
            Vec::into_iter(done).map(|n: u64| ((Table::Intents, n.to_be_bytes().to_vec()), None)).collect();
        self.forget_before(covered, &mut rows);
        for (row, value) in [mark, dropped_row(&dropped)] {
            rows.insert(row, value);
        }
        self.store.commit(rows)?;
        crash::at(Point::Sealed);
        self.unsealed = false;
        self.note_dropped(&dropped)?;
        self.tell_held()
    }

    /// Contents that entries which wait are to show and that may be nowhere else on this disk.
    pub(super) fn needed_contents(&self) -> Result<HashSet<Digest>, Fail> {
        let snapshot = self.store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        let mut needed = HashSet::new();
        for id in tx.pending(usize::MAX)? {
            let Some(row) = tx.entry(id)? else { continue };
            needed.extend(row.entry.counting().filter_map(|v| match &v.content {
                Content::File { digest, .. } => Some(*digest),
                _ => None,
            }));
        }
        Ok(needed)
    }

    /// What went for good by one of its names has another change time by the others: not a user's change.
    pub(super) fn note_dropped(&mut self, limbo: &[Limbo]) -> Result<(), Fail> {
        let snapshot = self.store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        let mut changed = false;
        for l in limbo {
            let Some(node) = tx.node(&l.key)? else { continue };
            let Some((dir, name)) = node.names.first() else { continue };
            let Some(path) = self.path_of_node(&mut tx, dir)? else { continue };
            let Ok(fd) = self.volume.dir(&path, Some(dir)) else { continue };
            if let Ok(Some(seen)) = fd.look(name)
                && seen.key == l.key
                && (seen.fingerprint.size, seen.fingerprint.mtime)
                    == (node.fingerprint.size, node.fingerprint.mtime)
                && node.fingerprint.ctime == l.ctime
            {
                let mut node = (*node).clone();
                node.fingerprint = seen.fingerprint;
                tx.put_node(&l.key, node);
                changed = true;
            }
        }
        if changed { self.commit_sealed(tx) } else { Ok(()) }
    }

    /// Commits records only: there is nothing in them to be sealed.
    pub(super) fn commit_sealed(&mut self, tx: Tx<'_>) -> Result<(), Fail> {
        let rows = self.rows_of(tx, false)?;
        self.store.commit(rows)?;
        (self.lazy, self.merges_lazy) = (false, false);
        Ok(())
    }

    /// As [`Engine::commit_sealed`], durable with the next durable commit.
    pub(super) fn commit_sealed_lazily(&mut self, tx: Tx<'_>) -> Result<(), Fail> {
        let rows = self.rows_of(tx, false)?;
        self.store.commit_lazily(rows)?;
        self.lazy = true;
        Ok(())
    }

    pub(super) fn finish(&mut self) -> Result<(), Fail> {
        self.set_phase(Phase::Stopping);
        self.save_peers()?;
        self.harden()?;
        if !self.shared.dry_run
            && (self.needs_seal() || !self.before.is_empty() || self.limbos.next_look().is_some())
        {
            self.failed_syncs.expect_end();
            self.seal()?;
            self.refuse_damaged()?;
        }
        if !self.shared.dry_run && self.is_idle() {
            self.sweep_transfers()?;
        }
        if !self.shared.dry_run {
            self.take_mark_off()?;
        }
        self.tell_progress(true);
        Ok(())
    }
}
