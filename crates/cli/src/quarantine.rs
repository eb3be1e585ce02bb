//! `driftless quarantine`: what was set aside because it is beyond a Cut: lists it, applies it again, copies it away.
//!
//! Works on the directory itself, whether a node runs or not: what is applied again is a new file that a user has put there.

use crate::args::{
    QuarantineApplyArgs, QuarantineArgs, QuarantineCommand, QuarantineExportArgs, QuarantineListArgs,
};
use crate::error::{CliError, ExitCode};
use crate::print::{json_line, path, result_line};
use crate::trash::{below, failed, make_parents};
use crate::units;
use driftless_core::Name;
use driftless_node::replica::Quarantined;
use driftless_volume::{Directory, OpenOptions, Quarantine, QuarantineBatch};
use serde::Serialize;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

/// Runs `driftless quarantine ...`.
pub(crate) fn run(args: &QuarantineArgs) -> Result<ExitCode, CliError> {
    match &args.command {
        QuarantineCommand::List(args) => list(args),
        QuarantineCommand::Apply(args) => apply(args),
        QuarantineCommand::Export(args) => export(args),
    }?;
    Ok(ExitCode::InSync)
}

fn open(dir: &Path) -> Result<(Directory, Option<Quarantine>), CliError> {
    let volume = Directory::open(dir, OpenOptions { create_private: false }).map_err(|e| failed(&e))?;
    let quarantine = volume.quarantine(false).map_err(|e| failed(&e))?;
    Ok((volume, quarantine))
}

/// Calls `f` with each thing, oldest first.
fn each(
    quarantine: &Quarantine,
    mut f: impl FnMut(&QuarantineBatch, Quarantined) -> Result<(), CliError>,
) -> Result<(), CliError> {
    for number in quarantine.batches().map_err(|e| failed(&e))? {
        let batch = quarantine.batch(number).map_err(|e| failed(&e))?;
        let lines = batch.list().map_err(|e| failed(&e))?;
        for line in lines.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            // A line that is damaged names nothing; what it is about is still there, under its number.
            let Ok(one) = serde_json::from_slice(line) else { continue };
            f(&batch, one)?;
        }
    }
    Ok(())
}

fn id(batch: &QuarantineBatch, one: &Quarantined) -> String {
    format!("{}-{}", batch.number(), one.item)
}

#[derive(Serialize)]
struct Row {
    id: String,
    /// It is here: it can be applied again.
    kept: bool,
    size: Option<u64>,
    #[serde(flatten)]
    what: Quarantined,
}

fn list(args: &QuarantineListArgs) -> Result<(), CliError> {
    let mut any = false;
    if let (_, Some(quarantine)) = open(&args.dir)? {
        each(&quarantine, |batch, what| {
            any = true;
            let size = batch.size(what.item).map_err(|e| failed(&e))?;
            let row = Row { id: id(batch, &what), kept: size.is_some(), size, what };
            if args.json {
                json_line(&row)
            } else {
                result_line(&line(&row))
            }
            Ok(())
        })?;
    }
    if !any && !args.json {
        result_line("nothing was set aside");
    }
    Ok(())
}

fn line(row: &Row) -> String {
    let size = row.size.map_or_else(|| "-".to_owned(), units::bytes);
    let what = &row.what;
    format!(
        "{}  {}  {}  {} {}  {}",
        row.id,
        what.time,
        size,
        what.what.word(),
        what.kind,
        path(&what.path.text)
    )
}

fn apply(args: &QuarantineApplyArgs) -> Result<(), CliError> {
    let (volume, quarantine) = open(&args.dir)?;
    let wanted = below(&args.dir, Path::new(&args.what));
    let mut found = None;
    if let Some(quarantine) = &quarantine {
        each(quarantine, |batch, one| {
            let is_it = one.path.bytes() == wanted || args.what == id(batch, &one).as_str();
            if is_it && batch.size(one.item).map_err(|e| failed(&e))?.is_some() {
                found = Some((batch.number(), one));
            }
            Ok(())
        })?;
    }
    let (Some(quarantine), Some((number, one))) = (quarantine, found) else {
        return Err(CliError::failed(
            format!("no {} was set aside in {}", args.what.display(), args.dir.display()),
            "driftless quarantine list shows what there is; what was removed has to be removed again",
        ));
    };
    let to = args.to.as_ref().map_or_else(|| one.path.bytes(), |to| below(&args.dir, to));
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
    let batch = quarantine.batch(number).map_err(|e| failed(&e))?;
    if !batch.restore(one.item, &dir, name).map_err(|e| failed(&e))? {
        return Err(CliError::failed(
            format!("{shown} is taken, and nothing is ever replaced"),
            "give --to with a free path, or move away what is there",
        ));
    }
    result_line(&format!("applied {shown}"));
    Ok(())
}

fn export(args: &QuarantineExportArgs) -> Result<(), CliError> {
    let mut copied = 0u64;
    if let (_, Some(quarantine)) = open(&args.dir)? {
        each(&quarantine, |batch, one| {
            if one.kind != "file" || batch.size(one.item).map_err(|e| failed(&e))?.is_none() {
                return Ok(());
            }
            let path = free(&args.to.join(relative(&one)), &id(batch, &one));
            let copy = || -> std::io::Result<()> {
                std::fs::create_dir_all(path.parent().unwrap_or(&args.to))?;
                let mut to = std::fs::File::create_new(&path)?;
                std::io::copy(&mut batch.open(one.item).map_err(std::io::Error::other)?, &mut to)?;
                to.sync_all()
            };
            copy().map_err(|e| {
                CliError::failed(
                    format!("{}: {e}", path.display()),
                    "name a directory with room that can be written to",
                )
            })?;
            copied += 1;
            Ok(())
        })?;
    }
    result_line(&format!("copied {} files", units::count(copied)));
    Ok(())
}

/// The path of a thing, which leads nowhere but down.
fn relative(one: &Quarantined) -> PathBuf {
    let bytes = one.path.bytes();
    let names = bytes.split(|b| *b == b'/').filter(|n| Name::new(n).is_ok());
    names.map(|n| OsString::from_vec(n.to_vec())).collect()
}

/// The path, or beside it one with the thing's id.
fn free(path: &Path, id: &str) -> PathBuf {
    if path.symlink_metadata().is_err() {
        return path.to_owned();
    }
    let mut name = path.file_name().map_or_else(Vec::new, |n| n.as_bytes().to_vec());
    name.extend_from_slice(b".");
    name.extend_from_slice(id.as_bytes());
    path.with_file_name(OsString::from_vec(name))
}
