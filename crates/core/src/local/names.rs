//! Names of leaves: giving, moving and dropping them.

use super::{Error, Result, Spot, Stamps, Tx, chain, change, change_with, newborn, records, settle};
use crate::disk::{Claim, NodeKey, Place};
use crate::entry::{At, Entry, Link, Version};
use crate::id::{Dot, EntryId, LinkId, Name, ReplicaId, Stamp};
use crate::meta::Content;
use crate::mutant::mutant;
use crate::tree;
use crate::vv::VersionVector;
use smallvec::SmallVec;

/// The greatest stamp in the entries shown at a name: a new claim to it must be above (model finding G1).
pub(super) fn stamp_at(tx: &mut Tx<'_>, parent: EntryId, name: &Name) -> Result<Stamp> {
    let mut max = Stamp::MIN;
    for id in tx.names_at(parent, name)? {
        if let Some(row) = tx.entry(id)? {
            max = max.max(row.entry.stamp_max());
        }
    }
    Ok(max)
}

/// Drops all claims at a leaf's place and forgets the place.
pub(super) fn vacate(tx: &mut Tx<'_>, at: Spot<'_>, place: &Place) -> Result<()> {
    drop_claims(tx, at, place, None)?;
    records::erase_place(tx, at)
}

/// Drops the claims at a place, all but `keep`. Of several names that one entry has there only the lowest
/// stands for its version; the others are nothing but names.
///
/// The first claim goes last: of siblings with equal content it is the one that a rename keeps, and what goes last is only
/// counted as removed, so that it is still there for a name that somebody else gives it meanwhile.
fn drop_claims(tx: &mut Tx<'_>, at: Spot<'_>, place: &Place, keep: Option<Claim>) -> Result<()> {
    for &claim in place.claims.iter().rev().filter(|c| Some(**c) != keep) {
        let lowest = lowest_twin(place, claim);
        if lowest == claim && keep.is_none_or(|k| lowest_twin(place, k) != claim) {
            drop_claim(tx, at, claim)?;
        } else if is_where_shown(&tx.entry_must(claim.entry)?.entry, claim) {
            change(tx, claim.entry, |e, _| remove_name(e, claim.link))?;
        }
    }
    Ok(())
}

/// The lowest of the names that show the same version of the same entry at one place.
fn lowest_twin(place: &Place, claim: Claim) -> Claim {
    let twins = place.claims.iter().filter(|c| (c.entry, c.version) == (claim.entry, claim.version));
    twins.min_by_key(|c| c.link).copied().unwrap_or(claim)
}

/// The user took away what `claim` showed at `at`: a removal takes neither a version nor a name that its
/// author had not seen (model findings G2, G3, G4).
pub(super) fn drop_claim(tx: &mut Tx<'_>, at: Spot<'_>, claim: Claim) -> Result<()> {
    if tx.entry(claim.entry)?.is_none() {
        return Ok(());
    }
    let left = names_left(tx, at, claim)?;
    if !left.is_empty() {
        return drop_name(tx, claim, &left);
    }
    let left = if is_one_of_several(tx, at, claim)? { Left::Out } else { Left::Removed };
    drop_version(tx, claim, left)
}

/// True if this disk shows, or tells by a conflict name, that the entry has other versions.
fn is_one_of_several(tx: &mut Tx<'_>, at: Spot<'_>, claim: Claim) -> Result<bool> {
    if tx.place(at.0, at.1)?.is_some_and(|place| place.conflict_of.is_some()) {
        return Ok(true);
    }
    let row = tx.entry_must(claim.entry)?;
    let other = |c: &Claim| {
        let is_other = c.entry == claim.entry && c.version != claim.version;
        is_other && row.entry.counting().any(|v| v.dot == c.version)
    };
    Ok(records::places_of(tx, claim.entry)?.iter().any(|(_, _, p)| p.claims.iter().any(other)))
}

/// Other places on this disk that show the same version of the same entry.
fn names_left(tx: &mut Tx<'_>, at: Spot<'_>, claim: Claim) -> Result<Vec<(NodeKey, Name, Claim)>> {
    let mut out = Vec::new();
    for (dir, name, place) in records::places_of(tx, claim.entry)? {
        if (&dir, &name) == at {
            continue;
        }
        let same = |c: &&Claim| c.entry == claim.entry && c.version == claim.version;
        if let Some(c) = place.claims.iter().find(same) {
            out.push((dir, name, *c));
        }
    }
    Ok(out)
}

/// Before the content of an entry changes at its inode `key`: where it is hidden behind an equal file of another entry,
/// it loses its name, for that file stays as it is.
pub(super) fn drop_hidden(tx: &mut Tx<'_>, owner: Claim, key: &NodeKey) -> Result<()> {
    for (dir, name, place) in records::places_of(tx, owner.entry)? {
        if place.node != *key {
            drop_behind(tx, (&dir, &name), place, |c| (c.entry, c.version) == (owner.entry, owner.version))?;
        }
    }
    Ok(())
}

/// Drops those of a place's claims that are `hidden` behind an equal file of another entry.
pub(super) fn drop_behind(
    tx: &mut Tx<'_>,
    at: Spot<'_>,
    mut place: Place,
    hidden: impl Fn(&Claim) -> bool,
) -> Result<()> {
    let Some(first) = place.claims.first().copied() else { return Ok(()) };
    let hidden = |c: &Claim| c.entry != first.entry && hidden(c);
    if !place.claims.iter().any(hidden) {
        return Ok(());
    }
    for &claim in place.claims.iter().filter(|c| hidden(c)) {
        drop_claim(tx, at, claim)?;
    }
    place.claims.retain(|c| !hidden(c));
    records::set_place(tx, at, place)?;
    // What is left might be called after another of its claims now.
    settle::own_name(tx, at)
}

/// One of several names goes. The user relies on the others: if somebody else has removed all of them, or the file, and this
/// name alone has kept it, one is given again.
fn drop_name(tx: &mut Tx<'_>, claim: Claim, left: &[(NodeKey, Name, Claim)]) -> Result<()> {
    let keeps = keeps_another(&tx.entry_must(claim.entry)?.entry, claim);
    settle::extras_of(tx, claim, Some(claim.link).filter(|_| !keeps))?;
    let row = tx.entry_must(claim.entry)?;
    let present = |c: &Claim| row.entry.link(c.link).is_some_and(Link::present);
    let held_by = |l: &Link| l.id != claim.link && l.at.holds == claim.version;
    let is_last_hold = row.entry.removed.covers(claim.version) && !row.entry.present_links().any(held_by);
    if (is_last_hold || !left.iter().any(|(_, _, c)| present(c)))
        && let Some((dir, name, c)) = left.first()
    {
        let place = super::must_place(tx, (dir, name))?;
        let new = set_at(tx, *c, &place.node, (dir, name), false)?;
        replace_claim(tx, (dir, name), *c, new)?;
        follow_version(tx, &place.node, *c, new.version)?;
    }
    if is_where_shown(&tx.entry_must(claim.entry)?.entry, claim) {
        change(tx, claim.entry, |e, _| remove_name(e, claim.link))?;
    }
    Ok(())
}

/// True if a version that `claim` does not show counts only because its name holds it. It may be shown at any name.
fn keeps_another(e: &Entry, claim: Claim) -> bool {
    let held = e.link(claim.link).filter(|l| l.present()).map(|l| l.at.holds);
    e.counting().any(|v| v.dot != claim.version && Some(v.dot) == held && e.removed.covers(v.dot))
}

/// The last name of a version on this disk goes.
fn drop_version(tx: &mut Tx<'_>, claim: Claim, left: Left) -> Result<()> {
    let row = tx.entry_must(claim.entry)?;
    let counting: Vec<Dot> = row.entry.counting().map(|v| v.dot).collect();
    let where_shown = is_where_shown(&row.entry, claim);
    if counting.iter().all(|v| *v == claim.version) || mutant!(UnseenVersionRemoved) {
        if !counting.is_empty() || where_shown {
            change(tx, claim.entry, |e, _| {
                if where_shown {
                    remove_name(e, claim.link);
                }
                let ctx = e.ctx.clone();
                e.removed.join(&ctx);
            })?;
        }
    } else if counting.contains(&claim.version) {
        let alone = names_of(tx, claim)? <= 1;
        change_with(tx, claim.entry, |tx, e, dot| {
            if left == Left::Removed && alone {
                let_go(e, claim, dot, tx.me());
            }
            drop_one(e, claim, left);
            Ok(())
        })?;
    }
    // Else the edit that the user had not seen wins.
    Ok(())
}

/// What becomes of a version that leaves an entry which has others.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// Who saw the others chose among them: it is no version of this entry any more.
    Out,
    /// To its author the whole file is gone: it is only counted as removed, so that it is still there for a name that
    /// somebody else gives the file meanwhile.
    Removed,
}

/// Places on this disk that show the name.
fn names_of(tx: &mut Tx<'_>, claim: Claim) -> Result<usize> {
    let of_it = |c: &Claim| (c.entry, c.link) == (claim.entry, claim.link);
    Ok(records::places_of(tx, claim.entry)?.iter().filter(|(_, _, p)| p.claims.iter().any(of_it)).count())
}

/// The name that showed the version stays for others, and holds the version no more. One that somebody gives it meanwhile
/// wins over this.
fn let_go(e: &mut Entry, claim: Claim, dot: Dot, me: ReplicaId) {
    let Some(l) = e.link_mut(claim.link).filter(|l| l.present() && l.at.dot == claim.name_dot) else {
        return;
    };
    if l.at.holds == claim.version {
        let stamp = Stamp::above(l.at.stamp, settle::NOBODY.epoch, settle::NOBODY.now_ns, me);
        l.at = At { stamp, dot, holds: Dot::default(), ..l.at.clone() };
    }
}

/// Takes the version of `claim` out of an entry that has others. It is taken out for good where counting it as removed would
/// take another with it, or would do nothing because a name that stays holds it.
fn drop_one(e: &mut Entry, claim: Claim, left: Left) {
    let removed = VersionVector::from_dot(claim.version);
    let takes_others = e.data.iter().any(|v| v.dot != claim.version && removed.covers(v.dot));
    // The name that was shown does not keep it, one that came meanwhile does.
    let is_seen = |l: &Link| l.id != claim.link || l.at.dot == claim.name_dot;
    let is_held = e.present_links().any(|l| l.at.holds == claim.version && is_seen(l));
    match left {
        Left::Removed if !takes_others && !is_held => e.removed.join(&removed),
        _ => e.data.retain(|v| v.dot != claim.version),
    }
}

/// True if the name is present where the path was materialised with it.
pub(super) fn is_where_shown(e: &Entry, claim: Claim) -> bool {
    e.link(claim.link).is_some_and(|l| l.present() && l.at.dot == claim.name_dot)
}

fn remove_name(e: &mut Entry, link: LinkId) {
    let ctx = e.ctx.clone();
    if let Some(l) = e.link_mut(link) {
        l.gone.join(&ctx);
    }
}

/// Gives the inode at `from`, recorded as `place`, the name `to` (which may be the one it has) in the state:
/// moves its entry's name, or makes an entry of its own of a copy that was only a sibling.
/// `chosen`: it replaces another version of its entry.
pub(super) fn retitle(
    tx: &mut Tx<'_>,
    from: Spot<'_>,
    place: &Place,
    to: Spot<'_>,
    chosen: bool,
    left: Left,
) -> Result<Claim> {
    let Some(&first) = place.claims.first() else {
        return Err(Error::Inconsistent(format!("place {:?} has no claim", from.1)));
    };
    let owner = lowest_twin(place, first);
    drop_claims(tx, from, place, Some(owner))?;
    if is_whole(tx, place)? {
        // Siblings shown beside the name would follow it.
        settle::extras_of(tx, owner, Some(owner.link))?;
        set_at(tx, owner, &place.node, to, chosen)
    } else {
        split(tx, owner, &place.node, to, left)
    }
}

/// True if the inode at a place stands for its whole entry: it has its real name or several names, or shows the
/// entry's only version, or one of several by a name that shows no other. If somebody removed them all, what this disk shows
/// tells which was one of several: the name of the entry, which may have been moved elsewhere meanwhile, is not for a sibling to
/// take.
pub(super) fn is_whole(tx: &mut Tx<'_>, place: &Place) -> Result<bool> {
    if place.conflict_of.is_none() || tx.node_must(&place.node)?.names.len() > 1 {
        return Ok(true);
    }
    let Some(owner) = place.claims.first() else { return Ok(true) };
    let row = tx.entry_must(owner.entry)?;
    let counting: SmallVec<[Dot; 2]> = row.entry.counting().map(|v| v.dot).collect();
    if !counting.contains(&owner.version) && !counting.is_empty() {
        return Ok(false);
    }
    if counting.len() == 1 {
        return Ok(true);
    }
    let places = records::places_of(tx, owner.entry)?;
    let is_other = |c: &&Claim| c.entry == owner.entry && c.version != owner.version;
    let mut others = places.iter().flat_map(|(_, _, p)| &p.claims).filter(is_other).peekable();
    Ok(match counting.is_empty() {
        true => others.peek().is_none(),
        // All are shown by one of its names. If that is another, this one is nothing but a name.
        false => others.peek().is_some() && others.all(|c| c.link != owner.link),
    })
}

/// Puts the name `claim.link` at `to`. Versions that count no more are dropped; if none is left, or if
/// the version is `chosen` over others, it is written again under the new dot (model finding G10).
pub(super) fn set_at(
    tx: &mut Tx<'_>,
    claim: Claim,
    node: &NodeKey,
    to: Spot<'_>,
    chosen: bool,
) -> Result<Claim> {
    let parent = chain::use_dir(tx, to.0)?;
    let there = stamp_at(tx, parent, to.1)?;
    let mut version = claim.version;
    let dot = change_with(tx, claim.entry, |tx, e, dot| {
        let above_all = tx.stamp_above(e.stamp_max().max(there));
        let (stamp, named) = match e.link(claim.link) {
            // Above one that was settled elsewhere, also if the clock is behind.
            _ if tx.env != settle::NOBODY => (tx.stamp_above(above_all), tx.stamp_above(above_all)),
            // That somebody gave it attributes makes its name no later.
            Some(l) => (above_all, tx.stamp_above(l.at.stamp)),
            None => (above_all, above_all),
        };
        let content = content_in(tx, e, node, claim);
        let holds = if mutant!(NameHoldsNothing) { Dot::default() } else { version };
        let at = At { stamp: named, dot, parent, name: to.1.clone(), holds };
        match e.link_mut(claim.link) {
            Some(l) => l.at = at,
            None => insert_link(e, Link { id: claim.link, at, gone: VersionVector::new() }),
        }
        version = hold(e, claim, dot, stamp, content, chosen)?;
        Ok(())
    })?;
    Ok(Claim { name_dot: dot, version, ..claim })
}

/// Makes an inode's names and version firm before it gets another name. Gives those names again that somebody removed:
/// an entry without any name is shown under its last one, but only as long as it gets no other. Of siblings with equal
/// content one is left.
pub(super) fn make_firm(tx: &mut Tx<'_>, node: &NodeKey) -> Result<()> {
    for (dir, name) in tx.node_must(node)?.names.clone() {
        let at = (&dir, &name);
        let claim = records::owner_at(tx, at)?;
        let mut place = super::must_place(tx, at)?;
        let equal = |c: &Claim| c.entry == claim.entry && c.version != claim.version;
        for &c in place.claims.iter().filter(|c| equal(c)) {
            drop_claim(tx, at, c)?;
        }
        place.claims.retain(|c| !equal(c));
        records::set_place(tx, at, place)?;
        let row = tx.entry_must(claim.entry)?;
        if row.entry.link(claim.link).is_some_and(|l| !l.present()) {
            let new = set_at(tx, claim, node, at, false)?;
            replace_claim(tx, at, claim, new)?;
            follow_version(tx, node, claim, new.version)?;
        }
    }
    Ok(())
}

/// A new name of the entry `owner` at `to`.
pub(super) fn add_link(tx: &mut Tx<'_>, owner: Claim, node: &NodeKey, to: Spot<'_>) -> Result<Claim> {
    let parent = chain::use_dir(tx, to.0)?;
    let there = stamp_at(tx, parent, to.1)?;
    let mut version = owner.version;
    let dot = change_with(tx, owner.entry, |tx, e, dot| {
        let stamp = tx.stamp_above(e.stamp_max().max(there));
        let content = content_in(tx, e, node, owner);
        let holds = if mutant!(NameHoldsNothing) { Dot::default() } else { version };
        let at = At { stamp, dot, parent, name: to.1.clone(), holds };
        insert_link(e, Link { id: LinkId(dot), at, gone: VersionVector::new() });
        version = hold(e, Claim { link: LinkId(dot), ..owner }, dot, stamp, content, false)?;
        Ok(())
    })?;
    Ok(Claim { entry: owner.entry, link: LinkId(dot), name_dot: dot, version })
}

/// True if a new name of the entry would come before those that are shown.
pub(super) fn would_be_lowest(tx: &mut Tx<'_>, owner: Claim) -> Result<bool> {
    let row = tx.entry_must(owner.entry)?;
    let lowest = row.entry.shown_links().iter().map(|l| l.id.0.replica).min();
    // Of this replica's own names the new one is the last.
    Ok(lowest.is_none_or(|r| tx.me() < r))
}

fn insert_link(e: &mut Entry, link: Link) {
    let i = e.links.partition_point(|l| l.id < link.id);
    e.links.insert(i, link);
}

/// Sees to it that a version counts now that the name has been set under `dot`. Returns the version that the
/// inode shows.
fn hold(
    e: &mut Entry,
    claim: Claim,
    dot: Dot,
    stamp: Stamp,
    content: Option<Content>,
    chosen: bool,
) -> Result<Dot> {
    let chosen = chosen && !mutant!(ChoiceWithoutDot);
    if chosen {
        e.data.retain(|v| v.dot != claim.version);
    }
    if !chosen && e.counting().next().is_some() {
        return Ok(claim.version);
    }
    let content = content.ok_or_else(|| lost_content(claim))?;
    e.data.push(Version { dot, stamp, content });
    e.data.sort_by_key(|v| v.dot);
    if let Some(l) = e.link_mut(claim.link) {
        l.at.holds = dot;
    }
    Ok(dot)
}

/// Makes an entry of its own, at `to`, of a version that was a sibling in `owner.entry`.
fn split(tx: &mut Tx<'_>, owner: Claim, node: &NodeKey, to: Spot<'_>, left: Left) -> Result<Claim> {
    let parent = chain::use_dir(tx, to.0)?;
    let there = stamp_at(tx, parent, to.1)?;
    let row = tx.entry_must(owner.entry)?;
    let content = content_in(tx, &row.entry, node, owner).ok_or_else(|| lost_content(owner))?;
    let stamp = tx.stamp_above(row.entry.stamp_max().max(there));
    let dot = tx.new_dot();
    let attrs = row.entry.meta.1.clone();
    let new = newborn(dot, row.entry.kind, (parent, to.1), Some(&content), attrs, Stamps::all(stamp));
    tree::put_state(tx, new, dot.n)?;
    if !records::is_in_step(tx, node, owner)? {
        // What the inode still has to be given was to come with the entry that it leaves.
        tx.add_pending(EntryId(dot));
    }
    if row.entry.counting().any(|v| v.dot == owner.version) {
        change(tx, owner.entry, |e, _| drop_one(e, owner, left))?;
    }
    Ok(Claim { entry: EntryId(dot), link: LinkId(dot), name_dot: dot, version: dot })
}

/// The content that an inode shows for `claim`.
pub(super) fn content_of(tx: &mut Tx<'_>, node: &NodeKey, claim: Claim) -> Result<Content> {
    let row = tx.entry_must(claim.entry)?;
    content_in(tx, &row.entry, node, claim).ok_or_else(|| lost_content(claim))
}

fn content_in(tx: &mut Tx<'_>, e: &Entry, node: &NodeKey, claim: Claim) -> Option<Content> {
    if let Some(v) = e.version(claim.version) {
        return Some(v.content.clone());
    }
    // A read that fails has failed before on the same row.
    records::recorded_content(tx.node(node).ok()??.as_ref())
}

/// Only files' contents can be told from the record of their inode alone.
fn lost_content(claim: Claim) -> Error {
    Error::Inconsistent(format!("what {} holds at {} is not known any more", claim.entry, claim.version))
}

/// Replaces a claim at a place whose name was given again where it is. Siblings shown beside it are there by the same
/// name.
pub(super) fn replace_claim(tx: &mut Tx<'_>, at: Spot<'_>, old: Claim, new: Claim) -> Result<()> {
    for (dir, name, mut place) in records::places_of(tx, old.entry)? {
        let here = (&dir, &name) == at;
        let same = |c: &&mut Claim| (c.link, c.name_dot) == (old.link, old.name_dot);
        for c in place.claims.iter_mut().filter(|c| c.entry == old.entry).filter(same) {
            c.name_dot = new.name_dot;
            if here && c.version == old.version {
                c.version = new.version;
            }
        }
        records::set_place(tx, (&dir, &name), place)?;
    }
    Ok(())
}

/// All names of an inode on this disk show the same version: after the one that `old` names was written again
/// under a new dot the others follow.
pub(super) fn follow_version(tx: &mut Tx<'_>, node: &NodeKey, old: Claim, version: Dot) -> Result<()> {
    if old.version == version {
        return Ok(());
    }
    for (dir, name) in tx.node_must(node)?.names.clone() {
        let mut place = super::must_place(tx, (&dir, &name))?;
        let mut changed = false;
        for c in place.claims.iter_mut().filter(|c| (c.entry, c.version) == (old.entry, old.version)) {
            c.version = version;
            changed = true;
        }
        if changed {
            records::set_place(tx, (&dir, &name), place)?;
        }
    }
    Ok(())
}
