//! What has to be done to this disk so that it shows the effective tree: plans as values.
//!
//! The planner looks at one entry at a time (from the feed beyond the planner's cursor, and from the pending table),
//! compares where it is shown with where it is materialised, and appends [`Step`]s. Each step, once planned, is
//! recorded in the transaction *as if done* (new inodes get provisional keys), so that later steps see it; the
//! executor then performs the steps, and records each with what the file system really gave back.
//! A dry run prints the steps and drops the transaction.

use crate::disk::{Claim, Fingerprint, NodeKey};
use crate::id::{Dot, EntryId, Kind, Name};
use crate::meta::{Attrs, Content};
use crate::tx::{Result, Tx};

/// A directory and a name in it. The key may be provisional ([`Plan::provisional`]).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct At {
    /// The directory's inode.
    pub dir: NodeKey,
    /// The name.
    pub name: Name,
}

/// What stands at a place that a step takes over. The executor looks before and after (limbo).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Victim {
    /// The inode expected there.
    pub node: NodeKey,
    /// Its kind.
    pub kind: Kind,
    /// Its fingerprint as recorded.
    pub fingerprint: Fingerprint,
}

/// What a path shows after a step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Binding {
    /// Leaves: the claims shown, owner first. Directories: empty.
    pub claims: Vec<Claim>,
    /// Directories: the members of the class, sorted. Leaves: empty.
    pub members: Vec<EntryId>,
    /// The real name if the path is a conflict name.
    pub conflict_of: Option<Name>,
}

/// One thing to do. Order matters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Make a directory at a free name.
    MakeDir { at: At, node: NodeKey, attrs: Attrs, binding: Binding },
    /// Make a leaf with this content, in place of `victim` if there is one (its inode goes to limbo).
    Put { at: At, node: NodeKey, kind: Kind, entry: EntryId, version: Dot, content: Content, attrs: Attrs, victim: Option<Victim>, binding: Binding },
    /// Give a leaf another name, in place of `victim` if there is one.
    Link { from: At, to: At, node: NodeKey, victim: Option<Victim>, binding: Binding },
    /// Move an inode, in place of `victim` if there is one.
    Move { from: At, to: At, node: NodeKey, kind: Kind, victim: Option<Victim>, binding: Binding },
    /// Move an inode that another step needs out of the way into the private directory; a later `Unpark` takes it out.
    Park { from: At, node: NodeKey, kind: Kind },
    /// Take a parked inode to its place.
    Unpark { to: At, node: NodeKey, kind: Kind, victim: Option<Victim>, binding: Binding },
    /// Take a name away: a leaf's name into limbo, an empty directory by rmdir.
    Remove { at: At, victim: Victim },
    /// Set attributes (and a leaf's mtime) of an inode in place. `path` is one of its names.
    SetAttrs { path: Option<At>, node: NodeKey, kind: Kind, attrs: Attrs, content: Option<Content>, entry: EntryId },
    /// Only the record changes: the path now stands for other claims or members of equal content.
    Rebind { at: At, node: NodeKey, binding: Binding },
}

/// What the file system gave back for a step that made or changed an inode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// The real key of the inode.
    pub node: NodeKey,
    /// As given back.
    pub fingerprint: Fingerprint,
    /// As given back.
    pub given: Attrs,
}

/// Why an entry could not be planned now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Wait {
    /// Its directory is not on this disk yet: that entry has to come first.
    Parent(EntryId),
}

/// Steps of one batch.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// What to do, in order.
    pub steps: Vec<Step>,
    /// Provisional keys given out so far in this plan.
    pub provisional_count: u64,
}

impl Plan {
    /// The first bytes of provisional keys; no file system's handle type has them.
    pub const PROVISIONAL: &'static [u8] = b"\xff\xff?";

    /// A key for an inode that does not exist yet.
    pub fn provisional(&mut self) -> NodeKey {
        self.provisional_count += 1;
        let bytes = [Self::PROVISIONAL, &self.provisional_count.to_be_bytes()].concat();
        // Eleven bytes: never empty nor too long.
        NodeKey::new(&bytes).unwrap_or_else(|| unreachable!())
    }

    /// True for a key that [`Plan::provisional`] made.
    pub fn is_provisional(key: &NodeKey) -> bool {
        key.as_bytes().starts_with(Self::PROVISIONAL)
    }
}

/// Plans what `entry` (and the names it takes or leaves) needs; appends to `plan` and records the steps as if done. Idempotent.
pub fn plan_entry(tx: &mut Tx<'_>, entry: EntryId, plan: &mut Plan) -> Result<Option<Wait>> {
    let _ = (tx, entry, plan);
    unimplemented!("lands with this module")
}

/// Records a step that was done; `outcome` for steps that made or changed an inode. Keys in `step` must be real
/// (or, while planning, provisional).
pub fn record(tx: &mut Tx<'_>, step: &Step, outcome: Option<&Outcome>) -> Result<()> {
    let _ = (tx, step, outcome);
    unimplemented!("lands with this module")
}
