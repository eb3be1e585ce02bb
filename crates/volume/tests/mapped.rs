//! Stores through mappings: no event, no new time stamp into a dirty page. The flush before the look makes them show.
#![allow(unsafe_code, clippy::unwrap_used, reason = "mmap; and tests may panic")]

mod common;

use common::*;
use driftless_volume::{Reason, Writers};
use std::os::fd::AsRawFd;

const LEN: usize = 4096;

/// A shared writable mapping of a file that is not open any more.
struct Mapped(*mut u8);

impl Mapped {
    fn new(path: &std::path::Path) -> Mapped {
        let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping of an open file of at least LEN bytes, placed by the kernel.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), LEN, prot, flags, file.as_raw_fd(), 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Mapped(at.cast())
    }

    fn store(&self, byte: u8) {
        // SAFETY: the mapping is LEN bytes long, writable, and lives as long as self.
        unsafe { self.0.write_volatile(byte) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in new; nothing refers to it any more.
        unsafe { libc::munmap(self.0.cast(), LEN) };
    }
}

#[test]
fn a_second_store_into_a_dirty_page_changes_the_fingerprint() {
    let v = Volume::new();
    v.write("f", &[0; LEN]);
    let mapped = Mapped::new(&v.path("f"));
    mapped.store(1);
    let first = hashed(&v.root(), "f");
    mapped.store(2);
    let second = hashed(&v.root(), "f");
    assert_ne!(first.looked.content, second.looked.content);
    if v.volume.capabilities().fs == "tmpfs" {
        return eprintln!("skipped: tmpfs has nothing to flush to");
    }
    // Where times are coarse, it says that it has to be looked at again.
    assert!(first.looked.racy || first.looked.fingerprint != second.looked.fingerprint);
    assert!(first.looked.racy || first.looked.fingerprint != seen(&v.root(), "f").fingerprint);
}

#[test]
fn a_writable_mapping_counts_as_a_writer() {
    let v = Volume::new();
    if !v.volume.capabilities().leases {
        return eprintln!("skipped: no leases here");
    }
    v.write("f", &[0; LEN]);
    let mapped = Mapped::new(&v.path("f"));
    assert_eq!(hashed(&v.root(), "f").writers, Writers::Some);
    let victim = victim(&v.root(), "f");
    let place = || v.volume.place(&v.stage(b"ours"), &v.root(), &name("f"), Some(&victim));
    assert_eq!(place().unwrap_err().reason(), Reason::Busy);
    drop(mapped);
    place().unwrap();
}
