//! Room kept on the disk of the index, so that a full disk does not end it.
//!
//! redb takes an error of its file for the end: what it would have written is lost, and it writes no more until it is
//! opened again. So a file of [`RESERVE_LEN`] bytes lies beside the index. When a write finds the disk full, that file
//! gives its room up and the write is done again; whoever uses the index is told by [`Reserve::has_room`], writes only what
//! it needs to stop, and goes on once the room could be set aside anew.

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a commit under way and those that stop the intake need, several times over: a batch of rows is below 2 MiB, and
/// pages are written anew, not in place.
const RESERVE_LEN: u64 = 8 << 20;

/// The room kept.
#[derive(Debug)]
pub(crate) struct Reserve {
    path: PathBuf,
    /// The room is set aside.
    kept: AtomicBool,
}

impl Reserve {
    /// For the index at `index`. Sets the room aside if it can.
    pub(crate) fn beside(index: &Path) -> Arc<Reserve> {
        let reserve = Reserve { path: index.with_extension("reserve"), kept: AtomicBool::new(false) };
        reserve.has_room();
        Arc::new(reserve)
    }

    /// True if the room is set aside; tries to do that if it is not.
    pub(crate) fn has_room(&self) -> bool {
        if self.kept.load(Ordering::Acquire) {
            return true;
        }
        let kept = self.set_aside().is_ok();
        if !kept {
            // Half a reserve is in the way of everybody else.
            self.give_up();
        }
        self.kept.store(kept, Ordering::Release);
        kept
    }

    fn set_aside(&self) -> io::Result<()> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&self.path)?;
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, RESERVE_LEN) {
            Err(Errno::OPNOTSUPP) => fill(&file),
            other => Ok(other?),
        }
    }

    /// Gives the room up. False if there was none.
    fn give_up(&self) -> bool {
        let had = self.kept.swap(false, Ordering::AcqRel);
        let emptied = OpenOptions::new().write(true).open(&self.path).and_then(|f| f.set_len(0));
        had && emptied.is_ok()
    }
}

/// Where nothing can be set aside, zeroes do it.
fn fill(mut file: &File) -> io::Result<()> {
    let zeroes = [0; 64 << 10];
    for _ in 0..RESERVE_LEN / zeroes.len() as u64 {
        file.write_all(&zeroes)?;
    }
    Ok(())
}

/// The index's file, which falls back on the reserve.
#[derive(Debug)]
pub(crate) struct ReservedFile {
    file: FileBackend,
    reserve: Arc<Reserve>,
}

impl ReservedFile {
    pub(crate) fn new(file: FileBackend, reserve: Arc<Reserve>) -> ReservedFile {
        ReservedFile { file, reserve }
    }

    fn with_reserve(&self, act: impl Fn() -> io::Result<()>) -> io::Result<()> {
        match act() {
            Err(e) if is_full(&e) && self.reserve.give_up() => act(),
            other => other,
        }
    }
}

fn is_full(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

impl StorageBackend for ReservedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with_reserve(|| self.file.set_len(len))
    }
    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with_reserve(|| self.file.write(offset, data))
    }
    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }
    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }
    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }
    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }
    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }
    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_survived_once_and_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index.redb");
        let reserve = Reserve::beside(&path);
        assert!(reserve.has_room());
        let set_aside = || std::fs::metadata(dir.path().join("index.reserve")).unwrap().len();
        assert_eq!(set_aside(), RESERVE_LEN);
        let backend = FileBackend::new(File::create(&path).unwrap()).unwrap();
        let file = ReservedFile::new(backend, Arc::clone(&reserve));
        let full = || io::Error::from(ErrorKind::StorageFull);
        let tries = std::cell::Cell::new(0);
        let act = || {
            tries.set(tries.get() + 1);
            if set_aside() > 0 { Err(full()) } else { Ok(()) }
        };
        file.with_reserve(act).unwrap();
        assert_eq!((tries.get(), set_aside()), (2, 0));
        // Without a reserve the error stands.
        assert!(file.with_reserve(|| Err(full())).is_err());
        assert!(file.with_reserve(|| Err(io::Error::from(ErrorKind::PermissionDenied))).is_err());
        assert!(reserve.has_room(), "there is room again");
        assert_eq!(set_aside(), RESERVE_LEN);
    }
}
