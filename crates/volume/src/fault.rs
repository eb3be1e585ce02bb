//! Errors that no test can get from a healthy disk, for tests only: without the feature `faults` nothing here does
//! anything.

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
