//! The needs list in memory: what waits, when each is due, and how many wait for each reason, so that nothing that is
//! asked in every round of the engine costs what the list is long.
//!
//! What a step was refused at is remembered with it: when something happens at that place, or to its directory, whoever
//! waits there is tried at once, whatever the pause.

use super::{RACES_MAX, TRIES_BEFORE_GIVING_UP};
use crate::api::Reason;
use crate::needs::{NEVER_NS, Need, Waiter};
use driftless_core::plan::At;
use driftless_core::{EntryId, Name, NodeKey};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Places remembered for one entry: it is refused at two by one step, and seldom by many steps.
const PLACES_MAX: usize = 8;

/// See the module.
#[derive(Default)]
pub(super) struct Waiters {
    needs: BTreeMap<Waiter, Need>,
    due: BTreeSet<(u64, Waiter)>,
    reasons: BTreeMap<Reason, usize>,
    /// How many are entries.
    entries: usize,
    /// How many have not been tried often enough for a session that is to end.
    untried: usize,
    /// How many are not to be tried.
    skipped: usize,
    /// Places at which steps were refused, and for whom.
    places: BTreeMap<(NodeKey, Name), BTreeSet<EntryId>>,
    places_of: HashMap<EntryId, Vec<(NodeKey, Name)>>,
}

impl Waiters {
    pub(super) fn len(&self) -> usize {
        self.needs.len()
    }

    /// How many of them are entries.
    pub(super) fn entries(&self) -> usize {
        self.entries
    }

    pub(super) fn is_empty(&self) -> bool {
        self.needs.is_empty()
    }

    pub(super) fn get(&self, who: &Waiter) -> Option<&Need> {
        self.needs.get(who)
    }

    pub(super) fn contains(&self, who: &Waiter) -> bool {
        self.needs.contains_key(who)
    }

    /// True if anything waits for this reason.
    pub(super) fn has(&self, reason: Reason) -> bool {
        self.reasons.contains_key(&reason)
    }

    /// How many wait for each reason.
    pub(super) fn by_reason(&self) -> BTreeMap<Reason, u64> {
        self.reasons.iter().map(|(reason, n)| (*reason, *n as u64)).collect()
    }

    /// How many are not to be tried.
    pub(super) fn skipped(&self) -> u64 {
        self.skipped as u64
    }

    /// All there are.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Waiter, &Need)> {
        self.needs.iter()
    }

    /// True if a session that is to end need not wait for any of them.
    pub(super) fn all_tried(&self) -> bool {
        self.untried == 0
    }

    pub(super) fn insert(&mut self, who: Waiter, need: Need) {
        self.take_out(&who);
        self.due.insert((need.retry_ns, who.clone()));
        *self.reasons.entry(need.reason).or_default() += 1;
        self.untried += usize::from(!is_tried(&need));
        self.skipped += usize::from(need.is_skipped());
        self.entries += usize::from(is_entry(&who));
        self.needs.insert(who, need);
    }

    pub(super) fn remove(&mut self, who: &Waiter) -> Option<Need> {
        if let Waiter::Entry(id) = who {
            self.forget_places(*id);
        }
        self.take_out(who)
    }

    fn take_out(&mut self, who: &Waiter) -> Option<Need> {
        let need = self.needs.remove(who)?;
        self.due.remove(&(need.retry_ns, who.clone()));
        self.untried -= usize::from(!is_tried(&need));
        self.skipped -= usize::from(need.is_skipped());
        self.entries -= usize::from(is_entry(who));
        if let Some(count) = self.reasons.get_mut(&need.reason) {
            *count -= 1;
            if *count == 0 {
                self.reasons.remove(&need.reason);
            }
        }
        Some(need)
    }

    /// When the next is due, nanoseconds since 1970.
    pub(super) fn next_due_ns(&self) -> Option<u64> {
        self.due.first().map(|(at, _)| *at).filter(|at| *at != NEVER_NS)
    }

    /// Those that are due. They are due again at `then_ns`, unless they are put on the list anew before.
    pub(super) fn take_due(&mut self, now_ns: u64, then_ns: u64) -> Vec<Waiter> {
        let mut taken = Vec::new();
        while self.due.first().is_some_and(|(at, _)| *at <= now_ns) {
            taken.extend(self.due.pop_first().map(|(_, who)| who));
        }
        for who in &taken {
            if let Some(need) = self.needs.get_mut(who) {
                need.retry_ns = then_ns;
                self.due.insert((then_ns, who.clone()));
            }
        }
        taken
    }

    /// One more try of it fails or succeeds later, by events.
    pub(super) fn count_try(&mut self, who: &Waiter, retry_ns: u64) {
        if let Some(mut need) = self.take_out(who) {
            (need.tries, need.retry_ns) = (need.tries + 1, retry_ns);
            self.insert(who.clone(), need);
        }
    }

    /// Whoever waits for this reason is due now.
    pub(super) fn retry(&mut self, reason: Reason) {
        let whom = self.needs.iter().filter(|(_, n)| n.reason == reason).map(|(w, _)| w.clone());
        for who in whom.collect::<Vec<_>>() {
            self.make_due(&who, 0);
        }
    }

    /// Everything that is not skipped is due now.
    pub(super) fn retry_all(&mut self) {
        for who in self.needs.keys().cloned().collect::<Vec<_>>() {
            self.make_due(&who, 0);
        }
    }

    /// Due at `at_ns`, if it is not before.
    fn make_due(&mut self, who: &Waiter, at_ns: u64) {
        if let Some(need) = self.needs.get_mut(who).filter(|n| n.retry_ns > at_ns && !n.is_skipped()) {
            self.due.remove(&(need.retry_ns, who.clone()));
            need.retry_ns = at_ns;
            self.due.insert((at_ns, who.clone()));
        }
    }

    // ----- places

    /// A step for `entry` was refused at this place.
    pub(super) fn refused_at(&mut self, entry: EntryId, at: &At) {
        let place = (at.dir.clone(), at.name.clone());
        let known = self.places_of.entry(entry).or_default();
        if known.len() >= PLACES_MAX && !known.contains(&place) {
            self.forget_places(entry);
        }
        self.places.entry(place.clone()).or_default().insert(entry);
        let known = self.places_of.entry(entry).or_default();
        known.retain(|p| *p != place);
        known.push(place);
    }

    fn forget_places(&mut self, entry: EntryId) {
        for place in self.places_of.remove(&entry).unwrap_or_default() {
            if let Some(whom) = self.places.get_mut(&place) {
                whom.remove(&entry);
                if whom.is_empty() {
                    self.places.remove(&place);
                }
            }
        }
    }

    /// The directory that a step for the entry was last refused in.
    pub(super) fn dir_of(&self, entry: EntryId) -> Option<&NodeKey> {
        self.places_of.get(&entry)?.last().map(|(dir, _)| dir)
    }

    /// Something happened at this place: who was refused there is due at `at_ns`.
    pub(super) fn retry_at(&mut self, dir: &NodeKey, name: &Name, at_ns: u64) {
        if self.places.is_empty() {
            return;
        }
        for id in self.places.get(&(dir.clone(), name.clone())).cloned().unwrap_or_default() {
            self.make_due(&Waiter::Entry(id), at_ns);
        }
    }

    /// Something happened to this directory: whoever was refused in it for one of these reasons is due.
    pub(super) fn retry_in(&mut self, dir: &NodeKey, reasons: &[Reason]) {
        let mut whom = Vec::new();
        let Some(first) = Name::new(b"\x01").ok() else { return };
        // Names begin with any byte but NUL, so nothing in the directory comes before this.
        for ((of, _), ids) in self.places.range((dir.clone(), first)..) {
            if of != dir {
                break;
            }
            let waiting = ids.iter().map(|id| Waiter::Entry(*id));
            whom.extend(waiting.filter(|w| self.needs.get(w).is_some_and(|n| reasons.contains(&n.reason))));
        }
        for who in whom {
            self.make_due(&who, 0);
        }
    }
}

fn is_entry(who: &Waiter) -> bool {
    matches!(who, Waiter::Entry(_))
}

/// True if a session that is to end has tried this often enough.
fn is_tried(n: &Need) -> bool {
    match n.reason {
        _ if n.is_skipped() => true,
        Reason::MassRemoval | Reason::MassRollback | Reason::TrashFull | Reason::Drift => n.tries > 0,
        Reason::Raced | Reason::NotEmpty | Reason::ParentWaits => n.tries >= RACES_MAX,
        _ => n.tries >= TRIES_BEFORE_GIVING_UP,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use driftless_core::{Dot, ReplicaId};

    fn entry(n: u64) -> EntryId {
        EntryId(Dot::new(ReplicaId(1), n))
    }

    fn need(reason: Reason, tries: u64, retry_ns: u64) -> Need {
        Need { reason, detail: String::new(), tries, since_ns: 1, retry_ns }
    }

    #[test]
    fn each_is_due_at_its_time_and_only_once() {
        let mut w = Waiters::default();
        for n in 1..=3 {
            w.insert(Waiter::Entry(entry(n)), need(Reason::Io, 1, n * 10));
        }
        assert_eq!(w.next_due_ns(), Some(10));
        assert_eq!(w.take_due(20, 100).len(), 2);
        assert_eq!((w.take_due(20, 100), w.next_due_ns()), (vec![], Some(30)));
        w.remove(&Waiter::Entry(entry(3)));
        assert_eq!(w.next_due_ns(), Some(100));
        assert_eq!(w.len(), 2);
    }

    #[test]
    fn a_cause_that_is_gone_makes_due_who_waited_for_it() {
        let mut w = Waiters::default();
        w.insert(Waiter::Entry(entry(1)), need(Reason::NoSpace, 9, 500));
        w.insert(Waiter::Entry(entry(2)), need(Reason::Denied, 9, 500));
        w.retry(Reason::NoSpace);
        assert_eq!(w.take_due(0, 500), [Waiter::Entry(entry(1))]);
        assert!(w.has(Reason::Denied));
        w.insert(Waiter::Entry(entry(2)), need(Reason::NoSpace, 10, 500));
        assert!(!w.has(Reason::Denied));
    }

    #[test]
    fn what_is_skipped_is_never_due() {
        let mut w = Waiters::default();
        w.insert(Waiter::Entry(entry(1)), need(Reason::Io, 1, NEVER_NS));
        let at = At { dir: NodeKey::new(b"a").unwrap(), name: Name::new(b"x").unwrap() };
        w.refused_at(entry(1), &at);
        w.retry(Reason::Io);
        w.retry_all();
        w.retry_at(&at.dir, &at.name, 0);
        w.retry_in(&at.dir, &[Reason::Io]);
        assert_eq!((w.next_due_ns(), w.take_due(NEVER_NS - 1, 0)), (None, vec![]));
        assert_eq!((w.skipped(), w.all_tried(), w.by_reason()), (1, true, BTreeMap::from([(Reason::Io, 1)])));
        w.insert(Waiter::Entry(entry(1)), need(Reason::Io, 1, 7));
        assert_eq!((w.skipped(), w.next_due_ns()), (0, Some(7)));
    }

    #[test]
    fn what_happens_at_a_place_makes_due_who_was_refused_there() {
        let dirs = [b"a", b"b"].map(|k| NodeKey::new(k).unwrap());
        let names = [&b"\x01"[..], b"x", b"\xff\xff"].map(|n| Name::new(n).unwrap());
        let mut w = Waiters::default();
        let mut n = 0;
        for dir in &dirs {
            for name in &names {
                n += 1;
                w.insert(Waiter::Entry(entry(n)), need(Reason::Denied, 1, 500));
                w.refused_at(entry(n), &At { dir: dir.clone(), name: name.clone() });
            }
        }
        w.retry_at(&dirs[0], &names[1], 0);
        assert_eq!(w.take_due(0, 500), [Waiter::Entry(entry(2))]);
        w.retry_in(&dirs[1], &[Reason::NoSpace]);
        assert_eq!(w.take_due(0, 500), []);
        w.retry_in(&dirs[1], &[Reason::Denied]);
        assert_eq!(w.take_due(0, 500), [4, 5, 6].map(|n| Waiter::Entry(entry(n))));
        w.remove(&Waiter::Entry(entry(4)));
        assert_eq!(w.dir_of(entry(4)), None);
        w.retry_at(&dirs[1], &names[0], 0);
        assert_eq!(w.take_due(0, 500), []);
    }

    #[test]
    fn a_session_ends_when_all_were_tried() {
        let mut w = Waiters::default();
        assert!(w.all_tried());
        w.insert(Waiter::Entry(entry(1)), need(Reason::Io, 1, 0));
        w.insert(Waiter::Path(b"p".to_vec()), need(Reason::MassRemoval, 1, 0));
        assert!(!w.all_tried());
        w.insert(Waiter::Entry(entry(1)), need(Reason::Io, TRIES_BEFORE_GIVING_UP, 0));
        assert!(w.all_tried());
        w.count_try(&Waiter::Path(b"p".to_vec()), 7);
        assert_eq!(w.get(&Waiter::Path(b"p".to_vec())).unwrap().tries, 2);
        w.remove(&Waiter::Path(b"p".to_vec()));
        assert_eq!(w.len(), 1);
    }
}
