//! The narrow door to the embedded store: tables of byte keys and byte values, snapshots to read,
//! one atomic durable commit. The store of a volume implements it on disk, [`MemStore`] in memory.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// The tables of a volume's index. The number is part of the on-disk format.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Table {
    /// slot -> feed position, bound nodes, entry state.
    Entries = 1,
    /// (parent slot, name, slot) -> (): what the effective tree shows, before grouping.
    Names = 2,
    /// slot -> live-child counter and effective parent of a directory.
    Dirs = 3,
    /// (stored parent slot, directory slot) -> (): all directories, dead ones too, for cycle repair.
    DirKids = 4,
    /// feed position -> slot.
    Feed = 5,
    /// (directory node, name) -> what the path was materialised with.
    Places = 6,
    /// node -> inode record.
    Nodes = 7,
    /// replica -> (n, tag): what we know.
    Knowledge = 8,
    /// feed position of a commit -> tag.
    Tags = 9,
    /// peer replica -> cursors and what it is known to know and hold.
    Peers = 10,
    /// slot -> (): entries to look at again by the planner, beside the feed.
    Pending = 11,
    /// slot -> reason, next retry: what could not be done yet.
    Needs = 12,
    /// plan number -> intent rows of one batch.
    Intents = 13,
    /// text -> value.
    Settings = 14,
    /// interned number -> replica id.
    Replicas = 15,
    /// directory slot -> (): directories that do not reach the root by stored parents.
    Unrooted = 16,
    /// commit number -> what the paths it changed were recorded with before, until a sync has covered it.
    Before = 17,
    /// (slot, version) -> why nobody who could be asked holds it.
    Lost = 18,
    /// (digest, node) -> (): larger files by what is in them.
    Contents = 19,
}

impl Table {
    /// All tables.
    pub const ALL: [Table; 19] = [
        Table::Entries,
        Table::Names,
        Table::Dirs,
        Table::DirKids,
        Table::Feed,
        Table::Places,
        Table::Nodes,
        Table::Knowledge,
        Table::Tags,
        Table::Peers,
        Table::Pending,
        Table::Needs,
        Table::Intents,
        Table::Settings,
        Table::Replicas,
        Table::Unrooted,
        Table::Before,
        Table::Lost,
        Table::Contents,
    ];

    /// Position in [`Table::ALL`]: numbers run from 1 without a gap.
    pub fn index(self) -> usize {
        self as usize - 1
    }

    /// The table's name on disk.
    pub fn name(self) -> &'static str {
        match self {
            Table::Entries => "entries",
            Table::Names => "names",
            Table::Dirs => "dirs",
            Table::DirKids => "dir_kids",
            Table::Feed => "feed",
            Table::Places => "places",
            Table::Nodes => "nodes",
            Table::Knowledge => "knowledge",
            Table::Tags => "tags",
            Table::Peers => "peers",
            Table::Pending => "pending",
            Table::Needs => "needs",
            Table::Intents => "intents",
            Table::Settings => "settings",
            Table::Replicas => "replicas",
            Table::Unrooted => "unrooted",
            Table::Before => "before",
            Table::Lost => "lost",
            Table::Contents => "contents",
        }
    }
}

/// The store could not do it. Reads and commits fail only when the disk fails or the file is damaged.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StoreError(pub String);

/// One row of a scan: key and value.
pub type Row = (Vec<u8>, Vec<u8>);

/// Changes of one table, sorted by key, which B-trees like; `None` removes.
pub type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Changes of one commit.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Batch([Changes; Table::ALL.len()]);

impl Batch {
    /// No changes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stores or (`None`) removes a row.
    pub fn insert(&mut self, (table, key): (Table, Vec<u8>), value: Option<Vec<u8>>) {
        self.0[table.index()].insert(key, value);
    }

    /// Changes of one table.
    pub fn table(&self, table: Table) -> &Changes {
        &self.0[table.index()]
    }

    /// Changes of all tables that have some.
    pub fn tables(&self) -> impl Iterator<Item = (Table, &Changes)> {
        Table::ALL.into_iter().zip(&self.0).filter(|(_, changes)| !changes.is_empty())
    }

    /// Number of changed rows.
    pub fn len(&self) -> usize {
        self.0.iter().map(BTreeMap::len).sum()
    }

    /// True if nothing changes.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(BTreeMap::is_empty)
    }
}

/// One change of a batch.
pub type Change = ((Table, Vec<u8>), Option<Vec<u8>>);

impl FromIterator<Change> for Batch {
    fn from_iter<I: IntoIterator<Item = Change>>(changes: I) -> Self {
        let mut batch = Batch::new();
        for (row, value) in changes {
            batch.insert(row, value);
        }
        batch
    }
}

impl<const N: usize> From<[Change; N]> for Batch {
    fn from(changes: [Change; N]) -> Self {
        changes.into_iter().collect()
    }
}

impl IntoIterator for Batch {
    type Item = Change;
    type IntoIter = Box<dyn Iterator<Item = Change>>;

    fn into_iter(self) -> Self::IntoIter {
        let tables = Table::ALL.into_iter().zip(self.0);
        Box::new(tables.flat_map(|(t, changes)| changes.into_iter().map(move |(k, v)| ((t, k), v))))
    }
}

/// A consistent view of all tables.
pub trait Read: Send {
    /// The value at `key`.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;
    /// The values at `keys`, which ascend. Neighbours may be found faster than by [`Read::get`].
    fn get_sorted(&self, table: Table, keys: &[&[u8]]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        keys.iter().map(|key| self.get(table, key)).collect()
    }
    /// At most `limit` rows with `from <= key` and `key < to` (`None` = to the end), in key order.
    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Row>, StoreError>;
    /// The last row of `table`.
    fn last(&self, table: Table) -> Result<Option<Row>, StoreError>;
}

/// A store with one writer.
pub trait Store: Send + Sync {
    /// A view of the last commit.
    fn snapshot(&self) -> Result<Box<dyn Read>, StoreError>;
    /// Makes all of `batch` durable and visible, or nothing. After an error the store must not be
    /// used for writing any more.
    fn commit(&self, batch: Batch) -> Result<(), StoreError>;
    /// Makes all of `batch` visible, or nothing. A crash may take it back, with all lazy commits after it; the next
    /// [`Store::commit`] makes it durable. For what can be done again from what was durable before.
    fn commit_lazily(&self, batch: Batch) -> Result<(), StoreError> {
        self.commit(batch)
    }
    /// False if what was written last found no room but what is kept for an end in good order. Nothing that need not
    /// be is written then, until this is true again; asking tries to make it so.
    fn has_room(&self) -> bool {
        true
    }
}

type Tables = [Arc<BTreeMap<Vec<u8>, Vec<u8>>>; Table::ALL.len()];

/// The in-memory twin of the store on disk. A snapshot refers to immutable tables, of which the next commit makes those
/// anew that it changes and somebody still holds.
#[derive(Default)]
pub struct MemStore {
    tables: std::sync::Mutex<Arc<Tables>>,
}

impl MemStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// A store of its own with the same rows: what is committed to one of the two does not show in the other.
    pub fn fork(&self) -> Self {
        Self { tables: std::sync::Mutex::new(self.lock().clone()) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Arc<Tables>> {
        // A panic while holding the lock leaves the map whole: commits mutate row by row only after
        // everything that can fail.
        self.tables.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Store for MemStore {
    fn snapshot(&self) -> Result<Box<dyn Read>, StoreError> {
        Ok(Box::new(MemSnapshot(self.lock().clone())))
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let mut guard = self.lock();
        for (table, changes) in Arc::make_mut(&mut guard).iter_mut().zip(batch.0) {
            if changes.is_empty() {
                continue;
            }
            let rows = Arc::make_mut(table);
            for (key, value) in changes {
                match value {
                    Some(v) => rows.insert(key, v),
                    None => rows.remove(&key),
                };
            }
        }
        Ok(())
    }
}

/// A view of a [`MemStore`].
pub struct MemSnapshot(Arc<Tables>);

impl Read for MemSnapshot {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0[table.index()].get(key).cloned())
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        if to.is_some_and(|to| to <= from) {
            return Ok(Vec::new());
        }
        let to = to.map_or(Bound::Unbounded, Bound::Excluded);
        let rows = self.0[table.index()].range::<[u8], _>((Bound::Included(from), to));
        Ok(rows.take(limit).map(|(k, v)| (k.clone(), v.clone())).collect())
    }

    fn last(&self, table: Table) -> Result<Option<Row>, StoreError> {
        Ok(self.0[table.index()].last_key_value().map(|(k, v)| (k.clone(), v.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_numbered_in_order() {
        for (i, table) in Table::ALL.into_iter().enumerate() {
            assert_eq!(table.index(), i);
        }
    }
}
