//! The root's attributes are an entry like others.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use driftless_core::link::{Receiver, SendLimits, Sender};
use driftless_core::local::{self, Looked};
use driftless_core::plan::{self, Plan, PlanOptions, Step};
use driftless_core::rows::{MemStore, Store};
use driftless_core::tree;
use driftless_core::tx::Env;
use driftless_core::{Attrs, EntryId, Fingerprint, Kind, NodeKey, ReplicaId, Time, Tx, VersionVector};

const ENV: Env = Env { now_ns: 1_000, epoch: 0 };

fn root(mode: u32, sec: i64) -> Looked {
    let attrs = Attrs { mode, dir_mtime: Some(Time { sec, nsec: 5 }), ..Attrs::default() };
    let key = NodeKey::new(b"root").unwrap();
    Looked { key, kind: Kind::Dir, fingerprint: Fingerprint::default(), racy: false, attrs, content: None }
}

fn replica(id: u64, looked: &Looked) -> MemStore {
    let store = MemStore::new();
    store.commit(Tx::create(ReplicaId(id))).unwrap();
    let snapshot = store.snapshot().unwrap();
    let mut tx = Tx::open(&*snapshot, ENV).unwrap();
    local::init_root(&mut tx, looked).unwrap();
    store.commit(tx.into_batch(1)).unwrap();
    store
}

#[test]
fn the_roots_attributes_reach_the_other_root() {
    let (a, b) = (replica(1, &root(0o750, 7)), replica(2, &root(0o755, 3)));
    let snapshot = a.snapshot().unwrap();
    let mut tx = Tx::open(&*snapshot, ENV).unwrap();
    local::import_root(&mut tx).unwrap();
    a.commit(tx.into_batch(2)).unwrap();

    let snapshot = a.snapshot().unwrap();
    let mut tx = Tx::open(&*snapshot, ENV).unwrap();
    let mut sender = Sender::new(ReplicaId(2), 0, VersionVector::new(), SendLimits::default());
    let batch = sender.poll(&mut tx, 0).unwrap().expect("a batch").batch;
    assert_eq!(batch.entries.len(), 1);

    let snapshot = b.snapshot().unwrap();
    let mut tx = Tx::open(&*snapshot, ENV).unwrap();
    let merged = Receiver::new(ReplicaId(1)).handle_batch(&mut tx, &batch).unwrap();
    assert_eq!((merged.changed, merged.receipt.refused), (vec![EntryId::ROOT], vec![]));
    b.commit(tx.into_batch(3)).unwrap();

    let snapshot = b.snapshot().unwrap();
    let mut tx = Tx::open(&*snapshot, ENV).unwrap();
    assert!(tx.entry(EntryId::ROOT).unwrap().is_some());
    assert_eq!(tree::path_of(&mut tx, EntryId::ROOT).unwrap(), Some(vec![]));
    assert!(tree::shown_names(&mut tx, EntryId::ROOT).unwrap().is_empty());
    let mut plan = Plan::new();
    plan::plan_entry(&mut tx, EntryId::ROOT, &mut plan, &PlanOptions::default()).unwrap();
    let [Step::SetAttrs { path: None, attrs, .. }] = &plan.steps[..] else { panic!("{:?}", plan.steps) };
    assert_eq!((attrs.mode, attrs.dir_mtime), (0o750, Some(Time { sec: 7, nsec: 5 })));
    plan::plan_entry(&mut tx, EntryId::ROOT, &mut plan, &PlanOptions::default()).unwrap();
    assert_eq!(plan.steps.len(), 1);
}
