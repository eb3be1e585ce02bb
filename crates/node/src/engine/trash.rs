//! The trash: what the seal takes out of limbo is kept there instead of being dropped, if that was asked for.
//!
//! The engine keeps sums by batch, taken from the disk when it starts and whenever somebody has taken versions out by hand,
//! so that no commit looks at the trash. What goes is decided by [`Ledger`]; what does not fit waits: the steps that would
//! replace or remove it are taken out of the plan before anything is staged for them, and their entries go to the needs
//! list until there is room.

use super::limbo::InLimbo;
use super::{Engine, Fail, wall_ns};
use crate::api::{Level, Reason};
use crate::query;
use driftless_core::intent::{IntentRow, Operation};
use driftless_core::plan::{self, At, Plan, Step, Victim};
use driftless_core::trash::{Expire, Ledger, Limits, Record, Why, weight};
use driftless_core::{EntryId, NodeKey, Time, Tx};
use driftless_volume::{Limbo, Taken, Trash, TrashItem, TrashWriter, VolumeError, trash_sum};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

/// What could not be dropped from the trash is tried again after so long.
const EXPIRE_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Another batch is begun after so long: what goes at one time is mostly in batches of its own.
const BATCH_AGE_MAX: Duration = Duration::from_secs(3600);

/// What is known of a version in limbo, for the trash.
#[derive(Clone)]
pub(super) struct Origin {
    why: Why,
    /// Where it was, below the root.
    path: Vec<u8>,
    entry: EntryId,
    /// Whose change it was.
    site: String,
}

/// The trash of this replica while versions are kept.
pub(super) struct Bin {
    trash: Trash,
    ledger: Ledger,
    limits: Limits,
    writer: Option<(TrashWriter, Instant)>,
    /// As [`Trash::freed`] said when sums were taken.
    freed: Option<Time>,
    quiet_until: Instant,
}

/// What became of what was in limbo.
#[derive(Default)]
pub(super) struct Cleared {
    /// In the trash or gone.
    pub(super) done: Vec<InLimbo>,
    /// Of these, what somebody wrote to: it is neither.
    pub(super) changed: Vec<Limbo>,
    /// Still in limbo: the trash could not be written to.
    pub(super) stay: Vec<InLimbo>,
}

impl Bin {
    fn open(trash: Trash, limits: Limits) -> Result<Bin, VolumeError> {
        let mut bin = Bin {
            trash,
            ledger: Ledger::new(limits),
            limits,
            writer: None,
            freed: None,
            quiet_until: Instant::now(),
        };
        bin.take_sums()?;
        Ok(bin)
    }

    /// Sums by batch, from the disk. Batches that are empty go.
    fn take_sums(&mut self) -> Result<(), VolumeError> {
        self.freed = self.trash.freed();
        self.ledger = Ledger::new(self.limits);
        for batch in self.trash.batches()? {
            let sum = trash_sum(&self.trash.items(batch)?);
            if sum.is_none() {
                self.trash.prune(batch)?;
            }
            self.ledger.set(batch, sum);
        }
        Ok(())
    }

    /// Somebody took versions out by hand since sums were taken.
    fn is_outdated(&self) -> bool {
        self.trash.freed() != self.freed
    }

    fn writer(&mut self) -> Result<&mut TrashWriter, VolumeError> {
        let fits = |(w, since): &(TrashWriter, Instant)| !w.is_full() && since.elapsed() < BATCH_AGE_MAX;
        let current = match self.writer.take().filter(fits) {
            Some(current) => current,
            None => {
                let newest = self.trash.batches()?.last().copied().unwrap_or(0);
                (self.trash.begin(newest + 1)?, Instant::now())
            }
        };
        Ok(&mut self.writer.insert(current).0)
    }

    /// Puts versions from limbo into the trash. Gives those that were changed.
    fn take(&mut self, gone: &[InLimbo], now_ns: u64) -> Result<Vec<Limbo>, VolumeError> {
        let mut changed = Vec::new();
        let mut rest = gone;
        while !rest.is_empty() {
            let (some, others) = rest.split_at(rest.len().min(RECORDS_AT_ONCE));
            let mut records: Vec<Record> = some.iter().map(|l| record_of(l, now_ns)).collect();
            let writer = self.writer()?;
            writer.write(&mut records)?;
            let batch = writer.batch();
            let mut came = Vec::new();
            for (record, one) in records.iter().zip(some) {
                match writer.take(record, &one.limbo)? {
                    (Taken::Yes, weight) => came.push(weight),
                    (Taken::Changed, _) => changed.push(one.limbo.clone()),
                    (Taken::Gone, _) => {}
                }
            }
            writer.sync()?;
            came.into_iter().for_each(|weight| self.ledger.add(batch, now_ns, weight));
            rest = others;
        }
        Ok(changed)
    }

    /// Lets go what has to. True if there may be more.
    fn expire(&mut self, now_ns: u64) -> Result<bool, VolumeError> {
        let Some((batch, what)) = self.ledger.expired(now_ns) else { return Ok(false) };
        let mut items = self.trash.items(batch)?;
        let going = match what {
            Expire::Until(ns) => items.extract_if(.., |i| i.time_ns <= ns).collect(),
            Expire::Bytes(bytes) => oldest(&mut items, bytes),
        };
        for item in going {
            // One that is another inode now is none of ours: it stays, uncounted.
            self.trash.remove(&item)?;
        }
        let left = trash_sum(&items);
        if left.is_none() {
            self.writer.take_if(|(w, _)| w.batch() == batch);
            self.trash.prune(batch)?;
        }
        self.ledger.set(batch, left);
        Ok(true)
    }
}

/// Versions written down with one sync of the list.
const RECORDS_AT_ONCE: usize = 1024;

/// Takes the oldest out, until they weigh so much.
fn oldest(items: &mut Vec<TrashItem>, bytes: u64) -> Vec<TrashItem> {
    let mut weighs = 0u64;
    let n = items.iter().take_while(|i| {
        let more = weighs < bytes;
        weighs = weighs.saturating_add(weight(i.size));
        more
    });
    let n = n.count();
    items.drain(..n).collect()
}

fn record_of(one: &InLimbo, now_ns: u64) -> Record {
    let origin = one.origin.clone().unwrap_or_else(|| Origin {
        why: Why::Removed,
        path: one.at.name.as_bytes().to_vec(),
        entry: EntryId::ROOT,
        site: String::new(),
    });
    Record {
        item: 0,
        time_ns: now_ns,
        why: origin.why,
        kind: one.kind,
        size: one.limbo.size,
        mtime: one.limbo.mtime,
        entry: origin.entry,
        site: origin.site,
        path: origin.path,
    }
}

impl Engine {
    /// Opens the trash, if versions are to be kept.
    pub(super) fn open_bin(&mut self) -> Result<(), Fail> {
        let Some(limits) = self.shared.trash.filter(|_| !self.shared.dry_run) else { return Ok(()) };
        let limits = Limits {
            keep_ns: limits.keep_s.map(|s| s.saturating_mul(1_000_000_000)),
            bytes_max: limits.bytes_max,
        };
        let Some(trash) = self.volume.trash(true).map_err(Fail::Volume)? else { return Ok(()) };
        if self.volume.trash_is_elsewhere(&trash).map_err(Fail::Volume)? {
            return Err(Fail::Refused {
                what: ".driftless/trash is on another file system than the directory: nothing can be moved into it"
                    .into(),
                advice: "unmount it, or run without keeping versions; nothing was changed".into(),
            });
        }
        self.bin = Some(Bin::open(trash, limits).map_err(Fail::Volume)?);
        Ok(())
    }

    // ----- what goes into it

    /// What is to be written down about the victim of a step that was done and is not recorded yet.
    pub(super) fn origin_of_step(&mut self, tx: &mut Tx<'_>, step: &Step) -> Result<Option<Origin>, Fail> {
        if self.bin.is_none() {
            return Ok(None);
        }
        let Some(at) = step.target() else { return Ok(None) };
        let why = if matches!(step, Step::Remove { .. }) { Why::Removed } else { Why::Replaced };
        let entry = match step {
            Step::Put { entry, .. } => *entry,
            _ => plan::concerned(tx, step)?.first().copied().unwrap_or(EntryId::ROOT),
        };
        let by = match step {
            Step::Put { version, .. } => version.replica,
            _ => query::author(tx, entry)?,
        };
        let path = self.path_of_at(tx, at)?;
        Ok(Some(Origin { why, path, entry, site: query::site(tx, by)? }))
    }

    /// The same from an intent row, after a crash.
    pub(super) fn origin_of_row(&mut self, tx: &mut Tx<'_>, row: &IntentRow) -> Result<Option<Origin>, Fail> {
        let why = if row.operation == Operation::Remove { Why::Removed } else { Why::Replaced };
        let recorded = tx.place(&row.at.dir, &row.at.name)?.and_then(|p| p.claims.first().map(|c| c.entry));
        let entry = if row.entry.is_root() { recorded.unwrap_or(EntryId::ROOT) } else { row.entry };
        let by = match row.operation {
            Operation::Put => row.dot.replica,
            _ => query::author(tx, entry)?,
        };
        let path = self.path_of_at(tx, &row.at)?;
        Ok(Some(Origin { why, path, entry, site: query::site(tx, by)? }))
    }

    fn path_of_at(&mut self, tx: &mut Tx<'_>, at: &At) -> Result<Vec<u8>, Fail> {
        let mut path = self.path_of_node(tx, &at.dir)?.unwrap_or_default();
        path.push(&at.name);
        Ok(path.join_bytes())
    }

    /// Empties limbo, after the seal: into the trash, or for good.
    pub(super) fn clear_limbo(&mut self, gone: Vec<InLimbo>) -> Result<Cleared, Fail> {
        let (kept, dropped) = match self.bin {
            Some(_) => self.worth_keeping(gone)?,
            None => (Vec::new(), gone),
        };
        let limbo: Vec<Limbo> = dropped.iter().map(|l| l.limbo.clone()).collect();
        let changed = self.volume.drop_limbo(&limbo).map_err(Fail::Volume)?;
        let mut cleared = Cleared { done: dropped, changed, stay: Vec::new() };
        let Some(bin) = self.bin.as_mut().filter(|_| !kept.is_empty()) else { return Ok(cleared) };
        match bin.take(&kept, wall_ns()) {
            Ok(changed) => {
                cleared.changed.extend(changed);
                cleared.done.extend(kept);
            }
            Err(e) => {
                // What has been moved already is found to be gone from limbo by the next try.
                self.log(Level::Warn, format!("what was replaced or removed stays in limbo: {e}"));
                cleared.stay = kept;
            }
        }
        self.expire_trash();
        Ok(cleared)
    }

    /// A name of an inode that has others in the tree is no version: nothing but a name goes with it.
    fn worth_keeping(&self, gone: Vec<InLimbo>) -> Result<(Vec<InLimbo>, Vec<InLimbo>), Fail> {
        let limbo: Vec<Limbo> = gone.iter().map(|l| l.limbo.clone()).collect();
        let links = self.volume.limbo_links(&limbo).map_err(Fail::Volume)?;
        let mut names: HashMap<NodeKey, u32> = HashMap::new();
        for l in limbo.iter().chain(self.limbos.all()) {
            *names.entry(l.key.clone()).or_default() += 1;
        }
        let mut kept = Vec::new();
        let mut dropped = Vec::new();
        for (one, links) in gone.into_iter().zip(links) {
            let all_here = names.get(&one.limbo.key).is_some_and(|here| *here >= links);
            if all_here { kept.push(one) } else { dropped.push(one) }
        }
        Ok((kept, dropped))
    }

    // ----- what does not fit

    /// Takes out of the plan what would replace or remove more than the trash has room for: the steps, to be done when
    /// there is room.
    pub(super) fn hold_for_trash(&mut self, plan: &mut Plan) -> Result<Vec<Step>, Fail> {
        if self.bin.is_none() || !plan.steps.iter().any(|s| s.victim().is_some()) {
            return Ok(Vec::new());
        }
        let mut names: HashMap<NodeKey, usize> = HashMap::new();
        for victim in plan.steps.iter().filter_map(Step::victim) {
            *names.entry(victim.node.clone()).or_default() += 1;
        }
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let mut tx = self.open_tx(&*snapshot)?;
        let mut coming = self.limbos.all().fold(0u64, |sum, l| sum.saturating_add(weight(l.size)));
        let mut any_held = self.waiting.has(Reason::TrashFull);
        let mut cleared: HashSet<At> = HashSet::new();
        let mut held = Vec::new();
        for step in std::mem::take(&mut plan.steps) {
            let hold = match step.victim() {
                Some(v) if v.kind.is_dir() => any_held && keeps_something(&mut tx, &v.node, &cleared)?,
                Some(v) => {
                    let weighs = weight_of(&mut tx, v, &mut names)?;
                    let hold = weighs > 0 && !self.has_trash_room(coming, weighs)?;
                    coming = coming.saturating_add(if hold { 0 } else { weighs });
                    hold
                }
                None => false,
            };
            any_held |= hold;
            if hold {
                held.push(step);
            } else {
                cleared.extend(left_by(&step).cloned());
                plan.steps.push(step);
            }
        }
        Ok(held)
    }

    fn has_trash_room(&mut self, coming: u64, weighs: u64) -> Result<bool, Fail> {
        let Some(bin) = &mut self.bin else { return Ok(true) };
        if bin.ledger.has_room(coming, weighs) {
            return Ok(true);
        }
        if bin.is_outdated() {
            bin.take_sums().map_err(Fail::Volume)?;
        }
        Ok(bin.ledger.has_room(coming, weighs))
    }

    /// Why something waits for room in the trash.
    pub(super) fn trash_full_detail(&self) -> String {
        let limits = self.bin.as_ref().map(|b| b.limits).unwrap_or_default();
        let max = limits.bytes_max.unwrap_or(0);
        match limits.keep_ns {
            Some(keep_ns) => {
                let keep_s = keep_ns / 1_000_000_000;
                format!("the trash may have {max} bytes, and versions stay {keep_s} s")
            }
            None => format!("it alone is larger than the trash may be, {max} bytes"),
        }
    }

    // ----- what goes

    /// Lets versions go that are old enough or in the way. What fails is tried again later: nothing else waits for it.
    pub(super) fn expire_trash(&mut self) {
        let Some(bin) = self.bin.as_mut().filter(|b| b.quiet_until <= Instant::now()) else { return };
        let now_ns = wall_ns();
        let mut freed = false;
        let failed = loop {
            match bin.expire(now_ns) {
                Ok(true) => freed = true,
                Ok(false) => break None,
                Err(e) => break Some(e),
            }
        };
        if failed.is_some() {
            bin.quiet_until = Instant::now() + EXPIRE_AGAIN_AFTER;
        }
        if let Some(e) = failed {
            self.log(Level::Warn, e.to_string());
        }
        if freed {
            self.waiting.retry(Reason::TrashFull);
        }
    }

    /// True if somebody made room by hand.
    pub(super) fn trash_was_freed(&mut self) -> Result<bool, Fail> {
        let Some(bin) = self.bin.as_mut().filter(|b| b.is_outdated()) else { return Ok(false) };
        bin.take_sums().map_err(Fail::Volume)?;
        Ok(true)
    }
}

/// What the victim weighs in the trash: nothing as long as it keeps other names.
fn weight_of(tx: &mut Tx<'_>, victim: &Victim, names: &mut HashMap<NodeKey, usize>) -> Result<u64, Fail> {
    let all = tx.node(&victim.node)?.map_or(1, |n| n.names.len());
    // Counted once, by the first of its names.
    match names.remove(&victim.node) {
        Some(going) if going >= all => Ok(weight(victim.fingerprint.size)),
        _ => Ok(0),
    }
}

/// The place that is empty after the step.
fn left_by(step: &Step) -> Option<&At> {
    match step {
        Step::Remove { at, .. } => Some(at),
        Step::Move { from, .. } | Step::Park { from, .. } => Some(from),
        _ => None,
    }
}

/// True if something is recorded in the directory that no step has taken out.
fn keeps_something(tx: &mut Tx<'_>, dir: &NodeKey, cleared: &HashSet<At>) -> Result<bool, Fail> {
    let places = tx.places_in(dir, None, cleared.len() + 1)?;
    Ok(places.into_iter().any(|(name, _)| !cleared.contains(&At { dir: dir.clone(), name })))
}

/// Entries that steps would have done.
pub(super) fn concerned_by(tx: &mut Tx<'_>, steps: &[Step]) -> Result<BTreeSet<EntryId>, Fail> {
    let mut entries = BTreeSet::new();
    for step in steps {
        entries.extend(plan::concerned(tx, step)?);
    }
    Ok(entries)
}
