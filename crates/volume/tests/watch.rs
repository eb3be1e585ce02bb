//! Hearing of changes: every kind of operation of another process, with either kind of mark.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use common::*;
use crossbeam_channel::{Receiver, unbounded};
use driftless_core::NodeKey;
use driftless_volume::{Delivery, Hint, WatchMode, WatchOptions, Watcher};
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
    fn new(v: Volume, options: WatchOptions) -> Option<Watched> {
        let (sender, hints) = unbounded();
        let deliver = move |batch| match sender.send(batch) {
            Ok(()) => Delivery::Taken,
            Err(_) => Delivery::Closed,
        };
        match Watcher::start_with(&v.volume, options, deliver) {
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
    let Some(w) = Watched::new(Volume::new(), WatchOptions::default()) else { return };
    if w.watcher.mode() != WatchMode::FileSystem {
        return eprintln!("skipped: not permitted to mark a file system");
    }
    operations(&w);
    w.run("mkdir -p x/y/z; echo 1 > x/y/z/f");
    let deep = w.v.dir("x/y/z");
    w.expect(vec![w.look(deep.key(), "f")]);
}

#[test]
fn what_is_staged_makes_no_events_and_is_heard_of_once_shown() {
    use driftless_core::{Attrs, Time};
    use driftless_volume::StageId;
    use std::collections::HashSet;
    // It hears of this process, too: so nothing is left out when events are read.
    let options = WatchOptions { own_process: true, ..WatchOptions::default() };
    let Some(w) = Watched::new(Volume::new(), options) else { return };
    if w.watcher.mode() != WatchMode::FileSystem {
        return eprintln!("skipped: not permitted to mark a file system");
    }
    let (volume, root) = (&w.v.volume, w.v.volume.root_key());
    let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let attrs = Attrs { mode: 0o755, uid: me.0, gid: me.1, ..Attrs::default() };
    let staged = volume.stage_dir(StageId(1)).unwrap();
    for (id, at) in [(2, "one"), (3, "two")] {
        let time = Time { sec: 1_000_000_000, nsec: 7 };
        volume.stage_small_within(&staged, &name(at), StageId(id), b"x", (&attrs, time)).unwrap();
    }
    let names = HashSet::from([name("one"), name("two")]);
    let top = volume.dir(&[], None).unwrap();
    volume.place_dir(&staged, &top, &name("d"), &attrs, &names).unwrap();
    let mut before = Vec::new();
    while !before.contains(&w.look(&root, "d")) {
        before.extend(w.hints.recv_timeout(PATIENCE).unwrap());
    }
    let within = |h: &Hint| matches!(h, Hint::Look { dir, .. } if dir == staged.key());
    assert_eq!(before.iter().filter(|h| within(h)).count(), 0, "{before:?}");
    // From here on it is as any other directory.
    w.run("echo 1 > d/new; echo 2 >> d/one; chmod 600 d/two");
    w.expect(["new", "one", "two"].map(|at| w.look(staged.key(), at)).into());
    w.run("rm d/new");
    w.expect(vec![w.look(staged.key(), "new")]);
    w.run("mv d/one one; mkdir d/sub");
    w.expect(vec![w.look(staged.key(), "one"), w.look(&root, "one"), w.look(staged.key(), "sub")]);
}

#[test]
fn every_operation_is_heard_with_marks_on_directories() {
    let options = WatchOptions { directories_only: true, ..WatchOptions::default() };
    let Some(w) = Watched::new(Volume::new(), options) else { return };
    assert_eq!(w.watcher.mode(), WatchMode::Directories);
    operations(&w);
}

#[test]
fn a_slow_receiver_is_told_that_hints_were_lost() {
    let v = Volume::new();
    let (sender, hints) = crossbeam_channel::bounded(1);
    let watcher = match Watcher::start(&v.volume, sender) {
        Ok(watcher) => watcher,
        Err(e) => return eprintln!("skipped: {e}"),
    };
    let w = Watched { v, watcher, hints };
    // Each of these is a batch of its own or joins another; the queue holds one.
    for at in 0..50 {
        w.run(&format!("echo 1 > f{at}"));
    }
    w.expect(vec![Hint::Overflow]);
    // Others on this file system may fill the queue again: what is written is heard once there is room.
    let root = w.v.volume.root_key();
    let heard = (0..50).any(|at| {
        let file = format!("after{at}");
        w.run(&format!("echo 1 > {file}"));
        let deadline = Instant::now() + PATIENCE / 10;
        std::iter::from_fn(|| w.hints.recv_deadline(deadline).ok()).any(|b| b.contains(&w.look(&root, &file)))
    });
    assert!(heard, "nothing is heard after an overflow");
}

#[test]
fn the_end_of_the_root_is_heard_of() {
    let above = tempfile::tempdir().unwrap();
    let v = Volume::at(tempfile::tempdir_in(above.path()).unwrap());
    let Some(w) = Watched::new(v, WatchOptions::default()) else { return };
    if w.watcher.mode() != WatchMode::FileSystem {
        return eprintln!("skipped: not permitted to mark a file system");
    }
    assert!(w.v.volume.root_alive());
    w.run("rm -r \"$PWD\"");
    w.expect(vec![Hint::RootGone]);
    assert!(!w.v.volume.root_alive());
}

#[test]
fn own_changes_and_the_private_directory_are_not_heard() {
    let Some(w) = Watched::new(Volume::new(), WatchOptions::default()) else { return };
    let staged = w.v.stage(b"ours");
    w.v.volume.place(&staged, &w.v.root(), &name("ours"), None).unwrap();
    w.run("echo 1 > .driftless/staging/07/x; rm .driftless/staging/07/x; echo 1 > last");
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
