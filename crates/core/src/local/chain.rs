//! Directories a change relies on: which member of a union takes it, and the assertion that all
//! directories above are really there.

use super::{Result, Tx, change_with, names, records};
use crate::disk::NodeKey;
use crate::entry::At;
use crate::id::{Dot, EntryId, Name};
use crate::mutant::mutant;
use crate::tree;

/// The directory entry that takes a new name in the directory `dir` of this disk: its first member whose link
/// is present, else the first. The whole chain of directories above is asserted.
pub(super) fn use_dir(tx: &mut Tx<'_>, dir: &NodeKey) -> Result<EntryId> {
    let members = records::members(tx, dir)?;
    let mut chosen = members[0];
    if members.len() > 1 {
        for &m in &members {
            if m.is_root() || is_present(tx, m)? {
                chosen = m;
                break;
            }
        }
    }
    assert_chain(tx, chosen)?;
    Ok(chosen)
}

/// Makes sure that no directory from `dir` up is absent or shown elsewhere than stored: first writes down all
/// repaired edges, then gives each absent directory a new name where it is shown (model findings
/// G7c, G8 and section 6, rule 1).
pub(super) fn assert_chain(tx: &mut Tx<'_>, dir: EntryId) -> Result<()> {
    let mut absent = Vec::new();
    let mut repaired = false;
    let mut at = dir;
    while !at.is_root() {
        let Some(row) = tx.entry(at)? else { break };
        let Some(link) = row.entry.dir_link() else { break };
        if !link.present() {
            absent.push(at);
        }
        let Some(parent) = tree::parent_of(tx, at)? else { break };
        repaired |= parent != link.at.parent;
        at = parent;
    }
    if (absent.is_empty() && !repaired) || mutant!(ChainNotAsserted) {
        return Ok(());
    }
    pin_repaired(tx)?;
    for dir in absent.into_iter().rev() {
        if let Some(parent) = tree::parent_of(tx, dir)? {
            let name = tx.entry_must(dir)?.entry.links[0].at.name.clone();
            set_dir_at(tx, dir, parent, &name)?;
        }
    }
    Ok(())
}

/// Writes every repaired edge down as a move, those of absent directories too, which stay absent.
pub(super) fn pin_repaired(tx: &mut Tx<'_>) -> Result<()> {
    for (dir, parent) in tree::repaired_edges(tx)? {
        if mutant!(RepairsNotPinned) {
            continue;
        }
        let row = tx.entry_must(dir)?;
        let Some(link) = row.entry.dir_link() else { continue };
        let (name, present) = (link.at.name.clone(), link.present());
        put_dir_at(tx, dir, parent, &name, present)?;
    }
    Ok(())
}

/// Puts a directory below `parent` as `name`, present.
pub(super) fn set_dir_at(tx: &mut Tx<'_>, dir: EntryId, parent: EntryId, name: &Name) -> Result<()> {
    put_dir_at(tx, dir, parent, name, true)
}

fn put_dir_at(tx: &mut Tx<'_>, dir: EntryId, parent: EntryId, name: &Name, present: bool) -> Result<()> {
    let there = names::stamp_at(tx, parent, name)?;
    change_with(tx, dir, |tx, e, dot| {
        let stamp = tx.stamp_above(e.stamp_max().max(there));
        e.note_hist(parent, stamp);
        if let Some(link) = e.links.first_mut() {
            link.at = At { stamp, dot, parent, name: name.clone(), holds: Dot::default() };
            if !present {
                link.gone.add(dot);
            }
        }
        Ok(())
    })?;
    Ok(())
}

fn is_present(tx: &mut Tx<'_>, dir: EntryId) -> Result<bool> {
    Ok(tx.entry(dir)?.is_some_and(|row| row.entry.dir_link().is_some_and(|l| l.present())))
}

/// True if the state still has the directory where this disk shows it: present as `name` below one of
/// `parents`. A removal takes no name that its author had not seen.
pub(super) fn is_there(tx: &mut Tx<'_>, dir: EntryId, parents: &[EntryId], name: &Name) -> Result<bool> {
    let Some(row) = tx.entry(dir)? else { return Ok(false) };
    let Some(link) = row.entry.dir_link() else { return Ok(false) };
    if !link.present() || link.at.name != *name {
        return Ok(false);
    }
    Ok(tree::parent_of(tx, dir)?.is_some_and(|p| parents.contains(&p)))
}
