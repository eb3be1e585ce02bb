//! What follows from a membership document. Two steps: [`limits`] finds whose changes end where, from the removals, seniors
//! first; then all changes within these limits are gone through in order.

use super::{Action, Change, Key, Members, Rights};
use crate::id::ReplicaId;
use crate::link::Role;
use std::collections::{BTreeMap, BTreeSet};

/// A member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its site's name.
    pub site: String,
    /// What it may do.
    pub rights: Rights,
    /// Where its site is, as was told last.
    pub addresses: Vec<String>,
    /// It makes changes, or did: there may be some by it.
    pub has_written: bool,
}

/// A key that was a member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Removed {
    /// Its site's name; empty if it was no member then.
    pub site: String,
    /// Who removed it; the key itself if it took another.
    pub by: Key,
    /// Its site's new key, if it took another.
    pub now: Option<Key>,
}

/// What a document says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct View {
    /// The members.
    pub members: BTreeMap<Key, Member>,
    /// Keys that were members.
    pub removed: BTreeMap<Key, Removed>,
    /// Whose replica is whose.
    pub replicas: BTreeMap<ReplicaId, Key>,
    /// Where replicas end: the last n that is accepted.
    pub cuts: BTreeMap<ReplicaId, u64>,
    /// Approvals of what guards hold: author and number, and whether newer versions are to come back. In order.
    pub approvals: Vec<(Key, u64, bool)>,
}

impl View {
    /// The member that speaks for a replica.
    pub fn member_of(&self, replica: ReplicaId) -> Option<(&Key, &Member)> {
        self.members.get_key_value(self.replicas.get(&replica)?)
    }

    /// The member at a site.
    pub fn at_site(&self, site: &str) -> Option<(&Key, &Member)> {
        self.members.iter().find(|(_, m)| m.site == site)
    }

    /// The replicas that `key` speaks for.
    pub fn replicas_of(&self, key: Key) -> impl Iterator<Item = ReplicaId> {
        self.replicas.iter().filter(move |(_, k)| **k == key).map(|(r, _)| *r)
    }

    /// False if `replica` is that of a member which follows, and did so since it was admitted.
    pub fn may_have_written(&self, replica: ReplicaId) -> bool {
        self.member_of(replica).is_none_or(|(_, member)| member.has_written)
    }

    /// True if a dot of `replica` with this n is part of the volume.
    pub fn accepts(&self, replica: ReplicaId, n: u64) -> bool {
        self.cuts.get(&replica).is_none_or(|cut| n <= *cut)
    }
}

/// Distance from the founder, then the order of admission. Less is senior.
type Rank = (usize, usize);
type Limits = BTreeMap<Key, u64>;

/// The keys that somebody who ever might invite admitted, however it went on. What else a document says only adds to them: the
/// union of documents in which all authors are among them is such a document, so that the order of merges is no matter.
pub(super) fn admitted(members: &Members) -> BTreeSet<Key> {
    let by = by_author(members);
    let mut admitted = BTreeSet::new();
    // Whether it is one that may invite.
    let mut open: Vec<(Key, bool)> = members.founder().map(|founder| (founder, true)).into_iter().collect();
    let mut inviters = BTreeSet::new();
    while let Some((key, may_invite)) = open.pop() {
        let new = admitted.insert(key) | (may_invite && inviters.insert(key));
        for (_, change) in by.get(&key).into_iter().flatten().filter(|_| new) {
            match &change.action {
                Action::Put { key: put, rights, .. } if may_invite => open.push((*put, rights.may_invite)),
                Action::Rekey { key: next, .. } => open.push((*next, may_invite)),
                _ => {}
            }
        }
    }
    admitted
}

pub(super) fn view(members: &Members) -> View {
    let limits = limits(members);
    let mut view = View::default();
    for change in members.changes() {
        if change.seq <= limits.get(&change.author).copied().unwrap_or(u64::MAX) {
            apply(&mut view, change);
        }
    }
    view
}

type ByAuthor<'a> = BTreeMap<Key, Vec<(usize, &'a Change)>>;

/// Each author's changes by number, each with its position in the order of all.
fn by_author(members: &Members) -> ByAuthor<'_> {
    let mut by: ByAuthor<'_> = BTreeMap::new();
    for (i, change) in members.changes().enumerate() {
        by.entry(change.author).or_default().push((i, change));
    }
    by.values_mut().for_each(|changes| changes.sort_by_key(|(i, c)| (c.seq, *i)));
    by
}

/// From which position in the order of all changes on a key may invite, or may not.
type Grants = BTreeMap<Key, BTreeMap<usize, bool>>;

/// Whether `key` may invite with the change at this position.
fn may_invite(grants: &Grants, key: Key, at: usize) -> bool {
    let before = grants.get(&key).and_then(|grants| grants.range(..at).next_back());
    before.is_some_and(|(_, may)| *may)
}

/// Who is how senior, and who may invite when, with the changes beyond `limits` left out.
fn ranks(members: &Members, by: &ByAuthor<'_>, limits: &Limits) -> (BTreeMap<Key, Rank>, Grants) {
    let (mut ranks, mut grants) = (BTreeMap::new(), Grants::new());
    let mut open: BTreeSet<(Rank, Key)> = BTreeSet::new();
    if let Some(founder) = members.founder() {
        open.insert(((0, 0), founder));
        grants.entry(founder).or_default().insert(0, true);
    }
    while let Some((rank, key)) = open.pop_first() {
        if ranks.contains_key(&key) {
            continue;
        }
        ranks.insert(key, rank);
        let limit = limits.get(&key).copied().unwrap_or(u64::MAX);
        for (i, change) in by.get(&key).into_iter().flatten().filter(|(_, c)| c.seq <= limit) {
            match &change.action {
                Action::Put { key: put, rights, .. } if may_invite(&grants, key, *i) => {
                    open.insert(((rank.0 + 1, *i), *put));
                    grants.entry(*put).or_default().insert(*i, rights.may_invite);
                }
                // As senior as the key before it, with its rights.
                Action::Rekey { key: new, .. } if *new != key => {
                    open.insert((rank, *new));
                    let may = may_invite(&grants, key, *i);
                    grants.entry(*new).or_default().insert(*i, may);
                }
                _ => {}
            }
        }
    }
    (ranks, grants)
}

/// The last change that counts of each key that was removed.
///
/// Keys are gone through from the senior to the junior, and each removal within its author's own limit sets one. If it limits a
/// key that has been gone through already, all begins again with that known; since such limits only get stricter and come
/// from finitely many removals, it ends.
fn limits(members: &Members) -> Limits {
    let by = by_author(members);
    let mut known = Limits::new();
    'again: loop {
        let (ranks, grants) = ranks(members, &by, &known);
        let mut order: Vec<(Rank, Key)> = ranks.iter().map(|(k, r)| (*r, *k)).collect();
        order.sort_unstable();
        let (mut limits, mut done) = (known.clone(), BTreeSet::new());
        for (_, key) in order {
            done.insert(key);
            for (i, change) in by.get(&key).into_iter().flatten() {
                if change.seq > limits.get(&key).copied().unwrap_or(u64::MAX) {
                    continue;
                }
                let (target, seen) = match &change.action {
                    Action::Remove { .. } if !may_invite(&grants, key, *i) => continue,
                    // Who leaves does so by its last change.
                    Action::Remove { key: target, .. } if *target == key => (key, change.seq),
                    Action::Remove { key, seen, .. } => (*key, *seen),
                    Action::Rekey { key: new, .. } if *new != key => (key, change.seq),
                    _ => continue,
                };
                let limit = limits.entry(target).or_insert(u64::MAX);
                if seen < *limit {
                    *limit = seen;
                    if done.contains(&target) && target != key {
                        known.insert(target, seen);
                        continue 'again;
                    }
                }
            }
        }
        return limits;
    }
}

fn apply(view: &mut View, change: &Change) {
    let author = change.author;
    if let Action::Found { site } = &change.action {
        if view.members.is_empty() && view.removed.is_empty() {
            let rights = Rights { role: Role::Writer, may_relay: true, may_invite: true };
            view.members.insert(
                author,
                Member { site: site.clone(), rights, addresses: Vec::new(), has_written: true },
            );
        }
        return;
    }
    let Some(member) = view.members.get_mut(&author) else { return };
    match &change.action {
        Action::At(addresses) => member.addresses.clone_from(addresses),
        // Who named it first has it.
        Action::Replica(replica) => _ = view.replicas.entry(*replica).or_insert(author),
        Action::Rekey { key, .. } => rekey(view, author, *key),
        Action::Approve { heal, .. } if member.rights.role == Role::Writer => {
            view.approvals.push((author, change.seq, *heal));
        }
        action if member.rights.may_invite => govern(view, author, action),
        _ => {}
    }
}

fn rekey(view: &mut View, old: Key, new: Key) {
    if new == old {
        return;
    }
    if let Some(member) = view.members.remove(&old) {
        view.removed.insert(old, Removed { site: member.site.clone(), by: old, now: Some(new) });
        view.replicas.values_mut().filter(|key| **key == old).for_each(|key| *key = new);
        // Who hands itself on to a key that is or was another's is gone all the same.
        if !view.members.contains_key(&new) && !view.removed.contains_key(&new) {
            view.members.insert(new, member);
        }
    }
}

/// What only those may do who may invite.
fn govern(view: &mut View, author: Key, action: &Action) {
    match action {
        Action::Put { key, site, rights, addresses } => {
            // A name belongs to one member: who comes second is told so when it is admitted, and here it does not count.
            let taken = view.members.iter().any(|(k, m)| k != key && m.site == *site);
            if view.removed.contains_key(key) || taken {
                return;
            }
            let has_written =
                rights.role == Role::Writer || view.members.get(key).is_some_and(|m| m.has_written);
            let known = view.members.get(key).map(|m| m.addresses.clone());
            let addresses = known.filter(|_| addresses.is_empty()).unwrap_or_else(|| addresses.clone());
            view.members.insert(*key, Member { site: site.clone(), rights: *rights, addresses, has_written });
        }
        Action::Remove { key, cuts, .. } => {
            // Also of who is no member as far as this goes: its changes count no more, so nobody may admit it after this.
            let site = view.members.remove(key).map(|member| member.site).unwrap_or_default();
            view.removed.entry(*key).or_insert(Removed { site, by: author, now: None });
            cut(view, cuts);
        }
        Action::Cut(cuts) => cut(view, cuts),
        _ => {}
    }
}

fn cut(view: &mut View, cuts: &[(ReplicaId, u64)]) {
    for (replica, n) in cuts {
        let at = view.cuts.entry(*replica).or_insert(*n);
        *at = (*n).min(*at);
    }
}
