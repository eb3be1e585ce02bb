//! The effective tree: a pure function of all entry states, kept up to date incrementally
//! (design section 4; model-findings 3.3 and 4).
//!
//! What is stored: `names` holds, for each directory *entry*, what is shown below it (leaves with a shown
//! link, live directories) by effective parent, before grouping; `dirs` holds the live-child counters
//! and repaired parents; `unrooted` the directories whose stored parents do not reach the root, and
//! `dir_kids` all directories by stored parent. Everything else (unions, groups, conflict names) is
//! computed where asked, from one name's rows.
//!
//! Invariants between calls, over all entries of the index:
//! - a leaf has a names row for each (parent, name) of [`Entry::shown_links`], known parent or not;
//!   a directory has one, below its effective parent, iff it is live;
//! - `live_children` of a directory is the number of names rows below it;
//! - a directory is live iff its link is present or `live_children > 0`; so all above a live one are live;
//! - effective parents (`repaired`, else the stored one) of all known directories reach the root.
//!
//! The flow of a change: [`put_state`] finds out which directories get another effective parent (nearly
//! always none but the changed one), takes these out of the tree, changes the states, and puts them
//! in again; counters carry life and death up from there. Who else is shown at another place
//! after that is marked pending on the way.

use crate::codec::well_formed;
use crate::entry::{Entry, Version};
use crate::id::{Dot, EntryId, Kind, LinkId, Name, Stamp};
use crate::meta::Digest;
use crate::tx::{EntryRow, Error, N_MAX, Result, Tx};
use crate::vv::VersionVector;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::sync::Arc;

/// What became of a state that came from a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received {
    /// Unknown here, but covered by our knowledge: it was deleted and collected. Dropped.
    Ignored,
    /// Nothing new in it.
    Unchanged,
    /// Merged; the entry is at the end of our feed.
    Changed,
    /// No correct replica makes such a state, or this index could not hold it. Dropped; the reason is for people.
    Refused(&'static str),
}

/// What is shown at one real name of one directory class.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Shown {
    /// Live directories at the name, sorted: one directory, the union of all. Empty = none.
    pub dir: Vec<EntryId>,
    /// Groups of leaves with equal content, greatest rank first. If `dir` is empty the first has the
    /// real name; all others have conflict names.
    pub groups: Vec<Group>,
}

/// Claims of equal content that are shown as one file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    /// The name it is shown under.
    pub name: Name,
    /// True if `name` is a conflict name.
    pub conflict: bool,
    /// Greatest rank first.
    pub claims: Vec<Shares>,
}

/// One claim to a name: (link, version).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shares {
    /// The entry.
    pub entry: EntryId,
    /// Which of its names.
    pub link: LinkId,
    /// Dot of that name's `At`.
    pub name_dot: Dot,
    /// The version.
    pub version: Dot,
    /// Chooses among groups: (max(version stamp, name stamp if present), version stamp, id).
    pub rank: (Stamp, Stamp, EntryId),
    /// True if `version` is not the entry's winner (an extra sibling).
    pub extra: bool,
}

/// Directories nested deeper than this are taken for a loop in a damaged index. Far above what any
/// file system can hold (paths of 4096 bytes reach 2048 levels).
const DEPTH_MAX: usize = 1 << 20;

/// Names read at once when a directory has to be walked through.
const PAGE: usize = 1024;

/// Replicas that one index takes from its peers. Each lost index makes one more; row keys have room for 65,534.
const REPLICAS_MAX: usize = 16_384;

// ----- changes

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
    if new.kind.is_dir() { put_directory(tx, old, new, n) } else { put_leaf(tx, old, new, n) }
}

/// Merges a state that came from a peer. `knowledge` is ours (change dots).
pub fn receive(tx: &mut Tx<'_>, incoming: &Entry, knowledge: &VersionVector) -> Result<Received> {
    if let Some(why) = refusal(tx, incoming) {
        return Ok(Received::Refused(why));
    }
    let Some(row) = tx.entry(incoming.id)? else {
        if knowledge.covers_all(&incoming.ctx) {
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

/// Takes a collected tombstone out of the index. False, and nothing is done, if it is shown, or if
/// directories (dead ones too) still have it as parent.
pub fn remove_state(tx: &mut Tx<'_>, id: EntryId) -> Result<bool> {
    let Some(row) = tx.entry(id)? else { return Ok(false) };
    if !shown_names(tx, id)?.is_empty() {
        return Ok(false);
    }
    if let Some(link) = row.entry.dir_link().filter(|_| row.entry.kind.is_dir()) {
        if !tx.dir_kids(id)?.is_empty() {
            return Ok(false);
        }
        // An absent directory is no candidate of any repair: no other one can change.
        tx.remove_dir_kid(link.at.parent, id);
        tx.set_unrooted(id, false);
        tx.put_dir(id, Default::default());
    } else {
        // Not shown only because its parents are unknown: its rows are there.
        let flux = &mut Flux::default();
        for (parent, name) in claimed_places(&row.entry) {
            tx.remove_name(parent, &name, id);
            adjust(tx, parent, false, flux)?;
        }
    }
    tx.delete_entry(id)?;
    Ok(true)
}

/// Why a state from a peer cannot be taken, whatever we hold.
fn refusal(tx: &Tx<'_>, e: &Entry) -> Option<&'static str> {
    let fits = |id: EntryId| id.0.n <= N_MAX;
    if e.id.is_root() || e.id.0.n == 0 {
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
    let most = e.ctx.len() + e.removed.len() + gone + 2 * e.data.len() + 2 * e.hist.len() + 2;
    if known.replicas().len() + most <= REPLICAS_MAX {
        return false;
    }
    let mut all: BTreeSet<_> = e.ctx.iter().chain(e.removed.iter()).map(|x| x.0).collect();
    all.extend([e.id.0.replica, e.meta.0.replica]);
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
    for (parent, name) in before.difference(&after) {
        touch_below(tx, *parent, name, id)?;
    }
    let bound = old.as_ref().map(|o| o.bound.clone()).unwrap_or_default();
    tx.put_entry(EntryRow { n, bound, entry: new })?;
    let flux = &mut Flux::default();
    for (parent, _) in before.difference(&after) {
        note_fragile(tx, *parent, flux)?;
    }
    // First what comes, then what goes: directories kept by either never die in between.
    for (parent, name) in after.difference(&before) {
        tx.add_name(*parent, name, id);
        adjust(tx, *parent, true, flux)?;
    }
    for (parent, name) in before.difference(&after) {
        tx.remove_name(*parent, name, id);
        adjust(tx, *parent, false, flux)?;
    }
    mark_flipped(tx, flux, id)?;
    for (parent, name) in &after {
        touch_below(tx, *parent, name, id)?;
    }
    Ok(())
}

/// The (parent, name) pairs of a leaf's shown links, known parents or not.
fn claimed_places(leaf: &Entry) -> BTreeSet<(EntryId, Name)> {
    leaf.shown_links().iter().map(|l| (l.at.parent, l.at.name.clone())).collect()
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
    tx.classes.clear();
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
            tx.classes.clear();
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
struct Flux {
    /// Directories that are out of the tree at the moment: life and death stop at them.
    detached: BTreeSet<EntryId>,
    /// Directories that came to life or died on the way, with what they were before.
    flipped: BTreeMap<EntryId, bool>,
    /// Where the directories that may die are shown before.
    fragile: BTreeMap<EntryId, Spot>,
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
        tx.classes.clear();
        dir = parent;
    }
}

/// Updates the stored parents and the set of unrooted directories for the new state of a directory.
fn update_roots(tx: &mut Tx<'_>, old: Option<&Entry>, new: &Entry) -> Result<()> {
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
fn repairs(tx: &mut Tx<'_>, new: &Entry) -> Result<BTreeMap<EntryId, EntryId>> {
    let mut unrooted: BTreeSet<EntryId> = tx.unrooted()?.into_iter().collect();
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

// ----- who else has to be looked at

/// Where a directory is shown.
#[derive(PartialEq, Eq)]
struct Spot {
    parent: EntryId,
    name: Name,
    /// The class of the parent.
    parents: Vec<EntryId>,
    /// The other members of its own class.
    others: Vec<EntryId>,
}

/// Where a directory is shown now, if it is.
fn spot(tx: &mut Tx<'_>, dir: EntryId) -> Result<Option<Spot>> {
    if dir.is_root() || !is_live(tx, dir)? {
        return Ok(None);
    }
    let (parent, name) = stored_spot(tx, dir)?;
    let parents = class_of(tx, parent)?;
    let others = class_of(tx, dir)?.into_iter().filter(|m| *m != dir).collect();
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
fn touch_below(tx: &mut Tx<'_>, parent: EntryId, name: &Name, but: EntryId) -> Result<()> {
    let class = class_of(tx, parent)?;
    touch(tx, &class, name, but)
}

/// Marks directories that came to life or died, and what their names or unions concern.
fn mark_flipped(tx: &mut Tx<'_>, flux: &mut Flux, changed: EntryId) -> Result<()> {
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
fn mark_moved(
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

// ----- questions

/// True if the directory is live: its link is present or something live is below it. The root is.
pub fn is_live(tx: &mut Tx<'_>, dir: EntryId) -> Result<bool> {
    if dir.is_root() {
        return Ok(true);
    }
    let Some(row) = dir_row(tx, dir)? else { return Ok(false) };
    let present = row.entry.dir_link().is_some_and(|l| l.present());
    Ok(present || tx.dir(dir)?.live_children > 0)
}

/// The parent a directory is shown below: the stored one, or the repaired one. `None` for the root and unknown entries.
pub fn parent_of(tx: &mut Tx<'_>, dir: EntryId) -> Result<Option<EntryId>> {
    let Some(row) = dir_row(tx, dir)? else { return Ok(None) };
    Ok(tx.dir(dir)?.repaired.or(stored_parent(&row.entry)))
}

/// The class (union) a directory is shown in, sorted; empty if it is not shown.
pub fn class_of(tx: &mut Tx<'_>, dir: EntryId) -> Result<Vec<EntryId>> {
    let mut below = Vec::new();
    let mut at = dir;
    let mut class = loop {
        if at.is_root() {
            break vec![EntryId::ROOT];
        }
        if let Some(known) = tx.classes.get(&at) {
            break known.to_vec();
        }
        if below.len() > DEPTH_MAX {
            return Err(endless());
        }
        // All above a live directory are live, so that only the first can fail here.
        if !is_live(tx, at)? {
            return Ok(Vec::new());
        }
        let (parent, name) = stored_spot(tx, at)?;
        below.push((at, name));
        at = parent;
    };
    for (at, name) in below.into_iter().rev() {
        class = dirs_at(tx, &class, &name)?;
        tx.classes.insert(at, class.as_slice().into());
    }
    Ok(class)
}

/// What is shown at `name` in the directory class `class`, with conflict names given.
pub fn shown_at(tx: &mut Tx<'_>, class: &[EntryId], name: &Name) -> Result<Shown> {
    let mut shown = Shown::default();
    let mut groups: BTreeMap<(Kind, Digest), Vec<(Shares, Stamp)>> = BTreeMap::new();
    for id in entries_at(tx, class, name)? {
        let row = tx.entry_must(id)?;
        if row.entry.kind.is_dir() {
            shown.dir.push(id);
            continue;
        }
        for (claim, version) in claims_at(tx, &row.entry, class, name)? {
            let key = (row.entry.kind, version.content.identity());
            groups.entry(key).or_default().push((claim, version.stamp));
        }
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    for g in &mut groups {
        g.sort_by_key(|(c, _)| std::cmp::Reverse(order(c)));
    }
    groups.sort_by_key(|g| std::cmp::Reverse(order(&g[0].0)));
    for g in groups {
        let conflict = !shown.dir.is_empty() || !shown.groups.is_empty();
        let given = match conflict {
            true => free_conflict_name(tx, class, name, &g, &shown.groups)?,
            false => name.clone(),
        };
        shown.groups.push(Group { name: given, conflict, claims: g.into_iter().map(|(c, _)| c).collect() });
    }
    Ok(shown)
}

/// At most `limit` real names below `class` after `after`, in order.
pub fn children(tx: &mut Tx<'_>, class: &[EntryId], after: Option<&Name>, limit: usize) -> Result<Vec<Name>> {
    let mut names = BTreeSet::new();
    for member in class {
        let mut found = 0;
        let mut last = after.map(|n| (n.clone(), EntryId::ROOT));
        while found < limit {
            let page = tx.names_in(*member, last.as_ref().map(|(n, e)| (n, *e)), limit.clamp(16, PAGE))?;
            let Some(end) = page.last().cloned() else { break };
            for (name, _) in page {
                let again = last.as_ref().is_some_and(|(n, _)| *n == name);
                if !again && found < limit {
                    found += 1;
                    names.insert(name.clone());
                }
                last = Some((name, EntryId::ROOT));
            }
            last = Some(end);
        }
    }
    Ok(names.into_iter().take(limit).collect())
}

/// The (parent entry, real name) pairs an entry is shown at: a live directory's one, a leaf's shown links.
/// Empty if not shown. An extra sibling's place is the lowest shown link's.
pub fn shown_names(tx: &mut Tx<'_>, entry: EntryId) -> Result<Vec<(EntryId, Name)>> {
    let Some(row) = tx.entry(entry)? else { return Ok(Vec::new()) };
    if row.entry.kind.is_dir() {
        return Ok(if is_live(tx, entry)? { vec![stored_spot(tx, entry)?] } else { Vec::new() });
    }
    let mut out: Vec<(EntryId, Name)> = Vec::new();
    for l in row.entry.shown_links() {
        let pair = (l.at.parent, l.at.name.clone());
        if is_dir(tx, l.at.parent)? && !out.contains(&pair) {
            out.push(pair);
        }
    }
    Ok(out)
}

/// A path from the root that shows the entry (its winner's first name, conflict names included), or `None`.
pub fn path_of(tx: &mut Tx<'_>, entry: EntryId) -> Result<Option<Vec<Name>>> {
    let mut path = Vec::new();
    let Some((mut at, name)) = shown_names(tx, entry)?.into_iter().next() else {
        return Ok(entry.is_root().then_some(path));
    };
    path.push(if is_dir(tx, entry)? { name } else { given_name(tx, entry, at, name)? });
    while !at.is_root() {
        if path.len() > DEPTH_MAX {
            return Err(endless());
        }
        let (parent, name) = stored_spot(tx, at)?;
        path.push(name);
        at = parent;
    }
    path.reverse();
    Ok(Some(path))
}

/// True if the entry, a leaf, takes part in a conflict: at one of its names something (itself or
/// another) is shown under a conflict name.
pub fn is_conflicted(tx: &mut Tx<'_>, entry: EntryId) -> Result<bool> {
    if is_dir(tx, entry)? {
        return Ok(false);
    }
    for (parent, name) in shown_names(tx, entry)? {
        let class = class_of(tx, parent)?;
        if shown_at(tx, &class, &name)?.groups.iter().any(|g| g.conflict) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// All repaired edges, those of absent directories too: (directory, parent it is shown below).
pub fn repaired_edges(tx: &mut Tx<'_>) -> Result<Vec<(EntryId, EntryId)>> {
    let mut out = Vec::new();
    for x in tx.unrooted()? {
        if let Some(parent) = tx.dir(x)?.repaired {
            out.push((x, parent));
        }
    }
    Ok(out)
}

/// The name that shows the winner of `entry` at the real name `name` below `parent`.
fn given_name(tx: &mut Tx<'_>, entry: EntryId, parent: EntryId, name: Name) -> Result<Name> {
    let class = class_of(tx, parent)?;
    let shown = shown_at(tx, &class, &name)?;
    let mut groups = shown.groups.into_iter();
    let group = groups.find(|g| g.claims.iter().any(|c| c.entry == entry && !c.extra));
    Ok(group.map_or(name, |g| g.name))
}

/// The claims of a leaf to one name: the winner at each shown link there, the other
/// versions that count at the lowest shown link only.
fn claims_at(
    tx: &mut Tx<'_>,
    leaf: &Entry,
    class: &[EntryId],
    name: &Name,
) -> Result<Vec<(Shares, Version)>> {
    let Some(winner) = leaf.winner() else { return Ok(Vec::new()) };
    let mut out = Vec::new();
    let mut links = leaf.shown_links();
    links.sort_by_key(|l| l.id);
    let mut lowest = None;
    for l in links {
        if lowest.is_none() && is_dir(tx, l.at.parent)? {
            lowest = Some(l.id);
        }
        if l.at.name != *name || !class.contains(&l.at.parent) {
            continue;
        }
        for v in leaf.counting().filter(|v| v.dot == winner.dot || lowest == Some(l.id)) {
            let name_stamp = if l.present() { l.at.stamp } else { Stamp::MIN };
            let claim = Shares {
                entry: leaf.id,
                link: l.id,
                name_dot: l.at.dot,
                version: v.dot,
                rank: (v.stamp.max(name_stamp), v.stamp, leaf.id),
                extra: v.dot != winner.dot,
            };
            out.push((claim, v.clone()));
        }
    }
    Ok(out)
}

/// Rank, and what tells claims of one entry apart.
fn order(c: &Shares) -> ((Stamp, Stamp, EntryId), Dot, LinkId) {
    (c.rank, c.version, c.link)
}

fn entries_at(tx: &mut Tx<'_>, class: &[EntryId], name: &Name) -> Result<Vec<EntryId>> {
    let mut out = Vec::new();
    for member in class {
        out.extend(tx.names_at(*member, name)?);
    }
    out.sort();
    out.dedup();
    Ok(out)
}

/// Live directories at a name of a class, sorted.
fn dirs_at(tx: &mut Tx<'_>, class: &[EntryId], name: &Name) -> Result<Vec<EntryId>> {
    let mut out = Vec::new();
    for x in entries_at(tx, class, name)? {
        if is_dir(tx, x)? {
            out.push(x);
        }
    }
    Ok(out)
}

fn dir_row(tx: &mut Tx<'_>, id: EntryId) -> Result<Option<Arc<EntryRow>>> {
    Ok(tx.entry(id)?.filter(|row| row.entry.kind.is_dir()))
}

/// True if the directory is known, or is the root.
fn is_dir(tx: &mut Tx<'_>, id: EntryId) -> Result<bool> {
    Ok(id.is_root() || dir_row(tx, id)?.is_some())
}

fn link_present(tx: &mut Tx<'_>, dir: EntryId) -> Result<bool> {
    Ok(dir_row(tx, dir)?.is_some_and(|row| row.entry.dir_link().is_some_and(|l| l.present())))
}

fn stored_parent(dir: &Entry) -> Option<EntryId> {
    dir.dir_link().map(|l| l.at.parent)
}

/// Effective parent and name of a known directory, live or not.
fn stored_spot(tx: &mut Tx<'_>, dir: EntryId) -> Result<(EntryId, Name)> {
    let row = tx.entry_must(dir)?;
    match (parent_of(tx, dir)?, row.entry.dir_link()) {
        (Some(parent), Some(link)) => Ok((parent, link.at.name.clone())),
        _ => Err(Error::Inconsistent(format!("{dir} is no directory"))),
    }
}

fn endless() -> Error {
    Error::Inconsistent("directories form a loop".into())
}

// ----- conflict names

/// Stands between stem and time in a conflict name.
pub(crate) const MARK: &[u8] = b".conflict-";
/// Length of the time, `20261120T101112Z`.
const TIME_LEN: usize = 16;
/// Hexadecimal digits of the tag of a name that is neither cut nor displaced.
const TAG_LEN: usize = 8;
/// Hexadecimal digits of all other tags: nobody can find two versions with the same.
const LONG_TAG_LEN: usize = 32;
/// The longest extension, dot included, that stays at the end of the name.
const EXTENSION_MAX: usize = 16;

/// The name a group that lost `base` gets: `<stem>.conflict-<time>-<tag><extension>`, where time (UTC)
/// and tag come from the lowest version dot in the group and its stamp; the stem is cut so that 255 bytes
/// are enough. `round` > 0 gives other, longer tags, for when a name is taken. A function of its arguments
/// only, so all replicas give the same; different bases never get the same name.
pub fn conflict_name(base: &Name, lowest: Dot, made: Stamp, round: u32) -> Name {
    let (stem, extension) = split_extension(base.as_bytes());
    let full = |tag: usize| MARK.len() + TIME_LEN + 1 + tag + extension.len();
    let short = round == 0 && stem.len() + full(TAG_LEN) <= Name::LEN_MAX;
    let tag_len = if short { TAG_LEN } else { LONG_TAG_LEN };
    let stem = cut(stem, Name::LEN_MAX - full(tag_len));
    let time = utc(made.clock_ns / 1_000_000_000);
    let tag = tag(base, lowest, round, tag_len);
    let bytes = [stem, MARK, time.as_bytes(), b"-", tag.as_bytes(), extension].concat();
    // Not empty, not too long, no forbidden byte that the base had not; a staged file's prefix has no dot after
    // its first byte, so that neither a cut stem nor what follows can make one that the base was not.
    Name::new(&bytes).expect("a conflict name of a valid name is valid")
}

/// The first conflict name of a group that is neither a real name nor given to another group.
fn free_conflict_name(
    tx: &mut Tx<'_>,
    class: &[EntryId],
    base: &Name,
    group: &[(Shares, Stamp)],
    given: &[Group],
) -> Result<Name> {
    let lowest = group.iter().map(|(c, stamp)| (c.version, *stamp)).min();
    let (lowest, made) = lowest.unwrap_or_default();
    let mut round = 0;
    loop {
        let name = conflict_name(base, lowest, made, round);
        let free = given.iter().all(|g| g.name != name) && entries_at(tx, class, &name)?.is_empty();
        if free {
            return Ok(name);
        }
        round += 1;
    }
}

/// Real names whose conflict copies could have been given `name`. Nearly always none.
pub(crate) fn conflict_bases(tx: &mut Tx<'_>, class: &[EntryId], name: &Name) -> Result<Vec<Name>> {
    let Some((stem, extension)) = parse_conflict(name.as_bytes()) else { return Ok(Vec::new()) };
    let mut out: Vec<Name> = Name::new(&[stem, extension].concat()).into_iter().collect();
    // A cut stem does not tell the rest. A cut may fall short by the bytes of one character.
    if name.as_bytes().len() + 3 >= Name::LEN_MAX
        && let Ok(prefix) = Name::new(stem)
    {
        for member in class {
            names_with_prefix(tx, *member, &prefix, &mut out)?;
        }
    }
    Ok(out)
}

fn names_with_prefix(tx: &mut Tx<'_>, dir: EntryId, prefix: &Name, out: &mut Vec<Name>) -> Result<()> {
    let mut last = (prefix.clone(), EntryId::ROOT);
    loop {
        let page = tx.names_in(dir, Some((&last.0, last.1)), PAGE)?;
        let Some(end) = page.last().cloned() else { return Ok(()) };
        for (name, _) in page {
            if !name.as_bytes().starts_with(prefix.as_bytes()) {
                return Ok(());
            }
            out.push(name);
        }
        last = end;
    }
}

/// Stem and extension (with its dot; empty if there is none or a long one).
fn split_extension(base: &[u8]) -> (&[u8], &[u8]) {
    match base.iter().rposition(|b| *b == b'.') {
        Some(i) if i > 0 && (2..=EXTENSION_MAX).contains(&(base.len() - i)) => base.split_at(i),
        _ => (base, &[]),
    }
}

/// Stem and extension of what [`conflict_name`] may have made.
fn parse_conflict(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = name.windows(MARK.len()).rposition(|w| w == MARK)?;
    let rest = &name[at + MARK.len()..];
    let tag_at = TIME_LEN + 1;
    if at == 0 || rest.len() < tag_at + TAG_LEN || rest[TIME_LEN] != b'-' {
        return None;
    }
    let tag_len = rest[tag_at..].iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let extension = &rest[tag_at + tag_len..];
    let plain = tag_len == TAG_LEN || tag_len == LONG_TAG_LEN;
    (plain && (extension.is_empty() || extension[0] == b'.')).then_some((&name[..at], extension))
}

/// At most `len` bytes of `stem`, not in the middle of a UTF-8 character.
fn cut(stem: &[u8], len: usize) -> &[u8] {
    if stem.len() <= len {
        return stem;
    }
    let is_start = |i: &usize| stem[*i] & 0xc0 != 0x80;
    let end = (len.saturating_sub(3)..=len).rev().find(is_start).unwrap_or(len);
    &stem[..end]
}

fn tag(base: &Name, lowest: Dot, round: u32, len: usize) -> String {
    let mut h = blake3::Hasher::new();
    h.update(&lowest.replica.0.to_be_bytes());
    h.update(&lowest.n.to_be_bytes());
    h.update(&round.to_be_bytes());
    h.update(base.as_bytes());
    h.finalize().to_hex()[..len].to_string()
}

/// `20261120T101112Z` for seconds since 1970.
fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Civil date from days by eras of 400 years that start on 1 March 0000.
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

#[cfg(test)]
mod tests;
