//! `driftless conflicts show`: the versions of one conflict side by side. All of them are in the tree, at every site, so that any can
//! tell.

use crate::args::ShowArgs;
use crate::error::{CliError, ExitCode};
use crate::everywhere;
use crate::inspect::{Replica, full, pages, unexpected};
use crate::print::{json_line, path, result_line};
use crate::units;
use driftless_node::api::PathText;
use driftless_node::query::{ConflictRow, Explanation, Request, Response};
use serde::Serialize;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Bytes compared at once.
const STEP_LEN: usize = 64 << 10;

/// One version of a file, as this disk shows it.
#[derive(Serialize)]
struct Shown {
    path: PathText,
    /// It has the name.
    wins: bool,
    kind: String,
    size: u64,
    modified: String,
    written_by: String,
    /// Where it differs first from the one that has the name.
    first_difference: Option<Difference>,
}

/// Where two files differ first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
struct Difference {
    /// Bytes that are equal before.
    at_byte: u64,
    /// Its line, from 1.
    line: u64,
}

/// Runs it.
pub(crate) fn run(args: &ShowArgs) -> Result<ExitCode, CliError> {
    let common = &args.common;
    let (state, root) = everywhere::place(common)?;
    let (replica, below) = Replica::holding(state.as_deref(), root.as_deref(), &args.path)?;
    let winner = winner_of(&replica, &below)?;
    let mut copies: Vec<ConflictRow> = Vec::new();
    let request = |after| Request::Conflicts { after };
    let page = |r| if let Response::Conflicts(page) = r { Some(page) } else { None };
    pages(&replica, request, page, |row: ConflictRow| {
        if row.winner == winner {
            copies.push(row);
        }
    })?;
    if copies.is_empty() {
        return Err(CliError::failed(
            format!("{} is in no conflict", full(&replica.root, &winner)),
            "driftless conflicts list shows those there are",
        ));
    }
    let mut all: Vec<Shown> = winner_shown(&replica, winner.clone())?.into_iter().collect();
    all.extend(copies.into_iter().map(|row| copy_shown(&replica.root, &winner, row)));
    for shown in &all {
        if common.json { json_line(shown) } else { print(&replica.root, shown) }
    }
    if !common.json {
        result_line("to resolve it: driftless conflicts resolve COPY --keep winner|copy|both");
    }
    Ok(ExitCode::InSync)
}

fn explain(replica: &Replica, below: &[u8]) -> Result<Explanation, CliError> {
    match replica.ask(&Request::why(below))? {
        Response::Why(why) => Ok(*why),
        _ => Err(unexpected()),
    }
}

/// The path that a copy lost, or the path itself.
fn winner_of(replica: &Replica, below: &[u8]) -> Result<PathText, CliError> {
    let base = explain(replica, below)?.on_disk.and_then(|d| d.conflict_of);
    Ok(match base {
        Some(name) => {
            let dir = below.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
            PathText::new(&[&below[..dir], &name.bytes()].concat())
        }
        None => PathText::new(below),
    })
}

/// What has the name; nothing if a directory or nothing is there.
fn winner_shown(replica: &Replica, winner: PathText) -> Result<Option<Shown>, CliError> {
    let why = explain(replica, &winner.bytes())?;
    let Some(disk) = why.on_disk else { return Ok(None) };
    let mut versions = why.claimants.iter().flat_map(|c| &c.versions);
    let written_by = versions.find(|v| v.on_disk).map(|v| v.by.clone()).unwrap_or_default();
    Ok(Some(Shown {
        path: winner,
        wins: true,
        kind: disk.kind,
        size: disk.size,
        modified: disk.modified,
        written_by,
        first_difference: None,
    }))
}

fn copy_shown(root: &Path, winner: &PathText, row: ConflictRow) -> Shown {
    let at = |below: &PathText| root.join(std::ffi::OsStr::from_bytes(&below.bytes()));
    // What cannot be read is shown without.
    let first_difference = match row.kind.as_str() {
        "file" => first_difference(&at(winner), &at(&row.path)).unwrap_or(None),
        _ => None,
    };
    Shown {
        path: row.path,
        wins: false,
        kind: row.kind,
        size: row.size,
        modified: row.modified,
        written_by: row.written_by,
        first_difference,
    }
}

/// Where two files differ first; `None` if they do not, or one is no file.
fn first_difference(a: &Path, b: &Path) -> io::Result<Option<Difference>> {
    if !(std::fs::symlink_metadata(a)?.is_file() && std::fs::symlink_metadata(b)?.is_file()) {
        return Ok(None);
    }
    difference(BufReader::new(File::open(a)?), BufReader::new(File::open(b)?))
}

fn difference(mut a: impl Read, mut b: impl Read) -> io::Result<Option<Difference>> {
    let (mut left, mut right) = (Vec::with_capacity(STEP_LEN), Vec::with_capacity(STEP_LEN));
    let (mut at_byte, mut line) = (0, 1);
    loop {
        left.clear();
        right.clear();
        a.by_ref().take(STEP_LEN as u64).read_to_end(&mut left)?;
        b.by_ref().take(STEP_LEN as u64).read_to_end(&mut right)?;
        let same = left.iter().zip(&right).take_while(|(x, y)| x == y).count();
        at_byte += same as u64;
        line += left[..same].iter().filter(|b| **b == b'\n').count() as u64;
        if same < left.len().max(right.len()) {
            return Ok(Some(Difference { at_byte, line }));
        }
        if same < STEP_LEN {
            return Ok(None);
        }
    }
}

fn print(root: &Path, shown: &Shown) {
    result_line(&full(root, &shown.path));
    let what = if shown.wins { "has the name" } else { "copy" };
    let by = match shown.written_by.as_str() {
        "" => String::new(),
        site => format!(", written by {}", path(site)),
    };
    result_line(&format!("  {what}: {} of {}, {}{by}", shown.kind, units::bytes(shown.size), shown.modified));
    if let Some(Difference { at_byte, line }) = shown.first_difference {
        result_line(&format!("  differs first at byte {at_byte} (line {line})"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_found() {
        let of = |a: &[u8], b: &[u8]| difference(a, b).unwrap().map(|d| (d.at_byte, d.line));
        assert_eq!(of(b"", b""), None);
        assert_eq!(of(b"one\ntwo\n", b"one\ntwo\n"), None);
        assert_eq!(of(b"one\ntwo\n", b"one\ntow\n"), Some((5, 2)));
        assert_eq!(of(b"one", b"one\ntwo"), Some((3, 1)));
        let long = vec![b'\n'; 3 * STEP_LEN];
        let mut other = long.clone();
        assert_eq!(of(&long, &other), None);
        other[2 * STEP_LEN + 7] = b'x';
        assert_eq!(of(&long, &other), Some((2 * STEP_LEN as u64 + 7, 2 * STEP_LEN as u64 + 8)));
        assert_eq!(of(&long, &long[..STEP_LEN]), Some((STEP_LEN as u64, STEP_LEN as u64 + 1)));
    }
}
