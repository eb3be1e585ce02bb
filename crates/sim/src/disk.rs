//! A POSIX file tree in memory: inodes that are never reused, directories, hard links.

use crate::memo::Versioned;
use driftless_core::local::Looked;
use driftless_core::{Attrs, Content, Digest, Fingerprint, Kind, Name, NodeKey, Time};
use std::collections::{BTreeMap, BTreeSet};

pub const ROOT: u64 = 1;
/// Where the planner parks inodes: no path leads here.
pub const PARKED: u64 = 2;

#[derive(Clone, Debug)]
pub struct Inode {
    pub kind: Kind,
    /// What a leaf holds.
    pub content: Option<Content>,
    pub mode: u32,
    /// A directory's modification time.
    pub mtime: Time,
    pub ctime: Time,
    pub names: BTreeMap<Name, u64>,
    /// False if a power cut may change what it holds.
    pub synced: bool,
}

#[derive(Clone, Debug)]
pub struct Disk {
    pub inodes: Versioned<BTreeMap<u64, Inode>>,
    /// Directories whose names changed, until somebody has seen to their times.
    pub touched: BTreeSet<u64>,
    pub now: Time,
    pub next: u64,
    /// Files that users have open for writing.
    pub open: BTreeSet<u64>,
    /// What plans took away while it was open.
    pub limbo: BTreeMap<u64, InLimbo>,
}

/// A file that a plan took away.
#[derive(Clone, Debug)]
pub struct InLimbo {
    pub inode: Inode,
    /// What it held then.
    pub held: Option<Digest>,
    /// Where it was.
    pub dir: u64,
    pub name: Name,
}

/// What one path shows, for comparisons.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    pub kind: Kind,
    pub identity: Option<Digest>,
    pub mode: u32,
    /// Directories only.
    pub dir_mtime: Option<Time>,
    /// An extra sibling, which shares the attributes of its entry.
    pub extra: bool,
    /// The first path (in order) of the same inode.
    pub first: Vec<Name>,
}

pub type Tree = BTreeMap<Vec<Name>, Seen>;

impl Disk {
    pub fn new() -> Disk {
        let inodes = Versioned::new(BTreeMap::new());
        let mut d = Disk {
            inodes,
            touched: BTreeSet::new(),
            now: Time::default(),
            next: ROOT,
            open: BTreeSet::new(),
            limbo: BTreeMap::new(),
        };
        d.new_inode(Kind::Dir, None, 0o755);
        d.new_inode(Kind::Dir, None, 0o700);
        d
    }

    pub fn new_inode(&mut self, kind: Kind, content: Option<Content>, mode: u32) -> u64 {
        let ino = self.next;
        self.next += 1;
        let ctime = Time { sec: ino as i64, nsec: 0 };
        let mtime = self.now;
        self.inodes
            .insert(ino, Inode { kind, content, mode, mtime, ctime, names: BTreeMap::new(), synced: true });
        ino
    }

    pub fn key(ino: u64) -> NodeKey {
        NodeKey::new(&ino.to_be_bytes()).unwrap()
    }

    pub fn ino(key: &NodeKey) -> u64 {
        // The planner's names for inodes that were never made are no numbers.
        key.as_bytes().try_into().map_or(0, u64::from_be_bytes)
    }

    pub fn looked(&self, ino: u64) -> Looked {
        let i = &self.inodes[&ino];
        let mtime = i.content.as_ref().map_or(i.mtime, Content::mtime);
        let size = i.content.as_ref().map_or(0, Content::size);
        Looked {
            key: Disk::key(ino),
            kind: i.kind,
            fingerprint: Fingerprint { size, mtime, ctime: i.ctime },
            racy: false,
            attrs: Attrs { mode: i.mode, dir_mtime: self.dir_mtime(ino), ..Attrs::default() },
            content: i.content.clone(),
        }
    }

    /// The root's attributes are nobody's here.
    pub fn dir_mtime(&self, ino: u64) -> Option<Time> {
        let inode = &self.inodes[&ino];
        (inode.kind.is_dir() && ino != ROOT).then_some(inode.mtime)
    }

    fn touch(&mut self, dir: u64) {
        self.inodes.get_mut(&dir).unwrap().mtime = self.now;
        self.touched.insert(dir);
    }

    pub fn get(&self, dir: u64, name: &Name) -> Option<u64> {
        self.inodes.get(&dir)?.names.get(name).copied()
    }

    pub fn put(&mut self, dir: u64, name: &Name, ino: u64) {
        self.inodes.get_mut(&dir).unwrap().names.insert(name.clone(), ino);
        self.touch(dir);
    }

    /// Takes a name away; the inode goes with its last one.
    pub fn take(&mut self, dir: u64, name: &Name) -> Option<u64> {
        let ino = self.inodes.get_mut(&dir)?.names.remove(name)?;
        self.touch(dir);
        if !self.inodes.values().any(|i| i.names.values().any(|x| *x == ino)) {
            self.inodes.remove(&ino);
        }
        Some(ino)
    }

    /// As [`Disk::take`], by a plan: an inode that somebody may write to stays in limbo.
    pub fn retire(&mut self, dir: u64, name: &Name) {
        let Some(ino) = self.get(dir, name) else { return };
        let inode = self.inodes.get(&ino).filter(|_| self.open.contains(&ino)).cloned();
        self.take(dir, name);
        if let Some(inode) = inode.filter(|_| !self.inodes.contains_key(&ino)) {
            let held = inode.content.as_ref().map(Content::identity);
            self.limbo.insert(ino, InLimbo { inode, held, dir, name: name.clone() });
        }
    }

    /// True if a path leads to the inode.
    pub fn is_in_tree(&self, ino: u64) -> bool {
        let dirs = self.inodes.iter().filter(|(dir, _)| **dir != PARKED);
        dirs.flat_map(|(_, inode)| inode.names.values()).any(|found| *found == ino)
    }

    /// Moves a name, over what is there.
    pub fn rename(&mut self, from: (u64, &Name), to: (u64, &Name)) {
        let ino = self.get(from.0, from.1).unwrap();
        self.take(to.0, to.1);
        self.put(to.0, to.1, ino);
        self.inodes.get_mut(&from.0).unwrap().names.remove(from.1);
        self.touch(from.0);
    }

    pub fn is_empty(&self, dir: u64) -> bool {
        self.inodes[&dir].names.is_empty()
    }

    pub fn is_dir(&self, ino: u64) -> bool {
        self.inodes[&ino].kind.is_dir()
    }

    /// True if `dir` is `ino` or below it.
    pub fn is_below(&self, dir: u64, ino: u64) -> bool {
        dir == ino || self.inodes[&ino].names.values().any(|c| self.is_dir(*c) && self.is_below(dir, *c))
    }

    /// All paths, directories before what is in them.
    pub fn paths(&self) -> Vec<(Vec<Name>, u64)> {
        let mut out = Vec::new();
        self.walk(ROOT, &mut Vec::new(), &mut out);
        out
    }

    fn walk(&self, dir: u64, path: &mut Vec<Name>, out: &mut Vec<(Vec<Name>, u64)>) {
        for (name, ino) in &self.inodes[&dir].names {
            path.push(name.clone());
            out.push((path.clone(), *ino));
            if self.is_dir(*ino) {
                self.walk(*ino, path, out);
            }
            path.pop();
        }
    }

    pub fn tree(&self) -> Tree {
        let mut first = BTreeMap::new();
        let mut out = Tree::new();
        let mut paths = self.paths();
        paths.sort();
        for (path, ino) in paths {
            let i = &self.inodes[&ino];
            let first = first.entry(ino).or_insert_with(|| path.clone()).clone();
            let identity = i.content.as_ref().map(Content::identity);
            let dir_mtime = self.dir_mtime(ino);
            out.insert(path, Seen { kind: i.kind, identity, mode: i.mode, dir_mtime, extra: false, first });
        }
        out
    }

    /// True if the planner has put something out of the way.
    pub fn has_parked(&self) -> bool {
        !self.inodes[&PARKED].names.is_empty()
    }

    pub fn identities(&self) -> std::collections::BTreeSet<Digest> {
        self.inodes.values().filter_map(|i| i.content.as_ref().map(Content::identity)).collect()
    }
}
