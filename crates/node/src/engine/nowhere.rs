//! Versions that nobody holds who could be asked ([`driftless_core::lost`]): saying so to a peer that asks, hearing so from
//! those that were asked, and giving them up when a person says so.
//!
//! A file that is only being changed, or may not be read, or is not here yet, is not lost; neither is one that nobody has
//! looked for since the start.

use super::link::LinkId;
use super::{Engine, Fail, random_u64, wall_ns};
use crate::api::{Level, Reason};
use crate::query::{self, AcceptRow, Response};
use crossbeam_channel::{Sender as ChannelSender, bounded};
use driftless_core::link::{Held, Message, NotHere, Want};
use driftless_core::lost::{self, AcceptOptions, Accepted, Key, LostRow, Why};
use driftless_core::rows::Store;
use driftless_core::tx::Env;
use driftless_core::{Bind, Dot, EntryId, Fingerprint, NodeKey, ReplicaId, Tx, local};
use driftless_volume::{Reason as Volume, VolumeError};
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// Rows of the index read at once.
const PAGE: usize = 1024;

/// Asked of a running engine by the command line.
pub(crate) struct AcceptCommand {
    pub(crate) row: AcceptRow,
    pub(crate) answer: ChannelSender<Response>,
}

/// Wants that wait for this disk to be looked at. Beyond it they are told to come again.
const DEFERRED_MAX: usize = 4096;
/// How long a want waits for content that is on its way here.
const COMING_WAIT_MAX: Duration = Duration::from_secs(2);
/// How long the command line waits for an engine that is busy.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(20);

/// Has an engine do it, from another thread.
pub(super) fn ask(engine: &ChannelSender<AcceptCommand>, row: AcceptRow) -> Response {
    let (answer, answered) = bounded(1);
    let asked = engine.send(AcceptCommand { row, answer });
    match asked.ok().and_then(|()| answered.recv_timeout(ANSWER_WAIT_MAX).ok()) {
        Some(response) => response,
        None => Response::Failed("the running sync is busy: what was asked is done later".into()),
    }
}

/// Gives a lost version up in the index of a replica that no process works on.
pub fn accept_lost(store: &dyn Store, row: &AcceptRow) -> Response {
    let Some((key, options)) = row.parts() else { return no_such_version() };
    let done = || -> Result<Response, Fail> {
        let snapshot = store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, Env { now_ns: wall_ns(), epoch: 0 })?;
        let done = lost::accept(&mut tx, key, options)?;
        let answer = query::accepted(&tx, &done)?;
        store.commit(tx.into_batch(random_u64()?))?;
        Ok(answer)
    };
    done().unwrap_or_else(|e| Response::Failed(e.to_string()))
}

fn no_such_version() -> Response {
    Response::Failed("there is no such version".into())
}

/// See the module. Nearly always empty.
#[derive(Default)]
pub(super) struct Nowhere {
    rows: BTreeMap<Key, LostRow>,
    /// Files whose content was found to be something else, as they were then: they need not be read again.
    damaged: HashMap<NodeKey, Fingerprint>,
    /// Wants that are answered when this disk has been looked at since the start.
    deferred: Vec<(LinkId, Want)>,
    /// Wants of versions that are on their way to this disk, and when they are answered at the latest: two that wait for each
    /// other would wait for ever.
    coming: Vec<(Instant, LinkId, Want)>,
}

impl Nowhere {
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Versions that this disk should have.
    pub(super) fn here(&self) -> usize {
        self.rows.values().filter(|row| row.here).count()
    }

    fn of(&self, id: EntryId) -> Vec<Key> {
        let all = Dot::default()..=Dot::new(driftless_core::ReplicaId(u64::MAX), u64::MAX);
        self.rows.range((id, *all.start())..=(id, *all.end())).map(|(key, _)| *key).collect()
    }
}

/// What keeps a version that was asked for from being read.
enum Found {
    /// It is not on this disk.
    Absent,
    /// Newer state follows, or it can be read after all.
    Changed,
    /// It may not be read.
    Denied(String),
    /// The disk fails, or has something else.
    Lost(Why, String),
}

impl Engine {
    /// Reads what is written down, but for what counts no more.
    pub(super) fn load_nowhere(&mut self, tx: &mut Tx<'_>) -> Result<(), Fail> {
        let mut after = None;
        loop {
            let page = lost::list(tx, after.as_deref(), PAGE)?;
            let last = page.len() < PAGE;
            after = page.last().map(|(at, ..)| at.clone());
            for (_, key, row) in page {
                match lost::counts(tx, key)? {
                    true => _ = self.nowhere.rows.insert(key, row),
                    false => lost::remove(tx, key),
                }
            }
            if last {
                return Ok(());
            }
        }
    }

    // ----- asked by the peer

    /// Answers a want that cannot be served. `error`: what came of reading the file, if it was open.
    pub(super) fn answer_not_here(
        &mut self,
        link: LinkId,
        want: &Want,
        error: Option<VolumeError>,
    ) -> Result<(), Fail> {
        let key = (want.entry, want.version);
        if !self.may_plan() && self.nowhere.deferred.len() < DEFERRED_MAX {
            self.nowhere.deferred.push((link, want.clone()));
            return Ok(());
        }
        let found = self.look_for(want, error)?;
        let given_up = self.nowhere.rows.get(&key).is_some_and(|row| row.accepted);
        let Some(peer) = self.links.peer(link).map(|p| p.id) else { return Ok(()) };
        let maker_asks = peer == want.version.replica;
        if matches!(found, Found::Absent) && self.comes_from_another(link, key) {
            if self.nowhere.coming.len() < DEFERRED_MAX {
                self.nowhere.coming.push((Instant::now() + COMING_WAIT_MAX, link, want.clone()));
                return Ok(());
            }
            return self.say_not_here(link, key, NotHere::CHANGED.to_owned());
        }
        let reason = match found {
            Found::Changed => NotHere::CHANGED.to_owned(),
            Found::Denied(why) => format!("{}: {why}", NotHere::DENIED),
            Found::Absent | Found::Lost(..) if given_up => NotHere::GIVEN_UP.to_owned(),
            Found::Absent => {
                if maker_asks {
                    // What this disk has of it comes again before anything takes its place.
                    self.take_back(link, want.entry, want.version)?;
                }
                NotHere::ABSENT.to_owned()
            }
            Found::Lost(why, detail) => {
                let word = if why == Why::Damaged { NotHere::DAMAGED } else { NotHere::UNREADABLE };
                let reason = format!("{word}: {detail}");
                self.write_down(key, peer, why, true, detail)?;
                reason
            }
        };
        self.say_not_here(link, key, reason)
    }

    fn say_not_here(&mut self, link: LinkId, (entry, version): Key, reason: String) -> Result<(), Fail> {
        self.send_to(link, Message::NotHere(NotHere { entry, version, reason }))
    }

    /// True if the version is asked for elsewhere, or has come and is not on the disk yet.
    fn comes_from_another(&self, asking: LinkId, key: Key) -> bool {
        match self.contents.asked_of(key) {
            Some(from) => from != asking,
            None => self.contents.has_come(key) || (self.links.len() > 1 && self.contents.is_wanted(key.0)),
        }
    }

    /// Answers what waited for content that has come, or does not come soon.
    pub(super) fn answer_coming(&mut self) -> Result<(), Fail> {
        if self.nowhere.coming.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        for (until, link, want) in std::mem::take(&mut self.nowhere.coming) {
            let key = (want.entry, want.version);
            if until <= now {
                self.say_not_here(link, key, NotHere::CHANGED.to_owned())?;
            } else if !self.contents.has_come(key)
                && (self.comes_from_another(link, key) || self.queued.contains(&want.entry))
            {
                self.nowhere.coming.push((until, link, want));
            } else {
                self.want_again(link, want)?;
            }
        }
        Ok(())
    }

    /// When [`Engine::answer_coming`] has something to do at the latest.
    pub(super) fn next_coming(&self) -> Option<Instant> {
        self.nowhere.coming.iter().map(|(until, ..)| *until).min()
    }

    /// The tree has been looked at: what was asked for before can be answered.
    pub(super) fn answer_deferred(&mut self) -> Result<(), Fail> {
        let wants = std::mem::take(&mut self.nowhere.deferred);
        wants.into_iter().try_for_each(|(link, want)| self.want_again(link, want))
    }

    /// The connection ended: nobody waits for answers there.
    pub(super) fn forget_deferred(&mut self, link: LinkId) {
        self.nowhere.deferred.retain(|(asking, _)| *asking != link);
        self.nowhere.coming.retain(|(_, asking, _)| *asking != link);
    }

    fn look_for(&mut self, want: &Want, error: Option<VolumeError>) -> Result<Found, Fail> {
        if !self.may_plan() {
            return Ok(Found::Changed); // what is on this disk has not been looked at yet
        }
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        if self.lacking(&mut tx, want.entry)?.iter().any(|lack| lack.version == want.version) {
            return Ok(Found::Absent);
        }
        if let Some(e) = error
            && let Some(found) = found_by(&e)
        {
            return Ok(found);
        }
        let bound = tx.entry(want.entry)?.map(|row| row.bound.clone()).unwrap_or_default();
        let mut found = Found::Changed;
        for key in bound {
            let shows = |n: &driftless_core::Node| matches!(&n.bind, Bind::Leaf { identity } if *identity == want.digest);
            if tx.node(&key)?.is_some_and(|n| shows(&n)) {
                found = self.look_at_inode(&mut tx, &key, want)?;
                if matches!(found, Found::Changed) {
                    return Ok(found);
                }
            }
        }
        Ok(found)
    }

    /// What one of the files that should have the version says.
    fn look_at_inode(&mut self, tx: &mut Tx<'_>, key: &NodeKey, want: &Want) -> Result<Found, Fail> {
        let Some(node) = tx.node(key)? else { return Ok(Found::Changed) };
        let mut found = Found::Changed;
        for (dir, name) in &node.names {
            let Some(path) = self.path_of_node(tx, dir)? else { continue };
            let opened = self.volume.dir(&path, Some(dir)).and_then(|fd| fd.open_read(name, key));
            let handle = match opened {
                Ok(handle) => handle,
                Err(e) => {
                    found = found_by(&e).unwrap_or(found);
                    self.look_soon(dir.clone(), name.clone());
                    continue;
                }
            };
            let now = *handle.fingerprint();
            let same = (now.size, now.mtime) == (node.fingerprint.size, node.fingerprint.mtime);
            if !same || node.racy {
                // It is looked at, whether an event tells of it or not, and newer state follows.
                self.look_soon(dir.clone(), name.clone());
                return Ok(Found::Changed);
            }
            let known = self.nowhere.damaged.get(key) == Some(&now);
            if want.len > 0 && !known {
                return Ok(Found::Changed);
            }
            let differs = match handle.digest() {
                _ if known => true,
                Ok(digest) => digest != Some(want.digest),
                Err(e) => return Ok(found_by(&e).unwrap_or(Found::Changed)),
            };
            if !differs || !handle.unchanged().is_ok_and(|same| same) {
                return Ok(Found::Changed);
            }
            self.nowhere.damaged.insert(key.clone(), now);
            let text = "it reads as something else, and was not written to since it was read last";
            return Ok(Found::Lost(Why::Damaged, text.into()));
        }
        Ok(found)
    }

    /// True if the file was found to be damaged, and has not been changed since: it is not worth sending.
    pub(super) fn is_damaged(&self, key: &NodeKey, now: &Fingerprint) -> bool {
        !self.nowhere.damaged.is_empty() && self.nowhere.damaged.get(key) == Some(now)
    }

    // ----- asking the peer

    pub(super) fn take_not_here(&mut self, link: LinkId, answer: NotHere) -> Result<(), Fail> {
        let Some(peer) = self.links.peer(link).map(|p| p.id) else { return Ok(()) };
        let key = (answer.entry, answer.version);
        // What one lacks another may have; but that it lacks it is worth knowing if the others do too.
        let Some(answer) = self.stop_fetching(link, answer) else { return Ok(()) };
        if !self.still_counts(key)? {
            // It was removed or written anew while it was asked for: what there is to do now is planned, and nothing waits.
            self.enqueue(key.0);
            return Ok(());
        }
        let (word, detail) = answer.parts();
        let detail = detail.to_owned();
        let why = match word {
            NotHere::ABSENT if self.take_back(link, key.0, key.1)? => return Ok(()),
            NotHere::ABSENT => Why::Absent,
            NotHere::UNREADABLE => Why::Unreadable,
            NotHere::DAMAGED => Why::Damaged,
            NotHere::DENIED => {
                return self.fetch_waits(key.0, Reason::Unreadable, format!("over there: {detail}"));
            }
            NotHere::GIVEN_UP if self.give_way(key)? => return Ok(()),
            NotHere::GIVEN_UP => Why::Absent,
            _ => return self.fetch_waits(key.0, Reason::ContentMissing, answer.reason.clone()),
        };
        for lacks_it in self.lacking_peers(peer) {
            self.write_down(key, lacks_it, why, false, detail.clone())?;
        }
        self.fetch_waits(key.0, Reason::ContentNowhere, detail)
    }

    fn still_counts(&self, (entry, version): (EntryId, Dot)) -> Result<bool, Fail> {
        let snapshot = self.store.snapshot()?;
        let row = Tx::open(&*snapshot, self.env())?.entry(entry)?;
        Ok(row.is_some_and(|row| row.entry.counting().any(|v| v.dot == version)))
    }

    /// All who were asked for a version that nobody has: everybody who is connected.
    fn lacking_peers(&self, last: ReplicaId) -> Vec<ReplicaId> {
        let mut all: Vec<ReplicaId> = self.links.peers().map(|(_, p)| p.id).chain([last]).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// A person has given the version up where no earlier one is: here one may be. False if it is not lacking here, or
    /// this end makes no changes.
    fn give_way(&mut self, (entry, version): Key) -> Result<bool, Fail> {
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        let lacking = self.lacking(&mut tx, entry)?;
        if self.follows() || !lacking.iter().any(|lack| lack.version == version) {
            return Ok(false);
        }
        let path = self.entry_path(&mut tx, entry)?;
        local::withdraw(&mut tx, entry, version)?;
        lost::remove(&mut tx, (entry, version));
        self.nowhere.rows.remove(&(entry, version));
        self.say_given_up(&path);
        self.commit(tx)?;
        self.enqueue(entry);
        Ok(true)
    }

    /// What the peer's disk has: if nothing waits there, what it asked for has been found.
    pub(super) fn found_there(&mut self, link: LinkId, held: &Held) -> Result<(), Fail> {
        if held.waiting > 0 || self.nowhere.here() == 0 {
            return Ok(());
        }
        let Some(peer) = self.links.peer(link).map(|p| p.id) else { return Ok(()) };
        let only_here = |row: &LostRow| row.here && row.lacked_by.iter().all(|r| *r == peer);
        let found: Vec<Key> =
            self.nowhere.rows.iter().filter(|(_, row)| only_here(row)).map(|(k, _)| *k).collect();
        self.strike_out(&found)
    }

    // ----- the list

    fn write_down(
        &mut self,
        key: Key,
        peer: ReplicaId,
        why: Why,
        here: bool,
        detail: String,
    ) -> Result<(), Fail> {
        let before = self.nowhere.rows.get(&key);
        let mut row = LostRow {
            why,
            here,
            accepted: before.is_some_and(|r| r.accepted),
            since_ns: before.map_or_else(wall_ns, |r| r.since_ns),
            lacked_by: before.map(|r| r.lacked_by.clone()).unwrap_or_default(),
            detail,
        };
        if !row.lacked_by.contains(&peer) {
            row.lacked_by.push(peer);
        }
        if before == Some(&row) {
            return Ok(());
        }
        let snapshot = self.store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        lost::put(&mut tx, key, &row);
        self.nowhere.rows.insert(key, row);
        self.commit_sealed_lazily(tx)
    }

    /// What was lost of the entry and is here now, or counts no more, is lost no more.
    pub(super) fn found_here(&mut self, tx: &mut Tx<'_>, id: EntryId) -> Result<(), Fail> {
        for key in self.nowhere.of(id) {
            let here = self.nowhere.rows.get(&key).is_some_and(|row| row.here);
            if !here || !lost::counts(tx, key)? {
                lost::remove(tx, key);
                self.nowhere.rows.remove(&key);
            }
        }
        Ok(())
    }

    fn strike_out(&mut self, keys: &[Key]) -> Result<(), Fail> {
        let snapshot = self.store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        for key in keys {
            lost::remove(&mut tx, *key);
            self.nowhere.rows.remove(key);
        }
        self.commit_sealed_lazily(tx)
    }

    // ----- giving up

    /// Does what a person has asked for, and says what came of it.
    pub(super) fn take_command(&mut self, command: &AcceptCommand) -> Result<(), Fail> {
        let Some((key, options)) = command.row.parts() else {
            let _ = command.answer.send(no_such_version());
            return Ok(());
        };
        let answer = self.accept(key, options)?;
        // Who asked may have gone: it is done all the same.
        let _ = command.answer.send(answer);
        Ok(())
    }

    fn accept(&mut self, key: Key, options: AcceptOptions) -> Result<Response, Fail> {
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        let path = self.entry_path(&mut tx, key.0)?;
        let done = lost::accept(&mut tx, key, options)?;
        let answer = query::accepted(&tx, &done)?;
        match done {
            Accepted::MayBeAt(_) => return Ok(answer),
            Accepted::Noted => {
                self.nowhere.rows.entry(key).and_modify(|row| row.accepted = true);
            }
            _ => {
                self.nowhere.rows.remove(&key);
            }
        }
        if !matches!(done, Accepted::Noted | Accepted::NotLost) {
            self.say_given_up(&path);
        }
        self.commit(tx)?;
        self.enqueue(key.0);
        Ok(answer)
    }

    fn say_given_up(&mut self, path: &[u8]) {
        let path = String::from_utf8_lossy(path);
        self.log(Level::Warn, format!("{path}: a version that nobody holds was given up"));
    }
}

/// What an error says about the content, if it says anything.
fn found_by(e: &VolumeError) -> Option<Found> {
    match e.reason() {
        _ if e.is_of_device() => Some(Found::Lost(Why::Unreadable, e.to_string())),
        Volume::Denied => Some(Found::Denied(e.to_string())),
        _ => None,
    }
}
