//! Typed rows that a transaction has read or changed.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::Arc;

/// Most rows kept only because they were read. A walk through a whole volume must not hold it in memory.
const READ_ROWS_MAX: usize = 4096;

struct Slot<V> {
    value: Option<Arc<V>>,
    /// Changed by this transaction: the base no longer tells.
    own: bool,
    /// Changed since the last [`Cache::take_dirty`].
    dirty: bool,
}

/// A map of keys that are hashed in a few steps.
pub(crate) type FastMap<K, V> = HashMap<K, V, BuildHasherDefault<FastHasher>>;

/// A set of such keys.
pub(crate) type FastSet<K> = HashSet<K, BuildHasherDefault<FastHasher>>;

/// Rows by key; absence is remembered too.
pub(super) struct Cache<K, V> {
    slots: FastMap<K, Slot<V>>,
    dirty: Vec<K>,
    read_rows: usize,
}

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Self { slots: HashMap::default(), dirty: Vec::new(), read_rows: 0 }
    }
}

impl<K: Hash + Eq + Ord + Clone, V> Cache<K, V> {
    /// The row, if this transaction knows; `Some(None)`: it knows that there is none.
    pub(super) fn get(&self, key: &K) -> Option<Option<Arc<V>>> {
        self.slots.get(key).map(|s| s.value.clone())
    }

    /// Remembers what the base has.
    pub(super) fn note(&mut self, key: K, value: Option<Arc<V>>) {
        if self.read_rows >= READ_ROWS_MAX {
            self.slots.retain(|_, s| s.own);
            self.read_rows = 0;
        }
        self.read_rows += 1;
        self.slots.insert(key, Slot { value, own: false, dirty: false });
    }

    /// Changes the row; `None` removes it.
    pub(super) fn put(&mut self, key: K, value: Option<Arc<V>>) {
        let fresh = Slot { value, own: true, dirty: true };
        match self.slots.get_mut(&key) {
            Some(slot) => {
                if !slot.dirty {
                    self.dirty.push(key);
                }
                *slot = fresh;
            }
            None => {
                self.dirty.push(key.clone());
                self.slots.insert(key, fresh);
            }
        }
    }

    /// Rows changed since the last call, ordered by key.
    pub(super) fn take_dirty(&mut self) -> Vec<(K, Option<Arc<V>>)> {
        let mut keys = std::mem::take(&mut self.dirty);
        keys.sort_unstable();
        let mut rows = Vec::with_capacity(keys.len());
        for key in keys {
            if let Some(slot) = self.slots.get_mut(&key) {
                slot.dirty = false;
                rows.push((key, slot.value.clone()));
            }
        }
        rows
    }
}

/// Multiply and rotate, as the compiler's own tables do. Keys from peers could be made to collide; that
/// costs time within one transaction, whose size is bounded, and nothing else. The same keys hash the same
/// in each run, which keeps simulations reproducible.
#[derive(Default)]
pub(crate) struct FastHasher(u64);

impl FastHasher {
    fn mix(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Hasher for FastHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
    }
    fn write_u64(&mut self, word: u64) {
        self.mix(word);
    }
    fn write_usize(&mut self, word: usize) {
        self.mix(word as u64);
    }
    fn finish(&self) -> u64 {
        // The map takes its bits from both ends; only the upper ones are well mixed.
        self.0 ^ (self.0 >> 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_outlives_what_was_read() {
        let mut cache: Cache<u64, u64> = Cache::default();
        cache.put(0, Some(Arc::new(7)));
        cache.put(1, None);
        assert_eq!(cache.take_dirty().len(), 2);
        for key in 10..10 + 3 * READ_ROWS_MAX as u64 {
            cache.note(key, None);
        }
        assert_eq!(cache.get(&0), Some(Some(Arc::new(7))));
        assert_eq!(cache.get(&1), Some(None));
        assert!(cache.slots.len() <= READ_ROWS_MAX + 2);
    }

    #[test]
    fn a_row_changed_twice_is_written_once_and_again_after_it_was_taken() {
        let mut cache: Cache<u64, u64> = Cache::default();
        cache.note(5, Some(Arc::new(0)));
        for value in [1, 2] {
            cache.put(5, Some(Arc::new(value)));
        }
        cache.put(3, None);
        assert_eq!(cache.take_dirty(), [(3, None), (5, Some(Arc::new(2)))]);
        assert_eq!(cache.take_dirty(), []);
        cache.put(5, None);
        assert_eq!(cache.take_dirty(), [(5, None)]);
    }
}
