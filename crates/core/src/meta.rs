//! What an entry carries: content and attributes.

use smallvec::SmallVec;
use std::fmt;

/// A point in time as file systems store it: seconds since 1970 (may be negative) and nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Time {
    /// Seconds since 1970.
    pub sec: i64,
    /// 0 to 999,999,999.
    pub nsec: u32,
}

impl Time {
    /// Nanoseconds since 1970, 0 if before, saturating.
    pub fn as_ns(&self) -> u64 {
        u64::try_from(self.sec).unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(self.nsec.into())
    }
}

/// BLAKE3 of a file's bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(*blake3::hash(bytes).as_bytes())
    }
}
impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for b in &self.0[..4] {
            write!(f, "{b:02x}")?;
        }
        Ok(())
    }
}

/// One version's content. The bytes of a file are named by their digest; the list of chunks to
/// fetch them by (the recipe) is content too and no part of the state.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Content {
    /// Regular file.
    File {
        /// Length in bytes.
        size: u64,
        /// Modification time.
        mtime: Time,
        /// Digest of the bytes.
        digest: Digest,
    },
    /// Symbolic link.
    Symlink {
        /// Where it points, as stored, never interpreted by us. At most 4095 bytes.
        target: SmallVec<[u8; 24]>,
        /// Modification time of the link itself.
        mtime: Time,
    },
    /// FIFO, socket (`rdev` 0), character or block device.
    Special {
        /// Device number as the kernel encodes it in `st_rdev`.
        rdev: u64,
        /// Modification time.
        mtime: Time,
    },
}

impl Content {
    /// Longest symlink target we accept, in bytes.
    pub const TARGET_LEN_MAX: usize = 4095;

    /// Modification time.
    pub fn mtime(&self) -> Time {
        match self {
            Content::File { mtime, .. } | Content::Symlink { mtime, .. } | Content::Special { mtime, .. } => {
                *mtime
            }
        }
    }

    /// What two contents must share to count as one: the digest of a file's bytes; for others a
    /// digest of what they say. Times do not count.
    pub fn identity(&self) -> Digest {
        match self {
            Content::File { digest, .. } => *digest,
            Content::Symlink { target, .. } => {
                let mut h = blake3::Hasher::new();
                h.update(b"symlink\0");
                h.update(target);
                Digest(*h.finalize().as_bytes())
            }
            Content::Special { rdev, .. } => {
                let mut h = blake3::Hasher::new();
                h.update(b"special\0");
                h.update(&rdev.to_be_bytes());
                Digest(*h.finalize().as_bytes())
            }
        }
    }

    /// Bytes that a replica without this content has to fetch; 0 for all but files.
    pub fn size(&self) -> u64 {
        match self {
            Content::File { size, .. } => *size,
            _ => 0,
        }
    }
}

/// Extended attributes, sorted by name; POSIX ACLs are `system.posix_acl_*` among them.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Attributes of an entry beside its content.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Attrs {
    /// Permission bits with setuid, setgid and sticky (`st_mode & 0o7777`). 0o777 for symlinks.
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Names of owner and group, if the volume carries names; empty = not known.
    pub owner_names: Option<(Vec<u8>, Vec<u8>)>,
    /// Extended attributes sorted by name.
    pub xattrs: Xattrs,
    /// Directories only: modification time, as a disk has it or is to get it. Never in a state, which has it in
    /// [`crate::Entry::dir_time`].
    pub dir_mtime: Option<Time>,
}
