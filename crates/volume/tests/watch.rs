//! Hearing of changes: every kind of operation of another process, with either kind of mark.

mod common;

use common::*;
use crossbeam_channel::{Receiver, unbounded};
use driftless_core::NodeKey;
use driftless_volume::{Hint, WatchMode, Watcher};
use std::process::Command;
use std::time::{Duration, Instant};

/// Far beyond any delay of a working watcher.
const PATIENCE: Duration = Duration::from_secs(10);

struct Watched {
    v: Volume,
    watcher: Watcher,
    hints: Receiver<Vec<Hint>>,
}

impl Watched {
    fn new(v: Volume) -> Option<Watched> {
        let (sender, hints) = unbounded();
        match Watcher::start(&v.volume, sender) {
            Ok(watcher) => Some(Watched { v, watcher, hints }),
            Err(e) => {
                eprintln!("skipped: {e}");
                None
            }
        }
    }

    /// Runs a shell command in the volume: what our own process does is not heard.
    fn run(&self, script: &str) {
        let done = Command::new("sh").arg("-ec").arg(script).current_dir(self.v.tmp.path()).status().unwrap();
        assert!(done.success(), "{script}");
    }

    /// Waits until all of `wanted` have come.
    fn expect(&self, mut wanted: Vec<Hint>) {
        let deadline = Instant::now() + PATIENCE;
        while !wanted.is_empty() {
            let batch = self.hints.recv_deadline(deadline).unwrap_or_else(|_| panic!("missing: {wanted:?}"));
            wanted.retain(|hint| !batch.contains(hint));
        }
    }

    fn look(&self, dir: &NodeKey, at: &str) -> Hint {
        Hint::Look { dir: dir.clone(), name: name(at) }
    }
}

fn operations(w: &Watched) {
    std::fs::create_dir(w.v.path("d")).unwrap();
    let (root, dir) = (w.v.volume.root_key(), w.v.dir("d"));
    w.watcher.watch_dir(&dir).unwrap();
    let dir = dir.key().clone();
    w.run("echo 1 > new");
    w.expect(vec![w.look(&root, "new")]);
    w.run("echo 2 >> new");
    w.expect(vec![w.look(&root, "new")]);
    w.run("chmod 600 new");
    w.expect(vec![w.look(&root, "new")]);
    w.run("ln new d/link");
    w.expect(vec![w.look(&dir, "link")]);
    w.run("mv new d/moved");
    w.expect(vec![w.look(&root, "new"), w.look(&dir, "moved")]);
    w.run("rm d/moved");
    w.expect(vec![w.look(&dir, "moved")]);
    w.run("ln -s nowhere sym; mkfifo d/pipe; mkdir sub");
    w.expect(vec![w.look(&root, "sym"), w.look(&dir, "pipe"), w.look(&root, "sub")]);
    w.run("rmdir sub");
    w.expect(vec![w.look(&root, "sub")]);
}

#[test]
fn every_operation_is_heard_with_a_mark_on_the_file_system() {
    let Some(w) = Watched::new(Volume::new()) else { return };
    if w.watcher.mode() != WatchMode::FileSystem {
        return eprintln!("skipped: not permitted to mark a file system");
    }
    operations(&w);
    w.run("mkdir -p x/y/z; echo 1 > x/y/z/f");
    let deep = w.v.dir("x/y/z");
    w.expect(vec![w.look(deep.key(), "f")]);
}

#[test]
fn own_changes_and_the_private_directory_are_not_heard() {
    let Some(w) = Watched::new(Volume::new()) else { return };
    let staged = w.v.stage(b"ours");
    w.v.volume.place(&staged, &w.v.root(), &name("ours"), None).unwrap();
    w.run("echo 1 > .driftless/staging/x; rm .driftless/staging/x; echo 1 > last");
    let last = w.look(&w.v.volume.root_key(), "last");
    let ours: Vec<NodeKey> = w.v.volume.list_private().unwrap().into_iter().map(|e| e.key).collect();
    assert_eq!(ours, []);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let batch = w.hints.recv_deadline(deadline).unwrap();
        assert!(!batch.contains(&w.look(&w.v.volume.root_key(), "ours")), "{batch:?}");
        let private = name("x");
        let heard_private = |h: &Hint| matches!(h, Hint::Look { name, .. } if *name == private);
        assert!(!batch.iter().any(heard_private), "{batch:?}");
        if batch.contains(&last) {
            break;
        }
    }
}
