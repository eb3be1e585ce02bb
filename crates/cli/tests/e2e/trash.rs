//! What replication replaced or removed is kept when asked for, comes back as it was, and is never more than allowed.

use crate::common::*;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

/// Flags that keep everything.
const KEEP: [&str; 2] = ["--trash-keep", "30d"];

/// `driftless trash ARGS`.
fn trash(pair: &Pair, what: &str, dir: &Path, args: &[&str]) -> Ran {
    run(pair.command().args(["trash", what]).arg(dir).args(args))
}

/// All versions in the trash of a directory.
fn listed(pair: &Pair, dir: &Path) -> Vec<Value> {
    let ran = trash(pair, "list", dir, &["--json"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn listed_paths(pair: &Pair, dir: &Path) -> Vec<String> {
    let mut paths: Vec<String> =
        listed(pair, dir).iter().map(|v| v["path"]["text"].as_str().unwrap().to_owned()).collect();
    paths.sort();
    paths
}

#[test]
fn replaced_and_removed_versions_are_kept_and_come_back() {
    let pair = Pair::new();
    put(&pair.a, "d/report", "first");
    put(&pair.a, "d/gone/deep/picture", "pixels");
    put(&pair.a, "linked", "two names");
    fs::hard_link(pair.a.join("linked"), pair.a.join("link")).unwrap();
    fs::set_permissions(pair.a.join("d/gone/deep/picture"), fs::Permissions::from_mode(0o640)).unwrap();
    set_mtime(&pair.a.join("d/gone/deep/picture"), 1_234_567_890);
    pair.once(&KEEP);
    let before = inodes(&pair.b);

    put(&pair.a, "d/report", "second, longer");
    fs::remove_dir_all(pair.a.join("d/gone")).unwrap();
    fs::remove_file(pair.a.join("link")).unwrap();
    pair.once(&KEEP);
    pair.assert_same();
    let rows = listed(&pair, &pair.b);
    let of = |path: &str| rows.iter().find(|r| r["path"]["text"] == path).unwrap();
    // `link` was a name of a file that is still there: with it went nothing.
    assert_eq!(listed_paths(&pair, &pair.b), ["d/gone/deep/picture", "d/report"]);
    assert_eq!(of("d/report")["why"], "replaced");
    assert_eq!((&of("d/report")["size"], &of("d/report")["kind"]), (&5.into(), &"file".into()));
    assert_eq!(of("d/gone/deep/picture")["why"], "removed");
    assert_eq!(of("d/gone/deep/picture")["site"], "A");
    assert!(of("d/gone/deep/picture")["entry"].is_string());
    assert!(listed(&pair, &pair.a).is_empty(), "A's own user did that");

    let back = trash(&pair, "restore", &pair.b, &["d/gone/deep/picture"]);
    assert_eq!(back.code, 0, "{back:#?}");
    assert_eq!(read(&pair.b, "d/gone/deep/picture"), "pixels");
    let meta = fs::metadata(pair.b.join("d/gone/deep/picture")).unwrap();
    assert_eq!(meta.ino(), before[Path::new("d/gone/deep/picture")], "the inode itself");
    assert_eq!((meta.mode() & 0o7777, meta.mtime()), (0o640, 1_234_567_890));
    pair.once(&KEEP);
    pair.assert_same();
    assert_eq!(read(&pair.a, "d/gone/deep/picture"), "pixels");
    assert_eq!(listed_paths(&pair, &pair.b), ["d/report"]);
    assert!(left_private(&pair.b).is_empty());
}

#[test]
fn names_of_one_file_come_back_as_one_file() {
    let pair = Pair::new();
    put(&pair.a, "one", "shared");
    fs::hard_link(pair.a.join("one"), pair.a.join("two")).unwrap();
    pair.once(&KEEP);
    fs::remove_file(pair.a.join("one")).unwrap();
    fs::remove_file(pair.a.join("two")).unwrap();
    pair.once(&KEEP);
    for path in ["one", "two"] {
        assert_eq!(trash(&pair, "restore", &pair.b, &[path]).code, 0);
    }
    pair.once(&KEEP);
    pair.assert_same();
    assert_eq!(fs::metadata(pair.a.join("one")).unwrap().nlink(), 2);
}

#[test]
fn without_being_asked_nothing_is_kept() {
    let pair = Pair::new();
    put(&pair.a, "f", "1");
    pair.once(&[]);
    fs::remove_file(pair.a.join("f")).unwrap();
    pair.once(&[]);
    assert!(!pair.b.join(".driftless/trash").exists());
    assert_eq!(trash(&pair, "list", &pair.b, &[]).out.trim(), "the trash is empty");
    let elsewhere = trash(&pair, "list", pair.base.path(), &[]);
    assert_eq!(elsewhere.code, 1, "{elsewhere:#?}");
    assert!(elsewhere.err.contains("what to do:"), "{elsewhere:#?}");
}

#[test]
fn a_restore_never_replaces_and_may_take_another_name() {
    let pair = Pair::new();
    put(&pair.a, "f", "first");
    pair.once(&KEEP);
    for version in ["second", "third"] {
        put(&pair.a, "f", version);
        pair.once(&KEEP);
    }
    let taken = trash(&pair, "restore", &pair.b, &["f"]);
    assert_eq!(taken.code, 1, "{taken:#?}");
    assert!(taken.err.contains("taken") && taken.err.contains("--to"), "{taken:#?}");
    assert_eq!(read(&pair.b, "f"), "third");
    let newest = trash(&pair, "restore", &pair.b, &["f", "--to", "old/newest"]);
    assert_eq!(newest.code, 0, "{newest:#?}");
    assert_eq!(read(&pair.b, "old/newest"), "second");
    let id = listed(&pair, &pair.b)[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(trash(&pair, "restore", &pair.b, &[&id, "--to", "old/oldest"]).code, 0);
    assert_eq!(read(&pair.b, "old/oldest"), "first");
    for bad in ["../x", ".driftless/x", ""] {
        assert_ne!(trash(&pair, "restore", &pair.b, &["f", "--to", bad]).code, 0, "{bad}");
    }
    assert_eq!(trash(&pair, "restore", &pair.b, &["f"]).code, 1, "there is none any more");
    pair.once(&KEEP);
    pair.assert_same();
}

#[test]
fn a_restore_is_carried_over_by_a_running_sync() {
    let pair = Pair::new();
    put(&pair.a, "d/f", "precious");
    let mut running = pair.start(&KEEP);
    fs::remove_dir_all(pair.a.join("d")).unwrap();
    running.wait_for("in_sync");
    wait_until("it is in the trash", || match listed(&pair, &pair.b).len() {
        1 => Ok(()),
        n => Err(format!("{n} versions")),
    });
    assert_eq!(trash(&pair, "restore", &pair.b, &["d/f"]).code, 0);
    pair.wait_same("it was restored");
    assert_eq!(read(&pair.a, "d/f"), "precious");
    assert_eq!(running.stop().1, 0);
}

#[test]
fn a_full_trash_holds_removals_until_there_is_room() {
    let pair = Pair::new();
    let content = "x".repeat(60_000);
    for i in 0..4 {
        put(&pair.a, &format!("d/{i}"), &content);
    }
    put(&pair.a, "replaced", &content);
    let flags = ["--trash-keep", "30d", "--trash-max", "130k"];
    pair.once(&flags);
    let mut running = pair.start(&flags);
    fs::remove_dir_all(pair.a.join("d")).unwrap();
    put(&pair.a, "replaced", "new");
    put(&pair.a, "other", "flows all the same");
    running.wait_for_row(|e| e["event"] == "waiting" && e["reason"] == "trash_full");
    wait_until("the rest is done", || match pair.b.join("other").exists() {
        true => Ok(()),
        false => Err("not there".into()),
    });
    wait_until("two versions are in the trash", || match listed(&pair, &pair.b).len() {
        2 => Ok(()),
        n => Err(format!("{n} versions")),
    });
    let failures = pair.ask(&["failures"]);
    assert!(failures.out.contains("--trash-max"), "{failures:#?}");
    assert_eq!(left_on(&pair.b), 3, "what has no room in the trash stays where it is");

    // Each time there is room for two more.
    for _ in 0..2 {
        assert_eq!(trash(&pair, "empty", &pair.b, &[]).code, 0);
        running.wait_for("resolved");
        wait_until("there is room", || match listed(&pair, &pair.b).len() {
            0 => Err("nothing in the trash yet".into()),
            _ => Ok(()),
        });
    }
    pair.wait_same("there was room");
    assert_eq!(running.stop().1, 0);
}

/// Of the files that the test above has removed or replaced, how many are as they were.
fn left_on(root: &Path) -> usize {
    let old = |path: &str| fs::metadata(root.join(path)).is_ok_and(|m| m.len() == 60_000);
    ["d/0", "d/1", "d/2", "d/3", "replaced"].into_iter().filter(|path| old(path)).count()
}

#[test]
fn a_full_trash_is_told_by_a_run_that_ends() {
    let pair = Pair::new();
    put(&pair.a, "big", &"x".repeat(60_000));
    let flags = ["--trash-max", "20k"];
    pair.once(&flags);
    fs::remove_file(pair.a.join("big")).unwrap();
    let ran = pair.sync(&[&["--once"][..], &flags].concat());
    assert_eq!(ran.code, 3, "{ran:#?}");
    assert!(ran.out.contains("the trash is full"), "{ran:#?}");
    assert_eq!(read(&pair.b, "big").len(), 60_000);
    pair.once(&["--trash-max", "100k"]);
    pair.assert_same();
}

#[test]
fn by_size_alone_the_oldest_go() {
    let pair = Pair::new();
    let flags = ["--trash-max", "100k"];
    for i in 0..4 {
        put(&pair.a, &format!("{i}"), &"x".repeat(30_000));
    }
    pair.once(&flags);
    for i in 0..4 {
        fs::remove_file(pair.a.join(format!("{i}"))).unwrap();
        pair.once(&flags);
    }
    assert_eq!(listed_paths(&pair, &pair.b), ["1", "2", "3"]);
}

#[test]
fn by_age_the_old_go_by_themselves() {
    let pair = Pair::new();
    put(&pair.a, "f", "1");
    pair.once(&KEEP);
    fs::remove_file(pair.a.join("f")).unwrap();
    pair.once(&KEEP);
    assert_eq!(listed_paths(&pair, &pair.b), ["f"]);
    assert_eq!(trash(&pair, "empty", &pair.b, &["--older-than", "1h"]).code, 0);
    assert_eq!(listed_paths(&pair, &pair.b), ["f"]);
    let running = pair.start(&["--trash-keep", "1s"]);
    wait_until("it is old enough", || match listed(&pair, &pair.b).len() {
        0 => Ok(()),
        n => Err(format!("{n} versions")),
    });
    assert_eq!(running.stop().1, 0);
}

#[test]
fn a_version_whose_description_is_lost_comes_back_by_its_id() {
    let pair = Pair::new();
    put(&pair.a, "f", "content");
    pair.once(&KEEP);
    fs::remove_file(pair.a.join("f")).unwrap();
    pair.once(&KEEP);
    let list = pair.b.join(".driftless/trash/1/list");
    let len = fs::metadata(&list).unwrap().len();
    File::options().write(true).open(&list).unwrap().set_len(len - 1).unwrap();
    assert_eq!(listed(&pair, &pair.b)[0]["why"], Value::Null);
    assert_eq!(trash(&pair, "restore", &pair.b, &["1-0"]).code, 2);
    assert_eq!(trash(&pair, "restore", &pair.b, &["1-0", "--to", "f"]).code, 0);
    pair.once(&KEEP);
    pair.assert_same();
    assert_eq!(read(&pair.a, "f"), "content");
}

/// Each version is in the trash once, whenever the process was ended.
#[test]
fn a_kill_loses_no_version_and_doubles_none() {
    let pair = Pair::new();
    let mut expected = BTreeMap::new();
    for round in 0..6 {
        for i in 0..400 {
            put(&pair.a, &format!("r{round}/{i}"), &format!("{round} {i}"));
        }
        pair.once(&KEEP);
        fs::remove_dir_all(pair.a.join(format!("r{round}"))).unwrap();
        let mut running = Running::start(&mut pair.sync_command(&[
            "--json",
            "--max-delete",
            "100%",
            "-v",
            KEEP[0],
            KEEP[1],
        ]));
        // Ended after some of the removals were done, each time others.
        for _ in 0..=round * 60 {
            running.wait_for("step");
        }
        running.kill();
        pair.once(&[&["--max-delete", "100%"][..], &KEEP].concat());
        pair.assert_same();
        expected.extend((0..400).map(|i| (format!("r{round}/{i}"), format!("{round} {i}"))));
    }
    let mut found = BTreeMap::new();
    for row in listed(&pair, &pair.b) {
        let id = row["id"].as_str().unwrap().replace('-', "/");
        let content = fs::read_to_string(pair.b.join(".driftless/trash").join(id)).unwrap();
        let path = row["path"]["text"].as_str().unwrap().to_owned();
        assert_eq!(found.insert(path.clone(), content), None, "{path} is there twice");
    }
    assert_eq!(found, expected);
    assert!(left_private(&pair.b).is_empty());
}
