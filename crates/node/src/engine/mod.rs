//! The engine of one replica: the only owner of its index, its tree's records and its links.
//!
//! One thread. It takes messages of its peers, hints of the watcher and commands of the session, does one bounded
//! piece of work at a time (merge a batch, judge a handful of hints, compare a part of a directory, apply a part of a plan, fill a
//! batch), commits it, and waits only when there is nothing to do. Everything it decides is decided by
//! `core`; this module and its parts do the I/O.
//!
//! - [`observe`]: from what the disk shows to what a user did; [`judge`]: what takes a whole pass to be judged.
//! - [`ahead`]: looking at what a first crawl comes to next, on other cores.
//! - [`apply`]: doing what a plan says.
//! - [`believe`]: how far a peer is believed.
//! - [`delta`]: large files of which much is here already.
//! - [`elsewhere`]: what is in directories whose move is not recorded yet.
//! - [`filter_change`]: another filter than the last time.
//! - [`hasher`]: reading large files on another core.
//! - [`content`]: reading, sending and receiving bytes of files.
//! - [`held`]: telling the peer what is on this disk for good.
//! - [`limbo`]: what was replaced or removed, until nobody can write to it any more.
//! - [`recover`]: judging what a crash left.
//! - [`lags`]: how far peers are behind.
//! - [`link`]: the peers that are connected.
//! - [`lost`]: going on after an index was lost.
//! - [`rollback`]: asking before a tree that was put back to an earlier state is taken for users' edits.
//! - [`successor`]: the index that follows one with changes beyond a Cut.
//! - [`stager`]: staging small contents on another core.
//! - [`peer`]: introducing itself to the other end, merging what comes, sending what is new.
//! - [`hidden`]: keeping what a filter hides and nobody else may have.
//! - [`pace`]: when batches leave.
//! - [`propagation`]: how long changes of others took to get here.
//! - [`quarantine`]: keeping a Cut; [`role`]: becoming a writer or a follower.
//! - [`seal`]: commits, durable or not yet, and the sync that ends what was begun.
//! - [`suspect`]: judging what a power cut left; [`verify`]: what a sync that failed may have lost.
//! - [`waiting`], [`waiters`], [`causes`]: what could not be done yet, and trying again; [`skip`]: or not.
//! - [`trash`]: keeping what was replaced or removed.
//! - [`unscanned`]: what is heard before the tree has been crawled.
//! - [`nowhere`]: versions that nobody holds who could be asked.
//! - [`routine`]: crawls that nothing asks for.
//! - [`copies`]: what was read of files that never settle, for peers to fetch.
//! - [`mover`]: removing files on another core.
//! - [`open_files`]: files that were taken in while somebody writes to them.
//! - [`open`]: opening index and tree, guarding; [`no_room`]: on a full disk that has to wait.

mod ahead;
mod apply;
mod believe;
mod causes;
mod content;
mod copies;
mod delta;
mod elsewhere;
mod filter_change;
mod hasher;
mod held;
mod hidden;
mod judge;
mod lags;
mod limbo;
mod link;
mod lost;
mod mover;
mod no_room;
mod nowhere;
mod observe;
mod open;
mod open_files;
mod pace;
mod peer;
mod propagation;
mod quarantine;
mod recover;
mod role;
mod rollback;
mod routine;
mod seal;
mod skip;
mod stager;
mod successor;
mod suspect;
mod trash;
mod unscanned;
mod verify;
mod waiters;
mod waiting;

use crate::api::{Counts, Event, JoinCounts, Level, PathText, Phase, Reason, SessionError, Shared, Side};
use crate::filter::Filter;
use crate::needs::{self, Waiter};
use crate::outqueue::OutQueue;
use crate::sites;
use causes::Causes;
use content::Contents;
use copies::Copies;
use crossbeam_channel::{Receiver as Channel, Sender as ChannelSender};
use delta::Deltas;
use driftless_core::adopt::Adoption;
use driftless_core::link::{Message, OwnHello, Role, peer_row};
use driftless_core::membership::Key;
use driftless_core::rows::{Batch as Rows, Store, StoreError, Table};
use driftless_core::tx::Warm;
use driftless_core::{Dot, EntryId, Name, NodeKey, ReplicaId, Tx, tree, tx};
use driftless_net::Permit;
use driftless_volume::{ApplyError, DirFd, Directory, Hint, StagedDir, VolumeError, Watcher};
use elsewhere::Elsewhere;
use hasher::Hasher;
use hidden::Hidden;
use judge::removal_limit;
use lags::Lags;
use limbo::Limbos;
use link::{Links, Peer};
use lru::LruCache;
use nowhere::{AcceptCommand, Nowhere};
use observe::{Pass, Taking};
use open_files::OpenFiles;
use recover::Left;
use rollback::Rollback;
use routine::Routine;
use seal::Sealed;
use stager::{Early, Ready, StageIds, Stager};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use suspect::{BeforeRows, LastMoments};
use unscanned::Unscanned;
use verify::FailedSyncs;
use waiters::Waiters;

pub use believe::{Claims, LACKING_TOLD_MAX, Lacking};
pub use lags::{PeerStatus, Standing};
pub use link::{LinkId, Tuning};
pub use nowhere::accept_lost;
pub use open::Service;
pub(crate) use open::{EngineOptions, inbox, start};
pub use propagation::{BOUNDS_S as PROPAGATION_BOUNDS_S, Propagation};
pub use quarantine::{Quarantined, QuarantinedChange};

/// No path is deeper: PATH_MAX holds 2,048 names of one byte; twice that ends every walk over a damaged index.
const DEPTH_MAX: usize = 4096;
/// Names judged in one transaction: bounds its memory.
const LOOKS_PER_COMMIT: usize = 1024;
/// So many removals that were recorded are offered to peers although there is more to be judged: they are work for them.
const REMOVALS_OFFERED: usize = 256;
/// Hints kept while they cannot be judged; beyond it the tree is crawled instead.
const HINTS_MAX: usize = 200_000;
/// After all that was heard of has been looked at, what is heard next waits for so many times as long as that took: a stream of changes
/// is recorded and sent in groups, as each has its commits at both sites, and who makes it has processors left. A lone change
/// comes later than that.
const JUDGE_PAUSE_SHARE: u32 = 4;
/// But never for longer.
const JUDGE_PAUSE_MAX: Duration = Duration::from_millis(10);
/// Directories kept open while a plan is done: saves walking the path again for each file of a directory.
const DIRS_OPEN_MAX: usize = 256;
/// Entries remembered to be planned when the crawl is over; beyond it the feed is read again from there.
const QUEUE_MAX: usize = 16_384;
/// A quiet time after which what was written is sealed by a sync and limbo is emptied: as long as [`SEAL_SHARE`] seals would take,
/// within these bounds. Peers wait for it, since what is not sealed is not held; a disk that syncs slowly is not to be
/// kept busy by that.
const SEAL_AFTER_MIN: Duration = Duration::from_millis(10);
const SEAL_AFTER_MAX: Duration = Duration::from_millis(300);
/// Work that comes in drops is sealed for about this part of the time.
const SEAL_SHARE: u32 = 10;
/// Files in limbo after which it is sealed although work goes on.
const LIMBO_MAX: usize = 20_000;
/// At most so often are counts told.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// A tick of the heartbeat, which peers hear through all that states go through. Whoever watches gives up on it after two
/// that are missed.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(3);
/// Attempts before a session that is to end (`--once`) stops waiting for an entry.
const TRIES_BEFORE_GIVING_UP: u64 = 3;
/// Attempts that follow at once when what was in the way has been looked at; then pauses begin.
const RACES_AT_ONCE_MAX: u64 = 3;
/// Attempts before a session that is to end stops waiting for an entry that raced with a local change.
const RACES_MAX: u64 = 8;
/// With less room than this the crawl waits for the peer.
const CACHE_ROOM_MIN: usize = 1 << 20;
/// What waits at a place where something happens is tried after this: what happens there may be more than one event,
/// some of them our own.
const RETRY_AFTER_EVENT_NS: u64 = 50_000_000;
/// A window of removals ends after this quiet time.
const REMOVAL_WINDOW: Duration = Duration::from_secs(10);

/// A path below the root, as names.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct RelPath(pub(crate) Vec<Name>);

impl RelPath {
    pub(crate) fn push(&mut self, name: &Name) {
        self.0.push(name.clone());
    }
    pub(crate) fn join_bytes(&self) -> Vec<u8> {
        let parts: Vec<&[u8]> = self.0.iter().map(Name::as_bytes).collect();
        parts.join(&b'/')
    }
}
impl std::ops::Deref for RelPath {
    type Target = [Name];
    fn deref(&self) -> &[Name] {
        &self.0
    }
}

/// What ends an engine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fail {
    #[error(transparent)]
    Core(#[from] tx::Error),
    #[error("index: {0}")]
    Store(#[from] StoreError),
    #[error("{0}")]
    Volume(VolumeError),
    #[error("{0}")]
    Root(String),
    #[error("the other side: {0}")]
    Peer(String),
    #[error("{what}")]
    Refused { what: String, advice: String },
    /// A disk is full, so that not even a beginning can be made.
    #[error("{what}")]
    NoRoom { what: String },
    /// The index was put aside: a new session builds another.
    #[error("{0}")]
    Rebuild(String),
    /// The index is followed by another one, which lies beside it.
    #[error("{0}")]
    Succeeded(String),
    #[error("this should not happen: {0}")]
    Bug(String),
}

impl Fail {
    /// What a person is told.
    pub(crate) fn into_error(self, whose: &str) -> SessionError {
        let advice = match &self {
            Fail::Core(_) | Fail::Store(_) => {
                "check the disk that holds the state directory; an index that is damaged can be removed: it is \
                 rebuilt from the other side without copying equal files"
                    .to_owned()
            }
            Fail::Volume(e) => e.advice(),
            Fail::Root(_) => "check that the directory is there, mounted and readable".to_owned(),
            Fail::Peer(_) => "look at the other side's message; run it again when it can be reached".to_owned(),
            Fail::Refused { advice, .. } => advice.clone(),
            Fail::NoRoom { .. } => "free some space there and run it again".to_owned(),
            Fail::Rebuild(_) => "run it again: the index is rebuilt from the other side and the tree".to_owned(),
            Fail::Succeeded(_) => "run it again: it goes on with the index that was made".to_owned(),
            Fail::Bug(_) => "please report it, with the output of a run with -vv".to_owned(),
        };
        let again = matches!(self, Fail::Rebuild(_) | Fail::Succeeded(_));
        SessionError { what: format!("{whose}: {self}"), advice, again }
    }
}

/// What a session tells an engine.
pub(crate) enum ToEngine {
    /// There is a connection to a peer, which has proven to have this key if keys are known, and what waits for it is counted
    /// if it may be slow.
    LinkUp(LinkId, Option<Key>, Option<Arc<OutQueue>>),
    /// From the peer at its other end.
    Link(LinkId, Message),
    /// The same; the permit is dropped when it has been worked on.
    Counted(LinkId, Message, Permit),
    /// There is room again for what is sent to it.
    Room(LinkId),
    /// How what is sent by it is cut into batches.
    Tune(LinkId, Tuning),
    /// It ended.
    LinkDown(LinkId),
    /// Try what waits at once.
    Retry,
    /// Do not try what waits under this path, or the entry with this id; how many that are.
    Skip(Vec<u8>, ChannelSender<u64>),
    /// Make changes, or no more once all that were made are recorded.
    Role(Role),
    /// Say what is known of all replicas.
    Claims(ChannelSender<Claims>),
    /// Finish what is begun, seal, and end.
    Stop,
}

/// What an engine tells its session.
pub(crate) enum FromEngine {
    /// For the peer at the other end.
    Link(LinkId, Message),
    /// Nothing more is taken from or given to that peer, for this reason. Not in a session of two, which ends instead.
    LinkEnded(LinkId, SessionError),
    /// For people.
    Event(Event),
    /// How it stands; sent before any message that builds on it.
    Status(Status),
    /// Which replica it is, and its role now. Not in a session of two.
    Replica(ReplicaId, Role),
    /// How its peers stand. Not in a session of two.
    Peers(Standing),
    /// It has ended.
    Ended(Result<Counts, SessionError>),
}

/// How an engine stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Status {
    /// Nothing to do but wait.
    pub(crate) idle: bool,
    /// Its whole tree has been looked at since the start.
    pub(crate) scanned: bool,
    /// The peer has acknowledged all of its feed.
    pub(crate) sent_all: bool,
    /// Sums of what was got from and given to the peer so far: nothing is on its way when both sides' sums match.
    pub(crate) messages_in: u64,
    pub(crate) messages_out: u64,
    /// Entries that wait.
    pub(crate) waiting: u64,
    /// The peer holds what it was brought, but for what waits there. `None` if this end does not ask.
    #[serde(default)]
    pub(crate) peer_holds: Option<bool>,
}

#[derive(Clone, Copy, Default, Debug)]
struct JoinSeen {
    equal: u64,
    only_here: u64,
    different: u64,
}

/// See the module.
pub(crate) struct Engine {
    side: Side,
    shared: Shared,
    role: Role,
    filter: Filter,
    volume: Directory,
    store: Arc<dyn Store>,
    volume_id: u128,
    /// What came before there was room to begin; taken before what is in the inbox.
    early_input: VecDeque<ToEngine>,
    inbox: Channel<ToEngine>,
    out: ChannelSender<FromEngine>,
    /// From the command line, by the socket.
    commands: Channel<AcceptCommand>,
    hints_in: Channel<Vec<Hint>>,
    watcher: Option<Watcher>,
    watch_dirs: bool,
    links: Links,
    lags: Lags,
    /// What a daemon's engine is told; `None` in a session of two.
    service: Option<Service>,
    /// It looks at its tree once more before it sets aside what is beyond a Cut; nobody is linked.
    setting_aside: bool,
    becoming: role::Becoming,
    heads: believe::Heads,

    // what is to be done
    hints: BTreeSet<(NodeKey, Name)>,
    /// See [`JUDGE_PAUSE_SHARE`].
    judge_not_before: Instant,
    unscanned: Unscanned,
    stager: Option<Stager>,
    staging: usize,
    batches: VecDeque<Ready>,
    early: HashMap<(EntryId, Dot), Early>,
    early_dirs: HashMap<EntryId, Arc<StagedDir>>,
    /// Directories in batches that are being staged: the next batch may have them again.
    dirs_on_their_way: HashSet<EntryId>,
    queue: VecDeque<EntryId>,
    queued: HashSet<EntryId>,
    backlog_from: Option<u64>,
    pass: Option<Pass>,
    want_crawl: bool,
    inodes: BTreeSet<NodeKey>,
    after_looks: BTreeSet<EntryId>,
    lists: BTreeSet<NodeKey>,
    elsewhere: Elsewhere,
    later: BTreeMap<Instant, Vec<RelPath>>,
    open_files: OpenFiles,
    copies: Copies,
    routine: Routine,

    // what it knows
    taking: Taking,
    scanned: bool,
    crawled: bool,
    adoption: Option<Adoption>,
    join: JoinSeen,
    /// Things moved out of the way, because only this tree has them and its index was lost.
    put_aside_n: u64,
    planned: u64,
    head: u64,
    shipped_n: u64,
    waiting: Waiters,
    causes: Causes,
    nowhere: Nowhere,
    index_full: bool,
    /// After a seal that failed: not before this.
    seal_not_before: Instant,
    /// The last seal: how long the next one may take.
    sealed: Sealed,
    drifted: BTreeSet<Vec<u8>>,
    settling: HashMap<Vec<u8>, u32>,
    hasher: Hasher,
    /// Threads for a first crawl; `Some(None)`: there are none to be had.
    readers: Option<Option<ahead::Readers>>,
    /// The thread for many removals; `Some(None)`: there is none to be had.
    mover: Option<Option<mover::Mover>>,
    /// What they have found of the file that is being judged.
    found_ahead: Option<(NodeKey, hasher::Found)>,
    deltas: Deltas,
    /// The peer is another engine of this process: whole files are copied as fast as they could be compared.
    peer_in_process: bool,
    provisional: u64,
    new_dirs: Vec<NodeKey>,
    contents: Contents,
    /// Who brought what is being merged.
    merging_from: Option<LinkId>,
    left: Left,
    /// Plans of the last process are being done again.
    redoing: bool,
    limbos: Limbos,
    hidden: Hidden,
    bin: Option<trash::Bin>,
    /// Plans whose moves no sync has covered yet.
    open_plans: Vec<u64>,
    /// Plans whose moves a sync has covered, and whose victims rest in limbo.
    resting_plans: Vec<u64>,
    next_plan: u64,
    unsealed: bool,
    failed_syncs: FailedSyncs,
    /// What paths showed before changes that no seal has covered.
    before: BeforeRows,
    /// Since when there is something that no seal has covered.
    unsealed_since: Instant,
    /// When the last sign of life was given.
    alive_at: Instant,
    /// Set after a power cut until the tree has been looked at.
    last_moments: Option<LastMoments>,
    lazy: bool,
    merges_lazy: bool,
    /// What the last transaction knew.
    warm: Arc<Warm>,
    dir_cache: LruCache<NodeKey, DirFd>,
    paths: HashMap<NodeKey, RelPath>,
    removals_in_window: u64,
    removed_in_window: u64,
    removal_window_at: Instant,
    rollback: Rollback,
    stage_ids: StageIds,
    /// The file of its index, if that is written.
    index: Option<std::path::PathBuf>,
    propagation: Propagation,
    /// When this process began with it, by the wall clock.
    begun_ns: u64,

    // what it says
    counts: Counts,
    phase: Phase,
    status: Status,
    said_counts: (Counts, Instant),
    last_work: Instant,
    last_beat: Instant,
    stopping: bool,
    /// What ends it, met where it could not be returned.
    failed: Option<Fail>,
}

impl Engine {
    /// Runs until it is told to stop or cannot go on.
    fn run(&mut self) -> Result<(), Fail> {
        self.begin()?;
        while !self.stopping {
            self.take_input()?;
            if let Some(e) = self.failed.take() {
                return Err(e);
            }
            if self.stopping {
                break;
            }
            if self.work()? {
                self.last_work = Instant::now();
                self.tell_progress(false);
                self.tell_peers(false)?;
            } else {
                self.tell_status()?;
                self.wait();
            }
        }
        self.finish()
    }

    fn begin(&mut self) -> Result<(), Fail> {
        self.set_phase(Phase::Starting);
        self.take_filter()?;
        let new_and_empty = self.is_new_and_empty()?;
        (self.scanned, self.crawled) = (self.scanned || new_and_empty, new_and_empty);
        let snapshot = self.store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        if new_and_empty {
            tx.put(Table::Settings, open::SETTING_SCANNED.to_vec(), Some(vec![1]));
        }
        self.head = tx.head();
        self.sealed.head = self.head;
        for (w, mut n) in needs::list(&mut tx, None, usize::MAX)? {
            // A new process tries everything at once: whatever it was may be gone.
            if !n.is_skipped() {
                (n.tries, n.retry_ns) = (0, 0);
            }
            self.waiting.insert(w, n);
        }
        self.load_nowhere(&mut tx)?;
        self.load_lags(&mut tx)?;
        self.load_heads(&tx)?;
        let own = self.own_hello();
        let me = tx.me();
        sites::set_name(&mut tx, me, &own.site)?;
        self.tell_role(me)?;
        let unplanned = tx.feed_after(self.planned, QUEUE_MAX + 1)?;
        if unplanned.len() > QUEUE_MAX {
            self.backlog_from = Some(self.planned);
        } else {
            self.planned = self.head;
            unplanned.iter().for_each(|(_, id)| tx.add_pending(*id));
        }
        for id in tx.pending(usize::MAX)? {
            if !self.waiting.get(&Waiter::Entry(id)).is_some_and(needs::Need::is_skipped) {
                self.enqueue(id);
            }
        }
        self.commit(tx)?;
        self.check_cuts()?;
        self.redo_intents()?;
        self.verify_at_start()?;
        self.begin_alone()?;
        if self.scanned && !self.crawled {
            self.start_crawl();
        }
        Ok(())
    }

    /// An empty tree has nothing to be scanned: what the peer has may be written at once, while it still scans.
    fn is_new_and_empty(&self) -> Result<bool, Fail> {
        if self.scanned || self.lost_index()? {
            return Ok(false);
        }
        let root = self.volume.dir(&[], None).map_err(Fail::Volume)?;
        Ok(root.list().map_err(Fail::Volume)?.is_empty())
    }

    /// True once the disk has been compared with the records since the start: before that, what a plan meets
    /// may be changes nobody has looked at yet.
    fn may_plan(&self) -> bool {
        self.scanned && self.crawled
    }

    fn own_hello(&self) -> OwnHello {
        OwnHello {
            volume: self.volume_id,
            site: self.site_name(),
            role: self.role,
            inline: self.scanned && !self.shared.dry_run,
            scanned: self.scanned,
        }
    }

    /// The peer, if there is but one: what only helps one is done for no more.
    fn only_peer(&self) -> Option<&Peer> {
        let mut peers = self.links.peers();
        peers.next().filter(|_| peers.next().is_none()).map(|(_, peer)| peer)
    }

    /// What messages call this replica.
    fn volume_name(&self) -> String {
        self.volume.root_path().map_or_else(|_| self.site_name(), |p| p.display().to_string())
    }

    fn site_name(&self) -> String {
        match self.side {
            Side::A => self.shared.site_names.0.clone(),
            Side::B => self.shared.site_names.1.clone(),
        }
    }

    // ----- input

    fn take_input(&mut self) -> Result<(), Fail> {
        while let Some(m) = self.early_input.pop_front() {
            self.handle(m)?;
        }
        while let Ok(m) = self.inbox.try_recv() {
            self.handle(m)?;
        }
        while let Ok(hints) = self.hints_in.try_recv() {
            self.take_hints(hints);
        }
        while let Some(Ok(ready)) = self.stager.as_ref().map(|s| s.ready.try_recv()) {
            self.take_ready(ready);
        }
        while let Ok(read) = self.hasher.done.try_recv() {
            self.take_read(read);
        }
        while let Ok(done) = self.deltas.done.try_recv() {
            self.take_done(done)?;
        }
        while let Ok(command) = self.commands.try_recv() {
            self.take_command(&command)?;
        }
        Ok(())
    }

    fn take_ready(&mut self, ready: Ready) {
        self.staging -= 1;
        self.batches.push_back(ready);
    }

    fn wait(&mut self) {
        let ready = self.stager.as_ref().map_or_else(crossbeam_channel::never, |s| s.ready.clone());
        let inbox = self.inbox.clone();
        let hints_in = self.hints_in.clone();
        let read = self.hasher.done.clone();
        let done = self.deltas.done.clone();
        let commands = self.commands.clone();
        let timeout = match self.index_full {
            true => causes::PROBE_EVERY,
            false => self.next_deadline().saturating_duration_since(Instant::now()),
        };
        crossbeam_channel::select! {
            recv(inbox) -> m => match m {
                Ok(m) => if let Err(e) = self.handle(m) { self.fail_next(e) },
                Err(_) => self.stopping = true,
            },
            recv(ready) -> r => match r {
                Ok(r) => self.take_ready(r),
                // It ends with the engine only.
                Err(_) => self.stager = None,
            },
            recv(commands) -> c => match c {
                Ok(c) => if let Err(e) = self.take_command(&c) { self.fail_next(e) },
                // There is no socket (any more).
                Err(_) => self.commands = crossbeam_channel::never(),
            },
            // It ends with the engine only.
            recv(read) -> r => if let Ok(r) = r { self.take_read(r) },
            // It ends with the engine only.
            recv(done) -> d => if let Ok(d) = d
                && let Err(e) = self.take_done(d) { self.fail_next(e) },
            recv(hints_in) -> h => match h {
                Ok(h) => self.take_hints(h),
                // No watcher (any more): a closed channel would be ready for ever.
                Err(_) => self.hints_in = crossbeam_channel::never(),
            },
            default(timeout) => {}
        }
    }

    /// An error met where none can be returned: it ends the next round.
    fn fail_next(&mut self, e: Fail) {
        self.failed.get_or_insert(e);
    }

    fn next_deadline(&self) -> Instant {
        let now = Instant::now();
        let mut at = self.last_beat + HEARTBEAT_EVERY;
        if self.scanned && self.has_hints() && self.is_met() {
            at = at.min(self.judge_not_before);
        }
        if let Some(seal) = self.seal_due() {
            at = at.min(seal);
        }
        if let Some(probe) = self.causes.due(&self.waiting) {
            at = at.min(probe);
        }
        if let Some(look) = self.limbos.next_look() {
            at = at.min(look);
        }
        if let Some((t, _)) = self.later.first_key_value() {
            at = at.min(*t);
        }
        if let Some(look) = self.open_files.next_look() {
            at = at.min(look);
        }
        if let Some(expiry) = self.copies.next_expiry() {
            at = at.min(expiry);
        }
        if let Some(judge) = self.rollback.due() {
            at = at.min(judge);
        }
        for crawl in [self.routine.due(), self.elsewhere.due()].into_iter().flatten() {
            at = at.min(crawl);
        }
        let now_ns = steady_ns();
        if let Some(due_ns) = self.waiting.next_due_ns() {
            at = at.min(now + Duration::from_nanos(due_ns.saturating_sub(now_ns)));
        }
        if let Some(coming) = self.next_coming() {
            at = at.min(coming);
        }
        if let Some(ms) = self.links.poll_at_ms() {
            at = at.min(now + Duration::from_millis(ms.saturating_sub(now_ns / 1_000_000)));
        }
        at.max(now + Duration::from_micros(100))
    }

    fn handle(&mut self, m: ToEngine) -> Result<(), Fail> {
        match m {
            ToEngine::Stop => {
                self.stopping = true;
                Ok(())
            }
            ToEngine::Tune(id, tuning) => {
                self.tune(id, tuning);
                Ok(())
            }
            ToEngine::Role(role) => self.change_role(role),
            ToEngine::Claims(to) => self.tell_claims(&to),
            ToEngine::LinkUp(id, key, queue) => self.link_up(id, key, queue),
            ToEngine::Room(id) => self.room_for(id),
            ToEngine::Counted(id, message, _permit) => self.take_from_link(id, message),
            ToEngine::LinkDown(id) => self.link_down(id),
            ToEngine::Retry => self.retry_everything(),
            ToEngine::Skip(what, to) => self.skip(&what, &to),
            ToEngine::Link(id, message) => self.take_from_link(id, message),
        }
    }

    fn me(&self) -> Result<ReplicaId, Fail> {
        let snapshot = self.store.snapshot()?;
        Ok(Tx::open(&*snapshot, self.env())?.me())
    }

    fn take_hints(&mut self, hints: Vec<Hint>) {
        for h in hints {
            match h {
                Hint::Look { dir, name } if !self.scanned => self.unscanned.hear(dir, name),
                Hint::Look { dir, name } => {
                    self.hints.insert((dir, name));
                }
                Hint::Inode { key } => {
                    self.inodes.insert(key);
                }
                Hint::Overflow => self.want_crawl = true,
                Hint::RootGone => {
                    self.fail_next(Fail::Root("the root directory is gone or was unmounted".into()));
                }
            }
        }
        if self.hints.len() + self.unscanned.len() > HINTS_MAX {
            self.hints.clear();
            self.unscanned = Unscanned::default();
            self.want_crawl = true;
        }
    }

    // ----- work: one bounded piece, in order of urgency

    fn work(&mut self) -> Result<bool, Fail> {
        self.seal_if_overdue()?;
        if !self.is_met() {
            return Ok(false);
        }
        if self.index_is_full()? {
            return Ok(false);
        }
        self.beat_if_due()?;
        if !self.batches.is_empty() {
            self.merge_batches()?;
            return Ok(true);
        }
        if self.scanned {
            self.unscanned.take(&mut self.hints, &mut self.lists);
        }
        if self.scanned
            && self.has_hints()
            && self.judge_not_before <= Instant::now()
            && self.judge_hints()?
        {
            return Ok(true);
        }
        let mut worked = self.pump_send()?;
        worked |= self.pump_wants()?;
        if self.may_plan() && self.plan_some()? {
            return Ok(true);
        }
        worked |= self.retry_due()?;
        self.answer_coming()?;
        if self.crawl_some()? {
            return Ok(true);
        }
        if self.ready_to_adopt()? {
            self.start_adoption()?;
            return Ok(true);
        }
        if self.want_crawl && self.pass.is_none() && self.scanned {
            self.start_crawl();
            return Ok(true);
        }
        worked |= self.become_follower()?;
        worked |= self.seal_if_quiet()?;
        worked |= self.crawl_if_due();
        Ok(worked)
    }

    /// False until somebody has been introduced, which a run between two trees begins with.
    fn is_met(&self) -> bool {
        self.service.is_some() || self.links.met
    }

    fn plan_some(&mut self) -> Result<bool, Fail> {
        if self.queue.is_empty()
            && let Some(from) = self.backlog_from
        {
            let snapshot = self.store.snapshot()?;
            let mut tx = Tx::open(&*snapshot, self.env())?;
            let rows = tx.feed_after(from, apply::ENTRIES_PER_PLAN)?;
            self.backlog_from = rows.last().map(|r| r.0);
            for (_, id) in rows {
                self.enqueue(id);
            }
        }
        if self.queue.is_empty() {
            // The end of the feed was met where the last of it had been planned before.
            self.advance_planned()?;
            return Ok(false);
        }
        if self.plans_wait_for_rollback()? {
            return Ok(false);
        }
        let n = self.queue.len().min(apply::ENTRIES_PER_PLAN);
        let chunk: Vec<EntryId> = self.queue.drain(..n).collect();
        for id in &chunk {
            self.queued.remove(id);
        }
        self.plan_and_apply(&chunk)?;
        self.advance_planned()?;
        Ok(true)
    }

    /// Everything up to the head was planned: what is not done is pending or on the needs list.
    fn advance_planned(&mut self) -> Result<(), Fail> {
        if !self.queue.is_empty() || self.backlog_from.is_some() || self.planned == self.head {
            return Ok(());
        }
        // Told with the next commit; a crash before it plans these entries once more, for nothing. Of many there is such a commit at the
        // latest when nothing is left to do: else each start would plan a large tree again that was joined and never changed since.
        self.lazy |= !self.shared.dry_run && self.head - self.planned >= apply::ENTRIES_PER_PLAN as u64;
        self.planned = self.head;
        Ok(())
    }

    fn has_hints(&self) -> bool {
        !(self.hints.is_empty() && self.inodes.is_empty() && self.lists.is_empty())
    }

    /// False if none was about anything of ours: a mark on the file system tells of strangers' files as well, and who
    /// works beside the tree must not keep this from being quiet.
    fn judge_hints(&mut self) -> Result<bool, Fail> {
        let begun = Instant::now();
        let mut pass = Pass::of_names();
        let snapshot = self.store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        for key in std::mem::take(&mut self.inodes) {
            // An inode of ours whose attributes changed: by each of its names. The root has none.
            let Some(node) = tx.node(&key)? else { continue };
            if node.kind.is_dir() {
                self.dir_changed(&key);
            }
            if node.names.is_empty() {
                pass.touch(key);
            } else {
                self.hints.extend(node.names.iter().cloned());
            }
        }
        for key in std::mem::take(&mut self.lists) {
            if tx.node(&key)?.is_some_and(|n| n.kind.is_dir()) {
                pass.todo.push_back(key);
            }
        }
        let (mut again, mut looked) = (Vec::new(), false);
        for _ in 0..LOOKS_PER_COMMIT {
            let Some((dir, name)) = self.hints.pop_first() else { break };
            if tx.node(&dir)?.is_none() {
                again.push((dir, name));
                continue;
            }
            looked = true;
            self.waiting.retry_at(&dir, &name, steady_ns() + RETRY_AFTER_EVENT_NS);
            self.look_at_name(&mut tx, &mut pass, &dir, &name)?;
        }
        pass.by_name = false;
        if !looked && pass.is_empty() && self.after_looks.is_empty() {
            return Ok(false);
        }
        self.run_small_pass(tx, pass)?;
        if self.hints.is_empty() {
            let now = Instant::now();
            self.judge_not_before = now + ((now - begun) * JUDGE_PAUSE_SHARE).min(JUDGE_PAUSE_MAX);
        }
        // What was in the way has been looked at: the plans that met it may fit now.
        for id in std::mem::take(&mut self.after_looks) {
            let tries = self.waiting.get(&Waiter::Entry(id)).map_or(0, |n| n.tries);
            if tries < RACES_AT_ONCE_MAX {
                self.enqueue(id);
            }
        }
        // Names in directories that were not known before: known now, or not ours.
        let snapshot = self.store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        for (dir, name) in again {
            if tx.node(&dir)?.is_some() && tx.place(&dir, &name)?.is_none() {
                self.hints.insert((dir, name));
            }
        }
        self.hasher.forget_but(&self.hints);
        self.look_where_found()?;
        Ok(true)
    }

    /// Lists what a pass wants listed, judges it, commits.
    fn run_small_pass(&mut self, tx: Tx<'_>, mut pass: Pass) -> Result<(), Fail> {
        let mut tx = Some(tx);
        let mut snapshot;
        loop {
            let mut t = match tx.take() {
                Some(t) => t,
                None => {
                    snapshot = self.store.snapshot()?;
                    // The transaction must not outlive the snapshot of this round.
                    let mut t = Tx::open(&*snapshot, self.env())?;
                    self.step_pass(&mut t, &mut pass)?;
                    let over = pass.is_listed();
                    if over {
                        self.resolve(&mut t, &mut pass)?;
                    }
                    self.commit_local(t, &mut pass)?;
                    self.offer_removals(&mut pass)?;
                    if over && pass.is_listed() && pass.is_settled() {
                        return Ok(());
                    }
                    continue;
                }
            };
            if pass.is_listed() {
                self.resolve(&mut t, &mut pass)?;
            }
            self.commit_local(t, &mut pass)?;
            self.offer_removals(&mut pass)?;
            if pass.is_listed() && pass.is_settled() {
                return Ok(());
            }
        }
    }

    /// Many removals leave while the rest of them is still being recorded. Other changes wait for the end of what was heard of:
    /// what is new may be about to replace something.
    fn offer_removals(&mut self, pass: &mut Pass) -> Result<(), Fail> {
        if pass.removed >= REMOVALS_OFFERED {
            pass.removed = 0;
            self.pump_send()?;
        }
        Ok(())
    }

    fn start_crawl(&mut self) {
        self.want_crawl = false;
        self.set_phase(Phase::Scanning);
        self.begin_crawl();
    }

    fn begin_crawl(&mut self) {
        self.rollback.crawl_starts();
        self.pass = Some(Pass::crawl(self.volume.root_key()));
    }

    /// True while the peer has batches to work on and contents read by the crawl wait for the next ones: reading
    /// on would mean to read them twice. Its receipts end this.
    fn crawl_is_ahead(&self) -> bool {
        self.taking == Taking::Import
            && self.cache_room() < CACHE_ROOM_MIN
            && self.only_peer().is_some_and(|p| p.inline && p.sender.backlog(self.head).in_flight_bytes > 0)
    }

    fn crawl_some(&mut self) -> Result<bool, Fail> {
        if self.crawl_is_ahead() {
            return Ok(false); // what was read is kept for the batches that ship it
        }
        let Some(mut pass) = self.pass.take() else { return Ok(false) };
        let snapshot = self.store.snapshot()?;
        let mut tx = self.open_tx(&*snapshot)?;
        self.step_pass(&mut tx, &mut pass)?;
        let over = pass.is_listed();
        if over {
            self.resolve(&mut tx, &mut pass)?;
        }
        self.commit_local(tx, &mut pass)?;
        if over && pass.is_listed() && pass.is_settled() {
            self.crawl_over()?;
        } else {
            self.pass = Some(pass);
        }
        Ok(true)
    }

    fn crawl_over(&mut self) -> Result<(), Fail> {
        self.crawled = true;
        self.routine.crawl_over(Instant::now());
        self.becoming.looked();
        self.last_moments = None;
        self.heal_rollback()?;
        if !self.scanned {
            self.scanned = true;
            self.taking = Taking::Watch;
            self.adoption = None;
            self.readers = None;
            let mut rows = Rows::new();
            rows.insert((Table::Settings, open::SETTING_SCANNED.to_vec()), Some(vec![1]));
            rows.insert((Table::Settings, open::SETTING_LOST.to_vec()), None);
            self.store.commit(rows)?;
            self.tell_put_aside();
            if self.planned < self.head && self.backlog_from.is_none() {
                self.backlog_from = (self.planned < self.head).then_some(self.planned);
            }
            self.tell_join()?;
        }
        self.answer_deferred()?;
        self.look_where_found()?;
        self.beat()
    }

    /// How the two trees compare, if this one had anything of its own.
    fn tell_join(&mut self) -> Result<(), Fail> {
        let j = self.join;
        if j.equal + j.only_here + j.different == 0 {
            return Ok(());
        }
        let only_there = self.count_unbound()?;
        let (only_a, only_b) = match self.side {
            Side::A => (j.only_here, only_there),
            Side::B => (only_there, j.only_here),
        };
        self.say(Event::Join {
            counts: JoinCounts { equal: j.equal, only_a, only_b, different: j.different },
        });
        Ok(())
    }

    /// Entries that the tree shows and this disk does not have.
    fn count_unbound(&mut self) -> Result<u64, Fail> {
        let snapshot = self.store.snapshot()?;
        let (mut after, mut count) = (0, 0);
        loop {
            // A transaction for each page: what it has read it keeps.
            let mut tx = Tx::open(&*snapshot, self.env())?;
            let rows = tx.feed_after(after, ENTRIES_PER_BATCH)?;
            let Some((last, _)) = rows.last() else { return Ok(count) };
            after = *last;
            for (_, id) in rows {
                let row = tx.entry_must(id)?;
                if !id.is_root()
                    && row.bound.is_empty()
                    && let Some(path) = tree::path_of(&mut tx, id)?
                    && !self.filter.hides(&path, row.entry.kind.is_dir())
                {
                    count += 1;
                }
            }
        }
    }

    /// The peer's states have been read to the head of a complete scan.
    fn ready_to_adopt(&self) -> Result<bool, Fail> {
        if self.taking != Taking::Adopt
            || self.scanned
            || self.pass.is_some()
            || !self.batches.is_empty()
            || self.staging > 0
        {
            return Ok(false);
        }
        // A peer that has no whole tree itself waits for ours: one of two must go first. But it may have states: what our tree has
        // of them is not new.
        let goes_first =
            |p: &Peer| self.service.is_none() && self.side == Side::A && !p.has_tree && p.head_told;
        let snapshot = self.store.snapshot()?;
        let tx = Tx::open(&*snapshot, self.env())?;
        for (_, peer) in self.links.peers().filter(|(_, p)| p.scanned || goes_first(p)) {
            if peer_row(&tx, peer.id)?.cursor >= peer.head {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn start_adoption(&mut self) -> Result<(), Fail> {
        let lost = self.lost_index()?;
        let snapshot = self.store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        self.adoption = Some(Adoption::new(&mut tx, lost)?);
        drop(tx);
        self.start_crawl();
        Ok(())
    }

    // ----- paths

    /// Where a known directory is on this disk, by its records. `None` if it is not below the root any more.
    fn path_of_node(&mut self, tx: &mut Tx<'_>, key: &NodeKey) -> Result<Option<RelPath>, Fail> {
        if let Some(p) = self.paths.get(key) {
            return Ok(Some(p.clone()));
        }
        let root = self.volume.root_key();
        let mut names = Vec::new();
        let mut at = key.clone();
        while at != root {
            let Some(node) = tx.node(&at)? else { return Ok(None) };
            let Some((parent, name)) = node.names.first() else { return Ok(None) };
            names.push(name.clone());
            if names.len() > DEPTH_MAX {
                return Err(Fail::Core(tx::Error::Inconsistent("a directory lies below itself".into())));
            }
            at = parent.clone();
        }
        names.reverse();
        let path = RelPath(names);
        if self.paths.len() > 10_000 {
            self.paths.clear();
        }
        self.paths.insert(key.clone(), path.clone());
        Ok(Some(path))
    }

    /// Directories have moved: nothing remembered about paths holds.
    fn forget_dirs(&mut self) {
        self.paths.clear();
        self.dir_cache.clear();
        self.volume.invalidate_dirs();
    }

    fn watch_dir(&mut self, fd: &DirFd) {
        if self.watch_dirs
            && let Some(w) = &self.watcher
            && let Err(e) = w.watch_dir(fd)
        {
            self.log(
                Level::Warn,
                format!("cannot watch a directory: {e}; it is found by the next crawl only"),
            );
        }
    }

    fn count_places(&self) -> Result<u64, Fail> {
        let snapshot = self.store.snapshot()?;
        let (mut n, mut from) = (0u64, Vec::new());
        loop {
            let rows = snapshot.scan(Table::Places, &from, None, 10_000)?;
            let Some(last) = rows.last() else { return Ok(n) };
            n += rows.len() as u64;
            from = last.0.clone();
            from.push(0);
        }
    }

    // ----- drift of a follower

    fn follows(&self) -> bool {
        self.role == Role::Follower
    }

    fn say_drift(&mut self, path: &RelPath, what: &str) {
        let bytes = path.join_bytes();
        if self.drifted.insert(bytes.clone()) {
            self.counts.drift += 1;
            self.say(Event::Drift { side: self.side, path: PathText::new(&bytes), what: what.into() });
        }
    }

    // ----- saying

    fn say(&mut self, e: Event) {
        // A session that is gone needs no events.
        let _ = self.out.send(FromEngine::Event(e));
    }

    fn log(&mut self, level: Level, text: String) {
        self.say(Event::Log { side: Some(self.side), level, text });
    }

    fn set_phase(&mut self, phase: Phase) {
        if self.phase != phase {
            self.phase = phase;
            self.say(Event::Phase { side: self.side, phase });
        }
    }

    fn tell_progress(&mut self, now: bool) {
        if self.counts != self.said_counts.0 && (now || self.said_counts.1.elapsed() >= PROGRESS_EVERY) {
            self.said_counts = (self.counts, Instant::now());
            self.say(Event::Progress { side: self.side, counts: self.counts });
        }
    }

    fn is_idle(&self) -> bool {
        // A dry run tries nothing.
        let tried = self.shared.dry_run || self.waiting.all_tried();
        (self.service.is_some() || self.links.peers().next().is_some())
            && self.scanned
            && self.crawled
            && (self.pass.is_none() || self.routine.is_under_way())
            && !self.has_hints()
            && self.hasher.is_idle()
            && self.deltas.is_idle()
            && !self.contents.is_fetching()
            && self.batches.is_empty()
            && self.staging == 0
            && self.queue.is_empty()
            && self.backlog_from.is_none()
            && self.links.ask_nothing()
            && self.later.is_empty()
            && self.elsewhere.is_empty()
            && !self.want_crawl
            && tried
            && !self.rollback.is_waiting()
    }

    fn tell_status(&mut self) -> Result<(), Fail> {
        self.status.idle = self.is_idle();
        if self.status.idle {
            self.contents.close_served();
            self.set_phase(Phase::Watching);
            self.seal_to_end()?;
            self.tell_held()?;
        }
        self.tell_status_now()
    }

    fn tell_status_now(&mut self) -> Result<(), Fail> {
        let new = Status {
            scanned: self.scanned && self.crawled,
            sent_all: self.links.sent_all(),
            messages_in: self.links.messages_in(),
            messages_out: self.links.messages_out(),
            waiting: self.waiting.len() as u64,
            peer_holds: self.peer_holds(),
            ..self.status
        };
        if new.idle {
            self.tell_progress(true);
        }
        self.status = new;
        self.tell_peers(new.idle)?;
        self.post(FromEngine::Status(new))
    }
}

/// What a message adds to the sums that tell whether something is on its way. Heartbeats start no work; a
/// carrier may cut a piece into several, so that only its bytes are the same at both ends.
fn weight(message: &Message) -> u64 {
    match message {
        Message::Heartbeat { .. } => 0,
        Message::Piece(piece) => piece.bytes.len() as u64,
        _ => 1,
    }
}

/// Entries of one batch: bounds what a receiver merges in one transaction.
const ENTRIES_PER_BATCH: usize = 2048;

/// Races are over soon; other causes take people or time.
fn pause_ns(reason: Reason, tries: u64) -> u64 {
    match reason {
        Reason::Raced | Reason::NotEmpty | Reason::ParentWaits if tries < 10 => 100_000_000,
        _ => retry_pause_ns(tries),
    }
}

fn retry_pause_ns(tries: u64) -> u64 {
    const FIRST_NS: u64 = 200_000_000;
    const MAX_NS: u64 = 10_000_000_000;
    FIRST_NS.saturating_mul(1 << tries.saturating_sub(1).min(16)).min(MAX_NS)
}

/// For pauses and due times: the wall clock of the process's start and what has passed since. A clock that is put
/// back a year must not make what waits wait for a year.
fn steady_ns() -> u64 {
    static START: OnceLock<(Instant, u64)> = OnceLock::new();
    let (start, wall) = START.get_or_init(|| (Instant::now(), wall_ns()));
    wall.saturating_add(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX))
}

fn wall_ns() -> u64 {
    // A clock before 1970 counts as 1970; causality does not depend on it.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

fn random_u64() -> Result<u64, Fail> {
    getrandom::u64().map_err(|e| Fail::Bug(format!("the system gives no random numbers: {e}")))
}

fn dirs_open_max() -> NonZeroUsize {
    let few = driftless_volume::dirs_open_for_limit();
    NonZeroUsize::new(DIRS_OPEN_MAX).unwrap_or(NonZeroUsize::MIN).min(few)
}

/// A reason of the volume in the words of the closed list.
fn volume_reason(e: &VolumeError) -> Reason {
    reason_of(e.reason())
}

fn apply_reason(e: &ApplyError) -> Reason {
    reason_of(e.reason())
}

fn reason_of(r: driftless_volume::Reason) -> Reason {
    use driftless_volume::Reason as V;
    match r {
        V::Denied => Reason::Denied,
        V::NoSpace | V::TooLarge => Reason::NoSpace,
        V::NameTooLong => Reason::NameTooLong,
        V::ReadOnly => Reason::ReadOnly,
        V::Busy => Reason::Busy,
        V::Raced | V::Unexpected | V::NotFound | V::WrongIdentity | V::NotDirectory => Reason::Raced,
        V::NotEmpty => Reason::NotEmpty,
        V::Fixed => Reason::ReadOnly,
        V::CrossDevice => Reason::OtherFileSystem,
        V::Unsupported => Reason::Unsupported,
        V::WrongContent => Reason::ContentMissing,
        V::TooManyOpen => Reason::TooManyOpen,
        V::SyncFailed => Reason::SyncFailed,
        _ => Reason::Io,
    }
}
