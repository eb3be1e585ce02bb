//! What a user did on this disk, as new entry states (model-findings 3.5).
//!
//! Every function judges by what the *paths on this disk* were materialised with (places, claims,
//! bound members), never by the merged state, gives each change a fresh dot and a stamp above all it
//! saw, merges the delta into the old state (asserting that it won), and brings places and nodes up to date.
//! Fidelity: if the disk equalled the effective tree before the operation, it does afterwards.

use crate::disk::{Fingerprint, NodeKey};
use crate::id::{Kind, Name};
use crate::meta::{Attrs, Content};
use crate::tx::{Result, Tx};

/// What a look at an inode gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Looked {
    /// Its identity.
    pub key: NodeKey,
    /// What it is.
    pub kind: Kind,
    /// Stat before and after reading were equal to this.
    pub fingerprint: Fingerprint,
    /// Younger than the file system's tick: look again later.
    pub racy: bool,
    /// Attributes.
    pub attrs: Attrs,
    /// What it holds; `None` for directories.
    pub content: Option<Content>,
}

/// How a new version or name is stamped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A user's change: stamps are above all seen, not before now.
    User,
    /// Found by a replica's first scan: versions are stamped with their mtime (capped at now), names
    /// with the smallest stamp, so any live change beats them.
    Import,
}

/// A directory and a name in it, on this disk.
pub type Spot<'a> = (&'a NodeKey, &'a Name);

/// Records the root directory's node (no dot). Idempotent.
pub fn init_root(tx: &mut Tx<'_>, root: &Looked) -> Result<()> {
    let _ = (tx, root);
    unimplemented!("lands with this module")
}

/// A new inode (of any kind) at a free name.
pub fn create(tx: &mut Tx<'_>, at: Spot<'_>, new: &Looked, origin: Origin) -> Result<()> {
    let _ = (tx, at, new, origin);
    unimplemented!("lands with this module")
}

/// A known leaf inode has other content (and maybe other attributes).
pub fn write(tx: &mut Tx<'_>, new: &Looked) -> Result<()> {
    let _ = (tx, new);
    unimplemented!("lands with this module")
}

/// An unknown inode sits at a known leaf's name whose inode is gone from there: a save by temporary
/// file. A data write to the known entry if kinds are equal and the old inode has no other names; else unlink and create.
pub fn replace(tx: &mut Tx<'_>, at: Spot<'_>, new: &Looked) -> Result<()> {
    let _ = (tx, at, new);
    unimplemented!("lands with this module")
}

/// A known inode has other attributes (mode, owner, xattrs; a directory's mtime), content as before.
pub fn attrs(tx: &mut Tx<'_>, new: &Looked) -> Result<()> {
    let _ = (tx, new);
    unimplemented!("lands with this module")
}

/// A leaf's name is gone.
pub fn unlink(tx: &mut Tx<'_>, at: Spot<'_>) -> Result<()> {
    let _ = (tx, at);
    unimplemented!("lands with this module")
}

/// A directory is gone. Places below it must have been removed before.
pub fn rmdir(tx: &mut Tx<'_>, at: Spot<'_>) -> Result<()> {
    let _ = (tx, at);
    unimplemented!("lands with this module")
}

/// An inode has moved from one name to another, over whatever was materialised there.
pub fn rename(tx: &mut Tx<'_>, from: Spot<'_>, to: Spot<'_>) -> Result<()> {
    let _ = (tx, from, to);
    unimplemented!("lands with this module")
}

/// A known leaf inode has another name, at a free name.
pub fn link(tx: &mut Tx<'_>, node: &NodeKey, to: Spot<'_>) -> Result<()> {
    let _ = (tx, node, to);
    unimplemented!("lands with this module")
}
