//! The store on disk does what the in-memory store does, and refuses what it cannot read.

#![allow(clippy::unwrap_used)]

use driftless_core::rows::{Batch, MemStore, Read, Store, Table};
use driftless_index::{Index, IndexError, OpenOptions};
use proptest::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};

fn options(create: bool) -> OpenOptions {
    OpenOptions { create, ..OpenOptions::default() }
}

fn new_index(dir: &Path) -> (Index, PathBuf) {
    let path = dir.join("index.redb");
    (Index::open(&path, options(true)).unwrap(), path)
}

fn put(table: Table, key: &[u8], value: &[u8]) -> Batch {
    Batch::from([((table, key.to_vec()), Some(value.to_vec()))])
}

fn rows(read: &dyn Read, table: Table) -> Vec<(Vec<u8>, Vec<u8>)> {
    read.scan(table, &[], None, usize::MAX).unwrap()
}

/// A file with enough rows for trees of some depth.
fn filled(dir: &Path) -> PathBuf {
    let (index, path) = new_index(dir);
    let row = |i: u32| ((Table::Entries, i.to_be_bytes().to_vec()), Some(vec![i as u8; 100]));
    index.commit((0..5000).map(row).collect()).unwrap();
    path
}

#[test]
fn commits_last_and_snapshots_stand_still() {
    let dir = tempfile::tempdir().unwrap();
    let (index, path) = new_index(dir.path());
    index.commit(put(Table::Entries, b"a", b"1")).unwrap();
    let before = index.snapshot().unwrap();
    index.commit(put(Table::Entries, b"a", b"2")).unwrap();
    assert_eq!(before.get(Table::Entries, b"a").unwrap().unwrap(), b"1");
    drop(index);
    assert_eq!(before.get(Table::Entries, b"a").unwrap().unwrap(), b"1");
    assert!(matches!(Index::open(&path, options(false)), Err(IndexError::InUse { .. })));
    drop(before);
    let index = Index::open(&path, options(false)).unwrap();
    let now = index.snapshot().unwrap();
    assert_eq!(now.get(Table::Entries, b"a").unwrap().unwrap(), b"2");
    assert_eq!(now.last(Table::Entries).unwrap().unwrap().0, b"a");
    assert_eq!(now.last(Table::Needs).unwrap(), None);
}

#[test]
fn a_snapshot_can_go_to_another_thread() {
    let dir = tempfile::tempdir().unwrap();
    let (index, _) = new_index(dir.path());
    index.commit(put(Table::Feed, b"k", b"v")).unwrap();
    let snapshot = index.snapshot().unwrap();
    let value = std::thread::spawn(move || snapshot.get(Table::Feed, b"k").unwrap()).join().unwrap();
    assert_eq!(value.unwrap(), b"v");
}

#[test]
fn a_missing_file_is_made_only_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index.redb");
    assert!(matches!(Index::open(&path, options(false)), Err(IndexError::Missing { .. })));
    assert!(!path.exists());
    Index::open(&path, options(true)).unwrap();
    let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["index.redb", "index.reserve"]);
}

#[test]
fn a_left_over_of_a_killed_creation_does_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("index.new"), b"half").unwrap();
    new_index(dir.path());
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (index, path) = new_index(dir.path());
    drop(index);
    set_format(&path, b"driftless\0\0\0\x02");
    let before = fs::read(&path).unwrap();
    match Index::open(&path, options(true)) {
        Err(IndexError::Newer { found: 2, supported: 1, .. }) => {}
        other => panic!("{:?}", other.err()),
    }
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn another_programs_file_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (index, path) = new_index(dir.path());
    drop(index);
    for row in [&b"driftlesS\0\0\0\x01"[..], b"driftless\0\0\0", b"", b"driftless\0\0\0\0"] {
        set_format(&path, row);
        let before = fs::read(&path).unwrap();
        assert_damaged(&path, "format row");
        assert_eq!(fs::read(&path).unwrap(), before);
    }
}

#[test]
fn files_that_are_no_index_are_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index.redb");
    for bytes in [vec![], b"hello".to_vec(), vec![0; 100_000], b"garbage ".repeat(10_000)] {
        fs::write(&path, &bytes).unwrap();
        assert_damaged(&path, "");
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
}

#[test]
fn truncated_files_are_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let path = filled(dir.path());
    let whole = fs::read(&path).unwrap();
    for len in [1, 300, 4096, 8192, whole.len() / 2] {
        fs::write(&path, &whole[..len]).unwrap();
        assert_damaged(&path, "");
    }
}

fn assert_damaged(path: &Path, word: &str) {
    match Index::open(path, options(true)) {
        Err(e @ IndexError::Damaged { .. }) => {
            let text = e.to_string();
            assert!(text.contains(&*path.to_string_lossy()) && text.contains(word), "{text}");
        }
        Err(e) => panic!("{e}"),
        Ok(_) => panic!("{} was opened", path.display()),
    }
}

fn set_format(path: &Path, row: &[u8]) {
    let db = redb::Database::open(path).unwrap();
    let tx = db.begin_write().unwrap();
    let table = redb::TableDefinition::<&[u8], &[u8]>::new("format");
    tx.open_table(table).unwrap().insert(&b"format"[..], row).unwrap();
    tx.commit().unwrap();
}

/// Keys that are neighbours, that are far apart, in turn and in stretches, and that have no row.
#[test]
fn sorted_keys_are_found_as_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let (index, _) = new_index(dir.path());
    let key = |n: u32| n.to_be_bytes();
    let rows = (0..20_000u32).filter(|n| n % 5 != 3);
    let row = |n: u32| ((Table::Nodes, key(n).to_vec()), Some(vec![n as u8; 9]));
    index.commit(rows.map(row).collect()).unwrap();
    let snapshot = index.snapshot().unwrap();
    let asked: [Vec<u32>; 6] = [
        (0..20_000).collect(),
        (7..20_000).step_by(100).collect(),
        (0..20_000).filter(|n| n / 300 % 2 == 0 || n % 50 == 0).collect(),
        (0..20_000).filter(|n| n % 9 == 0 || n % 11 == 0).collect(),
        vec![3, 8, 9, 19_999, 20_000, 20_001, u32::MAX],
        vec![],
    ];
    for asked in asked {
        let keys: Vec<[u8; 4]> = asked.iter().map(|n| key(*n)).collect();
        let keys: Vec<&[u8]> = keys.iter().map(|k| &k[..]).collect();
        let found = snapshot.get_sorted(Table::Nodes, &keys).unwrap();
        let one_by_one: Vec<_> = keys.iter().map(|k| snapshot.get(Table::Nodes, k).unwrap()).collect();
        assert_eq!(found, one_by_one);
        assert_eq!(snapshot.get_sorted(Table::Names, &keys).unwrap(), vec![None; keys.len()]);
    }
}

const TABLES: [Table; 3] = [Table::Entries, Table::Names, Table::Unrooted];

fn batch() -> impl Strategy<Value = Batch> {
    let key = proptest::collection::vec(0u8..4, 0..4);
    let value = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20));
    let row = ((0..TABLES.len()).prop_map(|i| TABLES[i]), key);
    proptest::collection::vec((row, value), 0..150).prop_map(Batch::from_iter)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn disk_and_memory_agree(
        batches in proptest::collection::vec(batch(), 1..6),
        from in proptest::collection::vec(0u8..4, 0..3),
        to in proptest::option::of(proptest::collection::vec(0u8..4, 0..3)),
        limit in 0usize..20,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (disk, memory) = (new_index(dir.path()).0, MemStore::new());
        for b in batches {
            disk.commit(b.clone()).unwrap();
            memory.commit(b).unwrap();
            let (d, m) = (disk.snapshot().unwrap(), memory.snapshot().unwrap());
            for table in TABLES {
                prop_assert_eq!(rows(&*d, table), rows(&*m, table));
                prop_assert_eq!(d.last(table).unwrap(), m.last(table).unwrap());
                prop_assert_eq!(d.get(table, &from).unwrap(), m.get(table, &from).unwrap());
                let keys: Vec<Vec<u8>> = rows(&*m, Table::Entries).into_iter().map(|(key, _)| key).collect();
                let keys: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
                prop_assert_eq!(d.get_sorted(table, &keys).unwrap(), m.get_sorted(table, &keys).unwrap());
                let (d, m) = (d.scan(table, &from, to.as_deref(), limit), m.scan(table, &from, to.as_deref(), limit));
                prop_assert_eq!(d.unwrap(), m.unwrap());
            }
        }
    }
}
