//! What each end knows of what is on the other's disk.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use driftless_core::Tx;
use driftless_core::link::{self, PeerRow};
use driftless_core::rows::Store as _;
use driftless_core::tx::Env;
use driftless_index::{Index, OpenOptions, StateDir};
use driftless_node::api::{Endpoint, MaxDelete, Outcome, Shared, SyncOptions};
use driftless_node::session::{StopFlag, run};
use std::fs::{self, File};
use std::path::Path;

fn sync(base: &Path) -> Outcome {
    let options = SyncOptions {
        a: Endpoint::Local(base.join("a")),
        b: Endpoint::Local(base.join("b")),
        state_dir: Some(base.join("state")),
        shared: Shared {
            active_passive: false,
            filters: Vec::new(),
            max_delete: MaxDelete::Default,
            dry_run: false,
            allow_unsafe_fs: false,
            once: true,
            site_names: ("A".into(), "B".into()),
            verbose: false,
            trash: None,
        },
        bwlimit_bytes_per_s: None,
        remote_bin: "driftless".into(),
    };
    let (send, _events) = crossbeam_channel::unbounded();
    run(options, send, StopFlag::default()).unwrap()
}

/// What the end at `root` remembers of its only peer, and its own head.
fn peer_of(base: &Path, root: &str) -> (PeerRow, u64) {
    let state = StateDir::at(base.join("state"));
    let dirs = state.replicas().unwrap();
    let dir = dirs.iter().find(|d| d.root().unwrap().ends_with(root)).unwrap();
    let index = Index::open(&dir.index(), OpenOptions::default()).unwrap();
    let snapshot = index.snapshot().unwrap();
    let tx = Tx::open(&*snapshot, Env { now_ns: 0, epoch: 0 }).unwrap();
    let mut rows = link::peer_rows(&tx).unwrap();
    assert_eq!(rows.len(), 1);
    (rows.remove(0).1, tx.head())
}

#[test]
fn both_ends_remember_that_the_other_holds_all() {
    let base = tempfile::tempdir().unwrap();
    for end in ["a", "b"] {
        fs::create_dir(base.path().join(end)).unwrap();
        fs::write(base.path().join(end).join(format!("from {end}")), end).unwrap();
    }
    File::create(base.path().join("a/large")).unwrap().set_len(1 << 20).unwrap();
    for round in 0..3 {
        fs::write(base.path().join(if round == 1 { "a/f" } else { "b/f" }), format!("{round}")).unwrap();
        let outcome = sync(base.path());
        assert!(outcome.in_sync && outcome.waiting == 0, "{outcome:?}");
        for end in ["a", "b"] {
            let (peer, head) = peer_of(base.path(), end);
            assert_eq!(peer.held.waiting, 0, "{end}");
            assert!(peer.held.cursor > 0 && peer.held.cursor >= peer.acked, "{end}: {peer:?}, head {head}");
        }
    }
}

#[test]
fn what_waits_there_is_known_here() {
    let base = tempfile::tempdir().unwrap();
    for end in ["a", "b"] {
        fs::create_dir_all(base.path().join(end).join("fixed")).unwrap();
    }
    fs::write(base.path().join("a/f"), "f").unwrap();
    sync(base.path());
    // Nothing can be put into a directory that is fixed.
    let fixed = File::open(base.path().join("b/fixed")).unwrap();
    let Ok(flags) = rustix::fs::ioctl_getflags(&fixed) else {
        eprintln!("skipped: no flags here");
        return;
    };
    if rustix::fs::ioctl_setflags(&fixed, flags | rustix::fs::IFlags::IMMUTABLE).is_err() {
        eprintln!("skipped: this user may not set flags here");
        return;
    }
    fs::write(base.path().join("a/fixed/g"), "g").unwrap();
    let outcome = sync(base.path());
    let held = peer_of(base.path(), "a").0.held;
    rustix::fs::ioctl_setflags(&fixed, flags).unwrap();
    assert!(!outcome.in_sync && outcome.waiting > 0, "{outcome:?}");
    assert!(held.waiting > 0, "{held:?}");
    assert!(sync(base.path()).in_sync);
    assert_eq!(peer_of(base.path(), "a").0.held.waiting, 0);
}
