//! Book-keeping of the disk: places, nodes and the lists of nodes bound to entries. A node is bound to each
//! entry that one of its places claims, or that is a member of the directory it is.

use super::{Result, Spot, Tx, must_place};
use crate::disk::{Bind, Claim, Node, NodeKey, Place, Wanted};
use crate::id::{EntryId, Name};
use crate::meta::{Content, Time};
use crate::tx::Error;
use std::sync::Arc;

/// Notes that `node` stands for `entry`.
pub(crate) fn bind(tx: &mut Tx<'_>, entry: EntryId, node: &NodeKey) -> Result<()> {
    if entry.is_root() {
        return Ok(());
    }
    let row = tx.entry_must(entry)?;
    if row.bound.contains(node) {
        return Ok(());
    }
    let mut row = (*row).clone();
    row.bound.push(node.clone());
    tx.put_entry(row)
}

fn unbind(tx: &mut Tx<'_>, entry: EntryId, node: &NodeKey) -> Result<()> {
    let Some(row) = tx.entry(entry)? else { return Ok(()) };
    if !row.bound.contains(node) {
        return Ok(());
    }
    let mut row = (*row).clone();
    row.bound.retain(|n| n != node);
    tx.put_entry(row)
}

/// Takes `node` off the bound list of `entry` if no place of it claims the entry any more.
fn unbind_unclaimed(tx: &mut Tx<'_>, entry: EntryId, key: &NodeKey) -> Result<()> {
    if let Some(node) = tx.node(key)? {
        for (dir, name) in &node.names {
            let place = tx.place(dir, name)?;
            if place.is_some_and(|p| p.node == *key && p.claims.iter().any(|c| c.entry == entry)) {
                return Ok(());
            }
        }
    }
    unbind(tx, entry, key)
}

/// Stores a place of a node that has this name already.
pub(super) fn set_place(tx: &mut Tx<'_>, at: Spot<'_>, place: Place) -> Result<()> {
    let old = tx.place(at.0, at.1)?;
    tx.put_place(at.0, at.1, place.clone());
    for c in &place.claims {
        bind(tx, c.entry, &place.node)?;
    }
    for c in old.iter().flat_map(|o| &o.claims) {
        if !place.claims.iter().any(|n| n.entry == c.entry) {
            unbind_unclaimed(tx, c.entry, &place.node)?;
        }
    }
    Ok(())
}

/// Gives a node a name.
pub(crate) fn add_place(tx: &mut Tx<'_>, at: Spot<'_>, place: Place) -> Result<()> {
    let key = place.node.clone();
    let mut node = (*tx.node_must(&key)?).clone();
    node.names.push((at.0.clone(), at.1.clone()));
    tx.put_node(&key, node);
    set_place(tx, at, place)
}

/// Takes a name from its node; forgets the node with its last name.
pub(super) fn erase_place(tx: &mut Tx<'_>, at: Spot<'_>) -> Result<()> {
    let Some(place) = tx.place(at.0, at.1)? else { return Ok(()) };
    tx.delete_place(at.0, at.1);
    let mut node = (*tx.node_must(&place.node)?).clone();
    node.names.retain(|(d, n)| !(d == at.0 && n == at.1));
    if node.names.is_empty() {
        tx.delete_node(&place.node);
        if let Bind::Dir(members) = &node.bind {
            for m in members {
                unbind(tx, *m, &place.node)?;
            }
        }
    } else {
        tx.put_node(&place.node, node);
    }
    for c in &place.claims {
        unbind_unclaimed(tx, c.entry, &place.node)?;
    }
    Ok(())
}

/// Moves a node from one name to another, free one, where it is recorded as `place`.
pub(super) fn move_place(tx: &mut Tx<'_>, from: Spot<'_>, to: Spot<'_>, place: Place) -> Result<()> {
    let key = place.node.clone();
    let mut node = (*tx.node_must(&key)?).clone();
    let old = must_place(tx, from)?;
    tx.delete_place(from.0, from.1);
    node.names.retain(|(d, n)| !(d == from.0 && n == from.1));
    node.names.push((to.0.clone(), to.1.clone()));
    tx.put_node(&key, node);
    set_place(tx, to, place)?;
    for c in &old.claims {
        unbind_unclaimed(tx, c.entry, &key)?;
    }
    Ok(())
}

/// Another inode, `key`, took over the only name of the one recorded at `at`, with all that it stood for.
/// What is on that inode is not known yet.
pub(super) fn change_inode(tx: &mut Tx<'_>, at: Spot<'_>, place: &Place, key: &NodeKey) -> Result<()> {
    let node = (*tx.node_must(&place.node)?).clone();
    tx.delete_node(&place.node);
    tx.put_node(key, node);
    tx.put_place(at.0, at.1, Place { node: key.clone(), ..(*place).clone() });
    for c in &place.claims {
        unbind(tx, c.entry, &place.node)?;
        bind(tx, c.entry, key)?;
    }
    Ok(())
}

/// The members of the directory a node is.
pub(super) fn members(tx: &mut Tx<'_>, dir: &NodeKey) -> Result<Vec<EntryId>> {
    match &tx.node_must(dir)?.bind {
        Bind::Dir(members) if !members.is_empty() => Ok(members.clone()),
        _ => Err(Error::Inconsistent(format!("node {dir:?} is no directory"))),
    }
}

/// The claim that owns the inode at a leaf's place.
pub(super) fn owner_at(tx: &mut Tx<'_>, at: Spot<'_>) -> Result<Claim> {
    let place = must_place(tx, at)?;
    place.claims.first().copied().ok_or_else(|| Error::Inconsistent(format!("place {:?} has no claim", at.1)))
}

/// All places on this disk that claim `entry`.
pub(crate) fn places_of(tx: &mut Tx<'_>, entry: EntryId) -> Result<Vec<(NodeKey, Name, Place)>> {
    let mut out = Vec::new();
    let Some(row) = tx.entry(entry)? else { return Ok(out) };
    for key in &row.bound {
        let Some(node) = tx.node(key)? else { continue };
        for (dir, name) in &node.names {
            if let Some(place) = tx.place(dir, name)?
                && place.claims.iter().any(|c| c.entry == entry)
            {
                out.push((dir.clone(), name.clone(), Arc::unwrap_or_clone(place)));
            }
        }
    }
    Ok(out)
}

/// Modification time, in the state, of the version that a leaf's inode shows; as given back if the state has
/// it no more.
pub(super) fn version_mtime(tx: &mut Tx<'_>, key: &NodeKey) -> Result<Option<Time>> {
    let node = tx.node_must(key)?;
    let Some((dir, name)) = node.names.first() else { return Ok(None) };
    let claim = owner_at(tx, (dir, name))?;
    let row = tx.entry_must(claim.entry)?;
    Ok(Some(row.entry.version(claim.version).map_or(node.fingerprint.mtime, |v| v.content.mtime())))
}

/// True if the inode has the attributes of its owner's present state, as far as they could be given to it.
pub(super) fn is_in_step(tx: &mut Tx<'_>, key: &NodeKey, owner: Claim) -> Result<bool> {
    let mtime = version_mtime(tx, key)?;
    let row = tx.entry_must(owner.entry)?;
    Ok(tx.node_must(key)?.wanted == Wanted::of(&row.entry.meta.1, mtime))
}

/// A file's content as recorded of its inode. What other kinds hold is only in states.
pub(super) fn recorded_content(node: &Node) -> Option<Content> {
    let Bind::Leaf { identity } = node.bind else { return None };
    (node.kind == crate::id::Kind::File).then_some(Content::File {
        size: node.fingerprint.size,
        mtime: node.fingerprint.mtime,
        digest: identity,
    })
}
