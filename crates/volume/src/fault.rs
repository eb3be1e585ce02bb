//! Errors that no test can get from a healthy disk, for tests only: without the feature `faults` nothing here does
//! anything.

#[cfg(feature = "faults")]
use std::sync::Mutex;
#[cfg(feature = "faults")]
use std::sync::atomic::{AtomicU32, Ordering};

#[cfg(feature = "faults")]
static SYNCS_TO_FAIL: AtomicU32 = AtomicU32::new(0);

/// The next `n` syncs of the process fail, as after a write error of the device.
#[cfg(feature = "faults")]
pub fn fail_syncs(n: u32) {
    SYNCS_TO_FAIL.store(n, Ordering::SeqCst);
}

/// How many of them are still to come.
#[cfg(feature = "faults")]
pub fn syncs_to_fail() -> u32 {
    SYNCS_TO_FAIL.load(Ordering::SeqCst)
}

#[cfg(feature = "faults")]
static BAD_FILES: Mutex<Vec<(u64, Bad)>> = Mutex::new(Vec::new());

/// What reading a file for somebody else comes to.
#[cfg(feature = "faults")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bad {
    /// The device fails.
    Unreadable,
    /// It gives other bytes.
    Damaged,
}

/// From now on, files with these inode numbers are bad, and no others. Their looks stay as they were.
#[cfg(feature = "faults")]
pub fn set_bad_files(files: &[(u64, Bad)]) {
    // A test that panicked with it locked has failed already.
    let mut bad = BAD_FILES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    *bad = files.to_vec();
}

/// Called with what was read of a file that is sent.
#[cfg(feature = "faults")]
pub(crate) fn read(fd: rustix::fd::BorrowedFd<'_>, bytes: &mut [u8]) -> Result<(), rustix::io::Errno> {
    let bad = BAD_FILES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if bad.is_empty() {
        return Ok(());
    }
    let ino = rustix::fs::fstat(fd)?.st_ino;
    match bad.iter().find(|(n, _)| *n == ino) {
        Some((_, Bad::Unreadable)) => Err(rustix::io::Errno::IO),
        Some((_, Bad::Damaged)) => {
            bytes.iter_mut().for_each(|b| *b = !*b);
            Ok(())
        }
        None => Ok(()),
    }
}

/// Called with what was read of a file that is sent.
#[cfg(not(feature = "faults"))]
pub(crate) fn read(_: rustix::fd::BorrowedFd<'_>, _: &mut [u8]) -> Result<(), rustix::io::Errno> {
    Ok(())
}

/// Called before each sync.
#[cfg(feature = "faults")]
pub(crate) fn sync() -> Result<(), rustix::io::Errno> {
    let fail = SYNCS_TO_FAIL.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
    if fail.is_ok() { Err(rustix::io::Errno::IO) } else { Ok(()) }
}

/// Called before each sync.
#[cfg(not(feature = "faults"))]
pub(crate) fn sync() -> Result<(), rustix::io::Errno> {
    Ok(())
}
