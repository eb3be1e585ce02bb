//! What a step, once done, changes in the record of the disk: places, nodes, and which nodes an entry is
//! bound to.

use super::{At, Binding, Outcome, Plan, Step};
use crate::disk::{Bind, Node, NodeKey, Place, Wanted};
use crate::id::{EntryId, Kind};
use crate::meta::{Attrs, Content};
use crate::tx::{Result, Tx};
use smallvec::SmallVec;

type Entries = SmallVec<[EntryId; 2]>;

/// Records a step that was done; `outcome` for steps that made or changed an inode. Keys in `step` must be
/// real ([`Step::resolve`]); while planning, when nothing was done yet, they may be provisional.
pub fn record(tx: &mut Tx<'_>, step: &Step, outcome: Option<&Outcome>) -> Result<()> {
    match step {
        Step::MakeDir { at, node, attrs, binding } => {
            let key = outcome.map_or(node, |o| &o.node);
            // Members come with the place, so that they are seen to be new.
            tx.put_node(key, fresh(Kind::Dir, attrs, None, Bind::Dir(Vec::new()), outcome));
            settle(tx, key, at, binding)
        }
        Step::Put { at, node, kind, content, attrs, binding, .. } => {
            let key = outcome.map_or(node, |o| &o.node);
            forget(tx, at)?;
            let bind = Bind::Leaf { identity: content.identity() };
            tx.put_node(key, fresh(*kind, attrs, Some(content), bind, outcome));
            settle(tx, key, at, binding)
        }
        Step::Link { to, node, binding, .. } => {
            forget(tx, to)?;
            settle(tx, node, to, binding)?;
            moved_on(tx, node, outcome)
        }
        Step::Move { from, to, node, binding, .. } => {
            carry(tx, node, from, to, binding)?;
            moved_on(tx, node, outcome)
        }
        Step::Park { from, node, .. } => {
            let binding = binding_at(tx, from, node)?;
            carry(tx, node, from, &Plan::parked(node), &binding)?;
            moved_on(tx, node, outcome)
        }
        Step::Unpark { to, node, binding, .. } => {
            carry(tx, node, &Plan::parked(node), to, binding)?;
            moved_on(tx, node, outcome)
        }
        Step::Remove { at, victim } => {
            forget(tx, at)?;
            moved_on(tx, &victim.node, outcome)
        }
        Step::SetAttrs { node, attrs, content, .. } => {
            let mut n = (*tx.node_must(node)?).clone();
            n.given = outcome.map_or_else(|| attrs.clone(), |o| o.given.clone());
            n.fingerprint = outcome.map_or(n.fingerprint, |o| o.fingerprint);
            n.wanted = Wanted::of(attrs, content.as_ref().map(Content::mtime));
            tx.put_node(node, n);
            Ok(())
        }
        Step::Rebind { at, node, binding } => {
            // What should have brought the inode here may have failed. A directory stands for its members
            // wherever it is; of a leaf's place there is nothing to say then.
            let Some(n) = tx.node(node)? else { return Ok(()) };
            let at = match n.names.first() {
                Some((dir, name)) if n.kind.is_dir() => At { dir: dir.clone(), name: name.clone() },
                _ => at.clone(),
            };
            let there = tx.place(&at.dir, &at.name)?.is_some_and(|p| p.node == *node);
            if there { settle(tx, node, &at, binding) } else { Ok(()) }
        }
    }
}

/// A node that was just made, without names.
fn fresh(
    kind: Kind,
    attrs: &Attrs,
    content: Option<&Content>,
    bind: Bind,
    outcome: Option<&Outcome>,
) -> Node {
    Node {
        kind,
        fingerprint: outcome.map(|o| o.fingerprint).unwrap_or_default(),
        racy: false,
        given: outcome.map_or_else(|| attrs.clone(), |o| o.given.clone()),
        wanted: Wanted::of(attrs, content.map(Content::mtime)),
        names: Vec::new(),
        bind,
    }
}

/// A change of an inode's names moves its change time on. Its other attributes are as they were; a
/// directory's modification time may just now be that of steps inside it, and is put back after the batch.
fn moved_on(tx: &mut Tx<'_>, key: &NodeKey, outcome: Option<&Outcome>) -> Result<()> {
    if let Some(o) = outcome
        && let Some(node) = tx.node(key)?
    {
        let mut node = (*node).clone();
        node.fingerprint.ctime = o.fingerprint.ctime;
        tx.put_node(key, node);
    }
    Ok(())
}

/// What a place stands for now, to keep it while its inode is parked.
fn binding_at(tx: &mut Tx<'_>, at: &At, node: &NodeKey) -> Result<Binding> {
    let members = match &tx.node_must(node)?.bind {
        Bind::Dir(members) => members.clone(),
        Bind::Leaf { .. } => Vec::new(),
    };
    let place = tx.place(&at.dir, &at.name)?;
    let (claims, conflict_of) = place.map(|p| (p.claims.clone(), p.conflict_of.clone())).unwrap_or_default();
    Ok(Binding { claims, members, conflict_of })
}

/// Says that inode `key` stands at `at` for `binding`; it gets the name if it did not have it.
pub(crate) fn settle(tx: &mut Tx<'_>, key: &NodeKey, at: &At, binding: &Binding) -> Result<()> {
    let before = bound_by(tx, key)?;
    let mut node = (*tx.node_must(key)?).clone();
    let name = (at.dir.clone(), at.name.clone());
    if !node.names.contains(&name) {
        node.names.push(name);
    }
    write_place(tx, key, node, at, binding);
    rebind(tx, key, &before)
}

/// Takes inode `key` from one name to another.
fn carry(tx: &mut Tx<'_>, key: &NodeKey, from: &At, to: &At, binding: &Binding) -> Result<()> {
    forget(tx, to)?;
    let before = bound_by(tx, key)?;
    let mut node = (*tx.node_must(key)?).clone();
    node.names.retain(|(dir, name)| (dir, name) != (&from.dir, &from.name));
    node.names.push((to.dir.clone(), to.name.clone()));
    tx.delete_place(&from.dir, &from.name);
    write_place(tx, key, node, to, binding);
    rebind(tx, key, &before)
}

fn write_place(tx: &mut Tx<'_>, key: &NodeKey, mut node: Node, at: &At, binding: &Binding) {
    if let Bind::Dir(members) = &mut node.bind {
        members.clone_from(&binding.members);
    }
    tx.put_node(key, node);
    let place =
        Place { node: key.clone(), claims: binding.claims.clone(), conflict_of: binding.conflict_of.clone() };
    tx.put_place(&at.dir, &at.name, place);
}

/// Forgets what stands at `at`; its inode too when that was its last name.
pub(crate) fn forget(tx: &mut Tx<'_>, at: &At) -> Result<()> {
    let Some(place) = tx.place(&at.dir, &at.name)? else { return Ok(()) };
    let before = bound_by(tx, &place.node)?;
    tx.delete_place(&at.dir, &at.name);
    if let Some(node) = tx.node(&place.node)? {
        let mut node = (*node).clone();
        node.names.retain(|(dir, name)| (dir, name) != (&at.dir, &at.name));
        if node.names.is_empty() {
            tx.delete_node(&place.node);
        } else {
            tx.put_node(&place.node, node);
        }
    }
    rebind(tx, &place.node, &before)
}

/// The entries an inode stands for, in order: members of a directory, claims at a leaf's names.
fn bound_by(tx: &mut Tx<'_>, key: &NodeKey) -> Result<Entries> {
    let mut out = Entries::new();
    let Some(node) = tx.node(key)? else { return Ok(out) };
    if let Bind::Dir(members) = &node.bind {
        out.extend_from_slice(members);
    } else {
        for (dir, name) in &node.names {
            let place = tx.place(dir, name)?;
            out.extend(place.iter().flat_map(|p| &p.claims).map(|c| c.entry));
        }
    }
    out.sort_unstable();
    out.dedup();
    Ok(out)
}

/// Brings the `bound` lists of entries up to what inode `key` stands for now, given what it did before.
fn rebind(tx: &mut Tx<'_>, key: &NodeKey, before: &Entries) -> Result<()> {
    let now = bound_by(tx, key)?;
    for gone in before.iter().filter(|e| now.binary_search(e).is_err()) {
        set_bound(tx, *gone, key, false)?;
    }
    for come in now.iter().filter(|e| before.binary_search(e).is_err()) {
        set_bound(tx, *come, key, true)?;
    }
    Ok(())
}

/// The root has no row: the index knows its node by itself.
fn set_bound(tx: &mut Tx<'_>, entry: EntryId, key: &NodeKey, bound: bool) -> Result<()> {
    let Some(row) = tx.entry(entry)? else { return Ok(()) };
    if row.bound.contains(key) == bound {
        return Ok(());
    }
    let mut row = (*row).clone();
    if bound {
        row.bound.push(key.clone());
    } else {
        row.bound.retain(|k| k != key);
    }
    tx.put_entry(row)
}
