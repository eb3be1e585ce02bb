//! Byte rows that a transaction has changed, laid over the snapshot it began with.

use crate::rows::{Batch, Read, Row, StoreError, Table};
use std::collections::btree_map;
use std::iter::Peekable;
use std::ops::Bound;

/// Least number of base rows read again when own removals have hidden some.
const REFILL_MIN: usize = 16;

/// Changed rows, as a commit takes them.
#[derive(Default)]
pub(super) struct Overlay(Batch);

impl Overlay {
    /// The change of a row, if there is one.
    pub(super) fn get(&self, table: Table, key: &[u8]) -> Option<&Option<Vec<u8>>> {
        self.0.table(table).get(key)
    }

    /// Changes a row.
    pub(super) fn put(&mut self, table: Table, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.0.insert((table, key), value);
    }

    /// True if rows of `table` were changed.
    pub(super) fn has(&self, table: Table) -> bool {
        !self.0.table(table).is_empty()
    }

    /// Keys of rows that were stored (not removed) in `table`.
    pub(super) fn stored(&self, table: Table) -> impl Iterator<Item = &Vec<u8>> {
        self.0.table(table).iter().filter(|(_, v)| v.is_some()).map(|(k, _)| k)
    }

    /// As [`Read::scan`], own changes included. `base` is `None` if it is known to have no such rows.
    pub(super) fn scan(
        &self,
        base: Option<&dyn Read>,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        if limit == 0 || to.is_some_and(|to| to <= from) {
            return Ok(Vec::new());
        }
        let upper = to.map_or(Bound::Unbounded, Bound::Excluded);
        let mut own = self.0.table(table).range::<[u8], _>((Bound::Included(from), upper)).peekable();
        if own.peek().is_none() {
            return base.map_or(Ok(Vec::new()), |b| b.scan(table, from, to, limit));
        }
        let mut out = Vec::new();
        let mut next = base.map(|b| (b, from.to_vec()));
        while let Some((base, start)) = next.take() {
            let want = (limit - out.len()).max(REFILL_MIN);
            let rows = base.scan(table, &start, to, want)?;
            if rows.len() == want {
                next = rows.last().map(|(k, _)| (base, [&k[..], &[0]].concat()));
            }
            if !merge(rows, &mut own, limit, &mut out) {
                return Ok(out);
            }
        }
        let rest = own.filter_map(|(k, v)| Some((k.clone(), v.clone()?)));
        out.extend(rest.take(limit - out.len()));
        Ok(out)
    }

    /// All changes, for a commit.
    pub(super) fn into_batch(self) -> Batch {
        self.0
    }
}

/// Appends `rows` and the own rows up to the last of them to `out`. False once `limit` is reached.
fn merge(
    rows: Vec<Row>,
    own: &mut Peekable<btree_map::Range<'_, Vec<u8>, Option<Vec<u8>>>>,
    limit: usize,
    out: &mut Vec<Row>,
) -> bool {
    for row in rows {
        let mut hidden = false;
        while let Some((k, v)) = own.next_if(|(k, _)| **k <= row.0) {
            hidden = *k == row.0;
            if let Some(v) = v {
                out.push((k.clone(), v.clone()));
                if out.len() == limit {
                    return false;
                }
            }
        }
        if !hidden {
            out.push(row);
            if out.len() == limit {
                return false;
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::{Changes, MemStore, Store};
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    fn changes() -> impl Strategy<Value = Changes> {
        btree_map(vec(0u8..4, 0..4), proptest::option::of(vec(any::<u8>(), 0..3)), 0..80)
    }

    proptest! {
        #[test]
        fn a_scan_sees_what_the_commit_will_make(
            before in changes(),
            after in changes(),
            from in vec(0u8..4, 0..3),
            to in proptest::option::of(vec(0u8..4, 0..3)),
            limit in prop_oneof![0usize..40, Just(usize::MAX)],
        ) {
            let batch = |c: &Changes| c.iter().map(|(k, v)| ((Table::Names, k.clone()), v.clone())).collect::<Batch>();
            let store = MemStore::new();
            store.commit(batch(&before)).unwrap();
            let base = store.snapshot().unwrap();
            let mut overlay = Overlay::default();
            for (k, v) in &after {
                overlay.put(Table::Names, k.clone(), v.clone());
            }
            let seen = overlay.scan(Some(&*base), Table::Names, &from, to.as_deref(), limit).unwrap();
            prop_assert_eq!(overlay.into_batch(), batch(&after));
            store.commit(batch(&after)).unwrap();
            let made = store.snapshot().unwrap().scan(Table::Names, &from, to.as_deref(), limit).unwrap();
            prop_assert_eq!(seen, made);
        }
    }
}
