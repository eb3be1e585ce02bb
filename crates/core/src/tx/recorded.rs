//! What a directory was recorded with, in one go: a crawl compares each name of a tree with it, and nearly all are as they were.

use super::{Result, Tx, dec, successor};
use crate::codec::Decoder;
use crate::disk::{Node, NodeKey, Recorded};
use crate::id::Name;
use crate::rows::Table;

impl Tx<'_> {
    /// What at most `limit` names of directory `dir` after `after` were recorded with, ordered by name. `None`: of this inode nothing
    /// is recorded that could be relied on without a closer look. Rows that are only read here are not kept.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn recorded_in(
        &mut self,
        dir: &NodeKey,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<Vec<(Name, NodeKey, Option<Recorded>)>> {
        let places = self.place_inodes(dir, after, limit)?;
        let mut keys: Vec<&NodeKey> = places.iter().map(|(_, key)| key).collect();
        keys.sort_unstable();
        keys.dedup();
        // Inodes that were made together are neighbours.
        let bytes: Vec<&[u8]> = keys.iter().map(|key| key.as_bytes()).collect();
        let rows = self.base.get_sorted(Table::Nodes, &bytes)?;
        let mut nodes = Vec::with_capacity(keys.len());
        for (key, row) in keys.iter().zip(rows) {
            nodes.push(self.recorded(key, row.as_deref())?);
        }
        // Every key was looked up.
        let of = |key: &NodeKey| keys.binary_search(&key).map_or(None, |at| nodes[at]);
        let recorded: Vec<_> = places.iter().map(|(_, key)| of(key)).collect();
        Ok(places.into_iter().zip(recorded).map(|((name, key), recorded)| (name, key, recorded)).collect())
    }

    /// What an inode was recorded with, whose committed row is `row`.
    fn recorded(&mut self, key: &NodeKey, row: Option<&[u8]>) -> Result<Option<Recorded>> {
        if let Some(known) = self.nodes.get(key) {
            return Ok(known.and_then(|node| Recorded::of(&node)));
        }
        if let Some(Some(known)) = self.warm.as_ref().and_then(|w| w.nodes.get(key)) {
            return Ok(Recorded::of(&known));
        }
        row.map_or(Ok(None), dec_head)
    }
}

fn dec_head(row: &[u8]) -> Result<Option<Recorded>> {
    dec(Table::Nodes, row, |d: &mut Decoder<'_>| d.node_head())
}

impl Recorded {
    fn of(node: &Node) -> Option<Recorded> {
        let Node { kind, fingerprint, racy, given, .. } = node;
        let (mode, uid, gid) = (given.mode, given.uid, given.gid);
        (!racy).then_some(Recorded { kind: *kind, fingerprint: *fingerprint, mode, uid, gid })
    }
}

impl Tx<'_> {
    /// At most `limit` names in directory `dir` after `after`, and which inodes they have.
    fn place_inodes(
        &mut self,
        dir: &NodeKey,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<Vec<(Name, NodeKey)>> {
        let start = super::place_prefix(dir);
        let from = match after {
            Some(name) => {
                let mut k = super::place_key(dir, name);
                k.push(0);
                k
            }
            None => start.clone(),
        };
        self.flush_places();
        let rows = self.scan(Table::Places, &from, successor(&start).as_deref(), limit)?;
        let mut out = Vec::with_capacity(rows.len());
        for (k, v) in rows {
            let (_, name) = super::place_of_key(&k)?;
            out.push((name, dec(Table::Places, &v, |d| d.place_inode())?));
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Bind, Fingerprint, Place, Wanted};
    use crate::id::{Kind, ReplicaId};
    use crate::meta::{Attrs, Digest, Time};
    use crate::rows::{MemStore, Store};
    use crate::tx::Env;

    fn key(n: u8) -> NodeKey {
        NodeKey::new(&[1, n]).unwrap()
    }

    fn name(i: usize) -> Name {
        Name::new(format!("n{i}").as_bytes()).unwrap()
    }

    fn node(n: u8) -> Node {
        let time = Time { sec: i64::from(n), nsec: 7 };
        Node {
            kind: Kind::File,
            fingerprint: Fingerprint { size: n.into(), mtime: time, ctime: time },
            racy: n == 3,
            given: Attrs { mode: 0o644, uid: 1, gid: n.into(), ..Attrs::default() },
            wanted: Wanted(0),
            names: vec![(key(0), name(n.into()))],
            bind: Bind::Leaf { identity: Digest::of(b"") },
        }
    }

    #[test]
    fn a_directory_is_read_as_its_rows_are() {
        let store = MemStore::default();
        store.commit(Tx::create(ReplicaId(1))).unwrap();
        let snapshot = store.snapshot().unwrap();
        let mut tx = Tx::open(&*snapshot, Env { now_ns: 1, epoch: 0 }).unwrap();
        // The inodes are far from each other for some, and in another order than the names.
        let inodes = [200, 9, 3, 7, 6, 5];
        for (i, n) in inodes.iter().enumerate() {
            let place = Place { node: key(*n), claims: Vec::new(), conflict_of: None };
            tx.put_place(&key(0), &name(i), place);
            if *n != 7 {
                tx.put_node(&key(*n), node(*n));
            }
        }
        (10..100).for_each(|n| tx.put_node(&key(n), node(n)));
        store.commit(tx.into_batch(1)).unwrap();
        let snapshot = store.snapshot().unwrap();
        let mut tx = Tx::open(&*snapshot, Env { now_ns: 1, epoch: 0 }).unwrap();
        tx.put_node(&key(6), Node { racy: true, ..node(6) });
        let found = tx.recorded_in(&key(0), None, 99).unwrap();
        let expected = |n: u8| (![3, 7, 6].contains(&n)).then(|| Recorded::of(&node(n)).unwrap());
        let all: Vec<_> = inodes.iter().enumerate().map(|(i, n)| (name(i), key(*n), expected(*n))).collect();
        assert_eq!(found, all);
        assert_eq!(tx.recorded_in(&key(0), Some(&name(1)), 2).unwrap(), all[2..4]);
        assert!(tx.recorded_in(&key(1), None, 9).unwrap().is_empty());
    }
}
