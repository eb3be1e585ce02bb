//! Several sites, the network between them, and what must be true of them.

use crate::disk::{Disk, Seen, Tree};
use crate::naive;
use crate::site::{Op, Site, base_of, same, same_at_once, same_but_modes};
use driftless_core::link::{Batch, Receiver, SendLimits, Sender, peer_row};
use driftless_core::rows::Table;
use driftless_core::tree;
use driftless_core::*;
use std::collections::{BTreeMap, BTreeSet};

/// What happens in a world, one thing after the other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// A user does something.
    Act(usize, Op),
    /// A batch of at most so many rows is built and goes onto the wire.
    Send(usize, usize, usize),
    /// The message at this place on the wire arrives; it stays there if `true` (a duplicate may follow).
    Deliver(usize, bool),
    /// The message at this place is lost.
    Lose(usize),
    /// Everything goes from one site to another at once.
    Sync(usize, usize),
    /// The disk is made to show the tree.
    Show(usize),
    /// Some of what is to be done on the disk is done: so many entries, after so many others.
    ShowSome(usize, usize, usize),
    /// Tombstones that nobody needs go.
    Collect(usize),
    /// The index is lost: the site goes on as another replica, reads what all others know and takes its disk in.
    Forget(usize),
    /// A site has no index yet.
    Blind(usize),
    /// A site that worked without an index gets one, reads what all others know and takes its disk in.
    Join(usize),
}

/// What kind of world it is.
#[derive(Clone, Debug)]
pub struct Rules {
    pub sites: usize,
    pub edges: Vec<(usize, usize)>,
    pub epochs: Vec<u64>,
    pub skews_ns: Vec<u64>,
    /// Everything is synchronised and shown after each act: nothing is concurrent.
    pub serial: bool,
    /// Each site keeps to its own directory.
    pub own_dirs: bool,
    /// Contents may be equal.
    pub equal_contents: bool,
    /// Disks are changed by the planner, not built anew.
    pub planner: bool,
}

struct Message {
    from: usize,
    to: usize,
    batch: Batch,
}

/// What is known about one content.
#[derive(Default)]
struct Token {
    /// Who did something to it, and when in his feed.
    touched: Vec<(ReplicaId, u64)>,
    /// What those had seen who made it vanish from their disks.
    dropped: Vec<VersionVector>,
    /// How often it was written.
    born: usize,
}

pub struct World {
    pub rules: Rules,
    pub sites: Vec<Site>,
    wire: Vec<Message>,
    clock_ns: u64,
    /// How often an index was lost.
    pub forgotten: usize,
    tokens: BTreeMap<Digest, Token>,
    /// One state per merge seen, for the algebra.
    samples: Vec<Entry>,
}

/// What was found wrong.
pub type Verdict = Result<(), String>;

const TICK_NS: u64 = 1_000_000_000;

impl World {
    pub fn new(rules: Rules) -> World {
        let sites = (0..rules.sites).map(|i| Site::new(i, rules.epochs[i], rules.skews_ns[i])).collect();
        World {
            rules,
            sites,
            wire: Vec::new(),
            clock_ns: TICK_NS,
            forgotten: 0,
            tokens: BTreeMap::new(),
            samples: Vec::new(),
        }
    }

    /// Two sites or more in a full mesh, without anything special.
    pub fn mesh(sites: usize) -> World {
        let edges = (0..sites).flat_map(|a| (0..a).map(move |b| (b, a))).collect();
        World::new(Rules {
            sites,
            edges,
            epochs: vec![0; sites],
            skews_ns: vec![0; sites],
            serial: false,
            own_dirs: false,
            equal_contents: false,
            planner: false,
        })
    }

    pub fn step(&mut self, step: &Step) -> Verdict {
        self.tick();
        match step {
            Step::Act(i, op) => {
                let done = self.act(*i, op)?;
                if done && self.rules.serial {
                    self.heal()?;
                }
            }
            Step::Send(a, b, limit) => self.send(*a, *b, *limit),
            Step::Deliver(k, stays) => {
                if *k < self.wire.len() {
                    let m = self.wire.remove(*k);
                    self.deliver(&m)?;
                    if *stays {
                        self.wire.push(m);
                    }
                }
            }
            Step::Lose(k) => {
                if *k < self.wire.len() {
                    self.wire.remove(*k);
                }
            }
            Step::Sync(a, b) => {
                self.sync(*a, *b)?;
            }
            Step::Show(i) => {
                self.show(*i)?;
            }
            Step::ShowSome(i, skip, count) => {
                if self.rules.planner && !self.sites[*i].blind {
                    let available = self.available();
                    crate::planned::show_some(&mut self.sites[*i], &available, *skip, *count)?;
                    self.check_records(*i)?;
                }
            }
            Step::Collect(i) => self.collect(*i)?,
            Step::Forget(i) => {
                self.forgotten += 1;
                let number = self.sites.len() * 100 + self.forgotten;
                self.sites[*i].forget(number);
                // What was renamed elsewhere meanwhile is there twice now, and each of the two may go alone.
                for d in self.sites[*i].disk.identities() {
                    self.tokens.entry(d).or_default().born += 1;
                }
                self.wire.retain(|m| m.from != *i && m.to != *i);
                self.adopt(*i, true)?;
            }
            Step::Blind(i) => self.sites[*i].blind = true,
            Step::Join(i) => {
                if self.sites[*i].blind {
                    self.adopt(*i, false)?;
                }
            }
        }
        Ok(())
    }

    fn adopt(&mut self, i: usize, lost_index: bool) -> Verdict {
        for other in (0..self.sites.len()).filter(|o| *o != i) {
            if !self.sites[other].blind {
                self.sync(other, i)?;
            }
        }
        self.sites[i].scan(lost_index);
        self.check_records(i)
    }

    pub fn wire_len(&self) -> usize {
        self.wire.len()
    }

    // ----- users

    /// One act, a moment later.
    pub fn act_at(&mut self, i: usize, op: &Op) -> Result<bool, String> {
        self.tick();
        self.act(i, op)
    }

    fn tick(&mut self) {
        self.clock_ns += TICK_NS;
        for s in &mut self.sites {
            s.clock_ns = self.clock_ns;
        }
    }

    /// True if the user could do it.
    fn act(&mut self, i: usize, op: &Op) -> Result<bool, String> {
        if self.sites[i].blind {
            let before = self.sites[i].disk.tree();
            let done = self.sites[i].act(op);
            if done {
                self.note(i, op, &before, Vec::new());
            }
            return Ok(done);
        }
        let (tree, disk) = (self.sites[i].tree(), self.sites[i].disk.tree());
        let faithful = same(&tree, &disk) && self.sites[i].bindings() == self.sites[i].recorded();
        let touched = self.touched(i, op);
        if !self.sites[i].act(op) {
            return Ok(false);
        }
        self.note(i, op, &disk, touched);
        self.check_records(i)?;
        let (tree, disk) = (self.sites[i].tree(), self.sites[i].disk.tree());
        if faithful && !same_at_once(&tree, &disk) && !is_excused(&self.sites[i], &tree, &disk) {
            return Err(format!(
                "fidelity at {i} after {op:?}:\n  tree {}\n  disk {}",
                print(&tree),
                print(&disk)
            ));
        }
        if faithful && same_at_once(&tree, &disk) && !are_recorded(&self.sites[i]) {
            return Err(format!(
                "records at {i} after {op:?}:\n  tree {:?}\n  disk {:?}",
                self.sites[i].bindings(),
                self.sites[i].recorded()
            ));
        }
        Ok(true)
    }

    /// Contents whose names the operation changes.
    fn touched(&self, i: usize, op: &Op) -> Vec<Digest> {
        let site = &self.sites[i];
        let paths: Vec<&str> = match op {
            Op::Write(p, _) | Op::Save(p, _) | Op::SaveSeen(p, _) | Op::Rm(p) | Op::Chmod(p, _) => vec![p],
            Op::Mv(p, q) | Op::Ln(p, q) => vec![p, q],
            _ => vec![],
        };
        let mut out = Vec::new();
        for p in paths {
            let Some((dir, name)) = site.spot(p) else { continue };
            let Some(ino) = site.disk.get(dir, &name) else { continue };
            out.extend(site.disk.inodes[&ino].content.as_ref().map(Content::identity));
        }
        // Settling gives entries of their own to copies, here and beside other names of the same file.
        for (path, ino) in site.disk.paths() {
            if base_of(&path[path.len() - 1]).is_some() {
                out.extend(site.disk.inodes[&ino].content.as_ref().map(Content::identity));
            }
        }
        out
    }

    fn note(&mut self, i: usize, op: &Op, before: &Tree, touched: Vec<Digest>) {
        let site = &self.sites[i];
        let at = (site.me, site.head());
        let had: BTreeSet<Digest> = before.values().filter_map(|s| s.identity).collect();
        let has: BTreeSet<Digest> = site.disk.identities();
        for d in touched.iter().chain(has.difference(&had)) {
            self.tokens.entry(*d).or_default().touched.push(at);
        }
        let born = match op {
            Op::Symlink(_, t) => Some(crate::site::symlink(*t)),
            Op::Create(_, t) | Op::Write(_, t) | Op::Save(_, t) | Op::SaveSeen(_, t) => {
                Some(crate::site::file(*t, 0))
            }
            _ => None,
        };
        if let Some(content) = born {
            self.tokens.entry(content.identity()).or_default().born += 1;
        }
        let mut seen = site.shown.clone();
        seen.add(Dot::new(site.me, u64::MAX));
        for d in had.difference(&has) {
            self.tokens.entry(*d).or_default().dropped.push(seen.clone());
        }
    }

    // ----- the network

    /// Builds the next batch of a new connection, if there is anything to tell.
    fn send(&mut self, a: usize, b: usize, limit: usize) {
        let (peer, theirs) = (self.sites[b].me, self.sites[b].knowledge());
        let from = self.sites[a].me;
        let cursor = self.sites[b].read(|tx| Ok(peer_row(tx, from)?.cursor));
        let limits = SendLimits {
            batch_bytes: u64::MAX,
            first_batch_bytes: u64::MAX,
            batch_entries: limit,
            relay_delay_ms: 0,
            inline: false,
            ..SendLimits::default()
        };
        let mut sender = Sender::new(peer, cursor, theirs, limits);
        let out = self.sites[a].read(|tx| sender.poll(tx, 0));
        self.sites[a].shipped_n = self.sites[a].head();
        self.wire.extend(out.map(|o| Message { from: a, to: b, batch: o.batch }));
    }

    fn deliver(&mut self, m: &Message) -> Verdict {
        if self.samples.len() < 200 {
            self.samples.extend(m.batch.entries.iter().take(3).cloned());
        }
        let from = self.sites[m.from].me;
        let merged = self.sites[m.to].tx(|tx| Ok(Receiver::new(from).handle_batch(tx, &m.batch)));
        let merged = merged.map_err(|e| e.to_string())?;
        if !merged.receipt.refused.is_empty() {
            return Err(format!("refused: {:?}", merged.receipt.refused));
        }
        if !merged.anomalies.is_empty() {
            return Err(format!("{:?}", merged.anomalies));
        }
        self.check_records(m.to)
    }

    // ----- disks

    /// False if some content is nowhere to be had.
    fn show(&mut self, i: usize) -> Result<bool, String> {
        if self.sites[i].blind {
            return Ok(true);
        }
        let available = self.available();
        let shown = self.sites[i].knowledge();
        let done = if self.rules.planner {
            crate::planned::show(&mut self.sites[i], &available)?
        } else {
            naive::show(&mut self.sites[i], &available)
        };
        if !done {
            return Ok(false);
        }
        self.sites[i].shown = shown;
        self.check_records(i)?;
        let (tree, disk) = (self.sites[i].tree(), self.sites[i].disk.tree());
        if !same(&tree, &disk) {
            return Err(format!("shown at {i}:\n  tree {}\n  disk {}", print(&tree), print(&disk)));
        }
        Ok(true)
    }

    /// Contents that are on some disk.
    fn available(&self) -> BTreeSet<Digest> {
        self.sites.iter().flat_map(|s| s.disk.identities()).collect()
    }

    fn collect(&mut self, i: usize) -> Verdict {
        let me = self.sites[i].me;
        let members: BTreeMap<ReplicaId, VersionVector> =
            self.sites.iter().filter(|s| s.me != me).map(|s| (s.me, s.knowledge())).collect();
        self.sites[i].tx(|tx| {
            let mut found = driftless_core::collect::Tombstones::find(tx)?;
            found.collect(tx, &members)
        });
        self.check_records(i)
    }

    // ----- the end

    /// Everything is delivered and shown until nothing changes any more.
    pub fn heal(&mut self) -> Verdict {
        for _ in 0..200 {
            let before: Vec<u64> = self.sites.iter().map(Site::head).collect();
            for (a, b) in self.rules.edges.clone() {
                self.sync(a, b)?;
                self.sync(b, a)?;
            }
            if before == self.sites.iter().map(Site::head).collect::<Vec<_>>() {
                let mut missing: Vec<usize> = (0..self.sites.len()).collect();
                for _ in 0..=self.sites.len() {
                    let mut still = Vec::new();
                    for i in missing {
                        if !self.show(i)? {
                            still.push(i);
                        }
                    }
                    missing = still;
                }
                // What only a lost index said to be overwritten nobody has.
                if !missing.is_empty() && self.forgotten == 0 {
                    return Err(format!("a content that {missing:?} want is nowhere"));
                }
                return Ok(());
            }
        }
        Err("no rest after 200 rounds".into())
    }

    fn sync(&mut self, a: usize, b: usize) -> Verdict {
        let before = self.wire.len();
        self.send(a, b, usize::MAX);
        if self.wire.len() == before {
            return Ok(());
        }
        let m = self.wire.pop().unwrap();
        self.deliver(&m)
    }

    /// Heals the world and checks everything.
    pub fn finish(&mut self) -> Verdict {
        // What is still on its way arrives, in any order.
        while let Some(m) = self.wire.pop() {
            self.deliver(&m)?;
        }
        for i in 0..self.sites.len() {
            if self.sites[i].blind {
                self.adopt(i, false)?;
            }
        }
        self.heal()?;
        self.check_converged()?;
        for i in 0..self.sites.len() {
            self.check_well_formed(i)?;
        }
        self.check_tokens()?;
        self.check_algebra()
    }

    fn check_converged(&self) -> Verdict {
        let first = self.sites[0].tree();
        for s in &self.sites[1..] {
            let tree = s.tree();
            if tree != first {
                return Err(format!("convergence:\n  0 {}\n  {:?} {}", print(&first), s.me, print(&tree)));
            }
        }
        let all: Vec<BTreeMap<EntryId, Entry>> =
            self.sites.iter().map(|s| s.states().into_iter().map(|e| (e.id, e)).collect()).collect();
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

    fn check_well_formed(&self, i: usize) -> Verdict {
        let site = &self.sites[i];
        let tree = site.tree();
        // An index made from the same states in another order shows the same.
        let mut fresh = Site::new(99, 0, 0);
        let mut states = site.states();
        states.sort_by_key(|e| (e.id.0.n.wrapping_mul(0x9e37_79b9), e.id));
        fresh.tx(|tx| {
            for e in &states {
                tree::receive(tx, e, &VersionVector::new())?;
            }
            Ok(())
        });
        if fresh.tree() != tree {
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
    fn check_tokens(&self) -> Verdict {
        let tree = self.sites[0].tree();
        let shown: BTreeSet<Digest> = tree.values().filter_map(|s| s.identity).collect();
        for (d, t) in &self.tokens {
            // Of several files with this content each may have gone where the others were seen.
            if t.born <= 1 && t.dropped.is_empty() && !shown.contains(d) {
                return Err(format!("loss of {d:?} in {}", print(&tree)));
            }
            let known = |seen: &VersionVector| t.touched.iter().all(|(r, n)| seen.get(*r) >= *n);
            let causal = t.born <= 1 && t.dropped.iter().any(known);
            let sure = self.forgotten == 0 && !self.rules.equal_contents;
            if causal && sure && shown.contains(d) {
                return Err(format!("resurrection of {d:?} in {}", print(&tree)));
            }
        }
        if (self.rules.serial || self.rules.own_dirs)
            && let Some(path) = tree.keys().find(|p| p.iter().any(|n| base_of(n).is_some()))
        {
            return Err(format!("spurious conflict {path:?}"));
        }
        Ok(())
    }

    fn check_algebra(&self) -> Verdict {
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
    fn check_records(&self, i: usize) -> Verdict {
        let site = &self.sites[i];
        if site.blind {
            return Ok(());
        }
        let mut places = BTreeMap::new();
        let mut bound: BTreeMap<EntryId, BTreeSet<NodeKey>> = BTreeMap::new();
        let paths = site.disk.paths();
        site.read(|tx| {
            for dir in site.disk.inodes.iter().filter(|(_, i)| i.kind.is_dir()).map(|(ino, _)| *ino) {
                for (name, place) in tx.places_in(&Disk::key(dir), None, usize::MAX)? {
                    for c in &place.claims {
                        bound.entry(c.entry).or_default().insert(place.node.clone());
                    }
                    let node = tx.node_must(&place.node)?;
                    // Else the next look would take it for a user's change.
                    let mtime = site.disk.dir_mtime(Disk::ino(&place.node));
                    assert_eq!(node.given.dir_mtime, mtime, "{name:?}");
                    assert!(
                        node.names.contains(&(Disk::key(dir), name.clone())),
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
                let row = tx.entry_must(id)?;
                let is: BTreeSet<NodeKey> = row.bound.iter().cloned().collect();
                let should = bound.remove(&id).unwrap_or_default();
                assert_eq!(is, should, "bound list of {id}");
                assert_eq!(is.len(), row.bound.len(), "bound list of {id}");
            }
            Ok(())
        });
        if places.len() != paths.len() {
            return Err(format!("{} places for {} paths at {i}", places.len(), paths.len()));
        }
        for (path, ino) in paths {
            let dir = if path.len() == 1 {
                crate::disk::ROOT
            } else {
                site.disk.paths().iter().find(|p| p.0 == path[..path.len() - 1]).unwrap().1
            };
            if places.get(&(dir, path[path.len() - 1].clone())) != Some(&Disk::key(ino)) {
                return Err(format!("no place for {path:?} at {i}"));
            }
        }
        Ok(())
    }
}

/// A directory that somebody else removed, kept only by its last live child, goes with that child; the best of the
/// conflict copies beside it then gets the name. If it was one of several that are shown as one, its attributes go.
fn is_excused(site: &Site, tree: &Tree, disk: &Tree) -> bool {
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
fn are_recorded(site: &Site) -> bool {
    let (shown, recorded) = (site.bindings(), site.recorded());
    shown.len() == recorded.len()
        && shown
            .iter()
            .zip(&recorded)
            .all(|((p, s), (q, r))| p == q && s.0 == r.0 && s.1.iter().all(|m| r.1.contains(m)))
}

pub fn print(tree: &Tree) -> String {
    let one = |(path, seen): (&Vec<Name>, &crate::disk::Seen)| {
        let names: Vec<String> = path.iter().map(Name::to_string).collect();
        match seen.identity {
            None => format!("{}/", names.join("/")),
            Some(d) => format!("{}={d:?}", names.join("/")),
        }
    };
    tree.iter().map(one).collect::<Vec<_>>().join(" ")
}
