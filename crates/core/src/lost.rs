//! Versions that are known here and that nobody who could be asked holds: their maker's disk failed, or a power cut took
//! them, before anybody else had their content.
//!
//! Replicas learn of such a version when one asks for its content and the other must say that it has none. Both write it
//! down, until the content is found after all or the version counts no more. What to do about it is a person's decision
//! ([`accept`]): the newest version before it that is still held is published again, or, where there is none, the entry is
//! removed; a local change like any other, made by somebody who has seen the lost version.
//!
//! ```text
//! key    slot of the entry, 8 bytes | version: replica id 8 bytes, n 8 bytes, both big-endian
//! value  format u8 (1) | why u8 | flags u8 (1 here, 2 accepted) | since 8 bytes, nanoseconds since 1970
//!        | count varint | replica ids that lack it, 8 bytes each | detail bytes
//! ```

use crate::codec::{Decoder, Encoder, Malformed};
use crate::id::{Dot, EntryId, ReplicaId};
use crate::link;
use crate::local;
use crate::rows::Table;
use crate::tx::{Error, Result, Tx, dec};

const FORMAT: u8 = 1;
const FLAG_HERE: u8 = 1;
const FLAG_ACCEPTED: u8 = 2;
/// Longest detail that is kept, in bytes: a line for people, not a log.
const DETAIL_LEN_MAX: usize = 500;
const SLOT_LEN: usize = 8;

/// Why a replica cannot give a version's content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Why {
    /// It is not on the disk.
    Absent = 0,
    /// The disk fails when it is read.
    Unreadable = 1,
    /// What can be read is something else, and nobody has written it.
    Damaged = 2,
}

impl Why {
    /// All of them, by their numbers in the row.
    pub const ALL: [Why; 3] = [Why::Absent, Why::Unreadable, Why::Damaged];
}

/// What is known of a lost version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LostRow {
    /// What the disk that should have it says.
    pub why: Why,
    /// That disk is ours: the version is recorded as being on it.
    pub here: bool,
    /// A person has said that it may be given up; who has an earlier version publishes that.
    pub accepted: bool,
    /// Wall clock, nanoseconds since 1970.
    pub since_ns: u64,
    /// Other replicas that said that they lack it, or that asked for it.
    pub lacked_by: Vec<ReplicaId>,
    /// What the system said, for people.
    pub detail: String,
}

/// A version of an entry.
pub type Key = (EntryId, Dot);

/// The row of a version, if it is lost.
pub fn get(tx: &mut Tx<'_>, key: Key) -> Result<Option<LostRow>> {
    let key = row_key(tx, key);
    tx.get(Table::Lost, &key)?.map(|b| dec(Table::Lost, &b, decode)).transpose()
}

/// Writes down that a version is lost.
pub fn put(tx: &mut Tx<'_>, key: Key, row: &LostRow) {
    let key = row_key(tx, key);
    tx.put(Table::Lost, key, Some(encode(row)));
}

/// It was found, or counts no more.
pub fn remove(tx: &mut Tx<'_>, key: Key) {
    let key = row_key(tx, key);
    tx.put(Table::Lost, key, None);
}

/// At most `limit` lost versions after the row `after`, each with its row's key. Some may count no more: see [`counts`].
pub fn list(tx: &mut Tx<'_>, after: Option<&[u8]>, limit: usize) -> Result<Vec<(Vec<u8>, Key, LostRow)>> {
    let from = after.map(|k| [k, &[0]].concat()).unwrap_or_default();
    let rows = tx.scan(Table::Lost, &from, None, limit)?;
    rows.into_iter()
        .map(|(k, v)| {
            let of = key_of(tx, &k)?;
            Ok((k, of, dec(Table::Lost, &v, decode)?))
        })
        .collect()
}

/// True if the version is one that should be shown.
pub fn counts(tx: &mut Tx<'_>, (entry, version): Key) -> Result<bool> {
    Ok(tx.entry(entry)?.is_some_and(|row| row.entry.counting().any(|v| v.dot == version)))
}

/// Replicas that may hold the version, ordered: they know of it, and have not said that they lack it. None: it is nowhere.
pub fn may_be_at(tx: &mut Tx<'_>, version: Dot, row: &LostRow) -> Result<Vec<ReplicaId>> {
    let me = tx.me();
    let peers = link::peer_rows(tx)?;
    let knowing = peers.iter().filter(|(_, peer)| peer.knowledge.covers(version)).map(|(r, _)| *r);
    let mut at: Vec<ReplicaId> = knowing.chain([version.replica]).collect();
    at.retain(|r| *r != me && !row.lacked_by.contains(r));
    at.sort_unstable();
    at.dedup();
    Ok(at)
}

/// How a lost version may be given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AcceptOptions {
    /// Remove the entry, though an earlier version of it may be held somewhere.
    pub remove: bool,
    /// Though a replica that cannot be reached may hold the version.
    pub anyway: bool,
}

/// What became of a version that was given up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Accepted {
    /// The earlier version that this disk shows is published again, beside other versions if there are any: they need not
    /// have seen it.
    Republished,
    /// There is none; other versions of the entry stay.
    OthersStay,
    /// Nothing of it was held: the entry is removed.
    Removed,
    /// This disk has no earlier version, another one may: it is asked at the next connection.
    Noted,
    /// Refused: these replicas may hold it.
    MayBeAt(Vec<ReplicaId>),
    /// It is not lost (any more).
    NotLost,
}

/// Gives a lost version up.
///
/// # Errors
/// If the index cannot be read.
pub fn accept(tx: &mut Tx<'_>, key: Key, options: AcceptOptions) -> Result<Accepted> {
    let (id, version) = key;
    let Some(row) = get(tx, key)? else { return Ok(Accepted::NotLost) };
    if !counts(tx, key)? {
        remove(tx, key);
        return Ok(Accepted::NotLost);
    }
    let elsewhere = may_be_at(tx, version, &row)?;
    if !elsewhere.is_empty() && !options.anyway {
        return Ok(Accepted::MayBeAt(elsewhere));
    }
    let others = tx.entry_must(id)?.entry.counting().any(|v| v.dot != version);
    // Who shows the lost version itself has nothing earlier in its place.
    let nobody_has_earlier = !row.here && row.why != Why::Absent;
    let done = if options.remove && !others {
        Accepted::Removed
    } else if !options.remove && local::has_earlier(tx, id, version)? {
        Accepted::Republished
    } else if others {
        Accepted::OthersStay
    } else if nobody_has_earlier {
        Accepted::Removed
    } else {
        put(tx, key, &LostRow { accepted: true, ..row });
        return Ok(Accepted::Noted);
    };
    match options.remove {
        true => local::give_up(tx, id, version)?,
        false => local::withdraw(tx, id, version)?,
    }
    remove(tx, key);
    Ok(done)
}

fn row_key(tx: &mut Tx<'_>, (entry, version): Key) -> Vec<u8> {
    let slot = tx.slot(entry);
    [&slot[..], &version.replica.0.to_be_bytes(), &version.n.to_be_bytes()].concat()
}

fn key_of(tx: &Tx<'_>, key: &[u8]) -> Result<Key> {
    let damaged = || Error::Damaged { table: Table::Lost.name(), source: Malformed { what: "key", at: 0 } };
    let (slot, version) = key.split_at_checked(SLOT_LEN).ok_or_else(damaged)?;
    let version = dec(Table::Lost, version, |d| Ok(Dot::new(ReplicaId(d.fixed64()?), d.fixed64()?)))?;
    Ok((tx.unslot(Table::Lost, slot)?, version))
}

fn encode(row: &LostRow) -> Vec<u8> {
    let mut e = Encoder::new();
    e.u8(FORMAT);
    e.u8(row.why as u8);
    e.u8(if row.here { FLAG_HERE } else { 0 } | if row.accepted { FLAG_ACCEPTED } else { 0 });
    e.fixed64(row.since_ns);
    e.uint(row.lacked_by.len() as u64);
    for replica in &row.lacked_by {
        e.fixed64(replica.0);
    }
    e.bytes(&row.detail.as_bytes()[..row.detail.len().min(DETAIL_LEN_MAX)]);
    e.buf
}

fn decode(d: &mut Decoder<'_>) -> std::result::Result<LostRow, Malformed> {
    if d.u8()? != FORMAT {
        return d.bad("format of a lost version");
    }
    let why = d.u8()?;
    let Some(&why) = Why::ALL.get(usize::from(why)) else { return d.bad("why a version is lost") };
    let flags = d.u8()?;
    let since_ns = d.fixed64()?;
    let count = d.count(size_of::<u64>())?;
    let mut lacked_by = Vec::with_capacity(count);
    for _ in 0..count {
        lacked_by.push(ReplicaId(d.fixed64()?));
    }
    let detail = String::from_utf8_lossy(d.bytes()?).into_owned();
    let (here, accepted) = (flags & FLAG_HERE != 0, flags & FLAG_ACCEPTED != 0);
    Ok(LostRow { why, here, accepted, since_ns, lacked_by, detail })
}

#[cfg(test)]
mod tests;
