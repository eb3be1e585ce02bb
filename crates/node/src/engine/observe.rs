//! From what the disk shows to what a user did.
//!
//! A [`Pass`] collects what looks at names gave (a crawl looks at every name, an event at one), compares each with
//! what the path was materialised with, records plain cases at once (new inode, changed content or attributes) and keeps what can
//! only be judged when the pass is over: names that are gone, known inodes at other names. [`Engine::resolve`] then
//! matches them: renames first, an order that never moves a directory below itself; then saves by temporary file; then removals,
//! children before directories. A removal is recorded only if the inode is really gone.

use super::ahead::{Ahead, Look, Readers};
use super::content::SMALL_LEN_MAX;
use super::hasher::{ASIDE_LEN_MIN, Aside, Found, How};
use super::{Engine, Fail, RelPath};
use crate::api::Reason;
use driftless_core::adopt::{Adopted, Adoption};
use driftless_core::local::{self, Looked, Origin};
use driftless_core::plan::At;
use driftless_core::{Bind, Kind, Name, NodeKey, Recorded, Tx};
use driftless_volume::{
    DirFd, HashOutcome, Hashed, Listing, Reason as VolumeReason, Seen, VolumeError, Writers,
};
use std::collections::{BTreeSet, HashSet, VecDeque};
use std::time::{Duration, Instant};

/// Places read from the index at once while a directory is compared.
pub(super) const PLACES_AT_ONCE: usize = 4096;

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
    pub(super) appeared: Vec<(NodeKey, Name, Seen)>,
    /// Unknown inodes where another inode was recorded.
    pub(super) taken: Vec<(NodeKey, Name, Seen)>,
    /// Recorded places with nothing there.
    pub(super) missing: Vec<(NodeKey, Name)>,
    /// Directories in which something was seen to change.
    pub(super) touched: BTreeSet<NodeKey>,
    /// The directory being compared.
    current: Option<DirLook>,
    /// Directories to be listed: new ones, or all of a crawl.
    pub(super) todo: VecDeque<NodeKey>,
    /// New directories met while their parent was listed: taken in, and listed at once, after it. So a directory and what
    /// is in it stand next to each other in the feed, and come to the peer together.
    new_dirs: VecDeque<(NodeKey, Seen)>,
    /// Removals that the guard has let pass, and that are not recorded yet.
    pub(super) let_pass: VecDeque<(NodeKey, Name)>,
    /// True while names are looked at that something was heard of, one by one: these are few.
    pub(super) by_name: bool,
    /// True if every directory was listed: what was not found nowhere is nowhere.
    pub(super) complete: bool,
    /// True if names that are gone have waited for what might come with them.
    pub(super) waited: bool,
    /// True if removals were held by the guard.
    pub(super) held: bool,
    /// Changes recorded in this pass.
    pub(super) recorded: u64,
    /// Removals among them that have not been offered to peers.
    pub(super) removed: usize,
}

impl Pass {
    /// A pass over the whole tree.
    pub(super) fn crawl(root: NodeKey) -> Pass {
        Pass { todo: VecDeque::from([root]), complete: true, ..Pass::default() }
    }

    /// A pass over some names that something was heard of.
    pub(super) fn of_names() -> Pass {
        Pass { by_name: true, ..Pass::default() }
    }

    /// A pass that judges names which were found gone before.
    pub(super) fn gone(names: BTreeSet<(NodeKey, Name)>) -> Pass {
        Pass { missing: names.into_iter().collect(), waited: true, ..Pass::default() }
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
        self.appeared.is_empty()
            && self.taken.is_empty()
            && self.missing.is_empty()
            && self.let_pass.is_empty()
    }
}

/// A directory that was listed and is being compared, in pieces: it may have a million entries.
struct DirLook {
    key: NodeKey,
    path: RelPath,
    fd: DirFd,
    names: Listing,
    /// Which of them is looked at next.
    next: usize,
    /// What the next names were recorded with, as this step has read it.
    recorded: VecDeque<(Name, NodeKey, Option<Recorded>)>,
    /// Nothing is recorded after these.
    recorded_all: bool,
    /// True while all that was recorded before `next` was listed, too.
    complete: bool,
    /// Names that had gone again when they were looked at.
    gone: HashSet<Name>,
    new_dirs: VecDeque<(NodeKey, Seen)>,
    ahead: Ahead,
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
            // Read in an earlier step, it may be out of date.
            dir.recorded.clear();
            dir.recorded_all = false;
            while left > 0 && dir.next < dir.names.len() {
                left -= 1;
                if self.is_as_recorded(tx, pass, &mut dir)? {
                    continue;
                }
                let Some((seen, found)) = self.look_at_next(tx, &mut dir)? else { continue };
                if seen.kind.is_dir() && tx.node(&seen.key)?.is_none() {
                    dir.new_dirs.push_back((dir.key.clone(), seen));
                } else {
                    self.found_ahead = found.map(|found| (seen.key.clone(), found));
                    self.look_at_seen(tx, pass, &dir.fd, &dir.key, &dir.path, seen)?;
                    self.found_ahead = None;
                }
            }
            if dir.next == dir.names.len() {
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
            Err(e) if is_gone(&e) && !path.is_empty() => {
                self.list_elsewhere(pass, key);
                return Ok(None);
            }
            Err(e) => return self.cannot_list(tx, pass, &path, &e).map(|()| None),
        };
        self.watch_dir(&fd);
        if let Ok(own) = fd.looked_self()
            && tx.node(key)?.is_some_and(|n| n.fingerprint != own.fingerprint)
        {
            pass.touched.insert(key.clone());
        }
        // In name order, so that births get their numbers in an order that neighbours share.
        let names = match fd.list() {
            Ok(names) => names,
            Err(e) => return self.cannot_list(tx, pass, &path, &e).map(|()| None),
        };
        self.settle_path(tx, &path)?;
        self.counts.scanned += names.len() as u64;
        let (key, new_dirs, gone) = (key.clone(), VecDeque::new(), HashSet::new());
        let (recorded, recorded_all, complete) = (VecDeque::new(), false, true);
        let (next, ahead) = (0, Ahead::default());
        Ok(Some(DirLook {
            key,
            path,
            fd,
            names,
            next,
            recorded,
            recorded_all,
            complete,
            gone,
            new_dirs,
            ahead,
        }))
    }

    /// Steps over the next name of a directory if it is just as it was recorded: so are nearly all, and of those no more is asked of
    /// the disk or the index than this takes.
    fn is_as_recorded(&mut self, tx: &mut Tx<'_>, pass: &mut Pass, dir: &mut DirLook) -> Result<bool, Fail> {
        // What waits may be over when its path is seen; what is hidden is not looked at.
        if self.taking != Taking::Watch || !self.filter.is_empty() || !self.waiting.is_empty() {
            dir.complete = false;
            return Ok(false);
        }
        let listed = dir.names.bytes_of(dir.next).unwrap_or_default();
        if dir.recorded.is_empty() && !dir.recorded_all {
            let before = dir.next.checked_sub(1).and_then(|i| dir.names.name(i)).transpose();
            let Ok(after) = before else {
                dir.complete = false;
                return Ok(false);
            };
            dir.recorded = tx.recorded_in(&dir.key, after.as_ref(), super::LOOKS_PER_COMMIT)?.into();
            dir.recorded_all = dir.recorded.len() < super::LOOKS_PER_COMMIT;
        }
        while dir.recorded.front().is_some_and(|(name, ..)| name.as_bytes() < listed) {
            // Nothing was listed there.
            dir.complete = false;
            dir.recorded.pop_front();
        }
        if dir.recorded.front().is_none_or(|(name, ..)| name.as_bytes() != listed) {
            return Ok(false);
        }
        let Some((name, key, Some(recorded))) = dir.recorded.pop_front() else { return Ok(false) };
        if !dir.fd.is_as_recorded(&name, &key, &recorded) {
            return Ok(false);
        }
        dir.next += 1;
        if recorded.kind.is_dir() && pass.complete {
            pass.todo.push_back(key);
        }
        Ok(true)
    }

    /// Looks at the next name of a directory; what it holds comes along if it was read already. `None`: there is nothing, or
    /// nothing that can be looked at.
    fn look_at_next(
        &mut self,
        tx: &mut Tx<'_>,
        dir: &mut DirLook,
    ) -> Result<Option<(Seen, Option<Found>)>, Fail> {
        let Some(name) = dir.names.name(dir.next) else { return Ok(None) };
        let ahead = self.look_ahead(dir);
        let bytes = dir.names.bytes_of(dir.next).unwrap_or_default();
        dir.next += 1;
        let why = match name {
            Ok(name) => match ahead.unwrap_or_else(|| Look { seen: dir.fd.look(&name), found: None }) {
                Look { seen: Ok(Some(seen)), found } => return Ok(Some((seen, found))),
                Look { seen: Ok(None), .. } => {
                    dir.gone.insert(name);
                    return Ok(None);
                }
                Look { seen: Err(e), .. } => e.to_string(),
            },
            // One of ours, which no user should have.
            Err(e) => e.to_string(),
        };
        let mut path = dir.path.join_bytes();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(bytes);
        self.path_waits(tx, path, Reason::Unreadable, why)?;
        Ok(None)
    }

    /// What the threads have found of the next name of a directory, if all in it is to be taken in.
    fn look_ahead(&mut self, dir: &mut DirLook) -> Option<Look> {
        if self.taking == Taking::Watch || !self.filter.is_empty() {
            return None;
        }
        let keep = self.cache_room().min(SMALL_LEN_MAX as usize);
        let readers = self.readers.get_or_insert_with(Readers::start).as_ref()?;
        dir.ahead.take((readers, &dir.fd), &dir.names, dir.next, keep)
    }

    /// A directory that is not where it is recorded was removed, or moved while others were listed.
    fn list_elsewhere(&mut self, pass: &Pass, key: &NodeKey) {
        if !pass.complete {
            self.list_when_found(key);
        } else if self.may_be_elsewhere(key) {
            // All below it would have been listed too.
            self.want_crawl = true;
        }
    }

    /// Recorded names that the listing did not show.
    fn note_missing(&mut self, tx: &mut Tx<'_>, pass: &mut Pass, dir: &DirLook) -> Result<(), Fail> {
        let mut after: Option<Name> = None;
        if dir.complete && dir.gone.is_empty() {
            // Only what comes after the last name can be missing.
            after = dir.names.len().checked_sub(1).and_then(|i| dir.names.name(i)?.ok());
        }
        loop {
            let places = tx.places_in(&dir.key, after.as_ref(), PLACES_AT_ONCE)?;
            let Some(last) = places.last().map(|p| p.0.clone()) else { return Ok(()) };
            for (name, place) in places {
                let shown = dir.names.contains(name.as_bytes()) && !dir.gone.contains(&name);
                if !shown && !self.stays_hidden(&dir.path, &name, place.claims.is_empty()) {
                    pass.missing.push((dir.key.clone(), name));
                }
            }
            after = Some(last);
        }
    }

    /// A name the filter hides is not looked at, so its absence means nothing.
    fn stays_hidden(&self, dir: &RelPath, name: &Name, is_dir: bool) -> bool {
        if self.filter.is_empty() {
            return false;
        }
        let mut path = dir.clone();
        path.push(name);
        self.filter.hides(&path, is_dir)
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
            Err(e) if is_gone(&e) => {
                self.look_when_found(dir, name);
                return Ok(());
            }
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
                let place = tx.place(dir, name)?;
                if place.is_some_and(|p| !self.stays_hidden(&path, name, p.claims.is_empty())) {
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
                if let Some(node) = tx.node(&seen.key)? {
                    pass.touched.insert(dir.clone());
                    if self.taking != Taking::Watch && !node.kind.is_dir() {
                        return self.take_link(tx, pass, fd, dir, &path, &seen);
                    }
                    pass.appeared.push((dir.clone(), seen.name.clone(), seen));
                    Ok(())
                } else if place.is_some() || self.judges_new_late(pass, &seen) {
                    pass.touched.insert(dir.clone());
                    pass.taken.push((dir.clone(), seen.name.clone(), seen));
                    Ok(())
                } else {
                    self.take_new(tx, pass, fd, dir, &path, &seen)?;
                    // The time of its directory goes with it: alone it would be a message, and a commit to the disk, ahead of a
                    // file that is closed a moment later.
                    if !self.settling.contains_key(&path.join_bytes()) {
                        pass.touched.insert(dir.clone());
                    }
                    Ok(())
                }
            }
        }
    }

    /// An inode at its recorded place: did content or attributes change?
    pub(super) fn look_at_known(
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
            // A file that could not be read when it was different may be as recorded again.
            return if seen.kind.is_dir() { Ok(()) } else { self.settle_path(tx, path) };
        }
        if self.is_kept_back(fd.key(), seen) {
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
        let at = At { dir: fd.key().clone(), name: seen.name.clone() };
        if self.keeps_back(pass, &at, &node, &looked) {
            return Ok(());
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
    pub(super) fn look_closely(
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
                let Hashed { looked, bytes, writers, copy } = *hashed;
                let settles = copy.is_none() && writers == Writers::Some && !self.shared.once;
                if settles && self.still_settling(path) {
                    return Ok(None);
                }
                self.settling.remove(&path.join_bytes());
                self.settle_path(tx, path)?;
                if writers == Writers::Some && !self.shared.once {
                    self.open_files.follow(path);
                }
                if let Some(c) = &looked.content
                    && seen.kind == Kind::File
                {
                    self.counts.hashed_bytes += c.size();
                    if let Some(copy) = copy {
                        self.copies.put(path, c.identity(), copy, Instant::now());
                    }
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
        let how = self.how_to_read(path, seen);
        if how != How::AtRest && self.copies.is_being_sent(path, Instant::now()) {
            self.look_again_after(path, SETTLE_PAUSE);
            return None;
        }
        if how == How::AtRest
            && let Some((_, found)) = self.found_ahead.take_if(|(key, _)| *key == seen.key)
        {
            return Some(found);
        }
        if !large || self.taking != Taking::Watch || self.shared.once || self.shared.dry_run {
            return Some(how.read(fd, seen, keep));
        }
        match self.hasher.ask(fd, seen, how) {
            Aside::Here(found) => Some(found),
            Aside::Later => None,
            Aside::TooMany => {
                self.look_again_after(path, SETTLE_PAUSE);
                None
            }
        }
    }

    fn how_to_read(&self, path: &RelPath, seen: &Seen) -> How {
        let tries = self.waiting.get(&Engine::path_waiter(path)).filter(|n| n.reason == Reason::Unstable);
        match tries {
            _ if seen.kind != Kind::File => How::AtRest,
            Some(needs) if needs.tries >= UNSTABLE_TRIES_MAX => How::Busy,
            _ if self.open_files.follows(path) => How::Open,
            _ => How::AtRest,
        }
    }

    /// An unknown inode at a place that is not recorded.
    pub(super) fn take_new(
        &mut self,
        tx: &mut Tx<'_>,
        pass: &mut Pass,
        fd: &DirFd,
        dir: &NodeKey,
        path: &RelPath,
        seen: &Seen,
    ) -> Result<(), Fail> {
        if self.keeps_new_back(pass, dir, seen) {
            return Ok(());
        }
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
            // Its plan removes it and says so.
            Adopted::RemovedElsewhere => {}
        }
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
