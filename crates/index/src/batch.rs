//! Applying a sorted batch to one write transaction.

use crate::store::definition;
use driftless_core::rows::{Batch, Table};
use std::iter::Peekable;

type Changes<'a> = Peekable<std::collections::btree_map::Iter<'a, (Table, Vec<u8>), Option<Vec<u8>>>>;

/// Applies all of `batch`; each table is opened once, its keys come in order.
pub(crate) fn apply(tx: &redb::WriteTransaction, batch: &Batch) -> Result<(), redb::Error> {
    let mut changes = batch.iter().peekable();
    while let Some(((table, _), _)) = changes.peek() {
        apply_table(tx, *table, &mut changes)?;
    }
    Ok(())
}

fn apply_table(
    tx: &redb::WriteTransaction,
    table: Table,
    changes: &mut Changes<'_>,
) -> Result<(), redb::Error> {
    let mut rows = tx.open_table(definition(table))?;
    while let Some(((_, key), value)) = changes.next_if(|((t, _), _)| *t == table) {
        match value {
            Some(value) => rows.insert(key.as_slice(), value.as_slice())?,
            None => rows.remove(key.as_slice())?,
        };
    }
    Ok(())
}
