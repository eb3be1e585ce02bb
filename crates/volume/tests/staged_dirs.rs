//! New directories that are shown with what is in them.

#![allow(clippy::unwrap_used)]

use driftless_core::{Attrs, Name, Time};
use driftless_volume::{ApplyError, Directory, OpenOptions, StageId, Staged, StagedDir};
use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::sync::Arc;

fn volume() -> (tempfile::TempDir, Directory) {
    let tmp = tempfile::tempdir().unwrap();
    let volume = Directory::open(tmp.path(), OpenOptions { create_private: true }).unwrap();
    (tmp, volume)
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn attrs(mode: u32) -> Attrs {
    let me = rustix::process::geteuid().as_raw();
    Attrs { mode, uid: me, gid: rustix::process::getegid().as_raw(), ..Attrs::default() }
}

const TIME: Time = Time { sec: 1_000_000_000, nsec: 7 };

fn stage(volume: &Directory, dir: &Arc<StagedDir>, at: &str, id: u64) -> Staged {
    volume.stage_small_within(dir, &name(at), StageId(id), at.as_bytes(), (&attrs(0o640), TIME)).unwrap()
}

fn names(texts: &[&str]) -> HashSet<Name> {
    texts.iter().map(|t| name(t)).collect()
}

/// What lies in staging, below the directories that are always there.
fn left(tmp: &tempfile::TempDir) -> Vec<PathBuf> {
    let staging = tmp.path().join(".driftless/staging");
    let parts = fs::read_dir(staging).unwrap().map(|e| e.unwrap().path());
    parts.flat_map(|p| fs::read_dir(p).unwrap().map(|e| e.unwrap().path())).collect()
}

#[test]
fn a_directory_is_shown_with_its_files_and_nothing_else() {
    let (tmp, volume) = volume();
    let root = volume.dir(&[], None).unwrap();
    let dir = volume.stage_dir(StageId(1)).unwrap();
    let one = stage(&volume, &dir, "one", 2);
    let _overtaken = stage(&volume, &dir, "overtaken", 3);
    let other = volume.take_out(stage(&volume, &dir, "other", 4)).unwrap();
    assert!(other.within.is_none());
    let made = volume.place_dir(&dir, &root, &name("d"), &attrs(0o750), &names(&["one"])).unwrap();
    assert!(dir.is_shown());
    assert_eq!(made.node, *dir.key());
    let shown: Vec<_> = fs::read_dir(tmp.path().join("d")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(shown, ["one"]);
    let meta = fs::metadata(tmp.path().join("d/one")).unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec(), meta.mode() & 0o7777), (TIME.sec, 7, 0o640));
    assert_eq!(
        (meta.ctime(), meta.ctime_nsec()),
        (one.fingerprint.ctime.sec, one.fingerprint.ctime.nsec.into())
    );
    assert_eq!(fs::metadata(tmp.path().join("d")).unwrap().permissions().mode() & 0o7777, 0o750);
    // What was taken out is shown by itself.
    volume.place(&other, &root, &name("other"), None).unwrap();
    assert_eq!(fs::read_to_string(tmp.path().join("other")).unwrap(), "other");
    assert_eq!(left(&tmp), Vec::<PathBuf>::new());
}

#[test]
fn a_name_that_is_taken_stays_as_it_is() {
    let (tmp, volume) = volume();
    let root = volume.dir(&[], None).unwrap();
    fs::create_dir(tmp.path().join("d")).unwrap();
    let dir = volume.stage_dir(StageId(1)).unwrap();
    let one = stage(&volume, &dir, "one", 2);
    let refused = volume.place_dir(&dir, &root, &name("d"), &attrs(0o750), &names(&["one"])).unwrap_err();
    assert!(matches!(refused, ApplyError::Unexpected { .. }), "{refused:?}");
    assert!(!dir.is_shown());
    // Its files can still be shown one by one.
    let there = volume.dir(&[name("d")], None).unwrap();
    volume.place(&one, &there, &name("one"), None).unwrap();
    assert_eq!(fs::read_to_string(tmp.path().join("d/one")).unwrap(), "one");
    drop((one, dir));
    assert_eq!(left(&tmp), Vec::<PathBuf>::new());
}

#[test]
fn a_file_that_is_missing_shows_nothing() {
    let (tmp, volume) = volume();
    let root = volume.dir(&[], None).unwrap();
    let dir = volume.stage_dir(StageId(1)).unwrap();
    let one = stage(&volume, &dir, "one", 2);
    assert!(volume.unstage(&one).unwrap());
    volume.place_dir(&dir, &root, &name("d"), &attrs(0o750), &names(&["one"])).unwrap_err();
    assert!(!tmp.path().join("d").exists());
}

#[test]
fn few_and_many_files_are_made_durable() {
    let (_tmp, volume) = volume();
    let dir = volume.stage_dir(StageId(1)).unwrap();
    let few: Vec<Staged> = (0..3).map(|i| stage(&volume, &dir, &i.to_string(), 2 + i)).collect();
    volume.make_durable(&few, &[]).unwrap();
    let many: Vec<Staged> = (100..200).map(|i| stage(&volume, &dir, &i.to_string(), i)).collect();
    volume.make_durable(&many, &[]).unwrap();
}

#[test]
fn what_a_killed_process_left_is_swept() {
    let (tmp, volume) = volume();
    let dir = volume.stage_dir(StageId(1)).unwrap();
    stage(&volume, &dir, "one", 2);
    // No destructor runs in a process that is killed.
    std::mem::forget(dir);
    assert_eq!(left(&tmp).len(), 1);
    volume.sweep_staged_dirs().unwrap();
    assert_eq!(left(&tmp), Vec::<PathBuf>::new());
}
