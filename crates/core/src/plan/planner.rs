//! The decisions: which steps bring an entry, and whatever is in its way, to where the tree shows it.
//!
//! Shape: [`Planner::visit`] plans one entry. Leaves: each name the tree shows ([`Goal`]) is filled from an
//! inode that is here already (rebind, move, link) or put anew; then names that are no longer wanted go.
//! Directories: placed top-down, then what they hold is brought into line with their members. What stands
//! in the way is visited first; whatever is then still there and still wanted elsewhere is parked and
//! queued. Entries being planned are busy: asking them to move again would go in circles, and a cycle
//! is broken by parking.

use super::{At, Binding, Plan, PlanOptions, Step, Victim, Wait, record};
use crate::disk::{Bind, Claim, Node, NodeKey, Place, Wanted};
use crate::entry::Version;
use crate::id::{EntryId, Kind, Name};
use crate::meta::{Attrs, Digest};
use crate::tree::{self, Group, Shown};
use crate::tx::{EntryRow, FastMap, Result, Tx};
use smallvec::SmallVec;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

/// How deep what stands in the way of what stands in the way is followed before it is parked and planned
/// afterwards: bounds the stack for long chains of renames.
const DEPTH_MAX: usize = 24;
/// How often one entry is planned again within one call because something was busy; more than a few
/// times means that it cannot be done now.
const RETRIES_MAX: u8 = 4;
/// Up to this many groups at one name are all brought right whenever one of them is planned; with more,
/// only those that the entry takes part in (the others are pending by themselves).
const GROUPS_AT_ONCE_MAX: usize = 16;
/// Places read at a time from a directory.
const PLACES_PER_READ: usize = 256;

type Class = Arc<[EntryId]>;

pub(super) fn plan_entry(
    tx: &mut Tx<'_>,
    entry: EntryId,
    plan: &mut Plan,
    options: &PlanOptions<'_>,
) -> Result<Option<Wait>> {
    let mut p = Planner::new(tx, plan, options);
    p.visit(entry)?;
    while let Some(next) = p.queue.pop_front() {
        p.visit(next)?;
    }
    Ok(p.wait)
}

struct Planner<'p, 't> {
    tx: &'p mut Tx<'t>,
    plan: &'p mut Plan,
    options: &'p PlanOptions<'p>,
    /// Entries being planned, with the members of their classes.
    busy: Busy,
    /// Directories that are being emptied to be removed: they stand for no class any more.
    dissolving: HashSet<NodeKey>,
    /// Classes that were given their node, by first member: what is recorded meanwhile must not change that.
    placed: HashMap<EntryId, NodeKey>,
    /// Entries to plan when nothing is busy any more.
    queue: VecDeque<EntryId>,
    tries: HashMap<EntryId, u8>,
    shown: FastMap<(EntryId, Name), Arc<Shown>>,
    depth: usize,
    wait: Option<Wait>,
}

/// A leaf that the tree shows at a place of this disk.
struct Goal {
    at: At,
    /// The directory's class.
    class: Class,
    /// Steps planned when the goal was found.
    as_of: usize,
    base: Name,
    group: Group,
    /// The entry whose inode it is (first claim).
    owner: Arc<EntryRow>,
    /// What it holds.
    version: Version,
}

impl Goal {
    fn identity(&self) -> Digest {
        self.version.content.identity()
    }

    fn binding(&self) -> Binding {
        let claim = |s: &tree::Shares| Claim {
            entry: s.entry,
            link: s.link,
            name_dot: s.name_dot,
            version: s.version,
        };
        Binding {
            claims: self.group.claims.iter().map(claim).collect(),
            members: Vec::new(),
            conflict_of: self.group.conflict.then(|| self.base.clone()),
        }
    }

    fn wants(&self, node: &Node) -> bool {
        node.kind == self.owner.entry.kind && leaf_identity(node) == Some(self.identity())
    }
}

/// Entries that are being planned: a few, those of directories above one another.
#[derive(Default)]
struct Busy(SmallVec<[EntryId; 4]>);

impl Busy {
    fn contains(&self, id: EntryId) -> bool {
        self.0.contains(&id)
    }
    fn insert(&mut self, id: EntryId) {
        if !self.contains(id) {
            self.0.push(id);
        }
    }
    fn remove(&mut self, id: EntryId) {
        self.0.retain(|i| *i != id);
    }
}

/// Where a directory class is on this disk.
enum Dir {
    Here(NodeKey),
    /// The filter says that it is not to be here.
    Skipped,
    /// Not now: it, or what it needs, is being planned further up.
    Later,
}

impl<'p, 't> Planner<'p, 't> {
    fn new(tx: &'p mut Tx<'t>, plan: &'p mut Plan, options: &'p PlanOptions<'p>) -> Self {
        Planner {
            tx,
            plan,
            options,
            busy: Busy::default(),
            dissolving: HashSet::new(),
            placed: HashMap::new(),
            queue: VecDeque::new(),
            tries: HashMap::new(),
            shown: FastMap::default(),
            depth: 0,
            wait: None,
        }
    }

    /// Plans one entry unless it is being planned already.
    fn visit(&mut self, id: EntryId) -> Result<()> {
        if self.busy.contains(id) {
            return Ok(());
        }
        if id.is_root() {
            return self.plan_root();
        }
        if self.depth >= DEPTH_MAX {
            self.again(id);
            return Ok(());
        }
        let Some(row) = self.tx.entry(id)? else { return Ok(()) };
        self.depth += 1;
        let done = if row.entry.kind.is_dir() { self.plan_dir(id) } else { self.plan_leaf(id) };
        self.depth -= 1;
        done
    }

    /// The root is always there; only its attributes may have to be set.
    fn plan_root(&mut self) -> Result<()> {
        match (self.tx.root_node()?, self.tx.entry(EntryId::ROOT)?) {
            (Some(key), Some(_)) => self.set_dir_attrs(&vec![EntryId::ROOT].into(), &key),
            _ => Ok(()),
        }
    }

    /// Plans the entry (again) when nothing is busy.
    fn again(&mut self, id: EntryId) {
        if self.queue.contains(&id) {
            return;
        }
        let tries = self.tries.entry(id).or_default();
        *tries += 1;
        if *tries <= RETRIES_MAX {
            self.queue.push_back(id);
        } else {
            self.wait = Some(Wait::Parent(id));
        }
    }

    fn step(&mut self, step: Step) -> Result<()> {
        self.remember_shared(&step)?;
        record(self.tx, &step, None)?;
        self.plan.steps.push(step);
        Ok(())
    }

    /// A step may part entries that share one inode. Those that it does not stay with find it here to
    /// copy, for the record leads from them to it no more.
    fn remember_shared(&mut self, step: &Step) -> Result<()> {
        let mut places: SmallVec<[At; 2]> = SmallVec::new();
        match step {
            Step::MakeDir { .. } | Step::Park { .. } | Step::SetAttrs { .. } => {}
            Step::Put { at, .. } | Step::Remove { at, .. } | Step::Rebind { at, .. } => {
                places.push(at.clone())
            }
            Step::Link { to, .. } => places.push(to.clone()),
            Step::Move { from, to, .. } => places.extend([from.clone(), to.clone()]),
            Step::Unpark { to, node, .. } => places.extend([Plan::parked(node), to.clone()]),
        }
        for at in places {
            if let Some(place) = self.tx.place(&at.dir, &at.name)?
                && place.claims.len() > 1
                && let Some(identity) = self.tx.node(&place.node)?.and_then(|n| leaf_identity(&n))
            {
                let shared = claimants(&place).into_iter().map(|e| ((e, identity), place.node.clone()));
                self.plan.shared.extend(shared);
            }
        }
        Ok(())
    }

    // ----- the tree

    /// The class of a directory entry; empty if it is not shown.
    fn class(&mut self, dir: EntryId) -> Result<Class> {
        tree::class_of(self.tx, dir)
    }

    /// What the tree shows at a real name of a class.
    fn shown_at(&mut self, class: &Class, base: &Name) -> Result<Arc<Shown>> {
        let key = (class[0], base.clone());
        if let Some(shown) = self.shown.get(&key) {
            return Ok(shown.clone());
        }
        let shown = Arc::new(tree::shown_at(self.tx, class, base)?);
        self.shown.insert(key, shown.clone());
        Ok(shown)
    }

    /// The (class, real name) pairs where the tree shows an entry.
    fn bases(&mut self, id: EntryId) -> Result<SmallVec<[(Class, Name); 1]>> {
        let mut out: SmallVec<[(Class, Name); 1]> = SmallVec::new();
        for (parent, name) in tree::shown_names(self.tx, id)? {
            let class = self.class(parent)?;
            if !class.is_empty() && !out.iter().any(|(c, n)| *c == class && *n == name) {
                out.push((class, name));
            }
        }
        Ok(out)
    }

    /// Where the tree shows a class: the class above, and the name.
    fn spot(&mut self, class: &Class) -> Result<Option<(Class, Name)>> {
        Ok(self.bases(class[0])?.into_iter().next())
    }

    fn skipped(&mut self, class: &Class, name: &Name, is_dir: bool) -> Result<bool> {
        let Some(skip) = self.options.skip else { return Ok(false) };
        let mut path = Vec::new();
        if !class[0].is_root() {
            match tree::path_of(self.tx, class[0])? {
                Some(above) => path = above,
                None => return Ok(false),
            }
        }
        path.push(name.clone());
        Ok(skip(&path, is_dir))
    }

    /// True if what this disk has at this place is nothing to plan for.
    fn is_left_out(&mut self, at: &At) -> Result<bool> {
        let Some(skip) = self.options.skip else { return Ok(false) };
        let root = self.root()?;
        let (mut path, mut dir, mut seen) = (vec![at.name.clone()], at.dir.clone(), HashSet::new());
        while Some(&dir) != root.as_ref() {
            let above = self.tx.node(&dir)?.and_then(|node| node.names.first().cloned());
            let Some((above, name)) = above.filter(|_| seen.insert(dir.clone())) else { return Ok(false) };
            path.push(name);
            dir = above;
        }
        path.reverse();
        Ok(skip(&path, false))
    }

    fn goal(&mut self, at: At, class: &Class, base: &Name, group: &Group) -> Result<Option<Goal>> {
        let Some(first) = group.claims.first() else { return Ok(None) };
        let owner = self.tx.entry_must(first.entry)?;
        let Some(version) = owner.entry.version(first.version).cloned() else { return Ok(None) };
        let (as_of, class) = (self.plan.steps.len(), class.clone());
        Ok(Some(Goal { at, class, as_of, base: base.clone(), group: group.clone(), owner, version }))
    }

    // ----- directories: which node is whose

    /// The class that a directory's node belongs to. Of several (its members were parted) the one that
    /// stays where the node is, else that of the first member.
    fn owner_class(&mut self, dir: &NodeKey) -> Result<Option<Class>> {
        if Plan::is_parked_dir(dir) || self.dissolving.contains(dir) {
            return Ok(None);
        }
        let Some(node) = self.tx.node(dir)? else { return Ok(None) };
        let Bind::Dir(members) = &node.bind else { return Ok(None) };
        let mut classes: SmallVec<[Class; 1]> = SmallVec::new();
        for member in members {
            let class = self.class(*member)?;
            if !class.is_empty() && !classes.contains(&class) {
                classes.push(class);
            }
        }
        if classes.len() > 1 {
            if let Some(class) = classes.iter().find(|c| self.placed.get(&c[0]) == Some(dir)) {
                return Ok(Some(class.clone()));
            }
            for class in &classes {
                if self.stands_near(&node, class)? {
                    return Ok(Some(class.clone()));
                }
            }
        }
        Ok(classes.into_iter().next())
    }

    /// The node that shows a class, if it is on this disk (wherever). Of several (directories that
    /// became one) the one that stands where the class belongs, else the first member's.
    fn class_node(&mut self, class: &Class) -> Result<Option<NodeKey>> {
        if class[0].is_root() {
            return self.root();
        }
        if let Some(key) = self.placed.get(&class[0]).cloned()
            && self.owner_class(&key)?.as_ref() == Some(class)
        {
            return Ok(Some(key));
        }
        let mut found: SmallVec<[NodeKey; 1]> = SmallVec::new();
        for member in class.iter() {
            for key in self.entry_bound(*member)? {
                if !found.contains(&key) && self.owner_class(&key)?.as_ref() == Some(class) {
                    found.push(key);
                }
            }
        }
        if found.len() > 1 {
            for key in &found {
                let node = self.tx.node_must(key)?;
                if self.stands_near(&node, class)? {
                    return Ok(Some(key.clone()));
                }
            }
        }
        Ok(found.into_iter().next())
    }

    fn root(&mut self) -> Result<Option<NodeKey>> {
        if self.plan.root.is_none() {
            self.plan.root = self.tx.root_node()?;
        }
        Ok(self.plan.root.clone())
    }

    /// True if the node has the class's name, in a directory that stands for a member of the class above.
    /// Chooses among nodes and classes; looks at records only, so that no choice waits for itself.
    fn stands_near(&mut self, node: &Node, class: &Class) -> Result<bool> {
        let Some((dir, name)) = node.names.first() else { return Ok(false) };
        let Some((above, base)) = self.spot(class)? else { return Ok(false) };
        Ok(base == *name && self.dir_members(dir)?.iter().any(|m| above.contains(m)))
    }

    /// True if the node stands exactly where the tree shows the class.
    fn stands_right(&mut self, node: &Node, class: &Class) -> Result<bool> {
        let Some((dir, name)) = node.names.first() else { return Ok(false) };
        let Some((above, base)) = self.spot(class)? else { return Ok(false) };
        Ok(base == *name && self.class_node(&above)?.as_ref() == Some(dir))
    }

    /// The class that the directory `dir` shows, if it is the node that shows it.
    fn shows(&mut self, dir: &NodeKey) -> Result<Option<Class>> {
        let Some(class) = self.owner_class(dir)? else { return Ok(None) };
        Ok((self.class_node(&class)?.as_ref() == Some(dir)).then_some(class))
    }

    fn entry_bound(&mut self, id: EntryId) -> Result<SmallVec<[NodeKey; 1]>> {
        Ok(self.tx.entry(id)?.map(|row| row.bound.clone()).unwrap_or_default())
    }

    // ----- directories: placing

    /// The node of a class, made now with all that lacks above it if it is not on this disk.
    fn dir_for(&mut self, class: &Class) -> Result<Dir> {
        if let Some(key) = self.class_node(class)? {
            return Ok(Dir::Here(key));
        }
        let mut missing = vec![class.clone()];
        loop {
            let Some((above, _)) = self.spot(&missing[missing.len() - 1])? else { return Ok(Dir::Later) };
            if self.class_node(&above)?.is_some() {
                break;
            }
            missing.push(above);
        }
        let mut dir = Dir::Later;
        for class in missing.iter().rev() {
            dir = self.place_dir(class)?;
            if !matches!(dir, Dir::Here(_)) {
                break;
            }
        }
        Ok(dir)
    }

    fn plan_dir(&mut self, id: EntryId) -> Result<()> {
        let class = self.class(id)?;
        if !class.is_empty() {
            match self.place_dir(&class)? {
                Dir::Here(_) => {}
                Dir::Later => {
                    self.again(id);
                    return Ok(());
                }
                Dir::Skipped => return self.leave_out(&class),
            }
        }
        self.busy.insert(id);
        for key in self.entry_bound(id)? {
            self.settle_dir(&key)?;
        }
        self.busy.remove(id);
        Ok(())
    }

    /// A directory whose place is left out by the filter goes from where it, or any that became one with it, was shown
    /// before.
    fn leave_out(&mut self, class: &Class) -> Result<()> {
        for member in class.iter() {
            for key in self.entry_bound(*member)? {
                let Some(node) = self.tx.node(&key)? else { continue };
                if self.owner_class(&key)?.as_ref() != Some(class) {
                    // It was one with others that stay: what is in it goes from there.
                    self.settle_dir(&key)?;
                } else if !self.stands_right(&node, class)? {
                    self.dissolve(&key)?;
                }
            }
        }
        Ok(())
    }

    /// Brings a class to its place, making what lacks above it.
    fn place_dir(&mut self, class: &Class) -> Result<Dir> {
        if class.iter().any(|m| self.busy.contains(*m)) {
            return Ok(Dir::Later);
        }
        class.iter().for_each(|m| self.busy.insert(*m));
        let dir = self.place_busy_dir(class);
        class.iter().for_each(|m| self.busy.remove(*m));
        dir
    }

    fn place_busy_dir(&mut self, class: &Class) -> Result<Dir> {
        let Some((above, name)) = self.spot(class)? else { return Ok(Dir::Later) };
        if self.skipped(&above, &name, true)? {
            return Ok(Dir::Skipped);
        }
        let at = match self.dir_for(&above)? {
            Dir::Here(dir) => At { dir, name },
            other => return Ok(other),
        };
        if !self.make_way(class, &at)? {
            return Ok(Dir::Later);
        }
        // Only now: those who made way may have changed which node stands for which directory.
        let found = self.class_node(class)?;
        if self.class_node(&above)?.as_ref() != Some(&at.dir) {
            return Ok(Dir::Later);
        }
        self.admit(&above, &at.dir)?;
        let key = match found {
            Some(key) if self.move_dir(&key, &at)? => key,
            Some(_) => return Ok(Dir::Later),
            None => self.make_dir(class, &at)?,
        };
        self.placed.insert(class[0], key.clone());
        self.settle_dir(&key)?;
        for member in class.iter() {
            for other in self.entry_bound(*member)? {
                if other != key {
                    self.settle_dir(&other)?;
                }
            }
        }
        if self.class_node(class)?.as_ref() != Some(&key) {
            return Ok(Dir::Later);
        }
        self.set_dir_attrs(class, &key)?;
        Ok(Dir::Here(key))
    }

    /// Says that a directory stands for all of its class, before anything is put in. What is put in for a member that the
    /// record does not lead from to this directory would stay behind if that member left before its own turn.
    fn admit(&mut self, class: &Class, key: &NodeKey) -> Result<()> {
        let Some(node) = self.tx.node(key)? else { return Ok(()) };
        let Some((dir, name)) = node.names.first() else { return Ok(()) };
        let Bind::Dir(members) = &node.bind else { return Ok(()) };
        if members[..] == class[..] || class.iter().all(|m| members.contains(m)) {
            return Ok(());
        }
        let mut members = members.clone();
        // Those that left stay until what is theirs is moved.
        members.extend(class.iter());
        members.sort();
        members.dedup();
        let at = At { dir: dir.clone(), name: name.clone() };
        let binding = Binding { members, ..Binding::default() };
        self.step(Step::Rebind { at, node: key.clone(), binding })
    }

    /// Plans what stands where a class has to go. False if that lies below the class's own node.
    fn make_way(&mut self, class: &Class, at: &At) -> Result<bool> {
        if let Some(key) = self.class_node(class)? {
            if self.stands(&key, at)? {
                return Ok(true);
            }
            if self.is_below(&at.dir, &key)? && !self.free_from_below(at, &key)? {
                return Ok(false);
            }
        }
        self.ask_away(at)?;
        Ok(true)
    }

    fn make_dir(&mut self, class: &Class, at: &At) -> Result<NodeKey> {
        self.clear(at, Kind::Dir)?;
        let (attrs, _) = self.dir_attrs(class)?;
        let node = self.plan.provisional();
        let binding = Binding { members: class.to_vec(), ..Binding::default() };
        self.step(Step::MakeDir { at: at.clone(), node: node.clone(), attrs, binding })?;
        Ok(node)
    }

    /// Moves a directory to `at`, unless it is there. False if that is below it.
    fn move_dir(&mut self, key: &NodeKey, at: &At) -> Result<bool> {
        if self.stands(key, at)? {
            return Ok(true);
        }
        if self.is_below(&at.dir, key)? {
            return Ok(false);
        }
        self.leave_from_below(key, at)?;
        self.clear(at, Kind::Dir)?;
        let node = self.tx.node_must(key)?;
        let Some((dir, name)) = node.names.first() else { return Ok(false) };
        let from = At { dir: dir.clone(), name: name.clone() };
        let binding = Binding { members: self.dir_members(key)?, ..Binding::default() };
        self.carry(key, &node, &from, at, None, binding)?;
        Ok(true)
    }

    /// Parks a directory that has to take the place of one above it. That one is about to be parked, and nothing moves out
    /// of a parked directory.
    fn leave_from_below(&mut self, key: &NodeKey, at: &At) -> Result<()> {
        let Some(place) = self.tx.place(&at.dir, &at.name)? else { return Ok(()) };
        let node = self.tx.node_must(key)?;
        let Some((dir, name)) = node.names.first() else { return Ok(()) };
        if Plan::is_parked_dir(dir) || !self.is_below(dir, &place.node)? {
            return Ok(());
        }
        let from = At { dir: dir.clone(), name: name.clone() };
        self.step(Step::Park { from, node: key.clone(), kind: Kind::Dir })
    }

    /// True if the inode stands at `at`.
    fn stands(&mut self, key: &NodeKey, at: &At) -> Result<bool> {
        Ok(self.tx.place(&at.dir, &at.name)?.is_some_and(|p| p.node == *key))
    }

    /// True if directory `dir` is `top` or below it on this disk.
    fn is_below(&mut self, dir: &NodeKey, top: &NodeKey) -> Result<bool> {
        let mut dir = dir.clone();
        loop {
            if dir == *top {
                return Ok(true);
            }
            match self.tx.node(&dir)?.and_then(|n| n.names.first().map(|(parent, _)| parent.clone())) {
                Some(parent) => dir = parent,
                None => return Ok(false),
            }
        }
    }

    /// The place's directory lies below the inode that has to go there: brings the directories that the
    /// tree shows above the place to where they belong, from the root down, which takes it out.
    fn free_from_below(&mut self, at: &At, key: &NodeKey) -> Result<bool> {
        let Some(class) = self.owner_class(&at.dir)? else { return Ok(false) };
        let mut chain = vec![class];
        while let Some((above, _)) = self.spot(&chain[chain.len() - 1])? {
            chain.push(above);
        }
        for class in chain.iter().rev().filter(|c| !c[0].is_root()) {
            if !matches!(self.place_dir(class)?, Dir::Here(_)) {
                return Ok(false);
            }
        }
        Ok(!self.is_below(&at.dir, key)?)
    }

    /// Brings a directory's node into line with its members: empties and removes it if it shows no
    /// class (any more), moves out what left with a member, and records the members.
    fn settle_dir(&mut self, key: &NodeKey) -> Result<()> {
        let Some(node) = self.tx.node(key)? else { return Ok(()) };
        let Bind::Dir(members) = &node.bind else { return Ok(()) };
        let Some(class) = self.shows(key)? else { return self.dissolve(key) };
        if members[..] == class[..] {
            return Ok(());
        }
        if let Some(left) = members.iter().find(|m| !class.contains(m))
            && !self.revise_places(key)?
        {
            // Until all is moved, the record has to lead from the members that left to this node.
            self.again(*left);
            return Ok(());
        }
        let Some(node) = self.tx.node(key)? else { return Ok(()) };
        if let (Some((dir, name)), true) = (node.names.first(), members[..] != class[..]) {
            let at = At { dir: dir.clone(), name: name.clone() };
            let binding = Binding { members: class.to_vec(), ..Binding::default() };
            self.step(Step::Rebind { at, node: key.clone(), binding })?;
        }
        Ok(())
    }

    /// Plans whatever in a directory does not belong there (any more). False if something is still there.
    fn revise_places(&mut self, dir: &NodeKey) -> Result<bool> {
        let mut all = true;
        let mut after: Option<Name> = None;
        loop {
            let places = self.tx.places_in(dir, after.as_ref(), PLACES_PER_READ)?;
            let Some((last, _)) = places.last() else { return Ok(all) };
            after = Some(last.clone());
            for (name, place) in places {
                let at = At { dir: dir.clone(), name };
                if !self.belongs(&at, &place)? {
                    self.ask_away(&at)?;
                    all &= self.is_settled(&at)?;
                }
            }
        }
    }

    /// True if a place is free, or what stands there belongs there.
    fn is_settled(&mut self, at: &At) -> Result<bool> {
        match self.tx.place(&at.dir, &at.name)? {
            Some(place) => self.belongs(at, &place),
            None => Ok(true),
        }
    }

    /// True if what stands at a place is what the tree shows there.
    fn belongs(&mut self, at: &At, place: &Place) -> Result<bool> {
        let Some(node) = self.tx.node(&place.node)? else { return Ok(false) };
        match node.bind {
            Bind::Dir(_) => match self.shows(&place.node)? {
                Some(class) => self.stands_right(&node, &class),
                None => Ok(false),
            },
            Bind::Leaf { .. } => Ok(self.wanted_at(at, place)?.is_some_and(|g| g.wants(&node))),
        }
    }

    /// Empties a directory that shows nothing any more, with all such directories below it, and
    /// removes it. Without recursion: trees may be deep.
    fn dissolve(&mut self, top: &NodeKey) -> Result<()> {
        let mut stack: Vec<(NodeKey, Option<Name>)> = vec![(top.clone(), None)];
        self.dissolving.insert(top.clone());
        while let Some((dir, after)) = stack.last_mut() {
            let dir = dir.clone();
            let places = self.tx.places_in(&dir, after.as_ref(), PLACES_PER_READ)?;
            let Some((last, _)) = places.last() else {
                stack.pop();
                self.remove_empty(&dir)?;
                continue;
            };
            *after = Some(last.clone());
            for (name, place) in places {
                let at = At { dir: dir.clone(), name };
                if self.is_dir(&place.node)? && self.shows(&place.node)?.is_none() {
                    self.dissolving.insert(place.node.clone());
                    stack.push((place.node, None));
                } else {
                    self.oust(&at)?;
                }
            }
        }
        Ok(())
    }

    fn is_dir(&mut self, key: &NodeKey) -> Result<bool> {
        Ok(self.tx.node(key)?.is_some_and(|n| n.kind.is_dir()))
    }

    /// Takes away what stands at a place, elsewhere if it is wanted there.
    fn oust(&mut self, at: &At) -> Result<()> {
        self.ask_away(at)?;
        if let Some(victim) = self.clear(at, Kind::File)? {
            self.step(Step::Remove { at: at.clone(), victim })?;
        }
        Ok(())
    }

    fn remove_empty(&mut self, dir: &NodeKey) -> Result<()> {
        let Some(node) = self.tx.node(dir)? else { return Ok(()) };
        let Some((parent, name)) = node.names.first() else { return Ok(()) };
        if !self.tx.places_in(dir, None, 1)?.is_empty() {
            return Ok(());
        }
        let at = At { dir: parent.clone(), name: name.clone() };
        let victim = victim_of(dir, &node);
        self.step(Step::Remove { at, victim })
    }

    /// A class has the attributes of the member that changed them last, and the time of the one that changed that last.
    fn dir_attrs(&mut self, class: &Class) -> Result<(Attrs, EntryId)> {
        let mut rows = Vec::with_capacity(class.len());
        for member in class.iter() {
            rows.push(self.tx.entry_must(*member)?);
        }
        let last = rows.iter().max_by_key(|r| (r.entry.meta.0, r.entry.id));
        let mut attrs = last.map(|r| r.entry.meta.1.clone()).unwrap_or_default();
        attrs.dir_mtime = tree::dir_time(self.tx, class)?;
        Ok((attrs, last.map_or(class[0], |r| r.entry.id)))
    }

    fn set_dir_attrs(&mut self, class: &Class, key: &NodeKey) -> Result<()> {
        let (attrs, entry) = self.dir_attrs(class)?;
        let node = self.tx.node_must(key)?;
        let time_differs = attrs.dir_mtime.is_some() && attrs.dir_mtime != node.given.dir_mtime;
        if node.wanted == Wanted::of(&attrs, None) || (same_attrs(&attrs, &node.given) && !time_differs) {
            return Ok(());
        }
        let path = node.names.first().map(|(dir, name)| At { dir: dir.clone(), name: name.clone() });
        self.step(Step::SetAttrs { path, node: key.clone(), kind: Kind::Dir, attrs, content: None, entry })
    }

    // ----- making room

    /// Plans what stands at a place, so that it goes where it belongs.
    fn ask_away(&mut self, at: &At) -> Result<()> {
        let Some(place) = self.tx.place(&at.dir, &at.name)? else { return Ok(()) };
        let Some(node) = self.tx.node(&place.node)? else { return Ok(()) };
        match &node.bind {
            Bind::Dir(_) => match self.shows(&place.node)? {
                Some(class) => self.visit(class[0]),
                None => {
                    for member in self.dir_members(&place.node)? {
                        // Of two directories that became one, the other is where the children go.
                        self.visit(member)?;
                    }
                    match self.tx.node(&place.node)?.is_some() && self.shows(&place.node)?.is_none() {
                        true => self.dissolve(&place.node),
                        false => Ok(()),
                    }
                }
            },
            Bind::Leaf { .. } => {
                for entry in claimants(&place) {
                    self.visit(entry)?;
                }
                Ok(())
            }
        }
    }

    fn dir_members(&mut self, key: &NodeKey) -> Result<Vec<EntryId>> {
        Ok(match self.tx.node(key)?.as_deref() {
            Some(Node { bind: Bind::Dir(members), .. }) => members.clone(),
            _ => Vec::new(),
        })
    }

    /// Frees a place for something of kind `incoming`, after [`Planner::ask_away`]: what is still wanted
    /// elsewhere is parked. Gives what the incoming leaf may take the place of.
    fn clear(&mut self, at: &At, incoming: Kind) -> Result<Option<Victim>> {
        let Some(place) = self.tx.place(&at.dir, &at.name)? else { return Ok(None) };
        let node = self.tx.node_must(&place.node)?;
        let wanted = match &node.bind {
            Bind::Dir(_) => true,
            Bind::Leaf { .. } => self.wanted_elsewhere(at, &place, &node)?,
        };
        if wanted {
            self.park(at, &place, &node)?;
            return Ok(None);
        }
        let victim = victim_of(&place.node, &node);
        if incoming.is_dir() {
            self.step(Step::Remove { at: at.clone(), victim })?;
            return Ok(None);
        }
        Ok(Some(victim))
    }

    fn park(&mut self, at: &At, place: &Place, node: &Node) -> Result<()> {
        let entries = match &node.bind {
            Bind::Dir(members) => members.clone(),
            Bind::Leaf { .. } => claimants(place),
        };
        if !Plan::is_parked_dir(&at.dir) {
            self.step(Step::Park { from: at.clone(), node: place.node.clone(), kind: node.kind })?;
        }
        entries.into_iter().for_each(|e| self.again(e));
        Ok(())
    }

    /// True if a claimant still needs this very inode, at another place.
    fn wanted_elsewhere(&mut self, at: &At, place: &Place, node: &Node) -> Result<bool> {
        let Some(identity) = leaf_identity(node) else { return Ok(true) };
        for entry in claimants(place) {
            if self.has_other(entry, &place.node, identity)? || self.has_other_name(entry, at, node)? {
                continue;
            }
            if self.shown_elsewhere(entry, identity, at)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// True if the inode has another name that shows the entry.
    fn has_other_name(&mut self, entry: EntryId, but: &At, node: &Node) -> Result<bool> {
        for (dir, name) in &node.names {
            if (dir, name) != (&but.dir, &but.name)
                && let Some(place) = self.tx.place(dir, name)?
                && place.claims.iter().any(|c| c.entry == entry)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// True if another inode of the entry holds the content.
    fn has_other(&mut self, entry: EntryId, but: &NodeKey, identity: Digest) -> Result<bool> {
        for key in self.entry_bound(entry)? {
            if key != *but && self.tx.node(&key)?.is_some_and(|n| leaf_identity(&n) == Some(identity)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// True if the tree shows the entry with this content, at any place but `at`.
    fn shown_elsewhere(&mut self, entry: EntryId, identity: Digest, at: &At) -> Result<bool> {
        let Some(row) = self.tx.entry(entry)? else { return Ok(false) };
        for (class, base) in self.bases(entry)? {
            if self.skipped(&class, &base, false)? {
                continue;
            }
            let shown = self.shown_at(&class, &base)?;
            let here = self.class_node(&class)?.as_ref() == Some(&at.dir);
            for group in &shown.groups {
                let holds = |s: &tree::Shares| {
                    s.entry == entry
                        && row.entry.version(s.version).is_some_and(|v| v.content.identity() == identity)
                };
                if group.claims.iter().any(holds) && !(here && group.name == at.name) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    // ----- leaves

    fn plan_leaf(&mut self, id: EntryId) -> Result<()> {
        self.busy.insert(id);
        // What comes to this disk only now has no names but those that are filled.
        let was_here = !self.entry_bound(id)?.is_empty();
        let done = self.fill_names(id).and_then(|complete| {
            if complete {
                if was_here { self.drop_names(id) } else { Ok(()) }
            } else {
                self.again(id);
                Ok(())
            }
        });
        self.busy.remove(id);
        done
    }

    /// Fills every place that shows the entry. False if one has to wait.
    fn fill_names(&mut self, id: EntryId) -> Result<bool> {
        let mut complete = true;
        let mut goals = Vec::new();
        for (class, base) in self.bases(id)? {
            if self.skipped(&class, &base, false)? {
                continue;
            }
            let dir = match self.dir_for(&class)? {
                Dir::Here(dir) => dir,
                Dir::Skipped => continue,
                Dir::Later => {
                    complete = false;
                    continue;
                }
            };
            let shown = self.shown_at(&class, &base)?;
            let all = shown.groups.len() <= GROUPS_AT_ONCE_MAX;
            for group in &shown.groups {
                if all || group.claims.iter().any(|s| s.entry == id) {
                    let at = At { dir: dir.clone(), name: group.name.clone() };
                    goals.extend(self.goal(at, &class, &base, group)?);
                }
            }
        }
        self.fill_all(id, goals)?;
        Ok(complete)
    }

    /// Those first that have their content in place, for others can then be linked to it; then those that
    /// take inodes away which would be in the way, the entry's own before others.
    fn fill_all(&mut self, id: EntryId, goals: Vec<Goal>) -> Result<()> {
        if let [goal] = &goals[..] {
            return self.fill(goal);
        }
        let mut ranked = Vec::with_capacity(goals.len());
        for goal in goals {
            let foreign = !goal.group.claims.iter().any(|s| s.entry == id);
            ranked.push(((self.effort(&goal)?, foreign), goal));
        }
        ranked.sort_by_key(|(rank, _)| *rank);
        ranked.iter().try_for_each(|(_, goal)| self.fill(goal))
    }

    /// 0: the content is at the place; 1: it is on this disk; 2: it has to come.
    fn effort(&mut self, goal: &Goal) -> Result<u8> {
        if let Some(place) = self.tx.place(&goal.at.dir, &goal.at.name)?
            && self.tx.node(&place.node)?.is_some_and(|n| goal.wants(&n))
        {
            return Ok(0);
        }
        Ok(if self.candidates(goal)?.is_empty() { 2 } else { 1 })
    }

    /// Makes a place show what it should.
    fn fill(&mut self, goal: &Goal) -> Result<()> {
        if !self.stale(goal)? {
            self.admit(&goal.class, &goal.at.dir)?;
        }
        let mut victim = None;
        if self.tx.place(&goal.at.dir, &goal.at.name)?.is_some() {
            if !self.stale(goal)? && self.touch_up(goal)? {
                return Ok(());
            }
            self.ask_away(&goal.at)?;
            // Whoever was asked may have filled the place, for an entry that shares it.
            if !self.stale(goal)? && self.touch_up(goal)? {
                return Ok(());
            }
            if !self.stale(goal)? {
                victim = self.clear(&goal.at, goal.owner.entry.kind)?;
            }
        }
        if self.stale(goal)? {
            self.again(goal.owner.entry.id);
            return Ok(());
        }
        match self.source(goal)? {
            Some(key) => {
                self.bring(goal, &key, victim)?;
                self.set_leaf_attrs(goal, &key)
            }
            None => self.put(goal, victim),
        }
    }

    /// True if steps planned since the goal was found have changed where its directory is.
    fn stale(&mut self, goal: &Goal) -> Result<bool> {
        Ok(self.plan.steps.len() != goal.as_of
            && self.class_node(&goal.class)?.as_ref() != Some(&goal.at.dir))
    }

    /// True if the right inode stands at the place; then only record and attributes are brought up to date.
    fn touch_up(&mut self, goal: &Goal) -> Result<bool> {
        let Some(place) = self.tx.place(&goal.at.dir, &goal.at.name)? else { return Ok(false) };
        if !self.tx.node(&place.node)?.is_some_and(|n| goal.wants(&n))
            || self.source(goal)?.as_ref() != Some(&place.node)
        {
            return Ok(false);
        }
        let binding = goal.binding();
        if place.claims != binding.claims || place.conflict_of != binding.conflict_of {
            // Those that part from the inode copy it while it is sure to be there.
            for entry in claimants(&place) {
                if !goal.group.claims.iter().any(|s| s.entry == entry) {
                    self.visit(entry)?;
                }
            }
            if !self.stands(&place.node, &goal.at)? {
                return Ok(false);
            }
            self.step(Step::Rebind { at: goal.at.clone(), node: place.node.clone(), binding })?;
        }
        self.set_leaf_attrs(goal, &place.node)?;
        Ok(true)
    }

    /// The inode on this disk that should stand at the goal: one of the claimants' with this content that
    /// no other entry keeps.
    fn source(&mut self, goal: &Goal) -> Result<Option<NodeKey>> {
        let owner = goal.owner.entry.id;
        let mut best: Option<((usize, bool), NodeKey)> = None;
        for key in self.candidates(goal)? {
            let node = self.tx.node_must(&key)?;
            let keepers = self.keepers(&key, &node, goal)?;
            let rank = match keepers.iter().max_by_key(|(entry, n)| (**n, std::cmp::Reverse(**entry))) {
                Some((entry, n)) if *entry == owner => (*n, true),
                Some(_) => continue,
                None => (0, node.names.iter().any(|(d, n)| (d, n) == (&goal.at.dir, &goal.at.name))),
            };
            if best.as_ref().is_none_or(|(r, k)| rank > *r || (rank == *r && key < *k)) {
                best = Some((rank, key));
            }
        }
        Ok(best.map(|(_, key)| key))
    }

    /// Inodes of any claimant that hold the goal's content.
    fn candidates(&mut self, goal: &Goal) -> Result<SmallVec<[NodeKey; 1]>> {
        let mut out: SmallVec<[NodeKey; 1]> = SmallVec::new();
        for claim in &goal.group.claims {
            for key in self.entry_bound(claim.entry)? {
                if !out.contains(&key) && self.tx.node(&key)?.is_some_and(|n| goal.wants(&n)) {
                    out.push(key);
                }
            }
        }
        Ok(out)
    }

    /// For whom an inode stands where it is: owner -> number of its names that show it rightly.
    fn keepers(&mut self, key: &NodeKey, node: &Node, goal: &Goal) -> Result<BTreeMap<EntryId, usize>> {
        let mut out = BTreeMap::new();
        for (dir, name) in &node.names {
            let at = At { dir: dir.clone(), name: name.clone() };
            let owner =
                if at == goal.at { Some(goal.owner.entry.id) } else { self.keeper_at(&at, key, node)? };
            if let Some(owner) = owner {
                *out.entry(owner).or_insert(0) += 1;
            }
        }
        Ok(out)
    }

    fn keeper_at(&mut self, at: &At, key: &NodeKey, node: &Node) -> Result<Option<EntryId>> {
        let Some(place) = self.tx.place(&at.dir, &at.name)? else { return Ok(None) };
        if place.node != *key {
            return Ok(None);
        }
        let wanted = self.wanted_at(at, &place)?.filter(|g| g.wants(node));
        Ok(wanted.map(|g| g.owner.entry.id))
    }

    /// What leaf the tree wants at a place of this disk, judged by what stands there: at its real name
    /// for what that was made from, else for the name as it is.
    fn wanted_at(&mut self, at: &At, place: &Place) -> Result<Option<Goal>> {
        let Some(class) = self.shows(&at.dir)? else { return Ok(None) };
        for base in place.conflict_of.iter().chain([&at.name]) {
            let shown = self.shown_at(&class, base)?;
            if let Some(group) = shown.groups.iter().find(|g| g.name == at.name) {
                return self.goal(at.clone(), &class, base, group);
            }
        }
        Ok(None)
    }

    /// Moves the inode to the goal from a name that is not wanted, else gives it one more name.
    fn bring(&mut self, goal: &Goal, key: &NodeKey, victim: Option<Victim>) -> Result<()> {
        let node = self.tx.node_must(key)?;
        for (dir, name) in &node.names {
            let from = At { dir: dir.clone(), name: name.clone() };
            if self.keeper_at(&from, key, &node)?.is_none() {
                return self.carry(key, &node, &from, &goal.at, victim, goal.binding());
            }
        }
        let Some((dir, name)) = node.names.first() else { return self.put(goal, victim) };
        let from = At { dir: dir.clone(), name: name.clone() };
        let (to, node, binding) = (goal.at.clone(), key.clone(), goal.binding());
        self.step(Step::Link { from, to, node, victim, binding })
    }

    fn carry(
        &mut self,
        key: &NodeKey,
        node: &Node,
        from: &At,
        to: &At,
        victim: Option<Victim>,
        binding: Binding,
    ) -> Result<()> {
        let (to, kind, key) = (to.clone(), node.kind, key.clone());
        self.step(match Plan::is_parked_dir(&from.dir) {
            true => Step::Unpark { to, node: key, kind, victim, binding },
            false => Step::Move { from: from.clone(), to, node: key, kind, victim, binding },
        })
    }

    /// Makes the content anew at the goal.
    fn put(&mut self, goal: &Goal, victim: Option<Victim>) -> Result<()> {
        let copy = self.copy_for(goal)?;
        let entry = &goal.owner.entry;
        let node = self.plan.provisional();
        self.step(Step::Put {
            at: goal.at.clone(),
            node,
            kind: entry.kind,
            entry: entry.id,
            version: goal.version.dot,
            content: goal.version.content.clone(),
            attrs: entry.meta.1.clone(),
            copy,
            victim,
            binding: goal.binding(),
        })
    }

    /// An inode with the goal's content that stays what it is.
    fn copy_for(&mut self, goal: &Goal) -> Result<Option<NodeKey>> {
        if let Some(key) = self.candidates(goal)?.into_iter().next() {
            return Ok(Some(key));
        }
        for claim in &goal.group.claims {
            if let Some(key) = self.plan.shared.get(&(claim.entry, goal.identity())).cloned()
                && self.tx.node(&key)?.is_some_and(|n| goal.wants(&n))
            {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }

    fn set_leaf_attrs(&mut self, goal: &Goal, key: &NodeKey) -> Result<()> {
        let node = self.tx.node_must(key)?;
        let attrs = &goal.owner.entry.meta.1;
        let mtime = goal.version.content.mtime();
        if node.wanted == Wanted::of(attrs, Some(mtime))
            || (same_attrs(attrs, &node.given) && node.fingerprint.mtime == mtime)
        {
            return Ok(());
        }
        self.step(Step::SetAttrs {
            path: Some(goal.at.clone()),
            node: key.clone(),
            kind: node.kind,
            attrs: attrs.clone(),
            content: Some(goal.version.content.clone()),
            entry: goal.owner.entry.id,
        })
    }

    /// Takes away the entry's names on this disk that the tree does not show, or gives them to whom
    /// the tree shows there.
    fn drop_names(&mut self, id: EntryId) -> Result<()> {
        for key in self.entry_bound(id)? {
            let Some(node) = self.tx.node(&key)? else { continue };
            for (dir, name) in &node.names {
                self.drop_name(id, &At { dir: dir.clone(), name: name.clone() })?;
            }
        }
        Ok(())
    }

    fn drop_name(&mut self, id: EntryId, at: &At) -> Result<()> {
        let Some(place) = self.tx.place(&at.dir, &at.name)? else { return Ok(()) };
        if !place.claims.iter().any(|c| c.entry == id) || self.is_left_out(at)? {
            return Ok(());
        }
        if let Some(goal) = self.wanted_at(at, &place)? {
            return self.fill(&goal);
        }
        // Others whose content it shows may want the inode.
        for other in claimants(&place).into_iter().filter(|e| *e != id) {
            if self.busy.contains(other) {
                return Ok(());
            }
            self.visit(other)?;
        }
        let Some(now) = self.tx.place(&at.dir, &at.name)? else { return Ok(()) };
        if now.node != place.node || self.queue.iter().any(|e| now.claims.iter().any(|c| c.entry == *e)) {
            return Ok(());
        }
        let node = self.tx.node_must(&now.node)?;
        let victim = victim_of(&now.node, &node);
        self.step(Step::Remove { at: at.clone(), victim })
    }
}

fn leaf_identity(node: &Node) -> Option<Digest> {
    match node.bind {
        Bind::Leaf { identity } => Some(identity),
        Bind::Dir(_) => None,
    }
}

/// The entries whose content a leaf's place shows, each once.
fn claimants(place: &Place) -> Vec<EntryId> {
    let mut out: Vec<EntryId> = Vec::with_capacity(place.claims.len());
    for claim in &place.claims {
        if !out.contains(&claim.entry) {
            out.push(claim.entry);
        }
    }
    out
}

fn victim_of(key: &NodeKey, node: &Node) -> Victim {
    Victim { node: key.clone(), kind: node.kind, fingerprint: node.fingerprint }
}

/// What a file system can be asked for. Owner names only help to choose the numbers.
fn same_attrs(wanted: &Attrs, given: &Attrs) -> bool {
    (wanted.mode, wanted.uid, wanted.gid, &wanted.xattrs) == (given.mode, given.uid, given.gid, &given.xattrs)
}
