//! The power goes: `scripts/power-cut.py` with a handful of cuts. `docs/testing.md` has the command for many.

use crate::common::*;
use std::process::Command;

/// What the script exits with where it cannot run.
const SKIPPED: i32 = 77;

#[test]
fn ext4_is_cut_and_comes_back() {
    cut("ext4");
}

#[test]
fn xfs_is_cut_and_comes_back() {
    cut("xfs");
}

fn cut(file_system: &str) {
    if !has("python3") {
        return;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/power-cut.py");
    let driftless = env!("CARGO_BIN_EXE_driftless");
    let ran =
        run(Command::new("python3").args([script, file_system, "--cuts", "5", "--driftless", driftless]));
    if ran.code == SKIPPED {
        eprintln!("{}", ran.out);
    } else {
        assert_eq!(ran.code, 0, "{ran:#?}");
    }
}
