//! The needs list: what could not be done yet, durably, with the reason and the next try.
//!
//! Rows of [`Table::Needs`]. The key is the entry's slot, or, for something on this disk that is no
//! entry yet (it could not even be read), two bytes `ff ff`, which no slot begins with, and the path.
//!
//! ```text
//! value: reason (1 byte) · tries · since_ns (8) · retry_ns (8) · detail (length, bytes)
//! ```
//!
//! The greatest `retry_ns` means that somebody has said not to try it: [`Need::is_skipped`].

use crate::api::Reason;
use driftless_core::codec::{Decoder, Encoder, Malformed};
use driftless_core::id::EntryId;
use driftless_core::rows::Table;
use driftless_core::tx::{Error, Result, Tx};

const PATH_PREFIX: [u8; 2] = [0xff, 0xff];

/// Longest detail that is kept, in bytes: a line for people, not a log.
const DETAIL_LEN_MAX: usize = 500;

/// The time of the next try of what is not to be tried.
pub const NEVER_NS: u64 = u64::MAX;

/// What waits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Waiter {
    /// An entry whose state is here and which could not be materialised.
    Entry(EntryId),
    /// Something on this disk that could not be recorded: path bytes below the root.
    Path(Vec<u8>),
}

/// Why and since when.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Need {
    /// Why.
    pub reason: Reason,
    /// What the system said.
    pub detail: String,
    /// Failed attempts so far.
    pub tries: u64,
    /// Wall clock of the first failure, nanoseconds since 1970.
    pub since_ns: u64,
    /// Wall clock of the next try, nanoseconds since 1970.
    pub retry_ns: u64,
}

impl Need {
    /// Somebody has said that it is not to be tried again until its entry changes.
    pub fn is_skipped(&self) -> bool {
        self.retry_ns == NEVER_NS
    }
}

/// The need of `waiter`, if it waits.
pub fn get(tx: &mut Tx<'_>, waiter: &Waiter) -> Result<Option<Need>> {
    let key = key(tx, waiter);
    tx.get(Table::Needs, &key)?.map(|value| decode(&value)).transpose()
}

/// Puts `waiter` on the list, or changes its row.
pub fn put(tx: &mut Tx<'_>, waiter: &Waiter, need: &Need) {
    let key = key(tx, waiter);
    tx.put(Table::Needs, key, Some(encode(need)));
}

/// Takes `waiter` off the list.
pub fn remove(tx: &mut Tx<'_>, waiter: &Waiter) {
    let key = key(tx, waiter);
    tx.put(Table::Needs, key, None);
}

/// At most `limit` rows after `after`, entries first.
pub fn list(tx: &mut Tx<'_>, after: Option<&Waiter>, limit: usize) -> Result<Vec<(Waiter, Need)>> {
    let from = match after {
        Some(waiter) => {
            let mut k = key(tx, waiter);
            k.push(0);
            k
        }
        None => Vec::new(),
    };
    let rows = tx.scan(Table::Needs, &from, None, limit)?;
    rows.into_iter().map(|(k, v)| Ok((waiter(tx, &k)?, decode(&v)?))).collect()
}

pub(crate) fn key(tx: &mut Tx<'_>, waiter: &Waiter) -> Vec<u8> {
    match waiter {
        Waiter::Entry(id) => tx.slot(*id).to_vec(),
        Waiter::Path(path) => [&PATH_PREFIX[..], path].concat(),
    }
}

pub(crate) fn waiter(tx: &Tx<'_>, key: &[u8]) -> Result<Waiter> {
    match key.strip_prefix(&PATH_PREFIX) {
        Some(path) => Ok(Waiter::Path(path.to_vec())),
        None => Ok(Waiter::Entry(tx.unslot(Table::Needs, key)?)),
    }
}

fn encode(need: &Need) -> Vec<u8> {
    let mut e = Encoder::new();
    // The position in the closed list fits a byte.
    e.u8(Reason::ALL.iter().position(|r| *r == need.reason).unwrap_or(0) as u8);
    e.uint(need.tries);
    e.fixed64(need.since_ns);
    e.fixed64(need.retry_ns);
    e.bytes(&need.detail.as_bytes()[..need.detail.len().min(DETAIL_LEN_MAX)]);
    e.buf
}

fn decode(bytes: &[u8]) -> Result<Need> {
    let damaged = |source: Malformed| Error::Damaged { table: Table::Needs.name(), source };
    let mut d = Decoder::new(bytes);
    let mut read = || {
        let code = d.u8()?;
        let Some(&reason) = Reason::ALL.get(usize::from(code)) else { return d.bad("reason") };
        let need = Need {
            reason,
            tries: d.uint()?,
            since_ns: d.fixed64()?,
            retry_ns: d.fixed64()?,
            detail: String::from_utf8_lossy(d.bytes()?).into_owned(),
        };
        d.end().map(|()| need)
    };
    read().map_err(damaged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use driftless_core::id::{Dot, ReplicaId};
    use driftless_core::rows::{MemStore, Store as _};
    use driftless_core::tx::Env;

    #[test]
    fn rows_come_back_as_they_were_put() {
        let store = MemStore::new();
        store.commit(Tx::create(ReplicaId(7))).unwrap();
        let snapshot = store.snapshot().unwrap();
        let mut tx = Tx::open(&*snapshot, Env { now_ns: 1, epoch: 0 }).unwrap();
        let entry = Waiter::Entry(EntryId(Dot::new(ReplicaId(7), 3)));
        let path = Waiter::Path(b"sixsix".to_vec());
        for (i, &reason) in Reason::ALL.iter().enumerate() {
            let need =
                Need { reason, detail: format!("EPERM {i}"), tries: 2, since_ns: u64::MAX, retry_ns: 10 };
            put(&mut tx, &entry, &need);
            put(&mut tx, &path, &need);
            assert_eq!(get(&mut tx, &entry).unwrap(), Some(need.clone()));
            let all = [(entry.clone(), need.clone()), (path.clone(), need)];
            assert_eq!(list(&mut tx, None, 10).unwrap(), all);
            assert_eq!(list(&mut tx, Some(&entry), 10).unwrap(), all[1..]);
        }
        remove(&mut tx, &entry);
        assert_eq!(get(&mut tx, &entry).unwrap(), None);
    }

    #[test]
    fn damaged_rows_are_errors() {
        for bytes in [&b""[..], &[200, 0], &[0; 5]] {
            assert!(decode(bytes).is_err());
        }
    }

    #[test]
    fn any_bytes_are_a_row_or_an_error() {
        let need = |reason, detail: &str| Need {
            reason,
            detail: detail.into(),
            tries: 300,
            since_ns: u64::MAX,
            retry_ns: 10,
        };
        let rows: Vec<Vec<u8>> = Reason::ALL.iter().map(|r| encode(&need(*r, "EPERM: ä"))).collect();
        driftless_testkit::fuzz::fuzz("needs", &rows, driftless_testkit::fuzz::HELD_MAX, |bytes| {
            if let Ok(need) = decode(bytes) {
                // What is read is written as something that is read.
                decode(&encode(&need)).unwrap();
            }
        });
    }
}
