//! One replica: an index in memory, a simulated disk, and a user who works on that disk.

use crate::check::Records;
use crate::disk::{Disk, InLimbo, PARKED, ROOT, Seen, Tree};
use crate::memo::{Index, Memo};
use crate::planned::OpenPlan;
use crate::prng::Prng;
use driftless_core::adopt::{Adopted, Adoption};
use driftless_core::limbo::{self, Shown, Writers};
use driftless_core::local::{self, Origin};
use driftless_core::tree;
use driftless_core::tx::{Env, Result, Tx, knowledge_vv};
use driftless_core::*;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

pub struct Site {
    pub store: Index,
    pub disk: Disk,
    pub me: ReplicaId,
    pub epoch: u64,
    /// Added to the world's clock.
    pub skew_ns: u64,
    pub clock_ns: u64,
    /// Greatest feed position ever sent.
    pub shipped_n: u64,
    /// The planner has looked at the feed up to here.
    pub plan_cursor: u64,
    /// The user works, but nobody watches: there is no index of this disk yet.
    pub blind: bool,
    /// The process does not run; users go on.
    pub stopped: bool,
    /// What a crash leaves of the index, in worlds that have crashes.
    durable: Option<Index>,
    /// [`Site::plan_cursor`] as it was made durable.
    durable_cursor: u64,
    /// Plans whose records a crash may take back, with what was made by their steps: durable before the first of them.
    pub open_plans: Vec<OpenPlan>,
    /// A directory was renamed that no durable record knows.
    pub moved_unrecorded: bool,
    /// What files held that went from where no durable record has them.
    pub removed_unrecorded: Vec<Digest>,
    /// What the disk showed after each change since the last sync, in worlds with power cuts; the first is what that covered.
    pub since_sync: Option<Vec<Disk>>,
    /// The number of the next row of what paths showed before.
    pub before_next: u64,
    /// It starts after a power cut.
    pub after_cut: bool,
    /// Names in [`HIDDEN`] are left out here, with all below them.
    pub filtered: bool,
    /// Contents that cuts tore.
    pub torn: u64,
    /// Numbers this site's commits, so that each gets a tag of its own.
    commits: u64,
    /// What its disk shows everything of.
    pub shown: VersionVector,
    /// What its disk may show something of.
    pub glimpsed: VersionVector,
    /// The versions at which its disk was found to show everything.
    pub shown_at: Option<(u64, u64)>,
    /// What its records were when they were checked last.
    pub(crate) records: Records,
    memos: Memos,
}

/// What sites with a filter leave out: whatever has one of these names, or is a conflict copy of that, or is below it.
pub const HIDDEN: [&str; 2] = ["c", "y"];

/// True if a filter leaves the path out.
pub fn is_hidden(path: &[Name]) -> bool {
    path.iter().any(|name| {
        let text = name.to_string();
        HIDDEN.contains(&base_of(name).unwrap_or(text).as_str())
    })
}

/// As [`is_hidden`], of one component as users write it.
pub fn is_hidden_text(component: &str) -> bool {
    HIDDEN.contains(&component.split('~').next().unwrap_or(component))
}

/// What was worked out of index and disk as they are.
#[derive(Default)]
struct Memos {
    shown: Memo<(Rc<Tree>, Rc<Bindings>)>,
    materialised: Memo<(Rc<Tree>, Rc<Bindings>)>,
    disk_tree: Memo<Tree>,
    recorded: Memo<Bindings>,
    states: Memo<Vec<Entry>>,
    identities: Memo<BTreeSet<Digest>>,
    knowledge: Memo<VersionVector>,
    head: Memo<u64>,
}

/// What a user does. Paths are written with slashes; `name~2` is the third conflict copy of `name`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// Make a file at a free name.
    Create(String, u64),
    /// Make a symbolic link at a free name.
    Symlink(String, u64),
    Mkdir(String),
    /// Write to an existing file.
    Write(String, u64),
    /// Save by temporary file that nobody noticed.
    Save(String, u64),
    /// Save by temporary file that was recorded.
    SaveSeen(String, u64),
    Mv(String, String),
    Ln(String, String),
    Rm(String),
    Rmdir(String),
    Chmod(String, u32),
    /// Set a directory's time, which may be long ago.
    Touch(String, i64),
    /// Open a file for writing.
    Open(String),
    /// Write to one of the open files, wherever it is now.
    WriteOpen(usize, u64),
    /// Close one of the open files.
    Close(usize),
}

impl Op {
    /// The paths it is about.
    pub fn paths(&self) -> Vec<&str> {
        match self {
            Op::Create(p, _) | Op::Symlink(p, _) | Op::Write(p, _) | Op::Save(p, _) => vec![p],
            Op::Mkdir(p) | Op::Rm(p) | Op::Rmdir(p) => vec![p],
            Op::SaveSeen(p, _) | Op::Chmod(p, _) | Op::Touch(p, _) | Op::Open(p) => vec![p],
            Op::WriteOpen(..) | Op::Close(_) => Vec::new(),
            Op::Mv(p, q) | Op::Ln(p, q) => vec![p, q],
        }
    }
}

impl Site {
    pub fn new(number: usize, epoch: u64, skew_ns: u64) -> Site {
        let me = ReplicaId(number as u64 + 1);
        let mut store = Index::new();
        store.commit(Tx::create(me));
        let mut site = Site {
            store,
            disk: Disk::new(),
            me,
            epoch,
            skew_ns,
            clock_ns: 0,
            shipped_n: 0,
            plan_cursor: 0,
            blind: false,
            stopped: false,
            durable: None,
            durable_cursor: 0,
            open_plans: Vec::new(),
            moved_unrecorded: false,
            removed_unrecorded: Vec::new(),
            since_sync: None,
            before_next: 1,
            after_cut: false,
            filtered: false,
            torn: 0,
            commits: number as u64 * 1_000_003,
            shown: VersionVector::new(),
            glimpsed: VersionVector::new(),
            shown_at: None,
            records: Records::default(),
            memos: Memos::default(),
        };
        let root = site.disk.looked(ROOT);
        site.tx(|tx| local::init_root(tx, &root));
        site
    }

    /// Forgets the index and goes on as another replica, with what is on the disk.
    pub fn forget(&mut self, number: usize) {
        let mut fresh = Site::new(number, self.epoch, self.skew_ns);
        fresh.clock_ns = self.clock_ns;
        fresh.disk = std::mem::replace(&mut self.disk, Disk::new());
        fresh.blind = true;
        fresh.filtered = self.filtered;
        if self.durable.is_some() {
            fresh.may_crash();
        }
        *self = fresh;
    }

    /// Takes the disk into the index, after all that peers know has been read. What only a disk has whose index was lost is
    /// put aside, and is new there.
    pub fn scan(&mut self, lost_index: bool) -> Vec<(Vec<Name>, Adopted)> {
        self.blind = false;
        let adoption = self.tx(|tx| Adoption::new(tx, lost_index));
        let mut out = Vec::new();
        let mut aside: Vec<Vec<Name>> = Vec::new();
        for (path, ino) in self.disk.paths() {
            let Some((name, above)) = path.split_last() else { continue };
            if aside.iter().any(|top| path.starts_with(top)) {
                continue;
            }
            let dir = self.ino(above);
            let looked = self.disk.looked(ino);
            let adopted = self.tx(|tx| adoption.adopt(tx, (&Disk::key(dir), name), &looked));
            if lost_index && matches!(adopted, Adopted::OnlyHere | Adopted::LinkOnlyHere) {
                // What was put aside at an earlier loss stays where it is.
                if path[0].as_bytes() == b"recovered" {
                    self.take_in_one(dir, name, ino);
                } else {
                    aside.push(path.clone());
                }
            }
            out.push((path, adopted));
        }
        for path in aside {
            self.put_aside(&path);
        }
        self.disk.touched.clear();
        out
    }

    /// Moves what is at `path` to a directory for such things, and takes it in there.
    fn put_aside(&mut self, path: &[Name]) {
        let recovered = Name::new(b"recovered").unwrap();
        if self.disk.get(ROOT, &recovered).is_none() {
            let made = self.disk.new_inode(Kind::Dir, None, 0o755);
            self.disk.put(ROOT, &recovered, made);
            self.take_in(ROOT, &recovered, made);
        }
        let to = self.disk.get(ROOT, &recovered).unwrap();
        let (name, above) = path.split_last().unwrap();
        let from = self.ino(above);
        let free = (0..).map(|n| format!("{}{}", self.text(path).replace('/', "_"), "+".repeat(n)));
        let free = free.map(|n| Name::new(n.as_bytes()).unwrap()).find(|n| self.disk.get(to, n).is_none());
        let free = free.unwrap();
        let ino = self.disk.get(from, name).unwrap();
        let mtime = self.disk.inodes[&from].mtime;
        self.disk.rename((from, name), (to, &free));
        // The engine puts the time back: taking away what nobody knows is no change of the directory.
        self.disk.inodes.get_mut(&from).unwrap().mtime = mtime;
        self.take_in(to, &free, ino);
        // The crawl that follows sees the time that this gave the directory.
        let looked = self.disk.looked(to);
        self.tx(|tx| local::attrs(tx, &looked));
    }

    fn take_in_one(&mut self, dir: u64, name: &Name, ino: u64) {
        let looked = self.disk.looked(ino);
        self.tx(|tx| match tx.node(&looked.key)? {
            Some(_) => local::link(tx, &looked.key, (&Disk::key(dir), name)),
            None => local::create(tx, (&Disk::key(dir), name), &looked, Origin::User),
        });
    }

    fn take_in(&mut self, dir: u64, name: &Name, ino: u64) {
        self.take_in_one(dir, name, ino);
        for (name, below) in self.disk.inodes[&ino].names.clone() {
            self.take_in(ino, &name, below);
        }
    }

    /// Runs the translation of what the user did.
    fn translate(&mut self, f: impl FnOnce(&mut Tx<'_>) -> Result<()>) {
        if !self.blind {
            self.tx(f);
        }
    }

    /// Runs a transaction and commits it, lazily.
    pub fn tx<T>(&mut self, f: impl FnOnce(&mut Tx<'_>) -> Result<T>) -> T {
        self.tx_or(f).unwrap()
    }

    /// As [`Site::tx`]; after an error nothing is committed.
    pub fn tx_or<T, E>(&mut self, f: impl FnOnce(&mut Tx<'_>) -> Result<T, E>) -> Result<T, E> {
        self.commits += 1;
        let (out, batch) = {
            let snap = self.store.snapshot();
            let env = Env { now_ns: self.clock_ns + self.skew_ns, epoch: self.epoch };
            let mut tx = Tx::open(&*snap, env).unwrap();
            let out = f(&mut tx)?;
            let tag = Prng::new(self.commits ^ self.clock_ns).next();
            match self.since_sync {
                None => (out, tx.into_batch(tag)),
                Some(_) => {
                    let (batch, _, kept) = tx.into_batch_with_before(tag, self.before_next).unwrap();
                    self.before_next += u64::from(kept);
                    (out, batch)
                }
            }
        };
        self.store.commit(batch);
        Ok(out)
    }

    // ----- what a crash leaves

    /// From now on it is noted what a crash leaves of the index.
    pub fn may_crash(&mut self) {
        self.durable = Some(self.store.fork());
    }

    /// From now on it is noted what a power cut leaves of the disk.
    pub fn may_lose_power(&mut self) {
        self.since_sync = Some(vec![self.disk.clone()]);
    }

    /// Makes everything durable that was committed, before it leaves.
    pub fn harden_to_send(&mut self) {
        #[cfg(feature = "mutants")]
        if driftless_core::mutant::is_planted(driftless_core::mutant::Mutant::SentBeforeDurable) {
            return;
        }
        self.harden();
    }

    /// Makes everything durable that was committed.
    pub fn harden(&mut self) {
        // What a killed process left waits for the next one.
        if self.durable.is_some() && !self.stopped {
            self.durable = Some(self.store.fork());
            self.durable_cursor = self.plan_cursor;
            self.open_plans.clear();
            self.moved_unrecorded = false;
            self.removed_unrecorded.clear();
        }
    }

    /// Takes back what is not durable.
    pub fn lose_lazy(&mut self) {
        if let Some(durable) = &self.durable {
            self.store = durable.fork();
            self.plan_cursor = self.durable_cursor;
        }
        self.shipped_n = self.head();
    }

    /// The last position of the feed that no crash takes back.
    pub fn durable_head(&self) -> u64 {
        let store = self.durable.as_ref().unwrap_or(&self.store);
        let snap = store.snapshot();
        Tx::open(&*snap, Env { now_ns: 0, epoch: 0 }).unwrap().head()
    }

    /// True if no crash takes back that the inode is recorded.
    pub fn is_durably_known(&self, ino: u64) -> bool {
        self.read_durable(|tx| tx.node(&Disk::key(ino))).is_some()
    }

    /// True if no crash takes back that the inode is recorded at this name, and for what it stands there.
    pub fn is_durably_at(&self, ino: u64, dir: u64, name: &Name) -> bool {
        let durable = self.read_durable(|tx| tx.place(&Disk::key(dir), name));
        let recorded = self.read(|tx| tx.place(&Disk::key(dir), name));
        durable.is_some_and(|place| place.node == Disk::key(ino) && (self.blind || Some(place) == recorded))
    }

    fn read_durable<T>(&self, f: impl FnOnce(&mut Tx<'_>) -> Result<T>) -> T {
        let snap = self.durable.as_ref().unwrap_or(&self.store).snapshot();
        let mut tx = Tx::open(&*snap, Env { now_ns: 0, epoch: 0 }).unwrap();
        f(&mut tx).unwrap()
    }

    /// Everything up to the head may have left.
    pub fn note_shipped(&mut self) {
        self.shipped_n = self.head();
    }

    /// Reads, without committing.
    pub fn read<T>(&self, f: impl FnOnce(&mut Tx<'_>) -> Result<T>) -> T {
        let snap = self.store.snapshot();
        let mut tx = Tx::open(&*snap, Env { now_ns: 0, epoch: 0 }).unwrap();
        f(&mut tx).unwrap()
    }

    pub fn knowledge(&self) -> VersionVector {
        let read = || self.read(|tx| Ok(knowledge_vv(&tx.knowledge()?)));
        (*self.memos.knowledge.get((self.store.version(), 0), read)).clone()
    }

    pub fn head(&self) -> u64 {
        let read = || self.read(|tx| Ok(tx.head()));
        *self.memos.head.get((self.store.version(), 0), read)
    }

    /// How many inodes on this disk hold each of these contents, of those that are there.
    pub fn files_with(&self, contents: &[Digest]) -> BTreeMap<Digest, usize> {
        let mut found = BTreeMap::new();
        let held = self.disk.inodes.values().filter_map(|inode| inode.content.as_ref());
        for d in held.map(Content::identity).filter(|d| contents.contains(d)) {
            *found.entry(d).or_default() += 1;
        }
        found
    }

    /// Contents on its disk.
    pub fn identities(&self) -> Rc<BTreeSet<Digest>> {
        self.memos.identities.get((self.disk.inodes.version(), 0), || self.disk.identities())
    }

    /// What the disk shows.
    pub fn disk_tree(&self) -> Rc<Tree> {
        self.memos.disk_tree.get((self.disk.inodes.version(), 0), || self.disk.tree())
    }

    /// The versions of what is merged and recorded, and of the disk.
    pub fn versions(&self) -> (u64, u64) {
        (self.store.states(), self.disk.inodes.version())
    }

    /// The disk has been brought nearer to what is merged now.
    pub fn glimpse(&mut self) {
        for e in &*self.states() {
            self.glimpsed.join(&e.ctx);
        }
    }

    /// All states, in feed order.
    pub fn states(&self) -> Rc<Vec<Entry>> {
        let read = |tx: &mut Tx<'_>| {
            let rows = tx.feed_after(0, usize::MAX)?;
            rows.into_iter().map(|(_, id)| Ok(tx.entry_must(id)?.entry.clone())).collect()
        };
        self.memos.states.get((self.store.states(), 0), || self.read(read))
    }

    // ----- paths

    fn component(&self, dir: u64, text: &str) -> Option<Name> {
        let Some((base, k)) = text.split_once('~') else { return Name::new(text.as_bytes()).ok() };
        let k: usize = k.parse().ok()?;
        let mut copies =
            self.disk.inodes.get(&dir)?.names.keys().filter(|n| base_of(n).as_deref() == Some(base));
        copies.nth(k).cloned()
    }

    /// Directory and name of a path; the name need not exist.
    pub fn spot(&self, path: &str) -> Option<(u64, Name)> {
        let mut dir = ROOT;
        let mut parts = path.split('/').peekable();
        loop {
            let name = self.component(dir, parts.next()?)?;
            if parts.peek().is_none() {
                return Some((dir, name));
            }
            dir = self.disk.get(dir, &name).filter(|i| self.disk.is_dir(*i))?;
        }
    }

    /// The way to write a path of this disk.
    pub fn text(&self, path: &[Name]) -> String {
        let mut dir = ROOT;
        let mut out = Vec::new();
        for name in path {
            out.push(match base_of(name) {
                None => name.to_string(),
                Some(base) => {
                    let names = self.disk.inodes[&dir].names.keys();
                    let copies: Vec<_> =
                        names.filter(|n| base_of(n).as_deref() == Some(base.as_str())).collect();
                    match copies.iter().position(|n| *n == name) {
                        Some(k) => format!("{base}~{k}"),
                        None => name.to_string(),
                    }
                }
            });
            dir = self.disk.get(dir, name).unwrap_or(0);
            if !self.disk.inodes.contains_key(&dir) {
                dir = ROOT;
            }
        }
        out.join("/")
    }

    // ----- the user

    /// Does `op` on the disk, if it can be done there, and translates it. False if it could not be done.
    pub fn act(&mut self, op: &Op) -> bool {
        self.disk.now = time(self.clock_ns);
        let done = self.try_act(op).is_some();
        self.note_dir_times();
        self.note_state();
        done
    }

    /// The disk changed: from now on a power cut may leave it like this.
    pub fn note_state(&mut self) {
        if let Some(states) = &mut self.since_sync
            && states.last().is_none_or(|d| d.inodes.version() != self.disk.inodes.version())
        {
            states.push(self.disk.clone());
        }
    }

    /// As [`Site::note_state`], after each step of a plan.
    pub fn note_states(&mut self, states: Vec<Disk>) {
        if let Some(all) = &mut self.since_sync {
            all.extend(states);
        }
        self.note_state();
    }

    /// Users do not sync what they write.
    fn note_dirty(&mut self, ino: u64) {
        if self.since_sync.is_some()
            && let Some(inode) = self.disk.inodes.get_mut(&ino)
        {
            inode.synced = false;
        }
    }

    /// What a user changed in directories changed their times.
    fn note_dir_times(&mut self) {
        for dir in std::mem::take(&mut self.disk.touched) {
            if ![ROOT, PARKED].contains(&dir) && self.disk.inodes.contains_key(&dir) {
                let looked = self.disk.looked(dir);
                self.translate(|tx| local::attrs(tx, &looked));
            }
        }
    }

    fn try_act(&mut self, op: &Op) -> Option<()> {
        match op {
            Op::Create(path, token) => self.create(path, Kind::File, Some(file(*token, self.clock_ns))),
            Op::Symlink(path, token) => self.create(path, Kind::Symlink, Some(symlink(*token))),
            Op::Mkdir(path) => self.create(path, Kind::Dir, None),
            Op::Write(path, token) => self.write(path, *token),
            Op::Save(path, token) => self.save(path, *token),
            Op::SaveSeen(path, token) => self.save_seen(path, *token),
            Op::Mv(from, to) => self.mv(from, to),
            Op::Ln(from, to) => self.ln(from, to),
            Op::Rm(path) => self.rm(path),
            Op::Rmdir(path) => self.rmdir(path),
            Op::Chmod(path, mode) => self.chmod(path, *mode),
            Op::Touch(path, sec) => self.touch(path, *sec),
            Op::Open(path) => self.open(path),
            Op::WriteOpen(k, token) => self.write_open(*k, *token),
            Op::Close(k) => self.disk.open.remove(&self.opened(*k)?).then_some(()),
        }
    }

    fn existing(&self, path: &str) -> Option<(u64, Name, u64)> {
        let (dir, name) = self.spot(path)?;
        let ino = self.disk.get(dir, &name)?;
        Some((dir, name, ino))
    }

    fn create(&mut self, path: &str, kind: Kind, content: Option<Content>) -> Option<()> {
        let (dir, name) = self.spot(path)?;
        if self.disk.get(dir, &name).is_some() {
            return None;
        }
        let ino = self.disk.new_inode(kind, content, if kind.is_dir() { 0o755 } else { 0o644 });
        self.note_dirty(ino);
        self.disk.put(dir, &name, ino);
        let looked = self.disk.looked(ino);
        self.translate(|tx| local::create(tx, (&Disk::key(dir), &name), &looked, Origin::User));
        Some(())
    }

    fn write(&mut self, path: &str, token: u64) -> Option<()> {
        let (_, _, ino) = self.existing(path)?;
        let content = file(token, self.clock_ns);
        let inode = self.disk.inodes.get_mut(&ino)?;
        if inode.kind != Kind::File {
            return None;
        }
        inode.content = Some(content);
        self.note_dirty(ino);
        let looked = self.disk.looked(ino);
        self.translate(|tx| local::write(tx, &looked));
        Some(())
    }

    fn open(&mut self, path: &str) -> Option<()> {
        let (_, _, ino) = self.existing(path)?;
        (self.disk.inodes[&ino].kind == Kind::File && self.disk.open.insert(ino)).then_some(())
    }

    /// The file that is open as the `k`th.
    pub fn opened(&self, k: usize) -> Option<u64> {
        self.disk.open.iter().nth(k).copied()
    }

    /// What a user wrote to a file in limbo, and now overwrites.
    pub fn written_in_limbo(&self, op: &Op) -> Option<Digest> {
        let Op::WriteOpen(k, _) = op else { return None };
        let waits = self.disk.limbo.get(&self.opened(*k)?)?;
        waits.inode.content.as_ref().map(Content::identity).filter(|now| Some(*now) != waits.held)
    }

    fn write_open(&mut self, k: usize, token: u64) -> Option<()> {
        let ino = self.opened(k)?;
        let content = Some(file(token, self.clock_ns));
        if let Some(waits) = self.disk.limbo.get_mut(&ino) {
            waits.inode.content = content;
            return Some(());
        }
        if !self.disk.is_in_tree(ino) {
            // Its user removed it, or a plan has it out of the way for a moment.
            return None;
        }
        self.disk.inodes.get_mut(&ino)?.content = content;
        let looked = self.disk.looked(ino);
        self.translate(|tx| local::write(tx, &looked));
        Some(())
    }

    /// What may go from limbo goes, what was written to comes back beside its place. Gives what comes back.
    pub fn empty_limbo(&mut self) -> Vec<Digest> {
        let mut back = Vec::new();
        for (ino, waits) in std::mem::take(&mut self.disk.limbo) {
            let now = waits.inode.content.as_ref().map(Content::identity);
            let shown = if now == waits.held { Shown::Same } else { Shown::Changed };
            let writers = if self.disk.open.contains(&ino) { Writers::Some } else { Writers::None };
            match limbo::judge(shown, writers, 0) {
                limbo::Verdict::GiveBack => back.extend(self.give_back(ino, waits)),
                limbo::Verdict::Wait => drop(self.disk.limbo.insert(ino, waits)),
                _ => {}
            }
        }
        self.note_dir_times();
        back
    }

    fn give_back(&mut self, ino: u64, waits: InLimbo) -> Option<Digest> {
        let dir = if self.disk.is_in_tree(waits.dir) { waits.dir } else { ROOT };
        let names = (0..).map(|n| format!("{}.recovered-{ino}{}", waits.name, "+".repeat(n)));
        let mut names = names.map_while(|name| Name::new(name.as_bytes()).ok());
        let name = names.find(|name| self.disk.get(dir, name).is_none())?;
        self.disk.now = time(self.clock_ns);
        let content = waits.inode.content.as_ref().map(Content::identity);
        self.disk.inodes.insert(ino, waits.inode);
        self.disk.put(dir, &name, ino);
        let looked = self.disk.looked(ino);
        self.translate(|tx| local::create(tx, (&Disk::key(dir), &name), &looked, Origin::User));
        content
    }

    fn save(&mut self, path: &str, token: u64) -> Option<()> {
        let (dir, name, old) = self.existing(path)?;
        if self.disk.is_dir(old) {
            return None;
        }
        let ino = self.disk.new_inode(Kind::File, Some(file(token, self.clock_ns)), 0o644);
        self.note_dirty(ino);
        self.disk.take(dir, &name);
        self.disk.put(dir, &name, ino);
        let looked = self.disk.looked(ino);
        self.translate(|tx| local::replace(tx, (&Disk::key(dir), &name), &looked));
        Some(())
    }

    fn save_seen(&mut self, path: &str, token: u64) -> Option<()> {
        let (dir, name, old) = self.existing(path)?;
        let temp = Name::new(b".tmp").unwrap();
        if self.disk.is_dir(old) || self.disk.get(dir, &temp).is_some() {
            return None;
        }
        let ino = self.disk.new_inode(Kind::File, Some(file(token, self.clock_ns)), 0o644);
        self.note_dirty(ino);
        self.disk.put(dir, &temp, ino);
        let looked = self.disk.looked(ino);
        let dir_key = Disk::key(dir);
        self.translate(|tx| local::create(tx, (&dir_key, &temp), &looked, Origin::User));
        self.disk.rename((dir, &temp), (dir, &name));
        let shipped_n = self.shipped_n;
        self.translate(|tx| local::rename(tx, (&dir_key, &temp), (&dir_key, &name), shipped_n));
        Some(())
    }

    fn mv(&mut self, from: &str, to: &str) -> Option<()> {
        let (dir, name, ino) = self.existing(from)?;
        let (to_dir, to_name) = self.spot(to)?;
        if self.disk.is_dir(ino) && self.disk.is_below(to_dir, ino) {
            return None;
        }
        let (from_key, to_key) = (Disk::key(dir), Disk::key(to_dir));
        if let Some(over) = self.disk.get(to_dir, &to_name) {
            if over == ino || self.disk.is_dir(ino) != self.disk.is_dir(over) {
                return None;
            }
            if self.disk.is_dir(over) && !self.disk.is_empty(over) {
                return None;
            }
        }
        self.disk.rename((dir, &name), (to_dir, &to_name));
        let shipped_n = self.shipped_n;
        let looked = self.disk.looked(ino);
        self.translate(|tx| {
            let mut names = local::forget_unknown(tx, &looked.key)?;
            if names.is_empty() {
                return local::rename(tx, (&from_key, &name), (&to_key, &to_name), shipped_n);
            }
            match tx.place(&to_key, &to_name)? {
                Some(_) => local::replace(tx, (&to_key, &to_name), &looked)?,
                None => local::create(tx, (&to_key, &to_name), &looked, Origin::User)?,
            }
            names.retain(|spot| {
                *spot != (from_key.clone(), name.clone()) && *spot != (to_key.clone(), to_name.clone())
            });
            names.into_iter().try_for_each(|(dir, name)| local::link(tx, &looked.key, (&dir, &name)))
        });
        Some(())
    }

    fn ln(&mut self, from: &str, to: &str) -> Option<()> {
        let (_, _, ino) = self.existing(from)?;
        let (to_dir, to_name) = self.spot(to)?;
        if self.disk.is_dir(ino) || self.disk.get(to_dir, &to_name).is_some() {
            return None;
        }
        self.disk.put(to_dir, &to_name, ino);
        let (key, looked) = (Disk::key(ino), self.disk.looked(ino));
        self.translate(|tx| {
            let mut names = local::forget_unknown(tx, &key)?.into_iter();
            if let Some((dir, name)) = names.next() {
                local::create(tx, (&dir, &name), &looked, Origin::User)?;
            }
            for (dir, name) in names {
                local::link(tx, &key, (&dir, &name))?;
            }
            local::link(tx, &key, (&Disk::key(to_dir), &to_name))
        });
        Some(())
    }

    fn rm(&mut self, path: &str) -> Option<()> {
        let (dir, name, ino) = self.existing(path)?;
        if self.disk.is_dir(ino) {
            return None;
        }
        self.disk.take(dir, &name);
        self.translate(|tx| local::unlink(tx, (&Disk::key(dir), &name)));
        Some(())
    }

    fn rmdir(&mut self, path: &str) -> Option<()> {
        let (dir, name, ino) = self.existing(path)?;
        if !self.disk.is_dir(ino) || !self.disk.is_empty(ino) {
            return None;
        }
        self.disk.take(dir, &name);
        self.translate(|tx| local::rmdir(tx, (&Disk::key(dir), &name)));
        Some(())
    }

    fn chmod(&mut self, path: &str, mode: u32) -> Option<()> {
        let (_, _, ino) = self.existing(path)?;
        self.disk.inodes.get_mut(&ino)?.mode = mode;
        let looked = self.disk.looked(ino);
        self.translate(|tx| local::attrs(tx, &looked));
        Some(())
    }

    fn touch(&mut self, path: &str, sec: i64) -> Option<()> {
        let (_, _, ino) = self.existing(path)?;
        if !self.disk.is_dir(ino) {
            return None;
        }
        self.disk.inodes.get_mut(&ino)?.mtime = Time { sec, nsec: 0 };
        self.disk.touched.insert(ino);
        Some(())
    }

    // ----- what should be shown

    /// What should be bound at each path of this disk.
    pub fn bindings(&self) -> Rc<Bindings> {
        self.materialised().1.clone()
    }

    /// What this disk should show.
    pub fn own_tree(&self) -> Rc<Tree> {
        self.materialised().0.clone()
    }

    fn materialised(&self) -> Rc<(Rc<Tree>, Rc<Bindings>)> {
        if !self.filtered {
            return self.shown();
        }
        let walk = |tx: &mut Tx<'_>| {
            let mut out = Walk::default();
            out.class(tx, &[EntryId::ROOT], &mut Vec::new())?;
            out.leave_out();
            Ok(out.end())
        };
        self.memos.materialised.get((self.store.states(), 0), || self.read(walk))
    }

    /// Versions that count and that it wrote or named, of which a filter may have left the only copy in limbo.
    fn kept_for_others(&self) -> BTreeSet<Digest> {
        let of = |e: &Entry| -> Vec<Digest> {
            let named = e.shown_links().iter().any(|link| link.at.dot.replica == self.me);
            let kept = e.counting().filter(|v| named || v.dot.replica == self.me);
            kept.map(|v| v.content.identity()).collect()
        };
        self.states().iter().flat_map(of).collect()
    }

    /// Contents that others can get here.
    pub fn served(&self) -> Rc<BTreeSet<Digest>> {
        let on_disk = self.identities();
        if !self.filtered || self.blind {
            return on_disk;
        }
        Rc::new(on_disk.union(&self.kept_for_others()).copied().collect())
    }

    /// What is bound at each path.
    pub fn recorded(&self) -> Rc<Bindings> {
        self.memos.recorded.get(self.versions(), || self.read_recorded())
    }

    fn read_recorded(&self) -> Bindings {
        self.read(|tx| {
            let mut out = Bindings::new();
            for (path, _) in self.disk.paths() {
                let dir = match path.split_last() {
                    Some((_, [])) | None => ROOT,
                    Some((_, above)) => self.ino(above),
                };
                let place = tx.place(&Disk::key(dir), &path[path.len() - 1])?.unwrap();
                let members = match &tx.node_must(&place.node)?.bind {
                    Bind::Dir(members) => members.clone(),
                    Bind::Leaf { .. } => Vec::new(),
                };
                let mut claims = place.claims.clone();
                claims.sort_by_key(|c| (c.entry, c.link, c.version));
                out.insert(path, (claims, members));
            }
            Ok(out)
        })
    }

    fn ino(&self, path: &[Name]) -> u64 {
        path.iter().fold(ROOT, |dir, name| self.disk.get(dir, name).unwrap())
    }

    /// The whole effective tree.
    pub fn tree(&self) -> Rc<Tree> {
        self.shown().0.clone()
    }

    fn shown(&self) -> Rc<(Rc<Tree>, Rc<Bindings>)> {
        let walk = |tx: &mut Tx<'_>| {
            let mut out = Walk::default();
            out.class(tx, &[EntryId::ROOT], &mut Vec::new())?;
            Ok(out.end())
        };
        self.memos.shown.get((self.store.states(), 0), || self.read(walk))
    }
}

/// What stands at each path: claims of a leaf, members of a directory, sorted.
pub type Bindings = BTreeMap<Vec<Name>, (Vec<Claim>, Vec<EntryId>)>;

/// An inode of the effective tree.
type Class = (EntryId, Dot);

/// A walk through the effective tree.
#[derive(Default)]
struct Walk {
    tree: Tree,
    bindings: Bindings,
    classes: BTreeMap<Vec<Name>, Class>,
}

impl Walk {
    fn class(&mut self, tx: &mut Tx<'_>, class: &[EntryId], path: &mut Vec<Name>) -> Result<()> {
        for name in tree::children(tx, class, None, usize::MAX)? {
            let shown = tree::shown_at(tx, class, &name)?;
            if !shown.dir.is_empty() {
                path.push(name.clone());
                let mode = mode_of_union(tx, &shown.dir)?;
                let dir_mtime = time_of_union(tx, &shown.dir)?;
                let seen = Seen {
                    kind: Kind::Dir,
                    identity: None,
                    mode,
                    dir_mtime,
                    extra: false,
                    first: Vec::new(),
                };
                self.note(path, seen, (shown.dir[0], Dot::default()), (Vec::new(), shown.dir.clone()));
                self.class(tx, &shown.dir, path)?;
                path.pop();
            }
            for g in &shown.groups {
                path.push(g.name.clone());
                let owner = &g.claims[0];
                let entry = tx.entry_must(owner.entry)?;
                let identity = entry.entry.version(owner.version).unwrap().content.identity();
                let seen = Seen {
                    kind: entry.entry.kind,
                    identity: Some(identity),
                    mode: entry.entry.meta.1.mode,
                    dir_mtime: None,
                    extra: owner.extra,
                    first: Vec::new(),
                };
                self.note(path, seen, (owner.entry, owner.version), (claims_of(g), Vec::new()));
                path.pop();
            }
        }
        Ok(())
    }

    fn note(&mut self, path: &[Name], seen: Seen, class: Class, bound: (Vec<Claim>, Vec<EntryId>)) {
        assert!(self.tree.insert(path.to_vec(), seen).is_none(), "{path:?} is shown twice");
        self.classes.insert(path.to_vec(), class);
        self.bindings.insert(path.to_vec(), bound);
    }

    /// What a filter leaves out goes.
    fn leave_out(&mut self) {
        self.tree.retain(|path, _| !is_hidden(path));
        self.bindings.retain(|path, _| !is_hidden(path));
        self.classes.retain(|path, _| !is_hidden(path));
    }

    /// Paths in order decide which is the first of an inode.
    fn end(mut self) -> (Rc<Tree>, Rc<Bindings>) {
        let mut firsts = BTreeMap::new();
        for ((path, seen), class) in self.tree.iter_mut().zip(self.classes.values()) {
            seen.first = firsts.entry(class).or_insert(path).clone();
        }
        (Rc::new(self.tree), Rc::new(self.bindings))
    }
}

fn claims_of(group: &tree::Group) -> Vec<Claim> {
    let claim =
        |s: &tree::Shares| Claim { entry: s.entry, link: s.link, name_dot: s.name_dot, version: s.version };
    let mut claims: Vec<Claim> = group.claims.iter().map(claim).collect();
    claims.sort_by_key(|c| (c.entry, c.link, c.version));
    claims
}

/// The greatest stamp decides the attributes of a union.
pub fn mode_of_union(tx: &mut Tx<'_>, members: &[EntryId]) -> Result<u32> {
    let mut best = (Stamp::MIN, EntryId::ROOT, 0);
    for m in members {
        let meta = tx.entry_must(*m)?.entry.meta.clone();
        best = best.max((meta.0, *m, meta.1.mode));
    }
    Ok(best.2)
}

/// The greatest stamp decides the time of a union, then the greatest time.
pub fn time_of_union(tx: &mut Tx<'_>, members: &[EntryId]) -> Result<Option<Time>> {
    let mut all = Vec::new();
    for m in members {
        all.extend(tx.entry(*m)?.and_then(|row| row.entry.dir_time));
    }
    all.sort();
    Ok(all.last().map(|t| t.1))
}

/// Two trees are the same to their users.
pub fn same(a: &Tree, b: &Tree) -> bool {
    same_but_modes(a, b)
        && a.values().zip(b.values()).all(|(x, y)| (x.mode, x.dir_mtime) == (y.mode, y.dir_mtime))
}

/// The same after a user's change: one of attributes is not shown at the conflict copies of the entry at once.
pub fn same_at_once(a: &Tree, b: &Tree) -> bool {
    same_but_modes(a, b)
        && a.values()
            .zip(b.values())
            .all(|(x, y)| x.dir_mtime == y.dir_mtime && (x.extra || y.extra || x.mode == y.mode))
}

pub fn same_but_modes(a: &Tree, b: &Tree) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|((p, x), (q, y))| {
            p == q && x.kind == y.kind && x.identity == y.identity && x.first == y.first
        })
}

fn time(ns: u64) -> Time {
    Time { sec: (ns / 1_000_000_000) as i64, nsec: (ns % 1_000_000_000) as u32 }
}

pub fn file(token: u64, now_ns: u64) -> Content {
    let mtime = time(now_ns);
    Content::File { size: token, mtime, digest: Digest::of(&token.to_be_bytes()) }
}

pub fn symlink(token: u64) -> Content {
    Content::Symlink { target: token.to_string().bytes().collect(), mtime: Time::default() }
}

/// The name that a conflict name was made from.
pub fn base_of(name: &Name) -> Option<String> {
    let text = name.to_string();
    Some(text[..text.find(".conflict-")?].to_string())
}
