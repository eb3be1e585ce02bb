//! A consistent view of the index: a redb read transaction with the tables it was asked for.

use crate::guard::guarded;
use crate::row;
use crate::store::{File, definition};
use driftless_core::rows::{Read, Row, StoreError, Table};
use redb::{ReadOnlyTable, ReadableDatabase, ReadableTable, StorageError, TableError};
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
    file: Arc<File>,
}

impl Snapshot {
    pub(crate) fn new(file: &Arc<File>) -> Result<Self, redb::Error> {
        let tx = guarded(|| Ok::<_, redb::Error>(file.db()?.begin_read()?))?;
        Ok(Self { tables: Default::default(), tx, file: file.clone() })
    }

    fn table(&self, table: Table) -> Result<Option<&Rows>, redb::Error> {
        let cell = &self.tables[table.index()];
        if let Some(rows) = cell.get() {
            return Ok(rows.as_ref());
        }
        let rows = match self.tx.open_table(definition(table)) {
            Ok(rows) => Some(rows),
            Err(TableError::TableDoesNotExist(_)) => None,
            Err(e) => return Err(e.into()),
        };
        Ok(cell.get_or_init(|| rows).as_ref())
    }

    /// What `read` makes of a table; `none` if the file has no such table.
    fn reading<T>(
        &self,
        table: Table,
        none: T,
        read: impl FnOnce(&Rows) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let result = guarded(|| self.table(table)?.map_or(Ok(none), read));
        result.map_err(|e| self.file.failure(&format!("read table {} of", table.name()), e))
    }
}

impl Read for Snapshot {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.reading(table, None, |rows| match rows.get(key)? {
            Some(stored) => Ok(Some(unseal(table, key, stored.value())?)),
            None => Ok(None),
        })
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
        let to = to.map_or(Bound::Unbounded, Bound::Excluded);
        self.reading(table, Vec::new(), |rows| {
            let mut found = Vec::new();
            for row in rows.range::<&[u8]>((Bound::Included(from), to))?.take(limit) {
                let (key, stored) = row?;
                let key = key.value();
                found.push((key.to_vec(), unseal(table, key, stored.value())?));
            }
            Ok(found)
        })
    }

    fn last(&self, table: Table) -> Result<Option<Row>, StoreError> {
        self.reading(table, None, |rows| match ReadableTable::last(rows)? {
            Some((key, stored)) => {
                let key = key.value();
                Ok(Some((key.to_vec(), unseal(table, key, stored.value())?)))
            }
            None => Ok(None),
        })
    }
}

fn unseal(table: Table, key: &[u8], stored: &[u8]) -> Result<Vec<u8>, StorageError> {
    let damaged = || StorageError::Corrupted("a row does not fit its check".into());
    row::unseal(table, key, stored).ok_or_else(damaged)
}
