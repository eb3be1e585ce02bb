//! The trash: versions that replication replaced or removed, kept as the inodes that they are.
//!
//! ```text
//! <root>/.driftless/trash/
//!   1/, 2/, ...     batches, in the order in which they were begun
//!     list          what is written down about the versions in it (driftless_core::trash); only grows
//!     0, 1, ...     the versions, by their number in the list
//!   freed           its modification time says when versions were last taken out by hand
//! ```
//!
//! Versions come from limbo, after the seal: their records are made durable, then they are renamed, which is the
//! commit. Whoever writes a batch holds a lock on its list; others take versions out, but leave that batch alone
//! otherwise. Taking out is one rename or unlink of a version each.

use crate::attrs::Target;
use crate::directory::{self, Directory};
use crate::dirfd::{self, DirFd};
use crate::error::{Context, Reason, VolumeError};
use crate::limbo::Limbo;
use crate::stat::{self, CName, Look};
use driftless_core::trash::{self, Record, Sum};
use driftless_core::{Kind, Name, NodeKey, Time};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, Timestamps};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const DIR: &[u8] = b"trash";
const LIST: &str = "list";
const FREED: &str = "freed";

/// A batch is full with so many versions: it is read as a whole when the oldest of it go.
const BATCH_ITEMS_MAX: u32 = 8192;
/// A batch is full when its list has this length.
const BATCH_LIST_LEN_MAX: u64 = 4 << 20;
/// No more is read of a list: what a full batch can have at most, generously.
const LIST_READ_MAX: u64 = 64 << 20;

/// The trash of a volume.
pub struct Trash {
    volume: Directory,
    dir: OwnedFd,
}

/// A version in the trash.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TrashItem {
    /// The batch it is in.
    pub batch: u64,
    /// Its number there.
    pub item: u32,
    /// What was written down about it; nothing if the list is damaged.
    pub record: Option<Record>,
    /// Its identity.
    pub key: NodeKey,
    /// What it is.
    pub kind: Kind,
    /// Its length in bytes.
    pub size: u64,
    /// How many names the inode has, this one included.
    pub links: u32,
    /// When it came, nanoseconds since 1970.
    pub time_ns: u64,
}

/// What became of a version in limbo.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// It is in the trash.
    Yes,
    /// Somebody wrote to it: it is a user's version and still in limbo.
    Changed,
    /// It is not there.
    Gone,
}

impl Directory {
    /// The trash; `None` if there is none and none is to be made.
    pub fn trash(&self, create: bool) -> Result<Option<Trash>, VolumeError> {
        let Some(private) = &self.0.private else { return Ok(None) };
        let dir = directory::open_own(&private.dir, DIR, create).doing("open the trash", DIR)?;
        Ok(dir.map(|dir| Trash { volume: self.clone(), dir }))
    }

    /// True if the trash is another mount than the rest of the private directory: nothing can be renamed into it.
    pub fn trash_is_elsewhere(&self, trash: &Trash) -> Result<bool, VolumeError> {
        let doing = "look at the trash";
        let own = stat::stat_fd(&self.private()?.limbo).doing(doing, DIR)?;
        let there = stat::stat_fd(&trash.dir).doing(doing, DIR)?;
        Ok(stat::mount_of(&own) != stat::mount_of(&there))
    }

    /// For each of these in limbo: how many names its inode has.
    pub fn limbo_links(&self, limbo: &[Limbo]) -> Result<Vec<u32>, VolumeError> {
        limbo.iter().map(|l| Ok(self.look_limbo(l)?.map_or(0, |(_, look)| look.stat.stx_nlink))).collect()
    }

    /// The inode that waits as `limbo`, if it still does, and the directory it is in if that is one of the volume.
    fn look_limbo(&self, limbo: &Limbo) -> Result<Option<(Option<DirFd>, Look)>, VolumeError> {
        let beside = match &limbo.beside {
            Some(key) => match self.known_dir(key) {
                Some(dir) => Some(dir),
                None => return Ok(None),
            },
            None => None,
        };
        let dir = match &beside {
            Some(dir) => dir.as_fd(),
            None => self.private()?.limbo.as_fd(),
        };
        match stat::look_name(self.0.capabilities.identity, dir, limbo.private_name().get()) {
            Ok(look) => Ok(Some((beside, look))),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(VolumeError::sys("look at in limbo", &limbo.subject(), e)),
        }
    }
}

impl Trash {
    /// The numbers of all batches, oldest first.
    pub fn batches(&self) -> Result<Vec<u64>, VolumeError> {
        let names = dirfd::names_in(&self.dir).doing("list the trash", DIR)?;
        let mut found: Vec<u64> = names.iter().filter_map(|name| number(name.to_bytes())).collect();
        found.sort_unstable();
        Ok(found)
    }

    /// The versions that are in a batch, in the order in which they came.
    pub fn items(&self, batch: u64) -> Result<Vec<TrashItem>, VolumeError> {
        let doing = "list the trash";
        let Some(dir) = self.open_batch(batch)? else { return Ok(Vec::new()) };
        let records = read_list(&dir).doing(doing, LIST.as_bytes())?;
        let mut records: HashMap<u32, Record> = records.into_iter().map(|r| (r.item, r)).collect();
        let mut items = Vec::new();
        for name in dirfd::names_in(&dir).doing(doing, batch.to_string().as_bytes())? {
            let Some(item) = number(name.to_bytes()).and_then(|n| u32::try_from(n).ok()) else { continue };
            let look = match stat::look_name(self.volume.0.capabilities.identity, &dir, &name) {
                Ok(look) => look,
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(VolumeError::sys(doing, name.to_bytes(), e)),
            };
            let record = records.remove(&item);
            let time_ns = record.as_ref().map_or_else(|| look.fingerprint().ctime.as_ns(), |r| r.time_ns);
            let (kind, size, links) = (look.kind(), look.fingerprint().size, look.stat.stx_nlink);
            items.push(TrashItem { batch, item, record, key: look.key, kind, size, links, time_ns });
        }
        items.sort_unstable_by_key(|i| i.item);
        Ok(items)
    }

    /// Begins a batch, which must be a new one.
    pub fn begin(&self, batch: u64) -> Result<TrashWriter, VolumeError> {
        let doing = "begin a batch of the trash";
        let name = batch.to_string();
        rustix::fs::mkdirat(&self.dir, name.as_str(), Mode::from_raw_mode(0o700))
            .doing(doing, name.as_bytes())?;
        self.fit_out(&name).doing(doing, name.as_bytes()).map(|(dir, list)| TrashWriter {
            volume: self.volume.clone(),
            batch,
            dir,
            list,
            items: 0,
            len: trash::header().len() as u64,
            linked: HashSet::new(),
        })
    }

    fn fit_out(&self, name: &str) -> Result<(OwnedFd, OwnedFd), Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(&self.dir, name, flags, Mode::empty())?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let list = rustix::fs::openat(&dir, LIST, flags, Mode::from_raw_mode(0o600))?;
        rustix::fs::flock(&list, FlockOperation::NonBlockingLockExclusive)?;
        crate::stage::write_all(&list, &trash::header(), 0)?;
        rustix::fs::fsync(&list)?;
        rustix::fs::fsync(&dir)?;
        rustix::fs::fsync(&self.dir)?;
        Ok((dir, list))
    }

    /// Drops a version for good. False if it is another one now; true as well if it is not there.
    pub fn remove(&self, item: &TrashItem) -> Result<bool, VolumeError> {
        let Some(dir) = self.open_batch(item.batch)? else { return Ok(true) };
        self.volume.unlink_verified(&dir, item.item.to_string().as_bytes(), &item.key)
    }

    /// Shows a version as `name`, if that is free: `false` if it is not.
    ///
    /// # Errors
    /// [`Reason::NotFound`] if the version is not there any more.
    pub fn restore(&self, item: &TrashItem, to: &DirFd, name: &Name) -> Result<bool, VolumeError> {
        let doing = "restore";
        let gone = || VolumeError::own(doing, name.as_bytes(), Reason::NotFound);
        let dir = self.open_batch(item.batch)?.ok_or_else(gone)?;
        let from = cstring(&item.item.to_string());
        match stat::look_name(self.volume.0.capabilities.identity, &dir, &from) {
            Ok(look) if look.key == item.key => {}
            Ok(_) | Err(Errno::NOENT) => return Err(gone()),
            Err(e) => return Err(VolumeError::sys(doing, name.as_bytes(), e)),
        }
        match self.volume.rename(dir.as_fd(), &from, to.as_fd(), CName::new(name).get()) {
            Ok(()) => {
                rustix::fs::fsync(to)
                    .and_then(|()| rustix::fs::fsync(&dir))
                    .doing("sync", name.as_bytes())?;
                Ok(true)
            }
            Err(Errno::EXIST) => Ok(false),
            Err(Errno::NOENT) => Err(gone()),
            Err(e) => Err(VolumeError::sys(doing, name.as_bytes(), e)),
        }
    }

    /// Removes a batch with nothing in it but its list, unless somebody still writes to it.
    pub fn prune(&self, batch: u64) -> Result<(), VolumeError> {
        let Some(dir) = self.open_batch(batch)? else { return Ok(()) };
        self.prune_in(&dir, batch).doing("remove from the trash", batch.to_string().as_bytes())
    }

    fn prune_in(&self, dir: &OwnedFd, batch: u64) -> Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let _lock = match rustix::fs::openat(dir, LIST, flags, Mode::empty()) {
            Ok(list) => match rustix::fs::flock(&list, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => Some(list),
                Err(Errno::WOULDBLOCK) => return Ok(()),
                Err(e) => return Err(e),
            },
            Err(Errno::NOENT) => None,
            Err(e) => return Err(e),
        };
        if dirfd::names_in(dir)?.iter().any(|name| name.to_bytes() != LIST.as_bytes()) {
            return Ok(());
        }
        for (at, name, flags) in [
            (dir.as_fd(), cstring(LIST), AtFlags::empty()),
            (self.dir.as_fd(), cstring(&batch.to_string()), AtFlags::REMOVEDIR),
        ] {
            match rustix::fs::unlinkat(at, name, flags) {
                Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Notes that versions were taken out by hand, for who keeps sums.
    pub fn note_freed(&self) -> Result<(), VolumeError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let now = Timestamps {
            last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
            last_modification: rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        };
        rustix::fs::openat(&self.dir, FREED, flags, Mode::from_raw_mode(0o600))
            .and_then(|fd| rustix::fs::futimens(fd, &now))
            .doing("write to the trash", FREED.as_bytes())
    }

    /// When versions were last taken out by hand, if ever.
    pub fn freed(&self) -> Option<Time> {
        stat::stat_name(&self.dir, &cstring(FREED)).ok().map(|s| stat::fingerprint_of(&s).mtime)
    }

    fn open_batch(&self, batch: u64) -> Result<Option<OwnedFd>, VolumeError> {
        let name = batch.to_string();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.dir, name.as_str(), flags, Mode::empty()) {
            Ok(dir) => Ok(Some(dir)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(VolumeError::sys("open a batch of the trash", name.as_bytes(), e)),
        }
    }
}

/// What versions weigh together: an inode with several names there counts once. `None` if there are none.
pub fn sum_of(items: &[TrashItem]) -> Option<Sum> {
    let mut linked = HashSet::new();
    let weights = items.iter().map(|i| item_weight(i.links, &i.key, i.size, &mut linked));
    let bytes = weights.fold(0u64, u64::saturating_add);
    let oldest_ns = items.iter().map(|i| i.time_ns).min()?;
    Some(Sum { oldest_ns, bytes })
}

fn item_weight(links: u32, key: &NodeKey, size: u64, linked: &mut HashSet<NodeKey>) -> u64 {
    match links > 1 && !linked.insert(key.clone()) {
        true => trash::weight(0),
        false => trash::weight(size),
    }
}

/// A batch being written.
pub struct TrashWriter {
    volume: Directory,
    batch: u64,
    dir: OwnedFd,
    list: OwnedFd,
    items: u32,
    len: u64,
    /// Inodes with several names that were put here.
    linked: HashSet<NodeKey>,
}

impl TrashWriter {
    /// Its number.
    pub fn batch(&self) -> u64 {
        self.batch
    }

    /// True if another batch should be begun.
    pub fn is_full(&self) -> bool {
        self.items >= BATCH_ITEMS_MAX || self.len >= BATCH_LIST_LEN_MAX
    }

    /// Writes records down, durably, and numbers them. What was written stays if this fails half-way: a record alone is
    /// no version.
    pub fn write(&mut self, records: &mut [Record]) -> Result<(), VolumeError> {
        for r in records.iter_mut() {
            r.item = self.items;
            self.items += 1;
        }
        let bytes = trash::encode(records);
        // Written where the last complete write ended: what a failed one left is written over.
        crate::stage::write_all(&self.list, &bytes, self.len)
            .and_then(|()| rustix::fs::fdatasync(&self.list))
            .doing("write the list of the trash", LIST.as_bytes())?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Takes a version from limbo, if nobody has written to it. Its record must be written. Gives what it weighs.
    pub fn take(&mut self, record: &Record, limbo: &Limbo) -> Result<(Taken, u64), VolumeError> {
        let Some((beside, look)) = self.volume.look_limbo(limbo)? else { return Ok((Taken::Gone, 0)) };
        let now = look.fingerprint();
        let untouched = (now.size, now.mtime) == (limbo.size, limbo.mtime);
        if look.key != limbo.key || !(untouched || look.stat.stx_nlink > 1) {
            return Ok((Taken::Changed, 0));
        }
        let name = cstring(&record.item.to_string());
        let from = match &beside {
            Some(dir) => dir.as_fd(),
            None => self.volume.private()?.limbo.as_fd(),
        };
        let limbo_name = limbo.private_name();
        match self.volume.rename_away(from, limbo_name.get(), self.dir.as_fd(), &name) {
            Ok(()) => {}
            Err(Errno::XDEV) => self.copy(from, limbo, &look, &name)?,
            Err(e) => return Err(VolumeError::sys("move into the trash", &limbo.subject(), e)),
        }
        let weight = item_weight(look.stat.stx_nlink, &look.key, now.size, &mut self.linked);
        Ok((Taken::Yes, weight))
    }

    /// The file system does not rename from there to here: a durable copy comes instead, then the first goes.
    fn copy(
        &self,
        from: BorrowedFd<'_>,
        limbo: &Limbo,
        look: &Look,
        name: &CString,
    ) -> Result<(), VolumeError> {
        let doing = "copy into the trash";
        let subject = limbo.subject();
        let at = limbo.private_name();
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mode = if look.kind() == Kind::File { OFlags::RDONLY } else { OFlags::PATH };
        let fd = rustix::fs::openat(from, at.get(), flags | mode, Mode::empty()).doing(doing, &subject)?;
        let target = if look.kind() == Kind::File { Target::Open(&fd) } else { Target::Path(&fd) };
        let attrs = target.attrs(&look.stat).doing(doing, &subject)?;
        let (id, mtime) = (limbo.id, look.fingerprint().mtime);
        let staged = match look.kind() {
            Kind::File => {
                let writer = self.volume.clone_into_stage(id, &fd, &attrs, mtime)?;
                writer.finish(None, look.fingerprint().size)?
            }
            Kind::Symlink => {
                let to = rustix::fs::readlinkat(&fd, c"", Vec::new()).doing(doing, &subject)?;
                self.volume.stage_symlink(id, to.to_bytes(), &attrs, mtime)?
            }
            kind => self.volume.stage_special(id, kind, stat::rdev_of(&look.stat), &attrs, mtime)?,
        };
        self.volume.make_durable(std::slice::from_ref(&staged), &[])?;
        let staging = self.volume.private()?.staging.as_fd();
        self.volume
            .rename_away(staging, staged.path().get(), self.dir.as_fd(), name)
            .inspect_err(|_| {
                // If it cannot be removed, the next start sweeps it.
                let _ = self.volume.unstage(&staged);
            })
            .doing(doing, &subject)?;
        rustix::fs::fsync(&self.dir).doing(doing, &subject)?;
        self.volume.unlink_verified(from, at.get().to_bytes(), &limbo.key).map(drop)
    }

    /// Makes what was taken durable.
    pub fn sync(&self) -> Result<(), VolumeError> {
        rustix::fs::fsync(&self.dir)
            .and_then(|()| rustix::fs::fsync(&self.volume.private().map_err(|_| Errno::ROFS)?.limbo))
            .doing("sync", DIR)
    }
}

fn read_list(dir: &OwnedFd) -> Result<Vec<Record>, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let list = match rustix::fs::openat(dir, LIST, flags, Mode::empty()) {
        Ok(list) => list,
        Err(Errno::NOENT) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut bytes = Vec::new();
    let read = std::fs::File::from(list).take(LIST_READ_MAX).read_to_end(&mut bytes);
    read.map_err(|e| e.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))?;
    // A list that is none describes nothing; the versions are there all the same.
    Ok(trash::decode(&bytes).unwrap_or_default().records)
}

/// The number that a name is, written as we write it.
fn number(name: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(name).ok()?;
    text.parse().ok().filter(|n: &u64| n.to_string() == text)
}

fn cstring(name: &str) -> CString {
    // Our own names hold no NUL.
    CString::new(name).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_numbers_as_we_write_them() {
        assert_eq!([number(b"0"), number(b"18"), number(b"018")], [Some(0), Some(18), None]);
        for other in [&b"+1"[..], b"", b"list", b"99999999999999999999", b"\xff"] {
            assert_eq!(number(other), None);
        }
    }
}
