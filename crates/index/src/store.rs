//! Opening, checking and writing the index file.
//!
//! A new file is made under a temporary name and renamed into place when it is complete, so that a
//! file under the index's name always has a format row. An existing one is first opened for
//! reading alone to look at that row; only a file of our own version is then opened for writing.

use crate::batch;
use crate::guard::guarded;
use crate::reserve::{Reserve, ReservedFile};
use crate::snapshot::Snapshot;
use driftless_core::rows::{Batch, Read, Store, StoreError, Table};
use redb::backends::FileBackend;
use redb::{DatabaseError, ReadableDatabase, StorageError, TableDefinition, TableError};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The version of the on-disk format that this program reads and writes.
pub const FORMAT_VERSION: u32 = 1;

/// First bytes of the format row; the version follows, four bytes big-endian.
const FORMAT_MAGIC: &[u8; 9] = b"driftless";
const FORMAT_KEY: &[u8] = b"format";
const FORMAT_TABLE: Definition = TableDefinition::new("format");

/// All tables have byte keys and byte values.
pub(crate) type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// The redb table of a table of the index.
pub(crate) fn definition(table: Table) -> Definition {
    TableDefinition::new(table.name())
}

/// How to open an index.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// Memory for pages of the file, in bytes.
    pub cache_bytes: usize,
    /// Make the file if it is missing, and keep room on its disk: it is going to be written to.
    pub create: bool,
}

impl OpenOptions {
    /// Default of [`OpenOptions::cache_bytes`]. Two nodes have to stay under 120 MB together while one is filled from the
    /// other; reads of half a million entries still hit the page cache of the kernel, and with 10 MiB a first copy of as many was a
    /// twentieth faster.
    pub const CACHE_BYTES: usize = 6 << 20;
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { cache_bytes: Self::CACHE_BYTES, create: false }
    }
}

/// Why an index could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// There is none and none was to be made.
    #[error("there is no index at {}", .path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Another process (or another instance in this one) has it open.
    #[error("the index {} is in use by another process", .path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// A newer program made it. Nothing was changed.
    #[error(
        "the index {} has format {found}, this program knows formats up to {supported}: use the newer \
         driftless that made it, or move the file away to scan the volume again",
        .path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// [`FORMAT_VERSION`].
        supported: u32,
    },
    /// It is not a whole index.
    #[error(
        "the index {} is damaged ({detail}): check the disk, then move the file away; the next start reads the \
         volume again and loses no file",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// The file system refused.
    #[error("the index {}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Its reason.
        source: io::Error,
    },
}

/// An open index file, shared by the index and its snapshots.
pub(crate) struct File {
    /// `None` only while this is being dropped.
    db: Option<redb::Database>,
    path: PathBuf,
}

impl Drop for File {
    fn drop(&mut self) {
        // After a panic on a damaged page closing may panic as well; there is nothing to save then.
        let _ = guarded(|| {
            drop(self.db.take());
            Ok::<_, StorageError>(())
        });
    }
}

impl File {
    pub(crate) fn db(&self) -> Result<&redb::Database, StorageError> {
        self.db.as_ref().ok_or(StorageError::DatabaseClosed)
    }

    /// What to tell whoever asked to `verb` the file.
    pub(crate) fn failure(&self, verb: &str, error: redb::Error) -> StoreError {
        StoreError(match error {
            redb::Error::Corrupted(detail) => damaged(&self.path, &detail).to_string(),
            error => format!("cannot {verb} {}: {error}", self.path.display()),
        })
    }
}

/// The index of one volume, on disk.
pub struct Index {
    file: Arc<File>,
    /// Set by the first failed commit; [`Store::commit`] refuses from then on.
    failed: AtomicBool,
    /// Kept where the index is written to by a replica.
    reserve: Option<Arc<Reserve>>,
}

impl Index {
    /// Opens the index file at `path`.
    ///
    /// An existing file is looked at before it is opened for writing, so that a file of a newer
    /// format or of another program stays as it is.
    pub fn open(path: &Path, options: OpenOptions) -> Result<Index, IndexError> {
        match fs::metadata(path) {
            Ok(_) => check_format(path)?,
            Err(e) if e.kind() == ErrorKind::NotFound && options.create => create(path)?,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(IndexError::Missing { path: path.to_owned() });
            }
            Err(e) => return Err(io_error(path, e)),
        }
        let reserve = options.create.then(|| Reserve::beside(path));
        let db = match &reserve {
            Some(reserve) => reserved(path, options.cache_bytes, reserve)?,
            None => writable(path, options.cache_bytes)?,
        };
        let file = Arc::new(File { db: Some(db), path: path.to_owned() });
        Ok(Index { file, failed: AtomicBool::new(false), reserve })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    fn write(&self, batch: &Batch, durability: redb::Durability) -> Result<(), redb::Error> {
        let mut tx = self.file.db()?.begin_write()?;
        // Recovery after a crash must not depend on the size of the volume: it takes milliseconds
        // this way, about a second per million rows otherwise.
        tx.set_quick_repair(matches!(durability, redb::Durability::Immediate));
        tx.set_durability(durability)?;
        batch::apply(&tx, batch)?;
        tx.commit()?;
        Ok(())
    }
}

impl Store for Index {
    fn snapshot(&self) -> Result<Box<dyn Read>, StoreError> {
        match Snapshot::new(&self.file) {
            Ok(s) => Ok(Box::new(s)),
            Err(e) => Err(self.file.failure("read", e)),
        }
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        self.commit_with(batch, redb::Durability::Immediate)
    }

    fn commit_lazily(&self, batch: Batch) -> Result<(), StoreError> {
        self.commit_with(batch, redb::Durability::None)
    }

    fn has_room(&self) -> bool {
        self.reserve.as_ref().is_none_or(|r| r.has_room())
    }
}

impl Index {
    fn commit_with(&self, batch: Batch, durability: redb::Durability) -> Result<(), StoreError> {
        if self.failed.load(Ordering::Acquire) {
            return Err(StoreError(format!(
                "the index {} takes no more changes after an earlier failure: restart",
                self.path().display()
            )));
        }
        if batch.is_empty() {
            return Ok(());
        }
        guarded(|| self.write(&batch, durability)).map_err(|e| {
            self.failed.store(true, Ordering::Release);
            self.file.failure("write", e)
        })
    }
}

/// Looks at the format row without changing the file.
fn check_format(path: &Path) -> Result<(), IndexError> {
    let row = match guarded(|| redb::Builder::new().set_cache_size(1 << 20).open_read_only(path)) {
        Ok(db) => format_row(&db, path)?,
        // Not closed cleanly before its first commit with quick repair: such a file is ours and of
        // this version, or its writer was killed inside redb's own initialisation; the writable
        // open repairs it and looks again.
        Err(DatabaseError::RepairAborted) => format_row(&writable(path, 1 << 20)?, path)?,
        Err(e) => return Err(open_error(path, e)),
    };
    match row.as_deref() {
        Some(row) => check_row(row, path),
        None => Err(damaged(path, "it has no format row")),
    }
}

fn check_row(row: &[u8], path: &Path) -> Result<(), IndexError> {
    let version = row.strip_prefix(FORMAT_MAGIC.as_slice()).and_then(|v| <[u8; 4]>::try_from(v).ok());
    match version.map(u32::from_be_bytes) {
        Some(FORMAT_VERSION) => Ok(()),
        Some(found) if found > FORMAT_VERSION => {
            Err(IndexError::Newer { path: path.to_owned(), found, supported: FORMAT_VERSION })
        }
        _ => Err(damaged(path, "its format row is not one of ours")),
    }
}

fn format_row(db: &impl ReadableDatabase, path: &Path) -> Result<Option<Vec<u8>>, IndexError> {
    let read = || -> Result<Option<Vec<u8>>, redb::Error> {
        let tx = db.begin_read()?;
        match tx.open_table(FORMAT_TABLE) {
            Ok(table) => Ok(table.get(FORMAT_KEY)?.map(|row| row.value().to_vec())),
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(e) => Err(e.into()),
        }
    };
    guarded(read).map_err(|e| match e {
        redb::Error::Io(e) => storage_error(path, StorageError::Io(e)),
        e => damaged(path, &e.to_string()),
    })
}

fn writable(path: &Path, cache_bytes: usize) -> Result<redb::Database, IndexError> {
    let open = || redb::Builder::new().set_cache_size(cache_bytes).open(path);
    guarded(open).map_err(|e| open_error(path, e))
}

/// As [`writable`], with a reserve to fall back on. The file was looked at before: it is there and ours.
fn reserved(path: &Path, cache_bytes: usize, reserve: &Arc<Reserve>) -> Result<redb::Database, IndexError> {
    let open = || -> Result<redb::Database, DatabaseError> {
        let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
        let file = ReservedFile::new(FileBackend::new(file)?, Arc::clone(reserve));
        redb::Builder::new().set_cache_size(cache_bytes).create_with_backend(file)
    };
    guarded(open).map_err(|e| open_error(path, e))
}

/// Makes a complete index file under a temporary name and moves it to `path`.
fn create(path: &Path) -> Result<(), IndexError> {
    let temporary = path.with_extension("new");
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(io_error(&temporary, e)),
        _ => {}
    }
    let db = redb::Builder::new()
        .set_cache_size(1 << 20)
        .create(&temporary)
        .map_err(|e| open_error(&temporary, e))?;
    write_empty(&db).map_err(|e| damaged(&temporary, &e.to_string()))?;
    drop(db);
    publish(&temporary, path).map_err(|e| io_error(path, e))
}

/// The format row and all tables, so that later no read meets a missing table.
fn write_empty(db: &redb::Database) -> Result<(), redb::Error> {
    let mut tx = db.begin_write()?;
    tx.set_quick_repair(true);
    let row = [FORMAT_MAGIC.as_slice(), &FORMAT_VERSION.to_be_bytes()].concat();
    tx.open_table(FORMAT_TABLE)?.insert(FORMAT_KEY, row.as_slice())?;
    for table in Table::ALL {
        tx.open_table(definition(table))?;
    }
    tx.commit()?;
    Ok(())
}

fn publish(temporary: &Path, path: &Path) -> io::Result<()> {
    fs::File::open(temporary)?.sync_all()?;
    fs::rename(temporary, path)?;
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::File::open(dir)?.sync_all()
}

fn open_error(path: &Path, e: DatabaseError) -> IndexError {
    match e {
        DatabaseError::DatabaseAlreadyOpen => IndexError::InUse { path: path.to_owned() },
        DatabaseError::Storage(e) => storage_error(path, e),
        e => damaged(path, &e.to_string()),
    }
}

fn storage_error(path: &Path, e: StorageError) -> IndexError {
    match e {
        // What redb says of a file that is too short or does not begin as its files do.
        StorageError::Io(e) if matches!(e.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => {
            damaged(path, &e.to_string())
        }
        StorageError::Io(source) => io_error(path, source),
        e => damaged(path, &e.to_string()),
    }
}

fn damaged(path: &Path, detail: &str) -> IndexError {
    IndexError::Damaged { path: path.to_owned(), detail: detail.to_owned() }
}

fn io_error(path: &Path, source: io::Error) -> IndexError {
    IndexError::Io { path: path.to_owned(), source }
}
