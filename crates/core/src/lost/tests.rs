//! Every way in which a lost version is given up, and rows that come back as they were.

use super::*;
use crate::disk::{Fingerprint, NodeKey};
use crate::entry::{At, Entry, Version};
use crate::id::{Kind, Name};
use crate::link::{PeerRow, put_peer_row};
use crate::local::{Looked, Origin};
use crate::meta::{Attrs, Content, Digest, Time};
use crate::rows::{MemStore, Store};
use crate::tree;
use crate::tx::{Env, knowledge_vv};
use crate::vv::VersionVector;

const ME: ReplicaId = ReplicaId(1);
const PEER: ReplicaId = ReplicaId(2);
const THIRD: ReplicaId = ReplicaId(3);

fn key(n: u8) -> NodeKey {
    NodeKey::new(&[n]).unwrap()
}

fn content(text: &str) -> Content {
    let mtime = Time { sec: text.len() as i64, nsec: 0 };
    Content::File { size: text.len() as u64, mtime, digest: Digest::of(text.as_bytes()) }
}

fn looked(node: u8, text: Option<&str>) -> Looked {
    let content = text.map(content);
    let size = text.map_or(0, |t| t.len() as u64);
    let mtime = Time { sec: size as i64, nsec: 0 };
    Looked {
        key: key(node),
        kind: if text.is_some() { Kind::File } else { Kind::Dir },
        fingerprint: Fingerprint { size, mtime, ctime: mtime },
        racy: false,
        attrs: Attrs { mode: 0o644, ..Attrs::default() },
        content,
    }
}

/// A replica with a root directory, inode 1.
struct Replica(MemStore);

impl Replica {
    fn new(me: ReplicaId) -> Replica {
        let store = MemStore::new();
        store.commit(Tx::create(me)).unwrap();
        let mut replica = Replica(store);
        replica.commit(|tx| local::init_root(tx, &looked(1, None)));
        replica
    }

    fn commit<T>(&mut self, f: impl FnOnce(&mut Tx<'_>) -> Result<T>) -> T {
        let snapshot = self.0.snapshot().unwrap();
        let mut tx = Tx::open(&*snapshot, Env { now_ns: 5_000_000_000, epoch: 0 }).unwrap();
        let value = f(&mut tx).unwrap();
        let tag = tx.me().0 << 32 | tx.head();
        self.0.commit(tx.into_batch(tag)).unwrap();
        value
    }

    fn create(&mut self, text: &str) -> EntryId {
        self.commit(|tx| {
            let spot = (&key(1), &Name::new(b"f").unwrap());
            local::create(tx, spot, &looked(5, Some(text)), Origin::User)?;
            Ok(EntryId(Dot::new(tx.me(), tx.head())))
        })
    }

    fn receive(&mut self, state: &Entry) {
        self.commit(|tx| {
            let known = knowledge_vv(&tx.knowledge()?);
            tree::receive(tx, state, &known).map(drop)
        });
    }

    fn state(&mut self, id: EntryId) -> Entry {
        self.commit(|tx| Ok(tx.entry_must(id)?.entry.clone()))
    }

    fn counting(&mut self, id: EntryId) -> Vec<Digest> {
        self.state(id).counting().map(|v| v.content.identity()).collect()
    }

    fn accept(&mut self, key: Key, options: AcceptOptions) -> Accepted {
        self.commit(|tx| accept(tx, key, options))
    }
}

/// What the peer made of the entry: a version that follows all others of it.
fn next_version(state: &Entry, n: u64, text: &str) -> (Entry, Dot) {
    let mut e = state.clone();
    let dot = Dot::new(PEER, n);
    let stamp = crate::id::Stamp { clock_ns: 9_000_000_000 + n, replica: PEER, ..e.stamp_max() };
    e.ctx.add(dot);
    e.data = [Version { dot, stamp, content: content(text) }].into_iter().collect();
    e.links[0].at = At { stamp, dot, holds: dot, ..e.links[0].at.clone() };
    (e, dot)
}

fn row(why: Why, here: bool) -> LostRow {
    LostRow { why, here, accepted: false, since_ns: 7, lacked_by: vec![PEER], detail: "EIO".into() }
}

const ANY: AcceptOptions = AcceptOptions { remove: false, anyway: false };
const REMOVE: AcceptOptions = AcceptOptions { remove: true, anyway: false };

/// A replica that shows "old" and knows of a newer version of the peer's that nobody holds.
fn shows_old(why: Why) -> (Replica, Key) {
    let mut r = Replica::new(ME);
    let id = r.create("old");
    let (state, lost) = next_version(&r.state(id), 1, "newer");
    r.receive(&state);
    r.commit(|tx| {
        put(tx, (id, lost), &row(why, false));
        Ok(())
    });
    (r, (id, lost))
}

/// A replica that knows of an entry of the peer's and has nothing of it.
fn has_nothing(why: Why) -> (Replica, Key) {
    let mut maker = Replica::new(PEER);
    let id = maker.create("only");
    let mut r = Replica::new(ME);
    r.receive(&maker.state(id));
    r.commit(|tx| {
        put(tx, (id, id.0), &row(why, false));
        Ok(())
    });
    (r, (id, id.0))
}

#[test]
fn the_earlier_version_comes_again_whatever_the_reason() {
    for why in Why::ALL {
        let (mut r, (id, lost)) = shows_old(why);
        assert!(r.commit(|tx| counts(tx, (id, lost))));
        let head = r.commit(|tx| Ok(tx.head()));
        assert_eq!(r.accept((id, lost), ANY), Accepted::Republished);
        assert_eq!(r.counting(id), [Digest::of(b"old")]);
        let state = r.state(id);
        assert!(state.ctx.covers(lost) && state.ctx.get(ME) > head, "a change like any other");
        assert_eq!(r.accept((id, lost), ANY), Accepted::NotLost, "once is enough");
        // Who had the lost version in its state loses it, and knows what takes its place.
        let mut maker = Replica::new(PEER);
        maker.receive(&state);
        assert_eq!(maker.counting(id), [Digest::of(b"old")]);
    }
}

#[test]
fn without_an_earlier_version_the_entry_is_removed_where_that_is_known_of_both() {
    for why in [Why::Unreadable, Why::Damaged] {
        let (mut r, (id, lost)) = has_nothing(why);
        assert_eq!(r.accept((id, lost), ANY), Accepted::Removed);
        assert!(r.counting(id).is_empty() && r.state(id).shown_links().is_empty());
    }
    // The other disk may show an earlier one.
    let (mut r, (id, lost)) = has_nothing(Why::Absent);
    assert_eq!(r.accept((id, lost), ANY), Accepted::Noted);
    assert!(r.commit(|tx| get(tx, (id, lost))).unwrap().accepted);
    assert_eq!(r.counting(id).len(), 1, "nothing was changed");
    assert_eq!(r.accept((id, lost), REMOVE), Accepted::Removed);
    assert!(r.counting(id).is_empty());
}

#[test]
fn whose_disk_failed_leaves_it_to_who_may_have_an_earlier_version() {
    let mut r = Replica::new(ME);
    let id = r.create("mine");
    r.commit(|tx| {
        put(tx, (id, id.0), &row(Why::Unreadable, true));
        Ok(())
    });
    assert_eq!(r.accept((id, id.0), ANY), Accepted::Noted);
    assert_eq!(r.accept((id, id.0), REMOVE), Accepted::Removed);
    assert!(r.state(id).shown_links().is_empty());
}

#[test]
fn a_removal_that_is_asked_for_takes_the_earlier_version_too() {
    let (mut r, (id, lost)) = shows_old(Why::Absent);
    assert_eq!(r.accept((id, lost), REMOVE), Accepted::Removed);
    assert!(r.counting(id).is_empty());
}

/// Gives the entry a sibling of all its versions, by a third replica.
fn add_sibling(r: &mut Replica, id: EntryId) {
    let mut sibling = r.state(id);
    let dot = Dot::new(THIRD, 4);
    let stamp = sibling.stamp_max();
    sibling.ctx = VersionVector::from_iter([(id.0.replica, id.0.n - 1), (THIRD, 4)]);
    sibling.data = [Version { dot, stamp, content: content("beside") }].into_iter().collect();
    r.receive(&sibling);
    assert_eq!(r.counting(id).len(), 2);
}

#[test]
fn other_versions_stay() {
    for options in [ANY, REMOVE] {
        let (mut r, (id, lost)) = has_nothing(Why::Absent);
        add_sibling(&mut r, id);
        assert_eq!(r.accept((id, lost), options), Accepted::OthersStay);
        assert_eq!(r.counting(id), [Digest::of(b"beside")]);
    }
    // The one before comes back beside them: they may not have seen it.
    let (mut r, (id, lost)) = shows_old(Why::Absent);
    add_sibling(&mut r, id);
    assert_eq!(r.accept((id, lost), ANY), Accepted::Republished);
    assert_eq!(r.counting(id).len(), 2);
    assert!(r.counting(id).contains(&Digest::of(b"old")));
}

#[test]
fn who_may_hold_it_is_asked_first() {
    let (mut r, (id, lost)) = shows_old(Why::Absent);
    let knows = |n| PeerRow { knowledge: VersionVector::from_iter([(PEER, n)]), ..PeerRow::default() };
    r.commit(|tx| {
        put_peer_row(tx, THIRD, &knows(0));
        put_peer_row(tx, PEER, &knows(1));
        Ok(())
    });
    let at = |r: &mut Replica| {
        r.commit(|tx| {
            let row = get(tx, (id, lost))?.unwrap();
            may_be_at(tx, lost, &row)
        })
    };
    assert_eq!(at(&mut r), [], "the third has never heard of it, the peer has said no");
    r.commit(|tx| {
        put_peer_row(tx, THIRD, &knows(1));
        Ok(())
    });
    assert_eq!(at(&mut r), [THIRD]);
    assert_eq!(r.accept((id, lost), ANY), Accepted::MayBeAt(vec![THIRD]));
    assert_eq!(r.counting(id), [Digest::of(b"newer")], "nothing was changed");
    assert_eq!(r.accept((id, lost), AcceptOptions { anyway: true, ..ANY }), Accepted::Republished);

    // Its maker, who was never met, has not been asked either.
    let (mut r, (id, lost)) = shows_old(Why::Absent);
    r.commit(|tx| {
        put(tx, (id, lost), &LostRow { lacked_by: vec![THIRD], ..row(Why::Absent, false) });
        Ok(())
    });
    assert_eq!(r.accept((id, lost), ANY), Accepted::MayBeAt(vec![PEER]));
}

#[test]
fn what_was_overwritten_since_is_not_lost() {
    let (mut r, (id, lost)) = shows_old(Why::Absent);
    let (state, _) = next_version(&r.state(id), 2, "newest");
    r.receive(&state);
    assert!(!r.commit(|tx| counts(tx, (id, lost))));
    assert_eq!(r.accept((id, lost), ANY), Accepted::NotLost);
    assert_eq!(r.commit(|tx| get(tx, (id, lost))), None);
    assert_eq!(r.counting(id), [Digest::of(b"newest")]);
}

#[test]
fn rows_come_back_as_they_were_put_and_damaged_ones_are_errors() {
    let mut r = Replica::new(ME);
    let id = r.create("x");
    let keys = [(id, Dot::new(PEER, 1)), (id, Dot::new(PEER, u64::MAX))];
    for (i, why) in Why::ALL.into_iter().enumerate() {
        for flags in 0..4u8 {
            let lacked_by = (1..=u64::from(flags)).map(ReplicaId).collect();
            let (here, accepted) = (flags & 1 != 0, flags & 2 != 0);
            let row = LostRow { why, here, accepted, since_ns: u64::MAX, lacked_by, detail: format!("{i}") };
            r.commit(|tx| {
                keys.iter().for_each(|k| put(tx, *k, &row));
                assert_eq!(get(tx, keys[1])?.as_ref(), Some(&row));
                let all = list(tx, None, 10)?;
                assert_eq!(all.iter().map(|(_, k, _)| *k).collect::<Vec<_>>(), keys);
                assert_eq!(list(tx, Some(&all[0].0), 10)?, all[1..]);
                Ok(())
            });
            let bytes = encode(&row);
            for len in 0..bytes.len() {
                assert!(dec(Table::Lost, &bytes[..len], decode).is_err(), "{len}");
            }
        }
    }
    r.commit(|tx| {
        keys.iter().for_each(|k| remove(tx, *k));
        assert_eq!(list(tx, None, 10)?, []);
        tx.put(Table::Lost, vec![1, 2], Some(vec![]));
        assert!(list(tx, None, 10).is_err());
        Ok(())
    });
}
