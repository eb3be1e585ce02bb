//! Large files between two nodes, with the bytes that went over the connection counted: an edit costs what it changes, and a
//! transfer goes on inside the file after its receiver was killed.

use crate::common::*;
use crate::sites::{Site, wait_same};
use driftless_testkit::Rng;
use driftless_testkit::mount::Small;
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::FileExt as _;
use tempfile::TempDir;

const MIB: usize = 1 << 20;

/// Bytes that do not compress.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    (0..len / 8).flat_map(|_| rng.next_u64().to_be_bytes()).collect()
}

fn two_sites(base: &TempDir) -> (Site, Site) {
    let (oslo, bergen) = (Site::new(base.path(), "oslo"), Site::new(base.path(), "bergen"));
    oslo.ok(&["volume", "add", "data", oslo.dir.to_str().unwrap()]);
    let token = oslo.ok(&["site", "invite", "--for", "data"]);
    bergen.ok(&["site", "join", &token, "--dir", &format!("data={}", bergen.dir.display())]);
    oslo.wait_link("bergen", "in-sync");
    (oslo, bergen)
}

/// Puts a new file with these bytes over the one that is there, as editors do.
fn save(site: &Site, bytes: &[u8]) {
    let outside = site.base.join("saved");
    fs::write(&outside, bytes).unwrap();
    fs::rename(outside, site.dir.join("large")).unwrap();
}

fn sent(from: &Site, to: &str) -> u64 {
    from.link(to)["sent_bytes"].as_u64().unwrap()
}

#[test]
fn an_edit_of_a_large_file_costs_what_it_changes() {
    let base = TempDir::new().unwrap();
    let (oslo, bergen) = two_sites(&base);
    let mut bytes = noise(1, 16 * MIB);
    save(&oslo, &bytes);
    wait_same(&[&oslo, &bergen]);
    oslo.wait_link("bergen", "in-sync");
    let first = sent(&oslo, "bergen");
    assert!(first >= bytes.len() as u64, "{first} bytes were sent");
    bytes.splice(0..0, noise(2, 1000));
    bytes[9 * MIB..9 * MIB + 10].fill(0);
    save(&oslo, &bytes);
    wait_same(&[&oslo, &bergen]);
    let edit = sent(&oslo, "bergen") - first;
    assert!(edit < 512 << 10, "{edit} bytes were sent for an edit");
}

#[test]
fn a_copy_of_a_large_file_is_not_sent() {
    let base = TempDir::new().unwrap();
    let (oslo, mut bergen) = two_sites(&base);
    save(&oslo, &noise(5, 8 * MIB));
    wait_same(&[&oslo, &bergen]);
    oslo.wait_link("bergen", "in-sync");
    let copy = |n: usize| fs::copy(oslo.dir.join("large"), oslo.dir.join(format!("copy{n}"))).unwrap();
    let first = sent(&oslo, "bergen");
    for n in 0..20 {
        copy(n);
    }
    wait_same(&[&oslo, &bergen]);
    let copies = sent(&oslo, "bergen") - first;
    assert!(copies < 256 << 10, "{copies} bytes were sent for copies");
    // What was written over is not taken for what it was, and what is known outlives the node.
    fs::write(oslo.dir.join("copy0"), noise(6, 8 * MIB)).unwrap();
    fs::remove_file(oslo.dir.join("copy1")).unwrap();
    wait_same(&[&oslo, &bergen]);
    bergen.end(Signal::TERM);
    bergen.start();
    oslo.wait_link("bergen", "in-sync");
    let before = sent(&oslo, "bergen");
    copy(20);
    fs::copy(oslo.dir.join("copy0"), oslo.dir.join("large")).unwrap();
    wait_same(&[&oslo, &bergen]);
    let copies = sent(&oslo, "bergen") - before;
    assert!(copies < 64 << 10, "{copies} bytes were sent for copies after a restart");
}

/// A disk that has no room for the file twice: what was not changed of it shares its blocks with the version before.
#[test]
fn an_edit_in_place_takes_no_space_for_what_it_leaves() {
    let base = TempDir::new().unwrap();
    let image = base.path().join("image");
    let Some(_disk) = Small::on_disk("xfs", &base.path().join("bergen/data"), &image) else { return };
    let (oslo, bergen) = two_sites(&base);
    let len = 160 * MIB;
    fs::write(oslo.dir.join("large"), noise(4, len)).unwrap();
    wait_same(&[&oslo, &bergen]);
    for round in 0..3 {
        let file = fs::File::options().write(true).open(oslo.dir.join("large")).unwrap();
        for i in 0..10 {
            let at = (round * 10 + i) * len as u64 / 31 + 777;
            file.write_all_at(&noise(at, 5000), at).unwrap();
        }
        drop(file);
        wait_same(&[&oslo, &bergen]);
    }
}

#[test]
fn a_killed_receiver_goes_on_inside_the_file() {
    let base = TempDir::new().unwrap();
    let (oslo, mut bergen) = two_sites(&base);
    oslo.ok(&["link", "config", "data", "--to", "bergen", "--bwlimit", "8M"]);
    let bytes = noise(3, 16 * MIB);
    save(&oslo, &bytes);
    let received = |bergen: &Site| bergen.link("oslo")["received_bytes"].as_u64().unwrap_or(0);
    let enough = bytes.len() as u64 / 2;
    wait_until("half of the file to come", || match received(&bergen) {
        n if n >= enough => Ok(()),
        n => Err(format!("{n} bytes")),
    });
    assert!(!bergen.dir.join("large").exists(), "all of it came before the kill");
    bergen.end(Signal::KILL);
    bergen.start();
    wait_same(&[&oslo, &bergen]);
    let again = received(&bergen);
    assert!(again < enough + 4 * MIB as u64, "{again} bytes were sent after the kill");
}
