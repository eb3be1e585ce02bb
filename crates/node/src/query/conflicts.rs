//! Conflict copies: the paths on this disk that are shown under a name made for them.

use super::{ConflictRow, Cursor, PAGE_ROWS_MAX, Page, node_path, text};
use crate::api::PathText;
use driftless_core::codec::{Decoder, Malformed};
use driftless_core::disk::{NodeKey, Place};
use driftless_core::id::Name;
use driftless_core::rows::Table;
use driftless_core::tx::{Error, Result, Tx};

/// Most paths looked at for one page, most of which are no conflict copies.
const SCANNED_MAX: usize = 20_000;

/// The conflict copies among the next paths.
pub(super) fn page(tx: &mut Tx<'_>, after: Option<&Cursor>) -> Result<Page<ConflictRow>> {
    let mut from = after.map(Cursor::key).transpose()?.unwrap_or_default();
    let mut page = Page { rows: Vec::new(), next: None };
    for _ in 0..SCANNED_MAX / PAGE_ROWS_MAX {
        let places = tx.scan(Table::Places, &from, None, PAGE_ROWS_MAX)?;
        let Some((last, _)) = places.last() else { return Ok(page) };
        from = [last.as_slice(), &[0]].concat();
        for (key, value) in &places {
            page.rows.extend(copy_at(tx, key, value)?);
        }
        if page.rows.len() >= PAGE_ROWS_MAX {
            break;
        }
    }
    page.next = Some(Cursor::new(&from));
    Ok(page)
}

fn copy_at(tx: &mut Tx<'_>, key: &[u8], value: &[u8]) -> Result<Option<ConflictRow>> {
    let (dir, name) = decode(|| {
        let mut d = Decoder::new(key);
        let len = usize::from(d.u8()?);
        let Some(dir) = NodeKey::new(d.raw(len)?) else { return d.bad("directory") };
        match Name::new(d.raw(d.left())?) {
            Ok(name) => Ok((dir, name)),
            Err(_) => d.bad("name"),
        }
    })?;
    let place = decode(|| Decoder::new(value).place(tx.replicas()))?;
    match &place.conflict_of {
        Some(base) => row(tx, &dir, &name, base, &place).map(Some),
        None => Ok(None),
    }
}

fn decode<T>(f: impl FnOnce() -> std::result::Result<T, Malformed>) -> Result<T> {
    f().map_err(|source| Error::Damaged { table: Table::Places.name(), source })
}

fn row(tx: &mut Tx<'_>, dir: &NodeKey, name: &Name, base: &Name, place: &Place) -> Result<ConflictRow> {
    let dir = node_path(tx, dir)?.unwrap_or_default();
    let below = |name: &Name| {
        let slash: &[u8] = if dir.is_empty() { b"" } else { b"/" };
        PathText::new(&[&dir, slash, name.as_bytes()].concat())
    };
    let node = tx.node_must(&place.node)?;
    let claim = place.claims.first();
    Ok(ConflictRow {
        path: below(name),
        winner: below(base),
        kind: node.kind.word().to_owned(),
        size: node.fingerprint.size,
        modified: text::time(node.fingerprint.mtime),
        written_by: claim.map(|c| text::site(tx, c.version.replica)).transpose()?.unwrap_or_default(),
        entry: claim.map(|c| c.entry.to_string()).unwrap_or_default(),
    })
}
