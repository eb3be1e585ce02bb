//! A change costs the same in a directory of many entries as in one of few.

use super::*;
use crate::rows::{Read, Row, StoreError, Table};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts the rows that are read.
struct Counting {
    inner: Box<dyn Read>,
    rows: Arc<AtomicUsize>,
}

impl Read for Counting {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.rows.fetch_add(1, Ordering::Relaxed);
        self.inner.get(table, key)
    }
    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        let rows = self.inner.scan(table, from, to, limit)?;
        self.rows.fetch_add(1 + rows.len(), Ordering::Relaxed);
        Ok(rows)
    }
    fn last(&self, table: Table) -> Result<Option<Row>, StoreError> {
        self.inner.last(table)
    }
}

/// Rows read by one change, and the tables that it writes, in a directory of `files` entries.
fn cost(files: u64, change: impl Fn(&mut Tx<'_>)) -> (usize, Vec<Table>) {
    let s = store();
    let snap = s.snapshot().unwrap();
    let mut tx = Tx::open(&*snap, ENV).unwrap();
    put(&mut tx, dir(id(2, 1), ROOT, "d"));
    for n in 0..files {
        put(&mut tx, leaf(id(2, n + 2), id(2, 1), &format!("f{n}"), "x"));
    }
    s.commit(tx.into_batch(1)).unwrap();
    let rows = Arc::new(AtomicUsize::new(0));
    let counting = Counting { inner: s.snapshot().unwrap(), rows: rows.clone() };
    let mut tx = Tx::open(&counting, ENV).unwrap();
    rows.store(0, Ordering::Relaxed);
    change(&mut tx);
    let read = rows.load(Ordering::Relaxed);
    let mut tables: Vec<Table> = tx.into_batch(1).into_iter().map(|((t, _), _)| t).collect();
    tables.dedup();
    (read, tables)
}

/// What is done, in words and in the tree.
type Change<'a> = (&'a str, &'a dyn Fn(&mut Tx<'_>));

#[test]
fn a_change_in_a_great_directory_costs_what_it_costs_in_a_small_one() {
    let f = leaf(id(2, 3), id(2, 1), "f1", "x");
    let changes: [Change<'_>; 7] = [
        ("create", &|tx| put(tx, leaf(id(3, 1), id(2, 1), "new", "x"))),
        ("write", &|tx| put(tx, beside(&f, "y", (3, 1)))),
        ("rename", &|tx| put(tx, moved(&f, id(2, 1), "g", (3, 1)))),
        ("remove", &|tx| put(tx, removed(&f, (3, 1)))),
        ("rename the directory", &|tx| put(tx, moved(&dir(id(2, 1), ROOT, "d"), ROOT, "e", (3, 1)))),
        ("an empty twin", &|tx| put(tx, dir(id(3, 1), ROOT, "d"))),
        ("a child in a removed twin", &|tx| {
            put(tx, removed(&dir(id(3, 1), ROOT, "d"), (3, 2)));
            put(tx, leaf(id(3, 3), id(3, 1), "f1", "y"));
        }),
    ];
    for (what, change) in changes {
        let (small, tables) = cost(4, change);
        assert_eq!(cost(3000, change).0, small, "{what}");
        assert!(small < 40, "{what} reads {small} rows");
        assert_eq!(tables.contains(&Table::Pending), what.contains("twin"), "{what} marks others");
    }
}

#[test]
fn a_new_file_touches_its_own_rows_and_its_directory() {
    let (_, tables) = cost(4, |tx| put(tx, leaf(id(2, 99), id(2, 1), "new", "x")));
    assert_eq!(tables, [Table::Entries, Table::Names, Table::Dirs, Table::Feed, Table::Settings]);
    let f = leaf(id(2, 3), id(2, 1), "f1", "x");
    let (_, tables) = cost(4, |tx| put(tx, beside(&f, "y", (2, 50))));
    assert_eq!(tables, [Table::Entries, Table::Feed, Table::Settings]);
}
