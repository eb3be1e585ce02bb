//! New directories are staged with what is in them, and shown by one rename.
//!
//! A file costs two names otherwise, one in staging and one in its place, and a second look because the rename changes its
//! change time. Only files for free names are shown this way: nothing that was in the tree ever comes here, so whatever
//! lies here after a crash was never shown and goes.

use crate::directory::Directory;
use crate::dirfd::{DirFd, names_in};
use crate::error::{ApplyError, Context, Reason, VolumeError};
use crate::stage::{StageId, Staged};
use crate::stat::CName;
use crate::watch::Unheard;
use driftless_core::plan::Outcome;
use driftless_core::{Attrs, Kind, Name, NodeKey, Time};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::CString;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where they are, in staging.
pub(crate) const DIRS: &[u8] = b"dirs";

/// A directory in staging. It goes with the last that speaks of it, unless it was shown.
pub struct StagedDir {
    volume: Directory,
    id: StageId,
    key: NodeKey,
    /// What we do in it is of no interest to the watcher.
    unheard: Unheard,
    shown: AtomicBool,
}

impl StagedDir {
    /// Its identity.
    pub fn key(&self) -> &NodeKey {
        &self.key
    }

    /// True once it was shown, with everything in it.
    pub fn is_shown(&self) -> bool {
        self.shown.load(Ordering::Acquire)
    }

    /// Its place, or that of a file in it, below the directory of all of them.
    pub(crate) fn path(&self, name: Option<&Name>) -> CString {
        let mut path = self.id.to_string().into_bytes();
        if let Some(name) = name {
            path.push(b'/');
            path.extend_from_slice(name.as_bytes());
        }
        // Names hold no NUL.
        CString::new(path).unwrap_or_default()
    }
}

impl fmt::Debug for StagedDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StagedDir").field(&self.id).field(&self.is_shown()).finish()
    }
}

impl Drop for StagedDir {
    fn drop(&mut self) {
        if !self.is_shown()
            && let Ok(dirs) = self.volume.staged_dirs()
        {
            // If something is still in it, the next start sweeps it.
            let _ = rustix::fs::unlinkat(dirs, self.path(None), AtFlags::REMOVEDIR);
        }
    }
}

impl Directory {
    pub(crate) fn staged_dirs(&self) -> Result<BorrowedFd<'_>, VolumeError> {
        let dirs = self.private()?.staged_dirs.as_ref();
        Ok(dirs.ok_or_else(|| VolumeError::own("stage a directory", b"", Reason::ReadOnly))?.as_fd())
    }

    /// A new directory in staging, for files that [`Directory::stage_small_within`] puts there.
    pub fn stage_dir(&self, id: StageId) -> Result<Arc<StagedDir>, VolumeError> {
        let doing = "stage the directory";
        let subject = id.to_string();
        let dirs = self.staged_dirs()?;
        let made = rustix::fs::mkdirat(dirs, subject.as_str(), Mode::from_raw_mode(0o700));
        made.doing(doing, subject.as_bytes())?;
        let name = CString::new(subject.as_str()).unwrap_or_default();
        let look = crate::stat::look_name(self.capabilities().identity, dirs, &name);
        let key = look.doing(doing, subject.as_bytes())?.key;
        let unheard = Unheard::begin(self.watched_by(), dirs, &name);
        Ok(Arc::new(StagedDir { volume: self.clone(), id, key, unheard, shown: AtomicBool::new(false) }))
    }

    /// As [`Directory::stage_small`], in a staged directory under the name that it is to have.
    pub fn stage_small_within(
        &self,
        dir: &Arc<StagedDir>,
        name: &Name,
        id: StageId,
        bytes: &[u8],
        (attrs, mtime): (&Attrs, Time),
    ) -> Result<Staged, VolumeError> {
        let made = self.stage_small_in(self.staged_dirs()?, &dir.path(Some(name)), bytes, attrs, mtime);
        let (look, given) = made.doing("write", id.to_string().as_bytes())?;
        let within = Some((Arc::clone(dir), name.clone()));
        Ok(Staged {
            id,
            kind: Kind::File,
            fingerprint: look.fingerprint(),
            key: look.key,
            given,
            beside: None,
            within,
        })
    }

    /// Takes a file out of its staged directory, to a name of its own in staging: where it is to be shown is not in that
    /// directory, or something is there.
    pub fn take_out(&self, staged: Staged) -> Result<Staged, VolumeError> {
        let Some((dir, name)) = &staged.within else { return Ok(staged) };
        let staging = self.private()?.staging.as_fd();
        let out = staged.id.staged_name();
        self.rename_away(self.staged_dirs()?, &dir.path(Some(name)), staging, out.get())
            .doing("take out of the staged directory", name.as_bytes())?;
        Ok(Staged { within: None, ..staged })
    }

    /// Shows a staged directory at a free name, with the files `names` in it and nothing else.
    ///
    /// # Errors
    /// [`ApplyError::Unexpected`] if the name is not free; nothing is shown then. So with any other error.
    pub fn place_dir(
        &self,
        staged: &StagedDir,
        dir: &DirFd,
        name: &Name,
        attrs: &Attrs,
        names: &HashSet<Name>,
    ) -> Result<Outcome, ApplyError> {
        let dirs = self.staged_dirs()?;
        let path = staged.path(None);
        self.keep_only(staged, names)?;
        let to = CName::new(name);
        match self.in_writable(&[Some(dir)], || self.rename_away(dirs, &path, dir.as_fd(), to.get())) {
            Err(Errno::EXIST | Errno::NOTEMPTY) => return Err(self.unexpected(dir, name)),
            other => other.doing("move to", name.as_bytes())?,
        }
        let outcome = self.fit_out_dir(dir, name, attrs).inspect_err(|_| {
            // Half-made: not shown. If it cannot be taken back, its files are found as files that nobody recorded.
            let _ = self.rename_away(dir.as_fd(), to.get(), dirs, &path);
        })?;
        staged.shown.store(true, Ordering::Release);
        Ok(outcome)
    }

    /// Removes from a staged directory what is not to be shown: files of states that were overtaken.
    fn keep_only(&self, staged: &StagedDir, names: &HashSet<Name>) -> Result<(), VolumeError> {
        let doing = "look into the staged directory";
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let subject = staged.id.to_string();
        let opened = rustix::fs::openat(self.staged_dirs()?, staged.path(None), flags, Mode::empty());
        let fd = opened.doing(doing, subject.as_bytes())?;
        let mut kept = 0;
        for found in names_in(&fd).doing(doing, subject.as_bytes())? {
            if Name::new(found.to_bytes()).is_ok_and(|n| names.contains(&n)) {
                kept += 1;
            } else {
                rustix::fs::unlinkat(&fd, found.as_c_str(), AtFlags::empty())
                    .doing(doing, subject.as_bytes())?;
            }
        }
        // Before it is shown: what users do in it is missed by nobody.
        staged.unheard.end(&fd).doing("watch the staged directory", subject.as_bytes())?;
        if kept == names.len() {
            Ok(())
        } else {
            Err(VolumeError::sys(doing, subject.as_bytes(), Errno::NOENT))
        }
    }

    /// Makes the names in staged directories durable.
    pub(crate) fn sync_staged_dirs<'a>(
        &self,
        dirs: impl Iterator<Item = &'a Arc<StagedDir>>,
    ) -> Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dirs: HashSet<CString> = dirs.map(|d| d.path(None)).collect();
        if dirs.is_empty() {
            return Ok(());
        }
        let all = self.staged_dirs().map_err(|_| Errno::ROFS)?;
        for path in dirs {
            rustix::fs::fsync(rustix::fs::openat(all, path, flags, Mode::empty())?)?;
        }
        rustix::fs::fsync(all)
    }

    /// Removes the staged directories that a process which has ended left, with what is in them.
    pub fn sweep_staged_dirs(&self) -> Result<(), VolumeError> {
        let doing = "sweep the staged directories";
        let Ok(dirs) = self.staged_dirs() else { return Ok(()) };
        for name in names_in(dirs).doing(doing, b"")? {
            sweep(dirs, &name).doing(doing, name.as_bytes())?;
        }
        Ok(())
    }
}

/// A staged directory has files in it, no directories.
fn sweep(dirs: BorrowedFd<'_>, name: &CString) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dirs, name.as_c_str(), flags, Mode::empty())?;
    for file in names_in(&fd)? {
        rustix::fs::unlinkat(&fd, file, AtFlags::empty())?;
    }
    rustix::fs::unlinkat(dirs, name.as_c_str(), AtFlags::REMOVEDIR)
}
