//! What each end knows of what is on the other's disk.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use common::Pair;
use driftless_core::Tx;
use driftless_core::link::{self, PeerRow};
use driftless_core::rows::{Store as _, Table};
use driftless_core::tx::Env;
use std::fs::{self, File};
use std::path::Path;

/// What the end at `root` remembers of its only peer, and its own head.
fn peer_of(pair: &Pair, root: &Path) -> (PeerRow, u64) {
    let index = pair.index(root);
    let snapshot = index.snapshot().unwrap();
    let tx = Tx::open(&*snapshot, Env { now_ns: 0, epoch: 0 }).unwrap();
    let mut rows = link::peer_rows(&tx).unwrap();
    assert_eq!(rows.len(), 1);
    (rows.remove(0).1, tx.head())
}

#[test]
fn both_ends_remember_that_the_other_holds_all() {
    let pair = Pair::new();
    for end in [&pair.a, &pair.b] {
        fs::write(end.join(end.file_name().unwrap()), "from here").unwrap();
    }
    File::create(pair.a.join("large")).unwrap().set_len(1 << 20).unwrap();
    for round in 0..3 {
        let end = if round == 1 { &pair.a } else { &pair.b };
        fs::write(end.join("f"), format!("{round}")).unwrap();
        let (outcome, _) = pair.sync();
        assert!(outcome.in_sync && outcome.waiting == 0, "{outcome:?}");
        for end in [&pair.a, &pair.b] {
            let (peer, head) = peer_of(&pair, end);
            assert_eq!(peer.held.waiting, 0, "{}", end.display());
            assert!(peer.held.cursor > 0 && peer.held.cursor >= peer.acked, "{peer:?}, head {head}");
        }
    }
}

#[test]
fn what_waits_there_is_known_here() {
    let pair = Pair::new();
    fs::create_dir(pair.a.join("fixed")).unwrap();
    assert!(pair.sync().0.in_sync);
    // Nothing can be put into a directory that is fixed.
    let fixed = File::open(pair.b.join("fixed")).unwrap();
    let Ok(flags) = rustix::fs::ioctl_getflags(&fixed) else {
        eprintln!("skipped: no flags here");
        return;
    };
    if rustix::fs::ioctl_setflags(&fixed, flags | rustix::fs::IFlags::IMMUTABLE).is_err() {
        eprintln!("skipped: this user may not set flags here");
        return;
    }
    fs::write(pair.a.join("fixed/g"), "g").unwrap();
    let (outcome, _) = pair.sync();
    let held = peer_of(&pair, &pair.a).0.held;
    rustix::fs::ioctl_setflags(&fixed, flags).unwrap();
    assert!(!outcome.in_sync && outcome.waiting > 0, "{outcome:?}");
    assert!(held.waiting > 0, "{held:?}");
    assert!(pair.sync().0.in_sync);
    assert_eq!(peer_of(&pair, &pair.a).0.held.waiting, 0);
}

/// Else each start would plan such a tree again, though nothing has changed.
#[test]
fn a_tree_that_was_joined_is_planned_once() {
    // More than is planned in one go: of fewer it is not written down at once.
    const FILES: usize = 9000;
    let pair = Pair::new();
    for end in [&pair.a, &pair.b] {
        for i in 0..FILES {
            File::create(end.join(i.to_string())).unwrap();
        }
    }
    assert!(pair.sync().0.in_sync);
    for end in [&pair.a, &pair.b] {
        let index = pair.index(end);
        let snapshot = index.snapshot().unwrap();
        let tx = Tx::open(&*snapshot, Env { now_ns: 0, epoch: 0 }).unwrap();
        let planned = snapshot.get(Table::Settings, b"planned").unwrap().unwrap();
        assert_eq!(planned, tx.head().to_be_bytes(), "{}", end.display());
    }
}
