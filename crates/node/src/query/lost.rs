//! Versions that nobody holds who could be asked, and giving them up.

use super::{Cursor, PAGE_ROWS_MAX, Page, Response, entry_path, text};
use crate::api::PathText;
use driftless_core::id::{Dot, EntryId, ReplicaId};
use driftless_core::local;
use driftless_core::lost::{self, AcceptOptions, Accepted, Key, Why};
use driftless_core::tx::{Result, Tx};
use serde::{Deserialize, Serialize};

/// A version that nobody holds who could be asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LostVersion {
    /// Where its entry is shown, or would be.
    pub path: PathText,
    /// Entry id.
    pub entry: String,
    /// The change that made it.
    pub version: String,
    /// Bytes.
    pub size: u64,
    /// RFC 3339, UTC.
    pub modified: String,
    /// The site that wrote it.
    pub written_by: String,
    /// `absent`, `unreadable` or `damaged`: what the disk that should have it says.
    pub why: String,
    /// What the system said.
    pub detail: String,
    /// True if that disk is this one.
    pub here: bool,
    /// Since when that is known, RFC 3339, UTC.
    pub since: String,
    /// Sites that lack it.
    pub lacked_by: Vec<String>,
    /// Sites that know of it and were not asked.
    pub may_be_at: Vec<String>,
    /// True if this disk shows an earlier version.
    pub earlier_here: bool,
    /// True if it was given up, and another end has to say what it has.
    pub accepted: bool,
}

/// Which version is to be given up, and how far.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AcceptRow {
    /// As in [`LostVersion::entry`].
    pub entry: String,
    /// As in [`LostVersion::version`].
    pub version: String,
    /// See [`AcceptOptions::remove`].
    pub remove: bool,
    /// See [`AcceptOptions::anyway`].
    pub anyway: bool,
}

impl AcceptRow {
    /// The version and the options; `None` if these are no ids.
    pub(crate) fn parts(&self) -> Option<(Key, AcceptOptions)> {
        let key = (EntryId(dot(&self.entry)?), dot(&self.version)?);
        Some((key, AcceptOptions { remove: self.remove, anyway: self.anyway }))
    }
}

fn dot(text: &str) -> Option<Dot> {
    let (replica, n) = text.split_once('-')?;
    Some(Dot::new(ReplicaId(u64::from_str_radix(replica, 16).ok()?), n.parse().ok()?))
}

/// What became of a version that was to be given up.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "done", rename_all = "snake_case")]
pub enum AcceptOutcome {
    /// The earlier version that this disk shows is published again.
    Republished,
    /// Other versions of the entry stay.
    OthersStay,
    /// Nothing of it was held: the entry is removed.
    Removed,
    /// The other end is asked at the next connection.
    Noted,
    /// Refused: these sites may hold it.
    MayBeAt {
        /// Their names.
        sites: Vec<String>,
    },
    /// It is not lost (any more).
    NotLost,
}

/// The lost versions among the next rows.
pub(super) fn page(tx: &mut Tx<'_>, after: Option<&Cursor>) -> Result<Page<LostVersion>> {
    let after = after.map(Cursor::key).transpose()?;
    let found = lost::list(tx, after.as_deref(), PAGE_ROWS_MAX)?;
    let next = found.last().filter(|_| found.len() == PAGE_ROWS_MAX).map(|(at, ..)| Cursor::new(at));
    let mut rows = Vec::new();
    for (_, key, row) in found {
        rows.extend(version(tx, key, &row)?);
    }
    Ok(Page { rows, next })
}

/// `None` if it counts no more.
fn version(tx: &mut Tx<'_>, (id, version): Key, row: &lost::LostRow) -> Result<Option<LostVersion>> {
    let Some(entry) = tx.entry(id)? else { return Ok(None) };
    let Some(found) = entry.entry.counting().find(|v| v.dot == version) else { return Ok(None) };
    let path = entry_path(tx, id)?.unwrap_or_default();
    let may_be_at = lost::may_be_at(tx, version, row)?;
    Ok(Some(LostVersion {
        path: PathText::new(&path),
        entry: id.to_string(),
        version: version.to_string(),
        size: found.content.size(),
        modified: text::time(found.content.mtime()),
        written_by: text::site(tx, version.replica)?,
        why: match row.why {
            Why::Absent => "absent",
            Why::Unreadable => "unreadable",
            Why::Damaged => "damaged",
        }
        .into(),
        detail: row.detail.clone(),
        here: row.here,
        since: text::time_of_ns(row.since_ns),
        lacked_by: sites(tx, &row.lacked_by)?,
        may_be_at: sites(tx, &may_be_at)?,
        earlier_here: local::has_earlier(tx, id, version)?,
        accepted: row.accepted,
    }))
}

fn sites(tx: &Tx<'_>, replicas: &[ReplicaId]) -> Result<Vec<String>> {
    replicas.iter().map(|r| text::site(tx, *r)).collect()
}

/// What came of [`lost::accept`], for who asked.
pub(crate) fn accepted(tx: &Tx<'_>, done: &Accepted) -> Result<Response> {
    Ok(Response::Accepted(match done {
        Accepted::Republished => AcceptOutcome::Republished,
        Accepted::OthersStay => AcceptOutcome::OthersStay,
        Accepted::Removed => AcceptOutcome::Removed,
        Accepted::Noted => AcceptOutcome::Noted,
        Accepted::MayBeAt(replicas) => AcceptOutcome::MayBeAt { sites: sites(tx, replicas)? },
        Accepted::NotLost => AcceptOutcome::NotLost,
    }))
}
