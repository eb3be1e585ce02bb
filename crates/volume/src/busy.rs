//! Reading files that somebody writes to all the time: databases, disk images, logs.
//!
//! They are never the same before and after they were read. Where the file system shares blocks between files (XFS,
//! Btrfs), a copy that costs nothing is read instead: it has what the file had at one moment, as a power cut would have
//! left it, and stays so while peers fetch it. Elsewhere only what grows at its end can be read.

use crate::attrs::{Target, attrs_of};
use crate::dirfd::{DirFd, Seen};
use crate::error::VolumeError;
use crate::read::{HashOutcome, Hashed, ReadHandle, read_whole};
use crate::stat::{self, Look};
use crate::sys::Writers;
use driftless_core::local::Looked;
use driftless_core::{Content, Kind, Name};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::OwnedFd;

impl DirFd {
    /// As [`DirFd::hash`], of the file `name` as it is at one moment, from a copy that shares its blocks; the copy is given
    /// along and goes when it is closed. `None` where the file system has no such copies.
    ///
    /// # Errors
    /// As [`DirFd::hash`].
    pub fn hash_copy(
        &self,
        name: &Name,
        seen: &Seen,
        keep_small: usize,
    ) -> Result<Option<HashOutcome>, VolumeError> {
        if !self.volume().capabilities().reflink {
            return Ok(None);
        }
        self.hash_copy_of(name, seen, keep_small).or_else(|e| gone_or(e, name).map(Some))
    }

    /// As [`DirFd::hash`], of a file that changes while it is read: what it has now up to its present length, if that is
    /// the same when it is read twice. So it is for files that only grow, as logs do; others stay unstable.
    ///
    /// # Errors
    /// As [`DirFd::hash`].
    pub fn hash_prefix(
        &self,
        name: &Name,
        seen: &Seen,
        keep_small: usize,
    ) -> Result<HashOutcome, VolumeError> {
        self.hash_prefix_of(name, seen, keep_small).or_else(|e| gone_or(e, name))
    }

    fn hash_copy_of(
        &self,
        name: &Name,
        seen: &Seen,
        keep_small: usize,
    ) -> Result<Option<HashOutcome>, Errno> {
        let fd = self.open_file(name)?;
        let Some(first) = self.look_again(&fd, seen)?.filter(|look| look.kind() == Kind::File) else {
            return Ok(Some(HashOutcome::Gone));
        };
        let writers = self.volume().writers(&fd);
        // What is stored into mapped pages from here on shows in the times.
        rustix::fs::fdatasync(&fd)?;
        let before = Look { key: first.key, stat: stat::stat_fd(&fd)? };
        let Some(copy) = self.copy_of(&fd)? else { return Ok(None) };
        let copied = Look { key: before.key.clone(), stat: stat::stat_fd(&copy)? };
        if copied.stat.stx_size != before.stat.stx_size {
            return Ok(Some(HashOutcome::Unstable));
        }
        let Some((digest, bytes)) = read_whole(&copy, &copied, keep_small)? else {
            return Ok(Some(HashOutcome::Unstable));
        };
        let xattrs = Target::Open(&fd).xattrs()?;
        // A write between the look and the copy is in what was read, and not in the times: it will be looked at again.
        let fingerprint = before.fingerprint();
        let changed = stat::fingerprint_of(&stat::stat_fd(&fd)?) != fingerprint;
        let looked = Looked {
            racy: changed || self.is_racy(&before),
            attrs: attrs_of(&before.stat, xattrs),
            key: before.key,
            kind: Kind::File,
            fingerprint,
            content: Some(Content::File { size: fingerprint.size, mtime: fingerprint.mtime, digest }),
        };
        let copy = Some(ReadHandle::new(copy, fingerprint));
        Ok(Some(HashOutcome::Looked(Box::new(Hashed { looked, bytes, writers, copy }))))
    }

    /// A copy without a name that shares the blocks of `fd`, if the file system has such.
    fn copy_of(&self, fd: &OwnedFd) -> Result<Option<OwnedFd>, Errno> {
        let Ok(private) = self.volume().private() else { return Ok(None) };
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let made = rustix::fs::openat(&private.staging, c".", flags, Mode::RUSR | Mode::WUSR)
            .and_then(|copy| rustix::fs::ioctl_ficlone(&copy, fd).map(|()| copy));
        match made {
            Ok(copy) => Ok(Some(copy)),
            // Of another file system or subvolume, in use as swap, with another setting for checksums, ...
            Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::TXTBSY | Errno::ISDIR) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn hash_prefix_of(&self, name: &Name, seen: &Seen, keep_small: usize) -> Result<HashOutcome, Errno> {
        let fd = self.open_file(name)?;
        let Some(first) = self.look_again(&fd, seen)?.filter(|look| look.kind() == Kind::File) else {
            return Ok(HashOutcome::Gone);
        };
        let Some((digest, bytes)) = read_whole(&fd, &first, keep_small)? else {
            return Ok(HashOutcome::Unstable);
        };
        let again = read_whole(&fd, &first, 0)?.map(|(digest, _)| digest);
        let xattrs = Target::Open(&fd).xattrs()?;
        if again != Some(digest) || stat::stat_fd(&fd)?.stx_size < first.stat.stx_size {
            return Ok(HashOutcome::Unstable);
        }
        let fingerprint = first.fingerprint();
        let looked = Looked {
            attrs: attrs_of(&first.stat, xattrs),
            key: first.key,
            kind: Kind::File,
            fingerprint,
            // More has come by now: it is looked at again.
            racy: true,
            content: Some(Content::File { size: fingerprint.size, mtime: fingerprint.mtime, digest }),
        };
        let writers = Writers::Unknown;
        Ok(HashOutcome::Looked(Box::new(Hashed { looked, bytes, writers, copy: None })))
    }
}

/// What an error says of the file asked for: that it is not there, or what it says.
pub(crate) fn gone_or(e: Errno, name: &Name) -> Result<HashOutcome, VolumeError> {
    match e {
        Errno::NOENT | Errno::LOOP | Errno::NXIO => Ok(HashOutcome::Gone),
        e => Err(VolumeError::sys("read", name.as_bytes(), e)),
    }
}
