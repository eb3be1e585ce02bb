//! Programs that keep a file open for writing: four kinds, which the kernel treats differently.
#![allow(unsafe_code)]

use anyhow::{Context as _, Result, bail};
use rustix::fs::{Mode, OFlags};
use rustix::mm::{MapFlags, ProtFlags};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// How a program writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriterKind {
    /// `write` at a place.
    Plain,
    /// `O_APPEND`.
    Append,
    /// `O_DIRECT`, past the page cache.
    Direct,
    /// Stores into a shared mapping, without an open descriptor.
    Mapped,
}

/// A page: what direct writes and mappings need of a file.
pub const WRITER_FILE_LEN: usize = 4096;

/// A file that somebody has open for writing. Dropped, it is closed.
pub struct Writer {
    kind: WriterKind,
    file: Option<File>,
    page: *mut u8,
}

// SAFETY: the mapping belongs to this value alone and may be used by whichever thread has it.
unsafe impl Send for Writer {}

impl Writer {
    /// Opens a file of [`WRITER_FILE_LEN`] bytes.
    ///
    /// # Errors
    /// If it cannot be opened in this way here.
    pub fn open(kind: WriterKind, path: &Path) -> Result<Writer> {
        let more = match kind {
            WriterKind::Append => OFlags::APPEND,
            WriterKind::Direct => OFlags::DIRECT,
            WriterKind::Plain | WriterKind::Mapped => OFlags::empty(),
        };
        let fd = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC | more, Mode::empty())
            .with_context(|| format!("open {}", path.display()))?;
        let file = File::from(fd);
        if file.metadata()?.len() != WRITER_FILE_LEN as u64 {
            bail!("{} is not {WRITER_FILE_LEN} bytes long", path.display());
        }
        if kind != WriterKind::Mapped {
            return Ok(Writer { kind, file: Some(file), page: std::ptr::null_mut() });
        }
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping, placed by the kernel, of an open file of this length.
        let page =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), WRITER_FILE_LEN, protection, flags, &file, 0)? };
        Ok(Writer { kind, file: None, page: page.cast() })
    }

    /// Writes a page full of `byte`.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn write(&mut self, byte: u8) -> Result<()> {
        let bytes = Page([byte; WRITER_FILE_LEN]);
        match &self.file {
            Some(file) if self.kind == WriterKind::Append => {
                use std::io::Write as _;
                (&*file).write_all(&bytes.0)?;
            }
            Some(file) => file.write_all_at(&bytes.0, 0)?,
            // SAFETY: the mapping is a page long, writable, and lives as long as self.
            None => unsafe { std::ptr::copy_nonoverlapping(bytes.0.as_ptr(), self.page, WRITER_FILE_LEN) },
        }
        Ok(())
    }

    /// What a file that held `before` holds after each of `bytes` was written.
    pub fn content_after(kind: WriterKind, before: &[u8], bytes: &[u8]) -> Vec<u8> {
        match (kind, bytes.last()) {
            (WriterKind::Append, _) => {
                let written = bytes.iter().flat_map(|byte| [*byte; WRITER_FILE_LEN]);
                before.iter().copied().chain(written).collect()
            }
            (_, Some(last)) => vec![*last; WRITER_FILE_LEN],
            (_, None) => before.to_vec(),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.file.is_none() {
            // SAFETY: exactly the mapping made in open; nothing refers to it any more. If it fails, it stays mapped.
            let _ = unsafe { rustix::mm::munmap(self.page.cast(), WRITER_FILE_LEN) };
        }
    }
}

/// Direct writes need memory that is aligned.
#[repr(align(4096))]
struct Page([u8; WRITER_FILE_LEN]);
