//! Files that are written to all the time, and never are the same before and after they were read.

use crate::common::*;
use driftless_testkit::mount::Small;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The number that the writer below has put at an offset.
fn number_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Writes rising numbers to the first and then to the last page, until told to stop.
fn write_both_ends(path: &Path, len: u64, stop: &AtomicBool) {
    let file = File::options().write(true).open(path).unwrap();
    let mut n = 0u64;
    while !stop.load(Ordering::Relaxed) {
        n += 1;
        file.write_all_at(&n.to_le_bytes(), 0).unwrap();
        file.write_all_at(&n.to_le_bytes(), len - 4096).unwrap();
        // A busy database, not a program that does nothing but write.
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// A file is at rest when it is first read; then a program opens it, and never closes it. No event tells of what is written.
/// Where the file system has copies that share blocks, a file that never rests comes over as it was at one moment, also
/// one so large that it is read aside.
#[test]
fn a_database_that_never_rests_is_carried_as_it_was_at_a_moment() {
    let pair = Pair::new();
    let Some(_disk) = Small::on_disk("xfs", &pair.a, &pair.base.path().join("image")) else { return };
    let files = [("small", 64 << 10), ("database", 4 << 20), ("image", 40 << 20)];
    let stop = AtomicBool::new(false);
    /// Ends the writers, also when the test fails.
    struct Stops<'a>(&'a AtomicBool);
    impl Drop for Stops<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    for (name, len) in files {
        let file = File::create(pair.a.join(name)).unwrap();
        file.write_all_at(&vec![b'.'; len - 8192], 4096).unwrap();
        file.set_len(len as u64).unwrap();
    }
    let running = pair.start(&["--crawl-every", "1s"]);
    std::thread::scope(|scope| {
        let _stops = Stops(&stop);
        for (name, len) in files {
            let (path, stop) = (pair.a.join(name), &stop);
            scope.spawn(move || write_both_ends(&path, len as u64, stop));
        }
        for (name, len) in files {
            wait_until("a version while it is written to", || {
                let bytes = fs::read(pair.b.join(name)).map_err(|e| e.to_string())?;
                if bytes.len() != len || number_at(&bytes, 0) == 0 {
                    return Err(format!("{name}: {} bytes, {:?}", bytes.len(), bytes.get(..8)));
                }
                let (first, last) = (number_at(&bytes, 0), number_at(&bytes, len - 4096));
                assert!(first == last || first == last + 1, "{name}: {first} and {last} were never together");
                Ok(())
            });
        }
    });
    pair.wait_same("they are closed");
    running.stop();
    pair.once(&[]);
}
