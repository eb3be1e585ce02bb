//! The comparison sees each kind of difference; grown trees are reproducible; users lose nothing by themselves.

#![allow(clippy::unwrap_used)]

use driftless_testkit::compare::Aspect;
use driftless_testkit::{CompareOptions, Spec, User, check_no_loss, compare, grow};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

fn aspects(a: &Path, b: &Path) -> Vec<Aspect> {
    compare(a, b, &CompareOptions::default()).unwrap().into_iter().map(|d| d.aspect).collect()
}

/// Two equal trees, then one change in the second.
fn after(change: impl Fn(&Path)) -> Vec<Aspect> {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let then = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 5);
    for root in [&a, &b] {
        fs::create_dir_all(root.join("d")).unwrap();
        for (name, bytes) in [("f", "one"), ("g", "one"), ("d/h", "two")] {
            fs::write(root.join(name), bytes).unwrap();
            set_mtime(&root.join(name), then);
        }
        let sparse = fs::File::create(root.join("sparse")).unwrap();
        sparse.set_len(4 << 20).unwrap();
        sparse.write_all_at(b"end", (4 << 20) - 3).unwrap();
        symlink("f", root.join("l")).unwrap();
        set_mtime(&root.join("d"), then);
        set_mtime(&root.join("sparse"), then);
    }
    Command::new("touch").args(["-h", "-d", "@7"]).arg(a.join("l")).arg(b.join("l")).status().unwrap();
    assert_eq!(aspects(&a, &b), []);
    change(&b);
    aspects(&a, &b)
}

fn set_mtime(path: &Path, time: SystemTime) {
    fs::File::open(path).unwrap().set_modified(time).unwrap();
}

#[test]
fn each_kind_of_difference_is_seen() {
    let keeping_time = |path: &Path, change: &dyn Fn(&Path)| {
        let time = fs::symlink_metadata(path).unwrap().modified().unwrap();
        change(path);
        set_mtime(path, time);
    };
    assert_eq!(after(|b| set_mtime(&b.join("f"), SystemTime::UNIX_EPOCH)), [Aspect::Mtime]);
    assert_eq!(after(|b| set_mtime(&b.join("d"), SystemTime::UNIX_EPOCH)), [Aspect::Mtime]);
    assert_eq!(after(|b| keeping_time(&b.join("f"), &|f| fs::write(f, "onE").unwrap())), [Aspect::Content]);
    assert_eq!(after(|b| keeping_time(&b.join("f"), &|f| fs::write(f, "ones").unwrap())), [Aspect::Content]);
    assert_eq!(after(|b| fs::write(b.join("new"), "").unwrap()), [Aspect::Presence]);
    assert_eq!(after(|b| fs::remove_file(b.join("f")).unwrap()), [Aspect::Presence]);
    let chmod = |b: &Path| fs::set_permissions(b.join("f"), fs::Permissions::from_mode(0o4600)).unwrap();
    assert_eq!(after(chmod), [Aspect::Mode]);
    let relink = |b: &Path| {
        fs::remove_file(b.join("g")).unwrap();
        fs::hard_link(b.join("f"), b.join("g")).unwrap();
    };
    assert_eq!(after(relink), [Aspect::HardLinks]);
    let retarget = |b: &Path| {
        fs::remove_file(b.join("l")).unwrap();
        symlink("g", b.join("l")).unwrap();
        Command::new("touch").args(["-h", "-d", "@7"]).arg(b.join("l")).status().unwrap();
    };
    assert_eq!(after(retarget), [Aspect::Target]);
    let to_dir = |b: &Path| {
        fs::remove_file(b.join("f")).unwrap();
        fs::create_dir(b.join("f")).unwrap();
    };
    assert_eq!(after(to_dir), [Aspect::Kind]);
    let fill = |f: &Path| {
        let bytes = fs::read(f).unwrap();
        fs::write(f, bytes).unwrap();
    };
    assert_eq!(after(|b| keeping_time(&b.join("sparse"), &fill)), [Aspect::Holes]);
    assert_eq!(after(|b| fs::create_dir(b.join(".driftless")).unwrap()), []);
}

#[test]
fn the_same_seed_grows_the_same_tree() {
    let dir = tempfile::tempdir().unwrap();
    for seed in 0..3 {
        let (a, b) = (dir.path().join(format!("a{seed}")), dir.path().join(format!("b{seed}")));
        grow(&a, seed, &Spec::default()).unwrap();
        grow(&b, seed, &Spec::default()).unwrap();
        let mut found = compare(&a, &b, &CompareOptions::default()).unwrap();
        // Their targets are equal, but symlinks, FIFOs and so on are made at different times if
        // attributes are not set; here they are.
        found.truncate(5);
        assert_eq!(found, [], "seed {seed}");
    }
    let a1 = dir.path().join("a1");
    assert!(!aspects(&dir.path().join("a0"), &a1).is_empty());
    assert!(entries(&a1) > 80);
}

#[test]
fn a_copy_by_cp_is_equal_and_without_links_it_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    grow(&a, 5, &Spec::default()).unwrap();
    assert!(Command::new("cp").arg("-a").args([&a, &b]).status().unwrap().success());
    let options = CompareOptions::default();
    assert_eq!(compare(&a, &b, &options).unwrap(), []);
    fs::remove_dir_all(&b).unwrap();
    let copied = Command::new("cp").args(["-a", "--no-preserve=links"]).args([&a, &b]).status().unwrap();
    assert!(copied.success());
    let kinds: BTreeSet<_> = compare(&a, &b, &options).unwrap().into_iter().map(|d| d.aspect).collect();
    assert_eq!(kinds, BTreeSet::from([Aspect::HardLinks]));
}

#[test]
fn plain_trees_have_what_was_ordered() {
    let dir = tempfile::tempdir().unwrap();
    grow(dir.path(), 1, &Spec::plain(300, 4096)).unwrap();
    assert_eq!(entries(dir.path()), 303);
    let of = |d: &str| fs::read_dir(dir.path().join(d)).unwrap().count();
    assert!((70..=110).contains(&of("d00001")), "{}", of("d00001"));
}

fn entries(dir: &Path) -> usize {
    let mut count = 0;
    for e in fs::read_dir(dir).unwrap() {
        let e = e.unwrap();
        count += 1;
        if e.file_type().unwrap().is_dir() {
            count += entries(&e.path());
        }
    }
    count
}

#[test]
fn a_user_alone_loses_nothing_and_does_everything() {
    let dir = tempfile::tempdir().unwrap();
    let mut user = User::new(dir.path(), 9);
    let mut done = BTreeSet::new();
    for _ in 0..600 {
        let (op, happened) = user.step().unwrap();
        if happened {
            done.insert(op);
        }
    }
    assert_eq!(done.len(), 14, "{done:?}");
    assert!(user.journal().taken_unseen.is_empty());
    assert!(check_no_loss(&[user.journal()], dir.path()).unwrap().is_empty());
}

#[test]
fn a_version_that_vanishes_is_found_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mut user = User::new(dir.path(), 3);
    for _ in 0..100 {
        user.step().unwrap();
    }
    let kept = user.journal().written.iter().rfind(|w| !user.journal().taken.contains(&w.digest));
    let newest = kept.unwrap().clone();
    let mut removed = 0;
    remove_version(dir.path(), &newest.digest, &mut removed);
    assert!(removed > 0, "the newest version was not there to begin with");
    let lost = check_no_loss(&[user.journal()], dir.path()).unwrap();
    assert_eq!(lost.len(), 1);
    assert_eq!(lost[0].written.digest, newest.digest);
}

fn remove_version(dir: &Path, digest: &[u8; 32], removed: &mut u32) {
    for e in fs::read_dir(dir).unwrap() {
        let path = e.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap();
        if kind.is_dir() {
            remove_version(&path, digest, removed);
        } else if kind.is_file() && blake3::hash(&fs::read(&path).unwrap()).as_bytes() == digest {
            fs::remove_file(&path).unwrap();
            *removed += 1;
        }
    }
}
