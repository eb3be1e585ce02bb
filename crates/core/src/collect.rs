//! Tombstone collection (model-findings 3.6, G7).

use crate::id::{EntryId, ReplicaId};
use crate::tx::{Result, Tx};
use crate::vv::VersionVector;
use std::collections::BTreeMap;

/// Removes the entry and its feed row if it is a tombstone that nobody can need any more: not shown,
/// nothing on this disk bound to it or inside it, no entry left that refers to it as parent, its ctx covered by our knowledge and by that of every member, and
/// our knowledge covering what each member had done before it knew. True if removed. Raises the feed's floor.
pub fn collect(tx: &mut Tx<'_>, id: EntryId, members: &BTreeMap<ReplicaId, VersionVector>) -> Result<bool> {
    let _ = (tx, id, members);
    unimplemented!("lands with this module")
}
