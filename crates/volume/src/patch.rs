//! Putting a file together from parts of another: reading both by chunks, copying what is the same.
//!
//! Everything here may run on any thread, several parts of a file at once.

use crate::error::{Context, VolumeError};
use crate::read::{DigestSoFar, ReadHandle, data_from};
use crate::stage::write_sparse;
use crate::sys;
use driftless_core::recipe::{Copy, Cut, Item};
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Files are read and copied in pieces of about this size, which stay in a processor's cache: longer than any chunk but those of large files.
const PIECE_LEN: usize = 256 << 10;

/// What is shorter is copied though its blocks could be shared: it takes no longer, and does not cut the file into so many pieces.
const SHARED_LEN_MIN: u64 = 64 << 10;

/// A staged file that others write to as well.
#[derive(Debug)]
pub struct Patch {
    fd: OwnedFd,
    /// How long the blocks are that files of its file system may share.
    block_len: u64,
    /// Whether they can be, as far as was tried.
    shares: AtomicBool,
}

impl Patch {
    /// `shares`: files of its file system may share blocks.
    pub(crate) fn new(fd: OwnedFd, shares: bool) -> Result<Patch, Errno> {
        let block_len = rustix::fs::fstatvfs(&fd)?.f_frsize.max(1);
        Ok(Patch { fd, block_len, shares: shares.into() })
    }

    /// Brings bytes of `source` to their place. Blocks that are at such a place there that both files can share them are
    /// neither copied nor take space once more. Others are copied, but for those of zeroes, which are left out, as they are in a file
    /// that is new. If `source` has become shorter less is copied: the digest will tell.
    ///
    /// # Errors
    /// If one cannot be read or the other not be written.
    pub fn copy(&self, source: &ReadHandle, what: &Copy) -> Result<(), VolumeError> {
        let shared = self.share(source, what);
        let before = Copy { len: shared.start, ..*what };
        let after =
            Copy { from: what.from + shared.end, to: what.to + shared.end, len: what.len - shared.end };
        [before, after].iter().try_for_each(|rest| self.copy_bytes(source, rest))
    }

    /// Has the files share what they can: which of the bytes that is.
    fn share(&self, source: &ReadHandle, what: &Copy) -> Range<u64> {
        let none = what.len..what.len;
        let Some(blocks) = whole_blocks(what, self.block_len).filter(|b| b.end - b.start >= SHARED_LEN_MIN)
        else {
            return none;
        };
        if !self.shares.load(Ordering::Relaxed) {
            return none;
        }
        let (from, to) = (what.from + blocks.start, what.to + blocks.start);
        match sys::share_blocks(source, from, &self.fd, to, blocks.end - blocks.start) {
            Ok(()) => blocks,
            // Whatever is against it: if it is against copying as well, that will tell.
            Err(_) => {
                self.shares.store(false, Ordering::Relaxed);
                none
            }
        }
    }

    fn copy_bytes(&self, source: &ReadHandle, what: &Copy) -> Result<(), VolumeError> {
        let mut buffer = Vec::with_capacity(PIECE_LEN.min(usize::try_from(what.len).unwrap_or(PIECE_LEN)));
        let mut done = 0;
        while done < what.len {
            buffer.clear();
            let read = fill(source.as_fd(), what.from + done, &mut buffer);
            read.doing("read", b"an open file")?;
            let left = usize::try_from(what.len - done).unwrap_or(usize::MAX);
            buffer.truncate(left);
            if buffer.is_empty() {
                return Ok(());
            }
            write_sparse(&self.fd, &buffer, what.to + done).doing("write", b"a staged file")?;
            done += buffer.len() as u64;
        }
        Ok(())
    }

    /// Reads on for a digest, up to `end`; what is shared as well, since its source may have been written to before. Zeroes at
    /// the end of the file need not have been written; false if it becomes shorter meanwhile.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn digest(&self, so_far: &mut DigestSoFar, end: u64) -> Result<bool, VolumeError> {
        so_far.go_on(self.fd.as_fd(), end, true).doing("read", b"a staged file")
    }

    /// As [`ReadHandle::cut`].
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn cut(&self, part: Range<u64>, cut: Cut, each: impl FnMut(u64, Item)) -> Result<bool, VolumeError> {
        cut_part(self.fd.as_fd(), part, cut, each).doing("read", b"a staged file")
    }
}

impl ReadHandle {
    /// Gives the chunks of a part of the file, and where they start, to `each`. False if the file ends before.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn cut(&self, part: Range<u64>, cut: Cut, each: impl FnMut(u64, Item)) -> Result<bool, VolumeError> {
        cut_part(self.as_fd(), part, cut, each).doing("read", b"an open file")
    }
}

/// Which of the bytes are whole blocks at both ends, if both ends have the same ones.
fn whole_blocks(what: &Copy, block_len: u64) -> Option<Range<u64>> {
    let before = what.to.checked_next_multiple_of(block_len)? - what.to;
    let len = what.len.checked_sub(before)? / block_len * block_len;
    (what.from % block_len == what.to % block_len).then_some(before..before + len)
}

fn cut_part(
    fd: BorrowedFd<'_>,
    part: Range<u64>,
    cut: Cut,
    mut each: impl FnMut(u64, Item),
) -> Result<bool, Errno> {
    // A part that was never written has nothing that would be looked for.
    if data_from(fd, part.start, part.end)? == part.end {
        return Ok(true);
    }
    let mut buffer: Vec<u8> = Vec::with_capacity(PIECE_LEN + cut.longest());
    let mut at = part.start;
    loop {
        // What is left of the piece before is at the front.
        fill(fd, at + buffer.len() as u64, &mut buffer)?;
        let left = usize::try_from(part.end - at).unwrap_or(usize::MAX);
        let have = buffer.len().min(left);
        let last = have == left;
        if !last && have < cut.longest() {
            return Ok(false);
        }
        let (from, mut to) = (at, at);
        let cut_off = cut.chunks(&buffer[..have], last, |item| {
            each(to, item);
            to += u64::from(item.len);
        });
        if last {
            return Ok(true);
        }
        at = from + cut_off as u64;
        buffer.drain(..cut_off);
    }
}

/// Reads on at the end of `buffer`, as far as it has room and the file goes.
fn fill(fd: BorrowedFd<'_>, mut at: u64, buffer: &mut Vec<u8>) -> Result<(), Errno> {
    while buffer.len() < buffer.capacity() {
        match rustix::io::retry_on_intr(|| rustix::io::pread(fd, spare_capacity(buffer), at))? {
            0 => return Ok(()),
            got => at += got as u64,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::open_source;
    use driftless_core::Digest;
    use driftless_core::recipe::{ChunkHash, Recipe};

    fn noise(len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut out);
        out
    }

    #[test]
    fn a_file_is_cut_as_its_bytes_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let bytes = noise(3 * PIECE_LEN + 12_345);
        std::fs::write(&path, &bytes).unwrap();
        let (file, cut) = (open_source(&path).unwrap(), Cut::of_size(0, ChunkHash::Xxh3));
        let part = 1000..bytes.len() as u64 - 1000;
        let (mut items, mut next) = (Vec::new(), part.start);
        let whole = file.cut(part.clone(), cut, |at, item| {
            assert_eq!(at, next);
            next += u64::from(item.len);
            items.push(item);
        });
        assert!(whole.unwrap());
        let mut expected = Vec::new();
        cut.chunks(&bytes[1000..bytes.len() - 1000], true, |item| expected.push(item));
        assert_eq!(items, expected);
        assert_eq!(Recipe::new(items).unwrap().bytes(), part.end - part.start);
        assert!(!file.cut(0..bytes.len() as u64 * 2, cut, |_, _| {}).unwrap(), "it is shorter");
    }

    #[test]
    fn a_digest_goes_over_holes_and_zeroes_as_over_bytes() {
        use crate::read::hash_fd;
        use std::os::unix::fs::FileExt;
        const KIB: usize = 1024;
        let dir = tempfile::tempdir().unwrap();
        let size = 4096 * KIB;
        // What is written of a file of zeroes: its beginning, its middle, its end, all but a hole, nothing.
        let written: [[Range<usize>; 2]; 7] = [
            [0..1, 0..0],
            [1000 * KIB..1500 * KIB, 3000 * KIB..3000 * KIB + 1],
            [0..0, size - 1..size],
            [0..1024 * KIB, 3000 * KIB..size],
            [0..256 * KIB, 0..0],
            [0..0, 0..size],
            [0..0, 0..0],
        ];
        for (i, ranges) in written.into_iter().enumerate() {
            for fill in [noise(size), vec![0; size]] {
                let path = dir.path().join("f");
                let file = std::fs::File::create(&path).unwrap();
                let mut expected = vec![0; size];
                for r in &ranges {
                    file.write_all_at(&fill[r.clone()], r.start as u64).unwrap();
                    expected[r.clone()].copy_from_slice(&fill[r.clone()]);
                }
                // The last of it need not have been written.
                let file = std::fs::File::open(&path).unwrap();
                let mut so_far = DigestSoFar::default();
                for end in [0, 999, 300 * KIB, 2000 * KIB, size] {
                    assert!(so_far.go_on(file.as_fd(), end as u64, true).unwrap());
                    assert_eq!(so_far.end(), end as u64);
                    assert_eq!(so_far.digest(), Digest::of(&expected[..end]), "file {i} up to {end}");
                }
                let written_to = ranges.iter().map(|r| r.end).max().unwrap_or(0);
                let whole = hash_fd(file.as_fd(), size as u64, false).unwrap();
                assert_eq!(whole.is_some(), written_to == size, "file {i}");
                assert!(whole.is_none_or(|digest| digest == Digest::of(&expected)));
            }
        }
    }

    #[test]
    fn what_is_copied_is_where_it_belongs() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let mut bytes = noise(2 * PIECE_LEN + 5);
        bytes[PIECE_LEN..PIECE_LEN + 100_000].fill(0);
        std::fs::write(&from, &bytes).unwrap();
        let file = std::fs::File::options().create_new(true).read(true).write(true).open(&to).unwrap();
        let patch = Patch::new(file.into(), true).unwrap();
        let source = open_source(&from).unwrap();
        let len = bytes.len() as u64 - 3;
        patch.copy(&source, &Copy { from: 3, to: 1, len }).unwrap();
        patch.copy(&source, &Copy { from: bytes.len() as u64, to: 0, len: 9 }).unwrap();
        let mut expected = vec![0];
        expected.extend_from_slice(&bytes[3..]);
        assert_eq!(std::fs::read(&to).unwrap(), expected);
        let mut so_far = DigestSoFar::default();
        for end in [0, 1, len / 2, len / 2, len + 1] {
            assert!(patch.digest(&mut so_far, end).unwrap());
            assert_eq!((so_far.end(), so_far.digest()), (end, Digest::of(&expected[..end as usize])));
        }
        expected.push(0);
        assert!(patch.digest(&mut so_far, len + 2).unwrap(), "zeroes at the end");
        assert_eq!(so_far.digest(), Digest::of(&expected));
    }

    #[test]
    fn whole_blocks_are_those_of_both_files() {
        let blocks = |from, to, len| whole_blocks(&Copy { from, to, len }, 4096);
        assert_eq!(blocks(0, 8192, 4096), Some(0..4096));
        assert_eq!(blocks(1, 4097, 3 * 4096), Some(4095..4095 + 2 * 4096));
        assert_eq!(blocks(4095, 4095, 4097), Some(1..4097));
        assert_eq!(blocks(4095, 4095, 4096), Some(1..1));
        assert_eq!(blocks(1, 1, 4094), None, "it ends before the first");
        assert_eq!(blocks(0, 1, 1 << 30), None, "not in step");
        assert_eq!(blocks(u64::MAX, u64::MAX, 1), None);
    }

    #[test]
    fn blocks_are_shared_where_both_files_have_them() {
        use std::os::unix::fs::FileExt;
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("disk");
        let Some(_disk) = driftless_testkit::mount::Small::on_disk("xfs", &dir, &base.path().join("image"))
        else {
            return;
        };
        let free = || {
            let stat = rustix::fs::statvfs(&dir).unwrap();
            stat.f_bavail * stat.f_frsize
        };
        let bytes = noise(48 << 20);
        let (from, to) = (dir.join("from"), dir.join("to"));
        std::fs::write(&from, &bytes).unwrap();
        std::fs::File::open(&from).unwrap().sync_all().unwrap();
        let before = free();
        let file = std::fs::File::options().create_new(true).read(true).write(true).open(&to).unwrap();
        let patch = Patch::new(file.try_clone().unwrap().into(), true).unwrap();
        let source = open_source(&from).unwrap();
        let mut expected = vec![0; 48 << 20];
        let written = b"written before and after";
        let mut rng = driftless_testkit::Rng::new(1);
        let mut copied = 0;
        let mut at = 0;
        while at < expected.len() {
            let len = (rng.below(4 << 20) as usize).min(expected.len() - at);
            let out_of_step = rng.below(8) == 0;
            let from = if out_of_step { at / 2 } else { at };
            file.write_all_at(written, at as u64).unwrap();
            let what = Copy { from: from as u64, to: at as u64, len: len as u64 };
            patch.copy(&source, &what).unwrap();
            expected[at..at + len].copy_from_slice(&bytes[from..from + len]);
            if let Some(last) = (at + len).checked_sub(written.len()) {
                file.write_all_at(written, last as u64).unwrap();
                expected[last..at + len].copy_from_slice(written);
            }
            copied += if from == at { 0 } else { len as u64 };
            at += len;
        }
        assert_eq!(std::fs::read(&to).unwrap(), expected);
        assert!(patch.shares.load(Ordering::Relaxed));
        file.sync_all().unwrap();
        let taken = before - free();
        assert!(taken < copied + (4 << 20), "{taken} bytes were taken where {copied} were copied");
        assert_eq!(std::fs::read(&from).unwrap(), bytes);
        // A source that ends before is no error: it is copied as far as it goes.
        let end = bytes.len() as u64;
        patch.copy(&source, &Copy { from: end - 4096, to: end - 4096, len: 1 << 20 }).unwrap();
        assert_eq!(std::fs::metadata(&to).unwrap().len(), end);
    }
}
