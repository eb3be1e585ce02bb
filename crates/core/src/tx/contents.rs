//! Larger files by what is in them: a content that is here under another name need not travel.

use super::{Result, Tx, damaged, successor};
use crate::codec::Malformed;
use crate::disk::{Bind, Node, NodeKey};
use crate::id::Kind;
use crate::meta::Digest;
use crate::rows::Table;

/// Contents of more bytes can be found by their digest. Shorter ones travel inside batches: to look for each of them would cost more.
pub const CONTENT_LEN_MIN: u64 = crate::link::INLINE_LEN_MAX;
/// So much of a digest is in a row: enough that hardly ever a file is looked at in vain.
const DIGEST_LEN: usize = 16;

impl Tx<'_> {
    /// What is stored of an inode this transaction knows in most cases, since who changes that has read it. Where it does not, a row may
    /// stay behind: [`Tx::nodes_with`] looks whether it still holds.
    pub(super) fn note_content(&mut self, key: &NodeKey, new: Option<&Node>) {
        let known = self.nodes.get(key).or_else(|| self.warm.as_ref().and_then(|w| w.nodes.get(key)));
        let old = known.flatten().and_then(|node| content_key(&node, key));
        let new = new.and_then(|node| content_key(node, key));
        if let Some(old) = old.filter(|old| new.as_ref() != Some(old)) {
            self.rows.put(Table::Contents, old, None);
        }
        if let Some(new) = new {
            self.rows.put(Table::Contents, new, Some(Vec::new()));
        }
    }

    /// At most `limit` files of more than [`CONTENT_LEN_MIN`] bytes with this content, as recorded.
    pub fn nodes_with(&mut self, digest: &Digest, limit: usize) -> Result<Vec<NodeKey>> {
        let start = digest.0[..DIGEST_LEN].to_vec();
        let rows = self.scan(Table::Contents, &start, successor(&start).as_deref(), limit)?;
        let mut found = Vec::new();
        for (row, _) in rows {
            let bad = || damaged(Table::Contents, Malformed { what: "node key", at: DIGEST_LEN });
            let key = row.get(DIGEST_LEN..).and_then(NodeKey::new).ok_or_else(bad)?;
            let holds = |node: &Node| matches!(&node.bind, Bind::Leaf { identity } if identity == digest);
            if self.node(&key)?.is_some_and(|node| holds(&node)) {
                found.push(key);
            }
        }
        Ok(found)
    }
}

/// The row by which a larger file is found by its content.
fn content_key(node: &Node, key: &NodeKey) -> Option<Vec<u8>> {
    match &node.bind {
        Bind::Leaf { identity } if node.kind == Kind::File && node.fingerprint.size > CONTENT_LEN_MIN => {
            Some([&identity.0[..DIGEST_LEN], key.as_bytes()].concat())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Fingerprint, Wanted};
    use crate::id::ReplicaId;
    use crate::meta::Attrs;
    use crate::rows::{MemStore, Store};
    use crate::tx::{Env, Warm};
    use std::sync::Arc;

    const ENV: Env = Env { now_ns: 1, epoch: 0 };

    #[test]
    fn larger_files_are_found_by_what_is_in_them() {
        let key = |b: u8| NodeKey::new(&[b]).unwrap();
        let digest = |b: u8| Digest([b; 32]);
        let node = |kind, size, bind| Node {
            kind,
            fingerprint: Fingerprint { size, ..Fingerprint::default() },
            racy: false,
            given: Attrs::default(),
            wanted: Wanted::UNKNOWN,
            names: Vec::new(),
            bind,
        };
        let file = |size, content| node(Kind::File, size, Bind::Leaf { identity: digest(content) });
        let dir = || node(Kind::Dir, CONTENT_LEN_MIN + 1, Bind::Dir(Vec::new()));
        let (small, large) = (CONTENT_LEN_MIN, CONTENT_LEN_MIN + 1);
        let store = MemStore::new();
        store.commit(Tx::create(ReplicaId(7))).unwrap();
        let mut warm = Warm::default();
        // What is put where, and then which nodes have content 1 and 2.
        type Changes<'a> = &'a [(u8, Option<Node>)];
        let rounds: [(Changes<'_>, &[u8], &[u8]); 5] = [
            (
                &[(1, Some(file(large, 1))), (2, Some(file(large, 1))), (3, Some(file(small, 1)))],
                &[1, 2],
                &[],
            ),
            (&[(1, Some(file(large, 2))), (3, Some(file(large, 2)))], &[2], &[1, 3]),
            (&[(2, None), (3, Some(file(small, 2)))], &[], &[1]),
            (&[(1, Some(file(large, 1))), (1, Some(file(large, 2))), (2, Some(dir()))], &[], &[1]),
            (&[(1, Some(dir()))], &[], &[]),
        ];
        for (changes, ones, twos) in rounds {
            let snapshot = store.snapshot().unwrap();
            let mut tx = Tx::open_warm(&*snapshot, ENV, Arc::new(warm)).unwrap();
            for (n, change) in changes {
                tx.node(&key(*n)).unwrap();
                match change {
                    Some(node) => tx.put_node(&key(*n), node.clone()),
                    None => tx.delete_node(&key(*n)),
                }
            }
            let (rows, left) = tx.into_batch_and_warm(1);
            store.commit(rows).unwrap();
            warm = left;
            let snapshot = store.snapshot().unwrap();
            let mut tx = Tx::open(&*snapshot, ENV).unwrap();
            for (content, nodes) in [(1, ones), (2, twos)] {
                let expected: Vec<NodeKey> = nodes.iter().map(|n| key(*n)).collect();
                assert_eq!(tx.nodes_with(&digest(content), 9).unwrap(), expected);
                let rows = tx.scan(Table::Contents, &[content; DIGEST_LEN], None, 9).unwrap();
                assert_eq!(rows.iter().filter(|(k, _)| k[0] == content).count(), nodes.len(), "no row stays");
            }
        }
        // A row that somebody left behind is no find.
        let snapshot = store.snapshot().unwrap();
        let mut tx = Tx::open(&*snapshot, ENV).unwrap();
        tx.put(Table::Contents, [&[1; DIGEST_LEN][..], &[1]].concat(), Some(Vec::new()));
        assert_eq!(tx.nodes_with(&digest(1), 9).unwrap(), []);
        tx.put(Table::Contents, vec![1; DIGEST_LEN], Some(Vec::new()));
        assert!(tx.nodes_with(&digest(1), 9).is_err());
    }
}
