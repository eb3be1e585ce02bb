//! One process at a time: an advisory lock on a file that says who holds it.
//!
//! The kernel's lock (`flock`) decides, so a killed holder holds nothing; the file's text is only
//! for the message. The file stays when the lock is released: removing it would let two processes
//! lock two files of one name.

use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Name of the lock file in its directory.
pub const LOCK_FILE: &str = "lock";

/// Longest text of a holder that is read, in bytes; command lines beyond it are cut.
const HOLDER_LEN_MAX: u64 = 4096;

/// Held until dropped, or until the process ends in any way.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Why the lock was not acquired.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else has it.
    #[error("{} is in use by process {pid} ({command}) since {}", .dir.display(), age(.since))]
    Held {
        /// The directory that is locked.
        dir: PathBuf,
        /// Process id of the holder; 0 if it has not said yet.
        pid: u32,
        /// What it does and its command line.
        command: String,
        /// When it took the lock.
        since: SystemTime,
    },
    /// The lock file cannot be used.
    #[error("cannot lock {}: {source}", .path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// The file system's reason.
        source: io::Error,
    },
}

impl Lock {
    /// Locks directory `dir`, which must exist, without waiting. `purpose` tells others what for.
    pub fn acquire(dir: &Path, purpose: &str) -> Result<Lock, LockError> {
        let path = dir.join(LOCK_FILE);
        let fail = |source| LockError::Io { path: path.clone(), source };
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).map_err(fail)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(held(dir, &file)),
            Err(TryLockError::Error(e)) => return Err(fail(e)),
        }
        match introduce(&mut file, purpose) {
            // The lock is held; who holds it is for messages only.
            Err(e) if matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {}
            other => other.map_err(fail)?,
        }
        Ok(Lock { _file: file })
    }
}

/// Writes three lines: process id, seconds since 1970, what for.
fn introduce(file: &mut File, purpose: &str) -> io::Result<()> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let command: Vec<_> = std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
    let text = format!("{}\n{since}\n{purpose}: {}\n", std::process::id(), command.join(" "));
    // On a full disk there may be room in what the last one has written, and nowhere else.
    file.rewind()?;
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)
}

fn held(dir: &Path, file: &File) -> LockError {
    let mut text = Vec::new();
    // A holder that cannot be read is still a holder.
    let _ = file.take(HOLDER_LEN_MAX).read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    let mut lines = text.lines();
    let pid = lines.next().and_then(|l| l.parse().ok()).unwrap_or(0);
    let seconds = lines.next().and_then(|l| l.parse().ok());
    let since = seconds.and_then(|s| UNIX_EPOCH.checked_add(Duration::from_secs(s)));
    let command = lines.next().unwrap_or("command not known").to_owned();
    LockError::Held { dir: dir.to_owned(), pid, command, since: since.unwrap_or_else(SystemTime::now) }
}

fn age(since: &SystemTime) -> String {
    match since.elapsed().map_or(0, |d| d.as_secs()) {
        s @ 0..120 => format!("{s} seconds"),
        s @ 120..7200 => format!("{} minutes", s / 60),
        s => format!("{} hours", s / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_about_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::acquire(dir.path(), "sync").unwrap();
        match Lock::acquire(dir.path(), "sync") {
            Err(LockError::Held { pid, command, since, .. }) => {
                assert_eq!(pid, std::process::id());
                assert!(command.starts_with("sync: "), "{command}");
                assert!(since.elapsed().unwrap() < Duration::from_secs(60));
            }
            other => panic!("{other:?}"),
        }
        drop(first);
        Lock::acquire(dir.path(), "sync").unwrap();
    }

    #[test]
    fn a_shorter_introduction_leaves_nothing_of_the_longer() {
        let dir = tempfile::tempdir().unwrap();
        drop(Lock::acquire(dir.path(), &"long ".repeat(100)).unwrap());
        let _second = Lock::acquire(dir.path(), "s").unwrap();
        let text = std::fs::read_to_string(dir.path().join(LOCK_FILE)).unwrap();
        assert_eq!(text.lines().count(), 3);
        assert!(!text.contains("long"));
    }

    #[test]
    fn a_missing_directory_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("no");
        assert!(matches!(Lock::acquire(&missing, "sync"), Err(LockError::Io { .. })));
    }
}
