//! Signed heads: a replica's own word of how far it has got. What others claim to know of it counts up to there.
//!
//! Rows of [`Table::Settings`]: `head/` and the replica's eight bytes -> `n` and tag, 8 bytes each, signature 64 bytes.
//! The newest one of each replica is kept, and sent with every claim about that replica: whoever may claim something
//! has the head that allows it.

use crate::id::ReplicaId;
use crate::membership::Signature;
use crate::rows::Table;
use crate::tx::{Knowledge, N_MAX, Result, Tx, dec};
use std::collections::BTreeMap;

const PREFIX: &[u8] = b"head/";

/// See the module. Signed over [`crate::membership::head_bytes`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SignedHead {
    /// Whose.
    pub replica: ReplicaId,
    /// It has made its changes up to here ...
    pub n: u64,
    /// ... the last of them in the commit with this tag.
    pub tag: u64,
    /// By the key that the replica belongs to.
    pub signature: Signature,
}

impl SignedHead {
    /// No replica can have said this.
    pub fn is_nonsense(&self) -> bool {
        self.replica.0 == 0 || self.n == 0 || self.n > N_MAX
    }
}

/// The newest known head of a replica.
pub fn head_of(tx: &Tx<'_>, replica: ReplicaId) -> Result<Option<SignedHead>> {
    tx.get(Table::Settings, &key(replica))?.map(|value| decode(replica, &value)).transpose()
}

/// All that are known.
pub fn heads(tx: &Tx<'_>) -> Result<Vec<SignedHead>> {
    // The byte after `/`.
    let rows = tx.scan(Table::Settings, PREFIX, Some(b"head0"), usize::MAX)?;
    let row = |(k, v): &(Vec<u8>, Vec<u8>)| {
        let replica = dec(Table::Settings, k.get(PREFIX.len()..).unwrap_or_default(), |d| d.fixed64())?;
        decode(ReplicaId(replica), v)
    };
    rows.iter().map(row).collect()
}

/// Notes a head that is newer than the one that is known. Its signature has been checked.
pub fn put_head(tx: &mut Tx<'_>, head: &SignedHead) {
    let value = [&head.n.to_be_bytes()[..], &head.tag.to_be_bytes(), &head.signature.0].concat();
    tx.put(Table::Settings, key(head.replica), Some(value));
}

/// The heads of third replicas that go with a claim: those that are newer than what was sent by this link before.
pub fn heads_for(
    tx: &Tx<'_>,
    claim: &Knowledge,
    sent: &mut BTreeMap<ReplicaId, u64>,
) -> Result<Vec<SignedHead>> {
    let mut out = Vec::new();
    for replica in claim.keys().filter(|r| **r != tx.me()) {
        let Some(head) = head_of(tx, *replica)? else { continue };
        if sent.get(replica).is_none_or(|n| *n < head.n) {
            sent.insert(*replica, head.n);
            out.push(head);
        }
    }
    Ok(out)
}

fn key(replica: ReplicaId) -> Vec<u8> {
    [PREFIX, &replica.0.to_be_bytes()].concat()
}

fn decode(replica: ReplicaId, value: &[u8]) -> Result<SignedHead> {
    dec(Table::Settings, value, |d| {
        let (n, tag) = (d.fixed64()?, d.fixed64()?);
        let signature = match d.raw(64)?.first_chunk() {
            Some(bytes) => Signature(*bytes),
            None => return d.bad("signature"),
        };
        Ok(SignedHead { replica, n, tag, signature })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::{MemStore, Store};
    use crate::tx::{Env, Known};

    const ENV: Env = Env { epoch: 0, now_ns: 0 };

    fn head(replica: u64, n: u64) -> SignedHead {
        SignedHead { replica: ReplicaId(replica), n, tag: n ^ 5, signature: Signature([replica as u8; 64]) }
    }

    #[test]
    fn the_newest_head_is_kept_and_goes_once_with_claims_about_others() {
        let store = MemStore::new();
        store.commit(Tx::create(ReplicaId(7))).unwrap();
        let snapshot = store.snapshot().unwrap();
        let mut tx = Tx::open(&*snapshot, ENV).unwrap();
        for known in [head(1, 3), head(1, 9), head(2, 4), head(7, 5)] {
            put_head(&mut tx, &known);
        }
        assert_eq!(heads(&tx).unwrap(), [head(1, 9), head(2, 4), head(7, 5)]);
        assert_eq!(head_of(&tx, ReplicaId(3)).unwrap(), None);
        // Of 3 no head is known, and its own word goes with what it sends.
        let claim: Knowledge = [1, 3, 7].map(|r| (ReplicaId(r), Known { n: 2, tag: 0 })).into();
        let mut sent = BTreeMap::new();
        assert_eq!(heads_for(&tx, &claim, &mut sent).unwrap(), [head(1, 9)]);
        assert_eq!(heads_for(&tx, &claim, &mut sent).unwrap(), []);
        put_head(&mut tx, &head(1, 10));
        assert_eq!(heads_for(&tx, &claim, &mut sent).unwrap(), [head(1, 10)]);
    }

    #[test]
    fn what_no_replica_can_have_said_is_told() {
        assert!(!head(1, N_MAX).is_nonsense());
        assert!([head(0, 1), head(1, 0), head(1, N_MAX + 1)].iter().all(SignedHead::is_nonsense));
    }

    #[test]
    fn a_damaged_row_is_an_error() {
        let store = MemStore::new();
        store.commit(Tx::create(ReplicaId(7))).unwrap();
        let snapshot = store.snapshot().unwrap();
        let mut tx = Tx::open(&*snapshot, ENV).unwrap();
        tx.put(Table::Settings, key(ReplicaId(1)), Some(vec![0; 79]));
        assert!(head_of(&tx, ReplicaId(1)).is_err() && heads(&tx).is_err());
    }
}
