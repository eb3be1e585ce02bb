//! Questions about one replica, answered from a snapshot of its index: conflicts, what waits, what is lost, the feed,
//! and why a path is as it is. Pure reads, so that the command line (on an idle replica) and a
//! running session (on the [`crate::control`] socket) give the same answers with the same code.
//!
//! Lists come in pages: a request says where to go on and how many rows at most, an answer says
//! where the next page begins. One page costs a bounded amount of work.

mod changes;
mod conflicts;
mod listing;
mod lost;
mod text;
mod why;

use crate::api::{PathText, Reason};
use crate::needs::{self, Need, Waiter};
use driftless_core::rows::Read;
use driftless_core::tx::{Env, Error, Result, Tx};
use driftless_core::{EntryId, NodeKey, tree};
use serde::{Deserialize, Serialize};

pub(crate) use changes::author;
pub use listing::ListedRow;
pub(crate) use lost::accepted;
pub use lost::{AcceptOutcome, AcceptRow, LostVersion};
pub(crate) use text::{site, unhex};
pub use text::{time, time_of_ns};
pub use why::{Claimant, Explanation, NameRow, OnDisk, VersionRow};

/// Most rows of one page.
pub const PAGE_ROWS_MAX: usize = 1000;

/// A question.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "query", rename_all = "snake_case")]
pub enum Request {
    /// Conflict copies on this disk.
    Conflicts {
        /// Where the page before ended.
        after: Option<Cursor>,
    },
    /// Entries that wait.
    Failures {
        /// Where the page before ended.
        after: Option<Cursor>,
    },
    /// Versions that nobody holds who could be asked.
    Lost {
        /// Where the page before ended.
        after: Option<Cursor>,
    },
    /// Gives a lost version up. No question: whoever works on the replica does it.
    Accept(AcceptRow),
    /// The feed after a position.
    Changes {
        /// Rows after this position.
        since: u64,
        /// At most so many (and at most [`PAGE_ROWS_MAX`]).
        limit: usize,
    },
    /// Whose feed this is, and where it ends.
    Feed,
    /// What the merged tree shows.
    Listing {
        /// Where the page before ended.
        after: Option<Cursor>,
    },
    /// Why a path is as it is.
    Why {
        /// The path below the root, in hex: paths are bytes.
        path_hex: String,
    },
}

impl Request {
    /// Asks about `path`, bytes below the root.
    pub fn why(path: &[u8]) -> Request {
        Request::Why { path_hex: text::hex(path) }
    }
}

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// To [`Request::Conflicts`].
    Conflicts(Page<ConflictRow>),
    /// To [`Request::Failures`].
    Failures(Page<FailureRow>),
    /// To [`Request::Lost`].
    Lost(Page<LostVersion>),
    /// To [`Request::Accept`].
    Accepted(AcceptOutcome),
    /// To [`Request::Changes`].
    Changes(Vec<ChangeRow>),
    /// To [`Request::Feed`].
    Feed {
        /// The replica, in hex: positions mean something in its feed only.
        replica: String,
        /// The last position.
        head: u64,
    },
    /// To [`Request::Listing`].
    Listing(Page<ListedRow>),
    /// To [`Request::Why`].
    Why(Box<Explanation>),
    /// It could not be answered: why, for people.
    Failed(String),
}

/// Where a list goes on. Only means something to the list that gave it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cursor(String);

impl Cursor {
    fn new(key: &[u8]) -> Cursor {
        Cursor(text::hex(key))
    }

    fn key(&self) -> Result<Vec<u8>> {
        text::unhex(&self.0).ok_or_else(|| Error::Inconsistent("the cursor is not one of ours".into()))
    }
}

/// Part of a list.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Page<T> {
    /// The rows.
    pub rows: Vec<T>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<Cursor>,
}

/// A conflict copy on this disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ConflictRow {
    /// The copy.
    pub path: PathText,
    /// What has the name that both wanted.
    pub winner: PathText,
    /// `file`, `symlink`, ...
    pub kind: String,
    /// Bytes of the copy.
    pub size: u64,
    /// Modification time of the copy, RFC 3339, UTC.
    pub modified: String,
    /// The site that wrote it.
    pub written_by: String,
    /// Its entry.
    pub entry: String,
}

/// An entry that waits.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FailureRow {
    /// Where it is or would be; empty if that is not known.
    pub path: PathText,
    /// Why it waits.
    pub reason: Reason,
    /// What the system said.
    pub detail: String,
    /// What to do.
    pub advice: String,
    /// First failure, RFC 3339, UTC.
    pub since: String,
    /// Failed attempts.
    pub tries: u64,
    /// When it is tried again by itself, RFC 3339, UTC, as planned when it failed last; earlier if something happens there.
    #[serde(default)]
    pub retry: String,
    /// The entry, if it is one already.
    pub entry: Option<String>,
    /// Somebody has said that it is not to be tried again.
    #[serde(default)]
    pub skipped: bool,
}

/// One row of the feed: an entry at its newest change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChangeRow {
    /// Position in this replica's feed.
    pub seq: u64,
    /// Entry id.
    pub entry: String,
    /// What the newest change was.
    pub class: Class,
    /// `file`, `dir`, `symlink`, ...
    pub kind: String,
    /// Permission bits, octal.
    pub mode: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// False if the entry has been removed.
    pub present: bool,
    /// Entry id of its directory; `root` for the root.
    pub parent: String,
    /// Its name there.
    pub name: PathText,
    /// Its path now, if it is shown.
    pub path: Option<PathText>,
    /// The site that made the change, as far as the state says.
    pub by: String,
}

/// Class of a change, as GlusterFS's changelog has it. A feed keeps each entry once, so this is the
/// class of its newest change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Class {
    /// The entry came, went, or changed its name.
    Entry,
    /// Its content changed.
    Data,
    /// Its attributes changed.
    Meta,
}

/// Answers `request` from `snapshot`.
pub fn answer(snapshot: &dyn Read, request: &Request) -> Response {
    // Reading makes no stamps, so it needs no time.
    let answered = Tx::open(snapshot, Env { now_ns: 0, epoch: 0 }).and_then(|mut tx| match request {
        Request::Conflicts { after } => conflicts::page(&mut tx, after.as_ref()).map(Response::Conflicts),
        Request::Failures { after } => failures(&mut tx, after.as_ref()).map(Response::Failures),
        Request::Lost { after } => lost::page(&mut tx, after.as_ref()).map(Response::Lost),
        Request::Accept(_) => Ok(Response::Failed("a snapshot cannot be changed".into())),
        Request::Changes { since, limit } => changes::page(&mut tx, *since, *limit).map(Response::Changes),
        Request::Feed => Ok(Response::Feed { replica: format!("{:016x}", tx.me().0), head: tx.head() }),
        Request::Listing { after } => listing::page(&mut tx, after.as_ref()).map(Response::Listing),
        Request::Why { path_hex } => why_hex(&mut tx, path_hex),
    });
    answered.unwrap_or_else(|e| Response::Failed(e.to_string()))
}

fn why_hex(tx: &mut Tx<'_>, path_hex: &str) -> Result<Response> {
    match text::unhex(path_hex) {
        Some(path) => Ok(Response::Why(Box::new(why::explain(tx, &path)?))),
        None => Ok(Response::Failed("the path is not hex".into())),
    }
}

fn failures(tx: &mut Tx<'_>, after: Option<&Cursor>) -> Result<Page<FailureRow>> {
    let after = after.map(|c| c.key().and_then(|k| needs::waiter(tx, &k))).transpose()?;
    let rows = needs::list(tx, after.as_ref(), PAGE_ROWS_MAX)?;
    let next = match rows.last() {
        Some((last, _)) if rows.len() == PAGE_ROWS_MAX => Some(Cursor::new(&needs::key(tx, last))),
        _ => None,
    };
    let rows = rows.into_iter().map(|(w, n)| failure_row(tx, w, n)).collect::<Result<_>>()?;
    Ok(Page { rows, next })
}

fn failure_row(tx: &mut Tx<'_>, waiter: Waiter, need: Need) -> Result<FailureRow> {
    let (path, entry) = match waiter {
        Waiter::Path(path) => (Some(path), None),
        Waiter::Entry(id) => (entry_path(tx, id)?, Some(id.to_string())),
    };
    let skipped = need.is_skipped();
    Ok(FailureRow {
        path: PathText::new(&path.unwrap_or_default()),
        reason: need.reason,
        detail: need.detail,
        advice: need.reason.advice().to_owned(),
        since: text::time_of_ns(need.since_ns),
        tries: need.tries,
        retry: if skipped { String::new() } else { text::time_of_ns(need.retry_ns) },
        skipped,
        entry,
    })
}

/// Where an entry is shown; else where this disk still has it: its removal waits.
pub(crate) fn entry_path(tx: &mut Tx<'_>, id: EntryId) -> Result<Option<Vec<u8>>> {
    if let Some(names) = tree::path_of(tx, id)? {
        return Ok(Some(text::join(&names)));
    }
    match tx.entry(id)?.and_then(|row| row.bound.first().cloned()) {
        Some(node) => node_path(tx, &node),
        None => Ok(None),
    }
}

/// The path below the root at which this disk has the inode (the first of its names), as bytes.
fn node_path(tx: &mut Tx<'_>, key: &NodeKey) -> Result<Option<Vec<u8>>> {
    let mut names = Vec::new();
    let mut at = key.clone();
    while let Some(node) = tx.node(&at)? {
        match node.names.first() {
            None => {
                names.reverse();
                return Ok(Some(text::join(&names)));
            }
            // Paths on a disk have no cycles; a damaged index may.
            Some(_) if names.len() > DEPTH_MAX => break,
            Some((dir, name)) => {
                names.push(name.clone());
                at = dir.clone();
            }
        }
    }
    Ok(None)
}

/// Deepest path that is followed: Linux takes no path above 4096 bytes at once, trees made step by step
/// may be somewhat deeper.
const DEPTH_MAX: usize = 10_000;

#[cfg(test)]
mod tests;
