//! Where the state of replicas lives: one private directory per replicated root below one base.
//!
//! ```text
//! $XDG_STATE_HOME/driftless/          else ~/.local/state/driftless/; mode 0700
//!   photos-3f2a9c01d4e5b677/          last name of the root, hash of its whole path
//!     root                            the path, for humans
//!     lock                            see `lock`
//!     index.redb                      see `Index`
//!     control                         socket of the process that has the lock, for queries
//! ```

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Longest readable part of a directory name, in bytes.
const READABLE_LEN_MAX: usize = 32;

/// The base directory.
#[derive(Clone, Debug)]
pub struct StateDir {
    base: PathBuf,
}

/// The directory of one replica.
#[derive(Clone, Debug)]
pub struct ReplicaDir {
    path: PathBuf,
}

/// Why there is no state directory.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// Neither `XDG_STATE_HOME` nor `HOME` says where.
    #[error(
        "no place for state: neither XDG_STATE_HOME nor HOME is an absolute path; name a state directory"
    )]
    NoHome,
    /// Somebody else's directory is no place for our state.
    #[error("{} belongs to user {owner}: use a state directory of your own", .path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Two roots have one directory: the state was copied, or a link was laid into it.
    #[error("{} holds the state of {}, not of {}", .path.display(), .found.display(), .wanted.display())]
    OtherRoot {
        /// The directory.
        path: PathBuf,
        /// What its `root` file says.
        found: PathBuf,
        /// The root asked for.
        wanted: PathBuf,
    },
    /// The file system refused.
    #[error("{}: {source}", .path.display())]
    Io {
        /// What was being used.
        path: PathBuf,
        /// The file system's reason.
        source: io::Error,
    },
}

impl StateDir {
    /// The user's own: `$XDG_STATE_HOME/driftless`, else `~/.local/state/driftless`. Not made yet.
    pub fn of_user() -> Result<StateDir, StateDirError> {
        from_environment(std::env::var_os("XDG_STATE_HOME"), std::env::var_os("HOME"))
    }

    /// A given one. Not made yet.
    pub fn at(base: impl Into<PathBuf>) -> StateDir {
        StateDir { base: base.into() }
    }

    /// The base directory.
    pub fn path(&self) -> &Path {
        &self.base
    }

    /// The directory of the replica at `root`, which must exist; made if missing, closed to others.
    pub fn replica(&self, root: &Path) -> Result<ReplicaDir, StateDirError> {
        let root = root.canonicalize().map_err(|e| io_error(root, e))?;
        let path = self.base.join(directory_name(&root));
        for dir in [&self.base, &path] {
            make_private(dir)?;
        }
        claim_for(&path, &root)?;
        Ok(ReplicaDir { path })
    }

    /// The replicas that have state here, ordered by name. Makes nothing; none if there is no such directory.
    pub fn replicas(&self) -> Result<Vec<ReplicaDir>, StateDirError> {
        let fail = |e| io_error(&self.base, e);
        let listing = match fs::read_dir(&self.base) {
            Ok(listing) => listing,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(fail(e)),
        };
        let mut paths = listing.map(|e| e.map(|e| e.path())).collect::<io::Result<Vec<_>>>().map_err(fail)?;
        paths.retain(|path| path.join("root").is_file());
        paths.sort();
        Ok(paths.into_iter().map(|path| ReplicaDir { path }).collect())
    }
}

impl ReplicaDir {
    /// The directory itself; [`crate::Lock::acquire`] takes it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The index file.
    pub fn index(&self) -> PathBuf {
        self.path.join("index.redb")
    }

    /// The socket on which the process that has the replica answers queries.
    pub fn control(&self) -> PathBuf {
        self.path.join("control")
    }

    /// The root whose state this is, as canonical path.
    pub fn root(&self) -> Result<PathBuf, StateDirError> {
        let file = self.path.join("root");
        let bytes = fs::read(&file).map_err(|e| io_error(&file, e))?;
        Ok(PathBuf::from(OsString::from_vec(bytes)))
    }
}

/// Relative paths in `XDG_STATE_HOME` are to be ignored, says the XDG base directory specification.
fn from_environment(state: Option<OsString>, home: Option<OsString>) -> Result<StateDir, StateDirError> {
    let absolute = |v: Option<OsString>| v.map(PathBuf::from).filter(|p| p.is_absolute());
    let state = absolute(state).or_else(|| absolute(home).map(|h| h.join(".local/state")));
    state.map(|s| StateDir::at(s.join("driftless"))).ok_or(StateDirError::NoHome)
}

/// `photos-3f2a9c01d4e5b677`: readable, unique by the first 64 bits of the path's BLAKE3.
fn directory_name(root: &Path) -> String {
    let readable = readable_part(root);
    let hash = blake3::hash(root.as_os_str().as_bytes()).to_hex();
    format!("{readable}-{}", &hash[..16])
}

fn readable_part(root: &Path) -> String {
    let keep = |b: &u8| if b.is_ascii_alphanumeric() || *b == b'_' { char::from(*b) } else { '_' };
    match root.file_name() {
        Some(name) => name.as_bytes().iter().take(READABLE_LEN_MAX).map(keep).collect(),
        None => "root".into(),
    }
}

fn make_private(dir: &Path) -> Result<(), StateDirError> {
    let fail = |e| io_error(dir, e);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(fail)?;
    let meta = fs::metadata(dir).map_err(fail)?;
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(StateDirError::Foreign { path: dir.to_owned(), owner: meta.uid() });
    }
    if meta.mode() & 0o077 != 0 {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(fail)?;
    }
    Ok(())
}

/// Writes `root` into a new directory, or checks that an old one is of the same root.
fn claim_for(dir: &Path, root: &Path) -> Result<(), StateDirError> {
    let file = dir.join("root");
    let wanted = root.as_os_str().as_bytes();
    match fs::read(&file) {
        Ok(found) if found == wanted => Ok(()),
        // A crash between making and filling it.
        Ok(found) if found.is_empty() => fs::write(&file, wanted).map_err(|e| io_error(&file, e)),
        Ok(found) => Err(StateDirError::OtherRoot {
            path: dir.to_owned(),
            found: PathBuf::from(std::ffi::OsStr::from_bytes(&found)),
            wanted: root.to_owned(),
        }),
        Err(e) if e.kind() == ErrorKind::NotFound => fs::write(&file, wanted).map_err(|e| io_error(&file, e)),
        Err(e) => Err(io_error(&file, e)),
    }
}

fn io_error(path: &Path, source: io::Error) -> StateDirError {
    StateDirError::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_are_listed_with_their_roots() {
        let home = tempfile::tempdir().unwrap();
        let state = StateDir::at(home.path().join("state"));
        assert!(state.replicas().unwrap().is_empty());
        let roots = [home.path().join("a"), home.path().join("b")];
        for root in &roots {
            fs::create_dir(root).unwrap();
            state.replica(root).unwrap();
        }
        fs::create_dir(state.path().join("not-ours")).unwrap();
        let found: Vec<_> = state.replicas().unwrap().iter().map(|r| r.root().unwrap()).collect();
        assert_eq!(found, roots.map(|r| r.canonicalize().unwrap()));
    }

    #[test]
    fn the_environment_decides_and_relative_paths_do_not() {
        let at = |s: &str, h: &str| {
            from_environment(Some(s.into()), Some(h.into())).map(|d| d.base.to_string_lossy().into_owned())
        };
        assert_eq!(at("/s", "/h").unwrap(), "/s/driftless");
        assert_eq!(at("s", "/h").unwrap(), "/h/.local/state/driftless");
        assert!(matches!(at("s", "h"), Err(StateDirError::NoHome)));
        assert!(matches!(from_environment(None, None), Err(StateDirError::NoHome)));
    }

    #[test]
    fn names_are_readable_and_tell_paths_apart() {
        let a = directory_name(Path::new("/a/photos of \u{e4}"));
        assert!(a.starts_with("photos_of___-"), "{a}");
        assert_eq!(a.len(), "photos_of___-".len() + 16);
        assert_ne!(a, directory_name(Path::new("/b/photos of \u{e4}")));
        assert!(directory_name(Path::new("/")).starts_with("root-"));
        assert!(directory_name(Path::new(&format!("/{}", "x".repeat(255)))).len() < 64);
    }

    #[test]
    fn a_replica_has_one_private_directory() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("tree");
        fs::create_dir(&root).unwrap();
        let state = StateDir::at(temp.path().join("s/t"));
        let dir = state.replica(&root).unwrap();
        assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(state.path()).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::read(dir.path().join("root")).unwrap(), root.as_os_str().as_bytes());
        std::os::unix::fs::symlink(&root, temp.path().join("link")).unwrap();
        assert_eq!(state.replica(&temp.path().join("link")).unwrap().path(), dir.path());
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        state.replica(&root).unwrap();
        assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn state_of_another_root_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::at(temp.path().join("s"));
        let dir = state.replica(temp.path()).unwrap();
        fs::write(dir.path().join("root"), "/elsewhere").unwrap();
        assert!(matches!(state.replica(temp.path()), Err(StateDirError::OtherRoot { .. })));
    }
}
