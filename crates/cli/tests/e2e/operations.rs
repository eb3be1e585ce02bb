//! What operators ask of running nodes: why, flush, failures, conflicts, and the change feed.

use crate::common::*;
use crate::sites::{Site, wait_same};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::time::{Duration, Instant};
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
    let killed = Instant::now();
    put(&sites[0].dir, "h", "3");
    wait_until("bergen to be named", || {
        match rows(&sites[0], &["why", "--volume", "data", "h", "--json"]).1 {
            why if of(&why, "bergen")["link"] == "unreachable" => Ok(()),
            why => Err(format!("{why:?}")),
        }
    });
    assert!(killed.elapsed() < Duration::from_secs(20), "named after {:?}", killed.elapsed());
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
    let frozen = Instant::now();
    put(&sites[0].dir, "f", "2");
    wait_until("bergen to be named", || match sites[0].link("bergen") {
        link if link["state"] == "unreachable" || link["state"] == "stalled" => Ok(()),
        link => Err(format!("{link}")),
    });
    let took = frozen.elapsed();
    let lag = sites[0].link("bergen")["lag_ms"].as_u64().unwrap();
    rustix::process::kill_process(pid, Signal::CONT).unwrap();
    assert!(took < Duration::from_secs(20), "named after {took:?}");
    assert!(u128::from(lag) + 2000 > took.as_millis(), "behind by {lag} ms after {took:?}");
    sites[0].ok(&["flush"]);
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
