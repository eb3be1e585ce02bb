//! Changes of the tree: one new state in, names and counters up to date, others marked pending.

use super::mark::{Spot, mark_flipped, mark_moved, spot, touch_below};
use super::roots::{repairs, update_roots};
use super::{Received, is_live, link_present, stored_spot};
use crate::codec::well_formed;
use crate::entry::Entry;
use crate::id::{EntryId, Name};
use crate::mutant::mutant;
use crate::tx::{EntryRow, Error, N_MAX, Result, Tx};
use crate::vv::VersionVector;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Replicas that one index takes from its peers. Each lost index makes one more; row keys have room for 65,534.
const REPLICAS_MAX: usize = 16_384;

/// Stores `new` as the state of its entry at feed position `n` and brings names, counters, unrooted
/// set and repairs up to date. Keeps the row's `bound`. Entries elsewhere whose shown place changes by
/// this (other claimants of a name, members of a union, directories that come to life or die, what a repair moves) are
/// marked pending for the planner; the entry itself is not, since the feed names it.
///
/// When directories become one (a union forms or a member leaves it), the children of the member that moved are
/// marked, and of the members that stayed only those at names that both have.
pub fn put_state(tx: &mut Tx<'_>, new: Entry, n: u64) -> Result<()> {
    let old = tx.entry(new.id)?;
    if old.as_ref().is_some_and(|o| o.entry.kind.is_dir() != new.kind.is_dir()) {
        return Err(Error::Inconsistent(format!("entry {} changes its kind", new.id)));
    }
    if new.id.is_root() {
        // It is always live, always there, below nothing: only its attributes can change.
        let bound = old.map(|o| o.bound.clone()).unwrap_or_default();
        return tx.put_entry(EntryRow { n, bound, entry: new });
    }
    if new.kind.is_dir() { put_directory(tx, old, new, n) } else { put_leaf(tx, old, new, n) }
}

/// Merges a state that came from a peer. `knowledge` is ours (change dots).
pub fn receive(tx: &mut Tx<'_>, incoming: &Entry, knowledge: &VersionVector) -> Result<Received> {
    if let Some(why) = refusal(tx, incoming) {
        return Ok(Received::Refused(why));
    }
    let Some(row) = tx.entry(incoming.id)? else {
        if knowledge.covers_all(&incoming.ctx) && !mutant!(CoveredNotIgnored) {
            return Ok(Received::Ignored);
        }
        let n = tx.take_n();
        put_state(tx, incoming.clone(), n)?;
        return Ok(Received::Changed);
    };
    if row.entry.kind != incoming.kind {
        return Ok(Received::Refused("the entry has another kind here"));
    }
    let mut merged = row.entry.clone();
    if !merged.merge(incoming) {
        return Ok(Received::Unchanged);
    }
    if !well_formed(&merged) {
        return Ok(Received::Refused("the states do not fit together"));
    }
    let n = tx.take_n();
    put_state(tx, merged, n)?;
    Ok(Received::Changed)
}

/// Takes a collected tombstone out of the index. False, and nothing is done, if it is no tombstone (it is
/// shown, or waits for its parent), or if directories (dead ones too) still have it as parent.
pub fn remove_state(tx: &mut Tx<'_>, id: EntryId) -> Result<bool> {
    let Some(row) = tx.entry(id)? else { return Ok(false) };
    if id.is_root() {
        return Ok(false);
    }
    if let Some(link) = row.entry.dir_link().filter(|_| row.entry.kind.is_dir()) {
        if is_live(tx, id)? || !tx.dir_kids(id)?.is_empty() {
            return Ok(false);
        }
        // An absent directory is no candidate of any repair: no other one can change.
        tx.remove_dir_kid(link.at.parent, id);
        tx.set_unrooted(id, false);
        tx.put_dir(id, Default::default());
    } else if !claimed_places(&row.entry).is_empty() {
        return Ok(false);
    }
    tx.delete_entry(id)?;
    Ok(true)
}

/// Why a state from a peer cannot be taken, whatever we hold.
fn refusal(tx: &Tx<'_>, e: &Entry) -> Option<&'static str> {
    let fits = |id: EntryId| id.0.n <= N_MAX;
    if e.id.0.n == 0 && !e.id.is_root() {
        return Some("no entry can have this id");
    }
    if !fits(e.id) || !e.links.iter().all(|l| fits(l.at.parent)) || !e.hist.iter().all(|h| fits(h.0)) {
        return Some("an id is out of range");
    }
    if !well_formed(e) {
        return Some("the state is malformed");
    }
    if too_many_replicas(tx, e) {
        return Some("too many replicas");
    }
    None
}

/// Row keys hold replicas by number: a peer must not be able to use the numbers up.
fn too_many_replicas(tx: &Tx<'_>, e: &Entry) -> bool {
    let known = tx.replicas();
    let gone: usize = e.links.iter().map(|l| l.gone.len() + 5).sum();
    let most = e.ctx.len() + e.removed.len() + gone + 2 * e.data.len() + 2 * e.hist.len() + 3;
    if known.replicas().len() + most <= REPLICAS_MAX {
        return false;
    }
    let mut all: BTreeSet<_> = e.ctx.iter().chain(e.removed.iter()).map(|x| x.0).collect();
    all.extend([e.id.0.replica, e.meta.0.replica]);
    all.extend(e.dir_time.map(|t| t.0.replica));
    all.extend(e.data.iter().flat_map(|v| [v.dot.replica, v.stamp.replica]));
    all.extend(e.hist.iter().flat_map(|h| [h.0.0.replica, h.1.replica]));
    for l in &e.links {
        all.extend([l.id.0.replica, l.at.stamp.replica, l.at.dot.replica]);
        all.extend([l.at.parent.0.replica, l.at.holds.replica]);
        all.extend(l.gone.iter().map(|x| x.0));
    }
    let fresh = all.iter().filter(|r| known.find(**r).is_none()).count();
    fresh > 0 && known.replicas().len() + fresh > REPLICAS_MAX
}

// ----- leaves

fn put_leaf(tx: &mut Tx<'_>, old: Option<Arc<EntryRow>>, new: Entry, n: u64) -> Result<()> {
    let id = new.id;
    let same = |o: &EntryRow| {
        o.entry.data == new.data && o.entry.links == new.links && o.entry.removed == new.removed
    };
    if let Some(o) = old.as_ref().filter(|o| same(o)) {
        return tx.put_entry(EntryRow { n, bound: o.bound.clone(), entry: new });
    }
    let before = old.as_ref().map(|o| claimed_places(&o.entry)).unwrap_or_default();
    let after = claimed_places(&new);
    let goes: Places = before.iter().filter(|p| !after.contains(p)).cloned().collect();
    let comes: Places = after.iter().filter(|p| !before.contains(p)).cloned().collect();
    for (parent, name) in &goes {
        touch_below(tx, *parent, name, id)?;
    }
    let bound = old.as_ref().map(|o| o.bound.clone()).unwrap_or_default();
    tx.put_entry(EntryRow { n, bound, entry: new })?;
    let flux = &mut Flux::default();
    for (parent, _) in &goes {
        note_fragile(tx, *parent, flux)?;
    }
    // First what comes, then what goes: directories kept by either never die in between.
    for (parent, name) in &comes {
        tx.add_name(*parent, name, id);
        adjust(tx, *parent, true, flux)?;
    }
    for (parent, name) in &goes {
        tx.remove_name(*parent, name, id);
        adjust(tx, *parent, false, flux)?;
    }
    forget_classes(tx, &[], &[], flux)?;
    mark_flipped(tx, flux, id)?;
    for (parent, name) in &after {
        touch_below(tx, *parent, name, id)?;
    }
    Ok(())
}

/// (parent, name) pairs in order: one, nearly always.
type Places = SmallVec<[(EntryId, Name); 1]>;

/// The (parent, name) pairs of a leaf's shown links, known parents or not.
fn claimed_places(leaf: &Entry) -> Places {
    let mut places: Places = leaf.shown_links().iter().map(|l| (l.at.parent, l.at.name.clone())).collect();
    places.sort_unstable();
    places.dedup();
    places
}

// ----- directories

fn put_directory(tx: &mut Tx<'_>, old: Option<Arc<EntryRow>>, new: Entry, n: u64) -> Result<()> {
    let Some(link) = new.dir_link() else {
        return Err(Error::Inconsistent(format!("directory {} has no name", new.id)));
    };
    let bound = old.as_ref().map(|o| o.bound.clone()).unwrap_or_default();
    let trouble = tx.any_unrooted()?;
    let unmoved = old.as_ref().and_then(|o| o.entry.dir_link().map(|l| (l, l.present()))).is_some_and(
        |(l, present)| {
            l.at.parent == link.at.parent && l.at.name == link.at.name && present == link.present()
        },
    );
    if unmoved && !trouble {
        return tx.put_entry(EntryRow { n, bound, entry: new });
    }
    let mut suspects: BTreeSet<EntryId> =
        if trouble { tx.unrooted()?.into_iter().collect() } else { BTreeSet::new() };
    let orphans = old.is_none() && tx.dir(new.id)?.live_children > 0;
    update_roots(tx, old.as_ref().map(|o| &o.entry), &new)?;
    let repaired = if trouble || tx.any_unrooted()? { repairs(tx, &new)? } else { BTreeMap::new() };
    suspects.extend(repaired.keys());
    suspects.remove(&new.id);
    let mut movers = vec![new.id];
    for x in suspects {
        if tx.dir(x)?.repaired != repaired.get(&x).copied() {
            movers.push(x);
        }
    }
    let id = new.id;
    let flux = &mut Flux::default();
    let before = detach(tx, &movers, flux)?;
    tx.put_entry(EntryRow { n, bound, entry: new })?;
    attach(tx, &movers, &repaired, flux)?;
    forget_classes(tx, &movers, &before, flux)?;
    mark_flipped(tx, flux, id)?;
    for (x, before) in movers.into_iter().zip(before) {
        mark_moved(tx, x, before, id, orphans && x == id)?;
    }
    Ok(())
}

/// Takes the directories out of the tree and says where they were shown.
fn detach(tx: &mut Tx<'_>, movers: &[EntryId], flux: &mut Flux) -> Result<Vec<Option<Spot>>> {
    let mut before = Vec::with_capacity(movers.len());
    for x in movers {
        let spot = spot(tx, *x)?;
        if let Some(s) = &spot {
            note_fragile(tx, s.parent, flux)?;
        }
        before.push(spot);
    }
    flux.detached.extend(movers);
    for (x, spot) in movers.iter().zip(&before) {
        if let Some(s) = spot {
            tx.remove_name(s.parent, &s.name, *x);
            adjust(tx, s.parent, false, flux)?;
        }
    }
    Ok(before)
}

/// Puts the directories into the tree at their new parents.
fn attach(
    tx: &mut Tx<'_>,
    movers: &[EntryId],
    repaired: &BTreeMap<EntryId, EntryId>,
    flux: &mut Flux,
) -> Result<()> {
    for x in movers {
        let mut state = tx.dir(*x)?;
        state.repaired = repaired.get(x).copied();
        tx.put_dir(*x, state);
    }
    for x in movers {
        flux.detached.remove(x);
        if is_live(tx, *x)? {
            let (parent, name) = stored_spot(tx, *x)?;
            tx.add_name(parent, &name, *x);
            adjust(tx, parent, true, flux)?;
        }
    }
    Ok(())
}

/// What one change does to the lives of directories.
#[derive(Default)]
pub(super) struct Flux {
    /// Directories that are out of the tree at the moment: life and death stop at them.
    detached: BTreeSet<EntryId>,
    /// Directories that came to life or died on the way, with what they were before.
    pub(super) flipped: BTreeMap<EntryId, bool>,
    /// Where the directories that may die are shown before.
    pub(super) fragile: BTreeMap<EntryId, Spot>,
}

/// Notes where the directories are shown that may die if `from` loses a child: the absent ones in a row.
fn note_fragile(tx: &mut Tx<'_>, from: EntryId, flux: &mut Flux) -> Result<()> {
    let mut at = from;
    while !flux.fragile.contains_key(&at) && !link_present(tx, at)? {
        let Some(s) = spot(tx, at)? else { break };
        let dir = std::mem::replace(&mut at, s.parent);
        flux.fragile.insert(dir, s);
    }
    Ok(())
}

/// Forgets the classes that are not true any more. Those of other directories than the changed ones can only
/// change where a changed one was, or is, in a union; and nearly none is.
fn forget_classes(tx: &mut Tx<'_>, movers: &[EntryId], before: &[Option<Spot>], flux: &Flux) -> Result<()> {
    let was = before.iter().flatten().chain(flux.fragile.values());
    if was.into_iter().any(|s| !s.others.is_empty()) {
        tx.classes.clear();
        return Ok(());
    }
    let changed: Vec<EntryId> = movers.iter().chain(flux.flipped.keys()).copied().collect();
    for x in &changed {
        tx.classes.remove(x);
    }
    for x in changed {
        if spot(tx, x)?.is_some_and(|s| !s.others.is_empty()) {
            tx.classes.clear();
            return Ok(());
        }
    }
    Ok(())
}

/// One child more or less is shown below `dir`. Goes up as long as that gives life or death.
fn adjust(tx: &mut Tx<'_>, dir: EntryId, more: bool, flux: &mut Flux) -> Result<()> {
    let mut dir = dir;
    loop {
        let was = is_live(tx, dir)?;
        let mut state = tx.dir(dir)?;
        state.live_children = match more {
            true => state.live_children + 1,
            false => state
                .live_children
                .checked_sub(1)
                .ok_or_else(|| Error::Inconsistent(format!("directory {dir} has fewer than no children")))?,
        };
        tx.put_dir(dir, state);
        let held = dir.is_root() || flux.detached.contains(&dir);
        if held || is_live(tx, dir)? == was {
            return Ok(());
        }
        flux.flipped.entry(dir).or_insert(was);
        let (parent, name) = stored_spot(tx, dir)?;
        match more {
            true => tx.add_name(parent, &name, dir),
            false => tx.remove_name(parent, &name, dir),
        }
        dir = parent;
    }
}
