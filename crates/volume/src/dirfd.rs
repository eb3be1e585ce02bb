//! An open directory of a volume: listing it and looking at names in it.

use crate::directory::Directory;
use crate::error::{Context, VolumeError};
use crate::key;
use crate::listing::Listing;
use crate::stat::{self, CName, Look, MountId};
use driftless_core::{Fingerprint, Kind, Name, NodeKey, Recorded};
use rustix::fs::{Access, AtFlags, Mode, OFlags, RawDir};
use rustix::io::Errno;
use std::ffi::CString;
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Directory entries are read in pieces of this size: about 800 names with one system call.
const LIST_BUFFER_LEN: usize = 32 << 10;

/// What a look at a name showed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// The name.
    pub name: Name,
    /// The inode.
    pub key: NodeKey,
    /// What it is.
    pub kind: Kind,
    /// Size and times.
    pub fingerprint: Fingerprint,
    /// Number of names of the inode.
    pub nlink: u32,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device, as `st_rdev` has it; else 0.
    pub rdev: u64,
    /// Lies on another file system or mount: not part of the volume, not to be entered.
    pub other_fs: bool,
}

/// An open directory of a volume. Cheap to clone; may be used from several threads.
#[derive(Clone)]
pub struct DirFd {
    volume: Directory,
    open: Arc<OpenDir>,
}

/// What the volume keeps of open directories. (It must not keep [`DirFd`]s: they keep the volume.)
pub(crate) struct OpenDir {
    pub(crate) fd: OwnedFd,
    pub(crate) key: NodeKey,
    pub(crate) mount: MountId,
}

impl AsFd for DirFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.open.fd.as_fd()
    }
}
impl fmt::Debug for DirFd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DirFd").field(&self.open.key).finish()
    }
}

impl DirFd {
    pub(crate) fn new(volume: Directory, open: Arc<OpenDir>) -> DirFd {
        DirFd { volume, open }
    }

    /// Its identity.
    pub fn key(&self) -> &NodeKey {
        &self.open.key
    }

    /// The mount it was reached through.
    pub fn mount_id(&self) -> MountId {
        self.open.mount
    }

    /// The volume it belongs to.
    pub fn volume(&self) -> &Directory {
        &self.volume
    }

    /// The names in it. The private directory and staged files are left out.
    ///
    /// # Errors
    /// If the directory cannot be read, or has more names than fit a [`Listing`].
    pub fn list(&self) -> Result<Listing, VolumeError> {
        let doing = "list the directory";
        // An own descriptor: the reading position is shared by all users of this one.
        let fd = self.reopen().doing(doing, b"")?;
        let mut buffer = [MaybeUninit::<u8>::uninit(); LIST_BUFFER_LEN];
        let mut entries = RawDir::new(&fd, &mut buffer);
        let mut listing = Listing::default();
        while let Some(entry) = entries.next() {
            let entry = entry.doing(doing, b"")?;
            let name = entry.file_name().to_bytes();
            if !is_left_out(name, self.is_root()) && !listing.push(name) {
                return Err(VolumeError::sys(doing, b"", Errno::OVERFLOW));
            }
        }
        listing.sort();
        Ok(listing)
    }

    /// Looks at one name. `None` if nothing is there.
    pub fn look(&self, name: &Name) -> Result<Option<Seen>, VolumeError> {
        match self.look_raw(name) {
            Ok(look) => Ok(Some(self.seen(name.clone(), look))),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(VolumeError::sys("look at", name.as_bytes(), e)),
        }
    }

    /// True if `name` certainly is the inode `key`, of this directory's file system, just as it was recorded. False: look closely.
    pub fn is_as_recorded(&self, name: &Name, key: &NodeKey, recorded: &Recorded) -> bool {
        let Ok(stat) = stat::stat_name(&self.open.fd, CName::new(name).get()) else { return false };
        stat::kind_of(&stat) == recorded.kind
            && stat::fingerprint_of(&stat) == recorded.fingerprint
            && u32::from(stat.stx_mode) & 0o7777 == recorded.mode
            && (stat.stx_uid, stat.stx_gid) == (recorded.uid, recorded.gid)
            && stat::mount_of(&stat) == self.open.mount
            && key::is_same_inode(key, &stat)
    }

    pub(crate) fn look_raw(&self, name: &Name) -> Result<Look, Errno> {
        stat::look_name(self.volume.0.capabilities.identity, &self.open.fd, CName::new(name).get())
    }

    pub(crate) fn seen(&self, name: Name, look: Look) -> Seen {
        let stat = &look.stat;
        Seen {
            name,
            kind: look.kind(),
            fingerprint: look.fingerprint(),
            nlink: stat.stx_nlink,
            mode: u32::from(stat.stx_mode) & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            rdev: stat::rdev_of(stat),
            other_fs: stat::mount_of(stat) != self.open.mount,
            key: look.key,
        }
    }

    /// False if names cannot be made or removed in it: no permission, a flag, a read-only mount.
    pub fn is_writable(&self) -> bool {
        let Ok(stat) = stat::stat_fd(self) else { return false };
        let access = rustix::fs::accessat(self, c".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS);
        // Our own are opened for the moment, whatever their mode.
        let may = access.is_ok() || (access == Err(Errno::ACCESS) && stat.stx_uid == self.volume.0.uid);
        may && !stat::is_fixed(&stat)
    }

    pub(crate) fn is_root(&self) -> bool {
        self.open.key == self.volume.0.root_key
    }

    fn reopen(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.open.fd, c".", flags, Mode::empty())
    }
}

/// Names that are ours: not part of the volume's content, and no problem either.
fn is_left_out(name: &[u8], in_root: bool) -> bool {
    matches!(name, b"." | b"..")
        || (in_root && name == Name::PRIVATE)
        || name.starts_with(Name::STAGED_PREFIX)
}

/// All names in a private directory.
pub(crate) fn names_in(dir: impl AsFd) -> Result<Vec<CString>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, c".", flags, Mode::empty())?;
    let mut buffer = [MaybeUninit::<u8>::uninit(); LIST_BUFFER_LEN];
    let mut entries = RawDir::new(&fd, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}
