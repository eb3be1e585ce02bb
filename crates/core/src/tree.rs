//! The effective tree: a pure function of all entry states, kept up to date incrementally
//! (design section 4; model-findings 3.3 and 4).
//!
//! What is stored: `names` holds, for each directory *entry*, what is shown below it (leaves with a shown
//! link, live directories) by effective parent, before grouping; `dirs` holds the live-child counters
//! and repaired parents; `unrooted` the directories whose stored parents do not reach the root, and
//! `dir_kids` all directories by stored parent. Everything else (unions, groups, conflict names) is
//! computed where asked, from one name's rows.
//!
//! Invariants between calls, over all entries of the index:
//! - a leaf has a names row for each (parent, name) of [`Entry::shown_links`], known parent or not;
//!   a directory has one, below its effective parent, iff it is live;
//! - `live_children` of a directory is the number of names rows below it;
//! - a directory is live iff its link is present or `live_children > 0`; so all above a live one are live;
//! - effective parents (`repaired`, else the stored one) of all known directories reach the root.
//!
//! The flow of a change: [`put_state`] finds out which directories get another effective parent (nearly
//! always none but the changed one), takes these out of the tree, changes the states, and puts them
//! in again; counters carry life and death up from there. Who else is shown at another place
//! after that is marked pending on the way.

mod change;
mod conflict;
mod mark;
mod roots;
#[cfg(test)]
mod tests;

pub use change::{put_state, receive, remove_state};
pub(crate) use conflict::{MARK, conflict_base, conflict_bases};
pub use conflict::{conflict_name, utc};

use crate::entry::{Entry, Version};
use crate::id::{Dot, EntryId, Kind, LinkId, Name, Stamp};
use crate::meta::{Digest, Time};
use crate::tx::{EntryRow, Error, Result, Tx};
use conflict::free_conflict_name;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What became of a state that came from a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received {
    /// Unknown here, but covered by our knowledge: it was deleted and collected. Dropped.
    Ignored,
    /// Nothing new in it.
    Unchanged,
    /// Merged; the entry is at the end of our feed.
    Changed,
    /// No correct replica makes such a state, or this index could not hold it. Dropped; the reason is for people.
    Refused(&'static str),
}

/// What is shown at one real name of one directory class.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Shown {
    /// Live directories at the name, sorted: one directory, the union of all. Empty = none.
    pub dir: Vec<EntryId>,
    /// Groups of leaves with equal content, greatest rank first. If `dir` is empty the first has the
    /// real name; all others have conflict names.
    pub groups: Vec<Group>,
}

/// Claims of equal content that are shown as one file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    /// The name it is shown under.
    pub name: Name,
    /// True if `name` is a conflict name.
    pub conflict: bool,
    /// Greatest rank first.
    pub claims: Vec<Shares>,
}

/// One claim to a name: (link, version).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shares {
    /// The entry.
    pub entry: EntryId,
    /// Which of its names.
    pub link: LinkId,
    /// Dot of that name's `At`.
    pub name_dot: Dot,
    /// The version.
    pub version: Dot,
    /// Chooses among groups: (max(version stamp, name stamp if present), version stamp, id).
    pub rank: (Stamp, Stamp, EntryId),
    /// True if `version` is not the entry's winner (an extra sibling).
    pub extra: bool,
}

/// Directories nested deeper than this are taken for a loop in a damaged index. Far above what any
/// file system can hold (paths of 4096 bytes reach 2048 levels).
const DEPTH_MAX: usize = 1 << 20;

/// Names read at once when a directory has to be walked through.
const PAGE: usize = 1024;

/// True if the directory is live: its link is present or something live is below it. The root is.
pub fn is_live(tx: &mut Tx<'_>, dir: EntryId) -> Result<bool> {
    if dir.is_root() {
        return Ok(true);
    }
    let Some(row) = dir_row(tx, dir)? else { return Ok(false) };
    let present = row.entry.dir_link().is_some_and(|l| l.present());
    Ok(present || tx.dir(dir)?.live_children > 0)
}

/// The parent a directory is shown below: the stored one, or the repaired one. `None` for the root and unknown entries.
pub fn parent_of(tx: &mut Tx<'_>, dir: EntryId) -> Result<Option<EntryId>> {
    let Some(row) = dir_row(tx, dir)? else { return Ok(None) };
    Ok(tx.dir(dir)?.repaired.or(stored_parent(&row.entry)))
}

/// The class (union) a directory is shown in, sorted; empty if it is not shown.
pub fn class_of(tx: &mut Tx<'_>, dir: EntryId) -> Result<Arc<[EntryId]>> {
    let mut below = Vec::new();
    let mut at = dir;
    let mut class = loop {
        if let Some(known) = tx.classes.get(&at) {
            break known.clone();
        }
        if at.is_root() {
            let class: Arc<[EntryId]> = [EntryId::ROOT].into();
            tx.classes.insert(at, class.clone());
            break class;
        }
        if below.len() > DEPTH_MAX {
            return Err(endless());
        }
        // All above a live directory are live, so that only the first can fail here.
        if !is_live(tx, at)? {
            return Ok(Arc::default());
        }
        let (parent, name) = stored_spot(tx, at)?;
        below.push((at, name));
        at = parent;
    };
    for (at, name) in below.into_iter().rev() {
        class = dirs_at(tx, &class, &name)?.into();
        tx.classes.insert(at, class.clone());
    }
    Ok(class)
}

/// The modification time of the directory that entries are shown as: of the member that changed it last, the greatest
/// of those that nobody changed since they were imported.
pub fn dir_time(tx: &mut Tx<'_>, members: &[EntryId]) -> Result<Option<Time>> {
    let mut newest = None;
    for member in members {
        newest = newest.max(tx.entry(*member)?.and_then(|row| row.entry.dir_time));
    }
    Ok(newest.map(|t| t.1))
}

/// What is shown at `name` in the directory class `class`, with conflict names given.
pub fn shown_at(tx: &mut Tx<'_>, class: &[EntryId], name: &Name) -> Result<Shown> {
    let mut shown = Shown::default();
    let entries = entries_at(tx, class, name)?;
    if let [id] = entries[..] {
        // Nearly all names: no conflict.
        let row = tx.entry_must(id)?;
        if row.entry.kind.is_dir() {
            shown.dir.push(id);
            return Ok(shown);
        }
        let claims = claims_at(tx, &row.entry, class, name)?;
        if let [(claim, _)] = &claims[..] {
            let claims = vec![claim.clone()];
            shown.groups.push(Group { name: name.clone(), conflict: false, claims });
            return Ok(shown);
        }
    }
    let mut groups: BTreeMap<(Kind, Digest), Vec<(Shares, Stamp)>> = BTreeMap::new();
    for id in entries {
        let row = tx.entry_must(id)?;
        if row.entry.kind.is_dir() {
            shown.dir.push(id);
            continue;
        }
        for (claim, version) in claims_at(tx, &row.entry, class, name)? {
            let key = (row.entry.kind, version.content.identity());
            groups.entry(key).or_default().push((claim, version.stamp));
        }
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    for g in &mut groups {
        g.sort_by_key(|(c, _)| std::cmp::Reverse(order(c)));
    }
    groups.sort_by_key(|g| std::cmp::Reverse(order(&g[0].0)));
    for g in groups {
        let conflict = !shown.dir.is_empty() || !shown.groups.is_empty();
        let given = match conflict {
            true => free_conflict_name(tx, class, name, &g, &shown.groups)?,
            false => name.clone(),
        };
        shown.groups.push(Group { name: given, conflict, claims: g.into_iter().map(|(c, _)| c).collect() });
    }
    Ok(shown)
}

/// At most `limit` real names below `class` after `after`, in order.
pub fn children(tx: &mut Tx<'_>, class: &[EntryId], after: Option<&Name>, limit: usize) -> Result<Vec<Name>> {
    let mut names = BTreeSet::new();
    for member in class {
        let mut found = 0;
        let mut last = after.map(|n| (n.clone(), EntryId::ROOT));
        while found < limit {
            let page = tx.names_in(*member, last.as_ref().map(|(n, e)| (n, *e)), limit.clamp(16, PAGE))?;
            let Some(end) = page.last().cloned() else { break };
            for (name, _) in page {
                let again = last.as_ref().is_some_and(|(n, _)| *n == name);
                if !again && found < limit {
                    found += 1;
                    names.insert(name.clone());
                }
                last = Some((name, EntryId::ROOT));
            }
            last = Some(end);
        }
    }
    Ok(names.into_iter().take(limit).collect())
}

/// The (parent entry, real name) pairs an entry is shown at: a live directory's one, a leaf's shown links.
/// Empty if not shown. An extra sibling's place is the lowest shown link's.
pub fn shown_names(tx: &mut Tx<'_>, entry: EntryId) -> Result<Vec<(EntryId, Name)>> {
    let Some(row) = tx.entry(entry)?.filter(|_| !entry.is_root()) else { return Ok(Vec::new()) };
    if row.entry.kind.is_dir() {
        return Ok(if is_live(tx, entry)? { vec![stored_spot(tx, entry)?] } else { Vec::new() });
    }
    let mut out: Vec<(EntryId, Name)> = Vec::new();
    for l in row.entry.shown_links() {
        let pair = (l.at.parent, l.at.name.clone());
        if is_dir(tx, l.at.parent)? && !out.contains(&pair) {
            out.push(pair);
        }
    }
    Ok(out)
}

/// A path from the root that shows the entry (its winner's first name, conflict names included), or `None`.
pub fn path_of(tx: &mut Tx<'_>, entry: EntryId) -> Result<Option<Vec<Name>>> {
    let mut path = Vec::new();
    let Some((mut at, name)) = shown_names(tx, entry)?.into_iter().next() else {
        return Ok(entry.is_root().then_some(path));
    };
    path.push(if is_dir(tx, entry)? { name } else { given_name(tx, entry, at, name)? });
    while !at.is_root() {
        if path.len() > DEPTH_MAX {
            return Err(endless());
        }
        let (parent, name) = stored_spot(tx, at)?;
        path.push(name);
        at = parent;
    }
    path.reverse();
    Ok(Some(path))
}

/// True if the entry, a leaf, takes part in a conflict: at one of its names something (itself or
/// another) is shown under a conflict name.
pub fn is_conflicted(tx: &mut Tx<'_>, entry: EntryId) -> Result<bool> {
    if is_dir(tx, entry)? {
        return Ok(false);
    }
    for (parent, name) in shown_names(tx, entry)? {
        let class = class_of(tx, parent)?;
        if shown_at(tx, &class, &name)?.groups.iter().any(|g| g.conflict) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// All repaired edges, those of absent directories too: (directory, parent it is shown below).
pub fn repaired_edges(tx: &mut Tx<'_>) -> Result<Vec<(EntryId, EntryId)>> {
    let mut out = Vec::new();
    for x in tx.unrooted()? {
        if let Some(parent) = tx.dir(x)?.repaired {
            out.push((x, parent));
        }
    }
    Ok(out)
}

/// The name that shows the winner of `entry` at the real name `name` below `parent`.
fn given_name(tx: &mut Tx<'_>, entry: EntryId, parent: EntryId, name: Name) -> Result<Name> {
    let class = class_of(tx, parent)?;
    let shown = shown_at(tx, &class, &name)?;
    let mut groups = shown.groups.into_iter();
    let group = groups.find(|g| g.claims.iter().any(|c| c.entry == entry && !c.extra));
    Ok(group.map_or(name, |g| g.name))
}

/// The claims of a leaf to one name: the winner at each shown link there, the other
/// versions that count at the lowest shown link only.
fn claims_at(
    tx: &mut Tx<'_>,
    leaf: &Entry,
    class: &[EntryId],
    name: &Name,
) -> Result<Vec<(Shares, Version)>> {
    let Some(winner) = leaf.winner() else { return Ok(Vec::new()) };
    let mut out = Vec::new();
    let mut links = leaf.shown_links();
    links.sort_by_key(|l| l.id);
    let mut lowest = None;
    for l in links {
        if lowest.is_none() && is_dir(tx, l.at.parent)? {
            lowest = Some(l.id);
        }
        if l.at.name != *name || !class.contains(&l.at.parent) {
            continue;
        }
        for v in leaf.counting().filter(|v| v.dot == winner.dot || lowest == Some(l.id)) {
            let name_stamp = if l.present() { l.at.stamp } else { Stamp::MIN };
            let claim = Shares {
                entry: leaf.id,
                link: l.id,
                name_dot: l.at.dot,
                version: v.dot,
                rank: (v.stamp.max(name_stamp), v.stamp, leaf.id),
                extra: v.dot != winner.dot,
            };
            out.push((claim, v.clone()));
        }
    }
    Ok(out)
}

/// Rank, and what tells claims of one entry apart.
fn order(c: &Shares) -> ((Stamp, Stamp, EntryId), Dot, LinkId) {
    (c.rank, c.version, c.link)
}

fn entries_at(tx: &mut Tx<'_>, class: &[EntryId], name: &Name) -> Result<SmallVec<[EntryId; 2]>> {
    let mut out = SmallVec::new();
    for member in class {
        out.extend(tx.names_at(*member, name)?);
    }
    out.sort();
    out.dedup();
    Ok(out)
}

/// Live directories at a name of a class, sorted.
fn dirs_at(tx: &mut Tx<'_>, class: &[EntryId], name: &Name) -> Result<Vec<EntryId>> {
    let mut out = Vec::new();
    for x in entries_at(tx, class, name)? {
        if is_dir(tx, x)? {
            out.push(x);
        }
    }
    Ok(out)
}

fn dir_row(tx: &mut Tx<'_>, id: EntryId) -> Result<Option<Arc<EntryRow>>> {
    Ok(tx.entry(id)?.filter(|row| row.entry.kind.is_dir()))
}

/// True if the directory is known, or is the root.
fn is_dir(tx: &mut Tx<'_>, id: EntryId) -> Result<bool> {
    Ok(id.is_root() || dir_row(tx, id)?.is_some())
}

fn link_present(tx: &mut Tx<'_>, dir: EntryId) -> Result<bool> {
    Ok(dir_row(tx, dir)?.is_some_and(|row| row.entry.dir_link().is_some_and(|l| l.present())))
}

fn stored_parent(dir: &Entry) -> Option<EntryId> {
    dir.dir_link().map(|l| l.at.parent)
}

/// Effective parent and name of a known directory, live or not.
fn stored_spot(tx: &mut Tx<'_>, dir: EntryId) -> Result<(EntryId, Name)> {
    let row = tx.entry_must(dir)?;
    match (parent_of(tx, dir)?, row.entry.dir_link()) {
        (Some(parent), Some(link)) => Ok((parent, link.at.name.clone())),
        _ => Err(Error::Inconsistent(format!("{dir} is no directory"))),
    }
}

fn endless() -> Error {
    Error::Inconsistent("directories form a loop".into())
}
