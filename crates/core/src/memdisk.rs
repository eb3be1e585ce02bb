//! The in-memory twin of a volume's tree on disk: inodes and names that [`Step`]s are performed on, as
//! strict as a file system (no rename below oneself, no rmdir of what is not empty) and with knobs for
//! what goes wrong. For tests of the planner, and for simulations.

use crate::disk::{Fingerprint, NodeKey};
use crate::id::{Kind, Name};
use crate::local::Looked;
use crate::meta::{Attrs, Content, Time};
use crate::plan::{At, Outcome, Plan, Step, Victim, record, stands};
use crate::tx::Tx;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Why a step or operation was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MemError {
    /// There is no such inode or name.
    #[error("not found: {0:?}")]
    NotFound(At),
    /// There is no such inode.
    #[error("no inode {0:?}")]
    NoInode(NodeKey),
    /// The name is taken and no victim was named.
    #[error("exists: {0:?}")]
    Exists(At),
    /// Something else than the expected victim or origin is there.
    #[error("something else is at {0:?}")]
    Unexpected(At),
    /// A directory that is not empty cannot be removed.
    #[error("not empty: {0:?}")]
    NotEmpty(At),
    /// A directory cannot be moved below itself.
    #[error("{0:?} is below itself")]
    BelowItself(At),
    /// The step does not fit the kind of the inode.
    #[error("wrong kind at {0:?}")]
    WrongKind(At),
    /// A parked name or provisional inode was used before it was there.
    #[error("provisional inode {0:?} used before it was made")]
    Provisional(NodeKey),
    /// An earlier step that it builds on was not done.
    #[error("what it builds on was not done")]
    NotRecorded,
    /// Asked for with [`MemDisk::fail_step`].
    #[error("injected fault")]
    Injected,
    /// The index could not be written or read.
    #[error("index: {0}")]
    Index(String),
}

type Done<T = ()> = Result<T, MemError>;

#[derive(Clone, Debug)]
struct Inode {
    kind: Kind,
    content: Option<Content>,
    attrs: Attrs,
    mtime: Time,
    ctime: u64,
    children: BTreeMap<Name, u64>,
    links: usize,
}

/// What a walk finds at a path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// The inode.
    pub node: NodeKey,
    /// Its kind.
    pub kind: Kind,
    /// Its content; `None` for directories.
    pub content: Option<Content>,
    /// Its attributes, a directory's modification time among them.
    pub attrs: Attrs,
}

/// A tree in memory.
#[derive(Clone, Debug)]
pub struct MemDisk {
    inodes: BTreeMap<u64, Inode>,
    next: u64,
    clock: u64,
    real: HashMap<NodeKey, NodeKey>,
    touched: BTreeSet<u64>,
    fail_at: Option<u64>,
    performed: u64,
    /// If set, what every inode gets as owner and group, whatever was asked for: a receiver without the
    /// right to chown.
    pub owner_forced: Option<(u32, u32)>,
}

const ROOT: u64 = 1;
const PARKED: u64 = 2;

impl Default for MemDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl MemDisk {
    /// An empty tree: a root directory.
    pub fn new() -> MemDisk {
        let mut disk = MemDisk {
            inodes: BTreeMap::new(),
            next: ROOT,
            clock: 0,
            real: HashMap::new(),
            touched: BTreeSet::new(),
            fail_at: None,
            performed: 0,
            owner_forced: None,
        };
        for _ in [ROOT, PARKED] {
            let ino = disk.make(Kind::Dir, None, Attrs { mode: 0o755, ..Attrs::default() });
            disk.inode_mut(ino).links = 1;
        }
        disk
    }

    /// The root directory's key.
    pub fn root(&self) -> NodeKey {
        key_of(ROOT)
    }

    /// Lets the `k`-th step from now (from 0) fail before it does anything.
    pub fn fail_step(&mut self, k: u64) {
        self.fail_at = Some(self.performed + k);
    }

    /// Steps performed so far.
    pub fn performed(&self) -> u64 {
        self.performed
    }

    /// Performs the steps of a plan in order on this tree, and records each in `tx`, which must be one on
    /// the state *before* planning. Afterwards the times of directories whose names changed are put back.
    /// Gives the number of steps done and what stopped it.
    pub fn run(&mut self, tx: &mut Tx<'_>, plan: &Plan) -> (usize, Done) {
        let mut done = 0;
        for step in &plan.steps {
            if let Err(e) = self.run_step(tx, step) {
                return (done, Err(e));
            }
            done += 1;
        }
        (done, self.restore_times(tx))
    }

    /// Puts the keys of inodes made by this plan in the place of provisional ones.
    pub fn resolve(&self, step: &mut Step) {
        step.resolve(&self.real);
    }

    /// Performs one step of a plan and records it. See [`MemDisk::run`].
    pub fn run_step(&mut self, tx: &mut Tx<'_>, step: &Step) -> Done {
        let index = |e: crate::tx::Error| MemError::Index(e.to_string());
        let mut step = step.clone();
        step.resolve(&self.real);
        if !stands(tx, &step).map_err(index)? {
            return Err(MemError::NotRecorded);
        }
        step.refresh(tx).map_err(index)?;
        let outcome = self.perform(&step)?;
        if let (Step::MakeDir { node, .. } | Step::Put { node, .. }, Some(o)) = (&step, &outcome) {
            self.real.insert(node.clone(), o.node.clone());
        }
        step.resolve(&self.real);
        record(tx, &step, outcome.as_ref()).map_err(index)
    }

    /// Puts back the times of directories whose names changed since this was last done.
    pub fn restore_times(&mut self, tx: &mut Tx<'_>) -> Done {
        for ino in std::mem::take(&mut self.touched) {
            let node = tx.node(&key_of(ino)).map_err(|e| MemError::Index(e.to_string()))?;
            let time = node.and_then(|n| n.given.dir_mtime);
            if let (Some(inode), Some(time)) = (self.inodes.get_mut(&ino), time) {
                inode.mtime = time;
            }
        }
        Ok(())
    }

    /// Forgets which real inodes provisional keys stood for: a plan ends.
    pub fn end_plan(&mut self) {
        self.real.clear();
    }

    /// Performs one step with real keys.
    pub fn perform(&mut self, step: &Step) -> Done<Option<Outcome>> {
        // What only the record is told cannot fail on a disk.
        if !matches!(step, Step::Rebind { .. }) {
            self.performed += 1;
            if self.fail_at == Some(self.performed - 1) {
                self.fail_at = None;
                return Err(MemError::Injected);
            }
        }
        match step {
            Step::MakeDir { at, attrs, .. } => {
                self.must_be_free(at)?;
                let ino = self.make(Kind::Dir, None, attrs.clone());
                self.enter(at, ino)?;
                Ok(Some(self.outcome(ino)))
            }
            Step::Put { at, kind, content, attrs, copy, victim, .. } => {
                self.check_copy(copy.as_ref(), content)?;
                self.make_room(at, victim.as_ref())?;
                let ino = self.make(*kind, Some(content.clone()), attrs.clone());
                self.enter(at, ino)?;
                Ok(Some(self.outcome(ino)))
            }
            Step::Link { from, to, node, victim, .. } => {
                let ino = self.expect(from, node)?;
                if self.inode(ino).kind.is_dir() {
                    return Err(MemError::WrongKind(from.clone()));
                }
                self.make_room(to, victim.as_ref())?;
                self.enter(to, ino)?;
                Ok(Some(self.outcome(ino)))
            }
            Step::Move { from, to, node, victim, .. } => self.shift(from, to, node, victim.as_ref()),
            Step::Park { from, node, .. } => self.shift(from, &Plan::parked(node), node, None),
            Step::Unpark { to, node, victim, .. } => {
                self.shift(&Plan::parked(node), to, node, victim.as_ref())
            }
            Step::Remove { at, victim } => {
                let ino = self.check_victim(at, victim)?;
                if !self.inode(ino).children.is_empty() {
                    return Err(MemError::NotEmpty(at.clone()));
                }
                self.drop_name(at)?;
                Ok(self.inodes.contains_key(&ino).then(|| self.outcome(ino)))
            }
            Step::SetAttrs { path, node, attrs, content, .. } => {
                let ino = match path {
                    Some(at) => self.expect(at, node)?,
                    None => self.ino(node)?,
                };
                self.set_attrs(ino, attrs.clone(), content.as_ref().map(Content::mtime));
                Ok(Some(self.outcome(ino)))
            }
            Step::Rebind { .. } => Ok(None),
        }
    }

    fn shift(
        &mut self,
        from: &At,
        to: &At,
        node: &NodeKey,
        victim: Option<&Victim>,
    ) -> Done<Option<Outcome>> {
        let ino = self.expect(from, node)?;
        let dir = self.dir(to)?;
        if self.inode(ino).kind.is_dir() && self.below(dir, ino) {
            return Err(MemError::BelowItself(to.clone()));
        }
        self.make_room(to, victim)?;
        self.inode_mut(ino).links += 1;
        self.drop_name(from)?;
        self.inode_mut(ino).links -= 1;
        self.enter(to, ino)?;
        Ok(Some(self.outcome(ino)))
    }

    // ----- what a user does, for tests

    /// Makes or overwrites a leaf or directory at a path below the root; parents must be there.
    pub fn user_make(&mut self, at: &At, kind: Kind, content: Option<Content>, attrs: Attrs) -> Done<Looked> {
        self.must_be_free(at)?;
        let ino = self.make(kind, content, attrs);
        self.enter(at, ino)?;
        Ok(self.look(ino))
    }

    /// Looks at an inode as the observer does.
    pub fn look_at(&self, key: &NodeKey) -> Done<Looked> {
        Ok(self.look(self.ino(key)?))
    }

    fn look(&self, ino: u64) -> Looked {
        let inode = self.inode(ino);
        Looked {
            key: key_of(ino),
            kind: inode.kind,
            fingerprint: self.fingerprint(ino),
            racy: false,
            attrs: self.given(ino),
            content: inode.content.clone(),
        }
    }

    /// Everything below the root: path -> what is there. Parked inodes are not below the root.
    pub fn walk(&self) -> BTreeMap<Vec<Name>, Seen> {
        let mut out = BTreeMap::new();
        let mut todo = vec![(Vec::new(), ROOT)];
        while let Some((path, ino)) = todo.pop() {
            for (name, child) in &self.inode(ino).children {
                let mut path: Vec<Name> = path.clone();
                path.push(name.clone());
                let inode = self.inode(*child);
                let seen = Seen {
                    node: key_of(*child),
                    kind: inode.kind,
                    content: inode.content.clone(),
                    attrs: self.given(*child),
                };
                out.insert(path.clone(), seen);
                todo.push((path, *child));
            }
        }
        out
    }

    /// Inodes that wait in the private directory.
    pub fn parked_count(&self) -> usize {
        self.inode(PARKED).children.len()
    }

    // ----- inodes

    fn make(&mut self, kind: Kind, content: Option<Content>, attrs: Attrs) -> u64 {
        let ino = self.next;
        self.next += 1;
        let mtime = content.as_ref().map(Content::mtime).or(attrs.dir_mtime).unwrap_or_default();
        let inode = Inode {
            kind,
            content,
            attrs: attrs.clone(),
            mtime,
            ctime: 0,
            children: BTreeMap::new(),
            links: 0,
        };
        self.inodes.insert(ino, inode);
        self.set_attrs(ino, attrs, Some(mtime));
        ino
    }

    fn set_attrs(&mut self, ino: u64, mut attrs: Attrs, mtime: Option<Time>) {
        if let Some((uid, gid)) = self.owner_forced {
            (attrs.uid, attrs.gid) = (uid, gid);
        }
        // Disks have no owner names.
        attrs.owner_names = None;
        let mtime = mtime.or(attrs.dir_mtime.take());
        attrs.dir_mtime = None;
        let inode = self.inode_mut(ino);
        inode.attrs = attrs;
        if let Some(mtime) = mtime {
            inode.mtime = mtime;
            inode.content = inode.content.take().map(|c| with_mtime(c, mtime));
        }
        self.change(ino);
    }

    fn change(&mut self, ino: u64) {
        self.clock += 1;
        let now = self.clock;
        self.inode_mut(ino).ctime = now;
    }

    fn given(&self, ino: u64) -> Attrs {
        let inode = self.inode(ino);
        let mut attrs = inode.attrs.clone();
        attrs.dir_mtime = inode.kind.is_dir().then_some(inode.mtime);
        attrs
    }

    fn fingerprint(&self, ino: u64) -> Fingerprint {
        let inode = self.inode(ino);
        let ctime = Time { sec: inode.ctime as i64, nsec: 0 };
        Fingerprint { size: inode.content.as_ref().map_or(0, Content::size), mtime: inode.mtime, ctime }
    }

    fn outcome(&self, ino: u64) -> Outcome {
        Outcome { node: key_of(ino), fingerprint: self.fingerprint(ino), given: self.given(ino) }
    }

    /// Only for inodes that exist: numbers come from `ino` or from names.
    fn inode(&self, ino: u64) -> &Inode {
        &self.inodes[&ino]
    }

    fn inode_mut(&mut self, ino: u64) -> &mut Inode {
        self.inodes.get_mut(&ino).unwrap_or_else(|| unreachable!("names lead to inodes"))
    }

    fn ino(&self, key: &NodeKey) -> Done<u64> {
        if Plan::is_parked_dir(key) {
            return Ok(PARKED);
        }
        if Plan::is_provisional(key) {
            return Err(MemError::Provisional(key.clone()));
        }
        let bytes = <[u8; 8]>::try_from(key.as_bytes()).map(u64::from_be_bytes);
        bytes.ok().filter(|i| self.inodes.contains_key(i)).ok_or_else(|| MemError::NoInode(key.clone()))
    }

    // ----- names

    fn dir(&self, at: &At) -> Done<u64> {
        let dir = self.ino(&at.dir)?;
        if self.inode(dir).kind.is_dir() { Ok(dir) } else { Err(MemError::WrongKind(at.clone())) }
    }

    fn find(&self, at: &At) -> Done<Option<u64>> {
        Ok(self.inode(self.dir(at)?).children.get(&at.name).copied())
    }

    fn expect(&self, at: &At, key: &NodeKey) -> Done<u64> {
        match self.find(at)? {
            None => Err(MemError::NotFound(at.clone())),
            Some(ino) if key_of(ino) == *key => Ok(ino),
            Some(_) => Err(MemError::Unexpected(at.clone())),
        }
    }

    fn must_be_free(&self, at: &At) -> Done {
        match self.find(at)? {
            None => Ok(()),
            Some(_) => Err(MemError::Exists(at.clone())),
        }
    }

    /// Size and modification time count; a change time may have moved with another name of the inode.
    fn check_victim(&self, at: &At, victim: &Victim) -> Done<u64> {
        let ino = self.expect(at, &victim.node)?;
        let now = self.fingerprint(ino);
        let inode = self.inode(ino);
        let same = (now.size, now.mtime) == (victim.fingerprint.size, victim.fingerprint.mtime);
        if inode.kind != victim.kind || (!inode.kind.is_dir() && !same) {
            return Err(MemError::Unexpected(at.clone()));
        }
        Ok(ino)
    }

    fn make_room(&mut self, at: &At, victim: Option<&Victim>) -> Done {
        let Some(victim) = victim else { return self.must_be_free(at) };
        let ino = self.check_victim(at, victim)?;
        if self.inode(ino).kind.is_dir() {
            return Err(MemError::WrongKind(at.clone()));
        }
        self.drop_name(at)
    }

    fn check_copy(&self, copy: Option<&NodeKey>, content: &Content) -> Done {
        let Some(key) = copy else { return Ok(()) };
        let held = self.inode(self.ino(key)?).content.as_ref().map(Content::identity);
        if held == Some(content.identity()) { Ok(()) } else { Err(MemError::NoInode(key.clone())) }
    }

    fn enter(&mut self, at: &At, ino: u64) -> Done {
        self.must_be_free(at)?;
        let dir = self.dir(at)?;
        self.inode_mut(dir).children.insert(at.name.clone(), ino);
        self.inode_mut(ino).links += 1;
        self.touch(dir);
        self.change(ino);
        Ok(())
    }

    fn drop_name(&mut self, at: &At) -> Done {
        let dir = self.dir(at)?;
        let Some(ino) = self.inode_mut(dir).children.remove(&at.name) else {
            return Err(MemError::NotFound(at.clone()));
        };
        self.touch(dir);
        self.change(ino);
        let inode = self.inode_mut(ino);
        inode.links -= 1;
        if inode.links == 0 {
            self.inodes.remove(&ino);
        }
        Ok(())
    }

    fn touch(&mut self, dir: u64) {
        self.change(dir);
        let now = Time { sec: 1 << 40, nsec: (self.clock % 1_000_000_000) as u32 };
        self.inode_mut(dir).mtime = now;
        self.touched.insert(dir);
    }

    /// True if directory `dir` is `top` or below it.
    fn below(&self, dir: u64, top: u64) -> bool {
        dir == top || self.inode(top).children.values().any(|c| self.below(dir, *c))
    }
}

fn key_of(ino: u64) -> NodeKey {
    // Eight bytes: a key.
    NodeKey::new(&ino.to_be_bytes()).unwrap_or_else(|| unreachable!())
}

fn with_mtime(content: Content, mtime: Time) -> Content {
    match content {
        Content::File { size, digest, .. } => Content::File { size, mtime, digest },
        Content::Symlink { target, .. } => Content::Symlink { target, mtime },
        Content::Special { rdev, .. } => Content::Special { rdev, mtime },
    }
}
