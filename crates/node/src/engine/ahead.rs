//! Looking at what a first crawl comes to next, on other cores.
//!
//! A tree that is taken in for the first time is looked at and read to its last file, and that is half of what taking it in
//! costs. So while the engine records some files of a directory, threads look at the next ones and read those that are
//! small. What they found is judged in the order of the names, as if the engine had looked itself just then: what changes
//! after a look is told by the watcher, whoever looked.

use super::content::SMALL_LEN_MAX;
use super::hasher::{Found, How};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use driftless_core::{Kind, Name};
use driftless_volume::{DirFd, Listing, Seen, VolumeError};
use std::collections::VecDeque;

/// Names that one thread looks at in one go: fewer cost more to hand over than they gain.
const NAMES_PER_JOB: usize = 16;
/// Names that are looked at before the engine comes to them. Bounds what is held of their contents, too: to 8 MiB.
const NAMES_AHEAD_MAX: usize = 64;
/// Most threads: more than this only wait for the engine.
const THREADS_MAX: usize = 3;

/// A name that was looked at, and what it holds if it is a small file.
pub(super) struct Look {
    pub(super) seen: Result<Option<Seen>, VolumeError>,
    pub(super) found: Option<Found>,
}

struct Job {
    dir: DirFd,
    names: Vec<(usize, Name)>,
    keep_small: usize,
    done: Sender<Vec<(usize, Look)>>,
}

/// The threads. They end after what they are at when this is dropped.
pub(super) struct Readers {
    jobs: Sender<Job>,
}

impl Readers {
    /// `None` where there is but one core, or no thread can be had: the engine looks itself.
    pub(super) fn start() -> Option<Readers> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let (jobs, todo) = unbounded::<Job>();
        for _ in 0..cores.min(THREADS_MAX) {
            let todo = todo.clone();
            let run = move || todo.iter().for_each(Job::run);
            std::thread::Builder::new().name("reader".into()).spawn(run).ok()?;
        }
        (cores > 1).then_some(Readers { jobs })
    }
}

impl Job {
    fn run(self) {
        let Job { dir, names, keep_small, done } = self;
        // The crawl is over: nobody wants to know.
        let _ = done.send(names.into_iter().map(|(at, name)| (at, look(&dir, &name, keep_small))).collect());
    }
}

fn look(dir: &DirFd, name: &Name, keep_small: usize) -> Look {
    let seen = dir.look(name);
    let small = |s: &&Seen| {
        // Of one with several names the content is read once, by the engine.
        s.kind == Kind::File && s.nlink == 1 && !s.other_fs && s.fingerprint.size <= SMALL_LEN_MAX
    };
    let found = seen.as_ref().ok().and_then(Option::as_ref).filter(small);
    let found = found.map(|seen| How::AtRest.read(dir, seen, keep_small));
    Look { seen, found }
}

/// What is looked at ahead of one directory's listing.
#[derive(Default)]
pub(super) struct Ahead {
    /// The first name that no thread was given.
    next: usize,
    asked: VecDeque<Receiver<Vec<(usize, Look)>>>,
    looks: VecDeque<(usize, Look)>,
}

impl Ahead {
    /// What was found of the name at `at`, the next of `names`; the threads are given those behind it. `None`: it is left to
    /// the engine.
    pub(super) fn take(
        &mut self,
        (readers, dir): (&Readers, &DirFd),
        names: &Listing,
        at: usize,
        keep_small: usize,
    ) -> Option<Look> {
        self.next = self.next.max(at);
        while self.next < names.len() && self.next + NAMES_PER_JOB <= at + NAMES_AHEAD_MAX {
            let end = names.len().min(self.next + NAMES_PER_JOB);
            // What is no name for us is told by the engine.
            let some = (self.next..end).filter_map(|i| Some((i, names.name(i)?.ok()?))).collect();
            let (done, receiver) = bounded(1);
            // The threads live as long as this.
            let _ = readers.jobs.send(Job { dir: dir.clone(), names: some, keep_small, done });
            self.asked.push_back(receiver);
            self.next = end;
        }
        while self.looks.front().is_some_and(|(i, _)| *i < at) {
            self.looks.pop_front();
        }
        while self.looks.is_empty()
            && let Some(receiver) = self.asked.pop_front()
        {
            // A thread that has panicked has said so on stderr.
            self.looks.extend(receiver.recv().unwrap_or_default().into_iter().filter(|(i, _)| *i >= at));
        }
        if self.looks.front()?.0 == at { self.looks.pop_front().map(|(_, look)| look) } else { None }
    }
}
