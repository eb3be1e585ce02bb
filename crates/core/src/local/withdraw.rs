//! Taking back a version that nobody holds: a power cut took its content before anybody else had it, or a disk failed and a
//! person has given it up ([`crate::lost`]).

use super::{Result, Spot, Tx, change_with, names, records};
use crate::disk::{Claim, NodeKey, Place};
use crate::entry::Version;
use crate::id::{Dot, EntryId, Kind, Name, ReplicaId};
use crate::link;
use crate::meta::Content;
use crate::tree;

/// True if `version` was made here or by `peer` and, as far as is known, no third replica has ever had its state: if it is
/// neither here nor there, it is nowhere.
///
/// # Errors
/// If the index cannot be read.
pub fn may_withdraw(tx: &mut Tx<'_>, id: EntryId, version: Dot, peer: ReplicaId) -> Result<bool> {
    let Some(row) = tx.entry(id)? else { return Ok(false) };
    let ours = version.replica == tx.me() || version.replica == peer;
    if !ours || !row.entry.counting().any(|v| v.dot == version) {
        return Ok(false);
    }
    let others = link::peer_rows(tx)?;
    Ok(others.iter().all(|(r, known)| *r == peer || !known.knowledge.covers(version)))
}

/// Takes `version` back, as a change that follows it. An earlier version that this disk still shows comes again in its
/// place; if there is none and no other version counts, the entry is removed.
///
/// An entry that was made by an edit (of a conflict copy, or by a rename over a file) has no earlier version: that is
/// one of the entry that it took the name from. A path shows it until its successor has arrived.
///
/// # Errors
/// If the index cannot be read.
pub fn withdraw(tx: &mut Tx<'_>, id: EntryId, version: Dot) -> Result<()> {
    let earlier = earlier(tx, id, version)?;
    take_out(tx, id, version, earlier)
}

/// Takes `version` back, as a change that follows it. Nothing comes in its place: if no other version counts, the entry is
/// removed.
///
/// # Errors
/// If the index cannot be read.
pub fn give_up(tx: &mut Tx<'_>, id: EntryId, version: Dot) -> Result<()> {
    take_out(tx, id, version, None)
}

/// True if this disk shows what would come in the place of `version`.
///
/// # Errors
/// If the index cannot be read.
pub fn has_earlier(tx: &mut Tx<'_>, id: EntryId, version: Dot) -> Result<bool> {
    Ok(earlier(tx, id, version)?.is_some())
}

fn take_out(tx: &mut Tx<'_>, id: EntryId, version: Dot, earlier: Option<Earlier>) -> Result<()> {
    let content = earlier.as_ref().map(|e| e.content.clone());
    let dot = change_with(tx, id, |tx, e, dot| {
        let stamp = tx.stamp_above(e.stamp_max());
        e.data.retain(|v| v.dot != version);
        e.data.extend(content.map(|content| Version { dot, stamp, content }));
        e.data.sort_by_key(|v| v.dot);
        if e.counting().next().is_none() {
            let ctx = e.ctx.clone();
            e.links.iter_mut().for_each(|link| link.gone.join(&ctx));
            e.removed.join(&ctx);
        }
        Ok(())
    })?;
    if let Some(Earlier { spot: (dir, name), mut place, claim, .. }) = earlier {
        let same = |c: &&mut Claim| (c.entry, c.version) == (claim.entry, claim.version);
        place.claims.iter_mut().filter(same).for_each(|c| c.version = dot);
        let node = place.node.clone();
        records::set_place(tx, (&dir, &name), place)?;
        names::follow_version(tx, &node, claim, dot)?;
    }
    tx.add_pending(id);
    Ok(())
}

/// A version on this disk that counts no more.
struct Earlier {
    spot: (NodeKey, Name),
    /// As it is to be recorded, but for the version's dot.
    place: Place,
    /// The one of its claims that the version is to have.
    claim: Claim,
    content: Content,
}

fn earlier(tx: &mut Tx<'_>, id: EntryId, version: Dot) -> Result<Option<Earlier>> {
    match earlier_version(tx, id)? {
        Some(own) => Ok(Some(own)),
        None => earlier_at_its_name(tx, id, version),
    }
}

fn earlier_version(tx: &mut Tx<'_>, id: EntryId) -> Result<Option<Earlier>> {
    let row = tx.entry_must(id)?;
    for (dir, name, place) in records::places_of(tx, id)? {
        let Some(claim) = place.claims.iter().find(|c| c.entry == id).copied() else { continue };
        if row.entry.counting().any(|v| v.dot == claim.version) {
            continue;
        }
        if let Some(content) = records::recorded_content(&*tx.node_must(&place.node)?) {
            return Ok(Some(Earlier { spot: (dir, name), place, claim, content }));
        }
    }
    Ok(None)
}

/// What this disk still shows where `version` of the entry is to be shown, if it is of other entries and counts no more.
/// Of another kind it cannot be a version of this entry.
fn earlier_at_its_name(tx: &mut Tx<'_>, id: EntryId, version: Dot) -> Result<Option<Earlier>> {
    let kind = tx.entry_must(id)?.entry.kind;
    for (parent, base) in tree::shown_names(tx, id)? {
        let class = tree::class_of(tx, parent)?;
        if class.is_empty() {
            continue;
        }
        for group in tree::shown_at(tx, &class, &base)?.groups {
            let of_version = |s: &&tree::Shares| (s.entry, s.version) == (id, version);
            let Some(shares) = group.claims.iter().find(of_version) else { continue };
            let claim = Claim { entry: id, link: shares.link, name_dot: shares.name_dot, version };
            for dir in dirs_of(tx, &class)? {
                let Some((node, content)) = overtaken_at(tx, (&dir, &group.name), kind)? else { continue };
                let conflict_of = group.conflict.then(|| base.clone());
                let place = Place { node, claims: vec![claim], conflict_of };
                return Ok(Some(Earlier { spot: (dir, group.name.clone()), place, claim, content }));
            }
        }
    }
    Ok(None)
}

/// The inodes on this disk that stand for a directory.
fn dirs_of(tx: &mut Tx<'_>, class: &[EntryId]) -> Result<Vec<NodeKey>> {
    let mut dirs: Vec<NodeKey> = Vec::new();
    for member in class {
        match member.is_root() {
            true => dirs.extend(tx.root_node()?),
            false => dirs.extend(tx.entry_must(*member)?.bound.iter().cloned()),
        }
    }
    Ok(dirs)
}

/// The inode of `kind` at a path, if no version that it shows counts any more. One with other names stays what it is: all names
/// of an inode belong to one entry.
fn overtaken_at(tx: &mut Tx<'_>, at: Spot<'_>, kind: Kind) -> Result<Option<(NodeKey, Content)>> {
    let Some(place) = tx.place(at.0, at.1)? else { return Ok(None) };
    for claim in &place.claims {
        let row = tx.entry(claim.entry)?;
        if row.is_some_and(|row| row.entry.counting().any(|v| v.dot == claim.version)) {
            return Ok(None);
        }
    }
    let node = tx.node_must(&place.node)?;
    let content = records::recorded_content(&node).filter(|_| node.kind == kind && node.names.len() == 1);
    Ok(content.map(|content| (place.node.clone(), content)))
}
