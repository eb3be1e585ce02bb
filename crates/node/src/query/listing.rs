//! What the merged tree shows, in the order of the feed: what a site that is about to join compares its directory with.

use super::{Cursor, PAGE_ROWS_MAX, Page, text};
use crate::api::PathText;
use driftless_core::id::{EntryId, Name};
use driftless_core::tree;
use driftless_core::tx::{Error, Result, Tx};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// Bytes of paths after which a page ends: an answer has a greatest length, whatever paths there are.
const PAGE_PATH_BYTES_MAX: usize = 512 << 10;

/// Something that a volume shows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ListedRow {
    /// Where.
    pub path: PathText,
    /// `file`, `dir`, ...
    pub kind: String,
    /// Bytes; 0 of what is no file.
    pub size: u64,
    /// What equal contents share, in hex: BLAKE3 of a file's bytes; empty of directories.
    pub identity: String,
}

/// The rows after a position of the feed. A page may be empty and not the last.
pub(super) fn page(tx: &mut Tx<'_>, after: Option<&Cursor>) -> Result<Page<ListedRow>> {
    let since = after.map(position).transpose()?.unwrap_or(0);
    let feed = tx.feed_after(since, PAGE_ROWS_MAX)?;
    let full = feed.len() == PAGE_ROWS_MAX;
    let mut dirs = BTreeMap::new();
    let (mut rows, mut bytes, mut at) = (Vec::new(), 0, since);
    for (n, id) in feed {
        let before = rows.len();
        rows_of(tx, id, &mut dirs, &mut rows)?;
        bytes += rows[before..].iter().map(|r| r.path.text.len()).sum::<usize>();
        at = n;
        if bytes > PAGE_PATH_BYTES_MAX {
            return Ok(Page { rows, next: Some(cursor(at)) });
        }
    }
    Ok(Page { rows, next: full.then(|| cursor(at)) })
}

fn cursor(n: u64) -> Cursor {
    Cursor::new(&n.to_be_bytes())
}

fn position(cursor: &Cursor) -> Result<u64> {
    let bytes = cursor.key()?.try_into();
    bytes.map(u64::from_be_bytes).map_err(|_| Error::Inconsistent("the cursor is not one of ours".into()))
}

/// Every name that an entry is shown under; `dirs` remembers paths of directories.
fn rows_of(
    tx: &mut Tx<'_>,
    id: EntryId,
    dirs: &mut BTreeMap<EntryId, Option<Vec<u8>>>,
    rows: &mut Vec<ListedRow>,
) -> Result<()> {
    let kind = tx.entry_must(id)?.entry.kind;
    for (parent, name) in tree::shown_names(tx, id)? {
        let above = match dirs.entry(parent) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(tree::path_of(tx, parent)?.map(|names| text::join(&names))),
        };
        let Some(above) = above.clone() else { continue };
        if kind.is_dir() {
            rows.push(row(&above, &name, kind.word(), 0, String::new()));
            continue;
        }
        let class = tree::class_of(tx, parent)?;
        for group in tree::shown_at(tx, &class, &name)?.groups {
            let Some(claim) = group.claims.iter().find(|c| c.entry == id) else { continue };
            let row_of = tx.entry_must(id)?;
            let Some(version) = row_of.entry.version(claim.version) else { continue };
            let identity = text::hex(&version.content.identity().0);
            rows.push(row(&above, &group.name, kind.word(), version.content.size(), identity));
        }
    }
    Ok(())
}

fn row(above: &[u8], name: &Name, kind: &str, size: u64, identity: String) -> ListedRow {
    let slash: &[u8] = if above.is_empty() { b"" } else { b"/" };
    let path = PathText::new(&[above, slash, name.as_bytes()].concat());
    ListedRow { path, kind: kind.to_owned(), size, identity }
}
