//! A store that reads through to another and keeps its own commits in memory: for dry runs, which must
//! change nothing and still go through the same motions.

use driftless_core::rows::{Batch, MemStore, Read, Row, Store, StoreError, Table};
use std::collections::BTreeMap;
use std::sync::Arc;

/// See the module.
pub(crate) struct OverlayStore {
    base: Arc<dyn Store>,
    /// What was committed: a first byte 1 and the value, or 0 for removed rows.
    own: MemStore,
}

impl OverlayStore {
    /// Over `base`, which is never written to.
    pub(crate) fn new(base: Arc<dyn Store>) -> Self {
        OverlayStore { base, own: MemStore::new() }
    }
}

impl Store for OverlayStore {
    fn snapshot(&self) -> Result<Box<dyn Read>, StoreError> {
        Ok(Box::new(OverlaySnapshot { base: self.base.snapshot()?, own: self.own.snapshot()? }))
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let marked = batch.into_iter().map(|(k, v)| {
            let v = match v {
                Some(mut v) => {
                    v.insert(0, 1);
                    v
                }
                None => vec![0],
            };
            (k, Some(v))
        });
        self.own.commit(marked.collect())
    }
}

struct OverlaySnapshot {
    base: Box<dyn Read>,
    own: Box<dyn Read>,
}

impl Read for OverlaySnapshot {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self.own.get(table, key)? {
            Some(mut v) => Ok((v.remove(0) == 1).then_some(v)),
            None => self.base.get(table, key),
        }
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        let own = self.own.scan(table, from, to, usize::MAX)?;
        let hidden = own.iter().filter(|(_, v)| v[0] == 0).count();
        let asked = limit.saturating_add(hidden);
        let base = self.base.scan(table, from, to, asked)?;
        // Beyond the last base row that was read there may be more between own ones.
        let edge = if base.len() == asked { base.last().map(|r| r.0.clone()) } else { None };
        let mut rows: BTreeMap<Vec<u8>, Vec<u8>> = base.into_iter().collect();
        for (k, mut v) in own {
            match v.remove(0) {
                1 => rows.insert(k, v),
                _ => rows.remove(&k),
            };
        }
        let rows = rows.into_iter().filter(|(k, _)| edge.as_ref().is_none_or(|e| k <= e));
        Ok(rows.take(limit).collect())
    }

    fn last(&self, table: Table) -> Result<Option<Row>, StoreError> {
        let own = self.scan(table, &[], None, usize::MAX)?;
        Ok(own.into_iter().last())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_through_and_keeps_its_own() {
        let base = Arc::new(MemStore::new());
        let put = |s: &dyn Store, k: &[u8], v: Option<&[u8]>| {
            s.commit([((Table::Feed, k.to_vec()), v.map(<[u8]>::to_vec))].into()).unwrap();
        };
        for k in [b"a", b"b", b"c"] {
            put(&*base, k, Some(b"base"));
        }
        let over = OverlayStore::new(base.clone());
        put(&over, b"b", None);
        put(&over, b"c", Some(b"own"));
        put(&over, b"d", Some(b"own"));
        let s = over.snapshot().unwrap();
        let keys = |limit| -> Vec<Vec<u8>> {
            s.scan(Table::Feed, b"", None, limit).unwrap().into_iter().map(|r| r.0).collect()
        };
        assert_eq!(keys(9), [b"a", b"c", b"d"]);
        assert_eq!(keys(2), [b"a", b"c"]);
        assert_eq!(s.get(Table::Feed, b"b").unwrap(), None);
        assert_eq!(s.get(Table::Feed, b"c").unwrap().unwrap(), b"own");
        assert_eq!(s.last(Table::Feed).unwrap().unwrap().0, b"d");
        assert_eq!(base.snapshot().unwrap().get(Table::Feed, b"b").unwrap().unwrap(), b"base");
    }
}
