//! The trash of a volume: a rename is the commit, whatever else was or was not written.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use common::*;
use driftless_core::trash::{Record, Why, weight};
use driftless_core::{EntryId, Kind, Time};
use driftless_volume::{Limbo, Reason, Taken, trash_sum};
use std::os::unix::fs::MetadataExt as _;

fn record(path: &str, limbo: &Limbo) -> Record {
    Record {
        item: 0,
        time_ns: 5,
        why: Why::Removed,
        kind: Kind::File,
        size: limbo.size,
        mtime: limbo.mtime,
        entry: EntryId::ROOT,
        site: "oslo".into(),
        path: path.into(),
    }
}

fn removed(v: &Volume, path: &str) -> Limbo {
    v.volume.remove(&v.root(), &name(path), &victim(&v.root(), path), v.id()).unwrap().unwrap()
}

#[test]
fn a_version_is_in_the_trash_once_it_is_renamed() {
    let v = Volume::new();
    v.write("f", b"content");
    let inode = std::fs::metadata(v.path("f")).unwrap().ino();
    let limbo = removed(&v, "f");
    assert!(v.volume.trash(false).unwrap().is_none());
    let trash = v.volume.trash(true).unwrap().unwrap();
    let mut writer = trash.begin(1).unwrap();
    let mut records = [record("f", &limbo)];
    writer.write(&mut records).unwrap();
    assert_eq!(trash_sum(&trash.items(1).unwrap()), None, "written down, not there yet");
    assert_eq!(writer.take(&records[0], &limbo).unwrap(), (Taken::Yes, weight(7)));
    assert_eq!(writer.take(&records[0], &limbo).unwrap().0, Taken::Gone);
    writer.sync().unwrap();
    let items = trash.items(1).unwrap();
    assert_eq!(items.len(), 1);
    assert_eq!((&items[0].record, items[0].size), (&Some(records[0].clone()), 7));
    assert_eq!(trash_sum(&items).unwrap().bytes, weight(7));

    v.write("taken", b"user");
    assert!(!trash.restore(&items[0], &v.root(), &name("taken")).unwrap());
    assert!(trash.restore(&items[0], &v.root(), &name("f")).unwrap());
    assert_eq!(std::fs::metadata(v.path("f")).unwrap().ino(), inode);
    assert_eq!(trash.restore(&items[0], &v.root(), &name("g")).unwrap_err().reason(), Reason::NotFound);
    assert_eq!(std::fs::read(v.path("taken")).unwrap(), b"user");
}

#[test]
fn what_is_written_to_in_limbo_is_not_taken() {
    let v = Volume::new();
    v.write("f", b"content");
    let limbo = removed(&v, "f");
    std::fs::write(v.limbo(limbo.id), b"by a late writer").unwrap();
    let mut writer = v.volume.trash(true).unwrap().unwrap().begin(1).unwrap();
    let mut records = [record("f", &limbo)];
    writer.write(&mut records).unwrap();
    assert_eq!(writer.take(&records[0], &limbo).unwrap().0, Taken::Changed);
    assert!(v.limbo(limbo.id).exists());
}

#[test]
fn a_batch_goes_when_it_is_empty_and_nobody_writes_to_it() {
    let v = Volume::new();
    let trash = v.volume.trash(true).unwrap().unwrap();
    let mut writer = trash.begin(7).unwrap();
    trash.prune(7).unwrap();
    assert_eq!(trash.batches().unwrap(), [7], "somebody writes to it");
    assert!(trash.begin(7).is_err());
    v.write("f", b"content");
    let limbo = removed(&v, "f");
    let mut records = [record("f", &limbo)];
    writer.write(&mut records).unwrap();
    writer.take(&records[0], &limbo).unwrap();
    drop(writer);
    trash.prune(7).unwrap();
    assert_eq!(trash.batches().unwrap(), [7], "something is in it");
    assert!(trash.remove(&trash.items(7).unwrap()[0]).unwrap());
    trash.prune(7).unwrap();
    assert_eq!(trash.batches().unwrap(), Vec::<u64>::new());
    assert!(trash.items(7).unwrap().is_empty());
}

#[test]
fn names_of_one_inode_weigh_it_once() {
    let v = Volume::new();
    v.write("a", &[1; 10_000]);
    std::fs::hard_link(v.path("a"), v.path("b")).unwrap();
    let (a, b) = (removed(&v, "a"), removed(&v, "b"));
    assert_eq!(v.volume.limbo_links(&[a.clone(), b.clone()]).unwrap(), [2, 2]);
    let trash = v.volume.trash(true).unwrap().unwrap();
    let mut writer = trash.begin(1).unwrap();
    let mut records = [record("a", &a), record("b", &b)];
    writer.write(&mut records).unwrap();
    let taken = [writer.take(&records[0], &a).unwrap(), writer.take(&records[1], &b).unwrap()];
    assert_eq!(taken, [(Taken::Yes, weight(10_000)), (Taken::Yes, weight(0))]);
    let items = trash.items(1).unwrap();
    assert_eq!(trash_sum(&items).unwrap().bytes, weight(10_000) + weight(0));
    assert_eq!(items[0].time_ns, 5);
}

#[test]
fn noted_when_versions_were_taken_out() {
    let v = Volume::new();
    let trash = v.volume.trash(true).unwrap().unwrap();
    assert_eq!(trash.freed(), None);
    trash.note_freed().unwrap();
    assert!(trash.freed().is_some_and(|t| t > Time::default()));
    assert_eq!(trash.batches().unwrap(), Vec::<u64>::new());
}
