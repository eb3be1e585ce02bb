//! Tests of what is done where the file system or the kernel lacks something: the volume is told that it does.

use crate::capability::Capabilities;
use crate::directory::{Directory, OpenOptions};
use crate::dirfd::DirFd;
use crate::error::Reason;
use crate::key::Identity;
use crate::stage::StageId;
use driftless_core::plan::Victim;
use driftless_core::{Attrs, Name, Time};
use std::fs;
use std::sync::Arc;

fn crippled(tmp: &tempfile::TempDir, how: impl FnOnce(&mut Capabilities)) -> Directory {
    let mut volume = Directory::open(tmp.path(), OpenOptions { create_private: true }).unwrap();
    let inner = Arc::get_mut(&mut volume.0).unwrap();
    how(&mut inner.capabilities);
    let identity = inner.capabilities.identity;
    inner.root_key = crate::stat::look_fd(identity, &inner.root).unwrap().key;
    volume
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn victim(dir: &DirFd, at: &str) -> Victim {
    let seen = dir.look(&name(at)).unwrap().unwrap();
    Victim { node: seen.key, kind: seen.kind, fingerprint: seen.fingerprint }
}

/// The ordinary life of a file, a link and a directory.
fn live(tmp: &tempfile::TempDir, volume: &Directory) {
    let root = volume.dir(&[], None).unwrap();
    let attrs = Attrs { mode: 0o644, ..Attrs::default() };
    let stage = |id, bytes: &[u8]| volume.stage_small(StageId(id), bytes, &attrs, Time::default()).unwrap();
    let read = |at: &str| fs::read_to_string(tmp.path().join(at)).unwrap();
    volume.place(&stage(1, b"one"), &root, &name("f"), None).unwrap();
    let taken = volume.place(&stage(2, b"two"), &root, &name("f"), None).unwrap_err();
    assert_eq!(taken.reason(), Reason::Unexpected);
    let placed = volume.place(&stage(3, b"three"), &root, &name("f"), Some(&victim(&root, "f"))).unwrap();
    let limbo = placed.limbo.unwrap();
    assert_eq!(read("f"), "three");
    assert_eq!(read(&format!(".driftless/limbo/{}", limbo.id)), "one");
    assert_eq!(volume.drop_limbo(&[limbo]).unwrap(), []);
    let key = placed.key;
    volume.link_node(&root, &name("f"), &root, &name("g"), &key, None, StageId(4)).unwrap();
    volume.place(&stage(5, b"five"), &root, &name("h"), None).unwrap();
    let over = victim(&root, "h");
    let linked =
        volume.link_node(&root, &name("f"), &root, &name("h"), &key, Some(&over), StageId(6)).unwrap();
    assert_eq!(read(&format!(".driftless/limbo/{}", linked.limbo.unwrap().id)), "five");
    assert_eq!(read("h"), "three");
    let made = volume.make_dir(&root, &name("d"), &Attrs { mode: 0o755, ..Attrs::default() }).unwrap();
    let dir = volume.dir(&[name("d")], Some(&made.node)).unwrap();
    volume.rename_node(&root, &name("f"), &dir, &name("f"), &key, None, StageId(7)).unwrap();
    volume.rename_node(&root, &name("d"), &root, &name("e"), &made.node, None, StageId(8)).unwrap();
    assert_eq!(read("e/f"), "three");
    volume.park(&root, &name("g"), &key, StageId(9)).unwrap();
    volume.unpark(StageId(9), &key, &root, &name("g2"), None, StageId(10)).unwrap();
    let removed = volume.remove(&root, &name("g2"), &victim(&root, "g2"), StageId(11)).unwrap().unwrap();
    assert_eq!(read(&format!(".driftless/limbo/{}", removed.id)), "three");
    volume.place(&stage(13, b"p"), &root, &name("p"), None).unwrap();
    let parked = victim(&root, "p");
    volume.park(&root, &name("p"), &parked.node, StageId(14)).unwrap();
    let removed = volume.remove_parked(StageId(14), &parked, StageId(15)).unwrap().unwrap();
    assert_eq!(volume.parked(StageId(14)).unwrap(), None);
    assert_eq!((removed.key.clone(), removed.size), (parked.node.clone(), 1));
    assert_eq!(volume.drop_limbo(&[removed]).unwrap(), []);
    let gone = volume.remove_parked(StageId(14), &parked, StageId(16)).unwrap_err();
    assert_eq!(gone.reason(), Reason::Raced);
    let full = volume.remove(&root, &name("e"), &victim(&root, "e"), StageId(12)).unwrap_err();
    assert_eq!(full.reason(), Reason::NotEmpty);
    assert!(!tmp.path().join("g2").exists());
}

#[test]
fn everything_works_without_exchange() {
    let tmp = tempfile::tempdir().unwrap();
    live(&tmp, &crippled(&tmp, |c| c.exchange = false));
}

#[test]
fn everything_works_without_any_rename_flag() {
    let tmp = tempfile::tempdir().unwrap();
    live(&tmp, &crippled(&tmp, |c| (c.exchange, c.noreplace) = (false, false)));
}

#[test]
fn everything_works_without_handles() {
    let tmp = tempfile::tempdir().unwrap();
    live(&tmp, &crippled(&tmp, |c| (c.identity, c.open_by_handle) = (Identity::InodeAndBirth, false)));
}

#[test]
fn without_openat2_paths_are_walked_as_carefully() {
    let tmp = tempfile::tempdir().unwrap();
    let volume = crippled(&tmp, |c| c.openat2 = false);
    live(&tmp, &volume);
    fs::create_dir_all(tmp.path().join("a/b")).unwrap();
    std::os::unix::fs::symlink("b", tmp.path().join("a/link")).unwrap();
    assert!(volume.dir(&[name("a"), name("b")], None).is_ok());
    let refused = volume.dir(&[name("a"), name("link")], None).unwrap_err();
    assert_eq!(refused.reason(), Reason::NotDirectory);
}

#[test]
fn without_trusted_syncfs_files_are_synced_one_by_one() {
    let tmp = tempfile::tempdir().unwrap();
    let volume = crippled(&tmp, |c| c.syncfs = false);
    let root = volume.dir(&[], None).unwrap();
    let stage = |id| volume.stage_small(StageId(id), b"x", &Attrs::default(), Time::default()).unwrap();
    let staged: Vec<_> = (0..crate::SYNC_SINGLY_MAX as u64 + 10).map(stage).collect();
    volume.make_durable(&staged, &[root]).unwrap();
    // One that is not there any more cannot be made durable.
    volume.unstage(&staged[7]).unwrap();
    assert_eq!(volume.make_durable(&staged, &[]).unwrap_err().reason(), Reason::SyncFailed);
}

#[test]
fn where_times_are_coarse_what_was_just_changed_is_to_be_looked_at_again() {
    const TICK_NS: u64 = 50_000_000;
    let tmp = tempfile::tempdir().unwrap();
    let volume = crippled(&tmp, |c| c.tick_ns = TICK_NS);
    let root = volume.dir(&[], None).unwrap();
    fs::write(tmp.path().join("f"), "one").unwrap();
    let racy = || {
        let seen = root.look(&name("f")).unwrap().unwrap();
        match root.hash(&name("f"), &seen, 0).unwrap() {
            crate::HashOutcome::Looked(hashed) => hashed.looked.racy,
            other => panic!("{other:?}"),
        }
    };
    assert!(racy());
    // The tick itself is what is waited for.
    std::thread::sleep(std::time::Duration::from_nanos(2 * TICK_NS));
    assert!(!racy());
}
