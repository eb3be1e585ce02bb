//! A consistent view of the index: a redb read transaction with the tables it was asked for.

use crate::guard::guarded;
use crate::row;
use crate::store::{File, definition};
use driftless_core::rows::{Read, Row, StoreError, Table};
use redb::{AccessGuard, Range, ReadOnlyTable, ReadableDatabase, ReadableTable, StorageError, TableError};
use std::cell::OnceCell;
use std::cmp::Ordering;
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

    fn get_sorted(&self, table: Table, keys: &[&[u8]]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        self.reading(table, vec![None; keys.len()], |rows| {
            let mut found = Vec::with_capacity(keys.len());
            let mut near = Near { table, rows, run: None, apart: 0 };
            for key in keys {
                found.push(near.get(key)?);
            }
            Ok(found)
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

/// Rows that are looked at from one key to the next, if those are neighbours: a look-up of its own costs as much as several.
const NEAR_MAX: usize = 8;
/// So many keys that are not neighbours in a row: the next ones are looked up ...
const APART_MIN: u32 = 2;
/// ... so many of them, before the next is tried again.
const APART_TRY: u32 = 32;

/// Looks up ascending keys.
struct Near<'a> {
    table: Table,
    rows: &'a Rows,
    run: Option<Run<'a>>,
    /// Keys in a row that were no neighbours of those before them.
    apart: u32,
}

/// Rows from a key on.
struct Run<'a> {
    rest: Range<'a, &'static [u8], &'static [u8]>,
    /// The first that is not passed yet.
    at: Option<(Stored<'a>, Stored<'a>)>,
}

type Stored<'a> = AccessGuard<'a, &'static [u8]>;

impl Near<'_> {
    fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, redb::Error> {
        if let Some(run) = &mut self.run {
            if let Some(found) = run.get(self.table, key)? {
                self.apart = 0;
                return Ok(found);
            }
            self.run = None;
        }
        self.apart += 1;
        if self.apart > APART_MIN {
            if self.apart == APART_MIN + APART_TRY {
                self.apart = APART_MIN - 1;
            }
            let stored = self.rows.get(key)?;
            return Ok(stored.map(|stored| unseal(self.table, key, stored.value())).transpose()?);
        }
        let mut rest = self.rows.range::<&[u8]>(key..)?;
        let at = rest.next().transpose()?;
        let run = self.run.insert(Run { rest, at });
        // It begins there: this looks at one row.
        Ok(run.get(self.table, key)?.flatten())
    }
}

impl Run<'_> {
    /// The value at `key`, or that there is none; `None` if it is not near.
    fn get(&mut self, table: Table, key: &[u8]) -> Result<Option<Option<Vec<u8>>>, redb::Error> {
        for _ in 0..NEAR_MAX {
            let Some((at, stored)) = &self.at else { return Ok(Some(None)) };
            match at.value().cmp(key) {
                Ordering::Less => self.at = self.rest.next().transpose()?,
                Ordering::Equal => return Ok(Some(Some(unseal(table, key, stored.value())?))),
                Ordering::Greater => return Ok(Some(None)),
            }
        }
        Ok(None)
    }
}

fn unseal(table: Table, key: &[u8], stored: &[u8]) -> Result<Vec<u8>, StorageError> {
    let damaged = || StorageError::Corrupted("a row does not fit its check".into());
    row::unseal(table, key, stored).ok_or_else(damaged)
}
