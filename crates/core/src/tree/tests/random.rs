//! Random replicas, random orders: the incremental tree against the reference after each step.

use super::reference::{At, Reference, States, reference};
use super::*;
use crate::rows::Table;
use proptest::prelude::*;

/// What one of the replicas does. Numbers choose among what there is, modulo.
#[derive(Clone, Debug)]
enum Act {
    /// A directory, or a leaf of this kind and text.
    Create {
        spot: Spot,
        what: Option<(Kind, usize)>,
    },
    /// New content in place of the winner, or of all versions.
    Write {
        entry: usize,
        text: usize,
        all: bool,
    },
    Move {
        entry: usize,
        link: usize,
        spot: Spot,
    },
    Link {
        entry: usize,
        spot: Spot,
    },
    /// A name goes; with it all versions seen, if `removed`.
    Remove {
        entry: usize,
        link: usize,
        removed: bool,
    },
    /// One entry's state from another replica.
    Learn {
        from: usize,
        entry: usize,
    },
    /// All states of another replica.
    Sync {
        from: usize,
    },
}

/// A directory and one of these names: two short ones, one as long as can be (so that its conflict names
/// are cut), and the conflict name of some copy (as settling gives real names).
#[derive(Clone, Copy, Debug)]
struct Spot {
    parent: usize,
    name: usize,
}

fn act() -> impl Strategy<Value = Act> {
    let k = || 0usize..64;
    let few = || 0usize..3;
    let name = prop_oneof![5 => 0usize..2, 1 => 2usize..4];
    let spot = (k(), name).prop_map(|(parent, name)| Spot { parent, name });
    let kind = prop_oneof![4 => Just(Kind::File), 1 => Just(Kind::Fifo), 1 => Just(Kind::Socket)];
    let what = prop_oneof![Just(None), (kind, few()).prop_map(Some)];
    prop_oneof![
        7 => (spot.clone(), what).prop_map(|(spot, what)| Act::Create { spot, what }),
        3 => (k(), few(), any::<bool>()).prop_map(|(entry, text, all)| Act::Write { entry, text, all }),
        8 => (k(), k(), spot.clone()).prop_map(|(entry, link, spot)| Act::Move { entry, link, spot }),
        2 => (k(), spot).prop_map(|(entry, spot)| Act::Link { entry, spot }),
        4 => (k(), k(), any::<bool>()).prop_map(|(entry, link, removed)| Act::Remove { entry, link, removed }),
        3 => (few(), k()).prop_map(|(from, entry)| Act::Learn { from, entry }),
        2 => few().prop_map(|from| Act::Sync { from }),
    ]
}

const TEXTS: [&str; 3] = ["one", "two", "three"];

#[derive(Default)]
struct Site {
    states: States,
    n: u64,
}

/// What all sites made, in the order they made it.
struct World {
    sites: Vec<Site>,
    made: Vec<Entry>,
}

impl World {
    fn new(sites: usize) -> World {
        World { sites: (0..sites).map(|_| Site::default()).collect(), made: Vec::new() }
    }

    fn act(&mut self, who: usize, act: &Act) {
        match *act {
            Act::Learn { from, entry } => {
                let from = &self.sites[from % self.sites.len()].states;
                if let Some(e) = pick(from, entry, |_| true).cloned() {
                    learn(&mut self.sites[who].states, e);
                }
            }
            Act::Sync { from } => {
                let all: Vec<Entry> = self.sites[from % self.sites.len()].states.values().cloned().collect();
                for e in all {
                    learn(&mut self.sites[who].states, e);
                }
            }
            _ => self.sites[who].n += 1,
        }
        let site = &self.sites[who];
        let dot = dot(who as u64 + 1, site.n);
        if let Some(e) = changed(&site.states, dot, act) {
            self.sites[who].states.insert(e.id, e.clone());
            self.made.push(e);
        }
    }
}

fn learn(states: &mut States, e: Entry) {
    match states.get_mut(&e.id) {
        Some(mine) => {
            mine.merge(&e);
        }
        None => {
            states.insert(e.id, e);
        }
    }
}

fn pick(states: &States, n: usize, which: impl Fn(&Entry) -> bool) -> Option<&Entry> {
    let all: Vec<&Entry> = states.values().filter(|e| which(e)).collect();
    (!all.is_empty()).then(|| all[n % all.len()])
}

/// A directory, or the root; seldom a leaf, which no correct replica takes as parent.
fn pick_parent(states: &States, n: usize) -> EntryId {
    let odd = n > 60;
    let all: Vec<EntryId> = states.values().filter(|e| odd || e.kind.is_dir()).map(|e| e.id).collect();
    match n % (all.len() + 1) {
        0 => EntryId::ROOT,
        i => all[i - 1],
    }
}

fn pick_name(states: &States, spot: Spot) -> Name {
    match spot.name {
        0 => name("a"),
        1 => name("b.txt"),
        2 => name(&"\u{e4}".repeat(127)),
        _ => {
            let tree = reference(states).tree;
            let files = tree.values().flat_map(|t| t.values()).flat_map(|at| &at.files);
            let copies: Vec<&Name> = files.filter(|f| f.1).map(|f| &f.0).collect();
            if copies.is_empty() { name("a") } else { copies[spot.parent % copies.len()].clone() }
        }
    }
}

fn content_of(kind: Kind, text: usize) -> Content {
    match kind {
        Kind::File => content(TEXTS[text]),
        _ => Content::Special { rdev: 0, mtime: Default::default() },
    }
}

/// The state that the act makes, or `None` if there is nothing to act on.
fn changed(states: &States, dot: Dot, act: &Act) -> Option<Entry> {
    let fresh = EntryId(dot);
    let bump = |e: &Entry| {
        let mut e = e.clone();
        e.ctx.add(dot);
        let stamp = Stamp::above(e.stamp_max(), 0, dot.n, dot.replica);
        (e, stamp)
    };
    let at = |spot: Spot, stamp: Stamp, holds: Dot| {
        let (parent, name) = (pick_parent(states, spot.parent), pick_name(states, spot));
        crate::entry::At { stamp, dot, parent, name, holds }
    };
    Some(match *act {
        Act::Create { spot, what: None } => {
            dir_at(fresh, pick_parent(states, spot.parent), pick_name(states, spot))
        }
        Act::Create { spot, what: Some((kind, text)) } => {
            let mut e = leaf(fresh, pick_parent(states, spot.parent), "x", "");
            e.kind = kind;
            e.links[0].at.name = pick_name(states, spot);
            e.data[0].content = content_of(kind, text);
            e
        }
        Act::Write { entry, text, all } => {
            let (mut e, stamp) = bump(pick(states, entry, |e| !e.kind.is_dir())?);
            let winner = e.winner().map(|v| v.dot);
            e.data.retain(|v| !all && Some(v.dot) != winner);
            e.data.push(Version { dot, stamp, content: content_of(e.kind, text) });
            e.data.sort_by_key(|v| v.dot);
            e
        }
        Act::Move { entry, link, spot } => {
            let (mut e, stamp) = bump(pick(states, entry, |_| true)?);
            let link = link % e.links.len();
            e.links[link].at = at(spot, stamp, e.winner().map(|v| v.dot).unwrap_or_default());
            if e.kind.is_dir() {
                e.note_hist(e.links[link].at.parent, stamp);
            }
            e
        }
        Act::Link { entry, spot } => {
            let (mut e, stamp) = bump(pick(states, entry, |e| !e.kind.is_dir())?);
            let at = at(spot, stamp, e.winner()?.dot);
            e.links.push(Link { id: LinkId(dot), at, gone: VersionVector::new() });
            e.links.sort_by_key(|l| l.id);
            e
        }
        Act::Remove { entry, link, removed } => {
            let (mut e, _) = bump(pick(states, entry, |_| true)?);
            let ctx = e.ctx.clone();
            let link = link % e.links.len();
            e.links[link].gone.join(&ctx);
            if removed {
                e.removed.join(&ctx);
            }
            e
        }
        Act::Learn { .. } | Act::Sync { .. } => return None,
    })
}

/// Everything the incremental tree says, in the reference's words.
fn incremental(tx: &mut Tx<'_>, states: &States) -> Reference {
    let mut r = Reference::default();
    for e in states.values().filter(|e| e.kind.is_dir()) {
        r.parents.insert(e.id, parent_of(tx, e.id).unwrap().unwrap());
        if is_live(tx, e.id).unwrap() {
            r.live.insert(e.id);
        }
        let class = class_of(tx, e.id).unwrap();
        if !class.is_empty() {
            r.class.insert(e.id, class.to_vec());
        }
    }
    r.unrooted = tx.unrooted().unwrap().into_iter().collect();
    r.repaired = repaired_edges(tx).unwrap().into_iter().collect();
    let parents: BTreeSet<EntryId> = states
        .values()
        .flat_map(|e| e.links.iter().map(|l| l.at.parent))
        .chain(states.keys().copied())
        .collect();
    for p in parents.into_iter().chain([EntryId::ROOT]) {
        let names: BTreeSet<_> = tx.names_in(p, None, usize::MAX).unwrap().into_iter().collect();
        assert_eq!(tx.dir(p).unwrap().live_children, names.len() as u64, "children of {p:?}");
        if !names.is_empty() {
            r.below.insert(p, names);
        }
    }
    let mut todo = vec![vec![EntryId::ROOT]];
    while let Some(class) = todo.pop() {
        let mut here = BTreeMap::new();
        for name in children(tx, &class, None, usize::MAX).unwrap() {
            let shown = shown_at(tx, &class, &name).unwrap();
            let mut at = At { dirs: shown.dir.clone(), files: Vec::new() };
            for g in shown.groups {
                let mut claims: Vec<_> = g.claims.iter().map(|c| (c.entry, c.link, c.version)).collect();
                assert!(g.claims.is_sorted_by(|a, b| a.rank >= b.rank));
                claims.sort();
                at.files.push((g.name, g.conflict, claims));
            }
            if !shown.dir.is_empty() {
                todo.push(shown.dir);
            }
            here.insert(name, at);
        }
        r.tree.insert(class, here);
    }
    r
}

/// What of the tree concerns one entry's place on a disk.
#[derive(PartialEq, Eq, Debug)]
enum Place {
    Dir {
        parent: EntryId,
        class: Vec<EntryId>,
    },
    /// (real name, given name, claims) of each group it is in.
    Leaf(Vec<(Name, Name, reference::Claims)>),
}

fn places(r: &Reference) -> BTreeMap<EntryId, Place> {
    let mut out = BTreeMap::new();
    for (d, class) in &r.class {
        out.insert(*d, Place::Dir { parent: r.parents[d], class: class.clone() });
    }
    for names in r.tree.values() {
        for (real, at) in names {
            for (given, _, claims) in &at.files {
                for entry in claims.iter().map(|c| c.0).collect::<BTreeSet<_>>() {
                    let place = out.entry(entry).or_insert(Place::Leaf(Vec::new()));
                    let Place::Leaf(of) = place else { panic!("a leaf is a directory") };
                    of.push((real.clone(), given.clone(), claims.clone()));
                }
            }
        }
    }
    for place in out.values_mut() {
        if let Place::Leaf(of) = place {
            of.sort();
        }
    }
    out
}

/// Entries whose place changed, but for `changed` itself, must be pending; so must the children of a
/// directory that was moved into or out of a union.
fn check_pending(tx: &mut Tx<'_>, before: &Reference, after: &Reference, changed: EntryId) {
    let pending: BTreeSet<EntryId> = tx.pending(usize::MAX).unwrap().into_iter().collect();
    let (old, new) = (places(before), places(after));
    for e in old.keys().chain(new.keys()) {
        if *e != changed && old.get(e) != new.get(e) {
            assert!(pending.contains(e), "{e:?} is not pending: {:?} -> {:?}", old.get(e), new.get(e));
        }
    }
    for (d, class) in &after.class {
        let Some(was) = before.class.get(d) else { continue };
        let moved = before.parents[d] != after.parents[d];
        if moved && class != was {
            for (_, child) in after.below.get(d).into_iter().flatten() {
                let known = *child == changed || pending.contains(child);
                assert!(known, "{child:?} in the moved union member {d:?} is not pending");
            }
        }
    }
}

fn check_paths(tx: &mut Tx<'_>, r: &Reference, states: &States) {
    for e in states.values() {
        let path = path_of(tx, e.id).unwrap();
        let shown = !shown_names(tx, e.id).unwrap().is_empty();
        assert_eq!(path.is_some(), shown, "{:?}", e.id);
        let Some(path) = path else { continue };
        let mut class = vec![EntryId::ROOT];
        let (last, dirs) = path.split_last().unwrap();
        for name in dirs {
            class = r.tree[&class][name].dirs.clone();
        }
        let here = &r.tree[&class];
        if e.kind.is_dir() {
            assert!(here[last].dirs.contains(&e.id));
        } else {
            let winner = e.winner().unwrap().dot;
            let mut files = here.values().flat_map(|at| &at.files).filter(|f| f.0 == *last);
            assert!(files.next().unwrap().2.iter().any(|c| c.0 == e.id && c.2 == winner));
            assert!(files.next().is_none(), "two files at one name");
        }
    }
}

/// Receives `order` in several transactions, checking all after each state.
fn run(order: &[Entry], commit_every: usize) -> Reference {
    let store = store();
    let mut states = States::new();
    let mut before = reference(&states);
    for part in order.chunks(commit_every) {
        let snap = store.snapshot().unwrap();
        let mut tx = Tx::open(&*snap, ENV).unwrap();
        for e in part {
            for p in tx.pending(usize::MAX).unwrap() {
                tx.remove_pending(p);
            }
            let was = states.get(&e.id).cloned();
            learn(&mut states, e.clone());
            let expected =
                if was.as_ref() == Some(&states[&e.id]) { Received::Unchanged } else { Received::Changed };
            assert_eq!(receive(&mut tx, e, &VersionVector::new()).unwrap(), expected);
            let after = reference(&states);
            assert_eq!(incremental(&mut tx, &states), after);
            check_pending(&mut tx, &before, &after, e.id);
            check_paths(&mut tx, &after, &states);
            before = after;
        }
        store.commit(tx.into_batch(1)).unwrap();
    }
    before
}

fn history() -> impl Strategy<Value = (Vec<Entry>, Vec<Entry>)> {
    let acts = proptest::collection::vec((0usize..4, act()), 1..60);
    (2usize..5, acts).prop_flat_map(|(sites, acts)| {
        let mut world = World::new(sites);
        for (who, act) in acts {
            world.act(who % sites, &act);
        }
        let made = world.made;
        // Some states twice; any order.
        let again: Vec<Entry> = made.iter().step_by(5).cloned().collect();
        let all = [made.clone(), again].concat();
        (Just(made), Just(all).prop_shuffle())
    })
}

/// Writes all repaired edges down as moves, as the first local change in a repaired cycle does.
fn pin(states: &States) -> Vec<Entry> {
    let repaired = reference(states).repaired;
    let pinned = repaired.into_iter().zip(1000..).map(|((d, parent), n)| {
        let mut e = states[&d].clone();
        let (dot, stamp) = (dot(9, n), Stamp::above(e.stamp_max(), 0, 0, ReplicaId(9)));
        let absent = !e.links[0].present();
        e.links[0].at = crate::entry::At { stamp, dot, parent, ..e.links[0].at.clone() };
        e.note_hist(parent, stamp);
        e.ctx.add(dot);
        if absent {
            e.links[0].gone.add(dot);
        }
        e
    });
    pinned.collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn the_incremental_tree_equals_the_reference_in_any_order((made, shuffled) in history(), every in 1usize..9) {
        let one = run(&made, every);
        let other = run(&shuffled, every);
        prop_assert_eq!(one, other);
    }

    /// Model-findings 6, 1: with every repaired edge written down, those of absent directories too,
    /// nothing is repaired any more and the tree is the same.
    #[test]
    fn pinned_repairs_keep_the_tree((made, _) in history()) {
        let mut states = States::new();
        for e in &made {
            learn(&mut states, e.clone());
        }
        let pins = pin(&states);
        let before = reference(&states);
        let after = run(&[made, pins].concat(), usize::MAX);
        prop_assert!(after.unrooted.is_empty() && after.repaired.is_empty());
        prop_assert_eq!((after.parents, after.tree, after.below), (before.parents, before.tree, before.below));
    }
}

#[test]
fn an_emptied_tree_leaves_no_rows() {
    let store = store();
    let snap = store.snapshot().unwrap();
    let mut tx = Tx::open(&*snap, ENV).unwrap();
    let (d, f) = (dir(id(2, 1), EntryId::ROOT, "d"), leaf(id(2, 2), id(2, 1), "f", "x"));
    for e in [&d, &f] {
        put(&mut tx, e.clone());
    }
    assert!(!remove_state(&mut tx, d.id).unwrap());
    for mut e in [d, f] {
        let ctx = e.ctx.clone();
        e.links[0].gone.join(&ctx);
        e.removed.join(&ctx);
        put(&mut tx, e);
    }
    assert!(remove_state(&mut tx, id(2, 2)).unwrap());
    assert!(remove_state(&mut tx, id(2, 1)).unwrap());
    store.commit(tx.into_batch(1)).unwrap();
    let snap = store.snapshot().unwrap();
    for table in [Table::Entries, Table::Names, Table::Dirs, Table::DirKids, Table::Unrooted, Table::Feed] {
        assert_eq!(snap.scan(table, &[], None, 9).unwrap(), [], "{table:?}");
    }
}
