//! An index that is gone, damaged or older than its tree: nothing comes back that was removed, nothing is lost that only
//! one tree has, nothing equal is touched.

use crate::common::*;
use driftless_testkit::{Rng, Spec, grow};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The state directory of one end.
fn state_of(pair: &Pair, end: &str) -> PathBuf {
    let all = fs::read_dir(pair.state()).unwrap().map(|e| e.unwrap().path());
    all.into_iter().find(|p| p.file_name().unwrap().to_string_lossy().starts_with(end)).unwrap()
}

/// The directory for what was put aside, which must be there once.
fn recovered(root: &Path) -> PathBuf {
    let names = fs::read_dir(root).unwrap().map(|e| e.unwrap().path());
    let mut found: Vec<PathBuf> =
        names.filter(|p| p.file_name().unwrap().to_string_lossy().starts_with("recovered-")).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// Two ends that agree, then: removals and changes on the other side, and things only the loser knows.
fn drifted(loser: &str) -> (Pair, PathBuf, PathBuf) {
    let pair = Pair::new();
    grow(&pair.a, 7, &Spec { files: 60, ..Spec::default() }).unwrap();
    fs::create_dir_all(pair.a.join("gone/deep")).unwrap();
    fs::write(pair.a.join("gone/deep/old"), "removed elsewhere").unwrap();
    fs::write(pair.a.join("gone/old"), "removed elsewhere too").unwrap();
    fs::write(pair.a.join("single"), "removed as well").unwrap();
    fs::write(pair.a.join("edited"), "before").unwrap();
    fs::write(pair.a.join("twice"), "two names").unwrap();
    fs::hard_link(pair.a.join("twice"), pair.a.join("second")).unwrap();
    pair.once(&[]);
    let (own, other) = match loser {
        "a" => (pair.a.clone(), pair.b.clone()),
        _ => (pair.b.clone(), pair.a.clone()),
    };
    // Nobody told the loser of these ...
    fs::remove_dir_all(other.join("gone")).unwrap();
    fs::remove_file(other.join("single")).unwrap();
    fs::remove_file(other.join("second")).unwrap();
    fs::write(other.join("added"), "new").unwrap();
    // ... nor anybody else of these.
    fs::write(own.join("gone/mine"), "only here").unwrap();
    fs::create_dir(own.join("own")).unwrap();
    fs::write(own.join("own/file"), "only here as well").unwrap();
    (pair, own, other)
}

/// What is to be found after all of it, wherever the loss was.
fn check(pair: &Pair, own: &Path) {
    pair.assert_same();
    for gone in ["gone", "single", "second", "own"] {
        assert!(!own.join(gone).exists(), "{gone} is back");
    }
    assert_eq!(fs::read(own.join("twice")).unwrap(), b"two names");
    assert_eq!(fs::read(own.join("added")).unwrap(), b"new");
    let aside = recovered(own);
    assert_eq!(fs::read(aside.join("gone/mine")).unwrap(), b"only here");
    assert_eq!(fs::read(aside.join("own/file")).unwrap(), b"only here as well");
    let mut kept: Vec<String> = tree(&aside);
    kept.sort();
    assert_eq!(kept, ["gone", "gone/mine", "own", "own/file"]);
    assert_eq!(copies(own), Vec::<String>::new(), "conflicts that nobody made");
    let again = pair.once(&["--json"]);
    assert_eq!(again.events("change").len() + again.events("put_aside").len(), 0, "{again:#?}");
    assert_eq!(again.events("outcome")[0]["counts"][1]["hashed_bytes"], 0);
}

fn tree(root: &Path) -> Vec<String> {
    let mut out = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for e in fs::read_dir(dir).unwrap() {
            let path = e.unwrap().path();
            out.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            if path.is_dir() {
                todo.push(path);
            }
        }
    }
    out
}

fn a_lost_index(loser: &str) {
    let (pair, own, other) = drifted(loser);
    fs::remove_dir_all(state_of(&pair, loser)).unwrap();
    let untouched = fs::metadata(other.join("edited")).unwrap();
    let ran = pair.once(&["--json"]);
    assert_eq!(ran.events("put_aside").len(), 2, "{ran:#?}");
    check(&pair, &own);
    let now = fs::metadata(other.join("edited")).unwrap();
    assert_eq!(now.modified().unwrap(), untouched.modified().unwrap());
}

#[test]
fn the_index_of_b_is_lost() {
    a_lost_index("b");
}

#[test]
fn the_index_of_a_is_lost() {
    a_lost_index("a");
}

#[test]
fn a_damaged_index_is_put_aside_and_rebuilt() {
    let (pair, own, _) = drifted("b");
    let state = state_of(&pair, "b");
    let index = state.join("index.redb");
    let mut bytes = fs::read(&index).unwrap();
    let len = bytes.len();
    bytes[..4096].fill(0x5a);
    bytes[len / 2..len / 2 + 4096].fill(0x5a);
    fs::write(&index, bytes).unwrap();
    // A dry run changes nothing, not even this.
    let dry = pair.sync(&["--dry-run"]);
    assert_eq!(dry.code, 1, "{dry:#?}");
    assert!(dry.err.contains("damaged"), "{dry:#?}");
    assert!(own.join("own").exists());
    let ran = pair.once(&[]);
    assert!(ran.err.contains("index.kept-"), "{ran:#?}");
    check(&pair, &own);
    let kept = fs::read_dir(&state)
        .unwrap()
        .filter(|e| e.as_ref().unwrap().file_name().to_str().unwrap().starts_with("index.kept-"));
    assert_eq!(kept.count(), 1);
}

#[test]
fn an_index_from_an_old_copy_is_recognised() {
    let pair = Pair::new();
    grow(&pair.a, 8, &Spec { files: 40, ..Spec::default() }).unwrap();
    pair.once(&[]);
    let index = state_of(&pair, "b").join("index.redb");
    let old = fs::read(&index).unwrap();
    // B makes changes that A takes, and takes some of A's.
    fs::write(pair.b.join("from-b"), "1").unwrap();
    fs::write(pair.b.join("to-go"), "2").unwrap();
    fs::write(pair.a.join("from-a"), "3").unwrap();
    pair.once(&[]);
    fs::remove_file(pair.a.join("to-go")).unwrap();
    pair.once(&[]);
    // Yesterday's copy of its index.
    fs::write(&index, old).unwrap();
    fs::write(pair.b.join("edited-since"), "only here").unwrap();
    let ran = pair.once(&[]);
    assert!(ran.err.contains("starting again"), "{ran:#?}");
    pair.assert_same();
    assert!(!pair.a.join("to-go").exists(), "it was removed");
    assert_eq!(fs::read(pair.a.join("from-b")).unwrap(), b"1");
    assert_eq!(fs::read(recovered(&pair.a).join("edited-since")).unwrap(), b"only here");
    assert_eq!(copies(&pair.a), Vec::<String>::new());
    // It is well again.
    fs::write(pair.b.join("from-b"), "4").unwrap();
    pair.once(&[]);
    assert_eq!(fs::read(pair.a.join("from-b")).unwrap(), b"4");
}

#[test]
fn without_any_index_two_trees_meet_as_for_the_first_time() {
    let (pair, own, other) = drifted("b");
    fs::remove_dir_all(pair.state()).unwrap();
    pair.once(&[]);
    pair.assert_same();
    // Nobody remembers what was removed: all of both is there, in its place.
    for path in ["gone/mine", "gone/old", "single", "second", "own/file", "added"] {
        assert!(own.join(path).exists() && other.join(path).exists(), "{path}");
    }
    assert_eq!(copies(&own), Vec::<String>::new());
}

#[test]
fn a_loss_after_a_first_run_that_was_interrupted_is_no_deadlock() {
    for loser in ["a", "b"] {
        let pair = Pair::new();
        grow(&pair.a, 9, &Spec { files: 300, size_max: 100_000, ..Spec::default() }).unwrap();
        grow(&pair.b, 10, &Spec { files: 300, size_max: 100_000, ..Spec::default() }).unwrap();
        let mut running = Running::start(&mut pair.sync_command(&["--json"]));
        running.wait_for("progress");
        running.kill();
        fs::remove_dir_all(state_of(&pair, loser)).unwrap();
        pair.once(&[]);
        pair.assert_same();
    }
}

#[test]
fn who_waits_for_the_others_tree_is_told_at_once_that_nothing_in_it_is_new() {
    // Whichever of the first batches it is after which all that `a` has is known to `b`, which has not looked at its own tree.
    for batch in 1..=4 {
        let pair = Pair::new();
        for (root, seed) in [(&pair.a, 9), (&pair.b, 10)] {
            let mut rng = Rng::new(seed);
            for _ in 0..300 {
                let path = root.join(format!("d{}/e{}", rng.below(12), rng.below(4)));
                fs::create_dir_all(&path).unwrap();
                let (name, len) = (format!("f{}", rng.below(400)), rng.below(100_000) as usize);
                fs::write(path.join(name), rng.bytes(len)).unwrap();
            }
        }
        let ended =
            run(pair.sync_command(&["--once"]).env("DRIFTLESS_CRASH_AT", format!("receipt-due:{batch}")));
        assert!(ended.err.contains("crash point"), "{ended:#?}");
        fs::remove_dir_all(state_of(&pair, "a")).unwrap();
        let begun = Instant::now();
        pair.once(&[]);
        // A batch that is not full may wait for thirty.
        assert!(begun.elapsed() < Duration::from_secs(15), "batch {batch}: {:?}", begun.elapsed());
        pair.assert_same();
    }
}

#[test]
fn names_that_are_taken_get_numbers_and_an_interrupted_scan_goes_on() {
    let (pair, own, _) = drifted("b");
    fs::remove_dir_all(state_of(&pair, "b")).unwrap();
    pair.once(&[]);
    let aside = recovered(&own);
    // A second loss on the same day, with the same path only here again.
    fs::create_dir(own.join("own")).unwrap();
    fs::write(own.join("own/file"), "another").unwrap();
    fs::write(aside.join("late"), "made in it").unwrap();
    fs::remove_dir_all(state_of(&pair, "b")).unwrap();
    pair.once(&[]);
    pair.assert_same();
    assert_eq!(recovered(&own), aside);
    assert_eq!(fs::read(aside.join("own/file")).unwrap(), b"only here as well");
    assert_eq!(fs::read(aside.join("own.1/file")).unwrap(), b"another");
    assert_eq!(fs::read(aside.join("late")).unwrap(), b"made in it");
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

#[test]
fn a_copy_of_a_tree_is_a_replica_of_its_own() {
    let mut pair = Pair::new();
    ["same", "edited", "removed"].iter().for_each(|name| put(&pair.a, name, name));
    pair.once(&[]);
    let (first, twin) = (pair.a.clone(), pair.base.path().join("twin"));
    copy(&first, &twin);
    put(&first, "from-first", "1");
    fs::remove_file(first.join("removed")).unwrap();
    pair.once(&[]);
    put(&twin, "edited", "by the twin");
    put(&twin, "from-twin", "2");
    pair.a = twin.clone();
    pair.once(&[]);
    pair.assert_same();
    assert_eq!(read(&twin, "from-first"), "1");
    assert!(!pair.b.join("removed").exists(), "it is back");
    assert_eq!(fs::read(recovered(&pair.b).join("from-twin")).unwrap(), b"2");
    let both = copies(&pair.b);
    assert_eq!(both.len(), 1, "both versions are there: {both:?}");
    // Both go on as replicas of their own.
    put(&twin, "from-twin", "3");
    pair.once(&[]);
    pair.a = first;
    put(&pair.a, "from-first", "4");
    pair.once(&[]);
    pair.assert_same();
    assert_eq!((read(&pair.b, "from-twin"), read(&pair.b, "from-first")), ("3".into(), "4".into()));
    assert_eq!(copies(&pair.b), both);
}

#[test]
fn a_copy_of_the_state_may_take_turns_with_the_first() {
    let pair = Pair::new();
    ["same", "edited", "removed"].iter().for_each(|name| put(&pair.a, name, name));
    pair.once(&[]);
    let (state, other) = (pair.state(), pair.base.path().join("copied-state"));
    copy(&state, &other);
    let swap = || {
        let aside = pair.base.path().join("aside");
        fs::rename(&state, &aside).unwrap();
        fs::rename(&other, &state).unwrap();
        fs::rename(&aside, &other).unwrap();
    };
    put(&pair.a, "edited", "with the first");
    fs::remove_file(pair.a.join("removed")).unwrap();
    pair.once(&[]);
    swap();
    put(&pair.b, "added", "with the copy");
    pair.once(&[]);
    pair.assert_same();
    swap();
    put(&pair.a, "new", "with the first again");
    pair.once(&[]);
    pair.assert_same();
    let mut names = names(&pair.b);
    names.retain(|n| n != ".driftless");
    assert_eq!(names, ["added", "edited", "new", "same"]);
    assert_eq!(read(&pair.b, "edited"), "with the first");
}
