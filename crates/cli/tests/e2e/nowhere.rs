//! Versions that one end made and nobody has any more: listed, not waited for in silence, and given up. And what is not
//! lost, though it is not there yet.

use crate::common::*;
use serde_json::Value;
use std::fs::{self, File};
use std::io::Write as _;

/// Longer than what comes inside batches.
const LARGE_LEN: usize = 4 << 20;

/// Both ends have had "old"; B has heard of A's newer version, and A has lost it with its index before B had got it.
fn made_and_lost() -> Pair {
    let pair = Pair::new();
    put(&pair.a, "d/f", "old");
    pair.once(&[]);
    fs::write(pair.a.join("d/f"), vec![b'n'; LARGE_LEN]).unwrap();
    let mut running = Running::start(&mut pair.sync_command(&["--json", "--bwlimit", "200k"]));
    // From now on it has both indexes.
    running.wait_for_row(|e| e["event"] == "phase" && e["side"] == "b" && e["phase"] != "starting");
    wait_until_known(&pair, "d/f");
    assert_eq!(running.stop().1, 3, "not all of it has come");
    fs::remove_file(pair.a.join("d/f")).unwrap();
    let all = fs::read_dir(pair.state()).unwrap().map(|e| e.unwrap().path());
    let of_a = all.into_iter().find(|p| p.file_name().unwrap().to_string_lossy().starts_with('a')).unwrap();
    fs::remove_dir_all(of_a).unwrap();
    pair
}

/// B has heard of the large version of the file. A running sync is asked.
fn wait_until_known(pair: &Pair, path: &str) {
    wait_until("B knows of it", || {
        let why = pair.ask(&["why".as_ref(), "--json".as_ref(), pair.b.join(path).as_os_str()]);
        match why.out.contains(&format!("\"size\":{LARGE_LEN},")) {
            true => Ok(()),
            false => Err(format!("{why:#?}")),
        }
    });
}

fn lost(pair: &Pair) -> Vec<Value> {
    let ran = pair.ask(&["lost", "--json"]);
    let rows: Vec<Value> = ran.out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(ran.code, if rows.is_empty() { 0 } else { 3 }, "{ran:#?}");
    rows
}

#[test]
fn a_version_that_died_with_its_disk_is_listed_and_given_up() {
    let pair = made_and_lost();
    let ran = pair.sync(&["--once"]);
    assert_eq!(ran.code, 3, "{ran:#?}");
    assert!(ran.out.contains("no reachable site has the content"), "{ran:#?}");
    assert_eq!(read(&pair.b, "d/f"), "old", "what B has stays");
    let rows = lost(&pair);
    assert_eq!(rows.len(), 2, "{rows:#?}");
    for row in &rows {
        assert_eq!((&row["path"]["text"], &row["size"]), (&"d/f".into(), &LARGE_LEN.into()), "{row:#?}");
        assert_eq!((&row["why"], &row["here"]), (&"absent".into(), &false.into()), "{row:#?}");
    }
    assert!(rows.iter().any(|row| row["written_by"] == "A"), "B has heard of who it was: {rows:#?}");
    let text = pair.ask(&["lost"]);
    assert!(text.out.contains("b/d/f") && text.out.contains("driftless lost accept"), "{text:#?}");
    assert_eq!(pair.ask(&["failures"]).code, 3);

    // The index that made it is gone, and so nobody can say that it does not have it.
    let path = pair.b.join("d/f");
    let path = path.to_str().unwrap();
    let refused = pair.ask(&["lost", "accept", path]);
    assert_eq!(refused.code, 1, "{refused:#?}");
    assert!(refused.err.contains("--anyway"), "{refused:#?}");
    let accepted = pair.ask(&["lost", "accept", "--anyway", path]);
    assert_eq!(accepted.code, 0, "{accepted:#?}");
    assert!(accepted.out.contains("earlier version is published again"), "{accepted:#?}");
    pair.once(&[]);
    pair.assert_same();
    assert_eq!(read(&pair.a, "d/f"), "old");
    assert_eq!(lost(&pair), Vec::<Value>::new());
    assert_eq!(pair.ask(&["lost"]).out.trim(), "nothing is lost");
    let again = pair.once(&["--json"]);
    assert_eq!(again.events("outcome")[0]["counts"][0]["recorded"], 0, "{again:#?}");
    assert_eq!(again.events("outcome")[0]["counts"][1]["applied"], 0, "{again:#?}");
    // What is not lost cannot be given up.
    assert_eq!(pair.ask(&["lost", "accept", path]).code, 1);
}

#[test]
fn it_is_given_up_while_a_sync_runs() {
    let pair = made_and_lost();
    let mut running = Running::start(&mut pair.sync_command(&["--json"]));
    running.wait_for_row(|e| e["event"] == "waiting" && e["reason"] == "content_nowhere" && e["side"] == "b");
    wait_until("both know", || match lost(&pair) {
        rows if rows.len() == 2 => Ok(()),
        rows => Err(format!("{rows:#?}")),
    });
    // By the path at the other end: what has an earlier version is found.
    let path = pair.a.join("d/f");
    let accepted = pair.ask(&["lost", "accept", "--json", "--anyway", path.to_str().unwrap()]);
    assert_eq!(accepted.code, 0, "{accepted:#?}");
    assert!(accepted.out.contains(r#""done":"republished""#), "{accepted:#?}");
    pair.wait_same("it was given up");
    assert_eq!(read(&pair.a, "d/f"), "old");
    wait_until("nothing is lost", || match lost(&pair) {
        rows if rows.is_empty() => Ok(()),
        rows => Err(format!("{rows:#?}")),
    });
    assert_eq!(running.stop().1, 0);
}

#[test]
fn it_may_be_removed_instead() {
    let pair = made_and_lost();
    assert_eq!(pair.sync(&["--once"]).code, 3);
    let path = pair.b.join("d/f");
    let accepted = pair.ask(&["lost", "accept", "--remove", "--anyway", path.to_str().unwrap()]);
    assert_eq!(accepted.code, 0, "{accepted:#?}");
    pair.once(&[]);
    pair.assert_same();
    assert_eq!(names(&pair.a.join("d")), Vec::<String>::new());
    assert_eq!(lost(&pair), Vec::<Value>::new());
}

#[test]
fn what_is_on_its_way_or_being_written_is_not_lost() {
    let pair = Pair::new();
    put(&pair.a, "first", "1");
    pair.once(&[]);
    assert_eq!(lost(&pair), Vec::<Value>::new());
    let mut running = Running::start(&mut pair.sync_command(&["--json", "--bwlimit", "1M"]));
    running.wait_for("in_sync");
    fs::write(pair.a.join("large"), vec![b'l'; LARGE_LEN]).unwrap();
    wait_until_known(&pair, "large");
    assert_eq!(lost(&pair), Vec::<Value>::new(), "on its way");
    let mut busy = File::create(pair.a.join("busy")).unwrap();
    for i in 0..20 {
        busy.write_all(&vec![i; 50_000]).unwrap();
        busy.flush().unwrap();
        assert_eq!(lost(&pair), Vec::<Value>::new(), "being written");
    }
    // Changed while it is sent.
    fs::write(pair.a.join("large"), vec![b'm'; LARGE_LEN / 4]).unwrap();
    drop(busy);
    pair.wait_same("it was written");
    assert_eq!(lost(&pair), Vec::<Value>::new());
    assert_eq!(running.stop().1, 0);
}
