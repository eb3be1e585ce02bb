//! Applying a sorted batch to one write transaction.
//!
//! A scan or a stream of states makes long runs of new rows that lie between the same two old ones
//! (the feed always grows at its end; new directories bring new neighbourhoods). Such a run goes in
//! through one cursor, which fills leaf pages instead of descending the tree for each row. Where
//! rows are scattered, cursors only cost; so they are tried ever more rarely there.

use crate::store::definition;
use driftless_core::rows::{Batch, Table};
use redb::CursorError;
use std::iter::Peekable;
use std::ops::Bound;

type Changes<'a> = Peekable<std::collections::btree_map::Iter<'a, (Table, Vec<u8>), Option<Vec<u8>>>>;
type Rows<'t> = redb::Table<'t, &'static [u8], &'static [u8]>;

/// A cursor costs about as much as two single insertions: runs from this length on gain.
const RUN_LEN_MIN: usize = 4;

/// Most rows between two tries of a cursor.
const PAUSE_LEN_MAX: usize = 512;

/// Applies all of `batch`; each table is opened once, its keys come in order.
pub(crate) fn apply(tx: &redb::WriteTransaction, batch: &Batch) -> Result<(), redb::Error> {
    let mut changes = batch.iter().peekable();
    while let Some(((table, _), _)) = changes.peek() {
        let table = *table;
        let mut rows = tx.open_table(definition(table))?;
        apply_table(&mut rows, table, &mut changes)?;
    }
    Ok(())
}

fn apply_table(rows: &mut Rows<'_>, table: Table, changes: &mut Changes<'_>) -> Result<(), redb::Error> {
    let (mut pause, mut next_pause) = (0, RUN_LEN_MIN);
    while changes.peek().is_some_and(|((t, _), _)| *t == table) {
        if pause == 0 {
            if insert_run(rows, table, changes)? >= RUN_LEN_MIN {
                next_pause = RUN_LEN_MIN;
                continue;
            }
            pause = next_pause;
            next_pause = (2 * next_pause).min(PAUSE_LEN_MAX);
            // The short run may have been the end of the table's changes.
            continue;
        }
        apply_one(rows, changes)?;
        pause -= 1;
    }
    Ok(())
}

/// Inserts what comes next as long as it falls between the same two rows. Gives how many that were.
fn insert_run(rows: &mut Rows<'_>, table: Table, changes: &mut Changes<'_>) -> Result<usize, redb::Error> {
    let Some(((_, first), Some(_))) = changes.peek() else { return Ok(0) };
    let mut cursor = rows.lower_bound_mut(Bound::Included(first.as_slice()))?;
    let mut count = 0;
    while let Some(((t, key), Some(value))) = changes.peek() {
        if *t != table {
            break;
        }
        match cursor.insert_before(key.as_slice(), value.as_slice()) {
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

fn apply_one(rows: &mut Rows<'_>, changes: &mut Changes<'_>) -> Result<(), redb::Error> {
    match changes.next() {
        Some(((_, key), Some(value))) => drop(rows.insert(key.as_slice(), value.as_slice())?),
        Some(((_, key), None)) => drop(rows.remove(key.as_slice())?),
        None => {}
    }
    Ok(())
}
