//! Names for things: replicas, dots, stamps, entries, kinds, file names.

use std::fmt;

/// A replica of a volume: 64 random bits, drawn when its index is made and never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ReplicaId(pub u64);

impl fmt::Debug for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "R{:x}", self.0)
    }
}
impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Names one local change for ever: the replica that made it and its feed sequence number (from 1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Dot {
    /// Who made the change.
    pub replica: ReplicaId,
    /// The feed sequence number the change got there. 0 is no change.
    pub n: u64,
}

impl Dot {
    /// The dot `(replica, n)`.
    pub const fn new(replica: ReplicaId, n: u64) -> Self {
        Self { replica, n }
    }
}
impl fmt::Debug for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}.{}", self.replica, self.n)
    }
}
impl fmt::Display for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.replica, self.n)
    }
}

/// An entry: the dot of its creation. Survives renames.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(pub Dot);

impl EntryId {
    /// The root directory of every volume. It has no state of its own, cannot be removed or moved.
    pub const ROOT: EntryId = EntryId(Dot::new(ReplicaId(0), 0));

    /// True for [`EntryId::ROOT`].
    pub fn is_root(&self) -> bool {
        *self == Self::ROOT
    }
}
impl fmt::Debug for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() { f.write_str("root") } else { write!(f, "e:{:?}", self.0) }
    }
}
impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A name an entry has or had: the dot of that name's creation (model finding G11).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub Dot);

impl fmt::Debug for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "l:{:?}", self.0)
    }
}

/// A total order on concurrent values; only ever used to choose a winner, never to decide whether
/// something happened before something else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Stamp {
    /// Ownership epoch of the author.
    pub epoch: u64,
    /// Wall clock of the author in nanoseconds since 1970, or more if it had seen more.
    pub clock_ns: u64,
    /// Breaks ties.
    pub replica: ReplicaId,
}

impl Stamp {
    /// The smallest stamp there is: what an import gives to names, and the root's stamp in repairs.
    pub const MIN: Stamp = Stamp { epoch: 0, clock_ns: 0, replica: ReplicaId(0) };

    /// A stamp of `replica` that is greater than `seen` and not before the wall clock `now_ns`
    /// (model finding G1).
    pub fn above(seen: Stamp, epoch: u64, now_ns: u64, replica: ReplicaId) -> Stamp {
        Stamp { epoch: epoch.max(seen.epoch), clock_ns: now_ns.max(seen.clock_ns.saturating_add(1)), replica }
    }
}
impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{}.{}.{:?}", self.epoch, self.clock_ns, self.replica)
    }
}

/// What an entry is. An entry never changes its kind: replacing a file by a directory is a removal
/// and a creation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Directory.
    Dir = 0,
    /// Regular file.
    File = 1,
    /// Symbolic link.
    Symlink = 2,
    /// Named pipe.
    Fifo = 3,
    /// Unix socket.
    Socket = 4,
    /// Character device.
    CharDev = 5,
    /// Block device.
    BlockDev = 6,
}

impl Kind {
    /// The kind with this code, as [`Kind`] `as u8` gives it.
    pub fn from_code(code: u8) -> Option<Kind> {
        Some(match code {
            0 => Kind::Dir,
            1 => Kind::File,
            2 => Kind::Symlink,
            3 => Kind::Fifo,
            4 => Kind::Socket,
            5 => Kind::CharDev,
            6 => Kind::BlockDev,
            _ => return None,
        })
    }

    /// True for [`Kind::Dir`].
    pub fn is_dir(self) -> bool {
        self == Kind::Dir
    }

    /// The word users see.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Dir => "dir",
            Kind::File => "file",
            Kind::Symlink => "symlink",
            Kind::Fifo => "fifo",
            Kind::Socket => "socket",
            Kind::CharDev => "chardev",
            Kind::BlockDev => "blockdev",
        }
    }
}

/// One file name: 1 to 255 bytes, no `/`, no NUL, not `.` or `..`, not [`Name::PRIVATE`]. Bytes, not text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(smallvec::SmallVec<[u8; 22]>);

/// Why some bytes are no file name we accept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NameError {
    /// No bytes.
    #[error("the name is empty")]
    Empty,
    /// More than 255 bytes.
    #[error("the name is longer than 255 bytes")]
    TooLong,
    /// Has a slash or a NUL.
    #[error("the name has a slash or a NUL byte")]
    ForbiddenByte,
    /// Is `.` or `..`.
    #[error("the name is . or ..")]
    Dots,
    /// Is reserved for our private files.
    #[error("the name is reserved for Driftless")]
    Reserved,
}

impl Name {
    /// Longest name in bytes.
    pub const LEN_MAX: usize = 255;
    /// The private directory at the root of a volume; no entry may have this name, anywhere.
    pub const PRIVATE: &'static [u8] = b".driftless";
    /// Names with this prefix are staged files placed beside their target; no entry may have one.
    pub const STAGED_PREFIX: &'static [u8] = b".driftless-staged-";

    /// Checks `bytes` and makes a name of them.
    pub fn new(bytes: &[u8]) -> Result<Name, NameError> {
        if bytes.is_empty() {
            return Err(NameError::Empty);
        }
        if bytes.len() > Self::LEN_MAX {
            return Err(NameError::TooLong);
        }
        if bytes.contains(&b'/') || bytes.contains(&0) {
            return Err(NameError::ForbiddenByte);
        }
        if bytes == b"." || bytes == b".." {
            return Err(NameError::Dots);
        }
        if bytes == Self::PRIVATE || bytes.starts_with(Self::STAGED_PREFIX) {
            return Err(NameError::Reserved);
        }
        Ok(Name(smallvec::SmallVec::from_slice(bytes)))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}
impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bytes_with_few_rules() {
        for good in [&b"a"[..], b"\xff\n", b"...", &[b'x'; 255], b".driftlessx"] {
            assert_eq!(Name::new(good).unwrap().as_bytes(), good);
        }
        for (bad, why) in [
            (&b""[..], NameError::Empty),
            (&[b'x'; 256], NameError::TooLong),
            (b"a/b", NameError::ForbiddenByte),
            (b"a\0", NameError::ForbiddenByte),
            (b"..", NameError::Dots),
            (b".driftless", NameError::Reserved),
            (b".driftless-staged-1", NameError::Reserved),
        ] {
            assert_eq!(Name::new(bad), Err(why));
        }
    }

    #[test]
    fn a_stamp_is_above_what_its_author_saw() {
        let seen = Stamp { epoch: 2, clock_ns: 900, replica: ReplicaId(9) };
        let s = Stamp::above(seen, 0, 5, ReplicaId(1));
        assert!(s > seen);
        assert_eq!((s.epoch, s.clock_ns), (2, 901));
    }
}
