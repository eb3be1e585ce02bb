//! Hearing of changes by fanotify.
//!
//! One mark on the file system where privileges allow, else one mark per directory ([`Watcher::watch_dir`]). Events
//! merge and lose their order, so each only says: look here. What we do ourselves is left out by process id, what
//! happens in the private directory by its handle; what happens elsewhere on the file system is the receiver's to
//! filter, by the directory's key. Stores through mappings give no event at all: crawling stays necessary.
//!
//! An event that is left out has been made, queued and read nevertheless: three of a small file that is staged, which is a tenth of
//! what staging it costs. So the kernel is told not to make those of files in staging, in limbo and in staged directories
//! ([`Unheard`]), where nobody but us has any business.
//!
//! Flow: a thread waits for the group or the stop signal, reads all there is, turns it into hints and hands them over
//! in one batch. If the receiver does not keep up, hints are dropped and it is told so ([`Hint::Overflow`]).

use crate::directory::{Directory, open_shards};
use crate::dirfd::DirFd;
use crate::error::{Context, VolumeError};
use crate::fault;
use crate::key::{self, Identity};
use crate::sys;
use crossbeam_channel::{Sender, TrySendError};
use driftless_core::{Name, NodeKey};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Events are read in pieces of this size: more than a thousand at a time.
const READ_LEN: usize = 256 << 10;
/// How long to wait, in milliseconds, before trying again to say that hints were dropped.
const OVERFLOW_RETRY_MS: i64 = 20;
/// Reads that follow each other so closely, and more than so many of them, are of a stream of events. Then some are left to gather, and
/// the system makes one of several about one file: waking up for each costs more than all else that is done here. A single change
/// makes a few events and is read at once.
const STREAM_GAP: Duration = Duration::from_millis(2);
const STREAM_MIN: u32 = 8;
/// How long events gather in a stream.
const GATHER: Duration = Duration::from_millis(1);

const MASK: u64 =
    libc::FAN_CREATE | libc::FAN_DELETE | libc::FAN_CLOSE_WRITE | libc::FAN_ATTRIB | libc::FAN_ONDIR;
const GROUP: u32 = libc::FAN_CLASS_NOTIF | libc::FAN_NONBLOCK;

/// Of files in private directories these are not even made. Renames are: they are about another directory as well.
const MASK_UNHEARD: u64 =
    libc::FAN_CREATE | libc::FAN_DELETE | libc::FAN_CLOSE_WRITE | libc::FAN_ATTRIB | libc::FAN_EVENT_ON_CHILD;

/// What groups report and which events tell of renames, the best first.
const DIALECTS: [(u32, u64); 2] = [
    // One event with both names, Linux 5.17.
    (libc::FAN_REPORT_DFID_NAME_TARGET, libc::FAN_RENAME),
    // Two events, Linux 5.9.
    (libc::FAN_REPORT_DFID_NAME | libc::FAN_REPORT_FID, libc::FAN_MOVED_FROM | libc::FAN_MOVED_TO),
];

/// Where to look.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Hint {
    /// Something happened to this name in this directory.
    Look {
        /// The directory.
        dir: NodeKey,
        /// The name.
        name: Name,
    },
    /// Something happened to this inode (a name of it may be known).
    Inode {
        /// The inode.
        key: NodeKey,
    },
    /// Hints were lost: crawl.
    Overflow,
    /// The volume's root directory was removed, or watching failed.
    RootGone,
}

/// How changes are heard of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WatchMode {
    /// All changes of the file system, from the start on.
    FileSystem,
    /// Changes in directories marked by [`Watcher::watch_dir`] only.
    Directories,
}

/// What to listen to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WatchOptions {
    /// Hear also of what this process does. (Tests act as users inside the process.)
    pub own_process: bool,
    /// Mark directories even where the whole file system could be watched.
    pub directories_only: bool,
}

/// What a receiver did with a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivery {
    /// Took it.
    Taken,
    /// Has no room: the batch is lost, and an overflow follows.
    Full,
    /// Is gone: watching ends.
    Closed,
}

/// Watches a volume until it is dropped.
pub struct Watcher {
    group: Arc<Group>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Watches `volume`; batches go to `sender`.
    ///
    /// # Errors
    /// If the kernel has no fanotify with names (before Linux 5.17), or no identities can be had.
    pub fn start(volume: &Directory, sender: Sender<Vec<Hint>>) -> Result<Watcher, VolumeError> {
        let options = WatchOptions { own_process: fault::users_within(), ..WatchOptions::default() };
        Watcher::start_with(volume, options, move |batch| match sender.try_send(batch) {
            Ok(()) => Delivery::Taken,
            Err(TrySendError::Full(_)) => Delivery::Full,
            Err(TrySendError::Disconnected(_)) => Delivery::Closed,
        })
    }

    /// Watches `volume`; batches are given to `deliver`, which must not wait.
    ///
    /// # Errors
    /// As [`Watcher::start`].
    pub fn start_with(
        volume: &Directory,
        options: WatchOptions,
        deliver: impl FnMut(Vec<Hint>) -> Delivery + Send + 'static,
    ) -> Result<Watcher, VolumeError> {
        let doing = "watch the volume";
        if volume.capabilities().identity == Identity::InodeAndBirth {
            return Err(VolumeError::sys(doing, b"", Errno::OPNOTSUPP));
        }
        let group = Arc::new(Group::open(volume, options).doing(doing, b"")?);
        group.leave_out_private(volume);
        let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let stop = Arc::new(stop.doing(doing, b"")?);
        let pump = Pump {
            group: Arc::clone(&group),
            stop: Arc::clone(&stop),
            filter: Filter::of(volume, options),
            overflowed: false,
            deliver,
        };
        let thread = std::thread::Builder::new().name("watch".to_owned()).spawn(move || pump.run());
        let thread = thread.map_err(|_| Errno::AGAIN).doing(doing, b"")?;
        volume.set_watched_by(&group);
        Ok(Watcher { group, stop, thread: Some(thread) })
    }

    /// How changes are heard of.
    pub fn mode(&self) -> WatchMode {
        self.group.mode
    }

    /// Starts hearing of changes in `dir`; without effect when the whole file system is watched. List the directory
    /// after this, not before.
    pub fn watch_dir(&self, dir: &DirFd) -> Result<(), VolumeError> {
        match self.group.mode {
            WatchMode::FileSystem => Ok(()),
            WatchMode::Directories => self.group.mark_dir(dir).doing("watch the directory", b""),
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // Fails only if the counter is full, and then the thread is awake anyway.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has stopped as well.
            let _ = thread.join();
        }
    }
}

/// How changes below `root` would be heard of; `None` if they would not.
pub(crate) fn mode_for(root: &OwnedFd) -> Option<WatchMode> {
    let open = |(report, renames)| Group::open_dialect(root, GROUP | report, MASK | renames, false);
    DIALECTS.into_iter().find_map(|dialect| open(dialect).ok()).map(|group| group.mode)
}

/// A fanotify group and what it was told to report.
pub(crate) struct Group {
    fd: OwnedFd,
    mask: u64,
    mode: WatchMode,
}

impl Group {
    /// A group with a mark on the file system; else one for marks on directories, with the root's set.
    fn open(volume: &Directory, options: WatchOptions) -> Result<Group, Errno> {
        let root = &volume.0.root;
        let mut refused = Errno::NOSYS;
        for (report, renames) in DIALECTS {
            let mask = MASK | renames;
            match Group::open_dialect(root, GROUP | report, mask, options.directories_only) {
                Ok(group) => return Ok(group),
                Err(e) => refused = e,
            }
        }
        Err(refused)
    }

    fn open_dialect(root: &OwnedFd, flags: u32, mask: u64, directories_only: bool) -> Result<Group, Errno> {
        // Both the unlimited queue and the mark on a file system need the same privilege.
        let unlimited = sys::fanotify_init(flags | libc::FAN_UNLIMITED_QUEUE);
        let fd = match unlimited {
            Ok(fd) if !directories_only => {
                let mark = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
                if sys::fanotify_mark(&fd, mark, mask, root).is_ok() {
                    return Ok(Group { fd, mask, mode: WatchMode::FileSystem });
                }
                fd
            }
            Ok(fd) => fd,
            Err(_) => sys::fanotify_init(flags)?,
        };
        let group = Group { fd, mask, mode: WatchMode::Directories };
        group.mark_dir(root)?;
        Ok(group)
    }

    fn mark_dir(&self, dir: impl AsFd) -> Result<(), Errno> {
        let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_ONLYDIR;
        sys::fanotify_mark(&self.fd, flags, self.mask | libc::FAN_EVENT_ON_CHILD, dir)
    }
}

impl Group {
    /// No events of files in staging and limbo from now on. Where the kernel cannot do that (before Linux 6.0), they are left out
    /// when they are read.
    fn leave_out_private(&self, volume: &Directory) {
        let Some(private) = volume.0.private.as_ref().filter(|_| self.mode == WatchMode::FileSystem) else {
            return;
        };
        let shards = open_shards(&private.staging, false).unwrap_or_default();
        for dir in shards.iter().chain([&private.limbo]) {
            let _ = self.leave_out(dir, c".");
        }
    }

    fn leave_out(&self, dir: impl AsFd, path: &CStr) -> Result<(), Errno> {
        let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_IGNORE_SURV | libc::FAN_MARK_ONLYDIR;
        sys::fanotify_mark_at(&self.fd, flags | libc::FAN_MARK_DONT_FOLLOW, MASK_UNHEARD, dir, path)
    }
}

/// A directory of whose files a watcher hears nothing, until [`Unheard::end`].
#[derive(Default)]
pub(crate) struct Unheard(Weak<Group>);

impl Unheard {
    /// Begins with the directory `path` below `dir`. Without effect if nobody watches the file system, or the kernel cannot do it.
    pub(crate) fn begin(group: Weak<Group>, dir: impl AsFd, path: &CStr) -> Unheard {
        let told = group.upgrade().filter(|group| group.mode == WatchMode::FileSystem);
        match told.map(|group| group.leave_out(dir, path)) {
            Some(Ok(())) => Unheard(group),
            _ => Unheard::default(),
        }
    }

    /// What happens in the directory, which is open as `dir`, is heard again.
    ///
    /// # Errors
    /// If that cannot be had: then users must not get to see the directory.
    pub(crate) fn end(&self, dir: impl AsFd) -> Result<(), Errno> {
        // If the group is gone, so is what it was told.
        let Some(group) = self.0.upgrade() else { return Ok(()) };
        let flags = libc::FAN_MARK_REMOVE | libc::FAN_MARK_IGNORE_SURV | libc::FAN_MARK_ONLYDIR;
        match sys::fanotify_mark_at(&group.fd, flags, MASK_UNHEARD, dir, c".") {
            // It was ended before.
            Err(Errno::NOENT) => Ok(()),
            ended => ended,
        }
    }
}

/// Moves events from the kernel to the receiver.
struct Pump<F> {
    group: Arc<Group>,
    stop: Arc<OwnedFd>,
    filter: Filter,
    overflowed: bool,
    deliver: F,
}

impl<F: FnMut(Vec<Hint>) -> Delivery> Pump<F> {
    fn run(mut self) {
        let mut buffer = vec![0; READ_LEN];
        let (mut read_at, mut in_stream) = (Instant::now(), 0);
        while self.wait() {
            in_stream = if read_at.elapsed() < STREAM_GAP { in_stream + 1 } else { 0 };
            if in_stream > STREAM_MIN && self.is_stopped_within(GATHER) {
                return;
            }
            read_at = Instant::now();
            let mut batch = Batch::new(&self.filter);
            if self.overflowed {
                batch.push(Hint::Overflow);
            }
            if let Err(e) = self.read_into(&mut buffer, &mut batch) {
                debug_assert!(false, "fanotify: {e}");
                batch.push(Hint::RootGone);
                (self.deliver)(batch.hints);
                return;
            }
            if batch.hints.is_empty() {
                continue;
            }
            match (self.deliver)(batch.hints) {
                Delivery::Taken => self.overflowed = false,
                Delivery::Full => self.overflowed = true,
                Delivery::Closed => return,
            }
        }
    }

    /// Waits for events; false to stop.
    fn wait(&self) -> bool {
        let retry = Timespec { tv_sec: 0, tv_nsec: OVERFLOW_RETRY_MS * 1_000_000 };
        let timeout = self.overflowed.then_some(&retry);
        loop {
            let mut fds =
                [PollFd::new(&self.group.fd, PollFlags::IN), PollFd::new(&self.stop, PollFlags::IN)];
            match rustix::event::poll(&mut fds, timeout) {
                Err(Errno::INTR) => {}
                Err(_) => return false,
                Ok(_) => return fds[1].revents().is_empty(),
            }
        }
    }

    /// Lets a moment pass; true if it is to stop.
    fn is_stopped_within(&self, moment: Duration) -> bool {
        let timeout = Timespec { tv_sec: 0, tv_nsec: moment.subsec_nanos().into() };
        let mut stop = [PollFd::new(&self.stop, PollFlags::IN)];
        rustix::event::poll(&mut stop, Some(&timeout)).is_ok_and(|n| n > 0)
    }

    fn read_into(&self, buffer: &mut [u8], batch: &mut Batch<'_>) -> Result<(), Errno> {
        match rustix::io::read(&self.group.fd, &mut *buffer) {
            Ok(len) => {
                for event in Events(&buffer[..len]) {
                    batch.take(&event);
                }
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

/// What is no concern of the receiver.
struct Filter {
    /// Whose doings are not heard of.
    pid: Option<i32>,
    root: NodeKey,
    private: HashSet<NodeKey>,
}

impl Filter {
    fn of(volume: &Directory, options: WatchOptions) -> Filter {
        let private = volume.0.private.iter().flat_map(|p| p.keys.iter().cloned()).collect();
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let pid = (!options.own_process).then_some(own);
        Filter { pid, root: volume.root_key(), private }
    }

    /// A hint for a name in a directory, unless it is one of ours.
    fn look(&self, dir: NodeKey, name: &[u8]) -> Option<Hint> {
        if self.private.contains(&dir) {
            return None;
        }
        if name == b"." {
            return Some(Hint::Inode { key: dir });
        }
        // Reserved names are ours.
        Some(Hint::Look { dir, name: Name::new(name).ok()? })
    }
}

/// Hints of one read.
struct Batch<'a> {
    filter: &'a Filter,
    hints: Vec<Hint>,
}

impl<'a> Batch<'a> {
    fn new(filter: &'a Filter) -> Batch<'a> {
        Batch { filter, hints: Vec::new() }
    }

    fn push(&mut self, hint: Hint) {
        // The same thing often happens several times in a row.
        if self.hints.last() != Some(&hint) {
            self.hints.push(hint);
        }
    }

    fn take(&mut self, event: &Event<'_>) {
        if event.mask & libc::FAN_Q_OVERFLOW != 0 {
            return self.push(Hint::Overflow);
        }
        if Some(event.pid) == self.filter.pid {
            return;
        }
        let mut named = false;
        let mut inode = None;
        for info in event.infos() {
            match info {
                Info::Named(dir, name) => {
                    named = true;
                    if let Some(hint) = self.filter.look(dir, name) {
                        self.push(hint);
                    }
                }
                Info::Inode(key) => inode = Some(key),
            }
        }
        let Some(key) = inode else { return };
        if event.mask & libc::FAN_DELETE != 0 && key == self.filter.root {
            self.push(Hint::RootGone);
        }
        if !named && !self.filter.private.contains(&key) {
            self.push(Hint::Inode { key });
        }
    }
}

/// One event as the kernel wrote it.
struct Event<'a> {
    mask: u64,
    pid: i32,
    records: &'a [u8],
}

/// One record of an event that we use.
enum Info<'a> {
    Named(NodeKey, &'a [u8]),
    Inode(NodeKey),
}

/// The events in a buffer. Total: whatever does not parse ends it.
///
/// ```text
/// event:   length u32 | version u8 | 0 u8 | header length u16 | mask u64 | fd i32 | pid i32 | records
/// record:  type u8 | 0 u8 | length u16 | fsid 8 | handle length u32 | handle type i32 | handle | name NUL
/// ```
struct Events<'a>(&'a [u8]);

impl<'a> Iterator for Events<'a> {
    type Item = Event<'a>;

    fn next(&mut self) -> Option<Event<'a>> {
        let len = u32_at(self.0, 0)? as usize;
        let header = usize::from(u16_at(self.0, 6)?);
        let event = self.0.get(..len)?;
        let mask = u64::from_ne_bytes(event.get(8..16)?.try_into().ok()?);
        let pid = u32_at(event, 20)? as i32;
        let records = event.get(header..)?;
        self.0 = &self.0[len..];
        (event[4] == libc::FANOTIFY_METADATA_VERSION).then_some(Event { mask, pid, records })
    }
}

impl<'a> Event<'a> {
    fn infos(&self) -> impl Iterator<Item = Info<'a>> {
        Records(self.records).filter_map(info)
    }
}

struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let len = usize::from(u16_at(self.0, 2)?);
        let record = self.0.get(..len).filter(|record| record.len() >= 4)?;
        self.0 = &self.0[len..];
        Some(record)
    }
}

fn info(record: &[u8]) -> Option<Info<'_>> {
    const HANDLE_AT: usize = 20;
    let len = u32_at(record, 12)? as usize;
    let kind = u32_at(record, 16)? as i32;
    let handle = record.get(HANDLE_AT..HANDLE_AT.checked_add(len)?)?;
    let name = || record[HANDLE_AT + len..].split(|b| *b == 0).next().unwrap_or_default();
    let key = || key::of_handle(kind, handle);
    match record[0] {
        libc::FAN_EVENT_INFO_TYPE_FID => Some(Info::Inode(key()?)),
        libc::FAN_EVENT_INFO_TYPE_DFID_NAME
        | libc::FAN_EVENT_INFO_TYPE_OLD_DFID_NAME
        | libc::FAN_EVENT_INFO_TYPE_NEW_DFID_NAME => Some(Info::Named(key()?, name())),
        libc::FAN_EVENT_INFO_TYPE_DFID => Some(Info::Inode(key()?)),
        _ => None,
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One event with one record: directory handle `d`, name `name`.
    fn event(name: &[u8]) -> Vec<u8> {
        let mut record = vec![libc::FAN_EVENT_INFO_TYPE_DFID_NAME, 0, 0, 0];
        record.extend([0; 8]);
        record.extend(4u32.to_ne_bytes());
        record.extend(1i32.to_ne_bytes());
        record.extend(b"dddd");
        record.extend(name);
        record.push(0);
        let len = record.len() as u16;
        record[2..4].copy_from_slice(&len.to_ne_bytes());
        let mut event = (24 + u32::from(len)).to_ne_bytes().to_vec();
        event.extend([libc::FANOTIFY_METADATA_VERSION, 0]);
        event.extend(24u16.to_ne_bytes());
        event.extend(libc::FAN_CREATE.to_ne_bytes());
        event.extend((-1i32).to_ne_bytes());
        event.extend(7i32.to_ne_bytes());
        event.extend(record);
        event
    }

    fn names(bytes: &[u8]) -> Vec<Vec<u8>> {
        let infos = |event: Event<'_>| {
            let named = |info| match info {
                Info::Named(_, name) => Some(name.to_vec()),
                Info::Inode(_) => None,
            };
            event.infos().filter_map(named).collect::<Vec<_>>()
        };
        Events(bytes).flat_map(infos).collect()
    }

    #[test]
    fn events_are_read_one_after_the_other() {
        let bytes = [event(b"a"), event(b"bb\xff")].concat();
        assert_eq!(names(&bytes), [b"a".to_vec(), b"bb\xff".to_vec()]);
    }

    #[test]
    fn damaged_events_end_the_reading_and_nothing_else() {
        let good = [event(b"a"), event(b"bb")].concat();
        for cut in 0..good.len() {
            assert!(names(&good[..cut]).len() <= 2);
        }
        for at in 0..good.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                assert!(names(&bad).len() <= 2);
            }
        }
    }

    #[test]
    fn older_kernels_events_are_accepted_too() {
        let tmp = tempfile::tempdir().unwrap();
        let root = crate::capability::open_root(tmp.path()).unwrap();
        for (report, renames) in DIALECTS {
            let group = Group::open_dialect(&root, GROUP | report, MASK | renames, true).unwrap();
            std::fs::write(tmp.path().join("a"), b"").unwrap();
            std::fs::rename(tmp.path().join("a"), tmp.path().join("b")).unwrap();
            let mut buffer = vec![0; READ_LEN];
            let len = rustix::io::read(&group.fd, &mut buffer[..]).unwrap();
            let found = names(&buffer[..len]);
            assert!(found.contains(&b"a".to_vec()) && found.contains(&b"b".to_vec()), "{found:?}");
        }
    }
}
