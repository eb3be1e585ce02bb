//! What cannot be done is listed with path, reason and what to do; everything else is done; and it is done
//! itself once its cause is gone.

use crate::common::*;
use rustix::fs::IFlags;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// A directory that nobody, not even root, can write to; writable again when dropped.
struct Closed(PathBuf);

impl Closed {
    fn close(dir: &Path) -> Option<Closed> {
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
    let waits = running.wait_for("waiting");
    assert_eq!(waits["path"]["text"], "closed/second");
    drop(closed);
    wait_until("the cause is gone", || match pair.b.join("closed/second").exists() {
        true => Ok(()),
        false => Err("not there".into()),
    });
    running.wait_for("resolved");
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
