//! Putting a file together from parts of another: reading both by chunks, copying what is the same.
//!
//! Everything here may run on any thread, several parts of a file at once.

use crate::error::{Context, VolumeError};
use crate::read::{ReadHandle, hash_fd, next_data};
use crate::stage::write_sparse;
use driftless_core::Digest;
use driftless_core::recipe::{Copy, Cut, Item};
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Files are read and copied in pieces of about this size: longer than any chunk but those of the largest files.
const PIECE_LEN: usize = 1 << 20;

/// A staged file that others write to as well.
#[derive(Debug)]
pub struct Patch {
    fd: OwnedFd,
}

impl Patch {
    pub(crate) fn new(fd: OwnedFd) -> Patch {
        Patch { fd }
    }

    /// Copies bytes of `source` to their place; blocks of zeroes are left out, as they are in a file that is new. If
    /// `source` has become shorter less is copied: the digest will tell.
    ///
    /// # Errors
    /// If one cannot be read or the other not be written.
    pub fn copy(&self, source: &ReadHandle, what: &Copy) -> Result<(), VolumeError> {
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

    /// The digest of its first `size` bytes. Zeroes at the end need not have been written; `None` if it becomes shorter
    /// meanwhile.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn digest(&self, size: u64) -> Result<Option<Digest>, VolumeError> {
        hash_fd(self.fd.as_fd(), size, true).doing("read", b"a staged file")
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

fn cut_part(
    fd: BorrowedFd<'_>,
    part: Range<u64>,
    cut: Cut,
    mut each: impl FnMut(u64, Item),
) -> Result<bool, Errno> {
    // A part that was never written has nothing that would be looked for.
    if next_data(fd, part.start, part.end)?.is_empty() {
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
    use driftless_core::recipe::Recipe;

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
        let (file, cut) = (open_source(&path).unwrap(), Cut::of_size(0));
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
    fn what_is_copied_is_where_it_belongs() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let mut bytes = noise(2 * PIECE_LEN + 5);
        bytes[PIECE_LEN..PIECE_LEN + 100_000].fill(0);
        std::fs::write(&from, &bytes).unwrap();
        let file = std::fs::File::options().create_new(true).read(true).write(true).open(&to).unwrap();
        let patch = Patch::new(file.into());
        let source = open_source(&from).unwrap();
        let len = bytes.len() as u64 - 3;
        patch.copy(&source, &Copy { from: 3, to: 1, len }).unwrap();
        patch.copy(&source, &Copy { from: bytes.len() as u64, to: 0, len: 9 }).unwrap();
        let mut expected = vec![0];
        expected.extend_from_slice(&bytes[3..]);
        assert_eq!(std::fs::read(&to).unwrap(), expected);
        assert_eq!(patch.digest(len + 1).unwrap(), Some(Digest::of(&expected)));
        expected.push(0);
        assert_eq!(patch.digest(len + 2).unwrap(), Some(Digest::of(&expected)), "zeroes at the end");
    }
}
