//! `--dry-run` says exactly what the real run then does, and does nothing.

use crate::common::*;
use driftless_testkit::{Spec, grow};
use std::fs;

fn steps(ran: &Ran, done: bool) -> Vec<String> {
    let mut steps: Vec<String> = ran
        .events("step")
        .iter()
        .inspect(|s| assert_eq!(s["done"], done))
        // Times of directories are put back with whatever is done in them; that may or may not take a step of its own.
        .filter(|s| s["verb"] != "set attributes of dir")
        .map(|s| format!("{} {} {}", s["side"], s["verb"], s["path"]))
        .collect();
    steps.sort();
    steps
}

/// The plan, and then what was done, as sorted lines.
fn plan_and_deeds(pair: &Pair) -> (Vec<String>, Vec<String>) {
    let before = (fingerprints(&pair.a), fingerprints(&pair.b));
    let plan = pair.sync(&["--dry-run", "--json"]);
    assert_eq!(plan.code, 0, "{plan:#?}");
    assert_eq!(before, (fingerprints(&pair.a), fingerprints(&pair.b)), "a dry run changed something");
    let done = pair.once(&["--json", "-v"]);
    pair.assert_same();
    (steps(&plan, false), steps(&done, true))
}

#[test]
fn of_a_first_meeting() {
    let pair = Pair::new();
    grow(&pair.a, 11, &Spec::default()).unwrap();
    put(&pair.b, "only b", "b");
    let (plan, deeds) = plan_and_deeds(&pair);
    assert!(plan.len() > 50, "{plan:#?}");
    assert_eq!(plan, deeds);
}

#[test]
fn of_changes_to_synced_trees() {
    let pair = Pair::new();
    grow(&pair.a, 12, &Spec { special: false, ..Spec::default() }).unwrap();
    for path in ["d/edit", "d/remove", "d/move", "d/mode"] {
        put(&pair.a, path, path);
    }
    pair.once(&[]);
    put(&pair.a, "d/edit", "other");
    fs::remove_file(pair.a.join("d/remove")).unwrap();
    fs::rename(pair.b.join("d/move"), pair.b.join("moved")).unwrap();
    put(&pair.b, "d/new", "new");
    let (plan, deeds) = plan_and_deeds(&pair);
    assert!(plan.len() >= 4, "{plan:#?}");
    assert_eq!(plan, deeds);
}

#[test]
fn counts_say_how_two_populated_trees_compare() {
    let pair = Pair::new();
    for i in 0..7 {
        put(&pair.a, &format!("same{i}"), "x");
        put(&pair.b, &format!("same{i}"), "x");
    }
    for i in 0..3 {
        put(&pair.a, &format!("a{i}"), "x");
    }
    for i in 0..2 {
        put(&pair.b, &format!("b{i}"), "x");
    }
    put(&pair.a, "differs", "1");
    put(&pair.b, "differs", "2");
    let ran = pair.sync(&["-n", "--json"]);
    let join = &ran.events("join")[0]["counts"];
    let got = ["equal", "only_a", "only_b", "different"].map(|k| join[k].as_u64().unwrap());
    assert_eq!(got, [7, 3, 2, 1]);
    let text = pair.sync(&["-n"]);
    assert!(text.out.contains("7 equal, 3 only at A, 2 only at B, 1 different"), "{text:#?}");
    assert!(text.out.contains("nothing was done"), "{text:#?}");
    assert_eq!((names(&pair.a).len(), names(&pair.b).len()), (11, 10));
}

#[test]
fn of_trees_that_are_the_same() {
    let pair = Pair::new();
    put(&pair.a, "f", "x");
    pair.once(&[]);
    let ran = pair.sync(&["-n"]);
    assert_eq!(ran.code, 0);
    assert!(ran.out.contains("nothing to do"), "{ran:#?}");
}
