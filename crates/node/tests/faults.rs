//! A disk that fails: what a failed sync was about is written anew from its source.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use driftless_node::api::{Endpoint, Event, MaxDelete, OnRollback, Reason, Shared, SyncOptions};
use driftless_node::session::{StopFlag, run};
use driftless_volume::fault::Bad;
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
            crawl_every_s: driftless_node::api::CRAWL_EVERY_DEFAULT_S,
        },
        bwlimit_bytes_per_s: None,
        remote_bin: "driftless".into(),
    }
}

/// One test, since faults are of the process.
#[test]
fn a_disk_that_fails() {
    what_a_failed_sync_was_about_is_written_anew();
    what_users_wrote_before_a_failed_sync_is_read_again();
}

fn texts(events: &crossbeam_channel::Receiver<Event>) -> Vec<String> {
    let text = |e| match e {
        Event::Log { text, .. } => Some(text),
        _ => None,
    };
    events.try_iter().filter_map(text).collect()
}

/// The disk took nothing of what a user wrote, and said so once. From memory it had been read, recorded and sent.
fn what_users_wrote_before_a_failed_sync_is_read_again() {
    let base = tempfile::tempdir().unwrap();
    let (a, b) = (base.path().join("a"), base.path().join("b"));
    std::fs::create_dir(&a).unwrap();
    std::fs::create_dir(&b).unwrap();
    let run_once = || {
        let (send, events) = crossbeam_channel::unbounded();
        (run(options(base.path()), send, StopFlag::default()), texts(&events))
    };
    for name in ["lost", "whole"] {
        std::fs::write(a.join(name), "before").unwrap();
    }
    assert!(run_once().0.unwrap().in_sync);
    for name in ["lost", "whole"] {
        std::fs::write(a.join(name), "new content").unwrap();
    }
    fault::fail_file_system_syncs(2);
    let failed = run_once().0.unwrap_err();
    assert!(failed.what.contains("sync"), "{failed:?}");
    fault::fail_file_system_syncs(0);
    let ino = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(a.join("lost")).unwrap());
    fault::set_bad_files(&[(ino, Bad::Damaged)]);
    let (outcome, said) = run_once();
    assert!(outcome.unwrap().in_sync, "{said:?}");
    assert!(said.iter().any(|text| text.contains("what was written to 1;")), "{said:?}");
    for dir in [&a, &b] {
        for name in ["lost", "whole"] {
            assert_eq!(std::fs::read(dir.join(name)).unwrap(), b"new content", "{said:?}");
        }
        let copies =
            || std::fs::read_dir(dir).unwrap().filter_map(|e| e.unwrap().file_name().into_string().ok());
        assert_eq!(copies().filter(|name| name.starts_with("lost.conflict-")).count(), 1);
        assert_eq!(copies().filter(|name| name.starts_with("whole")).count(), 1);
    }
    std::fs::write(a.join("whole"), "newer content").unwrap();
    fault::fail_file_system_syncs(2);
    run_once().0.unwrap_err();
    fault::fail_file_system_syncs(0);
    let (outcome, said) = run_once();
    assert!(outcome.unwrap().in_sync);
    assert!(said.iter().any(|text| text.contains("all are as they were written")), "{said:?}");
    let (outcome, said) = run_once();
    assert!(outcome.unwrap().in_sync);
    assert!(!said.iter().any(|text| text.contains("read again")), "once is enough: {said:?}");
    fault::set_bad_files(&[]);
}

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
