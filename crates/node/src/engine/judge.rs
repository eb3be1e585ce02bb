//! What a pass found and could not judge at once: renames, saves by temporary file, removals.
//!
//! Renames first, in an order that never moves a directory below itself; then other inodes at recorded names; then
//! removals, children before directories, if the inode is really gone and the guard lets them pass.

use super::observe::{PLACES_AT_ONCE, Pass, Taking};
use super::{Engine, Fail, RelPath};
use crate::api::MaxDelete;
use crate::needs::Waiter;
use driftless_core::local;
use driftless_core::plan::At;
use driftless_core::{Name, NodeKey, Tx};
use driftless_volume::{DirFd, Located, Seen};
use std::collections::{HashMap, HashSet, VecDeque};

/// Removals that one commit records at most: what it changes is in memory until then, and peers work on what was recorded before.
const REMOVALS_PER_COMMIT: usize = 2048;

impl Engine {
    /// Judges what a pass has left open. Returns directories that have to be listed before the pass is over.
    pub(super) fn resolve(&mut self, tx: &mut Tx<'_>, pass: &mut Pass) -> Result<(), Fail> {
        if self.taking == Taking::Watch && self.follows() {
            return self.note_drift(tx, pass);
        }
        self.find_movers(tx, pass)?;
        self.record_moves(tx, pass)?;
        self.record_taken(tx, pass)?;
        self.record_missing(tx, pass)?;
        if pass.complete && !pass.held {
            self.settle_held(tx);
        }
        self.record_dir_times(tx, pass)
    }

    /// A follower makes no dots: what its disk shows otherwise is told and left as it is.
    fn note_drift(&mut self, tx: &mut Tx<'_>, pass: &mut Pass) -> Result<(), Fail> {
        let appeared = std::mem::take(&mut pass.appeared).into_iter().map(|a| (a.0, a.1, "only here"));
        let taken = std::mem::take(&mut pass.taken).into_iter().map(|t| (t.0, t.1, "changed"));
        let missing = std::mem::take(&mut pass.missing).into_iter().map(|m| (m.0, m.1, "missing"));
        for (dir, name, what) in appeared.chain(taken).chain(missing) {
            if let Some(mut path) = self.path_of_node(tx, &dir)? {
                path.push(&name);
                self.say_drift(&path, what);
            }
        }
        pass.touched.clear();
        Ok(())
    }

    /// Missing names whose inode lives on at a place nobody told us of (its event is still on its way).
    fn find_movers(&mut self, tx: &mut Tx<'_>, pass: &mut Pass) -> Result<(), Fail> {
        let known: HashSet<NodeKey> = pass.appeared.iter().map(|a| a.2.key.clone()).collect();
        let mut asked = HashSet::new();
        let mut places: Vec<_> = pass.taken.iter().map(|t| (t.0.clone(), t.1.clone())).collect();
        // What was there may have moved just as well, with what else is in it.
        places.extend(pass.appeared.iter().map(|a| (a.0.clone(), a.1.clone())));
        // There may be very many of these.
        let missing = std::mem::take(&mut pass.missing);
        for (dir, name) in missing.iter().chain(&places) {
            let Some(place) = tx.place(dir, name)? else { continue };
            if known.contains(&place.node) || !asked.insert(place.node.clone()) {
                continue;
            }
            if let Located::At(path) = self.volume.locate(&place.node) {
                self.note_mover(tx, pass, &place.node, &path)?;
            }
        }
        pass.missing = missing;
        Ok(())
    }

    fn note_mover(
        &mut self,
        tx: &mut Tx<'_>,
        pass: &mut Pass,
        key: &NodeKey,
        path: &[Name],
    ) -> Result<(), Fail> {
        let Some((name, parents)) = path.split_last() else { return Ok(()) };
        let Ok(fd) = self.volume.dir(parents, None) else { return Ok(()) };
        let dir = fd.key().clone();
        if tx.node(&dir)?.is_none() || tx.place(&dir, name)?.is_some_and(|p| p.node == *key) {
            return Ok(());
        }
        if let Ok(Some(seen)) = fd.look(name)
            && seen.key == *key
        {
            pass.touched.insert(dir.clone());
            pass.appeared.push((dir, name.clone(), seen));
        }
        Ok(())
    }

    /// Renames and new links, in an order in which no directory goes below itself and no name is taken
    /// before its inode has left it.
    fn record_moves(&mut self, tx: &mut Tx<'_>, pass: &mut Pass) -> Result<(), Fail> {
        let mut placed = HashSet::new();
        let mut left = std::mem::take(&mut pass.appeared);
        left.retain(|a| placed.insert((a.0.clone(), a.1.clone())));
        // What moves with a directory is found where that is now.
        left.sort_by_key(|(_, _, seen)| !seen.kind.is_dir());
        let mut moving: HashMap<NodeKey, usize> = HashMap::new();
        for (_, _, seen) in &left {
            *moving.entry(seen.key.clone()).or_default() += 1;
        }
        let mut left = VecDeque::from(left);
        let mut stepped_aside = HashSet::new();
        let mut passed_over = 0;
        while let Some((dir, name, seen)) = left.pop_front() {
            let to = (&dir, &name);
            let below_itself = seen.kind.is_dir() && self.is_below(tx, &dir, &seen.key)?;
            if !below_itself && !self.takes_from_movers(tx, to, &seen, &moving)? {
                self.record_move(tx, pass, to, &seen)?;
                passed_over = 0;
                if let Some(names) = moving.get_mut(&seen.key) {
                    *names -= 1;
                    if *names == 0 {
                        moving.remove(&seen.key);
                    }
                }
                continue;
            }
            left.push_back((dir, name, seen));
            passed_over += 1;
            if passed_over == left.len() {
                passed_over = 0;
                if !self.step_aside(tx, &left, &mut stepped_aside)? {
                    // The tree changed while it was looked at.
                    self.want_crawl = true;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// True if what is recorded at `to` moves itself, or is a directory that some mover is still recorded in: with
    /// its record a mover would lose the name that it comes from.
    fn takes_from_movers(
        &mut self,
        tx: &mut Tx<'_>,
        to: local::Spot<'_>,
        seen: &Seen,
        moving: &HashMap<NodeKey, usize>,
    ) -> Result<bool, Fail> {
        let Some(place) = tx.place(to.0, to.1)?.filter(|p| p.node != seen.key) else { return Ok(false) };
        if moving.contains_key(&place.node) {
            return Ok(true);
        }
        if !tx.node_must(&place.node)?.kind.is_dir() {
            return Ok(false);
        }
        for mover in moving.keys() {
            let Some(node) = tx.node(mover)? else { continue };
            for (dir, _) in &node.names {
                if self.is_below(tx, dir, &place.node)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Names that wait for each other (a swap): one inode leaves the name that it is not at any more for one in the root,
    /// where it is in nobody's way. False if there is none.
    fn step_aside(
        &mut self,
        tx: &mut Tx<'_>,
        movers: &VecDeque<(NodeKey, Name, Seen)>,
        stepped_aside: &mut HashSet<NodeKey>,
    ) -> Result<bool, Fail> {
        for (_, _, seen) in movers {
            if stepped_aside.contains(&seen.key) {
                continue;
            }
            let Some(node) = tx.node(&seen.key)? else { continue };
            let Some((dir, name)) = self.left_name(tx, &node.names, &seen.key)? else { continue };
            let root = self.volume.root_key();
            let aside = free_name(tx, &root)?;
            local::rename(tx, (&dir, &name), (&root, &aside), u64::MAX)?;
            self.paths.clear();
            stepped_aside.insert(seen.key.clone());
            return Ok(true);
        }
        Ok(false)
    }

    /// The first of an inode's recorded names that does not show it any more.
    fn left_name(
        &mut self,
        tx: &mut Tx<'_>,
        names: &[(NodeKey, Name)],
        key: &NodeKey,
    ) -> Result<Option<(NodeKey, Name)>, Fail> {
        for (dir, name) in names {
            if !self.still_at(tx, dir, name, key)? {
                return Ok(Some((dir.clone(), name.clone())));
            }
        }
        Ok(None)
    }

    fn record_move(
        &mut self,
        tx: &mut Tx<'_>,
        pass: &mut Pass,
        to: local::Spot<'_>,
        seen: &Seen,
    ) -> Result<(), Fail> {
        let (Some(node), Some(_)) = (tx.node(&seen.key)?, tx.node(to.0)?) else {
            // What was recorded before took its record: the tree changed while it was looked at.
            self.want_crawl = true;
            return Ok(());
        };
        if tx.place(to.0, to.1)?.is_some_and(|p| p.node == seen.key) {
            return Ok(());
        }
        let from = self.left_name(tx, &node.names, &seen.key)?;
        if let Some(from) = &from
            && self.may_be_restored(tx, from, to, seen)?
        {
            local::unlink(tx, (&from.0, &from.1))?;
            pass.taken.push((to.0.clone(), to.1.clone(), seen.clone()));
            return Ok(());
        }
        let forgotten = local::forget_unknown(tx, &seen.key)?;
        if !forgotten.is_empty() {
            let has_left = |spot: &(NodeKey, Name)| from.as_ref() == Some(spot);
            let spots =
                forgotten.into_iter().filter(|spot| !has_left(spot)).chain([(to.0.clone(), to.1.clone())]);
            pass.taken.extend(spots.map(|(dir, name)| {
                let seen = Seen { name: name.clone(), ..seen.clone() };
                (dir, name, seen)
            }));
            return Ok(());
        }
        self.clear_dir_at(tx, pass, to)?;
        match from {
            Some((dir, name)) => {
                pass.touched.insert(dir.clone());
                let over = tx.place(to.0, to.1)?;
                let shipped_n = if over.is_some() { self.shipped_n } else { u64::MAX };
                local::rename(tx, (&dir, &name), to, shipped_n)?;
                if seen.kind.is_dir() {
                    self.paths.clear();
                }
            }
            None if seen.kind.is_dir() => return Ok(()),
            None => {
                if tx.place(to.0, to.1)?.is_some() {
                    local::unlink(tx, to)?;
                }
                local::link(tx, &seen.key, to)?;
            }
        }
        pass.recorded += 1;
        // The move may have come with a change of content or attributes.
        let Some(dir_path) = self.path_of_node(tx, to.0)? else { return Ok(()) };
        let mut path = dir_path.clone();
        path.push(to.1);
        match self.volume.dir(&dir_path, Some(to.0)) {
            Ok(fd) => self.look_at_known(tx, pass, &fd, &path, seen),
            Err(_) => {
                self.look_when_found(to.0, to.1);
                Ok(())
            }
        }
    }

    /// A directory recorded where something else now is, with all that was recorded below it.
    fn clear_dir_at(&mut self, tx: &mut Tx<'_>, pass: &mut Pass, at: local::Spot<'_>) -> Result<(), Fail> {
        let Some(place) = tx.place(at.0, at.1)? else { return Ok(()) };
        if tx.node_must(&place.node)?.kind.is_dir() {
            self.remove_recorded(tx, pass, at.0.clone(), at.1.clone())?;
        }
        Ok(())
    }

    /// Unknown inodes at recorded names whose own inode did not move away; then those at other names that were left until
    /// these are judged.
    fn record_taken(&mut self, tx: &mut Tx<'_>, pass: &mut Pass) -> Result<(), Fail> {
        let (mut taken, mut new) = (Vec::new(), Vec::new());
        for one in std::mem::take(&mut pass.taken) {
            if tx.place(&one.0, &one.1)?.is_some() { taken.push(one) } else { new.push(one) }
        }
        for (dir, name, seen) in taken.into_iter().chain(new) {
            let Some(dir_path) = self.path_of_node(tx, &dir)? else { continue };
            let Ok(fd) = self.volume.dir(&dir_path, Some(&dir)) else {
                self.look_when_found(&dir, &name);
                continue;
            };
            let mut path = dir_path.clone();
            path.push(&name);
            self.settle_path(tx, &path)?;
            if tx.node(&seen.key)?.is_some() {
                // Another name of it was taken in meanwhile: this one is a link.
                pass.appeared.push((dir, name, seen));
                continue;
            }
            let old = match tx.place(&dir, &name)? {
                Some(p) => Some(tx.node_must(&p.node)?),
                None => None,
            };
            match old {
                Some(old) if !old.kind.is_dir() && !seen.kind.is_dir() => {
                    if self.is_kept_back(&dir, &seen) {
                        continue;
                    }
                    let Some(looked) = self.look_closely(tx, &fd, &path, &seen, true)? else { continue };
                    if self.may_be_torn(&looked.fingerprint) {
                        self.take_torn(tx, pass, At { dir, name }, looked)?;
                        continue;
                    }
                    let at = At { dir, name };
                    if self.keeps_back(pass, &at, &old, &looked) {
                        continue;
                    }
                    local::replace(tx, (&at.dir, &at.name), &looked)?;
                    pass.recorded += 1;
                }
                Some(_) => {
                    if !self.allow_removals(tx, pass, &[(dir.clone(), name.clone())])? {
                        continue;
                    }
                    self.remove_recorded(tx, pass, dir.clone(), name.clone())?;
                    self.take_new(tx, pass, &fd, &dir, &path, &seen)?;
                }
                None => self.take_new(tx, pass, &fd, &dir, &path, &seen)?,
            }
        }
        Ok(())
    }

    /// Names that are really gone.
    fn record_missing(&mut self, tx: &mut Tx<'_>, pass: &mut Pass) -> Result<(), Fail> {
        let mut missing = std::mem::take(&mut pass.missing);
        missing.sort_unstable();
        missing.dedup();
        let mut gone = Vec::new();
        for (dir, name) in missing {
            let Some(place) = tx.place(&dir, &name)? else { continue };
            if self.still_at(tx, &dir, &name, &place.node)? {
                continue;
            }
            match self.volume.locate(&place.node) {
                Located::Gone | Located::Outside => gone.push((dir, name)),
                // Another name of the inode: this one is gone.
                Located::At(path) if self.is_recorded_at(tx, &place.node, &path)? => gone.push((dir, name)),
                Located::At(_) => self.want_crawl = true,
                Located::Unknown if pass.complete => gone.push((dir, name)),
                Located::Unknown => self.want_crawl = true,
            }
        }
        let gone = self.removals_now(tx, pass, gone)?;
        let begun = !pass.let_pass.is_empty();
        if !gone.is_empty() && self.allow_removals(tx, pass, &gone)? {
            pass.let_pass.append(&mut VecDeque::from(gone));
        }
        let mut left = REMOVALS_PER_COMMIT;
        while let Some((dir, name)) = pass.let_pass.pop_front() {
            let Some(place) = tx.place(&dir, &name)? else { continue };
            // What was to go with an earlier commit may be there again.
            if begun && self.still_at(tx, &dir, &name, &place.node)? {
                continue;
            }
            if left == 0 || !self.remove_some(tx, pass, (&dir, &name), &mut left)? {
                pass.let_pass.push_front((dir, name));
                break;
            }
            pass.touched.insert(dir);
        }
        Ok(())
    }

    fn is_recorded_at(&mut self, tx: &mut Tx<'_>, key: &NodeKey, path: &[Name]) -> Result<bool, Fail> {
        let Some((name, parents)) = path.split_last() else { return Ok(false) };
        let Ok(fd) = self.volume.dir(parents, None) else { return Ok(false) };
        Ok(tx.place(fd.key(), name)?.is_some_and(|p| p.node == *key))
    }

    /// Records the removal of a place, of a directory with everything that is recorded below it. Inodes from below that
    /// live on elsewhere have been moved before.
    fn remove_recorded(
        &mut self,
        tx: &mut Tx<'_>,
        pass: &mut Pass,
        dir: NodeKey,
        name: Name,
    ) -> Result<(), Fail> {
        let mut left = usize::MAX;
        self.remove_some(tx, pass, (&dir, &name), &mut left).map(drop)
    }

    /// As [`Engine::remove_recorded`], but `left` removals at most; false if that was not all.
    fn remove_some(
        &mut self,
        tx: &mut Tx<'_>,
        pass: &mut Pass,
        at: local::Spot<'_>,
        left: &mut usize,
    ) -> Result<bool, Fail> {
        /// What is to be done: a place with what is below it, or the places of a directory after a name, and then itself.
        enum Todo {
            Place(At),
            Below { at: At, dir: NodeKey, after: Option<Name> },
        }
        let mut stack = vec![Todo::Place(At { dir: at.0.clone(), name: at.1.clone() })];
        while let Some(todo) = stack.pop() {
            if *left == 0 {
                return Ok(false);
            }
            match todo {
                Todo::Place(at) => {
                    let Some(place) = tx.place(&at.dir, &at.name)? else { continue };
                    if self.forgets_hidden(tx, &at.dir, &at.name)? {
                        continue;
                    }
                    let dir = place.node.clone();
                    if tx.node_must(&dir)?.kind.is_dir() {
                        stack.push(Todo::Below { at, dir, after: None });
                        continue;
                    }
                    local::unlink(tx, (&at.dir, &at.name))?;
                }
                Todo::Below { at, dir, after } => {
                    let below = tx.places_in(&dir, after.as_ref(), PLACES_AT_ONCE)?;
                    if let Some(last) = below.last().map(|p| p.0.clone()) {
                        stack.push(Todo::Below { at, dir: dir.clone(), after: Some(last) });
                        let places = below.into_iter().map(|(name, _)| At { dir: dir.clone(), name });
                        stack.extend(places.map(Todo::Place));
                        continue;
                    }
                    local::rmdir(tx, (&at.dir, &at.name))?;
                }
            }
            pass.recorded += 1;
            pass.removed += 1;
            *left -= 1;
        }
        Ok(true)
    }

    /// The guard where dots are made: a window that would remove too much records nothing and asks.
    fn allow_removals(
        &mut self,
        tx: &mut Tx<'_>,
        pass: &mut Pass,
        gone: &[(NodeKey, Name)],
    ) -> Result<bool, Fail> {
        if removal_limit(self.shared.max_delete, 0) == u64::MAX {
            return Ok(true);
        }
        let total = self.count_places()?;
        let limit = removal_limit(self.shared.max_delete, total);
        if self.count_recorded(tx, gone, limit)? > limit {
            let text = format!(
                "more than {limit} of {total} entries are gone at once; nothing of that was recorded"
            );
            pass.held = true;
            self.hold_removals(tx, text)?;
            return Ok(false);
        }
        Ok(true)
    }

    /// How many places are recorded at `gone` and below; one more than `limit` is enough to know.
    pub(super) fn count_recorded(
        &mut self,
        tx: &mut Tx<'_>,
        gone: &[(NodeKey, Name)],
        limit: u64,
    ) -> Result<u64, Fail> {
        let mut counted: HashSet<(NodeKey, Name)> = HashSet::new();
        let mut stack: Vec<(NodeKey, Name)> = gone.to_vec();
        while let Some(at) = stack.pop() {
            let Some(place) = tx.place(&at.0, &at.1)? else { continue };
            if !counted.insert(at) {
                continue;
            }
            if counted.len() as u64 > limit {
                break;
            }
            if !place.claims.is_empty() {
                continue;
            }
            let mut after: Option<Name> = None;
            loop {
                let below = tx.places_in(&place.node, after.as_ref(), PLACES_AT_ONCE)?;
                let Some(last) = below.last().map(|p| p.0.clone()) else { break };
                stack.extend(below.into_iter().map(|(n, _)| (place.node.clone(), n)));
                if stack.len() as u64 > limit {
                    break; // enough to know
                }
                after = Some(last);
            }
        }
        Ok(counted.len() as u64)
    }

    /// Directory times are part of the state: they go with the change of the children that moved them.
    fn record_dir_times(&mut self, tx: &mut Tx<'_>, pass: &mut Pass) -> Result<(), Fail> {
        if self.follows() {
            pass.touched.clear();
            return Ok(());
        }
        if self.keeps_dir_times(pass) {
            return Ok(());
        }
        for key in std::mem::take(&mut pass.touched) {
            let Some(node) = tx.node(&key)? else { continue };
            if !node.kind.is_dir() {
                continue;
            }
            let Some(path) = self.path_of_node(tx, &key)? else { continue };
            let Ok(fd) = self.volume.dir(&path, Some(&key)) else { continue };
            let Ok(looked) = fd.looked_self() else { continue };
            if looked.fingerprint != node.fingerprint {
                local::attrs(tx, &looked)?;
            }
        }
        Ok(())
    }

    /// True if the path still shows this inode.
    pub(super) fn still_at(
        &mut self,
        tx: &mut Tx<'_>,
        dir: &NodeKey,
        name: &Name,
        key: &NodeKey,
    ) -> Result<bool, Fail> {
        let Some(fd) = self.dir_wherever(tx, dir)? else { return Ok(false) };
        Ok(matches!(fd.look(name), Ok(Some(s)) if s.key == *key))
    }

    /// A known directory where it is recorded, else where it is now: its move may not have been recorded yet.
    pub(super) fn dir_wherever(&mut self, tx: &mut Tx<'_>, dir: &NodeKey) -> Result<Option<DirFd>, Fail> {
        let Some(path) = self.path_of_node(tx, dir)? else { return Ok(None) };
        if let Ok(fd) = self.volume.dir(&path, Some(dir)) {
            return Ok(Some(fd));
        }
        Ok(match self.volume.locate(dir) {
            Located::At(path) => self.volume.dir(&path, Some(dir)).ok(),
            _ => None,
        })
    }

    /// True if directory `dir` is recorded below `top` (or is it).
    fn is_below(&mut self, tx: &mut Tx<'_>, dir: &NodeKey, top: &NodeKey) -> Result<bool, Fail> {
        let mut at = dir.clone();
        for _ in 0..super::DEPTH_MAX {
            if at == *top {
                return Ok(true);
            }
            match tx.node(&at)?.and_then(|n| n.names.first().cloned()) {
                Some((parent, _)) => at = parent,
                None => return Ok(false),
            }
        }
        Ok(false)
    }

    pub(super) fn path_waiter(path: &RelPath) -> Waiter {
        Waiter::Path(path.join_bytes())
    }
}

/// A name for an inode that steps aside: nothing is recorded there.
fn free_name(tx: &mut Tx<'_>, dir: &NodeKey) -> Result<Name, Fail> {
    let mut n = 0u64;
    loop {
        let name =
            Name::new(format!("driftless-swap-{n}").as_bytes()).map_err(|e| Fail::Bug(e.to_string()))?;
        if tx.place(dir, &name)?.is_none() {
            return Ok(name);
        }
        n += 1;
    }
}

/// How many removals one window may make when `total` entries are on the disk.
pub(super) fn removal_limit(max: MaxDelete, total: u64) -> u64 {
    match max {
        MaxDelete::Default => (total / 2).max(100),
        MaxDelete::Count(n) => n,
        MaxDelete::Percent(p) if p >= 100.0 => u64::MAX,
        MaxDelete::Percent(p) => (total as f64 * p.clamp(0.0, 100.0) / 100.0) as u64,
    }
}
