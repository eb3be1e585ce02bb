//! Replicas within this process, joined by cables that count what goes through them and can be pulled.
#![allow(dead_code, reason = "each test uses a part")]

use crossbeam_channel::{Receiver, Sender, bounded, select, unbounded};
use driftless_core::link::{Message, Role};
use driftless_index::StateDir;
use driftless_node::api::{Event, MaxDelete, Shared};
use driftless_node::replica::{FromLink, LinkEnd, Replica, ReplicaOptions, Service};
use driftless_testkit::{CompareOptions, compare};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A machine that is busy with other tests may be slow; nothing that works takes so long.
const PATIENCE: Duration = Duration::from_secs(300);
const VOLUME: u128 = 77;

pub(crate) struct Sites {
    pub(crate) base: TempDir,
    pub(crate) roots: Vec<PathBuf>,
    replicas: Vec<Option<Replica>>,
    told: (Sender<Event>, Receiver<Event>),
}

impl Sites {
    /// So many empty directories. Users of them are in this process.
    pub(crate) fn new(n: usize) -> Sites {
        driftless_volume::fault::users_within_this_process();
        Sites::with_users_elsewhere(n)
    }

    /// So many empty directories. What this process does there is not heard, unless another of its tests asked for that.
    pub(crate) fn with_users_elsewhere(n: usize) -> Sites {
        let base = tempfile::tempdir().unwrap();
        let roots: Vec<PathBuf> = (0..n).map(|i| base.path().join(format!("site{i}"))).collect();
        roots.iter().for_each(|root| fs::create_dir(root).unwrap());
        Sites { base, roots, replicas: (0..n).map(|_| None).collect(), told: unbounded() }
    }

    pub(crate) fn open_all(&mut self) {
        (0..self.roots.len()).for_each(|i| self.open(i));
    }

    /// The first site is the volume's first; the others join.
    pub(crate) fn open(&mut self, i: usize) {
        let options = ReplicaOptions {
            root: self.roots[i].clone(),
            state: StateDir::at(self.base.path().join(format!("state{i}"))),
            service: if i == 0 { Service::first(VOLUME) } else { Service::joining(VOLUME, Role::Writer) },
            shared: Shared {
                active_passive: false,
                filters: Vec::new(),
                max_delete: MaxDelete::Count(1_000_000),
                on_rollback: Default::default(),
                dry_run: false,
                allow_unsafe_fs: false,
                once: false,
                site_names: (format!("site{i}"), String::new()),
                verbose: false,
                trash: None,
                crawl_every_s: driftless_node::api::CRAWL_EVERY_DEFAULT_S,
            },
        };
        self.replicas[i] = Some(Replica::open(options, self.told.0.clone()).unwrap());
    }

    pub(crate) fn stop(&mut self, i: usize) {
        self.replicas[i].take().unwrap().stop().unwrap();
    }

    pub(crate) fn stop_all(&mut self) {
        (0..self.roots.len()).for_each(|i| self.stop(i));
    }

    pub(crate) fn replica(&self, i: usize) -> &Replica {
        self.replicas[i].as_ref().unwrap()
    }

    /// A cable between two sites.
    pub(crate) fn join(&self, a: usize, b: usize) -> Cable {
        Cable::between(self.replica(a).connect(), self.replica(b).connect())
    }

    /// A cable that passes so many bytes of contents, and then nothing any more.
    pub(crate) fn join_for(&self, a: usize, b: usize, bytes_max: u64) -> Cable {
        let cable = self.join(a, b);
        cable.bytes_max.store(bytes_max, Ordering::SeqCst);
        cable
    }

    /// Which sites' peers are behind, as site `i` sees it.
    pub(crate) fn peers_behind(&self, i: usize) -> Vec<usize> {
        let peers = self.replica(i).status().standing.peers;
        let behind = peers.iter().filter(|p| p.behind_since_ns.is_some());
        behind.map(|p| p.site.trim_start_matches("site").parse().unwrap()).collect()
    }

    /// For people, when something does not come to its end.
    fn told(&self) -> String {
        let statuses: Vec<_> = self.replicas.iter().flatten().map(Replica::status).collect();
        let logs = self.told.1.try_iter().filter(|e| matches!(e, Event::Log { .. } | Event::Waiting { .. }));
        format!("{statuses:#?}\n{:#?}", logs.collect::<Vec<_>>())
    }

    pub(crate) fn wait_equal(&self, a: usize, b: usize) {
        wait_for(
            &format!("sites {a} and {b} to be equal"),
            || self.told(),
            || match compare(&self.roots[a], &self.roots[b], &CompareOptions::default()) {
                Ok(found) if found.is_empty() => Ok(()),
                Ok(found) => Err(found.iter().map(|d| format!("{d}\n")).collect()),
                Err(e) => Err(e.to_string()),
            },
        );
    }

    /// Waits until all sites that run show the same.
    pub(crate) fn wait_same(&self) {
        // Twice: what was equal for a moment may have been on its way.
        for _ in 0..2 {
            for i in 1..self.roots.len() {
                if self.replicas[i].is_some() {
                    self.wait_equal(0, i);
                }
            }
        }
    }

    /// Waits until nobody has anything to do and everybody knows that the others have all.
    pub(crate) fn wait_quiet(&self) {
        wait_until("all to be quiet", || {
            for (i, replica) in self.replicas.iter().enumerate() {
                let Some(status) = replica.as_ref().map(Replica::status) else { continue };
                if !status.idle || status.standing.peers.iter().any(|p| p.behind_since_ns.is_some()) {
                    return Err(format!("site {i}: {status:?}"));
                }
            }
            Ok(())
        });
    }
}

/// Passes messages between two ends until it is dropped.
pub(crate) struct Cable {
    stop: Vec<Sender<()>>,
    stalled: Arc<AtomicBool>,
    content_bytes: Arc<AtomicU64>,
    /// Nothing is passed on beyond so many.
    bytes_max: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Cable {
    fn between(a: LinkEnd, b: LinkEnd) -> Cable {
        let (a, b) = (Arc::new(a), Arc::new(b));
        let stalled = Arc::new(AtomicBool::new(false));
        let content_bytes = Arc::new(AtomicU64::new(0));
        let bytes_max = Arc::new(AtomicU64::new(u64::MAX));
        let (stop, threads) = (Vec::new(), Vec::new());
        let mut cable = Cable { stop, stalled: stalled.clone(), content_bytes, bytes_max, threads };
        for (from, to) in [(a.clone(), b.clone()), (b, a)] {
            let (stop, stopped) = bounded(1);
            let (stalled, bytes) = (stalled.clone(), cable.content_bytes.clone());
            let bytes_max = cable.bytes_max.clone();
            cable.stop.push(stop);
            let run = move || pass(&from, &to, &stopped, &stalled, (&bytes, &bytes_max));
            cable.threads.push(std::thread::spawn(run));
        }
        cable
    }

    /// Contents that went through it, both ways.
    pub(crate) fn content_bytes(&self) -> u64 {
        self.content_bytes.load(Ordering::SeqCst)
    }

    /// True if it passes nothing on.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::SeqCst)
    }

    /// Passes nothing on any more, without ending.
    pub(crate) fn stall(&self) {
        self.stalled.store(true, Ordering::SeqCst);
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.stop.clear();
        self.threads.drain(..).for_each(|t| t.join().unwrap());
    }
}

fn pass(
    from: &LinkEnd,
    to: &LinkEnd,
    stop: &Receiver<()>,
    stalled: &AtomicBool,
    (bytes, bytes_max): (&AtomicU64, &AtomicU64),
) {
    loop {
        select! {
            recv(stop) -> _ => return,
            recv(from.outgoing()) -> m => match m {
                Ok(FromLink::Message(_)) if stalled.load(Ordering::SeqCst) => {}
                Ok(FromLink::Message(said)) => {
                    let message = said.into_message();
                    let len = content_len(&message);
                    if bytes.fetch_add(len, Ordering::SeqCst) + len >= bytes_max.load(Ordering::SeqCst) {
                        stalled.store(true, Ordering::SeqCst);
                    }
                    to.give(message);
                }
                Ok(FromLink::Refused(why)) => panic!("{why:?}"),
                Err(_) => return,
            },
        }
    }
}

fn content_len(message: &Message) -> u64 {
    match message {
        Message::Batch(batch) => batch.inline.iter().map(|i| i.bytes.len() as u64).sum(),
        Message::Piece(piece) => piece.bytes.len() as u64,
        _ => 0,
    }
}

/// Polls until `check` is content. (What a replica does to a tree is no event here.)
pub(crate) fn wait_until(what: &str, check: impl FnMut() -> Result<(), String>) {
    wait_for(what, String::new, check);
}

fn wait_for(what: &str, told: impl Fn() -> String, mut check: impl FnMut() -> Result<(), String>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match check() {
            Ok(()) => return,
            Err(why) if Instant::now() > deadline => panic!("waiting for {what}:\n{why}\n{}", told()),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
