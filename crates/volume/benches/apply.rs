//! Applying a batch of small files: staged, made durable, moved to their names. `cargo bench -p driftless-volume`; TMPDIR says
//! which disk.

#![allow(clippy::unwrap_used, missing_docs, reason = "a bench may panic")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use driftless_core::{Attrs, Name, Time};
use driftless_volume::{Directory, OpenOptions, StageId};

/// Files of one batch.
const FILES: u64 = 1024;
const WHEN: Time = Time { sec: 1_234_567_890, nsec: 0 };

fn apply(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let volume = Directory::open(dir.path(), OpenOptions { create_private: true }).unwrap();
    let attrs = Attrs { mode: 0o644, ..Attrs::default() };
    let bytes = vec![7; 4096];
    let mut next = 0;
    let mut group = c.benchmark_group("apply");
    group.throughput(Throughput::Elements(FILES));
    group.bench_function("files of 4 KiB", |b| {
        b.iter(|| {
            let sub = format!("d{next:09}");
            std::fs::create_dir(dir.path().join(&sub)).unwrap();
            let to = volume.dir(&[Name::new(sub.as_bytes()).unwrap()], None).unwrap();
            let mut staged = Vec::new();
            for _ in 0..FILES {
                next += 1;
                staged.push(volume.stage_small(StageId(next), &bytes, &attrs, WHEN).unwrap());
            }
            volume.make_durable(&staged, &[]).unwrap();
            for s in &staged {
                let name = Name::new(s.id.to_string().as_bytes()).unwrap();
                volume.place(s, &to, &name, None).unwrap();
            }
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10);
    targets = apply
}
criterion_main!(benches);
