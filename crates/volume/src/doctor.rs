//! Trying out a directory's file system: what it can, how much of it, and what that means.
//!
//! Everything is tried in a private directory below the one that is examined, which is removed again; its name is a
//! reserved one, so that a sync that runs there does not see it.

use crate::capability::{self, Capabilities};
use crate::error::{Context, VolumeError};
use crate::key::{self, Identity};
use crate::sys;
use crate::watch::{self, WatchMode};
use driftless_core::Name;
use driftless_core::fitness::{self, Finding, Fitness, FsClass, Weight};
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Mode, OFlags, SeekFrom, StatVfs, StatVfsMountFlags, XattrFlags,
};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// With less free space than this, or fewer free inodes, the first larger batch fills the file system.
const FREE_BYTES_MIN: u64 = 64 << 20;
const FREE_INODES_MIN: u64 = 1000;
/// Where the second piece of a file with a hole begins: beyond any block size.
const HOLE_LEN: u64 = 8 << 20;

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Examination {
    /// The file system's name, or its magic number in hexadecimal.
    pub fs: String,
    /// What it is good for.
    pub fitness: Fitness,
    /// Why it is not good for everything, the gravest first.
    pub reasons: Vec<&'static str>,
    /// All that was tried; empty if nothing could be.
    pub findings: Vec<Finding>,
}

/// Name and class of the file system that has `root`. Writes nothing.
///
/// # Errors
/// If it is no directory, or cannot be opened.
pub fn file_system_of(root: &Path) -> Result<(String, FsClass), VolumeError> {
    let at = root.as_os_str().as_bytes();
    let fd = capability::open_root(root).doing("open", at)?;
    capability::fs_of(&fd).doing("ask for the file system of", at)
}

/// Examines the file system that has `root`.
///
/// # Errors
/// If it is no directory, or cannot be opened or looked at. That nothing can be written there is a finding.
pub fn examine(root: &Path) -> Result<Examination, VolumeError> {
    let at = root.as_os_str().as_bytes();
    let doing = "examine";
    let fd = capability::open_root(root).doing("open", at)?;
    let (fs, class) = capability::fs_of(&fd).doing(doing, at)?;
    let space = rustix::fs::fstatvfs(&fd).doing(doing, at)?;
    let trial = match Trial::begin(&fd) {
        Ok(trial) => trial,
        Err(e) => {
            let read_only = space.f_flag.contains(StatVfsMountFlags::RDONLY) || e == Errno::ROFS;
            let why = if read_only {
                "it is mounted read-only"
            } else {
                "nothing can be written in it (permission, flags, or a file system that holds no files)"
            };
            let reasons = fitness::of_class(class).map(|(_, text)| text).into_iter().chain([why]).collect();
            return Ok(Examination { fs, fitness: Fitness::NotFit, reasons, findings: Vec::new() });
        }
    };
    let dir = trial.dir.as_fd();
    let can = Capabilities::probe(fd.as_fd(), Some(dir)).doing(doing, at)?;
    let of_class = fitness::of_class(class).map(|(_, text)| text);
    // Its weight is in the verdict already.
    let mut findings = vec![finding("local_disk", of_class.is_none(), Weight::Note, of_class.unwrap_or(""))];
    findings.extend(renames(&can));
    findings.extend(contents(dir, &can));
    findings.extend(attributes(dir, &can));
    findings.extend(names_and_kinds(dir, &can, &space));
    findings.extend(watching(&fd, &can));
    findings.extend(room(&space));
    let recognised = can.identity != Identity::InodeAndBirth || key::has_birth_time(&fd);
    let (fitness, reasons) = fitness::judge(class, can.replaces_safely(), recognised, &findings);
    Ok(Examination { fs, fitness, reasons, findings })
}

/// A private directory in which things are tried; gone when this is dropped.
struct Trial<'a> {
    root: BorrowedFd<'a>,
    name: Vec<u8>,
    dir: OwnedFd,
}

impl<'a> Trial<'a> {
    fn begin(root: &'a OwnedFd) -> Result<Trial<'a>, Errno> {
        let name = [Name::STAGED_PREFIX, format!("doctor-{}", std::process::id()).as_bytes()].concat();
        // One that a process of this number has left is emptied by the end of this.
        match rustix::fs::mkdirat(root, &name[..], Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(root, &name[..], flags, Mode::empty())?;
        let trial = Trial { root: root.as_fd(), name, dir };
        rustix::fs::openat(&trial.dir, FIRST, CREATE, Mode::from_raw_mode(0o600))?;
        Ok(trial)
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        for name in crate::dirfd::names_in(&self.dir).unwrap_or_default() {
            // What cannot be removed keeps the directory: both are left to be seen.
            let _ = rustix::fs::unlinkat(&self.dir, &name, AtFlags::empty());
        }
        let _ = rustix::fs::unlinkat(self.root, &self.name[..], AtFlags::REMOVEDIR);
    }
}

const CREATE: OFlags = OFlags::RDWR.union(OFlags::CREATE).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const FIRST: &str = "file";

fn finding(name: &'static str, there: bool, weight: Weight, when_absent: &'static str) -> Finding {
    Finding { name, there, value: String::new(), when_absent, weight }
}

fn renames(can: &Capabilities) -> Vec<Finding> {
    vec![
        finding(
            "handles",
            can.identity != Identity::InodeAndBirth,
            Weight::Limit,
            "renames are recognised less surely, and changes are found by crawling only",
        ),
        finding(
            "open_by_handle",
            can.open_by_handle,
            Weight::Note,
            "what has moved is found by crawling (needs root, or a file system with exportable handles)",
        ),
        finding(
            "exchange",
            can.exchange,
            Weight::Limit,
            "a file that a user puts in place while it is being replaced can be lost: it is looked at before, not after",
        ),
        finding(
            "noreplace",
            can.noreplace,
            Weight::Limit,
            "a new file is put in place by a link, which not every kind of file has",
        ),
        finding(
            "leases",
            can.leases,
            Weight::Limit,
            "a file that a program has open goes unnoticed: what is replaced is kept ten minutes and compared",
        ),
        finding("openat2", can.openat2, Weight::Note, "paths are walked step by step, which is slower"),
    ]
}

fn contents(dir: BorrowedFd<'_>, can: &Capabilities) -> Vec<Finding> {
    let tmpfile = rustix::fs::openat(dir, ".", OFlags::TMPFILE | OFlags::RDWR, Mode::from_raw_mode(0o600));
    let (seek, punch) = holes(dir).unwrap_or((false, false));
    vec![
        finding("syncfs", can.syncfs, Weight::Note, "every file is synced by itself, which is slower"),
        finding("reflinks", can.reflink, Weight::Note, "copies of equal contents take time and space"),
        finding("tmpfiles", tmpfile.is_ok(), Weight::Note, "nothing: files without a name are not used"),
        finding(
            "holes",
            seek,
            Weight::Limit,
            "sparse files are read and hashed whole, and may take up all their length",
        ),
        finding("punch_hole", punch, Weight::Note, "nothing: holes are made by leaving them out"),
    ]
}

/// Whether holes are told, and whether they can be made in what was written.
fn holes(dir: BorrowedFd<'_>) -> Result<(bool, bool), Errno> {
    let fd = rustix::fs::openat(dir, "sparse", CREATE, Mode::from_raw_mode(0o600))?;
    rustix::io::pwrite(&fd, &[1; 4096], 0)?;
    rustix::io::pwrite(&fd, &[1; 4096], HOLE_LEN)?;
    rustix::fs::fsync(&fd)?;
    let told = rustix::fs::seek(&fd, SeekFrom::Hole(0)).is_ok_and(|at| at < HOLE_LEN);
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok((told, rustix::fs::fallocate(&fd, flags, 0, 4096).is_ok()))
}

/// An access list that gives user 1 the right to read, as the kernel takes it.
const ACL: [u8; 44] = {
    let entries: [(u16, u16, u32); 5] =
        [(1, 6, u32::MAX), (2, 4, 1), (4, 4, u32::MAX), (0x10, 4, u32::MAX), (0x20, 0, u32::MAX)];
    let mut bytes = [0; 44];
    bytes[0] = 2;
    let mut i = 0;
    while i < entries.len() {
        let (tag, permissions, id) = entries[i];
        let (t, p, d) = (tag.to_le_bytes(), permissions.to_le_bytes(), id.to_le_bytes());
        let all = [t[0], t[1], p[0], p[1], d[0], d[1], d[2], d[3]];
        let mut j = 0;
        while j < all.len() {
            bytes[4 + i * 8 + j] = all[j];
            j += 1;
        }
        i += 1;
    }
    bytes
};

fn attributes(dir: BorrowedFd<'_>, can: &Capabilities) -> Vec<Finding> {
    let file = rustix::fs::openat(dir, FIRST, CREATE, Mode::from_raw_mode(0o600));
    let holds = |name: &str, value: &[u8]| {
        file.as_ref().is_ok_and(|fd| rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()).is_ok())
    };
    let root = rustix::process::geteuid().is_root();
    let mut times = finding("time_ns", can.time_ns, Weight::Limit, "times are cut to what it holds");
    times.value = match can.tick_ns {
        0 => "every change gets a time of its own".into(),
        tick_ns => format!("tick {} ms", tick_ns.div_ceil(1_000_000)),
    };
    vec![
        finding("user_xattrs", can.xattrs, Weight::Limit, "extended attributes are not kept here"),
        finding(
            "trusted_xattrs",
            holds("trusted.driftless.probe", b"1"),
            Weight::Note,
            "attributes of root are not kept here (needs root)",
        ),
        finding(
            "acls",
            holds("system.posix_acl_access", &ACL),
            Weight::Limit,
            "access lists are not kept here",
        ),
        times,
        finding(
            "owners",
            root,
            Weight::Note,
            "files belong to whoever runs this (giving them away needs root)",
        ),
    ]
}

fn names_and_kinds(dir: BorrowedFd<'_>, can: &Capabilities, space: &StatVfs) -> Vec<Finding> {
    let longest = "n".repeat(Name::LEN_MAX);
    let long = rustix::fs::openat(dir, longest.as_str(), CREATE, Mode::from_raw_mode(0o600));
    let odd = rustix::fs::openat(dir, &b"\xff\xfe\n:?"[..], CREATE, Mode::from_raw_mode(0o600));
    let mut length = finding("long_names", long.is_ok(), Weight::Limit, "files with longer names wait");
    length.value = format!("{} bytes", space.f_namemax);
    let make = |name: &str, kind: FileType, dev: u64| {
        rustix::fs::mknodat(dir, name, kind, Mode::from_raw_mode(0o600), dev).is_ok()
    };
    let null = rustix::fs::makedev(1, 3);
    vec![
        finding(
            "case_sensitive",
            !can.case_folding,
            Weight::Limit,
            "of names that differ only in case one can be held; the others wait",
        ),
        length,
        finding(
            "any_bytes",
            odd.is_ok(),
            Weight::Limit,
            "names that are no text, or have characters it forbids, wait",
        ),
        finding(
            "hard_links",
            rustix::fs::linkat(dir, FIRST, dir, "link", AtFlags::empty()).is_ok(),
            Weight::Limit,
            "files with several names wait",
        ),
        finding(
            "symlinks",
            rustix::fs::symlinkat("nowhere", dir, "symlink").is_ok(),
            Weight::Limit,
            "symbolic links wait",
        ),
        finding(
            "fifos_and_sockets",
            make("fifo", FileType::Fifo, 0) && make("socket", FileType::Socket, 0),
            Weight::Limit,
            "FIFOs and sockets wait",
        ),
        finding(
            "devices",
            make("device", FileType::CharacterDevice, null),
            Weight::Note,
            "device files wait (needs root)",
        ),
    ]
}

fn watching(root: &OwnedFd, can: &Capabilities) -> Vec<Finding> {
    let mode = if can.identity == Identity::InodeAndBirth { None } else { watch::mode_for(root) };
    vec![
        finding(
            "watch_file_system",
            mode == Some(WatchMode::FileSystem),
            Weight::Note,
            "each directory is watched by itself (watching all at once needs root)",
        ),
        finding(
            "watch_directories",
            mode.is_some(),
            Weight::Limit,
            "changes are found by crawling only: at the start of each run",
        ),
        finding("inotify", sys::has_inotify(root), Weight::Note, "nothing: fanotify is used"),
    ]
}

fn room(space: &StatVfs) -> Vec<Finding> {
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let mut bytes = finding("free_space", free >= FREE_BYTES_MIN, Weight::Limit, "it is nearly full");
    bytes.value = format!("{} MiB", free >> 20);
    // File systems without a fixed number of inodes say that they have none.
    let unbounded = space.f_files == 0;
    let mut inodes = finding(
        "free_inodes",
        unbounded || space.f_favail >= FREE_INODES_MIN,
        Weight::Limit,
        "it has room for few more files",
    );
    inodes.value = if unbounded { "no limit".into() } else { space.f_favail.to_string() };
    vec![bytes, inodes]
}
