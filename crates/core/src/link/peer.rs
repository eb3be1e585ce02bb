//! What the index remembers of each peer: one row per peer replica in [`Table::Peers`].
//!
//! ```text
//! key    replica id, 8 bytes big-endian
//! value  format u8 (2) | cursor varint | cursor tag 8 bytes | acked varint | knowledge vv | count varint | refused entry dot ...
//!        | held cursor varint | held waiting varint
//! ```
//!
//! Format 1 has no last line: nothing is known of what the peer holds.

use super::message::Held;
use crate::codec::{Decoder, Encoder, Malformed};
use crate::id::{EntryId, ReplicaId};
use crate::rows::Table;
use crate::tx::{Result, Tx, dec};
use crate::vv::VersionVector;

const FORMAT: u8 = 2;
/// Without what the peer holds.
const FORMAT_WITHOUT_HELD: u8 = 1;

/// What is remembered of a peer between connections.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PeerRow {
    /// We have merged its feed up to here.
    pub cursor: u64,
    /// Tag of its last own commit at or before `cursor`; 0 = none seen.
    pub tag: u64,
    /// It has merged our feed up to here, as far as it told us.
    pub acked: u64,
    /// What it is known to know.
    pub knowledge: VersionVector,
    /// Entries of it that we refused and have not got in an acceptable state since. While there are any, its
    /// knowledge is not joined: ours would claim states we do not have.
    pub refused: Vec<EntryId>,
    /// What it told last of what is on its disk.
    pub held: Held,
}

/// The row of a peer; the default if there is none.
pub fn peer_row(tx: &Tx<'_>, peer: ReplicaId) -> Result<PeerRow> {
    match tx.get(Table::Peers, &peer.0.to_be_bytes())? {
        Some(b) => decode(tx, &b),
        None => Ok(PeerRow::default()),
    }
}

/// All peers ever met, ordered by replica.
pub fn peer_rows(tx: &Tx<'_>) -> Result<Vec<(ReplicaId, PeerRow)>> {
    let rows = tx.scan(Table::Peers, &[], None, usize::MAX)?;
    rows.iter()
        .map(|(k, v)| Ok((ReplicaId(dec(Table::Peers, k, |d| d.fixed64())?), decode(tx, v)?)))
        .collect()
}

/// Stores the row of a peer.
pub fn put_peer_row(tx: &mut Tx<'_>, peer: ReplicaId, row: &PeerRow) {
    let mut e = Encoder::new();
    e.u8(FORMAT);
    e.uint(row.cursor);
    e.fixed64(row.tag);
    e.uint(row.acked);
    e.vv(&row.knowledge, tx.replicas_mut());
    e.uint(row.refused.len() as u64);
    for id in &row.refused {
        e.dot(id.0, tx.replicas_mut());
    }
    e.uint(row.held.cursor);
    e.uint(row.held.waiting);
    tx.put(Table::Peers, peer.0.to_be_bytes().to_vec(), Some(e.buf));
}

fn decode(tx: &Tx<'_>, bytes: &[u8]) -> Result<PeerRow> {
    dec(Table::Peers, bytes, |d: &mut Decoder<'_>| {
        let format = d.u8()?;
        if ![FORMAT, FORMAT_WITHOUT_HELD].contains(&format) {
            return Err(Malformed { what: "format of a peer row", at: 0 });
        }
        let (cursor, tag, acked) = (d.uint()?, d.fixed64()?, d.uint()?);
        let knowledge = d.vv(tx.replicas())?;
        let count = d.count(2)?;
        let mut refused = Vec::with_capacity(count);
        for _ in 0..count {
            refused.push(EntryId(d.dot(tx.replicas())?));
        }
        let held = match format {
            FORMAT => Held { cursor: d.uint()?, waiting: d.uint()? },
            _ => Held::default(),
        };
        Ok(PeerRow { cursor, tag, acked, knowledge, refused, held })
    })
}
