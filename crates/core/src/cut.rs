//! What is left of an index when some replicas are cut: the states up to the Cut, and what of the disk shows them.
//!
//! Merged states cannot be taken apart again: what a change replaced is gone from them. So an index that has changes beyond a Cut is
//! followed by another one, of another replica, that knows nothing and therefore is told everything again. It begins with what the
//! earlier one had within the Cut, for nobody else may have that: states without a change beyond it as they are, of others
//! what is left when the changes beyond are left out ([`within`]). What is left of a state is beaten by any whole state of the
//! same entry that a peer has.

use crate::codec::well_formed;
use crate::disk::{Bind, Claim, Node, NodeKey, Place};
use crate::entry::{Entry, Link};
use crate::id::{Dot, EntryId, LinkId, Name, ReplicaId, Stamp};
use crate::local;
use crate::rows::Table;
use crate::tree;
use crate::tx::{Result, Tx};
use crate::vv::VersionVector;
use std::collections::BTreeMap;

/// The last change of each replica that was cut.
pub type Cuts = BTreeMap<ReplicaId, u64>;

/// Rows read at once.
const STEP: usize = 1024;

/// The first change of an entry's state that is beyond a Cut.
pub fn change_beyond(entry: &Entry, cuts: &Cuts) -> Option<(ReplicaId, u64)> {
    entry.ctx.iter().find(|(r, n)| !is_within(Dot::new(*r, *n), cuts))
}

fn is_within(dot: Dot, cuts: &Cuts) -> bool {
    cuts.get(&dot.replica).is_none_or(|cut| dot.n <= *cut)
}

/// What is left of a state within the Cuts; `None` if nothing is: it was made beyond, or no version of it is left.
///
/// A name that was given beyond a Cut stays, with the least stamp, for the name before is not known any more: any whole state says better. A file's
/// context covers what is left and nothing else, so that it takes no version from anybody.
pub fn within(entry: &Entry, cuts: &Cuts) -> Option<Entry> {
    if change_beyond(entry, cuts).is_none() {
        return Some(entry.clone());
    }
    let mut left = entry.clone();
    if !entry.id.is_root() {
        if !is_within(entry.id.0, cuts) {
            return None;
        }
        left.data.retain(|v| is_within(v.dot, cuts));
        left.links.retain(|l| is_within(l.id.0, cuts));
        if left.links.is_empty() || (left.data.is_empty() && !left.kind.is_dir()) {
            return None;
        }
    }
    let first = left.data.first().map(|v| v.dot).unwrap_or_default();
    left.links.iter_mut().for_each(|link| undo_name(link, first, cuts));
    let by_cut = |stamp: Stamp| cuts.contains_key(&stamp.replica);
    if by_cut(left.meta.0) {
        left.meta.0 = Stamp::MIN;
    }
    if let Some((stamp, _)) = left.dir_time.as_mut().filter(|(stamp, _)| by_cut(*stamp)) {
        *stamp = Stamp::MIN;
    }
    left.ctx = context(entry, &left, cuts);
    left.removed = heard(&entry.removed, cuts).meet(&left.ctx);
    for link in &mut left.links {
        link.gone = heard(&link.gone, cuts).meet(&left.ctx);
    }
    well_formed(&left).then_some(left)
}

/// Where a link was put beyond a Cut it stays as if by the change that made it.
fn undo_name(link: &mut Link, version: Dot, cuts: &Cuts) {
    if !is_within(link.at.dot, cuts) {
        (link.at.dot, link.at.stamp) = (link.id.0, Stamp::MIN);
    }
    if !is_within(link.at.holds, cuts) {
        link.at.holds = version;
    }
}

/// Of a directory, which has no versions to be taken, all up to the Cuts.
fn context(entry: &Entry, left: &Entry, cuts: &Cuts) -> VersionVector {
    let mut ctx = VersionVector::new();
    if left.kind.is_dir() {
        for (replica, n) in entry.ctx.iter() {
            let n = cuts.get(&replica).map_or(n, |cut| n.min(*cut));
            ctx.add(Dot::new(replica, n));
        }
        return ctx;
    }
    let names = left.links.iter().flat_map(|l| [l.id.0, l.at.dot, l.at.holds]);
    let dots = left.data.iter().map(|v| v.dot).chain(names).chain([left.id.0]);
    dots.filter(|dot| dot.n > 0).for_each(|dot| ctx.add(dot));
    ctx
}

/// Of what removals have seen, what does not come from beyond.
fn heard(seen: &VersionVector, cuts: &Cuts) -> VersionVector {
    let mut left = VersionVector::new();
    seen.iter()
        .map(|(r, n)| Dot::new(r, n))
        .filter(|dot| is_within(*dot, cuts))
        .for_each(|dot| left.add(dot));
    left
}

/// Which states go over.
#[derive(Clone, Copy, Debug)]
pub struct Carry<'a> {
    /// What is cut.
    pub cuts: &'a Cuts,
    /// Of files, too, what is left of a state with changes beyond. Not where these changes were made: others have the file there.
    pub changed_files: bool,
}

impl Carry<'_> {
    /// What goes over of one state.
    pub fn left(&self, entry: &Entry) -> Option<Entry> {
        let whole = self.changed_files || entry.kind.is_dir() || change_beyond(entry, self.cuts).is_none();
        if whole { within(entry, self.cuts) } else { None }
    }

    /// True if all that a path shows goes over with it.
    pub fn keeps_place(&self, tx: &mut Tx<'_>, place: &Place) -> Result<bool> {
        for claim in &place.claims {
            let left = tx.entry(claim.entry)?.and_then(|row| self.left(&row.entry));
            if !left.is_some_and(|left| is_shown_by(&left, claim)) {
                return Ok(false);
            }
        }
        Ok(!place.claims.is_empty())
    }

    /// Copies a page of states from an index to its successor: `from` is empty, then what was returned; `None`: that was the
    /// last one.
    pub fn states(&self, old: &mut Tx<'_>, new: &mut Tx<'_>, from: &[u8]) -> Result<Option<Vec<u8>>> {
        let rows = old.scan(Table::Entries, from, None, STEP)?;
        let Some((last, _)) = rows.last() else { return Ok(None) };
        for (_, value) in &rows {
            if let Some(left) = self.left(&old.decode_entry_row(value)?.entry) {
                tree::receive(new, &left, &VersionVector::new())?;
            }
        }
        Ok(Some([&last[..], &[0]].concat()))
    }
}

/// What one page of a directory's records led to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Page {
    /// The last name on it; `None`: there was none.
    pub last: Option<Name>,
    /// Directories whose records went over.
    pub below: Vec<NodeKey>,
}

/// Copies the record of the root directory.
pub fn copy_root(old: &mut Tx<'_>, new: &mut Tx<'_>) -> Result<Option<NodeKey>> {
    let Some(root) = old.root_node()? else { return Ok(None) };
    let Some(node) = old.node(&root)? else { return Ok(None) };
    new.set_root_node(&root);
    new.put_node(&root, (*node).clone());
    Ok(Some(root))
}

/// Copies what is recorded of the disk, a page of one directory at a time, as far as states that went over are shown there. A directory's
/// own record must have been copied before.
pub fn copy_places(old: &mut Tx<'_>, new: &mut Tx<'_>, dir: &NodeKey, after: Option<&Name>) -> Result<Page> {
    let mut page = Page::default();
    for (name, place) in old.places_in(dir, after, STEP)? {
        page.last = Some(name.clone());
        let Some(node) = old.node(&place.node)? else { continue };
        let mut node = (*node).clone();
        let shown = match &mut node.bind {
            Bind::Dir(members) => {
                members.retain(|id| matches!(new.entry(*id), Ok(Some(_))));
                members.clone()
            }
            Bind::Leaf { .. } if all_shown(new, &place.claims)? => {
                place.claims.iter().map(|c| c.entry).collect()
            }
            Bind::Leaf { .. } => Vec::new(),
        };
        if shown.is_empty() {
            continue;
        }
        if matches!(node.bind, Bind::Dir(_)) {
            page.below.push(place.node.clone());
        }
        put(new, (dir, &name), place, node, &shown)?;
    }
    Ok(page)
}

fn put(
    new: &mut Tx<'_>,
    (dir, name): local::Spot<'_>,
    place: Place,
    mut node: Node,
    shown: &[EntryId],
) -> Result<()> {
    let key = place.node.clone();
    node.names = new.node(&key)?.map(|known| known.names.clone()).unwrap_or_default();
    node.names.push((dir.clone(), name.clone()));
    new.put_node(&key, node);
    new.put_place(dir, name, place);
    shown.iter().try_for_each(|entry| local::bind(new, *entry, &key))
}

fn all_shown(new: &mut Tx<'_>, claims: &[Claim]) -> Result<bool> {
    for claim in claims {
        if !new.entry(claim.entry)?.is_some_and(|row| is_shown_by(&row.entry, claim)) {
            return Ok(false);
        }
    }
    Ok(!claims.is_empty())
}

fn is_shown_by(entry: &Entry, claim: &Claim) -> bool {
    let has_link = |link: LinkId| entry.link(link).is_some();
    entry.version(claim.version).is_some() && has_link(claim.link)
}

#[cfg(test)]
mod tests;
