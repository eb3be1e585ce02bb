//! `driftless-compare A B`: says whether two directories hold the same tree. Exit code 0 if so, 1 if
//! not, 2 if it cannot tell.

use driftless_testkit::{CompareOptions, compare};
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: driftless-compare [--no-dir-mtime] [--no-mtime] [--no-owner] [--no-xattrs] [--no-holes] [--no-hard-links] A B";

fn main() -> ExitCode {
    let Some((options, a, b)) = arguments() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match compare(&a, &b, &options) {
        Ok(differences) => {
            for d in &differences {
                println!("{d}");
            }
            ExitCode::from(u8::from(!differences.is_empty()))
        }
        Err(e) => {
            eprintln!("driftless-compare: {e}");
            ExitCode::from(2)
        }
    }
}

fn arguments() -> Option<(CompareOptions, PathBuf, PathBuf)> {
    let mut options = CompareOptions::default();
    let mut paths = Vec::new();
    for argument in std::env::args_os().skip(1) {
        match argument.to_str() {
            Some("--no-dir-mtime") => options.dir_mtime = false,
            Some("--no-mtime") => options.mtime = false,
            Some("--no-owner") => options.owner = false,
            Some("--no-xattrs") => options.xattrs = false,
            Some("--no-holes") => options.holes = false,
            Some("--no-hard-links") => options.hard_links = false,
            Some(flag) if flag.starts_with("--") => return None,
            _ => paths.push(PathBuf::from(argument)),
        }
    }
    let b = paths.pop()?;
    let a = paths.pop()?;
    paths.is_empty().then_some((options, a, b))
}
