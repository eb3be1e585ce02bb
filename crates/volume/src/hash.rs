//! The digest of a file: read once, holes left out, large files by several threads.
//!
//! BLAKE3 is a tree: a part of a file whose length is a power of two and divides its offset is a subtree, hashed by whoever comes to
//! it, and the values of all parts make the digest (section 2.1 of the paper).

use crate::read::next_data;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use driftless_core::Digest;
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

/// Contents are read in pieces of this size.
const READ_PIECE_LEN: usize = 256 << 10;
/// Zeroes that stand for holes.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Files of this size on are read by several threads: what it takes to start them is nothing beside it.
const SHARED_LEN_MIN: u64 = 32 << 20;
/// The shortest part that a thread takes at a time, a power of two.
const PART_LEN_MIN: u64 = 4 << 20;
/// Parts of the largest files grow, so that there are no more than this: each leaves 32 bytes.
const PARTS_MAX: u64 = 8192;
/// Threads that help at the same time, in this process: four read as fast as most disks can.
const HELPERS_MAX: usize = 3;

/// Helpers that nobody has. One processor is left to whoever reads.
static FREE_HELPERS: LazyLock<AtomicUsize> = LazyLock::new(|| {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    AtomicUsize::new(HELPERS_MAX.min(processors - 1))
});

/// The digest of the first `size` bytes; `None` if the file is shorter. Holes of `sparse` files are not read.
pub(crate) fn hash_fd(fd: BorrowedFd<'_>, size: u64, sparse: bool) -> Result<Option<Digest>, Errno> {
    let file = File { fd, sparse };
    if size >= SHARED_LEN_MIN {
        let helpers = Helpers::take();
        if helpers.0 > 0 {
            let part_len = PART_LEN_MIN.max(size.div_ceil(PARTS_MAX).next_power_of_two());
            return file.hash_shared(size, part_len, helpers.0);
        }
    }
    let mut hasher = blake3::Hasher::new();
    let whole = file.hash(&mut hasher, 0..size, &mut Vec::with_capacity(READ_PIECE_LEN))?;
    Ok(whole.then(|| Digest(*hasher.finalize().as_bytes())))
}

/// All helpers that were free, until it is dropped.
struct Helpers(usize);

impl Helpers {
    fn take() -> Helpers {
        Helpers(FREE_HELPERS.swap(0, Ordering::Relaxed))
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        FREE_HELPERS.fetch_add(self.0, Ordering::Relaxed);
    }
}

#[derive(Clone, Copy)]
struct File<'a> {
    fd: BorrowedFd<'a>,
    sparse: bool,
}

impl File<'_> {
    /// Feeds a range to `hasher`; false if the file ends before.
    fn hash(
        self,
        hasher: &mut blake3::Hasher,
        range: Range<u64>,
        buffer: &mut Vec<u8>,
    ) -> Result<bool, Errno> {
        let mut at = range.start;
        while at < range.end {
            let data = if self.sparse { next_data(self.fd, at, range.end)? } else { at..range.end };
            hash_zeroes(hasher, data.start - at);
            at = data.start;
            while at < data.end {
                buffer.clear();
                let got =
                    rustix::io::retry_on_intr(|| rustix::io::pread(self.fd, spare_capacity(buffer), at))?;
                if got == 0 {
                    return Ok(false);
                }
                let wanted = usize::try_from(data.end - at).unwrap_or(got).min(got);
                hasher.update(&buffer[..wanted]);
                at += wanted as u64;
            }
        }
        Ok(true)
    }

    /// The digest of `size` bytes in parts of `part_len`, more than one, by this thread and `helpers` more.
    fn hash_shared(self, size: u64, part_len: u64, helpers: usize) -> Result<Option<Digest>, Errno> {
        let count = usize::try_from(size.div_ceil(part_len)).map_err(|_| Errno::FBIG)?;
        let values = Mutex::new(vec![ChainingValue::default(); count]);
        let (next, over) = (AtomicUsize::new(0), AtomicBool::new(false));
        let work = || -> Result<bool, Errno> {
            let mut buffer = Vec::with_capacity(READ_PIECE_LEN);
            loop {
                let part = next.fetch_add(1, Ordering::Relaxed);
                if part >= count || over.load(Ordering::Relaxed) {
                    return Ok(true);
                }
                let start = part as u64 * part_len;
                let mut hasher = blake3::Hasher::new();
                hasher.set_input_offset(start);
                let whole = self.hash(&mut hasher, start..size.min(start + part_len), &mut buffer);
                if whole != Ok(true) {
                    // Nobody needs the others any more.
                    over.store(true, Ordering::Relaxed);
                    return whole;
                }
                // Each value is written once, as a whole.
                values.lock().unwrap_or_else(PoisonError::into_inner)[part] = hasher.finalize_non_root();
            }
        };
        let whole = std::thread::scope(|scope| {
            let start = |_| std::thread::Builder::new().name("hash".into()).spawn_scoped(scope, work).ok();
            // With fewer than asked for it only takes longer.
            let started: Vec<_> = (0..helpers).map_while(start).collect();
            let own = work();
            let all = started
                .into_iter()
                .map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            std::iter::once(own).chain(all).try_fold(true, |so_far, one| one.map(|whole| so_far && whole))
        })?;
        let values = values.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (left, right) = values.split_at(left_count(count));
        let root = || merge_subtrees_root(&merged(left), &merged(right), Mode::Hash);
        Ok(whole.then(|| Digest(*root().as_bytes())))
    }
}

/// How many of several parts are below the left child of what holds them all: the greatest power of two that leaves some.
fn left_count(count: usize) -> usize {
    count.next_power_of_two() / 2
}

/// The value of the subtree over these parts.
fn merged(parts: &[ChainingValue]) -> ChainingValue {
    if let [one] = parts {
        return *one;
    }
    let (left, right) = parts.split_at(left_count(parts.len()));
    merge_subtrees_non_root(&merged(left), &merged(right), Mode::Hash)
}

fn hash_zeroes(hasher: &mut blake3::Hasher, mut len: u64) {
    while len > 0 {
        let piece = len.min(ZEROES.len() as u64);
        hasher.update(&ZEROES[..piece as usize]);
        len -= piece;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, SeekFrom, Write};
    use std::os::fd::AsFd;

    fn bytes(len: usize) -> Vec<u8> {
        (0..len as u32).flat_map(|i| i.wrapping_mul(0x9e37_79b9).to_le_bytes()).take(len).collect()
    }

    #[test]
    fn parts_make_the_digest_of_the_whole() {
        let part = 4096;
        for len in [
            part + 1,
            2 * part,
            2 * part + 1,
            5 * part,
            7 * part - 1,
            16 * part,
            16 * part + 1,
            33 * part + 1025,
        ] {
            let (mut file, bytes) = (tempfile::tempfile().unwrap(), bytes(len));
            file.write_all(&bytes).unwrap();
            let expected = Some(Digest(*blake3::hash(&bytes).as_bytes()));
            for (sparse, helpers) in [(false, 0), (false, 3), (true, 2)] {
                let file = File { fd: file.as_fd(), sparse };
                let found = file.hash_shared(len as u64, part as u64, helpers);
                assert_eq!(found, Ok(expected), "{len} bytes, {helpers} helpers");
            }
            let file = File { fd: file.as_fd(), sparse: false };
            assert_eq!(file.hash_shared(len as u64 + 1, part as u64, 1), Ok(None), "it is shorter");
        }
    }

    #[test]
    fn a_large_file_with_holes_has_the_digest_of_its_zeroes() {
        let mut file = tempfile::tempfile().unwrap();
        let mut expected = vec![0; SHARED_LEN_MIN as usize + 12345];
        for at in [0, 5_000_000, 21_000_000, SHARED_LEN_MIN as usize - 100] {
            let some = bytes(70_000.min(expected.len() - at));
            file.seek(SeekFrom::Start(at as u64)).unwrap();
            file.write_all(&some).unwrap();
            expected[at..at + some.len()].copy_from_slice(&some);
        }
        file.set_len(expected.len() as u64).unwrap();
        let digest = Some(Digest(*blake3::hash(&expected).as_bytes()));
        for sparse in [false, true] {
            assert_eq!(hash_fd(file.as_fd(), expected.len() as u64, sparse), Ok(digest));
        }
        assert_eq!(hash_fd(file.as_fd(), expected.len() as u64 + 1, false), Ok(None));
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let dir = std::fs::File::open(dir.path()).unwrap();
        assert_eq!(File { fd: dir.as_fd(), sparse: false }.hash_shared(1 << 20, 4096, 2), Err(Errno::ISDIR));
        assert_eq!(hash_fd(dir.as_fd(), SHARED_LEN_MIN, false), Err(Errno::ISDIR));
    }
}
