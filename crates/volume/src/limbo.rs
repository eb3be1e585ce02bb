//! Limbo: where replaced and removed inodes wait until they may really go, and the last look at them.

use crate::crash::{self, Point};
use crate::directory::Directory;
use crate::dirfd::DirFd;
use crate::error::{Context, VolumeError};
use crate::stage::{PrivateName, StageId};
use crate::stat::{self, Look};
use crate::sys::Writers;
use driftless_core::limbo::Shown;
use driftless_core::{Fingerprint, Kind, NodeKey, Time};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd};

/// Part of the reserved name of a file in limbo beside its place.
pub(crate) const LIMBO_PART: &str = "limbo-";

/// Where a replaced or removed inode waits.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Limbo {
    /// Its name in limbo.
    pub id: StageId,
    /// Its identity.
    pub key: NodeKey,
    /// Its length in bytes when it was replaced ...
    pub size: u64,
    /// ... and its time: if somebody had it open after all and wrote, it is not dropped.
    pub mtime: Time,
    /// Its change time once it was here: what its other names, if it has any, show now.
    pub ctime: Time,
    /// Set if it is not in the private directory but, under a reserved name, in this directory.
    pub beside: Option<NodeKey>,
    /// What leases said about writers. Where they said nothing, it is worth waiting before it goes for good.
    pub writers: Writers,
}

impl Limbo {
    pub(crate) fn of(id: StageId, look: Look, beside: Option<NodeKey>) -> Limbo {
        let Fingerprint { size, mtime, ctime } = look.fingerprint();
        Limbo { id, key: look.key, size, mtime, ctime, beside, writers: Writers::Unknown }
    }

    /// What it shows as long as nothing is done to it.
    fn fingerprint(&self) -> Fingerprint {
        Fingerprint { size: self.size, mtime: self.mtime, ctime: self.ctime }
    }

    /// True if length and time are those it had.
    fn is_as(&self, now: &Look) -> bool {
        let now = now.fingerprint();
        (now.size, now.mtime) == (self.size, self.mtime)
    }

    /// One that an earlier process left in the private directory.
    pub(crate) fn left(id: StageId, key: NodeKey, now: Fingerprint) -> Limbo {
        let Fingerprint { size, mtime, ctime } = now;
        Limbo { id, key, size, mtime, ctime, beside: None, writers: Writers::Unknown }
    }

    /// Its name where it is.
    pub(crate) fn private_name(&self) -> PrivateName {
        if self.beside.is_some() { self.id.beside(LIMBO_PART) } else { self.id.name() }
    }

    /// What messages call it.
    pub(crate) fn subject(&self) -> Vec<u8> {
        self.id.to_string().into_bytes()
    }
}

impl Directory {
    /// Removes files from limbo for good; to be called after the seal. Those that are not what they should be are kept
    /// and returned, as are those beside their place if the directory is not open any more and cannot be opened by its
    /// key (see [`DirFd::drop_limbo`]).
    pub fn drop_limbo(&self, limbo: &[Limbo]) -> Result<Vec<Limbo>, VolumeError> {
        let dir = self.private()?.limbo.as_fd();
        let mut kept = Vec::new();
        for one in limbo {
            let gone = match &one.beside {
                None => self.drop_limbo_in(dir, one.id.name(), one)?,
                Some(beside) => match self.known_dir(beside) {
                    Some(dir) => dir.drop_limbo(one)?,
                    None => false,
                },
            };
            crash::at(Point::LimboDropped);
            if !gone {
                kept.push(one.clone());
            }
        }
        Ok(kept)
    }

    /// Looks at a file in limbo again: first whether somebody may still write to it, then what it is.
    ///
    /// # Errors
    /// If it is there and cannot be looked at. One that waits in a directory of the volume that cannot be found is said
    /// to be as it was, with unknown writers.
    pub fn look_in_limbo(&self, limbo: &Limbo) -> Result<(Shown, Writers), VolumeError> {
        let doing = "look at in limbo";
        let found;
        let (dir, name) = match &limbo.beside {
            None => (self.private()?.limbo.as_fd(), limbo.id.name()),
            Some(key) => match self.known_dir(key) {
                Some(dir) => {
                    found = dir;
                    (found.as_fd(), limbo.id.beside(LIMBO_PART))
                }
                None => return Ok((Shown::Same, Writers::Unknown)),
            },
        };
        let subject = name.get().to_bytes();
        let expected = limbo.fingerprint();
        let look = || {
            let expected = (&limbo.key, &expected);
            stat::look_name_expecting(self.0.capabilities.identity, dir, name.get(), expected)
        };
        let first = match look() {
            Err(Errno::NOENT) => return Ok((Shown::Nothing, Writers::None)),
            other => other.doing(doing, subject)?,
        };
        if first.key != limbo.key {
            return Ok((Shown::Stranger, Writers::Unknown));
        }
        if first.kind() != Kind::File {
            return Ok((if limbo.is_as(&first) { Shown::Same } else { Shown::Changed }, Writers::None));
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = rustix::fs::openat(dir, name.get(), flags, Mode::empty()).ok();
        let writers = open.as_ref().map_or(Writers::Unknown, |fd| self.writers(fd));
        // After the lease: who has closed it by then has written what this shows.
        let now = look().doing(doing, subject)?;
        let shown = match now {
            now if now.key != limbo.key => Shown::Stranger,
            now if now.stat.stx_nlink > 1 => Shown::Linked,
            now if limbo.is_as(&now) => Shown::Same,
            _ => Shown::Changed,
        };
        Ok((shown, writers))
    }

    fn drop_limbo_in(
        &self,
        dir: BorrowedFd<'_>,
        name: PrivateName,
        limbo: &Limbo,
    ) -> Result<bool, VolumeError> {
        let expected = (&limbo.key, &limbo.fingerprint());
        self.unlink_if(dir, name.get().to_bytes(), Some(expected), |look| {
            // What has other names does not go, whoever writes to it.
            look.key == limbo.key && (limbo.is_as(look) || look.stat.stx_nlink > 1)
        })
    }
}

impl DirFd {
    /// Removes a file for good that waits beside its place, in this directory. True if it is gone.
    pub fn drop_limbo(&self, limbo: &Limbo) -> Result<bool, VolumeError> {
        self.volume().drop_limbo_in(self.as_fd(), limbo.id.beside(LIMBO_PART), limbo)
    }
}
