//! `driftless lost`: versions that nobody holds who could be asked, and `driftless lost accept`: giving them up.

use crate::args::{AcceptArgs, CommonArgs, LostArgs, LostCommand};
use crate::error::{CliError, ExitCode};
use crate::everywhere;
use crate::inspect::{Replica, full, pages, rooted, unexpected};
use crate::print::{json_line, path, result_line};
use crate::units;
use driftless_node::query::{AcceptOutcome, AcceptRow, LostVersion, Request, Response};
use std::path::Path;

/// Runs `driftless lost ...`.
pub(crate) fn run(args: LostArgs) -> Result<ExitCode, CliError> {
    match args.command {
        Some(LostCommand::Accept(args)) => accept(&args),
        None => list(&args.common),
    }
}

fn list(common: &CommonArgs) -> Result<ExitCode, CliError> {
    let mut any = false;
    let (state, root) = everywhere::place(common)?;
    for replica in Replica::all(state.as_deref(), root.as_deref())? {
        for row in lost(&replica)? {
            any = true;
            if common.json {
                json_line(&rooted(&replica.root, &row));
            } else {
                print(&replica.root, &row);
            }
        }
    }
    if !any && !common.json {
        result_line("nothing is lost");
    }
    Ok(if any { ExitCode::Waiting } else { ExitCode::InSync })
}

/// All of a replica: they are few, or somebody has more to do than to read them.
fn lost(replica: &Replica) -> Result<Vec<LostVersion>, CliError> {
    let mut rows = Vec::new();
    let page = |r| if let Response::Lost(page) = r { Some(page) } else { None };
    pages(replica, |after| Request::Lost { after }, page, |row| rows.push(row))?;
    Ok(rows)
}

fn print(root: &Path, row: &LostVersion) {
    result_line(&full(root, &row.path));
    let size = units::bytes(row.size);
    result_line(&format!(
        "  {size}, {}, written by {}; lost since {}",
        row.modified,
        path(&row.written_by),
        row.since
    ));
    let who = if row.here { "this disk".to_owned() } else { path(&row.lacked_by.join(", ")) };
    let detail = if row.detail.is_empty() { String::new() } else { format!(": {}", path(&row.detail)) };
    result_line(&format!("  {who}: {}{detail}", why(&row.why)));
    if !row.may_be_at.is_empty() {
        let sites = path(&row.may_be_at.join(", "));
        result_line(&format!("  may still be at {sites}, which was not asked: sync with it first"));
    }
    result_line(&format!("  {}", advice(row)));
}

fn why(word: &str) -> &str {
    match word {
        "absent" => "does not have it",
        "unreadable" => "fails when it is read",
        _ => "has something else in its place, which nobody wrote",
    }
}

fn advice(row: &LostVersion) -> &'static str {
    match row {
        _ if row.accepted => "given up: the other end says what it has with the next sync",
        _ if row.earlier_here => "driftless lost accept goes back to the earlier version, which is here",
        _ if row.here && row.why == "damaged" => {
            "if what is there is right, touch it; else driftless lost accept goes back to an earlier version elsewhere"
        }
        _ => {
            "driftless lost accept goes back to an earlier version elsewhere, or removes it if there is none"
        }
    }
}

/// A lost version at one of the replicas of a state directory.
struct Found<'a> {
    replica: &'a Replica,
    row: LostVersion,
}

fn accept(args: &AcceptArgs) -> Result<ExitCode, CliError> {
    let (state, root) = everywhere::place(&args.common)?;
    let (state, root) = (state.as_deref(), root.as_deref());
    let replicas = Replica::all(state, None)?;
    let mut all = Vec::new();
    for replica in &replicas {
        all.extend(lost(replica)?.into_iter().map(|row| Found { replica, row }));
    }
    // What cannot be found ends it before anything is done.
    let mut wanted = Vec::new();
    for path in &args.paths {
        let (replica, below) = Replica::holding(state, root, path)?;
        let of_path = |f: &&Found<'_>| f.replica.root == replica.root && f.row.path.bytes() == below;
        let found: Vec<&Found<'_>> = all.iter().filter(of_path).collect();
        if found.is_empty() {
            return Err(CliError::failed(
                format!("no version of {} is lost; nothing was changed", path.display()),
                "driftless lost shows what is",
            ));
        }
        wanted.extend(found);
    }
    for found in wanted {
        accept_one(args, &all, found)?;
    }
    Ok(ExitCode::InSync)
}

/// Gives a version up where an earlier one is, else where it is known that there is none, else everywhere.
fn accept_one(args: &AcceptArgs, all: &[Found<'_>], wanted: &Found<'_>) -> Result<(), CliError> {
    let same = |f: &&Found<'_>| (&f.row.entry, &f.row.version) == (&wanted.row.entry, &wanted.row.version);
    let mut places: Vec<&Found<'_>> = all.iter().filter(same).collect();
    places.sort_by_key(|f| (!f.row.earlier_here, f.row.here || f.row.why == "absent"));
    for found in places {
        let LostVersion { entry, version, .. } = found.row.clone();
        let row = AcceptRow { entry, version, remove: args.remove, anyway: args.anyway };
        let answer = found.replica.ask(&Request::Accept(row))?;
        let Response::Accepted(outcome) = answer else { return Err(unexpected()) };
        if args.common.json {
            json_line(&rooted(&found.replica.root, &outcome));
        }
        let shown = full(&found.replica.root, &wanted.row.path);
        let noted = outcome == AcceptOutcome::Noted;
        let said = match outcome {
            AcceptOutcome::Republished => "the earlier version is published again",
            AcceptOutcome::OthersStay => "the other versions stay",
            AcceptOutcome::Removed => "nothing of it was held: it is removed",
            AcceptOutcome::Noted => "given up; the other end says what it has with the next sync",
            AcceptOutcome::NotLost => "not lost any more",
            AcceptOutcome::MayBeAt { sites } => {
                return Err(CliError::failed(
                    format!("{shown} may still be at {}; nothing was changed", path(&sites.join(", "))),
                    "sync with it first, or give --anyway if it does not come back",
                ));
            }
        };
        if !args.common.json {
            result_line(&format!("{shown}: {said}"));
        }
        if !noted {
            break;
        }
    }
    Ok(())
}
