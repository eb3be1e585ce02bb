//! Power cuts. A disk keeps what it showed after each change since the last sync; a cut leaves one of these states, since a
//! journal keeps the order of names, and of what users wrote without a sync any part: as it is, as it was, or torn. What plans
//! place was made durable before. The index goes back to its last durable commit; what paths showed before stays until a
//! sync, intents until their records are durable.
//!
//! The start that follows is the engine's: paths changed since the last sync are judged ([`unsealed`]), then intents, then
//! the tree is looked at, and what may be torn takes nobody's place. Contents that are nowhere any more are given up.

use crate::disk::{Disk, PARKED};
use crate::prng::Prng;
use crate::site::{Site, file};
use crate::world::{Fault, Verdict, World};
use driftless_core::adopt::Adoption;
use driftless_core::local::{self, Looked};
use driftless_core::plan::{At, Plan, Step};
use driftless_core::rows::Table;
use driftless_core::tx::{Result as TxResult, Tx};
use driftless_core::unsealed::{self, Image, Images, Sighting};
use driftless_core::{Content, Digest, Dot, EntryId, Kind, Name, Node, NodeKey};
use std::collections::BTreeSet;

/// Contents that nobody wrote begin with this number.
const TORN: u64 = 1 << 40;

impl Site {
    /// A sync of the file system covers all that was done: nothing of it can be lost, or has to be done again.
    pub fn seal(&mut self) {
        if self.since_sync.is_none() {
            return;
        }
        let dirty: Vec<u64> =
            self.disk.inodes.iter().filter(|(_, i)| !i.synced).map(|(ino, _)| *ino).collect();
        for ino in dirty {
            self.disk.inodes.get_mut(&ino).unwrap().synced = true;
        }
        let covered = self.before_next;
        self.tx(|tx| {
            for (key, _) in tx.scan(Table::Before, &[], Some(&covered.to_be_bytes()), usize::MAX)? {
                tx.put(Table::Before, key, None);
            }
            Ok(())
        });
        self.harden();
        self.open_plans.clear();
        self.since_sync = Some(vec![self.disk.clone()]);
    }

    /// Contents that came, went or were not made durable since the last sync: a cut may leave them, or bring them back.
    fn unsure(&self) -> BTreeSet<Digest> {
        let states = self.since_sync.as_deref().unwrap_or_default();
        let mut unsure = BTreeSet::new();
        for (disk, next) in states.iter().zip(states.iter().skip(1)) {
            let (a, b) = (disk.identities(), next.identities());
            unsure.extend(a.symmetric_difference(&b).copied());
            for (ino, _) in next.inodes.iter().filter(|(_, i)| !i.synced) {
                let held = [disk, next].into_iter().filter_map(|d| d.inodes.get(ino)?.content.as_ref());
                unsure.extend(held.map(Content::identity));
            }
        }
        unsure
    }

    /// The disk as a cut leaves it.
    fn disk_after_cut(&mut self, seed: u64) -> Disk {
        let mut rng = Prng::new(seed);
        let states = self.since_sync.replace(Vec::new()).unwrap_or_default();
        let at = rng.below(states.len());
        let mut disk = states[at].clone();
        disk.next = self.disk.next;
        let dirty: Vec<u64> = disk.inodes.iter().filter(|(_, i)| !i.synced).map(|(ino, _)| *ino).collect();
        for ino in dirty {
            let older = states[..at].iter().find_map(|d| d.inodes.get(&ino)?.content.clone());
            let inode = disk.inodes.get_mut(&ino).unwrap();
            match (rng.below(3), older) {
                (0, _) => {}
                (1, Some(older)) => inode.content = Some(older),
                _ if inode.kind == Kind::File => {
                    self.torn += 1;
                    inode.content = Some(file(TORN + self.me.0 * 1_000 + self.torn, self.clock_ns));
                }
                _ => {}
            }
        }
        // What was staged and is at none of its places is in staging again.
        let placed = |o: &driftless_core::plan::Outcome| {
            states[..=at].iter().any(|d| d.inodes.contains_key(&Disk::ino(&o.node)))
        };
        for plan in &mut self.open_plans {
            for made in &mut plan.staged {
                *made = made.take().filter(placed);
            }
        }
        disk
    }
}

impl World {
    /// The power goes, and comes again: index and disk lose what no sync covered.
    pub(crate) fn cut_power(&mut self, i: usize, seed: u64) -> Verdict {
        if self.sites[i].since_sync.is_none() || (self.sites[i].blind && !self.sites[i].stopped) {
            return Ok(());
        }
        self.count(Fault::PowerCut);
        if !self.sites[i].stopped {
            self.stop(i);
        }
        let (had, mut unsure) = (self.sites[i].identities(), self.sites[i].unsure());
        let disk = self.sites[i].disk_after_cut(seed);
        self.sites[i].disk = disk;
        self.sites[i].disk.touched.clear();
        let has = self.sites[i].identities();
        let me = self.sites[i].me;
        unsure.extend(had.symmetric_difference(&has));
        for d in &unsure {
            let token = self.tokens.entry(*d).or_default();
            token.replaced = true;
            token.born += 1;
            if had.contains(d) && !has.contains(d) {
                token.dropped.push(crate::world::Sight::none(me));
            }
        }
        judge(&mut self.sites[i])?;
        self.sites[i].after_cut = true;
        self.start(i)?;
        self.sites[i].after_cut = false;
        self.sites[i].seal();
        Ok(())
    }

    /// Versions whose content is nowhere any more are taken back. True if there were any.
    pub(crate) fn give_up_lost(&mut self) -> bool {
        let available = self.available();
        let mut any = false;
        for i in 0..self.sites.len() {
            if self.sites[i].blind {
                continue;
            }
            let states = self.sites[i].states();
            let me = self.sites[i].me;
            let mut lost: Vec<(EntryId, Dot)> = Vec::new();
            for e in states.iter() {
                let gone = e.counting().filter(|v| !available.contains(&v.content.identity()));
                lost.extend(gone.map(|v| (e.id, v.dot)));
            }
            let peers: Vec<_> = self.sites.iter().map(|s| s.me).filter(|r| *r != me).collect();
            for (id, version) in lost {
                any = true;
                let again = self.sites[i].tx(|tx| {
                    if tx.entry(id)?.is_none() {
                        return Ok(None);
                    }
                    let mut alone = peers.is_empty();
                    for peer in &peers {
                        alone |= local::may_withdraw(tx, id, version, *peer)?;
                    }
                    if alone {
                        local::withdraw(tx, id, version)?
                    } else {
                        local::give_up(tx, id, version)?
                    }
                    let row = tx.entry_must(id)?;
                    let own = row.entry.counting().find(|v| v.dot.replica == me && v.dot.n == row.n);
                    Ok(own.map(|v| v.content.identity()))
                });
                // What it replaced is written again in its place: that may be of a file that was removed for it.
                if let Some(content) = again {
                    self.tokens.entry(content).or_default().born += 1;
                }
            }
            if any {
                return true;
            }
        }
        any
    }
}

/// What the judgement of all paths leaves to do.
#[derive(Default)]
struct Judged {
    /// The paths that are judged.
    changed: BTreeSet<(NodeKey, Name)>,
    /// Where plans that were begun move inodes to.
    planned: BTreeSet<(NodeKey, (NodeKey, Name))>,
    /// What somebody moved, and where it is recorded.
    moved: Vec<(At, NodeKey)>,
    concerned: BTreeSet<EntryId>,
    dirs: BTreeSet<NodeKey>,
    beside: Vec<(At, Looked)>,
}

/// Judges each path whose record changed since the last sync.
fn judge(site: &mut Site) -> Verdict {
    let disk = site.disk.clone();
    let planned = site.open_plans.iter().flat_map(|plan| &plan.steps).filter_map(moved_to).collect();
    site.tx(|tx| {
        let mut images = Images::new();
        for (_, row) in tx.scan(Table::Before, &[], None, usize::MAX)? {
            unsealed::decode(&row, tx.replicas(), &mut images)?;
        }
        let mut judged = Judged { changed: images.keys().cloned().collect(), planned, ..Judged::default() };
        judge_parked(tx, &disk, &images, &mut judged)?;
        judge_paths(tx, &disk, &images, &mut judged)?;
        judged.concerned.extend(unsealed::check_moved(tx, &judged.moved)?);
        for dir in std::mem::take(&mut judged.dirs) {
            judged.concerned.extend(unsealed::forget_below(tx, &dir)?);
        }
        take_beside(tx, judged.beside)?;
        judged.concerned.iter().for_each(|id| tx.add_pending(*id));
        Ok(())
    });
    Ok(())
}

/// Inodes that wait out of the way again, though their records say that they had left.
fn judge_parked(tx: &mut Tx<'_>, disk: &Disk, images: &Images, judged: &mut Judged) -> TxResult<()> {
    for ino in disk.inodes[&PARKED].names.values() {
        let key = Disk::key(*ino);
        let parked = Plan::parked(&key);
        if tx.place(&parked.dir, &parked.name)?.is_some() {
            note_times(tx, disk, &key)?;
            continue;
        }
        let of_it = |i: &&Image| i.place.node == key;
        let Some(image) = images.values().find_map(|images| images.iter().rev().flatten().find(of_it)) else {
            continue; // its move is not recorded: intents tell of it
        };
        let mut lost = Vec::new();
        for (dir, name) in tx.node(&key)?.map(|n| n.names.clone()).unwrap_or_default() {
            if disk.get(dir_ino(&dir), &name) != Some(*ino) {
                lost.push(At { dir, name });
            }
        }
        let fingerprint = disk.looked(*ino).fingerprint;
        judged.concerned.extend(unsealed::park_again(tx, image, fingerprint, &lost)?);
        note_times(tx, disk, &key)?;
    }
    Ok(())
}

/// Records the times of a directory out of the way and of those below it, which no look at the tree finds.
pub(crate) fn note_times(tx: &mut Tx<'_>, disk: &Disk, top: &NodeKey) -> TxResult<()> {
    let mut todo = vec![top.clone()];
    while let Some(key) = todo.pop() {
        let Some(inode) = disk.inodes.get(&Disk::ino(&key)).filter(|inode| inode.kind.is_dir()) else {
            continue;
        };
        unsealed::note_time(tx, &key, inode.mtime)?;
        todo.extend(tx.places_in(&key, None, usize::MAX)?.into_iter().map(|(_, place)| place.node));
    }
    Ok(())
}

fn dir_ino(key: &NodeKey) -> u64 {
    if Plan::is_parked_dir(key) { PARKED } else { Disk::ino(key) }
}

/// Parents come before what is in them, whatever the cut has made of their moves. A directory that is then where no record
/// has it was moved by a user, and the record of that was lost: what is in it went with it.
fn judge_paths(tx: &mut Tx<'_>, disk: &Disk, images: &Images, judged: &mut Judged) -> TxResult<()> {
    let mut left: Vec<(At, &Vec<Option<Image>>)> =
        images.iter().map(|((dir, name), i)| (At { dir: dir.clone(), name: name.clone() }, i)).collect();
    loop {
        let before = left.len();
        let mut waiting = Vec::new();
        for (at, images) in left {
            if Plan::is_parked_dir(&at.dir) {
                let parked = tx.place(&at.dir, &at.name)?.map(|p| Disk::ino(&p.node));
                if parked.is_some_and(|ino| disk.get(PARKED, &at.name) != Some(ino)) {
                    judge_path(tx, disk, at, images, None, judged)?;
                }
            } else if is_where_recorded(tx, disk, &at.dir)? {
                let now = disk.get(Disk::ino(&at.dir), &at.name).map(|ino| disk.looked(ino));
                judge_path(tx, disk, at, images, now, judged)?;
            } else if !is_in_parked(tx, &at.dir)? {
                waiting.push((at, images));
            }
        }
        if waiting.len() == before || waiting.is_empty() {
            for (at, images) in waiting {
                let dir = Disk::ino(&at.dir);
                // In what waits out of the way, by a plan that is not recorded, nobody has changed anything.
                if disk.inodes.contains_key(&dir) && disk.is_below(dir, PARKED) {
                    continue;
                }
                let now = disk.get(dir, &at.name).map(|ino| disk.looked(ino));
                judge_path(tx, disk, at, images, now, judged)?;
            }
            return Ok(());
        }
        left = waiting;
    }
}

/// True if the directory, and those above it, are where their records say, or wait out of the way.
fn is_where_recorded(tx: &mut Tx<'_>, disk: &Disk, dir: &NodeKey) -> TxResult<bool> {
    let mut at = dir.clone();
    loop {
        let Some(node) = tx.node(&at)? else { return Ok(false) };
        let Some((above, name)) = node.names.first() else {
            return Ok(Disk::ino(&at) == crate::disk::ROOT);
        };
        if disk.get(dir_ino(above), name) != Some(Disk::ino(&at)) {
            return Ok(false);
        }
        if Plan::is_parked_dir(above) {
            return Ok(true);
        }
        at = above.clone();
    }
}

fn is_in_parked(tx: &mut Tx<'_>, dir: &NodeKey) -> TxResult<bool> {
    let mut at = dir.clone();
    while let Some((above, _)) = tx.node(&at)?.and_then(|n| n.names.first().cloned()) {
        if Plan::is_parked_dir(&above) {
            return Ok(true);
        }
        at = above;
    }
    Ok(false)
}

fn judge_path(
    tx: &mut Tx<'_>,
    disk: &Disk,
    at: At,
    images: &[Option<Image>],
    now: Option<Looked>,
    judged: &mut Judged,
) -> TxResult<()> {
    let recorded = match tx.place(&at.dir, &at.name)? {
        Some(place) => {
            let node: Node = (*tx.node_must(&place.node)?).clone();
            Some(Image { place: (*place).clone(), node })
        }
        None => None,
    };
    let sightings: Vec<Option<Sighting>> = images.iter().map(|i| i.as_ref().map(Image::sighting)).collect();
    let seen = now.as_ref().map(Sighting::of);
    let verdict = unsealed::judge(recorded.as_ref().map(Image::sighting).as_ref(), &sightings, seen.as_ref());
    let verdict = verdict.unless_moved(seen.as_ref(), || match &recorded {
        Some(image) => stands_elsewhere(tx, disk, image, judged),
        None => Ok(false),
    })?;
    judged.concerned.extend(unsealed::rebase(tx, &at, verdict, images, now.as_ref())?);
    if let (unsealed::Verdict::Moved, Some(image)) = (verdict, &recorded) {
        judged.moved.push((at.clone(), image.place.node.clone()));
    }
    if verdict != unsealed::Verdict::AsRecorded {
        judged.dirs.extend(recorded.filter(|r| r.node.kind.is_dir()).map(|r| r.place.node));
    }
    if verdict == unsealed::Verdict::Other
        && let Some(now) = now.filter(|n| !n.kind.is_dir())
    {
        judged.beside.push((at, now));
    }
    Ok(())
}

/// What a step moves, and to where.
fn moved_to(step: &Step) -> Option<(NodeKey, (NodeKey, Name))> {
    match step {
        Step::Move { to, node, .. } | Step::Unpark { to, node, .. } => {
            Some((node.clone(), (to.dir.clone(), to.name.clone())))
        }
        _ => None,
    }
}

/// True if the inode's only name is one that nothing was recorded at, now or before, or one that a plan moves it to.
fn stands_elsewhere(tx: &mut Tx<'_>, disk: &Disk, image: &Image, judged: &Judged) -> TxResult<bool> {
    let ino = Disk::ino(&image.place.node);
    let dirs = disk.inodes.iter().filter(|(dir, _)| **dir != PARKED);
    let mut names =
        dirs.flat_map(|(dir, inode)| inode.names.iter().map(move |(name, found)| (dir, name, found)));
    let Some((dir, name, _)) = names.find(|(_, _, found)| **found == ino) else { return Ok(false) };
    let spot = (Disk::key(*dir), name.clone());
    let is_known = judged.changed.contains(&spot) || tx.place(&spot.0, &spot.1)?.is_some();
    let is_planned = judged.planned.contains(&(image.place.node.clone(), spot));
    Ok((is_planned || !is_known) && image.node.names.len() == 1)
}

/// What a cut has left takes nobody's place: a version beside those that the entry has.
fn take_beside(tx: &mut Tx<'_>, beside: Vec<(At, Looked)>) -> TxResult<()> {
    let adoption = Adoption::none();
    for (at, looked) in beside {
        let free = tx.node(&at.dir)?.is_some() && tx.place(&at.dir, &at.name)?.is_none();
        if free && tx.node(&looked.key)?.is_none() {
            adoption.adopt(tx, (&at.dir, &at.name), &looked)?;
        }
    }
    Ok(())
}

/// An inode whose content may be torn stands beside what is recorded at its names.
pub(crate) fn take_torn(tx: &mut Tx<'_>, at: At, looked: Looked) -> TxResult<()> {
    let mut names = tx.node(&looked.key)?.map(|n| n.names.clone()).unwrap_or_default();
    names.retain(|(dir, name)| (dir, name) != (&at.dir, &at.name));
    let others = names.into_iter().map(|(dir, name)| At { dir, name });
    for at in others.chain([at.clone()]) {
        for id in unsealed::rebase(tx, &at, unsealed::Verdict::Other, &[], None)? {
            tx.add_pending(id);
        }
    }
    take_beside(tx, vec![(at, looked)])
}
