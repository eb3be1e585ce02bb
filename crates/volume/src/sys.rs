//! The calls of the system that have no safe wrapper in our dependencies: file handles, fanotify, leases, the local time.
//!
//! All `unsafe` code of the crate is here. Each block hands the kernel pointers to values that live on the
//! stack of the caller for the whole call, with lengths taken from those values; the kernel keeps none of them.
#![allow(unsafe_code)]

pub(crate) use driftless_core::limbo::Writers;
use rustix::io::Errno;
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Longest handle the kernel makes (`MAX_HANDLE_SZ`).
pub(crate) const HANDLE_LEN_MAX: usize = 128;
/// A handle good for comparing only, on file systems that cannot open by handle (Linux 6.5).
const AT_HANDLE_FID: i32 = 0x200;
/// Which signal tells of a broken lease (`fcntl`); not among libc's constants.
const F_SETSIG: i32 = 10;

/// The day of the week (0 = Sunday) and the minute of the day that this machine's clocks show at a time; `None` for one that
/// has no calendar date.
pub fn local_time(unix_s: i64) -> Option<(u32, u32)> {
    // SAFETY: an all-zero `tm` is valid (its zone pointer is null and not read); both pointers are to locals of this call, and
    // `localtime_r` writes only to the second and keeps neither.
    let tm = unsafe {
        let mut tm: libc::tm = std::mem::zeroed();
        let at = unix_s as libc::time_t;
        if libc::localtime_r(&at, &mut tm).is_null() {
            return None;
        }
        tm
    };
    Some((u32::try_from(tm.tm_wday).ok()?, u32::try_from(tm.tm_hour * 60 + tm.tm_min).ok()?))
}

/// `struct file_handle` with room for the longest one.
#[repr(C)]
struct RawHandle {
    handle_bytes: u32,
    handle_type: i32,
    f_handle: [u8; HANDLE_LEN_MAX],
}

/// What `name_to_handle_at` gives: an opaque identity of an inode, good for as long as it lives.
pub(crate) struct Handle {
    pub(crate) kind: i32,
    len: usize,
    bytes: [u8; HANDLE_LEN_MAX],
}
impl Handle {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The handle of `name` in `dir` (not following a symlink); of `dir` itself if `name` is empty.
/// `comparing_only` asks for the kind that need not open.
pub(crate) fn name_to_handle(dir: impl AsFd, name: &CStr, comparing_only: bool) -> Result<Handle, Errno> {
    let mut raw =
        RawHandle { handle_bytes: HANDLE_LEN_MAX as u32, handle_type: 0, f_handle: [0; HANDLE_LEN_MAX] };
    let mut mount_id = 0i32;
    let flags = if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 }
        | if comparing_only { AT_HANDLE_FID } else { 0 };
    // SAFETY: `raw` has the layout of struct file_handle, says how much room it has, and lives until the call
    // returns, as do `name` (NUL-terminated) and `mount_id`.
    let r = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            dir.as_fd().as_raw_fd(),
            name.as_ptr(),
            &raw mut raw,
            &raw mut mount_id,
            flags,
        )
    };
    check(r)?;
    let len = (raw.handle_bytes as usize).min(HANDLE_LEN_MAX);
    Ok(Handle { kind: raw.handle_type, len, bytes: raw.f_handle })
}

/// Opens what has this handle on the file system of `mount`, as a path descriptor. Needs CAP_DAC_READ_SEARCH.
pub(crate) fn open_by_handle(mount: impl AsFd, kind: i32, bytes: &[u8]) -> Result<OwnedFd, Errno> {
    if bytes.len() > HANDLE_LEN_MAX {
        return Err(Errno::INVAL);
    }
    let mut raw =
        RawHandle { handle_bytes: bytes.len() as u32, handle_type: kind, f_handle: [0; HANDLE_LEN_MAX] };
    raw.f_handle[..bytes.len()].copy_from_slice(bytes);
    // SAFETY: `raw` has the layout of struct file_handle with `handle_bytes` valid bytes, and outlives the call.
    let r = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_fd().as_raw_fd(),
            &raw mut raw,
            libc::O_PATH | libc::O_CLOEXEC,
        )
    };
    owned(check(r)?)
}

/// Makes a fanotify group.
pub(crate) fn fanotify_init(flags: u32) -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers are passed.
    let r =
        unsafe { libc::fanotify_init(flags, (libc::O_RDONLY | libc::O_LARGEFILE | libc::O_CLOEXEC) as u32) };
    owned(check(r.into())?)
}

/// Adds a mark for what `target` refers to.
pub(crate) fn fanotify_mark(group: impl AsFd, flags: u32, mask: u64, target: impl AsFd) -> Result<(), Errno> {
    // SAFETY: a null path means "the descriptor itself"; nothing else is a pointer.
    let r = unsafe {
        libc::fanotify_mark(
            group.as_fd().as_raw_fd(),
            flags,
            mask,
            target.as_fd().as_raw_fd(),
            std::ptr::null(),
        )
    };
    check(r.into()).map(drop)
}

/// As [`fanotify_mark`], for what is at `path` below `dir`.
pub(crate) fn fanotify_mark_at(
    group: impl AsFd,
    flags: u32,
    mask: u64,
    dir: impl AsFd,
    path: &CStr,
) -> Result<(), Errno> {
    let (group, dir) = (group.as_fd().as_raw_fd(), dir.as_fd().as_raw_fd());
    // SAFETY: the path is a string with a NUL at its end that outlives the call; nothing else is a pointer.
    let r = unsafe { libc::fanotify_mark(group, flags, mask, dir, path.as_ptr()) };
    check(r.into()).map(drop)
}

/// True if inotify can watch the directory behind `dir`.
pub(crate) fn has_inotify(dir: impl AsFd) -> bool {
    use rustix::fs::inotify;
    let path = format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd());
    inotify::init(inotify::CreateFlags::CLOEXEC)
        .and_then(|group| inotify::add_watch(&group, path.as_str(), inotify::WatchFlags::CREATE))
        .is_ok()
}

/// A read lease on a file: until it is dropped, whoever wants to open the file for writing, or to cut it, waits.
pub(crate) struct ReadLease<'a>(BorrowedFd<'a>);

impl<'a> ReadLease<'a> {
    /// Takes one on the file behind `fd`, which is open for reading only.
    ///
    /// # Errors
    /// What is known of writers then: some, or that nobody can tell.
    pub(crate) fn take(fd: BorrowedFd<'a>) -> Result<ReadLease<'a>, Writers> {
        // A writer that opens the file while we hold the lease makes the kernel signal us; the default signal, SIGIO,
        // would end the process. SIGURG is ignored by default.
        if fcntl(fd.as_raw_fd(), F_SETSIG, libc::SIGURG).is_err() {
            return Err(Writers::Unknown);
        }
        match fcntl(fd.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) {
            Ok(()) => Ok(ReadLease(fd)),
            Err(Errno::AGAIN) => Err(Writers::Some),
            Err(_) => Err(Writers::Unknown),
        }
    }
}

impl Drop for ReadLease<'_> {
    fn drop(&mut self) {
        // Closing the descriptor gives the lease back as well, so a failure here is harmless.
        let _ = fcntl(self.0.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK);
    }
}

/// Asks for a read lease on the file behind `fd` (opened read-only) and gives it back at once: a held lease stalls
/// writers.
pub(crate) fn writers(fd: impl AsFd) -> Writers {
    ReadLease::take(fd.as_fd()).map_or_else(|writers| writers, |_lease| Writers::None)
}

/// Has the kernel begin to write out what is dirty of a file, and does not wait for it.
pub(crate) fn begin_writing_out(fd: impl AsFd) {
    // SAFETY: the call takes a descriptor, which is open, and numbers. Length 0 means to the end of the file.
    // It only asks for something to be done sooner: that it cannot be done is no harm.
    let _ = unsafe { libc::sync_file_range(fd.as_fd().as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Has `len` bytes of `target` from `to` share their blocks with those of `source` from `from`: whole blocks of a file system that can.
pub(crate) fn share_blocks(
    source: impl AsFd,
    from: u64,
    target: impl AsFd,
    to: u64,
    len: u64,
) -> Result<(), Errno> {
    let range = libc::file_clone_range {
        src_fd: source.as_fd().as_raw_fd().into(),
        src_offset: from,
        src_length: len,
        dest_offset: to,
    };
    // SAFETY: the request takes a pointer to this structure, which outlives the call; both descriptors in it are open.
    check(unsafe { libc::ioctl(target.as_fd().as_raw_fd(), libc::FICLONERANGE, &raw const range) }.into())
        .map(drop)
}

fn fcntl(fd: RawFd, command: i32, argument: i32) -> Result<(), Errno> {
    // SAFETY: the commands used here take an integer and no pointer.
    check(unsafe { libc::fcntl(fd, command, argument) }.into()).map(drop)
}

fn check(r: i64) -> Result<i64, Errno> {
    if r >= 0 {
        return Ok(r);
    }
    // SAFETY: errno is thread-local and always readable.
    Err(Errno::from_raw_os_error(unsafe { *libc::__errno_location() }))
}

fn owned(r: i64) -> Result<OwnedFd, Errno> {
    let fd = RawFd::try_from(r).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel has just given us this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags};

    #[test]
    fn nobody_begins_to_write_while_a_lease_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "x").unwrap();
        let open = |flags| rustix::fs::open(&path, flags, Mode::empty());
        let fd = open(OFlags::RDONLY).unwrap();
        let Ok(lease) = ReadLease::take(fd.as_fd()) else {
            eprintln!("skipped: no leases here");
            return;
        };
        assert_eq!(open(OFlags::WRONLY | OFlags::NONBLOCK).unwrap_err(), Errno::AGAIN);
        assert!(open(OFlags::RDONLY).is_ok());
        drop(lease);
        let writer = open(OFlags::WRONLY | OFlags::NONBLOCK).unwrap();
        assert_eq!(ReadLease::take(fd.as_fd()).err(), Some(Writers::Some));
        drop(writer);
        assert_eq!(writers(&fd), Writers::None);
    }
}
