//! The trash: what is written down about a version that replication replaced or removed, and the decisions about how
//! much of it is kept.
//!
//! Versions lie in the private directory in *batches*, each with a list that only grows. A record is in the list,
//! durably, before the version it describes is renamed into the batch: that rename is the commit. So a record
//! whose version is not there was never committed, or has been restored or dropped; a version without a record
//! (a damaged list) is still there, it only has lost its description.
//!
//! ```text
//! list: magic "dltrash" · format (1 byte, 1) · count x record, to the end of the file
//! record: length of body (4 bytes, big-endian) · body · check (first 8 bytes of BLAKE3 of body)
//! body: item · time_ns (8) · why (1: 1 replaced, 2 removed) · kind (1) · size · mtime
//!       · entry: replica (8 bytes), n · site (bytes) · path (bytes)
//! ```
//!
//! [`Ledger`] knows sums by batch and decides what goes and whether there is room; nothing here does I/O.

use crate::codec::{Decoded, Decoder, Encoder, Malformed};
use crate::id::{Dot, EntryId, Kind, ReplicaId};
use crate::meta::{Digest, Time};
use std::collections::BTreeMap;

const MAGIC: [u8; 8] = *b"dltrash\x01";
const CHECK_LEN: usize = 8;
/// Longest body: a path of 4,096 names of 255 bytes, and the rest. Longer ones are damage.
pub const BODY_LEN_MAX: usize = (1 << 20) + 4096;
/// Longest name of a site that is read.
const SITE_LEN_MAX: usize = 255;
/// What a version counts at least, and what sizes are rounded up to: a block. Bounds how many versions a size allows.
const BLOCK_LEN: u64 = 4096;

/// Why a version is in the trash.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Why {
    /// Another version took its place.
    Replaced = 1,
    /// It was removed.
    Removed = 2,
}

impl Why {
    /// One word, for output.
    pub fn word(self) -> &'static str {
        match self {
            Why::Replaced => "replaced",
            Why::Removed => "removed",
        }
    }
}

/// What is written down about one version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Its number in the batch, which is its name there.
    pub item: u32,
    /// Wall clock when it was put there, nanoseconds since 1970.
    pub time_ns: u64,
    /// Why.
    pub why: Why,
    /// What it is; never a directory.
    pub kind: Kind,
    /// Its length in bytes.
    pub size: u64,
    /// Its modification time.
    pub mtime: Time,
    /// The entry it belonged to; the root if that is not known.
    pub entry: EntryId,
    /// The site whose change put it here, as far as known.
    pub site: String,
    /// Where it was, below the root, as bytes.
    pub path: Vec<u8>,
}

/// What a list says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Listed {
    /// The records up to the first that is damaged or cut off.
    pub records: Vec<Record>,
    /// True if bytes follow that are no record: a crash cut the last one off, or the disk lost something.
    pub torn: bool,
}

/// The beginning of a list.
pub fn header() -> [u8; 8] {
    MAGIC
}

/// Bytes of records, to be appended to a list.
pub fn encode(records: &[Record]) -> Vec<u8> {
    let mut out = Vec::new();
    for r in records {
        let body = body(r);
        // Bodies are far below 4 GiB: paths are bounded.
        out.extend_from_slice(&(body.len() as u32).to_be_bytes());
        out.extend_from_slice(&body);
        out.extend_from_slice(&Digest::of(&body).0[..CHECK_LEN]);
    }
    out
}

fn body(r: &Record) -> Vec<u8> {
    let mut e = Encoder::new();
    e.uint(r.item.into());
    e.fixed64(r.time_ns);
    e.u8(r.why as u8);
    e.u8(r.kind as u8);
    e.uint(r.size);
    e.time(r.mtime);
    e.fixed64(r.entry.0.replica.0);
    e.uint(r.entry.0.n);
    e.bytes(&r.site.as_bytes()[..r.site.len().min(SITE_LEN_MAX)]);
    e.bytes(&r.path);
    e.buf
}

/// Reads a list. Never fails on a record: it stops at the first one that is none.
///
/// # Errors
/// If it does not begin as lists of this format do.
pub fn decode(bytes: &[u8]) -> Result<Listed, Malformed> {
    let Some(mut rest) = bytes.strip_prefix(&MAGIC) else {
        return Err(Malformed { what: "list of the trash", at: 0 });
    };
    let mut listed = Listed::default();
    while !rest.is_empty() {
        match split_record(rest) {
            Some((record, after)) => {
                listed.records.push(record);
                rest = after;
            }
            None => {
                listed.torn = true;
                break;
            }
        }
    }
    Ok(listed)
}

fn split_record(bytes: &[u8]) -> Option<(Record, &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let len = usize::try_from(u32::from_be_bytes(*len)).ok().filter(|len| *len <= BODY_LEN_MAX)?;
    let (body, rest) = rest.split_at_checked(len)?;
    let (check, rest) = rest.split_at_checked(CHECK_LEN)?;
    if check != &Digest::of(body).0[..CHECK_LEN] {
        return None;
    }
    Some((decode_body(body).ok()?, rest))
}

fn decode_body(body: &[u8]) -> Decoded<Record> {
    let mut d = Decoder::new(body);
    let item = d.u32()?;
    let time_ns = d.fixed64()?;
    let why = match d.u8()? {
        1 => Why::Replaced,
        2 => Why::Removed,
        _ => return d.bad("why"),
    };
    let Some(kind) = Kind::from_code(d.u8()?) else { return d.bad("kind") };
    let (size, mtime) = (d.uint()?, d.time()?);
    let entry = EntryId(Dot::new(ReplicaId(d.fixed64()?), d.uint()?));
    let site = String::from_utf8_lossy(d.bytes()?).into_owned();
    let path = d.bytes()?.to_vec();
    d.end()?;
    Ok(Record { item, time_ns, why, kind, size, mtime, entry, site, path })
}

/// What a version of so many bytes counts.
pub fn weight(size: u64) -> u64 {
    size.max(1).checked_next_multiple_of(BLOCK_LEN).unwrap_or(u64::MAX)
}

/// How much is kept. Without either the trash takes nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// Versions go when they have been there so long, and with `bytes_max` are sure to stay until then.
    pub keep_ns: Option<u64>,
    /// No more than so many bytes are kept.
    pub bytes_max: Option<u64>,
}

/// What is in a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sum {
    /// When the oldest version in it came, nanoseconds since 1970.
    pub oldest_ns: u64,
    /// What its versions weigh.
    pub bytes: u64,
}

/// What is to go, from the oldest batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expire {
    /// Versions that came at this time, nanoseconds since 1970, or before.
    Until(u64),
    /// The oldest versions, until so many bytes are gone.
    Bytes(u64),
}

/// Sums of what is in the trash, by batch, and what follows from them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ledger {
    limits: Limits,
    batches: BTreeMap<u64, Sum>,
}

impl Ledger {
    /// An empty one.
    pub fn new(limits: Limits) -> Ledger {
        Ledger { limits, batches: BTreeMap::new() }
    }

    /// What all versions weigh.
    pub fn bytes(&self) -> u64 {
        self.batches.values().fold(0, |sum, b| sum.saturating_add(b.bytes))
    }

    /// The greatest number of a batch.
    pub fn newest_batch(&self) -> Option<u64> {
        self.batches.last_key_value().map(|(n, _)| *n)
    }

    /// What is in a batch now; `None`: nothing.
    pub fn set(&mut self, batch: u64, sum: Option<Sum>) {
        match sum {
            Some(sum) => self.batches.insert(batch, sum),
            None => self.batches.remove(&batch),
        };
    }

    /// A version came into a batch.
    pub fn add(&mut self, batch: u64, time_ns: u64, weight: u64) {
        let sum = self.batches.entry(batch).or_insert(Sum { oldest_ns: time_ns, bytes: 0 });
        sum.bytes = sum.bytes.saturating_add(weight);
    }

    /// True if a version of this weight may come when versions of `coming` bytes are on their way already. Where
    /// versions may go for others only its own weight counts.
    pub fn has_room(&self, coming: u64, weight: u64) -> bool {
        let Some(max) = self.limits.bytes_max else { return true };
        match self.limits.keep_ns {
            Some(_) => self.bytes().saturating_add(coming).saturating_add(weight) <= max,
            None => weight <= max,
        }
    }

    /// What has to go now, if anything has.
    pub fn expired(&self, now_ns: u64) -> Option<(u64, Expire)> {
        let (oldest, sum) = self.batches.first_key_value()?;
        match (self.limits.keep_ns, self.limits.bytes_max) {
            (Some(keep_ns), _) => {
                let until = now_ns.checked_sub(keep_ns)?;
                (sum.oldest_ns <= until).then_some((*oldest, Expire::Until(until)))
            }
            (None, Some(max)) => {
                let over = self.bytes().saturating_sub(max);
                (over > 0).then_some((*oldest, Expire::Bytes(over)))
            }
            (None, None) => None,
        }
    }

    /// When something has to go next, nanoseconds since 1970.
    pub fn expires_at_ns(&self) -> Option<u64> {
        let (_, sum) = self.batches.first_key_value()?;
        Some(sum.oldest_ns.saturating_add(self.limits.keep_ns?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(item: u32, path: &[u8]) -> Record {
        Record {
            item,
            time_ns: 1_700_000_000_000_000_000 + u64::from(item),
            why: if item.is_multiple_of(2) { Why::Removed } else { Why::Replaced },
            kind: Kind::File,
            size: 1 << (item % 60),
            mtime: Time { sec: -5, nsec: 999_999_999 },
            entry: EntryId(Dot::new(ReplicaId(u64::MAX), 77)),
            site: "oslo".into(),
            path: path.to_vec(),
        }
    }

    fn list(records: &[Record]) -> Vec<u8> {
        [&header()[..], &encode(records)].concat()
    }

    #[test]
    fn lists_come_back_as_they_were_written() {
        let records = [record(0, b"a"), record(1, b"d/\xff\n"), record(2, &vec![b'x'; 1 << 20])];
        assert_eq!(decode(&list(&records)).unwrap(), Listed { records: records.to_vec(), torn: false });
        assert_eq!(decode(&list(&[])).unwrap(), Listed::default());
    }

    #[test]
    fn a_list_cut_off_anywhere_gives_the_records_before() {
        let records = [record(0, b"a/b"), record(1, b"c")];
        let whole = list(&records);
        let ends = [list(&[]).len(), list(&records[..1]).len(), whole.len()];
        for len in 8..=whole.len() {
            let got = decode(&whole[..len]).unwrap();
            let complete = ends.iter().filter(|end| **end <= len).count() - 1;
            assert_eq!(got.records, records[..complete], "{len}");
            assert_eq!(got.torn, !ends.contains(&len), "{len}");
        }
        for len in 0..8 {
            assert!(decode(&whole[..len]).is_err());
        }
    }

    #[test]
    fn damage_is_found_and_nothing_panics() {
        let whole = list(&[record(0, b"a/b"), record(1, b"c")]);
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << bit;
                let intact = decode(&bytes).is_ok_and(|l| !l.torn && l.records.len() == 2);
                assert!(!intact, "byte {at} bit {bit}");
            }
        }
        let huge = [&header()[..], &u32::MAX.to_be_bytes(), &[0; 100]].concat();
        assert_eq!(decode(&huge).unwrap(), Listed { records: vec![], torn: true });
    }

    const DAY: u64 = 86_400_000_000_000;

    fn ledger(keep_ns: Option<u64>, bytes_max: Option<u64>) -> Ledger {
        let mut l = Ledger::new(Limits { keep_ns, bytes_max });
        for (batch, time) in [(1, DAY), (1, 2 * DAY), (2, 3 * DAY)] {
            l.add(batch, time, weight(4096));
        }
        l
    }

    #[test]
    fn versions_count_whole_blocks() {
        assert_eq!([0, 1, 4096, 4097].map(weight), [4096, 4096, 4096, 8192]);
        assert_eq!(weight(u64::MAX), u64::MAX);
    }

    #[test]
    fn age_alone_lets_go_what_is_old() {
        let l = ledger(Some(10 * DAY), None);
        assert!(l.has_room(u64::MAX, u64::MAX));
        assert_eq!(l.expired(11 * DAY - 1), None);
        assert_eq!(l.expired(11 * DAY), Some((1, Expire::Until(DAY))));
        assert_eq!(l.expires_at_ns(), Some(11 * DAY));
    }

    #[test]
    fn size_alone_lets_go_the_oldest_for_others() {
        assert_eq!(ledger(None, Some(3 * 4096)).expired(u64::MAX), None);
        let l = ledger(None, Some(2 * 4096));
        assert_eq!(l.expired(0), Some((1, Expire::Bytes(4096))));
        assert!(l.has_room(1 << 40, 2 * 4096));
        assert!(!l.has_room(0, 2 * 4096 + 1), "larger than the whole trash");
    }

    #[test]
    fn with_both_nothing_young_goes_and_what_comes_waits() {
        let mut l = ledger(Some(10 * DAY), Some(4 * 4096));
        assert!(l.has_room(0, 4096));
        assert!(!l.has_room(4096, 4096));
        assert_eq!(l.expired(5 * DAY), None);
        l.set(1, None);
        assert!(l.has_room(4096, 2 * 4096));
        assert_eq!((l.bytes(), l.newest_batch()), (4096, Some(2)));
    }
}
