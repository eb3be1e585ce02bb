//! What the file system below a volume can do, found out once by trying.

use crate::key::{self, Identity};
use crate::stat::{self, only_mtime};
use crate::sys::{self, Writers};
use driftless_core::{Kind, Time};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Taken for the clock tick where time stamps are coarse or unknown.
const TICK_NS_UNKNOWN: u64 = 2_000_000_000;
/// Least tick believed in; kernels stamp with a clock of 1 to 10 ms.
const TICK_NS_MIN: u64 = 10_000_000;

/// So many changes take some 20 microseconds, a small part of any tick.
const DISTINCT_CHANGES: u64 = 16;

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

/// Magic numbers of file systems (`statfs`) that we know by name; true where `syncfs` is to be trusted.
const KNOWN: [(u64, &str, bool); 13] = [
    (0xef53, "ext4", true),
    (0x5846_5342, "xfs", true),
    (0x9123_683e, "btrfs", true),
    (0x0102_1994, "tmpfs", true),
    (0xf2f5_2010, "f2fs", false),
    (0xca45_1a4e, "bcachefs", false),
    (0x2fc1_2fc1, "zfs", false),
    (0x794c_7630, "overlay", false),
    (0x6969, "nfs", false),
    (0x6573_5546, "fuse", false),
    (0xff53_4d42, "cifs", false),
    (0xfe53_4d42, "smb2", false),
    (0x4d44, "vfat", false),
];

/// Names of file systems that pass files of others through.
const STACKED: [&str; 2] = ["overlay", "fuse"];

impl Capabilities {
    /// Tries things out. Writes only inside `private`, the private directory; without it what would need
    /// writing counts as absent.
    pub(crate) fn probe(
        root: BorrowedFd<'_>,
        private: Option<BorrowedFd<'_>>,
    ) -> Result<Capabilities, Errno> {
        let magic = rustix::fs::fstatfs(root)?.f_type as u64 & 0xffff_ffff;
        let known = KNOWN.iter().find(|(m, ..)| *m == magic);
        let identity = key::probe(root);
        let mut found = Capabilities {
            fs: known.map_or_else(|| format!("{magic:#x}"), |(_, name, _)| (*name).to_owned()),
            identity,
            exchange: false,
            noreplace: false,
            leases: known.is_none_or(|(_, name, _)| !STACKED.contains(name)),
            xattrs: false,
            reflink: false,
            syncfs: known.is_some_and(|(.., trusted)| *trusted),
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

    fn probe_by_writing(&mut self, private: BorrowedFd<'_>) -> Result<(), Errno> {
        let name = |which: &str| format!("probe-{}-{which}", std::process::id());
        let (a, b) = (name("a"), name("b"));
        let clean = || {
            for name in [&a, &b] {
                // What is not there need not be removed.
                let _ = rustix::fs::unlinkat(private, name, AtFlags::empty());
            }
        };
        clean();
        let result = self.probe_with(private, &a, &b);
        clean();
        result
    }

    fn probe_with(&mut self, private: BorrowedFd<'_>, a: &str, b: &str) -> Result<(), Errno> {
        let first = create(private, a)?;
        let second = create(private, b)?;
        rustix::io::write(&first, &[1; 4096])?;
        self.created = created(&first)?;
        self.exchange = rustix::fs::renameat_with(private, a, private, b, RenameFlags::EXCHANGE).is_ok();
        let refused = rustix::fs::renameat_with(private, a, private, b, RenameFlags::NOREPLACE);
        self.noreplace = refused == Err(Errno::EXIST);
        self.xattrs =
            rustix::fs::fsetxattr(&first, "user.driftless.probe", b"1", XattrFlags::empty()).is_ok();
        self.reflink = rustix::fs::ioctl_ficlone(&second, &first).is_ok();
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

    /// What this file system does not hold or do, in words, for `doctor` and warnings.
    pub fn shortcomings(&self) -> Vec<&'static str> {
        let list = [
            (self.exchange, "cannot exchange two names: a replaced file is looked at before, not after"),
            (self.leases, "has no leases: a program that holds a file open for writing goes unnoticed"),
            (self.xattrs, "holds no extended attributes"),
            (self.time_ns, "holds no nanosecond times"),
            (self.syncfs, "syncs file by file"),
            (!self.case_folding, "does not tell names apart that differ in case only"),
            (
                self.identity != Identity::InodeAndBirth,
                "has no file handles: renames are recognised less surely",
            ),
        ];
        list.into_iter().filter(|(good, _)| !good).map(|(_, text)| text).collect()
    }
}

/// True if each change in a quick row of changes and looks gets a time stamp of its own: in so short a time, a clock
/// that ticks gives at most two.
fn distinct_ctimes(fd: &OwnedFd) -> Result<bool, Errno> {
    let mut last = None;
    for at in 0..DISTINCT_CHANGES {
        rustix::io::pwrite(fd, b"x", at)?;
        let ctime = stat::fingerprint_of(&stat::stat_fd(fd)?).ctime;
        if last.replace(ctime) == Some(ctime) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn create(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o777))
}

fn created(fd: &OwnedFd) -> Result<Created, Errno> {
    let stat = stat::stat_fd(fd)?;
    debug_assert_eq!(stat::kind_of(&stat), Kind::File);
    let xattrs = rustix::fs::flistxattr_query(fd).is_ok_and(|len| len > 0);
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
