//! Named cursors of `driftless changes`: where a consumer has got to, kept beside the index it reads.
//!
//! ```text
//! REPLICA POSITION\n      16 hexadecimal digits, one blank, a decimal number
//! ```
//!
//! A cursor is moved after rows have been printed: after a crash some are printed again, none is left out. Positions mean something
//! in the feed of one replica; in that of another, made anew, reading begins at 0.

use crate::error::CliError;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// The directory of cursors beside an index.
const DIR: &str = "cursors";

/// See the module.
pub(crate) struct NamedCursor {
    path: PathBuf,
    replica: String,
}

impl NamedCursor {
    /// The cursor `name` of the replica whose state is in `dir`, and where it is; 0 if it is new, or of another feed.
    pub(crate) fn open(dir: &Path, name: &str, replica: &str) -> Result<(NamedCursor, u64), CliError> {
        driftless_daemon::config::check_name(name)
            .map_err(|what| CliError::usage(what, "name the cursor after the program that reads"))?;
        let path = dir.join(DIR).join(name);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(unusable(&path, &e)),
        };
        let at = match text.trim().split_once(' ') {
            Some((of, at)) if of == replica => at.parse().ok(),
            _ => None,
        };
        Ok((NamedCursor { path, replica: replica.to_owned() }, at.unwrap_or(0)))
    }

    /// Everything up to `position` has been dealt with.
    pub(crate) fn set(&self, position: u64) -> Result<(), CliError> {
        let write = || {
            let dir = self.path.parent().unwrap_or(Path::new("."));
            fs::create_dir_all(dir)?;
            let new = self.path.with_extension("new");
            let mut file = fs::File::create(&new)?;
            writeln!(file, "{} {position}", self.replica)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)
        };
        write().map_err(|e| unusable(&self.path, &e))
    }
}

fn unusable(path: &Path, e: &std::io::Error) -> CliError {
    CliError::failed(format!("{}: {e}", path.display()), "run it as the user that runs the sync or the node")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_remembered_for_its_feed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str, replica: &str| NamedCursor::open(dir.path(), name, replica).unwrap();
        let (cursor, start) = at("backup", "aa");
        assert_eq!(start, 0);
        cursor.set(7).unwrap();
        cursor.set(9).unwrap();
        assert_eq!(at("backup", "aa").1, 9);
        assert_eq!((at("backup", "bb").1, at("other", "aa").1), (0, 0));
        assert!(NamedCursor::open(dir.path(), "../x", "aa").is_err());
    }
}
