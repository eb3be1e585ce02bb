//! Looking at one inode: stat and identity together, times, names as the kernel wants them.

use crate::key::{self, Identity};
use driftless_core::{Fingerprint, Kind, Name, NodeKey, Time};
use rustix::fs::{
    AtFlags, FileType, Statx, StatxAttributes, StatxFlags, StatxTimestamp, Timespec, Timestamps,
};
use rustix::io::Errno;
use std::ffi::CStr;
use std::os::fd::AsFd;

/// A name may go to another inode between stat and handle; so often we look again before we say that it is busy.
const LOOKS_MAX: u32 = 16;

const MASK: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME).union(StatxFlags::MNT_ID);
const FLAGS: AtFlags = AtFlags::SYMLINK_NOFOLLOW.union(AtFlags::NO_AUTOMOUNT);

/// A name with its NUL, on the stack.
pub(crate) struct CName([u8; Name::LEN_MAX + 1]);

impl CName {
    pub(crate) fn new(name: &Name) -> CName {
        let mut bytes = [0; Name::LEN_MAX + 1];
        bytes[..name.as_bytes().len()].copy_from_slice(name.as_bytes());
        CName(bytes)
    }

    pub(crate) fn get(&self) -> &CStr {
        // The last byte is always NUL: names have at most 255 bytes.
        CStr::from_bytes_until_nul(&self.0).unwrap_or_default()
    }
}

/// Stat and key of one inode.
pub(crate) struct Look {
    pub(crate) key: NodeKey,
    pub(crate) stat: Statx,
}

impl Look {
    pub(crate) fn kind(&self) -> Kind {
        kind_of(&self.stat)
    }
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        fingerprint_of(&self.stat)
    }
}

pub(crate) fn stat_name(dir: impl AsFd, name: &CStr) -> Result<Statx, Errno> {
    rustix::fs::statx(dir, name, FLAGS, MASK)
}

pub(crate) fn stat_fd(fd: impl AsFd) -> Result<Statx, Errno> {
    rustix::fs::statx(fd, c"", FLAGS | AtFlags::EMPTY_PATH, MASK)
}

/// Stat and key of `name` in `dir`.
pub(crate) fn look_name(identity: Identity, dir: impl AsFd, name: &CStr) -> Result<Look, Errno> {
    for _ in 0..LOOKS_MAX {
        let stat = stat_name(dir.as_fd(), name)?;
        if let Some(key) = key::of_name(identity, dir.as_fd(), name, &stat)? {
            return Ok(Look { key, stat });
        }
    }
    Err(Errno::BUSY)
}

/// As [`look_name`], of what is most probably the inode `key` with that fingerprint: then the stat alone says so.
pub(crate) fn look_name_expecting(
    identity: Identity,
    dir: impl AsFd,
    name: &CStr,
    (key, fingerprint): (&NodeKey, &Fingerprint),
) -> Result<Look, Errno> {
    let stat = stat_name(dir.as_fd(), name)?;
    if fingerprint_of(&stat) == *fingerprint && key::is_same_inode(key, &stat) {
        return Ok(Look { key: key.clone(), stat });
    }
    look_name(identity, dir, name)
}

/// As [`look_name`], of what is most probably the inode `key`, which is open: then no other inode has its number.
pub(crate) fn look_name_held(
    identity: Identity,
    dir: impl AsFd,
    name: &CStr,
    key: &NodeKey,
) -> Result<Look, Errno> {
    let stat = stat_name(dir.as_fd(), name)?;
    if key::is_same_inode(key, &stat) {
        return Ok(Look { key: key.clone(), stat });
    }
    look_name(identity, dir, name)
}

/// As [`look_fd`], of what is most probably the inode `key` with that fingerprint: then the stat alone says so.
pub(crate) fn look_fd_expecting(
    identity: Identity,
    fd: impl AsFd,
    (key, fingerprint): (&NodeKey, &Fingerprint),
) -> Result<Look, Errno> {
    let stat = stat_fd(fd.as_fd())?;
    if fingerprint_of(&stat) == *fingerprint && key::is_same_inode(key, &stat) {
        return Ok(Look { key: key.clone(), stat });
    }
    look_fd(identity, fd)
}

/// Stat and key of what `fd` has open.
pub(crate) fn look_fd(identity: Identity, fd: impl AsFd) -> Result<Look, Errno> {
    let stat = stat_fd(fd.as_fd())?;
    let key = key::of_name(identity, fd, c"", &stat)?.ok_or(Errno::BUSY)?;
    Ok(Look { key, stat })
}

pub(crate) fn kind_of(stat: &Statx) -> Kind {
    match FileType::from_raw_mode(stat.stx_mode.into()) {
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::CharacterDevice => Kind::CharDev,
        FileType::BlockDevice => Kind::BlockDev,
        _ => Kind::File,
    }
}

pub(crate) fn fingerprint_of(stat: &Statx) -> Fingerprint {
    let sized = matches!(kind_of(stat), Kind::File | Kind::Symlink);
    Fingerprint {
        size: if sized { stat.stx_size } else { 0 },
        mtime: time_of(stat.stx_mtime),
        ctime: time_of(stat.stx_ctime),
    }
}

/// Device number as `st_rdev` has it; 0 for all but devices.
pub(crate) fn rdev_of(stat: &Statx) -> u64 {
    match kind_of(stat) {
        Kind::CharDev | Kind::BlockDev => rustix::fs::makedev(stat.stx_rdev_major, stat.stx_rdev_minor),
        _ => 0,
    }
}

/// Which mount an inode was reached through. Without mount ids (before Linux 5.8) the device number has to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MountId(u64);

pub(crate) fn mount_of(stat: &Statx) -> MountId {
    if stat.stx_mask & StatxFlags::MNT_ID.bits() != 0 {
        return MountId(stat.stx_mnt_id);
    }
    MountId(rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor))
}

/// An id of the mount that `fd` is reached through, which is not given again while the machine runs. Before Linux 6.8
/// it is one that a later mount may get.
pub(crate) fn unique_mount_of(fd: impl AsFd) -> Result<u64, Errno> {
    /// `STATX_MNT_ID_UNIQUE`
    const UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);
    let stat = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, UNIQUE | StatxFlags::MNT_ID)?;
    Ok(if stat.stx_mask & UNIQUE.bits() != 0 { stat.stx_mnt_id } else { mount_of(&stat).0 })
}

/// True if the inode is not to be written to at all.
pub(crate) fn is_fixed(stat: &Statx) -> bool {
    stat.stx_attributes.intersects(StatxAttributes::IMMUTABLE | StatxAttributes::APPEND)
}

fn time_of(t: StatxTimestamp) -> Time {
    Time { sec: t.tv_sec, nsec: t.tv_nsec }
}

/// Time stamps that set the modification time and leave the access time alone.
pub(crate) fn only_mtime(mtime: Time) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.sec, tv_nsec: i64::from(mtime.nsec.min(999_999_999)) },
    }
}

/// Now, by the clock that file systems stamp with.
pub(crate) fn now() -> Time {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    // A clock gives 0 to 999,999,999 nanoseconds.
    Time { sec: t.tv_sec, nsec: t.tv_nsec as u32 }
}

/// True if `then` is within `distance_ns` of `now`, before or after. (A clock that was put back must not make a
/// file look young for years.)
pub(crate) fn is_near(then: Time, now: Time, distance_ns: u64) -> bool {
    let ns = |t: Time| i128::from(t.sec) * 1_000_000_000 + i128::from(t.nsec);
    (ns(now) - ns(then)).unsigned_abs() < u128::from(distance_ns)
}
