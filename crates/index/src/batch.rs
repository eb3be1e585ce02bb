//! Applying a sorted batch to one write transaction.
//!
//! A scan or a stream of states makes long runs of new rows that lie between the same two old ones
//! (the feed always grows at its end; new directories bring new neighbourhoods). Such a run goes in
//! through one cursor, which fills leaf pages instead of descending the tree for each row. Where
//! rows are scattered, cursors only cost; so they are tried ever more rarely there.

use crate::row;
use crate::store::definition;
use driftless_core::rows::{Batch, Changes, Table};
use redb::CursorError;
use std::collections::btree_map;
use std::iter::Peekable;
use std::ops::Bound;

type Remaining<'a> = Peekable<btree_map::Iter<'a, Vec<u8>, Option<Vec<u8>>>>;
type Rows<'t> = redb::Table<'t, &'static [u8], &'static [u8]>;

/// A cursor costs about as much as two single insertions: runs from this length on gain.
const RUN_LEN_MIN: usize = 4;

/// Most rows between two tries of a cursor.
const PAUSE_LEN_MAX: usize = 512;

/// Applies all of `batch`.
pub(crate) fn apply(tx: &redb::WriteTransaction, batch: &Batch) -> Result<(), redb::Error> {
    for (table, changes) in batch.tables() {
        let rows = tx.open_table(definition(table))?;
        Applier { table, rows, stored: Vec::new() }.apply(changes)?;
    }
    Ok(())
}

struct Applier<'t> {
    table: Table,
    rows: Rows<'t>,
    /// The row being written, in its stored form.
    stored: Vec<u8>,
}

impl Applier<'_> {
    fn apply(&mut self, changes: &Changes) -> Result<(), redb::Error> {
        let mut changes = changes.iter().peekable();
        let (mut pause, mut next_pause) = (0, RUN_LEN_MIN);
        while changes.peek().is_some() {
            if pause > 0 {
                self.one(&mut changes)?;
                pause -= 1;
            } else if self.run(&mut changes)? >= RUN_LEN_MIN {
                next_pause = RUN_LEN_MIN;
            } else {
                pause = next_pause;
                next_pause = (2 * next_pause).min(PAUSE_LEN_MAX);
            }
        }
        Ok(())
    }

    /// Inserts what comes next as long as it falls between the same two rows. Gives how many that were.
    fn run(&mut self, changes: &mut Remaining<'_>) -> Result<usize, redb::Error> {
        let Some((first, Some(_))) = changes.peek() else { return Ok(0) };
        let mut cursor = self.rows.lower_bound_mut(Bound::Included(first.as_slice()))?;
        let mut count = 0;
        while let Some((key, Some(value))) = changes.peek() {
            self.stored.clear();
            row::seal(self.table, key, value, &mut self.stored);
            match cursor.insert_before(key.as_slice(), self.stored.as_slice()) {
                Ok(()) => count += 1,
                // The row exists, or lies beyond the next old one.
                Err(CursorError::UnorderedKey) => break,
                Err(e) => return Err(e.into()),
            }
            changes.next();
        }
        cursor.close()?;
        Ok(count)
    }

    fn one(&mut self, changes: &mut Remaining<'_>) -> Result<(), redb::Error> {
        match changes.next() {
            Some((key, Some(value))) => {
                self.stored.clear();
                row::seal(self.table, key, value, &mut self.stored);
                drop(self.rows.insert(key.as_slice(), self.stored.as_slice())?);
            }
            Some((key, None)) => drop(self.rows.remove(key.as_slice())?),
            None => {}
        }
        Ok(())
    }
}
