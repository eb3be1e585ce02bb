//! Reading and setting attributes: owner, mode, extended attributes, ACLs.
//!
//! Setting follows one order, because each step undoes some of the later ones: owner (clears setuid and
//! capabilities), extended attributes (an ACL changes the mode; a user attribute needs a writable mode), mode,
//! and last the time. What may not be set is left; what the file system then gives back is reported.

use crate::error::{Context, VolumeError};
use crate::stat::{self, Look, only_mtime};
use driftless_core::meta::Xattrs;
use driftless_core::{Attrs, Kind, Time};
use rustix::fs::{AtFlags, CWD, Gid, Mode, Statx, Uid, XattrFlags};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, OwnedFd};

/// POSIX ACLs as the kernel names them.
pub(crate) const ACLS: [&str; 2] = ["system.posix_acl_access", "system.posix_acl_default"];
/// Kept by the kernel for itself, bound to this machine's key or to the inode; or another view of the ACLs (XFS): not
/// to be carried elsewhere.
const NOT_CARRIED: [&[u8]; 4] =
    [b"security.evm", b"security.ima", b"trusted.SGI_ACL_FILE", b"trusted.SGI_ACL_DEFAULT"];
/// Tried first for names and values; most fit.
const XATTR_BUFFER_LEN: usize = 1024;
/// No value and no list of names is longer (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const XATTR_LEN_MAX: usize = 65536;

/// An attribute needs one block at most on most file systems, and another for the tree it is in.
const SPARE_BLOCKS: u64 = 16;

/// An inode whose attributes are read and set.
pub(crate) enum Target<'a> {
    /// Opened for reading or writing.
    Open(&'a OwnedFd),
    /// A path descriptor: cannot be opened (a symlink, device, or file without read permission).
    Path(&'a OwnedFd),
}

impl Target<'_> {
    pub(crate) fn fd(&self) -> &OwnedFd {
        match self {
            Target::Open(fd) | Target::Path(fd) => fd,
        }
    }

    /// The descriptor as a path. Exactly this inode, whatever its names are now.
    fn proc_path(&self) -> String {
        format!("/proc/self/fd/{}", self.fd().as_raw_fd())
    }

    fn list(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Target::Open(fd) => rustix::fs::flistxattr(fd, buffer),
            Target::Path(_) => rustix::fs::listxattr(self.proc_path().as_str(), buffer),
        }
    }

    fn get(&self, name: &[u8], buffer: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Target::Open(fd) => rustix::fs::fgetxattr(fd, name, buffer),
            Target::Path(_) => rustix::fs::getxattr(self.proc_path().as_str(), name, buffer),
        }
    }

    fn set(&self, name: &[u8], value: &[u8]) -> Result<(), Errno> {
        match self {
            Target::Open(fd) => rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()),
            Target::Path(_) => {
                rustix::fs::setxattr(self.proc_path().as_str(), name, value, XattrFlags::empty())
            }
        }
    }

    fn remove(&self, name: &[u8]) -> Result<(), Errno> {
        match self {
            Target::Open(fd) => rustix::fs::fremovexattr(fd, name),
            Target::Path(_) => rustix::fs::removexattr(self.proc_path().as_str(), name),
        }
    }

    fn chmod(&self, mode: u32) -> Result<(), Errno> {
        let mode = Mode::from_raw_mode(mode);
        match self {
            Target::Open(fd) => rustix::fs::fchmod(fd, mode),
            Target::Path(_) => rustix::fs::chmod(self.proc_path().as_str(), mode),
        }
    }

    fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        rustix::fs::chownat(self.fd(), c"", uid, gid, AtFlags::EMPTY_PATH)
    }

    fn set_mtime(&self, mtime: Time) -> Result<(), Errno> {
        match self {
            Target::Open(fd) => rustix::fs::futimens(fd, &only_mtime(mtime)),
            Target::Path(fd) => match rustix::fs::utimensat(fd, c"", &only_mtime(mtime), AtFlags::EMPTY_PATH)
            {
                // Before Linux 5.8.
                Err(Errno::INVAL) => rustix::fs::utimensat(
                    CWD,
                    self.proc_path().as_str(),
                    &only_mtime(mtime),
                    AtFlags::empty(),
                ),
                other => other,
            },
        }
    }

    /// The carried extended attributes, sorted by name.
    pub(crate) fn xattrs(&self) -> Result<Xattrs, Errno> {
        let names = match grown(|buffer| self.list(buffer)) {
            Ok(names) => names,
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Xattrs::new()),
            Err(e) => return Err(e),
        };
        let mut found = Xattrs::new();
        for name in names.split(|b| *b == 0).filter(|name| is_carried(name)) {
            match grown(|buffer| self.get(name, buffer)) {
                Ok(value) => found.push((name.to_vec(), value)),
                // Removed meanwhile, or not for us to see.
                Err(Errno::NODATA | Errno::ACCESS | Errno::PERM | Errno::OPNOTSUPP) => {}
                Err(e) => return Err(e),
            }
        }
        found.sort();
        Ok(found)
    }

    /// Owner, mode and xattrs, with the stat already taken.
    pub(crate) fn attrs(&self, stat: &Statx) -> Result<Attrs, Errno> {
        Ok(attrs_of(stat, self.xattrs()?))
    }
}

/// What `call` fills a buffer with, however long it is.
fn grown(call: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut small = [0u8; XATTR_BUFFER_LEN];
    match call(&mut small) {
        Err(Errno::RANGE) => {}
        other => return other.map(|len| small[..len].to_vec()),
    }
    let mut big = vec![0; XATTR_LEN_MAX];
    let len = call(&mut big)?;
    big.truncate(len);
    Ok(big)
}

fn is_carried(name: &[u8]) -> bool {
    let prefixes: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    let known = prefixes.iter().any(|p| name.starts_with(p)) || ACLS.iter().any(|acl| acl.as_bytes() == name);
    known && !NOT_CARRIED.contains(&name)
}

/// Attributes from a stat and xattrs. Times of directories among them.
pub(crate) fn attrs_of(stat: &Statx, xattrs: Xattrs) -> Attrs {
    let dir = stat::kind_of(stat).is_dir();
    Attrs {
        mode: u32::from(stat.stx_mode) & 0o7777,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        owner_names: None,
        xattrs,
        dir_mtime: dir.then(|| stat::fingerprint_of(stat).mtime),
    }
}

/// What to set on an inode.
pub(crate) struct Wanted<'a> {
    pub(crate) kind: Kind,
    pub(crate) attrs: &'a Attrs,
    /// `None` leaves it as it is.
    pub(crate) mtime: Option<Time>,
}

/// Owner and permission bits an inode has now.
#[derive(Clone, Copy)]
pub(crate) struct Now {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u32,
}

impl From<&Statx> for Now {
    fn from(stat: &Statx) -> Now {
        Now { uid: stat.stx_uid, gid: stat.stx_gid, mode: u32::from(stat.stx_mode) & 0o7777 }
    }
}

/// Brings `target` to `wanted`, as far as it may be; `now` is how it is and `xattrs` what it carries.
pub(crate) fn apply(
    target: &Target<'_>,
    wanted: &Wanted<'_>,
    now: Now,
    xattrs: &Xattrs,
) -> Result<(), Errno> {
    let attrs = wanted.attrs;
    let chowned = set_owner(target, attrs, now)?;
    let touched = set_xattrs(target, attrs, xattrs)?;
    // A change of owner clears setuid, an ACL rewrites the group bits: then the mode is set again in any case.
    if wanted.kind != Kind::Symlink && (chowned || touched || now.mode != attrs.mode & 0o7777) {
        tolerate(target.chmod(attrs.mode & 0o7777))?;
    }
    match wanted.mtime {
        Some(mtime) => tolerate(target.set_mtime(mtime)),
        None => Ok(()),
    }
}

/// Not being allowed to is no failure: what was given back says so.
fn tolerate(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => Ok(()),
        other => other,
    }
}

/// True if the owner was changed.
fn set_owner(target: &Target<'_>, attrs: &Attrs, now: Now) -> Result<bool, Errno> {
    let uid = (attrs.uid != now.uid).then_some(attrs.uid);
    let gid = (attrs.gid != now.gid).then_some(attrs.gid);
    if uid.is_none() && gid.is_none() {
        return Ok(false);
    }
    match target.chown(uid, gid) {
        Ok(()) => Ok(true),
        // A group of ours may be given where the owner may not.
        Err(Errno::PERM | Errno::INVAL) if uid.is_some() && gid.is_some() => match target.chown(None, gid) {
            Ok(()) => Ok(true),
            Err(e) => tolerate(Err(e)).map(|()| false),
        },
        Err(e) => tolerate(Err(e)).map(|()| false),
    }
}

/// True if anything was changed.
fn set_xattrs(target: &Target<'_>, attrs: &Attrs, now: &Xattrs) -> Result<bool, Errno> {
    let mut changed = false;
    for (name, _) in now {
        let wanted = attrs.xattrs.binary_search_by(|(n, _)| n.cmp(name)).is_ok();
        // Labels that the system puts on every inode are not taken away, only replaced.
        if !wanted && !name.starts_with(b"security.selinux") {
            changed = true;
            absent_is_fine(target, allow_write_once(target, || target.remove(name)))?;
        }
    }
    for (name, value) in &attrs.xattrs {
        let same = now.binary_search_by(|(n, _)| n.cmp(name)).is_ok_and(|at| now[at].1 == *value);
        if !same && is_carried(name) {
            changed = true;
            absent_is_fine(target, allow_write_once(target, || target.set(name, value)))?;
        }
    }
    Ok(changed)
}

/// User attributes need write permission by mode, even from the owner: it is given for the moment. The mode is set
/// right after.
fn allow_write_once(target: &Target<'_>, act: impl Fn() -> Result<(), Errno>) -> Result<(), Errno> {
    match act() {
        Err(Errno::ACCESS) => {
            let mode = u32::from(stat::stat_fd(target.fd())?.stx_mode) & 0o7777;
            tolerate(target.chmod(mode | 0o600))?;
            act()
        }
        other => other,
    }
}

/// An attribute that cannot be held here, or is gone already, is no failure.
fn absent_is_fine(target: &Target<'_>, result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::NODATA | Errno::RANGE | Errno::TOOBIG) => Ok(()),
        // Said of a full file system, and of attributes too large for an inode.
        Err(Errno::NOSPC) if has_space(target) => Ok(()),
        other => tolerate(other),
    }
}

fn has_space(target: &Target<'_>) -> bool {
    rustix::fs::fstatvfs(target.fd()).is_ok_and(|fs| fs.f_bavail >= SPARE_BLOCKS)
}

/// Sets what is `wanted` on `target` as it is now, and returns how it is then.
pub(crate) fn apply_and_look(
    target: &Target<'_>,
    wanted: &Wanted<'_>,
    identity: crate::key::Identity,
    subject: &[u8],
) -> Result<(Look, Attrs), VolumeError> {
    let doing = "set the attributes of";
    let now = stat::stat_fd(target.fd()).doing(doing, subject)?;
    let xattrs = target.xattrs().doing(doing, subject)?;
    apply(target, wanted, Now::from(&now), &xattrs).doing(doing, subject)?;
    let look = stat::look_fd(identity, target.fd()).doing(doing, subject)?;
    let given = target.attrs(&look.stat).doing(doing, subject)?;
    Ok((look, given))
}
