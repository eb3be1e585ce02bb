//! A disk that fails: what a failed sync was about is written anew from its source.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use driftless_node::api::{Endpoint, Event, MaxDelete, OnRollback, Reason, Shared, SyncOptions};
use driftless_node::session::{StopFlag, run};
use driftless_volume::{Directory, OpenOptions, StageId, fault};
use std::path::Path;

/// Longer than what comes inside batches.
const LARGE_LEN: usize = 300 << 10;

fn options(base: &Path) -> SyncOptions {
    SyncOptions {
        a: Endpoint::Local(base.join("a")),
        b: Endpoint::Local(base.join("b")),
        state_dir: Some(base.join("state")),
        shared: Shared {
            active_passive: false,
            filters: Vec::new(),
            max_delete: MaxDelete::Default,
            on_rollback: OnRollback::Ask,
            dry_run: false,
            allow_unsafe_fs: false,
            once: true,
            site_names: ("A".into(), "B".into()),
            verbose: false,
            trash: None,
        },
        bwlimit_bytes_per_s: None,
        remote_bin: "driftless".into(),
    }
}

/// One test, since the fault is one of the process.
#[test]
fn what_a_failed_sync_was_about_is_written_anew() {
    let base = tempfile::tempdir().unwrap();
    let (a, b) = (base.path().join("a"), base.path().join("b"));
    std::fs::create_dir(&a).unwrap();
    std::fs::create_dir(&b).unwrap();
    // Small ones go another way; there a failure is not even told.
    std::fs::write(a.join("small"), "x").unwrap();
    fault::fail_syncs(1);
    let (send, _events) = crossbeam_channel::unbounded();
    assert!(run(options(base.path()), send, StopFlag::default()).unwrap().in_sync);
    assert_eq!(fault::syncs_to_fail(), 0);
    assert_eq!(std::fs::read(b.join("small")).unwrap(), b"x");

    for i in 0..10u8 {
        std::fs::write(a.join(i.to_string()), vec![i; LARGE_LEN]).unwrap();
    }
    fault::fail_syncs(7);
    let (send, events) = crossbeam_channel::unbounded();
    let outcome = run(options(base.path()), send, StopFlag::default()).unwrap();
    assert!(outcome.in_sync && outcome.waiting == 0, "{outcome:?}");
    assert_eq!(fault::syncs_to_fail(), 0);
    for i in 0..10u8 {
        let name = i.to_string();
        assert_eq!(std::fs::read(b.join(&name)).unwrap(), std::fs::read(a.join(&name)).unwrap(), "{name}");
    }
    let (mut waited, mut resolved) = (0, 0);
    for event in events {
        match event {
            Event::Waiting { reason: Reason::SyncFailed, .. } => waited += 1,
            Event::Resolved { .. } => resolved += 1,
            _ => {}
        }
    }
    assert!(waited > 0 && resolved == waited, "{waited} waited, {resolved} resolved");

    // A failure that somebody else was told of counts for all that is staged.
    let volume = Directory::open(&b, OpenOptions { create_private: true }).unwrap();
    let failures = volume.sync_failures();
    let staged = volume.stage_small(StageId(1 << 40), b"x", &Default::default(), Default::default()).unwrap();
    fault::fail_syncs(1);
    assert!(volume.sync().is_err());
    assert!(volume.make_durable_since(std::slice::from_ref(&staged), failures).is_err());
    assert!(volume.make_durable_since(std::slice::from_ref(&staged), volume.sync_failures()).is_ok());
}
