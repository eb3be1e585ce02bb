//! The effective tree once more: from all states at a time, simple and slow, as model-findings 3.3 words it.

use crate::entry::Entry;
use crate::id::{Dot, EntryId, Kind, LinkId, Name, Stamp};
use crate::meta::Digest;
use crate::tree::conflict_name;
use std::collections::{BTreeMap, BTreeSet};

pub(super) type States = BTreeMap<EntryId, Entry>;

/// (entry, link, version) of what one file stands for.
pub(super) type Claims = Vec<(EntryId, LinkId, Dot)>;

/// One name of one directory class.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct At {
    pub dirs: Vec<EntryId>,
    /// Name given, is it a conflict name, claims.
    pub files: Vec<(Name, bool, Claims)>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Reference {
    /// Of all known directories.
    pub parents: BTreeMap<EntryId, EntryId>,
    pub unrooted: BTreeSet<EntryId>,
    pub repaired: BTreeMap<EntryId, EntryId>,
    pub live: BTreeSet<EntryId>,
    /// Names below each directory entry, unknown ones too: (name, entry).
    pub below: BTreeMap<EntryId, BTreeSet<(Name, EntryId)>>,
    /// Class -> real name -> what is there.
    pub tree: BTreeMap<Vec<EntryId>, BTreeMap<Name, At>>,
    /// Of live directories.
    pub class: BTreeMap<EntryId, Vec<EntryId>>,
}

fn link_of(states: &States, d: EntryId) -> &crate::entry::At {
    &states[&d].links[0].at
}

fn present(states: &States, d: EntryId) -> bool {
    d.is_root() || states.get(&d).is_some_and(|e| e.kind.is_dir() && e.links[0].present())
}

/// Directories from which `parents` lead to the root.
fn rooted(parents: &BTreeMap<EntryId, EntryId>) -> BTreeSet<EntryId> {
    let mut out = BTreeSet::from([EntryId::ROOT]);
    loop {
        let more: Vec<_> =
            parents.iter().filter(|(d, p)| out.contains(p) && !out.contains(d)).map(|(d, _)| *d).collect();
        if more.is_empty() {
            return out;
        }
        out.extend(more);
    }
}

/// The names of a leaf, before asking whether the parent is known.
fn leaf_links(e: &Entry) -> Vec<&crate::entry::Link> {
    let held: BTreeSet<Dot> = e.links.iter().filter(|l| l.present()).map(|l| l.at.holds).collect();
    if !e.data.iter().any(|v| !e.removed.covers(v.dot) || held.contains(&v.dot)) {
        return Vec::new();
    }
    let here: Vec<_> = e.links.iter().filter(|l| l.present()).collect();
    if !here.is_empty() {
        return here;
    }
    let mut all: Vec<_> = e.links.iter().collect();
    all.sort_by_key(|l| (l.at.stamp, l.id));
    all.into_iter().rev().take(1).collect()
}

pub(super) fn reference(states: &States) -> Reference {
    let mut r = Reference::default();
    let dirs: Vec<EntryId> = states.values().filter(|e| e.kind.is_dir()).map(|e| e.id).collect();
    // 1. Parents.
    r.parents = dirs.iter().map(|&d| (d, link_of(states, d).parent)).collect();
    let at_first = rooted(&r.parents);
    r.unrooted = dirs.iter().copied().filter(|d| !at_first.contains(d)).collect();
    loop {
        let rooted = rooted(&r.parents);
        let mut best: Option<(Stamp, EntryId, EntryId)> = None;
        for &d in dirs.iter().filter(|d| !rooted.contains(d)) {
            let hist =
                states[&d].hist.iter().map(|&(p, s)| (s, d, p)).chain([(Stamp::MIN, d, EntryId::ROOT)]);
            for c in hist.filter(|c| rooted.contains(&c.2) && present(states, c.2)) {
                best = best.max(Some(c));
            }
        }
        let Some((_, d, p)) = best else { break };
        r.parents.insert(d, p);
        r.repaired.insert(d, p);
    }
    // 2. File names. 3. Live directories.
    r.live = dirs.iter().copied().filter(|&d| present(states, d)).collect();
    for e in states.values().filter(|e| !e.kind.is_dir()) {
        for l in leaf_links(e) {
            r.below.entry(l.at.parent).or_default().insert((l.at.name.clone(), e.id));
            if dirs.contains(&l.at.parent) {
                r.live.insert(l.at.parent);
            }
        }
    }
    loop {
        let above: Vec<_> =
            r.live.iter().map(|d| r.parents[d]).filter(|p| !p.is_root() && !r.live.contains(p)).collect();
        if above.is_empty() {
            break;
        }
        r.live.extend(above);
    }
    for &d in &r.live {
        r.below.entry(r.parents[&d]).or_default().insert((link_of(states, d).name.clone(), d));
    }
    // 4. Class by class.
    let mut todo = vec![vec![EntryId::ROOT]];
    while let Some(class) = todo.pop() {
        let names: BTreeSet<&Name> =
            class.iter().filter_map(|m| r.below.get(m)).flatten().map(|(n, _)| n).collect();
        let names: BTreeSet<Name> = names.into_iter().cloned().collect();
        let mut here = BTreeMap::new();
        for name in &names {
            let at = at_name(states, &r, &class, name, &names);
            if !at.dirs.is_empty() {
                for d in &at.dirs {
                    r.class.insert(*d, at.dirs.clone());
                }
                todo.push(at.dirs.clone());
            }
            here.insert(name.clone(), at);
        }
        r.tree.insert(class, here);
    }
    r
}

struct Group {
    key: (Kind, Digest),
    best: ((Stamp, Stamp, EntryId), Dot),
    lowest: (Dot, Stamp),
    claims: Claims,
}

fn at_name(states: &States, r: &Reference, class: &[EntryId], name: &Name, real: &BTreeSet<Name>) -> At {
    let mut at = At::default();
    let mut groups: Vec<Group> = Vec::new();
    for e in states.values() {
        if e.kind.is_dir() {
            if r.live.contains(&e.id) && class.contains(&r.parents[&e.id]) && e.links[0].at.name == *name {
                at.dirs.push(e.id);
            }
            continue;
        }
        let known = |l: &&crate::entry::Link| l.at.parent.is_root() || r.parents.contains_key(&l.at.parent);
        let shown: Vec<_> = leaf_links(e).into_iter().filter(known).collect();
        let lowest = shown.iter().map(|l| l.id).min();
        let counting: Vec<_> = e.counting().collect();
        let Some(winner) = counting.iter().max_by_key(|v| (v.stamp, v.dot)) else { continue };
        for l in shown.iter().filter(|l| class.contains(&l.at.parent) && l.at.name == *name) {
            for v in counting.iter().filter(|v| v.dot == winner.dot || Some(l.id) == lowest) {
                let stamp = if l.present() { v.stamp.max(l.at.stamp) } else { v.stamp };
                let rank = ((stamp, v.stamp, e.id), v.dot);
                let key = (e.kind, v.content.identity());
                let claim = (e.id, l.id, v.dot);
                match groups.iter_mut().find(|g| g.key == key) {
                    Some(g) => {
                        g.best = g.best.max(rank);
                        g.lowest = g.lowest.min((v.dot, v.stamp));
                        g.claims.push(claim);
                    }
                    None => {
                        groups.push(Group { key, best: rank, lowest: (v.dot, v.stamp), claims: vec![claim] })
                    }
                }
            }
        }
    }
    groups.sort_by_key(|g| std::cmp::Reverse(g.best));
    for mut g in groups {
        g.claims.sort();
        let free = at.dirs.is_empty() && at.files.is_empty();
        let mut given = name.clone();
        for round in 0.. {
            if free || (!real.contains(&given) && at.files.iter().all(|f| f.0 != given)) {
                break;
            }
            given = conflict_name(name, g.lowest.0, g.lowest.1, round);
        }
        at.files.push((given, !free, g.claims));
    }
    at
}
