//! Large files of which much is at the other site already: only what is missing travels, also after a cut.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod sites;

use sites::{Sites, wait_until};
use std::fs;
use std::io::Write as _;
use std::path::Path;

const MIB: usize = 1 << 20;
/// Chunks around each change travel with it.
const SLACK: u64 = 256 << 10;

/// Bytes that look like nothing, from a seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 8);
    let mut x = seed | 1;
    while out.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out.extend_from_slice(&x.wrapping_mul(0x2545_F491_4F6C_DD1D).to_be_bytes());
    }
    out.truncate(len);
    out
}

/// Another file, put over the one that is there. It is made outside of the tree, so that nothing of it is carried before.
fn save(path: &Path, bytes: &[u8]) {
    let outside = path.parent().unwrap().with_extension("outside");
    fs::write(&outside, bytes).unwrap();
    fs::rename(outside, path).unwrap();
}

/// Two sites with one large file.
fn two_sites(bytes: &[u8]) -> (Sites, sites::Cable) {
    let mut sites = Sites::new(2);
    sites.open_all();
    let cable = sites.join(0, 1);
    fs::write(sites.roots[0].join("large"), bytes).unwrap();
    sites.wait_same();
    sites.wait_quiet();
    (sites, cable)
}

#[test]
fn edits_cost_what_they_change() {
    let mut bytes = noise(1, 8 * MIB);
    let (sites, cable) = two_sites(&bytes);
    assert!(cable.content_bytes() >= bytes.len() as u64);
    for (what, at, insert) in [("moved", 0, 1000), ("changed", 5 * MIB, 0), ("appended to", 8 * MIB, 50_000)]
    {
        let before = cable.content_bytes();
        bytes.splice(at..at, noise(2, insert));
        let end = bytes.len().min(at + 10);
        bytes[at..end].fill(7);
        save(&sites.roots[0].join("large"), &bytes);
        sites.wait_same();
        sites.wait_quiet();
        let sent = cable.content_bytes() - before;
        assert!(sent >= insert as u64 && sent < SLACK, "{what}: {sent} bytes were sent");
    }
    // In place, and at the other site.
    let before = cable.content_bytes();
    fs::File::options().append(true).open(sites.roots[1].join("large")).unwrap().write_all(b"more").unwrap();
    sites.wait_same();
    sites.wait_quiet();
    assert!(cable.content_bytes() - before < SLACK);
    // Much shorter, and something else: nothing that is here is of use.
    let before = cable.content_bytes();
    save(&sites.roots[0].join("large"), &noise(9, 3 * MIB));
    sites.wait_same();
    assert_eq!(cable.content_bytes() - before, 3 * MIB as u64);
}

#[test]
fn a_transfer_goes_on_inside_the_file() {
    for restart in [false, true] {
        let mut bytes = noise(3, 8 * MIB);
        let (mut sites, cable) = two_sites(&bytes);
        drop(cable);
        bytes[4 * MIB..].copy_from_slice(&noise(4, 4 * MIB));
        save(&sites.roots[0].join("large"), &bytes);
        let cut = 3 * MIB as u64;
        let cable = sites.join_for(0, 1, cut);
        wait_until("the cable to be cut", || match cable.is_stalled() {
            true => Ok(()),
            false => Err(format!("{} bytes", cable.content_bytes())),
        });
        drop(cable);
        if restart {
            sites.stop(1);
            sites.open(1);
        }
        let cable = sites.join(0, 1);
        sites.wait_same();
        sites.wait_quiet();
        let sent = cable.content_bytes();
        let missing = 4 * MIB as u64 - cut;
        assert!(sent < missing + SLACK, "{sent} bytes were sent, {missing} are missing; restart {restart}");
    }
}
