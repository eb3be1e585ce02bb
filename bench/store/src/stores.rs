//! The stores behind the index's trait. All commits are durable when they return.

use crate::Error;
use driftless_core::rows::{Batch, Read, Row, Store, StoreError, Table};
use driftless_index::{Index, OpenOptions};
use fjall::{Keyspace, KeyspaceCreateOptions, PersistMode, Readable};
use rusqlite::{Connection, OptionalExtension, params};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The store called `engine` in directory `dir`, made if it is not there.
pub(crate) fn open(engine: &str, dir: &Path, cache_bytes: usize) -> Result<Box<dyn Store>, Error> {
    match engine {
        "redb" => {
            Ok(Box::new(Index::open(&dir.join("index.redb"), OpenOptions { cache_bytes, create: true })?))
        }
        "fjall" => Ok(Box::new(Fjall::open(&dir.join("fjall"), cache_bytes)?)),
        "sqlite" => Ok(Box::new(Sqlite::open(dir.join("index.sqlite"), cache_bytes)?)),
        _ => Err("the stores are redb, fjall and sqlite".into()),
    }
}

fn failed(e: impl std::fmt::Display) -> StoreError {
    StoreError(e.to_string())
}

fn upper(to: Option<&[u8]>) -> Bound<&[u8]> {
    to.map_or(Bound::Unbounded, Bound::Excluded)
}

struct Fjall {
    db: fjall::Database,
    keyspaces: Vec<Keyspace>,
}

impl Fjall {
    fn open(path: &Path, cache_bytes: usize) -> Result<Self, Error> {
        let db = fjall::Database::builder(path).cache_size(cache_bytes as u64).open()?;
        // By default each table may buffer 64 MiB; the process as a whole has 150.
        let options = || KeyspaceCreateOptions::default().max_memtable_size(8 << 20);
        let keyspaces = Table::ALL.iter().map(|t| db.keyspace(t.name(), options));
        Ok(Self { keyspaces: keyspaces.collect::<Result<_, _>>()?, db })
    }
}

impl Store for Fjall {
    fn snapshot(&self) -> Result<Box<dyn Read>, StoreError> {
        Ok(Box::new(FjallRead { snapshot: self.db.snapshot(), keyspaces: self.keyspaces.clone() }))
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let mut changes = self.db.batch().durability(Some(PersistMode::SyncData));
        for ((table, key), value) in batch {
            let keyspace = &self.keyspaces[table.index()];
            match value {
                Some(value) => changes.insert(keyspace, key, value),
                None => changes.remove(keyspace, key),
            }
        }
        changes.commit().map_err(failed)
    }
}

struct FjallRead {
    snapshot: fjall::Snapshot,
    keyspaces: Vec<Keyspace>,
}

impl Read for FjallRead {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let value = self.snapshot.get(&self.keyspaces[table.index()], key).map_err(failed)?;
        Ok(value.map(|v| v.to_vec()))
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        if to.is_some_and(|to| to <= from) {
            return Ok(Vec::new());
        }
        let range = (Bound::Included(from), upper(to));
        let rows = self.snapshot.range::<&[u8], _>(&self.keyspaces[table.index()], range).take(limit);
        rows.map(|row| row.into_inner().map(|(k, v)| (k.to_vec(), v.to_vec())).map_err(failed)).collect()
    }

    fn last(&self, table: Table) -> Result<Option<Row>, StoreError> {
        let row = self.snapshot.last_key_value(&self.keyspaces[table.index()]);
        row.map(|row| row.into_inner().map(|(k, v)| (k.to_vec(), v.to_vec())).map_err(failed)).transpose()
    }
}

struct Sqlite {
    path: PathBuf,
    cache_bytes: usize,
    writer: Mutex<Connection>,
    /// Opening a connection costs more than most reads: snapshots take one from here and give it back.
    readers: std::sync::Arc<Mutex<Vec<Connection>>>,
}

fn connect(path: &Path, cache_bytes: usize) -> rusqlite::Result<Connection> {
    let db = Connection::open(path)?;
    db.execute_batch(&format!(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-{};",
        cache_bytes >> 10
    ))?;
    db.set_prepared_statement_cache_capacity(64);
    Ok(db)
}

impl Sqlite {
    fn open(path: PathBuf, cache_bytes: usize) -> Result<Self, Error> {
        // The cache is shared out between the writer and one reader.
        let cache_bytes = cache_bytes / 2;
        let db = connect(&path, cache_bytes)?;
        for table in Table::ALL {
            let name = table.name();
            db.execute_batch(&format!(
                "CREATE TABLE IF NOT EXISTS {name} (k BLOB PRIMARY KEY, v BLOB) WITHOUT ROWID"
            ))?;
        }
        Ok(Self { path, cache_bytes, writer: Mutex::new(db), readers: Default::default() })
    }

    fn write(&self, batch: Batch) -> rusqlite::Result<()> {
        let mut db = self.writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let tx = db.transaction()?;
        for (table, changes) in batch.tables() {
            let name = table.name();
            let mut put = tx.prepare_cached(&format!("INSERT OR REPLACE INTO {name} VALUES (?, ?)"))?;
            let mut remove = tx.prepare_cached(&format!("DELETE FROM {name} WHERE k = ?"))?;
            for (key, value) in changes {
                match value {
                    Some(value) => put.execute(params![key, value])?,
                    None => remove.execute([key])?,
                };
            }
        }
        tx.commit()
    }
}

impl Store for Sqlite {
    fn snapshot(&self) -> Result<Box<dyn Read>, StoreError> {
        let kept = self.readers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop();
        let db = kept.map_or_else(|| connect(&self.path, self.cache_bytes), Ok).map_err(failed)?;
        db.execute_batch("BEGIN").map_err(failed)?;
        Ok(Box::new(SqliteRead { db: Some(db), readers: self.readers.clone() }))
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        self.write(batch).map_err(failed)
    }
}

struct SqliteRead {
    db: Option<Connection>,
    readers: std::sync::Arc<Mutex<Vec<Connection>>>,
}

impl Drop for SqliteRead {
    fn drop(&mut self) {
        if let Some(db) = self.db.take()
            && db.execute_batch("COMMIT").is_ok()
        {
            self.readers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(db);
        }
    }
}

impl SqliteRead {
    fn rows(&self, sql: &str, values: &[&dyn rusqlite::ToSql]) -> Result<Vec<Row>, StoreError> {
        let db = self.db.as_ref().ok_or_else(|| failed("closed"))?;
        let mut statement = db.prepare_cached(sql).map_err(failed)?;
        let rows = statement.query_map(values, |r| Ok((r.get(0)?, r.get(1)?))).map_err(failed)?;
        rows.collect::<rusqlite::Result<_>>().map_err(failed)
    }
}

impl Read for SqliteRead {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let db = self.db.as_ref().ok_or_else(|| failed("closed"))?;
        let sql = format!("SELECT v FROM {} WHERE k = ?", table.name());
        let mut statement = db.prepare_cached(&sql).map_err(failed)?;
        statement.query_row([key], |r| r.get(0)).optional().map_err(failed)
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(-1);
        let name = table.name();
        match to {
            Some(to) => self.rows(
                &format!("SELECT k, v FROM {name} WHERE k >= ? AND k < ? ORDER BY k LIMIT ?"),
                &[&from, &to, &limit],
            ),
            None => self
                .rows(&format!("SELECT k, v FROM {name} WHERE k >= ? ORDER BY k LIMIT ?"), &[&from, &limit]),
        }
    }

    fn last(&self, table: Table) -> Result<Option<Row>, StoreError> {
        let rows = self.rows(&format!("SELECT k, v FROM {} ORDER BY k DESC LIMIT 1", table.name()), &[])?;
        Ok(rows.into_iter().next())
    }
}
