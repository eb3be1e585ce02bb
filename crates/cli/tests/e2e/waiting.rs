//! What cannot be done is listed with path, reason and what to do; everything else is done; and it is done
//! itself once its cause is gone.

use crate::common::*;
use rustix::fs::IFlags;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A directory that nobody, not even root, can write to; writable again when dropped.
pub(crate) struct Closed(PathBuf);

impl Closed {
    pub(crate) fn close(dir: &Path) -> Option<Closed> {
        set_immutable(dir, true);
        fs::set_permissions(dir, fs::Permissions::from_mode(0o555)).ok();
        let closed = Closed(dir.to_owned());
        if File::create(dir.join("probe")).is_ok() {
            eprintln!("skipped: nothing closes a directory to this user here");
            return None;
        }
        Some(closed)
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        set_immutable(&self.0, false);
        fs::set_permissions(&self.0, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

fn set_immutable(dir: &Path, on: bool) {
    let dir = File::open(dir).unwrap();
    if let Ok(mut flags) = rustix::fs::ioctl_getflags(&dir) {
        flags.set(IFlags::IMMUTABLE, on);
        let _ = rustix::fs::ioctl_setflags(&dir, flags);
    }
}

#[test]
fn an_unwritable_directory_holds_up_only_itself() {
    let pair = Pair::new();
    put(&pair.a, "closed/first", "1");
    pair.once(&[]);
    let Some(closed) = Closed::close(&pair.b.join("closed")) else { return };
    put(&pair.a, "closed/second", "2");
    put(&pair.a, "open/third", "3");
    let ran = pair.sync(&["--once"]);
    assert_eq!(ran.code, 3, "{ran:#?}");
    assert!(ran.out.contains("closed/second") && ran.out.contains("What to do:"), "{ran:#?}");
    assert_eq!(read(&pair.b, "open/third"), "3");
    let listed = pair.ask(&["failures"]);
    assert_eq!(listed.code, 3, "{listed:#?}");
    assert!(listed.out.contains("closed/second") && listed.out.contains("what to do:"), "{listed:#?}");
    let mut path = pair.b.clone();
    path.push("closed/second");
    let why = pair.ask(&["why".as_ref(), path.as_os_str()]);
    assert!(why.out.contains("Waits:"), "{why:#?}");

    drop(closed);
    pair.once(&[]);
    pair.assert_same();
    assert_eq!(pair.ask(&["failures"]).code, 0);
}

#[test]
fn a_running_sync_tries_again_by_itself() {
    let pair = Pair::new();
    put(&pair.a, "closed/first", "1");
    pair.once(&[]);
    let Some(closed) = Closed::close(&pair.b.join("closed")) else { return };
    let mut running = pair.start(&[]);
    put(&pair.a, "closed/second", "2");
    // The directory itself may wait too, for its time.
    running.wait_for_row(|e| e["event"] == "waiting" && e["path"]["text"] == "closed/second");
    drop(closed);
    wait_until("the cause is gone", || match pair.b.join("closed/second").exists() {
        true => Ok(()),
        false => Err("not there".into()),
    });
    running.wait_for_row(|e| e["event"] == "resolved" && e["path"]["text"] == "closed/second");
    assert_eq!(running.stop().1, 0);
}

#[test]
fn an_unreadable_file_is_listed_and_the_rest_goes() {
    let pair = Pair::new();
    put(&pair.a, "secret", "1");
    put(&pair.a, "open", "2");
    fs::set_permissions(pair.a.join("secret"), fs::Permissions::from_mode(0o000)).unwrap();
    if File::open(pair.a.join("secret")).is_ok() {
        eprintln!("skipped: this user may read everything");
        return;
    }
    let ran = pair.sync(&["--once"]);
    assert_eq!(ran.code, 3, "{ran:#?}");
    assert!(ran.out.contains("secret"), "{ran:#?}");
    assert_eq!(read(&pair.b, "open"), "2");
    fs::set_permissions(pair.a.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    pair.once(&[]);
    pair.assert_same();
}

/// Sets or clears a flag of `chattr`; false, and says so, where that cannot be done.
fn flag(path: &Path, flag: IFlags, on: bool) -> bool {
    let file = File::open(path).unwrap();
    let Ok(mut flags) = rustix::fs::ioctl_getflags(&file) else {
        eprintln!("skipped: no flags here");
        return false;
    };
    flags.set(flag, on);
    let done = rustix::fs::ioctl_setflags(&file, flags).is_ok();
    if !done {
        eprintln!("skipped: this user may not set flags here");
    }
    done
}

/// Flags that are gone when this is dropped: a directory that has one could not be removed.
struct Flagged(Vec<(PathBuf, IFlags)>);

impl Drop for Flagged {
    fn drop(&mut self) {
        for (path, what) in &self.0 {
            flag(path, *what, false);
        }
    }
}

/// What a run before it could not do is planned as all else, and no further try of it is waited for.
#[test]
fn a_dry_run_ends_while_something_waits() {
    let pair = Pair::new();
    put(&pair.a, "fixed", "1");
    pair.once(&[]);
    if !flag(&pair.b.join("fixed"), IFlags::IMMUTABLE, true) {
        return;
    }
    let flagged = Flagged(vec![(pair.b.join("fixed"), IFlags::IMMUTABLE)]);
    put(&pair.a, "fixed", "2");
    assert_eq!(pair.sync(&["--once"]).code, 3);
    let plan = pair.sync(&["--dry-run", "--json"]);
    assert_eq!(plan.code, 0, "{plan:#?}");
    assert!(plan.events("step").iter().any(|step| step["path"]["text"] == "fixed"), "{plan:#?}");
    drop(flagged);
    pair.once(&[]);
    pair.assert_same();
}

#[test]
fn flagged_targets_wait_alone_and_arrive_when_the_flag_goes() {
    let pair = Pair::new();
    for name in ["append", "fixed", "moved", "removed", "chmod", "log/old"] {
        put(&pair.a, name, "1");
    }
    pair.once(&[]);
    let mut flags = Vec::new();
    for (name, what) in [
        ("append", IFlags::APPEND),
        ("fixed", IFlags::IMMUTABLE),
        ("moved", IFlags::IMMUTABLE),
        ("removed", IFlags::APPEND),
        ("chmod", IFlags::IMMUTABLE),
        ("log", IFlags::APPEND),
    ] {
        if !flag(&pair.b.join(name), what, true) {
            return;
        }
        flags.push((pair.b.join(name), what));
    }
    let flagged = Flagged(flags);
    let mut running = pair.start(&[]);
    fs::write(pair.a.join("append"), "2").unwrap();
    fs::write(pair.a.join("fixed"), "2").unwrap();
    fs::rename(pair.a.join("moved"), pair.a.join("moved to")).unwrap();
    fs::remove_file(pair.a.join("removed")).unwrap();
    fs::set_permissions(pair.a.join("chmod"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(pair.a.join("log/old")).unwrap();
    fs::write(pair.a.join("log/new"), "2").unwrap();
    put(&pair.a, "free", "2");
    let mut missing: Vec<&str> = vec!["append", "fixed", "moved to", "removed", "chmod", "log/old"];
    while !missing.is_empty() {
        let waits = running.wait_for("waiting");
        let path = waits["path"]["text"].as_str().unwrap();
        if waits["reason"] == "read_only" {
            assert!(waits["detail"].as_str().unwrap().contains("immutable or append-only"), "{waits}");
            missing.retain(|m| *m != path);
        }
    }
    wait_until("the rest", || {
        let there = |name: &str| fs::read_to_string(pair.b.join(name)).is_ok_and(|text| text == "2");
        if there("free") && there("log/new") { Ok(()) } else { Err("not there".into()) }
    });
    assert_eq!(read(&pair.b, "append") + &read(&pair.b, "fixed") + &read(&pair.b, "removed"), "111");
    drop(flagged);
    pair.wait_same("the flags are gone");
    assert_eq!(running.stop().1, 0);
}

#[test]
fn failures_are_grouped_by_cause() {
    let pair = Pair::new();
    put(&pair.a, "closed/first", "1");
    pair.once(&[]);
    let Some(_closed) = Closed::close(&pair.b.join("closed")) else { return };
    for i in 0..30 {
        put(&pair.a, &format!("closed/{i:02}"), "2");
    }
    assert_eq!(pair.sync(&["--once"]).code, 3);
    let listed = pair.ask(&["failures"]);
    assert_eq!(listed.out.matches("what to do:").count(), 1, "{listed:#?}");
    // The directory itself may be one of them: its time cannot be set.
    assert!(listed.out.contains(" entries wait since "), "{listed:#?}");
    assert!(listed.out.contains(" more (--all lists them)"), "{listed:#?}");
    assert!(pair.ask(&["failures", "--all"]).out.contains("closed/29"));
}

/// Entries that cannot be done cost the others nothing, neither when they fail nor while they wait, and all of them
/// are done as soon as their cause is gone. One in ten of `DRIFTLESS_WAITING_FILES` fails.
#[test]
fn many_failures_hold_nothing_else_up() {
    let files = std::env::var("DRIFTLESS_WAITING_FILES").map_or(2_000, |n| n.parse().unwrap());
    let (fail, good) = (files / 10, files / 10 * 9);
    let pair = Pair::new();
    put(&pair.a, "closed/first", "1");
    put(&pair.a, "open/first", "1");
    pair.once(&[]);
    let Some(closed) = Closed::close(&pair.b.join("closed")) else { return };
    let mut running = pair.start(&[]);
    let write = |dir: &str, prefix: &str, n: usize| {
        (0..n).for_each(|i| put(&pair.a, &format!("{dir}/{prefix}{i}"), "content"));
    };
    let arrive = |path: &str| {
        let began = Instant::now();
        wait_until(path, || if pair.b.join(path).exists() { Ok(()) } else { Err("not there".into()) });
        began.elapsed()
    };
    write("open", "alone", good);
    let alone = arrive(&format!("open/alone{}", good - 1));
    write("closed", "c", fail);
    write("open", "beside", good);
    let beside = arrive(&format!("open/beside{}", good - 1));
    running.wait_for("waiting");
    eprintln!("{good} files alone {alone:?}, beside {fail} that fail {beside:?}");
    assert!(beside < alone * 3 + Duration::from_secs(2), "{beside:?} against {alone:?}");

    wait_until("all of them wait", || {
        match pair.ask(&["failures", "--all"]).out.matches("closed/c").count() {
            n if n == fail => Ok(()),
            n => Err(format!("{n}")),
        }
    });
    drop(closed);
    let began = Instant::now();
    arrive(&format!("closed/c{}", fail - 1));
    pair.wait_same("the cause is gone");
    eprintln!("{fail} files came {:?} after their cause was gone", began.elapsed());
    running.stop();
}
