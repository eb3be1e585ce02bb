//! Every row of the judgement, and records before and after it: of states, nothing changes.

use super::*;
use crate::disk::Fingerprint;
use crate::id::{Dot, ReplicaId};
use crate::local::{self, Origin};
use crate::meta::Time;
use crate::plan::{Outcome, Plan, PlanOptions, Step, plan_entry};
use crate::rows::{MemStore, Store};
use crate::tx::Env;
use proptest::collection::btree_set;
use proptest::prelude::*;

const ME: ReplicaId = ReplicaId(1);
const PEER: ReplicaId = ReplicaId(2);
const ENV: Env = Env { now_ns: 5_000_000_000, epoch: 0 };

fn key(n: u8) -> NodeKey {
    NodeKey::new(&[n]).unwrap()
}

fn name(s: &str) -> Name {
    Name::new(s.as_bytes()).unwrap()
}

fn at(dir: u8, s: &str) -> At {
    At { dir: key(dir), name: name(s) }
}

fn file(node: u8, text: &str) -> Looked {
    let mtime = Time { sec: text.len() as i64, nsec: 0 };
    let (size, digest) = (text.len() as u64, Digest::of(text.as_bytes()));
    Looked {
        key: key(node),
        kind: Kind::File,
        fingerprint: Fingerprint { size, mtime, ctime: mtime },
        racy: false,
        attrs: Attrs { mode: 0o644, ..Attrs::default() },
        content: Some(Content::File { size, mtime, digest }),
    }
}

fn dir(node: u8) -> Looked {
    Looked { kind: Kind::Dir, content: None, ..file(node, "") }
}

/// A replica with a root directory, inode 1.
struct Replica {
    store: MemStore,
    commits: u64,
}

impl Replica {
    fn new() -> Replica {
        let store = MemStore::new();
        store.commit(Tx::create(ME)).unwrap();
        let mut replica = Replica { store, commits: 0 };
        replica.commit(|tx| local::init_root(tx, &dir(1)));
        replica.commit(local::import_root);
        replica
    }

    fn commit<T>(&mut self, f: impl FnOnce(&mut Tx<'_>) -> Result<T>) -> T {
        self.commits += 1;
        let snapshot = self.store.snapshot().unwrap();
        let mut tx = Tx::open(&*snapshot, ENV).unwrap();
        let value = f(&mut tx).unwrap();
        let (rows, _, _) = tx.into_batch_with_before(1, self.commits).unwrap();
        self.store.commit(rows).unwrap();
        value
    }

    /// A sync covers everything.
    fn seal(&mut self) {
        for (key, _) in self.rows() {
            self.store.commit([((Table::Before, key), None)].into()).unwrap();
        }
    }

    fn rows(&self) -> Vec<crate::rows::Row> {
        self.store.snapshot().unwrap().scan(Table::Before, &[], None, usize::MAX).unwrap()
    }

    fn images(&self) -> Images {
        let snapshot = self.store.snapshot().unwrap();
        let tx = Tx::open(&*snapshot, ENV).unwrap();
        let mut images = Images::new();
        for (_, row) in self.rows() {
            decode(&row, tx.replicas(), &mut images).unwrap();
        }
        images
    }

    /// Judges a path that shows `now` after a cut.
    fn judge(&mut self, at: &At, now: Option<&Looked>) -> (Verdict, BTreeSet<EntryId>) {
        let images = self.images().remove(&(at.dir.clone(), at.name.clone())).unwrap();
        self.commit(|tx| {
            let recorded = match tx.place(&at.dir, &at.name)? {
                Some(place) => {
                    let node = (*tx.node_must(&place.node)?).clone();
                    Some(Image { place: (*place).clone(), node }.sighting())
                }
                None => None,
            };
            let before: Vec<_> = images.iter().map(|i| i.as_ref().map(Image::sighting)).collect();
            let verdict = super::judge(recorded.as_ref(), &before, now.map(Sighting::of).as_ref());
            let head = tx.head();
            let concerned = rebase(tx, at, verdict, &images, now)?;
            assert_eq!(tx.head(), head, "a dot was made");
            Ok((verdict, concerned))
        })
    }

    fn plan(&mut self, ids: &BTreeSet<EntryId>) -> Vec<Step> {
        let snapshot = self.store.snapshot().unwrap();
        let mut tx = Tx::open(&*snapshot, ENV).unwrap();
        let mut plan = Plan::new();
        for id in ids {
            plan_entry(&mut tx, *id, &mut plan, &PlanOptions::default()).unwrap();
        }
        plan.steps
    }

    fn create(&mut self, at: &At, looked: &Looked) -> EntryId {
        self.commit(|tx| {
            local::create(tx, (&at.dir, &at.name), looked, Origin::User)?;
            Ok(EntryId(Dot::new(ME, tx.head())))
        })
    }
}

fn sight(node: u8, text: &str) -> Option<Sighting> {
    Some(Sighting::of(&file(node, text)))
}

#[test]
fn every_case_has_its_verdict() {
    use Verdict::*;
    let (old, new, torn) = (sight(5, "old"), sight(6, "new"), sight(6, ""));
    let before = [sight(4, "older"), old.clone()];
    let gone = [None];
    let cases = [
        (&new, &before[..], new.clone(), AsRecorded),
        (&None, &before[..], None, AsRecorded),
        (&new, &before[..], old.clone(), Undone(1)),
        (&new, &before[..], sight(4, "older"), Undone(0)),
        (&new, &before[..], sight(9, "old"), Undone(1)),
        (&None, &before[..], old.clone(), Undone(1)),
        (&new, &gone[..], None, Undone(0)),
        (&new, &before[..], None, Missing),
        (&new, &before[..], torn.clone(), Other),
        (&new, &gone[..], torn.clone(), Other),
        (&new, &before[..], sight(7, "new"), Other),
        (&None, &before[..], sight(9, "old"), New),
        (&None, &before[..], torn, New),
    ];
    for (i, (recorded, before, now, verdict)) in cases.into_iter().enumerate() {
        assert_eq!(super::judge(recorded.as_ref(), before, now.as_ref()), verdict, "case {i}");
    }
}

#[test]
fn a_new_file_that_is_gone_comes_again() {
    let mut r = Replica::new();
    let id = r.create(&at(1, "f"), &file(5, "new"));
    let (verdict, concerned) = r.judge(&at(1, "f"), None);
    assert_eq!(verdict, Verdict::Undone(0));
    assert_eq!(concerned, BTreeSet::from([id]));
    assert!(matches!(&r.plan(&concerned)[..], [Step::Put { entry, .. }] if *entry == id));
}

#[test]
fn a_version_that_is_back_is_replaced_again() {
    let mut r = Replica::new();
    let id = r.create(&at(1, "f"), &file(5, "old"));
    r.seal();
    r.commit(|tx| local::write(tx, &file(5, "newer")));
    let (verdict, concerned) = r.judge(&at(1, "f"), Some(&file(5, "old")));
    assert_eq!(verdict, Verdict::Undone(0));
    let steps = r.plan(&concerned);
    let [Step::Put { entry, content, victim: Some(victim), .. }] = &steps[..] else { panic!("{steps:?}") };
    assert_eq!((*entry, content.identity()), (id, Digest::of(b"newer")));
    assert_eq!(victim.node, key(5));
}

#[test]
fn what_was_removed_is_removed_again() {
    let mut r = Replica::new();
    let top = r.create(&at(1, "d"), &dir(7));
    let below = r.create(&at(7, "f"), &file(5, "old"));
    r.seal();
    r.commit(|tx| local::unlink(tx, (&key(7), &name("f"))));
    r.commit(|tx| local::rmdir(tx, (&key(1), &name("d"))));
    let (verdict, mut concerned) = r.judge(&at(1, "d"), Some(&dir(7)));
    assert!(matches!(verdict, Verdict::Undone(_)));
    let (verdict, more) = r.judge(&at(7, "f"), Some(&file(5, "old")));
    assert!(matches!(verdict, Verdict::Undone(_)));
    concerned.extend(more);
    assert_eq!(concerned, BTreeSet::from([top, below]));
    let steps = r.plan(&concerned);
    let removed: Vec<&At> = steps.iter().filter_map(Step::target).collect();
    assert_eq!(removed, [&at(7, "f"), &at(1, "d")], "{steps:?}");
    assert!(steps.iter().all(|s| matches!(s, Step::Remove { .. })), "{steps:?}");
}

#[test]
fn a_move_that_was_undone_is_made_again() {
    let mut r = Replica::new();
    r.create(&at(1, "d"), &dir(7));
    r.create(&at(7, "f"), &file(5, "text"));
    r.seal();
    r.commit(|tx| local::rename(tx, (&key(1), &name("d")), (&key(1), &name("e")), u64::MAX));
    let (_, mut concerned) = r.judge(&at(1, "e"), None);
    let (_, more) = r.judge(&at(1, "d"), Some(&dir(7)));
    concerned.extend(more);
    let steps = r.plan(&concerned);
    assert!(matches!(&steps[..], [Step::Move { from, to, .. }] if (from, to) == (&at(1, "d"), &at(1, "e"))));
    // What is in it was never touched.
    r.commit(|tx| {
        assert!(tx.place(&key(7), &name("f"))?.is_some());
        forget_below(tx, &key(7))
    });
}

#[test]
fn what_was_in_a_directory_that_is_gone_is_forgotten_with_it() {
    let mut r = Replica::new();
    let top = r.create(&at(1, "d"), &dir(7));
    let below = r.create(&at(7, "f"), &file(5, "text"));
    let (_, concerned) = r.judge(&at(1, "d"), None);
    assert_eq!(concerned, BTreeSet::from([top]));
    let concerned = r.commit(|tx| forget_below(tx, &key(7)));
    assert_eq!(concerned, BTreeSet::from([below]));
    let steps = r.plan(&BTreeSet::from([top, below]));
    assert!(matches!(&steps[..], [Step::MakeDir { .. }, Step::Put { .. }]), "{steps:?}");
}

#[test]
fn torn_content_is_nobodys_successor() {
    let mut r = Replica::new();
    let id = r.create(&at(1, "f"), &file(5, "old"));
    r.seal();
    r.commit(|tx| local::write(tx, &file(5, "newer")));
    let torn = file(5, "new");
    let (verdict, _) = r.judge(&at(1, "f"), Some(&torn));
    assert_eq!(verdict, Verdict::Other);
    r.commit(|tx| {
        crate::adopt::Adoption::none().adopt(tx, (&key(1), &name("f")), &torn)?;
        let versions: BTreeSet<_> =
            tx.entry_must(id)?.entry.counting().map(|v| v.content.identity()).collect();
        assert_eq!(versions, BTreeSet::from([Digest::of(b"newer"), Digest::of(b"new")]));
        Ok(())
    });
}

#[test]
fn attributes_that_were_undone_are_given_again() {
    let mut r = Replica::new();
    let id = r.create(&at(1, "f"), &file(5, "text"));
    r.seal();
    let mut closed = file(5, "text");
    closed.attrs.mode = 0o600;
    r.commit(|tx| local::attrs(tx, &closed));
    let (verdict, concerned) = r.judge(&at(1, "f"), Some(&file(5, "text")));
    assert_eq!((verdict, &concerned), (Verdict::AsRecorded, &BTreeSet::from([id])));
    let steps = r.plan(&concerned);
    assert!(matches!(&steps[..], [Step::SetAttrs { attrs, .. }] if attrs.mode == 0o600), "{steps:?}");
}

#[test]
fn attributes_that_nobody_recorded_are_left_for_the_crawl() {
    let mut r = Replica::new();
    r.create(&at(1, "f"), &file(5, "text"));
    let mut opened = file(5, "text");
    opened.attrs.mode = 0o666;
    let (verdict, concerned) = r.judge(&at(1, "f"), Some(&opened));
    assert_eq!((verdict, concerned), (Verdict::AsRecorded, BTreeSet::new()));
    r.commit(|tx| {
        assert_eq!(tx.node_must(&key(5))?.given.mode, 0o644);
        Ok(())
    });
}

#[test]
fn a_version_that_was_lost_makes_room_for_the_one_before() {
    let mut r = Replica::new();
    let id = r.create(&at(1, "f"), &file(5, "old"));
    r.seal();
    r.commit(|tx| local::write(tx, &file(5, "newer")));
    r.judge(&at(1, "f"), Some(&file(5, "old")));
    r.commit(|tx| {
        let lost = tx.entry_must(id)?.entry.winner().unwrap().dot;
        assert!(local::may_withdraw(tx, id, lost, PEER)?);
        local::withdraw(tx, id, lost)?;
        assert!(!local::may_withdraw(tx, id, lost, PEER)?);
        let row = tx.entry_must(id)?;
        let versions: Vec<_> = row.entry.counting().map(|v| v.content.identity()).collect();
        assert_eq!(versions, [Digest::of(b"old")]);
        Ok(())
    });
    assert_eq!(r.plan(&BTreeSet::from([id])), []);
}

/// A file `f` (inode 5) with a conflict copy (inode 6) beside it; both are sealed. Gives where the copy is.
fn with_copy(r: &mut Replica) -> (EntryId, At) {
    let id = r.create(&at(1, "f"), &file(5, "mine"));
    let theirs = file(6, "theirs");
    let dot = Dot::new(PEER, 1);
    r.commit(|tx| {
        let mut entry = tx.entry_must(id)?.entry.clone();
        entry.ctx.add(dot);
        let stamp = crate::id::Stamp { replica: PEER, ..crate::id::Stamp::MIN };
        let content = theirs.content.clone().unwrap();
        entry.data.push(crate::entry::Version { dot, stamp, content });
        entry.data.sort_by_key(|v| v.dot);
        let n = tx.new_dot().n;
        crate::tree::put_state(tx, entry, n)
    });
    let steps = r.plan(&BTreeSet::from([id]));
    let [Step::Put { at: copy, .. }] = &steps[..] else { panic!("{steps:?}") };
    let outcome = Outcome { node: key(6), fingerprint: theirs.fingerprint, given: theirs.attrs.clone() };
    r.commit(|tx| crate::plan::record(tx, &steps[0], Some(&outcome)));
    r.seal();
    (id, copy.clone())
}

#[test]
fn an_edited_conflict_copy_that_was_lost_makes_room_for_the_copy() {
    let mut r = Replica::new();
    let (id, copy) = with_copy(&mut r);
    r.commit(|tx| local::write(tx, &file(6, "edited")));
    let (edited, version) = r.commit(|tx| {
        let claim = tx.place(&copy.dir, &copy.name)?.unwrap().claims[0];
        assert_ne!(claim.entry, id, "an edit makes it an entry of its own");
        Ok((claim.entry, claim.version))
    });
    let (verdict, concerned) = r.judge(&copy, Some(&file(6, "theirs")));
    assert_eq!(verdict, Verdict::Undone(0));
    assert!(concerned.contains(&id) && concerned.contains(&edited));
    r.commit(|tx| local::withdraw(tx, edited, version));
    r.commit(|tx| {
        let row = tx.entry_must(edited)?;
        let versions: Vec<_> = row.entry.counting().map(|v| v.content.identity()).collect();
        assert_eq!(versions, [Digest::of(b"theirs")]);
        assert_eq!(tx.place(&copy.dir, &copy.name)?.unwrap().claims[0].entry, edited);
        Ok(())
    });
    assert_eq!(r.plan(&concerned), []);
}

#[test]
fn what_was_renamed_over_a_file_and_lost_makes_room_for_that_file() {
    let mut r = Replica::new();
    let old = r.create(&at(1, "f"), &file(5, "old"));
    r.seal();
    let new = r.create(&at(1, "t"), &file(6, "newer"));
    r.commit(|tx| local::rename(tx, (&key(1), &name("t")), (&key(1), &name("f")), u64::MAX));
    r.judge(&at(1, "t"), None);
    let (verdict, concerned) = r.judge(&at(1, "f"), Some(&file(5, "old")));
    assert_eq!(verdict, Verdict::Undone(0));
    let version = r.commit(|tx| Ok(tx.entry_must(new)?.entry.winner().unwrap().dot));
    r.commit(|tx| {
        assert_eq!(tx.entry_must(old)?.entry.counting().count(), 0);
        local::withdraw(tx, new, version)?;
        let row = tx.entry_must(new)?;
        let versions: Vec<_> = row.entry.counting().map(|v| v.content.identity()).collect();
        assert_eq!(versions, [Digest::of(b"old")]);
        Ok(())
    });
    assert_eq!(r.plan(&concerned), []);
}

#[test]
fn a_lost_version_takes_nothing_that_still_counts() {
    let mut r = Replica::new();
    let (id, copy) = with_copy(&mut r);
    let new = r.create(&at(1, "t"), &file(7, "newer"));
    r.judge(&at(1, "t"), None);
    r.commit(|tx| local::withdraw(tx, new, new.0));
    r.commit(|tx| {
        assert_eq!(tx.entry_must(new)?.entry.counting().count(), 0);
        assert_eq!(tx.entry_must(id)?.entry.counting().count(), 2);
        assert_eq!(tx.place(&copy.dir, &copy.name)?.unwrap().claims[0].entry, id);
        Ok(())
    });
}

#[test]
fn a_copy_that_becomes_an_entry_keeps_what_it_was_to_be_given() {
    let mut r = Replica::new();
    let (id, copy) = with_copy(&mut r);
    r.commit(|tx| {
        let node = (*tx.node_must(&key(6))?).clone();
        tx.put_node(&key(6), Node { wanted: crate::Wanted::UNKNOWN, ..node });
        tx.remove_pending(id);
        Ok(())
    });
    let mut closed = file(6, "theirs");
    closed.attrs.mode = 0o600;
    let (own, pending) = r.commit(|tx| {
        local::attrs(tx, &closed)?;
        let own = tx.place(&copy.dir, &copy.name)?.unwrap().claims[0].entry;
        Ok((own, tx.pending(usize::MAX)?))
    });
    assert_ne!(own, id, "a change makes it an entry of its own");
    assert!(pending.contains(&own), "{pending:?}");
}

/// A file was moved out of the way, to another name, and there it was removed; all of that is recorded.
fn parked_and_removed(r: &mut Replica) -> (EntryId, Image) {
    let id = r.create(&at(1, "f"), &file(5, "text"));
    r.seal();
    let image = r.commit(|tx| {
        let place = tx.place(&key(1), &name("f"))?.unwrap();
        let node = (*tx.node_must(&key(5))?).clone();
        Ok(Image { place: (*place).clone(), node })
    });
    r.commit(|tx| local::unlink(tx, (&key(1), &name("f"))));
    (id, image)
}

#[test]
fn what_a_cut_put_out_of_the_way_again_is_removed_there() {
    let mut r = Replica::new();
    let (id, image) = parked_and_removed(&mut r);
    let looked = file(5, "text");
    let concerned = r.commit(|tx| park_again(tx, &image, looked.fingerprint, &[]));
    assert_eq!(concerned, BTreeSet::from([id]));
    let steps = r.plan(&concerned);
    let parked = Plan::parked(&key(5));
    assert!(
        matches!(&steps[..], [Step::Remove { at, victim }] if *at == parked && victim.node == key(5)),
        "{steps:?}"
    );
}

#[test]
fn what_a_cut_put_out_of_the_way_again_goes_where_it_belongs() {
    let mut r = Replica::new();
    let id = r.create(&at(1, "f"), &file(5, "text"));
    let looked = file(5, "text");
    let concerned = r.commit(|tx| {
        let place = tx.place(&key(1), &name("f"))?.unwrap();
        let node = (*tx.node_must(&key(5))?).clone();
        park_again(tx, &Image { place: (*place).clone(), node }, looked.fingerprint, &[at(1, "f")])
    });
    assert_eq!(concerned, BTreeSet::from([id]));
    let steps = r.plan(&concerned);
    assert!(matches!(&steps[..], [Step::Unpark { to, .. }] if *to == at(1, "f")), "{steps:?}");
}

#[test]
fn a_file_whose_only_version_was_lost_is_removed() {
    let mut r = Replica::new();
    let id = r.create(&at(1, "f"), &file(5, "new"));
    r.judge(&at(1, "f"), None);
    r.commit(|tx| {
        local::withdraw(tx, id, id.0)?;
        let row = tx.entry_must(id)?;
        assert_eq!((row.entry.counting().count(), row.entry.shown_links().len()), (0, 0));
        Ok(())
    });
    assert_eq!(r.plan(&BTreeSet::from([id])), []);
}

#[test]
fn damaged_rows_are_refused() {
    let mut r = Replica::new();
    r.create(&at(1, "f"), &file(5, "new"));
    let (_, row) = r.rows().pop().unwrap();
    let snapshot = r.store.snapshot().unwrap();
    let tx = Tx::open(&*snapshot, ENV).unwrap();
    for len in 0..row.len() {
        assert!(decode(&row[..len], tx.replicas(), &mut Images::new()).is_err(), "{len} bytes");
    }
}

proptest! {
    #[test]
    fn old_rows_are_found_however_they_lie(
        base in btree_set((0u8..4, any::<u8>()), 0..400),
        changed in btree_set((0u8..4, any::<u8>()), 0..300),
    ) {
        let row = |(a, b): &(u8, u8)| ((Table::Places, vec![*a, *b]), Some(vec![*b]));
        let store = MemStore::new();
        store.commit(base.iter().map(row).collect()).unwrap();
        let batch: Batch = changed.iter().map(row).collect();
        let mut found = Vec::new();
        let base_read = store.snapshot().unwrap();
        for_each_old(&*base_read, &batch, Table::Places, |key, new, old| {
            assert_eq!(new, &Some(vec![key[1]]));
            found.push(((key[0], key[1]), old.is_some()));
            Ok(())
        })
        .unwrap();
        let expected: Vec<_> = changed.iter().map(|k| (*k, base.contains(k))).collect();
        prop_assert_eq!(found, expected);
    }
}
