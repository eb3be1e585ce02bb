//! What has to be done to this disk so that it shows the effective tree: plans as values.
//!
//! The planner looks at one entry at a time (from the feed beyond the planner's cursor, and from the
//! pending table), compares where it is shown with where it is materialised, and appends [`Step`]s. Each
//! step, once planned, is recorded in the transaction *as if done* (new inodes get provisional keys), so
//! that later steps see it; the executor then performs the steps, and records each with what the file
//! system really gave back. A dry run prints the steps and drops the transaction.
//!
//! What holds at every point between two steps: no content that the tree still wants somewhere, and that
//! has an inode here, is without a name (inodes in the way of others wait in [`Plan::parked`]); a
//! directory is only removed when nothing is recorded in it; nothing is moved below itself.

mod planner;
mod record;

use crate::disk::{Bind, Claim, Fingerprint, NodeKey};
use crate::id::{Dot, EntryId, Kind, Name};
use crate::meta::{Attrs, Content, Digest};
use crate::mutant::mutant;
use crate::tx::{EntryRow, Result, Tx};
use std::collections::{HashMap, HashSet};
use std::fmt;

pub use record::record;
pub(crate) use record::{forget, settle};

/// A directory and a name in it. The directory may be provisional ([`Plan::provisional`]) or the place of
/// parked inodes ([`Plan::parked`]).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
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
    /// Its fingerprint as recorded when the step was planned. An earlier step of the same batch may have
    /// moved the inode's change time on: [`Step::refresh`].
    pub fingerprint: Fingerprint,
}

/// What a path shows after a step.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
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
    MakeDir {
        /// Where.
        at: At,
        /// Provisional key.
        node: NodeKey,
        /// What it shall have.
        attrs: Attrs,
        /// What it stands for.
        binding: Binding,
    },
    /// Make a leaf with this content, in place of `victim` if there is one (its inode goes to limbo).
    Put {
        /// Where.
        at: At,
        /// Provisional key.
        node: NodeKey,
        /// Never a directory.
        kind: Kind,
        /// Whose content.
        entry: EntryId,
        /// Which version.
        version: Dot,
        /// What it is.
        content: Content,
        /// What it shall have.
        attrs: Attrs,
        /// A leaf of this disk with the same content that has to stay what it is: copy that instead of
        /// fetching.
        copy: Option<NodeKey>,
        /// What it replaces.
        victim: Option<Victim>,
        /// What it stands for.
        binding: Binding,
    },
    /// Give a leaf another name, in place of `victim` if there is one.
    Link {
        /// A name it has.
        from: At,
        /// The new one.
        to: At,
        /// The leaf.
        node: NodeKey,
        /// What it replaces.
        victim: Option<Victim>,
        /// What the new name stands for.
        binding: Binding,
    },
    /// Move an inode, in place of `victim` if there is one (leaves only).
    Move {
        /// The name it has.
        from: At,
        /// The name it gets.
        to: At,
        /// The inode.
        node: NodeKey,
        /// What it is.
        kind: Kind,
        /// What it replaces.
        victim: Option<Victim>,
        /// What it stands for.
        binding: Binding,
    },
    /// Move an inode that another step needs out of the way to [`Plan::parked`]; a later `Unpark` takes it out.
    Park {
        /// The name it has.
        from: At,
        /// The inode.
        node: NodeKey,
        /// What it is.
        kind: Kind,
    },
    /// Take a parked inode to its place.
    Unpark {
        /// The name it gets.
        to: At,
        /// The inode.
        node: NodeKey,
        /// What it is.
        kind: Kind,
        /// What it replaces.
        victim: Option<Victim>,
        /// What it stands for.
        binding: Binding,
    },
    /// Take a name away: a leaf's name into limbo, an empty directory by rmdir.
    Remove {
        /// Where.
        at: At,
        /// What is there.
        victim: Victim,
    },
    /// Set attributes (and a leaf's mtime) of an inode in place. `path` is one of its names.
    SetAttrs {
        /// One of its names; `None` for the root.
        path: Option<At>,
        /// The inode.
        node: NodeKey,
        /// What it is.
        kind: Kind,
        /// What it shall have.
        attrs: Attrs,
        /// Leaves: the content on disk, for its modification time.
        content: Option<Content>,
        /// Whose attributes.
        entry: EntryId,
    },
    /// Only the record changes: the path now stands for other claims or members of equal content.
    Rebind {
        /// Where.
        at: At,
        /// What is there.
        node: NodeKey,
        /// What it stands for.
        binding: Binding,
    },
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
    /// Its directory is not on this disk and could not be planned: that entry has to come first.
    Parent(EntryId),
}

/// Says of a path (real names from the root), and whether it is one of a directory, if it is left out.
pub type SkipPath<'a> = &'a dyn Fn(&[Name], bool) -> bool;

/// Names read from the index at once.
const NAMES_AT_ONCE: usize = 1024;

/// What the caller decides about plans.
#[derive(Clone, Copy, Default)]
pub struct PlanOptions<'a> {
    /// True for paths that are not to be materialised here. Must be true for
    /// everything below such a path as well.
    pub skip: Option<SkipPath<'a>>,
}

/// Steps of one batch. One plan belongs to one transaction.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// What to do, in order.
    pub steps: Vec<Step>,
    /// Provisional keys given out so far in this plan.
    pub provisional_count: u64,
    /// The root directory, once it was looked up.
    root: Option<NodeKey>,
    /// Inodes that entries, for a content, shared with others and were parted from by a step of this plan.
    shared: HashMap<(EntryId, Digest), NodeKey>,
}

impl Plan {
    /// The first bytes of provisional keys; no file system's handle type has them.
    pub const PROVISIONAL: &'static [u8] = b"\xff\xff?";
    /// The key of the place where parked inodes wait: a directory inside the private one.
    pub const PARKED: &'static [u8] = b"\xff\xff!";

    /// An empty plan.
    pub fn new() -> Plan {
        Plan::default()
    }

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

    /// Where `node` waits while parked. The executor makes a directory for [`Plan::PARKED`] in the
    /// volume's private one, or keeps such a place otherwise; the name there is 16 hex digits of the key's digest.
    pub fn parked(node: &NodeKey) -> At {
        let digest = Digest::of(node.as_bytes());
        let hex: String = digest.0[..8].iter().map(|b| format!("{b:02x}")).collect();
        // Three bytes, and 16 hex digits: always a key, always a name.
        let dir = NodeKey::new(Self::PARKED).unwrap_or_else(|| unreachable!());
        At { dir, name: Name::new(hex.as_bytes()).unwrap_or_else(|_| unreachable!()) }
    }

    /// True for the key of the directory of parked inodes.
    pub fn is_parked_dir(dir: &NodeKey) -> bool {
        dir.as_bytes() == Self::PARKED
    }
}

/// Plans what `entry` (and the names it takes or leaves) needs; appends to `plan` and records the steps as
/// if done. Idempotent. Directories above it, and what is in its way, are planned with it.
pub fn plan_entry(
    tx: &mut Tx<'_>,
    entry: EntryId,
    plan: &mut Plan,
    options: &PlanOptions<'_>,
) -> Result<Option<Wait>> {
    planner::plan_entry(tx, entry, plan, options)
}

impl Step {
    /// Puts real keys in the place of provisional ones.
    pub fn resolve(&mut self, real: &HashMap<NodeKey, NodeKey>) {
        self.each_key(&mut |key| {
            if let Some(r) = real.get(key) {
                *key = r.clone();
            }
        });
        if let Step::Remove { at, victim } = self
            && Plan::is_parked_dir(&at.dir)
        {
            *at = Plan::parked(&victim.node);
        }
    }

    /// Brings the victim's fingerprint up to what is recorded now: an earlier step of the same batch may
    /// have changed its change time.
    pub fn refresh(&mut self, tx: &mut Tx<'_>) -> Result<()> {
        if let Some(victim) = self.victim_mut()
            && let Some(node) = tx.node(&victim.node)?
        {
            victim.fingerprint = node.fingerprint;
        }
        Ok(())
    }

    /// The inode that the step makes, changes, moves or removes.
    pub fn node(&self) -> &NodeKey {
        match self {
            Step::MakeDir { node, .. }
            | Step::Put { node, .. }
            | Step::Link { node, .. }
            | Step::Move { node, .. }
            | Step::Park { node, .. }
            | Step::Unpark { node, .. }
            | Step::SetAttrs { node, .. }
            | Step::Rebind { node, .. } => node,
            Step::Remove { victim, .. } => &victim.node,
        }
    }

    /// What the step takes the place of, or removes.
    pub fn victim(&self) -> Option<&Victim> {
        match self {
            Step::Put { victim, .. }
            | Step::Link { victim, .. }
            | Step::Move { victim, .. }
            | Step::Unpark { victim, .. } => victim.as_ref(),
            Step::Remove { victim, .. } => Some(victim),
            _ => None,
        }
    }

    /// Where the step shows or removes something: where its victim is, if it has one.
    pub fn target(&self) -> Option<&At> {
        match self {
            Step::MakeDir { at, .. }
            | Step::Put { at, .. }
            | Step::Remove { at, .. }
            | Step::Rebind { at, .. } => Some(at),
            Step::Link { to, .. } | Step::Move { to, .. } | Step::Unpark { to, .. } => Some(to),
            Step::Park { .. } | Step::SetAttrs { .. } => None,
        }
    }

    /// The inode that the step takes its content from.
    pub fn source(&self) -> Option<&NodeKey> {
        match self {
            Step::Put { copy, .. } => copy.as_ref(),
            Step::Link { node, .. } | Step::Move { node, .. } | Step::Unpark { node, .. } => Some(node),
            _ => None,
        }
    }

    /// True if the step builds on something that an earlier step should have made and did not: keys are still
    /// provisional after [`Step::resolve`].
    pub fn is_unresolved(&self) -> bool {
        let dirs: [Option<&At>; 2] = match self {
            Step::MakeDir { at, .. }
            | Step::Put { at, .. }
            | Step::Remove { at, .. }
            | Step::Rebind { at, .. } => [Some(at), None],
            Step::Link { from, to, .. } | Step::Move { from, to, .. } => [Some(from), Some(to)],
            Step::Park { from, .. } => [Some(from), None],
            Step::Unpark { to, .. } => [Some(to), None],
            Step::SetAttrs { path, .. } => [path.as_ref(), None],
        };
        let makes = matches!(self, Step::MakeDir { .. } | Step::Put { .. });
        dirs.into_iter().flatten().any(|at| Plan::is_provisional(&at.dir))
            || (!makes && Plan::is_provisional(self.node()))
    }

    fn victim_mut(&mut self) -> Option<&mut Victim> {
        match self {
            Step::Put { victim, .. }
            | Step::Link { victim, .. }
            | Step::Move { victim, .. }
            | Step::Unpark { victim, .. } => victim.as_mut(),
            Step::Remove { victim, .. } => Some(victim),
            _ => None,
        }
    }

    fn each_key(&mut self, f: &mut dyn FnMut(&mut NodeKey)) {
        match self {
            Step::MakeDir { at, node, .. } | Step::Rebind { at, node, .. } => {
                f(&mut at.dir);
                f(node);
            }
            Step::Put { at, node, copy, .. } => {
                f(&mut at.dir);
                f(node);
                copy.iter_mut().for_each(&mut *f);
            }
            Step::Link { from, to, node, .. } | Step::Move { from, to, node, .. } => {
                f(&mut from.dir);
                f(&mut to.dir);
                f(node);
            }
            Step::Park { from, node, .. } => {
                f(&mut from.dir);
                f(node);
            }
            Step::Unpark { to, node, .. } => {
                f(&mut to.dir);
                f(node);
            }
            Step::Remove { at, .. } => f(&mut at.dir),
            Step::SetAttrs { path, node, .. } => {
                path.iter_mut().for_each(|at| f(&mut at.dir));
                f(node);
            }
        }
        if let Some(v) = self.victim_mut() {
            f(&mut v.node);
        }
    }
}

/// True if the record still shows what the step was planned on: an earlier step of the batch that should have made
/// room, or brought what this one moves, may have failed. What is recorded at a name must not be covered by
/// another inode then, or the change that was in the way would never be seen. Nor must a directory's record go while something
/// is recorded in it, whatever the disk shows: nobody would ever look for that again.
pub fn stands(tx: &mut Tx<'_>, step: &Step) -> Result<bool> {
    let (source, target) = match step {
        Step::MakeDir { at, .. } | Step::Put { at, .. } => (None, Some(at.clone())),
        Step::Link { from, to, node, .. } | Step::Move { from, to, node, .. } => {
            (Some((from.clone(), node)), Some(to.clone()))
        }
        Step::Park { from, node, .. } => (Some((from.clone(), node)), Some(Plan::parked(node))),
        Step::Unpark { to, node, .. } => (Some((Plan::parked(node), node)), Some(to.clone())),
        Step::Remove { at, .. } => (None, Some(at.clone())),
        Step::SetAttrs { node, .. } => return Ok(tx.node(node)?.is_some()),
        Step::Rebind { .. } => return Ok(true), // looks for itself
    };
    if let Some((from, node)) = source
        && tx.place(&from.dir, &from.name)?.is_none_or(|p| p.node != *node)
    {
        return Ok(false);
    }
    if let Some(victim) = step.victim().filter(|v| v.kind.is_dir())
        && !tx.places_in(&victim.node, None, 1)?.is_empty()
    {
        return Ok(false);
    }
    let Some(at) = target else { return Ok(true) };
    let there = tx.place(&at.dir, &at.name)?.map(|p| p.node.clone());
    Ok(there.as_ref() == step.victim().map(|v| &v.node))
}

/// The directories that a step, which is not recorded yet, brings to a disk that did not have them. With a filter they may have
/// been hidden: [`lacking_below`].
pub fn coming_dirs(tx: &mut Tx<'_>, step: &Step) -> Result<Vec<EntryId>> {
    let binding = match step {
        _ if mutant!(HiddenStaysAway) => return Ok(Vec::new()),
        Step::MakeDir { binding, .. }
        | Step::Rebind { binding, .. }
        | Step::Move { binding, .. }
        | Step::Unpark { binding, .. } => binding,
        _ => return Ok(Vec::new()),
    };
    let mut coming = Vec::new();
    for member in &binding.members {
        if tx.entry(*member)?.is_some_and(|row| row.bound.is_empty()) {
            coming.push(*member);
        }
    }
    Ok(coming)
}

/// What is in these directories and may not be on this disk with all its names, though it was planned: a filter hid them. `None`
/// if it is more than `limit`.
pub fn lacking_below(tx: &mut Tx<'_>, dirs: &[EntryId], limit: usize) -> Result<Option<Vec<EntryId>>> {
    let mut lacking = Vec::new();
    for dir in dirs {
        let mut after: Option<(Name, EntryId)> = None;
        loop {
            let page = tx.names_in(*dir, after.as_ref().map(|(n, id)| (n, *id)), NAMES_AT_ONCE)?;
            let Some(last) = page.last() else { break };
            after = Some(last.clone());
            for (_, id) in page {
                let lacks = |row: &EntryRow| row.bound.is_empty() || row.entry.shown_links().len() > 1;
                if tx.entry(id)?.is_some_and(|row| lacks(&row)) {
                    lacking.push(id);
                }
            }
            if lacking.len() > limit {
                return Ok(None);
            }
        }
    }
    Ok(Some(lacking))
}

/// The entries that are not done if `step` is not: those that it shows, and those recorded at the names that
/// it would take or take over. They have to be planned again. Keys in `step` must be real, `tx` must not
/// have the step recorded.
pub fn concerned(tx: &mut Tx<'_>, step: &Step) -> Result<Vec<EntryId>> {
    let mut out = Vec::new();
    let (places, binding) = match step {
        Step::MakeDir { at, binding, .. } | Step::Rebind { at, binding, .. } => {
            (vec![at.clone()], Some(binding))
        }
        Step::Put { at, entry, binding, .. } => {
            out.push(*entry);
            (vec![at.clone()], Some(binding))
        }
        Step::Link { to, binding, .. } => (vec![to.clone()], Some(binding)),
        Step::Move { from, to, binding, .. } => (vec![to.clone(), from.clone()], Some(binding)),
        Step::Unpark { to, node, binding, .. } => (vec![to.clone(), Plan::parked(node)], Some(binding)),
        Step::Park { from, .. } => (vec![from.clone()], None),
        Step::Remove { at, .. } => (vec![at.clone()], None),
        Step::SetAttrs { path, entry, .. } => {
            out.push(*entry);
            (path.iter().cloned().collect(), None)
        }
    };
    if let Some(binding) = binding {
        out.extend(binding.claims.iter().map(|c| c.entry).chain(binding.members.iter().copied()));
    }
    for at in places {
        let Some(place) = tx.place(&at.dir, &at.name)? else { continue };
        out.extend(place.claims.iter().map(|c| c.entry));
        if let Some(Bind::Dir(members)) = tx.node(&place.node)?.as_ref().map(|n| &n.bind) {
            out.extend(members);
        }
    }
    let mut seen = HashSet::new();
    out.retain(|e| !e.is_root() && seen.insert(*e));
    Ok(out)
}

/// A step in words, for people: `create file docs/a.txt (4096 bytes)`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Description {
    /// What happens, with the kind: `create file`, `move dir`, `remove`.
    pub verb: String,
    /// The path it happens to, from the root, as bytes.
    pub path: Vec<u8>,
    /// Size, target or origin; may be empty.
    pub detail: String,
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, String::from_utf8_lossy(&self.path))?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, " ({})", self.detail) }
    }
}

/// Describes a step, with the paths that directories have in `tx` now.
pub fn describe(tx: &mut Tx<'_>, step: &Step) -> Result<Description> {
    let (verb, at, detail) = match step {
        Step::MakeDir { at, .. } => ("create dir".to_string(), Some(at), String::new()),
        Step::Put { at, kind, content, victim, .. } => {
            let verb = if victim.is_some() { "replace" } else { "create" };
            (format!("{verb} {}", kind.word()), Some(at), describe_content(content))
        }
        Step::Link { from, to, .. } => ("link".to_string(), Some(to), origin(tx, from)?),
        Step::Move { from, to, kind, .. } => (format!("move {}", kind.word()), Some(to), origin(tx, from)?),
        Step::Park { from, kind, .. } => (format!("set aside {}", kind.word()), Some(from), String::new()),
        Step::Unpark { to, kind, .. } => (format!("put back {}", kind.word()), Some(to), String::new()),
        Step::Remove { at, victim } => (format!("remove {}", victim.kind.word()), Some(at), String::new()),
        Step::SetAttrs { path, kind, attrs, .. } => {
            (format!("set attributes of {}", kind.word()), path.as_ref(), format!("mode {:o}", attrs.mode))
        }
        Step::Rebind { at, .. } => ("record".to_string(), Some(at), String::new()),
    };
    let path = match at {
        Some(at) => path_bytes(tx, at)?,
        None => b".".to_vec(),
    };
    Ok(Description { verb, path, detail })
}

fn origin(tx: &mut Tx<'_>, from: &At) -> Result<String> {
    Ok(format!("from {}", String::from_utf8_lossy(&path_bytes(tx, from)?)))
}

fn describe_content(content: &Content) -> String {
    match content {
        Content::File { size, .. } => format!("{size} bytes"),
        Content::Symlink { target, .. } => format!("to {}", String::from_utf8_lossy(target)),
        Content::Special { rdev: 0, .. } => String::new(),
        Content::Special { rdev, .. } => format!("device {rdev}"),
    }
}

/// The path of a name on this disk, from the root, joined by slashes.
fn path_bytes(tx: &mut Tx<'_>, at: &At) -> Result<Vec<u8>> {
    let mut parts = vec![at.name.clone()];
    let mut dir = at.dir.clone();
    while let Some(node) = tx.node(&dir)? {
        let Some((parent, name)) = node.names.first() else { break };
        parts.push(name.clone());
        dir = parent.clone();
    }
    parts.reverse();
    let parts: Vec<&[u8]> = parts.iter().map(Name::as_bytes).collect();
    Ok(parts.join(&b'/'))
}

#[cfg(test)]
mod tests;
