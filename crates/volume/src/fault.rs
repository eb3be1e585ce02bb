//! Errors that no test can get from a healthy disk, for tests only: without the features `faults` and `crash-points` nothing
//! here does anything. With `faults` a test in the process says what fails; with `crash-points` `DRIFTLESS_FAIL_AT` does:
//! `sync:N:EIO` for the N-th sync of a file system, `sync-file:N:EIO` for the N-th of a staged file.

#[cfg(feature = "faults")]
use std::sync::Mutex;
#[cfg(feature = "faults")]
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

#[cfg(feature = "faults")]
static SYNCS_TO_FAIL: AtomicU32 = AtomicU32::new(0);
#[cfg(feature = "faults")]
static SEALS_TO_FAIL: AtomicU32 = AtomicU32::new(0);

/// The next `n` syncs of whole file systems fail: what has to be durable is not only what was staged.
#[cfg(feature = "faults")]
pub fn fail_file_system_syncs(n: u32) {
    SEALS_TO_FAIL.store(n, Ordering::SeqCst);
}

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
static USERS_WITHIN: AtomicBool = AtomicBool::new(false);

/// From now on, watchers also tell what this process does: a test is a user of the trees that it has replicas of.
#[cfg(feature = "faults")]
pub fn users_within_this_process() {
    USERS_WITHIN.store(true, Ordering::SeqCst);
}

/// True if users of the trees are in this process.
#[cfg(feature = "faults")]
pub(crate) fn users_within() -> bool {
    USERS_WITHIN.load(Ordering::SeqCst)
}

/// True if users of the trees are in this process.
#[cfg(not(feature = "faults"))]
pub(crate) fn users_within() -> bool {
    false
}

/// What somebody does.
#[cfg(feature = "faults")]
pub type Deed = Box<dyn FnOnce() + Send>;

#[cfg(feature = "faults")]
static BEFORE_MOVE: Mutex<Option<Deed>> = Mutex::new(None);

/// What a user does between the last look at the next inode that is moved within a volume and its move.
#[cfg(feature = "faults")]
pub fn do_before_move(deed: Deed) {
    *BEFORE_MOVE.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(deed);
}

/// Called between the last look at an inode and its move.
#[cfg(feature = "faults")]
pub(crate) fn before_move() {
    let deed = BEFORE_MOVE.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    if let Some(deed) = deed {
        deed();
    }
}

/// Called between the last look at an inode and its move.
#[cfg(not(feature = "faults"))]
pub(crate) fn before_move() {}

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

/// The digest of a file of `size` bytes that somebody else asks for, if it is not what was read.
#[cfg(feature = "faults")]
pub(crate) fn digest(
    fd: rustix::fd::BorrowedFd<'_>,
    size: u64,
    digest: &mut Option<driftless_core::Digest>,
) -> Result<(), rustix::io::Errno> {
    if digest.is_none() || BAD_FILES.lock().unwrap_or_else(std::sync::PoisonError::into_inner).is_empty() {
        return Ok(());
    }
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
    let got = rustix::io::pread(fd, &mut bytes[..], 0)?;
    bytes.truncate(got);
    read(fd, &mut bytes)?;
    *digest = Some(driftless_core::Digest::of(&bytes));
    Ok(())
}

/// The digest of a file of `size` bytes that somebody else asks for, if it is not what was read.
#[cfg(not(feature = "faults"))]
pub(crate) fn digest(
    _: rustix::fd::BorrowedFd<'_>,
    _: u64,
    _: &mut Option<driftless_core::Digest>,
) -> Result<(), rustix::io::Errno> {
    Ok(())
}

/// What is synced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Synced {
    /// A staged file.
    File,
    /// The file system.
    FileSystem,
}

/// Called before each sync.
pub(crate) fn sync(what: Synced) -> Result<(), rustix::io::Errno> {
    #[cfg(feature = "faults")]
    for counter in [Some(&SYNCS_TO_FAIL), (what == Synced::FileSystem).then_some(&SEALS_TO_FAIL)] {
        let one_less = |n: u32| n.checked_sub(1);
        let fails = |c: &AtomicU32| c.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok();
        if counter.is_some_and(fails) {
            return Err(rustix::io::Errno::IO);
        }
    }
    #[cfg(feature = "crash-points")]
    if told::fails(what) {
        return Err(rustix::io::Errno::IO);
    }
    let _ = what;
    Ok(())
}

/// Syncs that are told to fail from outside.
#[cfg(feature = "crash-points")]
mod told {
    use super::Synced;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Told {
        what: Synced,
        /// Syncs that are left until the one that fails.
        left: AtomicU64,
    }

    static TOLD: OnceLock<Option<Told>> = OnceLock::new();

    /// True for the N-th of its kind.
    pub(super) fn fails(what: Synced) -> bool {
        let told = TOLD.get_or_init(from_environment);
        told.as_ref().is_some_and(|t| t.what == what && t.left.fetch_sub(1, Ordering::Relaxed) == 1)
    }

    fn from_environment() -> Option<Told> {
        let text = std::env::var("DRIFTLESS_FAIL_AT").ok()?;
        let told = parse(&text);
        if told.is_none() {
            eprintln!("DRIFTLESS_FAIL_AT={text} is not sync-file:N:EIO or sync:N:EIO with N from 1");
            std::process::abort();
        }
        told
    }

    fn parse(text: &str) -> Option<Told> {
        let (what, n) = text.strip_suffix(":EIO")?.split_once(':')?;
        let what = match what {
            "sync-file" => Synced::File,
            "sync" => Synced::FileSystem,
            _ => return None,
        };
        let left = n.parse().ok().filter(|n| *n > 0)?;
        Some(Told { what, left: AtomicU64::new(left) })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_sync_is_named_with_a_count() {
            let told = parse("sync:3:EIO").unwrap();
            assert_eq!((told.what, told.left.into_inner()), (Synced::FileSystem, 3));
            assert_eq!(parse("sync-file:1:EIO").unwrap().what, Synced::File);
            for wrong in ["", "sync", "sync:1", "sync:0:EIO", "sync:x:EIO", "seal:1:EIO", "sync:1:ENOSPC"] {
                assert!(parse(wrong).is_none(), "{wrong}");
            }
        }
    }
}
