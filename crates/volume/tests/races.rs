//! Users who act in the middle of what we do: no version is lost, whoever wins.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use common::*;
use driftless_volume::{ApplyError, Limbo, Placed};
use rustix::fs::{CWD, RenameFlags};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Enough for some hundred real collisions on two cores, in about a second.
const ROUNDS: usize = 3000;

fn contents(dir: &Path) -> BTreeSet<String> {
    names(dir).iter().map(|name| fs::read_to_string(dir.join(name)).unwrap()).collect()
}

fn staged_contents(v: &Volume) -> BTreeSet<String> {
    v.staged().iter().map(|path| fs::read_to_string(path).unwrap()).collect()
}

fn raced(result: Result<Placed, ApplyError>) -> Option<Placed> {
    match result {
        Ok(placed) => Some(placed),
        Err(ApplyError::Raced { .. } | ApplyError::Busy { .. }) => None,
        Err(other) => panic!("{other}"),
    }
}

/// A user puts a new version in place again and again, keeping what was there; so do we. All versions ever made must
/// be somewhere.
#[test]
fn versions_are_conserved_when_a_user_replaces_at_the_same_time() {
    let v = Volume::new();
    if !v.volume.capabilities().exchange {
        return eprintln!("skipped: no exchange here");
    }
    v.write("f", b"first");
    let (f, mine) = (v.path("f"), tempfile::tempdir_in(v.tmp.path().parent().unwrap()).unwrap());
    let stop = AtomicBool::new(false);
    let user = || {
        let mut made = 0;
        while !stop.load(Ordering::Relaxed) {
            let path = mine.path().join(made.to_string());
            fs::write(&path, format!("user {made}")).unwrap();
            rustix::fs::renameat_with(CWD, &path, CWD, &f, RenameFlags::EXCHANGE).unwrap();
            made += 1;
        }
        made
    };
    let (mut won, mut lost) = (0, 0);
    let users = std::thread::scope(|scope| {
        let user = scope.spawn(user);
        let root = v.root();
        for round in 0..ROUNDS {
            let staged = v.stage(format!("ours {round}").as_bytes());
            let victim = victim(&root, "f");
            match raced(v.volume.place(&staged, &root, &name("f"), Some(&victim))) {
                Some(placed) => {
                    won += 1;
                    assert_eq!(placed.limbo.unwrap().key, victim.node);
                }
                None => lost += 1,
            }
        }
        stop.store(true, Ordering::Relaxed);
        user.join().unwrap()
    });
    let mut found = contents(mine.path());
    found.extend(contents(&v.path(".driftless/limbo")));
    found.extend(staged_contents(&v));
    found.insert(fs::read_to_string(&f).unwrap());
    let mut made: BTreeSet<String> = (0..users).map(|n| format!("user {n}")).collect();
    made.extend((0..ROUNDS).map(|n| format!("ours {n}")));
    made.insert("first".to_owned());
    assert_eq!(found, made, "{won} won, {lost} lost");
    assert!(won > 0 && lost > 0, "{won} won, {lost} lost: nothing was tested");
}

/// A user appends lines to whatever has the name. No line is lost, whatever becomes of the files.
#[test]
fn what_is_written_to_in_limbo_is_kept() {
    let v = Volume::new();
    if !v.volume.capabilities().leases {
        return eprintln!("skipped: no leases here");
    }
    v.write("f", b"");
    let f = v.path("f");
    let stop = AtomicBool::new(false);
    let user = || {
        let mut made = 0;
        while !stop.load(Ordering::Relaxed) {
            let Ok(mut file) = fs::OpenOptions::new().append(true).open(&f) else { continue };
            writeln!(file, "line {made}").unwrap();
            drop(file);
            made += 1;
            // Leaves us a chance to find nobody writing.
            std::thread::yield_now();
        }
        made
    };
    let mut limbo: Vec<(Limbo, driftless_core::Fingerprint)> = Vec::new();
    let lines = std::thread::scope(|scope| {
        let user = scope.spawn(user);
        let root = v.root();
        for round in 0..ROUNDS {
            let Ok(Some(seen)) = root.look(&name("f")) else { continue };
            let victim =
                driftless_volume::Victim { node: seen.key, kind: seen.kind, fingerprint: seen.fingerprint };
            if round % 2 == 0 {
                let staged = v.stage(b"");
                let placed = raced(v.volume.place(&staged, &root, &name("f"), Some(&victim)));
                limbo.extend(placed.and_then(|p| p.limbo).map(|l| (l, victim.fingerprint)));
            } else if let Ok(Some(removed)) = v.volume.remove(&root, &name("f"), &victim, v.id()) {
                limbo.push((removed, victim.fingerprint));
                // The next round needs something to replace.
                v.volume.place(&v.stage(b""), &root, &name("f"), None).unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
        user.join().unwrap()
    });
    let mut found: Vec<String> = Vec::new();
    for text in contents(&v.path(".driftless/limbo")).iter().chain(&staged_contents(&v)) {
        found.extend(text.lines().map(str::to_owned));
    }
    found.extend(fs::read_to_string(&f).unwrap().lines().map(str::to_owned));
    found.sort();
    let mut made: Vec<String> = (0..lines).map(|n| format!("line {n}")).collect();
    made.sort();
    assert_eq!(found, made);
    assert!(limbo.len() > 1, "nothing was tested");
    // An open that had found the name just before may still write: that is not thrown away.
    let changed = |l: &Limbo, size: u64| fs::metadata(v.limbo(l.id)).unwrap().len() != size;
    let written: Vec<Limbo> =
        limbo.iter().filter(|(l, before)| changed(l, before.size)).map(|(l, _)| l.clone()).collect();
    let all: Vec<Limbo> = limbo.into_iter().map(|(l, _)| l).collect();
    assert_eq!(v.volume.drop_limbo(&all).unwrap(), written);
}
