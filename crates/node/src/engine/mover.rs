//! Removing files on another core, while the engine decides about the next ones and records those before.
//!
//! Of a removed file half the work is system calls (a look, a lease, the move into limbo, a lease again), the other half the engine's
//! rows; one needs nothing of the other until it is done. A directory goes only when what was in it is recorded as gone,
//! so the engine takes the files of a run of removals first.

use super::Fail;
use crossbeam_channel::{Receiver, Sender, bounded};
use driftless_core::Name;
use driftless_core::plan::{Step, Victim};
use driftless_volume::{ApplyError, DirFd, Directory, Limbo, StageId};
use std::collections::VecDeque;

/// Files handed over at once: fewer cost more to hand over than they gain.
const FILES_PER_JOB: usize = 32;
/// Files handed over and not recorded: what a failure leaves to be found by its intent rows is no more than a plan has in any case.
const JOBS_MAX: usize = 8;

/// What is to be removed, and its name in limbo.
pub(super) struct Removal {
    pub(super) dir: DirFd,
    pub(super) name: Name,
    pub(super) victim: Victim,
    pub(super) id: StageId,
}

/// What came of it.
type Removed = Result<Option<Limbo>, ApplyError>;

/// The same of all that were handed over together.
type Results = Vec<(Removal, Removed)>;

/// A removal that is over.
pub(super) struct Done {
    pub(super) step: Step,
    pub(super) removal: Removal,
    pub(super) removed: Removed,
}

struct Job {
    volume: Directory,
    removals: Vec<Removal>,
    done: Sender<Results>,
}

/// The thread. It ends when this is dropped.
pub(super) struct Mover {
    jobs: Sender<Job>,
}

impl Mover {
    /// `None` where there is but one core, or no thread can be had: the engine does it itself.
    pub(super) fn start() -> Option<Mover> {
        std::thread::available_parallelism().ok().filter(|cores| cores.get() > 1)?;
        let (jobs, todo) = bounded::<Job>(JOBS_MAX);
        let run = move || todo.iter().for_each(Job::run);
        std::thread::Builder::new().name("mover".into()).spawn(run).ok()?;
        Some(Mover { jobs })
    }

    pub(super) fn begin(&self, volume: &Directory) -> Moving {
        Moving { thread: self.jobs.clone(), volume: volume.clone(), next: Vec::new(), jobs: VecDeque::new() }
    }
}

impl Job {
    fn run(self) {
        let Job { volume, removals, done } = self;
        let remove = |r: Removal| {
            let removed = volume.remove(&r.dir, &r.name, &r.victim, r.id);
            (r, removed)
        };
        // Who does not want to know any more has failed.
        let _ = done.send(removals.into_iter().map(remove).collect());
    }
}

/// Removals on their way, each with its step. Dropped, it waits for what was handed over: nobody moves anything after the engine
/// has ended.
pub(super) struct Moving {
    thread: Sender<Job>,
    volume: Directory,
    /// Not handed over yet.
    next: Vec<(Step, Removal)>,
    jobs: VecDeque<(Vec<Step>, Receiver<Results>)>,
}

impl Moving {
    /// Takes one more. Gives what has been done meanwhile.
    pub(super) fn put(&mut self, step: Step, removal: Removal) -> Result<Vec<Done>, Fail> {
        self.next.push((step, removal));
        if self.next.len() < FILES_PER_JOB {
            return Ok(Vec::new());
        }
        self.hand_over();
        match self.jobs.front() {
            Some((_, done)) if self.jobs.len() >= JOBS_MAX || !done.is_empty() => self.take_first(),
            _ => Ok(Vec::new()),
        }
    }

    /// Waits for the next that are done; none when all are.
    pub(super) fn take(&mut self) -> Result<Vec<Done>, Fail> {
        self.hand_over();
        self.take_first()
    }

    fn hand_over(&mut self) {
        if self.next.is_empty() {
            return;
        }
        let (steps, removals) = std::mem::take(&mut self.next).into_iter().unzip();
        let (done, result) = bounded(1);
        // Of a thread that has ended nothing comes back.
        let _ = self.thread.send(Job { volume: self.volume.clone(), removals, done });
        self.jobs.push_back((steps, result));
    }

    fn take_first(&mut self) -> Result<Vec<Done>, Fail> {
        let Some((steps, done)) = self.jobs.pop_front() else { return Ok(Vec::new()) };
        let Ok(done) = done.recv() else {
            return Err(Fail::Bug("the thread that removes files has ended".into()));
        };
        let with_step = |(step, (removal, removed))| Done { step, removal, removed };
        Ok(steps.into_iter().zip(done).map(with_step).collect())
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        for (_, done) in self.jobs.drain(..) {
            // Whatever came of it: it is over.
            let _ = done.recv();
        }
    }
}
