//! Receive before you scan (model-findings 3.7): a tree on disk meets states that peers already have.
//!
//! Path by path, parents before children: what the tree shows alike is bound to it, other content of
//! the same kind becomes a sibling, everything else a new entry. Nothing here removes anything: what the
//! tree has and the disk lacks is wanted.
//!
//! A disk that had an index and lost it is different in one thing. What only it has may be a user's, or something that was
//! removed elsewhere meanwhile: a new entry would bring that back. The very version that a removal took is bound to
//! the removed entry, and its plan removes it here too; of anything else no entry is made, and the caller puts it aside.

use crate::disk::{Bind, Claim, Node, Place, Wanted};
use crate::entry::{Entry, Version};
use crate::id::{EntryId, Kind, Name};
use crate::local::{self, Looked, Origin, Spot};
use crate::meta::{Content, Digest, Time};
use crate::mutant::mutant;
use crate::rows::Table;
use crate::tree::{self, Group, Shown};
use crate::tx::{Error, Result, Tx};
use std::collections::HashMap;

/// How an inode of the scanned tree was taken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Adopted {
    /// The tree shows the same kind and content there: bound, no dot, nothing to transfer. Attributes
    /// that differ are for the planner to apply.
    Equal,
    /// A directory that the tree has there: bound.
    SameDir,
    /// The tree shows other content there: a sibling (concurrent version; newer mtime wins).
    Different,
    /// The tree has nothing there (or another kind): a new entry. After a lost index nothing was recorded.
    OnlyHere,
    /// Another name of an inode that was taken before; the tree has no such name: it has now. After a lost index
    /// nothing was recorded.
    LinkOnlyHere,
    /// This very name of this very version was removed elsewhere, or the version, or the directory, while we had no index: bound to the
    /// removed entry, to be removed by its plan. Only after a lost index.
    RemovedElsewhere,
}

/// The adoption of one tree.
pub struct Adoption {
    /// What was removed elsewhere. `None` unless the index was lost.
    removed: Option<Removed>,
}

/// Names that were removed, by (directory entry, name).
#[derive(Default)]
struct Removed {
    leaves: HashMap<(EntryId, Name), Vec<RemovedLeaf>>,
    dirs: HashMap<(EntryId, Name), EntryId>,
}

/// A version under a name that was removed.
struct RemovedLeaf {
    claim: Claim,
    kind: Kind,
    identity: Digest,
    mtime: Time,
}

/// How many rows are read at once.
const STEP: usize = 1024;

impl Adoption {
    /// After a peer's states have been read to the head and before anything is planned for this disk.
    /// `lost_index`: the tree was a replica's before, so that what was removed elsewhere since may still be
    /// on it; costs one pass over all entries. `tx` must have no changes yet.
    pub fn new(tx: &mut Tx<'_>, lost_index: bool) -> Result<Adoption> {
        if !lost_index {
            return Ok(Adoption { removed: None });
        }
        let mut removed = Removed::default();
        let mut from = Vec::new();
        loop {
            let rows = tx.scan(Table::Entries, &from, None, STEP)?;
            let Some((last, _)) = rows.last() else { break };
            from = [&last[..], &[0]].concat();
            for (_, value) in &rows {
                removed.note(&tx.decode_entry_row(value)?.entry);
            }
        }
        Ok(Adoption { removed: Some(removed) })
    }

    /// True if this is the disk of a replica that lost its index.
    pub fn lost_index(&self) -> bool {
        self.removed.is_some()
    }

    /// As [`Adoption::new`], of a tree whose index was never lost.
    pub fn none() -> Adoption {
        Adoption { removed: None }
    }

    /// Takes one inode found at `at`, parents before children.
    pub fn adopt(&self, tx: &mut Tx<'_>, at: Spot<'_>, found: &Looked) -> Result<Adopted> {
        let class = match &tx.node_must(at.0)?.bind {
            Bind::Dir(members) => members.clone(),
            Bind::Leaf { .. } => return Err(Error::Inconsistent(format!("{:?} is no directory", at.0))),
        };
        let shown = tree::shown_at(tx, &class, at.1)?;
        if found.kind.is_dir() {
            return self.adopt_dir(tx, at, found, &class, shown);
        }
        let Some(content) = &found.content else {
            return Err(Error::Inconsistent(format!("{:?} was found without content", at.1)));
        };
        self.adopt_leaf(tx, at, found, content, &class, shown)
    }

    /// As [`Adoption::adopt`], for a follower, which makes no dots: what the tree shows alike is bound to it;
    /// of everything else only is said what it would have been taken for.
    pub fn bind(&self, tx: &mut Tx<'_>, at: Spot<'_>, found: &Looked) -> Result<Adopted> {
        let class = match &tx.node_must(at.0)?.bind {
            Bind::Dir(members) => members.clone(),
            Bind::Leaf { .. } => return Err(Error::Inconsistent(format!("{:?} is no directory", at.0))),
        };
        let shown = tree::shown_at(tx, &class, at.1)?;
        if found.kind.is_dir() {
            return if shown.dir.is_empty() {
                Ok(Adopted::OnlyHere)
            } else {
                bind_dir(tx, at, found, shown.dir)?;
                Ok(Adopted::SameDir)
            };
        }
        let Some(content) = &found.content else {
            return Err(Error::Inconsistent(format!("{:?} was found without content", at.1)));
        };
        match equal_group(tx, &class, at.1, &shown, found.kind, content)? {
            Some((group, base)) => match claims_for(tx, found, &group)? {
                Some(claims) => bind_leaf(tx, at, found, content, claims, base),
                None => Ok(Adopted::Different),
            },
            None if shown.dir.is_empty() && shown.groups.is_empty() => Ok(Adopted::OnlyHere),
            None => Ok(Adopted::Different),
        }
    }

    fn adopt_leaf(
        &self,
        tx: &mut Tx<'_>,
        at: Spot<'_>,
        found: &Looked,
        content: &Content,
        class: &[EntryId],
        shown: Shown,
    ) -> Result<Adopted> {
        if let Some((group, base)) = equal_group(tx, class, at.1, &shown, found.kind, content)?
            && let Some(claims) = claims_for(tx, found, &group)?
        {
            return bind_leaf(tx, at, found, content, claims, base);
        }
        if let Some(removed) = &self.removed
            && !mutant!(RemovedElsewhereKept)
            && let Some((claim, base)) = removed.shown_as(class, at.1, found.kind, content)
            && is_of_entry(tx, found, claim.entry)?
        {
            bind_leaf(tx, at, found, content, vec![claim], base)?;
            return Ok(Adopted::RemovedElsewhere);
        }
        if tx.node(&found.key)?.is_some() {
            if self.removed.is_none() {
                local::link(tx, &found.key, at)?;
            }
            return Ok(Adopted::LinkOnlyHere);
        }
        let real = shown.groups.iter().find(|g| !g.conflict);
        if let Some(group) = real
            && kind_of(tx, group)? == Some(found.kind)
        {
            add_sibling(tx, at, found, content, group)?;
            return Ok(Adopted::Different);
        }
        self.only_here(tx, at, found)
    }

    fn adopt_dir(
        &self,
        tx: &mut Tx<'_>,
        at: Spot<'_>,
        found: &Looked,
        class: &[EntryId],
        shown: Shown,
    ) -> Result<Adopted> {
        if !shown.dir.is_empty() {
            bind_dir(tx, at, found, shown.dir)?;
            return Ok(Adopted::SameDir);
        }
        // Its children are judged one by one: what is none's but ours is put aside before the plan removes the rest.
        if let Some(dead) = self.removed.as_ref().and_then(|r| r.dir(class, at.1))
            && shown.groups.is_empty()
            && tx.entry_must(dead)?.bound.is_empty()
        {
            bind_dir(tx, at, found, vec![dead])?;
            return Ok(Adopted::RemovedElsewhere);
        }
        self.only_here(tx, at, found)
    }

    fn only_here(&self, tx: &mut Tx<'_>, at: Spot<'_>, found: &Looked) -> Result<Adopted> {
        if self.removed.is_none() {
            local::create(tx, at, found, Origin::Import)?;
        }
        Ok(Adopted::OnlyHere)
    }
}

impl Removed {
    fn note(&mut self, e: &Entry) {
        for link in &e.links {
            let at = || (link.at.parent, link.at.name.clone());
            if e.kind.is_dir() {
                if !link.present() {
                    self.dirs.insert(at(), e.id);
                }
                continue;
            }
            // One of several versions may have been removed, and the name have stayed for the others.
            let gone = e.data.iter().filter(|v| !link.present() || !e.counts(v));
            let mut gone = gone.peekable();
            if gone.peek().is_some() {
                let leaves = self.leaves.entry(at()).or_default();
                leaves.extend(gone.map(|v| RemovedLeaf {
                    claim: Claim { entry: e.id, link: link.id, name_dot: link.at.dot, version: v.dot },
                    kind: e.kind,
                    identity: v.content.identity(),
                    mtime: v.content.mtime(),
                }));
            }
        }
    }

    /// The version that was removed at this name, or at the one that this is a conflict name of, with the latter.
    fn shown_as(
        &self,
        class: &[EntryId],
        name: &Name,
        kind: Kind,
        content: &Content,
    ) -> Option<(Claim, Option<Name>)> {
        if let Some(claim) = self.leaf(class, name, kind, content) {
            return Some((claim, None));
        }
        let base = tree::conflict_base(name)?;
        self.leaf(class, &base, kind, content).map(|claim| (claim, Some(base)))
    }

    /// The version that was removed at this name, if it is this one, down to its time: a file made anew since is none.
    fn leaf(&self, class: &[EntryId], name: &Name, kind: Kind, content: &Content) -> Option<Claim> {
        let same = |r: &&RemovedLeaf| {
            r.kind == kind && r.identity == content.identity() && r.mtime == content.mtime()
        };
        let mut candidates = class.iter().filter_map(|dir| self.leaves.get(&(*dir, name.clone()))).flatten();
        candidates.find(same).map(|r| r.claim)
    }

    fn dir(&self, class: &[EntryId], name: &Name) -> Option<EntryId> {
        class.iter().find_map(|dir| self.dirs.get(&(*dir, name.clone())).copied())
    }
}

/// True if the inode is not known yet, or known as one of this entry: all names of an inode belong to one.
fn is_of_entry(tx: &mut Tx<'_>, found: &Looked, entry: EntryId) -> Result<bool> {
    let Some(node) = tx.node(&found.key)? else { return Ok(true) };
    let Some((dir, name)) = node.names.first() else { return Ok(true) };
    Ok(tx.place(dir, name)?.is_some_and(|p| p.claims.first().is_some_and(|c| c.entry == entry)))
}

fn bind_dir(tx: &mut Tx<'_>, at: Spot<'_>, found: &Looked, members: Vec<EntryId>) -> Result<()> {
    tx.put_node(&found.key, node_of(found, at, Bind::Dir(members.clone())));
    tx.put_place(at.0, at.1, Place { node: found.key.clone(), claims: Vec::new(), conflict_of: None });
    for member in members {
        local::bind(tx, member, &found.key)?;
        tx.add_pending(member);
    }
    Ok(())
}

/// The group that has `content`: the one shown under this very name, or another at the same name that is not on
/// this disk yet, or one that has `name` as its conflict name. With it the real name, if `name` is a conflict name.
fn equal_group(
    tx: &mut Tx<'_>,
    class: &[EntryId],
    name: &Name,
    shown: &Shown,
    kind: Kind,
    content: &Content,
) -> Result<Option<(Group, Option<Name>)>> {
    for base in tree::conflict_bases(tx, class, name)? {
        let copies = tree::shown_at(tx, class, &base)?;
        if let Some(group) = copies.groups.iter().find(|g| g.conflict && g.name == *name)
            && is_equal(tx, group, kind, content)?
        {
            return Ok(Some((group.clone(), Some(base))));
        }
    }
    for group in &shown.groups {
        if is_equal(tx, group, kind, content)? && (group.name == *name || !is_on_disk(tx, group)?) {
            let base = group.conflict.then(|| name.clone());
            return Ok(Some((group.clone(), base)));
        }
    }
    Ok(None)
}

fn is_equal(tx: &mut Tx<'_>, group: &Group, kind: Kind, content: &Content) -> Result<bool> {
    let Some(first) = group.claims.first() else { return Ok(false) };
    let row = tx.entry_must(first.entry)?;
    let same = |v: &Version| v.content.identity() == content.identity();
    Ok(row.entry.kind == kind && row.entry.version(first.version).is_some_and(same))
}

fn kind_of(tx: &mut Tx<'_>, group: &Group) -> Result<Option<Kind>> {
    match group.claims.first() {
        Some(first) => Ok(Some(tx.entry_must(first.entry)?.entry.kind)),
        None => Ok(None),
    }
}

fn is_on_disk(tx: &mut Tx<'_>, group: &Group) -> Result<bool> {
    let Some(first) = group.claims.first() else { return Ok(false) };
    let places = local::places_of(tx, first.entry)?;
    let same = |c: &Claim| (c.link, c.version) == (first.link, first.version);
    Ok(places.iter().any(|(_, _, p)| p.claims.iter().any(same)))
}

fn claims_of(group: &Group) -> Vec<Claim> {
    let claim =
        |s: &tree::Shares| Claim { entry: s.entry, link: s.link, name_dot: s.name_dot, version: s.version };
    group.claims.iter().map(claim).collect()
}

/// The claims of a group for a name of the inode that was found, owner first. All names of an inode belong to one
/// entry: `None` if the inode was taken before for one that the group has not.
fn claims_for(tx: &mut Tx<'_>, found: &Looked, group: &Group) -> Result<Option<Vec<Claim>>> {
    let mut claims = claims_of(group);
    let Some(node) = tx.node(&found.key)? else { return Ok(Some(claims)) };
    let owner = match node.names.first() {
        Some((dir, name)) => tx.place(dir, name)?.and_then(|p| p.claims.first().copied()),
        None => None,
    };
    let same = |c: &Claim| owner.is_some_and(|o| o.entry == c.entry && o.version == c.version);
    let Some(i) = claims.iter().position(same) else { return Ok(None) };
    claims[..=i].rotate_right(1);
    Ok(Some(claims))
}

/// Binds a leaf to what the tree shows.
fn bind_leaf(
    tx: &mut Tx<'_>,
    at: Spot<'_>,
    found: &Looked,
    content: &Content,
    claims: Vec<Claim>,
    base: Option<Name>,
) -> Result<Adopted> {
    if tx.node(&found.key)?.is_none() {
        let bind = Bind::Leaf { identity: content.identity() };
        tx.put_node(&found.key, Node { names: Vec::new(), ..node_of(found, at, bind) });
    }
    for c in &claims {
        // The planner has to compare attributes, and the name if it is not the one shown.
        tx.add_pending(c.entry);
    }
    local::add_place(tx, at, Place { node: found.key.clone(), claims, conflict_of: base })?;
    Ok(Adopted::Equal)
}

/// Adds what was found as a version beside those that the entry has: nobody saw either when making the other.
fn add_sibling(
    tx: &mut Tx<'_>,
    at: Spot<'_>,
    found: &Looked,
    content: &Content,
    group: &Group,
) -> Result<()> {
    let first = &group.claims[0];
    let mut entry = tx.entry_must(first.entry)?.entry.clone();
    let dot = tx.new_dot();
    let stamp = local::import_stamp(tx, content.mtime());
    entry.ctx.add(dot);
    entry.data.push(Version { dot, stamp, content: content.clone() });
    entry.data.sort_by_key(|v| v.dot);
    tree::put_state(tx, entry, dot.n)?;
    let claim = Claim { entry: first.entry, link: first.link, name_dot: first.name_dot, version: dot };
    let bind = Bind::Leaf { identity: content.identity() };
    tx.put_node(&found.key, Node { names: Vec::new(), ..node_of(found, at, bind) });
    local::add_place(tx, at, Place { node: found.key.clone(), claims: vec![claim], conflict_of: None })
}

fn node_of(found: &Looked, at: Spot<'_>, bind: Bind) -> Node {
    let mut given = found.attrs.clone();
    if !found.kind.is_dir() {
        given.dir_mtime = None;
    }
    Node {
        kind: found.kind,
        fingerprint: found.fingerprint,
        racy: found.racy,
        given,
        wanted: Wanted::UNKNOWN,
        names: vec![(at.0.clone(), at.1.clone())],
        bind,
    }
}
