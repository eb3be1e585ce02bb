//! The private directory after a stop that was not clean: what lies there, and taking it where it belongs.
//!
//! Nothing here decides whose an inode is: that follows from the intent rows. Everything here is one rename over
//! nothing, or reads.

use crate::directory::{Directory, Part, PrivateEntry};
use crate::dirfd::DirFd;
use crate::error::{Context, VolumeError};
use crate::limbo::Limbo;
use crate::read::ReadHandle;
use crate::stage::StageId;
use crate::stat::{self, CName, Look};
use driftless_core::{Fingerprint, Kind, Name, NodeKey};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

impl Directory {
    /// What waits under the name that [`Directory::park`] gave to `id`, if anything does.
    pub fn parked(&self, id: StageId) -> Result<Option<NodeKey>, VolumeError> {
        let limbo = self.private()?.limbo.as_fd();
        match stat::look_name(self.0.capabilities.identity, limbo, Directory::parked_name(id).get()) {
            Ok(look) => Ok(Some(look.key)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(VolumeError::sys("look at the parked file", b"", e)),
        }
    }

    /// Takes a victim that an exchange left in staging to limbo, under the same name.
    pub fn to_limbo_from_staging(&self, entry: &PrivateEntry) -> Result<PrivateEntry, VolumeError> {
        let doing = "move into limbo";
        let private = self.private()?;
        let in_limbo = PrivateEntry { part: Part::Limbo, ..entry.clone() };
        self.rename_away(private.staging.as_fd(), &entry.path()?, private.limbo.as_fd(), &in_limbo.path()?)
            .doing(doing, &entry.name)?;
        Ok(in_limbo)
    }

    /// Shows an inode of the private directory as `name`, if that is free: `false` if it is not, or if the inode is
    /// another one now.
    pub fn give_back(&self, entry: &PrivateEntry, dir: &DirFd, name: &Name) -> Result<bool, VolumeError> {
        let doing = "give back";
        let from = self.part(entry.part)?;
        let (cname, to) = (entry.path()?, CName::new(name));
        let look = self.look_private(from, &cname).doing(doing, &entry.name)?;
        if look.is_none_or(|look| look.key != entry.key) {
            return Ok(false);
        }
        match self.rename(from.as_fd(), &cname, dir.as_fd(), to.get()) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(e) => Err(VolumeError::sys(doing, name.as_bytes(), e)),
        }
    }

    /// Opens a file of the private directory for reading; `None` if it is not there as it was listed.
    pub fn open_private_file(&self, entry: &PrivateEntry) -> Result<Option<ReadHandle>, VolumeError> {
        let doing = "open the private file";
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let name = entry.path()?;
        let fd = match rustix::fs::openat(self.part(entry.part)?, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            other => other.doing(doing, &entry.name)?,
        };
        let look = stat::look_fd(self.0.capabilities.identity, &fd).doing(doing, &entry.name)?;
        let same = look.key == entry.key && look.kind() == Kind::File;
        Ok(same.then(|| ReadHandle::new(fd, look.fingerprint())))
    }

    pub(crate) fn part(&self, part: Part) -> Result<&OwnedFd, VolumeError> {
        let private = self.private()?;
        Ok(match part {
            Part::Staging => &private.staging,
            Part::Limbo => &private.limbo,
        })
    }

    fn look_private(&self, dir: &OwnedFd, name: &CString) -> Result<Option<Look>, Errno> {
        match stat::look_name(self.0.capabilities.identity, dir, name) {
            Ok(look) => Ok(Some(look)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl PrivateEntry {
    /// Where it is, relative to its part.
    pub(crate) fn path(&self) -> Result<CString, VolumeError> {
        let staged = StageId::parse(&self.name).filter(|_| self.part == Part::Staging);
        let path = staged.map_or_else(|| self.name.clone(), |id| id.staged_name().get().to_bytes().to_vec());
        // Names that were listed hold no NUL.
        CString::new(path).map_err(|_| VolumeError::sys("use the private name", &self.name, Errno::INVAL))
    }

    /// As a victim that waits in limbo, if it lies there under a name of ours.
    pub fn as_limbo(&self) -> Option<Limbo> {
        let id = StageId::parse(&self.name).filter(|_| self.part == Part::Limbo)?;
        Some(Limbo::left(id, self.key.clone(), self.fingerprint))
    }
}

impl Limbo {
    /// As it would be listed.
    pub fn as_private(&self) -> PrivateEntry {
        let fingerprint = Fingerprint { size: self.size, mtime: self.mtime, ctime: self.ctime };
        let name = self.id.to_string().into_bytes();
        PrivateEntry { part: Part::Limbo, name, key: self.key.clone(), fingerprint, links: 1 }
    }
}
