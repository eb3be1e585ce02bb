//! `driftless doctor`, and what `sync` refuses.

use crate::common::*;
use rustix::fs::Mode;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;

fn doctor(pair: &Pair, args: &[&str], dir: &Path) -> Ran {
    run(pair.command().arg("doctor").args(args).arg(dir))
}

#[test]
fn the_verdict_comes_first_and_nothing_is_left_behind() {
    let pair = Pair::new();
    let ran = doctor(&pair, &[], &pair.a);
    assert!(ran.code == 0 || ran.code == 3, "{ran:#?}");
    let first = ran.out.lines().next().unwrap();
    assert!(first.contains("fit for two-way use"), "{ran:#?}");
    assert_eq!(ran.code == 0, !first.contains("limits"), "{ran:#?}");
    for name in ["exchange", "leases", "holes", "acls", "watch_directories", "free_inodes"] {
        assert!(ran.out.lines().any(|line| line.starts_with(name)), "{name}: {ran:#?}");
    }
    assert_eq!(std::fs::read_dir(&pair.a).unwrap().count(), 0);
}

#[test]
fn for_programs_it_is_one_object() {
    let pair = Pair::new();
    let ran = doctor(&pair, &["--json"], &pair.a);
    let said: serde_json::Value = serde_json::from_str(ran.out.trim()).unwrap();
    assert!(["two_way", "two_way_with_limits"].contains(&said["fitness"].as_str().unwrap()), "{said:#}");
    let absent = |c: &&serde_json::Value| c["there"] == false && c["weight"] == "limit";
    let absent: Vec<_> = said["capabilities"].as_array().unwrap().iter().filter(absent).collect();
    for one in &absent {
        assert!(said["reasons"].as_array().unwrap().contains(&one["when_absent"]), "{said:#}");
    }
    assert_eq!(ran.code == 3, !said["reasons"].as_array().unwrap().is_empty());
}

#[test]
fn a_sync_that_runs_there_sees_nothing_of_it() {
    let pair = Pair::new();
    put(&pair.a, "f", "1");
    let running = pair.start(&[]);
    for _ in 0..5 {
        doctor(&pair, &[], &pair.a);
    }
    put(&pair.a, "g", "2");
    pair.wait_same("a change");
    assert_eq!(names(&pair.b), ["f", "g"]);
    assert_eq!(running.stop().1, 0);
}

#[test]
fn what_holds_no_files_is_not_fit() {
    let pair = Pair::new();
    let ran = doctor(&pair, &[], Path::new("/proc"));
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert!(ran.out.contains("proc): not fit"), "{ran:#?}");
    let ran = doctor(&pair, &[], Path::new("/nowhere/at/all"));
    assert!(ran.code == 1 && ran.err.contains("what to do"), "{ran:#?}");
}

#[test]
fn memory_is_fit_with_limits() {
    let shm = Path::new("/dev/shm");
    let Ok(dir) = tempfile::tempdir_in(shm) else { return eprintln!("skipped: no /dev/shm to write to") };
    let pair = Pair::new();
    let ran = doctor(&pair, &[], dir.path());
    if ran.out.contains("tmpfs") {
        assert!(ran.code == 3 && ran.out.contains("in memory"), "{ran:#?}");
    }
}

#[test]
fn a_program_that_serves_files_is_for_one_way_only() {
    let pair = Pair::new();
    let Some(served) = Served::mount(&pair.base.path().join("served")) else { return };
    let b = Pair { b: served.0.clone(), ..pair };
    for (flags, refused) in [
        (&["--once"][..], true),
        (&["--once", "--allow-unsafe-fs"], false),
        (&["--once", "--active-passive"], false),
    ] {
        let ran = b.sync(flags);
        // What is served cannot be written to: in the end it fails anyway.
        assert_eq!(ran.code, 1, "{ran:#?}");
        assert_eq!(ran.err.contains("driftless doctor"), refused, "{ran:#?}");
        assert_eq!(ran.err.contains("--allow-unsafe-fs"), refused, "{ran:#?}");
    }
    let ran = doctor(&b, &[], &served.0);
    assert!(ran.code == 1 && ran.out.contains("FUSE"), "{ran:#?}");
}

/// An empty directory that this process serves.
struct Served(PathBuf);

impl Served {
    fn mount(at: &Path) -> Option<Served> {
        std::fs::create_dir(at).unwrap();
        let flags = rustix::fs::OFlags::RDWR;
        let device = match rustix::fs::open("/dev/fuse", flags, Mode::empty()) {
            Ok(device) => File::from(device),
            Err(e) => {
                eprintln!("skipped: no FUSE here: {e}");
                return None;
            }
        };
        let options = format!("fd={},rootmode=40755,user_id=0,group_id=0", device.as_raw_fd());
        let mounted =
            Command::new("mount").args(["-i", "-t", "fuse", "-o", &options, "none"]).arg(at).status();
        if !mounted.is_ok_and(|status| status.success()) {
            eprintln!("skipped: not permitted to mount");
            return None;
        }
        std::thread::spawn(move || serve(device));
        Some(Served(at.to_owned()))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Answers until it is unmounted: an empty root directory, and "no such call" to everything else.
fn serve(mut device: File) {
    const ENOSYS: i32 = -38;
    let mut request = vec![0; 1 << 20];
    while let Ok(len) = device.read(&mut request) {
        if len < 40 {
            continue;
        }
        let opcode = u32::from_ne_bytes(request[4..8].try_into().unwrap());
        let unique = &request[8..16];
        let (error, body) = match opcode {
            2 => continue, // forget
            3 => (0, attributes()),
            17 => (0, [[0u8; 40].as_slice(), &words(&[4096, 255, 4096, 0, 0, 0, 0, 0, 0, 0])].concat()),
            26 => (0, words(&[7, 31, 65536, 0, 12 << 16 | 12, 65536, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
            27 => (0, vec![0; 16]),
            29 => (0, Vec::new()),
            _ => (ENOSYS, Vec::new()),
        };
        let header =
            [words(&[16 + body.len() as u32]), error.to_ne_bytes().to_vec(), unique.to_vec()].concat();
        if device.write_all(&[header, body].concat()).is_err() {
            return;
        }
    }
}

/// How long they hold, and what a directory has: number 1, mode, two links.
fn attributes() -> Vec<u8> {
    let mut body = vec![0; 16];
    body.extend(1u64.to_ne_bytes());
    body.extend([0; 40]);
    body.extend(words(&[0, 0, 0, 0o40755, 2, 0, 0, 0, 4096, 0]));
    body
}

fn words(all: &[u32]) -> Vec<u8> {
    all.iter().flat_map(|word| word.to_ne_bytes()).collect()
}
