//! `driftless trash`: lists what replication replaced or removed and was asked to keep, brings it back, drops it.
//!
//! Works on the directory itself, whether a sync runs or not: what is restored is a new file that a user has put there,
//! and each step is one rename or unlink of a version. A running sync counts again what is left when it needs room.

use crate::args::{TrashArgs, TrashCommand, TrashEmptyArgs, TrashListArgs, TrashRestoreArgs};
use crate::error::{CliError, ExitCode};
use crate::everywhere;
use crate::node_args::NodeArgs;
use crate::print::{json_line, path, result_line};
use crate::units;
use driftless_core::Name;
use driftless_node::api::PathText;
use driftless_node::query;
use driftless_volume::{DirFd, Directory, OpenOptions, Trash, TrashItem, VolumeError};
use rustix::fs::Mode;
use rustix::io::Errno;
use serde::Serialize;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Runs `driftless trash ...`.
pub(crate) fn run(args: TrashArgs) -> Result<ExitCode, CliError> {
    match args.command {
        TrashCommand::List(args) => list(&args),
        TrashCommand::Restore(args) => restore(&args),
        TrashCommand::Empty(args) => empty(&args),
    }?;
    Ok(ExitCode::InSync)
}

pub(crate) fn failed(e: &VolumeError) -> CliError {
    CliError::failed(e.to_string(), "run it as the user that runs the sync; see the message for the rest")
}

/// A volume of the running node may be named instead of its directory.
fn volume_root(name: &Path) -> Option<PathBuf> {
    let name = name.to_str().filter(|n| !n.contains('/') && !Path::new(n).exists())?;
    everywhere::root_of(&NodeArgs { state: None, json: false }, name).ok()
}

/// The directory, and its trash if it has one.
fn open(dir: &Path) -> Result<(Directory, Option<Trash>), CliError> {
    let of_volume = volume_root(dir);
    let dir = of_volume.as_deref().unwrap_or(dir);
    if !dir.join(".driftless").exists() {
        return Err(CliError::failed(
            format!("{} is no synced directory: it has no .driftless", dir.display()),
            "name the directory itself that was given to driftless sync",
        ));
    }
    let volume = Directory::open(dir, OpenOptions { create_private: false }).map_err(|e| failed(&e))?;
    let trash = volume.trash(false).map_err(|e| failed(&e))?;
    Ok((volume, trash))
}

/// Calls `f` with each version, oldest batch first; one batch at a time is in memory.
fn each(trash: &Trash, mut f: impl FnMut(Vec<TrashItem>) -> Result<(), VolumeError>) -> Result<(), CliError> {
    let batches = trash.batches().map_err(|e| failed(&e))?;
    batches.into_iter().try_for_each(|batch| trash.items(batch).and_then(&mut f)).map_err(|e| failed(&e))
}

fn id(item: &TrashItem) -> String {
    format!("{}-{}", item.batch, item.item)
}

/// Where it was; nothing is known of a version whose record is damaged.
fn path_of(item: &TrashItem) -> &[u8] {
    item.record.as_ref().map_or(&[], |r| &r.path)
}

// ----- list

#[derive(Serialize)]
struct Row {
    id: String,
    path: PathText,
    why: Option<&'static str>,
    kind: &'static str,
    size: u64,
    time: String,
    modified: Option<String>,
    site: Option<String>,
    entry: Option<String>,
}

fn row(item: &TrashItem) -> Row {
    let record = item.record.as_ref();
    Row {
        id: id(item),
        path: PathText::new(path_of(item)),
        why: record.map(|r| r.why.word()),
        kind: item.kind.word(),
        size: item.size,
        time: query::time_of_ns(item.time_ns),
        modified: record.map(|r| query::time(r.mtime)),
        site: record.map(|r| r.site.clone()).filter(|s| !s.is_empty()),
        entry: record.filter(|r| !r.entry.is_root()).map(|r| r.entry.to_string()),
    }
}

fn list(args: &TrashListArgs) -> Result<(), CliError> {
    let (_, trash) = open(&args.dir)?;
    let mut any = false;
    if let Some(trash) = trash {
        each(&trash, |items| {
            for item in items {
                any = true;
                if args.json { json_line(&row(&item)) } else { result_line(&line(&item)) }
            }
            Ok(())
        })?;
    }
    if !any && !args.json {
        result_line("the trash is empty");
    }
    Ok(())
}

fn line(item: &TrashItem) -> String {
    let row = row(item);
    let by = row.site.map_or_else(String::new, |site| format!(", by {}", path(&site)));
    let why = row.why.unwrap_or("its description is lost");
    format!("{}  {}  {}  {}  ({why}{by})", row.id, row.time, units::bytes(row.size), path(&row.path.text))
}

// ----- restore

fn restore(args: &TrashRestoreArgs) -> Result<(), CliError> {
    let (volume, trash) = open(&args.dir)?;
    let none = || {
        CliError::failed(
            format!("the trash of {} has no {}", args.dir.display(), args.what.display()),
            "driftless trash list shows what there is",
        )
    };
    let trash = trash.ok_or_else(none)?;
    let wanted = below(&args.dir, Path::new(&args.what));
    let item = find(&trash, &wanted, &args.what)?.ok_or_else(none)?;
    let to = match &args.to {
        Some(to) => below(&args.dir, to),
        None => path_of(&item).to_vec(),
    };
    let names: Option<Vec<Name>> =
        to.split(|b| *b == b'/').filter(|n| !n.is_empty()).map(|n| Name::new(n).ok()).collect();
    let shown = path(&String::from_utf8_lossy(&to));
    let Some((name, parents)) = names.as_deref().and_then(<[Name]>::split_last) else {
        return Err(CliError::usage(
            format!("'{shown}' is no path below {}", args.dir.display()),
            "give --to with a path below the directory",
        ));
    };
    let dir = make_parents(&volume, parents)?;
    if !trash.restore(&item, &dir, name).map_err(|e| failed(&e))? {
        return Err(CliError::failed(
            format!("{shown} is taken, and nothing is ever replaced"),
            "give --to with a free path, or move away what is there",
        ));
    }
    // A batch that is empty now, or that nobody could count again, is found by the next sync as well.
    let _ = trash.prune(item.batch);
    let _ = trash.note_freed();
    result_line(&format!("restored {shown}"));
    Ok(())
}

/// The newest version that was at `path`, else the one with this id.
fn find(trash: &Trash, path: &[u8], what: &OsStr) -> Result<Option<TrashItem>, CliError> {
    let (mut newest, mut by_id) = (None, None);
    each(trash, |items| {
        for item in items {
            if item.record.is_some() && path_of(&item) == path {
                newest = Some(item);
            } else if what == id(&item).as_str() {
                by_id = Some(item);
            }
        }
        Ok(())
    })?;
    Ok(newest.or(by_id))
}

/// A path as it is below the directory: given relative to it, or absolute.
pub(crate) fn below(dir: &Path, given: &Path) -> Vec<u8> {
    let real = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let rest = given.strip_prefix(&real).or_else(|_| given.strip_prefix(dir)).unwrap_or(given);
    let plain = rest.components().filter(|c| !matches!(c, std::path::Component::CurDir));
    plain.collect::<std::path::PathBuf>().as_os_str().as_bytes().to_vec()
}

/// The directory at `path`; what is missing of it is made.
pub(crate) fn make_parents(volume: &Directory, path: &[Name]) -> Result<DirFd, CliError> {
    let mut at = volume.dir(&[], None).map_err(|e| failed(&e))?;
    for depth in 1..=path.len() {
        let (here, name) = (&path[..depth], &path[depth - 1]);
        match rustix::fs::mkdirat(&at, name.as_bytes(), Mode::from_raw_mode(0o777)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => {
                return Err(CliError::failed(
                    format!("cannot make the directory {name}: {e}"),
                    "give --to with a path in a directory that can be written to",
                ));
            }
        }
        at = volume.dir(here, None).map_err(|e| failed(&e))?;
    }
    Ok(at)
}

// ----- empty

fn empty(args: &TrashEmptyArgs) -> Result<(), CliError> {
    let (_, trash) = open(&args.dir)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    // Without an age everything goes, also what came while the clock was ahead.
    let until_ns = match args.older_than {
        Some(age_s) => now_ns.saturating_sub(age_s.saturating_mul(1_000_000_000)),
        None => u64::MAX,
    };
    let (mut versions, mut bytes) = (0u64, 0u64);
    if let Some(trash) = &trash {
        let dropped = each(trash, |items| {
            let Some(batch) = items.first().map(|i| i.batch) else { return Ok(()) };
            for item in items.iter().filter(|i| i.time_ns <= until_ns) {
                if trash.remove(item)? {
                    versions += 1;
                    bytes += if item.links > 1 { 0 } else { item.size };
                }
            }
            trash.prune(batch)
        });
        // Even if it broke off: there is more room now.
        let noted = trash.note_freed().map_err(|e| failed(&e));
        dropped.and(noted)?;
    }
    result_line(&format!("dropped {} versions, {}", units::count(versions), units::bytes(bytes)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_below_the_directory() {
        for (given, want) in [("a/b", "a/b"), ("./a//b/", "a/b"), ("/no/such/dir/x", "x"), ("../x", "../x")] {
            assert_eq!(below(Path::new("/no/such/dir"), Path::new(given)), want.as_bytes(), "{given}");
        }
    }
}
