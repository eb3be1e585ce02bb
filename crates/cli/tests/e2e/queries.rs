//! The commands that ask a state directory, while a sync runs and while none does.

use crate::common::*;
use serde_json::Value;

fn rows(ran: &Ran) -> Vec<Value> {
    assert_eq!(ran.code, 0, "{ran:#?}");
    ran.out.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// A pair with one conflict in `d`.
fn in_conflict() -> (Pair, String) {
    let pair = Pair::new();
    put(&pair.a, "d/f.txt", "first");
    pair.once(&[]);
    put(&pair.a, "d/f.txt", "of a");
    put(&pair.b, "d/f.txt", "of b!");
    pair.once(&[]);
    let copies = copies(&pair.a.join("d"));
    assert_eq!(copies.len(), 1, "{copies:?}");
    let copy = copies[0].clone();
    (pair, copy)
}

#[test]
fn conflicts_are_listed_and_resolved_each_way() {
    for keep in ["winner", "copy", "both"] {
        let (pair, copy) = in_conflict();
        let root = pair.a.to_str().unwrap();
        let listed = rows(&pair.ask(&["conflicts", "list", "--json", "--root", root]));
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0]["path"]["text"], format!("d/{copy}"));
        assert_eq!(listed[0]["winner"]["text"], "d/f.txt");
        let (winner_text, copy_text) = (read(&pair.a, "d/f.txt"), read(&pair.a, &format!("d/{copy}")));

        let path = pair.a.join("d").join(&copy);
        let ran = pair.ask(&["conflicts", "resolve", path.to_str().unwrap(), "--keep", keep]);
        assert_eq!(ran.code, 0, "{ran:#?}");
        pair.once(&[]);
        pair.assert_same();
        assert_eq!(copies(&pair.b.join("d")), Vec::<String>::new());
        let left: Vec<String> =
            names(&pair.b.join("d")).iter().map(|n| read(&pair.b, &format!("d/{n}"))).collect();
        match keep {
            "winner" => assert_eq!(left, [winner_text]),
            "copy" => assert_eq!(left, [copy_text]),
            _ => assert!(left.len() == 2 && left.contains(&winner_text) && left.contains(&copy_text)),
        }
        let none = pair.ask(&["conflicts", "list"]);
        assert_eq!(none.out, "no conflicts\n");
    }
}

#[test]
fn what_is_no_conflict_copy_is_not_touched() {
    let (pair, _) = in_conflict();
    let before = fingerprints(&pair.a);
    let ran =
        pair.ask(&["conflicts", "resolve", pair.a.join("d/f.txt").to_str().unwrap(), "--keep", "winner"]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert!(ran.err.contains("no conflict copy"), "{ran:#?}");
    assert_eq!(before, fingerprints(&pair.a));
}

#[test]
fn changes_have_a_cursor() {
    let pair = Pair::new();
    put(&pair.a, "d/f", "1");
    pair.once(&[]);
    let root = pair.b.to_str().unwrap().to_owned();
    let feed = |since: &str| {
        let mut rows = rows(&pair.ask(&["changes", "--json", "--root", &root, "--since", since]));
        // The root has attributes, and so a row.
        rows.retain(|r| r["entry"] != "root");
        rows
    };
    let all = feed("0");
    let paths: Vec<_> = all.iter().map(|r| r["path"]["text"].as_str().unwrap()).collect();
    assert_eq!(paths, ["d", "d/f"]);
    let last = all[1]["seq"].to_string();
    assert_eq!(feed(&last), Vec::<Value>::new());
    put(&pair.a, "d/f", "22");
    pair.once(&[]);
    let newer = feed(&last);
    assert_eq!((newer.len(), newer[0]["class"].as_str()), (1, Some("Data")));
    assert_eq!(newer[0]["entry"], all[1]["entry"]);
    let several = pair.ask(&["changes"]);
    assert_eq!(several.code, 2, "two roots, two feeds: {several:#?}");
}

#[test]
fn questions_are_answered_while_a_sync_runs() {
    let pair = Pair::new();
    put(&pair.a, "f", "1");
    let running = pair.start(&[]);
    let path = pair.b.join("f");
    let why = pair.ask(&["why", path.to_str().unwrap(), "--json"]);
    assert_eq!(why.code, 0, "{why:#?}");
    let why: Value = serde_json::from_str(&why.out).unwrap();
    assert_eq!(why["on_disk"]["kind"], "file");
    assert_eq!(pair.ask(&["failures"]).out, "nothing waits\n");
    assert_eq!(pair.ask(&["conflicts", "list"]).out, "no conflicts\n");

    let mut follow = Running::start(
        pair.command()
            .args(["changes", "--follow", "--json", "--state"])
            .arg(pair.state())
            .arg("--root")
            .arg(&pair.b),
    );
    follow.wait_for_row(|row| row["path"]["text"] == "f");
    put(&pair.a, "g", "2");
    follow.wait_for_row(|row| row["path"]["text"] == "g");
    assert_eq!(running.stop().1, 0);
    follow.kill();
}

#[test]
fn a_state_directory_without_replicas_is_an_error() {
    let pair = Pair::new();
    for args in [&["failures"][..], &["conflicts", "list"], &["changes"], &["why", "/nowhere"]] {
        let ran = pair.ask(args);
        assert_eq!(ran.code, 1, "{ran:#?}");
        assert!(ran.err.contains("no state") && ran.err.contains("what to do"), "{ran:#?}");
    }
}

#[test]
fn completions_and_manual_pages_are_printed() {
    let pair = Pair::new();
    for shell in ["bash", "zsh", "fish"] {
        let ran = run(pair.command().args(["completions", shell]));
        assert!(ran.code == 0 && ran.out.contains("driftless"), "{shell}");
    }
    let ran = run(pair.command().arg("man"));
    assert!(ran.code == 0 && ran.out.contains(".TH driftless"), "{ran:#?}");
    let dir = pair.base.path().join("man");
    std::fs::create_dir(&dir).unwrap();
    assert_eq!(run(pair.command().arg("man").arg("--dir").arg(&dir)).code, 0);
    assert!(names(&dir).contains(&"driftless-sync.1".to_owned()), "{:?}", names(&dir));
}
