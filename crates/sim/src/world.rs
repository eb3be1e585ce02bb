//! Several sites, the network between them, and what happens to them.

use crate::check::{are_recorded, is_excused, print};
use crate::disk::{Disk, Tree};
use crate::memo::Index;
use crate::naive;
use crate::network::{Body, Links, Message};
use crate::site::{Op, Site, base_of, is_hidden_text, same, same_at_once};
pub use crate::stats::{Fault, Stats};
use driftless_core::link::{Batch, ReceiveError, Receiver, SendLimits, Sender, peer_row};
use driftless_core::*;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// What happens in a world, one thing after the other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// A user does something.
    Act(usize, Op),
    /// A batch of at most so many rows is built as by a new connection and goes onto the wire.
    Send(usize, usize, usize),
    /// The message at this place on the wire arrives; it stays there if `true` (a duplicate may follow).
    Deliver(usize, bool),
    /// The message at this place is lost.
    Lose(usize),
    /// Everything goes from one site to another at once.
    Sync(usize, usize),
    /// Two sites connect: each has a sender and a receiver from now on.
    Connect(usize, usize),
    /// The connection of two sites ends; what is on its way may be late or lost.
    Cut(usize, usize),
    /// The machines of a connection, from one site to the other, may say something.
    Poll(usize, usize),
    /// So many seconds pass.
    Wait(u64),
    /// The disk is made to show the tree.
    Show(usize),
    /// Some of what is to be done on the disk is done: so many entries, after so many others.
    ShowSome(usize, usize, usize),
    /// All that is to be done on the disk is tried, and some of it fails: which, by this number.
    ShowFailing(usize, u64),
    /// The process is killed after so many steps of a plan, and starts again.
    CrashInShow(usize, usize),
    /// The process is killed, and starts again: what no commit made durable is not in the index.
    Crash(usize),
    /// The power goes, and comes again: by this number, what is left.
    PowerCut(usize, u64),
    /// A sync covers all that a site's disk shows.
    Seal(usize),
    /// The process is killed; users go on.
    Stop(usize),
    /// It starts again.
    Start(usize),
    /// Tombstones that nobody needs go.
    Collect(usize),
    /// The index is lost: the site goes on as another replica, reads what all others know and takes its disk in.
    Forget(usize),
    /// A copy of the index, and of the disk, is put aside.
    Backup(usize),
    /// The index is put back to that copy.
    RollBack(usize),
    /// Index and disk are put back to that copy.
    Restore(usize),
    /// A site begins as a copy of another, index and disk.
    Clone(usize, usize),
    /// A site's clock jumps by so many seconds.
    Jump(usize, i64),
    /// Everything comes to rest.
    Heal,
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
    /// One site at a time makes changes; roles change only at rest.
    pub one_writer: bool,
    /// Nothing is renamed or linked.
    pub no_renames: bool,
    /// Contents may be equal.
    pub equal_contents: bool,
    /// Disks are changed by the planner, not built anew.
    pub planner: bool,
    /// Sites are connected by link machines that live on, with time, windows and receipts.
    pub live: bool,
    /// Processes are killed: what is not durable is lost.
    pub crashes: bool,
    /// The power goes: what no sync covered is lost or torn.
    pub power: bool,
    /// Which sites have a filter.
    pub filtered: Vec<bool>,
    /// Users keep files open.
    pub open_files: bool,
    /// How long rows of others are held back.
    pub relay_delay_ms: u64,
    /// A batch is full with so many entries.
    pub batch_entries: usize,
}

/// What is known about one content.
#[derive(Default)]
pub(crate) struct Token {
    /// Who did something to it, and when in his feed.
    pub touched: Vec<(ReplicaId, u64)>,
    /// What those had seen who made it vanish from their disks.
    pub dropped: Vec<Sight>,
    /// Who gave a file with it another name, and when in his feed.
    pub named: Vec<(ReplicaId, u64)>,
    /// The files that were given these names.
    pub files: BTreeSet<EntryId>,
    /// It went by something else than a plain removal: something took its place, or a disk was put back.
    pub replaced: bool,
    /// Somebody saw it as one of several versions of a file, and took it out of there.
    pub chosen: bool,
    /// Names that were given to such a copy itself: it was written again with them.
    pub taken: Vec<(ReplicaId, u64)>,
    /// How often it was written.
    pub born: usize,
    /// Who wrote it first, for people.
    pub origin: String,
}

/// What somebody had seen of others' changes when he did something.
#[derive(Clone)]
pub(crate) struct Sight {
    /// All of these for sure.
    pub surely: VersionVector,
    /// None but these.
    pub perhaps: VersionVector,
    /// Who it was.
    pub by: ReplicaId,
}

impl Sight {
    /// He saw nothing.
    pub fn none(by: ReplicaId) -> Sight {
        Sight { surely: VersionVector::new(), perhaps: VersionVector::new(), by }
    }
}

/// Contents that are on some disk.
pub struct Available(Vec<Rc<BTreeSet<Digest>>>);

impl Available {
    /// What each disk has.
    pub fn new(disks: Vec<Rc<BTreeSet<Digest>>>) -> Available {
        Available(disks)
    }

    pub fn contains(&self, content: &Digest) -> bool {
        self.0.iter().any(|disk| disk.contains(content))
    }

    /// True if all that a site wants to show is there.
    pub fn has_all_of(&self, tree: &Tree) -> bool {
        tree.values().filter_map(|s| s.identity.as_ref()).all(|d| self.contains(d))
    }
}

/// Index and disk as they were.
pub(crate) struct Copy {
    store: Index,
    disk: Disk,
    plan_cursor: u64,
    shown: VersionVector,
    glimpsed: VersionVector,
}

pub struct World {
    pub rules: Rules,
    pub sites: Vec<Site>,
    pub stats: Stats,
    pub(crate) wire: Vec<Message>,
    pub(crate) links: Links,
    pub(crate) clock_ns: u64,
    /// How often an index was lost, or its replica id given up.
    pub forgotten: usize,
    pub(crate) tokens: BTreeMap<Digest, Token>,
    /// Who gave each file another name.
    pub(crate) namers: BTreeMap<EntryId, BTreeSet<ReplicaId>>,
    /// One state per merge seen, for the algebra.
    pub(crate) samples: Vec<Entry>,
    copies: BTreeMap<usize, Copy>,
    /// What was where on a disk whose index was lost.
    pub(crate) before_loss: BTreeMap<Vec<Name>, Digest>,
    /// Tombstones have been collected.
    pub(crate) collected: bool,
}

/// What was found wrong.
pub type Verdict = Result<(), String>;

/// The position of what is not in its author's feed yet: known to its author's user alone.
pub(crate) const UNRECORDED: u64 = u64::MAX - 1;

const TICK_NS: u64 = 1_000_000_000;

impl World {
    pub fn new(rules: Rules) -> World {
        let mut sites: Vec<Site> =
            (0..rules.sites).map(|i| Site::new(i, rules.epochs[i], rules.skews_ns[i])).collect();
        for (site, filtered) in sites.iter_mut().zip(&rules.filtered) {
            site.filtered = *filtered;
        }
        if rules.crashes {
            sites.iter_mut().for_each(Site::may_crash);
            if rules.power {
                sites.iter_mut().for_each(Site::may_lose_power);
            }
        }
        World {
            rules,
            sites,
            stats: Stats::default(),
            wire: Vec::new(),
            links: Links::default(),
            clock_ns: TICK_NS,
            forgotten: 0,
            tokens: BTreeMap::new(),
            namers: BTreeMap::new(),
            samples: Vec::new(),
            copies: BTreeMap::new(),
            before_loss: BTreeMap::new(),
            collected: false,
        }
    }

    /// Two sites or more in a full mesh, without anything special.
    #[cfg(test)]
    pub fn mesh(sites: usize) -> World {
        let edges = (0..sites).flat_map(|a| (0..a).map(move |b| (b, a))).collect();
        World::new(Rules::plain(sites, edges))
    }

    pub fn step(&mut self, step: &Step) -> Verdict {
        self.tick(1);
        self.stats.steps += 1;
        match step {
            Step::Act(i, op) => {
                let done = self.act(*i, op)?;
                if done && self.rules.serial {
                    self.heal()?;
                }
            }
            Step::Send(a, b, limit) => self.send(*a, *b, *limit),
            Step::Deliver(k, stays) => self.deliver_at(*k, *stays)?,
            Step::Lose(k) => {
                if *k < self.wire.len() {
                    self.wire.remove(*k);
                    self.count(Fault::Lost);
                }
            }
            Step::Sync(a, b) => self.sync(*a, *b)?,
            Step::Connect(a, b) => self.connect(*a, *b)?,
            Step::Cut(a, b) => {
                if self.links.cut(*a, *b) {
                    self.count(Fault::Cut);
                }
            }
            Step::Poll(a, b) => {
                self.poll_link(*a, *b)?;
            }
            Step::Wait(seconds) => self.tick(*seconds),
            Step::Show(i) => {
                self.show(*i)?;
            }
            Step::ShowSome(i, skip, count) => self.show_some(*i, *skip, *count)?,
            Step::ShowFailing(i, seed) => self.show_failing(*i, *seed)?,
            Step::CrashInShow(i, steps) => self.crash_in_show(*i, *steps)?,
            Step::Crash(i) => {
                self.stop(*i);
                self.start(*i)?;
            }
            Step::PowerCut(i, seed) => self.cut_power(*i, *seed)?,
            Step::Seal(i) => {
                if !self.sites[*i].blind {
                    self.sites[*i].seal();
                }
            }
            Step::Stop(i) => self.stop(*i),
            Step::Start(i) => self.start(*i)?,
            Step::Collect(i) => self.collect(*i)?,
            Step::Forget(i) => {
                self.count(Fault::LostIndex);
                self.forget(*i)?;
            }
            Step::Backup(i) => self.back_up(*i),
            Step::RollBack(i) => self.roll_back(*i, false)?,
            Step::Restore(i) => self.roll_back(*i, true)?,
            Step::Clone(from, to) => self.clone_site(*from, *to),
            Step::Jump(i, seconds) => {
                self.count(Fault::ClockJump);
                let jump = seconds.saturating_mul(1_000_000_000);
                let site = &mut self.sites[*i];
                site.skew_ns = site.skew_ns.saturating_add_signed(jump);
            }
            Step::Heal => self.heal()?,
            Step::Blind(i) => self.sites[*i].blind = true,
            Step::Join(i) => {
                if self.sites[*i].blind && !self.sites[*i].stopped {
                    self.adopt(*i, false)?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn count(&mut self, fault: Fault) {
        self.stats.faults[fault as usize] += 1;
    }

    pub fn wire_len(&self) -> usize {
        self.wire.len()
    }

    // ----- identities

    /// The site goes on as another replica: peers' states to the head, then its own disk.
    pub(crate) fn forget(&mut self, i: usize) -> Verdict {
        self.forgotten += 1;
        let number = self.sites.len() * 100 + self.forgotten;
        self.sites[i].forget(number);
        let tree = self.sites[i].disk_tree();
        self.before_loss = tree.iter().filter_map(|(p, s)| Some((p.clone(), s.identity?))).collect();
        self.copies.remove(&i);
        // What was renamed elsewhere meanwhile is there twice now, and each of the two may go alone.
        for d in &*self.sites[i].identities() {
            self.tokens.entry(*d).or_default().born += 1;
        }
        self.wire.retain(|m| m.from != i && m.to != i);
        self.links.cut_all(i);
        self.adopt(i, true)
    }

    fn adopt(&mut self, i: usize, lost_index: bool) -> Verdict {
        for other in (0..self.sites.len()).filter(|o| *o != i) {
            if !self.sites[other].blind {
                self.sync(other, i)?;
            }
        }
        let adopted = self.sites[i].scan(lost_index);
        if lost_index {
            self.check_adopted(i, &adopted)?;
        }
        self.sites[i].glimpse();
        self.check_records(i)
    }

    fn back_up(&mut self, i: usize) {
        let site = &self.sites[i];
        if site.blind {
            return;
        }
        let copy = Copy {
            store: site.store.fork(),
            disk: site.disk.clone(),
            plan_cursor: site.plan_cursor,
            shown: site.shown.clone(),
            glimpsed: site.glimpsed.clone(),
        };
        self.copies.insert(i, copy);
    }

    /// An older index, on the disk of now or of then. If a peer remembers more of us than we do, its greeting has to say
    /// so, and we go on as another replica. If nobody does, nobody ever heard of what we lost.
    fn roll_back(&mut self, i: usize, disk_too: bool) -> Verdict {
        if self.sites[i].blind {
            return Ok(());
        }
        let Some(copy) = self.copies.remove(&i) else { return Ok(()) };
        self.count(if disk_too { Fault::Restored } else { Fault::RolledBack });
        self.links.cut_all(i);
        self.wire.retain(|m| m.from != i && m.to != i);
        let me = self.sites[i].me;
        let remembered = (0..self.sites.len())
            .filter(|o| *o != i && !self.sites[*o].blind)
            .map(|o| self.sites[o].knowledge().get(me))
            .max()
            .unwrap_or(0);
        let had = self.sites[i].identities();
        let site = &mut self.sites[i];
        site.store = copy.store;
        site.harden();
        site.plan_cursor = copy.plan_cursor;
        (site.shown, site.glimpsed) = (copy.shown, copy.glimpsed);
        if disk_too {
            site.disk = copy.disk;
            let has = site.identities();
            // Gone with the disk, by nobody's will; what only it had is lost, and nothing can be done.
            for d in had.difference(&has) {
                let token = self.tokens.entry(*d).or_default();
                token.born += 1;
                token.dropped.push(Sight::none(me));
                token.replaced = true;
            }
        }
        let told = remembered > self.sites[i].head();
        let mut found = false;
        for other in (0..self.sites.len()).filter(|o| *o != i) {
            if !self.sites[other].blind {
                found |= self.greets_as_rolled_back(i, other);
            }
        }
        if told && !found {
            return Err(format!("rolled back: {i} lost changes that others know, and no greeting said so"));
        }
        // Whoever finds an index older than its disk after a stop that was not clean takes it for lost.
        self.forget(i)
    }

    fn clone_site(&mut self, from: usize, to: usize) {
        if from == to || self.sites[from].blind || self.sites[to].head() > 0 {
            return;
        }
        self.count(Fault::Cloned);
        self.links.cut_all(to);
        let original = &self.sites[from];
        let mut copy = Site::new(to, original.epoch, self.rules.skews_ns[to]);
        copy.me = original.me;
        copy.store = original.store.fork();
        copy.disk = original.disk.clone();
        copy.plan_cursor = original.plan_cursor;
        (copy.shown, copy.glimpsed) = (original.shown.clone(), original.glimpsed.clone());
        copy.shipped_n = original.shipped_n;
        copy.clock_ns = original.clock_ns;
        copy.harden();
        self.sites[to] = copy;
    }

    // ----- users

    /// One act, a moment later.
    #[cfg(test)]
    pub fn act_at(&mut self, i: usize, op: &Op) -> Result<bool, String> {
        self.tick(1);
        self.act(i, op)
    }

    pub(crate) fn tick(&mut self, seconds: u64) {
        self.clock_ns += TICK_NS * seconds;
        for s in &mut self.sites {
            s.clock_ns = self.clock_ns;
        }
    }

    /// True if the user could do it.
    fn act(&mut self, i: usize, op: &Op) -> Result<bool, String> {
        if self.sites[i].filtered && op.paths().iter().any(|path| path.split('/').any(is_hidden_text)) {
            // Nobody looks there.
            return Ok(false);
        }
        self.note_unrecorded(i, op);
        if self.sites[i].blind {
            let (before, touched, target) =
                (self.sites[i].disk_tree(), self.touched(i, op), self.target(i, op));
            let files = self.sites[i].files_with(&touched);
            let done = self.sites[i].act(op);
            if done {
                self.stats.acts += 1;
                self.note(i, op, &before, touched, target);
                self.note_fewer(i, files);
            }
            return Ok(done);
        }
        let (tree, disk) = (self.sites[i].own_tree(), self.sites[i].disk_tree());
        let faithful = same(&tree, &disk) && self.sites[i].bindings() == self.sites[i].recorded();
        let (touched, target) = (self.touched(i, op), self.target(i, op));
        let files = self.sites[i].files_with(&touched);
        let copies = self.copies(i);
        let source = match op {
            Op::Mv(from, _) | Op::Ln(from, _) => self.sites[i].spot(from),
            _ => None,
        };
        let is_source = |copy: &&(NodeKey, Name, Digest)| {
            source.as_ref().is_some_and(|(dir, name)| copy.0 == Disk::key(*dir) && copy.1 == *name)
        };
        let taken = copies.iter().find(is_source).map(|copy| copy.2);
        let overwritten = self.sites[i].written_in_limbo(op);
        if !self.sites[i].act(op) {
            return Ok(false);
        }
        if let Some(content) = overwritten {
            let token = self.tokens.entry(content).or_default();
            token.dropped.push(Sight::none(self.sites[i].me));
            token.replaced = true;
        }
        self.stats.acts += 1;
        self.note_chosen(i, copies);
        self.note(i, op, &disk, touched, target);
        if let Some(token) = taken.and_then(|content| self.tokens.get_mut(&content)) {
            token.taken.extend(token.named.last());
        }
        self.note_fewer(i, files);
        self.check_records(i)?;
        // A directory may have more in it than this disk shows, a file more versions: then something comes again.
        let takes_away =
            matches!(op, Op::Rmdir(_) | Op::Rm(_) | Op::Mv(..) | Op::Save(..) | Op::SaveSeen(..));
        if faithful && !(self.sites[i].filtered && takes_away) {
            self.check_fidelity(i, &format!("{op:?}"))?;
        }
        Ok(true)
    }

    /// The disk equalled its tree, then its own user did something: it does still.
    pub(crate) fn check_fidelity(&self, i: usize, after: &str) -> Verdict {
        let (tree, disk) = (self.sites[i].own_tree(), self.sites[i].disk_tree());
        let equal = same_at_once(&tree, &disk);
        if !equal && !is_excused(&self.sites[i], &tree, &disk) {
            return Err(format!(
                "fidelity at {i} after {after}:\n  tree {}\n  disk {}",
                print(&tree),
                print(&disk)
            ));
        }
        if equal && !are_recorded(&self.sites[i]) {
            return Err(format!(
                "records at {i} after {after}:\n  tree {:?}\n  disk {:?}",
                self.sites[i].bindings(),
                self.sites[i].recorded()
            ));
        }
        Ok(())
    }

    /// Contents whose names the operation changes.
    fn touched(&self, i: usize, op: &Op) -> Vec<Digest> {
        let site = &self.sites[i];
        let names: Vec<&str> = match op {
            Op::Create(..) | Op::Symlink(..) | Op::Mkdir(_) | Op::Rmdir(_) | Op::Touch(..) | Op::Open(_) => {
                Vec::new()
            }
            _ => op.paths(),
        };
        let mut out = Vec::new();
        for p in names {
            let Some((dir, name)) = site.spot(p) else { continue };
            let Some(ino) = site.disk.get(dir, &name) else { continue };
            out.extend(site.disk.inodes[&ino].content.as_ref().map(Content::identity));
        }
        if let Op::WriteOpen(k, _) = op
            && let Some(ino) = site.opened(*k).filter(|ino| site.disk.is_in_tree(*ino))
        {
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

    /// Where conflict names show one of several versions of a file, and which.
    fn copies(&self, i: usize) -> Vec<(NodeKey, Name, Digest)> {
        let site = &self.sites[i];
        let mut copies = Vec::new();
        for (dir, inode) in site.disk.inodes.iter().filter(|(_, inode)| inode.kind.is_dir()) {
            for (name, ino) in inode.names.iter().filter(|(name, _)| base_of(name).is_some()) {
                let (dir, content) = (Disk::key(*dir), &site.disk.inodes[ino].content);
                let Some(place) = site.read(|tx| tx.place(&dir, name)).filter(|p| p.conflict_of.is_some())
                else {
                    continue;
                };
                let several = |c: &Claim| {
                    let row = site.read(|tx| tx.entry(c.entry));
                    row.is_some_and(|row| row.entry.counting().any(|v| v.dot != c.version))
                };
                if let Some(content) = content.as_ref().filter(|_| place.claims.iter().any(several)) {
                    copies.push((dir, name.clone(), content.identity()));
                }
            }
        }
        copies
    }

    /// Copies that went, or became files of their own: the file whose versions they were has lost nothing by it, whatever
    /// becomes of them and whatever it is called elsewhere. Who names the copy itself keeps it.
    fn note_chosen(&mut self, i: usize, copies: Vec<(NodeKey, Name, Digest)>) {
        let site = &self.sites[i];
        let stays = |(dir, name, _): &&(NodeKey, Name, Digest)| {
            site.read(|tx| tx.place(dir, name)).is_some_and(|place| place.conflict_of.is_some())
        };
        for (_, _, content) in copies.iter().filter(|copy| !stays(copy)) {
            self.tokens.entry(*content).or_default().chosen = true;
        }
    }

    /// The name that the operation gives. Copies are numbered as long as they are there: afterwards its path says another.
    fn target(&self, i: usize, op: &Op) -> Option<(u64, Name)> {
        match op {
            Op::Mv(_, to) | Op::Ln(_, to) => self.sites[i].spot(to),
            _ => None,
        }
    }

    fn note(&mut self, i: usize, op: &Op, before: &Tree, touched: Vec<Digest>, target: Option<(u64, Name)>) {
        let site = &self.sites[i];
        // What nobody watches is recorded later, at a position not known yet.
        let at = (site.me, if site.blind { UNRECORDED } else { site.head() });
        let had: BTreeSet<Digest> = before.values().filter_map(|s| s.identity).collect();
        let has = site.identities();
        for d in touched.iter().chain(has.difference(&had)) {
            self.tokens.entry(*d).or_default().touched.push(at);
        }
        if let (Some((dir, name)), false) = (target, site.blind)
            && let Some(ino) = site.disk.get(dir, &name)
            && let Some(content) = &site.disk.inodes[&ino].content
        {
            let place = site.read(|tx| tx.place(&Disk::key(dir), &name));
            let files: Vec<EntryId> = place.iter().flat_map(|p| &p.claims).map(|c| c.entry).collect();
            for file in &files {
                self.namers.entry(*file).or_default().insert(site.me);
            }
            // Times of directories have later numbers than the name, or than what was written over the file that has it.
            let dots = place.iter().flat_map(|p| &p.claims).flat_map(|c| [c.name_dot, c.version]);
            let named =
                dots.filter(|dot| dot.replica == site.me).map(|dot| (site.me, dot.n)).max().unwrap_or(at);
            let token = self.tokens.entry(content.identity()).or_default();
            token.named.push(named);
            token.files.extend(files);
            // Several names may go one by one.
            token.replaced |= matches!(op, Op::Ln(..));
        }
        let born = match op {
            Op::Symlink(_, t) => Some(crate::site::symlink(*t)),
            Op::Create(_, t)
            | Op::Write(_, t)
            | Op::Save(_, t)
            | Op::SaveSeen(_, t)
            | Op::WriteOpen(_, t) => Some(crate::site::file(*t, 0)),
            _ => None,
        };
        let after = site.disk_tree();
        let names = |tree: &Tree, d: &Digest| tree.values().filter(|s| s.identity == Some(*d)).count();
        for d in touched.iter().filter(|d| has.contains(d)) {
            // One of several names may have gone.
            self.tokens.entry(*d).or_default().replaced |= names(&after, d) < names(before, d);
        }
        let mut seen = Sight { surely: site.shown.clone(), perhaps: site.glimpsed.clone(), by: site.me };
        seen.surely.add(Dot::new(site.me, UNRECORDED));
        seen.perhaps.add(Dot::new(site.me, UNRECORDED));
        if let Some(content) = born {
            let token = self.tokens.entry(content.identity()).or_default();
            token.born += 1;
            token.origin = format!("written at {i} in step {} by {op:?}", self.stats.steps);
        }
        // The disk may lack a name that comes again, since a cut took it back: that one the user has not removed.
        let lacks = |d: &Digest| !site.blind && site.tree().values().any(|s| s.identity == Some(*d));
        for d in had.difference(&has) {
            let token = self.tokens.entry(*d).or_default();
            token.dropped.push(if lacks(d) { Sight::none(site.me) } else { seen.clone() });
            token.replaced |= !matches!(op, Op::Rm(_));
        }
    }

    /// Of several files with one content (a copy that one made a file of its own while another chose it) each may
    /// go where the others are seen: it counts as written for each.
    fn note_fewer(&mut self, i: usize, before: BTreeMap<Digest, usize>) {
        let contents: Vec<Digest> = before.keys().copied().collect();
        let after = self.sites[i].files_with(&contents);
        for (d, n) in after {
            if n < before[&d] {
                self.tokens.entry(d).or_default().born += 1;
            }
        }
    }

    // ----- batches without a connection that lasts

    /// Builds the next batch of a new connection, if there is anything to tell.
    fn send(&mut self, a: usize, b: usize, limit: usize) {
        if self.sites[a].blind || self.sites[b].stopped || self.sites[a].me == self.sites[b].me {
            return;
        }
        // What it knows it has told, so that no crash takes it back.
        self.sites[b].harden_to_send();
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
        self.sites[a].harden_to_send();
        let mut sender = Sender::new(peer, cursor, theirs, limits);
        let out = self.sites[a].read(|tx| sender.poll(tx, 0));
        self.sites[a].note_shipped();
        self.wire.extend(out.map(|o| Message { from: a, to: b, session: 0, body: Body::Batch(o.batch) }));
    }

    fn deliver_at(&mut self, k: usize, stays: bool) -> Verdict {
        if k >= self.wire.len() || self.sites[self.wire[k].to].stopped {
            return Ok(());
        }
        if k > 0 {
            self.count(Fault::Reordered);
        }
        let m = self.wire.remove(k);
        self.deliver(&m)?;
        if stays {
            self.count(Fault::Duplicated);
            self.wire.push(m);
        }
        Ok(())
    }

    /// Merges a batch by a receiver of its own.
    pub(crate) fn merge_alone(&mut self, from: usize, to: usize, batch: &Batch) -> Verdict {
        let peer = self.sites[from].me;
        let merged = self.sites[to].tx_or(|tx| Receiver::new(peer).handle_batch(tx, batch));
        self.after_merge(from, to, batch, merged).map(|_| ())
    }

    pub(crate) fn after_merge(
        &mut self,
        from: usize,
        to: usize,
        batch: &Batch,
        merged: Result<link::Merged, ReceiveError>,
    ) -> Result<Option<link::Merged>, String> {
        if self.samples.len() < 200 {
            self.samples.extend(batch.entries.iter().take(3).cloned());
        }
        let merged = match merged {
            Ok(merged) => merged,
            Err(e) => return Err(format!("batch {} from {from} at {to}: {e}", batch.seq)),
        };
        self.stats.merges += merged.changed.len() as u64;
        if !merged.receipt.refused.is_empty() {
            return Err(format!("refused at {to} from {from}: {:?}", merged.receipt.refused));
        }
        if !merged.anomalies.is_empty() {
            return Err(format!("at {to} from {from}: {:?}", merged.anomalies));
        }
        self.check_no_orphans(to, &merged.changed)?;
        self.check_records(to)?;
        Ok(Some(merged))
    }

    pub(crate) fn sync(&mut self, a: usize, b: usize) -> Verdict {
        let before = self.wire.len();
        self.send(a, b, usize::MAX);
        if self.wire.len() == before {
            return Ok(());
        }
        let m = self.wire.pop().unwrap();
        self.deliver(&m)
    }

    // ----- disks

    /// False if some content is nowhere to be had.
    fn show(&mut self, i: usize) -> Result<bool, String> {
        if self.sites[i].blind {
            return Ok(true);
        }
        self.empty_limbo(i)?;
        let shown = self.sites[i].knowledge();
        if self.sites[i].shown_at == Some(self.sites[i].versions()) {
            self.sites[i].shown = shown;
            return Ok(true);
        }
        let available = self.available();
        let done = if self.rules.planner {
            crate::planned::show(&mut self.sites[i], &available)?
        } else {
            naive::show(&mut self.sites[i], &available)
        };
        if !done {
            return Ok(false);
        }
        self.sites[i].shown = shown;
        self.sites[i].glimpse();
        self.check_records(i)?;
        let (tree, disk) = (self.sites[i].own_tree(), self.sites[i].disk_tree());
        if !same(&tree, &disk) {
            return Err(format!("shown at {i}:\n  tree {}\n  disk {}", print(&tree), print(&disk)));
        }
        self.sites[i].shown_at = Some(self.sites[i].versions());
        Ok(true)
    }

    /// What users wrote to files that plans had taken away comes back.
    fn empty_limbo(&mut self, i: usize) -> Verdict {
        if self.sites[i].disk.limbo.is_empty() {
            return Ok(());
        }
        let back = self.sites[i].empty_limbo();
        let at = (self.sites[i].me, self.sites[i].head());
        self.stats.faults[Fault::GivenBack as usize] += back.len() as u64;
        for content in back {
            self.tokens.entry(content).or_default().touched.push(at);
        }
        self.check_records(i)
    }

    fn show_some(&mut self, i: usize, skip: usize, count: usize) -> Verdict {
        if !self.rules.planner || self.sites[i].blind {
            return Ok(());
        }
        let available = self.available();
        crate::planned::show_some(&mut self.sites[i], &available, skip, count)?;
        self.sites[i].glimpse();
        self.check_records(i)
    }

    fn show_failing(&mut self, i: usize, seed: u64) -> Verdict {
        if !self.rules.planner || self.sites[i].blind {
            return Ok(());
        }
        let available = self.available();
        let failed = crate::refused::show(&mut self.sites[i], &available, seed);
        self.stats.faults[Fault::FailedStep as usize] += failed;
        self.sites[i].glimpse();
        self.check_records(i)
    }

    /// Contents that are on some disk.
    pub(crate) fn available(&self) -> Available {
        Available::new(self.sites.iter().map(Site::served).collect())
    }

    fn collect(&mut self, i: usize) -> Verdict {
        if self.sites[i].blind {
            return Ok(());
        }
        self.collected = true;
        let me = self.sites[i].me;
        // Members tell only what no crash takes back.
        for other in (0..self.sites.len()).filter(|o| *o != i) {
            self.sites[other].harden_to_send();
        }
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
        if self.rules.live {
            self.run_links()?;
        } else {
            self.exchange()?;
        }
        if !self.rules.power {
            return self.show_all();
        }
        for _ in 0..10 {
            if !self.give_up_lost() {
                return self.show_all();
            }
            match self.rules.live {
                true => self.run_links()?,
                false => self.exchange()?,
            }
        }
        Err("contents are lost again and again".into())
    }

    fn exchange(&mut self) -> Verdict {
        for _ in 0..200 {
            let before: Vec<u64> = self.sites.iter().map(Site::head).collect();
            for (a, b) in self.rules.edges.clone() {
                self.sync(a, b)?;
                self.sync(b, a)?;
            }
            if before == self.sites.iter().map(Site::head).collect::<Vec<_>>() {
                return Ok(());
            }
        }
        Err("no rest after 200 rounds".into())
    }

    fn show_all(&mut self) -> Verdict {
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
        Ok(())
    }

    /// Heals the world and checks everything.
    pub fn finish(&mut self) -> Verdict {
        for i in 0..self.sites.len() {
            if self.sites[i].stopped {
                self.start(i)?;
            }
        }
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
        // Who has something open closes it: what is still in limbo comes to rest.
        if self.rules.open_files {
            for i in 0..self.sites.len() {
                self.sites[i].disk.open.clear();
                self.empty_limbo(i)?;
            }
            self.heal()?;
        }
        self.check_converged()?;
        for i in 0..self.sites.len() {
            self.check_well_formed(i)?;
        }
        self.check_tokens()?;
        self.check_algebra()?;
        self.check_quiet()?;
        let tree = self.sites[0].tree();
        let conflicts = tree.keys().filter(|p| p.last().and_then(base_of).is_some()).count();
        self.stats.conflicts += conflicts as u64;
        Ok(())
    }
}

impl Rules {
    /// Nothing special.
    pub fn plain(sites: usize, edges: Vec<(usize, usize)>) -> Rules {
        Rules {
            sites,
            edges,
            epochs: vec![0; sites],
            skews_ns: vec![0; sites],
            serial: false,
            own_dirs: false,
            one_writer: false,
            no_renames: false,
            equal_contents: false,
            planner: false,
            live: false,
            crashes: false,
            power: false,
            filtered: vec![false; sites],
            open_files: false,
            relay_delay_ms: 0,
            batch_entries: 64,
        }
    }
}
