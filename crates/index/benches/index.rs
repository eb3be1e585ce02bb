//! The store on disk: a batch of new files, reads, and the smallest commit. `cargo bench -p driftless-index`; TMPDIR says
//! which disk.

#![allow(clippy::unwrap_used, missing_docs, reason = "a bench may panic")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use driftless_core::rows::{Batch, Store, Table};
use driftless_index::{Index, OpenOptions};
use std::hint::black_box;

/// Entries of one batch of the engine.
const ENTRIES: u64 = 2048;

/// What a new file adds to the index, about: its state, its places in feed, names and tree, and its inode.
fn rows(first: u64) -> Batch {
    let mut batch = Batch::new();
    for n in first..first + ENTRIES {
        let key = n.to_be_bytes().to_vec();
        let named = [&7u64.to_be_bytes()[..], format!("name-{n:07}").as_bytes()].concat();
        batch.insert((Table::Entries, key.clone()), Some(vec![n as u8; 120]));
        batch.insert((Table::Feed, key.clone()), Some(key.clone()));
        batch.insert((Table::Names, named.clone()), Some(key.clone()));
        batch.insert((Table::Places, named), Some(vec![n as u8; 40]));
        batch.insert((Table::Nodes, key), Some(vec![n as u8; 90]));
    }
    batch
}

fn index(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let options = OpenOptions { create: true, ..OpenOptions::default() };
    let index = Index::open(&dir.path().join("index.redb"), options).unwrap();
    let mut next = 0;
    let mut group = c.benchmark_group("index");
    group.throughput(Throughput::Elements(ENTRIES));
    group.bench_function("a batch of new files", |b| {
        b.iter(|| {
            index.commit(rows(next)).unwrap();
            next += ENTRIES;
        });
    });
    group.throughput(Throughput::Elements(1));
    let snapshot = index.snapshot().unwrap();
    let mut n = 0u64;
    group.bench_function("a read", |b| {
        b.iter(|| {
            n = (n + 7919) % next;
            black_box(snapshot.get(Table::Entries, &n.to_be_bytes()).unwrap())
        });
    });
    drop(snapshot);
    group.bench_function("a commit of one row", |b| {
        b.iter(|| {
            n += 1;
            let row = ((Table::Entries, (n % next).to_be_bytes().to_vec()), Some(vec![1; 120]));
            index.commit([row].into_iter().collect()).unwrap();
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = index
}
criterion_main!(benches);
