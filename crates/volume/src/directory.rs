//! A directory volume: its root, its private directory, its marker, and the way to directories inside it.
//!
//! Paths are walked by descriptors, beneath the root, through no symlink and over no mount point. All other
//! work is done relative to a [`DirFd`] and one name.

use crate::attrs;
use crate::capability::{self, Capabilities};
use crate::dirfd::{DirFd, OpenDir};
use crate::error::{Context, Reason, VolumeError};
use crate::key;
use crate::stage::{PrivateName, SHARDS, StageId, shard_name};
use crate::staged_dir::DIRS;
use crate::stat::{self, Look, MountId, only_mtime};
use crate::sys::{self, Writers};
use crate::watch::Group;
use driftless_core::{Fingerprint, Name, NodeKey, ReplicaId, Time};
use lru::LruCache;
use rustix::fs::{AtFlags, CWD, IFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Directories kept open per volume. The usual limit of open files is 1024, and a process may run several volumes.
const DIRS_OPEN_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(191);
/// The kernel takes paths below 4096 bytes; longer ones are walked in pieces.
const PATH_PIECE_MAX: usize = 4000;
/// A marker is two short lines; more than this is none of ours.
const MARKER_LEN_MAX: usize = 4096;

const DIR_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// A directory tree that is a volume. Cheap to clone; may be used from several threads.
#[derive(Clone)]
pub struct Directory(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    /// The root, readable.
    pub(crate) root: OwnedFd,
    /// A second descriptor of the root for `syncfs`: a descriptor reports the write errors since it was opened or
    /// last asked, so it is opened before the first write and used for nothing else.
    pub(crate) sync: OwnedFd,
    pub(crate) root_key: NodeKey,
    pub(crate) mount: MountId,
    pub(crate) capabilities: Capabilities,
    pub(crate) private: Option<Private>,
    /// Our user id, and whether we are root.
    pub(crate) uid: u32,
    /// Syncs of the file system that have failed.
    pub(crate) sync_failures: AtomicU64,
    /// Who hears of changes in it, if anybody does.
    watched_by: Mutex<Weak<Group>>,
    /// Open directories by identity. Guards nothing but itself.
    dirs: Mutex<LruCache<NodeKey, Arc<OpenDir>>>,
}

/// The private directory and its parts.
pub(crate) struct Private {
    pub(crate) dir: OwnedFd,
    pub(crate) staging: OwnedFd,
    pub(crate) limbo: OwnedFd,
    /// Where directories are staged; missing if the volume is only read.
    pub(crate) staged_dirs: Option<OwnedFd>,
    /// Of these, and of the parts of staging.
    pub(crate) keys: Vec<NodeKey>,
}

/// How to open a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpenOptions {
    /// Make the private directory if it is missing. Needed for everything that writes. Without it an existing one
    /// is still used.
    pub create_private: bool,
}

/// What the marker file says: which volume and replica live in this tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Marker {
    /// The volume.
    pub volume: u128,
    /// The replica.
    pub replica: ReplicaId,
}

/// Where an inode is now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Located {
    /// It does not exist any more.
    Gone,
    /// Below the root, by this path (empty for the root itself).
    At(Vec<Name>),
    /// On this file system, but not below the root.
    Outside,
    /// Cannot be told here: no privilege to open by handle, or (files) it exists but its name is not known.
    Unknown,
}

impl Directory {
    /// Opens the volume at `root`, which must be a readable directory.
    ///
    /// # Errors
    /// If the root or the private directory cannot be opened or made.
    pub fn open(root: &Path, options: OpenOptions) -> Result<Directory, VolumeError> {
        let at = root.as_os_str().as_bytes();
        let fd = capability::open_root(root).doing("open the volume's root", at)?;
        let sync = capability::open_root(root).doing("open the volume's root", at)?;
        let stat = stat::stat_fd(&fd).doing("look at the volume's root", at)?;
        let private = open_private(&fd, options.create_private)?;
        let writable = if options.create_private { private.as_ref().map(|p| p.0.as_fd()) } else { None };
        let capabilities =
            Capabilities::probe(fd.as_fd(), writable).doing("try out the file system of", at)?;
        let identity = capabilities.identity;
        let look = |fd: &OwnedFd| stat::look_fd(identity, fd).doing("identify", at).map(|look| look.key);
        let private = private
            .map(|(dir, staging, limbo)| {
                let mut keys = vec![look(&dir)?, look(&staging)?, look(&limbo)?];
                for shard in open_shards(&staging, options.create_private).doing("open staging of", at)? {
                    keys.push(look(&shard)?);
                }
                let dirs = open_own(&staging, DIRS, options.create_private);
                let staged_dirs = dirs.doing("open staging of", at)?;
                if let Some(dirs) = &staged_dirs {
                    keys.push(look(dirs)?);
                    if options.create_private {
                        spread_below(dirs);
                    }
                }
                Ok::<_, VolumeError>(Private { dir, staging, limbo, staged_dirs, keys })
            })
            .transpose()?;
        Ok(Directory(Arc::new(Inner {
            root_key: look(&fd)?,
            mount: stat::mount_of(&stat),
            capabilities,
            private,
            uid: rustix::process::geteuid().as_raw(),
            sync_failures: AtomicU64::new(0),
            watched_by: Mutex::new(Weak::new()),
            dirs: Mutex::new(LruCache::new(DIRS_OPEN_MAX.min(dirs_open_for_limit()))),
            root: fd,
            sync,
        })))
    }

    /// The marker, if there is one.
    ///
    /// # Errors
    /// [`Reason::BadMarker`] if the file is there but is not what we write.
    pub fn marker(&self) -> Result<Option<Marker>, VolumeError> {
        let Some(private) = &self.0.private else { return Ok(None) };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = match rustix::fs::openat(&private.dir, MARKER, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            other => other.doing("open the volume's marker", MARKER)?,
        };
        let mut text = vec![0; MARKER_LEN_MAX];
        let len = rustix::io::read(&fd, &mut text[..]).doing("read the volume's marker", MARKER)?;
        match Marker::parse(&text[..len]) {
            Some(marker) => Ok(Some(marker)),
            None => Err(VolumeError::own("read the volume's marker", MARKER, Reason::BadMarker)),
        }
    }

    /// Writes the marker: as a whole, and durably.
    pub fn write_marker(&self, marker: &Marker) -> Result<(), VolumeError> {
        let dir = &self.private()?.dir;
        self.write_marker_in(dir, marker).doing("write the volume's marker", MARKER)
    }

    fn write_marker_in(&self, dir: &OwnedFd, marker: &Marker) -> Result<(), Errno> {
        let (fd, text) = (open_new_marker(dir)?, marker.text());
        // Written over what keeps room for it: cut first, it would give that room away.
        crate::stage::write_all(&fd, text.as_bytes(), 0)?;
        rustix::fs::ftruncate(&fd, text.len() as u64)?;
        rustix::fs::fsync(&fd)?;
        rustix::fs::renameat(dir, MARKER_NEW, dir, MARKER)?;
        rustix::fs::fsync(dir)?;
        rustix::fs::fsync(&self.0.root)
    }

    /// Sets room aside for a marker, which has to be written at a moment that cannot wait for some.
    ///
    /// # Errors
    /// [`Reason::NoSpace`] if there is none.
    pub fn keep_room_for_marker(&self) -> Result<(), VolumeError> {
        let kept = open_new_marker(&self.private()?.dir)
            .and_then(|fd| crate::stage::write_all(&fd, &[b' '; MARKER_LEN_MAX], 0));
        kept.doing("keep room for the volume's marker", MARKER)
    }

    /// Which mount of the root's file system this is: another text after the file system was mounted anew, and after the
    /// machine was started anew.
    pub fn mount_identity(&self) -> Result<String, VolumeError> {
        let doing = "identify the mount of";
        let boot = std::fs::read_to_string(BOOT_ID)
            .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
            .doing(doing, BOOT_ID.as_bytes())?;
        let mount = stat::unique_mount_of(&self.0.root).doing(doing, b".")?;
        Ok(format!("{} {mount:x}", boot.trim()))
    }

    /// A sign of life: the time of a file in the private directory.
    pub fn touch_alive(&self) -> Result<(), VolumeError> {
        let doing = "write to the private directory";
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = &self.private()?.dir;
        let fd = rustix::fs::openat(dir, ALIVE, flags, Mode::from_raw_mode(0o600)).doing(doing, ALIVE)?;
        rustix::fs::futimens(&fd, &only_mtime(stat::now())).doing(doing, ALIVE)
    }

    /// The last sign of life that is on the disk.
    pub fn alive_at(&self) -> Result<Option<Time>, VolumeError> {
        match stat::stat_name(&self.private()?.dir, ALIVE_C) {
            Ok(stat) => Ok(Some(stat::fingerprint_of(&stat).mtime)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(VolumeError::sys("look at the last sign of life", ALIVE, e)),
        }
    }

    /// The identity of the root directory.
    pub fn root_key(&self) -> NodeKey {
        self.0.root_key.clone()
    }

    /// What the file system can do, as found out when the volume was opened.
    pub fn capabilities(&self) -> &Capabilities {
        &self.0.capabilities
    }

    /// True if an inode can be told from the next one of the same number.
    pub fn recognises_inodes(&self) -> bool {
        self.0.capabilities.identity != key::Identity::InodeAndBirth || key::has_birth_time(&self.0.root)
    }

    /// True while the root directory exists.
    pub fn root_alive(&self) -> bool {
        stat::stat_fd(&self.0.root).is_ok_and(|stat| stat.stx_nlink > 0)
    }

    /// Where the root is now, for messages.
    pub fn root_path(&self) -> Result<std::path::PathBuf, VolumeError> {
        Ok(std::path::PathBuf::from(std::ffi::OsStr::from_bytes(&path_of(&self.0.root)?)))
    }

    /// Opens the directory at `path` below the root (the root itself if empty).
    ///
    /// With `expect`, makes sure that it is this inode; one that is still open is given without a system call
    /// (see [`Directory::invalidate_dirs`]).
    ///
    /// # Errors
    /// [`Reason::WrongIdentity`] if another inode is there, [`Reason::NotDirectory`] for symlinks and
    /// [`Reason::CrossDevice`] for mount points on the way.
    pub fn dir(&self, path: &[Name], expect: Option<&NodeKey>) -> Result<DirFd, VolumeError> {
        if let Some(known) = expect.and_then(|key| self.dirs().get(key).cloned()) {
            return Ok(DirFd::new(self.clone(), known));
        }
        let joined = joined(path);
        let fd = self.walk(&self.0.root, path).doing("open the directory", &joined)?;
        self.entered(fd, &joined, expect)
    }

    /// Opens the directory at `path` below one that was moved out of the way under the name `id` (that one itself if empty),
    /// and makes sure that it is this inode.
    ///
    /// # Errors
    /// As [`Directory::dir`]; [`Reason::NotFound`] if nothing waits under this name.
    pub fn dir_in_parked(&self, id: StageId, path: &[Name], expect: &NodeKey) -> Result<DirFd, VolumeError> {
        if let Some(known) = self.dirs().get(expect).cloned() {
            return Ok(DirFd::new(self.clone(), known));
        }
        let (doing, joined) = ("open the directory that was moved out of the way", joined(path));
        let [private, beside] = self.parking_places(id)?;
        let enter = |place: &(BorrowedFd<'_>, PrivateName)| {
            rustix::fs::openat(place.0, place.1.get(), DIR_FLAGS, Mode::empty())
        };
        let top = match enter(&private) {
            Err(Errno::NOENT) => enter(&beside),
            other => other,
        };
        let fd = top.and_then(|top| self.walk(&top, path)).doing(doing, &joined)?;
        self.entered(fd, &joined, Some(expect))
    }

    /// A directory that was opened: the one that is expected, and on this file system.
    fn entered(&self, fd: OwnedFd, joined: &[u8], expect: Option<&NodeKey>) -> Result<DirFd, VolumeError> {
        let look =
            stat::look_fd(self.0.capabilities.identity, &fd).doing("identify the directory", joined)?;
        if expect.is_some_and(|expected| *expected != look.key) {
            return Err(VolumeError::own("open the directory", joined, Reason::WrongIdentity));
        }
        let mount = stat::mount_of(&look.stat);
        if mount != self.0.mount {
            return Err(VolumeError::own("enter the mount point", joined, Reason::CrossDevice));
        }
        let open = Arc::new(OpenDir { fd, key: look.key.clone(), mount });
        self.dirs().put(look.key, Arc::clone(&open));
        Ok(DirFd::new(self.clone(), open))
    }

    /// The directory with this key, if it is open or can be opened by its key.
    pub(crate) fn known_dir(&self, key: &NodeKey) -> Option<DirFd> {
        if let Some(open) = self.dirs().get(key) {
            return Some(DirFd::new(self.clone(), Arc::clone(open)));
        }
        let fd = self.open_by_key(key).ok()?;
        let mount = stat::mount_of(&stat::stat_fd(&fd).ok()?);
        Some(DirFd::new(self.clone(), Arc::new(OpenDir { fd, key: key.clone(), mount })))
    }

    /// Forgets the directories kept open. To be called when a directory was moved or removed by somebody else:
    /// an open one may lie outside the root by now.
    pub fn invalidate_dirs(&self) {
        self.dirs().clear();
    }

    /// Opens the inode with this key, as a path descriptor (good for looking, not for reading).
    ///
    /// # Errors
    /// [`Reason::NotFound`] if it is gone; [`Reason::Unsupported`] or [`Reason::Denied`] where it cannot be told.
    pub fn open_by_key(&self, node: &NodeKey) -> Result<OwnedFd, VolumeError> {
        let doing = "open by handle";
        let Some((kind, bytes)) = key::to_handle(node).filter(|_| self.0.capabilities.open_by_handle) else {
            return Err(VolumeError::own(doing, b"", Reason::Unsupported));
        };
        let fd = sys::open_by_handle(&self.0.root, kind, &bytes).doing(doing, b"")?;
        let stat = stat::stat_fd(&fd).doing(doing, b"")?;
        // Removed while still open somewhere: the inode lives, but has no name.
        if stat.stx_nlink == 0 {
            return Err(VolumeError::own(doing, b"", Reason::NotFound));
        }
        Ok(fd)
    }

    /// Where the inode with this key is now. A path found for a file is one of its names, if it has several.
    pub fn locate(&self, node: &NodeKey) -> Located {
        let fd = match self.open_by_key(node) {
            Ok(fd) => fd,
            Err(e) if e.reason == Reason::NotFound => return Located::Gone,
            Err(_) => return Located::Unknown,
        };
        let is_dir = stat::stat_fd(&fd).is_ok_and(|stat| stat::kind_of(&stat).is_dir());
        let (Ok(root), Ok(path)) = (path_of(&self.0.root), path_of(&fd)) else { return Located::Unknown };
        match below(&root, &path) {
            Some(names) if self.is_at(&names, node) => Located::At(names),
            // A directory always has a path; a file whose name is not cached shows as "/".
            None if is_dir => Located::Outside,
            None if path != b"/" => Located::Outside,
            _ => Located::Unknown,
        }
    }

    fn is_at(&self, path: &[Name], node: &NodeKey) -> bool {
        let Some((last, parents)) = path.split_last() else { return *node == self.0.root_key };
        let seen = self.dir(parents, None).and_then(|dir| dir.look(last));
        seen.is_ok_and(|seen| seen.is_some_and(|seen| seen.key == *node))
    }

    /// What a lease says about writers of the file behind `fd`, as far as leases are to be believed here.
    pub(crate) fn writers(&self, fd: impl AsFd) -> Writers {
        match sys::writers(fd) {
            Writers::None if !self.0.capabilities.leases => Writers::Unknown,
            said => said,
        }
    }

    pub(crate) fn private(&self) -> Result<&Private, VolumeError> {
        let missing = || VolumeError::own("write to the volume", Name::PRIVATE, Reason::ReadOnly);
        self.0.private.as_ref().ok_or_else(missing)
    }

    pub(crate) fn watched_by(&self) -> Weak<Group> {
        self.0.watched_by.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_watched_by(&self, group: &Arc<Group>) {
        *self.0.watched_by.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(group);
    }

    fn dirs(&self) -> MutexGuard<'_, LruCache<NodeKey, Arc<OpenDir>>> {
        // The cache is whole between any two statements that hold the lock.
        self.0.dirs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn walk(&self, from: &OwnedFd, path: &[Name]) -> Result<OwnedFd, Errno> {
        if path.is_empty() {
            return rustix::fs::openat(from, c".", DIR_FLAGS, Mode::empty());
        }
        if !self.0.capabilities.openat2 {
            return self.walk_by_steps(from, path);
        }
        let mut at: Option<OwnedFd> = None;
        for piece in pieces(path) {
            at = Some(open_beneath(at.as_ref().unwrap_or(from), &piece)?);
        }
        at.ok_or(Errno::INVAL)
    }

    /// Without `openat2`: one component after the other, looking for mount points on the way.
    fn walk_by_steps(&self, from: &OwnedFd, path: &[Name]) -> Result<OwnedFd, Errno> {
        let mut at = rustix::fs::openat(from, c".", DIR_FLAGS, Mode::empty())?;
        for name in path {
            at = rustix::fs::openat(&at, name.as_bytes(), DIR_FLAGS, Mode::empty())?;
            if stat::mount_of(&stat::stat_fd(&at)?) != self.0.mount {
                return Err(Errno::XDEV);
            }
        }
        Ok(at)
    }
}

/// How many directories a cache may keep open under the process's limit of open files: an eighth. A process may run two
/// volumes with two caches each, and files have to be opened too.
pub fn dirs_open_for_limit() -> NonZeroUsize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let few = usize::try_from(limit / 8).unwrap_or(usize::MAX);
    NonZeroUsize::new(few).unwrap_or(NonZeroUsize::MIN)
}

fn open_beneath(from: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    loop {
        match rustix::fs::openat2(from, path, DIR_FLAGS, Mode::empty(), BENEATH) {
            // The kernel asks to try again when something was renamed during the walk.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

/// The path in pieces that the kernel takes.
fn pieces(path: &[Name]) -> Vec<Vec<u8>> {
    let mut pieces: Vec<Vec<u8>> = Vec::new();
    for name in path {
        match pieces.last_mut() {
            Some(last) if last.len() + 1 + name.as_bytes().len() <= PATH_PIECE_MAX => {
                last.push(b'/');
                last.extend_from_slice(name.as_bytes());
            }
            _ => pieces.push(name.as_bytes().to_vec()),
        }
    }
    pieces
}

fn joined(path: &[Name]) -> Vec<u8> {
    path.iter().map(Name::as_bytes).collect::<Vec<_>>().join(&b'/')
}

fn path_of(fd: &OwnedFd) -> Result<Vec<u8>, VolumeError> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let path = rustix::fs::readlinkat(CWD, link.as_str(), Vec::new()).doing("resolve", link.as_bytes())?;
    Ok(path.into_bytes())
}

/// The names from `root` down to `path`; `None` if it is not below.
fn below(root: &[u8], path: &[u8]) -> Option<Vec<Name>> {
    let rest = path.strip_prefix(root)?;
    let rest = match rest {
        [] => return Some(Vec::new()),
        [b'/', rest @ ..] => rest,
        rest if root == b"/" => rest,
        _ => return None,
    };
    rest.split(|b| *b == b'/').map(|name| Name::new(name).ok()).collect()
}

/// Changes with each start of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const ALIVE_C: &std::ffi::CStr = c"alive";
const ALIVE: &[u8] = ALIVE_C.to_bytes();
const MARKER: &[u8] = b"marker";
const MARKER_NEW: &[u8] = b"marker.new";

impl Marker {
    const TITLE: &'static str = "driftless volume marker 1";

    fn text(&self) -> String {
        format!("{}\nvolume {:032x}\nreplica {:016x}\n", Self::TITLE, self.volume, self.replica.0)
    }

    fn parse(text: &[u8]) -> Option<Marker> {
        let mut lines = std::str::from_utf8(text).ok()?.lines();
        (lines.next()? == Self::TITLE).then_some(())?;
        let volume = u128::from_str_radix(lines.next()?.strip_prefix("volume ")?, 16).ok()?;
        let replica = u64::from_str_radix(lines.next()?.strip_prefix("replica ")?, 16).ok()?;
        Some(Marker { volume, replica: ReplicaId(replica) })
    }
}

/// The file that becomes the marker when it is complete.
fn open_new_marker(dir: &OwnedFd) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, MARKER_NEW, flags, Mode::from_raw_mode(0o600))
}

type PrivateFds = (OwnedFd, OwnedFd, OwnedFd);

/// Opens (and makes, if asked to) the private directory, its staging and its limbo.
fn open_private(root: &OwnedFd, create: bool) -> Result<Option<PrivateFds>, VolumeError> {
    let doing = "open the private directory";
    let Some(dir) = open_own(root, Name::PRIVATE, create).doing(doing, Name::PRIVATE)? else {
        return Ok(None);
    };
    let staging = open_own(&dir, b"staging", create).doing(doing, b"staging")?;
    let limbo = open_own(&dir, b"limbo", create).doing(doing, b"limbo")?;
    Ok(staging.zip(limbo).map(|(staging, limbo)| (dir, staging, limbo)))
}

/// Opens (and makes, if asked to) the parts of staging.
pub(crate) fn open_shards(staging: &OwnedFd, create: bool) -> Result<Vec<OwnedFd>, Errno> {
    if create {
        spread_below(staging);
    }
    let opened = (0..SHARDS).map(|shard| open_own(staging, shard_name(shard).as_bytes(), create));
    Ok(opened.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

/// Asks ext4 to put the directories below this one into different block groups, as it does below its root: inodes
/// of one group are searched one by one. Other file systems know better, or refuse.
fn spread_below(dir: &OwnedFd) {
    if let Ok(flags) = rustix::fs::ioctl_getflags(dir)
        && !flags.contains(IFlags::TOPDIR)
    {
        let _ = rustix::fs::ioctl_setflags(dir, flags | IFlags::TOPDIR);
    }
}

/// A directory of our own: no symlink, ours or root's, closed to others, handing down no ACL or group.
pub(crate) fn open_own(at: &OwnedFd, name: &[u8], create: bool) -> Result<Option<OwnedFd>, Errno> {
    if create {
        match rustix::fs::mkdirat(at, name, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e),
        }
    }
    let fd = match rustix::fs::openat(at, name, DIR_FLAGS, Mode::empty()) {
        Err(Errno::NOENT) if !create => return Ok(None),
        other => other?,
    };
    if create {
        close_to_others(&fd, stat::stat_fd(at)?.stx_uid)?;
    }
    Ok(Some(fd))
}

fn close_to_others(fd: &OwnedFd, parents_owner: u32) -> Result<(), Errno> {
    let stat = stat::stat_fd(fd)?;
    let me = rustix::process::geteuid().as_raw();
    if ![me, 0, parents_owner].contains(&stat.stx_uid) {
        // Somebody could swap what we stage who could not touch the volume otherwise.
        return Err(Errno::PERM);
    }
    for acl in attrs::ACLS {
        match rustix::fs::fremovexattr(fd, acl) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e),
        }
    }
    if u32::from(stat.stx_mode) & 0o7777 != 0o700 {
        rustix::fs::fchmod(fd, Mode::from_raw_mode(0o700))?;
    }
    Ok(())
}

/// What lies in the private directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PrivateEntry {
    /// Where.
    pub part: Part,
    /// Its name, as bytes.
    pub name: Vec<u8>,
    /// Its identity.
    pub key: NodeKey,
    /// How it is now.
    pub fingerprint: Fingerprint,
    /// How many names it has, this one included.
    pub links: u32,
    /// Set if it is not in the private directory but, under a reserved name, in this directory.
    pub beside: Option<NodeKey>,
}

/// A part of the private directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Part {
    /// Files being written.
    Staging,
    /// Files replaced or removed, and parked inodes.
    Limbo,
}

impl Directory {
    /// Everything in staging and limbo, for the sweep at start: what no intent row names is kept and shown.
    pub fn list_private(&self) -> Result<Vec<PrivateEntry>, VolumeError> {
        let mut found = Vec::new();
        let Some(private) = &self.0.private else { return Ok(found) };
        self.list_part(Part::Limbo, &private.limbo, &mut found)?;
        for shard in open_shards(&private.staging, false).doing("list the private directory", b"")? {
            self.list_part(Part::Staging, &shard, &mut found)?;
        }
        Ok(found)
    }

    fn list_part(&self, part: Part, dir: &OwnedFd, found: &mut Vec<PrivateEntry>) -> Result<(), VolumeError> {
        for name in crate::dirfd::names_in(dir).doing("list the private directory", b"")? {
            match stat::look_name(self.0.capabilities.identity, dir, &name) {
                Ok(look) => {
                    let (fingerprint, links) = (look.fingerprint(), look.stat.stx_nlink);
                    let (name, key) = (name.into_bytes(), look.key);
                    found.push(PrivateEntry { part, name, key, fingerprint, links, beside: None });
                }
                Err(Errno::NOENT) => {}
                Err(e) => return Err(VolumeError::sys("look at the private file", name.as_bytes(), e)),
            }
        }
        Ok(())
    }

    /// Removes a file from the private directory if it is still this inode. True if it was removed or not there.
    pub fn drop_private(&self, entry: &PrivateEntry) -> Result<bool, VolumeError> {
        let path = entry.path()?;
        self.unlink_verified(self.holder(entry)?.as_fd(), path.as_bytes(), &entry.key)
    }

    /// Unlinks `name` if it is `key`. True if it is gone afterwards.
    pub(crate) fn unlink_verified(
        &self,
        dir: impl AsFd,
        name: &[u8],
        key: &NodeKey,
    ) -> Result<bool, VolumeError> {
        self.unlink_if(dir, name, None, |look| look.key == *key)
    }

    /// Unlinks `name` if `may_go` says so of it. True if it is gone afterwards. `expected`: what it most probably is.
    pub(crate) fn unlink_if(
        &self,
        dir: impl AsFd,
        name: &[u8],
        expected: Option<(&NodeKey, &Fingerprint)>,
        may_go: impl FnOnce(&Look) -> bool,
    ) -> Result<bool, VolumeError> {
        let doing = "remove the private file";
        let cname =
            std::ffi::CString::new(name).map_err(|_| VolumeError::own(doing, name, Reason::NotFound))?;
        let identity = self.0.capabilities.identity;
        let look = match expected {
            Some(expected) => stat::look_name_expecting(identity, dir.as_fd(), &cname, expected),
            None => stat::look_name(identity, dir.as_fd(), &cname),
        };
        let look = match look {
            Err(Errno::NOENT) => return Ok(true),
            other => other.doing(doing, name)?,
        };
        if !may_go(&look) {
            return Ok(false);
        }
        let flags = if look.kind().is_dir() { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        rustix::fs::unlinkat(dir, cname, flags).doing(doing, name)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use driftless_testkit::fuzz::{HELD_MAX, fuzz};

    #[test]
    fn any_bytes_are_a_marker_or_none() {
        let marker = Marker { volume: u128::MAX - 5, replica: ReplicaId(7) };
        assert_eq!(Marker::parse(marker.text().as_bytes()), Some(marker));
        fuzz("marker", &[marker.text().into_bytes()], HELD_MAX, |bytes| {
            if let Some(read) = Marker::parse(bytes) {
                assert_eq!(Marker::parse(read.text().as_bytes()), Some(read));
            }
        });
    }
}
