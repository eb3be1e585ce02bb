//! A volume that is let go leaves nothing open. Alone in its file: it counts this process's descriptors.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use common::*;
use driftless_volume::Watcher;

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_volume_that_is_let_go_leaves_nothing_open() {
    let tmp = tempfile::tempdir().unwrap();
    let before = open_files();
    let v = Volume::at(tmp);
    std::fs::create_dir_all(v.path("a/b")).unwrap();
    let watcher = Watcher::start(&v.volume, crossbeam_channel::unbounded().0);
    let deep = v.dir("a/b");
    v.volume.place(&v.stage(b"x"), &deep, &name("f"), None).unwrap();
    assert!(open_files() > before);
    drop((deep, watcher, v));
    assert_eq!(open_files(), before);
}
