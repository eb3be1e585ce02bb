//! What can go wrong with a directory volume, in words for the person who must act.
//!
//! Every error says what was tried, on what, why it failed ([`Reason`], a closed list that rows can be grouped
//! by) and what to do about it.

use crate::dirfd::Seen;
use crate::limbo::Limbo;
use rustix::io::Errno;
use std::fmt;

/// Why something could not be done. Closed: rows of waiting entries are grouped by it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Reason {
    /// The name or directory is not there.
    NotFound,
    /// Permission or ownership.
    Denied,
    /// An immutable or append-only flag (chattr) on it or on its directory.
    Fixed,
    /// The file system or the quota is full.
    NoSpace,
    /// The name or path is longer than the file system takes.
    NameTooLong,
    /// The file system is mounted read-only.
    ReadOnly,
    /// A process has the file open for writing or maps it writable, or the directory is a mount point.
    Busy,
    /// It changed while we were at it.
    Raced,
    /// Something is where nothing was expected.
    Unexpected,
    /// The directory has files that are not known.
    NotEmpty,
    /// The file system does not rename from there to here.
    CrossDevice,
    /// A path component is a symlink, a mount point or no directory.
    NotDirectory,
    /// Another inode is there than the one expected.
    WrongIdentity,
    /// The file system or kernel cannot do it.
    Unsupported,
    /// The process has too many files open.
    TooManyOpen,
    /// The size limit of the file system or process is exceeded.
    TooLarge,
    /// A sync failed: what was written since the last one must be written again.
    SyncFailed,
    /// Bytes written are not the bytes announced.
    WrongContent,
    /// The marker file at the root is damaged.
    BadMarker,
    /// The device or network failed.
    Io,
}

impl Reason {
    /// The reason behind an error number.
    pub fn of(errno: Errno) -> Reason {
        match errno {
            Errno::NOENT | Errno::STALE => Reason::NotFound,
            Errno::ACCESS | Errno::PERM => Reason::Denied,
            Errno::NOSPC | Errno::DQUOT => Reason::NoSpace,
            Errno::NAMETOOLONG => Reason::NameTooLong,
            Errno::ROFS => Reason::ReadOnly,
            Errno::BUSY | Errno::TXTBSY => Reason::Busy,
            Errno::EXIST => Reason::Unexpected,
            Errno::NOTEMPTY => Reason::NotEmpty,
            Errno::XDEV => Reason::CrossDevice,
            Errno::NOTDIR | Errno::LOOP => Reason::NotDirectory,
            Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL => Reason::Unsupported,
            Errno::MFILE | Errno::NFILE => Reason::TooManyOpen,
            Errno::FBIG | Errno::MLINK | Errno::OVERFLOW => Reason::TooLarge,
            _ => Reason::Io,
        }
    }

    /// The word used in output for programs.
    pub fn word(self) -> &'static str {
        match self {
            Reason::NotFound => "not-found",
            Reason::Denied => "denied",
            Reason::Fixed => "immutable or append-only",
            Reason::NoSpace => "no-space",
            Reason::NameTooLong => "name-too-long",
            Reason::ReadOnly => "read-only",
            Reason::Busy => "busy",
            Reason::Raced => "raced",
            Reason::Unexpected => "unexpected",
            Reason::NotEmpty => "not-empty",
            Reason::CrossDevice => "cross-device",
            Reason::NotDirectory => "not-directory",
            Reason::WrongIdentity => "wrong-identity",
            Reason::Unsupported => "unsupported",
            Reason::TooManyOpen => "too-many-open",
            Reason::TooLarge => "too-large",
            Reason::SyncFailed => "sync-failed",
            Reason::WrongContent => "wrong-content",
            Reason::BadMarker => "bad-marker",
            Reason::Io => "io",
        }
    }

    /// What to do about it, one sentence.
    pub fn advice(self) -> &'static str {
        match self {
            Reason::NotFound => "It was removed or renamed in the meantime; it is looked at again.",
            Reason::Denied => "Give this user the right to do it, or run as root.",
            Reason::Fixed => {
                "Clear the immutable or append-only flag (lsattr shows it, chattr -i or -a clears it); it is tried again."
            }
            Reason::NoSpace => "Free space or raise the quota; it is tried again.",
            Reason::NameTooLong => "Shorten the name; this file system cannot hold it.",
            Reason::ReadOnly => "Mount the file system read-write.",
            Reason::Busy => {
                "Close the program that has it open for writing; it is tried again when that is done."
            }
            Reason::Raced => "It was changed at the same moment; it is looked at again and nothing was lost.",
            Reason::Unexpected => "A file that was not known is there; it is looked at first.",
            Reason::NotEmpty => "The directory has files that were not known; they are looked at first.",
            Reason::CrossDevice => "The file system does not allow renames there; it is copied instead.",
            Reason::NotDirectory => {
                "A part of the path is no plain directory inside the volume; symlinks and mount points are not followed."
            }
            Reason::WrongIdentity => "It was replaced in the meantime; it is looked at again.",
            Reason::Unsupported => {
                "This file system or kernel cannot hold it; it stays in the state and is listed."
            }
            Reason::TooManyOpen => "Raise the limit of open files (ulimit -n).",
            Reason::TooLarge => "Raise the limit of the file system or process; it cannot hold this.",
            Reason::SyncFailed => {
                "The device failed to store data (see the kernel log); what was written is written again."
            }
            Reason::WrongContent => "What arrived is not what was announced; it is fetched again.",
            Reason::BadMarker => {
                "The marker was damaged or made by a newer version; put back the right file or remove it after checking that this is the right directory."
            }
            Reason::Io => "Check the device and the kernel log; it is tried again.",
        }
    }
}

/// A call on the volume that failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeError {
    /// What was tried: a verb and its object.
    pub tried: &'static str,
    /// On what: a name or path, as bytes.
    pub subject: Vec<u8>,
    /// Why it failed.
    pub reason: Reason,
    /// The system's error number, if it came from a system call.
    pub errno: Option<i32>,
}

impl VolumeError {
    /// Wraps an error number.
    pub(crate) fn sys(tried: &'static str, subject: &[u8], errno: Errno) -> VolumeError {
        let reason = Reason::of(errno);
        VolumeError { tried, subject: subject.to_vec(), reason, errno: Some(errno.raw_os_error()) }
    }

    /// An error found by ourselves.
    pub(crate) fn own(tried: &'static str, subject: &[u8], reason: Reason) -> VolumeError {
        VolumeError { tried, subject: subject.to_vec(), reason, errno: None }
    }

    /// Why.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// True if the device failed, or what is on it cannot be made sense of: trying again is of no use.
    pub fn is_of_device(&self) -> bool {
        let failed = [Errno::IO, Errno::UCLEAN, Errno::BADMSG].map(Errno::raw_os_error);
        self.errno.is_some_and(|errno| failed.contains(&errno))
    }

    /// What, where, why and what to do, for a person.
    pub fn advice(&self) -> String {
        format!("{self}. {}", self.reason.advice())
    }
}

impl fmt::Display for VolumeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} \"{}\": ", self.tried, String::from_utf8_lossy(&self.subject).escape_debug())?;
        match self.errno {
            Some(errno) => write!(f, "{}", std::io::Error::from_raw_os_error(errno)),
            None => f.write_str(self.reason.word()),
        }
    }
}
impl std::error::Error for VolumeError {}

/// Turns a system call's result into ours, with what was tried on what.
pub(crate) trait Context<T> {
    fn doing(self, tried: &'static str, subject: &[u8]) -> Result<T, VolumeError>;
}
impl<T> Context<T> for Result<T, Errno> {
    fn doing(self, tried: &'static str, subject: &[u8]) -> Result<T, VolumeError> {
        self.map_err(|errno| VolumeError::sys(tried, subject, errno))
    }
}

/// A step that could not be applied. Nothing was destroyed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ApplyError {
    /// A process has the file at this name open for writing, or maps it writable. Nothing was changed.
    Busy {
        /// The name.
        name: Vec<u8>,
    },
    /// What is there is not what was expected, or changed while it was being replaced. It was put back where it
    /// was; if that was not possible it waits in `limbo` and is a user's version.
    Raced {
        /// The name.
        name: Vec<u8>,
        /// Where a version waits that could not be put back.
        limbo: Option<Box<Limbo>>,
    },
    /// Something is at a name that was expected to be free.
    Unexpected {
        /// What is there, if it could still be seen.
        seen: Option<Box<Seen>>,
    },
    /// The directory has entries.
    NotEmpty {
        /// The name.
        name: Vec<u8>,
    },
    /// The file system does not rename between these two places.
    CrossDevice {
        /// The name.
        name: Vec<u8>,
    },
    /// Anything else.
    Volume(VolumeError),
}

impl ApplyError {
    /// Why.
    pub fn reason(&self) -> Reason {
        match self {
            ApplyError::Busy { .. } => Reason::Busy,
            ApplyError::Raced { .. } => Reason::Raced,
            ApplyError::Unexpected { .. } => Reason::Unexpected,
            ApplyError::NotEmpty { .. } => Reason::NotEmpty,
            ApplyError::CrossDevice { .. } => Reason::CrossDevice,
            ApplyError::Volume(e) => e.reason,
        }
    }

    /// What, where, why and what to do, for a person.
    pub fn advice(&self) -> String {
        format!("{self}. {}", self.reason().advice())
    }

    pub(crate) fn raced(name: &[u8]) -> ApplyError {
        ApplyError::Raced { name: name.to_vec(), limbo: None }
    }
}

impl fmt::Display for ApplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let say = |f: &mut fmt::Formatter<'_>, name: &[u8], what: &str| {
            write!(f, "\"{}\" {what}", String::from_utf8_lossy(name).escape_debug())
        };
        match self {
            ApplyError::Busy { name } => say(f, name, "is open for writing"),
            ApplyError::Raced { name, limbo: None } => say(f, name, "is not what was expected"),
            ApplyError::Raced { name, limbo: Some(limbo) } => {
                say(f, name, "changed while it was replaced; the changed version waits as ")?;
                write!(f, "{}", limbo.id)
            }
            ApplyError::Unexpected { seen } => match seen {
                Some(seen) => say(f, seen.name.as_bytes(), "is there unexpectedly"),
                None => f.write_str("something is there unexpectedly"),
            },
            ApplyError::NotEmpty { name } => say(f, name, "is a directory with entries"),
            ApplyError::CrossDevice { name } => say(f, name, "cannot be renamed to or from here"),
            ApplyError::Volume(e) => e.fmt(f),
        }
    }
}
impl std::error::Error for ApplyError {}

impl From<VolumeError> for ApplyError {
    fn from(e: VolumeError) -> ApplyError {
        let name = e.subject.clone();
        match e.reason {
            Reason::NotEmpty => ApplyError::NotEmpty { name },
            Reason::CrossDevice => ApplyError::CrossDevice { name },
            Reason::Busy => ApplyError::Busy { name },
            Reason::Raced | Reason::WrongIdentity => ApplyError::Raced { name, limbo: None },
            Reason::Unexpected => ApplyError::Unexpected { seen: None },
            _ => ApplyError::Volume(e),
        }
    }
}
