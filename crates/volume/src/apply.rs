//! Showing staged inodes, moving and removing: each primitive does its part of the limbo rule.
//!
//! Nothing destroys but a rename into limbo. What is to be replaced or removed is compared with what is expected
//! (handle and full fingerprint), and a lease says that nobody writes to it; then it is exchanged with what
//! replaces it; what came out is compared again (not the ctime: some file systems change it by the exchange), and the
//! lease is asked for again. If it is another version, it is exchanged back; where that fails it stays in limbo,
//! which is a place to keep user versions as well. Limbo is emptied by [`Directory::drop_limbo`] after the seal.
//! Directories are only ever removed by rmdir.

use crate::attrs::{self, Target, Wanted};
use crate::crash::{self, Point};
use crate::directory::Directory;
use crate::dirfd::DirFd;
use crate::error::{ApplyError, Context, Reason, VolumeError};
use crate::fault;
use crate::limbo::{LIMBO_PART, Limbo};
use crate::stage::{PrivateName, StageId, Staged};
use crate::stat::{self, CName, Look, only_mtime};
use crate::sys::{ReadLease, Writers};
use driftless_core::plan::{Outcome, Victim};
use driftless_core::{Attrs, Fingerprint, Kind, Name, NodeKey, Time};
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How often a directory's time is set against somebody who works in it at this moment: each time it takes him to do
/// so within microseconds.
const SET_TIME_TRIES_MAX: usize = 8;

/// What placing or moving gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placed {
    /// The inode now at the name.
    pub key: NodeKey,
    /// Its fingerprint right before.
    pub before: Fingerprint,
    /// Its fingerprint now; that before if it was changed meanwhile.
    pub fingerprint: Fingerprint,
    /// True if somebody changed it between the two looks. What was heard of that may name where it was before.
    pub changed: bool,
    /// Where the victim waits, if there was one (and it was no directory).
    pub limbo: Option<Limbo>,
}

/// What is being moved.
#[derive(Clone, Copy)]
struct Moved<'a> {
    key: &'a NodeKey,
    /// Set if the inode is ours alone, until it is shown: then any change of it is a user's.
    ours: Option<&'a Fingerprint>,
}

/// A name relative to an open directory; of the volume or of the private directory.
#[derive(Clone, Copy)]
pub(crate) struct Spot<'a> {
    dir: BorrowedFd<'a>,
    name: &'a CStr,
    /// The directory, if it is one of the volume.
    open: Option<&'a DirFd>,
    /// True for the victim's name in limbo: what an exchange brings out is where it belongs.
    is_limbo: bool,
}

impl<'a> Spot<'a> {
    /// A name in a directory of the volume.
    pub(crate) fn in_volume(dir: &'a DirFd, name: &'a CStr) -> Spot<'a> {
        Spot { dir: dir.as_fd(), name, open: Some(dir), is_limbo: false }
    }

    /// A name in a private directory.
    pub(crate) fn in_private(dir: BorrowedFd<'a>, name: &'a CStr) -> Spot<'a> {
        Spot { dir, name, open: None, is_limbo: false }
    }
}

impl Directory {
    /// Shows a staged inode as `name`, in place of `victim` or, without one, at a free name.
    ///
    /// # Errors
    /// [`ApplyError::Unexpected`] if the name is not free, [`ApplyError::Raced`] if the victim is not as expected,
    /// [`ApplyError::Busy`] if somebody writes to it. The staged inode then still waits in staging, unless the error
    /// names it as the one in limbo: then somebody wrote to it in the moment it was shown.
    pub fn place(
        &self,
        staged: &Staged,
        dir: &DirFd,
        name: &Name,
        victim: Option<&Victim>,
    ) -> Result<Placed, ApplyError> {
        let placed = match self.place_from(staged, dir, name, victim) {
            Err(ApplyError::CrossDevice { .. }) if staged.beside.is_none() => {
                let beside = self.restage_beside(staged, dir)?;
                let placed = self.place_from(&beside, dir, name, victim);
                // One of the two is left: the first if the second is shown, else the second.
                self.unstage(if placed.is_ok() { staged } else { &beside })?;
                placed
            }
            other => other,
        };
        placed.map_err(|e| blame_flag(e, &[dir]))
    }

    fn place_from(
        &self,
        staged: &Staged,
        dir: &DirFd,
        name: &Name,
        victim: Option<&Victim>,
    ) -> Result<Placed, ApplyError> {
        let path = staged.path();
        let from = match &staged.beside {
            Some(dir) => Spot::in_volume(dir, path.get()),
            None => Spot::in_private(self.staging_of(staged)?, path.get()),
        };
        let moved = Moved { key: &staged.key, ours: Some(&staged.fingerprint) };
        let limbo = self.take_over(from, moved, dir, name, victim, staged.id)?;
        Ok(self.moved(&staged.key, &staged.fingerprint, dir, name, limbo))
    }

    /// Removes a name: a leaf into limbo, an empty directory for good (then there is no limbo).
    ///
    /// # Errors
    /// [`ApplyError::NotEmpty`] for a directory with entries, and as [`Directory::place`].
    pub fn remove(
        &self,
        dir: &DirFd,
        name: &Name,
        victim: &Victim,
        id: StageId,
    ) -> Result<Option<Limbo>, ApplyError> {
        if victim.kind.is_dir() {
            let removed = self.remove_dir(dir, name, victim).map(|()| None);
            return removed.map_err(|e| blame_flag(e, &[dir]));
        }
        let guard = self.check_victim(dir, name, victim)?;
        let cname = CName::new(name);
        let spot = Spot::in_volume(dir, cname.get());
        // What is open is no other inode with its number.
        let held = guard.as_ref().map(|_| &victim.node);
        let (limbo_name, limbo) = self.to_limbo(spot, id, held).map_err(|e| blame_flag(e, &[dir]))?;
        crash::at(Point::Removed);
        let private = self.private()?;
        let now_at = match limbo.beside {
            Some(_) => dir.as_fd(),
            None => private.limbo.as_fd(),
        };
        match self.check_moved((&limbo.key, limbo.size, limbo.mtime), victim, guard.as_ref()) {
            Ok(writers) => Ok(Some(Limbo { writers, ..limbo })),
            Err(()) => {
                let back = self.rename(now_at, limbo_name.get(), dir.as_fd(), cname.get());
                let limbo = back.is_err().then(|| Box::new(limbo));
                Err(ApplyError::Raced { name: name.as_bytes().to_vec(), limbo })
            }
        }
    }

    fn remove_dir(&self, dir: &DirFd, name: &Name, victim: &Victim) -> Result<(), ApplyError> {
        let doing = "remove the directory";
        let look = match dir.look_raw(name) {
            Err(Errno::NOENT) => return Err(ApplyError::raced(name.as_bytes())),
            other => other.doing(doing, name.as_bytes())?,
        };
        if look.key != victim.node || !look.kind().is_dir() {
            return Err(ApplyError::raced(name.as_bytes()));
        }
        refuse_fixed(doing, name, &look)?;
        let cname = CName::new(name);
        match self.in_writable(&[Some(dir)], || rustix::fs::unlinkat(dir, cname.get(), AtFlags::REMOVEDIR)) {
            // Some file systems say "exists" for "not empty".
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                Err(ApplyError::NotEmpty { name: name.as_bytes().to_vec() })
            }
            Err(Errno::NOENT | Errno::NOTDIR) => Err(ApplyError::raced(name.as_bytes())),
            other => {
                crash::at(Point::DirRemoved);
                Ok(other.doing(doing, name.as_bytes())?)
            }
        }
    }

    /// Moves an inode to another name, in place of `victim` or, without one, to a free name. `id` names the victim in
    /// limbo.
    ///
    /// # Errors
    /// [`ApplyError::Raced`] if `from` is not `key`, and as [`Directory::place`].
    #[allow(clippy::too_many_arguments, reason = "two places, what is moved, what is replaced")]
    pub fn rename_node(
        &self,
        from_dir: &DirFd,
        from_name: &Name,
        to_dir: &DirFd,
        to_name: &Name,
        key: &NodeKey,
        victim: Option<&Victim>,
        id: StageId,
    ) -> Result<Placed, ApplyError> {
        let look = self.look_expected(from_dir, from_name, key)?;
        fault::before_move();
        refuse_fixed("move", from_name, &look)?;
        let cname = CName::new(from_name);
        let from = Spot::in_volume(from_dir, cname.get());
        let limbo = self
            .take_over(from, Moved { key, ours: None }, to_dir, to_name, victim, id)
            .map_err(|e| blame_flag(e, &[from_dir, to_dir]))?;
        Ok(self.moved(key, &look.fingerprint(), to_dir, to_name, limbo))
    }

    /// What was just moved to `name`. Its new ctime counts only if size and mtime are those it had: else somebody has
    /// written already, or taken it away, and must be seen to have.
    fn moved(
        &self,
        key: &NodeKey,
        before: &Fingerprint,
        dir: &DirFd,
        name: &Name,
        limbo: Option<Limbo>,
    ) -> Placed {
        let now = stat::stat_name(dir, CName::new(name).get()).map(|stat| stat::fingerprint_of(&stat));
        let same = now.ok().filter(|now| (now.size, now.mtime) == (before.size, before.mtime));
        let (fingerprint, changed) = (same.unwrap_or(*before), same.is_none());
        Placed { key: key.clone(), before: *before, fingerprint, changed, limbo }
    }

    fn look_expected(&self, dir: &DirFd, name: &Name, key: &NodeKey) -> Result<Look, ApplyError> {
        match dir.look_raw(name) {
            Ok(look) if look.key == *key => Ok(look),
            Ok(_) | Err(Errno::NOENT) => Err(ApplyError::raced(name.as_bytes())),
            Err(e) => Err(VolumeError::sys("look at", name.as_bytes(), e).into()),
        }
    }

    /// Gives a leaf another name, in place of `victim` or, without one, at a free name. `id` names the new link, and then
    /// the victim, in limbo.
    ///
    /// # Errors
    /// As [`Directory::rename_node`].
    #[allow(clippy::too_many_arguments, reason = "two places, what is linked, what is replaced")]
    pub fn link_node(
        &self,
        from_dir: &DirFd,
        from_name: &Name,
        to_dir: &DirFd,
        to_name: &Name,
        key: &NodeKey,
        victim: Option<&Victim>,
        id: StageId,
    ) -> Result<Placed, ApplyError> {
        let look = self.look_expected(from_dir, from_name, key)?;
        refuse_fixed("link", from_name, &look)?;
        let source = CName::new(from_name);
        let beside = id.beside(LIMBO_PART);
        let (private, is_limbo) = (self.private()?, self.0.capabilities.exchange);
        let (dir, name) =
            if is_limbo { (&private.limbo, id.name()) } else { (&private.staging, id.staged_name()) };
        let private = Spot { is_limbo, ..Spot::in_private(dir.as_fd(), name.get()) };
        let link = |to: &Spot<'_>| {
            let link = || rustix::fs::linkat(from_dir, source.get(), to.dir, to.name, AtFlags::empty());
            self.in_writable(&[to.open], link)
        };
        let (temporary, linked) = match link(&private) {
            Err(Errno::XDEV) => {
                let beside = Spot { is_limbo, ..Spot::in_volume(to_dir, beside.get()) };
                (beside, link(&beside))
            }
            other => (private, other),
        };
        match linked {
            Err(Errno::NOENT) => return Err(ApplyError::raced(from_name.as_bytes())),
            other => other.doing("link", from_name.as_bytes())?,
        }
        crash::at(Point::Linked);
        let limbo = self
            .show_link(temporary, key, to_dir, to_name, victim, id)
            .map_err(|e| blame_flag(e, &[to_dir]))?;
        Ok(self.moved(key, &look.fingerprint(), to_dir, to_name, limbo))
    }

    /// Moves a link just made to its place; if that fails, takes it away again.
    fn show_link(
        &self,
        from: Spot<'_>,
        key: &NodeKey,
        to_dir: &DirFd,
        to_name: &Name,
        victim: Option<&Victim>,
        id: StageId,
    ) -> Result<Option<Limbo>, ApplyError> {
        let linked = stat::look_name(self.0.capabilities.identity, from.dir, from.name);
        let shown = match linked {
            Ok(linked) if linked.key == *key => {
                self.take_over(from, Moved { key, ours: None }, to_dir, to_name, victim, id)
            }
            _ => Err(ApplyError::raced(to_name.as_bytes())),
        };
        if shown.is_err() {
            let left = stat::look_name(self.0.capabilities.identity, from.dir, from.name);
            // Only a name that is one of several goes: never the last one of a user's file.
            if left.is_ok_and(|left| left.key == *key && left.stat.stx_nlink > 1) {
                let _ = rustix::fs::unlinkat(from.dir, from.name, AtFlags::empty());
            }
        }
        shown
    }

    /// Makes a directory at a free name.
    ///
    /// # Errors
    /// [`ApplyError::Unexpected`] if the name is not free.
    pub fn make_dir(&self, dir: &DirFd, name: &Name, attrs: &Attrs) -> Result<Outcome, ApplyError> {
        let cname = CName::new(name);
        let mode = Mode::from_raw_mode(0o700);
        match self.in_writable(&[Some(dir)], || rustix::fs::mkdirat(dir, cname.get(), mode)) {
            Err(Errno::EXIST) => return Err(self.unexpected(dir, name)),
            other => {
                let made = other.doing("make the directory", name.as_bytes());
                made.map_err(|e| blame_flag(e.into(), &[dir]))?;
            }
        }
        crash::at(Point::DirMade);
        self.fit_out_dir(dir, name, attrs).inspect_err(|_| {
            // A half-made directory would be in the way of the next try. If somebody uses it already, it stays.
            let _ = rustix::fs::unlinkat(dir, cname.get(), AtFlags::REMOVEDIR);
        })
    }

    pub(crate) fn fit_out_dir(&self, dir: &DirFd, name: &Name, attrs: &Attrs) -> Result<Outcome, ApplyError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir, CName::new(name).get(), flags, Mode::empty());
        let fd = fd.doing("open the directory", name.as_bytes())?;
        let wanted = Wanted { kind: Kind::Dir, attrs, mtime: attrs.dir_mtime };
        let identity = self.0.capabilities.identity;
        let (look, given) = attrs::apply_and_look(&Target::Open(&fd), &wanted, identity, name.as_bytes())?;
        Ok(Outcome { fingerprint: look.fingerprint(), node: look.key, given })
    }

    /// Sets the attributes of an inode, and with `mtime` its time. With `expected`, only if it still has this
    /// fingerprint: setting a time must not hide that somebody has written.
    ///
    /// What may not be set is left as it is; the outcome says what was given back.
    ///
    /// # Errors
    /// [`ApplyError::Raced`] if it is not `key` or its fingerprint not as expected, [`ApplyError::Busy`] if somebody
    /// writes to it and a time is to be set.
    #[allow(clippy::too_many_arguments, reason = "a place, what is expected there, what to set")]
    pub fn set_attrs(
        &self,
        dir: &DirFd,
        name: &Name,
        key: &NodeKey,
        kind: Kind,
        attrs: &Attrs,
        mtime: Option<Time>,
        expected: Option<&Fingerprint>,
    ) -> Result<Outcome, ApplyError> {
        let doing = "open";
        let path = match dir.open_path(name) {
            Err(Errno::NOENT) => return Err(ApplyError::raced(name.as_bytes())),
            other => other.doing(doing, name.as_bytes())?,
        };
        let before = dir.look_at(&path).doing(doing, name.as_bytes())?;
        let as_expected = expected.is_none_or(|expected| *expected == before.fingerprint());
        if before.key != *key || before.kind() != kind || !as_expected {
            return Err(ApplyError::raced(name.as_bytes()));
        }
        refuse_fixed("set the attributes of", name, &before)?;
        let open = self.reopen_to_read(&path, kind);
        // A time that is right already is not set again: that would hide what somebody writes at this moment.
        let mtime = mtime.filter(|time| *time != before.fingerprint().mtime);
        // While it is held nobody begins to write, so no write can hide behind the time that is set.
        let _lease = match (&open, mtime) {
            (Some(fd), Some(_)) if kind == Kind::File => match ReadLease::take(fd.as_fd()) {
                Ok(lease) => {
                    let now = stat::stat_fd(fd).doing(doing, name.as_bytes())?;
                    if stat::fingerprint_of(&now) != before.fingerprint() {
                        return Err(ApplyError::raced(name.as_bytes()));
                    }
                    Some(lease)
                }
                Err(Writers::Some) => return Err(ApplyError::Busy { name: name.as_bytes().to_vec() }),
                Err(_) => None,
            },
            _ => None,
        };
        let target = open.as_ref().map_or(Target::Path(&path), Target::Open);
        let mtime = mtime.or(attrs.dir_mtime.filter(|_| kind.is_dir()));
        let wanted = Wanted { kind, attrs, mtime };
        let identity = self.0.capabilities.identity;
        let (after, given) = attrs::apply_and_look(&target, &wanted, identity, name.as_bytes())?;
        let (old, new) = (before.fingerprint(), after.fingerprint());
        let untouched = new.size == old.size && (mtime.is_some() || new.mtime == old.mtime);
        Ok(Outcome { node: after.key, fingerprint: if untouched { new } else { old }, given })
    }

    /// Sets the attributes of the root directory.
    pub fn set_root_attrs(&self, attrs: &Attrs) -> Result<Outcome, VolumeError> {
        let root = self.dir(&[], None)?;
        let fd = root.as_fd().try_clone_to_owned().map_err(|_| Errno::MFILE).doing("open", b".")?;
        let wanted = Wanted { kind: Kind::Dir, attrs, mtime: attrs.dir_mtime };
        let identity = self.0.capabilities.identity;
        let (look, given) = attrs::apply_and_look(&Target::Open(&fd), &wanted, identity, b".")?;
        Ok(Outcome { node: look.key.clone(), fingerprint: look.fingerprint(), given })
    }

    /// Sets only the modification time of an open directory; gives its fingerprint after that.
    ///
    /// Another time than was set is given back by file systems with coarse times, which always give the same one, and
    /// by chance when somebody works in the directory at this moment. That must not be taken for what was given back.
    pub fn set_dir_mtime(&self, dir: &DirFd, mtime: Time) -> Result<Fingerprint, VolumeError> {
        let doing = "set the time of the directory";
        let mut before = None;
        for _ in 0..SET_TIME_TRIES_MAX {
            let set = match rustix::fs::futimens(dir, &only_mtime(mtime)) {
                Ok(()) => true,
                // Not ours: what is given back says so.
                Err(Errno::PERM | Errno::ACCESS) => false,
                Err(e) => return Err(VolumeError::sys(doing, b"", e)),
            };
            let now = stat::fingerprint_of(&stat::stat_fd(dir).doing(doing, b"")?);
            if !set || now.mtime == mtime || before == Some(now.mtime) {
                return Ok(now);
            }
            before = Some(now.mtime);
        }
        Err(VolumeError::sys(doing, b"", Errno::AGAIN))
    }

    /// Moves an inode out of the way, into limbo under a name that [`Directory::unpark`] knows; into the root directory,
    /// under a reserved name, where the file system does not rename into limbo.
    ///
    /// # Errors
    /// [`ApplyError::Raced`] if it is not `key`; [`ApplyError::CrossDevice`] where the file system renames to neither.
    pub fn park(&self, dir: &DirFd, name: &Name, key: &NodeKey, id: StageId) -> Result<(), ApplyError> {
        let look = self.look_expected(dir, name, key)?;
        refuse_fixed("park", name, &look)?;
        let cname = CName::new(name);
        let [limbo, root] = self.parking_places(id)?;
        let rename = |to: &(BorrowedFd<'_>, PrivateName)| {
            let rename = || self.rename_away(dir.as_fd(), cname.get(), to.0, to.1.get());
            self.in_writable(&[Some(dir)], rename)
        };
        let (parked, done) = match rename(&limbo) {
            Err(Errno::XDEV) => (&root, rename(&root)),
            other => (&limbo, other),
        };
        done.doing("park", name.as_bytes()).map_err(|e| blame_flag(e.into(), &[dir]))?;
        crash::at(Point::Parked);
        let look = stat::look_name(self.0.capabilities.identity, parked.0, parked.1.get());
        if look.is_ok_and(|look| look.key == *key) {
            return Ok(());
        }
        // If its name was taken meanwhile, it stays parked, where it is listed.
        let _ = self.rename(parked.0, parked.1.get(), dir.as_fd(), cname.get());
        Err(ApplyError::raced(name.as_bytes()))
    }

    /// Moves a parked inode to its place, over `victim` or, without one, to a free name. `limbo` names the victim in
    /// limbo.
    pub fn unpark(
        &self,
        id: StageId,
        key: &NodeKey,
        dir: &DirFd,
        name: &Name,
        victim: Option<&Victim>,
        limbo: StageId,
    ) -> Result<Placed, ApplyError> {
        let [first, second] = self.parking_places(id)?;
        let look_in = |place: &(BorrowedFd<'_>, PrivateName)| {
            stat::look_name(self.0.capabilities.identity, place.0, place.1.get())
        };
        let (parked, look) = match look_in(&first) {
            Err(Errno::NOENT) => (&second, look_in(&second)),
            other => (&first, other),
        };
        let from = Spot::in_private(parked.0, parked.1.get());
        let look = look.doing("unpark", name.as_bytes())?;
        if look.key != *key {
            return Err(ApplyError::raced(name.as_bytes()));
        }
        let limbo = self
            .take_over(from, Moved { key, ours: None }, dir, name, victim, limbo)
            .map_err(|e| blame_flag(e, &[dir]))?;
        Ok(self.moved(key, &look.fingerprint(), dir, name, limbo))
    }

    /// Puts what `from` is (`moved`) to `name`, and the victim, if any, into limbo.
    fn take_over(
        &self,
        from: Spot<'_>,
        moved: Moved<'_>,
        dir: &DirFd,
        name: &Name,
        victim: Option<&Victim>,
        id: StageId,
    ) -> Result<Option<Limbo>, ApplyError> {
        match victim {
            Some(victim) if !victim.kind.is_dir() => {
                let guard = self.check_victim(dir, name, victim)?;
                if self.0.capabilities.exchange {
                    self.exchange(from, moved, dir, name, victim, guard.as_ref(), id).map(Some)
                } else {
                    self.replace_without_exchange(from, dir, name, victim, id).map(Some)
                }
            }
            Some(victim) => {
                self.remove_dir(dir, name, victim)?;
                self.move_to_free(from, moved, dir, name).map(|()| None)
            }
            None => self.move_to_free(from, moved, dir, name).map(|()| None),
        }
    }

    fn move_to_free(
        &self,
        from: Spot<'_>,
        moved: Moved<'_>,
        dir: &DirFd,
        name: &Name,
    ) -> Result<(), ApplyError> {
        let to = CName::new(name);
        let rename = || self.rename(from.dir, from.name, dir.as_fd(), to.get());
        match self.in_writable(&[from.open, Some(dir)], rename) {
            Err(Errno::EXIST) => return Err(self.unexpected(dir, name)),
            Err(Errno::NOENT) => return Err(ApplyError::raced(name.as_bytes())),
            other => other.doing("move to", name.as_bytes())?,
        }
        crash::at(Point::Moved);
        // From the private directory only we move; from the volume somebody may have been faster.
        if from.open.is_some() && !dir.look_raw(name).is_ok_and(|look| look.key == *moved.key) {
            // If it does not go back, it is still a user's file at a name of the volume: it is looked at.
            let _ = self.rename(dir.as_fd(), to.get(), from.dir, from.name);
            return Err(ApplyError::raced(name.as_bytes()));
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments, reason = "two places, what is moved, what is replaced")]
    fn exchange(
        &self,
        from: Spot<'_>,
        moved: Moved<'_>,
        dir: &DirFd,
        name: &Name,
        victim: &Victim,
        guard: Option<&OwnedFd>,
        id: StageId,
    ) -> Result<Limbo, ApplyError> {
        let to = CName::new(name);
        let swap = || rustix::fs::renameat_with(from.dir, from.name, dir, to.get(), RenameFlags::EXCHANGE);
        match self.in_writable(&[from.open, Some(dir)], swap) {
            Err(Errno::NOENT) => return Err(ApplyError::raced(name.as_bytes())),
            other => other.doing("replace", name.as_bytes())?,
        }
        crash::at(Point::Exchanged);
        match self.check_out(from.dir, from.name, victim, guard) {
            Ok(writers) => match self.to_limbo(from, id, None) {
                // What it is expected to be: between the look and the rename somebody may have opened it, by the name
                // that the inode which was moved had, and written to it.
                Ok((_, limbo)) => {
                    crash::at(Point::InLimbo);
                    let Fingerprint { size, mtime, .. } = victim.fingerprint;
                    Ok(Limbo { writers, size, mtime, ..limbo })
                }
                Err(e) => {
                    self.put_back(swap, from, moved, name, id);
                    Err(e)
                }
            },
            Err(_) => Err(self.put_back(swap, from, moved, name, id)),
        }
    }

    /// What came out of an exchange is a user's version: it goes back. What then comes out must be ours, else it is
    /// another user's version and stays in limbo.
    fn put_back(
        &self,
        swap: impl Fn() -> Result<(), Errno>,
        from: Spot<'_>,
        moved: Moved<'_>,
        name: &Name,
        id: StageId,
    ) -> ApplyError {
        let swapped = swap();
        let out = stat::look_name(self.0.capabilities.identity, from.dir, from.name);
        let raced = |limbo| ApplyError::Raced { name: name.as_bytes().to_vec(), limbo };
        match (swapped, out) {
            (Ok(()), Ok(look)) if self.is_untouched(&from, moved, &look) => raced(None),
            (_, Ok(_)) => raced(self.to_limbo(from, id, None).ok().map(|(_, limbo)| Box::new(limbo))),
            (_, Err(_)) => raced(None),
        }
    }

    /// True if `look`, taken at `from`, is what was moved, and if it is ours, nobody wrote to it while it was shown.
    fn is_untouched(&self, from: &Spot<'_>, moved: Moved<'_>, look: &Look) -> bool {
        let Some(ours) = moved.ours.filter(|_| look.kind() == Kind::File) else {
            return look.key == *moved.key;
        };
        let now = look.fingerprint();
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = rustix::fs::openat(from.dir, from.name, flags, Mode::empty());
        look.key == *moved.key
            && (now.size, now.mtime) == (ours.size, ours.mtime)
            && open.is_ok_and(|fd| self.writers(fd) != Writers::Some)
    }

    /// Without `RENAME_EXCHANGE`: a second name in limbo keeps the victim, then a plain rename replaces it. Between
    /// the two somebody may put another file there, which would be lost; the volume's `doctor` says so.
    fn replace_without_exchange(
        &self,
        from: Spot<'_>,
        dir: &DirFd,
        name: &Name,
        victim: &Victim,
        id: StageId,
    ) -> Result<Limbo, ApplyError> {
        let limbo = self.private()?.limbo.as_fd();
        let (to, kept) = (CName::new(name), id.name());
        rustix::fs::linkat(dir, to.get(), limbo, kept.get(), AtFlags::empty())
            .doing("keep", name.as_bytes())?;
        let look = match stat::look_name(self.0.capabilities.identity, limbo, kept.get()) {
            Ok(look) if look.key == victim.node => look,
            _ => {
                // A second name of what is still at `name`.
                let _ = rustix::fs::unlinkat(limbo, kept.get(), AtFlags::empty());
                return Err(ApplyError::raced(name.as_bytes()));
            }
        };
        let rename = || rustix::fs::renameat(from.dir, from.name, dir, to.get());
        self.in_writable(&[from.open, Some(dir)], rename).doing("replace", name.as_bytes())?;
        Ok(Limbo::of(id, look, None))
    }

    /// Compares what is at `name` with the victim expected, and asks whether somebody writes to it. Gives the open file
    /// to ask again.
    fn check_victim(&self, dir: &DirFd, name: &Name, victim: &Victim) -> Result<Option<OwnedFd>, ApplyError> {
        let (open, look) = match victim.kind {
            Kind::File => self.open_victim(dir, name, victim)?,
            _ => (None, self.look_at_victim(dir, name, victim)?),
        };
        if look.key != victim.node || look.fingerprint() != victim.fingerprint || look.kind() != victim.kind {
            return Err(ApplyError::raced(name.as_bytes()));
        }
        refuse_fixed("replace", name, &look)?;
        match open.as_ref().map(|fd| self.writers(fd)) {
            Some(Writers::Some) => Err(ApplyError::Busy { name: name.as_bytes().to_vec() }),
            _ => Ok(open),
        }
    }

    fn look_at_victim(&self, dir: &DirFd, name: &Name, victim: &Victim) -> Result<Look, ApplyError> {
        let expected = (&victim.node, &victim.fingerprint);
        let cname = CName::new(name);
        match stat::look_name_expecting(self.0.capabilities.identity, dir, cname.get(), expected) {
            Err(Errno::NOENT) => Err(ApplyError::raced(name.as_bytes())),
            other => Ok(other.doing("look at", name.as_bytes())?),
        }
    }

    /// Opens a file that is to be replaced or removed and looks at what is open. Where it may not be read it is only looked at.
    fn open_victim(
        &self,
        dir: &DirFd,
        name: &Name,
        victim: &Victim,
    ) -> Result<(Option<OwnedFd>, Look), ApplyError> {
        // First, for opening some things does something to them.
        let look = self.look_at_victim(dir, name, victim)?;
        if look.kind() != Kind::File {
            return Ok((None, look));
        }
        let Ok(open) = dir.open_file(name) else { return Ok((None, look)) };
        let expected = (&victim.node, &victim.fingerprint);
        let look = stat::look_fd_expecting(self.0.capabilities.identity, &open, expected);
        Ok((Some(open), look.doing("look at", name.as_bytes())?))
    }

    /// Compares what came out with the victim: not the ctime. `Err` if it is something else or somebody writes to it.
    fn check_out(
        &self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        victim: &Victim,
        guard: Option<&OwnedFd>,
    ) -> Result<Writers, ()> {
        let look = stat::look_name(self.0.capabilities.identity, dir, name).map_err(drop)?;
        let now = look.fingerprint();
        self.check_moved((&look.key, now.size, now.mtime), victim, guard)
    }

    /// As [`Directory::check_out`], of what has been looked at since it came out.
    fn check_moved(
        &self,
        (key, size, mtime): (&NodeKey, u64, Time),
        victim: &Victim,
        guard: Option<&OwnedFd>,
    ) -> Result<Writers, ()> {
        let same =
            *key == victim.node && (size, mtime) == (victim.fingerprint.size, victim.fingerprint.mtime);
        let writers = match guard {
            Some(fd) => self.writers(fd),
            None if victim.kind == Kind::File => Writers::Unknown,
            None => Writers::None,
        };
        if same && writers != Writers::Some { Ok(writers) } else { Err(()) }
    }

    /// The same inode, opened for reading; `None` where that is not allowed or has no meaning.
    fn reopen_to_read(&self, path: &OwnedFd, kind: Kind) -> Option<OwnedFd> {
        use std::os::fd::AsRawFd;
        let flags = match kind {
            Kind::File => OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
            Kind::Dir => OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            _ => return None,
        };
        let name = format!("/proc/self/fd/{}", path.as_raw_fd());
        rustix::fs::open(name.as_str(), flags, Mode::empty()).ok()
    }

    /// Renames into limbo; beside itself, under a reserved name, where the file system does not rename there. `held`: what it most
    /// probably is, if that is open.
    pub(crate) fn to_limbo(
        &self,
        from: Spot<'_>,
        id: StageId,
        held: Option<&NodeKey>,
    ) -> Result<(PrivateName, Limbo), ApplyError> {
        let doing = "move into limbo";
        let private = self.private()?.limbo.as_fd();
        let rename = || self.rename_away(from.dir, from.name, private, id.name().get());
        let (dir, name, beside) = if from.is_limbo {
            let name = from.open.map_or(id.name(), |_| id.beside(LIMBO_PART));
            (from.dir, name, from.open)
        } else {
            match (self.in_writable(&[from.open], rename), from.open) {
                (Ok(()), _) => (private, id.name(), None),
                (Err(Errno::XDEV), Some(dir)) => {
                    let name = id.beside(LIMBO_PART);
                    let renamed = self.rename_away(from.dir, from.name, from.dir, name.get());
                    renamed.doing(doing, from.name.to_bytes())?;
                    (from.dir, name, Some(dir))
                }
                (Err(Errno::NOENT), _) => return Err(ApplyError::raced(from.name.to_bytes())),
                (Err(e), _) => return Err(VolumeError::sys(doing, from.name.to_bytes(), e).into()),
            }
        };
        let look = match held {
            Some(key) => stat::look_name_held(self.0.capabilities.identity, dir, name.get(), key),
            None => stat::look_name(self.0.capabilities.identity, dir, name.get()),
        };
        let look = look.doing("look at in limbo", from.name.to_bytes())?;
        Ok((name, Limbo::of(id, look, beside.map(|dir| dir.key().clone()))))
    }

    /// Renames to a name that only we use, over nothing.
    pub(crate) fn rename_away(
        &self,
        from_dir: BorrowedFd<'_>,
        from: &CStr,
        to_dir: BorrowedFd<'_>,
        to: &CStr,
    ) -> Result<(), Errno> {
        if self.0.capabilities.noreplace {
            return self.rename(from_dir, from, to_dir, to);
        }
        // Nobody can take the name between the two.
        match stat::stat_name(to_dir, to) {
            Err(Errno::NOENT) => rustix::fs::renameat(from_dir, from, to_dir, to),
            Err(e) => Err(e),
            Ok(_) => Err(Errno::EXIST),
        }
    }

    /// Renames, over nothing.
    pub(crate) fn rename(
        &self,
        from_dir: BorrowedFd<'_>,
        from: &CStr,
        to_dir: BorrowedFd<'_>,
        to: &CStr,
    ) -> Result<(), Errno> {
        if self.0.capabilities.noreplace {
            return rustix::fs::renameat_with(from_dir, from, to_dir, to, RenameFlags::NOREPLACE);
        }
        // A link never replaces; a directory cannot be linked, but its rename only ever replaces an empty directory.
        match rustix::fs::linkat(from_dir, from, to_dir, to, AtFlags::empty()) {
            Ok(()) => rustix::fs::unlinkat(from_dir, from, AtFlags::empty()),
            Err(Errno::PERM) => match stat::stat_name(to_dir, to) {
                Err(Errno::NOENT) => rustix::fs::renameat(from_dir, from, to_dir, to),
                Err(e) => Err(e),
                Ok(_) => Err(Errno::EXIST),
            },
            Err(e) => Err(e),
        }
    }

    pub(crate) fn unexpected(&self, dir: &DirFd, name: &Name) -> ApplyError {
        let seen = dir.look(name).ok().flatten().map(Box::new);
        ApplyError::Unexpected { seen }
    }

    /// Does `act`; if that is refused because directories of our own are not writable for us, makes them writable for
    /// the moment. (Replicating a read-only directory means writing into one.)
    pub(crate) fn in_writable(
        &self,
        dirs: &[Option<&DirFd>],
        act: impl Fn() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        match act() {
            Err(Errno::ACCESS) if self.0.uid != 0 => {}
            other => return other,
        }
        let mut opened = Vec::new();
        for dir in dirs.iter().flatten() {
            let stat = stat::stat_fd(dir)?;
            let mode = u32::from(stat.stx_mode) & 0o7777;
            if stat.stx_uid == self.0.uid && mode & 0o300 != 0o300 {
                rustix::fs::fchmod(dir, Mode::from_raw_mode(mode | 0o300))?;
                opened.push((dir, mode));
            }
        }
        let result = if opened.is_empty() { Err(Errno::ACCESS) } else { act() };
        for (dir, mode) in opened {
            rustix::fs::fchmod(dir, Mode::from_raw_mode(mode))?;
        }
        result
    }
}

impl Directory {
    /// Where an inode may be parked: in limbo, else in the root directory.
    pub(crate) fn parking_places(
        &self,
        id: StageId,
    ) -> Result<[(BorrowedFd<'_>, PrivateName); 2], VolumeError> {
        let mut name = PrivateName::empty();
        name.push(PARK_PART.as_bytes());
        name.push(id.to_string().as_bytes());
        Ok([(self.private()?.limbo.as_fd(), name), (self.0.root.as_fd(), id.beside(PARK_PART))])
    }
}

/// Part of the name of a parked inode.
const PARK_PART: &str = "park-";

/// What has an immutable or append-only flag cannot be moved, replaced or changed, not even by root.
fn refuse_fixed(doing: &'static str, name: &Name, look: &Look) -> Result<(), ApplyError> {
    if stat::is_fixed(&look.stat) {
        return Err(VolumeError::own(doing, name.as_bytes(), Reason::Fixed).into());
    }
    Ok(())
}

/// "Not permitted" in a directory with such a flag is the flag's doing.
fn blame_flag(e: ApplyError, dirs: &[&DirFd]) -> ApplyError {
    let denied = matches!(&e, ApplyError::Volume(v) if v.errno == Some(Errno::PERM.raw_os_error()));
    let flagged = |dir: &&DirFd| stat::stat_fd(dir).is_ok_and(|stat| stat::is_fixed(&stat));
    match e {
        ApplyError::Volume(v) if denied && dirs.iter().any(flagged) => {
            VolumeError { reason: Reason::Fixed, errno: None, ..v }.into()
        }
        e => e,
    }
}
