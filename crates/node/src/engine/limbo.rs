//! What was replaced or removed, until nobody can write to it any more.
//!
//! A sync covers the moves ([`super::seal`]); then each file in limbo is looked at again and judged
//! ([`driftless_core::limbo`]): most go for good, one that somebody has open, that an entry which waits needs, or of
//! which nobody can tell, rests, and one that was written to goes back into the tree. The intents of plans whose
//! victims rest stay: by them a restart finds what rests.

use super::{Engine, Fail, trash};
use crate::api::Level;
use driftless_core::limbo::{Verdict, judge};
use driftless_core::plan::At;
use driftless_core::{Digest, Kind, NodeKey};
use driftless_volume::{Limbo, Shown, StageId, Writers};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

/// What rests is looked at again after this long at first ...
const REST_PAUSE_MIN: Duration = Duration::from_millis(500);
/// ... and after twice as long each time, up to this.
const REST_PAUSE_MAX: Duration = Duration::from_secs(16);

/// Where a sync covers more files than this, they go a moment later: looking at each once more is work that nobody waits for, and what
/// put so many here may go on.
const AT_ONCE_MAX: usize = 256;
/// That moment.
const LATER: Duration = Duration::from_millis(500);
/// So many do not wait for it: they take room.
const WAITING_MAX: usize = 40_000;

/// What was replaced or removed, until it goes.
pub(super) struct InLimbo {
    pub(super) limbo: Limbo,
    /// Where it was.
    pub(super) at: At,
    /// Its content, if it has one.
    pub(super) identity: Option<Digest>,
    /// What it is.
    pub(super) kind: Kind,
    /// The plan that put it here.
    pub(super) plan: u64,
    /// What the trash is told about it, if there is one.
    pub(super) origin: Option<trash::Origin>,
    /// When this process first knew of it here.
    since: Instant,
    /// A person was told that it is open.
    told: bool,
}

impl InLimbo {
    pub(super) fn new(
        limbo: Limbo,
        at: At,
        identity: Option<Digest>,
        kind: Kind,
        plan: u64,
        origin: Option<trash::Origin>,
    ) -> InLimbo {
        InLimbo { limbo, at, identity, kind, plan, origin, since: Instant::now(), told: false }
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Limbos {
    /// Put here since the last sync.
    fresh: Vec<InLimbo>,
    /// Covered by a sync, and not looked at since: there are many.
    covered: Vec<InLimbo>,
    /// When these are.
    covered_due: Option<Instant>,
    /// Covered by a sync, and not to go yet.
    resting: Vec<InLimbo>,
    /// Contents in limbo: the last copy of a version may be among them.
    contents: HashMap<Digest, StageId>,
    /// When what rests is looked at next, and the pause after that.
    next: Option<(Instant, Duration)>,
}

impl Limbos {
    /// How many files wait for a sync.
    pub(super) fn fresh_count(&self) -> usize {
        self.fresh.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.covered.is_empty() && self.resting.is_empty()
    }

    /// When what rests is to be looked at next.
    pub(super) fn next_look(&self) -> Option<Instant> {
        [self.next.map(|(at, _)| at), self.covered_due].into_iter().flatten().min()
    }

    pub(super) fn put(&mut self, one: InLimbo) {
        self.know(&one);
        self.fresh.push(one);
    }

    fn rest(&mut self, one: InLimbo) {
        self.know(&one);
        self.resting.push(one);
    }

    fn know(&mut self, one: &InLimbo) {
        if let Some(identity) = one.identity {
            self.contents.insert(identity, one.limbo.id);
        }
    }

    /// What was thought to have this content has another: it was written to by a name that it still has in the tree. It is no
    /// source of that content any more, and nothing that needs it keeps it here.
    pub(super) fn disprove(&mut self, content: &Digest) {
        let Some(id) = self.contents.remove(content) else { return };
        for one in self.fresh.iter_mut().chain(&mut self.covered).chain(&mut self.resting) {
            if one.limbo.id == id {
                one.identity = None;
            } else if one.identity == Some(*content) {
                self.contents.insert(*content, one.limbo.id);
            }
        }
    }

    pub(super) fn has(&self, content: &Digest) -> bool {
        self.contents.contains_key(content)
    }

    /// Everything in limbo.
    pub(super) fn all(&self) -> impl Iterator<Item = &Limbo> {
        self.fresh.iter().chain(&self.covered).chain(&self.resting).map(|one| &one.limbo)
    }

    /// A file that has this content, or had it when it was put here.
    pub(super) fn with(&self, content: &Digest) -> Option<&Limbo> {
        let id = self.contents.get(content)?;
        self.all().find(|limbo| limbo.id == *id)
    }

    /// What is to be looked at after a sync: all, or not yet those that were put here just now, if they are many.
    fn take(&mut self, now: Instant, all: bool) -> Vec<InLimbo> {
        let mut taken = std::mem::take(&mut self.resting);
        if all || self.covered_due.is_none_or(|at| at <= now) {
            taken.append(&mut self.covered);
        }
        let later = self.fresh.len() > AT_ONCE_MAX && self.covered.len() + self.fresh.len() <= WAITING_MAX;
        if later && !all {
            self.covered.append(&mut self.fresh);
            self.covered_due = Some(now + LATER);
        } else {
            taken.append(&mut self.fresh);
        }
        self.covered_due = self.covered_due.filter(|_| !self.covered.is_empty());
        self.contents.clear();
        for one in std::mem::take(&mut self.covered) {
            self.know(&one);
            self.covered.push(one);
        }
        taken
    }

    /// Plans of which something is left.
    fn plans(&self) -> BTreeSet<u64> {
        self.covered.iter().chain(&self.resting).map(|one| one.plan).collect()
    }

    /// Says when to look again: soon if something new rests, else after twice the pause.
    fn schedule(&mut self, rested_before: usize) {
        self.next = match self.resting.len() {
            0 => None,
            now => {
                let pause = match self.next {
                    Some((_, pause)) if now <= rested_before => (pause * 2).min(REST_PAUSE_MAX),
                    _ => REST_PAUSE_MIN,
                };
                Some((Instant::now() + pause, pause))
            }
        };
    }
}

impl Engine {
    /// After a sync: what may go, goes; what was written to goes back into the tree; the rest rests. Gives what went and
    /// the plans of which something rests.
    pub(super) fn empty_limbo(&mut self) -> Result<(Vec<Limbo>, BTreeSet<u64>), Fail> {
        let rested = self.limbos.resting.len();
        let all = self.limbos.take(Instant::now(), self.stopping);
        let mut needed = if all.is_empty() { HashSet::new() } else { self.needed_contents()? };
        needed.extend(self.hidden_contents()?);
        let (mut gone, mut changed) = (Vec::new(), Vec::new());
        for mut one in all {
            match self.last_look(&one, &needed)? {
                Verdict::Drop | Verdict::DropIfSame => gone.push(one),
                Verdict::GiveBack => changed.push(one),
                Verdict::Leave => self.tell_stranger(&one),
                Verdict::Wait => {
                    self.tell_open(&mut one);
                    self.limbos.rest(one);
                }
            }
        }
        let cleared = self.clear_limbo(gone)?;
        // Written to between the look and this, or the trash could not be written to: looked at again.
        let (again, done): (Vec<InLimbo>, Vec<InLimbo>) =
            cleared.done.into_iter().partition(|one| cleared.changed.contains(&one.limbo));
        again.into_iter().chain(cleared.stay).for_each(|one| self.limbos.rest(one));
        let dropped: Vec<Limbo> = done.into_iter().map(|one| one.limbo).collect();
        // The sync that covers their way back is yet to come: until then their rows tell whose they are.
        let given_back: Vec<u64> = changed.iter().map(|one| one.plan).collect();
        self.give_back_changed(changed)?;
        // What waited beside its place has moved the time of its directory by going.
        let beside: BTreeSet<NodeKey> = dropped.iter().filter_map(|limbo| limbo.beside.clone()).collect();
        if !beside.is_empty() {
            self.restore_times_of(beside)?;
        }
        self.limbos.schedule(rested);
        let mut plans = self.limbos.plans();
        plans.extend(given_back);
        Ok((dropped, plans))
    }

    fn last_look(&self, one: &InLimbo, needed: &HashSet<Digest>) -> Result<Verdict, Fail> {
        let (shown, writers) = self.volume.look_in_limbo(&one.limbo).map_err(Fail::Volume)?;
        let waited_ns = u64::try_from(one.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let verdict = judge(shown, writers, waited_ns);
        let drops = matches!(verdict, Verdict::Drop | Verdict::DropIfSame);
        let is_needed = one.identity.is_some_and(|identity| needed.contains(&identity));
        if drops && is_needed && shown != Shown::Nothing {
            return Ok(Verdict::Wait);
        }
        if verdict == Verdict::DropIfSame && !self.holds_what_it_did(one) {
            return Ok(Verdict::GiveBack);
        }
        Ok(verdict)
    }

    /// True if its content is what was replaced, as far as that is known.
    fn holds_what_it_did(&self, one: &InLimbo) -> bool {
        let Some(identity) = one.identity else { return true };
        match self.volume.open_private_file(&one.limbo.as_private()) {
            Ok(Some(open)) => open.digest().is_ok_and(|now| now == Some(identity)),
            // No file, or one that cannot be read: its identity says nothing of bytes.
            _ => true,
        }
    }

    /// Somebody had it open and wrote to it after all.
    fn give_back_changed(&mut self, changed: Vec<InLimbo>) -> Result<(), Fail> {
        if changed.is_empty() {
            return Ok(());
        }
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let mut tx = driftless_core::Tx::open(&*snapshot, self.env())?;
        for one in changed {
            self.give_back(&mut tx, &one.at, &one.limbo.as_private())?;
        }
        Ok(())
    }

    fn tell_open(&mut self, one: &mut InLimbo) {
        if one.told || !matches!(self.volume.look_in_limbo(&one.limbo), Ok((_, Writers::Some))) {
            return;
        }
        one.told = true;
        let name = String::from_utf8_lossy(one.at.name.as_bytes()).into_owned();
        self.log(
            Level::Warn,
            format!(
                "{name} was replaced or removed while a program has it open: what that still writes is kept"
            ),
        );
    }

    fn tell_stranger(&mut self, one: &InLimbo) {
        let id = one.limbo.id;
        self.log(
            Level::Warn,
            format!(
                "another file took the place of {id} in .driftless/limbo: it is left there; look at it and remove it"
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use driftless_core::{Name, Time};

    fn one(n: u64) -> InLimbo {
        let key = NodeKey::new(&n.to_be_bytes()).unwrap();
        let at = At { dir: key.clone(), name: Name::new(b"name").unwrap() };
        let (size, mtime, ctime) = (n, Time::default(), Time::default());
        let limbo = Limbo { id: StageId(n), key, size, mtime, ctime, beside: None, writers: Writers::None };
        InLimbo::new(limbo, at, Some(Digest::of(&n.to_be_bytes())), Kind::File, n, None)
    }

    fn put(limbos: &mut Limbos, n: usize) {
        (0..n as u64).for_each(|n| limbos.put(one(n)));
    }

    #[test]
    fn a_few_go_at_once_and_many_a_moment_after_the_last() {
        let (mut limbos, begun) = (Limbos::default(), Instant::now());
        put(&mut limbos, AT_ONCE_MAX);
        assert_eq!(limbos.take(begun, false).len(), AT_ONCE_MAX);

        put(&mut limbos, AT_ONCE_MAX + 1);
        assert_eq!(limbos.take(begun, false).len(), 0);
        assert_eq!(limbos.next_look(), Some(begun + LATER));
        assert!(!limbos.is_empty() && limbos.fresh_count() == 0);
        assert_eq!(limbos.plans().len(), AT_ONCE_MAX + 1, "their intents stay");
        assert!(limbos.has(&Digest::of(&7u64.to_be_bytes())), "and they are a source of contents");

        put(&mut limbos, 1);
        assert_eq!(
            limbos.take(begun + LATER / 2, false).len(),
            1,
            "what is not many does not wait with them"
        );
        assert_eq!(limbos.take(begun + LATER * 2, false).len(), AT_ONCE_MAX + 1);
        assert!(limbos.is_empty() && limbos.next_look().is_none());
    }

    #[test]
    fn nothing_waits_at_the_end_or_where_it_is_too_much() {
        let (mut limbos, now) = (Limbos::default(), Instant::now());
        put(&mut limbos, AT_ONCE_MAX + 1);
        assert_eq!(limbos.take(now, true).len(), AT_ONCE_MAX + 1);
        put(&mut limbos, WAITING_MAX + 1);
        assert_eq!(limbos.take(now, false).len(), WAITING_MAX + 1);
    }
}
