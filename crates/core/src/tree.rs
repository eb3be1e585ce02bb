//! The effective tree: a pure function of all entry states, kept up to date incrementally
//! (design section 4; model-findings 3.3 and 4).
//!
//! What is stored: `names` holds, for each directory *entry*, what is shown below it (leaves with a shown
//! link, live directories) by effective parent, before grouping; `dirs` holds the live-child counters
//! and repaired parents; `unrooted` the directories whose stored parents do not reach the root.
//! Everything else (unions, groups, conflict names) is computed where asked, from one name's rows.

use crate::entry::Entry;
use crate::id::{Dot, EntryId, LinkId, Name, Stamp};
use crate::tx::{Result, Tx};
use crate::vv::VersionVector;

/// What became of a state that came from a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received {
    /// Unknown here, but covered by our knowledge: it was deleted and collected. Dropped.
    Ignored,
    /// Nothing new in it.
    Unchanged,
    /// Merged; the entry is at the end of our feed.
    Changed,
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

/// Stores `new` as the state of its entry at feed position `n` and brings names, counters, unrooted
/// set and repairs up to date. Keeps the row's `bound`. Entries elsewhere whose shown place changes by
/// this (other claimants of a name, members of a union, directories that come to life or die, what a repair moves) are
/// marked pending for the planner.
pub fn put_state(tx: &mut Tx<'_>, new: Entry, n: u64) -> Result<()> {
    let _ = (tx, new, n);
    unimplemented!("lands with this module")
}

/// Merges a state that came from a peer. `knowledge` is ours (change dots).
pub fn receive(tx: &mut Tx<'_>, incoming: &Entry, knowledge: &VersionVector) -> Result<Received> {
    let _ = (tx, incoming, knowledge);
    unimplemented!("lands with this module")
}

/// True if the directory is live: its link is present or something live is below it. The root is.
pub fn is_live(tx: &mut Tx<'_>, dir: EntryId) -> Result<bool> {
    let _ = (tx, dir);
    unimplemented!("lands with this module")
}

/// The parent a directory is shown below: the stored one, or the repaired one. `None` for the root and unknown entries.
pub fn parent_of(tx: &mut Tx<'_>, dir: EntryId) -> Result<Option<EntryId>> {
    let _ = (tx, dir);
    unimplemented!("lands with this module")
}

/// The class (union) a directory is shown in, sorted; empty if it is not shown.
pub fn class_of(tx: &mut Tx<'_>, dir: EntryId) -> Result<Vec<EntryId>> {
    let _ = (tx, dir);
    unimplemented!("lands with this module")
}

/// What is shown at `name` in the directory class `class`, with conflict names given.
pub fn shown_at(tx: &mut Tx<'_>, class: &[EntryId], name: &Name) -> Result<Shown> {
    let _ = (tx, class, name);
    unimplemented!("lands with this module")
}

/// At most `limit` real names below `class` after `after`, in order.
pub fn children(tx: &mut Tx<'_>, class: &[EntryId], after: Option<&Name>, limit: usize) -> Result<Vec<Name>> {
    let _ = (tx, class, after, limit);
    unimplemented!("lands with this module")
}

/// The (parent entry, real name) pairs an entry is shown at: a live directory's one, a leaf's shown links.
/// Empty if not shown. An extra sibling's place is the lowest shown link's.
pub fn shown_names(tx: &mut Tx<'_>, entry: EntryId) -> Result<Vec<(EntryId, Name)>> {
    let _ = (tx, entry);
    unimplemented!("lands with this module")
}

/// A path from the root that shows the entry (its winner's first name, conflict names included), or `None`.
pub fn path_of(tx: &mut Tx<'_>, entry: EntryId) -> Result<Option<Vec<Name>>> {
    let _ = (tx, entry);
    unimplemented!("lands with this module")
}

/// All repaired edges, those of absent directories too: (directory, parent it is shown below).
pub fn repaired_edges(tx: &mut Tx<'_>) -> Result<Vec<(EntryId, EntryId)>> {
    let _ = tx;
    unimplemented!("lands with this module")
}

/// The name a group that lost `base` gets: before the extension, `.conflict-<tag>` where the tag
/// comes from the lowest version dot in the group; cut to 255 bytes without losing tag or extension; `round` > 0 lengthens the
/// tag until the name is free. A function of its arguments only, so all replicas give the same.
pub fn conflict_name(base: &Name, lowest: Dot, round: u32) -> Name {
    let _ = (lowest, round);
    base.clone()
}
