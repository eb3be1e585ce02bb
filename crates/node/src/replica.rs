//! A replica that runs with any number of peers: the engine of a volume in a daemon.
//!
//! [`Replica::open`] starts the engine on a thread; [`Replica::connect`] gives one end of a link to it, through which messages of
//! one peer come and go, over whatever carrier. Links may be made and dropped at any time.

use crate::api::{Counts, Event, Level, SessionError, Shared, Side};
use crate::engine::{self, EngineOptions, FromEngine, Status, ToEngine};
use crate::outqueue::OutQueue;
use crate::roots;
use crate::session::guard_state;
use crossbeam_channel::{Receiver as Channel, Sender as ChannelSender, bounded, unbounded};
use driftless_core::ReplicaId;
use driftless_core::link::{Message, Role};
use driftless_core::membership::Key;
use driftless_index::StateDir;
use driftless_net::Permit;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

pub use crate::engine::{
    Claims, LACKING_TOLD_MAX, Lacking, LinkId, PROPAGATION_BOUNDS_S, PeerStatus, Propagation, Quarantined,
    QuarantinedChange, Service, Standing, Tuning,
};
pub use crate::outqueue::Outgoing;

/// What a replica is opened with.
pub struct ReplicaOptions {
    /// Its directory.
    pub root: PathBuf,
    /// Where its index lives.
    pub state: StateDir,
    /// The volume and this replica's part in it.
    pub service: Service,
    /// Rules of the volume; of the names of sites the first is this one's.
    pub shared: Shared,
}

/// How a replica stands, as it told last.
#[derive(Clone, Debug, Default)]
pub struct ReplicaStatus {
    /// Its id, once its index is open.
    pub replica: Option<ReplicaId>,
    /// Its role now.
    pub role: Option<Role>,
    /// Its tree has been looked at since it was opened.
    pub scanned: bool,
    /// It has nothing to do but wait.
    pub idle: bool,
    /// Entries that wait here.
    pub waiting: u64,
    /// Counts since it was opened.
    pub counts: Counts,
    /// Its peers, and how far they are.
    pub standing: Standing,
    /// It has ended, and why if not because it was asked to.
    pub ended: Option<Result<(), SessionError>>,
}

/// What comes out of one end of a link.
#[derive(Debug)]
pub enum FromLink {
    /// For the peer.
    Message(Outgoing),
    /// The replica takes nothing more from this peer.
    Refused(SessionError),
}

/// To the replica's end of a link.
struct Way {
    to: ChannelSender<FromLink>,
    queue: Arc<OutQueue>,
}

#[derive(Default)]
struct Board {
    status: Mutex<ReplicaStatus>,
    links: Mutex<HashMap<LinkId, Way>>,
}

impl Board {
    fn status(&self) -> MutexGuard<'_, ReplicaStatus> {
        // Each change is one assignment.
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn links(&self) -> MutexGuard<'_, HashMap<LinkId, Way>> {
        // A map is whole between two calls.
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running replica. Dropping it stops it.
pub struct Replica {
    to: ChannelSender<ToEngine>,
    board: Arc<Board>,
    next_link: AtomicU64,
    threads: Vec<JoinHandle<()>>,
}

impl Replica {
    /// Starts it. What happens is told by `events`.
    ///
    /// # Errors
    /// If the directory cannot be used or no thread can be started. What is found wrong later ends the replica: see
    /// [`ReplicaStatus::ended`].
    pub fn open(options: ReplicaOptions, events: ChannelSender<Event>) -> Result<Replica, SessionError> {
        let ReplicaOptions { root, state, service, shared } = options;
        let root = roots::check_root(&root)?;
        guard_state(&root, state.path())?;
        let (to, inbox) = engine::inbox();
        let (out, from) = unbounded();
        let options = EngineOptions {
            side: Side::A,
            root,
            state,
            shared,
            peer_in_process: false,
            service: Some(service),
        };
        let board = Arc::new(Board::default());
        let routed = board.clone();
        let router = std::thread::Builder::new()
            .name("router".into())
            .spawn(move || route(&from, &routed, &events))
            .map_err(no_thread)?;
        let engine = engine::start(options, inbox, out).map_err(no_thread)?;
        let threads = vec![engine, router];
        Ok(Replica { to, board, next_link: AtomicU64::new(1), threads })
    }

    /// How it stands.
    pub fn status(&self) -> ReplicaStatus {
        self.board.status().clone()
    }

    /// Has what waits tried at once.
    pub fn retry(&self) {
        // An engine that has ended tries everything when it is opened.
        let _ = self.to.send(ToEngine::Retry);
    }

    /// Has it not try what waits under a path below the root, or an entry by its id, until that changes: how many these are.
    /// `None` if the engine does not answer in time or has ended.
    pub fn skip(&self, what: &[u8], patience: Duration) -> Option<u64> {
        let (to, from) = bounded(1);
        self.to.send(ToEngine::Skip(what.to_owned(), to)).ok()?;
        from.recv_timeout(patience).ok()
    }

    /// A new link to a peer that is believed in everything. It ends when the returned end is dropped.
    pub fn connect(&self) -> LinkEnd {
        self.link(None)
    }

    /// A new link to whoever has proven to have this key.
    pub fn connect_to(&self, key: Key) -> LinkEnd {
        self.link(Some(key))
    }

    fn link(&self, key: Option<Key>) -> LinkEnd {
        let id = LinkId(self.next_link.fetch_add(1, Ordering::Relaxed));
        let (to, from) = unbounded();
        let queue = Arc::new(OutQueue::new(id, self.to.clone()));
        self.board.links().insert(id, Way { to, queue: queue.clone() });
        // If the engine has ended, nothing comes, and its status says why.
        let _ = self.to.send(ToEngine::LinkUp(id, key, Some(queue)));
        if self.board.status().ended.is_some() {
            self.board.links().remove(&id);
        }
        LinkEnd { id, to: self.to.clone(), from, board: self.board.clone() }
    }

    /// Has it make changes, or make no more. The status tells when it is so.
    pub fn set_role(&self, role: Role) {
        // An engine that has ended has none.
        let _ = self.to.send(ToEngine::Role(role));
    }

    /// What is known of all replicas; `None` if the engine does not answer in time or has ended.
    pub fn claims(&self, patience: Duration) -> Option<Claims> {
        let (to, from) = bounded(1);
        self.to.send(ToEngine::Claims(to)).ok()?;
        from.recv_timeout(patience).ok()
    }

    /// Finishes what is begun and ends.
    ///
    /// # Errors
    /// If it had ended by itself, or cannot finish.
    pub fn stop(mut self) -> Result<(), SessionError> {
        self.end();
        self.board.status().ended.clone().unwrap_or(Ok(()))
    }

    fn end(&mut self) {
        // An engine that has ended needs no stop.
        let _ = self.to.send(ToEngine::Stop);
        for thread in self.threads.drain(..) {
            // A panicked thread has said so on stderr.
            let _ = thread.join();
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.end();
    }
}

/// One end of a link.
pub struct LinkEnd {
    id: LinkId,
    to: ChannelSender<ToEngine>,
    from: Channel<FromLink>,
    board: Arc<Board>,
}

impl LinkEnd {
    /// Which link of its replica this is.
    pub fn id(&self) -> LinkId {
        self.id
    }

    /// How what is sent is cut into batches, from now on.
    pub fn tune(&self, tuning: Tuning) {
        // A replica that has ended sends nothing.
        let _ = self.to.send(ToEngine::Tune(self.id, tuning));
    }

    /// What is for the peer. Disconnected when the replica has ended.
    pub fn outgoing(&self) -> &Channel<FromLink> {
        &self.from
    }

    /// Hands over what the peer sent, with its share of a bound, which is dropped when it has been worked on.
    pub fn give_counted(&self, message: Message, permit: Permit) {
        // A replica that has ended takes nothing more.
        let _ = self.to.send(ToEngine::Counted(self.id, message, permit));
    }

    /// Hands over what the peer sent.
    pub fn give(&self, message: Message) {
        // A replica that has ended takes nothing more.
        let _ = self.to.send(ToEngine::Link(self.id, message));
    }
}

impl Drop for LinkEnd {
    fn drop(&mut self) {
        self.board.links().remove(&self.id);
        let _ = self.to.send(ToEngine::LinkDown(self.id));
    }
}

/// Passes on what the engine says, until it has ended.
fn route(from: &Channel<FromEngine>, board: &Board, events: &ChannelSender<Event>) {
    for said in from {
        match said {
            FromEngine::Link(id, message) => {
                if let Some(way) = board.links().get(&id) {
                    // A link that was dropped a moment ago needs nothing.
                    let _ = way.to.send(FromLink::Message(Outgoing::new(message, &way.queue)));
                }
            }
            FromEngine::LinkEnded(id, why) => {
                if let Some(way) = board.links().remove(&id) {
                    let _ = way.to.send(FromLink::Refused(why));
                }
            }
            FromEngine::Event(event) => {
                if let Event::Progress { counts, .. } = &event {
                    board.status().counts = *counts;
                }
                // Nobody listens: it goes on all the same.
                let _ = events.send(event);
            }
            FromEngine::Status(Status { idle, scanned, waiting, .. }) => {
                let mut status = board.status();
                (status.idle, status.scanned, status.waiting) = (idle, scanned, waiting);
            }
            FromEngine::Replica(replica, role) => {
                let mut status = board.status();
                (status.replica, status.role) = (Some(replica), Some(role));
            }
            FromEngine::Peers(standing) => board.status().standing = standing,
            FromEngine::Ended(result) => {
                let text = match &result {
                    Ok(_) => None,
                    Err(e) => Some(format!("{}: {}", e.what, e.advice)),
                };
                {
                    let mut status = board.status();
                    status.standing.peers.iter_mut().for_each(|p| p.link = None);
                    status.ended = Some(result.map(|counts| status.counts = counts));
                }
                board.links().clear();
                if let Some(text) = text {
                    let _ = events.send(Event::Log { side: None, level: Level::Error, text });
                }
                return;
            }
        }
    }
}

/// The volume that a directory belongs to, by its marker; `None` if it has none that can be read.
pub fn volume_of(root: &Path) -> Option<u128> {
    let options = driftless_volume::OpenOptions { create_private: false };
    let directory = driftless_volume::Directory::open(root, options).ok()?;
    directory.marker().ok()?.map(|marker| marker.volume)
}

fn no_thread(e: std::io::Error) -> SessionError {
    SessionError::new(format!("cannot start a thread: {e}"), "raise the limit of processes (ulimit -u)")
}

impl Service {
    /// The first replica of a volume.
    pub fn first(volume: u128) -> Service {
        Service { volume, first: true, role: Role::Writer, trust: Arc::default(), set_aside: false }
    }

    /// One that joins: it takes a peer's states before it looks at its own tree.
    pub fn joining(volume: u128, role: Role) -> Service {
        Service { volume, first: false, role, trust: Arc::default(), set_aside: false }
    }
}
