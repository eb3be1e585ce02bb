//! A tree that is put back to an earlier state: nothing of it leaves unasked, and nothing is lost, whatever the answer.

use crate::common::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

/// 1 November 2026: when the backup's files were written.
const LAST_MONTH: u64 = 1_793_500_000;
const FILES: usize = 240;

fn file(i: usize) -> String {
    format!("d{}/f{i}", i % 4)
}

fn program(command: &mut Command) {
    let ran = command.output().unwrap();
    assert!(ran.status.success(), "{command:?}: {}", String::from_utf8_lossy(&ran.stderr));
}

/// `rsync -a --delete` of a saved copy into a live tree.
fn restore(saved: &Path, root: &Path) {
    let slash = |p: &Path| format!("{}/", p.display());
    program(
        Command::new("rsync")
            .args(["-a", "--delete", "--exclude=/.driftless"])
            .args([slash(saved), slash(root)]),
    );
}

fn save(root: &Path, saved: &Path) {
    fs::create_dir(saved).unwrap();
    program(
        Command::new("tar")
            .arg("-C")
            .arg(root)
            .args(["--exclude=./.driftless", "-cf"])
            .arg(tar(saved))
            .arg("."),
    );
    program(Command::new("tar").arg("-C").arg(saved).args(["-xpf"]).arg(tar(saved)));
}

fn tar(saved: &Path) -> PathBuf {
    saved.with_extension("tar")
}

/// Content and time of files, by path.
type Contents = BTreeMap<PathBuf, (Vec<u8>, SystemTime)>;

/// Contents and times of all files below `root`, what was put aside left out.
fn contents(root: &Path) -> Contents {
    let kept = |path: &Path| !path.to_string_lossy().starts_with("recovered-");
    let files = fingerprints(root).into_keys().filter(|p| kept(p) && root.join(p).is_file());
    files
        .map(|p| {
            let at = root.join(&p);
            (p, (fs::read(&at).unwrap(), at.metadata().unwrap().modified().unwrap()))
        })
        .collect()
}

/// What a backup has, then what was done since: both trees are the same and new, and the backup is old.
fn since_the_backup() -> (Pair, PathBuf) {
    let pair = Pair::new();
    for i in 0..FILES {
        put(&pair.a, &file(i), &format!("old {i}"));
        set_mtime(&pair.a.join(file(i)), LAST_MONTH + i as u64);
    }
    put(&pair.a, "d0/removed since", "old");
    set_mtime(&pair.a.join("d0/removed since"), LAST_MONTH);
    let saved = pair.base.path().join("saved");
    save(&pair.a, &saved);
    pair.once(&[]);
    for i in 0..FILES - 20 {
        put(&pair.a, &file(i), &format!("new {i}"));
    }
    put(&pair.a, "d1/made since", "new");
    put(&pair.a, "new/made since", "new");
    fs::remove_file(pair.a.join("d0/removed since")).unwrap();
    pair.once(&[]);
    pair.assert_same();
    (pair, saved)
}

/// The newer versions are everywhere, the older ones where they are out of the way.
fn assert_healed(pair: &Pair, new: &Contents, restored: &Path) {
    pair.assert_same();
    assert_as_before(&pair.a, new);
    assert_eq!(copies(&pair.a.join("d0")), Vec::<String>::new());
    let aside: Vec<String> = names(restored).into_iter().filter(|n| n.starts_with("recovered-")).collect();
    let [aside] = &aside[..] else { panic!("{aside:?}") };
    let aside = restored.join(aside);
    for i in 0..FILES - 20 {
        assert_eq!(read(&aside, &file(i)), format!("old {i}"));
    }
    assert_eq!(read(&aside, "d0/removed since"), "old");
    let again = pair.once(&["--json"]);
    assert_eq!(again.events("change").len() + again.events("put_aside").len(), 0, "{again:#?}");
}

fn assert_as_before(root: &Path, before: &Contents) {
    let now = contents(root);
    let paths = now.keys().chain(before.keys()).filter(|p| now.get(*p) != before.get(*p));
    let changed: Vec<String> =
        paths.map(|p| format!("{}: {:?}, was {:?}", p.display(), now.get(p), before.get(p))).collect();
    assert!(changed.is_empty(), "something was changed at the other side: {changed:#?}");
}

/// Nobody touched anything, not even a directory.
fn assert_untouched(root: &Path, before: &BTreeMap<PathBuf, (u64, i64, i64, u64)>) {
    let now = fingerprints(root);
    let touched = now.keys().chain(before.keys()).filter(|p| now.get(*p) != before.get(*p));
    let touched: Vec<String> = touched
        .map(|p| {
            format!(
                "{}: {:?} {:?}, was {:?}",
                p.display(),
                now.get(p),
                fs::metadata(root.join(p)),
                before.get(p)
            )
        })
        .collect();
    assert!(touched.is_empty(), "something was changed at the other side: {touched:#?}");
}

fn held(ran: &Ran) {
    assert_eq!(ran.code, 3, "{ran:#?}");
    for part in
        ["220 older than recorded", "3 gone", "restored from a backup?", "for example d", "--on-rollback"]
    {
        assert!(ran.out.contains(part), "{part}: {ran:#?}");
    }
}

#[test]
fn restored_while_stopped_is_held_and_healed() {
    if !has("rsync") {
        return;
    }
    let (pair, saved) = since_the_backup();
    let (new, before) = (contents(&pair.b), fingerprints(&pair.b));
    restore(&saved, &pair.a);
    let old = contents(&pair.a);
    for _ in 0..2 {
        held(&pair.sync(&["--once"]));
        assert_untouched(&pair.b, &before);
        assert_eq!(contents(&pair.a), old);
    }
    // A change that has nothing to do with it flows, both ways.
    put(&pair.a, "other", "a");
    put(&pair.b, "another", "b");
    assert_eq!(pair.sync(&["--once"]).code, 3);
    assert_eq!((read(&pair.b, "other"), read(&pair.a, "another")), ("a".into(), "b".into()));
    let ran = pair.once(&["--on-rollback", "heal"]);
    assert!(ran.err.contains("recovered-"), "{ran:#?}");
    for flowed in ["other", "another"] {
        fs::remove_file(pair.a.join(flowed)).unwrap();
    }
    pair.once(&[]);
    assert_healed(&pair, &new, &pair.a);
}

#[test]
fn restored_on_the_other_side_is_healed_as_well() {
    if !has("rsync") {
        return;
    }
    let (pair, saved) = since_the_backup();
    let (new, before) = (contents(&pair.a), fingerprints(&pair.a));
    restore(&saved, &pair.b);
    held(&pair.sync(&["--once"]));
    assert_untouched(&pair.a, &before);
    pair.once(&["--on-rollback", "heal"]);
    assert_healed(&pair, &new, &pair.b);
}

#[test]
fn a_restore_that_is_meant_is_accepted() {
    if !has("rsync") {
        return;
    }
    let (pair, saved) = since_the_backup();
    restore(&saved, &pair.a);
    let old = contents(&pair.a);
    pair.once(&["--on-rollback", "accept"]);
    pair.assert_same();
    assert_eq!(contents(&pair.b), old);
}

#[test]
fn an_archive_unpacked_over_the_tree_is_held() {
    if !has("tar") {
        return;
    }
    let (pair, saved) = since_the_backup();
    let before = fingerprints(&pair.b);
    program(Command::new("tar").arg("-C").arg(&pair.a).arg("-xpf").arg(tar(&saved)));
    let ran = pair.sync(&["--once"]);
    assert_eq!(ran.code, 3, "{ran:#?}");
    assert!(ran.out.contains("220 older than recorded"), "{ran:#?}");
    assert_untouched(&pair.b, &before);
}

fn restored_live(flags: &[&str]) -> (Pair, Running, Contents) {
    let (pair, saved) = since_the_backup();
    let new = contents(&pair.b);
    let running = pair.start(flags);
    restore(&saved, &pair.a);
    (pair, running, new)
}

#[test]
fn restored_under_a_running_sync_is_held() {
    if !has("rsync") {
        return;
    }
    let (pair, mut running, new) = restored_live(&[]);
    let told = running.wait_for_row(|e| e["event"] == "waiting" && e["reason"] == "mass_rollback");
    assert!(told["detail"].as_str().unwrap().contains("older than recorded"), "{told}");
    assert_as_before(&pair.b, &new);
    assert_eq!(running.stop().1, 3);
    assert_as_before(&pair.b, &new);
    pair.once(&["--on-rollback", "heal"]);
    assert_healed(&pair, &new, &pair.a);
}

#[test]
fn restored_under_a_running_sync_is_healed_if_so_told() {
    if !has("rsync") {
        return;
    }
    let (pair, running, new) = restored_live(&["--on-rollback", "heal"]);
    wait_until("the newer versions are back", || {
        let is_new = |path: &&PathBuf| fs::read(pair.a.join(path)).is_ok_and(|is| is == new[*path].0);
        match new.keys().find(|path| !is_new(path)) {
            None => Ok(()),
            Some(path) => Err(path.display().to_string()),
        }
    });
    pair.wait_same("what was put aside");
    assert_eq!(running.stop().1, 0);
    assert_healed(&pair, &new, &pair.a);
}

#[test]
fn a_writer_that_only_sends_is_guarded_too() {
    if !has("rsync") {
        return;
    }
    let (pair, saved) = since_the_backup();
    let (new, before) = (contents(&pair.b), fingerprints(&pair.b));
    restore(&saved, &pair.a);
    held(&pair.sync(&["--once", "--active-passive"]));
    assert_untouched(&pair.b, &before);
    pair.once(&["--active-passive", "--on-rollback", "heal"]);
    assert_healed(&pair, &new, &pair.a);
    // What is done to the follower never leaves it.
    restore(&saved, &pair.b);
    pair.sync(&["--once", "--active-passive"]);
    assert_eq!(contents(&pair.a), new);
}

#[test]
fn a_few_old_files_that_somebody_puts_back_are_edits() {
    let (pair, saved) = since_the_backup();
    let running = pair.start(&[]);
    for i in 0..30 {
        program(Command::new("cp").arg("-p").arg(saved.join(file(i))).arg(pair.a.join(file(i))));
    }
    wait_until("they are there too", || {
        match (0..30).find(|i| read(&pair.b, &file(*i)) != format!("old {i}")) {
            None => Ok(()),
            Some(i) => Err(file(i)),
        }
    });
    assert_eq!(running.stop().1, 0);
    program(Command::new("cp").arg("-p").arg(saved.join(file(40))).arg(pair.b.join(file(40))));
    pair.once(&[]);
    assert_eq!(read(&pair.a, &file(40)), "old 40");
    pair.assert_same();
}

#[test]
fn files_emptied_by_a_job_are_held_and_healed() {
    let (pair, _) = since_the_backup();
    let new = contents(&pair.b);
    let empty = |root: &Path| {
        for i in 0..FILES {
            fs::File::create(root.join(file(i))).unwrap();
        }
    };
    empty(&pair.a);
    let ran = pair.sync(&["--once"]);
    assert_eq!(ran.code, 3, "{ran:#?}");
    assert!(ran.out.contains("240 emptied"), "{ran:#?}");
    assert_eq!(contents(&pair.b), new);
    pair.once(&["--on-rollback", "heal"]);
    pair.assert_same();
    assert_as_before(&pair.a, &new);
    assert!(!names(&pair.a).iter().any(|n| n.starts_with("recovered-")), "there is nothing to keep");
    let mut running = pair.start(&[]);
    empty(&pair.b);
    running.wait_for_row(|e| e["event"] == "waiting" && e["reason"] == "mass_rollback");
    assert_eq!(contents(&pair.a), new);
    // Who brings them back himself has settled it.
    for (path, (bytes, time)) in &new {
        fs::write(pair.b.join(path), bytes).unwrap();
        fs::File::options().write(true).open(pair.b.join(path)).unwrap().set_modified(*time).unwrap();
    }
    running.wait_for_row(|e| e["event"] == "resolved" && e["path"]["text"] == ".");
    pair.wait_same("what was brought back");
    let (outcome, code) = running.stop();
    assert_eq!(code, 0, "{outcome:#}");
    assert_as_before(&pair.a, &new);
}

#[test]
fn what_only_looks_like_a_restore_flows() {
    let (pair, saved) = since_the_backup();
    // A checkout of an older commit: old contents, new times.
    for i in 0..FILES {
        put(&pair.a, &file(i), &format!("old {i}"));
    }
    pair.once(&[]);
    // Times only.
    for i in 0..FILES {
        set_mtime(&pair.b.join(file(i)), LAST_MONTH - 1_000);
    }
    pair.once(&[]);
    pair.assert_same();
    // Older files under new names, before and while it runs.
    program(Command::new("cp").arg("-a").arg(&saved).arg(pair.a.join("copy")));
    pair.once(&[]);
    pair.assert_same();
    let running = pair.start(&[]);
    program(Command::new("cp").arg("-a").arg(&saved).arg(pair.b.join("copy again")));
    for i in 0..FILES {
        set_mtime(&pair.a.join(file(i)), LAST_MONTH - 2_000);
    }
    pair.wait_same("times and copies");
    assert_eq!(running.stop().1, 0);
    assert_eq!(read(&pair.a, "copy again/d0/f0"), "old 0");
    assert_eq!(names(&pair.a).iter().filter(|n| n.starts_with("recovered-")).count(), 0);
}
