//! Directories whose private part, or a part of the tree, is another mount.

use crate::common::*;
use rustix::fs::{CWD, RenameFlags};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mount, gone when this is dropped.
struct Mounted(PathBuf);

impl Mounted {
    /// Runs `mount ARGS AT`; says that the test is skipped if that is not possible.
    fn mount(args: &[&str], at: &Path) -> Option<Mounted> {
        let done = Command::new("mount").args(args).arg(at).output();
        if !done.is_ok_and(|done| done.status.success()) {
            eprintln!("skipped: not permitted to mount, or no such file system");
            return None;
        }
        Some(Mounted(at.to_owned()))
    }

    /// Another directory shown at `at` as well.
    fn bind(other: &Path, at: &Path) -> Option<Mounted> {
        Mounted::mount(&["--bind", &other.display().to_string()], at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Names that are ours beside files of the tree.
fn left_beside(root: &Path) -> Vec<String> {
    names(root).into_iter().filter(|name| name.starts_with(".driftless-")).collect()
}

fn read_or_empty(root: &Path, name: &str) -> String {
    fs::read_to_string(root.join(name)).unwrap_or_default()
}

/// Nothing can be renamed out of the private directory or into it, as with project quotas and encryption.
fn cross_device() -> Option<(Pair, Mounted)> {
    let pair = Pair::new();
    fs::create_dir_all(pair.a.join(".driftless")).unwrap();
    fs::create_dir(pair.base.path().join("private")).unwrap();
    let mounted = Mounted::bind(&pair.base.path().join("private"), &pair.a.join(".driftless"))?;
    Some((pair, mounted))
}

#[test]
fn where_renames_are_refused_everything_arrives() {
    let Some((pair, _mounted)) = cross_device() else { return };
    put(&pair.a, "d/old", "1");
    put(&pair.b, "d/new", "2");
    put(&pair.b, "large", &"3".repeat(300_000));
    pair.once(&[]);
    let running = pair.start(&[]);
    fs::write(pair.b.join("d/old"), "changed there").unwrap();
    fs::remove_file(pair.b.join("large")).unwrap();
    fs::hard_link(pair.b.join("d/new"), pair.b.join("d/link")).unwrap();
    fs::write(pair.a.join("d/here"), "changed here").unwrap();
    pair.wait_same("changes");
    fs::rename(pair.b.join("d"), pair.b.join("e")).unwrap();
    fs::write(pair.b.join("e/old"), "changed again").unwrap();
    pair.wait_same("more changes");
    // Names that wait for each other: one steps aside.
    fs::create_dir(pair.b.join("f")).unwrap();
    for (one, other) in [("e/old", "e/new"), ("e", "f")] {
        let (one, other) = (pair.b.join(one), pair.b.join(other));
        rustix::fs::renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).unwrap();
        pair.wait_same("an exchange");
    }
    assert_eq!(running.stop().1, 0);
    assert_eq!(left_beside(&pair.a.join("e")), Vec::<String>::new());
    assert_eq!(left_beside(&pair.a.join("f")), Vec::<String>::new());
    assert_eq!(left_beside(&pair.a), Vec::<String>::new());
    assert_eq!(left_private(&pair.a), Vec::<PathBuf>::new());
}

#[test]
fn where_renames_are_refused_a_kill_leaves_nothing_behind() {
    let Some((pair, _mounted)) = cross_device() else { return };
    for i in 0..40 {
        put(&pair.a, &format!("f{i}"), "before");
    }
    pair.once(&[]);
    let mut beside = 0;
    for round in 0..6u64 {
        for i in 0..40 {
            match (i + round) % 4 {
                0 => drop(fs::remove_file(pair.b.join(format!("f{i}")))),
                _ => put(&pair.b, &format!("f{i}"), &format!("round {round}")),
            }
        }
        let running = Running::start(&mut pair.sync_command(&["--json"]));
        let arrived = || {
            names(&pair.a)
                .iter()
                .filter(|name| read_or_empty(&pair.a, name) == format!("round {round}"))
                .count()
        };
        wait_until("the first changes", || match arrived() as u64 > 5 * round {
            true => Ok(()),
            false => Err("not there".into()),
        });
        running.kill();
        beside += left_beside(&pair.a).len();
    }
    pair.once(&[]);
    pair.assert_same();
    assert!(beside > 0, "nothing was tested");
    assert_eq!(left_beside(&pair.a), Vec::<String>::new());
    assert_eq!(copies(&pair.a), Vec::<String>::new());
    let recovered: Vec<_> = names(&pair.a).into_iter().filter(|n| n.contains("recovered")).collect();
    assert_eq!(recovered, Vec::<String>::new());
}

#[test]
fn a_mount_that_comes_and_goes_is_no_removal() {
    let pair = Pair::new();
    put(&pair.a, "m/kept", "1");
    put(&pair.a, "m/deep/kept", "2");
    pair.once(&[]);
    let running = pair.start(&[]);
    let Some(mounted) = Mounted::mount(&["-t", "tmpfs", "tmpfs"], &pair.a.join("m")) else { return };
    put(&pair.a, "m/not ours", "x");
    put(&pair.a, "beside", "3");
    wait_until("what is beside", || match pair.b.join("beside").exists() {
        true => Ok(()),
        false => Err("not there".into()),
    });
    running.stop();
    // A crawl with the mount there.
    let ran = pair.sync(&["--once"]);
    assert_eq!(ran.code, 3, "{ran:#?}");
    assert!(ran.out.contains("on another file system"), "{ran:#?}");
    // What the other side does in it waits, and is done when it is gone.
    put(&pair.b, "m/theirs", "4");
    let ran = pair.sync(&["--once"]);
    assert_eq!(ran.code, 3, "{ran:#?}");
    assert_eq!((read(&pair.b, "m/kept"), read(&pair.b, "m/deep/kept")), ("1".into(), "2".into()));
    assert!(!pair.b.join("m/not ours").exists());
    assert_eq!(names(&pair.a.join("m")), ["not ours"]);
    drop(mounted);
    pair.once(&[]);
    pair.assert_same();
    assert_eq!(names(&pair.a.join("m")), ["deep", "kept", "theirs"]);
}

#[test]
fn a_mount_where_the_other_side_has_a_directory_waits_as_such() {
    let pair = Pair::new();
    fs::create_dir(pair.a.join("m")).unwrap();
    let Some(mounted) = Mounted::mount(&["-t", "tmpfs", "tmpfs"], &pair.a.join("m")) else { return };
    put(&pair.a, "m/not ours", "x");
    put(&pair.b, "m/theirs", "1");
    put(&pair.b, "beside", "2");
    let ran = pair.sync(&["--once"]);
    assert_eq!(ran.code, 3, "{ran:#?}");
    assert_eq!(read(&pair.a, "beside"), "2");
    let listed = pair.ask(&["failures", "--json", "--root", pair.a.to_str().unwrap()]);
    let reasons: Vec<(String, String)> = listed
        .out
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|row| (row["path"]["text"].as_str().unwrap().into(), row["reason"].as_str().unwrap().into()))
        .collect();
    for (path, reason) in &reasons {
        assert!(["other_file_system", "parent_waits"].contains(&reason.as_str()), "{path}: {reason}");
    }
    assert!(reasons.contains(&("m".into(), "other_file_system".into())), "{reasons:?}");
    drop(mounted);
    pair.once(&[]);
    pair.assert_same();
    assert_eq!(names(&pair.a.join("m")), ["theirs"]);
}

/// True if a file with this content lies in the private directory.
fn is_kept(root: &Path, content: &str) -> bool {
    let mut todo = vec![root.join(".driftless")];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else if fs::read(&path).is_ok_and(|bytes| bytes == content.as_bytes()) {
                return true;
            }
        }
    }
    false
}

/// Nothing can be renamed into the trash: a run that is to keep versions does not begin, and one that has begun goes on with the
/// directory that it had.
#[test]
fn a_trash_on_another_file_system_loses_nothing() {
    let keep = ["--trash-keep", "30d"];
    let pair = Pair::new();
    put(&pair.a, "replaced", "first");
    put(&pair.a, "d/removed", "second");
    pair.once(&keep);
    let at = pair.b.join(".driftless/trash");
    fs::create_dir_all(&at).unwrap();
    let mut running = pair.start(&keep);
    let Some(mounted) = Mounted::mount(&["-t", "tmpfs", "tmpfs"], &at) else { return };
    put(&pair.a, "replaced", "first, changed");
    fs::remove_dir_all(pair.a.join("d")).unwrap();
    pair.wait_same("the changes");
    running.wait_for("in_sync");
    running.stop();
    put(&pair.a, "later", "1");
    let ran = pair.sync(&[&["--once"], &keep[..]].concat());
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("unmount it"), "{ran:?}");
    drop(mounted);
    for content in ["first", "second"] {
        assert!(is_kept(&pair.b, content), "{content}");
    }
    pair.once(&keep);
    pair.assert_same();
    let listed = run(pair.command().args(["trash", "list", "--json"]).arg(&pair.b));
    assert_eq!(listed.out.lines().count(), 2, "{listed:?}");
    assert_eq!(left_private(&pair.b), Vec::<PathBuf>::new());
}

/// A part of the tree is another mount of the same file system: nothing can be renamed between it and limbo.
#[test]
fn what_lies_below_a_bind_mount_is_not_removed() {
    let pair = Pair::new();
    put(&pair.a, "m/replaced", "1");
    put(&pair.a, "m/removed", "2");
    pair.once(&[]);
    let elsewhere = pair.base.path().join("elsewhere");
    put(&elsewhere, "replaced", "of somebody else");
    put(&elsewhere, "removed", "of somebody else");
    let Some(mounted) = Mounted::bind(&elsewhere, &pair.a.join("m")) else { return };
    put(&pair.b, "m/replaced", "changed there");
    fs::remove_file(pair.b.join("m/removed")).unwrap();
    put(&pair.b, "beside", "3");
    let ran = pair.sync(&["--once"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert_eq!(read(&pair.a, "beside"), "3");
    for name in ["replaced", "removed"] {
        assert_eq!(read(&elsewhere, name), "of somebody else");
    }
    assert_eq!(read(&pair.b, "m/replaced"), "changed there");
    // The mount itself, shown in its own place: the same files, by another way.
    drop(mounted);
    let Some(mounted) = Mounted::bind(&pair.a.join("m"), &pair.a.join("m")) else { return };
    let ran = pair.sync(&["--once"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert_eq!((read(&pair.a, "m/replaced"), read(&pair.a, "m/removed")), ("1".into(), "2".into()));
    drop(mounted);
    pair.once(&[]);
    pair.assert_same();
    assert_eq!(read(&pair.a, "m/replaced"), "changed there");
    assert_eq!(names(&pair.a.join("m")), ["replaced"]);
    assert_eq!(left_private(&pair.a), Vec::<PathBuf>::new());
}
