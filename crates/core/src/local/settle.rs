//! Settling: before a name is vacated, replaced or given away, the conflict copies of it that are on this disk
//! become plain files under the names they show (model finding G9).

use super::names::Left;
use super::{Result, Spot, Tx, names, records};
use crate::disk::{Bind, Claim, NodeKey, Place};
use crate::id::{Dot, LinkId, Name, Stamp};
use crate::meta::Content;
use crate::mutant::mutant;
use crate::tree;
use crate::tx::Env;
use std::cmp::Ordering;

/// What a settled name is written with: of no time and no owner.
pub(super) const NOBODY: Env = Env { now_ns: 0, epoch: 0 };

/// Settles all conflict copies of the name `of`, but not the one at `except`.
pub(super) fn copies_of(tx: &mut Tx<'_>, of: Spot<'_>, except: Option<Spot<'_>>) -> Result<()> {
    all_copies(tx, of, except, Left::Out)
}

/// Settles all conflict copies of the name `of`, which is about to be removed.
pub(super) fn copies_of_removed(tx: &mut Tx<'_>, of: Spot<'_>) -> Result<()> {
    all_copies(tx, of, None, Left::Removed)
}

fn all_copies(tx: &mut Tx<'_>, of: Spot<'_>, except: Option<Spot<'_>>, left: Left) -> Result<()> {
    if mutant!(CopiesNotSettled) {
        return Ok(());
    }
    let mut copies = copies(tx, of)?;
    copies.extend(displaced(tx, of)?);
    copies.retain(|(name, _)| except != Some((of.0, name)));
    settle_each(tx, of, copies, left)
}

/// Settles those conflict copies of the name `of` that hold the same as `content`, which is about to be
/// written there: contents that are equal are shown once.
pub(super) fn equal_copies(tx: &mut Tx<'_>, of: Spot<'_>, content: &Content) -> Result<()> {
    let identity = content.identity();
    let mut equal = Vec::new();
    for (name, place) in copies(tx, of)? {
        if tx.node_must(&place.node)?.bind == (Bind::Leaf { identity }) {
            equal.push((name, place));
        }
    }
    settle_each(tx, of, equal, Left::Out)
}

/// Settles these copies of the name `of`. The last sibling that is left is its whole entry, but was none: it is written
/// again, for somebody else may remove it as one of several.
fn settle_each(tx: &mut Tx<'_>, of: Spot<'_>, copies: Vec<(Name, Place)>, left: Left) -> Result<()> {
    let mut siblings = Vec::with_capacity(copies.len());
    for (_, place) in &copies {
        siblings.push(!names::is_whole(tx, place)?);
    }
    for ((name, place), sibling) in copies.iter().zip(siblings) {
        settle(tx, (of.0, name), place, sibling, left)?;
    }
    Ok(())
}

/// Settles all other names of the inode at `at` that are conflict names.
pub(super) fn other_names(tx: &mut Tx<'_>, at: Spot<'_>) -> Result<()> {
    let key = super::must_place(tx, at)?.node;
    for (dir, name) in tx.node_must(&key)?.names.clone() {
        if (&dir, &name) != at {
            own_name(tx, (&dir, &name))?;
        }
    }
    Ok(())
}

/// Settles all names of an inode that are conflict names: the user changes this very inode.
pub(super) fn names_of_inode(tx: &mut Tx<'_>, key: &NodeKey) -> Result<()> {
    for (dir, name) in tx.node_must(key)?.names.clone() {
        own_name(tx, (&dir, &name))?;
    }
    Ok(())
}

/// Settles the names of an inode under which it shows an extra sibling of its entry. One of which the states have forgotten what
/// it holds stays: somebody else has changed it, and this disk will show that.
pub(super) fn extra_names(tx: &mut Tx<'_>, key: &NodeKey) -> Result<()> {
    for (dir, name) in tx.node_must(key)?.names.clone() {
        let place = super::must_place(tx, (&dir, &name))?;
        if !names::is_whole(tx, &place)? && super::is_content_known(tx, (&dir, &name))? {
            own_name(tx, (&dir, &name))?;
        }
    }
    Ok(())
}

/// Settles the copies on this disk that show another version of `claim`'s entry, as siblings at the name `link`
/// (at any name if `None`). One that is hidden behind an equal file of another entry goes: that file stays.
pub(super) fn extras_of(tx: &mut Tx<'_>, claim: Claim, link: Option<LinkId>) -> Result<()> {
    for (dir, name, place) in records::places_of(tx, claim.entry)? {
        let extra = |c: &Claim| {
            c.entry == claim.entry && c.version != claim.version && link.is_none_or(|l| l == c.link)
        };
        if !place.claims.first().is_some_and(extra) {
            names::drop_behind(tx, (&dir, &name), place, extra)?;
        } else if !names::is_whole(tx, &place)? {
            settle(tx, (&dir, &name), &place, true, Left::Out)?;
        }
    }
    Ok(())
}

/// Settles a place as a side effect of something done elsewhere; `sibling`: it showed one of several versions. What is out
/// of date on this disk is left as it is: nobody touched it.
fn settle(tx: &mut Tx<'_>, at: Spot<'_>, place: &Place, sibling: bool, left: Left) -> Result<()> {
    let Some(owner) = place.claims.first().copied() else { return Ok(()) };
    let row = tx.entry_must(owner.entry)?;
    let counts = row.entry.counting().any(|v| v.dot == owner.version);
    let moved = row.entry.link(owner.link).is_none_or(|l| l.at.dot != owner.name_dot);
    if !counts || (moved && names::is_whole(tx, place)?) {
        return Ok(());
    }
    make_plain(tx, at, place, sibling, left)
}

/// Settles the name `at`, if it is a conflict name.
pub(super) fn own_name(tx: &mut Tx<'_>, at: Spot<'_>) -> Result<()> {
    let place = super::must_place(tx, at)?;
    if place.conflict_of.is_some() { make_plain(tx, at, &place, false, Left::Out) } else { Ok(()) }
}

/// Nobody gave it this name on purpose, even where the user changes what stands there: it is written as early as what was
/// seen allows, so that a name that somebody gives it elsewhere meanwhile wins, whoever owns the volume. Else the name
/// would go unseen with a removal, and with it what it holds.
fn make_plain(tx: &mut Tx<'_>, at: Spot<'_>, place: &Place, chosen: bool, left: Left) -> Result<()> {
    let old = records::owner_at(tx, at)?;
    let env = std::mem::replace(&mut tx.env, NOBODY);
    let claim = names::retitle(tx, at, place, at, chosen, left);
    tx.env = env;
    let claim = claim?;
    let plain = Place { node: place.node.clone(), claims: vec![claim], conflict_of: None };
    records::set_place(tx, at, plain)?;
    names::follow_version(tx, &place.node, old, claim.version)
}

/// The conflict copies of a name on this disk. They sort together, since they begin alike.
fn copies(tx: &mut Tx<'_>, of: Spot<'_>) -> Result<Vec<(Name, Place)>> {
    let mut found = tx.places_beginning(of.0, &copies_prefix(of.1))?;
    found.retain(|(_, place)| place.conflict_of.as_ref() == Some(of.1));
    Ok(found)
}

/// Conflict copies of another name that `of`, a name that looks like theirs, may keep from being called like that: theirs
/// are longer for it, or as long if shorter ones are taken as well. A copy keeps no other from anything.
fn displaced(tx: &mut Tx<'_>, of: Spot<'_>) -> Result<Vec<(Name, Place)>> {
    let Some(base) = tree::conflict_base(of.1) else { return Ok(Vec::new()) };
    let mut found = copies(tx, (of.0, &base))?;
    let is_copy = found.iter().any(|(name, _)| name == of.1);
    found.retain(|(name, _)| match name.as_bytes().len().cmp(&of.1.as_bytes().len()) {
        Ordering::Greater => true,
        Ordering::Equal => !is_copy,
        Ordering::Less => false,
    });
    Ok(found)
}

/// What all conflict names of `base` begin with.
fn copies_prefix(base: &Name) -> Vec<u8> {
    let some = tree::conflict_name(base, Dot::default(), Stamp::MIN, 0);
    let (some, base) = (some.as_bytes(), base.as_bytes());
    let mark = some.windows(tree::MARK.len()).rposition(|w| w == tree::MARK);
    match mark {
        Some(at) if base.len() <= UNCUT_MAX => some[..at + tree::MARK.len()].to_vec(),
        _ => {
            let same = some.iter().zip(base).take_while(|(a, b)| a == b).count();
            some[..same.min(PREFIX_MAX)].to_vec()
        }
    }
}

/// Names up to this many bytes are never cut: mark, time and the longest tag take 59 of 255.
const UNCUT_MAX: usize = 196;
/// What is always left of the beginning of a longer name: an extension takes up to 16 more, half a character 3.
const PREFIX_MAX: usize = 176;
