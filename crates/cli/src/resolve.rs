//! `driftless conflicts resolve`: ordinary file operations on a synced directory, which the sync then carries
//! over. Deleting a copy resolves it; renaming it over the winner chooses it; giving it a name of its own
//! keeps both.

use crate::args::{ConflictsArgs, ConflictsCommand, Keep, ResolveArgs};
use crate::conflict_show;
use crate::error::{CliError, ExitCode};
use crate::inspect::{self, Replica, full, unexpected};
use crate::print::result_line;
use driftless_node::query::{Request, Response};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

/// Runs `driftless conflicts ...`.
pub(crate) fn run(args: ConflictsArgs) -> Result<ExitCode, CliError> {
    match args.command {
        ConflictsCommand::List(args) => inspect::conflicts(&args),
        ConflictsCommand::Show(args) => conflict_show::run(&args),
        ConflictsCommand::Resolve(args) => resolve(&args),
    }
}

fn resolve(args: &ResolveArgs) -> Result<ExitCode, CliError> {
    if args.name.is_some() && args.keep != Keep::Both {
        return Err(CliError::usage("--name goes with --keep both", "leave --name out"));
    }
    let (replica, below) = Replica::holding(args.state.as_deref(), None, &args.path)?;
    let winner_name = winner_name(&replica, &below)?;
    let copy = replica.root.join(OsStr::from_bytes(&below));
    let winner = copy.with_file_name(OsStr::from_bytes(&winner_name));
    let said = match args.keep {
        Keep::Winner => delete(&copy)?,
        Keep::Copy => choose(&copy, &winner)?,
        Keep::Both => rename(&copy, args.name.as_deref())?,
    };
    result_line(&format!("{said}; a running sync carries it over, else the next one does"));
    Ok(ExitCode::InSync)
}

/// The name that the copy lost, as bytes.
fn winner_name(replica: &Replica, below: &[u8]) -> Result<Vec<u8>, CliError> {
    let Response::Why(why) = replica.ask(&Request::why(below))? else { return Err(unexpected()) };
    match why.on_disk.and_then(|d| d.conflict_of) {
        Some(name) => Ok(name.bytes()),
        None => Err(CliError::failed(
            format!("{} is no conflict copy", full(&replica.root, &why.path)),
            "driftless conflicts list shows the copies; name one of them",
        )),
    }
}

fn delete(copy: &Path) -> Result<String, CliError> {
    fs::remove_file(copy).map_err(|e| refused("delete", copy, &e))?;
    Ok(format!("deleted {}", copy.display()))
}

fn choose(copy: &Path, winner: &Path) -> Result<String, CliError> {
    if fs::symlink_metadata(winner).is_ok_and(|m| m.is_dir()) {
        return Err(CliError::failed(
            format!("{} is a directory; a file cannot take its place", winner.display()),
            "keep both, or rename the directory first",
        ));
    }
    fs::rename(copy, winner).map_err(|e| refused("move", copy, &e))?;
    Ok(format!("moved {} over {}", copy.display(), winner.display()))
}

fn rename(copy: &Path, name: Option<&OsStr>) -> Result<String, CliError> {
    let name = match name {
        Some(name) if Path::new(name).components().count() != 1 || name.as_bytes().contains(&b'/') => {
            return Err(CliError::usage("--name is a path", "give a name without slashes"));
        }
        Some(name) => name.to_owned(),
        None => kept_name(copy.file_name().unwrap_or_default()),
    };
    let target: PathBuf = copy.with_file_name(name);
    // Never over a file that is there.
    renameat_with(CWD, copy, CWD, &target, RenameFlags::NOREPLACE).map_err(|e| match e {
        rustix::io::Errno::EXIST => {
            CliError::failed(format!("{} exists already", target.display()), "give another name with --name")
        }
        e => refused("rename", copy, &e.into()),
    })?;
    Ok(format!("renamed {} to {}", copy.display(), target.display()))
}

/// `report.conflict-x.docx` becomes `report.kept-x.docx`: a name that nobody takes for a conflict.
fn kept_name(name: &OsStr) -> OsString {
    const MARK: &[u8] = b".conflict-";
    let bytes = name.as_bytes();
    match bytes.windows(MARK.len()).rposition(|w| w == MARK) {
        Some(at) => OsString::from_vec([&bytes[..at], b".kept-", &bytes[at + MARK.len()..]].concat()),
        None => OsString::from_vec([bytes, b".kept"].concat()),
    }
}

fn refused(verb: &str, path: &Path, e: &io::Error) -> CliError {
    CliError::failed(
        format!("cannot {verb} {}: {e}", path.display()),
        "do it as a user that may change the directory; nothing was changed",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_copy_gets_a_plain_name() {
        for (name, kept) in [
            ("report.conflict-1f2e.docx", "report.kept-1f2e.docx"),
            ("a.conflict-b.conflict-c", "a.conflict-b.kept-c"),
            ("odd", "odd.kept"),
        ] {
            assert_eq!(kept_name(OsStr::new(name)), kept);
        }
    }

    #[test]
    fn a_copy_is_never_renamed_over_something() {
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("f.conflict-1");
        fs::write(&copy, "copy").unwrap();
        fs::write(dir.path().join("g"), "g").unwrap();
        assert!(rename(&copy, Some(OsStr::new("g"))).is_err());
        assert!(rename(&copy, Some(OsStr::new("../g"))).is_err());
        rename(&copy, None).unwrap();
        assert_eq!(fs::read(dir.path().join("f.kept-1")).unwrap(), b"copy");
        assert_eq!(fs::read(dir.path().join("g")).unwrap(), b"g");
    }
}
