//! Where the replicas of this machine keep their indexes: the layout of a state directory, and the
//! lock that keeps two processes off one replica.
//!
//! ```text
//! STATE/                      mode 0700
//!   replica-<16 hex digits>/  one per root: the first 8 bytes of the BLAKE3 of its canonical path
//!     root                    that path, as bytes
//!     index.redb              the index
//!     lock                    locked while a process has the replica; holds "<pid> <what it runs>"
//!     control                 unix socket of the process that has the lock (see `control`)
//! ```
//!
//! A lock is the kernel's (`flock`), so it goes with the process that held it, however that ended. The
//! text in the file only says who it is, and is read only while the lock is taken.

use driftless_core::meta::Digest;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Names of directories of replicas begin with this.
const REPLICA_PREFIX: &str = "replica-";

/// How long [`Lock::acquire`] waits for a holder to go: longer than a query takes, shorter than a person waits.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(2);

/// How often it asks meanwhile. The kernel offers no wait with a deadline for this lock.
const LOCK_POLL: Duration = Duration::from_millis(20);

/// Longest text of a lock file that is shown, in bytes.
const HOLDER_LEN_MAX: u64 = 4096;

/// The place for states if none is given: `$XDG_STATE_HOME/driftless`, else `~/.local/state/driftless`.
/// `None` if neither variable is set (as absolute path).
pub fn default_state_dir() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .map(|base| base.join("driftless"))
}

/// The directory in which one replica keeps its index.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ReplicaDir {
    dir: PathBuf,
}

impl ReplicaDir {
    /// The one of the tree at `root`, a canonical path, below `state`. Touches nothing.
    pub fn of(state: &Path, root: &Path) -> ReplicaDir {
        let digest = Digest::of(root.as_os_str().as_bytes()).0;
        let hex: String = digest[..8].iter().map(|b| format!("{b:02x}")).collect();
        ReplicaDir { dir: state.join(format!("{REPLICA_PREFIX}{hex}")) }
    }

    /// Makes it, and notes which root it is for.
    pub fn create(&self, root: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        fs::write(self.dir.join("root"), root.as_os_str().as_bytes())
    }

    /// All replicas below `state`, ordered. None if there is no such directory.
    pub fn list(state: &Path) -> io::Result<Vec<ReplicaDir>> {
        let entries = match fs::read_dir(state) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            if entry.file_name().as_bytes().starts_with(REPLICA_PREFIX.as_bytes()) {
                found.push(ReplicaDir { dir: entry.path() });
            }
        }
        found.sort();
        Ok(found)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The root it is for.
    pub fn root(&self) -> io::Result<PathBuf> {
        Ok(PathBuf::from(OsString::from_vec(fs::read(self.dir.join("root"))?)))
    }

    /// The index file.
    pub fn index(&self) -> PathBuf {
        self.dir.join("index.redb")
    }

    /// The socket on which the process that has the replica answers.
    pub fn control(&self) -> PathBuf {
        self.dir.join("control")
    }

    /// Takes the replica for this process; see [`Lock::acquire`].
    pub fn lock(&self, what: &str) -> Result<Lock, LockError> {
        Lock::acquire(&self.dir.join("lock"), what)
    }
}

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it: what it wrote about itself, `<pid> <what it runs>`.
    #[error("in use by process {0}")]
    Held(String),
    /// The lock file could not be used.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Held until dropped, or until the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Locks the file at `path`, making it if necessary, and writes into it who has it: the process id
    /// and `what` it runs. Waits a moment for a holder that is about to go.
    pub fn acquire(path: &Path, what: &str) -> Result<Lock, LockError> {
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let deadline = Instant::now() + LOCK_WAIT_MAX;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(e)) => return Err(e.into()),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOCK_POLL),
                Err(TryLockError::WouldBlock) => return Err(LockError::Held(holder(&mut file)?)),
            }
        }
        file.set_len(0)?;
        file.rewind()?;
        write!(file, "{} {what}", std::process::id())?;
        Ok(Lock { _file: file })
    }
}

fn holder(file: &mut File) -> io::Result<String> {
    file.rewind()?;
    let mut text = Vec::new();
    file.take(HOLDER_LEN_MAX).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_found_by_its_root_and_listed() {
        let state = tempfile::tempdir().unwrap();
        let root = Path::new("/srv/data");
        let dir = ReplicaDir::of(state.path(), root);
        assert_eq!(ReplicaDir::list(state.path()).unwrap(), []);
        dir.create(root).unwrap();
        fs::create_dir(state.path().join("something-else")).unwrap();
        assert_eq!(ReplicaDir::list(state.path()).unwrap(), [dir.clone()]);
        assert_eq!(dir.root().unwrap(), root);
        assert_ne!(dir, ReplicaDir::of(state.path(), Path::new("/srv/data2")));
        assert_eq!(ReplicaDir::list(&state.path().join("nowhere")).unwrap(), []);
    }

    #[test]
    fn a_second_holder_is_told_who_has_it() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("lock");
        let first = Lock::acquire(&path, "sync A B").unwrap();
        match Lock::acquire(&path, "sync") {
            Err(LockError::Held(who)) => {
                assert_eq!(who, format!("{} sync A B", std::process::id()));
            }
            other => panic!("{other:?}"),
        }
        drop(first);
        Lock::acquire(&path, "sync").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{} sync", std::process::id()));
    }
}
