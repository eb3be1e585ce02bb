use super::*;
use crate::disk::{Fingerprint, Wanted};
use crate::entry::{At, Version};
use crate::id::Kind;
use crate::meta::{Attrs, Content, Digest, Time};
use crate::rows::{MemStore, Store};
use crate::tx::Env;

const OSLO: ReplicaId = ReplicaId(1);
const BERGEN: ReplicaId = ReplicaId(2);
const ENV: Env = Env { now_ns: 5_000_000_000, epoch: 0 };

fn dot(replica: ReplicaId, n: u64) -> Dot {
    Dot::new(replica, n)
}

fn stamp(replica: ReplicaId, clock_ns: u64) -> Stamp {
    Stamp { epoch: 0, clock_ns, replica }
}

fn cuts() -> Cuts {
    Cuts::from([(OSLO, 100)])
}

fn name(s: &str) -> Name {
    Name::new(s.as_bytes()).unwrap()
}

fn version(dot: Dot, text: &str) -> Version {
    let mtime = Time { sec: 2, nsec: 0 };
    let content = Content::File { size: text.len() as u64, mtime, digest: Digest::of(text.as_bytes()) };
    Version { dot, stamp: stamp(dot.replica, dot.n), content }
}

/// An entry that OSLO made by its change `n`.
fn born(kind: Kind, n: u64, parent: EntryId, called: &str) -> Entry {
    let first = dot(OSLO, n);
    let data = if kind.is_dir() { Vec::new() } else { vec![version(first, "first")] };
    let holds = if kind.is_dir() { Dot::default() } else { first };
    let at = At { stamp: stamp(OSLO, n), dot: first, parent, name: name(called), holds };
    Entry {
        id: EntryId(first),
        kind,
        ctx: VersionVector::from_dot(first),
        removed: VersionVector::new(),
        data: data.into(),
        links: vec![Link { id: LinkId(first), at, gone: VersionVector::new() }].into(),
        meta: (stamp(OSLO, n), Attrs::default()),
        dir_time: None,
        hist: if kind.is_dir() { vec![(parent, stamp(OSLO, n))] } else { Vec::new() },
    }
}

fn write(e: &mut Entry, by: Dot, text: &str) {
    e.data = vec![version(by, text)].into();
    e.ctx.add(by);
}

fn rename(e: &mut Entry, by: Dot, to: &str) {
    let at = &mut e.links[0].at;
    (at.dot, at.stamp, at.name) = (by, stamp(by.replica, by.n), name(to));
    e.ctx.add(by);
}

#[test]
fn what_is_within_stays_as_it_is() {
    let mut e = born(Kind::File, 10, EntryId::ROOT, "f");
    write(&mut e, dot(OSLO, 100), "second");
    write(&mut e, dot(BERGEN, 7000), "third");
    assert_eq!(within(&e, &cuts()), Some(e));
}

#[test]
fn of_what_was_made_or_overwritten_beyond_nothing_is_left() {
    assert_eq!(within(&born(Kind::File, 101, EntryId::ROOT, "f"), &cuts()), None);
    assert_eq!(within(&born(Kind::Dir, 101, EntryId::ROOT, "d"), &cuts()), None);
    let mut e = born(Kind::File, 10, EntryId::ROOT, "f");
    write(&mut e, dot(OSLO, 101), "beyond");
    assert_eq!(within(&e, &cuts()), None);
}

#[test]
fn a_name_given_beyond_yields_to_the_one_before() {
    let before = born(Kind::File, 10, EntryId::ROOT, "f");
    let mut e = before.clone();
    rename(&mut e, dot(OSLO, 101), "g");
    let left = within(&e, &cuts()).unwrap();
    assert_eq!((left.links[0].at.stamp, change_beyond(&left, &cuts())), (Stamp::MIN, None));
    for (mut one, other) in [(left.clone(), &before), (before.clone(), &left)] {
        one.merge(other);
        assert_eq!((one.links[0].at.clone(), &one.data), (before.links[0].at.clone(), &before.data));
    }
}

#[test]
fn a_removal_beyond_comes_undone() {
    let mut e = born(Kind::File, 10, EntryId::ROOT, "f");
    e.ctx.add(dot(OSLO, 101));
    (e.removed, e.links[0].gone) = (e.ctx.clone(), e.ctx.clone());
    assert_eq!(e.counting().count(), 0);
    let left = within(&e, &cuts()).unwrap();
    assert_eq!((left.counting().count(), left.present_links().count()), (1, 1));
}

/// What somebody else wrote, and the change beyond replaced, is not taken from who still has it.
#[test]
fn what_is_left_takes_no_version_from_others() {
    let mut theirs = born(Kind::File, 10, EntryId::ROOT, "f");
    let second = version(dot(BERGEN, 5), "a sibling");
    theirs.ctx.add(second.dot);
    theirs.data.push(second);
    // OSLO removes the sibling beyond the Cut.
    let mut e = theirs.clone();
    e.data.truncate(1);
    e.ctx.add(dot(OSLO, 101));
    let left = within(&e, &cuts()).unwrap();
    let mut merged = left.clone();
    merged.merge(&theirs);
    assert_eq!(merged.data, theirs.data);
    theirs.merge(&left);
    assert_eq!(merged.data, theirs.data);
}

fn put(store: &MemStore, change: impl FnOnce(&mut Tx<'_>)) {
    let snapshot = store.snapshot().unwrap();
    let mut tx = Tx::open(&*snapshot, ENV).unwrap();
    change(&mut tx);
    store.commit(tx.into_batch(1)).unwrap();
}

fn node(kind: Kind, bind: Bind) -> Node {
    Node {
        kind,
        fingerprint: Fingerprint::default(),
        racy: false,
        given: Attrs::default(),
        wanted: Wanted::UNKNOWN,
        names: Vec::new(),
        bind,
    }
}

fn key(n: u8) -> NodeKey {
    NodeKey::new(&[n]).unwrap()
}

fn claim(e: &Entry) -> Claim {
    let link = &e.links[0];
    Claim { entry: e.id, link: link.id, name_dot: link.at.dot, version: e.data[0].dot }
}

/// States within go over with the records of what shows them, below directories that were changed beyond, too; a file without
/// content here stays wanted.
#[test]
fn states_and_records_go_over() {
    let store = MemStore::new();
    store.commit(Tx::create(BERGEN)).unwrap();
    let mut dir = born(Kind::Dir, 1, EntryId::ROOT, "d");
    dir.ctx.add(dot(OSLO, 130));
    let kept = born(Kind::File, 2, dir.id, "kept");
    let wanted = born(Kind::File, 3, dir.id, "wanted");
    let mut beyond = born(Kind::File, 4, dir.id, "beyond");
    write(&mut beyond, dot(OSLO, 120), "beyond");
    put(&store, |tx| {
        for e in [&dir, &kept, &wanted, &beyond] {
            tree::receive(tx, e, &VersionVector::new()).unwrap();
        }
        tx.set_root_node(&key(1));
        tx.put_node(&key(1), node(Kind::Dir, Bind::Dir(vec![EntryId::ROOT])));
        let identity = kept.data[0].content.identity();
        let dir_place = Place { node: key(2), claims: Vec::new(), conflict_of: None };
        super::put(tx, (&key(1), &name("d")), dir_place, node(Kind::Dir, Bind::Dir(vec![dir.id])), &[dir.id])
            .unwrap();
        for (e, k) in [(&kept, 3), (&beyond, 4)] {
            let place = Place { node: key(k), claims: vec![claim(e)], conflict_of: None };
            let leaf = node(Kind::File, Bind::Leaf { identity });
            super::put(tx, (&key(2), &e.links[0].at.name), place, leaf, &[e.id]).unwrap();
        }
    });
    let next = MemStore::new();
    next.commit(Tx::create(ReplicaId(9))).unwrap();
    let (cuts, old) = (cuts(), store.snapshot().unwrap());
    let mut old = Tx::open(&*old, ENV).unwrap();
    put(&next, |new| {
        let carry = Carry { cuts: &cuts, changed_files: true };
        let mut from = Some(Vec::new());
        while let Some(at) = from {
            from = carry.states(&mut old, new, &at).unwrap();
        }
        assert_eq!(copy_root(&mut old, new).unwrap(), Some(key(1)));
        let page = copy_places(&mut old, new, &key(1), None).unwrap();
        assert_eq!((page.last, page.below), (Some(name("d")), vec![key(2)]));
        let page = copy_places(&mut old, new, &key(2), None).unwrap();
        assert_eq!((page.last, page.below), (Some(name("kept")), vec![]));
    });
    let snapshot = next.snapshot().unwrap();
    let mut tx = Tx::open(&*snapshot, ENV).unwrap();
    assert_eq!(tx.entry_must(kept.id).unwrap().bound.as_slice(), [key(3)]);
    assert_eq!(tx.entry_must(kept.id).unwrap().entry, kept);
    assert!(tx.entry_must(wanted.id).unwrap().bound.is_empty());
    assert_eq!(tree::path_of(&mut tx, wanted.id).unwrap(), Some(vec![name("d"), name("wanted")]));
    assert!(tx.entry(beyond.id).unwrap().is_none() && tx.node(&key(4)).unwrap().is_none());
    assert_eq!(tx.place(&key(2), &name("kept")).unwrap().map(|p| p.node.clone()), Some(key(3)));
    assert_eq!(tx.node_must(&key(3)).unwrap().names, vec![(key(2), name("kept"))]);
    assert!(tx.knowledge().unwrap().is_empty());
}
