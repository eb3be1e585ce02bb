//! Disks that fill up and limits of the process: told, waited for, and gone on by itself.

use crate::common::*;
use driftless_testkit::mount::Small;
use serde_json::Value;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Fills the disk but for about `left` bytes.
fn fill(dir: &Path, left: u64) -> PathBuf {
    let stat = rustix::fs::statvfs(dir).unwrap();
    let free = stat.f_bavail * stat.f_frsize;
    let path = dir.join("ballast");
    fs::write(&path, vec![1; usize::try_from(free.saturating_sub(left)).unwrap()]).unwrap();
    path
}

#[test]
fn a_full_disk_of_the_state_stops_the_intake_until_there_is_room() {
    let pair = Pair::new();
    let Some(_disk) = Small::in_memory(&pair.state(), "48M") else { return };
    put(&pair.a, "first", "1");
    let mut running = pair.start(&[]);
    let ballast = fill(&pair.state(), 256 << 10);
    for i in 0..4_000 {
        put(&pair.a, &format!("d/{i}"), "content");
    }
    running.wait_for_row(|e| e["event"] == "log" && e["text"].as_str().unwrap().contains("is full"));
    assert!(fs::read_dir(pair.a.join("d")).unwrap().count() == 4_000);
    fs::remove_file(ballast).unwrap();
    running.wait_for_row(|e| e["event"] == "log" && e["text"].as_str().unwrap().contains("going on"));
    pair.wait_same("there was room");
    assert_eq!(running.stop().1, 0);
    pair.once(&[]);
}

#[test]
fn a_full_disk_of_a_volume_is_told_and_gone_on_with() {
    let pair = Pair::new();
    let Some(_disk) = Small::in_memory(&pair.b, "16M") else { return };
    put(&pair.a, "first", "1");
    let mut running = pair.start(&[]);
    let ballast = fill(&pair.b, 1 << 20);
    put(&pair.a, "large", &"x".repeat(4 << 20));
    put(&pair.a, "medium", &"y".repeat(100_000));
    for i in 0..40 {
        put(&pair.a, &format!("small/{i}"), &"z".repeat(60_000));
    }
    let waits = running.wait_for_row(|e| e["event"] == "waiting" && e["reason"] == "no_space");
    assert_eq!(waits["side"], "b");
    fs::write(pair.a.join("first"), "2").unwrap();
    fs::remove_file(ballast).unwrap();
    wait_until("there was room", || match pair.differences() {
        d if d.iter().all(|d| d.contains("ballast")) => Ok(()),
        d => Err(d.join("\n")),
    });
    running.stop();
    pair.once(&[]);
    pair.assert_same();
}

/// Leaves not one byte free.
fn fill_up(dir: &Path) -> PathBuf {
    let path = dir.join("ballast");
    let mut file = fs::File::options().create(true).append(true).open(&path).unwrap();
    for len in [1 << 20, 4096, 1] {
        while file.write_all(&vec![1; len]).is_ok() {}
    }
    path
}

/// Killed on a disk that is full, started on it, and freed.
fn is_started_on_a_full_disk(pair: &Pair) {
    put(&pair.a, "first", "1");
    put(&pair.a, "d/replaced", "old");
    let mut running = pair.start(&[]);
    fs::write(pair.b.join("ballast"), "").unwrap();
    pair.wait_same("the ballast has a name");
    let ballast = fill_up(&pair.b);
    for i in 0..20 {
        put(&pair.a, &format!("small/{i}"), &"z".repeat(6_000));
    }
    put(&pair.a, "d/replaced", "new");
    running.wait_for_row(|e| e["event"] == "waiting" && e["reason"] == "no_space");
    running.kill();
    fill_up(&pair.b);
    let mut running = Running::start(&mut pair.sync_command(&["--json"]));
    let waits = running.wait_for_row(|e| e["event"] == "waiting" && e["reason"] == "no_space");
    assert_eq!(waits["side"], "b");
    let listed = pair.ask(&["failures", "--json", "--root", pair.b.to_str().unwrap()]);
    assert!(listed.out.contains("no_space"), "{listed:?}");
    fs::remove_file(ballast).unwrap();
    wait_until("there was room", || match pair.differences() {
        d if d.is_empty() => Ok(()),
        d => Err(d.join("\n")),
    });
    // It may be told to end before both ends have told each other.
    assert_ne!(running.stop().1, 1);
    pair.once(&[]);
    pair.assert_same();
    assert_eq!(left_private(&pair.b), Vec::<PathBuf>::new());
}

#[test]
fn a_start_on_a_full_tmpfs_waits_for_room() {
    let pair = Pair::new();
    let Some(_disk) = Small::in_memory(&pair.b, "16M") else { return };
    is_started_on_a_full_disk(&pair);
}

#[test]
fn a_start_on_a_full_ext4_waits_for_room() {
    let pair = Pair::new();
    let Some(_disk) = Small::on_disk("ext4", &pair.b, &pair.base.path().join("image")) else { return };
    fs::remove_dir(pair.b.join("lost+found")).unwrap();
    is_started_on_a_full_disk(&pair);
}

#[test]
fn a_start_on_a_full_xfs_waits_for_room() {
    let pair = Pair::new();
    let Some(_disk) = Small::on_disk("xfs", &pair.b, &pair.base.path().join("image")) else { return };
    is_started_on_a_full_disk(&pair);
}

#[test]
fn a_first_start_on_a_full_disk_waits_for_room() {
    let pair = Pair::new();
    let Some(_disk) = Small::in_memory(&pair.b, "16M") else { return };
    let ballast = fill_up(&pair.b);
    put(&pair.a, "first", "1");
    let once = pair.sync(&["--once"]);
    assert_eq!(once.code, 1, "{once:?}");
    assert!(once.err.contains("Free space"), "{once:?}");
    let mut running = Running::start(&mut pair.sync_command(&["--json"]));
    running
        .wait_for_row(|e| e["event"] == "log" && e["text"].as_str().unwrap().contains("until there is room"));
    fs::remove_file(ballast).unwrap();
    running.wait_for_row(|e| e["event"] == "log" && e["text"].as_str().unwrap().contains("going on"));
    pair.wait_same("there was room");
    assert_ne!(running.stop().1, 1);
}

#[test]
fn a_start_with_a_full_disk_of_the_state_waits_for_room() {
    let pair = Pair::new();
    let Some(_disk) = Small::in_memory(&pair.state(), "48M") else { return };
    put(&pair.a, "first", "1");
    let mut running = pair.start(&[]);
    let ballast = fill_up(&pair.state());
    for i in 0..4_000 {
        put(&pair.a, &format!("d/{i}"), "content");
    }
    running.wait_for_row(|e| e["event"] == "log" && e["text"].as_str().unwrap().contains("is full"));
    running.kill();
    fill_up(&pair.state());
    // It ends while it waits if it is told to.
    let mut running = Running::start(&mut pair.sync_command(&["--json"]));
    let is_waiting =
        |e: &Value| e["event"] == "log" && e["text"].as_str().unwrap().contains("until there is room");
    running.wait_for_row(is_waiting);
    assert_eq!(running.stop().1, 3);
    let mut running = Running::start(&mut pair.sync_command(&["--json"]));
    running.wait_for_row(is_waiting);
    fs::remove_file(ballast).unwrap();
    pair.wait_same("there was room");
    assert_ne!(running.stop().1, 1);
    pair.once(&[]);
}

/// Most memory a process has had, in MiB.
fn peak_mib(pid: rustix::process::Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

/// Both ends in one process, one directory: what is in memory is bounded by batches and caches, not by the directory.
/// `DRIFTLESS_HUGE_ENTRIES=300000` for a large one.
#[test]
fn a_huge_directory_needs_little_memory() {
    const PEAK_MIB_MAX: u64 = 400;
    let entries: usize = std::env::var("DRIFTLESS_HUGE_ENTRIES").map_or(20_000, |n| n.parse().unwrap());
    let pair = Pair::new();
    fs::create_dir(pair.a.join("d")).unwrap();
    for i in 0..entries {
        fs::write(pair.a.join(format!("d/{i:06}-{}", "n".repeat(40))), i.to_string()).unwrap();
    }
    let mut running = Running::start(&mut pair.sync_command(&["--json", "--max-delete", "100%"]));
    let waits_long = |running: &mut Running| (0..20).any(|_| running.comes("in_sync"));
    assert!(waits_long(&mut running), "the first copy takes too long");
    let first = peak_mib(running.pid());
    assert_eq!(fs::read_dir(pair.b.join("d")).unwrap().count(), entries);
    // All of it goes in one window.
    fs::remove_dir_all(pair.a.join("d")).unwrap();
    assert!(waits_long(&mut running), "the removal takes too long");
    let removed = peak_mib(running.pid());
    eprintln!("{entries} entries: {first} MiB for the first copy, {removed} MiB with their removal");
    assert!(removed <= PEAK_MIB_MAX, "{entries} entries: {first} MiB, {removed} MiB");
    running.stop();
}

#[test]
fn few_open_files_are_enough() {
    let pair = Pair::new();
    for i in 0..300 {
        put(&pair.a, &format!("d{}/e{}/f{i}", i % 50, i % 7), "content");
    }
    put(&pair.a, "large", &"x".repeat(1 << 20));
    let sync = pair.sync_command(&["--once"]);
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -n 96; exec \"$@\"", "sh"]).arg(sync.get_program()).args(sync.get_args());
    limited.envs(sync.get_envs().filter_map(|(k, v)| Some((k, v?))));
    let ran = run(&mut limited);
    assert_eq!(ran.code, 0, "{ran:#?}");
    pair.assert_same();
}
