//! The private directory after a stop that was not clean: what lies there, and taking it where it belongs.
//!
//! Nothing here decides whose an inode is: that follows from the intent rows. Everything here is one rename over
//! nothing, or reads.

use crate::apply::Spot;
use crate::directory::{Directory, Part, PrivateEntry};
use crate::dirfd::DirFd;
use crate::error::{ApplyError, Context, Reason, VolumeError};
use crate::limbo::{LIMBO_PART, Limbo};
use crate::read::ReadHandle;
use crate::stage::{COPY_PART, StageId};
use crate::stat::{self, CName, Look};
use driftless_core::plan::Victim;
use driftless_core::{Fingerprint, Kind, Name, NodeKey};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

impl Directory {
    /// What waits under the name that [`Directory::park`] gave to `id`, if anything does.
    pub fn parked(&self, id: StageId) -> Result<Option<NodeKey>, VolumeError> {
        for (dir, name) in self.parking_places(id)? {
            match stat::look_name(self.0.capabilities.identity, dir, name.get()) {
                Ok(look) => return Ok(Some(look.key)),
                Err(Errno::NOENT) => {}
                Err(e) => return Err(VolumeError::sys("look at the parked file", b"", e)),
            }
        }
        Ok(None)
    }

    /// Removes an inode that is parked and has no place any more: as [`Directory::remove`].
    ///
    /// # Errors
    /// [`ApplyError::Raced`] if it is not there, or somebody wrote to it: then it is in limbo all the same.
    pub fn remove_parked(
        &self,
        parked: StageId,
        victim: &Victim,
        id: StageId,
    ) -> Result<Option<Limbo>, ApplyError> {
        let (doing, identity) = ("remove the parked file", self.0.capabilities.identity);
        let [private, beside] = self.parking_places(parked)?;
        let root = self.dir(&[], None)?;
        for (place, open) in [(private, None), (beside, Some(&root))] {
            let (dir, name) = (place.0, place.1.get());
            match stat::look_name(identity, dir, name) {
                Ok(look) if look.key == victim.node => {}
                Ok(_) | Err(Errno::NOENT) => continue,
                Err(e) => return Err(VolumeError::sys(doing, name.to_bytes(), e).into()),
            }
            if victim.kind.is_dir() {
                return match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
                    Err(Errno::NOTEMPTY | Errno::EXIST) => {
                        Err(ApplyError::NotEmpty { name: name.to_bytes().to_vec() })
                    }
                    other => Ok(other.doing(doing, name.to_bytes()).map(|()| None)?),
                };
            }
            let spot = open.map_or(Spot::in_private(dir, name), |root| Spot::in_volume(root, name));
            let (_, limbo) = self.to_limbo(spot, id, None)?;
            if (limbo.size, limbo.mtime) == (victim.fingerprint.size, victim.fingerprint.mtime) {
                return Ok(Some(limbo));
            }
            return Err(ApplyError::Raced { name: name.to_bytes().to_vec(), limbo: Some(Box::new(limbo)) });
        }
        Err(ApplyError::raced(b"parked"))
    }

    /// Takes a victim that an exchange left in staging to limbo, under the same name.
    pub fn to_limbo_from_staging(&self, entry: &PrivateEntry) -> Result<PrivateEntry, VolumeError> {
        let doing = "move into limbo";
        let in_limbo = PrivateEntry { part: Part::Limbo, ..entry.clone() };
        let (from, to) = (self.holder(entry)?, self.holder(&in_limbo)?);
        self.rename_away(from.as_fd(), &entry.path()?, to.as_fd(), &in_limbo.path()?)
            .doing(doing, &entry.name)?;
        Ok(in_limbo)
    }

    /// Shows an inode of the private directory as `name`, if that is free: `false` if it is not, or if the inode is
    /// another one now.
    pub fn give_back(&self, entry: &PrivateEntry, dir: &DirFd, name: &Name) -> Result<bool, VolumeError> {
        let doing = "give back";
        let from = self.holder(entry)?;
        let (cname, to) = (entry.path()?, CName::new(name));
        let look = self.look_private(&from, &cname).doing(doing, &entry.name)?;
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
        let fd = match rustix::fs::openat(self.holder(entry)?, name, flags, Mode::empty()) {
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

    /// The directory that an entry is in.
    pub(crate) fn holder(&self, entry: &PrivateEntry) -> Result<Holder<'_>, VolumeError> {
        let Some(key) = &entry.beside else { return self.part(entry.part).map(Holder::Private) };
        let gone = || VolumeError::own("find the directory of", &entry.name, Reason::NotFound);
        self.known_dir(key).ok_or_else(gone).map(Holder::Beside)
    }

    /// What lies under reserved names in a directory of the volume, where the file system does not rename out of the
    /// private directory or into it. Copies that were not whole yet have never been shown: they go.
    pub fn list_beside(&self, dir: &DirFd) -> Result<Vec<PrivateEntry>, VolumeError> {
        let doing = "list what is beside";
        let mut found = Vec::new();
        for name in crate::dirfd::names_in(dir).doing(doing, b"")? {
            let Some(rest) = name.to_bytes().strip_prefix(Name::STAGED_PREFIX) else { continue };
            if rest.strip_prefix(COPY_PART.as_bytes()).and_then(StageId::parse).is_some() {
                rustix::fs::unlinkat(dir, &name, AtFlags::empty()).doing(doing, name.to_bytes())?;
                continue;
            }
            let (part, id) = match rest.strip_prefix(LIMBO_PART.as_bytes()) {
                Some(id) => (Part::Limbo, id),
                None => (Part::Staging, rest),
            };
            let look = match stat::look_name(self.0.capabilities.identity, dir, &name) {
                Err(Errno::NOENT) => continue,
                other => other.doing(doing, name.to_bytes())?,
            };
            if StageId::parse(id).is_some() {
                let (fingerprint, links) = (look.fingerprint(), look.stat.stx_nlink);
                let (name, key, beside) = (id.to_vec(), look.key, Some(dir.key().clone()));
                found.push(PrivateEntry { part, name, key, fingerprint, links, beside });
            }
        }
        Ok(found)
    }

    fn look_private(&self, dir: &Holder<'_>, name: &CString) -> Result<Option<Look>, Errno> {
        match stat::look_name(self.0.capabilities.identity, dir, name) {
            Ok(look) => Ok(Some(look)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// A directory that has private entries.
pub(crate) enum Holder<'a> {
    Private(&'a OwnedFd),
    Beside(DirFd),
}

impl AsFd for Holder<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Holder::Private(fd) => fd.as_fd(),
            Holder::Beside(dir) => dir.as_fd(),
        }
    }
}

impl PrivateEntry {
    /// Where it is, relative to its part.
    pub(crate) fn path(&self) -> Result<CString, VolumeError> {
        let name = match (StageId::parse(&self.name), self.part, &self.beside) {
            (Some(id), Part::Staging, None) => Some(id.staged_name()),
            (Some(id), Part::Staging, Some(_)) => Some(id.beside("")),
            (Some(id), Part::Limbo, Some(_)) => Some(id.beside(LIMBO_PART)),
            _ => None,
        };
        let path = name.map_or_else(|| self.name.clone(), |name| name.get().to_bytes().to_vec());
        // Names that were listed hold no NUL.
        CString::new(path).map_err(|_| VolumeError::sys("use the private name", &self.name, Errno::INVAL))
    }

    /// As a victim that waits in limbo, if it lies there under a name of ours.
    pub fn as_limbo(&self) -> Option<Limbo> {
        let id = StageId::parse(&self.name).filter(|_| self.part == Part::Limbo)?;
        Some(Limbo { beside: self.beside.clone(), ..Limbo::left(id, self.key.clone(), self.fingerprint) })
    }
}

impl Limbo {
    /// As it would be listed.
    pub fn as_private(&self) -> PrivateEntry {
        let fingerprint = Fingerprint { size: self.size, mtime: self.mtime, ctime: self.ctime };
        let name = self.id.to_string().into_bytes();
        let (key, beside) = (self.key.clone(), self.beside.clone());
        PrivateEntry { part: Part::Limbo, name, key, fingerprint, links: 1, beside }
    }
}
