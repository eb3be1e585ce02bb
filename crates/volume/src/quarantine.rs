//! Quarantine: what a disk had of changes beyond a Cut, which are no state of the volume.
//!
//! ```text
//! <root>/.driftless/quarantine/
//!   1/, 2/, ...     batches, one for each time that something was set aside
//!     list          one line about each thing; durable before anything is moved
//!     0, 1, ...     the things, by the number of their line
//! ```
//!
//! Things come by one rename each and leave by one: nothing is copied, and nothing is ever dropped by itself.

use crate::directory::{self, Directory};
use crate::dirfd::{self, DirFd};
use crate::error::{Context, Reason, VolumeError};
use crate::stat::{self, CName};
use driftless_core::{Name, NodeKey};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::ffi::CString;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};

const DIR: &[u8] = b"quarantine";
const LIST: &str = "list";
/// No more is read of a list: a line takes a few hundred bytes.
const LIST_LEN_MAX: u64 = 1 << 30;

/// The quarantine of a volume.
pub struct Quarantine {
    volume: Directory,
    dir: OwnedFd,
}

/// Things that are set aside together.
pub struct QuarantineBatch {
    volume: Directory,
    number: u64,
    dir: OwnedFd,
}

impl Directory {
    /// The quarantine; `None` if there is none and none is to be made.
    ///
    /// # Errors
    /// If it cannot be opened or made.
    pub fn quarantine(&self, create: bool) -> Result<Option<Quarantine>, VolumeError> {
        let Some(private) = &self.0.private else { return Ok(None) };
        let dir = directory::open_own(&private.dir, DIR, create).doing("open the quarantine", DIR)?;
        Ok(dir.map(|dir| Quarantine { volume: self.clone(), dir }))
    }
}

impl Quarantine {
    /// The numbers of all batches, oldest first.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn batches(&self) -> Result<Vec<u64>, VolumeError> {
        let names = dirfd::names_in(&self.dir).doing("list the quarantine", DIR)?;
        let number = |n: &CString| n.to_str().ok()?.parse().ok();
        let mut batches: Vec<u64> = names.iter().filter_map(number).collect();
        batches.sort_unstable();
        Ok(batches)
    }

    /// A new batch with these lines, durable.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn begin(&self, lines: &[u8]) -> Result<QuarantineBatch, VolumeError> {
        let doing = "begin a batch in the quarantine";
        let number = self.batches()?.last().map_or(1, |n| n + 1);
        let name = number.to_string();
        let dir = directory::open_own(&self.dir, name.as_bytes(), true).doing(doing, name.as_bytes())?;
        let dir = dir.ok_or_else(|| VolumeError::own(doing, name.as_bytes(), Reason::NotFound))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let list = rustix::fs::openat(&dir, LIST, flags, Mode::from_raw_mode(0o600)).doing(doing, b"list")?;
        let mut list = std::fs::File::from(list);
        list.write_all(lines)
            .and_then(|()| list.sync_all())
            .map_err(|e| VolumeError::sys(doing, b"list", errno(&e)))?;
        rustix::fs::fsync(&dir).and_then(|()| rustix::fs::fsync(&self.dir)).doing(doing, b"list")?;
        Ok(QuarantineBatch { volume: self.volume.clone(), number, dir })
    }

    /// A batch that is there.
    ///
    /// # Errors
    /// If it is not, or cannot be opened.
    pub fn batch(&self, number: u64) -> Result<QuarantineBatch, VolumeError> {
        let doing = "open a batch in the quarantine";
        let name = number.to_string();
        let dir = directory::open_own(&self.dir, name.as_bytes(), false).doing(doing, name.as_bytes())?;
        let dir = dir.ok_or_else(|| VolumeError::own(doing, name.as_bytes(), Reason::NotFound))?;
        Ok(QuarantineBatch { volume: self.volume.clone(), number, dir })
    }
}

impl QuarantineBatch {
    /// Its number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Its lines.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn list(&self) -> Result<Vec<u8>, VolumeError> {
        let doing = "read the list of the quarantine";
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let list = rustix::fs::openat(&self.dir, LIST, flags, Mode::empty()).doing(doing, b"list")?;
        let mut bytes = Vec::new();
        std::fs::File::from(list)
            .take(LIST_LEN_MAX)
            .read_to_end(&mut bytes)
            .map_err(|e| VolumeError::sys(doing, b"list", errno(&e)))?;
        Ok(bytes)
    }

    /// Moves what is at `name` here, if it is this inode: `false` if it is another by now.
    ///
    /// # Errors
    /// If it cannot be moved.
    pub fn take(&self, from: &DirFd, name: &Name, key: &NodeKey, item: u32) -> Result<bool, VolumeError> {
        let doing = "set aside";
        match from.look(name)? {
            Some(seen) if seen.key == *key => {}
            _ => return Ok(false),
        }
        let to = number_name(item);
        match self.volume.rename(from.as_fd(), CName::new(name).get(), self.dir.as_fd(), &to) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(VolumeError::sys(doing, name.as_bytes(), e)),
        }
    }

    /// Makes durable what was moved.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn sync(&self) -> Result<(), VolumeError> {
        rustix::fs::fsync(&self.dir).doing("sync the quarantine", DIR)
    }

    /// Length of a thing; `None` if it is not here (any more).
    ///
    /// # Errors
    /// If it cannot be looked at.
    pub fn size(&self, item: u32) -> Result<Option<u64>, VolumeError> {
        let name = number_name(item);
        match stat::look_name(self.volume.0.capabilities.identity, &self.dir, &name) {
            Ok(look) => Ok(Some(look.fingerprint().size)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(VolumeError::sys("look into the quarantine", name.as_bytes(), e)),
        }
    }

    /// A thing that is a regular file, to be read.
    ///
    /// # Errors
    /// If it cannot be opened or is no regular file.
    pub fn open(&self, item: u32) -> Result<std::fs::File, VolumeError> {
        let name = number_name(item);
        // A pipe must not make the opener wait.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.dir, &name, flags, Mode::empty())
            .doing("open in the quarantine", name.as_bytes())?;
        Ok(fd.into())
    }

    /// Shows a thing as `name`, if that is free: `false` if it is not.
    ///
    /// # Errors
    /// If it cannot be moved.
    pub fn restore(&self, item: u32, to: &DirFd, name: &Name) -> Result<bool, VolumeError> {
        let from = number_name(item);
        match self.volume.rename(self.dir.as_fd(), &from, to.as_fd(), CName::new(name).get()) {
            Ok(()) => {
                let synced = rustix::fs::fsync(to).and_then(|()| rustix::fs::fsync(&self.dir));
                synced.doing("sync", name.as_bytes())?;
                Ok(true)
            }
            Err(Errno::EXIST) => Ok(false),
            Err(e) => Err(VolumeError::sys("bring back", name.as_bytes(), e)),
        }
    }
}

impl DirFd {
    /// Removes a directory in it that is empty: `false` if it is not, or is another.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn remove_empty(&self, name: &Name, key: &NodeKey) -> Result<bool, VolumeError> {
        match self.look(name)? {
            Some(seen) if seen.key == *key && seen.kind.is_dir() => {}
            _ => return Ok(false),
        }
        match rustix::fs::unlinkat(self, CName::new(name).get(), rustix::fs::AtFlags::REMOVEDIR) {
            Ok(()) => Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT) => Ok(false),
            Err(e) => Err(VolumeError::sys("remove the directory", name.as_bytes(), e)),
        }
    }
}

fn number_name(item: u32) -> CString {
    // Digits have no NUL.
    CString::new(item.to_string()).unwrap_or_default()
}

fn errno(e: &std::io::Error) -> Errno {
    Errno::from_io_error(e).unwrap_or(Errno::IO)
}
