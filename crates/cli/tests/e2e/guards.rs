//! What makes no sense or is dangerous is refused with a message, and nothing is changed.

use crate::common::*;
use std::fs;
use std::path::Path;

/// Runs a sync of two paths that must be refused; what it said.
fn refused(pair: &Pair, a: &Path, b: &Path, code: i32) -> String {
    let before = fingerprints(pair.base.path());
    let ran = run(pair.command().arg("sync").arg("--once").arg(a).arg(b));
    assert_eq!(ran.code, code, "{ran:#?}");
    assert!(ran.err.contains("what to do:"), "{ran:#?}");
    assert_eq!(before, fingerprints(pair.base.path()), "something was changed");
    ran.err
}

#[test]
fn ends_that_are_no_pair_of_directories() {
    let pair = Pair::new();
    put(&pair.a, "inside/file", "x");
    let (file, inside) = (pair.a.join("inside/file"), pair.a.join("inside"));
    let link = pair.base.path().join("link");
    std::os::unix::fs::symlink(&pair.a, &link).unwrap();
    let none = pair.base.path().join("none");
    for (a, b, says) in [
        (&pair.a, &pair.a, "same directory"),
        (&pair.a, &link, "same directory"),
        (&pair.a, &inside, "B is inside A"),
        (&inside, &pair.a, "A is inside B"),
        (&file, &pair.b, "not a directory"),
        (&pair.a, &none, "does not exist"),
        (&none, &pair.b, "does not exist"),
    ] {
        let said = refused(&pair, a, b, 1);
        assert!(said.contains(says), "{a:?} {b:?}: {said}");
    }
}

#[test]
fn a_root_that_cannot_be_read() {
    use std::os::unix::fs::PermissionsExt as _;
    let pair = Pair::new();
    fs::set_permissions(&pair.b, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::read_dir(&pair.b).is_ok() {
        eprintln!("skipped: this user may read everything");
        return;
    }
    let said = refused(&pair, &pair.a, &pair.b, 1);
    fs::set_permissions(&pair.b, fs::Permissions::from_mode(0o700)).unwrap();
    assert!(said.contains("permission denied"), "{said}");
}

#[test]
fn flags_that_make_no_sense() {
    let pair = Pair::new();
    for flags in [
        &["--bwlimit", "fast"][..],
        &["--max-delete", "120%"],
        &["--exclude", "a[b"],
        &["--site-names", "one"],
        &["--no-such-flag"],
    ] {
        let ran = pair.sync(flags);
        assert_eq!(ran.code, 2, "{flags:?}: {ran:#?}");
        assert!(!ran.err.is_empty());
    }
    assert_eq!(run(pair.command().arg("sync").arg(&pair.a)).code, 2);
    assert_eq!(run(pair.command().args(["sync", "-oProxyCommand=x:/a", "/b"])).code, 2);
}

#[test]
fn a_second_process_is_told_who_has_the_replica() {
    let pair = Pair::new();
    put(&pair.a, "f", "x");
    let running = pair.start(&[]);
    let other = pair.base.path().join("other");
    fs::create_dir(&other).unwrap();
    for (a, b) in [(&pair.a, &pair.b), (&other, &pair.a)] {
        let ran = run(pair.command().args(["sync", "--once", "--state"]).arg(pair.state()).arg(a).arg(b));
        assert_eq!(ran.code, 1, "{ran:#?}");
        let pid = running.pid().as_raw_nonzero().to_string();
        assert!(ran.err.contains(&pid), "names process {pid}: {ran:#?}");
    }
    assert_eq!(running.stop().1, 0);
}

#[test]
fn many_removals_at_once_are_held() {
    let pair = Pair::new();
    for i in 0..300 {
        put(&pair.a, &format!("d/{i}"), "x");
    }
    pair.once(&[]);
    fs::remove_dir_all(pair.a.join("d")).unwrap();
    put(&pair.a, "new", "flows all the same");
    let ran = pair.sync(&["--once"]);
    assert_eq!(ran.code, 3, "{ran:#?}");
    assert!(ran.out.contains("--max-delete"), "{ran:#?}");
    assert_eq!(names(&pair.b.join("d")).len(), 300);
    assert_eq!(read(&pair.b, "new"), "flows all the same");
    pair.once(&["--max-delete", "100%"]);
    pair.assert_same();
    assert!(!pair.b.join("d").exists());
}

#[test]
fn a_root_that_was_swapped_for_an_empty_one_stops() {
    let pair = Pair::new();
    put(&pair.a, "precious", "x");
    pair.once(&[]);
    fs::rename(&pair.a, pair.base.path().join("unmounted")).unwrap();
    fs::create_dir(&pair.a).unwrap();
    let ran = pair.sync(&["--once"]);
    assert_ne!(ran.code, 0, "{ran:#?}");
    assert_eq!(read(&pair.b, "precious"), "x");
}
