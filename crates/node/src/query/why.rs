//! Why a path is as it is: what this disk shows there, which entries are behind it, what waits.

use super::changes::entry_text;
use super::{FailureRow, failure_row, text};
use crate::api::PathText;
use crate::needs::{self, Waiter};
use driftless_core::disk::{Bind, Place};
use driftless_core::entry::{Entry, Version};
use driftless_core::id::{Dot, EntryId, Name};
use driftless_core::meta::Content;
use driftless_core::tree;
use driftless_core::tx::{Result, Tx};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Most feed rows looked through for an entry that was removed at a path.
const REMOVED_SCAN_MAX: usize = 1_000_000;

/// Everything the index says about a path.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Explanation {
    /// The path below the root.
    pub path: PathText,
    /// In sentences.
    pub summary: Vec<String>,
    /// What this disk shows there, as last recorded.
    pub on_disk: Option<OnDisk>,
    /// Entries that are or were at the path.
    pub claimants: Vec<Claimant>,
    /// What waits.
    pub waits: Vec<FailureRow>,
}

/// What a disk shows at a path.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OnDisk {
    /// `file`, `dir`, ...
    pub kind: String,
    /// Bytes.
    pub size: u64,
    /// RFC 3339, UTC.
    pub modified: String,
    /// Permission bits, octal.
    pub mode: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names that the inode has in the tree.
    pub names: usize,
    /// The name that it lost, if it is a conflict copy.
    pub conflict_of: Option<PathText>,
}

/// An entry that is or was at the path.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Claimant {
    /// Entry id.
    pub entry: String,
    /// `file`, `dir`, ...
    pub kind: String,
    /// Position in this replica's feed.
    pub seq: u64,
    /// Its names.
    pub names: Vec<NameRow>,
    /// Its versions; more than one that counts is a conflict.
    pub versions: Vec<VersionRow>,
}

/// A name of an entry.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NameRow {
    /// Entry id of the directory.
    pub parent: String,
    /// The name.
    pub name: PathText,
    /// False if it was removed.
    pub present: bool,
    /// The site that put it there.
    pub by: String,
}

/// A version of an entry's content.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VersionRow {
    /// The change that made it.
    pub version: String,
    /// The site that wrote it.
    pub by: String,
    /// Bytes.
    pub size: u64,
    /// RFC 3339, UTC.
    pub modified: String,
    /// BLAKE3 of the content, hex; for symlinks and devices of what they say.
    pub digest: String,
    /// False if it was removed.
    pub counts: bool,
    /// True if it has the name.
    pub wins: bool,
    /// True if it is what this disk shows at the path.
    pub on_disk: bool,
    /// Its stamp's clock, in nanoseconds since 1970: of versions that were not made unseen of each other, the later has the greater.
    #[serde(default)]
    pub made_ns: u64,
}

/// Explains `path`, bytes below the root; empty is the root.
pub(super) fn explain(tx: &mut Tx<'_>, path: &[u8]) -> Result<Explanation> {
    let mut why = Explanation {
        path: PathText::new(path),
        summary: Vec::new(),
        on_disk: None,
        claimants: Vec::new(),
        waits: Vec::new(),
    };
    let names: std::result::Result<Vec<Name>, _> =
        path.split(|b| *b == b'/').filter(|n| !n.is_empty()).map(Name::new).collect();
    let names = match names {
        Ok(names) if !names.is_empty() => names,
        Ok(_) => {
            why.summary.push("This is the root: it is there as long as the volume is.".into());
            return Ok(why);
        }
        Err(e) => {
            why.summary.push(format!("No entry can be at this path: {e}."));
            return Ok(why);
        }
    };
    let place = place_at(tx, &names)?;
    let mut entries = shown_at(tx, &names)?;
    if let Some(place) = &place {
        why.on_disk = Some(on_disk(tx, place)?);
        entries.extend(bound(tx, place)?);
    }
    if entries.is_empty() {
        entries = removed_at(tx, &names)?;
    }
    let claimed: Vec<Dot> = place.iter().flat_map(|p| p.claims.iter().map(|c| c.version)).collect();
    for id in entries {
        if let Some(row) = tx.entry(id)? {
            why.claimants.push(claimant(tx, &row.entry, row.n, &claimed)?);
            why.waits.extend(wait(tx, Waiter::Entry(id))?);
        }
    }
    why.waits.extend(wait(tx, Waiter::Path(text::join(&names)))?);
    why.summary = summary(&why);
    Ok(why)
}

/// What the disk shows at the path, as recorded.
fn place_at(tx: &mut Tx<'_>, names: &[Name]) -> Result<Option<Place>> {
    let Some(mut dir) = tx.root_node()? else { return Ok(None) };
    let mut place = None;
    for name in names {
        match tx.place(&dir, name)? {
            Some(found) => {
                dir = found.node.clone();
                place = Some((*found).clone());
            }
            None => return Ok(None),
        }
    }
    Ok(place)
}

/// Entries that the effective tree shows at the path, read as real names.
fn shown_at(tx: &mut Tx<'_>, names: &[Name]) -> Result<BTreeSet<EntryId>> {
    let mut found = BTreeSet::new();
    let Some((last, dirs)) = names.split_last() else { return Ok(found) };
    let mut class = vec![EntryId::ROOT];
    for name in dirs {
        class = tree::shown_at(tx, &class, name)?.dir;
        if class.is_empty() {
            return Ok(found);
        }
    }
    let shown = tree::shown_at(tx, &class, last)?;
    found.extend(shown.dir);
    found.extend(shown.groups.iter().flat_map(|g| g.claims.iter().map(|c| c.entry)));
    Ok(found)
}

fn bound(tx: &mut Tx<'_>, place: &Place) -> Result<Vec<EntryId>> {
    match &tx.node_must(&place.node)?.bind {
        Bind::Dir(members) => Ok(members.clone()),
        Bind::Leaf { .. } => Ok(place.claims.iter().map(|c| c.entry).collect()),
    }
}

/// Removed entries whose last name was the path's last: their directories may be gone as well, so that only
/// the name can be compared.
fn removed_at(tx: &mut Tx<'_>, names: &[Name]) -> Result<BTreeSet<EntryId>> {
    const ROWS: usize = 1000;
    let mut found = BTreeSet::new();
    let Some(last) = names.last() else { return Ok(found) };
    let mut after = 0;
    for _ in 0..REMOVED_SCAN_MAX / ROWS {
        let feed = tx.feed_after(after, ROWS)?;
        let Some((n, _)) = feed.last() else { break };
        after = *n;
        for (_, id) in feed {
            let row = tx.entry_must(id)?;
            if row.entry.links.iter().any(|l| !l.present() && l.at.name == *last) {
                found.insert(id);
            }
        }
    }
    Ok(found)
}

fn on_disk(tx: &mut Tx<'_>, place: &Place) -> Result<OnDisk> {
    let node = tx.node_must(&place.node)?;
    Ok(OnDisk {
        kind: node.kind.word().to_owned(),
        size: node.fingerprint.size,
        modified: text::time(node.fingerprint.mtime),
        mode: format!("{:04o}", node.given.mode),
        uid: node.given.uid,
        gid: node.given.gid,
        names: node.names.len(),
        conflict_of: place.conflict_of.as_ref().map(|n| PathText::new(n.as_bytes())),
    })
}

fn claimant(tx: &mut Tx<'_>, entry: &Entry, seq: u64, claimed: &[Dot]) -> Result<Claimant> {
    let mut names = Vec::new();
    for link in &entry.links {
        names.push(NameRow {
            parent: entry_text(link.at.parent),
            name: PathText::new(link.at.name.as_bytes()),
            present: link.present(),
            by: text::site(tx, link.at.dot.replica)?,
        });
    }
    let winner = entry.winner().map(|v| v.dot);
    let mut versions = Vec::new();
    for version in &entry.data {
        versions.push(version_row(tx, entry, version, winner, claimed)?);
    }
    Ok(Claimant { entry: entry.id.to_string(), kind: entry.kind.word().to_owned(), seq, names, versions })
}

fn version_row(
    tx: &Tx<'_>,
    entry: &Entry,
    version: &Version,
    winner: Option<Dot>,
    claimed: &[Dot],
) -> Result<VersionRow> {
    let content: &Content = &version.content;
    Ok(VersionRow {
        version: version.dot.to_string(),
        by: text::site(tx, version.dot.replica)?,
        size: content.size(),
        modified: text::time(content.mtime()),
        digest: text::hex(&content.identity().0),
        counts: entry.counts(version),
        wins: winner == Some(version.dot),
        on_disk: claimed.contains(&version.dot),
        made_ns: version.stamp.clock_ns,
    })
}

fn wait(tx: &mut Tx<'_>, waiter: Waiter) -> Result<Option<FailureRow>> {
    match needs::get(tx, &waiter)? {
        Some(need) => failure_row(tx, waiter, need).map(Some),
        None => Ok(None),
    }
}

/// The facts in sentences, most telling first.
fn summary(why: &Explanation) -> Vec<String> {
    let mut lines = Vec::new();
    for w in &why.waits {
        lines.push(format!("Waits: {}. What to do: {}.", w.reason.words(), w.advice));
    }
    if let Some(base) = why.on_disk.as_ref().and_then(|d| d.conflict_of.as_ref()) {
        lines.push(format!(
            "A conflict copy: two sites gave {} different contents without having seen each other's. \
             Resolve it with `driftless conflicts resolve`.",
            base.text
        ));
    }
    let present = why.claimants.iter().any(|c| c.names.iter().any(|n| n.present));
    match (&why.on_disk, present, why.claimants.is_empty()) {
        (None, _, true) => lines.push(
            "Nothing is known at this path: it was never recorded here, a filter leaves it out, or it was \
             removed and all sites have forgotten it."
                .into(),
        ),
        (None, false, false) => lines.push("It was removed; all that is left is the note of that.".into()),
        (None, true, _) => lines.push("It is known, but not on this disk yet.".into()),
        (Some(_), ..) => lines.extend(content_lines(why)),
    }
    lines
}

fn content_lines(why: &Explanation) -> Vec<String> {
    let versions = || why.claimants.iter().flat_map(|c| &c.versions);
    let mut lines = Vec::new();
    if let Some(v) = versions().find(|v| v.on_disk) {
        lines.push(format!("This disk shows the version that {} wrote, of {}.", v.by, v.modified));
    }
    for v in versions().filter(|v| v.wins && !v.on_disk) {
        lines.push(format!("A version by {}, of {}, is known and not shown at this path.", v.by, v.modified));
    }
    if versions().next().is_none() {
        lines.push("It is on this disk as the state says.".into());
    }
    lines
}
