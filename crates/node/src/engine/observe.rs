//! From what the disk shows to what a user did.
//!
//! A [`Pass`] collects what looks at names gave (a crawl looks at every name, an event at one), compares each with
//! what the path was materialised with, records plain cases at once (new inode, changed content or attributes) and keeps what can
//! only be judged when the pass is over: names that are gone, known inodes at other names. [`Engine::resolve`] then
//! matches them: renames first, an order that never moves a directory below itself; then saves by temporary file; then removals,
//! children before directories. A removal is recorded only if the inode is really gone.

use super::content::SMALL_LEN_MAX;
use super::hasher::{ASIDE_LEN_MIN, Aside, Found};
use super::{Engine, Fail, RelPath};
use crate::api::{MaxDelete, Reason};
use crate::needs::Waiter;
use driftless_core::adopt::{Adopted, Adoption};
use driftless_core::local::{self, Looked, Origin};
use driftless_core::plan::At;
use driftless_core::{Bind, Kind, Name, NodeKey, Tx};
use driftless_volume::{
    DirFd, HashOutcome, Hashed, Located, Reason as VolumeReason, Seen, UnseenReason, VolumeError, Writers,
};
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

/// Places read from the index at once while a directory is compared.
const PLACES_AT_ONCE: usize = 4096;

/// How often a file that changes while it is read is tried before what it has begun with is taken, if that stays.
const UNSTABLE_TRIES_MAX: u64 = 3;
/// How often a file that is open for writing is looked at before it is taken as it is ...
const SETTLE_LOOKS_MAX: u32 = 10;
/// ... and how long after each other. Its close is an event of its own and is seen at once.
const SETTLE_PAUSE: Duration = Duration::from_secs(1);

/// What one round of looking found and has not been judged yet.
#[derive(Default)]
pub(super) struct Pass {
    /// Known inodes at places not recorded for them.
    appeared: Vec<(NodeKey, Name, Seen)>,
    /// Unknown inodes where another inode was recorded.
    taken: Vec<(NodeKey, Name, Seen)>,
    /// Recorded places with nothing there.
    missing: Vec<(NodeKey, Name)>,
    /// Directories in which something was seen to change.
    touched: BTreeSet<NodeKey>,
    /// The directory being compared.
    current: Option<DirLook>,
    /// Directories to be listed: new ones, or all of a crawl.
    pub(super) todo: VecDeque<NodeKey>,
    /// New directories met while their parent was listed: taken in, and listed at once, after it. So a directory and what
    /// is in it stand next to each other in the feed, and come to the peer together.
    new_dirs: VecDeque<(NodeKey, Seen)>,
    /// True if every directory was listed: what was not found nowhere is nowhere.
    pub(super) complete: bool,
    /// True if removals were held by the guard.
    held: bool,
    /// Changes recorded in this pass.
    pub(super) recorded: u64,
}

impl Pass {
    /// A pass over the whole tree.
    pub(super) fn crawl(root: NodeKey) -> Pass {
        Pass { todo: VecDeque::from([root]), complete: true, ..Pass::default() }
    }

    /// Something changed in or about this directory.
    pub(super) fn touch(&mut self, dir: NodeKey) {
        self.touched.insert(dir);
    }

    /// True if it was told to look at nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.is_settled() && self.is_listed() && self.touched.is_empty()
    }

    /// True if nothing is left to be listed.
    pub(super) fn is_listed(&self) -> bool {
        self.todo.is_empty() && self.new_dirs.is_empty() && self.current.is_none()
    }

    /// A directory was taken in: it is listed too.
    pub(super) fn descend(&mut self, seen: &Seen) {
        if seen.kind.is_dir() {
            self.todo.push_front(seen.key.clone());
        }
    }

    /// True if nothing is left to be judged.
    pub(super) fn is_settled(&self) -> bool {
        self.appeared.is_empty() && self.taken.is_empty() && self.missing.is_empty()
    }
}

/// A directory that was listed and is being compared, in pieces: it may have a million entries.
struct DirLook {
    key: NodeKey,
    path: RelPath,
    fd: DirFd,
    seen: VecDeque<Seen>,
    shown: HashSet<Vec<u8>>,
    new_dirs: VecDeque<(NodeKey, Seen)>,
}

/// Where the observer is with respect to the tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Taking {
    /// First replica of the volume: everything found is new.
    Import,
    /// Joining: found things are adopted by path.
    Adopt,
    /// Changes are a user's.
    Watch,
}

impl Engine {
    /// Lists what the pass wants listed and compares it with what was recorded, for at most
    /// [`super::LOOKS_PER_COMMIT`] names.
    pub(super) fn step_pass(&mut self, tx: &mut Tx<'_>, pass: &mut Pass) -> Result<(), Fail> {
        let mut left = super::LOOKS_PER_COMMIT;
        while left > 0 {
            let Some(mut dir) = pass.current.take() else {
                if let Some(key) = pass.todo.pop_front() {
                    pass.current = self.list_dir(tx, pass, &key)?;
                } else if let Some((dir, seen)) = pass.new_dirs.pop_front() {
                    self.take_new_dir(tx, pass, &dir, seen)?;
                } else {
                    return Ok(());
                }
                left -= 1;
                continue;
            };
            while left > 0 {
                let Some(seen) = dir.seen.pop_front() else { break };
                if seen.kind.is_dir() && tx.node(&seen.key)?.is_none() {
                    dir.new_dirs.push_back((dir.key.clone(), seen));
                } else {
                    self.look_at_seen(tx, pass, &dir.fd, &dir.key, &dir.path, seen)?;
                }
                left -= 1;
            }
            if dir.seen.is_empty() {
                self.note_missing(tx, pass, &dir)?;
                dir.new_dirs.append(&mut pass.new_dirs);
                pass.new_dirs = dir.new_dirs;
            } else {
                pass.current = Some(dir);
            }
        }
        Ok(())
    }

    /// A new directory that was passed over while its parent was listed. It may have gone meanwhile.
    fn take_new_dir(
        &mut self,
        tx: &mut Tx<'_>,
        pass: &mut Pass,
        dir: &NodeKey,
        seen: Seen,
    ) -> Result<(), Fail> {
        let Some(path) = self.path_of_node(tx, dir)? else { return Ok(()) };
        match self.volume.dir(&path, Some(dir)) {
            Ok(fd) => self.look_at_seen(tx, pass, &fd, dir, &path, seen),
            Err(e) if is_gone(&e) => {
                self.want_crawl = true;
                Ok(())
            }
            Err(e) => self.cannot_list(tx, pass, &path, &e),
        }
    }

    fn list_dir(&mut self, tx: &mut Tx<'_>, pass: &mut Pass, key: &NodeKey) -> Result<Option<DirLook>, Fail> {
        let Some(path) = self.path_of_node(tx, key)? else { return Ok(None) };
        let fd = match self.volume.dir(&path, Some(key)) {
            Ok(fd) => fd,
            Err(e) if is_gone(&e) && !path.is_empty() => return Ok(None),
            Err(e) => return self.cannot_list(tx, pass, &path, &e).map(|()| None),
        };
        self.watch_dir(&fd);
        self.settle_path(tx, &path)?;
        if let Ok(own) = fd.looked_self()
            && tx.node(key)?.is_some_and(|n| n.fingerprint != own.fingerprint)
        {
            pass.touched.insert(key.clone());
        }
        let mut seen = Vec::new();
        let mut failed = Vec::new();
        let listed = fd.list(|item| match item {
            Ok(s) => seen.push(s),
            Err(unseen) => failed.push(unseen),
        });
        if let Err(e) = listed {
            return self.cannot_list(tx, pass, &path, &e).map(|()| None);
        }
        let mut shown: HashSet<Vec<u8>> = seen.iter().map(|s| s.name.as_bytes().to_vec()).collect();
        for unseen in failed {
            let mut p = path.join_bytes();
            if !p.is_empty() {
                p.push(b'/');
            }
            p.extend_from_slice(&unseen.name);
            self.path_waits(tx, p, Reason::Unreadable, why_unseen(&unseen.why))?;
            shown.insert(unseen.name);
        }
        // In name order, so that births get their numbers in an order that neighbours share.
        seen.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        self.counts.scanned += seen.len() as u64;
        let new_dirs = VecDeque::new();
        Ok(Some(DirLook { key: key.clone(), path, fd, seen: seen.into(), shown, new_dirs }))
    }

    /// Recorded names that the listing did not show.
    fn note_missing(&mut self, tx: &mut Tx<'_>, pass: &mut Pass, dir: &DirLook) -> Result<(), Fail> {
        let mut after: Option<Name> = None;
        loop {
            let places = tx.places_in(&dir.key, after.as_ref(), PLACES_AT_ONCE)?;
            let Some(last) = places.last().map(|p| p.0.clone()) else { return Ok(()) };
            for (name, _) in places {
                if !dir.shown.contains(name.as_bytes()) && !self.stays_hidden(&dir.path, &name) {
                    pass.missing.push((dir.key.clone(), name));
                }
            }
            after = Some(last);
        }
    }

    /// A name the filter hides is not looked at, so its absence means nothing.
    fn stays_hidden(&self, dir: &RelPath, name: &Name) -> bool {
        if self.filter.is_empty() {
            return false;
        }
        let mut path = dir.clone();
        path.push(name);
        self.filter.hides(&path, false)
    }

    /// A directory that cannot be read: nothing below it may be taken for removed.
    fn cannot_list(
        &mut self,
        tx: &mut Tx<'_>,
        pass: &mut Pass,
        path: &RelPath,
        e: &VolumeError,
    ) -> Result<(), Fail> {
        if path.is_empty() && !is_passing(e) {
            return Err(Fail::Root(e.to_string()));
        }
        pass.complete = false;
        if is_passing(e) {
            let at = if path.is_empty() { b".".to_vec() } else { path.join_bytes() };
            return self.path_waits(tx, at, super::volume_reason(e), e.to_string());
        }
        self.path_waits(tx, path.join_bytes(), Reason::Unreadable, e.to_string())
    }

    /// Looks at one name.
    pub(super) fn look_at_name(
        &mut self,
        tx: &mut Tx<'_>,
        pass: &mut Pass,
        dir: &NodeKey,
        name: &Name,
    ) -> Result<(), Fail> {
        let Some(path) = self.path_of_node(tx, dir)? else { return Ok(()) };
        let fd = match self.volume.dir(&path, Some(dir)) {
            Ok(fd) => fd,
            Err(e) if path.is_empty() && !is_passing(&e) => return Err(Fail::Root(e.to_string())),
            // Gone or moved: its own parent's event tells, and what is recorded below it goes with it.
            Err(e) if is_gone(&e) => return Ok(()),
            Err(e) => {
                let mut p = path.clone();
                p.push(name);
                return self.path_waits(tx, p.join_bytes(), super::volume_reason(&e), e.to_string());
            }
        };
        match fd.look(name) {
            Ok(Some(s)) => self.look_at_seen(tx, pass, &fd, dir, &path, s),
            Ok(None) => {
                pass.touched.insert(dir.clone());
                if tx.place(dir, name)?.is_some() {
                    pass.missing.push((dir.clone(), name.clone()));
                }
                let mut p = path.clone();
                p.push(name);
                self.settle_path(tx, &p)
            }
            Err(e) => {
                let mut p = path.clone();
                p.push(name);
                self.path_waits(tx, p.join_bytes(), super::volume_reason(&e), e.to_string())
            }
        }
    }

    fn look_at_seen(
        &mut self,
        tx: &mut Tx<'_>,
        pass: &mut Pass,
        fd: &DirFd,
        dir: &NodeKey,
        dir_path: &RelPath,
        seen: Seen,
    ) -> Result<(), Fail> {
        let mut path = dir_path.clone();
        path.push(&seen.name);
        if self.filter.hides(&path, seen.kind.is_dir()) {
            return Ok(());
        }
        if seen.other_fs {
            pass.complete = false;
            return self.path_waits(tx, path.join_bytes(), Reason::OtherFileSystem, String::new());
        }
        match tx.place(dir, &seen.name)? {
            Some(place) if place.node == seen.key => self.look_at_known(tx, pass, fd, &path, &seen),
            place => {
                pass.touched.insert(dir.clone());
                if let Some(node) = tx.node(&seen.key)? {
                    if self.taking != Taking::Watch && !node.kind.is_dir() {
                        return self.take_link(tx, pass, fd, dir, &path, &seen);
                    }
                    pass.appeared.push((dir.clone(), seen.name.clone(), seen));
                    Ok(())
                } else if place.is_some() {
                    pass.taken.push((dir.clone(), seen.name.clone(), seen));
                    Ok(())
                } else {
                    self.take_new(tx, pass, fd, dir, &path, &seen)
                }
            }
        }
    }

    /// An inode at its recorded place: did content or attributes change?
    fn look_at_known(
        &mut self,
        tx: &mut Tx<'_>,
        pass: &mut Pass,
        fd: &DirFd,
        path: &RelPath,
        seen: &Seen,
    ) -> Result<(), Fail> {
        let node = tx.node_must(&seen.key)?;
        if seen.kind.is_dir() && pass.complete {
            pass.todo.push_back(seen.key.clone());
        }
        let same_attrs =
            node.given.mode == seen.mode && node.given.uid == seen.uid && node.given.gid == seen.gid;
        let same_times = node.fingerprint.mtime == seen.fingerprint.mtime
            && node.fingerprint.ctime == seen.fingerprint.ctime;
        if same_attrs && same_times && node.fingerprint.size == seen.fingerprint.size && !node.racy {
            return Ok(());
        }
        if node.names.len() > 1 && !pass.complete && !same_times {
            self.note_lost_names(tx, pass, &node.names, &seen.key)?;
        }
        let content_suspect = !seen.kind.is_dir()
            && (node.racy
                || node.fingerprint.size != seen.fingerprint.size
                || node.fingerprint.mtime != seen.fingerprint.mtime
                || same_attrs);
        let Some(looked) = self.look_closely(tx, fd, path, seen, content_suspect)? else { return Ok(()) };
        if self.follows() {
            self.say_drift(path, "changed");
            return Ok(());
        }
        let same_content = match (&looked.content, &node.bind) {
            (Some(c), Bind::Leaf { identity }) => {
                c.identity() == *identity && c.mtime() == node.fingerprint.mtime
            }
            _ => true,
        };
        if !same_content && self.may_be_torn(&looked.fingerprint) {
            return self.take_torn(tx, pass, At { dir: fd.key().clone(), name: seen.name.clone() }, looked);
        }
        let before = tx.head();
        if same_content {
            local::attrs(tx, &looked)?;
        } else {
            local::write(tx, &looked)?;
        }
        pass.recorded += u64::from(tx.head() != before);
        Ok(())
    }

    /// The change time of an inode with several names moves on when one of them goes. That has to be recorded before the
    /// new time is: a plan which then replaces the names that are left would make it look like the removal of the last one.
    fn note_lost_names(
        &mut self,
        tx: &mut Tx<'_>,
        pass: &mut Pass,
        names: &[(NodeKey, Name)],
        key: &NodeKey,
    ) -> Result<(), Fail> {
        for (dir, name) in names {
            if !self.still_at(tx, dir, name, key)? {
                pass.missing.push((dir.clone(), name.clone()));
            }
        }
        Ok(())
    }

    /// Reads what there is to know of an inode: attributes and, if asked, content.
    fn look_closely(
        &mut self,
        tx: &mut Tx<'_>,
        fd: &DirFd,
        path: &RelPath,
        seen: &Seen,
        content: bool,
    ) -> Result<Option<Looked>, Fail> {
        if seen.kind == Kind::File && !content {
            let node = tx.node_must(&seen.key)?;
            let (fingerprint, attrs) = match fd.attrs(&seen.name, &seen.key) {
                Ok(a) => a,
                Err(e) if is_gone(&e) => return Ok(None),
                Err(e) => {
                    self.path_waits(tx, path.join_bytes(), super::volume_reason(&e), e.to_string())?;
                    return Ok(None);
                }
            };
            let Bind::Leaf { identity } = node.bind else { return Ok(None) };
            let content = Some(driftless_core::Content::File {
                size: fingerprint.size,
                mtime: fingerprint.mtime,
                digest: identity,
            });
            let key = seen.key.clone();
            return Ok(Some(Looked { key, kind: seen.kind, fingerprint, racy: false, attrs, content }));
        }
        let keep = self.cache_room().min(SMALL_LEN_MAX as usize);
        let Some(found) = self.read_or_wait(fd, path, seen, keep) else { return Ok(None) };
        match found {
            Ok(HashOutcome::Looked(hashed)) => {
                let Hashed { looked, bytes, writers } = *hashed;
                if writers == Writers::Some && !self.shared.once && self.still_settling(path) {
                    return Ok(None);
                }
                self.settle_path(tx, path)?;
                if writers == Writers::Some && !self.shared.once {
                    self.open_files.follow(path);
                }
                if let Some(c) = &looked.content
                    && seen.kind == Kind::File
                {
                    self.counts.hashed_bytes += c.size();
                    if let Some(bytes) = bytes {
                        self.cache_small(c.identity(), bytes);
                    }
                }
                if looked.racy {
                    self.look_again_later(path);
                }
                Ok(Some(looked))
            }
            Ok(HashOutcome::Gone) => Ok(None),
            Ok(HashOutcome::Unstable) => {
                self.path_waits(tx, path.join_bytes(), Reason::Unstable, String::new())?;
                Ok(None)
            }
            Err(e) if is_gone(&e) => Ok(None),
            Err(e) => {
                self.path_waits(tx, path.join_bytes(), super::volume_reason(&e), e.to_string())?;
                Ok(None)
            }
        }
    }

    /// Reads a file, or has it read beside everything else; then nothing yet. A first crawl, and a session that is to
    /// end, have nothing else to do.
    fn read_or_wait(&mut self, fd: &DirFd, path: &RelPath, seen: &Seen, keep: usize) -> Option<Found> {
        let large = seen.kind == Kind::File && seen.fingerprint.size >= ASIDE_LEN_MIN;
        let tries = self.waiting.get(&Engine::path_waiter(path)).filter(|n| n.reason == Reason::Unstable);
        let grows = seen.kind == Kind::File && tries.is_some_and(|n| n.tries >= UNSTABLE_TRIES_MAX);
        if !large || self.taking != Taking::Watch || self.shared.once || self.shared.dry_run {
            return Some(match grows {
                true => fd.hash_prefix(&seen.name, seen, keep),
                false => fd.hash(&seen.name, seen, keep),
            });
        }
        match self.hasher.ask(fd, seen, grows) {
            Aside::Here(found) => Some(found),
            Aside::Later => None,
            Aside::TooMany => {
                self.look_again_after(path, SETTLE_PAUSE);
                None
            }
        }
    }

    /// An unknown inode at a place that is not recorded.
    fn take_new(
        &mut self,
        tx: &mut Tx<'_>,
        pass: &mut Pass,
        fd: &DirFd,
        dir: &NodeKey,
        path: &RelPath,
        seen: &Seen,
    ) -> Result<(), Fail> {
        let Some(looked) = self.look_closely(tx, fd, path, seen, true)? else { return Ok(()) };
        let at = (dir, &seen.name);
        match self.taking {
            Taking::Import => local::create(tx, at, &looked, Origin::Import)?,
            Taking::Adopt => {
                let follows = self.follows();
                let how = match &self.adoption {
                    Some(a) if follows => a.bind(tx, at, &looked)?,
                    Some(a) => a.adopt(tx, at, &looked)?,
                    None => return Err(Fail::Bug("adoption has not begun".into())),
                };
                self.count_adopted(how, path);
                if follows && !matches!(how, Adopted::Equal | Adopted::SameDir) {
                    return Ok(());
                }
                let unknown = matches!(how, Adopted::OnlyHere | Adopted::LinkOnlyHere);
                if unknown && self.adoption.as_ref().is_some_and(Adoption::lost_index) {
                    return self.take_unknown(tx, pass, fd, path, (seen, &looked, how));
                }
            }
            Taking::Watch if self.follows() => {
                self.say_drift(path, "only here");
                return Ok(());
            }
            Taking::Watch => local::create(tx, at, &looked, Origin::User)?,
        }
        pass.recorded += 1;
        pass.descend(seen);
        Ok(())
    }

    /// Another name of an inode that was taken in just before.
    fn take_link(
        &mut self,
        tx: &mut Tx<'_>,
        pass: &mut Pass,
        fd: &DirFd,
        dir: &NodeKey,
        path: &RelPath,
        seen: &Seen,
    ) -> Result<(), Fail> {
        if self.taking == Taking::Adopt {
            return self.take_new(tx, pass, fd, dir, path, seen);
        }
        local::link(tx, &seen.key, (dir, &seen.name))?;
        pass.recorded += 1;
        Ok(())
    }

    /// A file somebody has open for writing is taken when it is closed; one that never is, after some time.
    fn still_settling(&mut self, path: &RelPath) -> bool {
        if self.open_files.follows(path) {
            return false; // it had its time
        }
        let bytes = path.join_bytes();
        let looks = self.settling.entry(bytes.clone()).or_default();
        *looks += 1;
        if *looks > SETTLE_LOOKS_MAX {
            self.settling.remove(&bytes);
            return false;
        }
        self.look_again_after(path, SETTLE_PAUSE);
        true
    }

    fn count_adopted(&mut self, how: Adopted, path: &RelPath) {
        let c = &mut self.join;
        match how {
            Adopted::Equal => c.equal += 1,
            Adopted::SameDir => c.equal += 1,
            Adopted::Different => {
                c.different += 1;
                if self.follows() {
                    self.say_drift(path, "changed");
                }
            }
            Adopted::OnlyHere | Adopted::LinkOnlyHere => {
                c.only_here += 1;
                if self.follows() {
                    self.say_drift(path, "only here");
                }
            }
            Adopted::RemovedElsewhere => c.removed_elsewhere += 1,
        }
    }

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
        let mut places = pass.missing.clone();
        places.extend(pass.taken.iter().map(|t| (t.0.clone(), t.1.clone())));
        // What was there may have moved just as well, with what else is in it.
        places.extend(pass.appeared.iter().map(|a| (a.0.clone(), a.1.clone())));
        for (dir, name) in places {
            let Some(place) = tx.place(&dir, &name)? else { continue };
            if known.contains(&place.node) || !asked.insert(place.node.clone()) {
                continue;
            }
            if let Located::At(path) = self.volume.locate(&place.node) {
                self.note_mover(tx, pass, &place.node, &path)?;
            }
        }
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
        if let Ok(fd) = self.volume.dir(&dir_path, Some(to.0)) {
            self.look_at_known(tx, pass, &fd, &path, seen)?;
        }
        Ok(())
    }

    /// A directory recorded where something else now is, with all that was recorded below it.
    fn clear_dir_at(&mut self, tx: &mut Tx<'_>, pass: &mut Pass, at: local::Spot<'_>) -> Result<(), Fail> {
        let Some(place) = tx.place(at.0, at.1)? else { return Ok(()) };
        if tx.node_must(&place.node)?.kind.is_dir() {
            self.remove_recorded(tx, pass, at.0.clone(), at.1.clone())?;
        }
        Ok(())
    }

    /// Unknown inodes at recorded names whose own inode did not move away.
    fn record_taken(&mut self, tx: &mut Tx<'_>, pass: &mut Pass) -> Result<(), Fail> {
        for (dir, name, seen) in std::mem::take(&mut pass.taken) {
            let Some(dir_path) = self.path_of_node(tx, &dir)? else { continue };
            let Ok(fd) = self.volume.dir(&dir_path, Some(&dir)) else { continue };
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
                    let Some(looked) = self.look_closely(tx, &fd, &path, &seen, true)? else { continue };
                    if self.may_be_torn(&looked.fingerprint) {
                        self.take_torn(tx, pass, At { dir, name }, looked)?;
                        continue;
                    }
                    local::replace(tx, (&dir, &name), &looked)?;
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
        let mut gone = Vec::new();
        let mut once = HashSet::new();
        for (dir, name) in std::mem::take(&mut pass.missing) {
            let Some(place) = tx.place(&dir, &name)? else { continue };
            if !once.insert((dir.clone(), name.clone())) || self.still_at(tx, &dir, &name, &place.node)? {
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
        if gone.is_empty() || !self.allow_removals(tx, pass, &gone)? {
            return Ok(());
        }
        for (dir, name) in gone {
            if tx.place(&dir, &name)?.is_some() {
                pass.touched.insert(dir.clone());
                self.remove_recorded(tx, pass, dir, name)?;
            }
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
        let mut stack = vec![(dir, name, false)];
        while let Some((dir, name, emptied)) = stack.pop() {
            let Some(place) = tx.place(&dir, &name)? else { continue };
            let node = tx.node_must(&place.node)?;
            if !node.kind.is_dir() {
                local::unlink(tx, (&dir, &name))?;
                pass.recorded += 1;
            } else if emptied {
                local::rmdir(tx, (&dir, &name))?;
                pass.recorded += 1;
            } else {
                stack.push((dir, name, true));
                let mut after: Option<Name> = None;
                loop {
                    let below = tx.places_in(&place.node, after.as_ref(), PLACES_AT_ONCE)?;
                    let Some(last) = below.last().map(|p| p.0.clone()) else { break };
                    stack.extend(below.into_iter().map(|(n, _)| (place.node.clone(), n, false)));
                    after = Some(last);
                }
            }
        }
        Ok(())
    }

    /// The guard where dots are made: a window that would remove too much records nothing and asks.
    fn allow_removals(
        &mut self,
        tx: &mut Tx<'_>,
        pass: &mut Pass,
        gone: &[(NodeKey, Name)],
    ) -> Result<bool, Fail> {
        let total = self.count_places()?;
        let limit = removal_limit(self.shared.max_delete, total);
        let mut counted: HashSet<(NodeKey, Name)> = HashSet::new();
        let mut stack: Vec<(NodeKey, Name)> = gone.to_vec();
        while let Some(at) = stack.pop() {
            let Some(place) = tx.place(&at.0, &at.1)? else { continue };
            if !counted.insert(at) {
                continue;
            }
            if counted.len() as u64 > limit {
                let text = format!(
                    "more than {limit} of {total} entries are gone at once; nothing of that was recorded"
                );
                pass.held = true;
                self.hold_removals(tx, text)?;
                return Ok(false);
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
        Ok(true)
    }

    /// Directory times are part of the state: they go with the change of the children that moved them.
    fn record_dir_times(&mut self, tx: &mut Tx<'_>, pass: &mut Pass) -> Result<(), Fail> {
        if self.follows() {
            pass.touched.clear();
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
    fn still_at(&mut self, tx: &mut Tx<'_>, dir: &NodeKey, name: &Name, key: &NodeKey) -> Result<bool, Fail> {
        let Some(fd) = self.dir_wherever(tx, dir)? else { return Ok(false) };
        Ok(matches!(fd.look(name), Ok(Some(s)) if s.key == *key))
    }

    /// A known directory where it is recorded, else where it is now: its move may not have been recorded yet.
    fn dir_wherever(&mut self, tx: &mut Tx<'_>, dir: &NodeKey) -> Result<Option<DirFd>, Fail> {
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

/// True if the thing asked for is not there (any more), or is another one now.
pub(super) fn is_gone(e: &VolumeError) -> bool {
    matches!(e.reason(), VolumeReason::NotFound | VolumeReason::WrongIdentity | VolumeReason::NotDirectory)
}

/// True if it says nothing about the thing asked for: the process has too many files open.
fn is_passing(e: &VolumeError) -> bool {
    e.reason() == VolumeReason::TooManyOpen
}

fn why_unseen(why: &UnseenReason) -> String {
    match why {
        UnseenReason::Name(e) => e.to_string(),
        UnseenReason::Failed(e) => e.to_string(),
    }
}
