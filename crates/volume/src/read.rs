//! Reading content: flush, stat, read, stat.
//!
//! A second store into a dirty mapped page changes no time stamp, so a file that somebody may be writing is flushed
//! before the first stat: then the next store faults again and shows. Who may be writing is asked for by a lease,
//! and only of files changed lately: the system has written older dirty pages out by itself.

use crate::attrs::{Target, attrs_of};
use crate::busy::gone_or;
use crate::dirfd::{DirFd, Seen};
use crate::error::{Context, Reason, VolumeError};
use crate::fault;
use crate::key;
use crate::stage::is_zero;
use crate::stat::{self, CName, Look};
use crate::sys::Writers;
use driftless_core::local::Looked;
use driftless_core::{Attrs, Content, Digest, Fingerprint, Kind, Name, NodeKey};
use rustix::buffer::spare_capacity;
use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A dirty page is written out by the kernel within 30 s, and the writer looks every 5 s; four times that is
/// generous. Files changed longer ago need no flush before they are read.
const FLUSH_AGE_NS: u64 = 120_000_000_000;
/// Contents are read in pieces of this size.
const READ_PIECE_LEN: usize = 256 << 10;
/// Zeroes that stand for holes.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// What reading an entry gave.
#[derive(Debug)]
pub enum HashOutcome {
    /// Read, and not changed meanwhile.
    Looked(Box<Hashed>),
    /// Changed while it was read; to be tried again later.
    Unstable,
    /// Gone, or another inode is there now.
    Gone,
}

/// What an entry holds.
#[derive(Debug)]
pub struct Hashed {
    /// Attributes and content.
    pub looked: Looked,
    /// The bytes, if there are no more than asked for.
    pub bytes: Option<Vec<u8>>,
    /// Whether somebody had the file open for writing before it was read; asked only of files changed lately.
    pub writers: Writers,
    /// What was read, if that was a copy made for it: the file itself may have changed since.
    pub copy: Option<ReadHandle>,
}

impl DirFd {
    /// Reads what `name` is, which was seen as `seen`: content (hashed), attributes. Contents of at most
    /// `keep_small` bytes are given along.
    ///
    /// # Errors
    /// If it cannot be opened or read.
    pub fn hash(&self, name: &Name, seen: &Seen, keep_small: usize) -> Result<HashOutcome, VolumeError> {
        let found = match seen.kind {
            Kind::File => self.hash_file(name, seen, keep_small),
            _ => self.read_other(name, &seen.key),
        };
        found.or_else(|e| gone_or(e, name))
    }

    /// What a lease says about writers of the file `name`; unknown if it is no file that can be read.
    pub fn writers(&self, name: &Name) -> Writers {
        self.open_file(name).map_or(Writers::Unknown, |fd| self.volume().writers(&fd))
    }

    /// The attributes of `name`, with its fingerprint.
    ///
    /// # Errors
    /// [`Reason::WrongIdentity`] if it is not `expect`.
    pub fn attrs(&self, name: &Name, expect: &NodeKey) -> Result<(Fingerprint, Attrs), VolumeError> {
        let doing = "read the attributes of";
        let fd = self.open_path(name).doing(doing, name.as_bytes())?;
        let look = self.look_at(&fd).doing(doing, name.as_bytes())?;
        if look.key != *expect {
            return Err(VolumeError::own(doing, name.as_bytes(), Reason::WrongIdentity));
        }
        let attrs = Target::Path(&fd).attrs(&look.stat).doing(doing, name.as_bytes())?;
        Ok((look.fingerprint(), attrs))
    }

    /// This directory itself: identity, fingerprint, attributes.
    pub fn looked_self(&self) -> Result<Looked, VolumeError> {
        let doing = "read the attributes of the directory";
        let fd = self.as_fd().try_clone_to_owned().map_err(|_| Errno::MFILE).doing(doing, b"")?;
        let look = self.look_at(&fd).doing(doing, b"")?;
        let attrs = Target::Open(&fd).attrs(&look.stat).doing(doing, b"")?;
        Ok(self.looked(look, attrs, None))
    }

    /// Where the symlink `name` points.
    pub fn read_link(&self, name: &Name) -> Result<Vec<u8>, VolumeError> {
        let target = rustix::fs::readlinkat(self, CName::new(name).get(), Vec::new());
        Ok(target.doing("read the symlink", name.as_bytes())?.into_bytes())
    }

    /// Opens the file `name` for reading ranges of it.
    ///
    /// # Errors
    /// [`Reason::WrongIdentity`] if it is not `expect`.
    pub fn open_read(&self, name: &Name, expect: &NodeKey) -> Result<ReadHandle, VolumeError> {
        let fd = self.open_file(name).doing("open", name.as_bytes())?;
        let look = self.look_at(&fd).doing("look at", name.as_bytes())?;
        if look.key != *expect {
            return Err(VolumeError::own("open", name.as_bytes(), Reason::WrongIdentity));
        }
        Ok(ReadHandle { fd, fingerprint: look.fingerprint() })
    }

    pub(crate) fn look_at(&self, fd: &OwnedFd) -> Result<Look, Errno> {
        stat::look_fd(self.volume().0.capabilities.identity, fd)
    }

    pub(crate) fn open_path(&self, name: &Name) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(self, CName::new(name).get(), flags, Mode::empty())
    }

    /// Opens a regular file for reading, without changing its access time if that is ours to say. Never waits: a
    /// FIFO may have taken the name.
    pub(crate) fn open_file(&self, name: &Name) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let name = CName::new(name);
        match rustix::fs::openat(self, name.get(), flags | OFlags::NOATIME, Mode::empty()) {
            Err(Errno::PERM) => rustix::fs::openat(self, name.get(), flags, Mode::empty()),
            other => other,
        }
    }

    /// Looks at an open file that should be the one `seen`; `None` if it is another one.
    pub(crate) fn look_again(&self, fd: &OwnedFd, seen: &Seen) -> Result<Option<Look>, Errno> {
        let stat = stat::stat_fd(fd)?;
        if stat::fingerprint_of(&stat) == seen.fingerprint && key::is_same_inode(&seen.key, &stat) {
            return Ok(Some(Look { key: seen.key.clone(), stat }));
        }
        Ok(Some(self.look_at(fd)?).filter(|look| look.key == seen.key))
    }

    fn hash_file(&self, name: &Name, seen: &Seen, keep_small: usize) -> Result<HashOutcome, Errno> {
        let fd = self.open_file(name)?;
        let Some(mut first) = self.look_again(&fd, seen)?.filter(|look| look.kind() == Kind::File) else {
            return Ok(HashOutcome::Gone);
        };
        let mut writers = Writers::Unknown;
        if stat::is_near(first.fingerprint().ctime, stat::now(), FLUSH_AGE_NS) {
            writers = self.volume().writers(&fd);
            if writers != Writers::None {
                rustix::fs::fdatasync(&fd)?;
                first.stat = stat::stat_fd(&fd)?;
            }
        }
        let racy = self.is_racy(&first);
        let Some((digest, bytes)) = read_whole(&fd, &first, keep_small)? else {
            return Ok(HashOutcome::Unstable);
        };
        let xattrs = Target::Open(&fd).xattrs()?;
        let last = stat::stat_fd(&fd)?;
        let fingerprint = stat::fingerprint_of(&last);
        if fingerprint != first.fingerprint() {
            return Ok(HashOutcome::Unstable);
        }
        let looked = Looked {
            key: first.key,
            kind: Kind::File,
            fingerprint,
            racy,
            attrs: attrs_of(&last, xattrs),
            content: Some(Content::File { size: fingerprint.size, mtime: fingerprint.mtime, digest }),
        };
        Ok(HashOutcome::Looked(Box::new(Hashed { looked, bytes, writers, copy: None })))
    }

    /// All kinds but regular files: nothing to open, nobody writes in them.
    fn read_other(&self, name: &Name, expect: &NodeKey) -> Result<HashOutcome, Errno> {
        let fd = self.open_path(name)?;
        let look = self.look_at(&fd)?;
        if look.key != *expect {
            return Ok(HashOutcome::Gone);
        }
        let mtime = look.fingerprint().mtime;
        let content = match look.kind() {
            Kind::Dir => None,
            Kind::File => return Ok(HashOutcome::Gone),
            Kind::Symlink => {
                let target = rustix::fs::readlinkat(&fd, c"", Vec::new())?;
                Some(Content::Symlink { target: target.to_bytes().into(), mtime })
            }
            _ => Some(Content::Special { rdev: stat::rdev_of(&look.stat), mtime }),
        };
        let attrs = Target::Path(&fd).attrs(&look.stat)?;
        if stat::fingerprint_of(&stat::stat_fd(&fd)?) != look.fingerprint() {
            return Ok(HashOutcome::Unstable);
        }
        let looked = self.looked(look, attrs, content);
        let writers = Writers::None;
        Ok(HashOutcome::Looked(Box::new(Hashed { looked, bytes: None, writers, copy: None })))
    }

    fn looked(&self, look: Look, attrs: Attrs, content: Option<Content>) -> Looked {
        let racy = self.is_racy(&look);
        let (kind, fingerprint) = (look.kind(), look.fingerprint());
        Looked { key: look.key, kind, fingerprint, racy, attrs, content }
    }

    pub(crate) fn is_racy(&self, look: &Look) -> bool {
        stat::is_near(look.fingerprint().ctime, stat::now(), self.volume().0.capabilities.tick_ns)
    }
}

type DigestAndBytes = (Digest, Option<Vec<u8>>);

/// Reads and hashes a file of the size that `look` says; `None` if it has another one.
pub(crate) fn read_whole(
    fd: &OwnedFd,
    look: &Look,
    keep_small: usize,
) -> Result<Option<DigestAndBytes>, Errno> {
    let size = look.stat.stx_size;
    if size <= keep_small as u64 {
        let bytes = read_range(fd.as_fd(), 0, size as usize)?;
        let whole = bytes.len() as u64 == size;
        return Ok(whole.then(|| (Digest::of(&bytes), Some(bytes))));
    }
    let sparse = look.stat.stx_blocks.saturating_mul(512) < size;
    Ok(hash_fd(fd.as_fd(), size, sparse)?.map(|digest| (digest, None)))
}

/// The digest of the first `size` bytes; `None` if the file is shorter. Holes of `sparse` files are not read.
pub(crate) fn hash_fd(fd: BorrowedFd<'_>, size: u64, sparse: bool) -> Result<Option<Digest>, Errno> {
    let mut so_far = DigestSoFar::default();
    Ok(so_far.go_on(fd, size, sparse)?.then(|| so_far.digest()))
}

/// The digest of the beginning of a file that is read bit by bit.
#[derive(Clone, Debug, Default)]
pub struct DigestSoFar {
    hasher: blake3::Hasher,
    at: u64,
}

impl DigestSoFar {
    /// How far it goes.
    pub fn end(&self) -> u64 {
        self.at
    }

    /// The digest of the bytes up to there.
    pub fn digest(&self) -> Digest {
        Digest(*self.hasher.finalize().as_bytes())
    }

    /// Reads on up to `end`; false if the file is shorter.
    pub(crate) fn go_on(&mut self, fd: BorrowedFd<'_>, end: u64, sparse: bool) -> Result<bool, Errno> {
        let mut buffer = Vec::with_capacity(READ_PIECE_LEN);
        while self.at < end {
            buffer.clear();
            let read = || rustix::io::pread(fd, spare_capacity(&mut buffer), self.at);
            let got = rustix::io::retry_on_intr(read)?;
            let wanted = usize::try_from(end - self.at).unwrap_or(got).min(got);
            self.hasher.update(&buffer[..wanted]);
            self.at += wanted as u64;
            // Holes are looked for where there seems to be one only: looking for the next one while there is none goes through all of the file.
            let hole = sparse && (got == 0 || is_zero(&buffer[..wanted]));
            let data = if hole { data_from(fd, self.at, end)? } else { self.at };
            if got == 0 && data == self.at {
                return Ok(false);
            }
            hash_zeroes(&mut self.hasher, data - self.at);
            self.at = data;
        }
        Ok(true)
    }
}

fn hash_zeroes(hasher: &mut blake3::Hasher, mut len: u64) {
    while len > 0 {
        let piece = len.min(ZEROES.len() as u64);
        hasher.update(&ZEROES[..piece as usize]);
        len -= piece;
    }
}

/// Where the next data at or after `at` begins; `size` if there is none. File systems that don't know holes say that everything
/// is data.
pub(crate) fn data_from(fd: BorrowedFd<'_>, at: u64, size: u64) -> Result<u64, Errno> {
    match rustix::fs::seek(fd, SeekFrom::Data(at)) {
        Ok(start) => Ok(start.clamp(at, size)),
        Err(Errno::NXIO) => Ok(size),
        Err(Errno::INVAL) => Ok(at),
        Err(e) => Err(e),
    }
}

/// The next range with data at or after `at`; `size..size` if there is none.
pub(crate) fn next_data(fd: BorrowedFd<'_>, at: u64, size: u64) -> Result<std::ops::Range<u64>, Errno> {
    let start = data_from(fd, at, size)?;
    if start == size {
        return Ok(size..size);
    }
    let end = rustix::fs::seek(fd, SeekFrom::Hole(start)).unwrap_or(size);
    Ok(start..end.clamp(start, size))
}

/// Up to `len` bytes from `offset`; fewer only at the end of the file.
pub(crate) fn read_range(fd: BorrowedFd<'_>, offset: u64, len: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes: Vec<u8> = Vec::with_capacity(len);
    while bytes.len() < len {
        let at = offset + bytes.len() as u64;
        // Reads on behind what is there, at most to the capacity.
        let got = rustix::io::retry_on_intr(|| rustix::io::pread(fd, spare_capacity(&mut bytes), at))?;
        if got == 0 {
            break;
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}

/// A file opened for serving its content.
#[derive(Debug)]
pub struct ReadHandle {
    fd: OwnedFd,
    fingerprint: Fingerprint,
}

impl ReadHandle {
    pub(crate) fn new(fd: OwnedFd, fingerprint: Fingerprint) -> ReadHandle {
        ReadHandle { fd, fingerprint }
    }

    /// Another handle on the same file.
    pub fn try_clone(&self) -> Result<ReadHandle, VolumeError> {
        let fd = self.fd.try_clone().map_err(|_| Errno::MFILE).doing("open", b"an open file")?;
        Ok(ReadHandle { fd, fingerprint: self.fingerprint })
    }

    /// The digest of its whole content; `None` if it is shorter now than when it was opened.
    pub fn digest(&self) -> Result<Option<Digest>, VolumeError> {
        let read = || {
            let mut digest = hash_fd(self.fd.as_fd(), self.fingerprint.size, false)?;
            fault::digest(self.fd.as_fd(), self.fingerprint.size, &mut digest)?;
            Ok(digest)
        };
        read().doing("read", b"an open file")
    }

    /// What is read next comes from the disk, as far as the system lets go of what it has in memory: not what a program
    /// has mapped, and nothing of a file system that lives there.
    pub fn forget_cached(&self) {
        // Advice only: without it what is in memory is read, which proves less.
        let _ = rustix::fs::fadvise(&self.fd, 0, None, rustix::fs::Advice::DontNeed);
    }

    /// The fingerprint when it was opened.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// True if the fingerprint is still the same.
    pub fn unchanged(&self) -> Result<bool, VolumeError> {
        let stat = stat::stat_fd(&self.fd).doing("look at", b"an open file")?;
        Ok(stat::fingerprint_of(&stat) == self.fingerprint)
    }

    /// Up to `len` bytes from `offset`; fewer only at the end of the file.
    pub fn read_at(&self, offset: u64, len: usize) -> Result<Vec<u8>, VolumeError> {
        let read = || {
            let mut bytes = read_range(self.fd.as_fd(), offset, len)?;
            fault::read(self.fd.as_fd(), &mut bytes)?;
            Ok(bytes)
        };
        read().doing("read", b"an open file")
    }

    /// The next range with data at or after `offset`; empty, at the end of the file, if the rest is a hole.
    pub fn next_data(&self, offset: u64) -> Result<std::ops::Range<u64>, VolumeError> {
        let size = self.fingerprint.size;
        next_data(self.fd.as_fd(), offset.min(size), size).doing("find the holes of", b"an open file")
    }
}

impl AsFd for ReadHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Opens any file on this machine as a source of content, following no symlink at its end.
pub fn open_source(path: &std::path::Path) -> Result<ReadHandle, VolumeError> {
    use std::os::unix::ffi::OsStrExt;
    let name = path.as_os_str().as_bytes();
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty()).doing("open", name)?;
    let stat = stat::stat_fd(&fd).doing("look at", name)?;
    Ok(ReadHandle { fingerprint: stat::fingerprint_of(&stat), fd })
}
