//! After a stop that was not clean: what the intent rows and the private directory say was done.
//!
//! The records of the last moves may be lost (they are committed lazily), the moves themselves are not. So before the
//! tree is looked at, every intent is judged by the recovery table ([`driftless_core::intent`]): what was moved is
//! recorded as ours, what a user did meanwhile is left for the crawl to see, what was caught between two looks is
//! given back to the user, and what waited in limbo goes on waiting for the seal. Contents that were staged or
//! replaced serve as sources until the plans have been done again.

use super::apply::park_id;
use super::content;
use super::limbo::InLimbo;
use super::{Engine, Fail, apply};
use crate::api::Level;
use driftless_core::intent::{self, IntentRow, Operation, Recovery, Sight, StagedFile};
use driftless_core::plan::{self, At, Plan, Step};
use driftless_core::rows::{Read, Table};
use driftless_core::{Bind, Digest, Dot, EntryId, Kind, Name, NodeKey, Tx};
use driftless_volume::crash::{self, Point};
use driftless_volume::{Directory, Located, Part, PrivateEntry, ReadHandle, Seen, StageId, VolumeError};
use std::collections::{BTreeSet, HashMap, HashSet};

/// What the last process left, until its plans have been done again.
#[derive(Default)]
pub(super) struct Left {
    /// Staged inodes that are not in staging any more.
    placed: HashMap<(EntryId, Dot), Placed>,
    /// Staged inodes that were not placed: contents at hand.
    staged: HashMap<(EntryId, Dot), PrivateEntry>,
    /// Entries of intents, and the directories they were done in.
    redo: BTreeSet<EntryId>,
    redo_dirs: BTreeSet<NodeKey>,
}

/// A staged inode that was placed, or was to be.
#[derive(Clone)]
pub(super) struct Placed {
    pub(super) staged: StagedFile,
    /// Where.
    at: At,
    /// What it replaced waits in limbo: it was placed, whatever its place shows now.
    surely: bool,
}

impl Placed {
    /// True if it was placed at `at`, whatever is there now. The entry may have got another name since.
    pub(super) fn is_sure(&self, at: &At) -> bool {
        self.surely && self.at == *at
    }
}

impl Left {
    /// True if the version's bytes are at hand.
    pub(super) fn has(&self, key: &(EntryId, Dot)) -> bool {
        self.placed.contains_key(key) || self.staged.contains_key(key)
    }

    pub(super) fn is_placed(&self, key: &(EntryId, Dot)) -> bool {
        self.placed.contains_key(key)
    }

    /// What of a plan's files was placed, by the keys that the plan gives them.
    pub(super) fn placed_by(&self, plan: &Plan) -> HashMap<NodeKey, StagedFile> {
        let placed = |step: &Step| match step {
            Step::Put { node, entry, version, .. } => {
                Some((node.clone(), self.placed.get(&(*entry, *version))?.staged.clone()))
            }
            _ => None,
        };
        plan.steps.iter().filter_map(placed).collect()
    }

    pub(super) fn take_placed(&mut self, key: &(EntryId, Dot)) -> Option<Placed> {
        self.placed.remove(key)
    }
}

/// What lies in the private directory, by part and name.
type Private = HashMap<(Part, Vec<u8>), PrivateEntry>;

impl Engine {
    /// Judges what a crash left; to be called before the tree is looked at. What is in staging and of no intent is
    /// ours and was never shown: it goes.
    pub(super) fn recover(&mut self) -> Result<(), Fail> {
        let rows = self.read_intents()?;
        // A name that a row speaks of is not given again while the row is there.
        for name in rows.iter().flat_map(|r| r.staged.iter().map(|s| &s.name).chain([&r.limbo])) {
            if let Some(id) = StageId::parse(name).filter(|id| !content::is_transfer(*id)) {
                self.stage_ids.skip_to(id.0);
            }
        }
        // Nothing in them was ever shown.
        self.volume.sweep_staged_dirs().map_err(Fail::Volume)?;
        let mut private: Private = HashMap::new();
        for entry in self.volume.list_private().map_err(Fail::Volume)? {
            if let Some(id) = StageId::parse(&entry.name).filter(|id| !content::is_transfer(*id)) {
                self.stage_ids.skip_to(id.0);
            }
            private.insert((entry.part, entry.name.clone()), entry);
        }
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        let mut copies = self.find_beside(&mut tx, &rows, &mut private)?;
        for row in &rows {
            self.judge(&mut tx, (row, &rows), &mut private)?;
            if let Some(copy) = row.staged.as_ref().and_then(|staged| copies.remove(&staged.name)) {
                self.judge_copy(&mut tx, row, &copy)?;
            }
        }
        self.commit(tx)?;
        self.find_hidden()?;
        crash::at(Point::IntentsJudged);
        let named: HashSet<&[u8]> =
            rows.iter().filter_map(|r| r.staged.as_ref()).map(|s| s.name.as_slice()).collect();
        let (mut unknown, dropped) = (0u64, self.dropped_last()?);
        let dropped: HashSet<(&[u8], &NodeKey)> = dropped.iter().map(|(n, k)| (n.as_slice(), k)).collect();
        for entry in private.values() {
            let id = StageId::parse(&entry.name);
            match entry.part {
                Part::Staging if id.is_some_and(|id| !content::is_transfer(id)) => {
                    if !named.contains(entry.name.as_slice()) {
                        self.drop_private(entry);
                    }
                }
                Part::Staging => {}
                Part::Limbo if dropped.contains(&(entry.name.as_slice(), &entry.key)) => {
                    self.drop_private(entry)
                }
                Part::Limbo => unknown += u64::from(id.is_some()),
            }
        }
        if unknown > 0 {
            self.log(
                Level::Warn,
                format!(
                    "{unknown} files in .driftless/limbo belong to nothing that was begun: they are kept; look at them \
                     and remove them by hand"
                ),
            );
        }
        Ok(())
    }

    fn read_intents(&mut self) -> Result<Vec<IntentRow>, Fail> {
        let snapshot = self.store.snapshot()?;
        let (plans, rows) = intents(&*snapshot)?;
        self.open_plans.extend(plans);
        self.next_plan = self.open_plans.iter().max().map_or(1, |n| n + 1);
        Ok(rows)
    }

    /// Adds what waits in limbo beside its place to what is private. Gives what was staged again beside its place, by
    /// the name in staging.
    fn find_beside(
        &mut self,
        tx: &mut Tx<'_>,
        rows: &[IntentRow],
        private: &mut Private,
    ) -> Result<HashMap<Vec<u8>, PrivateEntry>, Fail> {
        let mut copies = HashMap::new();
        let dirs: BTreeSet<&NodeKey> = rows.iter().map(|row| &row.at.dir).collect();
        for key in dirs {
            let Some(dir) = self.dir_wherever(tx, key)? else { continue };
            for entry in self.volume.list_beside(&dir).map_err(Fail::Volume)? {
                match entry.part {
                    Part::Limbo => drop(private.insert((Part::Limbo, entry.name.clone()), entry)),
                    Part::Staging => drop(copies.insert(entry.name.clone(), entry)),
                }
            }
        }
        Ok(copies)
    }

    /// What is at the name of the second staged file, in the directory of its target: that file, or what it was
    /// exchanged with.
    fn judge_copy(&mut self, tx: &mut Tx<'_>, row: &IntentRow, copy: &PrivateEntry) -> Result<(), Fail> {
        let like_staged =
            |s: &StagedFile| (s.size, s.mtime) == (copy.fingerprint.size, copy.fingerprint.mtime);
        if row.sight(Some((&copy.key, &copy.fingerprint))) == Sight::Victim {
            let waits = self.volume.to_limbo_from_staging(copy).map_err(Fail::Volume)?;
            return self.keep_victim(tx, row, &waits);
        }
        let known = row.victim.as_ref().is_some_and(|v| v.node == copy.key) || tx.node(&copy.key)?.is_some();
        if !known && row.staged.as_ref().is_some_and(like_staged) {
            self.drop_private(copy);
            return Ok(());
        }
        self.give_back(tx, &row.at, copy)
    }

    fn judge(
        &mut self,
        tx: &mut Tx<'_>,
        (row, rows): (&IntentRow, &[IntentRow]),
        private: &mut Private,
    ) -> Result<(), Fail> {
        if !row.entry.is_root() {
            self.left.redo.insert(row.entry);
        }
        self.left.redo_dirs.insert(row.at.dir.clone());
        self.left.redo_dirs.extend(row.source.as_ref().map(|from| from.dir.clone()));
        let in_limbo = private.remove(&(Part::Limbo, row.limbo.clone()));
        let victim_waits = match in_limbo {
            Some(found) => self.judge_limbo(tx, row, found)?,
            None => false,
        };
        match (&row.staged, row.operation) {
            (Some(staged), _) => self.judge_staged(tx, row, staged, private, victim_waits),
            (None, Operation::Remove) => self.judge_removal(tx, row, victim_waits),
            (None, Operation::Move) if Plan::is_parked_dir(&row.at.dir) => {
                self.judge_parked(tx, (row, rows), private)
            }
            _ => Ok(()),
        }
    }

    /// What is in limbo under the name of this intent. True if it is the victim: then the move was made.
    fn judge_limbo(&mut self, tx: &mut Tx<'_>, row: &IntentRow, found: PrivateEntry) -> Result<bool, Fail> {
        match row.sight(Some((&found.key, &found.fingerprint))) {
            Sight::Other if self.is_emptied_victim(row, &found) => {
                self.keep_victim(tx, row, &found)?;
                Ok(true)
            }
            Sight::Victim => {
                self.keep_victim(tx, row, &found)?;
                Ok(true)
            }
            Sight::Ours => {
                // A link on its way; the inode has the name it was linked from.
                if found.links > 1 {
                    self.drop_private(&found);
                }
                Ok(false)
            }
            Sight::Nothing | Sight::Other => {
                self.give_back(tx, &row.at, &found)?;
                // Whoever it was that changed the victim: the victim it is.
                Ok(row.victim.as_ref().is_some_and(|v| v.node == found.key))
            }
        }
    }

    /// True if it is what was replaced, and a power cut took what it held: nobody wrote to it.
    fn is_emptied_victim(&self, row: &IntentRow, found: &PrivateEntry) -> bool {
        let is_victim = row.victim.as_ref().is_some_and(|v| v.node == found.key);
        is_victim && found.fingerprint.size == 0 && self.last_moments.is_some()
    }

    fn keep_victim(&mut self, tx: &mut Tx<'_>, row: &IntentRow, found: &PrivateEntry) -> Result<(), Fail> {
        let identity = match tx.node(&found.key)?.map(|n| n.bind.clone()) {
            // After a power cut it may hold something else than what is recorded.
            Some(Bind::Leaf { identity }) if self.last_moments.is_none() => Some(identity),
            _ => self.digest_of(found),
        };
        if let Some(limbo) = found.as_limbo() {
            let origin = self.origin_of_row(tx, row)?;
            let kind = row.victim.as_ref().map_or(Kind::File, |v| v.kind);
            self.limbos.put(InLimbo::new(limbo, row.at.clone(), identity, kind, row.plan, origin));
        }
        Ok(())
    }

    pub(super) fn digest_of(&self, found: &PrivateEntry) -> Option<Digest> {
        self.volume.open_private_file(found).ok().flatten()?.digest().ok().flatten()
    }

    fn judge_staged(
        &mut self,
        tx: &mut Tx<'_>,
        row: &IntentRow,
        staged: &StagedFile,
        private: &mut Private,
        victim_waits: bool,
    ) -> Result<(), Fail> {
        let key = (row.entry, row.dot);
        let found = private.remove(&(Part::Staging, staged.name.clone()));
        let source = row.sight(found.as_ref().map(|f| (&f.key, &f.fingerprint)));
        let target = self.sight_at(tx, row)?;
        if found.is_none() && tx.node(&staged.node)?.is_some() {
            return Ok(()); // placed and recorded; what became of it since is recorded too, or is for the crawl to see
        }
        let placed = |surely| Placed { staged: staged.clone(), at: row.at.clone(), surely };
        if matches!((source, target), (Sight::Ours | Sight::Nothing, Sight::Other))
            && let Some(node) = self.copy_shown(tx, row, staged)?
        {
            let staged = StagedFile { node, ..staged.clone() };
            self.left.placed.insert(key, Placed { staged, at: row.at.clone(), surely: true });
            found.iter().for_each(|first| self.drop_private(first));
            return Ok(());
        }
        let sealed = victim_waits || (found.is_none() && self.stands_elsewhere(staged));
        match intent::recover(source, target, row.victim.is_some(), sealed) {
            Recovery::Finish => {
                if let Some(found) = found {
                    let found = self.volume.to_limbo_from_staging(&found).map_err(Fail::Volume)?;
                    self.keep_victim(tx, row, &found)?;
                }
                self.left.placed.insert(key, placed(true));
            }
            Recovery::KeepRaced => {
                if let Some(found) = found {
                    self.give_back(tx, &row.at, &found)?;
                }
                self.left.placed.insert(key, placed(true));
            }
            Recovery::Done | Recovery::UserChanged => {
                self.left.placed.insert(key, placed(true));
            }
            Recovery::Redo | Recovery::Replan => match found {
                Some(found) => {
                    // Two plans in a row may have staged it; one is enough.
                    if let Some(other) = self.left.staged.insert(key, found) {
                        self.drop_private(&other);
                    }
                }
                // Placed in a directory that was made with it and is not recorded yet, or thrown away.
                None => {
                    self.left.placed.insert(key, placed(false));
                }
            },
        }
        Ok(())
    }

    /// The target shows an unknown inode of the length, time and content of what was staged: the file system did not
    /// rename that there, and a copy of it was.
    fn copy_shown(
        &mut self,
        tx: &mut Tx<'_>,
        row: &IntentRow,
        staged: &StagedFile,
    ) -> Result<Option<NodeKey>, Fail> {
        let Some(dir) = self.dir_wherever(tx, &row.at.dir)? else { return Ok(None) };
        let Ok(Some(seen)) = dir.look(&row.at.name) else { return Ok(None) };
        let same = (seen.fingerprint.size, seen.fingerprint.mtime) == (staged.size, staged.mtime);
        if !same || tx.node(&seen.key)?.is_some() {
            return Ok(None);
        }
        let entry = tx.entry(row.entry)?;
        let version = entry.as_ref().and_then(|row_of| row_of.entry.data.iter().find(|v| v.dot == row.dot));
        let wanted = version.map(|v| v.content.identity());
        let shown = dir.open_read(&row.at.name, &seen.key).ok().and_then(|open| open.digest().ok().flatten());
        let equal = seen.kind != Kind::File || (wanted.is_some() && shown == wanted);
        Ok(equal.then_some(seen.key))
    }

    /// A removal of ours that is not recorded must not be taken for a user's.
    fn judge_removal(&mut self, tx: &mut Tx<'_>, row: &IntentRow, victim_waits: bool) -> Result<(), Fail> {
        let Some(victim) = row.victim.clone().filter(|v| victim_waits && !v.kind.is_dir()) else {
            return Ok(());
        };
        let recorded = tx.place(&row.at.dir, &row.at.name)?;
        if recorded.is_some_and(|p| p.node == victim.node) {
            plan::record(tx, &Step::Remove { at: row.at.clone(), victim }, None)?;
        }
        Ok(())
    }

    /// What was moved out of the way by us did not go away.
    fn judge_parked(
        &mut self,
        tx: &mut Tx<'_>,
        (row, rows): (&IntentRow, &[IntentRow]),
        private: &Private,
    ) -> Result<(), Fail> {
        let Some(from) = row.source.clone() else { return Ok(()) };
        if !is_parked_at(&self.volume, &row.node).map_err(Fail::Volume)? {
            return Ok(());
        }
        let Some(place) = tx.place(&from.dir, &from.name)?.filter(|p| p.node == row.node) else {
            return self.judge_stray(tx, &from, (row, rows), private);
        };
        let node = tx.node_must(&row.node)?;
        let kind = node.kind;
        self.left.redo.extend(place.claims.iter().map(|c| c.entry));
        if let Bind::Dir(members) = &node.bind {
            self.left.redo.extend(members.iter().copied());
        }
        plan::record(tx, &Step::Park { from, node: row.node.clone(), kind }, None)?;
        if let Some(found) = private.values().find(|p| p.part == Part::Limbo && p.key == row.node) {
            self.note_times(tx, found)?;
        }
        Ok(())
    }

    /// What was moved out of the way and stands in no record: a power cut took back that it came to the place where it
    /// was taken from, or the record of that. As it was staged, it is ours; else somebody's.
    fn judge_stray(
        &mut self,
        tx: &mut Tx<'_>,
        from: &At,
        (row, rows): (&IntentRow, &[IntentRow]),
        private: &Private,
    ) -> Result<(), Fail> {
        let parked = Plan::parked(&row.node);
        if tx.node(&row.node)?.is_some() || tx.place(&parked.dir, &parked.name)?.is_some() {
            return Ok(());
        }
        let is_it = |p: &&PrivateEntry| {
            p.part == Part::Limbo && p.key == row.node && StageId::parse(&p.name).is_none()
        };
        let Some(found) = private.values().find(is_it) else { return Ok(()) };
        let as_staged = |r: &&IntentRow| {
            let now = (found.fingerprint.size, found.fingerprint.mtime);
            r.staged.as_ref().is_some_and(|s| s.node == found.key && (s.size, s.mtime) == now)
        };
        let Some(staged) = rows.iter().find(as_staged) else { return self.give_back(tx, from, found) };
        let key = (staged.entry, staged.dot);
        self.left.placed.remove(&key);
        if let Some(other) = self.left.staged.insert(key, found.clone()) {
            self.drop_private(&other);
        }
        Ok(())
    }

    fn sight_at(&mut self, tx: &mut Tx<'_>, row: &IntentRow) -> Result<Sight, Fail> {
        let seen = self.seen_at(tx, &row.at)?;
        Ok(row.sight(seen.as_ref().map(|s| (&s.key, &s.fingerprint))))
    }

    /// What is there now, wherever a user has taken the directory meanwhile.
    fn seen_at(&mut self, tx: &mut Tx<'_>, at: &At) -> Result<Option<Seen>, Fail> {
        let Some(fd) = self.dir_wherever(tx, &at.dir)? else { return Ok(None) };
        Ok(fd.look(&at.name).ok().flatten())
    }

    /// True if it was shown, and a user has given it another name since.
    fn stands_elsewhere(&self, staged: &StagedFile) -> bool {
        matches!(self.volume.locate(&staged.node), Located::At(_))
    }

    fn drop_private(&mut self, entry: &PrivateEntry) {
        if let Err(e) = self.volume.drop_private(entry) {
            self.log(Level::Warn, e.to_string());
        }
    }

    /// A user's version that came into the private directory in a race goes back to where it was, under a name of its
    /// own if that name is taken: there it is found as any file.
    pub(super) fn give_back(&mut self, tx: &mut Tx<'_>, at: &At, found: &PrivateEntry) -> Result<(), Fail> {
        let told = String::from_utf8_lossy(at.name.as_bytes()).into_owned();
        let mut dirs = Vec::new();
        dirs.extend(self.dir_wherever(tx, &at.dir)?);
        dirs.extend(self.volume.dir(&[], None).ok());
        for dir in dirs {
            for name in [at.name.clone(), recovered_name(&at.name, &found.name)] {
                match self.volume.give_back(found, &dir, &name) {
                    Ok(true) => {
                        let now = String::from_utf8_lossy(name.as_bytes()).into_owned();
                        self.log(
                            Level::Warn,
                            format!(
                                "{told} was changed while it was replaced: what was written is kept as {now}"
                            ),
                        );
                        self.look_soon(dir.key().clone(), name);
                        return Ok(());
                    }
                    Ok(false) => {}
                    Err(e) => self.log(Level::Warn, e.to_string()),
                }
            }
        }
        let name = String::from_utf8_lossy(&found.name).into_owned();
        self.log(
            Level::Warn,
            format!(
                "{told} was changed while it was replaced: what was written is kept in .driftless, as {name}"
            ),
        );
        Ok(())
    }

    /// What was about to be moved when the last process ended is planned again before anything is looked at: what was
    /// done and not recorded is recorded as ours, and not taken for a user's change.
    pub(super) fn redo_intents(&mut self) -> Result<(), Fail> {
        if self.shared.dry_run {
            return Ok(());
        }
        let entries: Vec<EntryId> = std::mem::take(&mut self.left.redo).into_iter().collect();
        self.redoing = true;
        for chunk in entries.chunks(apply::ENTRIES_PER_PLAN) {
            self.plan_and_apply(chunk)?;
        }
        self.redoing = false;
        self.forget_ghosts()?;
        let dirs = std::mem::take(&mut self.left.redo_dirs);
        if !dirs.is_empty() {
            self.restore_times_of(dirs)?;
        }
        for (_, entry) in std::mem::take(&mut self.left).staged {
            self.drop_private(&entry);
        }
        self.harden()?;
        crash::at(Point::IntentsRedone);
        Ok(())
    }

    /// Parked inodes that are not parked any more, and that no plan found at their place: a user has them, or took
    /// them away. The crawl finds what there is.
    fn forget_ghosts(&mut self) -> Result<(), Fail> {
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        let Some(dir) = NodeKey::new(Plan::PARKED) else { return Ok(()) };
        let mut changed = false;
        for (name, place) in tx.places_beginning(&dir, &[])? {
            if is_parked_at(&self.volume, &place.node).map_err(Fail::Volume)? {
                continue;
            }
            let kind = tx.node(&place.node)?.map_or(Kind::File, |n| n.kind);
            let victim = plan::Victim { node: place.node.clone(), kind, fingerprint: Default::default() };
            plan::record(&mut tx, &Step::Remove { at: At { dir: dir.clone(), name }, victim }, None)?;
            changed = true;
        }
        if changed { self.commit(tx) } else { Ok(()) }
    }

    // ----- contents in the private directory

    /// True if these bytes lie in the private directory.
    pub(super) fn has_private(&self, key: &(EntryId, Dot), digest: &Digest) -> bool {
        self.left.has(key) || self.limbos.has(digest)
    }

    /// A file in the private directory that may have the bytes: who copies it compares the digest.
    pub(super) fn open_private(&self, key: &(EntryId, Dot), digest: &Digest) -> Option<ReadHandle> {
        if let Some(entry) = self.left.staged.get(key) {
            return self.volume.open_private_file(entry).ok().flatten();
        }
        let limbo = self.limbos.with(digest)?;
        self.volume.open_private_file(&limbo.as_private()).ok().flatten()
    }
}

/// The plans that were begun, and their intents.
pub(super) fn intents(snapshot: &dyn Read) -> Result<(Vec<u64>, Vec<IntentRow>), Fail> {
    let (mut plans, mut rows) = (Vec::new(), Vec::new());
    for (key, value) in snapshot.scan(Table::Intents, &[], None, usize::MAX)? {
        if let Ok(n) = <[u8; 8]>::try_from(&key[..]) {
            plans.push(u64::from_be_bytes(n));
        }
        let damaged = |source| driftless_core::tx::Error::Damaged { table: "intents", source };
        rows.append(&mut intent::decode_intents(&value).map_err(damaged)?);
    }
    Ok((plans, rows))
}

/// True if the inode waits where it was moved out of the way.
pub(super) fn is_parked_at(volume: &Directory, node: &NodeKey) -> Result<bool, VolumeError> {
    Ok(volume.parked(park_id(node))?.as_ref() == Some(node))
}

/// `<name>.recovered-<id>`, cut to what a name may have.
fn recovered_name(name: &Name, id: &[u8]) -> Name {
    let suffix = [b".recovered-".as_slice(), id].concat();
    let stem = &name.as_bytes()[..name.as_bytes().len().min(Name::LEN_MAX.saturating_sub(suffix.len()))];
    Name::new(&[stem, &suffix].concat()).unwrap_or_else(|_| name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovered_names_fit() {
        let name = Name::new(b"report.txt").unwrap();
        assert_eq!(
            recovered_name(&name, b"00000000000000a1").as_bytes(),
            b"report.txt.recovered-00000000000000a1"
        );
        let long = Name::new(&[b'x'; 255]).unwrap();
        let cut = recovered_name(&long, b"00000000000000a1");
        assert_eq!(cut.as_bytes().len(), Name::LEN_MAX);
        assert!(cut.as_bytes().ends_with(b".recovered-00000000000000a1"));
    }
}
