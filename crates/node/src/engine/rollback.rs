//! The guard against trees that were put back to an earlier state (the judgement is [`driftless_core::rollback`]).
//!
//! A change that goes back is not recorded when it is seen. It waits: in a crawl for its end, else for a moment in which no
//! more come, together with what a restore does besides (removals, times set back, files with old times). Then either all of it is
//! recorded, as if it had been seen now, or there is too much of it, and the operator decides:
//!
//! - to ask ([`OnRollback::Ask`]): nothing of it is recorded, so nothing of it leaves; everything else goes on;
//! - to accept it: as users' edits;
//! - to heal: the tree is a stale copy. Its records of these paths are forgotten, which is no removal, so that the plan brings
//!   the newer versions from the other side; what was there instead is moved to `recovered-<site>-<date>/`.

use super::observe::{Pass, Taking};
use super::{Engine, Fail, RelPath, judge::removal_limit};
use crate::api::{Event, Level, MaxDelete, OnRollback, PathText, Reason};
use crate::needs::Waiter;
use driftless_core::local::{self, Looked};
use driftless_core::plan::{At, Step};
use driftless_core::rollback::{self, Backward, Tally, Verdict};
use driftless_core::unsealed;
use driftless_core::{Bind, Digest, EntryId, Fingerprint, Name, Node, NodeKey, Time, Tx, Wanted, tree};
use driftless_volume::Seen;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// So long after the last change that goes back it is judged how many there were: a restore makes many in a second.
const QUIET: Duration = Duration::from_secs(2);
/// Where they do not end, so long after the first.
const JUDGED_AT_LATEST_AFTER: Duration = Duration::from_secs(30);
/// So long names that are gone wait for what might come with them ...
const REMOVALS_QUIET: Duration = Duration::from_secs(1);
/// ... and not longer than this, if nothing does.
const REMOVALS_AT_LATEST_AFTER: Duration = Duration::from_secs(5);
/// What was recorded counts with what comes within this time after it: a slow restore is one all the same.
const WINDOW: Duration = Duration::from_secs(60);
/// Paths kept in memory; a tree with more of them was put back, whatever its size.
const KEPT_MAX: usize = 200_000;
/// A new file whose content is this much older than its inode was put there with its old times.
const COPIED_AGE_S: i64 = 60;
/// Paths named in the message.
const EXAMPLES: usize = 3;

/// A path on this disk.
type Spot = (NodeKey, Name);

/// What is seen and not recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    Back(Backward),
    /// At a name where nothing is recorded, with old times.
    New,
}

struct Kept {
    what: What,
    node: NodeKey,
    fingerprint: Fingerprint,
    /// The modification time that is recorded.
    recorded: Time,
    /// The crawl that saw it last.
    crawl: u64,
}

/// When the first and the last of something were seen.
#[derive(Clone, Copy, Default)]
struct Times {
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Times {
    fn touch(&mut self) {
        let now = Instant::now();
        self.first.get_or_insert(now);
        self.last = Some(now);
    }

    /// `quiet` after the last, and not longer than `latest` after the first.
    fn due(self, quiet: Duration, latest: Duration) -> Option<Instant> {
        Some((self.last? + quiet).min(self.first? + latest))
    }

    fn is_older_than(self, age: Duration) -> bool {
        self.last.is_none_or(|at| at.elapsed() > age)
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Rollback {
    kept: BTreeMap<Spot, Kept>,
    /// Recorded names that are gone.
    gone: BTreeSet<Spot>,
    /// Directories whose times changed with all that.
    dirs: BTreeSet<NodeKey>,
    /// What was judged to be users' doing, and is recorded when it is looked at next.
    released: HashMap<Spot, Fingerprint>,
    /// Changes released in this window.
    counted: Tally,
    crawl: u64,
    kept_times: Times,
    gone_times: Times,
    /// The feed's head now and then, and when that was: what was made since is young.
    marks: [Option<(u64, Instant)>; 2],
    /// There is too much of it: it waits for the operator.
    tripped: bool,
}

impl Rollback {
    /// True if there is something that may be part of a restore.
    fn is_open(&self) -> bool {
        self.tripped || self.kept.values().any(|k| k.what.counts())
    }

    /// True if what is kept will be judged by itself.
    pub(super) fn is_waiting(&self) -> bool {
        !self.tripped && !self.is_empty()
    }

    fn is_empty(&self) -> bool {
        self.kept.is_empty() && self.gone.is_empty() && self.dirs.is_empty()
    }

    /// When what is kept is to be judged.
    pub(super) fn due(&self) -> Option<Instant> {
        if !self.is_waiting() {
            return None;
        }
        if self.kept.is_empty() && self.dirs.is_empty() {
            return self.gone_times.due(REMOVALS_QUIET, REMOVALS_AT_LATEST_AFTER);
        }
        self.kept_times.due(QUIET, JUDGED_AT_LATEST_AFTER)
    }

    /// A crawl sees again what is still there.
    pub(super) fn crawl_starts(&mut self) {
        self.crawl += 1;
        self.gone.clear();
    }

    fn mark(&mut self, head: u64, now: Instant) {
        if self.marks[1].is_none_or(|mark| now.duration_since(mark.1) > WINDOW) {
            self.marks = [self.marks[1].or(Some((head, now))), Some((head, now))];
        }
    }

    fn tally(&self) -> Tally {
        let count = |what| self.kept.values().filter(|k| k.what == What::Back(what)).count() as u64;
        Tally { older: count(Backward::Older), emptied: count(Backward::Emptied), gone: 0 }
    }
}

impl What {
    fn counts(self) -> bool {
        matches!(self, What::Back(b) if b.counts())
    }
}

impl Engine {
    fn guards_rollback(&self) -> bool {
        self.taking == Taking::Watch
            && !self.follows()
            && self.shared.on_rollback != OnRollback::Accept
            && removal_limit(self.shared.max_delete, 0) < u64::MAX
    }

    /// True if `seen` is what is kept for this path already: there is nothing to be read.
    pub(super) fn is_kept_back(&mut self, dir: &NodeKey, seen: &Seen) -> bool {
        if self.rollback.kept.is_empty() {
            return false;
        }
        let crawl = self.rollback.crawl;
        match self.rollback.kept.get_mut(&(dir.clone(), seen.name.clone())) {
            Some(kept) if kept.node == seen.key && kept.fingerprint == seen.fingerprint => {
                kept.crawl = crawl;
                true
            }
            _ => false,
        }
    }

    /// True if what was found at `at`, where `was` is recorded, is not to be recorded now.
    pub(super) fn keeps_back(&mut self, pass: &mut Pass, at: &At, was: &Node, now: &Looked) -> bool {
        if !self.guards_rollback() {
            return false;
        }
        let what = match (&was.bind, &now.content) {
            (Bind::Leaf { identity }, Some(content)) => {
                rollback::backward((&was.fingerprint, identity), (&now.fingerprint, &content.identity()))
            }
            (Bind::Leaf { identity }, None) => {
                rollback::backward((&was.fingerprint, identity), (&now.fingerprint, identity))
            }
            (Bind::Dir(_), _) => return self.keeps_dir_back(pass, now),
        };
        let spot = (at.dir.clone(), at.name.clone());
        // Times alone are worth waiting for only where more is suspected, or where it costs nothing.
        let waits = what.is_some_and(|w| w.counts() || pass.complete || self.rollback.is_open());
        let Some(what) = what.filter(|_| waits) else {
            self.rollback.kept.remove(&spot);
            return false;
        };
        self.keep(spot, What::Back(what), was.fingerprint.mtime, (&now.key, now.fingerprint))
    }

    /// True of what a restore may have put back at a name where nothing is recorded: whether it has is known when what
    /// was heard of at the same time has been judged.
    pub(super) fn judges_new_late(&self, pass: &Pass, seen: &Seen) -> bool {
        pass.by_name && has_old_times(seen) && self.guards_rollback() && !self.rollback.is_open()
    }

    /// As [`Engine::keeps_back`], of something at a name where nothing is recorded.
    pub(super) fn keeps_new_back(&mut self, pass: &Pass, dir: &NodeKey, seen: &Seen) -> bool {
        let print = seen.fingerprint;
        if !has_old_times(seen) || !self.guards_rollback() || !(pass.complete || self.rollback.is_open()) {
            return false;
        }
        if self.rollback.kept.len() >= KEPT_MAX {
            return false;
        }
        self.keep((dir.clone(), seen.name.clone()), What::New, print.mtime, (&seen.key, print))
    }

    fn keep(
        &mut self,
        spot: Spot,
        what: What,
        recorded: Time,
        (node, fingerprint): (&NodeKey, Fingerprint),
    ) -> bool {
        let r = &mut self.rollback;
        if r.released.get(&spot) == Some(&fingerprint) {
            r.released.remove(&spot);
            return false;
        }
        r.released.remove(&spot);
        r.kept_times.touch();
        let kept = Kept { what, node: node.clone(), fingerprint, recorded, crawl: r.crawl };
        r.kept.insert(spot, kept);
        true
    }

    /// A directory's time is moved or set back by a restore as well; by itself it proves nothing. A crawl records it at its
    /// end in any case.
    fn keeps_dir_back(&mut self, pass: &mut Pass, now: &Looked) -> bool {
        if self.rollback.is_open() {
            self.rollback.kept_times.touch();
            self.rollback.dirs.insert(now.key.clone());
            return true;
        }
        if pass.complete {
            pass.touch(now.key.clone());
        }
        pass.complete
    }

    /// True while times of directories may be part of a restore: those touched are looked at later.
    pub(super) fn keeps_dir_times(&mut self, pass: &mut Pass) -> bool {
        if !self.rollback.is_open() {
            return false;
        }
        self.rollback.dirs.append(&mut pass.touched);
        true
    }

    /// True if a file that was made just now is renamed to what may be a restored one: then that is looked at as a new inode
    /// there, whether its first name was seen in time to be recorded or not.
    pub(super) fn may_be_restored(
        &mut self,
        tx: &mut Tx<'_>,
        from: &Spot,
        to: local::Spot<'_>,
        seen: &Seen,
    ) -> Result<bool, Fail> {
        let old_n = self.rollback.marks[0].map_or(u64::MAX, |mark| mark.0);
        if !self.guards_rollback() || !local::is_made_since(tx, (&from.0, &from.1), old_n)? {
            return Ok(false);
        }
        let Some(over) = tx.place(to.0, to.1)? else {
            return Ok(self.rollback.is_open() && has_old_times(seen));
        };
        let over = tx.node_must(&over.node)?;
        Ok(!over.kind.is_dir() && seen.fingerprint.mtime < over.fingerprint.mtime)
    }

    /// Of names that are gone, those to be recorded now. Others wait a moment: what a restore removes may be seen before
    /// what it puts back.
    pub(super) fn removals_now(
        &mut self,
        tx: &mut Tx<'_>,
        pass: &mut Pass,
        gone: Vec<Spot>,
    ) -> Result<Vec<Spot>, Fail> {
        // A session that is to end sees a restore as a whole: by its crawl.
        if !self.guards_rollback() || pass.waited || (self.shared.once && !pass.complete) {
            return Ok(gone);
        }
        if pass.complete {
            return Ok(if self.judge_crawl(tx, pass, &gone)? { gone } else { Vec::new() });
        }
        let mut now = Vec::new();
        for (dir, name) in gone {
            let Some(place) = tx.place(&dir, &name)? else { continue };
            // A name that others of its inode have outlived has to be recorded before their new change time is.
            let has_others = tx.node_must(&place.node)?.names.len() > 1;
            if has_others || self.rollback.gone.len() >= KEPT_MAX {
                now.push((dir, name));
            } else if self.rollback.gone.insert((dir, name)) {
                self.rollback.gone_times.touch();
            }
        }
        Ok(now)
    }

    /// True if the step takes away a directory in which names are recorded that are gone and wait: the directory is empty, and
    /// their records would have no place.
    pub(super) fn takes_what_waits(&mut self, tx: &mut Tx<'_>, step: &Step) -> Result<bool, Fail> {
        if self.rollback.gone.is_empty() {
            return Ok(false);
        }
        let Some(victim) = step.victim().filter(|v| v.kind.is_dir()) else { return Ok(false) };
        Ok(!tx.places_in(&victim.node, None, 1)?.is_empty())
    }

    /// The whole tree was looked at: what it did not see again is over.
    fn judge_crawl(&mut self, tx: &mut Tx<'_>, pass: &mut Pass, gone: &[Spot]) -> Result<bool, Fail> {
        let crawl = self.rollback.crawl;
        self.rollback.kept.retain(|_, kept| kept.crawl == crawl);
        self.rollback.gone.extend(gone.iter().cloned());
        match self.judge_kept(tx)? {
            // Recorded by the caller, with what is left of the pass.
            Verdict::Edits | Verdict::Removals => {
                self.rollback.gone.clear();
                self.release();
                Ok(true)
            }
            Verdict::Rollback => {
                pass.held = true;
                self.trip(tx)?;
                Ok(false)
            }
        }
    }

    /// True if plans have to wait until what is kept is judged: a plan counts on records of what the disk shows. Names that
    /// are gone, with nothing that goes back, are judged for it at once.
    pub(super) fn plans_wait_for_rollback(&mut self) -> Result<bool, Fail> {
        if !self.rollback.is_waiting() || self.pass.is_some() {
            return Ok(false);
        }
        if !self.rollback.is_open() {
            self.judge_kept_now()?;
        }
        Ok(self.rollback.is_waiting())
    }

    /// Judges what is kept once no more of it comes.
    pub(super) fn judge_rollback_when_quiet(&mut self) -> Result<(), Fail> {
        let now = Instant::now();
        let head = self.head;
        let r = &mut self.rollback;
        r.mark(head, now);
        if r.is_empty() && r.kept_times.is_older_than(WINDOW) {
            r.counted = Tally::default();
            r.released.clear();
        }
        // A crawl judges at its end what is kept by then.
        if self.pass.is_some() || self.rollback.due().is_none_or(|at| at > now) {
            return Ok(());
        }
        let still_comes = self.rollback.is_open() && !self.rollback.kept_times.is_older_than(QUIET);
        if self.shared.on_rollback == OnRollback::Heal && still_comes {
            return Ok(()); // what is being restored must not be healed at the same time
        }
        self.judge_kept_now()
    }

    fn judge_kept_now(&mut self) -> Result<(), Fail> {
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        match self.judge_kept(&mut tx)? {
            Verdict::Edits | Verdict::Removals => {
                let gone = std::mem::take(&mut self.rollback.gone);
                self.release();
                if gone.is_empty() {
                    return Ok(());
                }
                self.waiting.retry(Reason::NotEmpty);
                self.run_small_pass(tx, Pass::gone(gone))
            }
            Verdict::Rollback => {
                self.trip(&mut tx)?;
                self.commit_lazily(tx)?;
                self.heal_rollback()
            }
        }
    }

    fn judge_kept(&mut self, tx: &mut Tx<'_>) -> Result<Verdict, Fail> {
        let now = self.rollback.tally();
        if now.backward() == 0 {
            self.rollback.tripped = false;
            return Ok(Verdict::Edits);
        }
        if self.rollback.tripped {
            return Ok(Verdict::Rollback); // until none of it is left: part of it is not less of one
        }
        let tally = self.tally_with_gone(tx, u64::MAX)?;
        let fewest = removal_limit(self.shared.max_delete, 0);
        if tally.sum() <= fewest && !matches!(self.shared.max_delete, MaxDelete::Percent(_)) {
            return Ok(Verdict::Edits); // whatever the size of the tree
        }
        let limit = removal_limit(self.shared.max_delete, self.count_places()?);
        let limit = if self.rollback.kept.len() >= KEPT_MAX { limit.min(KEPT_MAX as u64 - 1) } else { limit };
        Ok(rollback::judge(tally, limit))
    }

    fn tally_with_gone(&mut self, tx: &mut Tx<'_>, limit: u64) -> Result<Tally, Fail> {
        let (now, before) = (self.rollback.tally(), self.rollback.counted);
        let gone: Vec<Spot> = self.rollback.gone.iter().cloned().collect();
        Ok(Tally {
            older: now.older + before.older,
            emptied: now.emptied + before.emptied,
            gone: self.count_recorded(tx, &gone, limit)?,
        })
    }

    /// Users' doing: recorded when it is looked at once more, which is now.
    fn release(&mut self) {
        let r = &mut self.rollback;
        let now = r.tally();
        r.counted =
            Tally { older: r.counted.older + now.older, emptied: r.counted.emptied + now.emptied, gone: 0 };
        (r.tripped, r.kept_times.first, r.gone_times.first) = (false, None, None);
        for (spot, kept) in std::mem::take(&mut r.kept) {
            r.released.insert(spot.clone(), kept.fingerprint);
            self.hints.insert(spot);
        }
        self.inodes.append(&mut r.dirs);
    }

    /// There is too much of it: says so.
    fn trip(&mut self, tx: &mut Tx<'_>) -> Result<(), Fail> {
        self.rollback.tripped = true;
        let text = self.describe_rollback(tx)?;
        if self.shared.on_rollback == OnRollback::Heal && !self.shared.dry_run {
            self.log(Level::Warn, format!("the tree was put back to an earlier state: {text}; healing it"));
            return Ok(());
        }
        self.path_waits(tx, b".".to_vec(), Reason::MassRollback, text)
    }

    fn describe_rollback(&mut self, tx: &mut Tx<'_>) -> Result<String, Fail> {
        let tally = self.tally_with_gone(tx, u64::MAX)?;
        let total = self.count_places()?;
        let mut examples = Vec::new();
        let counting = self.rollback.kept.iter().filter(|(_, k)| k.what.counts()).take(EXAMPLES);
        let counting: Vec<(Spot, Time, Fingerprint)> =
            counting.map(|(spot, k)| (spot.clone(), k.recorded, k.fingerprint)).collect();
        for ((dir, name), recorded, now) in counting {
            let Some(mut path) = self.path_of_node(tx, &dir)? else { continue };
            path.push(&name);
            let path = String::from_utf8_lossy(&path.join_bytes()).into_owned();
            examples.push(format!(
                "{path} ({} bytes of {}, recorded {})",
                now.size,
                day(now.mtime),
                day(recorded)
            ));
        }
        let parts = [(tally.older, "older than recorded"), (tally.emptied, "emptied"), (tally.gone, "gone")];
        let parts: Vec<String> =
            parts.iter().filter(|p| p.0 > 0).map(|(n, what)| format!("{n} {what}")).collect();
        let cause = match tally.older > 0 {
            true => "restored from a backup?",
            false => "emptied by mistake?",
        };
        Ok(format!(
            "{} of {total} entries: {}; {cause} nothing of that was recorded; for example {}",
            tally.sum(),
            parts.join(", "),
            examples.join(", ")
        ))
    }

    /// Brings back what the records say, if that was asked for.
    pub(super) fn heal_rollback(&mut self) -> Result<(), Fail> {
        if !self.rollback.tripped || self.shared.on_rollback != OnRollback::Heal || self.shared.dry_run {
            return Ok(());
        }
        let stale = std::mem::take(&mut self.rollback);
        self.rollback.crawl = stale.crawl;
        // Durable first: what is missing from now on was not removed by anybody.
        let n = self.forget_stale(&stale)?;
        let mut moved = 0u64;
        for ((dir, name), kept) in &stale.kept {
            if matches!(kept.what, What::New | What::Back(Backward::Older)) {
                moved += u64::from(self.move_stale(dir, name, kept)?);
            }
        }
        self.forget_dirs();
        self.put_aside_n += moved;
        self.log(
            Level::Warn,
            format!(
                "{n} {} again as the other side has them",
                if n == 1 { "entry comes" } else { "entries come" }
            ),
        );
        self.tell_put_aside();
        // What was moved, and what could not be.
        self.want_crawl = true;
        Ok(())
    }

    /// Forgets what is recorded at paths that were put back, and has their entries planned. How many.
    fn forget_stale(&mut self, stale: &Rollback) -> Result<usize, Fail> {
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        let mut concerned: BTreeSet<EntryId> = BTreeSet::new();
        let mut dirs = Vec::new();
        let mut emptied = BTreeSet::new();
        for ((dir, name), kept) in &stale.kept {
            if kept.what == What::Back(Backward::Emptied)
                && tx.place(dir, name)?.is_some_and(|p| p.node == kept.node)
            {
                emptied.insert(kept.node.clone());
            }
        }
        let stands = |k: &Kept| k.what.counts() && !emptied.contains(&k.node);
        let back = stale.kept.iter().filter(|(_, k)| stands(k)).map(|(spot, _)| spot);
        for (dir, name) in back.chain(&stale.gone) {
            if let Some(place) = tx.place(dir, name)?
                && place.claims.is_empty()
            {
                dirs.push(place.node.clone());
            }
            let at = At { dir: dir.clone(), name: name.clone() };
            concerned.extend(unsealed::rebase(&mut tx, &at, unsealed::Verdict::Missing, &[], None)?);
        }
        for dir in dirs {
            concerned.extend(unsealed::forget_below(&mut tx, &dir)?);
        }
        self.paths.clear();
        let times = stale.kept.iter().filter(|(_, k)| k.what == What::Back(Backward::TimeOnly));
        let times: Vec<NodeKey> =
            times.map(|(_, k)| k.node.clone()).chain(stale.dirs.iter().cloned()).collect();
        for key in times {
            concerned.extend(self.bring_again(&mut tx, &key, false)?);
        }
        for key in &emptied {
            concerned.extend(self.bring_again(&mut tx, key, true)?);
        }
        concerned.iter().for_each(|id| tx.add_pending(*id));
        let who = Waiter::Path(b".".to_vec());
        if self.waiting.get(&who).is_some_and(|n| n.reason == Reason::MassRollback) {
            self.resolved(&mut tx, &who, b".");
        }
        self.commit(tx)?;
        Ok(concerned.len())
    }

    /// Takes what an inode shows (its attributes; if it was `emptied`, that it holds nothing) for what we gave it, so that
    /// the plan gives it what the state says.
    fn bring_again(&mut self, tx: &mut Tx<'_>, key: &NodeKey, emptied: bool) -> Result<Vec<EntryId>, Fail> {
        let Some(node) = tx.node(key)? else { return Ok(Vec::new()) };
        let looked = match node.names.first() {
            None => {
                self.volume.dir(&[], None).and_then(|fd| fd.looked_self().map(|l| (l.fingerprint, l.attrs)))
            }
            Some((dir, name)) => {
                let Some(path) = self.path_of_node(tx, dir)? else { return Ok(Vec::new()) };
                self.volume.dir(&path, Some(dir)).and_then(|fd| fd.attrs(name, key))
            }
        };
        // What cannot be looked at is looked at by the crawl that follows.
        let Ok((fingerprint, given)) = looked else { return Ok(Vec::new()) };
        let given = match node.kind.is_dir() {
            true => driftless_core::Attrs { dir_mtime: Some(fingerprint.mtime), ..given },
            false => driftless_core::Attrs { dir_mtime: None, ..given },
        };
        let concerned = match &node.bind {
            Bind::Dir(members) => members.clone(),
            Bind::Leaf { .. } => {
                let mut owners = Vec::new();
                for (dir, name) in &node.names {
                    owners.extend(tx.place(dir, name)?.iter().flat_map(|p| &p.claims).map(|c| c.entry));
                }
                owners
            }
        };
        let mut node = Node { fingerprint, given, wanted: Wanted::UNKNOWN, ..(*node).clone() };
        if emptied && fingerprint.size == 0 {
            node.bind = Bind::Leaf { identity: Digest::of(b"") };
        }
        tx.put_node(key, node);
        Ok(concerned)
    }

    /// Moves what was put back out of the way. False if it is not there any more, or cannot be moved: then it is taken for
    /// what somebody put there.
    fn move_stale(&mut self, dir: &NodeKey, name: &Name, kept: &Kept) -> Result<bool, Fail> {
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        let Some(above) = self.path_of_node(&mut tx, dir)? else { return Ok(false) };
        let Ok(fd) = self.volume.dir(&above, Some(dir)) else { return Ok(false) };
        let seen = match fd.look(name) {
            Ok(Some(seen)) if seen.key == kept.node && seen.fingerprint.size == kept.fingerprint.size => seen,
            _ => return Ok(false),
        };
        match self.put_aside(&fd, &above, &seen) {
            Ok(to) => {
                self.say_put_aside(&above, name, &to);
                Ok(true)
            }
            Err(e) => {
                let at = String::from_utf8_lossy(name.as_bytes()).into_owned();
                self.log(Level::Warn, format!("{at} cannot be moved out of the way: {e}"));
                Ok(false)
            }
        }
    }

    fn say_put_aside(&mut self, above: &RelPath, name: &Name, to: &RelPath) {
        let mut path = above.clone();
        path.push(name);
        self.say(Event::PutAside {
            side: self.side,
            path: PathText::new(&path.join_bytes()),
            to: PathText::new(&to.join_bytes()),
        });
    }
}

/// True of what was written with the times of what it is a copy of.
fn has_old_times(seen: &Seen) -> bool {
    let print = seen.fingerprint;
    print.ctime.sec.saturating_sub(print.mtime.sec) > COPIED_AGE_S
}

/// For people.
fn day(t: Time) -> String {
    tree::utc(u64::try_from(t.sec).unwrap_or(0))
}
