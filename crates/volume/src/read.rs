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
use blake3::hazmat::{self, ChainingValue, HasherExt, Mode as HashMode};
use driftless_core::local::Looked;
use driftless_core::{Attrs, Content, Digest, Fingerprint, Kind, Name, NodeKey};
use rustix::buffer::spare_capacity;
use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A dirty page is written out by the kernel within 30 s, and the writer looks every 5 s; four times that is
/// generous. Files changed longer ago need no flush before they are read.
const FLUSH_AGE_NS: u64 = 120_000_000_000;
/// Contents are read in pieces of this size.
const READ_PIECE_LEN: usize = 256 << 10;
/// Files from this length are read by several threads for their digest ...
const HASH_BY_PARTS_MIN: u64 = 32 << 20;
/// ... so many at most, one part each at a time, of this length at least ...
const HASH_THREADS_MAX: usize = 4;
const HASH_PART_LEN_MIN: u64 = 2 << 20;
/// ... and about so many parts at most.
const HASH_PARTS_MAX: u64 = 65_536;
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
    let digest = match std::thread::available_parallelism().map_or(1, usize::from).min(HASH_THREADS_MAX) {
        threads if threads > 1 && size >= HASH_BY_PARTS_MIN => {
            hash_by_parts(fd.as_fd(), size, sparse, threads)?
        }
        _ => hash_fd(fd.as_fd(), size, sparse)?,
    };
    Ok(digest.map(|digest| (digest, None)))
}

/// The digest of a large file, whose parts several threads read side by side: as BLAKE3 says, a part is a subtree, and its chaining value
/// follows from its bytes and where they are. `None` if the file is shorter.
fn hash_by_parts(
    fd: BorrowedFd<'_>,
    size: u64,
    sparse: bool,
    threads: usize,
) -> Result<Option<Digest>, Errno> {
    // Not too many of them, however large the file: 32 bytes are kept of each.
    let part = (size / HASH_PARTS_MAX).next_power_of_two().max(HASH_PART_LEN_MIN);
    let parts = usize::try_from(size.div_ceil(part)).map_err(|_| Errno::FBIG)?;
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done: Vec<(usize, ChainingValue)> = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= parts {
                return Ok(Some(done));
            }
            let at = i as u64 * part;
            let mut of_part = DigestSoFar::from(at);
            match of_part.go_on(fd, (at + part).min(size), sparse) {
                Ok(true) => done.push((i, of_part.hasher.finalize_non_root())),
                // Nobody need read the others.
                other => {
                    next.store(parts, Ordering::Relaxed);
                    return other.map(|_| None);
                }
            }
        }
    };
    let done: Vec<Result<Option<_>, Errno>> = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads)
            .filter_map(|_| std::thread::Builder::new().name("hasher".into()).spawn_scoped(scope, work).ok())
            .collect();
        let mut done = vec![work()];
        // A thread that panicked has read nothing that counts.
        done.extend(others.into_iter().map(|thread| thread.join().unwrap_or(Err(Errno::IO))));
        done
    });
    let mut values = vec![[0; blake3::OUT_LEN]; parts];
    for done in done {
        let Some(done) = done? else { return Ok(None) };
        for (i, value) in done {
            values[i] = value;
        }
    }
    let (left, right) = split(&values, size, part);
    Ok(Some(Digest(*hazmat::merge_subtrees_root(&left, &right, HashMode::Hash).as_bytes())))
}

/// The chaining values of the two subtrees of which one of `len` bytes consists: more than one part.
fn split(parts: &[ChainingValue], len: u64, part: u64) -> (ChainingValue, ChainingValue) {
    let left_len = hazmat::left_subtree_len(len);
    // A power of two, and at least a part: fits, as the number of parts does.
    let (left, right) = parts.split_at((left_len / part) as usize);
    let value = |parts: &[ChainingValue], len: u64| match parts {
        [one] => *one,
        _ => {
            let (left, right) = split(parts, len, part);
            hazmat::merge_subtrees_non_root(&left, &right, HashMode::Hash)
        }
    };
    (value(left, left_len), value(right, len - left_len))
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
    /// One of a part that begins at `at`.
    fn from(at: u64) -> DigestSoFar {
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(at);
        DigestSoFar { hasher, at }
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn parts_read_side_by_side_give_the_digest_of_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        let part = HASH_PART_LEN_MIN;
        for size in [part + 1, 2 * part, 2 * part + 1, 3 * part - 1, 5 * part, 7 * part + 12_345, 16 * part] {
            let file = std::fs::File::create_new(dir.path().join(size.to_string())).unwrap();
            let mut bytes = vec![0; size as usize];
            blake3::Hasher::new().finalize_xof().fill(&mut bytes);
            // A hole over parts and parts of them.
            let hole = size as usize / 3..size as usize - 5000;
            bytes[hole.clone()].fill(0);
            file.write_all_at(&bytes[..hole.start], 0).unwrap();
            file.write_all_at(&bytes[hole.end..], hole.end as u64).unwrap();
            let file = std::fs::File::open(dir.path().join(size.to_string())).unwrap();
            for threads in 1..4 {
                for sparse in [false, true] {
                    let digest = hash_by_parts(file.as_fd(), size, sparse, threads).unwrap();
                    assert_eq!(digest, Some(Digest::of(&bytes)), "{size} bytes, {threads} threads");
                }
                let longer = hash_by_parts(file.as_fd(), size + 2 * part, false, threads).unwrap();
                assert_eq!(longer, None, "the file is shorter");
            }
        }
    }
}
