//! What can be set of volumes and links while a node runs: by commands, and by its configuration.

use crate::common::*;
use crate::sites::{Site, wait_same};
use rustix::process::{Pid, Signal};
use std::fs;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Two sites with one volume, in sync.
fn two(base: &TempDir) -> (Site, Site) {
    let (oslo, bergen) = (Site::new(base.path(), "oslo"), Site::new(base.path(), "bergen"));
    oslo.ok(&["volume", "add", "data", oslo.dir.to_str().unwrap()]);
    let token = oslo.ok(&["site", "invite", "--for", "data"]);
    bergen.ok(&["site", "join", &token]);
    (oslo, bergen)
}

fn have(site: &Site, flags: &[&str]) {
    let dir = site.dir.to_str().unwrap();
    site.ok(&[&["volume", "add", "data", dir, "--from", "oslo"], flags].concat());
}

fn wait_for(site: &Site, path: &str, content: &str) {
    wait_until(&format!("{path} at {}", site.name), || match fs::read_to_string(site.dir.join(path)) {
        Ok(text) if text == content => Ok(()),
        other => Err(format!("{other:?}\n{}", site.log())),
    });
}

/// What a filter leaves out is not brought, not taken for removed, and comes when the filter goes.
#[test]
fn a_filter_may_change_and_loses_nothing() {
    let base = TempDir::new().unwrap();
    let (oslo, bergen) = two(&base);
    for path in ["a.txt", "x.bin", "keep.bin", "cache/y", "sub/cache/z", "sub/w"] {
        put(&oslo.dir, path, path);
    }
    let patterns = bergen.base.join("patterns");
    fs::write(&patterns, "# what is large\n*.bin\n!keep.bin\ncache/\n").unwrap();
    have(&bergen, &["--filter-from", patterns.to_str().unwrap()]);
    put(&bergen.dir, "own.bin", "not for others");
    for path in ["a.txt", "keep.bin", "sub/w"] {
        wait_for(&bergen, path, path);
    }
    oslo.wait_link("bergen", "in-sync");
    assert_eq!(names(&bergen.dir), ["a.txt", "keep.bin", "own.bin", "sub"]);
    assert_eq!(names(&bergen.dir.join("sub")), ["w"]);

    bergen.ok(&["volume", "config", "data", "--filter-from", "none"]);
    wait_same(&[&oslo, &bergen]);
    assert_eq!(read(&oslo.dir, "own.bin"), "not for others");

    // Left out again, it stays as it was; taking it away makes room here and removes nothing there.
    let said = bergen.ok(&["volume", "config", "data", "--filter-from", patterns.to_str().unwrap()]);
    assert!(said.contains("filter: 4 lines"), "{said}");
    wait_until("the filter to be heeded", || match bergen.log().matches("the filter has changed").count() {
        3 => Ok(()),
        n => Err(format!("{n}: {}", bergen.log())),
    });
    put(&oslo.dir, "x.bin", "edited while left out");
    put(&oslo.dir, "a.txt", "edited");
    wait_for(&bergen, "a.txt", "edited");
    assert_eq!(read(&bergen.dir, "x.bin"), "x.bin");
    fs::remove_file(bergen.dir.join("x.bin")).unwrap();
    fs::remove_file(bergen.dir.join("keep.bin")).unwrap();
    fs::remove_dir_all(bergen.dir.join("cache")).unwrap();
    wait_until("keep.bin to go", || {
        if oslo.dir.join("keep.bin").exists() { Err("it is there".into()) } else { Ok(()) }
    });
    assert_eq!(read(&oslo.dir, "cache/y"), "cache/y");
    bergen.ok(&["volume", "config", "data", "--filter-from", "none"]);
    wait_for(&bergen, "x.bin", "edited while left out");
    wait_same(&[&oslo, &bergen]);
    assert_eq!(read(&bergen.dir, "cache/y"), "cache/y");
    assert!(names(&bergen.dir).iter().all(|n| !n.contains("conflict")), "{:?}", names(&bergen.dir));
}

/// Somebody takes a directory to where the site that made its files hides it, before they came to him: it goes there, and
/// the bytes come to him all the same.
#[test]
fn what_a_filter_hides_is_kept_for_others_by_the_site_that_made_it() {
    let base = TempDir::new().unwrap();
    let (mut oslo, bergen) = two(&base);
    let patterns = oslo.base.join("patterns");
    fs::write(&patterns, "cache/\n").unwrap();
    oslo.ok(&["volume", "config", "data", "--filter-from", patterns.to_str().unwrap()]);
    have(&bergen, &[]);
    oslo.wait_link("bergen", "in-sync");
    oslo.ok(&["link", "config", "data", "--to", "bergen", "--bwlimit", "200k"]);
    // Heeded within a moment, without a new connection.
    std::thread::sleep(Duration::from_secs(1));
    let bytes = driftless_testkit::Rng::new(7).bytes(6_000_000);
    fs::create_dir(oslo.dir.join("d")).unwrap();
    wait_until("the directory to come", || {
        if bergen.dir.join("d").exists() { Ok(()) } else { Err(bergen.log()) }
    });
    fs::write(oslo.dir.join("d/x"), &bytes).unwrap();
    wait_until("the bytes to be on their way", || match bergen.link("oslo") {
        link if link["received_bytes"].as_u64().is_some_and(|n| n > 100_000) => Ok(()),
        link => Err(format!("{link}")),
    });
    fs::rename(bergen.dir.join("d"), bergen.dir.join("cache")).unwrap();
    wait_until("it to go where it is hidden", || {
        if oslo.dir.join("d").exists() { Err(oslo.log()) } else { Ok(()) }
    });
    assert!(!bergen.dir.join("cache/x").exists(), "it came too early to show anything");
    // A start knows of it as well.
    oslo.end(Signal::KILL);
    oslo.start();
    oslo.ok(&["link", "config", "data", "--to", "bergen", "--bwlimit", "none"]);
    wait_until("the bytes to come", || match fs::read(bergen.dir.join("cache/x")) {
        Ok(found) if found == bytes => Ok(()),
        other => Err(format!("{:?}\n{}\n{}", other.map(|b| b.len()), oslo.log(), bergen.log())),
    });
    assert!(!oslo.dir.join("cache").exists());
    oslo.ok(&["volume", "config", "data", "--filter-from", "none"]);
    wait_same(&[&oslo, &bergen]);
}

/// What is in a directory comes with it, whether it was ever planned here or not.
#[test]
fn a_directory_that_leaves_what_a_filter_hides_brings_all_that_is_in_it() {
    let base = TempDir::new().unwrap();
    let (oslo, bergen) = two(&base);
    let patterns = bergen.base.join("patterns");
    fs::write(&patterns, "cache/\n").unwrap();
    have(&bergen, &["--filter-from", patterns.to_str().unwrap()]);
    for path in ["cache/a", "cache/sub/b", "cache/sub/c", "d/cache/e", "d/f"] {
        put(&oslo.dir, path, path);
    }
    wait_for(&bergen, "d/f", "d/f");
    fs::rename(oslo.dir.join("cache"), oslo.dir.join("shown")).unwrap();
    fs::rename(oslo.dir.join("d/cache"), oslo.dir.join("shown/more")).unwrap();
    for (path, was) in [("shown/a", "cache/a"), ("shown/sub/c", "cache/sub/c"), ("shown/more/e", "d/cache/e")]
    {
        wait_for(&bergen, path, was);
    }
    wait_same(&[&oslo, &bergen]);
    // Removed here, while something hidden keeps it alive: it comes again.
    put(&oslo.dir, "d/cache/g", "g");
    oslo.wait_link("bergen", "in-sync");
    fs::remove_dir_all(bergen.dir.join("d")).unwrap();
    wait_until("the file to go", || {
        if oslo.dir.join("d/f").exists() { Err("it is there".into()) } else { Ok(()) }
    });
    assert_eq!(read(&oslo.dir, "d/cache/g"), "g");
    wait_until("the directory to come again", || {
        if bergen.dir.join("d").exists() { Ok(()) } else { Err(bergen.log()) }
    });
}

#[test]
fn a_link_keeps_to_what_is_set() {
    let base = TempDir::new().unwrap();
    let (oslo, bergen) = two(&base);
    have(&bergen, &[]);
    put(&oslo.dir, "first", "1");
    wait_same(&[&oslo, &bergen]);
    let link = ["link", "config", "data", "--to", "bergen"];
    let set = |flags: &[&str]| oslo.ok(&[&link[..], flags].concat());
    let said = set(&["--bwlimit", "500k", "--container-size", "1MiB", "--container-age", "5s"]);
    assert!(said.contains("bwlimit: 500k") && said.contains("container_age: 5s"), "{said}");
    oslo.fails(&[&link[..], &["--bwlimit", "fast"]].concat());
    oslo.fails(&[&link[..], &["--container-size", "1"]].concat());
    // Heeded within a moment, without a new connection.
    std::thread::sleep(Duration::from_secs(1));
    let started = Instant::now();
    fs::write(oslo.dir.join("random"), driftless_testkit::Rng::new(6).bytes(6_000_000)).unwrap();
    wait_until("the time that is left to be known", || match oslo.link("bergen") {
        link if link["time_left_s"].as_u64().is_some_and(|s| s > 0) => Ok(()),
        link => Err(format!("{link}")),
    });
    let left_s = oslo.link("bergen")["time_left_s"].as_u64().unwrap_or(0);
    assert!(left_s < 60, "{left_s} s for 6 MB");
    wait_same(&[&oslo, &bergen]);
    assert!(started.elapsed() > Duration::from_millis(9000), "6 MB at 500 kB/s took {:?}", started.elapsed());
    set(&["--bwlimit", "none", "--bwlimit-schedule", "daily 00:00,off", "--compress", "lz4"]);
    fs::write(oslo.dir.join("text"), "what is written twice is shorter ".repeat(30_000)).unwrap();
    wait_same(&[&oslo, &bergen]);
    set(&["--compress", "none"]);
    put(&oslo.dir, "plain", "2");
    wait_same(&[&oslo, &bergen]);
}

/// Bytes received by `at` from oslo, and when.
fn received(at: &Site) -> (u64, Instant) {
    (at.link("oslo")["received_bytes"].as_u64().unwrap(), Instant::now())
}

/// Bytes per second that a site receives from oslo, over so long.
fn rate(at: &Site, over: Duration) -> f64 {
    let (before, began) = received(at);
    std::thread::sleep(over);
    let (after, ended) = received(at);
    (after - before) as f64 / ended.duration_since(began).as_secs_f64()
}

/// Takes a minute and a half: by command only.
#[test]
#[ignore = "measures for 90 s"]
fn limits_are_kept_within_five_percent_and_schedules_switch_on_time() {
    const LIMIT: f64 = 500_000.0;
    let base = TempDir::new().unwrap();
    let (oslo, bergen) = two(&base);
    have(&bergen, &[]);
    put(&oslo.dir, "first", "1");
    wait_same(&[&oslo, &bergen]);
    let link = ["link", "config", "data", "--to", "bergen"];
    oslo.ok(&[&link[..], &["--bwlimit", "500k"]].concat());
    fs::write(oslo.dir.join("random"), driftless_testkit::Rng::new(6).bytes(80_000_000)).unwrap();
    wait_until("it to be on its way", || match received(&bergen).0 {
        n if n > 1_000_000 => Ok(()),
        n => Err(format!("{n}")),
    });
    let over_30_s = rate(&bergen, Duration::from_secs(30));
    println!("a limit of 500 kB/s: {over_30_s:.0} B/s over 30 s");
    assert!((LIMIT * 0.95..LIMIT * 1.05).contains(&over_30_s), "{over_30_s}");

    // From the next minute on, but not the one that is about to begin.
    let now_s = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let wait_s = if now_s % 60 > 50 { 120 - now_s % 60 } else { 60 - now_s % 60 };
    let switch = Instant::now() + Duration::from_secs(wait_s);
    // The clock that schedules are read by.
    let text =
        run(std::process::Command::new("date").args(["-d", &format!("@{}", now_s + wait_s), "+%H:%M"])).out;
    let schedule = format!("daily 00:00,500k {},1M", text.trim());
    oslo.ok(&[&link[..], &["--bwlimit", "none", "--bwlimit-schedule", &schedule]].concat());
    let before = rate(&bergen, switch.saturating_duration_since(Instant::now() + Duration::from_secs(1)));
    std::thread::sleep(switch.saturating_duration_since(Instant::now()) + Duration::from_secs(2));
    let after = rate(&bergen, Duration::from_secs(10));
    println!("{schedule}: {before:.0} B/s until a second before, {after:.0} B/s from two seconds after");
    assert!((LIMIT * 0.9..LIMIT * 1.1).contains(&before), "{before}");
    assert!((LIMIT * 1.9..LIMIT * 2.1).contains(&after), "{after}");
}

#[test]
fn the_configuration_is_read_again() {
    let base = TempDir::new().unwrap();
    let (oslo, mut bergen) = two(&base);
    have(&bergen, &[]);
    for i in 0..6 {
        put(&oslo.dir, &format!("f{i}"), "1");
    }
    wait_same(&[&oslo, &bergen]);
    let config = bergen.base.join("driftless.toml");
    let with = |text: &str| fs::write(&config, format!("[volume.data]\n{text}\n")).unwrap();
    with("trash_keep = \"1d\"");
    bergen.end(Signal::TERM);
    bergen.start();
    fs::remove_file(oslo.dir.join("f0")).unwrap();
    wait_same(&[&oslo, &bergen]);
    let trash = bergen.dir.join(".driftless/trash");
    wait_until("f0 in the trash", || match fs::read_dir(&trash).map(Iterator::count) {
        Ok(n) if n > 0 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    with("max_delete = \"2\"\n[volume.data.link.oslo]\nbwlimit = \"9M\"");
    let hup = || {
        let pid = Pid::from_child(bergen.node.as_ref().unwrap());
        rustix::process::kill_process(pid, Signal::HUP).unwrap();
    };
    hup();
    wait_until("the settings to change", || match bergen.ok(&["volume", "config", "data"]) {
        said if said.contains("max_delete: 2") => Ok(()),
        said => Err(said),
    });
    assert!(bergen.ok(&["link", "config", "data", "--to", "oslo"]).contains("bwlimit: 9M"));
    // Heeded with the next round.
    wait_until("the volume to be opened again", || match bergen.log().matches("connected to").count() {
        n if n >= 3 => Ok(()),
        n => Err(format!("{n}: {}", bergen.log())),
    });
    (1..5).for_each(|i| fs::remove_file(bergen.dir.join(format!("f{i}"))).unwrap());
    wait_until("the guard to hold it", || match bergen.try_status().unwrap()["volumes"][0]["waiting_items"]
        .as_u64()
    {
        Some(n) if n > 0 => Ok(()),
        other => Err(format!("{other:?}\n{}", bergen.log())),
    });
    assert!(oslo.dir.join("f1").exists());
    with("max_delete = \"x\"");
    hup();
    wait_until("the mistake to be told", || match bergen.log() {
        log if log.contains("volume.data: max_delete") => Ok(()),
        log => Err(log),
    });
    assert!(bergen.ok(&["volume", "config", "data"]).contains("max_delete: 2"), "it goes on as it was");
}

/// A volume that is removed and had again in another directory at once is filled there.
#[test]
fn a_volume_may_move_to_another_directory() {
    let base = TempDir::new().unwrap();
    let (oslo, bergen) = two(&base);
    have(&bergen, &[]);
    put(&oslo.dir, "f", "1");
    wait_same(&[&oslo, &bergen]);
    let new = bergen.base.join("new");
    fs::create_dir(&new).unwrap();
    bergen.ok(&["volume", "remove", "data"]);
    bergen.ok(&["volume", "add", "data", new.to_str().unwrap(), "--from", "oslo"]);
    wait_until("f in the new directory", || match fs::read(new.join("f")) {
        Ok(bytes) if bytes == b"1" => Ok(()),
        other => Err(format!("{other:?}\n{}", bergen.log())),
    });
    assert_eq!(read(&bergen.dir, "f"), "1", "the old one stays");
}
