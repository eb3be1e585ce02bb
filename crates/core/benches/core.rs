//! The hot parts of the core: merging a state, the effective tree of new entries, stacking a batch, encoding it, cutting a
//! file. `cargo bench -p driftless-core`.

#![allow(clippy::unwrap_used, missing_docs, reason = "a bench may panic")]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use driftless_core::codec::{Encoder, ReplicaTable};
use driftless_core::entry::{At, Entry, Link, Version};
use driftless_core::link::{SendLimits, Sender};
use driftless_core::recipe::{ChunkHash, Cut};
use driftless_core::rows::{MemStore, Store};
use driftless_core::tx::{Env, Tx};
use driftless_core::{
    Attrs, Content, Digest, Dot, EntryId, Kind, LinkId, Name, ReplicaId, Stamp, VersionVector, tree,
};
use smallvec::smallvec;
use std::hint::black_box;

const ME: ReplicaId = ReplicaId(1);
/// Entries of one batch of the engine.
const FILES: u64 = 2048;
const FILES_PER_DIR: u64 = 100;

fn entry(n: u64, kind: Kind, parent: EntryId) -> Entry {
    let dot = Dot::new(ME, n);
    let stamp = Stamp { epoch: 0, clock_ns: n, replica: ME };
    let is_dir = kind == Kind::Dir;
    let holds = if is_dir { Dot::default() } else { dot };
    let at = At { stamp, dot, parent, name: Name::new(format!("name-{n:07}").as_bytes()).unwrap(), holds };
    let content =
        Content::File { size: 4096, mtime: Default::default(), digest: Digest::of(&n.to_be_bytes()) };
    let version = Version { dot, stamp, content };
    Entry {
        id: EntryId(dot),
        kind,
        ctx: VersionVector::from_dot(dot),
        removed: VersionVector::new(),
        data: (!is_dir).then_some(version).into_iter().collect(),
        links: smallvec![Link { id: LinkId(dot), at, gone: VersionVector::new() }],
        meta: (stamp, Attrs { mode: 0o644, ..Attrs::default() }),
        dir_time: None,
        hist: if is_dir { vec![(parent, stamp)] } else { Vec::new() },
    }
}

/// Files in directories, in feed order.
fn entries() -> Vec<Entry> {
    let mut out: Vec<Entry> = Vec::new();
    let mut parent = EntryId::ROOT;
    for n in 1..=FILES {
        let first = (n - 1) % FILES_PER_DIR == 0;
        let kind = if first { Kind::Dir } else { Kind::File };
        let at = if first { EntryId::ROOT } else { parent };
        out.push(entry(n, kind, at));
        if first {
            parent = EntryId(Dot::new(ME, n));
        }
    }
    out
}

fn env() -> Env {
    Env { now_ns: 1, epoch: 0 }
}

fn empty() -> MemStore {
    let store = MemStore::new();
    store.commit(Tx::create(ME)).unwrap();
    store
}

/// All entries in one transaction, as a batch that was received or a directory that was looked at.
fn put_all(store: &MemStore, entries: &[Entry]) {
    let snapshot = store.snapshot().unwrap();
    let mut tx = Tx::open(&*snapshot, env()).unwrap();
    for e in entries {
        let dot = tx.new_dot();
        tree::put_state(&mut tx, e.clone(), dot.n).unwrap();
    }
    store.commit(tx.into_batch(7)).unwrap();
}

fn merge(c: &mut Criterion) {
    let old = entry(2, Kind::File, EntryId::ROOT);
    let mut new = old.clone();
    let (dot, stamp) = (Dot::new(ReplicaId(2), 9), Stamp { epoch: 0, clock_ns: 9, replica: ReplicaId(2) });
    new.ctx.add(dot);
    new.meta = (stamp, Attrs { mode: 0o600, ..Attrs::default() });
    c.bench_function("merge/a newer state of a file", |b| {
        b.iter_batched(|| old.clone(), |mut e| e.merge(black_box(&new)), BatchSize::SmallInput);
    });
}

fn effective_tree(c: &mut Criterion) {
    let entries = entries();
    let mut group = c.benchmark_group("effective tree");
    group.throughput(Throughput::Elements(FILES));
    group.bench_function("new files in new directories", |b| {
        b.iter_batched(empty, |store| put_all(&store, &entries), BatchSize::LargeInput);
    });
    let store = empty();
    put_all(&store, &entries);
    group.bench_function("paths of all", |b| {
        b.iter(|| {
            let snapshot = store.snapshot().unwrap();
            let mut tx = Tx::open(&*snapshot, env()).unwrap();
            for e in &entries {
                black_box(tree::path_of(&mut tx, e.id).unwrap());
            }
        });
    });
    group.finish();
}

fn stacking(c: &mut Criterion) {
    let store = empty();
    put_all(&store, &entries());
    let limits = SendLimits { inline: false, fill_rows: 0, relay_delay_ms: 0, ..SendLimits::default() };
    let mut group = c.benchmark_group("stacking");
    group.throughput(Throughput::Elements(FILES));
    let stack = || {
        let snapshot = store.snapshot().unwrap();
        let mut tx = Tx::open(&*snapshot, env()).unwrap();
        let mut sender = Sender::new(ReplicaId(2), 0, VersionVector::new(), limits);
        sender.poll(&mut tx, 1).unwrap().unwrap().batch
    };
    group.bench_function("a batch from the feed", |b| b.iter(stack));
    let batch = stack();
    group.bench_function("its states as bytes", |b| {
        b.iter(|| {
            let (mut e, mut table) = (Encoder::new(), ReplicaTable::default());
            batch.entries.iter().for_each(|entry| e.entry(entry, &mut table));
            e.buf
        });
    });
    group.finish();
}

fn chunking(c: &mut Criterion) {
    let mut bytes = vec![0; 16 << 20];
    // What is noise in one place is as good as anywhere.
    for (i, part) in bytes.chunks_mut(32).enumerate() {
        part.copy_from_slice(&Digest::of(&i.to_be_bytes()).0);
    }
    let mut group = c.benchmark_group("chunking");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    for size in [1u64 << 20, 1 << 30, 1 << 40] {
        let cut = Cut::of_size(size, ChunkHash::Xxh3);
        group.bench_function(format!("average {} KiB", cut.average() >> 10), |b| {
            b.iter(|| cut.chunks(black_box(&bytes), true, |item| _ = black_box(item)));
        });
    }
    group.finish();
}

criterion_group!(benches, merge, effective_tree, stacking, chunking);
criterion_main!(benches);
