//! What two directories must be before they may be kept the same. Nothing is touched here.

use crate::api::SessionError;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Checks that `root` is a directory that can be read, and gives its canonical path.
pub fn check_root(root: &Path) -> Result<PathBuf, SessionError> {
    let shown = root.display();
    let canonical = root.canonicalize().map_err(|e| unusable(root, &e))?;
    let meta = fs::metadata(&canonical).map_err(|e| unusable(root, &e))?;
    if !meta.is_dir() {
        return Err(error(
            format!("{shown} is not a directory"),
            "name the directory that holds it; single files are not synced",
        ));
    }
    fs::read_dir(&canonical).map_err(|e| unusable(root, &e))?;
    Ok(canonical)
}

/// Checks that two canonical roots on one machine are neither the same nor one inside the other.
pub fn check_pair(a: &Path, b: &Path) -> Result<(), SessionError> {
    let same = a == b || same_inode(a, b);
    if same {
        let what = format!("A and B are the same directory: {}", a.display());
        return Err(error(what, "name two different directories"));
    }
    for (outer, inner, which) in [(a, b, "B is inside A"), (b, a, "A is inside B")] {
        if inner.starts_with(outer) {
            let what = format!("{which}: {} is below {}", inner.display(), outer.display());
            return Err(error(what, "name two directories of which neither holds the other"));
        }
    }
    Ok(())
}

/// A bind mount shows one directory at two paths.
fn same_inode(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

fn unusable(root: &Path, e: &io::Error) -> SessionError {
    let shown = root.display();
    match e.kind() {
        io::ErrorKind::NotFound => error(
            format!("{shown} does not exist"),
            "make it with mkdir, or mount its disk; it is not made by itself, because a missing root may be an unmounted one",
        ),
        io::ErrorKind::PermissionDenied => error(
            format!("{shown} cannot be read: permission denied"),
            "give the user that runs driftless access to it, or run as a user that has it",
        ),
        io::ErrorKind::NotADirectory => {
            error(format!("{shown} is not a directory"), "a part of the path is a file: check the path")
        }
        _ => error(format!("{shown} cannot be used: {e}"), "check the path and its disk"),
    }
}

fn error(what: String, advice: &str) -> SessionError {
    SessionError::new(what, advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_directories_that_exist() {
        let base = tempfile::tempdir().unwrap();
        let file = base.path().join("f");
        fs::write(&file, "").unwrap();
        assert!(check_root(base.path()).unwrap().is_absolute());
        for (path, says) in [
            (file.clone(), "not a directory"),
            (file.join("x"), "not a directory"),
            (base.path().join("none"), "does not exist"),
        ] {
            let e = check_root(&path).unwrap_err();
            assert!(e.what.contains(says) && !e.advice.is_empty(), "{e:?}");
        }
    }

    #[test]
    fn roots_are_apart() {
        let (a, b) = (Path::new("/x/a"), Path::new("/x/b"));
        check_pair(a, b).unwrap();
        check_pair(a, Path::new("/x/ab")).unwrap();
        for (a, b, says) in [
            (a, a, "same directory"),
            (a, Path::new("/x/a/b/c"), "B is inside A"),
            (Path::new("/x/a"), Path::new("/x"), "A is inside B"),
        ] {
            assert!(check_pair(a, b).unwrap_err().what.contains(says));
        }
    }
}
