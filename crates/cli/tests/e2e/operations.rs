//! What operators ask of running nodes: why, flush, failures, conflicts, and the change feed.

use crate::common::*;
use crate::sites::{Site, wait_same};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::time::Duration;
use tempfile::TempDir;

/// Sites in a row, each linked to the next, all with the volume `data`.
fn chain(base: &TempDir, names: &[&str]) -> Vec<Site> {
    let sites: Vec<Site> = names.iter().map(|name| Site::new(base.path(), name)).collect();
    sites[0].ok(&["volume", "add", "data", sites[0].dir.to_str().unwrap()]);
    for pair in sites.windows(2) {
        let token = pair[0].ok(&["site", "invite", "--for", "data"]);
        let dir = format!("data={}", pair[1].dir.display());
        pair[1].ok(&["site", "join", &token, "--dir", &dir]);
    }
    sites
}

/// What a command prints, line by line, and how it exits.
fn rows(site: &Site, args: &[&str]) -> (i32, Vec<Value>) {
    let ran = run(site.command().args(args));
    let rows = ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (ran.code, rows)
}

fn of<'a>(rows: &'a [Value], site: &str) -> &'a Value {
    rows.iter().find(|row| row["site"] == site).unwrap_or_else(|| panic!("{site}: {rows:?}"))
}

#[test]
fn questions_reach_every_site() {
    let base = TempDir::new().unwrap();
    let mut sites = chain(&base, &["oslo", "bergen", "tromso"]);
    put(&sites[0].dir, "f", "1");
    let said = sites[0].ok(&["flush", "data"]);
    assert!(said.starts_with("data: done, every site holds"), "{said}");
    assert_eq!(read(&sites[2].dir, "f"), "1", "it is there when flush says so");
    let (code, why) = rows(&sites[0], &["why", "--volume", "data", "f", "--json"]);
    assert_eq!(code, 0, "{why:?}");
    for site in ["oslo", "bergen", "tromso"] {
        assert_eq!(of(&why, site)["newest"], true, "{why:?}");
    }

    // Somebody at the far end has it open for writing: it is named, from here.
    let open = fs::File::options().append(true).open(sites[2].dir.join("f")).unwrap();
    put(&sites[0].dir, "f", "2");
    wait_until("tromso to say why not", || {
        let (code, why) = rows(&sites[0], &["why", "--volume", "data", "f", "--json"]);
        let tromso = of(&why, "tromso");
        match tromso["why"]["waits"][0]["reason"] == "busy" && tromso["newest"] == false && code == 3 {
            true => Ok(()),
            false => Err(format!("{why:?}")),
        }
    });
    let text = run(sites[0].command().args(["why", "--volume", "data", "f"])).out;
    assert!(text.contains("has not the newest version") && text.contains("tried again"), "{text}");
    put(&sites[0].dir, "g", "goes on all the same");
    let (code, done) = rows(&sites[0], &["flush", "data", "--json"]);
    assert_eq!((code, &done[0]["reached"]), (3, &Value::Bool(true)), "{done:?}");
    assert_eq!(of(done[0]["sites"].as_array().unwrap(), "tromso")["waiting"], 1, "{done:?}");
    assert_eq!(read(&sites[2].dir, "g"), "goes on all the same");
    let failures = run(sites[2].command().args(["failures", "--volume", "data"]));
    assert!(failures.code == 3 && failures.out.contains("data/f"), "{failures:?}");
    drop(open);
    sites[2].ok(&["failures", "--retry", "--volume", "data"]);
    wait_same(&[&sites[0], &sites[1], &sites[2]]);
    sites[0].ok(&["link", "checkpoint", "data", "--to", "bergen"]);

    // A dead site is named, and what is behind it.
    sites[1].end(Signal::KILL);
    put(&sites[0].dir, "h", "3");
    let took = time_until("bergen to be named", || {
        match rows(&sites[0], &["why", "--volume", "data", "h", "--json"]).1 {
            why if of(&why, "bergen")["link"] == "unreachable" => Ok(()),
            why => Err(format!("{why:?}")),
        }
    });
    assert!(took < Duration::from_secs(10), "named after {took:?}");
    let (code, done) =
        rows(&sites[0], &["link", "checkpoint", "data", "--to", "bergen", "--timeout", "1s", "--json"]);
    assert_eq!((code, &done[0]["sites"][0]["at"]), (3, &Value::from("unreachable")), "{done:?}");
    sites[1].start();
    sites[0].ok(&["flush"]);
    assert_eq!(read(&sites[2].dir, "h"), "3");
}

/// A node that stands still, with its connections open, is found out.
#[test]
fn a_frozen_site_is_named() {
    let base = TempDir::new().unwrap();
    let sites = chain(&base, &["oslo", "bergen"]);
    put(&sites[0].dir, "f", "1");
    sites[0].ok(&["flush"]);
    let pid = rustix::process::Pid::from_child(sites[1].node.as_ref().unwrap());
    rustix::process::kill_process(pid, Signal::STOP).unwrap();
    put(&sites[0].dir, "f", "2");
    let took = time_until("bergen to be named", || match sites[0].link("bergen") {
        link if link["state"] == "unreachable" || link["state"] == "stalled" => Ok(()),
        link => Err(format!("{link}")),
    });
    let lag = sites[0].link("bergen")["lag_ms"].as_u64().unwrap();
    grows(&sites[0], "bergen");
    rustix::process::kill_process(pid, Signal::CONT).unwrap();
    assert!(took < Duration::from_secs(10), "named after {took:?}");
    assert!(u128::from(lag) + 2000 > took.as_millis(), "behind by {lag} ms after {took:?}");
    sites[0].ok(&["flush"]);
}

/// The lag of a site that says nothing is never nothing, and grows.
fn grows(at: &Site, to: &str) {
    let first = at.link(to)["lag_ms"].as_u64().unwrap();
    assert!(first > 0);
    wait_until("the lag to grow", || match at.link(to)["lag_ms"].as_u64() {
        Some(ms) if ms > first => Ok(()),
        other => Err(format!("{other:?} after {first}")),
    });
}

/// Where nothing changes, nothing goes but signs of life.
#[test]
fn a_quiet_system_sends_only_heartbeats() {
    const OVER: std::time::Duration = std::time::Duration::from_secs(8);
    let base = TempDir::new().unwrap();
    let sites = chain(&base, &["oslo", "bergen", "tromso"]);
    (0..100).for_each(|i| put(&sites[0].dir, &format!("d/{i}"), &format!("{i}")));
    sites[0].ok(&["flush"]);
    let sent = || -> u64 {
        [(0, "bergen"), (1, "oslo"), (1, "tromso"), (2, "bergen")]
            .iter()
            .map(|(i, to)| sites[*i].link(to)["sent_bytes"].as_u64().unwrap())
            .sum()
    };
    // What was done last is told once more: held, and what is known of others.
    let mut before = sent();
    wait_until("what there was to be over", || {
        std::thread::sleep(std::time::Duration::from_secs(3));
        let now = sent();
        let quiet = now - std::mem::replace(&mut before, now) < 200;
        if quiet { Ok(()) } else { Err(format!("{now}")) }
    });
    std::thread::sleep(OVER);
    let bytes = sent() - before;
    // Of each of four ends: three heartbeats of at most 12 bytes, four empty control frames of 6; one more of each by chance.
    assert!(bytes > 0 && bytes < 4 * (4 * 12 + 5 * 6), "{bytes} bytes within {OVER:?}");
}

/// A node whose connections live on while its volume stands still: nothing goes through the data path any more.
#[test]
fn a_frozen_feed_is_named() {
    let base = TempDir::new().unwrap();
    let mut sites = chain(&base, &["oslo", "bergen"]);
    put(&sites[0].dir, "f", "1");
    sites[0].ok(&["flush"]);
    sites[1].end(Signal::TERM);
    let frozen = base.path().join("frozen");
    fs::write(&frozen, "").unwrap();
    let hook = format!("while [ -e '{}' ]; do sleep 0.05; done", frozen.display());
    let point = driftless_volume::crash::Point::Merged.name();
    sites[1].env =
        vec![("DRIFTLESS_CRASH_AT".into(), format!("{point}:1")), ("DRIFTLESS_CRASH_HOOK".into(), hook)];
    sites[1].start();
    put(&sites[0].dir, "f", "2");
    wait_until("bergen's volume to stand still", || match sites[1].log() {
        log if log.contains("crash point") => Ok(()),
        log => Err(log),
    });
    let took = time_until("bergen to be named", || match sites[0].link("bergen") {
        link if link["state"] == "stalled" => Ok(()),
        link => Err(format!("{link}\n{}", sites[0].log())),
    });
    assert!(took < Duration::from_secs(10), "named after {took:?}");
    grows(&sites[0], "bergen");
    assert!(sites[0].try_status().unwrap()["verdict"].as_str().unwrap().contains("stalled: bergen of data"));
    sites[1].env.clear();
    fs::remove_file(&frozen).unwrap();
    // It ends itself there.
    sites[1].node.take().unwrap().wait().unwrap();
    sites[1].start();
    sites[0].ok(&["flush"]);
    assert_eq!(read(&sites[1].dir, "f"), "2");
}

/// What somebody has said not to try again is listed, counted apart, and tried when it changes or somebody says so.
#[test]
fn what_is_skipped_waits_for_another_version() {
    let base = TempDir::new().unwrap();
    let sites = chain(&base, &["oslo", "bergen"]);
    put(&sites[0].dir, "d/f", "1");
    sites[0].ok(&["flush"]);
    let bergen = &sites[1];
    let failure = || {
        let (_, failures) = rows(bergen, &["failures", "--volume", "data", "--json"]);
        failures.into_iter().find(|row| row["path"]["text"] == "d/f")
    };
    let waits = || {
        wait_until("d/f to wait", || match failure() {
            Some(row) if row["reason"] == "busy" => Ok(()),
            other => Err(format!("{other:?}")),
        });
    };
    let goes_round = |name: &str| {
        put(&sites[0].dir, name, "round");
        wait_until("another file to come", || {
            if bergen.dir.join(name).exists() { Ok(()) } else { Err(bergen.log()) }
        });
    };
    let open = fs::File::options().append(true).open(bergen.dir.join("d/f")).unwrap();
    put(&sites[0].dir, "d/f", "2");
    waits();
    let skip = ["failures", "--volume", "data", "--skip"];
    assert!(bergen.fails(&[&skip[..], &["d/nothing"]].concat()).contains("nothing waits under d/nothing"));
    let said = bergen.ok(&[&skip[..], &["d/f"]].concat());
    assert!(said.contains("d/f is not tried any more (1 entry)"), "{said}");
    assert_eq!(failure().unwrap()["skipped"], true);
    assert!(run(bergen.command().args(["failures", "--volume", "data"])).out.contains(", skipped)"));
    wait_until("it to be counted", || match bergen.get("/metrics") {
        page if page.contains("driftless_skipped_items{volume=\"data\"} 1")
            && page.contains("driftless_waiting_by_reason_items{volume=\"data\",reason=\"busy\"} 1") =>
        {
            Ok(())
        }
        page => Err(page),
    });
    assert_eq!(run(bergen.command().args(["status"])).code, 0, "somebody knows of it");
    // Its cause goes: nobody looks.
    drop(open);
    goes_round("one");
    assert_eq!(read(&bergen.dir, "d/f"), "1");
    // Another version comes.
    put(&sites[0].dir, "d/f", "3");
    wait_same(&[&sites[0], bergen]);
    assert_eq!(failure(), None);

    // By its id, over a restart, and until somebody says so.
    let open = fs::File::options().append(true).open(bergen.dir.join("d/f")).unwrap();
    put(&sites[0].dir, "d/f", "4");
    waits();
    let id = failure().unwrap()["entry"].as_str().unwrap().to_owned();
    bergen.ok(&[&skip[..], &[id.as_str()]].concat());
    let mut sites = sites;
    sites[1].end(Signal::TERM);
    sites[1].start();
    let bergen = &sites[1];
    drop(open);
    sites[0].wait_link("bergen", "catching-up");
    let (_, failures) = rows(bergen, &["failures", "--volume", "data", "--json"]);
    assert!(failures.iter().all(|row| row["skipped"] == true) && failures.len() == 1, "{failures:?}");
    bergen.ok(&["failures", "--volume", "data", "--retry"]);
    wait_same(&[&sites[0], bergen]);
}

/// Any site can say who wrote which version of a conflict, and where they differ.
#[test]
fn a_conflict_is_shown() {
    let base = TempDir::new().unwrap();
    let sites = chain(&base, &["oslo", "bergen"]);
    put(&sites[0].dir, "d/report.txt", "first");
    sites[0].ok(&["flush"]);
    sites[0].ok(&["link", "pause", "data", "--to", "bergen"]);
    put(&sites[0].dir, "d/report.txt", "line 1\nline 2 by oslo\n");
    put(&sites[1].dir, "d/report.txt", "line 1\nline 2 by bergen\n");
    sites[0].ok(&["link", "resume", "data", "--to", "bergen"]);
    wait_until("the copy", || match copies(&sites[0].dir.join("d")).len() {
        1 => Ok(()),
        n => Err(format!("{n}: {}", sites[0].log())),
    });
    wait_same(&[&sites[0], &sites[1]]);
    let copy = format!("d/{}", copies(&sites[0].dir.join("d"))[0]);
    for (site, path) in [(&sites[0], "d/report.txt"), (&sites[1], "d/report.txt"), (&sites[1], copy.as_str())]
    {
        let (code, shown) = rows(site, &["conflicts", "show", "--volume", "data", path, "--json"]);
        assert_eq!((code, shown.len()), (0, 2), "{shown:?}");
        assert_eq!(
            (&shown[0]["wins"], &shown[0]["path"]["text"]),
            (&Value::Bool(true), &"d/report.txt".into())
        );
        assert_eq!(shown[1]["path"]["text"], copy.as_str());
        let mut by: Vec<&str> = shown.iter().map(|row| row["written_by"].as_str().unwrap()).collect();
        by.sort_unstable();
        assert_eq!(by, ["bergen", "oslo"], "{shown:?}");
        assert_eq!(
            shown[1]["first_difference"],
            serde_json::json!({ "at_byte": 17, "line": 2 }),
            "{shown:?}"
        );
    }
    let text = sites[1].ok(&["conflicts", "show", "--volume", "data", "d/report.txt"]);
    assert!(text.contains("differs first at byte 17 (line 2)"), "{text}");
    let none = run(sites[0].command().args(["conflicts", "show", "--volume", "data", "d"]));
    assert!(none.code == 1 && none.err.contains("is in no conflict"), "{none:?}");
}

#[test]
fn the_change_feed_is_read_on_where_it_was_left() {
    let base = TempDir::new().unwrap();
    let sites = chain(&base, &["oslo", "bergen"]);
    put(&sites[0].dir, "d/f", "1");
    sites[0].ok(&["flush"]);
    let changes = ["changes", "--volume", "data", "--cursor", "backup", "--json"];
    let (_, first) = rows(&sites[1], &changes);
    assert!(first.iter().any(|row| row["path"]["text"] == "d/f"), "{first:?}");
    assert_eq!(rows(&sites[1], &changes).1, Vec::<Value>::new());
    put(&sites[0].dir, "g", "2");
    put(&sites[0].dir, "d/f", "changed");
    sites[0].ok(&["flush"]);
    let (_, next) = rows(&sites[1], &changes);
    let paths: Vec<&str> = next.iter().filter_map(|row| row["path"]["text"].as_str()).collect();
    assert!(paths.contains(&"g") && paths.contains(&"d/f") && !paths.contains(&"d/h"), "{paths:?}");

    let get = |path: &str| -> (String, Value) {
        let text = sites[1].get(path);
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), serde_json::from_str(body).unwrap_or(Value::Null))
    };
    let (head, page) = get("/volumes/data/changes?after=0&limit=2");
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("application/json"), "{head}");
    assert_eq!(page["changes"].as_array().unwrap().len(), 2);
    let mut after = page["next"].as_u64().unwrap();
    while after < page["head"].as_u64().unwrap() {
        after = get(&format!("/volumes/data/changes?after={after}&limit=2")).1["next"].as_u64().unwrap();
    }
    let feed = page["feed"].as_str().unwrap();
    std::thread::scope(|scope| {
        let waits =
            scope.spawn(|| get(&format!("/volumes/data/changes?after={after}&feed={feed}&wait=50")).1);
        put(&sites[0].dir, "live", "3");
        let page = waits.join().unwrap();
        assert!(page["next"].as_u64().unwrap() > after, "{page}");
    });
    for (path, status) in [
        ("/volumes/data/changes?after=0&feed=other", "409"),
        ("/volumes/data/changes?after=99999999", "409"),
        ("/volumes/data/changes?after=x", "400"),
        ("/volumes/nothing/changes", "503"),
        ("/volumes/data", "404"),
    ] {
        assert!(get(path).0.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {}", get(path).0);
    }
    let page = sites[1].get("/metrics");
    assert!(page.contains("driftless_propagation_seconds_bucket{volume=\"data\",le=\"+Inf\"}"), "{page}");
}
