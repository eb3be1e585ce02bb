use super::*;
use crate::entry::{At, Link};
use crate::id::ReplicaId;
use crate::meta::{Attrs, Content};
use crate::rows::{MemStore, Store};
use crate::tx::Env;
use crate::vv::VersionVector;
use smallvec::smallvec;

mod conflict;
mod cost;
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
        dir_time: None,
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

fn with_tree(test: impl FnOnce(&mut Tx<'_>)) {
    let s = store();
    let snap = s.snapshot().unwrap();
    test(&mut Tx::open(&*snap, ENV).unwrap());
}

/// A change of `e` by replica `r` at `n`.
fn step(e: &Entry, r: u64, n: u64) -> (Entry, Dot, Stamp) {
    let mut e = e.clone();
    e.ctx.add(dot(r, n));
    (e, dot(r, n), stamp(n, r))
}

/// `e` moved by replica `r` at `n`.
fn moved(e: &Entry, parent: EntryId, to: &str, (r, n): (u64, u64)) -> Entry {
    let (mut e, dot, stamp) = step(e, r, n);
    let holds = e.winner().map(|v| v.dot).unwrap_or_default();
    e.links[0].at = At { stamp, dot, parent, name: name(to), holds };
    if e.kind.is_dir() {
        e.note_hist(parent, stamp);
    }
    e
}

/// `e` with its first name removed, and all its versions.
fn removed(e: &Entry, (r, n): (u64, u64)) -> Entry {
    let (mut e, ..) = step(e, r, n);
    let ctx = e.ctx.clone();
    e.links[0].gone.join(&ctx);
    e.removed.join(&ctx);
    e
}

/// `e` with another name.
fn linked(e: &Entry, parent: EntryId, to: &str, (r, n): (u64, u64)) -> Entry {
    let (mut e, dot, stamp) = step(e, r, n);
    let at = At { stamp, dot, parent, name: name(to), holds: e.winner().unwrap().dot };
    e.links.push(Link { id: LinkId(dot), at, gone: VersionVector::new() });
    e.links.sort_by_key(|l| l.id);
    e
}

/// `e` with a version beside those it has.
fn beside(e: &Entry, text: &str, (r, n): (u64, u64)) -> Entry {
    let (mut e, dot, stamp) = step(e, r, n);
    e.data.push(Version { dot, stamp, content: content(text) });
    e.data.sort_by_key(|v| v.dot);
    e
}

fn path(tx: &mut Tx<'_>, e: EntryId) -> Option<String> {
    let names = path_of(tx, e).unwrap()?;
    Some(names.iter().map(|n| n.to_string()).collect::<Vec<_>>().join("/"))
}

/// The pending entries, which are none after this.
fn take_pending(tx: &mut Tx<'_>) -> Vec<EntryId> {
    let all = tx.pending(usize::MAX).unwrap();
    for x in &all {
        tx.remove_pending(*x);
    }
    all
}

const ROOT: EntryId = EntryId::ROOT;

#[test]
fn a_plain_import_marks_nothing() {
    with_tree(|tx| {
        put(tx, dir(id(1, 1), ROOT, "d"));
        put(tx, leaf(id(1, 2), id(1, 1), "f", "x"));
        let f = leaf(id(1, 3), id(1, 1), "g", "x");
        put(tx, f.clone());
        put(tx, moved(&f, ROOT, "h", (1, 4)));
        put(tx, removed(&f, (1, 5)));
        assert_eq!(take_pending(tx), []);
    });
}

/// `mv a b/a | mv b a/b`: the later move is undone, once for all replicas.
#[test]
fn a_cycle_is_cut_by_history() {
    with_tree(|tx| {
        let (a, b) = (dir(id(1, 1), ROOT, "a"), dir(id(1, 2), ROOT, "b"));
        put(tx, a.clone());
        put(tx, b.clone());
        put(tx, leaf(id(1, 3), a.id, "f", "x"));
        put(tx, moved(&a, b.id, "a", (1, 4)));
        assert_eq!(take_pending(tx), []);
        put(tx, moved(&b, a.id, "b", (2, 1)));
        assert_eq!(tx.unrooted().unwrap(), [a.id, b.id]);
        assert_eq!(repaired_edges(tx).unwrap(), [(b.id, ROOT)]);
        assert_eq!(path(tx, id(1, 3)).unwrap(), "b/a/f");
        // A third move takes the cycle apart.
        put(tx, moved(&a, ROOT, "z", (1, 9)));
        assert_eq!(tx.unrooted().unwrap(), []);
        assert_eq!(path(tx, b.id).unwrap(), "z/b");
        assert_eq!(take_pending(tx), [b.id]);
    });
}

/// Model-findings 6, 1: edges of absent directories are repaired, and told, as well.
#[test]
fn absent_directories_are_repaired_too() {
    with_tree(|tx| {
        let (a, b) = (dir(id(1, 1), ROOT, "a"), dir(id(1, 2), ROOT, "b"));
        let (a, b) = (moved(&a, b.id, "a", (1, 3)), moved(&b, a.id, "b", (2, 1)));
        put(tx, removed(&a, (1, 4)));
        put(tx, removed(&b, (1, 5)));
        assert_eq!(repaired_edges(tx).unwrap(), [(b.id, ROOT)]);
        assert_eq!(children(tx, &[ROOT], None, 9).unwrap(), []);
        put(tx, leaf(id(1, 6), a.id, "f", "x"));
        assert_eq!(path(tx, id(1, 6)).unwrap(), "b/a/f");
    });
}

/// Model finding G8: a repair hangs nothing below an absent directory.
#[test]
fn a_repair_takes_present_parents_only() {
    with_tree(|tx| {
        let (p, q) = (dir(id(1, 1), ROOT, "p"), dir(id(1, 2), ROOT, "q"));
        let d = dir(id(1, 3), p.id, "d");
        let d = moved(&moved(&d, q.id, "d", (1, 4)), d.id, "d", (1, 5));
        put(tx, p.clone());
        put(tx, q.clone());
        put(tx, d.clone());
        assert_eq!(path(tx, d.id).unwrap(), "q/d");
        put(tx, removed(&q, (1, 6)));
        assert_eq!(path(tx, d.id).unwrap(), "p/d");
        put(tx, removed(&p, (1, 7)));
        assert_eq!(path(tx, d.id).unwrap(), "d");
        assert_eq!(take_pending(tx), [d.id]);
    });
}

#[test]
fn what_is_below_an_unknown_directory_waits_or_hangs_elsewhere() {
    with_tree(|tx| {
        let (top, mid) = (dir(id(2, 1), ROOT, "top"), dir(id(2, 2), id(2, 1), "mid"));
        put(tx, leaf(id(2, 3), top.id, "f", "x"));
        put(tx, mid.clone());
        assert_eq!(path(tx, id(2, 3)), None);
        assert_eq!(path(tx, mid.id).unwrap(), "mid");
        put(tx, top.clone());
        assert_eq!(path(tx, id(2, 3)).unwrap(), "top/f");
        assert_eq!(path(tx, mid.id).unwrap(), "top/mid");
        assert_eq!(tx.dir(top.id).unwrap().live_children, 2);
        assert_eq!(take_pending(tx), [mid.id, id(2, 3)]);
    });
}

/// `rmdir` of a whole chain against a creation at its end: all comes back, and goes with the last child.
#[test]
fn a_removed_chain_lives_as_long_as_its_last_child() {
    with_tree(|tx| {
        let chain = [dir(id(1, 1), ROOT, "a"), dir(id(1, 2), id(1, 1), "b"), dir(id(1, 3), id(1, 2), "c")];
        for d in &chain {
            put(tx, d.clone());
        }
        for (d, n) in chain.iter().rev().zip(4..) {
            put(tx, removed(d, (1, n)));
        }
        assert_eq!(children(tx, &[ROOT], None, 9).unwrap(), []);
        let f = leaf(id(2, 1), chain[2].id, "f", "x");
        put(tx, f.clone());
        assert_eq!(path(tx, f.id).unwrap(), "a/b/c/f");
        let all: Vec<EntryId> = chain.iter().map(|d| d.id).collect();
        assert_eq!(take_pending(tx), all);
        put(tx, removed(&f, (2, 2)));
        assert!(!is_live(tx, all[0]).unwrap());
        assert_eq!(children(tx, &[ROOT], None, 9).unwrap(), []);
        assert_eq!(take_pending(tx), all);
    });
}

/// A union forms at two depths and comes apart: a member that moves takes its own children along.
#[test]
fn unions_form_and_part() {
    with_tree(|tx| {
        let mine =
            [dir(id(1, 1), ROOT, "d"), dir(id(1, 2), id(1, 1), "s"), leaf(id(1, 3), id(1, 2), "f", "x")];
        let theirs =
            [dir(id(2, 1), ROOT, "e"), dir(id(2, 2), id(2, 1), "s"), leaf(id(2, 3), id(2, 2), "g", "y")];
        for e in mine.iter().chain(&theirs) {
            put(tx, e.clone());
        }
        put(tx, leaf(id(1, 4), id(1, 1), "alone", "z"));
        assert_eq!(take_pending(tx), []);
        put(tx, moved(&theirs[0], ROOT, "d", (2, 4)));
        assert_eq!(class_of(tx, id(2, 2)).unwrap()[..], [id(1, 2), id(2, 2)]);
        assert_eq!(children(tx, &[id(1, 2), id(2, 2)], None, 9).unwrap(), [name("f"), name("g")]);
        assert_eq!(take_pending(tx), [id(1, 1), id(1, 2), id(2, 2), id(2, 3)]);
        put(tx, moved(&theirs[0], ROOT, "e", (2, 5)));
        assert_eq!(class_of(tx, id(2, 2)).unwrap()[..], [id(2, 2)]);
        assert_eq!(path(tx, id(2, 3)).unwrap(), "e/s/g");
        assert_eq!(take_pending(tx), [id(1, 1), id(1, 2), id(2, 2), id(2, 3)]);
    });
}

#[test]
fn equal_contents_at_one_name_are_one_file() {
    with_tree(|tx| {
        put(tx, leaf(id(1, 1), ROOT, "f", "same"));
        put(tx, leaf(id(2, 2), ROOT, "f", "same"));
        let shown = shown_at(tx, &[ROOT], &name("f")).unwrap();
        let claims: Vec<_> = shown.groups[0].claims.iter().map(|c| c.entry).collect();
        assert_eq!((shown.groups.len(), claims), (1, vec![id(2, 2), id(1, 1)]));
        assert_eq!(take_pending(tx), [id(1, 1)]);
        assert!(!is_conflicted(tx, id(1, 1)).unwrap());
    });
}

#[test]
fn extra_siblings_are_shown_at_the_lowest_name_only() {
    with_tree(|tx| {
        let f = leaf(id(1, 1), ROOT, "f", "one");
        let f = beside(&linked(&f, ROOT, "g", (1, 2)), "two", (2, 1));
        put(tx, f.clone());
        // The version of replica 2 has the lesser stamp of the two at n = 1 and 1: its replica is greater.
        let at = |tx: &mut Tx<'_>, n: &str| shown_at(tx, &[ROOT], &name(n)).unwrap().groups;
        let (low, high) = (at(tx, "f"), at(tx, "g"));
        assert_eq!((low.len(), high.len()), (2, 1));
        assert_eq!(low[0].claims[0].version, high[0].claims[0].version);
        assert!(low[1].conflict && low[1].claims[0].extra);
        assert!(is_conflicted(tx, f.id).unwrap());
        // The lowest name goes: the extra comes to the other one.
        let mut f = f;
        let link = &mut f.links[0];
        link.gone.add(link.at.dot);
        put(tx, f);
        assert_eq!(at(tx, "g").len(), 2);
        assert!(at(tx, "f").is_empty());
    });
}

#[test]
fn received_states_are_merged_or_refused() {
    with_tree(|tx| {
        let none = VersionVector::new();
        let f = leaf(id(2, 3), ROOT, "f", "x");
        assert_eq!(receive(tx, &f, &f.ctx).unwrap(), Received::Ignored);
        assert!(tx.entry(f.id).unwrap().is_none());
        assert_eq!(receive(tx, &f, &none).unwrap(), Received::Changed);
        assert_eq!(receive(tx, &f, &none).unwrap(), Received::Unchanged);
        assert_eq!(tx.head(), 1);
        let refused = |tx: &mut Tx<'_>, change: &dyn Fn(&mut Entry)| {
            let mut e = f.clone();
            change(&mut e);
            let answer = receive(tx, &e, &none).unwrap();
            assert!(matches!(answer, Received::Refused(_)), "{answer:?}");
        };
        refused(tx, &|e| e.id = ROOT);
        refused(tx, &|e| e.id = id(2, 0));
        refused(tx, &|e| e.id = id(2, crate::tx::N_MAX + 1));
        refused(tx, &|e| e.links[0].at.parent = id(2, u64::MAX));
        refused(tx, &|e| e.links.clear());
        refused(tx, &|e| {
            (e.kind, e.data[0].content) =
                (Kind::Fifo, Content::Special { rdev: 0, mtime: Default::default() })
        });
        refused(tx, &|e| e.ctx = (0..40_000).map(|r| (ReplicaId(r), 1)).collect());
        assert_eq!(tx.head(), 1);
        let d = dir(id(2, 4), ROOT, "d");
        assert_eq!(receive(tx, &d, &none).unwrap(), Received::Changed);
        let mut other_name = d.clone();
        other_name.links[0].id = LinkId(dot(3, 1));
        assert!(matches!(receive(tx, &other_name, &none).unwrap(), Received::Refused(_)));
    });
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
    assert_eq!(class[..], [id(1, 1), id(2, 1)]);
    let shown = shown_at(&mut tx, &class, &name("f.txt")).unwrap();
    assert_eq!(shown.groups.len(), 2);
    assert_eq!(shown.groups[0].claims[0].entry, id(2, 3));
    let copy = &shown.groups[1].name;
    assert!(copy.to_string().starts_with("f.conflict-19700101T000000Z-"), "{copy}");
    assert!(copy.to_string().ends_with(".txt"));
    assert_eq!(path_of(&mut tx, id(1, 2)).unwrap().unwrap(), [name("d"), copy.clone()]);
    assert_eq!(children(&mut tx, &class, None, 9).unwrap(), [name("f.txt")]);
}
