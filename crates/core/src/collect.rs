//! Tombstone collection (model-findings 3.6, G7).
//!
//! A tombstone may go when nobody can need it any more: nothing shows it, nothing on this disk is bound to it, no
//! entry refers to it as its directory, every member knows of it, and we know all that each member had done
//! before it knew. A late copy of it is then dropped on arrival, as its context is covered.

use crate::entry::Entry;
use crate::id::{EntryId, ReplicaId};
use crate::mutant::mutant;
use crate::rows::Table;
use crate::tree;
use crate::tx::{EntryRow, Known, Result, Tx, dec, knowledge_vv};
use crate::vv::VersionVector;
use std::collections::{BTreeMap, HashMap};

const SETTING_FLOOR: &[u8] = b"feed_floor";

/// How many rows are read at once.
const STEP: usize = 1024;

/// The greatest feed position of a tombstone that was collected: a peer whose cursor in our feed is below must
/// compare by ids instead. 0 if none.
pub fn floor(tx: &Tx<'_>) -> Result<u64> {
    match tx.get(Table::Settings, SETTING_FLOOR)? {
        Some(b) => dec(Table::Settings, &b, |d| d.fixed64()),
        None => Ok(0),
    }
}

/// Entries that are not shown and not on this disk, with what refers to them.
#[derive(Default, Debug)]
pub struct Tombstones {
    /// Leaves first, then directories; each with its feed position.
    pub candidates: Vec<EntryId>,
    /// Names of leaves, removed ones too, in directories that are candidates.
    leaf_names: HashMap<EntryId, u64>,
}

impl Tombstones {
    /// Finds them by one pass over all entries (a second one if there are directories among them). `tx` must
    /// have no changes yet.
    pub fn find(tx: &mut Tx<'_>) -> Result<Tombstones> {
        let mut found = Tombstones::default();
        let mut dirs = Vec::new();
        each_entry(tx, |tx, row| {
            if row.entry.kind.is_dir() {
                if (row.bound.is_empty() || mutant!(CollectedWhileShown)) && !tree::is_live(tx, row.entry.id)?
                {
                    dirs.push(row.entry.id);
                }
            } else if (row.bound.is_empty() || mutant!(CollectedWhileShown))
                && row.entry.shown_links().is_empty()
            {
                found.candidates.push(row.entry.id);
            }
            Ok(())
        })?;
        if dirs.is_empty() {
            return Ok(found);
        }
        found.leaf_names = dirs.iter().map(|d| (*d, 0)).collect();
        each_entry(tx, |_, row| {
            for parent in leaf_parents(&row.entry) {
                found.leaf_names.entry(parent).and_modify(|n| *n += 1);
            }
            Ok(())
        })?;
        found.candidates.append(&mut dirs);
        Ok(found)
    }

    /// Collects all that may go. Returns how many went. `members`: the knowledge of each other member.
    pub fn collect(&mut self, tx: &mut Tx<'_>, members: &BTreeMap<ReplicaId, VersionVector>) -> Result<u64> {
        let mut count = 0;
        loop {
            // A directory may go once all that was in it went.
            let before = count;
            for id in std::mem::take(&mut self.candidates) {
                if self.collect_one(tx, id, members)? {
                    count += 1;
                } else {
                    self.candidates.push(id);
                }
            }
            if count == before {
                return Ok(count);
            }
        }
    }

    /// Removes the entry and its feed row if it is a tombstone that nobody can need any more, and raises the feed's
    /// floor. True if removed.
    pub fn collect_one(
        &mut self,
        tx: &mut Tx<'_>,
        id: EntryId,
        members: &BTreeMap<ReplicaId, VersionVector>,
    ) -> Result<bool> {
        let Some(row) = tx.entry(id)? else { return Ok(false) };
        if (!row.bound.is_empty() && !mutant!(CollectedWhileShown)) || !is_known(tx, &row.entry.ctx, members)?
        {
            return Ok(false);
        }
        let gone = match row.entry.kind.is_dir() {
            true => self.is_unreferred(id) && tree::remove_state(tx, id)?,
            false => tree::remove_state(tx, id)?,
        };
        if gone {
            self.note_removal(tx, &row)?;
        }
        Ok(gone)
    }

    /// Only counted directories are known to have no names of leaves in them.
    fn is_unreferred(&self, dir: EntryId) -> bool {
        self.leaf_names.get(&dir) == Some(&0)
    }

    fn note_removal(&mut self, tx: &mut Tx<'_>, row: &EntryRow) -> Result<()> {
        for parent in leaf_parents(&row.entry) {
            self.leaf_names.entry(parent).and_modify(|n| *n = n.saturating_sub(1));
        }
        tx.remove_pending(row.entry.id);
        let floor = floor(tx)?.max(row.n);
        tx.put(Table::Settings, SETTING_FLOOR.to_vec(), Some(floor.to_be_bytes().to_vec()));
        Ok(())
    }
}

/// True if all members know `ctx`, and we know what each had done before it knew.
fn is_known(
    tx: &mut Tx<'_>,
    ctx: &VersionVector,
    members: &BTreeMap<ReplicaId, VersionVector>,
) -> Result<bool> {
    let mut knowledge = tx.knowledge()?;
    // What this transaction did itself is not in the table yet.
    knowledge.insert(tx.me(), Known { n: tx.head(), tag: 0 });
    let mine = knowledge_vv(&knowledge);
    let me = tx.me();
    Ok(mine.covers_all(ctx)
        && members.iter().filter(|(m, _)| **m != me).all(|(m, theirs)| {
            let told = theirs.covers_all(ctx) || mutant!(CollectedUnheard);
            let heard = mine.get(*m) >= theirs.get(*m) || mutant!(CollectedEarly);
            told && heard
        }))
}

fn leaf_parents(e: &Entry) -> impl Iterator<Item = EntryId> {
    e.links.iter().filter(|_| !e.kind.is_dir()).map(|l| l.at.parent)
}

/// Shows every entry row to `f`, without keeping them.
fn each_entry(tx: &mut Tx<'_>, mut f: impl FnMut(&mut Tx<'_>, &EntryRow) -> Result<()>) -> Result<()> {
    let mut from = Vec::new();
    loop {
        let rows = tx.scan(Table::Entries, &from, None, STEP)?;
        let Some((last, _)) = rows.last() else { return Ok(()) };
        from = [&last[..], &[0]].concat();
        for (_, value) in &rows {
            let row = tx.decode_entry_row(value)?;
            f(tx, &row)?;
        }
    }
}
