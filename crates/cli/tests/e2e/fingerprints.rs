//! What is recognised by looking only: nothing but size, times and identity says whether a file is still the same.

use crate::common::*;
use driftless_testkit::{WRITER_FILE_LEN, Writer, WriterKind};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Stdio;

fn on_tmpfs(dir: &Path) -> bool {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    rustix::fs::statfs(dir).is_ok_and(|fs| fs.f_type as u64 == TMPFS_MAGIC)
}

/// Sets the modification time, the year 1901 or 2200 as well; the change time is now, whatever is set.
fn set_time(path: &Path, sec: i64, nsec: i64) {
    let time = Timespec { tv_sec: sec, tv_nsec: nsec };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::empty()).unwrap();
}

fn mtime(path: &Path) -> (i64, i64) {
    let meta = fs::metadata(path).unwrap();
    (meta.mtime(), meta.mtime_nsec())
}

#[test]
fn stores_into_a_mapped_page_are_found_by_the_next_run() {
    let pair = Pair::new();
    if on_tmpfs(pair.base.path()) {
        return eprintln!(
            "skipped: nothing ever makes a page of a tmpfs clean, so a second store has no new time"
        );
    }
    fs::write(pair.a.join("f"), [b'.'; WRITER_FILE_LEN]).unwrap();
    pair.once(&[]);
    let mut writer = Writer::open(WriterKind::Mapped, &pair.a.join("f")).unwrap();
    // Each but the first goes into a page that is dirty, unless reading it made it clean.
    for byte in *b"123" {
        writer.write(byte).unwrap();
        pair.once(&[]);
        let there = fs::read(pair.b.join("f")).unwrap();
        assert!(there == [byte; WRITER_FILE_LEN], "not what was stored, but {:?}", there.first());
    }
    drop(writer);
    pair.once(&[]);
    pair.assert_same();
    assert_eq!(copies(&pair.a), Vec::<String>::new());
}

#[test]
fn contents_changed_behind_an_old_size_and_time_are_found() {
    let pair = Pair::new();
    put(&pair.a, "f", "one");
    pair.once(&[]);
    let before = mtime(&pair.a.join("f"));
    put(&pair.a, "f", "two");
    set_time(&pair.a.join("f"), before.0, before.1);
    pair.once(&[]);
    assert_eq!(read(&pair.b, "f"), "two");
    let running = pair.start(&[]);
    put(&pair.a, "f", "six");
    set_time(&pair.a.join("f"), before.0, before.1);
    pair.wait_same("the third version");
    assert_eq!(read(&pair.b, "f"), "six");
    running.stop();
}

/// As a clock that was put back or ahead by years writes them, or a restore from a backup.
#[test]
fn times_of_other_years_are_carried_and_never_compared() {
    let pair = Pair::new();
    let running = pair.start(&[]);
    let years = [0, -1, 4_102_444_800, 1, -2_000_000_000, 7_258_118_400, 1_600_000_000];
    for (i, sec) in years.into_iter().enumerate() {
        let (from, to) = if i % 2 == 0 { (&pair.a, &pair.b) } else { (&pair.b, &pair.a) };
        put(from, "f", &format!("version {i}"));
        set_time(&from.join("f"), sec, 123_456_789);
        let made = mtime(&from.join("f"));
        pair.wait_same("a version");
        assert_eq!((read(to, "f"), mtime(&to.join("f"))), (format!("version {i}"), made));
    }
    assert_eq!(names(&pair.a), ["f"]);
    running.stop();
    // What was changed while nothing ran, with a time from before: newer all the same, because it builds on the last.
    put(&pair.a, "f", "restored");
    set_time(&pair.a.join("f"), 1, 0);
    pair.once(&[]);
    assert_eq!((read(&pair.b, "f"), names(&pair.b)), ("restored".into(), vec!["f".into()]));
}

/// Removes `old` and makes `new` until that has the inode number which `old` had.
fn reuse_inode(dir: &Path, old: &str, new: &str, content: &str) -> bool {
    let number = fs::metadata(dir.join(old)).unwrap().ino();
    let time = mtime(&dir.join(old));
    fs::remove_file(dir.join(old)).unwrap();
    for i in 0..100 {
        let made = dir.join(format!("{new}-{i}"));
        fs::write(&made, content).unwrap();
        if fs::metadata(&made).unwrap().ino() == number {
            fs::rename(&made, dir.join(new)).unwrap();
            (0..i).for_each(|i| fs::remove_file(dir.join(format!("{new}-{i}"))).unwrap());
            set_time(&dir.join(new), time.0, time.1);
            return true;
        }
    }
    eprintln!("skipped: inode numbers are not reused here");
    false
}

#[test]
fn an_inode_number_given_again_is_another_file() {
    let pair = Pair::new();
    put(&pair.a, "old", "first");
    pair.once(&[]);
    // Length, time and number are the same: only the handle says that it is no rename.
    if !reuse_inode(&pair.a, "old", "new", "other") {
        return;
    }
    put(&pair.b, "old", "edited there");
    pair.once(&[]);
    pair.assert_same();
    assert_eq!(names(&pair.a), ["new", "old"]);
    assert_eq!((read(&pair.b, "new"), read(&pair.b, "old")), ("other".into(), "edited there".into()));
}

#[test]
fn an_inode_number_given_again_while_it_runs_is_another_file() {
    let pair = Pair::new();
    let running = pair.start(&[]);
    for i in 0..10 {
        put(&pair.a, "old", &format!("first {i}"));
        pair.wait_same("the first file");
        if !reuse_inode(&pair.a, "old", "new", &format!("other {i}")) {
            return;
        }
        pair.wait_same("the second file");
        assert_eq!((names(&pair.b), read(&pair.b, "new")), (vec!["new".into()], format!("other {i}")));
        fs::remove_file(pair.a.join("new")).unwrap();
        pair.wait_same("none");
    }
    running.stop();
}

/// A directory that goes from where the crawl has not been to where it has been is in neither listing; one that goes the
/// other way is in both.
#[test]
fn renames_during_a_crawl_are_renames() {
    let pair = Pair::new();
    for dir in 0..60 {
        for file in 0..20 {
            put(&pair.a, &format!("m{dir:02}/{file}"), &format!("{dir} {file}"));
        }
    }
    pair.once(&[]);
    let before = inodes_below(&pair.b);
    for round in 0..4 {
        let (from, to) = if round % 2 == 0 { ("m", ["a", "z"]) } else { ("", ["m", "m"]) };
        let mut child =
            pair.sync_command(&["--once"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        for dir in 0..60 {
            let place = |which: &str| pair.a.join(format!("{which}{dir:02}"));
            let now = if from.is_empty() { ["a", "z"][dir % 2] } else { from };
            fs::rename(place(now), place(to[dir % 2])).unwrap();
        }
        assert!(child.wait().unwrap().code().is_some_and(|code| code == 0 || code == 3));
    }
    pair.once(&[]);
    pair.assert_same();
    assert_eq!(inodes_below(&pair.b), before, "files were copied again");
}

/// Inode numbers of the files below a directory, by their contents.
fn inodes_below(root: &Path) -> std::collections::BTreeMap<String, u64> {
    let files = inodes(root).into_iter().filter(|(path, _)| root.join(path).is_file());
    files.map(|(path, inode)| (fs::read_to_string(root.join(path)).unwrap(), inode)).collect()
}

/// A program that never closes its file: what it writes is carried all the same.
#[test]
#[ignore = "20 s: it waits for a file that never settles"]
fn a_file_that_stays_open_is_followed() {
    let pair = Pair::new();
    fs::write(pair.a.join("log"), [b'.'; WRITER_FILE_LEN]).unwrap();
    let running = pair.start(&[]);
    let mut writer = Writer::open(WriterKind::Append, &pair.a.join("log")).unwrap();
    writer.write(b'1').unwrap();
    // No event tells of that; a touch is one.
    set_time(&pair.a.join("log"), 1_700_000_000, 0);
    pair.wait_same("what was written first");
    writer.write(b'2').unwrap();
    pair.wait_same("what was written next");
    drop(writer);
    running.stop();
    pair.once(&[]);
    pair.assert_same();
}
