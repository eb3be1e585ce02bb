//! Doing what a plan says: stage, make durable, write intent rows, move, record, and later seal.
//!
//! The order is design section 6's: staged contents are durable before the intent row is, the intent row before the
//! first move; the record of what was done comes after. A step that fails changes nothing else: its
//! entry goes to the needs list with the reason, steps that build on it are skipped, and the rest goes on.

use super::content::{Lack, is_transfer};
use super::limbo::InLimbo;
use super::mover::{self, Mover, Removal};
use super::recover;
use super::stager::Early;
use super::trash;
use super::{DEPTH_MAX, Engine, Fail, RACES_AT_ONCE_MAX, volume_reason};
use crate::api::{Event, Level, PathText, Reason};
use crate::needs::Waiter;
use crate::query;
use driftless_core::intent::{self, IntentRow, Operation};
use driftless_core::meta::Digest;
use driftless_core::plan::{self, At, Outcome, Plan, PlanOptions, Step};
use driftless_core::rows::Table;
use driftless_core::tree;
use driftless_core::{
    Attrs, Bind, Content, Dot, EntryId, Fingerprint, Kind, Name, NodeKey, Time, Tx, Wanted,
};
use driftless_volume::crash::{self, Point};
use driftless_volume::{
    ApplyError, DirFd, Limbo, Located, Placed, ReadHandle, Reason as Volume, StageId, Staged, StagedDir,
    VolumeError,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Entries planned and applied as one batch: bounds the memory of a plan and the work lost by a crash.
pub(super) const ENTRIES_PER_PLAN: usize = 2048;

/// So many files are removed on another core: fewer are gone before that has begun.
const REMOVALS_ASIDE_MIN: usize = 64;

/// A change time that no file has: what was recorded with it is compared whole by the next look.
const NEVER: Time = Time { sec: 0, nsec: 0 };

/// Staged files by the provisional key of their step.
type StagedByKey = HashMap<NodeKey, Staged>;

/// What happened to a step.
enum Done {
    /// Done; the inode as it is now, if the step made or changed one.
    Yes(Option<Outcome>),
    /// Not done: why.
    No(Reason, String),
}

/// A staged directory and the names in it that are to be shown with it.
type WholeDir = (Arc<StagedDir>, HashSet<Name>);

/// One batch being applied.
struct Run {
    staged: StagedByKey,
    /// Directories that are shown with what is in them, by the provisional key of the step that makes them.
    whole: HashMap<NodeKey, WholeDir>,
    real: HashMap<NodeKey, NodeKey>,
    touched_dirs: BTreeSet<NodeKey>,
    failed: BTreeMap<EntryId, (Reason, String)>,
    plan: u64,
    limbo: Vec<Limbo>,
    relook: Vec<At>,
    /// Users' versions that a race left in limbo, and where they belong.
    raced: Vec<(At, Limbo)>,
    lacking: Vec<(EntryId, Lack)>,
    /// Inodes that a step which was not done should have moved, linked or copied: no later step takes them away.
    sources: BTreeSet<NodeKey>,
    /// Directories that came out of where a filter hid them.
    coming: Vec<EntryId>,
    /// What the plan moves, by where to; only of plans that are done again.
    arriving: HashMap<At, NodeKey>,
}

impl Engine {
    /// Plans `entries` and does what the plan says. Entries whose content is missing are asked for and stay pending.
    pub(super) fn plan_and_apply(&mut self, entries: &[EntryId]) -> Result<(), Fail> {
        let snapshot = self.store.snapshot()?;
        let mut scratch = self.open_tx(&*snapshot)?;
        let mut plan = Plan::new();
        plan.provisional_count = self.provisional;
        let mut missing = Vec::new();
        let mut parent_waits = Vec::new();
        let filter = self.filter.clone();
        let skip = |path: &[driftless_core::Name], is_dir: bool| filter.hides(path, is_dir);
        let options = PlanOptions { skip: if filter.is_empty() { None } else { Some(&skip) } };
        for &id in entries {
            let lacking = self.lacking(&mut scratch, id)?;
            if lacking.is_empty() {
                if plan::plan_entry(&mut scratch, id, &mut plan, &options)?.is_some() {
                    parent_waits.push(id);
                }
            } else {
                missing.push((id, lacking));
            }
        }
        if self.shared.dry_run {
            return self.show_plan(scratch, plan);
        }
        drop(scratch);
        let held = self.hold_mass_removal(&mut plan)?;
        let mut run = Run {
            staged: HashMap::new(),
            whole: HashMap::new(),
            real: HashMap::new(),
            touched_dirs: BTreeSet::new(),
            failed: BTreeMap::new(),
            plan: 0,
            limbo: Vec::new(),
            relook: Vec::new(),
            raced: Vec::new(),
            lacking: Vec::new(),
            sources: BTreeSet::new(),
            coming: Vec::new(),
            arriving: HashMap::new(),
        };
        if self.redoing {
            run.arriving.extend(plan.steps.iter().filter_map(arrival));
        }
        if let Some((text, held)) = held {
            let why = (Reason::MassRemoval, text);
            run.failed.extend(held.into_iter().map(|id| (id, why.clone())));
        }
        let held = self.hold_for_trash(&mut plan)?;
        if !held.is_empty() {
            let mut tx = self.open_tx(&*snapshot)?;
            let why = (Reason::TrashFull, self.trash_full_detail());
            run.failed.extend(trash::concerned_by(&mut tx, &held)?.into_iter().map(|id| (id, why.clone())));
            run.sources.extend(held.iter().filter_map(Step::source).cloned());
        }
        for id in parent_waits {
            run.failed.insert(id, (Reason::ParentWaits, String::new()));
        }
        self.stage(&plan, &mut run)?;
        let ids: Vec<StageId> = plan.steps.iter().map(|_| self.next_stage_id()).collect();
        run.plan = self.write_intents(&plan, &ids, &run)?;

        let snapshot = self.store.snapshot()?;
        let mut tx = self.open_tx(&*snapshot)?;
        let mut steps = plan.steps.into_iter().zip(ids).peekable();
        while let Some((step, id)) = steps.next() {
            if !is_removal(&step) {
                self.run_step(&mut tx, step, id, &mut run)?;
                continue;
            }
            let mut removals = vec![(step, id)];
            removals.extend(std::iter::from_fn(|| steps.next_if(|(step, _)| is_removal(step))));
            self.run_removals(&mut tx, removals, &mut run)?;
        }
        for (_, staged) in std::mem::take(&mut run.staged) {
            // Its step was skipped; what was staged for it is staged again when it is planned again.
            match &staged.within {
                Some((dir, name)) if dir.is_shown() => self.look_soon(dir.key().clone(), name.clone()),
                _ => drop(self.volume.unstage(&staged).map_err(Fail::Volume)?),
            }
        }
        self.restore_dir_times(&mut tx, std::mem::take(&mut run.touched_dirs))?;
        for (id, lack) in std::mem::take(&mut run.lacking) {
            run.failed.remove(&id);
            missing.push((id, vec![lack]));
        }
        let lacking: BTreeSet<EntryId> = missing.iter().map(|m| m.0).collect();
        for id in entries {
            if !lacking.contains(id) && !run.failed.contains_key(id) {
                tx.remove_pending(*id);
                self.note_propagated(&mut tx, *id)?;
                self.entry_done(&mut tx, *id)?;
            }
        }
        for (id, lacking) in missing {
            tx.add_pending(id);
            for l in lacking {
                self.want(id, l)?;
            }
        }
        for (id, (reason, detail)) in std::mem::take(&mut run.failed) {
            tx.add_pending(id);
            if matches!(reason, Reason::Raced | Reason::NotEmpty | Reason::ParentWaits) {
                self.after_looks.insert(id);
            }
            self.entry_waits(&mut tx, id, reason, detail)?;
        }
        self.plan_below(&mut tx, &run.coming)?;
        for at in std::mem::take(&mut run.relook) {
            self.look_soon(at.dir, at.name);
        }
        for (at, limbo) in std::mem::take(&mut run.raced) {
            self.give_back(&mut tx, &at, &limbo.as_private())?;
        }
        crash::at(Point::MovesDone);
        // If a crash takes these records back, the intent rows tell what was moved.
        self.commit_lazily(tx)?;
        crash::at(Point::MovesRecorded);
        Ok(())
    }

    /// Removals beyond the limit are taken out of the plan and wait for a person: why, and which entries.
    fn hold_mass_removal(&mut self, plan: &mut Plan) -> Result<Option<(String, BTreeSet<EntryId>)>, Fail> {
        let removals = plan.steps.iter().filter(|s| matches!(s, Step::Remove { .. })).count() as u64;
        self.removals_in_window += removals;
        let has_limit = super::removal_limit(self.shared.max_delete, 0) < u64::MAX;
        if removals == 0 || self.removals_in_window <= 100 || !has_limit {
            return Ok(None);
        }
        let total = self.count_places()? + self.removed_in_window;
        let limit = super::removal_limit(self.shared.max_delete, total);
        if self.removals_in_window <= limit {
            self.removed_in_window += removals;
            return Ok(None);
        }
        let snapshot = self.store.snapshot()?;
        let mut tx = self.open_tx(&*snapshot)?;
        let mut held = BTreeSet::new();
        for step in plan.steps.extract_if(.., |s| matches!(s, Step::Remove { .. })) {
            held.extend(plan::concerned(&mut tx, &step)?);
        }
        Ok(Some((format!("more than {limit} of {total} entries would be removed at once"), held)))
    }

    // ----- staging

    /// Makes every new leaf of the plan in the staging directory, and all of them durable.
    fn stage(&mut self, plan: &Plan, run: &mut Run) -> Result<(), Fail> {
        let (mut to_sync, mut new) = (Vec::new(), Vec::new());
        let failures = self.volume.sync_failures();
        run.whole = self.whole_dirs(plan);
        for step in &plan.steps {
            let Step::Put { at, node, kind, entry, version, content, attrs, copy, victim, .. } = step else {
                continue;
            };
            if self.left.is_placed(&(*entry, *version)) {
                continue;
            }
            if let Some(early) = self.early.remove(&(*entry, *version)) {
                let wanted = self.as_wanted(early, attrs, content.mtime());
                match wanted.and_then(|(s, d)| Ok((self.stay_within(s, at, victim.is_some(), run)?, d))) {
                    Ok((staged, durable)) => {
                        self.counts.applied_bytes = self.counts.applied_bytes.saturating_add(content.size());
                        if !durable {
                            new.push((node, *entry));
                            to_sync.push(staged.clone());
                        }
                        run.staged.insert(node.clone(), staged);
                    }
                    Err(e) => {
                        run.failed.insert(*entry, (volume_reason(&e), e.to_string()));
                    }
                }
                continue;
            }
            match self.stage_one(*kind, (*entry, *version), content, attrs, copy.as_ref()) {
                Ok(Some(staged)) => {
                    self.counts.applied_bytes = self.counts.applied_bytes.saturating_add(content.size());
                    new.push((node, *entry));
                    to_sync.push(staged.clone());
                    run.staged.insert(node.clone(), staged);
                }
                Ok(None) => {
                    // The plan found that it needs it after all: asked for now, planned again when it is here.
                    run.lacking.extend(Lack::of(*entry, *version, content, attrs));
                }
                Err(e) => {
                    run.failed.insert(*entry, (volume_reason(&e), e.to_string()));
                }
            }
        }
        if run.whole.values().any(|(_, names)| !names.is_empty()) {
            self.take_out_others(run);
        }
        if let Err(e) = self.volume.make_durable_since(&to_sync, failures) {
            self.stage_again(run, &new, &e);
        }
        self.rename_transfers(run, failures, &new)
    }

    /// A transfer's name follows from what is transferred, so that it is found after a restart. What an intent row speaks
    /// of has a name that nothing else gets: what waits under it is told by it.
    fn rename_transfers(
        &mut self,
        run: &mut Run,
        failures: u64,
        new: &[(&NodeKey, EntryId)],
    ) -> Result<(), Fail> {
        let (mut renamed, mut refused) = (Vec::new(), Vec::new());
        for (node, staged) in run.staged.iter_mut().filter(|(_, s)| is_transfer(s.id)) {
            let id = StageId(self.stage_ids.take());
            match self.volume.rename_staged(staged.clone(), id) {
                Ok(now) => {
                    *staged = now;
                    renamed.push(staged.clone());
                }
                Err(e) => refused.push((node.clone(), e)),
            }
        }
        for (node, e) in refused {
            let entry = new.iter().find(|(n, _)| **n == node).map(|(_, entry)| *entry);
            self.throw_away(run, &node, entry, &e);
        }
        if let Err(e) = self.volume.make_durable_since(&renamed, failures) {
            self.stage_again(run, new, &e);
        }
        Ok(())
    }

    /// A sync that succeeds later would prove nothing about what one that failed was about: that is staged again, from
    /// its source.
    fn stage_again(&mut self, run: &mut Run, new: &[(&NodeKey, EntryId)], e: &VolumeError) {
        self.log(Level::Error, e.advice());
        for (node, entry) in new {
            self.throw_away(run, node, Some(*entry), e);
        }
    }

    /// What was staged for `node` is not used: its entry waits, for `e`.
    fn throw_away(&self, run: &mut Run, node: &NodeKey, entry: Option<EntryId>, e: &VolumeError) {
        let Some(staged) = run.staged.remove(node) else { return };
        if let Some((dir, name)) = &staged.within {
            let whole = run.whole.values_mut().find(|(whole, _)| Arc::ptr_eq(whole, dir));
            whole.map(|(_, names)| names.remove(name));
        }
        // If it cannot be removed, the next start sweeps it.
        let _ = self.volume.unstage(&staged);
        run.failed.extend(entry.map(|entry| (entry, (volume_reason(e), e.to_string()))));
    }

    /// Directories that the plan makes and that were staged with files in them.
    fn whole_dirs(&mut self, plan: &Plan) -> HashMap<NodeKey, WholeDir> {
        let mut whole = HashMap::new();
        if self.early_dirs.is_empty() {
            return whole;
        }
        for step in &plan.steps {
            let Step::MakeDir { node, binding, .. } = step else { continue };
            if let Some(dir) = binding.members.iter().find_map(|m| self.early_dirs.remove(m)) {
                whole.insert(node.clone(), (dir, HashSet::new()));
            }
        }
        whole
    }

    /// A file in a staged directory stays there if it is to be shown in that directory, under that name, with nothing
    /// in the way. Else it becomes one that is shown by itself.
    fn stay_within(
        &self,
        staged: Staged,
        at: &At,
        replaces: bool,
        run: &mut Run,
    ) -> Result<Staged, VolumeError> {
        let Some((dir, name)) = &staged.within else { return Ok(staged) };
        match run.whole.get_mut(&at.dir) {
            Some((whole, names)) if Arc::ptr_eq(whole, dir) && *name == at.name && !replaces => {
                names.insert(name.clone());
                Ok(staged)
            }
            _ => self.volume.take_out(staged),
        }
    }

    /// Files that lie in the directories now to be shown, and are no part of this plan.
    fn take_out_others(&mut self, run: &Run) {
        let shown = |s: &Staged| {
            let within = s.within.as_ref();
            within.is_some_and(|(dir, _)| run.whole.values().any(|(whole, _)| Arc::ptr_eq(whole, dir)))
        };
        let volume = &self.volume;
        self.early.retain(|_, early| {
            if !shown(&early.staged) {
                return true;
            }
            let out = volume.take_out(early.staged.clone());
            if out.is_err() {
                // It is asked for again when it is planned.
                let _ = volume.unstage(&early.staged);
            }
            out.map(|staged| early.staged = staged).is_ok()
        });
    }

    /// What was staged before the state was merged may need other attributes than it came with. Says whether it is
    /// durable as it is.
    fn as_wanted(&self, early: Early, attrs: &Attrs, mtime: Time) -> Result<(Staged, bool), VolumeError> {
        if early.attrs == *attrs && early.mtime == mtime {
            return Ok((early.staged, true));
        }
        Ok((self.volume.restyle(&early.staged, attrs, mtime)?, false))
    }

    /// What is about to be moved, durably, before the first move: a restart then knows what is ours. `ids` name in
    /// limbo what the steps replace. Gives the plan's number.
    fn write_intents(&mut self, plan: &Plan, ids: &[StageId], run: &Run) -> Result<u64, Fail> {
        let n = self.next_plan;
        let placed = self.left.placed_by(plan);
        let mut known = Known { staged: &run.staged, placed, times: HashMap::new() };
        let rows: Vec<IntentRow> =
            plan.steps.iter().zip(ids).filter_map(|(step, id)| known.intent_of(n, step, *id)).collect();
        if rows.is_empty() {
            // Attributes on a disk whose state was lost would look like a user's change of this moment.
            if plan.steps.iter().any(|s| matches!(s, Step::SetAttrs { .. })) {
                self.harden_merges()?;
            }
            return Ok(n);
        }
        self.next_plan += 1;
        self.open_plans.push(n);
        let key = (Table::Intents, n.to_be_bytes().to_vec());
        self.store.commit([(key, Some(intent::encode_intents(&rows)))].into())?;
        (self.lazy, self.merges_lazy) = (false, false);
        crash::at(Point::Intended);
        Ok(n)
    }

    fn stage_one(
        &mut self,
        kind: Kind,
        (entry, version): (EntryId, Dot),
        content: &Content,
        attrs: &Attrs,
        copy: Option<&NodeKey>,
    ) -> Result<Option<Staged>, VolumeError> {
        let id = self.next_stage_id();
        match content {
            Content::Symlink { target, mtime } => {
                self.volume.stage_symlink(id, target, attrs, *mtime).map(Some)
            }
            Content::Special { rdev, mtime } => {
                self.volume.stage_special(id, kind, *rdev, attrs, *mtime).map(Some)
            }
            Content::File { size, mtime, digest } => {
                if let Some(bytes) = self.take_inline(entry, version, digest) {
                    return self.volume.stage_small(id, &bytes, attrs, *mtime).map(Some);
                }
                if *size == 0 {
                    return self.volume.stage_small(id, &[], attrs, *mtime).map(Some);
                }
                if let Some(writer) = self.take_fetched(entry, version) {
                    let done = writer.with_attrs(attrs, *mtime).finish(Some(*digest), *size);
                    if done.as_ref().is_err_and(|e| e.reason() == Volume::WrongContent) {
                        self.came_wrong((entry, version));
                    }
                    return done.map(Some);
                }
                let standing = copy.and_then(|node| self.open_node(node).ok().flatten());
                if let Some(source) = standing {
                    return self.stage_copy(id, &source, content, attrs, digest);
                }
                let Some(source) = self.open_private(&(entry, version), digest) else { return Ok(None) };
                let done = self.stage_copy(id, &source, content, attrs, digest);
                if done.as_ref().is_err_and(|e| e.reason() == Volume::WrongContent) {
                    // Asked of a peer when it is tried again.
                    self.limbos.disprove(digest);
                }
                done
            }
        }
    }

    /// The same content is on this disk already.
    fn stage_copy(
        &self,
        id: StageId,
        source: &ReadHandle,
        content: &Content,
        attrs: &Attrs,
        digest: &Digest,
    ) -> Result<Option<Staged>, VolumeError> {
        let writer = self.volume.clone_into_stage(id, source, attrs, content.mtime())?;
        writer.finish(Some(*digest), content.size()).map(Some)
    }

    // ----- steps

    fn run_step(&mut self, tx: &mut Tx<'_>, mut step: Step, id: StageId, run: &mut Run) -> Result<(), Fail> {
        let provisional = step.node().clone();
        step.resolve(&run.real);
        let result = if step.is_unresolved() {
            Done::No(Reason::ParentWaits, String::new())
        } else if !plan::stands(tx, &step)? || step.victim().is_some_and(|v| run.sources.contains(&v.node)) {
            Done::No(Reason::Raced, "what it builds on was not done".into())
        } else if self.takes_what_waits(tx, &step)? {
            Done::No(Reason::NotEmpty, String::new())
        } else {
            step.refresh(tx)?;
            self.do_step(tx, &step, id, run)?
        };
        self.step_is_over(tx, step, provisional, result, run)
    }

    /// Removals that follow each other. Many files are moved on another core; those of one directory go before it, as planned, and
    /// those of others may too.
    fn run_removals(
        &mut self,
        tx: &mut Tx<'_>,
        steps: Vec<(Step, StageId)>,
        run: &mut Run,
    ) -> Result<(), Fail> {
        let is_file = |(step, _): &(Step, StageId)| step.victim().is_some_and(|v| !v.kind.is_dir());
        let many = steps.iter().filter(|s| is_file(s)).count() >= REMOVALS_ASIDE_MIN;
        let mover = if many { self.mover.get_or_insert_with(Mover::start).as_ref() } else { None };
        let Some(mut moving) = mover.map(|mover| mover.begin(&self.volume)) else {
            return steps.into_iter().try_for_each(|(step, id)| self.run_step(tx, step, id, run));
        };
        let (files, dirs): (Vec<_>, Vec<_>) = steps.into_iter().partition(is_file);
        let mut others = Vec::new();
        for (step, id) in files {
            match self.as_removal(tx, &step, id, run)? {
                Some(removal) => {
                    for done in moving.put(step, removal)? {
                        self.removal_is_over(tx, done, run)?;
                    }
                }
                None => others.push((step, id)),
            }
        }
        loop {
            let done = moving.take()?;
            if done.is_empty() {
                break;
            }
            done.into_iter().try_for_each(|done| self.removal_is_over(tx, done, run))?;
        }
        others.into_iter().chain(dirs).try_for_each(|(step, id)| self.run_step(tx, step, id, run))
    }

    /// What there is to be moved for a step, if nothing that other steps do has to do with it.
    fn as_removal(
        &mut self,
        tx: &mut Tx<'_>,
        step: &Step,
        id: StageId,
        run: &mut Run,
    ) -> Result<Option<Removal>, Fail> {
        let Step::Remove { at, victim } = step else { return Ok(None) };
        let Some(node) = tx.node(&victim.node)? else { return Ok(None) };
        let is_plain = node.names.len() == 1 && !step.is_unresolved() && !run.sources.contains(&victim.node);
        if !is_plain || !plan::stands(tx, step)? {
            return Ok(None);
        }
        let Some(dir) = self.dir_for(tx, &at.dir)? else { return Ok(None) };
        run.touched_dirs.insert(at.dir.clone());
        let victim = plan::Victim { fingerprint: node.fingerprint, ..victim.clone() };
        Ok(Some(Removal { dir, name: at.name.clone(), victim, id }))
    }

    fn removal_is_over(&mut self, tx: &mut Tx<'_>, done: mover::Done, run: &mut Run) -> Result<(), Fail> {
        let mover::Done { step, removal, removed } = done;
        let result = match (removed, step.target()) {
            (Ok(limbo), _) => {
                run.limbo.extend(limbo);
                Done::Yes(None)
            }
            (Err(e), Some(at)) => self.not_removed(&removal.dir, at, &removal.victim, e, run),
            (Err(e), None) => return Err(Fail::Bug(e.to_string())),
        };
        let node = removal.victim.node;
        self.step_is_over(tx, step, node, result, run)
    }

    /// What is not there any more is removed.
    fn not_removed(
        &mut self,
        dir: &DirFd,
        at: &At,
        victim: &plan::Victim,
        e: ApplyError,
        run: &mut Run,
    ) -> Done {
        match dir.look(&at.name) {
            Ok(None) => Done::Yes(None),
            // The last process removed the directory, and moved there what stands there now.
            Ok(Some(seen))
                if victim.kind.is_dir()
                    && run.arriving.get(at) == Some(&seen.key)
                    && !matches!(self.volume.locate(&victim.node), Located::At(_)) =>
            {
                Done::Yes(None)
            }
            _ => self.refused(at, e, run),
        }
    }

    /// Records what came of a step that was planned with the key `provisional`.
    fn step_is_over(
        &mut self,
        tx: &mut Tx<'_>,
        mut step: Step,
        provisional: NodeKey,
        result: Done,
        run: &mut Run,
    ) -> Result<(), Fail> {
        match result {
            Done::Yes(outcome) => {
                if let Some(o) = &outcome {
                    run.real.insert(provisional, o.node.clone());
                }
                step.resolve(&run.real);
                let victims = std::mem::take(&mut run.limbo);
                for limbo in &victims {
                    self.victim_waits(tx, &step, limbo, run.plan)?;
                }
                self.counts.applied += 1;
                if self.shared.verbose {
                    self.say_step(tx, &step, true)?;
                }
                if !self.filter.is_empty() {
                    run.coming.extend(plan::coming_dirs(tx, &step)?);
                }
                plan::record(tx, &step, outcome.as_ref())?;
                for victim in &victims {
                    note_change_time(tx, victim)?;
                }
                Ok(())
            }
            Done::No(reason, detail) => {
                for id in plan::concerned(tx, &step)? {
                    for at in source_place(&step).into_iter().chain(step.target()) {
                        self.waiting.refused_at(id, at);
                    }
                    run.failed.entry(id).or_insert((reason, detail.clone()));
                }
                run.sources.extend(step.source().cloned());
                Ok(())
            }
        }
    }

    /// Does a step; `id` names in limbo what it replaces or removes.
    fn do_step(&mut self, tx: &mut Tx<'_>, step: &Step, id: StageId, run: &mut Run) -> Result<Done, Fail> {
        match step {
            Step::MakeDir { at, node, attrs, .. } => self.do_make_dir(tx, (at, node), attrs, run),
            Step::Put { at, node, victim, entry, version, .. } => {
                if let Some(placed) = self.left.take_placed(&(*entry, *version)) {
                    return self.do_put_recovered(tx, at, &placed, run);
                }
                let Some(staged) = run.staged.remove(node) else {
                    return Ok(Done::No(Reason::ContentMissing, String::new()));
                };
                let Some(fd) = self.dir_for(tx, &at.dir)? else {
                    run.staged.insert(node.clone(), staged);
                    return self.no_dir(tx, &[&at.dir]);
                };
                run.touched_dirs.insert(at.dir.clone());
                if staged.within.as_ref().is_some_and(|(dir, _)| dir.is_shown()) {
                    let Staged { key: node, fingerprint, given, .. } = staged;
                    return Ok(Done::Yes(Some(Outcome { node, fingerprint, given })));
                }
                // A follower does not record that its copy was removed.
                let free = self.follows() && matches!(fd.look(&at.name), Ok(None));
                match self.volume.place(&staged, &fd, &at.name, victim.as_ref().filter(|_| !free)) {
                    Ok(p) => {
                        run.limbo.extend(p.limbo);
                        let (key, fingerprint) = (p.key, p.fingerprint);
                        Ok(Done::Yes(Some(Outcome { node: key, fingerprint, given: staged.given })))
                    }
                    Err(e) => {
                        run.staged.insert(node.clone(), staged);
                        Ok(self.refused(at, e, run))
                    }
                }
            }
            Step::Link { from, to, node, victim, .. } => {
                let (Some(f), Some(t)) = (self.dir_for(tx, &from.dir)?, self.dir_for(tx, &to.dir)?) else {
                    return self.no_dir(tx, &[&from.dir, &to.dir]);
                };
                run.touched_dirs.insert(to.dir.clone());
                match self.volume.link_node(&f, &from.name, &t, &to.name, node, victim.as_ref(), id) {
                    Ok(p) => self.moved(tx, to, p, run),
                    Err(e) => self.done_before_or(e, &t, (from, to), node, run),
                }
            }
            Step::Move { from, to, node, kind, victim, .. } => {
                let (Some(f), Some(t)) = (self.dir_for(tx, &from.dir)?, self.dir_for(tx, &to.dir)?) else {
                    return self.no_dir(tx, &[&from.dir, &to.dir]);
                };
                run.touched_dirs.insert(from.dir.clone());
                run.touched_dirs.insert(to.dir.clone());
                if kind.is_dir() {
                    self.forget_dirs();
                }
                match self.volume.rename_node(&f, &from.name, &t, &to.name, node, victim.as_ref(), id) {
                    Ok(p) => self.moved(tx, to, p, run),
                    Err(e) => self.done_before_or(e, &t, (from, to), node, run),
                }
            }
            Step::Park { from, node, kind } => {
                let Some(f) = self.dir_for(tx, &from.dir)? else { return self.no_dir(tx, &[&from.dir]) };
                run.touched_dirs.insert(from.dir.clone());
                if kind.is_dir() {
                    self.forget_dirs();
                }
                match self.volume.park(&f, &from.name, node, park_id(node)) {
                    Ok(()) => Ok(Done::Yes(None)),
                    Err(e) => Ok(self.refused(from, e, run)),
                }
            }
            Step::Unpark { to, node, victim, .. } => {
                let Some(t) = self.dir_for(tx, &to.dir)? else { return self.no_dir(tx, &[&to.dir]) };
                run.touched_dirs.insert(to.dir.clone());
                match self.volume.unpark(park_id(node), node, &t, &to.name, victim.as_ref(), id) {
                    Ok(p) => self.moved(tx, to, p, run),
                    Err(e) => self.done_before_or(e, &t, (to, to), node, run),
                }
            }
            Step::Remove { at, victim } if Plan::is_parked_dir(&at.dir) => {
                match self.volume.remove_parked(park_id(&victim.node), victim, id) {
                    Ok(limbo) => {
                        run.limbo.extend(limbo);
                        Ok(Done::Yes(None))
                    }
                    Err(e) => Ok(self.refused(at, e, run)),
                }
            }
            Step::Remove { at, victim } => {
                let Some(fd) = self.dir_for(tx, &at.dir)? else {
                    return if self.is_dir_gone(tx, &at.dir)? {
                        Ok(Done::Yes(None))
                    } else {
                        self.no_dir(tx, &[&at.dir])
                    };
                };
                run.touched_dirs.insert(at.dir.clone());
                if victim.kind.is_dir() {
                    self.forget_dirs();
                }
                match self.volume.remove(&fd, &at.name, victim, id) {
                    Ok(limbo) => {
                        run.limbo.extend(limbo);
                        Ok(Done::Yes(None))
                    }
                    Err(e) => Ok(self.not_removed(&fd, at, victim, e, run)),
                }
            }
            Step::SetAttrs { path, node, kind, attrs, content, .. } => {
                self.do_set_attrs(tx, path.as_ref(), node, *kind, attrs, content.as_ref(), run)
            }
            Step::Rebind { .. } => Ok(Done::Yes(None)),
        }
    }

    /// Remembers what a step took away, before its record goes.
    fn victim_waits(&mut self, tx: &mut Tx<'_>, step: &Step, limbo: &Limbo, plan: u64) -> Result<(), Fail> {
        let identity = match tx.node(&limbo.key)?.map(|n| n.bind.clone()) {
            Some(Bind::Leaf { identity }) => Some(identity),
            _ => None,
        };
        if let Some(at) = step.target() {
            if let Some(identity) = identity {
                self.note_hidden(tx, at, identity)?;
            }
            let kind = step.victim().map_or(Kind::File, |v| v.kind);
            let origin = self.origin_of_step(tx, step)?;
            self.limbos.put(InLimbo::new(limbo.clone(), at.clone(), identity, kind, plan, origin));
        }
        Ok(())
    }

    /// An inode was given the name `to`. If a user has changed it since it was recorded, its new fingerprint would hide
    /// that: it is looked at.
    fn moved(&mut self, tx: &mut Tx<'_>, to: &At, p: Placed, run: &mut Run) -> Result<Done, Fail> {
        run.limbo.extend(p.limbo);
        let node = tx.node_must(&p.key)?;
        let given = node.given.clone();
        let as_recorded = p.before == node.fingerprint;
        let fingerprint = if as_recorded { p.fingerprint } else { node.fingerprint };
        if !as_recorded || p.changed {
            run.relook.push(to.clone());
        }
        Ok(Done::Yes(Some(Outcome { node: p.key, fingerprint, given })))
    }

    /// Makes a directory, with what was staged in it for this plan.
    fn make_dir(
        &self,
        fd: &DirFd,
        name: &Name,
        attrs: &Attrs,
        whole: Option<WholeDir>,
    ) -> Result<Outcome, ApplyError> {
        let Some((dir, names)) = whole.filter(|(_, names)| !names.is_empty()) else {
            return self.volume.make_dir(fd, name, attrs);
        };
        match self.volume.place_dir(&dir, fd, name, attrs, &names) {
            // Its files are shown one by one.
            Err(ApplyError::Volume(_) | ApplyError::CrossDevice { .. }) => {
                self.volume.make_dir(fd, name, attrs)
            }
            other => other,
        }
    }

    fn do_make_dir(
        &mut self,
        tx: &mut Tx<'_>,
        (at, node): (&At, &NodeKey),
        attrs: &Attrs,
        run: &mut Run,
    ) -> Result<Done, Fail> {
        let Some(fd) = self.dir_for(tx, &at.dir)? else { return self.no_dir(tx, &[&at.dir]) };
        run.touched_dirs.insert(at.dir.clone());
        let whole = run.whole.remove(node);
        match self.make_dir(&fd, &at.name, attrs, whole) {
            Ok(outcome) => {
                run.touched_dirs.insert(outcome.node.clone());
                self.new_dirs.push(outcome.node.clone());
                Ok(Done::Yes(Some(outcome)))
            }
            // Nobody recorded it: the last process made it. What is in it is looked at. One that a user makes at this
            // moment is seen first: it is an entry of its own, and the two become one directory.
            Err(ApplyError::Unexpected { seen: Some(seen) })
                if self.redoing && seen.kind.is_dir() && tx.node(&seen.key)?.is_none() =>
            {
                run.touched_dirs.insert(seen.key.clone());
                self.list_soon(seen.key.clone());
                match self.volume.set_attrs(&fd, &at.name, &seen.key, Kind::Dir, attrs, None, None) {
                    Ok(outcome) => Ok(Done::Yes(Some(outcome))),
                    Err(e) => Ok(self.refused(at, e, run)),
                }
            }
            Err(e) => Ok(self.refused(at, e, run)),
        }
    }

    /// The last process placed it and did not record that. Somebody may have written to it or taken it away since:
    /// recorded is what was staged, with a change time that no file has, so that the crawl reads it.
    fn do_put_recovered(
        &mut self,
        tx: &mut Tx<'_>,
        at: &At,
        placed: &recover::Placed,
        run: &mut Run,
    ) -> Result<Done, Fail> {
        let Some(fd) = self.dir_for(tx, &at.dir)? else { return self.no_dir(tx, &[&at.dir]) };
        run.touched_dirs.insert(at.dir.clone());
        let staged = &placed.staged;
        if tx.node(&staged.node)?.is_some() {
            return Ok(Done::No(Reason::Raced, String::new())); // it stands elsewhere by now
        }
        let shown = matches!(fd.look(&at.name), Ok(Some(seen)) if seen.key == staged.node);
        if !shown && !placed.is_sure(at) {
            return Ok(Done::No(Reason::Raced, String::new()));
        }
        if !shown {
            run.relook.push(at.clone());
        }
        let fingerprint = Fingerprint { size: staged.size, mtime: staged.mtime, ctime: NEVER };
        let (node, given) = (staged.node.clone(), staged.given.clone());
        Ok(Done::Yes(Some(Outcome { node, fingerprint, given })))
    }

    /// A move that cannot be made because it was made before, by a process that did not record it, is done.
    fn done_before_or(
        &mut self,
        e: ApplyError,
        dir: &DirFd,
        (from, to): (&At, &At),
        node: &NodeKey,
        run: &mut Run,
    ) -> Result<Done, Fail> {
        match dir.look(&to.name) {
            // Somebody may have changed it since: the next look compares all of it.
            Ok(Some(seen)) if seen.key == *node => {
                let fingerprint = Fingerprint { ctime: NEVER, ..seen.fingerprint };
                Ok(Done::Yes(Some(Outcome { node: seen.key, fingerprint, given: Attrs::default() })))
            }
            _ => {
                run.relook.push(from.clone());
                Ok(self.refused(to, e, run))
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn do_set_attrs(
        &mut self,
        tx: &mut Tx<'_>,
        path: Option<&At>,
        node: &NodeKey,
        kind: Kind,
        attrs: &Attrs,
        content: Option<&Content>,
        run: &mut Run,
    ) -> Result<Done, Fail> {
        if kind.is_dir() {
            run.touched_dirs.insert(node.clone());
        }
        let Some(at) = path else {
            return Ok(match self.volume.set_root_attrs(attrs) {
                Ok(o) => Done::Yes(Some(o)),
                Err(e) => Done::No(volume_reason(&e), e.to_string()),
            });
        };
        let Some(fd) = self.dir_for(tx, &at.dir)? else { return self.no_dir(tx, &[&at.dir]) };
        let expected = tx.node_must(node)?.fingerprint;
        let expected = (!kind.is_dir()).then_some(&expected);
        let mtime = content.map(Content::mtime);
        match self.volume.set_attrs(&fd, &at.name, node, kind, attrs, mtime, expected) {
            Ok(o) => Ok(Done::Yes(Some(o))),
            Err(e) => Ok(self.refused(at, e, run)),
        }
    }

    /// A step the volume refused: what is there is looked at again when it was not what we thought.
    fn refused(&mut self, at: &At, e: ApplyError, run: &mut Run) -> Done {
        match &e {
            ApplyError::Raced { limbo: Some(limbo), .. } => {
                run.raced.push((at.clone(), (**limbo).clone()));
                run.relook.push(at.clone());
            }
            ApplyError::Unexpected { seen: Some(seen) } if seen.other_fs => {
                return Done::No(Reason::OtherFileSystem, "a mount point is in its place".into());
            }
            ApplyError::Raced { .. } | ApplyError::Unexpected { .. } => run.relook.push(at.clone()),
            ApplyError::NotEmpty { .. } => run.relook.push(at.clone()),
            ApplyError::Volume(e) if super::observe::is_gone(e) => run.relook.push(at.clone()),
            _ => {}
        }
        let reason = super::apply_reason(&e);
        if reason == Reason::NotEmpty {
            self.list_at_soon(at);
        }
        Done::No(reason, e.to_string())
    }

    /// As after a plan that touched these directories.
    pub(super) fn restore_times_of(&mut self, dirs: BTreeSet<NodeKey>) -> Result<(), Fail> {
        let snapshot = self.store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        self.restore_dir_times(&mut tx, dirs)?;
        self.commit_lazily(tx)
    }

    /// Directories get the times that their state says, after everything in them is done.
    fn restore_dir_times(&mut self, tx: &mut Tx<'_>, dirs: BTreeSet<NodeKey>) -> Result<(), Fail> {
        for key in dirs {
            let Some(node) = tx.node(&key)? else { continue };
            let Bind::Dir(members) = &node.bind else { continue };
            let mtime = tree::dir_time(tx, members)?;
            let Some(path) = self.path_of_node(tx, &key)? else { continue };
            let Ok(fd) = self.volume.dir(&path, Some(&key)) else { continue };
            let fingerprint = match mtime {
                Some(t) => self.volume.set_dir_mtime(&fd, t),
                None => fd.looked_self().map(|l| l.fingerprint),
            };
            let Ok(fingerprint) = fingerprint else {
                // As it is, it is what a user will be found to have made of it.
                self.inodes.insert(key);
                continue;
            };
            let mut node = (*node).clone();
            node.fingerprint = fingerprint;
            if node.given.dir_mtime != Some(fingerprint.mtime) {
                // The state's time came by this way and may go back to the one that was applied last.
                node.wanted = Wanted::UNKNOWN;
            }
            node.given.dir_mtime = Some(fingerprint.mtime);
            tx.put_node(&key, node);
        }
        Ok(())
    }

    fn dir_for(&mut self, tx: &mut Tx<'_>, key: &NodeKey) -> Result<Option<DirFd>, Fail> {
        if let Some(fd) = self.dir_cache.get(key) {
            return Ok(Some(fd.clone()));
        }
        let opened = match self.path_of_node(tx, key)? {
            Some(path) => self.volume.dir(&path, Some(key)),
            // What a run that ended had moved out of the way may be where the next one has to go on.
            None => match self.parked_dir(tx, key)? {
                Some(opened) => opened,
                None => return Ok(None),
            },
        };
        match opened {
            Ok(fd) => {
                self.dir_cache.put(key.clone(), fd.clone());
                Ok(Some(fd))
            }
            // Before the first look at the tree nobody knows that it was moved meanwhile.
            Err(_) if self.redoing => self.dir_wherever(tx, key),
            Err(_) => Ok(None),
        }
    }

    /// A directory that is recorded in one that was moved out of the way, or as that; `None` if it is not.
    pub(super) fn parked_dir(
        &self,
        tx: &mut Tx<'_>,
        key: &NodeKey,
    ) -> Result<Option<Result<DirFd, VolumeError>>, Fail> {
        let found = path_in_parked(tx, key)?;
        Ok(found.map(|(top, path)| self.volume.dir_in_parked(park_id(&top), &path, key)))
    }

    /// True if there is no such directory any more, nor what was in it. One that cannot be entered, is mounted over, or was
    /// moved by a user a moment ago still has everything: a removal recorded now would be undone by the next look.
    fn is_dir_gone(&mut self, tx: &mut Tx<'_>, key: &NodeKey) -> Result<bool, Fail> {
        let Some(path) = self.path_of_node(tx, key)? else { return Ok(true) };
        Ok(match self.volume.dir(&path, Some(key)) {
            Err(e) if super::observe::is_gone(&e) => {
                // A follower will record nothing of what its user did.
                self.follows() || self.volume.locate(key) == Located::Gone
            }
            _ => false,
        })
    }

    /// Why one of these directories cannot be worked in: something is mounted over it, or it waits itself.
    fn no_dir(&mut self, tx: &mut Tx<'_>, dirs: &[&NodeKey]) -> Result<Done, Fail> {
        for key in dirs {
            let Some(path) = self.path_of_node(tx, key)? else { continue };
            if let Err(e) = self.volume.dir(&path, Some(key))
                && volume_reason(&e) == Reason::OtherFileSystem
            {
                return Ok(Done::No(Reason::OtherFileSystem, e.to_string()));
            }
        }
        Ok(Done::No(Reason::ParentWaits, String::new()))
    }

    // ----- dry run

    fn show_plan(&mut self, mut scratch: Tx<'_>, plan: Plan) -> Result<(), Fail> {
        for step in &plan.steps {
            self.say_step(&mut scratch, step, false)?;
        }
        self.counts.to_apply += plan.steps.len() as u64;
        self.provisional = plan.provisional_count;
        // As if done, in memory: what is planned next builds on it.
        self.commit_lazily(scratch)
    }

    fn say_step(&mut self, tx: &mut Tx<'_>, step: &Step, done: bool) -> Result<(), Fail> {
        let d = plan::describe(tx, step)?;
        self.say(Event::Step {
            side: self.side,
            done,
            verb: d.verb.to_owned(),
            path: PathText::new(&d.path),
            detail: d.detail,
        });
        Ok(())
    }

    /// The path an entry is shown at, for people; where this disk still has it, or its id, if it is shown nowhere.
    pub(super) fn entry_path(&mut self, tx: &mut Tx<'_>, id: EntryId) -> Result<Vec<u8>, Fail> {
        Ok(query::entry_path(tx, id)?.unwrap_or_else(|| id.to_string().into_bytes()))
    }

    fn entry_waits(
        &mut self,
        tx: &mut Tx<'_>,
        id: EntryId,
        reason: Reason,
        detail: String,
    ) -> Result<(), Fail> {
        let path = self.entry_path(tx, id)?;
        let tries = self.waiting.get(&Waiter::Entry(id)).map_or(0, |n| n.tries);
        // A follower records nothing of its own: what was in the way of several tries stays there.
        let (reason, detail) = match reason {
            Reason::Raced if self.follows() && tries >= RACES_AT_ONCE_MAX => (Reason::Drift, String::new()),
            other => (other, detail),
        };
        self.waits(tx, Waiter::Entry(id), &path, reason, detail)
    }

    fn entry_done(&mut self, tx: &mut Tx<'_>, id: EntryId) -> Result<(), Fail> {
        if self.waiting.contains(&Waiter::Entry(id)) {
            let path = self.entry_path(tx, id)?;
            self.resolved(tx, &Waiter::Entry(id), &path);
        }
        if self.nowhere.is_empty() { Ok(()) } else { self.found_here(tx, id) }
    }
}

/// A file that went to limbo by one of its names has another change time by the others.
fn note_change_time(tx: &mut Tx<'_>, limbo: &Limbo) -> Result<(), Fail> {
    if let Some(node) = tx.node(&limbo.key)? {
        let mut node = (*node).clone();
        node.fingerprint.ctime = limbo.ctime;
        tx.put_node(&limbo.key, node);
    }
    Ok(())
}

/// True of what takes something away from the tree.
fn is_removal(step: &Step) -> bool {
    matches!(step, Step::Remove { at, .. } if !Plan::is_parked_dir(&at.dir))
}

/// Where a step moves an inode, and which.
fn arrival(step: &Step) -> Option<(At, NodeKey)> {
    match step {
        Step::Move { to, node, .. } | Step::Unpark { to, node, .. } => Some((to.clone(), node.clone())),
        _ => None,
    }
}

/// The place that a step takes an inode from.
fn source_place(step: &Step) -> Option<&At> {
    match step {
        Step::Link { from, .. } | Step::Move { from, .. } | Step::Park { from, .. } => Some(from),
        _ => None,
    }
}

/// The name an inode waits under while parked: follows from its key, so that it is found after a restart.
pub(super) fn park_id(node: &NodeKey) -> StageId {
    let d = Digest::of(node.as_bytes()).0;
    StageId(u64::from_be_bytes([d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]]))
}

/// The directory out of the way that this one is recorded in (or is), and the path from there.
fn path_in_parked(tx: &mut Tx<'_>, dir: &NodeKey) -> Result<Option<(NodeKey, Vec<Name>)>, Fail> {
    let (mut at, mut path) = (dir.clone(), Vec::new());
    for _ in 0..DEPTH_MAX {
        match tx.node(&at)?.and_then(|n| n.names.first().cloned()) {
            Some((above, _)) if Plan::is_parked_dir(&above) => {
                path.reverse();
                return Ok(Some((at, path)));
            }
            Some((above, name)) => {
                path.push(name);
                at = above;
            }
            None => return Ok(None),
        }
    }
    Ok(None)
}

/// What is known of inodes when intents are written down.
struct Known<'a> {
    staged: &'a StagedByKey,
    /// What the last process staged and placed, by the keys that the plan gives it.
    placed: HashMap<NodeKey, intent::StagedFile>,
    /// Times that earlier steps of the plan set.
    times: HashMap<NodeKey, Time>,
}

impl Known<'_> {
    /// The intent of a step. Placing names the victim as what replaces it was named in staging.
    fn intent_of(&mut self, plan: u64, step: &Step, id: StageId) -> Option<IntentRow> {
        if let Step::SetAttrs { node, content: Some(content), .. } = step {
            self.times.insert(node.clone(), content.mtime());
        }
        let staged = self.staged.get(step.node()).filter(|_| matches!(step, Step::Put { .. }));
        let mut row = IntentRow::of(plan, step, staged.map(intent_staged))?;
        // What is staged has a key already, whichever step speaks of it.
        if let Some(s) = self.staged.get(&row.node) {
            row.node.clone_from(&s.key);
        } else if let Some(s) = self.placed.get(&row.node) {
            row.node.clone_from(&s.node);
        }
        if let Some(victim) = &mut row.victim {
            if let Some(s) = self.staged.get(&victim.node) {
                (victim.node, victim.fingerprint) = (s.key.clone(), s.fingerprint);
            } else if let Some(s) = self.placed.get(&victim.node) {
                victim.node.clone_from(&s.node);
                (victim.fingerprint.size, victim.fingerprint.mtime) = (s.size, s.mtime);
            }
            if let Some(time) = self.times.get(&victim.node) {
                victim.fingerprint.mtime = *time;
            }
        }
        let leaves_something =
            row.victim.as_ref().is_some_and(|v| !v.kind.is_dir()) || row.operation == Operation::Link;
        if leaves_something {
            row.limbo = staged.map_or(id, |s| s.id).to_string().into_bytes();
        }
        Some(row)
    }
}

fn intent_staged(s: &Staged) -> intent::StagedFile {
    intent::StagedFile {
        name: s.id.to_string().into_bytes(),
        node: s.key.clone(),
        size: s.fingerprint.size,
        mtime: s.fingerprint.mtime,
        given: s.given.clone(),
    }
}
