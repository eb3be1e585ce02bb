//! After a power cut: what the disk shows may be older than what is recorded, and what users wrote in the last moments may
//! be torn (design section 6, *Seal*; the judgement is [`driftless_core::unsealed`]).
//!
//! A stop was clean if the last process took its mark off the index at its end. If it was not, and the file system has
//! been mounted anew since, then no difference that a sync has not covered proves anything:
//!
//! - paths whose records changed since the last seal are judged one by one, before anything else looks at them;
//! - contents changed otherwise at that time stand beside what was recorded, and do not follow it.

use super::observe::Pass;
use super::recover::{intents, is_parked_at};
use super::{Engine, Fail, wall_ns};
use crate::api::Level;
use driftless_core::adopt::Adoption;
use driftless_core::codec::{Decoder, Encoder, Malformed};
use driftless_core::intent::Operation;
use driftless_core::local::Looked;
use driftless_core::plan::{At, Plan};
use driftless_core::rows::{Batch as Rows, Change, Table};
use driftless_core::unsealed::{self, Image, Images, Sighting, Verdict};
use driftless_core::{EntryId, Fingerprint, Kind, Name, NodeKey, Time, Tx};
use driftless_volume::{DirFd, HashOutcome, Limbo, Located, Part, PrivateEntry, Seen, StageId};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The mark of a process that works on the replica: which mount it uses, and when it began or sealed last.
const SETTING_MOUNTED: &[u8] = b"mounted";
/// What the last seal took out of limbo: a power cut may have put it back.
const SETTING_DROPPED: &[u8] = b"dropped";
/// The kernel writes a dirty page out within 35 s: what was written longer ago is on the disk without a sync of ours.
const WRITTEN_OUT_NS: u64 = 60_000_000_000;
/// Places of a directory that are looked at together: bounds memory.
const PLACES_PAGE: usize = 1024;
/// A sign of life is given so often.
const ALIVE_EVERY: Duration = Duration::from_secs(60);
/// [`WRITTEN_OUT_NS`] and [`ALIVE_EVERY`] may have passed since the last sign of life that is on the disk: what changed longer
/// after it than this did so when the process was dead and the machine alive.
const LAST_MOMENTS_NS: u64 = 120_000_000_000;
/// Writing a file anew in place takes up to this long from emptying it to its last byte. A seal that falls in between makes
/// the emptied file durable, and what a cut leaves of it must not replace the version before.
const HALF_WRITTEN_NS: u64 = 10_000_000_000;

/// Rows of table `before` that no seal has covered: commit numbers from `first` to below `next`.
#[derive(Clone, Copy, Default)]
pub(super) struct BeforeRows {
    pub(super) first: u64,
    pub(super) next: u64,
}

impl BeforeRows {
    pub(super) fn is_empty(self) -> bool {
        self.first == self.next
    }
}

/// When the changes were made that the cut may have torn.
#[derive(Clone, Copy)]
pub(super) struct LastMoments {
    since: Time,
    until: Time,
}

impl LastMoments {
    fn of(since_ns: u64, alive: Option<Time>) -> LastMoments {
        let since = time_of(since_ns.saturating_sub(HALF_WRITTEN_NS));
        let alive = alive.unwrap_or_default().max(time_of(since_ns));
        let sec =
            alive.sec.saturating_add(i64::try_from(LAST_MOMENTS_NS / 1_000_000_000).unwrap_or(i64::MAX));
        LastMoments { since, until: Time { sec, ..alive } }
    }

    fn contains(self, at: Time) -> bool {
        self.since <= at && at <= self.until
    }
}

fn time_of(ns: u64) -> Time {
    // Below 2^64 nanoseconds are seconds that fit; the rest is below a second.
    Time { sec: (ns / 1_000_000_000) as i64, nsec: (ns % 1_000_000_000) as u32 }
}

/// What is at a name.
enum There {
    /// Nothing, or what was looked at.
    Seen(Option<Box<Looked>>),
    /// The directory is not where it is recorded.
    NoDir,
    /// It cannot be told.
    Unclear,
}

impl Engine {
    /// To be called at a start, before intent rows are judged.
    pub(super) fn judge_last_stop(&mut self) -> Result<(), Fail> {
        let snapshot = self.store.snapshot()?;
        let rows = snapshot.scan(Table::Before, &[], None, usize::MAX)?;
        let number = |key: &[u8]| key.try_into().map_or(0, u64::from_be_bytes);
        let next = rows.last().map_or(1, |(key, _)| number(key) + 1);
        self.before = BeforeRows { first: rows.first().map_or(next, |(key, _)| number(key)), next };
        self.load_failed_syncs()?;
        let mark = snapshot.get(Table::Settings, SETTING_MOUNTED)?;
        let mount = self.volume.mount_identity().map_err(Fail::Volume)?;
        if let Some((at_ns, before)) = mark.as_deref().and_then(read_mark)
            && before != mount.as_bytes()
        {
            let alive = self.volume.alive_at().map_err(Fail::Volume)?;
            self.last_moments = Some(LastMoments::of(at_ns, alive));
            self.log(
                Level::Warn,
                "the last run did not end, and the file system was mounted anew: changes of its last moments are \
                 compared, not believed"
                    .into(),
            );
            self.judge_unsealed(&rows)?;
        }
        self.mark_mounted()
    }

    fn judge_unsealed(&mut self, rows: &[(Vec<u8>, Vec<u8>)]) -> Result<(), Fail> {
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        let mut images = Images::new();
        for (_, row) in rows {
            unsealed::decode(row, tx.replicas(), &mut images)?;
        }
        let moves = intents(&*snapshot)?.1.into_iter().filter(|row| row.operation == Operation::Move);
        let planned = moves.map(|row| (row.node, (row.at.dir, row.at.name))).collect();
        let mut judged = Judged { changed: images.keys().cloned().collect(), planned, ..Judged::default() };
        self.judge_parked_again(&mut tx, &images, &mut judged)?;
        self.judge_paths(&mut tx, &images, &mut judged)?;
        judged.concerned.extend(unsealed::check_moved(&mut tx, &judged.moved)?);
        for dir in std::mem::take(&mut judged.dirs) {
            judged.concerned.extend(unsealed::forget_below(&mut tx, &dir)?);
        }
        self.paths.clear();
        self.take_beside(&mut tx, judged.beside)?;
        judged.concerned.iter().for_each(|id| tx.add_pending(*id));
        self.commit(tx)
    }

    /// Inodes that wait where they were moved out of the way, and are recorded at a place that they were moved to since,
    /// or nowhere because they were removed there: the cut took that back.
    fn judge_parked_again(
        &mut self,
        tx: &mut Tx<'_>,
        images: &Images,
        judged: &mut Judged,
    ) -> Result<(), Fail> {
        for found in self.volume.list_private().map_err(Fail::Volume)? {
            let is_parked = found.part == Part::Limbo && StageId::parse(&found.name).is_none();
            let parked = Plan::parked(&found.key);
            if !is_parked {
                continue;
            }
            if tx.place(&parked.dir, &parked.name)?.is_some() {
                self.note_times(tx, &found)?;
                continue;
            }
            let known = images.iter().find_map(|(at, images)| {
                let of_it = |i: &&Image| i.place.node == found.key;
                images.iter().rev().flatten().find(of_it).map(|image| (at, image))
            });
            // Else its move is not recorded: the intent rows tell of it.
            let Some(((dir, name), image)) = known else { continue };
            let content = image.sighting().identity;
            if image.node.kind == Kind::File && self.digest_of(&found) != content {
                self.give_back(tx, &At { dir: dir.clone(), name: name.clone() }, &found)?;
                continue;
            }
            let lost = self.names_lost(tx, &found.key)?;
            judged.concerned.extend(unsealed::park_again(tx, image, found.fingerprint, &lost)?);
            self.note_times(tx, &found)?;
            self.paths.clear();
        }
        Ok(())
    }

    /// Records the times of a directory out of the way and of those below it, which no look at the tree finds.
    pub(super) fn note_times(&self, tx: &mut Tx<'_>, parked: &PrivateEntry) -> Result<(), Fail> {
        unsealed::note_time(tx, &parked.key, parked.fingerprint.mtime)?;
        let mut todo = vec![parked.key.clone()];
        while let Some(key) = todo.pop() {
            let Some(Ok(fd)) = self.parked_dir(tx, &key)? else { continue };
            let mut after = None;
            loop {
                let page = tx.places_in(&key, after.as_ref(), PLACES_PAGE)?;
                let Some((last, _)) = page.last() else { break };
                after = Some(last.clone());
                // Directories have no claims.
                for (name, place) in page.into_iter().filter(|(_, place)| place.claims.is_empty()) {
                    let seen = fd.look(&name).ok().flatten().filter(|seen| seen.key == place.node);
                    if let Some(seen) = seen {
                        unsealed::note_time(tx, &place.node, seen.fingerprint.mtime)?;
                        todo.push(place.node);
                    }
                }
            }
        }
        Ok(())
    }

    /// The names an inode is recorded with that do not show it.
    fn names_lost(&mut self, tx: &mut Tx<'_>, key: &NodeKey) -> Result<Vec<At>, Fail> {
        let names = tx.node(key)?.map(|n| n.names.clone()).unwrap_or_default();
        let mut lost = Vec::new();
        for (dir, name) in names {
            if !self.still_at(tx, &dir, &name, key)? {
                lost.push(At { dir, name });
            }
        }
        Ok(lost)
    }

    /// Judges each path once the directory it is in has been found: parents come before what is in them, whatever the
    /// cut has made of their moves. A directory that is then where no record has it was moved by a user, and the record of that
    /// was lost: what is in it went with it.
    fn judge_paths(&mut self, tx: &mut Tx<'_>, images: &Images, judged: &mut Judged) -> Result<(), Fail> {
        let at = |(dir, name): &(NodeKey, Name)| At { dir: dir.clone(), name: name.clone() };
        let mut left: Vec<(At, &Vec<Option<Image>>)> = images.iter().map(|(p, i)| (at(p), i)).collect();
        loop {
            let before = left.len();
            let mut waiting = Vec::new();
            for (at, images) in left {
                match self.look_there(tx, &at)? {
                    There::Seen(now) => self.judge_path(tx, at, images, now.map(|b| *b), judged)?,
                    There::NoDir => waiting.push((at, images)),
                    There::Unclear => {}
                }
            }
            if waiting.len() == before || waiting.is_empty() {
                for (at, images) in waiting {
                    match self.look_wherever(tx, &at)? {
                        There::Seen(now) => self.judge_path(tx, at, images, now.map(|b| *b), judged)?,
                        There::NoDir => self.judge_path(tx, at, images, None, judged)?,
                        There::Unclear => {}
                    }
                }
                return Ok(());
            }
            left = waiting;
        }
    }

    pub(super) fn judge_path(
        &mut self,
        tx: &mut Tx<'_>,
        at: At,
        images: &[Option<Image>],
        now: Option<Looked>,
        judged: &mut Judged,
    ) -> Result<(), Fail> {
        let recorded = match tx.place(&at.dir, &at.name)? {
            Some(place) => {
                let node = (*tx.node_must(&place.node)?).clone();
                Some(Image { place: (*place).clone(), node })
            }
            None => None,
        };
        let sightings: Vec<Option<Sighting>> =
            images.iter().map(|i| i.as_ref().map(Image::sighting)).collect();
        let seen = now.as_ref().map(Sighting::of);
        let verdict =
            unsealed::judge(recorded.as_ref().map(Image::sighting).as_ref(), &sightings, seen.as_ref());
        let verdict = verdict.unless_moved(seen.as_ref(), || match &recorded {
            Some(image) => self.was_moved(tx, image, judged),
            None => Ok(false),
        })?;
        judged.concerned.extend(unsealed::rebase(tx, &at, verdict, images, now.as_ref())?);
        if let (Verdict::Moved, Some(image)) = (verdict, &recorded) {
            judged.moved.push((at.clone(), image.place.node.clone()));
        }
        if verdict != Verdict::AsRecorded {
            self.paths.clear();
            judged.dirs.extend(recorded.filter(|r| r.node.kind.is_dir()).map(|r| r.place.node));
        }
        if verdict == Verdict::Other
            && let Some(now) = now.filter(|n| !n.kind.is_dir())
        {
            judged.beside.push((at, now));
        }
        Ok(())
    }

    /// True if the inode's only name is one that nothing was recorded at, now or before, or one that a plan moves it to.
    fn was_moved(&self, tx: &mut Tx<'_>, image: &Image, judged: &Judged) -> driftless_core::tx::Result<bool> {
        let Located::At(path) = self.volume.locate(&image.place.node) else { return Ok(false) };
        let Some((name, above)) = path.split_last().filter(|_| image.node.names.len() == 1) else {
            return Ok(false);
        };
        let Ok(dir) = self.volume.dir(above, None) else { return Ok(false) };
        let spot = (dir.key().clone(), name.clone());
        let is_known = judged.changed.contains(&spot) || tx.place(&spot.0, &spot.1)?.is_some();
        Ok(!is_known || judged.planned.contains(&(image.place.node.clone(), spot)))
    }

    fn look_there(&mut self, tx: &mut Tx<'_>, at: &At) -> Result<There, Fail> {
        if Plan::is_parked_dir(&at.dir) {
            return self.look_parked(tx, at);
        }
        let fd = match self.path_of_node(tx, &at.dir)? {
            Some(path) => match self.volume.dir(&path, Some(&at.dir)) {
                Ok(fd) => fd,
                Err(_) => return Ok(There::NoDir),
            },
            None => match self.parked_dir(tx, &at.dir)? {
                Some(Ok(fd)) => fd,
                Some(Err(_)) => return Ok(There::Unclear),
                None => return Ok(There::NoDir),
            },
        };
        Ok(look_in(&fd, &at.name))
    }

    /// As [`Engine::look_there`] of a directory that is not where it is recorded.
    fn look_wherever(&mut self, tx: &mut Tx<'_>, at: &At) -> Result<There, Fail> {
        match self.dir_wherever(tx, &at.dir)? {
            Some(fd) => Ok(look_in(&fd, &at.name)),
            // It is there, but no path of the tree leads to it: it waits out of the way, by a plan that is not recorded.
            None if matches!(self.volume.locate(&at.dir), Located::Unknown) => Ok(There::Unclear),
            None => Ok(There::NoDir),
        }
    }

    /// What was moved out of the way waits for the plans that are done again, or is gone from there.
    fn look_parked(&mut self, tx: &mut Tx<'_>, at: &At) -> Result<There, Fail> {
        let Some(place) = tx.place(&at.dir, &at.name)? else { return Ok(There::Unclear) };
        match is_parked_at(&self.volume, &place.node).map_err(Fail::Volume)? {
            true => Ok(There::Unclear),
            false => Ok(There::Seen(None)),
        }
    }

    /// What a cut has left takes nobody's place: a version beside those that the entry has.
    pub(super) fn take_beside(&mut self, tx: &mut Tx<'_>, beside: Vec<(At, Looked)>) -> Result<(), Fail> {
        if beside.is_empty() {
            return Ok(());
        }
        let adoption = Adoption::none();
        for (at, looked) in beside {
            if tx.node(&at.dir)?.is_none() || tx.place(&at.dir, &at.name)?.is_some() {
                continue; // the crawl sees what it is
            }
            if tx.node(&looked.key)?.is_some() {
                continue; // another name of it is right: the crawl finds the new one
            }
            let spot = (&at.dir, &at.name);
            match self.follows() {
                true => adoption.bind(tx, spot, &looked)?,
                false => adoption.adopt(tx, spot, &looked)?,
            };
        }
        Ok(())
    }

    /// True if the content was changed when the power went, as far as one can know.
    pub(super) fn may_be_torn(&self, fingerprint: &Fingerprint) -> bool {
        self.last_moments.is_some_and(|last| last.contains(fingerprint.ctime))
    }

    /// An inode whose content may be torn: it stands beside what is recorded at its names.
    pub(super) fn take_torn(
        &mut self,
        tx: &mut Tx<'_>,
        pass: &mut Pass,
        at: At,
        looked: Looked,
    ) -> Result<(), Fail> {
        let mut names = tx.node(&looked.key)?.map(|n| n.names.clone()).unwrap_or_default();
        names.retain(|(dir, name)| (dir, name) != (&at.dir, &at.name));
        let mut concerned = BTreeSet::new();
        for at in
            names.iter().map(|(dir, name)| At { dir: dir.clone(), name: name.clone() }).chain([at.clone()])
        {
            concerned.extend(unsealed::rebase(tx, &at, Verdict::Other, &[], None)?);
        }
        self.paths.clear();
        self.take_beside(tx, vec![(at, looked)])?;
        for id in concerned {
            tx.add_pending(id);
        }
        for (dir, name) in names {
            self.look_soon(dir, name);
        }
        pass.recorded += 1;
        Ok(())
    }

    // ----- marks

    /// A sign of life for the next start.
    pub(super) fn give_sign_of_life(&mut self) {
        self.alive_at = Instant::now();
        // Without it, on a disk that is full, a later start takes less for torn.
        let _ = self.volume.touch_alive();
    }

    /// As [`Engine::give_sign_of_life`], now and then.
    pub(super) fn stay_alive(&mut self) {
        if !self.shared.dry_run && self.alive_at.elapsed() >= ALIVE_EVERY {
            self.give_sign_of_life();
        }
    }

    /// The mark of this process, with everything from before `sealed_ns` on the disk.
    pub(super) fn mounted_row(&self, sealed_ns: u64) -> Result<Change, Fail> {
        let mount = self.volume.mount_identity().map_err(Fail::Volume)?;
        let value = [&sealed_ns.to_be_bytes()[..], mount.as_bytes()].concat();
        Ok(((Table::Settings, SETTING_MOUNTED.to_vec()), Some(value)))
    }

    fn mark_mounted(&mut self) -> Result<(), Fail> {
        self.give_sign_of_life();
        let mut rows = Rows::new();
        let (key, mut value) = self.mounted_row(wall_ns().saturating_sub(WRITTEN_OUT_NS))?;
        // What the last process left unsealed is older.
        if let (false, Some(value), Some(last)) = (self.before.is_empty(), &mut value, self.last_moments) {
            let ns = u64::try_from(last.since.sec).unwrap_or(0).saturating_mul(1_000_000_000);
            value[..8].copy_from_slice(&ns.saturating_add(last.since.nsec.into()).to_be_bytes());
        }
        rows.insert(key, value);
        Ok(self.store.commit(rows)?)
    }

    /// Everything is sealed and this process ends: the next start may believe what it sees.
    pub(super) fn take_mark_off(&self) -> Result<(), Fail> {
        let key = (Table::Settings, SETTING_MOUNTED.to_vec());
        Ok(self.store.commit([(key, None)].into())?)
    }

    /// What the last seal took out of limbo: names and inodes.
    pub(super) fn dropped_last(&self) -> Result<Vec<(Vec<u8>, NodeKey)>, Fail> {
        let Some(row) = self.store.snapshot()?.get(Table::Settings, SETTING_DROPPED)? else {
            return Ok(Vec::new());
        };
        let damaged = |source| driftless_core::tx::Error::Damaged { table: "settings", source };
        Ok(read_dropped(&row).map_err(damaged)?)
    }

    /// Removes what was kept for a cut before the seal.
    pub(super) fn forget_before(&mut self, covered: u64, rows: &mut Rows) {
        for n in self.before.first..covered {
            rows.insert((Table::Before, n.to_be_bytes().to_vec()), None);
        }
        self.before.first = covered;
    }
}

/// What the judgement of all paths leaves to do.
#[derive(Default)]
pub(super) struct Judged {
    /// The paths that are judged.
    changed: BTreeSet<(NodeKey, Name)>,
    /// Where plans that were begun move inodes to.
    planned: BTreeSet<(NodeKey, (NodeKey, Name))>,
    /// What somebody moved, and where it is recorded.
    moved: Vec<(At, NodeKey)>,
    pub(super) concerned: BTreeSet<EntryId>,
    /// Directories that are not where they were recorded.
    dirs: BTreeSet<NodeKey>,
    /// What stands beside what is recorded.
    pub(super) beside: Vec<(At, Looked)>,
}

fn look_in(fd: &DirFd, name: &Name) -> There {
    match fd.look(name) {
        Ok(Some(seen)) => read_there(fd, &seen),
        Ok(None) => There::Seen(None),
        Err(_) => There::Unclear,
    }
}

fn read_there(fd: &DirFd, seen: &Seen) -> There {
    if seen.other_fs {
        return There::Unclear;
    }
    match fd.hash(&seen.name, seen, 0) {
        Ok(HashOutcome::Looked(hashed)) => There::Seen(Some(Box::new(hashed.looked))),
        Ok(HashOutcome::Gone) => There::Seen(None),
        Ok(HashOutcome::Unstable) | Err(_) => There::Unclear,
    }
}

/// The row that says what a seal took out of limbo. No sync has covered that.
pub(super) fn dropped_row(dropped: &[Limbo]) -> Change {
    let mut e = Encoder::new();
    e.uint(dropped.len() as u64);
    for limbo in dropped {
        let entry = limbo.as_private();
        e.bytes(&entry.name);
        e.bytes(entry.key.as_bytes());
    }
    ((Table::Settings, SETTING_DROPPED.to_vec()), (!dropped.is_empty()).then_some(e.buf))
}

fn read_dropped(row: &[u8]) -> Result<Vec<(Vec<u8>, NodeKey)>, Malformed> {
    let mut d = Decoder::new(row);
    let count = d.count(3)?;
    let mut dropped = Vec::with_capacity(count);
    for _ in 0..count {
        dropped.push((d.bytes()?.to_vec(), d.node_key()?));
    }
    d.end()?;
    Ok(dropped)
}

/// Time and mount of a mark.
fn read_mark(value: &[u8]) -> Option<(u64, &[u8])> {
    let (at, mount) = value.split_first_chunk()?;
    Some((u64::from_be_bytes(*at), mount))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_moments_end_with_the_life_of_the_process() {
        let sealed = 1_000_000_000_500;
        let at = |sec| Time { sec, nsec: 0 };
        let last = LastMoments::of(sealed, Some(at(1_500)));
        assert!(!last.contains(at(989)), "sealed");
        assert!(!last.contains(Time { sec: 990, nsec: 499 }), "sealed");
        assert!(last.contains(at(991)), "emptied, perhaps, and sealed before the rest was written");
        assert!(last.contains(at(1_001)));
        assert!(last.contains(at(1_600)));
        assert!(!last.contains(at(2_000)), "nobody looked, the machine lived");
        assert!(LastMoments::of(sealed, None).contains(at(1_100)));
    }
}
