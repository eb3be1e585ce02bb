//! What the file system below a volume can do, found out once by trying.

use crate::key::{self, Identity};
use crate::stat::{self, only_mtime};
use crate::sys::{self, Writers};
use driftless_core::fitness::FsClass;
use driftless_core::{Kind, Time};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Taken for the clock tick where time stamps are coarse or unknown.
const TICK_NS_UNKNOWN: u64 = 2_000_000_000;
/// Least tick believed in; kernels stamp with a clock of 1 to 10 ms.
const TICK_NS_MIN: u64 = 10_000_000;

/// So many changes take some 20 microseconds, a small part of any tick.
const DISTINCT_CHANGES: u64 = 16;

/// Files in the private directory that things are tried with.
const TRIED_WITH: (&str, &str) = ("probe-a", "probe-b");
/// A file that is made to see how new ones come out.
const CREATED: &str = "probe-new";

/// What a volume's file system can and cannot do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// The file system's name, or its magic number in hexadecimal.
    pub fs: String,
    /// How inodes are identified.
    pub identity: Identity,
    /// `RENAME_EXCHANGE` works: replacing has no window.
    pub exchange: bool,
    /// `RENAME_NOREPLACE` works.
    pub noreplace: bool,
    /// Read leases tell whether somebody writes (for our own files; others need CAP_LEASE). Not on stacked file systems:
    /// there a mapping belongs to the file below.
    pub leases: bool,
    /// User xattrs can be stored.
    pub xattrs: bool,
    /// Reflink copies work.
    pub reflink: bool,
    /// One `syncfs` makes a batch durable and reports errors (ext4, XFS, btrfs; tmpfs trivially).
    pub syncfs: bool,
    /// Time stamps have nanoseconds.
    pub time_ns: bool,
    /// Two changes closer than this may have equal time stamps, in nanoseconds. 0 where a change after a look always
    /// gets another one (multigrain time stamps, Linux 6.13).
    pub tick_ns: u64,
    /// Names differing only in case are one name.
    pub case_folding: bool,
    /// `openat2` works; else paths are walked step by step.
    pub openat2: bool,
    /// Inodes can be opened by handle (CAP_DAC_READ_SEARCH).
    pub open_by_handle: bool,
    /// What a file we create gets when nothing is set.
    pub created: Created,
}

/// Owner and mode of a file as it comes into being in the private directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Created {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits that survive creation.
    pub mode_mask: u32,
    /// True if files are born with extended attributes (security labels).
    pub xattrs: bool,
}

impl Created {
    /// Nothing could be made to look at: owner, mode and attributes of each file are looked at and set.
    const UNKNOWN: Created = Created { uid: u32::MAX, gid: u32::MAX, mode_mask: 0, xattrs: true };
}

/// Magic numbers of file systems (`statfs`) that we know by name; true where `syncfs` is to be trusted.
const KNOWN: [(u64, &str, FsClass, bool); 32] = [
    (0xef53, "ext4", FsClass::Disk, true),
    (0x5846_5342, "xfs", FsClass::Disk, true),
    (0x9123_683e, "btrfs", FsClass::Disk, true),
    (0x0102_1994, "tmpfs", FsClass::Memory, true),
    (0x8584_58f6, "ramfs", FsClass::Memory, true),
    (0xf2f5_2010, "f2fs", FsClass::Disk, false),
    (0xca45_1a4e, "bcachefs", FsClass::Disk, false),
    (0x2fc1_2fc1, "zfs", FsClass::Disk, false),
    (0x3153_464a, "jfs", FsClass::Disk, false),
    (0x5265_4973, "reiserfs", FsClass::Disk, false),
    (0x3434, "nilfs", FsClass::Disk, false),
    (0x4d44, "vfat", FsClass::Disk, false),
    (0x2011_bab0, "exfat", FsClass::Disk, false),
    (0x7366_746e, "ntfs3", FsClass::Disk, false),
    (0x7371_7368, "squashfs", FsClass::Disk, false),
    (0xe0f5_e1e2, "erofs", FsClass::Disk, false),
    (0x9660, "iso9660", FsClass::Disk, false),
    (0x794c_7630, "overlay", FsClass::Stacked, false),
    (0xf15f, "ecryptfs", FsClass::Stacked, false),
    (0x6573_5546, "fuse", FsClass::Fuse, false),
    (0x6969, "nfs", FsClass::Network, false),
    (0xff53_4d42, "cifs", FsClass::Network, false),
    (0xfe53_4d42, "smb2", FsClass::Network, false),
    (0x00c3_6400, "ceph", FsClass::Network, false),
    (0x0102_1997, "9p", FsClass::Network, false),
    (0x5346_414f, "afs", FsClass::Network, false),
    (0x0bd0_0bd0, "lustre", FsClass::Network, false),
    (0x4750_4653, "gpfs", FsClass::Network, false),
    (0x9fa0, "proc", FsClass::Pseudo, false),
    (0x6265_6572, "sysfs", FsClass::Pseudo, false),
    (0x6367_7270, "cgroup2", FsClass::Pseudo, false),
    (0x1cd1, "devpts", FsClass::Pseudo, false),
];

type Known = (u64, &'static str, FsClass, bool);

fn known(fd: impl AsFd) -> Result<(u64, Option<&'static Known>), Errno> {
    // Magic numbers have 32 bits; the field is signed and wider.
    let magic = rustix::fs::fstatfs(fd)?.f_type as u64 & 0xffff_ffff;
    Ok((magic, KNOWN.iter().find(|(m, ..)| *m == magic)))
}

/// Name (else the magic number in hexadecimal) and class of the file system of `fd`. Ones we don't know are taken for
/// local: what they lack is found by trying.
pub(crate) fn fs_of(fd: impl AsFd) -> Result<(String, FsClass), Errno> {
    let (magic, known) = known(fd)?;
    Ok(known.map_or_else(
        || (format!("{magic:#x}"), FsClass::Disk),
        |(_, name, class, _)| ((*name).into(), *class),
    ))
}

impl Capabilities {
    /// Tries things out. Writes only inside `private`, the private directory; without it what would need
    /// writing counts as absent.
    pub(crate) fn probe(
        root: BorrowedFd<'_>,
        private: Option<BorrowedFd<'_>>,
    ) -> Result<Capabilities, Errno> {
        let (fs, class) = fs_of(root)?;
        let trusted = known(root)?.1.is_some_and(|(.., trusted)| *trusted);
        let identity = key::probe(root);
        let mut found = Capabilities {
            fs,
            identity,
            exchange: false,
            noreplace: false,
            // On file systems that pass files of others through, a mapping belongs to the file below.
            leases: !matches!(class, FsClass::Stacked | FsClass::Fuse | FsClass::Network),
            xattrs: false,
            reflink: false,
            syncfs: trusted,
            time_ns: false,
            tick_ns: TICK_NS_UNKNOWN,
            case_folding: false,
            openat2: has_openat2(root),
            open_by_handle: identity == Identity::Handle && can_open_by_handle(root),
            created: Created::default(),
        };
        if let Some(private) = private {
            found.probe_by_writing(private)?;
        }
        Ok(found)
    }

    /// True if a rename can keep what it replaces, or refuse to replace.
    pub fn replaces_safely(&self) -> bool {
        self.exchange || self.noreplace
    }

    /// The files it is tried with stay, so that it can be tried on a disk that has become full as well.
    fn probe_by_writing(&mut self, private: BorrowedFd<'_>) -> Result<(), Errno> {
        // Where directories cannot be locked, two processes that begin at one moment may take each other for writers: one
        // of them ends a moment later, for the lock of the tree.
        let locked = rustix::fs::flock(private, FlockOperation::LockExclusive);
        let result = self.probe_with(private);
        if locked.is_ok() {
            // The lock goes with the descriptor at the latest.
            let _ = rustix::fs::flock(private, FlockOperation::Unlock);
        }
        result
    }

    fn probe_with(&mut self, private: BorrowedFd<'_>) -> Result<(), Errno> {
        let (a, b) = TRIED_WITH;
        let first = open_or_create(private, a)?;
        let second = open_or_create(private, b)?;
        full_is_fine(rustix::io::pwrite(&first, &[1; 4096], 0).map(drop))?;
        self.created = created(private)?;
        self.exchange = match rustix::fs::renameat_with(private, a, private, b, RenameFlags::EXCHANGE) {
            Err(Errno::NOSPC | Errno::DQUOT) => return Err(Errno::NOSPC),
            tried => tried.is_ok(),
        };
        let refused = rustix::fs::renameat_with(private, a, private, b, RenameFlags::NOREPLACE);
        self.noreplace = refused == Err(Errno::EXIST);
        let set = rustix::fs::fsetxattr(&first, "user.driftless.probe", b"1", XattrFlags::empty());
        self.xattrs = full_is_fine(set).is_ok();
        self.reflink = full_is_fine(rustix::fs::ioctl_ficlone(&second, &first)).is_ok();
        let folded = a.to_uppercase();
        self.case_folding =
            stat::stat_name(private, &std::ffi::CString::new(folded).unwrap_or_default()).is_ok();
        self.probe_times(&second)?;
        drop((first, second));
        let read = rustix::fs::openat(private, a, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        self.leases &= sys::writers(&read) == Writers::None;
        Ok(())
    }

    fn probe_times(&mut self, fd: &OwnedFd) -> Result<(), Errno> {
        let odd = Time { sec: 1_000_000_001, nsec: 123_456_789 };
        rustix::fs::futimens(fd, &only_mtime(odd))?;
        self.time_ns = stat::fingerprint_of(&stat::stat_fd(fd)?).mtime == odd;
        if self.time_ns {
            let tick = rustix::time::clock_getres(rustix::time::ClockId::RealtimeCoarse);
            let tick_ns = Time { sec: tick.tv_sec, nsec: tick.tv_nsec as u32 }.as_ns();
            self.tick_ns = if distinct_ctimes(fd)? { 0 } else { tick_ns.max(TICK_NS_MIN) };
        }
        Ok(())
    }
}

/// True if each change in a quick row of changes and looks gets a time stamp of its own: in so short a time, a clock
/// that ticks gives at most two. On a full disk a clock that ticks is the safe answer.
fn distinct_ctimes(fd: &OwnedFd) -> Result<bool, Errno> {
    let mut last = None;
    for at in 0..DISTINCT_CHANGES {
        match rustix::io::pwrite(fd, b"x", at) {
            Err(Errno::NOSPC | Errno::DQUOT) => return Ok(false),
            written => written?,
        };
        let ctime = stat::fingerprint_of(&stat::stat_fd(fd)?).ctime;
        if last.replace(ctime) == Some(ctime) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What does not know a thing says so before it finds that it has no room for it.
fn full_is_fine(tried: Result<(), Errno>) -> Result<(), Errno> {
    match tried {
        Err(Errno::NOSPC | Errno::DQUOT) => Ok(()),
        other => other,
    }
}

fn open_or_create(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))
}

/// Makes a file and looks at it.
fn created(dir: BorrowedFd<'_>) -> Result<Created, Errno> {
    let clean = || {
        // What is not there need not be removed; what cannot be removed is found below.
        let _ = rustix::fs::unlinkat(dir, CREATED, AtFlags::empty());
    };
    clean();
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = match rustix::fs::openat(dir, CREATED, flags, Mode::from_raw_mode(0o777)) {
        Err(Errno::NOSPC | Errno::DQUOT) => return Ok(Created::UNKNOWN),
        other => other?,
    };
    let stat = stat::stat_fd(&fd);
    let xattrs = rustix::fs::flistxattr_query(&fd).is_ok_and(|len| len > 0);
    clean();
    let stat = stat?;
    debug_assert_eq!(stat::kind_of(&stat), Kind::File);
    Ok(Created { uid: stat.stx_uid, gid: stat.stx_gid, mode_mask: u32::from(stat.stx_mode) & 0o777, xattrs })
}

fn has_openat2(root: BorrowedFd<'_>) -> bool {
    rustix::fs::openat2(root, c".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::BENEATH)
        .is_ok()
}

fn can_open_by_handle(root: BorrowedFd<'_>) -> bool {
    let Ok(handle) = sys::name_to_handle(root, c"", false) else { return false };
    sys::open_by_handle(root, handle.kind, handle.bytes()).is_ok()
}

/// Opens the root itself.
pub(crate) fn open_root(path: &std::path::Path) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}
