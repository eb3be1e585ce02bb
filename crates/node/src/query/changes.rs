//! The feed as rows for consumers.

use super::{ChangeRow, Class, PAGE_ROWS_MAX, text};
use crate::api::PathText;
use driftless_core::entry::{Entry, Link};
use driftless_core::id::{Dot, EntryId, ReplicaId, Stamp};
use driftless_core::tree;
use driftless_core::tx::{EntryRow, Result, Tx};

/// At most `limit` rows after `since`.
pub(super) fn page(tx: &mut Tx<'_>, since: u64, limit: usize) -> Result<Vec<ChangeRow>> {
    let feed = tx.feed_after(since, limit.min(PAGE_ROWS_MAX))?;
    feed.into_iter().map(|(_, id)| row(tx, id)).collect()
}

fn row(tx: &mut Tx<'_>, id: EntryId) -> Result<ChangeRow> {
    let row = tx.entry_must(id)?;
    let entry = &row.entry;
    let link = newest_link(entry);
    let (class, author) = newest_change(&row, Dot::new(tx.me(), row.n));
    let path = tree::path_of(tx, id)?.map(|names| PathText::new(&text::join(&names)));
    Ok(ChangeRow {
        seq: row.n,
        entry: entry_text(id),
        class,
        kind: entry.kind.word().to_owned(),
        mode: format!("{:04o}", entry.meta.1.mode),
        uid: entry.meta.1.uid,
        gid: entry.meta.1.gid,
        present: path.is_some(),
        parent: link.map(|l| entry_text(l.at.parent)).unwrap_or_default(),
        name: link.map(|l| PathText::new(l.at.name.as_bytes())).unwrap_or_default(),
        path,
        by: text::site(tx, author.replica)?,
    })
}

/// Who made the newest change of an entry, as far as its state says.
pub(crate) fn author(tx: &mut Tx<'_>, id: EntryId) -> Result<ReplicaId> {
    let Some(row) = tx.entry(id)? else { return Ok(id.0.replica) };
    Ok(newest_change(&row, Dot::new(tx.me(), row.n)).1.replica)
}

/// The root has no dot of its own that would mean anything to a reader.
pub(super) fn entry_text(id: EntryId) -> String {
    if id.is_root() { "root".into() } else { id.to_string() }
}

/// The name to show: a present one before an absent one, then the newest.
fn newest_link(entry: &Entry) -> Option<&Link> {
    entry.links.iter().max_by_key(|l| (l.present(), l.at.stamp, l.id))
}

/// Class and dot of the newest change. `here` is the dot a local change at this feed position has.
///
/// For a local change the dot says it. For one that was merged the greatest stamp is taken; removals have
/// no stamp of their own and show as the absence of all names.
fn newest_change(row: &EntryRow, here: Dot) -> (Class, Dot) {
    let entry = &row.entry;
    if entry.present_links().next().is_none() {
        return (Class::Entry, newest_dot(entry, here));
    }
    if entry.links.iter().any(|l| l.at.dot == here || l.gone.get(here.replica) == here.n) {
        return (Class::Entry, here);
    }
    if entry.version(here).is_some() {
        return (Class::Data, here);
    }
    if entry.ctx.get(here.replica) == here.n {
        return (Class::Meta, here);
    }
    let names = entry.present_links().map(|l| (l.at.stamp, 2, Class::Entry, l.at.dot));
    let versions = entry.data.iter().map(|v| (v.stamp, 1, Class::Data, v.dot));
    let meta_stamp: Stamp = entry.meta.0;
    let meta = (meta_stamp, 0, Class::Meta, newest_dot_of(entry, meta_stamp, here));
    // Equal stamps are one change, which a creation's name says best.
    let newest = names.chain(versions).chain([meta]).max_by_key(|c| (c.0, c.1));
    newest.map_or((Class::Meta, here), |c| (c.2, c.3))
}

/// The change with the greatest count: exact for entries that one site touched.
fn newest_dot(entry: &Entry, here: Dot) -> Dot {
    match entry.ctx.get(here.replica) == here.n {
        true => here,
        false => entry.ctx.iter().max_by_key(|(_, n)| *n).map_or(entry.id.0, |(r, n)| Dot::new(r, n)),
    }
}

/// A dot of the stamp's author.
fn newest_dot_of(entry: &Entry, stamp: Stamp, here: Dot) -> Dot {
    match entry.ctx.get(stamp.replica) {
        0 => newest_dot(entry, here),
        n => Dot::new(stamp.replica, n),
    }
}
