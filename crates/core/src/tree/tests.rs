use super::*;
use crate::vv::VersionVector;
use crate::entry::{At, Link};
use crate::id::ReplicaId;
use crate::meta::{Attrs, Content};
use crate::rows::{MemStore, Store};
use crate::tx::Env;
use smallvec::smallvec;

mod random;
mod reference;

fn name(s: &str) -> Name {
    Name::new(s.as_bytes()).unwrap()
}

fn dot(r: u64, n: u64) -> Dot {
    Dot::new(ReplicaId(r), n)
}

fn id(r: u64, n: u64) -> EntryId {
    EntryId(dot(r, n))
}

fn stamp(clock_ns: u64, r: u64) -> Stamp {
    Stamp { epoch: 0, clock_ns, replica: ReplicaId(r) }
}

fn content(text: &str) -> Content {
    Content::File { size: text.len() as u64, mtime: Default::default(), digest: Digest::of(text.as_bytes()) }
}

fn leaf(e: EntryId, parent: EntryId, at: &str, text: &str) -> Entry {
    let stamp = stamp(e.0.n, e.0.replica.0);
    let mut ctx = VersionVector::new();
    ctx.add(e.0);
    let at = At { stamp, dot: e.0, parent, name: name(at), holds: e.0 };
    Entry {
        id: e,
        kind: Kind::File,
        ctx,
        removed: VersionVector::new(),
        data: smallvec![Version { dot: e.0, stamp, content: content(text) }],
        links: smallvec![Link { id: LinkId(e.0), at, gone: VersionVector::new() }],
        meta: (stamp, Attrs::default()),
        hist: Vec::new(),
    }
}

fn dir(e: EntryId, parent: EntryId, at: &str) -> Entry {
    dir_at(e, parent, name(at))
}

fn dir_at(e: EntryId, parent: EntryId, at: Name) -> Entry {
    let mut d = leaf(e, parent, "x", "");
    d.links[0].at.name = at;
    d.kind = Kind::Dir;
    d.data.clear();
    d.links[0].at.holds = Dot::default();
    d.note_hist(parent, d.links[0].at.stamp);
    d
}

fn store() -> MemStore {
    let s = MemStore::new();
    s.commit(Tx::create(ReplicaId(1))).unwrap();
    s
}

const ENV: Env = Env { now_ns: 0, epoch: 0 };

fn put(tx: &mut Tx<'_>, e: Entry) {
    let n = tx.take_n();
    put_state(tx, e, n).unwrap();
}

#[test]
fn two_files_at_one_name_and_a_union() {
    let s = store();
    let snap = s.snapshot().unwrap();
    let mut tx = Tx::open(&*snap, ENV).unwrap();
    put(&mut tx, dir(id(1, 1), EntryId::ROOT, "d"));
    put(&mut tx, leaf(id(1, 2), id(1, 1), "f.txt", "one"));
    assert!(tx.pending(9).unwrap().is_empty());
    put(&mut tx, dir(id(2, 1), EntryId::ROOT, "d"));
    put(&mut tx, leaf(id(2, 3), id(2, 1), "f.txt", "two"));
    assert_eq!(tx.pending(9).unwrap(), [id(1, 1), id(1, 2)]);
    let class = class_of(&mut tx, id(1, 1)).unwrap();
    assert_eq!(class, [id(1, 1), id(2, 1)]);
    let shown = shown_at(&mut tx, &class, &name("f.txt")).unwrap();
    assert_eq!(shown.groups.len(), 2);
    assert_eq!(shown.groups[0].claims[0].entry, id(2, 3));
    let copy = &shown.groups[1].name;
    assert!(copy.to_string().starts_with("f.conflict-19700101T000000Z-"), "{copy}");
    assert!(copy.to_string().ends_with(".txt"));
    assert_eq!(path_of(&mut tx, id(1, 2)).unwrap().unwrap(), [name("d"), copy.clone()]);
    assert_eq!(children(&mut tx, &class, None, 9).unwrap(), [name("f.txt")]);
}
