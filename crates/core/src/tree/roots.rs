//! Which directories reach the root by stored parents, and the repair of those that do not: the parents
//! in a cycle, or below an unknown one (model-findings 3.3, 1 and G8).

use super::{DEPTH_MAX, dir_row, endless, link_present, stored_parent};
use crate::entry::Entry;
use crate::id::{EntryId, Stamp};
use crate::mutant::mutant;
use crate::tx::{Result, Tx};
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};

/// Updates the stored parents and the set of unrooted directories for the new state of a directory.
pub(super) fn update_roots(tx: &mut Tx<'_>, old: Option<&Entry>, new: &Entry) -> Result<()> {
    let (id, Some(parent)) = (new.id, stored_parent(new)) else { return Ok(()) };
    let old_parent = old.and_then(stored_parent);
    if old_parent == Some(parent) {
        return Ok(());
    }
    let was_rooted = old_parent.is_some() && !tx.is_unrooted(id)?;
    if let Some(p) = old_parent {
        tx.remove_dir_kid(p, id);
    }
    tx.add_dir_kid(parent, id);
    // No rooted directory can be below one that was unknown: its parent's word is enough then.
    let rooted = match old_parent {
        None => known_rooted(tx, parent)?,
        Some(_) => reaches_root(tx, parent, id)?,
    };
    if rooted != was_rooted {
        for x in stored_subtree(tx, id)? {
            tx.set_unrooted(x, !rooted);
        }
    } else if !rooted {
        tx.set_unrooted(id, true);
    }
    Ok(())
}

/// True if the directory is known and reaches the root by stored parents.
fn known_rooted(tx: &mut Tx<'_>, dir: EntryId) -> Result<bool> {
    Ok(dir.is_root() || (dir_row(tx, dir)?.is_some() && !tx.is_unrooted(dir)?))
}

/// True if the stored parents from `from` on reach the root without meeting `through`.
fn reaches_root(tx: &mut Tx<'_>, from: EntryId, through: EntryId) -> Result<bool> {
    let trouble = tx.any_unrooted()?;
    let mut at = from;
    for _ in 0..DEPTH_MAX {
        if at.is_root() {
            return Ok(true);
        }
        if at == through || (trouble && tx.is_unrooted(at)?) {
            return Ok(false);
        }
        match dir_row(tx, at)?.and_then(|row| stored_parent(&row.entry)) {
            Some(parent) => at = parent,
            None => return Ok(false),
        }
    }
    Err(endless())
}

/// `top` and all directories below it by stored parents.
fn stored_subtree(tx: &mut Tx<'_>, top: EntryId) -> Result<BTreeSet<EntryId>> {
    let mut seen = BTreeSet::new();
    let mut todo = vec![top];
    while let Some(x) = todo.pop() {
        if seen.insert(x) {
            todo.extend(tx.dir_kids(x)?);
        }
    }
    Ok(seen)
}

/// The repaired parents (model-findings 3.3, 1): while some directory is not rooted, the greatest
/// (stamp, directory, parent) of all histories, where the parent is rooted and present, re-attaches one.
/// `new` stands for the state of its entry, `dir_kids` and `unrooted` are up to date.
pub(super) fn repairs(tx: &mut Tx<'_>, new: &Entry) -> Result<BTreeMap<EntryId, EntryId>> {
    let mut unrooted: BTreeSet<EntryId> = tx.unrooted()?.into_iter().collect();
    if mutant!(CycleNotRepaired) {
        return Ok(BTreeMap::new());
    }
    let mut ready = BinaryHeap::new();
    let mut waiting: HashMap<EntryId, Vec<(Stamp, EntryId, EntryId)>> = HashMap::new();
    for &x in &unrooted {
        ready.push((Stamp::MIN, x, EntryId::ROOT));
        for (parent, stamp) in history(tx, x, new)? {
            let candidate = (stamp, x, parent);
            if unrooted.contains(&parent) {
                waiting.entry(parent).or_default().push(candidate);
            } else if is_candidate(tx, parent, new)? {
                ready.push(candidate);
            }
        }
    }
    let mut out = BTreeMap::new();
    while let Some((_, x, parent)) = ready.pop() {
        if !unrooted.contains(&x) {
            continue;
        }
        out.insert(x, parent);
        let mut todo = vec![x];
        while let Some(y) = todo.pop() {
            if !unrooted.remove(&y) {
                continue;
            }
            todo.extend(tx.dir_kids(y)?);
            if is_candidate(tx, y, new)? {
                ready.extend(waiting.remove(&y).unwrap_or_default());
            }
        }
    }
    Ok(out)
}

fn history(tx: &mut Tx<'_>, dir: EntryId, new: &Entry) -> Result<Vec<(EntryId, Stamp)>> {
    if dir == new.id {
        return Ok(new.hist.clone());
    }
    Ok(dir_row(tx, dir)?.map(|row| row.entry.hist.clone()).unwrap_or_default())
}

/// True if a repair may hang a directory here once this is rooted: a present directory or the root.
fn is_candidate(tx: &mut Tx<'_>, dir: EntryId, new: &Entry) -> Result<bool> {
    if dir == new.id {
        return Ok(new.dir_link().is_some_and(|l| l.present()));
    }
    Ok(dir.is_root() || link_present(tx, dir)?)
}
