//! What was worked out of an index or a disk is kept for as long as these stay as they are: most checks ask again about
//! something that did not change.

use driftless_core::rows::{Batch, MemStore, Read, Store, Table};
use std::cell::{Cell, RefCell};
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

thread_local! {
    static NEXT: Cell<u64> = const { Cell::new(1) };
}

/// Never the same again on this thread.
fn fresh() -> u64 {
    NEXT.replace(NEXT.get() + 1)
}

/// A value that tells whenever it may have changed: two with one version are equal.
#[derive(Clone, Debug)]
pub struct Versioned<T> {
    value: T,
    version: u64,
}

impl<T> Versioned<T> {
    pub fn new(value: T) -> Self {
        Versioned { value, version: fresh() }
    }

    pub fn version(&self) -> u64 {
        self.version
    }
}

impl<T> Deref for Versioned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Versioned<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.version = fresh();
        &mut self.value
    }
}

/// Something worked out of what has a version.
pub struct Memo<T>(RefCell<Option<(u64, u64, Rc<T>)>>);

impl<T> Default for Memo<T> {
    fn default() -> Self {
        Memo(RefCell::new(None))
    }
}

impl<T> Memo<T> {
    /// As it was made last for these versions, else made now.
    pub fn get(&self, (a, b): (u64, u64), make: impl FnOnce() -> T) -> Rc<T> {
        if let Some((x, y, made)) = &*self.0.borrow()
            && (*x, *y) == (a, b)
        {
            return made.clone();
        }
        let made = Rc::new(make());
        *self.0.borrow_mut() = Some((a, b, made.clone()));
        made
    }
}

/// Rows that changed since the records were checked as a whole.
#[derive(Clone, Default)]
pub struct Changed {
    /// The version that was checked.
    pub since: u64,
    /// Places or inodes among them.
    pub recorded: bool,
    /// Keys of entries.
    pub entries: Vec<Vec<u8>>,
}

/// An index in memory.
pub struct Index {
    store: MemStore,
    version: u64,
    states: u64,
    pub changed: Changed,
}

impl Index {
    pub fn new() -> Index {
        let version = fresh();
        Index { store: MemStore::new(), version, states: version, changed: Changed::default() }
    }

    /// One of its own with the same rows.
    pub fn fork(&self) -> Index {
        let changed = self.changed.clone();
        Index { store: self.store.fork(), version: self.version, states: self.states, changed }
    }

    /// Another after each commit that changed anything.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Another after each commit that changed more than what is known of whom.
    pub fn states(&self) -> u64 {
        self.states
    }

    pub fn snapshot(&self) -> Box<dyn Read> {
        self.store.snapshot().unwrap()
    }

    pub fn commit(&mut self, batch: Batch) {
        if batch.is_empty() {
            return;
        }
        self.version = fresh();
        for (table, rows) in batch.tables() {
            match table {
                Table::Knowledge | Table::Tags | Table::Peers | Table::Settings | Table::Replicas => continue,
                Table::Places | Table::Nodes => self.changed.recorded = true,
                Table::Entries => self.changed.entries.extend(rows.keys().cloned()),
                _ => {}
            }
            self.states = self.version;
        }
        self.store.commit(batch).unwrap();
    }

    /// The records were checked as they are.
    pub fn note_checked(&mut self) {
        self.changed = Changed { since: self.states, ..Changed::default() };
    }
}
