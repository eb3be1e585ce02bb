//! Modification times of directories: set back by the tools that copy trees, moved by every change inside, disturbed by
//! kills. Both ends show the same one, to the nanosecond.

use crate::common::*;
use driftless_testkit::{Rng, Spec, grow};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Times of all directories below a root, by path.
type Times = BTreeMap<PathBuf, (i64, i64)>;

fn dir_times(root: &Path) -> Times {
    let mut found = Times::new();
    for path in fingerprints(root).into_keys() {
        let meta = fs::symlink_metadata(root.join(&path)).unwrap();
        if meta.is_dir() {
            found.insert(path, (meta.mtime(), meta.mtime_nsec()));
        }
    }
    found
}

/// `touch -d`.
fn touch(path: &Path, seconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: 123_456_789 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn mtime(path: &Path) -> i64 {
    fs::metadata(path).unwrap().mtime()
}

fn ctime(path: &Path) -> (i64, i64) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.ctime(), meta.ctime_nsec())
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).output().unwrap();
    assert!(copied.status.success(), "{copied:?}");
}

/// A tree whose directories have had their times for long.
fn old_tree(root: &Path, seed: u64, files: usize) -> Times {
    let spec = Spec { files, dirs: 40, size_max: 20_000, ..Spec::default() };
    grow(root, seed, &spec).unwrap();
    // Children first: nothing moves a time after it was set.
    for (i, dir) in dir_times(root).into_keys().rev().enumerate() {
        touch(&root.join(dir), 1_000_000_000 + i as i64);
    }
    dir_times(root)
}

#[test]
fn copied_trees_keep_the_times_of_their_directories() {
    let pair = Pair::new();
    let originals = pair.base.path().join("originals");
    let (x, y) = (old_tree(&originals.join("x"), 71, 200), old_tree(&originals.join("y"), 72, 200));
    let running = pair.start(&[]);
    copy(&originals.join("x"), &pair.a.join("x"));
    copy(&originals.join("y"), &pair.b.join("y"));
    pair.wait_same("two copied trees");
    pair.assert_same();
    for root in [&pair.a, &pair.b] {
        assert_eq!((dir_times(&root.join("x")), dir_times(&root.join("y"))), (x.clone(), y.clone()));
    }
    running.stop();
}

#[test]
fn a_time_may_be_set_back_and_forth_from_both_ends() {
    let pair = Pair::new();
    put(&pair.a, "d/e/f", "1");
    let running = pair.start(&[]);
    for (i, seconds) in [5, 2_000_000_000, 5, 1_000_000_000, -7, 5].into_iter().enumerate() {
        let (here, there) = if i % 2 == 0 { (&pair.a, &pair.b) } else { (&pair.b, &pair.a) };
        touch(&here.join("d"), seconds);
        pair.wait_same("a time that was set");
        assert_eq!((mtime(&here.join("d")), mtime(&there.join("d"))), (seconds, seconds));
        // Work inside moves it on, and the user puts it back to what it was.
        put(here, &format!("d/new {i}"), "x");
        pair.wait_same("a change inside");
        assert_ne!(mtime(&there.join("d")), seconds);
        touch(&here.join("d"), seconds);
        pair.wait_same("a time that was set again");
        assert_eq!((mtime(&here.join("d")), mtime(&there.join("d"))), (seconds, seconds));
    }
    running.stop();
}

#[test]
fn a_time_set_while_nothing_runs_is_taken() {
    let pair = Pair::new();
    put(&pair.a, "d/e/f", "1");
    pair.once(&[]);
    touch(&pair.b.join("d/e"), 77);
    touch(&pair.a.join("d"), 78);
    pair.once(&[]);
    pair.assert_same();
    assert_eq!((mtime(&pair.a.join("d/e")), mtime(&pair.b.join("d"))), (77, 78));
}

/// Who wins is open. But both ends show the same, and come to rest.
#[test]
fn two_users_in_one_directory_end_with_one_time() {
    let pair = Pair::new();
    put(&pair.a, "d/first", "1");
    let running = pair.start(&[]);
    std::thread::scope(|s| {
        for (root, who, seed) in [(&pair.a, "a", 81), (&pair.b, "b", 82)] {
            s.spawn(move || {
                let mut rng = Rng::new(seed);
                for i in 0..300 {
                    match rng.below(4) {
                        0 => touch(&root.join("d"), 1_000 + i),
                        1 => drop(fs::remove_file(root.join(format!("d/{who}{}", rng.below(20))))),
                        _ => put(root, &format!("d/{who}{}", rng.below(20)), &i.to_string()),
                    }
                    std::thread::sleep(Duration::from_millis(rng.below(4)));
                }
            });
        }
    });
    pair.wait_same("two users");
    // Equal for a moment is not in sync: a time may be on its way.
    let (outcome, code) = running.stop();
    assert_eq!((code, outcome["in_sync"].as_bool()), (0, Some(true)), "{outcome:#}");
    pair.assert_same();
    let quiet = pair.once(&["--json"]);
    let [last] = &quiet.events("outcome")[..] else { panic!("{quiet:#?}") };
    assert_eq!(last["in_sync"].as_bool(), Some(true), "{last:#}");
    pair.assert_same();
}

/// What a kill leaves half done on one side must not be taken for what a user did there.
#[test]
fn a_killed_sync_keeps_the_times_of_the_source() {
    let pair = Pair::new();
    let mut rng = Rng::new(91);
    for i in 0..1200 {
        put(&pair.a, &format!("d{}/e{}/f{i}", i % 6, i % 30), "before");
    }
    pair.once(&[]);
    for round in 0..6 {
        work_everywhere(&pair.a, round, &mut rng);
        let wanted = dir_times(&pair.a);
        // Killed soon after the other side has begun to move, and then amid the repairs of that.
        let dirs: Vec<PathBuf> = dir_times(&pair.b).into_keys().map(|dir| pair.b.join(dir)).collect();
        let ctimes = || dirs.iter().map(|dir| ctime(dir)).collect::<Vec<_>>();
        let before = ctimes();
        let running = Running::start(&mut pair.sync_command(&["--json"]));
        wait_until("the other side moves", || {
            if ctimes() == before { Err("nothing moved".into()) } else { Ok(()) }
        });
        std::thread::sleep(Duration::from_millis(rng.below(40)));
        running.kill();
        let running = Running::start(&mut pair.sync_command(&["--json"]));
        std::thread::sleep(Duration::from_millis(10 + rng.below(90)));
        running.kill();
        pair.once(&[]);
        pair.assert_same();
        assert_eq!(dir_times(&pair.a), wanted, "round {round}");
    }
}

/// Files come, change, move and go in all directories, whose times are set back after that.
fn work_everywhere(root: &Path, round: u64, rng: &mut Rng) {
    let dirs = dir_times(root);
    for dir in dirs.keys() {
        let dir = root.join(dir);
        for name in names(&dir).into_iter().filter(|n| n.starts_with('f')) {
            let path = dir.join(&name);
            match rng.below(8) {
                0 => fs::remove_file(path).unwrap(),
                1 => fs::write(path, format!("round {round}")).unwrap(),
                2 => fs::rename(&path, dir.join(format!("{name}x"))).unwrap(),
                3 => fs::write(dir.join(format!("{name}-{round}")), "new").unwrap(),
                _ => {}
            }
        }
    }
    fs::create_dir(root.join(format!("new {round}"))).unwrap();
    for (i, dir) in dir_times(root).into_keys().rev().enumerate() {
        touch(&root.join(dir), 1_000_000_000 - round as i64 * 1000 + i as i64);
    }
}
