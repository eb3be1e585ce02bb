//! Causes that hold many entries up: looked at as such, once a second, instead of trying each entry again and again.
//!
//! Where there is an event (a directory's attributes change, a file is closed, a name becomes free) it comes first:
//! [`super::waiters`]. The probes are for what gives none: room on the disk, a mount or a flag that changes.

use super::waiters::Waiters;
use super::{Engine, Fail};
use crate::api::{Level, Reason};
use crate::needs::Waiter;
use driftless_core::{NodeKey, Tx};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How often causes are looked at.
pub(super) const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Longest time between two looks for room, when what there is was not enough for anybody.
const ROOM_PROBE_EVERY_MAX: Duration = Duration::from_secs(30);
/// Room that is looked for: less would be gone at once.
const ROOM_LEN: u64 = 1 << 20;
/// What waits for a cause that is probed is tried when that is gone; by itself only to be sure.
const PROBED_PAUSE_NS: u64 = 300_000_000_000;
/// Reasons that may lie in the directory.
pub(super) const OF_DIRS: [Reason; 2] = [Reason::Denied, Reason::ReadOnly];

/// See the module.
pub(super) struct Causes {
    /// Directories that cannot be written to.
    dirs: BTreeSet<NodeKey>,
    /// The directory looked at last, and whether it can be written to: entries of one directory come together.
    last_dir: Option<(NodeKey, bool)>,
    probed_at: Instant,
    room_at: Instant,
    room_pause: Duration,
    /// Free bytes when it was looked last.
    room_seen: u64,
}

impl Causes {
    pub(super) fn new(now: Instant) -> Causes {
        let (dirs, last_dir) = (BTreeSet::new(), None);
        Causes { dirs, last_dir, probed_at: now, room_at: now, room_pause: PROBE_EVERY, room_seen: 0 }
    }

    /// When something has to be looked at, if anything waits for it.
    pub(super) fn due(&self, waiting: &Waiters) -> Option<Instant> {
        self.is_of_use(waiting).then(|| self.probed_at + PROBE_EVERY)
    }

    fn is_of_use(&self, waiting: &Waiters) -> bool {
        !self.dirs.is_empty() || waiting.has(Reason::NoSpace) || waiting.has(Reason::TrashFull)
    }
}

impl Engine {
    /// How long `who` waits before it is tried again, if its cause is looked at as such.
    pub(super) fn probed_pause_ns(
        &mut self,
        tx: &mut Tx<'_>,
        who: &Waiter,
        reason: Reason,
    ) -> Result<Option<u64>, Fail> {
        let probed = match (reason, who) {
            (Reason::TrashFull | Reason::NoSpace, _) => true,
            (Reason::Denied | Reason::ReadOnly, Waiter::Entry(id)) => match self.waiting.dir_of(*id).cloned()
            {
                Some(dir) => self.dir_is_in_the_way(tx, &dir)?,
                None => false,
            },
            _ => false,
        };
        Ok(probed.then_some(PROBED_PAUSE_NS))
    }

    fn dir_is_in_the_way(&mut self, tx: &mut Tx<'_>, dir: &NodeKey) -> Result<bool, Fail> {
        if self.causes.dirs.contains(dir) {
            return Ok(true);
        }
        let writable = match &self.causes.last_dir {
            Some((last, writable)) if last == dir => *writable,
            _ => self.can_write_to(tx, dir)?,
        };
        self.causes.last_dir = Some((dir.clone(), writable));
        if !writable {
            self.causes.dirs.insert(dir.clone());
        }
        Ok(!writable)
    }

    fn can_write_to(&mut self, tx: &mut Tx<'_>, dir: &NodeKey) -> Result<bool, Fail> {
        let Some(path) = self.path_of_node(tx, dir)? else { return Ok(true) };
        // One that cannot even be opened holds nothing up by its flags: whoever is in it is tried in his turn.
        Ok(self.volume.dir(&path, Some(dir)).map_or(true, |fd| fd.is_writable()))
    }

    /// Looks at causes, and has tried at once who waited for those that are gone.
    pub(super) fn probe_causes(&mut self) -> Result<(), Fail> {
        if self.causes.probed_at.elapsed() < PROBE_EVERY || !self.causes.is_of_use(&self.waiting) {
            return Ok(());
        }
        self.causes.probed_at = Instant::now();
        self.causes.last_dir = None;
        self.probe_dirs()?;
        if self.waiting.has(Reason::NoSpace) {
            self.probe_room();
        }
        if self.waiting.has(Reason::TrashFull) && self.trash_was_freed()? {
            self.waiting.retry(Reason::TrashFull);
        }
        Ok(())
    }

    /// True while the disk of the index has no more room than what was kept to say so. Nothing is taken in then: not
    /// from the peer, not from the tree, and nothing is done to the tree.
    pub(super) fn index_is_full(&mut self) -> Result<bool, Fail> {
        let full = !self.store.has_room();
        if full && self.shared.once {
            return Err(Fail::Refused {
                what: "the disk that holds the state directory is full".into(),
                advice: "free some space there and run it again: it goes on where it was".into(),
            });
        }
        if full != self.index_full {
            self.index_full = full;
            let (level, text) = match full {
                true => (
                    Level::Error,
                    "the disk that holds the state directory is full: nothing more is taken in until there is room; free \
                     some space there",
                ),
                false => (Level::Info, "there is room for the state again: going on"),
            };
            self.log(level, text.into());
        }
        Ok(full)
    }

    fn probe_dirs(&mut self) -> Result<(), Fail> {
        if self.causes.dirs.is_empty() {
            return Ok(());
        }
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        for dir in self.causes.dirs.clone() {
            if self.can_write_to(&mut tx, &dir)? {
                self.dir_changed(&dir);
            }
        }
        Ok(())
    }

    /// Something about the directory itself changed: what it was in the way of is tried.
    pub(super) fn dir_changed(&mut self, dir: &NodeKey) {
        self.causes.dirs.remove(dir);
        self.causes.last_dir = None;
        self.waiting.retry_in(dir, &OF_DIRS);
    }

    /// If there is room again, all who wait for some are tried. Whoever finds too little waits again; the next look
    /// is then twice as far away, unless more room appears.
    fn probe_room(&mut self) {
        // A file that somebody removed takes its room as long as it is open.
        self.contents.close_served();
        let free = self.volume.free_bytes();
        let more =
            free > self.causes.room_seen.saturating_add(self.causes.room_seen / 4).saturating_add(ROOM_LEN);
        if more {
            self.causes.room_pause = PROBE_EVERY;
        } else if self.causes.room_at.elapsed() < self.causes.room_pause {
            return;
        }
        (self.causes.room_at, self.causes.room_seen) = (Instant::now(), free);
        match self.volume.has_room(ROOM_LEN) {
            true => {
                self.waiting.retry(Reason::NoSpace);
                self.causes.room_pause = (self.causes.room_pause * 2).min(ROOM_PROBE_EVERY_MAX);
            }
            false => self.causes.room_pause = PROBE_EVERY,
        }
    }
}
