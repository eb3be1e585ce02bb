//! Who else has to be looked at when a place changes: the planner's pending marks.

use super::change::Flux;
use super::conflict::conflict_bases;
use super::{PAGE, class_of, dirs_at, entries_at, is_live, shown_names, stored_spot};
use crate::id::{EntryId, Name};
use crate::tx::{Result, Tx};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Where a directory is shown.
#[derive(PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) parent: EntryId,
    pub(super) name: Name,
    /// The class of the parent.
    parents: Arc<[EntryId]>,
    /// The other members of its own class.
    pub(super) others: Vec<EntryId>,
}

/// Where a directory is shown now, if it is.
pub(super) fn spot(tx: &mut Tx<'_>, dir: EntryId) -> Result<Option<Spot>> {
    if dir.is_root() || !is_live(tx, dir)? {
        return Ok(None);
    }
    let (parent, name) = stored_spot(tx, dir)?;
    let parents = class_of(tx, parent)?;
    let others = class_of(tx, dir)?.iter().copied().filter(|m| *m != dir).collect();
    Ok(Some(Spot { parent, name, parents, others }))
}

/// Marks what is shown elsewhere since claims at this name changed by `but`.
fn touch(tx: &mut Tx<'_>, class: &[EntryId], name: &Name, but: EntryId) -> Result<()> {
    for x in entries_at(tx, class, name)? {
        if x != but {
            tx.add_pending(x);
        }
    }
    // A real name displaces the same name given to a conflict copy.
    for base in conflict_bases(tx, class, name)? {
        for x in entries_at(tx, class, &base)? {
            tx.add_pending(x);
        }
    }
    Ok(())
}

/// [`touch`] in the class of `parent`. An unknown parent has none.
pub(super) fn touch_below(tx: &mut Tx<'_>, parent: EntryId, name: &Name, but: EntryId) -> Result<()> {
    let class = class_of(tx, parent)?;
    touch(tx, &class, name, but)
}

/// Marks directories that came to life or died, and what their names or unions concern.
pub(super) fn mark_flipped(tx: &mut Tx<'_>, flux: &mut Flux, changed: EntryId) -> Result<()> {
    for (dir, was) in std::mem::take(&mut flux.flipped) {
        if is_live(tx, dir)? == was {
            continue;
        }
        if dir != changed {
            tx.add_pending(dir);
        }
        let Some(s) = (if was { flux.fragile.remove(&dir) } else { spot(tx, dir)? }) else { continue };
        touch(tx, &s.parents, &s.name, dir)?;
        mark_union(tx, dir, s.others, false)?;
    }
    Ok(())
}

/// Marks what concerns a directory that was taken out of the tree and put in again.
pub(super) fn mark_moved(
    tx: &mut Tx<'_>,
    dir: EntryId,
    before: Option<Spot>,
    changed: EntryId,
    orphans: bool,
) -> Result<()> {
    let after = spot(tx, dir)?;
    if before == after {
        return Ok(());
    }
    if dir != changed {
        tx.add_pending(dir);
    }
    if orphans {
        mark_orphans(tx, dir)?;
    }
    let moved = before.is_some();
    for s in before.into_iter().chain(after) {
        touch(tx, &s.parents, &s.name, dir)?;
        if !s.others.is_empty() {
            mark_union(tx, dir, s.others, moved || orphans)?;
        }
    }
    Ok(())
}

/// `dir` came to, or left, the union with `others`: marks the children of the smaller side, those at the same
/// names on the other, and so on below directories that both sides have. `all` = the children of `dir` in any case.
fn mark_union(tx: &mut Tx<'_>, dir: EntryId, others: Vec<EntryId>, all: bool) -> Result<()> {
    let mut seen = BTreeSet::from([dir]);
    let mut todo = vec![(dir, others)];
    while let Some((dir, others)) = todo.pop() {
        let mut other_names = 0;
        for o in &others {
            other_names += tx.dir(*o)?.live_children;
        }
        let walked = match all || tx.dir(dir)?.live_children <= other_names {
            true => vec![dir],
            false => others.clone(),
        };
        let class: Vec<EntryId> = others.iter().copied().chain([dir]).collect();
        for walked in walked {
            each_name(tx, walked, |tx, name, entry| {
                tx.add_pending(entry);
                touch(tx, &class, name, entry)?;
                let theirs = dirs_at(tx, &others, name)?;
                if theirs.is_empty() {
                    return Ok(());
                }
                for d in dirs_at(tx, &[dir], name)? {
                    if seen.insert(d) {
                        todo.push((d, theirs.clone()));
                    }
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Marks the leaves that waited for the directory to become known, and what their other names concern.
fn mark_orphans(tx: &mut Tx<'_>, dir: EntryId) -> Result<()> {
    each_name(tx, dir, |tx, _, leaf| {
        tx.add_pending(leaf);
        for (parent, name) in shown_names(tx, leaf)? {
            touch_below(tx, parent, &name, leaf)?;
        }
        Ok(())
    })
}

/// Calls `f` for each (name, entry) below a directory entry, in order.
fn each_name(
    tx: &mut Tx<'_>,
    dir: EntryId,
    mut f: impl FnMut(&mut Tx<'_>, &Name, EntryId) -> Result<()>,
) -> Result<()> {
    let mut last: Option<(Name, EntryId)> = None;
    loop {
        let page = tx.names_in(dir, last.as_ref().map(|(n, e)| (n, *e)), PAGE)?;
        for (name, entry) in &page {
            f(tx, name, *entry)?;
        }
        last = page.last().cloned();
        if last.is_none() {
            return Ok(());
        }
    }
}
