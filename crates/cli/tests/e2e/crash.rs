//! `kill -9` at any moment loses nothing, and the next run goes on.

use crate::common::*;
use driftless_testkit::{Rng, Spec, grow};
use driftless_volume::crash::Point;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[test]
fn a_first_sync_that_is_killed_again_and_again_arrives() {
    let pair = Pair::new();
    grow(&pair.a, 50, &Spec { files: 400, size_max: 200_000, ..Spec::default() }).unwrap();
    let before = fingerprints(&pair.a);
    let mut rng = Rng::new(51);
    for _ in 0..10 {
        let running = Running::start(&mut pair.sync_command(&["--json"]));
        std::thread::sleep(Duration::from_millis(20 + rng.below(150)));
        running.kill();
    }
    pair.once(&[]);
    pair.assert_same();
    let mut touched = fingerprints(&pair.a);
    touched.retain(|path, now| before.get(path) != Some(now));
    assert_eq!(touched, BTreeMap::new(), "the source was touched");
    assert_eq!(copies(&pair.a), Vec::<String>::new());
}

#[test]
fn a_run_that_ends_at_any_named_point_is_made_up_for() {
    let pair = Pair::new();
    pair.once(&[]);
    for (round, point) in Point::ALL.iter().enumerate() {
        work(&pair.a, round);
        pair.once(&[]);
        change(&pair.a, round);
        let mut command = pair.sync_command(&["--once"]);
        let ended = run(command.env("DRIFTLESS_CRASH_AT", format!("{}:1", point.name())));
        assert!(ended.err.contains("crash point"), "{} was not passed: {ended:#?}", point.name());
        let ran = pair.once(&[]);
        let differences = pair.differences();
        assert!(differences.is_empty(), "{}: {}\n{ran:#?}", point.name(), differences.join("\n"));
        assert_eq!(copies(&pair.a), Vec::<String>::new(), "{}", point.name());
        assert_eq!([left_private(&pair.a), left_private(&pair.b)].concat(), Vec::<PathBuf>::new());
    }
}

/// What was shown, and not recorded as ours when the process ended, is not taken for a user's new file because the user moved
/// it, or the directory that it is in, before the next start: it would come back beside what others make of it.
#[test]
fn what_a_user_moves_after_a_crash_is_what_was_shown() {
    let pair = Pair::new();
    for dir in ["dir", "file", "swap"] {
        put(&pair.a, &format!("{dir}/old"), dir);
    }
    pair.once(&[]);
    for dir in ["dir", "file", "swap"] {
        put(&pair.a, &format!("{dir}/old"), "changed");
        put(&pair.a, &format!("{dir}/new"), dir);
    }
    let ended = run(pair.sync_command(&["--once"]).env("DRIFTLESS_CRASH_AT", "moves-done:1"));
    assert!(ended.err.contains("crash point"), "{ended:#?}");
    fs::rename(pair.b.join("dir"), pair.b.join("moved")).unwrap();
    fs::rename(pair.b.join("file/new"), pair.b.join("file/renamed")).unwrap();
    fs::rename(pair.b.join("swap/new"), pair.b.join("swap/renamed")).unwrap();
    put(&pair.b, "swap/new", "another");
    for path in ["dir/new", "file/new", "swap/new"] {
        put(&pair.a, path, "edited");
    }
    fs::remove_file(pair.a.join("dir/old")).unwrap();
    pair.once(&[]);
    pair.assert_same();
    let expected = [
        ("file/old", "changed"),
        ("file/renamed", "edited"),
        ("moved/new", "edited"),
        ("swap/new", "another"),
        ("swap/old", "changed"),
        ("swap/renamed", "edited"),
    ];
    let expected = expected.map(|(path, text)| (path.to_owned(), text.to_owned()));
    assert_eq!(texts(&pair.a), BTreeMap::from(expected));
}

/// A directory takes the name of one that is empty, and a file the name that it leaves: what a user writes to that file before the next start is its
/// next version.
#[test]
fn what_is_written_where_a_directory_had_left_for_an_empty_one_when_the_run_ended() {
    let pair = Pair::new();
    for dir in ["empty", "above/dir"] {
        fs::create_dir_all(pair.a.join(dir)).unwrap();
    }
    pair.once(&[]);
    fs::rename(pair.a.join("above/dir"), pair.a.join("empty")).unwrap();
    put(&pair.a, "above/dir", "new");
    let ended = run(pair.sync_command(&["--once"]).env("DRIFTLESS_CRASH_AT", "moves-done:1"));
    assert!(ended.err.contains("crash point"), "{ended:#?}");
    put(&pair.b, "above/dir", "written");
    pair.once(&[]);
    pair.assert_same();
    assert_eq!(texts(&pair.a), BTreeMap::from([("above/dir".to_owned(), "written".to_owned())]));
}

/// A file takes the name of another, and a user makes a new one by the name that it left before the next start: nobody renamed the first one here, and
/// its removal elsewhere holds.
#[test]
fn what_a_user_makes_where_a_file_had_left_for_another_when_the_run_ended() {
    let pair = Pair::new();
    put(&pair.a, "d/x", "replaced");
    put(&pair.a, "d/y", "moved");
    pair.once(&[]);
    fs::rename(pair.a.join("d/y"), pair.a.join("d/x")).unwrap();
    let ended = run(pair.sync_command(&["--once"]).env("DRIFTLESS_CRASH_AT", "moves-done:1"));
    assert!(ended.err.contains("crash point"), "{ended:#?}");
    put(&pair.b, "d/y", "new");
    fs::remove_file(pair.a.join("d/x")).unwrap();
    pair.once(&[]);
    pair.assert_same();
    assert_eq!(texts(&pair.a), BTreeMap::from([("d/y".to_owned(), "new".to_owned())]));
}

/// Each of two directories goes below the other, with new ones between them that take the names the others leave: all that is
/// moved out of the way is found again, whatever was recorded of it.
#[test]
fn directories_that_were_turned_inside_out_when_the_run_ended_are_found_again() {
    let turned = || {
        let pair = Pair::new();
        put(&pair.a, "b/c/b/b/file", "kept");
        put(&pair.a, "b/c/other", "kept too");
        pair.once(&[]);
        let turn = |from: &str, to: &str| fs::rename(pair.a.join(from), pair.a.join(to)).unwrap();
        turn("b/c/b", "x");
        turn("b/c", "c");
        turn("b", "x/b/b");
        fs::create_dir_all(pair.a.join("x/b/b/c/c")).unwrap();
        turn("c", "x/b/b/c/c/c");
        turn("x", "b");
        pair
    };
    for point in [Point::Parked, Point::DirMade, Point::Moved, Point::MovesDone] {
        for times in 1.. {
            let (pair, told) = (turned(), format!("{}:{times}", point.name()));
            let ended = run(pair.sync_command(&["--once"]).env("DRIFTLESS_CRASH_AT", &told));
            if !ended.err.contains("crash point") {
                assert!(times > 1, "{told} was not passed: {ended:#?}");
                break;
            }
            let ran = pair.once(&[]);
            let differences = pair.differences();
            assert!(differences.is_empty(), "{told}: {}\n{ran:#?}", differences.join("\n"));
            assert_eq!(copies(&pair.a), Vec::<String>::new(), "{told}");
            assert_eq!(files_below(&pair.a, ""), ["b/b/b/c/c/c/other", "b/b/file"], "{told}");
        }
    }
}

/// The second run finds the file that the first one placed, and ends while it gives it another name: that name is no user's file.
#[test]
fn a_link_to_what_the_run_before_had_placed_is_known_as_ours() {
    let pair = Pair::new();
    pair.once(&[]);
    put(&pair.a, "a", "two names");
    fs::hard_link(pair.a.join("a"), pair.a.join("b")).unwrap();
    for point in [Point::Moved, Point::Linked] {
        let ended =
            run(pair.sync_command(&["--once"]).env("DRIFTLESS_CRASH_AT", format!("{}:1", point.name())));
        assert!(ended.err.contains("crash point"), "{} was not passed: {ended:#?}", point.name());
    }
    let ran = pair.once(&[]);
    assert!(!ran.err.contains("was changed"), "{ran:#?}");
    pair.assert_same();
    assert_eq!(names(&pair.a), ["a", "b"]);
}

/// A rename over a file and a new file at its old name were shown, not recorded: that is nobody's rename, which a removal
/// elsewhere would not have seen.
#[test]
fn what_was_shown_by_a_rename_when_the_run_ended_can_be_removed() {
    let pair = Pair::new();
    put(&pair.a, "x", "moved");
    put(&pair.a, "y", "replaced");
    pair.once(&[]);
    fs::rename(pair.a.join("x"), pair.a.join("y")).unwrap();
    put(&pair.a, "x", "new");
    let ended = run(pair.sync_command(&["--once"]).env("DRIFTLESS_CRASH_AT", "moves-done:1"));
    assert!(ended.err.contains("crash point"), "{ended:#?}");
    fs::remove_file(pair.a.join("y")).unwrap();
    pair.once(&[]);
    pair.assert_same();
    assert_eq!(names(&pair.a), ["x"]);
}

/// The files below a directory, in order.
fn files_below(root: &Path, dir: &str) -> Vec<String> {
    let mut found = Vec::new();
    for name in names(&root.join(dir)) {
        let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
        match root.join(&path).is_dir() {
            true => found.extend(files_below(root, &path)),
            false => found.push(path),
        }
    }
    found
}

/// Staged contents are staged again; what users wrote is read again when the disk works, and only then sealed.
#[test]
fn a_disk_that_fails_to_sync_is_told_and_made_up_for() {
    let pair = Pair::new();
    pair.once(&[]);
    work(&pair.a, 0);
    let mut command = pair.sync_command(&["--json"]);
    let mut running = Running::start(command.env("DRIFTLESS_FAIL_AT", "sync:1:EIO"));
    let says = |part: &'static str| {
        move |e: &serde_json::Value| e["event"] == "log" && e["text"].as_str().unwrap().contains(part)
    };
    running.wait_for_row(says("failed to store data"));
    put(&pair.b, "written meanwhile", "1");
    running.wait_for_row(says("all are as they were written"));
    pair.wait_same("the disk works");
    running.kill();
    pair.once(&[]);
    work(&pair.a, 1);
    let staged = run(pair.sync_command(&["--once"]).env("DRIFTLESS_FAIL_AT", "sync-file:1:EIO"));
    assert_eq!(staged.code, 0, "{staged:?}");
    pair.assert_same();
    change(&pair.a, 1);
    let sealed = run(pair.sync_command(&["--once"]).env("DRIFTLESS_FAIL_AT", "sync:1:EIO"));
    assert_eq!(sealed.code, 1, "{sealed:?}");
    pair.once(&[]);
    pair.assert_same();
    assert_eq!([copies(&pair.a), copies(&pair.b)].concat(), Vec::<String>::new());
    assert_eq!([left_private(&pair.a), left_private(&pair.b)].concat(), Vec::<PathBuf>::new());
}

/// All files of a tree of two levels.
fn texts(root: &Path) -> BTreeMap<String, String> {
    let below = |dir: String| names(&root.join(&dir)).into_iter().map(move |name| format!("{dir}/{name}"));
    let read = |path: String| (path.clone(), fs::read_to_string(root.join(path)).unwrap());
    names(root).into_iter().flat_map(below).map(read).collect()
}

/// Something for each kind of change.
fn work(root: &Path, round: usize) {
    let dir = root.join(format!("{round}"));
    for sub in ["gone", "deep/er"] {
        fs::create_dir_all(dir.join(sub)).unwrap();
    }
    for name in ["over", "removed", "one", "two", "linked", "deep/er/file"] {
        put(&dir, name, &format!("{name} {round}"));
    }
}

/// One of each kind of change; two swap names, so that one has to be moved out of the way.
fn change(root: &Path, round: usize) {
    let dir = root.join(format!("{round}"));
    put(&dir, "over", &format!("new {round}"));
    put(&dir, "new/file", &"n".repeat(200_000));
    fs::remove_file(dir.join("removed")).unwrap();
    fs::remove_dir(dir.join("gone")).unwrap();
    fs::hard_link(dir.join("linked"), dir.join("link")).unwrap();
    fs::rename(dir.join("one"), dir.join("aside")).unwrap();
    fs::rename(dir.join("two"), dir.join("one")).unwrap();
    fs::rename(dir.join("aside"), dir.join("two")).unwrap();
    fs::rename(dir.join("deep/er"), dir.join("moved")).unwrap();
}
