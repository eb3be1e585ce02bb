//! Opening a replica: guards, lock, index, marker; starting the watcher.

use super::causes::Causes;
use super::content::Contents;
use super::copies::Copies;
use super::delta::Deltas;
use super::hasher::Hasher;
use super::hidden::Hidden;
use super::limbo::Limbos;
use super::lost;
use super::no_room;
use super::nowhere::{self, AcceptCommand, Nowhere};
use super::open_files::OpenFiles;
use super::recover::Left;
use super::routine::Routine;
use super::seal::Sealed;
use super::stager::{StageIds, Stager};
use super::successor;
use super::suspect::BeforeRows;
use super::unscanned::Unscanned;
use super::waiters::Waiters;
use super::{Engine, Fail, FromEngine, JoinSeen, Status, ToEngine, dirs_open_max, random_u64, wall_ns};
use crate::api::{Counts, Level, Phase, Shared, Side};
use crate::control::ControlServer;
use crate::filter::Filter;
use crate::overlay::OverlayStore;
use crate::query;
use crate::trust::Trust;
use crossbeam_channel::{Receiver as Channel, Sender as ChannelSender, bounded, never, unbounded};
use driftless_core::fitness::{self, Weight};
use driftless_core::link::Role;
use driftless_core::local;
use driftless_core::rows::{MemStore, Store, Table};
use driftless_core::tx::{self, Env};
use driftless_core::{ReplicaId, Tx};
use driftless_index::{Index, IndexError, Lock, LockError, StateDir, StateDirError};
use driftless_volume::{Directory, Hint, Marker, WatchMode, Watcher};
use lru::LruCache;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

/// Set once the tree was taken in for the first time.
pub(super) const SETTING_SCANNED: &[u8] = b"scanned";
/// Feed position up to which everything was planned.
pub(super) const SETTING_PLANNED: &[u8] = b"planned";
/// The volume's id.
pub(super) const SETTING_VOLUME: &[u8] = b"volume";
/// Set while an index is being built anew for a tree that had one.
pub(super) const SETTING_LOST: &[u8] = b"lost_index";
/// Batches of hints between the watcher and the engine; beyond it the watcher says overflow and the tree is crawled.
const HINT_BATCHES_MAX: usize = 1024;

/// What an engine holds while it runs: the locks, and the socket that answers queries on its index.
pub(super) struct Held {
    /// The index file, if it may be written.
    index: Option<PathBuf>,
    _control: Option<ControlServer>,
    _lock: Lock,
    /// On the tree itself: another process may have it with a state directory of its own.
    _tree: Option<Lock>,
}

/// What an engine is started with.
#[derive(Clone)]
pub(crate) struct EngineOptions {
    pub(crate) side: Side,
    pub(crate) root: PathBuf,
    pub(crate) state: StateDir,
    pub(crate) shared: Shared,
    /// The other end is a thread of this process: its bytes were hashed by this program and went through no wire.
    pub(crate) peer_in_process: bool,
    /// For an engine of a daemon.
    pub(crate) service: Option<Service>,
}

/// What a daemon tells the engine of a volume, which in a session of two ends follows from their sides.
#[derive(Clone, Debug)]
pub struct Service {
    /// The volume's id.
    pub volume: u128,
    /// The volume began with this replica: it takes in its tree without asking anybody.
    pub first: bool,
    /// Whether it makes changes.
    pub role: Role,
    /// Whom to believe what. May change while it runs.
    pub trust: Arc<Trust>,
    /// What is beyond a Cut of this replica is set aside, instead of waiting for somebody to say so.
    pub set_aside: bool,
}

/// Starts the engine on a thread of its own. It ends by [`FromEngine::Ended`], whatever happens.
pub(crate) fn start(
    options: EngineOptions,
    inbox: Channel<ToEngine>,
    out: ChannelSender<FromEngine>,
) -> std::io::Result<JoinHandle<()>> {
    let name = format!("engine-{:?}", options.side);
    std::thread::Builder::new().name(name).spawn(move || {
        let whose = options.root.display().to_string();
        let opened = no_room::open_when_there_is_room(&options, &inbox, &out);
        let result = opened.and_then(|opened| {
            // Told to end before there was room.
            let Some((mut engine, held)) = opened else { return Ok(Counts::default()) };
            let result = engine.run().map(|()| engine.counts);
            // The index is closed before the lock goes: who gets the lock next finds it closed.
            drop(engine);
            let result = match (result, held.as_ref().and_then(|h| h.index.as_ref())) {
                (Err(Fail::Succeeded(what)), Some(index)) => Err(take_over(index, what)),
                (Err(e), Some(index)) if is_of_no_use(&e) => Err(put_index_aside(index, &e)),
                (result, _) => result,
            };
            drop(held);
            result
        });
        // Nobody listens any more if this fails: the session has ended.
        let _ = out.send(FromEngine::Ended(result.map_err(|e| e.into_error(&whose))));
    })
}

impl Engine {
    pub(super) fn open(
        options: EngineOptions,
        inbox: Channel<ToEngine>,
        out: ChannelSender<FromEngine>,
    ) -> Result<(Engine, Option<Held>), Fail> {
        let EngineOptions { side, root, state, shared, peer_in_process, service } = options;
        let create_private = !shared.dry_run;
        refuse_unsafe_kind(&root, &shared)?;
        let volume =
            Directory::open(&root, driftless_volume::OpenOptions { create_private }).map_err(Fail::Volume)?;
        refuse_unsafe_renames(&root, &volume, &shared)?;
        let filter = Filter::new(&shared.filters)
            .map_err(|e| Fail::Refused { what: e.to_string(), advice: "correct the pattern".into() })?;
        let tree = if create_private { Some(take(&root.join(PRIVATE), "sync")?) } else { None };
        let marker = volume.marker().map_err(Fail::Volume)?;
        if marker.is_none() && create_private {
            volume.keep_room_for_marker().map_err(Fail::Volume)?;
        }
        let Opened { store, commands, held, kept_as } = open_store(&root, &state, &shared, tree)?;
        let (volume_id, me, lost) = introduce(&*store, marker)?;
        let volume_id = match &service {
            Some(service) => agreed_volume(volume_id, service.volume, &root)?,
            None => volume_id,
        };
        let snapshot = store.snapshot()?;
        let scanned = snapshot.get(Table::Settings, SETTING_SCANNED)?.is_some();
        // A volume gets its id, and with it the marker, when the peer is met for the first time.
        if scanned && marker.is_none() && volume_id != 0 {
            return Err(Fail::Refused {
                what: format!("{} has no marker in .driftless, but was synced before", root.display()),
                advice: "is the disk mounted? If the directory was emptied or replaced on purpose, remove its state \
                         directory: it is then taken as a new copy and nothing is deleted on the other side"
                    .into(),
            });
        }
        let planned = match snapshot.get(Table::Settings, SETTING_PLANNED)? {
            Some(b) => u64::from_be_bytes(b.try_into().unwrap_or_default()),
            None => 0,
        };
        drop(snapshot);
        let role = match (&service, side) {
            (Some(service), _) => service.role,
            (None, Side::B) if shared.active_passive => Role::Follower,
            _ => Role::Writer,
        };
        let (hints_out, hints_in) = bounded(HINT_BATCHES_MAX);
        let watcher =
            if shared.dry_run || shared.once { None } else { start_watcher(&volume, hints_out, &out, side) };
        let stage_ids = StageIds::default();
        let stager = match shared.dry_run {
            true => None,
            false => {
                Some(Stager::start(volume.clone(), stage_ids.clone(), !peer_in_process).map_err(|e| {
                    Fail::Refused {
                        what: format!("cannot start a thread: {e}"),
                        advice: "raise the limit of processes (ulimit -u)".into(),
                    }
                })?)
            }
        };
        let now = Instant::now();
        let mut engine = Engine {
            side,
            role,
            filter,
            volume,
            store,
            volume_id,
            early_input: VecDeque::new(),
            inbox,
            out,
            commands,
            hints_in,
            watch_dirs: watcher.as_ref().is_some_and(|w| w.mode() == WatchMode::Directories),
            watcher,
            links: Default::default(),
            lags: Default::default(),
            service,
            setting_aside: false,
            becoming: Default::default(),
            heads: Default::default(),
            hints: BTreeSet::new(),
            judge_not_before: now,
            unscanned: Unscanned::default(),
            stager,
            staging: 0,
            batches: VecDeque::new(),
            early: HashMap::new(),
            early_dirs: HashMap::new(),
            dirs_on_their_way: HashSet::new(),
            queue: VecDeque::new(),
            queued: HashSet::new(),
            backlog_from: None,
            pass: None,
            want_crawl: false,
            inodes: BTreeSet::new(),
            after_looks: BTreeSet::new(),
            lists: BTreeSet::new(),
            elsewhere: Default::default(),
            later: BTreeMap::new(),
            open_files: OpenFiles::default(),
            copies: Copies::default(),
            routine: Routine::new(&shared),
            taking: super::Taking::Watch,
            scanned,
            crawled: false,
            adoption: None,
            join: JoinSeen::default(),
            put_aside_n: 0,
            planned,
            head: 0,
            shipped_n: 0,
            waiting: Waiters::default(),
            causes: Causes::new(now),
            nowhere: Nowhere::default(),
            index_full: false,
            seal_not_before: now,
            sealed: Sealed::default(),
            drifted: BTreeSet::new(),
            settling: HashMap::new(),
            deltas: Deltas::new(),
            peer_in_process,
            readers: None,
            mover: None,
            found_ahead: None,
            hasher: Hasher::start().map_err(|e| Fail::Refused {
                what: format!("cannot start a thread: {e}"),
                advice: "raise the limit of processes (ulimit -u)".into(),
            })?,
            provisional: 0,
            new_dirs: Vec::new(),
            contents: Contents::new(),
            merging_from: None,
            left: Left::default(),
            redoing: false,
            limbos: Limbos::default(),
            hidden: Hidden::default(),
            bin: None,
            open_plans: Vec::new(),
            resting_plans: Vec::new(),
            next_plan: 1,
            unsealed: false,
            failed_syncs: Default::default(),
            before: BeforeRows::default(),
            unsealed_since: now,
            alive_at: now,
            last_moments: None,
            lazy: false,
            merges_lazy: false,
            warm: Arc::default(),
            dir_cache: LruCache::new(dirs_open_max()),
            paths: HashMap::new(),
            removals_in_window: 0,
            removed_in_window: 0,
            removal_window_at: now,
            rollback: Default::default(),
            stage_ids,
            index: held.as_ref().and_then(|h: &Held| h.index.clone()),
            propagation: Default::default(),
            begun_ns: super::wall_ns(),
            counts: Counts::default(),
            phase: Phase::Stopping,
            status: Status::default(),
            said_counts: (Counts::default(), now),
            last_work: now,
            last_beat: now,
            stopping: false,
            failed: None,
            shared,
        };
        if lost {
            engine.tell_lost(kept_as.as_deref());
        }
        engine.prepare(me, marker, lost)?;
        Ok((engine, held))
    }

    /// Records the root, judges what a crash left, writes the marker.
    fn prepare(&mut self, me: ReplicaId, marker: Option<Marker>, lost: bool) -> Result<(), Fail> {
        let root = self.volume.dir(&[], None).map_err(Fail::Volume)?;
        let looked = root.looked_self().map_err(Fail::Volume)?;
        let snapshot = self.store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        local::init_root(&mut tx, &looked)?;
        if lost {
            tx.put(Table::Settings, SETTING_LOST.to_vec(), Some(vec![1]));
        }
        if self.service.is_some() {
            tx.put(Table::Settings, SETTING_VOLUME.to_vec(), Some(self.volume_id.to_be_bytes().to_vec()));
        }
        self.commit(tx)?;
        if !self.shared.dry_run {
            self.judge_last_stop()?;
            self.open_bin()?;
            self.recover()?;
            if marker.is_none_or(|m| m.replica != me) && self.volume_id != 0 {
                let marker = Marker { volume: self.volume_id, replica: me };
                self.volume.write_marker(&marker).map_err(Fail::Volume)?;
            }
        }
        Ok(())
    }

    /// True if this tree had an index that is gone: what no peer has then may have been removed by them.
    pub(super) fn lost_index(&self) -> Result<bool, Fail> {
        Ok(self.store.snapshot()?.get(Table::Settings, SETTING_LOST)?.is_some())
    }

    /// The volume's id is known now: the peer's, or, where two replicas meet that had none, one that
    /// both make of their own two ids.
    pub(super) fn take_volume_id(&mut self, peers: u128, me: ReplicaId, peer: ReplicaId) -> Result<(), Fail> {
        let pair = (u128::from(me.0.max(peer.0)) << 64) | u128::from(me.0.min(peer.0));
        self.volume_id = if peers != 0 { peers } else { pair };
        self.save_volume_id()
    }

    /// The marker comes first: a marker of an id that is not recorded yet is taken over, a recorded id without a
    /// marker looks like a disk that is not mounted.
    fn save_volume_id(&mut self) -> Result<(), Fail> {
        let snapshot = self.store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        tx.put(Table::Settings, SETTING_VOLUME.to_vec(), Some(self.volume_id.to_be_bytes().to_vec()));
        if !self.shared.dry_run {
            let marker = Marker { volume: self.volume_id, replica: tx.me() };
            self.volume.write_marker(&marker).map_err(Fail::Volume)?;
        }
        self.commit(tx)
    }

    /// This index was put back to an older state, or cloned: dots it would make next exist already elsewhere. The tree goes on
    /// as another replica, with an index of its own.
    pub(super) fn rebuild(&mut self) -> Result<(), Fail> {
        let what = "the index of this replica is older than what the other side knows of it (restored from a copy, \
                    or cloned)";
        if self.shared.dry_run {
            return Err(Fail::Refused {
                what: what.into(),
                advice: "a real run rebuilds it from the other side and the tree; to see first what that does, move \
                         this replica's index away and run this again"
                    .into(),
            });
        }
        Err(Fail::Rebuild(what.into()))
    }
}

/// True if what failed is the index itself, and another one would do.
fn is_of_no_use(e: &Fail) -> bool {
    matches!(e, Fail::Rebuild(_) | Fail::Core(tx::Error::Damaged { .. }))
}

fn take_over(index: &std::path::Path, what: String) -> Fail {
    match successor::take_over(index) {
        Ok(kept) => Fail::Succeeded(format!("{what}; the index with them is kept as {}", kept.display())),
        Err(e) => Fail::Refused {
            what: format!("{what}, but {} cannot give way to its successor: {e}", index.display()),
            advice:
                "make room in the state directory, and see that its user may write there; it is tried again"
                    .into(),
        },
    }
}

fn put_index_aside(index: &std::path::Path, why: &Fail) -> Fail {
    match lost::set_index_aside(index) {
        Ok(kept) => Fail::Rebuild(format!("{why}; it is kept as {}", kept.display())),
        Err(e) => Fail::Refused {
            what: format!("{why}, and {} cannot be moved away: {e}", index.display()),
            advice:
                "move that file away and run it again: the index is rebuilt from the other side and the tree"
                    .into(),
        },
    }
}

/// Before anything is written there: the kind of the file system alone may say that it is not good enough.
fn refuse_unsafe_kind(root: &std::path::Path, shared: &Shared) -> Result<(), Fail> {
    let (fs, class) = driftless_volume::file_system_of(root).map_err(Fail::Volume)?;
    match fitness::of_class(class) {
        Some((Weight::Unfit, why)) => Err(unsafe_fs(root, &fs, why)),
        Some((Weight::OneWay, why)) if is_both_ways(shared) => Err(unsafe_fs(root, &fs, why)),
        _ => Ok(()),
    }
}

/// A file system may turn out to be good for one way only when it is tried.
fn refuse_unsafe_renames(root: &std::path::Path, volume: &Directory, shared: &Shared) -> Result<(), Fail> {
    let can = volume.capabilities();
    if !is_both_ways(shared) || can.replaces_safely() || volume.recognises_inodes() {
        return Ok(());
    }
    Err(unsafe_fs(root, &can.fs, fitness::NEITHER_EXCHANGE_NOR_IDENTITY))
}

/// True if both ends are written to by users and by us, and nobody has said that this is fine everywhere.
fn is_both_ways(shared: &Shared) -> bool {
    !shared.active_passive && !shared.allow_unsafe_fs && !shared.dry_run
}

fn unsafe_fs(root: &std::path::Path, fs: &str, why: &str) -> Fail {
    Fail::Refused {
        what: format!("{} is on {fs}, which is not safe for two-way use: {why}", root.display()),
        advice: format!(
            "see driftless doctor {}; sync one way only (--active-passive), or give --allow-unsafe-fs if nobody \
             else changes files there while this runs",
            root.display()
        ),
    }
}

/// The private directory as a path; its names are ASCII.
const PRIVATE: &str = ".driftless";

/// Locks a directory of ours, or says who has it.
fn take(dir: &std::path::Path, purpose: &str) -> Result<Lock, Fail> {
    Lock::acquire(dir, purpose).map_err(|e| match &e {
        LockError::Io { source, .. } if no_room::is_full(source) => no_room::no_room(&e),
        LockError::Io { .. } | LockError::Held { .. } => Fail::Refused {
            what: e.to_string(),
            advice: "end that process first, or leave the work to it".into(),
        },
    })
}

/// An open store, what it holds, and where a damaged index was put that it stands in for.
struct Opened {
    store: Arc<dyn Store>,
    commands: Channel<AcceptCommand>,
    held: Option<Held>,
    kept_as: Option<PathBuf>,
}

/// The store and its lock: on disk, or for a dry run a copy that forgets.
fn open_store(
    root: &std::path::Path,
    state: &StateDir,
    shared: &Shared,
    tree: Option<Lock>,
) -> Result<Opened, Fail> {
    let refused = |what: String, advice: &str| Fail::Refused { what, advice: advice.into() };
    if shared.dry_run {
        let known = find_state(state, root);
        let Some(dir) = known else {
            let store = Arc::new(OverlayStore::new(Arc::new(MemStore::new())));
            return Ok(Opened { store, commands: never(), held: None, kept_as: None });
        };
        let lock = take(dir.path(), "sync --dry-run")?;
        let base = Arc::new(open_index(&dir.index(), false).map_err(refuse)?);
        let held = Held { index: None, _control: None, _lock: lock, _tree: tree };
        let store = Arc::new(OverlayStore::new(base));
        return Ok(Opened { store, commands: never(), held: Some(held), kept_as: None });
    }
    let dir = state.replica(root).map_err(|e| match &e {
        StateDirError::Io { source, .. } if no_room::is_full(source) => no_room::no_room(&e),
        _ => refused(e.to_string(), "name another place with --state, or correct the directory's owner"),
    })?;
    let lock = take(dir.path(), "sync")?;
    let (index, kept_as) = open_or_rebuild(&dir.index())?;
    if !index.has_room() {
        // Not even what a start has to write down is sure to find room.
        return Err(no_room::no_room(&"the disk that holds the state directory is full"));
    }
    let index: Arc<dyn Store> = Arc::new(index);
    let queried = index.clone();
    let (ask, commands) = unbounded();
    let control = ControlServer::start(&dir.control(), move |request| match (request, queried.snapshot()) {
        (query::Request::Accept(row), _) => nowhere::ask(&ask, row.clone()),
        (_, Ok(snapshot)) => query::answer(&*snapshot, request),
        (_, Err(e)) => query::Response::Failed(e.to_string()),
    });
    let control = control.map_err(|e| {
        let what = format!("cannot listen at {}: {e}", dir.control().display());
        match no_room::is_full(&e) {
            true => no_room::no_room(&what),
            false => refused(what, "put the state on a file system that can hold sockets (--state)"),
        }
    })?;
    let held = Held { index: Some(dir.index()), _control: Some(control), _lock: lock, _tree: tree };
    Ok(Opened { store: index, commands, held: Some(held), kept_as })
}

/// The state of a root if it has any. Makes nothing.
fn find_state(state: &StateDir, root: &std::path::Path) -> Option<driftless_index::ReplicaDir> {
    let real = root.canonicalize().ok()?;
    let all = state.replicas().ok()?;
    all.into_iter().find(|d| d.index().exists() && d.root().is_ok_and(|r| r == real))
}

fn open_index(path: &std::path::Path, create: bool) -> Result<Index, IndexError> {
    Index::open(path, driftless_index::OpenOptions { create, ..Default::default() })
}

/// The index; if the file is damaged a new one, and where the damaged one is now.
fn open_or_rebuild(path: &std::path::Path) -> Result<(Index, Option<PathBuf>), Fail> {
    match open_index(path, true) {
        Err(IndexError::Damaged { .. }) => {}
        other => return other.map(|index| (index, None)).map_err(refuse),
    }
    let kept = lost::set_index_aside(path).map_err(|e| Fail::Refused {
        what: format!("the damaged index {} cannot be moved away: {e}", path.display()),
        advice: "move it away and run this again".into(),
    })?;
    Ok((open_index(path, true).map_err(refuse)?, Some(kept)))
}

fn refuse(e: IndexError) -> Fail {
    let advice = match &e {
        IndexError::Io { source, .. } if no_room::is_full(source) => return no_room::no_room(&e),
        IndexError::Damaged { .. } => {
            "a real run puts it aside and rebuilds the index from the other side and the tree"
        }
        _ => "see the message",
    };
    Fail::Refused { what: e.to_string(), advice: advice.into() }
}

/// Who this replica is: what its index says, else a new identity. A marker without an index means the index was lost.
fn introduce(store: &dyn Store, marker: Option<Marker>) -> Result<(u128, ReplicaId, bool), Fail> {
    let snapshot = store.snapshot()?;
    if Tx::exists(&*snapshot)? {
        let me = Tx::open(&*snapshot, Env { now_ns: wall_ns(), epoch: 0 })?.me();
        let volume = match snapshot.get(Table::Settings, SETTING_VOLUME)? {
            Some(b) => u128::from_be_bytes(b.try_into().unwrap_or_default()),
            None => 0,
        };
        // A stop may have come between its first start and the marker of that.
        let follows = successor::follows(&*snapshot)?;
        if let Some(m) = marker
            && ((m.replica != me && Some(m.replica) != follows) || (volume != 0 && m.volume != volume))
        {
            return Err(Fail::Refused {
                what: format!("the directory is replica {} of its volume, its index is of replica {me}", m.replica),
                advice: "the directory was copied or exchanged; put the right one back, or remove `.driftless` in it and \
                         its state directory to join it as a new copy"
                    .into(),
            });
        }
        return Ok((volume, me, false));
    }
    let me = ReplicaId(random_u64()?.max(1));
    store.commit(Tx::create(me))?;
    Ok((marker.map_or(0, |m| m.volume), me, marker.is_some()))
}

/// A daemon knows which volume a directory is of before anybody is met.
fn agreed_volume(recorded: u128, named: u128, root: &std::path::Path) -> Result<u128, Fail> {
    if recorded == 0 || recorded == named {
        return Ok(named);
    }
    Err(Fail::Refused {
        what: format!("{} was kept in sync as another volume", root.display()),
        advice: "name another directory; or, to join this one to the volume, remove `.driftless` in it and its state \
                 directory: it is then taken as a copy that joins, and no file is touched by that"
            .into(),
    })
}

fn start_watcher(
    volume: &Directory,
    hints: ChannelSender<Vec<Hint>>,
    out: &ChannelSender<FromEngine>,
    side: Side,
) -> Option<Watcher> {
    match Watcher::start(volume, hints) {
        Ok(w) => Some(w),
        Err(e) => {
            let text = format!("changes are found by crawling only: {e}");
            // Nobody listens any more if this fails: the session has ended.
            let _ = out.send(FromEngine::Event(crate::api::Event::Log {
                side: Some(side),
                level: Level::Warn,
                text,
            }));
            None
        }
    }
}

/// An inbox for an engine. Not bounded: the protocol's windows bound what is on its way.
pub(crate) fn inbox() -> (ChannelSender<ToEngine>, Channel<ToEngine>) {
    unbounded()
}
