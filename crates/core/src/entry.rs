//! An entry's state and its merge: commutative, associative, idempotent.
//!
//! Rules: data is a dotted set of sibling versions with `ctx` as causal context; each name (link)
//! holds a last-writer-wins [`At`] beside a grow-only vector `gone`; removals only take what their
//! author had seen. (Dotted version vectors: Preguiça et al., "Dotted Version Vectors: Logical
//! Clocks for Optimistic Replication"; the name rules are our own.)

use crate::id::{Dot, EntryId, Kind, LinkId, Name, Stamp};
use crate::meta::{Attrs, Content, Time};
use crate::mutant::mutant;
use crate::vv::VersionVector;
use smallvec::SmallVec;

/// The mergeable state of one entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Birth dot.
    pub id: EntryId,
    /// Never changes.
    pub kind: Kind,
    /// All dots that ever touched the entry; the context of `data`; what is compared with knowledge.
    pub ctx: VersionVector,
    /// What removals have taken away. Grow-only.
    pub removed: VersionVector,
    /// Sibling versions, sorted by dot. Always empty for directories.
    pub data: SmallVec<[Version; 1]>,
    /// Names, sorted by id. A directory has exactly one.
    pub links: SmallVec<[Link; 1]>,
    /// Attributes with the stamp that chose them; a directory's time is not among them.
    pub meta: (Stamp, Attrs),
    /// Directories only: modification time with the stamp that chose it. Greatest stamp wins, then greatest time. It
    /// changes far more often than the attributes, so it neither wins over a concurrent change of those nor conflicts.
    pub dir_time: Option<(Stamp, Time)>,
    /// Directories only: for each parent ever had, the newest stamp of an `At` there; sorted by parent.
    pub hist: Vec<(EntryId, Stamp)>,
}

/// One version of an entry's content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Version {
    /// The change that made it.
    pub dot: Dot,
    /// Chooses among siblings.
    pub stamp: Stamp,
    /// What it is.
    pub content: Content,
}

/// One name of an entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// The change that made the name.
    pub id: LinkId,
    /// Where it is; greatest stamp wins.
    pub at: At,
    /// Dots of `At`s (and contexts) that removals of this name had seen. Grow-only.
    pub gone: VersionVector,
}

/// Where a name is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct At {
    /// Chooses among concurrent moves.
    pub stamp: Stamp,
    /// The change that put it here.
    pub dot: Dot,
    /// The directory.
    pub parent: EntryId,
    /// The name in it.
    pub name: Name,
    /// The version that the author had on disk; [`Dot::default`] for directories.
    pub holds: Dot,
}

impl Link {
    /// True if nobody who had seen the name where it is has removed it.
    pub fn present(&self) -> bool {
        if mutant!(RemovalIgnoresSeen) {
            return self.gone.is_empty();
        }
        !self.gone.covers(self.at.dot)
    }
}

impl Entry {
    /// The link with this id.
    pub fn link(&self, id: LinkId) -> Option<&Link> {
        self.links.iter().find(|l| l.id == id)
    }

    /// The link with this id, to change.
    pub fn link_mut(&mut self, id: LinkId) -> Option<&mut Link> {
        self.links.iter_mut().find(|l| l.id == id)
    }

    /// Names that are present.
    pub fn present_links(&self) -> impl Iterator<Item = &Link> {
        self.links.iter().filter(|l| l.present())
    }

    /// The version with this dot.
    pub fn version(&self, dot: Dot) -> Option<&Version> {
        self.data.iter().find(|v| v.dot == dot)
    }

    /// True if the version counts: not removed, or held by a present name.
    pub fn counts(&self, v: &Version) -> bool {
        let held = || !mutant!(HeldVersionForgotten) && self.present_links().any(|l| l.at.holds == v.dot);
        !self.removed.covers(v.dot) || held()
    }

    /// Versions that count.
    pub fn counting(&self) -> impl Iterator<Item = &Version> {
        self.data.iter().filter(|v| self.counts(v))
    }

    /// The counting version with the greatest (stamp, dot).
    pub fn winner(&self) -> Option<&Version> {
        self.counting().max_by_key(|v| (v.stamp, v.dot))
    }

    /// Names under which a leaf is shown: the present ones if a version counts; else, if a version
    /// counts and no name is present, the one with the greatest stamp. Nothing for directories.
    pub fn shown_links(&self) -> SmallVec<[&Link; 1]> {
        if self.kind.is_dir() || self.counting().next().is_none() {
            return SmallVec::new();
        }
        let present: SmallVec<[&Link; 1]> = self.present_links().collect();
        if !present.is_empty() {
            return present;
        }
        self.links.iter().max_by_key(|l| (l.at.stamp, l.id)).into_iter().collect()
    }

    /// A directory's only link. `None` only for malformed states.
    pub fn dir_link(&self) -> Option<&Link> {
        self.links.first()
    }

    /// The attributes as a disk is to have them: a directory's time among them.
    pub fn attrs(&self) -> Attrs {
        Attrs { dir_mtime: self.dir_time.map(|t| t.1), ..self.meta.1.clone() }
    }

    /// The greatest stamp anywhere in the entry: every new stamp must be above it.
    pub fn stamp_max(&self) -> Stamp {
        let data = self.data.iter().map(|v| v.stamp);
        let links = self.links.iter().map(|l| l.at.stamp);
        let hist = self.hist.iter().map(|h| h.1);
        let time = self.dir_time.map(|t| t.0);
        data.chain(links).chain(hist).chain([self.meta.0]).chain(time).max().unwrap_or(Stamp::MIN)
    }

    /// Notes in `hist` that the directory was put below `parent` at `stamp`.
    pub fn note_hist(&mut self, parent: EntryId, stamp: Stamp) {
        match self.hist.binary_search_by_key(&parent, |h| h.0) {
            Ok(i) => self.hist[i].1 = self.hist[i].1.max(stamp),
            Err(i) => self.hist.insert(i, (parent, stamp)),
        }
    }

    /// Joins `other`, a state of the same entry, into this one. True if this one changed.
    ///
    /// States of one id with different kinds cannot come from correct replicas; the kind with the
    /// smaller code wins, so that even then all agree.
    pub fn merge(&mut self, other: &Entry) -> bool {
        debug_assert_eq!(self.id, other.id);
        let before = self.clone();
        self.kind = self.kind.min(other.kind);
        self.data = merge_data(self, other);
        for theirs in &other.links {
            match self.links.binary_search_by_key(&theirs.id, |l| l.id) {
                Ok(i) => {
                    let ours = &mut self.links[i];
                    let by_arrival = mutant!(WrongTieBreak) && theirs.at.stamp.epoch >= ours.at.stamp.epoch;
                    if by_arrival || (theirs.at.stamp, theirs.at.dot) > (ours.at.stamp, ours.at.dot) {
                        ours.at = theirs.at.clone();
                    }
                    if !mutant!(GoneNotJoined) {
                        ours.gone.join(&theirs.gone);
                    }
                }
                Err(i) => self.links.insert(i, theirs.clone()),
            }
        }
        if mutant!(MetaByArrival) || meta_rank(&other.meta) > meta_rank(&self.meta) {
            self.meta = other.meta.clone();
        }
        if !mutant!(DirTimeForgotten) {
            self.dir_time = self.dir_time.max(other.dir_time);
        }
        for &(parent, stamp) in other.hist.iter().filter(|_| !mutant!(HistoryForgotten)) {
            self.note_hist(parent, stamp);
        }
        self.ctx.join(&other.ctx);
        if !mutant!(RemovedNotJoined) {
            self.removed.join(&other.removed);
        }
        *self != before
    }
}

/// Equal stamps come only from one author's one change; the attributes are compared as well so that
/// even a broken author cannot make replicas differ for ever.
fn meta_rank(m: &(Stamp, Attrs)) -> impl Ord {
    (m.0, m.1.mode, m.1.uid, m.1.gid, &m.1.xattrs, &m.1.owner_names)
}

/// A version stays if both sides have it or the other side has not seen it.
fn merge_data(a: &Entry, b: &Entry) -> SmallVec<[Version; 1]> {
    let mut out: SmallVec<[Version; 1]> = SmallVec::new();
    let keep = |v: &Version, other: &Entry| other.version(v.dot).is_some() || !other.ctx.covers(v.dot);
    out.extend(a.data.iter().filter(|v| keep(v, b)).cloned());
    out.extend(b.data.iter().filter(|v| a.version(v.dot).is_none() && keep(v, a)).cloned());
    if mutant!(LastWriterWins) {
        let newest = out.iter().map(|v| v.stamp).max();
        out.retain(|v| Some(v.stamp) == newest);
    }
    out.sort_by_key(|v| v.dot);
    out
}

#[cfg(test)]
mod tests;
