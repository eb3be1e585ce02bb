//! The process: owns the records and everything that runs, and does what commands and other sites ask.
//!
//! One lock on what is recorded and what runs ([`Inner`]). Whatever may take long, as talking to another site or stopping a
//! replica, is done without it.

mod asked;
mod asking;
mod commands;
mod feed;
mod joining;
mod loss;
mod membership;
mod rekey;
mod roles;
mod settings;
mod standing;

use crate::config::{Config, Settings, check_name};
use crate::control::{Answer, ControlServer};
use crate::http::HttpServer;
use crate::link::{LinkThread, Order, Target};
use crate::listen::Listener;
use crate::log;
use crate::members::{Book, Membership};
use crate::notify;
use crate::records::{self, Records, Volume, Wanted};
use crate::settings::{VolumeRules, VolumeSettings};
use crossbeam_channel::{Receiver, Sender, bounded, select, unbounded};
use driftless_core::ReplicaId;
use driftless_core::link::Role;
use driftless_core::membership::Key;
use driftless_index::{Lock, StateDir};
use driftless_net::identity::{Identity, PublicKey};
use driftless_net::tls::TlsOptions;
use driftless_node::api::{Event, Level, MaxDelete, OnRollback, PathText, SessionError, Shared as Rules};
use driftless_node::replica::{Replica, ReplicaOptions, Service};
use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often it is looked whether volumes run that should.
const TEND_EVERY: Duration = Duration::from_millis(500);
/// A volume that ended because something was wrong is opened again after this: a disk may have been mounted meanwhile.
const REOPEN_AFTER: Duration = Duration::from_secs(10);
/// How long the guards of a volume are off once somebody has approved what they held: what was held is done by then, and
/// the next accident is none that was approved.
const APPROVED_FOR: Duration = Duration::from_secs(600);

/// Why a node cannot run.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct NodeError {
    /// What happened, and where.
    pub what: String,
    /// What to do.
    pub advice: String,
}

impl NodeError {
    fn new(what: impl Into<String>, advice: impl Into<String>) -> NodeError {
        NodeError { what: what.into(), advice: advice.into() }
    }
}

/// Sets a site up: makes its key and gives it a name. Nothing runs yet.
///
/// # Errors
/// If it is set up under another name already, or the state directory cannot be written.
pub fn init(state: &Path, name: &str, listen: Option<&str>) -> Result<PublicKey, NodeError> {
    check_name(name).map_err(|what| NodeError::new(what, "give another name with --name"))?;
    make_state(state).map_err(|e| unusable(state, &e))?;
    let _lock = Lock::acquire(state, "site init").map_err(|e| {
        NodeError::new(e.to_string(), "a running node is set up already: driftless site status")
    })?;
    let key = identity(state)?.public();
    let mut records = Records::load(state).map_err(|e| unusable(state, &e))?;
    take_name(&mut records, name)?;
    records.listen = listen.map(str::to_owned).or(records.listen);
    records.save(state).map_err(|e| unusable(state, &e))?;
    Ok(key)
}

/// What `site init` has written down, as settings: the configuration wins.
///
/// # Errors
/// If the state directory cannot be read.
pub fn recorded(state: &Path) -> Result<Settings, NodeError> {
    let records = Records::load(state).map_err(|e| unusable(state, &e))?;
    Ok(Settings { name: records.name, listen: records.listen, ..Settings::default() })
}

fn take_name(records: &mut Records, name: &str) -> Result<(), NodeError> {
    match &records.name {
        Some(known) if known != name => Err(NodeError::new(
            format!("this site is set up as {known}, not {name}"),
            "other sites know it by that name; use it, or another state directory",
        )),
        _ => {
            records.name = Some(name.to_owned());
            Ok(())
        }
    }
}

/// Made if missing, closed to others.
fn make_state(state: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(state)
}

fn identity(state: &Path) -> Result<Identity, NodeError> {
    rekey::identity(state).map_err(|e| {
        NodeError::new(e.to_string(), "correct the file or its directory; without its key a site is another")
    })
}

fn unusable(state: &Path, e: &io::Error) -> NodeError {
    NodeError::new(
        format!("the state in {} cannot be used: {e}", state.display()),
        "name another directory with --state, or give the user that runs this access to it",
    )
}

/// A running node.
pub struct Node {
    shared: Arc<Shared>,
    _control: ControlServer,
    _admin: Option<HttpServer>,
    listener: Listener,
    _lock: Lock,
    stop: Option<Sender<()>>,
    tender: Option<std::thread::JoinHandle<()>>,
}

/// What all threads of a node share.
pub(crate) struct Shared {
    pub(crate) tls: TlsOptions,
    pub(crate) members: Arc<Membership>,
    max_sites: AtomicUsize,
    key: PublicKey,
    state: PathBuf,
    started: Instant,
    listen: SocketAddr,
    advertise: Mutex<Vec<SocketAddr>>,
    /// What the configuration says of volumes.
    configured: Mutex<BTreeMap<String, VolumeSettings>>,
    events: Sender<(String, Event)>,
    inner: Mutex<Inner>,
}

struct Inner {
    records: Records,
    volumes: BTreeMap<String, Running>,
}

/// A volume that is to run.
struct Running {
    replica: Arc<Mutex<Option<Replica>>>,
    links: BTreeMap<String, LinkThread>,
    error: Option<String>,
    /// When it is opened again.
    again: Option<Instant>,
    /// What the guards hold has been approved so, until then.
    approved: Option<(OnRollback, Instant)>,
    /// Its replica is to be opened anew, with other rules.
    reopen: bool,
    /// The rules that it was opened with.
    rules: Option<VolumeRules>,
    /// The volume's id and directory that it was opened with.
    of: Option<(String, PathText)>,
    /// What its replica was opened with.
    role: Option<Role>,
    cuts: Option<BTreeMap<ReplicaId, u64>>,
    /// Somebody has said that what is beyond its Cut is to be set aside.
    set_aside: bool,
    /// The membership that the links were told, and how many approvals in it are known.
    members: Option<Arc<Vec<u8>>>,
    approvals: Option<usize>,
}

impl Running {
    fn new() -> Running {
        Running {
            replica: Arc::default(),
            links: BTreeMap::new(),
            error: None,
            again: Some(Instant::now()),
            approved: None,
            reopen: false,
            rules: None,
            of: None,
            role: None,
            cuts: None,
            set_aside: false,
            members: None,
            approvals: None,
        }
    }
}

impl Node {
    /// Starts everything that is recorded.
    ///
    /// # Errors
    /// If the site has no name yet, or an address or the state directory cannot be used.
    pub fn start(config: &Config) -> Result<Node, NodeError> {
        log::set_format(config.log);
        let state = config.state.clone();
        make_state(&state).map_err(|e| unusable(&state, &e))?;
        let lock = Lock::acquire(&state, "serve").map_err(|e| {
            NodeError::new(e.to_string(), "one node has a state directory; end the other first")
        })?;
        let identity = identity(&state)?;
        let mut records = Records::load(&state).map_err(|e| unusable(&state, &e))?;
        if let Some(name) = &config.name {
            take_name(&mut records, name)?;
            records.save(&state).map_err(|e| unusable(&state, &e))?;
        }
        let Some(name) = records.name.clone() else {
            return Err(NodeError::new(
                "this site has no name yet",
                "run driftless site init --name NAME, or give --name, or set name in the configuration",
            ));
        };
        let tls = TlsOptions::new(&identity)
            .map_err(|e| NodeError::new(format!("the key cannot be used: {e}"), "see the message"))?
            .with_congestion(config.congestion.as_deref());
        let cannot = |what: &str, e: io::Error| {
            NodeError::new(
                format!("cannot listen at {what}: {e}"),
                "name another address, or end what has it",
            )
        };
        let bound = TcpListener::bind(config.listen).and_then(|l| Ok((l.local_addr()?, l)));
        let (listen, bound) = bound.map_err(|e| cannot(&config.listen.to_string(), e))?;
        // A port that the system chose is known only now.
        let advertise: Vec<SocketAddr> =
            config.advertise.iter().map(|a| if *a == config.listen { listen } else { *a }).collect();
        let (events, told) = unbounded();
        let (changed, woken) = bounded(1);
        let key = identity.public();
        let book = Book::load(&state).map_err(|e| unusable(&state, &e))?;
        let shared = Arc::new(Shared {
            tls,
            members: Arc::new(Membership::new(identity, book, changed)),
            max_sites: AtomicUsize::new(config.max_sites),
            key,
            state: state.clone(),
            started: Instant::now(),
            listen,
            advertise: Mutex::new(advertise),
            configured: Mutex::new(config.volumes.clone()),
            events,
            inner: Mutex::new(Inner { records, volumes: BTreeMap::new() }),
        });
        let listener = Listener::start(bound, shared.clone()).map_err(|e| cannot(&listen.to_string(), e))?;
        let asked = shared.clone();
        let control = ControlServer::start(&state, move |ask| asked.answer(ask))
            .map_err(|e| cannot(&state.display().to_string(), e))?;
        let paged = shared.clone();
        let admin = match config.admin {
            Some(address) => Some(
                HttpServer::start(address, move |get| paged.page(get))
                    .map_err(|e| cannot(&address.to_string(), e))?,
            ),
            None => None,
        };
        let (stop, stopped) = bounded(0);
        let tended = shared.clone();
        let tender = std::thread::Builder::new()
            .name("tender".into())
            .spawn(move || tend(&tended, &stopped, &woken, &told))
            .map_err(|e| {
                NodeError::new(format!("cannot start a thread: {e}"), "raise the limit of processes")
            })?;
        let text = format!("site {name} listens at {}, key {}", listener.address(), key.short());
        log::line(Level::Info, &text, &[]);
        if let Some(admin) = &admin {
            log::line(Level::Info, &format!("metrics at http://{}/metrics", admin.address()), &[]);
        }
        notify::notify("READY=1");
        let (stop, tender) = (Some(stop), Some(tender));
        Ok(Node { shared, _control: control, _admin: admin, listener, _lock: lock, stop, tender })
    }

    /// Where other sites connect.
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// Takes over what may change while it runs: the log's form, the addresses told to others, what is set of volumes and links.
    pub fn reload(&self, config: &Config) {
        log::set_format(config.log);
        *lock(&self.shared.advertise) = config.advertise.clone();
        *lock(&self.shared.configured) = config.volumes.clone();
        self.shared.max_sites.store(config.max_sites, Ordering::Relaxed);
        log::line(Level::Info, "the configuration was read again", &[]);
    }

    /// Ends links, lets replicas finish what they have begun, and stops.
    pub fn stop(mut self) {
        notify::notify("STOPPING=1");
        log::line(Level::Info, "stopping", &[]);
        self.stop = None;
        if let Some(tender) = self.tender.take() {
            // A panicked thread has said so on stderr.
            let _ = tender.join();
        }
        let volumes = std::mem::take(&mut self.shared.lock().volumes);
        for (name, running) in volumes {
            close(&name, running);
        }
    }
}

/// Ends a volume's links, then its replica.
fn close(name: &str, running: Running) {
    drop(running.links);
    let replica = lock(&running.replica).take();
    if let Some(Err(e)) = replica.map(Replica::stop) {
        log::line(Level::Error, &e.what, &[("volume", name)]);
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is made whole, or saved and reported as failed.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// Opens volumes and links that should run, and writes what replicas tell into the log.
fn tend(node: &Arc<Shared>, stopped: &Receiver<()>, woken: &Receiver<()>, told: &Receiver<(String, Event)>) {
    let watchdog = notify::watchdog();
    let mut alive = Instant::now();
    loop {
        node.tend_members();
        node.tend();
        while let Ok((volume, event)) = told.try_recv() {
            log_event(&volume, event);
        }
        if watchdog.is_some_and(|every| alive.elapsed() >= every) {
            alive = Instant::now();
            notify::notify("WATCHDOG=1");
        }
        let pause = watchdog.map_or(TEND_EVERY, |every| every.min(TEND_EVERY));
        select! {
            recv(stopped) -> _ => return,
            recv(woken) -> _ => {}
            default(pause) => {}
        }
    }
}

fn log_event(volume: &str, event: Event) {
    let volume = [("volume", volume)];
    match event {
        Event::Log { level, text, .. } if level <= Level::Info => log::line(level, &text, &volume),
        Event::Waiting { path, reason, detail, .. } => {
            log::line(Level::Warn, &format!("{} waits: {} {detail}", path.text, reason.words()), &volume);
        }
        Event::Conflict { path, .. } => {
            log::line(Level::Warn, &format!("conflict copy {}", path.text), &volume)
        }
        _ => {}
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// Changes the records; nothing is changed if they cannot be written.
    fn change<T>(&self, change: impl FnOnce(&mut Records) -> Result<T, Answer>) -> Result<T, Answer> {
        let mut inner = self.lock();
        let mut new = inner.records.clone();
        let result = change(&mut new)?;
        if new != inner.records {
            new.save(&self.state).map_err(|e| {
                Answer::failed(
                    format!("what was asked cannot be written down in {}: {e}", self.state.display()),
                    "free some space there; nothing was changed",
                )
            })?;
            inner.records = new;
            // What is to run now is not left to the next round.
            self.members.wake();
        }
        Ok(result)
    }

    // ----- what runs

    fn tend(self: &Arc<Self>) {
        let mut gone = Vec::new();
        {
            let mut inner = self.lock();
            let inner = &mut *inner;
            let names: Vec<String> = inner.records.volumes.keys().cloned().collect();
            inner.volumes.retain(|name, running| {
                // One that was removed and added again between two rounds is another.
                let recorded = inner.records.volumes.get(name).map(|v| (v.id.clone(), v.root.clone()));
                let keep = recorded.is_some() && (running.of.is_none() || running.of == recorded);
                if !keep {
                    gone.push((name.clone(), std::mem::replace(running, Running::new())));
                }
                keep
            });
            for name in names {
                let was_another = gone.iter().any(|(gone, _)| *gone == name);
                let running = inner.volumes.entry(name.clone()).or_insert_with(Running::new);
                if was_another {
                    // Opened by the next round, when the other is closed.
                    running.again = Some(Instant::now());
                    continue;
                }
                if running.approved.is_some_and(|(_, until)| until <= Instant::now()) {
                    (running.approved, running.reopen) = (None, true);
                }
                self.note_rules(&inner.records, &name, running);
                if std::mem::take(&mut running.reopen) {
                    // It is stopped without the lock, and opened again by the next round.
                    let old = std::mem::take(&mut *lock(&running.replica));
                    gone.push((
                        name.clone(),
                        Running { replica: Arc::new(Mutex::new(old)), ..Running::new() },
                    ));
                    running.again = Some(Instant::now());
                    continue;
                }
                self.tend_volume(&inner.records, &name, running);
            }
        }
        if !gone.is_empty() {
            // What was closed to be opened again need not wait for long.
            self.members.wake();
        }
        for (name, running) in gone {
            close(&name, running);
        }
        self.note_replicas();
        self.note_seeded();
    }

    fn tend_volume(&self, records: &Records, name: &str, running: &mut Running) {
        let Some(volume) = records.volumes.get(name) else { return };
        let ended = lock(&running.replica).as_ref().and_then(|r| r.status().ended);
        if let Some(result) = ended {
            let e = result.err();
            running.again = Some(match &e {
                Some(e) if !e.again => Instant::now() + REOPEN_AFTER,
                _ => Instant::now(),
            });
            running.error =
                Some(e.map_or_else(|| "it has stopped".into(), |e| format!("{} ({})", e.what, e.advice)));
            lock(&running.replica).take();
        }
        if running.again.is_some_and(|at| at <= Instant::now()) {
            running.again = None;
            let rules = self.volume_rules(name, volume);
            running.rules = Some(rules.clone());
            running.of = Some((volume.id.clone(), volume.root.clone()));
            let approved = running.approved.map(|(how, _)| how);
            match self.open(records, name, volume, rules, approved, running.set_aside) {
                Ok(replica) => {
                    *lock(&running.replica) = Some(replica);
                    running.role = Some(volume.role());
                    running.cuts = Some(self.members.view(volume.id().unwrap_or(0)).cuts.clone());
                    running.error = None;
                    running.links.values().for_each(|link| link.order(Order::Again));
                }
                Err(e) => {
                    let text = format!("{} ({})", e.what, e.advice);
                    if running.error.as_ref() != Some(&text) {
                        log::line(Level::Error, &text, &[("volume", name)]);
                    }
                    running.error = Some(text);
                    running.again = Some(Instant::now() + REOPEN_AFTER);
                }
            }
        }
        running.links.retain(|site, thread| {
            let known = records.sites.get(site).and_then(records::Site::key) == Some(thread.key);
            known && volume.links.get(site).is_some_and(|l| l.wanted == Wanted::Running)
        });
        // Contents come from one site first: the others have to wait.
        let its_turn = |site: &str| volume.seed_from.as_ref().is_none_or(|seed| seed == site);
        let status = lock(&running.replica).as_ref().map(Replica::status).unwrap_or_default();
        for (site, link) in &volume.links {
            if link.wanted == Wanted::Running && its_turn(site) && !running.links.contains_key(site) {
                self.start_link(records, name, volume, site, running);
            }
            if let Some(thread) = running.links.get_mut(site) {
                thread.keep_to(&self.link_rules(name, site, link), settings::local_now());
                thread.note_pace();
                let peer = standing::peer_of(link, thread.seen().connected, &status);
                thread.sent_since(peer.map_or(0, |p| p.held));
            }
        }
    }

    fn open(
        &self,
        records: &Records,
        name: &str,
        volume: &Volume,
        rules: VolumeRules,
        approved: Option<OnRollback>,
        set_aside: bool,
    ) -> Result<Replica, SessionError> {
        let damaged = || SessionError::new("its id is damaged", "remove the volume and add it again");
        let id = volume.id().ok_or_else(damaged)?;
        let trust = self.members.trust(id);
        let service = match volume.first {
            true => Service { role: volume.role(), trust, set_aside, ..Service::first(id) },
            false => Service { trust, set_aside, ..Service::joining(id, volume.role()) },
        };
        let own = records.name.clone().unwrap_or_default();
        let (events, told) = unbounded();
        let (name, all) = (name.to_owned(), self.events.clone());
        // Ends with the replica.
        let forward = std::thread::Builder::new().name("events".into()).spawn(move || {
            for event in told {
                if all.send((name.clone(), event)).is_err() {
                    return;
                }
            }
        });
        drop(forward);
        let shared = Rules {
            active_passive: volume.follower,
            filters: rules.filters,
            max_delete: if approved.is_some() { MaxDelete::Count(u64::MAX) } else { rules.max_delete },
            on_rollback: approved.unwrap_or(rules.on_rollback),
            dry_run: false,
            once: false,
            allow_unsafe_fs: false,
            site_names: (own, String::new()),
            verbose: false,
            trash: rules.trash,
            crawl_every_s: rules.crawl_every_s,
        };
        let state = StateDir::at(self.state.join("volumes"));
        Replica::open(ReplicaOptions { root: volume.root(), state, service, shared }, events)
    }

    fn start_link(&self, records: &Records, name: &str, volume: &Volume, site: &str, running: &mut Running) {
        let Some((known, key)) = records.sites.get(site).and_then(|s| Some((s, s.key()?))) else { return };
        let target = Target {
            site: site.to_owned(),
            volume: name.to_owned(),
            volume_id: volume.id.clone(),
            key,
            addresses: addresses(&known.addresses),
            own_addresses: lock(&self.advertise).iter().map(ToString::to_string).collect(),
            first: self.key < key,
        };
        match LinkThread::start(target, self.tls.clone(), self.members.clone(), running.replica.clone()) {
            Ok(link) => _ = running.links.insert(site.to_owned(), link),
            // Tried again by the next round.
            Err(e) => log::line(
                Level::Error,
                &format!("cannot start a thread: {e}"),
                &[("volume", name), ("site", site)],
            ),
        }
    }

    /// Writes down which replica is at the other end of a link: its lag is known though it cannot be reached.
    fn note_replicas(&self) {
        let mut found = Vec::new();
        {
            let inner = self.lock();
            for (name, running) in &inner.volumes {
                let Some(status) = lock(&running.replica).as_ref().map(Replica::status) else { continue };
                for (site, link) in &running.links {
                    let (id, key) = (link.seen().connected, Some(Key(link.key.0)));
                    let volume = inner.records.volumes.get(name);
                    let met = volume.and_then(|v| v.links.get(site)).is_some_and(|l| l.replica.is_some());
                    // Connected now, or a moment ago.
                    let peers = &status.standing.peers;
                    let peer = peers.iter().find(|p| p.link.is_some() && p.link == id);
                    let Some(peer) = peer.or_else(|| peers.iter().find(|p| !met && p.key == key)) else {
                        continue;
                    };
                    let replica = format!("{:016x}", peer.replica.0);
                    let known =
                        inner.records.volumes.get(name).and_then(|v| v.links.get(site)?.replica.clone());
                    if known.as_ref() != Some(&replica) {
                        found.push((name.clone(), site.clone(), replica));
                    }
                }
            }
        }
        for (name, site, replica) in found {
            // Tried again by the next round.
            let _ = self.change(|records| {
                if let Some(link) = records.volumes.get_mut(&name).and_then(|v| v.links.get_mut(&site)) {
                    link.replica = Some(replica);
                }
                Ok(())
            });
        }
    }
}

fn addresses(texts: &[String]) -> Vec<SocketAddr> {
    texts.iter().filter_map(|a| a.parse().ok()).collect()
}
