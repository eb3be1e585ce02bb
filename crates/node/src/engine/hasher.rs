//! Reading large files while the engine does something else.
//!
//! A look at a large file takes seconds, and everything else would wait for it. So it is handed to a thread, and what that
//! found is judged when the name is looked at once more: it counts only if the file still is what was read. One file at a time:
//! a second would only make both slower on most disks. Parts of it that lie next to each other are read side by side.

use super::Engine;
use crossbeam_channel::{Receiver, Sender, unbounded};
use driftless_core::{Name, NodeKey};
use driftless_volume::{DirFd, HashOutcome, Seen, VolumeError};
use std::collections::{BTreeSet, HashMap};

/// Files from this length are read by the thread: a shorter one takes less than a tenth of a second.
pub(super) const ASIDE_LEN_MIN: u64 = 32 << 20;
/// Files that may wait for the thread: each keeps its directory open.
const QUEUE_MAX: usize = 64;

/// What reading a file gave.
pub(super) type Found = Result<HashOutcome, VolumeError>;

/// How a file is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum How {
    /// As one that nobody writes to meanwhile.
    AtRest,
    /// As one that is known to stay open: from a copy, where there are such.
    Open,
    /// As one that has changed each time it was read: from a copy, or what of it does not change.
    Busy,
}

impl How {
    /// Reads the file `seen` in `dir`; contents of at most `keep_small` bytes are given along.
    pub(super) fn read(self, dir: &DirFd, seen: &Seen, keep_small: usize) -> Found {
        let copy = if self == How::AtRest { None } else { dir.hash_copy(&seen.name, seen, keep_small)? };
        match (copy, self) {
            (Some(found), _) => Ok(found),
            (None, How::Busy) => dir.hash_prefix(&seen.name, seen, keep_small),
            (None, How::AtRest | How::Open) => dir.hash(&seen.name, seen, keep_small),
        }
    }
}

struct Job {
    dir: DirFd,
    seen: Seen,
    how: How,
}

/// A job that is done.
pub(super) struct Read {
    dir: NodeKey,
    seen: Seen,
    found: Found,
}

/// See the module.
pub(super) struct Hasher {
    jobs: Sender<Job>,
    pub(super) done: Receiver<Read>,
    /// Files given to the thread and not judged yet: by what was seen of them, and what the thread found.
    files: HashMap<NodeKey, Option<(NodeKey, Seen, Found)>>,
}

/// What can be said of a file now.
pub(super) enum Aside {
    /// It was read. Unless it is one that grows, it is as it was then, or said to be unstable.
    Here(Found),
    /// It is being read: it is looked at again when that is done.
    Later,
    /// There are too many already.
    TooMany,
}

impl Hasher {
    /// The thread ends by itself after the file it reads when this is dropped: it holds nothing but open files.
    pub(super) fn start() -> std::io::Result<Hasher> {
        let (jobs, todo) = unbounded::<Job>();
        let (send, done) = unbounded();
        std::thread::Builder::new().name("hasher".into()).spawn(move || {
            for Job { dir, seen, how } in todo {
                let found = how.read(&dir, &seen, 0);
                if send.send(Read { dir: dir.key().clone(), seen, found }).is_err() {
                    return;
                }
            }
        })?;
        Ok(Hasher { jobs, done, files: HashMap::new() })
    }

    /// True if nothing was given to it that is not judged yet.
    pub(super) fn is_idle(&self) -> bool {
        self.files.is_empty()
    }

    /// What the thread found of the file `seen` in `dir`; else it is given to the thread. Of one that does
    /// not rest, what it had when the thread came to it will do.
    pub(super) fn ask(&mut self, dir: &DirFd, seen: &Seen, how: How) -> Aside {
        match self.files.remove(&seen.key) {
            Some(None) => {
                self.files.insert(seen.key.clone(), None);
                return Aside::Later;
            }
            Some(Some((_, then, found))) if then.name == seen.name => {
                let copied = matches!(&found, Ok(HashOutcome::Looked(hashed)) if hashed.copy.is_some());
                let counts = then.fingerprint == seen.fingerprint || how == How::Busy || copied;
                return Aside::Here(if counts { found } else { Ok(HashOutcome::Unstable) });
            }
            Some(Some(_)) | None => {}
        }
        if self.files.len() >= QUEUE_MAX {
            return Aside::TooMany;
        }
        // The thread lives as long as this.
        let _ = self.jobs.send(Job { dir: dir.clone(), seen: seen.clone(), how });
        self.files.insert(seen.key.clone(), None);
        Aside::Later
    }

    /// Keeps what was found until the name is looked at.
    fn keep(&mut self, read: Read) -> (NodeKey, Name) {
        let Read { dir, seen, found } = read;
        let at = (dir.clone(), seen.name.clone());
        self.files.insert(seen.key.clone(), Some((dir, seen, found)));
        at
    }

    /// What the look that it led to did not ask for is of no use: another file is there, or none.
    pub(super) fn forget_but(&mut self, to_look_at: &BTreeSet<(NodeKey, Name)>) {
        self.files.retain(|_, file| {
            file.as_ref().is_none_or(|(dir, seen, _)| to_look_at.contains(&(dir.clone(), seen.name.clone())))
        });
    }
}

impl Engine {
    /// The thread has read a file: its name is looked at again.
    pub(super) fn take_read(&mut self, read: Read) {
        let (dir, name) = self.hasher.keep(read);
        self.look_soon(dir, name);
    }
}
