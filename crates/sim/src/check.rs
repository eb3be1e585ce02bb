//! What must be true of a world (design section 12): each check says which entry or path, which replica, and what
//! was expected.

use crate::disk::{Disk, Seen, Tree};
use crate::site::{Site, base_of, same_but_modes};
use crate::world::{Sight, Verdict, World};
use driftless_core::adopt::Adopted;
use driftless_core::plan::Plan;
use driftless_core::rows::Table;
use driftless_core::tree;
use driftless_core::*;
use std::collections::{BTreeMap, BTreeSet};

impl World {
    pub(crate) fn check_converged(&self) -> Verdict {
        let first = self.sites[0].tree();
        for s in &self.sites[1..] {
            let tree = s.tree();
            if *tree != *first {
                return Err(format!(
                    "convergence at {}: {}",
                    s.me.0,
                    differences(&self.sites[0], &first, s, &tree)
                ));
            }
        }
        let all: Vec<BTreeMap<EntryId, Entry>> =
            self.sites.iter().map(|s| s.states().iter().map(|e| (e.id, e.clone())).collect()).collect();
        for (i, a) in all.iter().enumerate() {
            for b in &all[..i] {
                for (id, e) in a {
                    if b.get(id).is_some_and(|other| other != e) {
                        return Err(format!("convergence of {id}:\n  {e:?}\n  {:?}", b[id]));
                    }
                }
            }
        }
        Ok(())
    }

    pub(crate) fn check_well_formed(&self, i: usize) -> Verdict {
        let site = &self.sites[i];
        let tree = site.tree();
        if self.sites[..i].iter().any(|s| *s.tree() == *tree && same_states(s, site)) {
            return Ok(());
        }
        // An index made from the same states in another order shows the same.
        let mut fresh = Site::new(99, 0, 0);
        let mut states = (*site.states()).clone();
        states.sort_by_key(|e| (e.id.0.n.wrapping_mul(0x9e37_79b9), e.id));
        fresh.tx(|tx| {
            for e in &states {
                tree::receive(tx, e, &VersionVector::new())?;
            }
            Ok(())
        });
        if *fresh.tree() != *tree {
            return Err(format!("order of states:\n  {}\n  {}", print(&tree), print(&fresh.tree())));
        }
        let shown: BTreeSet<Digest> = tree.values().filter_map(|s| s.identity).collect();
        for e in &states {
            for v in e.counting() {
                if !shown.contains(&v.content.identity()) {
                    return Err(format!("{:?} of {e:?} counts, but is not shown in {}", v.dot, print(&tree)));
                }
            }
        }
        Ok(())
    }

    /// No loss, no resurrection, nothing spurious.
    pub(crate) fn check_tokens(&self) -> Verdict {
        let tree = self.sites[0].tree();
        let shown: BTreeSet<Digest> = tree.values().filter_map(|s| s.identity).collect();
        for (d, t) in &self.tokens {
            // Of several files with this content each may have gone where the others were seen.
            if t.born <= 1 && t.dropped.is_empty() && !shown.contains(d) {
                return Err(format!("loss of {d:?}, {}, in {}", t.origin, print(&tree)));
            }
            // Whoever removed it had not seen the new name that somebody gave it.
            let unseen = |(r, n): &(ReplicaId, u64)| t.dropped.iter().all(|seen| seen.perhaps.get(*r) < *n);
            // Of two who rename it one wins, and may be the one who removes it then.
            let alone = t.files.iter().all(|f| self.namers.get(f).is_none_or(|who| who.len() == 1));
            let names = if t.chosen { &t.taken } else { &t.named };
            let named = t.born <= 1 && !t.replaced && alone && names.iter().any(unseen);
            if named && self.is_undisturbed() && !shown.contains(d) {
                return Err(format!("loss of {d:?}, renamed unseen, {}, in {}", t.origin, print(&tree)));
            }
            let known = |seen: &Sight| t.touched.iter().all(|(r, n)| seen.surely.get(*r) >= *n);
            let causal = t.born <= 1 && t.dropped.iter().any(known);
            let sure = self.forgotten == 0 && !self.rules.equal_contents;
            if causal && sure && shown.contains(d) {
                return Err(format!("resurrection of {d:?}, {}, in {}", t.origin, print(&tree)));
            }
        }
        if (self.rules.serial || self.rules.own_dirs || self.rules.one_writer)
            && let Some(path) = tree.keys().find(|p| p.iter().any(|n| base_of(n).is_some()))
        {
            return Err(format!("spurious conflict {path:?}"));
        }
        Ok(())
    }

    /// The directories above what came are known: batches bring them along, and nobody forgets one that is needed.
    pub(crate) fn check_no_orphans(&self, i: usize, changed: &[EntryId]) -> Verdict {
        self.sites[i].read(|tx| {
            for id in changed {
                let Some(row) = tx.entry(*id)? else { continue };
                for link in row.entry.links.iter().filter(|l| l.present()) {
                    let (mut above, mut seen) = (link.at.parent, BTreeSet::new());
                    while !above.is_root() && seen.insert(above) {
                        let Some(dir) = tx.entry(above)? else {
                            return Ok(Err(format!("{id} came to {i} without {above} above it")));
                        };
                        let Some(link) = dir.entry.dir_link() else { break };
                        above = link.at.parent;
                    }
                }
            }
            Ok(Ok(()))
        })
    }

    /// What others removed, having seen it all, is not new after an index was lost: peers tell of the removal.
    pub(crate) fn check_adopted(&self, i: usize, adopted: &[(Vec<Name>, Adopted)]) -> Verdict {
        if !self.rules.no_renames || self.collected {
            return Ok(());
        }
        for path in adopted.iter().filter(|(_, how)| *how == Adopted::OnlyHere).map(|(path, _)| path) {
            let Some(content) = self.before_loss.get(path) else { continue };
            let Some(token) = self.tokens.get(content) else { continue };
            let causal = |seen: &Sight| {
                let known = token.touched.iter().all(|(r, n)| seen.surely.get(*r) >= *n);
                known && self.sites.iter().any(|s| s.me == seen.by && !s.blind)
            };
            // It was made once, and again in the count for the loss. What was taken out of several versions is in no state any
            // more that could tell what it was.
            if token.born <= 2 && !token.replaced && !token.chosen && token.dropped.iter().any(causal) {
                return Err(format!("{path:?} is new at {i} after a lost index, but was removed elsewhere"));
            }
        }
        Ok(())
    }

    /// No index was lost and no process killed: every change is recorded as it was made.
    fn is_undisturbed(&self) -> bool {
        self.forgotten == 0 && !self.rules.crashes && !self.rules.equal_contents
    }

    pub(crate) fn check_algebra(&self) -> Verdict {
        let mut by_id: BTreeMap<EntryId, Vec<&Entry>> = BTreeMap::new();
        for e in &self.samples {
            by_id.entry(e.id).or_default().push(e);
        }
        let join = |a: &Entry, b: &Entry| {
            let mut a = a.clone();
            a.merge(b);
            a
        };
        for states in by_id.values() {
            for w in states.windows(3) {
                let (a, b, c) = (w[0], w[1], w[2]);
                let (ab, ba) = (join(a, b), join(b, a));
                let same = ab == ba && join(&ab, c) == join(a, &join(b, c)) && join(&ab, b) == ab;
                if !same {
                    return Err(format!("merge algebra:\n  {a:?}\n  {b:?}\n  {c:?}"));
                }
            }
        }
        Ok(())
    }

    /// Places, nodes and bound lists agree with each other and with the disk.
    pub(crate) fn check_records(&mut self, i: usize) -> Verdict {
        let site = &self.sites[i];
        if site.blind || site.records.at == site.versions() {
            return Ok(());
        }
        let bound = match &site.store.changed {
            changed if changed.recorded || site.records.at != (changed.since, site.disk.inodes.version()) => {
                self.check_all_records(i)?
            }
            _ => self.check_changed_records(i),
        };
        let site = &mut self.sites[i];
        site.records = Records { at: site.versions(), bound };
        site.store.note_checked();
        Ok(())
    }

    /// Entries that changed while places, nodes and disk stayed as they were: they still say where they are.
    fn check_changed_records(&mut self, i: usize) -> Bound {
        let site = &mut self.sites[i];
        let bound = std::mem::take(&mut site.records.bound);
        let none = BTreeSet::new();
        site.read(|tx| {
            for key in &site.store.changed.entries {
                let id = tx.unslot(Table::Entries, key)?;
                let row = tx.entry(id)?;
                let is: &[NodeKey] = row.as_ref().map_or(&[], |row| &row.bound);
                check_bound(id, is, bound.get(&id).unwrap_or(&none));
            }
            Ok(())
        });
        bound
    }

    fn check_all_records(&self, i: usize) -> Result<Bound, String> {
        let site = &self.sites[i];
        let mut places = BTreeMap::new();
        let mut bound = Bound::new();
        let (paths, none) = (site.disk.paths(), BTreeSet::new());
        site.read(|tx| {
            for dir in site.disk.inodes.iter().filter(|(_, i)| i.kind.is_dir()).map(|(ino, _)| *ino) {
                let dir_key = match dir == crate::disk::PARKED {
                    true => NodeKey::new(Plan::PARKED).unwrap(),
                    false => Disk::key(dir),
                };
                for (name, place) in tx.places_in(&dir_key, None, usize::MAX)? {
                    for c in &place.claims {
                        bound.entry(c.entry).or_default().insert(place.node.clone());
                    }
                    let node = tx.node_must(&place.node)?;
                    // Else the next look would take it for a user's change.
                    let mtime = site.disk.dir_mtime(Disk::ino(&place.node));
                    assert_eq!(node.given.dir_mtime, mtime, "{name:?}");
                    assert!(
                        node.names.contains(&(dir_key.clone(), name.clone())),
                        "{name:?} is no name of {node:?}"
                    );
                    assert_eq!(node.kind.is_dir(), place.claims.is_empty(), "{name:?}");
                    let mut unique = place.claims.clone();
                    unique.sort_by_key(|c| (c.entry, c.link, c.version));
                    unique.dedup();
                    assert_eq!(unique.len(), place.claims.len(), "{place:?}");
                    if let Bind::Dir(members) = &node.bind {
                        for m in members {
                            bound.entry(*m).or_default().insert(place.node.clone());
                        }
                    }
                    places.insert((dir, name), place.node);
                }
            }
            let scanned = tx.scan(Table::Places, &[], None, usize::MAX)?.len();
            assert_eq!(scanned, places.len(), "places in directories that are gone");
            for (_, id) in tx.feed_after(0, usize::MAX)? {
                check_bound(id, &tx.entry_must(id)?.bound, bound.get(&id).unwrap_or(&none));
            }
            Ok(())
        });
        places.retain(|(dir, _), _| *dir != crate::disk::PARKED);
        if places.len() != paths.len() && !site.disk.has_parked() {
            return Err(format!("{} places for {} paths at {i}", places.len(), paths.len()));
        }
        let inodes: BTreeMap<&[Name], u64> = paths.iter().map(|(p, ino)| (p.as_slice(), *ino)).collect();
        for (path, ino) in &paths {
            let dir = match path.len() {
                1 => crate::disk::ROOT,
                n => inodes[&path[..n - 1]],
            };
            let ino = *ino;
            if places.get(&(dir, path[path.len() - 1].clone())) != Some(&Disk::key(ino)) {
                return Err(format!("no place for {path:?} at {i}"));
            }
        }
        Ok(bound)
    }
}

/// Inodes that stand for each entry.
pub(crate) type Bound = BTreeMap<EntryId, BTreeSet<NodeKey>>;

/// What was found when records, states and disk were as these versions say.
#[derive(Default)]
pub(crate) struct Records {
    at: (u64, u64),
    bound: Bound,
}

/// The same states, in whatever order they came.
fn same_states(a: &Site, b: &Site) -> bool {
    let (a, b) = (a.states(), b.states());
    let sorted =
        |states: &[Entry]| -> BTreeMap<EntryId, Entry> { states.iter().map(|e| (e.id, e.clone())).collect() };
    a.len() == b.len() && sorted(&a) == sorted(&b)
}

fn check_bound(id: EntryId, is: &[NodeKey], should: &BTreeSet<NodeKey>) {
    let same = is.len() == should.len() && is.iter().all(|n| should.contains(n));
    assert!(same, "{id} is bound to {is:?}, not {should:?}");
}

/// A directory that somebody else removed, kept only by its last live child, goes with that child; the best of the
/// conflict copies beside it then gets the name. If it was one of several that are shown as one, its attributes go.
pub(crate) fn is_excused(site: &Site, tree: &Tree, disk: &Tree) -> bool {
    let dirs = |t: &Tree| -> BTreeSet<Vec<Name>> {
        t.iter().filter(|(_, s)| s.kind.is_dir()).map(|(p, _)| p.clone()).collect()
    };
    let leaves = |t: &Tree| {
        let leaf = |(p, s): (&Vec<Name>, &Seen)| (p[..p.len() - 1].to_vec(), s.kind, s.identity);
        let mut all: Vec<_> = t.iter().filter(|(_, s)| !s.kind.is_dir()).map(leaf).collect();
        all.sort();
        all
    };
    if same_but_modes(tree, disk) {
        let (shown, recorded) = (site.bindings(), site.recorded());
        return tree.iter().zip(disk.values()).all(|((p, x), y)| {
            let fewer = x.kind.is_dir() && shown[p].1.len() < recorded[p].1.len();
            fewer || ((x.mode == y.mode || x.extra) && x.dir_mtime == y.dir_mtime)
        });
    }
    let (kept, had) = (dirs(tree), dirs(disk));
    kept.len() < had.len() && kept.is_subset(&had) && leaves(tree) == leaves(disk)
}

/// True if every path is bound to what it shows. A directory's record may still name members that died with
/// their last child: its other members keep it as it is.
pub(crate) fn are_recorded(site: &Site) -> bool {
    let (shown, recorded) = (site.bindings(), site.recorded());
    shown.len() == recorded.len()
        && shown
            .iter()
            .zip(&*recorded)
            .all(|((p, s), (q, r))| p == q && s.0 == r.0 && s.1.iter().all(|m| r.1.contains(m)))
}

pub(crate) fn print(tree: &Tree) -> String {
    let one = |(path, seen): (&Vec<Name>, &crate::disk::Seen)| {
        let names: Vec<String> = path.iter().map(Name::to_string).collect();
        match seen.identity {
            None => format!("{}/", names.join("/")),
            Some(d) => format!("{}={d:?}", names.join("/")),
        }
    };
    tree.iter().map(one).collect::<Vec<_>>().join(" ")
}

/// The first paths at which two trees differ, with the entries that each shows there.
fn differences(a: &Site, tree_a: &Tree, b: &Site, tree_b: &Tree) -> String {
    let at = |site: &Site, path: &[Name]| {
        let bound = site.bindings().get(path).cloned().unwrap_or_default();
        let claims = bound.0.iter().map(|c| c.entry.to_string());
        claims.chain(bound.1.iter().map(EntryId::to_string)).collect::<Vec<_>>().join(" ")
    };
    let differ = |p: &&Vec<Name>| tree_a.get(*p) != tree_b.get(*p);
    let paths: BTreeSet<&Vec<Name>> = tree_a.keys().chain(tree_b.keys()).collect();
    let mut out = String::new();
    for path in paths.into_iter().filter(differ).take(3) {
        let names: Vec<String> = path.iter().map(Name::to_string).collect();
        out += &format!(
            "\n  {} is {:?} (entry {}) at replica {}, {:?} (entry {}) at replica {}",
            names.join("/"),
            tree_a.get(path).map(|s| (s.kind, s.identity, s.mode)),
            at(a, path),
            a.me.0,
            tree_b.get(path).map(|s| (s.kind, s.identity, s.mode)),
            at(b, path),
            b.me.0
        );
    }
    out
}
