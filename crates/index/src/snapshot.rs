//! A consistent view of the index: a redb read transaction with the tables it was asked for.

use crate::store::definition;
use driftless_core::rows::{Read, Row, StoreError, Table};
use redb::{ReadOnlyTable, ReadableDatabase, TableError};
use std::cell::OnceCell;
use std::ops::Bound;
use std::sync::Arc;

type Rows = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// Opening a table costs a look-up in redb's table of tables, so each is opened once, when first
/// used. `None`: the file has no such table, which reads as empty.
pub(crate) struct Snapshot {
    tables: [OnceCell<Option<Rows>>; Table::ALL.len()],
    tx: redb::ReadTransaction,
    /// redb ends its read transactions when the database is dropped; this keeps it open.
    _db: Arc<redb::Database>,
}

impl Snapshot {
    pub(crate) fn new(db: &Arc<redb::Database>) -> Result<Self, redb::TransactionError> {
        let tx = db.begin_read()?;
        Ok(Self { tables: Default::default(), tx, _db: db.clone() })
    }

    fn table(&self, table: Table) -> Result<Option<&Rows>, StoreError> {
        let cell = &self.tables[table.index()];
        if let Some(rows) = cell.get() {
            return Ok(rows.as_ref());
        }
        let rows = match self.tx.open_table(definition(table)) {
            Ok(rows) => Some(rows),
            Err(TableError::TableDoesNotExist(_)) => None,
            Err(e) => return Err(failure(table, e)),
        };
        Ok(cell.get_or_init(|| rows).as_ref())
    }
}

impl Read for Snapshot {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(rows) = self.table(table)? else { return Ok(None) };
        let row = rows.get(key).map_err(|e| failure(table, e))?;
        Ok(row.map(|v| v.value().to_vec()))
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        if limit == 0 || to.is_some_and(|to| to <= from) {
            return Ok(Vec::new());
        }
        let Some(rows) = self.table(table)? else { return Ok(Vec::new()) };
        let to = to.map_or(Bound::Unbounded, Bound::Excluded);
        let range = rows.range::<&[u8]>((Bound::Included(from), to)).map_err(|e| failure(table, e))?;
        let row = |r: Result<_, redb::StorageError>| {
            let (k, v): (redb::AccessGuard<'_, &[u8]>, redb::AccessGuard<'_, &[u8]>) =
                r.map_err(|e| failure(table, e))?;
            Ok((k.value().to_vec(), v.value().to_vec()))
        };
        range.take(limit).map(row).collect()
    }

    fn last(&self, table: Table) -> Result<Option<Row>, StoreError> {
        let Some(rows) = self.table(table)? else { return Ok(None) };
        let row = redb::ReadableTable::last(rows).map_err(|e| failure(table, e))?;
        Ok(row.map(|(k, v)| (k.value().to_vec(), v.value().to_vec())))
    }
}

fn failure(table: Table, error: impl std::fmt::Display) -> StoreError {
    StoreError(format!("cannot read table {}: {error}", table.name()))
}
