//! One session of `sync`: two ends, a coordinator between them.
//!
//! Each end is an engine, here on a thread or on another machine behind a pipe. The coordinator passes their messages
//! on, tells events, and knows from both ends' status when they agree: both idle, all of both feeds acknowledged, what they
//! brought held by the other (on its disk for good, but for what waits), and no message on its way.

use crate::api::{Endpoint, Event, Level, Outcome, SessionError, Side, SyncOptions};
use crate::engine::{self, EngineOptions, FromEngine, LinkId, Status, ToEngine};
use crate::filter::Filter;
use crate::pace::Pacer;
use crate::remote;
use crate::roots;
use crossbeam_channel::{Receiver as Channel, Sender as ChannelSender, bounded, select, unbounded};
use driftless_index::StateDir;
use std::path::Path;
use std::time::{Duration, Instant};

/// Asks a session to end: it finishes what it has begun and says what is left.
#[derive(Clone)]
pub struct StopFlag {
    ask: ChannelSender<()>,
    asked: Channel<()>,
}

impl Default for StopFlag {
    fn default() -> Self {
        let (ask, asked) = bounded(1);
        StopFlag { ask, asked }
    }
}

impl StopFlag {
    /// A flag nobody has raised.
    pub fn new() -> Self {
        Self::default()
    }

    /// Raises it. Doing so twice is no more than once.
    pub fn request(&self) {
        // Full means raised already.
        let _ = self.ask.try_send(());
    }
}

/// One end as the coordinator sees it.
pub(crate) struct End {
    pub(crate) to: ChannelSender<ToEngine>,
    pub(crate) from: Channel<FromEngine>,
    status: Status,
    ended: Option<Result<crate::api::Counts, SessionError>>,
    join: Option<std::thread::JoinHandle<()>>,
}

impl End {
    pub(crate) fn new(
        to: ChannelSender<ToEngine>,
        from: Channel<FromEngine>,
        join: Option<std::thread::JoinHandle<()>>,
    ) -> End {
        End { to, from, status: Status::default(), ended: None, join }
    }
}

/// Runs a session until both ends agree (`once`), until it is asked to stop, or until it cannot go on.
pub fn run(
    options: SyncOptions,
    events: ChannelSender<Event>,
    stop: StopFlag,
) -> Result<Outcome, SessionError> {
    match run_once(&options, &events, &stop) {
        // An index was put aside: this time it is built anew.
        Err(e) if e.again => {
            let text = format!("{}; starting again", e.what);
            // Nobody listens any more: the session goes on all the same.
            let _ = events.send(Event::Log { side: None, level: Level::Warn, text });
            run_once(&options, &events, &stop)
        }
        result => result,
    }
}

fn run_once(
    options: &SyncOptions,
    events: &ChannelSender<Event>,
    stop: &StopFlag,
) -> Result<Outcome, SessionError> {
    Filter::new(&options.shared.filters).map_err(|e| {
        SessionError::new(e.to_string(), "correct the pattern; `*` matches within a name, `**` across names")
    })?;
    guard_roots(&options.a, &options.b)?;
    let a = open_end(Side::A, options)?;
    let b = match open_end(Side::B, options) {
        Ok(b) => b,
        Err(e) => {
            end(a);
            return Err(e);
        }
    };
    let pacer = || Pacer::new(local_rate(options));
    Coordinator {
        a,
        b,
        to_a: pacer(),
        to_b: pacer(),
        events: events.clone(),
        once: options.shared.once,
        in_sync: false,
        drain_until: None,
        stopping: false,
    }
    .run(stop)
}

/// The rate to be kept here: none if a carrier keeps it already.
fn local_rate(options: &SyncOptions) -> Option<u64> {
    match (&options.a, &options.b) {
        (Endpoint::Local(_), Endpoint::Local(_)) => options.bwlimit_bytes_per_s,
        _ => None,
    }
}

fn end(e: End) {
    // An engine that is gone needs no stop.
    let _ = e.to.send(ToEngine::Stop);
    if let Some(j) = e.join {
        // A panicked engine has said so on stderr.
        let _ = j.join();
    }
}

/// Two local roots must be different directories, none inside the other.
fn guard_roots(a: &Endpoint, b: &Endpoint) -> Result<(), SessionError> {
    let mut real = Vec::new();
    for e in [a, b] {
        if let Endpoint::Local(p) = e {
            real.push(roots::check_root(p)?);
        }
    }
    match &real[..] {
        [a, b] => roots::check_pair(a, b),
        _ => Ok(()),
    }
}

fn open_end(side: Side, options: &SyncOptions) -> Result<End, SessionError> {
    let endpoint = match side {
        Side::A => &options.a,
        Side::B => &options.b,
    };
    match endpoint {
        Endpoint::Local(path) => local_end(side, path, options),
        Endpoint::Ssh { target, path } => remote::open(side, target, path, options),
    }
}

fn local_end(side: Side, path: &Path, options: &SyncOptions) -> Result<End, SessionError> {
    let state = state_dir(options.state_dir.as_deref())?;
    let root = roots::check_root(path)?;
    guard_state(&root, state.path())?;
    let (to, inbox) = engine::inbox();
    let (out, from) = unbounded();
    let local = |end: &Endpoint| matches!(end, Endpoint::Local(_));
    let peer_in_process = local(&options.a) && local(&options.b);
    let engine =
        EngineOptions { side, root, state, shared: options.shared.clone(), peer_in_process, service: None };
    let join = engine::start(engine, inbox, out).map_err(|e| {
        SessionError::new(format!("cannot start a thread: {e}"), "raise the limit of processes (ulimit -u)")
    })?;
    // An engine that has ended already says why.
    let _ = to.send(ToEngine::LinkUp(LinkId::ONLY, None, None));
    Ok(End::new(to, from, Some(join)))
}

pub(crate) fn state_dir(given: Option<&Path>) -> Result<StateDir, SessionError> {
    match given {
        Some(p) => Ok(StateDir::at(p)),
        None => {
            StateDir::of_user().map_err(|e| SessionError::new(e.to_string(), "name a directory with --state"))
        }
    }
}

/// State inside the tree would replicate itself.
pub(crate) fn guard_state(root: &Path, state: &Path) -> Result<(), SessionError> {
    let real = state.canonicalize().unwrap_or_else(|_| state.to_owned());
    if real.starts_with(root) {
        return Err(SessionError::new(
            format!("the state directory {} lies inside {}", real.display(), root.display()),
            "name a state directory elsewhere with --state; nothing was changed",
        ));
    }
    Ok(())
}

/// How long a session that was asked to end goes on with what is under way: enough for single changes, not for a
/// large transfer, which goes on with the next run.
const DRAIN_MAX: Duration = Duration::from_secs(3);

/// Longest wait when nothing is to happen at a certain time.
const REST: Duration = Duration::from_secs(3600);

struct Coordinator {
    a: End,
    b: End,
    to_a: Pacer,
    to_b: Pacer,
    events: ChannelSender<Event>,
    once: bool,
    in_sync: bool,
    /// When draining ends, once it was asked to end.
    drain_until: Option<Instant>,
    stopping: bool,
}

impl Coordinator {
    fn run(mut self, stop: &StopFlag) -> Result<Outcome, SessionError> {
        while self.a.ended.is_none() || self.b.ended.is_none() {
            let (from_a, from_b) = (self.a.from.clone(), self.b.from.clone());
            select! {
                recv(from_a) -> m => self.take(Side::A, m.ok()),
                recv(from_b) -> m => self.take(Side::B, m.ok()),
                recv(stop.asked) -> _ => self.drain_until = Some(Instant::now() + DRAIN_MAX),
                default(self.rest()) => {}
            }
            self.pass_on();
            self.check();
        }
        let (a, b) = (self.a.ended.take(), self.b.ended.take());
        for j in [self.a.join.take(), self.b.join.take()].into_iter().flatten() {
            // A panicked engine has said so on stderr, and its end told.
            let _ = j.join();
        }
        match (a, b) {
            (Some(Ok(ca)), Some(Ok(cb))) => {
                let waiting = self.a.status.waiting + self.b.status.waiting;
                Ok(Outcome { in_sync: self.in_sync && waiting == 0, waiting, counts: (ca, cb) })
            }
            // The end that failed first is the cause; the other was told to stop and ended well.
            (Some(Err(e)), _) | (_, Some(Err(e))) => Err(e),
            _ => Err(gone()),
        }
    }

    /// Until a message that is held back may leave, or draining ends.
    fn rest(&self) -> Duration {
        let drained = self.drain_until.filter(|_| !self.stopping);
        let due = [self.to_a.poll_at(), self.to_b.poll_at(), drained].into_iter().flatten().min();
        due.map_or(REST, |at| at.saturating_duration_since(Instant::now()))
    }

    fn pass_on(&mut self) {
        let now = Instant::now();
        for (pacer, end) in [(&mut self.to_a, &self.a), (&mut self.to_b, &self.b)] {
            while let Some(message) = pacer.poll(now) {
                // An engine that is gone takes nothing more; its end has been or will be told.
                let _ = end.to.send(ToEngine::Link(LinkId::ONLY, message));
            }
        }
    }

    fn end_of(&mut self, side: Side) -> &mut End {
        match side {
            Side::A => &mut self.a,
            Side::B => &mut self.b,
        }
    }

    fn take(&mut self, side: Side, m: Option<FromEngine>) {
        match m {
            Some(FromEngine::Link(_, message)) => match side {
                Side::A => self.to_b.push(message),
                Side::B => self.to_a.push(message),
            },
            Some(FromEngine::Event(e)) => {
                // Nobody listens any more: the session goes on all the same.
                let _ = self.events.send(e);
            }
            // The only link ends with its engine, and tells by its status how the peer stands.
            Some(FromEngine::LinkEnded(..) | FromEngine::Replica(..) | FromEngine::Peers(_)) => {}
            Some(FromEngine::Status(s)) => self.end_of(side).status = s,
            Some(FromEngine::Ended(result)) => self.ended(side, result),
            None => {
                if self.end_of(side).ended.is_none() {
                    self.ended(side, Err(gone()));
                }
                self.end_of(side).from = crossbeam_channel::never();
            }
        }
    }

    fn ended(&mut self, side: Side, result: Result<crate::api::Counts, SessionError>) {
        self.end_of(side).ended = Some(result);
        self.stop();
    }

    fn stop(&mut self) {
        if !self.stopping {
            self.stopping = true;
            for e in [&self.a, &self.b] {
                // An engine that is gone needs no stop.
                let _ = e.to.send(ToEngine::Stop);
            }
        }
    }

    fn check(&mut self) {
        if self.stopping {
            return;
        }
        let (a, b) = (&self.a.status, &self.b.status);
        // An end of a version that does not say what it holds cannot be waited for; and ends that are about to stop seal
        // what they did, or fail, before they have ended.
        let asked = a.peer_holds.is_some() && b.peer_holds.is_some() && self.drain_until.is_none();
        let held = |s: &Status| !asked || s.peer_holds == Some(true);
        let settled = |s: &Status| s.idle && s.scanned && s.sent_all && held(s);
        let now =
            settled(a) && settled(b) && a.messages_out == b.messages_in && b.messages_out == a.messages_in;
        if now != self.in_sync {
            self.in_sync = now;
            // Nobody listens any more: the session goes on all the same.
            let _ = self.events.send(if now { Event::InSync } else { Event::Syncing });
        }
        let drained = self.drain_until.is_some_and(|at| now || at <= Instant::now());
        if drained || (now && self.once) {
            self.stop();
        }
    }
}

fn gone() -> SessionError {
    SessionError::new(
        "one end stopped without saying why",
        "look for a message of it above; run again: it goes on where it was",
    )
}
