//! Staging: inodes are made whole in the private directory, with content, attributes and time, and made durable
//! there, before a rename shows them.

use crate::attrs::{self, Now, Target, Wanted};
use crate::crash::{self, Point};
use crate::directory::Directory;
use crate::dirfd::DirFd;
use crate::error::{Context, Reason, VolumeError};
use crate::fault::{self, Synced};
use crate::patch::Patch;
use crate::read::{hash_fd, read_range};
use crate::staged_dir::StagedDir;
use crate::stat::{self, Look};
use crate::sys;
use driftless_core::meta::Xattrs;
use driftless_core::{Attrs, Digest, Fingerprint, Kind, Name, NodeKey, Time};
use rustix::fs::{AtFlags, FallocateFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Zeroes are left out (a hole) in blocks of this size, aligned; smaller holes file systems do not make.
const HOLE_LEN: usize = 4096;
/// Contents are copied in pieces of this size where the kernel cannot copy by itself.
const COPY_PIECE_LEN: usize = 1 << 20;
/// Batches of at most this many files are synced file by file: `syncfs` waits for strangers' dirty data as well.
pub const SYNC_SINGLY_MAX: usize = 64;
/// Threads that sync files of a batch; they wait for the device, and its queue takes several requests.
const SYNC_THREADS: usize = 4;

/// Staging has so many parts: one thread stages in one of them while another moves out of others, so that neither waits
/// for the other's directory lock; and file systems that put files near their directory do not put all in one place.
pub(crate) const SHARDS: usize = 16;
/// A file that is made to see whether there is room.
const ROOM: &str = "room";
/// Consecutive ids in one part.
const SHARD_LEN: u64 = 512;

/// Part of the reserved name of a copy beside its target that is not whole yet.
pub(crate) const COPY_PART: &str = "copy-";

/// A part's name.
pub(crate) fn shard_name(shard: usize) -> String {
    format!("{shard:02x}")
}

/// Name of a file in the private directory; never given twice by one volume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StageId(pub u64);

impl StageId {
    /// The id that was written as a name in the private directory.
    pub fn parse(name: &[u8]) -> Option<StageId> {
        let hex = std::str::from_utf8(name).ok().filter(|hex| hex.len() == 16)?;
        u64::from_str_radix(hex, 16).ok().map(StageId)
    }

    /// The name beside a target, where the file system does not rename out of the private directory.
    pub(crate) fn beside(self, part: &str) -> PrivateName {
        let mut name = PrivateName::empty();
        name.push(Name::STAGED_PREFIX);
        name.push(part.as_bytes());
        name.push(self.to_string().as_bytes());
        name
    }

    /// Its name in limbo.
    pub(crate) fn name(self) -> PrivateName {
        let mut name = PrivateName::empty();
        name.push(self.to_string().as_bytes());
        name
    }

    /// Its place below staging: a part of it, and its name.
    pub(crate) fn staged_name(self) -> PrivateName {
        let mut name = PrivateName::empty();
        name.push(shard_name(self.shard()).as_bytes());
        name.push(b"/");
        name.push(self.to_string().as_bytes());
        name
    }

    /// The part of staging it is in. Neighbours are together, in few blocks of one directory.
    pub(crate) fn shard(self) -> usize {
        (self.0 / SHARD_LEN) as usize % SHARDS
    }
}
impl fmt::Display for StageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A name of ours with its NUL.
#[derive(Clone, Copy)]
pub(crate) struct PrivateName {
    bytes: [u8; PrivateName::LEN_MAX + 1],
    len: usize,
}

impl PrivateName {
    /// The reserved prefix, a part and an id fit.
    const LEN_MAX: usize = 63;

    pub(crate) fn empty() -> PrivateName {
        PrivateName { bytes: [0; Self::LEN_MAX + 1], len: 0 }
    }

    pub(crate) fn push(&mut self, more: &[u8]) {
        let end = (self.len + more.len()).min(Self::LEN_MAX);
        self.bytes[self.len..end].copy_from_slice(&more[..end - self.len]);
        self.len = end;
    }

    pub(crate) fn get(&self) -> &std::ffi::CStr {
        // The last byte is always NUL.
        std::ffi::CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }
}

/// An inode that is ready to be placed.
#[derive(Clone, Debug)]
pub struct Staged {
    /// Its name in staging.
    pub id: StageId,
    /// What it is.
    pub kind: Kind,
    /// Its identity.
    pub key: NodeKey,
    /// As the file system gave it back. (Placing changes the ctime.)
    pub fingerprint: Fingerprint,
    /// As the file system gave them back.
    pub given: Attrs,
    /// Set if it is not in the private directory but, under a reserved name, in this directory.
    pub beside: Option<DirFd>,
    /// Set if it is in a staged directory, under this name.
    pub within: Option<(Arc<StagedDir>, Name)>,
}

/// Where a staged inode is, relative to the directory that [`Directory::staging_of`] gives.
pub(crate) enum StagedPath {
    Own(PrivateName),
    Within(CString),
}

impl StagedPath {
    pub(crate) fn get(&self) -> &CStr {
        match self {
            StagedPath::Own(name) => name.get(),
            StagedPath::Within(path) => path,
        }
    }
}

impl Staged {
    pub(crate) fn path(&self) -> StagedPath {
        match (&self.beside, &self.within) {
            (Some(_), _) => StagedPath::Own(self.id.beside("")),
            (None, Some((dir, name))) => StagedPath::Within(dir.path(Some(name))),
            (None, None) => StagedPath::Own(self.id.staged_name()),
        }
    }
}

impl Directory {
    /// What [`Staged::path`] is relative to.
    pub(crate) fn staging_of<'a>(&'a self, staged: &'a Staged) -> Result<BorrowedFd<'a>, VolumeError> {
        match (&staged.beside, &staged.within) {
            (Some(dir), _) => Ok(dir.as_fd()),
            (None, Some(_)) => self.staged_dirs(),
            (None, None) => Ok(self.private()?.staging.as_fd()),
        }
    }

    /// Stages a file of which all bytes are at hand, with the fewest system calls.
    ///
    /// # Errors
    /// [`Reason::Unexpected`] if the id is in use.
    pub fn stage_small(
        &self,
        id: StageId,
        bytes: &[u8],
        attrs: &Attrs,
        mtime: Time,
    ) -> Result<Staged, VolumeError> {
        let staging = self.private()?.staging.as_fd();
        self.stage_small_in(staging, id.staged_name().get(), bytes, attrs, mtime)
            .map(|(look, given)| staged(id, look, given))
            .doing("write", id.to_string().as_bytes())
    }

    pub(crate) fn stage_small_in(
        &self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        bytes: &[u8],
        attrs: &Attrs,
        mtime: Time,
    ) -> Result<(Look, Attrs), Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = attrs.mode & 0o777;
        let fd = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(mode))?;
        let end = write_sparse(&fd, bytes, 0)?;
        if end < bytes.len() as u64 {
            rustix::fs::ftruncate(&fd, bytes.len() as u64)?;
        }
        self.settle(&Target::Open(&fd), mode, &Wanted { kind: Kind::File, attrs, mtime: Some(mtime) })
    }

    /// Sets attributes and time of an inode just created in staging with `mode`, and looks at it.
    fn settle(&self, target: &Target<'_>, mode: u32, wanted: &Wanted<'_>) -> Result<(Look, Attrs), Errno> {
        let created = self.0.capabilities.created;
        let now = Now { uid: created.uid, gid: created.gid, mode: mode & created.mode_mask };
        let plain = wanted.attrs.xattrs.is_empty() && !created.xattrs;
        let born_with = if created.xattrs { target.xattrs()? } else { Xattrs::new() };
        attrs::apply(target, wanted, now, &born_with)?;
        let look = stat::look_fd(self.0.capabilities.identity, target.fd())?;
        let given =
            if plain { attrs::attrs_of(&look.stat, Xattrs::new()) } else { target.attrs(&look.stat)? };
        Ok((look, given))
    }

    /// Stages a file that is written piece by piece.
    ///
    /// # Errors
    /// [`Reason::Unexpected`] if the id is in use.
    pub fn stage_file(&self, id: StageId, attrs: &Attrs, mtime: Time) -> Result<StagedWriter, VolumeError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.open_staged(id, flags, attrs, mtime)
    }

    /// Goes on with a file whose staging was interrupted.
    ///
    /// # Errors
    /// [`Reason::NotFound`] if there is none.
    pub fn reopen(&self, id: StageId, attrs: &Attrs, mtime: Time) -> Result<StagedWriter, VolumeError> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.open_staged(id, flags, attrs, mtime)
    }

    fn open_staged(
        &self,
        id: StageId,
        flags: OFlags,
        attrs: &Attrs,
        mtime: Time,
    ) -> Result<StagedWriter, VolumeError> {
        let staging = &self.private()?.staging;
        let name = id.to_string();
        let mode = Mode::from_raw_mode(StagedWriter::MODE);
        let fd = rustix::fs::openat(staging, id.staged_name().get(), flags, mode)
            .doing("stage", name.as_bytes())?;
        let size = stat::stat_fd(&fd).doing("stage", name.as_bytes())?.stx_size;
        let hash = (size == 0).then(blake3::Hasher::new);
        let attrs = attrs.clone();
        Ok(StagedWriter {
            volume: self.clone(),
            id,
            fd,
            attrs,
            mtime,
            high: size,
            hash,
            hashed_to: 0,
            read: None,
            dirty: 0,
        })
    }

    /// Stages a file with the content of `source`: by reflink where possible, else copied inside the kernel, holes
    /// kept. The content is only what `source` holds while it is copied; `finish` with a digest tells.
    pub fn clone_into_stage(
        &self,
        id: StageId,
        source: impl AsFd,
        attrs: &Attrs,
        mtime: Time,
    ) -> Result<StagedWriter, VolumeError> {
        let mut writer = self.stage_file(id, attrs, mtime)?;
        let copied = copy_content(source.as_fd(), &writer.fd);
        writer.high = copied.doing("copy into", id.to_string().as_bytes())?;
        writer.hash = None;
        Ok(writer)
    }

    /// Stages a symlink.
    pub fn stage_symlink(
        &self,
        id: StageId,
        target: &[u8],
        attrs: &Attrs,
        mtime: Time,
    ) -> Result<Staged, VolumeError> {
        let staging = &self.private()?.staging;
        let made = rustix::fs::symlinkat(target, staging, id.staged_name().get());
        made.doing("make the symlink", id.to_string().as_bytes())?;
        self.settle_path(id, Kind::Symlink, 0o777, attrs, mtime)
    }

    /// Stages a FIFO, socket or device.
    ///
    /// # Errors
    /// [`Reason::Denied`] for devices without the privilege.
    pub fn stage_special(
        &self,
        id: StageId,
        kind: Kind,
        rdev: u64,
        attrs: &Attrs,
        mtime: Time,
    ) -> Result<Staged, VolumeError> {
        let staging = &self.private()?.staging;
        let doing = "make the special file";
        let kind_of_node = match kind {
            Kind::Fifo => FileType::Fifo,
            Kind::Socket => FileType::Socket,
            Kind::CharDev => FileType::CharacterDevice,
            Kind::BlockDev => FileType::BlockDevice,
            _ => return Err(VolumeError::own(doing, id.to_string().as_bytes(), Reason::Unsupported)),
        };
        let mode = attrs.mode & 0o777;
        let made = rustix::fs::mknodat(
            staging,
            id.staged_name().get(),
            kind_of_node,
            Mode::from_raw_mode(mode),
            rdev,
        );
        made.doing(doing, id.to_string().as_bytes())?;
        self.settle_path(id, kind, mode, attrs, mtime)
    }

    fn settle_path(
        &self,
        id: StageId,
        kind: Kind,
        mode: u32,
        attrs: &Attrs,
        mtime: Time,
    ) -> Result<Staged, VolumeError> {
        let staging = &self.private()?.staging;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let settled =
            rustix::fs::openat(staging, id.staged_name().get(), flags, Mode::empty()).and_then(|fd| {
                self.settle(&Target::Path(&fd), mode, &Wanted { kind, attrs, mtime: Some(mtime) })
            });
        let (look, given) = settled.doing("set the attributes of", id.to_string().as_bytes())?;
        Ok(staged(id, look, given))
    }

    /// Gives what is staged already other attributes: the state may have moved on since.
    pub fn restyle(&self, staged: &Staged, attrs: &Attrs, mtime: Time) -> Result<Staged, VolumeError> {
        let (dir, name) = (self.staging_of(staged)?, staged.path());
        let doing = "set the attributes of";
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let subject = staged.id.to_string();
        let fd =
            rustix::fs::openat(dir, name.get(), flags, Mode::empty()).doing(doing, subject.as_bytes())?;
        let wanted = Wanted { kind: staged.kind, attrs, mtime: Some(mtime) };
        let identity = self.0.capabilities.identity;
        let (look, given) = attrs::apply_and_look(&Target::Path(&fd), &wanted, identity, subject.as_bytes())?;
        Ok(Staged { fingerprint: look.fingerprint(), given, ..staged.clone() })
    }

    /// Gives a staged inode another name in staging: one that was given to no other before.
    ///
    /// # Errors
    /// If the name is taken.
    pub fn rename_staged(&self, staged: Staged, id: StageId) -> Result<Staged, VolumeError> {
        let (from, to) = (staged.id.staged_name(), id.staged_name());
        let staging = self.private()?.staging.as_fd();
        self.rename_away(staging, from.get(), staging, to.get()).doing("rename", from.get().to_bytes())?;
        Ok(Staged { id, ..staged })
    }

    /// Throws a staged inode away.
    pub fn unstage(&self, staged: &Staged) -> Result<bool, VolumeError> {
        self.unlink_verified(self.staging_of(staged)?, staged.path().get().to_bytes(), &staged.key)
    }

    /// Makes staged inodes and the entries of `dirs` durable. Few files are synced one by one, many by one sync of
    /// the file system where that is to be trusted.
    ///
    /// # Errors
    /// [`Reason::SyncFailed`]: what was written since the last success has to be written again; a second sync that
    /// succeeds would prove nothing.
    pub fn make_durable(&self, staged: &[Staged], dirs: &[DirFd]) -> Result<(), VolumeError> {
        if staged.is_empty() && dirs.is_empty() {
            return Ok(());
        }
        crash::at(Point::Staged);
        self.sync_some(staged, dirs)?;
        crash::at(Point::StagedDurable);
        Ok(())
    }

    fn sync_some(&self, staged: &[Staged], dirs: &[DirFd]) -> Result<(), VolumeError> {
        if staged.len() + dirs.len() > SYNC_SINGLY_MAX && self.0.capabilities.syncfs {
            return self.sync();
        }
        let files: Vec<&Staged> = staged.iter().filter(|s| s.kind == Kind::File).collect();
        // These file systems log a new name no later than the sync of its file.
        let staging = files.len() < staged.len() || (!files.is_empty() && !self.0.capabilities.syncfs);
        let synced = in_parallel(&files, |s| self.sync_staged(s))
            .and_then(|()| if staging { self.sync_shards(staged) } else { Ok(()) })
            .and_then(|()| in_parallel(dirs, |dir| rustix::fs::fsync(dir)));
        synced.map_err(sync_failed)
    }

    /// Makes everything written to the file system so far durable: the seal.
    ///
    /// # Errors
    /// As [`Directory::make_durable`].
    pub fn sync(&self) -> Result<(), VolumeError> {
        let synced = fault::sync(Synced::FileSystem).and_then(|()| rustix::fs::syncfs(&self.0.sync));
        if synced.is_err() {
            self.0.sync_failures.fetch_add(1, Ordering::AcqRel);
        }
        synced.map_err(sync_failed)
    }

    /// How many syncs of the file system have failed. Such a failure is told once, to whoever asks first: it may be about
    /// what somebody else has staged and not synced yet.
    pub fn sync_failures(&self) -> u64 {
        self.0.sync_failures.load(Ordering::Acquire)
    }

    /// As [`Directory::make_durable`] of inodes that were staged when `failures` syncs had failed.
    ///
    /// # Errors
    /// Also if a sync has failed since, whoever it was.
    pub fn make_durable_since(&self, staged: &[Staged], failures: u64) -> Result<(), VolumeError> {
        self.make_durable(staged, &[])?;
        match self.sync_failures() == failures || staged.is_empty() {
            true => Ok(()),
            false => Err(sync_failed(Errno::IO)),
        }
    }

    /// True if so many bytes can be written now: by making room for them, since free space as reported knows no quota.
    pub fn has_room(&self, len: u64) -> bool {
        self.try_room(len).is_ok()
    }

    /// Free bytes as the file system says, for this user; 0 if it does not say.
    pub fn free_bytes(&self) -> u64 {
        rustix::fs::fstatvfs(&self.0.root).map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize))
    }

    fn try_room(&self, len: u64) -> Result<(), Errno> {
        let dir = self.private_staging()?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir, ROOM, flags, Mode::from_raw_mode(0o600))?;
        let tried = match rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, len) {
            // Nothing can be set aside here: what is free has to do.
            Err(Errno::OPNOTSUPP) if self.free_bytes() >= len => Ok(()),
            other => other,
        };
        tried.and(rustix::fs::unlinkat(dir, ROOM, AtFlags::empty()))
    }

    /// Makes names in staging durable.
    fn sync_shards(&self, staged: &[Staged]) -> Result<(), Errno> {
        self.sync_staged_dirs(staged.iter().filter_map(|s| Some(&s.within.as_ref()?.0)))?;
        let own = staged.iter().filter(|s| s.within.is_none());
        let shards: BTreeSet<usize> = own.map(|s| s.id.shard()).collect();
        for shard in shards {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let name = shard_name(shard);
            let dir = rustix::fs::openat(self.private_staging()?, name.as_str(), flags, Mode::empty())?;
            rustix::fs::fsync(dir)?;
        }
        Ok(())
    }

    fn private_staging(&self) -> Result<BorrowedFd<'_>, Errno> {
        Ok(self.private().map_err(|_| Errno::ROFS)?.staging.as_fd())
    }

    fn sync_staged(&self, staged: &Staged) -> Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let dir = self.staging_of(staged).map_err(|_| Errno::ROFS)?;
        match rustix::fs::openat(dir, staged.path().get(), flags, Mode::empty()) {
            Ok(fd) => fault::sync(Synced::File).and_then(|()| rustix::fs::fsync(&fd)),
            // Without read permission for its owner: synced with everything else.
            Err(Errno::ACCESS) => rustix::fs::syncfs(&self.0.sync),
            Err(e) => Err(e),
        }
    }

    /// Makes a copy of a staged inode in `dir` under a reserved name, durable like the first.
    pub(crate) fn restage_beside(&self, first: &Staged, dir: &DirFd) -> Result<Staged, VolumeError> {
        let (unfinished, name) = (first.id.beside(COPY_PART), first.id.beside(""));
        let doing = "copy into the directory";
        let subject = first.id.to_string();
        let copied = self.copy_staged(first, dir, &unfinished).and_then(|(_, given)| {
            // A restart finds only whole ones under the other name, or what one was exchanged with.
            self.rename_away(dir.as_fd(), unfinished.get(), dir.as_fd(), name.get())?;
            Ok((stat::look_name(self.0.capabilities.identity, dir, name.get())?, given))
        });
        let (look, given) = copied
            .inspect_err(|_| {
                // Nothing but our own unfinished copy has this name.
                let _ = rustix::fs::unlinkat(dir, unfinished.get(), AtFlags::empty());
            })
            .doing(doing, subject.as_bytes())?;
        rustix::fs::fsync(dir).map_err(sync_failed)?;
        Ok(Staged { beside: Some(dir.clone()), ..staged(first.id, look, given) })
    }

    fn copy_staged(&self, first: &Staged, dir: &DirFd, name: &PrivateName) -> Result<(Look, Attrs), Errno> {
        let staging = self.staging_of(first).map_err(|_| Errno::ROFS)?;
        let path = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let wanted = Wanted { kind: first.kind, attrs: &first.given, mtime: Some(first.fingerprint.mtime) };
        let finish = |target: &Target<'_>| {
            let now = stat::stat_fd(target.fd())?;
            attrs::apply(target, &wanted, Now::from(&now), &target.xattrs()?)?;
            let look = stat::look_fd(self.0.capabilities.identity, target.fd())?;
            let given = target.attrs(&look.stat)?;
            Ok((look, given))
        };
        match first.kind {
            Kind::File => {
                let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let source = rustix::fs::openat(staging, first.path().get(), read, Mode::empty())?;
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = rustix::fs::openat(dir, name.get(), flags, Mode::from_raw_mode(StagedWriter::MODE))?;
                copy_content(source.as_fd(), &fd)?;
                let finished = finish(&Target::Open(&fd))?;
                rustix::fs::fsync(&fd)?;
                return Ok(finished);
            }
            Kind::Symlink => {
                let target = rustix::fs::readlinkat(staging, first.path().get(), Vec::new())?;
                rustix::fs::symlinkat(target, dir, name.get())?;
            }
            _ => {
                let stat = stat::stat_name(staging, first.path().get())?;
                let kind = FileType::from_raw_mode(stat.stx_mode.into());
                let mode = Mode::from_raw_mode(u32::from(stat.stx_mode));
                rustix::fs::mknodat(dir, name.get(), kind, mode, stat::rdev_of(&stat))?;
            }
        }
        let fd = rustix::fs::openat(dir, name.get(), path, Mode::empty())?;
        finish(&Target::Path(&fd))
    }
}

fn staged(id: StageId, look: Look, given: Attrs) -> Staged {
    Staged {
        id,
        kind: look.kind(),
        fingerprint: look.fingerprint(),
        key: look.key,
        given,
        beside: None,
        within: None,
    }
}

fn sync_failed(errno: Errno) -> VolumeError {
    let reason = match Reason::of(errno) {
        Reason::NoSpace => Reason::NoSpace,
        _ => Reason::SyncFailed,
    };
    VolumeError { tried: "sync", subject: Vec::new(), reason, errno: Some(errno.raw_os_error()) }
}

/// Does `act` for each item, on a few threads. The first failure is the result; the others are still done.
fn in_parallel<T: Sync>(items: &[T], act: impl Fn(&T) -> Result<(), Errno> + Sync) -> Result<(), Errno> {
    if items.len() <= 1 {
        return items.first().map_or(Ok(()), &act);
    }
    let next = AtomicUsize::new(0);
    let work = || {
        let mut result = Ok(());
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            result = result.and(act(item));
        }
        result
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..SYNC_THREADS.min(items.len())).map(|_| scope.spawn(work)).collect();
        let own = work();
        // A thread that panicked has not synced its items.
        others.into_iter().fold(own, |sum, t| sum.and(t.join().unwrap_or(Err(Errno::IO))))
    })
}

/// A large file is written out every so many bytes while it comes. Left to gather, they would be waited for by every small file that
/// is synced meanwhile, for a journal in order writes them out first, and all at once by the sync of the file itself.
const WRITE_OUT_LEN: u64 = 4 << 20;

/// A file being staged. Dropped without [`StagedWriter::finish`], it stays in staging and can be reopened.
pub struct StagedWriter {
    volume: Directory,
    id: StageId,
    fd: OwnedFd,
    attrs: Attrs,
    mtime: Time,
    /// End of what was written: zeroes beyond it need not be.
    high: u64,
    /// Digest of all up to `hashed_to`, as long as pieces come in order.
    hash: Option<blake3::Hasher>,
    hashed_to: u64,
    /// Digest of what was read back since the last write.
    read: Option<Digest>,
    /// Bytes written since the kernel was asked to write out.
    dirty: u64,
}

impl StagedWriter {
    /// Mode until it is finished.
    const MODE: u32 = 0o600;

    /// Throws it away: nobody wants it any more.
    pub fn discard(self) -> Result<bool, VolumeError> {
        let name = self.id.staged_name();
        let bytes = name.get().to_bytes();
        let look = stat::look_fd(self.volume.0.capabilities.identity, self.fd.as_fd());
        let look = look.doing("look at the staged file", bytes)?;
        self.volume.unlink_verified(&self.volume.private()?.staging, bytes, &look.key)
    }

    /// Its name in staging.
    pub fn id(&self) -> StageId {
        self.id
    }

    /// End of the last byte written, also by an earlier attempt. Zeroes at the end may lie beyond.
    pub fn written_to(&self) -> u64 {
        self.high
    }

    /// What was written at `offset`, in a file of which everything was: zeroes where nothing is, as they are left out at its end.
    pub fn read_at(&self, offset: u64, len: usize) -> Result<Vec<u8>, VolumeError> {
        let mut bytes = read_range(self.fd.as_fd(), offset, len).doing("read", b"a staged file")?;
        bytes.resize(len, 0);
        Ok(bytes)
    }

    /// Writes `bytes` at `offset`. Aligned blocks of zeroes become holes.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), VolumeError> {
        let written = self.write_around(offset, bytes);
        let end = written.doing("write", self.id.to_string().as_bytes())?;
        self.high = self.high.max(end);
        self.read = None;
        self.dirty += bytes.len() as u64;
        if self.dirty >= WRITE_OUT_LEN {
            self.dirty = 0;
            sys::begin_writing_out(&self.fd);
        }
        match &mut self.hash {
            Some(hash) if offset == self.hashed_to => {
                hash.update(bytes);
                self.hashed_to += bytes.len() as u64;
            }
            _ => self.hash = None,
        }
        Ok(())
    }

    /// Over what was written before, zeroes are written out; beyond it they are left out.
    fn write_around(&self, offset: u64, bytes: &[u8]) -> Result<u64, Errno> {
        let old = usize::try_from(self.high.saturating_sub(offset)).unwrap_or(usize::MAX).min(bytes.len());
        let (over, beyond) = bytes.split_at(old);
        write_all(&self.fd, over, offset)?;
        write_sparse(&self.fd, beyond, offset + old as u64)
    }

    /// Gives it size, attributes and time. With `expected`, checks the digest first.
    ///
    /// # Errors
    /// [`Reason::WrongContent`] if the digest is another one; then the file is gone.
    pub fn finish(self, expected: Option<Digest>, size: u64) -> Result<Staged, VolumeError> {
        let name = self.id.to_string();
        if self.high != size {
            rustix::fs::ftruncate(&self.fd, size).doing("set the size of", name.as_bytes())?;
        }
        if let Some(expected) = expected
            && self.digest(size).doing("read", name.as_bytes())? != Some(expected)
        {
            // What is wrong in it cannot be told: nothing goes on from here.
            self.discard()?;
            return Err(VolumeError::own("finish", name.as_bytes(), Reason::WrongContent));
        }
        let wanted = Wanted { kind: Kind::File, attrs: &self.attrs, mtime: Some(self.mtime) };
        let settled = self.volume.settle(&Target::Open(&self.fd), StagedWriter::MODE, &wanted);
        let (look, given) = settled.doing("set the attributes of", name.as_bytes())?;
        Ok(staged(self.id, look, given))
    }

    /// It gets these attributes when it is finished: the state may have moved on since it was begun.
    pub fn with_attrs(self, attrs: &Attrs, mtime: Time) -> StagedWriter {
        StagedWriter { attrs: attrs.clone(), mtime, ..self }
    }

    /// The same file, for another thread to write other parts of it.
    pub fn share(&self) -> Result<Patch, VolumeError> {
        let shares = self.volume.capabilities().reflink;
        let fd = self.fd.try_clone().map_err(|_| Errno::MFILE);
        fd.and_then(|fd| Patch::new(fd, shares)).doing("write", self.id.to_string().as_bytes())
    }

    /// It is whole, and [`Patch::digest`] has given this digest since it was.
    pub fn was_read(&mut self, digest: Digest) {
        self.read = Some(digest);
    }

    /// The digest of the file: as written, if all came in order; else read again.
    fn digest(&self, size: u64) -> Result<Option<Digest>, Errno> {
        if self.read.is_some() {
            return Ok(self.read);
        }
        match &self.hash {
            Some(hash) if self.hashed_to == size => Ok(Some(Digest(*hash.finalize().as_bytes()))),
            _ => hash_fd(self.fd.as_fd(), size, true),
        }
    }
}

/// Writes all of `bytes` at `offset`.
pub(crate) fn write_all(fd: &OwnedFd, mut bytes: &[u8], mut offset: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::pwrite(fd, bytes, offset))?;
        if written == 0 {
            return Err(Errno::IO);
        }
        bytes = &bytes[written..];
        offset += written as u64;
    }
    Ok(())
}

/// Writes `bytes` at `offset` but for aligned blocks of zeroes. Returns the end of what was written; 0 if nothing.
pub(crate) fn write_sparse(fd: &OwnedFd, bytes: &[u8], offset: u64) -> Result<u64, Errno> {
    let mut end = 0;
    for run in data_runs(bytes, offset) {
        end = offset + run.end as u64;
        write_all(fd, &bytes[run.clone()], offset + run.start as u64)?;
    }
    Ok(end)
}

/// The ranges of `bytes`, which start at `offset` of their file, between aligned blocks of zeroes.
fn data_runs(bytes: &[u8], offset: u64) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    // How far the first block boundary is.
    let first = (HOLE_LEN - (offset % HOLE_LEN as u64) as usize) % HOLE_LEN;
    let mut at = 0;
    while at < bytes.len() {
        let len = if at == 0 && first > 0 { first } else { HOLE_LEN };
        let end = (at + len).min(bytes.len());
        let hole = end - at == HOLE_LEN && is_zero(&bytes[at..end]);
        match runs.last_mut() {
            _ if hole => {}
            Some(last) if last.end == at => last.end = end,
            _ => runs.push(at..end),
        }
        at = end;
    }
    runs
}

pub(crate) fn is_zero(block: &[u8]) -> bool {
    // Most blocks show it in their first bytes.
    block.first() == Some(&0) && block.iter().all(|b| *b == 0)
}

/// Copies everything; holes stay holes. Returns the size.
fn copy_content(source: BorrowedFd<'_>, target: &OwnedFd) -> Result<u64, Errno> {
    let size = stat::stat_fd(source)?.stx_size;
    if size > 0 && rustix::fs::ioctl_ficlone(target, source).is_ok() {
        return Ok(size);
    }
    let mut at = 0;
    while at < size {
        let data = crate::read::next_data(source, at, size)?;
        copy_range(source, target, data.clone())?;
        at = data.end;
    }
    rustix::fs::ftruncate(target, size)?;
    Ok(size)
}

fn copy_range(source: BorrowedFd<'_>, target: &OwnedFd, range: std::ops::Range<u64>) -> Result<(), Errno> {
    let (mut from, mut to) = (range.start, range.start);
    while from < range.end {
        let len = usize::try_from(range.end - from).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), len) {
            // The source has become shorter; the digest will tell.
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                return copy_by_hand(source, target, from..range.end);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn copy_by_hand(source: BorrowedFd<'_>, target: &OwnedFd, range: std::ops::Range<u64>) -> Result<(), Errno> {
    let mut buffer = vec![0; COPY_PIECE_LEN];
    let mut at = range.start;
    while at < range.end {
        let len = usize::try_from(range.end - at).unwrap_or(COPY_PIECE_LEN).min(COPY_PIECE_LEN);
        let got = rustix::io::retry_on_intr(|| rustix::io::pread(source, &mut buffer[..len], at))?;
        if got == 0 {
            return Ok(());
        }
        write_all(target, &buffer[..got], at)?;
        at += got as u64;
    }
    Ok(())
}
