//! A running `sync`: each kind of change, in both directions, and users who work on both sides at once.

use crate::common::*;
use driftless_testkit::{Spec, grow};
use rustix::fs::{CWD, FileType, Mode, XattrFlags};
use std::fs::{self, File};
use std::io::{Seek as _, Write as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

type Change = (&'static str, fn(&Path));

/// Changes, each on what the ones before it left.
const CHANGES: [Change; 24] = [
    ("mkdir", |r| fs::create_dir_all(r.join("d/e")).unwrap()),
    ("create", |r| fs::write(r.join("d/f"), "one").unwrap()),
    ("append", |r| File::options().append(true).open(r.join("d/f")).unwrap().write_all(b" more").unwrap()),
    ("overwrite", |r| fs::write(r.join("d/f"), "other").unwrap()),
    ("truncate", |r| File::options().write(true).open(r.join("d/f")).unwrap().set_len(2).unwrap()),
    ("empty", |r| File::create(r.join("d/empty")).map(drop).unwrap()),
    ("save by rename", |r| {
        fs::write(r.join("d/.f.tmp"), "saved").unwrap();
        fs::rename(r.join("d/.f.tmp"), r.join("d/f")).unwrap();
    }),
    ("hard link", |r| fs::hard_link(r.join("d/f"), r.join("d/e/f2")).unwrap()),
    ("write through a hard link", |r| fs::write(r.join("d/e/f2"), "both names").unwrap()),
    ("rename", |r| fs::rename(r.join("d/f"), r.join("g")).unwrap()),
    ("rename over", |r| fs::rename(r.join("d/empty"), r.join("g")).unwrap()),
    ("symlink", |r| symlink("d/e/f2", r.join("s")).unwrap()),
    ("another symlink", |r| {
        fs::remove_file(r.join("s")).unwrap();
        symlink("nowhere", r.join("s")).unwrap();
    }),
    ("chmod", |r| fs::set_permissions(r.join("g"), fs::Permissions::from_mode(0o4711)).unwrap()),
    ("chmod of a directory", |r| {
        fs::set_permissions(r.join("d"), fs::Permissions::from_mode(0o750)).unwrap()
    }),
    ("xattr", |r| {
        // Not every file system has them; then nothing changes, which is the same on both sides.
        let _ = rustix::fs::setxattr(r.join("g"), "user.colour", b"blue", XattrFlags::empty());
    }),
    ("touch", |r| set_mtime(&r.join("g"), 1_600_000_000)),
    ("fifo", |r| {
        rustix::fs::mknodat(CWD, r.join("p"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap()
    }),
    ("sparse", |r| {
        let mut file = File::create(r.join("sparse")).unwrap();
        file.seek(std::io::SeekFrom::Start(8 << 20)).unwrap();
        file.write_all(b"end").unwrap();
    }),
    ("write in place", |r| {
        File::options().write(true).open(r.join("sparse")).unwrap().write_all_at(b"middle", 4 << 20).unwrap();
    }),
    ("rename of a directory", |r| fs::rename(r.join("d"), r.join("dd")).unwrap()),
    ("unlink", |r| fs::remove_file(r.join("g")).unwrap()),
    ("rmdir and file of the same name", |r| {
        fs::remove_dir_all(r.join("dd")).unwrap();
        fs::write(r.join("dd"), "now a file").unwrap();
    }),
    ("names that are no text", |r| {
        use std::os::unix::ffi::OsStrExt as _;
        fs::write(r.join(std::ffi::OsStr::from_bytes(b"\xff\xfe\n x")), "odd").unwrap();
    }),
];

#[test]
fn each_kind_of_change_from_a() {
    each_kind_of_change(|pair| &pair.a);
}

#[test]
fn each_kind_of_change_from_b() {
    each_kind_of_change(|pair| &pair.b);
}

fn each_kind_of_change(side: fn(&Pair) -> &Path) {
    let pair = Pair::new();
    put(&pair.a, "there/before", "x");
    let running = pair.start(&[]);
    for (what, change) in CHANGES {
        change(side(&pair));
        pair.wait_same(what);
    }
    pair.assert_same();
    let (outcome, code) = running.stop();
    assert_eq!((code, outcome["in_sync"].as_bool()), (0, Some(true)), "{outcome:#}");
}

#[test]
fn changes_in_turns_make_no_conflict() {
    let pair = Pair::new();
    let running = pair.start(&[]);
    for i in 0..20 {
        let root = if i % 2 == 0 { &pair.a } else { &pair.b };
        put(root, "shared", &format!("turn {i}"));
        pair.wait_same("a turn");
    }
    assert_eq!(names(&pair.a), ["shared"]);
    assert_eq!(read(&pair.b, "shared"), "turn 19");
    running.stop();
}

#[test]
fn many_files_at_once_arrive() {
    let pair = Pair::new();
    let running = pair.start(&[]);
    grow(&pair.a.join("x"), 21, &Spec::default()).unwrap();
    grow(&pair.b.join("y"), 22, &Spec::plain(1000, 500)).unwrap();
    pair.wait_same("many files");
    pair.assert_same();
    running.stop();
}

#[test]
fn transfers_that_are_overtaken_leave_nothing_behind() {
    let pair = Pair::new();
    let running = pair.start(&["--bwlimit", "2M"]);
    for i in 0..8u8 {
        fs::write(pair.a.join("log"), vec![i; 300_000 + 1000 * usize::from(i)]).unwrap();
        // Its first pieces are under way when the next version comes.
        std::thread::sleep(std::time::Duration::from_millis(40));
    }
    pair.wait_same("the last version");
    running.stop();
    assert_eq!(left_private(&pair.b), Vec::<PathBuf>::new());
}

#[test]
fn an_interrupt_ends_it_and_the_next_run_goes_on() {
    let pair = Pair::new();
    let running = pair.start(&[]);
    put(&pair.a, "f", "1");
    pair.wait_same("a change");
    let (outcome, code) = running.stop();
    assert_eq!((code, outcome["exit_code"].as_i64()), (0, Some(0)), "{outcome:#}");
    put(&pair.a, "g", "made while nothing ran");
    fs::remove_file(pair.b.join("f")).unwrap();
    let running = pair.start(&[]);
    pair.wait_same("changes made while nothing ran");
    assert_eq!(names(&pair.b), ["g"]);
    running.stop();
}

/// A file that takes seconds to read holds nothing up: what comes after it is there before it has been read.
#[test]
fn a_huge_file_being_read_holds_nothing_up() {
    let pair = Pair::new();
    put(&pair.a, "first", "1");
    let mut running = pair.start(&[]);
    let huge = File::create(pair.a.join("a huge one")).unwrap();
    huge.set_len(4 << 30).unwrap();
    huge.write_at(b"data", 2 << 30).unwrap();
    drop(huge);
    put(&pair.a, "small", "1");
    wait_until(
        "the small one",
        || if pair.b.join("small").exists() { Ok(()) } else { Err("not there".into()) },
    );
    let recorded = pair.ask(&["changes".as_ref(), "--root".as_ref(), pair.a.as_os_str()]);
    assert!(recorded.out.contains("small"), "{recorded:#?}");
    assert!(!recorded.out.contains("a huge one"), "it was read first: {recorded:#?}");
    // What was read of it is of no use any more; one that stays is judged when it has been read.
    fs::remove_file(pair.a.join("a huge one")).unwrap();
    fs::write(pair.a.join("large"), vec![7; 40 << 20]).unwrap();
    pair.wait_same("it was read");
    running.wait_for("in_sync");
    assert_eq!(running.stop().1, 0);
}

/// A log that is written to all the time is there up to where it was when it was read, and whole in the end.
#[test]
fn a_log_that_grows_all_the_time_is_carried_over() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let pair = Pair::new();
    let running = pair.start(&[]);
    let log = pair.a.join("log");
    fs::write(&log, vec![b'.'; 8 << 20]).unwrap();
    /// Ends the writer, also when the test fails.
    struct Stops<'a>(&'a AtomicBool);
    impl Drop for Stops<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stops = Stops(&stop);
        scope.spawn(|| {
            let mut log = File::options().append(true).open(&log).unwrap();
            let mut n = 0u8;
            while !stop.load(Ordering::Relaxed) {
                log.write_all(&[n; 4096]).unwrap();
                n = n.wrapping_add(1);
                // A log of some megabytes a second, not one as fast as the disk.
                std::thread::sleep(std::time::Duration::from_micros(500));
            }
        });
        wait_until("a part of the log", || match fs::metadata(pair.b.join("log")) {
            Ok(there) if there.len() > (8 << 20) => Ok(()),
            other => Err(format!("{:?}", other.map(|m| m.len()))),
        });
        let (there, here) = (fs::read(pair.b.join("log")).unwrap(), fs::read(&log).unwrap());
        assert!(here.starts_with(&there), "what is there was never so here");
    });
    pair.wait_same("it is closed");
    running.stop();
}
