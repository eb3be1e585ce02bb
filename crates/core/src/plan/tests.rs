//! Plans against an in-memory disk: authors somewhere change states, this volume receives them, plans and
//! executes; then the disk must be the effective tree.

use super::*;
use crate::entry::{At as StateAt, Entry, Link, Version};
use crate::id::{LinkId, ReplicaId, Stamp};
use crate::memdisk::{MemDisk, MemError};
use crate::meta::{Digest, Time};
use crate::rows::{MemStore, Store};
use crate::tree;
use crate::tx::Env;
use crate::vv::VersionVector;
use crate::{Node, Wanted};
use proptest::prelude::*;
use smallvec::smallvec;
use std::collections::{BTreeMap, BTreeSet};

const ENV: Env = Env { now_ns: 1, epoch: 0 };

fn name(s: &str) -> Name {
    Name::new(s.as_bytes()).unwrap()
}

fn text(s: &str) -> Content {
    Content::File {
        size: s.len() as u64,
        mtime: Time { sec: s.len() as i64, nsec: 7 },
        digest: Digest::of(s.as_bytes()),
    }
}

/// A site far away: its copies of all states it knows.
#[derive(Clone)]
struct Author {
    replica: ReplicaId,
    n: u64,
    states: BTreeMap<EntryId, Entry>,
}

impl Author {
    fn new(replica: u64) -> Author {
        Author { replica: ReplicaId(replica), n: 0, states: BTreeMap::new() }
    }

    fn dot(&mut self) -> Dot {
        self.n += 1;
        Dot::new(self.replica, self.n)
    }

    /// Everybody's clocks count their own changes: many ties and close calls.
    fn stamp(&self, above: Stamp) -> Stamp {
        Stamp::above(above, 0, self.n, self.replica)
    }

    fn create(&mut self, kind: Kind, parent: EntryId, at: &str, content: Option<Content>) -> EntryId {
        let dot = self.dot();
        let stamp = self.stamp(Stamp::MIN);
        let data = content.into_iter().map(|content| Version { dot, stamp, content }).collect();
        let holds = if kind.is_dir() { Dot::default() } else { dot };
        let at = StateAt { stamp, dot, parent, name: name(at), holds };
        let mut attrs = Attrs { mode: 0o640, uid: 7, gid: 8, ..Attrs::default() };
        if kind.is_dir() {
            attrs.mode = 0o750;
        }
        let mut e = Entry {
            id: EntryId(dot),
            kind,
            ctx: VersionVector::from_dot(dot),
            removed: VersionVector::new(),
            data,
            links: smallvec![Link { id: LinkId(dot), at, gone: VersionVector::new() }],
            meta: (stamp, attrs),
            dir_time: kind.is_dir().then_some((stamp, Time { sec: dot.n as i64, nsec: 1 })),
            hist: Vec::new(),
        };
        if kind.is_dir() {
            e.note_hist(parent, stamp);
        }
        self.states.insert(e.id, e);
        EntryId(dot)
    }

    fn file(&mut self, parent: EntryId, at: &str, content: &str) -> EntryId {
        self.create(Kind::File, parent, at, Some(text(content)))
    }

    fn dir(&mut self, parent: EntryId, at: &str) -> EntryId {
        self.create(Kind::Dir, parent, at, None)
    }

    fn change(&mut self, id: EntryId, f: impl FnOnce(&mut Entry, Dot, Stamp)) {
        let dot = self.dot();
        let Some(e) = self.states.get(&id) else { return };
        let stamp = self.stamp(e.stamp_max());
        let e = self.states.get_mut(&id).unwrap();
        e.ctx.add(dot);
        f(e, dot, stamp);
    }

    fn write(&mut self, id: EntryId, content: &str) {
        let content = text(content);
        self.change(id, |e, dot, stamp| {
            if !e.kind.is_dir() {
                e.data = smallvec![Version { dot, stamp, content }];
            }
        });
    }

    fn rename(&mut self, id: EntryId, link: usize, parent: EntryId, to: &str) {
        self.change(id, |e, dot, stamp| {
            let holds = e.winner().map(|v| v.dot).unwrap_or_default();
            let i = link % e.links.len();
            e.links[i].at = StateAt { stamp, dot, parent, name: name(to), holds };
            if e.kind.is_dir() {
                e.note_hist(parent, stamp);
            }
        });
    }

    fn link(&mut self, id: EntryId, parent: EntryId, to: &str) {
        self.change(id, |e, dot, stamp| {
            let holds = e.winner().map(|v| v.dot).unwrap_or_default();
            if !e.kind.is_dir() {
                let at = StateAt { stamp, dot, parent, name: name(to), holds };
                e.links.push(Link { id: LinkId(dot), at, gone: VersionVector::new() });
                e.links.sort_by_key(|l| l.id);
            }
        });
    }

    fn unlink(&mut self, id: EntryId, link: usize) {
        self.change(id, |e, _, _| {
            let ctx = e.ctx.clone();
            let i = link % e.links.len();
            e.links[i].gone.join(&ctx);
            if e.present_links().next().is_none() {
                e.removed.join(&ctx);
            }
        });
    }

    fn remove(&mut self, id: EntryId) {
        self.change(id, |e, _, _| {
            let ctx = e.ctx.clone();
            e.links.iter_mut().for_each(|l| l.gone.join(&ctx));
            e.removed.join(&ctx);
        });
    }

    fn chmod(&mut self, id: EntryId, mode: u32) {
        self.change(id, |e, _, stamp| {
            e.meta.0 = stamp;
            e.meta.1.mode = mode;
        });
    }

    fn touch(&mut self, id: EntryId, sec: i64) {
        self.change(id, |e, dot, stamp| {
            for v in &mut e.data {
                if let Content::File { mtime, .. } = &mut v.content {
                    *mtime = Time { sec, nsec: 3 };
                    (v.dot, v.stamp) = (dot, stamp);
                }
            }
            if e.kind.is_dir() {
                e.dir_time = Some((stamp, Time { sec, nsec: 3 }));
            }
        });
    }

    fn learn(&mut self, other: &Entry) {
        match self.states.get_mut(&other.id) {
            Some(e) => drop(e.merge(other)),
            None => drop(self.states.insert(other.id, other.clone())),
        }
    }

    fn learn_all(&mut self, other: &Author) {
        other.states.values().for_each(|e| self.learn(e));
    }
}

/// What a leaf's inode on the disk must be: kind, content, attributes, and which inode.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Wants {
    kind: Kind,
    content: Option<Content>,
    mode: u32,
    dir_mtime: Option<Time>,
    /// Paths with equal owners share an inode; others don't.
    inode: (EntryId, Option<Digest>),
}

/// The volume under test.
struct Volume {
    store: MemStore,
    disk: MemDisk,
    cursor: u64,
}

impl Volume {
    fn new() -> Volume {
        let store = MemStore::new();
        store.commit(Tx::create(ReplicaId(99))).unwrap();
        let v = Volume { store, disk: MemDisk::new(), cursor: 0 };
        let root = v.disk.root();
        v.edit(|tx| {
            tx.set_root_node(&root);
            let node = Node {
                kind: Kind::Dir,
                fingerprint: Fingerprint::default(),
                racy: false,
                given: Attrs::default(),
                wanted: Wanted::UNKNOWN,
                names: Vec::new(),
                bind: Bind::Dir(vec![EntryId::ROOT]),
            };
            tx.put_node(&root, node);
        });
        v
    }

    fn edit<T>(&self, f: impl FnOnce(&mut Tx<'_>) -> T) -> T {
        let snap = self.store.snapshot().unwrap();
        let mut tx = Tx::open(&*snap, ENV).unwrap();
        let out = f(&mut tx);
        self.store.commit(tx.into_batch(1)).unwrap();
        out
    }

    /// Reads only: what it does is dropped.
    fn read<T>(&self, f: impl FnOnce(&mut Tx<'_>) -> T) -> T {
        let snap = self.store.snapshot().unwrap();
        f(&mut Tx::open(&*snap, ENV).unwrap())
    }

    fn receive<'e>(&self, states: impl IntoIterator<Item = &'e Entry>) {
        self.edit(|tx| {
            for e in states {
                tree::receive(tx, e, &VersionVector::new()).unwrap();
            }
        });
    }

    /// What the engine would plan now.
    fn todo(&self, tx: &mut Tx<'_>) -> Vec<EntryId> {
        let mut todo = tx.pending(usize::MAX).unwrap();
        todo.extend(tx.feed_after(self.cursor, usize::MAX).unwrap().into_iter().map(|r| r.1));
        todo
    }

    fn plan(&self) -> Plan {
        self.plan_with(&PlanOptions::default())
    }

    fn plan_with(&self, options: &PlanOptions<'_>) -> Plan {
        self.read(|tx| {
            let mut plan = Plan::new();
            for id in self.todo(tx) {
                assert_eq!(plan_entry(tx, id, &mut plan, options).unwrap(), None, "{id:?}");
            }
            plan
        })
    }

    fn execute(&mut self, plan: &Plan) -> Result<(), MemError> {
        let snap = self.store.snapshot().unwrap();
        let mut tx = Tx::open(&*snap, ENV).unwrap();
        let (_, done) = self.disk.run(&mut tx, plan);
        self.disk.end_plan();
        if done.is_ok() {
            for id in tx.pending(usize::MAX).unwrap() {
                tx.remove_pending(id);
            }
            self.cursor = tx.head();
        }
        self.store.commit(tx.into_batch(1)).unwrap();
        done
    }

    /// Goes on after a step that fails, with what does not build on it, as an engine does: entries whose steps
    /// failed stay pending.
    fn execute_all_but(&mut self, plan: &Plan, k: u64) {
        self.disk.fail_step(k);
        let snap = self.store.snapshot().unwrap();
        let mut tx = Tx::open(&*snap, ENV).unwrap();
        eprintln!("SKIP {k} {}", brief(&plan.steps));
        for id in self.todo(&mut tx) {
            let nm = tree::shown_names(&mut tx, id).unwrap();
            let bd = tx.entry(id).unwrap().unwrap().bound.clone();
            eprintln!("  {id:?} at {nm:?} bound {bd:?}");
        }
        let mut failed = BTreeSet::new();
        for step in &plan.steps {
            if self.disk.run_step(&mut tx, step).is_err() {
                let mut step = step.clone();
                self.disk.resolve(&mut step);
                failed.extend(concerned(&mut tx, &step).unwrap());
            }
        }
        self.disk.restore_times(&mut tx).unwrap();
        self.disk.end_plan();
        self.disk.fail_step(u64::MAX / 2);
        for id in tx.pending(usize::MAX).unwrap() {
            tx.remove_pending(id);
        }
        failed.iter().for_each(|id| tx.add_pending(*id));
        self.cursor = tx.head();
        self.store.commit(tx.into_batch(1)).unwrap();
    }

    /// Plans and executes; gives the steps.
    fn sync(&mut self) -> Vec<Step> {
        let plan = self.plan();
        self.check_no_needless_put(&plan);
        if let Err(e) = self.execute(&plan) {
            panic!("{e}\n{}", brief(&plan.steps));
        }
        plan.steps
    }

    fn take(&mut self, author: &Author) -> Vec<Step> {
        self.receive(author.states.values());
        let steps = self.sync();
        self.check();
        steps
    }

    /// No content is fetched that an inode bound to one of its entries has.
    fn check_no_needless_put(&self, plan: &Plan) {
        self.read(|tx| {
            for step in &plan.steps {
                let Step::Put { content, copy: None, binding, .. } = step else { continue };
                for claim in &binding.claims {
                    for key in tx.entry(claim.entry).unwrap().unwrap().bound.clone() {
                        let held = &tx.node(&key).unwrap().unwrap().bind;
                        let identity = content.identity();
                        assert_ne!(
                            *held,
                            Bind::Leaf { identity },
                            "needless {step:?} in {}",
                            brief(&plan.steps)
                        );
                    }
                }
            }
        });
    }

    /// The disk is the effective tree, to the last inode, and planning everything again finds nothing.
    fn check(&self) {
        self.compare();
        assert_eq!(self.disk.parked_count(), 0);
        self.read(|tx| {
            let mut plan = Plan::new();
            for (_, id) in tx.feed_after(0, usize::MAX).unwrap() {
                assert_eq!(plan_entry(tx, id, &mut plan, &PlanOptions::default()).unwrap(), None);
            }
            assert_eq!(plan.steps, [], "planned twice: {}", brief(&plan.steps));
        });
    }

    fn compare(&self) {
        let wanted = self.read(effective);
        let seen = self.disk.walk();
        let paths: Vec<_> = seen.keys().collect();
        assert_eq!(paths, wanted.keys().collect::<Vec<_>>());
        let mut inodes = BTreeMap::new();
        for (path, w) in &wanted {
            let s = &seen[path];
            assert_eq!((s.kind, &s.content), (w.kind, &w.content), "{path:?}");
            assert_eq!((s.attrs.mode, s.attrs.dir_mtime), (w.mode, w.dir_mtime), "{path:?}");
            let same = inodes.entry(w.inode).or_insert(s.node.clone());
            assert_eq!(*same, s.node, "{path:?} is not linked");
        }
        let distinct: BTreeSet<_> = inodes.values().collect();
        assert_eq!(distinct.len(), inodes.len(), "inodes of different entries are linked");
        self.check_record(&seen);
    }

    /// The record says what is on the disk, and each entry is bound to what stands for it.
    fn check_record(&self, seen: &BTreeMap<Vec<Name>, crate::memdisk::Seen>) {
        self.read(|tx| {
            let mut dirs = BTreeMap::from([(Vec::new(), self.disk.root())]);
            dirs.extend(
                seen.iter().filter(|(_, s)| s.kind.is_dir()).map(|(p, s)| (p.clone(), s.node.clone())),
            );
            for (path, dir) in dirs {
                let places = tx.places_in(&dir, None, usize::MAX).unwrap();
                let known: Vec<_> = places.iter().map(|(n, p)| (n.clone(), p.node.clone())).collect();
                let there = seen.iter().filter(|(p, _)| p.len() == path.len() + 1 && p.starts_with(&path));
                let there: Vec<_> = there.map(|(p, s)| (p[p.len() - 1].clone(), s.node.clone())).collect();
                assert_eq!(known, there, "{path:?}");
                for (place_name, place) in places {
                    let node = tx.node(&place.node).unwrap().unwrap();
                    assert!(node.names.contains(&(dir.clone(), place_name)));
                    let members = match &node.bind {
                        Bind::Dir(members) => members.clone(),
                        Bind::Leaf { .. } => place.claims.iter().map(|c| c.entry).collect(),
                    };
                    for m in members {
                        assert!(tx.entry(m).unwrap().unwrap().bound.contains(&place.node));
                    }
                }
            }
        });
    }
}

/// The whole effective tree.
fn effective(tx: &mut Tx<'_>) -> BTreeMap<Vec<Name>, Wants> {
    let mut out = BTreeMap::new();
    let mut todo = vec![(Vec::new(), vec![EntryId::ROOT])];
    while let Some((path, class)) = todo.pop() {
        for base in tree::children(tx, &class, None, usize::MAX).unwrap() {
            let shown = tree::shown_at(tx, &class, &base).unwrap();
            let below = |n: &Name| [&path[..], std::slice::from_ref(n)].concat();
            if !shown.dir.is_empty() {
                out.insert(below(&base), wants_dir(tx, &shown.dir));
                todo.push((below(&base), shown.dir.clone()));
            }
            for g in &shown.groups {
                let row = tx.entry(g.claims[0].entry).unwrap().unwrap();
                let version = row.entry.version(g.claims[0].version).unwrap();
                let wants = Wants {
                    kind: row.entry.kind,
                    content: Some(version.content.clone()),
                    mode: row.entry.meta.1.mode,
                    dir_mtime: None,
                    inode: (row.entry.id, Some(version.content.identity())),
                };
                assert!(out.insert(below(&g.name), wants).is_none(), "two at {:?}", below(&g.name));
            }
        }
    }
    out
}

fn wants_dir(tx: &mut Tx<'_>, class: &[EntryId]) -> Wants {
    let rows: Vec<_> = class.iter().map(|m| tx.entry(*m).unwrap().unwrap()).collect();
    let last = rows.iter().max_by_key(|r| (r.entry.meta.0, r.entry.id)).unwrap();
    Wants {
        kind: Kind::Dir,
        content: None,
        mode: last.entry.meta.1.mode,
        dir_mtime: rows.iter().filter_map(|r| r.entry.dir_time).max().map(|t| t.1),
        inode: (class[0], None),
    }
}

const ROOT: EntryId = EntryId::ROOT;

/// The steps without what only changes the record.
fn words(steps: &[Step]) -> Vec<&'static str> {
    let word = |s: &Step| match s {
        Step::MakeDir { .. } => "mkdir",
        Step::Put { copy: Some(_), .. } => "copy",
        Step::Put { victim: None, .. } => "put",
        Step::Put { .. } => "put over",
        Step::Link { victim: None, .. } => "link",
        Step::Link { .. } => "link over",
        Step::Move { victim: None, .. } => "move",
        Step::Move { .. } => "move over",
        Step::Park { .. } => "park",
        Step::Unpark { victim: None, .. } => "unpark",
        Step::Unpark { .. } => "unpark over",
        Step::Remove { .. } => "remove",
        Step::SetAttrs { .. } => "attrs",
        Step::Rebind { .. } => "rebind",
    };
    steps.iter().map(word).filter(|w| *w != "rebind").collect()
}

/// Steps in few letters, to read what failed.
fn brief(steps: &[Step]) -> String {
    let mut out = String::new();
    for s in steps {
        out.push_str(&format!(
            "\n{} {:?}",
            words(std::slice::from_ref(s)).first().unwrap_or(&"rebind"),
            s.node()
        ));
        let (places, binding) = match s {
            Step::MakeDir { at, binding, .. }
            | Step::Put { at, binding, .. }
            | Step::Rebind { at, binding, .. } => (vec![at], Some(binding)),
            Step::Link { from, to, binding, .. } | Step::Move { from, to, binding, .. } => {
                (vec![from, to], Some(binding))
            }
            Step::Park { from, .. } => (vec![from], None),
            Step::Unpark { to, binding, .. } => (vec![to], Some(binding)),
            Step::Remove { at, .. } => (vec![at], None),
            Step::SetAttrs { path, .. } => (path.iter().collect(), None),
        };
        for at in places {
            out.push_str(&format!(" {:?}/{}", at.dir, at.name));
        }
        if let Some(b) = binding {
            out.push_str(&format!(
                " {:?}{:?}",
                b.members,
                b.claims.iter().map(|c| c.entry).collect::<Vec<_>>()
            ));
        }
    }
    out
}

#[test]
fn new_files_and_directories_are_made_parents_first() {
    let (mut a, mut v) = (Author::new(1), Volume::new());
    let d = a.dir(ROOT, "d");
    a.file(d, "f", "one");
    a.create(
        Kind::Symlink,
        d,
        "l",
        Some(Content::Symlink { target: smallvec![b'x'], mtime: Time::default() }),
    );
    // The child alone, before its directory is looked at.
    v.receive(a.states.values());
    let plan = v.read(|tx| {
        let mut plan = Plan::new();
        plan_entry(tx, EntryId(Dot::new(ReplicaId(1), 2)), &mut plan, &PlanOptions::default()).unwrap();
        plan
    });
    assert_eq!(words(&plan.steps), ["mkdir", "put"]);
    assert_eq!(words(&v.sync()), ["mkdir", "put", "put"]);
    v.check();
}

#[test]
fn a_renamed_directory_of_many_files_is_one_move() {
    let (mut a, mut v) = (Author::new(1), Volume::new());
    let d = a.dir(ROOT, "d");
    for i in 0..50 {
        a.file(d, &format!("f{i}"), "x");
    }
    v.take(&a);
    a.rename(d, 0, ROOT, "e");
    assert_eq!(words(&v.take(&a)), ["move"]);
}

#[test]
fn names_swapped_and_turned_round_are_parked_once() {
    for kind in [Kind::File, Kind::Dir] {
        let (mut a, mut v) = (Author::new(1), Volume::new());
        let ids: Vec<_> = ["a", "b", "c"]
            .iter()
            .map(|n| a.create(kind, ROOT, n, (kind == Kind::File).then(|| text(n))))
            .collect();
        v.take(&a);
        a.rename(ids[0], 0, ROOT, "b");
        a.rename(ids[1], 0, ROOT, "a");
        assert_eq!(words(&v.take(&a)), ["park", "move", "unpark"]);
        a.rename(ids[0], 0, ROOT, "a");
        a.rename(ids[1], 0, ROOT, "c");
        a.rename(ids[2], 0, ROOT, "b");
        assert_eq!(words(&v.take(&a)), ["park", "move", "move", "unpark"]);
    }
}

#[test]
fn a_new_content_goes_over_the_old_and_links_follow() {
    let (mut a, mut v) = (Author::new(1), Volume::new());
    let f = a.file(ROOT, "f", "one");
    a.link(f, ROOT, "g");
    a.link(f, ROOT, "h");
    assert_eq!(words(&v.take(&a)), ["put", "link", "link"]);
    a.write(f, "two!");
    assert_eq!(words(&v.take(&a)), ["put over", "link over", "link over"]);
    a.unlink(f, 1);
    assert_eq!(words(&v.take(&a)), ["remove"]);
    a.rename(f, 0, ROOT, "k");
    assert_eq!(words(&v.take(&a)), ["move"]);
    a.link(f, ROOT, "l");
    assert_eq!(words(&v.take(&a)), ["link"]);
    a.chmod(f, 0o600);
    assert_eq!(words(&v.take(&a)), ["attrs"]);
    a.touch(f, 77);
    assert_eq!(words(&v.take(&a)), ["attrs"]);
    a.remove(f);
    assert_eq!(words(&v.take(&a)), ["remove", "remove", "remove"]);
}

#[test]
fn a_directory_goes_below_what_was_below_it() {
    let (mut a, mut v) = (Author::new(1), Volume::new());
    let x = a.dir(ROOT, "x");
    let y = a.dir(x, "y");
    a.file(x, "f", "in x");
    a.file(y, "g", "in y");
    v.take(&a);
    a.rename(y, 0, ROOT, "y");
    a.rename(x, 0, y, "x");
    assert_eq!(words(&v.take(&a)), ["move", "move"]);
    // And with the names crossed: what is below takes the place of what is above. Nothing moves out of a parked
    // directory, so it leaves before that is parked.
    a.rename(x, 0, ROOT, "y");
    a.rename(y, 0, x, "x");
    let steps = v.take(&a);
    assert_eq!(words(&steps), ["park", "park", "unpark", "unpark"]);
}

#[test]
fn directories_become_one_and_part_again() {
    let (mut a, mut v) = (Author::new(1), Volume::new());
    let x = a.dir(ROOT, "x");
    let y = a.dir(ROOT, "y");
    a.file(x, "f", "in x");
    a.file(y, "g", "in y");
    let (sx, sy) = (a.dir(x, "s"), a.dir(y, "s"));
    a.file(sx, "1", "1");
    a.file(sy, "2", "2");
    v.take(&a);
    a.rename(y, 0, ROOT, "x");
    let steps = v.take(&a);
    assert!(!words(&steps).contains(&"put"), "{steps:#?}");
    a.rename(x, 0, ROOT, "z");
    let steps = v.take(&a);
    assert!(!words(&steps).contains(&"put"), "{steps:#?}");
}

#[test]
fn conflict_copies_come_and_go() {
    let (mut a, mut b, mut v) = (Author::new(1), Author::new(2), Volume::new());
    let f = a.file(ROOT, "f.txt", "base");
    b.learn_all(&a);
    v.take(&a);
    a.write(f, "from a");
    b.write(f, "from b");
    b.write(f, "from b again");
    v.take(&a);
    let steps = v.take(&b);
    assert_eq!(words(&steps), ["move", "put"], "the loser keeps its inode");
    a.learn_all(&b);
    a.remove(f);
    let g = a.file(ROOT, "f.txt", "other");
    v.take(&a);
    b.write(g, "nobody knows it there");
    b.create(Kind::File, ROOT, "f.txt", Some(text("a stranger")));
    v.take(&b);
}

/// The loser of a conflict was to move out of the winner's way, but a user had just taken it away. If the winner were
/// put at the name nevertheless, its record would cover that of the loser, and the removal would never be seen.
#[test]
fn nothing_is_put_where_what_was_there_is_still_recorded() {
    let (mut a, mut b, mut v) = (Author::new(1), Author::new(2), Volume::new());
    let f = a.file(ROOT, "f.txt", "base");
    b.learn_all(&a);
    v.take(&a);
    a.write(f, "from a");
    b.write(f, "from b");
    b.write(f, "from b again");
    v.take(&a);
    v.receive(b.states.values());
    let plan = v.plan();
    assert_eq!(words(&plan.steps), ["move", "put"]);
    v.disk.fail_step(0);
    let snap = v.store.snapshot().unwrap();
    let mut tx = Tx::open(&*snap, ENV).unwrap();
    assert_eq!(v.disk.run_step(&mut tx, &plan.steps[0]), Err(MemError::Injected));
    assert_eq!(v.disk.run_step(&mut tx, &plan.steps[1]), Err(MemError::NotRecorded));
}

/// What was to leave a directory did not, because a user had removed both. That the directory is gone as wished must not
/// be recorded then: what is recorded in it would be in no directory that anybody looks at.
#[test]
fn a_directory_in_which_something_is_recorded_stays_recorded() {
    let (mut a, mut v) = (Author::new(1), Volume::new());
    let d = a.dir(ROOT, "d");
    let f = a.file(d, "f", "x");
    v.take(&a);
    a.rename(f, 0, ROOT, "f");
    a.remove(d);
    v.receive(a.states.values());
    let plan = v.plan();
    assert_eq!(words(&plan.steps), ["move", "remove"]);
    let snap = v.store.snapshot().unwrap();
    let mut tx = Tx::open(&*snap, ENV).unwrap();
    assert!(!stands(&mut tx, &plan.steps[1]).unwrap());
    v.disk.run_step(&mut tx, &plan.steps[0]).unwrap();
    assert!(stands(&mut tx, &plan.steps[1]).unwrap());
}

#[test]
fn a_file_becomes_a_directory_and_back() {
    let (mut a, mut v) = (Author::new(1), Volume::new());
    let f = a.file(ROOT, "n", "file");
    v.take(&a);
    a.remove(f);
    let d = a.dir(ROOT, "n");
    let inner = a.file(d, "inner", "x");
    assert_eq!(words(&v.take(&a)), ["remove", "mkdir", "put"]);
    a.remove(inner);
    a.remove(d);
    a.file(ROOT, "n", "file again");
    assert_eq!(words(&v.take(&a)), ["remove", "remove", "put"]);
}

#[test]
fn a_child_takes_the_name_of_its_removed_directory() {
    let (mut a, mut v) = (Author::new(1), Volume::new());
    let d = a.dir(ROOT, "n");
    let e = a.dir(d, "sub");
    let f = a.file(e, "f", "deep");
    v.take(&a);
    a.rename(f, 0, ROOT, "n");
    a.remove(e);
    a.remove(d);
    let steps = v.take(&a);
    assert!(!words(&steps).contains(&"put"), "{steps:#?}");
}

#[test]
fn what_shares_an_inode_is_copied_when_parted() {
    let (mut a, mut b, mut v) = (Author::new(1), Author::new(2), Volume::new());
    a.file(ROOT, "f", "same");
    let fb = b.file(ROOT, "f", "same");
    v.take(&a);
    assert_eq!(words(&v.take(&b)), [""; 0]);
    b.rename(fb, 0, ROOT, "g");
    assert_eq!(words(&v.take(&b)), ["copy"]);
    b.rename(fb, 0, ROOT, "f");
    assert_eq!(words(&v.take(&b)).len(), 1);
    b.write(fb, "other");
    let steps = v.take(&b);
    assert!(steps.iter().filter(|s| matches!(s, Step::Put { .. })).count() == 1, "{steps:#?}");
}

#[test]
fn owners_that_cannot_be_set_are_asked_for_once() {
    let (mut a, mut v) = (Author::new(1), Volume::new());
    v.disk.owner_forced = Some((1000, 1000));
    let f = a.file(ROOT, "f", "x");
    let d = a.dir(ROOT, "d");
    v.take(&a);
    a.chmod(f, 0o600);
    a.chmod(d, 0o700);
    assert_eq!(words(&v.take(&a)), ["attrs", "attrs"]);
}

#[test]
fn a_long_chain_of_renames_needs_no_deep_stack() {
    let (mut a, mut v) = (Author::new(1), Volume::new());
    let ids: Vec<_> = (0..600).map(|i| a.file(ROOT, &format!("f{i}"), &format!("{i}"))).collect();
    v.take(&a);
    for (i, id) in ids.iter().enumerate() {
        a.rename(*id, 0, ROOT, &format!("f{}", i + 1));
    }
    let steps = v.take(&a);
    assert!(!words(&steps).contains(&"put"));
}

#[test]
fn what_a_filter_leaves_out_is_not_made() {
    let (mut a, v) = (Author::new(1), Volume::new());
    let d = a.dir(ROOT, "out");
    a.file(d, "f", "x");
    a.file(ROOT, "in", "y");
    v.receive(a.states.values());
    let skip = |path: &[Name], _: bool| path[0] == name("out");
    let plan = v.plan_with(&PlanOptions { skip: Some(&skip) });
    assert_eq!(words(&plan.steps), ["put"]);
}

#[test]
fn steps_are_described_with_their_paths() {
    let (mut a, mut v) = (Author::new(1), Volume::new());
    let d = a.dir(ROOT, "docs");
    v.take(&a);
    a.file(d, "a.txt", "four");
    v.receive(a.states.values());
    let plan = v.plan();
    let line = v.read(|tx| describe(tx, &plan.steps[0]).unwrap().to_string());
    assert_eq!(line, "create file docs/a.txt (4 bytes)");
}

/// What a random author does; numbers choose among what there is.
#[derive(Clone, Debug)]
enum Act {
    File(usize, u8, u8),
    Dir(usize, u8),
    Write(usize, u8),
    Rename(usize, usize, usize, u8),
    Link(usize, usize, u8),
    Unlink(usize, usize),
    Remove(usize),
    Chmod(usize, u8),
    Learn,
    Send(usize),
    SendAll,
    Sync,
    Fault(u64),
    Skip(u64),
}

fn act() -> impl Strategy<Value = (usize, Act)> {
    let n = any::<usize>;
    let small = || 0u8..4;
    let act = prop_oneof![
        4 => (n(), small(), small()).prop_map(|(a, b, c)| Act::File(a, b, c)),
        4 => (n(), small()).prop_map(|(a, b)| Act::Dir(a, b)),
        3 => (n(), small()).prop_map(|(a, b)| Act::Write(a, b)),
        6 => (n(), n(), n(), small()).prop_map(|(a, b, c, d)| Act::Rename(a, b, c, d)),
        2 => (n(), n(), small()).prop_map(|(a, b, c)| Act::Link(a, b, c)),
        2 => (n(), n()).prop_map(|(a, b)| Act::Unlink(a, b)),
        3 => n().prop_map(Act::Remove),
        1 => (n(), small()).prop_map(|(a, b)| Act::Chmod(a, b)),
        2 => Just(Act::Learn),
        4 => n().prop_map(Act::Send),
        2 => Just(Act::SendAll),
        2 => Just(Act::Sync),
        1 => (0u64..6).prop_map(Act::Fault),
        1 => (0u64..6).prop_map(Act::Skip),
    ];
    (0usize..3, act)
}

impl Author {
    fn pick(&self, n: usize) -> Option<EntryId> {
        self.states.keys().nth(n.checked_rem(self.states.len())?).copied()
    }

    fn pick_dir(&self, n: usize) -> EntryId {
        let dirs: Vec<_> = self.states.values().filter(|e| e.kind.is_dir()).map(|e| e.id).collect();
        *dirs.get(n % (dirs.len() + 1)).unwrap_or(&ROOT)
    }

    fn act(&mut self, act: &Act) {
        let name = |n: u8| ["a", "b", "c", "d"][usize::from(n)];
        let body = |n: u8| ["one", "two", "three", "four"][usize::from(n)];
        let (file, n) = match act {
            Act::File(d, n, c) => {
                self.file(self.pick_dir(*d), name(*n), body(*c));
                return;
            }
            Act::Dir(d, n) => {
                self.dir(self.pick_dir(*d), name(*n));
                return;
            }
            Act::Write(f, c) => (f, *c),
            Act::Rename(f, _, _, n) | Act::Link(f, _, n) | Act::Chmod(f, n) => (f, *n),
            Act::Unlink(f, _) | Act::Remove(f) => (f, 0),
            _ => return,
        };
        let Some(id) = self.pick(*file) else { return };
        match act {
            Act::Write(..) => self.write(id, body(n)),
            Act::Rename(_, l, d, _) => self.rename(id, *l, self.pick_dir(*d), name(n)),
            Act::Link(_, d, _) => self.link(id, self.pick_dir(*d), name(n)),
            Act::Unlink(_, l) => self.unlink(id, *l),
            Act::Remove(_) => self.remove(id),
            _ => self.chmod(id, 0o700 + u32::from(n)),
        }
    }
}

fn play(acts: &[(usize, Act)]) {
    let (mut authors, mut v) = ([Author::new(1), Author::new(2), Author::new(3)], Volume::new());
    for (who, act) in acts {
        match act {
            Act::Learn => {
                let other = authors[(who + 1) % 3].clone();
                authors[*who].learn_all(&other);
            }
            Act::Send(n) => {
                if let Some(id) = authors[*who].pick(*n) {
                    v.receive([&authors[*who].states[&id]]);
                }
            }
            Act::SendAll => v.receive(authors[*who].states.values()),
            Act::Sync => {
                v.sync();
                v.check();
            }
            Act::Fault(k) => {
                let plan = v.plan();
                v.disk.fail_step(*k);
                let done = v.execute(&plan);
                v.disk.fail_step(u64::MAX / 2);
                assert_eq!(done.is_err(), *k < words(&plan.steps).len() as u64);
            }
            Act::Skip(k) => {
                let plan = v.plan();
                v.execute_all_but(&plan, *k);
            }
            act => authors[*who].act(act),
        }
    }
    authors.iter().for_each(|a| v.receive(a.states.values()));
    v.sync();
    v.check();
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn any_change_of_states_ends_in_the_effective_tree(acts in prop::collection::vec(act(), 1..160)) {
        play(&acts);
    }
}
