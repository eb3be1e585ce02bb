//! Joining with care: what would be if a site joined, and from whom it takes everything first.

use crate::common::*;
use crate::sites::{Site, wait_same};
use serde_json::Value;
use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use tempfile::TempDir;

fn classes(rows: &str) -> (Value, BTreeMap<String, String>) {
    let mut rows = rows.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let counts = rows.next().unwrap();
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    (counts, rows.map(|row| (text(&row["path"]["text"]), text(&row["class"]))).collect())
}

#[test]
fn a_join_is_tried_first() {
    let base = TempDir::new().unwrap();
    let (oslo, bergen) = (Site::new(base.path(), "oslo"), Site::new(base.path(), "bergen"));
    for site in [&oslo, &bergen] {
        put(&site.dir, "same", "alike");
        put(&site.dir, "d/same", "alike too");
        put(&site.dir, "kind", "a file");
        symlink("same", site.dir.join("link")).unwrap();
    }
    put(&oslo.dir, "d/other", "by oslo");
    put(&bergen.dir, "d/other", "by mine");
    put(&oslo.dir, "there/f", "comes");
    put(&bergen.dir, "here/f", "goes");
    std::fs::remove_file(bergen.dir.join("kind")).unwrap();
    symlink("same", bergen.dir.join("kind")).unwrap();
    oslo.ok(&["volume", "add", "data", oslo.dir.to_str().unwrap()]);
    oslo.ok(&["flush", "data"]);
    let token = oslo.ok(&["site", "invite", "--for", "data"]);
    let dir = format!("data={}", bergen.dir.display());
    let before = (oslo.try_status().unwrap(), fingerprints(&bergen.dir));

    wait_until(
        "oslo to have looked at its tree",
        || match oslo.try_status().unwrap()["volumes"][0]["scanned"] {
            Value::Bool(true) => Ok(()),
            _ => Err(oslo.log()),
        },
    );
    let tried = ["site", "join", &token, "--dir", &dir, "--dry-run"];
    let (counts, found) = classes(&bergen.ok(&[&tried[..], &["--json"]].concat()));
    for (path, class) in [
        ("same", "equal"),
        ("d", "equal"),
        ("d/same", "equal"),
        ("link", "equal"),
        ("d/other", "different"),
        ("kind", "different"),
        ("there", "only-there"),
        ("there/f", "only-there"),
        ("here", "only-here"),
        ("here/f", "only-here"),
    ] {
        assert_eq!(found.get(path).map(String::as_str), Some(class), "{path}: {found:?}");
    }
    assert_eq!(found.len(), 10, "{found:?}");
    for (what, n) in [("equal", 4), ("only_here", 2), ("only_there", 2), ("different", 2)] {
        assert_eq!(counts[what], n, "{counts}");
    }
    let text = bergen.ok(&tried);
    assert!(text.contains("only here   here/f") && !text.contains("equal       same"), "{text}");
    assert!(bergen.ok(&[&tried[..], &["--all"]].concat()).contains("equal       same"));
    let offered = bergen.ok(&["site", "join", &token, "--dry-run"]);
    assert!(offered.contains("oslo offers volume data"), "{offered}");
    assert!(
        bergen.fails(&["site", "join", &token, "--dir", "x=/nowhere", "--dry-run"]).contains("is for: data")
    );

    // Nothing has changed: neither here nor there, nor is the invitation used up.
    let after = oslo.try_status().unwrap();
    assert_eq!(after["sites"], before.0["sites"]);
    assert_eq!(after["volumes"][0]["members"], before.0["volumes"][0]["members"]);
    assert_eq!(bergen.try_status().unwrap()["volumes"], serde_json::json!([]));
    assert_eq!(fingerprints(&bergen.dir), before.1);
    assert!(!bergen.dir.join(".driftless").exists());
    let wrong = format!("{}{}", &token[..token.len() - 4], "0000");
    assert!(bergen.fails(&["site", "join", &wrong, "--dry-run"]).contains("not known here"));

    // And it comes as was said.
    bergen.ok(&["site", "join", &token, "--dir", &dir]);
    wait_same(&[&oslo, &bergen]);
    assert_eq!(read(&oslo.dir, "here/f"), "goes");
    assert_eq!(copies(&oslo.dir.join("d")).len(), 1);
    assert!(oslo.fails(&["site", "join", &token, "--dry-run"]).contains("by this very site"));
}

/// Two sites have everything; the third takes it from the one that it was told to, though the other has invited it.
#[test]
fn contents_come_from_the_seed_first() {
    const LEN: usize = 6 << 20;
    let base = TempDir::new().unwrap();
    let [oslo, bergen, tromso] = ["oslo", "bergen", "tromso"].map(|name| Site::new(base.path(), name));
    let mut noise = 7u64;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (noise >> 56) as u8
    })
    .take(LEN)
    .collect();
    std::fs::write(oslo.dir.join("big"), bytes).unwrap();
    (0..50).for_each(|i| put(&oslo.dir, &format!("d/{i}"), &"x".repeat(1000 + i)));
    oslo.ok(&["volume", "add", "data", oslo.dir.to_str().unwrap()]);
    let token = oslo.ok(&["site", "invite", "--for", "data"]);
    bergen.ok(&["site", "join", &token, "--dir", &format!("data={}", bergen.dir.display())]);
    wait_same(&[&oslo, &bergen]);
    oslo.wait_link("bergen", "in-sync");

    let token = oslo.ok(&["site", "invite", "--for", "data"]);
    let dir = format!("data={}", tromso.dir.display());
    let join = ["site", "join", &token, "--dir", &dir, "--seed-from"];
    let refused = tromso.fails(&[&join[..], &["narvik"]].concat());
    assert!(refused.contains("narvik is no member of volume data; its members are:"), "{refused}");
    assert!(refused.contains("still good"), "{refused}");
    tromso.ok(&[&join[..], &["bergen"]].concat());
    wait_same(&[&oslo, &tromso]);
    tromso.wait_link("oslo", "in-sync");
    tromso.wait_link("bergen", "in-sync");
    let received = |from| tromso.link(from)["received_bytes"].as_u64().unwrap();
    assert!(received("bergen") > LEN as u64, "{}", tromso.try_status().unwrap());
    assert!(received("oslo") < LEN as u64 / 4, "{}", tromso.try_status().unwrap());
    assert_eq!(tromso.try_status().unwrap()["volumes"][0]["seed_from"], Value::Null);
    assert!(tromso.log().contains("everything that bergen has is here"), "{}", tromso.log());
}
