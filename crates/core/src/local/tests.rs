//! Each operation on one replica: the exact state and records. What several replicas make of them is tried in
//! the worlds of `tests/world`.

use super::*;
use crate::id::ReplicaId;
use crate::meta::Digest;
use crate::rows::{MemStore, Store};
use crate::tx::Env;
use std::sync::Arc;

const ME: ReplicaId = ReplicaId(1);
const NOW_NS: u64 = 5_000_000_000;

fn key(n: u8) -> NodeKey {
    NodeKey::new(&[n]).unwrap()
}

fn name(s: &str) -> Name {
    Name::new(s.as_bytes()).unwrap()
}

fn dot(n: u64) -> Dot {
    Dot::new(ME, n)
}

fn id(n: u64) -> EntryId {
    EntryId(dot(n))
}

fn stamp(clock_ns: u64) -> Stamp {
    Stamp { epoch: 3, clock_ns, replica: ME }
}

fn attrs_of(mode: u32) -> Attrs {
    Attrs { mode, ..Attrs::default() }
}

fn dir(node: u8) -> Looked {
    Looked {
        key: key(node),
        kind: Kind::Dir,
        fingerprint: Fingerprint::default(),
        racy: false,
        attrs: attrs_of(0o755),
        content: None,
    }
}

fn file(node: u8, text: &str) -> Looked {
    file_at(node, text, 2)
}

fn file_at(node: u8, text: &str, sec: i64) -> Looked {
    let mtime = Time { sec, nsec: 0 };
    let (size, digest) = (text.len() as u64, Digest::of(text.as_bytes()));
    Looked {
        key: key(node),
        kind: Kind::File,
        fingerprint: Fingerprint { size, mtime, ctime: mtime },
        racy: false,
        attrs: attrs_of(0o644),
        content: Some(Content::File { size, mtime, digest }),
    }
}

/// A store whose root directory is node 1.
fn store() -> MemStore {
    let s = MemStore::new();
    s.commit(Tx::create(ME)).unwrap();
    s
}

fn on_root<T>(f: impl FnOnce(&mut Tx<'_>) -> T) -> T {
    let s = store();
    let snap = s.snapshot().unwrap();
    let mut tx = Tx::open(&*snap, Env { now_ns: NOW_NS, epoch: 3 }).unwrap();
    init_root(&mut tx, &dir(1)).unwrap();
    f(&mut tx)
}

fn make(tx: &mut Tx<'_>, parent: u8, at: &str, new: &Looked) {
    create(tx, (&key(parent), &name(at)), new, Origin::User).unwrap();
}

fn state(tx: &mut Tx<'_>, n: u64) -> Arc<crate::tx::EntryRow> {
    tx.entry_must(id(n)).unwrap()
}

fn claims(tx: &mut Tx<'_>, parent: u8, at: &str) -> Vec<Claim> {
    tx.place(&key(parent), &name(at)).unwrap().unwrap().claims.clone()
}

#[test]
fn a_plain_create_takes_one_dot_for_everything() {
    on_root(|tx| {
        make(tx, 1, "f", &file(2, "one"));
        assert_eq!(tx.head(), 1);
        let row = state(tx, 1);
        assert_eq!((row.n, &row.bound[..]), (1, &[key(2)][..]));
        let e = &row.entry;
        assert_eq!(e.ctx, VersionVector::from_dot(dot(1)));
        assert_eq!((e.data[0].dot, e.data[0].stamp), (dot(1), stamp(NOW_NS)));
        let link = &e.links[0];
        assert_eq!((link.id, link.at.dot, link.at.holds), (LinkId(dot(1)), dot(1), dot(1)));
        assert_eq!((link.at.parent, &link.at.name), (EntryId::ROOT, &name("f")));
        let claim = Claim { entry: id(1), link: LinkId(dot(1)), name_dot: dot(1), version: dot(1) };
        assert_eq!(claims(tx, 1, "f"), [claim]);
        let node = tx.node(&key(2)).unwrap().unwrap();
        assert_eq!(node.names, [(key(1), name("f"))]);
        assert_eq!(node.bind, Bind::Leaf { identity: Digest::of(b"one") });
        assert_eq!(node.wanted, Wanted::of(&attrs_of(0o644), Some(Time { sec: 2, nsec: 0 })));
    });
}

#[test]
fn an_import_is_stamped_by_its_time_and_its_name_by_nothing() {
    on_root(|tx| {
        create(tx, (&key(1), &name("f")), &file_at(2, "x", 2), Origin::Import).unwrap();
        create(tx, (&key(1), &name("g")), &file_at(3, "y", 900), Origin::Import).unwrap();
        let (f, g) = (state(tx, 1), state(tx, 2));
        assert_eq!(f.entry.data[0].stamp, stamp(2_000_000_000));
        assert_eq!(g.entry.data[0].stamp, stamp(NOW_NS), "not later than now");
        assert_eq!((f.entry.links[0].at.stamp, f.entry.meta.0), (Stamp::MIN, Stamp::MIN));
    });
}

#[test]
fn a_write_replaces_the_version_and_keeps_the_name() {
    on_root(|tx| {
        make(tx, 1, "f", &file(2, "one"));
        write(tx, &file_at(2, "two", 3)).unwrap();
        let e = &state(tx, 1).entry;
        assert_eq!(e.data.len(), 1);
        assert_eq!((e.data[0].dot, e.data[0].stamp), (dot(2), stamp(NOW_NS + 1)));
        assert_eq!(e.links[0].at.dot, dot(1));
        assert_eq!(claims(tx, 1, "f")[0].version, dot(2));
        // The same content and time again is nothing.
        write(tx, &file_at(2, "two", 3)).unwrap();
        assert_eq!(tx.head(), 2);
        // Another time of the same bytes is a version.
        write(tx, &file_at(2, "two", 4)).unwrap();
        assert_eq!(state(tx, 1).entry.data[0].dot, dot(3));
    });
}

#[test]
fn only_departures_from_what_was_given_back_are_changes() {
    on_root(|tx| {
        make(tx, 1, "f", &file(2, "one"));
        // The state says root's, the file system would not have it.
        let mut node = (*tx.node_must(&key(2)).unwrap()).clone();
        node.given.uid = 1000;
        tx.put_node(&key(2), node);
        let mut looked = file(2, "one");
        looked.attrs.uid = 1000;
        attrs(tx, &looked).unwrap();
        assert_eq!(tx.head(), 1, "nothing changed");
        looked.attrs.mode = 0o600;
        attrs(tx, &looked).unwrap();
        let meta = state(tx, 1).entry.meta.clone();
        assert_eq!((meta.1.uid, meta.1.mode, meta.0), (0, 0o600, stamp(NOW_NS + 1)));
        let node = tx.node_must(&key(2)).unwrap();
        assert_eq!((node.given.uid, node.given.mode), (1000, 0o600));
        assert_eq!(node.wanted, Wanted::of(&meta.1, Some(Time { sec: 2, nsec: 0 })));
    });
}

/// Gives the entry of `make`'s dot 1 at `f` a concurrent version, and this disk the copy that shows it. Its name.
fn with_copy(tx: &mut Tx<'_>, node: u8, text: &str) -> Name {
    let mut e = state(tx, 1).entry.clone();
    let theirs = Dot::new(ReplicaId(2), 1);
    e.ctx.add(theirs);
    let look = file(node, text);
    let content = look.content.clone().unwrap();
    e.data.push(Version { dot: theirs, stamp: stamp(1), content: content.clone() });
    let n = tx.new_dot().n;
    tree::put_state(tx, e, n).unwrap();
    let group = tree::shown_at(tx, &[EntryId::ROOT], &name("f")).unwrap().groups.remove(1);
    let shares = &group.claims[0];
    let claim =
        Claim { entry: shares.entry, link: shares.link, name_dot: shares.name_dot, version: shares.version };
    let wanted = Wanted::of(&look.attrs, Some(content.mtime()));
    let bound = Bind::Leaf { identity: content.identity() };
    tx.put_node(&look.key, node_of(&look, wanted, Vec::new(), bound));
    let place = Place { node: look.key, claims: vec![claim], conflict_of: Some(name("f")) };
    add_place(tx, (&key(1), &group.name), place).unwrap();
    group.name
}

#[test]
fn a_mode_of_the_winner_is_not_given_to_the_copy_beside_it() {
    on_root(|tx| {
        make(tx, 1, "f", &file(2, "one"));
        let copy = with_copy(tx, 3, "two");
        attrs(tx, &Looked { attrs: attrs_of(0o4755), ..file(2, "one") }).unwrap();
        assert_eq!(state(tx, 1).entry.meta.1.mode, 0o4755);
        let shown = tree::shown_at(tx, &[EntryId::ROOT], &copy).unwrap();
        let own = tx.entry_must(shown.groups[0].claims[0].entry).unwrap();
        assert_ne!(own.entry.id, id(1));
        assert_eq!(own.entry.meta.1.mode, 0o644);
        assert_eq!(tx.place(&key(1), &copy).unwrap().unwrap().conflict_of, None);
    });
}

#[test]
fn xattrs_depart_one_by_one() {
    let x = |k: &str, v: &str| (k.as_bytes().to_vec(), v.as_bytes().to_vec());
    let with = |xs: &[(Vec<u8>, Vec<u8>)]| Attrs { xattrs: xs.to_vec(), ..Attrs::default() };
    let state = with(&[x("a", "1"), x("b", "1"), x("held", "only in the state")]);
    let given = with(&[x("a", "1"), x("b", "1")]);
    let looked = with(&[x("b", "2"), x("c", "3")]);
    let new = departures(&state, &given, &looked);
    assert_eq!(new.xattrs, [x("b", "2"), x("c", "3"), x("held", "only in the state")]);
}

#[test]
fn a_directory_time_goes_where_the_user_sets_it_and_wins_nothing() {
    on_root(|tx| {
        let at = |sec| Looked {
            attrs: Attrs { dir_mtime: Some(Time { sec, nsec: 0 }), ..attrs_of(0o755) },
            ..dir(2)
        };
        make(tx, 1, "d", &at(5));
        attrs(tx, &at(7)).unwrap();
        let e = &state(tx, 1).entry;
        assert_eq!(
            (e.meta.0, e.dir_time),
            (stamp(NOW_NS), Some((stamp(NOW_NS + 1), Time { sec: 7, nsec: 0 })))
        );
        assert!(e.ctx.covers(dot(2)));
        attrs(tx, &at(6)).unwrap();
        let e = &state(tx, 1).entry;
        assert_eq!(
            (e.meta.0, e.dir_time),
            (stamp(NOW_NS), Some((stamp(NOW_NS + 2), Time { sec: 6, nsec: 0 })))
        );
        let node = tx.node_must(&key(2)).unwrap();
        assert_eq!(
            (node.given.dir_mtime, node.wanted),
            (Some(Time { sec: 6, nsec: 0 }), Wanted::of(&e.attrs(), None))
        );
        attrs(tx, &at(6)).unwrap();
        assert_eq!(tx.head(), 3, "nothing departs");
    });
}

#[test]
fn unlink_of_the_last_name_removes_the_version_and_keeps_it_to_be_recognised() {
    on_root(|tx| {
        make(tx, 1, "f", &file(2, "one"));
        unlink(tx, (&key(1), &name("f"))).unwrap();
        let row = state(tx, 1);
        assert_eq!((row.n, row.bound.len()), (2, 0));
        assert_eq!((row.entry.removed.get(ME), row.entry.links[0].gone.get(ME)), (2, 2));
        assert_eq!(row.entry.data[0].content.identity(), Digest::of(b"one"));
        assert!(row.entry.shown_links().is_empty());
        assert_eq!(tx.place(&key(1), &name("f")).unwrap(), None);
        assert_eq!(tx.node(&key(2)).unwrap(), None);
        // Again is nothing.
        unlink(tx, (&key(1), &name("f"))).unwrap();
        assert_eq!(tx.head(), 2);
    });
}

#[test]
fn a_link_is_named_by_its_dot_and_its_removal_takes_only_it() {
    on_root(|tx| {
        make(tx, 1, "f", &file(2, "one"));
        link(tx, &key(2), (&key(1), &name("g"))).unwrap();
        let e = state(tx, 1).entry.clone();
        assert_eq!(e.links.iter().map(|l| l.id).collect::<Vec<_>>(), [LinkId(dot(1)), LinkId(dot(2))]);
        assert_eq!(e.links[1].at.holds, dot(1));
        unlink(tx, (&key(1), &name("f"))).unwrap();
        let e = state(tx, 1).entry.clone();
        assert!(e.removed.is_empty());
        assert!(!e.links[0].present() && e.links[1].present());
        assert_eq!(tx.node_must(&key(2)).unwrap().names, [(key(1), name("g"))]);
        assert_eq!(&state(tx, 1).bound[..], [key(2)]);
    });
}

#[test]
fn a_rename_moves_the_name_and_nothing_else() {
    on_root(|tx| {
        make(tx, 1, "d", &dir(2));
        make(tx, 1, "f", &file(3, "one"));
        rename(tx, (&key(1), &name("f")), (&key(2), &name("g")), u64::MAX).unwrap();
        let e = state(tx, 2).entry.clone();
        let at = &e.links[0].at;
        assert_eq!((at.parent, &at.name, at.dot, at.holds), (id(1), &name("g"), dot(3), dot(2)));
        assert_eq!(e.data[0].dot, dot(2));
        assert_eq!(claims(tx, 2, "g")[0].name_dot, dot(3));
        assert_eq!(tx.node_must(&key(3)).unwrap().names, [(key(2), name("g"))]);
    });
}

#[test]
fn directories_move_with_what_is_in_them_and_go_when_empty() {
    on_root(|tx| {
        make(tx, 1, "d", &dir(2));
        make(tx, 2, "f", &file(3, "one"));
        make(tx, 1, "e", &dir(4));
        rename(tx, (&key(1), &name("d")), (&key(4), &name("d")), u64::MAX).unwrap();
        let e = state(tx, 1).entry.clone();
        assert_eq!((e.links[0].at.parent, e.hist.len()), (id(3), 2));
        assert_eq!(tx.head(), 4, "the file has not moved");
        unlink(tx, (&key(2), &name("f"))).unwrap();
        rmdir(tx, (&key(4), &name("d"))).unwrap();
        let row = state(tx, 1);
        assert!(!row.entry.links[0].present() && row.bound.is_empty());
        assert!(!tree::is_live(tx, id(1)).unwrap());
        assert_eq!(tx.node(&key(2)).unwrap(), None);
    });
}

#[test]
fn a_save_by_temporary_file_writes_to_the_known_entry() {
    on_root(|tx| {
        make(tx, 1, "f", &file(2, "one"));
        let mut saved = file_at(3, "two", 3);
        saved.attrs.mode = 0o600;
        replace(tx, (&key(1), &name("f")), &saved).unwrap();
        let row = state(tx, 1);
        assert_eq!(&row.bound[..], [key(3)]);
        assert_eq!(row.entry.data[0].content.identity(), Digest::of(b"two"));
        assert_eq!(row.entry.meta.1.mode, 0o600);
        assert_eq!(tx.node(&key(2)).unwrap(), None);
        // Another kind is another entry.
        let target = smallvec::SmallVec::from_slice(b"t");
        let symlink = Looked {
            kind: Kind::Symlink,
            content: Some(Content::Symlink { target, mtime: Time::default() }),
            ..file(4, "")
        };
        replace(tx, (&key(1), &name("f")), &symlink).unwrap();
        assert!(state(tx, 1).entry.shown_links().is_empty());
        assert_eq!(tx.place(&key(1), &name("f")).unwrap().unwrap().node, key(4));
    });
}

#[test]
fn a_recorded_temporary_file_is_a_save_until_it_was_shipped() {
    for shipped in [false, true] {
        on_root(|tx| {
            make(tx, 1, "f", &file(2, "one"));
            make(tx, 1, "tmp", &file_at(3, "two", 3));
            let shipped_n = if shipped { 2 } else { 1 };
            rename(tx, (&key(1), &name("tmp")), (&key(1), &name("f")), shipped_n).unwrap();
            let (f, tmp) = (state(tx, 1), state(tx, 2));
            let (lives, dead) = if shipped { (tmp, f) } else { (f, tmp) };
            assert!(dead.entry.shown_links().is_empty() && dead.bound.is_empty());
            assert_eq!(&lives.bound[..], [key(3)]);
            assert_eq!(lives.entry.winner().unwrap().content.identity(), Digest::of(b"two"));
            assert_eq!(claims(tx, 1, "f")[0].entry, lives.entry.id);
        });
    }
}

#[test]
fn a_change_in_an_absent_directory_makes_it_present() {
    on_root(|tx| {
        make(tx, 1, "d", &dir(2));
        make(tx, 2, "e", &dir(3));
        // Somebody else removed both; this disk still shows them.
        for n in [1, 2] {
            let mut e = state(tx, n).entry.clone();
            let ctx = e.ctx.clone();
            e.links[0].gone.join(&ctx);
            let at = tx.take_n();
            tree::put_state(tx, e, at).unwrap();
        }
        make(tx, 3, "f", &file(4, "one"));
        for n in [1, 2] {
            assert!(state(tx, n).entry.links[0].present(), "{n}");
        }
    });
}

#[test]
fn what_is_not_there_is_an_error_or_nothing() {
    on_root(|tx| {
        let (root, f) = (key(1), name("f"));
        assert!(rename(tx, (&root, &f), (&root, &name("g")), 0).is_err());
        unlink(tx, (&root, &f)).unwrap();
        rmdir(tx, (&root, &f)).unwrap();
        assert!(create(tx, (&key(9), &f), &file(2, "x"), Origin::User).is_err(), "no such directory");
        assert!(write(tx, &file(2, "x")).is_err(), "no such inode");
        let unread = Looked { content: None, ..file(2, "x") };
        assert!(create(tx, (&root, &f), &unread, Origin::User).is_err());
    });
}

#[test]
fn copies_of_a_name_are_found_whatever_its_length() {
    on_root(|tx| {
        for (i, base) in ["f", "f.txt", "0", ".x", &"n".repeat(255), &format!("{}.tar", "m".repeat(240))]
            .into_iter()
            .enumerate()
        {
            let base = name(base);
            let copy = tree::conflict_name(&base, dot(7), stamp(1), 0);
            let long = tree::conflict_name(&base, dot(8), stamp(2), 3);
            for (j, at) in [&copy, &long].into_iter().enumerate() {
                let node = key(10 + 2 * i as u8 + j as u8);
                create(tx, (&key(1), at), &Looked { key: node.clone(), ..file(0, "x") }, Origin::User)
                    .unwrap();
                let mut place = (*tx.place(&key(1), at).unwrap().unwrap()).clone();
                place.conflict_of = Some(base.clone());
                tx.put_place(&key(1), at, place);
            }
            settle::copies_of(tx, (&key(1), &base), None).unwrap();
            for at in [&copy, &long] {
                assert_eq!(tx.place(&key(1), at).unwrap().unwrap().conflict_of, None, "{at:?}");
            }
        }
    });
}

#[test]
fn a_clock_that_jumps_by_a_year_makes_newer_stamps_all_the_same() {
    const YEAR_NS: u64 = 31_557_600_000_000_000;
    let s = store();
    let at = |now_ns: u64, tag: u64, change: &dyn Fn(&mut Tx<'_>)| {
        let snap = s.snapshot().unwrap();
        let mut tx = Tx::open(&*snap, Env { now_ns, epoch: 3 }).unwrap();
        change(&mut tx);
        s.commit(tx.into_batch(tag)).unwrap();
    };
    at(YEAR_NS, 1, &|tx| {
        init_root(tx, &dir(1)).unwrap();
        make(tx, 1, "f", &file(2, "one"));
        make(tx, 1, "g", &file(3, "g"));
    });
    // Back by a year, on by two, and back to where it was.
    for (tag, (now_ns, text)) in (2..).zip([(1, "two"), (2 * YEAR_NS, "three"), (YEAR_NS, "four")]) {
        let before = std::cell::Cell::new(Stamp::MIN);
        at(now_ns, tag, &|tx| {
            before.set(state(tx, 1).entry.data[0].stamp);
            write(tx, &file_at(2, text, i64::try_from(tag).unwrap())).unwrap();
            let data = &state(tx, 1).entry.data;
            assert_eq!((data.len(), data[0].content.identity()), (1, Digest::of(text.as_bytes())));
            assert!(data[0].stamp > before.get(), "{text}");
        });
    }
    // What a wrong clock touched is all that it has to do with: others go on by the clock as it is.
    at(YEAR_NS + 5, 9, &|tx| {
        write(tx, &file_at(3, "g again", 3)).unwrap();
        assert_eq!(state(tx, 2).entry.data[0].stamp, stamp(YEAR_NS + 5));
    });
    at(7, 10, &|tx| {
        rename(tx, (&key(1), &name("f")), (&key(1), &name("h")), u64::MAX).unwrap();
        unlink(tx, (&key(1), &name("h"))).unwrap();
        assert_eq!(
            state(tx, 1).entry.counting().count(),
            0,
            "a removal by a clock that is behind takes what it saw"
        );
    });
}
