//! What is staged is what is read back, for every kind of entry and attribute the file system holds.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use common::*;
use driftless_core::{Attrs, Content, Digest, Kind, Name, NameError};
use driftless_volume::{HashOutcome, Reason, Writers};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};

/// An access ACL: user::rw-, user:0:r--, group::r--, mask::r--, other::---.
fn acl() -> Vec<u8> {
    let entry = |tag: u16, perm: u16, id: u32| {
        [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let none = u32::MAX;
    let entries = [(1, 6, none), (2, 4, 0), (4, 4, none), (16, 4, none), (32, 0, none)];
    entries.iter().fold(2u32.to_le_bytes().to_vec(), |mut acl, (tag, perm, id)| {
        acl.extend(entry(*tag, *perm, *id));
        acl
    })
}

/// Places `bytes` with `attrs` as "f" and compares what is read back with what was given.
fn round_trip(v: &Volume, bytes: &[u8], attrs: &Attrs) -> Attrs {
    let staged = v.volume.stage_small(v.id(), bytes, attrs, WHEN).unwrap();
    let placed = v.volume.place(&staged, &v.root(), &name("f"), None).unwrap();
    let read = hashed(&v.root(), "f");
    assert_eq!(read.looked.attrs, staged.given);
    assert_eq!(read.looked.fingerprint, placed.fingerprint);
    assert_eq!(read.looked.content, Some(file_content(bytes)));
    let (fingerprint, given) = v.root().attrs(&name("f"), &placed.key).unwrap();
    assert_eq!((fingerprint, &given), (placed.fingerprint, &staged.given));
    given
}

#[test]
fn modes_come_back_with_setuid_setgid_and_sticky() {
    for mode in [0o644, 0o4755, 0o2711, 0o1777, 0o7000, 0o400, 0o600, 0o666] {
        let attrs = Attrs { mode, ..plain() };
        if mode & 0o400 == 0 && !is_root() {
            continue;
        }
        assert_eq!(round_trip(&Volume::new(), b"x", &attrs), attrs, "{mode:o}");
    }
}

#[test]
fn owners_come_back_where_they_may_be_given() {
    let attrs = Attrs { mode: 0o6755, uid: 12345, gid: 54321, ..plain() };
    let given = round_trip(&Volume::new(), b"x", &attrs);
    if is_root() {
        assert_eq!(given, attrs);
    } else {
        assert_eq!((given.uid, given.gid), (plain().uid, plain().gid));
    }
}

#[test]
fn extended_attributes_and_acls_come_back() {
    let v = Volume::new();
    if !v.volume.capabilities().xattrs {
        return eprintln!("skipped: no xattrs here");
    }
    let long = vec![b'v'; 3000];
    let mut xattrs = vec![
        (b"system.posix_acl_access".to_vec(), acl()),
        (b"user.empty".to_vec(), Vec::new()),
        (b"user.long".to_vec(), long),
        (b"user.\xff".to_vec(), b"\0\n".to_vec()),
    ];
    if is_root() {
        xattrs.push((b"trusted.t".to_vec(), b"1".to_vec()));
        // Version 2, effective, CAP_NET_BIND_SERVICE permitted.
        let mut capability = 0x0200_0001u32.to_le_bytes().to_vec();
        capability.extend([0x400u32, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()));
        xattrs.push((b"security.capability".to_vec(), capability));
    }
    xattrs.sort();
    // The group bits are the ACL's mask. Not writable: attributes must be set before the mode.
    for mode in [0o640, 0o440] {
        let attrs = Attrs { mode, xattrs: xattrs.clone(), ..plain() };
        assert_eq!(round_trip(&Volume::new(), b"x", &attrs).xattrs.len(), attrs.xattrs.len());
    }
    let attrs = Attrs { mode: 0o640, xattrs, ..plain() };
    assert_eq!(round_trip(&v, b"x", &attrs), attrs);
    // In place: one goes, one changes, and a read-only mode is in the way.
    let mut less = attrs.clone();
    less.mode = 0o400;
    less.xattrs.retain(|(name, _)| !name.starts_with(b"system."));
    less.xattrs.iter_mut().filter(|(name, _)| name == b"user.empty").for_each(|(_, v)| *v = b"full".to_vec());
    let key = seen(&v.root(), "f").key;
    for wanted in [&less, &attrs] {
        let done = v.volume.set_attrs(&v.root(), &name("f"), &key, Kind::File, wanted, None, None).unwrap();
        assert_eq!(done.given, *wanted);
    }
}

#[test]
fn a_default_acl_of_the_root_is_not_inherited() {
    let tmp = tempfile::tempdir().unwrap();
    let set =
        rustix::fs::setxattr(tmp.path(), "system.posix_acl_default", &acl(), rustix::fs::XattrFlags::empty());
    if let Err(e) = set {
        return eprintln!("skipped: no ACLs here: {e}");
    }
    let v = Volume::at(tmp);
    assert_eq!(round_trip(&v, b"x", &plain()), plain());
    let made = v.volume.make_dir(&v.root(), &name("d"), &Attrs { mode: 0o755, ..plain() }).unwrap();
    assert_eq!(made.given.xattrs, []);
    assert_eq!(made.given.mode, 0o755);
}

#[test]
fn holes_stay_holes_and_are_hashed_as_zeroes() {
    let v = Volume::new();
    let size = 8 << 20;
    let mut bytes = vec![0u8; size];
    bytes[0] = 1;
    bytes[5 << 20..(5 << 20) + 100].fill(7);
    let mut writer = v.volume.stage_file(v.id(), &plain(), WHEN).unwrap();
    for (at, piece) in bytes.chunks(1_000_000).enumerate() {
        writer.write_at(at as u64 * 1_000_000, piece).unwrap();
    }
    let staged = writer.finish(Some(Digest::of(&bytes)), size as u64).unwrap();
    v.volume.place(&staged, &v.root(), &name("f"), None).unwrap();
    assert_eq!(std::fs::read(v.path("f")).unwrap(), bytes);
    let allocated = std::fs::metadata(v.path("f")).unwrap().blocks() * 512;
    assert!(allocated < 1 << 20, "{allocated}");
    assert_eq!(hashed(&v.root(), "f").looked.content, Some(file_content(&bytes)));
    // And so does a copy.
    let source = v.root().open_read(&name("f"), &staged.key).unwrap();
    let first = source.next_data(0).unwrap();
    assert!(first.start == 0 && first.end < 5 << 20, "{first:?}");
    let copy = v.volume.clone_into_stage(v.id(), &source, &plain(), WHEN).unwrap();
    let copy = copy.finish(Some(Digest::of(&bytes)), size as u64).unwrap();
    assert!(std::fs::metadata(v.staging(&copy)).unwrap().blocks() * 512 < 1 << 20);
    // Small ones too.
    let small = v.stage(&[&[1u8; 4096][..], &[0; 12288], &[2; 10]].concat());
    let blocks = std::fs::metadata(v.staging(&small)).unwrap().blocks();
    assert!(blocks * 512 <= 8192, "{blocks}");
    let zeroes = v.stage(&[0; 10_000]);
    assert_eq!(std::fs::read(v.staging(&zeroes)).unwrap(), [0; 10_000]);
}

#[test]
fn pieces_may_come_in_any_order_and_in_two_attempts() {
    let v = Volume::new();
    let bytes: Vec<u8> = (0..300_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
    let id = v.id();
    let mut writer = v.volume.stage_file(id, &plain(), WHEN).unwrap();
    writer.write_at(0, b"something else that was here before").unwrap();
    writer.write_at(500_000, &bytes[500_000..]).unwrap();
    assert_eq!(writer.written_to(), bytes.len() as u64);
    drop(writer);
    let mut writer = v.volume.reopen(id, &plain(), WHEN).unwrap();
    assert_eq!(writer.written_to(), bytes.len() as u64);
    writer.write_at(0, &bytes[..500_000]).unwrap();
    let staged = writer.finish(Some(Digest::of(&bytes)), bytes.len() as u64).unwrap();
    assert_eq!(std::fs::read(v.staging(&staged)).unwrap(), bytes);
    assert!(v.volume.stage_file(id, &plain(), WHEN).is_err_and(|e| e.reason() == Reason::Unexpected));
}

#[test]
fn zeroes_over_older_bytes_are_written() {
    let v = Volume::new();
    let mut writer = v.volume.stage_file(v.id(), &plain(), WHEN).unwrap();
    writer.write_at(0, &[9; 20_000]).unwrap();
    writer.write_at(0, &[0; 30_000]).unwrap();
    let staged = writer.finish(Some(Digest::of(&[0; 30_000])), 30_000).unwrap();
    assert_eq!(std::fs::read(v.staging(&staged)).unwrap(), [0; 30_000]);
}

#[test]
fn wrong_content_is_not_finished() {
    let v = Volume::new();
    for (bytes, size) in [(&b"abd"[..], 3), (b"abc", 4), (b"abcd", 3)] {
        let mut writer = v.volume.stage_file(v.id(), &plain(), WHEN).unwrap();
        let id = writer.id();
        writer.write_at(0, bytes).unwrap();
        let expected = if bytes == b"abcd" { Digest::of(b"abcd") } else { Digest::of(b"abc") };
        assert_eq!(writer.finish(Some(expected), size).unwrap_err().reason(), Reason::WrongContent);
        // Who goes on with it, after a power cut for instance, would never come to an end.
        let again = v.volume.reopen(id, &plain(), WHEN).map(drop);
        assert_eq!(again.unwrap_err().reason(), Reason::NotFound);
    }
}

#[test]
fn symlinks_and_special_files_come_back() {
    let v = Volume::new();
    let link = Attrs { mode: 0o777, ..plain() };
    let target = b"../nowhere/\xff\n";
    let staged = v.volume.stage_symlink(v.id(), target, &link, WHEN).unwrap();
    v.volume.place(&staged, &v.root(), &name("link"), None).unwrap();
    let read = hashed(&v.root(), "link");
    assert_eq!(read.looked.content, Some(Content::Symlink { target: target[..].into(), mtime: WHEN }));
    assert_eq!(read.looked.attrs, link);
    assert_eq!(v.root().read_link(&name("link")).unwrap(), target);
    let mut kinds = vec![(Kind::Fifo, 0), (Kind::Socket, 0)];
    if is_root() {
        kinds.extend([
            (Kind::CharDev, rustix::fs::makedev(1, 3)),
            (Kind::BlockDev, rustix::fs::makedev(300, 70_000)),
        ]);
    }
    for (kind, rdev) in kinds {
        let attrs = Attrs { mode: 0o2640, ..plain() };
        let staged = v.volume.stage_special(v.id(), kind, rdev, &attrs, WHEN).unwrap();
        v.volume.place(&staged, &v.root(), &name(kind.word()), None).unwrap();
        let read = hashed(&v.root(), kind.word());
        assert_eq!(read.looked.kind, kind);
        assert_eq!(read.looked.content, Some(Content::Special { rdev, mtime: WHEN }));
        assert_eq!(read.looked.attrs, attrs);
        assert_eq!(seen(&v.root(), kind.word()).rdev, rdev);
        // And set in place.
        let other = Attrs { mode: 0o604, ..plain() };
        let done =
            v.volume.set_attrs(&v.root(), &name(kind.word()), &staged.key, kind, &other, Some(WHEN), None);
        assert_eq!(done.unwrap().given, other);
    }
}

#[test]
fn attributes_of_symlinks_are_their_own() {
    let v = Volume::new();
    v.write("target", b"x");
    std::os::unix::fs::symlink("target", v.path("link")).unwrap();
    let mut attrs = Attrs { mode: 0o777, ..plain() };
    if is_root() {
        attrs.uid = 4711;
        attrs.xattrs = vec![(b"trusted.t".to_vec(), b"1".to_vec())];
    }
    let key = seen(&v.root(), "link").key;
    let done = v.volume.set_attrs(&v.root(), &name("link"), &key, Kind::Symlink, &attrs, Some(WHEN), None);
    let done = done.unwrap();
    assert_eq!((done.given, done.fingerprint.mtime), (attrs, WHEN));
    let target = hashed(&v.root(), "target").looked;
    assert_eq!(target.attrs, plain());
    assert_ne!(target.fingerprint.mtime, WHEN);
}

#[test]
fn times_before_1970_and_far_ahead_come_back() {
    let v = Volume::new();
    for (at, sec) in [("a", -1_000_000_000), ("b", 4_000_000_000)] {
        let mtime = driftless_core::Time { sec, nsec: 999_999_999 };
        let staged = v.volume.stage_small(v.id(), b"x", &plain(), mtime).unwrap();
        v.volume.place(&staged, &v.root(), &name(at), None).unwrap();
        assert_eq!(seen(&v.root(), at).fingerprint.mtime, mtime);
    }
}

#[test]
fn odd_names_are_listed_and_ours_are_not() {
    let v = Volume::new();
    let odd: [&[u8]; 4] = [b"\xff\xfe", b"new\nline", &[b'x'; 255], b" "];
    for name in odd {
        std::fs::write(v.tmp.path().join(OsStr::from_bytes(name)), name).unwrap();
    }
    v.write(".driftless-staged-0000000000000001", b"");
    let all = listed(&v.root());
    let mut expected: Vec<Name> = odd.iter().map(|n| Name::new(n).unwrap()).collect();
    expected.sort();
    assert_eq!(all.iter().map(|s| s.name.clone()).collect::<Vec<_>>(), expected);
    for seen in all {
        assert_eq!(v.root().look(&seen.name).unwrap(), Some(seen.clone()));
        assert!(matches!(v.root().hash(&seen.name, &seen, KEEP).unwrap(), HashOutcome::Looked(_)));
    }
}

#[test]
fn a_reserved_name_below_the_root_is_reported_and_stops_nothing() {
    let v = Volume::new();
    std::fs::create_dir_all(v.path("d/.driftless")).unwrap();
    v.write("d/good", b"");
    let names = v.dir("d").list().unwrap();
    assert_eq!(names.len(), 2);
    assert!(matches!(names.name(0), Some(Err(NameError::Reserved))));
    assert_eq!((names.bytes_of(0), names.name(1)), (Some(&b".driftless"[..]), Some(Ok(name("good")))));
}

#[test]
fn hard_links_have_one_key_and_a_rename_keeps_it() {
    let v = Volume::new();
    v.write("a", b"1");
    std::fs::hard_link(v.path("a"), v.path("b")).unwrap();
    let (a, b) = (seen(&v.root(), "a"), seen(&v.root(), "b"));
    assert_eq!((&a.key, a.nlink), (&b.key, 2));
    std::fs::rename(v.path("a"), v.path("c")).unwrap();
    assert_eq!(seen(&v.root(), "c").key, a.key);
    // An inode number may be used again at once; a key is not.
    std::fs::remove_file(v.path("b")).unwrap();
    std::fs::remove_file(v.path("c")).unwrap();
    v.write("d", b"2");
    assert_ne!(seen(&v.root(), "d").key, a.key);
}

#[test]
fn a_file_that_changes_while_read_is_unstable_or_gone() {
    let v = Volume::new();
    v.write("f", b"1");
    let before = seen(&v.root(), "f");
    std::fs::remove_file(v.path("f")).unwrap();
    assert!(matches!(v.root().hash(&name("f"), &before, KEEP).unwrap(), HashOutcome::Gone));
    rustix::fs::mknodat(rustix::fs::CWD, v.path("f"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert!(matches!(v.root().hash(&name("f"), &before, KEEP).unwrap(), HashOutcome::Gone));
    assert_eq!(v.root().open_read(&name("f"), &before.key).unwrap_err().reason(), Reason::WrongIdentity);
}

#[test]
fn a_file_open_for_writing_is_read_and_said_to_be() {
    let v = Volume::new();
    v.write("f", &[1; 4096]);
    let file = std::fs::OpenOptions::new().read(true).write(true).open(v.path("f")).unwrap();
    file.write_at(b"x", 0).unwrap();
    let first = hashed(&v.root(), "f");
    if v.volume.capabilities().leases {
        assert_eq!(first.writers, Writers::Some);
    }
    assert_eq!(first.looked.racy, v.volume.capabilities().tick_ns > 0);
    file.write_at(b"y", 0).unwrap();
    let second = hashed(&v.root(), "f");
    assert_ne!(first.looked.content, second.looked.content);
    drop(file);
    assert_ne!(hashed(&v.root(), "f").writers, Writers::Some);
}
