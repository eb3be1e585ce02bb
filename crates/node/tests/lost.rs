//! Contents that a disk loses before anybody else has them: named, waited for, given up, or found again.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use common::Pair;
use driftless_node::api::{Event, Outcome, Reason};
use driftless_node::query::{AcceptOutcome, LostVersion};
use driftless_volume::fault::{self, Bad};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Longer than what comes inside batches from memory, and short enough to come whole.
const LARGE_LEN: usize = 300 << 10;
/// Comes in one piece, and is kept in memory.
const SMALL_LEN: usize = 1000;

/// Two directories on a disk without faults.
fn healthy() -> Pair {
    // Inode numbers are used again.
    fault::set_bad_files(&[]);
    Pair::new()
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

fn waits_for(events: &[Event]) -> Vec<Reason> {
    let reason = |e: &Event| if let Event::Waiting { reason, .. } = e { Some(*reason) } else { None };
    events.iter().filter_map(reason).collect()
}

fn recorded(outcome: &Outcome) -> u64 {
    let (a, b) = outcome.counts;
    a.recorded + b.recorded + a.applied + b.applied
}

fn only(mut rows: Vec<LostVersion>) -> LostVersion {
    assert_eq!(rows.len(), 1, "{rows:?}");
    rows.remove(0)
}

/// A has written a version over one that both had, and its disk fails before B has got it.
fn write_and_fail(pair: &Pair, bad: Bad, len: usize) {
    fs::write(pair.a.join("f"), vec![b'o'; len]).unwrap();
    fs::write(pair.a.join("other"), "1").unwrap();
    assert!(pair.sync().0.in_sync);
    assert_eq!((pair.lost(&pair.a), pair.lost(&pair.b)), (vec![], vec![]), "nothing is lost in good times");
    fs::write(pair.a.join("other"), "2").unwrap();
    fs::write(pair.a.join("f"), vec![b'n'; len]).unwrap();
    fault::set_bad_files(&[(inode(&pair.a.join("f")), bad)]);
    let (outcome, events) = pair.sync();
    assert!(!outcome.in_sync && outcome.waiting == 1, "{outcome:?}");
    assert!(waits_for(&events).contains(&Reason::ContentNowhere), "{events:?}");
    assert_eq!(fs::read(pair.b.join("other")).unwrap(), b"2", "all else goes on");
    assert_eq!(fs::read(pair.b.join("f")).unwrap(), vec![b'o'; len], "what B has stays");
}

/// One test, since the faults are of the process.
#[test]
fn what_a_disk_loses_is_named_and_given_up_or_found_again() {
    the_earlier_version_comes_back(Bad::Unreadable, "unreadable", LARGE_LEN);
    the_earlier_version_comes_back(Bad::Damaged, "damaged", LARGE_LEN);
    a_disk_that_recovers_needs_nobody();
    what_was_never_held_anywhere_is_removed();
    the_end_whose_disk_failed_may_say_so();
    a_new_version_makes_good_for_it();
    a_small_one_that_is_in_memory_is_not_lost();
}

fn the_earlier_version_comes_back(bad: Bad, why: &str, len: usize) {
    let pair = healthy();
    write_and_fail(&pair, bad, len);
    let (here, there) = (only(pair.lost(&pair.a)), only(pair.lost(&pair.b)));
    for row in [&here, &there] {
        assert_eq!((&*row.path.text, &*row.why, row.size), ("f", why, len as u64), "{row:?}");
        assert_eq!((&*row.written_by, row.may_be_at.len()), ("A", 0), "{row:?}");
    }
    assert_eq!((here.here, here.earlier_here), (true, false));
    assert_eq!((there.here, there.earlier_here), (false, true));
    assert_eq!((&here.version, &here.entry), (&there.version, &there.entry));

    let (outcome, _) = pair.sync();
    assert!(!outcome.in_sync, "it stays so");
    assert_eq!(only(pair.lost(&pair.b)).since, there.since);
    assert_eq!(pair.accept(&pair.b, &there), AcceptOutcome::Republished);
    let (outcome, _) = pair.sync();
    assert!(outcome.in_sync && outcome.waiting == 0, "{outcome:?}");
    for end in [&pair.a, &pair.b] {
        assert_eq!(fs::read(end.join("f")).unwrap(), vec![b'o'; len]);
        assert_eq!(pair.lost(end), []);
    }
    assert_eq!(recorded(&pair.sync().0), 0, "nothing is left to do");
}

fn a_disk_that_recovers_needs_nobody() {
    let pair = healthy();
    write_and_fail(&pair, Bad::Unreadable, LARGE_LEN);
    fault::set_bad_files(&[]);
    assert!(pair.sync().0.in_sync);
    assert_eq!(fs::read(pair.b.join("f")).unwrap(), vec![b'n'; LARGE_LEN]);
    assert_eq!((pair.lost(&pair.a), pair.lost(&pair.b)), (vec![], vec![]));
}

fn what_was_never_held_anywhere_is_removed() {
    let pair = healthy();
    assert!(pair.sync().0.in_sync);
    fs::write(pair.a.join("new"), vec![b'n'; LARGE_LEN]).unwrap();
    fault::set_bad_files(&[(inode(&pair.a.join("new")), Bad::Unreadable)]);
    assert!(!pair.sync().0.in_sync);
    let row = only(pair.lost(&pair.b));
    assert!(!row.earlier_here);
    assert_eq!(pair.accept(&pair.b, &row), AcceptOutcome::Removed);
    assert!(pair.sync().0.in_sync);
    assert!(!pair.a.join("new").exists() && !pair.b.join("new").exists());
    assert_eq!((pair.lost(&pair.a), pair.lost(&pair.b)), (vec![], vec![]));
    assert_eq!(recorded(&pair.sync().0), 0);
}

fn the_end_whose_disk_failed_may_say_so() {
    for earlier in [true, false] {
        let pair = healthy();
        if earlier {
            write_and_fail(&pair, Bad::Unreadable, LARGE_LEN);
        } else {
            fs::write(pair.a.join("f"), vec![b'n'; LARGE_LEN]).unwrap();
            fault::set_bad_files(&[(inode(&pair.a.join("f")), Bad::Unreadable)]);
            assert!(!pair.sync().0.in_sync);
        }
        let row = only(pair.lost(&pair.a));
        assert_eq!(pair.accept(&pair.a, &row), AcceptOutcome::Noted);
        assert!(only(pair.lost(&pair.a)).accepted);
        let (outcome, _) = pair.sync();
        assert!(outcome.in_sync && outcome.waiting == 0, "{outcome:?}");
        for end in [&pair.a, &pair.b] {
            let now = fs::read(end.join("f")).ok();
            assert_eq!(now, earlier.then(|| vec![b'o'; LARGE_LEN]));
            assert_eq!(pair.lost(end), []);
        }
        assert_eq!(recorded(&pair.sync().0), 0);
    }
}

fn a_new_version_makes_good_for_it() {
    let pair = healthy();
    write_and_fail(&pair, Bad::Damaged, LARGE_LEN);
    fs::remove_file(pair.a.join("f")).unwrap();
    fault::set_bad_files(&[]);
    fs::write(pair.a.join("f"), "newest").unwrap();
    assert!(pair.sync().0.in_sync);
    assert_eq!(fs::read(pair.b.join("f")).unwrap(), b"newest");
    assert_eq!((pair.lost(&pair.a), pair.lost(&pair.b)), (vec![], vec![]));
}

fn a_small_one_that_is_in_memory_is_not_lost() {
    let pair = healthy();
    fs::write(pair.a.join("f"), vec![b'n'; SMALL_LEN]).unwrap();
    fault::set_bad_files(&[(inode(&pair.a.join("f")), Bad::Unreadable)]);
    assert!(pair.sync().0.in_sync);
    assert_eq!(pair.lost(&pair.b), []);
    fault::set_bad_files(&[]);
}
