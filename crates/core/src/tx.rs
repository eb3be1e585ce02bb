//! One transaction on the index: typed rows over a snapshot, with everything that was changed kept
//! aside until [`Tx::into_batch`] gives the batch for one atomic durable commit.
//!
//! Slots: an entry's row key is `(interned replica, n)` of its birth dot packed into 64 bits. Births
//! are numbered in crawl order, so neighbours in a tree are neighbours in the tables, and no table
//! is needed to go from id to slot.

mod cache;
mod contents;
mod overlay;
mod recorded;

use crate::codec::{Decoder, Encoder, Intern, Malformed, ReplicaTable, Resolve, well_formed};
use crate::disk::{Node, NodeKey, Place};
use crate::entry::Entry;
use crate::id::{Dot, EntryId, Name, ReplicaId, Stamp};
use crate::mutant::mutant;
use crate::rows::{Batch, Read, StoreError, Table};
use crate::vv::VersionVector;
use cache::Cache;
pub(crate) use cache::{FastMap, FastSet};
pub use contents::CONTENT_LEN_MIN;
use overlay::Overlay;
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Why a transaction could not go on. Nothing of it has any effect then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store failed.
    #[error("index: {0}")]
    Store(#[from] StoreError),
    /// A row is not what it should be: the index is damaged.
    #[error("index is damaged: table {table}: {source}")]
    Damaged {
        /// Where.
        table: &'static str,
        /// What.
        source: Malformed,
    },
    /// A rule of the index is broken: a row that must be there is not, or contradicts another.
    #[error("index is inconsistent: {0}")]
    Inconsistent(String),
}

/// Result of reads and changes of the index.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An entry with what only this replica knows of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EntryRow {
    /// Its position in this replica's feed.
    pub n: u64,
    /// Inodes on this disk that stand for it.
    pub bound: SmallVec<[NodeKey; 1]>,
    /// The state.
    pub entry: Entry,
}

/// What the effective tree keeps for a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DirState {
    /// Shown files and live directories below it (by effective parent).
    pub live_children: u64,
    /// The parent it is shown below instead of the stored one (cycle repair).
    pub repaired: Option<EntryId>,
}

/// What is known about a replica's changes: all up to `n`, which that replica's commit `tag` made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Known {
    /// Up to here.
    pub n: u64,
    /// The tag of the commit of that replica that ends at (or first after) `n`.
    pub tag: u64,
}

/// Knowledge: replica -> [`Known`].
pub type Knowledge = BTreeMap<ReplicaId, Known>;

/// The vector of a knowledge, without tags.
pub fn knowledge_vv(k: &Knowledge) -> VersionVector {
    k.iter().map(|(r, k)| (*r, k.n)).collect()
}

/// What a transaction needs from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Env {
    /// Wall clock, nanoseconds since 1970.
    pub now_ns: u64,
    /// Ownership epoch of this replica.
    pub epoch: u64,
}

/// Rows that a transaction left behind when it was committed: what follows mostly reads them again. Holds only if
/// nothing was committed between.
#[derive(Default)]
pub struct Warm {
    entries: Cache<EntryId, EntryRow>,
    nodes: Cache<NodeKey, Node>,
    names: Names,
}

/// A key of the places: short enough in nearly all cases to need no memory of its own.
pub(crate) type PlaceKey = SmallVec<[u8; 64]>;

/// Entries at names of directories, before grouping.
type Names = FastMap<(EntryId, Name), SmallVec<[EntryId; 2]>>;

/// Names whose entries are remembered. All can be found again from rows, so there is nothing to lose.
const NAMES_MAX: usize = 4096;

/// A transaction. Reads see its own changes.
pub struct Tx<'a> {
    base: &'a dyn Read,
    warm: Option<Arc<Warm>>,
    /// Time and epoch for new stamps.
    pub env: Env,
    me: ReplicaId,
    next_n: u64,
    next_n_before: u64,
    /// Feed positions that are new dots, in ascending ranges.
    new_dots: Vec<std::ops::Range<u64>>,
    replicas: ReplicaTable,
    replicas_before: usize,
    entries: Cache<EntryId, EntryRow>,
    nodes: Cache<NodeKey, Node>,
    /// By the keys of their rows.
    places: Cache<PlaceKey, Place>,
    names: Names,
    dirs: Cache<EntryId, DirState>,
    /// Directories with no row in `dirs` of the base: nothing is shown below them there.
    bare: FastSet<EntryId>,
    /// Rows without a typed cache, and those of entries once they are flushed.
    rows: Overlay,
    /// Directory classes that the effective tree has worked out; it empties this when directories change.
    pub(crate) classes: FastMap<EntryId, Arc<[EntryId]>>,
}

const SETTING_ME: &[u8] = b"replica";
const SETTING_NEXT: &[u8] = b"feed_next";
const SETTING_ROOT: &[u8] = b"root_node";

impl<'a> Tx<'a> {
    /// Opens a transaction on an index that [`Tx::create`] has set up.
    pub fn open(base: &'a dyn Read, env: Env) -> Result<Tx<'a>> {
        let me = match base.get(Table::Settings, SETTING_ME)? {
            Some(b) => ReplicaId(dec(Table::Settings, &b, |d| d.fixed64())?),
            None => return Err(Error::Inconsistent("the index has no replica id".into())),
        };
        let next_n = match base.get(Table::Settings, SETTING_NEXT)? {
            Some(b) => dec(Table::Settings, &b, |d| d.fixed64())?,
            None => 1,
        };
        let mut known = Vec::new();
        for (_, v) in base.scan(Table::Replicas, &[], None, usize::from(u16::MAX))? {
            known.push(ReplicaId(dec(Table::Replicas, &v, |d| d.fixed64())?));
        }
        let replicas = ReplicaTable::with(known);
        let replicas_before = replicas.replicas().len();
        Ok(Tx {
            base,
            warm: None,
            env,
            me,
            next_n,
            next_n_before: next_n,
            new_dots: Vec::new(),
            replicas,
            replicas_before,
            entries: Cache::default(),
            nodes: Cache::default(),
            places: Cache::default(),
            names: Names::default(),
            dirs: Cache::default(),
            bare: FastSet::default(),
            rows: Overlay::default(),
            classes: FastMap::default(),
        })
    }

    /// As [`Tx::open`], right after the commit that `warm` was left by.
    pub fn open_warm(base: &'a dyn Read, env: Env, warm: Arc<Warm>) -> Result<Tx<'a>> {
        Ok(Tx { warm: Some(warm), ..Tx::open(base, env)? })
    }

    /// The batch that makes an empty store the index of replica `me`.
    pub fn create(me: ReplicaId) -> Batch {
        let mut rows = Batch::new();
        rows.insert((Table::Settings, SETTING_ME.to_vec()), Some(me.0.to_be_bytes().to_vec()));
        rows.insert((Table::Settings, SETTING_NEXT.to_vec()), Some(1u64.to_be_bytes().to_vec()));
        rows
    }

    /// The replica that this index belongs to.
    pub fn me(&self) -> ReplicaId {
        self.me
    }

    /// True if `base` holds the index of some replica.
    pub fn exists(base: &dyn Read) -> Result<bool> {
        Ok(base.get(Table::Settings, SETTING_ME)?.is_some())
    }

    // ----- feed and dots

    /// The last feed position given out, 0 if none.
    pub fn head(&self) -> u64 {
        self.next_n - 1
    }

    /// A fresh dot for a local change, which is also the feed position of the entry that takes it.
    pub fn new_dot(&mut self) -> Dot {
        let n = self.take_n();
        match self.new_dots.last_mut() {
            Some(range) if range.end == n => range.end += 1,
            _ => self.new_dots.push(n..n + 1),
        }
        Dot::new(self.me, n)
    }

    /// A fresh feed position without a change (for merged states).
    pub fn take_n(&mut self) -> u64 {
        self.next_n += 1;
        self.next_n - 1
    }

    /// True if this transaction made dots.
    pub fn has_new_dots(&self) -> bool {
        !self.new_dots.is_empty()
    }

    /// A stamp of this replica above `seen`.
    pub fn stamp_above(&self, seen: Stamp) -> Stamp {
        let seen = if mutant!(StampBelowSeen) { Stamp::MIN } else { seen };
        Stamp::above(seen, self.env.epoch, self.env.now_ns, self.me)
    }

    /// At most `limit` feed rows with a position above `after`.
    pub fn feed_after(&mut self, after: u64, limit: usize) -> Result<Vec<(u64, EntryId)>> {
        let from = after.saturating_add(1).to_be_bytes();
        let rows = self.scan(Table::Feed, &from, None, limit)?;
        rows.into_iter()
            .map(|(k, v)| Ok((dec(Table::Feed, &k, |d| d.fixed64())?, self.unslot(Table::Feed, &v)?)))
            .collect()
    }

    // ----- entries

    /// The row of an entry.
    pub fn entry(&mut self, id: EntryId) -> Result<Option<Arc<EntryRow>>> {
        if let Some(known) = self.entries.get(&id) {
            return Ok(known);
        }
        if let Some(Some(known)) = self.warm.as_ref().and_then(|w| w.entries.get(&id)) {
            self.entries.note(id, Some(known.clone()));
            return Ok(Some(known));
        }
        if self.is_newborn(id) {
            return Ok(None);
        }
        let Some(key) = self.find_slot(id) else { return Ok(None) };
        let value = match self.base.get(Table::Entries, &key)? {
            Some(b) => Some(Arc::new(self.decode_entry_row(&b)?)),
            None => None,
        };
        self.entries.note(id, value.clone());
        Ok(value)
    }

    /// The row of an entry that must exist.
    pub fn entry_must(&mut self, id: EntryId) -> Result<Arc<EntryRow>> {
        self.entry(id)?.ok_or_else(|| Error::Inconsistent(format!("entry {id} is missing")))
    }

    /// Decodes an entry row as the `entries` table holds it.
    pub fn decode_entry_row(&self, b: &[u8]) -> Result<EntryRow> {
        dec(Table::Entries, b, |d| {
            let n = d.uint()?;
            let count = d.count(2)?;
            let mut bound = SmallVec::with_capacity(count);
            for _ in 0..count {
                bound.push(d.node_key()?);
            }
            Ok(EntryRow { n, bound, entry: d.entry(&self.replicas)? })
        })
    }

    /// Stores the row; moves the feed row if its position changed. Maintains nothing else: states
    /// are changed through the effective tree's functions.
    pub fn put_entry(&mut self, row: EntryRow) -> Result<()> {
        debug_assert!(well_formed(&row.entry), "{:?} could not be read again", row.entry);
        let id = row.entry.id;
        let old = self.entry(id)?.map(|old| old.n);
        if old != Some(row.n) {
            if let Some(old) = old {
                self.rows.put(Table::Feed, old.to_be_bytes().to_vec(), None);
            }
            let slot = self.slot(id).to_vec();
            self.rows.put(Table::Feed, row.n.to_be_bytes().to_vec(), Some(slot));
        }
        self.entries.put(id, Some(Arc::new(row)));
        Ok(())
    }

    /// Removes the row and its feed row (tombstone collection).
    pub fn delete_entry(&mut self, id: EntryId) -> Result<()> {
        if let Some(old) = self.entry(id)? {
            self.rows.put(Table::Feed, old.n.to_be_bytes().to_vec(), None);
            self.entries.put(id, None);
        }
        Ok(())
    }

    // ----- names of the effective tree

    /// Shows `entry` below `parent` as `name` (before grouping).
    pub fn add_name(&mut self, parent: EntryId, name: &Name, entry: EntryId) {
        let key = self.name_key(parent, name, entry);
        self.rows.put(Table::Names, key, Some(Vec::new()));
        self.names.remove(&(parent, name.clone()));
    }

    /// Undoes [`Tx::add_name`].
    pub fn remove_name(&mut self, parent: EntryId, name: &Name, entry: EntryId) {
        let key = self.name_key(parent, name, entry);
        self.rows.put(Table::Names, key, None);
        self.names.remove(&(parent, name.clone()));
    }

    /// Entries shown below `parent` as `name`, before grouping.
    pub fn names_at(&mut self, parent: EntryId, name: &Name) -> Result<SmallVec<[EntryId; 2]>> {
        let spot = (parent, name.clone());
        if let Some(known) = self.names.get(&spot) {
            return Ok(known.clone());
        }
        let found = match self.warm.as_ref().and_then(|w| w.names.get(&spot)) {
            // A name that this transaction has changed is among its rows.
            Some(known) if !self.rows.has(Table::Names) => known.clone(),
            _ => self.read_names_at(parent, name)?,
        };
        if self.names.len() >= NAMES_MAX {
            self.names.clear();
        }
        self.names.insert(spot, found.clone());
        Ok(found)
    }

    fn read_names_at(&mut self, parent: EntryId, name: &Name) -> Result<SmallVec<[EntryId; 2]>> {
        let mut from: SmallVec<[u8; 64]> = SmallVec::from_slice(&self.slot(parent));
        from.extend_from_slice(name.as_bytes());
        from.push(0);
        let mut to = from.clone();
        // The terminator 0 plus one: the first key after all with this name.
        if let Some(last) = to.last_mut() {
            *last = 1;
        }
        let rows = self.rows.scan(self.base_about(parent), Table::Names, &from, Some(&to), usize::MAX)?;
        rows.iter().map(|(k, _)| self.unslot(Table::Names, &k[k.len().saturating_sub(8)..])).collect()
    }

    /// At most `limit` (name, entry) pairs below `parent`, after the pair `after`, ordered by name.
    pub fn names_in(
        &mut self,
        parent: EntryId,
        after: Option<(&Name, EntryId)>,
        limit: usize,
    ) -> Result<Vec<(Name, EntryId)>> {
        let start = self.slot(parent);
        let from = match after {
            Some((name, entry)) => {
                let mut k = self.name_key(parent, name, entry);
                k.push(0);
                k
            }
            None => start.to_vec(),
        };
        let to = successor(&start);
        let rows = self.scan(Table::Names, &from, to.as_deref(), limit)?;
        let mut out = Vec::with_capacity(rows.len());
        for (k, _) in rows {
            let Some(name_end) = k.len().checked_sub(9).filter(|e| *e >= 8) else {
                return Err(damaged(Table::Names, Malformed { what: "name key", at: 0 }));
            };
            let name = Name::new(&k[8..name_end])
                .map_err(|_| damaged(Table::Names, Malformed { what: "name", at: 8 }))?;
            out.push((name, self.unslot(Table::Names, &k[name_end + 1..])?));
        }
        Ok(out)
    }

    // ----- directories of the effective tree

    /// Tree state of a directory.
    pub fn dir(&mut self, id: EntryId) -> Result<DirState> {
        if let Some(known) = self.dirs.get(&id) {
            return Ok(known.as_deref().copied().unwrap_or_default());
        }
        let value = match self.find_slot(id).filter(|_| !self.is_newborn(id)) {
            None => None,
            Some(key) => match self.base.get(Table::Dirs, &key)? {
                None => None,
                Some(b) => Some(dec(Table::Dirs, &b, |d| {
                    let live_children = d.uint()?;
                    let repaired = match d.u8()? {
                        0 => None,
                        _ => Some(EntryId(d.dot(&self.replicas)?)),
                    };
                    Ok(DirState { live_children, repaired })
                })?),
            },
        };
        if value.is_none() && !self.is_newborn(id) {
            if self.bare.len() >= NAMES_MAX {
                self.bare.clear();
            }
            self.bare.insert(id);
        }
        self.dirs.note(id, value.map(Arc::new));
        Ok(value.unwrap_or_default())
    }

    /// Stores the tree state of a directory; the default state is no row.
    pub fn put_dir(&mut self, id: EntryId, state: DirState) {
        let value = (state != DirState::default()).then(|| Arc::new(state));
        self.dirs.put(id, value);
    }

    /// Notes that directory `child` has stored parent `parent`.
    pub fn add_dir_kid(&mut self, parent: EntryId, child: EntryId) {
        let key = [self.slot(parent), self.slot(child)].concat();
        self.rows.put(Table::DirKids, key, Some(Vec::new()));
    }

    /// Undoes [`Tx::add_dir_kid`].
    pub fn remove_dir_kid(&mut self, parent: EntryId, child: EntryId) {
        let key = [self.slot(parent), self.slot(child)].concat();
        self.rows.put(Table::DirKids, key, None);
    }

    /// Directories, dead ones too, with stored parent `parent`.
    pub fn dir_kids(&mut self, parent: EntryId) -> Result<Vec<EntryId>> {
        let start = self.slot(parent);
        let rows = self.scan(Table::DirKids, &start, successor(&start).as_deref(), usize::MAX)?;
        rows.iter().map(|(k, _)| self.unslot(Table::DirKids, &k[8.min(k.len())..])).collect()
    }

    /// True if the directory is marked by [`Tx::set_unrooted`].
    pub fn is_unrooted(&self, id: EntryId) -> Result<bool> {
        match self.find_slot(id) {
            Some(key) => Ok(self.get(Table::Unrooted, &key)?.is_some()),
            None => Ok(false),
        }
    }

    /// True if some directory is marked by [`Tx::set_unrooted`].
    pub fn any_unrooted(&self) -> Result<bool> {
        Ok(!self.scan(Table::Unrooted, &[], None, 1)?.is_empty())
    }

    /// Marks a directory as not reaching the root by stored parents.
    pub fn set_unrooted(&mut self, id: EntryId, unrooted: bool) {
        let key = self.slot(id).to_vec();
        self.rows.put(Table::Unrooted, key, unrooted.then(Vec::new));
    }

    /// All directories marked by [`Tx::set_unrooted`].
    pub fn unrooted(&mut self) -> Result<Vec<EntryId>> {
        let rows = self.scan(Table::Unrooted, &[], None, usize::MAX)?;
        rows.iter().map(|(k, _)| self.unslot(Table::Unrooted, k)).collect()
    }

    // ----- the disk

    /// The node of the volume's root directory, once it has been looked at. The root has no entry row
    /// that could be bound to it.
    pub fn root_node(&self) -> Result<Option<NodeKey>> {
        match self.get(Table::Settings, SETTING_ROOT)? {
            Some(b) => Ok(Some(dec(Table::Settings, &b, |d| d.node_key())?)),
            None => Ok(None),
        }
    }

    /// Says which node is the root directory.
    pub fn set_root_node(&mut self, key: &NodeKey) {
        let mut e = Encoder::new();
        e.bytes(key.as_bytes());
        self.rows.put(Table::Settings, SETTING_ROOT.to_vec(), Some(e.buf));
    }

    /// An inode we know.
    pub fn node(&mut self, key: &NodeKey) -> Result<Option<Arc<Node>>> {
        if let Some(known) = self.nodes.get(key) {
            return Ok(known);
        }
        if let Some(Some(known)) = self.warm.as_ref().and_then(|w| w.nodes.get(key)) {
            self.nodes.note(key.clone(), Some(known.clone()));
            return Ok(Some(known));
        }
        let value = match self.base.get(Table::Nodes, key.as_bytes())? {
            Some(b) => Some(Arc::new(dec(Table::Nodes, &b, |d| d.node(&self.replicas))?)),
            None => None,
        };
        self.nodes.note(key.clone(), value.clone());
        Ok(value)
    }

    /// An inode that must be known.
    pub fn node_must(&mut self, key: &NodeKey) -> Result<Arc<Node>> {
        self.node(key)?.ok_or_else(|| Error::Inconsistent(format!("node {key:?} is missing")))
    }

    /// Stores an inode record.
    pub fn put_node(&mut self, key: &NodeKey, node: Node) {
        self.note_content(key, Some(&node));
        self.nodes.put(key.clone(), Some(Arc::new(node)));
    }

    /// Forgets an inode.
    pub fn delete_node(&mut self, key: &NodeKey) {
        self.note_content(key, None);
        self.nodes.put(key.clone(), None);
    }

    /// What the path `name` in directory `dir` was materialised with.
    pub fn place(&mut self, dir: &NodeKey, name: &Name) -> Result<Option<Arc<Place>>> {
        let key = place_key(dir, name);
        if let Some(known) = self.places.get(&key) {
            return Ok(known);
        }
        let value = match self.base.get(Table::Places, &key)? {
            Some(b) => Some(Arc::new(dec(Table::Places, &b, |d| d.place(&self.replicas))?)),
            None => None,
        };
        self.places.note(key, value.clone());
        Ok(value)
    }

    /// Stores a place.
    pub fn put_place(&mut self, dir: &NodeKey, name: &Name, place: Place) {
        self.places.put(place_key(dir, name), Some(Arc::new(place)));
    }

    /// Forgets a place.
    pub fn delete_place(&mut self, dir: &NodeKey, name: &Name) {
        self.places.put(place_key(dir, name), None);
    }

    /// At most `limit` places in directory `dir` with a name after `after`, ordered by name.
    pub fn places_in(
        &mut self,
        dir: &NodeKey,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<Vec<(Name, Place)>> {
        let start = place_prefix(dir);
        let from = match after {
            Some(name) => {
                let mut k = place_key(dir, name);
                k.push(0);
                k
            }
            None => start.clone(),
        };
        self.flush_places();
        let rows = self.scan(Table::Places, &from, successor(&start).as_deref(), limit)?;
        let mut out = Vec::with_capacity(rows.len());
        for (k, v) in rows {
            let name = Name::new(&k[start.len()..])
                .map_err(|_| damaged(Table::Places, Malformed { what: "name", at: start.len() }))?;
            out.push((name, dec(Table::Places, &v, |d| d.place(&self.replicas))?));
        }
        Ok(out)
    }

    /// All places in directory `dir` whose names begin with `prefix`, ordered by name.
    pub fn places_beginning(&mut self, dir: &NodeKey, prefix: &[u8]) -> Result<Vec<(Name, Place)>> {
        let skip = place_prefix(dir).len();
        let from = [&place_prefix(dir)[..], prefix].concat();
        self.flush_places();
        let rows = self.scan(Table::Places, &from, successor(&from).as_deref(), usize::MAX)?;
        let mut out = Vec::with_capacity(rows.len());
        for (k, v) in rows {
            let name = Name::new(&k[skip..])
                .map_err(|_| damaged(Table::Places, Malformed { what: "name", at: skip }))?;
            out.push((name, dec(Table::Places, &v, |d| d.place(&self.replicas))?));
        }
        Ok(out)
    }

    // ----- knowledge

    /// What this replica knows.
    pub fn knowledge(&mut self) -> Result<Knowledge> {
        let mut out = Knowledge::new();
        for (k, v) in self.scan(Table::Knowledge, &[], None, usize::MAX)? {
            let r = ReplicaId(dec(Table::Knowledge, &k, |d| d.fixed64())?);
            out.insert(r, dec(Table::Knowledge, &v, |d| Ok(Known { n: d.uint()?, tag: d.fixed64()? }))?);
        }
        Ok(out)
    }

    /// Sets what is known of one replica.
    pub fn set_known(&mut self, replica: ReplicaId, known: Known) {
        let mut e = Encoder::new();
        e.uint(known.n);
        e.fixed64(known.tag);
        self.rows.put(Table::Knowledge, replica.0.to_be_bytes().to_vec(), Some(e.buf));
    }

    // ----- pending, and rows that others encode

    /// Asks the planner to look at `entry` (again), beside what the feed tells it.
    pub fn add_pending(&mut self, entry: EntryId) {
        if mutant!(PendingNotMarked) {
            return;
        }
        let key = self.slot(entry).to_vec();
        self.rows.put(Table::Pending, key, Some(Vec::new()));
    }

    /// Undoes [`Tx::add_pending`].
    pub fn remove_pending(&mut self, entry: EntryId) {
        let key = self.slot(entry).to_vec();
        self.rows.put(Table::Pending, key, None);
    }

    /// At most `limit` pending entries.
    pub fn pending(&mut self, limit: usize) -> Result<Vec<EntryId>> {
        let rows = self.scan(Table::Pending, &[], None, limit)?;
        rows.iter().map(|(k, _)| self.unslot(Table::Pending, k)).collect()
    }

    /// Entries that this transaction has made pending.
    pub fn new_pending(&self) -> Result<Vec<EntryId>> {
        self.rows.stored(Table::Pending).map(|k| self.unslot(Table::Pending, k)).collect()
    }

    /// A raw row of a table whose codec lives elsewhere (settings, needs, intents, peers, tags).
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.rows.get(table, key) {
            Some(own) => Ok(own.clone()),
            None => Ok(self.base.get(table, key)?),
        }
    }

    /// Stores or removes a raw row.
    pub fn put(&mut self, table: Table, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.rows.put(table, key, value);
    }

    /// Scans a table, own changes included. Not for `entries`, `nodes`, `places` and `dirs`, whose changes are kept typed.
    pub fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<crate::rows::Row>> {
        Ok(self.rows.scan(Some(self.base), table, from, to, limit)?)
    }

    // ----- slots

    /// The 8-byte row key of an entry.
    pub fn slot(&mut self, id: EntryId) -> [u8; 8] {
        pack(self.replicas.number(id.0.replica), id.0.n)
    }

    /// The base, if it can have rows below directory `id`.
    fn base_about(&self, id: EntryId) -> Option<&dyn Read> {
        (!self.bare.contains(&id) && !self.is_newborn(id)).then_some(self.base)
    }

    /// True if the entry was made by this transaction: no row of the base is about it.
    fn is_newborn(&self, id: EntryId) -> bool {
        let after = self.new_dots.partition_point(|r| r.start <= id.0.n);
        id.0.replica == self.me && after > 0 && self.new_dots[after - 1].contains(&id.0.n)
    }

    fn find_slot(&self, id: EntryId) -> Option<[u8; 8]> {
        self.replicas.find(id.0.replica).map(|r| pack(r, id.0.n))
    }

    /// The entry with this row key.
    pub fn unslot(&self, table: Table, key: &[u8]) -> Result<EntryId> {
        let Ok(b) = <[u8; 8]>::try_from(key) else {
            return Err(damaged(table, Malformed { what: "slot", at: 0 }));
        };
        let v = u64::from_be_bytes(b);
        match self.replicas.replica((v >> 48) as u16) {
            Some(r) => Ok(EntryId(Dot::new(r, v & N_MAX))),
            None => Err(damaged(table, Malformed { what: "replica number", at: 0 })),
        }
    }

    fn name_key(&mut self, parent: EntryId, name: &Name, entry: EntryId) -> Vec<u8> {
        let mut k = Vec::with_capacity(name.as_bytes().len() + 17);
        k.extend_from_slice(&self.slot(parent));
        k.extend_from_slice(name.as_bytes());
        k.push(0);
        k.extend_from_slice(&self.slot(entry));
        k
    }

    /// The table of replicas that numbers refer to.
    pub fn replicas(&self) -> &ReplicaTable {
        &self.replicas
    }

    /// The table, to give out numbers.
    pub fn replicas_mut(&mut self) -> &mut ReplicaTable {
        &mut self.replicas
    }

    // ----- end

    fn flush_entries(&mut self) {
        let mut e = Encoder::new();
        for (id, row) in self.entries.take_dirty() {
            let key = self.slot(id).to_vec();
            let value = row.map(|row| {
                e.buf.clear();
                e.uint(row.n);
                e.uint(row.bound.len() as u64);
                for n in &row.bound {
                    e.bytes(n.as_bytes());
                }
                e.entry(&row.entry, &mut self.replicas);
                // A copy: rows wait for the commit in memory, without spare capacity.
                e.buf.to_vec()
            });
            self.rows.put(Table::Entries, key, value);
        }
    }

    fn flush_nodes(&mut self) {
        let mut e = Encoder::new();
        for (key, node) in self.nodes.take_dirty() {
            let value = node.map(|n| {
                e.buf.clear();
                e.node(&n, &mut self.replicas);
                e.buf.to_vec()
            });
            self.rows.put(Table::Nodes, key.as_bytes().to_vec(), value);
        }
    }

    fn flush_places(&mut self) {
        let mut e = Encoder::new();
        for (key, place) in self.places.take_dirty() {
            let value = place.map(|p| {
                e.buf.clear();
                e.place(&p, &mut self.replicas);
                e.buf.to_vec()
            });
            self.rows.put(Table::Places, key.into_vec(), value);
        }
    }

    fn flush_dirs(&mut self) {
        for (id, state) in self.dirs.take_dirty() {
            let value = state.map(|s| {
                let mut e = Encoder::new();
                e.uint(s.live_children);
                e.u8(s.repaired.is_some().into());
                if let Some(p) = s.repaired {
                    e.dot(p.0, &mut self.replicas);
                }
                e.buf
            });
            let key = self.slot(id).to_vec();
            self.rows.put(Table::Dirs, key, value);
        }
    }

    /// Everything that was changed, for [`crate::rows::Store::commit`]. `tag` is 64 fresh random bits: it
    /// names this commit to other replicas if it made dots.
    pub fn into_batch(self, tag: u64) -> Batch {
        self.into_batch_and_warm(tag).0
    }

    /// As [`Tx::into_batch`], with the rows that the next transaction will want again.
    pub fn into_batch_and_warm(mut self, tag: u64) -> (Batch, Warm) {
        let warm = self.end(tag);
        (self.rows.into_batch(), warm)
    }

    /// As [`Tx::into_batch_and_warm`], with what the paths that it changes were recorded with before, as row `before` of
    /// that table (see [`crate::unsealed`]). The last value says whether there is such a row.
    ///
    /// # Errors
    /// If what was before cannot be read.
    pub fn into_batch_with_before(mut self, tag: u64, before: u64) -> Result<(Batch, Warm, bool)> {
        let warm = self.end(tag);
        let mut batch = self.rows.into_batch();
        let row = crate::unsealed::encode(self.base, &batch, &self.replicas)?;
        let any = row.is_some();
        if any {
            batch.insert((Table::Before, before.to_be_bytes().to_vec()), row);
        }
        Ok((batch, warm, any))
    }

    /// Brings all that was changed to rows.
    fn end(&mut self, tag: u64) -> Warm {
        self.flush_entries();
        self.flush_nodes();
        self.flush_places();
        self.flush_dirs();
        if self.has_new_dots() {
            let n = self.head();
            self.rows.put(Table::Tags, n.to_be_bytes().to_vec(), Some(tag.to_be_bytes().to_vec()));
            self.set_known(self.me, Known { n, tag });
        }
        if self.next_n != self.next_n_before {
            let next = self.next_n.to_be_bytes().to_vec();
            self.rows.put(Table::Settings, SETTING_NEXT.to_vec(), Some(next));
        }
        for (i, r) in self.replicas.replicas().iter().enumerate().skip(self.replicas_before) {
            let key = ((i + 1) as u16).to_be_bytes().to_vec();
            self.rows.put(Table::Replicas, key, Some(r.0.to_be_bytes().to_vec()));
        }
        Warm {
            entries: std::mem::take(&mut self.entries),
            nodes: std::mem::take(&mut self.nodes),
            names: std::mem::take(&mut self.names),
        }
    }
}

/// The greatest n that fits a slot.
pub const N_MAX: u64 = (1 << 48) - 1;

fn pack(replica: u16, n: u64) -> [u8; 8] {
    // 2^48 changes of one replica are 8,900 years at a thousand a second. Remote ids above it are
    // refused where they come in.
    debug_assert!(n <= N_MAX);
    ((u64::from(replica) << 48) | (n & N_MAX)).to_be_bytes()
}

fn place_prefix(dir: &NodeKey) -> PlaceKey {
    let mut k = PlaceKey::new();
    k.push(dir.as_bytes().len() as u8);
    k.extend_from_slice(dir.as_bytes());
    k
}

pub(crate) fn place_key(dir: &NodeKey, name: &Name) -> PlaceKey {
    let mut k = place_prefix(dir);
    k.extend_from_slice(name.as_bytes());
    k
}

/// Directory and name of a key of the places.
pub(crate) fn place_of_key(key: &[u8]) -> Result<(NodeKey, Name)> {
    let bad = |what| damaged(Table::Places, Malformed { what, at: 0 });
    let (len, rest) = key.split_first().ok_or_else(|| bad("place key"))?;
    let (dir, name) = rest.split_at_checked(usize::from(*len)).ok_or_else(|| bad("place key"))?;
    let dir = NodeKey::new(dir).ok_or_else(|| bad("node key"))?;
    Ok((dir, Name::new(name).map_err(|_| bad("name"))?))
}

/// The least key greater than all keys that start with `prefix`.
fn successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut k = prefix.to_vec();
    while let Some(last) = k.pop() {
        if last < 0xff {
            k.push(last + 1);
            return Some(k);
        }
    }
    None
}

fn damaged(table: Table, source: Malformed) -> Error {
    Error::Damaged { table: table.name(), source }
}

/// Decodes a whole row.
pub(crate) fn dec<'b, T>(
    table: Table,
    b: &'b [u8],
    f: impl FnOnce(&mut Decoder<'b>) -> std::result::Result<T, Malformed>,
) -> Result<T> {
    let mut d = Decoder::new(b);
    let v = f(&mut d).and_then(|v| d.end().map(|()| v));
    v.map_err(|source| damaged(table, source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Bind, Fingerprint, Wanted};
    use crate::id::Kind;
    use crate::meta::Attrs;
    use crate::rows::{MemStore, Store};

    const ENV: Env = Env { now_ns: 1, epoch: 0 };

    fn node(size: u64) -> Node {
        Node {
            kind: Kind::Dir,
            fingerprint: Fingerprint { size, ..Fingerprint::default() },
            racy: false,
            given: Attrs::default(),
            wanted: Wanted::UNKNOWN,
            names: Vec::new(),
            bind: Bind::Dir(Vec::new()),
        }
    }

    #[test]
    fn what_a_transaction_leaves_is_what_was_committed() {
        let key = |b: u8| NodeKey::new(&[b]).unwrap();
        let store = MemStore::new();
        store.commit(Tx::create(ReplicaId(7))).unwrap();
        let snapshot = store.snapshot().unwrap();
        let mut tx = Tx::open(&*snapshot, ENV).unwrap();
        for b in 1..4 {
            tx.put_node(&key(b), node(u64::from(b)));
        }
        let (rows, _) = tx.into_batch_and_warm(1);
        store.commit(rows).unwrap();

        let snapshot = store.snapshot().unwrap();
        let mut tx = Tx::open(&*snapshot, ENV).unwrap();
        tx.node(&key(1)).unwrap();
        tx.put_node(&key(2), node(20));
        tx.delete_node(&key(3));
        let (rows, warm) = tx.into_batch_and_warm(2);
        store.commit(rows).unwrap();

        let snapshot = store.snapshot().unwrap();
        let mut cold = Tx::open(&*snapshot, ENV).unwrap();
        let mut warm = Tx::open_warm(&*snapshot, ENV, Arc::new(warm)).unwrap();
        for b in 1..4 {
            assert_eq!(warm.node(&key(b)).unwrap(), cold.node(&key(b)).unwrap());
        }
        assert_eq!(cold.node(&key(2)).unwrap().unwrap().fingerprint.size, 20);
        assert_eq!(cold.node(&key(3)).unwrap(), None);
    }

    #[test]
    fn names_are_what_rows_say_whatever_is_remembered() {
        let entry = |n| EntryId(Dot::new(ReplicaId(7), n));
        let (dir, other) = (entry(1), entry(2));
        let [a, b] = [b"a", b"b"].map(|n| Name::new(n).unwrap());
        let store = MemStore::new();
        store.commit(Tx::create(ReplicaId(7))).unwrap();
        let mut warm = Warm::default();
        // (adds, directory, name, entry)
        let changes = [
            vec![(true, dir, &a, entry(3)), (true, dir, &b, entry(4)), (true, other, &a, entry(5))],
            vec![(true, dir, &a, entry(6))],
            vec![(false, dir, &a, entry(3)), (false, dir, &b, entry(4)), (true, other, &b, entry(7))],
            vec![],
        ];
        for round in changes {
            let snapshot = store.snapshot().unwrap();
            let mut tx = Tx::open_warm(&*snapshot, ENV, Arc::new(warm)).unwrap();
            let spots = [(dir, &a), (dir, &b), (other, &a), (other, &b)];
            spots.iter().for_each(|(d, n)| drop(tx.names_at(*d, n).unwrap()));
            for (adds, parent, name, id) in round {
                let mut state = tx.dir(parent).unwrap();
                match adds {
                    true => (tx.add_name(parent, name, id), state.live_children += 1),
                    false => (tx.remove_name(parent, name, id), state.live_children -= 1),
                };
                tx.put_dir(parent, state);
            }
            let seen: Vec<_> = spots.iter().map(|(d, n)| tx.names_at(*d, n).unwrap()).collect();
            let (rows, left) = tx.into_batch_and_warm(1);
            store.commit(rows).unwrap();
            let snapshot = store.snapshot().unwrap();
            let mut cold = Tx::open(&*snapshot, ENV).unwrap();
            let made: Vec<_> = spots.iter().map(|(d, n)| cold.names_at(*d, n).unwrap()).collect();
            assert_eq!(seen, made);
            warm = left;
        }
    }
}
