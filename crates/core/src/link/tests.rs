//! Pairs of senders and receivers over channels that lose, repeat and reorder.

use super::*;
use crate::entry::{At, Entry, Link, Version};
use crate::id::{Dot, EntryId, Kind, LinkId, Name, ReplicaId, Stamp};
use crate::meta::{Attrs, Content, Digest};
use crate::rows::{MemStore, Store, Table};
use crate::tree;
use crate::tx::{Env, Knowledge, Known, N_MAX, Tx, knowledge_vv};
use crate::vv::VersionVector;
use smallvec::smallvec;
use std::collections::BTreeMap;

mod held;

/// A small generator: the runs are the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

fn vv(of: &[(u64, u64)]) -> VersionVector {
    of.iter().map(|&(r, n)| (ReplicaId(r), n)).collect()
}

fn name(s: &str) -> Name {
    Name::new(s.as_bytes()).unwrap()
}

/// A replica with its index.
struct Site {
    me: ReplicaId,
    store: MemStore,
    commits: u64,
}

impl Site {
    fn new(me: u64) -> Site {
        let store = MemStore::new();
        store.commit(Tx::create(ReplicaId(me))).unwrap();
        Site { me: ReplicaId(me), store, commits: 0 }
    }

    fn read<T>(&self, f: impl FnOnce(&mut Tx<'_>) -> T) -> T {
        let snapshot = self.store.snapshot().unwrap();
        f(&mut Tx::open(&*snapshot, Env { now_ns: 0, epoch: 0 }).unwrap())
    }

    fn commit<T>(&mut self, f: impl FnOnce(&mut Tx<'_>) -> T) -> T {
        let snapshot = self.store.snapshot().unwrap();
        let mut tx = Tx::open(&*snapshot, Env { now_ns: 0, epoch: 0 }).unwrap();
        let out = f(&mut tx);
        self.commits += 1;
        let tag = self.me.0 * 1_000_000 + self.commits;
        self.store.commit(tx.into_batch(tag)).unwrap();
        out
    }

    fn create(&mut self, kind: Kind, parent: EntryId, at: &str) -> EntryId {
        self.commit(|tx| {
            let dot = tx.new_dot();
            let entry = entry(dot, kind, parent, at);
            let id = entry.id;
            tree::put_state(tx, entry, dot.n).unwrap();
            id
        })
    }

    /// A change of attributes: the smallest there is.
    fn touch(&mut self, id: EntryId) -> Dot {
        self.change(id, |_, _, _| ())
    }

    fn write(&mut self, id: EntryId) -> Dot {
        self.change(id, |e, dot, stamp| {
            let content = file(&dot.to_string());
            e.data = smallvec![Version { dot, stamp, content }];
            e.links[0].at = At { stamp, dot, holds: dot, ..e.links[0].at.clone() };
        })
    }

    fn change(&mut self, id: EntryId, f: impl FnOnce(&mut Entry, Dot, Stamp)) -> Dot {
        self.commit(|tx| {
            let mut e = tx.entry_must(id).unwrap().entry.clone();
            let (dot, stamp) = (tx.new_dot(), tx.stamp_above(e.stamp_max()));
            e.ctx.add(dot);
            e.meta = (stamp, Attrs { uid: dot.n as u32, ..Attrs::default() });
            f(&mut e, dot, stamp);
            tree::put_state(tx, e, dot.n).unwrap();
            dot
        })
    }

    fn state(&self, id: EntryId) -> Option<Entry> {
        self.read(|tx| tx.entry(id).unwrap().map(|row| row.entry.clone()))
    }

    fn knows(&self) -> VersionVector {
        self.read(|tx| knowledge_vv(&tx.knowledge().unwrap()))
    }

    fn head(&self) -> u64 {
        self.read(|tx| tx.head())
    }

    fn cursor(&self, peer: ReplicaId) -> u64 {
        self.read(|tx| peer_row(tx, peer).unwrap().cursor)
    }

    fn sender_to(&self, peer: &Site, limits: SendLimits) -> Sender {
        let hello = peer.hello();
        match self.read(|tx| check_hello(tx, 7, &hello).unwrap()) {
            HelloVerdict::Fine { start_cursor, .. } => {
                Sender::new(peer.me, start_cursor, knowledge_vv(&hello.knowledge), limits)
            }
            other => panic!("{other:?}"),
        }
    }

    fn hello(&self) -> Hello {
        let own = OwnHello { volume: 7, site: "x".into(), role: Role::Writer, inline: true, scanned: true };
        self.read(|tx| hello(tx, &own).unwrap())
    }

    fn poll(&self, sender: &mut Sender, now_ms: u64) -> Option<Outgoing> {
        self.read(|tx| sender.poll(tx, now_ms).unwrap())
    }

    fn receive(&mut self, from: ReplicaId, batch: &Batch) -> Merged {
        self.commit(|tx| Receiver::new(from).handle_batch(tx, batch).unwrap())
    }
}

fn file(text: &str) -> Content {
    Content::File { size: text.len() as u64, mtime: Default::default(), digest: Digest::of(text.as_bytes()) }
}

fn entry(dot: Dot, kind: Kind, parent: EntryId, at: &str) -> Entry {
    let stamp = Stamp { epoch: 0, clock_ns: dot.n, replica: dot.replica };
    let is_dir = kind == Kind::Dir;
    let holds = if is_dir { Dot::default() } else { dot };
    let at = At { stamp, dot, parent, name: name(at), holds };
    let version = Version { dot, stamp, content: file(&dot.to_string()) };
    Entry {
        id: EntryId(dot),
        kind,
        ctx: VersionVector::from_dot(dot),
        removed: VersionVector::new(),
        data: (!is_dir).then_some(version).into_iter().collect(),
        links: smallvec![Link { id: LinkId(dot), at, gone: VersionVector::new() }],
        meta: (stamp, Attrs::default()),
        dir_time: None,
        hist: if is_dir { vec![(parent, stamp)] } else { Vec::new() },
    }
}

/// No waiting, whole window, so that single steps can be looked at.
fn eager() -> SendLimits {
    SendLimits { relay_delay_ms: 0, fill_rows: 0, ..SendLimits::default() }
}

fn one_entry() -> SendLimits {
    SendLimits { batch_entries: 1, ..eager() }
}

/// Sends until nothing more leaves.
fn bring(from: &Site, sender: &mut Sender, to: &mut Site, now_ms: u64) -> Vec<Batch> {
    let mut sent = Vec::new();
    while let Some(out) = from.poll(sender, now_ms) {
        let merged = to.receive(from.me, &out.batch);
        assert!(sender.handle_receipt(&merged.receipt).is_empty());
        sent.push(out.batch);
        assert!(sent.len() < 1000, "no end");
    }
    sent
}

// ----- single steps

#[test]
fn a_change_crosses_once_and_then_all_is_quiet() {
    let (mut a, mut b) = (Site::new(1), Site::new(2));
    let f = a.create(Kind::File, EntryId::ROOT, "f");
    let (mut ab, mut ba) = (a.sender_to(&b, eager()), b.sender_to(&a, eager()));
    let out = a.poll(&mut ab, 0).unwrap();
    assert_eq!(out.batch.entries.len(), 1);
    assert_eq!(out.inline.len(), 1);
    assert_eq!((out.inline[0].entry, out.inline[0].version), (f, f.0));
    assert_eq!((out.batch.from, out.batch.to, out.batch.tag), (0, 1, 1_000_001));
    let merged = b.receive(a.me, &out.batch);
    ba.handle_merged(&merged.echoes);
    assert_eq!(merged.changed, [f]);
    assert_eq!(merged.receipt.states.len(), 1);
    assert!(ab.handle_receipt(&merged.receipt).is_empty());
    assert_eq!(b.state(f), a.state(f));
    assert_eq!(b.knows(), vv(&[(1, 1)]));
    assert_eq!((b.cursor(a.me), ab.acked_cursor()), (1, 1));
    assert!(a.read(|tx| ab.at_head(tx)));
    for now in [0, 1_000, 60_000] {
        assert_eq!(a.poll(&mut ab, now), None);
    }
    assert_eq!(b.poll(&mut ba, 0), None, "no echo");
    assert!(b.read(|tx| ba.at_head(tx)));
    let cursor_only = b.poll(&mut ba, 60_000).unwrap().batch;
    assert!(cursor_only.entries.is_empty() && cursor_only.to == 1);
    let merged = a.receive(b.me, &cursor_only);
    assert_eq!((merged.changed.len(), merged.receipt.cursor), (0, 1));
    ba.handle_receipt(&merged.receipt);
    for now in [120_000, 1_000_000] {
        assert_eq!(b.poll(&mut ba, now), None, "quiet");
    }
}

#[test]
fn a_repeated_batch_changes_nothing() {
    let (mut a, mut b) = (Site::new(1), Site::new(2));
    a.create(Kind::File, EntryId::ROOT, "f");
    let mut s = a.sender_to(&b, eager());
    let batch = a.poll(&mut s, 0).unwrap().batch;
    let first = b.receive(a.me, &batch);
    let head = b.head();
    let second = b.receive(a.me, &batch);
    assert!(second.changed.is_empty());
    assert_eq!(second.receipt, first.receipt);
    assert_eq!(b.head(), head);
}

#[test]
fn a_batch_after_a_lost_one_moves_nothing_and_is_repaired() {
    let (mut a, mut b) = (Site::new(1), Site::new(2));
    let ids: Vec<_> = ["x", "y", "z"].map(|n| a.create(Kind::File, EntryId::ROOT, n)).to_vec();
    let mut s = a.sender_to(&b, one_entry());
    let _lost = a.poll(&mut s, 0).unwrap();
    let second = a.poll(&mut s, 0).unwrap().batch;
    let third = a.poll(&mut s, 0).unwrap().batch;
    assert_eq!((second.from, second.to, third.to), (1, 2, 3));
    assert!(third.knowledge.is_some());
    for batch in [&second, &third] {
        let merged = b.receive(a.me, batch);
        assert_eq!(merged.changed.len(), 1);
        assert_eq!((merged.receipt.cursor, b.knows()), (0, vv(&[])));
        s.handle_receipt(&merged.receipt);
    }
    let again = bring(&a, &mut s, &mut b, 0);
    assert_eq!(again[0].from, 0);
    assert_eq!((b.cursor(a.me), b.knows()), (3, vv(&[(1, 3)])));
    assert!(ids.iter().all(|id| b.state(*id) == a.state(*id)));
}

/// B knows (A,1) and e lies in front of D's cursor; before D reads it, B merges C's change into e, which
/// moves e behind the head that D was about to read to. Knowledge of (A,1) must not reach D without it.
#[test]
fn knowledge_does_not_overtake_a_row_that_moved() {
    let (mut a, mut b, mut c, mut d) = (Site::new(1), Site::new(2), Site::new(3), Site::new(4));
    let e = c.create(Kind::File, EntryId::ROOT, "e");
    let mut to_a = c.sender_to(&a, eager());
    bring(&c, &mut to_a, &mut a, 0);
    let mut cd = c.sender_to(&d, eager());
    bring(&c, &mut cd, &mut d, 0);
    let mut cb = c.sender_to(&b, eager());
    bring(&c, &mut cb, &mut b, 0);

    b.create(Kind::File, EntryId::ROOT, "x");
    let change_of_a = a.touch(e);
    let mut ab = a.sender_to(&b, eager());
    bring(&a, &mut ab, &mut b, 0);
    let change_of_c = c.touch(e);
    bring(&c, &mut cd, &mut d, 0);
    assert!(d.knows().covers(change_of_c) && b.knows().covers(change_of_a));

    let mut bd = b.sender_to(&d, one_entry());
    let first = b.poll(&mut bd, 0).unwrap().batch;
    assert!(first.knowledge.is_none(), "rows follow in the snapshot");
    bring(&c, &mut cb, &mut b, 0);
    let merged = d.receive(b.me, &first);
    bd.handle_receipt(&merged.receipt);
    assert!(!d.knows().covers(change_of_a));
    bring(&b, &mut bd, &mut d, 0);
    assert!(d.knows().covers(change_of_a));
    assert!(d.state(e).unwrap().ctx.covers(change_of_a));
    assert_eq!(d.state(e), b.state(e));
}

#[test]
fn knowledge_is_claimed_only_at_the_end_of_the_snapshot() {
    let (mut a, mut b) = (Site::new(1), Site::new(2));
    for n in ["x", "y", "z"] {
        a.create(Kind::File, EntryId::ROOT, n);
    }
    let mut s = a.sender_to(&b, one_entry());
    let batches = bring(&a, &mut s, &mut b, 0);
    let claims: Vec<_> = batches.iter().map(|b| (b.to, b.knowledge.is_some())).collect();
    assert_eq!(claims, [(1, false), (2, false), (3, true)]);
}

#[test]
fn rows_come_after_the_directories_above_them() {
    let (mut a, b) = (Site::new(1), Site::new(2));
    let top = a.create(Kind::Dir, EntryId::ROOT, "top");
    let deep = a.create(Kind::Dir, top, "deep");
    let f = a.create(Kind::File, deep, "f");
    a.touch(deep);
    a.touch(top);
    let mut s = a.sender_to(&b, one_entry());
    let batch = a.poll(&mut s, 0).unwrap().batch;
    let order: Vec<_> = batch.entries.iter().map(|e| e.id).collect();
    assert_eq!(order, [top, deep, f]);
    assert_eq!(batch.to, f.0.n);
    let all = a.poll(&mut a.sender_to(&b, eager()), 0).unwrap().batch;
    assert_eq!(all.entries.len(), 3, "each once");
    assert_eq!(all.to, 5);
    let knows_top = vv(&[(1, 5)]);
    let mut s = Sender::new(b.me, 0, knows_top, eager());
    a.touch(f);
    let only: Vec<_> = a.poll(&mut s, 0).unwrap().batch.entries.iter().map(|e| e.id).collect();
    assert_eq!(only, [f], "what the peer knows need not come along");
}

#[test]
fn an_interrupted_link_goes_on_at_the_cursor() {
    let (mut a, mut b) = (Site::new(1), Site::new(2));
    for n in ["x", "y", "z"] {
        a.create(Kind::File, EntryId::ROOT, n);
    }
    let mut s = a.sender_to(&b, one_entry());
    let out = a.poll(&mut s, 0).unwrap();
    b.receive(a.me, &out.batch);
    let mut s = a.sender_to(&b, one_entry());
    let batches = bring(&a, &mut s, &mut b, 0);
    assert_eq!(batches.iter().map(|b| b.from).collect::<Vec<_>>(), [1, 2]);
    a.commit(|tx| s.save(tx).unwrap());
    assert_eq!(a.read(|tx| peer_row(tx, b.me).unwrap().acked), 3);
}

#[test]
fn the_window_bounds_what_is_in_flight() {
    let (mut a, mut b) = (Site::new(1), Site::new(2));
    for i in 0..10 {
        a.create(Kind::File, EntryId::ROOT, &i.to_string());
    }
    let mut s = a.sender_to(&b, SendLimits { window: 2, ..one_entry() });
    let first = a.poll(&mut s, 0).unwrap().batch;
    assert!(a.poll(&mut s, 0).is_some());
    assert_eq!(a.poll(&mut s, 99_999), None);
    let backlog = s.backlog(a.head());
    assert_eq!(backlog.rows, 10);
    assert!(backlog.in_flight_bytes > 0);
    let merged = b.receive(a.me, &first);
    s.handle_receipt(&merged.receipt);
    assert!(a.poll(&mut s, 0).is_some());
    assert_eq!(a.poll(&mut s, 0), None);
}

#[test]
fn batches_start_small_and_grow() {
    let (mut a, mut b) = (Site::new(1), Site::new(2));
    for i in 0..200 {
        a.create(Kind::File, EntryId::ROOT, &i.to_string());
    }
    let limits = SendLimits { first_batch_bytes: 2_000, batch_bytes: 8_000, ..eager() };
    let mut s = a.sender_to(&b, limits);
    let sizes: Vec<_> = bring(&a, &mut s, &mut b, 0).iter().map(|b| b.entries.len()).collect();
    assert!(sizes.len() > 3 && sizes[0] < sizes[1] && sizes[1] < sizes[2], "{sizes:?}");
    assert_eq!(sizes.iter().sum::<usize>(), 200);
}

#[test]
fn a_lone_change_leaves_at_once_and_a_stream_is_stacked() {
    let (mut a, mut b) = (Site::new(1), Site::new(2));
    let limits = SendLimits { fill_rows: 4, ..eager() };
    let mut s = a.sender_to(&b, limits);
    a.create(Kind::File, EntryId::ROOT, "x");
    let first = a.poll(&mut s, 0).unwrap().batch;
    a.create(Kind::File, EntryId::ROOT, "y");
    assert_eq!(a.poll(&mut s, 10), None, "waits for more while one is in flight");
    assert_eq!(s.poll_at_ms(), Some(30_010));
    assert!(a.poll(&mut s, 30_010).is_some(), "but not for ever");
    a.create(Kind::File, EntryId::ROOT, "z");
    assert_eq!(a.poll(&mut s, 30_011), None);
    let merged = b.receive(a.me, &first);
    s.handle_receipt(&merged.receipt);
    assert!(a.poll(&mut s, 30_012).is_some(), "a receipt frees a place");
    for i in 0..4 {
        a.create(Kind::File, EntryId::ROOT, &i.to_string());
    }
    assert!(a.poll(&mut s, 30_013).is_some(), "enough has come together");
}

// ----- relays

#[test]
fn relayed_rows_wait_and_own_ones_overtake_them() {
    let (mut a, mut b, mut c) = (Site::new(1), Site::new(2), Site::new(3));
    let f = a.create(Kind::File, EntryId::ROOT, "f");
    let mut ab = a.sender_to(&b, eager());
    bring(&a, &mut ab, &mut b, 0);
    let g = b.create(Kind::File, EntryId::ROOT, "g");
    let mut bc = b.sender_to(&c, SendLimits::default());

    let early = b.poll(&mut bc, 0).unwrap();
    assert_eq!(early.batch.entries.iter().map(|e| e.id).collect::<Vec<_>>(), [g]);
    assert_eq!((early.batch.to, early.batch.knowledge.is_some()), (0, false));
    let merged = c.receive(b.me, &early.batch);
    bc.handle_receipt(&merged.receipt);
    assert_eq!((c.cursor(b.me), c.knows()), (0, vv(&[])));
    assert!(!b.read(|tx| bc.at_head(tx)));
    assert_eq!(b.poll(&mut bc, 1_999), None);
    assert_eq!(bc.poll_at_ms(), Some(2_000));
    let late = b.poll(&mut bc, 2_000).unwrap();
    assert_eq!(late.batch.entries.iter().map(|e| e.id).collect::<Vec<_>>(), [f]);
    assert!(late.inline.is_empty(), "the peer asks for what it lacks");
    let merged = c.receive(b.me, &late.batch);
    bc.handle_receipt(&merged.receipt);
    assert_eq!((c.cursor(b.me), c.knows()), (2, vv(&[(1, 1), (2, 2)])));
    assert_eq!((c.state(f), c.state(g)), (b.state(f), b.state(g)));
}

#[test]
fn what_the_peer_hears_meanwhile_is_not_relayed() {
    let (mut a, mut b, mut c) = (Site::new(1), Site::new(2), Site::new(3));
    a.create(Kind::File, EntryId::ROOT, "f");
    let mut ab = a.sender_to(&b, eager());
    bring(&a, &mut ab, &mut b, 0);
    let mut bc = b.sender_to(&c, SendLimits::default());
    assert_eq!(b.poll(&mut bc, 0), None);
    let mut ac = a.sender_to(&c, eager());
    bring(&a, &mut ac, &mut c, 0);
    let mut heard = Receiver::new(b.me);
    assert_eq!(c.read(|tx| heard.poll(tx, 0).unwrap()), None, "more may come");
    assert_eq!(heard.poll_at_ms(), Some(500));
    let news = c.read(|tx| heard.poll(tx, 500).unwrap()).unwrap();
    assert_eq!((news.seq, news.knowledge.clone()), (0, vv(&[(1, 1)])));
    assert_eq!(c.read(|tx| heard.poll(tx, 5_000).unwrap()), None, "told once");
    bc.handle_receipt(&news);
    assert_eq!(b.poll(&mut bc, 2_000), None);
    assert!(b.read(|tx| bc.at_head(tx)));
}

/// A peer that was yet to look at its tree when it said hello takes contents along as soon as it has.
#[test]
fn contents_go_along_once_the_peer_takes_them() {
    let (mut a, b) = (Site::new(1), Site::new(2));
    let mut ab = a.sender_to(&b, SendLimits { inline: false, ..eager() });
    a.create(Kind::File, EntryId::ROOT, "f");
    assert!(a.poll(&mut ab, 0).unwrap().inline.is_empty());
    ab.send_inline();
    let g = a.create(Kind::File, EntryId::ROOT, "g");
    let out = a.poll(&mut ab, 0).unwrap();
    assert_eq!((out.inline.len(), out.inline[0].entry), (1, g));
    // What is relayed it may hear from others by now.
    let (mut b, c) = (b, Site::new(3));
    bring(&a, &mut a.sender_to(&b, eager()), &mut b, 0);
    let mut bc = b.sender_to(&c, SendLimits { inline: false, ..SendLimits::default() });
    bc.hears_itself([]);
    bc.send_inline();
    let out = b.poll(&mut bc, 0).unwrap();
    assert_eq!((out.batch.entries.len(), out.inline.len()), (2, 0));
}

#[test]
fn what_nobody_else_can_bring_is_relayed_at_once() {
    let (mut a, mut b, c) = (Site::new(1), Site::new(2), Site::new(3));
    a.create(Kind::File, EntryId::ROOT, "f");
    bring(&a, &mut a.sender_to(&b, eager()), &mut b, 0);
    let to_one_that_hears = |heard: &[ReplicaId]| {
        let mut bc = b.sender_to(&c, SendLimits::default());
        bc.hears_itself(heard.iter().copied());
        bc
    };
    // The end of a chain: with the content, since it has nobody else to ask.
    let out = b.poll(&mut to_one_that_hears(&[]), 0).unwrap();
    assert_eq!((out.batch.entries.len(), out.inline.len()), (1, 1));
    // It hears another, who may bring it too.
    let out = b.poll(&mut to_one_that_hears(&[ReplicaId(9)]), 0).unwrap();
    assert_eq!((out.batch.entries.len(), out.inline.len()), (1, 0));
    // It hears the maker.
    let mut bc = to_one_that_hears(&[a.me]);
    assert_eq!(b.poll(&mut bc, 0), None);
    assert!(b.poll(&mut bc, 2_000).unwrap().inline.is_empty());
    // What it knows without having been told here it has heard elsewhere.
    let mut bc = to_one_that_hears(&[]);
    bc.handle_receipt(&Receipt { knowledge: vv(&[(1, 1)]), ..Receipt::default() });
    a.create(Kind::File, EntryId::ROOT, "g");
    bring(&a, &mut a.sender_to(&b, eager()), &mut b, 0);
    assert_eq!(b.poll(&mut bc, 0), None);
    assert!(b.poll(&mut bc, 2_000).is_some());
}

#[test]
fn what_came_from_the_peer_does_not_go_back() {
    let (mut c, mut a, mut b) = (Site::new(3), Site::new(1), Site::new(2));
    for n in ["x", "y", "z"] {
        c.create(Kind::File, EntryId::ROOT, n);
    }
    let mut ca = c.sender_to(&a, eager());
    bring(&c, &mut ca, &mut a, 0);
    let (mut ab, mut ba) = (a.sender_to(&b, one_entry()), b.sender_to(&a, eager()));
    let half = a.poll(&mut ab, 0).unwrap().batch;
    assert!(half.knowledge.is_none());
    let merged = b.receive(a.me, &half);
    ba.handle_merged(&merged.echoes);
    assert_eq!(b.poll(&mut ba, 0), None, "though a has not said that it knows c's changes");
    let mut ab = a.sender_to(&b, one_entry());
    let mut ba = Sender::new(a.me, 0, VersionVector::new(), SendLimits::default());
    let more = a.poll(&mut ab, 0).unwrap().batch;
    let merged = b.receive(a.me, &more);
    assert_eq!(b.poll(&mut ba, 0), None, "held");
    ba.handle_merged(&merged.echoes);
    assert_eq!(b.poll(&mut ba, 2_000).map(|o| o.batch.entries.len()), Some(1), "only what came before");
}

#[test]
fn knowledge_that_was_lost_is_told_again() {
    let (mut a, mut b) = (Site::new(1), Site::new(2));
    a.create(Kind::File, EntryId::ROOT, "f");
    let limits = SendLimits { resend_after_ms: Some(5_000), ..eager() };
    let mut s = a.sender_to(&b, limits);
    bring(&a, &mut s, &mut b, 0);
    a.commit(|tx| tx.set_known(ReplicaId(3), Known { n: 4, tag: 1 }));
    let lost = a.poll(&mut s, 0).unwrap().batch;
    assert!(lost.entries.is_empty() && lost.knowledge.is_some());
    assert_eq!(a.poll(&mut s, 4_999), None);
    bring(&a, &mut s, &mut b, 5_000);
    assert_eq!(b.knows(), vv(&[(1, 1), (3, 4)]));
}

#[test]
fn no_knowledge_while_a_row_sent_ahead_has_no_receipt() {
    let (mut a, mut b, mut c) = (Site::new(1), Site::new(2), Site::new(3));
    a.create(Kind::File, EntryId::ROOT, "f");
    let mut ab = a.sender_to(&b, eager());
    bring(&a, &mut ab, &mut b, 0);
    let g = b.create(Kind::File, EntryId::ROOT, "g");
    let limits = SendLimits { fill_rows: 0, resend_after_ms: Some(60_000), ..SendLimits::default() };
    let mut bc = b.sender_to(&c, limits);
    let _lost = b.poll(&mut bc, 0).unwrap();
    let late = b.poll(&mut bc, 32_000).unwrap().batch;
    assert_eq!((late.to, late.knowledge.is_some()), (1, false));
    let merged = c.receive(b.me, &late);
    bc.handle_receipt(&merged.receipt);
    assert_eq!(c.knows(), vv(&[]));
    assert_eq!(c.state(g), None);
    assert_eq!(bc.poll_at_ms(), Some(60_000));
    bring(&b, &mut bc, &mut c, 60_000);
    assert_eq!(c.state(g), b.state(g));
    assert_eq!(c.knows(), vv(&[(1, 1), (2, 2)]));
}

/// A site with so many files that replica 9 made.
fn with_foreign_files(count: u64) -> Site {
    let mut a = Site::new(1);
    a.commit(|tx| {
        for i in 1..=count {
            let n = tx.take_n();
            let e = entry(Dot::new(ReplicaId(9), i), Kind::File, EntryId::ROOT, &i.to_string());
            tree::put_state(tx, e, n).unwrap();
        }
        tx.set_known(ReplicaId(9), Known { n: count, tag: 1 });
    });
    a
}

#[test]
fn a_long_walk_over_what_the_peer_knows_goes_in_steps() {
    let (a, mut b) = (with_foreign_files(9_000), Site::new(2));
    let mut s = Sender::new(b.me, 0, vv(&[(9, 9_000)]), eager());
    let step = a.poll(&mut s, 0).unwrap().batch;
    assert_eq!((step.entries.len(), step.to, step.knowledge.is_some()), (0, 8_192, false));
    let merged = b.receive(a.me, &step);
    s.handle_receipt(&merged.receipt);
    assert_eq!(b.cursor(a.me), 8_192);
    assert_eq!(s.poll_at_ms(), Some(0), "there is more to walk over");
    assert_eq!(a.poll(&mut s, 0), None);
    assert!(a.read(|tx| s.at_head(tx)));
}

#[test]
fn more_relayed_rows_than_can_wait_go_in_turns() {
    let (a, mut b) = (with_foreign_files(9_000), Site::new(2));
    let mut s = a.sender_to(&b, SendLimits::default());
    assert_eq!((a.poll(&mut s, 0), s.poll_at_ms()), (None, Some(0)));
    assert_eq!((a.poll(&mut s, 0), s.poll_at_ms()), (None, Some(2_000)), "no room for more");
    let first: usize = bring(&a, &mut s, &mut b, 2_000).iter().map(|b| b.entries.len()).sum();
    assert_eq!((first, b.cursor(a.me)), (8_192, 8_192));
    bring(&a, &mut s, &mut b, 4_000);
    assert_eq!((b.cursor(a.me), b.knows()), (9_000, vv(&[(9, 9_000)])));
}

// ----- receipts

#[test]
fn a_state_that_differs_is_sent_three_times_more_and_reported() {
    let (mut a, mut b) = (Site::new(1), Site::new(2));
    let f = a.create(Kind::File, EntryId::ROOT, "f");
    let mut s = a.sender_to(&b, eager());
    let (mut sent, mut failures) = (0, Vec::new());
    while let Some(out) = a.poll(&mut s, 0) {
        sent += out.batch.entries.len();
        let mut receipt = b.receive(a.me, &out.batch).receipt;
        receipt.states.iter_mut().for_each(|s| s.1 ^= 1);
        failures.extend(s.handle_receipt(&receipt));
    }
    assert_eq!(sent, 4);
    assert_eq!(failures, [SendFailure { entry: f, reason: SendFailureReason::Differs }]);
    assert!(a.read(|tx| s.at_head(tx)));
}

#[test]
fn a_state_that_differs_once_is_mended() {
    let (mut a, mut b) = (Site::new(1), Site::new(2));
    a.create(Kind::File, EntryId::ROOT, "f");
    let mut s = a.sender_to(&b, eager());
    let out = a.poll(&mut s, 0).unwrap();
    let mut receipt = b.receive(a.me, &out.batch).receipt;
    receipt.states[0].1 ^= 1;
    assert!(s.handle_receipt(&receipt).is_empty());
    assert_eq!(bring(&a, &mut s, &mut b, 0).len(), 1);
    assert!(a.read(|tx| s.at_head(tx)));
}

#[test]
fn a_receipt_cannot_promise_more_than_was_sent() {
    let (mut a, mut b) = (Site::new(1), Site::new(2));
    a.create(Kind::File, EntryId::ROOT, "f");
    let mut s = a.sender_to(&b, eager());
    let out = a.poll(&mut s, 0).unwrap();
    let mut receipt = b.receive(a.me, &out.batch).receipt;
    receipt.cursor = u64::MAX;
    s.handle_receipt(&receipt);
    assert_eq!(s.acked_cursor(), 1);
    s.handle_receipt(&Receipt { seq: 99, to: 5, cursor: 4, ..Receipt::default() });
    assert_eq!(s.acked_cursor(), 1);
}

#[test]
fn a_state_has_one_digest() {
    let mut d = entry(Dot::new(ReplicaId(1), 1), Kind::Dir, EntryId::ROOT, "d");
    let before = state_digest(&d);
    d.dir_time = Some(Default::default());
    assert_ne!(state_digest(&d), before);
    d.dir_time = None;
    assert_eq!(state_digest(&d), before);
    d.meta.1.mode = 1;
    assert_ne!(state_digest(&d), before);
}

// ----- handshake

#[test]
fn tags_tell_an_index_that_was_put_back() {
    let (mut a, mut b) = (Site::new(1), Site::new(2));
    a.create(Kind::File, EntryId::ROOT, "x");
    let mut old_a = Site::new(1);
    old_a.create(Kind::File, EntryId::ROOT, "x");
    a.create(Kind::File, EntryId::ROOT, "y");
    let mut s = a.sender_to(&b, eager());
    bring(&a, &mut s, &mut b, 0);
    let verdict = |site: &Site, peer: &Site| site.read(|tx| check_hello(tx, 7, &peer.hello()).unwrap());

    assert_eq!(verdict(&old_a, &b), HelloVerdict::WeAreRolledBack, "b knows change 2");
    assert_eq!(verdict(&b, &old_a), HelloVerdict::PeerRolledBack);
    old_a.commits = 100;
    old_a.create(Kind::File, EntryId::ROOT, "other y");
    assert_eq!(verdict(&old_a, &b), HelloVerdict::WeAreRolledBack, "change 2 has another tag");
    assert_eq!(verdict(&b, &old_a), HelloVerdict::PeerRolledBack);
    let fine = HelloVerdict::Fine { version: PROTOCOL_MAX, start_cursor: 2, distrusted: Vec::new() };
    assert_eq!(verdict(&a, &b), fine);
}

#[test]
fn a_cursor_alone_tells_too() {
    let mut a = Site::new(1);
    a.create(Kind::File, EntryId::ROOT, "x");
    let mut b = Site::new(2);
    let check = |a: &Site, b: &Site| {
        let mut hello = b.hello();
        hello.knowledge.clear();
        a.read(|tx| check_hello(tx, 7, &hello).unwrap())
    };
    b.commit(|tx| put_peer_row(tx, ReplicaId(1), &PeerRow { cursor: 1, tag: 5, ..PeerRow::default() }));
    assert_eq!(check(&a, &b), HelloVerdict::WeAreRolledBack);
    b.commit(|tx| put_peer_row(tx, ReplicaId(1), &PeerRow { cursor: 9, tag: 0, ..PeerRow::default() }));
    assert_eq!(check(&a, &b), HelloVerdict::WeAreRolledBack);
    let row = PeerRow { cursor: 1, tag: 1_000_001, ..PeerRow::default() };
    b.commit(|tx| put_peer_row(tx, ReplicaId(1), &row));
    assert!(matches!(check(&a, &b), HelloVerdict::Fine { start_cursor: 1, .. }));
}

#[test]
fn other_reasons_not_to_talk() {
    let (a, b) = (Site::new(1), Site::new(2));
    let check = |hello: &Hello| a.read(|tx| check_hello(tx, 7, hello).unwrap());
    assert_eq!(check(&a.hello()), HelloVerdict::OwnReplicaId);
    assert_eq!(check(&Hello { volume: 8, ..b.hello() }), HelloVerdict::DifferentVolume);
    assert!(matches!(check(&Hello { volume: 0, ..b.hello() }), HelloVerdict::Fine { .. }));
    let theirs = (PROTOCOL_MAX + 1, PROTOCOL_MAX + 2);
    let ours = (PROTOCOL_MIN, PROTOCOL_MAX);
    assert_eq!(check(&Hello { protocol: theirs, ..b.hello() }), HelloVerdict::Protocol { ours, theirs });
}

#[test]
fn a_third_replica_under_two_tags_is_not_skipped() {
    let (mut a, mut b) = (Site::new(1), Site::new(2));
    let known = |tag| Known { n: 5, tag };
    a.commit(|tx| tx.set_known(ReplicaId(3), known(1)));
    b.commit(|tx| tx.set_known(ReplicaId(3), known(2)));
    let verdict = a.read(|tx| check_hello(tx, 7, &b.hello()).unwrap());
    let HelloVerdict::Fine { distrusted, .. } = verdict else { panic!("{verdict:?}") };
    assert_eq!(distrusted, [ReplicaId(3)]);
    a.commit(|tx| {
        let n = tx.take_n();
        let e = entry(Dot::new(ReplicaId(3), 5), Kind::File, EntryId::ROOT, "e");
        tree::put_state(tx, e, n).unwrap();
    });
    let mut s = a.sender_to(&b, eager());
    assert_eq!(a.poll(&mut s, 0), None, "skipped while trusted");
    let mut s = a.sender_to(&b, eager());
    s.distrust(distrusted);
    assert_eq!(a.poll(&mut s, 0).unwrap().batch.entries.len(), 1);
}

#[test]
fn the_tag_at_a_position_is_that_of_the_commit_before() {
    let mut a = Site::new(1);
    for i in 0..20u64 {
        match i % 3 {
            0 => {
                a.create(Kind::File, EntryId::ROOT, &i.to_string());
            }
            _ => {
                a.commit(|tx| tx.take_n());
            }
        }
    }
    let rows = a.read(|tx| tx.scan(Table::Tags, &[], None, 99).unwrap());
    assert_eq!(rows.len(), 7);
    for n in 0..30u64 {
        let before = rows.iter().rev().find(|(k, _)| u64::from_be_bytes(k[..].try_into().unwrap()) <= n);
        let expected = before.map_or(0, |(_, v)| u64::from_be_bytes(v[..].try_into().unwrap()));
        assert_eq!(a.read(|tx| tag_at(tx, n).unwrap()), expected, "at {n}");
    }
}

// ----- hostile peers

#[test]
fn states_that_cannot_be_are_refused_and_hold_up_nothing_else() {
    let (mut a, mut b) = (Site::new(1), Site::new(2));
    let id = a.create(Kind::File, EntryId::ROOT, "f");
    let good = a.state(id).unwrap();
    let spoil: [fn(&mut Entry); 11] = [
        |e| e.ctx.add(Dot::new(ReplicaId(5), N_MAX + 1)),
        |e| e.ctx.add(Dot::new(ReplicaId(0), 1)),
        |e| e.meta.0.clock_ns = u64::MAX,
        |e| e.dir_time = Some(Default::default()),
        |e| e.meta.1.dir_mtime = Some(Default::default()),
        |e| e.data[0].dot.n += 9,
        |e| e.removed.add(Dot::new(ReplicaId(1), 9)),
        |e| e.links[0].gone.add(Dot::new(ReplicaId(9), 1)),
        |e| e.links[0].at.parent = EntryId(Dot::new(ReplicaId(0), 3)),
        |e| e.links.clear(),
        |e| e.ctx = (1..6000).map(|r| (ReplicaId(r), if r == 2 { 0 } else { 1 })).collect(),
    ];
    for f in spoil {
        let mut bad = Entry { id: EntryId(Dot::new(ReplicaId(1), 2)), ..good.clone() };
        bad.ctx.add(bad.id.0);
        f(&mut bad);
        let knowledge = Knowledge::from([(ReplicaId(1), Known { n: 2, tag: 1 })]);
        let entries = vec![bad.clone(), good.clone()];
        let batch = Batch { to: 2, entries, knowledge: Some(knowledge), ..Batch::default() };
        let merged = b.receive(a.me, &batch);
        assert_eq!(merged.receipt.refused.len(), 1, "{bad:?}");
        assert_eq!(merged.receipt.cursor, 2);
        assert_eq!(b.knows(), vv(&[]), "knowledge with a hole is not joined");
        assert_eq!(b.state(id), Some(good.clone()));
        assert_eq!(b.state(bad.id), None);
        assert_eq!(b.read(|tx| peer_row(tx, ReplicaId(1)).unwrap().refused), [bad.id]);
    }
    let mut mended = Entry { id: EntryId(Dot::new(ReplicaId(1), 2)), ..good };
    mended.ctx.add(mended.id.0);
    let knowledge = Some(Knowledge::from([(ReplicaId(1), Known { n: 2, tag: 1 })]));
    b.receive(a.me, &Batch { to: 2, entries: vec![mended], knowledge, ..Batch::default() });
    assert_eq!(b.knows(), vv(&[(1, 2)]), "whole again");
}

#[test]
fn dots_of_ours_that_we_have_not_made_stop_the_link() {
    let (mut a, mut b) = (Site::new(1), Site::new(2));
    let f = a.create(Kind::File, EntryId::ROOT, "f");
    let mut e = a.state(f).unwrap();
    e.ctx.add(Dot::new(ReplicaId(2), 3));
    let claim = Knowledge::from([(ReplicaId(2), Known { n: 3, tag: 1 })]);
    for batch in [
        Batch { to: 1, entries: vec![e], ..Batch::default() },
        Batch { to: 1, knowledge: Some(claim), ..Batch::default() },
    ] {
        let result = b.commit(|tx| Receiver::new(ReplicaId(1)).handle_batch(tx, &batch));
        assert!(matches!(result, Err(ReceiveError::WeAreRolledBack { claimed: 3, ours: 0 })));
    }
}

#[test]
fn positions_and_claims_that_cannot_be_end_the_link() {
    let b = Site::new(2);
    let claim = |r, n| Some(Knowledge::from([(ReplicaId(r), Known { n, tag: 0 })]));
    for batch in [
        Batch { from: 2, to: 1, ..Batch::default() },
        Batch { to: u64::MAX, ..Batch::default() },
        Batch { knowledge: claim(0, 1), ..Batch::default() },
        Batch { knowledge: claim(1, u64::MAX), ..Batch::default() },
        Batch {
            knowledge: Some((3..9999).map(|r| (ReplicaId(r), Known { n: 1, tag: 0 })).collect()),
            ..Batch::default()
        },
    ] {
        let result = b.read(|tx| Receiver::new(ReplicaId(1)).handle_batch(tx, &batch));
        assert!(matches!(result, Err(ReceiveError::Protocol(_))), "{result:?}");
    }
}

#[test]
fn a_peer_speaks_only_as_far_as_it_may() {
    struct OnlyItself;
    impl Authority for OnlyItself {
        fn limit(&self, replica: ReplicaId) -> u64 {
            if replica == ReplicaId(1) { N_MAX } else { 4 }
        }
    }
    let mut b = Site::new(2);
    let allowed = entry(Dot::new(ReplicaId(3), 4), Kind::File, EntryId::ROOT, "x");
    let foreign = entry(Dot::new(ReplicaId(3), 5), Kind::File, EntryId::ROOT, "y");
    let knowledge = Some(Knowledge::from([(ReplicaId(3), Known { n: 9, tag: 8 })]));
    let entries = vec![allowed.clone()];
    let batch = Batch { to: 1, entries, knowledge, ..Batch::default() };
    let mut r = Receiver::with_authority(ReplicaId(1), Box::new(OnlyItself));
    let merged = b.commit(|tx| r.handle_batch(tx, &batch).unwrap());
    assert_eq!(merged.anomalies, [Anomaly::ClaimClipped(ReplicaId(3))]);
    assert_eq!(b.knows(), vv(&[(3, 4)]));
    let batch = Batch { from: 1, to: 2, entries: vec![foreign.clone()], ..Batch::default() };
    let merged = b.commit(|tx| r.handle_batch(tx, &batch).unwrap());
    assert_eq!(merged.receipt.refused[0].0, foreign.id);
    assert!(b.state(allowed.id).is_some() && b.state(foreign.id).is_none());
}

#[test]
fn equal_n_by_different_tags_is_an_alarm() {
    let mut b = Site::new(2);
    b.commit(|tx| tx.set_known(ReplicaId(3), Known { n: 4, tag: 7 }));
    let knowledge = Some(Knowledge::from([(ReplicaId(3), Known { n: 4, tag: 8 })]));
    let merged = b.receive(ReplicaId(1), &Batch { knowledge, ..Batch::default() });
    assert_eq!(merged.anomalies, [Anomaly::TagsDiffer(ReplicaId(3))]);
}

/// Random values in every place of a state: refused or merged, never a panic, and the index stays readable.
#[test]
fn random_batches_do_not_panic() {
    for seed in 1..400u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut site = Site::new(2);
        for _ in 0..6 {
            let entries = (0..random.below(4)).map(|_| random_entry(&mut random)).collect();
            let knowledge = random.one_in(2).then(|| random_knowledge(&mut random));
            let (from, to) = (random.below(4), random.below(6));
            let batch = Batch { seq: 1, from, to, tag: 1, entries, knowledge, ..Batch::default() };
            let snapshot = site.store.snapshot().unwrap();
            let mut tx = Tx::open(&*snapshot, Env { now_ns: 0, epoch: 0 }).unwrap();
            if Receiver::new(ReplicaId(1)).handle_batch(&mut tx, &batch).is_ok() {
                site.commits += 1;
                site.store.commit(tx.into_batch(site.commits)).unwrap();
            }
        }
        let mut s = Sender::new(ReplicaId(9), 0, VersionVector::new(), eager());
        while site.poll(&mut s, 0).is_some() {}
        let random_receipt = Receipt {
            seq: random.below(3),
            to: random.next(),
            cursor: random.next(),
            states: vec![(EntryId(random_dot(&mut random)), 1)],
            refused: vec![(EntryId(random_dot(&mut random)), "no".into())],
            knowledge: vv(&[(random.below(4), random.next())]),
        };
        s.handle_receipt(&random_receipt);
        while site.poll(&mut s, 0).is_some() {}
    }
}

fn random_dot(r: &mut Random) -> Dot {
    let n = if r.one_in(12) { r.next() } else { r.below(5) };
    Dot::new(ReplicaId(r.below(5)), n)
}

fn random_knowledge(r: &mut Random) -> Knowledge {
    let mut known = || Known { n: if r.one_in(9) { r.next() } else { r.below(9) }, tag: r.below(3) };
    (0..4).map(|i| (ReplicaId(i), known())).collect()
}

fn random_entry(r: &mut Random) -> Entry {
    let kind = if r.one_in(2) { Kind::Dir } else { Kind::File };
    let mut parent = EntryId(random_dot(r));
    if r.one_in(2) {
        parent = EntryId::ROOT;
    }
    let mut e = entry(Dot::new(ReplicaId(1 + r.below(3)), 1 + r.below(5)), kind, parent, "n");
    for _ in 0..r.below(5) {
        let dot = random_dot(r);
        match r.below(8) {
            0 => e.ctx.add(dot),
            1 => e.removed.add(dot),
            2 => e.links[0].gone.add(dot),
            3 => e.links[0].at.dot = dot,
            4 => e.links[0].at.holds = dot,
            5 => e.links[0].at.stamp.clock_ns = dot.n,
            6 => e.links[0].id = LinkId(dot),
            _ => e.id = EntryId(dot),
        }
        if r.one_in(2) {
            e.ctx.add(dot);
        }
    }
    e
}

// ----- whole worlds

struct Channel {
    sender: Sender,
    batches: Vec<Batch>,
    receipts: Vec<Receipt>,
}

struct World {
    random: Random,
    sites: Vec<Site>,
    /// (from, to) by position in `sites`.
    links: BTreeMap<(usize, usize), Channel>,
    /// Every change ever made: which entry it touched.
    changes: BTreeMap<Dot, EntryId>,
    now_ms: u64,
    faults: bool,
    entries_sent: u64,
}

impl World {
    fn new(seed: u64, count: usize, edges: &[(usize, usize)], faults: bool) -> World {
        let sites: Vec<_> = (0..count).map(|i| Site::new(i as u64 + 1)).collect();
        let mut world = World {
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            sites,
            links: BTreeMap::new(),
            changes: BTreeMap::new(),
            now_ms: 0,
            faults,
            entries_sent: 0,
        };
        for &(a, b) in edges {
            world.connect(a, b);
            world.connect(b, a);
        }
        world
    }

    fn connect(&mut self, from: usize, to: usize) {
        let r = &mut self.random;
        let limits = SendLimits {
            batch_entries: 1 + r.below(4) as usize,
            window: 1 + r.below(3) as usize,
            fill_rows: r.below(3),
            age_limit_ms: 1_000,
            relay_delay_ms: [0, 2_000][r.below(2) as usize],
            resend_after_ms: Some(5_000),
            ..SendLimits::default()
        };
        let sender = self.sites[from].sender_to(&self.sites[to], limits);
        self.links.insert((from, to), Channel { sender, batches: Vec::new(), receipts: Vec::new() });
    }

    fn step(&mut self) {
        match self.random.below(10) {
            0..=2 => self.local_change(),
            3 => self.now_ms += self.random.below(3_000),
            4 if self.faults && self.random.one_in(4) => {
                let keys: Vec<_> = self.links.keys().copied().collect();
                let (from, to) = keys[self.random.below(keys.len() as u64) as usize];
                self.connect(from, to);
            }
            _ => self.pump(),
        }
    }

    fn local_change(&mut self) {
        let i = self.random.below(self.sites.len() as u64) as usize;
        let site = &mut self.sites[i];
        let feed = site.read(|tx| tx.feed_after(0, 999).unwrap());
        let pick = feed.get(self.random.below(feed.len() as u64 + 1) as usize).map(|(_, id)| *id);
        let id = match pick.and_then(|id| site.state(id)) {
            Some(e) if e.kind == Kind::Dir && self.random.one_in(2) => {
                let kind = if self.random.one_in(3) { Kind::Dir } else { Kind::File };
                site.create(kind, e.id, "x")
            }
            Some(e) if e.kind == Kind::File && self.random.one_in(2) => {
                site.write(e.id);
                e.id
            }
            Some(e) => {
                site.touch(e.id);
                e.id
            }
            None => site.create(Kind::Dir, EntryId::ROOT, "d"),
        };
        self.changes.insert(Dot::new(site.me, site.head()), id);
    }

    fn pump(&mut self) {
        let keys: Vec<_> = self.links.keys().copied().collect();
        let key = keys[self.random.below(keys.len() as u64) as usize];
        self.send(key);
        self.deliver_batch(key);
        self.deliver_receipt(key);
    }

    fn send(&mut self, key: (usize, usize)) {
        let Some(link) = self.links.get_mut(&key) else { return };
        if let Some(out) = self.sites[key.0].poll(&mut link.sender, self.now_ms) {
            self.entries_sent += out.batch.entries.len() as u64;
            if self.faults && self.random.one_in(5) {
                return;
            }
            if self.faults && self.random.one_in(8) {
                link.batches.push(out.batch.clone());
            }
            link.batches.push(out.batch);
        }
    }

    fn deliver_batch(&mut self, (from, to): (usize, usize)) {
        let Some(link) = self.links.get_mut(&(from, to)) else { return };
        if link.batches.is_empty() || (self.faults && self.random.one_in(3)) {
            return;
        }
        let at = if self.faults { self.random.below(link.batches.len() as u64) as usize } else { 0 };
        let batch = link.batches.remove(at);
        let peer = self.sites[from].me;
        let before = self.sites[to].cursor(peer);
        let merged = self.sites[to].receive(peer, &batch);
        assert!(merged.receipt.refused.is_empty() && merged.anomalies.is_empty(), "{merged:?}");
        let after = self.sites[to].cursor(peer);
        let moved = if batch.from <= before { before.max(batch.to) } else { before };
        assert_eq!(after, moved, "the cursor moves by rule only");
        if !(self.faults && self.random.one_in(5)) {
            link.receipts.push(merged.receipt.clone());
        }
        if let Some(back) = self.links.get_mut(&(to, from)) {
            back.sender.handle_merged(&merged.echoes);
        }
        self.check_honest(to);
    }

    fn deliver_receipt(&mut self, key: (usize, usize)) {
        let Some(link) = self.links.get_mut(&key) else { return };
        if link.receipts.is_empty() {
            return;
        }
        let at = if self.faults { self.random.below(link.receipts.len() as u64) as usize } else { 0 };
        let failures = link.sender.handle_receipt(&link.receipts.remove(at));
        assert!(failures.is_empty(), "{failures:?}");
    }

    /// Knowledge never claims a change whose state is not here.
    fn check_honest(&self, i: usize) {
        let site = &self.sites[i];
        let knows = site.knows();
        for (dot, id) in self.changes.iter().filter(|(dot, _)| knows.covers(**dot)) {
            let here = site.state(*id).is_some_and(|e| e.ctx.covers(*dot));
            assert!(here, "{:?} claims {dot:?} of {id:?}", site.me);
        }
    }

    /// No more faults or changes; time goes on until nothing is said any more.
    fn settle(&mut self) {
        self.faults = false;
        let keys: Vec<_> = self.links.keys().copied().collect();
        for _ in 0..2_000 {
            let before = self.entries_sent;
            for key in &keys {
                for _ in 0..4 {
                    self.send(*key);
                    self.deliver_batch(*key);
                    self.deliver_receipt(*key);
                }
            }
            self.now_ms += 500;
            let quiet = self.links.iter().all(|((from, _), l)| {
                l.batches.is_empty() && self.sites[*from].read(|tx| l.sender.at_head(tx))
            });
            if quiet && before == self.entries_sent && self.all_equal() {
                return;
            }
        }
        panic!("does not come to rest");
    }

    fn all_equal(&self) -> bool {
        let all = |site: &Site| -> BTreeMap<EntryId, Entry> {
            let ids = site.read(|tx| tx.feed_after(0, 9999).unwrap());
            ids.into_iter().filter_map(|(_, id)| Some((id, site.state(id)?))).collect()
        };
        let knows = |site: &Site| self.changes.keys().all(|d| site.knows().covers(*d));
        let first = all(&self.sites[0]);
        self.sites.iter().all(|s| all(s) == first && knows(s))
    }
}

const PAIR: &[(usize, usize)] = &[(0, 1)];
const CHAIN: &[(usize, usize)] = &[(0, 1), (1, 2)];
const RING: &[(usize, usize)] = &[(0, 1), (1, 2), (2, 3), (3, 0)];
const MESH: &[(usize, usize)] = &[(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)];

#[test]
fn everything_arrives_over_channels_that_lose_repeat_and_reorder() {
    for seed in 0..160 {
        let (count, edges) = [(2, PAIR), (3, CHAIN), (4, RING), (4, MESH)][seed as usize % 4];
        let mut world = World::new(seed + 1, count, edges, true);
        for _ in 0..150 {
            world.step();
        }
        world.settle();
    }
}

#[test]
fn without_faults_two_sites_send_each_state_once() {
    for seed in 0..40 {
        let mut world = World::new(seed + 1, 2, PAIR, false);
        for (_, link) in world.links.iter_mut() {
            *link = Channel {
                sender: Sender::new(ReplicaId(0), 0, VersionVector::new(), eager()),
                batches: Vec::new(),
                receipts: Vec::new(),
            };
        }
        for (from, to) in [(0, 1), (1, 0)] {
            let sender = world.sites[from].sender_to(&world.sites[to], eager());
            world.links.insert((from, to), Channel { sender, batches: Vec::new(), receipts: Vec::new() });
        }
        let mut changes = 0;
        for _ in 0..30 {
            world.local_change();
            changes += 1;
            world.settle();
        }
        assert_eq!(world.entries_sent, changes);
        let settled = world.entries_sent;
        world.now_ms += 100_000;
        world.settle();
        assert_eq!(world.entries_sent, settled);
    }
}
