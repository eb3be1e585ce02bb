//! What the index remembers of a disk: inodes (nodes), the paths they have (places) and what each
//! path was materialised with (claims). Everything a user did is judged against these, never
//! against the merged state.

use crate::id::{Dot, EntryId, Kind, LinkId, Name};
use crate::meta::{Attrs, Digest, Time};
use smallvec::SmallVec;
use std::fmt;

/// Identity of an inode on this disk, for as long as it lives: the file system's handle (type and
/// bytes, as `name_to_handle_at` gives them), else inode number and birth time.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeKey(SmallVec<[u8; 22]>);

impl NodeKey {
    /// Longest key in bytes (a handle has at most 128, plus its type).
    pub const LEN_MAX: usize = 132;

    /// A key from its bytes. `None` if empty or too long.
    pub fn new(bytes: &[u8]) -> Option<NodeKey> {
        (!bytes.is_empty() && bytes.len() <= Self::LEN_MAX).then(|| NodeKey(SmallVec::from_slice(bytes)))
    }
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}
impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("n:")?;
        for b in &self.0 {
            write!(f, "{b:02x}")?;
        }
        Ok(())
    }
}

/// What tells cheaply whether an inode changed. Compared for equality, never for order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Fingerprint {
    /// Length in bytes; 0 for directories.
    pub size: u64,
    /// Modification time.
    pub mtime: Time,
    /// Change time.
    pub ctime: Time,
}

/// What was recorded of an inode that a stat can be compared with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Recorded {
    /// What it is.
    pub kind: Kind,
    /// Size and times.
    pub fingerprint: Fingerprint,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// One inode on this disk that we know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// As the file system gave it back when we last looked or wrote.
    pub fingerprint: Fingerprint,
    /// True if the fingerprint was younger than the file system's tick when taken: look again.
    pub racy: bool,
    /// Attributes as the file system gave them back.
    pub given: Attrs,
    /// What the state said when attributes were last applied to the inode, or recorded from it.
    pub wanted: Wanted,
    /// All names of the inode inside the volume: (directory, name). Empty only for the root.
    pub names: Vec<(NodeKey, Name)>,
    /// What it stands for.
    pub bind: Bind,
}

/// Short digest of attributes and modification time as the *state* had them. What a file system gives
/// back may differ from it for ever (no right to chown, coarse times); only a state that says something else
/// than last time is a reason to apply attributes again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Wanted(pub u64);

impl Wanted {
    /// Not known: attributes that differ from what was given back are applied.
    pub const UNKNOWN: Wanted = Wanted(0);

    /// Of an entry's attributes and, for leaves, the modification time of the version on disk. A
    /// directory's time is among its attributes.
    pub fn of(attrs: &Attrs, content_mtime: Option<Time>) -> Wanted {
        let mut e = crate::codec::Encoder::new();
        e.attrs(attrs);
        if let Some(t) = content_mtime {
            e.time(t);
        }
        let digest = Digest::of(&e.buf).0;
        // 64 bits: who finds a collision gets attributes of his own file not applied.
        Wanted(u64::from_be_bytes([
            digest[0], digest[1], digest[2], digest[3], digest[4], digest[5], digest[6], digest[7],
        ]))
    }
}

/// What an inode stands for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Bind {
    /// A directory: the entries whose union it shows, sorted. The root has [`EntryId::ROOT`].
    Dir(Vec<EntryId>),
    /// A file or other leaf: the content last read or written (its claims are at its places).
    Leaf {
        /// [`crate::meta::Content::identity`] of what is on disk.
        identity: Digest,
    },
}

/// What one path on this disk was materialised with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The inode there.
    pub node: NodeKey,
    /// Leaves only: the claims shown by this path; the first owns the inode. Empty for directories.
    pub claims: Vec<Claim>,
    /// The real name, if this path is a conflict name made from it.
    pub conflict_of: Option<Name>,
}

/// (link, version) that a path was materialised with: what its user saw.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Claim {
    /// The entry.
    pub entry: EntryId,
    /// Which of its names.
    pub link: LinkId,
    /// The dot of that name's [`crate::entry::At`] when it was materialised.
    pub name_dot: Dot,
    /// The version whose content is on disk.
    pub version: Dot,
}
