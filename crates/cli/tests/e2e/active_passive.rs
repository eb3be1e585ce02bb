//! `--active-passive`: B follows; what it has of its own is left alone and reported.

use crate::common::*;
use std::fs;

fn drift(ran: &Ran) -> Vec<(String, String)> {
    let mut drift: Vec<_> = ran
        .events("drift")
        .iter()
        .inspect(|d| assert_eq!(d["side"], "b"))
        .map(|d| (d["path"]["text"].as_str().unwrap().to_owned(), d["what"].as_str().unwrap().to_owned()))
        .collect();
    drift.sort();
    drift
}

#[test]
fn what_only_b_has_is_left_alone_and_reported() {
    let pair = Pair::new();
    put(&pair.a, "d/f", "of a");
    put(&pair.b, "own/f", "of b");
    let ran = pair.once(&["--active-passive", "--json"]);
    assert!(drift(&ran).iter().any(|(p, what)| p.starts_with("own") && what == "only here"), "{ran:#?}");
    assert_eq!(names(&pair.a), ["d"]);
    assert_eq!(names(&pair.b), ["d", "own"]);
    assert_eq!(read(&pair.b, "own/f"), "of b");

    put(&pair.a, "d/f", "newer of a");
    fs::remove_file(pair.b.join("own/f")).unwrap();
    pair.once(&["--active-passive"]);
    assert_eq!(read(&pair.b, "d/f"), "newer of a");
}

#[test]
fn changes_at_b_are_drift_and_not_lost() {
    let pair = Pair::new();
    for path in ["edited", "removed", "untouched"] {
        put(&pair.a, path, path);
    }
    pair.once(&["--active-passive"]);
    put(&pair.b, "edited", "by b");
    fs::remove_file(pair.b.join("removed")).unwrap();
    put(&pair.b, "new", "by b");
    let ran = pair.once(&["--active-passive", "--json"]);
    let found = drift(&ran);
    for (path, what) in [("edited", "changed"), ("new", "only here"), ("removed", "missing")] {
        assert!(found.contains(&(path.into(), what.into())), "{path}: {found:?}");
    }
    assert_eq!(read(&pair.a, "edited"), "edited");
    assert_eq!(names(&pair.a), ["edited", "removed", "untouched"]);
    assert_eq!(read(&pair.b, "edited"), "by b");
    let text = pair.once(&["--active-passive"]);
    assert!(text.out.contains("left alone"), "{text:#?}");
}

/// What B has of its own where A's entry belongs is never replaced: it is listed with what to do, and A's version comes
/// by itself once the place is free.
#[test]
fn drift_in_the_way_is_listed_and_heals() {
    let pair = Pair::new();
    put(&pair.a, "edited", "first");
    put(&pair.a, "removed", "first");
    pair.once(&["--active-passive"]);
    put(&pair.b, "new", "by b");
    put(&pair.b, "edited", "by b, longer");
    fs::remove_file(pair.b.join("removed")).unwrap();
    for path in ["new", "edited", "removed"] {
        put(&pair.a, path, "by a");
    }
    let ran = pair.sync(&["--active-passive", "--once"]);
    assert_eq!(ran.code, 3, "{ran:#?}");
    assert_eq!(read(&pair.b, "removed"), "by a");
    assert_eq!((read(&pair.b, "new"), read(&pair.b, "edited")), ("by b".into(), "by b, longer".into()));
    let listed = pair.ask(&["failures"]);
    assert!(listed.out.contains("this follower has something else there"), "{listed:#?}");
    for path in ["/new", "/edited"] {
        assert!(listed.out.contains(path), "{path}: {listed:#?}");
    }

    let running = pair.start(&["--active-passive"]);
    for path in ["new", "edited"] {
        fs::rename(pair.b.join(path), pair.b.join(format!("{path}-of-b"))).unwrap();
    }
    wait_until("the places are free", || {
        match (pair.b.join("new").exists(), pair.b.join("edited").exists()) {
            (true, true) => Ok(()),
            there => Err(format!("{there:?}")),
        }
    });
    assert_eq!((read(&pair.b, "new"), read(&pair.b, "edited")), ("by a".into(), "by a".into()));
    assert_eq!(read(&pair.b, "edited-of-b"), "by b, longer");
    assert_eq!(running.stop().1, 0);
}
