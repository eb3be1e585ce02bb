//! Makes a disk show the effective tree by the planner's steps, performed strictly.

use crate::disk::{Disk, PARKED};
use crate::site::{Site, is_hidden};
use crate::world::Available;
use driftless_core::intent::{self, IntentRow, Operation, Recovery, Sight, StagedFile};
use driftless_core::plan::{
    At, Outcome, Plan, PlanOptions, Step, Victim, Wait, coming_dirs, lacking_below, plan_entry, record,
};
use driftless_core::tx::{Result as TxResult, Tx};
use driftless_core::{
    Attrs, Bind, Content, Digest, EntryId, Fingerprint, Kind, Name, Node, NodeKey, Wanted, tree,
};
use std::collections::{BTreeSet, HashMap};

/// Directories in each other are not more.
const DEPTH_MAX: usize = 50;

/// `Ok(false)`, and nothing happens, if a content is nowhere to be had.
pub fn show(site: &mut Site, available: &Available) -> Result<bool, String> {
    if !available.has_all_of(&site.own_tree()) {
        return Ok(false);
    }
    // What comes out of where a filter hid it has more in it.
    for _ in 0..DEPTH_MAX {
        let todo = todo(site);
        let (plan, waits) = plan(site, &todo);
        if !waits.is_empty() {
            return Err(format!("the planner waits for {waits:?}"));
        }
        execute(site, &plan, &todo)?;
        site.plan_cursor = site.head();
        if !site.filtered || self::todo(site).is_empty() {
            return Ok(true);
        }
    }
    Err("what is to be shown does not end".into())
}

/// Plans and does only some of what is to be done: others wait for contents, or their turn.
pub fn show_some(site: &mut Site, available: &Available, skip: usize, count: usize) -> Result<(), String> {
    let all = todo(site);
    let some: Vec<EntryId> = all.iter().cycle().skip(skip).take(count.min(all.len())).copied().collect();
    let (plan, waits) = plan(site, &some);
    if !waits.is_empty() {
        return Ok(()); // their turn comes with what they wait for
    }
    let needs = |s: &Step| match s {
        Step::Put { content, .. } => !available.contains(&content.identity()),
        _ => false,
    };
    if plan.steps.iter().any(needs) {
        return Ok(());
    }
    execute(site, &plan, &some)
}

/// What the planner has to look at.
pub(crate) fn todo(site: &Site) -> Vec<EntryId> {
    site.read(|tx| {
        let mut todo = tx.pending(usize::MAX)?;
        todo.extend(tx.feed_after(site.plan_cursor, usize::MAX)?.into_iter().map(|r| r.1));
        Ok(todo)
    })
}

fn plan(site: &Site, todo: &[EntryId]) -> (Plan, Vec<Wait>) {
    let skip = |path: &[Name], _: bool| is_hidden(path);
    let options = PlanOptions { skip: if site.filtered { Some(&skip) } else { None } };
    site.read(|tx| {
        let mut plan = Plan::new();
        let mut waits = Vec::new();
        for id in todo {
            waits.extend(plan_entry(tx, *id, &mut plan, &options)?);
        }
        Ok((plan, waits))
    })
}

/// A plan whose records a crash may take back: its steps as they were planned, and the inodes that the first of them made.
pub struct OpenPlan {
    pub steps: Vec<Step>,
    pub staged: Vec<Option<Outcome>>,
}

/// Performs a plan and records it. What the steps are is durable before the first of them.
fn execute(site: &mut Site, plan: &Plan, done: &[EntryId]) -> Result<(), String> {
    if plan.steps.is_empty() && site.disk.touched.is_empty() {
        site.tx(|tx| {
            done.iter().for_each(|id| tx.remove_pending(*id));
            Ok(())
        });
        return Ok(());
    }
    site.harden();
    let mut disk = site.disk.clone();
    // Steps move the times of directories to where no state has them.
    disk.now.sec = 1 << 40;
    let mut real = HashMap::new();
    let (mut staged, mut states, mut coming) = (Vec::new(), Vec::new(), Vec::new());
    let filtered = site.filtered;
    site.tx(|tx| {
        for step in &plan.steps {
            let mut step = step.clone();
            step.resolve(&real);
            step.refresh(tx)?;
            let outcome = match perform(&mut disk, &step) {
                Ok(outcome) => outcome,
                Err(why) => return Ok(Err(format!("{why} at {step:?}\nof {:#?}", plan.steps))),
            };
            if let Some(o) = &outcome {
                real.insert(step.node().clone(), o.node.clone());
            }
            step.resolve(&real);
            if filtered {
                coming.extend(coming_dirs(tx, &step)?);
            }
            record(tx, &step, outcome.as_ref())?;
            staged.push(outcome);
            states.push(disk.clone());
        }
        restore_dir_times(tx, &mut disk)?;
        for id in done {
            tx.remove_pending(*id);
        }
        for id in lacking_below(tx, &coming, usize::MAX)?.into_iter().flatten() {
            tx.add_pending(id);
        }
        Ok(Ok(()))
    })?;
    site.disk = disk;
    site.note_states(states);
    site.open_plans.push(OpenPlan { steps: plan.steps.clone(), staged });
    Ok(())
}

/// Begins a plan and does the first `count` steps, of which nothing is recorded. False if there are not so many.
pub fn begin(site: &mut Site, available: &Available, count: usize) -> Result<bool, String> {
    let (plan, _) = plan(site, &todo(site));
    let needs = |s: &Step| match s {
        Step::Put { content, .. } => !available.contains(&content.identity()),
        _ => false,
    };
    if plan.steps.len() < count || plan.steps.iter().any(needs) {
        return Ok(false);
    }
    site.harden();
    let mut disk = site.disk.clone();
    disk.now.sec = 1 << 40;
    let mut real = HashMap::new();
    let (mut staged, mut states) = (Vec::new(), Vec::new());
    site.read(|tx| {
        for step in &plan.steps[..count] {
            let mut step = step.clone();
            step.resolve(&real);
            step.refresh(tx)?;
            let outcome = match perform(&mut disk, &step) {
                Ok(outcome) => outcome,
                Err(why) => return Ok(Err(format!("{why} at {step:?}\nof {:#?}", plan.steps))),
            };
            if let Some(o) = &outcome {
                real.insert(step.node().clone(), o.node.clone());
            }
            step.resolve(&real);
            record(tx, &step, outcome.as_ref())?;
            staged.push(outcome);
            states.push(disk.clone());
        }
        Ok(Ok(()))
    })?;
    site.disk = disk;
    site.note_states(states);
    site.open_plans.push(OpenPlan { steps: plan.steps, staged });
    Ok(true)
}

/// After a crash: says by the recovery table which steps of the plans that were begun are done, and records those. Gives
/// the contents that were placed in directories which were moved before they were recorded: nobody can tell whose
/// these directories are, so that they are new, with all that is in them.
pub fn recover(site: &mut Site) -> Result<Vec<Digest>, String> {
    let mut adrift = Vec::new();
    let mut plans = std::mem::take(&mut site.open_plans);
    #[cfg(feature = "mutants")]
    if driftless_core::mutant::is_planted(driftless_core::mutant::Mutant::NoPlanRecord) {
        plans.clear();
    }
    plans.retain(|p| !p.steps.is_empty());
    let mut disk = site.disk.clone();
    site.tx(|tx| {
        for open in &plans {
            let mut real = HashMap::new();
            let mut concerned = BTreeSet::new();
            for (k, step) in open.steps.iter().enumerate() {
                let mut step = step.clone();
                step.resolve(&real);
                let made = open.staged.get(k).cloned().flatten();
                if let Step::Put { at, content, entry, .. } = &step
                    && tx.node(&at.dir)?.is_none()
                {
                    adrift.push(content.identity());
                    concerned.insert(*entry);
                    continue;
                }
                if let (Step::Put { entry, .. }, Some(made)) = (&step, &made)
                    && tx.node(&made.node)?.is_some()
                {
                    // Placed, and recorded where it is now.
                    real.insert(step.node().clone(), made.node.clone());
                    concerned.insert(*entry);
                    continue;
                }
                let outcome = match is_overtaken(tx, &disk, open, k, &step)? {
                    true => Some(None),
                    false => done_as(tx, &mut disk, &step, made)?,
                };
                // Also what was done: what it was to come with may not have been.
                concerned.extend(driftless_core::plan::concerned(tx, &step)?);
                let Some(outcome) = outcome else { continue };
                record_parked_before(tx, &open.steps[..k], &step, &real)?;
                if !driftless_core::plan::stands(tx, &step)? {
                    continue;
                }
                step.refresh(tx)?;
                if let Some(o) = &outcome {
                    real.insert(step.node().clone(), o.node.clone());
                }
                step.resolve(&real);
                record(tx, &step, outcome.as_ref())?;
                if let Step::Park { node, .. } = &step {
                    crate::power::note_times(tx, &disk, node)?;
                }
            }
            concerned.into_iter().for_each(|id| tx.add_pending(id));
        }
        forget_ghosts(tx, &disk)?;
        restore_dir_times(tx, &mut disk)
    });
    site.disk = disk;
    Ok(adrift)
}

/// What is recorded as out of the way and does not exist any more had been put back, and a user removed or replaced it there.
fn forget_ghosts(tx: &mut Tx<'_>, disk: &Disk) -> TxResult<()> {
    let Some(dir) = NodeKey::new(Plan::PARKED) else { return Ok(()) };
    for (name, place) in tx.places_in(&dir, None, usize::MAX)? {
        if disk.inodes.contains_key(&Disk::ino(&place.node)) {
            continue;
        }
        let kind = tx.node_must(&place.node)?.kind;
        let victim = Victim { node: place.node, kind, fingerprint: Fingerprint::default() };
        record(tx, &Step::Remove { at: At { dir: dir.clone(), name }, victim }, None)?;
    }
    Ok(())
}

/// What a step took from out of the way had been taken there, though nothing shows it any more: the directory it was
/// taken from may have gone since.
fn record_parked_before(
    tx: &mut Tx<'_>,
    before: &[Step],
    step: &Step,
    real: &HashMap<NodeKey, NodeKey>,
) -> TxResult<()> {
    let Step::Unpark { node: back, .. } = step else { return Ok(()) };
    let parked = before.iter().rev().find(|s| matches!(s, Step::Park { node, .. } if node == back));
    let Some(mut parked) = parked.cloned() else { return Ok(()) };
    parked.resolve(real);
    if let Step::Park { from, .. } = &parked
        && tx.place(&from.dir, &from.name)?.is_some_and(|place| place.node == *back)
    {
        record(tx, &parked, None)?;
    }
    Ok(())
}

/// True if what was to be moved or removed has gone for sure: what a later step put or made, or moved to where something was removed, stands where it
/// was. If it is not where it went, a user has removed it there, or a later step has moved it on.
fn is_overtaken(tx: &mut Tx<'_>, disk: &Disk, open: &OpenPlan, k: usize, step: &Step) -> TxResult<bool> {
    let (Step::Move { from, .. } | Step::Park { from, .. } | Step::Remove { at: from, .. }) = step else {
        return Ok(false);
    };
    let Some(there) = ino(disk, &from.dir).ok().and_then(|dir| disk.get(dir, &from.name)) else {
        return Ok(false);
    };
    let key = Disk::key(there);
    let is_new_dir = disk.is_dir(there) && tx.node(&key)?.is_none();
    let stands_there = |(later, made): (&Step, &Option<Outcome>)| match later {
        Step::Put { at, .. } => at == from && made.as_ref().is_some_and(|made| made.node == key),
        Step::MakeDir { at, .. } => at == from && is_new_dir,
        Step::Move { to, node, .. } | Step::Unpark { to, node, .. } => {
            to == from && *node == key && matches!(step, Step::Remove { .. })
        }
        _ => false,
    };
    Ok(open.steps.iter().zip(&open.staged).skip(k + 1).any(stands_there))
}

/// What a step gave, if the disk shows that it was done.
fn done_as(
    tx: &mut Tx<'_>,
    disk: &mut Disk,
    step: &Step,
    made: Option<Outcome>,
) -> TxResult<Option<Option<Outcome>>> {
    let staged = made.as_ref().filter(|_| matches!(step, Step::Put { .. })).map(|o| StagedFile {
        name: b"staged".to_vec(),
        node: o.node.clone(),
        size: o.fingerprint.size,
        mtime: o.fingerprint.mtime,
        given: o.given.clone(),
    });
    let Some(row) = IntentRow::of(1, step, staged) else {
        // Only what the disk shows as it was asked for was done, by us as far as anybody can tell. What is a matter of
        // records alone is planned again.
        return Ok(match step {
            Step::SetAttrs { node, attrs, .. } => {
                let inode = ino(disk, node).ok().filter(|inode| has_attrs(disk, *inode, attrs));
                inode.map(|inode| Some(outcome(disk, inode)))
            }
            _ => None,
        });
    };
    let found = |at: &At| {
        let inode = ino(disk, &at.dir).ok().and_then(|dir| disk.get(dir, &at.name))?;
        let looked = disk.looked(inode);
        Some((looked.key, looked.fingerprint))
    };
    let sight = |at: &At| {
        let found = found(at);
        row.sight(found.as_ref().map(|(k, f)| (k, f)))
    };
    let target = sight(&row.at);
    let replaces = row.victim.is_some();
    let verdict = match (row.operation, &row.source) {
        (Operation::Put, _) => {
            // A staged file that is not in staging any more was placed.
            let placed = made.is_some();
            intent::recover(if placed { Sight::Nothing } else { Sight::Ours }, target, replaces, placed)
        }
        (Operation::Move, Some(from)) => {
            // It moved at once: what is at the name it left came there later, by another step or a user.
            let source = if target == Sight::Ours { Sight::Nothing } else { sight(from) };
            intent::recover(source, target, replaces, false)
        }
        (Operation::MakeDir, _) => {
            let unknown = match found(&row.at) {
                Some((key, _)) => tx.node(&key)?.is_none() && disk.is_dir(Disk::ino(&key)),
                None => false,
            };
            let target = if unknown { Sight::Ours } else { target };
            intent::recover_in_place(row.operation, target, replaces, false)
        }
        _ => intent::recover_in_place(row.operation, target, replaces, false),
    };
    match (verdict, row.operation) {
        // As it was staged: what a user did to it since is for the crawl to see.
        (Recovery::Done | Recovery::UserChanged, Operation::Put) => Ok(Some(made)),
        (Recovery::Done, Operation::MakeDir) => {
            let Some((key, _)) = found(&row.at) else { return Ok(None) };
            if let Step::MakeDir { attrs, .. } = step {
                set_attrs(disk, Disk::ino(&key), attrs);
            }
            Ok(Some(Some(outcome(disk, Disk::ino(&key)))))
        }
        (Recovery::Done, _) => Ok(Some(None)),
        _ => Ok(None),
    }
}

fn has_attrs(disk: &Disk, inode: u64, attrs: &Attrs) -> bool {
    let is = &disk.inodes[&inode];
    is.mode == attrs.mode && attrs.dir_mtime.is_none_or(|t| !is.kind.is_dir() || is.mtime == t)
}

/// Directories that steps were done in get the times that their states say.
pub(crate) fn restore_dir_times(tx: &mut Tx<'_>, disk: &mut Disk) -> TxResult<()> {
    for dir in std::mem::take(&mut disk.touched) {
        let Some(node) = tx.node(&Disk::key(dir))? else { continue };
        let Bind::Dir(members) = &node.bind else { continue };
        if let (Some(inode), Some(mtime)) = (disk.inodes.get_mut(&dir), tree::dir_time(tx, members)?) {
            inode.mtime = mtime;
            let looked = disk.looked(dir);
            let mut restored = Node { fingerprint: looked.fingerprint, ..(*node).clone() };
            if restored.given.dir_mtime != looked.attrs.dir_mtime {
                // The state's time came by this way and may go back to the one that was applied last.
                restored.wanted = Wanted::UNKNOWN;
            }
            restored.given.dir_mtime = looked.attrs.dir_mtime;
            tx.put_node(&looked.key, restored);
        }
    }
    Ok(())
}

fn ino(disk: &Disk, key: &NodeKey) -> Result<u64, String> {
    let ino = if key.as_bytes() == Plan::PARKED { PARKED } else { Disk::ino(key) };
    if disk.inodes.contains_key(&ino) { Ok(ino) } else { Err(format!("no inode {ino}")) }
}

pub(crate) fn perform(disk: &mut Disk, step: &Step) -> Result<Option<Outcome>, String> {
    match step {
        Step::MakeDir { at, attrs, .. } => make(disk, at, Kind::Dir, None, attrs, None).map(Some),
        Step::Put { at, kind, content, attrs, copy, victim, .. } => {
            if let Some(from) = copy {
                let from = ino(disk, from)?;
                let holds = disk.inodes[&from].content.as_ref().map(Content::identity);
                if holds != Some(content.identity()) {
                    return Err("the copy is another".into());
                }
            }
            make(disk, at, *kind, Some(content.clone()), attrs, victim.as_ref()).map(Some)
        }
        Step::Link { from, to, node, victim, .. } => {
            let inode = expect(disk, from, node)?;
            let dir = make_room(disk, to, victim.as_ref())?;
            disk.put(dir, &to.name, inode);
            Ok(None)
        }
        Step::Move { from, to, node, victim, .. } => shift(disk, from, to, node, victim.as_ref()),
        Step::Park { from, node, .. } => shift(disk, from, &Plan::parked(node), node, None),
        Step::Unpark { to, node, victim, .. } => shift(disk, &Plan::parked(node), to, node, victim.as_ref()),
        Step::Remove { at, victim } => {
            let inode = expect(disk, at, &victim.node)?;
            if disk.is_dir(inode) && !disk.is_empty(inode) {
                return Err("not empty".into());
            }
            let dir = ino(disk, &at.dir)?;
            disk.retire(dir, &at.name);
            Ok(None)
        }
        Step::SetAttrs { node, attrs, .. } => {
            let inode = ino(disk, node)?;
            set_attrs(disk, inode, attrs);
            Ok(Some(outcome(disk, inode)))
        }
        Step::Rebind { at, node, .. } => expect(disk, at, node).map(|_| None),
    }
}

fn expect(disk: &Disk, at: &At, node: &NodeKey) -> Result<u64, String> {
    let inode = ino(disk, node)?;
    match disk.get(ino(disk, &at.dir)?, &at.name) {
        Some(i) if i == inode => Ok(inode),
        other => Err(format!("{other:?} instead of {inode}")),
    }
}

/// The directory, in which the name is free now.
fn make_room(disk: &mut Disk, at: &At, victim: Option<&Victim>) -> Result<u64, String> {
    let dir = ino(disk, &at.dir)?;
    match (disk.get(dir, &at.name), victim) {
        (None, None) => {}
        (Some(_), Some(v)) => {
            let inode = expect(disk, at, &v.node)?;
            if disk.is_dir(inode) {
                return Err("the victim is a directory".into());
            }
            disk.retire(dir, &at.name);
        }
        (there, _) => return Err(format!("{there:?} is not what was expected")),
    }
    Ok(dir)
}

fn shift(
    disk: &mut Disk,
    from: &At,
    to: &At,
    node: &NodeKey,
    victim: Option<&Victim>,
) -> Result<Option<Outcome>, String> {
    let inode = expect(disk, from, node)?;
    let (from_dir, to_dir) = (ino(disk, &from.dir)?, ino(disk, &to.dir)?);
    if disk.is_dir(inode) && disk.is_below(to_dir, inode) {
        return Err("below itself".into());
    }
    make_room(disk, to, victim)?;
    disk.rename((from_dir, &from.name), (to_dir, &to.name));
    Ok(None)
}

fn make(
    disk: &mut Disk,
    at: &At,
    kind: Kind,
    content: Option<Content>,
    attrs: &Attrs,
    victim: Option<&Victim>,
) -> Result<Outcome, String> {
    let dir = make_room(disk, at, victim)?;
    let inode = disk.new_inode(kind, content, attrs.mode);
    set_attrs(disk, inode, attrs);
    disk.put(dir, &at.name, inode);
    Ok(outcome(disk, inode))
}

fn set_attrs(disk: &mut Disk, inode: u64, attrs: &Attrs) {
    let inode = disk.inodes.get_mut(&inode).unwrap();
    inode.mode = attrs.mode;
    inode.mtime = attrs.dir_mtime.unwrap_or(inode.mtime);
}

fn outcome(disk: &Disk, inode: u64) -> Outcome {
    let looked = disk.looked(inode);
    Outcome { node: looked.key, fingerprint: looked.fingerprint, given: looked.attrs }
}
