//! What a user did on this disk, as new entry states (model-findings 3.5).
//!
//! Every function judges by what the *paths on this disk* were materialised with (places, claims,
//! bound members), never by the merged state, gives each change a fresh dot and a stamp above all it
//! saw, and brings places and nodes up to date. A change is always an upper bound of the state it
//! starts from, which is checked where debug assertions are on.
//! Fidelity: if the disk equalled the effective tree before the operation, it does afterwards.
//!
//! The parts: `records` keeps places, nodes and bound lists; `chain` asserts the directories that a change
//! relies on; `names` gives, moves and drops names of leaves; `settle` turns conflict copies into plain files; `withdraw` takes back
//! what was lost before anybody had it.

mod chain;
mod names;
mod records;
mod settle;
mod withdraw;

use crate::disk::{Bind, Claim, Fingerprint, Node, NodeKey, Place, Wanted};
use crate::entry::{At, Entry, Link, Version};
use crate::id::{Dot, EntryId, Kind, LinkId, Name, Stamp};
use crate::meta::{Attrs, Content, Time};
use crate::mutant::mutant;
use crate::tree;
use crate::tx::{Error, Result, Tx};
use crate::vv::VersionVector;
use smallvec::{SmallVec, smallvec};
use std::sync::Arc;

pub use withdraw::{give_up, has_earlier, may_withdraw, withdraw};

pub(crate) use records::{add_place, bind, places_of};

/// What a look at an inode gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Looked {
    /// Its identity.
    pub key: NodeKey,
    /// What it is.
    pub kind: Kind,
    /// Stat before and after reading were equal to this.
    pub fingerprint: Fingerprint,
    /// Younger than the file system's tick: look again later.
    pub racy: bool,
    /// Attributes.
    pub attrs: Attrs,
    /// What it holds; `None` for directories, and where a caller of [`attrs`] did not read it.
    pub content: Option<Content>,
}

/// How a new version or name is stamped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A user's change: stamps are above all seen, not before now.
    User,
    /// Found by a replica's first scan: versions are stamped with their mtime (capped at now), names
    /// with the smallest stamp, so any live change beats them.
    Import,
}

/// A directory and a name in it, on this disk.
pub type Spot<'a> = (&'a NodeKey, &'a Name);

/// Records the root directory's node (no dot). Idempotent.
pub fn init_root(tx: &mut Tx<'_>, root: &Looked) -> Result<()> {
    if tx.root_node()?.as_ref() == Some(&root.key) && tx.node(&root.key)?.is_some() {
        return Ok(());
    }
    tx.set_root_node(&root.key);
    let bind = Bind::Dir(vec![EntryId::ROOT]);
    tx.put_node(&root.key, node_of(root, Wanted::UNKNOWN, Vec::new(), bind));
    Ok(())
}

/// The root's attributes become part of the state: by the first replica's scan. Its id is known to all, so it
/// is the one entry that is not born by a dot.
pub fn import_root(tx: &mut Tx<'_>) -> Result<()> {
    let Some(key) = tx.root_node()? else { return Ok(()) };
    if tx.entry(EntryId::ROOT)?.is_some() {
        return Ok(());
    }
    let given = tx.node_must(&key)?.given.clone();
    first_root_attrs(tx, Origin::Import, &given)
}

fn first_root_attrs(tx: &mut Tx<'_>, origin: Origin, attrs: &Attrs) -> Result<()> {
    let dot = tx.new_dot();
    let stamp = tx.stamp_above(Stamp::MIN);
    let time_stamp = if origin == Origin::Import { Stamp::MIN } else { stamp };
    let root = Entry {
        id: EntryId::ROOT,
        kind: Kind::Dir,
        ctx: VersionVector::from_dot(dot),
        removed: VersionVector::new(),
        data: Default::default(),
        links: Default::default(),
        meta: (stamp, timeless(attrs.clone())),
        dir_time: attrs.dir_mtime.map(|t| (time_stamp, t)),
        hist: Vec::new(),
    };
    tree::put_state(tx, root, dot.n)
}

/// A new inode (of any kind) at a free name. Whatever was recorded at that name is gone.
pub fn create(tx: &mut Tx<'_>, at: Spot<'_>, new: &Looked, origin: Origin) -> Result<()> {
    let parent = chain::use_dir(tx, at.0)?;
    let seen = match origin {
        Origin::Import => Stamp::MIN,
        Origin::User => {
            remove(tx, at)?;
            names::stamp_at(tx, parent, at.1)?
        }
    };
    let dot = tx.new_dot();
    let stamps = Stamps::new(tx, origin, seen, new.fingerprint.mtime);
    let attrs = fitting(new.kind, new.attrs.clone());
    let content = leaf_content(new)?;
    let entry = newborn(dot, new.kind, (parent, at.1), content, attrs, stamps);
    let wanted = Wanted::of(&entry.attrs(), content.map(Content::mtime));
    tree::put_state(tx, entry, dot.n)?;
    let (bound, claims) = match content {
        Some(c) => (
            Bind::Leaf { identity: c.identity() },
            vec![Claim { entry: EntryId(dot), link: LinkId(dot), name_dot: dot, version: dot }],
        ),
        None => (Bind::Dir(vec![EntryId(dot)]), Vec::new()),
    };
    let names = vec![(at.0.clone(), at.1.clone())];
    tx.put_node(&new.key, node_of(new, wanted, names, bound));
    tx.put_place(at.0, at.1, Place { node: new.key.clone(), claims, conflict_of: None });
    records::bind(tx, EntryId(dot), &new.key)
}

/// A known leaf inode has other content (and maybe other attributes).
pub fn write(tx: &mut Tx<'_>, new: &Looked) -> Result<()> {
    let node = tx.node_must(&new.key)?;
    let content = leaf_content(new)?.ok_or_else(|| no_content(new))?.clone();
    let same = matches!(&node.bind, Bind::Leaf { identity } if *identity == content.identity());
    if !(same && node.fingerprint.mtime == new.fingerprint.mtime) {
        write_content(tx, &new.key, content)?;
    }
    attrs(tx, new)
}

/// An unknown inode sits at a known leaf's name whose inode is gone from there: a save by temporary
/// file. A data write to the known entry if kinds are equal and the old inode has no other names; else unlink and create.
pub fn replace(tx: &mut Tx<'_>, at: Spot<'_>, new: &Looked) -> Result<()> {
    let Some(place) = tx.place(at.0, at.1)? else { return create(tx, at, new, Origin::User) };
    let old = tx.node_must(&place.node)?;
    if old.kind != new.kind || old.kind.is_dir() || old.names.len() != 1 {
        remove(tx, at)?;
        return create(tx, at, new, Origin::User);
    }
    records::change_inode(tx, at, &place, &new.key)?;
    write(tx, new)
}

/// A known inode has other attributes (mode, owner, xattrs; a directory's mtime), content as before.
/// Also what refreshes an inode's fingerprint after a look that found nothing new.
///
/// Only attributes which depart from what the file system gave back are a user's change.
pub fn attrs(tx: &mut Tx<'_>, new: &Looked) -> Result<()> {
    let looked = fitting(new.kind, new.attrs.clone());
    let before = tx.node_must(&new.key)?;
    if before.given != looked {
        for id in attrs_owners(tx, &new.key)? {
            change_attrs(tx, id, &new.key, &before.given, &looked)?;
        }
    }
    let mut node = (*tx.node_must(&new.key)?).clone();
    node.fingerprint = new.fingerprint;
    node.racy = new.racy;
    node.given = looked;
    tx.put_node(&new.key, node);
    Ok(())
}

/// A leaf's name is gone.
pub fn unlink(tx: &mut Tx<'_>, at: Spot<'_>) -> Result<()> {
    let Some(place) = tx.place(at.0, at.1)? else { return Ok(()) };
    if place.conflict_of.is_none() {
        match tx.node_must(&place.node)?.names.len() {
            1 => settle::copies_of_removed(tx, at)?,
            _ => settle::copies_of(tx, at, None)?,
        }
    }
    names::vacate(tx, at, &place)
}

/// A directory is gone. Places below it must have been removed before.
pub fn rmdir(tx: &mut Tx<'_>, at: Spot<'_>) -> Result<()> {
    let Some(place) = tx.place(at.0, at.1)? else { return Ok(()) };
    chain::pin_repaired(tx)?;
    settle::copies_of(tx, at, None)?;
    let above = records::members(tx, at.0)?;
    let members = records::members(tx, &place.node)?;
    for id in &members {
        let id = *id;
        if chain::is_there(tx, id, &above, at.1)? {
            change(tx, id, |e, _| {
                let ctx = e.ctx.clone();
                for link in &mut e.links {
                    link.gone.join(&ctx);
                }
            })?;
        }
    }
    records::erase_place(tx, at)?;
    // One that somebody had removed before, and that lives by what this disk does not show, comes again.
    for id in members {
        if tree::is_live(tx, id)? {
            tx.add_pending(id);
        }
    }
    Ok(())
}

/// False if a symbolic link or special file stands at a name, and the states that came meanwhile have forgotten what it was: it
/// was changed elsewhere, and perhaps removed.
fn is_content_known(tx: &mut Tx<'_>, at: Spot<'_>) -> Result<bool> {
    let Some(place) = tx.place(at.0, at.1)? else { return Ok(true) };
    if matches!(tx.node_must(&place.node)?.kind, Kind::File | Kind::Dir) {
        return Ok(true);
    }
    for claim in &place.claims {
        if tx.entry(claim.entry)?.is_none_or(|row| row.entry.version(claim.version).is_none()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// To be called before an inode is recorded under another name, or one more: if the states have forgotten what a symbolic link
/// or special file holds, it goes from all its names, which are returned, and is new where it is.
pub fn forget_unknown(tx: &mut Tx<'_>, node: &NodeKey) -> Result<Vec<(NodeKey, Name)>> {
    let names = tx.node_must(node)?.names.clone();
    let mut known = true;
    for (dir, name) in &names {
        known &= is_content_known(tx, (dir, name))?;
    }
    if known {
        return Ok(Vec::new());
    }
    for (dir, name) in &names {
        unlink(tx, (dir, name))?;
    }
    Ok(names)
}

/// An inode has moved from one name to another, over whatever was materialised there. What it holds is known ([`forget_unknown`]).
///
/// `shipped_n` is the greatest feed position that was ever sent to any peer: a file that never left
/// this replica and is renamed over a known one is a save by temporary file, so a data write to the known entry.
pub fn rename(tx: &mut Tx<'_>, from: Spot<'_>, to: Spot<'_>, shipped_n: u64) -> Result<()> {
    let Some(place) = tx.place(from.0, from.1)? else {
        return Err(Error::Inconsistent(format!("renamed from {:?}, where nothing was", from.1)));
    };
    let over = tx.place(to.0, to.1)?;
    // POSIX: renaming onto another name of the same inode does nothing.
    if from == to || over.as_ref().is_some_and(|o| o.node == place.node) {
        return Ok(());
    }
    if tx.node_must(&place.node)?.kind.is_dir() {
        return rename_dir(tx, from, to, &place);
    }
    match over {
        Some(over) if is_save(tx, &place, &over, shipped_n)? => save_over(tx, from, to, &place),
        over => rename_leaf(tx, from, to, over.is_some()),
    }
}

/// A known leaf inode, whose content is known ([`forget_unknown`]), has another name, at a free name.
pub fn link(tx: &mut Tx<'_>, node: &NodeKey, to: Spot<'_>) -> Result<()> {
    remove(tx, to)?;
    settle::names_of_inode(tx, node)?;
    settle::copies_of(tx, to, None)?;
    let known = tx.node_must(node)?;
    let Some((dir, name)) = known.names.first().cloned() else {
        return Err(Error::Inconsistent(format!("linked node {node:?} has no name")));
    };
    names::make_firm(tx, node)?;
    let owner = records::owner_at(tx, (&dir, &name))?;
    if names::would_be_lowest(tx, owner)? {
        // Extra siblings are shown at the lowest name: they would move there.
        settle::extras_of(tx, owner, None)?;
    }
    let claim = names::add_link(tx, owner, node, to)?;
    records::add_place(tx, to, Place { node: node.clone(), claims: vec![claim], conflict_of: None })?;
    names::follow_version(tx, node, owner, claim.version)
}

// ----- parts of the operations

/// Takes away what is recorded at a name.
fn remove(tx: &mut Tx<'_>, at: Spot<'_>) -> Result<()> {
    let Some(place) = tx.place(at.0, at.1)? else { return Ok(()) };
    if tx.node_must(&place.node)?.kind.is_dir() { rmdir(tx, at) } else { unlink(tx, at) }
}

fn rename_dir(tx: &mut Tx<'_>, from: Spot<'_>, to: Spot<'_>, place: &Place) -> Result<()> {
    remove(tx, to)?;
    chain::pin_repaired(tx)?;
    settle::copies_of(tx, from, None)?;
    settle::copies_of(tx, to, None)?;
    let parent = chain::use_dir(tx, to.0)?;
    for id in records::members(tx, &place.node)? {
        chain::set_dir_at(tx, id, parent, to.1)?;
        if mutant!(OneMemberMoved) {
            break;
        }
    }
    records::move_place(tx, from, to, Place { conflict_of: None, ..place.clone() })
}

fn rename_leaf(tx: &mut Tx<'_>, from: Spot<'_>, to: Spot<'_>, over: bool) -> Result<()> {
    let claim = records::owner_at(tx, from)?;
    // Who moves one of several siblings, or puts it over another, has chosen it: it is written again. Settling those
    // beside it may leave it as its entry's only version here, which somebody else takes away meanwhile.
    let moved = must_place(tx, from)?;
    let mut chosen = !names::is_whole(tx, &moved)?;
    settle::other_names(tx, from)?;
    if over {
        // While they are siblings of what they stand beside: the last that is left of them would be their whole entry, and
        // go with it if somebody else removes it as one of several.
        settle::copies_of(tx, to, Some(from))?;
        // What was settled above may have stood there.
        if let Some(over) = tx.place(to.0, to.1)? {
            chosen |= over.claims.iter().any(|c| c.entry == claim.entry && c.version != claim.version);
            if tx.node_must(&over.node)?.kind.is_dir() {
                rmdir(tx, to)?;
            } else {
                names::vacate(tx, to, &over)?;
            }
        }
    }
    let place = must_place(tx, from)?;
    if place.conflict_of.is_none() {
        settle::copies_of(tx, from, None)?;
    }
    settle::copies_of(tx, to, Some(from))?;
    let place = must_place(tx, from)?;
    let old = records::owner_at(tx, from)?;
    let claim = names::retitle(tx, from, &place, to, chosen, names::Left::Out)?;
    let moved = Place { node: place.node.clone(), claims: vec![claim], conflict_of: None };
    records::move_place(tx, from, to, moved)?;
    names::follow_version(tx, &place.node, old, claim.version)
}

/// True if the leaf at `at` is an entry that was made on this disk after feed position `n`, and has no other name.
pub fn is_made_since(tx: &mut Tx<'_>, at: Spot<'_>, n: u64) -> Result<bool> {
    let Some(place) = tx.place(at.0, at.1)? else { return Ok(false) };
    let [claim] = place.claims[..] else { return Ok(false) };
    let birth = claim.entry.0;
    Ok(birth.replica == tx.me()
        && birth.n > n
        && place.conflict_of.is_none()
        && tx.node_must(&place.node)?.names.len() == 1)
}

/// True if a rename of `place` over `over` is a save by temporary file.
fn is_save(tx: &mut Tx<'_>, place: &Place, over: &Place, shipped_n: u64) -> Result<bool> {
    let [claim] = place.claims[..] else { return Ok(false) };
    let (from, to) = (tx.node_must(&place.node)?, tx.node_must(&over.node)?);
    let birth = claim.entry.0;
    Ok(birth.replica == tx.me()
        && birth.n > shipped_n
        && place.conflict_of.is_none()
        && from.kind == to.kind
        && from.names.len() == 1
        && to.names.len() == 1
        && over.claims.iter().all(|c| c.entry != claim.entry))
}

fn save_over(tx: &mut Tx<'_>, from: Spot<'_>, to: Spot<'_>, place: &Place) -> Result<()> {
    let inode = tx.node_must(&place.node)?;
    let content = names::content_of(tx, &place.node, place.claims[0])?;
    let looked = Looked {
        key: place.node.clone(),
        kind: inode.kind,
        fingerprint: inode.fingerprint,
        racy: inode.racy,
        attrs: inode.given.clone(),
        content: Some(content),
    };
    unlink(tx, from)?;
    // What is replaced may be a copy of the name that went, which was settled with it.
    let over = must_place(tx, to)?;
    records::change_inode(tx, to, &over, &looked.key)?;
    write(tx, &looked)
}

fn write_content(tx: &mut Tx<'_>, key: &NodeKey, content: Content) -> Result<()> {
    settle::names_of_inode(tx, key)?;
    let spots = tx.node_must(key)?.names.clone();
    let Some((dir, name)) = spots.first() else {
        return Err(Error::Inconsistent(format!("written node {key:?} has no name")));
    };
    let owner = records::owner_at(tx, (dir, name))?;
    let mut shown: SmallVec<[Dot; 1]> = SmallVec::new();
    for (dir, name) in &spots {
        settle::equal_copies(tx, (dir, name), &content)?;
        for claim in must_place(tx, (dir, name))?.claims {
            if claim.entry == owner.entry {
                shown.push(claim.version);
            } else {
                // At once: the next of the inode's names must not rely on a name that has just gone.
                names::drop_claim(tx, (dir, name), claim)?;
                let mut place = must_place(tx, (dir, name))?;
                place.claims.retain(|c| (c.entry, c.link) != (claim.entry, claim.link));
                records::set_place(tx, (dir, name), place)?;
            }
        }
    }
    names::drop_hidden(tx, owner, key)?;
    let in_step = records::is_in_step(tx, key, owner)?;
    let identity = content.identity();
    let mtime = content.mtime();
    let dot = change_with(tx, owner.entry, |tx, e, dot| {
        let stamp = tx.stamp_above(e.stamp_max());
        let replaced = |v: &Version| shown.contains(&v.dot) || mutant!(SiblingsOverwritten);
        // One that counts no more stays: somebody may have given a name to it meanwhile, which holds it.
        e.data.retain(|v| !replaced(v));
        e.data.push(Version { dot, stamp, content });
        e.data.sort_by_key(|v| v.dot);
        Ok(())
    })?;
    for (dir, name) in &spots {
        let mut place = must_place(tx, (dir, name))?;
        place.claims.retain(|c| c.entry == owner.entry);
        for c in &mut place.claims {
            c.version = dot;
        }
        place.claims.dedup();
        records::set_place(tx, (dir, name), place)?;
    }
    let mut node = (*tx.node_must(key)?).clone();
    node.bind = Bind::Leaf { identity };
    let entry = tx.entry_must(owner.entry)?;
    node.wanted = if in_step { Wanted::of(&entry.entry.meta.1, Some(mtime)) } else { Wanted::UNKNOWN };
    tx.put_node(key, node);
    for link in entry.entry.shown_links() {
        chain::assert_chain(tx, link.at.parent)?;
    }
    Ok(())
}

/// The entries whose attributes an inode shows.
fn attrs_owners(tx: &mut Tx<'_>, key: &NodeKey) -> Result<Vec<EntryId>> {
    let node = tx.node_must(key)?;
    if let Bind::Dir(members) = &node.bind {
        return Ok(members.clone());
    }
    // Attributes belong to the entry: copies that are its siblings have to become entries first, the changed one and
    // those beside it.
    settle::extra_names(tx, key)?;
    let Some((dir, name)) = node.names.first() else { return Ok(Vec::new()) };
    let owner = records::owner_at(tx, (dir, name))?;
    settle::extras_of(tx, owner, None)?;
    Ok(vec![owner.entry])
}

fn change_attrs(tx: &mut Tx<'_>, id: EntryId, key: &NodeKey, given: &Attrs, looked: &Attrs) -> Result<()> {
    if id.is_root() && tx.entry(id)?.is_none() {
        return first_root_attrs(tx, Origin::User, looked);
    }
    let row = tx.entry_must(id)?;
    let old = row.entry.attrs();
    let new = departures(&old, given, looked);
    if new == old {
        // The user did what the state says already: what was last applied says nothing of this disk any more.
        let node = (*tx.node_must(key)?).clone();
        tx.put_node(key, Node { wanted: Wanted::UNKNOWN, ..node });
        return Ok(());
    }
    let node = tx.node_must(key)?;
    let mtime = match node.bind {
        Bind::Dir(_) => None,
        Bind::Leaf { .. } => records::version_mtime(tx, key)?,
    };
    let in_step = node.wanted == Wanted::of(&old, mtime);
    change_with(tx, id, |tx, e, _| {
        let stamp = tx.stamp_above(e.stamp_max());
        // A directory's time is no reason to win over a concurrent change of its mode.
        let attrs = timeless(new.clone());
        if attrs != e.meta.1 {
            e.meta = (stamp, attrs);
        }
        if new.dir_mtime != old.dir_mtime {
            e.dir_time = new.dir_mtime.map(|t| (stamp, t));
        }
        Ok(())
    })?;
    let mut node = (*node).clone();
    node.wanted = if in_step { Wanted::of(&new, mtime) } else { Wanted::UNKNOWN };
    tx.put_node(key, node);
    Ok(())
}

/// The state's attributes with those replaced that depart from what was given back.
fn departures(state: &Attrs, given: &Attrs, looked: &Attrs) -> Attrs {
    let mut new = state.clone();
    if looked.mode != given.mode {
        new.mode = looked.mode;
    }
    if looked.uid != given.uid {
        new.uid = looked.uid;
    }
    if looked.gid != given.gid {
        new.gid = looked.gid;
    }
    if (looked.uid, looked.gid) != (given.uid, given.gid) || looked.owner_names != given.owner_names {
        new.owner_names = looked.owner_names.clone();
    }
    depart_xattrs(&mut new, given, looked);
    if looked.dir_mtime != given.dir_mtime && looked.dir_mtime.is_some() {
        new.dir_mtime = looked.dir_mtime;
    }
    new
}

fn depart_xattrs(new: &mut Attrs, given: &Attrs, looked: &Attrs) {
    let has = |a: &Attrs, x: &(Vec<u8>, Vec<u8>)| a.xattrs.binary_search(x).is_ok();
    for (key, _) in given.xattrs.iter().filter(|x| !has(looked, x)) {
        new.xattrs.retain(|x| x.0 != *key);
    }
    for x in looked.xattrs.iter().filter(|x| !has(given, x)) {
        new.xattrs.retain(|y| y.0 != x.0);
        new.xattrs.push(x.clone());
    }
    new.xattrs.sort();
}

// ----- making states

/// The stamps of a new entry.
#[derive(Clone, Copy)]
struct Stamps {
    version: Stamp,
    name: Stamp,
    meta: Stamp,
}

impl Stamps {
    fn new(tx: &Tx<'_>, origin: Origin, seen: Stamp, mtime: Time) -> Stamps {
        match origin {
            Origin::User => Stamps::all(tx.stamp_above(seen)),
            Origin::Import => Stamps { version: import_stamp(tx, mtime), name: Stamp::MIN, meta: Stamp::MIN },
        }
    }

    fn all(s: Stamp) -> Stamps {
        Stamps { version: s, name: s, meta: s }
    }
}

/// The stamp of a version found on disk: its modification time, but never later than now.
pub(crate) fn import_stamp(tx: &Tx<'_>, mtime: Time) -> Stamp {
    Stamp { epoch: tx.env.epoch, clock_ns: mtime.as_ns().min(tx.env.now_ns), replica: tx.me() }
}

/// A new entry, everything in it made by `dot`.
fn newborn(
    dot: Dot,
    kind: Kind,
    at: (EntryId, &Name),
    content: Option<&Content>,
    attrs: Attrs,
    stamps: Stamps,
) -> Entry {
    let (parent, name) = at;
    let holds = if content.is_some() { dot } else { Dot::default() };
    let place = At { stamp: stamps.name, dot, parent, name: name.clone(), holds };
    let version = |c: &Content| Version { dot, stamp: stamps.version, content: c.clone() };
    Entry {
        id: EntryId(dot),
        kind,
        ctx: VersionVector::from_dot(dot),
        removed: VersionVector::new(),
        data: content.into_iter().map(version).collect(),
        links: smallvec![Link { id: LinkId(dot), at: place, gone: VersionVector::new() }],
        dir_time: attrs.dir_mtime.map(|t| (stamps.meta, t)),
        meta: (stamps.meta, timeless(attrs)),
        hist: if kind.is_dir() { vec![(parent, stamps.name)] } else { Vec::new() },
    }
}

/// Changes an entry under a fresh dot, which is returned.
fn change(tx: &mut Tx<'_>, id: EntryId, f: impl FnOnce(&mut Entry, Dot)) -> Result<Dot> {
    change_with(tx, id, |_, e, dot| {
        f(e, dot);
        Ok(())
    })
}

fn change_with(
    tx: &mut Tx<'_>,
    id: EntryId,
    f: impl FnOnce(&mut Tx<'_>, &mut Entry, Dot) -> Result<()>,
) -> Result<Dot> {
    let row = tx.entry_must(id)?;
    let mut entry = row.entry.clone();
    let dot = tx.new_dot();
    entry.ctx.add(dot);
    f(tx, &mut entry, dot)?;
    debug_assert!(is_above(&row.entry, &entry), "{:?} does not contain {:?}", entry, row.entry);
    tree::put_state(tx, entry, dot.n)?;
    Ok(dot)
}

/// A local change must equal its merge with the state it started from: every part of it won.
fn is_above(old: &Entry, new: &Entry) -> bool {
    let mut merged = old.clone();
    merged.merge(new);
    merged == *new
}

// ----- small helpers

fn node_of(l: &Looked, wanted: Wanted, names: Vec<(NodeKey, Name)>, bind: Bind) -> Node {
    Node {
        kind: l.kind,
        fingerprint: l.fingerprint,
        racy: l.racy,
        given: fitting(l.kind, l.attrs.clone()),
        wanted,
        names,
        bind,
    }
}

/// Only directories have a time among their attributes.
fn fitting(kind: Kind, attrs: Attrs) -> Attrs {
    if kind.is_dir() { attrs } else { timeless(attrs) }
}

/// Attributes as a state has them.
fn timeless(attrs: Attrs) -> Attrs {
    Attrs { dir_mtime: None, ..attrs }
}

fn leaf_content(l: &Looked) -> Result<Option<&Content>> {
    match (&l.content, l.kind.is_dir()) {
        (_, true) => Ok(None),
        (Some(c), false) => Ok(Some(c)),
        (None, false) => Err(no_content(l)),
    }
}

fn no_content(l: &Looked) -> Error {
    Error::Inconsistent(format!("{} {:?} was looked at without its content", l.kind.word(), l.key))
}

fn must_place(tx: &mut Tx<'_>, at: Spot<'_>) -> Result<Place> {
    tx.place(at.0, at.1)?
        .map(Arc::unwrap_or_clone)
        .ok_or_else(|| Error::Inconsistent(format!("nothing is recorded at {:?} in {:?}", at.1, at.0)))
}

#[cfg(test)]
mod tests;
